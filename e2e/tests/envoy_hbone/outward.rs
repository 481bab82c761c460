//! Our client, Envoy's server.

use std::{net::SocketAddr, sync::Arc};

use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::spawn_local,
};
use underpass_e2e::envoy::{Envoy, Listener, cluster_by_authority, terminate};
use underpass_hbone::{
    Baggage, ConnectHeaders, ConnectRequest, Forwarded, Meter, OpenError, Pool, PoolOptions, TraceParent, Tunnel,
    TunnelKey, copy,
};
use underpass_identity::{
    Credentials,
    testing::{LeafOptions, TestAuthority},
};
use underpass_model::{PodUid, WorkloadKind, WorkloadUid};

use crate::{
    applications::{MUCH, SOME, ask_and_half_close, converse, ending_first, hear_it_end, see_it_break, server},
    support::{ANYWHERE, ENVOYS, OURS, anywhere, certificate, envoy, id, logged, on_worker},
};

/// Our client in front of an Envoy that takes tunnels.
#[derive(Clone)]
struct Client {
    envoy: Arc<Envoy>,
    pool: Pool,
    key: TunnelKey,
    credentials: Arc<Credentials>,
}

impl Client {
    fn new(authority: &TestAuthority, limit: Option<u32>) -> Self {
        let own = certificate(authority, ENVOYS, &LeafOptions::default());
        let listener = Listener { name: "inbound", address: anywhere() };
        let envoy = envoy(&[terminate(&listener, &own, "cluster.local", limit)], &[cluster_by_authority()]);
        let key = TunnelKey {
            pod: PodUid::new("pod-1"),
            own: id(OURS),
            destination: WorkloadUid::of_pod("Kubernetes", "edge", "gateway"),
            address: envoy.address("inbound").unwrap(),
            expect: Arc::from([id(ENVOYS)]),
        };
        let pool = Pool::new(PoolOptions::default());
        Self { envoy, pool, key, credentials: authority.credentials(&id(OURS)) }
    }

    fn new_default() -> Self {
        Self::new(&TestAuthority::new(), None)
    }

    async fn open(&self, to: SocketAddr) -> Result<Tunnel, OpenError> {
        let request = ConnectRequest { authority: to.to_string().parse().unwrap(), headers: headers() };
        let dial = || TcpStream::connect(self.key.address);
        self.pool.open(&self.key, &request, &self.credentials.client, dial).await
    }

