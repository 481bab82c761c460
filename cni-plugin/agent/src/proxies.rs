//! The node proxies that are connected, what they were asked to serve, and what they said about it.
//!
//! Normally one; two during an upgrade, and more while older ones drain. The newest is asked to serve pods, all are asked
//! to stop. Everything stands
//! under one lock that is never held across an await; whoever waits for an answer looks again at every change.

mod node;
mod succession;
mod zds;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use underpass_enrolment::{
    node::{ListeningSocket, ReleaseReason, ToProxy},
    plugin::{Link, PluginFailure},
    zds::WorkloadInfo,
};
use underpass_model::{PodUid, limits::PodLimits};

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
    /// Whether its proxy can say on `node.sock` that a pod's certificate is there: it connects there first.
    has_node: bool,
    asks: mpsc::Sender<Ask>,
}

#[derive(Debug)]
struct NodeSession {
    id: SessionId,
    /// Which run of the proxy it is, and when that began.
    generation: String,
    started: Duration,
    /// Whether it takes connections at every pod.
    serving: bool,
    /// Of which successor it was told.
    successor: Option<String>,
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
    limits: PodLimits,
    netns: Option<Arc<Netns>>,
    listeners: Vec<(u16, OwnedFd)>,
    accepted: Option<(SessionId, Result<(), String>)>,
    ready: Option<(SessionId, Result<(), String>)>,
    live: BTreeMap<SessionId, u64>,
    released: BTreeSet<SessionId>,
    /// Whether it begins to end.
    terminating: bool,
}

