//! A node proxy dies: its pods' listeners stay, so that calls only wait for the next one.

use std::time::Duration;

use underpass_e2e::{MESH, alone, get, server, wait_authenticated};
use underpass_lab::{PodSpec, Program};

#[test]
fn a_call_made_while_the_proxy_is_away_waits_for_the_next_one() {
    let lab = alone().unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    let url = format!("http://{}:8080/", far.v4().unwrap());
    for node in ["node-a", "node-b"] {
        lab.kill_program(&Program::node_proxy(node)).unwrap();
        std::thread::scope(|scope| {
            // From a place that needs the dead proxy: into node-b's pod, or out of node-a's.
            let call = scope.spawn(|| get(&lab, client.place(), &url));
            std::thread::sleep(Duration::from_millis(300));
            lab.start_program(&Program::node_proxy(node)).unwrap();
            call.join().unwrap().unwrap_or_else(|error| panic!("proxy of {node}: {error:#}"));
        });
        wait_authenticated(&lab, &client, &far).unwrap();
    }
}
