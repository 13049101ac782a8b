//! The status and conditions of a Deployment. Pure.
//! Upstream counterparts: `progress.go`, `calculateStatus` in `sync.go`, `deployment_util.go`.

use super::rollout::{Limits, total};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::time::Duration;

pub(crate) const PROGRESSING: &str = "Progressing";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

pub(crate) fn condition<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

pub(crate) fn new_condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Sets a condition unless one of the same status and reason is there; the transition time moves
/// with the status only.
pub(crate) fn set_condition(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(old) = condition(status, &new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time.clone_from(&old.last_transition_time);
        }
    }
    remove_condition(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
}

pub(crate) fn remove_condition(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

/// The largest number means that there is no deadline.
pub(crate) fn progress_deadline(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds =
        deployment.spec.as_ref()?.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    Some(SignedDuration::from_secs(i64::from(seconds)))
}

/// Says that a rollout stopped or goes on, so that the time in between is not held against its
/// deadline.
pub(crate) fn with_pause(deployment: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    if progress_deadline(deployment).is_none() {
        return;
    }
    let reason = condition(status, PROGRESSING).and_then(|condition| condition.reason.clone());
    if reason.as_deref() == Some(TIMED_OUT) {
        return;
    }
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false);
    let (reason, message) = match (paused, reason.as_deref() == Some(PAUSED)) {
        (true, false) => (PAUSED, "Deployment is paused"),
        (false, true) => (RESUMED, "Deployment is resumed"),
        _ => return,
    };
    set_condition(status, new_condition(PROGRESSING, "Unknown", reason, message.to_owned(), now));
}

/// The counters, and whether the Deployment is available; other conditions are kept from `base`.
pub(crate) fn counted(
    deployment: &Deployment,
    base: &DeploymentStatus,
    sets: &[ReplicaSet],
    new_set: Option<&ReplicaSet>,
    limits: Limits,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |of: &dyn Fn(&ReplicaSet) -> i32| sets.iter().map(of).sum::<i32>();
    let available = sum(&available);
    let unavailable = (total(sets) - available).max(0);
    // Sets of an older server do not count terminating Pods; then neither does the Deployment.
    let terminating =
        sets.iter().map(|set| set.status.as_ref().map_or(Some(0), |status| status.terminating_replicas));
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: non_zero(sum(&actual)),
        updated_replicas: non_zero(new_set.map_or(0, actual)),
        ready_replicas: non_zero(sum(&|set| set.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0))),
        available_replicas: non_zero(available),
        unavailable_replicas: non_zero(unavailable),
        terminating_replicas: terminating.sum::<Option<i32>>(),
        collision_count: base.collision_count,
        conditions: base.conditions.clone(),
    };
    let (state, reason, message) = if available >= limits.replicas - limits.unavailable {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set_condition(&mut status, new_condition("Available", state, reason, message.to_owned(), now));
    status
}

pub(crate) fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

pub(crate) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

fn non_zero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// As [`counted`], with how the rollout fares. `base` is the status before this pass.
pub(crate) fn of_rollout(
    deployment: &Deployment,
    base: &DeploymentStatus,
    sets: &[ReplicaSet],
    new_set: Option<&ReplicaSet>,
    limits: Limits,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = counted(deployment, base, sets, new_set, limits, now);
    let deadline = progress_deadline(deployment);
    if deadline.is_none() {
        remove_condition(&mut status, PROGRESSING);
    }
    let current = condition(base, PROGRESSING).cloned();
    let was_complete = status.replicas == status.updated_replicas
        && current.as_ref().is_some_and(|current| current.reason.as_deref() == Some(NEW_SET_AVAILABLE));
    if let Some(deadline) = deadline.filter(|_| !was_complete) {
        let who = match new_set {
            Some(set) => format!("ReplicaSet \"{}\"", set.metadata.name.as_deref().unwrap_or_default()),
            None => format!("Deployment \"{}\"", deployment.metadata.name.as_deref().unwrap_or_default()),
        };
        if is_complete(deployment, &status, limits.replicas) {
            let message = format!("{who} has successfully progressed.");
            set_condition(&mut status, new_condition(PROGRESSING, "True", NEW_SET_AVAILABLE, message, now));
        } else if has_progressed(base, &status) {
            let mut new = new_condition(
                PROGRESSING,
                "True",
                "ReplicaSetUpdated",
                format!("{who} is progressing."),
                now,
            );
            // The update time tells of progress even where status and reason stay the same.
            if let Some(current) = current {
                if current.status == "True" {
                    new.last_transition_time = current.last_transition_time;
                }
                remove_condition(&mut status, PROGRESSING);
            }
            set_condition(&mut status, new);
        } else if has_timed_out(&status, deadline, now) {
            let message = format!("{who} has timed out progressing.");
            set_condition(&mut status, new_condition(PROGRESSING, "False", TIMED_OUT, message, now));
        }
    }
    match replica_failure(sets, new_set) {
        Some(failure) => set_condition(&mut status, failure),
        None => remove_condition(&mut status, "ReplicaFailure"),
    }
    status
}

