//! Which endpoint of a service: the best locality, then the less loaded of two drawn by chance; or, where a service has
//! session affinity, the one that the client has, and for a new client the one that its name leads to.
//!
//! Two random choices keep the load even without a view of everybody's load, and without the herd that always picks the
//! least loaded one. What this worker knows of an endpoint is its own connections to it and its recent failures.

use std::{
    cell::RefCell,
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    rc::Rc,
    sync::Arc,
};

use tokio::time::{Duration, Instant};
use underpass_model::{
    Health, HealthPolicy, Locality, LocalityScope, Network, PodUid, Service, SpreadMode, Workload, WorkloadUid,
};

/// How long an endpoint that could not be reached is passed over while others can be.
const EJECTION: Duration = Duration::from_secs(5);

/// Where the client is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) network: Network,
    pub(crate) cluster: Arc<str>,
    pub(crate) node: Arc<str>,
    pub(crate) locality: Locality,
}

/// Who is to be given an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Client<'a> {
    pub(crate) place: &'a Place,
    /// Where the service has session affinity.
    pub(crate) session: Option<Session<'a>>,
}

/// Who keeps an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Session<'a> {
    /// The client. Its uid and not its address, of which a pod can take as many as it likes.
    pub(crate) client: &'a PodUid,
    /// The endpoint that it has, if it was there before.
    pub(crate) kept: Option<WorkloadUid>,
}

/// What is known of an endpoint's load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Connections to it.
    pub(crate) active: u32,
    /// It could not be reached a moment ago.
    pub(crate) ejected: bool,
}

/// One worker's knowledge of endpoints; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loads(Rc<RefCell<HashMap<WorkloadUid, Known>>>);

#[derive(Debug, Default)]
struct Known {
    active: u32,
    failed: Option<Instant>,
}

/// A connection to an endpoint; dropping it ends the count.
#[derive(Debug)]
pub(crate) struct Active {
    loads: Loads,
    endpoint: WorkloadUid,
}

impl Place {
    /// Where a workload is.
    pub(crate) fn of(workload: &Workload) -> Self {
        Self {
            network: workload.network.clone(),
            cluster: workload.cluster.clone(),
            node: workload.node.clone(),
            locality: workload.locality.clone(),
        }
    }
}

impl Loads {
    /// What is known now.
    pub(crate) fn of(&self, endpoint: &WorkloadUid) -> Load {
        self.0.borrow().get(endpoint).map_or_else(Load::default, |known| Load {
            active: known.active,
            ejected: known.failed.is_some_and(|at| at.elapsed() < EJECTION),
        })
    }

    /// A connection begins.
    pub(crate) fn begin(&self, endpoint: &WorkloadUid) -> Active {
        self.0.borrow_mut().entry(endpoint.clone()).or_default().active += 1;
        Active { loads: self.clone(), endpoint: endpoint.clone() }
    }

    /// The endpoint could not be reached.
    pub(crate) fn failed(&self, endpoint: &WorkloadUid) {
        self.0.borrow_mut().entry(endpoint.clone()).or_default().failed = Some(Instant::now());
    }

    /// Forgets endpoints that are neither in use nor were in trouble a moment ago.
    pub(crate) fn prune(&self) {
        let recent = |known: &Known| known.failed.is_some_and(|at| at.elapsed() < EJECTION);
        self.0.borrow_mut().retain(|_, known| known.active > 0 || recent(known));
    }

