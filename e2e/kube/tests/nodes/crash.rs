//! Parts of the mesh are killed under load, and start again by themselves.

use std::time::Duration;

use underpass_e2e_kube::{SHORT, cluster, mesh};
use underpass_lab::eventually;

use crate::{AROUND, alone, enrolled, load};

/// Kills the newest process of a program on a node; where one supervises another, that other.
fn kill(node: &str, program: &str) {
    // A process's name is cut to 15 bytes.
    let name: String = program.chars().take(15).collect();
    let kill = format!("new=$(pgrep -n -x {name}); child=$(pgrep -P $new -x {name}); kill -9 ${{child:-$new}}");
    cluster().on_node(node, &["sh", "-c", &kill]).unwrap();
}

#[test]
fn a_killed_node_proxy_costs_the_connections_that_it_carried_and_no_others() {
    let _alone = alone();
    let (cluster, space) = (cluster(), enrolled("killed"));
    let there = &cluster.workers().unwrap()[1];
    let proxy = mesh().pod("nodeproxy", there).unwrap();
    // Its node may have been without power before.
    let restarts = || {
        let count = "-o=jsonpath={.status.containerStatuses[0].restartCount}";
        cluster.run(&["get", "pod", &proxy, "-n=underpass-system", count]).unwrap()
    };
    let before = restarts();
    let (near, far) = (load(&space, "near"), load(&space, "far"));
    near.run_on(AROUND);
    kill(there, "underpass-nodeproxy");
    near.run_on(AROUND);
    // Those that come after it are served by the next one.
    let after = load(&space, "far");
    after.run_on(AROUND);
    near.finish().unwrap().flawless().unwrap();
    after.finish().unwrap().flawless().unwrap();
    let far = far.finish().unwrap();
    // Two callers: each may have been in the middle of a call, and once more before the next process listened.
    assert!(far.failures.len() <= 4, "{far:#?}");
    assert!(far.longest_ms < 5000.0, "new connections waited too long: {far:#?}");
    assert_eq!(restarts(), before, "its parent starts it again, not the kubelet");
}

#[test]
fn nobody_notices_that_agents_and_operators_are_killed() {
    let _alone = alone();
    let (cluster, space) = (cluster(), enrolled("unnoticed"));
    let workers = cluster.workers().unwrap();
    let loads = [load(&space, "near"), load(&space, "far")];
    loads[0].run_on(Duration::from_secs(1));
    for node in &workers {
        kill(node, "underpass-agent");
    }
    let running = |node: &str| cluster.on_node(node, &["pgrep", "-x", "underpass-opera"]).is_ok();
    for node in workers.iter().filter(|node| running(node)) {
        kill(node, "underpass-operator");
    }
    loads[0].run_on(AROUND);
    // A pod that starts meanwhile becomes part of the mesh.
    space.run(&["scale", "deployment/far", "--replicas=2"]).unwrap();
    space.wait_for_rollout("deployment/far").unwrap();
    eventually(SHORT, "both pods to be captured", || {
        let captured = "-o=jsonpath={.items[*].status.conditions[?(@.type==\"underpass.dev/Captured\")].status}";
        let states = space.run(&["get", "pods", "--selector=workload=far", captured])?;
        anyhow::ensure!(states == "True True", "{states}");
        Ok(())
    })
    .unwrap();
    for load in loads {
        load.finish().unwrap().flawless().unwrap();
    }
}
