//! What a node's silence and conditions mean: its conditions, its taints, and which Pods have to
//! go because of them. Pure.
//! Upstream counterparts: `pkg/controller/nodelifecycle`, `pkg/controller/tainteviction`.

use crate::context::Config;
use crate::pod;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use skeg_api::predicates::{taints as taints_of, tolerates};
use std::collections::BTreeMap;
use std::time::Duration;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Taints by condition: type, status, key. All have effect `NoSchedule`.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// What only the node itself can tell, and nobody knows once it is silent.
const OWN_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

pub(crate) fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

pub(crate) fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready.status == "True")
}

/// How long the node may be silent: longer as long as it has never told its status.
pub(crate) fn grace(node: &Node, config: &Config) -> Duration {
    if condition(node, "Ready").is_some() {
        config.node_monitor_grace_period
    } else {
        config.node_startup_grace_period
    }
}

/// The conditions of a node that has been silent for too long; `None` if they say so already.
pub(crate) fn silent_conditions(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut conditions =
        node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let before = conditions.clone();
    for type_ in OWN_CONDITIONS {
        match conditions.iter_mut().find(|condition| condition.type_ == type_) {
            None => conditions.push(NodeCondition {
                type_: type_.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(Time(now));
            }
            Some(_) => {}
        }
    }
    (conditions != before).then_some(conditions)
}

/// Whether the node is to have a `NoExecute` taint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// As its readiness asks.
    Allowed,
    /// Not now: the rate of its zone is used up. A taint that is there stays.
    Later,
    /// No node is ready: the fault is likely on this side, and no Pod is to go.
    Stopped,
}

/// The key of the `NoExecute` taint that the node's readiness asks for.
pub(crate) fn wanted_no_execute(node: &Node) -> Option<&'static str> {
    match condition(node, "Ready")?.status.as_str() {
        "False" => Some(NOT_READY),
        "Unknown" => Some(UNREACHABLE),
        _ => None,
    }
}

fn is_no_execute_of_ours(taint: &Taint) -> bool {
    taint.effect == "NoExecute" && (taint.key == NOT_READY || taint.key == UNREACHABLE)
}

/// Whether tainting the node takes from the rate of its zone. Only the first taint does: changing
/// one for the other evicts no more Pods.
pub(crate) fn takes_from_rate(node: &Node) -> bool {
    let tainted = taints_of(node).iter().any(is_no_execute_of_ours);
    wanted_no_execute(node).is_some() && !tainted
}

