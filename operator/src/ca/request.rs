//! What an authority takes from a certificate request: the public key, and the proof that the caller holds the private
//! one. Nothing else in it is read.

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData as _, SubjectPublicKeyInfo};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

/// Why a certificate request is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It is far longer than any.
    #[error("csr has {0} bytes, more than {LONGEST}")]
    TooLong(usize),
    /// It is not PEM.
    #[error("csr is not PEM: {0}")]
    Pem(rustls_pki_types::pem::Error),
    /// It is not PKCS#10.
    #[error("csr is not a PKCS#10 request: {0}")]
    Malformed(String),
    /// The caller does not hold the key.
    #[error("csr is not signed by its own key")]
    Signature,
    /// A key that peers should not have to deal with.
    #[error("csr has a public key that is neither ECDSA P-256 nor P-384")]
    Key,
}

/// A request with an elliptic curve key takes less than 1 KiB.
const LONGEST: usize = 16 * 1024;

/// The public key of a request whose signature was checked.
///
/// # Errors
/// [`RequestError`], when it is no request, not signed by its own key, or the key is of another kind.
pub fn public_key(csr_pem: &str) -> Result<SubjectPublicKeyInfo, RequestError> {
    if csr_pem.len() > LONGEST {
        return Err(RequestError::TooLong(csr_pem.len()));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes()).map_err(RequestError::Pem)?;
    let (rest, request) =
        X509CertificationRequest::from_der(der.as_ref()).map_err(|error| RequestError::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(RequestError::Malformed("bytes follow it".to_owned()));
    }
    request.verify_signature().map_err(|_| RequestError::Signature)?;
    let info = request.certification_request_info.subject_pki.raw;
    let key = SubjectPublicKeyInfo::from_der(info).map_err(|_| RequestError::Key)?;
    let allowed = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384];
    if allowed.contains(&key.algorithm()) { Ok(key) } else { Err(RequestError::Key) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};

    fn request(key: &KeyPair) -> String {
        CertificateParams::new(vec!["somebody.example".to_owned()])
            .unwrap()
            .serialize_request(key)
            .unwrap()
            .pem()
            .unwrap()
    }

    #[test]
    fn takes_the_key_of_a_request() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            assert_eq!(public_key(&request(&key)).unwrap().der_bytes(), key.der_bytes());
        }
    }

    #[test]
    fn refuses_what_is_no_request_of_the_caller() {
        let key = KeyPair::generate().unwrap();
        let good = request(&key);
        let mut der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
        let (last, name) = (der.len() - 1, der.windows(8).position(|window| window == b"somebody").unwrap());
        let trailing = pem_of(&[der.as_slice(), &[0]].concat());
        der[name] = b'S';
        let renamed = pem_of(&der);
        der[name] = b's';
        der[last] ^= 1;
        let resigned = pem_of(&der);
        let table = [
            ("nothing", String::new(), "csr is not PEM"),
            ("no PEM", "hello".to_owned(), "csr is not PEM"),
            ("another PEM", key.serialize_pem(), "csr is not PEM"),
            ("no request", pem_of(b"abc"), "csr is not a PKCS#10 request"),
            ("more than a request", trailing, "bytes follow it"),
            ("a name changed", renamed, "csr is not signed by its own key"),
            ("a signature changed", resigned, "csr is not signed by its own key"),
            ("another kind of key", request(&KeyPair::generate_for(&PKCS_ED25519).unwrap()), "neither ECDSA"),
            ("too long", "x".repeat(LONGEST + 1), "more than 16384"),
        ];
        for (what, csr, words) in table {
            let error = public_key(&csr).unwrap_err().to_string();
            assert!(error.contains(words), "{what}: {error}");
        }
    }

    fn pem_of(der: &[u8]) -> String {
        pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der))
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(public_key(&pem_of(&bytes)).is_err());
        }
    }
}
