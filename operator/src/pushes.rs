//! How long it takes until all subscribers have what was published, and how many there are.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{self, Instant},
};
use underpass_discovery::server::Publisher;
use underpass_runtime::{Shutdown, metrics::catalogue};

/// Who takes longer is not waited for.
const LONGEST: Duration = Duration::from_secs(60);
/// How often subscribers are counted while nothing is published.
const PERIOD: Duration = Duration::from_secs(5);

/// What was published last, and when.
#[derive(Clone, Copy, Debug)]
pub struct Push {
    /// Its version.
    pub version: u64,
    /// When.
    pub at: Instant,
}

impl Default for Push {
    fn default() -> Self {
        Self { version: 0, at: Instant::now() }
    }
}

/// Measures one push after the other, until asked to stop.
pub async fn measure(publisher: Publisher, mut pushes: watch::Receiver<Push>, shutdown: Shutdown) {
    loop {
        catalogue::OPERATOR_SUBSCRIBERS.with([]).set(publisher.subscribers().len() as f64);
        let changed = tokio::select! {
            () = shutdown.requested() => return,
            () = time::sleep(PERIOD) => continue,
            changed = pushes.changed() => changed,
        };
        if changed.is_err() {
            return shutdown.requested().await;
        }
        let push = *pushes.borrow_and_update();
        tokio::select! {
            () = shutdown.requested() => return,
            _behind = publisher.wait_acked(push.version, LONGEST) => {}
        }
        catalogue::OPERATOR_PUSH.with([]).record(push.at.elapsed());
    }
}
