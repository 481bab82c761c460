//! This run of the node proxy among those before and after it: when it takes connections, when it stands back, when it
//! ends.
//!
//! Several runs share each pod's listeners, by way of the node agent. A proxy that has a successor stands back: it takes
//! no more connections, and asks its peers by GOAWAY to open new tunnels, which reach the successor. One that was only
//! asked to stop goes on, as nobody would serve in its stead.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use tokio::{sync::watch, time::Instant};
use underpass_runtime::Shutdown;

use crate::pods::Pods;

/// At most so long before its deadline a proxy without successor closes its doors, so that short connections are not cut:
/// new ones wait in their queues for the next proxy.
const LAST: Duration = Duration::from_secs(5);

/// This run; clones are the same.
#[derive(Clone)]
pub(crate) struct Generation(Arc<Shared>);

struct Shared {
    name: &'static str,
    started: Duration,
    born: Instant,
    deadline: Duration,
    successor: watch::Sender<Option<String>>,
    asked: OnceLock<Instant>,
    accepting: AtomicBool,
}

/// What a proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Takes connections.
    Serve,
    /// Takes no more; those that live go on.
    StandBack,
    /// Goes.
    End,
}

/// What is known when it decides.
#[derive(Clone, Copy, Debug)]
struct Situation {
    /// Since when it shall stop.
    asked: Option<Duration>,
    /// Whether a younger proxy serves.
    succeeded: bool,
    /// Since when it has stood back for the present reason.
    back: Option<Duration>,
    /// Connections.
    live: u64,
    /// Connections and peers' tunnels.
    open: u64,
}

impl Situation {
    fn step(self, deadline: Duration) -> Step {
        let last = LAST.min(deadline / 5);
        let Some(asked) = self.asked else {
            return if self.succeeded { Step::StandBack } else { Step::Serve };
        };
        match self.back {
            _ if asked >= deadline => Step::End,
            // The doors were closed before this was counted, and nobody is taken without being counted first.
            Some(back) if self.open == 0 || (!self.succeeded && back >= last) => Step::End,
            // Nobody would be served by going on, and the sooner it goes, the sooner the next one comes.
            None if !self.succeeded && self.live > 0 && asked + last < deadline => Step::Serve,
            Some(_) | None => Step::StandBack,
        }
    }
}

impl Generation {
    /// A run that begins now, and may take so long to end.
    pub(crate) fn new(deadline: Duration) -> Self {
        // The clock that runs on through a suspension, and is the same for every process of the machine.
        let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
        Self(Arc::new(Shared {
            // Lives as long as the process, as labels of metrics must.
            name: format!("{}-{:x}", std::process::id(), fastrand::u64(..)).leak(),
            started: since_boot,
            born: Instant::now(),
            deadline,
            successor: watch::Sender::new(None),
            asked: OnceLock::new(),
            accepting: AtomicBool::new(true),
        }))
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.0.name
    }

    /// When it began, since the machine did.
    pub(crate) fn started(&self) -> Duration {
        self.0.started
    }

    /// For how long it has run.
    pub(crate) fn age(&self) -> Duration {
        self.0.born.elapsed()
    }

    /// Who serves instead, if somebody does.
    pub(crate) fn successor(&self) -> Option<String> {
        self.0.successor.borrow().clone()
    }

    /// Whether somebody serves instead.
    pub(crate) fn is_succeeded(&self) -> bool {
        self.0.successor.borrow().is_some()
    }

    /// Tells each time that somebody comes to serve instead, or is gone again.
    pub(crate) fn successors(&self) -> watch::Receiver<Option<String>> {
        self.0.successor.subscribe()
    }

    /// Another one serves, or none any more.
    pub(crate) fn succeed(&self, successor: Option<String>) {
        match &successor {
            Some(generation) => tracing::info!(generation, "a younger node proxy serves; this one stands back"),
            None => tracing::warn!("the younger node proxy has gone; this one serves again"),
        }
        self.0.successor.send_replace(successor);
    }

    /// Whether it takes connections.
    pub(crate) fn is_accepting(&self) -> bool {
        self.0.accepting.load(Ordering::Relaxed)
    }

