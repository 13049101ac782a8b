//! The figures, all from one run: start, idle, Pods, rollouts, rates. Run it with
//! `cargo xtask bench`, or `cargo xtask bench api` for what the API does under load; it starts clusters
//! of its own and purges them. With `--tiny` it does little of
//! each, to show that every figure is still measured.

#[path = "../../cluster.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all of it")]
mod cluster;
#[path = "../../http.rs"]
#[allow(dead_code, reason = "shared with the suite")]
mod http;
#[path = "../../registry.rs"]
#[allow(dead_code, reason = "shared with the suite, which uses all of it")]
mod registry;

mod api;
mod measure;

use anyhow::{Context, Result, ensure};
use cluster::Cluster;
use http::{Connection, Endpoint, request};
use measure::{
    CONNECTIONS, Load, MAPS, MERGE, SCALE, Usage, Watch, create, expect, fact, figure, map,
    mem_available_kib, patch, percentile,
};
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// What `cluster.rs` calls a case's scope; the benchmark has none.
pub struct Scope<'a> {
    pub cluster: &'a Cluster,
    pub namespace: String,
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let arguments: Vec<String> = std::env::args().skip(1).filter(|one| one != "--tiny").collect();
    match arguments.first().map(String::as_str) {
        Some("api") => runtime.block_on(api::run(arguments.get(1).map(String::as_str))),
        Some("rates") => runtime.block_on(only_rates()),
        _ => runtime.block_on(run()),
    }
}

