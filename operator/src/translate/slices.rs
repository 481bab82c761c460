//! EndpointSlices of Services without a selector: their addresses are pods that we know, or workloads of their own.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use underpass_model::{Health, Locality, NetworkMode, ServicePort, Tunnel, Workload, WorkloadKind, WorkloadUid};
use underpass_objects::{Kind, ObjectKey, ObjectName, Objects};

use super::{
    Note, TranslateOptions,
    endpoints::{Join, endpoint_ports},
    service::{KnownService, is_tcp, port_number},
    workload::locality,
};

/// The label that says whose endpoints a slice lists.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A slice and what it belongs to.
struct Slice<'a> {
    name: &'a ObjectName,
    service: &'a KnownService,
    ports: Vec<ServicePort>,
    objects: &'a Objects,
    options: &'a TranslateOptions,
}

/// Adds the endpoints of every slice whose service has no selector.
pub(super) fn join(
    objects: &Objects,
    options: &TranslateOptions,
    services: &BTreeMap<ObjectName, KnownService>,
    join: &mut Join<'_>,
) {
    let pods = pods_by_address(join.workloads);
    for (name, object) in &objects.endpoint_slices {
        let labels = object.metadata.labels.as_ref();
        let Some(of) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else { continue };
        let service = services.get(&ObjectName::new(&name.namespace, of));
        let Some(service) = service.filter(|service| service.selector.is_none()) else { continue };
        let Some(ports) = ports(service, object) else { continue };
        let slice = Slice { name, service, ports, objects, options };
        for endpoint in &object.endpoints {
            slice.add(endpoint, &pods, join);
        }
    }
}

/// Pods that an address alone identifies.
fn pods_by_address(workloads: &BTreeMap<WorkloadUid, Workload>) -> HashMap<IpAddr, WorkloadUid> {
    let own = workloads.values().filter(|workload| workload.network_mode == NetworkMode::Standard);
    own.flat_map(|workload| workload.addresses.iter().map(|address| (*address, workload.uid.clone()))).collect()
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

impl Slice<'_> {
    fn add(&self, endpoint: &Endpoint, pods: &HashMap<IpAddr, WorkloadUid>, join: &mut Join<'_>) {
        for text in &endpoint.addresses {
            let Ok(address) = text.parse() else {
                let object = ObjectKey { kind: Kind::EndpointSlice, name: self.name.clone() };
                let problem = format!("{text:?} is no address");
                join.notes.push(Note { object, field: "endpoints.addresses", problem });
                continue;
            };
            let pod = self.referred_pod(endpoint, address, join.workloads).or_else(|| pods.get(&address).cloned());
            let workload = match pod.and_then(|uid| join.workloads.get_mut(&uid)) {
                Some(pod) => pod,
                None => {
                    let own = self.own_workload(endpoint, address);
                    join.workloads.entry(own.uid.clone()).or_insert(own)
                }
            };
            let ports = workload.services.entry(self.service.service.name.clone()).or_default();
            for port in &self.ports {
                if !ports.contains(port) {
                    ports.push(*port);
                }
            }
        }
    }

    /// The pod that the endpoint says it is, if it really has that address: only so can a pod on its host's network be
    /// told from the host.
    fn referred_pod(
        &self,
        endpoint: &Endpoint,
        address: IpAddr,
        workloads: &BTreeMap<WorkloadUid, Workload>,
    ) -> Option<WorkloadUid> {
        let reference = endpoint.target_ref.as_ref().filter(|reference| reference.kind.as_deref() == Some("Pod"))?;
        let namespace = reference.namespace.as_deref().unwrap_or(&self.name.namespace);
        let uid = WorkloadUid::of_pod(&self.options.cluster, namespace, reference.name.as_deref()?);
        workloads.get(&uid)?.addresses.contains(&address).then_some(uid)
    }

    /// An address that is no pod's: something outside, reached in plaintext.
    fn own_workload(&self, endpoint: &Endpoint, address: IpAddr) -> Workload {
        let ObjectName { namespace, name } = self.name;
        let uid = format!("{}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{address}", self.options.cluster);
        let node = endpoint.node_name.as_deref().unwrap_or_default();
        let of_node = locality(self.objects, node);
        // Unset means unknown, which consumers are to take as ready.
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        Workload {
            uid: WorkloadUid::new(&uid),
            name: name.as_str().into(),
            namespace: namespace.as_str().into(),
            addresses: vec![address],
            network: self.options.network.clone(),
            tunnel: Tunnel::None,
            trust_domain: self.options.trust_domain.clone(),
            service_account: "".into(),
            node: node.into(),
            canonical_name: self.service.service.short_name.clone(),
            canonical_revision: "latest".into(),
            kind: WorkloadKind::Pod,
            owner: self.service.service.short_name.clone(),
            health: if ready { Health::Healthy } else { Health::Unhealthy },
            cluster: self.options.cluster.clone(),
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
