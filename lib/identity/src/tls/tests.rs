use std::time::Duration;

use proptest::prelude::*;
use rustls::{CipherSuite, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::testing::{LeafOptions, TestAuthority};
use underpass_model::TrustDomain;

type Ends = (client::TlsStream<tokio::io::DuplexStream>, server::TlsStream<tokio::io::DuplexStream>);

fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn one_of(account: &str) -> Expected {
    Expected::OneOf([identity(account)].into())
}

fn shake(client: &Credentials, server: &Credentials) -> impl Future<Output = std::io::Result<Ends>> {
    shake_with(Arc::clone(&client.client), Arc::clone(&server.server))
}

fn shake_with(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> impl Future<Output = std::io::Result<Ends>> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connect = async {
        let mut stream = TlsConnector::from(client).connect(server_name(), near).await?;
        // In TLS 1.3 a client learns only from the first read that its certificate was refused.
        let _read = stream.read(&mut [0]).await?;
        Ok::<_, std::io::Error>(stream)
    };
    let serve = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        Ok::<_, std::io::Error>(stream)
    };
    Box::pin(async { tokio::try_join!(connect, serve) })
}

#[tokio::test]
async fn two_workloads_shake_hands_as_the_mesh_wants_it() {
    let authority = TestAuthority::new();
    let (web, api) = (authority.credentials(&identity("web")), authority.credentials(&identity("api")));
    let (client, server) = shake(&web, &api).await.unwrap();
    let (_, client) = client.get_ref();
    let (_, server) = server.get_ref();
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.alpn_protocol(), Some(ALPN));
    assert_eq!(server.server_name(), None, "no SNI");
    assert_eq!(client.negotiated_cipher_suite().unwrap().suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(client.tls13_tickets_received(), 0);
    let now = SystemTime::now();
    assert_eq!(check_peer(client.peer_certificates().unwrap(), &one_of("api"), now), Ok(identity("api")));
    let domain = Expected::TrustDomain(TrustDomain::default());
    assert_eq!(check_peer(server.peer_certificates().unwrap(), &domain, now), Ok(identity("web")));
}

#[tokio::test]
async fn a_classical_client_that_prefers_256_bits_is_served() {
    let authority = TestAuthority::new();
    let (web, api) = (authority.credentials(&identity("web")), authority.credentials(&identity("api")));
    let mut old = ClientConfig::clone(&web.client);
    old = rebuild_with(&old, &authority, |provider| {
        provider.cipher_suites.reverse();
        provider.kx_groups.retain(|group| group.name() == NamedGroup::secp256r1);
    });
    let (client, _server) = shake_with(Arc::new(old), Arc::clone(&api.server)).await.unwrap();
    let (_, client) = client.get_ref();
    assert_eq!(client.negotiated_cipher_suite().unwrap().suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::secp256r1);
}

/// A client's configuration with another choice of cryptography.
fn rebuild_with(
    config: &ClientConfig,
    authority: &TestAuthority,
    change: impl FnOnce(&mut CryptoProvider),
) -> ClientConfig {
    let mut provider = CryptoProvider::clone(config.crypto_provider());
    change(&mut provider);
    let provider = Arc::new(provider);
    let store = Arc::new(authority.roots().store());
    let mut changed = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ChainVerifier::new(&provider, store)))
        .with_client_cert_resolver(Arc::clone(&config.client_auth_cert_resolver));
    changed.alpn_protocols.clone_from(&config.alpn_protocols);
    changed
}

