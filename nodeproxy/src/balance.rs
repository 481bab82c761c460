//! Which endpoint of a service: the best locality, then the less loaded of two drawn by chance.
//!
//! Two random choices keep the load even without a view of everybody's load, and without the herd that always picks the
//! least loaded one. What this worker knows of an endpoint is its own connections to it and its recent failures.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use tokio::time::{Duration, Instant};
use underpass_model::{
    Health, HealthPolicy, Locality, LocalityScope, Network, Service, SpreadMode, Workload, WorkloadUid,
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

/// Chooses. `usable` says whether an endpoint could be dialled at all for this connection; `chance` gives numbers in
/// `0.0..1.0`.
pub(crate) fn choose<'a>(
    service: &Service,
    endpoints: impl Iterator<Item = &'a Arc<Workload>>,
    client: &Place,
    load: impl Fn(&WorkloadUid) -> Load,
    mut chance: impl FnMut() -> f64,
) -> Option<&'a Arc<Workload>> {
    let policy = &service.load_balancing;
    let mut best: Option<Rank> = None;
    let mut first: Option<Drawn<'a>> = None;
    let mut second: Option<Drawn<'a>> = None;
    for endpoint in endpoints {
        if policy.health == HealthPolicy::OnlyHealthy && endpoint.health != Health::Healthy || endpoint.capacity == 0 {
            continue;
        }
        let matched = leading_matches(&policy.preference, endpoint, client);
        if policy.mode == SpreadMode::Strict && matched < policy.preference.len() {
            continue;
        }
        let locality = if policy.mode == SpreadMode::Unspecified { 0 } else { matched };
        let load = load(&endpoint.uid);
        let rank = Rank { reachable: !load.ejected, locality };
        if best.is_none_or(|best| rank > best) {
            (best, first, second) = (Some(rank), None, None);
        }
        if best == Some(rank) {
            // Weighted sampling without replacement in one pass: the largest of chance^(1/weight).
            let ticket = chance().powf(1.0 / f64::from(endpoint.capacity));
            let drawn = Drawn { endpoint, ticket, active: load.active };
            if first.as_ref().is_none_or(|first| ticket > first.ticket) {
                second = first.replace(drawn);
            } else if second.as_ref().is_none_or(|second| ticket > second.ticket) {
                second = Some(drawn);
            }
        }
    }
    match (first, second) {
        (Some(first), Some(second)) => {
            Some(if second.relative_load() < first.relative_load() { second } else { first })
        }
        (only, _) => only,
    }
    .map(|drawn| drawn.endpoint)
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
