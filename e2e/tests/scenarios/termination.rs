//! A pod's grace: from its deletion timestamp until its sandbox ends it finishes what it has to do, while nobody new comes.

use anyhow::ensure;
use serde_json::Value;
use underpass_e2e::{MESH, SHORT, alone, call, call_with, get, identity_of, inbound, said, server, wait_authenticated};
use underpass_lab::{Lab, Pod, PodSpec, eventually, until};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: servers, namespace: mesh}
spec:
  clusterIP: 10.96.0.30
  clusterIPs: [10.96.0.30]
  selector: {role: server}
  ports: [{name: web, port: 80, targetPort: 8080}]
";

/// How many tunnels of peers a pod has.
fn tunnels(lab: &Lab, pod: &Pod) -> u64 {
    let dump: Value = serde_json::from_str(&lab.proxy_admin(&pod.node, "/config_dump").unwrap()).unwrap();
    let pods = dump.get("pods").and_then(Value::as_array).unwrap();
    let this = pods.iter().find(|one| one.get("uid").is_some_and(|uid| uid == pod.uid.as_str())).unwrap();
    this.get("tunnels").and_then(Value::as_u64).unwrap()
}

#[test]
fn a_terminating_pod_finishes_both_ways_while_nobody_new_comes() {
    let lab = alone().unwrap();
    lab.apply(SERVICE).unwrap();
    let client = server(&lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let ending = server(&lab, &PodSpec::new("node-b", MESH, "ending").label("role", "server")).unwrap();
    let other = server(&lab, &PodSpec::new("node-b", MESH, "other").label("role", "server")).unwrap();
    for server in [&ending, &other] {
        wait_authenticated(&lab, &client, server).unwrap();
        wait_authenticated(&lab, server, &client).unwrap();
    }
    let address = ending.v4().unwrap().to_string();
    // It asks once a line comes, which is after the pod has begun to end.
    let held = "import socket, sys, time, os\nc = socket.create_connection((sys.argv[1], int(sys.argv[2])))\nc.sendall(b'x')\nprint('held', c.recv(1), flush=True)\nwhile not os.path.exists(sys.argv[3]): time.sleep(.02)\nc.sendall(b'y')\nprint('and', c.recv(1), flush=True)\nprint('ended', c.recv(1), flush=True)";
    let directory = tempfile::tempdir().unwrap();
    let signal = directory.path().join("go");
    let argv = |host: &str| ["python3", "-c", held, host, "8081", &signal.display().to_string()].map(ToOwned::to_owned);
    let hold = |from: &Pod, host: &str| {
        let argv = argv(host);
        let process = lab.spawn(from.place(), "held", &argv.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        process.wait_for_output("held", SHORT).unwrap();
        process
    };
    let (into, out_of) = (hold(&client, &address), hold(&ending, &client.v4().unwrap().to_string()));
    // Many at once, so that every worker of the client's node has a tunnel.
    call_with(&lab, client.place(), "many", (&address, 8081), "50").unwrap();
    assert!(tunnels(&lab, &ending) > 1, "one with the held connection, and others that are idle");

    lab.pod_terminate(&ending.name).unwrap();
    // At once every idle tunnel goes; the one that carries a connection stays.
    until(SHORT, "the idle tunnels to go", || tunnels(&lab, &ending) == 1).unwrap();
    // Services no longer choose it.
    eventually(SHORT, "the service to leave it out", || {
        for _ in 0..10 {
            let answer = get(&lab, client.place(), "http://10.96.0.30/")?;
            ensure!(answer.starts_with("i am other"), "{answer}");
        }
        Ok(())
    })
    .unwrap();
    // Who means this very pod still reaches it, and it reaches others, as itself.
    assert_eq!(call(&lab, client.place(), "outcome", (&address, 8081)).unwrap(), "answered b'x\\n'");
    let before = inbound(&lab, &client, &ending).unwrap().len();
    get(&lab, ending.place(), &format!("http://{}:8080/", client.v4().unwrap())).unwrap();
    let new = eventually(SHORT, "its own call", || {
        let lines = inbound(&lab, &client, &ending)?;
        ensure!(lines.len() > before);
        Ok(lines)
    })
    .unwrap();
    assert_eq!(said(new.last().unwrap(), "src.identity"), identity_of(&ending));
    // Connections from before go on, both ways.
    std::fs::write(&signal, "").unwrap();
    for process in [&into, &out_of] {
        process.wait_for_output("and b'y'", SHORT).unwrap();
        assert!(process.is_alive() && !process.output().contains("ended"), "{}", process.output());
    }
    lab.pod_delete(&ending.name).unwrap();
    until(SHORT, "the last connection to end with the pod", || !into.is_alive()).unwrap();
    wait_authenticated(&lab, &client, &other).unwrap();
}
