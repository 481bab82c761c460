//! A near end (a pool) and a far end (servers made by each dial), joined in memory.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    rc::Rc,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    sync::{Notify, mpsc},
    task::LocalSet,
};
use underpass_hbone::{
    Baggage, ConnectHeaders, ConnectRequest, Incoming, OpenError, Pool, PoolOptions, ServerOptions, ShutdownHandle,
    Tunnel, TunnelKey, TunnelStream, server,
};
use underpass_identity::{Credentials, Expected, testing::TestAuthority};
use underpass_model::{Identity, PodUid, TrustDomain, WorkloadUid};

pub(crate) const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub(crate) const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/db";

/// Credentials of both ends, made once: keys take their time.
pub(crate) struct Certificates {
    pub(crate) client: Arc<Credentials>,
    pub(crate) server: Arc<Credentials>,
    /// Who issued them.
    pub(crate) authority: TestAuthority,
}

pub(crate) fn certificates() -> &'static Certificates {
    static MADE: OnceLock<Certificates> = OnceLock::new();
    MADE.get_or_init(|| {
        let authority = TestAuthority::new();
        let (client, server) = (authority.credentials(&id(CLIENT)), authority.credentials(&id(SERVER)));
        Certificates { client, server, authority }
    })
}

pub(crate) fn id(text: &str) -> Identity {
    text.parse().unwrap()
}

/// Runs a test on a local set, as a worker does.
pub(crate) async fn on_worker<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

pub(crate) fn key() -> TunnelKey {
    TunnelKey {
        pod: PodUid::new("pod-1"),
        own: id(CLIENT),
        destination: WorkloadUid::of_pod("Kubernetes", "shop", "db-0"),
        address: "10.0.0.9:15008".parse().unwrap(),
        expect: Arc::from([id(SERVER)]),
    }
}

pub(crate) fn request() -> ConnectRequest {
    ConnectRequest { authority: "10.0.0.9:5432".parse().unwrap(), headers: ConnectHeaders::default() }
}

/// Options whose limits a test wants to change.
pub(crate) fn server_options() -> ServerOptions {
    ServerOptions::default()
}

/// What a cable does with bytes.
#[derive(Clone, Default)]
pub(crate) struct Cable {
    cut: Rc<Cell<bool>>,
    changed: Rc<Notify>,
}

impl Cable {
    /// From now on bytes vanish in both directions, and nobody is told.
    pub(crate) fn cut(&self) {
        self.cut.set(true);
        self.changed.notify_waiters();
    }

    fn join(&self, near: DuplexStream, far: DuplexStream) {
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        tokio::task::spawn_local(self.clone().carry(near_read, far_write));
        tokio::task::spawn_local(self.clone().carry(far_read, near_write));
    }

    async fn carry(self, mut from: impl tokio::io::AsyncRead + Unpin, mut to: impl tokio::io::AsyncWrite + Unpin) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut buffer).await.unwrap_or(0);
            if self.cut.get() {
                std::future::pending::<()>().await;
            }
            if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
                let _closed = to.shutdown().await;
                return;
            }
        }
    }
}

/// The far end: a server for each dial.
#[derive(Clone)]
pub(crate) struct Far {
    pub(crate) dials: Rc<Cell<usize>>,
    /// Tunnels that have ended.
    pub(crate) ended: Rc<Cell<usize>>,
    pub(crate) handles: Rc<RefCell<Vec<ShutdownHandle>>>,
    pub(crate) cable: Cable,
    options: ServerOptions,
    incoming: mpsc::Sender<Incoming>,
}

impl Far {
    pub(crate) fn dial(&self) -> impl Future<Output = io::Result<DuplexStream>> + use<> {
        let far = self.clone();
        async move {
            far.dials.set(far.dials.get() + 1);
            let (near, between_near) = duplex(256 * 1024);
            let (between_far, far_end) = duplex(256 * 1024);
            far.cable.join(between_near, between_far);
            tokio::task::spawn_local(far.serve(far_end));
            Ok(near)
        }
    }

    async fn serve(self, io: DuplexStream) {
        let expect = Expected::TrustDomain(TrustDomain::default());
        let accepted = server::accept(io, &certificates().server.server, &expect, &self.options).await;
        if let Ok(mut connection) = accepted {
            self.handles.borrow_mut().push(connection.shutdown_handle());
            assert_eq!(connection.peer(), &id(CLIENT));
            while let Some(incoming) = connection.next().await {
                self.incoming.send(incoming).await.unwrap();
            }
        }
        self.ended.set(self.ended.get() + 1);
    }
}

/// Both ends.
pub(crate) struct Pair {
    pub(crate) pool: Pool,
    pub(crate) far: Far,
    pub(crate) incoming: mpsc::Receiver<Incoming>,
}

impl Pair {
    pub(crate) fn new() -> Self {
        Self::with(PoolOptions::default(), server_options())
    }

    pub(crate) fn with(pool: PoolOptions, options: ServerOptions) -> Self {
        let (sender, incoming) = mpsc::channel(4096);
        let far = Far {
            dials: Rc::default(),
            ended: Rc::default(),
            handles: Rc::default(),
            cable: Cable::default(),
            options,
            incoming: sender,
        };
        Self { pool: Pool::new(pool), far, incoming }
    }

    /// Asks for a stream; somebody must answer.
    pub(crate) fn open(&self) -> impl Future<Output = Result<Tunnel, OpenError>> + use<> {
        let (pool, far) = (self.pool.clone(), self.far.clone());
        async move { pool.open(&key(), &request(), &certificates().client.client, || far.dial()).await }
    }

    /// What leads to the far end through other wires than before.
    pub(crate) fn rewire(&mut self) {
        self.far.cable = Cable::default();
    }

    /// Both ends of a new stream.
    pub(crate) async fn connected(&mut self) -> (Tunnel, TunnelStream) {
        let opening = self.open();
        let accepting = async { self.incoming.recv().await.unwrap().accept(&Baggage::default()).unwrap() };
        let (near, far) = tokio::join!(opening, accepting);
        (near.unwrap(), far)
    }

    /// Accepts whatever comes and sends back what it says, for the rest of the test.
    pub(crate) fn echo(&mut self) {
        let (_, nobody) = mpsc::channel(1);
        let mut incoming = std::mem::replace(&mut self.incoming, nobody);
        tokio::task::spawn_local(async move {
            while let Some(incoming) = incoming.recv().await {
                let Ok(stream) = incoming.accept(&Baggage::default()) else { continue };
                tokio::task::spawn_local(async move {
                    let (mut read, mut write) = tokio::io::split(stream);
                    let _ended = tokio::io::copy(&mut read, &mut write).await;
                    let _ended = write.shutdown().await;
                });
            }
        });
    }
}

/// Sends a word and takes it back from an echo.
pub(crate) async fn ask(stream: &mut TunnelStream) {
    stream.write_all(b"word").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"word");
}

/// Lets every task do what it can at this instant.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
