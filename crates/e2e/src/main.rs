//! The end-to-end suite: the real binary, the real kubectl, a real registry, real containers.
//!
//! A case is one row of a table in `cases/`. All cases but the last group share one cluster, each
//! in its own namespace, some at a time. The output is one `test NAME ... ok` line a case.

mod cases;
mod cluster;
#[allow(dead_code, reason = "shared with the benchmark, which uses all of it")]
mod http;

use anyhow::{Context, Result};
use cluster::Cluster;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

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

fn main() -> Result<()> {
    let only = std::env::args().nth(1).unwrap_or_default();
    let selected = |cases: &'static [&'static [Case]]| -> Vec<&'static Case> {
        cases.iter().copied().flatten().filter(|case| case.name.contains(&only)).collect()
    };
    let failures = AtomicUsize::new(0);
    let shared = selected(cases::SHARED);
    if !shared.is_empty() {
        let cluster = Cluster::start().context("starting the shared cluster")?;
        run_parallel(&cluster, &shared, &failures);
        cluster.stop().context("purging the shared cluster")?;
    }
    for case in selected(cases::ALONE) {
        report(case, &failures, || {
            let cluster = Cluster::start()?;
            let result = (case.run)(&Scope { cluster: &cluster, namespace: "default".into() });
            if result.is_err() {
                cluster.show_log();
            }
            let stopped = cluster.stop();
            result.and(stopped)
        });
    }
    for case in selected(cases::APART) {
        report(case, &failures, || {
            let nothing = tempfile::NamedTempFile::new()?;
            let cluster = Cluster::foreign(nothing.path())?;
            (case.run)(&Scope { cluster: &cluster, namespace: "default".into() })
        });
    }
    let failures = failures.into_inner();
    if failures > 0 {
        anyhow::bail!("{failures} end-to-end cases failed");
    }
    Ok(())
}

fn run_parallel(cluster: &Cluster, cases: &[&'static Case], failures: &AtomicUsize) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|threads| {
        for _ in 0..PARALLEL {
            threads.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    report(case, failures, || in_own_namespace(cluster, case));
                }
            });
        }
    });
    if failures.load(Ordering::Relaxed) > 0 {
        cluster.show_log();
    }
}

fn in_own_namespace(cluster: &Cluster, case: &Case) -> Result<()> {
    let namespace = format!("e2e-{}", case.name.replace('_', "-"));
    let scope = Scope { cluster, namespace: namespace.clone() };
    scope.apply(
        &serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
    )?;
    let result = (case.run)(&scope);
    if result.is_err() {
        // What the namespace looked like is half of the report.
        for args in [&["get", "all", "-o", "wide"][..], &["get", "events"], &["get", "pods", "-o", "yaml"]] {
            if let Ok(text) = scope.kubectl(args) {
                eprintln!("--- {}: kubectl {}\n{}", case.name, args.join(" "), cluster::head(&text, 6000));
            }
        }
    }
    let deleted = cluster.kubectl(&["delete", "namespace", &namespace, "--timeout=60s"]);
    result.and(deleted.map(|_| ()).context("the namespace did not go away"))
}

fn report(case: &Case, failures: &AtomicUsize, run: impl FnOnce() -> Result<()>) {
    static OUTPUT: Mutex<()> = Mutex::new(());
    let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(anyhow::anyhow!("panicked: {}", text.unwrap_or_default()))
    });
    let _guard = OUTPUT.lock();
    match result {
        Ok(()) => println!("test {} ... ok", case.name),
        Err(error) => {
            failures.fetch_add(1, Ordering::Relaxed);
            eprintln!("--- {} failed: {error:?}", case.name);
            println!("test {} ... FAILED", case.name);
        }
    }
}
