//! The server's end of a tunnel: takes a connection, then CONNECT after CONNECT.
//!
//! It answers nothing by itself. Each [`Incoming`] is accepted, with 200, once the application is connected, or refused
//! with a status. [`ServerConnection::next`] drives the tunnel, so it must be called all the time.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::{Future as _, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Method, Request, Response, StatusCode, request::Parts};
use rustls::{ServerConfig, server::Acceptor};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use underpass_identity::{
    Revocations,
    tls::{self, Expected, PeerError, check_peer},
};
use underpass_model::{Authority, AuthorityError, Identity};

use crate::{
    cork::Cork,
    headers::{Baggage, ConnectHeaders},
    held::Held,
    http2::{self, Http2Options},
    inflow::Inflow,
    keepalive::{Keepalive, KeepaliveOptions, Pings},
    lifetime::{self, Fate, Revocation},
    stream::{Side, StreamError, TunnelStream},
    turns::Turn,
    wire::Wire,
};

/// How long after GOAWAY streams may come that were under way; several of the longest round trips.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// Limits of a server's tunnels.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Windows and sizes.
    pub http2: Http2Options,
    /// When a silent peer is given up.
    pub keepalive: KeepaliveOptions,
    /// Streams that may be open at once in one tunnel; 200.
    pub max_streams: u32,
    /// CONNECTs that may wait for their answer at once in one tunnel, each of them a dial of ours perhaps; 128. More stay
    /// in the tunnel, where they count as open streams, and where few may be reset.
    pub max_unanswered: usize,
    /// What a peer is given for TLS and the HTTP/2 preface together; 5 s.
    pub handshake_deadline: Duration,
    /// What the last words of a tunnel that is closed at once are given to leave; 1 s.
    pub close_deadline: Duration,
    /// Whose tunnels are refused, and cut when it is told later; nobody's.
    pub revocations: Revocations,
    /// Where the bytes of whoever is served are counted, whose limit the windows of all their tunnels share; no limit.
    pub held: Arc<Held>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            http2: Http2Options::default(),
            keepalive: KeepaliveOptions::default(),
            max_streams: 200,
            max_unanswered: 128,
            handshake_deadline: Duration::from_secs(5),
            close_deadline: Duration::from_secs(1),
            revocations: Revocations::new(),
            held: Arc::default(),
        }
    }
}

/// Why a connection did not become a tunnel.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// It does not speak HTTP/2 as it said.
    #[error("the HTTP/2 handshake failed")]
    Http2(#[source] h2::Error),
    /// It is not one whom we may speak to.
    #[error("refused the peer")]
    Peer(#[from] PeerError),
    /// It did not offer HTTP/2.
    #[error("the peer does not speak HTTP/2")]
    Protocol,
    /// It took too long.
    #[error("the handshake took longer than {0:?}")]
    Timeout(Duration),
    /// TLS failed.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
}

impl AcceptError {
    /// A stable label for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Http2(_) => "tunnel_http2_failed",
            Self::Peer(error) => error.reason(),
            Self::Protocol => "tunnel_wrong_protocol",
            Self::Timeout(_) => "tunnel_handshake_timeout",
            Self::Tls(_) => "tunnel_tls_failed",
        }
    }
}

/// Takes a connection: TLS, who is it, HTTP/2.
///
/// # Errors
/// [`AcceptError`]; the connection is then closed.
pub async fn accept<IO>(
    io: IO,
    tls: &Arc<ServerConfig>,
    expect: &Expected,
    options: &ServerOptions,
) -> Result<ServerConnection<IO>, AcceptError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    // Large, and needed once in a tunnel's life.
    let handshake = Box::pin(shake_hands(io, tls, expect, options));
    timeout(options.handshake_deadline, handshake)
        .await
        .unwrap_or(Err(AcceptError::Timeout(options.handshake_deadline)))
}

