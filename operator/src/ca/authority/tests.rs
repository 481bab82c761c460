use std::{fs, os::unix::fs::PermissionsExt as _, sync::LazyLock};

use rustls_pki_types::pem::PemObject as _;
use underpass_identity::{Issued, TrustBundle, key};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use super::*;
use crate::ca::{
    roots::{Phase, phase, to_pem},
    state::{FileState, KEY_FILE, NEXT_KEY_FILE, ROOTS_FILE},
};

const DAY: Duration = Duration::from_secs(86_400);

static NOW: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);

fn web() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn open(&self, now: SystemTime) -> Result<Authority, OpenError> {
        self.open_with(AuthorityOptions::new(TrustDomain::default()), now).await
    }

    async fn open_with(&self, options: AuthorityOptions, now: SystemTime) -> Result<Authority, OpenError> {
        Authority::open(Arc::new(FileState::open(self.0.path()).unwrap()), options, now).await
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.0.path().join(file)).ok()
    }

    fn write(&self, file: &str, text: &str, mode: u32) {
        let path = self.0.path().join(file);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// What a node proxy would make of a signature, with all its checks.
fn issue(authority: &Authority, ttl: Duration, now: SystemTime) -> Issued {
    let key = Arc::new(key::KeyPair::generate().unwrap());
    let answer = authority.sign(&key.csr_pem(&web()).unwrap(), &web(), ttl, now).unwrap();
    Issued::from_answer(&answer, key, &web(), now).unwrap()
}

fn count(bundle: &str) -> usize {
    TrustBundle::from_pem(bundle).unwrap().roots().len()
}

/// The name of the root that issued an answer's issuing certificate.
fn signer(issued: &Issued) -> String {
    let (_, issuing) = X509Certificate::from_der(&issued.certificate.chain()[1]).unwrap();
    issuing.issuer().to_string()
}

#[tokio::test]
async fn the_first_start_makes_a_root_and_the_next_one_keeps_it() {
    let place = Place::new();
    let first = place.open(*NOW).await.unwrap();
    let root = place.read(ROOTS_FILE).unwrap();
    assert_eq!(first.roots_pem(), root);
    let mode = |file: &str| fs::metadata(place.0.path().join(file)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(KEY_FILE), mode(ROOTS_FILE)), (0o600, 0o644));
    let der = CertificateDer::from_pem_slice(root.as_bytes()).unwrap();
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    assert!(parsed.is_ca());
    let life = parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
    assert_eq!(life, 3650 * 86_400 + 60);
    let second = place.open(*NOW).await.unwrap();
    assert_eq!(second.roots_pem(), root);
    assert_eq!(signer(&issue(&first, DAY, *NOW)), signer(&issue(&second, DAY, *NOW)));
}

#[tokio::test]
async fn a_leaf_has_what_was_decided_and_nothing_from_the_request() {
    let authority = Place::new();
    let authority = authority.open(*NOW).await.unwrap();
    let key = KeyPair::generate().unwrap();
    let mut asked = CertificateParams::new(vec!["operator.example".to_owned()]).unwrap();
    asked.distinguished_name.push(DnType::OrganizationName, "system:masters");
    asked.subject_alt_names.push(SanType::URI("spiffe://cluster.local/ns/shop/sa/admin".try_into().unwrap()));
    asked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let csr = asked.serialize_request(&key).unwrap().pem().unwrap();
    let answer = authority.sign(&csr, &web(), DAY, *NOW).unwrap();
    assert_eq!(answer.len(), 3);
    let der = CertificateDer::from_pem_slice(answer[0].as_bytes()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]);
    assert!(!leaf.is_ca());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any && !usage.code_signing);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    assert_eq!(leaf.raw_serial().len(), 16);
    let again = authority.sign(&csr, &web(), DAY, *NOW).unwrap();
    let again = CertificateDer::from_pem_slice(again[0].as_bytes()).unwrap();
    let (_, again) = X509Certificate::from_der(&again).unwrap();
    assert_ne!(leaf.raw_serial(), again.raw_serial());
}

#[tokio::test]
async fn a_leaf_lives_as_asked_within_limits() {
    let place = Place::new();
    let authority = place.open(*NOW).await.unwrap();
    for (asked, given) in [(0, 86_400), (1, 60), (60, 60), (3600, 3600), (86_400, 86_400), (u64::MAX, 86_400)] {
        let leaf = issue(&authority, Duration::from_secs(asked), *NOW).certificate;
        let life = leaf.not_after().duration_since(leaf.not_before()).unwrap().as_secs();
        assert_eq!(life, given + 60, "asked for {asked} s");
        let early = NOW.duration_since(leaf.not_before()).unwrap();
        assert!((60..=61).contains(&early.as_secs()), "{early:?}");
    }
}

