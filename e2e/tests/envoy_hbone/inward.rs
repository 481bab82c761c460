//! Envoy's client, our server.

use std::{cell::RefCell, net::SocketAddr, process::Command, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    task::{spawn_blocking, spawn_local},
};
use underpass_e2e::envoy::{Certificate, Envoy, Listener, Upstream, cluster_to, proxy, tunnel};
use underpass_hbone::{Baggage, ConnectHeaders, Incoming, Meter, ServerOptions, copy, server::accept};
use underpass_identity::{
    Credentials, Expected,
    testing::{LeafOptions, TestAuthority},
};
use underpass_lab::process;
use underpass_model::{Authority, Identity, TrustDomain};

use crate::{
    applications::{self, MUCH, SOME, ask_and_half_close, converse, have_the_last_word, hear_it_end, see_it_break},
    support::{ANYWHERE, ENVOYS, OURS, anywhere, certificate, envoy, id, on_worker},
};

const BAGGAGE: &str = "k8s.cluster.name=Kubernetes,k8s.namespace.name=edge,k8s.deployment.name=gateway";
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// What our server saw.
#[derive(Default)]
struct Seen {
    peers: Vec<Identity>,
    refused: Vec<&'static str>,
    headers: Vec<ConnectHeaders>,
}

/// Our server, which carries to `application` and to nobody else.
struct Server {
    address: SocketAddr,
    application: SocketAddr,
    seen: Rc<RefCell<Seen>>,
}

impl Server {
    async fn new(credentials: Arc<Credentials>) -> Self {
        Self::before(applications::server().await, credentials).await
    }

    async fn before(application: SocketAddr, credentials: Arc<Credentials>) -> Self {
        let listener = TcpListener::bind(ANYWHERE).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Rc::new(RefCell::default());
        spawn_local(serve(listener, credentials, application, Rc::clone(&seen)));
        Self { address, application, seen }
    }

    /// An Envoy whose listeners lead here: `tunnel` to the application, `proxy` to whatever it is asked for.
    fn envoy(&self, own: Option<&Certificate>, roots: &str, identity: &str) -> Arc<Envoy> {
        let headers = [("baggage", BAGGAGE), ("traceparent", TRACE), ("forwarded", "for=\"10.0.0.9:1\";host=shop")];
        let fixed = Listener { name: "tunnel", address: anywhere() };
        let listeners = [
            tunnel(&fixed, &self.application.to_string(), &headers),
            proxy(&Listener { name: "proxy", address: anywhere() }),
        ];
        envoy(&listeners, &[cluster_to(&Upstream { address: self.address, identity, own, roots })])
    }
}

async fn serve(listener: TcpListener, credentials: Arc<Credentials>, application: SocketAddr, seen: Rc<RefCell<Seen>>) {
    let expect = Expected::TrustDomain(TrustDomain::default());
    while let Ok((socket, _)) = listener.accept().await {
        let (credentials, expect, seen) = (Arc::clone(&credentials), expect.clone(), Rc::clone(&seen));
        spawn_local(async move {
            let mut connection = match accept(socket, &credentials.server, &expect, &ServerOptions::default()).await {
                Ok(connection) => connection,
                Err(error) => return seen.borrow_mut().refused.push(error.reason()),
            };
            seen.borrow_mut().peers.push(connection.peer().clone());
            while let Some(incoming) = connection.next().await {
                seen.borrow_mut().headers.push(incoming.headers.clone());
                spawn_local(carry(incoming, application));
            }
        });
    }
}

/// The checks of the node proxy's inbound lane, as far as the wire knows of them.
async fn carry(incoming: Incoming, application: SocketAddr) {
    match &incoming.authority {
        Err(error) => {
            let status = error.status();
            incoming.refuse(status);
        }
        Ok(Authority::Address(to)) if *to == application => {
            let upstream = TcpStream::connect(application).await.unwrap();
            let own = Baggage { namespace: "shop".into(), ..Baggage::default() };
            let stream = incoming.accept(&own).unwrap();
            // How it ends shows at the applications.
            copy::tunnel_with_tcp(stream, upstream, &Meter::default()).await.ok();
        }
        Ok(_) => incoming.refuse(http_status(503)),
    }
}

fn http_status(code: u16) -> http::StatusCode {
    http::StatusCode::from_u16(code).unwrap()
}

/// A server of ours, and an Envoy that it has every reason to serve.
async fn pair() -> (Server, Arc<Envoy>) {
    let authority = TestAuthority::new();
    let server = Server::new(authority.credentials(&id(OURS))).await;
    let own = certificate(&authority, ENVOYS, &LeafOptions::default());
    let envoy = server.envoy(Some(&own), &own.roots, OURS);
    (server, envoy)
}

async fn curl(arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["-sS", "-o", "/dev/null", "--max-time", "10"]).args(arguments);
    let output = spawn_blocking(|| process::run(command, None, Duration::from_secs(15))).await.unwrap().unwrap();
    output.stdout
}

#[test]
fn what_envoy_tells_of_its_client_is_understood() {
    on_worker(async {
        let (server, envoy) = pair().await;
        let mut socket = TcpStream::connect(envoy.address("tunnel").unwrap()).await.unwrap();
        converse(&mut socket).await;
        let seen = server.seen.borrow();
        assert_eq!(seen.peers, [id(ENVOYS)]);
        let [headers] = &*seen.headers else { panic!("{} streams", seen.headers.len()) };
        assert_eq!(headers.baggage.to_string(), BAGGAGE);
        assert_eq!(headers.traceparent.unwrap().to_string(), TRACE);
        assert_eq!(headers.forwarded.client, Some("10.0.0.9:1".parse().unwrap()));
        assert_eq!(headers.forwarded.host.as_deref(), Some("shop"));
    });
}

