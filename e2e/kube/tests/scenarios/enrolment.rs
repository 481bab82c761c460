//! A namespace with running pods is labelled, and its label removed, under load.

use std::time::Duration;

use underpass_e2e_kube::{Capture, Load, Namespace, SHORT, Workload, cluster, mesh};
use underpass_lab::{eventually, until};
use underpass_model::names::{ENROLLED, HBONE_PORT, MESH_LABEL};

/// How long load goes on around each change.
const AROUND: Duration = Duration::from_secs(2);

#[test]
fn a_namespace_is_enrolled_and_unenrolled_under_load_without_a_failed_call() {
    let (cluster, mesh) = (cluster(), mesh());
    let [here, there] = &cluster.workers().unwrap()[..2] else { panic!("two nodes") };
    let space = Namespace::new(cluster, "enrolment").unwrap();
    let on = |name: &str, node: &str| Workload::new(name).on(node);
    space.start(&[&on("client", here), &on("near", here), &on("far", there)]).unwrap();
    let client = space.pod("client").unwrap();
    let load = |to: &str| Load::start(cluster, &space, "client", &format!("http://{to}/load"), 2).unwrap();
    let loads = [load("near"), load("far")];
    loads[0].run_on(AROUND);

    space.label(MESH_LABEL, Some(ENROLLED)).unwrap();
    space.wait_captured().unwrap();
    let capture = |time: Duration| {
        let wire = Capture::start(cluster).unwrap();
        loads[0].run_on(time);
        wire.finish().unwrap().of(client.address)
    };
    until(SHORT, "new connections to be tunnelled", || {
        let wire = capture(Duration::from_millis(300));
        wire.on_port(HBONE_PORT).tls_records() > 0 && wire.on_port(8080).opened() == 0
    })
    .unwrap();
    let wire = capture(AROUND);
    assert!(wire.on_port(HBONE_PORT).tls_records() > 0, "nothing was encrypted");
    assert_eq!(wire.on_port(8080).opened(), 0, "new connections were in plaintext after enrolment");
    for server in ["near", "far"] {
        let answer = space.call("client", &format!("http://{server}/")).unwrap();
        assert_eq!(answer, format!("i am {server}, you are {}", client.address));
    }
    let identity = |account: &str| format!("spiffe://cluster.local/ns/{}/sa/{account}", space.name());
    eventually(SHORT, "both identities in the server's metrics", || {
        let metrics = mesh.metrics(there)?;
        let [source, destination] = [("source", "client"), ("destination", "far")]
            .map(|(end, account)| format!("{end}_principal=\"{}\"", identity(account)));
        let is_counted = |line: &str| {
            line.starts_with("istio_tcp_connections_opened_total{")
                && line.contains(&source)
                && line.contains(&destination)
        };
        anyhow::ensure!(metrics.lines().any(is_counted), "{metrics}");
        Ok(())
    })
    .unwrap();

    // The captured connection made now shall live through un-enrolment.
    let captured = load("far");
    captured.run_on(AROUND);
    space.label(MESH_LABEL, None).unwrap();
    until(SHORT, "new connections to be plain again", || {
        let wire = capture(Duration::from_millis(300));
        wire.on_port(8080).opened() > 0 && wire.on_port(HBONE_PORT).opened() == 0
    })
    .unwrap();
    captured.run_on(AROUND);
    for load in loads.into_iter().chain([captured]) {
        let report = load.finish().unwrap();
        report.flawless().unwrap();
        assert!(report.exchanges > 10, "{report:?}");
    }
    space.wait_released().unwrap();
}
