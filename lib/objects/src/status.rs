//! The status directory: how node agents and the operator tell each other what is captured.
//!
//! `capture/<pod uid>.json` is the agent's report on a pod, `withdrawn/<pod uid>` the operator's answer to a report of
//! leaving: no subscriber believes any more that the pod takes tunnels. An answer names the report it answers, so that
//! one which comes late is never taken for the answer to the next report.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Mutex, watch},
    time,
};
use underpass_model::PodUid;
use underpass_runtime::Shutdown;

use crate::{
    changes::Changes,
    files::{self, Change, Files},
};

const CAPTURE: &str = "capture";
const WITHDRAWN: &str = "withdrawn";
const REPORT_ENDING: &str = "json";

/// How an agent says how far a pod's capture stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureReport {
    /// Kubernetes' uid of the pod.
    pub pod_uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The agent's node.
    pub node: String,
    /// How far capture stands.
    pub state: CaptureState,
    /// Tells one report on a pod from the next; given by [`StatusDirectory::report`].
    #[serde(default)]
    pub generation: u64,
}

/// How far a pod's capture stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureState {
    /// Listeners and rules stand: the pod takes tunnels.
    Captured,
    /// The pod takes tunnels still, but shall not be sent any new one.
    Leaving,
}

/// Everything in a status directory at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The agents' reports.
    pub reports: OrdMap<PodUid, CaptureReport>,
    /// The operator's answers: to which report of leaving each.
    pub withdrawn: BTreeMap<PodUid, u64>,
}

/// The directory itself. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StatusDirectory {
    root: PathBuf,
    answers: Arc<Answers>,
}

/// One watch over the operator's answers for everybody who waits for one: a node that is drained has hundreds of them,
/// and the kernel gives few watches to a user.
#[derive(Debug)]
struct Answers {
    /// Whoever holds it watches for all.
    watch: Mutex<Option<Changes>>,
    looked: watch::Sender<()>,
}

/// Keeps a [`Status`] up to date; see [`StatusDirectory::watch`].
#[derive(Debug)]
pub struct StatusTask {
    reader: Reader,
    changes: Changes,
    publish: watch::Sender<Status>,
}

