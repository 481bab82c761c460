//! Applications on kernel TCP at both sides of a tunnel, or joined directly. Time runs: paused time would jump while
//! the kernel works.

use std::{
    future::Future,
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};
use underpass_hbone::{CopyError, Meter, copy};

use crate::support::{Pair, on_worker};

/// Two applications and what is between them.
struct Path {
    client: TcpStream,
    server: TcpStream,
    /// The copying that the client's application is connected to.
    near: JoinHandle<Result<(), CopyError>>,
    /// The copying that the server's application is connected to; none if both are one.
    far: Option<JoinHandle<Result<(), CopyError>>>,
    near_meter: Arc<Meter>,
}

async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (dialled, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

fn run<F>(copying: impl FnOnce(Arc<Meter>) -> F) -> (Arc<Meter>, JoinHandle<Result<(), CopyError>>)
where
    F: Future<Output = Result<(), CopyError>> + 'static,
{
    let meter = Arc::new(Meter::default());
    (Arc::clone(&meter), tokio::task::spawn_local(copying(meter)))
}

impl Path {
    async fn through_a_tunnel(pair: &mut Pair) -> Self {
        let (client, captured) = tcp().await;
        let (dialled, server) = tcp().await;
        let (near, far) = pair.connected().await;
        let (_, far) = run(|meter| async move { copy::tunnel_with_tcp(far, dialled, &meter).await });
        let (near_meter, near) = run(|meter| async move { copy::tcp_with_tunnel(captured, near.stream, &meter).await });
        Self { client, server, near, far: Some(far), near_meter }
    }

    async fn joined() -> Self {
        let (client, captured) = tcp().await;
        let (dialled, server) = tcp().await;
        let (near_meter, near) = run(|meter| async move { copy::tcp_with_tcp(captured, dialled, &meter).await });
        Self { client, server, near, far: None, near_meter }
    }

    async fn both(pair: &mut Pair) -> [Self; 2] {
        [Self::through_a_tunnel(pair).await, Self::joined().await]
    }

    async fn outcomes(self) -> Vec<Result<(), CopyError>> {
        let mut outcomes = vec![self.near.await.unwrap()];
        if let Some(far) = self.far {
            outcomes.push(far.await.unwrap());
        }
        outcomes
    }
}

fn bytes(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|n| (n * 7 + n / 251) as u8 ^ salt).collect()
}

async fn read_all(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut all)).await.expect("it ends")?;
    Ok(all)
}

fn reset(socket: TcpStream) {
    socket.set_zero_linger().unwrap();
    drop(socket);
}

#[tokio::test]
async fn large_flows_cross_in_both_directions_unchanged() {
    on_worker(async {
        let mut pair = Pair::new();
        for path in Path::both(&mut pair).await {
            let (sent, answered) = (bytes(9_000_001, 1), bytes(7_000_003, 2));
            let Path { client, server, near, far, near_meter } = path;
            let (mut client_read, mut client_write) = client.into_split();
            let (mut server_read, mut server_write) = server.into_split();
            let (mut got, mut got_back) = (Vec::new(), Vec::new());
            let both = async {
                tokio::join!(
                    async { client_write.write_all(&sent).await.and(client_write.shutdown().await) },
                    async { server_write.write_all(&answered).await.and(server_write.shutdown().await) },
                    server_read.read_to_end(&mut got),
                    client_read.read_to_end(&mut got_back),
                )
            };
            let done = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
            assert!(done.0.is_ok() && done.1.is_ok() && done.2.is_ok() && done.3.is_ok(), "{done:?}");
            assert!(got == sent && got_back == answered);
            near.await.unwrap().unwrap();
            if let Some(far) = far {
                far.await.unwrap().unwrap();
            }
            assert_eq!(near_meter.from_downstream.load(Ordering::Relaxed), sent.len() as u64);
            assert_eq!(near_meter.to_downstream.load(Ordering::Relaxed), answered.len() as u64);
        }
    })
    .await;
}

