//! Connections that end in every way, and what is left of them in the node proxies.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use underpass_lab::{Lab, Pod, eventually};

const CHURN: &str = include_str!("../programs/churn.py");
/// Workers keep a few large buffers each for the next reader, so each must have carried something. A tunnel stays on the
/// worker that accepted it, and a pause ends tunnels (with `--tunnel-idle=1`): so often that none is left out but by a rare chance.
const WARM_UPS: usize = 6;
const PAUSE: Duration = Duration::from_secs(3);

/// What a node proxy has of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// Open descriptors.
    pub descriptors: f64,
    /// Bytes of memory.
    pub memory: f64,
}

/// Opens `each` connections of a kind, holds them and ends all of them, this many times.
///
/// # Errors
/// If a connection fails, or all of it takes longer than `deadline`.
pub fn churn(lab: &Lab, (client, server): (&Pod, &Pod), each: u32, rounds: u32, deadline: Duration) -> Result<()> {
    let (host, each, rounds) = (server.v4()?.to_string(), each.to_string(), rounds.to_string());
    lab.run(client.place(), &["python3", "-c", CHURN, &host, &each, &rounds], deadline)?.ok().context("churn")?;
    Ok(())
}

/// Uses everything that connections of these kinds use, in every worker.
///
/// # Errors
/// As [`churn`].
pub fn warm_up(lab: &Lab, pods: (&Pod, &Pod), each: u32, deadline: Duration) -> Result<()> {
    for _ in 0..WARM_UPS {
        churn(lab, pods, each, 1, deadline)?;
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// What a node's proxy has of the machine now.
///
/// # Errors
/// If it does not say.
pub fn footprint(lab: &Lab, node: &str) -> Result<Footprint> {
    let page = lab.metrics(node)?;
    let descriptors = metric(&page, "process_open_fds").context("no descriptors")?;
    let memory = metric(&page, "process_resident_memory_bytes").context("no memory")?;
    Ok(Footprint { descriptors, memory })
}

/// Waits until a node's proxy has no more than 5 % above what it had before.
///
/// # Errors
/// If it keeps more until the deadline.
pub fn wait_returned(lab: &Lab, node: &str, before: Footprint, deadline: Duration) -> Result<Footprint> {
    const GROWTH: f64 = 1.05;
    eventually(deadline, &format!("what {node} had to return"), || {
        let now = footprint(lab, node)?;
        let descriptors = now.descriptors <= (before.descriptors * GROWTH).ceil();
        ensure!(descriptors && now.memory <= before.memory * GROWTH, "before {before:?}, now {now:?}");
        Ok(now)
    })
}

/// The sum of a metric's series on a page of Prometheus' text format; none if there is none.
#[must_use]
pub fn metric(page: &str, name: &str) -> Option<f64> {
    labelled(page, name, &[])
}

/// [`metric`] of those series that have these labels.
#[must_use]
pub fn labelled(page: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let values = page.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let rest = series.strip_prefix(name)?;
        let ours = (rest.is_empty() || rest.starts_with('{')) && labels.iter().all(|label| rest.contains(label));
        ours.then(|| value.parse::<f64>().ok()).flatten()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_series_of_one_metric() {
        let page = "# HELP a_total\na_total{k=\"x\",l=\"1\"} 2\na_total{k=\"y\",l=\"1\"} 3\na_total_more 9\nb 0.5\n";
        assert_eq!(metric(page, "a_total"), Some(5.0));
        assert_eq!(labelled(page, "a_total", &[("k", "y")]), Some(3.0));
        assert_eq!((metric(page, "b"), metric(page, "c")), (Some(0.5), None));
    }
}
