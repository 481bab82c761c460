//! Signing: an issuing certificate below our root, and the certificates of workloads and of the operator below that.

use std::{
    collections::HashSet,
    fmt, fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::{Mutex, watch};
use underpass_identity::{certificate::set_validity, tls};
use underpass_model::{Identity, Revocation, TrustDomain};
use underpass_runtime::Shutdown;

use super::{
    request::{self, RequestError},
    revoked::{Revoke, Revoked, RevokedError},
    roots::{self, BACKDATED, OwnRoot, Roots, RootsError, Wish},
    state::{Held, SharedStore, State, StateError},
};

mod status;

pub use status::{AuthorityStatus, Dated};

/// How an authority behaves.
#[derive(Debug, Clone)]
pub struct AuthorityOptions {
    /// The only trust domain that it signs for.
    pub trust_domain: TrustDomain,
    /// The longest life of a workload's certificate, and the one given when none is asked for (default 24 h).
    pub most_ttl: Duration,
    /// How long an issuing certificate lives; it is replaced at half (default 30 days: its key is never stored, so a
    /// short life costs nothing, and limits what a leak is worth). At least twice as long as a workload's.
    pub issuing_ttl: Duration,
    /// How long each phase of a root's replacement takes (default: twice a workload's certificate). At least as long as
    /// that certificate lives.
    pub overlap: Duration,
    /// A directory with `tls.crt`, `tls.key` and `ca.crt`: the authority under which to sign, instead of a root of ours.
    pub given: Option<PathBuf>,
    /// What is left of a root's life when logs begin to warn (default 30 days).
    pub warn_before: Duration,
}

impl AuthorityOptions {
    /// The defaults for a trust domain.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        let day = Duration::from_secs(86_400);
        Self {
            trust_domain,
            most_ttl: day,
            issuing_ttl: day * 30,
            overlap: day * 2,
            given: None,
            warn_before: day * 30,
        }
    }

    /// The roots by the state, or as they were given.
    fn roots(&self, state: &State) -> Result<Roots, OpenError> {
        let Some(directory) = &self.given else { return Ok(Roots::read(state)?) };
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).map_err(|source| OpenError::Given { path, source })
        };
        Ok(Roots::given(&read("tls.crt")?, &read("tls.key")?, &read("ca.crt")?)?)
    }
}

/// No certificate is shorter than this, unless all are.
const LEAST_TTL: Duration = Duration::from_secs(60);

/// How often what others may have changed is looked at: another replica's revocations must not wait for long.
const PERIOD: Duration = Duration::from_secs(2);
/// A step that fails is tried again no sooner than this.
const LEAST_SLEEP: Duration = Duration::from_millis(100);
/// How often a change is tried again because another replica made one meanwhile.
const ATTEMPTS: usize = 5;

