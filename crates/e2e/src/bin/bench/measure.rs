//! What figures are made with: their print, the use of processes, watches and loads.

use crate::cluster::Cluster;
use crate::http::{Connection, Endpoint, request};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub const CONNECTIONS: usize = 32;
/// How much is measured.
pub struct Scale {
    /// Pods, one after the other.
    pub pods: usize,
    pub starts: usize,
    /// Services, one after the other.
    pub services: usize,
    /// How long an idle cluster's CPU is counted.
    pub idle: Duration,
    /// Of the requests of each load one in so many is sent.
    pub one_in: usize,
}

const FULL: Scale = Scale { pods: 20, starts: 5, services: 100, idle: Duration::from_secs(30), one_in: 1 };
const TINY: Scale = Scale { pods: 2, starts: 1, services: 5, idle: Duration::from_secs(1), one_in: 50 };

pub static SCALE: LazyLock<Scale> = LazyLock::new(|| match std::env::args().any(|arg| arg == "--tiny") {
    true => TINY,
    false => FULL,
});

/// The resolution of a process's CPU time (`USER_HZ`).
const TICKS_A_SECOND: f64 = 100.0;

/// Prints a figure beside its target.
pub fn figure(name: &str, value: f64, unit: &str, target: f64, less_is_better: bool) {
    let ratio = if less_is_better { target / value.max(1e-9) } else { value / target };
    let verdict = if ratio >= 1.0 { "met" } else { "MISSED" };
    // Below what can be measured there is no ratio to tell.
    let ratio = if ratio > 999.0 { ">999".to_owned() } else { format!("{ratio:.2}") };
    println!("{name:<48} {value:>10.2} {unit:<6} target {target:>9.1}  ×{ratio:<7} {verdict}");
}

pub fn fact(name: &str, text: &str) {
    println!("{name:<48} {text}");
}

/// What a cluster's skeg processes use: its server, and the supervisors of its Pods.
#[derive(Default)]
pub struct Usage {
    pub server_pss_kib: f64,
    pub supervisors_pss_kib: f64,
    /// By process, since its start.
    cpu_s: BTreeMap<i32, f64>,
}

impl Usage {
    pub fn of(cluster: &Cluster) -> Result<Self> {
        let server = cluster.server_pid()?;
        let mut usage = Usage::default();
        for entry in std::fs::read_dir("/proc")? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
            let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
            let executable = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            // One that ends meanwhile is none any more.
            let (true, Ok(rollup), Ok(stat)) =
                (executable == cluster.skeg, read("smaps_rollup"), read("stat"))
            else {
                continue;
            };
            let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"));
            let pss: f64 = pss.unwrap_or("0").parse()?;
            match pid == server {
                true => usage.server_pss_kib = pss,
                false => usage.supervisors_pss_kib += pss,
            }
            let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
            let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
            usage.cpu_s.insert(pid, ticks / TICKS_A_SECOND);
        }
        Ok(usage)
    }

    /// What those that are there now used since then.
    pub fn cpu_s_since(&self, before: &Usage) -> f64 {
        let since = |(pid, now): (&i32, &f64)| now - before.cpu_s.get(pid).unwrap_or(&0.0);
        self.cpu_s.iter().map(since).sum()
    }

    pub fn pss_kib(&self) -> f64 {
        self.server_pss_kib + self.supervisors_pss_kib
    }
}

pub fn mem_available_kib() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

pub fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values
        .get((values.len() * percent / 100).min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

pub async fn expect(connection: &mut Connection, bytes: &[u8]) -> Result<Value> {
    let (status, body) = connection.send(bytes).await?;
    ensure!(status < 300, "{status}: {}", String::from_utf8_lossy(&body));
    Ok(serde_json::from_slice(&body)?)
}

pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A ConfigMap with so many bytes of data.
pub fn map(name: &str, bytes: usize) -> Value {
    let data = json!({"value": "x".repeat(bytes)});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// The request that creates an object.
pub fn create(path: &str, object: &Value) -> Vec<u8> {
    request("POST", path, "", object.to_string().as_bytes())
}

/// A watch, event by event.
pub struct Watch {
    connection: Connection,
    buffer: Vec<u8>,
}

impl Watch {
    pub async fn open(endpoint: &Endpoint, path: &str) -> Result<Self> {
        let mut connection = endpoint.connect().await?;
        let (status, _) = connection.open(&request("GET", path, "", b"")).await?;
        ensure!(status == 200, "watch: {status}");
        Ok(Watch { connection, buffer: Vec::new() })
    }

    /// How many events the next bytes complete.
    pub async fn lines(&mut self) -> Result<usize> {
        let chunk = tokio::time::timeout(Duration::from_secs(60), self.connection.chunk()).await??;
        Ok(chunk.context("the watch ended")?.iter().filter(|byte| **byte == b'\n').count())
    }

    pub async fn next(&mut self) -> Result<Value> {
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

pub const MERGE: &str = "merge-patch+json";

pub fn patch(path: &str, kind: &str, body: &Value) -> Vec<u8> {
    let headers = format!("Content-Type: application/{kind}\r\n");
    request("PATCH", path, &headers, body.to_string().as_bytes())
}

/// Requests over many connections at once.
pub struct Load<'a> {
    pub cluster: &'a Cluster,
    pub endpoint: &'a Endpoint,
    pub connections: usize,
}

impl Load<'_> {
    /// Sends `count` requests, of which `make` makes the n-th; prints their rate and what each costs.
    pub async fn run(
        &self,
        name: &str,
        count: usize,
        target: f64,
        make: impl Fn(usize) -> Vec<u8>,
    ) -> Result<()> {
        let (rate, cpu_us) = self.send(count, make).await?;
        figure(name, rate, "/s", target, false);
        fact("  CPU of all skeg processes a request", &format!("{cpu_us:.1} µs"));
        Ok(())
    }

    /// Sends them; returns how many a second, and the CPU time of each in microseconds.
    pub async fn send(&self, count: usize, make: impl Fn(usize) -> Vec<u8>) -> Result<(f64, f64)> {
        let count = count / SCALE.one_in;
        let lane = |lane: usize| (lane..count).step_by(self.connections).map(&make).collect::<Vec<_>>();
        let lanes: Vec<_> = (0..self.connections).map(lane).collect();
        let before = Usage::of(self.cluster)?;
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for requests in lanes {
            let endpoint = self.endpoint.clone();
            tasks.spawn(async move {
                let mut connection = endpoint.connect().await?;
                for request in requests {
                    let (status, body) = connection.send(&request).await?;
                    ensure!(status < 300, "{status}: {}", String::from_utf8_lossy(&body));
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        let seconds = start.elapsed().as_secs_f64();
        let cpu_s = Usage::of(self.cluster)?.cpu_s_since(&before);
        Ok((count as f64 / seconds, cpu_s / count as f64 * 1e6))
    }
}
