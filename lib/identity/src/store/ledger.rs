//! Who is wanted, what is held, what failed: and from that, which fetch is next. Decides only; the task acts.

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;
use underpass_model::Identity;
use underpass_runtime::Backoff;

use super::{CertificateStatus, Moment, Patience, StoreOptions, status};
use crate::{
    certificate::Issued,
    presented::Presented,
    tls::{Credentials, CredentialsError},
    trust::TrustBundle,
};

/// All entries. One writer at a time, never held across an await.
pub(super) struct Ledger {
    options: StoreOptions,
    entries: HashMap<Identity, Entry>,
    roots: Option<TrustBundle>,
    generation: u64,
}

/// What is known of one identity.
pub(super) struct Entry {
    /// How many want it, those included that wait.
    pub(super) wants: usize,
    /// How many cannot go on without it.
    waiters: usize,
    /// Since when nobody wants it.
    unwanted_since: Option<Instant>,
    /// A fetch is under way.
    pub(super) in_flight: bool,
    /// The newest certificate that passed all checks.
    pub(super) held: Option<Held>,
    /// The last try, if it failed.
    pub(super) failure: Option<Failure>,
    backoff: Backoff,
}

/// A certificate, and what was made of it.
pub(super) struct Held {
    pub(super) issued: Issued,
    pub(super) credentials: Arc<Credentials>,
    pub(super) presented: Presented,
    pub(super) renew_at: SystemTime,
}

/// A failed try.
pub(super) struct Failure {
    at: Instant,
    delay: Duration,
    pub(super) message: String,
    pub(super) count: u32,
}

/// In which order fetches start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    /// Somebody waits.
    RealTime,
    /// Somebody will need it soon.
    WarmUp,
    /// There is one that is still valid.
    Background,
}

/// Nobody asks sooner than this for the same identity again, however short the certificates are.
const SHORTEST_LIFE: Duration = Duration::from_secs(1);

impl Ledger {
    pub(super) fn new(options: StoreOptions) -> Self {
        Self { options, entries: HashMap::new(), roots: None, generation: 0 }
    }

    pub(super) fn want(&mut self, identity: &Identity, patience: Patience) {
        let entry = match self.entries.entry(identity.clone()) {
            Slot::Occupied(slot) => slot.into_mut(),
            Slot::Vacant(slot) => slot.insert(Entry::new(&self.options)),
        };
        entry.wants += 1;
        entry.waiters += usize::from(patience == Patience::Cannot);
        entry.unwanted_since = None;
    }

    pub(super) fn unwant(&mut self, identity: &Identity, patience: Patience, now: Moment) {
        let Some(entry) = self.entries.get_mut(identity) else { return };
        entry.wants = entry.wants.saturating_sub(1);
        entry.waiters = entry.waiters.saturating_sub(usize::from(patience == Patience::Cannot));
        if entry.wants == 0 {
            entry.unwanted_since = Some(now.instant);
        }
    }

    /// Marks up to `room` fetches as under way, the most urgent first.
    pub(super) fn start(&mut self, room: usize, now: Moment) -> Vec<Identity> {
        let due = |entry: &Entry| entry.next_fetch(now, &self.options).filter(|(_, at)| *at <= now.instant);
        let mut ready: Vec<_> =
            self.entries.iter().filter_map(|(identity, entry)| Some((due(entry)?, identity.clone()))).collect();
        ready.sort_unstable();
        ready.truncate(room);
        let started: Vec<Identity> = ready.into_iter().map(|(_, identity)| identity).collect();
        for identity in &started {
            if let Some(entry) = self.entries.get_mut(identity) {
                entry.in_flight = true;
            }
        }
        started
    }

    /// When something is to be done next, if nothing happens before.
    pub(super) fn next_event(&self, now: Moment) -> Option<Instant> {
        let fetches = self.entries.values().filter_map(|entry| Some(entry.next_fetch(now, &self.options)?.1));
        let forgotten =
            self.entries.values().filter_map(|entry| Some(entry.unwanted_since? + self.options.forget_after));
        // The roots of a certificate leave with it.
        let expiries = self.held().map(|issued| issued.certificate.not_after());
        let expired = expiries.filter_map(|expiry| Some(now.instant + expiry.duration_since(now.wall).ok()?));
        fetches.chain(forgotten).chain(expired).min()
    }