pub(crate) fn is_complete(deployment: &Deployment, status: &DeploymentStatus, replicas: i32) -> bool {
    let is_all = |count: Option<i32>| count.unwrap_or(0) == replicas;
    is_all(status.updated_replicas)
        && is_all(status.replicas)
        && is_all(status.available_replicas)
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |count: Option<i32>| count.unwrap_or(0);
    let not_updated = |status: &DeploymentStatus| n(status.replicas) - n(status.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || not_updated(new) < not_updated(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn has_timed_out(status: &DeploymentStatus, deadline: SignedDuration, now: Timestamp) -> bool {
    let Some(progressing) = condition(status, PROGRESSING) else { return false };
    match progressing.reason.as_deref() {
        Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => progressing.last_update_time.as_ref().is_none_or(|from| now.duration_since(from.0) > deadline),
    }
}

/// When a rollout that stands still will have exceeded its deadline. Condition times are whole
/// seconds, so one more second makes sure that it has.
pub(crate) fn deadline_check_after(
    deployment: &Deployment,
    status: &DeploymentStatus,
    replicas: i32,
    now: Timestamp,
) -> Option<Duration> {
    let deadline = progress_deadline(deployment)?;
    let progressing = condition(status, PROGRESSING)?;
    if is_complete(deployment, status, replicas) || progressing.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    let from = progressing.last_update_time.as_ref()?.0;
    let left = (deadline - now.duration_since(from)).max(SignedDuration::ZERO);
    (left + SignedDuration::from_secs(1)).try_into().ok()
}

/// Why Pods cannot be made: the new set's reason, else that of any other.
fn replica_failure(sets: &[ReplicaSet], new_set: Option<&ReplicaSet>) -> Option<DeploymentCondition> {
    let failure = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        let failed = conditions.iter().find(|c| c.type_ == "ReplicaFailure" && c.status == "True")?.clone();
        Some(DeploymentCondition {
            type_: failed.type_,
            status: failed.status,
            reason: failed.reason,
            message: failed.message,
            last_update_time: failed.last_transition_time.clone(),
            last_transition_time: failed.last_transition_time,
        })
    };
    new_set.and_then(failure).or_else(|| sets.iter().find_map(failure))
}

/// Whether two statuses say the same, zero and absent counters being equal.
pub(crate) fn same(a: &DeploymentStatus, b: &DeploymentStatus) -> bool {
    let zero = |n: Option<i32>| n.unwrap_or(0);
    zero(a.replicas) == zero(b.replicas)
        && zero(a.updated_replicas) == zero(b.updated_replicas)
        && zero(a.ready_replicas) == zero(b.ready_replicas)
        && zero(a.available_replicas) == zero(b.available_replicas)
        && zero(a.unavailable_replicas) == zero(b.unavailable_replicas)
        && a.terminating_replicas == b.terminating_replicas
        && a.collision_count == b.collision_count
        && a.observed_generation.unwrap_or(0) == b.observed_generation.unwrap_or(0)
        && a.conditions.as_deref().unwrap_or_default() == b.conditions.as_deref().unwrap_or_default()
}
