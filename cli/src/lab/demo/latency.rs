//! Latency as `redis-benchmark` sees it: one client, one request at a time.

use std::{fmt, time::Duration};

use anyhow::{Context, Result};
use underpass_lab::Lab;

use crate::lab::sample;

const REQUESTS: &str = "3000";

/// What was measured, in milliseconds as the program prints them.
pub(super) struct Latency {
    median: f64,
    high: f64,
}

pub(super) fn measure(lab: &Lab) -> Result<Latency> {
    let argv = ["redis-benchmark", "-h", "redis", "-c", "1", "-n", REQUESTS, "-t", "ping_inline", "--csv"];
    let output = lab.run(sample::client(), &argv, Duration::from_secs(60))?.ok()?;
    parse(&output).with_context(|| format!("reading what redis-benchmark printed: {output}"))
}

/// Reads `"test","rps","avg_latency_ms",…` and the line below it.
fn parse(output: &str) -> Option<Latency> {
    let cells = |line: &str| line.split(',').map(|cell| cell.trim().trim_matches('"').to_owned()).collect::<Vec<_>>();
    let mut lines = output.lines().filter(|line| line.starts_with('"')).map(cells);
    let (head, values) = (lines.next()?, lines.next()?);
    let value = |name: &str| values.get(head.iter().position(|cell| cell == name)?)?.parse().ok();
    Some(Latency { median: value("p50_latency_ms")?, high: value("p99_latency_ms")? })
}

impl Latency {
    /// How many microseconds its median is above another's.
    pub(super) fn over(&self, other: &Self) -> f64 {
        (self.median - other.median) * 1000.0
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "median {:.0} µs, 99th percentile {:.0} µs", self.median * 1000.0, self.high * 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_columns_by_name() {
        let output = "\"test\",\"rps\",\"p50_latency_ms\",\"p95_latency_ms\",\"p99_latency_ms\"\n\
                      \"PING_INLINE\",\"9000.1\",\"0.103\",\"0.2\",\"0.311\"\n";
        let latency = parse(output).unwrap();
        assert_eq!(latency.to_string(), "median 103 µs, 99th percentile 311 µs");
        assert!(parse("nothing").is_none());
    }
}