async fn shake_hands<IO>(
    io: IO,
    tls: &Arc<ServerConfig>,
    expect: &Expected,
    options: &ServerOptions,
) -> Result<ServerConnection<IO>, AcceptError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let wire = Wire::new(io);
    let (heard, turn) = (wire.heard(), wire.turn());
    let start = LazyConfigAcceptor::new(Acceptor::default(), wire).await.map_err(AcceptError::Tls)?;
    // What we show this client; only here can it be asked for.
    let own = tls.cert_resolver.resolve(start.client_hello());
    let mut stream = start.into_stream(Arc::clone(tls)).await.map_err(AcceptError::Tls)?;
    let (_, session) = stream.get_mut();
    session.set_buffer_limit(Some(http2::TLS_BUFFER));
    let (now, certificates) = (SystemTime::now(), session.peer_certificates().unwrap_or_default());
    let peer = check_peer(certificates, expect, now)?;
    let control = Rc::new(Control::new(Inflow::new(&options.held, options.http2.connection_window)));
    let revocation = Revocation::watch(&options.revocations, certificates, control.fate.clone())?;
    let expiry = Box::pin(sleep_until(lifetime::end(own.as_deref(), certificates, now)));
    if session.alpn_protocol() != Some(tls::ALPN) {
        return Err(AcceptError::Protocol);
    }
    let cork = Cork::new(stream);
    let http2_options = Http2Options { connection_window: control.inflow.granted(), ..options.http2.clone() };
    let handshake = http2::server(&http2_options, options.max_streams).handshake(cork.clone());
    let mut http2: Http2<IO> = Box::new(handshake.await.map_err(AcceptError::Http2)?);
    let keepalive = Keepalive::new(&options.keepalive, heard, Pings::new(http2.ping_pong()));
    Ok(ServerConnection {
        peer,
        http2,
        cork,
        turn,
        keepalive,
        expiry,
        revocation,
        control,
        state: State::Open,
        close_deadline: options.close_deadline,
        max_unanswered: options.max_unanswered,
    })
}

type Transport<IO> = Cork<TlsStream<Wire<IO>>>;
type Http2<IO> = Box<h2::server::Connection<Transport<IO>, Bytes>>;

/// The server's end of a tunnel. Dropping it cuts the tunnel and all its streams.
pub struct ServerConnection<IO = TcpStream> {
    peer: Identity,
    http2: Http2<IO>,
    cork: Transport<IO>,
    turn: Rc<Turn>,
    keepalive: Keepalive,
    /// Until a certificate that made the tunnel expires.
    expiry: Pin<Box<Sleep>>,
    revocation: Revocation,
    control: Rc<Control>,
    state: State,
    close_deadline: Duration,
    max_unanswered: usize,
}

enum State {
    Open,
    /// Asked the client to open no more streams, then.
    Draining(Instant),
    /// Said good-bye; ends when that is written, or at the deadline.
    Closing(Pin<Box<Sleep>>),
    Ended,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> ServerConnection<IO> {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Identity {
        &self.peer
    }

    /// A handle by which others end the tunnel.
    #[must_use]
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        ShutdownHandle(Rc::clone(&self.control))
    }

