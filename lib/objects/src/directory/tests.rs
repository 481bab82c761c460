use std::{fs, time::Duration};

use super::*;
use crate::files::write;

struct Bench {
    home: tempfile::TempDir,
    directory: Directory,
}

impl Bench {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let directory = Directory::open(home.path()).unwrap();
        Self { home, directory }
    }

    fn put(&self, file: &str, contents: &str) {
        write(&self.home.path().join(file), contents.as_bytes(), 0o644).unwrap();
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.home.path().join(file)).unwrap();
    }

    /// The pods in force and the files with problems after a look.
    fn look(&mut self) -> (Vec<String>, Vec<String>) {
        self.directory.reload();
        let Snapshot { objects, problems, .. } = self.directory.snapshot();
        let file = |problem: &Problem| problem.origin.to_string().rsplit('/').next().unwrap().to_owned();
        (objects.pods.keys().map(|name| name.name.clone()).collect(), problems.iter().map(file).collect())
    }
}

fn pods(names: &[&str]) -> String {
    names.iter().map(|name| format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n")).collect()
}

fn strings<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(String::from).to_vec()
}

#[test]
fn a_broken_file_keeps_its_last_good_state_and_harms_no_other() {
    let mut bench = Bench::new();
    bench.put("a.yaml", &pods(&["a1", "a2"]));
    bench.put("b.yaml", &pods(&["b1"]));
    assert_eq!(bench.look(), (strings(["a1", "a2", "b1"]), vec![]));
    bench.put("a.yaml", &format!("{}---\nkind: [", pods(&["a3"])));
    bench.put("b.yaml", &pods(&["b2"]));
    assert_eq!(bench.look(), (strings(["a1", "a2", "b2"]), strings(["a.yaml"])));
    let problem = &bench.directory.snapshot().problems[0];
    assert_eq!(problem.error.line(), Some(6), "{problem}");
    bench.put("a.yaml", &pods(&["a3"]));
    assert_eq!(bench.look(), (strings(["a3", "b2"]), vec![]));
    bench.remove("b.yaml");
    assert_eq!(bench.look(), (strings(["a3"]), vec![]));
}

#[test]
fn a_file_that_was_broken_from_the_start_holds_nothing() {
    let mut bench = Bench::new();
    bench.put("a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: 1, labels: x}\n");
    assert_eq!(bench.look(), (vec![], strings(["a.yaml"])));
    let error = &bench.directory.snapshot().problems[0].error;
    assert_eq!((error.line(), error.field(), error.reason()), (Some(3), Some("metadata.labels"), "field"));
}

/// A process with copies that starts, looks, and ends; what it sees and which files are lost to it.
fn process(home: &Path) -> (Vec<String>, Vec<String>, Vec<bool>) {
    let directory = Directory::open_keeping(&home.join("objects"), &home.join("state/objects")).unwrap();
    let Snapshot { objects, problems, .. } = directory.snapshot();
    let file = |problem: &Problem| problem.origin.to_string().rsplit('/').next().unwrap().to_owned();
    (
        objects.pods.keys().map(|name| name.name.clone()).collect(),
        problems.iter().map(file).collect(),
        problems.iter().map(|problem| problem.is_lost).collect(),
    )
}

#[test]
fn a_file_that_is_broken_at_the_next_start_is_as_it_was_last_good() {
    let home = tempfile::tempdir().unwrap();
    let put = |file: &str, contents: &str| {
        fs::create_dir_all(home.path().join("objects")).unwrap();
        write(&home.path().join("objects").join(file), contents.as_bytes(), 0o644).unwrap();
    };
    put("a.yaml", &pods(&["a1"]));
    put("b.yaml", &pods(&["b1"]));
    put("broken.yaml", "kind: [");
    assert_eq!(process(home.path()), (strings(["a1", "b1"]), strings(["broken.yaml"]), vec![true]));
    put("a.yaml", "kind: [");
    put("b.yaml", &pods(&["b2"]));
    for _ in 0..2 {
        let (seen, files, lost) = process(home.path());
        assert_eq!(
            (seen, lost),
            (strings(["a1", "b2"]), vec![false, true]),
            "a.yaml is kept, broken.yaml never was good"
        );
        assert_eq!(files, strings(["a.yaml", "broken.yaml"]));
    }
    fs::remove_file(home.path().join("objects/a.yaml")).unwrap();
    put("c.yaml", &pods(&["a1"]));
    put("broken.yaml", &pods(&["x"]));
    assert_eq!(process(home.path()), (strings(["a1", "b2", "x"]), vec![], vec![]), "what is gone is not kept");
    put("a.yaml", "kind: [");
    assert_eq!(process(home.path()).2, [true], "a new file of an old name");
}

