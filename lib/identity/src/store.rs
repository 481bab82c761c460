//! One certificate per identity, there before a connection needs it, renewed at half of its life, replaced without a
//! gap.
//!
//! [`CertificateStore::want`] says that an identity is needed; the [`StoreTask`] fetches, renews and forgets. Readers
//! take what is there without a lock. When an authority brings new roots, the credentials of *all* identities are
//! rebuilt: everybody trusts the union of the roots that came with the certificates that are held and valid now, so a
//! root leaves as soon as no such certificate came with it.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use underpass_model::Identity;

use crate::{authority::CertificateAuthority, revocation::Revocations, tls::Credentials};

mod kept;
mod ledger;
mod status;
mod task;

pub use kept::{KeptError, KeptFile};
pub use status::{CertificateState, CertificateStatus};
pub use task::StoreTask;

use ledger::Ledger;

/// How a store behaves.
#[derive(Clone)]
pub struct StoreOptions {
    /// How long certificates shall be valid (default 24 h, the field's habit); the authority may give less.
    pub ttl: Duration,
    /// How many fetches may run at a time (default 8).
    pub parallel: usize,
    /// How long a certificate is kept that nobody wants (default 5 min: longer than a pod takes to restart).
    pub forget_after: Duration,
    /// The longest that one fetch may take (default 15 s).
    pub fetch_deadline: Duration,
    /// The first delay after a failure (default 0.5 s); it doubles from there.
    pub retry_first: Duration,
    /// The longest delay after a failure (default 150 s).
    pub retry_most: Duration,
    /// The longest delay after a failure while somebody waits (default 5 s), for a pod must not fail to start because an
    /// outage that is over was long.
    pub retry_waiting: Duration,
    /// Where certificates and keys outlive the process, so that the next one serves at once (default: nowhere).
    pub kept: Option<KeptFile>,
    /// What is revoked (default: nothing). A certificate of ours that is gets replaced at once.
    pub revocations: Revocations,
    /// What time it is. Tests pass their own.
    pub clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(24 * 3600),
            parallel: 8,
            forget_after: Duration::from_secs(300),
            fetch_deadline: Duration::from_secs(15),
            retry_first: Duration::from_millis(500),
            retry_most: Duration::from_secs(150),
            retry_waiting: Duration::from_secs(5),
            kept: None,
            revocations: Revocations::new(),
            clock: Arc::new(SystemTime::now),
        }
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("ttl", &self.ttl)
            .field("parallel", &self.parallel)
            .field("forget_after", &self.forget_after)
            .finish_non_exhaustive()
    }
}

/// Why there are no credentials for an identity.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// None came in time.
    #[error("no certificate for {identity} within {waited:?}: {cause}")]
    Deadline {
        /// For whom.
        identity: Identity,
        /// How long somebody waited.
        waited: Duration,
        /// What the last try failed by, or that none has ended.
        cause: String,
    },
    /// The store's task has ended.
    #[error("no certificate for {identity}: the process is stopping")]
    Stopped {
        /// For whom.
        identity: Identity,
    },
}

impl StoreError {
    /// A stable label for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Deadline { .. } => "certificate_missing",
            Self::Stopped { .. } => "stopping",
        }
    }
}

/// The certificates of this process. Clones share them.
#[derive(Clone)]
pub struct CertificateStore {
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
}

struct Shared {
    options: StoreOptions,
    ledger: Mutex<Ledger>,
    published: ArcSwap<HashMap<Identity, Arc<Credentials>>>,
    wake: Notify,
}

/// Both clocks at one moment: one for delays, one for certificates.
#[derive(Clone, Copy)]
struct Moment {
    instant: Instant,
    wall: SystemTime,
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Moment {
        Moment { instant: Instant::now(), wall: (self.options.clock)() }
    }
}

