//! The kubelet's probes tell the truth about a captured pod, before and after its application listens.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::Value;
use underpass_e2e::{MESH, SHORT, get, said, serve, server, world};
use underpass_lab::{Place, Pod, PodSpec, Probe, eventually};

#[test]
fn probes_fail_until_the_application_listens_and_succeed_then() {
    let world = world();
    for node in ["node-a", "node-b"] {
        let pod = world.lab.pod_add(&PodSpec::new(node, MESH, &format!("probed-{node}"))).unwrap();
        for address in [SocketAddr::new(pod.v4().unwrap(), 8080), SocketAddr::new(pod.v6().unwrap(), 8080)] {
            for probe in probes(address) {
                let answer = world.lab.probe(node, &probe).unwrap();
                assert!(!answer.success, "{probe:?} succeeded with nobody listening: {answer:?}");
            }
        }
        serve(&world.lab, &pod).unwrap();
        for address in [SocketAddr::new(pod.v4().unwrap(), 8080), SocketAddr::new(pod.v6().unwrap(), 8080)] {
            for probe in probes(address) {
                let answer = world.lab.probe(node, &probe).unwrap();
                assert!(answer.success, "{probe:?}: {answer:?}");
            }
        }
        world.lab.pod_delete(&pod.name).unwrap();
    }
}

fn probes(address: SocketAddr) -> [Probe; 2] {
    [Probe::TcpSocket { address }, Probe::HttpGet { address, path: "/healthz".to_owned() }]
}

/// The newest access line on a connection into a pod, when there are so many.
fn newest(server: &Pod, count: usize) -> Value {
    let world = world();
    eventually(SHORT, "an access line", || {
        let lines = world.lab.access_log(&server.node)?;
        let into = |line: &&Value| {
            let to: Option<SocketAddr> = said(line, "dst.addr").parse().ok();
            said(line, "direction") == "inbound" && to.is_some_and(|to| server.addresses.contains(&to.ip()))
        };
        let lines: Vec<&Value> = lines.iter().filter(into).collect();
        ensure!(lines.len() == count, "{count} awaited, there are {lines:#?}");
        Ok(lines.last().copied().cloned().unwrap())
    })
    .unwrap()
}

#[test]
fn the_kubelet_the_node_and_what_it_forwards_are_told_apart() {
    let world = world();
    let lab = &world.lab;
    let pod = server(lab, &PodSpec::new("node-b", MESH, "told-apart")).unwrap();
    let node = Place::node("node-b");
    let mut count = 0;
    let mut origin = || {
        count += 1;
        said(&newest(&pod, count), "src.origin").to_owned()
    };
    for address in [SocketAddr::new(pod.v4().unwrap(), 8080), SocketAddr::new(pod.v6().unwrap(), 8080)] {
        let probe = Probe::HttpGet { address, path: "/healthz".to_owned() };
        assert!(lab.probe("node-b", &probe).unwrap().success);
        assert_eq!(origin(), "kubelet", "{address}");
        get(lab, node.clone(), &format!("http://{address}/")).unwrap();
        assert_eq!(origin(), "host", "{address}");
    }

    // As a node port does it: the node leads a port of its own to the pod. Once with the caller's address kept, once in
    // the node's own name, which makes it look like the kubelet's.
    let web = format!("{}:8080", pod.v4().unwrap());
    for (port, masquerade) in [(30_080, false), (30_081, true)] {
        let rules = format!(
            "add table ip port{port}; \
             add chain ip port{port} in {{ type nat hook prerouting priority -110; }}; \
             add rule ip port{port} in tcp dport {port} dnat to {web}; \
             add chain ip port{port} out {{ type nat hook postrouting priority 90; }}; \
             {}",
            if masquerade {
                format!("add rule ip port{port} out meta l4proto tcp ct original proto-dst {port} masquerade")
            } else {
                String::new()
            }
        );
        lab.run(node.clone(), &["nft", rules.trim_end().trim_end_matches(';')], SHORT).unwrap().ok().unwrap();
        let answer = get(lab, Place::Outside, &format!("http://172.30.0.12:{port}/")).unwrap();
        assert_eq!(answer.ends_with("you are 172.30.0.100"), !masquerade, "{answer}");
        assert_eq!(origin(), "remote", "masquerade: {masquerade}");
    }
    lab.pod_delete(&pod.name).unwrap();
}
