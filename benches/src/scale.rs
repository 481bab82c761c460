//! What the operator takes in a large cluster: a real API server with everything that a large cluster has in it, the
//! operator, and as many subscribers as there are nodes.

mod cluster;
mod known;
mod operator;
mod population;
mod process;
mod report;
mod subscriber;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hdrhistogram::Histogram;
use underpass_model::{WorkloadUid, names::DEFAULT_CLUSTER};

use self::{
    cluster::Cluster,
    operator::Operator,
    population::Population,
    report::Report,
    subscriber::{Fleet, Wish},
};
use crate::{memory::REST, run::print};

/// How large, and how carefully.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// How many nodes and pods there are, as NODES/PODS; may be repeated, from small to large
    #[arg(long = "size", value_name = "NODES/PODS", default_values = ["10/200", "100/2000"])]
    sizes: Vec<Size>,
    /// How many changes are told one after the other at each size
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    changes: usize,
    /// How many pods change together
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    together: usize,
    /// How many services each subscriber asks for where it does not hold the whole mesh
    #[arg(long, default_value_t = 20, value_name = "COUNT")]
    asked: usize,
    /// Directory of Kubernetes' programs; `./x cluster build` makes it
    #[arg(long, env = "UNDERPASS_CLUSTER_PROGRAMS", value_name = "DIRECTORY")]
    programs: PathBuf,
    /// Where the summary goes
    #[arg(long, default_value = "target/bench/scale.json", value_name = "FILE")]
    summary: PathBuf,
}

/// How large a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    nodes: usize,
    pods: usize,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.nodes, self.pods)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Addresses of pods begin behind those of the node proxies.
        const MOST: usize = 1 << 20;
        let read = || {
            let (nodes, pods) = text.split_once('/')?;
            Some(Self { nodes: nodes.parse().ok()?, pods: pods.parse().ok()? })
        };
        let is_good = |size: &Self| (1..=MOST).contains(&size.nodes) && (1..=MOST).contains(&size.pods);
        read().filter(is_good).ok_or_else(|| format!("is no NODES/PODS, each from 1 to {MOST}"))
    }
}

/// Measures at each size, prints and writes.
pub(crate) fn run(options: &Options) -> Result<()> {
    let is_growing = |pair: &[Size]| matches!(pair, [a, b] if a.nodes <= b.nodes && a.pods <= b.pods);
    ensure!(options.sizes.windows(2).all(is_growing), "--size: each must be as large as the one before");
    underpass_runtime::limits::raise_descriptors();
    cluster::leave_network()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut report = Report::begin()?;
    runtime.block_on(measure(options, &mut report))?;
    if let Some(directory) = options.summary.parent() {
        fs::create_dir_all(directory)?;
    }
    let json = serde_json::to_vec_pretty(&report.to_json())?;
    fs::write(&options.summary, json).with_context(|| options.summary.display().to_string())?;
    print(&report.table());
    Ok(())
}

async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let home = tempfile::tempdir()?;
    fs::create_dir(home.path().join("tokens"))?;
    let cluster = Cluster::up(&options.programs.join("bin"), home.path()).await?;
    let mut population = Population::new(cluster.client.clone()).await?;
    for size in &options.sizes {
        let begun = Instant::now();
        population.grow(*size).await.context("filling the cluster")?;
        population.write_tokens(size.nodes, &home.path().join("tokens")).await.context("tokens")?;
        report.size(*size);
        report.figure("cluster: s to fill", begun.elapsed().as_secs_f64());
        report.figure("cluster: API server MiB", cluster.server.mebibytes()?);
        let place = Place { options, size: *size, home: home.path(), cluster: &cluster, population: &population };
        place.measure(report).await?;
    }
    Ok(())
}

/// One size.
struct Place<'a> {
    options: &'a Options,
    size: Size,
    home: &'a Path,
    cluster: &'a Cluster,
    population: &'a Population,
}

