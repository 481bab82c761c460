//! The two kinds of ends that a connection can have on this node.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use rustix::net::{Shutdown, shutdown};
use tokio::{io::Interest, net::TcpStream};

use crate::{
    buffers::{self, Appetite, Outstanding},
    held::Held,
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
    pub(super) fn reset() -> Self {
        Self::Tcp(io::ErrorKind::ConnectionReset.into())
    }

    pub(super) fn alike(&self) -> Self {
        match self {
            Self::Tcp(error) => Self::Tcp(error.kind().into()),
            Self::Stream(_) if self.is_reset() => Self::reset(),
            Self::Stream(error) => Self::Tcp(io::Error::other(error.reason())),
        }
    }

    /// True if the other side reset it, on purpose or since it is gone; false if it failed in another way.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        match self {
            Self::Stream(StreamError::Declined | StreamError::Reset(_)) => true,
            Self::Stream(StreamError::Revoked(_) | StreamError::TunnelLost(_)) => false,
            Self::Tcp(error) => matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::NotConnected
            ),
        }
    }

    /// True if we cut it, because what the peer had proved itself by was revoked.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        matches!(self, Self::Stream(StreamError::Revoked(_)))
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
    socket: Arc<TcpStream>,
    appetite: Appetite,
    outstanding: Arc<Outstanding>,
    held: Arc<Held>,
    /// Whether a read waits, and so would tell of a reset.
    listens: bool,
    /// Waits for a reset while no read does; there is one from the first time that it was needed.
    watch: Option<Watch>,
}

/// Ends when the kernel reports an error of a connection. It costs no system call.
type Watch = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

impl TcpEnd {
    const FIRST_READ: usize = 2 * buffers::SMALLEST;
    /// What is read at once where much is under way already.
    const SMALL_READ: usize = 4 * buffers::SMALLEST;
    /// Chunks handed to the kernel at once.
    const SLICES: usize = 16;
    /// Pieces that may wait to leave in a tunnel. What comes after waits in the kernel, where small pieces become one.
    const PIECES: usize = 128;

    pub(super) fn new(socket: TcpStream, held: &Arc<Held>) -> Self {
        reset_on_close(&socket);
        Self {
            socket: Arc::new(socket),
            appetite: Appetite::new(Self::FIRST_READ),
            outstanding: Arc::new(Outstanding::counted_by(held)),
            held: Arc::clone(held),
            listens: false,
            watch: None,
        }
    }