#[test]
fn much_comes_from_envoy_and_goes_back_after_a_half_close() {
    on_worker(async {
        let (_server, envoy) = pair().await;
        ask_and_half_close(TcpStream::connect(envoy.address("tunnel").unwrap()).await.unwrap(), MUCH).await;
    });
}

#[test]
fn a_server_that_envoy_reaches_through_us_may_end_its_half_first() {
    on_worker(async {
        let authority = TestAuthority::new();
        let (application, heard) = applications::ending_first(MUCH).await;
        let server = Server::before(application, authority.credentials(&id(OURS))).await;
        let own = certificate(&authority, ENVOYS, &LeafOptions::default());
        let envoy = server.envoy(Some(&own), &own.roots, OURS);
        let mut socket = TcpStream::connect(envoy.address("tunnel").unwrap()).await.unwrap();
        hear_it_end(&mut socket, MUCH).await.unwrap();
        have_the_last_word(socket).await;
        assert_eq!(heard.await.unwrap().unwrap(), SOME);
    });
}

#[test]
fn a_reset_of_the_application_reaches_envoys_client_as_a_reset() {
    on_worker(async {
        let (_server, envoy) = pair().await;
        let error = see_it_break(TcpStream::connect(envoy.address("tunnel").unwrap()).await.unwrap()).await;
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn many_of_envoys_clients_share_a_few_tunnels() {
    on_worker(async {
        let (server, envoy) = pair().await;
        let address = envoy.address("tunnel").unwrap();
        let mut open = Vec::new();
        for _ in 0..250 {
            open.push(TcpStream::connect(address).await.unwrap());
        }
        for socket in &mut open {
            converse(socket).await;
        }
        let tunnels = server.seen.borrow().peers.len();
        assert!((3..=5).contains(&tunnels), "{tunnels} tunnels of 100 streams each");
    });
}

#[test]
fn what_is_no_connect_gets_400_from_us() {
    on_worker(async {
        let (_server, envoy) = pair().await;
        let proxy = envoy.address("proxy").unwrap();
        assert_eq!(curl(&["-w", "%{http_code}", &format!("http://{proxy}/")]).await, "400");
    });
}

#[test]
fn a_connect_by_envoy_to_another_target_is_answered_with_our_status() {
    on_worker(async {
        let (server, envoy) = pair().await;
        let proxy = format!("http://{}", envoy.address("proxy").unwrap());
        let foreign = "http://192.0.2.1:80/";
        let own = format!("http://{}/", server.application);
        for (to, code) in [(foreign, "503"), (&*own, "200")] {
            let said = curl(&["-w", "%{http_connect}", "--proxytunnel", "-x", &proxy, to]).await;
            assert_eq!(said, code, "{to}");
        }
    });
}

#[test]
fn an_envoy_without_the_right_certificate_is_refused() {
    on_worker(async {
        let authority = TestAuthority::new();
        let server = Server::new(authority.credentials(&id(OURS))).await;
        let leaf = LeafOptions::default;
        let past = LeafOptions { not_after: leaf().not_before + Duration::from_secs(1), ..leaf() };
        let nameless = LeafOptions { names: Some(vec!["https://example.com/".to_owned()]), ..leaf() };
        let roots = authority.root_pem();
        for (own, reason) in [
            (None, "tunnel_tls_failed"),
            (Some(certificate(&TestAuthority::new(), ENVOYS, &leaf())), "tunnel_tls_failed"),
            (Some(certificate(&authority, ENVOYS, &past)), "tunnel_tls_failed"),
            (
                Some(certificate(&authority, "spiffe://elsewhere/ns/edge/sa/gateway", &leaf())),
                "peer_wrong_trust_domain",
            ),
            (Some(certificate(&authority, ENVOYS, &nameless)), "peer_no_identity"),
        ] {
            let envoy = server.envoy(own.as_ref(), &roots, OURS);
            let proxy = format!("http://{}", envoy.address("proxy").unwrap());
            let to = format!("http://{}/", server.application);
            let said = curl(&["-w", "%{http_connect}", "--proxytunnel", "-x", &proxy, &to]).await;
            assert_eq!(said, "503", "{reason}");
            assert_eq!(server.seen.borrow_mut().refused.drain(..).next(), Some(reason));
        }
        assert!(server.seen.borrow().peers.is_empty());
    });
}

#[test]
fn envoy_refuses_us_under_another_name() {
    on_worker(async {
        let authority = TestAuthority::new();
        let server = Server::new(authority.credentials(&id(OURS))).await;
        let own = certificate(&authority, ENVOYS, &LeafOptions::default());
        let envoy = server.envoy(Some(&own), &own.roots, "spiffe://cluster.local/ns/shop/sa/other");
        let proxy = format!("http://{}", envoy.address("proxy").unwrap());
        let to = format!("http://{}/", server.application);
        assert_eq!(curl(&["-w", "%{http_connect}", "--proxytunnel", "-x", &proxy, &to]).await, "503");
        assert_eq!(envoy.counted("cluster.tunnel.ssl.fail_verify_san").unwrap(), 1);
        assert!(server.seen.borrow().headers.is_empty());
    });
}
