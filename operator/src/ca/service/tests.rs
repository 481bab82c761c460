use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use prost_types::{Struct, Value, value::Kind};
use tokio::net::TcpListener;
use tonic::{Code, metadata::MetadataMap, service::InterceptorLayer, transport::Server};
use underpass_identity::{
    CertificateStore, Expected, GrpcAuthority, KeyPair, StoreOptions, check_peer, tls,
    wire::istio_certificate_service_client::IstioCertificateServiceClient,
};
use underpass_model::TrustDomain;
use underpass_runtime::{
    Shutdown,
    control::{Control, ControlOptions},
    tasks,
};

use super::*;
use crate::ca::{AuthorityOptions, FileState, Limits, NotAttested, Serving, Unauthenticated, accept, admit, bearer};

const NAME: &str = "underpass-operator.underpass-system.svc";
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection lasts on which nobody shows a token.
const STRANGER: Duration = Duration::from_millis(500);

fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn authenticate(metadata: &MetadataMap) -> Result<NodeName, Unauthenticated> {
    match bearer(metadata)? {
        "token-a" => Ok(NodeName::new("a").unwrap()),
        _ => Err(Unauthenticated::UnknownToken),
    }
}

async fn open(state: &Path) -> Authority {
    let store = Arc::new(FileState::open(state).unwrap());
    Authority::open(store, AuthorityOptions::new(TrustDomain::default()), SystemTime::now()).await.unwrap()
}

/// Node `a` has the token `token-a` and runs `web` and `api`.
fn service(authority: Authority) -> CertificateService<impl Authenticate, impl Attest> {
    let attest = |node: &NodeName, identity: &Identity| {
        assert_eq!(node.as_str(), "a");
        if ["web", "api"].contains(&identity.service_account()) { Ok(()) } else { Err(NotAttested::NotOnNode) }
    };
    CertificateService::new(authority, authenticate, attest)
}

/// An operator that serves certificates on loopback, and what a client of it needs.
struct Bench {
    place: tempfile::TempDir,
    address: SocketAddr,
    authority: Authority,
    shutdown: Shutdown,
}

impl Bench {
    async fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let authority = open(&place.path().join("state")).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let config = Serving::config(&authority, &[NAME.to_owned()]).unwrap();
        let limits = Limits { stranger: STRANGER, ..Limits::default() };
        let incoming = accept(listener, config, limits, shutdown.clone());
        let admit = InterceptorLayer::new(admit(authenticate));
        let server = Server::builder().layer(admit).add_service(service(authority.clone()).into_server());
        tasks::spawn("server", async move { Box::pin(server.serve_with_incoming(incoming)).await.unwrap() });
        std::fs::write(place.path().join("token"), "token-a\n").unwrap();
        Self { place, address, authority, shutdown }
    }

    fn control(&self, name: &str) -> Control {
        self.control_at(self.address, name)
    }

    fn control_at(&self, address: SocketAddr, name: &str) -> Control {
        let file = |name: &str| -> std::path::PathBuf { Path::new(self.place.path()).join(name) };
        Control::new(ControlOptions {
            address: format!("https://{address}"),
            root_file: file("state/root.pem"),
            server_name: name.to_owned(),
            token_file: file("token"),
        })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.request();
    }
}

