//! The two kinds of ends that a connection can have on this node.

use std::{
    collections::VecDeque,
    future::Future as _,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes};
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite as _},
    net::TcpStream,
};

use crate::{
    buffers::{self, Appetite, Outstanding},
    stream::{StreamError, TunnelStream},
};

/// What went wrong at one end.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// A stream of a tunnel.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A TCP connection.
    #[error("the connection broke")]
    Tcp(#[from] io::Error),
}

impl EndError {
    /// True if the other side reset it, on purpose or since it is gone; false if it failed in another way.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        match self {
            Self::Stream(StreamError::Declined | StreamError::Reset(_)) => true,
            Self::Stream(StreamError::TunnelLost(_)) => false,
            Self::Tcp(error) => matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::NotConnected
            ),
        }
    }
}

/// Makes a connection end with RST, not FIN, when it is closed: right for one that we accepted and may not be able to
/// carry. Copying does it, and undoes it at a clean end.
pub fn reset_on_close(socket: &TcpStream) {
    // Fails only on a socket that is no more; then its peer is reset already.
    if let Err(error) = socket.set_zero_linger() {
        tracing::debug!(%error, "SO_LINGER not set");
    }
}

/// One end of a connection: a source for one direction and a sink for the other.
pub(super) trait End {
    /// How much to read before writing what was read.
    const AHEAD: usize;

    /// Waits until a read would find something, and says how much to ask for.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, EndError>>;
    /// Reads; none at the end.
    fn poll_read(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Result<Option<Bytes>, EndError>>;
    /// Learns that bytes read here have arrived at the other end.
    fn passed_on(&mut self, bytes: usize);
    /// Waits until something can be taken for writing, and says how much of `wanted`.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, EndError>>;
    /// Gives back room that is not used.
    fn rest(&mut self);
    /// Writes some of the chunks, takes that off them, and says how much it was.
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<Result<usize, EndError>>;
    /// Passes on the end of the direction.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndError>>;
    /// Ready if the other side reset it, as far as that can be seen without reading.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<EndError>;
    /// Ready when all that was read here has left our memory, or cannot any more.
    fn poll_passed_on(&mut self, cx: &mut Context<'_>) -> Poll<()>;
    /// Learns that both directions ended well.
    fn settle(&mut self);
}

/// A TCP connection.
pub(super) struct TcpEnd {
    socket: TcpStream,
    appetite: Appetite,
    outstanding: Arc<Outstanding>,
}

impl TcpEnd {
    const FIRST_READ: usize = 2 * buffers::SMALLEST;
    /// Chunks handed to the kernel at once.
    const SLICES: usize = 16;

    pub(super) fn new(socket: TcpStream) -> Self {
        reset_on_close(&socket);
        Self { socket, appetite: Appetite::new(Self::FIRST_READ), outstanding: Arc::default() }
    }
}

impl End for TcpEnd {
    // What is not yet written waits better in the kernel, where it closes the sender's window.
    const AHEAD: usize = 1;

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, EndError>> {
        ready!(self.socket.poll_read_ready(cx))?;
        Poll::Ready(Ok(self.appetite.size()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Result<Option<Bytes>, EndError>> {
        let mut buffer = buffers::take(most);
        let outcome = pin!(self.socket.read_buf(&mut (&mut buffer).limit(most))).poll(cx);
        match outcome {
            Poll::Ready(Ok(0)) => Poll::Ready(Ok(None)),
            Poll::Ready(Ok(read)) => {
                self.appetite.ate(read, most);
                Poll::Ready(Ok(Some(self.outstanding.track(buffer))))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Pending => {
                buffers::give(buffer);
                Poll::Pending
            }
        }
    }

    fn passed_on(&mut self, _bytes: usize) {}

    fn poll_room(&mut self, _cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, EndError>> {
        Poll::Ready(Ok(wanted))
    }

    fn rest(&mut self) {}

    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<Result<usize, EndError>> {
        let mut slices = [io::IoSlice::new(&[]); Self::SLICES];
        for (slice, chunk) in slices.iter_mut().zip(chunks.iter()) {
            *slice = io::IoSlice::new(chunk);
        }
        let (slices, _) = slices.split_at(chunks.len().min(Self::SLICES));
        let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, slices))?;
        take_off(chunks, written);
        Poll::Ready(Ok(written))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndError>> {
        Pin::new(&mut self.socket).poll_shutdown(cx).map_err(EndError::from)
    }

    fn poll_reset(&mut self, _cx: &mut Context<'_>) -> Poll<EndError> {
        Poll::Pending
    }

    fn poll_passed_on(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.outstanding.poll_none(cx)
    }

    fn settle(&mut self) {
        #[expect(deprecated, reason = "it is deprecated as a time would block the close; none does not")]
        let unset = self.socket.set_linger(None);
        if let Err(error) = unset {
            tracing::debug!(%error, "SO_LINGER not unset");
        }
    }
}

/// Removes what was written from the front.
fn take_off(chunks: &mut VecDeque<Bytes>, mut written: usize) {
    while let Some(front) = chunks.front_mut() {
        if written < front.len() {
            front.advance(written);
            return;
        }
        written -= front.len();
        chunks.pop_front();
    }
}

/// A stream of a tunnel.
pub(super) struct TunnelEnd {
    stream: TunnelStream,
    reserved: bool,
}

impl TunnelEnd {
    pub(super) fn new(stream: TunnelStream) -> Self {
        Self { stream, reserved: false }
    }
}

impl End for TunnelEnd {
    // It is in memory already; written together it needs fewer system calls.
    const AHEAD: usize = buffers::LARGEST;

    fn poll_readable(&mut self, _cx: &mut Context<'_>) -> Poll<Result<usize, EndError>> {
        Poll::Ready(Ok(buffers::LARGEST))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, _most: usize) -> Poll<Result<Option<Bytes>, EndError>> {
        Poll::Ready(ready!(self.stream.poll_data(cx)).transpose().map_err(EndError::from))
    }

    fn passed_on(&mut self, bytes: usize) {
        self.stream.release(bytes);
    }

    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, EndError>> {
        self.reserved = true;
        match ready!(self.stream.poll_room(cx, wanted)) {
            // There will be no room again, but the other side may have ended, which is no error.
            Err(StreamError::Declined) => Poll::Ready(Ok(1)),
            outcome => Poll::Ready(outcome.map_err(EndError::from)),
        }
    }

    fn rest(&mut self) {
        if std::mem::take(&mut self.reserved) {
            self.stream.give_back();
        }
    }

    fn poll_write(&mut self, _cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<Result<usize, EndError>> {
        let mut written = 0;
        while let Some(chunk) = chunks.pop_front() {
            written += chunk.len();
            self.stream.send(chunk)?;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), EndError>> {
        Poll::Ready(self.stream.finish().map_err(EndError::from))
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<EndError> {
        self.stream.poll_reset(cx).map(EndError::from)
    }

    fn poll_passed_on(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn settle(&mut self) {}
}