    /// Takes a certificate of an earlier process that passed all checks. Nobody wants it yet.
    pub(super) fn restore(&mut self, issued: Issued, now: Moment) -> Result<(), CredentialsError> {
        let identity = issued.certificate.identity().clone();
        let entry = Entry { unwanted_since: Some(now.instant), ..Entry::new(&self.options) };
        self.entries.insert(identity.clone(), entry);
        self.succeed(&identity, issued, now)
    }

    /// All certificates that are held.
    pub(super) fn held(&self) -> impl Iterator<Item = &Issued> {
        self.entries.values().filter_map(|entry| entry.held.as_ref()).map(|held| &held.issued)
    }

    /// Takes a certificate that passed all checks. The credentials of others change with it when the roots do.
    pub(super) fn succeed(&mut self, identity: &Identity, issued: Issued, now: Moment) -> Result<(), CredentialsError> {
        // Forgotten while the fetch was under way.
        let Some(entry) = self.entries.get_mut(identity) else { return Ok(()) };
        entry.in_flight = false;
        let roots = self.roots.as_ref().map_or_else(|| issued.roots.clone(), |roots| roots.union(&issued.roots));
        self.generation += 1;
        let credentials = Arc::new(Credentials::new(&issued.certificate, &roots, self.generation)?);
        let renew_at = renew_at(issued.certificate.not_after(), now.wall);
        let presented = Presented::of(issued.certificate.chain());
        entry.held = Some(Held { issued, credentials, presented, renew_at });
        entry.failure = None;
        entry.backoff.reset();
        self.refresh_roots(now.wall);
        Ok(())
    }

    /// Takes note of a failed try; says how long until the next.
    pub(super) fn fail(&mut self, identity: &Identity, message: String, now: Moment) -> Option<Duration> {
        let entry = self.entries.get_mut(identity)?;
        entry.in_flight = false;
        let delay = entry.backoff.delay();
        let count = entry.failure.as_ref().map_or(0, |failure| failure.count).saturating_add(1);
        entry.failure = Some(Failure { at: now.instant, delay, message, count });
        Some(delay)
    }

    /// Whether an identity is without a certificate, or will be before long: most of its life is over.
    pub(super) fn is_urgent(&self, identity: &Identity, now: Moment) -> bool {
        let held = self.entries.get(identity).and_then(|entry| entry.held.as_ref());
        held.is_none_or(|held| {
            let certificate = &held.issued.certificate;
            let life = certificate.not_after().duration_since(certificate.not_before()).unwrap_or_default();
            certificate.not_after().duration_since(now.wall).unwrap_or_default() < life / 4
        })
    }

    /// Forgets what nobody wanted for long enough, and roots that no valid certificate came with; says whether there was
    /// any.
    pub(super) fn forget(&mut self, now: Moment) -> bool {
        let before = self.entries.len();
        let kept_for = self.options.forget_after;
        self.entries.retain(|_, entry| entry.unwanted_since.is_none_or(|since| now.instant < since + kept_for));
        let forgot = self.entries.len() != before;
        self.refresh_roots(now.wall) || forgot
    }

    /// Gives up what is revoked, so that it is fetched anew at once; says whether there was any.
    pub(super) fn revoke(&mut self, now: Moment) -> bool {
        let revocations = self.options.revocations.clone();
        let mut any = false;
        for (identity, entry) in &mut self.entries {
            let serial = entry.held.as_ref().and_then(|held| revocations.find(&held.presented));
            if let Some(serial) = serial {
                tracing::warn!(%identity, %serial, "our certificate was revoked; asking for another");
                entry.held = None;
                any = true;
            }
        }
        if any {
            self.refresh_roots(now.wall);
        }
        any
    }

    /// The credentials of all identities.
    pub(super) fn credentials(&self) -> HashMap<Identity, Arc<Credentials>> {
        let held = |entry: &Entry| entry.held.as_ref().map(|held| Arc::clone(&held.credentials));
        self.entries.iter().filter_map(|(identity, entry)| Some((identity.clone(), held(entry)?))).collect()
    }

