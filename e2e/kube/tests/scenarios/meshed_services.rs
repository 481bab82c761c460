//! Services of all kinds, called from inside the mesh and answered there.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context as _;
use serde_json::{Value, json};
use underpass_e2e_kube::{Load, Namespace, SHORT, Workload, cluster, container, mesh};
use underpass_lab::eventually;
use underpass_model::names::{ENROLLED, MESH_LABEL};

/// An enrolled client on the first node, and servers.
fn start(purpose: &str, servers: &[&Workload]) -> Namespace {
    let (cluster, _mesh) = (cluster(), mesh());
    let space = Namespace::new(cluster, purpose).unwrap();
    space.label(MESH_LABEL, Some(ENROLLED)).unwrap();
    let client = Workload::new("client").on(&cluster.workers().unwrap()[0]);
    space.start(&[&[&client], servers].concat()).unwrap();
    space.wait_captured().unwrap();
    space
}

/// A further Service of the servers, with more to say.
fn service(space: &Namespace, name: &str, more: &str) {
    let ports = "ports: [{name: http, port: 80, targetPort: 8080}]";
    let metadata = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}");
    space.apply(&format!("{metadata}\nspec: {{selector: {{app: server}}, {ports}, {more}}}\n")).unwrap();
}

/// Which of the servers' pods answer so many calls.
fn answering(space: &Namespace, url: &str, calls: usize) -> BTreeSet<String> {
    space.reach("client", url).unwrap();
    (0..calls).map(|_| space.call("client", &format!("{url}/host")).unwrap()).collect()
}

fn names(space: &Namespace, workload: &str) -> BTreeSet<String> {
    space.pods(workload).unwrap().into_iter().map(|pod| pod.name).collect()
}

#[test]
fn services_choose_their_pods_as_without_a_mesh() {
    let nodes = cluster().workers().unwrap();
    let server = Workload::new("server").replicas(2).on(&nodes[0]);
    let far = Workload::new("far").labelled("server").on(&nodes[1]);
    let space = start("choices", &[&server, &far]);
    let all: BTreeSet<String> = names(&space, "server").union(&names(&space, "far")).cloned().collect();
    assert_eq!(answering(&space, "http://server", 40), all, "calls are not spread over all pods");
    service(&space, "near", "internalTrafficPolicy: Local");
    assert!(answering(&space, "http://near", 12).is_subset(&names(&space, "server")), "a call left its node");
    service(&space, "headless", "clusterIP: None");
    service(&space, "close", "trafficDistribution: PreferSameNode");
    assert!(answering(&space, "http://close", 12).is_subset(&names(&space, "server")), "a call left its node");
    service(&space, "sticky", "sessionAffinity: ClientIP");
    assert_eq!(answering(&space, "http://sticky", 12).len(), 1, "the client's calls went to several pods");
    let by_name = space.reach("client", "http://headless:8080/host").unwrap();
    assert!(all.contains(&by_name), "{by_name}");
    let client = space.pod("client").unwrap().address;
    let target = format!("server.{}.svc.cluster.local", space.name());
    let alias = format!("{{type: ExternalName, externalName: {target}}}");
    space.apply(&format!("{{apiVersion: v1, kind: Service, metadata: {{name: alias}}, spec: {alias}}}")).unwrap();
    space.reach("client", "http://alias/").unwrap();
    // By its address: the Service named like it has all pods with the label behind it.
    let far = space.pod("far").unwrap().address;
    assert_eq!(space.call("client", &format!("http://{far}:8080/")).unwrap(), format!("i am far, you are {client}"));
    // If the node has none, any other will do for who only prefers it.
    space.run(&["scale", "deployment/server", "--replicas=0"]).unwrap();
    eventually(SHORT, "the only pod that is left to answer", || {
        anyhow::ensure!(space.call("client", "http://close/host")? == space.pod("far")?.name);
        Ok(())
    })
    .unwrap();
}

