//! Node proxies are replaced while they carry load.

use underpass_e2e_kube::cluster;

use crate::{AROUND, alone, enrolled, load};

#[test]
fn every_node_proxy_is_replaced_under_load_without_a_failed_call() {
    let _alone = alone();
    let (cluster, space) = (cluster(), enrolled("upgrade"));
    let loads = [load(&space, "near"), load(&space, "far")];
    loads[0].run_on(AROUND);
    let system = ["--namespace", "underpass-system"];
    let proxies = || {
        cluster
            .run(&[&system[..], &["get", "pods", "-l=app.kubernetes.io/component=nodeproxy", "-o=name"]].concat())
            .unwrap()
    };
    let before = proxies();
    cluster.run(&[&system[..], &["rollout", "restart", "daemonset/underpass-nodeproxy"]].concat()).unwrap();
    let status = ["rollout", "status", "daemonset/underpass-nodeproxy", "--timeout=200s"];
    cluster.run_with(&[&system[..], &status].concat(), None, std::time::Duration::from_secs(210)).unwrap();
    loads[0].run_on(AROUND);
    let after = proxies();
    assert!(before.lines().all(|pod| !after.contains(pod)), "some were not replaced: {before} {after}");
    for load in loads {
        let report = load.finish().unwrap();
        // A connection older than the time to drain may end, a shorter one may not.
        assert!(report.calls > 100 && report.failures.is_empty(), "{report:#?}");
    }
}
