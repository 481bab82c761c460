//! Two pods of one node are joined without a tunnel where nobody can tell, judged and accounted as with one.

use std::time::Duration;

use serde_json::Value;
use underpass_e2e::{MESH, SHORT, alone, alone_with, get, identity_of, inbound, said, server, wait_authenticated};
use underpass_lab::{Lab, ObjectName, Pod, PodSpec, eventually};

const POLICY: &str = "
apiVersion: underpass.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: mesh}
spec:
  targetRefs: [{kind: Pod, selector: {matchLabels: {app: near}}}]
  action: DENY
  rules: [{sources: [{type: Namespace, namespace: mesh}]}]
";

/// Talks to the echo server until somebody ends it.
const HOLD: &str = r"
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 8081), 20)
try:
    while True:
        connection.sendall(b'still there\n')
        if not connection.recv(100):
            break
        print('exchanged', flush=True)
        time.sleep(0.02)
    print('closed', flush=True)
except OSError:
    print('reset', flush=True)
";

const NETWORK_POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: elsewhere, namespace: other}
spec: {podSelector: {}}
";

fn pods(lab: &Lab) -> (Pod, Pod) {
    let client = server(lab, &PodSpec::new("node-a", MESH, "client")).unwrap();
    let near = server(lab, &PodSpec::new("node-a", MESH, "near")).unwrap();
    wait_authenticated(lab, &client, &near).unwrap();
    (client, near)
}

fn is_tunnelled(line: &Value) -> bool {
    line.get("dst.hbone_addr").is_some()
}

/// The access lines of both halves of the next call.
fn call(lab: &Lab, client: &Pod, near: &Pod) -> anyhow::Result<(Value, Value)> {
    let before = inbound(lab, near, client)?.len();
    get(lab, client.place(), &format!("http://{}:8080/", near.v4().unwrap()))?;
    let inbound = eventually(SHORT, "the called pod's access line", || {
        let lines = inbound(lab, near, client)?;
        anyhow::ensure!(lines.len() > before, "none");
        Ok(lines.last().cloned().unwrap_or_default())
    });
    let to = format!("{}:8080", near.v4().unwrap());
    let outbound = eventually(SHORT, "the caller's access line", || {
        let lines = lab.access_log("node-a")?;
        let last =
            lines.into_iter().rfind(|line| said(line, "direction") == "outbound" && said(line, "dst.addr") == to);
        last.ok_or_else(|| anyhow::anyhow!("none"))
    });
    Ok((outbound?, inbound?))
}

/// Waits until calls are tunnelled, or are not.
fn wait_tunnelled(lab: &Lab, client: &Pod, near: &Pod, tunnelled: bool) {
    eventually(SHORT, "calls to change their way", || {
        let (outbound, inbound) = call(lab, client, near)?;
        anyhow::ensure!(is_tunnelled(&outbound) == tunnelled && is_tunnelled(&inbound) == tunnelled, "{outbound}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn both_halves_are_accounted_for_with_proven_identities() {
    let lab = alone().unwrap();
    let (client, near) = pods(&lab);
    wait_tunnelled(&lab, &client, &near, false);
    let (outbound, inbound) = call(&lab, &client, &near).unwrap();
    for line in [&outbound, &inbound] {
        assert_eq!(said(line, "src.identity"), identity_of(&client), "{line}");
        assert_eq!(said(line, "dst.identity"), identity_of(&near), "{line}");
        assert_eq!(said(line, "reason"), "ok", "{line}");
    }
    for bytes in ["bytes_sent", "bytes_recv"] {
        assert_eq!(outbound.get(bytes), inbound.get(bytes));
        assert!(outbound.get(bytes).and_then(Value::as_u64).is_some_and(|bytes| bytes > 0), "{outbound}");
    }
}

#[test]
fn a_policy_refuses_and_ends_joined_connections() {
    let lab = alone().unwrap();
    let (client, near) = pods(&lab);
    wait_tunnelled(&lab, &client, &near, false);
    let address = near.v4().unwrap().to_string();
    let held = lab.spawn(client.place(), "hold", &["python3", "-c", HOLD, &address]).unwrap();
    held.wait_for_output("exchanged", SHORT).unwrap();

    let policy: ObjectName = lab.apply(POLICY).unwrap().remove(0);
    eventually(SHORT, "the live connection to end", || {
        let lines = inbound(&lab, &near, &client)?;
        let ended = lines.iter().any(|line| said(line, "reason") == "revoked");
        anyhow::ensure!(ended, "{lines:#?}");
        Ok(())
    })
    .unwrap();
    held.wait_for_output("reset", SHORT).unwrap();
    eventually(SHORT, "a new connection to be refused", || {
        anyhow::ensure!(get(&lab, client.place(), &format!("http://{address}:8080/")).is_err(), "it was answered");
        let lines = inbound(&lab, &near, &client)?;
        anyhow::ensure!(lines.iter().any(|line| said(line, "reason") == "policy_denied"), "{lines:#?}");
        Ok(())
    })
    .unwrap();
    lab.delete(&policy).unwrap();
    wait_tunnelled(&lab, &client, &near, false);
}

#[test]
fn tunnels_are_used_where_they_are_forced_or_any_network_policy_is_known() {
    let lab = alone().unwrap();
    let (client, near) = pods(&lab);
    wait_tunnelled(&lab, &client, &near, false);
    // Whomever it selects: joined bytes would not be seen by whoever enforces it.
    let policy = lab.apply(NETWORK_POLICY).unwrap().remove(0);
    wait_tunnelled(&lab, &client, &near, true);
    lab.delete(&policy).unwrap();
    wait_tunnelled(&lab, &client, &near, false);
    drop(lab);

    let lab = alone_with(|options| options.node_proxy_flags.push("--always-tunnel".to_owned())).unwrap();
    let (client, near) = pods(&lab);
    let (outbound, inbound) = call(&lab, &client, &near).unwrap();
    assert!(is_tunnelled(&outbound) && is_tunnelled(&inbound), "{outbound} {inbound}");
    // Long enough for the mark to arrive.
    std::thread::sleep(Duration::from_secs(1));
    wait_tunnelled(&lab, &client, &near, true);
}
