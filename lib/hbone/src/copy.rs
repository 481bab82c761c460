//! Moves the bytes of a connection between its two ends, both directions at once and independent of each other.
//!
//! - The end of one direction (FIN, END_STREAM) is passed on once all before it is; the other direction goes on.
//! - A reset at one end resets the other, after what the broken end had said before, as far as the other end takes it
//!   at once. A TCP connection that is not carried to its clean end, also because the future was dropped, ends with RST
//!   and never with FIN: an application must not take a cut for a complete answer.
//! - What cannot be written is not read: the sender is slowed down by TCP's window or the stream's.
//! - Idle connections hold no buffers, and who has much under way is read from in small pieces.

mod ends;
mod pump;

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
    task::{Context, Poll, ready},
};

use tokio::net::TcpStream;
use underpass_model::SerialNumber;

use self::{
    ends::{End, TcpEnd, TunnelEnd},
    pump::{Broken, Pump},
};
use crate::{
    held::Held,
    stream::{StreamError, TunnelStream},
    turns::Turn,
};

pub use ends::{EndError, reset_on_close};

/// Counts the bytes of one connection, while they flow.
#[derive(Debug, Default)]
pub struct Meter {
    /// From whom connected to us.
    pub from_downstream: AtomicU64,
    /// To whom connected to us.
    pub to_downstream: AtomicU64,
    /// Where what is under way is counted, together with other connections of the same party.
    pub held: Arc<Held>,
}

/// Which end broke, and how.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The one that connected to us.
    #[error("downstream broke")]
    Downstream(#[source] EndError),
    /// The one that we connected to.
    #[error("upstream broke")]
    Upstream(#[source] EndError),
}

impl CopyError {
    /// Downstream has reset.
    #[must_use]
    pub fn downstream_reset() -> Self {
        Self::Downstream(EndError::reset())
    }

    /// Upstream has reset.
    #[must_use]
    pub fn upstream_reset() -> Self {
        Self::Upstream(EndError::reset())
    }

    /// What one of two pods that were joined on one node would have proved itself by was revoked.
    #[must_use]
    pub fn revoked(serial: SerialNumber) -> Self {
        Self::Downstream(StreamError::Revoked(serial).into())
    }

    /// The same for somebody else who has to be told: which end, and whether it was a reset.
    #[must_use]
    pub fn alike(&self) -> Self {
        match self {
            Self::Downstream(error) => Self::Downstream(error.alike()),
            Self::Upstream(error) => Self::Upstream(error.alike()),
        }
    }

    /// A stable label for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Downstream(error) | Self::Upstream(error) if error.is_revoked() => "peer_certificate_revoked",
            Self::Downstream(error) if error.is_reset() => "downstream_reset",
            Self::Downstream(_) => "downstream_failed",
            Self::Upstream(error) if error.is_reset() => "upstream_reset",
            Self::Upstream(_) => "upstream_failed",
        }
    }
}

/// Carries an application's connection into a tunnel (outbound).
///
/// # Errors
/// [`CopyError`] if an end broke; the other is reset.
pub fn tcp_with_tunnel(
    downstream: TcpStream,
    upstream: TunnelStream,
    meter: &Meter,
) -> impl Future<Output = Result<(), CopyError>> {
    Copying::new(TcpEnd::new(downstream, &meter.held), TunnelEnd::new(upstream, &meter.held), meter)
}

/// Carries a stream out of a tunnel to an application (inbound).
///
/// # Errors
/// [`CopyError`] if an end broke; the other is reset.
pub fn tunnel_with_tcp(
    downstream: TunnelStream,
    upstream: TcpStream,
    meter: &Meter,
) -> impl Future<Output = Result<(), CopyError>> {
    Copying::new(TunnelEnd::new(downstream, &meter.held), TcpEnd::new(upstream, &meter.held), meter)
}

