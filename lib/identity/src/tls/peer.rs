//! Who the other end of a finished handshake is, and whether that is whom we want to talk to.

use std::{sync::Arc, time::SystemTime};

use rustls_pki_types::CertificateDer;
use underpass_model::{Identity, SerialNumber, TrustDomain};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::certificate::{system_time, uri_names};

/// Whom a peer must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// One of these, exactly: what a client wants of a server. An empty list accepts nobody.
    OneOf(Arc<[Identity]>),
    /// Anybody of this trust domain: what a server wants of a client before authorization decides.
    TrustDomain(TrustDomain),
}

/// Why a peer that passed the handshake is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PeerError {
    /// It showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// Its certificate cannot be read.
    #[error("the peer's certificate cannot be read: {0}")]
    Malformed(String),
    /// Its certificate's time is over.
    #[error("the peer's certificate for {names:?} expired")]
    Expired {
        /// The URI names in it.
        names: Vec<String>,
    },
    /// Its certificate's time has not come.
    #[error("the peer's certificate for {names:?} is not valid yet")]
    NotYetValid {
        /// The URI names in it.
        names: Vec<String>,
    },
    /// None of its names is an identity.
    #[error("the peer's certificate has no identity among its URI names {names:?}")]
    NoIdentity {
        /// The URI names in it.
        names: Vec<String>,
    },
    /// One of the certificates that it showed is revoked.
    #[error("certificate {serial} of the peer is revoked")]
    Revoked {
        /// Which.
        serial: SerialNumber,
    },
    /// It is somebody else.
    #[error("the peer is {names:?}, expected one of {expected:?}")]
    WrongIdentity {
        /// The URI names in it.
        names: Vec<String>,
        /// Whom we wanted.
        expected: Arc<[Identity]>,
    },
    /// It is of another trust domain.
    #[error("the peer is {identity}, expected somebody of trust domain {expected}")]
    WrongTrustDomain {
        /// Who it is.
        identity: Identity,
        /// The domain we wanted.
        expected: TrustDomain,
    },
}

impl PeerError {
    /// A stable label for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "peer_no_certificate",
            Self::Malformed(_) => "peer_certificate_malformed",
            Self::Expired { .. } => "peer_certificate_expired",
            Self::NotYetValid { .. } => "peer_certificate_not_yet_valid",
            Self::NoIdentity { .. } => "peer_no_identity",
            Self::Revoked { .. } => "peer_certificate_revoked",
            Self::WrongIdentity { .. } => "peer_wrong_identity",
            Self::WrongTrustDomain { .. } => "peer_wrong_trust_domain",
        }
    }
}

/// Says who the peer is, given what it showed in the handshake (`peer_certificates()`, the leaf first).
///
/// A leaf should have one URI name (X.509-SVID, section 2). Where it has more, a client accepts the peer if *any* equals
/// one of the expected identities, since the authority vouched for all of them; a server takes the *first* that is an
/// identity at all, so that a peer cannot choose among its names. Both are what peers of other meshes do.
///
/// # Errors
/// [`PeerError`] when the peer is not as expected, or not valid at `now`.
pub fn check_peer(
    certificates: &[CertificateDer<'_>],
    expect: &Expected,
    now: SystemTime,
) -> Result<Identity, PeerError> {
    let leaf = certificates.first().ok_or(PeerError::NoCertificate)?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| PeerError::Malformed(error.to_string()))?;
    let uris: Vec<&str> = uri_names(&parsed).map_err(PeerError::Malformed)?.collect();
    let names = || uris.iter().take(MOST_NAMES).map(|name| shorten(name)).collect();
    let validity = parsed.validity();
    if now > system_time(validity.not_after) {
        return Err(PeerError::Expired { names: names() });
    }
    if now < system_time(validity.not_before) {
        return Err(PeerError::NotYetValid { names: names() });
    }
    let mut identities = uris.iter().filter_map(|uri| uri.parse::<Identity>().ok()).peekable();
    if identities.peek().is_none() {
        return Err(PeerError::NoIdentity { names: names() });
    }
    match expect {
        Expected::OneOf(wanted) => identities
            .find(|identity| wanted.contains(identity))
            .ok_or_else(|| PeerError::WrongIdentity { names: names(), expected: Arc::clone(wanted) }),
        Expected::TrustDomain(domain) => match identities.next() {
            Some(identity) if identity.trust_domain() == domain => Ok(identity),
            Some(identity) => Err(PeerError::WrongTrustDomain { identity, expected: domain.clone() }),
            None => Err(PeerError::NoIdentity { names: names() }),
        },
    }
}

/// How many of a peer's names an error repeats.
const MOST_NAMES: usize = 4;

/// What an error repeats of a name that a peer chose.
fn shorten(name: &str) -> String {
    name.chars().take(300).collect()
}
