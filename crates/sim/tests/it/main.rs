//! Runs of the virtual cluster.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod os;

use skeg_sim::{Bug, Options, run};

/// Seeds that every test run tries.
const FIXED_SEEDS: u64 = 20;
/// Seeds within which each planted bug must be caught.
const BUG_SEEDS: u64 = 1_000;

#[test]
fn twenty_seeds_break_no_promise_and_settle() {
    for seed in 0..FIXED_SEEDS {
        let outcome = run(&Options::new(seed));
        assert_eq!(outcome.violations, Vec::<String>::new(), "seed {seed}: {outcome:?}");
        assert!(outcome.writes > 100, "seed {seed} did almost nothing: {outcome:?}");
    }
}

#[test]
fn a_calm_run_breaks_no_promise() {
    let outcome = run(&Options { faults: false, ..Options::new(1) });
    assert_eq!(outcome.violations, Vec::<String>::new(), "{outcome:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 4] {
        let (first, second) = (run(&Options::new(seed)), run(&Options::new(seed)));
        assert_eq!(first, second);
    }
    assert_ne!(run(&Options::new(3)).trace_hash, run(&Options::new(4)).trace_hash);
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
    });
    assert!(control.clock > 0, "the control was not seen");
}

#[test]
fn each_planted_bug_is_caught() {
    for bug in Bug::ALL {
        let caught = (0..BUG_SEEDS).find(|seed| !run(&Options { bug: Some(*bug), ..Options::new(*seed) }).violations.is_empty());
        println!("{bug:?} caught by seed {caught:?}");
        assert!(caught.is_some(), "{bug:?} was not caught within {BUG_SEEDS} seeds");
    }
}
