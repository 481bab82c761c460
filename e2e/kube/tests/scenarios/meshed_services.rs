//! Services of all kinds, called from inside the mesh and answered there.

use std::{collections::BTreeSet, time::Duration};

use underpass_e2e_kube::{Load, Namespace, Workload, cluster, mesh};
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
    service(&space, "sticky", "sessionAffinity: ClientIP");
    assert_eq!(answering(&space, "http://sticky", 12).len(), 1, "the client's calls went to several pods");
    let by_name = space.reach("client", "http://headless:8080/host").unwrap();
    assert!(all.contains(&by_name), "{by_name}");
    let client = space.pod("client").unwrap().address;
    // By its address: the Service named like it has all pods with the label behind it.
    let far = space.pod("far").unwrap().address;
    assert_eq!(space.call("client", &format!("http://{far}:8080/")).unwrap(), format!("i am far, you are {client}"));
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