/// Why the authority cannot begin, or cannot go on with what its state says.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state cannot be loaded or saved.
    #[error(transparent)]
    State(#[from] StateError),
    /// The roots in it.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The revocations in it.
    #[error(transparent)]
    Revoked(#[from] RevokedError),
    /// What the user gives cannot be read.
    #[error("cannot read {path}")]
    Given {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The issuing certificate cannot be made.
    #[error("cannot make an issuing certificate")]
    Issuing(#[from] SignError),
    /// Nothing of the kind is revoked.
    #[error("{0} is not revoked")]
    NotRevoked(Revoke),
    /// Others changed the state again and again.
    #[error("others changed the state {ATTEMPTS} times while we wanted to")]
    Contended,
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
    /// There is no serial number for it.
    #[error(transparent)]
    Serial(#[from] SerialError),
}

/// There is no randomness for a serial number.
#[derive(Debug, thiserror::Error)]
#[error("the system has no randomness")]
pub struct SerialError;

impl SignError {
    /// A stable label for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Request(_) => "bad_request",
            Self::TrustDomain { .. } => "trust_domain",
            Self::Expired => "issuing_expired",
            Self::Make(_) | Self::Serial(_) => "internal",
        }
    }
}

/// The authority. Clones share it.
#[derive(Clone)]
pub struct Authority(Arc<Inner>);

struct Inner {
    options: AuthorityOptions,
    store: SharedStore,
    signing: ArcSwap<Signing>,
    told: watch::Sender<Told>,
    /// How long certificates shall live, in seconds, where that is less than they may; 0 if nobody says so.
    wanted_ttl: AtomicU64,
    /// Held while the state is looked at or changed.
    changing: Mutex<()>,
}

/// What everybody in the mesh shall know of the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// All trusted roots in PEM.
    pub roots_pem: Arc<str>,
    /// What is revoked.
    pub revocations: Arc<[Revocation]>,
}

/// What signs at the moment.
struct Signing {
    issuing: Arc<Issuing>,
    bundle_pem: Arc<str>,
    revoked: Revoked,
    /// When something changes by itself.
    next_step: SystemTime,
    status: AuthorityStatus,
}

/// An issuing certificate.
pub(super) struct Issuing {
    issuer: CertifiedIssuer<'static, KeyPair>,
    signed_by: CertificateDer<'static>,
    /// The certificates between it and a root.
    above: Vec<CertificateDer<'static>>,
    serial: underpass_model::SerialNumber,
    replace_at: SystemTime,
    not_after: SystemTime,
}

/// What somebody wants changed.
#[derive(Clone, Default)]
struct Order {
    replace_root: bool,
    replace_issuing: bool,
    revoke: Option<Revoke>,
    restore: Option<Revoke>,
}

impl Order {
    /// The state as it should be after it.
    fn apply(&self, mut state: State, options: &AuthorityOptions, now: SystemTime) -> Result<State, OpenError> {
        if options.given.is_none() {
            let wish = if self.replace_root { Wish::Replace } else { Wish::InTime };
            state = roots::settle(state, &options.trust_domain, now, options.overlap, wish)?;
        } else if self.replace_root {
            return Err(RootsError::Given.into());
        }
        let before = Revoked::read(state.revoked.as_deref())?;
        let mut revoked = before.clone().at(now);
        if let Some(what) = self.revoke.clone() {
            let lasts = match what {
                Revoke::Identity(_) => options.most_ttl,
                Revoke::Serial(_) => options.issuing_ttl,
            };
            // Some certificates may have been signed by a process whose clock is ahead.
            revoked = revoked.with(what, now, lasts + BACKDATED);
        }
        if let Some(what) = &self.restore {
            revoked = revoked.without(what).ok_or_else(|| OpenError::NotRevoked(what.clone()))?;
        }
        if revoked != before {
            state.revoked = Some(revoked.write()?);
        }
        Ok(state)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.0.options.trust_domain).finish_non_exhaustive()
    }
}

impl Authority {
    /// Loads the state; makes a root in it if there is none.
    ///
    /// # Errors
    /// [`OpenError`], when the state cannot be used.
    pub async fn open(store: SharedStore, options: AuthorityOptions, now: SystemTime) -> Result<Self, OpenError> {
        let state = settled(&store, &options, &Order::default(), now).await?;
        let signing = prepare(&state, &options, None, now)?;
        let told = watch::Sender::new(signing.told());
        let signing = ArcSwap::from_pointee(signing);
        Ok(Self(Arc::new(Inner {
            options,
            store,
            signing,
            told,
            wanted_ttl: AtomicU64::new(0),
            changing: Mutex::default(),
        })))
    }

    /// Takes in what changed in the state, and replaces the issuing certificate and the root when it is time. When it
    /// fails, signing goes on as before.
    ///
    /// # Errors
    /// [`OpenError`], when the state cannot be used.
    pub async fn refresh(&self, now: SystemTime) -> Result<(), OpenError> {
        self.change(&Order::default(), now).await
    }

    /// Refreshes until asked to stop.
    pub async fn run(self, shutdown: Shutdown) {
        let (mut complained, mut warned) = (None, HashSet::new());
        loop {
            let step = self.0.signing.load().next_step.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::select! {
                () = shutdown.requested() => return,
                () = tokio::time::sleep(step.clamp(LEAST_SLEEP, PERIOD)) => {}
            }
            let error = self.refresh(SystemTime::now()).await.err().map(|error| chain(&error));
            if let Some(error) = error.as_ref().filter(|error| complained.as_ref() != Some(*error)) {
                tracing::error!(error, "cannot refresh the certificate authority; it goes on with what it has");
            }
            complained = error;
            self.status().observe(self.0.options.warn_before, SystemTime::now(), &mut warned);
        }
    }

