//! Carries plans out in the node's directories.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde_json::Value;

use super::{
    document::PLUGIN,
    host,
    plan::{self, Edit, Listing, Plan, Refusal},
};

/// Two directories of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// Whose view of the file system the paths are of.
    pub root: PathBuf,
    /// Where network configurations are.
    pub configurations: PathBuf,
    /// Where plugins are looked for, first one first.
    pub binaries: Vec<PathBuf>,
}

/// Why the plugin is not as it should be on this node.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The configuration is not for us.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A file or directory.
    #[error("{path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
    /// No directory for plugins exists.
    #[error("none of the runtime's directories for plugins exists: {0:?}")]
    NoBinaries(Vec<PathBuf>),
    /// Others write the same files all the time.
    #[error("the configurations in {0} do not come to rest")]
    Restless(PathBuf),
}

impl ApplyError {
    /// A stable label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "files_failed",
            Self::NoBinaries(_) => "binaries_absent",
            Self::Refused(refusal) => refusal.reason(),
            Self::Restless(_) => "configuration_restless",
        }
    }
}

/// Others may write without renaming: what has been the same for so long is whole.
const REST: Duration = Duration::from_millis(20);
/// How often to wait for that.
const TRIES: usize = 10;

impl Directories {
    /// Where the configurations are for the agent.
    ///
    /// # Errors
    /// If links there have no end.
    pub fn configurations(&self) -> Result<PathBuf, ApplyError> {
        self.within(&self.configurations)
    }

    /// Where our plugin is, or belongs: the first directory that exists.
    ///
    /// # Errors
    /// If there is none.
    pub fn binary(&self) -> Result<PathBuf, ApplyError> {
        for directory in &self.binaries {
            let directory = self.within(directory)?;
            if directory.is_dir() {
                return Ok(directory.join(PLUGIN));
            }
        }
        Err(ApplyError::NoBinaries(self.binaries.clone()))
    }

    fn within(&self, path: &Path) -> Result<PathBuf, ApplyError> {
        host::within(&self.root, path).map_err(|source| ApplyError::Io { path: path.to_owned(), source })
    }

    /// Chains the plugin; the plan says what was done.
    ///
    /// # Errors
    /// [`ApplyError`].
    pub fn chain(&self, entry: &Value) -> Result<Plan, ApplyError> {
        self.change(|files| Ok(plan::install(files, entry)?))
    }

    /// Takes the plugin out of every chain.
    ///
    /// # Errors
    /// [`ApplyError`].
    pub fn unchain(&self) -> Result<Plan, ApplyError> {
        if !self.configurations()?.is_dir() {
            return Ok(Plan::default());
        }
        self.change(|files| Ok(plan::remove(files)))
    }

    fn change(&self, plan: impl Fn(&Listing) -> Result<Plan, ApplyError>) -> Result<Plan, ApplyError> {
        let mut files = self.listing()?;
        for _try in 0..TRIES {
            let now = plan(&files)?;
            if now.edits.is_empty() {
                return Ok(now);
            }
            thread::sleep(REST);
            let later = self.listing()?;
            if later == files {
                now.edits.iter().try_for_each(|edit| self.edit(edit))?;
                sync(&self.configurations()?)?;
                return Ok(now);
            }
            files = later;
        }
        Err(ApplyError::Restless(self.configurations.clone()))
    }

    /// The files that matter; a directory that does not exist holds none.
    fn listing(&self) -> Result<Listing, ApplyError> {
        let directory = self.configurations()?;
        let io = |source| ApplyError::Io { path: directory.clone(), source };
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listing::new()),
            entries => entries.map_err(io)?,
        };
        let mut files = Listing::new();
        for entry in entries {
            let Ok(name) = entry.map_err(io)?.file_name().into_string() else { continue };
            let path = self.within(&self.configurations.join(&name))?;
            if !plan::is_read(&name) || path.is_dir() {
                continue;
            }
            match fs::read_to_string(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                text => drop(files.insert(name, text.map_err(|error| error.to_string()))),
            }
        }
        Ok(files)
    }

    fn edit(&self, edit: &Edit) -> Result<(), ApplyError> {
        // The file itself may be a link; it stays one.
        let path = |name: &str| self.within(&self.configurations.join(name));
        match edit {
            Edit::Remove(name) => remove(&self.configurations()?.join(name)),
            Edit::Rename { from, to } => {
                let directory = self.configurations()?;
                let from = directory.join(from);
                fs::rename(&from, directory.join(to)).map_err(|source| ApplyError::Io { path: from, source })
            }
            Edit::Write { name, like, text } => put(&path(name)?, text.as_bytes(), &Access::of(&path(like)?)?),
        }
    }
}

/// Puts the plugin's program in its place, at once, also while the former one runs; true if it was not there.
///
/// # Errors
/// [`ApplyError::Io`].
pub fn place(source: &Path, target: &Path) -> Result<bool, ApplyError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| ApplyError::Io { path, source }
    };
    let program = fs::read(source).map_err(io(source))?;
    let is_runnable = |metadata: fs::Metadata| metadata.is_file() && metadata.mode() & 0o111 == 0o111;
    if fs::symlink_metadata(target).is_ok_and(is_runnable) && fs::read(target).is_ok_and(|there| there == program) {
        return Ok(false);
    }
    put(target, &program, &Access { mode: 0o755, owner: None })?;
    if let Some(directory) = target.parent() {
        sync(directory)?;
    }
    Ok(true)
}

/// Removes a file; one that is not there is fine.
///
/// # Errors
/// [`ApplyError::Io`].
pub fn remove(path: &Path) -> Result<(), ApplyError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ApplyError::Io { path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Who may do what with a file.
struct Access {
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl Access {
    fn of(path: &Path) -> Result<Self, ApplyError> {
        let metadata = fs::metadata(path).map_err(|source| ApplyError::Io { path: path.to_owned(), source })?;
        Ok(Self { mode: metadata.mode() & 0o7777, owner: Some((metadata.uid(), metadata.gid())) })
    }
}

/// A file that is on the disk, whole, before it has its name. Until then no runtime takes it for a configuration:
/// its name's ending is none of theirs.
fn put(path: &Path, contents: &[u8], access: &Access) -> Result<(), ApplyError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}{TEMPORARY}"));
    let written = (|| {
        fs::write(&temporary, contents)?;
        let file = fs::File::open(&temporary)?;
        if let Some((user, group)) = access.owner {
            fchown(&file, Some(user), Some(group))?;
        }
        file.set_permissions(fs::Permissions::from_mode(access.mode))?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(|source| {
        // The write's error is the one to tell.
        let _gone = fs::remove_file(&temporary);
        ApplyError::Io { path: path.to_owned(), source }
    })
}

const TEMPORARY: &str = ".underpass-new";

fn sync(directory: &Path) -> Result<(), ApplyError> {
    let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|source| ApplyError::Io { path: directory.to_owned(), source })
}
