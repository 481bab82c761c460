//! The node agent's hand-over of pods: ZDS says which to serve, `node.sock` carries listeners, releases and questions.
//!
//! A lost agent changes nothing for the pods that are served; both sockets are dialled again until it is back.
//!
//! Of several runs of the proxy the youngest that serves is given pods. Those before it keep `node.sock` alone, to hear of
//! the ends of pods whose connections they still carry, and of the end of their successor.

mod session;

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};
use underpass_discovery::Mesh;
use underpass_enrolment::{
    message::Message,
    node::{self, ListeningSocket, ToAgent, ToProxy},
    seqpacket::{ConnectError, Connection, RecvError, SendError},
    zds,
};
use underpass_identity::store::CertificateStore;
use underpass_model::{PodUid, limits::PodLimits};
use underpass_runtime::{Backoff, Chain, Shutdown, admin::Pending};

use crate::{
    capture::Listeners,
    generation::Generation,
    pods::{Pod, Pods},
    probe::{Probes, Question},
    worker::Workers,
};

/// Messages to the agent that may wait for the socket.
const OUTBOX: usize = 1024;
/// How long a proxy that stood back waits for word of a successor before it serves again: the successor may only have to
/// connect anew, as this one did.
const ALONE_AFTER: Duration = Duration::from_secs(1);
/// The longest pause between two attempts to reach the agent.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What this part works on.
pub(crate) struct Enrolment {
    pub(crate) zds_socket: PathBuf,
    pub(crate) node_socket: Option<PathBuf>,
    pub(crate) generation: Generation,
    pub(crate) pods: Arc<Pods>,
    pub(crate) mesh: Mesh,
    pub(crate) certificates: CertificateStore,
    pub(crate) workers: Workers,
    pub(crate) probes: Probes,
}

