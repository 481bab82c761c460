//! Which tunnel a stream goes to, and what happens when there is none.

use std::{cell::Cell, io, rc::Rc, sync::Arc, time::Duration};

use futures_util::future::join_all;
use http::StatusCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    time::Instant,
};
use underpass_hbone::{OpenError, PoolOptions, TunnelKey};
use underpass_identity::testing::TestAuthority;
use underpass_model::PodUid;

use crate::support::{CLIENT, Pair, SERVER, ask, certificates, id, key, on_worker, request, server_options, settle};

#[tokio::test(start_paused = true)]
async fn many_waiters_share_one_dial_and_one_tunnel() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        let opened = join_all((0..100).map(|_| pair.open())).await;
        for tunnel in opened {
            ask(&mut tunnel.unwrap().stream).await;
        }
        assert_eq!(pair.far.dials.get(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_streams_need_ten_tunnels() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        let opened = join_all((0..1000).map(|_| pair.open())).await;
        let mut opened: Vec<_> = opened.into_iter().map(Result::unwrap).collect();
        join_all(opened.iter_mut().map(|tunnel| ask(&mut tunnel.stream))).await;
        assert_eq!(pair.far.dials.get(), 10);
        let status = pair.pool.status();
        assert_eq!(status.len(), 10);
        assert!(status.iter().all(|tunnel| tunnel.streams == 100 && tunnel.peer == id(SERVER)));
        drop(opened);
        assert!(pair.pool.status().iter().all(|tunnel| tunnel.streams == 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_full_tunnel_is_used_again_once_a_stream_ends() {
    on_worker(async {
        let mut pair = Pair::with(PoolOptions { max_streams: 2, ..PoolOptions::default() }, server_options());
        pair.echo();
        let mut open = Vec::new();
        for expected in [1, 1, 2, 2, 3] {
            open.push(pair.open().await.unwrap());
            assert_eq!(pair.far.dials.get(), expected);
        }
        open.remove(0);
        open.push(pair.open().await.unwrap());
        assert_eq!(pair.far.dials.get(), 3, "the first tunnel has room again");
        for tunnel in &mut open {
            ask(&mut tunnel.stream).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_peers_limit_counts() {
    on_worker(async {
        let mut options = server_options();
        options.max_streams = 1;
        let mut pair = Pair::with(PoolOptions::default(), options);
        pair.echo();
        let opened = join_all((0..3).map(|_| pair.open())).await;
        let mut opened: Vec<_> = opened.into_iter().map(Result::unwrap).collect();
        assert_eq!(pair.far.dials.get(), 3);
        settle().await;
        opened.push(pair.open().await.unwrap());
        assert_eq!(pair.far.dials.get(), 4);
        for tunnel in &mut opened {
            ask(&mut tunnel.stream).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn goaway_lets_old_streams_finish_and_new_ones_go_elsewhere() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        let mut old = pair.open().await.unwrap();
        ask(&mut old.stream).await;
        pair.far.handles.borrow()[0].drain();
        settle().await;
        let mut new = pair.open().await.unwrap();
        assert_eq!(pair.far.dials.get(), 2);
        ask(&mut old.stream).await;
        ask(&mut new.stream).await;
        old.stream.shutdown().await.unwrap();
        assert_eq!(old.stream.read(&mut [0; 1]).await.unwrap(), 0);
        drop(old);
        settle().await;
        assert_eq!(pair.far.ended.get(), 1, "the drained tunnel ends with its last stream");
        ask(&mut new.stream).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_opened_while_goaway_is_under_way_is_served() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        let _first = pair.open().await.unwrap();
        pair.far.handles.borrow()[0].drain();
        let mut raced = pair.open().await.unwrap();
        ask(&mut raced.stream).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_is_closed_at_once_takes_its_streams_along() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        let mut tunnel = pair.open().await.unwrap();
        ask(&mut tunnel.stream).await;
        let since = Instant::now();
        pair.far.handles.borrow()[0].close();
        let error = tunnel.stream.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        settle().await;
        assert_eq!(pair.far.ended.get(), 1);
        assert!(since.elapsed() < Duration::from_secs(1), "nothing waited for a deadline");
        ask(&mut pair.open().await.unwrap().stream).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_broke_unseen_is_replaced_without_an_error() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        drop(pair.open().await.unwrap());
        settle().await;
        // The peer says good-bye, and before that is read here the next stream is asked for.
        pair.far.handles.borrow()[0].close();
        ask(&mut pair.open().await.unwrap().stream).await;
        assert_eq!(pair.far.dials.get(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_an_error_with_its_status_and_503_may_be_retried_elsewhere() {
    on_worker(async {
        let mut pair = Pair::new();
        for (status, elsewhere) in [(400, false), (401, false), (403, false), (404, false), (503, true)] {
            let status = StatusCode::from_u16(status).unwrap();
            let opening = pair.open();
            let refusing = async { pair.incoming.recv().await.unwrap().refuse(status) };
            let (outcome, ()) = tokio::join!(opening, refusing);
            let error = outcome.unwrap_err();
            assert!(matches!(error, OpenError::Refused { status: said, .. } if said == status), "{error}");
            assert_eq!((error.reason(), error.retry_elsewhere()), ("tunnel_refused", elsewhere));
        }
        assert_eq!(pair.far.dials.get(), 1, "a refusal says nothing against the tunnel");
        assert_eq!(pair.pool.status()[0].streams, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_never_comes_is_an_error_at_the_deadline() {
    on_worker(async {
        let mut pair = Pair::new();
        let since = Instant::now();
        let error = pair.open().await.unwrap_err();
        assert_eq!((error.reason(), error.retry_elsewhere()), ("tunnel_no_answer", true));
        assert_eq!(since.elapsed().as_secs(), 15);
        let mut incoming = pair.incoming.recv().await.unwrap();
        incoming.cancelled().await;
        assert_eq!(pair.pool.status()[0].streams, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_whose_peer_fell_silent_is_left_within_seconds() {
    on_worker(async {
        let mut pair = Pair::with(PoolOptions { max_streams: 30, ..PoolOptions::default() }, server_options());
        pair.echo();
        let mut old = join_all((0..40).map(|_| pair.open())).await;
        assert_eq!((pair.far.dials.get(), pair.pool.status().len()), (2, 2));
        old.truncate(10);
        settle().await;
        pair.far.cable.cut();
        pair.rewire();
        let since = Instant::now();
        for tunnel in join_all((0..20).map(|_| pair.open())).await {
            ask(&mut tunnel.unwrap().stream).await;
        }
        assert!(since.elapsed() < Duration::from_secs(7), "{:?}", since.elapsed());
        assert_eq!(pair.far.dials.get(), 3, "one new tunnel, and the silent ones are not tried in turn");
        ask(&mut pair.open().await.unwrap().stream).await;
        assert!(since.elapsed() < Duration::from_secs(7));
        let silence = old[0].as_mut().unwrap().stream.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(silence.kind(), io::ErrorKind::ConnectionReset);
        assert!(since.elapsed() > Duration::from_secs(25), "streams that were open may hope for longer");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_new_tunnel_whose_peer_is_silent_is_an_error_within_seconds() {
    on_worker(async {
        let pair = Pair::new();
        let (key, request, tls) = (key(), request(), &certificates().client.client);
        let since = Instant::now();
        let mute = || async {
            let (near, far) = duplex(1 << 20);
            tokio::task::spawn_local(async move {
                let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&certificates().server.server));
                let _held = acceptor.accept(far).await.unwrap();
                std::future::pending::<()>().await;
            });
            Ok(near)
        };
        let error = pair.pool.open(&key, &request, tls, mute).await.unwrap_err();
        assert_eq!((error.reason(), error.retry_elsewhere()), ("tunnel_silent", true));
        assert_eq!(since.elapsed().as_secs(), 6);
        settle().await;
        assert!(pair.pool.status().is_empty(), "{:?}", pair.pool.status());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn new_credentials_get_a_new_tunnel_and_old_streams_finish() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        let mut old = pair.open().await.unwrap();
        let renewed = certificates().authority.credentials(&id(CLIENT));
        let (key, request) = (key(), request());
        for _ in 0..2 {
            let mut new = pair.pool.open(&key, &request, &renewed.client, || pair.far.dial()).await.unwrap();
            ask(&mut new.stream).await;
        }
        assert_eq!(pair.far.dials.get(), 2);
        ask(&mut old.stream).await;
        drop(old);
        settle().await;
        assert_eq!(pair.far.ended.get(), 1, "the old tunnel ends with its last stream");
        assert_eq!(pair.pool.status().len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dial_with_other_credentials_that_fails_says_nothing_of_ours() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        let stranger = TestAuthority::new().credentials(&id(CLIENT));
        let (key, request) = (key(), request());
        let theirs = pair.pool.open(&key, &request, &stranger.client, || pair.far.dial());
        let (theirs, ours) = tokio::join!(theirs, pair.open());
        assert_eq!(theirs.unwrap_err().reason(), "tunnel_tls_failed");
        ask(&mut ours.unwrap().stream).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_never_ends_fails_for_all_who_wait_at_once() {
    on_worker(async {
        let pair = Pair::new();
        let dials = Cell::new(0);
        let held = Cell::new(None);
        let (key, request, tls) = (key(), request(), &certificates().client.client);
        let since = Instant::now();
        let opening = join_all((0..20).map(|_| {
            pair.pool.open(&key, &request, tls, || async {
                dials.set(dials.get() + 1);
                let (near, far) = duplex(1 << 20);
                held.set(Some(far));
                Ok(near)
            })
        }));
        for outcome in opening.await {
            let error = outcome.unwrap_err();
            assert_eq!((error.reason(), error.retry_elsewhere()), ("tunnel_handshake_timeout", true));
        }
        assert_eq!((dials.get(), since.elapsed().as_secs()), (1, 5));
        assert!(format!("{:?}", pair.pool).contains("keys: 0"), "nothing is remembered: {:?}", pair.pool);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn dials_that_fail_or_never_end_are_errors_with_a_reason() {
    on_worker(async {
        let pair = Pair::new();
        let (key, request, tls) = (key(), request(), &certificates().client.client);
        let refused = || async { Err::<DuplexStream, _>(io::ErrorKind::ConnectionRefused.into()) };
        let error = pair.pool.open(&key, &request, tls, refused).await.unwrap_err();
        assert_eq!((error.reason(), error.retry_elsewhere()), ("tunnel_dial_failed", true));
        let since = Instant::now();
        let error = pair.pool.open(&key, &request, tls, std::future::pending::<io::Result<DuplexStream>>).await;
        assert_eq!(error.unwrap_err().reason(), "tunnel_dial_timeout");
        assert_eq!(since.elapsed().as_secs(), 10);
        let hangs_up = || async { Ok(duplex(1024).0) };
        let error = pair.pool.open(&key, &request, tls, hangs_up).await.unwrap_err();
        assert_eq!(error.reason(), "tunnel_tls_failed");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn if_who_dials_gives_up_one_of_those_who_wait_dials() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        let (key, request, tls) = (key(), request(), &certificates().client.client);
        let hangs = pair.pool.open(&key, &request, tls, std::future::pending::<io::Result<DuplexStream>>);
        let mut hangs = Box::pin(hangs);
        let waiters = join_all((0..10).map(|_| pair.open()));
        tokio::select! {
            biased;
            _ = &mut hangs => panic!("cannot connect"),
            () = settle() => {}
        }
        let waiters = tokio::task::spawn_local(waiters);
        settle().await;
        assert_eq!(pair.far.dials.get(), 0, "they wait");
        drop(hangs);
        for tunnel in waiters.await.unwrap() {
            ask(&mut tunnel.unwrap().stream).await;
        }
        assert_eq!(pair.far.dials.get(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn refuses_a_peer_that_is_not_whom_we_wanted() {
    on_worker(async {
        let pair = Pair::new();
        let other = TunnelKey { expect: Arc::from([id(CLIENT)]), ..key() };
        let tls = &certificates().client.client;
        let error = pair.pool.open(&other, &request(), tls, || pair.far.dial()).await.unwrap_err();
        assert_eq!(error.reason(), "peer_wrong_identity");
        settle().await;
        assert!(pair.pool.status().is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn tunnels_are_never_shared_between_keys() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        let other_pod = TunnelKey { pod: PodUid::new("pod-2"), ..key() };
        let other_address = TunnelKey { address: "10.0.0.10:15008".parse().unwrap(), ..key() };
        let other_expectation = TunnelKey { expect: Arc::from([id(SERVER), id(CLIENT)]), ..key() };
        let tls = &certificates().client.client;
        let mut kept = Vec::new();
        for key in [key(), other_pod, other_address, other_expectation] {
            kept.push(pair.pool.open(&key, &request(), tls, || pair.far.dial()).await.unwrap());
        }
        assert_eq!(pair.far.dials.get(), 4);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn evicted_tunnels_take_no_new_streams_and_end_with_the_last_old_one() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        let mut old = pair.open().await.unwrap();
        pair.pool.evict(|key| key.pod == PodUid::new("pod-2"));
        let _same = pair.open().await.unwrap();
        assert_eq!(pair.far.dials.get(), 1);
        drop(_same);
        pair.pool.evict(|key| key.pod == PodUid::new("pod-1"));
        assert!(pair.pool.status().is_empty());
        let mut new = pair.open().await.unwrap();
        assert_eq!(pair.far.dials.get(), 2);
        ask(&mut old.stream).await;
        assert_eq!(pair.far.ended.get(), 0);
        drop(old);
        settle().await;
        assert_eq!(pair.far.ended.get(), 1);
        ask(&mut new.stream).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_dialled_while_it_was_evicted_serves_only_who_dialled() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        let gate = Rc::new(tokio::sync::Notify::new());
        let (far, opened) = (pair.far.clone(), Rc::clone(&gate));
        let pool = pair.pool.clone();
        let first = tokio::task::spawn_local(async move {
            let dial = || async move {
                opened.notified().await;
                far.dial().await
            };
            pool.open(&key(), &request(), &certificates().client.client, dial).await
        });
        settle().await;
        pair.pool.evict(|_| true);
        gate.notify_one();
        let mut first = first.await.unwrap().unwrap();
        ask(&mut first.stream).await;
        let _second = pair.open().await.unwrap();
        assert_eq!(pair.far.dials.get(), 2);
        drop(first);
        settle().await;
        assert_eq!(pair.far.ended.get(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_is_released_and_a_used_one_kept() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        let kept = pair.open().await.unwrap();
        tokio::time::sleep(Duration::from_secs(1000)).await;
        assert_eq!(pair.far.ended.get(), 0);
        drop(kept);
        tokio::time::sleep(Duration::from_secs(250)).await;
        drop(pair.open().await.unwrap());
        assert_eq!(pair.far.dials.get(), 1);
        tokio::time::sleep(Duration::from_secs(290)).await;
        assert_eq!(pair.far.ended.get(), 0);
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(pair.far.ended.get(), 1);
        assert!(format!("{:?}", pair.pool).contains("keys: 0"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn dropping_the_pool_ends_its_tunnels() {
    on_worker(async {
        let mut pair = Pair::new();
        pair.echo();
        drop(pair.open().await.unwrap());
        let far = pair.far.clone();
        drop(pair);
        settle().await;
        assert_eq!(far.ended.get(), 1);
    })
    .await;
}
