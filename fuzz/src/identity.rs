//! Names, and the certificates in which peers show them.

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use underpass_identity::{Expected, PeerError, check_peer};
use underpass_model::{Identity, TrustDomain};

/// An identity: taken exactly if it is of the one form, and written as it was.
pub(crate) fn spiffe(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let read = text.parse::<Identity>();
    assert_eq!(read.is_ok(), is_identity(text), "{text:?}");
    assert_eq!(TrustDomain::new(text).is_ok(), is_trust_domain(text), "{text:?}");
    match read {
        Ok(identity) => {
            assert_eq!(identity.to_string(), text);
            let parts = (identity.trust_domain().clone(), identity.namespace(), identity.service_account());
            assert_eq!(Identity::new(parts.0, parts.1, parts.2), Ok(identity.clone()));
        }
        Err(error) => assert!(error.to_string().len() < 8 * 1024),
    }
}

fn is_identity(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let ["spiffe:", "", domain, "ns", namespace, "sa", account] = parts.as_slice() else { return false };
    let is_segment = |segment: &str| {
        segment.chars().all(|c| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_'))
            && segment.chars().any(|c| c != '.')
            && segment.len() <= 253
    };
    is_trust_domain(domain) && is_segment(namespace) && is_segment(account)
}

fn is_trust_domain(text: &str) -> bool {
    let allowed = text.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_'));
    allowed && !text.is_empty() && text.len() <= 255
}

/// When all of it happens: 2027.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_798_761_600)
}

fn ours() -> Expected {
    Expected::TrustDomain(TrustDomain::default())
}

fn one_of(wanted: &[Identity]) -> Expected {
    Expected::OneOf(wanted.into())
}

/// A leaf as a peer shows it, in DER.
pub(crate) fn certificate(input: &[u8]) {
    let leaf = [CertificateDer::from(input)];
    let seen = check_peer(&leaf, &ours(), now());
    assert!(check_peer(&leaf, &one_of(&[]), now()).is_err());
    match seen {
        Ok(identity) => {
            assert_eq!(identity.trust_domain(), &TrustDomain::default());
            let name = identity.to_string();
            assert!(input.windows(name.len()).any(|part| part == name.as_bytes()), "{name} does not stand in it");
            assert_eq!(check_peer(&leaf, &one_of(std::slice::from_ref(&identity)), now()), Ok(identity));
            // Nothing is valid for ever.
            let ages = Duration::from_secs(400 * 365 * 86_400);
            let later = check_peer(&leaf, &ours(), now() + ages).map_err(|error| error.reason());
            assert!(later == Err("peer_certificate_expired") || outlives(input), "{later:?}");
        }
        Err(PeerError::NoCertificate) => unreachable!("there is one"),
        Err(error) => assert!(error.to_string().len() < 8 * 1024),
    }
}

/// Whether dates of far centuries stand in it: GeneralizedTime.
fn outlives(der: &[u8]) -> bool {
    der.windows(2).any(|part| part == [0x18, 15])
}

/// Names for a certificate, one a line; the first letter says of which kind. The first identity among the URIs is whom a
/// server sees; a client finds each of them.
pub(crate) fn names(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let mut identities = Vec::new();
    for line in text.lines().take(64) {
        let mut letters = line.chars();
        let kind = letters.next();
        let Ok(name) = letters.as_str().try_into() else { continue };
        params.subject_alt_names.push(match kind {
            Some('d') => SanType::DnsName(name),
            Some('m') => SanType::Rfc822Name(name),
            _ => {
                identities.extend(letters.as_str().parse::<Identity>());
                SanType::URI(name)
            }
        });
    }
    static KEY: OnceLock<KeyPair> = OnceLock::new();
    let key = KEY.get_or_init(|| KeyPair::generate().expect("a key"));
    let leaf = params.self_signed(key).expect("names fit a certificate");
    check_names(&[leaf.der().clone()], &identities);
}

fn check_names(leaf: &[CertificateDer<'_>], identities: &[Identity]) {
    let seen = check_peer(leaf, &ours(), now());
    let stranger: Identity = "spiffe://cluster.local/ns/nobody/sa/nobody.at.all".parse().expect("an identity");
    for wanted in identities {
        assert_eq!(check_peer(leaf, &one_of(&[stranger.clone(), wanted.clone()]), now()).as_ref(), Ok(wanted));
    }
    if !identities.contains(&stranger) {
        let reason = if identities.is_empty() { "peer_no_identity" } else { "peer_wrong_identity" };
        let found = check_peer(leaf, &one_of(&[stranger]), now());
        assert_eq!(found.map_err(|error| error.reason()), Err(reason));
    }
    match identities.first() {
        None => assert_eq!(seen.map_err(|error| error.reason()), Err("peer_no_identity")),
        Some(first) if *first.trust_domain() == TrustDomain::default() => assert_eq!(seen.as_ref(), Ok(first)),
        Some(_) => assert_eq!(seen.map_err(|error| error.reason()), Err("peer_wrong_trust_domain")),
    }
}
