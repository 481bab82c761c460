//! The mesh on the cluster, installed as a user installs it.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use underpass_lab::process;
use underpass_model::names::{ADMIN_PORT, METRICS_PORT, SYSTEM_NAMESPACE};

use crate::{Cluster, SHORT, cluster, images::binaries};

/// The mesh of this build, on the cluster of this run.
#[derive(Debug)]
pub struct Mesh {
    cluster: &'static Cluster,
}

/// The mesh; the first who asks installs it.
///
/// # Panics
/// If it cannot be installed.
#[must_use]
#[expect(clippy::panic, reason = "this is called by tests alone, for which an error and a panic are the same")]
pub fn mesh() -> &'static Mesh {
    static MESH: OnceLock<Mesh> = OnceLock::new();
    MESH.get_or_init(|| Mesh::on(cluster()).unwrap_or_else(|error| panic!("{error:?}")))
}

/// A program that does not outlive its use.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Mesh {
    fn on(cluster: &'static Cluster) -> Result<Self> {
        // Test programs run one after the other, but perhaps in two terminals.
        let lock = File::create("/run/lock/underpass-mesh-tests")?;
        let _held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        let mesh = Self { cluster };
        mesh.install()?;
        Ok(mesh)
    }

    /// Installs it, or brings it to what this build is; returns when it serves.
    ///
    /// # Errors
    /// If it does not.
    pub fn install(&self) -> Result<()> {
        self.underpass(&["install", "--tag", self.cluster.tag()]).map(drop)
    }

    /// What `underpass` prints, given arguments.
    ///
    /// # Errors
    /// If it fails or does not end in time.
    pub fn underpass(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.cluster.beside_kubectl(&binaries()?.join("underpass"));
        command.args(arguments);
        process::run(command, None, SHORT * 2)?.ok().with_context(|| format!("underpass {}", arguments.join(" ")))
    }

    /// The pod of a part (`agent`, `nodeproxy`) on a node.
    ///
    /// # Errors
    /// If there is none.
    pub fn pod(&self, part: &str, node: &str) -> Result<String> {
        let (label, field) = (format!("app.kubernetes.io/component={part}"), format!("spec.nodeName={node}"));
        let pods = ["get", "pods", "-n", SYSTEM_NAMESPACE, "-l", &label, "--field-selector", &field, "-o=name"];
        let names = self.cluster.run(&pods)?;
        let name = names.lines().next_back().with_context(|| format!("{node} has no {part}"))?;
        Ok(name.trim_start_matches("pod/").to_owned())
    }

    /// Asks something of the operator that leads, at its debugging pages, by way of `kubectl port-forward` as people do.
    ///
    /// # Errors
    /// If it does not do so.
    pub fn ask_operator(&self, path: &str) -> Result<String> {
        let system = format!("--namespace={SYSTEM_NAMESPACE}");
        let lease = ["get", "lease", "underpass-operator", "-o=jsonpath={.spec.holderIdentity}", &system];
        let leader = self.cluster.run(&lease)?;
        let mut forward = self.cluster.kubectl();
        forward.args([&system, "port-forward", &format!("pod/{leader}"), &format!(":{ADMIN_PORT}")]);
        let mut forward = Ended(forward.stdout(Stdio::piped()).stdin(Stdio::null()).spawn()?);
        let mut told = String::new();
        // Kept: it says something of each connection, and would end if nobody could hear that.
        let mut output = BufReader::new(forward.0.stdout.take().context("no output")?);
        output.read_line(&mut told)?;
        // "Forwarding from 127.0.0.1:PORT -> 15000"
        let address = told.split_whitespace().nth(2).with_context(|| format!("kubectl port-forward said {told:?}"))?;
        let mut ask = self.cluster.beside_kubectl("curl".as_ref());
        ask.args([
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--request",
            "POST",
            &format!("http://{address}{path}"),
        ]);
        process::run(ask, None, SHORT)?.ok().with_context(|| format!("POST {path}"))
    }

    /// What the node proxy of a node counts.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn metrics(&self, node: &str) -> Result<String> {
        let pod = self.pod("nodeproxy", node)?;
        let path = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/pods/{pod}:{METRICS_PORT}/proxy/metrics");
        self.cluster.run(&["get", "--raw", &path])
    }

    /// The access log of a node's proxy, as JSON; lines that are something else are left out.
    ///
    /// # Errors
    /// If it cannot be had.
    pub fn access_log(&self, node: &str) -> Result<Vec<Value>> {
        let pod = self.pod("nodeproxy", node)?;
        let log = self.cluster.run(&["logs", "-n", SYSTEM_NAMESPACE, &pod])?;
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.filter(|line| line.get("src.addr").is_some()).collect())
    }
}
