//! The scheduler's decisions, its queue, and the whole of it against a small API.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod cluster;
mod decide;
mod invariants;
mod queue;
mod run;
