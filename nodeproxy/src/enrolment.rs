//! The node agent's hand-over of pods: ZDS says which to serve, `node.sock` carries listeners, releases and questions.
//!
//! A lost agent changes nothing for the pods that are served; both sockets are dialled again until it is back.
//!
//! Of several runs of the proxy the youngest that serves is given pods. Those before it keep `node.sock` alone, to hear of
//! the ends of pods whose connections they still carry, and of the end of their successor.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};
use underpass_discovery::Mesh;
use underpass_enrolment::{
    message::Message,
    node::{self, ListeningSocket, ReleaseReason, ToAgent, ToProxy},
    seqpacket::{ConnectError, Connection, RecvError, SendError},
    zds::{self, WorkloadInfo},
};
use underpass_identity::store::CertificateStore;
use underpass_model::PodUid;
use underpass_runtime::{Backoff, Chain, Shutdown, admin::Pending, metrics::catalogue, tasks};

use crate::{
    capture::Listeners,
    generation::Generation,
    pods::{NewPod, Pod, Pods},
    probe::{Probes, Question},
    worker::Workers,
};

/// How long the first certificate of a pod may take before the agent is told why it is not there.
const CERTIFICATE_DEADLINE: Duration = Duration::from_secs(8);
/// Messages to the agent that may wait for the socket.
const OUTBOX: usize = 1024;
/// How long the doors of a pod whose listeners were taken over may stay closed until the mesh is known and the pod's
/// certificate is there: meanwhile its connections wait in their queues, or for an older proxy.
const OPENING_DEADLINE: Duration = Duration::from_secs(5);
/// How long a proxy that stood back waits for word of a successor before it serves again: the successor may only have to
/// connect anew, as this one did.
const ALONE_AFTER: Duration = Duration::from_secs(1);

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
    /// Pods named so far; `None` once the snapshot is complete.
    named: Option<HashSet<PodUid>>,
    ready: &'a mut Option<Pending>,
    /// Pods under release of whose connections the agent is told.
    told: HashSet<PodUid>,
    /// Held by every pod of the snapshot whose doors are still to be opened, and until the snapshot is complete.
    opening: Option<mpsc::Sender<Infallible>>,
    /// Whether all of them are open.
    serves: bool,
    /// Questions that wait for their answers, by number.
    asked: HashMap<u64, Question>,
    /// Since when nobody is known to serve instead, though somebody did.
    alone: Option<Instant>,
}

impl Enrolment {
    /// Runs until asked to stop. `ready` is kept until the first snapshot is complete.
    pub(crate) async fn run(self, mut questions: mpsc::Receiver<Question>, ready: Pending, shutdown: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(5));
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
            named: Some(HashSet::new()),
            ready,
            told: HashSet::new(),
            opening: Some(opening),
            serves: false,
            asked: HashMap::new(),
            alone: succeeded.then(Instant::now),
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
                None = opened.recv(), if !session.serves => session.serving(),
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
                ToProxy::ProbeAnswer { .. }
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

impl Session<'_> {
    /// What the agent says on `node.sock`.
    fn hear(&mut self, message: ToProxy) {
        match message {
            ToProxy::Release { pod, reason, deadline } => self.release(pod, reason, deadline),
            ToProxy::ProbeAnswer { id, origin } => {
                if let Some(question) = self.asked.remove(&id) {
                    Question::answer(question, origin);
                }
            }
            ToProxy::Listeners(listeners) => self.keep(listeners),
            ToProxy::Terminating { pod } => self.bid_farewell(&pod),
            ToProxy::Successor(Some(generation)) => self.succeed(generation),
            ToProxy::Successor(None) => self.alone = Some(Instant::now()),
            ToProxy::Hello { .. } | ToProxy::ListenersSent => {
                tracing::warn!("the node agent sent a greeting twice");
            }
        }
    }

    async fn answer(&mut self, request: zds::Request) -> Result<zds::Ack, SessionError> {
        Ok(match request {
            zds::Request::Add { uid, info, netns } => {
                self.name(&uid);
                if self.enrolment.pods.are_closed() {
                    return Ok(zds::Ack::failed("this proxy is draining"));
                }
                self.add(uid, info, netns).await?
            }
            zds::Request::Keep { uid } => {
                self.name(&uid);
                match self.enrolment.pods.get(&uid) {
                    Some(_) => zds::Ack::done(),
                    None => zds::Ack::failed("this proxy does not serve the pod it shall keep"),
                }
            }
            zds::Request::Del { uid } => {
                self.remove(&uid);
                zds::Ack::done()
            }
            zds::Request::SnapshotSent => {
                if let Some(named) = self.named.take() {
                    let all = self.enrolment.pods.all();
                    all.keys().filter(|uid| !named.contains(*uid)).for_each(|uid| self.remove(uid));
                    self.kept.clear();
                }
                drop(self.opening.take());
                zds::Ack::done()
            }
        })
    }

