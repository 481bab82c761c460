//! The roots: whom the mesh trusts, and which of them signs.
//!
//! Files in the state directory: `root.pem`, all trusted roots, which may hold others' beside ours; `root-key.pem`, the
//! key of our root; and, while our root is being replaced, `next-root-key.pem`. A replacement takes two overlaps of
//! time, counted from the new root's beginning, so that no other record of its progress is needed:
//!
//! ```text
//!  new root made          one overlap later        two overlaps later
//!  |  announced            |  both trusted          |  old one removed
//!  |  old one signs        |  new one signs         |  new one signs
//! ```
//!
//! An overlap is longer than any workload's certificate lives: by its end every node has fetched an answer that held
//! both roots, and no certificate is left that the other root signed.

use std::time::{Duration, SystemTime};

use pem::Pem;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use underpass_identity::certificate::set_validity;
use underpass_model::TrustDomain;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::state::{StateDirectory, StateError};

/// File of all trusted roots.
pub const ROOTS_FILE: &str = "root.pem";
/// File of our root's key.
pub const KEY_FILE: &str = "root-key.pem";
/// File of the key of the root that will replace ours.
pub const NEXT_KEY_FILE: &str = "next-root-key.pem";

/// How long a root is valid: ten years.
const LIFE: Duration = Duration::from_secs(3650 * 86_400);
/// With less of its life left than this, a root is replaced: a year.
const REPLACE_BEFORE: Duration = Duration::from_secs(365 * 86_400);
/// How much earlier than now certificates begin, for peers whose clocks are behind.
pub(super) const BACKDATED: Duration = Duration::from_secs(60);

/// Why the roots cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The files cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file's content is not what it should be.
    #[error("{file}: {problem}")]
    Content {
        /// Which file.
        file: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate or key could not be made.
    #[error("cannot make a root")]
    Make(#[from] rcgen::Error),
    /// Our root is being replaced already.
    #[error("the root is being replaced already ({NEXT_KEY_FILE} exists)")]
    Replacing,
}

/// The roots as the files hold them.
pub(super) struct Roots {
    current: OwnRoot,
    next: Option<OwnRoot>,
    trusted: Vec<Trusted>,
}

/// A root of which we have the key.
pub(super) struct OwnRoot {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

/// A root in the bundle.
struct Trusted {
    certificate: CertificateDer<'static>,
    public_key_info: Vec<u8>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Where the replacement of a root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is one root of ours.
    Single,
    /// A second one is trusted; the first signs.
    Announced,
    /// The second signs; the first is still trusted.
    Switched,
    /// The first is to be removed.
    Finished,
}

/// Where a replacement is whose new root began at `next_begins`.
pub(super) fn phase(next_begins: Option<SystemTime>, now: SystemTime, overlap: Duration) -> Phase {
    let Some(begins) = next_begins else { return Phase::Single };
    // A clock that was set back keeps us waiting, which is the safe side.
    let age = now.duration_since(begins).unwrap_or_default();
    match age {
        age if age < overlap => Phase::Announced,
        age if age < overlap * 2 => Phase::Switched,
        _ => Phase::Finished,
    }
}

impl OwnRoot {
    /// Its subject, for logs.
    pub(super) fn name(&self) -> String {
        X509Certificate::from_der(&self.certificate).map(|(_, root)| root.subject().to_string()).unwrap_or_default()
    }
}

impl Roots {
    /// Reads the roots; makes ours if there is none.
    pub(super) fn load(state: &StateDirectory, domain: &TrustDomain, now: SystemTime) -> Result<Self, RootsError> {
        let mut trusted = read_bundle(state)?;
        let key = match read_key(state, KEY_FILE)? {
            Some(key) => key,
            None if trusted.is_empty() => make_key(state, KEY_FILE)?,
            None => return Err(RootsError::Content { file: KEY_FILE, problem: missing_beside_roots() }),
        };
        let mut next = read_key(state, NEXT_KEY_FILE)?;
        if trusted.is_empty() {
            trusted.push(add_root(state, &trusted, &key, domain, now)?);
        }
        let current = match (find(&trusted, &key), next.take()) {
            (Some(root), kept) => {
                next = kept;
                own(root, key)?
            }
            // A replacement was interrupted after its last change to the bundle: finish it.
            (None, Some(newer)) if find(&trusted, &newer).is_some() => {
                state.rename(NEXT_KEY_FILE, KEY_FILE)?;
                own(find(&trusted, &newer).ok_or_else(no_certificate)?, newer)?
            }
            (None, _) => return Err(no_certificate()),
        };
        let next = match next {
            Some(key) => {
                if find(&trusted, &key).is_none() {
                    // A replacement was interrupted before its first change to the bundle: go on with it.
                    trusted.push(add_root(state, &trusted, &key, domain, now)?);
                }
                Some(own(find(&trusted, &key).ok_or_else(no_certificate)?, key)?)
            }
            None => None,
        };
        Ok(Self { current, next, trusted })
    }

    /// Begins to replace our root: from here on both are trusted.
    pub(super) fn begin_replacement(
        &self,
        state: &StateDirectory,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, RootsError> {
        if self.next.is_some() {
            return Err(RootsError::Replacing);
        }
        make_key(state, NEXT_KEY_FILE)?;
        Self::load(state, domain, now)
    }

    /// Does what time asks for: begins a replacement, or finishes one.
    pub(super) fn advance(
        self,
        state: &StateDirectory,
        domain: &TrustDomain,
        now: SystemTime,
        overlap: Duration,
    ) -> Result<Self, RootsError> {
        match self.phase(now, overlap) {
            Phase::Single if now + REPLACE_BEFORE > self.current.not_after => {
                self.begin_replacement(state, domain, now)
            }
            Phase::Finished => {
                let kept = self.trusted.iter().filter(|root| root.certificate != self.current.certificate);
                let kept: Vec<_> = kept.map(|root| &root.certificate).collect();
                state.write_public(ROOTS_FILE, &to_pem(kept))?;
                // Reading again finds our old key without a certificate, and finishes.
                Self::load(state, domain, now)
            }
            Phase::Single | Phase::Announced | Phase::Switched => Ok(self),
        }
    }

    pub(super) fn phase(&self, now: SystemTime, overlap: Duration) -> Phase {
        phase(self.next.as_ref().map(|next| next.not_before), now, overlap)
    }

    /// The root that signs now.
    pub(super) fn signer(self, now: SystemTime, overlap: Duration) -> OwnRoot {
        match (self.phase(now, overlap), self.next) {
            (Phase::Switched | Phase::Finished, Some(next)) => next,
            _ => self.current,
        }
    }

    /// All trusted roots in PEM, those left out whose time is over.
    pub(super) fn bundle_pem(&self, now: SystemTime) -> String {
        let valid = self.trusted.iter().filter(|root| now < root.not_after);
        to_pem(valid.map(|root| &root.certificate))
    }
}

fn no_certificate() -> RootsError {
    let problem = format!("holds no certificate for the key in {KEY_FILE}");
    RootsError::Content { file: ROOTS_FILE, problem }
}

fn missing_beside_roots() -> String {
    format!("is missing although {ROOTS_FILE} exists; put it back, or remove {ROOTS_FILE} to begin with a new root")
}

fn read_bundle(state: &StateDirectory) -> Result<Vec<Trusted>, RootsError> {
    let Some(text) = state.read_public(ROOTS_FILE)? else { return Ok(Vec::new()) };
    let content = |problem: String| RootsError::Content { file: ROOTS_FILE, problem };
    let mut trusted = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|error| content(error.to_string()))?;
        trusted.push(describe(certificate).map_err(content)?);
    }
    if trusted.is_empty() { Err(content("holds no certificate".to_owned())) } else { Ok(trusted) }
}

fn describe(certificate: CertificateDer<'static>) -> Result<Trusted, String> {
    let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|error| error.to_string())?;
    if !parsed.is_ca() {
        return Err(format!("holds {}, which is no certificate of an authority", parsed.subject()));
    }
    let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let not_before = time(parsed.validity().not_before.timestamp());
    let not_after = time(parsed.validity().not_after.timestamp());
    let public_key_info = parsed.public_key().raw.to_vec();
    Ok(Trusted { certificate, public_key_info, not_before, not_after })
}

