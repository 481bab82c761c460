//! Kubelets probe captured pods under STRICT, and are answered as the applications answer.

use std::{thread, time::Duration};

use serde_json::{Value, json};
use underpass_e2e_kube::{Cluster, Namespace, SHORT, Workload, cluster, container, mesh};
use underpass_lab::eventually;
use underpass_model::names::{ENROLLED, MESH_LABEL};

/// A Deployment whose containers are probed each second, and restarted after one failure.
fn probed(cluster: &Cluster, name: &str, serve: &[&str], probe: &Value) -> String {
    let probe = |more: Value| {
        let mut probe = probe.clone();
        probe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        probe
    };
    let more = json!({
        "readinessProbe": probe(json!({ "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 5 })),
        "livenessProbe": probe(json!({ "periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 5 })),
    });
    let labels = json!({ "app": name, "workload": name });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "terminationGracePeriodSeconds": 1, "containers": [container(cluster, serve, &more)] },
            },
        },
    });
    format!("{deployment}\n")
}

#[test]
fn probes_of_every_kind_pass_under_strict_and_a_closed_port_fails_them() {
    let (cluster, _mesh) = (cluster(), mesh());
    let space = Namespace::new(cluster, "probes").unwrap();
    space.label(MESH_LABEL, Some(ENROLLED)).unwrap();
    space
        .apply(
            "apiVersion: underpass.dev/v1alpha1\nkind: MeshTLSMode\nmetadata: {name: strict}\nspec: {mode: STRICT}\n",
        )
        .unwrap();
    let serve = ["serve", "probed", "8080"];
    let kinds: [(&str, &[&str], Value); 4] = [
        ("http", &serve, json!({ "httpGet": { "port": 8080, "path": "/healthz" } })),
        ("tcp", &serve, json!({ "tcpSocket": { "port": 8080 } })),
        ("exec", &serve, json!({ "exec": { "command": ["underpass-e2e-app", "get", "http://localhost:8080/"] } })),
        ("grpc", &["serve-grpc", "8080"], json!({ "grpc": { "port": 8080 } })),
    ];
    let mut manifests: Vec<String> =
        kinds.iter().map(|(name, serve, probe)| probed(cluster, name, serve, probe)).collect();
    // Nobody listens there: with a redirect that takes every connection, this one would be ready.
    let closed = json!({ "tcpSocket": { "port": 9 } });
    manifests.push(probed(cluster, "closed", &serve, &closed).replace("livenessProbe", "startupProbe"));
    space.apply(&manifests.join("---\n")).unwrap();
    for (name, ..) in &kinds {
        space.wait_for_rollout(&format!("deployment/{name}")).unwrap();
    }
    // That the mode is in force.
    let outside = Namespace::new(cluster, "outside").unwrap();
    outside.start(&[&Workload::new("stranger")]).unwrap();
    let address = space.pod("http").unwrap().address;
    eventually(SHORT, "a stranger to be refused", || {
        let answer = outside.call("stranger", &format!("http://{address}:8080/"));
        anyhow::ensure!(answer.is_err(), "{answer:?}");
        Ok(())
    })
    .unwrap();
    let before: Vec<u64> = kinds.iter().map(|(name, ..)| space.pod(name).unwrap().restarts).collect();
    // Several probes of each.
    thread::sleep(Duration::from_secs(6));
    for ((name, ..), before) in kinds.iter().zip(before) {
        assert_eq!(space.pod(name).unwrap().restarts, before, "{name} was restarted");
        space.wait_for_rollout(&format!("deployment/{name}")).unwrap();
    }
    let ready = space.run(&["get", "deployment", "closed", "-o=jsonpath={.status.readyReplicas}"]).unwrap();
    assert_eq!(ready, "", "a pod is ready although its port is closed");
}