    /// Drives the tunnel until the next CONNECT; none when the tunnel has ended. May be cancelled and called again.
    pub async fn next(&mut self) -> Option<Incoming> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        if matches!(self.state, State::Ended) {
            return Poll::Ready(None);
        }
        self.control.heed(cx.waker());
        if matches!(self.state, State::Open) && self.expiry.as_mut().poll(cx).is_ready() {
            // Whom it carries was known when it came; who comes next shall prove it anew.
            tracing::debug!(peer = %self.peer, "a certificate of the tunnel expired");
            self.shutdown_handle().drain();
        }
        if self.revocation.poll(cx).is_ready() {
            self.shutdown_handle().close();
        }
        self.obey();
        if let Some(window) = self.control.inflow.change() {
            self.http2.set_target_window_size(window);
        }
        if self.turn.poll(cx).is_ready() {
            match self.poll_accept(cx) {
                Poll::Ready(Some(Ok(incoming))) => return Poll::Ready(Some(incoming)),
                Poll::Ready(Some(Err(error))) => return self.end(&format_args!("{error}")),
                Poll::Ready(None) => return self.end(&"closed"),
                Poll::Pending => {}
            }
            if let Poll::Ready(Err(error)) = self.cork.poll_release(cx) {
                return self.end(&error);
            }
            self.turn.pass_if_over(cx);
        }
        if let State::Closing(deadline) = &mut self.state
            && deadline.as_mut().poll(cx).is_ready()
        {
            return self.end(&"closed at the deadline");
        }
        if self.keepalive.poll_dead(cx).is_ready() {
            self.http2.abrupt_shutdown(Reason::NO_ERROR);
            // It hardly leaves, the peer being gone; if it is only slow it learns what happened.
            let _flushed = (self.http2.poll_closed(cx), self.cork.poll_release(cx));
            return self.end(&"the peer is silent");
        }
        Poll::Pending
    }

    /// Takes a CONNECT if one more may be under way, and drives the tunnel in any case. Those that come too late are reset
    /// unheard, so that the client may ask another.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, h2::Error>>> {
        if self.control.unanswered.get() >= self.max_unanswered {
            return self.http2.poll_closed(cx).map(|end| end.err().map(Err));
        }
        loop {
            match ready!(self.http2.poll_accept(cx)) {
                Some(Ok((_, mut respond))) if self.is_too_late() => respond.send_reset(Reason::REFUSED_STREAM),
                came => {
                    let came = Poll::Ready(came);
                    return came.map_ok(|(request, respond)| Incoming::new(request, respond, &self.control));
                }
            }
        }
    }

    /// Whether a client that opens a stream had the time to hear that it shall not. HTTP/2 alone enforces this only against
    /// clients that answer the PING which goes with GOAWAY (RFC 9113, 6.8).
    fn is_too_late(&self) -> bool {
        matches!(self.state, State::Draining(since) if since.elapsed() >= DRAIN_GRACE)
    }

    fn obey(&mut self) {
        match (self.control.wish.get(), &self.state) {
            (Wish::Drain, State::Open) => {
                self.http2.graceful_shutdown();
                self.state = State::Draining(Instant::now());
            }
            (Wish::Close, State::Open | State::Draining(_)) => {
                self.http2.abrupt_shutdown(Reason::NO_ERROR);
                self.state = State::Closing(Box::pin(sleep(self.close_deadline)));
            }
            _ => {}
        }
    }

    fn end(&mut self, why: &dyn fmt::Display) -> Poll<Option<Incoming>> {
        tracing::debug!(peer = %self.peer, %why, "tunnel ended");
        self.state = State::Ended;
        Poll::Ready(None)
    }
}

impl<IO> fmt::Debug for ServerConnection<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConnection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Ends a tunnel from outside. Clones are the same handle.
#[derive(Debug, Clone)]
pub struct ShutdownHandle(Rc<Control>);

impl ShutdownHandle {
    /// Lets the client open no more streams (GOAWAY); the tunnel ends with the last one. CONNECTs that were under way
    /// still come out of [`ServerConnection::next`]; those of a client that has not listened for 5 s are reset.
    pub fn drain(&self) {
        if self.0.wish.get() == Wish::None {
            self.0.ask(Wish::Drain);
        }
    }

    /// Ends the tunnel and its streams now, with GOAWAY and FIN.
    pub fn close(&self) {
        self.0.ask(Wish::Close);
    }
}

#[derive(Debug)]
struct Control {
    wish: Cell<Wish>,
    inflow: Inflow,
    /// CONNECTs that were handed out and are not answered.
    unanswered: Cell<usize>,
    fate: Fate,
    waker: RefCell<Option<Waker>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Wish {
    #[default]
    None,
    Drain,
    Close,
}

impl Control {
    fn new(inflow: Inflow) -> Self {
        let (wish, unanswered, waker) = (Cell::default(), Cell::default(), RefCell::default());
        Self { wish, inflow, unanswered, fate: Fate::default(), waker }
    }