#[tokio::test]
async fn signs_only_for_its_trust_domain_and_only_requests() {
    let place = Place::new();
    let authority = place.open(*NOW).await.unwrap();
    let stranger: Identity = "spiffe://away.example/ns/shop/sa/web".parse().unwrap();
    let csr = key::KeyPair::generate().unwrap().csr_pem(&stranger).unwrap();
    assert_eq!(authority.sign(&csr, &stranger, DAY, *NOW).unwrap_err().reason(), "trust_domain");
    assert_eq!(authority.sign("hello", &web(), DAY, *NOW).unwrap_err().reason(), "bad_request");
}

#[tokio::test]
async fn the_issuing_certificate_is_replaced_at_half_and_what_it_signed_stays_good() {
    let place = Place::new();
    let authority = place.open(*NOW).await.unwrap();
    let issuing = |authority: &Authority, now| issue(authority, DAY, now).certificate.chain()[1].clone();
    let first = issuing(&authority, *NOW);
    authority.refresh(*NOW + DAY * 14).await.unwrap();
    assert_eq!(issuing(&authority, *NOW + DAY * 14), first);
    let just_before = *NOW + DAY * 15;
    let key = Arc::new(key::KeyPair::generate().unwrap());
    let old = authority.sign(&key.csr_pem(&web()).unwrap(), &web(), DAY, just_before).unwrap();
    authority.refresh(*NOW + DAY * 16).await.unwrap();
    assert_ne!(issuing(&authority, *NOW + DAY * 16), first);
    assert!(Issued::from_answer(&old, key, &web(), *NOW + DAY * 16 - Duration::from_secs(5)).is_ok());
}

#[tokio::test]
async fn a_leaf_never_outlives_the_issuing_certificate() {
    let place = Place::new();
    let authority = place.open(*NOW).await.unwrap();
    let late = *NOW + DAY * 30 - Duration::from_secs(3600);
    let leaf = issue(&authority, DAY, late).certificate;
    assert!(leaf.not_after() <= *NOW + DAY * 30);
    let csr = key::KeyPair::generate().unwrap().csr_pem(&web()).unwrap();
    assert_eq!(authority.sign(&csr, &web(), DAY, *NOW + DAY * 31).unwrap_err().reason(), "issuing_expired");
}

#[test]
fn a_replacement_has_two_phases() {
    let (begins, overlap) = (*NOW, DAY * 2);
    let second = Duration::from_secs(1);
    for (now, wanted) in [
        (begins - DAY, Phase::Announced),
        (begins, Phase::Announced),
        (begins + overlap - second, Phase::Announced),
        (begins + overlap, Phase::Switched),
        (begins + overlap * 2 - second, Phase::Switched),
        (begins + overlap * 2, Phase::Finished),
    ] {
        assert_eq!(phase(Some(begins), now, overlap), wanted);
    }
    assert_eq!(phase(None, begins, overlap), Phase::Single);
}

#[tokio::test]
async fn a_root_is_replaced_with_overlap_and_roots_of_others_stay() {
    let (place, elsewhere) = (Place::new(), Place::new());
    let authority = place.open(*NOW).await.unwrap();
    let old_root = authority.roots_pem();
    // Somebody adds the root of another mesh, by hand.
    let foreign = elsewhere.open(*NOW).await.unwrap().roots_pem();
    place.write(ROOTS_FILE, &format!("{foreign}{old_root}"), 0o644);
    authority.refresh(*NOW).await.unwrap();
    assert_eq!(count(&authority.roots_pem()), 2);
    let before = issue(&authority, DAY, *NOW);

    authority.replace_root(*NOW).await.unwrap();
    assert!(matches!(authority.replace_root(*NOW).await, Err(OpenError::Roots(RootsError::Replacing))));
    assert_eq!(count(&authority.roots_pem()), 3);
    assert_eq!(signer(&issue(&authority, DAY, *NOW)), signer(&before), "announced: the old one signs");

    let switched = *NOW + DAY * 2;
    authority.refresh(switched).await.unwrap();
    let after = issue(&authority, DAY, switched);
    assert_ne!(signer(&after), signer(&before), "switched: the new one signs");
    assert_eq!(count(&authority.roots_pem()), 3);
    // Another process of the operator, or the same after a restart, sees it alike.
    assert_eq!(signer(&issue(&place.open(switched).await.unwrap(), DAY, switched)), signer(&after));

    let finished = *NOW + DAY * 4;
    authority.refresh(finished).await.unwrap();
    let bundle = authority.roots_pem();
    assert_eq!(count(&bundle), 2);
    let (old, kept) = (TrustBundle::from_pem(&old_root).unwrap(), TrustBundle::from_pem(&bundle).unwrap());
    assert!(kept.roots().all(|root| Some(root) != old.roots().next()));
    assert!(kept.roots().any(|root| Some(root) == TrustBundle::from_pem(&foreign).unwrap().roots().next()));
    assert_eq!(place.read(NEXT_KEY_FILE), None);
    assert_eq!(signer(&issue(&authority, DAY, finished)), signer(&after));
}

