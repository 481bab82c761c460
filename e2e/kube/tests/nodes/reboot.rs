//! A node whose power is cut comes back with its pods.

use underpass_e2e_kube::{Namespace, SHORT, Workload, cluster};
use underpass_lab::eventually;

#[test]
fn a_node_that_was_cut_off_power_runs_its_pods_again() {
    let _alone = crate::alone();
    let cluster = cluster();
    let workers = cluster.workers().unwrap();
    let space = Namespace::new(cluster, "reboot").unwrap();
    space.start(&[&Workload::new("client").on(&workers[0]), &Workload::new("server").on(&workers[1])]).unwrap();
    let (client, before) = (space.pod("client").unwrap(), space.pod("server").unwrap());
    space.reach("client", "http://server/before").unwrap();
    let chain = cluster.chain(&workers[1]).unwrap();

    cluster.reboot(&workers[1]).unwrap();
    let after = eventually(SHORT, "the same pod with a new container", || {
        let pod = space.pod("server")?;
        anyhow::ensure!(pod.restarts > before.restarts, "{pod:?}");
        Ok(pod)
    });
    assert_eq!(after.unwrap().uid, before.uid);
    let answer = space.reach("client", "http://server/after").unwrap();
    assert_eq!(answer, format!("i am server, you are {}", client.address));
    assert_eq!(cluster.chain(&workers[1]).unwrap(), chain);
    assert_eq!(space.pod("client").unwrap(), client, "the other node's pod noticed");
}
