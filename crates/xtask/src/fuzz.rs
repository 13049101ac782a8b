//! `cargo xtask fuzz`: the targets of `crates/fuzz`, guided by coverage. What it finds stays below
//! `target/fuzz`: inputs in `corpus`, those that break a promise in `found`.

use crate::host::{command, output, run, target};
use anyhow::{Context, Result, bail};

/// As much as a target may take of memory, in MB.
const MEMORY_MB: u32 = 512;
/// As long as one input may take, in seconds.
const INPUT_MAX_S: u32 = 10;

/// What makes the compiler count edges, as cargo-fuzz does without a sanitizer.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// Runs the target of this name, or each, for so many minutes.
pub fn fuzz(only: Option<&str>, minutes: f64) -> Result<()> {
    let home = target().join("fuzz");
    let seeds = home.join("seeds");
    let version = output(command("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc's host")?;
    let mut build = command("cargo");
    // Of a named target only its own crates have the flags: no build scripts.
    build.args(["build", "--profile", "fuzz", "--locked", "--package", "skeg-fuzz", "--bin", "skeg-fuzz"]);
    build.args(["--features", "libfuzzer", "--target", host, "--target-dir"]).arg(&home);
    run(build.env("RUSTFLAGS", FLAGS.join(" ")))?;
    let driver = home.join(host).join("fuzz/skeg-fuzz");
    run(command(&driver).env("SKEG_FUZZ_SEEDS", &seeds))?;
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(&seeds)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    names.retain(|name| only.is_none_or(|only| name == only));
    if names.is_empty() {
        bail!("no such target: look for the names in {}", seeds.display());
    }
    let mut failed = Vec::new();
    for name in names {
        println!("=== {name}");
        let (corpus, found) = (home.join("corpus").join(&name), home.join("found").join(&name));
        std::fs::create_dir_all(&corpus)?;
        std::fs::create_dir_all(&found)?;
        let mut fuzzer = command(&driver);
        fuzzer.env("SKEG_FUZZ_TARGET", &name).arg(&corpus).arg(seeds.join(&name));
        fuzzer.arg(format!("-max_total_time={}", (minutes * 60.0).ceil()));
        fuzzer.arg(format!("-rss_limit_mb={MEMORY_MB}")).arg(format!("-malloc_limit_mb={MEMORY_MB}"));
        fuzzer.arg(format!("-timeout={INPUT_MAX_S}")).arg(format!("-artifact_prefix={}/", found.display()));
        fuzzer.args(["-max_len=4096", "-print_final_stats=1", "-verbosity=0"]);
        if run(&mut fuzzer).is_err() {
            failed.push(format!("{name}: the input is in {}", found.display()));
        }
    }
    if !failed.is_empty() {
        bail!("a promise does not hold:\n  {}", failed.join("\n  "));
    }
    Ok(())
}
