//! What people do to a lab by hand: they interrupt it, end it twice, start its programs again.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use underpass_e2e::{MESH, SHORT, alone_with, server};
use underpass_lab::{Lab, Options, PodSpec, Program, ScopedLab};

/// `underpass lab VERB… --name NAME`.
fn underpass(binaries: &Path, name: &str, verb: &[&str]) -> Command {
    let mut command = Command::new(binaries.join("underpass"));
    command.arg("lab").args(verb).args(["--name", name]).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn who_interrupts_a_lab_that_comes_up_is_left_with_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let name = format!("i{}x{}", std::process::id(), signal as i32);
        let binaries = Options::new(&name).unwrap().binaries;
        let mut coming = underpass(&binaries, &name, &["up"]).spawn().unwrap();
        let mut lines = BufReader::new(coming.stdout.take().unwrap()).lines().map_while(Result::ok);
        let step = lines.find(|line| line.contains("starting the operator"));
        assert!(step.is_some(), "{}", text(&coming.wait_with_output().unwrap().stderr));
        kill(Pid::from_raw(coming.id().try_into().unwrap()), signal).unwrap();
        let rest: Vec<String> = lines.collect();
        let ended = coming.wait_with_output().unwrap();
        let told = text(&ended.stderr);
        assert!(!ended.status.success() && !rest.iter().any(|line| line.contains("is up")), "{rest:?} {told}");
        assert!(told.contains("interrupted") && told.contains("nothing of it is left"), "{told}");
        assert!(!Lab::names().contains(&name), "something is left");
    }
}

#[test]
fn of_two_who_take_a_lab_down_at_once_neither_fails() {
    let lab = ScopedLab::up(|options| options.mesh = false).unwrap();
    let name = &lab.options().name;
    let both = [(); 2].map(|()| underpass(&lab.options().binaries, name, &["down"]).spawn().unwrap());
    let both: Vec<Output> = both.into_iter().map(|one| one.wait_with_output().unwrap()).collect();
    assert!(both.iter().all(|one| one.status.success()), "{both:?}");
    let who_did = both.iter().filter(|one| text(&one.stdout).contains("nothing of it is left")).count();
    assert_eq!(who_did, 1, "{both:?}");
    assert!(!Lab::names().contains(name));
}

#[test]
fn a_program_that_has_ended_is_started_again_by_its_name() {
    let lab = alone_with(|options| options.nodes = 1).unwrap();
    let options = lab.options();
    let verb = |verb: &[&str]| underpass(&options.binaries, &options.name, verb).output().unwrap();
    lab.kill_program(&Program::agent("node-a")).unwrap();
    let told = text(&verb(&["status"]).stderr);
    assert!(told.contains("`underpass lab restart node-a.agent`"), "{told}");
    let done = verb(&["restart", "node-a.agent", "operator"]);
    assert!(done.status.success(), "{done:?}");
    let pod = server(&lab, &PodSpec::new("node-a", MESH, "late")).unwrap();
    lab.wait_captured(&pod, true, SHORT).unwrap();
    assert_eq!(text(&verb(&["status"]).stderr), "");

    for (program, part) in
        [("node-a.nodeproxy", "underpass lab upgrade node-a"), ("node-b.agent", "there are node-a.agent")]
    {
        let refused = verb(&["restart", program]);
        let told = text(&refused.stderr);
        assert!(!refused.status.success() && told.contains(part), "{program}: {told}");
    }
    lab.kill_program(&Program::node_proxy("node-a")).unwrap();
    let done = verb(&["restart", "node-a.nodeproxy"]);
    assert!(done.status.success(), "{done:?}");
}
