//! One direction of a connection.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
};

use bytes::Bytes;

use super::ends::{End, EndError};
use crate::turns::Turn;

/// Rounds of reading and writing, at most, in one turn of the connection.
const ROUNDS: usize = 8;

/// As many chunks are written at once, so there is nothing to gain from joining them.
const FEW: usize = 16;
/// Chunks below this size are joined.
const SMALL: usize = 1024;
/// Up to this size.
const JOINED: usize = 16 * 1024;

/// Where a direction stands.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// More may come.
    #[default]
    Flowing,
    /// The source has ended; what it sent is under way.
    Ending,
    /// The end is passed on.
    Ended,
}

/// Which end of the direction broke.
#[derive(Debug)]
pub(super) enum Broken {
    Source(EndError),
    Sink(EndError),
}

/// What is between the two ends.
#[derive(Debug, Default)]
pub(super) struct Pump {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    stage: Stage,
    tired: bool,
}

impl Pump {
    /// Moves what can be moved in this turn; ready once the end is passed on, from then on for ever.
    pub(super) fn poll<S: End, T: End>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut T,
        (meter, turn): (&AtomicU64, &Turn),
    ) -> Poll<Result<(), Broken>> {
        self.tired = false;
        for _ in 0..ROUNDS {
            if turn.is_over() {
                break;
            }
            if self.stage == Stage::Ended {
                return Poll::Ready(Ok(()));
            }
            let filled = match self.poll_fill(cx, source, sink) {
                Poll::Ready(Err(broken)) => {
                    self.drain(cx, source, sink, meter);
                    return Poll::Ready(Err(broken));
                }
                filled => filled,
            };
            if !self.chunks.is_empty() {
                turn.spend(ready!(self.poll_write(cx, source, sink, meter)).map_err(Broken::Sink)?);
            } else if self.stage == Stage::Ending {
                ready!(sink.poll_finish(cx)).map_err(Broken::Sink)?;
                self.stage = Stage::Ended;
            } else if filled.is_pending() {
                self.chunks.shrink_to(1);
                return Poll::Pending;
            }
        }
        self.tired = true;
        Poll::Pending
    }

    /// True if there was more to do than one turn allows.
    pub(super) fn is_tired(&self) -> bool {
        self.tired
    }

    /// Moves what can be moved at once of what a broken connection has said before: it still counts, but nobody waits
    /// for it, and its end is not a clean one.
    pub(super) fn drain<S: End, T: End>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut T,
        meter: &AtomicU64,
    ) {
        for _ in 0..ROUNDS {
            let filled = self.poll_fill(cx, source, sink);
            while !self.chunks.is_empty() {
                if !matches!(self.poll_write(cx, source, sink, meter), Poll::Ready(Ok(_written))) {
                    return;
                }
            }
            if self.stage != Stage::Flowing || !matches!(filled, Poll::Ready(Ok(()))) {
                return;
            }
        }
    }

    fn poll_write<S: End, T: End>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut T,
        meter: &AtomicU64,
    ) -> Poll<Result<usize, EndError>> {
        let written = ready!(sink.poll_write(cx, &mut self.chunks))?;
        self.bytes = self.bytes.saturating_sub(written);
        meter.fetch_add(written as u64, Ordering::Relaxed);
        source.passed_on(written);
        Poll::Ready(Ok(written))
    }

    fn poll_fill<S: End, T: End>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut T,
    ) -> Poll<Result<(), Broken>> {
        while self.stage == Stage::Flowing && self.bytes < S::AHEAD {
            let Poll::Ready(wanted) = source.poll_readable(cx) else {
                sink.rest();
                return Poll::Pending;
            };
            let wanted = wanted.map_err(Broken::Source)?;
            let room = ready!(sink.poll_room(cx, wanted)).map_err(Broken::Sink)?;
            let Poll::Ready(read) = source.poll_read(cx, room.min(wanted)) else {
                sink.rest();
                return Poll::Pending;
            };
            match read.map_err(Broken::Source)? {
                Some(chunk) if chunk.is_empty() => {}
                Some(chunk) => {
                    self.bytes += chunk.len();
                    self.keep(chunk);
                }
                None => {
                    sink.rest();
                    self.stage = Stage::Ending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Queues a chunk. In a queue that grows, small ones are joined: each by itself costs more than its bytes, and holds
    /// the whole of what it came in.
    fn keep(&mut self, chunk: Bytes) {
        if self.chunks.len() < FEW || chunk.len() >= SMALL {
            return self.chunks.push_back(chunk);
        }
        let joined = self.chunks.pop_back_if(|last| last.len() + SMALL <= JOINED);
        let joined = joined.and_then(|last| last.try_into_mut().map_err(|last| self.chunks.push_back(last)).ok());
        let mut joined = joined.unwrap_or_default();
        joined.extend_from_slice(&chunk);
        self.chunks.push_back(joined.freeze());
    }

    /// Throws away what could not be moved.
    pub(super) fn abandon(&mut self) {
        self.chunks.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_chunks_are_joined_where_a_queue_grows() {
        let mut pump = Pump::default();
        let all = Bytes::from((0..50_000_u32).map(|n| n as u8).collect::<Vec<_>>());
        let sizes = [1, 1, 3, 2000, 1].into_iter().cycle();
        let mut rest = all.clone();
        for size in sizes.take(100) {
            pump.keep(rest.split_to(size));
        }
        // Whole bytes of somebody else's buffer must not be written into.
        while !rest.is_empty() {
            pump.keep(rest.split_to(1));
        }
        assert!(pump.chunks.len() < 100, "{}", pump.chunks.len());
        assert!(pump.chunks.iter().all(|chunk| chunk.len() <= JOINED));
        assert!(pump.chunks.iter().flatten().eq(all.iter()));
    }
}
