//! Rounds: in each, everything that is compared is measured right after one another.

use std::{fmt, fs};

use anyhow::{Context, Result};

use crate::{
    case::Case,
    measure::{Figures, measure},
    memory,
    plan::{Measure, Options},
    summary::{Sample, Summary},
    times,
    world::{Subject, Way},
};

/// Measures, prints and writes what the options ask for.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (rounds, seconds) = options.effort();
    let cases = options.cases();
    let mut subjects = vec![Subject::up("this", &cases, None, &options.flags)?];
    if let Some(other) = &options.nodeproxy {
        // What does without the mesh needs no second time.
        let meshed: Vec<Case> = cases.iter().copied().filter(|case| case.is_meshed()).collect();
        subjects.push(Subject::up("other", &meshed, Some(other), &options.flags)?);
    }
    let mut summary = Summary::begin(rounds, seconds)?;
    // Half of the maximum is that of the same way in the same round.
    let mut most: Vec<(&'static str, Case, f64)> = Vec::new();
    for round in 0..rounds {
        for what in options.measures() {
            for subject in &subjects {
                for way in subject.ways.iter().filter(|way| applies(what, way.case, round)) {
                    let reached = most.iter().rev().find(|known| (known.0, known.1) == (subject.name, way.case));
                    let figures = figures(subject, way, what, (round, seconds, reached.map(|known| known.2)))
                        .with_context(|| format!("{what} {} {}", way.case.name(), subject.name))?;
                    if what == Measure::Requests(Measure::KEPT)
                        && let Some((_, rate)) = figures.iter().find(|(name, _)| *name == "requests/s")
                    {
                        most.push((subject.name, way.case, *rate));
                    }
                    let sample = Sample { subject: subject.name, case: way.case, measure: what, round, figures };
                    tell(&sample);
                    summary.add(sample);
                }
            }
        }
    }
    if let Some(directory) = options.summary.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&options.summary, serde_json::to_vec_pretty(&summary.to_json())?)
        .with_context(|| options.summary.display().to_string())?;
    print(&summary.table());
    Ok(())
}

/// Memory does not change from round to round; times are the mesh's alone.
fn applies(what: Measure, case: Case, round: usize) -> bool {
    match what {
        Measure::Idle(_) => case == Case::Across && round == 0,
        Measure::FirstByte | Measure::StartUp => case == Case::Across,
        Measure::Bulk { .. } | Measure::Requests(_) | Measure::Connections(_) | Measure::Open(_) => true,
    }
}

fn figures(subject: &Subject, way: &Way, what: Measure, now: (usize, f64, Option<f64>)) -> Result<Figures> {
    let (round, seconds, most) = now;
    match what {
        Measure::Idle(connections) => memory::idle(way, connections),
        Measure::FirstByte => times::first_byte(way, round),
        Measure::StartUp => times::start_up(&subject.lab.lab),
        Measure::Bulk { .. } | Measure::Requests(_) | Measure::Connections(_) | Measure::Open(_) => {
            measure(way, what, seconds, most)
        }
    }
}

#[expect(clippy::print_stderr, reason = "who waits wants to see that it goes on")]
pub(crate) fn tell(line: &dyn fmt::Display) {
    eprintln!("{line}");
}

#[expect(clippy::print_stdout, reason = "this is what it is for")]
pub(crate) fn print(table: &str) {
    println!("{table}");
}
