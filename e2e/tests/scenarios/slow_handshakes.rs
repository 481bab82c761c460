//! Many who begin a handshake and never end it.

use std::time::Duration;

use anyhow::ensure;
use underpass_e2e::{MESH, SHORT, call, said, server, wait_authenticated, world};
use underpass_lab::{Place, PodSpec, eventually};
use underpass_model::names::{HBONE_PORT, LIMIT_HANDSHAKES};

/// How many slow ones there are.
const SLOW: usize = 60;

/// Opens connections, says one byte of a TLS record every half second on each, until all were ended by the other side.
pub(crate) const TRICKLE: &str = r"
import select, socket, sys, time
begun, record = time.monotonic(), bytes([22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]) + bytes(500)
open_ones = {socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) for _ in range(int(sys.argv[3]))}
print('all open', flush=True)
for byte in record:
    for connection in list(open_ones):
        try:
            connection.sendall(bytes([byte]))
        except OSError:
            open_ones.discard(connection)
    ready, _, _ = select.select(list(open_ones), [], [], 0.5) if open_ones else ([], [], [])
    for connection in ready:
        try:
            if not connection.recv(1):
                open_ones.discard(connection)
        except OSError:
            open_ones.discard(connection)
    if not open_ones or time.monotonic() - begun > 50:
        break
    time.sleep(0.1)
print('left', len(open_ones), flush=True)
";

#[test]
fn handshakes_that_never_end_are_cut_and_stop_nobody_else() {
    let world = world();
    let (lab, far) = (&world.lab, &world.far);
    let address = far.v4().unwrap().to_string();
    let argv = ["python3", "-c", TRICKLE, &address, &HBONE_PORT.to_string(), &SLOW.to_string()];
    let slow = lab.spawn(Place::Outside, "slow", &argv).unwrap();
    slow.wait_for_output("all open", SHORT).unwrap();
    // A new tunnel needs a handshake among theirs; an old one carries on.
    for _ in 0..10 {
        let seen = call(lab, world.client.place(), "outcome", (&address, 8081)).unwrap();
        assert!(seen.starts_with("answered"), "{seen}");
    }
    slow.wait_for_output("left 0", SHORT).unwrap();
    eventually(Duration::from_secs(20), "a line for each that was cut", || {
        let lines = lab.access_log(&far.node)?;
        let cut = lines.iter().filter(|line| {
            said(line, "src.addr").starts_with("172.30.0.100:") && said(line, "reason") == "tunnel_handshake_timeout"
        });
        let cut = cut.count();
        ensure!(cut >= SLOW, "{cut}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn more_handshakes_than_may_be_do_not_keep_others_out() {
    let world = world();
    let lab = &world.lab;
    let narrow = PodSpec::new("node-b", MESH, "narrow").annotation(LIMIT_HANDSHAKES, "20");
    let narrow = server(lab, &narrow).unwrap();
    let address = narrow.v4().unwrap().to_string();
    let argv = ["python3", "-c", TRICKLE, &address, &HBONE_PORT.to_string(), &SLOW.to_string()];
    let slow = lab.spawn(Place::Outside, "many-slow", &argv).unwrap();
    slow.wait_for_output("all open", SHORT).unwrap();
    // Nobody has a tunnel to this pod yet: the first call needs a handshake.
    wait_authenticated(lab, &world.client, &narrow).unwrap();
    eventually(SHORT, "a line for one that had to make room", || {
        let lines = lab.access_log(&narrow.node)?;
        let reasons: Vec<_> = lines.iter().map(|line| said(line, "reason")).collect();
        ensure!(reasons.contains(&"budget_handshakes"), "{reasons:?}");
        Ok(())
    })
    .unwrap();
    slow.wait_for_output("left 0", SHORT).unwrap();
}
