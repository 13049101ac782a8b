//! Runs of the virtual cluster.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod kinds;
mod os;

use skeg_sim::{Bug, Options, Outcome, run};
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds that every test run tries.
const FIXED_SEEDS: u64 = 20;
/// Seeds within which each planted bug must be caught.
const BUG_SEEDS: u64 = 1_000;

/// Runs `all`, each on its own, on every processor; the outcomes are in order.
fn run_all(all: &[Options]) -> Vec<Outcome> {
    let next = AtomicU64::new(0);
    let work = || {
        let take = || all.get(next.fetch_add(1, Ordering::Relaxed) as usize);
        std::iter::from_fn(take).map(|options| (options.seed, run(options))).collect::<Vec<_>>()
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut outcomes: Vec<(u64, Outcome)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    outcomes.sort_by_key(|(seed, _)| *seed);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

#[test]
fn twenty_seeds_break_no_promise_and_settle() {
    let all: Vec<_> = (0..FIXED_SEEDS).map(Options::new).collect();
    for (options, outcome) in all.iter().zip(run_all(&all)) {
        assert_eq!(outcome.violations, Vec::<String>::new(), "{options:?}");
        assert!(outcome.writes > 300, "almost nothing happened: {options:?}, {outcome:?}");
    }
}

#[test]
fn a_calm_run_breaks_no_promise() {
    let outcome = run(&Options { faults: false, ..Options::new(1) });
    assert_eq!(outcome.violations, Vec::<String>::new(), "{outcome:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let outcomes = run_all(&[Options::new(3), Options::new(3), Options::new(4)]);
    assert_eq!(outcomes[0], outcomes[1]);
    assert_ne!(outcomes[0].trace_hash, outcomes[2].trace_hash);
}

#[test]
fn a_run_reads_neither_the_clock_nor_the_randomness_of_the_os() {
    // The first run may set up what lives as long as the process.
    run(&Options::new(1));
    let reads = os::reads_during(|| {
        run(&Options::new(2));
    });
    assert_eq!(reads, os::Reads::default(), "the run read the operating system's clock or randomness");
    let control = os::reads_during(|| {
        let _ = skeg_base::Clock::system().now();
        let _ = skeg_base::Random::system();
    });
    assert!(control.clock > 0 && control.randomness > 0, "the control was not seen: {control:?}");
}

/// Each bug, and what a checker says of it.
const BUGS: &[(Bug, &str)] = &[
    (Bug::LostDelete, "is not complete"),
    (Bug::LostAdd, "active Pods of a ReplicaSet"),
    (Bug::DoubleBind, "was bound to"),
    (Bug::SurgeOffByOne, "of a Deployment that allows"),
    (Bug::UnavailableIgnored, "of a Deployment that needs"),
    (Bug::HotLoop, "not settled"),
    (Bug::DoubleCreate, "active Pods of a ReplicaSet"),
    (Bug::OwnersDenied, "was deleted under a Deployment"),
    (Bug::SchedulerDeaf, "is not complete"),
    (Bug::CollectorIdle, "outlived its owner"),
    (Bug::NamespaceTooEarly, "is gone while it holds"),
    (Bug::LostWrite, "was to have"),
    (Bug::WatchSkips, "that a watch adds up to"),
    (Bug::EndTooEarly, "new and old together"),
    (Bug::ReleaseLost, "was not released"),
];

#[test]
fn each_planted_bug_is_caught() {
    assert_eq!(BUGS.iter().map(|(bug, _)| *bug).collect::<Vec<_>>(), Bug::ALL);
    let next = AtomicU64::new(0);
    let hunt = || {
        while let Some((bug, sign)) = BUGS.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let shows = |seed: &u64| {
                let outcome = run(&Options { bug: Some(*bug), ..Options::new(*seed) });
                outcome.violations.iter().any(|violation| violation.contains(sign))
            };
            let caught = (0..BUG_SEEDS).find(shows);
            println!("{bug:?} caught by seed {caught:?}");
            let seed = caught.unwrap_or_else(|| panic!("{bug:?} was not caught within {BUG_SEEDS} seeds"));
            // The fixed seeds are shown to pass without a bug elsewhere.
            if seed >= FIXED_SEEDS {
                assert_eq!(
                    run(&Options::new(seed)).violations,
                    Vec::<String>::new(),
                    "seed {seed} without {bug:?}"
                );
            }
        }
    };
    std::thread::scope(|scope| {
        (0..std::thread::available_parallelism().map_or(1, usize::from)).for_each(|_| {
            scope.spawn(hunt);
        });
    });
}
