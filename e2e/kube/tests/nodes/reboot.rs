//! A node whose power is cut comes back with its pods.

use underpass_e2e_kube::{Capture, Namespace, SHORT, Workload, cluster};
use underpass_lab::eventually;
use underpass_model::names::HBONE_PORT;

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

#[test]
fn pods_of_a_node_that_was_cut_off_power_are_in_the_mesh_again() {
    let _alone = crate::alone();
    let (cluster, space) = (cluster(), crate::enrolled("reborn"));
    let there = &cluster.workers().unwrap()[1];
    let before = space.pod("far").unwrap();
    cluster.reboot(there).unwrap();
    eventually(SHORT, "the same pod with a new container", || {
        let pod = space.pod("far")?;
        anyhow::ensure!(pod.restarts > before.restarts, "{pod:?}");
        Ok(())
    })
    .unwrap();
    // In plaintext for two seconds at most, after it answers.
    space.reach("client", "http://far/").unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    let running = crate::load(&space, "far");
    let wire = Capture::start(cluster).unwrap();
    running.run_on(crate::AROUND);
    let wire = wire.finish().unwrap().of(space.pod("client").unwrap().address);
    assert!(wire.on_port(HBONE_PORT).tls_records() > 0, "nothing was encrypted");
    assert_eq!(wire.on_port(8080).opened(), 0, "plaintext after the node came back");
    running.finish().unwrap().flawless().unwrap();
}
