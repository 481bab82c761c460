//! When the copy of the view is written: a while after a change, however many follow, and never on this thread; and when
//! what was read of it counts as the whole mesh.

use std::{future::Future, pin::pin, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::{kept::KeptView, store::Store};

/// A copy is at most this much older than the view, and is written no more often.
const BEHIND: Duration = Duration::from_secs(2);

/// The copy, and when it must next be written.
pub(super) struct Copying {
    kept: Option<KeptView>,
    due: Option<Instant>,
    saving: Option<JoinHandle<()>>,
    /// When the live mesh has had its chance; `None` if no copy waits for it.
    head_start: Option<Instant>,
}

impl Copying {
    pub(super) fn new(kept: Option<KeptView>) -> Self {
        Self { kept, due: None, saving: None, head_start: None }
    }

    /// Fills the store from the copy, if there is a good one.
    pub(super) fn load(&mut self, store: &mut Store) {
        let Some(kept) = &self.kept else { return };
        match kept.load(store) {
            Ok(true) => {
                tracing::info!(
                    workloads = store.view().counts().workloads,
                    "a view was kept; the live one has a moment"
                );
                self.head_start = Some(Instant::now() + kept.head_start());
            }
            Ok(false) => {}
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "the kept view is of no use");
            }
        }
    }

    /// Completes when the live mesh has had its chance. Then [`Self::believe`].
    pub(super) async fn head_start_over(&self) {
        wait_for(self.head_start).await;
    }

    /// The control plane does not answer: what was kept is the best there is.
    pub(super) fn believe(&mut self, store: &mut Store) {
        self.head_start = None;
        if !store.view().is_complete() {
            tracing::warn!("the control plane has not answered yet; serving from the kept view");
            store.believe();
        }
    }

    /// Does something else, through which the live mesh's head start may pass.
    pub(super) async fn meanwhile<T>(&mut self, store: &mut Store, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = self.head_start_over() => self.believe(store),
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
        wait_for(self.due).await;
    }

    /// Writes the copy of a complete view; part of one would let the unknown pass. While the last one is still being
    /// written it only becomes due again: an older copy must not replace a newer one.
    pub(super) fn save(&mut self, store: &Store) {
        self.due = None;
        let Some(kept) = self.kept.clone().filter(|_| store.view().is_complete()) else { return };
        if self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            return self.changed();
        }
        let snapshot = store.snapshot();
        self.saving = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = kept.save(&snapshot) {
                tracing::warn!(%error, "the view could not be kept on disk");
            }
        }));
    }
}

async fn wait_for(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::testing::workload;
    use crate::{
        store::{Delta, Resource},
        wire::ResourceType,
    };

    fn add(store: &mut Store, name: &str) {
        for kind in ResourceType::ALL {
            let pod = Resource::Workload(workload("a", name).address("10.0.0.1").build());
            let changed = vec![(pod, "1".into())];
            let changed = if kind == ResourceType::Address { changed } else { Vec::new() };
            store.apply(Delta { kind, changed, removed: Vec::new(), complete: true });
        }
    }

    #[test]
    fn a_copy_that_is_slow_to_write_is_waited_for_and_the_newest_view_is_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let kept = KeptView::new(directory.path().join("view"));
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            // The only thread that writes is busy, as with a disk that is slow.
            let (release, busy) = mpsc::channel::<()>();
            let disk = tokio::task::spawn_blocking(move || busy.recv().unwrap_err());
            let (mut store, mut copying) = (Store::new(), Copying::new(Some(kept.clone())));
            add(&mut store, "one");
            copying.save(&store);
            add(&mut store, "two");
            copying.save(&store);
            assert!(copying.due.is_some(), "a second write began beside the first");
            drop(release);
            disk.await.unwrap();
            copying.saving.take().unwrap().await.unwrap();
            copying.save(&store);
            assert!(copying.due.is_none());
            copying.saving.take().unwrap().await.unwrap();
            let mut copy = Store::new();
            assert!(kept.load(&mut copy).unwrap());
            assert_eq!(copy.view().counts(), store.view().counts());
        });
    }
}
