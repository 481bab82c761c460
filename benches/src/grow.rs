//! How cost grows: one thing is made larger step by step, and the same is measured at each size. `underpass-bench grow`
//! writes figures for programs and a plot for each chart.

mod chart;
mod crowd;
mod sweep;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum as _};
use serde_json::{Value, json};

use self::sweep::Sweep;
use crate::{
    run::tell,
    summary::{Spread, about},
};

/// What to let grow, and how carefully.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Only these; may be repeated
    #[arg(long = "sweep", value_name = "SWEEP", value_enum)]
    sweeps: Vec<Sweep>,
    /// Rounds, each through all sizes and in labs of its own
    #[arg(long, default_value_t = 3, value_name = "COUNT")]
    rounds: usize,
    /// How long each load is offered, in seconds
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS")]
    seconds: f64,
    /// A look: one round, half a second of each load, the smaller sizes
    #[arg(long)]
    quick: bool,
    /// Where figures and plots go
    #[arg(long, default_value = "target/bench/growth", value_name = "DIRECTORY")]
    to: PathBuf,
}

/// Every figure at every size, by round.
pub(crate) type Figures = BTreeMap<(Sweep, &'static str), BTreeMap<usize, Vec<f64>>>;

/// Measures, and writes figures and plots.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (rounds, seconds) =
        if options.quick { (1, options.seconds.min(0.5)) } else { (options.rounds.max(1), options.seconds) };
    let sweeps = if options.sweeps.is_empty() { Sweep::value_variants() } else { &options.sweeps };
    let mut figures = Figures::new();
    for round in 0..rounds {
        for sweep in sweeps {
            let mut record = |size: usize, name: &'static str, value: f64| {
                tell(&format!("{} {sweep} {size}: {value:.3} {name}", round + 1));
                figures.entry((*sweep, name)).or_default().entry(size).or_default().push(value);
            };
            sweep.measure(sweep.sizes(options.quick), seconds, &mut record).with_context(|| format!("{sweep}"))?;
        }
    }
    let growth = json!({ "about": about(rounds, seconds)?, "charts": charts(sweeps, &figures) });
    fs::create_dir_all(&options.to).with_context(|| options.to.display().to_string())?;
    let file = options.to.join("growth.json");
    fs::write(&file, serde_json::to_vec_pretty(&growth)?).with_context(|| file.display().to_string())?;
    plot(&file, &options.to)
}

/// Draws the charts of a file that [`run`] wrote.
pub(crate) fn plot(growth: &Path, to: &Path) -> Result<()> {
    let file = || growth.display().to_string();
    let growth: Value = serde_json::from_slice(&fs::read(growth).with_context(file)?).with_context(file)?;
    for one in growth.pointer("/charts").and_then(Value::as_array).with_context(|| format!("{}: charts", file()))? {
        let chart = chart::Chart::read(one).with_context(|| format!("{}: charts", file()))?;
        let svg = to.join(format!("{}.svg", chart.name));
        fs::write(&svg, chart.draw()?).with_context(|| svg.display().to_string())?;
        tell(&format!("wrote {}", svg.display()));
    }
    Ok(())
}

fn charts(sweeps: &[Sweep], figures: &Figures) -> Vec<Value> {
    let line = |sweep: Sweep, (figure, label): &(&'static str, &'static str)| {
        let sizes = figures.get(&(sweep, *figure))?;
        let point = |(size, values): (&usize, &Vec<f64>)| {
            let spread = Spread::of(values.clone())?.to_json();
            Some(json!({ "at": size, "values": values, "spread": spread }))
        };
        Some(json!({ "label": label, "points": sizes.iter().filter_map(point).collect::<Vec<_>>() }))
    };
    let chart = |sweep: Sweep, plan: &sweep::Plan| {
        let lines: Vec<Value> = plan.lines.iter().filter_map(|of| line(sweep, of)).collect();
        json!({ "name": plan.name, "title": plan.title, "x": sweep.axis(), "y": plan.unit, "lines": lines })
    };
    sweeps.iter().flat_map(|sweep| sweep.plans().iter().map(|plan| chart(*sweep, plan))).collect()
}
