//! The end-to-end suite: the real binary, the real kubectl, a real registry, real containers.
//!
//! A case is one row of a table in `cases/`. Most share one cluster, each in its own namespace,
//! some at a time. Standard output has one `test NAME ... ok` line a case, behind it, where the
//! kubelet said that containers started, `containers NAME COUNT`; standard error has the reports
//! of failed cases, all at the end.

mod cases;
mod cluster;
#[allow(dead_code, reason = "shared with the benchmark, which uses all of it")]
mod http;
mod registry;
mod traces;

use anyhow::{Context, Result, ensure};
use cluster::Cluster;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use traces::{Instance, Traces};

/// Cases that run at the same time on the shared cluster.
const PARALLEL: usize = 4;

/// One case: what it shows, and how.
pub struct Case {
    pub name: &'static str,
    pub run: fn(&Scope<'_>) -> Result<()>,
}

/// What a case works on: the cluster and a namespace of its own.
pub struct Scope<'a> {
    pub cluster: &'a Cluster,
    pub namespace: String,
}

fn main() -> ExitCode {
    match suite() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the suite could not run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every case passed.
fn suite() -> Result<bool> {
    let only = std::env::args().nth(1).unwrap_or_default();
    let selected = |cases: &'static [&'static [Case]]| -> Vec<&'static Case> {
        cases.iter().copied().flatten().filter(|case| case.name.contains(&only)).collect()
    };
    cluster::clear_earlier_runs()?;
    let failures = Failures::default();
    let shared = selected(cases::SHARED);
    if !shared.is_empty() {
        let before = Traces::of_host()?;
        let cluster = Cluster::start().context("starting the shared cluster")?;
        run_parallel(&cluster, &shared, &failures);
        failures.run("purge_leaves_nothing", || purge_leaves_nothing(&cluster, &before).map(|()| 0));
    }
    for case in selected(cases::ALONE) {
        failures.run(case.name, || {
            let cluster = Cluster::start()?;
            let result = (case.run)(&Scope { cluster: &cluster, namespace: "default".into() });
            let result = result.map_err(|error| error.context(cluster.log_end()));
            let started = cluster.containers_started("--all-namespaces");
            let stopped = cluster.stop();
            result.and(stopped).map(|()| started)
        });
    }
    for case in selected(cases::APART) {
        failures.run(case.name, || {
            let nothing = tempfile::NamedTempFile::new()?;
            let cluster = Cluster::foreign(nothing.path())?;
            (case.run)(&Scope { cluster: &cluster, namespace: "default".into() }).map(|()| 0)
        });
    }
    Ok(failures.tell())
}

/// `before` is the host as it was when nothing of the cluster was there.
fn purge_leaves_nothing(cluster: &Cluster, before: &Traces) -> Result<()> {
    let instance = Instance::at(&cluster.data_dir)?;
    let look = || Traces::of_instance(&instance);
    // What is looked for is found as long as it is there.
    ensure!(instance.id == cluster.id()?, "the instance is not {}", instance.id);
    let running = look()?;
    for kind in ["links", "rules", "cgroups", "run directories"] {
        ensure!(running.count(kind) > before.count(kind), "no {kind} of a running cluster are seen");
    }
    cluster.stop()?;
    before.wait_until_as_before(look)
}

fn run_parallel(cluster: &Cluster, cases: &[&'static Case], failures: &Failures) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|threads| {
        for _ in 0..PARALLEL {
            threads.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    failures.run(case.name, || in_own_namespace(cluster, case));
                }
            });
        }
    });
    failures.add(|| cluster.log_end());
}

/// Runs a case and returns how many containers started in it.
fn in_own_namespace(cluster: &Cluster, case: &Case) -> Result<usize> {
    let namespace = format!("e2e-{}", case.name.replace('_', "-"));
    let scope = Scope { cluster, namespace: namespace.clone() };
    scope.apply(
        &serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
    )?;
    let result = (case.run)(&scope).map_err(|error| {
        // What the namespace looked like is half of the report.
        let mut report = String::new();
        for args in [&["get", "all", "-o", "wide"][..], &["get", "events"], &["get", "pods", "-o", "yaml"]] {
            if let Ok(text) = scope.kubectl(args) {
                let _ = write!(report, "--- kubectl {}\n{}\n", args.join(" "), cluster::head(&text, 6000));
            }
        }
        error.context(report)
    });
    let started = cluster.containers_started(&format!("--namespace={namespace}"));
    let deleted = cluster.kubectl(&["delete", "namespace", &namespace, "--timeout=60s"]);
    result.and(deleted.map(|_| started).context("the namespace did not go away"))
}

/// The reports of failed cases, told after the last case.
#[derive(Default)]
struct Failures(Mutex<Vec<String>>);

impl Failures {
    /// Runs a case, prints how it ended and keeps its report where it failed.
    fn run(&self, name: &str, case: impl FnOnce() -> Result<usize>) {
        let result = catch_unwind(AssertUnwindSafe(case)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(anyhow::anyhow!("panicked: {}", text.unwrap_or_default()))
        });
        match result {
            Ok(0) => println!("test {name} ... ok"),
            Ok(containers) => println!("test {name} ... ok\ncontainers {name} {containers}"),
            Err(error) => {
                println!("test {name} ... FAILED");
                let mut report = format!("=== {name} failed: {}\n", error.root_cause());
                for context in
                    error.chain().filter(|context| context.to_string() != error.root_cause().to_string())
                {
                    let _ = writeln!(report, "{context}");
                }
                self.lock().push(report);
            }
        }
    }

    /// Adds to the reports, where there are any.
    fn add(&self, more: impl FnOnce() -> String) {
        let mut reports = self.lock();
        if !reports.is_empty() {
            reports.push(more());
        }
    }

    /// Whether there is nothing to tell.
    fn tell(&self) -> bool {
        let reports = self.lock();
        reports.iter().for_each(|report| eprintln!("\n{report}"));
        reports.is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
