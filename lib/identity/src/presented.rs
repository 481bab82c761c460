//! What peers show of themselves in a handshake, as far as it matters later.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use underpass_model::{Identity, SerialNumber};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::certificate::{system_time, uri_names};

/// What must be remembered of a chain of certificates to find it revoked later.
#[derive(Debug, Clone, Default)]
pub struct Presented(pub(crate) Box<[Mark]>);

/// One certificate of it.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    pub(crate) issuer: Box<[u8]>,
    pub(crate) serial: SerialNumber,
    pub(crate) begins: u64,
    /// Only of the leaf: who signs certificates is nobody by this.
    pub(crate) identities: Box<[Identity]>,
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
