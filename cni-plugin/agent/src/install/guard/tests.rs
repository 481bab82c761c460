use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use underpass_runtime::admin::Readiness;

use super::*;
use crate::install::{
    self,
    testing::{FIELD, entry},
};

/// A node's file system with both directories, and a program to install.
struct Bench {
    home: tempfile::TempDir,
    guard: Guard,
}

fn bench() -> Bench {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("root");
    for directory in ["etc/cni/net.d", "data/bin", "opt/cni"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    // As on k3s: the directory that the runtime names is a link.
    symlink("/data/bin", root.join("opt/cni/bin")).unwrap();
    let program = home.path().join("underpass-cni");
    fs::write(&program, "#!/bin/true\n").unwrap();
    let [configurations, binaries] = ["/etc/cni/net.d", "/opt/cni/bin"].map(|path| Some(path.into()));
    let place = Place { root: Some(root), configurations, binaries };
    Bench { guard: Guard { place, program, entry: entry() }, home }
}

impl Bench {
    fn look(&self) -> Result<Seen, InstallError> {
        self.guard.look(None).seen
    }

    fn at(&self, path: &str) -> PathBuf {
        self.home.path().join("root").join(path)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at("etc/cni/net.d").join(name), text).unwrap();
    }

    fn files(&self) -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(self.at("etc/cni/net.d"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(path).unwrap()))
            .collect();
        files.sort();
        files
    }

    fn is_chained(&self, name: &str) -> bool {
        fs::read_to_string(self.at("etc/cni/net.d").join(name)).is_ok_and(|text| text.contains("underpass-cni"))
    }
}

#[test]
fn program_and_entry_come_and_go_without_a_trace() {
    for (name, text) in FIELD {
        let bench = bench();
        bench.write(name, text);
        let before = bench.files();
        let seen = bench.look().unwrap();
        assert!(seen.mended, "{name}");
        assert!(!bench.look().unwrap().mended, "{name}: a second look changes nothing");
        let mode = fs::metadata(bench.at("data/bin/underpass-cni")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        uninstall(&bench.guard.place);
        assert_eq!(bench.files(), before, "{name}");
        assert_eq!(fs::read_dir(bench.at("data/bin")).unwrap().count(), 0);
        uninstall(&bench.guard.place);
    }
}

#[test]
fn a_configuration_keeps_its_mode_and_a_link_stays_one() {
    let bench = bench();
    let (_, text) = FIELD[0];
    fs::write(bench.at("data/flannel"), text).unwrap();
    fs::set_permissions(bench.at("data/flannel"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("/data/flannel", bench.at("etc/cni/net.d/10-flannel.conflist")).unwrap();
    bench.look().unwrap();
    assert!(fs::symlink_metadata(bench.at("etc/cni/net.d/10-flannel.conflist")).unwrap().is_symlink());
    assert!(fs::read_to_string(bench.at("data/flannel")).unwrap().contains("underpass-cni"));
    let mode = fs::metadata(bench.at("data/flannel")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    uninstall(&bench.guard.place);
    assert_eq!(fs::read_to_string(bench.at("data/flannel")).unwrap(), text);
}

#[test]
fn the_program_is_replaced_while_the_former_one_runs() {
    let bench = bench();
    bench.write(FIELD[0].0, FIELD[0].1);
    fs::copy("/bin/sleep", &bench.guard.program).unwrap();
    bench.look().unwrap();
    let target = bench.at("data/bin/underpass-cni");
    let mut running = std::process::Command::new(&target).arg("60").spawn().unwrap();
    fs::write(&bench.guard.program, "another release").unwrap();
    bench.look().unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "another release");
    assert!(running.try_wait().unwrap().is_none(), "the former one goes on");
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(fs::read_dir(bench.at("data/bin")).unwrap().count(), 1, "nothing temporary stays");
}

#[test]
fn without_a_place_or_a_configuration_the_reason_is_told() {
    let bench = bench();
    assert_eq!(bench.look().unwrap_err().reason(), "configuration_absent");
    bench.write("10-broken.conflist", "{ half");
    let error = bench.look().unwrap_err();
    assert_eq!(error.reason(), "configuration_malformed");
    assert!(error.to_string().contains("10-broken.conflist"), "{error}");
    assert_eq!(bench.files(), [("10-broken.conflist".to_owned(), "{ half".to_owned())]);
    fs::remove_file(bench.at("opt/cni/bin")).unwrap();
    assert_eq!(bench.look().unwrap_err().reason(), "binaries_absent");
}

fn uninstall(place: &Place) {
    let directories = place.directories().unwrap();
    install::unchain(&directories).unwrap();
    install::remove_program(&directories).unwrap();
}

/// Waits for something that takes well below a second.
async fn eventually(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_others_take_away_comes_back() {
    let bench = bench();
    let (readiness, shutdown) = (Readiness::default(), Shutdown::new());
    let guard = tokio::spawn(bench.guard.clone().keep(readiness.pending("plugin"), shutdown.clone()));
    let (name, text) = FIELD[0];
    let chained = || bench.is_chained(name);
    assert_eq!(readiness.missing().len(), 1);
    bench.write(name, text);
    eventually("chained once the CNI has written its configuration", chained).await;
    eventually("ready", || readiness.missing().is_empty()).await;

    bench.write(name, text);
    eventually("back after a rewrite", chained).await;
    let renamed = bench.at("etc/cni/net.d/.new");
    fs::write(&renamed, text).unwrap();
    fs::rename(&renamed, bench.at("etc/cni/net.d").join(name)).unwrap();
    eventually("back after a rename over it", chained).await;
    fs::remove_file(bench.at("data/bin/underpass-cni")).unwrap();
    eventually("the program too", || Path::new(&bench.at("data/bin/underpass-cni")).exists()).await;
    bench.write("00-first.conflist", FIELD[2].1);
    eventually("a new primary configuration", || bench.is_chained("00-first.conflist")).await;

    shutdown.request();
    guard.await.unwrap();
    assert!(bench.is_chained(name), "it stays when the agent stops");
}
