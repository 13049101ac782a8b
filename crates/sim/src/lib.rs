//! A virtual cluster: the real API server, store, controllers and scheduler on virtual time in
//! one thread, with pretend nodes, faults at the client seam and checkers on every write.
//!
//! One seed decides everything. The same seed gives the same trace hash; the checkers say which
//! promise broke and when. Nothing depends on this crate.

mod check;
mod fault;
mod gateway;
mod load;
mod node;
mod observe;
mod world;

pub use fault::Bug;

use skeg_base::Timestamp;

/// How one run goes.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// Delays, lost requests and answers, refusals, cut watches, crashes.
    pub faults: bool,
    /// A bug to plant, to show that the checkers find it.
    pub bug: Option<Bug>,
}

impl Options {
    pub fn new(seed: u64) -> Self {
        Options { seed, faults: true, bug: None }
    }
}

/// What a run showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// A hash of every write: revision, key and value.
    pub trace_hash: u64,
    /// Writes in all.
    pub writes: u64,
    /// Requests that went through the faulty seam.
    pub requests: u64,
    /// Broken promises, in order; empty for a good run.
    pub violations: Vec<String>,
}

/// The virtual time at which every run starts.
fn epoch() -> Timestamp {
    Timestamp::from_second(1_767_225_600).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Runs one virtual cluster to its end.
pub fn run(options: &Options) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    match runtime {
        Ok(runtime) => runtime.block_on(world::run(options)),
        Err(error) => Outcome { trace_hash: 0, writes: 0, requests: 0, violations: vec![error.to_string()] },
    }
}
