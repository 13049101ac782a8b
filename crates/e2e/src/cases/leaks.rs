//! `cargo xtask leakcheck`: what 300 Pods and 30 kills of the server leave behind is nothing.

use super::{container, pod};
use crate::cluster::{Cluster, eventually, pause};
use crate::traces::Traces;
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skeg_base::Random;
use std::sync::Mutex;
use std::time::Duration;

pub const CASES: &[Case] = &[Case { name: "nothing_leaks", run: nothing_leaks }];

const BATCHES: u64 = 15;
const PODS_A_BATCH: u64 = 20;
const KILLS_A_BATCH: u64 = 2;
/// A kill comes at most so long after the one before, or after the batch's begin.
const KILL_AFTER_MS_MAX: u64 = 1_500;
/// What the store may hold more than before, with the same objects: pages of its trees that are
/// half full, longer numbers.
const STORE_GROWTH_BYTES_MAX: u64 = 64 << 10;

/// A warmed-up cluster (one batch came and went) is compared with itself after 300 more Pods and
/// 30 kills: the host's things one by one, the API's objects by name, files by path and size. The
/// store's file keeps pages to use again, so its used bytes are compared, after a compaction
/// that reaches past the last Pod; Events, which live an hour, are deleted first.
fn nothing_leaks(_: &Scope<'_>) -> Result<()> {
    let cluster = Cluster::start_with("compactionIntervalSeconds: 1\n")?;
    let scope = Scope { cluster: &cluster, namespace: "leaks".into() };
    let result = check(&scope).map_err(|error| error.context(cluster.log_end()));
    let stopped = cluster.stop();
    result.and(stopped)
}

fn check(scope: &Scope<'_>) -> Result<()> {
    let cluster = scope.cluster;
    cluster.kubectl(&["create", "namespace", &scope.namespace])?;
    cluster.skeg(&["image", "import", &cluster.archive("volumes").to_string_lossy()])?;
    let random = Random::seeded(300);
    batch(scope, &random, 0, 0)?;
    let store_before = store_bytes(scope)?;
    let before = Traces::of_cluster(cluster)?;
    for n in 1..=BATCHES {
        batch(scope, &random, n, KILLS_A_BATCH).with_context(|| format!("batch {n}"))?;
    }
    cluster.kill()?;
    cluster.up()?;
    before.wait_until_as_before(|| Traces::of_cluster(cluster))?;
    let store_after = store_bytes(scope)?;
    before.wait_until_as_before(|| Traces::of_cluster(cluster))?;
    let (pods, kills) = (BATCHES * PODS_A_BATCH, BATCHES * KILLS_A_BATCH);
    eprintln!(
        "leakcheck: {pods} Pods, {kills} kills; {before}; store {store_before} -> {store_after} bytes in use"
    );
    ensure!(
        store_after <= store_before + STORE_GROWTH_BYTES_MAX,
        "the store grew from {store_before} to {store_after} bytes in use"
    );
    Ok(())
}

/// Creates Pods of every sort with a Service before them and deletes them, while the server is
/// killed and started at random moments. Returns when none is left.
fn batch(scope: &Scope<'_>, random: &Random, n: u64, kills: u64) -> Result<()> {
    // Held while the server is down: whoever was refused waits here until it is back.
    let down = Mutex::new(());
    let (killer, style) = (random.fork(), random.below(3));
    std::thread::scope(|threads| {
        let killing = threads.spawn(|| -> Result<()> {
            for _ in 0..kills {
                // The random moment itself, not a wait for anything.
                pause(Duration::from_millis(killer.below(KILL_AFTER_MS_MAX)));
                let _down = down.lock();
                scope.cluster.kill()?;
                scope.cluster.up()?;
            }
            Ok(())
        });
        let done = come_and_go(scope, n, style, kills, &down);
        killing.join().map_err(|_| anyhow::anyhow!("the killing thread panicked"))?.and(done)
    })
}

