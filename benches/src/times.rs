//! How long a new pod waits for its first answer, and a node proxy until it is ready.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use underpass_lab::{Lab, PodSpec, Program};
use underpass_model::names::READY_PORT;

use crate::{
    measure::Figures,
    memory::resident,
    world::{HTTP, Way},
};

/// From CNI ADD to the first answer, from a pod that is made for it.
pub(crate) fn first_byte(way: &Way, round: usize) -> Result<Figures> {
    let began = Instant::now();
    let pod = way.lab.pod_add(&PodSpec::new("node-a", "mesh", &format!("fresh-{round}")))?;
    let added = began.elapsed();
    let report = way.load_from(pod.place(), HTTP, &["first"], 0.0)?;
    let answered = began.elapsed();
    way.lab.pod_delete(&pod.name)?;
    ensure!(report.count == 1, "a new pod was not answered");
    Ok(vec![("ms to ADD's end", millis(added)), ("ms to first byte", millis(answered))])
}

/// From exec to readiness, with nothing to carry: a node proxy is started in the place of one that runs.
pub(crate) fn start_up(lab: &Lab) -> Result<Figures> {
    let program = Program::node_proxy("node-b");
    let process = lab.program(&program)?;
    let argv = fs::read(format!("/proc/{}/cmdline", process.pid)).context("the proxy's command line")?;
    let argv = String::from_utf8(argv)?;
    let argv: Vec<&str> = argv.trim_end_matches('\0').split('\0').collect();
    process.stop()?;
    let place = lab.proxy_pod("node-b")?.place();
    let figures = lab.inside(place, || start(&argv));
    lab.start_program(&program)?;
    figures
}

fn start(argv: &[&str]) -> Result<Figures> {
    const LONGEST: Duration = Duration::from_secs(30);
    let (program, arguments) = argv.split_first().context("an empty command line")?;
    let began = Instant::now();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = Ended(command.spawn().context("starting a node proxy")?);
    while !is_ready() {
        ensure!(began.elapsed() < LONGEST, "a node proxy did not get ready");
        ensure!(child.0.try_wait()?.is_none(), "a node proxy ended instead of getting ready");
        thread::sleep(Duration::from_micros(200));
    }
    let ready = began.elapsed();
    Ok(vec![("ms to ready", millis(ready)), ("KiB at readiness", resident(i32::try_from(child.0.id())?)?)])
}

/// A child that does not outlive its use.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) Child);

impl Ended {
    /// Ends it at once.
    pub(crate) fn end(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether the program at the usual port of this network says that it is ready.
pub(crate) fn is_ready() -> bool {
    answer(READY_PORT, "/healthz/ready").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// What a program at a port of this network answers to a GET, head and all.
pub(crate) fn answer(port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// As milliseconds.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
