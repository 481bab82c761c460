//! One stream: its ends, its resets, its windows.

use std::{io, task::Poll, time::Duration};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use underpass_hbone::{
    Baggage, ConnectHeaders, ConnectRequest, Forwarded, KeepaliveOptions, PoolOptions, StreamError, TraceParent,
    TunnelStream,
};

use crate::support::{Pair, ask, certificates, key, on_worker, request, server_options, settle};

async fn read_to_end(stream: &mut TunnelStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    all
}

async fn data(stream: &mut TunnelStream) -> Option<Result<Bytes, StreamError>> {
    std::future::poll_fn(|cx| stream.poll_data(cx)).await
}

#[tokio::test(start_paused = true)]
async fn each_direction_ends_on_its_own() {
    on_worker(async {
        let mut pair = Pair::new();
        for client_first in [true, false] {
            let (near, mut far) = pair.connected().await;
            let mut near = near.stream;
            let (first, second) = if client_first { (&mut near, &mut far) } else { (&mut far, &mut near) };
            first.write_all(b"question").await.unwrap();
            first.shutdown().await.unwrap();
            assert_eq!(read_to_end(second).await, b"question");
            second.write_all(b"answer").await.unwrap();
            second.shutdown().await.unwrap();
            assert_eq!(read_to_end(first).await, b"answer");
        }
        assert_eq!(pair.far.dials.get(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_is_reset() {
    on_worker(async {
        let mut pair = Pair::new();
        for client_drops in [true, false] {
            let (near, far) = pair.connected().await;
            let (mut dropped, mut other) = if client_drops { (near.stream, far) } else { (far, near.stream) };
            dropped.write_all(b"last words").await.unwrap();
            settle().await;
            drop(dropped);
            assert_eq!(data(&mut other).await.unwrap().unwrap(), "last words");
            assert!(matches!(data(&mut other).await, Some(Err(StreamError::Reset(h2::Reason::CANCEL)))));
            let error = other.write_all(b"more").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_is_seen_while_nothing_is_read_or_written() {
    on_worker(async {
        let mut pair = Pair::new();
        let (mut near, far) = pair.connected().await;
        settle().await;
        drop(far);
        let reset = std::future::poll_fn(|cx| near.stream.poll_reset(cx)).await;
        assert_eq!(reset.reason(), "stream_reset");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_said_all_may_decline_the_rest() {
    on_worker(async {
        let mut pair = Pair::new();
        let (near, mut far) = pair.connected().await;
        let mut near = near.stream;
        far.write_all(b"too large, go away").await.unwrap();
        far.shutdown().await.unwrap();
        drop(far);
        assert_eq!(read_to_end(&mut near).await, b"too large, go away");
        let error = near.write_all(b"more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        near.shutdown().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_stops_the_writer_at_the_window() {
    on_worker(async {
        let mut pair = Pair::new();
        let (near, mut far) = pair.connected().await;
        let mut near = near.stream;
        settle().await;
        let piece = vec![7; 64 * 1024];
        let mut written = 0;
        while let Ok(outcome) = tokio::time::timeout(Duration::from_secs(1), near.write(&piece)).await {
            written += outcome.unwrap();
        }
        assert_eq!(written, 1 << 20, "the stream's window, not one byte more, is taken from the application");
        near.give_back();

        // Reading lets the writer go on, and nothing is lost.
        let writer = async {
            near.write_all(&piece).await.unwrap();
            near.shutdown().await.unwrap();
        };
        let ((), read) = tokio::join!(writer, read_to_end(&mut far));
        assert_eq!(read.len(), written + piece.len());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dozen_stalled_streams_do_not_stop_another() {
    on_worker(async {
        let mut pair = Pair::new();
        let mut stalled = Vec::new();
        for _ in 0..12 {
            let (mut near, never_read) = pair.connected().await;
            settle().await;
            let piece = vec![7; 64 * 1024];
            while let Ok(outcome) = tokio::time::timeout(Duration::from_secs(1), near.stream.write(&piece)).await {
                outcome.unwrap();
            }
            stalled.push((near, never_read));
        }
        let (near, mut far) = pair.connected().await;
        let mut near = near.stream;
        let writer = async {
            near.write_all(&vec![8; 8 << 20]).await.unwrap();
            near.shutdown().await.unwrap();
        };
        let both = async { tokio::join!(writer, read_to_end(&mut far)) };
        let ((), read) = tokio::time::timeout(Duration::from_secs(20), both).await.expect("it has room");
        assert_eq!(read.len(), 8 << 20);
        assert_eq!(pair.far.dials.get(), 1, "both were in one tunnel");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn data_that_is_taken_but_not_released_keeps_the_window_closed() {
    on_worker(async {
        let mut pair = Pair::new();
        let (near, mut far) = pair.connected().await;
        let mut near = near.stream;
        settle().await;
        let writer = async move { near.write_all(&vec![7; 2 << 20]).await.map(|()| near) };
        let mut writer = std::pin::pin!(writer);
        let mut taken = 0;
        let reading = async {
            while let Ok(data) = tokio::time::timeout(Duration::from_secs(1), data(&mut far)).await {
                taken += data.unwrap().unwrap().len();
            }
        };
        tokio::select! { () = reading => {}, _ = &mut writer => panic!("more than the window was taken") }
        assert_eq!(taken, 1 << 20);
        far.release(taken);
        writer.await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn headers_and_answers_arrive() {
    on_worker(async {
        let mut pair = Pair::new();
        let headers = ConnectHeaders {
            baggage: Baggage { service: "web".into(), ..Baggage::default() },
            forwarded: Forwarded { client: "10.0.0.1:4000".parse().ok(), host: Some("db.shop".into()) },
            traceparent: TraceParent::new(1, 2),
        };
        let request = ConnectRequest { headers: headers.clone(), authority: "db.shop:5432".parse().unwrap() };
        let own = Baggage { service: "db".into(), version: "v2".into(), ..Baggage::default() };
        let (key, client) = (key(), &certificates().client.client);
        let opening = pair.pool.open(&key, &request, client, || pair.far.dial());
        let accepting = async {
            let incoming = pair.incoming.recv().await.unwrap();
            assert_eq!(incoming.authority, Ok(request.authority.clone()));
            assert_eq!(incoming.headers, headers);
            incoming.accept(&own).unwrap()
        };
        let (tunnel, _stream) = tokio::join!(opening, accepting);
        let tunnel = tunnel.unwrap();
        assert_eq!(tunnel.response, own);
        assert_eq!(tunnel.peer, certificates().server.identity);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_server_learns_that_the_client_gave_up_before_the_answer() {
    on_worker(async {
        let mut pair = Pair::new();
        let mut opening = Box::pin(pair.open());
        let mut incoming = tokio::select! {
            incoming = pair.incoming.recv() => incoming.unwrap(),
            _ = &mut opening => panic!("opened without an answer"),
        };
        drop(opening);
        incoming.cancelled().await;
        assert!(incoming.accept(&Baggage::default()).is_err());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up_by_both_ends() {
    on_worker(async {
        let mut pair = Pair::new();
        let (mut near, mut far) = pair.connected().await;
        settle().await;
        let since = tokio::time::Instant::now();
        pair.far.cable.cut();
        let (near, far) = tokio::join!(data(&mut near.stream), data(&mut far));
        assert!(matches!(near, Some(Err(StreamError::TunnelLost(_)))), "{near:?}");
        assert!(matches!(far, Some(Err(StreamError::TunnelLost(_)))), "{far:?}");
        let silence = since.elapsed().as_secs();
        assert!((29..=31).contains(&silence), "{silence}");
        settle().await;
        assert_eq!(pair.far.ended.get(), 1);
        assert!(pair.pool.status().is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn pings_keep_an_idle_tunnel_with_a_stream_alive() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        let mut near = pair.open().await.unwrap();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        ask(&mut near.stream).await;
        assert_eq!((pair.far.dials.get(), pair.far.ended.get()), (1, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_ping_is_the_only_thing_that_keeps_an_idle_tunnel_alive() {
    on_worker(async {
        // An end that would ask later than the other gives up.
        let never = KeepaliveOptions { ask_after: Duration::from_secs(3600), dead_after: Duration::from_secs(7200) };
        let deaf = KeepaliveOptions { ask_after: Duration::from_secs(30), dead_after: Duration::from_secs(20) };
        let pool = PoolOptions { keepalive: never, ..PoolOptions::default() };
        let mut server = server_options();
        server.keepalive = deaf;
        let mut pair = Pair::with(pool, server);
        let (mut near, _far) = pair.connected().await;
        assert!(matches!(data(&mut near.stream).await, Some(Err(_))));
        assert_eq!(pair.far.ended.get(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn opening_needs_little_memory() {
    on_worker(async {
        let pair = Pair::new();
        let (key, request) = (key(), request());
        let opening = pair.pool.open(&key, &request, &certificates().client.client, || async {
            Err::<tokio::net::TcpStream, _>(io::Error::other("no"))
        });
        let size = size_of_val(&opening);
        assert!(size <= 1536, "{size}");
        assert!(size_of::<TunnelStream>() <= 128, "{}", size_of::<TunnelStream>());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn room_that_is_given_back_serves_other_streams() {
    on_worker(async {
        let mut pair = Pair::new();
        let mut idle = Vec::new();
        for _ in 0..20 {
            let (near, far) = pair.connected().await;
            idle.push((near.stream, far));
        }
        settle().await;
        // Twenty streams reserve more than the tunnel's window together, and send nothing.
        for (near, _) in &mut idle {
            let reserved = std::future::poll_fn(|cx| match near.poll_room(cx, 1 << 20) {
                Poll::Ready(room) => Poll::Ready(room.ok()),
                Poll::Pending => Poll::Ready(None),
            });
            reserved.await;
        }
        for (near, _) in &mut idle {
            near.give_back();
        }
        let (near, far) = idle.last_mut().unwrap();
        near.write_all(b"mine").await.unwrap();
        assert_eq!(data(far).await.unwrap().unwrap(), "mine");
    })
    .await;
}
