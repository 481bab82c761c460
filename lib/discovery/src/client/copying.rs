//! When the copy of the view is written: a while after a change, however many follow, and never on this thread.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::{kept::KeptView, store::Store};

/// A copy is at most this much older than the view, and is written no more often.
const BEHIND: Duration = Duration::from_secs(2);

/// The copy, and when it must next be written.
pub(super) struct Copying {
    kept: Option<KeptView>,
    due: Option<Instant>,
}

impl Copying {
    pub(super) fn new(kept: Option<KeptView>) -> Self {
        Self { kept, due: None }
    }

    /// Fills the store from the copy, if there is a good one.
    pub(super) fn load(&self, store: &mut Store) {
        let Some(kept) = &self.kept else { return };
        match kept.load(store) {
            Ok(true) => tracing::info!(workloads = store.view().counts().workloads, "serving from the kept view"),
            Ok(false) => {}
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "the kept view is of no use");
            }
        }
    }

    /// The view changed.
    pub(super) fn changed(&mut self) {
        if self.kept.is_some() {
            self.due.get_or_insert_with(|| Instant::now() + BEHIND);
        }
    }

    /// Completes when the copy must be written.
    pub(super) async fn due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Writes the copy of a complete view; part of one would let the unknown pass.
    pub(super) fn save(&mut self, store: &Store) {
        self.due = None;
        let Some(kept) = self.kept.clone().filter(|_| store.view().is_complete()) else { return };
        let snapshot = store.snapshot();
        // The next copy is due seconds later, and replaces this one whole even if this one were late.
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = kept.save(&snapshot) {
                tracing::warn!(%error, "the view could not be kept on disk");
            }
        }));
    }
}
