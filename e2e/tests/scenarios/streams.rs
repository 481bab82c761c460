//! What TCP lets two programs do, the mesh lets them do.

use std::sync::Arc;

use underpass_e2e::{SHORT, World, call, world};
use underpass_lab::{Pod, eventually};

/// Every pair of client and server that takes a way of its own.
fn pairs(world: &Arc<World>) -> Vec<(&Pod, &Pod)> {
    let (client, plain) = (&world.client, &world.plain_client);
    vec![
        (client, &world.near),
        (client, &world.far),
        (client, &world.plain_far),
        (plain, &world.far),
        (plain, &world.near),
    ]
}

fn expect(what: &str, port: u16, wanted: impl Fn(&Pod) -> String) {
    let world = world();
    for (client, server) in pairs(&world) {
        let address = server.v4().unwrap().to_string();
        let seen = call(&world.lab, client.place(), what, (&address, port)).unwrap();
        assert_eq!(seen, wanted(server), "{} to {}", client.name, server.name);
    }
}

#[test]
fn a_server_may_speak_first() {
    expect("listens_first", 8082, |server| format!("220 {}\nTHANK YOU", server.name.name));
}

#[test]
fn a_client_may_end_its_half_and_still_be_answered() {
    expect("half_close", 8081, |_| "later:answer me after my end".to_owned());
}

#[test]
fn a_reset_arrives_as_a_reset() {
    expect("outcome", 8086, |_| "reset".to_owned());
}

#[test]
fn a_server_may_end_its_half_and_still_be_sent_to() {
    let world = world();
    for (client, server) in pairs(&world) {
        let address = server.v4().unwrap().to_string();
        let log = world.lab.process(&format!("{}.{}.servers", server.name.namespace, server.name.name)).unwrap();
        let before = log.output().matches("received 100000").count();
        let seen = call(&world.lab, client.place(), "other_half", (&address, 8087)).unwrap();
        assert_eq!(seen, server.name.name);
        eventually(SHORT, "what was sent after the server's end", || {
            let after = log.output().matches("received 100000").count();
            anyhow::ensure!(after > before, "{} to {}", client.name, server.name);
            Ok(())
        })
        .unwrap();
    }
}
