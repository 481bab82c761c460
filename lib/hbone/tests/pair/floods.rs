//! Peers that flood: proper up to HTTP/2, and then frames that no client of ours would send. Beside each of them a
//! neighbour goes on exchanging words on the same thread.

use std::time::Duration;

use http::{HeaderValue, Method, Request};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    task::{JoinHandle, spawn_local},
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use underpass_hbone::{AcceptError, Baggage, TunnelStream, server};
use underpass_identity::{Expected, tls};
use underpass_model::TrustDomain;

use crate::{
    frames::{
        CONTINUATION, DATA, END_HEADERS, GOAWAY, HEADERS, PING, PREFACE, SETTINGS, WINDOW_UPDATE, connect_head, frame,
        raw,
    },
    support::{Pair, ask, certificates, on_worker, server_options},
};

/// More of anything than a client ever needs.
const FLOOD: u32 = 100_000;

/// Errors (RFC 9113, section 7).
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const ENHANCE_YOUR_CALM: u32 = 11;

fn anybody() -> Expected {
    Expected::TrustDomain(TrustDomain::default())
}

/// The server that is flooded: takes every stream and reads nothing. Its task ends with the tunnel.
fn serve(far: DuplexStream) -> JoinHandle<usize> {
    spawn_local(async {
        let accepted = server::accept(far, &certificates().server.server, &anybody(), &server_options()).await;
        let (mut tunnel, mut held) = (accepted.unwrap(), Vec::<TunnelStream>::new());
        while let Some(incoming) = tunnel.next().await {
            held.extend(incoming.accept(&Baggage::default()));
        }
        held.len()
    })
}

/// The error of the GOAWAY that a tunnel ended with.
async fn last_words(mut tls: TlsStream<DuplexStream>) -> Option<u32> {
    let mut heard = Vec::new();
    // An end without TLS's farewell is an end too.
    let _how = tls.read_to_end(&mut heard).await;
    let (mut rest, mut error) = (heard.as_slice(), None);
    while let Some((head, after)) = rest.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (payload, after) = after.split_at_checked(length)?;
        if head[3] == GOAWAY {
            error = payload.get(4..8).map(|code| u32::from_be_bytes(code.try_into().unwrap()));
        }
        rest = after;
    }
    error
}