#[test]
fn who_held_an_object_keeps_it_across_a_restart() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("objects")).unwrap();
    fs::write(home.path().join("objects/b.yaml"), pods(&["x", "y"])).unwrap();
    process(home.path());
    fs::write(home.path().join("objects/a.yaml"), pods(&["x"])).unwrap();
    assert_eq!(process(home.path()), (strings(["x", "y"]), strings(["a.yaml"]), vec![true]));
}

#[test]
fn copies_are_for_nobody_else() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("objects")).unwrap();
    fs::write(home.path().join("objects/a.yaml"), pods(&["x"])).unwrap();
    process(home.path());
    let mode = |path: &str| fs::metadata(home.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("state/objects"), mode("state/objects/a.yaml")), (0o700, 0o600));
}

#[test]
fn who_held_an_object_keeps_it_and_the_other_file_is_told() {
    let mut bench = Bench::new();
    bench.put("b.yaml", &pods(&["x"]));
    bench.look();
    bench.put("a.yaml", &pods(&["w", "x"]));
    assert_eq!(bench.look(), (strings(["x"]), strings(["a.yaml"])));
    let error = &bench.directory.snapshot().problems[0].error;
    assert_eq!(error.to_string(), "line 6: Pod default/x stands in b.yaml already");
    bench.put("b.yaml", &pods(&["y"]));
    assert_eq!(bench.look(), (strings(["w", "x", "y"]), vec![]), "the loser gets in when the holder lets go");
}

#[test]
fn the_first_file_wins_when_nobody_held_the_object() {
    let mut bench = Bench::new();
    bench.put("a.yaml", &pods(&["x"]));
    bench.put("b.yaml", &pods(&["x", "y"]));
    assert_eq!(bench.look(), (strings(["x"]), strings(["b.yaml"])));
    bench.remove("a.yaml");
    assert_eq!(bench.look(), (strings(["x", "y"]), vec![]));
}

#[test]
fn objects_move_between_files_in_one_step() {
    let mut bench = Bench::new();
    bench.put("a.yaml", &pods(&["x"]));
    bench.put("b.yaml", &pods(&["y"]));
    bench.look();
    bench.put("a.yaml", &pods(&["y"]));
    bench.put("b.yaml", &pods(&["x"]));
    assert_eq!(bench.look(), (strings(["x", "y"]), vec![]), "swapped");
    fs::rename(bench.home.path().join("a.yaml"), bench.home.path().join("c.yaml")).unwrap();
    assert_eq!(bench.look(), (strings(["x", "y"]), vec![]), "renamed");
}

#[test]
fn objects_that_stay_as_they_are_stay_the_same_value() {
    let mut bench = Bench::new();
    bench.put("a.yaml", &pods(&["x", "y"]));
    bench.look();
    let before = Arc::clone(&bench.directory.snapshot().objects);
    bench.put("a.yaml", &pods(&["w", "x"]));
    bench.look();
    let after = &bench.directory.snapshot().objects;
    assert!(Arc::ptr_eq(before.pod("default", "x").unwrap(), after.pod("default", "x").unwrap()));
}

#[test]
fn a_directory_that_vanishes_keeps_its_objects() {
    let mut bench = Bench::new();
    bench.put("a.yaml", &pods(&["x"]));
    bench.look();
    fs::remove_dir_all(bench.home.path()).unwrap();
    let (objects, problems) = bench.look();
    assert_eq!((objects, problems.len()), (strings(["x"]), 1));
    fs::create_dir(bench.home.path()).unwrap();
    assert_eq!(bench.look(), (vec![], vec![]));
}

#[tokio::test]
async fn watching_publishes_what_changes() {
    let bench = Bench::new();
    bench.put("a.yaml", &pods(&["x"]));
    let Bench { home, directory } = bench;
    let (mut receiver, task) = directory.watch();
    assert_eq!(receiver.borrow_and_update().objects.len(), 1);
    let shutdown = Shutdown::new();
    let running = tokio::spawn(task.run(shutdown.clone()));
    for (names, count) in [(&["x", "y"][..], 2), (&["y"], 1), (&["x", "y", "z"], 3)] {
        write(&home.path().join("a.yaml"), pods(names).as_bytes(), 0o644).unwrap();
        let changed = receiver.wait_for(|snapshot| snapshot.objects.len() == count);
        tokio::time::timeout(Duration::from_secs(20), changed).await.unwrap().unwrap();
    }
    fs::remove_file(home.path().join("a.yaml")).unwrap();
    let gone = receiver.wait_for(|snapshot| snapshot.objects.is_empty());
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap().unwrap();
    shutdown.request();
    running.await.unwrap();
}
