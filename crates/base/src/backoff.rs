//! Exponential back-off with a bound.

use std::time::Duration;

/// Doubles from `initial` up to `max` with each [`Backoff::next`] until [`Backoff::reset`].
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub fn new(initial: Duration, max: Duration) -> Self {
        Backoff { initial, max, failures: 0 }
    }

    /// How long to wait before the next try.
    #[expect(clippy::should_implement_trait, reason = "never ends, so it is no iterator")]
    pub fn next(&mut self) -> Duration {
        let wait = self.initial.saturating_mul(1u32 << self.failures.min(30)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        wait
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Tries since the last reset.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_its_maximum() {
        let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(30));
        let waits: Vec<_> = (0..5).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [5, 10, 20, 30, 30]);
        backoff.reset();
        assert_eq!(backoff.next().as_millis(), 5);
    }
}
