//! Objects kept up to date with a directory of manifests.
//!
//! A file is taken whole or not at all: while it is broken (or claims an object that another file holds), what was
//! good of it before stays in force and the problem is told. Files end in `yaml`, `yml` or `json`; sub-directories are
//! not read, as with `kubectl apply -f`.

mod settle;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::watch;
use underpass_runtime::Shutdown;

use self::settle::FileState;
use crate::{
    changes::Changes,
    files::{Change, Files},
    manifest::{self, ManifestError},
    object::{ObjectKey, Objects},
};

const ENDINGS: &[&str] = &["yaml", "yml", "json"];

/// The files of a directory as objects.
#[derive(Debug)]
pub struct Directory {
    files: Files,
    states: BTreeMap<String, FileState>,
    listing: Option<String>,
    told: BTreeSet<String>,
    snapshot: Snapshot,
}

/// What a directory says at one instant. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The objects in force.
    pub objects: Arc<Objects>,
    /// What is wrong with files, by path.
    pub problems: Arc<Vec<Problem>>,
    /// Kinds that the mesh does not read, with how many objects of each there are.
    pub ignored: Arc<BTreeMap<String, usize>>,
}

/// What is wrong with one file; of its objects the last good ones stay in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which file (or the directory itself).
    pub file: PathBuf,
    /// What is wrong.
    pub error: FileError,
}

/// Why a file's present contents are not in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// It is no set of manifests.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
    /// Another file holds one of its objects.
    #[error("line {line}: {key} stands in {other} already")]
    Elsewhere {
        /// Where it stands in this file.
        line: usize,
        /// What.
        key: Box<ObjectKey>,
        /// Which file holds it.
        other: String,
    },
}

/// Keeps a [`Directory`] up to date; see [`Directory::watch`].
#[derive(Debug)]
pub struct DirectoryTask {
    directory: Directory,
    changes: Changes,
    publish: watch::Sender<Snapshot>,
}

impl Directory {
    /// Reads the directory for the first time. Broken files are problems of the snapshot, not errors.
    ///
    /// # Errors
    /// If the directory cannot be listed at all.
    pub fn open(path: &Path) -> io::Result<Self> {
        path.read_dir()?;
        let mut directory = Self {
            files: Files::new(path, ENDINGS),
            states: BTreeMap::new(),
            listing: None,
            told: BTreeSet::new(),
            snapshot: Snapshot::default(),
        };
        directory.reload();
        Ok(directory)
    }

    /// What it says now.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Looks for changes; true if the snapshot is another one than before.
    pub fn reload(&mut self) -> bool {
        match self.files.changes() {
            Ok(changes) if changes.is_empty() && self.listing.is_none() => return false,
            Ok(changes) => {
                self.listing = None;
                self.take(changes);
            }
            Err(error) => self.listing = Some(error.to_string()),
        }
        let snapshot = self.take_stock();
        if snapshot == self.snapshot {
            return false;
        }
        self.tell(&snapshot);
        self.snapshot = snapshot;
        true
    }

    /// Keeps it up to date: the receiver always holds the newest snapshot while the task runs.
    #[must_use]
    pub fn watch(self) -> (watch::Receiver<Snapshot>, DirectoryTask) {
        // Armed before the last look, so that no change falls between.
        let changes = Changes::of(vec![self.files.directory().into()]);
        let mut directory = self;
        directory.reload();
        let (publish, receiver) = watch::channel(directory.snapshot.clone());
        (receiver, DirectoryTask { directory, changes, publish })
    }

    fn take(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Gone(name) => drop(self.states.remove(&name)),
                Change::Read(name, contents) => {
                    let read = manifest::read(&contents).map_err(FileError::from);
                    self.states.entry(name).or_default().offer(read);
                }
                Change::Unreadable(name, error) => {
                    let error = FileError::Unreadable(error.to_string());
                    self.states.entry(name).or_default().offer(Err(error));
                }
            }
        }
        settle::settle(&mut self.states);
    }

    fn take_stock(&self) -> Snapshot {
        let mut objects = Objects::default();
        let mut ignored = BTreeMap::<String, usize>::new();
        let mut problems = Vec::new();
        if let Some(error) = self.listing.clone() {
            problems.push(Problem { file: self.files.directory().into(), error: FileError::Unreadable(error) });
        }
        for (name, state) in &self.states {
            for (key, located) in &state.good().objects {
                objects.insert(key.clone(), located.object.clone());
            }
            for (kind, count) in &state.good().ignored {
                *ignored.entry(kind.clone()).or_default() += count;
            }
            if let Some(error) = state.problem().cloned() {
                problems.push(Problem { file: self.files.directory().join(name), error });
            }
        }
        Snapshot { objects: Arc::new(objects), problems: Arc::new(problems), ignored: Arc::new(ignored) }
    }

    /// Logs what is new: each problem when it comes and goes, each kind that is not read once for good.
    fn tell(&mut self, snapshot: &Snapshot) {
        for problem in snapshot.problems.iter().filter(|problem| !self.snapshot.problems.contains(problem)) {
            tracing::warn!(
                file = %problem.file.display(),
                line = problem.error.line(),
                field = problem.error.field(),
                error = %problem.error,
                "file is not taken, its last good state stays"
            );
        }
        for problem in self.snapshot.problems.iter() {
            if !snapshot.problems.iter().any(|still| still.file == problem.file) {
                tracing::info!(file = %problem.file.display(), "file is good again or gone");
            }
        }
        for (kind, count) in snapshot.ignored.iter() {
            if self.told.insert(kind.clone()) {
                tracing::info!(kind, count, "objects of this kind mean nothing to the mesh and are ignored");
            }
        }
    }
}

impl DirectoryTask {
    /// Runs until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                () = self.changes.next() => {}
            }
            let mut directory = self.directory;
            let reload = tokio::task::spawn_blocking(move || {
                let changed = directory.reload();
                (directory, changed)
            });
            let Ok((directory, changed)) = reload.await else {
                tracing::error!("reading the directory of objects failed for good, its last state stays");
                return shutdown.requested().await;
            };
            self.directory = directory;
            if changed {
                self.publish.send_replace(self.directory.snapshot.clone());
            }
        }
    }
}

impl FileError {
    /// The line of the file, where one is to blame.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::Unreadable(_) => None,
            Self::Manifest(error) => Some(error.line()),
            Self::Elsewhere { line, .. } => Some(*line),
        }
    }

    /// The path of the field, where one is to blame.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Manifest(error) => error.field(),
            Self::Unreadable(_) | Self::Elsewhere { .. } => None,
        }
    }

    /// A stable label for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::Manifest(error) => error.reason(),
            Self::Elsewhere { .. } => "duplicate",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.error)
    }
}

#[cfg(test)]
mod tests;
