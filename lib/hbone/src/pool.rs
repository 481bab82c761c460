//! The tunnels of one worker: opens streams, in tunnels that exist where possible.
//!
//! One dial per key is under way at a time; who comes meanwhile waits for it and shares its outcome. A tunnel without
//! room is left out until a stream in it ends. A tunnel that the peer closes (GOAWAY) takes no more streams, and those in
//! it go on.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Weak},
    time::Duration,
};

use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::Instant,
};
use underpass_identity::{Revocations, tls::Expected};
use underpass_model::{Identity, PodUid, WorkloadUid};
use underpass_runtime::metrics::catalogue;

use crate::{
    client::{self, Connect, ConnectError, ConnectRequest, OpenError, Patience, Session, Slot},
    headers::Baggage,
    http2::Http2Options,
    keepalive::KeepaliveOptions,
    stream::TunnelStream,
};

/// What makes two connections fit for one tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// Whose connections: tunnels start in the pod's network namespace.
    pub pod: PodUid,
    /// As whom.
    pub own: Identity,
    /// To which workload.
    pub destination: WorkloadUid,
    /// At which address.
    pub address: SocketAddr,
    /// Who must answer there.
    pub expect: Arc<[Identity]>,
}

/// Limits of a pool.
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// Windows and sizes.
    pub http2: Http2Options,
    /// When a silent peer is given up.
    pub keepalive: KeepaliveOptions,
    /// Streams per tunnel, unless the peer allows fewer; 100.
    pub max_streams: usize,
    /// How long a tunnel is kept without a stream; 5 min.
    pub idle: Duration,
    /// What a dial is given; 10 s.
    pub dial_deadline: Duration,
    /// What TLS and then HTTP/2 are given; 5 s each.
    pub handshake_deadline: Duration,
    /// What the answer to a CONNECT is given; 15 s, since the other side dials the application meanwhile.
    pub answer_deadline: Duration,
    /// Silence of a peer that owes an answer after which it is asked for a sign of life; 3 s.
    pub doubt_after: Duration,
    /// What it is then given for one, before its tunnel takes no more streams; 3 s.
    pub doubt_deadline: Duration,
    /// Whose tunnels are refused, and cut when it is told later; nobody's.
    pub revocations: Revocations,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            http2: Http2Options::default(),
            keepalive: KeepaliveOptions::default(),
            max_streams: 100,
            idle: Duration::from_secs(300),
            dial_deadline: Duration::from_secs(10),
            handshake_deadline: Duration::from_secs(5),
            answer_deadline: Duration::from_secs(15),
            doubt_after: Duration::from_secs(3),
            doubt_deadline: Duration::from_secs(3),
            revocations: Revocations::new(),
        }
    }
}

impl PoolOptions {
    fn patience(&self) -> Patience {
        Patience { answer: self.answer_deadline, doubt: self.doubt_after, silence: self.doubt_deadline }
    }
}

/// A stream that the peer accepted.
#[derive(Debug)]
pub struct Tunnel {
    /// Where the bytes go.
    pub stream: TunnelStream,
    /// Who answered.
    pub peer: Identity,
    /// What it says of the workload behind it.
    pub response: Baggage,
}

/// One tunnel, for the administration interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelStatus {
    /// What it is for.
    pub key: TunnelKey,
    /// Who answers.
    pub peer: Identity,
    /// Streams in use.
    pub streams: usize,
}

/// How much of a pool there is, and was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Tunnels that exist.
    pub tunnels: usize,
    /// Streams in them.
    pub streams: usize,
    /// Tunnels that were ever made.
    pub opened: u64,
    /// Tunnels that [`Pool::evict`] ever took out of use.
    pub evicted: u64,
}

/// The tunnels of one worker. Clones are the same pool.
#[derive(Clone)]
pub struct Pool(Rc<Shared>);

struct Shared {
    options: PoolOptions,
    entries: RefCell<HashMap<TunnelKey, Rc<Entry>>>,
    opened: Cell<u64>,
    evicted: Cell<u64>,
}

/// What is known for one key.
#[derive(Default)]
struct Entry {
    sessions: RefCell<Vec<Rc<Session>>>,
    dial: RefCell<Option<Rc<Dial>>>,
    evicted: Cell<bool>,
}

/// A dial under way.
#[derive(Default)]
struct Dial {
    /// As whom. Who has other credentials may have another outcome.
    tls: Weak<ClientConfig>,
    over: Cell<bool>,
    failure: RefCell<Option<Arc<ConnectError>>>,
    waiting: Notify,
}

/// Whether a tunnel that exists will do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Any,
    Fresh,
}

