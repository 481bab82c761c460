//! Keeps the plugin where it belongs: looks whenever something in its directories changes, and now and then.

use std::{collections::VecDeque, path::PathBuf, time::Duration};

use serde_json::Value;
use tokio::time::{Instant, sleep};
use underpass_objects::changes::Changes;
use underpass_runtime::{Chain, Shutdown, admin::Pending};

use super::{
    InstallError, Place,
    apply::{self, Directories},
};

/// What is kept where.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Where.
    pub place: Place,
    /// The plugin's program.
    pub program: PathBuf,
    /// Its entry in the chain.
    pub entry: Value,
}

/// Where was looked, and what came of it.
#[derive(Debug)]
struct Look {
    directories: Option<Directories>,
    seen: Result<Seen, InstallError>,
}

/// What a look found, after it put it right.
#[derive(Debug)]
struct Seen {
    /// The configuration in use, as the node names it.
    primary: PathBuf,
    /// Whether anything was not as it should be.
    mended: bool,
    skipped: Vec<String>,
}

/// Two that write the same file in turn shall not do it as fast as they can.
const BETWEEN: Duration = Duration::from_millis(500);
/// So many restorations within [`OFTEN_IN`] are told as what they are.
const OFTEN: usize = 4;
const OFTEN_IN: Duration = Duration::from_secs(60);
/// How long it is taken for granted which directories the runtime uses, as long as all is well.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Where nothing can be watched.
const AGAIN: Duration = Duration::from_secs(1);

impl Guard {
    /// Runs until asked to stop. The plugin stays then: the next agent takes over, and pods of the mesh wait for it.
    pub async fn keep(self, pending: Pending, shutdown: Shutdown) {
        let mut pending = Some(pending);
        let mut located: Option<(Instant, Directories)> = None;
        let mut changes: Option<(Vec<PathBuf>, Changes)> = None;
        let mut told = Told::default();
        loop {
            // Asking the runtime means to look at every process.
            let known = located.take().filter(|(until, _)| Instant::now() < *until);
            let until = known.as_ref().map_or_else(|| Instant::now() + ASK_AGAIN, |(until, _)| *until);
            let guard = self.clone();
            let looked = tokio::task::spawn_blocking(move || guard.look(known.map(|(_, directories)| directories)));
            match looked.await {
                Ok(Look { directories, seen: Ok(seen) }) => {
                    told.seen(&seen);
                    if let Some(pending) = pending.take() {
                        pending.done();
                    }
                    located = directories.map(|directories| (until, directories));
                }
                Ok(Look { seen: Err(error), directories }) => {
                    told.failed(&error);
                    // For what to watch; the next look asks anew.
                    located = directories.map(|directories| (Instant::now(), directories));
                }
                Err(error) => tracing::error!(%error, "looking after the plugin failed"),
            }
            let watched = located.as_ref().map(|(_, directories)| watched(directories));
            if let Some(watched) = watched
                && changes.as_ref().is_none_or(|(former, _)| *former != watched)
            {
                changes = Some((watched.clone(), Changes::of(watched)));
                // Something may have changed before they were watched.
                continue;
            }
            let pause = told.pause();
            let next = async {
                sleep(pause).await;
                match &mut changes {
                    Some((_, changes)) => changes.next().await,
                    None => sleep(AGAIN).await,
                }
            };
            tokio::select! {
                () = shutdown.requested() => return,
                () = next => {}
            }
        }
    }

    fn look(&self, known: Option<Directories>) -> Look {
        let directories = match known.map_or_else(|| self.place.directories(), Ok) {
            Ok(directories) => directories,
            Err(error) => return Look { directories: None, seen: Err(error.into()) },
        };
        let seen = self.mend(&directories);
        Look { directories: Some(directories), seen }
    }

    fn mend(&self, directories: &Directories) -> Result<Seen, InstallError> {
        // The program first: an entry without one would stop every pod.
        let placed = apply::place(&self.program, &directories.binary()?)?;
        let plan = directories.chain(&self.entry)?;
        Ok(Seen {
            primary: directories.configurations.join(plan.primary.unwrap_or_default()),
            mended: placed || !plan.edits.is_empty(),
            skipped: plan.skipped.iter().map(ToString::to_string).collect(),
        })
    }
}

/// Where what matters changes, as far as it exists.
fn watched(directories: &Directories) -> Vec<PathBuf> {
    let binaries = directories.binary().ok().and_then(|binary| Some(binary.parent()?.to_owned()));
    directories.configurations().into_iter().chain(binaries).collect()
}

/// What users have been told, so that they are told what is new.
#[derive(Debug, Default)]
struct Told {
    installed: bool,
    trouble: Option<String>,
    skipped: Vec<String>,
    restored: VecDeque<Instant>,
}

impl Told {
    fn seen(&mut self, seen: &Seen) {
        metrics::gauge!("underpass_agent_plugin_installed").set(1.0);
        for skipped in seen.skipped.iter().filter(|skipped| !self.skipped.contains(skipped)) {
            tracing::warn!(file = skipped, "a file that is no network configuration is left alone");
        }
        self.skipped.clone_from(&seen.skipped);
        let path = seen.primary.display();
        if !self.installed || self.trouble.is_some() {
            tracing::info!(%path, "the plugin is chained");
        } else if seen.mended {
            metrics::counter!("underpass_agent_plugin_restored_total").increment(1);
            self.restored.push_back(Instant::now());
            if self.often() == OFTEN {
                tracing::error!(%path, "another program takes the plugin out of the chain again and again; if that is Cilium, set cni.exclusive to false");
            } else {
                tracing::warn!(%path, "the plugin was not as it should be, and was put right");
            }
        }
        self.installed = true;
        self.trouble = None;
    }

    fn failed(&mut self, error: &InstallError) {
        metrics::gauge!("underpass_agent_plugin_installed").set(0.0);
        let trouble = Chain(error).to_string();
        if self.trouble.as_ref() != Some(&trouble) {
            tracing::error!(reason = error.reason(), why = trouble, "the plugin cannot be installed");
        }
        self.trouble = Some(trouble);
    }

    /// How many restorations there were lately.
    fn often(&mut self) -> usize {
        let now = Instant::now();
        while self.restored.front().is_some_and(|at| now.duration_since(*at) > OFTEN_IN) {
            self.restored.pop_front();
        }
        self.restored.len()
    }

    fn pause(&mut self) -> Duration {
        let now = Instant::now();
        let last = self.restored.back().map(|at| now.duration_since(*at));
        last.map_or(Duration::ZERO, |ago| BETWEEN.saturating_sub(ago))
    }
}

#[cfg(test)]
mod tests;
