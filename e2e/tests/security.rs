//! `docs/security.md` names a test for each threat; here each name is looked up.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

use std::{fs, path::Path};

/// The cells of the table below a heading, without its head.
fn rows<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let section = page.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let lines = section.lines().filter(|line| line.starts_with('|')).skip(2);
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_threat_has_tests_and_they_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let rows = rows(&page, "Threats");
    assert!(rows.len() >= 20, "{} rows", rows.len());
    let mut wrong = Vec::new();
    for row in rows {
        let [threat, _defence, tests] = row.as_slice() else { panic!("{row:?}") };
        let (mut file, mut found) = (None, 0);
        for name in quoted(tests) {
            if name.contains('/') {
                file = fs::read_to_string(root.join(name)).ok();
                wrong.extend(file.is_none().then(|| format!("{threat}: there is no file {name}")));
            } else if file.as_ref().is_some_and(|source| source.contains(&format!("fn {name}("))) {
                found += 1;
            } else {
                wrong.push(format!("{threat}: there is no {name} where it says"));
            }
        }
        wrong.extend((found == 0).then(|| format!("{threat}: no test")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