fn read_key(state: &StateDirectory, file: &'static str) -> Result<Option<KeyPair>, RootsError> {
    let Some(pem) = state.read_secret(file)? else { return Ok(None) };
    let problem = |error: rcgen::Error| RootsError::Content { file, problem: format!("is no private key: {error}") };
    KeyPair::from_pem(&pem).map(Some).map_err(problem)
}

/// Makes a key and its file; when another process was faster, takes its key.
fn make_key(state: &StateDirectory, file: &'static str) -> Result<KeyPair, RootsError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    if state.create_secret(file, &key.serialize_pem())? {
        return Ok(key);
    }
    read_key(state, file)?.ok_or_else(|| RootsError::Content { file, problem: "vanished".to_owned() })
}

/// Makes a root for a key and adds it to the bundle's file.
fn add_root(
    state: &StateDirectory,
    trusted: &[Trusted],
    key: &KeyPair,
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<Trusted, RootsError> {
    let certificate = root_params(key, domain, now).self_signed(key)?.der().clone();
    let added = describe(certificate).map_err(|problem| RootsError::Content { file: ROOTS_FILE, problem })?;
    let all = trusted.iter().chain([&added]).map(|root| &root.certificate);
    state.write_public(ROOTS_FILE, &to_pem(all))?;
    Ok(added)
}

fn root_params(key: &KeyPair, domain: &TrustDomain, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    // The key's mark in the name tells an old root from a new one, for people and for path building.
    let mark: String = params.key_identifier(key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, domain.as_str());
    params.distinguished_name.push(DnType::CommonName, format!("Underpass root {mark}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now - BACKDATED, now + LIFE);
    params
}

fn find<'a>(trusted: &'a [Trusted], key: &KeyPair) -> Option<&'a Trusted> {
    let info = key.subject_public_key_info();
    trusted.iter().find(|root| root.public_key_info == info)
}

fn own(root: &Trusted, key: KeyPair) -> Result<OwnRoot, RootsError> {
    Ok(OwnRoot {
        certificate: root.certificate.clone(),
        not_before: root.not_before,
        not_after: root.not_after,
        issuer: Issuer::from_ca_cert_der(&root.certificate, key)?,
    })
}

/// Certificates in PEM, one after the other.
pub(super) fn to_pem<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    certificates.into_iter().map(|der| pem::encode(&Pem::new("CERTIFICATE", der.to_vec()))).collect()
}
