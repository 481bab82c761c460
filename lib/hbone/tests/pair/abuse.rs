//! Peers that do not behave.

use std::{
    cell::Cell,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Method, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_rustls::{TlsConnector, client::TlsStream};
use underpass_hbone::{AcceptError, Baggage, RequestError, ServerConnection, server};
use underpass_identity::{
    Credentials, Expected,
    testing::{LeafOptions, TestAuthority},
    tls,
};
use underpass_model::TrustDomain;

use crate::{
    frames::{self, END_HEADERS, HEADERS, connect_head, frame},
    support::{
        CLIENT, Certificates, Pair, SERVER, ask, certificates, id, key, on_worker, request, server_options, settle,
    },
};

type RawClient = (h2::client::SendRequest<Bytes>, h2::client::Connection<TlsStream<DuplexStream>, Bytes>);

fn anybody() -> Expected {
    Expected::TrustDomain(TrustDomain::default())
}

async fn raw_tls(io: DuplexStream, config: &Arc<rustls::ClientConfig>) -> TlsStream<DuplexStream> {
    TlsConnector::from(Arc::clone(config)).connect(tls::server_name(), io).await.unwrap()
}

/// A server of ours and a client that can do as it likes.
async fn raw() -> (RawClient, ServerConnection<DuplexStream>) {
    raw_with(&certificates().client, &certificates().server).await
}

async fn raw_with(client: &Credentials, server: &Credentials) -> (RawClient, ServerConnection<DuplexStream>) {
    let (near, far) = duplex(1 << 20);
    let client = async {
        let tls = raw_tls(near, &client.client).await;
        h2::client::Builder::new().initial_max_send_streams(10_000).handshake(tls).await.unwrap()
    };
    let (expect, options) = (anybody(), server_options());
    let server = server::accept(far, &server.server, &expect, &options);
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
            held.push(incoming.unwrap().accept(&Baggage::default()).unwrap());
        }
        assert_eq!(held.len(), 200);
        drop(held.pop());
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

/// Credentials that expire in a minute, and ones that last: first the client's are short, then the server's.
fn short_lived() -> [(Arc<Credentials>, Arc<Credentials>); 2] {
    let Certificates { client, server, authority } = certificates();
    let minute = LeafOptions { not_after: SystemTime::now() + Duration::from_secs(60), ..LeafOptions::default() };
    let short = |identity| authority.forged(&id(identity), &minute);
    [(short(CLIENT), Arc::clone(server)), (Arc::clone(client), short(SERVER))]
}

#[tokio::test(start_paused = true)]
async fn a_server_lets_no_stream_into_a_tunnel_whose_certificates_expired() {
    on_worker(async {
        for (client, server) in short_lived() {
            let ((mut requests, connection), mut server) = raw_with(&client, &server).await;
            let tunnel = tokio::task::spawn_local(connection);
            let (old, _body) = requests.send_request(connect("10.0.0.9:80"), false).unwrap();
            let mut carried = server.next().await.unwrap().accept(&Baggage::default()).unwrap();
            tokio::task::spawn_local(async move { while server.next().await.is_some() {} });
            tokio::time::sleep(Duration::from_secs(57)).await;
            requests = requests.ready().await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert!(requests.clone().ready().await.is_err(), "GOAWAY");
            carried.write_all(b"still here").await.unwrap();
            let mut body = old.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "still here");
            drop((carried, body, _body, requests));
            let _end = tunnel.await.unwrap();
        }
    })
    .await;
}

