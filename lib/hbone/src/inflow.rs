//! How much the peers of one party's tunnels may send before it is read.
//!
//! Windows that were granted cannot be taken back, so what all tunnels grant together must fit what the party may hold. A
//! tunnel of few may fill its widest window; of many, each has its share. What slow readers of a tunnel hold is granted
//! anew, so that they do not stop the others in it, as long as the party has room.

use std::{cell::Cell, sync::Arc};

use crate::held::Held;

/// No tunnel has less: what HTTP/2 begins with (RFC 9113, 6.9.2), nearly.
const LEAST: u64 = 64 << 10;

/// What one tunnel lets its peer send.
#[derive(Debug)]
pub(crate) struct Inflow {
    held: Arc<Held>,
    /// The widest window.
    most: u32,
    /// The window that it has, with what of it was not passed on yet.
    granted: Cell<u32>,
    /// Bytes that streams of the tunnel took out of it and have not passed on.
    unread: Cell<usize>,
}

impl Inflow {
    /// Of a tunnel that begins, with a window of `most` bytes at most.
    pub(crate) fn new(held: &Arc<Held>, most: u32) -> Self {
        held.tunnel_begins();
        let inflow = Self { held: Arc::clone(held), most, granted: Cell::new(0), unread: Cell::new(0) };
        inflow.granted.set(inflow.wanted());
        inflow
    }

    /// The window to begin with.
    pub(crate) fn granted(&self) -> u32 {
        self.granted.get()
    }

    /// The window to have from now on, if it should be a noticeably different one.
    pub(crate) fn change(&self) -> Option<u32> {
        let (granted, wanted) = (self.granted.get(), self.wanted());
        // Each change costs a frame, so small ones are left.
        let is_news = wanted.abs_diff(granted) > self.base() / 4 || (wanted == self.most && granted != wanted);
        is_news.then(|| {
            self.granted.set(wanted);
            wanted
        })
    }

    /// A stream took bytes; true if by now so little is free that [`Self::change`] should be asked.
    pub(crate) fn taken(&self, bytes: usize) -> bool {
        self.unread.set(self.unread.get().saturating_add(bytes));
        let granted = self.granted.get();
        granted < self.most && (granted as usize).saturating_sub(self.unread.get()) < self.base() as usize / 2
    }

    /// A stream passed bytes on, or gave them up.
    pub(crate) fn passed_on(&self, bytes: usize) {
        self.unread.set(self.unread.get().saturating_sub(bytes));
    }

    /// The window of a tunnel whose readers keep up.
    fn base(&self) -> u32 {
        window(self.held.share(), 0, self.most)
    }

    fn wanted(&self) -> u32 {
        let unread = if self.held.is_enough() { 0 } else { self.unread.get() };
        window(self.held.share(), unread, self.most)
    }
}

impl Drop for Inflow {
    fn drop(&mut self) {
        self.held.tunnel_ends();
    }
}

fn window(share: u64, unread: usize, most: u32) -> u32 {
    let wanted = share.max(LEAST).saturating_add(unread as u64);
    u32::try_from(wanted).map_or(most, |wanted| wanted.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 16 << 20;

    #[test]
    fn a_window_is_a_share_and_what_slow_readers_hold_within_bounds() {
        let kib = |number: u32| number << 10;
        for (share, unread, expected) in [
            (u64::MAX, 0, MOST),
            (64 << 20, 0, MOST),
            (1 << 20, 0, kib(1024)),
            (1 << 20, 1 << 20, kib(2048)),
            (1 << 20, 1 << 30, MOST),
            (0, 0, kib(64)),
            (1, 1 << 10, kib(65)),
        ] {
            assert_eq!(window(share, unread, MOST), expected, "{share} {unread}");
        }
    }

    #[test]
    fn what_all_tunnels_grant_fits_what_their_party_may_hold() {
        let held = Arc::new(Held::new(64 << 20));
        let few: Vec<_> = (0..4).map(|_| Inflow::new(&held, MOST)).collect();
        assert!(few.iter().all(|inflow| inflow.granted() == MOST));
        let many: Vec<_> = (0..496).map(|_| Inflow::new(&held, MOST)).collect();
        let all = || few.iter().chain(&many);
        // As soon as each has been looked at again.
        let looked_at = |inflow: &Inflow| u64::from(inflow.change().unwrap_or(inflow.granted()));
        let granted: u64 = all().map(looked_at).sum();
        assert!(granted <= 80 << 20, "{granted}");
        drop(many);
        assert_eq!(few[0].change(), Some(MOST));
        assert_eq!(few[0].change(), None);
    }

    #[test]
    fn slow_readers_are_granted_more_only_while_there_is_room() {
        let held = Arc::new(Held::new(1 << 20));
        let tunnels: Vec<_> = (0..8).map(|_| Inflow::new(&held, MOST)).collect();
        let inflow = &tunnels[7];
        assert_eq!(inflow.granted(), 128 << 10);
        assert!(!inflow.taken(32 << 10) && inflow.taken(64 << 10));
        assert_eq!(inflow.change(), Some(224 << 10));
        held.add(1 << 20);
        assert_eq!(inflow.change(), Some(128 << 10));
        held.take_off(1 << 20);
        inflow.passed_on(96 << 10);
        assert_eq!(inflow.change(), None);
    }
}
