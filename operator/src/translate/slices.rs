//! EndpointSlices of Services without a selector: their addresses are pods that we know, or workloads of their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use underpass_model::{
    Health, Locality, NetworkMode, ServiceName, ServicePort, Tunnel, Workload, WorkloadKind, WorkloadUid,
};
use underpass_objects::{Kind, ObjectKey, ObjectName};

use super::{
    Note, Part, Sight,
    endpoints::endpoint_ports,
    service::{KnownService, is_tcp, port_number},
    workload::locality,
};

/// The label that says whose endpoints a slice lists.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A slice of a service without a selector.
struct Slice<'a> {
    sight: &'a Sight<'a>,
    name: &'a ObjectName,
    service: &'a KnownService,
    ports: Vec<ServicePort>,
    object: &'a EndpointSlice,
}

/// The service whose endpoints a slice lists.
pub(super) fn service(name: &ObjectName, slice: &EndpointSlice) -> Option<ObjectName> {
    let of = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectName::new(&name.namespace, of))
}

/// The addresses that a slice lists.
pub(super) fn addresses(slice: &EndpointSlice) -> BTreeSet<IpAddr> {
    slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).filter_map(|text| text.parse().ok()).collect()
}

/// The workloads of a slice's addresses that are no pod's.
pub(super) fn foreign(sight: &Sight<'_>, name: &ObjectName, object: &EndpointSlice) -> Part<Vec<Workload>> {
    let mut notes = Vec::new();
    let mut workloads = BTreeMap::<WorkloadUid, Workload>::new();
    let Some(slice) = Slice::of(sight, name, object) else { return Part { value: Vec::new(), notes } };
    for endpoint in &object.endpoints {
        for text in &endpoint.addresses {
            let Ok(address) = text.parse() else {
                let object = ObjectKey { kind: Kind::EndpointSlice, name: name.clone() };
                notes.push(Note { object, field: "endpoints.addresses", problem: format!("{text:?} is no address") });
                continue;
            };
            if slice.pod(endpoint, address).is_none() {
                let workload = slice.foreign_workload(endpoint, address);
                let workload = workloads.entry(workload.uid.clone()).or_insert(workload);
                slice.add_to(&mut workload.services);
            }
        }
    }
    Part { value: workloads.into_values().collect(), notes }
}

/// The services without a selector whose slices list a pod.
pub(super) fn listing(
    sight: &Sight<'_>,
    pod: &ObjectName,
    addresses: &[IpAddr],
) -> BTreeMap<ServiceName, Vec<ServicePort>> {
    let mut services = BTreeMap::<ServiceName, Vec<ServicePort>>::new();
    let listing: BTreeSet<&ObjectName> = addresses.iter().flat_map(|address| sight.addresses.slices(address)).collect();
    for name in listing {
        let object = sight.objects.endpoint_slices.get(name);
        let Some(slice) = object.and_then(|object| Slice::of(sight, name, object)) else { continue };
        if slice.lists(pod, addresses) {
            slice.add_to(&mut services);
        }
    }
    services
}

/// What the service's ports mean at this slice's endpoints: matched by name.
fn ports(service: &KnownService, slice: &EndpointSlice) -> Option<Vec<ServicePort>> {
    let at_endpoint = slice.ports.as_deref().unwrap_or_default();
    let resolved = service.ports.iter().filter_map(|port| {
        let here = at_endpoint
            .iter()
            .find(|here| here.name.as_deref().unwrap_or_default() == port.name && is_tcp(here.protocol.as_deref()))?;
        Some(ServicePort { service_port: port.service_port, target_port: port_number(here.port?)? })
    });
    endpoint_ports(&service.ports, resolved.collect())
}

impl<'a> Slice<'a> {
    fn of(sight: &'a Sight<'a>, name: &'a ObjectName, object: &'a EndpointSlice) -> Option<Self> {
        let service = &sight.services.get(&service(name, object)?)?.value;
        let ports = ports(service, object).filter(|_| service.selector.is_none())?;
        Some(Self { sight, name, service, ports, object })
    }

    /// Adds the service, with its ports at these endpoints.
    fn add_to(&self, services: &mut BTreeMap<ServiceName, Vec<ServicePort>>) {
        let ports = services.entry(self.service.service.name.clone()).or_default();
        for port in &self.ports {
            if !ports.contains(port) {
                ports.push(*port);
            }
        }
    }

    fn lists(&self, pod: &ObjectName, addresses: &[IpAddr]) -> bool {
        self.object.endpoints.iter().any(|endpoint| {
            let mut listed = endpoint.addresses.iter().filter_map(|text| text.parse().ok());
            listed.any(|address| addresses.contains(&address) && self.pod(endpoint, address).as_ref() == Some(pod))
        })
    }

    /// The pod that an endpoint is: what it says itself, if that pod really has the address (only so can a pod on its
    /// host's network be told from the host), or else the pod that has the address for itself.
    fn pod(&self, endpoint: &Endpoint, address: IpAddr) -> Option<ObjectName> {
        let reference = endpoint.target_ref.as_ref().filter(|reference| reference.kind.as_deref() == Some("Pod"));
        let referred = reference.and_then(|reference| {
            let namespace = reference.namespace.as_deref().unwrap_or(&self.name.namespace);
            Some(ObjectName::new(namespace, reference.name.as_deref()?))
        });
        let addresses = self.sight.addresses;
        referred.filter(|pod| addresses.has(pod, &address)).or_else(|| addresses.owner(&address).cloned())
    }

    /// An address that is no pod's: something outside, reached in plaintext.
    fn foreign_workload(&self, endpoint: &Endpoint, address: IpAddr) -> Workload {
        let ObjectName { namespace, name } = self.name;
        let options = self.sight.options;
        let uid = format!("{}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{address}", options.cluster);
        let node = endpoint.node_name.as_deref().unwrap_or_default();
        let of_node = locality(self.sight.objects, node);
        // Unset means unknown, which consumers are to take as ready.
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        Workload {
            uid: WorkloadUid::new(&uid),
            name: name.as_str().into(),
            namespace: namespace.as_str().into(),
            addresses: vec![address],
            network: options.network.clone(),
            tunnel: Tunnel::None,
            trust_domain: options.trust_domain.clone(),
            service_account: "".into(),
            node: node.into(),
            canonical_name: self.service.service.short_name.clone(),
            canonical_revision: "latest".into(),
            kind: WorkloadKind::Pod,
            owner: self.service.service.short_name.clone(),
            health: if ready { Health::Healthy } else { Health::Unhealthy },
            cluster: options.cluster.clone(),
            locality: match endpoint.zone.as_deref() {
                Some(zone) => Locality { zone: zone.into(), ..of_node },
                None => of_node,
            },
            network_mode: NetworkMode::Standard,
            waypoint: None,
            policies: Vec::new(),
            services: BTreeMap::new(),
            capacity: 1,
            joinable: false,
        }
    }
}
