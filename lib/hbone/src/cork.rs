//! What lies between HTTP/2 and TLS: small frames are held back until the tunnel's task has nothing more to say, and then
//! leave together, in few records and one system call. h2 would flush each of them.
//!
//! A frame that comes alone is not delayed: the task flushes whenever it has written what there was. Large frames are
//! not held back, which would copy them.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Writes up to this size are held back.
const SMALL: usize = 8 * 1024;
/// At most this much is held back: four TLS records.
const MOST: usize = 64 * 1024;

/// A transport that holds back small writes; clones are the same, one for h2 and one for who flushes.
#[derive(Debug)]
pub(crate) struct Cork<S>(Rc<RefCell<Inner<S>>>);

#[derive(Debug)]
struct Inner<S> {
    stream: S,
    held: BytesMut,
}

impl<S> Cork<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self(Rc::new(RefCell::new(Inner { stream, held: BytesMut::new() })))
    }
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    /// Lets everything out that was held back.
    pub(crate) fn poll_release(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.stream).poll_flush(cx)
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(written);
        }
        // An idle tunnel holds no memory.
        self.held = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl<S> Clone for Cork<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cork<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cork<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0.borrow_mut();
        let size = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if size <= SMALL && inner.held.len() + size <= MOST {
            bufs.iter().for_each(|buf| inner.held.extend_from_slice(buf));
            return Poll::Ready(Ok(size));
        }
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().stream.is_write_vectored()
    }

    /// Means nothing: h2 flushes after each frame. [`Cork::poll_release`] does it.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Takes everything and keeps each write apart.
    #[derive(Debug, Default)]
    struct Writes(Vec<Vec<u8>>);

    impl AsyncWrite for Writes {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.0.push(buf.to_vec());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn small_writes_leave_together_when_they_are_released() {
        let mut cork = Cork::new(Writes::default());
        for word in ["one", "two", "three"] {
            cork.write_all(word.as_bytes()).await.unwrap();
            cork.flush().await.unwrap();
        }
        assert!(cork.0.borrow().stream.0.is_empty());
        poll_fn(|cx| cork.poll_release(cx)).await.unwrap();
        assert_eq!(cork.0.borrow().stream.0, [b"onetwothree"]);
        assert_eq!(cork.0.borrow().held.capacity(), 0, "an idle tunnel holds nothing");
    }

    #[tokio::test]
    async fn large_writes_are_not_held_back_and_stay_in_order() {
        let mut cork = Cork::new(Writes::default());
        let large = vec![7; SMALL + 1];
        cork.write_all(b"before").await.unwrap();
        cork.write_all(&large).await.unwrap();
        cork.write_all(b"after").await.unwrap();
        assert_eq!(cork.0.borrow().stream.0, [b"before".to_vec(), large]);
        cork.shutdown().await.unwrap();
        assert_eq!(cork.0.borrow().stream.0.last().unwrap(), b"after");
    }

    #[tokio::test]
    async fn no_more_is_held_than_allowed_and_nothing_is_lost_where_the_other_side_is_slow() {
        let (near, mut far) = tokio::io::duplex(1000);
        let mut cork = Cork::new(near);
        let sent: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
        let mut cx = Context::from_waker(Waker::noop());
        let mut held = 0;
        while let Some(piece) = sent.get(held..held + 4096) {
            let Poll::Ready(written) = Pin::new(&mut cork).poll_write(&mut cx, piece) else { break };
            held += written.unwrap();
        }
        assert!((MOST - 4096..MOST + 2000).contains(&held), "{held}");
        let rest = sent[held..].to_vec();
        let mut writer = cork.clone();
        let write = async move {
            writer.write_all(&rest).await.unwrap();
            poll_fn(|cx| writer.poll_release(cx)).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (read, ()) = tokio::join!(far.read_to_end(&mut got), write);
        read.unwrap();
        assert_eq!(got, sent);
    }
}