#[tokio::test]
async fn a_replacement_that_was_interrupted_goes_on() {
    // Before the new root's certificate was written.
    let place = Place::new();
    let authority = place.open(*NOW).await.unwrap();
    let next = KeyPair::generate().unwrap();
    place.write(NEXT_KEY_FILE, &next.serialize_pem(), 0o600);
    authority.refresh(*NOW).await.unwrap();
    assert_eq!(count(&authority.roots_pem()), 2);
    // After the old root's certificate was removed, before the keys changed places.
    let bundle = TrustBundle::from_pem(&authority.roots_pem()).unwrap();
    let info = next.subject_public_key_info();
    let new_root =
        bundle.roots().find(|root| X509Certificate::from_der(root).unwrap().1.public_key().raw == info).unwrap();
    place.write(ROOTS_FILE, &to_pem([new_root]), 0o644);
    let authority = place.open(*NOW).await.unwrap();
    assert_eq!(place.read(NEXT_KEY_FILE), None);
    assert_eq!(place.read(KEY_FILE).unwrap(), next.serialize_pem());
    issue(&authority, DAY, *NOW);
}

#[tokio::test]
async fn an_old_root_is_replaced_by_itself() {
    let place = Place::new();
    let authority = place.open(*NOW).await.unwrap();
    let root = authority.roots_pem();
    authority.refresh(*NOW + DAY * 3200).await.unwrap();
    assert_eq!(authority.roots_pem(), root);
    authority.refresh(*NOW + DAY * 3300).await.unwrap();
    assert_eq!(count(&authority.roots_pem()), 2);
    authority.refresh(*NOW + DAY * 3305).await.unwrap();
    assert_eq!(count(&authority.roots_pem()), 1);
    assert_ne!(authority.roots_pem(), root);
}

#[tokio::test]
async fn an_expired_root_of_others_is_no_longer_given() {
    let (place, elsewhere) = (Place::new(), Place::new());
    let root = place.open(*NOW).await.unwrap().roots_pem();
    let foreign = elsewhere.open(*NOW - DAY * 3651).await.unwrap().roots_pem();
    place.write(ROOTS_FILE, &format!("{root}{foreign}"), 0o644);
    assert_eq!(count(&place.open(*NOW).await.unwrap().roots_pem()), 1);
    assert_eq!(count(&place.read(ROOTS_FILE).unwrap()), 2);
}

#[tokio::test]
async fn refuses_files_that_do_not_fit_or_are_open_to_others() {
    let key = KeyPair::generate().unwrap().serialize_pem();
    let root = Place::new().open(*NOW).await.unwrap().roots_pem();
    let leaf = {
        let key = KeyPair::generate().unwrap();
        CertificateParams::new(vec!["leaf.example".to_owned()]).unwrap().self_signed(&key).unwrap().pem()
    };
    let table = [
        ("no key", vec![(ROOTS_FILE, root.clone(), 0o644)], "root-key.pem: is missing although root.pem exists"),
        (
            "another key",
            vec![(ROOTS_FILE, root.clone(), 0o644), (KEY_FILE, key.clone(), 0o600)],
            "holds no certificate",
        ),
        ("an open key", vec![(KEY_FILE, key, 0o644)], "has mode 0644"),
        ("a broken key", vec![(KEY_FILE, "hello".to_owned(), 0o600)], "root-key.pem: is no private key"),
        ("a writable root", vec![(ROOTS_FILE, root, 0o666)], "has mode 0666"),
        ("an empty root", vec![(ROOTS_FILE, String::new(), 0o644)], "root.pem: holds no certificate"),
        ("a leaf as root", vec![(ROOTS_FILE, leaf, 0o644)], "no certificate of an authority"),
    ];
    for (what, files, words) in table {
        let place = Place::new();
        for (file, text, mode) in files {
            place.write(file, &text, mode);
        }
        let Err(error) = place.open(*NOW).await else { panic!("{what} is taken") };
        let story = chain(&error);
        assert!(story.contains(words), "{what}: {story}");
    }
}

