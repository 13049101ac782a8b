//! What the API does under load: writes, long lists, many watchers, what it holds in memory, many
//! definitions.

use crate::cluster::Cluster;
use crate::http::{Endpoint, request};
use crate::measure::{
    CONNECTIONS, Load, MAPS, SCALE, Usage, Watch, create, expect, fact, figure, map, patch, percentile,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// All parts, or the one of that name.
pub async fn run(only: Option<&str>) -> Result<()> {
    let parts = [
        ("writes", Part::Writes),
        ("watchers", Part::Watchers),
        ("store", Part::Store),
        ("definitions", Part::Definitions),
    ];
    for (_, part) in parts.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        let cluster = Cluster::prepare()?;
        cluster.up()?;
        let result = part.measure(&cluster).await;
        if result.is_err() {
            cluster.show_log();
        }
        cluster.stop()?;
        result?;
    }
    Ok(())
}

/// What is measured on a cluster of its own.
enum Part {
    Writes,
    Watchers,
    Store,
    Definitions,
}

impl Part {
    async fn measure(&self, cluster: &Cluster) -> Result<()> {
        let endpoint = Endpoint::from_kubeconfig(&cluster.kubeconfig())?;
        match self {
            Part::Writes => writes(cluster, &endpoint).await,
            Part::Watchers => watchers(cluster, &endpoint).await,
            Part::Store => store(cluster, &endpoint).await,
            Part::Definitions => definitions(cluster, &endpoint).await,
        }
    }
}

async fn writes(cluster: &Cluster, endpoint: &Endpoint) -> Result<()> {
    let load = Load { cluster, endpoint, connections: CONNECTIONS };
    load.run("create of 1 KiB, 32 connections", 16_000, 8_000.0, |n| {
        create(MAPS, &map(&format!("load-{n}"), 900))
    })
    .await?;
    let get = |n| request("GET", &format!("{MAPS}/load-{}", n % 100), "", b"");
    load.run("GET, 32 connections", 48_000, 15_000.0, get).await?;
    let apply = |n| {
        let mut object = map(&format!("load-{n}"), 0);
        object["data"] = json!({"more": "x".repeat(100)});
        patch(&format!("{MAPS}/load-{n}?fieldManager=bench"), "apply-patch+yaml", &object)
    };
    // The first time each apply writes; the second time none changes anything.
    for name in ["server-side apply, 32 connections", "server-side apply of no change"] {
        load.run(name, 16_000, 3_000.0, apply).await?;
    }
    // No scheduler takes these: the API's part alone.
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |n| {
        let spec = json!({"schedulerName": "nobody", "containers": [{"name": "c", "image": "nginx"}]});
        let name = format!("pod-{n}");
        create(pods, &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}))
    };
    load.run("Pod creates, 32 connections", 16_000, 6_000.0, pod).await
}

/// How many watchers see how many events a second, and for how long.
const WATCHERS: usize = 1_000;
const EVENTS_A_SECOND: usize = 300;
const EVENTS: usize = 10 * EVENTS_A_SECOND;

