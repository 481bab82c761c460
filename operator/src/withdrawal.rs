//! Answers agents whose pods leave: when no subscriber believes any more that such a pod takes tunnels, the agent may
//! take its redirection away.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tokio::{sync::watch, time};
use underpass_discovery::server::Publisher;
use underpass_model::PodUid;
use underpass_objects::{CaptureState, Status, StatusDirectory};
use underpass_runtime::{Shutdown, metrics::catalogue, tasks};

use crate::tokens::NodeTokens;

/// How long an agent waits for slow or absent subscribers at most: a pod must be able to leave a mesh that is not well.
const DEADLINE: Duration = Duration::from_secs(10);
/// A node that has been away for so long runs no proxy that could come back with an old view in its memory.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// How often to look who is there while somebody is missing.
const LOOK: Duration = Duration::from_millis(100);

/// Waits for subscribers and answers.
#[derive(Debug)]
pub struct Withdrawals {
    publisher: Publisher,
    directory: StatusDirectory,
    status: watch::Receiver<Status>,
    attendance: Attendance,
    /// The reports that are answered or being waited for.
    taken_up: BTreeMap<PodUid, u64>,
}

/// Which nodes should be subscribed but are not. After a restart of ours every proxy is away for a moment, and none of
/// them would be waited for if only those that are connected counted.
#[derive(Clone, Debug)]
pub struct Attendance {
    publisher: Publisher,
    tokens: NodeTokens,
    seen: Arc<std::sync::Mutex<BTreeMap<String, Instant>>>,
    began: Instant,
}

impl Withdrawals {
    /// Answers in `directory` what it reads from `status`.
    #[must_use]
    pub fn new(
        publisher: Publisher,
        directory: StatusDirectory,
        status: watch::Receiver<Status>,
        attendance: Attendance,
    ) -> Self {
        Self { publisher, directory, status, attendance, taken_up: BTreeMap::new() }
    }

    /// Takes up what is new in the reports, after they have been published as `version`, and tidies up answers that
    /// nobody needs any more.
    pub fn answer(&mut self, status: &Status, version: u64) {
        self.taken_up.retain(|pod, generation| is_leaving(status, pod, *generation));
        for (pod, generation) in &status.withdrawn {
            if is_leaving(status, pod, *generation) {
                self.taken_up.insert(pod.clone(), *generation);
            } else if let Err(error) = self.directory.retract_answer(pod) {
                tracing::warn!(%error, "stale answer stays");
            }
        }
        let leaving = status.reports.iter().filter(|(_, report)| report.state == CaptureState::Leaving);
        let new: Vec<_> = leaving
            .filter(|(pod, report)| self.taken_up.get(*pod) != Some(&report.generation))
            .map(|(pod, report)| (pod.clone(), report.generation))
            .collect();
        if !new.is_empty() {
            self.taken_up.extend(new.iter().cloned());
            tasks::spawn("withdrawal", self.wait_and_answer(new, version));
        }
    }

    fn wait_and_answer(&self, leaving: Vec<(PodUid, u64)>, version: u64) -> impl Future<Output = ()> + Send + 'static {
        let (publisher, directory) = (self.publisher.clone(), self.directory.clone());
        let (status, attendance) = (self.status.clone(), self.attendance.clone());
        async move {
            let deadline = Instant::now() + DEADLINE;
            let absent = attendance.complete(deadline).await;
            let behind = publisher.wait_acked(version, deadline.saturating_duration_since(Instant::now())).await;
            if absent > 0 || behind > 0 {
                tracing::warn!(absent, behind, pods = leaving.len(), "pods leave the mesh before every node knows");
            }
            let result = if absent + behind == 0 { "acknowledged" } else { "deadline" };
            for (pod, generation) in leaving {
                if !is_leaving(&status.borrow(), &pod, generation) {
                    continue;
                }
                match directory.answer_withdrawn(&pod, generation) {
                    Ok(()) => catalogue::OPERATOR_WITHDRAWALS.with([result]).increment(1),
                    Err(error) => tracing::warn!(%error, "agent is not told that its pod may leave"),
                }
            }
        }
    }
}

fn is_leaving(status: &Status, pod: &PodUid, generation: u64) -> bool {
    let report = status.reports.get(pod);
    report.is_some_and(|report| report.state == CaptureState::Leaving && report.generation == generation)
}