impl Pool {
    /// How often one open tries tunnels of others before it gives up.
    const ATTEMPTS: usize = 4;

    /// An empty pool.
    #[must_use]
    pub fn new(options: PoolOptions) -> Self {
        let shared = Shared { options, entries: RefCell::default(), opened: Cell::default(), evicted: Cell::default() };
        Self(Rc::new(shared))
    }

    /// Opens a stream. `dial` connects TCP to the key's address; it is called when no tunnel has room, at most once.
    ///
    /// A tunnel that turns out to be gone is replaced by a new one without the caller's noticing: nothing is sent before
    /// the peer's 200, so nothing can be sent twice. The same holds for one whose peer fell silent, and for one that was
    /// made with other credentials than `tls`, or whose certificates expired: it takes no more streams, and those that it
    /// has go on.
    ///
    /// # Errors
    /// [`OpenError`]; ask it whether another endpoint may be tried.
    pub async fn open<D, F, IO>(
        &self,
        key: &TunnelKey,
        request: &ConnectRequest,
        tls: &Arc<ClientConfig>,
        dial: D,
    ) -> Result<Tunnel, OpenError>
    where
        D: FnOnce() -> F,
        F: Future<Output = io::Result<IO>>,
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let connect = Connect::new(request, key.address, self.0.options.patience())?;
        let mut dial = Some(dial);
        let mut choice = Choice::Any;
        for _ in 1..Self::ATTEMPTS {
            let slot = self.slot(key, tls, &mut dial, choice).await?;
            match connect.ask(slot).await {
                Err(OpenError::Silent { silence, .. }) if dial.is_some() => self.0.doubt(key, silence),
                Err(error) if error.is_of_the_tunnel() && dial.is_some() => choice = Choice::Fresh,
                outcome => return outcome,
            }
        }
        let slot = self.slot(key, tls, &mut dial, choice).await?;
        connect.ask(slot).await
    }

    /// Takes the tunnels that `unwanted` names out of use: no new streams, and the end when the last one ends.
    pub fn evict(&self, unwanted: impl Fn(&TunnelKey) -> bool) {
        self.0.entries.borrow_mut().retain(|key, entry| {
            let keep = !unwanted(key);
            if !keep {
                entry.evicted.set(true);
                let evicted = &self.0.evicted;
                entry.sessions.borrow_mut().drain(..).for_each(|session| {
                    evicted.set(evicted.get() + 1);
                    session.retire();
                });
            }
            keep
        });
    }

    /// How many tunnels and streams there are.
    #[must_use]
    pub fn counts(&self) -> PoolCounts {
        let (opened, evicted) = (self.0.opened.get(), self.0.evicted.get());
        let mut counts = PoolCounts { opened, evicted, ..PoolCounts::default() };
        for entry in self.0.entries.borrow().values() {
            let sessions = entry.sessions.borrow();
            counts.tunnels += sessions.len();
            counts.streams += sessions.iter().map(|session| session.streams()).sum::<usize>();
        }
        counts
    }

    /// The tunnels that exist.
    #[must_use]
    pub fn status(&self) -> Vec<TunnelStatus> {
        let entries = self.0.entries.borrow();
        let of = |(key, entry): (&TunnelKey, &Rc<Entry>)| {
            let status = |session: &Rc<Session>| TunnelStatus {
                key: key.clone(),
                peer: session.peer.clone(),
                streams: session.streams(),
            };
            entry.sessions.borrow().iter().map(status).collect::<Vec<_>>()
        };
        entries.iter().flat_map(of).collect()
    }

    /// A place for a stream: in a tunnel that exists, or that somebody is dialling, or that we dial.
    async fn slot<D, F, IO>(
        &self,
        key: &TunnelKey,
        tls: &Arc<ClientConfig>,
        dial: &mut Option<D>,
        mut choice: Choice,
    ) -> Result<Slot, OpenError>
    where
        D: FnOnce() -> F,
        F: Future<Output = io::Result<IO>>,
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let failed = |source| OpenError::Connect { address: key.address, source };
        loop {
            let entry = Rc::clone(self.0.entries.borrow_mut().entry(key.clone()).or_default());
            if choice == Choice::Any
                && let Some(slot) = entry.slot(tls)
            {
                return Ok(slot);
            }
            choice = Choice::Any;
            let under_way = entry.dial.borrow().clone();
            if let Some(under_way) = under_way {
                let outcome = under_way.outcome().await;
                if std::ptr::eq(under_way.tls.as_ptr(), Arc::as_ptr(tls)) {
                    outcome.map_err(failed)?;
                }
                continue;
            }
            let Some(dial) = dial.take() else {
                let lost = h2::Error::from(h2::Reason::REFUSED_STREAM);
                return Err(OpenError::Lost { address: key.address, source: lost });
            };
            // Large, and needed once in a tunnel's life.
            return Box::pin(self.dial(key, tls, &entry, dial())).await.map_err(failed);
        }
    }

    async fn dial<F, IO>(
        &self,
        key: &TunnelKey,
        tls: &Arc<ClientConfig>,
        entry: &Rc<Entry>,
        dial: F,
    ) -> Result<Slot, Arc<ConnectError>>
    where
        F: Future<Output = io::Result<IO>>,
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let under_way = UnderWay::announce(&self.0, key, entry, tls);
        let expect = Expected::OneOf(Arc::clone(&key.expect));
        let (shared, ended_key) = (Rc::downgrade(&self.0), key.clone());
        let ended = move || {
            if let Some(shared) = shared.upgrade() {
                shared.sweep(&ended_key);
            }
        };
        let began = Instant::now();
        let session = match client::establish(dial, tls, expect, &self.0.options, ended).await {
            Ok(session) => session,
            Err(error) => return Err(under_way.fail(error)),
        };
        catalogue::WAIT.with(["tunnel"]).record(began.elapsed());
        self.0.opened.set(self.0.opened.get() + 1);
        // Ours first: those who waited may fill it.
        let slot = session.slot().ok_or_else(|| under_way.fail(ConnectError::Protocol))?;
        // Evicted meanwhile, it is good for this stream, which was asked for before, and for no other.
        if !entry.evicted.get() {
            entry.sessions.borrow_mut().push(session);
        }
        Ok(slot)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("keys", &self.0.entries.borrow().len()).finish_non_exhaustive()
    }
}