    fn ask(&self, wish: Wish) {
        self.wish.set(wish);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn heed(&self, waker: &Waker) {
        let mut known = self.waker.borrow_mut();
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }
}

/// Counts one CONNECT as long as it waits for its answer.
#[derive(Debug)]
struct Unanswered(Rc<Control>);

impl Unanswered {
    fn new(control: &Rc<Control>) -> Self {
        control.unanswered.set(control.unanswered.get() + 1);
        Self(Rc::clone(control))
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.unanswered.set(self.0.unanswered.get().saturating_sub(1));
        // There is room for another one.
        self.0.wake();
    }
}

/// What a stream took out of its tunnel and has not passed on.
#[derive(Debug)]
pub(crate) struct Taken {
    control: Rc<Control>,
    bytes: usize,
}

impl Taken {
    pub(crate) fn more(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.control.inflow.taken(bytes) {
            self.control.wake();
        }
    }

    pub(crate) fn passed_on(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.control.inflow.passed_on(bytes);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // h2 gives back what a stream that is gone had not.
        self.control.inflow.passed_on(self.bytes);
    }
}

/// Why a request is no CONNECT that can be carried.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RequestError {
    /// Its target makes no sense.
    #[error("the target makes no sense")]
    Authority(#[from] AuthorityError),
    /// It is something else.
    #[error("the method is not CONNECT")]
    Method,
}

impl RequestError {
    /// A stable label for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Authority(_) => "bad_authority",
            Self::Method => "not_connect",
        }
    }

    /// The status to refuse with.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::BAD_REQUEST
    }
}

/// Whither a request's head wants to go.
///
/// # Errors
/// [`RequestError`], if it is no CONNECT, or not to a target.
pub fn target(head: &Parts) -> Result<Authority, RequestError> {
    if head.method != Method::CONNECT {
        return Err(RequestError::Method);
    }
    let text = head.uri.authority().map_or("", http::uri::Authority::as_str);
    Ok(text.parse()?)
}

/// A CONNECT that waits for its answer. Dropped without one, it is reset.
#[derive(Debug)]
pub struct Incoming {
    /// Whither; an error is to be refused with its status.
    pub authority: Result<Authority, RequestError>,
    /// What it tells besides.
    pub headers: ConnectHeaders,
    respond: SendResponse<Bytes>,
    body: RecvStream,
    unanswered: Unanswered,
}

impl Incoming {
    fn new(request: Request<RecvStream>, respond: SendResponse<Bytes>, control: &Rc<Control>) -> Self {
        let (head, body) = request.into_parts();
        let headers = ConnectHeaders::read(&head.headers);
        Self { authority: target(&head), headers, respond, body, unanswered: Unanswered::new(control) }
    }

    /// Waits until the client gives up. Never ends while it waits for the answer.
    pub async fn cancelled(&mut self) {
        // An error means that the whole tunnel is gone.
        let _reason = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }

    /// Answers 200; from now on bytes flow. `own` tells the client about the workload behind us.
    ///
    /// # Errors
    /// If the client has given up, or was revoked meanwhile: what it has sent already must reach nobody.
    pub fn accept(mut self, own: &Baggage) -> Result<TunnelStream, StreamError> {
        if let Some(serial) = self.unanswered.0.fate.revoked() {
            return Err(StreamError::Revoked(serial.clone()));
        }
        let mut response = Response::new(());
        own.write(response.headers_mut());
        let send = self.respond.send_response(response, false).map_err(StreamError::TunnelLost)?;
        let control = Rc::clone(&self.unanswered.0);
        let fate = control.fate.clone();
        Ok(TunnelStream::new(send, self.body, Side::Server(Taken { control, bytes: 0 }), fate))
    }

    /// Answers with a status that means no.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        if let Err(error) = self.respond.send_response(response, true) {
            tracing::debug!(%error, "refusal not sent: the client has given up");
        }
    }
}