#[tokio::test]
async fn half_close_is_carried_each_way() {
    on_worker(async {
        let mut pair = Pair::new();
        for client_first in [true, false] {
            for mut path in Path::both(&mut pair).await {
                let (first, second) = if client_first {
                    (&mut path.client, &mut path.server)
                } else {
                    (&mut path.server, &mut path.client)
                };
                first.write_all(b"question").await.unwrap();
                first.shutdown().await.unwrap();
                assert_eq!(read_all(second).await.unwrap(), b"question");
                second.write_all(b"answer").await.unwrap();
                second.shutdown().await.unwrap();
                assert_eq!(read_all(first).await.unwrap(), b"answer");
                for outcome in path.outcomes().await {
                    outcome.unwrap();
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_reset_is_carried_each_way_and_what_came_before_it_arrives() {
    on_worker(async {
        let mut pair = Pair::new();
        for client_resets in [true, false] {
            for mut path in Path::both(&mut pair).await {
                let (resets, mut other) =
                    if client_resets { (&mut path.client, path.server) } else { (&mut path.server, path.client) };
                resets.write_all(b"last words").await.unwrap();
                let mut said = [0; 10];
                other.read_exact(&mut said).await.unwrap();
                // Nothing runs between these words and the reset.
                let resets = std::mem::replace(resets, tcp().await.0);
                assert_eq!(resets.try_write(b"and more").unwrap(), 8);
                reset(resets);
                let mut more = [0; 8];
                other.read_exact(&mut more).await.unwrap();
                assert_eq!(&more, b"and more");
                let error = other.read(&mut said).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "an error and not an end");
                let near = path.near.await.unwrap().unwrap_err();
                assert_eq!(near.reason(), if client_resets { "downstream_reset" } else { "upstream_reset" });
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_before_the_question_was_read_arrives_also_if_the_server_then_hangs_up() {
    on_worker(async {
        let mut pair = Pair::new();
        for mut path in Path::both(&mut pair).await {
            path.client.write_all(&bytes(3_000, 1)).await.unwrap();
            assert!(path.server.peek(&mut [0; 1]).await.unwrap() > 0);
            // Closing with unread data makes the kernel send RST.
            let answer = bytes(30_000, 2);
            path.server.write_all(&answer).await.unwrap();
            drop(path.server);
            let mut got = vec![0; answer.len()];
            // The client's further words meet a dead connection.
            let _broken = path.client.try_write(b"more");
            path.client.read_exact(&mut got).await.unwrap();
            assert!(got == answer);
            let end = read_all(&mut path.client).await;
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    })
    .await;
}

/// Writes until nobody takes more.
async fn fill(socket: &mut TcpStream) {
    let piece = bytes(1 << 20, 3);
    while let Ok(outcome) = tokio::time::timeout(Duration::from_millis(300), socket.write(&piece)).await {
        outcome.unwrap();
    }
}

#[tokio::test]
async fn a_reset_is_seen_also_of_one_whose_words_nobody_takes() {
    on_worker(async {
        for client_resets in [true, false] {
            let mut pair = Pair::new();
            for path in Path::both(&mut pair).await {
                let Path { client, server, near, .. } = path;
                let (mut resets, _deaf) = if client_resets { (client, server) } else { (server, client) };
                fill(&mut resets).await;
                reset(resets);
                let near = tokio::time::timeout(Duration::from_secs(5), near).await.expect("it ends");
                let reason = near.unwrap().unwrap_err().reason();
                assert_eq!(reason, if client_resets { "downstream_reset" } else { "upstream_reset" });
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_reset_is_seen_also_of_one_that_had_ended_and_waits() {
    on_worker(async {
        let mut pair = Pair::new();
        for mut path in Path::both(&mut pair).await {
            path.client.shutdown().await.unwrap();
            assert_eq!(read_all(&mut path.server).await.unwrap(), b"");
            reset(path.client);
            let near = tokio::time::timeout(Duration::from_secs(5), path.near).await.expect("it ends");
            assert_eq!(near.unwrap().unwrap_err().reason(), "downstream_reset");
        }
    })
    .await;
}

#[tokio::test]
async fn many_tiny_words_to_one_who_does_not_read_end_no_tunnel() {
    on_worker(async {
        let mut pair = Pair::new();
        // A connection that holds little in the kernel.
        let listening = TcpSocket::new_v4().unwrap();
        listening.set_recv_buffer_size(4096).unwrap();
        listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listening.listen(1).unwrap();
        let dialling = TcpSocket::new_v4().unwrap();
        dialling.set_send_buffer_size(4096).unwrap();
        let dialled = dialling.connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();

        let (near, far) = pair.connected().await;
        let mut near = near.stream;
        let (_, far) = run(|meter| async move { copy::tunnel_with_tcp(far, dialled, &meter).await });
        let mut sent = bytes(500_000, 1);
        near.write_all(&sent).await.unwrap();
        for n in 0..60_000_u32 {
            near.write_all(&[n as u8]).await.unwrap();
            sent.push(n as u8);
        }
        near.shutdown().await.unwrap();
        let mut got = vec![0; sent.len()];
        tokio::time::sleep(Duration::from_millis(200)).await;
        tokio::time::timeout(Duration::from_secs(20), server.read_exact(&mut got)).await.unwrap().unwrap();
        assert!(got == sent);
        server.shutdown().await.unwrap();
        far.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_connection_whose_copying_is_dropped_ends_with_reset() {
    on_worker(async {
        let mut pair = Pair::new();
        for mut path in Path::both(&mut pair).await {
            path.client.write_all(b"word").await.unwrap();
            path.server.read_exact(&mut [0; 4]).await.unwrap();
            path.near.abort();
            for socket in [&mut path.client, &mut path.server] {
                let error = read_all(socket).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_that_is_cut_resets_the_applications() {
    on_worker(async {
        let mut pair = Pair::new();
        let mut path = Path::through_a_tunnel(&mut pair).await;
        path.client.write_all(b"word").await.unwrap();
        path.server.read_exact(&mut [0; 4]).await.unwrap();
        pair.far.handles.borrow()[0].close();
        for socket in [&mut path.client, &mut path.server] {
            let error = read_all(socket).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        assert_eq!(path.near.await.unwrap().unwrap_err().reason(), "upstream_failed");
    })
    .await;
}

#[tokio::test]
async fn an_application_that_does_not_read_stops_the_sender() {
    on_worker(async {
        let mut pair = Pair::new();
        for path in Path::both(&mut pair).await {
            let (mut client, mut server) = (path.client, path.server);
            let piece = bytes(1 << 20, 3);
            let mut written = Vec::new();
            while let Ok(outcome) = tokio::time::timeout(Duration::from_millis(500), client.write(&piece)).await {
                written.extend_from_slice(&piece[..outcome.unwrap()]);
                assert!(written.len() < 64 << 20, "nothing stops the sender");
            }
            let shut = async { client.shutdown().await.map(|()| client) };
            let (read, shut) = tokio::join!(read_all(&mut server), shut);
            assert!(read.unwrap() == written);
            shut.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn many_small_words_go_back_and_forth() {
    on_worker(async {
        let mut pair = Pair::new();
        for path in Path::both(&mut pair).await {
            let (mut client, mut server) = (path.client, path.server);
            let echo = tokio::task::spawn_local(async move {
                let mut word = [0; 100];
                for _ in 0..500 {
                    server.read_exact(&mut word).await.unwrap();
                    server.write_all(&word).await.unwrap();
                }
            });
            for n in 0..500_usize {
                let word = bytes(100, n as u8);
                client.write_all(&word).await.unwrap();
                let mut answer = vec![0; 100];
                client.read_exact(&mut answer).await.unwrap();
                assert_eq!(answer, word);
            }
            echo.await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_needs_little_memory() {
    on_worker(async {
        let mut pair = Pair::new();
        let (near, far) = pair.connected().await;
        let meter = Meter::default();
        let sizes = [
            size_of_val(&copy::tcp_with_tunnel(tcp().await.0, near.stream, &meter)),
            size_of_val(&copy::tunnel_with_tcp(far, tcp().await.0, &meter)),
            size_of_val(&copy::tcp_with_tcp(tcp().await.0, tcp().await.0, &meter)),
        ];
        assert!(sizes.iter().all(|size| *size <= 352), "{sizes:?}");
    })
    .await;
}
