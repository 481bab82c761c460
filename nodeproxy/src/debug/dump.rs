//! `/config_dump`: everything this node proxy knows and holds, but for secrets.

use serde_json::{Value, json};
use underpass_model::{GatewayAddress, GatewayDestination, Health, Service, ServicePort, Tunnel, Workload};

use super::Shown;

/// The page.
pub(super) fn page(node: &str, shown: &Shown) -> Value {
    let view = shown.mesh.view();
    let counts = view.counts();
    json!({
        "node": node,
        "version": env!("CARGO_PKG_VERSION"),
        "pods": shown.pods.all().values().map(|pod| json!({
            "uid": pod.uid.as_str(),
            "namespace": &*pod.namespace,
            "name": &*pod.name,
            "identity": pod.identity.to_string(),
            "connections": pod.connections.live(),
            "tunnels": pod.connections.open().saturating_sub(pod.connections.live()),
        })).collect::<Vec<_>>(),
        "certificates": shown.certificates.status(),
        "view": {
            "version": view.version(),
            "complete": view.is_complete(),
            "workloads": counts.workloads,
            "services": counts.services,
            "authorizations": counts.authorizations,
        },
        "workloads": view.workloads().map(|one| workload(one)).collect::<Vec<_>>(),
        "services": view.services().map(|one| service(one)).collect::<Vec<_>>(),
    })
}

fn workload(workload: &Workload) -> Value {
    let services = workload.services.iter().map(|(name, own)| (name.to_string(), ports(own)));
    json!({
        "uid": workload.uid.as_str(),
        "namespace": &*workload.namespace,
        "name": &*workload.name,
        "owner": &*workload.owner,
        "service_account": &*workload.service_account,
        "trust_domain": workload.trust_domain.to_string(),
        "canonical_service": &*workload.canonical_name,
        "canonical_revision": &*workload.canonical_revision,
        "addresses": workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "network": workload.network.to_string(),
        "cluster": &*workload.cluster,
        "node": &*workload.node,
        "protocol": match workload.tunnel { Tunnel::Hbone => "HBONE", Tunnel::None => "TCP" },
        "healthy": workload.health == Health::Healthy,
        "waypoint": workload.waypoint.as_ref().map(gateway),
        "policies": workload.policies.iter().map(|name| &**name).collect::<Vec<_>>(),
        "services": services.collect::<serde_json::Map<_, _>>(),
    })
}

fn service(service: &Service) -> Value {
    let address = |address: &underpass_model::NetworkAddress| address.to_string();
    json!({
        "namespace": &*service.name.namespace,
        "hostname": &*service.name.hostname,
        "name": &*service.short_name,
        "addresses": service.addresses.iter().map(address).collect::<Vec<_>>(),
        "ports": ports(&service.ports),
        "waypoint": service.waypoint.as_ref().map(gateway),
        "session_affinity_seconds": service.load_balancing.affinity.map(|time| time.as_secs()),
    })
}

fn ports(ports: &[ServicePort]) -> Value {
    ports.iter().map(|port| json!({"port": port.service_port, "target": port.target_port})).collect()
}

fn gateway(gateway: &GatewayAddress) -> String {
    match &gateway.destination {
        GatewayDestination::Address(address) => format!("{address} port {}", gateway.port),
        GatewayDestination::Service(name) => format!("{name} port {}", gateway.port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use underpass_discovery::testing;

    #[test]
    fn shows_what_a_person_looks_for() {
        let name = testing::service_name("shop", "web");
        let shown = workload(
            &testing::workload("shop", "web-1").address("10.0.0.1").hbone().backs(&name, &[(80, 8080)]).build(),
        );
        assert_eq!(shown["addresses"], json!(["10.0.0.1"]));
        assert_eq!(shown["protocol"], "HBONE");
        assert_eq!(shown["services"][name.to_string()], json!([{"port": 80, "target": 8080}]));
        let shown = service(&testing::service("shop", "web").address("10.96.0.1").ports(&[(80, 0)]).build());
        assert_eq!(shown["hostname"], "web.shop.svc.cluster.local");
    }
}