#[tokio::test]
async fn a_failed_refresh_leaves_it_signing() {
    let place = Place::new();
    let authority = place.open(*NOW).await.unwrap();
    place.write(ROOTS_FILE, "", 0o644);
    assert!(authority.refresh(*NOW).await.is_err());
    issue(&authority, DAY, *NOW);
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn a_revoked_identity_gets_certificates_that_are_not_and_the_next_process_remembers() {
    let place = Place::new();
    let authority = place.open(*NOW).await.unwrap();
    let mut told = authority.told();
    let before = issue(&authority, DAY, *NOW).certificate;
    authority.revoke(Revoke::Identity(web()), *NOW).await.unwrap();
    assert!(told.has_changed().unwrap());
    let wanted = Revocation::Identity { identity: web(), before: seconds(*NOW) };
    assert_eq!(told.borrow_and_update().revocations.first(), Some(&wanted));
    let revocations = underpass_identity::Revocations::new();
    revocations.set_told([wanted.clone()]);
    assert!(revocations.check(before.chain()).is_err());
    let soon = *NOW + Duration::from_secs(1);
    assert!(revocations.check(issue(&authority, DAY, soon).certificate.chain()).is_ok());
    let next = place.open(soon).await.unwrap();
    assert_eq!(*next.told().borrow().revocations, [wanted]);
    assert!(revocations.check(issue(&next, DAY, soon).certificate.chain()).is_ok());
    authority.restore(Revoke::Identity(web()), soon).await.unwrap();
    assert_eq!(authority.told().borrow().revocations.len(), 0, "taken back");
    let again = authority.restore(Revoke::Identity(web()), soon).await.unwrap_err();
    assert_eq!(again.to_string(), format!("{} is not revoked", web()));
    authority.revoke(Revoke::Identity(web()), soon).await.unwrap();
    next.refresh(soon).await.unwrap();
    assert_eq!(next.told().borrow().revocations.len(), 1);
    // When no old certificate can be left.
    next.refresh(soon + DAY + Duration::from_secs(61)).await.unwrap();
    assert_eq!(next.told().borrow().revocations.len(), 0);
}

#[tokio::test]
async fn a_revoked_issuing_certificate_signs_no_more_and_one_is_replaced_when_somebody_asks() {
    let place = Place::new();
    let authority = place.open(*NOW).await.unwrap();
    let serial = |authority: &Authority| authority.status().issuing_serial;
    let (first, leaf) = (serial(&authority), issue(&authority, DAY, *NOW).certificate);
    authority.revoke(Revoke::Serial(first.parse().unwrap()), *NOW).await.unwrap();
    let second = serial(&authority);
    assert_ne!(first, second);
    let revocations = underpass_identity::Revocations::new();
    revocations.set_told(authority.told().borrow().revocations.iter().cloned());
    assert!(revocations.check(leaf.chain()).is_err(), "all that it signed is revoked with it");
    assert!(revocations.check(issue(&authority, DAY, *NOW).certificate.chain()).is_ok());
    authority.refresh(*NOW).await.unwrap();
    assert_eq!(serial(&authority), second);
    authority.replace_issuing(*NOW).await.unwrap();
    assert_ne!(serial(&authority), second);
}

#[tokio::test]
async fn short_lives_have_short_phases() {
    let place = Place::new();
    let ttl = Duration::from_secs(8);
    let options = AuthorityOptions { most_ttl: ttl, overlap: ttl, ..AuthorityOptions::new(TrustDomain::default()) };
    let authority = place.open_with(options, *NOW).await.unwrap();
    let leaf = issue(&authority, Duration::ZERO, *NOW).certificate;
    assert!(leaf.not_after() <= *NOW + ttl);
    authority.replace_root(*NOW).await.unwrap();
    for (after, phase, roots) in [(7, "announced", 2), (8, "switched", 2), (15, "switched", 2), (16, "single", 1)] {
        authority.refresh(*NOW + Duration::from_secs(after)).await.unwrap();
        let status = authority.status();
        assert_eq!((status.phase, status.roots.len()), (phase, roots), "after {after} s");
    }
}

/// A certificate of an authority below another one, as cert-manager would leave it in a Secret.
struct Given {
    root: CertifiedIssuer<'static, KeyPair>,
    place: Place,
}

impl Given {
    fn new() -> Self {
        let given = Self {
            root: CertifiedIssuer::self_signed(ca("company root", None), KeyPair::generate().unwrap()).unwrap(),
            place: Place::new(),
        };
        given.issue("intermediate", None);
        given.place.write("ca.crt", &given.root.pem(), 0o644);
        given
    }

    fn issue(&self, name: &str, path_length: Option<u8>) {
        let key = KeyPair::generate().unwrap();
        let certificate = ca(name, path_length).signed_by(&key, &self.root).unwrap();
        self.place.write("tls.crt", &certificate.pem(), 0o644);
        self.place.write("tls.key", &key.serialize_pem(), 0o644);
    }

    fn options(&self) -> AuthorityOptions {
        let given = Some(self.place.0.path().to_owned());
        AuthorityOptions { given, ..AuthorityOptions::new(TrustDomain::default()) }
    }
}

fn ca(name: &str, path_length: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path_length.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, *NOW - BACKDATED, *NOW + DAY * 90);
    params
}

