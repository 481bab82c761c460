//! What an authority remembers from one process to the next, and where: files, or a Secret that replicas share.
//!
//! A store only loads and saves. What the state should be is decided by [`super::roots`] and [`super::revoked`], from
//! the state and the time alone.

use std::{future::Future, pin::Pin, sync::Arc};

mod files;

pub use files::{FileError, FileState, KEY_FILE, NEXT_KEY_FILE, REVOKED_FILE, ROOTS_FILE};

/// All of it, as text. Says nothing of itself: two of the fields are keys.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct State {
    /// All trusted roots in PEM, ours and perhaps others' beside them.
    pub roots: Option<String>,
    /// The key of our root, PKCS#8 in PEM.
    pub key: Option<String>,
    /// The key of the root that will replace ours.
    pub next_key: Option<String>,
    /// What was revoked, see [`super::revoked`].
    pub revoked: Option<String>,
}

/// The state as it was loaded, and how the store will know whether it is still so.
#[derive(Clone, Default)]
pub struct Held {
    /// The state.
    pub state: State,
    /// The store's own mark of it.
    pub version: String,
}

/// Why a store has no state to give, or does not take one.
#[derive(Debug, thiserror::Error)]
#[error("{place}")]
pub struct StateError {
    /// Where the state should be.
    pub place: String,
    /// What is wrong.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// What a store does takes a while.
pub type Storing<'a, T> = Pin<Box<dyn Future<Output = Result<T, StateError>> + Send + 'a>>;

/// Where an authority's state is. Two authorities may share a store: none overwrites what it has not seen.
pub trait StateStore: Send + Sync {
    /// The state as it is now.
    fn load(&self) -> Storing<'_, Held>;

    /// Replaces what was loaded. False, and nothing happened that matters, if it is another by now.
    fn save<'a>(&'a self, before: &'a Held, after: &'a State) -> Storing<'a, bool>;
}

/// A store behind a pointer.
pub type SharedStore = Arc<dyn StateStore>;
