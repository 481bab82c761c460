//! The files of the authority: secrets that only their owner may read, and what everybody may know.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// A directory of ours.
#[derive(Debug, Clone)]
pub struct StateDirectory(PathBuf);

/// Why the directory or a file in it is not used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// An operation failed.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Others may write or read what only we may.
    #[error("{path} has mode {mode:04o}, but must not be open to others than its owner ({wanted})")]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What to do about it.
        wanted: &'static str,
    },
    /// There is something else under the name.
    #[error("{path} is not a {wanted}")]
    Kind {
        /// Which file.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
}

impl StateDirectory {
    /// Uses a directory, which is made (0700) if it does not exist.
    ///
    /// # Errors
    /// [`StateError`], also when others may write to the directory.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |what| move |source| StateError::Io { what, path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make"))?;
        let metadata = fs::metadata(path).map_err(failed("read"))?;
        if metadata.mode() & 0o022 != 0 {
            let (path, mode) = (path.to_owned(), metadata.mode() & 0o7777);
            return Err(StateError::Mode { path, mode, wanted: "0700" });
        }
        Ok(Self(path.to_owned()))
    }

    /// Where a file is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Reads a secret, if there is one.
    ///
    /// # Errors
    /// [`StateError::Mode`] when others may read it.
    pub fn read_secret(&self, name: &str) -> Result<Option<String>, StateError> {
        self.read(name, |path, mode| {
            let open = mode & 0o077 != 0;
            if open { Err(StateError::Mode { path: path.to_owned(), mode, wanted: "0600" }) } else { Ok(()) }
        })
    }

    /// Reads what is no secret, if it is there.
    ///
    /// # Errors
    /// [`StateError::Mode`] when others may write it.
    pub fn read_public(&self, name: &str) -> Result<Option<String>, StateError> {
        self.read(name, |path, mode| {
            let open = mode & 0o022 != 0;
            if open { Err(StateError::Mode { path: path.to_owned(), mode, wanted: "0644" }) } else { Ok(()) }
        })
    }

    fn read(
        &self,
        name: &str,
        check: impl FnOnce(&Path, u32) -> Result<(), StateError>,
    ) -> Result<Option<String>, StateError> {
        let path = self.path(name);
        let failed = |source| StateError::Io { what: "read", path: path.clone(), source };
        // The mode is asked of the open file, so that it is the mode of what is read.
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(StateError::Kind { path, wanted: "regular file" });
        }
        check(&path, metadata.mode() & 0o7777)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        Ok(Some(text))
    }

    /// Writes a secret whole, unless there is one of the name; says whether it did.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn create_secret(&self, name: &str, text: &str) -> Result<bool, StateError> {
        let (path, temporary) = (self.path(name), self.write_temporary(name, text, 0o600)?);
        // Unlike a rename, a link does not replace what another process made meanwhile.
        let linked = fs::hard_link(&temporary, &path);
        fs::remove_file(&temporary).map_err(|source| StateError::Io { what: "remove", path: temporary, source })?;
        match linked {
            Ok(()) => self.sync().map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(StateError::Io { what: "make", path, source }),
        }
    }

    /// Writes what everybody may know, replacing the file of the name at once.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn write_public(&self, name: &str, text: &str) -> Result<(), StateError> {
        let (path, temporary) = (self.path(name), self.write_temporary(name, text, 0o644)?);
        fs::rename(&temporary, &path).map_err(|source| StateError::Io { what: "replace", path, source })?;
        self.sync()
    }

    /// Gives a file another's name and place.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn rename(&self, from: &str, to: &str) -> Result<(), StateError> {
        let path = self.path(from);
        fs::rename(&path, self.path(to)).map_err(|source| StateError::Io { what: "rename", path, source })?;
        self.sync()
    }

    fn write_temporary(&self, name: &str, text: &str, mode: u32) -> Result<PathBuf, StateError> {
        let path = self.path(&format!(".{name}.{}", std::process::id()));
        let failed = |source| StateError::Io { what: "write", path: path.clone(), source };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(path)
    }

    /// A new name is durable only once its directory is.
    fn sync(&self) -> Result<(), StateError> {
        let synced = File::open(&self.0).and_then(|directory| directory.sync_all());
        synced.map_err(|source| StateError::Io { what: "sync", path: self.0.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_secret_is_written_once_and_only_for_its_owner() {
        let place = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(&place.path().join("deep/down")).unwrap();
        assert_eq!(state.read_secret("key").unwrap(), None);
        assert!(state.create_secret("key", "one").unwrap());
        assert!(!state.create_secret("key", "two").unwrap());
        assert_eq!(state.read_secret("key").unwrap().as_deref(), Some("one"));
        assert_eq!(fs::metadata(state.path("key")).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(place.path().join("deep/down")).unwrap().mode() & 0o7777, 0o700);
        let left: Vec<_> = fs::read_dir(place.path().join("deep/down")).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file remains: {left:?}");
    }

    #[test]
    fn refuses_what_is_open_to_others() {
        let place = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(place.path()).unwrap();
        state.create_secret("key", "secret").unwrap();
        for (mode, fine) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o660, false)] {
            chmod(&state.path("key"), mode);
            let read = state.read_secret("key");
            assert_eq!(read.is_ok(), fine, "{mode:o}");
            if let Err(error) = read {
                let text = error.to_string();
                assert!(text.contains(&format!("{mode:04o}")) && text.contains("/key"), "{text}");
            }
        }
        state.write_public("root.pem", "root").unwrap();
        for (mode, fine) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false)] {
            chmod(&state.path("root.pem"), mode);
            assert_eq!(state.read_public("root.pem").is_ok(), fine, "{mode:o}");
        }
        chmod(place.path(), 0o770);
        assert!(matches!(StateDirectory::open(place.path()), Err(StateError::Mode { mode: 0o770, .. })));
        chmod(place.path(), 0o700);
    }

    #[test]
    fn a_directory_is_no_secret() {
        let place = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(place.path()).unwrap();
        fs::create_dir(state.path("key")).unwrap();
        assert!(matches!(state.read_secret("key"), Err(StateError::Kind { .. })));
    }
}
