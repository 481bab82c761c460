//! The node proxies that are connected, what they were asked to serve, and what they said about it.
//!
//! Normally one; two during an upgrade. The newest is asked to serve pods, all are asked to stop. Everything stands
//! under one lock that is never held across an await; whoever waits for an answer looks again at every change.

mod node;
mod zds;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};
use underpass_enrolment::{
    node::{ListeningSocket, ReleaseReason, ToProxy},
    zds::WorkloadInfo,
};
use underpass_model::PodUid;

use crate::find::Netns;
pub use node::{AnswerProbe, serve as serve_node};
pub use zds::serve as serve_zds;

/// All of them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Proxies {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    last_session: SessionId,
    /// Oldest first.
    zds: Vec<ZdsSession>,
    node: Vec<NodeSession>,
    served: BTreeMap<PodUid, Served>,
}

type SessionId = u64;

#[derive(Debug)]
struct ZdsSession {
    id: SessionId,
    asks: mpsc::Sender<Ask>,
}

#[derive(Debug)]
struct NodeSession {
    id: SessionId,
    tell: mpsc::Sender<ToProxy>,
}

/// What a ZDS session is asked to pass on; details are looked up when its turn comes.
#[derive(Debug)]
enum Ask {
    Add(PodUid),
    Del(PodUid, oneshot::Sender<()>),
}

/// One pod that proxies serve, or shall.
#[derive(Debug)]
struct Served {
    info: WorkloadInfo,
    netns: Option<Arc<Netns>>,
    listeners: Vec<(u16, OwnedFd)>,
    accepted: Option<(SessionId, Result<(), String>)>,
    ready: Option<Result<(), String>>,
    live: BTreeMap<SessionId, u64>,
    released: BTreeSet<SessionId>,
}

/// Requests that may wait for a proxy; each is a pod's name.
const QUEUE: usize = 4096;

impl Default for Proxies {
    fn default() -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new(()) }
    }
}

impl Proxies {
    /// Asks the newest proxy to serve a pod, now or when one connects. Asking again is harmless; with another
    /// namespace it is another pod to the proxy.
    pub fn serve_pod(&self, uid: &PodUid, info: WorkloadInfo, netns: Option<Arc<Netns>>) {
        let mut state = self.lock();
        let id = |netns: &Option<Arc<Netns>>| netns.as_ref().map(|netns| netns.id);
        match state.served.get_mut(uid) {
            // Without a namespace it was only kept; now it is found again.
            Some(served) if served.netns.is_none() || id(&served.netns) == id(&netns) => {
                served.accepted = None;
                served.netns = netns;
            }
            Some(_) | None => drop(state.served.insert(uid.clone(), Served::new(info, netns))),
        }
        state.ask_newest(uid);
        drop(state);
        self.notify();
    }

    /// Whether proxies were asked to serve a pod.
    #[must_use]
    pub fn serves(&self, uid: &PodUid) -> bool {
        self.lock().served.contains_key(uid)
    }

