//! Objects in few words.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use skeg_scheduler::{Cache, Candidate, PodInfo, Snapshot};
use std::sync::Arc;

/// Lays `patch` over `base`, as a JSON merge patch does.
pub fn merged(mut base: Value, patch: Value) -> Value {
    fn merge(base: &mut Value, patch: Value) {
        match (base, patch) {
            (Value::Object(base), Value::Object(patch)) => {
                for (key, value) in patch {
                    merge(base.entry(key).or_insert(Value::Null), value);
                }
            }
            (base, patch) => *base = patch,
        }
    }
    merge(&mut base, patch);
    base
}

/// A Node with 4 CPUs, 8Gi and room for 110 Pods.
pub fn node_value(name: &str, patch: Value) -> Value {
    let base = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    });
    merged(base, patch)
}

/// A Pod with one container that asks for nothing.
pub fn pod_value(name: &str, patch: Value) -> Value {
    let base = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": {}},
        "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Pending"},
    });
    merged(base, patch)
}

pub fn asking(cpu: &str, memory: &str) -> Value {
    json!([{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu, "memory": memory}}}])
}

pub fn node(name: &str, patch: Value) -> Node {
    serde_json::from_value(node_value(name, patch)).unwrap()
}

pub fn pod(name: &str, patch: Value) -> Pod {
    serde_json::from_value(pod_value(name, patch)).unwrap()
}

pub fn candidate(name: &str, patch: Value) -> Candidate {
    Candidate::new(Arc::new(pod(name, patch)))
}

/// A cluster of these Nodes, and these Pods with `spec.nodeName`.
pub fn cluster(nodes: &[Node], pods: &[Pod]) -> Snapshot {
    let mut cache = Cache::default();
    for node in nodes {
        cache.set_node(node);
    }
    for pod in pods {
        cache.set_pod(Arc::new(PodInfo::of(pod)));
    }
    cache.snapshot().clone()
}
