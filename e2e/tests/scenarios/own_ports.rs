//! The mesh's own ports in a pod serve nobody who dials them by hand.

use underpass_e2e::{SHORT, World, call, inbound, world};
use underpass_lab::eventually;
use underpass_model::names::{HBONE_PORT, OWN_PORTS};

#[test]
fn calls_to_our_own_ports_are_refused() {
    let world = world();
    let address = world.far.v4().unwrap().to_string();
    for from in [&world.client, &world.plain_client] {
        for port in OWN_PORTS {
            let seen = call(&world.lab, from.place(), "outcome", (&address, port)).unwrap();
            // Port 15008 takes anyone's connection, and ends it when no certificate comes.
            let allowed: &[&str] =
                if port == HBONE_PORT { &["refused", "reset", "closed"] } else { &["refused", "reset"] };
            let tls_alert = port == HBONE_PORT && seen.starts_with("answered b'\\x15\\x03");
            assert!(allowed.contains(&&*seen) || tls_alert, "{} to {address}:{port}: {seen}", from.name);
        }
    }
}

#[test]
fn a_pod_calling_its_own_capture_ports_does_not_loop() {
    let world = world();
    let own = world.client.v4().unwrap().to_string();
    for host in ["127.0.0.1", &own] {
        for port in OWN_PORTS {
            let seen = call(&world.lab, world.client.place(), "outcome", (host, port)).unwrap();
            assert!(!seen.starts_with("silent"), "{host}:{port}: {seen}");
        }
    }
}

#[test]
fn a_stranger_with_the_tunnels_source_port_does_not_walk_past_capture() {
    let world = world();
    let (lab, far) = (&world.lab, &world.far);
    let url = format!("http://{}:8080/", far.v4().unwrap());
    let argv = ["curl", "-sS", "--max-time", "5", "--local-port", "15008", &url];
    lab.run(world.plain_client.place(), &argv, SHORT).unwrap().ok().unwrap();
    let source = World::at(&world.plain_client, HBONE_PORT).unwrap();
    eventually(SHORT, "the connection to be accounted for", || {
        let lines = inbound(lab, far, &world.plain_client)?;
        let seen = lines.iter().any(|line| line.get("src.addr").and_then(|at| at.as_str()) == Some(&*source));
        anyhow::ensure!(seen, "{lines:#?}");
        Ok(())
    })
    .unwrap();
}
