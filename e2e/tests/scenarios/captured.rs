//! Captured pods call each other: encrypted, authenticated, with the client's address kept.

use underpass_e2e::{get, identity_of, inbound, world};
use underpass_lab::eventually;
use underpass_model::names::HBONE_PORT;

#[test]
fn across_two_nodes_the_wire_shows_only_tls() {
    let world = world();
    let (lab, client, far) = (&world.lab, &world.client, &world.far);
    let wire = lab.capture_fabric().unwrap();
    let url = format!("http://{}:8080/readable-on-the-wire", far.v4().unwrap());
    let answer = get(lab, client.place(), &url).unwrap();
    assert_eq!(answer, format!("i am far, you are {}", client.v4().unwrap()));

    let wire = wire.finish().unwrap().of(client.v4().unwrap()).of(far.v4().unwrap());
    assert!(!wire.shows("readable-on-the-wire") && !wire.shows("i am far"), "plaintext was on the wire");
    assert!(wire.on_port(HBONE_PORT).tls_records() >= 2, "no TLS on port {HBONE_PORT}");
    assert_eq!(wire.on_port(8080).segments, []);
}

#[test]
fn both_ends_know_each_other_by_identity() {
    let world = world();
    let (lab, client) = (&world.lab, &world.client);
    for server in [&world.near, &world.far] {
        get(lab, client.place(), &format!("http://{}:8080/", server.v4().unwrap())).unwrap();
        eventually(underpass_e2e::SHORT, "both ends' access lines", || {
            let inbound = inbound(lab, server, client)?;
            let outbound = lab.access_log("node-a")?;
            let says = |line: &serde_json::Value, key: &str, value: &str| {
                line.get(key).and_then(|v| v.as_str()) == Some(value)
            };
            let (theirs, ours) = (identity_of(server), identity_of(client));
            anyhow::ensure!(inbound.iter().any(|line| says(line, "src.identity", &ours)), "inbound: {inbound:#?}");
            let out =
                outbound.iter().any(|line| says(line, "direction", "outbound") && says(line, "dst.identity", &theirs));
            anyhow::ensure!(out, "outbound: {outbound:#?}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn on_one_node_nothing_crosses_the_pods_bridge_in_plaintext() {
    let world = world();
    let (lab, client, near) = (&world.lab, &world.client, &world.near);
    let wire = lab.capture(underpass_lab::Place::node("node-a"), "cni0").unwrap();
    let url = format!("http://{}:8080/readable-on-the-bridge", near.v4().unwrap());
    let answer = get(lab, client.place(), &url).unwrap();
    assert_eq!(answer, format!("i am near, you are {}", client.v4().unwrap()));
    let wire = wire.finish().unwrap().of(near.v4().unwrap());
    assert!(!wire.shows("readable-on-the-bridge"), "plaintext crossed the bridge");
}
