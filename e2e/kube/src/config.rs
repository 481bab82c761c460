//! Which cluster the scenarios run on.

use std::{env, path::PathBuf};

/// Where a cluster comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// One of `./x cluster`, by its name; it is brought up if it is not.
    Ours(String),
    /// The user's own, such as kind. It has the images already: see `deploy/images/`.
    Given(PathBuf),
}

/// What the environment says: `UNDERPASS_KUBECONFIG`, the file of a cluster that is there; or `UNDERPASS_TEST_CLUSTER`, the
/// name of one of ours.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "here is where the environment is read")]
pub fn source() -> Source {
    match env::var("UNDERPASS_KUBECONFIG") {
        Ok(file) => Source::Given(file.into()),
        Err(_) => Source::Ours(env::var("UNDERPASS_TEST_CLUSTER").unwrap_or_else(|_| "default".to_owned())),
    }
}
