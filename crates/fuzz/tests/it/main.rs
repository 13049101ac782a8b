//! Every target over its seeds and what a fixed seed makes of them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use skeg_fuzz::{Mutator, TARGETS};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Mutations of each target.
const INPUTS: usize = 2_000;

#[test]
fn what_is_promised_holds_for_every_seed() {
    for target in TARGETS {
        for seed in target.seeds {
            (target.run)(seed);
        }
    }
}

#[test]
fn what_is_promised_holds_for_what_seeds_become() {
    for target in TARGETS {
        let mutator = Mutator::new(target, 7);
        for n in 0..INPUTS {
            let input = mutator.input();
            let held = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
            assert!(held.is_ok(), "{}, input {n}: {:?}", target.name, String::from_utf8_lossy(&input));
        }
    }
}

/// A driver that made nothing new would show nothing.
#[test]
fn seeds_become_many_inputs() {
    for target in TARGETS {
        let inputs = |seed| {
            let mutator = Mutator::new(target, seed);
            (0..200).map(|_| mutator.input()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        let mut all = inputs(1);
        all.sort();
        all.dedup();
        assert!(all.len() > 150, "{}: {}", target.name, all.len());
    }
}
