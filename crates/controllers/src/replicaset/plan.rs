//! How many Pods a ReplicaSet makes or removes, which ones go first, and what its status says.
//! Pure. Upstream counterparts: `pkg/controller/replicaset`, `ActivePodsWithRanks` in
//! `pkg/controller/controller_utils.go`.

use crate::owner;
use crate::pod::Facts;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The most Pods one pass makes or removes, so that no ReplicaSet starves the others.
pub(crate) const BURST_REPLICAS: usize = 500;

/// What one pass does.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub create: usize,
    pub delete: Vec<Arc<Facts>>,
}

/// Compares the Pods a ReplicaSet has with those it wants. `active` are its own Pods that have
/// neither ended nor begun to; `related` those of its siblings too, for the spread over nodes.
pub(crate) fn plan(set: &ReplicaSet, active: &[Arc<Facts>], related: &[Arc<Facts>], now: Timestamp) -> Plan {
    if set.metadata.deletion_timestamp.is_some() {
        return Plan::default();
    }
    let wanted = usize::try_from(desired(set)).unwrap_or(0);
    if active.len() <= wanted {
        return Plan { create: (wanted - active.len()).min(BURST_REPLICAS), delete: Vec::new() };
    }
    let excess = (active.len() - wanted).min(BURST_REPLICAS);
    Plan { create: 0, delete: deletion_order(active, related, now).into_iter().take(excess).collect() }
}

pub(crate) fn desired(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn min_ready_seconds(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
}

/// The Pods in the order in which they are removed: those that serve least come first.
pub(crate) fn deletion_order(
    active: &[Arc<Facts>],
    related: &[Arc<Facts>],
    now: Timestamp,
) -> Vec<Arc<Facts>> {
    let mut on_node: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in related.iter().filter(|pod| pod.is_active()) {
        *on_node.entry(pod.node.as_str()).or_default() += 1;
    }
    let rank = |pod: &Facts| on_node.get(pod.node.as_str()).copied().unwrap_or(0);
    let mut pods = active.to_vec();
    pods.sort_by(|a, b| deletion_cmp(a, rank(a), b, rank(b), now));
    pods
}

fn deletion_cmp(a: &Facts, rank_a: usize, b: &Facts, rank_b: usize, now: Timestamp) -> Ordering {
    let assigned = |pod: &Facts| !pod.node.is_empty();
    let phase = |pod: &Facts| match pod.phase.as_str() {
        "Unknown" => 1,
        "Running" => 2,
        _ => 0,
    };
    let ready_since = |pod: &Facts| pod.ready.then(|| age(pod.ready_since(), now));
    assigned(a)
        .cmp(&assigned(b))
        .then(phase(a).cmp(&phase(b)))
        .then(a.ready.cmp(&b.ready))
        .then_with(|| a.deletion_cost.cmp(&b.deletion_cost))
        .then(rank_b.cmp(&rank_a))
        .then_with(|| ready_since(a).cmp(&ready_since(b)))
        .then_with(|| b.restarts.cmp(&a.restarts))
        .then_with(|| age(a.created(), now).cmp(&age(b.created(), now)))
        // Spreads removals over Pods of about the same age. Upstream lets the uid decide at the first
        // of the two ages, but not where that is equal to the second, which is no order of three.
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
        .then_with(|| a.metadata.name.cmp(&b.metadata.name))
}

/// The power of two of an age: the younger Pod goes first, where these differ. Of an unknown time is
/// what just began.
fn age(since: Option<Timestamp>, now: Timestamp) -> Option<i64> {
    since.map(|at| match now.as_nanosecond() - at.as_nanosecond() {
        age if age > 0 => i64::from(age.ilog2()),
        _ => -1,
    })
}

/// Why Pods could not be made or removed in this pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub creating: bool,
    pub message: String,
}

