//! A pod that cannot be brought into the mesh is told so, and keeps nobody else out.

use underpass_e2e_kube::{Namespace, SHORT, Workload, cluster, mesh};
use underpass_lab::eventually;
use underpass_model::names::{ENROLLED, EXCLUDE_INBOUND_PORTS, MESH_LABEL};

#[test]
fn one_pod_that_cannot_be_enrolled_does_not_keep_the_others_out() {
    let (cluster, _mesh) = (cluster(), mesh());
    let node = &cluster.workers().unwrap()[1];
    let space = Namespace::new(cluster, "onebad").unwrap();
    let good: Vec<Workload> = (0..6).map(|number| Workload::new(&format!("good-{number}")).on(node)).collect();
    let bad = Workload::new("bad").on(node);
    space.start(&good.iter().chain([&bad]).collect::<Vec<_>>()).unwrap();
    let name = space.pod("bad").unwrap().name;
    space.run(&["annotate", "pod", &name, &format!("{EXCLUDE_INBOUND_PORTS}=eighty")]).unwrap();
    space.label(MESH_LABEL, Some(ENROLLED)).unwrap();
    let captured = |workload: &str| {
        let condition = "-o=jsonpath={.items[*].status.conditions[?(@.type==\"underpass.dev/Captured\")].status}";
        space.run(&["get", "pods", &format!("--selector=workload={workload}"), condition]).unwrap()
    };
    for number in 0..good.len() {
        eventually(SHORT, &format!("good-{number} to be captured"), || {
            let state = captured(&format!("good-{number}"));
            anyhow::ensure!(state == "True", "{state}");
            Ok(())
        })
        .unwrap();
    }
    assert_ne!(captured("bad"), "True");
    // It runs on as it did, and its users learn what is wrong with it.
    assert!(space.reach("good-0", "http://bad/").unwrap().starts_with("i am bad"));
    eventually(SHORT, "an Event that names the annotation", || {
        let events = space.run(&["get", "events", "--field-selector", &format!("involvedObject.name={name}")])?;
        anyhow::ensure!(events.contains(EXCLUDE_INBOUND_PORTS) && events.contains("eighty"), "{events}");
        Ok(())
    })
    .unwrap();
    space.run(&["annotate", "pod", &name, &format!("{EXCLUDE_INBOUND_PORTS}-")]).unwrap();
    space.wait_captured().unwrap();
}