    async fn add(&mut self, uid: PodUid, info: WorkloadInfo, netns: OwnedFd) -> Result<zds::Ack, SessionError> {
        // Each new session names the pods anew that this proxy serves already.
        let handed_over = self.enrolment.pods.get(&uid).is_none().then(Instant::now);
        let pods = &self.enrolment.pods;
        let pod = match pods.get(&uid) {
            Some(known) if known.is_in(netns.as_fd()) => known,
            known => {
                if known.is_some() {
                    // A new sandbox of the same pod: nothing of the old one may be used again, tunnels least of all.
                    self.remove(&uid);
                }
                let listeners = self.kept.remove(&uid);
                let made = listeners.is_none();
                match pods.add(NewPod { uid: uid.clone(), info, netns, listeners }) {
                    Ok(pod) if made => {
                        send(self.node.as_deref(), &listeners_of(&pod)?).await?;
                        if let Err(error) = pods.open(&pod) {
                            self.remove(&uid);
                            return Ok(unserved(&uid, &error));
                        }
                        pod
                    }
                    Ok(pod) => {
                        self.open_when_able(&pod);
                        pod
                    }
                    Err(error) => return Ok(unserved(&uid, &error)),
                }
            }
        };
        self.tell_when_ready(&pod, handed_over);
        Ok(zds::Ack::done())
    }

    /// Opens the doors of a pod whose listeners were taken over as soon as its connections could be carried.
    fn open_when_able(&self, pod: &Arc<Pod>) {
        let (mesh, certificates) = (self.enrolment.mesh.clone(), self.enrolment.certificates.clone());
        let (pod, pods, opening) = (Arc::clone(pod), Arc::clone(&self.enrolment.pods), self.opening.clone());
        tasks::spawn("doors", async move {
            let able = async {
                tokio::join!(mesh.wait_complete(OPENING_DEADLINE), certificates.wait(&pod.identity, OPENING_DEADLINE))
            };
            tokio::select! {
                _able_or_late = able => {}
                () = pod.connections.ended() => return,
            }
            if let Err(error) = pods.open(&pod) {
                tracing::error!(pod.uid = %pod.uid, %error, "a pod's doors cannot be opened");
            }
            drop(opening);
        });
    }

    /// Every pod of the snapshot is served.
    fn serving(&mut self) {
        self.serves = true;
        drop(self.ready.take());
        self.tell(ToAgent::Serving);
    }

    /// Another proxy serves. This one goes on with the connections that it has.
    fn succeed(&mut self, generation: String) {
        self.enrolment.generation.succeed(Some(generation));
        self.alone = None;
        self.zds = None;
        self.kept.clear();
    }

    /// Listeners of a pod that an older proxy made after this one's greeting.
    fn keep(&mut self, listeners: node::Listeners) {
        if !self.enrolment.generation.is_succeeded() && self.enrolment.pods.get(&listeners.pod).is_none() {
            keep(&mut self.kept, listeners);
        }
    }

    fn bid_farewell(&self, uid: &PodUid) {
        if let Some(pod) = self.enrolment.pods.get(uid) {
            tracing::info!(pod.uid = %uid, "a pod begins to end; its peers are asked to look for others");
            pod.connections.bid_farewell();
        }
    }

    fn name(&mut self, uid: &PodUid) {
        if let Some(named) = &mut self.named {
            named.insert(uid.clone());
        }
    }

    fn remove(&self, uid: &PodUid) {
        if self.enrolment.pods.remove(uid).is_some() {
            self.enrolment.workers.forget(uid);
        }
    }

