//! Objects kept up to date with a directory of manifests.
//!
//! A file is taken whole or not at all: while it is broken (or claims an object that another file holds), what was
//! good of it before stays in force and the problem is told; on request also across a restart. Files end in `yaml`, `yml` or `json`; sub-directories are
//! not read, as with `kubectl apply -f`.

mod copies;
mod settle;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Arc,
};

use tokio::sync::watch;
use underpass_runtime::Shutdown;

use self::{copies::Copies, settle::FileState};
use crate::{
    changes::Changes,
    files::{Change, Files},
    guarded::{NetworkPolicies, is_network_policy},
    manifest::{self, Manifest, ManifestError},
    object::{ObjectKey, Objects},
    snapshot::{Origin, Problem, Snapshot},
};

const ENDINGS: &[&str] = &["yaml", "yml", "json"];

/// The files of a directory as objects.
#[derive(Debug)]
pub struct Directory {
    files: Files,
    states: BTreeMap<String, FileState>,
    copies: Option<Copies>,
    /// The copies have not been looked at yet.
    is_first: bool,
    listing: Option<String>,
    told: BTreeSet<String>,
    snapshot: Snapshot,
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
        Self::open_with(path, None)
    }

    /// Like [`Self::open`], but what is in force of each file is copied to another directory (which is made if needed),
    /// and a file that is broken now is as it was when the process before last found it good.
    ///
    /// # Errors
    /// If the directory cannot be listed, or that of the copies cannot be made.
    pub fn open_keeping(path: &Path, copies: &Path) -> io::Result<Self> {
        Self::open_with(path, Some(Copies::open(copies)?))
    }

    fn open_with(path: &Path, copies: Option<Copies>) -> io::Result<Self> {
        path.read_dir()?;
        let mut directory = Self {
            files: Files::new(path, ENDINGS),
            states: BTreeMap::new(),
            copies,
            is_first: true,
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
        let mut offers = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                Change::Gone(name) => {
                    self.states.remove(&name);
                    self.copies.iter().for_each(|copies| copies.forget(&name));
                }
                Change::Read(name, contents) => {
                    let read = manifest::read(&contents).map_err(FileError::from);
                    offers.push(Offer { name, read, contents: Some(contents) });
                }
                Change::Unreadable(name, error) => {
                    let error = FileError::Unreadable(error.to_string());
                    offers.push(Offer { name, read: Err(error), contents: None });
                }
            }
        }
        if std::mem::take(&mut self.is_first) {
            self.recall(&offers);
        }
        for Offer { name, read, contents } in offers {
            let contents = contents.filter(|_| self.copies.is_some());
            self.states.entry(name).or_default().offer(read, contents);
        }
        settle::settle(&mut self.states);
        self.keep();
    }

    /// Brings into force what was so when the process before ended, of the files that are still there.
    fn recall(&mut self, offers: &[Offer]) {
        let Some(copies) = &self.copies else { return };
        copies.retain(&offers.iter().map(|offer| offer.name.as_str()).collect());
        for Offer { name, read, contents } in offers {
            let Some(copy) = copies.of(name) else { continue };
            let manifest = match read {
                // Unchanged, so it need not be read twice.
                Ok(manifest) if contents.as_ref() == Some(&copy) => Ok(manifest.clone()),
                Ok(_) | Err(_) => manifest::read(&copy).map_err(FileError::from),
            };
            match manifest {
                Ok(manifest) => self.states.entry(name.clone()).or_default().offer(Ok(manifest), None),
                // Another release may have been less strict.
                Err(error) => tracing::error!(%error, file = name, "the kept copy of a file is of no use"),
            }
        }
        settle::settle(&mut self.states);
    }

    fn keep(&mut self) {
        let Some(copies) = &self.copies else { return };
        for (name, state) in &mut self.states {
            if let Some(contents) = state.take_accepted() {
                copies.keep(name, &contents);
            }
        }
    }

    fn take_stock(&self) -> Snapshot {
        let mut objects = Objects::clone(&self.snapshot.objects);
        let mut ignored = BTreeMap::<String, usize>::new();
        let mut problems = Vec::new();
        if let Some(error) = self.listing.clone() {
            let origin = Origin::File(self.files.directory().into());
            problems.push(Problem { origin, error: FileError::Unreadable(error).into(), is_lost: false });
        }
        for (name, state) in &self.states {
            for (key, located) in &state.good().objects {
                objects.set(key, &located.object);
            }
            for (kind, count) in &state.good().ignored {
                *ignored.entry(kind.clone()).or_default() += count;
            }
            if let Some(error) = state.problem().cloned() {
                let origin = Origin::File(self.files.directory().join(name));
                problems.push(Problem { origin, error: error.into(), is_lost: state.is_lost() });
            }
        }
        let held: BTreeSet<&ObjectKey> = self.states.values().flat_map(|state| state.good().objects.keys()).collect();
        objects.retain(|key| held.contains(key));
        let sees_all_kinds = !problems.iter().any(|problem| problem.is_lost) && self.listing.is_none();
        let network_policies = match ignored.keys().find(|kind| is_network_policy(kind)) {
            Some(kind) => NetworkPolicies::Present(kind.clone()),
            None if sees_all_kinds => NetworkPolicies::Absent,
            None => NetworkPolicies::Unknown("not all files are understood".into()),
        };
        let (objects, problems, ignored) = (Arc::new(objects), Arc::new(problems), Arc::new(ignored));
        Snapshot { objects, problems, ignored, pods_revision: 0, network_policies }
    }

    /// Logs what is new: each problem when it comes and goes, each kind that is not read once for good.
    fn tell(&mut self, snapshot: &Snapshot) {
        for problem in snapshot.problems.iter().filter(|problem| !self.snapshot.problems.contains(problem)) {
            let (file, error) = (&problem.origin, &problem.error);
            let (line, field) = (error.line(), error.field());
            if problem.is_lost {
                tracing::error!(%file, line, field, %error, "file is not taken, and what it holds is missing: no good state of it is known");
            } else {
                tracing::warn!(%file, line, field, %error, "file is not taken, its last good state stays");
            }
        }
        for problem in self.snapshot.problems.iter() {
            if !snapshot.problems.iter().any(|still| still.origin == problem.origin) {
                tracing::info!(file = %problem.origin, "file is good again or gone");
            }
        }
        for (kind, count) in snapshot.ignored.iter() {
            if self.told.insert(kind.clone()) {
                tracing::info!(kind, count, "objects of this kind mean nothing to the mesh and are ignored");
            }
        }
    }
}

/// What a file says.
struct Offer {
    name: String,
    read: Result<Manifest, FileError>,
    contents: Option<Vec<u8>>,
}

impl DirectoryTask {
    /// Runs until asked to stop; ends before only if a file makes the reader panic.
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
                tracing::error!("reading the directory of objects failed for good");
                return;
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

#[cfg(test)]
mod tests;
