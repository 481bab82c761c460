//! A peer that is revoked: its tunnel is cut, it is let in no more, and both ends know why.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::io::{AsyncWriteExt as _, duplex};
use underpass_hbone::{Baggage, PoolOptions, ServerOptions, StreamError, TunnelStream, server};
use underpass_identity::{Expected, Revocations};
use underpass_model::{Revocation, TrustDomain};

use crate::{
    frames::{self, DATA, END_HEADERS, HEADERS, connect_head},
    support::{CLIENT, Pair, SERVER, certificates, id, on_worker, server_options, settle},
};

const REASON: &str = "peer_certificate_revoked";

async fn data(stream: &mut TunnelStream) -> Option<Result<Bytes, StreamError>> {
    std::future::poll_fn(|cx| stream.poll_data(cx)).await
}

/// Every certificate of an identity, up to some time from now.
fn all_of(identity: &str) -> Revocation {
    let soon = SystemTime::now() + Duration::from_secs(3600);
    let before = soon.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    Revocation::Identity { identity: id(identity), before }
}

/// What each end is told is revoked.
fn pair() -> (Pair, Revocations, Revocations) {
    let (near, far) = (Revocations::new(), Revocations::new());
    let pool = PoolOptions { revocations: near.clone(), ..PoolOptions::default() };
    let server = ServerOptions { revocations: far.clone(), ..server_options() };
    (Pair::with(pool, server), near, far)
}

#[tokio::test(start_paused = true)]
async fn a_revoked_client_is_cut_off_and_let_in_no_more() {
    on_worker(async {
        let (mut pair, _, far_knows) = pair();
        let (mut near, mut far) = pair.connected().await;
        far_knows.set_told([all_of(SERVER)]);
        settle().await;
        assert_eq!(pair.far.ended.get(), 0, "nobody revoked the client");
        far_knows.set_told([all_of(CLIENT)]);
        let (seen_near, seen_far) = tokio::join!(data(&mut near.stream), data(&mut far));
        assert!(matches!(&seen_far, Some(Err(error)) if error.reason() == REASON), "{seen_far:?}");
        assert!(matches!(&seen_near, Some(Err(_))), "{seen_near:?}");
        settle().await;
        assert_eq!(pair.far.ended.get(), 1);
        assert!(pair.open().await.is_err());
        far_knows.set_told([]);
        pair.connected().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_is_revoked_while_its_connect_waits_is_not_answered_and_not_heard() {
    on_worker(async {
        let revocations = Revocations::new();
        let options = ServerOptions { revocations: revocations.clone(), ..server_options() };
        let (near, far) = duplex(256 * 1024);
        let expect = Expected::TrustDomain(TrustDomain::default());
        let accept = server::accept(far, &certificates().server.server, &expect, &options);
        let (mut tls, server) = tokio::join!(frames::raw(near), accept);
        let mut server = server.unwrap();
        // It speaks before it is answered.
        tls.write_all(&frames::frame(HEADERS, END_HEADERS, 1, &connect_head())).await.unwrap();
        tls.write_all(&frames::frame(DATA, 0, 1, b"secret")).await.unwrap();
        let mut incoming = server.next().await.unwrap();
        tokio::task::spawn_local(async move { while server.next().await.is_some() {} });
        settle().await;
        tokio::select! { () = incoming.cancelled() => panic!("it has not given up"), () = settle() => {} }
        revocations.set_told([all_of(CLIENT)]);
        settle().await;
        let refused = incoming.accept(&Baggage::default()).unwrap_err();
        assert_eq!(refused.reason(), REASON);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_revoked_server_is_left_and_called_no_more() {
    on_worker(async {
        let (mut pair, near_knows, _) = pair();
        let (mut near, mut far) = pair.connected().await;
        near_knows.set_told([all_of(SERVER)]);
        let (seen_near, seen_far) = tokio::join!(data(&mut near.stream), data(&mut far));
        assert!(matches!(&seen_near, Some(Err(error)) if error.reason() == REASON), "{seen_near:?}");
        assert!(matches!(&seen_far, Some(Err(_))), "{seen_far:?}");
        settle().await;
        assert!(pair.pool.status().is_empty());
        assert_eq!(pair.open().await.unwrap_err().reason(), REASON);
        near_knows.set_told([]);
        pair.connected().await;
    })
    .await;
}
