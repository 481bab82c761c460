//! The proxy as the child of its tiny parent: crashes, signals, exit codes, orphans.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Everything here takes well below a second on an idle machine.
const DEADLINE: Duration = Duration::from_secs(20);
const PROXY: &str = env!("CARGO_BIN_EXE_underpass-nodeproxy");
const FLAGS: [&str; 8] = [
    "--supervise",
    "--node-name=a",
    "--metrics-address=127.0.0.1:0",
    "--ready-address=127.0.0.1:0",
    "--admin-address=127.0.0.1:0",
    "--zds-socket=/nowhere/zds.sock",
    "--node-socket=/nowhere/node.sock",
    "--drain=0",
];

/// A supervised proxy in a process namespace of its own, in which the parent is the first process; all of it ends with
/// the test.
struct Supervised(Child);

impl Drop for Supervised {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < until, "{what}");
        sleep(Duration::from_millis(5));
    }
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

/// The proxy once it handles signals, which it does not from its first instant.
fn proxy_of(parent: u32) -> u32 {
    eventually("a proxy that runs", || {
        let child = *children(parent).first()?;
        let status = fs::read_to_string(format!("/proc/{child}/status")).ok()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?.trim().to_owned();
        let caught = u64::from_str_radix(&caught, 16).ok()?;
        (caught & (1 << (Signal::SIGTERM as u64 - 1)) != 0).then_some(child)
    })
}

/// `unshare` and its child, which is the parent of proxies.
fn start() -> (Supervised, u32) {
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "--", PROXY])
        .args(FLAGS)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let outer = Supervised(command.spawn().unwrap());
    let parent = eventually("the parent", || children(outer.0.id()).first().copied());
    (outer, parent)
}

#[test]
fn a_killed_proxy_is_followed_by_another_and_a_wish_to_stop_ends_both() {
    let (mut outer, parent) = start();
    let first = proxy_of(parent);
    signal(first, Signal::SIGKILL);
    let second = eventually("another proxy", || children(parent).into_iter().find(|pid| *pid != first));
    assert_eq!(proxy_of(parent), second);
    assert_eq!(children(parent), [second], "the first one is no zombie");
    signal(parent, Signal::SIGTERM);
    let status = eventually("the end", || outer.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0), "as the proxy, which stops well");
}

#[test]
fn what_others_leave_behind_in_the_container_is_reaped() {
    let (_outer, parent) = start();
    let proxy = proxy_of(parent);
    let parent_text = parent.to_string();
    let orphan = ["--target", &parent_text, "--pid", "--", "sh", "-c", "sleep 0.3 & exit 0"];
    assert!(Command::new("nsenter").args(orphan).status().unwrap().success());
    eventually("the orphan comes to the parent", || (children(parent).len() == 2).then_some(()));
    eventually("and goes", || (children(parent) == [proxy]).then_some(()));
}

#[test]
fn a_wrong_flag_is_told_once_and_not_tried_again() {
    let output = Command::new(PROXY).args(FLAGS).arg("--workers=none").output().unwrap();
    assert_eq!((output.status.code(), output.status.signal()), (Some(2), None));
}

#[test]
fn signals_that_mean_nothing_end_nobody_and_quit_is_a_wish_to_stop() {
    let (mut outer, parent) = start();
    let proxy = proxy_of(parent);
    for meaningless in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        signal(parent, meaningless);
    }
    sleep(Duration::from_millis(300));
    assert_eq!(children(parent), [proxy]);
    signal(parent, Signal::SIGQUIT);
    let status = eventually("the end", || outer.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0), "as the proxy, which stops well");
}
