//! Load on one way, and what it cost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    cpu::{self, Cpu},
    load::Report,
    plan::Measure,
    world::{HTTP, IPERF, Way},
};

/// Named figures of one run.
pub(crate) type Figures = Vec<(&'static str, f64)>;

/// Offers one kind of load.
pub(crate) fn measure(way: &Way, measure: Measure, seconds: f64, most: Option<f64>) -> Result<Figures> {
    let mut figures = Figures::new();
    let before = Spent::so_far(way)?;
    let (units, per) = match measure {
        Measure::Bulk { streams, back } => {
            let bytes = bulk(way, streams, back, seconds)?;
            figures.push(("Gbit/s", bytes.received * 8.0 / bytes.seconds / 1e9));
            (bytes.received / f64::from(1 << 30), ["s/GiB", "s/GiB user", "s/GiB system"])
        }
        Measure::Requests(connections) => {
            let report = way.load(HTTP, &["requests", &connections.to_string(), &seconds.to_string()], seconds)?;
            ("requests/s", &report).rate(&mut figures)
        }
        Measure::Connections(clients) => {
            let report = way.load(HTTP, &["connections", &clients.to_string(), &seconds.to_string()], seconds)?;
            ensure!(report.failed * 1000 <= report.count, "{} of {} connections failed", report.failed, report.count);
            ("connections/s", &report).rate(&mut figures)
        }
        Measure::Open(rate) => {
            let rate = rate.or(most.map(|most| most / 2.0)).context("half of the maximum needs requests-64")?;
            let (kept, rate, span) = (Measure::KEPT.to_string(), rate.to_string(), seconds.to_string());
            let report = way.load(HTTP, &["open", &kept, &rate, &span], seconds)?;
            ("requests/s", &report).rate(&mut figures)
        }
        Measure::Idle(_) | Measure::FirstByte | Measure::StartUp => return Ok(figures),
    };
    let spent = Spent::so_far(way)?.since(&before);
    if way.case.is_meshed() {
        let [total, user, system] = per;
        // Time per unit: seconds for a GiB, microseconds for anything smaller.
        let scale = if total == "s/GiB" { 1.0 } else { 1e6 } / units;
        figures.extend([
            (total, spent.proxies.total() * scale),
            (user, spent.proxies.user * scale),
            (system, spent.proxies.system * scale),
        ]);
    }
    // How much others disturbed: the part of the machine that was busy with what is not of this run.
    figures.push(("elsewhere", spent.elsewhere));
    Ok(figures)
}

impl Rate for (&'static str, &Report) {
    #[expect(clippy::cast_precision_loss, reason = "nobody counts to 2^53 in a few seconds")]
    fn rate(&self, figures: &mut Figures) -> (f64, [&'static str; 3]) {
        let (name, report) = *self;
        let count = report.count as f64;
        figures.extend([
            (name, count / report.seconds),
            ("p50 us", report.p50_us),
            ("p99 us", report.p99_us),
            ("p99.9 us", report.p999_us),
        ]);
        (count, ["us", "us user", "us system"])
    }
}

trait Rate {
    /// Adds its rate and latencies; says how much was done, and what its cost is called.
    fn rate(&self, figures: &mut Figures) -> (f64, [&'static str; 3]);
}

/// Processor time so far.
struct Spent {
    at: std::time::Instant,
    proxies: Cpu,
    load: f64,
    busy: f64,
}

struct Cost {
    proxies: Cpu,
    elsewhere: f64,
}

impl Spent {
    fn so_far(way: &Way) -> Result<Self> {
        let load = Cpu::of(&way.servers)?.total() + Cpu::of_children()?.total();
        Ok(Self { at: std::time::Instant::now(), proxies: Cpu::of(&way.proxies)?, load, busy: cpu::busy()? })
    }

    #[expect(clippy::cast_precision_loss, reason = "nobody has that many processors")]
    fn since(&self, before: &Self) -> Cost {
        let proxies = self.proxies - before.proxies;
        let ours = proxies.total() + self.load - before.load;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get) as f64;
        let whole = (self.at - before.at).as_secs_f64() * processors;
        Cost { proxies, elsewhere: ((self.busy - before.busy - ours) / whole).max(0.0) }
    }
}

/// What a bulk transfer moved.
struct Bytes {
    received: f64,
    seconds: f64,
}

fn bulk(way: &Way, streams: usize, back: bool, seconds: f64) -> Result<Bytes> {
    let (server, port) = (way.server.v4()?.to_string(), IPERF.to_string());
    let (streams, seconds) = (streams.to_string(), format!("{}", seconds.max(1.0).round()));
    let mut argv = vec!["iperf3", "-J", "-c", &server, "-p", &port, "-P", &streams, "-t", &seconds];
    argv.extend(back.then_some("-R"));
    let text = way.lab.run(way.client.clone(), &argv, Duration::from_secs(120))?.ok().context("iperf3")?;
    let report: Value = serde_json::from_str(&text).context("the report of iperf3")?;
    let figure = |key: &str| {
        let found = report.pointer(&format!("/end/sum_received/{key}")).and_then(Value::as_f64);
        found.filter(|figure| *figure > 0.0).with_context(|| format!("iperf3 reports no {key}: {text}"))
    };
    Ok(Bytes { received: figure("bytes")?, seconds: figure("seconds")? })
}
