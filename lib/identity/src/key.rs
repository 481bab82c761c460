//! Private keys of workloads: made in memory, never printed, handed out only to rustls.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use underpass_model::Identity;

/// An ECDSA P-256 key pair.
pub struct KeyPair(rcgen::KeyPair);

/// Why a key could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The random generator or the key type failed.
    #[error("cannot make a P-256 key")]
    Generate(#[source] rcgen::Error),
    /// The text is not a PKCS#8 key in PEM.
    #[error("the private key is not PKCS#8 in PEM")]
    Parse(#[source] rcgen::Error),
    /// A key of another kind.
    #[error("the private key is not ECDSA P-256")]
    Algorithm,
    /// The certificate request could not be made.
    #[error("cannot make a certificate request for {identity}")]
    Request {
        /// For whom.
        identity: Identity,
        /// What failed.
        source: rcgen::Error,
    },
}

impl KeyPair {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`KeyError::Generate`] when the system has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(KeyError::Generate)
    }

    /// Reads a key in PKCS#8 PEM.
    ///
    /// # Errors
    /// [`KeyError::Parse`] for no such key, [`KeyError::Algorithm`] for one that is not P-256.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let key = rcgen::KeyPair::from_pem(pem).map_err(KeyError::Parse)?;
        if key.is_compatible(&PKCS_ECDSA_P256_SHA256) { Ok(Self(key)) } else { Err(KeyError::Algorithm) }
    }

    /// A certificate request (PKCS#10, PEM): no subject, and the identity as the only name, in a critical extension.
    ///
    /// # Errors
    /// [`KeyError::Request`] when it cannot be encoded or signed.
    pub fn csr_pem(&self, identity: &Identity) -> Result<String, KeyError> {
        let failed = |source| KeyError::Request { identity: identity.clone(), source };
        let mut params = CertificateParams::default();
        // rcgen marks the names critical exactly when the subject is empty (RFC 5280, 4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().map_err(failed)?)];
        params.serialize_request(&self.0).and_then(|request| request.pem()).map_err(failed)
    }

    /// The public half as SubjectPublicKeyInfo in DER: what a certificate for this key must contain.
    #[must_use]
    pub fn public_key_info(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// The key for rustls.
    #[must_use]
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }

    /// The key in PKCS#8 PEM, for a file that only its owner may read.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(P-256)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
    use x509_parser::{extensions::GeneralName, prelude::*};

    fn identity() -> Identity {
        "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
    }

    #[test]
    fn asks_for_one_critical_uri_name_and_no_subject() {
        let key = KeyPair::generate().unwrap();
        let pem = key.csr_pem(&identity()).unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (rest, csr) = X509CertificationRequest::from_der(&der).unwrap();
        assert!(rest.is_empty());
        csr.verify_signature().unwrap();
        let info = &csr.certification_request_info;
        assert_eq!(info.subject.iter().count(), 0);
        assert_eq!(info.subject_pki.raw, key.public_key_info());
        // DER of `subjectAltName` (2.5.29.17) followed by `critical TRUE`.
        let critical_names = [0x06, 0x03, 0x55, 0x1d, 0x11, 0x01, 0x01, 0xff];
        assert!(der.windows(critical_names.len()).any(|window| window == critical_names));
        let names: Vec<_> = csr
            .requested_extensions()
            .unwrap()
            .flat_map(|extension| match extension {
                ParsedExtension::SubjectAlternativeName(san) => san.general_names.clone(),
                other => panic!("asked for {other:?}"),
            })
            .collect();
        assert_eq!(names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]);
    }

    #[test]
    fn survives_a_round_through_pem() {
        let key = KeyPair::generate().unwrap();
        let same = KeyPair::from_pem(&key.to_pem()).unwrap();
        assert_eq!(same.public_key_info(), key.public_key_info());
    }

    #[test]
    fn refuses_a_key_of_another_kind() {
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(matches!(KeyPair::from_pem(&other.serialize_pem()), Err(KeyError::Algorithm)));
        assert!(matches!(KeyPair::from_pem("nothing"), Err(KeyError::Parse(_))));
    }

    #[test]
    fn never_prints_itself() {
        let key = KeyPair::generate().unwrap();
        assert_eq!(format!("{key:?}"), "KeyPair(P-256)");
    }
}
