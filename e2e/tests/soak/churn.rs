//! Memory and descriptors return after churn.

use std::time::Duration;

use underpass_e2e::{
    MESH, alone_with,
    churn::{churn, footprint, wait_returned, warm_up},
    server, wait_authenticated,
};
use underpass_lab::PodSpec;

const EACH: u32 = 1000;
const ROUNDS: u32 = 10;

#[test]
fn what_thousands_of_connections_took_is_given_back() {
    let lab = alone_with(|options| options.node_proxy_flags.push("--tunnel-idle=1".to_owned())).unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    let nodes = ["node-a", "node-b"];
    // Everything has been used once, and has rested.
    warm_up(&lab, (&client, &far), EACH, Duration::from_secs(300)).unwrap();
    std::thread::sleep(Duration::from_secs(30));
    let before = nodes.map(|node| footprint(&lab, node).unwrap());
    println!("before: {before:?}");
    churn(&lab, (&client, &far), EACH, ROUNDS, Duration::from_secs(900)).unwrap();
    println!("right after: {:?}", nodes.map(|node| footprint(&lab, node).unwrap()));
    for (node, before) in nodes.into_iter().zip(before) {
        let after = wait_returned(&lab, node, before, Duration::from_secs(180)).unwrap();
        println!("{node} at rest: {after:?}");
    }
}
