//! What is on the wire between nodes.

use anyhow::Result;
use tempfile::TempDir;
use underpass_lab::{Process, Wire, wire};

use crate::Cluster;

/// The bridge that joins the nodes, where everything between them passes.
const BRIDGE: &str = "fabric0";

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    running: wire::Capture,
    _directory: TempDir,
}

impl Capture {
    /// Captures TCP between nodes. Returns when the capture runs.
    ///
    /// # Errors
    /// If `tcpdump` does not start, or the cluster is not one of ours.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("pcap");
        let mut command = cluster.in_fabric()?;
        command.args(wire::tcpdump(BRIDGE, &file));
        let process = Process::start("tcpdump", command, &directory.path().join("log"))?;
        Ok(Self { running: wire::Capture::running(process, file)?, _directory: directory })
    }

    /// Ends the capture and reads what it got.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn finish(self) -> Result<Wire> {
        self.running.finish()
    }
}
