//! Certificates that are no longer believed although their time is not over, and how everybody who relies on one learns
//! of it.
//!
//! Two sources: what the mesh's authority tells ([`Revocation`]), and the standard lists of other authorities
//! ([`RevocationLists`]). Nobody asks a third party during a handshake; what is not revoked here is not revoked.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use underpass_model::{Identity, Revocation, SerialNumber};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    certificate::{system_time, uri_names},
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

/// What must be remembered of a chain of certificates to find it revoked later.
#[derive(Debug, Clone)]
pub struct Presented(Box<[Mark]>);

/// One certificate of it.
#[derive(Debug, Clone)]
struct Mark {
    issuer: Box<[u8]>,
    serial: SerialNumber,
    begins: u64,
    /// Only of the leaf: who signs certificates is nobody by this.
    identities: Box<[Identity]>,
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

impl Presented {
    /// What to remember of a chain, the leaf first. A certificate that cannot be read is left out: no handshake takes it.
    #[must_use]
    pub fn of(certificates: &[CertificateDer<'_>]) -> Self {
        Self(certificates.iter().enumerate().filter_map(|(index, der)| Mark::of(der, index == 0)).collect())
    }

    /// The leaf's number.
    #[must_use]
    pub fn serial(&self) -> Option<&SerialNumber> {
        self.0.first().map(|mark| &mark.serial)
    }
}

impl Mark {
    fn of(certificate: &CertificateDer<'_>, is_leaf: bool) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let identities = match uri_names(&parsed) {
            Ok(names) if is_leaf => names.filter_map(|name| name.parse().ok()).collect(),
            _ => Box::default(),
        };
        let begins = system_time(parsed.validity().not_before);
        Some(Self {
            issuer: parsed.issuer().as_raw().into(),
            serial: SerialNumber::new(parsed.raw_serial()),
            begins: begins.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
            identities,
        })
    }
}

#[cfg(test)]
mod tests;
