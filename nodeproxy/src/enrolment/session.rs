//! What one session with the node agent does: takes up pods, opens their doors, lets them go.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use underpass_enrolment::{
    node::{self, ReleaseReason, ToAgent, ToProxy},
    zds::{self, WorkloadInfo},
};
use underpass_model::{PodUid, limits::PodLimits};
use underpass_runtime::{Chain, metrics::catalogue, tasks};

use super::{ALONE_AFTER, Session, SessionError, keep, listeners_of, send};
use crate::{
    pods::{NewPod, Pod},
    probe::Question,
};

/// How long the first certificate of a pod may take before the agent is told why it is not there.
const CERTIFICATE_DEADLINE: Duration = Duration::from_secs(8);
/// How long the doors of a pod whose listeners were taken over may stay closed until the mesh is known and the pod's
/// certificate is there: meanwhile its connections wait in their queues, or for an older proxy.
const OPENING_DEADLINE: Duration = Duration::from_secs(5);

impl Session<'_> {
    /// What the agent says on `node.sock`.
    pub(super) fn hear(&mut self, message: ToProxy) {
        match message {
            ToProxy::Release { pod, reason, deadline } => self.release(pod, reason, deadline),
            ToProxy::Limits { pod, limits } => self.limit(pod, limits),
            ToProxy::ProbeAnswer { id, origin } => {
                if let Some(question) = self.asked.remove(&id) {
                    Question::answer(question, origin);
                }
            }
            ToProxy::Listeners(listeners) => self.keep(listeners),
            ToProxy::Terminating { pod } => self.bid_farewell(&pod),
            ToProxy::Successor(Some(generation)) => self.succeed(generation),
            ToProxy::Successor(None) => self.alone = Some(Instant::now() + ALONE_AFTER),
            ToProxy::Hello { .. } | ToProxy::ListenersSent => {
                tracing::warn!("the node agent sent a greeting twice");
            }
        }
    }

    pub(super) async fn answer(&mut self, request: zds::Request) -> Result<zds::Ack, SessionError> {
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
                self.limits.remove(&uid);
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
            Some(known) if known.is_in(netns.as_fd()) => {
                if !known.is_open() {
                    // From an earlier session; this one serves when they are open.
                    self.open_when_able(&known);
                }
                known
            }
            known => {
                if known.is_some() {
                    // A new sandbox of the same pod: nothing of the old one may be used again, tunnels least of all.
                    self.remove(&uid);
                }
                let listeners = self.kept.remove(&uid);
                let made = listeners.is_none();
                let limits = self.limits.get(&uid).cloned().unwrap_or_default();
                match pods.add(NewPod { uid: uid.clone(), info, netns, limits, listeners }) {
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
            let mut opened = std::pin::pin!(pods.open_in_the_end(&pod));
            let in_time = timeout(OPENING_DEADLINE, opened.as_mut()).await;
            // One pod whose doors stay shut keeps the others from being served no longer.
            drop(opening);
            if in_time.is_err() {
                opened.await;
            }
        });
    }

    /// Every pod of the snapshot is served.
    pub(super) async fn serving(&mut self) -> Result<(), SessionError> {
        self.serves = true;
        drop(self.ready.take());
        if self.enrolment.pods.are_closed() {
            tracing::info!("this proxy stands back, so it does not say that it serves");
            return Ok(());
        }
        // Not by way of the outbox, which may be full: an older proxy stands back at this word.
        Ok(send(self.node.as_deref(), &ToAgent::Serving).await?)
    }

    /// Another proxy serves. This one goes on with the connections that it has.
    fn succeed(&mut self, generation: String) {
        self.enrolment.generation.succeed(Some(generation));
        self.alone = None;
        self.zds = None;
        self.kept.clear();
        // Which of them have ended while this proxy heard nothing on ZDS, and none of the agent?
        for pod in self.enrolment.pods.all().keys() {
            self.tell(ToAgent::Holds { pod: pod.clone() });
        }
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

    fn limit(&mut self, uid: PodUid, limits: PodLimits) {
        if let Some(pod) = self.enrolment.pods.get(&uid) {
            pod.budget.limit(&limits);
        }
        self.limits.insert(uid, limits);
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
            self.limits.remove(&uid);
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
                    if let Some(table) =
                        table.filter(|table| table.get(&uid).is_some_and(|here| Arc::ptr_eq(&here, &pod)))
                    {
                        table.remove(&uid);
                    }
                    drop(outbox.send(ToAgent::Released { pod: uid }).await);
                });
            }
            ReleaseReason::Unenrolled => {
                // One teller a pod, however often the agent asks.
                if self.told.insert(pod.number) {
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
    // In this order, as each is counted before it is taken out of its queue.
    let waiting = pod.listeners.have_waiting();
    let live = pod.connections.live();
    if waiting { live.max(1) } else { live }
}

fn unserved(uid: &PodUid, error: &(impl std::error::Error + 'static)) -> zds::Ack {
    tracing::warn!(pod.uid = %uid, error = %Chain(error), "a pod cannot be served");
    zds::Ack::failed(&Chain(error).to_string())
}
