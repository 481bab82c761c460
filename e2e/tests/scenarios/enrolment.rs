//! Running pods are enrolled and un-enrolled under load: no call fails, and an old connection lives through both.

use std::time::{Duration, Instant};

use underpass_e2e::{
    MESH, PLAIN, SHORT, alone, call_with,
    crowd::{Crowd, Size},
    inbound_from, redis, server, wait_authenticated,
};
use underpass_lab::{Place, Pod, PodSpec, Target, until};
use underpass_model::names::{ENROLLED, HBONE_PORT, MESH_LABEL, NOT_ENROLLED};

/// How long load goes on around each change.
const AROUND: Duration = Duration::from_secs(1);

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
    redis(&lab, &near).unwrap();
    redis(&lab, &far).unwrap();
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
        assert!(report.exchanges > 10, "{report:?}");
    }
    // The last captured connection has ended, so nothing is left.
    for pod in pods {
        lab.wait_captured(pod, false, SHORT).unwrap();
        let rules = lab.run(pod.place(), &["nft", "list", "tables"], SHORT).unwrap().ok().unwrap();
        assert_eq!(rules.trim(), "", "rules were left in {}", pod.name);
    }
}

#[test]
fn pods_are_unenrolled_as_often_as_they_are_enrolled_whatever_is_open() {
    let lab = alone().unwrap();
    let client = server(&lab, &PodSpec::new("node-a", PLAIN, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", PLAIN, "far")).unwrap();
    redis(&lab, &far).unwrap();
    for round in ["first", "second"] {
        lab.label_namespace(PLAIN, MESH_LABEL, Some(ENROLLED)).unwrap();
        for pod in [&client, &far] {
            lab.wait_captured(pod, true, SHORT).unwrap();
        }
        wait_authenticated(&lab, &client, &far).unwrap();
        // One of its connections stays until it is told to end, which is after the label has gone.
        let captured = lab.load(client.place(), round, &target(&far)).unwrap();
        captured.run_on(AROUND);
        lab.label_namespace(PLAIN, MESH_LABEL, None).unwrap();
        captured.run_on(AROUND);
        captured.finish().unwrap().flawless().unwrap();
        for pod in [&client, &far] {
            lab.wait_captured(pod, false, SHORT).unwrap();
        }
    }
}

#[test]
fn callers_outside_the_mesh_notice_neither_enrolment_nor_its_end() {
    let lab = alone().unwrap();
    let stranger = lab.pod_add(&PodSpec::new("node-a", "strangers", "stranger")).unwrap();
    let web = server(&lab, &PodSpec::new("node-b", PLAIN, "web")).unwrap();
    redis(&lab, &web).unwrap();
    // Another host, a pod of another node, and the pod's own node.
    let callers = [("outside", Place::Outside), ("stranger", stranger.place()), ("node", Place::node("node-b"))];
    let start = |when: &str| {
        callers.clone().map(|(name, place)| lab.load(place, &format!("{when}-{name}"), &target(&web)).unwrap())
    };
    let outside = ["172.30.0.100".parse().unwrap()];
    let captured = || inbound_from(&lab, &web, &outside).unwrap().len();
    let before = start("before");
    before[0].run_on(AROUND);

    lab.label_namespace(PLAIN, MESH_LABEL, Some(ENROLLED)).unwrap();
    lab.wait_captured(&web, true, SHORT).unwrap();
    until(SHORT, "calls from outside to be captured", || captured() > 20).unwrap();
    let while_captured = start("captured");
    before[0].run_on(AROUND);
    lab.label_namespace(PLAIN, MESH_LABEL, None).unwrap();
    until(SHORT, "calls from outside to pass by the proxy again", || {
        let lines = captured();
        before[0].run_on(AROUND);
        captured() == lines
    })
    .unwrap();
    for load in before.into_iter().chain(while_captured) {
        let report = load.finish().unwrap();
        report.flawless().unwrap();
        assert!(report.exchanges > 10, "{report:?}");
    }
    // What was captured has ended, so nothing is left.
    lab.wait_captured(&web, false, SHORT).unwrap();
}

#[test]
fn a_clients_connections_from_before_are_in_nobodys_way() {
    let lab = alone().unwrap();
    let client = server(&lab, &PodSpec::new("node-a", PLAIN, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", PLAIN, "far")).unwrap();
    // The destination's proxy calls the same port in the client's name: one in 28,000 of its ports each would be taken.
    let old = Crowd::gather(&lab, &client, &far, Size { idle: 600, busy: 0, short: 1 }).unwrap();
    lab.label_namespace(PLAIN, MESH_LABEL, Some(ENROLLED)).unwrap();
    for pod in [&client, &far] {
        lab.wait_captured(pod, true, SHORT).unwrap();
    }
    wait_authenticated(&lab, &client, &far).unwrap();
    let host = far.v4().unwrap().to_string();
    for _ in 0..4 {
        let begun = Instant::now();
        let held = call_with(&lab, client.place(), "many", (&host, 8081), "500").unwrap();
        assert_eq!(held.trim(), "500 held");
        assert!(begun.elapsed() < Duration::from_secs(10), "one of them waited: {:?}", begun.elapsed());
    }
    let report = old.disperse().unwrap();
    report.flawless().unwrap();
    assert_eq!(report.idle, 600);
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
