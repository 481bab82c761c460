//! How a lab is made, and what of it comes from the environment.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::place::check_label;

/// How a lab is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// The lab's name: 1 to 20 lower-case letters and digits; several labs may run at once.
    pub name: String,
    /// How many nodes: `node-a`, `node-b` and so on; 2 unless set.
    pub nodes: u8,
    /// Tells the pod addresses of labs apart that run side by side; 0 unless set: `10.61.1.0/24` for `node-a`.
    pub number: u8,
    /// Whether the mesh's programs run. Without them pods are joined by the CNI reference plugins alone.
    pub mesh: bool,
    /// Where the mesh's programs lie; beside the running program unless set.
    pub binaries: PathBuf,
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// Whether agents and node proxies have no capabilities but those that they have in a cluster. It needs `setpriv`,
    /// and files that root may read as their owner.
    pub confined: bool,
    /// Further flags for every node proxy.
    pub node_proxy_flags: Vec<String>,
    /// Further flags for the operator.
    pub operator_flags: Vec<String>,
    /// The process that the lab belongs to, for labs that must not outlive a test run.
    pub(crate) owner: Option<(i32, u64)>,
}

impl Options {
    /// A lab of two nodes with the mesh, its programs from beside the running one.
    ///
    /// # Errors
    /// If the name is none, or the running program cannot be found.
    pub fn new(name: &str) -> Result<Self> {
        check_name(name)?;
        Ok(Self {
            name: name.to_owned(),
            nodes: 2,
            number: 0,
            mesh: true,
            binaries: binaries()?,
            trust_domain: "cluster.local".to_owned(),
            confined: false,
            node_proxy_flags: Vec::new(),
            operator_flags: Vec::new(),
            owner: None,
        })
    }

    /// The nodes' names.
    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        (b'a'..=b'z').take(usize::from(self.nodes)).map(|letter| format!("node-{}", char::from(letter))).collect()
    }

    /// Refuses what is no node's name.
    ///
    /// # Errors
    /// With the names there are.
    pub fn check_node(&self, node: &str) -> Result<()> {
        let known = self.node_names();
        ensure!(known.iter().any(|name| name == node), "there is no node {node}: choose of {}", known.join(", "));
        Ok(())
    }
}

/// Refuses names that would be ambiguous as a prefix of network namespaces.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let short = name.len() <= 20 && !name.contains('-') && check_label(name, false).is_ok();
    ensure!(short, "{name:?} cannot name a lab: use 1 to 20 lower-case letters and digits");
    Ok(())
}

/// The directory of the running program; for a test that is one above `deps`.
fn binaries() -> Result<PathBuf> {
    if let Some(directory) = variable("UNDERPASS_BIN_DIR") {
        return Ok(directory.into());
    }
    let program = std::env::current_exe().context("finding the running program")?;
    let directory = program.parent().context("the running program has no directory")?;
    let up = directory.ends_with("deps").then(|| directory.parent()).flatten();
    Ok(up.unwrap_or(directory).to_owned())
}

/// Whether labs of tests stay for inspection (`UNDERPASS_LAB_KEEP=1`).
pub(crate) fn keep() -> bool {
    variable("UNDERPASS_LAB_KEEP").is_some_and(|value| value != "0")
}

#[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_name_is_never_the_prefix_of_another_labs_namespaces() {
        for bad in ["", "a-b", "a/b", "A", "..", "abcdefghijklmnopqrstu"] {
            assert!(Options::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Options::new("lab").unwrap().node_names(), ["node-a", "node-b"]);
    }

    #[test]
    fn who_names_no_node_is_told_which_there_are() {
        let options = Options::new("lab").unwrap();
        assert!(options.check_node("node-b").is_ok());
        let told = options.check_node("node-z").unwrap_err().to_string();
        assert_eq!(told, "there is no node node-z: choose of node-a, node-b");
    }
}