/// Why a report or an answer could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// A pod uid that cannot be a file's name.
    #[error("pod uid {0:?} is not 1 to 128 letters, digits, dots, dashes or underscores")]
    PodUid(String),
    /// Everybody may write there, and so say who is captured.
    #[error("{path} has mode {mode:04o}, but must not be open to everybody's writing")]
    Mode {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A report could not be put into JSON.
    #[error("report on pod {0} cannot be written as JSON")]
    Json(String, #[source] serde_json::Error),
}

impl StatusDirectory {
    /// Makes the directory's parts where they are missing.
    ///
    /// # Errors
    /// If they cannot be made, or everybody may write there.
    pub fn open(root: &Path) -> Result<Self, StatusError> {
        let parts = [CAPTURE, WITHDRAWN].map(|part| root.join(part));
        for path in &parts {
            fs::create_dir_all(path).map_err(|source| StatusError::Io { path: path.clone(), source })?;
        }
        for path in [root.to_owned()].into_iter().chain(parts) {
            let looked = fs::metadata(&path);
            let mode = looked.map_err(|source| StatusError::Io { path: path.clone(), source })?.mode() & 0o7777;
            if mode & 0o002 != 0 {
                return Err(StatusError::Mode { path, mode });
            }
        }
        let answers = Answers { watch: Mutex::default(), looked: watch::Sender::new(()) };
        Ok(Self { root: root.into(), answers: Arc::new(answers) })
    }

    /// For agents: puts a report in the place of the one before, and says which generation it became. Answers to
    /// earlier reports count no more.
    ///
    /// # Errors
    /// If the report cannot be written; then the one before stands.
    pub fn report(&self, report: &CaptureReport) -> Result<u64, StatusError> {
        let uid = PodUid::new(&report.pod_uid);
        let path = self.report_path(&uid)?;
        let before = fs::read(&path).ok().and_then(|contents| parse(&uid, &contents).ok());
        // The clock separates reports across removals; the maximum keeps order where the clock steps back.
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let clock = u64::try_from(clock.as_nanos()).unwrap_or(u64::MAX);
        let generation = before.map_or(clock, |before| clock.max(before.generation.saturating_add(1)));
        let stamped = CaptureReport { generation, ..report.clone() };
        let json = serde_json::to_vec(&stamped).map_err(|error| StatusError::Json(report.pod_uid.clone(), error))?;
        write(&path, &json)?;
        Ok(generation)
    }

    /// For agents: forgets a pod, its answer too.
    ///
    /// # Errors
    /// If a file stays.
    pub fn forget(&self, pod: &PodUid) -> Result<(), StatusError> {
        remove(&self.report_path(pod)?)?;
        self.retract_answer(pod)
    }

    /// For the operator: answers that report of leaving.
    ///
    /// # Errors
    /// If the answer cannot be written.
    pub fn answer_withdrawn(&self, pod: &PodUid, generation: u64) -> Result<(), StatusError> {
        write(&self.answer_path(pod)?, generation.to_string().as_bytes())
    }

    /// For the operator: an answer to a report that is gone or has been replaced is litter.
    ///
    /// # Errors
    /// If the file stays.
    pub fn retract_answer(&self, pod: &PodUid) -> Result<(), StatusError> {
        remove(&self.answer_path(pod)?)
    }

    /// For agents: whether that report of leaving has been answered.
    #[must_use]
    pub fn is_withdrawn(&self, pod: &PodUid, generation: u64) -> bool {
        let Ok(path) = self.answer_path(pod) else { return false };
        fs::read(path).is_ok_and(|contents| answered(&contents) == Some(generation))
    }

    /// For agents: waits for the answer, bounded; false if it did not come in time.
    pub async fn withdrawn(&self, pod: &PodUid, generation: u64, deadline: Duration) -> bool {
        let mut looked = self.answers.looked.subscribe();
        let answered = async {
            while !self.is_withdrawn(pod, generation) {
                tokio::select! {
                    // The sender lives as long as `self`.
                    _changed = looked.changed() => {}
                    () = self.watch_for_all(pod, generation) => {}
                }
            }
        };
        time::timeout(deadline, answered).await.is_ok()
    }

    /// Once it is this caller's turn to watch: until something may have changed. Whoever is dropped in between passes
    /// the watch on.
    async fn watch_for_all(&self, pod: &PodUid, generation: u64) {
        let mut watch = self.answers.watch.lock().await;
        let changes = watch.get_or_insert_with(|| Changes::of(vec![self.root.join(WITHDRAWN)]));
        // Armed only now, perhaps after the answer came.
        if !self.is_withdrawn(pod, generation) {
            changes.next().await;
            self.answers.looked.send_replace(());
        }
    }

    /// Reads everything.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn read(&self) -> Result<Status, StatusError> {
        let mut reader = Reader::new(self);
        reader.reload()?;
        Ok(reader.status)
    }

    /// Keeps the status up to date: the receiver always holds the newest while the task runs. A broken report is
    /// logged and the last good one on that pod stays.
    #[must_use]
    pub fn watch(&self) -> (watch::Receiver<Status>, StatusTask) {
        let changes = Changes::of(vec![self.root.join(CAPTURE), self.root.join(WITHDRAWN)]);
        let mut reader = Reader::new(self);
        reader.reload_or_log();
        let (publish, receiver) = watch::channel(reader.status.clone());
        (receiver, StatusTask { reader, changes, publish })
    }

    fn report_path(&self, pod: &PodUid) -> Result<PathBuf, StatusError> {
        Ok(self.root.join(CAPTURE).join(format!("{}.{REPORT_ENDING}", file_name(pod)?)))
    }

    fn answer_path(&self, pod: &PodUid) -> Result<PathBuf, StatusError> {
        Ok(self.root.join(WITHDRAWN).join(file_name(pod)?))
    }
}

impl StatusTask {
    /// Runs until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                () = self.changes.next() => {}
            }
            if self.reader.reload_or_log() {
                self.publish.send_replace(self.reader.status.clone());
            }
        }
    }
}

/// Reads what changed since it last looked.
#[derive(Debug)]
struct Reader {
    captures: Files,
    answers: Files,
    status: Status,
    told: BTreeSet<String>,
}

impl Reader {
    fn new(directory: &StatusDirectory) -> Self {
        Self {
            captures: Files::new(&directory.root.join(CAPTURE), &[REPORT_ENDING]),
            answers: Files::new(&directory.root.join(WITHDRAWN), &[]),
            status: Status::default(),
            told: BTreeSet::new(),
        }
    }

    fn reload_or_log(&mut self) -> bool {
        self.reload().unwrap_or_else(|error| {
            tracing::warn!(%error, "status directory cannot be read, its last state stays");
            false
        })
    }

