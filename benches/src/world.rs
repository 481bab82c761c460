//! Labs with the pods that the ways join. Those of one subject share a lab, but for the one way that needs other flags.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use underpass_lab::{Lab, Options, Place, Pod, PodSpec, Process, Program, ScopedLab, eventually};
use underpass_model::names::{ENROLLED, MESH_LABEL};

use crate::{case::Case, load::Report};

/// Where the servers listen.
pub(crate) const HTTP: u16 = 8080;
pub(crate) const ECHO: u16 = HTTP + 1;
pub(crate) const IPERF: u16 = 5201;

/// The namespace that is enrolled.
pub(crate) const MESH: &str = "mesh";
const PLAIN: &str = "plain";
const PROXY: &str = "underpass-nodeproxy";
/// The flag that makes a node proxy use tunnels between pods of one node, too.
const FORCE: &str = "--always-tunnel";
/// Long enough for anything that is not load.
const PATIENCE: Duration = Duration::from_secs(60);

/// A build under measurement.
#[derive(Debug)]
pub(crate) struct Subject {
    /// `this`, or `other` for the build it is compared with.
    pub(crate) name: &'static str,
    pub(crate) ways: Vec<Way>,
    pub(crate) lab: Stage,
    _forced: Option<Stage>,
    _binaries: Option<TempDir>,
}

/// A lab, and what runs in it.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) lab: ScopedLab,
    servers: Vec<i32>,
}

/// One way, ready for load.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) case: Case,
    pub(crate) lab: Lab,
    pub(crate) client: Place,
    pub(crate) server: Pod,
    /// The node proxies of its lab; both, as a mistake in the path should show.
    pub(crate) proxies: Vec<i32>,
    /// The server's programs.
    pub(crate) servers: Vec<i32>,
}

impl Subject {
    /// Brings up what the cases need, with another node proxy if one is given.
    pub(crate) fn up(name: &'static str, cases: &[Case], proxy: Option<&Path>, flags: &[String]) -> Result<Self> {
        let binaries = proxy.map(binaries_with).transpose()?;
        let directory =
            binaries.as_ref().map_or(Options::new("any")?.binaries, |directory| directory.path().to_owned());
        let can_join = knows(&directory.join(PROXY), FORCE)?;
        let choose = |forced: bool| {
            let directory = directory.clone();
            move |options: &mut Options| {
                options.binaries = directory;
                options.node_proxy_flags = flags.to_vec();
                // A build that cannot join pods without a tunnel need not be told.
                options.node_proxy_flags.extend((forced && can_join).then(|| FORCE.to_owned()));
            }
        };
        let (forced, shared): (Vec<Case>, Vec<Case>) = cases.iter().partition(|case| **case == Case::Forced);
        let (lab, mut ways) = Stage::up(choose(false), &shared)?;
        let mut second = None;
        if !forced.is_empty() {
            let (stage, more) = Stage::up(choose(true), &forced)?;
            ways.extend(more);
            second = Some(stage);
        }
        Ok(Self { name, ways, lab, _forced: second, _binaries: binaries })
    }
}

/// A directory with the programs beside the running one, but for the node proxy.
fn binaries_with(proxy: &Path) -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    for entry in fs::read_dir(Options::new("any")?.binaries)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("underpass") && name != PROXY {
            symlink(entry.path(), directory.path().join(name))?;
        }
    }
    let proxy = proxy.canonicalize().with_context(|| format!("the node proxy {}", proxy.display()))?;
    symlink(proxy, directory.path().join(PROXY))?;
    Ok(directory)
}

/// Whether a program has a flag.
fn knows(program: &Path, flag: &str) -> Result<bool> {
    let help = Command::new(program).arg("--help").output().with_context(|| program.display().to_string())?;
    Ok(String::from_utf8_lossy(&help.stdout).contains(flag))
}

impl Stage {
    fn up(choose: impl FnOnce(&mut Options), cases: &[Case]) -> Result<(Self, Vec<Way>)> {
        let lab = ScopedLab::up(choose)?;
        lab.label_namespace(MESH, MESH_LABEL, Some(ENROLLED))?;
        lab.label_namespace(PLAIN, "kind", Some("plain"))?;
        let nodes = lab.options().node_names();
        let proxies =
            nodes.iter().map(|node| Ok(lab.program(&Program::node_proxy(node))?.pid)).collect::<Result<Vec<i32>>>()?;
        let mut stage = Self { lab, servers: Vec::new() };
        let mut ways = Vec::new();
        for case in cases {
            let (client, server) = match case {
                Case::Direct => ((PLAIN, "client"), (PLAIN, "far", "node-b")),
                Case::DirectNear => ((PLAIN, "client"), (PLAIN, "near", "node-a")),
                Case::Across => ((MESH, "client"), (MESH, "far", "node-b")),
                Case::SameNode | Case::Forced => ((MESH, "client"), (MESH, "near", "node-a")),
                Case::PassThrough => ((MESH, "client"), (PLAIN, "far", "node-b")),
            };
            let client = stage.pod(client.0, client.1, "node-a")?;
            let server = stage.serving(server)?;
            let lab = Lab::clone(&stage.lab);
            let way = Way {
                case: *case,
                client: client.place(),
                server,
                lab,
                proxies: proxies.clone(),
                servers: stage.servers.clone(),
            };
            way.settle()?;
            ways.push(way);
        }
        for way in &mut ways {
            way.servers.clone_from(&stage.servers);
        }
        Ok((stage, ways))
    }

