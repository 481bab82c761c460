//! The client's end of a tunnel: the handshakes, the CONNECT, and the task that drives it.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use h2::{Reason, client::SendRequest};
use http::{Method, Request, StatusCode, Version};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use underpass_identity::tls::{self, Expected, PeerError, check_peer};
use underpass_model::{Authority, Identity};

use crate::{
    cork::Cork,
    headers::{Baggage, ConnectHeaders},
    http2,
    keepalive::{Keepalive, Pings},
    lifetime::{self, Fate, Revocation},
    pool::{PoolOptions, Tunnel},
    stream::{Side, TunnelStream},
    turns::Turn,
    wire::{Heard, Wire},
};

/// What a CONNECT says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    /// The target.
    pub authority: Authority,
    /// What it tells besides.
    pub headers: ConnectHeaders,
}

impl ConnectRequest {
    /// The request as it is sent.
    ///
    /// # Errors
    /// If the target is longer than HTTP allows.
    pub fn head(&self) -> Result<Request<()>, http::Error> {
        let mut head = Request::builder()
            .method(Method::CONNECT)
            .version(Version::HTTP_2)
            .uri(self.authority.to_string())
            .body(())?;
        self.headers.write(head.headers_mut());
        Ok(head)
    }
}

/// Why there is no tunnel. Everybody who waited for it is told the same.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TCP did not connect.
    #[error("cannot connect")]
    Dial(#[source] io::Error),
    /// The HTTP/2 preface did not get through.
    #[error("the HTTP/2 handshake failed")]
    Http2(#[source] h2::Error),
    /// The peer is not whom we wanted.
    #[error("refused the peer")]
    Peer(#[from] PeerError),
    /// It does not speak HTTP/2.
    #[error("the peer does not speak HTTP/2")]
    Protocol,
    /// A step took too long.
    #[error("{step} took longer than {deadline:?}")]
    Timeout {
        /// Which: `dial`, `tls` or `http2`.
        step: &'static str,
        /// What it was given.
        deadline: Duration,
    },
    /// TLS failed.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
}

impl ConnectError {
    /// A stable label for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Dial(_) => "tunnel_dial_failed",
            Self::Http2(_) => "tunnel_http2_failed",
            Self::Peer(error) => error.reason(),
            Self::Protocol => "tunnel_wrong_protocol",
            Self::Timeout { step: "dial", .. } => "tunnel_dial_timeout",
            Self::Timeout { .. } => "tunnel_handshake_timeout",
            Self::Tls(_) => "tunnel_tls_failed",
        }
    }
}

/// Why a stream was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no tunnel.
    #[error("no tunnel to {address}")]
    Connect {
        /// Whither.
        address: SocketAddr,
        /// Why.
        source: Arc<ConnectError>,
    },
    /// The tunnel broke, or takes no new streams, before the answer came.
    #[error("the tunnel to {address} ended before it answered")]
    Lost {
        /// Whither.
        address: SocketAddr,
        /// How.
        source: h2::Error,
    },
    /// No answer came.
    #[error("{address} did not answer within {deadline:?}")]
    NoAnswer {
        /// Whither.
        address: SocketAddr,
        /// What it was given.
        deadline: Duration,
    },
    /// The peer said no.
    #[error("{address} refused with status {status}")]
    Refused {
        /// Whither.
        address: SocketAddr,
        /// How it says why.
        status: StatusCode,
    },
    /// The peer reset the stream instead of answering.
    #[error("{address} reset the stream: {reason}")]
    Reset {
        /// Whither.
        address: SocketAddr,
        /// How it says why.
        reason: Reason,
    },
    /// The peer fell silent: neither an answer came nor any other sign of life.
    #[error("{address} gave no sign of life for {silence:?}")]
    Silent {
        /// Whither.
        address: SocketAddr,
        /// For how long.
        silence: Duration,
    },
    /// The request cannot be written.
    #[error("no CONNECT can be made of this target")]
    Request(#[source] http::Error),
}