    /// True if anything is different.
    fn reload(&mut self) -> Result<bool, StatusError> {
        let before = self.status.clone();
        for change in changes(&mut self.captures)? {
            match change {
                Change::Gone(name) => drop(self.status.reports.remove(&uid_of_report(&name))),
                Change::Read(name, contents) => self.take_report(&name, &contents),
                Change::Unreadable(name, error) => self.tell(&name, &error),
            }
        }
        for change in changes(&mut self.answers)? {
            match change {
                Change::Gone(name) => drop(self.status.withdrawn.remove(&PodUid::new(&name))),
                Change::Read(name, contents) => {
                    if let Some(generation) = answered(&contents) {
                        self.status.withdrawn.insert(PodUid::new(&name), generation);
                    }
                }
                Change::Unreadable(name, error) => self.tell(&name, &error),
            }
        }
        Ok(self.status != before)
    }

    fn take_report(&mut self, name: &str, contents: &[u8]) {
        let uid = uid_of_report(name);
        match parse(&uid, contents) {
            Ok(report) => {
                self.told.remove(name);
                self.status.reports.insert(uid, report);
            }
            Err(error) => self.tell(name, &error),
        }
    }

    /// Once per file until it is good again.
    fn tell(&mut self, name: &str, error: &dyn std::error::Error) {
        if self.told.insert(name.into()) {
            tracing::warn!(file = name, %error, "report is not taken, the last good one stays");
        }
    }
}

fn uid_of_report(name: &str) -> PodUid {
    PodUid::new(name.strip_suffix(REPORT_ENDING).and_then(|stem| stem.strip_suffix('.')).unwrap_or(name))
}

/// A report counts only in the file of its own pod.
fn parse(uid: &PodUid, contents: &[u8]) -> Result<CaptureReport, serde_json::Error> {
    let report: CaptureReport = serde_json::from_slice(contents)?;
    if report.pod_uid == uid.as_str() {
        Ok(report)
    } else {
        Err(serde::de::Error::custom(format_args!("pod_uid is not the file's name but {:?}", report.pod_uid)))
    }
}

fn answered(contents: &[u8]) -> Option<u64> {
    std::str::from_utf8(contents).ok()?.trim().parse().ok()
}

fn file_name(pod: &PodUid) -> Result<&str, StatusError> {
    let uid = pod.as_str();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if (1..=128).contains(&uid.len()) && !uid.starts_with('.') && uid.bytes().all(allowed) {
        Ok(uid)
    } else {
        Err(StatusError::PodUid(uid.chars().take(128).collect()))
    }
}

fn changes(files: &mut Files) -> Result<Vec<Change>, StatusError> {
    files.changes().map_err(|source| StatusError::Io { path: files.directory().into(), source })
}

fn write(path: &Path, contents: &[u8]) -> Result<(), StatusError> {
    files::write(path, contents, 0o644).map_err(|source| StatusError::Io { path: path.into(), source })
}