async fn watchers(cluster: &Cluster, endpoint: &Endpoint) -> Result<()> {
    let (count, events) = (WATCHERS / SCALE.one_in, EVENTS / SCALE.one_in);
    let pss_mb = |usage: &Usage| usage.server_pss_kib / 1024.0;
    let none = pss_mb(&Usage::of(cluster)?);
    let mut open = Vec::new();
    for _ in 0..count {
        open.push(Watch::open(endpoint, &format!("{MAPS}?watch=1&labelSelector=bench")).await?);
    }
    let before = Usage::of(cluster)?;
    let start = Instant::now();
    let mut seen = JoinSet::new();
    for mut watch in open {
        // When each event came. All watchers see them in the order of their revisions.
        seen.spawn(async move {
            let mut at = Vec::with_capacity(events);
            while at.len() < events {
                let lines = watch.lines().await?;
                at.resize(at.len() + lines, start.elapsed());
            }
            anyhow::Ok((at, watch))
        });
    }
    let mut writers = JoinSet::new();
    const WRITERS: usize = 4;
    for lane in 0..WRITERS {
        let mut connection = endpoint.connect().await?;
        writers.spawn(async move {
            let mut written = Vec::new();
            for n in (lane..events).step_by(WRITERS) {
                let mut object = map(&format!("event-{n}"), 200);
                object["metadata"]["labels"] = json!({"bench": "watch"});
                let due = Duration::from_secs_f64(n as f64 / EVENTS_A_SECOND as f64);
                tokio::time::sleep_until(start + due).await;
                let sent = start.elapsed();
                let made = expect(&mut connection, &create(MAPS, &object)).await?;
                let revision = made["metadata"]["resourceVersion"].as_str().context("a revision")?;
                written.push((revision.parse::<u64>()?, sent));
            }
            anyhow::Ok(written)
        });
    }
    let mut written = Vec::new();
    while let Some(lane) = writers.join_next().await {
        written.extend(lane??);
    }
    written.sort_unstable();
    let (mut late_ms, mut kept) = (Vec::new(), Vec::new());
    while let Some(done) = seen.join_next().await {
        let (at, watch) = done??;
        late_ms.extend(at.iter().zip(&written).map(|(at, (_, sent))| (*at - *sent).as_secs_f64() * 1e3));
        kept.push(watch);
    }
    let seconds = start.elapsed().as_secs_f64();
    let after = Usage::of(cluster)?;
    let name = "1,000 watchers × 300 events/s, request → seen";
    fact(&format!("{name}, p50"), &format!("{:.1} ms", percentile(&mut late_ms, 50)));
    figure(&format!("{name}, p99"), percentile(&mut late_ms, 99), "ms", 50.0, true);
    let cpu_us = after.cpu_s_since(&before) / (count * events) as f64 * 1e6;
    fact("  CPU of all skeg processes an event and watcher", &format!("{cpu_us:.1} µs"));
    fact("  events handed out a second", &format!("{:.0}", (count * events) as f64 / seconds));
    let memory = format!("{none:.0} → {:.0} → {:.0} MB", pss_mb(&before), pss_mb(&after));
    fact("  PSS without watchers, with them, after the events", &memory);
    Ok(())
}

async fn store(cluster: &Cluster, endpoint: &Endpoint) -> Result<()> {
    let mut admin = endpoint.connect().await?;
    let lists = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lists"}});
    expect(&mut admin, &create("/api/v1/namespaces", &lists)).await?;
    let path = MAPS.replace("default", "lists");
    let load = Load { cluster, endpoint, connections: CONNECTIONS };
    // With metadata, 1.5 KB each.
    load.send(15_000, |n| create(&path, &map(&format!("of-{n}"), 1_200))).await?;
    let (_, body) = admin.send(&request("GET", &path, "", b"")).await?;
    let mut held = body.len();
    fact("  bytes of a list of all of them", &held.to_string());
    drop(body);
    // Few connections: the load generator holds an answer for each.
    let few = Load { cluster, endpoint, connections: 4 };
    few.run("LIST of 15,000, identity", 100, 15.0, |_| request("GET", &path, "", b"")).await?;

    load.send(135_000, |n| create(MAPS, &map(&format!("load-{n}"), 900))).await?;
    let (_, one) = admin.send(&request("GET", &format!("{MAPS}/load-0"), "", b"")).await?;
    held += one.len() * 135_000 / SCALE.one_in;
    let allowed_mb = 2.0 * held as f64 / 1048576.0 + 40.0;
    fact("bytes of the objects held", &format!("{:.0} MB", held as f64 / 1048576.0));
    let memory = |name: &str| {
        let pss_mb = Usage::of(cluster)?.pss_kib() / 1024.0;
        figure(name, pss_mb, "MB", allowed_mb, true);
        anyhow::Ok(())
    };
    memory("PSS with them, after they were written")?;
    cluster.skeg(&["down"])?;
    let start = Instant::now();
    cluster.up()?;
    figure("restart with 150,000 objects → node Ready", start.elapsed().as_secs_f64(), "s", 3.0, true);
    memory("PSS with them, after a restart")
}

