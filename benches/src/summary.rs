//! Medians with their spread, and ratios within a round.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    fs,
};

use anyhow::Result;
use serde_json::{Value, json};

use crate::{case::Case, measure::Figures, plan::Measure};

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) subject: &'static str,
    pub(crate) case: Case,
    pub(crate) measure: Measure,
    pub(crate) round: usize,
    pub(crate) figures: Figures,
}

/// All runs.
#[derive(Debug)]
pub(crate) struct Summary {
    about: Value,
    samples: Vec<Sample>,
}

/// A figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

/// What stays the same over the rounds: measure, subject, case, name of the figure.
type Key = (String, &'static str, Case, &'static str);

impl Spread {
    /// None without values.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied();
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { at(middle)? } else { f64::midpoint(at(middle.checked_sub(1)?)?, at(middle)?) };
        Some(Self { median, least: at(0)?, most: values.last().copied()? })
    }

    pub(crate) fn median(self) -> f64 {
        self.median
    }

    /// For programs.
    pub(crate) fn to_json(self) -> Value {
        json!({ "median": self.median, "min": self.least, "max": self.most })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.median.abs() {
            large if large >= 1000.0 => 0,
            middling if middling >= 10.0 => 1,
            _ => 3,
        };
        write!(f, "{:.digits$} ({:.digits$}..{:.digits$})", self.median, self.least, self.most)
    }
}

/// Where it is measured, and by which command.
pub(crate) fn machine() -> Result<Value> {
    let processor = fs::read_to_string("/proc/cpuinfo")?;
    let model = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(json!({
        "command": std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        "machine": {
            "processor": model.map(|(_, name)| name),
            "processors": std::thread::available_parallelism()?,
            "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        },
        "optimised": !cfg!(debug_assertions),
    }))
}

/// The same, and how, in the lab.
pub(crate) fn about(rounds: usize, seconds: f64) -> Result<Value> {
    let mut about = machine()?;
    if let Some(about) = about.as_object_mut() {
        about.insert("congestion control".into(), "reno, in all of the lab's namespaces".into());
        about.insert("rounds".into(), rounds.into());
        about.insert("seconds".into(), seconds.into());
    }
    Ok(about)
}

impl Summary {
    /// Nothing yet.
    pub(crate) fn begin(rounds: usize, seconds: f64) -> Result<Self> {
        Ok(Self { about: about(rounds, seconds)?, samples: Vec::new() })
    }

    pub(crate) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// The values of a figure, by round.
    fn by_round(&self, key: &Key) -> BTreeMap<usize, f64> {
        let of = |sample: &Sample| (sample.measure.to_string(), sample.subject, sample.case);
        let ours = self.samples.iter().filter(|sample| of(sample) == (key.0.clone(), key.1, key.2));
        ours.filter_map(|sample| {
            let figure = sample.figures.iter().find(|(name, _)| *name == key.3)?;
            Some((sample.round, figure.1))
        })
        .collect()
    }

    /// This figure divided by another, round by round.
    fn ratio(&self, key: &Key, base: &Key) -> Option<Spread> {
        let base = self.by_round(base);
        let ratio = |(round, value): (usize, f64)| Some(value / base.get(&round).filter(|base| **base > 0.0)?);
        Spread::of(self.by_round(key).into_iter().filter_map(ratio).collect())
    }

    fn to_direct(&self, key: &Key) -> Option<Spread> {
        let base = (key.0.clone(), "this", key.2.base(), key.3);
        (key.2 != key.2.base()).then(|| self.ratio(key, &base)).flatten()
    }

    fn to_this(&self, key: &Key) -> Option<Spread> {
        (key.1 == "other").then(|| self.ratio(key, &(key.0.clone(), "this", key.2, key.3))).flatten()
    }

    /// All figures, in the order in which they were first measured.
    fn keys(&self) -> Vec<Key> {
        let mut seen = BTreeSet::new();
        let keys = self.samples.iter().flat_map(|sample| {
            let name =
                |figure: &(&'static str, f64)| (sample.measure.to_string(), sample.subject, sample.case, figure.0);
            sample.figures.iter().map(name).collect::<Vec<_>>()
        });
        keys.filter(|key| seen.insert(key.clone())).collect()
    }

    /// Everything, for programs.
    pub(crate) fn to_json(&self) -> Value {
        let mut figures = Vec::new();
        for key in self.keys() {
            let values: Vec<f64> = self.by_round(&key).into_values().collect();
            let Some(spread) = Spread::of(values.clone()) else { continue };
            let mut figure = json!({
                "measure": key.0, "build": key.1, "case": key.2, "figure": key.3,
                "values": values, "spread": spread.to_json(),
            });
            let ratios = [("to direct", self.to_direct(&key)), ("to this build", self.to_this(&key))];
            for (name, ratio) in ratios.into_iter().filter_map(|(name, ratio)| Some((name, ratio?))) {
                if let Some(figure) = figure.as_object_mut() {
                    figure.insert(name.to_owned(), ratio.to_json());
                }
            }
            figures.push(figure);
        }
        json!({ "about": self.about, "figures": figures })
    }

    /// The same for people.
    pub(crate) fn table(&self) -> String {
        let mut text =
            format!("{:<16} {:<13} {:<6} {:<24} median (least..most)\n", "measure", "case", "build", "figure");
        for key in self.keys() {
            let Some(spread) = Spread::of(self.by_round(&key).into_values().collect()) else { continue };
            let (measure, build, case, figure) = (&key.0, key.1, key.2.name(), key.3);
            let mut line = format!("{measure:<16} {case:<13} {build:<6} {figure:<24} {spread}");
            for (name, ratio) in [("direct", self.to_direct(&key)), ("this", self.to_this(&key))] {
                if let Some(ratio) = ratio {
                    // Writing to a text cannot fail.
                    let _written = write!(line, "  x {ratio} of {name}");
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}:", self.round + 1, self.measure, self.case.name(), self.subject)?;
        self.figures.iter().try_for_each(|(name, value)| write!(f, " {value:.3} {name};"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(subject: &'static str, case: Case, round: usize, value: f64) -> Sample {
        Sample { subject, case, measure: Measure::Requests(16), round, figures: vec![("requests/s", value)] }
    }

    #[test]
    fn ratios_are_taken_within_a_round_and_then_their_median() {
        let mut summary = Summary::begin(3, 1.0).unwrap();
        // The machine slows down to a tenth in the last round; the ratio does not change by it.
        for (round, (direct, across, other)) in
            [(100.0, 50.0, 60.0), (100.0, 40.0, 40.0), (10.0, 5.0, 5.0)].into_iter().enumerate()
        {
            summary.add(sample("this", Case::Direct, round, direct));
            summary.add(sample("this", Case::Across, round, across));
            summary.add(sample("other", Case::Across, round, other));
        }
        let key = |subject| ("requests-16".to_owned(), subject, Case::Across, "requests/s");
        assert_eq!(summary.to_direct(&key("this")), Some(Spread { median: 0.5, least: 0.4, most: 0.5 }));
        assert_eq!(summary.to_this(&key("other")), Some(Spread { median: 1.0, least: 1.0, most: 1.2 }));
        assert_eq!(summary.to_this(&key("this")), None);
        assert!(summary.table().contains("x 0.500 (0.400..0.500) of direct"), "{}", summary.table());
    }

    #[test]
    fn an_even_number_of_rounds_has_a_median_too() {
        assert_eq!(Spread::of(vec![4.0, 1.0]), Some(Spread { median: 2.5, least: 1.0, most: 4.0 }));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
