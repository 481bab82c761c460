//! Buffers that exist only while there is something to read, and fit what usually comes.
//!
//! Large ones are kept for the next reader on the thread, a few only: an allocator would return them to the kernel and
//! fetch them again, page by page. Nothing of an idle connection stays here.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;

use crate::held::Held;

/// The smallest read.
pub(crate) const SMALLEST: usize = 1024;
/// The largest read. More gained nothing: the kernel's queue is seldom longer.
pub(crate) const LARGEST: usize = 256 * 1024;
/// Buffers from this size on are worth keeping.
const WORTH_KEEPING: usize = 64 * 1024;
/// At most this many per thread.
const MOST_KEPT: usize = 8;

thread_local! {
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room for `size` bytes or more.
pub(crate) fn take(size: usize) -> BytesMut {
    let spare = (size >= WORTH_KEEPING)
        .then(|| SPARE.try_with(|spare| spare.try_borrow_mut().ok()?.pop()).ok().flatten())
        .flatten();
    let mut buffer = spare.unwrap_or_default();
    // Gets the room back that reading from its front has used up, and allocates only if that is not enough.
    buffer.reserve(size);
    buffer
}

/// Takes a buffer back that is not needed.
pub(crate) fn give(mut buffer: BytesMut) {
    buffer.clear();
    // Reading from its front has moved its start; this moves it back.
    if !buffer.try_reclaim(WORTH_KEEPING) {
        return;
    }
    // A thread that ends, or a full store: the buffer is simply freed.
    let _kept = SPARE.try_with(|spare| {
        if let Ok(mut spare) = spare.try_borrow_mut()
            && spare.len() < MOST_KEPT
        {
            spare.push(buffer);
        }
    });
}

/// What was read, in a buffer that it fills if it filled little of the one that was offered: who sends single bytes must not make us hold a
/// buffer for each.
fn fit(buffer: BytesMut) -> BytesMut {
    if buffer.len() > buffer.capacity() / 4 {
        return buffer;
    }
    let exact = BytesMut::from(&*buffer);
    give(buffer);
    exact
}

/// What was read and is still in memory, wherever it went. (h2 tells nobody when it has written a frame; that the frame
/// is freed tells it.)
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    /// Pieces, and not bytes: it is those that cost when they are small, and windows bound the bytes.
    pieces: AtomicUsize,
    waiting: AtomicWaker,
    held: Arc<Held>,
}

impl Outstanding {
    /// Nothing yet; what will be counts there, too.
    pub(crate) fn counted_by(held: &Arc<Held>) -> Self {
        Self { held: Arc::clone(held), ..Self::default() }
    }

    /// Makes what was read shareable, and counts it until it is freed.
    pub(crate) fn track(self: &Arc<Self>, buffer: BytesMut) -> Bytes {
        Bytes::from_owner(self.hold(buffer))
    }

    fn hold(self: &Arc<Self>, buffer: BytesMut) -> Tracked {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        let buffer = fit(buffer);
        self.held.add(buffer.len());
        Tracked { buffer, outstanding: Arc::clone(self) }
    }

    /// Ready when fewer than `most` pieces are left.
    pub(crate) fn poll_fewer(&self, cx: &mut Context<'_>, most: usize) -> Poll<()> {
        if self.pieces.load(Ordering::Relaxed) < most {
            return Poll::Ready(());
        }
        self.waiting.register(cx.waker());
        if self.pieces.load(Ordering::Relaxed) < most { Poll::Ready(()) } else { Poll::Pending }
    }
}

struct Tracked {
    buffer: BytesMut,
    outstanding: Arc<Outstanding>,
}

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.outstanding.held.take_off(self.buffer.len());
        self.outstanding.pieces.fetch_sub(1, Ordering::Relaxed);
        self.outstanding.waiting.wake();
        give(std::mem::take(&mut self.buffer));
    }
}

/// How much to read at once: grows fast with a flow, shrinks with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Appetite(usize);

impl Appetite {
    /// An appetite of `size` for the first read.
    pub(crate) fn new(size: usize) -> Self {
        Self(size.clamp(SMALLEST, LARGEST))
    }

    /// The size of the next read.
    pub(crate) fn size(self) -> usize {
        self.0
    }

    /// Learns from a read of `read` bytes that could have been `offered`.
    pub(crate) fn ate(&mut self, read: usize, offered: usize) {
        if read >= offered && offered >= self.0 {
            self.0 = (self.0 * 4).min(LARGEST);
        } else if read < self.0 / 4 {
            self.0 = (self.0 / 2).max(SMALLEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_appetite_grows_with_full_reads_and_shrinks_with_small_ones() {
        let mut appetite = Appetite::new(0);
        let mut sizes = Vec::new();
        for _ in 0..6 {
            sizes.push(appetite.size());
            appetite.ate(appetite.size(), appetite.size());
        }
        assert_eq!(sizes, [1024, 4096, 16_384, 65_536, 262_144, 262_144]);
        for _ in 0..10 {
            appetite.ate(10, appetite.size());
        }
        assert_eq!(appetite.size(), SMALLEST);
        appetite.ate(500, 500);
        assert_eq!(appetite.size(), SMALLEST, "a read that the window cut short says nothing of the flow");
    }

    #[test]
    fn a_buffer_that_is_hardly_used_is_exchanged() {
        for (length, size, held) in [(1, SMALLEST, 1), (256, SMALLEST, 256), (257, SMALLEST, SMALLEST)] {
            let mut buffer = BytesMut::with_capacity(size);
            buffer.resize(length, 7);
            let tracked = Arc::new(Outstanding::default()).hold(buffer);
            assert_eq!((tracked.buffer.len(), tracked.buffer.capacity()), (length, held));
            assert!(tracked.buffer.iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn large_buffers_are_used_again_and_small_ones_freed() {
        let mut buffer = take(LARGEST);
        buffer.extend_from_slice(b"what a connection said");
        let place = buffer.as_ptr();
        give(buffer);
        let again = take(LARGEST);
        assert_eq!(again.as_ptr(), place);
        assert!(again.is_empty());
        give(take(SMALLEST));
        assert!(SPARE.with(|spare| spare.borrow().is_empty()));
    }
}
