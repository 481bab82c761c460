//! What a cluster without a mesh does for its services: virtual addresses by NAT on every node, and names.
//!
//! Only for pods that are not captured: the mesh gets no help from here. Pure functions of the manifests; whoever calls
//! them loads the result.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;

use crate::topology::{SERVICES_V4, SERVICES_V6};

const TABLE: &str = "inet lab-services";

/// One port of a service with everything that answers on it.
#[derive(Debug, PartialEq, Eq)]
struct Front {
    address: SocketAddr,
    backends: Vec<SocketAddr>,
}

/// The ruleset of a node that gives services their virtual addresses. `bridged_nat` tells whether NAT sees traffic
/// between pods of one node; if not, such traffic must come back by the node, so its source becomes the node's.
pub(crate) fn rules(services: &[Value], pods: &[Value], bridged_nat: bool) -> String {
    let fronts: Vec<Front> = services.iter().flat_map(|service| fronts(service, pods)).collect();
    let mut chains = String::new();
    let mut doors: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut loops: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (number, front) in fronts.iter().enumerate().filter(|(_, front)| !front.backends.is_empty()) {
        let family = family(front.address.ip());
        let (address, port) = (front.address.ip(), front.address.port());
        doors.entry(family).or_default().push(format!("{address} . {port} : goto service{number}"));
        let turns: Vec<String> =
            (0..front.backends.len()).map(|turn| format!("{turn} : goto service{number}-{turn}")).collect();
        let count = front.backends.len();
        // Writing to a String cannot fail.
        for (turn, backend) in front.backends.iter().enumerate() {
            writeln!(chains, "  chain service{number}-{turn} {{ meta l4proto tcp dnat {family} to {backend}; }}").ok();
            loops.entry(family).or_default().push(format!("{0} . {0}", backend.ip()));
        }
        let turns = turns.join(", ");
        writeln!(chains, "  chain service{number} {{ numgen random mod {count} vmap {{ {turns} }}; }}").ok();
    }
    let doors: String = doors
        .iter()
        .map(|(family, doors)| format!("    {family} daddr . tcp dport vmap {{ {} }}\n", doors.join(", ")))
        .collect();
    format!(
        "table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n{chains}  chain doors {{\n{doors}  }}\n\
         \x20 chain prerouting {{ type nat hook prerouting priority -100; policy accept; jump doors; }}\n\
         \x20 chain output {{ type nat hook output priority -100; policy accept; jump doors; }}\n\
         \x20 chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n{}  }}\n\
         \x20 chain nobody {{ ip daddr {SERVICES_V4} reject; ip6 daddr {SERVICES_V6} reject; }}\n\
         \x20 chain forward {{ type filter hook forward priority filter; policy accept; jump nobody; }}\n\
         \x20 chain local {{ type filter hook output priority filter; policy accept; jump nobody; }}\n}}\n",
        masquerades(&loops, bridged_nat)
    )
}

/// A pod that reaches itself through a service would drop an answer from its own address, so that source is changed.
fn masquerades(loops: &BTreeMap<&str, Vec<String>>, bridged_nat: bool) -> String {
    if !bridged_nat {
        return "    ct status dnat iifname \"cni0\" oifname \"cni0\" masquerade\n".to_owned();
    }
    let distinct = |pairs: &[String]| {
        let mut pairs = pairs.to_vec();
        pairs.sort();
        pairs.dedup();
        pairs.join(", ")
    };
    loops
        .iter()
        .map(|(family, pairs)| {
            format!("    ct status dnat {family} saddr . {family} daddr {{ {} }} masquerade\n", distinct(pairs))
        })
        .collect()
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

/// The hosts file of a Kubernetes namespace, or without one that of nodes and of hosts outside.
pub(crate) fn hosts(namespace: Option<&str>, services: &[Value], pods: &[Value]) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost\n");
    let is_service = |own: &str, short: &str| {
        services.iter().any(|one| text_at(one, "/metadata/namespace") == own && text_at(one, "/metadata/name") == short)
    };
    let mut name = |address: IpAddr, object: &Value, kind: &str| {
        let (own, short) = (text_at(object, "/metadata/namespace"), text_at(object, "/metadata/name"));
        let mut names = format!("{short}.{own}.{kind}.cluster.local {short}.{own}.{kind}");
        // A service's name wins over a pod's, which a cluster knows by no short name at all.
        if kind == "svc" || !is_service(own, short) {
            let local = if namespace == Some(own) { format!(" {short}") } else { String::new() };
            names.push_str(&format!(" {short}.{own}{local}"));
        }
        // Writing to a String cannot fail.
        writeln!(text, "{address} {names}").ok();
    };
    for service in services {
        let virtual_addresses = virtual_addresses(service);
        if virtual_addresses.is_empty() {
            for pod in pods.iter().filter(|pod| selects(service, pod) && is_ready(pod)) {
                pod_addresses(pod).into_iter().for_each(|address| name(address, service, "svc"));
            }
        }
        virtual_addresses.into_iter().for_each(|address| name(address, service, "svc"));
    }
    for pod in pods {
        pod_addresses(pod).into_iter().for_each(|address| name(address, pod, "pod"));
    }
    text
}

