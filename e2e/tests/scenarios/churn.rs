//! Memory and descriptors return after churn.

use std::time::Duration;

use underpass_e2e::{
    LONG, MESH, SHORT, alone_with,
    churn::{churn, footprint, wait_returned, warm_up},
    server, wait_authenticated,
};
use underpass_lab::PodSpec;

const EACH: u32 = 60;
const REST: Duration = Duration::from_secs(15);

#[test]
fn what_connections_of_every_kind_took_is_given_back() {
    let lab = alone_with(|options| options.node_proxy_flags.push("--tunnel-idle=1".to_owned())).unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    // Everything has been used once, and has rested: tunnels are gone, and the allocator has given back what it kept.
    warm_up(&lab, (&client, &far), EACH, SHORT).unwrap();
    std::thread::sleep(REST);
    let before = ["node-a", "node-b"].map(|node| footprint(&lab, node).unwrap());
    churn(&lab, (&client, &far), EACH, 3, LONG).unwrap();
    for (node, before) in ["node-a", "node-b"].into_iter().zip(before) {
        wait_returned(&lab, node, before, LONG).unwrap();
    }
}