impl OpenError {
    /// A stable label for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect { source, .. } => source.reason(),
            Self::Lost { .. } => "tunnel_lost",
            Self::NoAnswer { .. } => "tunnel_no_answer",
            Self::Refused { .. } => "tunnel_refused",
            Self::Reset { .. } => "tunnel_reset",
            Self::Silent { .. } => "tunnel_silent",
            Self::Request(_) => "tunnel_bad_request",
        }
    }

    /// Whether another endpoint may be tried: the application's bytes leave us after a 200 only, so none can have
    /// arrived. Not after an answer that means *this call is not wanted*, and not when the fault is ours.
    #[must_use]
    pub fn retry_elsewhere(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Lost { .. }
            | Self::NoAnswer { .. }
            | Self::Reset { .. }
            | Self::Silent { .. } => true,
            Self::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::Request(_) => false,
        }
    }

    /// Whether the fault may lie in the tunnel alone, so that a new one to the same address is worth a try.
    pub(crate) fn is_of_the_tunnel(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::Silent { .. } => true,
            Self::Reset { reason, .. } => *reason == Reason::REFUSED_STREAM,
            Self::Connect { .. } | Self::NoAnswer { .. } | Self::Refused { .. } | Self::Request(_) => false,
        }
    }
}

/// A tunnel in the pool.
#[derive(Debug)]
pub(crate) struct Session {
    /// None once it takes no new streams. h2 closes the tunnel when the last stream has ended and nothing can open one.
    requests: RefCell<Option<SendRequest<Bytes>>>,
    pub(crate) peer: Identity,
    open: Cell<usize>,
    idle_since: Cell<Instant>,
    most: usize,
    /// What we proved ourselves with. It is replaced whenever our certificate or the roots change.
    tls: Weak<ClientConfig>,
    /// When a certificate that made it expires.
    expires: Instant,
    heard: Heard,
    pings: Pings,
    fate: Fate,
}

impl Session {
    /// A place for a stream, if there is one and the tunnel still takes streams.
    pub(crate) fn slot(self: &Rc<Self>) -> Option<Slot> {
        if !self.is_usable() {
            return None;
        }
        let allowed = self.requests.borrow().as_ref().map_or(0, SendRequest::current_max_send_streams);
        if self.open.get() >= self.most.min(allowed) {
            return None;
        }
        self.open.set(self.open.get() + 1);
        Some(Slot(Rc::clone(self)))
    }

    /// False once the peer said GOAWAY, the connection broke, or we retired it.
    pub(crate) fn is_usable(&self) -> bool {
        let mut requests = self.requests.borrow_mut();
        let mut cx = Context::from_waker(Waker::noop());
        let usable = requests.as_mut().is_some_and(|r| !matches!(r.poll_ready(&mut cx), Poll::Ready(Err(_))));
        if !usable {
            *requests = None;
        }
        usable
    }

    /// Whether it was made with these credentials.
    pub(crate) fn is_of(&self, tls: &Arc<ClientConfig>) -> bool {
        // A dead Weak still holds its place in memory, so no other credentials can be taken for these.
        std::ptr::eq(self.tls.as_ptr(), Arc::as_ptr(tls))
    }

    /// For how long nothing was heard from the peer.
    pub(crate) fn silence(&self) -> Duration {
        self.heard.at().elapsed()
    }

    /// Takes no new streams from now on; ends with the last one.
    pub(crate) fn retire(&self) {
        *self.requests.borrow_mut() = None;
    }

    /// The number of streams in use.
    pub(crate) fn streams(&self) -> usize {
        self.open.get()
    }

    /// When to retire it if no stream comes; at the latest when a certificate expires.
    fn retires(&self, idle: Duration) -> Instant {
        let idle = if self.open.get() == 0 { self.idle_since.get() + idle } else { Instant::now() + idle };
        idle.min(self.expires)
    }
}

/// A place for one stream in a tunnel, held as long as the stream lives.
#[derive(Debug)]
pub(crate) struct Slot(Rc<Session>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
        self.0.idle_since.set(Instant::now());
    }
}

