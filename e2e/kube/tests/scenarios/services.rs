//! Services of all kinds.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use underpass_e2e_kube::{Capture, Load, Namespace, SHORT, Workload, cluster};
use underpass_lab::eventually;

/// A client on one node, and so many servers, on any node or another one.
fn start(purpose: &str, servers: &Workload) -> Namespace {
    let cluster = cluster();
    let space = Namespace::new(cluster, purpose).unwrap();
    space.start(&[&Workload::new("client").on(&cluster.workers().unwrap()[0]), servers]).unwrap();
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

fn names(space: &Namespace) -> BTreeSet<String> {
    space.pods("server").unwrap().into_iter().map(|pod| pod.name).collect()
}

#[test]
fn pods_of_two_nodes_talk_by_a_services_name_and_see_each_others_addresses() {
    let cluster = cluster();
    let space = start("names", &Workload::new("server").on(&cluster.workers().unwrap()[1]));
    let client = space.pod("client").unwrap();

    let wire = Capture::start(cluster).unwrap();
    let host = format!("server.{}.svc.cluster.local", space.name());
    let answer = space.reach("client", &format!("http://{host}/readable")).unwrap();
    assert_eq!(answer, format!("i am server, you are {}", client.address));

    // Which shows that captures see what passes between nodes.
    let wire = wire.finish().unwrap().of(client.address);
    assert!(wire.shows("GET /readable") && wire.shows("i am server"), "{} segments", wire.segments.len());
}

#[test]
fn calls_are_spread_over_all_pods() {
    let space = start("spread", &Workload::new("server").replicas(3));
    let load = Load::start(cluster(), &space, "client", "http://server/spread", 2).unwrap();
    load.run_on(Duration::from_secs(3));
    load.finish().unwrap().flawless().unwrap();
    for pod in space.pods("server").unwrap() {
        let log = space.run(&["logs", &pod.name]).unwrap();
        assert!(log.contains("GET /spread"), "{} was never called: {log}", pod.name);
    }
}

#[test]
fn a_client_keeps_its_pod_where_it_asks_to() {
    let space = start("affinity", &Workload::new("server").replicas(3));
    service(&space, "sticky", "sessionAffinity: ClientIP");
    assert_eq!(answering(&space, "http://sticky", 12).len(), 1, "the client's calls went to several pods");
}

#[test]
fn a_service_may_keep_to_the_clients_node() {
    let cluster = cluster();
    let [here, there] = &cluster.workers().unwrap()[..2] else { panic!("two nodes") };
    let space = start("local", &Workload::new("server").on(here));
    // Of the same Services, but on the other node.
    space.start(&[&Workload::new("far").labelled("server").on(there)]).unwrap();
    service(&space, "near", "internalTrafficPolicy: Local");
    assert_eq!(answering(&space, "http://near", 12), BTreeSet::from([space.pod("server").unwrap().name]));
}

#[test]
fn a_headless_services_name_is_its_pods_addresses() {
    let space = start("headless", &Workload::new("server").replicas(2));
    service(&space, "headless", "clusterIP: None");
    let addresses: BTreeSet<IpAddr> = space.pods("server").unwrap().into_iter().map(|pod| pod.address).collect();
    let name = format!("headless.{}.svc.cluster.local", space.name());
    eventually(SHORT, "the name to be all addresses", || {
        let found = space.exec("client", &["nslookup", &name])?;
        anyhow::ensure!(addresses.iter().all(|one| found.contains(&one.to_string())), "{addresses:?}: {found}");
        Ok(())
    })
    .unwrap();
    assert!(answering(&space, "http://headless:8080", 3).is_subset(&names(&space)));
}

#[test]
fn a_port_of_every_node_leads_to_the_pods() {
    let cluster = cluster();
    let space = start("nodeport", &Workload::new("server").replicas(2));
    service(&space, "outside", "type: NodePort");
    let port = space.run(&["get", "service", "outside", "--output=jsonpath={.spec.ports[0].nodePort}"]).unwrap();
    for node in cluster.workers().unwrap() {
        let address = "--output=jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
        let addresses = cluster.run(&["get", "node", &node, address]).unwrap();
        let address = addresses.split(' ').next().unwrap();
        assert!(answering(&space, &format!("http://{address}:{port}"), 3).is_subset(&names(&space)));
    }
}

#[test]
fn an_external_name_leads_to_what_it_names() {
    let space = start("alias", &Workload::new("server"));
    let target = format!("server.{}.svc.cluster.local", space.name());
    let metadata = "apiVersion: v1\nkind: Service\nmetadata: {name: alias}";
    space.apply(&format!("{metadata}\nspec: {{type: ExternalName, externalName: {target}}}\n")).unwrap();
    assert_eq!(answering(&space, "http://alias", 1), names(&space));
}

#[test]
fn the_other_family_of_addresses_works_as_well() {
    let space = start("ipv6", &Workload::new("server"));
    service(&space, "six", "ipFamilies: [IPv6], ipFamilyPolicy: SingleStack");
    let answer = space.reach("client", "http://six/").unwrap();
    let addresses = "--output=jsonpath={.items[0].status.podIPs[*].ip}";
    let addresses = space.run(&["get", "pods", "--selector=app=client", addresses]).unwrap();
    let six = addresses.split(' ').find(|one| one.contains(':')).expect("the client has an IPv6 address");
    assert_eq!(answer, format!("i am server, you are {six}"));
}
