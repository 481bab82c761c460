//! Takes the mesh off a node, whatever state it is in. Every step can be repeated; the configuration's entry goes first, so
//! that pods start without the mesh from then on, and the plugin's program last.

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use underpass_runtime::Chain;

use crate::{
    config::UninstallOptions,
    find::Netns,
    install::{self, InstallError, Place, host},
    program::Programmer,
};

/// Why a node is not clean.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The plugin is still there.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// Rules are still in pods.
    #[error("the rules in {0} network namespaces could not be taken away")]
    Rules(usize),
    /// Files are still there.
    #[error("cannot remove {path}")]
    Files {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Does it all; rules are looked for in these namespaces. Blocks.
///
/// # Errors
/// [`UninstallError`] says what is left; the steps before it are done.
pub fn run(options: &UninstallOptions, namespaces: impl IntoIterator<Item = Netns>) -> Result<(), UninstallError> {
    let directories = Place::from(&options.place).directories().map_err(InstallError::from)?;
    install::unchain(&directories)?;
    tracing::info!(configurations = %directories.configurations.display(), "the plugin is in no chain");
    let (mut cleaned, mut failed) = (0, 0);
    let programmer = Programmer::new(&options.nft);
    for netns in namespaces {
        match programmer.clean(netns.as_fd()) {
            Ok(true) => cleaned += 1,
            Ok(false) => {}
            // A namespace that ends meanwhile is clean.
            Err(_) if netns.is_unnamed() => {}
            Err(error) => {
                failed += 1;
                tracing::error!(path = %netns.path.display(), error = %Chain(&error), "rules are left in a pod");
            }
        }
    }
    tracing::info!(cleaned, "no pod is captured");
    for directory in [&options.run, &options.state] {
        empty(directory).map_err(|source| UninstallError::Files { path: directory.clone(), source })?;
        // What is mounted here can only be removed where it is not.
        if let Ok(on_node) = host::within(&directories.root, directory) {
            let _gone = fs::remove_dir(on_node);
        }
    }
    if failed > 0 {
        return Err(UninstallError::Rules(failed));
    }
    install::remove_program(&directories)?;
    tracing::info!("the node is clean");
    Ok(())
}

/// Removes everything in a directory, and the directory itself unless it is mounted here.
fn empty(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    match fs::remove_dir(directory) {
        // As the kernel calls it where something is mounted, and where what is above cannot be written.
        Err(error) if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::ReadOnlyFilesystem) => Ok(()),
        removed => removed,
    }
}
