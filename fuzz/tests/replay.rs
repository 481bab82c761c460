//! Every file of the corpus, and changed ones, through its target: on any Rust, without a fuzzer.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests, which clippy does not see")]

use std::{
    collections::BTreeSet,
    fs, panic,
    path::{Path, PathBuf},
};

use underpass_fuzz::{TARGETS, target};

/// A corpus stays small, so that it is replayed in seconds and read by people.
const MOST_FILES: usize = 100;
const LONGEST: usize = 8 * 1024;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = corpus().join(target);
    names(&directory)
        .iter()
        .map(|name| directory.join(name))
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn each_target_has_a_corpus_and_each_corpus_a_target() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&corpus()), targets);
    for name in targets {
        let inputs = inputs(&name);
        assert!((10..=MOST_FILES).contains(&inputs.len()), "{name} has {} files", inputs.len());
        for (path, input) in inputs {
            assert!(input.len() <= LONGEST, "{} has {} bytes", path.display(), input.len());
        }
    }
    assert!(target("nonsense").is_none());
}

/// Runs one input; what fails is shown, so that it can be put into a file.
fn run(target: fn(&[u8]), path: &Path, input: &[u8]) {
    if panic::catch_unwind(|| target(input)).is_err() {
        panic!("{} or what was made of it: {}", path.display(), input.escape_ascii());
    }
}

#[test]
fn every_file_of_the_corpus_passes() {
    for (name, target) in TARGETS {
        for (path, input) in inputs(name) {
            run(target, &path, &input);
        }
    }
}

#[test]
fn the_corpus_cut_short_passes() {
    for (name, target) in TARGETS {
        for (path, input) in inputs(name) {
            // Where a message ends early, and with one byte that nobody expects there.
            for cut in (0..input.len()).step_by(1 + input.len() / 16) {
                let (head, tail) = input.split_at(cut);
                run(target, &path, head);
                run(target, &path, &[head, &[0xff], tail.get(1..).unwrap_or_default()].concat());
            }
        }
    }
}