/// Requests that may wait for a proxy; each is a pod's name.
const QUEUE: usize = 4096;
/// What is captured may live as long as it wants.
const NO_DEADLINE: Duration = Duration::from_secs(365 * 24 * 3600);

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

    /// Tells every proxy what a pod that is served asks to be held to, also those that connect later.
    pub fn limit(&self, uid: &PodUid, limits: &PodLimits) {
        let mut state = self.lock();
        let State { served, node, .. } = &mut *state;
        let Some(served) = served.get_mut(uid).filter(|served| served.limits != *limits) else { return };
        served.limits.clone_from(limits);
        node.retain(|node| {
            // One whose messages cannot be queued is ended: it hears when it connects again.
            node.tell.try_send(ToProxy::Limits { pod: uid.clone(), limits: limits.clone() }).is_ok()
        });
    }

    /// What keeps a pod from being served by a connected proxy with a certificate; nothing if that is what it has.
    #[must_use]
    pub fn lacks(&self, uid: &PodUid) -> Option<PluginFailure> {
        let state = self.lock();
        let missing = |link, message: &str| Some(PluginFailure { link, message: message.to_owned() });
        if state.zds.is_empty() {
            return missing(Link::Proxy, "no node proxy is connected");
        }
        match state.accepted(uid) {
            None => missing(Link::Listeners, "the node proxy has not acknowledged the pod yet"),
            Some(Err(why)) => missing(Link::Listeners, why),
            Some(Ok(())) if state.is_ready(uid) => None,
            Some(Ok(())) => match state.ready(uid) {
                Some(Err(why)) => missing(Link::Certificate, why),
                Some(Ok(())) | None => missing(Link::Certificate, "the node proxy has no certificate yet"),
            },
        }
    }

    /// Whether proxies were asked to serve a pod.
    #[must_use]
    pub fn serves(&self, uid: &PodUid) -> bool {
        self.lock().served.contains_key(uid)
    }

    /// Waits until a connected proxy serves the pod and has its certificate. A proxy without `node.sock` cannot say the
    /// latter, so its word is not awaited.
    ///
    /// # Errors
    /// Why the proxy cannot serve the pod.
    pub async fn served(&self, uid: &PodUid) -> Result<(), String> {
        let check = |state: &mut State| match state.accepted(uid)? {
            Err(why) => Some(Err(why.clone())),
            Ok(()) => state.is_ready(uid).then_some(Ok(())),
        };
        self.when(check).await
    }

    /// Completes when a proxy said that it cannot serve a pod.
    pub async fn refused(&self, uid: &PodUid) -> String {
        self.when(|state| state.accepted(uid)?.as_ref().err().cloned()).await
    }

    /// Tells every proxy that a deleted pod leaves, also those that connect meanwhile, and waits until all have
    /// released it. Unbounded: `deadline` is for the proxies.
    pub async fn release(&self, uid: &PodUid, deadline: Duration) {
        let mut farewell = self.farewell(uid, ReleaseReason::Deleted, deadline);
        self.when(|state| {
            if !state.served.contains_key(uid) {
                return Some(());
            }
            farewell.tell(state);
            let served = state.served.get(uid)?;
            state.node.iter().all(|node| served.released.contains(&node.id)).then_some(())
        })
        .await;
    }

    /// Tells every proxy that a pod is captured no more, also those that connect meanwhile, and waits until the last
    /// captured connection has ended. A proxy that is away may have such connections still when it is back; none for
    /// `absence` means that there are none. Unbounded otherwise.
    pub async fn drained(&self, uid: &PodUid, absence: Duration) {
        let mut farewell = self.farewell(uid, ReleaseReason::Unenrolled, NO_DEADLINE);
        loop {
            let drained = self.when(|state| {
                if !state.served.contains_key(uid) {
                    return Some(true);
                }
                farewell.tell(state);
                let served = state.served.get(uid)?;
                if state.node.is_empty() {
                    return Some(false);
                }
                state.node.iter().all(|node| served.live.get(&node.id) == Some(&0)).then_some(true)
            });
            if drained.await {
                return;
            }
            let back = self.when(|state| (!state.node.is_empty()).then_some(()));
            if timeout(absence, back).await.is_err() {
                return;
            }
        }
    }

    fn farewell(&self, uid: &PodUid, reason: ReleaseReason, deadline: Duration) -> Farewell {
        if let Some(served) = self.lock().served.get_mut(uid) {
            served.live.clear();
            served.released.clear();
        }
        Farewell { pod: uid.clone(), reason, deadline, told: BTreeSet::new() }
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
                session.asks.try_send(Ask::Del(uid.clone(), answer)).map(|()| answered).map_err(|_| session.id)
            };
            state.tell_end(uid, |_| true);
            let (answers, lost): (Vec<_>, Vec<_>) = state.zds.iter().map(ask).partition(Result::is_ok);
            for session in lost.into_iter().filter_map(Result::err) {
                state.end_zds(session);
            }
            answers.into_iter().flatten().collect()
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
            let accepted = served.accepted.as_ref().map(|(_, outcome)| outcome);
            let ready = served.ready.as_ref().map(|(_, outcome)| outcome);
            serde_json::json!({
                "uid": uid.as_str(),
                "listeners": served.listeners.iter().map(|(port, _)| port).collect::<Vec<_>>(),
                "accepted": accepted,
                "ready": ready,
            })
        });
        let proxies = state.node.iter().map(|node| {
            serde_json::json!({
                "generation": node.generation,
                "started_ms": u64::try_from(node.started.as_millis()).unwrap_or(u64::MAX),
                "serving": node.serving,
                "successor": node.successor,
            })
        });
        serde_json::json!({
            "zds": state.zds.len(),
            "node": state.node.len(),
            "proxies": proxies.collect::<Vec<_>>(),
            "pods": pods.collect::<Vec<_>>(),
        })
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

    fn ask_newest(&mut self, uid: &PodUid) {
        if let Some(newest) = self.zds.last()
            && newest.asks.try_send(Ask::Add(uid.clone())).is_err()
        {
            self.end_zds(newest.id);
        }
    }

    /// Too much waits for a proxy, or it has gone. When it connects again, greeting and snapshot give it everything.
    fn end_zds(&mut self, id: SessionId) {
        tracing::warn!(session = id, "a node proxy does not keep up; its session is ended, so that it begins anew");
        self.forget_zds(id);
    }

    fn forget_zds(&mut self, id: SessionId) {
        let ended = self.zds.pop_if(|newest| newest.id == id).is_some();
        self.zds.retain(|session| session.id != id);
        let served_only_here = |served: &Served| served.accepted.as_ref().is_none_or(|(session, _)| *session == id);
        // An older proxy has never been given the listeners of these pods, if it was the newest that ended. Its session
        // ends too: when it connects again, greeting and snapshot give it everything.
        if ended && self.served.values().any(served_only_here) {
            drop(self.zds.pop());
        }
    }

    /// What a proxy that is still connected said of a pod.
    fn accepted(&self, uid: &PodUid) -> Option<&Result<(), String>> {
        let (session, outcome) = self.served.get(uid)?.accepted.as_ref()?;
        self.zds.iter().any(|zds| zds.id == *session).then_some(outcome)
    }

    fn ready(&self, uid: &PodUid) -> Option<&Result<(), String>> {
        let (session, outcome) = self.served.get(uid)?.ready.as_ref()?;
        self.node.iter().any(|node| node.id == *session).then_some(outcome)
    }

    fn is_ready(&self, uid: &PodUid) -> bool {
        self.zds.last().is_some_and(|newest| !newest.has_node) || self.ready(uid).is_some_and(Result::is_ok)
    }
}

/// What every proxy is told once about the end of a pod's capture.
struct Farewell {
    pod: PodUid,
    reason: ReleaseReason,
    deadline: Duration,
    told: BTreeSet<SessionId>,
}

impl Farewell {
    /// A proxy whose messages cannot be queued is ended: it hears when it connects again.
    fn tell(&mut self, state: &mut State) {
        let Self { pod, reason, deadline, told } = self;
        state.node.retain(|node| {
            let message = ToProxy::Release { pod: pod.clone(), reason: *reason, deadline: *deadline };
            told.contains(&node.id) || (node.tell.try_send(message).is_ok() && told.insert(node.id))
        });
    }
}

