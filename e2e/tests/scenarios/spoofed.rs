//! An address is not an identity: who takes another pod's address gains nothing by it.

use anyhow::ensure;
use underpass_e2e::{MESH, SHORT, World, call, get, identity_of, inbound, said, server, wait_authenticated, world};
use underpass_lab::{Lab, Place, Pod, PodSpec, eventually};

/// Calls a pod's web server from an address that the caller has taken; says what was answered.
const CALL_FROM: &str = r"
import socket, sys
connection = socket.socket()
connection.settimeout(10)
connection.setsockopt(socket.SOL_IP, 15, 1)  # IP_FREEBIND
connection.bind((sys.argv[1], int(sys.argv[3])))
connection.connect((sys.argv[2], 8080))
connection.sendall(b'GET / HTTP/1.0\r\n\r\n')
print(connection.makefile().read().splitlines()[-1])
";

/// A port that nobody binds by chance.
const FROM: u16 = 4711;

fn call_from(lab: &Lab, caller: &Pod, address: &str, to: &Pod) -> String {
    let argv = ["python3", "-c", CALL_FROM, address, &to.v4().unwrap().to_string(), &FROM.to_string()];
    lab.run(caller.place(), &argv, SHORT).unwrap().ok().unwrap().trim().to_owned()
}

/// A pod takes another one's address while its work goes on, then gives it back.
fn with_address<T>(lab: &Lab, pod: &Pod, address: &str, work: impl FnOnce() -> T) -> T {
    let change = |verb: &str| {
        let argv = ["ip", "address", verb, &format!("{address}/32"), "dev", "lo"];
        lab.run(pod.place(), &argv, SHORT).unwrap().ok().unwrap();
    };
    change("add");
    let done = work();
    change("del");
    done
}

/// The network of a node takes an address for a pod's while work goes on: all that is sent there reaches that pod.
fn with_neighbour<T>(lab: &Lab, pod: &Pod, address: &str, work: impl FnOnce() -> T) -> T {
    let link = lab.run(pod.place(), &["ip", "-json", "link", "show", "eth0"], SHORT).unwrap().ok().unwrap();
    let [link]: [serde_json::Value; 1] = serde_json::from_str(&link).unwrap();
    let change = |change: &[&str]| {
        let argv = [&["ip", "neighbour"], change].concat();
        lab.run(Place::node(&pod.node), &argv, SHORT).unwrap().ok().unwrap();
    };
    change(&["replace", address, "lladdr", said(&link, "address"), "dev", "cni0", "nud", "permanent"]);
    let done = work();
    change(&["del", address, "dev", "cni0"]);
    done
}

/// A pod that nobody else calls, because while its address is taken nobody's answers are sure to reach it.
fn victim(world: &World, name: &str) -> Pod {
    let victim = server(&world.lab, &PodSpec::new("node-a", MESH, name).service_account(name)).unwrap();
    wait_authenticated(&world.lab, &victim, &world.far).unwrap();
    victim
}

#[test]
fn a_captured_pod_with_anothers_address_speaks_as_itself() {
    let world = world();
    let (lab, thief, far) = (&world.lab, &world.near, &world.far);
    let victim = victim(&world, "victim");
    let stolen = victim.v4().unwrap().to_string();
    with_address(lab, thief, &stolen, || {
        // The destination sees whose tunnel it is.
        let answer = call_from(lab, thief, &stolen, far);
        assert_eq!(answer, format!("i am far, you are {}", thief.v4().unwrap()));
        let source = format!("{stolen}:{FROM}");
        eventually(SHORT, "the thief's own line", || {
            let lines = lab.access_log(&thief.node)?;
            let line =
                lines.iter().find(|line| said(line, "direction") == "outbound" && said(line, "src.addr") == source);
            let line = line.ok_or_else(|| anyhow::anyhow!("no line"))?;
            ensure!(said(line, "src.identity") == identity_of(thief), "{line:#}");
            Ok(())
        })
        .unwrap();
    });
    get(lab, victim.place(), &format!("http://{}:8080/", far.v4().unwrap())).unwrap();
}

#[test]
fn a_stranger_with_a_captured_pods_address_has_no_identity() {
    let world = world();
    let (lab, thief, far) = (&world.lab, &world.plain_client, &world.far);
    let victim = victim(&world, "other-victim");
    let stolen = victim.v4().unwrap().to_string();
    // Whom the answers reach is the network's business, and no promise of the mesh: here it is the thief.
    let theft = || with_neighbour(lab, thief, &stolen, || call_from(lab, thief, &stolen, far));
    assert_eq!(with_address(lab, thief, &stolen, theft), format!("i am far, you are {stolen}"));
    eventually(SHORT, "the stranger's line", || {
        let lines = inbound(lab, far, &victim)?;
        let line = lines.iter().find(|line| said(line, "src.addr") == format!("{stolen}:{FROM}"));
        let line = line.ok_or_else(|| anyhow::anyhow!("no line: {lines:#?}"))?;
        assert_eq!(said(line, "src.identity"), "", "{line:#}");
        Ok(())
    })
    .unwrap();
    // As soon as the network's neighbour entries have forgotten the thief.
    eventually(SHORT, "the address's owner to be answered", || {
        let answered = call(lab, victim.place(), "outcome", (&far.v4().unwrap().to_string(), 8081))?;
        ensure!(answered.starts_with("answered"), "{answered}");
        Ok(())
    })
    .unwrap();
}
