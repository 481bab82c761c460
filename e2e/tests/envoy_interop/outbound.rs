//! A captured pod calls a pod whose tunnels an Envoy takes.

use std::path::Path;

use anyhow::ensure;
use serde_json::Value;
use underpass_e2e::{
    LONG, SHORT, call, call_with,
    envoy::{Envoy, Listener, cluster_by_authority, terminate},
    get, identity_of,
};
use underpass_lab::{Pod, eventually};
use underpass_model::names::HBONE_PORT;
use underpass_objects::{CaptureReport, CaptureState, status::StatusDirectory};

use crate::mesh::{Mesh, at, mesh};

const REDIS: u16 = 6379;

/// Says of a pod what the agent would say if it had captured it.
fn announce(mesh: &Mesh, pod: &Pod) {
    let report = CaptureReport {
        pod_uid: pod.uid.clone(),
        namespace: pod.name.namespace.clone(),
        name: pod.name.name.clone(),
        node: pod.node.clone(),
        state: CaptureState::Captured,
        generation: 0,
    };
    StatusDirectory::open(&mesh.lab.paths().status()).unwrap().report(&report).unwrap();
}

/// An Envoy that takes the gateway's tunnels, once the client's proxy has heard of it.
fn gateway(mesh: &Mesh) -> Envoy {
    let own = mesh.certificate(&mesh.gateway);
    let listener = Listener { name: "inbound", address: at(&mesh.gateway, HBONE_PORT) };
    let envoy =
        mesh.envoy(&mesh.gateway, &[terminate(&listener, &own, "cluster.local", None)], &[cluster_by_authority()]);
    announce(mesh, &mesh.gateway);
    eventually(SHORT, "calls to go through Envoy", || {
        get(&mesh.lab, mesh.client.place(), &format!("http://{}/", at(&mesh.gateway, 8080)))?;
        ensure!(envoy.counted("http.inbound.downstream_rq_total")? > 0, "they go past it");
        Ok(())
    })
    .unwrap();
    envoy
}

#[test]
fn a_captured_pod_reaches_a_server_behind_envoy() {
    let mesh = mesh();
    let envoy = gateway(&mesh);
    envoy_knows_who_calls(&mesh, &envoy);
    streams_go_through_whole(&mesh, &envoy);
    a_real_client_and_server_agree(&mesh, &envoy);
}

fn envoy_knows_who_calls(mesh: &Mesh, envoy: &Envoy) {
    let (target, client) = (at(&mesh.gateway, 8080), mesh.client.v4().unwrap());
    let entry = envoy.logged("a call", |entry| entry["authority"] == target.to_string()).unwrap();
    let text = |field: &str| entry[field].as_str().unwrap_or_default();
    assert_eq!((text("method"), text("protocol"), text("tls")), ("CONNECT", "HTTP/2", "TLSv1.3"), "{entry}");
    assert_eq!(text("peer"), identity_of(&mesh.client), "{entry}");
    assert_eq!(text("source"), client.to_string(), "{entry}");
    assert_eq!(entry["sni"], Value::Null, "{entry}");
    let baggage: Vec<&str> = text("baggage").split(',').collect();
    for member in ["k8s.namespace.name=mesh", "k8s.pod.name=client", "service.name=client"] {
        assert!(baggage.contains(&member), "{member} in {entry}");
    }
    assert!(text("forwarded").starts_with(&format!("for=\"{client}:")), "{entry}");
    assert!(text("traceparent").len() == 55 && text("traceparent").starts_with("00-"), "{entry}");
}

fn streams_go_through_whole(mesh: &Mesh, envoy: &Envoy) {
    let host = mesh.gateway.v4().unwrap().to_string();
    let size = 32 << 20;
    let sent = call_with(&mesh.lab, mesh.client.place(), "upload", (&host, 8083), &size.to_string()).unwrap();
    assert_eq!(sent, "same");
    let target = at(&mesh.gateway, 8083).to_string();
    let entry = envoy.logged("the transfer", |entry| entry["authority"] == target).unwrap();
    assert_eq!(entry["received"], size, "{entry}");
    let answer = call(&mesh.lab, mesh.client.place(), "half_close", (&host, 8081)).unwrap();
    assert_eq!(answer, "later:answer me after my end");
    assert!(envoy.access_log().iter().all(|entry| entry["method"] == "CONNECT" && entry["code"] == 200));
}

fn a_real_client_and_server_agree(mesh: &Mesh, envoy: &Envoy) {
    let (lab, host) = (&mesh.lab, mesh.gateway.v4().unwrap().to_string());
    let directory = tempfile::tempdir().unwrap();
    let files = path(directory.path());
    let redis = ["redis-server", "--bind", &host, "--protected-mode", "no", "--save", "", "--dir", &files];
    lab.spawn(mesh.gateway.place(), "redis", &redis).unwrap().wait_for_output("Ready to accept", SHORT).unwrap();

    let file = directory.path().join("value");
    let script = "set -eu; head -c 33554432 /dev/urandom > $2; redis-cli -h $1 -x set big < $2; \
                  redis-cli -h $1 --raw get big | head -c 33554432 | cmp - $2 && echo same";
    let argv = ["sh", "-c", script, "sh", &host, &path(&file)];
    let said = lab.run(mesh.client.place(), &argv, LONG).unwrap().ok().unwrap();
    assert_eq!(said.lines().collect::<Vec<_>>(), ["OK", "same"]);
    let target = at(&mesh.gateway, REDIS).to_string();
    let large = |field: &'static str| move |entry: &Value| entry[field].as_u64() > Some(32 << 20);
    for field in ["received", "sent"] {
        envoy.logged(field, |entry| entry["authority"] == target && large(field)(entry)).unwrap();
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
