//! The plugin on this node: found a place for, chained, kept there, and taken away again.
//!
//! [`guard`] keeps it there; [`locate`] finds the container runtime's directories, [`plan`] decides what to change in
//! them, [`document`] how one file is changed; [`host`] and [`apply`] touch the node.

pub mod apply;
pub mod document;
pub mod guard;
pub mod host;
pub mod locate;
pub mod plan;
#[cfg(test)]
pub(crate) mod testing;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use apply::{ApplyError, Directories};
use locate::LocateError;

/// Why the plugin is not as it should be on this node.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Its place is not known.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// It cannot be put there.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl InstallError {
    /// A stable label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Apply(error) => error.reason(),
            Self::Locate(error) => error.reason(),
        }
    }
}

/// Where to install, as settings say; what they do not say is found out.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Whose view of the file system the directories are of; unset: the container runtime's.
    pub root: Option<PathBuf>,
    /// Where network configurations are.
    pub configurations: Option<PathBuf>,
    /// Where plugins are looked for.
    pub binaries: Option<PathBuf>,
}

impl Place {
    /// The directories, now: the runtime may have been replaced since the last look.
    ///
    /// # Errors
    /// [`LocateError`], if the runtime must be asked and does not say.
    pub fn directories(&self) -> Result<Directories, LocateError> {
        if let (Some(configurations), Some(binaries)) = (&self.configurations, &self.binaries) {
            let root = self.root.clone().unwrap_or_else(|| host::root(INIT));
            return Ok(Directories { root, configurations: configurations.clone(), binaries: vec![binaries.clone()] });
        }
        let found = locate::locate(&host::processes(), &host::Node)?;
        Ok(Directories {
            root: self.root.clone().unwrap_or_else(|| host::root(found.process)),
            configurations: self.configurations.clone().unwrap_or(found.configurations),
            binaries: self.binaries.clone().map_or(found.binaries, |binaries| vec![binaries]),
        })
    }
}

/// The node's first process, which the agent sees as such.
const INIT: u32 = 1;

/// Our entry in the chain: what differs from the plugin's own defaults would only be noise.
#[must_use]
pub fn entry(agent_socket: &Path, enrolled_namespaces: &Path) -> Value {
    let settings = [("agentSocket", agent_socket), ("enrolledNamespaces", enrolled_namespaces)];
    let settings = settings.map(|(key, path)| (key.to_owned(), path.to_string_lossy().into()));
    let kind = ("type".to_owned(), document::PLUGIN.into());
    Value::Object([kind].into_iter().chain(settings).collect::<Map<_, _>>())
}

/// Takes the plugin out of every chain. The program stays: until the runtime has noticed it may still be called.
///
/// # Errors
/// [`InstallError`]; what is done stays done, and can be repeated.
pub fn unchain(directories: &Directories) -> Result<(), InstallError> {
    let plan = directories.unchain()?;
    for skipped in &plan.skipped {
        tracing::warn!(file = skipped.file, error = %skipped.error, "a file that is no network configuration is left alone");
    }
    Ok(())
}

/// Removes the plugin's program, wherever it may have been put.
///
/// # Errors
/// [`InstallError`].
pub fn remove_program(directories: &Directories) -> Result<(), InstallError> {
    for binaries in &directories.binaries {
        let one = Directories { binaries: vec![binaries.clone()], ..directories.clone() };
        match one.binary() {
            Ok(binary) => apply::remove(&binary)?,
            Err(ApplyError::NoBinaries(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
