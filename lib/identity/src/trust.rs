//! The roots that a peer's certificate must lead to: one or several at a time, so that a root can be replaced while
//! certificates of both are in use.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

/// A set of root certificates, all trusted alike. Cheap to clone; equal when the certificates are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle(Arc<[CertificateDer<'static>]>);

/// Why a text is no trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It is not PEM.
    #[error("root certificates are not PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// One of the certificates cannot be a root.
    #[error("root certificate {index} cannot be used")]
    Root {
        /// Its place in the bundle, from 0.
        index: usize,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// There is no certificate in it.
    #[error("no root certificate")]
    Empty,
}

impl TrustBundle {
    /// Reads one or several certificates in PEM, one after the other.
    ///
    /// # Errors
    /// [`TrustError`] when there is none, or one of them cannot be used.
    pub fn from_pem(pem: &str) -> Result<Self, TrustError> {
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        Self::new(roots.map_err(TrustError::Pem)?)
    }

    /// Takes certificates that are trusted from here on.
    ///
    /// # Errors
    /// [`TrustError`] when there is none, or one of them cannot be used.
    pub fn new(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self, TrustError> {
        let mut kept = Vec::new();
        for (index, root) in roots.into_iter().enumerate() {
            RootCertStore::empty().add(root.clone()).map_err(|source| TrustError::Root { index, source })?;
            kept.push(root);
        }
        if kept.is_empty() { Err(TrustError::Empty) } else { Ok(Self::of(kept)) }
    }

    /// Both sets of roots together.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::of(self.0.iter().chain(other.0.iter()).cloned().collect())
    }

    /// Sorted, each once: so that equal sets are equal.
    fn of(mut roots: Vec<CertificateDer<'static>>) -> Self {
        roots.sort_unstable_by(|one, other| one.as_ref().cmp(other.as_ref()));
        roots.dedup();
        Self(roots.into())
    }

    /// The certificates.
    pub fn roots(&self) -> impl ExactSizeIterator<Item = &CertificateDer<'static>> {
        self.0.iter()
    }

    /// The roots as rustls wants them.
    #[must_use]
    pub fn store(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        let (_, refused) = store.add_parsable_certificates(self.0.iter().cloned());
        debug_assert_eq!(refused, 0, "each root was checked when it came in");
        store
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestAuthority;
    use proptest::prelude::*;

    #[test]
    fn reads_several_roots_and_keeps_each_once() {
        let (one, two) = (TestAuthority::new().root_pem(), TestAuthority::new().root_pem());
        let bundle = TrustBundle::from_pem(&format!("{one}\n{two}{one}")).unwrap();
        assert_eq!(bundle.roots().len(), 2);
        assert_eq!(bundle.store().len(), 2);
        let order = TrustBundle::from_pem(&format!("{two}{one}")).unwrap();
        assert_eq!(bundle, order);
        let first = TrustBundle::from_pem(&one).unwrap();
        assert_eq!(bundle.union(&first), bundle);
        assert_eq!(first.union(&bundle), bundle);
    }

    #[test]
    fn refuses_what_is_no_root() {
        assert!(matches!(TrustBundle::from_pem(""), Err(TrustError::Empty)));
        assert!(matches!(TrustBundle::from_pem("-----BEGIN CERTIFICATE-----\nMII"), Err(TrustError::Pem(_))));
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let bundle = format!("{}{garbage}", TestAuthority::new().root_pem());
        assert!(matches!(TrustBundle::from_pem(&bundle), Err(TrustError::Root { index: 1, .. })));
    }

    proptest! {
        #[test]
        fn never_panics(text in "(-----BEGIN CERTIFICATE-----\n)?[ -~\n]{0,80}(\n-----END CERTIFICATE-----)?") {
            let _unused = TrustBundle::from_pem(&text);
        }
    }
}