impl Attendance {
    /// Begins with nobody there.
    #[must_use]
    pub fn new(publisher: Publisher, tokens: NodeTokens) -> Self {
        Self { publisher, tokens, seen: Arc::default(), began: Instant::now() }
    }

    /// Looks around now and then until asked to stop.
    pub async fn watch(self, shutdown: Shutdown) {
        loop {
            self.absent();
            tokio::select! {
                () = shutdown.requested() => return,
                () = time::sleep(FORGOTTEN / 10) => {}
            }
        }
    }

    /// Waits until nobody is missing, but not longer than the deadline; how many are missing then.
    async fn complete(&self, deadline: Instant) -> usize {
        loop {
            let absent = self.absent();
            if absent == 0 || Instant::now() >= deadline {
                return absent;
            }
            time::sleep(LOOK).await;
        }
    }

    fn absent(&self) -> usize {
        let now = Instant::now();
        let present: BTreeSet<String> =
            self.publisher.subscribers().into_iter().map(|subscriber| subscriber.name.to_string()).collect();
        let known: BTreeSet<String> = self.tokens.nodes().iter().map(ToString::to_string).collect();
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.retain(|node, _| known.contains(node));
        seen.extend(present.iter().map(|node| (node.clone(), now)));
        let last = |node: &String| seen.get(node).copied().unwrap_or(self.began);
        known.iter().filter(|node| !present.contains(*node) && now.duration_since(last(node)) < FORGOTTEN).count()
    }
}

#[cfg(test)]
mod tests {
    use underpass_discovery::server::Batch;
    use underpass_objects::CaptureReport;

    use super::*;

    struct Bench {
        _home: tempfile::TempDir,
        directory: StatusDirectory,
        withdrawals: Withdrawals,
        status: watch::Sender<Status>,
        version: u64,
    }

    impl Bench {
        /// With one node that has a token and is not subscribed.
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            std::fs::create_dir(home.path().join("tokens")).unwrap();
            std::fs::write(home.path().join("tokens/node-1"), "token-of-node-1-for-tests").unwrap();
            let directory = StatusDirectory::open(home.path()).unwrap();
            let (tokens, _task) = NodeTokens::open(&home.path().join("tokens")).unwrap();
            let publisher = Publisher::new();
            let version = publisher.commit(Batch::new());
            let (status, reader) = watch::channel(Status::default());
            let attendance = Attendance::new(publisher.clone(), tokens);
            let withdrawals = Withdrawals::new(publisher, directory.clone(), reader, attendance);
            Self { _home: home, directory, withdrawals, status, version }
        }

        /// The agent reports; the operator takes it up.
        fn report(&mut self, state: CaptureState) -> u64 {
            let text = String::from;
            let report = CaptureReport {
                pod_uid: text("u-1"),
                namespace: text("shop"),
                name: text("web"),
                node: text("node-1"),
                state,
                generation: 0,
            };
            let generation = self.directory.report(&report).unwrap();
            let status = self.directory.read().unwrap();
            self.status.send_replace(status.clone());
            self.withdrawals.answer(&status, self.version);
            generation
        }

        fn is_answered(&self, generation: u64) -> bool {
            self.directory.is_withdrawn(&PodUid::new("u-1"), generation)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_may_come_back_with_an_old_view_is_waited_for_within_the_deadline() {
        let mut bench = Bench::new();
        let generation = bench.report(CaptureState::Leaving);
        time::sleep(DEADLINE - LOOK).await;
        assert!(!bench.is_answered(generation));
        time::sleep(LOOK * 3).await;
        assert!(bench.is_answered(generation));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_has_been_away_for_long_is_not_waited_for() {
        let mut bench = Bench::new();
        time::sleep(FORGOTTEN).await;
        let generation = bench.report(CaptureState::Leaving);
        time::sleep(LOOK).await;
        assert!(bench.is_answered(generation));
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_that_was_replaced_meanwhile_is_not_answered() {
        let mut bench = Bench::new();
        let generation = bench.report(CaptureState::Leaving);
        let captured = bench.report(CaptureState::Captured);
        time::sleep(DEADLINE * 2).await;
        assert!(!bench.is_answered(generation) && !bench.is_answered(captured));
    }
}
