//! The figures, all from one run: start, idle, Pods, rollouts, rates. Run it with
//! `cargo xtask bench`; it starts a cluster of its own and purges it.

#[path = "../../cluster.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all of it")]
mod cluster;
#[path = "../../http.rs"]
#[allow(dead_code, reason = "shared with the suite")]
mod http;

use anyhow::{Context, Result, bail, ensure};
use cluster::Cluster;
use http::{Connection, Endpoint, request};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// What `cluster.rs` calls a case's scope; the benchmark has none.
pub struct Scope<'a> {
    pub cluster: &'a Cluster,
    pub namespace: String,
}

const CONNECTIONS: usize = 32;
const RUNS: usize = 20;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(run())
}

/// Prints a figure beside its target.
fn figure(name: &str, value: f64, unit: &str, target: f64, less_is_better: bool) {
    let ratio = if less_is_better { target / value.max(1e-9) } else { value / target };
    let verdict = if ratio >= 1.0 { "met" } else { "MISSED" };
    // Below what can be measured there is no ratio to tell.
    let ratio = if ratio > 999.0 { ">999".to_owned() } else { format!("{ratio:.2}") };
    println!("{name:<48} {value:>10.2} {unit:<6} target {target:>9.1}  ×{ratio:<7} {verdict}");
}

fn fact(name: &str, text: &str) {
    println!("{name:<48} {text}");
}

async fn run() -> Result<()> {
    let started = Instant::now();
    let cluster = Cluster::start()?;
    fact("cluster with registry and images up", &format!("{:.0} ms", started.elapsed().as_secs_f64() * 1e3));
    let result = figures(&cluster).await;
    if result.is_err() {
        cluster.show_log();
    }
    cluster.stop()?;
    result?;
    starts()
}

/// Time from exec to a Ready node on an empty directory, several times.
fn starts() -> Result<()> {
    let mut times = Vec::new();
    let mut words = String::new();
    for _ in 0..5 {
        let cluster = Cluster::prepare()?;
        let start = Instant::now();
        words = cluster.up()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        cluster.stop()?;
    }
    fact("what `skeg up` says", words.lines().last().unwrap_or_default());
    figure("empty directory → node Ready, p50 (ms)", percentile(&mut times, 50), "ms", 500.0, true);
    Ok(())
}

async fn figures(cluster: &Cluster) -> Result<()> {
    let endpoint = Endpoint::from_kubeconfig(&cluster.kubeconfig())?;
    let mut admin = endpoint.connect().await?;
    idle(cluster).await?;
    pods(&endpoint, &mut admin).await?;
    writes_per_pod(&endpoint, &mut admin).await?;
    deployment(cluster, &endpoint, &mut admin).await?;
    rates(cluster, &endpoint, &mut admin).await
}

async fn idle(cluster: &Cluster) -> Result<()> {
    let before = cpu_seconds(cluster)?;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let used = cpu_seconds(cluster)? - before;
    figure("idle: PSS of all skeg processes", skeg_pss_kib(cluster)?.0 / 1024.0, "MB", 60.0, true);
    figure("idle: share of a core over 30 s", used / 30.0 * 100.0, "%", 0.5, true);
    Ok(())
}

/// PSS in KiB of all of this cluster's skeg processes, and of the supervisors among them.
fn skeg_pss_kib(cluster: &Cluster) -> Result<(f64, f64)> {
    let server = cluster.server_pid()?;
    let (mut all, mut supervisors) = (0.0, 0.0);
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        let executable = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        if executable != cluster.skeg {
            continue;
        }
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let pss: f64 = rollup
            .lines()
            .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse().ok())
            .unwrap_or(0.0);
        all += pss;
        if pid != server {
            supervisors += pss;
        }
    }
    Ok((all, supervisors))
}

fn cpu_seconds(cluster: &Cluster) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", cluster.server_pid()?))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}

fn mem_available_kib() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values
        .get((values.len() * percent / 100).min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

async fn expect(connection: &mut Connection, bytes: &[u8]) -> Result<Value> {
    let (status, body) = connection.send(bytes).await?;
    ensure!(status < 300, "{status}: {}", String::from_utf8_lossy(&body));
    Ok(serde_json::from_slice(&body)?)
}

fn pod(name: &str) -> Vec<u8> {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "nginx", "imagePullPolicy": "IfNotPresent"}],
        },
    })
    .to_string()
    .into_bytes()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// A watch, event by event.
struct Watch {
    connection: Connection,
    buffer: Vec<u8>,
}

impl Watch {
    async fn open(endpoint: &Endpoint, path: &str) -> Result<Self> {
        let mut connection = endpoint.connect().await?;
        let (status, _) = connection.open(&request("GET", path, "", b"")).await?;
        ensure!(status == 200, "watch: {status}");
        Ok(Watch { connection, buffer: Vec::new() })
    }