    /// Begins to replace the root. Takes one overlap until the new one signs, and one more until the old one is gone.
    ///
    /// # Errors
    /// [`OpenError`], also when a replacement is under way.
    pub async fn replace_root(&self, now: SystemTime) -> Result<(), OpenError> {
        self.change(&Order { replace_root: true, ..Order::default() }, now).await
    }

    /// Signs by another issuing certificate from now on. What the old one signed stays good.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn replace_issuing(&self, now: SystemTime) -> Result<(), OpenError> {
        self.change(&Order { replace_issuing: true, ..Order::default() }, now).await
    }

    /// Revokes; everybody in the mesh is told at once.
    ///
    /// # Errors
    /// [`OpenError`]; then nothing is revoked.
    pub async fn revoke(&self, what: Revoke, now: SystemTime) -> Result<(), OpenError> {
        tracing::warn!(?what, "revoked");
        self.change(&Order { revoke: Some(what), ..Order::default() }, now).await
    }

    /// Takes a revocation back; everybody in the mesh is told at once, and what it meant is good again.
    ///
    /// # Errors
    /// [`OpenError`], also when there is no such revocation.
    pub async fn restore(&self, what: Revoke, now: SystemTime) -> Result<(), OpenError> {
        tracing::warn!(?what, "believed again");
        self.change(&Order { restore: Some(what), ..Order::default() }, now).await
    }

    /// From now on certificates live so long, and not longer than the options say; true if that was otherwise. Those that
    /// are signed live on.
    pub fn shorten(&self, wanted: Option<Duration>) -> bool {
        let wanted = wanted.map_or(0, |wanted| wanted.as_secs());
        self.0.wanted_ttl.swap(wanted, Ordering::Relaxed) != wanted
    }

    /// How long a certificate lives that is signed now.
    fn ttl(&self) -> Duration {
        let most = self.0.options.most_ttl;
        match self.0.wanted_ttl.load(Ordering::Relaxed) {
            0 => most,
            wanted => most.min(Duration::from_secs(wanted)),
        }
    }

    /// What everybody shall know, whenever it changes.
    #[must_use]
    pub fn told(&self) -> watch::Receiver<Told> {
        self.0.told.subscribe()
    }

    /// Whose identities it signs.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.options.trust_domain
    }

    /// What people may know.
    #[must_use]
    pub fn status(&self) -> AuthorityStatus {
        self.0.signing.load().status.clone()
    }

    async fn change(&self, order: &Order, now: SystemTime) -> Result<(), OpenError> {
        let _changing = self.0.changing.lock().await;
        let state = settled(&self.0.store, &self.0.options, order, now).await?;
        let before = Some(Arc::clone(&self.0.signing.load().issuing)).filter(|_| !order.replace_issuing);
        let signing = prepare(&state, &self.0.options, before, now)?;
        let told = signing.told();
        self.0.signing.store(Arc::new(signing));
        self.0.told.send_if_modified(|known| std::mem::replace(known, told.clone()) != told);
        Ok(())
    }

    /// All trusted roots in PEM.
    #[must_use]
    pub fn roots_pem(&self) -> String {
        self.0.signing.load().bundle_pem.to_string()
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
        let most_ttl = self.ttl();
        let ttl = if ttl.is_zero() { most_ttl } else { ttl.min(most_ttl).max(LEAST_TTL.min(most_ttl)) };
        let mut params = CertificateParams::default();
        // rcgen marks the names critical exactly when the subject is empty (RFC 5280, 4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let signing = self.0.signing.load();
        // What was revoked began earlier than this.
        let revoked = signing.revoked.begins(identity).map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        let begins = revoked.map_or(now - BACKDATED, |revoked| revoked.max(now - BACKDATED));
        let leaf = signing.issuing.sign(params, &public_key, (begins, ttl), now)?;
        let mut answer = vec![leaf.pem(), signing.issuing.issuer.pem()];
        answer.extend(signing.issuing.above.iter().map(|der| roots::to_pem([der])));
        answer.push(signing.bundle_pem.to_string());
        Ok(answer)
    }

    /// The issuing certificate in use.
    pub(super) fn issuing(&self) -> Arc<Issuing> {
        Arc::clone(&self.0.signing.load().issuing)
    }
}

