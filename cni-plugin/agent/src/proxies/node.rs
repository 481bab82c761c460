//! One session on `node.sock`: listeners both ways, releases out, answers in.

use std::{collections::BTreeSet, future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::timeout};
use underpass_enrolment::{
    node::{Listeners, Origin, ToAgent, ToProxy, VERSION},
    seqpacket::{Connection, Listener, RecvError, SendError},
};
use underpass_model::{AddressPair, PodUid, limits::PodLimits};
use underpass_runtime::{Shutdown, tasks};

use super::{NodeSession, Proxies, SessionId, State};

/// Who answers the proxies' question for the origin of a connection.
pub type AnswerProbe = Arc<dyn Fn(AddressPair) -> Pin<Box<dyn Future<Output = Origin> + Send>> + Send + Sync>;

/// How long a proxy may take for one packet.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a failed accept (no descriptors left), so that the loop does not spin.
const PAUSE: Duration = Duration::from_millis(200);
/// Messages that may wait for a proxy.
const OUTBOX: usize = 1024;
/// The age at which nobody waits for the answer to a question any more.
const STALE: Duration = Duration::from_millis(500);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("nothing came or went within {} s", PATIENCE.as_secs())]
    Slow,
    #[error("the first message was not hello")]
    NoHello,
    #[error(transparent)]
    Recv(#[from] RecvError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("the proxy does not keep up, so that it begins anew")]
    Behind,
    #[error("a pod's listeners cannot be passed on")]
    Sockets(#[source] std::io::Error),
}

/// How a proxy introduces itself.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    pub(super) generation: String,
    pub(super) started: Duration,
}

/// Serves until asked to stop; each proxy gets a task.
pub async fn serve(listener: Listener, proxies: Proxies, answer: AnswerProbe, shutdown: Shutdown) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.requested() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(connection) => {
                let (proxies, answer, shutdown) = (proxies.clone(), Arc::clone(&answer), shutdown.clone());
                tasks::spawn("node.sock session", async move {
                    tokio::select! {
                        () = shutdown.requested() => {}
                        ended = session(&connection, &proxies, &answer) => if let Err(error) = ended {
                            tracing::warn!(%error, "a session on node.sock ended");
                        }
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a node proxy could not be accepted on node.sock");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn session(connection: &Connection, proxies: &Proxies, answer: &AnswerProbe) -> Result<(), SessionError> {
    let (version, greeting) =
        match timeout(PATIENCE, connection.recv::<ToAgent>()).await.map_err(|_| SessionError::Slow)?? {
            Some(ToAgent::Hello { version, generation, started }) => {
                (version.min(VERSION), Greeting { generation, started })
            }
            Some(_) => return Err(SessionError::NoHello),
            None => return Ok(()),
        };
    send(connection, &ToProxy::Hello { version }).await?;
    let (tell, outbox) = mpsc::channel(OUTBOX);
    // The table holds the only sender that counts, so that taking the session out of it ends the session.
    let weak = tell.downgrade();
    let generation = greeting.generation.clone();
    let (id, pods) = proxies.open_node(greeting, tell);
    let opened = Opened { proxies, id };
    tracing::info!(session = id, generation, version, "a node proxy is connected on node.sock");
    // Both ways at once: a proxy that is slow to read is heard all the same.
    tokio::select! {
        sent = opened.send_all(connection, pods, outbox) => sent,
        received = opened.receive_all(connection, &weak, answer) => received,
    }
}

async fn send(connection: &Connection, message: &ToProxy) -> Result<(), SessionError> {
    Ok(timeout(PATIENCE, connection.send(message)).await.map_err(|_| SessionError::Slow)??)
}

/// Ends the session's entry also when its task is dropped.
struct Opened<'a> {
    proxies: &'a Proxies,
    id: SessionId,
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.proxies.close_node(self.id);
    }
}

impl Opened<'_> {
    async fn send_all(
        &self,
        connection: &Connection,
        pods: BTreeSet<PodUid>,
        mut outbox: mpsc::Receiver<ToProxy>,
    ) -> Result<(), SessionError> {
        for pod in &pods {
            if let Some(listeners) = self.proxies.listeners_of(pod).map_err(SessionError::Sockets)? {
                send(connection, &ToProxy::Listeners(listeners)).await?;
            }
        }
        send(connection, &ToProxy::ListenersSent).await?;
        for pod in pods {
            if let Some(limits) = self.proxies.limits_of(&pod) {
                send(connection, &ToProxy::Limits { pod, limits }).await?;
            }
        }
        while let Some(message) = outbox.recv().await {
            send(connection, &message).await?;
        }
        Err(SessionError::Behind)
    }

    async fn receive_all(
        &self,
        connection: &Connection,
        tell: &mpsc::WeakSender<ToProxy>,
        answer: &AnswerProbe,
    ) -> Result<(), SessionError> {
        loop {
            match connection.recv::<ToAgent>().await {
                Ok(Some(message)) => self.take(message, tell, answer),
                Ok(None) => return Ok(()),
                Err(RecvError::Decode(error)) => {
                    tracing::warn!(session = self.id, %error, "a message is not understood");
                }
                Err(error @ RecvError::Io { .. }) => return Err(error.into()),
            }
        }
    }

    fn take(&self, message: ToAgent, tell: &mpsc::WeakSender<ToProxy>, answer: &AnswerProbe) {
        match message {
            ToAgent::Hello { .. } => tracing::warn!(session = self.id, "a node proxy greeted twice"),
            ToAgent::Listeners(listeners) => self.proxies.keep(self.id, listeners),
            ToAgent::Serving => self.proxies.serving(self.id),
            ToAgent::Ready { pod, outcome } => self.proxies.ready(self.id, &pod, outcome),
            ToAgent::Holds { pod } => self.proxies.holds(self.id, &pod),
            ToAgent::Live { pod, connections } => self.proxies.note(&pod, |served| {
                served.live.insert(self.id, connections);
            }),
            ToAgent::Released { pod } => self.proxies.note(&pod, |served| {
                served.released.insert(self.id);
            }),
            ToAgent::Probe { id, pod: _, connection } => {
                let (tell, origin) = (tell.clone(), answer(connection));
                tasks::spawn("probe", async move {
                    // The proxy has given an older question up by itself; so it has if its outbox is full.
                    let Ok(origin) = timeout(STALE, origin).await else { return };
                    let _lost = tell.upgrade().map(|tell| tell.try_send(ToProxy::ProbeAnswer { id, origin }));
                });
            }
        }
    }
}