fn remove(path: &Path) -> Result<(), StatusError> {
    files::remove(path).map_err(|source| StatusError::Io { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(uid: &str, state: CaptureState) -> CaptureReport {
        let text = String::from;
        CaptureReport {
            pod_uid: uid.into(),
            namespace: text("shop"),
            name: text("web"),
            node: text("node-1"),
            state,
            generation: 0,
        }
    }

    fn bench() -> (tempfile::TempDir, StatusDirectory) {
        let home = tempfile::tempdir().unwrap();
        let directory = StatusDirectory::open(&home.path().join("status")).unwrap();
        (home, directory)
    }

    #[test]
    fn an_answer_counts_for_the_report_it_answers_only() {
        let (_home, directory) = bench();
        let uid = PodUid::new("u-1");
        let captured = directory.report(&report("u-1", CaptureState::Captured)).unwrap();
        let leaving = directory.report(&report("u-1", CaptureState::Leaving)).unwrap();
        assert!(leaving > captured);
        assert!(!directory.is_withdrawn(&uid, leaving));
        directory.answer_withdrawn(&uid, leaving).unwrap();
        assert!(directory.is_withdrawn(&uid, leaving));
        directory.report(&report("u-1", CaptureState::Captured)).unwrap();
        let again = directory.report(&report("u-1", CaptureState::Leaving)).unwrap();
        assert!(!directory.is_withdrawn(&uid, again), "the answer to the first leaving is not one to the second");
        let status = directory.read().unwrap();
        assert_eq!(status.reports[&uid].generation, again);
        assert_eq!(status.withdrawn[&uid], leaving);
        directory.forget(&uid).unwrap();
        assert_eq!(directory.read().unwrap(), Status::default());
        directory.forget(&uid).unwrap();
    }

    #[test]
    fn refuses_a_place_where_everybody_may_say_who_is_captured() {
        use std::os::unix::fs::PermissionsExt as _;
        for (part, mode, good) in
            [("", 0o755, true), ("", 0o1777, false), (CAPTURE, 0o777, false), (WITHDRAWN, 0o775, true)]
        {
            let (home, _directory) = bench();
            let root = home.path().join("status");
            fs::set_permissions(root.join(part), fs::Permissions::from_mode(mode)).unwrap();
            let opened = StatusDirectory::open(&root);
            assert_eq!(opened.is_ok(), good, "{part} {mode:o}: {:?}", opened.err().map(|error| error.to_string()));
        }
    }

    #[test]
    fn refuses_uids_that_lead_out_of_the_directory() {
        let (_home, directory) = bench();
        for bad in ["", ".", "..", "../x", "a/b", ".hidden", "ü", &"x".repeat(129)] {
            assert!(directory.report(&report(bad, CaptureState::Captured)).is_err(), "{bad:?}");
            assert!(directory.answer_withdrawn(&PodUid::new(bad), 1).is_err(), "{bad:?}");
            assert!(!directory.is_withdrawn(&PodUid::new(bad), 1), "{bad:?}");
        }
    }

    #[test]
    fn a_broken_report_or_one_in_another_pods_file_leaves_the_last_good_one() {
        let (home, directory) = bench();
        directory.report(&report("u-1", CaptureState::Captured)).unwrap();
        let mut reader = Reader::new(&directory);
        assert!(reader.reload().unwrap());
        let good = reader.status.clone();
        let path = home.path().join("status/capture/u-1.json");
        let other = serde_json::to_string(&report("u-2", CaptureState::Captured)).unwrap();
        for broken in ["", "{", "{}", r#"{"pod_uid": "u-1"}"#, &other] {
            files::write(&path, broken.as_bytes(), 0o644).unwrap();
            assert!(!reader.reload().unwrap(), "{broken}");
            assert_eq!(reader.status, good, "{broken}");
        }
        fs::remove_file(&path).unwrap();
        assert!(reader.reload().unwrap());
        assert!(reader.status.reports.is_empty());
    }

    #[tokio::test]
    async fn agent_and_operator_see_each_others_files() {
        let (_home, directory) = bench();
        let (mut status, task) = directory.watch();
        let shutdown = Shutdown::new();
        let running = tokio::spawn(task.run(shutdown.clone()));
        let uid = PodUid::new("u-1");
        let generation = directory.report(&report("u-1", CaptureState::Leaving)).unwrap();
        let operator = async {
            let seen = status.wait_for(|status| status.reports.contains_key(&uid)).await.unwrap();
            assert_eq!(seen.reports[&uid].generation, generation);
            directory.answer_withdrawn(&uid, generation).unwrap();
        };
        let agent = directory.withdrawn(&uid, generation, Duration::from_secs(20));
        let ((), answered) = tokio::join!(operator, agent);
        assert!(answered);
        assert!(!directory.withdrawn(&uid, generation + 1, Duration::from_millis(1)).await, "bounded");
        shutdown.request();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn many_waiters_share_one_watch_and_each_hears_its_own_answer() {
        let (_home, directory) = bench();
        let uids: Vec<PodUid> = (0..40).map(|n| PodUid::new(&format!("u-{n}"))).collect();
        let wait = |uid: &PodUid| {
            let (directory, uid) = (directory.clone(), uid.clone());
            tokio::spawn(async move { directory.withdrawn(&uid, 7, Duration::from_secs(20)).await })
        };
        let waiting: Vec<_> = uids.iter().map(wait).collect();
        // The one that watches for all may be the one that gives up.
        let impatient = directory.withdrawn(&PodUid::new("nobody"), 7, Duration::from_millis(1)).await;
        assert!(!impatient);
        for uid in &uids {
            directory.answer_withdrawn(uid, 7).unwrap();
        }
        for waiter in waiting {
            assert!(waiter.await.unwrap());
        }
    }

    mod parsers {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #[test]
            fn arbitrary_reports_and_answers_never_panic(contents in prop::collection::vec(any::<u8>(), 0..200)) {
                drop(parse(&PodUid::new("u-1"), &contents));
                let _number = answered(&contents);
            }

            #[test]
            fn a_report_survives_the_disk(uid in "[a-z0-9-]{1,40}", name in ".*", generation: u64, is_captured: bool) {
                let state = if is_captured { CaptureState::Captured } else { CaptureState::Leaving };
                let report = CaptureReport { name, generation, ..report(&uid, state) };
                let json = serde_json::to_vec(&report).unwrap();
                prop_assert_eq!(parse(&PodUid::new(&uid), &json).unwrap(), report);
                prop_assert!(parse(&PodUid::new("another!"), &json).is_err());
            }
        }
    }
}
