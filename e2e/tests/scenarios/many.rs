//! A thousand connections at once.

use underpass_e2e::{call_with, world};

#[test]
fn a_thousand_connections_stand_at_once() {
    let world = world();
    for server in [&world.far, &world.near] {
        let address = server.v4().unwrap().to_string();
        let seen = call_with(&world.lab, world.client.place(), "many", (&address, 8081), "1000").unwrap();
        assert_eq!(seen, "1000 held");
    }
}