/// Sends frames until they are all sent or the tunnel has ended; a neighbour must not notice.
async fn attack(frames: impl Iterator<Item = Vec<u8>> + 'static) -> Option<u32> {
    let mut neighbour = Pair::new();
    neighbour.echo();
    let mut calm = neighbour.open().await.unwrap();
    let (near, far) = duplex(64 * 1024);
    let server = serve(far);
    let mut tls = raw(near).await;
    let flood = spawn_local(async move {
        for frame in frames {
            if tls.write_all(&frame).await.is_err() {
                return last_words(tls).await;
            }
        }
        // The server had nothing against it.
        drop(tls);
        None
    });
    while !server.is_finished() {
        ask(&mut calm.stream).await;
        tokio::task::yield_now().await;
    }
    assert!(server.await.unwrap() <= 200);
    flood.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_header_without_end_ends_the_tunnel() {
    on_worker(async {
        let opening = frame(HEADERS, 0, 1, &connect_head());
        let more = (0..FLOOD).map(|_| frame(CONTINUATION, 0, 1, &[]));
        assert_eq!(attack(std::iter::once(opening).chain(more)).await, Some(ENHANCE_YOUR_CALM));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_empty_data_ends_the_tunnel() {
    on_worker(async {
        let opening = frame(HEADERS, END_HEADERS, 1, &connect_head());
        let more = (0..FLOOD).map(|_| frame(DATA, 0, 1, &[]));
        assert_eq!(attack(std::iter::once(opening).chain(more)).await, Some(ENHANCE_YOUR_CALM));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn windows_that_cannot_be_end_the_tunnel() {
    on_worker(async {
        for (increment, error) in [(0_u32, PROTOCOL_ERROR), (0x7fff_ffff, FLOW_CONTROL_ERROR)] {
            let more = (0..FLOOD).map(move |_| frame(WINDOW_UPDATE, 0, 0, &increment.to_be_bytes()));
            assert_eq!(attack(more).await, Some(error), "{increment}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_wants_answers_and_reads_none_is_stopped_by_back_pressure() {
    on_worker(async {
        let mut neighbour = Pair::new();
        neighbour.echo();
        let mut calm = neighbour.open().await.unwrap();
        for question in [frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9]), frame(PING, 0, 0, b"question")] {
            let (near, far) = duplex(64 * 1024);
            let server = serve(far);
            let mut tls = raw(near).await;
            // Answers would be as large as the questions: more than anything between us holds.
            let flood = async {
                for _ in 0..FLOOD {
                    tls.write_all(&question).await.unwrap();
                }
            };
            assert!(timeout(Duration::from_secs(5), flood).await.is_err(), "the server took all of it");
            ask(&mut calm.stream).await;
            drop(tls);
            assert_eq!(timeout(Duration::from_secs(60), server).await.unwrap().unwrap(), 0);
        }
    })
    .await;
}

/// A CONNECT with a list of headers of `bytes`.
fn headers(bytes: usize) -> Request<()> {
    let value = HeaderValue::from_str(&"x".repeat(1000)).unwrap();
    let mut request = Request::builder().method(Method::CONNECT).uri("10.0.0.9:80").body(()).unwrap();
    for _ in 0..bytes / value.len() {
        request.headers_mut().append("long", value.clone());
    }
    request
}

#[tokio::test(start_paused = true)]
async fn too_many_headers_are_refused_alone_and_the_tunnel_lives() {
    on_worker(async {
        let (near, far) = duplex(1 << 20);
        let _server = serve(far);
        let connector = TlsConnector::from(certificates().client.client.clone());
        let tls = connector.connect(tls::server_name(), near).await.unwrap();
        let (mut requests, connection) = h2::client::handshake(tls).await.unwrap();
        spawn_local(connection);
        for (bytes, status) in [(128 << 10, 431), (32 << 10, 200), (0, 200)] {
            let (answer, _body) = requests.send_request(headers(bytes), false).unwrap();
            assert_eq!(answer.await.unwrap().status(), status, "{bytes}");
            requests = requests.ready().await.unwrap();
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_header_bomb_ends_the_tunnel() {
    on_worker(async {
        // One field of a thousand bytes, to be remembered, and then its number again and again: 4 MiB in 5 KiB.
        let field = [&[0x40, 4], &b"bomb"[..], &[0x7f, 0xe9, 0x06], &[b'x'; 1000]].concat();
        let head = [connect_head(), field, vec![0xbe; 4000]].concat();
        let bombs = (0..FLOOD).map(move |number| frame(HEADERS, END_HEADERS, 2 * number + 1, &head));
        assert_eq!(attack(bombs).await, Some(ENHANCE_YOUR_CALM));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_opens_no_window_holds_a_bounded_part_of_what_it_is_sent() {
    on_worker(async {
        let mut neighbour = Pair::new();
        neighbour.echo();
        let mut calm = neighbour.open().await.unwrap();
        let (near, far) = duplex(1 << 20);
        let connector = TlsConnector::from(certificates().client.client.clone());
        let client = async {
            let tls = connector.connect(tls::server_name(), near).await.unwrap();
            h2::client::Builder::new().initial_window_size(0).handshake::<_, bytes::Bytes>(tls).await.unwrap()
        };
        let (expect, options) = (anybody(), server_options());
        let server = server::accept(far, &certificates().server.server, &expect, &options);
        let ((mut requests, connection), server) = tokio::join!(client, server);
        let client = spawn_local(connection);
        let mut server = server.unwrap();
        let opened: Vec<_> = (0..20).map(|_| requests.send_request(headers(0), false).unwrap()).collect();
        let mut writers = Vec::new();
        for _ in &opened {
            let mut stream = server.next().await.unwrap().accept(&Baggage::default()).unwrap();
            writers.push(spawn_local(async move {
                let mut taken = 0_usize;
                while let Ok(written) = stream.write(&[7; 16 * 1024]).await {
                    taken += written;
                    assert!(taken <= options_bound(), "more is held than the send buffer");
                }
            }));
        }
        spawn_local(async move { while server.next().await.is_some() {} });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(writers.iter().all(|writer| !writer.is_finished()), "they wait");
        ask(&mut calm.stream).await;
        client.abort();
        for writer in writers {
            timeout(Duration::from_secs(60), writer).await.unwrap().unwrap();
        }
    })
    .await;
}

/// What one stream may have waiting to be written, and a record more.
fn options_bound() -> usize {
    server_options().http2.send_buffer + 16 * 1024
}

#[tokio::test(start_paused = true)]
async fn a_handshake_of_one_byte_a_second_is_cut_at_the_deadline() {
    on_worker(async {
        let mut neighbour = Pair::new();
        neighbour.echo();
        let mut calm = neighbour.open().await.unwrap();
        for after_tls in [false, true] {
            let (mut near, far) = duplex(64 * 1024);
            let accepting = spawn_local(async {
                let began = Instant::now();
                let accepted = server::accept(far, &certificates().server.server, &anybody(), &server_options()).await;
                (accepted.map(drop), began.elapsed())
            });
            let config = certificates().client.client.clone();
            let trickle = spawn_local(async move {
                if after_tls {
                    let mut tls = TlsConnector::from(config).connect(tls::server_name(), near).await.unwrap();
                    for byte in PREFACE {
                        let _gone = tls.write_all(&[*byte]).await;
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                } else {
                    for byte in client_hello(config) {
                        let _gone = near.write_all(&[byte]).await;
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            });
            ask(&mut calm.stream).await;
            let (accepted, took) = accepting.await.unwrap();
            assert!(matches!(accepted, Err(AcceptError::Timeout(_))));
            assert_eq!(accepted.unwrap_err().reason(), "tunnel_handshake_timeout");
            assert_eq!(took, server_options().handshake_deadline);
            ask(&mut calm.stream).await;
            trickle.abort();
        }
    })
    .await;
}

/// The first bytes that a client of the mesh sends.
fn client_hello(config: std::sync::Arc<rustls::ClientConfig>) -> Vec<u8> {
    let name: ServerName<'static> = tls::server_name();
    let mut client = rustls::ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}
