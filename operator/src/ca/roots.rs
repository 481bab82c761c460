//! The roots: whom the mesh trusts, and which of them signs.
//!
//! The state holds all trusted roots, which may be others' beside ours; the key of our root; and, while our root is being
//! replaced, the key of the next one. A replacement takes two overlaps of time, counted from the new root's beginning, so
//! that no other record of its progress is needed:
//!
//! ```text
//!  new root made          one overlap later        two overlaps later
//!  |  announced            |  both trusted          |  old one removed
//!  |  old one signs        |  new one signs         |  new one signs
//! ```
//!
//! An overlap is at least as long as any workload's certificate lives: by its end every certificate in use came with an
//! answer that held both roots, and later none is left that the other root signed.

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

use super::state::State;

/// How long a root is valid: ten years.
const LIFE: Duration = Duration::from_secs(3650 * 86_400);
/// With less of its life left than this, a root is replaced: a year.
const REPLACE_BEFORE: Duration = Duration::from_secs(365 * 86_400);
/// How much earlier than now certificates begin, for peers whose clocks are behind.
pub(super) const BACKDATED: Duration = Duration::from_secs(60);

/// Why the roots cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// A part of the state is not what it should be.
    #[error("{part}: {problem}")]
    Content {
        /// Which part, under the name of its file.
        part: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate or key could not be made.
    #[error("cannot make a root")]
    Make(#[from] rcgen::Error),
    /// Our root is being replaced already.
    #[error("the root is being replaced already")]
    Replacing,
    /// Our root is not ours to replace.
    #[error("the root was given; whoever gave it replaces it")]
    Given,
}

/// The roots, as the state holds them.
pub(super) struct Roots {
    current: OwnRoot,
    next: Option<OwnRoot>,
    trusted: Vec<Trusted>,
}

/// A certificate of which we have the key, and that may sign issuing certificates.
pub(super) struct OwnRoot {
    pub(super) certificate: CertificateDer<'static>,
    /// What leads from it to a root, itself first; nothing for a root.
    pub(super) above: Vec<CertificateDer<'static>>,
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
    /// No authority may be below it.
    is_last: bool,
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

/// A certificate's subject, for people.
pub(super) fn name(certificate: &CertificateDer<'_>) -> String {
    X509Certificate::from_der(certificate).map(|(_, parsed)| parsed.subject().to_string()).unwrap_or_default()
}

/// Whether a replacement of the root shall begin now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Only when the time has come.
    InTime,
    /// Now.
    Replace,
}

/// What the state should be now: with a root if there was none, with the changes that were interrupted brought to their
/// end, with a replacement begun or finished when its time has come.
pub(super) fn settle(
    mut state: State,
    domain: &TrustDomain,
    now: SystemTime,
    overlap: Duration,
    wish: Wish,
) -> Result<State, RootsError> {
    let mut trusted = read_bundle(&state)?;
    let known = trusted.len();
    let key = match read_key(KEY, state.key.as_deref())? {
        Some(key) => key,
        None if trusted.is_empty() => make_key(&mut state.key)?,
        None => return Err(RootsError::Content { part: KEY, problem: missing_beside_roots() }),
    };
    if trusted.is_empty() {
        trusted.push(make_root(&key, domain, now)?);
    }
    let mut next = read_key(NEXT_KEY, state.next_key.as_deref())?;
    match (find(&trusted, &key), &next) {
        (Some(_), Some(newer)) if find(&trusted, newer).is_none() => trusted.push(make_root(newer, domain, now)?),
        (Some(_), _) => {}
        // The old root is out of the bundle already.
        (None, Some(newer)) if find(&trusted, newer).is_some() => {
            state.key = state.next_key.take();
            next = None;
        }
        (None, _) => return Err(no_certificate()),
    }
    let is_old = find(&trusted, &key).is_some_and(|root| now + REPLACE_BEFORE > root.not_after);
    let begins = next.as_ref().and_then(|key| find(&trusted, key)).map(|root| root.not_before + BACKDATED);
    match phase(begins, now, overlap) {
        Phase::Single if is_old || wish == Wish::Replace => {
            let key = make_key(&mut state.next_key)?;
            trusted.push(make_root(&key, domain, now)?);
        }
        Phase::Announced | Phase::Switched if wish == Wish::Replace => return Err(RootsError::Replacing),
        Phase::Finished => {
            let old = key.subject_public_key_info();
            trusted.retain(|root| root.public_key_info != old);
            state.key = state.next_key.take();
        }
        Phase::Single | Phase::Announced | Phase::Switched => {}
    }
    // Only then: what people wrote beside the certificates stays as long as these do.
    if trusted.len() != known {
        state.roots = Some(to_pem(trusted.iter().map(|root| &root.certificate)));
    }
    Ok(state)
}

impl Roots {
    /// Reads a state that is settled.
    pub(super) fn read(state: &State) -> Result<Self, RootsError> {
        let trusted = read_bundle(state)?;
        let find = |part, pem: &Option<String>| match read_key(part, pem.as_deref())? {
            Some(key) => own(find(&trusted, &key).ok_or_else(no_certificate)?, key).map(Some),
            None => Ok(None),
        };
        let current = find(KEY, &state.key)?.ok_or_else(no_certificate)?;
        let next = find(NEXT_KEY, &state.next_key)?;
        Ok(Self { current, next, trusted })
    }

    /// A certificate of an authority and its key, and the roots that it leads to, as the user gives them: PEM, in the order
    /// of a `kubernetes.io/tls` Secret with a `ca.crt`.
    pub(super) fn given(chain: &str, key: &str, roots: &str) -> Result<Self, RootsError> {
        let (chain, trusted) = (read_certificates("tls.crt", chain)?, read_certificates("ca.crt", roots)?);
        let content = |problem: &str| RootsError::Content { part: "tls.crt", problem: problem.to_owned() };
        let key = read_key("tls.key", Some(key))?.ok_or(RootsError::Given)?;
        let ours = find(&chain, &key).ok_or_else(|| content("holds no certificate for the key in tls.key"))?;
        if ours.is_last {
            return Err(content("may sign no issuing certificate (its path length is 0)"));
        }
        let is_root = |one: &&Trusted| trusted.iter().any(|root| root.certificate == one.certificate);
        let above = chain.iter().filter(|one| !is_root(one)).map(|one| one.certificate.clone()).collect();
        Ok(Self { current: OwnRoot { above, ..own(ours, key)? }, next: None, trusted })
    }

    /// When the next root began to be trusted.
    fn begins(&self) -> Option<SystemTime> {
        self.next.as_ref().map(|next| next.not_before + BACKDATED)
    }

    /// When the replacement under way takes its next step.
    pub(super) fn next_step(&self, now: SystemTime, overlap: Duration) -> Option<SystemTime> {
        let begins = self.begins()?;
        [begins + overlap, begins + overlap * 2].into_iter().find(|step| *step > now)
    }

    /// The names of all roots, and until when each may be trusted.
    pub(super) fn described(&self) -> impl Iterator<Item = (String, SystemTime)> {
        self.trusted.iter().map(|root| (name(&root.certificate), root.not_after))
    }

    pub(super) fn phase(&self, now: SystemTime, overlap: Duration) -> Phase {
        phase(self.begins(), now, overlap)
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

const ROOTS: &str = "root.pem";
const KEY: &str = "root-key.pem";
const NEXT_KEY: &str = "next-root-key.pem";

fn no_certificate() -> RootsError {
    RootsError::Content { part: ROOTS, problem: format!("holds no certificate for the key in {KEY}") }
}

fn missing_beside_roots() -> String {
    format!("is missing although {ROOTS} exists; put it back, or remove {ROOTS} to begin with a new root")
}

fn read_bundle(state: &State) -> Result<Vec<Trusted>, RootsError> {
    state.roots.as_ref().map_or(Ok(Vec::new()), |text| read_certificates(ROOTS, text))
}

fn read_certificates(part: &'static str, text: &str) -> Result<Vec<Trusted>, RootsError> {
    let content = |problem: String| RootsError::Content { part, problem };
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
    let constraints = parsed.basic_constraints().ok().flatten();
    let is_last = constraints.is_some_and(|constraints| constraints.value.path_len_constraint == Some(0));
    Ok(Trusted { certificate, public_key_info, not_before, not_after, is_last })
}

fn read_key(part: &'static str, pem: Option<&str>) -> Result<Option<KeyPair>, RootsError> {
    let problem = |error: rcgen::Error| RootsError::Content { part, problem: format!("is no private key: {error}") };
    pem.map(|pem| KeyPair::from_pem(pem).map_err(problem)).transpose()
}

fn make_key(kept: &mut Option<String>) -> Result<KeyPair, RootsError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    *kept = Some(key.serialize_pem());
    Ok(key)
}

fn make_root(key: &KeyPair, domain: &TrustDomain, now: SystemTime) -> Result<Trusted, RootsError> {
    let certificate = root_params(key, domain, now).self_signed(key)?.der().clone();
    describe(certificate).map_err(|problem| RootsError::Content { part: ROOTS, problem })
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
        above: Vec::new(),
        not_before: root.not_before,
        not_after: root.not_after,
        issuer: Issuer::from_ca_cert_der(&root.certificate, key)?,
    })
}

/// Certificates in PEM, one after the other.
pub(super) fn to_pem<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    certificates.into_iter().map(|der| pem::encode(&Pem::new("CERTIFICATE", der.to_vec()))).collect()
}
