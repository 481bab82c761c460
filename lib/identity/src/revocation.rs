//! Certificates that are no longer believed although their time is not over, and how everybody who relies on one learns
//! of it.
//!
//! Two sources: what the mesh's authority tells ([`Revocation`]), and the standard lists of other authorities
//! ([`RevocationLists`]). Nobody asks a third party during a handshake; what is not revoked here is not revoked.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

use arc_swap::ArcSwap;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use underpass_model::{Identity, Revocation, SerialNumber};

use crate::{
    presented::{Mark, Presented},
    tls::PeerError,
};

mod lists;

pub use lists::{ListError, RevocationLists};

/// Everything that is revoked, as far as this process was told. Clones share it.
#[derive(Clone, Default)]
pub struct Revocations(Arc<Shared>);

#[derive(Default)]
struct Shared {
    told: ArcSwap<Told>,
    lists: ArcSwap<RevocationLists>,
    changes: watch::Sender<()>,
}

/// What the mesh's authority revoked.
#[derive(Default)]
struct Told {
    serials: HashSet<SerialNumber>,
    /// Certificates of an identity that began before this are revoked.
    identities: HashMap<Identity, u64>,
}

impl Revocations {
    /// Nothing is revoked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces all that the mesh's authority told.
    pub fn set_told(&self, revocations: impl IntoIterator<Item = Revocation>) {
        let mut told = Told::default();
        for revocation in revocations {
            match revocation {
                Revocation::Identity { identity, before } => drop(told.identities.insert(identity, before)),
                Revocation::Serial(serial) => drop(told.serials.insert(serial)),
            }
        }
        self.0.told.store(Arc::new(told));
        self.0.changes.send_replace(());
    }

    /// Replaces the lists of other authorities.
    pub fn set_lists(&self, lists: RevocationLists) {
        self.0.lists.store(Arc::new(lists));
        self.0.changes.send_replace(());
    }

    /// Tells of every change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changes.subscribe()
    }

    /// Refuses a peer of whose certificates one is revoked, given what it showed in the handshake.
    ///
    /// # Errors
    /// [`PeerError::Revoked`].
    pub fn check(&self, certificates: &[CertificateDer<'_>]) -> Result<(), PeerError> {
        self.find(&Presented::of(certificates)).map_or(Ok(()), |serial| Err(PeerError::Revoked { serial }))
    }

    /// The first of these certificates that is revoked.
    #[must_use]
    pub fn find(&self, presented: &Presented) -> Option<SerialNumber> {
        let (told, lists) = (self.0.told.load(), self.0.lists.load());
        let is_revoked = |mark: &&Mark| {
            let is_old = |identity| told.identities.get(identity).is_some_and(|before| mark.begins < *before);
            told.serials.contains(&mark.serial)
                || mark.identities.iter().any(is_old)
                || lists.contains(&mark.issuer, &mark.serial)
        };
        presented.0.iter().find(is_revoked).map(|mark| mark.serial.clone())
    }

    /// Completes when one of these certificates is revoked, at once if one is.
    pub fn wait(&self, presented: Presented) -> impl Future<Output = SerialNumber> + Send + use<> {
        let (all, mut changes) = (self.clone(), self.changes());
        async move {
            loop {
                if let Some(serial) = all.find(&presented) {
                    return serial;
                }
                // Never an error: we hold the sender ourselves.
                let _changed = changes.changed().await;
            }
        }
    }
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = self.0.told.load();
        f.debug_struct("Revocations")
            .field("serials", &told.serials.len())
            .field("identities", &told.identities.len())
            .field("listed", &self.0.lists.load().len())
            .finish()
    }
}

#[cfg(test)]
mod tests;
