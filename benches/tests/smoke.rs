//! Every kind of measure once, for a moment: that the bench works, not what it says.

use std::process::Command;

use serde_json::Value;

#[test]
fn every_kind_of_measure_gives_figures() {
    let directory = tempfile::tempdir().unwrap();
    let summary = directory.path().join("summary.json");
    let measures =
        ["bulk-1", "bulk-2-back", "requests-64", "connections-2", "open-half", "idle-20", "first-byte", "start-up"];
    let mut bench = Command::new(env!("CARGO_BIN_EXE_underpass-bench"));
    bench.args(["run", "--quick", "--seconds", "0.2", "--case", "across", "--case", "same-node", "--summary"]);
    bench.arg(&summary);
    for measure in measures {
        bench.args(["--measure", measure]);
    }
    let output = bench.output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");

    let summary: Value = serde_json::from_slice(&std::fs::read(&summary).unwrap()).unwrap();
    let figures = summary["figures"].as_array().unwrap();
    let median = |measure: &str, case: &str, figure: &str| {
        let of = |one: &&Value| one["measure"] == measure && one["case"] == case && one["figure"] == figure;
        figures.iter().find(of).and_then(|one| one["spread"]["median"].as_f64())
    };
    for (measure, figure) in [
        ("bulk-1", "Gbit/s"),
        ("bulk-2-back", "Gbit/s"),
        ("requests-64", "requests/s"),
        ("connections-2", "connections/s"),
    ] {
        for case in ["direct", "direct-near", "across", "same-node"] {
            assert!(median(measure, case, figure).is_some_and(|rate| rate > 0.0), "{measure} {case}: {told}");
        }
    }
    for (measure, figure) in [
        ("open-half", "p99.9 us"),
        ("bulk-1", "s/GiB"),
        ("idle-20", "KiB/connection server"),
        ("first-byte", "ms to first byte"),
        ("start-up", "ms to ready"),
    ] {
        assert!(median(measure, "across", figure).is_some(), "{measure} {figure}: {told}");
    }
}

#[test]
fn every_sweep_gives_charts() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Command::new(env!("CARGO_BIN_EXE_underpass-bench"));
    let output = bench.args(["grow", "--quick", "--seconds", "0.2", "--to"]).arg(directory.path()).output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    let growth: Value = serde_json::from_slice(&std::fs::read(directory.path().join("growth.json")).unwrap()).unwrap();
    let charts = growth["charts"].as_array().unwrap();
    assert_eq!(charts.len(), 8, "{told}");
    for chart in charts {
        let name = chart["name"].as_str().unwrap();
        for line in chart["lines"].as_array().unwrap() {
            // One more pod's start needs a pod more, of which the first size has none.
            assert!(!line["points"].as_array().unwrap().is_empty(), "{name}: {line}");
        }
        let svg = std::fs::read_to_string(directory.path().join(format!("{name}.svg"))).unwrap();
        assert!(svg.contains("in proportion"), "{name}");
    }
}

#[test]
fn a_command_line_is_checked_without_a_measurement() {
    let check = |arguments: &[&str]| {
        let mut bench = Command::new(env!("CARGO_BIN_EXE_underpass-bench"));
        bench.arg("check").args(arguments).output().unwrap()
    };
    for (arguments, status) in [
        (&["run", "--quick", "--measure", "bulk-1"][..], 0),
        (&["run", "--qiuck"], 2),
        (&["grow", "--nonsense"], 2),
        (&["plot", "only-one"], 2),
    ] {
        let output = check(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty());
    }
}
