//! Pods that ask for much, and a quiet one beside them.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use underpass_lab::{Lab, Pod, PodSpec, Process, until};

const OFFER: &str = include_str!("../programs/offer.py");
const BULK: &str = include_str!("../programs/bulk.py");
const QUIET: &str = include_str!("../programs/quiet.py");

/// Least of all to the scheduler: it is not the load's own appetite that is looked at.
const NICE: [&str; 5] = ["nice", "-n", "15", "python3", "-c"];

/// Adds a pod for those who ask for much; its servers have no more of the processor than they have.
///
/// # Errors
/// If it does not start.
pub fn busy(lab: &Lab, spec: &PodSpec) -> Result<Pod> {
    let pod = lab.pod_add(spec)?;
    crate::serve_by(lab, &pod, &NICE)?;
    Ok(pod)
}

/// What became of connections that were offered.
#[derive(Clone, Debug, Deserialize)]
pub struct Offered {
    /// How many were wanted at once.
    pub offered: u64,
    /// How many were answered and stood at the end.
    pub answered: u64,
    /// How many ever stood at once.
    pub most_answered: u64,
    /// How many attempts ended with a reset.
    pub resets: u64,
    /// How many ended after they had been answered.
    pub lost: u64,
}

/// How the quiet neighbour was served.
#[derive(Clone, Debug, Deserialize)]
pub struct Served {
    /// Calls, each on a connection of its own.
    pub calls: Times,
    /// Exchanges on one connection.
    pub exchanges: Times,
    /// What failed.
    pub failures: Vec<String>,
}

impl Served {
    /// The middle of what several rounds measured, each figure by itself, and all that failed.
    #[must_use]
    pub fn middle(rounds: &[Self]) -> Self {
        Self {
            calls: Times::middle(&rounds.iter().map(|round| round.calls)),
            exchanges: Times::middle(&rounds.iter().map(|round| round.exchanges)),
            failures: rounds.iter().flat_map(|round| round.failures.clone()).collect(),
        }
    }
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Times {
    /// How many were measured.
    pub count: u64,
    /// Half of them took no longer.
    pub p50: f64,
    /// 99 of a hundred took no longer.
    pub p99: f64,
    /// None took longer.
    pub longest: f64,
}

impl Times {
    fn middle(rounds: &(impl Iterator<Item = Self> + Clone)) -> Self {
        let middle = |of: fn(&Self) -> f64| {
            let mut all: Vec<_> = rounds.clone().map(|times| of(&times)).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied().unwrap_or_default()
        };
        Self {
            count: rounds.clone().map(|times| times.count).sum(),
            p50: middle(|times| times.p50),
            p99: middle(|times| times.p99),
            longest: middle(|times| times.longest),
        }
    }
}

/// Begins to offer connections to a pod's echo server (`port` is 8081 unless another serves there, too), and to hold them.
///
/// # Errors
/// If the program does not start.
pub fn offer(lab: &Lab, (from, to): (&Pod, &Pod), name: &str, count: u32, time: Duration) -> Result<Process> {
    let (host, count, time) = (to.v4()?.to_string(), count.to_string(), time.as_secs().to_string());
    lab.spawn(from.place(), name, &[&NICE[..], &[OFFER, &host, "8081", &count, &time]].concat())
}

/// What became of them; waits for the end.
///
/// # Errors
/// If there is no report.
pub fn offered(offering: &Process, deadline: Duration) -> Result<Offered> {
    until(deadline, "the offers to end", || !offering.is_alive())?;
    let output = offering.output();
    let line = output.lines().rfind(|line| line.starts_with('{'));
    serde_json::from_str(line.with_context(|| format!("no report: {output}"))?).context("the report of offers")
}

/// Begins to flood a pod's server with bytes.
///
/// # Errors
/// If the program does not start.
pub fn flood(lab: &Lab, (from, to): (&Pod, &Pod), connections: u32, time: Duration) -> Result<Process> {
    let (host, connections, time) = (to.v4()?.to_string(), connections.to_string(), time.as_secs().to_string());
    let flood = lab.spawn(from.place(), "flood", &[&NICE[..], &[BULK, &host, &connections, &time]].concat())?;
    flood.wait_for_output("flooding", crate::SHORT)?;
    Ok(flood)
}

/// Calls as a quiet neighbour does, for a while, and says how it was served.
///
/// # Errors
/// If there is no report.
pub fn quiet(lab: &Lab, (from, to): (&Pod, &Pod), time: Duration) -> Result<Served> {
    let (host, seconds) = (to.v4()?.to_string(), time.as_secs().to_string());
    let output = lab.run(from.place(), &["python3", "-c", QUIET, &host, &seconds], time + crate::LONG)?.ok()?;
    serde_json::from_str(&output).with_context(|| format!("the report of the quiet neighbour: {output}"))
}