/// Why a session with the agent ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the agent closed {0}")]
    Closed(&'static str),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the agent wants to speak version {0} of node.sock, this proxy speaks 1 to {version}", version = node::VERSION)]
    NodeVersion(u32),
    #[error(transparent)]
    Recv(#[from] RecvError),
    #[error(transparent)]
    Send(#[from] SendError),
}

/// One session: both sockets, and what is known only while they are open.
struct Session<'a> {
    enrolment: &'a Enrolment,
    /// None once another proxy serves.
    zds: Option<Connection>,
    node: Option<Arc<Connection>>,
    outbox: mpsc::Sender<ToAgent>,
    kept: HashMap<PodUid, Listeners>,
    /// What pods ask to be held to, also those that are not here yet.
    limits: HashMap<PodUid, PodLimits>,
    /// Pods named so far; `None` once the snapshot is complete.
    named: Option<HashSet<PodUid>>,
    ready: &'a mut Option<Pending>,
    /// Pods under release of whose connections the agent is told, by number: a uid may be enrolled and released again.
    told: HashSet<u64>,
    /// Held by every pod of the snapshot whose doors are still to be opened, and until the snapshot is complete.
    opening: Option<mpsc::Sender<Infallible>>,
    /// Whether all of them are open.
    serves: bool,
    /// Questions that wait for their answers, by number.
    asked: HashMap<u64, Question>,
    /// When it is sure that nobody serves instead, though somebody did.
    alone: Option<Instant>,
}

impl Enrolment {
    /// Runs until asked to stop. `ready` is kept until the first snapshot is complete.
    pub(crate) async fn run(self, mut questions: mpsc::Receiver<Question>, ready: Pending, shutdown: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_millis(10), LONGEST_PAUSE);
        let mut ready = Some(ready);
        loop {
            let ended = tokio::select! {
                () = shutdown.requested() => return,
                ended = self.serve(&mut questions, &mut ready, &mut backoff) => ended,
            };
            self.probes.disconnected();
            // Whoever asked while the agent went away shall not wait.
            while questions.try_recv().is_ok() {}
            let delay = backoff.delay();
            if let Err(error) = ended {
                tracing::warn!(error = %Chain(&error), retry_in_ms = delay.as_millis(), "no session with the node agent");
            } else {
                continue;
            }
            tokio::select! {
                () = shutdown.requested() => return,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    async fn serve(
        &self,
        questions: &mut mpsc::Receiver<Question>,
        ready: &mut Option<Pending>,
        backoff: &mut Backoff,
    ) -> Result<(), SessionError> {
        let (outbox, mut to_agent) = mpsc::channel(OUTBOX);
        let succeeded = self.generation.is_succeeded();
        let (node, kept) = match &self.node_socket {
            Some(path) => {
                let (connection, kept) = self.greet(path).await?;
                (Some(Arc::new(connection)), kept)
            }
            None => (None, HashMap::new()),
        };
        let mut zds = None;
        if !succeeded {
            let connection = Connection::connect(&self.zds_socket)?;
            connection.send(&zds::Hello).await?;
            zds = Some(connection);
        }
        backoff.reset();
        tracing::info!(kept = kept.len(), succeeded, "in session with the node agent");
        if node.is_some() {
            self.probes.connected();
        }
        let (opening, mut opened) = mpsc::channel(1);
        let mut session = Session {
            enrolment: self,
            zds,
            node: node.clone(),
            outbox,
            kept,
            limits: HashMap::new(),
            named: Some(HashSet::new()),
            ready,
            told: HashSet::new(),
            opening: Some(opening),
            serves: false,
            asked: HashMap::new(),
            // The agent may have been away for both, and the successor comes back later.
            alone: succeeded.then(|| Instant::now() + LONGEST_PAUSE + ALONE_AFTER),
        };
        let mut next_question = 0u64;
        loop {
            tokio::select! {
                request = receive::<zds::Request>(session.zds.as_ref()) => {
                    let ack = match request {
                        Ok(Some(request)) => session.answer(request).await?,
                        Ok(None) => return Err(SessionError::Closed("the ZDS socket")),
                        // One pod that cannot be read must not keep the others from being served.
                        Err(RecvError::Decode(error)) => {
                            tracing::warn!(%error, "a request of the node agent makes no sense");
                            zds::Ack::failed(&error.to_string())
                        }
                        Err(error) => return Err(error.into()),
                    };
                    send(session.zds.as_ref(), &ack).await?;
                }
                message = receive(node.as_deref()) => {
                    session.hear(message?.ok_or(SessionError::Closed("node.sock"))?);
                }
                None = opened.recv(), if !session.serves => session.serving().await?,
                () = expired(session.alone), if session.alone.is_some() => {
                    // From the greeting on, as this proxy must hear of what its successor was given.
                    self.generation.succeed(None);
                    return Ok(());
                }
                Some(message) = to_agent.recv() => send(node.as_deref(), &message).await?,
                Some(question) = questions.recv() => {
                    next_question += 1;
                    // Answers that never came: their askers are long gone.
                    session.asked.retain(|_, question| !question.is_abandoned());
                    send(node.as_deref(), &question.message(next_question)).await?;
                    session.asked.insert(next_question, question);
                }
            }
        }
    }

    /// Exchanges greetings on `node.sock` and takes the listeners that an earlier proxy made.
    async fn greet(&self, path: &std::path::Path) -> Result<(Connection, HashMap<PodUid, Listeners>), SessionError> {
        let connection = Connection::connect(path)?;
        let generation = self.generation.name().to_owned();
        let hello = ToAgent::Hello { version: node::VERSION, generation, started: self.generation.started() };
        connection.send(&hello).await?;
        let mut kept = HashMap::new();
        loop {
            match connection.recv::<ToProxy>().await?.ok_or(SessionError::Closed("node.sock"))? {
                ToProxy::Hello { version: 1..=node::VERSION } => {}
                ToProxy::Hello { version } => return Err(SessionError::NodeVersion(version)),
                ToProxy::Listeners(listeners) => keep(&mut kept, listeners),
                ToProxy::ListenersSent => break,
                ToProxy::Limits { .. }
                | ToProxy::ProbeAnswer { .. }
                | ToProxy::Release { .. }
                | ToProxy::Successor(_)
                | ToProxy::Terminating { .. } => {
                    tracing::warn!("the node agent spoke before it had greeted");
                }
            }
        }
        if self.generation.is_succeeded() {
            // They are its successor's, and would keep a pod's namespace alive.
            return Ok((connection, HashMap::new()));
        }
        for (uid, pod) in self.pods.all().iter() {
            if !kept.contains_key(uid) {
                send(Some(&connection), &listeners_of(pod)?).await?;
            }
        }
        Ok((connection, kept))
    }
}

/// Never completes where there is no such socket.
async fn receive<M: Message>(socket: Option<&Connection>) -> Result<Option<M>, RecvError> {
    match socket {
        Some(socket) => socket.recv().await,
        None => std::future::pending().await,
    }
}

async fn send(socket: Option<&Connection>, message: &impl Message) -> Result<(), SendError> {
    match socket {
        Some(socket) => socket.send(message).await,
        None => Ok(()),
    }
}

/// Completes when a proxy has been alone for long enough to be sure.
async fn expired(alone: Option<Instant>) {
    match alone {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn keep(kept: &mut HashMap<PodUid, Listeners>, listeners: node::Listeners) {
    let sockets = listeners.sockets.into_iter().map(|socket| (socket.port, socket.socket)).collect();
    match Listeners::adopt(sockets) {
        Some(adopted) => drop(kept.insert(listeners.pod, adopted)),
        None => tracing::warn!(pod.uid = %listeners.pod, "kept listeners are incomplete"),
    }
}

fn listeners_of(pod: &Pod) -> Result<ToAgent, SessionError> {
    let duplicate = |(port, socket): (u16, std::os::fd::BorrowedFd<'_>)| {
        Ok(ListeningSocket { port, socket: socket.try_clone_to_owned()? })
    };
    let sockets = pod.listeners.descriptors().into_iter().map(duplicate).collect::<std::io::Result<_>>();
    let sockets = sockets.map_err(|source| SendError::Io { message: "listeners", source })?;
    Ok(ToAgent::Listeners(node::Listeners { pod: pod.uid.clone(), sockets }))
}
