//! Services: a name and virtual addresses for a set of workloads.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    addr::{NetworkAddress, NetworkRange},
    identity::Identity,
    workload::GatewayAddress,
};

/// A service's name: `namespace/hostname`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its fully qualified host name.
    pub hostname: Arc<str>,
}

/// What the mesh knows of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Discovery's name.
    pub name: ServiceName,
    /// The short name in Kubernetes.
    pub short_name: Arc<str>,
    /// Virtual addresses; none for a headless service.
    pub addresses: Vec<NetworkAddress>,
    /// Ranges whose every address is this service's.
    pub ranges: Vec<NetworkRange>,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// Further identities under which its endpoints may answer.
    pub subject_alt_names: Vec<Identity>,
    /// The waypoint for traffic to it.
    pub waypoint: Option<GatewayAddress>,
    /// How its endpoints are chosen.
    pub load_balancing: LoadBalancing,
    /// True if it is the one to take among services of equal claim to an address.
    pub canonical: bool,
    /// Who may see it.
    pub visibility: Visibility,
}

/// Who may see a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// Workloads of its own namespace.
    Namespace,
    /// Everyone.
    #[default]
    Public,
}

/// A port of a service, and what it means at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// The port that clients dial.
    pub service_port: u16,
    /// The port at the endpoint; 0 on a service whose target is a named port that each endpoint resolves for itself.
    pub target_port: u16,
}

/// How a service's endpoints are chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LoadBalancing {
    /// What shall match between client and endpoint, most important first.
    pub preference: Vec<LocalityScope>,
    /// What to do where it does not match.
    pub mode: SpreadMode,
    /// Which endpoints are considered at all.
    pub health: HealthPolicy,
    /// For how long after its last connection a client keeps its endpoint (`sessionAffinity: ClientIP`); none if each
    /// connection is chosen for anew.
    pub affinity: Option<Duration>,
}

/// A level of locality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocalityScope {
    /// The same cluster.
    Cluster,
    /// The same network.
    Network,
    /// The same node.
    Node,
    /// The same region.
    Region,
    /// The same subzone.
    Subzone,
    /// The same zone.
    Zone,
}

/// What preferences mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SpreadMode {
    /// Prefer endpoints that match more, fall back to those that match less.
    Failover,
    /// Send the connection to the address that was dialled.
    Passthrough,
    /// Every preference must match.
    Strict,
    /// No preference.
    #[default]
    Unspecified,
}

/// Which endpoints are considered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HealthPolicy {
    /// All (`publishNotReadyAddresses`).
    AllowAll,
    /// Those that are ready.
    #[default]
    OnlyHealthy,
}

impl ServiceName {
    /// Makes a name of its parts.
    #[must_use]
    pub fn new(namespace: &str, hostname: &str) -> Self {
        Self { namespace: namespace.into(), hostname: hostname.into() }
    }

    /// Reads `namespace/hostname`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, hostname) = text.split_once('/')?;
        (!namespace.is_empty() && !hostname.is_empty() && !hostname.contains('/'))
            .then(|| Self::new(namespace, hostname))
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}