    fn pod(&self, namespace: &str, name: &str, node: &str) -> Result<Pod> {
        let spec = PodSpec::new(node, namespace, name);
        self.lab.pod(&underpass_lab::PodName::new(namespace, name)).or_else(|_| self.lab.pod_add(&spec))
    }

    fn serving(&mut self, (namespace, name, node): (&str, &str, &str)) -> Result<Pod> {
        if let Ok(pod) = self.lab.pod(&underpass_lab::PodName::new(namespace, name)) {
            return Ok(pod);
        }
        let pod = self.pod(namespace, name, node)?;
        let server = spawn_bench(&self.lab, pod.place(), "serve", &["serve", &HTTP.to_string()])?;
        server.wait_for_output("serving", PATIENCE)?;
        let iperf =
            self.lab.spawn(pod.place(), "iperf3", &["iperf3", "-s", "--forceflush", "-p", &IPERF.to_string()])?;
        iperf.wait_for_output("listening", PATIENCE)?;
        self.servers.extend([server.pid, iperf.pid]);
        Ok(pod)
    }
}

/// Starts this program at a place.
pub(crate) fn spawn_bench(lab: &Lab, place: Place, name: &str, arguments: &[&str]) -> Result<Process> {
    let program = this_program()?;
    lab.spawn(place, name, &[&[program.as_str()], arguments].concat())
}

fn this_program() -> Result<String> {
    Ok(std::env::current_exe().context("finding the running program")?.display().to_string())
}

impl Way {
    /// An address of the server, as text.
    pub(crate) fn at(&self, port: u16) -> Result<String> {
        Ok(format!("{}:{port}", self.server.v4()?))
    }

    /// Offers load from the client's pod.
    pub(crate) fn load(&self, port: u16, arguments: &[&str], seconds: f64) -> Result<Report> {
        self.load_from(self.client.clone(), port, arguments, seconds)
    }

    /// Offers load from another pod.
    pub(crate) fn load_from(&self, client: Place, port: u16, arguments: &[&str], seconds: f64) -> Result<Report> {
        let (program, to) = (this_program()?, self.at(port)?);
        let argv = [&[program.as_str(), "load", &to], arguments].concat();
        let output = self.lab.run(client, &argv, PATIENCE + Duration::from_secs_f64(seconds))?.ok();
        let text = output.with_context(|| format!("{} {}", self.case.name(), arguments.join(" ")))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits until connections take the way that they should, by what the proxies' logs say.
    fn settle(&self) -> Result<()> {
        eventually(PATIENCE, &format!("{} to take its way", self.case.name()), || {
            let before = self.lines()?.len();
            let report = self.load(HTTP, &["first"], 0.0)?;
            ensure!(report.count == 1, "no answer");
            let lines = eventually(Duration::from_secs(5), "an access line", || {
                let lines = self.lines()?;
                ensure!(lines.len() > before || !self.case.is_meshed(), "none");
                Ok(lines.get(before..).unwrap_or_default().to_vec())
            })?;
            let tunnelled = |line: &Value| line.get("dst.hbone_addr").is_some();
            let as_it_should = match self.case {
                Case::Direct | Case::DirectNear => lines.is_empty(),
                Case::Across | Case::Forced => lines.iter().all(tunnelled),
                // Whether pods of one node use a tunnel is the build's to choose; the client must be known.
                Case::SameNode => lines.iter().all(|line| line.get("src.identity").is_some()),
                Case::PassThrough => !lines.iter().any(tunnelled),
            };
            ensure!(as_it_should, "{lines:?}");
            Ok(())
        })
    }

    /// The access lines of connections to the server's address.
    fn lines(&self) -> Result<Vec<Value>> {
        let to = self.at(HTTP)?;
        let nodes = self.lab.options().node_names();
        let mut lines = Vec::new();
        for node in &nodes {
            lines.extend(self.lab.access_log(node)?);
        }
        let client = self.lab.pods()?.into_iter().find(|pod| pod.place() == self.client);
        let client = client.context("the client")?.v4()?.to_string();
        let ours = |line: &Value| {
            let text = |key| line.get(key).and_then(Value::as_str).unwrap_or_default();
            text("dst.addr") == to && text("src.addr").starts_with(&client)
        };
        lines.retain(ours);
        Ok(lines)
    }
}
