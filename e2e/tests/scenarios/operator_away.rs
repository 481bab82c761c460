//! The node survives the control plane.

use std::time::Duration;

use underpass_discovery::{Store, kept::KeptView};
use underpass_e2e::{MESH, alone, alone_with, get, server, wait_authenticated};
use underpass_lab::{PodSpec, Program, Target};
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
fn a_proxy_that_starts_while_the_operator_is_away_serves_what_it_knows() {
    // Keys may be kept in memory only, and each node needs a file of its own: one node is enough here.
    let kept = tempfile::tempdir_in("/dev/shm").unwrap();
    let lab = alone_with(|options| {
        options.nodes = 1;
        options.node_proxy_flags.push(format!("--certificates-file={}", kept.path().join("certificates").display()));
    })
    .unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let near = server(&lab, &PodSpec::new("node-a", MESH, "near")).unwrap();
    wait_authenticated(&lab, &client, &near).unwrap();
    // The copy of the view is seconds behind.
    underpass_lab::until(Duration::from_secs(20), "the proxy to keep both pods as reachable by tunnel", || {
        let mut store = Store::new();
        let kept = KeptView::new(lab.kept_view("node-a")).load(&mut store);
        let view = store.mesh().view();
        let captured = view.workloads().filter(|workload| workload.tunnel == Tunnel::Hbone).count();
        kept.is_ok_and(|kept| kept) && captured == 2
    })
    .unwrap();
    lab.kill_program(&Program::Operator).unwrap();
    lab.kill_program(&Program::node_proxy("node-a")).unwrap();
    lab.start_program(&Program::node_proxy("node-a")).unwrap();
    get(&lab, client.place(), &format!("http://{}:8080/", near.v4().unwrap())).unwrap();
    wait_authenticated(&lab, &client, &near).unwrap();
}
