//! Which Pods nobody will ever clean up, and how they are to go. Pure.
//! Upstream counterpart: `pkg/controller/podgc`.

use crate::pod;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use skeg_api::predicates::taints;
use std::sync::Arc;

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Why a Pod is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Its node is gone.
    Orphaned,
    /// Its node is out of service and will not tell of its end.
    OutOfService,
    /// It was deleted before it had a node.
    Unscheduled,
}

impl Reason {
    fn message(self) -> Option<&'static str> {
        match self {
            Reason::Orphaned => Some("PodGC: node no longer exists"),
            Reason::OutOfService => Some("PodGC: node is out of service"),
            Reason::Unscheduled => None,
        }
    }
}

/// Whether the Pod is to go, given its node as far as it exists.
pub(crate) fn reason(pod: &Pod, node: Option<&Node>) -> Option<Reason> {
    if pod::node_name(pod).is_empty() {
        return pod::is_deleting(pod).then_some(Reason::Unscheduled);
    }
    match node {
        None => Some(Reason::Orphaned),
        Some(node) if pod::is_deleting(pod) && is_out_of_service(node) => Some(Reason::OutOfService),
        Some(_) => None,
    }
}

pub(crate) fn is_out_of_service(node: &Node) -> bool {
    let tainted = taints(node).iter().any(|taint| taint.key == OUT_OF_SERVICE);
    tainted && !crate::nodelifecycle::is_ready(node)
}

/// The phase and conditions that tell why a Pod that has not ended is deleted without its node's
/// word; `None` where there is nothing to tell.
pub(crate) fn failed(pod: &Pod, reason: Reason, now: Timestamp) -> Option<Vec<PodCondition>> {
    if pod::is_terminal(pod) {
        return None;
    }
    let condition = PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some("DeletionByPodGC".into()),
        message: Some(reason.message()?.into()),
        ..Default::default()
    };
    let kept = || pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    Some(pod::with_condition(pod, condition, now).unwrap_or_else(kept))
}

/// The ended Pods beyond `threshold`: evicted ones first, then the oldest.
pub(crate) fn excess(mut ended: Vec<Arc<Pod>>, threshold: usize) -> Vec<Arc<Pod>> {
    let count = ended.len().saturating_sub(threshold);
    if threshold == 0 || count == 0 {
        return Vec::new();
    }
    let evicted =
        |pod: &Pod| pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some("Evicted");
    ended.sort_by(|a, b| {
        let age = (&a.metadata.creation_timestamp, &a.metadata.name)
            .cmp(&(&b.metadata.creation_timestamp, &b.metadata.name));
        evicted(b).cmp(&evicted(a)).then(age)
    });
    ended.truncate(count);
    ended
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn tells_why_a_pod_goes() {
        let node = |taint: &str, ready: &str| -> Node {
            serde_json::from_value(
                json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}),
            )
            .unwrap()
        };
        let bound = pod(json!({"metadata": {}, "spec": {"nodeName": "n", "containers": []}}));
        let going = pod(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": "n", "containers": []}}),
        );
        let unbound = pod(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"containers": []}}),
        );
        for (pod, node, want) in [
            (&bound, None, Some(Reason::Orphaned)),
            (&bound, Some(node("x", "True")), None),
            (&going, Some(node(OUT_OF_SERVICE, "Unknown")), Some(Reason::OutOfService)),
            (&going, Some(node(OUT_OF_SERVICE, "True")), None),
            (&bound, Some(node(OUT_OF_SERVICE, "Unknown")), None),
            (&unbound, None, Some(Reason::Unscheduled)),
        ] {
            assert_eq!(reason(pod, node.as_ref()), want);
        }
        let conditions = failed(&bound, Reason::Orphaned, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(conditions[0].message.as_deref(), Some("PodGC: node no longer exists"));
        assert_eq!(failed(&unbound, Reason::Unscheduled, Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn the_oldest_ended_pods_are_in_excess() {
        let ended = |name: &str, second: u32, reason: &str| {
            Arc::new(pod(
                json!({"metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
                "status": {"phase": "Failed", "reason": reason}}),
            ))
        };
        let all = vec![ended("a", 1, ""), ended("b", 2, ""), ended("c", 3, "Evicted")];
        let names = |threshold| {
            excess(all.clone(), threshold)
                .iter()
                .map(|pod| pod.metadata.name.clone().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(1), ["c", "a"]);
        assert_eq!(names(3), [] as [&str; 0]);
        assert_eq!(names(0), [] as [&str; 0]);
    }
}
