//! Every figure at every size, as a table and for programs.

use std::{fmt::Write as _, fs};

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::{Size, operator::Took};
use crate::{run::tell, summary::machine};

/// All figures so far.
#[derive(Debug)]
pub(super) struct Report {
    about: Value,
    sizes: Vec<(Size, Vec<(String, f64)>)>,
}

impl Report {
    /// Nothing yet.
    pub(super) fn begin() -> Result<Self> {
        let mut about = machine()?;
        if let Some(about) = about.as_object_mut() {
            // Whoever else was at work when it began.
            about.insert("load average".into(), fs::read_to_string("/proc/loadavg")?.trim().into());
        }
        Ok(Self { about, sizes: Vec::new() })
    }

    /// What follows is measured at this size.
    pub(super) fn size(&mut self, size: Size) {
        self.sizes.push((size, Vec::new()));
    }

    pub(super) fn figure(&mut self, name: &str, value: f64) {
        let Some((size, figures)) = self.sizes.last_mut() else { return };
        tell(&format!("{size}  {name}: {value:.3}"));
        figures.push((name.to_owned(), value));
    }

    /// What something took.
    pub(super) fn took(&mut self, name: &str, took: Took) {
        self.figure(&format!("{name}: s"), took.seconds);
        self.figure(&format!("{name}: s of processor"), took.cpu);
        self.figure(&format!("{name}: MiB at most"), took.peak);
    }

    /// For programs.
    pub(super) fn to_json(&self) -> Value {
        let of_size = |(size, figures): &(Size, Vec<(String, f64)>)| {
            let figures: Map<String, Value> =
                figures.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
            json!({ "nodes": size.nodes, "pods": size.pods, "figures": figures })
        };
        json!({ "about": self.about, "sizes": self.sizes.iter().map(of_size).collect::<Vec<_>>() })
    }

    /// For people: a line for each figure, a column for each size.
    pub(super) fn table(&self) -> String {
        let mut text = format!("{:<56}", "nodes/pods");
        for (size, _) in &self.sizes {
            // Writing to a text cannot fail.
            let _written = write!(text, " {:>12}", size.to_string());
        }
        let names = self.sizes.first().map(|(_, figures)| figures.iter().map(|(name, _)| name));
        for name in names.into_iter().flatten() {
            let _written = write!(text, "\n{name:<56}");
            for (_, figures) in &self.sizes {
                let value = figures.iter().find(|(other, _)| other == name).map(|(_, value)| *value);
                let _written = write!(text, " {:>12}", value.map_or_else(String::new, |value| format!("{value:.3}")));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_a_line_and_a_size_a_column() {
        let mut report = Report { about: json!({}), sizes: Vec::new() };
        for (nodes, value) in [(1, 0.5), (10, 5.0)] {
            report.size(Size { nodes, pods: nodes * 20 });
            report.figure("a figure", value);
        }
        let table = report.table();
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines, [vec!["nodes/pods", "1/20", "10/200"], vec!["a", "figure", "0.500", "5.000"]]);
        assert_eq!(report.to_json()["sizes"][1]["figures"]["a figure"], 5.0);
    }
}