    /// An application's connection that is carried to `to`.
    async fn connect(&self, to: SocketAddr) -> TcpStream {
        let listener = TcpListener::bind(ANYWHERE).await.unwrap();
        let (dialled, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let tunnel = self.open(to).await.unwrap();
        let (captured, _) = accepted.unwrap();
        spawn_local(async move { copy::tcp_with_tunnel(captured, tunnel.stream, &Meter::default()).await });
        dialled.unwrap()
    }
}

fn headers() -> ConnectHeaders {
    ConnectHeaders {
        baggage: Baggage {
            cluster: "Kubernetes".into(),
            namespace: "shop".into(),
            workload: Some((WorkloadKind::Deployment, "web".into())),
            service: "web".into(),
            ..Baggage::default()
        },
        forwarded: Forwarded {
            client: Some("10.0.0.7:4711".parse().unwrap()),
            host: Some("gateway.edge.svc.cluster.local".into()),
        },
        traceparent: TraceParent::new(7, 8),
    }
}

#[test]
fn envoy_sees_a_connect_with_our_headers_and_who_we_are() {
    on_worker(async {
        let (client, to) = (Client::new_default(), server().await);
        converse(&mut client.connect(to).await).await;
        let entry = logged(&client.envoy).await;
        let expected = json!({
            "method": "CONNECT",
            "authority": to.to_string(),
            "baggage": "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web",
            "forwarded": "for=\"10.0.0.7:4711\";host=gateway.edge.svc.cluster.local",
            "traceparent": TraceParent::new(7, 8).unwrap().to_string(),
            "peer": OURS,
            "sni": null,
            "tls": "TLSv1.3",
            "cipher": "TLS_AES_128_GCM_SHA256",
            "protocol": "HTTP/2",
            "code": 200,
        });
        for (field, expected) in expected.as_object().unwrap() {
            assert_eq!(&entry[field], expected, "{field} of {entry}");
        }
    });
}

#[test]
fn much_goes_through_envoy_both_ways_after_a_half_close() {
    on_worker(async {
        let (client, to) = (Client::new_default(), server().await);
        ask_and_half_close(client.connect(to).await, MUCH).await;
        let entry = logged(&client.envoy).await;
        let all = Some(u64::try_from(MUCH).unwrap());
        assert_eq!((entry["received"].as_u64(), entry["sent"].as_u64()), (all.map(|all| all + 1), all), "{entry}");
    });
}

/// Envoy hears no more of a client once the server has ended, and resets the stream, without an error.
#[test]
fn an_answer_that_the_server_ends_first_arrives_whole_and_ends_well() {
    on_worker(async {
        let (client, (to, _heard)) = (Client::new_default(), ending_first(SOME).await);
        hear_it_end(&mut client.connect(to).await, SOME).await.unwrap();
        let entry = logged(&client.envoy).await;
        assert_eq!((&entry["code"], entry["sent"].as_u64()), (&json!(200), u64::try_from(SOME).ok()), "{entry}");
    });
}

/// The same, when more is under way than the window lets through: there Envoy resets with an error, and loses the rest.
#[test]
fn an_answer_that_envoy_cuts_is_never_taken_for_whole() {
    on_worker(async {
        let (client, (to, _heard)) = (Client::new_default(), ending_first(MUCH).await);
        if let Err(error) = hear_it_end(&mut client.connect(to).await, MUCH).await {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn many_streams_share_a_few_of_envoys_tunnels() {
    on_worker(async {
        let (client, to) = (Client::new_default(), server().await);
        let mut open = Vec::new();
        for _ in 0..150 {
            open.push(client.connect(to).await);
        }
        for socket in &mut open {
            converse(socket).await;
        }
        assert_eq!(client.envoy.counted("http.inbound.downstream_rq_active").unwrap(), 150);
        assert_eq!(client.envoy.counted("http.inbound.downstream_cx_total").unwrap(), 2);
    });
}

#[test]
fn a_goaway_of_envoys_loses_no_connection() {
    on_worker(async {
        let (client, to) = (Client::new(&TestAuthority::new(), Some(3)), server().await);
        let mut open = Vec::new();
        for _ in 0..10 {
            open.push(client.connect(to).await);
        }
        for socket in &mut open {
            converse(socket).await;
        }
        let tunnels = client.envoy.counted("http.inbound.downstream_cx_total").unwrap();
        assert!((4..=10).contains(&tunnels), "{tunnels}");
    });
}

#[test]
fn a_reset_behind_envoy_reaches_the_application_as_a_reset() {
    on_worker(async {
        let (client, to) = (Client::new_default(), server().await);
        let error = see_it_break(client.connect(to).await).await;
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn envoys_refusal_to_connect_is_an_error_with_its_status() {
    on_worker(async {
        let client = Client::new_default();
        let closed = TcpListener::bind(ANYWHERE).await.unwrap().local_addr().unwrap();
        let error = client.open(closed).await.unwrap_err();
        assert!(matches!(&error, OpenError::Refused { status, .. } if *status == 503), "{error:?}");
        assert!(error.retry_elsewhere());
    });
}

#[test]
fn an_envoy_of_another_name_is_refused() {
    on_worker(async {
        let mut client = Client::new_default();
        client.key.expect = Arc::from([id("spiffe://cluster.local/ns/edge/sa/other")]);
        let error = client.open(server().await).await.unwrap_err();
        assert_eq!(error.reason(), "peer_wrong_identity", "{error:?}");
        assert_eq!(client.envoy.counted("http.inbound.downstream_rq_total").unwrap(), 0);
    });
}

#[test]
fn envoy_refuses_us_without_the_right_certificate() {
    on_worker(async {
        let authority = TestAuthority::new();
        let mut client = Client::new(&authority, None);
        let to = server().await;
        let elsewhere = "spiffe://elsewhere/ns/shop/sa/web";
        let unknown = TestAuthority::new();
        for (credentials, counter) in [
            (authority.credentials(&id(elsewhere)), "listener.127.0.0.1_0.ssl.fail_verify_san"),
            (unknown.credentials_trusting(&id(OURS), &authority.roots()), "listener.127.0.0.1_0.ssl.fail_verify_error"),
        ] {
            client.credentials = credentials;
            let error = client.open(to).await.unwrap_err();
            assert!(matches!(error.reason(), "tunnel_http2_failed" | "tunnel_lost"), "{error:?}");
            let stats: Value = client.envoy.ask("/stats?format=json&filter=ssl").unwrap().parse().unwrap();
            assert_eq!(client.envoy.counted(counter).unwrap(), 1, "{stats}");
        }
        assert_eq!(client.envoy.counted("http.inbound.downstream_rq_total").unwrap(), 0);
    });
}