    /// Reads once, if the socket is ready. A read that leaves room has taken all there was; the next one then waits for
    /// an event instead of asking the kernel in vain, as with tokio's own `AsyncRead`, which wants the socket for itself.
    fn try_read(&self, buffer: &mut BytesMut, most: usize) -> io::Result<usize> {
        let mut outcome = Err(io::ErrorKind::WouldBlock.into());
        let _noted = self.socket.try_io(Interest::READABLE, || {
            outcome = self.socket.try_read_buf(&mut buffer.limit(most));
            match outcome {
                Ok(read) if read > 0 && read < most => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        });
        outcome
    }
}

impl End for TcpEnd {
    // What is not yet written waits better in the kernel, where it closes the sender's window.
    const AHEAD: usize = 1;

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, EndError>> {
        self.listens = false;
        let (pieces, most) = if self.held.is_enough() { (1, Self::SMALL_READ) } else { (Self::PIECES, usize::MAX) };
        ready!(self.outstanding.poll_fewer(cx, pieces));
        let readable = self.socket.poll_read_ready(cx);
        self.listens = readable.is_pending();
        ready!(readable)?;
        Poll::Ready(Ok(self.appetite.size().min(most)))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Result<Option<Bytes>, EndError>> {
        let mut buffer = buffers::take(most);
        loop {
            match self.try_read(&mut buffer, most) {
                Ok(0) => return Poll::Ready(Ok(None)),
                Ok(read) => {
                    self.appetite.ate(read, most);
                    return Poll::Ready(Ok(Some(self.outstanding.track(buffer))));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            let readable = self.socket.poll_read_ready(cx);
            self.listens = readable.is_pending();
            if let Poll::Ready(ready) = readable {
                ready?;
                continue;
            }
            buffers::give(buffer);
            return Poll::Pending;
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
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_write_vectored(slices) {
                Ok(written) => {
                    take_off(chunks, written);
                    return Poll::Ready(Ok(written));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), EndError>> {
        match shutdown(&*self.socket, Shutdown::Write) {
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(EndError::Tcp(error.into()))),
        }
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<EndError> {
        if self.listens {
            return Poll::Pending;
        }
        let watch = self.watch.get_or_insert_with(|| {
            let socket = Arc::clone(&self.socket);
            Box::pin(async move { socket.ready(Interest::ERROR).await.map(drop) })
        });
        let seen = ready!(watch.as_mut().poll(cx));
        self.watch = None;
        // What kind of error is told once; then it is known that there was one.
        let error = seen.and_then(|()| self.socket.take_error()).unwrap_or_else(Some);
        Poll::Ready(error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()).into())
    }

    fn poll_passed_on(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.outstanding.poll_fewer(cx, 1)
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
    held: Arc<Held>,
    /// What was read and not passed on.
    holds: usize,
}

impl TunnelEnd {
    pub(super) fn new(stream: TunnelStream, held: &Arc<Held>) -> Self {
        Self { stream, reserved: false, held: Arc::clone(held), holds: 0 }
    }
}

impl Drop for TunnelEnd {
    fn drop(&mut self) {
        self.held.take_off(self.holds);
    }
}

impl End for TunnelEnd {
    // It is in memory already, as much as the window allows. Here it costs less than in h2, which ends a tunnel that
    // holds many small frames, and written together it needs fewer system calls.
    const AHEAD: usize = usize::MAX;

    fn poll_readable(&mut self, _cx: &mut Context<'_>) -> Poll<Result<usize, EndError>> {
        Poll::Ready(Ok(buffers::LARGEST))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, _most: usize) -> Poll<Result<Option<Bytes>, EndError>> {
        let read = ready!(self.stream.poll_data(cx)).transpose()?;
        let bytes = read.as_ref().map_or(0, Bytes::len);
        self.holds += bytes;
        self.held.add(bytes);
        Poll::Ready(Ok(read))
    }

    fn passed_on(&mut self, bytes: usize) {
        self.holds -= bytes;
        self.held.take_off(bytes);
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

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::{io::AsyncWriteExt as _, net::TcpListener, time::timeout};

    use super::*;

    async fn readable(end: &mut TcpEnd) -> bool {
        timeout(Duration::from_millis(500), poll_fn(|cx| end.poll_readable(cx))).await.is_ok()
    }

    #[tokio::test]
    async fn what_comes_while_many_pieces_wait_to_leave_waits_in_the_kernel() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut application = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        application.set_nodelay(true).unwrap();
        let mut end = TcpEnd::new(listener.accept().await.unwrap().0, &Arc::default());
        let mut waiting = Vec::new();
        for _ in 0..TcpEnd::PIECES {
            application.write_all(b"w").await.unwrap();
            let piece = poll_fn(|cx| {
                let most = ready!(end.poll_readable(cx)).unwrap();
                end.poll_read(cx, most)
            });
            waiting.push(piece.await.unwrap().unwrap());
        }
        application.write_all(b"more").await.unwrap();
        assert!(!readable(&mut end).await, "many wait");
        waiting.pop();
        assert!(readable(&mut end).await);
        let more = poll_fn(|cx| end.poll_read(cx, 1024)).await.unwrap().unwrap();
        assert_eq!(more, "more");
    }

    #[tokio::test]
    async fn where_enough_is_held_each_connection_has_one_small_piece_under_way() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut application = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let held = Arc::new(Held::new(1));
        let mut end = TcpEnd::new(listener.accept().await.unwrap().0, &held);
        end.appetite = Appetite::new(buffers::LARGEST);
        let writing = tokio::spawn(async move { application.write_all(&[7; 4 << 20]).await });
        for (others, expected) in [(0, buffers::LARGEST), (1, TcpEnd::SMALL_READ), (1, TcpEnd::SMALL_READ)] {
            held.add(others);
            let most = poll_fn(|cx| end.poll_readable(cx)).await.unwrap();
            assert_eq!(most, expected);
            let piece = poll_fn(|cx| end.poll_read(cx, most)).await.unwrap().unwrap();
            assert_eq!(held.bytes(), (piece.len() + others) as u64);
            assert!(!readable(&mut end).await, "one is under way");
            drop(piece);
            held.take_off(others);
        }
        assert_eq!(held.bytes(), 0);
        writing.abort();
    }
}