/// The status the set should show.
pub(crate) fn status(
    set: &ReplicaSet,
    active: &[Arc<Facts>],
    terminating: usize,
    failure: Option<&Failure>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let empty = BTreeMap::new();
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let wanted = template.and_then(|t| t.metadata.as_ref()?.labels.as_ref()).unwrap_or(&empty);
    let labeled = |pod: &Facts| {
        let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
        wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let count = |keep: &dyn Fn(&Facts) -> bool| active.iter().filter(|pod| keep(pod)).count() as i32;
    let seconds = min_ready_seconds(set);
    let old = set.status.clone().unwrap_or_default();
    ReplicaSetStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: non_zero(count(&labeled)),
        ready_replicas: non_zero(count(&|pod| pod.ready)),
        available_replicas: non_zero(count(&|pod| pod.is_available(seconds, now))),
        terminating_replicas: Some(terminating as i32),
        observed_generation: set.metadata.generation,
        conditions: conditions(old.conditions, failure, now),
    }
}

/// Go's `omitempty`: an absent counter reads as zero.
fn non_zero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

fn conditions(
    old: Option<Vec<ReplicaSetCondition>>,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = old.unwrap_or_default();
    let exists = conditions.iter().any(|condition| condition.type_ == "ReplicaFailure");
    match failure {
        Some(failure) if !exists => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(if failure.creating { "FailedCreate" } else { "FailedDelete" }.into()),
            message: Some(failure.message.clone()),
            last_transition_time: Some(Time(now)),
        }),
        None => conditions.retain(|condition| condition.type_ != "ReplicaFailure"),
        Some(_) => {}
    }
    (!conditions.is_empty()).then_some(conditions)
}

/// Whether two statuses say the same, zero and absent counters being equal.
pub(crate) fn same_status(a: &ReplicaSetStatus, b: &ReplicaSetStatus) -> bool {
    let zero = |n: Option<i32>| n.unwrap_or(0);
    a.replicas == b.replicas
        && zero(a.fully_labeled_replicas) == zero(b.fully_labeled_replicas)
        && zero(a.ready_replicas) == zero(b.ready_replicas)
        && zero(a.available_replicas) == zero(b.available_replicas)
        && a.terminating_replicas == b.terminating_replicas
        && a.observed_generation.unwrap_or(0) == b.observed_generation.unwrap_or(0)
        && a.conditions.as_deref().unwrap_or_default() == b.conditions.as_deref().unwrap_or_default()
}

/// When the next ready Pod becomes available, if `minReadySeconds` makes one wait.
pub(crate) fn wake_after(set: &ReplicaSet, active: &[Arc<Facts>], now: Timestamp) -> Option<Duration> {
    let seconds = min_ready_seconds(set);
    let next = active.iter().filter_map(|pod| pod.available_at(seconds)).filter(|at| *at > now).min()?;
    now.duration_until(next).try_into().ok()
}

