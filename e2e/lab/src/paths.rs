//! Where a lab keeps its state, and the names of its network namespaces.
//!
//! Everything lies below one directory per lab, so that `down` can remove it whole; only keys, which may lie in memory
//! alone, and the two things that `ip netns` itself prescribes, the namespaces and `/etc/netns`, are elsewhere, and carry
//! the lab's prefix.

use std::path::{Path, PathBuf};

use crate::place::{Place, PodName};

/// The directory of all labs.
pub(crate) const ROOT: &str = "/run/underpass-lab";
/// Where files lie in memory.
const MEMORY: &str = "/dev/shm";
/// Where `ip netns exec` looks for files to bind over `/etc`.
pub(crate) const NETNS_ETC: &str = "/etc/netns";
/// Where `ip netns` keeps its handles.
pub(crate) const NETNS_RUN: &str = "/run/netns";

/// The files of one lab.
#[derive(Clone, Debug)]
pub struct Paths {
    name: String,
    root: PathBuf,
}

impl Paths {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), root: Path::new(ROOT).join(name) }
    }

    /// As if all labs were in this directory.
    #[cfg(test)]
    pub(crate) fn below(directory: &Path, name: &str) -> Self {
        Self { name: name.to_owned(), root: directory.join(name) }
    }

    /// The lab's own directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What `attach` reads: the options the lab was started with.
    pub(crate) fn description(&self) -> PathBuf {
        self.root.join("lab.json")
    }

    /// Held while manifests change.
    pub(crate) fn manifest_lock(&self) -> PathBuf {
        self.root.join("manifests.lock")
    }

    /// Held while names and service addresses are brought up to date with the manifests.
    pub(crate) fn names_lock(&self) -> PathBuf {
        self.root.join("names.lock")
    }

    /// The manifests that operator and agents watch.
    #[must_use]
    pub fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    /// New manifests are written here and renamed, so that a watcher never reads half of one.
    pub(crate) fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// What agents and operator report to each other.
    #[must_use]
    pub fn status(&self) -> PathBuf {
        self.root.join("status")
    }

    /// Logs of every program that the lab started.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Records of running programs.
    pub(crate) fn pids(&self) -> PathBuf {
        self.root.join("pids")
    }

    /// Captured packets.
    pub(crate) fn captures(&self) -> PathBuf {
        self.root.join("captures")
    }

    /// One hosts file for each Kubernetes namespace, as short names differ.
    pub(crate) fn hosts(&self, namespace: Option<&str>) -> PathBuf {
        // No Kubernetes namespace can be called so: an underscore is not allowed.
        self.root.join("hosts").join(namespace.unwrap_or("_hosts"))
    }

    /// One file for each node, whose content proves to the operator which node is asking.
    #[must_use]
    pub fn tokens(&self) -> PathBuf {
        self.root.join("tokens")
    }

    /// The keys and certificates of node proxies, from one run to the next.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        Path::new(MEMORY).join(format!("underpass-lab-{}", self.name))
    }

    /// The operator's keys and its root certificate.
    #[must_use]
    pub fn operator(&self) -> PathBuf {
        self.root.join("operator")
    }

    /// The certificate that proxies trust the operator by.
    #[must_use]
    pub fn operator_root(&self) -> PathBuf {
        self.operator().join("root.pem")
    }

    /// What belongs to one node: sockets, the agent's state, addresses given out, the conflist.
    #[must_use]
    pub fn node(&self, node: &str) -> PathBuf {
        self.root.join(node)
    }

    /// What every network namespace of this lab begins with.
    pub(crate) fn prefix(&self) -> String {
        format!("up-{}-", self.name)
    }

    /// The network namespace of a place.
    #[must_use]
    pub fn namespace(&self, place: &Place) -> String {
        let prefix = self.prefix();
        match place {
            Place::Control => format!("{prefix}control"),
            Place::Fabric => format!("{prefix}fabric"),
            Place::Node(node) => format!("{prefix}{node}"),
            Place::Outside => format!("{prefix}outside"),
            // A dot is in no Kubernetes namespace, so no two pods share a name here.
            Place::Pod(PodName { namespace, name }) => format!("{prefix}pod-{namespace}.{name}"),
        }
    }
}