    /// Tells the agent when the pod's certificate is there, or why it is not yet. Holds nothing that would keep the pod.
    fn tell_when_ready(&self, pod: &Pod, handed_over: Option<Instant>) {
        let (certificates, outbox) = (self.enrolment.certificates.clone(), self.outbox.clone());
        let (uid, identity, connections) = (pod.uid.clone(), pod.identity.clone(), pod.connections.clone());
        tasks::spawn("ready", async move {
            loop {
                let outcome = tokio::select! {
                    outcome = certificates.wait(&identity, CERTIFICATE_DEADLINE) => outcome,
                    () = connections.ended() => return,
                };
                let there = outcome.is_ok();
                let outcome = outcome.map(drop).map_err(|error| Chain(&error).to_string());
                if let (true, Some(began)) = (there, handed_over) {
                    catalogue::ENROLMENT.with([]).record(began.elapsed());
                }
                let told = outbox.send(ToAgent::Ready { pod: uid.clone(), outcome }).await;
                if there || told.is_err() {
                    return;
                }
            }
        });
    }

    fn release(&mut self, uid: PodUid, reason: ReleaseReason, deadline: Duration) {
        if reason == ReleaseReason::Deleted {
            self.kept.remove(&uid);
        }
        let Some(pod) = self.enrolment.pods.get(&uid) else {
            // Removed already, or never served: the agent need not wait.
            let message = match reason {
                ReleaseReason::Deleted => ToAgent::Released { pod: uid },
                ReleaseReason::Unenrolled => ToAgent::Live { pod: uid, connections: 0 },
            };
            self.tell(message);
            return;
        };
        let outbox = self.outbox.clone();
        match reason {
            ReleaseReason::Deleted => {
                self.enrolment.workers.forget(&uid);
                // With a successor, nothing comes on ZDS.
                let table = self.enrolment.generation.is_succeeded().then(|| Arc::clone(&self.enrolment.pods));
                tasks::spawn("release", async move {
                    if !pod.connections.settle(deadline).await {
                        tracing::warn!(pod.uid = %uid, "some connections of a deleted pod were still open at its deadline");
                    }
                    if let Some(table) = table {
                        table.remove(&uid);
                    }
                    drop(outbox.send(ToAgent::Released { pod: uid }).await);
                });
            }
            ReleaseReason::Unenrolled => {
                // One teller a pod, however often the agent asks.
                if self.told.insert(uid.clone()) {
                    tasks::spawn("release", tell_live(pod, outbox));
                } else {
                    self.tell(ToAgent::Live { pod: uid, connections: remaining(&pod) });
                }
            }
        }
    }

    fn tell(&self, message: ToAgent) {
        if self.outbox.try_send(message).is_err() {
            tracing::warn!("too many messages wait for the node agent; one was dropped");
        }
    }
}

/// Tells the agent of every change of a pod's connections, until the pod is removed.
async fn tell_live(pod: Arc<Pod>, outbox: mpsc::Sender<ToAgent>) {
    const RECHECK: Duration = Duration::from_millis(20);
    let mut live = pod.connections.follow();
    loop {
        live.mark_unchanged();
        let connections = remaining(&pod);
        if outbox.send(ToAgent::Live { pod: pod.uid.clone(), connections }).await.is_err() {
            return;
        }
        tokio::select! {
            changed = live.changed() => if changed.is_err() { return },
            () = pod.connections.ended() => return,
            // Somebody waits in a queue, of which no worker has told yet.
            () = tokio::time::sleep(RECHECK), if connections > 0 && pod.connections.live() == 0 => {}
        }
    }
}

/// How many captured connections a pod has, with those that nobody has accepted yet.
fn remaining(pod: &Pod) -> u64 {
    let live = pod.connections.live();
    if live == 0 && pod.listeners.have_waiting() { 1 } else { live }
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
        Some(since) => tokio::time::sleep_until(since + ALONE_AFTER).await,
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

fn unserved(uid: &PodUid, error: &(impl std::error::Error + 'static)) -> zds::Ack {
    tracing::warn!(pod.uid = %uid, error = %Chain(error), "a pod cannot be served");
    zds::Ack::failed(&Chain(error).to_string())
}

fn listeners_of(pod: &Pod) -> Result<ToAgent, SessionError> {
    let duplicate = |(port, socket): (u16, std::os::fd::BorrowedFd<'_>)| {
        Ok(ListeningSocket { port, socket: socket.try_clone_to_owned()? })
    };
    let sockets = pod.listeners.descriptors().into_iter().map(duplicate).collect::<std::io::Result<_>>();
    let sockets = sockets.map_err(|source| SendError::Io { message: "listeners", source })?;
    Ok(ToAgent::Listeners(node::Listeners { pod: pod.uid.clone(), sockets }))
}
