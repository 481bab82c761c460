use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::{
    certificate::set_validity,
    testing::{LeafOptions, TestAuthority, revocation_list},
};

fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

/// A chain whose leaf began so long ago.
fn chain(authority: &TestAuthority, account: &str, age: Duration) -> Vec<CertificateDer<'static>> {
    let leaf = LeafOptions { not_before: SystemTime::now() - age, ..LeafOptions::default() };
    authority.chain(&identity(account), &leaf)
}

fn serial(certificate: &CertificateDer<'_>) -> SerialNumber {
    SerialNumber::new(X509Certificate::from_der(certificate).unwrap().1.raw_serial())
}

fn seconds_ago(seconds: u64) -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() - seconds
}

#[test]
fn an_identitys_old_certificates_are_revoked_and_its_new_ones_are_not() {
    let authority = TestAuthority::new();
    let (old, new) = (chain(&authority, "web", Duration::from_secs(60)), chain(&authority, "web", Duration::ZERO));
    let other = chain(&authority, "api", Duration::from_secs(60));
    let revocations = Revocations::new();
    assert_eq!(revocations.check(&old), Ok(()));
    revocations.set_told([Revocation::Identity { identity: identity("web"), before: seconds_ago(30) }]);
    assert_eq!(revocations.check(&old), Err(PeerError::Revoked { serial: serial(&old[0]) }));
    assert_eq!(revocations.check(&old).unwrap_err().reason(), "peer_certificate_revoked");
    assert_eq!((revocations.check(&new), revocations.check(&other)), (Ok(()), Ok(())));
    revocations.set_told([]);
    assert_eq!(revocations.check(&old), Ok(()), "taken back");
}

#[test]
fn a_serial_number_revokes_a_leaf_or_all_that_an_issuing_certificate_signed() {
    let (authority, foreign) = (TestAuthority::new(), TestAuthority::new());
    let (web, api) = (chain(&authority, "web", Duration::ZERO), chain(&authority, "api", Duration::ZERO));
    let elsewhere = chain(&foreign, "web", Duration::ZERO);
    let revocations = Revocations::new();
    for (revoked, wanted) in [(&web[0], [false, true, true]), (&web[1], [false, false, true])] {
        revocations.set_told([Revocation::Serial(serial(revoked))]);
        assert_eq!([&web, &api, &elsewhere].map(|chain| revocations.check(chain).is_ok()), wanted);
    }
}

#[tokio::test]
async fn who_waits_learns_of_a_revocation_and_of_no_other() {
    let authority = TestAuthority::new();
    let web = chain(&authority, "web", Duration::from_secs(60));
    let revocations = Revocations::new();
    let mut waiting = std::pin::pin!(revocations.wait(Presented::of(&web)));
    revocations.set_told([Revocation::Identity { identity: identity("api"), before: seconds_ago(0) }]);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    revocations.set_told([Revocation::Identity { identity: identity("web"), before: seconds_ago(0) }]);
    assert_eq!(waiting.await, serial(&web[0]));
    assert_eq!(revocations.wait(Presented::of(&web)).await, serial(&web[0]), "who comes late");
}

struct Listing {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Listing {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn leaf(&self, serial: u64) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.serial_number = Some(serial.into());
        set_validity(&mut params, SystemTime::now(), SystemTime::now() + Duration::from_secs(600));
        vec![params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().clone()]
    }

    fn list(&self, serials: &[u64]) -> rcgen::CertificateRevocationList {
        revocation_list(&self.issuer, serials.iter().map(|serial| (*serial).into()))
    }
}

#[test]
fn lists_of_authorities_revoke_their_own_certificates_and_nobody_elses() {
    let (one, two) = (Listing::new("one"), Listing::new("two"));
    let (from_one, from_two) = (one.list(&[7, 9]), two.list(&[8]));
    let revocations = Revocations::new();
    let accepted =
        || [one.leaf(7), one.leaf(8), two.leaf(7), two.leaf(8)].map(|chain| revocations.check(&chain).is_ok());
    assert_eq!(accepted(), [true; 4]);
    let both = format!("{}\n{}", from_one.pem().unwrap(), from_two.pem().unwrap());
    let lists = RevocationLists::read(both.as_bytes()).unwrap();
    assert_eq!(lists.len(), 3);
    revocations.set_lists(lists);
    assert_eq!(accepted(), [false, true, true, false]);
    revocations.set_lists(RevocationLists::read(from_one.der()).unwrap());
    assert_eq!(accepted(), [false, true, true, true], "one list in DER");
    revocations.set_lists(RevocationLists::read(one.list(&[]).der()).unwrap());
    assert_eq!(accepted(), [true; 4], "an empty list");
}

#[test]
fn what_is_no_list_is_refused_whole() {
    let good = Listing::new("one").list(&[7]).pem().unwrap();
    let certificate = TestAuthority::new().root_pem();
    let cut = format!("{good}{}", good.trim_end().trim_end_matches('-'));
    for bad in ["nonsense".to_owned(), certificate.clone(), format!("{good}{certificate}"), "\n".to_owned(), cut] {
        let error = RevocationLists::read(bad.as_bytes()).unwrap_err();
        assert!(matches!(error, ListError::Malformed { .. }), "{error}");
    }
    assert!(RevocationLists::read(&[0x30, 0x03, 1, 1, 1]).is_err());
}
