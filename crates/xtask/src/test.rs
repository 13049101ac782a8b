//! `make test`: lint, every test of every crate, the end-to-end suite, coverage of COMPAT.md.

use crate::host::{command, release_binary, root, run, target};
use crate::{coverage, guest, images, setup};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

/// End-to-end cases with real containers that must have run, or the run fails.
const CONTAINER_CASES_MIN: usize = 40;

/// How each test ended, by `crate::path::name`.
#[derive(Default)]
pub struct Results(BTreeMap<String, Outcome>);

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
                results.0.insert(name.to_owned(), outcome);
            }
        }
        Ok(results)
    }

    fn save(&self) -> Result<()> {
        let lines: Vec<String> = self
            .0
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
        self.0.get(name)
    }

    fn count(&self, wanted: impl Fn(&Outcome) -> bool) -> usize {
        self.0.values().filter(|outcome| wanted(outcome)).count()
    }
}

/// One timed phase at a time.
struct Phases {
    times: Vec<(&'static str, Duration)>,
}

impl Phases {
    fn run<T>(&mut self, name: &'static str, phase: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n=== {name}");
        #[expect(clippy::disallowed_methods, reason = "a developer command times its phases")]
        let start = std::time::Instant::now();
        let result = phase();
        self.times.push((name, start.elapsed()));
        result
    }
}

pub fn test(unit_only: bool, e2e_only: bool, only: Option<&str>) -> Result<()> {
    let everything = !unit_only && !e2e_only;
    let mut phases = Phases { times: Vec::new() };
    let mut results = Results::default();
    phases.run("setup", setup::setup)?;
    if everything {
        phases.run("lint", lint)?;
    }
    if !e2e_only {
        let binaries = phases.run("build tests", build_tests)?;
        phases.run("crate tests", || crate_tests(&binaries, &mut results))?;
    }
    if !unit_only {
        phases.run("build release binary", || release_binary().map(|_| ()))?;
        phases.run("end-to-end tests", || end_to_end(only, &mut results))?;
    }
    results.save()?;
    if everything {
        phases.run("coverage of COMPAT.md", coverage::coverage)?;
    }

    println!();
    for (name, time) in &phases.times {
        println!("{:>8.1} s  {name}", time.as_secs_f64());
    }
    check_skips(&results)?;
    for (name, _) in results.0.iter().filter(|(_, outcome)| **outcome == Outcome::Failed) {
        println!("FAILED {name}");
    }
    let failed = results.count(|outcome| *outcome == Outcome::Failed);
    let containers = results
        .0
        .iter()
        .filter(|(name, outcome)| name.starts_with("e2e::") && **outcome == Outcome::Passed)
        .count();
    println!(
        "{} passed, {failed} failed, {} skipped",
        results.count(|outcome| *outcome == Outcome::Passed),
        results.count(|outcome| matches!(outcome, Outcome::Skipped(_)))
    );
    if failed > 0 {
        bail!("{failed} tests failed");
    }
    if everything && containers < CONTAINER_CASES_MIN {
        bail!("only {containers} end-to-end cases ran containers, at least {CONTAINER_CASES_MIN} must");
    }
    Ok(())
}

fn lint() -> Result<()> {
    run(command("cargo").args(["fmt", "--all", "--check"]))?;
    run(command("cargo").args([
        "clippy",
        "--quiet",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
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
        let before = results.0.len();
        let failed = collect(&mut run, &binary.crate_name, results)?;
        println!(
            "  {:<12} {:>4} tests{}",
            binary.crate_name,
            results.0.len() - before,
            if failed { "  FAILED" } else { "" }
        );
    }
    // A test that finds a kernel feature missing notes `name feature` in that file.
    for line in fs::read_to_string(&skips).unwrap_or_default().lines() {
        if let Some((name, feature)) = line.split_once(' ') {
            results.0.insert(name.to_owned(), Outcome::Skipped(feature.to_owned()));
        }
    }
    Ok(())
}

fn end_to_end(only: Option<&str>, results: &mut Results) -> Result<()> {
    let mut run = suite("skeg-e2e")?;
    let guest = guest::prepare(&target().join("release/skeg"))?;
    run.args(only).env("SKEG_GUEST_KERNEL", guest.kernel).env("SKEG_GUEST_INITRD", guest.initrd);
    collect(&mut run, "e2e", results)?;
    Ok(())
}

pub fn bench() -> Result<()> {
    setup::setup()?;
    release_binary()?;
    run(&mut suite("bench")?)
}

/// A program of the `e2e` crate with its surroundings.
fn suite(binary: &str) -> Result<std::process::Command> {
    images::build_all()?;
    let mut run = command("cargo");
    run.args([
        "run",
        "--quiet",
        "--locked",
        "--profile",
        if binary == "bench" { "release" } else { "dev" },
        "--package",
        "skeg-e2e",
        "--bin",
        binary,
        "--",
    ]);
    run.env("SKEG_BINARY", target().join("release/skeg")).env("SKEG_IMAGES", target().join("images"));
    run.env("KUBECTL", setup::kubectl()?);
    Ok(run)
}

/// Runs a test program, shows what it prints where something fails, and notes each
/// `test NAME ... ok|FAILED|skipped (feature)` line. Returns whether it failed.
fn collect(run: &mut std::process::Command, crate_name: &str, results: &mut Results) -> Result<bool> {
    let live = crate_name == "e2e";
    let mut child =
        run.stdout(Stdio::piped()).stderr(if live { Stdio::inherit() } else { Stdio::piped() }).spawn()?;
    let stderr = child.stderr.take().map(|pipe| {
        std::thread::spawn(move || BufReader::new(pipe).lines().map_while(Result::ok).collect::<Vec<_>>())
    });
    let mut shown = Vec::new();
    let mut failures = 0;
    for line in BufReader::new(child.stdout.take().context("piped")?).lines() {
        let line = line?;
        if live {
            println!("{line}");
        }
        if let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) {
            let name = format!("{crate_name}::{}", name.split(" - ").next().unwrap_or(name));
            let outcome = match outcome {
                "ok" => Outcome::Passed,
                "FAILED" => Outcome::Failed,
                other => {
                    Outcome::Skipped(other.trim_start_matches("skipped ").trim_matches(['(', ')']).to_owned())
                }
            };
            failures += usize::from(outcome == Outcome::Failed);
            results.0.insert(name, outcome);
        }
        shown.push(line);
    }
    let stderr = stderr.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let status = child.wait()?;
    if !status.success() {
        if !live {
            shown.iter().chain(&stderr).for_each(|line| println!("{line}"));
        }
        if failures == 0 {
            // It died before it could name the test.
            results.0.insert(format!("{crate_name}::(the test program itself, {status})"), Outcome::Failed);
        }
    }
    Ok(!status.success())
}

/// As root every skip must be named in `tests/skips.toml` with the kernel feature it lacks.
fn check_skips(results: &Results) -> Result<()> {
    let allowed = fs::read_to_string(root().join("tests/skips.toml")).unwrap_or_default();
    for (name, outcome) in &results.0 {
        if let Outcome::Skipped(feature) = outcome {
            println!("SKIPPED {name}: {feature}");
            let named = allowed.lines().any(|line| {
                line.split_once('=').is_some_and(|(test, why)| {
                    test.trim().trim_matches('"') == name && why.trim().trim_matches('"') == feature
                })
            });
            if !named {
                bail!("{name} was skipped for {feature:?}, and tests/skips.toml does not allow that");
            }
        }
    }
    Ok(())
}
