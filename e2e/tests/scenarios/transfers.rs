//! Large transfers arrive whole, both ways.

use underpass_e2e::{call_with, world};

const SIZE: &str = "67108864";

#[test]
fn large_transfers_arrive_unchanged() {
    let world = world();
    for server in [&world.near, &world.far, &world.plain_far] {
        let address = server.v4().unwrap().to_string();
        for (what, port) in [("upload", 8083), ("download", 8084)] {
            let seen = call_with(&world.lab, world.client.place(), what, (&address, port), SIZE).unwrap();
            assert_eq!(seen, "same", "{what} {}", server.name);
        }
    }
}

#[test]
fn sizes_around_frames_and_windows_arrive_unchanged() {
    let world = world();
    let address = world.far.v4().unwrap().to_string();
    for size in [0, 1, 16_383, 16_384, 16_385, 65_535, 65_536, 1_048_577] {
        for (what, port) in [("upload", 8083), ("download", 8084)] {
            let seen = call_with(&world.lab, world.client.place(), what, (&address, port), &size.to_string()).unwrap();
            assert_eq!(seen, "same", "{what} of {size}");
        }
    }
}
