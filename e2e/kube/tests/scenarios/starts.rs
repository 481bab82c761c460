//! Pods of every kind start inside the mesh, and are part of it from their first packet on.

use serde_json::{Value, json};
use underpass_e2e_kube::{Cluster, Namespace, SHORT, Workload, cluster, container, mesh};
use underpass_lab::eventually;
use underpass_model::names::{ENROLLED, MESH_LABEL};

/// A pod's template of the scenarios' program.
fn template(cluster: &Cluster, name: &str, arguments: &[&str], more: &Value) -> Value {
    let mut spec = json!({
        "serviceAccountName": "caller",
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "containers": [container(cluster, arguments, &json!({}))],
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "metadata": { "labels": { "app": name, "workload": name } }, "spec": spec })
}

fn job(name: &str, template: &Value) -> Value {
    // Its first try is the only one.
    let spec = json!({ "backoffLimit": 0, "template": template });
    json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name }, "spec": spec })
}

/// A server that answers identities of its own namespace only, so that whoever is answered is known.
fn guarded(purpose: &str) -> Namespace {
    let (cluster, _mesh) = (cluster(), mesh());
    let there = &cluster.workers().unwrap()[1];
    let space = Namespace::new(cluster, purpose).unwrap();
    space.label(MESH_LABEL, Some(ENROLLED)).unwrap();
    space.start(&[&Workload::new("server").on(there)]).unwrap();
    space.wait_captured().unwrap();
    let policy = format!(
        "apiVersion: underpass.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: known}}\nspec:
  targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: server}}}}}}]
  rules: [{{sources: [{{type: Namespace, namespace: {}}}]}}]\n",
        space.name()
    );
    space.apply(&policy).unwrap();
    space.apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: caller}\n").unwrap();
    let outside = Namespace::new(cluster, "unknown").unwrap();
    outside.start(&[&Workload::new("stranger")]).unwrap();
    let url = format!("http://server.{}/", space.name());
    eventually(SHORT, "a stranger to be refused", || {
        let answer = outside.call("stranger", &url);
        anyhow::ensure!(answer.is_err(), "{answer:?}");
        Ok(())
    })
    .unwrap();
    space
}

const CALL: [&str; 2] = ["get", "http://server/"];

#[test]
fn a_jobs_first_call_and_that_of_an_init_container_are_the_meshs() {
    let (cluster, space) = (cluster(), guarded("jobs"));
    let nodes = cluster.workers().unwrap();
    let plain = template(cluster, "job", &CALL, &json!({}));
    let mut init = container(cluster, &CALL, &json!({}));
    init["name"] = "init".into();
    // Where the server runs, too: a call within a node is as much the mesh's.
    let by_init = json!({ "initContainers": [init], "nodeSelector": { "kubernetes.io/hostname": nodes[1] } });
    let jobs = [job("first", &plain), job("init", &template(cluster, "init", &CALL, &by_init))];
    let cron = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "cron" },
        "spec": { "schedule": "0 0 1 1 *", "jobTemplate": { "spec": { "backoffLimit": 0, "template": plain } } },
    });
    for object in jobs.iter().chain([&cron]) {
        space.apply(&object.to_string()).unwrap();
    }
    space.run(&["create", "job", "now", "--from=cronjob/cron"]).unwrap();
    for name in ["first", "init", "now"] {
        space.wait_for(&format!("job/{name}"), "condition=Complete").unwrap();
    }
}

#[test]
fn pods_of_a_stateful_set_and_a_daemon_set_are_reached_by_their_names() {
    let (cluster, space) = (cluster(), guarded("sets"));
    let serve = json!({ "restartPolicy": "Always" });
    let set = |kind: &str, name: &str, more: Value| {
        let mut spec = json!({
            "selector": { "matchLabels": { "app": name } },
            "template": template(cluster, name, &["serve", name, "8080"], &serve),
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "apiVersion": "apps/v1", "kind": kind, "metadata": { "name": name }, "spec": spec })
    };
    let headless = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "stateful" },
        "spec": { "clusterIP": "None", "selector": { "app": "stateful" }, "ports": [{ "port": 8080 }] },
    });
    let stateful = set("StatefulSet", "stateful", json!({ "serviceName": "stateful", "replicas": 2 }));
    for object in [headless, stateful, set("DaemonSet", "everywhere", json!({}))] {
        space.apply(&object.to_string()).unwrap();
    }
    space.wait_for_rollout("statefulset/stateful").unwrap();
    space.wait_for_rollout("daemonset/everywhere").unwrap();
    let server = space.pod("server").unwrap().address;
    for member in ["stateful-0", "stateful-1"] {
        let answer = space.reach("server", &format!("http://{member}.stateful:8080/")).unwrap();
        assert_eq!(answer, format!("i am stateful, you are {server}"));
    }
    for pod in space.pods("everywhere").unwrap() {
        let answer = space.run(&["exec", &pod.name, "--", "underpass-e2e-app", "get", CALL[1]]).unwrap();
        assert_eq!(answer.trim(), format!("i am server, you are {}", pod.address), "from {}", pod.node);
    }
}

#[test]
fn a_pod_in_its_nodes_network_is_left_out_and_goes_on() {
    let (cluster, space) = (cluster(), guarded("host"));
    let host = json!({ "hostNetwork": true, "restartPolicy": "Always" });
    let pod = template(cluster, "host", &["wait"], &host);
    let object = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "host", "labels": pod["metadata"]["labels"] }, "spec": pod["spec"] });
    space.apply(&object.to_string()).unwrap();
    space.wait_for("pod/host", "condition=Ready").unwrap();
    // It has no identity, so the guarded server refuses it; others answer.
    let outside = Namespace::new(cluster, "open").unwrap();
    outside.start(&[&Workload::new("open")]).unwrap();
    let open = outside.pod("open").unwrap().address;
    let call = |url: &str| space.run(&["exec", "host", "--", "underpass-e2e-app", "get", url]);
    let answer = call(&format!("http://{open}:8080/")).unwrap();
    assert!(answer.starts_with("i am open"), "{answer}");
    let guarded = space.pod("server").unwrap().address;
    assert!(call(&format!("http://{guarded}:8080/")).is_err());
    let rules = cluster.on_node(
        &space.run(&["get", "pod", "host", "-o=jsonpath={.spec.nodeName}"]).unwrap(),
        &["nft", "list", "tables"],
    );
    let rules = rules.unwrap();
    assert!(!rules.contains("underpass"), "rules in the node's own network: {rules}");
}