impl Place<'_> {
    async fn measure(&self, report: &mut Report) -> Result<()> {
        let (mut operator, started) = Operator::start(self.cluster, self.home).await?;
        report.took("start", started);
        tokio::time::sleep(REST).await;
        report.figure("start: MiB without subscribers", operator.process.mebibytes()?);

        let fleet = self.subscribe(&operator, Wish::Everything, ["fill", "whole"], report).await?;
        self.changes(&operator, &fleet, "whole", report).await?;
        self.cut(&operator, &fleet, "cut", report).await?;
        self.crash(&mut operator, &fleet, report).await?;
        drop(fleet);
        tokio::time::sleep(REST).await;

        let services: Vec<usize> = population::services(self.size.pods).collect();
        let names = |number: usize| {
            let mine = services.iter().cycle().skip(number * self.options.asked % services.len());
            mine.take(self.options.asked.min(services.len())).map(|first| population::service_name(*first)).collect()
        };
        let wish = Wish::Names((0..self.size.nodes).map(names).collect());
        let fleet = self.subscribe(&operator, wish, ["demand fill", "demand"], report).await?;
        self.changes(&operator, &fleet, "demand", report).await?;
        self.cut(&operator, &fleet, "demand cut", report).await?;
        drop(fleet);

        let reached = operator.reached(&self.cluster.client, self.home).await?;
        for (is_on_demand, name) in [(false, "node proxy: MiB"), (true, "node proxy: MiB on demand")] {
            report.figure(name, known::resident(&reached, self.size.pods, is_on_demand, self.home).await?);
        }
        Ok(())
    }

    /// All subscribers come at once and hold nothing yet.
    async fn subscribe(
        &self,
        operator: &Operator,
        wish: Wish,
        [fill, steady]: [&'static str; 2],
        report: &mut Report,
    ) -> Result<Fleet> {
        let reached = operator.reached(&self.cluster.client, self.home).await?;
        operator.process.forget_peak()?;
        let (begun, cpu) = (Instant::now(), operator.process.cpu()?);
        let fleet = Fleet::start(reached, wish, self.size.nodes);
        fleet.complete().await?;
        report.took(fill, operator.since(begun, cpu)?);
        self.streams(&fleet, fill, [0, 0], report);
        tokio::time::sleep(REST).await;
        report.figure(&format!("{steady}: MiB with subscribers"), operator.process.mebibytes()?);
        let cpu = operator.process.cpu()?;
        tokio::time::sleep(2 * REST).await;
        let percent = (operator.process.cpu()? - cpu) * 100.0 / (2 * REST).as_secs_f64();
        report.figure(&format!("{steady}: processor % at rest"), percent);
        Ok(fleet)
    }

    /// Pods lose and gain readiness, one after the other and then many together.
    async fn changes(&self, operator: &Operator, fleet: &Fleet, name: &'static str, report: &mut Report) -> Result<()> {
        // Microseconds; half a minute at most.
        let mut delays: Histogram<u64> = Histogram::new_with_max(30_000_000, 3)?;
        let (mut bytes, mut told) = (0, 0);
        let cpu = operator.process.cpu()?;
        for change in 0..self.options.changes {
            // Each twice, so that all are ready in the end.
            let pod = (change / 2 * 7919) % self.size.pods;
            let followers = fleet.followers(&population::service_name(population::service_of(pod)));
            let awaited = fleet.listen([uid(pod)].into(), followers);
            self.population.set_ready(pod, change % 2 == 1).await?;
            let accepted = Instant::now();
            if followers == 0 {
                continue;
            }
            let last = awaited.told().await?;
            // The operator may hear of it before the API server's answer has come to us.
            delays.saturating_record(u64::try_from(last.at.saturating_duration_since(accepted).as_micros())?);
            (bytes, told) = (bytes + last.bytes, told + followers);
        }
        let count = ratio(self.options.changes);
        report.figure(&format!("{name}: ms to the last told, p50"), ratio(delays.value_at_quantile(0.5)) / 1000.0);
        report.figure(&format!("{name}: ms to the last told, p99"), ratio(delays.value_at_quantile(0.99)) / 1000.0);
        report.figure(&format!("{name}: ms of processor a change"), (operator.process.cpu()? - cpu) * 1000.0 / count);
        report.figure(&format!("{name}: bytes of a change to each"), ratio(bytes) / ratio(told.max(1)));
        self.together(operator, fleet, name, report).await
    }

    async fn together(&self, operator: &Operator, fleet: &Fleet, name: &str, report: &mut Report) -> Result<()> {
        let count = self.options.together.min(self.size.pods);
        let cpu = operator.process.cpu()?;
        let mut late = Duration::ZERO;
        for is_ready in [false, true] {
            let followers = |pod| fleet.followers(&population::service_name(population::service_of(pod)));
            let awaited = fleet.listen((0..count).map(uid).collect(), (0..count).map(followers).sum());
            let set = |pod| self.population.set_ready(pod, is_ready);
            stream::iter(0..count).map(set).buffer_unordered(count).try_collect::<()>().await?;
            let accepted = Instant::now();
            late = late.max(awaited.told().await?.at.saturating_duration_since(accepted));
        }
        let each = (operator.process.cpu()? - cpu) * 1000.0 / ratio(2 * count);
        report.figure(&format!("{name}: ms to the last told, many together"), late.as_secs_f64() * 1000.0);
        report.figure(&format!("{name}: ms of processor a change, many together"), each);
        Ok(())
    }

    /// All streams end at one moment.
    async fn cut(&self, operator: &Operator, fleet: &Fleet, name: &'static str, report: &mut Report) -> Result<()> {
        let (received, opened) = (fleet.received(), fleet.opened());
        operator.process.forget_peak()?;
        let (begun, cpu) = (Instant::now(), operator.process.cpu()?);
        fleet.cut();
        fleet.complete().await?;
        report.took(name, operator.since(begun, cpu)?);
        self.streams(fleet, name, [received, opened], report);
        Ok(())
    }

    /// The operator dies and is started again.
    async fn crash(&self, operator: &mut Operator, fleet: &Fleet, report: &mut Report) -> Result<()> {
        let (received, opened) = (fleet.received(), fleet.opened());
        let begun = Instant::now();
        fleet.expect_loss();
        operator.restart()?;
        fleet.complete().await?;
        report.took("crash", operator.since(begun, 0.0)?);
        self.streams(fleet, "crash", [received, opened], report);
        Ok(())
    }

    fn streams(&self, fleet: &Fleet, name: &str, [received, opened]: [u64; 2], report: &mut Report) {
        let nodes = ratio(self.size.nodes);
        report.figure(&format!("{name}: MiB to each"), mebibytes(fleet.received() - received) / nodes);
        report.figure(&format!("{name}: streams of each"), ratio(fleet.opened() - opened) / nodes);
    }
}

/// What discovery calls a pod.
fn uid(pod: usize) -> String {
    WorkloadUid::of_pod(DEFAULT_CLUSTER, &population::namespace(pod), &population::name(pod)).to_string()
}

/// As a divisor or what is divided.
#[expect(clippy::cast_precision_loss, reason = "nobody counts to 2^53 here")]
fn ratio(count: impl TryInto<u64>) -> f64 {
    count.try_into().unwrap_or_default() as f64
}

fn mebibytes(bytes: u64) -> f64 {
    ratio(bytes) / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_nodes_and_pods() {
        assert_eq!("10/200".parse(), Ok(Size { nodes: 10, pods: 200 }));
        for bad in ["", "10", "10/", "/200", "0/1", "1/0", "1/x", "1/-1", "1/1048577", "10/200/3"] {
            assert!(bad.parse::<Size>().is_err(), "{bad:?}");
        }
    }
}
