//! Judges live inbound connections again whenever what they were judged by changes, and ends exactly those that are no
//! longer allowed.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use underpass_discovery::{Mesh, View};
use underpass_model::{Identity, PodUid, Workload};
use underpass_policy::PolicySet;
use underpass_runtime::{Shutdown, metrics::catalogue};

use crate::{
    authorize::{Gate, is_doubtful},
    connections::Connections,
    pods::{Pod, Pods},
};

/// How long a live connection may outlive the knowledge of a policy that its pod's record names: policy and record may
/// come one after the other.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is remembered of the pods between two looks.
#[derive(Default)]
struct Judge {
    seen: HashMap<PodUid, Seen>,
}

/// One pod as its connections were last judged.
struct Seen {
    number: u64,
    /// What the view told of it last: its record may go before its connections do.
    record: Arc<Workload>,
    policies: PolicySet,
    /// When connections that only an unknown policy speaks against are ended.
    patience: Option<Instant>,
}

/// A pod, as far as it matters here.
#[derive(Clone, Copy)]
struct Subject<'a> {
    uid: &'a PodUid,
    number: u64,
    gate: Gate<'a>,
    connections: &'a Connections,
}

/// How many connections of a pod live on, and how many do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    kept: usize,
    ended: usize,
    /// Kept for a moment, although an unknown policy speaks against them.
    doubtful: usize,
}

/// Judges until asked to stop.
pub(crate) async fn run(mesh: Mesh, pods: Arc<Pods>, stop: Shutdown) {
    let mut versions = mesh.subscribe();
    let mut judge = Judge::default();
    loop {
        versions.mark_unchanged();
        let due = judge.look(&mesh.view(), &pods);
        let due = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.requested() => return,
            changed = versions.changed() => if changed.is_err() { return },
            () = due => {}
        }
    }
}

impl Judge {
    /// Looks at every pod whose policies are others than before; says when to look again without a further change.
    fn look(&mut self, view: &View, pods: &Pods) -> Option<Instant> {
        let all = pods.all();
        self.seen.retain(|uid, _| all.contains_key(uid));
        for pod in all.values() {
            self.pod(view, pod);
        }
        self.seen.values().filter_map(|seen| seen.patience).min()
    }

    fn pod(&mut self, view: &View, pod: &Pod) {
        let subject = Subject { uid: &pod.uid, number: pod.number, gate: pod.gate(), connections: &pod.connections };
        let outcome = self.judge(view, subject);
        if outcome.ended > 0 {
            tracing::info!(
                pod.uid = %pod.uid, pod.namespace = %pod.namespace, pod.name = %pod.name,
                ended = outcome.ended, kept = outcome.kept, view = view.version(),
                "a change of policy ended connections"
            );
        }
    }

    /// Judges a pod's connections if it is under other policies than before.
    fn judge(&mut self, view: &View, pod: Subject<'_>) -> Outcome {
        let seen = self.seen.get(pod.uid).filter(|seen| seen.number == pod.number);
        // A pod that is gone from the view may have connections yet; how those end is the agent's to tell. But what is
        // decided for everybody holds for them, too.
        let told = view.workload(pod.gate.workload);
        let Some(record) = told.or(seen.map(|seen| &seen.record)).cloned() else { return Outcome::default() };
        let (policies, now) = (view.policies(&record), Instant::now());
        let is_due = seen.and_then(|seen| seen.patience).is_some_and(|until| until <= now);
        if !is_due && seen.is_some_and(|seen| seen.policies == policies) {
            return Outcome::default();
        }
        // Policies of a pod that is gone may be gone with it, which is no doubt about anybody.
        let doubt_counts = told.is_some();
        let outcome = judge(pod.connections, pod.gate.own, &policies, is_due && doubt_counts);
        let patience = (doubt_counts && outcome.doubtful > 0).then_some(now + PATIENCE);
        self.seen.insert(pod.uid.clone(), Seen { number: pod.number, record, policies, patience });
        outcome
    }
}

/// Ends what these policies do not allow; with doubt only when its time is up.
fn judge(connections: &Connections, own: &Identity, policies: &PolicySet, doubt_ends: bool) -> Outcome {
    let mut outcome = Outcome::default();
    for live in connections.inbound() {
        match live.judged.judge(own, policies) {
            Ok(_permit) => outcome.kept += 1,
            Err(denial) if is_doubtful(&denial) && !doubt_ends => outcome.doubtful += 1,
            Err(denial) => {
                catalogue::CONNECTIONS_REVOKED.with([denial.reason()]).increment(1);
                outcome.ended += usize::from(live.revoke(denial));
            }
        }
    }
    outcome
}

#[cfg(test)]
mod tests;
