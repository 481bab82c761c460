//! Scenarios that break nodes: one at a time, and while no other scenario uses the cluster, as cargo runs one test
//! program after the other.

use std::sync::{Mutex, MutexGuard, PoisonError};

mod reboot;

/// The right to break nodes.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
