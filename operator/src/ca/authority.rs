//! Signing: an issuing certificate below our root, and the certificates of workloads and of the operator below that.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use underpass_identity::{certificate::set_validity, tls};
use underpass_model::{Identity, TrustDomain};
use underpass_runtime::Shutdown;

use super::{
    request::{self, RequestError},
    roots::{BACKDATED, OwnRoot, Roots, RootsError},
    state::{StateDirectory, StateError},
};

/// How an authority behaves.
#[derive(Debug, Clone)]
pub struct AuthorityOptions {
    /// The directory of the root's key and certificate.
    pub state: PathBuf,
    /// The only trust domain that it signs for.
    pub trust_domain: TrustDomain,
    /// The longest life of a workload's certificate, and the one given when none is asked for (default 24 h).
    pub most_ttl: Duration,
    /// How long an issuing certificate lives; it is replaced at half (default 30 days: its key is never stored, so a
    /// short life costs nothing, and limits what a leak is worth).
    pub issuing_ttl: Duration,
}

impl AuthorityOptions {
    /// The defaults for a state directory and a trust domain.
    #[must_use]
    pub fn new(state: PathBuf, trust_domain: TrustDomain) -> Self {
        let day = Duration::from_secs(86_400);
        Self { state, trust_domain, most_ttl: day, issuing_ttl: day * 30 }
    }

    /// How long each phase of a root's replacement takes: twice a certificate's life.
    fn overlap(&self) -> Duration {
        self.most_ttl * 2
    }
}

/// No certificate is shorter than this.
const LEAST_TTL: Duration = Duration::from_secs(60);

/// Why the authority cannot begin, or cannot go on with what its files say.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The roots in it.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The issuing certificate cannot be made.
    #[error("cannot make an issuing certificate")]
    Issuing(#[from] rcgen::Error),
}

/// Why a certificate was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// It is for somebody of another mesh.
    #[error("{identity} is not of trust domain {ours}")]
    TrustDomain {
        /// For whom.
        identity: Identity,
        /// For whom alone we sign.
        ours: TrustDomain,
    },
    /// Our issuing certificate is over; the root could not be read for long.
    #[error("the issuing certificate has expired")]
    Expired,
    /// The certificate could not be made.
    #[error("cannot make the certificate")]
    Make(#[from] rcgen::Error),
    /// There is no randomness for the serial number.
    #[error("the system has no randomness")]
    Randomness,
}

impl SignError {
    /// A stable label for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Request(_) => "bad_request",
            Self::TrustDomain { .. } => "trust_domain",
            Self::Expired => "issuing_expired",
            Self::Make(_) | Self::Randomness => "internal",
        }
    }
}

/// The authority. Clones share it.
#[derive(Clone)]
pub struct Authority(Arc<Inner>);

struct Inner {
    options: AuthorityOptions,
    state: StateDirectory,
    signing: ArcSwap<Signing>,
    /// Held while the files are read or written.
    files: Mutex<()>,
}

/// What signs at the moment.
struct Signing {
    issuing: Arc<Issuing>,
    bundle_pem: String,
}

/// An issuing certificate.
pub(super) struct Issuing {
    issuer: CertifiedIssuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    replace_at: SystemTime,
    not_after: SystemTime,
}

impl Authority {
    /// Reads the state directory; makes a root in it if there is none.
    ///
    /// # Errors
    /// [`OpenError`], when the directory is open to others, or its content cannot be used.
    pub fn open(options: AuthorityOptions, now: SystemTime) -> Result<Self, OpenError> {
        let state = StateDirectory::open(&options.state)?;
        let signing = ArcSwap::from_pointee(prepare(&state, &options, None, now)?);
        Ok(Self(Arc::new(Inner { options, state, signing, files: Mutex::new(()) })))
    }

    /// Takes in what changed in the state directory, and replaces the issuing certificate and the root when it is time.
    /// When it fails, signing goes on as before.
    ///
    /// # Errors
    /// [`OpenError`], when the files cannot be used.
    pub fn refresh(&self, now: SystemTime) -> Result<(), OpenError> {
        let _files = self.0.files.lock().unwrap_or_else(PoisonError::into_inner);
        let before = Arc::clone(&self.0.signing.load_full().issuing);
        self.0.signing.store(Arc::new(prepare(&self.0.state, &self.0.options, Some(before), now)?));
        Ok(())
    }