/// Joins two TCP connections (plaintext, and both pods on this node).
///
/// # Errors
/// [`CopyError`] if an end broke; the other is reset.
pub fn tcp_with_tcp(
    downstream: TcpStream,
    upstream: TcpStream,
    meter: &Meter,
) -> impl Future<Output = Result<(), CopyError>> {
    Copying::new(TcpEnd::new(downstream, &meter.held), TcpEnd::new(upstream, &meter.held), meter)
}

struct Copying<'a, D, U> {
    downstream: D,
    upstream: U,
    out: Pump,
    back: Pump,
    meter: &'a Meter,
    turn: Turn,
    /// Why it ends, while the last words of the end that broke are under way.
    parting: Option<CopyError>,
}

impl<'a, D: End, U: End> Copying<'a, D, U> {
    fn new(downstream: D, upstream: U, meter: &'a Meter) -> Self {
        let (out, back, turn) = (Pump::default(), Pump::default(), Turn::default());
        Self { downstream, upstream, out, back, meter, turn, parting: None }
    }

    fn poll_flow(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CopyError>> {
        ready!(self.turn.poll(cx));
        let (meter, turn) = (self.meter, &self.turn);
        let out = self.out.poll(cx, &mut self.downstream, &mut self.upstream, (&meter.from_downstream, turn));
        let out = out.map_err(|broken| match broken {
            Broken::Source(error) => CopyError::Downstream(error),
            Broken::Sink(error) => CopyError::Upstream(error),
        })?;
        let back = self.back.poll(cx, &mut self.upstream, &mut self.downstream, (&meter.to_downstream, turn));
        let back = back.map_err(|broken| match broken {
            Broken::Source(error) => CopyError::Upstream(error),
            Broken::Sink(error) => CopyError::Downstream(error),
        })?;
        if out.is_ready() && back.is_ready() {
            return Poll::Ready(Ok(()));
        }
        // Both directions have moved what can be moved. Only now: what came before a reset still counts.
        if self.out.is_tired() || self.back.is_tired() {
            self.turn.pass(cx);
        } else {
            if let Poll::Ready(error) = self.downstream.poll_reset(cx) {
                return Poll::Ready(Err(CopyError::Downstream(error)));
            }
            if let Poll::Ready(error) = self.upstream.poll_reset(cx) {
                return Poll::Ready(Err(CopyError::Upstream(error)));
            }
        }
        Poll::Pending
    }

    /// A write may fail before what the same end had said is read; this reads it. What the other end cannot take now is
    /// thrown away.
    fn drain(&mut self, error: &CopyError, cx: &mut Context<'_>) {
        let Self { downstream, upstream, out, back, meter, .. } = self;
        match error {
            CopyError::Downstream(_) => out.drain(cx, downstream, upstream, &meter.from_downstream),
            CopyError::Upstream(_) => back.drain(cx, upstream, downstream, &meter.to_downstream),
        }
        out.abandon();
        back.abandon();
    }
}

impl<D: End + Unpin, U: End + Unpin> Future for Copying<'_, D, U> {
    type Output = Result<(), CopyError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if this.parting.is_none() {
            match ready!(this.poll_flow(cx)) {
                Ok(()) => {
                    this.downstream.settle();
                    this.upstream.settle();
                    return Poll::Ready(Ok(()));
                }
                Err(error) => {
                    this.drain(&error, cx);
                    this.parting = Some(error);
                }
            }
        }
        // h2 throws away what is queued on a stream that is reset, so the reset waits until it has left. It has room in
        // the window, so it waits for the socket alone, and that for no longer than a silent peer is kept.
        match &this.parting {
            Some(CopyError::Downstream(_)) => ready!(this.downstream.poll_passed_on(cx)),
            Some(CopyError::Upstream(_)) => ready!(this.upstream.poll_passed_on(cx)),
            None => {}
        }
        Poll::Ready(this.parting.take().map_or(Ok(()), Err))
    }
}
