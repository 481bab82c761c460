//! Notices a peer that fell silent: asks by PING when nothing came for a while, gives it up when nothing comes still.
//!
//! Anything received counts as a sign of life, so a busy tunnel sends no PING at all, and of two idle ends one asks.

use std::{
    cell::RefCell,
    fmt,
    future::Future as _,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::wire::Heard;

/// When to ask, and when to give up.
#[derive(Debug, Clone)]
pub struct KeepaliveOptions {
    /// Silence after which a PING is sent; 10 s.
    pub ask_after: Duration,
    /// Silence after which the tunnel is dead; 30 s, which leaves a busy peer the 20 s that the field gives an answer.
    pub dead_after: Duration,
}

impl Default for KeepaliveOptions {
    fn default() -> Self {
        Self { ask_after: Duration::from_secs(10), dead_after: Duration::from_secs(30) }
    }
}

/// Asks a peer for a sign of life. Clones ask the same peer.
#[derive(Clone)]
pub(crate) struct Pings(Rc<RefCell<Option<PingPong>>>);

impl Pings {
    pub(crate) fn new(pings: Option<PingPong>) -> Self {
        Self(Rc::new(RefCell::new(pings)))
    }

    /// Sends a PING unless one is unanswered. The answer matters only as something that was heard.
    pub(crate) fn ask(&self) {
        let mut pings = self.0.borrow_mut();
        let Some(pings) = pings.as_mut() else { return };
        // Takes an earlier answer out of the way; h2 knows one question at a time.
        let _answered = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
        if let Err(error) = pings.send_ping(Ping::opaque()) {
            tracing::trace!(%error, "no PING sent");
        }
    }
}

impl fmt::Debug for Pings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pings")
    }
}

/// The watch over one tunnel. Poll it after the tunnel itself, so that what waits in the socket is heard first.
pub(crate) struct Keepalive {
    options: KeepaliveOptions,
    heard: Heard,
    pings: Pings,
    timer: Pin<Box<Sleep>>,
}

impl Keepalive {
    pub(crate) fn new(options: &KeepaliveOptions, heard: Heard, pings: Pings) -> Self {
        let timer = Box::pin(sleep_until(heard.at() + options.ask_after));
        Self { options: options.clone(), heard, pings, timer }
    }

    /// Ready once the peer is to be given up.
    pub(crate) fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let heard = self.heard.at();
            let silence = Instant::now().saturating_duration_since(heard);
            if silence >= self.options.dead_after {
                return Poll::Ready(());
            }
            let next = if silence >= self.options.ask_after {
                self.pings.ask();
                self.options.dead_after
            } else {
                self.options.ask_after
            };
            self.timer.as_mut().reset(heard + next);
        }
    }
}