    /// Refreshes once a minute until asked to stop.
    pub async fn run(self, shutdown: Shutdown) {
        const PERIOD: Duration = Duration::from_secs(60);
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            if let Err(error) = self.refresh(SystemTime::now()) {
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "cannot refresh the certificate authority; it goes on with what it has");
            }
        }
    }

    /// Begins to replace the root. Takes two days until the new one signs, and two more until the old one is gone.
    ///
    /// # Errors
    /// [`OpenError`], also when a replacement is under way.
    pub fn replace_root(&self, now: SystemTime) -> Result<(), OpenError> {
        {
            let _files = self.0.files.lock().unwrap_or_else(PoisonError::into_inner);
            let domain = &self.0.options.trust_domain;
            Roots::load(&self.0.state, domain, now)?.begin_replacement(&self.0.state, domain, now)?;
        }
        self.refresh(now)
    }

    /// All trusted roots in PEM.
    #[must_use]
    pub fn roots_pem(&self) -> String {
        self.0.signing.load().bundle_pem.clone()
    }

    /// Signs a certificate for `identity` with the public key of a request: leaf, issuing certificate, all roots. A `ttl`
    /// of zero asks for the longest.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &Identity,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<String>, SignError> {
        let options = &self.0.options;
        if identity.trust_domain() != &options.trust_domain {
            return Err(SignError::TrustDomain { identity: identity.clone(), ours: options.trust_domain.clone() });
        }
        let public_key = request::public_key(csr_pem)?;
        let ttl = if ttl.is_zero() { options.most_ttl } else { ttl.min(options.most_ttl).max(LEAST_TTL) };
        let mut params = CertificateParams::default();
        // rcgen marks the names critical exactly when the subject is empty (RFC 5280, 4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let signing = self.0.signing.load();
        let leaf = signing.issuing.sign(params, &public_key, ttl, now)?;
        Ok(vec![leaf.pem(), signing.issuing.issuer.pem(), signing.bundle_pem.clone()])
    }

    /// The issuing certificate in use.
    pub(super) fn issuing(&self) -> Arc<Issuing> {
        Arc::clone(&self.0.signing.load().issuing)
    }
}

impl Issuing {
    /// An issuing certificate below a root, with a new key.
    fn new(root: &OwnRoot, ttl: Duration, now: SystemTime) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let not_after = (now + ttl).min(root.not_after);
        let mut params = CertificateParams::default();
        let mark: String = params.key_identifier(&key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("Underpass issuing {mark}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now - BACKDATED, not_after);
        Ok(Self {
            issuer: CertifiedIssuer::signed_by(params, key, &root.issuer)?,
            root: root.certificate.clone(),
            replace_at: now + not_after.duration_since(now).unwrap_or_default() / 2,
            not_after,
        })
    }

    /// Signs a leaf that never outlives us.
    fn sign(
        &self,
        mut params: CertificateParams,
        public_key: &impl PublicKeyData,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Certificate, SignError> {
        if now >= self.not_after {
            return Err(SignError::Expired);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial_number()?);
        set_validity(&mut params, now - BACKDATED, (now + ttl).min(self.not_after));
        Ok(params.signed_by(public_key, &self.issuer)?)
    }

    /// A server's certificate for DNS names with a new key: the chain to send, and the key.
    pub(super) fn serve_as(
        &self,
        names: &[String],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SignError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = self.sign(params, &key, ttl, now)?;
        Ok((vec![leaf.into(), self.issuer.der().clone()], key.into()))
    }
}

/// What signs now, by the files and the time; the issuing certificate of before, if it still may.
fn prepare(
    state: &StateDirectory,
    options: &AuthorityOptions,
    before: Option<Arc<Issuing>>,
    now: SystemTime,
) -> Result<Signing, OpenError> {
    let (domain, overlap) = (&options.trust_domain, options.overlap());
    let roots = Roots::load(state, domain, now)?.advance(state, domain, now, overlap)?;
    let bundle_pem = roots.bundle_pem(now);
    let root = roots.signer(now, overlap);
    let kept = before.filter(|issuing| issuing.root == root.certificate && now < issuing.replace_at);
    let issuing = match kept {
        Some(issuing) => issuing,
        None => {
            tracing::info!(root = %root.name(), "new issuing certificate");
            Arc::new(Issuing::new(&root, options.issuing_ttl, now)?)
        }
    };
    Ok(Signing { issuing, bundle_pem })
}

/// 127 random bits: positive, and unguessable.
fn serial_number() -> Result<SerialNumber, SignError> {
    let mut bytes = [0_u8; 16];
    tls::provider().secure_random.fill(&mut bytes).map_err(|_| SignError::Randomness)?;
    if let Some(first) = bytes.first_mut() {
        // Neither negative nor with a leading zero, which would make lengths differ.
        *first = *first & 0x7f | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests;
