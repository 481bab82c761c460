//! Which pods back which services: selectors joined with pods, named ports resolved in each.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use underpass_model::{ServicePort, Workload, WorkloadUid};
use underpass_objects::{ObjectName, pod};

use super::{
    Note,
    service::{KnownService, Port, Target, is_tcp, port_number},
    workload::PodWorkload,
};

/// What a further source of endpoints adds to.
pub(super) struct Join<'a> {
    pub(super) workloads: &'a mut BTreeMap<WorkloadUid, Workload>,
    pub(super) notes: &'a mut Vec<Note>,
}

/// Gives each pod the services whose selector it matches.
pub(super) fn join(
    pods: Vec<PodWorkload<'_>>,
    services: &BTreeMap<ObjectName, KnownService>,
) -> BTreeMap<WorkloadUid, Workload> {
    let mut by_namespace: BTreeMap<&str, Vec<&KnownService>> = BTreeMap::new();
    for (name, service) in services {
        by_namespace.entry(&name.namespace).or_default().push(service);
    }
    let mut workloads = BTreeMap::new();
    for PodWorkload { pod, mut workload } in pods {
        let nearby = by_namespace.get(&*workload.namespace).map(Vec::as_slice).unwrap_or_default();
        // Without an address it cannot be called, so it backs nothing.
        let callable = nearby.iter().filter(|_| !workload.addresses.is_empty());
        workload.services = callable
            .filter(|service| selects(service, pod))
            .filter_map(|service| Some((service.service.name.clone(), ports(service, pod)?)))
            .collect();
        workloads.insert(workload.uid.clone(), workload);
    }
    workloads
}

fn selects(service: &KnownService, pod: &Pod) -> bool {
    let selector = service.selector.as_ref();
    selector.is_some_and(|selector| selector.iter().all(|(key, value)| pod::label(pod, key) == Some(value)))
}

/// What the service's ports mean at the pod; `None` if the pod has none of them and so is no endpoint.
fn ports(service: &KnownService, pod: &Pod) -> Option<Vec<ServicePort>> {
    let resolved = service.ports.iter().filter_map(|port| {
        let target_port = match &port.target {
            Target::Number(number) => *number,
            Target::Name(name) => named_port(pod, name)?,
        };
        Some(ServicePort { service_port: port.service_port, target_port })
    });
    endpoint_ports(&service.ports, resolved.collect())
}

/// A headless service without ports has endpoints all the same; any other endpoint needs at least one port.
pub(super) fn endpoint_ports(of_service: &[Port], resolved: Vec<ServicePort>) -> Option<Vec<ServicePort>> {
    (of_service.is_empty() || !resolved.is_empty()).then_some(resolved)
}

/// The container port of that name; of sidecars (init containers that stay) too.
fn named_port(pod: &Pod, name: &str) -> Option<u16> {
    let spec = pod.spec.as_ref()?;
    let stays = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(stays);
    let mut ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let port = ports.find(|port| port.name.as_deref() == Some(name) && is_tcp(port.protocol.as_deref()))?;
    port_number(port.container_port)
}
