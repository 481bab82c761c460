//! The node survives the control plane.

use std::time::Duration;

use underpass_discovery::{Store, kept::KeptView};
use underpass_e2e::{MESH, SHORT, alone, get, server, wait_authenticated};
use underpass_lab::{PodSpec, Program, Target, until};
use underpass_model::Tunnel;

#[test]
fn traffic_goes_on_while_the_operator_is_killed_and_restarted() {
    let lab = alone().unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    let http = (far.v4().unwrap().to_string(), 8080);
    let load = lab.load(client.place(), "load", &Target { http, callers: 2, redis: None }).unwrap();
    lab.kill_program(&Program::Operator).unwrap();
    load.run_on(Duration::from_secs(2));
    lab.start_program(&Program::Operator).unwrap();
    let late = server(&lab, &PodSpec::new("node-b", MESH, "late")).unwrap();
    wait_authenticated(&lab, &client, &late).unwrap();
    load.finish().unwrap().flawless().unwrap();
}

#[test]
fn proxies_that_start_while_the_operator_is_away_serve_what_they_know_and_new_pods_of_known_accounts() {
    let lab = alone().unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    for node in ["node-a", "node-b"] {
        // The copy of the view is seconds behind.
        until(Duration::from_secs(20), "the proxy to keep both pods as reachable by tunnel", || {
            let mut store = Store::new();
            let kept = KeptView::new(lab.kept_view(node)).load(&mut store);
            let view = store.mesh().view();
            let captured = view.workloads().filter(|workload| workload.tunnel == Tunnel::Hbone).count();
            kept.is_ok_and(|kept| kept) && captured == 2
        })
        .unwrap();
    }
    lab.kill_program(&Program::Operator).unwrap();
    for node in ["node-a", "node-b"] {
        lab.kill_program(&Program::node_proxy(node)).unwrap();
        lab.start_program(&Program::node_proxy(node)).unwrap();
    }
    get(&lab, client.place(), &format!("http://{}:8080/", far.v4().unwrap())).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();

    // The node has a certificate for the account, so the pod starts, and its calls prove who it is.
    let late = server(&lab, &PodSpec::new("node-a", MESH, "late").service_account("client")).unwrap();
    lab.wait_captured(&late, true, SHORT).unwrap();
    wait_authenticated(&lab, &late, &far).unwrap();
    lab.start_program(&Program::Operator).unwrap();
    wait_authenticated(&lab, &far, &late).unwrap();
}
