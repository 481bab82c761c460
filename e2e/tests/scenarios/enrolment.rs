//! Running pods are enrolled and un-enrolled under load: no call fails, and an old connection lives through both.

use std::time::Duration;

use underpass_e2e::{MESH, PLAIN, SHORT, alone, server, wait_authenticated};
use underpass_lab::{Lab, Pod, PodSpec, Target, until};
use underpass_model::names::{ENROLLED, HBONE_PORT, MESH_LABEL, NOT_ENROLLED};

/// How long load goes on around each change.
const AROUND: Duration = Duration::from_secs(1);

fn redis(lab: &Lab, pod: &Pod) {
    let argv = [
        "redis-server",
        "--bind",
        "*",
        "-::*",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        "/tmp",
    ];
    let process = lab.spawn(pod.place(), "redis", &argv).unwrap();
    process.wait_for_output("eady to accept", SHORT).unwrap();
}

fn target(server: &Pod) -> Target {
    let host = server.v4().unwrap().to_string();
    Target { http: (host.clone(), 8080), callers: 4, redis: Some((host, 6379)) }
}

#[test]
fn a_namespace_is_enrolled_and_unenrolled_under_load_without_a_failed_call() {
    let lab = alone().unwrap();
    let client = server(&lab, &PodSpec::new("node-a", PLAIN, "client")).unwrap();
    let near = server(&lab, &PodSpec::new("node-a", PLAIN, "near")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", PLAIN, "far")).unwrap();
    let pods = [&client, &near, &far];
    redis(&lab, &near);
    redis(&lab, &far);
    let loads = [("load-near", &near), ("load-far", &far)]
        .map(|(name, pod)| lab.load(client.place(), name, &target(pod)).unwrap());
    loads[0].run_on(AROUND);

    lab.label_namespace(PLAIN, MESH_LABEL, Some(ENROLLED)).unwrap();
    for pod in pods {
        lab.wait_captured(pod, true, SHORT).unwrap();
    }
    wait_authenticated(&lab, &client, &far).unwrap();
    loads[0].run_on(AROUND);
    let wire = lab.capture_fabric().unwrap();
    loads[0].run_on(AROUND);
    let wire = wire.finish().unwrap();
    assert!(wire.on_port(HBONE_PORT).bytes() > 0, "nothing was encrypted");
    assert_eq!(wire.on_port(8080).opened(), 0, "new connections were in plaintext after enrolment");

    // The captured connection made now shall live through un-enrolment.
    let captured = lab.load(client.place(), "load-captured", &target(&far)).unwrap();
    captured.run_on(AROUND);
    lab.label_namespace(PLAIN, MESH_LABEL, None).unwrap();
    until(SHORT, "new connections to be plain again", || {
        let wire = lab.capture_fabric().unwrap();
        captured.run_on(Duration::from_millis(200));
        let wire = wire.finish().unwrap();
        wire.on_port(8080).opened() > 0 && wire.on_port(HBONE_PORT).opened() == 0
    })
    .unwrap();
    captured.run_on(AROUND);
    for load in loads.into_iter().chain([captured]) {
        let report = load.finish().unwrap();
        report.flawless().unwrap();
        assert!(report.exchanges > 50, "{report:?}");
    }
    // The last captured connection has ended, so nothing is left.
    for pod in pods {
        lab.wait_captured(pod, false, SHORT).unwrap();
        let rules = lab.run(pod.place(), &["nft", "list", "tables"], SHORT).unwrap().ok().unwrap();
        assert_eq!(rules.trim(), "", "rules were left in {}", pod.name);
    }
}

#[test]
fn a_pods_label_wins_over_its_namespaces() {
    let lab = alone().unwrap();
    let out = lab.pod_add(&PodSpec::new("node-a", MESH, "out").label(MESH_LABEL, NOT_ENROLLED)).unwrap();
    let into = lab.pod_add(&PodSpec::new("node-a", PLAIN, "in").label(MESH_LABEL, ENROLLED)).unwrap();
    lab.wait_captured(&into, true, SHORT).unwrap();
    assert_eq!(lab.capture_state(&out), None);
    lab.label_pod(&out.name, MESH_LABEL, None).unwrap();
    lab.label_pod(&into.name, MESH_LABEL, None).unwrap();
    lab.wait_captured(&out, true, SHORT).unwrap();
    lab.wait_captured(&into, false, SHORT).unwrap();
}
