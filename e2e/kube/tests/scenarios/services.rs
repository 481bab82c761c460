//! Without a mesh: what the cluster does by itself, which the mesh must not change.

use std::time::Duration;

use underpass_e2e_kube::{Capture, Load, Namespace, Workload, cluster};

#[test]
fn pods_of_two_nodes_talk_by_a_services_name_and_see_each_others_addresses() {
    let cluster = cluster();
    let workers = cluster.workers().unwrap();
    let space = Namespace::new(cluster, "services").unwrap();
    let (client, server) = (Workload::new("client").on(&workers[0]), Workload::new("server").on(&workers[1]));
    space.start(&[&client, &server]).unwrap();
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
fn a_service_spreads_calls_over_its_pods() {
    let cluster = cluster();
    let space = Namespace::new(cluster, "spread").unwrap();
    let client = Workload::new("client");
    let server = Workload::new("server").replicas(3);
    space.start(&[&client, &server]).unwrap();
    let load = Load::start(cluster, &space, "client", "http://server/spread", 2).unwrap();
    load.run_on(Duration::from_secs(3));
    load.finish().unwrap().flawless().unwrap();
    for pod in space.pods("server").unwrap() {
        let log = space.run(&["logs", &pod.name]).unwrap();
        assert!(log.contains("GET /spread"), "{} was never called: {log}", pod.name);
    }
}