#[tokio::test]
async fn a_store_gets_certificates_with_which_workloads_talk() {
    let bench = Bench::new().await;
    let authority = GrpcAuthority::for_cluster(bench.control(NAME), "Kubernetes").unwrap();
    let (store, task) = CertificateStore::new(Arc::new(authority), StoreOptions::default());
    tasks::spawn("store", task.run(bench.shutdown.clone()));
    let web = store.wait(&identity("web"), PATIENCE).await.unwrap();
    let api = store.wait(&identity("api"), PATIENCE).await.unwrap();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connect = tokio_rustls::TlsConnector::from(Arc::clone(&web.client)).connect(tls::server_name(), near);
    let accept = tokio_rustls::TlsAcceptor::from(Arc::clone(&api.server)).accept(far);
    let (client, server) = tokio::try_join!(connect, accept).unwrap();
    let now = SystemTime::now();
    let expected = Expected::OneOf([identity("api")].into());
    assert!(check_peer(client.get_ref().1.peer_certificates().unwrap(), &expected, now).is_ok());
    let expected = Expected::TrustDomain(TrustDomain::default());
    assert_eq!(check_peer(server.get_ref().1.peer_certificates().unwrap(), &expected, now).unwrap(), identity("web"));
    let _want = store.want(&identity("stranger"));
    let mut changes = store.changes();
    let refused = async {
        loop {
            if let Some(error) = store.status().into_iter().find_map(|status| status.last_error) {
                return error;
            }
            changes.changed().await.unwrap();
        }
    };
    let error = tokio::time::timeout(PATIENCE, refused).await.unwrap();
    assert!(error.contains("PermissionDenied") && error.contains("node a may not"), "{error}");
}

#[tokio::test]
async fn a_client_that_wants_another_name_or_root_does_not_connect() {
    let bench = Bench::new().await;
    assert!(bench.control(NAME).channel().await.is_ok());
    assert!(bench.control("other.example").channel().await.is_err());
    let other = tempfile::tempdir().unwrap();
    let roots = open(other.path()).await.roots_pem();
    std::fs::write(bench.place.path().join("state/root.pem"), roots).unwrap();
    assert!(bench.control(NAME).channel().await.is_err());
}