/// The taints the node should have; `None` if it has them.
pub(crate) fn taints(node: &Node, eviction: Eviction, now: Timestamp) -> Option<Vec<Taint>> {
    let old: Vec<Taint> = taints_of(node).to_vec();
    let mut wanted: Vec<(&str, &str)> = CONDITION_TAINTS
        .iter()
        .filter(|(type_, status, _)| {
            condition(node, type_).is_some_and(|condition| condition.status == *status)
        })
        .map(|(_, _, key)| (*key, "NoSchedule"))
        .collect();
    if node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let knows_readiness = condition(node, "Ready").is_some();
    let by_condition = |taint: &Taint| {
        let readiness = taint.key == NOT_READY || taint.key == UNREACHABLE;
        let ours = readiness
            || taint.key == UNSCHEDULABLE
            || CONDITION_TAINTS.iter().any(|(_, _, key)| *key == taint.key);
        // Admission taints a new node as not ready until it tells.
        taint.effect == "NoSchedule" && ours && (knows_readiness || !readiness)
    };
    match (wanted_no_execute(node), eviction) {
        (Some(key), Eviction::Allowed) => wanted.push((key, "NoExecute")),
        (Some(_), Eviction::Later) => {
            wanted.extend(
                old.iter()
                    .filter(|taint| is_no_execute_of_ours(taint))
                    .map(|taint| (taint.key.as_str(), "NoExecute")),
            );
        }
        _ => {}
    }
    let is_wanted = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let ours = |taint: &Taint| by_condition(taint) || (knows_readiness && is_no_execute_of_ours(taint));
    let mut taints: Vec<Taint> =
        old.iter().filter(|taint| !ours(taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in &wanted {
        if !taints.iter().any(|taint| taint.key == *key && taint.effect == *effect) {
            taints.push(Taint {
                key: (*key).into(),
                effect: (*effect).into(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (taints != old).then_some(taints)
}

/// The conditions of a Pod on a node that is not ready. Its phase stays: what its containers do
/// nobody knows.
pub(crate) fn not_ready_conditions(pod: &Pod, now: Timestamp) -> Option<Vec<PodCondition>> {
    let ready = pod::condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    pod::with_condition(pod, PodCondition { status: "False".into(), ..ready.clone() }, now)
}

/// The zone in which a node fails together with others.
pub(crate) fn zone(node: &Node) -> String {
    let label = |key: &str| {
        node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned().unwrap_or_default()
    };
    format!("{}:{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

/// Whether the node says anything about the health of its zone.
pub(crate) fn counts_for_zone(node: &Node) -> bool {
    !node
        .metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key("node.kubernetes.io/exclude-disruption"))
}

/// How many nodes of a zone are ready, and how many are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ZoneCount {
    pub ready: usize,
    pub not_ready: usize,
}

/// `NoExecute` taints a second by zone; `None` where none are set, and for all if no node at all
/// is ready.
pub(crate) fn eviction_rates(
    zones: &BTreeMap<String, ZoneCount>,
    config: &Config,
) -> BTreeMap<String, Option<f64>> {
    let all_down = zones.values().all(|count| count.ready == 0);
    let rate = |count: &ZoneCount| {
        let share = count.not_ready as f64 / (count.ready + count.not_ready).max(1) as f64;
        if all_down {
            None
        } else if count.ready > 0 && count.not_ready > 2 && share >= config.unhealthy_zone_threshold {
            let large = count.ready + count.not_ready > config.large_cluster_size_threshold;
            large.then_some(config.secondary_node_eviction_rate)
        } else {
            Some(config.node_eviction_rate)
        }
    };
    let positive = |rate: &f64| *rate > 0.0;
    zones.iter().map(|(zone, count)| (zone.clone(), rate(count).filter(positive))).collect()
}

/// The taints of a node that make Pods go.
pub(crate) fn no_execute(node: &Node) -> Vec<Taint> {
    taints_of(node).iter().filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

/// When a Pod has to go because of the node's taints; `None` if it may stay. Counted from the
/// time the taint was added, so that a restart of the controller gives no Pod more time; where
/// nobody wrote that down, as with `kubectl taint`, from `since`, when the Pod was first due.
pub(crate) fn evict_at(pod: &Pod, taints: &[Taint], since: Timestamp) -> Option<Timestamp> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let of_taint = |taint: &Taint| -> Option<Timestamp> {
        let mut matching = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        if matching.peek().is_none() {
            return Some(since);
        }
        // The shortest counts; one without a number lasts for ever.
        let seconds = matching.filter_map(|toleration| toleration.toleration_seconds).min()?;
        let added = taint.time_added.as_ref().map_or(since, |time| time.0);
        added.checked_add(SignedDuration::from_secs(seconds.max(0))).ok()
    };
    taints.iter().filter_map(of_taint).min()
}

/// The condition that tells why the taint controller deletes a Pod.
pub(crate) fn disruption_target() -> PodCondition {
    PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some("DeletionByTaintManager".into()),
        message: Some("Taint manager: deleting due to NoExecute taint".into()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    fn node(conditions: Value, spec: Value) -> Node {
        let node = json!({"metadata": {"name": "n", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": {"conditions": conditions}});
        serde_json::from_value(node).unwrap()
    }

    fn keys(taints: Option<Vec<Taint>>) -> Option<Vec<String>> {
        let text = |taint: Taint| {
            format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect)
        };
        taints.map(|taints| taints.into_iter().map(text).collect())
    }

    #[test]
    fn a_silent_node_is_unknown() {
        let mut silent =
            node(json!([{"type": "Ready", "status": "True", "reason": "KubeletReady"}]), json!({}));
        let conditions = silent_conditions(&silent, now()).unwrap();
        let told: Vec<_> = conditions
            .iter()
            .map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_deref().unwrap()))
            .collect();
        assert_eq!(
            told,
            [
                ("Ready", "Unknown", "NodeStatusUnknown"),
                ("MemoryPressure", "Unknown", "NodeStatusNeverUpdated"),
                ("DiskPressure", "Unknown", "NodeStatusNeverUpdated"),
                ("PIDPressure", "Unknown", "NodeStatusNeverUpdated"),
            ]
        );
        silent.status.as_mut().unwrap().conditions = Some(conditions);
        assert_eq!(silent_conditions(&silent, now()), None);
    }

    #[test]
    fn taints_follow_conditions() {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let unknown = json!([{"type": "Ready", "status": "Unknown"}]);
        let pressed =
            json!([{"type": "Ready", "status": "False"}, {"type": "MemoryPressure", "status": "True"}]);
        let own = json!({"key": "mine", "effect": "NoExecute"});
        let not_ready = json!({"key": NOT_READY, "effect": "NoSchedule"});
        let gone = json!({"key": UNREACHABLE, "effect": "NoExecute"});
        let allowed = Eviction::Allowed;
        for (conditions, spec, eviction, want) in [
            (&ready, json!({}), allowed, None),
            (&ready, json!({"taints": [own, not_ready, gone]}), allowed, Some(vec!["mine:NoExecute"])),
            (&ready, json!({"unschedulable": true}), allowed, Some(vec!["unschedulable:NoSchedule"])),
            (
                &unknown,
                json!({"taints": [own]}),
                allowed,
                Some(vec!["mine:NoExecute", "unreachable:NoSchedule", "unreachable:NoExecute"]),
            ),
            (&unknown, json!({}), Eviction::Later, Some(vec!["unreachable:NoSchedule"])),
            (&unknown, json!({"taints": [gone]}), Eviction::Stopped, Some(vec!["unreachable:NoSchedule"])),
            (
                &pressed,
                json!({}),
                allowed,
                Some(vec!["not-ready:NoSchedule", "memory-pressure:NoSchedule", "not-ready:NoExecute"]),
            ),
            (&json!([]), json!({"taints": [not_ready]}), allowed, None),
        ] {
            let want = want.map(|want| want.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(
                keys(taints(&node(conditions.clone(), spec.clone()), eviction, now())),
                want,
                "{conditions} {spec}"
            );
        }
    }

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates() {
        let taint: Taint = serde_json::from_value(
            json!({"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": "2026-01-01T00:59:00Z"}),
        )
        .unwrap();
        let pod = |tolerations: Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {}, "spec": {"containers": [], "tolerations": tolerations}}),
            )
            .unwrap()
        };
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        let exists = |seconds: Value| json!({"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        for (tolerations, want) in [
            (json!([]), Some(now())),
            (json!([exists(json!(300))]), at("2026-01-01T01:04:00Z")),
            (json!([exists(json!(null))]), None),
            (json!([exists(json!(null)), exists(json!(30))]), at("2026-01-01T00:59:30Z")),
            (json!([{"operator": "Exists"}]), None),
            (json!([{"key": NOT_READY, "operator": "Exists"}]), Some(now())),
        ] {
            assert_eq!(
                evict_at(&pod(tolerations.clone()), std::slice::from_ref(&taint), now()),
                want,
                "{tolerations}"
            );
        }
        assert_eq!(evict_at(&pod(json!([])), &[], now()), None);
        let undated = Taint { time_added: None, ..taint };
        assert_eq!(evict_at(&pod(json!([exists(json!(30))])), &[undated], now()), at("2026-01-01T01:00:30Z"));
    }

    #[test]
    fn zones_slow_down_and_stop() {
        let config = Config::default();
        let zones = |counts: &[(usize, usize)]| -> BTreeMap<String, ZoneCount> {
            let zone = |(at, (ready, not_ready)): (usize, &(usize, usize))| {
                (at.to_string(), ZoneCount { ready: *ready, not_ready: *not_ready })
            };
            counts.iter().enumerate().map(zone).collect()
        };
        for (counts, want) in [
            (&[(1, 1)][..], vec![Some(0.1)]),
            (&[(0, 1)], vec![None]),
            (&[(0, 3), (2, 0)], vec![Some(0.1), Some(0.1)]),
            (&[(1, 5)], vec![None]),
            (&[(20, 60)], vec![Some(0.01)]),
        ] {
            assert_eq!(
                eviction_rates(&zones(counts), &config).into_values().collect::<Vec<_>>(),
                want,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn a_pod_on_a_silent_node_is_not_ready() {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"generation": 1}, "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
        )
        .unwrap();
        let conditions = not_ready_conditions(&pod, now()).unwrap();
        assert_eq!(
            (conditions[0].status.as_str(), &conditions[0].last_transition_time),
            ("False", &Some(Time(now())))
        );
        let mut again = pod;
        again.status.as_mut().unwrap().conditions = Some(conditions);
        assert_eq!(not_ready_conditions(&again, now()), None);
    }
}
