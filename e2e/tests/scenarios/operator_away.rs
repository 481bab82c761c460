//! The node survives the control plane.

use std::time::Duration;

use underpass_e2e::{MESH, alone, server, wait_authenticated};
use underpass_lab::{PodSpec, Program, Target};

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