#[tokio::test]
async fn signs_below_a_given_authority_and_follows_when_it_is_replaced() {
    let (place, given) = (Place::new(), Given::new());
    let authority = place.open_with(given.options(), *NOW).await.unwrap();
    let issued = issue(&authority, DAY, *NOW);
    assert_eq!(issued.certificate.chain().len(), 3, "leaf, issuing, given");
    assert_eq!(issued.roots, TrustBundle::from_pem(&given.root.pem()).unwrap());
    assert_eq!(signer(&issued), "CN=intermediate");
    assert_eq!(place.read(KEY_FILE), None, "no root of our own is made");
    given.issue("next intermediate", None);
    authority.refresh(*NOW).await.unwrap();
    assert_eq!(signer(&issue(&authority, DAY, *NOW)), "CN=next intermediate");
    let refused = authority.replace_root(*NOW).await.unwrap_err();
    assert!(matches!(refused, OpenError::Roots(RootsError::Given)), "{refused}");
    authority.revoke(Revoke::Identity(web()), *NOW).await.unwrap();
    assert_eq!(authority.told().borrow().revocations.len(), 1);
}

#[tokio::test]
async fn a_given_authority_that_cannot_sign_is_refused_by_name() {
    let open =
        async |given: &Given| Place::new().open_with(given.options(), *NOW).await.map(drop).unwrap_err().to_string();
    let given = Given::new();
    given.issue("last", Some(0));
    assert!(open(&given).await.contains("tls.crt: may sign no issuing certificate"));
    let given = Given::new();
    given.place.write("tls.key", &KeyPair::generate().unwrap().serialize_pem(), 0o600);
    assert!(open(&given).await.contains("tls.crt: holds no certificate for the key"));
    let given = Given::new();
    fs::remove_file(given.place.0.path().join("ca.crt")).unwrap();
    assert!(open(&given).await.contains("ca.crt"));
}

#[tokio::test]
async fn certificates_live_as_long_as_is_wanted_and_allowed() {
    let place = Place::new();
    let authority = place.open(*NOW).await.unwrap();
    let lives = || {
        let key = key::KeyPair::generate().unwrap();
        let answer = authority.sign(&key.csr_pem(&web()).unwrap(), &web(), Duration::ZERO, *NOW).unwrap();
        let leaf = CertificateDer::from_pem_slice(answer[0].as_bytes()).unwrap();
        let ends = X509Certificate::from_der(&leaf).unwrap().1.validity().not_after.timestamp();
        ends - i64::try_from(NOW.duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
    };
    for (wanted, is_news, expected) in [
        (None, false, 86_400),
        (Some(3600), true, 3600),
        (Some(3600), false, 3600),
        (Some(90_000), true, 86_400),
        (None, true, 86_400),
    ] {
        assert_eq!(authority.shorten(wanted.map(Duration::from_secs)), is_news, "{wanted:?}");
        assert!((lives() - expected).abs() <= 1, "{wanted:?}: {}", lives());
    }
}
