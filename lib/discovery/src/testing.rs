//! Builders with defaults: a test names only what matters to it.

use std::{collections::BTreeMap, net::IpAddr};

use underpass_model::{
    GatewayAddress, GatewayDestination, Health, LoadBalancing, Locality, NetworkAddress, NetworkMode, NetworkRange,
    Service, ServiceName, ServicePort, TrustDomain, Tunnel, Visibility, Workload, WorkloadKind, WorkloadUid, names,
};

/// An address in the cluster's own network.
///
/// # Panics
/// If the text is no address.
#[must_use]
pub fn at(address: &str) -> NetworkAddress {
    NetworkAddress { network: "".into(), address: ip(address) }
}

/// A pod that is ready, takes plaintext, has no address and runs on `node-1` as `default`.
#[must_use]
pub fn workload(namespace: &str, name: &str) -> WorkloadBuilder {
    WorkloadBuilder(Workload {
        uid: WorkloadUid::of_pod(names::DEFAULT_CLUSTER, namespace, name),
        name: name.into(),
        namespace: namespace.into(),
        addresses: Vec::new(),
        network: "".into(),
        tunnel: Tunnel::None,
        trust_domain: TrustDomain::default(),
        service_account: "default".into(),
        node: "node-1".into(),
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        kind: WorkloadKind::Pod,
        owner: name.into(),
        health: Health::Healthy,
        cluster: names::DEFAULT_CLUSTER.into(),
        locality: Locality::default(),
        network_mode: NetworkMode::Standard,
        waypoint: None,
        policies: Vec::new(),
        services: BTreeMap::new(),
        capacity: 1,
        joinable: false,
    })
}

/// A public service `name.namespace.svc.cluster.local` without addresses and ports.
#[must_use]
pub fn service(namespace: &str, name: &str) -> ServiceBuilder {
    ServiceBuilder(Service {
        name: service_name(namespace, name),
        short_name: name.into(),
        addresses: Vec::new(),
        ranges: Vec::new(),
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: LoadBalancing::default(),
        canonical: false,
        visibility: Visibility::Public,
    })
}

/// The name of a Kubernetes service in `cluster.local`.
#[must_use]
pub fn service_name(namespace: &str, name: &str) -> ServiceName {
    ServiceName::new(namespace, &format!("{name}.{namespace}.svc.cluster.local"))
}

/// Makes a [`Workload`].
#[derive(Clone, Debug)]
pub struct WorkloadBuilder(Workload);

impl WorkloadBuilder {
    /// Selected by no NetworkPolicy.
    #[must_use]
    pub fn joinable(mut self) -> Self {
        self.0.joinable = true;
        self
    }

    /// With this name in discovery instead of the pod's.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> Self {
        self.0.uid = WorkloadUid::new(uid);
        self
    }

    /// With one more address.
    ///
    /// # Panics
    /// If the text is no address.
    #[must_use]
    pub fn address(mut self, address: &str) -> Self {
        self.0.addresses.push(ip(address));
        self
    }

    /// On a network of its own.
    #[must_use]
    pub fn network(mut self, network: &str) -> Self {
        self.0.network = network.into();
        self
    }

    /// Captured: takes HBONE.
    #[must_use]
    pub fn hbone(mut self) -> Self {
        self.0.tunnel = Tunnel::Hbone;
        self
    }

    /// In another trust domain.
    ///
    /// # Panics
    /// If the text is no trust domain.
    #[must_use]
    #[expect(clippy::expect_used, reason = "for tests only")]
    pub fn trust_domain(mut self, name: &str) -> Self {
        self.0.trust_domain = TrustDomain::new(name).expect("a trust domain");
        self
    }

    /// As this service account.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        self.0.service_account = account.into();
        self
    }

    /// On this node.
    #[must_use]
    pub fn node(mut self, node: &str) -> Self {
        self.0.node = node.into();
        self
    }

    /// In this place.
    #[must_use]
    pub fn locality(mut self, region: &str, zone: &str) -> Self {
        self.0.locality = Locality { region: region.into(), zone: zone.into(), subzone: "".into() };
        self
    }

    /// Not ready.
    #[must_use]
    pub fn unhealthy(mut self) -> Self {
        self.0.health = Health::Unhealthy;
        self
    }

    /// In its node's network.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.0.network_mode = NetworkMode::HostNetwork;
        self
    }

    /// With this share of traffic.
    #[must_use]
    pub fn capacity(mut self, capacity: u32) -> Self {
        self.0.capacity = capacity;
        self
    }

    /// Backing a service with these pairs of service and target port.
    #[must_use]
    pub fn backs(mut self, service: &ServiceName, ports: &[(u16, u16)]) -> Self {
        self.0.services.insert(service.clone(), service_ports(ports));
        self
    }

    /// Behind the waypoint that is this service.
    #[must_use]
    pub fn waypoint(mut self, service: ServiceName) -> Self {
        self.0.waypoint = Some(waypoint(service));
        self
    }

    /// The workload.
    #[must_use]
    pub fn build(self) -> Workload {
        self.0
    }
}

/// Makes a [`Service`].
#[derive(Clone, Debug)]
pub struct ServiceBuilder(Service);

impl ServiceBuilder {
    /// With one more virtual address.
    ///
    /// # Panics
    /// If the text is no address.
    #[must_use]
    pub fn address(mut self, address: &str) -> Self {
        self.0.addresses.push(at(address));
        self
    }

    /// With one more range of virtual addresses.
    ///
    /// # Panics
    /// If the text is no range.
    #[must_use]
    #[expect(clippy::expect_used, reason = "for tests only")]
    pub fn range(mut self, range: &str) -> Self {
        self.0.ranges.push(NetworkRange { network: "".into(), range: range.parse().expect("a range") });
        self
    }

    /// With these pairs of service and target port.
    #[must_use]
    pub fn ports(mut self, ports: &[(u16, u16)]) -> Self {
        self.0.ports = service_ports(ports);
        self
    }

    /// Preferred over others of equal claim.
    #[must_use]
    pub fn canonical(mut self) -> Self {
        self.0.canonical = true;
        self
    }

    /// Seen by its own namespace only.
    #[must_use]
    pub fn namespace_only(mut self) -> Self {
        self.0.visibility = Visibility::Namespace;
        self
    }

    /// With endpoints chosen like this.
    #[must_use]
    pub fn load_balancing(mut self, balancing: LoadBalancing) -> Self {
        self.0.load_balancing = balancing;
        self
    }

    /// Behind the waypoint that is this service.
    #[must_use]
    pub fn waypoint(mut self, service: ServiceName) -> Self {
        self.0.waypoint = Some(waypoint(service));
        self
    }

    /// The service.
    #[must_use]
    pub fn build(self) -> Service {
        self.0
    }
}

#[expect(clippy::expect_used, reason = "for tests only")]
fn ip(address: &str) -> IpAddr {
    address.parse().expect("an IP address")
}

fn service_ports(ports: &[(u16, u16)]) -> Vec<ServicePort> {
    ports.iter().map(|&(service_port, target_port)| ServicePort { service_port, target_port }).collect()
}

fn waypoint(service: ServiceName) -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Service(service), port: names::HBONE_PORT }
}
