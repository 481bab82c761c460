//! Annotations leave out what a user wants left out, and nothing else.

use underpass_e2e::{MESH, SHORT, get, server, world};
use underpass_lab::{PodSpec, Program, Wire, until};
use underpass_model::names::{EXCLUDE_INBOUND_PORTS, EXCLUDE_OUTBOUND_CIDRS, EXCLUDE_OUTBOUND_PORTS, HBONE_PORT};

/// What the fabric shows of one call to `far`.
fn wire_of_call(spec: &PodSpec) -> Wire {
    let world = world();
    let client = world.lab.pod_add(spec).unwrap();
    let far = world.far.v4().unwrap();
    let capture = world.lab.capture_fabric().unwrap();
    get(&world.lab, client.place(), &format!("http://{far}:8080/left-out")).unwrap();
    let wire = capture.finish().unwrap().of(client.v4().unwrap());
    world.lab.pod_delete(&client.name).unwrap();
    wire
}

#[test]
fn outbound_ports_and_ranges_are_left_out() {
    let spec = |name: &str| PodSpec::new("node-a", MESH, name);
    let wire = wire_of_call(&spec("leaves-port").annotation(EXCLUDE_OUTBOUND_PORTS, "9999,8080"));
    assert!(wire.shows("left-out") && wire.on_port(HBONE_PORT).segments.is_empty(), "{wire:?}");
    let wire = wire_of_call(&spec("leaves-range").annotation(EXCLUDE_OUTBOUND_CIDRS, "10.0.0.0/8"));
    assert!(wire.shows("left-out") && wire.on_port(HBONE_PORT).segments.is_empty(), "{wire:?}");
}

#[test]
fn what_is_not_left_out_is_captured() {
    let spec = PodSpec::new("node-a", MESH, "leaves-others");
    let wire = wire_of_call(
        &spec.annotation(EXCLUDE_OUTBOUND_PORTS, "9999").annotation(EXCLUDE_OUTBOUND_CIDRS, "192.0.2.0/24"),
    );
    assert!(!wire.shows("left-out") && wire.on_port(HBONE_PORT).tls_records() > 0, "{wire:?}");
}

#[test]
fn an_annotation_that_changes_is_followed_and_nothing_was_put_right() {
    let world = world();
    let pod = world.lab.pod_add(&PodSpec::new("node-a", MESH, "changes-its-mind")).unwrap();
    world.lab.wait_captured(&pod, true, SHORT).unwrap();
    world.lab.annotate_pod(&pod.name, EXCLUDE_OUTBOUND_PORTS, Some("9999")).unwrap();
    let agent = world.lab.program(&Program::agent("node-a")).unwrap();
    let told = || agent.output().lines().filter(|line| line.contains(&pod.uid)).map(str::to_owned).collect::<Vec<_>>();
    until(SHORT, "the agent to follow", || told().iter().any(|line| line.contains("follow its annotations"))).unwrap();
    assert!(!told().iter().any(|line| line.contains("put right")), "{:#?}", told());
    world.lab.pod_delete(&pod.name).unwrap();
}

#[test]
fn inbound_ports_are_left_out_for_strangers() {
    let world = world();
    let spec = PodSpec::new("node-b", MESH, "leaves-inbound").annotation(EXCLUDE_INBOUND_PORTS, "8080");
    let pod = server(&world.lab, &spec).unwrap();
    let url = format!("http://{}:8080/", pod.v4().unwrap());
    get(&world.lab, world.plain_client.place(), &url).unwrap();
    let url = format!("http://{}:8081/", pod.v4().unwrap());
    // The echo server's answer is no HTTP, but its connection is accounted for after the other would have been.
    get(&world.lab, world.plain_client.place(), &url).ok();
    until(SHORT, "the captured port to be accounted for", || {
        underpass_e2e::inbound(&world.lab, &pod, &world.plain_client).is_ok_and(|lines| !lines.is_empty())
    })
    .unwrap();
    let lines = underpass_e2e::inbound(&world.lab, &pod, &world.plain_client).unwrap();
    let on = |port: &str| lines.iter().filter(|line| line["dst.addr"].as_str().unwrap().ends_with(port)).count();
    assert_eq!((on(":8080"), on(":8081")), (0, 1), "{lines:#?}");
    world.lab.pod_delete(&pod.name).unwrap();
}
