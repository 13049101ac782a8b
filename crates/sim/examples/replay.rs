//! Runs seeds of the virtual cluster and tells what broke: `replay FIRST [COUNT [BUG]]`, with
//! `calm` in place of a bug for a run without faults.

use skeg_sim::{Bug, Options, run};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |n: usize, default: u64| arguments.get(n).and_then(|text| text.parse().ok()).unwrap_or(default);
    let last = arguments.get(2).map(String::as_str);
    let bug = Bug::ALL.iter().copied().find(|bug| last == Some(&*format!("{bug:?}")));
    let first = number(0, 0);
    for seed in first..first + number(1, 1) {
        let outcome = run(&Options { seed, bug, faults: last != Some("calm") });
        println!(
            "seed {seed}: {} writes, {} requests, trace {:016x}",
            outcome.writes, outcome.requests, outcome.trace_hash
        );
        outcome.violations.iter().for_each(|violation| println!("  {violation}"));
    }
}