    /// When the first certificate that somebody wants ends.
    pub(super) fn first_expiry(&self) -> Option<SystemTime> {
        let wanted = self.entries.values().filter(|entry| entry.wants > 0);
        wanted.filter_map(|entry| entry.held.as_ref()).map(|held| held.credentials.not_after).min()
    }

    /// The roots trusted now.
    #[cfg(test)]
    pub(super) fn roots(&self) -> Option<TrustBundle> {
        self.roots.clone()
    }

    /// Why there is no certificate, in words.
    pub(super) fn cause(&self, identity: &Identity) -> String {
        match self.entries.get(identity) {
            Some(Entry { failure: Some(failure), .. }) => failure.message.clone(),
            Some(Entry { in_flight: true, .. }) => "the authority has not answered yet".to_owned(),
            _ => "the fetch has not begun".to_owned(),
        }
    }

    pub(super) fn status(&self, now: Moment) -> Vec<CertificateStatus> {
        let mut all: Vec<_> = self
            .entries
            .iter()
            .map(|(identity, entry)| {
                let next =
                    entry.next_fetch(now, &self.options).map(|(_, at)| at.saturating_duration_since(now.instant));
                status::describe(identity, entry, next, now.wall)
            })
            .collect();
        all.sort_unstable_by(|one, other| one.identity.cmp(&other.identity));
        all
    }

    /// Trusts the union of all roots that came with certificates that are held and valid; when that changed, rebuilds
    /// everything and says so. A certificate that is wanted and cannot be renewed is held for long after its end: what it
    /// came with may have been replaced for a reason.
    fn refresh_roots(&mut self, now: SystemTime) -> bool {
        let valid = self.held().filter(|issued| now < issued.certificate.not_after());
        let union = valid.map(|issued| issued.roots.clone()).reduce(|all, roots| all.union(&roots));
        if union == self.roots {
            return false;
        }
        self.roots = union;
        let Some(roots) = &self.roots else { return true };
        tracing::info!(roots = roots.roots().len(), "the trusted roots changed");
        for held in self.entries.values_mut().filter_map(|entry| entry.held.as_mut()) {
            self.generation += 1;
            match Credentials::new(&held.issued.certificate, roots, self.generation) {
                Ok(credentials) => held.credentials = Arc::new(credentials),
                // It was built of the same parts before; keep what works.
                Err(error) => tracing::error!(%error, "cannot rebuild credentials with the new roots"),
            }
        }
        true
    }
}

impl Entry {
    fn new(options: &StoreOptions) -> Self {
        Self {
            wants: 0,
            waiters: 0,
            unwanted_since: None,
            in_flight: false,
            held: None,
            failure: None,
            backoff: Backoff::new(options.retry_first, options.retry_most),
        }
    }

    /// How urgent the next fetch is and when it may start, if one is wanted and none is under way.
    fn next_fetch(&self, now: Moment, options: &StoreOptions) -> Option<(Priority, Instant)> {
        if self.in_flight || self.wants == 0 {
            return None;
        }
        let valid = self.held.as_ref().filter(|held| held.credentials.is_valid_at(now.wall));
        let (priority, wanted_at) = match valid {
            Some(held) => {
                let left = held.renew_at.duration_since(now.wall).unwrap_or_default();
                (Priority::Background, now.instant + left)
            }
            None if self.waiters > 0 => (Priority::RealTime, now.instant),
            None => (Priority::WarmUp, now.instant),
        };
        let longest = if self.waiters > 0 { options.retry_waiting } else { options.retry_most };
        let retry_at = self.failure.as_ref().map(|failure| failure.at + failure.delay.min(longest));
        Some((priority, retry_at.map_or(wanted_at, |retry_at| retry_at.max(wanted_at))))
    }
}

/// Half of what is left of the certificate's life, up to a tenth less, so that certificates fetched together are not
/// renewed together.
fn renew_at(not_after: SystemTime, now: SystemTime) -> SystemTime {
    let left = not_after.duration_since(now).unwrap_or_default();
    now + left.mul_f64(0.45 + fastrand::f64() * 0.05).max(SHORTEST_LIFE)
}
