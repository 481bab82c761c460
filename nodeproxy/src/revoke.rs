//! Judges live inbound connections again whenever what they were judged by changes, and ends exactly those that are no
//! longer allowed.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use underpass_discovery::{Mesh, View};
use underpass_model::{Identity, PodUid};
use underpass_policy::PolicySet;
use underpass_runtime::Shutdown;

use crate::{
    authorize::is_doubtful,
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
    policies: PolicySet,
    /// When connections that only an unknown policy speaks against are ended.
    patience: Option<Instant>,
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
        // A pod that is gone from the view may have connections yet; how they end is the agent's to tell.
        let Some(workload) = view.workload(&pod.workload) else { return };
        let (policies, now) = (view.policies(workload), Instant::now());
        let seen = self.seen.get(&pod.uid).filter(|seen| seen.number == pod.number);
        let is_due = seen.and_then(|seen| seen.patience).is_some_and(|until| until <= now);
        if !is_due && seen.is_some_and(|seen| seen.policies == policies) {
            return;
        }
        let outcome = judge(&pod.connections, &pod.identity, &policies, is_due);
        if outcome.ended > 0 {
            tracing::info!(
                pod.uid = %pod.uid, pod.namespace = %pod.namespace, pod.name = %pod.name,
                ended = outcome.ended, kept = outcome.kept, view = view.version(),
                "a change of policy ended connections"
            );
        }
        let patience = (outcome.doubtful > 0).then_some(now + PATIENCE);
        self.seen.insert(pod.uid.clone(), Seen { number: pod.number, policies, patience });
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
                metrics::counter!("underpass_connections_revoked_total", "reason" => denial.reason()).increment(1);
                outcome.ended += usize::from(live.revoke(denial));
            }
        }
    }
    outcome
}

#[cfg(test)]
mod tests;