    /// The endpoint was reached.
    pub(crate) fn reached(&self, endpoint: &WorkloadUid) {
        if let Some(known) = self.0.borrow_mut().get_mut(endpoint) {
            known.failed = None;
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let mut loads = self.loads.0.borrow_mut();
        if let Some(known) = loads.get_mut(&self.endpoint) {
            known.active -= 1;
            // Endpoints come and go; what is kept is what is in use or was in trouble a moment ago.
            if known.active == 0 && known.failed.is_none_or(|at| at.elapsed() >= EJECTION) {
                loads.remove(&self.endpoint);
            }
        }
    }
}

/// Chooses among endpoints that could be dialled for this connection; `chance` gives numbers in `0.0..1.0`. A session's
/// endpoint is left only when it is gone, not ready or cannot be reached; without one, chance is replaced by what client
/// and endpoint are called, so that all workers, and the next process, find the same.
pub(crate) fn choose<'a>(
    service: &Service,
    endpoints: impl Iterator<Item = &'a Arc<Workload>>,
    client: &Client<'_>,
    load: impl Fn(&WorkloadUid) -> Load,
    mut chance: impl FnMut() -> f64,
) -> Option<&'a Arc<Workload>> {
    let policy = &service.load_balancing;
    let Client { place, session } = client;
    let mut best: Option<Rank> = None;
    let mut first: Option<Drawn<'a>> = None;
    let mut second: Option<Drawn<'a>> = None;
    for endpoint in endpoints {
        if policy.health == HealthPolicy::OnlyHealthy && endpoint.health != Health::Healthy || endpoint.capacity == 0 {
            continue;
        }
        let matched = leading_matches(&policy.preference, endpoint, place);
        if policy.mode == SpreadMode::Strict && matched < policy.preference.len() {
            continue;
        }
        let locality = if policy.mode == SpreadMode::Unspecified { 0 } else { matched };
        let load = load(&endpoint.uid);
        if !load.ejected && session.as_ref().is_some_and(|session| session.kept.as_ref() == Some(&endpoint.uid)) {
            return Some(endpoint);
        }
        let rank = Rank { reachable: !load.ejected, locality };
        if best.is_none_or(|best| rank > best) {
            (best, first, second) = (Some(rank), None, None);
        }
        if best == Some(rank) {
            // Weighted sampling without replacement in one pass: the largest of chance^(1/weight).
            let drawn = session.as_ref().map_or_else(&mut chance, |session| session.draw(&endpoint.uid));
            let ticket = drawn.powf(1.0 / f64::from(endpoint.capacity));
            let drawn = Drawn { endpoint, ticket, active: load.active };
            if first.as_ref().is_none_or(|first| ticket > first.ticket) {
                second = first.replace(drawn);
            } else if second.as_ref().is_none_or(|second| ticket > second.ticket) {
                second = Some(drawn);
            }
        }
    }
    match (first, second) {
        (Some(first), Some(second)) if session.is_none() => {
            Some(if second.relative_load() < first.relative_load() { second } else { first })
        }
        (first, _) => first,
    }
    .map(|drawn| drawn.endpoint)
}

impl Session<'_> {
    /// A number in `0.0..1.0` for this client and an endpoint (rendezvous hashing): when endpoints come or go, few
    /// clients find another one.
    fn draw(&self, endpoint: &WorkloadUid) -> f64 {
        let mut hasher = DefaultHasher::new();
        (self.client, endpoint).hash(&mut hasher);
        // As many bits as a double can tell apart.
        #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
        let number = (hasher.finish() >> 11) as f64;
        number / (1_u64 << 53) as f64
    }
}

/// Reachable before near: a neighbour that is down is worse than one far away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    reachable: bool,
    locality: usize,
}

struct Drawn<'a> {
    endpoint: &'a Arc<Workload>,
    ticket: f64,
    active: u32,
}

impl Drawn<'_> {
    fn relative_load(&self) -> f64 {
        f64::from(self.active) / f64::from(self.endpoint.capacity)
    }
}

fn leading_matches(preference: &[LocalityScope], endpoint: &Workload, client: &Place) -> usize {
    let matches = |scope: &&LocalityScope| {
        let (a, b) = (&endpoint.locality, &client.locality);
        match scope {
            LocalityScope::Cluster => endpoint.cluster == client.cluster,
            LocalityScope::Network => endpoint.network == client.network,
            LocalityScope::Node => endpoint.node == client.node,
            LocalityScope::Region => a.region == b.region,
            // A zone's name says nothing outside its region.
            LocalityScope::Zone => a.region == b.region && a.zone == b.zone,
            LocalityScope::Subzone => a == b,
        }
    };
    preference.iter().take_while(matches).count()
}

#[cfg(test)]
mod tests;
