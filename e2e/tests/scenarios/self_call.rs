//! A pod that calls itself.

use underpass_e2e::{get, world};

#[test]
fn a_pod_reaches_itself_by_its_own_address() {
    let world = world();
    let own = world.client.v4().unwrap();
    let answer = get(&world.lab, world.client.place(), &format!("http://{own}:8080/")).unwrap();
    assert_eq!(answer, format!("i am client, you are {own}"));
}

#[test]
fn a_pod_reaches_itself_by_loopback() {
    let world = world();
    let answer = get(&world.lab, world.client.place(), "http://127.0.0.1:8080/").unwrap();
    assert_eq!(answer, "i am client, you are 127.0.0.1");
}

#[test]
fn a_pod_reaches_a_service_that_it_is_part_of() {
    let world = world();
    for _ in 0..8 {
        let answer = get(&world.lab, world.near.place(), "http://servers/").unwrap();
        assert!(answer.starts_with("i am "), "{answer}");
    }
}
