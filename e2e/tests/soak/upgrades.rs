//! A thousand idle and a hundred busy connections, and a stream of short ones, through five upgrades of both nodes.

use std::{thread, time::Duration};

use underpass_e2e::{
    LONG, MESH, alone_with,
    crowd::{Crowd, Size},
    server, wait_authenticated,
};
use underpass_lab::{PodSpec, until};

/// Between two upgrades: some traffic for each pair of generations.
const PAUSE: Duration = Duration::from_secs(5);

#[test]
fn five_upgrades_of_both_nodes_are_noticed_by_nobody() {
    let lab = alone_with(|options| options.node_proxy_flags.push("--drain=3600".to_owned())).unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    let crowd = Crowd::gather(&lab, &client, &far, Size { idle: 1000, busy: 100, short: 4 }).unwrap();
    let mut formers = Vec::new();
    for _ in 0..5 {
        for node in ["node-a", "node-b"] {
            thread::sleep(PAUSE);
            formers.push(lab.upgrade(node).unwrap());
        }
    }
    thread::sleep(PAUSE);
    let report = crowd.disperse().unwrap();
    report.flawless().unwrap();
    println!(
        "{} short calls, {} exchanges of busy connections, the longest of both {:.0} ms",
        report.short, report.exchanges, report.longest_ms
    );
    for former in formers {
        until(LONG, &former.process.name, || !former.process.is_alive()).unwrap();
    }
}
