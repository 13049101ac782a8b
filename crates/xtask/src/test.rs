//! `make test`: lint, every test of every crate, the end-to-end suite, coverage of COMPAT.md.

use crate::host::{command, output, release_binary, root, run, target};
use crate::{coverage, demo, guest, images, setup};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// End-to-end cases with real containers that must have run, or the run fails.
const CONTAINER_CASES_MIN: usize = 40;

/// The release binary's size at most.
const BINARY_BYTES_MAX: u64 = 40_000_000;
/// How long a changed crate may take to be checked, on two cores.
const INCREMENTAL_CHECK_MAX: Duration = Duration::from_secs(30);
/// Lines of a failed program's output that are shown.
const REPORT_LINES_MAX: usize = 400;

/// How each test ended, by `crate::path::name`.
#[derive(Default)]
pub struct Results {
    outcomes: BTreeMap<String, Outcome>,
    /// End-to-end cases in which containers started.
    with_containers: BTreeSet<String>,
    /// What failed programs said: shown last, because a long log is cut in its middle.
    reports: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    /// With the missing kernel feature.
    Skipped(String),
}

impl Results {
    pub fn path() -> PathBuf {
        target().join("test-results.txt")
    }

    pub fn load() -> Result<Self> {
        let text =
            fs::read_to_string(Self::path()).context("no test results: run `cargo xtask test` first")?;
        let mut results = Results::default();
        for line in text.lines() {
            if let Some((outcome, name)) = line.split_once(' ') {
                let outcome = match outcome {
                    "passed" => Outcome::Passed,
                    "failed" => Outcome::Failed,
                    _ => Outcome::Skipped(String::new()),
                };
                results.outcomes.insert(name.to_owned(), outcome);
            }
        }
        Ok(results)
    }

    fn save(&self) -> Result<()> {
        let lines: Vec<String> = self
            .outcomes
            .iter()
            .map(|(name, outcome)| match outcome {
                Outcome::Passed => format!("passed {name}\n"),
                Outcome::Failed => format!("failed {name}\n"),
                Outcome::Skipped(_) => format!("skipped {name}\n"),
            })
            .collect();
        Ok(fs::write(Self::path(), lines.concat())?)
    }

    pub fn outcome(&self, name: &str) -> Option<&Outcome> {
        self.outcomes.get(name)
    }

    fn count(&self, wanted: impl Fn(&Outcome) -> bool) -> usize {
        self.outcomes.values().filter(|outcome| wanted(outcome)).count()
    }
}

/// One timed phase at a time.
struct Phases {
    times: Vec<(&'static str, Duration)>,
}

impl Phases {
    fn run<T>(&mut self, name: &'static str, phase: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n=== {name}");
        let (result, time) = timed(phase);
        self.times.push((name, time));
        result
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    #[expect(clippy::disallowed_methods, reason = "a developer command times its phases")]
    let start = std::time::Instant::now();
    let result = work();
    (result, start.elapsed())
}

pub fn test(unit_only: bool, e2e_only: bool, only: Option<&str>) -> Result<()> {
    let everything = !unit_only && !e2e_only;
    let mut phases = Phases { times: Vec::new() };
    let mut results = Results::default();
    phases.run("setup", setup::setup)?;
    if everything {
        phases.run("lint", || {
            results.note("lint::rustfmt", rustfmt());
            results.note("lint::clippy", clippy());
            results.note("lint::rows_name_tests_that_exist", coverage::names());
            results.note("lint::an_incremental_check_takes_seconds", incremental_check());
            Ok(())
        })?;
    }
    if !e2e_only {
        let binaries = phases.run("build tests", build_tests)?;
        phases.run("crate tests", || crate_tests(&binaries, &mut results))?;
    }
    if !unit_only {
        let binary = phases.run("build release binary", release_binary)?;
        results.note("release::the_binary_has_at_most_40_mb", small_enough(&binary));
        phases.run("end-to-end tests", || end_to_end(only, &mut results))?;
        if everything {
            let shown = phases.run("demo", || Ok(demo::check(&binary)))?;
            results.note("demo::three_pods_serve_and_its_last_words_hold", shown);
            let whole = phases.run("a little of the benchmark", || Ok(bench_is_whole()))?;
            results.note("bench::every_figure_is_measured", whole);
        }
    }
    if everything {
        results.note("skips::each_is_named_with_its_feature", results.check_skips());
        results.note("containers::forty_cases_ran_some", results.check_containers());
    }
    results.save()?;
    if everything {
        let covered = phases.run("coverage of COMPAT.md", || Ok(coverage::coverage()))?;
        results.note("coverage::each_row_has_a_test_that_passed", covered);
    }
    results.summary(&phases)
}

impl Results {
    /// A check of this program's own counts as a test.
    fn note(&mut self, name: &str, result: Result<()>) {
        let outcome = match result {
            Ok(()) => Outcome::Passed,
            Err(error) => {
                self.reports.push(format!("{name}: {error:#}"));
                Outcome::Failed
            }
        };
        self.outcomes.insert(name.to_owned(), outcome);
    }

