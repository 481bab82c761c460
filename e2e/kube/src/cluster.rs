//! The cluster that all scenarios of a run share.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use underpass_lab::process;

use crate::{
    SHORT,
    config::{self, Source},
    images,
};

/// A cluster that is up, with the images that scenarios use.
#[derive(Debug)]
pub struct Cluster {
    source: Source,
    /// What distinguishes the images of this build.
    tag: String,
}

/// The cluster; the first who asks brings it up if it is not.
///
/// # Panics
/// If there is none and none can be brought up.
#[must_use]
#[expect(clippy::panic, reason = "this is called by tests alone, for which an error and a panic are the same")]
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::acquire(config::source()).unwrap_or_else(|error| panic!("{error:?}")))
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The script that works with clusters of ours.
fn script(name: &str) -> Command {
    let mut command = Command::new(root().join("e2e/cluster/cluster"));
    command.args(["--name", name]);
    command
}

impl Cluster {
    fn acquire(source: Source) -> Result<Self> {
        let Source::Ours(name) = &source else {
            return Ok(Self { source, tag: images::GIVEN_TAG.to_owned() });
        };
        // Who runs tests in two terminals brings it up once.
        let lock = File::create(format!("/run/lock/underpass-cluster-{name}-tests"))?;
        let _held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        if !script(name).arg("is-up").stderr(Stdio::null()).status()?.success() {
            // What it says goes by the tests' harness to whoever waits for it.
            let status = script(name).arg("up").status()?;
            ensure!(status.success(), "the cluster does not come up");
        }
        let images = images::build()?;
        let loaded = script(name).arg("load").args(&images.files).status()?;
        ensure!(loaded.success(), "the cluster does not take the images");
        Ok(Self { source, tag: images.tag })
    }

    /// The tag of the images of this build.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// `kubectl`, to be given arguments.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        match &self.source {
            Source::Ours(name) => {
                let mut command = script(name);
                command.arg("kubectl");
                command
            }
            Source::Given(kubeconfig) => {
                let mut command = Command::new("kubectl");
                command.env("KUBECONFIG", kubeconfig);
                command
            }
        }
    }

    /// What `kubectl` prints.
    ///
    /// # Errors
    /// If it fails or does not end in time.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with(arguments, None, SHORT)
    }

    /// What `kubectl` prints, given input and a deadline.
    ///
    /// # Errors
    /// If it fails or does not end in time.
    pub fn run_with(&self, arguments: &[&str], input: Option<&str>, deadline: Duration) -> Result<String> {
        let mut command = self.kubectl();
        command.args(arguments);
        let output = process::run(command, input.map(|text| text.as_bytes().to_vec()), deadline)?;
        output.ok().with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    /// Objects as `kubectl get` has them.
    ///
    /// # Errors
    /// If they cannot be had.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("reading what kubectl printed")
    }

    /// Makes objects, or changes them to be so.
    ///
    /// # Errors
    /// If the API server does not take them.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.run_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], Some(manifests), SHORT).map(drop)
    }

    /// The nodes that take pods, sorted; scenarios need two.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn workers(&self) -> Result<Vec<String>> {
        let names = self.run(&["get", "nodes", "--selector=!node-role.kubernetes.io/control-plane", "-o=name"])?;
        let mut names: Vec<_> = names.lines().map(|name| name.trim_start_matches("node/").to_owned()).collect();
        names.sort();
        ensure!(names.len() >= 2, "scenarios need two nodes that take pods, there are {names:?}");
        Ok(names)
    }

    /// What the cluster says about a namespace, for whoever reads a failure.
    #[must_use]
    pub fn describe(&self, namespace: &str) -> String {
        let looks: [&[&str]; 4] = [
            &["get", "pods,services,endpointslices", "--output=wide"],
            &["describe", "pods"],
            &["get", "events", "--sort-by=.lastTimestamp"],
            // Of all pods, which have no such label.
            &["logs", "--selector=!none", "--all-containers", "--prefix", "--tail=50", "--ignore-errors"],
        ];
        let look = |arguments: &[&str]| {
            let seen = self.run(&[&["--namespace", namespace], arguments].concat());
            let seen = seen.unwrap_or_else(|error| format!("{error:#}\n"));
            format!("--- kubectl --namespace {namespace} {}\n{seen}", arguments.join(" "))
        };
        looks.into_iter().map(look).collect()
    }

    /// What a program on a node prints.
    ///
    /// # Errors
    /// If it fails, or the cluster is not one of ours.
    pub fn on_node(&self, node: &str, argv: &[&str]) -> Result<String> {
        let mut command = script(self.name()?);
        command.args(["node", node]).args(argv);
        process::run(command, None, SHORT)?.ok().with_context(|| format!("on {node}: {}", argv.join(" ")))
    }

    /// Cuts a node's power and starts it again.
    ///
    /// # Errors
    /// If it does not start, or the cluster is not one of ours.
    pub fn reboot(&self, node: &str) -> Result<()> {
        let mut command = script(self.name()?);
        command.args(["reboot", node]);
        process::run(command, None, SHORT)?.ok().with_context(|| format!("rebooting {node}")).map(drop)
    }

    /// The types of the plugins that a node's runtime calls for each pod, in order.
    ///
    /// # Errors
    /// If the node's configuration cannot be read, or the cluster is not one of ours.
    pub fn chain(&self, node: &str) -> Result<Vec<String>> {
        let text = self.on_node(node, &["sh", "-c", "cat \"$(ls /etc/cni/net.d/*.conflist | head -n 1)\""])?;
        let conflist: Value = serde_json::from_str(&text).with_context(|| format!("reading {text}"))?;
        let plugins = conflist.get("plugins").and_then(Value::as_array).context("a conflist without plugins")?;
        Ok(plugins.iter().filter_map(|plugin| Some(plugin.get("type")?.as_str()?.to_owned())).collect())
    }

    /// A command in the network that joins the nodes.
    ///
    /// # Errors
    /// If the cluster is not one of ours.
    pub fn in_fabric(&self) -> Result<Command> {
        let mut command = script(self.name()?);
        command.arg("run");
        Ok(command)
    }

    /// A program that talks to the API server, where it can reach it.
    pub(crate) fn beside_kubectl(&self, program: &Path) -> Command {
        match &self.source {
            Source::Ours(name) => {
                let mut command = script(name);
                command.arg("run").arg(program);
                command
            }
            Source::Given(kubeconfig) => {
                let mut command = Command::new(program);
                command.env("KUBECONFIG", kubeconfig);
                command
            }
        }
    }

    fn name(&self) -> Result<&str> {
        match &self.source {
            Source::Ours(name) => Ok(name),
            Source::Given(file) => bail!("this scenario looks into nodes, which takes a cluster of ours, not {file:?}"),
        }
    }
}
