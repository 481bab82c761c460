//! What lies under TLS: the transport, with reads far ahead, the time when it last brought something, and an end to what
//! may pass in one turn.
//!
//! rustls asks for 4 KiB at a time. Each such question would be a system call; here one call fetches up to 256 KiB, and
//! the questions are answered from memory. Between bursts no buffer is held.

use std::{
    cell::Cell,
    future::Future as _,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::{
    buffers::{self, Appetite},
    turns::Turn,
};

/// When the peer was last heard.
#[derive(Debug, Clone)]
pub(crate) struct Heard(Rc<Cell<Instant>>);

impl Heard {
    /// The time of the last byte that came in.
    pub(crate) fn at(&self) -> Instant {
        self.0.get()
    }
}

/// A transport with read-ahead.
#[derive(Debug)]
pub(crate) struct Wire<IO> {
    io: IO,
    ahead: BytesMut,
    appetite: Appetite,
    heard: Heard,
    turn: Rc<Turn>,
}

impl<IO> Wire<IO> {
    /// A full TLS record is the first guess of what comes.
    const FIRST_READ: usize = 16 * 1024;

    pub(crate) fn new(io: IO) -> Self {
        Self {
            io,
            ahead: BytesMut::new(),
            appetite: Appetite::new(Self::FIRST_READ),
            heard: Heard(Rc::new(Cell::new(Instant::now()))),
            turn: Rc::default(),
        }
    }

    pub(crate) fn heard(&self) -> Heard {
        self.heard.clone()
    }

    /// The turns of the task that drives the tunnel. When one is over, nothing can be read or written, and nothing here wakes
    /// the task. (The handshakes, before it, are no more than a small part of one.)
    pub(crate) fn turn(&self) -> Rc<Turn> {
        Rc::clone(&self.turn)
    }
}

impl<IO: AsyncRead + Unpin> Wire<IO> {
    /// Reads what there is; nothing ahead afterwards means the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.turn.is_over() {
            return Poll::Pending;
        }
        let mut buffer = buffers::take(self.appetite.size());
        let offered = buffer.capacity();
        let outcome = pin!(self.io.read_buf(&mut buffer)).poll(cx);
        match outcome {
            Poll::Ready(Ok(read)) => {
                self.heard.0.set(Instant::now());
                self.appetite.ate(read, offered);
                self.turn.spend(read);
                self.ahead = buffer;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                buffers::give(buffer);
                Poll::Pending
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Wire<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            ready!(this.poll_fill(cx))?;
        }
        let taken = buf.remaining().min(this.ahead.len());
        let (head, _) = this.ahead.split_at(taken);
        buf.put_slice(head);
        this.ahead.advance(taken);
        if this.ahead.is_empty() {
            buffers::give(std::mem::take(&mut this.ahead));
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Wire<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.turn.is_over() {
            return Poll::Pending;
        }
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        self.turn.spend(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn small_reads_are_answered_from_one_large_one() {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let mut wire = Wire::new(near);
        let sent: Vec<u8> = (0..40_000_u32).map(|n| n as u8).collect();
        far.write_all(&sent).await.unwrap();
        drop(far);
        let mut got = Vec::new();
        let mut piece = [0; 100];
        loop {
            let read = wire.read(&mut piece).await.unwrap();
            if read == 0 {
                break;
            }
            got.extend_from_slice(&piece[..read]);
        }
        assert_eq!(got, sent);
        assert_eq!(wire.ahead.capacity(), 0, "nothing is held once all is read");
    }
}