async fn definitions(cluster: &Cluster, endpoint: &Endpoint) -> Result<()> {
    const COUNT: usize = 500;
    let (count, base) = (COUNT / SCALE.one_in, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions");
    let before = Usage::of(cluster)?;
    let mut watch = Watch::open(endpoint, &format!("{base}?watch=1")).await?;
    let mut admin = endpoint.connect().await?;
    let start = Instant::now();
    for n in 0..count {
        expect(&mut admin, &create(base, &definition(n))).await?;
    }
    let mut established = std::collections::BTreeSet::new();
    while established.len() < count {
        let object = watch.next().await?["object"].take();
        let conditions = object["status"]["conditions"].as_array();
        let is = |one: &Value| one["type"] == "Established" && one["status"] == "True";
        if conditions.is_some_and(|all| all.iter().any(is)) {
            established.insert(object["metadata"]["name"].to_string());
        }
    }
    fact("500 definitions established", &format!("{:.2} s", start.elapsed().as_secs_f64()));
    // Each is served, and clients ask for the documents of all.
    for n in 0..count {
        let path = format!("/apis/bench{n}.example.com/v1/widgets");
        expect(&mut admin, &request("GET", &path, "", b"")).await?;
    }
    for (name, path, headers) in [
        (
            "aggregated discovery",
            "/apis",
            "Accept: application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList\r\n",
        ),
        ("/openapi/v2", "/openapi/v2", ""),
    ] {
        let start = Instant::now();
        let (status, body) = admin.send(&request("GET", path, headers, b"")).await?;
        anyhow::ensure!(status == 200, "{path}: {status}");
        let took_ms = start.elapsed().as_secs_f64() * 1e3;
        fact(&format!("  {name} with them"), &format!("{took_ms:.0} ms, {} KiB", body.len() / 1024));
    }
    let after = Usage::of(cluster)?;
    figure("PSS that 500 definitions add", (after.pss_kib() - before.pss_kib()) / 1024.0, "MB", 40.0, true);
    let load = Load { cluster, endpoint, connections: CONNECTIONS };
    let widgets = "/apis/bench0.example.com/v1/namespaces/default/widgets";
    load.run("create of custom resources, 32 connections", 8_000, 3_000.0, |n| {
        create(widgets, &json!({
            "apiVersion": "bench0.example.com/v1", "kind": "Widget", "metadata": {"name": format!("w-{n}")},
            "spec": {"size": n, "parts": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]},
        }))
    })
    .await
}

/// A definition like those that operators bring: nested, with lists, defaults, rules and columns.
fn definition(n: usize) -> Value {
    let part = json!({"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string", "maxLength": 63, "description": "The part's name, unique among its parts."},
        "image": {"type": "string", "description": "What it is made of."},
        "args": {"type": "array", "items": {"type": "string"}},
        "resources": {"type": "object", "properties": {
            "limits": {"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": true}},
            "requests": {"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": true}},
        }},
    }});
    let spec = json!({"type": "object", "properties": {
        "size": {"type": "integer", "minimum": 0, "default": 1},
        "mode": {"type": "string", "enum": ["A", "B"], "default": "A"},
        "parts": {"type": "array", "maxItems": 20, "items": part, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    }, "x-kubernetes-validations": [{"rule": "!has(self.size) || self.size < 1000000", "message": "too large"}]});
    let status = json!({"type": "object", "properties": {"phase": {"type": "string"}, "conditions": {"type": "array", "items": {
        "type": "object", "properties": {
            "type": {"type": "string"}, "status": {"type": "string"}, "reason": {"type": "string"},
            "message": {"type": "string"}, "lastTransitionTime": {"type": "string", "format": "date-time"},
        },
    }}}});
    let group = format!("bench{n}.example.com");
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("widgets.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}},
            }],
        },
    })
}
