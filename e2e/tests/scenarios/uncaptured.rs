//! Captured and uncaptured pods call each other in plaintext, both ways, as do hosts outside.

use underpass_e2e::{SHORT, get, world};
use underpass_lab::{Place, Pod};

fn url(pod: &Pod) -> String {
    format!("http://{}:8080/", pod.v4().unwrap())
}

#[test]
fn captured_pods_reach_uncaptured_ones() {
    let world = world();
    let own = world.client.v4().unwrap();
    for (server, name) in [(&world.plain_client, "client"), (&world.plain_far, "far")] {
        let answer = get(&world.lab, world.client.place(), &url(server)).unwrap();
        assert_eq!(answer, format!("i am {name}, you are {own}"));
    }
}

#[test]
fn uncaptured_pods_reach_captured_ones() {
    let world = world();
    let own = world.plain_client.v4().unwrap();
    for (server, name) in [(&world.near, "near"), (&world.far, "far")] {
        let answer = get(&world.lab, world.plain_client.place(), &url(server)).unwrap();
        assert_eq!(answer, format!("i am {name}, you are {own}"));
    }
}

#[test]
fn hosts_outside_reach_captured_pods_and_are_reached() {
    let world = world();
    let answer = get(&world.lab, Place::Outside, &url(&world.far)).unwrap();
    assert_eq!(answer, "i am far, you are 172.30.0.100");

    let server = world.lab.spawn(Place::Outside, "http", &["python3", "-m", "http.server", "9090"]).unwrap();
    underpass_lab::eventually(SHORT, "the outside server", || {
        get(&world.lab, Place::Outside, "http://127.0.0.1:9090/").map(drop)
    })
    .unwrap();
    let from_mesh = get(&world.lab, world.client.place(), "http://172.30.0.100:9090/");
    server.kill().unwrap();
    from_mesh.unwrap();
}
