//! Memory and descriptors return after churn.

use std::time::Duration;

use underpass_e2e::{
    LONG, MESH, SHORT, alone_with,
    churn::{churn, footprint, wait_returned, warm_up},
    server, wait_authenticated,
};
use underpass_lab::{Lab, Pod, PodSpec};

const EACH: u32 = 60;
/// How often it may take something for good.
const ATTEMPTS: usize = 3;
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
    // Some buffer may be there for good only now. What leaks would be more each time.
    let mut failures = Vec::new();
    while let Err(error) = gives_back(&lab, (&client, &far)) {
        failures.push(format!("{error:#}"));
        assert!(failures.len() < ATTEMPTS, "{failures:#?}");
    }
}

/// Whether another churn leaves nothing behind.
fn gives_back(lab: &Lab, pods: (&Pod, &Pod)) -> anyhow::Result<()> {
    let nodes = ["node-a", "node-b"];
    let before = nodes.map(|node| footprint(lab, node).unwrap());
    churn(lab, pods, EACH, 3, LONG).unwrap();
    for (node, before) in nodes.into_iter().zip(before) {
        wait_returned(lab, node, before, SHORT)?;
    }
    Ok(())
}
