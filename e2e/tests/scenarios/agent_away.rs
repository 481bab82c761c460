//! The node agent is killed, stays away for a while, and comes back.

use std::time::{Duration, Instant};

use underpass_e2e::{MESH, PLAIN, SHORT, alone, get, redis, server, wait_authenticated};
use underpass_lab::{PodSpec, Program, Target};
use underpass_model::names::{ENROLLED, MESH_LABEL};

#[test]
fn traffic_and_a_long_connection_go_on_while_the_agent_is_killed_and_restarted() {
    let lab = alone().unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    redis(&lab, &far).unwrap();
    let host = far.v4().unwrap().to_string();
    // Beside new calls one connection, made now and in use to the end.
    let target = Target { http: (host.clone(), 8080), callers: 2, redis: Some((host, 6379)) };
    let load = lab.load(client.place(), "load", &target).unwrap();
    for node in ["node-a", "node-b"] {
        lab.kill_program(&Program::agent(node)).unwrap();
        load.run_on(Duration::from_millis(500));
        lab.start_program(&Program::agent(node)).unwrap();
        load.run_on(Duration::from_millis(500));
    }
    let report = load.finish().unwrap();
    report.flawless().unwrap();
    assert!(report.exchanges > 10, "{report:?}");

    // It knows its pods still: one that comes now is enrolled, an old one is released.
    let late = server(&lab, &PodSpec::new("node-a", MESH, "late")).unwrap();
    lab.wait_captured(&late, true, SHORT).unwrap();
    wait_authenticated(&lab, &late, &far).unwrap();
    lab.label_pod(&far.name, MESH_LABEL, Some("disabled")).unwrap();
    lab.wait_captured(&far, false, SHORT).unwrap();
    get(&lab, client.place(), &format!("http://{}:8080/", far.v4().unwrap())).unwrap();
}

#[test]
fn without_the_agent_only_pods_of_enrolled_namespaces_fail_to_start() {
    let lab = alone().unwrap();
    let old = lab.pod_add(&PodSpec::new("node-a", MESH, "old")).unwrap();
    lab.kill_program(&Program::agent("node-a")).unwrap();

    let error = format!("{:#}", lab.pod_add(&PodSpec::new("node-a", MESH, "refused")).unwrap_err());
    assert!(error.contains("agent"), "the missing link is not named: {error}");
    let free = server(&lab, &PodSpec::new("node-a", PLAIN, "free").label(MESH_LABEL, ENROLLED)).unwrap();

    let begun = Instant::now();
    lab.pod_delete(&old.name).unwrap();
    // An ADD would wait for ten seconds.
    assert!(begun.elapsed() < Duration::from_secs(9), "DEL took {:?}", begun.elapsed());

    // What started without the agent is captured live when it is back.
    lab.start_program(&Program::agent("node-a")).unwrap();
    lab.wait_captured(&free, true, SHORT).unwrap();
    lab.pod_add(&PodSpec::new("node-a", MESH, "refused")).unwrap();
}
