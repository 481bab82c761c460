//! How much of a party's connections is in memory, and whether that is enough.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes of one party's connections that were read and have not left yet.
///
/// With more than its limit a connection of it is read from in small pieces, the next one when the last has left: all go
/// on, and memory grows no more than by that. What peers send is bounded by the windows that their tunnels give them, which
/// share this among them.
#[derive(Debug)]
pub struct Held {
    bytes: AtomicU64,
    most: AtomicU64,
    /// Tunnels that peers have to the party.
    tunnels: AtomicU64,
}

impl Held {
    /// Nothing yet, and at most this much.
    #[must_use]
    pub fn new(most: u64) -> Self {
        Self { bytes: AtomicU64::new(0), most: AtomicU64::new(most), tunnels: AtomicU64::new(0) }
    }

    /// Changes the limit.
    pub fn limit(&self, most: u64) {
        self.most.store(most, Relaxed);
    }

    /// How much it is now.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    pub(crate) fn is_enough(&self) -> bool {
        self.bytes() >= self.most.load(Relaxed)
    }

    /// What each tunnel may have of it.
    pub(crate) fn share(&self) -> u64 {
        self.most.load(Relaxed) / self.tunnels.load(Relaxed).max(1)
    }

    pub(crate) fn tunnel_begins(&self) {
        self.tunnels.fetch_add(1, Relaxed);
    }

    pub(crate) fn tunnel_ends(&self) {
        self.tunnels.fetch_sub(1, Relaxed);
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn take_off(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes as u64, Relaxed);
    }
}

impl Default for Held {
    /// Without a limit.
    fn default() -> Self {
        Self::new(u64::MAX)
    }
}
