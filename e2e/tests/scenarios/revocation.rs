//! Who is revoked is refused, and cut off within a moment; nobody else is.

use std::time::{Duration, Instant, SystemTime};

use underpass_e2e::{MESH, SHORT, alone, identity_of, inbound, said, server, wait_authenticated};
use underpass_lab::{Lab, Pod, PodSpec, Process, Program, eventually, until};

use crate::{
    forged::{line, open, signed_by_the_root},
    policy::HOLD,
    rotation::{certificate, operator},
};

const REASON: &str = "peer_certificate_revoked";
/// Many times what it takes, for a machine that is busy; never would be the life of a certificate, a day.
const MOMENT: Duration = Duration::from_secs(20);

fn pod(lab: &Lab, node: &str, name: &str) -> Pod {
    server(lab, &PodSpec::new(node, MESH, name).service_account(name)).unwrap()
}

/// A connection that exchanges something all the time.
fn hold(lab: &Lab, client: &Pod, server: &Pod) -> Process {
    let argv = ["python3", "-c", HOLD, &server.v4().unwrap().to_string(), "8081"];
    let held = lab.spawn(client.place(), &format!("holds-{}-{}", client.name.name, server.name.name), &argv).unwrap();
    held.wait_for_output("exchange 3", SHORT).unwrap();
    held
}

fn wait_cut(lab: &Lab, held: &Process, since: Instant, client: &Pod, server: &Pod) {
    until(SHORT, "the revoked one's connection to end", || held.output().contains("broken after")).unwrap();
    assert!(since.elapsed() < MOMENT, "it lived on for {:?}", since.elapsed());
    eventually(SHORT, "the reason in the server's log", || {
        let lines = inbound(lab, server, client)?;
        anyhow::ensure!(lines.iter().any(|line| said(line, "reason") == REASON), "{lines:#?}");
        Ok(())
    })
    .unwrap();
}

/// The operator's revocation replaces the pod's own certificate, with which it is let in again.
fn wait_replaced(lab: &Lab, client: &Pod, server: &Pod, old: &str) {
    eventually(SHORT, "another certificate", || {
        let now = certificate(lab, client)?;
        anyhow::ensure!(said(&now, "state") == "valid" && said(&now, "serial") != old, "{now:#}");
        Ok(())
    })
    .unwrap();
    wait_authenticated(lab, client, server).unwrap();
}

#[test]
fn a_revoked_identity_and_a_revoked_certificate_are_cut_off_and_nobody_else_is() {
    let lab = alone().unwrap();
    let far = pod(&lab, "node-b", "far");
    let [thief, other, near] = ["thief", "other", "near"].map(|name| pod(&lab, "node-a", name));
    for client in [&thief, &other] {
        wait_authenticated(&lab, client, &far).unwrap();
        // Joined, without a tunnel that could be cut.
        wait_authenticated(&lab, client, &near).unwrap();
    }
    let serial = |pod: &Pod| certificate(&lab, pod).unwrap()["serial"].as_str().unwrap().to_owned();
    let old = [serial(&thief), serial(&other)];
    // A copy of the key, used from outside.
    let stolen = signed_by_the_root(&lab, &identity_of(&thief).parse().unwrap(), SystemTime::now()).unwrap();
    open(&lab, &far, &stolen).unwrap();
    let [of_thief, of_other] = [&thief, &other].map(|client| hold(&lab, client, &far));
    let [joined_thief, joined_other] = [&thief, &other].map(|client| hold(&lab, client, &near));

    let since = Instant::now();
    operator(&lab, "POST", &format!("/revoke?identity={}", identity_of(&thief))).unwrap();
    wait_cut(&lab, &of_thief, since, &thief, &far);
    wait_cut(&lab, &joined_thief, since, &thief, &near);
    open(&lab, &far, &stolen).unwrap_err();
    line(&lab, &far, "the refusal of the stolen key", |line| said(line, "reason") == REASON);
    wait_replaced(&lab, &thief, &far, &old[0]);
    assert_eq!(serial(&other), old[1], "nobody else's certificate is replaced");

    for held in [&of_other, &joined_other] {
        let exchanges = held.output().lines().count();
        until(SHORT, "the other's connection to live on", || held.output().lines().count() > exchanges + 3).unwrap();
    }

    // Nobody is called so, and whoever mistyped it would believe that it is done.
    let mistyped = format!("/revoke?identity={}x", identity_of(&thief));
    let refused = format!("{:#}", operator(&lab, "POST", &mistyped).unwrap_err());
    assert!(refused.contains("no pod runs as"), "{refused}");
    operator(&lab, "POST", &format!("{mistyped}&unknown=yes")).unwrap();
    let status = operator(&lab, "DELETE", &mistyped).unwrap();
    assert_eq!(status["revoked"].as_array().unwrap().len(), 1);

    let since = Instant::now();
    operator(&lab, "POST", &format!("/revoke?serial={}", old[1])).unwrap();
    wait_cut(&lab, &of_other, since, &other, &far);
    wait_cut(&lab, &joined_other, since, &other, &near);
    wait_replaced(&lab, &other, &far, &old[1]);
    let metrics = lab.metrics("node-b").unwrap();
    let count = metrics.lines().find_map(|line| line.strip_prefix("underpass_tunnels_revoked_total "));
    assert!(count.is_some_and(|count| count.parse::<f64>().unwrap() >= 2.0), "{count:?}");
    // What is revoked stays so while the operator is away, and after its next start.
    lab.kill_program(&Program::Operator).unwrap();
    open(&lab, &far, &stolen).unwrap_err();
    // A proxy that begins without any view lets nobody in, and from its first view on everybody but who is revoked.
    let visitor = "spiffe://cluster.local/ns/plain/sa/visitor".parse().unwrap();
    let visitor = signed_by_the_root(&lab, &visitor, SystemTime::now()).unwrap();
    let proxy = Program::node_proxy("node-b");
    lab.kill_program(&proxy).unwrap();
    std::fs::remove_file(lab.kept_view("node-b")).unwrap();
    lab.spawn_program(&proxy).unwrap();
    open(&lab, &far, &visitor).unwrap_err();
    lab.start_program(&Program::Operator).unwrap();
    until(SHORT, "others to be let in", || {
        open(&lab, &far, &stolen).unwrap_err();
        open(&lab, &far, &visitor).is_ok()
    })
    .unwrap();
    // Its pages come a moment after what it serves.
    let status = eventually(SHORT, "the operator's pages", || operator(&lab, "GET", "/authority")).unwrap();
    assert_eq!(status["revoked"].as_array().unwrap().len(), 2);
    wait_authenticated(&lab, &other, &far).unwrap();
    open(&lab, &far, &stolen).unwrap_err();
    operator(&lab, "DELETE", &format!("/revoke?identity={}", identity_of(&thief))).unwrap();
    until(SHORT, "what is believed again to be let in", || open(&lab, &far, &stolen).is_ok()).unwrap();
}
