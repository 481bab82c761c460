//! Which pods back which services: selectors joined with pods, named ports resolved in each.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use underpass_model::{ServiceName, ServicePort};
use underpass_objects::pod;

use super::{
    Sight, in_namespace,
    service::{KnownService, Port, Target, is_tcp, port_number},
};

/// The services of its namespace whose selector a pod matches.
pub(super) fn selecting(sight: &Sight<'_>, pod: &Pod) -> BTreeMap<ServiceName, Vec<ServicePort>> {
    // Without an address it cannot be called, so it backs nothing.
    if pod::addresses(pod).is_empty() {
        return BTreeMap::new();
    }
    let nearby = in_namespace(sight.services, &pod::name(pod).namespace).map(|(_, part)| &part.value);
    let selecting = nearby.filter(|service| selects(service.selector.as_ref(), pod));
    selecting.filter_map(|service| Some((service.service.name.clone(), ports(service, pod)?))).collect()
}

/// Whether labels select a pod; without any, EndpointSlices name the endpoints.
pub(super) fn selects(selector: Option<&BTreeMap<String, String>>, pod: &Pod) -> bool {
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