/// Makes a tunnel. `ended` is called when it is gone.
pub(crate) async fn establish<IO, F>(
    dial: F,
    tls: &Arc<ClientConfig>,
    expect: Expected,
    options: &PoolOptions,
    ended: impl FnOnce() + 'static,
) -> Result<Rc<Session>, ConnectError>
where
    F: Future<Output = io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let io = within("dial", options.dial_deadline, dial).await?.map_err(ConnectError::Dial)?;
    let wire = Wire::new(io);
    let (heard, turn) = (wire.heard(), wire.turn());
    let connect = TlsConnector::from(Arc::clone(tls)).connect(tls::server_name(), wire);
    let mut stream = within("tls", options.handshake_deadline, connect).await?.map_err(ConnectError::Tls)?;
    let (_, session) = stream.get_mut();
    session.set_buffer_limit(Some(http2::TLS_BUFFER));
    let (now, certificates) = (SystemTime::now(), session.peer_certificates().unwrap_or_default());
    let peer = check_peer(certificates, &expect, now)?;
    let fate = Fate::default();
    let revocation = Revocation::watch(&options.revocations, certificates, fate.clone())?;
    let own = tls.client_auth_cert_resolver.resolve(&[], &[]);
    let expires = lifetime::end(own.as_deref(), certificates, now);
    if session.alpn_protocol() != Some(tls::ALPN) {
        return Err(ConnectError::Protocol);
    }
    let mut builder = http2::client(&options.http2);
    // Until its settings arrive, the peer is taken to allow this many.
    builder.initial_max_send_streams(options.max_streams);
    let stream = Cork::new(stream);
    let handshake = builder.handshake(stream.clone());
    let (requests, mut connection) =
        within("http2", options.handshake_deadline, handshake).await?.map_err(ConnectError::Http2)?;
    let pings = Pings::new(connection.ping_pong());
    let keepalive = Keepalive::new(&options.keepalive, heard.clone(), pings.clone());
    let session = Rc::new(Session {
        requests: RefCell::new(Some(requests)),
        peer,
        open: Cell::new(0),
        idle_since: Cell::new(Instant::now()),
        most: options.max_streams,
        tls: Arc::downgrade(tls),
        expires,
        heard,
        pings,
        fate,
    });
    let task = drive((connection, stream, turn), &session, (keepalive, revocation), options.idle);
    underpass_runtime::tasks::spawn_local("tunnel", async {
        task.await;
        ended();
    });
    Ok(session)
}

async fn within<F: Future>(step: &'static str, deadline: Duration, future: F) -> Result<F::Output, ConnectError> {
    timeout(deadline, future).await.map_err(|_| ConnectError::Timeout { step, deadline })
}

type Transport<IO> = Cork<TlsStream<Wire<IO>>>;

/// Drives a tunnel until it ends: by the peer, by silence, or when nobody needs it.
fn drive<IO: AsyncRead + AsyncWrite + Unpin>(
    (mut connection, cork, turn): (h2::client::Connection<Transport<IO>, Bytes>, Transport<IO>, Rc<Turn>),
    session: &Rc<Session>,
    (mut keepalive, mut revocation): (Keepalive, Revocation),
    idle: Duration,
) -> impl Future<Output = ()> + use<IO> {
    let retires = session.retires(idle);
    let session = Rc::downgrade(session);
    async move {
        let mut timer = pin!(sleep_until(retires));
        std::future::poll_fn(|cx| {
            if turn.poll(cx).is_ready() {
                if let Poll::Ready(end) = pin!(&mut connection).poll(cx) {
                    tracing::debug!(error = ?end.err(), "tunnel ended");
                    return Poll::Ready(());
                }
                if let Poll::Ready(Err(error)) = cork.poll_release(cx) {
                    tracing::debug!(%error, "tunnel ended");
                    return Poll::Ready(());
                }
                turn.pass_if_over(cx);
            }
            if revocation.poll(cx).is_ready() {
                return Poll::Ready(());
            }
            if keepalive.poll_dead(cx).is_ready() {
                tracing::debug!("tunnel ended: its peer is silent");
                return Poll::Ready(());
            }
            while timer.as_mut().poll(cx).is_ready() {
                let Some(session) = session.upgrade() else { break };
                let retires = session.retires(idle);
                if retires <= Instant::now() {
                    session.retire();
                    break;
                }
                timer.as_mut().reset(retires);
            }
            Poll::Pending
        })
        .await;
        if let Some(session) = session.upgrade() {
            session.retire();
        }
    }
}

