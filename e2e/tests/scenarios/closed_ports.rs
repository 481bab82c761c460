//! Capture makes no port look open that is not.

use underpass_e2e::{call, world};

const NOBODY: u16 = 8099;
const LOOPBACK_ONLY: u16 = 8085;

#[test]
fn closed_ports_of_captured_pods_refuse_strangers() {
    let world = world();
    for server in [&world.near, &world.far] {
        let address = server.v4().unwrap().to_string();
        for port in [NOBODY, LOOPBACK_ONLY] {
            let seen = call(&world.lab, world.plain_client.place(), "outcome", (&address, port)).unwrap();
            assert_eq!(seen, "refused", "{address}:{port}");
        }
    }
}

#[test]
fn closed_ports_of_captured_pods_answer_nothing_to_the_mesh() {
    let world = world();
    for server in [&world.near, &world.far] {
        let address = server.v4().unwrap().to_string();
        for port in [NOBODY, LOOPBACK_ONLY] {
            // The client's own proxy had to accept before it could know, so the word is a reset.
            let seen = call(&world.lab, world.client.place(), "outcome", (&address, port)).unwrap();
            assert!(["refused", "reset"].contains(&&*seen), "{address}:{port} was {seen}");
        }
    }
}

#[test]
fn closed_ports_of_uncaptured_pods_answer_nothing_to_the_mesh() {
    let world = world();
    let address = world.plain_far.v4().unwrap().to_string();
    let seen = call(&world.lab, world.client.place(), "outcome", (&address, NOBODY)).unwrap();
    assert!(["refused", "reset"].contains(&&*seen), "{seen}");
}

#[test]
fn a_loopback_port_still_serves_its_own_pod() {
    let world = world();
    let answer = underpass_e2e::get(&world.lab, world.client.place(), "http://127.0.0.1:8085/").unwrap();
    assert_eq!(answer, "i am client, you are 127.0.0.1");
}
