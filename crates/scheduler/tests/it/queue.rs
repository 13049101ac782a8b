//! The queue: order, back-off and what wakes a Pod.

use crate::cluster::{asking, candidate, cluster, node};
use serde_json::{Value, json};
use skeg_scheduler::{Event, Queue, Snapshot};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

fn pop(queue: &mut Queue, now: Instant) -> Option<String> {
    queue.pop(now).map(|candidate| candidate.info.key.name.to_string())
}

fn with_priority(name: &str, priority: i32) -> skeg_scheduler::Candidate {
    candidate(name, json!({"spec": {"priority": priority}}))
}

#[test]
fn by_priority_then_by_age() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
        queue.set(with_priority(name, priority), now);
    }
    queue.remove("uid-c");
    let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue, now)).collect();
    assert_eq!(order, ["b", "d", "a"]);
}

#[test]
fn gated_pods_wait_for_their_gates() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    queue.set(candidate("a", json!({"spec": {"schedulingGates": [{"name": "example.com/wait"}]}})), now);
    assert_eq!(pop(&mut queue, now), None);
    queue.set(candidate("a", json!({"spec": {"schedulingGates": []}})), now);
    assert_eq!(pop(&mut queue, now).as_deref(), Some("a"));
}

#[test]
fn our_own_failures_back_off() {
    let (mut queue, mut now) = (Queue::default(), Instant::now());
    queue.set(with_priority("a", 0), now);
    for wait in [1, 2, 4, 8, 10, 10] {
        assert_eq!(pop(&mut queue, now).as_deref(), Some("a"));
        queue.failed("uid-a", now);
        assert_eq!(queue.next_due(), Some(now + Duration::from_secs(wait)));
        assert_eq!(pop(&mut queue, now + Duration::from_millis(wait * 1000 - 1)), None);
        now += Duration::from_secs(wait);
    }
}

#[test]
fn a_pod_that_waits_is_tried_again_after_five_minutes() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    queue.set(with_priority("a", 0), now);
    pop(&mut queue, now);
    queue.unschedulable("uid-a", BTreeSet::from(["NodeAffinity"]), now);
    let due = queue.next_due().unwrap();
    assert_eq!(due, now + Duration::from_secs(300));
    assert_eq!(pop(&mut queue, now + Duration::from_secs(299)), None);
    assert_eq!(pop(&mut queue, due).as_deref(), Some("a"));
}

#[test]
fn a_change_of_the_pod_itself_counts_its_status_does_not() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    queue.set(with_priority("a", 0), now);
    pop(&mut queue, now);
    queue.unschedulable("uid-a", BTreeSet::from(["TaintToleration"]), now);
    let mut patch = json!({"spec": {"priority": 0}, "status": {"conditions": [{"type": "PodScheduled", "status": "False"}]}});
    queue.set(candidate("a", patch.clone()), now);
    assert_eq!(pop(&mut queue, now), None);
    patch["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
    queue.set(candidate("a", patch), now);
    assert_eq!(pop(&mut queue, now).as_deref(), Some("a"));
}

/// Whether an event brings back a Pod with this spec that was turned down by `plugin`.
fn helps(event: Event<'_>, plugin: &'static str, spec: Value, snapshot: &Snapshot) -> bool {
    let (mut queue, now) = (Queue::default(), Instant::now());
    queue.set(candidate("a", json!({"spec": spec})), now);
    pop(&mut queue, now);
    queue.unschedulable("uid-a", BTreeSet::from([plugin]), now);
    queue.happened(event, snapshot, now);
    pop(&mut queue, now).is_some()
}

#[test]
fn events_wake_only_those_they_may_help() {
    let small = node("small", json!({"status": {"allocatable": {"cpu": "1"}}}));
    let snapshot = cluster(&[node("n", json!({})), small], &[]);
    let two_cpus = || json!({"containers": asking("2", "1Mi")});
    assert!(helps(Event::Node("n"), "NodeResourcesFit", two_cpus(), &snapshot));
    assert!(!helps(Event::Node("small"), "NodeResourcesFit", two_cpus(), &snapshot));
    assert!(!helps(Event::Node("gone"), "NodeResourcesFit", two_cpus(), &snapshot));
    assert!(helps(Event::PodGone { node: "n" }, "NodeResourcesFit", two_cpus(), &snapshot));
    assert!(!helps(Event::PodGone { node: "small" }, "NodeResourcesFit", two_cpus(), &snapshot));
    assert!(!helps(Event::PodGone { node: "n" }, "TaintToleration", two_cpus(), &snapshot));
    assert!(!helps(Event::PodCame, "NodeResourcesFit", two_cpus(), &snapshot));
    assert!(helps(Event::PodCame, "InterPodAffinity", two_cpus(), &snapshot));
    assert!(helps(Event::Namespace, "InterPodAffinity", two_cpus(), &snapshot));
}

#[test]
fn a_pod_in_back_off_is_tried_early_only_when_idle() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let snapshot = cluster(&[node("n", json!({}))], &[]);
    queue.set(with_priority("waits", 100), now);
    pop(&mut queue, now);
    queue.unschedulable("uid-waits", BTreeSet::from(["NodeResourcesFit"]), now);
    queue.happened(Event::Node("n"), &snapshot, now);
    queue.set(with_priority("new", 0), now);
    assert_eq!(pop(&mut queue, now).as_deref(), Some("new"));
    assert_eq!(pop(&mut queue, now).as_deref(), Some("waits"));
}

#[test]
fn a_pod_removed_in_flight_does_not_come_back() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    queue.set(with_priority("a", 0), now);
    pop(&mut queue, now);
    queue.remove("uid-a");
    queue.failed("uid-a", now);
    assert!(queue.is_empty());
    assert_eq!(queue.next_due(), None);
}
