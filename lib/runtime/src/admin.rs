//! What a program shows of itself over HTTP: readiness, metrics and debugging pages.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    io::ErrorKind,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{self, Instant},
};

use crate::{metrics::Exposition, shutdown::Shutdown, tasks};

/// Connections that one listener serves at once; more wait in its queue.
const MOST_CONNECTIONS: usize = 64;
/// How long a client may take for its request head.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// For how long an address may still be held by a killed former run: the kernel reports a process as gone when its first
/// thread is, but its sockets are closed by its last one.
const FORMER_RUN: Duration = Duration::from_secs(2);

/// What must be there before the program is ready; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, usize>>>);

/// Something that is not there yet. Dropping it says that it is.
#[derive(Debug)]
pub struct Pending {
    readiness: Readiness,
    name: String,
}

impl Readiness {
    /// Names something that must be there before the program is ready.
    #[must_use]
    pub fn pending(&self, name: impl Into<String>) -> Pending {
        let name = name.into();
        *self.lock().entry(name.clone()).or_default() += 1;
        Pending { readiness: self.clone(), name }
    }

    /// What is not there yet.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// It is there.
    pub fn done(self) {
        drop(self);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut names = self.readiness.lock();
        if let Some(count) = names.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                names.remove(&self.name);
            }
        }
    }
}

/// An answer of the administration interface.
pub type Answer = Response<Full<Bytes>>;

type Handler = Arc<dyn Fn(Request<()>) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// The pages that one listener serves.
#[derive(Clone, Default)]
pub struct Pages(BTreeMap<(Method, &'static str), Handler>);

impl Pages {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a page.
    #[must_use]
    pub fn page<F, Fut>(mut self, method: Method, path: &'static str, handler: F) -> Self
    where
        F: Fn(Request<()>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        self.0.insert((method, path), Arc::new(move |request| Box::pin(handler(request))));
        self
    }

    /// Adds `/healthz/ready`: 200 `ready`, or 500 and the names of what is pending.
    #[must_use]
    pub fn readiness(self, readiness: Readiness) -> Self {
        self.page(Method::GET, "/healthz/ready", move |_| {
            let missing = readiness.missing();
            async move {
                if missing.is_empty() {
                    text(StatusCode::OK, "ready\n")
                } else {
                    text(StatusCode::INTERNAL_SERVER_ERROR, format!("not ready: {}\n", missing.join(", ")))
                }
            }
        })
    }

    /// Adds `/metrics`, and `/stats/prometheus` for those who know Istio's path.
    #[must_use]
    pub fn metrics(self, exposition: &Exposition) -> Self {
        let show = |exposition: Exposition| {
            move |_| {
                let exposition = exposition.clone();
                async move {
                    match tokio::task::spawn_blocking(move || exposition.page()).await {
                        Ok(page) => {
                            let mut answer = text(StatusCode::OK, page);
                            let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                            answer.headers_mut().insert(CONTENT_TYPE, kind);
                            answer
                        }
                        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
                    }
                }
            }
        };
        self.page(Method::GET, "/metrics", show(exposition.clone())).page(
            Method::GET,
            "/stats/prometheus",
            show(exposition.clone()),
        )
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        let known = |(method, page): &&(Method, &'static str)| *page == path && method == request.method();
        if let Some(handler) = self.0.keys().find(known).and_then(|key| self.0.get(key)) {
            let (parts, _body) = request.into_parts();
            return handler(Request::from_parts(parts, ())).await;
        }
        let mut list = String::from("pages:\n");
        for (method, page) in self.0.keys() {
            list.push_str(&format!("  {method} {page}\n"));
        }
        text(if path == "/" { StatusCode::OK } else { StatusCode::NOT_FOUND }, list)
    }
}

/// A plain text answer.
#[must_use]
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// A JSON answer; `body` is JSON already.
#[must_use]
pub fn json(body: impl Into<Bytes>) -> Answer {
    let mut answer = text(StatusCode::OK, body);
    answer.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    answer
}

/// An address that others than this machine could reach, where only this machine may.
#[derive(Debug, thiserror::Error)]
pub enum LoopbackError {
    /// It is none.
    #[error(transparent)]
    Address(#[from] std::net::AddrParseError),
    /// It is reachable from elsewhere.
    #[error(
        "{0} is not a loopback address: debugging pages ask for no credentials, and they show every workload and can \
         stop this program"
    )]
    Reachable(SocketAddr),
}

/// Reads an address for debugging pages.
///
/// # Errors
/// [`LoopbackError`]: it is no address, or not one of loopback.
pub fn loopback(text: &str) -> Result<SocketAddr, LoopbackError> {
    let address: SocketAddr = text.parse()?;
    if address.ip().to_canonical().is_loopback() { Ok(address) } else { Err(LoopbackError::Reachable(address)) }
}

/// Serves pages until asked to stop.
///
/// # Errors
/// If the address cannot be listened on; one that is in use, only if it still is after two seconds.
pub async fn serve(address: SocketAddr, pages: Pages, shutdown: Shutdown) -> std::io::Result<()> {
    let listener = listen(address).await?;
    tasks::spawn("admin", accept(listener, pages, shutdown));
    Ok(())
}

async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let patience = Instant::now() + FORMER_RUN;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < patience => {
                time::sleep(Duration::from_millis(20)).await;
            }
            bound => return bound,
        }
    }
}

async fn accept(listener: TcpListener, pages: Pages, shutdown: Shutdown) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = tokio::select! {
            () = shutdown.requested() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: an immediate retry would spin.
                    tracing::warn!(%error, "the administration interface could not accept");
                    time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let pages = pages.clone();
        tasks::spawn("admin connection", async move {
            let service = service_fn(move |request| {
                let pages = pages.clone();
                async move { Ok::<_, Infallible>(pages.answer(request).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_DEADLINE)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "administration connection");
            }
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debugging_pages_are_served_on_loopback_only() {
        for good in ["127.0.0.1:15000", "[::1]:15000", "127.9.9.9:1", "[::ffff:127.0.0.1]:80"] {
            assert!(loopback(good).is_ok(), "{good}");
        }
        for bad in ["0.0.0.0:15000", "[::]:15000", "10.0.0.1:15000", "localhost"] {
            assert!(loopback(bad).is_err(), "{bad}");
        }
        let story = loopback("0.0.0.0:15000").unwrap_err().to_string();
        assert!(story.starts_with("0.0.0.0:15000 is not a loopback address: debugging pages"), "{story}");
    }

    #[tokio::test]
    async fn a_former_run_that_still_ends_is_waited_for() {
        let former = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = former.local_addr().unwrap();
        let (listening, ()) = tokio::join!(listen(address), async {
            time::sleep(Duration::from_millis(100)).await;
            drop(former);
        });
        assert_eq!(listening.unwrap().local_addr().unwrap(), address);
    }

    #[test]
    fn readiness_names_what_is_pending_until_the_last_holder_is_done() {
        let readiness = Readiness::default();
        let (view, again) = (readiness.pending("view"), readiness.pending("view"));
        view.done();
        assert_eq!(readiness.missing(), ["view"]);
        drop(again);
        assert!(readiness.missing().is_empty());
    }
}