impl Shared {
    /// Retires the tunnels of a key that were silent as long as the one that was just found dead: idle ones mostly, and
    /// to try them in turn would cost more than a new one.
    fn doubt(&self, key: &TunnelKey, silence: Duration) {
        if let Some(entry) = self.entries.borrow().get(key) {
            entry.sessions.borrow().iter().filter(|session| session.silence() >= silence).for_each(|s| s.retire());
        }
    }

    /// Forgets tunnels that are gone, and the key with the last of them.
    fn sweep(&self, key: &TunnelKey) {
        let mut entries = self.entries.borrow_mut();
        let Some(entry) = entries.get(key) else { return };
        entry.sessions.borrow_mut().retain(|session| session.is_usable());
        if entry.is_unused() {
            entries.remove(key);
        }
    }
}

impl Entry {
    /// A place in the oldest tunnel that has one, so that newer ones may fall idle.
    fn slot(&self, tls: &Arc<ClientConfig>) -> Option<Slot> {
        let mut sessions = self.sessions.borrow_mut();
        sessions.retain(|session| {
            if !session.is_of(tls) {
                session.retire();
            }
            session.is_usable()
        });
        sessions.iter().find_map(Session::slot)
    }

    fn is_unused(&self) -> bool {
        self.sessions.borrow().is_empty() && self.dial.borrow().is_none()
    }
}

impl Dial {
    /// Waits for its end. An error if it failed; otherwise look again (it may also have been given up).
    async fn outcome(&self) -> Result<(), Arc<ConnectError>> {
        while !self.over.get() {
            // Nothing runs between the question and the registration: this thread is the only one.
            self.waiting.notified().await;
        }
        self.failure.borrow().as_ref().map_or(Ok(()), |error| Err(Arc::clone(error)))
    }
}

/// Tells those who wait, in any case: also if the caller that dials is dropped half-way.
struct UnderWay<'a> {
    shared: &'a Shared,
    key: &'a TunnelKey,
    entry: &'a Entry,
    dial: Rc<Dial>,
}

impl<'a> UnderWay<'a> {
    fn announce(shared: &'a Shared, key: &'a TunnelKey, entry: &'a Entry, tls: &Arc<ClientConfig>) -> Self {
        let dial = Rc::new(Dial { tls: Arc::downgrade(tls), ..Dial::default() });
        *entry.dial.borrow_mut() = Some(Rc::clone(&dial));
        Self { shared, key, entry, dial }
    }

    fn fail(&self, error: ConnectError) -> Arc<ConnectError> {
        let error = Arc::new(error);
        *self.dial.failure.borrow_mut() = Some(Arc::clone(&error));
        error
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *self.entry.dial.borrow_mut() = None;
        self.dial.over.set(true);
        self.dial.waiting.notify_waiters();
        self.shared.sweep(self.key);
    }
}