impl Proxies {
    pub(super) fn open_node(&self, greeting: Greeting, tell: mpsc::Sender<ToProxy>) -> (SessionId, BTreeSet<PodUid>) {
        let mut state = self.lock();
        let id = state.next_session();
        for (uid, _) in state.served.iter().filter(|(_, served)| served.terminating) {
            // Should there be no room for it, the pod's deletion tells soon enough.
            let _full = tell.try_send(ToProxy::Terminating { pod: uid.clone() });
        }
        let Greeting { generation, started } = greeting;
        state.node.push(NodeSession { id, generation, started, serving: false, successor: None, tell });
        state.tell_successors();
        let pods = state.served.keys().cloned().collect();
        drop(state);
        self.notify();
        (id, pods)
    }

    pub(super) fn close_node(&self, id: SessionId) {
        let mut state = self.lock();
        state.node.retain(|session| session.id != id);
        state.tell_successors();
        for served in state.served.values_mut() {
            served.live.remove(&id);
            served.ready.take_if(|(session, _)| *session == id);
            served.released.remove(&id);
        }
        drop(state);
        self.notify();
    }

    fn listeners_of(&self, pod: &PodUid) -> std::io::Result<Option<Listeners>> {
        let state = self.lock();
        let served = state.served.get(pod).filter(|served| !served.listeners.is_empty());
        served.map(|served| Ok(Listeners { pod: pod.clone(), sockets: served.duplicates()? })).transpose()
    }

    /// What a pod asks to be held to, be it nothing: an earlier agent may have told of more.
    fn limits_of(&self, pod: &PodUid) -> Option<PodLimits> {
        let state = self.lock();
        Some(state.served.get(pod)?.limits.clone())
    }

    /// Only for pods that are served: a listener keeps its network namespace alive. Younger proxies, whose greeting was
    /// before, are given them too; to make their own they would find the ports taken.
    pub(super) fn keep(&self, from: SessionId, listeners: Listeners) {
        let pod = listeners.pod;
        let sockets = listeners.sockets.into_iter().map(|listening| (listening.port, listening.socket)).collect();
        let mut state = self.lock();
        let State { node, served, .. } = &mut *state;
        let Some(served) = served.get_mut(&pod) else { return };
        served.listeners = sockets;
        let Some(makers) = node.iter().find(|session| session.id == from).map(|session| session.started) else {
            return;
        };
        node.retain(|session| {
            let give = || {
                let listeners = Listeners { pod: pod.clone(), sockets: served.duplicates().ok()? };
                session.tell.try_send(ToProxy::Listeners(listeners)).ok()
            };
            // One that cannot be told begins anew, with a greeting that names these, too.
            session.started <= makers || give().is_some()
        });
    }

    /// A pod's certificate is there or not. Of two proxies the younger one's word counts, which will serve when the older
    /// has gone.
    pub(super) fn ready(&self, from: SessionId, pod: &PodUid, outcome: Result<(), String>) {
        let mut state = self.lock();
        let State { node, served, .. } = &mut *state;
        let started = |id| node.iter().find(|session| session.id == id).map(|session| session.started);
        if let Some(served) = served.get_mut(pod)
            && served.ready.as_ref().is_none_or(|(before, _)| started(*before) <= started(from))
        {
            served.ready = Some((from, outcome));
        }
        drop(state);
        self.notify();
    }

    pub(super) fn note(&self, pod: &PodUid, note: impl FnOnce(&mut super::Served)) {
        if let Some(served) = self.lock().served.get_mut(pod) {
            note(served);
        }
        self.notify();
    }
}
