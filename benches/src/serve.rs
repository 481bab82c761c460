//! The server under load: HTTP/1.1 answers of 1 KiB, and an echo.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    thread,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

/// How many threads serve: as many as a usual web server would start on a small machine.
const THREADS: usize = 2;
/// The length of an answer's body.
const BODY: usize = 1024;

/// Serves until it is killed.
pub(crate) fn serve(port: u16) -> Result<()> {
    let listen = |port| {
        let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
            .with_context(|| format!("listening on port {port}"))?;
        listener.set_nonblocking(true)?;
        anyhow::Ok(listener)
    };
    let (http, echo) = (listen(port)?, listen(port + 1)?);
    announce("serving");
    let workers: Vec<_> = (0..THREADS)
        .map(|_| {
            let (http, echo) = (http.try_clone()?, echo.try_clone()?);
            Ok(thread::spawn(move || worker(http, echo)))
        })
        .collect::<io::Result<_>>()?;
    for worker in workers {
        worker.join().map_err(|_| anyhow::anyhow!("a thread of the server panicked"))??;
    }
    Ok(())
}

/// Tells who started us where we are.
#[expect(clippy::print_stdout, reason = "the harness waits for it")]
pub(crate) fn announce(word: &str) {
    println!("{word}");
}

fn worker(http: std::net::TcpListener, echo: std::net::TcpListener) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (http, echo) = {
        let _inside = runtime.enter();
        (TcpListener::from_std(http)?, TcpListener::from_std(echo)?)
    };
    LocalSet::new().block_on(&runtime, async {
        loop {
            // A client that goes away in the middle is no failure of the server.
            tokio::select! {
                Ok((stream, _)) = http.accept() => drop(tokio::task::spawn_local(async { answer(stream).await.ok() })),
                Ok((stream, _)) = echo.accept() => drop(tokio::task::spawn_local(async { repeat(stream).await.ok() })),
            }
        }
    })
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = |close: &str| {
        let mut text = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n{close}\r\n").into_bytes();
        text.resize(text.len() + BODY, b'u');
        text
    };
    let (keep, close) = (answer(""), answer("Connection: close\r\n"));
    let mut asked = Vec::with_capacity(1024);
    while stream.read_buf(&mut asked).await? > 0 {
        while let Some(end) = asked.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = asked.drain(..end + 4).collect();
            if head.windows(17).any(|window| window == b"Connection: close") {
                return stream.write_all(&close).await;
            }
            stream.write_all(&keep).await?;
        }
    }
    Ok(())
}

async fn repeat(mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while stream.read(&mut byte).await? > 0 {
        stream.write_all(&byte).await?;
    }
    Ok(())
}
