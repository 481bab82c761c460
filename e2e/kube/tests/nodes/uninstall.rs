//! The mesh is taken off a cluster whose pods are in it.

use underpass_e2e_kube::{cluster, mesh};

use crate::{AROUND, alone, enrolled, load};

#[test]
fn nothing_remains_of_the_mesh_and_no_call_fails_while_it_goes() {
    let _alone = alone();
    let (cluster, mesh, space) = (cluster(), mesh(), enrolled("leaving"));
    let loads = [load(&space, "near"), load(&space, "far")];
    loads[0].run_on(AROUND);
    let told = mesh.underpass(&["uninstall"]).unwrap();
    loads[0].run_on(AROUND);
    for node in cluster.workers().unwrap() {
        let chain = cluster.chain(&node).unwrap();
        assert!(!chain.contains(&"underpass-cni".to_owned()), "{node}: {chain:?}");
        let left = "ls -d /opt/cni/bin/underpass-cni /var/run/underpass /var/lib/underpass 2>/dev/null; true";
        let left = cluster.on_node(&node, &["sh", "-c", left]).unwrap();
        assert_eq!(left.trim(), "", "files on {node}: {told}");
    }
    for pod in ["client", "near", "far"] {
        let pod = space.pod(pod).unwrap();
        let condition = "-o=jsonpath={.status.conditions[?(@.type==\"underpass.dev/Captured\")].status}";
        let captured = space.run(&["get", "pod", &pod.name, condition]).unwrap();
        assert_ne!(captured, "True", "{pod:?}");
    }
    let objects = cluster.run(&["get", "namespace/underpass-system", "--ignore-not-found", "-o=name"]).unwrap();
    assert_eq!(objects.trim(), "", "{told}");
    let reports: Vec<_> = loads.into_iter().map(|load| load.finish().unwrap()).collect();
    // For whoever comes next.
    mesh.install().unwrap();
    space.wait_captured().unwrap();
    for report in reports {
        // Connections that the node proxies carried when they went at last have ended, no others.
        assert!(report.calls > 100 && report.failures.is_empty(), "{report:#?}");
    }
}
