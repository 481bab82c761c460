//! One stream of a tunnel: what an application connection becomes in it.
//!
//! The end of one direction is END_STREAM, the counterpart of FIN; RST_STREAM is the counterpart of RST. A stream that
//! is dropped before both directions ended is reset, and what has not left yet is thrown away, as TCP does.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use underpass_model::SerialNumber;

use crate::{buffers, client::Slot, lifetime::Fate, server::Taken};

/// Why a stream ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer has ended the stream in good order and takes nothing more.
    #[error("the peer takes no more data")]
    Declined,
    /// The peer, or our own end, has reset it.
    #[error("the stream was reset: {0}")]
    Reset(Reason),
    /// What the peer had proved itself by was revoked, so the tunnel was cut.
    #[error("certificate {0} of the peer was revoked")]
    Revoked(SerialNumber),
    /// The whole tunnel is gone.
    #[error("the tunnel is gone")]
    TunnelLost(#[source] h2::Error),
}

impl StreamError {
    /// A stable label for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Declined => "stream_declined",
            Self::Reset(_) => "stream_reset",
            Self::Revoked(_) => "peer_certificate_revoked",
            Self::TunnelLost(_) => "tunnel_lost",
        }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error {
            StreamError::Declined => io::ErrorKind::BrokenPipe,
            StreamError::Reset(_) | StreamError::Revoked(_) | StreamError::TunnelLost(_) => {
                io::ErrorKind::ConnectionReset
            }
        };
        Self::new(kind, error)
    }
}

/// A stream, both directions. Reading and writing are for one task.
#[derive(Debug)]
pub struct TunnelStream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// What [`AsyncRead`] has not handed out of the last frame.
    unread: Bytes,
    ended: bool,
    declined: bool,
    side: Side,
    fate: Fate,
}

/// Which end of the tunnel we are.
#[derive(Debug)]
pub(crate) enum Side {
    /// The one that opened the stream, in a place of the pool's tunnel.
    Client(#[expect(dead_code, reason = "held for as long as the stream lives")] Slot),
    /// The one that was asked for it.
    Server(Taken),
}

impl TunnelStream {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream, side: Side, fate: Fate) -> Self {
        Self { send, recv, unread: Bytes::new(), ended: false, declined: false, side, fate }
    }

    /// The next data; none at the end. What is taken must be given back by [`Self::release`] once it is passed on, else
    /// the peer may send no more.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        Poll::Ready(match ready!(self.recv.poll_data(cx)) {
            Some(Ok(data)) => {
                if let Side::Server(taken) = &mut self.side {
                    taken.more(data.len());
                }
                Some(Ok(data))
            }
            Some(Err(error)) if self.is_decline(error.is_reset(), error.reason()) => {
                self.declined = true;
                None
            }
            Some(Err(error)) => Some(Err(self.told(match error.reason() {
                Some(reason) if error.is_reset() => StreamError::Reset(reason),
                _ => StreamError::TunnelLost(error),
            }))),
            None => None,
        })
    }

    /// Lets the peer send as much again.
    pub fn release(&mut self, bytes: usize) {
        // Fails only for more than was received; then there is nothing to give back.
        if let Err(error) = self.recv.flow_control().release_capacity(bytes) {
            tracing::debug!(%error, bytes, "window not given back");
        }
        if let Side::Server(taken) = &mut self.side {
            taken.passed_on(bytes);
        }
    }

    /// Waits until some of `wanted` bytes may be sent, and says how many. They are reserved out of the tunnel's window
    /// until sent or given back by [`Self::give_back`].
    pub fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, StreamError>> {
        self.send.reserve_capacity(wanted);
        let room = self.send.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room.min(wanted)));
        }
        match ready!(self.send.poll_capacity(cx)) {
            Some(Ok(room)) => Poll::Ready(Ok(room.min(wanted))),
            Some(Err(error)) => Poll::Ready(Err(self.told(StreamError::TunnelLost(error)))),
            None => Poll::Ready(Err(self.why_closed())),
        }
    }

    /// Leaves reserved room to other streams.
    pub fn give_back(&mut self) {
        self.send.reserve_capacity(0);
    }

    /// Sends data for which there is room.
    ///
    /// # Errors
    /// If the stream takes no more.
    pub fn send(&mut self, data: Bytes) -> Result<(), StreamError> {
        self.send.send_data(data, false).map_err(|_| self.why_closed())
    }

    /// Ends our direction; the other goes on.
    ///
    /// # Errors
    /// If the stream is already broken.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        if std::mem::replace(&mut self.ended, true) || self.declined {
            return Ok(());
        }
        self.send.send_data(Bytes::new(), true).or_else(|_| match self.why_closed() {
            StreamError::Declined => Ok(()),
            error => Err(error),
        })
    }

    /// Ready when the stream was reset. Notices it also while nothing is read or written.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        if self.declined {
            return Poll::Pending;
        }
        let error = match ready!(self.send.poll_reset(cx)) {
            Ok(reason) if self.is_decline(true, Some(reason)) => {
                self.declined = true;
                return Poll::Pending;
            }
            Ok(reason) => StreamError::Reset(reason),
            Err(error) => StreamError::TunnelLost(error),
        };
        Poll::Ready(self.told(error))
    }

    /// What we cut the tunnel for counts more than how h2 tells of it.
    fn told(&self, error: StreamError) -> StreamError {
        self.fate.revoked().map_or(error, |serial| StreamError::Revoked(serial.clone()))
    }

    /// A server that has said all and wants to hear no more resets with NO_ERROR (RFC 9113, section 8.1). From a client
    /// it makes no sense, and our own end of a broken tunnel looks the same, so there it is a reset as any other.
    fn is_decline(&self, is_reset: bool, reason: Option<Reason>) -> bool {
        matches!(self.side, Side::Client(_)) && is_reset && reason == Some(Reason::NO_ERROR)
    }

    /// Why nothing can be sent.
    fn why_closed(&mut self) -> StreamError {
        match self.poll_reset(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(error) => error,
            Poll::Pending if self.declined => StreamError::Declined,
            Poll::Pending => StreamError::Reset(Reason::STREAM_CLOSED),
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.unread.is_empty() {
            match ready!(this.poll_data(cx)) {
                Some(data) => this.unread = data?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = buf.remaining().min(this.unread.len());
        let (head, _) = this.unread.split_at(taken);
        buf.put_slice(head);
        this.unread.advance(taken);
        this.release(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(this.poll_room(cx, buf.len().min(buffers::LARGEST)))?;
        let (head, _) = buf.split_at(room);
        this.send(Bytes::copy_from_slice(head))?;
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().finish().map_err(io::Error::from))
    }
}
