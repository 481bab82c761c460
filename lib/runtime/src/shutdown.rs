//! One wish to stop, seen by every part.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A wish to stop; clones share it. A child also stops with its parent, never the other way round.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// Nobody wants to stop yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops with the parent, or on its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// Asks every holder to stop.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// Completes when somebody asked.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Asks on SIGTERM or SIGINT; the second signal ends the process at once with status 130.
    ///
    /// # Errors
    /// If the kernel refuses the handlers.
    pub fn on_signals() -> std::io::Result<Self> {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = Self::new();
        let asked = shutdown.clone();
        crate::tasks::spawn("signals", async move {
            for first in [true, false] {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                if first {
                    tracing::info!("asked to stop");
                    asked.request();
                } else {
                    std::process::exit(130);
                }
            }
        });
        Ok(shutdown)
    }
}
