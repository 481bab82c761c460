//! Answers agents whose pods leave, when several operators serve: each says how far its own subscribers have come, and the
//! one that leads answers once all have come as far as the report.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use imbl::{OrdMap, ordmap::DiffItem};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use underpass_discovery::server::Publisher;
use underpass_objects::{
    CaptureReport, CaptureState, ObjectName, Snapshot,
    cluster::report::{self, ReportError},
    report as on_pods,
};
use underpass_runtime::{Shutdown, metrics::catalogue};

use super::member::{Member, Present};

/// How long an agent waits for slow or absent subscribers at most: a pod must be able to leave a mesh that is not well.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often to look while somebody leaves.
const LOOK: Duration = Duration::from_millis(100);
/// Answers that are written at once.
const AT_ONCE: usize = 16;

/// What has been published, and who leaves.
#[derive(Clone, Debug, Default)]
struct Shown {
    version: u64,
    revision: u64,
    leaving: BTreeMap<ObjectName, Leaving>,
    /// How many nodes have captured pods, and so a subscriber.
    nodes: usize,
}

/// A pod whose agent waits.
#[derive(Clone, Debug, PartialEq)]
struct Leaving {
    report: CaptureReport,
    /// When the report had been seen, in the count of the pods.
    revision: u64,
    since: Instant,
}

/// Takes note of what is published.
#[derive(Debug)]
pub struct Withdrawals {
    pods: OrdMap<ObjectName, Arc<Pod>>,
    captured: BTreeMap<String, usize>,
    shown: watch::Sender<Shown>,
}

/// Answers; see [`Withdrawals::new`].
#[derive(Debug)]
pub struct WithdrawalTask {
    shown: watch::Receiver<Shown>,
    answering: Answering,
}

struct Answering {
    client: Client,
    member: Member,
    publisher: Publisher,
    leads: watch::Receiver<bool>,
}

impl std::fmt::Debug for Answering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answering").field("member", &self.member).finish_non_exhaustive()
    }
}

impl Withdrawals {
    /// Nobody leaves yet.
    #[must_use]
    pub fn new(
        client: Client,
        member: Member,
        publisher: Publisher,
        leads: watch::Receiver<bool>,
    ) -> (Self, WithdrawalTask) {
        let (shown, receiver) = watch::channel(Shown::default());
        let answering = Answering { client, member, publisher, leads };
        let this = Self { pods: OrdMap::new(), captured: BTreeMap::new(), shown };
        (this, WithdrawalTask { shown: receiver, answering })
    }

    /// A snapshot has been published as `version`. Costs what differs from the one before.
    pub fn note(&mut self, snapshot: &Snapshot, version: u64) {
        let mut changed = Vec::new();
        for item in self.pods.diff(&snapshot.objects.pods) {
            let (name, old, new) = match item {
                DiffItem::Add(name, new) => (name, None, Some(new)),
                DiffItem::Update { old: (_, old), new: (name, new) } => (name, Some(old), Some(new)),
                DiffItem::Remove(name, old) => (name, Some(old), None),
            };
            let report = |pod: Option<&Arc<Pod>>| pod.and_then(|pod| on_pods::capture(pod));
            count(&mut self.captured, report(old).as_ref(), report(new).as_ref());
            let answered = new.and_then(|pod| on_pods::withdrawn(pod));
            let waits =
                |report: &CaptureReport| report.state == CaptureState::Leaving && answered != Some(report.generation);
            changed.push((name.clone(), report(new).filter(waits)));
        }
        self.pods = snapshot.objects.pods.clone();
        let nodes = self.captured.len();
        self.shown.send_modify(|shown| {
            (shown.version, shown.revision, shown.nodes) = (version, snapshot.pods_revision, nodes);
            for (name, report) in changed {
                match report {
                    Some(report) if shown.leaving.get(&name).is_some_and(|known| known.report == report) => {}
                    Some(report) => {
                        let leaving = Leaving { report, revision: snapshot.pods_revision, since: Instant::now() };
                        shown.leaving.insert(name, leaving);
                    }
                    None => drop(shown.leaving.remove(&name)),
                }
            }
        });
    }
}

/// Captured pods by node.
fn count(captured: &mut BTreeMap<String, usize>, old: Option<&CaptureReport>, new: Option<&CaptureReport>) {
    if let Some(new) = new {
        *captured.entry(new.node.clone()).or_default() += 1;
    }
    let Some(old) = old else { return };
    if let Some(count) = captured.get_mut(&old.node) {
        *count -= 1;
        if *count == 0 {
            captured.remove(&old.node);
        }
    }
}

