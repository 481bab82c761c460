//! Closed loops: each client begins again as soon as it was answered. They show how much goes through.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::{JoinSet, LocalSet},
};

use super::{Latencies, Report, http};

/// Keep-alive connections. They are open, and have been used, before time is taken.
pub(super) fn requests(to: SocketAddr, connections: usize, span: Duration) -> Result<Report> {
    let open = async move || {
        let mut stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        ask(&mut stream, &mut Vec::new()).await?;
        Ok(stream)
    };
    run((connections, open), span, async |mut stream, until, latencies| {
        let mut answer = Vec::with_capacity(2048);
        loop {
            let asked = Instant::now();
            ask(&mut stream, &mut answer).await?;
            latencies.record(asked.elapsed());
            if Instant::now() >= until {
                return Ok(());
            }
        }
    })
}

/// A connection for each request.
pub(super) fn connections(to: SocketAddr, clients: usize, span: Duration) -> Result<Report> {
    run((clients, async || Ok(())), span, async move |(), until, latencies| {
        let mut answer = Vec::with_capacity(2048);
        loop {
            let asked = Instant::now();
            match once(to, &mut answer).await {
                Ok(()) => latencies.record(asked.elapsed()),
                Err(_) => latencies.failed += 1,
            }
            if Instant::now() >= until {
                return Ok(());
            }
        }
    })
}

/// One request, tried until it is answered: how long after the start it was.
pub(super) fn first(to: SocketAddr) -> Result<Report> {
    const LONGEST: Duration = Duration::from_secs(10);
    run((1, async || Ok(())), LONGEST, async move |(), until, latencies| {
        let began = Instant::now();
        let mut answer = Vec::new();
        while Instant::now() < until {
            match once(to, &mut answer).await {
                Ok(()) => {
                    latencies.record(began.elapsed());
                    break;
                }
                Err(_) => latencies.failed += 1,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    })
}

async fn ask(stream: &mut TcpStream, answer: &mut Vec<u8>) -> io::Result<()> {
    stream.write_all(http::KEEP).await?;
    answer.clear();
    let mut length = None;
    while length.is_none_or(|length| answer.len() < length) {
        if stream.read_buf(answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        length = length.or_else(|| http::length(answer));
    }
    Ok(())
}

/// The server closes, so that no port of ours lingers.
async fn once(to: SocketAddr, answer: &mut Vec<u8>) -> io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    stream.write_all(http::CLOSE).await?;
    answer.clear();
    while stream.read_buf(answer).await? > 0 {}
    let complete = http::length(answer).is_some_and(|length| length == answer.len());
    complete.then_some(()).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Makes what each client needs, and then lets all of them run.
fn run<T, P, F>((clients, prepare): (usize, P), span: Duration, client: F) -> Result<Report>
where
    T: 'static,
    P: AsyncFn() -> io::Result<T>,
    F: AsyncFn(T, Instant, &mut Latencies) -> io::Result<()> + Clone + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let mut prepared = Vec::with_capacity(clients);
        for _ in 0..clients {
            prepared.push(prepare().await?);
        }
        let began = Instant::now();
        let mut running = JoinSet::new();
        for own in prepared {
            let client = client.clone();
            running.spawn_local(async move {
                let mut latencies = Latencies::new()?;
                client(own, began + span, &mut latencies).await?;
                anyhow::Ok(latencies)
            });
        }
        let mut all = Latencies::new()?;
        while let Some(one) = running.join_next().await {
            all.add(&one??)?;
        }
        Ok(all.report(began.elapsed()))
    })
}
