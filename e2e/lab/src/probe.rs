//! Asking a node's stand-in for the kubelet to probe a pod.
//!
//! The probes themselves are made by `underpass-prober`, a process of its own in the node's namespace, because a node
//! agent recognises a kubelet by its process.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::lab::Lab;

/// One probe, as a kubelet makes them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// Succeeds with status 200 to 399.
    HttpGet {
        /// Where.
        address: SocketAddr,
        /// Which page.
        path: String,
    },
    /// Succeeds if the connection is accepted.
    TcpSocket {
        /// Where.
        address: SocketAddr,
    },
}

/// How a probe went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProbeAnswer {
    /// Whether it succeeded.
    pub success: bool,
    /// The status or the error.
    pub detail: String,
}

impl Lab {
    /// Has a node's stand-in for the kubelet make a probe.
    ///
    /// # Errors
    /// If the stand-in does not answer; a probe that fails is an answer.
    pub fn probe(&self, node: &str, probe: &Probe) -> Result<ProbeAnswer> {
        let socket = self.paths().node(node).join("prober.sock");
        let mut stream = UnixStream::connect(&socket).context("connecting to the prober")?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        writeln!(stream, "{}", serde_json::to_string(probe)?)?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).context("reading the prober's answer")?;
        Ok(serde_json::from_str(&answer)?)
    }
}
