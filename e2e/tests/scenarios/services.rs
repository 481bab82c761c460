//! Services: virtual addresses, named target ports, headless names; endpoints that come and go.

use std::collections::BTreeSet;

use underpass_e2e::{PLAIN, SHORT, call, get, said, server, world};
use underpass_lab::{PodSpec, eventually};

#[test]
fn a_virtual_address_leads_to_every_endpoint() {
    let world = world();
    let mut seen = BTreeSet::new();
    eventually(SHORT, "both endpoints to have answered", || {
        let answer = get(&world.lab, world.client.place(), "http://servers/")?;
        seen.insert(answer.split(',').next().unwrap_or_default().to_owned());
        anyhow::ensure!(seen.len() == 2, "{seen:?}");
        Ok(())
    })
    .unwrap();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["i am far", "i am near"]);
}

#[test]
fn a_port_without_a_name_for_its_target_means_itself() {
    let world = world();
    let seen = call(&world.lab, world.client.place(), "half_close", ("10.96.0.20", 8081)).unwrap();
    assert_eq!(seen, "later:answer me after my end");
}

#[test]
fn a_port_that_the_service_has_not_is_not_served() {
    let world = world();
    let seen = call(&world.lab, world.client.place(), "outcome", ("10.96.0.20", 81)).unwrap();
    // The client's own proxy had to accept before it could know.
    assert_eq!(seen, "reset");
    eventually(SHORT, "the access line that says why", || {
        let lines = world.lab.access_log(&world.client.node)?;
        let line = lines.iter().find(|line| said(line, "dst.addr") == "10.96.0.20:81");
        anyhow::ensure!(line.is_some_and(|line| said(line, "reason") == "no_service_port"), "{line:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn the_names_of_a_headless_service_are_its_pods() {
    let world = world();
    let answer = get(&world.lab, world.client.place(), "http://headless.mesh.svc.cluster.local:8080/").unwrap();
    assert!(answer.starts_with("i am near") || answer.starts_with("i am far"), "{answer}");
}

#[test]
fn a_service_of_uncaptured_pods_is_reached_in_plaintext() {
    let world = world();
    let answer = get(&world.lab, world.client.place(), "http://outsiders.plain/").unwrap();
    assert_eq!(answer, format!("i am far, you are {}", world.client.v4().unwrap()));
}

#[test]
fn endpoints_that_are_not_ready_get_nothing_and_those_that_come_are_used() {
    let world = world();
    let lab = &world.lab;
    lab.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: changing, namespace: plain}, spec: {clusterIP: 10.96.0.30, \
         clusterIPs: [10.96.0.30], selector: {group: changing}, ports: [{port: 80, targetPort: 8080}]}}",
    )
    .unwrap();
    let add = |name: &str| server(lab, &PodSpec::new("node-b", PLAIN, name).label("group", "changing")).unwrap();
    let says = |wanted: &str| {
        eventually(SHORT, wanted, || {
            let mut seen = BTreeSet::new();
            for _ in 0..6 {
                seen.insert(
                    get(lab, world.client.place(), "http://10.96.0.30/")?
                        .split(',')
                        .next()
                        .unwrap_or_default()
                        .to_owned(),
                );
            }
            anyhow::ensure!(seen == BTreeSet::from([format!("i am {wanted}")]), "{seen:?}");
            Ok(())
        })
        .unwrap();
    };
    let first = add("changing-1");
    says("changing-1");
    let second = add("changing-2");
    lab.pod_ready(&first.name, false).unwrap();
    says("changing-2");
    lab.pod_ready(&first.name, true).unwrap();
    lab.pod_delete(&second.name).unwrap();
    says("changing-1");
    lab.pod_delete(&first.name).unwrap();
}

#[test]
fn a_client_keeps_its_endpoint_where_a_service_asks_for_it() {
    let world = world();
    let lab = &world.lab;
    lab.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: sticky, namespace: plain}, spec: {clusterIP: 10.96.0.31, \
         clusterIPs: [10.96.0.31], selector: {group: sticky}, sessionAffinity: ClientIP, \
         ports: [{port: 80, targetPort: 8080}]}}",
    )
    .unwrap();
    let add = |name: &str| server(lab, &PodSpec::new("node-b", PLAIN, name).label("group", "sticky")).unwrap();
    let answer = || {
        let answer = get(lab, world.client.place(), "http://10.96.0.31/")?;
        Ok(answer.split(',').next().unwrap_or_default().to_owned())
    };
    let first = add("sticky-1");
    eventually(SHORT, "the only endpoint to answer", || {
        anyhow::ensure!(answer()? == "i am sticky-1");
        Ok(())
    })
    .unwrap();
    let others: Vec<_> = (2..6).map(|number| add(&format!("sticky-{number}"))).collect();
    // That they are known shows a client of the same node without affinity.
    lab.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: spread, namespace: plain}, spec: {clusterIP: 10.96.0.32, \
         clusterIPs: [10.96.0.32], selector: {group: sticky}, ports: [{port: 80, targetPort: 8080}]}}",
    )
    .unwrap();
    let mut seen = BTreeSet::new();
    eventually(SHORT, "all endpoints to have answered", || {
        seen.insert(get(lab, world.client.place(), "http://10.96.0.32/")?.split(',').next().unwrap().to_owned());
        anyhow::ensure!(seen.len() == 5, "{seen:?}");
        Ok(())
    })
    .unwrap();
    let calls = || (0..12).map(|_| answer()).collect::<anyhow::Result<BTreeSet<String>>>();
    assert_eq!(calls().unwrap(), BTreeSet::from(["i am sticky-1".to_owned()]), "others came, the client's is there");

    lab.pod_ready(&first.name, false).unwrap();
    let second = eventually(SHORT, "another one to answer, and only that", || {
        let mut seen = calls()?;
        anyhow::ensure!(seen.len() == 1 && !seen.contains("i am sticky-1"), "{seen:?}");
        Ok(seen.pop_first().unwrap_or_default())
    })
    .unwrap();
    lab.pod_ready(&first.name, true).unwrap();
    let back = BTreeSet::from([second]);
    for _ in 0..3 {
        assert_eq!(calls().unwrap(), back, "a session does not go back");
    }
    for pod in others.iter().chain([&first]) {
        lab.pod_delete(&pod.name).unwrap();
    }
}
