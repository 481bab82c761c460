//! A pod that cannot be captured is its own trouble: the others of its node are served, start, and come back.

use anyhow::ensure;
use underpass_e2e::{LONG, MESH, SHORT, alone_with, get, said, server};
use underpass_lab::{Lab, Place, Pod, PodSpec, Process, Program, eventually};
use underpass_model::names::{ENROLLED, HBONE_PORT, LIMIT_HANDSHAKES, MESH_LABEL, NOT_ENROLLED};

use crate::slow_handshakes::TRICKLE;

const NODE: &str = "node-a";
/// Handshakes at once.
const FEW: usize = 4;

/// A pod that waits for enrolment.
fn outside(lab: &Lab, name: &str) -> Pod {
    lab.pod_add(&PodSpec::new(NODE, MESH, name).label(MESH_LABEL, NOT_ENROLLED)).unwrap()
}

fn enrol(lab: &Lab, pod: &Pod) {
    lab.label_pod(&pod.name, MESH_LABEL, Some(ENROLLED)).unwrap();
}

/// Waits until the agent has said of a pod why it is not captured.
fn wait_complaint(lab: &Lab, pod: &Pod, word: &str) {
    let agent = lab.process(&Program::agent(NODE).process_name()).unwrap();
    eventually(SHORT, &format!("the agent to speak of {word} for {}", pod.name), || {
        let output = agent.output();
        ensure!(output.lines().any(|line| line.contains(&pod.uid) && line.contains(word)), "{output}");
        Ok(())
    })
    .unwrap();
    assert_eq!(lab.capture_state(pod), None, "{}", pod.name);
}

/// Calls between every two neighbours of a ring, and from the outside in.
fn all_are_served(lab: &Lab, pods: &[Pod]) {
    for (from, to) in pods.iter().zip(pods.iter().cycle().skip(1)) {
        lab.wait_captured(to, true, SHORT).unwrap();
        let url = format!("http://{}:8080/", to.v4().unwrap());
        let answer = get(lab, from.place(), &url).unwrap();
        assert!(answer.starts_with(&format!("i am {}", to.name.name)), "{answer}");
    }
}

/// More peers than may shake hands at once come to a pod that has nothing to show them.
fn peers_of_the_unsigned(lab: &Lab, unsigned: &Pod) -> Process {
    let (address, port) = (unsigned.v4().unwrap().to_string(), HBONE_PORT.to_string());
    let argv = ["python3", "-c", TRICKLE, &address, &port, &(2 * FEW).to_string()];
    let peers = lab.spawn(Place::Outside, "peers", &argv).unwrap();
    peers.wait_for_output("all open", SHORT).unwrap();
    peers
}

/// Each of them is told that the pod has no certificate, and none that others wait for the same.
fn wait_peers_told(lab: &Lab) {
    eventually(SHORT, "a line for each peer", || {
        let lines = lab.access_log(NODE)?;
        let of_peers = lines.iter().filter(|line| said(line, "src.addr").starts_with("172.30.0.100:"));
        let reasons: Vec<_> = of_peers.map(|line| said(line, "reason")).collect();
        ensure!(reasons.len() == 2 * FEW, "{reasons:?}");
        assert!(reasons.iter().all(|reason| reason.starts_with("certificate_")), "{reasons:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn twenty_pods_of_which_one_of_each_kind_is_broken() {
    let lab = alone_with(|options| options.nodes = 1).unwrap();
    let good = |number: u32| PodSpec::new(NODE, MESH, &format!("good-{number}")).service_account("good");

    // Its rules cannot be written: another program owns the table.
    let unruly = outside(&lab, "unruly");
    let script = "exec nft -i < <(echo 'add table inet underpass { flags owner; }'; exec sleep 600)";
    let owner = lab.spawn(unruly.place(), "owner", &["bash", "-c", script]).unwrap();
    eventually(SHORT, "the table to have its owner", || {
        let tables = lab.run(unruly.place(), &["nft", "list", "tables"], SHORT)?.ok()?;
        ensure!(tables.contains("underpass"), "{tables:?}");
        Ok(())
    })
    .unwrap();
    // Its namespace vanishes.
    let vanished = outside(&lab, "vanished");
    lab.vanish(&vanished).unwrap();
    enrol(&lab, &unruly);
    enrol(&lab, &vanished);
    wait_complaint(&lab, &unruly, "rules");
    wait_complaint(&lab, &vanished, "namespace");

    let mut pods: Vec<Pod> = (1..=16).map(|number| server(&lab, &good(number)).unwrap()).collect();
    all_are_served(&lab, &pods);

    // Its identity cannot be signed: nobody is there to sign. A pod of a known account starts all the same.
    let unsigned = PodSpec::new(NODE, MESH, "unsigned").label(MESH_LABEL, NOT_ENROLLED);
    let unsigned = lab.pod_add(&unsigned.annotation(LIMIT_HANDSHAKES, &FEW.to_string())).unwrap();
    lab.kill_program(&Program::Operator).unwrap();
    enrol(&lab, &unsigned);
    wait_complaint(&lab, &unsigned, "certificate");
    let peers = peers_of_the_unsigned(&lab, &unsigned);
    let late = server(&lab, &good(17)).unwrap();
    for pod in &pods {
        let url = format!("http://{}:8080/", pod.v4().unwrap());
        get(&lab, late.place(), &url).unwrap();
    }
    pods.push(late);

    peers.wait_for_output("left 0", SHORT).unwrap();
    wait_peers_told(&lab);

    // Once it can be signed it is; the others stay broken, and neither they nor a new proxy keep anybody from being served.
    lab.start_program(&Program::Operator).unwrap();
    lab.wait_captured(&unsigned, true, SHORT).unwrap();
    lab.kill_program(&Program::node_proxy(NODE)).unwrap();
    lab.start_program(&Program::node_proxy(NODE)).unwrap();
    all_are_served(&lab, &pods);
    for broken in [&unruly, &vanished] {
        assert_eq!(lab.capture_state(broken), None, "{}", broken.name);
    }

    // What is mended is captured.
    owner.kill().unwrap();
    lab.wait_captured(&unruly, true, LONG).unwrap();
}
