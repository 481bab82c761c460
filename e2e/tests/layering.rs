//! Which crate may depend on which: the table, held against what the manifests say.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests, which clippy does not see"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

/// A crate and what of ours it may depend on. Crates that are not listed may depend on anything.
const ALLOWED: [(&str, &[&str]); 14] = [
    ("underpass-model", &[]),
    ("underpass-policy", &["model"]),
    ("underpass-runtime", &["model"]),
    ("underpass-identity", &["model", "runtime"]),
    ("underpass-discovery", &["model", "policy", "runtime"]),
    ("underpass-objects", &["model", "runtime"]),
    ("underpass-enrolment", &["model"]),
    ("underpass-hbone", &["model", "runtime", "identity"]),
    ("underpass-nodeproxy", &["model", "policy", "runtime", "identity", "discovery", "enrolment", "hbone"]),
    ("underpass-waypoint", &["model", "policy", "runtime", "identity", "discovery", "enrolment", "hbone"]),
    ("underpass-operator", &["model", "policy", "runtime", "identity", "discovery", "objects"]),
    ("underpass-cni", &["model", "enrolment"]),
    ("underpass-agent", &["model", "runtime", "enrolment", "objects"]),
    // Runs the code that reads what others send, wherever that is.
    (
        "underpass-fuzz",
        &["model", "policy", "identity", "discovery", "objects", "enrolment", "hbone", "cni", "operator"],
    ),
];
const ANYTHING: [&str; 5] =
    ["underpass-lab", "underpass-e2e", "underpass-e2e-kube", "underpass-bench", "underpass-cli"];

fn cargo(arguments: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What each crate of the workspace depends on that is also of the workspace, tests apart.
fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let metadata: serde_json::Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--offline", "--format-version=1"])).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |package: &serde_json::Value| package["name"].as_str().unwrap().to_owned();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            // What tests alone use has no part in a program.
            let ours = dependencies.filter(|one| one["path"].is_string() && one["kind"] != "dev").map(name);
            (name(package), ours.collect())
        })
        .collect()
}

#[test]
fn crates_depend_only_on_what_they_may() {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.into_iter().collect();
    let mut wrong = Vec::new();
    for (from, to) in edges() {
        if ANYTHING.contains(&&*from) {
            continue;
        }
        let Some(allowed) = allowed.get(&*from) else {
            wrong.push(format!("{from} is in no row of the table"));
            continue;
        };
        let forbidden = to.iter().filter(|to| !allowed.iter().any(|name| format!("underpass-{name}") == **to));
        wrong.extend(forbidden.map(|to| format!("{from} -> {to}")));
    }
    assert!(wrong.is_empty(), "forbidden dependencies: {wrong:#?}");
}

#[test]
fn the_plugin_has_no_async_runtime() {
    let tree = cargo(&["tree", "--offline", "-p", "underpass-cni", "-e", "normal", "--prefix", "none"]);
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    for heavy in ["tokio", "rustls", "tonic", "hyper"] {
        assert!(!names.contains(heavy), "underpass-cni brings {heavy} along:\n{tree}");
    }
}