/// What to do about a pod that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Acknowledged,
    DeadlinePassed,
    NotYet,
}

/// Decides by what the operators say of their subscribers. Fewer subscribers than nodes with captured pods: somebody is
/// about to come back with an old view.
fn judge(leaving: &Leaving, nodes: usize, present: &[Present], now: Instant) -> Verdict {
    let subscribers: usize = present.iter().map(|member| member.subscribers).sum();
    let all_know = present.iter().all(|member| member.acknowledged >= leaving.revision);
    if all_know && !present.is_empty() && subscribers >= nodes {
        Verdict::Acknowledged
    } else if now.duration_since(leaving.since) >= DEADLINE {
        Verdict::DeadlinePassed
    } else {
        Verdict::NotYet
    }
}

impl WithdrawalTask {
    /// Runs until asked to stop.
    pub async fn run(self, shutdown: Shutdown) {
        let Self { mut shown, answering } = self;
        let work = async {
            // Ends with whoever publishes.
            while shown.wait_for(|shown| !shown.leaving.is_empty()).await.is_ok() {
                let now = shown.borrow_and_update().clone();
                answering.look(&now).await;
                time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = shutdown.requested() => {}
            () = work => {}
        }
    }
}

impl Answering {
    async fn look(&self, shown: &Shown) {
        if self.publisher.wait_acked(shown.version, LOOK).await == 0 {
            self.member.acknowledge(shown.revision);
        }
        if !*self.leads.borrow() {
            return;
        }
        let present = match self.member.present().await {
            Ok(present) => present,
            Err(error) => return tracing::warn!(%error, "which operators there are is not known"),
        };
        let now = Instant::now();
        let ripe = shown.leaving.values().filter_map(|leaving| match judge(leaving, shown.nodes, &present, now) {
            Verdict::Acknowledged => Some((&leaving.report, true)),
            Verdict::DeadlinePassed => Some((&leaving.report, false)),
            Verdict::NotYet => None,
        });
        let answers = ripe.map(|(report, acknowledged)| self.answer(report, acknowledged));
        stream::iter(answers).for_each_concurrent(AT_ONCE, |answer| answer).await;
    }

    async fn answer(&self, report: &CaptureReport, acknowledged: bool) {
        let result = if acknowledged { "acknowledged" } else { "deadline" };
        match report::answer(&self.client, report, acknowledged).await {
            Ok(()) => catalogue::OPERATOR_WITHDRAWALS.with([result]).increment(1),
            // Its deletion is on the way to us.
            Err(ReportError::Gone) => {}
            Err(error) => {
                catalogue::OPERATOR_WRITE_ERRORS.with(["answer"]).increment(1);
                tracing::warn!(%error, pod = report.name, "agent is not told that its pod may leave");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_operators_have_to_say_so_and_every_node_has_to_be_there() {
        let report = CaptureReport {
            pod_uid: "u".into(),
            namespace: "shop".into(),
            name: "web".into(),
            node: "a".into(),
            state: CaptureState::Leaving,
            generation: 1,
        };
        let leaving = Leaving { report, revision: 10, since: Instant::now() };
        let member = |acknowledged, subscribers| Present { name: "op".into(), acknowledged, subscribers };
        let table = [
            (vec![], 0, Verdict::NotYet),
            (vec![member(10, 2)], 2, Verdict::Acknowledged),
            (vec![member(9, 2)], 2, Verdict::NotYet),
            (vec![member(10, 1)], 2, Verdict::NotYet),
            (vec![member(10, 1), member(11, 1)], 2, Verdict::Acknowledged),
            (vec![member(10, 1), member(9, 1)], 2, Verdict::NotYet),
            (vec![member(12, 0)], 0, Verdict::Acknowledged),
        ];
        for (present, nodes, verdict) in &table {
            assert_eq!(judge(&leaving, *nodes, present, Instant::now()), *verdict, "{present:?} {nodes}");
        }
        time::sleep(DEADLINE).await;
        for (present, nodes, verdict) in table {
            let late = if verdict == Verdict::NotYet { Verdict::DeadlinePassed } else { verdict };
            assert_eq!(judge(&leaving, nodes, &present, Instant::now()), late, "{present:?} {nodes}");
        }
    }
}
