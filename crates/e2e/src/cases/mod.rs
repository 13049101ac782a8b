//! The tables of cases.

mod apply;
mod cli;
mod counts;
mod durability;
mod guest;
mod kubectl;
mod leaks;
mod network;
mod pods;
mod restart;
mod rollout;

use crate::Case;
use serde_json::{Value, json};

/// Cases that share one cluster.
pub const SHARED: &[&[Case]] = &[rollout::CASES, kubectl::CASES, apply::CASES, pods::CASES, network::CASES];

/// Cases that start and end clusters of their own.
pub const ALONE: &[&[Case]] = &[restart::CASES, cli::CASES, counts::CASES, durability::CASES];

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
