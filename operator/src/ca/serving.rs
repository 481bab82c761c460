//! The operator's own TLS: a certificate with its DNS names from our own authority, renewed without a restart.

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use underpass_identity::tls;
use underpass_runtime::{Shutdown, tasks};

use super::{
    authority::{Authority, Issuing, SignError},
    connection::{Connection, Door, Limits},
};

/// How long a serving certificate lives; it is replaced at half.
const TTL: Duration = Duration::from_secs(7 * 86_400);

/// Why there is no serving certificate.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// It was not signed.
    #[error("cannot sign the serving certificate")]
    Sign(#[from] SignError),
    /// rustls does not take it.
    #[error("cannot use the serving certificate")]
    Tls(#[from] rustls::Error),
}

/// A serving certificate that is made anew when its time comes, or when another root or issuing certificate signs.
pub struct Serving {
    authority: Authority,
    names: Vec<String>,
    current: ArcSwap<Current>,
    /// Held while a certificate is made, so that many handshakes make one.
    making: Mutex<()>,
}

struct Current {
    certified: Arc<CertifiedKey>,
    issuing: Arc<Issuing>,
    replace_at: SystemTime,
}

impl Serving {
    /// The TLS configuration of a gRPC server with these DNS names (or IP addresses). Clients show no certificate: they
    /// show a token in each call.
    ///
    /// # Errors
    /// [`ServingError`], when no certificate can be made.
    pub fn config(authority: &Authority, names: &[String]) -> Result<Arc<ServerConfig>, ServingError> {
        let names = names.to_vec();
        let current = ArcSwap::from_pointee(make(authority, &names, SystemTime::now())?);
        let serving = Self { authority: authority.clone(), names, current, making: Mutex::new(()) };
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(serving));
        config.alpn_protocols = vec![tls::ALPN.to_vec()];
        Ok(Arc::new(config))
    }

    fn current(&self, now: SystemTime) -> Arc<CertifiedKey> {
        let fresh =
            |current: &Current| now < current.replace_at && Arc::ptr_eq(&current.issuing, &self.authority.issuing());
        let current = self.current.load();
        if fresh(&current) {
            return Arc::clone(&current.certified);
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if !fresh(&self.current.load()) {
            match make(&self.authority, &self.names, now) {
                Ok(made) => self.current.store(Arc::new(made)),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(error, "cannot renew the serving certificate; the old one serves on");
                }
            }
        }
        Arc::clone(&self.current.load().certified)
    }
}

fn make(authority: &Authority, names: &[String], now: SystemTime) -> Result<Current, ServingError> {
    let issuing = authority.issuing();
    let (chain, key) = issuing.serve_as(names, TTL, now)?;
    let certified = Arc::new(CertifiedKey::from_der(chain, key, &tls::provider())?);
    // Half of its own life; when the issuing certificate's is shorter, that one's replacement comes first.
    Ok(Current { certified, issuing, replace_at: now + TTL / 2 })
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current(SystemTime::now()))
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("names", &self.names).finish_non_exhaustive()
    }
}

/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How many handshakes may be under way; more wait in the listener's queue.
const HANDSHAKES: usize = 128;

/// A secured connection.
pub type Accepted = Connection<TlsStream<TcpStream>>;

/// Secured connections for tonic's `serve_with_incoming`, until asked to stop. A slow or broken handshake delays nobody
/// else and ends no stream. Put [`super::admit`] before the services, or no connection lasts.
pub fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    limits: Limits,
    shutdown: Shutdown,
) -> ReceiverStream<io::Result<Accepted>> {
    let (sender, receiver) = mpsc::channel(HANDSHAKES);
    tasks::spawn("accept", async move {
        tokio::select! {
            () = shutdown.requested() => {}
            () = accept_all(listener, TlsAcceptor::from(config), Door::new(limits), sender) => {}
        }
    });
    ReceiverStream::new(receiver)
}

async fn accept_all(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    door: Door,
    sender: mpsc::Sender<io::Result<Accepted>>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    while let (Some(place), Ok(handshake)) = (door.place().await, Arc::clone(&places).acquire_owned().await) {
        let (stream, peer) = tokio::select! {
            () = sender.closed() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Mostly a lack of descriptors, which passes; without a pause this would spin meanwhile.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (acceptor, sender, door) = (acceptor.clone(), sender.clone(), door.clone());
        tasks::spawn("handshake", async move {
            let _handshake = handshake;
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%peer, %error, "cannot switch delays off");
            }
            match tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
                // Fails only when the server has ended.
                Ok(Ok(stream)) => drop(sender.send(Ok(door.connection(stream, Some(peer), place))).await),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "handshake failed"),
                Err(_) => tracing::debug!(%peer, "handshake took too long"),
            }
        });
    }
}