    async fn next(&mut self) -> Result<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            let chunk = tokio::time::timeout(Duration::from_secs(60), self.connection.chunk()).await??;
            self.buffer.extend_from_slice(&chunk.context("the watch ended")?);
        }
    }
}

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn pods(endpoint: &Endpoint, admin: &mut Connection) -> Result<()> {
    let (mut ready, mut served, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    let list = expect(admin, &request("GET", PODS, "", b"")).await?;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    let mut watch = Watch::open(endpoint, &format!("{PODS}?watch=1&resourceVersion={revision}")).await?;
    for run in 0..RUNS {
        let name = format!("bench-{run}");
        let start = Instant::now();
        expect(admin, &request("POST", PODS, "", &pod(&name))).await?;
        let pod = loop {
            let pod = watch.next().await?["object"].take();
            if is_ready(&pod) {
                break pod;
            }
        };
        ready.push(start.elapsed().as_secs_f64() * 1e3);
        // A first process without handlers ignores SIGTERM: nginx must have come that far.
        serves(pod["status"]["podIP"].as_str().context("an address")?).await?;
        served.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        expect(admin, &request("DELETE", &format!("{PODS}/{name}"), "", b"")).await?;
        while watch.next().await?["type"] != "DELETED" {}
        gone.push(start.elapsed().as_secs_f64() * 1e3);
    }
    figure("Pod create → Ready, p50", percentile(&mut ready, 50), "ms", 70.0, true);
    fact("Pod create → Ready, p90", &format!("{:.1} ms", percentile(&mut ready, 90)));
    fact("Pod create → nginx answers, p50", &format!("{:.1} ms", percentile(&mut served, 50)));
    figure("Pod delete → gone, p50", percentile(&mut gone, 50), "ms", 100.0, true);
    fact("Pod delete → gone, p90", &format!("{:.1} ms", percentile(&mut gone, 90)));
    Ok(())
}

/// Waits until something listens on port 80.
async fn serves(ip: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while tokio::net::TcpStream::connect((ip, 80)).await.is_err() {
        ensure!(Instant::now() < deadline, "{ip} does not serve");
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// The one global revision counts writes; Events are counted apart.
async fn writes_per_pod(endpoint: &Endpoint, admin: &mut Connection) -> Result<()> {
    const COUNT: u64 = 10;
    let revision =
        |list: &Value| list["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse::<u64>().ok());
    let events = "/api/v1/namespaces/default/events";
    let before = expect(admin, &request("GET", PODS, "", b"")).await?;
    let mut watch = Watch::open(endpoint, &format!("{PODS}?watch=1")).await?;
    let mut event_watch = Watch::open(
        endpoint,
        &format!("{events}?watch=1&resourceVersion={}", revision(&before).context("revision")?),
    )
    .await?;
    for run in 0..COUNT {
        expect(admin, &request("POST", PODS, "", &pod(&format!("count-{run}")))).await?;
    }
    let mut ready = BTreeSet::new();
    while ready.len() < COUNT as usize {
        let event = watch.next().await?;
        if is_ready(&event["object"]) {
            ready.insert(event["object"]["metadata"]["name"].to_string());
        }
    }
    // Events trail the Pods: wait for each Pod's last one.
    let mut event_writes = 0;
    let mut started = BTreeSet::new();
    while started.len() < COUNT as usize {
        let event = event_watch.next().await?;
        event_writes += 1;
        if event["object"]["reason"] == "Started" {
            started.insert(event["object"]["involvedObject"]["name"].to_string());
        }
    }
    let after = expect(admin, &request("GET", PODS, "", b"")).await?;
    let writes =
        revision(&after).context("revision")? - revision(&before).context("revision")? - event_writes;
    figure("writes per Pod to Ready, beyond Events", writes as f64 / COUNT as f64, "", 8.0, true);
    expect(admin, &request("DELETE", PODS, "", b"")).await?;
    while !started.is_empty() {
        let event = watch.next().await?;
        if event["type"] == "DELETED" {
            started.remove(&event["object"]["metadata"]["name"].to_string());
        }
    }
    Ok(())
}

async fn deployment(cluster: &Cluster, endpoint: &Endpoint, admin: &mut Connection) -> Result<()> {
    let base = "/apis/apps/v1/namespaces/default/deployments";
    let template = |color: &str| {
        json!({
            "metadata": {"labels": {"app": "web"}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                "name": "c", "image": "nginx", "imagePullPolicy": "IfNotPresent", "env": [{"name": "COLOR", "value": color}],
            }]},
        })
    };
    let object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template("red")},
    });
    let mut watch = Watch::open(endpoint, &format!("{base}?watch=1")).await?;
    expect(admin, &request("POST", base, "", object.to_string().as_bytes())).await?;
    settle(&mut watch, 1).await?;
    let (pss_before, available_before) = (skeg_pss_kib(cluster)?, mem_available_kib()?);
    let patch = |body: Value| {
        let body = body.to_string();
        let headers =
            format!("Content-Type: application/merge-patch+json\r\nContent-Length: {}\r\n", body.len());
        let mut bytes = request("PATCH", &format!("{base}/web"), &headers, b"");
        bytes.extend_from_slice(body.as_bytes());
        bytes
    };
    let start = Instant::now();
    expect(admin, &patch(json!({"spec": {"replicas": 30}}))).await?;
    settle(&mut watch, 30).await?;
    figure("Deployment 1 → 30 Ready", start.elapsed().as_secs_f64(), "s", 1.0, true);
    let (pss_after, available_after) = (skeg_pss_kib(cluster)?, mem_available_kib()?);
    figure(
        "per Pod: PSS beyond the container's own",
        (pss_after.1 - pss_before.1) / 29.0 / 1024.0,
        "MB",
        1.0,
        true,
    );
    fact(
        "per Pod: server's PSS",
        &format!("{:.2} MB", (pss_after.0 - pss_after.1 - pss_before.0 + pss_before.1) / 29.0 / 1024.0),
    );
    fact(
        "per Pod: change of MemAvailable",
        &format!("{:.2} MB", (available_before - available_after) / 29.0 / 1024.0),
    );
    let start = Instant::now();
    expect(admin, &patch(json!({"spec": {"template": template("blue")}}))).await?;
    settle(&mut watch, 30).await?;
    figure("rolling update of 30", start.elapsed().as_secs_f64(), "s", 2.5, true);
    expect(admin, &request("DELETE", &format!("{base}/web?propagationPolicy=Foreground"), "", b"")).await?;
    while watch.next().await?["type"] != "DELETED" {}
    Ok(())
}

