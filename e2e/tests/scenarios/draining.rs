//! A proxy that is asked to stop, and nobody follows it; and one whose successor dies.

use anyhow::ensure;
use nix::sys::signal::Signal;
use serde_json::Value;
use underpass_e2e::{LONG, MESH, SHORT, alone_with, begin, call, server, wait_authenticated};
use underpass_lab::{Pod, PodSpec, Process, Program, ScopedLab, eventually, until};

struct Stage {
    lab: ScopedLab,
    client: Pod,
    far: Pod,
    /// A connection through both nodes' proxies, until it is killed.
    holder: Process,
}

impl Stage {
    fn set() -> Self {
        let lab = alone_with(|options| options.node_proxy_flags.push("--drain=600".to_owned())).unwrap();
        let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
        let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
        wait_authenticated(&lab, &client, &far).unwrap();
        let hold = "import socket, sys, time\nc = socket.create_connection((sys.argv[1], 8081))\nc.sendall(b'x')\nprint('held', c.recv(1), flush=True)\ntime.sleep(600)";
        let argv = ["python3", "-c", hold, &far.v4().unwrap().to_string()];
        let holder = lab.spawn(client.place(), "holder", &argv).unwrap();
        holder.wait_for_output("held", SHORT).unwrap();
        Self { lab, client, far, holder }
    }

    fn outcome(&self) -> String {
        call(&self.lab, self.client.place(), "outcome", (&self.far.v4().unwrap().to_string(), 8081)).unwrap()
    }
}

#[test]
fn asked_to_stop_without_a_successor_it_goes_on_while_somebody_is_served() {
    let Stage { lab, client, far, holder } = &Stage::set();
    let stage_call = || call(lab, client.place(), "outcome", (&far.v4().unwrap().to_string(), 8081)).unwrap();
    for node in ["node-a", "node-b"] {
        let proxy = lab.program(&Program::node_proxy(node)).unwrap();
        proxy.signal(Signal::SIGTERM).unwrap();
        eventually(SHORT, "the proxy to know that it shall stop", || {
            let page: Value = serde_json::from_str(&lab.proxy_admin(node, "/generation")?)?;
            ensure!(page["stops_within_ms"].is_number() && page["accepting"] == true, "{page}");
            Ok(())
        })
        .unwrap();
        for _ in 0..5 {
            assert_eq!(stage_call(), "answered b'x\\n'");
        }
        assert!(proxy.is_alive());
    }
    // With its last connection each of them goes; whoever calls then waits for the next one.
    holder.kill().unwrap();
    for node in ["node-a", "node-b"] {
        let proxy = lab.program(&Program::node_proxy(node)).unwrap();
        until(SHORT, "the proxy to end", || !proxy.is_alive()).unwrap();
    }
    let waiting = begin(lab, client.place(), "waits", "outcome", (&far.v4().unwrap().to_string(), 8081)).unwrap();
    for node in ["node-b", "node-a"] {
        lab.start_program(&Program::node_proxy(node)).unwrap();
    }
    until(LONG, "the call to end", || !waiting.is_alive()).unwrap();
    assert_eq!(waiting.output().trim(), "answered b'x\\n'");
}

#[test]
fn a_proxy_whose_successor_dies_serves_again() {
    let stage = Stage::set();
    let lab = &stage.lab;
    for node in ["node-a", "node-b"] {
        let former = lab.upgrade(node).unwrap();
        let page = lab.generation_of(&former).unwrap();
        assert_eq!(page["accepting"], false, "{page}");
        assert_eq!(stage.outcome(), "answered b'x\\n'");
        lab.kill_program(&Program::node_proxy(node)).unwrap();
        assert_eq!(stage.outcome(), "answered b'x\\n'", "a call after the successor's death");
        let page = lab.generation_of(&former).unwrap();
        assert!(page["accepting"] == true && page["successor"].is_null(), "{page}");
        // The next attempt succeeds.
        lab.start_program(&Program::node_proxy(node)).unwrap();
        eventually(SHORT, "the former proxy to stand back again", || {
            let page = lab.generation_of(&former)?;
            ensure!(page["accepting"] == false, "{page}");
            Ok(())
        })
        .unwrap();
        assert_eq!(stage.outcome(), "answered b'x\\n'");
    }
    assert!(stage.holder.is_alive());
}