impl CertificateStore {
    /// Makes a store and the task that fills it, which must be run. What the process before kept is there at once, and
    /// forgotten like anything else that nobody wants.
    pub fn new(authority: Arc<dyn CertificateAuthority>, options: StoreOptions) -> (Self, StoreTask) {
        let (sender, changes) = watch::channel(0);
        let mut ledger = Ledger::new(options.clone());
        let now = Moment { instant: Instant::now(), wall: (options.clock)() };
        for issued in options.kept.iter().flat_map(|kept| kept.read(now.wall)) {
            if let Err(error) = ledger.restore(issued, now) {
                tracing::warn!(%error, "a certificate that was kept is of no use");
            }
        }
        let published = ArcSwap::from_pointee(ledger.credentials());
        let shared = Arc::new(Shared { ledger: Mutex::new(ledger), options, published, wake: Notify::new() });
        (Self { shared: Arc::clone(&shared), changes }, StoreTask::new(shared, authority, sender))
    }

    /// Keeps a certificate for `identity` fresh until the returned value and all others of the same identity are
    /// dropped, and some minutes longer.
    pub fn want(&self, identity: &Identity) -> Want {
        self.register(identity, Patience::Can)
    }

    /// The credentials of an identity, if there are any that are valid now.
    #[must_use]
    pub fn credentials(&self, identity: &Identity) -> Option<Arc<Credentials>> {
        let credentials = Arc::clone(self.shared.published.load().get(identity)?);
        credentials.is_valid_at((self.shared.options.clock)()).then_some(credentials)
    }

    /// Waits for the credentials of an identity. The fetch goes before all that nobody waits for.
    ///
    /// # Errors
    /// [`StoreError`] after `deadline`, saying what the last try failed by.
    pub async fn wait(&self, identity: &Identity, deadline: Duration) -> Result<Arc<Credentials>, StoreError> {
        if let Some(credentials) = self.credentials(identity) {
            return Ok(credentials);
        }
        let mut changes = self.changes.clone();
        let _waiting = self.register(identity, Patience::Cannot);
        let arrived = async {
            loop {
                if let Some(credentials) = self.credentials(identity) {
                    return Ok(credentials);
                }
                if changes.changed().await.is_err() {
                    return Err(StoreError::Stopped { identity: identity.clone() });
                }
            }
        };
        tokio::time::timeout(deadline, arrived).await.unwrap_or_else(|_| {
            let cause = self.shared.ledger().cause(identity);
            Err(StoreError::Deadline { identity: identity.clone(), waited: deadline, cause })
        })
    }

    /// What is revoked, as far as the store was told.
    #[must_use]
    pub fn revocations(&self) -> &Revocations {
        &self.shared.options.revocations
    }

    /// A number that changes whenever any credentials do.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// What is held, for people: sorted by identity, without secrets.
    #[must_use]
    pub fn status(&self) -> Vec<CertificateStatus> {
        let now = self.shared.now();
        self.shared.ledger().status(now)
    }

    fn register(&self, identity: &Identity, patience: Patience) -> Want {
        self.shared.ledger().want(identity, patience);
        self.shared.wake.notify_one();
        Want { shared: Arc::clone(&self.shared), identity: identity.clone(), patience }
    }
}

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateStore").field("held", &self.shared.published.load().len()).finish_non_exhaustive()
    }
}

/// Whether somebody who wants a certificate can go on without it for now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    Can,
    Cannot,
}

/// Somebody's need of an identity's certificate; ends when dropped.
#[must_use = "the certificate is forgotten when this is dropped"]
pub struct Want {
    shared: Arc<Shared>,
    identity: Identity,
    patience: Patience,
}

impl Want {
    /// Whose certificate.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

impl Drop for Want {
    fn drop(&mut self) {
        let now = self.shared.now();
        self.shared.ledger().unwant(&self.identity, self.patience, now);
        // The task learns when to forget.
        self.shared.wake.notify_one();
    }
}

impl fmt::Debug for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Want").field(&self.identity).finish()
    }
}

#[cfg(test)]
mod tests;
