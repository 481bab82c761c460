//! The kubelet's probes tell the truth about a captured pod, before and after its application listens.

use std::net::SocketAddr;

use underpass_e2e::{MESH, serve, world};
use underpass_lab::{PodSpec, Probe};

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
