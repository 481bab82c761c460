//! Unmodified programs of the world.

use underpass_e2e::{LONG, SHORT, world};
use underpass_lab::eventually;

#[test]
fn redis_works_across_nodes() {
    let world = world();
    let (lab, host) = (&world.lab, world.far.v4().unwrap().to_string());
    let argv =
        ["redis-server", "--bind", "*", "--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir", "/tmp"];
    let server = lab.spawn(world.far.place(), "redis", &argv).unwrap();
    let redis = |arguments: &[&str]| {
        let argv: Vec<&str> = ["redis-cli", "-h", &host].iter().chain(arguments).copied().collect();
        lab.run(world.client.place(), &argv, LONG)?.ok()
    };
    eventually(SHORT, "redis", || {
        anyhow::ensure!(redis(&["ping"])?.trim() == "PONG");
        Ok(())
    })
    .unwrap();
    let large = "v".repeat(100_000);
    assert_eq!(redis(&["set", "key", &large]).unwrap().trim(), "OK");
    assert_eq!(redis(&["get", "key"]).unwrap().trim(), large);
    let load = ["redis-benchmark", "-h", &host, "-q", "-n", "5000", "-c", "20", "-t", "set,get"];
    lab.run(world.client.place(), &load, LONG).unwrap().ok().unwrap();
    server.kill().unwrap();
}

#[test]
fn iperf3_works_across_nodes_both_ways() {
    let world = world();
    let (lab, host) = (&world.lab, world.far.v4().unwrap().to_string());
    let server = lab.spawn(world.far.place(), "iperf3", &["iperf3", "-s", "--forceflush"]).unwrap();
    server.wait_for_output("listening", SHORT).unwrap();
    for direction in ["", "-R"] {
        let argv: Vec<&str> = ["iperf3", "-c", &host, "-n", "50M", "-P", "2", "--json", direction]
            .into_iter()
            .filter(|arg| !arg.is_empty())
            .collect();
        let output = lab.run(world.client.place(), &argv, LONG).unwrap().ok().unwrap();
        let report: serde_json::Value = serde_json::from_str(&output).unwrap();
        let bytes = |end: &str| report["end"][end]["bytes"].as_u64().unwrap();
        // The receiver stops counting when the sender says so on another connection, with bytes still on their way.
        assert!(bytes("sum_sent") >= 50 << 20 && bytes("sum_received") >= 25 << 20, "{report:#}");
    }
    server.kill().unwrap();
}