async fn only_rates() -> Result<()> {
    let cluster = Cluster::prepare()?;
    cluster.up()?;
    let endpoint = Endpoint::from_kubeconfig(&cluster.kubeconfig())?;
    let mut admin = endpoint.connect().await?;
    rates(&cluster, &endpoint, &mut admin).await?;
    cluster.stop()
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

/// From exec on an empty directory, several times. The server tells when its API and its node were
/// ready; all that passes before and after that is counted to the API.
fn starts() -> Result<()> {
    let (mut api, mut node) = (Vec::new(), Vec::new());
    for _ in 0..SCALE.starts {
        let cluster = Cluster::prepare()?;
        let start = Instant::now();
        let said = cluster.up()?;
        let all = start.elapsed().as_secs_f64() * 1e3;
        let told = |what: &str| -> Result<f64> {
            let rest = said.split(what).nth(1).with_context(|| format!("{what:?} in {said}"))?;
            Ok(rest.split_whitespace().next().context("a number")?.parse()?)
        };
        node.push(all);
        api.push(all - told("node Ready ")? + told("API ready ")?);
        cluster.stop()?;
    }
    fact("exec on an empty directory → API ready, p50", &format!("{:.1} ms", percentile(&mut api, 50)));
    figure("exec on an empty directory → node Ready, p50", percentile(&mut node, 50), "ms", 500.0, true);
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
    let share = idle_share(cluster).await?;
    figure("idle: PSS of all skeg processes", Usage::of(cluster)?.pss_kib() / 1024.0, "MB", 60.0, true);
    figure("idle: share of a core", share, "%", 0.5, true);
    Ok(())
}

/// The part of a core, in percent, that a cluster uses while nothing is asked of it.
async fn idle_share(cluster: &Cluster) -> Result<f64> {
    let before = Usage::of(cluster)?;
    tokio::time::sleep(SCALE.idle).await;
    Ok(Usage::of(cluster)?.cpu_s_since(&before) / SCALE.idle.as_secs_f64() * 100.0)
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

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn pods(endpoint: &Endpoint, admin: &mut Connection) -> Result<()> {
    let (mut ready, mut served, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    let list = expect(admin, &request("GET", PODS, "", b"")).await?;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    let mut watch = Watch::open(endpoint, &format!("{PODS}?watch=1&resourceVersion={revision}")).await?;
    for run in 0..SCALE.pods {
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
    let web = format!("{base}/web");
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
    services(endpoint, admin).await?;
    let (before, available_before) = (Usage::of(cluster)?, mem_available_kib()?);
    let start = Instant::now();
    expect(admin, &patch(&web, MERGE, &json!({"spec": {"replicas": 30}}))).await?;
    settle(&mut watch, 30).await?;
    figure("Deployment 1 → 30 Ready", start.elapsed().as_secs_f64(), "s", 1.0, true);
    let (after, available_after) = (Usage::of(cluster)?, mem_available_kib()?);
    let a_pod = |after: f64, before: f64| (after - before) / 29.0 / 1024.0;
    figure(
        "per Pod: PSS beyond the container's own",
        after.supervisors_pss_kib / 30.0 / 1024.0,
        "MB",
        1.0,
        true,
    );
    let of_server = a_pod(after.server_pss_kib, before.server_pss_kib);
    fact("per Pod: server's PSS", &format!("{of_server:.2} MB"));
    fact("per Pod: change of MemAvailable", &format!("{:.2} MB", a_pod(available_before, available_after)));
    let share = idle_share(cluster).await?;
    fact("idle with 30 Pods: share of a core", &format!("{share:.2} %"));
    let start = Instant::now();
    expect(admin, &patch(&web, MERGE, &json!({"spec": {"template": template("blue")}}))).await?;
    settle(&mut watch, 30).await?;
    figure("rolling update of 30", start.elapsed().as_secs_f64(), "s", 2.5, true);
    expect(admin, &request("DELETE", &format!("{web}?propagationPolicy=Foreground"), "", b"")).await?;
    while watch.next().await?["type"] != "DELETED" {}
    Ok(())
}

/// From a Service's creation to an EndpointSlice with the Pod; conformance allows 20 s.
async fn services(endpoint: &Endpoint, admin: &mut Connection) -> Result<()> {
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let mut watch = Watch::open(endpoint, &format!("{slices}?watch=1")).await?;
    let mut reached = Vec::new();
    let path = "/api/v1/namespaces/default/services";
    for run in 0..SCALE.services {
        let name = format!("bench-{run}");
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
        let start = Instant::now();
        expect(admin, &create(path, &service)).await?;
        loop {
            let slice = watch.next().await?["object"].take();
            let of = &slice["metadata"]["labels"]["kubernetes.io/service-name"];
            if *of == name && slice["endpoints"].as_array().is_some_and(|all| !all.is_empty()) {
                break;
            }
        }
        reached.push(start.elapsed().as_secs_f64() * 1e3);
        expect(admin, &request("DELETE", &format!("{path}/{name}"), "", b"")).await?;
    }
    figure("Service create → its endpoints, p50", percentile(&mut reached, 50), "ms", 20_000.0, true);
    fact("Service create → its endpoints, p90", &format!("{:.1} ms", percentile(&mut reached, 90)));
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
    let mut single = Vec::new();
    for n in 0..300 {
        let bytes = create(MAPS, &map(&format!("single-{n}"), 900));
        let start = Instant::now();
        expect(admin, &bytes).await?;
        single.push(start.elapsed().as_secs_f64() * 1e3);
    }
    figure("durable create of 1 KiB, one connection, p50", percentile(&mut single, 50), "ms", 0.8, true);

    let load = Load { cluster, endpoint, connections: CONNECTIONS };
    load.run("create of 1 KiB, 32 connections", 16_000, 8_000.0, |n| {
        create(MAPS, &map(&format!("load-{n}"), 900))
    })
    .await?;
    load.run("GET, 32 connections", 48_000, 15_000.0, |_| {
        request("GET", &format!("{MAPS}/single-1"), "", b"")
    })
    .await?;

    // A namespace of exactly 500.
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lists"}});
    expect(admin, &create("/api/v1/namespaces", &namespace)).await?;
    let lists = MAPS.replace("default", "lists");
    for n in 0..500 {
        expect(admin, &create(&lists, &map(&format!("of-{n}"), 900))).await?;
    }
    for (encoding, headers) in [("identity", ""), ("gzip", "Accept-Encoding: gzip\r\n")] {
        let list = |_| request("GET", &lists, headers, b"");
        load.run(&format!("LIST of 500, {encoding}, unchanged"), 1_600, 500.0, list).await?;
        // One connection changes one of them as often as it can, while the others list.
        let mut writer = endpoint.connect().await?;
        let path = format!("{lists}/of-7");
        let made = Cell::new(0_u64);
        let changes = async {
            loop {
                let body = json!({"data": {"n": made.replace(made.get() + 1).to_string()}});
                if let Err(error) = expect(&mut writer, &patch(&path, MERGE, &body)).await {
                    break error;
                }
            }
        };
        let name = format!("LIST of 500, {encoding}, changing");
        tokio::select! {
            done = load.run(&name, 1_600, 500.0, list) => done?,
            failed = changes => return Err(failed),
        }
        fact("  changes meanwhile, whose CPU is counted above", &made.get().to_string());
    }
    Ok(())
}
