//! The tables of cases.

mod admission;
mod aggregation;
mod apply;
mod behaviours;
mod certificates;
mod cli;
mod clients;
mod commands;
mod counts;
mod crds;
mod debug;
mod durability;
mod files;
mod guest;
mod images;
mod kinds;
mod kubectl;
mod leaks;
mod machinery;
mod network;
mod pods;
mod preemption;
mod probes;
mod proxy;
mod resize;
mod restart;
mod rollout;
mod rust;
mod rust_controller;
mod security;
mod services;
mod volumes;

use crate::{Case, Scope};
use anyhow::Result;
use serde_json::{Value, json};

/// Cases that share one cluster.
pub const SHARED: &[&[Case]] = &[
    rollout::CASES,
    kubectl::CASES,
    apply::CASES,
    commands::CASES,
    admission::CASES,
    certificates::CASES,
    aggregation::CASES,
    clients::CASES,
    rust::CASES,
    rust_controller::CASES,
    kinds::CASES,
    crds::CASES,
    machinery::CASES,
    pods::CASES,
    debug::CASES,
    resize::CASES,
    security::CASES,
    images::CASES,
    volumes::CASES,
    files::CASES,
    behaviours::CASES,
    probes::CASES,
    network::CASES,
    services::CASES,
    preemption::CASES,
    proxy::CASES,
];

/// Cases that start and end clusters of their own.
pub const ALONE: &[&[Case]] = &[
    restart::CASES,
    cli::CASES,
    counts::CASES,
    commands::NODE_CASES,
    preemption::NODE_CASES,
    durability::CASES,
];

/// Cases that bring what they run on.
pub const APART: &[&[Case]] = &[leaks::CASES, guest::CASES];

/// A Pod of busybox containers: name and shell script each.
fn pod(name: &str, containers: &[(&str, &str)]) -> Value {
    let containers: Vec<Value> = containers.iter().map(|(name, script)| container(name, script)).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": containers},
    })
}

fn container(name: &str, script: &str) -> Value {
    json!({"name": name, "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]})
}

/// A Deployment of nginx with a readiness probe.
fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "nginx", "image": "nginx", "ports": [{"containerPort": 80}],
                        "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1},
                    }],
                },
            },
        },
    })
}

/// Brings an image that few cases need.
fn import(scope: &Scope<'_>, image: &str) -> Result<()> {
    scope.cluster.skeg(&["image", "import", &scope.cluster.archive(image).to_string_lossy()]).map(drop)
}

fn started(scope: &Scope<'_>, pod: &Value) -> Result<()> {
    scope.apply(pod)?;
    scope.wait_ready(pod["metadata"]["name"].as_str().unwrap_or_default())
}

/// What the one node has for Pods: `cpu` in cores, `memory` in bytes.
fn allocatable(scope: &Scope<'_>, resource: &str) -> Result<u64> {
    let path = format!("jsonpath={{.items[0].status.allocatable.{resource}}}");
    let text = scope.kubectl(&["get", "nodes", "-o", &path])?;
    Ok(match text.strip_suffix("Ki") {
        Some(kibibytes) => kibibytes.parse::<u64>()? * 1024,
        None => text.parse()?,
    })
}

fn status(scope: &Scope<'_>, pod: &str) -> Result<Value> {
    Ok(scope.get(&["pod", pod])?["status"].clone())
}

/// The host's process id of a Pod's `sleep`, found by the Pod's name in its environment: the name
/// must be no other case's.
fn find_process(pod: &str) -> Result<i32> {
    let marker = format!("HOSTNAME={pod}\0");
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<i32>() else { continue };
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let environ = read("environ");
        let mounts = String::from_utf8_lossy(&read("mountinfo")).into_owned();
        if environ.windows(marker.len()).any(|window| window == marker.as_bytes())
            && mounts.contains("skeg-e2e-")
            && read("cmdline").starts_with(b"sleep\x001000")
        {
            return Ok(pid);
        }
    }
    anyhow::bail!("no process of {pod}")
}