#[tokio::test]
async fn a_client_without_a_certificate_fails_in_the_handshake() {
    let authority = TestAuthority::new();
    let api = authority.credentials(&identity("api"));
    let mut anonymous = ClientConfig::clone(&api.client);
    anonymous.client_auth_cert_resolver = Arc::new(NoCertificate);
    assert!(shake_with(Arc::new(anonymous), Arc::clone(&api.server)).await.is_err());
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_server_knows_no_older_version_and_no_other_protocol() {
    let authority = TestAuthority::new();
    let api = authority.credentials(&identity("api"));
    let store = authority.roots().store();
    let old = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    assert!(shake_with(Arc::new(old), Arc::clone(&api.server)).await.is_err());
    let mut other = ClientConfig::clone(&api.client);
    other.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert!(shake_with(Arc::new(other), Arc::clone(&api.server)).await.is_err());
}

#[tokio::test]
async fn certificates_of_strangers_and_of_other_times_fail_on_either_side() {
    let (ours, theirs) = (TestAuthority::new(), TestAuthority::new());
    let web = ours.credentials(&identity("web"));
    let now = SystemTime::now();
    let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
    let expired = LeafOptions { not_before: now - hour, not_after: now - minute, ..LeafOptions::default() };
    let early = LeafOptions { not_before: now + hour, not_after: now + hour * 2, ..LeafOptions::default() };
    for (what, bad) in [
        ("another root", theirs.credentials_trusting(&identity("api"), &ours.roots())),
        ("expired", ours.forged(&identity("api"), &expired)),
        ("not valid yet", ours.forged(&identity("api"), &early)),
    ] {
        assert!(shake(&bad, &web).await.is_err(), "{what} as a client");
        assert!(shake(&web, &bad).await.is_err(), "{what} as a server");
    }
}

#[tokio::test]
async fn two_roots_meet_when_each_side_trusts_both() {
    let (old, new) = (TestAuthority::new(), TestAuthority::new());
    let both = old.roots().union(&new.roots());
    let web = old.credentials_trusting(&identity("web"), &both);
    let api = new.credentials_trusting(&identity("api"), &both);
    assert!(shake(&web, &api).await.is_ok());
    assert!(shake(&api, &web).await.is_ok());
    let behind = old.credentials(&identity("behind"));
    assert!(shake(&behind, &api).await.is_err(), "a peer that has not heard of the new root");
}

#[tokio::test]
async fn a_second_handshake_is_as_full_as_the_first() {
    let authority = TestAuthority::new();
    let (web, api) = (authority.credentials(&identity("web")), authority.credentials(&identity("api")));
    for _ in 0..2 {
        let (client, _server) = shake(&web, &api).await.unwrap();
        assert_eq!(client.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[test]
fn who_a_peer_is_follows_from_its_names_and_time() {
    let authority = TestAuthority::new();
    let now = SystemTime::now();
    let domain = |name: &str| Expected::TrustDomain(TrustDomain::new(name).unwrap());
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let api = "spiffe://cluster.local/ns/shop/sa/api";
    let away = "spiffe://away.example/ns/shop/sa/web";
    let other = "https://example.com/";
    let nobody = Expected::OneOf([].into());
    // Names in the certificate, whom we expect, who it is or why it is refused.
    let table: [(&[&str], Expected, Result<&str, &str>); 14] = [
        (&[web], one_of("web"), Ok(web)),
        (&[web], one_of("api"), Err("peer_wrong_identity")),
        (&[away], one_of("web"), Err("peer_wrong_identity")),
        (&[web, api], one_of("api"), Ok(api)),
        (&[other, web], one_of("web"), Ok(web)),
        (&[web], nobody, Err("peer_wrong_identity")),
        (&[], one_of("web"), Err("peer_no_identity")),
        (&[other], one_of("web"), Err("peer_no_identity")),
        (&[web], domain("cluster.local"), Ok(web)),
        (&[web, api], domain("cluster.local"), Ok(web)),
        (&[other, web], domain("cluster.local"), Ok(web)),
        (&[away], domain("cluster.local"), Err("peer_wrong_trust_domain")),
        (&[away, web], domain("cluster.local"), Err("peer_wrong_trust_domain")),
        (&["spiffe://cluster.local/ns/shop/sa/"], domain("cluster.local"), Err("peer_no_identity")),
    ];
    for (names, expect, wanted) in table {
        let leaf =
            LeafOptions { names: Some(names.iter().map(|&name| name.to_owned()).collect()), ..LeafOptions::default() };
        let chain = chain_of(&authority, &leaf);
        let found = check_peer(&chain, &expect, now).map_err(|error| error.reason());
        assert_eq!(found, wanted.map(|name| name.parse().unwrap()), "{names:?} against {expect:?}");
    }
}

#[test]
fn a_peer_is_nobody_outside_its_certificates_time() {
    let authority = TestAuthority::new();
    let leaf = LeafOptions::default();
    let chain = chain_of(&authority, &leaf);
    let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
    for (now, wanted) in [
        (leaf.not_before - second, Err("peer_certificate_not_yet_valid")),
        (leaf.not_before + second, Ok(identity("web"))),
        (leaf.not_after - minute, Ok(identity("web"))),
        (leaf.not_after + second, Err("peer_certificate_expired")),
    ] {
        assert_eq!(check_peer(&chain, &one_of("web"), now).map_err(|error| error.reason()), wanted);
    }
}

fn chain_of(authority: &TestAuthority, leaf: &LeafOptions) -> Vec<CertificateDer<'static>> {
    use rustls_pki_types::pem::PemObject as _;
    let key = crate::key::KeyPair::generate().unwrap();
    let answer = authority.answer(&key.public_key_info(), &identity("web"), leaf);
    answer.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).collect()
}

#[test]
fn refuses_what_is_no_certificate() {
    let now = SystemTime::now();
    assert_eq!(check_peer(&[], &one_of("web"), now), Err(PeerError::NoCertificate));
    let garbage = CertificateDer::from(vec![0x30, 0x03, 0x02, 0x01, 0x00]);
    assert_eq!(check_peer(&[garbage], &one_of("web"), now).unwrap_err().reason(), "peer_certificate_malformed");
}

#[test]
fn credentials_do_not_print_keys() {
    let printed = format!("{:?}", TestAuthority::new().credentials(&identity("web")));
    assert!(
        printed.starts_with("Credentials { identity: spiffe://cluster.local/ns/shop/sa/web, not_after:"),
        "{printed}"
    );
}

proptest! {
    #[test]
    fn garbage_is_never_somebody(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(check_peer(&[CertificateDer::from(bytes)], &one_of("web"), SystemTime::now()).is_err());
    }

    #[test]
    fn a_damaged_certificate_never_panics(at in 0_usize..700, with in any::<u8>(), cut in 0_usize..700) {
        thread_local! {
            static LEAF: Vec<u8> = chain_of(&TestAuthority::new(), &LeafOptions::default())[0].to_vec();
        }
        let mut bytes = LEAF.with(Clone::clone);
        let at = at % bytes.len();
        bytes[at] = with;
        let domain = Expected::TrustDomain(TrustDomain::default());
        let _whole = check_peer(&[CertificateDer::from(bytes.clone())], &domain, SystemTime::now());
        bytes.truncate(cut);
        let _part = check_peer(&[CertificateDer::from(bytes)], &domain, SystemTime::now());
    }

    #[test]
    fn garbage_names_are_errors(names in proptest::collection::vec("[ -~]{0,40}", 0..4)) {
        let leaf = LeafOptions { names: Some(names), ..LeafOptions::default() };
        thread_local! {
            static AUTHORITY: TestAuthority = TestAuthority::new();
        }
        let chain = AUTHORITY.with(|authority| chain_of(authority, &leaf));
        prop_assert!(check_peer(&chain, &one_of("web"), SystemTime::now()).is_err());
    }
}
