//! The one retry schedule: doubling delays with jitter, so that many clients of one server spread out.

use std::time::Duration;

/// Delays between tries: each up to twice the last, never more than a limit, each drawn from the upper half of its range, or
/// from all of it.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
    least: f64,
}

impl Backoff {
    /// A schedule that starts at `first` and never waits longer than `most`.
    #[must_use]
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first.min(most), least: 0.5 }
    }

    /// As [`Self::new`], with delays drawn from the whole of their range: for very many who may fail at the same moment, and
    /// shall not come back at the same one.
    #[must_use]
    pub fn spread(first: Duration, most: Duration) -> Self {
        Self { least: 0.0, ..Self::new(first, most) }
    }

    /// How long to wait before the next try.
    pub fn delay(&mut self) -> Duration {
        let whole = self.next;
        self.next = whole.saturating_mul(2).min(self.most);
        whole.mul_f64(self.least + fastrand::f64() * (1.0 - self.least))
    }

    /// A try succeeded: the next failure starts over.
    pub fn reset(&mut self) {
        self.next = self.first.min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_limit_and_starts_over_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(35));
        for whole in [10, 20, 35, 35] {
            let whole = Duration::from_millis(whole);
            let delay = backoff.delay();
            assert!(delay >= whole / 2 && delay <= whole, "{delay:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.delay() <= Duration::from_millis(10));
    }
}
