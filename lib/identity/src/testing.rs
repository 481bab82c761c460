//! A certificate authority for tests: in memory, answers at once, makes what a test asks for, also what is wrong.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationList, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, RevokedCertParams,
    SanType, SerialNumber, SigningKey, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject as _};
use underpass_model::Identity;
use x509_parser::{
    certification_request::X509CertificationRequest,
    prelude::{FromDer as _, X509Certificate},
};

use crate::{
    authority::{AuthorityError, CertificateAuthority},
    certificate::{Issued, WorkloadCertificate, set_validity},
    key::KeyPair,
    tls::Credentials,
    trust::TrustBundle,
};

type Signer = CertifiedIssuer<'static, rcgen::KeyPair>;

/// A root and an issuing certificate below it.
pub struct TestAuthority {
    root: Signer,
    issuing: Signer,
}

/// What a leaf shall look like.
#[derive(Debug, Clone)]
pub struct LeafOptions {
    /// The URI names in it; the default is the identity alone.
    pub names: Option<Vec<String>>,
    /// The beginning of its validity; the default is a minute ago.
    pub not_before: SystemTime,
    /// The end of its validity; the default is in a day.
    pub not_after: SystemTime,
}

impl Default for LeafOptions {
    fn default() -> Self {
        let now = SystemTime::now();
        Self { names: None, not_before: now - Duration::from_secs(60), not_after: now + Duration::from_secs(86_400) }
    }
}

/// The list on which an authority revokes the certificates of these numbers, as a standard authority would.
#[expect(clippy::expect_used, reason = "only tests use it, and a failure shall end them")]
#[must_use]
pub fn revocation_list(
    issuer: &Issuer<'_, impl SigningKey>,
    serials: impl IntoIterator<Item = SerialNumber>,
) -> CertificateRevocationList {
    let mut dates = CertificateParams::default();
    set_validity(&mut dates, SystemTime::now(), SystemTime::now() + Duration::from_secs(86_400));
    let revoked = |serial_number| RevokedCertParams {
        serial_number,
        revocation_time: dates.not_before,
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: dates.not_before,
        next_update: dates.not_after,
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: serials.into_iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(issuer).expect("a list can be signed")
}

#[expect(clippy::expect_used, clippy::new_without_default, reason = "only tests use it, and a failure shall end them")]
impl TestAuthority {
    /// Makes an authority with a root of its own.
    #[must_use]
    pub fn new() -> Self {
        let key = || rcgen::KeyPair::generate().expect("a key can be made");
        let root = CertifiedIssuer::self_signed(authority_params("test root"), key()).expect("a root can be made");
        let issuing = CertifiedIssuer::signed_by(authority_params("test issuing"), key(), &root)
            .expect("an issuing certificate can be made");
        Self { root, issuing }
    }

    /// The root certificate.
    #[must_use]
    pub fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// The list on which the issuing certificate revokes a certificate, as a standard authority would.
    #[must_use]
    pub fn revocation_list_pem(&self, certificate: &CertificateDer<'_>) -> String {
        let (_, revoked) = X509Certificate::from_der(certificate).expect("a certificate");
        let list = revocation_list(&self.issuing, [revoked.raw_serial().to_vec().into()]);
        list.pem().expect("a list is text")
    }

    /// The root alone, as a bundle.
    #[must_use]
    pub fn roots(&self) -> TrustBundle {
        TrustBundle::from_pem(&self.root_pem()).expect("the root is a root")
    }

    /// A certificate for a public key (SubjectPublicKeyInfo in DER), as an authority answers: leaf, issuing, root.
    #[must_use]
    pub fn answer(&self, public_key_info: &[u8], identity: &Identity, leaf: &LeafOptions) -> Vec<String> {
        let names = leaf.names.clone().unwrap_or_else(|| vec![identity.to_string()]);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names =
            names.into_iter().map(|name| SanType::URI(name.try_into().expect("a name is ASCII"))).collect();
        set_validity(&mut params, leaf.not_before, leaf.not_after);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let public_key = SubjectPublicKeyInfo::from_der(public_key_info).expect("a public key");
        let certificate = params.signed_by(&public_key, &self.issuing).expect("a leaf can be signed");
        vec![certificate.pem(), self.issuing.pem(), self.root.pem()]
    }

    /// The certificates that a peer with such a leaf shows.
    #[must_use]
    pub fn chain(&self, identity: &Identity, leaf: &LeafOptions) -> Vec<CertificateDer<'static>> {
        let key = KeyPair::generate().expect("a key can be made");
        let answer = self.answer(&key.public_key_info(), identity, leaf);
        let shown = answer.iter().take(2);
        shown.map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate in PEM")).collect()
    }

    /// A certificate of a day for a new key.
    #[must_use]
    pub fn issue(&self, identity: &Identity) -> Issued {
        let key = Arc::new(KeyPair::generate().expect("a key can be made"));
        let answer = self.answer(&key.public_key_info(), identity, &LeafOptions::default());
        Issued::from_answer(&answer, key, identity, SystemTime::now()).expect("the authority answers right")
    }

    /// Credentials of a day that trust this authority alone.
    #[must_use]
    pub fn credentials(&self, identity: &Identity) -> Arc<Credentials> {
        self.credentials_trusting(identity, &self.roots())
    }

    /// Credentials of a day that trust other roots than the authority's own.
    #[must_use]
    pub fn credentials_trusting(&self, identity: &Identity, roots: &TrustBundle) -> Arc<Credentials> {
        Arc::new(Credentials::new(&self.issue(identity).certificate, roots, 1).expect("credentials can be built"))
    }

    /// Credentials with a leaf that an honest authority would not make: expired, for other names, and so on.
    #[must_use]
    pub fn forged(&self, identity: &Identity, leaf: &LeafOptions) -> Arc<Credentials> {
        let key = Arc::new(KeyPair::generate().expect("a key can be made"));
        let answer = self.answer(&key.public_key_info(), identity, leaf);
        let certificate = WorkloadCertificate::unchecked(&answer, key, identity).expect("the answer is well formed");
        Arc::new(Credentials::new(&certificate, &self.roots(), 1).expect("credentials can be built"))
    }
}

impl CertificateAuthority for TestAuthority {
    fn sign(
        &self,
        csr_pem: String,
        identity: &Identity,
        ttl: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, AuthorityError>> + Send>> {
        let leaf = LeafOptions { not_after: SystemTime::now() + ttl, ..LeafOptions::default() };
        let answer = self.answer(&public_key_of(&csr_pem), identity, &leaf);
        Box::pin(async { Ok(answer) })
    }
}

/// The public key in a certificate request, as SubjectPublicKeyInfo.
#[must_use]
#[expect(clippy::expect_used, reason = "only tests use it, and a failure shall end them")]
pub fn public_key_of(csr_pem: &str) -> Vec<u8> {
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes()).expect("a request in PEM");
    let (_, csr) = X509CertificationRequest::from_der(&der).expect("a request");
    csr.certification_request_info.subject_pki.raw.to_vec()
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
