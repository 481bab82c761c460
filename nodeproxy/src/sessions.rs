//! Which endpoint each pod has of services with session affinity.
//!
//! Kubernetes promises that a client keeps its endpoint until so long after its last connection, also while others are
//! added; so it is remembered, for all workers. A new process knows nothing, and its clients find what their names lead
//! to ([`crate::balance`]).

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::{Duration, Instant};
use underpass_model::{PodUid, ServiceName, WorkloadUid};

/// Below this, nothing is looked through for what is over.
const FEW: usize = 256;

/// All sessions of a node. One lock, which only connections to such services take.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    sessions: HashMap<(PodUid, ServiceName), Kept>,
    /// Looked through when there are so many.
    tidied_at: usize,
}

#[derive(Debug)]
struct Kept {
    endpoint: WorkloadUid,
    until: Instant,
}

impl Sessions {
    /// The endpoint that a pod has.
    pub(crate) fn kept(&self, pod: &PodUid, service: &ServiceName) -> Option<WorkloadUid> {
        let known = self.known();
        let kept = known.sessions.get(&(pod.clone(), service.clone()))?;
        (kept.until > Instant::now()).then(|| kept.endpoint.clone())
    }

    /// A pod was connected to an endpoint, which it keeps for a time.
    pub(crate) fn keep(&self, pod: &PodUid, service: &ServiceName, endpoint: WorkloadUid, time: Duration) {
        let now = Instant::now();
        let mut known = self.known();
        known.sessions.insert((pod.clone(), service.clone()), Kept { endpoint, until: now + time });
        // Half of them at least are new since the last time, so that this costs each of them once.
        if known.sessions.len() > known.tidied_at.max(FEW) {
            known.sessions.retain(|_, kept| kept.until > now);
            known.tidied_at = 2 * known.sessions.len();
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // No panic leaves it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use underpass_discovery::testing::{service_name, workload};

    use super::*;

    const TIME: Duration = Duration::from_secs(10);

    fn uid(name: &str) -> PodUid {
        PodUid::new(name)
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_lasts_from_its_last_connection() {
        let sessions = Sessions::default();
        let (one, other) = (service_name("shop", "one"), service_name("shop", "other"));
        let endpoint = workload("shop", "web").build().uid;
        sessions.keep(&uid("a"), &one, endpoint.clone(), TIME);
        tokio::time::advance(TIME / 2).await;
        sessions.keep(&uid("a"), &one, endpoint.clone(), TIME);
        tokio::time::advance(TIME * 3 / 4).await;
        assert_eq!(sessions.kept(&uid("a"), &one), Some(endpoint));
        assert_eq!(sessions.kept(&uid("a"), &other), None);
        assert_eq!(sessions.kept(&uid("b"), &one), None);
        tokio::time::advance(TIME / 2).await;
        assert_eq!(sessions.kept(&uid("a"), &one), None, "it is over");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_does_not_pile_up() {
        let sessions = Sessions::default();
        let (service, endpoint) = (service_name("shop", "one"), workload("shop", "web").build().uid);
        for pod in 0..10 * FEW {
            sessions.keep(&uid(&format!("pod-{pod}")), &service, endpoint.clone(), TIME);
            tokio::time::advance(TIME / 50).await;
        }
        assert!(sessions.known().sessions.len() <= 2 * FEW, "{}", sessions.known().sessions.len());
    }
}
