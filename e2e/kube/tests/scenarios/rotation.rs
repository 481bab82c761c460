//! Keys that sign are replaced under load.

use std::time::Duration;

use underpass_e2e_kube::{Load, Namespace, SHORT, Workload, cluster, mesh};
use underpass_lab::eventually;
use underpass_model::names::{ENROLLED, MESH_LABEL};

#[test]
fn issuing_certificates_and_roots_are_replaced_under_load_without_a_failed_call() {
    let (cluster, mesh) = (cluster(), mesh());
    let [here, there] = &cluster.workers().unwrap()[..2] else { panic!("two nodes") };
    let space = Namespace::new(cluster, "rotation").unwrap();
    space.label(MESH_LABEL, Some(ENROLLED)).unwrap();
    space.start(&[&Workload::new("client").on(here), &Workload::new("server").on(there)]).unwrap();
    space.wait_captured().unwrap();
    let load = Load::start(cluster, &space, "client", "http://server/", 2).unwrap();
    let roots = || -> anyhow::Result<usize> {
        let bundle =
            ["--namespace=underpass-system", "get", "configmap", "underpass-root", "-o=jsonpath={.data.root\\.pem}"];
        Ok(cluster.run(&bundle)?.matches("BEGIN CERTIFICATE").count())
    };
    let before = roots().unwrap();
    mesh.ask_operator("/rotate?what=issuing").unwrap();
    load.run_on(Duration::from_secs(2));
    mesh.ask_operator("/rotate?what=root").unwrap();
    eventually(SHORT, "a further root to be told", || {
        let now = roots()?;
        anyhow::ensure!(now == before + 1, "{now} roots, {before} before");
        Ok(())
    })
    .unwrap();
    // One that starts now has its certificate by the new issuer, and is believed by those that have an old one.
    space.start(&[&Workload::new("late").on(there)]).unwrap();
    space.wait_captured().unwrap();
    assert!(space.reach("client", "http://late/").unwrap().starts_with("i am late"));
    load.run_on(Duration::from_secs(2));
    load.finish().unwrap().flawless().unwrap();
}
