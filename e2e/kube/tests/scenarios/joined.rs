//! Pods of one node are joined without a tunnel, until somebody makes a NetworkPolicy.

use underpass_e2e_kube::{Namespace, SHORT, Workload, cluster, mesh};
use underpass_lab::eventually;
use underpass_model::names::{ENROLLED, MESH_LABEL};

const NETWORK_POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: anybody}
spec: {podSelector: {matchLabels: {app: none-is-called-so}}}
";

/// Waits until the client's next call goes through a tunnel, or does not.
fn wait_tunnelled(space: &Namespace, node: &str, wanted: bool) {
    let near = format!("{}:8080", space.pod("near").unwrap().address);
    eventually(SHORT, &format!("a call through a tunnel: {wanted}"), || {
        let lines = || -> anyhow::Result<Vec<_>> {
            let mut lines = mesh().access_log(node)?;
            lines.retain(|line| line["direction"] == "outbound" && line["dst.addr"] == *near);
            Ok(lines)
        };
        let before = lines()?.len();
        space.call("client", &format!("http://{near}/"))?;
        eventually(SHORT, "its access line", || {
            let lines = lines()?;
            anyhow::ensure!(lines.len() > before, "none");
            Ok(())
        })?;
        let is_tunnelled = lines()?.last().is_some_and(|line| line.get("dst.hbone_addr").is_some());
        anyhow::ensure!(is_tunnelled == wanted, "the last one: {:?}", lines()?.last());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_network_policy_of_anybody_makes_pods_of_one_node_use_a_tunnel() {
    let (cluster, _mesh) = (cluster(), mesh());
    let node = &cluster.workers().unwrap()[0];
    let space = Namespace::new(cluster, "joined").unwrap();
    space.label(MESH_LABEL, Some(ENROLLED)).unwrap();
    space.start(&[&Workload::new("client").on(node), &Workload::new("near").on(node)]).unwrap();
    space.wait_captured().unwrap();
    wait_tunnelled(&space, node, false);
    space.apply(NETWORK_POLICY).unwrap();
    wait_tunnelled(&space, node, true);
    space.run(&["delete", "networkpolicy", "anybody"]).unwrap();
    wait_tunnelled(&space, node, false);
}