    /// Whether a proxy is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        !self.lock().zds.is_empty()
    }

    /// Waits for the proxy's answer to [`Proxies::serve_pod`].
    ///
    /// # Errors
    /// What the proxy says is wrong.
    pub async fn accepted(&self, uid: &PodUid) -> Result<(), String> {
        self.when(|state| state.served.get(uid)?.accepted.as_ref().map(|(_, outcome)| outcome.clone())).await
    }

    /// Completes when a proxy said that it cannot serve a pod.
    pub async fn refused(&self, uid: &PodUid) -> String {
        self.when(|state| state.served.get(uid)?.accepted.as_ref()?.1.as_ref().err().cloned()).await
    }

    /// Waits until the pod's certificate is there. A proxy without `node.sock` cannot say, so its word is not awaited.
    pub async fn ready(&self, uid: &PodUid) {
        let check = |state: &mut State| {
            let ready = state.node.is_empty() || matches!(state.served.get(uid)?.ready, Some(Ok(())));
            ready.then_some(())
        };
        self.when(check).await;
    }

    /// Why the pod's certificate is not there, if a proxy said so.
    #[must_use]
    pub fn not_ready(&self, uid: &PodUid) -> Option<String> {
        self.lock().served.get(uid)?.ready.clone()?.err()
    }

    /// Tells every proxy that a pod leaves, also those that connect meanwhile, and waits until none has anything of
    /// it left. Unbounded: `deadline` is for the proxies.
    pub async fn release(&self, uid: &PodUid, reason: ReleaseReason, deadline: Duration) {
        if let Some(served) = self.lock().served.get_mut(uid) {
            served.live.clear();
            served.released.clear();
        }
        let mut asked = BTreeSet::new();
        let check = |state: &mut State| {
            for node in &state.node {
                let message = ToProxy::Release { pod: uid.clone(), reason, deadline };
                if !asked.contains(&node.id) && node.tell.try_send(message).is_ok() {
                    asked.insert(node.id);
                }
            }
            let Some(served) = state.served.get(uid) else { return Some(()) };
            let done = |node: &NodeSession| match reason {
                ReleaseReason::Deleted => served.released.contains(&node.id),
                ReleaseReason::Unenrolled => served.live.get(&node.id) == Some(&0),
            };
            state.node.iter().all(done).then_some(())
        };
        self.when(check).await;
    }

    /// Completes when a proxy has connected. One that speaks `node.sock` has connected there before.
    pub async fn any_connected(&self) {
        self.when(|state| (!state.zds.is_empty()).then_some(())).await;
    }

    /// Tells every proxy to stop serving a pod at once, gives up its listeners, and waits for the answers.
    pub async fn withdraw(&self, uid: &PodUid) {
        let answers: Vec<oneshot::Receiver<()>> = {
            let mut state = self.lock();
            if state.served.remove(uid).is_none() {
                return;
            }
            let ask = |session: &ZdsSession| {
                let (answer, answered) = oneshot::channel();
                session.asks.try_send(Ask::Del(uid.clone(), answer)).ok().map(|()| answered)
            };
            state.zds.iter().filter_map(ask).collect()
        };
        self.notify();
        for answer in answers {
            // A session that ended has nothing left to stop.
            let _answered = answer.await;
        }
    }

    /// What is known, for people.
    #[must_use]
    pub fn report(&self) -> serde_json::Value {
        let state = self.lock();
        let pods = state.served.iter().map(|(uid, served)| {
            let accepted = served.accepted.as_ref().map(|(_, outcome)| outcome.clone());
            serde_json::json!({
                "uid": uid.as_str(),
                "listeners": served.listeners.iter().map(|(port, _)| port).collect::<Vec<_>>(),
                "accepted": accepted,
                "ready": served.ready,
            })
        });
        serde_json::json!({ "zds": state.zds.len(), "node": state.node.len(), "pods": pods.collect::<Vec<_>>() })
    }

    /// Looks at once and then at every change until `check` has an answer.
    async fn when<T>(&self, mut check: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut changes = self.changed.subscribe();
        loop {
            if let Some(answer) = check(&mut self.lock()) {
                return answer;
            }
            // The sender lives as long as `self`.
            let _changed = changes.changed().await;
        }
    }

    fn notify(&self) {
        self.changed.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_session(&mut self) -> SessionId {
        self.last_session += 1;
        self.last_session
    }

    fn ask_newest(&self, uid: &PodUid) {
        if let Some(newest) = self.zds.last()
            && newest.asks.try_send(Ask::Add(uid.clone())).is_err()
        {
            tracing::warn!(pod.uid = %uid, "too many requests wait for the node proxy; the pod is tried again later");
        }
    }
}

impl Served {
    fn new(info: WorkloadInfo, netns: Option<Arc<Netns>>) -> Self {
        Self {
            info,
            netns,
            listeners: Vec::new(),
            accepted: None,
            ready: None,
            live: BTreeMap::new(),
            released: BTreeSet::new(),
        }
    }

    /// Duplicates of the listeners, for one proxy.
    fn duplicates(&self) -> std::io::Result<Vec<ListeningSocket>> {
        let duplicate =
            |(port, socket): &(u16, OwnedFd)| Ok(ListeningSocket { port: *port, socket: socket.try_clone()? });
        self.listeners.iter().map(duplicate).collect()
    }
}
