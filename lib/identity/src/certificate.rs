//! A workload's certificate with its key, and the checks that an authority's answer must pass before it is used.
//!
//! Nothing here is trusted because it came over an authenticated channel: the leaf must be for our key, for the identity
//! asked for, valid now, and lead to one of the roots given with it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::CertificateParams;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use underpass_model::Identity;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
    time::ASN1Time,
};

use crate::{key::KeyPair, tls, trust::TrustBundle};

/// What a workload proves its identity with: a chain of certificates, the leaf first, and the leaf's key.
#[derive(Debug, Clone)]
pub struct WorkloadCertificate {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<KeyPair>,
    identity: Identity,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// An authority's answer that was checked: the certificate, and the roots that came with it.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate with our key.
    pub certificate: WorkloadCertificate,
    /// The roots, as the authority knows them now.
    pub roots: TrustBundle,
}

/// Why an authority's answer was not used. Each names the field that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Fewer than a leaf and a root.
    #[error("cert_chain has {0} elements, expected a leaf and at least one root")]
    Short(usize),
    /// An element of the chain cannot be read.
    #[error("cert_chain[{index}] is not a certificate in PEM: {problem}")]
    Element {
        /// Which element.
        index: usize,
        /// What is wrong.
        problem: String,
    },
    /// The last element holds no usable roots.
    #[error("cert_chain[{index}] holds no usable roots")]
    Roots {
        /// Which element.
        index: usize,
        /// What is wrong.
        source: crate::trust::TrustError,
    },
    /// The leaf is for a key that is not ours.
    #[error("cert_chain[0]: the public key is not the one of the request for {0}")]
    PublicKey(Identity),
    /// The leaf has no, another or a second identity.
    #[error("cert_chain[0]: the URI names are {found:?}, expected only {asked}")]
    Names {
        /// The identity asked for.
        asked: Identity,
        /// The URI names found.
        found: Vec<String>,
    },
    /// The chain does not lead to the roots, or is not valid now.
    #[error("cert_chain does not verify for {identity}")]
    Chain {
        /// For whom it was issued.
        identity: Identity,
        /// What rustls says.
        source: rustls::Error,
    },
}

impl WorkloadCertificate {
    /// The identity that the leaf proves.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When the leaf begins to be valid.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When the leaf ends to be valid.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The certificates to send in a handshake: leaf, then intermediates, without the root.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The leaf's key.
    #[must_use]
    pub fn key(&self) -> &KeyPair {
        &self.key
    }

    /// Takes an answer as it is, however wrong: what an attacker would use.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn unchecked(
        answer: &[String],
        key: Arc<KeyPair>,
        identity: &Identity,
    ) -> Result<Self, CertificateError> {
        let (chain, _) = split(answer)?;
        let (not_before, not_after) = validity(&chain)?;
        Ok(Self { chain, key, identity: identity.clone(), not_before, not_after })
    }
}

impl Issued {
    /// Checks what an authority answered to a request for `asked` with `key`: `answer` is the leaf, intermediates, and
    /// last the roots, which may be several in one element.
    ///
    /// # Errors
    /// [`CertificateError`], when any of it is not as asked.
    pub fn from_answer(
        answer: &[String],
        key: Arc<KeyPair>,
        asked: &Identity,
        now: SystemTime,
    ) -> Result<Self, CertificateError> {
        let (chain, roots) = split(answer)?;
        check_leaf(&chain, &key, asked)?;
        let (not_before, not_after) = validity(&chain)?;
        tls::verify_own_chain(&chain, &roots, now)
            .map_err(|source| CertificateError::Chain { identity: asked.clone(), source })?;
        let certificate = WorkloadCertificate { chain, key, identity: asked.clone(), not_before, not_after };
        Ok(Self { certificate, roots })
    }
}

type Chain = Vec<CertificateDer<'static>>;

fn split(answer: &[String]) -> Result<(Chain, TrustBundle), CertificateError> {
    let (Some((last, elements)), true) = (answer.split_last(), answer.len() >= 2) else {
        return Err(CertificateError::Short(answer.len()));
    };
    let mut chain = Vec::with_capacity(elements.len());
    for (index, element) in elements.iter().enumerate() {
        let unreadable = |problem: String| CertificateError::Element { index, problem };
        let before = chain.len();
        for certificate in CertificateDer::pem_slice_iter(element.as_bytes()) {
            chain.push(certificate.map_err(|error| unreadable(error.to_string()))?);
        }
        if chain.len() == before {
            return Err(unreadable("no certificate in it".to_owned()));
        }
    }
    let roots =
        TrustBundle::from_pem(last).map_err(|source| CertificateError::Roots { index: elements.len(), source })?;
    Ok((chain, roots))
}