fn fronts(service: &Value, pods: &[Value]) -> Vec<Front> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let ready: Vec<&Value> = pods.iter().filter(|pod| selects(service, pod) && is_ready(pod)).collect();
    let mut found = Vec::new();
    for address in virtual_addresses(service) {
        for port in ports {
            let Some(number) = port.get("port").and_then(as_port) else { continue };
            let target = port.get("targetPort").unwrap_or(&Value::Null);
            let backend = |pod: &&Value| {
                let at = pod_addresses(pod).into_iter().find(|at| at.is_ipv4() == address.is_ipv4())?;
                Some(SocketAddr::new(at, target_port(pod, target, number)?))
            };
            let backends = ready.iter().filter_map(backend).collect();
            found.push(Front { address: SocketAddr::new(address, number), backends });
        }
    }
    found
}

/// A service's target: its own port, another, or one that the pod gives a name.
fn target_port(pod: &Value, target: &Value, service_port: u16) -> Option<u16> {
    let Some(name) = target.as_str() else { return as_port(target).or(Some(service_port)) };
    let containers = pod.pointer("/spec/containers")?.as_array()?;
    let ports = containers.iter().filter_map(|container| container.get("ports")?.as_array()).flatten();
    ports
        .filter(|port| port.get("name").and_then(Value::as_str) == Some(name))
        .find_map(|port| as_port(port.get("containerPort")?))
}

fn as_port(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

/// The addresses of a service.
pub(crate) fn virtual_addresses(service: &Value) -> Vec<IpAddr> {
    let several = service.pointer("/spec/clusterIPs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let one = service.pointer("/spec/clusterIP").filter(|_| several.is_empty());
    several.iter().chain(one).filter_map(|address| address.as_str()?.parse().ok()).collect()
}

fn pod_addresses(pod: &Value) -> Vec<IpAddr> {
    let several = pod.pointer("/status/podIPs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    several.iter().filter_map(|entry| entry.get("ip")?.as_str()?.parse().ok()).collect()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    pod.pointer("/metadata/deletionTimestamp").is_none()
        && conditions.iter().any(|one| text_at(one, "/type") == "Ready" && text_at(one, "/status") == "True")
}

fn selects(service: &Value, pod: &Value) -> bool {
    let Some(selector) = service.pointer("/spec/selector").and_then(Value::as_object) else { return false };
    let labels = pod.pointer("/metadata/labels");
    text_at(service, "/metadata/namespace") == text_at(pod, "/metadata/namespace")
        && !selector.is_empty()
        && selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

fn text_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, ip: &str, ready: &str) -> Value {
        json!({
            "metadata": { "namespace": "shop", "name": name, "labels": { "app": "web" } },
            "spec": { "containers": [{ "ports": [{ "name": "http", "containerPort": 8080 }] }] },
            "status": { "podIPs": [{ "ip": ip }], "conditions": [{ "type": "Ready", "status": ready }] },
        })
    }

    fn service(cluster_ip: &str) -> Value {
        json!({
            "metadata": { "namespace": "shop", "name": "web" },
            "spec": { "clusterIP": cluster_ip, "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] },
        })
    }

    #[test]
    fn a_virtual_address_leads_to_ready_pods_only() {
        let pods = [pod("a", "10.61.1.2", "True"), pod("b", "10.61.1.3", "False")];
        let fronts = fronts(&service("10.96.0.10"), &pods);
        let expected =
            Front { address: "10.96.0.10:80".parse().unwrap(), backends: vec!["10.61.1.2:8080".parse().unwrap()] };
        assert_eq!(fronts, [expected]);
    }

    #[test]
    fn a_headless_service_is_the_names_of_its_pods() {
        let pods = [pod("a", "10.61.1.2", "True"), pod("b", "10.61.1.3", "False")];
        assert!(fronts(&service("None"), &pods).is_empty());
        let hosts = hosts(Some("shop"), &[service("None")], &pods);
        assert!(hosts.contains("10.61.1.2 web.shop.svc.cluster.local web.shop.svc web.shop web\n"), "{hosts}");
        assert!(!hosts.contains("10.61.1.3 web.shop.svc"), "{hosts}");
    }

    #[test]
    fn a_services_name_wins_over_a_pods() {
        let pods = [pod("web", "10.61.1.2", "True")];
        let hosts = hosts(Some("shop"), &[service("10.96.0.10")], &pods);
        let known: Vec<&str> = hosts.lines().filter(|line| line.ends_with(" web.shop web")).collect();
        assert_eq!(known, ["10.96.0.10 web.shop.svc.cluster.local web.shop.svc web.shop web"]);
    }

    #[test]
    fn short_names_are_known_in_their_own_namespace_only() {
        let pods = [pod("a", "10.61.1.2", "True")];
        assert!(hosts(Some("shop"), &[], &pods).contains(" a.shop a\n"));
        assert!(hosts(Some("other"), &[], &pods).contains(" a.shop\n"));
    }
}
