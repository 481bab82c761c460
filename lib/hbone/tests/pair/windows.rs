//! What the peers of one party may send before it is read: their tunnels share it.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use underpass_hbone::{Held, Meter, PoolOptions, ServerOptions, TunnelStream, copy::tunnel_with_tcp};

use crate::support::{Pair, ask, on_worker, server_options};

/// A connection that takes next to nothing, and its other end, which never reads.
async fn deaf() -> (TcpStream, TcpStream) {
    let (near, far) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v4().unwrap());
    near.set_send_buffer_size(4096).unwrap();
    far.set_recv_buffer_size(4096).unwrap();
    far.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = far.listen(1).unwrap();
    let (near, far) = tokio::join!(near.connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn pair(held: &Arc<Held>) -> Pair {
    Pair::with(PoolOptions::default(), ServerOptions { held: Arc::clone(held), ..server_options() })
}

/// Says something without end.
fn flood(mut stream: TunnelStream) {
    tokio::task::spawn_local(async move { while stream.write_all(&[7; 64 << 10]).await.is_ok() {} });
}

#[tokio::test]
async fn what_a_party_that_reads_nothing_is_sent_stays_within_what_it_may_hold() {
    const TUNNELS: u64 = 16;
    const STREAMS: usize = 12;
    const LIMIT: u64 = 1 << 20;
    on_worker(async {
        let held = Arc::new(Held::new(LIMIT));
        let (mut pairs, mut kept) = (Vec::new(), Vec::new());
        for _ in 0..TUNNELS {
            let mut pair = pair(&held);
            for _ in 0..STREAMS {
                let (near, far) = pair.connected().await;
                let (application, silent) = deaf().await;
                let meter = Meter { held: Arc::clone(&held), ..Meter::default() };
                tokio::task::spawn_local(async move { tunnel_with_tcp(far, application, &meter).await });
                flood(near.stream);
                kept.push(silent);
            }
            pairs.push(pair);
        }
        // Until no more comes.
        let mut last = (0, 0);
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = held.bytes();
            last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
            if last.1 >= 5 {
                break;
            }
        }
        // What the tunnels were granted as they came, when they were fewer, and once more what may be held.
        let most = LIMIT + (1..=TUNNELS).map(|tunnels| (LIMIT / tunnels).max(64 << 10)).sum::<u64>();
        assert!((LIMIT / 2..=most).contains(&held.bytes()), "{} of {most}", held.bytes());
        // And another peer is served.
        let mut other = pair(&held);
        other.echo();
        let mut other = other.open().await.unwrap();
        timeout(Duration::from_secs(10), ask(&mut other.stream)).await.unwrap();
    })
    .await;
}

/// Takes what comes and passes nothing on.
async fn hoard(mut stream: TunnelStream) -> Vec<Bytes> {
    let mut kept = Vec::new();
    while let Some(Ok(data)) = poll_fn(|cx| stream.poll_data(cx)).await {
        kept.push(data);
    }
    kept
}

#[tokio::test(start_paused = true)]
async fn while_there_is_room_a_reader_that_stands_still_stops_no_other_stream_of_its_tunnel() {
    on_worker(async {
        let held = Arc::new(Held::new(4 << 20));
        let mut pairs: Vec<Pair> = (0..64).map(|_| pair(&held)).collect();
        let mut idle = Vec::new();
        for pair in &mut pairs[1..] {
            idle.push(pair.connected().await);
        }
        let (mut still, far) = pairs[0].connected().await;
        tokio::task::spawn_local(hoard(far));
        // As much as one stream may have, and many times what the tunnel began with.
        timeout(Duration::from_secs(60), still.stream.write_all(&vec![7; 1 << 20])).await.unwrap().unwrap();
        let (mut lively, far) = pairs[0].connected().await;
        tokio::task::spawn_local(async move {
            let (mut read, mut write) = tokio::io::split(far);
            tokio::io::copy(&mut read, &mut write).await
        });
        timeout(Duration::from_secs(60), ask(&mut lively.stream)).await.unwrap();
    })
    .await;
}
