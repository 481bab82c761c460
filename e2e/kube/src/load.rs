//! Load from a pod while something changes, and the count of what failed.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use underpass_lab::LoadReport;

use crate::{Cluster, Namespace};

/// Load that is running; it ends with this value.
#[derive(Debug)]
pub struct Load {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Load {
    /// Starts calling a URL from a workload's pod, once it answers, with so many callers at once that make a new
    /// connection each time, and one that keeps its connection. Returns when calls are being made.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(cluster: &Cluster, from: &Namespace, workload: &str, url: &str, callers: u8) -> Result<Self> {
        from.reach(workload, url)?;
        let mut command = cluster.kubectl();
        command.args(["--namespace", from.name(), "exec", "--stdin", &format!("deployment/{workload}"), "--"]);
        command.args(["underpass-e2e-app", "load", url, &callers.to_string()]);
        // It calls until its input ends, which it does with us as well.
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting load")?;
        let output = BufReader::new(child.stdout.take().context("load without output")?);
        let mut load = Self { child, output };
        ensure!(load.line()? == "running", "the load does not start");
        Ok(load)
    }

    /// Lets the load run on for a while.
    pub fn run_on(&self, time: Duration) {
        thread::sleep(time);
    }

    /// Ends it and counts.
    ///
    /// # Errors
    /// If its report cannot be had.
    pub fn finish(mut self) -> Result<LoadReport> {
        drop(self.child.stdin.take());
        let report = self.line()?;
        serde_json::from_str(&report).with_context(|| format!("the load ended with {report:?} for a report"))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().ok();
    }
}
