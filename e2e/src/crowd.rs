//! A crowd of connections, idle, busy and short, that notices whatever befalls one of them.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;
use underpass_lab::{Lab, Pod, Process, until};

use crate::LONG;

const CROWD: &str = include_str!("../programs/crowd.py");

/// How many connections of each kind.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Those that say something at the beginning and at the end.
    pub idle: u32,
    /// Those that ask and are answered all the time.
    pub busy: u32,
    /// Callers that make a connection for each call.
    pub short: u32,
}

/// A crowd that stands.
#[derive(Debug)]
pub struct Crowd {
    process: Process,
    size: Size,
}

/// What it saw.
#[derive(Clone, Debug, Deserialize)]
pub struct CrowdReport {
    /// Idle connections that stood.
    pub idle: u32,
    /// Busy ones.
    pub busy: u32,
    /// Short calls that went well.
    pub short: u32,
    /// Questions of busy connections that were answered.
    pub exchanges: u32,
    /// The longest call or exchange.
    pub longest_ms: f64,
    /// What failed.
    pub failures: Failures,
}

/// What failed, by kind.
#[derive(Clone, Debug, Deserialize)]
pub struct Failures {
    /// Idle connections that ended before their time.
    pub idle: Vec<String>,
    /// Busy ones.
    pub busy: Vec<String>,
    /// Short calls.
    pub short: Vec<String>,
}

impl Crowd {
    /// Gathers one from a pod to another, where the odd servers serve; returns when every connection stands.
    ///
    /// # Errors
    /// If not all stand.
    pub fn gather(lab: &Lab, from: &Pod, to: &Pod, size: Size) -> Result<Self> {
        let host = to.v4()?.to_string();
        let [idle, busy, short] = [size.idle, size.busy, size.short].map(|count| count.to_string());
        // Each has a log of its own.
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("crowd-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let process = lab.spawn(from.place(), &name, &["python3", "-c", CROWD, &host, &idle, &busy, &short])?;
        process.wait_for_output("standing", LONG)?;
        Ok(Self { process, size })
    }

    /// Ends it. Every connection that should have stood did, at least at the beginning.
    ///
    /// # Errors
    /// If it did not, or there is no report.
    pub fn disperse(self) -> Result<CrowdReport> {
        self.process.signal(Signal::SIGTERM)?;
        until(Duration::from_secs(60), "the crowd to disperse", || !self.process.is_alive())?;
        let output = self.process.output();
        let line = output.lines().rfind(|line| line.starts_with('{'));
        let line = line.with_context(|| format!("the crowd left no report: {output}"))?;
        let report: CrowdReport = serde_json::from_str(line).context("reading the crowd's report")?;
        ensure!((report.idle, report.busy) == (self.size.idle, self.size.busy), "not all stood: {report:?}");
        ensure!(report.short > 0, "no short call went well: {report:?}");
        Ok(report)
    }
}

impl Drop for Crowd {
    /// Whoever gives up in the middle leaves nobody behind.
    fn drop(&mut self) {
        self.process.signal(Signal::SIGTERM).ok();
    }
}

impl CrowdReport {
    /// Whether nobody noticed anything.
    ///
    /// # Errors
    /// What failed.
    pub fn flawless(&self) -> Result<()> {
        let Failures { idle, busy, short } = &self.failures;
        ensure!(
            idle.is_empty() && busy.is_empty() && short.is_empty(),
            "{} idle, {} busy connections and {} short calls failed; the first of each: {:?} {:?} {:?}",
            idle.len(),
            busy.len(),
            short.len(),
            idle.first(),
            busy.first(),
            short.first(),
        );
        Ok(())
    }
}
