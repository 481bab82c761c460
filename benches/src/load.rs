//! The load: each kind runs as a process of its own in the client's pod, and prints one JSON object.

mod http;
mod idle;
mod open;
mod repeated;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use clap::Subcommand;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// What to do with the server.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Kind {
    /// Request after request, each connection as fast as it is answered
    Requests { connections: usize, seconds: f64 },
    /// Connection after connection, one request in each
    Connections { clients: usize, seconds: f64 },
    /// Requests at times that are fixed beforehand, however slow the answers are
    Open { connections: usize, rate: f64, seconds: f64 },
    /// Opens connections, uses each once, and holds them until killed
    Idle { connections: usize },
    /// One request, tried until it is answered
    First,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Answers.
    pub(crate) count: u64,
    /// Calls that were not answered.
    pub(crate) failed: u64,
    /// How long the load was offered.
    pub(crate) seconds: f64,
    /// Half of the answers came within.
    pub(crate) p50_us: f64,
    /// 99 of 100 did.
    pub(crate) p99_us: f64,
    /// 999 of 1000 did.
    pub(crate) p999_us: f64,
}

/// Offers the load and prints the report.
pub(crate) fn run(to: SocketAddr, kind: &Kind) -> Result<()> {
    let report = match *kind {
        Kind::Requests { connections, seconds } => repeated::requests(to, connections, span(seconds)?)?,
        Kind::Connections { clients, seconds } => repeated::connections(to, clients, span(seconds)?)?,
        Kind::Open { connections, rate, seconds } => open::run(to, connections, rate, span(seconds)?)?,
        Kind::Idle { connections } => return idle::hold(to, connections),
        Kind::First => repeated::first(to)?,
    };
    crate::serve::announce(&serde_json::to_string(&report)?);
    Ok(())
}

fn span(seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds).context("the time to offer load")
}

/// Latencies of one or more connections.
#[derive(Debug)]
struct Latencies {
    nanoseconds: Histogram<u64>,
    failed: u64,
}

impl Latencies {
    const LONGEST: Duration = Duration::from_secs(60);

    fn new() -> Result<Self> {
        let longest = u64::try_from(Self::LONGEST.as_nanos())?;
        Ok(Self { nanoseconds: Histogram::new_with_bounds(1000, longest, 3)?, failed: 0 })
    }

    fn record(&mut self, latency: Duration) {
        self.nanoseconds.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    fn add(&mut self, other: &Self) -> Result<()> {
        self.nanoseconds.add(&other.nanoseconds)?;
        self.failed += other.failed;
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "a latency has not that many digits")]
    fn report(&self, took: Duration) -> Report {
        let at = |quantile| self.nanoseconds.value_at_quantile(quantile) as f64 / 1000.0;
        Report {
            count: self.nanoseconds.len(),
            failed: self.failed,
            seconds: took.as_secs_f64(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
        }
    }
}