fn come_and_go(scope: &Scope<'_>, n: u64, style: u64, kills: u64, down: &Mutex<()>) -> Result<()> {
    // A killed server refuses what it is asked, once a kill: asked again, it must do it.
    let again = |args: &[&str], input: &[u8]| -> Result<()> {
        let mut last = Ok(String::new());
        for _ in 0..=kills {
            last = scope.kubectl_stdin(args, input);
            if last.is_ok() {
                return Ok(());
            }
            drop(down.lock());
        }
        last.map(drop)
    };
    let mut objects: Vec<Value> = (0..PODS_A_BATCH).map(|i| some_pod(n, i)).collect();
    objects.push(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "front"},
        "spec": {"selector": {"batch": n.to_string()}, "ports": [{"port": 80, "targetPort": 8080}]},
    }));
    let documents: Vec<String> = objects.iter().map(Value::to_string).collect();
    again(&["apply", "-f", "-"], documents.join("\n---\n").as_bytes())?;
    // Some end when they run, some while they start, some without a word to the node.
    if style == 0 || n == 0 {
        again(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s"], b"")?;
    }
    let force: &[&str] = if style == 2 { &["--force", "--grace-period=0"] } else { &[] };
    again(&[&["delete", "pod,service", "--all", "--wait=false"], force].concat(), b"")?;
    again(&["wait", "--for=delete", "pod,service", "--all", "--timeout=90s"], b"")
}

/// Pods that take something of each kind from the host.
fn some_pod(n: u64, i: u64) -> Value {
    let mut pod = pod(&format!("pod-{n}-{i}"), &[("main", "exec sleep 100000")]);
    pod["metadata"]["labels"] = json!({"batch": n.to_string()});
    let spec = &mut pod["spec"];
    match i % 5 {
        0 => spec["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": 20_000 + i}]),
        1 => {
            spec["volumes"] = json!([{"name": "memory", "emptyDir": {"medium": "Memory"}}, {"name": "disk", "emptyDir": {}}]);
            spec["containers"][0]["volumeMounts"] =
                json!([{"name": "memory", "mountPath": "/memory"}, {"name": "disk", "mountPath": "/disk"}]);
        }
        2 => spec["shareProcessNamespace"] = true.into(),
        3 => {
            spec["containers"] =
                json!([container("a", "exec sleep 100000"), container("b", "exec sleep 100000")])
        }
        _ => {
            spec["initContainers"] = json!([container("first", "echo first")]);
            spec["containers"][0]["image"] = "volumes".into();
        }
    }
    pod
}

/// The bytes that the stopped store uses: its pages without those it keeps to use again, as the
/// head of an SQLite file tells (sqlite.org/fileformat.html, 1.3).
fn store_bytes(scope: &Scope<'_>) -> Result<u64> {
    scope.cluster.kubectl(&["delete", "events", "--all", "--all-namespaces", "--wait=false"])?;
    // One more revision, so that the compaction up to it tells by refusing the ones before.
    scope.kubectl(&["create", "configmap", "last"])?;
    let last = scope.jsonpath(&["configmap", "last"], "{.metadata.resourceVersion}")?;
    scope.kubectl(&["delete", "configmap", "last"])?;
    let old = format!("/api/v1/namespaces?limit=1&resourceVersionMatch=Exact&resourceVersion={last}");
    eventually("the history is compacted", || {
        let output = scope.cluster.kubectl_command().args(["get", "--raw", &old]).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // A compaction needs something to be newer than what it keeps.
        scope.kubectl(&["annotate", "--overwrite", "namespace", &scope.namespace, "look=again"])?;
        Ok((!output.status.success() && said.contains("too old")).then_some(()))
    })?;
    scope.cluster.skeg(&["down"])?;
    let head = std::fs::read(scope.cluster.data_dir.join("store.db"))?;
    scope.cluster.up()?;
    ensure!(head.starts_with(b"SQLite format 3\0"), "store.db is no SQLite file");
    let number =
        |at: usize| head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let (pages, free) = (number(28).context("pages")?, number(36).context("free pages")?);
    let page = u16::from_be_bytes([head[16], head[17]]);
    Ok(u64::from(pages - free) * u64::from(page))
}
