//! Peers that do not behave.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request};
use tokio::io::{DuplexStream, duplex};
use tokio_rustls::{TlsConnector, client::TlsStream};
use underpass_hbone::{AcceptError, RequestError, ServerConnection, server};
use underpass_identity::{Expected, testing::TestAuthority, tls};
use underpass_model::TrustDomain;

use crate::support::{CLIENT, Pair, ask, certificates, id, key, on_worker, request, server_options, settle};

type RawClient = (h2::client::SendRequest<Bytes>, h2::client::Connection<TlsStream<DuplexStream>, Bytes>);

fn anybody() -> Expected {
    Expected::TrustDomain(TrustDomain::default())
}

async fn raw_tls(io: DuplexStream, config: &Arc<rustls::ClientConfig>) -> TlsStream<DuplexStream> {
    TlsConnector::from(Arc::clone(config)).connect(tls::server_name(), io).await.unwrap()
}

/// A server of ours and a client that can do as it likes.
async fn raw() -> (RawClient, ServerConnection<DuplexStream>) {
    let (near, far) = duplex(1 << 20);
    let client = async {
        let tls = raw_tls(near, &certificates().client.client).await;
        h2::client::Builder::new().initial_max_send_streams(10_000).handshake(tls).await.unwrap()
    };
    let (expect, options) = (anybody(), server_options());
    let server = server::accept(far, &certificates().server.server, &expect, &options);
    let (client, server) = tokio::join!(client, server);
    (client, server.unwrap())
}

fn connect(target: &str) -> Request<()> {
    Request::builder().method(Method::CONNECT).uri(target).body(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_no_connect_to_a_target_is_told_apart() {
    on_worker(async {
        let ((mut requests, connection), mut server) = raw().await;
        tokio::task::spawn_local(connection);
        let get = Request::builder().uri("https://10.0.0.9:80/").body(()).unwrap();
        for (request, reason) in [(get, "not_connect"), (connect("10.0.0.9:0"), "bad_authority")] {
            let (response, _body) = requests.send_request(request, false).unwrap();
            let incoming = server.next().await.unwrap();
            let error = incoming.authority.clone().unwrap_err();
            assert_eq!(error.reason(), reason);
            let status = error.status();
            incoming.refuse(status);
            tokio::task::spawn_local(async move {
                while server.next().await.is_some() {}
                server
            });
            assert_eq!(response.await.unwrap().status(), 400);
            let (again, next) = raw().await;
            requests = again.0;
            server = next;
            tokio::task::spawn_local(again.1);
        }
        assert_eq!(RequestError::Method.reason(), "not_connect");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_resets_ends_the_tunnel() {
    on_worker(async {
        let ((mut requests, connection), mut server) = raw().await;
        let client = tokio::task::spawn_local(connection);
        // The server is busy elsewhere while streams are opened and reset, far below its limit at each moment.
        for _ in 0..5 {
            let opened: Vec<_> =
                (0..50).map(|_| requests.send_request(connect("10.0.0.9:80"), false).unwrap()).collect();
            settle().await;
            drop(opened);
            settle().await;
        }
        let mut served = 0;
        while server.next().await.is_some() {
            served += 1;
        }
        assert_eq!(served, 0);
        let error = client.await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM), "{error}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_dropped_at_the_deadline() {
    on_worker(async {
        let (near, far) = duplex(1 << 20);
        let since = tokio::time::Instant::now();
        let (expect, options) = (anybody(), server_options());
        let outcome = server::accept(far, &certificates().server.server, &expect, &options).await;
        assert!(matches!(outcome, Err(AcceptError::Timeout(_))));
        assert_eq!(since.elapsed(), Duration::from_secs(5));
        drop(near);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ends_after_tls_is_dropped_at_the_deadline() {
    on_worker(async {
        let (near, far) = duplex(1 << 20);
        let (expect, options) = (anybody(), server_options());
        let server = server::accept(far, &certificates().server.server, &expect, &options);
        let client = raw_tls(near, &certificates().client.client);
        let (outcome, _held) = tokio::join!(server, client);
        assert_eq!(outcome.unwrap_err().reason(), "tunnel_handshake_timeout");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn refuses_a_peer_of_another_trust_domain_or_authority() {
    on_worker(async {
        let stranger = TestAuthority::new().credentials(&id(CLIENT));
        let elsewhere = Expected::TrustDomain(TrustDomain::new("elsewhere").unwrap());
        let ours = &certificates().client;
        for (client, expect, reason) in
            [(ours, elsewhere, "peer_wrong_trust_domain"), (&stranger, anybody(), "tunnel_tls_failed")]
        {
            let (near, far) = duplex(1 << 20);
            let options = server_options();
            let server = server::accept(far, &certificates().server.server, &expect, &options);
            let client = TlsConnector::from(Arc::clone(&client.client)).connect(tls::server_name(), near);
            let (outcome, _client) = tokio::join!(server, client);
            assert_eq!(outcome.unwrap_err().reason(), reason);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_more_streams_are_open_at_once_than_allowed() {
    on_worker(async {
        let ((mut requests, connection), mut server) = raw().await;
        let asked: Vec<_> = (0..201).map(|_| requests.send_request(connect("10.0.0.9:80"), false).unwrap()).collect();
        tokio::task::spawn_local(connection);
        let mut held = Vec::new();
        while let Ok(incoming) = tokio::time::timeout(Duration::from_secs(1), server.next()).await {
            held.push(incoming.unwrap());
        }
        assert_eq!(held.len(), 200);
        held.pop().unwrap().refuse(http::StatusCode::SERVICE_UNAVAILABLE);
        assert!(server.next().await.is_some(), "the place is free again");
        drop(asked);
    })
    .await;
}

/// Accepts the first stream and refuses the others as one does that has no more room.
async fn full_after_one(io: DuplexStream) {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&certificates().server.server));
    let tls = acceptor.accept(io).await.unwrap();
    let mut connection = h2::server::handshake(tls).await.unwrap();
    let mut first = None;
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if first.is_none() {
            first = Some((respond.send_response(http::Response::new(()), false).unwrap(), request));
        } else {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_refused_for_lack_of_room_goes_to_a_new_tunnel() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        let (key, request, tls) = (key(), request(), &certificates().client.client);
        let full = || async {
            let (near, far) = duplex(1 << 20);
            tokio::task::spawn_local(full_after_one(far));
            Ok(near)
        };
        let _first = pair.pool.open(&key, &request, tls, full).await.unwrap();
        let mut second = pair.open().await.unwrap();
        ask(&mut second.stream).await;
        assert_eq!(pair.far.dials.get(), 1, "one dial of its own, after the tunnel of the first had refused it");
    })
    .await;
}