#[test]
fn the_other_family_of_addresses_is_carried_and_kept() {
    let nodes = cluster().workers().unwrap();
    let space = start("six", &[&Workload::new("server").on(&nodes[1])]);
    service(&space, "six", "ipFamilies: [IPv6], ipFamilyPolicy: SingleStack");
    let answer = space.reach("client", "http://six/").unwrap();
    let addresses = "-o=jsonpath={.items[0].status.podIPs[*].ip}";
    let addresses = space.run(&["get", "pods", "--selector=app=client", addresses]).unwrap();
    let six = addresses.split_whitespace().find(|one| one.contains(':')).expect("the client has an IPv6 address");
    assert_eq!(answer, format!("i am server, you are {six}"));
    eventually(SHORT, "the other side's access line", || {
        let lines = mesh().access_log(&nodes[1])?;
        let of = |line: &&Value| line["direction"] == "inbound" && line["src.namespace"] == space.name();
        let line = lines.iter().rfind(of).context("no access line")?;
        let is_six = line["src.addr"].as_str().is_some_and(|address| address.starts_with(&format!("[{six}]")));
        anyhow::ensure!(
            is_six && line["src.identity"].as_str().is_some_and(|who| who.ends_with("/sa/client")),
            "{line}"
        );
        Ok(())
    })
    .unwrap();
}

#[test]
fn who_is_not_ready_is_called_only_where_a_service_says_so() {
    let cluster = cluster();
    let space = start("unready", &[&Workload::new("server")]);
    let never =
        json!({ "readinessProbe": { "exec": { "command": ["underpass-e2e-app", "get", "http://localhost:1/"] } } });
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "sick", "labels": { "app": "sick", "workload": "sick" } },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [container(cluster, &["serve", "sick", "8080"], &never)] },
    });
    let service = |name: &str, published: bool| {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name },
            "spec": {
                "selector": { "app": "sick" },
                "ports": [{ "port": 80, "targetPort": 8080 }],
                "publishNotReadyAddresses": published,
            },
        })
    };
    space
        .apply(&[pod, service("published", true), service("hidden", false)].map(|one| one.to_string()).join("\n---\n"))
        .unwrap();
    let client = space.pod("client").unwrap().address;
    assert_eq!(space.reach("client", "http://published/").unwrap(), format!("i am sick, you are {client}"));
    let refused = space.call("client", "http://hidden/").unwrap_err();
    let node = &cluster.workers().unwrap()[0];
    eventually(SHORT, "the line that says why nobody answers", || {
        let lines = mesh().access_log(node)?;
        let of = |line: &&Value| line["src.namespace"] == space.name() && line["reason"] == "no_endpoint";
        lines.iter().find(of).map(drop).with_context(|| format!("none; the caller saw {refused:#}"))
    })
    .unwrap();
}

#[test]
fn a_node_port_leads_into_the_mesh() {
    let cluster = cluster();
    let nodes = cluster.workers().unwrap();
    let space = start("nodeport", &[&Workload::new("server").on(&nodes[1])]);
    service(&space, "door", "type: NodePort");
    let port = space.run(&["get", "service", "door", "-o=jsonpath={.spec.ports[0].nodePort}"]).unwrap();
    let outside = Namespace::new(cluster, "visitor").unwrap();
    outside.start(&[&Workload::new("visitor").on(&nodes[0])]).unwrap();
    for node in &nodes {
        let address = "-o=jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
        let addresses = cluster.run(&["get", "node", node, address]).unwrap();
        let address = addresses.split_whitespace().next().unwrap();
        let answer = outside.reach("visitor", &format!("http://{address}:{port}/")).unwrap();
        assert!(answer.starts_with("i am server"), "{node}: {answer}");
    }
}

#[test]
fn a_backend_is_restarted_pod_by_pod_under_load_without_a_failed_call() {
    let space = start("rolling", &[&Workload::new("server").replicas(3)]);
    let load = Load::start(cluster(), &space, "client", "http://server/", 4).unwrap();
    load.run_on(Duration::from_secs(1));
    let before = names(&space, "server");
    space.run(&["rollout", "restart", "deployment/server"]).unwrap();
    space.wait_for_rollout("deployment/server").unwrap();
    load.run_on(Duration::from_secs(3));
    assert!(names(&space, "server").is_disjoint(&before));
    let report = load.finish().unwrap();
    // The kept connection ends with the pod at its other end, as it would without a mesh.
    assert!(report.calls > 100 && report.failures.is_empty(), "{report:#?}");
}
