//! Connections that were used once and are held.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// How many are opened at the same time.
const AT_ONCE: usize = 16;

/// Opens them and waits to be killed.
pub(super) fn hold(to: SocketAddr, connections: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let held: Vec<TcpStream> = runtime.block_on(async {
        let mut opening = tokio::task::JoinSet::new();
        let mut held = Vec::with_capacity(connections);
        for _ in 0..connections {
            if opening.len() >= AT_ONCE
                && let Some(opened) = opening.join_next().await
            {
                held.push(opened??);
            }
            opening.spawn(async move {
                let mut stream = TcpStream::connect(to).await?;
                stream.write_all(b"u").await?;
                stream.read_exact(&mut [0]).await?;
                std::io::Result::Ok(stream)
            });
        }
        while let Some(opened) = opening.join_next().await {
            held.push(opened??);
        }
        anyhow::Ok(held)
    })?;
    crate::serve::announce(&format!("holding {}", held.len()));
    loop {
        std::thread::park();
    }
}
