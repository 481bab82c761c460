use serde::de::DeserializeOwned;
use serde_json::Value;

use super::*;

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[test]
fn old_servers_and_kernels_are_refused() {
    assert_eq!(api_server("1", "29").verdict, Verdict::Failed);
    assert_eq!(api_server("1", "30+").verdict, Verdict::Fine);
    assert_eq!(api_server("2", "0").verdict, Verdict::Fine);
    let node = |system: &str, kernel: &str, runtime: &str| {
        let node = json!({ "metadata": { "name": "a" }, "status": { "nodeInfo": {
            "operatingSystem": system, "kernelVersion": kernel, "containerRuntimeVersion": runtime,
            "architecture": "", "bootID": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "",
            "osImage": "", "systemUUID": "",
        } } });
        super::node(&read(node)).verdict
    };
    for (system, kernel, runtime, verdict) in [
        ("linux", "6.18.0-1-amd64", "containerd://2.3.7", Verdict::Fine),
        ("linux", "5.4.0", "cri-o://1.31", Verdict::Fine),
        ("linux", "4.18.0-553.el8", "containerd://1.7.24", Verdict::Failed),
        ("linux", "5.15", "docker://28", Verdict::Warning),
        ("windows", "10.0.20348", "containerd://2.0", Verdict::Warning),
    ] {
        assert_eq!(node(system, kernel, runtime), verdict, "{kernel} {runtime}");
    }
}

#[test]
fn network_policies_that_close_the_port_of_tunnels_come_with_the_patch() {
    let policy =
        |spec: Value| network_policy(&read(json!({ "metadata": { "name": "db", "namespace": "shop" }, "spec": spec })));
    for (open, spec) in [
        ("no ports", json!({ "podSelector": {}, "ingress": [{}] })),
        ("nobody at all: nothing to open", json!({ "podSelector": {}, "policyTypes": ["Ingress"] })),
        (
            "outbound only",
            json!({ "podSelector": {}, "policyTypes": ["Egress"], "ingress": [{ "ports": [{ "port": 1 }] }] }),
        ),
        ("the port", json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 80 }, { "port": 15008 }] }] })),
        ("a range", json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 15000, "endPort": 15010 }] }] })),
        ("every TCP port", json!({ "podSelector": {}, "ingress": [{ "ports": [{ "protocol": "TCP" }] }] })),
    ] {
        assert_eq!(policy(spec), None, "{open}");
    }
    let from = json!([{ "podSelector": { "matchLabels": { "app": "web" } } }]);
    let found =
        policy(json!({ "podSelector": {}, "ingress": [{ "from": from, "ports": [{ "port": 5432 }] }] })).unwrap();
    assert_eq!(found.verdict, Verdict::Warning);
    let hint = found.hint.unwrap();
    let patch = hint.split('\'').nth(1).unwrap();
    let patch: Value = serde_json::from_str(patch).unwrap();
    assert_eq!(patch[0]["value"]["from"], from, "the same peers, nobody else");
    assert_eq!(patch[0]["value"]["ports"][0]["port"], 15008);
    let udp = json!({ "podSelector": {}, "ingress": [{ "ports": [{ "protocol": "UDP", "port": 15008 }] }] });
    assert!(policy(udp).is_some());
    assert!(policy(json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": "http" }] }] })).is_some());
}

#[test]
fn neighbours_are_told_of() {
    let config = |data: Value| cilium(&read(json!({ "data": data }))).verdict;
    assert_eq!(config(json!({ "cni-exclusive": "true" })), Verdict::Warning);
    assert_eq!(config(json!({ "cni-exclusive": "false", "bpf-lb-sock": "true" })), Verdict::Warning);
    let host_only = json!({ "cni-exclusive": "false", "bpf-lb-sock": "true", "bpf-lb-sock-hostns-only": "true" });
    assert_eq!(config(host_only), Verdict::Fine);
    let namespaces: Vec<Namespace> =
        ["default", "istio-system"].map(|name| read(json!({ "metadata": { "name": name } }))).into();
    assert_eq!(other_meshes(&namespaces).len(), 1);
}

#[test]
fn one_minor_release_either_way_is_fine() {
    let agents = |image: &str| -> DaemonSet {
        read(json!({ "metadata": {}, "spec": { "selector": {}, "template": {
            "spec": { "containers": [{ "name": "agent", "image": image }] } } } }))
    };
    let verdict = |image: &str| skew(&agents(image), "0.3.0").map(|finding| finding.verdict);
    assert_eq!(verdict("r.example:5000/agent:0.2.9"), Some(Verdict::Fine));
    assert_eq!(verdict("agent:0.4.0"), Some(Verdict::Fine));
    assert_eq!(verdict("agent:0.5.0"), Some(Verdict::Warning));
    assert_eq!(verdict("agent:1.3.0"), Some(Verdict::Warning));
    assert_eq!(verdict("agent:f00baa"), None);
}