/// The Pod a set creates: its template, a generated name and a controller reference.
pub(crate) fn new_pod(set: &ReplicaSet, api_version: &str, kind: &str) -> Pod {
    let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    let name = set.metadata.name.as_deref().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner::controller_reference(api_version, kind, &set.metadata)]),
            ..Default::default()
        },
        spec: Some(template.spec.unwrap_or_default()),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    fn pod(name: &str, change: Value) -> Arc<Facts> {
        let mut pod = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"}]},
        });
        merge(&mut pod, change);
        Arc::new(Facts::of(&serde_json::from_value(pod).unwrap()))
    }

    fn merge(into: &mut Value, change: Value) {
        match (into, change) {
            (Value::Object(into), Value::Object(change)) => {
                for (key, value) in change {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, change) => *into = change,
        }
    }

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "uid": "rs", "namespace": "default", "generation": 2},
            "spec": {"replicas": replicas, "selector": {}, "template": {
                "metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
        }))
        .unwrap()
    }

    #[test]
    fn removes_what_serves_least_first() {
        let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        let cost =
            |n: &str| json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": n}}});
        let want = [
            pod("unassigned", json!({"spec": {"nodeName": null}})),
            pod("pending", json!({"status": {"phase": "Pending"}})),
            pod("unknown", json!({"status": {"phase": "Unknown"}})),
            pod("not-ready", not_ready),
            pod("cheap", cost("-5")),
            pod("crowded", json!({"spec": {"nodeName": "full"}})),
            pod(
                "ready-late",
                json!({"status": {"conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:59:00Z"}]}}),
            ),
            pod(
                "restarted",
                json!({"status": {"containerStatuses": [
                {"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 3}]}}),
            ),
            pod("young", json!({"metadata": {"creationTimestamp": "2026-01-01T00:50:00Z"}})),
            pod("old", json!({})),
            pod("dear", cost("5")),
        ];
        let mut related = want.to_vec();
        related.extend((0..20).map(|n| pod(&format!("s{n}"), json!({"spec": {"nodeName": "full"}}))));
        let names =
            |pods: &[Arc<Facts>]| pods.iter().map(|p| p.metadata.name.clone().unwrap()).collect::<Vec<_>>();
        for shift in 0..want.len() {
            let mut shuffled = want.to_vec();
            shuffled.rotate_left(shift);
            shuffled.reverse();
            assert_eq!(names(&deletion_order(&shuffled, &related, now())), names(&want));
        }
    }

    /// Times are of whole seconds: some are equal, most are of one power of two.
    #[test]
    fn pods_of_about_the_same_age_have_one_order() {
        let pods: Vec<_> = (0..24)
            .map(|n| {
                let at = format!("2026-01-01T00:30:0{}Z", n % 3);
                pod(&format!("p{n}"), json!({
                    "metadata": {"uid": format!("u{}", n * 7 % 24), "creationTimestamp": at},
                    "status": {
                        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at}],
                        "containerStatuses": [
                            {"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": n % 2}],
                    },
                }))
            })
            .collect();
        let before = |a: &Facts, b: &Facts| deletion_cmp(a, 0, b, 0, now()).is_le();
        for a in &pods {
            for b in pods.iter().filter(|b| before(a, b)) {
                for c in pods.iter().filter(|c| before(b, c)) {
                    assert!(before(a, c), "{:?} {:?} {:?}", a.metadata, b.metadata, c.metadata);
                }
            }
        }
    }

    #[test]
    fn makes_and_removes_the_difference_up_to_the_burst() {
        let have: Vec<_> = (0..3).map(|n| pod(&n.to_string(), json!({}))).collect();
        assert_eq!(plan(&set(5), &have, &have, now()).create, 2);
        assert_eq!(plan(&set(1), &have, &have, now()).delete.len(), 2);
        assert_eq!(plan(&set(3), &have, &have, now()).create, 0);
        assert_eq!(plan(&set(5000), &have, &have, now()).create, 500, "upstream's burst");
        let mut gone = set(5);
        gone.metadata.deletion_timestamp = Some(Time(now()));
        assert_eq!(plan(&gone, &have, &have, now()).create, 0);
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let mut set = set(1);
        set.spec.as_mut().unwrap().min_ready_seconds = Some(3595);
        let pods = [pod("a", json!({"metadata": {"labels": {"app": "web"}}}))];
        let status = status(&set, &pods, 2, None, now());
        assert_eq!((status.ready_replicas, status.available_replicas), (Some(1), None));
        assert_eq!((status.fully_labeled_replicas, status.terminating_replicas), (Some(1), Some(2)));
        assert_eq!(status.observed_generation, Some(2));
        assert_eq!(wake_after(&set, &pods, now()), Some(Duration::from_secs(5)));
        let later = now() + jiff::SignedDuration::from_secs(5);
        assert_eq!(super::status(&set, &pods, 0, None, later).available_replicas, Some(1));
        assert_eq!(wake_after(&set, &pods, later), None);
    }

    #[test]
    fn a_failure_shows_until_a_pass_succeeds() {
        let mut set = set(1);
        let failure = Failure { creating: true, message: "no quota".into() };
        let failed = status(&set, &[], 0, Some(&failure), now());
        let condition = &failed.conditions.as_ref().unwrap()[0];
        assert_eq!(
            (condition.type_.as_str(), condition.reason.as_deref()),
            ("ReplicaFailure", Some("FailedCreate"))
        );
        set.status = Some(failed.clone());
        assert!(same_status(&failed, &status(&set, &[], 0, Some(&failure), now())));
        assert_eq!(status(&set, &[], 0, None, now()).conditions, None);
    }

    #[test]
    fn a_pod_carries_the_template_and_its_controller() {
        let pod = new_pod(&set(1), "apps/v1", "ReplicaSet");
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-"));
        assert_eq!(owner::controller_of(&pod.metadata).unwrap().uid, "rs");
        assert_eq!(pod.metadata.labels.unwrap()["app"], "web");
    }
}
