//! Node proxies are upgraded under load, on the client's node and on the server's.

use std::time::Instant;

use serde_json::Value;
use underpass_e2e::{
    LONG, MESH, SHORT, alone_with, call,
    crowd::{Crowd, Size},
    server, wait_authenticated,
};
use underpass_lab::{Former, Lab, PodSpec, until};

fn number(page: &Value, key: &str) -> u64 {
    page.get(key).and_then(Value::as_u64).unwrap()
}

/// What a run says that has a successor: how many connections it has left.
fn stands_back(lab: &Lab, former: &Former) -> u64 {
    let page = lab.generation_of(former).unwrap();
    assert_eq!(page.get("accepting"), Some(&Value::Bool(false)), "{page}");
    assert!(page.get("successor").is_some_and(Value::is_string), "{page}");
    number(&page, "connections")
}

#[test]
fn five_upgrades_are_noticed_by_nobody() {
    let lab = alone_with(|options| options.node_proxy_flags.push("--drain=600".to_owned())).unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    let size = Size { idle: 300, busy: 30, short: 3 };
    let crowd = Crowd::gather(&lab, &client, &far, size).unwrap();
    let begun = Instant::now();
    let upgrades = ["node-a", "node-b", "node-a", "node-b", "node-a"];
    let formers = upgrades.map(|node| lab.upgrade(node).unwrap());

    // Those that stood before the first upgrade are with the first generation still, on both nodes.
    let standing = u64::from(size.idle + size.busy);
    let [first_of_a, first_of_b, second_of_a, ..] = &formers;
    assert!(stands_back(&lab, first_of_a) >= standing);
    assert!(stands_back(&lab, first_of_b) >= standing);
    // One that had none but short calls has no reason to stay.
    until(SHORT, "the second run to end", || !second_of_a.process.is_alive()).unwrap();
    let present: Value = serde_json::from_str(&lab.proxy_admin("node-a", "/generation").unwrap()).unwrap();
    assert!(present["accepting"] == true && present["successor"].is_null(), "{present}");
    let counted = format!("underpass_generation_connections{{generation={}}}", present["generation"]);
    let metrics = lab.metrics("node-a").unwrap();
    assert!(metrics.contains(&counted) && metrics.contains("underpass_accepting 1"), "{counted} in {metrics}");

    let report = crowd.disperse().unwrap();
    report.flawless().unwrap();
    println!(
        "within {:?}: {} short calls, the longest of all {:.0} ms",
        begun.elapsed(),
        report.short,
        report.longest_ms
    );
    for Former { process, .. } in &formers {
        until(LONG, &format!("{} to end by itself", process.name), || !process.is_alive()).unwrap();
    }
    wait_authenticated(&lab, &client, &far).unwrap();
}

#[test]
fn only_connections_older_than_the_deadline_are_cut() {
    let lab = alone_with(|options| options.node_proxy_flags.push("--drain=2".to_owned())).unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    for node in ["node-a", "node-b"] {
        let crowd = Crowd::gather(&lab, &client, &far, Size { idle: 20, busy: 5, short: 2 }).unwrap();
        let former = lab.upgrade(node).unwrap();
        until(SHORT, "the former proxy to end at its deadline", || !former.process.is_alive()).unwrap();
        let report = crowd.disperse().unwrap();
        let failures = &report.failures;
        assert_eq!((failures.idle.len(), failures.busy.len()), (20, 5), "{failures:?}");
        assert_eq!(failures.short, [] as [String; 0], "short calls are younger than any deadline");
    }
}

#[test]
fn pods_that_come_and_go_during_an_upgrade_are_served() {
    let lab = alone_with(|options| options.node_proxy_flags.push("--drain=600".to_owned())).unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    let gone = server(&lab, &PodSpec::new("node-b", MESH, "gone")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    wait_authenticated(&lab, &client, &gone).unwrap();
    let crowd = Crowd::gather(&lab, &client, &far, Size { idle: 5, busy: 1, short: 1 }).unwrap();
    let former = std::thread::scope(|scope| {
        let coming = scope.spawn(|| {
            let names = ["first", "second", "third"];
            names.map(|name| server(&lab, &PodSpec::new("node-b", MESH, name)).unwrap())
        });
        let former = lab.upgrade("node-b").unwrap();
        for pod in coming.join().unwrap() {
            wait_authenticated(&lab, &client, &pod).unwrap();
        }
        former
    });
    // The former run is told of the end of a pod, and lets go of its network namespace.
    let dump = || former_pods(&lab, &former);
    assert!(dump().contains(&"gone".to_owned()), "{:?}", dump());
    lab.pod_delete(&gone.name).unwrap();
    until(SHORT, "the former run to let go of the pod", || !dump().contains(&"gone".to_owned())).unwrap();
    assert!(dump().contains(&"far".to_owned()), "{:?}", dump());
    crowd.disperse().unwrap().flawless().unwrap();
    assert_eq!(
        call(&lab, client.place(), "listens_first", (&far.v4().unwrap().to_string(), 8082)).unwrap(),
        "220 far\nTHANK YOU"
    );
}

fn former_pods(lab: &Lab, former: &Former) -> Vec<String> {
    let dump: Value = serde_json::from_str(&lab.former_admin(former, "/config_dump").unwrap()).unwrap();
    dump.get("pods")
        .and_then(Value::as_array)
        .unwrap()
        .iter()
        .map(|pod| pod.get("name").and_then(Value::as_str).unwrap().to_owned())
        .collect()
}
