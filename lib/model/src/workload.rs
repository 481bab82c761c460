//! Workloads: one running pod or machine with an identity and addresses.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use crate::{
    addr::{Network, NetworkAddress},
    identity::{Identity, IdentityError, TrustDomain},
    service::{ServiceName, ServicePort},
};

/// Discovery's name of a workload: `cluster/group/kind/namespace/name[/section]`. Names are used again after a pod is gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(Arc<str>);

/// Kubernetes' uid of a pod: never used again, unlike its name and its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

/// What the mesh knows of one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Discovery's name.
    pub uid: WorkloadUid,
    /// The pod's name.
    pub name: Arc<str>,
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// Its addresses; may be empty while it starts.
    pub addresses: Vec<IpAddr>,
    /// The network in which the addresses are valid.
    pub network: Network,
    /// How to reach it.
    pub tunnel: Tunnel,
    /// The root of its identity.
    pub trust_domain: TrustDomain,
    /// Its service account.
    pub service_account: Arc<str>,
    /// The node it runs on.
    pub node: Arc<str>,
    /// Name under which telemetry counts it (`service.name` of baggage).
    pub canonical_name: Arc<str>,
    /// Version under which telemetry counts it.
    pub canonical_revision: Arc<str>,
    /// What made it.
    pub kind: WorkloadKind,
    /// The name of what made it, such as the Deployment's.
    pub owner: Arc<str>,
    /// Whether it is ready for traffic.
    pub health: Health,
    /// The cluster it runs in.
    pub cluster: Arc<str>,
    /// Where it runs.
    pub locality: Locality,
    /// Whether it shares its node's addresses.
    pub network_mode: NetworkMode,
    /// The waypoint for traffic to its addresses.
    pub waypoint: Option<GatewayAddress>,
    /// Names of the policies that select it, besides those of its namespace and the mesh.
    pub policies: Vec<Arc<str>>,
    /// The services that it backs, with the port that each of their ports means here.
    pub services: BTreeMap<ServiceName, Vec<ServicePort>>,
    /// Its share of traffic relative to others; 1 unless set.
    pub capacity: u32,
    /// No NetworkPolicy of any kind selects it, for certain: nothing is lost if its bytes do not cross its interface.
    pub joinable: bool,
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Tunnel {
    /// Port 15008 takes HBONE.
    Hbone,
    /// Plain TCP only.
    #[default]
    None,
}

/// Whether a workload is ready for traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready.
    Unhealthy,
}

/// What made a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    /// A CronJob.
    CronJob,
    /// A Deployment (through a ReplicaSet).
    Deployment,
    /// A Job.
    Job,
    /// The pod itself, or an owner without a name of its own on the wire.
    #[default]
    Pod,
}

/// Whether a workload shares its node's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// In its node's network namespace: its address says nothing of who it is.
    HostNetwork,
    /// In a network namespace of its own.
    #[default]
    Standard,
}

/// Where a workload runs, coarse to fine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// `topology.kubernetes.io/region` of the node.
    pub region: Arc<str>,
    /// `topology.kubernetes.io/zone` of the node.
    pub zone: Arc<str>,
    /// `topology.istio.io/subzone` of the node.
    pub subzone: Arc<str>,
}

/// How to reach a waypoint or gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    /// Who.
    pub destination: GatewayDestination,
    /// Its HBONE port.
    pub port: u16,
}

/// Which waypoint or gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    /// By address.
    Address(NetworkAddress),
    /// By service.
    Service(ServiceName),
}

impl WorkloadUid {
    /// Takes discovery's name as it is.
    #[must_use]
    pub fn new(uid: &str) -> Self {
        Self(uid.into())
    }

    /// The name of a pod: `<cluster>//Pod/<namespace>/<name>`.
    #[must_use]
    pub fn of_pod(cluster: &str, namespace: &str, name: &str) -> Self {
        Self(format!("{cluster}//Pod/{namespace}/{name}").into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if this names a pod rather than a workload entry: pods win when two claim one address.
    #[must_use]
    pub fn is_pod(&self) -> bool {
        self.0.split('/').nth(2) == Some("Pod")
    }
}

impl PodUid {
    /// Takes Kubernetes' uid as it is.
    #[must_use]
    pub fn new(uid: &str) -> Self {
        Self(uid.into())
    }

    /// The uid.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Workload {
    /// The identity that its certificate must carry.
    ///
    /// # Errors
    /// If its names could not stand in a SPIFFE id; such a workload cannot be spoken to through a tunnel.
    pub fn identity(&self) -> Result<Identity, IdentityError> {
        Identity::new(self.trust_domain.clone(), &self.namespace, &self.service_account)
    }
}

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
