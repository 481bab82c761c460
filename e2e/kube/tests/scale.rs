//! `./x bench scale` at its smallest: here, because here Kubernetes is built.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

use std::{
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

/// The directory of Kubernetes' programs, built if they are not.
fn programs() -> String {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cluster/build");
    let output = Command::new(build).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "Kubernetes cannot be built");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn every_figure_is_measured_at_every_size() {
    let directory = tempfile::tempdir().unwrap();
    let summary = directory.path().join("summary.json");
    let mut bench = Command::new(underpass_lab::Options::new("any").unwrap().binaries.join("underpass-bench"));
    bench.args(["scale", "--programs", &programs(), "--size", "1/20", "--size", "3/40", "--changes", "4"]);
    bench.args(["--together", "10", "--asked", "1", "--summary"]).arg(&summary);
    let output = bench.output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");

    let summary: Value = serde_json::from_slice(&std::fs::read(&summary).unwrap()).unwrap();
    let sizes = summary["sizes"].as_array().unwrap();
    assert_eq!(sizes.len(), 2, "{told}");
    for size in sizes {
        let figure = |name: &str| size["figures"][name].as_f64().unwrap_or_else(|| panic!("no {name:?}: {told}"));
        // A change is a workload's whole message, whoever it is told to.
        for bytes in ["whole: bytes of a change to each", "demand: bytes of a change to each"] {
            assert!((200.0..2000.0).contains(&figure(bytes)), "{bytes}: {told}");
        }
        assert!(figure("fill: MiB to each") > figure("demand fill: MiB to each"), "{told}");
        for storm in ["cut", "crash"] {
            assert!(figure(&format!("{storm}: streams of each")) >= 1.0, "{storm}: {told}");
            assert!(figure(&format!("{storm}: MiB to each")) < figure("fill: MiB to each") / 2.0, "{storm}: {told}");
        }
        for positive in
            ["start: s", "start: MiB at most", "whole: ms to the last told, many together", "node proxy: MiB"]
        {
            assert!(figure(positive) > 0.0, "{positive}: {told}");
        }
    }
}