impl Issuing {
    /// An issuing certificate below a root, with a new key.
    fn new(root: &OwnRoot, ttl: Duration, now: SystemTime) -> Result<Self, SignError> {
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
        let serial = serial_number()?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        Ok(Self {
            issuer: CertifiedIssuer::signed_by(params, key, &root.issuer)?,
            signed_by: root.certificate.clone(),
            above: root.above.clone(),
            serial: underpass_model::SerialNumber::new(&serial),
            replace_at: now + not_after.duration_since(now).unwrap_or_default() / 2,
            not_after,
        })
    }

    /// Signs a leaf that never outlives us.
    fn sign(
        &self,
        mut params: CertificateParams,
        public_key: &impl PublicKeyData,
        (begins, ttl): (SystemTime, Duration),
        now: SystemTime,
    ) -> Result<Certificate, SignError> {
        if now >= self.not_after {
            return Err(SignError::Expired);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial_number()?));
        set_validity(&mut params, begins, (now + ttl).min(self.not_after));
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
        let leaf = self.sign(params, &key, (now - BACKDATED, ttl), now)?;
        let chain = [leaf.into(), self.issuer.der().clone()].into_iter().chain(self.above.iter().cloned());
        Ok((chain.collect(), key.into()))
    }
}

/// Loads the state and brings it to what it should be; looks again when somebody else was faster.
async fn settled(
    store: &SharedStore,
    options: &AuthorityOptions,
    order: &Order,
    now: SystemTime,
) -> Result<State, OpenError> {
    for _ in 0..ATTEMPTS {
        let held: Held = store.load().await?;
        let state = order.apply(held.state.clone(), options, now)?;
        if state == held.state || store.save(&held, &state).await? {
            return Ok(state);
        }
    }
    Err(OpenError::Contended)
}

/// What signs now, by the state and the time; the issuing certificate of before, if it still may.
fn prepare(
    state: &State,
    options: &AuthorityOptions,
    before: Option<Arc<Issuing>>,
    now: SystemTime,
) -> Result<Signing, OpenError> {
    let (roots, revoked) = (options.roots(state)?, Revoked::read(state.revoked.as_deref())?);
    let bundle_pem = Arc::from(roots.bundle_pem(now));
    let (phase, described) = (roots.phase(now, options.overlap), roots.described().collect());
    let next_step = roots.next_step(now, options.overlap);
    let root = roots.signer(now, options.overlap);
    let may_go_on = |issuing: &Arc<Issuing>| {
        issuing.signed_by == root.certificate && now < issuing.replace_at && !revoked.has_serial(&issuing.serial)
    };
    let issuing = match before.filter(may_go_on) {
        Some(issuing) => issuing,
        None => {
            tracing::info!(root = roots::name(&root.certificate), "new issuing certificate");
            Arc::new(Issuing::new(&root, options.issuing_ttl, now)?)
        }
    };
    let next_step = next_step.map_or(issuing.replace_at, |step| step.min(issuing.replace_at));
    let status = AuthorityStatus::new(phase, described, &issuing, &revoked);
    Ok(Signing { issuing, bundle_pem, revoked, next_step, status })
}

impl Signing {
    fn told(&self) -> Told {
        Told { roots_pem: Arc::clone(&self.bundle_pem), revocations: self.revoked.revocations().cloned().collect() }
    }
}

/// 127 random bits: positive, and unguessable.
fn serial_number() -> Result<[u8; 16], SerialError> {
    let mut bytes = [0_u8; 16];
    tls::provider().secure_random.fill(&mut bytes).map_err(|_| SerialError)?;
    if let Some(first) = bytes.first_mut() {
        // Neither negative nor with a leading zero, which would make lengths differ.
        *first = *first & 0x7f | 0x40;
    }
    Ok(bytes)
}

/// An error and what caused it, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests;
