//! The one source of wall-clock time. Sleeping and deadlines use `tokio::time`, which the
//! simulation pauses; a simulated [`Clock`] derives its wall time from that same paused clock.

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// A handle that tells the wall-clock time. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Source);

#[derive(Clone, Copy, Debug)]
enum Source {
    System,
    Simulated { epoch: Timestamp, started: Instant },
}

impl Clock {
    /// The operating system's clock.
    pub fn system() -> Self {
        Clock(Source::System)
    }

    /// A clock that shows `epoch` now and advances with tokio's (paused) clock.
    /// Call it inside the simulation's runtime.
    pub fn simulated(epoch: Timestamp) -> Self {
        Clock(Source::Simulated { epoch, started: Instant::now() })
    }

    /// The time now, with microsecond precision (Kubernetes' `MicroTime`).
    pub fn now(&self) -> Timestamp {
        match self.0 {
            #[expect(clippy::disallowed_methods, reason = "the one place that reads the OS clock")]
            Source::System => truncate(Timestamp::now(), 1_000),
            Source::Simulated { epoch, started } => {
                let elapsed = SignedDuration::try_from(started.elapsed()).unwrap_or(SignedDuration::MAX);
                truncate(epoch.saturating_add(elapsed).unwrap_or(Timestamp::MAX), 1_000)
            }
        }
    }

    /// The time now, cut to whole seconds (Kubernetes' `Time`).
    pub fn now_seconds(&self) -> Timestamp {
        truncate(self.now(), 1_000_000_000)
    }
}

fn truncate(at: Timestamp, unit_ns: i128) -> Timestamp {
    let ns = at.as_nanosecond();
    Timestamp::from_nanosecond(ns - ns.rem_euclid(unit_ns)).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn simulated_time_follows_the_paused_clock() {
        let epoch: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let clock = Clock::simulated(epoch);
        assert_eq!(clock.now(), epoch);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(clock.now().to_string(), "2026-01-01T00:00:01.5Z");
        assert_eq!(clock.now_seconds().to_string(), "2026-01-01T00:00:01Z");
    }
}