impl Served {
    fn new(info: WorkloadInfo, netns: Option<Arc<Netns>>) -> Self {
        Self {
            info,
            limits: PodLimits::default(),
            netns,
            listeners: Vec::new(),
            accepted: None,
            ready: None,
            live: BTreeMap::new(),
            released: BTreeSet::new(),
            terminating: false,
        }
    }

    /// Duplicates of the listeners, for one proxy.
    fn duplicates(&self) -> std::io::Result<Vec<ListeningSocket>> {
        let duplicate =
            |(port, socket): &(u16, OwnedFd)| Ok(ListeningSocket { port: *port, socket: socket.try_clone()? });
        self.listeners.iter().map(duplicate).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{node::Greeting, *};

    fn info() -> WorkloadInfo {
        WorkloadInfo { name: "web".into(), namespace: "shop".into(), service_account: "web".into() }
    }

    #[tokio::test]
    async fn a_session_that_takes_no_more_requests_is_ended_so_that_it_begins_anew() {
        let (proxies, first) = (Proxies::default(), PodUid::new("0"));
        let (_, mut asks, _) = proxies.open_zds();
        for n in 0..QUEUE {
            proxies.serve_pod(&PodUid::new(&n.to_string()), info(), None);
        }
        assert_eq!(proxies.lock().zds.len(), 1);
        proxies.withdraw(&first).await;
        assert!(proxies.lock().zds.is_empty() && !proxies.serves(&first));
        while let Some(ask) = asks.recv().await {
            assert!(matches!(ask, Ask::Add(_)), "what was asked before is all that is left");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_proxy_captured_connections_count_as_ended_after_a_while_only() {
        let (proxies, pod) = (Proxies::default(), PodUid::new("a"));
        proxies.serve_pod(&pod, info(), None);
        let absence = Duration::from_secs(10);
        let begun = tokio::time::Instant::now();
        proxies.drained(&pod, absence).await;
        assert!(begun.elapsed() >= absence);

        let (tell, mut outbox) = mpsc::channel(8);
        let (id, _) = proxies.open_node(Greeting::default(), tell);
        assert!(timeout(absence * 10, proxies.drained(&pod, absence)).await.is_err(), "it has said nothing");
        assert!(matches!(outbox.recv().await, Some(ToProxy::Release { reason: ReleaseReason::Unenrolled, .. })));
        let say = |connections| {
            proxies.note(&pod, |served| {
                served.live.insert(id, connections);
            });
        };
        let drained = proxies.drained(&pod, absence);
        tokio::pin!(drained);
        assert!(timeout(absence, &mut drained).await.is_err());
        say(1);
        assert!(timeout(absence * 10, &mut drained).await.is_err());
        say(0);
        assert!(timeout(absence, &mut drained).await.is_ok());
    }

    #[tokio::test]
    async fn every_proxy_hears_once_of_a_pods_limits() {
        let (proxies, pod) = (Proxies::default(), PodUid::new("a"));
        let (tell, mut outbox) = mpsc::channel(8);
        proxies.open_node(Greeting::default(), tell);
        let some = PodLimits { connections: Some(1), ..PodLimits::default() };
        proxies.limit(&pod, &some);
        proxies.serve_pod(&pod, info(), None);
        for limits in [&some, &some, &PodLimits::default()] {
            proxies.limit(&pod, limits);
        }
        let mut heard = Vec::new();
        while let Ok(ToProxy::Limits { limits, .. }) = outbox.try_recv() {
            heard.push(limits);
        }
        assert_eq!(heard, [some, PodLimits::default()]);
    }

    #[test]
    fn only_the_word_of_a_connected_proxy_counts() {
        let (proxies, pod) = (Proxies::default(), PodUid::new("a"));
        proxies.serve_pod(&pod, info(), None);
        let lacks = || proxies.lacks(&pod).map(|failure| failure.link);
        assert_eq!(lacks(), Some(Link::Proxy));
        let (node, _) = proxies.open_node(Greeting::default(), mpsc::channel(8).0);
        let (zds, _asks, _) = proxies.open_zds();
        assert_eq!(lacks(), Some(Link::Listeners));
        proxies.note(&pod, |served| served.accepted = Some((zds, Ok(()))));
        assert_eq!(lacks(), Some(Link::Certificate));
        proxies.note(&pod, |served| served.ready = Some((node, Ok(()))));
        assert_eq!(lacks(), None);
        proxies.close_node(node);
        let (again, _) = proxies.open_node(Greeting::default(), mpsc::channel(8).0);
        assert_eq!(lacks(), Some(Link::Certificate), "another proxy has not said so");
        proxies.close_node(again);
        assert_eq!(lacks(), Some(Link::Certificate), "a proxy that lost node.sock is none that never had it");
        proxies.close_zds(zds);
        let (zds, _asks, _) = proxies.open_zds();
        assert_eq!(lacks(), Some(Link::Listeners));
        proxies.note(&pod, |served| served.accepted = Some((zds, Ok(()))));
        assert_eq!(lacks(), None, "one that has no node.sock cannot say more");
    }
}
