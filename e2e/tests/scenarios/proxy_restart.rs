//! A node proxy dies: its pods' listeners stay, so that calls only wait for the next one.

use std::time::{Duration, Instant};

use anyhow::ensure;
use underpass_e2e::{LONG, MESH, SHORT, alone, begin, identity_of, inbound, said, server, wait_authenticated};
use underpass_lab::{PodSpec, Program, eventually, until};

#[test]
fn a_call_made_while_the_proxy_is_away_waits_for_the_next_one() {
    let lab = alone().unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    let host = far.v4().unwrap().to_string();
    // Into node-b's pod, or out of node-a's: both need the dead proxy. Each has a port of its own, to be told apart by.
    let calls = [("node-a", "listens_first", 8082, "220 far"), ("node-b", "outcome", 8081, "answered b'x\\n'")];
    for (node, what, port, answer) in calls {
        lab.kill_program(&Program::node_proxy(node)).unwrap();
        let call = begin(&lab, client.place(), &format!("waits-for-{node}"), what, (&host, port)).unwrap();
        eventually(SHORT, "the kernel to have taken the connection", || {
            let filter = format!("dport = :{port}");
            let argv = ["ss", "-Htn", "state", "established", &filter];
            let established = lab.run(client.place(), &argv, SHORT)?.ok()?;
            ensure!(established.contains(&host), "{node}: {established:?}, the caller: {}", call.output());
            Ok(())
        })
        .unwrap();
        let on_this_port = || {
            let lines = inbound(&lab, &far, &client).unwrap();
            lines.into_iter().filter(|line| said(line, "dst.addr").ends_with(&format!(":{port}"))).collect::<Vec<_>>()
        };
        assert!(call.is_alive() && call.output().is_empty(), "it did not wait: {}", call.output());
        assert_eq!(on_this_port(), [] as [serde_json::Value; 0]);

        lab.start_program(&Program::node_proxy(node)).unwrap();
        until(LONG, "the call to end", || !call.is_alive()).unwrap();
        assert!(call.output().starts_with(answer), "proxy of {node}: {}", call.output());
        eventually(SHORT, "the call to have come with an identity", || {
            let lines = on_this_port();
            let names: Vec<&str> = lines.iter().map(|line| said(line, "src.identity")).collect();
            ensure!(names == [identity_of(&client)], "{lines:#?}");
            Ok(())
        })
        .unwrap();
        wait_authenticated(&lab, &client, &far).unwrap();
    }
}

/// Service returns in much less than a second; a machine that does other things as well is given five.
const RECOVERY: Duration = Duration::from_secs(5);

#[test]
fn whoever_waits_in_a_queue_is_served_soon_after_the_next_proxy_starts() {
    let lab = alone().unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let far = server(&lab, &PodSpec::new("node-b", MESH, "far")).unwrap();
    wait_authenticated(&lab, &client, &far).unwrap();
    let host = far.v4().unwrap().to_string();
    for node in ["node-a", "node-b"] {
        lab.kill_program(&Program::node_proxy(node)).unwrap();
        // All of them before one of them is used: of a refused one the program would tell.
        let calls = lab
            .spawn(
                client.place(),
                &format!("waits-{node}"),
                &MANY.map(|word| word.replace("HOST", &host)).each_ref().map(String::as_str),
            )
            .unwrap();
        calls.wait_for_output("connected", SHORT).unwrap();
        let begun = Instant::now();
        lab.spawn_program(&Program::node_proxy(node)).unwrap();
        until(LONG, "the calls to end", || !calls.is_alive()).unwrap();
        let took = begun.elapsed();
        assert!(calls.output().ends_with("100 answered\n"), "{}", calls.output());
        println!("{node}: 100 waiting calls were answered {took:?} after the next proxy was started");
        assert!(took < RECOVERY, "{node}: it took {took:?}");
    }
}

/// A hundred connections that wait to be served.
const MANY: [&str; 4] = ["python3", "-c", WAITING, "HOST"];
const WAITING: &str = "
import socket, sys
calls = [socket.create_connection((sys.argv[1], 8081), 60) for _ in range(100)]
for call in calls: call.sendall(b'x')
print('connected', flush=True)
answers = [call.recv(1) for call in calls]
print(sum(answer == b'x' for answer in answers), 'answered', flush=True)
";