/// The reason with which a stream is reset; other frames are passed over.
async fn reset_of(tls: &mut TlsStream<DuplexStream>, stream: u32) -> u32 {
    loop {
        let mut head = [0; 9];
        tls.read_exact(&mut head).await.unwrap();
        let [a, b, c, kind, _, id @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]).try_into().unwrap()];
        tls.read_exact(&mut payload).await.unwrap();
        if kind == frames::RST_STREAM && u32::from_be_bytes(id) == stream {
            return u32::from_be_bytes(payload.try_into().unwrap());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_listen_opens_no_stream_in_a_draining_tunnel() {
    on_worker(async {
        let (near, far) = duplex(1 << 20);
        let (expect, options) = (anybody(), server_options());
        let accept = server::accept(far, &certificates().server.server, &expect, &options);
        let (mut tls, server) = tokio::join!(frames::raw(near), accept);
        let mut server = server.unwrap();
        let drain = server.shutdown_handle();
        let (came, mut coming) = tokio::sync::mpsc::channel(8);
        tokio::task::spawn_local(async move {
            while let Some(incoming) = server.next().await {
                came.send(incoming.accept(&Baggage::default()).unwrap()).await.unwrap();
            }
        });
        let connect = |stream| frame(HEADERS, END_HEADERS, stream, &connect_head());
        tls.write_all(&connect(1)).await.unwrap();
        let mut kept = vec![coming.recv().await.unwrap()];
        drain.drain();
        tokio::time::sleep(Duration::from_secs(2)).await;
        tls.write_all(&connect(3)).await.unwrap();
        kept.push(coming.recv().await.unwrap());
        tokio::time::sleep(Duration::from_secs(4)).await;
        tls.write_all(&connect(5)).await.unwrap();
        assert_eq!(reset_of(&mut tls, 5).await, u32::from(h2::Reason::REFUSED_STREAM));
        assert!(coming.try_recv().is_err(), "nobody hears of it");
        kept[0].write_all(b"still here").await.unwrap();
    })
    .await;
}

/// Accepts every stream and holds it, and never says good-bye.
async fn obliging(io: DuplexStream, credentials: Arc<Credentials>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&credentials.server));
    let mut connection = h2::server::handshake(acceptor.accept(io).await.unwrap()).await.unwrap();
    let mut held = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        held.push((respond.send_response(http::Response::new(()), false).unwrap(), request));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_opens_no_stream_in_a_tunnel_whose_certificates_expired() {
    on_worker(async {
        for (client, server) in short_lived() {
            let pair = Pair::new();
            let dials = Cell::new(0);
            let open = async || {
                let dial = || async {
                    dials.set(dials.get() + 1);
                    let (near, far) = duplex(1 << 20);
                    tokio::task::spawn_local(obliging(far, Arc::clone(&server)));
                    Ok(near)
                };
                pair.pool.open(&key(), &request(), &client.client, dial).await
            };
            let first = open().await.unwrap();
            tokio::time::sleep(Duration::from_secs(57)).await;
            drop(open().await.unwrap());
            assert_eq!(dials.get(), 1);
            tokio::time::sleep(Duration::from_secs(5)).await;
            let _second = open().await;
            assert_eq!(dials.get(), 2);
            drop(first);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_ends_when_its_certificates_expire() {
    on_worker(async {
        for (client, server) in short_lived() {
            let pair = Pair::new();
            let ended = Rc::new(Cell::new(false));
            let dial = || async {
                let (near, far) = duplex(1 << 20);
                let (server, ended) = (Arc::clone(&server), Rc::clone(&ended));
                tokio::task::spawn_local(async move {
                    obliging(far, server).await;
                    ended.set(true);
                });
                Ok(near)
            };
            drop(pair.pool.open(&key(), &request(), &client.client, dial).await.unwrap());
            tokio::time::sleep(Duration::from_secs(57)).await;
            assert!(!ended.get());
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert!(ended.get());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn more_connects_come_out_only_when_earlier_ones_are_answered() {
    on_worker(async {
        let ((mut requests, connection), mut server) = raw().await;
        let asked: Vec<_> = (0..150).map(|_| requests.send_request(connect("10.0.0.9:80"), false).unwrap()).collect();
        tokio::task::spawn_local(connection);
        let mut held = Vec::new();
        while let Ok(incoming) = tokio::time::timeout(Duration::from_secs(1), server.next()).await {
            held.push(incoming.unwrap());
        }
        assert_eq!(held.len(), 128);
        let more = tokio::task::spawn_local(async move {
            while server.next().await.is_some_and(|incoming| incoming.authority.is_ok()) {}
        });
        settle().await;
        assert!(!more.is_finished());
        for incoming in held.drain(..) {
            incoming.refuse(http::StatusCode::SERVICE_UNAVAILABLE);
        }
        let answered = asked.into_iter().map(|(answer, body)| async move { (answer.await, body) });
        let answered = futures_util::future::join_all(answered).await;
        let refused = answered.iter().filter(|(answer, _)| answer.as_ref().is_ok_and(|a| a.status() == 503)).count();
        assert_eq!(refused, 128, "and the others, dropped without an answer, are reset");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_connects_that_are_given_up_keeps_few_under_way() {
    on_worker(async {
        let ((mut requests, connection), mut server) = raw().await;
        tokio::task::spawn_local(connection);
        let (under_way, most, seen) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let counts = (Rc::clone(&under_way), Rc::clone(&most), Rc::clone(&seen));
        tokio::task::spawn_local(async move {
            while let Some(mut incoming) = server.next().await {
                let (under_way, most, seen) = (Rc::clone(&counts.0), &counts.1, &counts.2);
                seen.set(seen.get() + 1);
                under_way.set(under_way.get() + 1);
                most.set(most.get().max(under_way.get()));
                if seen.get() > 10_000 {
                    incoming.accept(&Baggage::default()).unwrap();
                    continue;
                }
                tokio::task::spawn_local(async move {
                    incoming.cancelled().await;
                    under_way.set(under_way.get() - 1);
                });
            }
        });
        for _ in 0..100 {
            let opened: Vec<_> =
                (0..100).map(|_| requests.send_request(connect("10.0.0.9:80"), false).unwrap()).collect();
            settle().await;
            drop(opened);
            settle().await;
        }
        assert_eq!((seen.get(), under_way.get()), (10_000, 0));
        assert!(most.get() <= 128, "{}", most.get());
        let (answer, _body) = requests.send_request(connect("10.0.0.9:80"), false).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200, "and the tunnel lives");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn connects_given_up_behind_a_full_house_end_the_tunnel() {
    on_worker(async {
        let ((mut requests, connection), mut server) = raw().await;
        let client = tokio::task::spawn_local(connection);
        let served = Rc::new(Cell::new(0));
        let count = Rc::clone(&served);
        let server = tokio::task::spawn_local(async move {
            let mut held = Vec::new();
            while let Some(incoming) = server.next().await {
                held.push(incoming);
                count.set(held.len());
            }
        });
        for _ in 0..20 {
            let opened: Vec<_> =
                (0..50).map_while(|_| requests.send_request(connect("10.0.0.9:80"), false).ok()).collect();
            settle().await;
            drop(opened);
            settle().await;
        }
        server.await.unwrap();
        assert_eq!(served.get(), 128);
        assert!(client.await.unwrap().is_err());
    })
    .await;
}
