//! The contents in force of each file, for the next process: a file that is broken when that one starts must not look
//! like objects that are gone.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use crate::files;

/// A directory with a copy of each file under its name.
#[derive(Debug)]
pub(super) struct Copies(PathBuf);

impl Copies {
    /// Uses a directory, which is made if it does not exist; for nobody else, for manifests may hold secrets.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self(path.into()))
    }

    /// What was in force of a file.
    pub(super) fn of(&self, name: &str) -> Option<Vec<u8>> {
        match fs::read(self.0.join(name)) {
            Ok(contents) => Some(contents),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!(%error, file = name, "the kept copy of a file cannot be read");
                None
            }
        }
    }

    /// These contents are in force now.
    pub(super) fn keep(&self, name: &str, contents: &[u8]) {
        let path = self.0.join(name);
        if fs::read(&path).is_ok_and(|kept| kept == contents) {
            return;
        }
        if let Err(error) = files::write(&path, contents, 0o600) {
            tracing::error!(%error, file = name, "no copy of a good file can be kept for the next start");
        }
    }

    /// The file is gone.
    pub(super) fn forget(&self, name: &str) {
        if let Err(error) = files::remove(&self.0.join(name)) {
            tracing::warn!(%error, file = name, "the copy of a file that is gone stays");
        }
    }

    /// Forgets all files but these.
    pub(super) fn retain(&self, names: &BTreeSet<&str>) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if let Some(name) = name.to_str().filter(|name| !names.contains(name)) {
                self.forget(name);
            }
        }
    }
}
