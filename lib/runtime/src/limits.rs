//! Limits of the process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets the process open as many descriptors as it may: a shell, and older containers, start programs with room for 1,024.
/// Logs what it got, and says it: without an answer what every process may have.
pub fn raise_descriptors() -> u64 {
    /// The kernel's own default.
    const USUAL: u64 = 1024;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_soft, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(hard)
    });
    match raised {
        Ok(descriptors) => {
            tracing::info!(descriptors, "the limit of open descriptors");
            descriptors
        }
        Err(error) => {
            tracing::warn!(%error, "the limit of open descriptors could not be raised");
            USUAL
        }
    }
}
