//! Everything over IPv6.

use underpass_e2e::{call, get, world};
use underpass_model::names::HBONE_PORT;

#[test]
fn captured_pods_reach_each_other_over_ipv6_encrypted() {
    let world = world();
    let (lab, own) = (&world.lab, world.client.v6().unwrap());
    let wire = lab.capture_fabric().unwrap();
    for (server, name) in [(&world.near, "near"), (&world.far, "far")] {
        let url = format!("http://[{}]:8080/six-on-the-wire", server.v6().unwrap());
        assert_eq!(get(lab, world.client.place(), &url).unwrap(), format!("i am {name}, you are {own}"));
    }
    let wire = wire.finish().unwrap();
    assert!(!wire.shows("six-on-the-wire"));
    let between = wire.of(own).of(world.far.v6().unwrap());
    assert!(between.on_port(HBONE_PORT).bytes() > 0, "no tunnel between the IPv6 addresses: {wire:?}");
    assert_eq!(between.on_port(8080).segments, []);
}

#[test]
fn strangers_are_served_over_ipv6() {
    let world = world();
    let own = world.plain_client.v6().unwrap();
    let url = format!("http://[{}]:8080/", world.far.v6().unwrap());
    assert_eq!(get(&world.lab, world.plain_client.place(), &url).unwrap(), format!("i am far, you are {own}"));
    let url = format!("http://[{}]:8080/", world.plain_far.v6().unwrap());
    let own = world.client.v6().unwrap();
    assert_eq!(get(&world.lab, world.client.place(), &url).unwrap(), format!("i am far, you are {own}"));
}

#[test]
fn closed_ports_refuse_over_ipv6() {
    let world = world();
    let address = world.far.v6().unwrap().to_string();
    assert_eq!(call(&world.lab, world.plain_client.place(), "outcome", (&address, 8099)).unwrap(), "refused");
}

#[test]
fn a_virtual_ipv6_address_is_served() {
    let world = world();
    let answer = get(&world.lab, world.client.place(), "http://[fd96::20]/").unwrap();
    assert!(answer.starts_with("i am "), "{answer}");
}
