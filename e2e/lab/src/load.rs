//! Load on a service while something changes, and the count of what failed.

use std::{thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::{lab::Lab, place::Place, process::Process, wait::until};

const SCRIPT: &str = include_str!("load.py");

/// What to call.
#[derive(Clone, Debug)]
pub struct Target {
    /// An HTTP server, called with a new connection each time.
    pub http: (String, u16),
    /// How many callers at once.
    pub callers: u8,
    /// A Redis server, to which one connection stays in use all the time.
    pub redis: Option<(String, u16)>,
}

/// Load that is running.
#[derive(Debug)]
pub struct Load {
    process: Process,
}

/// How the calls went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LoadReport {
    /// How many calls were made.
    pub calls: u64,
    /// What failed, the first hundred.
    pub failures: Vec<String>,
    /// The longest call.
    pub longest_ms: f64,
    /// How many times the kept connection asked and was answered.
    pub exchanges: u64,
    /// Why the kept connection ended, if it did.
    pub long_connection: Option<String>,
}

impl Lab {
    /// Starts calling from a place; returns when calls are being made.
    ///
    /// # Errors
    /// If the program (`python3`) does not start.
    pub fn load(&self, from: impl Into<Place>, name: &str, target: &Target) -> Result<Load> {
        let (port, callers) = (target.http.1.to_string(), target.callers.to_string());
        let mut argv = vec!["python3", "-c", SCRIPT, &target.http.0, &port, &callers];
        let redis = target.redis.as_ref().map(|(host, port)| (host, port.to_string()));
        if let Some((host, port)) = &redis {
            argv.extend([host.as_str(), port.as_str()]);
        }
        let process = self.spawn(from, name, &argv)?;
        process.wait_for_output("running", Duration::from_secs(30))?;
        Ok(Load { process })
    }
}

impl Drop for Load {
    /// Whoever gives up in the middle leaves no callers behind.
    fn drop(&mut self) {
        self.process.signal(Signal::SIGTERM).ok();
    }
}

impl Load {
    /// Lets the load run on for a while.
    pub fn run_on(&self, time: Duration) {
        thread::sleep(time);
    }

    /// Ends it and counts.
    ///
    /// # Errors
    /// If its report cannot be had.
    pub fn finish(self) -> Result<LoadReport> {
        self.process.signal(Signal::SIGTERM)?;
        until(Duration::from_secs(30), "the load to end", || !self.process.is_alive())?;
        let output = self.process.output();
        let line = output.lines().rfind(|line| line.starts_with('{'));
        serde_json::from_str(line.with_context(|| format!("the load ended without a report: {output}"))?)
            .context("reading the report")
    }
}

impl LoadReport {
    /// Whether calls were made and none failed.
    ///
    /// # Errors
    /// What failed.
    pub fn flawless(&self) -> Result<()> {
        ensure!(self.calls > 0, "no call was made");
        if let Some(first) = self.failures.first() {
            bail!(
                "{} of {} calls failed, the first {first}; all: {:#?}",
                self.failures.len(),
                self.calls,
                self.failures
            );
        }
        if let Some(ended) = &self.long_connection {
            bail!("the long connection ended {ended}");
        }
        Ok(())
    }
}