/// A way to an address that counts who takes it.
async fn counted(to: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counting = Arc::clone(&count);
    tasks::spawn("counted", async move {
        while let Ok((mut near, _)) = listener.accept().await {
            counting.fetch_add(1, Ordering::Relaxed);
            let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
            tasks::spawn("forward", async move {
                let _how = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (address, count)
}

#[tokio::test]
async fn a_connection_without_a_token_is_ended_and_one_with_a_token_lasts() {
    let bench = Bench::new().await;
    let (address, connections) = counted(bench.address).await;
    let channel = bench.control_at(address, NAME).channel().await.unwrap();
    let mut known = IstioCertificateServiceClient::new(channel);
    let mut call = async |token: &'static str| {
        let mut request = Request::new(IstioCertificateRequest::default());
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        known.create_certificate(request).await.unwrap_err().code()
    };
    assert_eq!(call("token-a").await, Code::InvalidArgument, "known, and asked for nothing");
    // A stranger who came later is gone, so the first one's time would be over too.
    let roots = rustls_pki_types::pem::PemObject::from_pem_slice(bench.authority.roots_pem().as_bytes()).unwrap();
    let mut store = rustls::RootCertStore::empty();
    store.add(roots).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![tls::ALPN.to_vec()];
    let stream = tokio::net::TcpStream::connect(bench.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stranger = connector.connect(NAME.try_into().unwrap(), stream).await.unwrap();
    let ended = async {
        let mut greeting = Vec::new();
        // An end without a farewell is an end too.
        let _how = tokio::io::AsyncReadExt::read_to_end(&mut stranger, &mut greeting).await;
    };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(call("token-a").await, Code::InvalidArgument);
    assert_eq!(connections.load(Ordering::Relaxed), 1, "was cut off and connected anew");
}

#[tokio::test]
async fn a_serving_certificate_follows_the_root() {
    let bench = Bench::new().await;
    let now = SystemTime::now();
    bench.authority.replace_root(now - Duration::from_secs(2 * 86_400)).await.unwrap();
    // A client that trusts only the new root connects as soon as that one signs.
    let bundle = bench.authority.roots_pem();
    let new_root = bundle.split_inclusive("-----END CERTIFICATE-----").nth(1).unwrap().to_owned();
    let alone = bench.place.path().join("new-root.pem");
    std::fs::write(&alone, new_root).unwrap();
    let control = Control::new(ControlOptions {
        address: format!("https://{}", bench.address),
        root_file: alone,
        server_name: NAME.to_owned(),
        token_file: bench.place.path().join("token"),
    });
    assert!(control.channel().await.is_err());
    bench.authority.refresh(now).await.unwrap();
    assert!(control.channel().await.is_ok());
}

#[tokio::test]
async fn a_stalled_handshake_delays_nobody() {
    let bench = Bench::new().await;
    let _stalled = tokio::net::TcpStream::connect(bench.address).await.unwrap();
    assert!(bench.control(NAME).channel().await.is_ok());
}

#[tokio::test]
async fn each_refusal_has_its_code_and_says_no_more_than_it_should() {
    let bench = Bench::new().await;
    let channel = bench.control(NAME).channel().await.unwrap();
    let csr = KeyPair::generate().unwrap().csr_pem(&identity("web")).unwrap();
    let named = |name: &str| Some(Kind::StringValue(name.to_owned()));
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let other = "spiffe://cluster.local/ns/shop/sa/other";
    let away = "spiffe://away.example/ns/shop/sa/web";
    let table = [
        (Some("token-a"), csr.as_str(), named(web), Code::Ok, ""),
        (None, &csr, named(web), Code::Unauthenticated, "who calls is not known"),
        (Some("token-b"), &csr, named(web), Code::Unauthenticated, "who calls is not known"),
        (Some("token-b"), "garbage", None, Code::Unauthenticated, "who calls is not known"),
        (
            Some("token-a"),
            &csr,
            named(other),
            Code::PermissionDenied,
            "node a may not have a certificate for spiffe://cluster.local/ns/shop/sa/other",
        ),
        (Some("token-a"), &csr, named(away), Code::PermissionDenied, "trust domain"),
        (Some("token-a"), &csr, None, Code::InvalidArgument, "metadata.ImpersonatedIdentity is missing"),
        (Some("token-a"), &csr, Some(Kind::BoolValue(true)), Code::InvalidArgument, "is not a string"),
        (Some("token-a"), &csr, named("web"), Code::InvalidArgument, "metadata.ImpersonatedIdentity"),
        (Some("token-a"), "garbage", named(web), Code::InvalidArgument, "csr is not PEM"),
        (Some("token-a"), "", named(web), Code::InvalidArgument, "csr is not PEM"),
    ];
    for (token, csr, name, code, words) in table {
        let metadata = name
            .clone()
            .map(|kind| Struct { fields: [(IMPERSONATED_IDENTITY.to_owned(), Value { kind: Some(kind) })].into() });
        let message = IstioCertificateRequest { csr: csr.to_owned(), validity_duration: 3600, metadata };
        let mut request = Request::new(message);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let result = IstioCertificateServiceClient::new(channel.clone()).create_certificate(request).await;
        let (found, text) =
            result.map_or_else(|status| (status.code(), status.message().to_owned()), |_| (Code::Ok, String::new()));
        assert_eq!(found, code, "{token:?} {name:?}: {text}");
        assert!(text.contains(words), "{text}");
    }
}

#[tokio::test]
async fn a_negative_duration_asks_for_the_longest() {
    let place = tempfile::tempdir().unwrap();
    let service = service(open(place.path()).await);
    let key = Arc::new(KeyPair::generate().unwrap());
    let name = Value { kind: Some(Kind::StringValue(identity("web").to_string())) };
    let mut request = Request::new(IstioCertificateRequest {
        csr: key.csr_pem(&identity("web")).unwrap(),
        validity_duration: -5,
        metadata: Some(Struct { fields: [(IMPERSONATED_IDENTITY.to_owned(), name)].into() }),
    });
    request.metadata_mut().insert("authorization", "Bearer token-a".parse().unwrap());
    let answer = service.create_certificate(request).await.unwrap().into_inner().cert_chain;
    let issued = underpass_identity::Issued::from_answer(&answer, key, &identity("web"), SystemTime::now()).unwrap();
    let life = issued.certificate.not_after().duration_since(issued.certificate.not_before()).unwrap();
    assert_eq!(life.as_secs(), 86_400 + 60);
}