async fn settle(watch: &mut Watch, replicas: u64) -> Result<()> {
    loop {
        let event = watch.next().await?;
        let (object, status) = (&event["object"], &event["object"]["status"]);
        let is = |field: &str| status[field].as_u64().unwrap_or(0) == replicas;
        if is("updatedReplicas")
            && is("availableReplicas")
            && is("replicas")
            && status["observedGeneration"] == object["metadata"]["generation"]
        {
            return Ok(());
        }
    }
}

async fn rates(cluster: &Cluster, endpoint: &Endpoint, admin: &mut Connection) -> Result<()> {
    let base = "/api/v1/namespaces/default/configmaps";
    let map = |name: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": "x".repeat(900)}}).to_string()
    };
    let mut single = Vec::new();
    for n in 0..300 {
        let bytes = request("POST", base, "", map(&format!("single-{n}")).as_bytes());
        let start = Instant::now();
        expect(admin, &bytes).await?;
        single.push(start.elapsed().as_secs_f64() * 1e3);
    }
    figure("durable create of 1 KiB, one connection, p50", percentile(&mut single, 50), "ms", 0.8, true);

    let load = |name: &'static str, count: usize, target: f64, make: fn(usize) -> Vec<u8>| async move {
        let before = cpu_seconds(cluster)?;
        let start = Instant::now();
        let tasks: Vec<_> = (0..CONNECTIONS)
            .map(|lane| {
                let endpoint = endpoint.clone();
                tokio::spawn(async move {
                    let mut connection = endpoint.connect().await?;
                    for n in 0..count / CONNECTIONS {
                        let (status, body) = connection.send(&make(lane * count + n)).await?;
                        if status >= 300 {
                            bail!("{status}: {}", String::from_utf8_lossy(&body));
                        }
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        let seconds = start.elapsed().as_secs_f64();
        let cpu = cpu_seconds(cluster)? - before;
        let done = (count / CONNECTIONS * CONNECTIONS) as f64;
        figure(name, done / seconds, "/s", target, false);
        fact(&format!("  server CPU a request, {name}"), &format!("{:.1} µs", cpu / done * 1e6));
        anyhow::Ok(())
    };
    load("create of 1 KiB, 32 connections", 16_000, 8_000.0, |n| {
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("load-{n}")}, "data": {"value": "x".repeat(900)}});
        request("POST", "/api/v1/namespaces/default/configmaps", "", body.to_string().as_bytes())
    })
    .await?;
    // The first time each apply writes; the second time none changes anything.
    for name in ["server-side apply, 32 connections", "server-side apply of no change"] {
        load(name, 16_000, 3_000.0, |n| {
            let name = format!("load-{n}");
            let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": "bench"}}, "data": {"more": "x".repeat(100)}});
            let path = format!("/api/v1/namespaces/default/configmaps/{name}?fieldManager=bench");
            request("PATCH", &path, "Content-Type: application/apply-patch+yaml\r\n", body.to_string().as_bytes())
        })
        .await?;
    }
    load("GET, 32 connections", 48_000, 15_000.0, |_| {
        request("GET", "/api/v1/namespaces/default/configmaps/single-1", "", b"")
    })
    .await?;
    load("LIST of 500, identity", 1_600, 500.0, |_| {
        request("GET", "/api/v1/namespaces/default/configmaps?limit=500", "", b"")
    })
    .await?;
    load("LIST of 500, gzip", 1_600, 500.0, |_| {
        request("GET", "/api/v1/namespaces/default/configmaps?limit=500", "Accept-Encoding: gzip\r\n", b"")
    })
    .await
}
