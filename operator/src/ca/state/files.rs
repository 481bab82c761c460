//! The state in a directory: secrets that only their owner may read, and what everybody may know.
//!
//! Files change one after the other, in an order in which every interruption leaves a state that is understood. One process
//! at a time is meant to write; another one's changes are noticed, unless both write at the same moment.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{Held, State, StateError, StateStore, Storing};

/// File of all trusted roots.
pub const ROOTS_FILE: &str = "root.pem";
/// File of our root's key.
pub const KEY_FILE: &str = "root-key.pem";
/// File of the key of the root that will replace ours.
pub const NEXT_KEY_FILE: &str = "next-root-key.pem";
/// File of what was revoked.
pub const REVOKED_FILE: &str = "revoked.json";

/// A directory of ours.
#[derive(Debug, Clone)]
pub struct FileState(PathBuf);

/// Why the directory or a file in it is not used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
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

impl FileState {
    /// Uses a directory, which is made (0700) if it does not exist.
    ///
    /// # Errors
    /// [`FileError`], also when others may write to the directory.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let failed = |what| move |source| FileError::Io { what, path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make"))?;
        let metadata = fs::metadata(path).map_err(failed("read"))?;
        if metadata.mode() & 0o022 != 0 {
            let (path, mode) = (path.to_owned(), metadata.mode() & 0o7777);
            return Err(FileError::Mode { path, mode, wanted: "0700" });
        }
        Ok(Self(path.to_owned()))
    }

    /// Where a file is.
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Reads a secret, if there is one.
    ///
    /// # Errors
    /// [`FileError::Mode`] when others may read it.
    fn read_secret(&self, name: &str) -> Result<Option<String>, FileError> {
        self.read(name, |path, mode| {
            let open = mode & 0o077 != 0;
            if open { Err(FileError::Mode { path: path.to_owned(), mode, wanted: "0600" }) } else { Ok(()) }
        })
    }

    /// Reads what is no secret, if it is there.
    ///
    /// # Errors
    /// [`FileError::Mode`] when others may write it.
    fn read_public(&self, name: &str) -> Result<Option<String>, FileError> {
        self.read(name, |path, mode| {
            let open = mode & 0o022 != 0;
            if open { Err(FileError::Mode { path: path.to_owned(), mode, wanted: "0644" }) } else { Ok(()) }
        })
    }

    fn read(
        &self,
        name: &str,
        check: impl FnOnce(&Path, u32) -> Result<(), FileError>,
    ) -> Result<Option<String>, FileError> {
        let path = self.path(name);
        let failed = |source| FileError::Io { what: "read", path: path.clone(), source };
        // The mode is asked of the open file, so that it is the mode of what is read.
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(FileError::Kind { path, wanted: "regular file" });
        }
        check(&path, metadata.mode() & 0o7777)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        Ok(Some(text))
    }

    /// Writes a secret whole, unless there is one of the name; says whether it did.
    ///
    /// # Errors
    /// [`FileError::Io`].
    fn create_secret(&self, name: &str, text: &str) -> Result<bool, FileError> {
        let (path, temporary) = (self.path(name), self.write_temporary(name, text, 0o600)?);
        // Unlike a rename, a link does not replace what another process made meanwhile.
        let linked = fs::hard_link(&temporary, &path);
        fs::remove_file(&temporary).map_err(|source| FileError::Io { what: "remove", path: temporary, source })?;
        match linked {
            Ok(()) => self.sync().map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(FileError::Io { what: "make", path, source }),
        }
    }

    /// Writes what everybody may know, replacing the file of the name at once.
    ///
    /// # Errors
    /// [`FileError::Io`].
    fn write_public(&self, name: &str, text: &str) -> Result<(), FileError> {
        let (path, temporary) = (self.path(name), self.write_temporary(name, text, 0o644)?);
        fs::rename(&temporary, &path).map_err(|source| FileError::Io { what: "replace", path, source })?;
        self.sync()
    }

    fn load(&self) -> Result<State, FileError> {
        Ok(State {
            roots: self.read_public(ROOTS_FILE)?,
            key: self.read_secret(KEY_FILE)?,
            next_key: self.read_secret(NEXT_KEY_FILE)?,
            revoked: self.read_public(REVOKED_FILE)?,
        })
    }

    /// Keys before the roots that need them; an old key goes after its root.
    fn save(&self, before: &State, after: &State) -> Result<bool, FileError> {
        if self.load()? != *before {
            return Ok(false);
        }
        for (file, before, after) in
            [(KEY_FILE, &before.key, &after.key), (NEXT_KEY_FILE, &before.next_key, &after.next_key)]
        {
            if let (None, Some(key)) = (before, after)
                && !self.create_secret(file, key)?
            {
                return Ok(false);
            }
        }
        for (file, before, after) in
            [(ROOTS_FILE, &before.roots, &after.roots), (REVOKED_FILE, &before.revoked, &after.revoked)]
        {
            if let Some(text) = after.as_ref().filter(|_| before != after) {
                self.write_public(file, text)?;
            }
        }
        if before.next_key.is_some() && after.next_key.is_none() {
            self.rename(NEXT_KEY_FILE, KEY_FILE)?;
        }
        Ok(true)
    }

    fn failed(&self, source: FileError) -> StateError {
        StateError { place: format!("state directory {}", self.0.display()), source: source.into() }
    }

    /// Gives a file another's name and place.
    ///
    /// # Errors
    /// [`FileError::Io`].
    fn rename(&self, from: &str, to: &str) -> Result<(), FileError> {
        let path = self.path(from);
        fs::rename(&path, self.path(to)).map_err(|source| FileError::Io { what: "rename", path, source })?;
        self.sync()
    }

    fn write_temporary(&self, name: &str, text: &str, mode: u32) -> Result<PathBuf, FileError> {
        let path = self.path(&format!(".{name}.{}", std::process::id()));
        let failed = |source| FileError::Io { what: "write", path: path.clone(), source };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(path)
    }

    /// A new name is durable only once its directory is.
    fn sync(&self) -> Result<(), FileError> {
        let synced = File::open(&self.0).and_then(|directory| directory.sync_all());
        synced.map_err(|source| FileError::Io { what: "sync", path: self.0.clone(), source })
    }
}

impl StateStore for FileState {
    fn load(&self) -> Storing<'_, Held> {
        // Small files, and nothing else waits for them.
        let loaded = self.load().map_err(|error| self.failed(error));
        Box::pin(async move { loaded.map(|state| Held { state, version: String::new() }) })
    }

    fn save<'a>(&'a self, before: &'a Held, after: &'a State) -> Storing<'a, bool> {
        let saved = self.save(&before.state, after).map_err(|error| self.failed(error));
        Box::pin(async move { saved })
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
        let state = FileState::open(&place.path().join("deep/down")).unwrap();
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
        let state = FileState::open(place.path()).unwrap();
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
        assert!(matches!(FileState::open(place.path()), Err(FileError::Mode { mode: 0o770, .. })));
        chmod(place.path(), 0o700);
    }

    #[test]
    fn a_directory_is_no_secret() {
        let place = tempfile::tempdir().unwrap();
        let state = FileState::open(place.path()).unwrap();
        fs::create_dir(state.path("key")).unwrap();
        assert!(matches!(state.read_secret("key"), Err(FileError::Kind { .. })));
    }
}