    /// What is left of its time, if it was asked to stop.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        self.0.asked.get().map(|asked| self.0.deadline.saturating_sub(asked.elapsed()))
    }

    /// Keeps the pods' doors as they should be, until it is time to end.
    pub(crate) async fn run(&self, pods: &Arc<Pods>, stop: &Shutdown) {
        const STEP: Duration = Duration::from_millis(50);
        let mut successors = self.0.successor.subscribe();
        let mut back: Option<(bool, Instant)> = None;
        loop {
            let succeeded = successors.borrow_and_update().is_some();
            // A reason that is no more counts for nothing.
            back = back.filter(|(for_successor, _)| *for_successor == succeeded);
            let (live, open) = pods.count();
            let situation = Situation {
                asked: self.0.asked.get().map(Instant::elapsed),
                succeeded,
                back: back.map(|(_, since)| since.elapsed()),
                live,
                open,
            };
            let step = situation.step(self.0.deadline);
            self.0.accepting.store(step == Step::Serve, Ordering::Relaxed);
            match step {
                Step::Serve => pods.open_doors(),
                Step::StandBack => {
                    pods.close_doors();
                    back.get_or_insert_with(|| (succeeded, Instant::now()));
                }
                Step::End if open == 0 => return tracing::info!("every connection has ended"),
                Step::End => return tracing::warn!(cut = open, "the drain deadline ends these connections"),
            }
            tokio::select! {
                _ = successors.changed() => {}
                () = stop.requested(), if situation.asked.is_none() => {
                    self.0.asked.get_or_init(Instant::now);
                    let deadline_s = self.0.deadline.as_secs();
                    tracing::info!(live, deadline_s, succeeded, "asked to stop; connections may end by themselves");
                }
                () = tokio::time::sleep(STEP), if situation.asked.is_some() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_situation_has_its_step() {
        use Step::{End, Serve, StandBack};
        let (deadline, second) = (Duration::from_secs(100), Duration::from_secs(1));
        let (yes, no) = (true, false);
        // asked since, succeeded, stood back since, live, open: step
        for (asked, succeeded, back, live, open, step) in [
            (None, no, None, 0, 0, Serve),
            (None, no, None, 9, 9, Serve),
            (None, yes, None, 9, 9, StandBack),
            // Not asked to stop, it stays: its successor may go.
            (None, yes, Some(50), 0, 0, StandBack),
            (Some(0), yes, None, 9, 9, StandBack),
            (Some(50), yes, Some(50), 1, 1, StandBack),
            (Some(50), yes, Some(50), 0, 1, StandBack),
            (Some(50), yes, Some(50), 0, 0, End),
            (Some(0), yes, None, 0, 0, StandBack),
            (Some(0), yes, Some(0), 0, 0, End),
            (Some(100), yes, Some(50), 9, 9, End),
            // Nobody follows: it serves on, as long as somebody is served and it has time.
            (Some(0), no, None, 9, 9, Serve),
            (Some(94), no, None, 9, 9, Serve),
            (Some(95), no, None, 9, 9, StandBack),
            (Some(1), no, None, 0, 9, StandBack),
            (Some(2), no, Some(1), 9, 9, StandBack),
            (Some(2), no, Some(1), 0, 0, End),
            (Some(6), no, Some(5), 9, 9, End),
            (Some(100), no, Some(4), 9, 9, End),
        ] {
            let [asked, back] = [asked, back].map(|seconds: Option<u32>| seconds.map(|seconds| second * seconds));
            let situation = Situation { asked, succeeded, back, live, open };
            assert_eq!(situation.step(deadline), step, "{situation:?}");
        }
    }

    #[test]
    fn a_short_deadline_is_not_used_up_by_waiting_for_the_next_proxy() {
        let situation = |millis, back: Option<u64>| Situation {
            asked: Some(Duration::from_millis(millis)),
            succeeded: false,
            back: back.map(Duration::from_millis),
            live: 1,
            open: 1,
        };
        let deadline = Duration::from_secs(1);
        assert_eq!(situation(790, None).step(deadline), Step::Serve);
        assert_eq!(situation(800, None).step(deadline), Step::StandBack);
        assert_eq!(situation(1000, Some(200)).step(deadline), Step::End);
    }
}
