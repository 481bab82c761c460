//! The namespace of a scenario.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context, Result};
use serde_json::Value;
use underpass_lab::eventually;
use underpass_model::names::ENROLLED_CONDITION;

use crate::{Cluster, SHORT, Workload};

/// A namespace of the cluster, deleted when this value goes; after a failed assertion with a look into it first.
#[derive(Debug)]
pub struct Namespace {
    cluster: &'static Cluster,
    name: String,
}

impl Namespace {
    /// Makes one; the purpose is the beginning of its name.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn new(cluster: &'static Cluster, purpose: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Earlier ones of the same purpose may still be on their way out.
        let name = format!("{purpose}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        cluster.run(&["create", "namespace", &name])?;
        Ok(Self { cluster, name })
    }

    /// What Kubernetes calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `kubectl` prints about this namespace.
    ///
    /// # Errors
    /// If it fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.run(&[&["--namespace", &self.name], arguments].concat())
    }

    /// Labels the namespace; without a value the label goes.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn label(&self, label: &str, value: Option<&str>) -> Result<()> {
        let change = value.map_or_else(|| format!("{label}-"), |value| format!("{label}={value}"));
        self.cluster.run(&["label", "--overwrite", "namespace", &self.name, &change]).map(drop)
    }

    /// Waits until every pod of it is captured, by what the operator says in its status.
    ///
    /// # Errors
    /// After the deadline.
    pub fn wait_captured(&self) -> Result<()> {
        self.wait_for(&format!("namespace/{}", self.name), &format!("condition={ENROLLED_CONDITION}=True"))
    }

    /// Waits until something is true of an object (`KIND/NAME`) in it, or of one of the cluster; as `kubectl wait --for`
    /// has it.
    ///
    /// # Errors
    /// After the deadline.
    pub fn wait_for(&self, object: &str, what: &str) -> Result<()> {
        self.run(&["wait", object, &format!("--for={what}"), &timeout()]).map(drop)
    }

    /// Waits until nothing says any more that it is enrolled: its last pod has been let go.
    ///
    /// # Errors
    /// After the deadline.
    pub fn wait_released(&self) -> Result<()> {
        eventually(SHORT, &format!("{} to be released", self.name), || {
            let namespace = self.cluster.get(&["namespace", &self.name])?;
            let conditions = namespace.pointer("/status/conditions").and_then(Value::as_array);
            let enrolled =
                conditions.into_iter().flatten().find(|one| one.get("type").is_some_and(|of| of == ENROLLED_CONDITION));
            anyhow::ensure!(enrolled.is_none(), "{enrolled:?}");
            Ok(())
        })
    }

    /// Makes objects in it.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        let arguments = ["--namespace", &self.name, "apply", "--server-side", "-f", "-"];
        self.cluster.run_with(&arguments, Some(manifests), SHORT).map(drop)
    }

    /// Starts workloads, and waits until all of their pods are ready.
    ///
    /// # Errors
    /// If they do not become ready.
    pub fn start(&self, workloads: &[&Workload]) -> Result<()> {
        let manifests: Vec<_> = workloads.iter().map(|workload| workload.manifests(self.cluster.tag())).collect();
        self.apply(&manifests.join("---\n"))?;
        for workload in workloads {
            self.wait_for_rollout(&format!("deployment/{}", workload.name()))?;
        }
        Ok(())
    }

    /// Waits until all pods of a Deployment, DaemonSet or StatefulSet are ready and of its newest state.
    ///
    /// # Errors
    /// After the deadline.
    pub fn wait_for_rollout(&self, object: &str) -> Result<()> {
        self.run(&["rollout", "status", object, &timeout()]).map(drop)
    }

    /// The pods of a workload that are not ending.
    ///
    /// # Errors
    /// If there are none, or they cannot be read.
    pub fn pods(&self, workload: &str) -> Result<Vec<Pod>> {
        let list =
            self.cluster.get(&["pods", "--namespace", &self.name, "--selector", &format!("workload={workload}")])?;
        let items = list.get("items").and_then(Value::as_array).context("a list without items")?;
        let is_ending = |pod: &&Value| pod.pointer("/metadata/deletionTimestamp").is_some();
        items.iter().filter(|pod| !is_ending(pod)).map(Pod::read).collect()
    }

    /// The only pod of a workload.
    ///
    /// # Errors
    /// If it has none or several.
    pub fn pod(&self, workload: &str) -> Result<Pod> {
        let mut pods = self.pods(workload)?;
        let pod = pods.pop().with_context(|| format!("{workload} has no pod"))?;
        anyhow::ensure!(pods.is_empty(), "{workload} has several pods");
        Ok(pod)
    }

    /// Runs a program in a workload's pod (any, if there are several), and takes what it prints.
    ///
    /// # Errors
    /// If it fails.
    pub fn exec(&self, workload: &str, argv: &[&str]) -> Result<String> {
        self.run(&[&["exec", &format!("deployment/{workload}"), "--"], argv].concat())
    }

    /// Calls a URL from a workload's pod.
    ///
    /// # Errors
    /// If it is not answered well.
    pub fn call(&self, workload: &str, url: &str) -> Result<String> {
        self.exec(workload, &["underpass-e2e-app", "get", url]).map(|answer| answer.trim().to_owned())
    }

    /// [`Self::call`], as soon as it is answered: that pods are ready reaches the nodes a moment after they are.
    ///
    /// # Errors
    /// After the deadline.
    pub fn reach(&self, workload: &str, url: &str) -> Result<String> {
        eventually(SHORT, &format!("{workload} to reach {url}"), || self.call(workload, url))
    }
}

/// How long kubectl may wait: less than we wait for kubectl, so that it says what it waited for.
fn timeout() -> String {
    format!("--timeout={}s", SHORT.as_secs() - 10)
}

impl Drop for Namespace {
    #[expect(clippy::print_stderr, reason = "that is where a failed test's reader looks")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.cluster.describe(&self.name));
        }
        // The cluster goes anyway if this fails.
        self.cluster.run(&["delete", "namespace", &self.name, "--wait=false"]).ok();
    }
}

/// A pod as a scenario needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: std::net::IpAddr,
    /// Where it runs.
    pub node: String,
    /// How often its containers were restarted.
    pub restarts: u64,
    /// Kubernetes' uid of it.
    pub uid: String,
}

impl Pod {
    fn read(object: &Value) -> Result<Self> {
        let text = |pointer: &str| {
            let text = object.pointer(pointer).and_then(Value::as_str);
            text.map(str::to_owned).with_context(|| format!("a pod without {pointer}"))
        };
        let containers = object.pointer("/status/containerStatuses").and_then(Value::as_array);
        let restarts = containers.into_iter().flatten().filter_map(|one| one.get("restartCount")?.as_u64()).sum();
        Ok(Self {
            name: text("/metadata/name")?,
            address: text("/status/podIP")?.parse()?,
            node: text("/spec/nodeName")?,
            restarts,
            uid: text("/metadata/uid")?,
        })
    }
}
