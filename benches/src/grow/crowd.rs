//! Objects that nobody runs: they are only known. Manifests of the lab, written many to a file.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use underpass_lab::{Lab, eventually};

/// How long a hundred thousand objects may take from the file to the node proxies.
const PATIENCE: Duration = Duration::from_secs(600);
/// Objects in a file.
const FILE: usize = 10_000;
/// No lab has pods in it.
const ADDRESSES: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 0);

/// The crowd of one lab.
#[derive(Debug)]
pub(crate) struct Crowd<'a> {
    lab: &'a Lab,
    directory: PathBuf,
    moves: AtomicUsize,
}

impl<'a> Crowd<'a> {
    pub(crate) fn of(lab: &'a Lab) -> Self {
        Self { lab, directory: lab.paths().objects(), moves: AtomicUsize::new(0) }
    }

    /// As many pods on a node that is not there, ten to a service account; none of a smaller crowd is written again.
    pub(crate) fn pods(&self, from: usize, to: usize) -> Result<()> {
        let before = self.least_known("workload")?;
        for first in (from..to).step_by(FILE) {
            let last = to.min(first + FILE);
            self.write(&format!("crowd-{first}.yaml"), (first..last).map(|number| pod(number, number)))?;
        }
        self.wait_known("workload", |known| known >= before + (to - from))
    }

    /// Gives one pod another address.
    pub(crate) fn move_one(&self) -> Result<()> {
        const MOVING: usize = 1 << 19;
        let moves = self.moves.fetch_add(1, Ordering::Relaxed);
        self.write("crowd-moving.yaml", std::iter::once(pod(MOVING, MOVING + moves % 2)))
    }

    /// Does something under as many policies that match nobody and apply to the pods with this label.
    pub(crate) fn with_policies<T>(&self, app: &str, count: usize, what: impl FnOnce() -> Result<T>) -> Result<T> {
        const FILE: &str = "crowd-policies.yaml";
        let before = self.least_known("policy")?;
        self.write(FILE, (0..count).map(|number| policy(app, number)))?;
        self.wait_known("policy", |known| known == before + count)?;
        let done = what()?;
        fs::remove_file(self.directory.join(FILE))?;
        self.wait_known("policy", |known| known == before)?;
        Ok(done)
    }

    fn write(&self, file: &str, objects: impl Iterator<Item = Value>) -> Result<()> {
        // One object a line: JSON is YAML, too.
        let text: String = objects.map(|object| format!("---\n{object}\n")).collect();
        let staged = self.directory.join(format!(".{file}"));
        fs::write(&staged, text).with_context(|| staged.display().to_string())?;
        fs::rename(&staged, self.directory.join(file)).with_context(|| file.to_owned())
    }

    fn wait_known(&self, kind: &str, enough: impl Fn(usize) -> bool) -> Result<()> {
        eventually(PATIENCE, &format!("the node proxies to know what there is of kind {kind}"), || {
            let known = self.known(kind)?;
            ensure!(known.iter().all(|known| enough(*known)), "{known:?} are");
            Ok(())
        })
    }

    fn least_known(&self, kind: &str) -> Result<usize> {
        self.known(kind)?.into_iter().min().context("a node")
    }

    /// How many of a kind each node proxy knows.
    fn known(&self, kind: &str) -> Result<Vec<usize>> {
        let series = format!("underpass_view_objects{{kind=\"{kind}\"}} ");
        let of = |node: &String| {
            let page = self.lab.metrics(node)?;
            let value = page.lines().find_map(|line| line.strip_prefix(&series)).with_context(|| series.clone())?;
            Ok(value.parse::<usize>()?)
        };
        self.lab.options().node_names().iter().map(of).collect()
    }
}

fn pod(number: usize, address: usize) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "below 2^20")]
    let address = Ipv4Addr::from(u32::from(ADDRESSES) + address as u32);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("w{number}"), "namespace": "crowd", "uid": format!("crowd-{number}"), "labels": { "app": "w" } },
        "spec": { "nodeName": "elsewhere", "serviceAccountName": format!("w{}", number / 10), "containers": [] },
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn policy(app: &str, number: usize) -> Value {
    json!({
        "apiVersion": "underpass.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": { "name": format!("no-thief-{number}"), "namespace": "mesh" },
        "spec": {
            "targetRefs": [{ "kind": "Pod", "selector": { "matchLabels": { "app": app } } }],
            "action": "DENY",
            "rules": [{ "sources": [{ "type": "ServiceAccount", "serviceAccount": { "name": format!("thief-{number}") } }] }],
        },
    })
}
