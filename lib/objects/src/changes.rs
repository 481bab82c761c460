//! A signal that something in some directories may have changed.
//!
//! The kernel's notifications make it quick, a slow poll makes it certain: links into other directories, network file
//! systems, an exhausted inotify limit and a directory that was itself replaced give no (further) notification.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf, sync::Arc, time::Duration};

use notify::{RecursiveMode, Watcher as _};
use tokio::{sync::Notify, time};

/// Nothing further for so long means that a burst of changes is over.
const QUIET: Duration = Duration::from_millis(20);
/// A burst that does not end is looked at all the same.
const BURST: Duration = Duration::from_millis(250);
/// How often to look without any notification.
const POLL: Duration = Duration::from_secs(2);

/// The signal of a set of directories.
#[derive(Debug)]
pub struct Changes {
    directories: Vec<PathBuf>,
    notified: Arc<Notify>,
    watcher: Option<notify::RecommendedWatcher>,
    /// Which directories (device and inode) the watcher looks at; it does not notice that a path leads elsewhere.
    armed: Vec<Option<(u64, u64)>>,
}

impl Changes {
    /// Begins to watch.
    #[must_use]
    pub fn of(directories: Vec<PathBuf>) -> Self {
        let notified = Arc::new(Notify::new());
        let mut changes = Self { directories, notified, watcher: None, armed: Vec::new() };
        changes.arm();
        changes
    }

    /// Completes when it is time to look: shortly after a change, and now and then without one. What happens between
    /// two calls is not lost.
    pub async fn next(&mut self) {
        match time::timeout(POLL, self.notified.notified()).await {
            Ok(()) => self.settle().await,
            Err(_elapsed) if self.armed != self.present() => self.arm(),
            Err(_elapsed) => {}
        }
    }

    fn present(&self) -> Vec<Option<(u64, u64)>> {
        let identity = |path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        self.directories.iter().map(identity).collect()
    }

    async fn settle(&self) {
        let burst = async { while time::timeout(QUIET, self.notified.notified()).await.is_ok() {} };
        let _over = time::timeout(BURST, burst).await;
    }

    fn arm(&mut self) {
        self.armed = self.present();
        let notified = Arc::clone(&self.notified);
        let on_event = move |event: notify::Result<notify::Event>| {
            // Reading a file is an event too; waking for it would make each look cause the next.
            let matters = event.map_or(true, |event| !event.kind.is_access() || is_written(&event));
            if matters {
                notified.notify_one();
            }
        };
        self.watcher = notify::recommended_watcher(on_event)
            .inspect_err(|error| tracing::debug!(%error, "no notifications of changed files, polling only"))
            .ok();
        let Some(watcher) = &mut self.watcher else { return };
        for directory in &self.directories {
            if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
                tracing::debug!(%error, directory = %directory.display(), "directory cannot be watched, polling only");
            }
        }
    }
}

fn is_written(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    matches!(event.kind, EventKind::Access(AccessKind::Close(AccessMode::Write)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn notices_a_file_that_is_renamed_into_place() {
        let directory = tempfile::tempdir().unwrap();
        let mut changes = Changes::of(vec![directory.path().into()]);
        crate::files::write(&directory.path().join("a.yaml"), b"1", 0o644).unwrap();
        time::timeout(Duration::from_secs(10), changes.next()).await.unwrap();
    }

    #[tokio::test]
    async fn looks_at_a_directory_that_does_not_exist_now_and_then() {
        let directory = tempfile::tempdir().unwrap();
        let mut changes = Changes::of(vec![directory.path().join("later")]);
        time::timeout(POLL * 3, changes.next()).await.unwrap();
    }
}
