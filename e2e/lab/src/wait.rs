//! Waiting for something to become true, bounded.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

/// How long a wait pauses between two looks: at first hardly, later enough to leave the processor to others.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Whether whatever is under way shall end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Has whatever this process is about to wait for, or to start, fail. [`crate::Lab::down`] does its work all the same.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// From now on things are waited for and started again.
pub(crate) fn go_on() {
    INTERRUPTED.store(false, Ordering::SeqCst);
}

/// Fails if somebody has interrupted.
pub(crate) fn uninterrupted() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
    Ok(())
}

/// Looks again and again until `look` answers with a value, or the deadline passes.
///
/// # Errors
/// After the deadline: `what`, and the last error or reason that `look` gave. When somebody [interrupts](interrupt).
pub fn eventually<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let until = Instant::now() + deadline;
    let mut pause = FIRST_PAUSE;
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() >= until => {
                bail!("waited {} s for {what}: {error:#}", deadline.as_secs_f32())
            }
            Err(_) => {
                uninterrupted()?;
                thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// [`eventually`] for a plain condition.
///
/// # Errors
/// After the deadline.
pub fn until(deadline: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    eventually(deadline, what, || if holds() { Ok(()) } else { bail!("not yet") })
}
