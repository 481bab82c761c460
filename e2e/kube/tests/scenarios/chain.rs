//! The chain of CNI plugins that a node's runtime calls for each pod.

use underpass_e2e_kube::cluster;

#[test]
fn every_node_has_the_clusters_own_plugins() {
    let cluster = cluster();
    for node in cluster.workers().unwrap() {
        let chain = cluster.chain(&node).unwrap();
        assert_eq!(chain.first().map(String::as_str), Some("bridge"), "{node}: {chain:?}");
        assert!(chain.contains(&"portmap".to_owned()), "{node}: {chain:?}");
    }
}