/// What a CONNECT waits for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For the answer of a peer that lives.
    pub(crate) answer: Duration,
    /// For any sign of life before it is asked for one.
    pub(crate) doubt: Duration,
    /// For one after that.
    pub(crate) silence: Duration,
}

/// A CONNECT that can be tried again.
pub(crate) struct Connect {
    head: Request<()>,
    address: SocketAddr,
    patience: Patience,
}

impl Connect {
    pub(crate) fn new(request: &ConnectRequest, address: SocketAddr, patience: Patience) -> Result<Self, OpenError> {
        Ok(Self { head: request.head().map_err(OpenError::Request)?, address, patience })
    }

    /// Asks for a stream in the slot's tunnel.
    pub(crate) async fn ask(&self, slot: Slot) -> Result<Tunnel, OpenError> {
        let (response, send) = self.request(&slot).map_err(|error| self.failed(error))?;
        // Dropping both halves, in case of an error, resets the stream.
        let response = self.answer(&slot.0, response).await?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(OpenError::Refused { address: self.address, status: head.status });
        }
        let (peer, fate) = (slot.0.peer.clone(), slot.0.fate.clone());
        let stream = TunnelStream::new(send, body, Side::Client(slot), fate);
        Ok(Tunnel { stream, peer, response: Baggage::read(&head.headers) })
    }

    /// Waits for the answer, as long as there is reason to think that the peer lives. A tunnel whose peer has fallen
    /// silent takes no more streams; those that it has may hope until [`Keepalive`] gives it up.
    async fn answer(
        &self,
        session: &Session,
        mut response: h2::client::ResponseFuture,
    ) -> Result<http::Response<h2::RecvStream>, OpenError> {
        let Patience { answer, doubt, silence } = self.patience;
        let sent = Instant::now();
        let deadline = sent + answer;
        let mut asked: Option<Instant> = None;
        loop {
            let heard = session.heard.at();
            // A sign of life settles the question. (There was none for a while when it was asked.)
            asked = asked.filter(|asked| heard < *asked);
            let until = asked.map_or(heard.max(sent) + doubt, |asked| asked + silence);
            if let Ok(response) = timeout_at(until.min(deadline), &mut response).await {
                return response.map_err(|error| self.failed(error));
            }
            let (now, heard) = (Instant::now(), session.heard.at());
            let is_dead = |asked: Instant| heard < asked && now >= asked + silence;
            if asked.is_some_and(is_dead) || (now >= deadline && heard <= sent) {
                session.retire();
                return Err(OpenError::Silent { address: self.address, silence: now.saturating_duration_since(heard) });
            }
            if now >= deadline {
                return Err(OpenError::NoAnswer { address: self.address, deadline: answer });
            }
            if asked.is_none() && now >= heard.max(sent) + doubt {
                session.pings.ask();
                asked = Some(now);
            }
        }
    }

    fn request(&self, slot: &Slot) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        let mut requests = slot.0.requests.borrow_mut();
        match requests.as_mut() {
            Some(requests) => requests.clone().send_request(self.head.clone(), false),
            None => Err(Reason::REFUSED_STREAM.into()),
        }
    }

    fn failed(&self, error: h2::Error) -> OpenError {
        match error.reason() {
            Some(reason) if error.is_reset() => OpenError::Reset { address: self.address, reason },
            _ => OpenError::Lost { address: self.address, source: error },
        }
    }
}