    /// As root every skip must be named in `tests/skips.toml` with the kernel feature it lacks.
    fn check_skips(&self) -> Result<()> {
        let path = root().join("tests/skips.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let unnamed = unnamed_skips(&self.outcomes, &text);
        if is_root()? && !unnamed.is_empty() {
            bail!("skipped, and tests/skips.toml does not allow it: {}", unnamed.join(", "));
        }
        Ok(())
    }

    fn check_containers(&self) -> Result<()> {
        let passed = |name: &&String| self.outcomes.get(*name) == Some(&Outcome::Passed);
        let count = self.with_containers.iter().filter(passed).count();
        println!("{count} end-to-end cases ran real containers");
        if count < CONTAINER_CASES_MIN {
            bail!("only {count} end-to-end cases ran containers, at least {CONTAINER_CASES_MIN} must");
        }
        Ok(())
    }

    /// Times, then what failed with its reasons, then the counts, so that the end of a log has all.
    fn summary(&self, phases: &Phases) -> Result<()> {
        println!();
        for (name, time) in &phases.times {
            println!("{:>8.1} s  {name}", time.as_secs_f64());
        }
        for report in &self.reports {
            println!("\n{report}");
        }
        println!();
        for (name, outcome) in &self.outcomes {
            match outcome {
                Outcome::Passed => {}
                Outcome::Failed => println!("FAILED {name}"),
                Outcome::Skipped(feature) => println!("SKIPPED {name}: {feature}"),
            }
        }
        let failed = self.count(|outcome| *outcome == Outcome::Failed);
        println!(
            "{} passed, {failed} failed, {} skipped",
            self.count(|outcome| *outcome == Outcome::Passed),
            self.count(|outcome| matches!(outcome, Outcome::Skipped(_)))
        );
        if failed > 0 {
            bail!("{failed} tests failed");
        }
        Ok(())
    }
}

fn is_root() -> Result<bool> {
    Ok(output(command("id").arg("-u"))?.trim() == "0")
}

/// The skips that no line `"test" = "kernel feature"` names with just that feature.
fn unnamed_skips(outcomes: &BTreeMap<String, Outcome>, allowed: &str) -> Vec<String> {
    let named = |test: &str, feature: &str| {
        allowed.lines().filter_map(|line| line.split_once('=')).any(|(name, why)| {
            name.trim().trim_matches('"') == test && why.trim().trim_matches('"') == feature
        })
    };
    let skips = outcomes.iter().filter_map(|(name, outcome)| match outcome {
        Outcome::Skipped(feature) if feature.is_empty() || !named(name, feature) => {
            Some(format!("{name} for {feature:?}"))
        }
        _ => None,
    });
    skips.collect()
}

fn small_enough(binary: &Path) -> Result<()> {
    let bytes = fs::metadata(binary)?.len();
    println!("{}: {:.1} MB", binary.display(), bytes as f64 / f64::from(1 << 20));
    if bytes > BINARY_BYTES_MAX {
        bail!("{} has {bytes} bytes, at most {BINARY_BYTES_MAX} are allowed", binary.display());
    }
    Ok(())
}

fn rustfmt() -> Result<()> {
    run(command("cargo").args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    let args = ["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run(command("cargo").args(args))
}

/// Checks a crate that many others build on, as one does who has just changed it.
fn incremental_check() -> Result<()> {
    let check =
        || run(command("cargo").args(["check", "--quiet", "--locked", "--package", "skeg-apiserver"]));
    check()?;
    run(command("touch").arg(root().join("crates/apiserver/src/lib.rs")))?;
    let (result, time) = timed(check);
    println!("an incremental check took {:.1} s", time.as_secs_f64());
    if time > INCREMENTAL_CHECK_MAX {
        bail!("an incremental check took {time:.1?}, at most {INCREMENTAL_CHECK_MAX:?} are allowed");
    }
    result
}

/// A test executable and the crate it tests.
struct TestBinary {
    crate_name: String,
    path: PathBuf,
    directory: PathBuf,
}

fn build_tests() -> Result<Vec<TestBinary>> {
    let mut build = command("cargo");
    build.args(["test", "--locked", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    let mut child = build.stdout(Stdio::piped()).spawn().context("cargo test --no-run")?;
    let mut binaries = Vec::new();
    for line in BufReader::new(child.stdout.take().context("piped")?).lines() {
        let message: serde_json::Value = serde_json::from_str(&line?)?;
        if message["profile"]["test"] == true
            && let Some(path) = message["executable"].as_str()
        {
            let manifest = PathBuf::from(message["manifest_path"].as_str().unwrap_or_default());
            let directory = manifest.parent().map(PathBuf::from).unwrap_or_default();
            let crate_name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
            binaries.push(TestBinary { crate_name, path: path.into(), directory });
        }
    }
    if !child.wait()?.success() {
        bail!("the tests do not build");
    }
    binaries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(binaries)
}

fn crate_tests(binaries: &[TestBinary], results: &mut Results) -> Result<()> {
    let skips = target().join("test-skips.txt");
    let _ = fs::remove_file(&skips);
    for binary in binaries {
        let mut run = command(&binary.path);
        run.current_dir(&binary.directory).env("SKEG_TEST_SKIPS", &skips).env("RUST_BACKTRACE", "1");
        let before = results.outcomes.len();
        let failed = collect(&mut run, &binary.crate_name, results)?;
        println!(
            "  {:<12} {:>4} tests{}",
            binary.crate_name,
            results.outcomes.len() - before,
            if failed { "  FAILED" } else { "" }
        );
    }
    // A test that finds a kernel feature missing notes `name feature` in that file.
    for line in fs::read_to_string(&skips).unwrap_or_default().lines() {
        if let Some((name, feature)) = line.split_once(' ') {
            results.outcomes.insert(name.to_owned(), Outcome::Skipped(feature.to_owned()));
        }
    }
    Ok(())
}

fn end_to_end(only: Option<&str>, results: &mut Results) -> Result<()> {
    let mut run = suite("skeg-e2e", "dev")?;
    run.envs(setup::clients()?);
    if only.is_none_or(|only| "cgroup2_guest".contains(only)) {
        let guest = guest::prepare(&target().join("release/skeg"))?;
        run.env("SKEG_GUEST_KERNEL", guest.kernel).env("SKEG_GUEST_INITRD", guest.initrd);
    }
    run.args(only);
    collect(&mut run, "e2e", results)?;
    Ok(())
}

/// Measures the cluster, or `what`.
pub fn bench(what: impl Iterator<Item = String>) -> Result<()> {
    setup::setup()?;
    release_binary()?;
    run(suite("bench", "release")?.args(what))
}

/// What one run of the benchmark must print, each at the begin of a line.
const FIGURES: [&str; 22] = [
    "exec on an empty directory → API ready, p50",
    "exec on an empty directory → node Ready, p50",
    "idle: PSS of all skeg processes",
    "idle: share of a core",
    "Pod create → Ready, p50",
    "Pod create → Ready, p90",
    "Pod delete → gone, p50",
    "Service create → its endpoints, p50",
    "Pod delete → gone, p90",
    "Deployment 1 → 30 Ready",
    "rolling update of 30",
    "per Pod: PSS beyond the container's own",
    "per Pod: change of MemAvailable",
    "durable create of 1 KiB, one connection, p50",
    "create of 1 KiB, 32 connections",
    "GET, 32 connections",
    "LIST of 500, identity, unchanged",
    "LIST of 500, identity, changing",
    "LIST of 500, gzip, unchanged",
    "LIST of 500, gzip, changing",
    "  CPU of all skeg processes a request",
    "writes per Pod to Ready, beyond Events",
];

/// The same of what the API does under load.
const API_FIGURES: [&str; 14] = [
    "create of 1 KiB, 32 connections",
    "GET, 32 connections",
    "server-side apply, 32 connections",
    "Pod creates, 32 connections",
    "  CPU of all skeg processes a request",
    "1,000 watchers × 300 events/s, request → seen, p99",
    "  PSS without watchers, with them, after the events",
    "LIST of 15,000, identity",
    "bytes of the objects held",
    "PSS with them, after they were written",
    "restart with 150,000 objects → node Ready",
    "PSS with them, after a restart",
    "PSS that 500 definitions add",
    "create of custom resources, 32 connections",
];

/// A little of the benchmark, for what it prints: its figures are no measure.
fn bench_is_whole() -> Result<()> {
    for (what, figures) in [(None, &FIGURES[..]), (Some("api"), &API_FIGURES)] {
        let said = output(suite("bench", "dev")?.args(what).arg("--tiny"))?;
        let is_missing = |name: &&&str| !said.lines().any(|line| line.starts_with(**name));
        let missing: Vec<&str> = figures.iter().filter(is_missing).copied().collect();
        if !missing.is_empty() {
            bail!("the benchmark does not print {}; it says:\n{said}", missing.join(", "));
        }
    }
    Ok(())
}

/// A program of the `e2e` crate with its surroundings.
fn suite(binary: &str, profile: &str) -> Result<std::process::Command> {
    images::build_all()?;
    let mut run = command("cargo");
    run.args(["run", "--quiet", "--locked", "--profile", profile, "--package", "skeg-e2e", "--bin", binary]);
    run.arg("--");
    run.env("SKEG_BINARY", target().join("release/skeg")).env("SKEG_IMAGES", target().join("images"));
    run.env("KUBECTL", setup::kubectl()?);
    Ok(run)
}

/// Runs a test program, notes its results and keeps what it said where it fails. Returns whether
/// it failed.
fn collect(run: &mut std::process::Command, crate_name: &str, results: &mut Results) -> Result<bool> {
    let live = crate_name == "e2e";
    let mut child = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stderr = child.stderr.take().context("piped")?;
    let stderr =
        std::thread::spawn(move || BufReader::new(stderr).lines().map_while(Result::ok).collect::<Vec<_>>());
    let mut said = Vec::new();
    let failed_before = results.count(|outcome| *outcome == Outcome::Failed);
    for line in BufReader::new(child.stdout.take().context("piped")?).lines() {
        let line = line?;
        results.read(crate_name, &line);
        if live {
            println!("{line}");
        } else if !line.ends_with(" ... ok") {
            said.push(line);
        }
    }
    said.extend(stderr.join().unwrap_or_default());
    let status = child.wait()?;
    if !status.success() {
        if results.count(|outcome| *outcome == Outcome::Failed) == failed_before {
            // It died before it could name the test.
            let name = format!("{crate_name}::(the test program itself, {status})");
            results.outcomes.insert(name, Outcome::Failed);
        }
        let end = &said[said.len().saturating_sub(REPORT_LINES_MAX)..];
        results.reports.push(format!("--- {crate_name}\n{}", end.join("\n")));
    }
    Ok(!status.success())
}

impl Results {
    /// Notes a line `test NAME ... ok|FAILED|skipped (feature)`, or `containers NAME COUNT`.
    fn read(&mut self, crate_name: &str, line: &str) {
        if let Some((name, _)) = line.strip_prefix("containers ").and_then(|rest| rest.split_once(' ')) {
            self.with_containers.insert(format!("{crate_name}::{name}"));
        }
        let test = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "));
        let Some((name, outcome)) = test else { return };
        let name = format!("{crate_name}::{}", name.split(" - ").next().unwrap_or(name));
        let outcome = match outcome {
            "ok" => Outcome::Passed,
            "FAILED" => Outcome::Failed,
            other => {
                Outcome::Skipped(other.trim_start_matches("skipped ").trim_matches(['(', ')']).to_owned())
            }
        };
        self.outcomes.insert(name, outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_must_be_named_with_its_feature() {
        let skipped = |feature: &str| Outcome::Skipped(feature.to_owned());
        let outcomes = BTreeMap::from([
            ("a::one".to_owned(), skipped("bpf")),
            ("a::two".to_owned(), skipped("tun")),
            ("a::three".to_owned(), skipped("")),
            ("a::four".to_owned(), Outcome::Passed),
        ]);
        let allowed = "# why\n\"a::one\" = \"bpf\"\n\"a::two\" = \"vxlan\"\n\"a::three\" = \"\"\n";
        assert_eq!(unnamed_skips(&outcomes, allowed), ["a::three for \"\"", "a::two for \"tun\""]);
        assert_eq!(unnamed_skips(&outcomes, "").len(), 3);
    }

    #[test]
    fn only_cases_that_started_containers_count() {
        let mut results = Results::default();
        for line in
            ["test a ... ok", "containers a 3", "test b ... ok", "test c ... FAILED", "containers c 1"]
        {
            results.read("e2e", line);
        }
        assert_eq!(results.count(|outcome| *outcome == Outcome::Passed), 2);
        assert!(results.check_containers().unwrap_err().to_string().starts_with("only 1 "));
        for n in 0..CONTAINER_CASES_MIN {
            results.read("e2e", &format!("test t{n} ... ok"));
            results.read("e2e", &format!("containers t{n} 1"));
        }
        results.check_containers().unwrap();
    }

    /// Runs `.ci/run` with doubles of all that it calls, `seconds` after its start. Returns whether
    /// it succeeded, what it said, and what it called.
    fn ci(make: &str, seconds: u64) -> (bool, String, String) {
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("release");
        fs::create_dir(&bin).unwrap();
        let calls = directory.path().join("calls");
        let note = format!("echo $(basename $0) $* >> {}", calls.display());
        // What else runs on this machine must not be taken for what the demo left.
        let nothing = ["ls", "find", "grep", "nft"].map(|name| (name, "exit 1"));
        let doubles = [("make", format!("{note}; {make}")), ("skeg", note)];
        let nothing = nothing.map(|(name, script)| (name, script.to_owned()));
        for (name, script) in doubles.into_iter().chain(nothing) {
            let path = bin.join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let output = command(root().join(".ci/run"))
            .env("PATH", path)
            .env("CARGO_TARGET_DIR", directory.path())
            .env("SECONDS", seconds.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        (output.status.success(), said, fs::read_to_string(calls).unwrap())
    }

    #[test]
    fn ci_runs_both_commands_with_the_time_of_each_within_45_minutes() {
        let (ok, said, calls) = ci("true", 0);
        assert_eq!((ok, calls.as_str()), (true, "make test\nmake demo\nskeg down --purge\n"), "{said}");
        let phases: Vec<&str> = said.lines().filter_map(|line| line.split(": ").next()).collect();
        assert_eq!(phases, ["--- make test", "--- make demo", "--- purge", "--- all"], "{said}");
        assert!(said.lines().all(|line| line.ends_with(" s")), "{said}");
        let (ok, said, _) = ci("true", 45 * 60 + 1);
        assert!(!ok && said.contains("at most 2700 s"), "{said}");
        let (ok, said, calls) = ci("exit 3", 0);
        assert_eq!((ok, calls.as_str()), (false, "make test\n"), "{said}");
        assert!(said.starts_with("--- make test: "), "a phase that failed has a time too: {said}");
    }

    #[test]
    fn a_skipped_test_line_carries_its_feature() {
        let mut results = Results::default();
        results.read("x", "test deep::name ... skipped (vxlan)");
        assert_eq!(results.outcomes["x::deep::name"], Outcome::Skipped("vxlan".into()));
    }
}
