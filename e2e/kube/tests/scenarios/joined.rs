//! Pods of one node are joined without a tunnel, until somebody makes a NetworkPolicy or wants it otherwise.

use anyhow::Context as _;
use serde_json::Value;
use underpass_e2e_kube::{Cluster, Namespace, SHORT, Workload, cluster, mesh};
use underpass_lab::eventually;
use underpass_model::names::{ENROLLED, MESH_LABEL};

const NETWORK_POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: anybody}
spec: {podSelector: {matchLabels: {app: none-is-called-so}}}
";

/// More than any operator's certificates live.
const CONFIG: &str = "
apiVersion: underpass.dev/v1alpha1
kind: MeshConfig
metadata: {name: default}
spec: {sameNode: Tunnel, certificates: {lifetimeSeconds: 3000000000}}
";

/// It is the whole cluster's, and does not go with the scenario's namespace.
struct Config<'a>(&'a Cluster);

impl Drop for Config<'_> {
    fn drop(&mut self) {
        self.0.run(&["delete", "meshconfig/default", "--ignore-not-found"]).ok();
    }
}

/// Waits until a call of the client goes through a tunnel, or does not; before, they went the other way, if at all.
///
/// The last line is enough, and no lines are counted: of a log that the kubelet rotated only the newest part is shown.
fn wait_tunnelled(space: &Namespace, node: &str, wanted: bool) {
    let near = format!("{}:8080", space.pod("near").unwrap().address);
    eventually(SHORT, &format!("a call through a tunnel: {wanted}"), || {
        space.call("client", &format!("http://{near}/"))?;
        let lines = mesh().access_log(node)?;
        let is_call = |line: &&Value| {
            line["direction"] == "outbound" && line["src.namespace"] == space.name() && line["dst.addr"] == *near
        };
        let last = lines.iter().rfind(is_call).context("no access line")?;
        let is_tunnelled = last.get("dst.hbone_addr").is_some();
        anyhow::ensure!(is_tunnelled == wanted, "the last one: {last}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn pods_of_one_node_are_joined_unless_somebody_looks_or_says_otherwise() {
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

    // Or somebody wants it so, for the whole mesh.
    let other = CONFIG.replace("name: default", "name: other");
    let refused = space.apply(&other).unwrap_err();
    assert!(format!("{refused:#}").contains("its name is default"), "{refused:#}");
    let _config = Config(cluster);
    space.apply(CONFIG).unwrap();
    space.wait_for("meshconfig/default", "condition=Programmed").unwrap();
    wait_tunnelled(&space, node, true);
    let condition = r#"jsonpath={.status.conditions[?(@.type=="Accepted")].message}"#;
    let says = cluster.run(&["get", "meshconfig/default", "-o", condition]).unwrap();
    assert!(says.contains("spec.certificates.lifetimeSeconds"), "a life that nobody gives was accepted: {says}");
}