fn check_leaf(chain: &[CertificateDer<'_>], key: &KeyPair, asked: &Identity) -> Result<(), CertificateError> {
    let leaf = parse_leaf(chain)?;
    if leaf.public_key().raw != key.public_key_info() {
        return Err(CertificateError::PublicKey(asked.clone()));
    }
    let names = uri_names(&leaf).map_err(|problem| CertificateError::Element { index: 0, problem })?;
    let found: Vec<String> = names.map(str::to_owned).collect();
    if found == [asked.to_string()] { Ok(()) } else { Err(CertificateError::Names { asked: asked.clone(), found }) }
}

fn validity(chain: &[CertificateDer<'_>]) -> Result<(SystemTime, SystemTime), CertificateError> {
    let leaf = parse_leaf(chain)?;
    Ok((system_time(leaf.validity().not_before), system_time(leaf.validity().not_after)))
}

fn parse_leaf<'a>(chain: &'a [CertificateDer<'_>]) -> Result<X509Certificate<'a>, CertificateError> {
    let leaf = chain.first().ok_or(CertificateError::Short(0))?;
    let (_, parsed) = X509Certificate::from_der(leaf)
        .map_err(|error| CertificateError::Element { index: 0, problem: error.to_string() })?;
    Ok(parsed)
}

/// The URI names of a certificate, in order.
pub(crate) fn uri_names<'a>(
    certificate: &'a X509Certificate<'_>,
) -> Result<impl Iterator<Item = &'a str> + use<'a>, String> {
    let names = certificate.subject_alternative_name().map_err(|error| format!("its names: {error}"))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    Ok(names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    }))
}

/// When a certificate ends, if it can be read.
pub(crate) fn ends(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    X509Certificate::from_der(certificate).ok().map(|(_, parsed)| system_time(parsed.validity().not_after))
}

/// A certificate's time on our clock's type; what lies before 1970 or beyond the clock's range is cut.
pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Sets the time in which a certificate will be valid. rcgen does not export its date type, but a date of its own can be added to.
pub fn set_validity(params: &mut CertificateParams, not_before: SystemTime, not_after: SystemTime) {
    let since_epoch = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(not_before);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(not_after);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{LeafOptions, TestAuthority};

    fn web() -> Identity {
        "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
    }

    #[test]
    fn takes_what_was_asked_for() {
        let authority = TestAuthority::new();
        let key = Arc::new(KeyPair::generate().unwrap());
        let leaf = LeafOptions::default();
        let mut answer = authority.answer(&key.public_key_info(), &web(), &leaf);
        let issued = Issued::from_answer(&answer, Arc::clone(&key), &web(), SystemTime::now()).unwrap();
        assert_eq!(issued.certificate.identity(), &web());
        assert_eq!(issued.certificate.chain().len(), 2);
        assert_eq!(issued.roots, authority.roots());
        let off = leaf.not_after.duration_since(issued.certificate.not_after()).unwrap();
        assert!(off < Duration::from_secs(1), "certificates count whole seconds");
        assert!(issued.certificate.not_before() <= leaf.not_before);
        // Leaf and issuing certificate in one element, and more roots than one.
        let chain = answer.drain(..2).collect::<String>();
        let roots = format!("{}{}", answer[0], TestAuthority::new().root_pem());
        let issued = Issued::from_answer(&[chain, roots], key, &web(), SystemTime::now()).unwrap();
        assert_eq!((issued.certificate.chain().len(), issued.roots.roots().len()), (2, 2));
    }

    #[test]
    fn refuses_a_wrong_answer_and_names_the_field() {
        let (authority, stranger) = (TestAuthority::new(), TestAuthority::new());
        let key = Arc::new(KeyPair::generate().unwrap());
        let info = key.public_key_info();
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let good = || authority.answer(&info, &web(), &LeafOptions::default());
        let with = |index: usize, text: &str| {
            let mut answer = good();
            answer[index] = text.to_owned();
            answer
        };
        let leaf = |change: fn(&mut LeafOptions)| {
            let mut leaf = LeafOptions::default();
            change(&mut leaf);
            authority.answer(&info, &web(), &leaf)
        };
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let other_key = KeyPair::generate().unwrap().public_key_info();
        let api = "spiffe://cluster.local/ns/shop/sa/api";
        let mut expired = LeafOptions { not_after: now - hour, ..LeafOptions::default() };
        expired.not_before = now - hour * 2;
        let without_issuing = good().into_iter().enumerate().filter(|(index, _)| *index != 1).map(|(_, pem)| pem);
        let table: [(&str, Vec<String>, &str); 13] = [
            ("nothing", vec![], "cert_chain has 0 elements"),
            ("no roots", good()[..1].to_vec(), "cert_chain has 1 elements"),
            ("an empty leaf", with(0, ""), "cert_chain[0] is not a certificate"),
            ("a leaf of garbage", with(0, garbage), "cert_chain[0] is not a certificate"),
            ("an empty intermediate", with(1, "\n"), "cert_chain[1] is not a certificate"),
            ("roots of garbage", with(2, garbage), "cert_chain[2] holds no usable roots"),
            ("no root in the last", with(2, ""), "cert_chain[2] holds no usable roots"),
            ("a root that signed nothing", with(2, &stranger.root_pem()), "cert_chain does not verify"),
            ("no issuing certificate", without_issuing.collect(), "cert_chain does not verify"),
            ("another's key", authority.answer(&other_key, &web(), &LeafOptions::default()), "public key"),
            (
                "another identity",
                leaf(|leaf| leaf.names = Some(vec!["spiffe://cluster.local/ns/shop/sa/api".to_owned()])),
                api,
            ),
            (
                "a second identity",
                leaf(|leaf| {
                    leaf.names = Some(vec![web().to_string(), "spiffe://cluster.local/ns/shop/sa/api".to_owned()])
                }),
                api,
            ),
            ("an expired leaf", authority.answer(&info, &web(), &expired), "cert_chain does not verify"),
        ];
        for (what, answer, words) in table {
            let error = Issued::from_answer(&answer, Arc::clone(&key), &web(), now).unwrap_err().to_string();
            assert!(error.contains(words), "{what}: {error}");
        }
    }
}
