//! Workloads: Deployment, ReplicaSet, ControllerRevision; and Scale.

use super::at::{At, Errors, NOT_NEGATIVE};
use super::{affinity, pod};
use crate::field::FieldError;
use crate::intstr;
use crate::names;
use crate::selector::LabelSelector;
use serde_json::Value;

/// Replicas, selector and template, as all workloads have them. `empty` is the kind as the message
/// about an empty selector calls it, `what` as the one about a deadline does.
pub(super) fn workload(spec: &At<'_>, empty: &str, what: &str, errors: &mut Errors) {
    errors.not_negative(spec, &["replicas", "minReadySeconds"]);
    let Some(selector) = spec.get("selector") else {
        errors.required(spec.at("selector"), "");
        template(spec, None, what, errors);
        return;
    };
    affinity::label_selector(Some(selector.clone()), errors);
    let is_empty =
        selector.entries("matchLabels").next().is_none() && selector.list("matchExpressions").is_empty();
    if is_empty {
        errors.invalid(
            selector.path.clone(),
            selector.value.clone(),
            format!("empty selector is invalid for {empty}"),
        );
    }
    match LabelSelector::from_object(Some(selector.value)) {
        Ok(parsed) => template(spec, Some(parsed), what, errors),
        Err(_) => errors.invalid(selector.path, selector.value.clone(), "invalid label selector"),
    }
}

/// The template of Pods that are always started anew, and that `selector` has to choose.
pub(super) fn template(spec: &At<'_>, selector: Option<LabelSelector>, what: &str, errors: &mut Errors) {
    let at = spec.child("template");
    if let Some(selector) = selector.filter(|s| !s.is_everything())
        && !selector.matches(at.value)
    {
        let labels = at.child("metadata").value.get("labels").cloned().unwrap_or_default();
        let path = at.at("metadata").child("labels");
        errors.invalid(path, labels, "`selector` does not match template `labels`");
    }
    pod::template(&at, errors);
    let pod_spec = at.child("spec");
    let policy = pod_spec.str("restartPolicy");
    if policy != "Always" {
        errors.not_supported(pod_spec.at("restartPolicy"), policy, &["Always"]);
    }
    if pod_spec.has("activeDeadlineSeconds") {
        let why = format!("activeDeadlineSeconds in {what} is not Supported");
        errors.forbidden(pod_spec.at("activeDeadlineSeconds"), why);
    }
}

pub(super) fn deployment(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    workload(&spec, "deployment", "ReplicaSet", &mut errors);
    let strategy = spec.child("strategy");
    match strategy.str("type") {
        "Recreate" if strategy.has("rollingUpdate") => {
            errors.forbidden(
                strategy.at("rollingUpdate"),
                "may not be specified when strategy `type` is 'Recreate'",
            );
        }
        "Recreate" => {}
        "RollingUpdate" => match strategy.get("rollingUpdate") {
            Some(rolling) => rolling_update(&rolling, &mut errors),
            None => {
                errors.required(strategy.at("rollingUpdate"), "this should be defaulted and never be nil")
            }
        },
        _ => errors.not_supported(
            strategy.path.clone(),
            strategy.value.clone(),
            &["Recreate", "RollingUpdate"],
        ),
    }
    errors.not_negative(&spec, &["revisionHistoryLimit", "progressDeadlineSeconds"]);
    if let Some(deadline) = spec.int("progressDeadlineSeconds")
        && deadline <= spec.int("minReadySeconds").unwrap_or(0)
    {
        errors.invalid(spec.at("progressDeadlineSeconds"), deadline, "must be greater than minReadySeconds");
    }
    errors.0
}

fn rolling_update(at: &At<'_>, errors: &mut Errors) {
    for field in ["maxUnavailable", "maxSurge"] {
        count_or_percent(at, field, errors);
    }
    let amount = |field: &str| amount(at, field);
    let unavailable = || at.value.get("maxUnavailable").cloned().unwrap_or_default();
    if amount("maxUnavailable") == 0 && amount("maxSurge") == 0 {
        errors.invalid(at.at("maxUnavailable"), unavailable(), "may not be 0 when `maxSurge` is 0");
    }
    at_most_all(at, "maxUnavailable", errors);
}

/// A number that is not negative, or a percentage.
pub(super) fn count_or_percent(at: &At<'_>, field: &str, errors: &mut Errors) {
    match at.value.get(field) {
        Some(Value::String(text)) => errors.each(&at.at(field), text, names::is_percent(text)),
        Some(Value::Number(n)) if n.as_i64().is_some_and(|n| n < 0) => {
            errors.invalid(at.at(field), Value::Number(n.clone()), NOT_NEGATIVE);
        }
        _ => {}
    }
}

/// The number in a field that may be a percentage.
pub(super) fn amount(at: &At<'_>, field: &str) -> i64 {
    match at.value.get(field) {
        Some(Value::String(text)) => intstr::percent(text).map_or(0, i64::from),
        Some(value) => value.as_i64().unwrap_or(0),
        None => 0,
    }
}

/// A percentage must not exceed 100%.
pub(super) fn at_most_all(at: &At<'_>, field: &str, errors: &mut Errors) {
    if at.str(field).ends_with('%') && amount(at, field) > 100 {
        errors.invalid(at.at(field), at.str(field), "must not be greater than 100%");
    }
}

pub(super) fn replica_set(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    workload(&root.child("spec"), "deployment", "ReplicaSet", &mut errors);
    errors.0
}

pub(super) fn selector_stays(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.immutable(&At::root(new).child("spec"), &At::root(old).child("spec"), "selector");
    errors.0
}

const TOO_MANY: &str = "cannot be greater than status.replicas";

/// Counts of ready and available Pods cannot exceed all there are.
pub(super) fn counts(status: &At<'_>, parts: &[&str], errors: &mut Errors) {
    let count = |field: &str| status.int(field).unwrap_or(0);
    for part in parts {
        if count(part) > count("replicas") {
            errors.invalid(status.at(part), count(part), TOO_MANY);
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        let available = count("availableReplicas");
        errors.invalid(status.at("availableReplicas"), available, "cannot be greater than readyReplicas");
    }
}

pub(super) fn deployment_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(new), Errors::default());
    let status = root.child("status");
    errors.not_negative(
        &status,
        &[
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        ],
    );
    counts(&status, &["updatedReplicas", "readyReplicas", "availableReplicas"], &mut errors);
    collisions_stay(&status, old, &mut errors);
    errors.0
}

/// Collisions of hashes are counted, never forgotten.
pub(super) fn collisions_stay(status: &At<'_>, old: &Value, errors: &mut Errors) {
    let (now, had) = (status.int("collisionCount"), At::root(old).child("status").int("collisionCount"));
    if had.is_some_and(|had| now.is_none_or(|now| now < had)) {
        let value = now.map_or(Value::Null, Value::from);
        errors.invalid(status.at("collisionCount"), value, "cannot be decremented");
    }
}

pub(super) fn replica_set_status(new: &Value, _: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(new), Errors::default());
    let status = root.child("status");
    errors.not_negative(
        &status,
        &[
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "terminatingReplicas",
            "observedGeneration",
        ],
    );
    counts(&status, &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"], &mut errors);
    errors.0
}

pub(super) fn controller_revision(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    if !root.has("data") {
        errors.required(root.at("data"), "data is mandatory");
    }
    errors.not_negative(&root, &["revision"]);
    errors.0
}

pub(super) fn controller_revision_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.immutable(&At::root(new), &At::root(old), "data");
    errors.0
}

pub(super) fn scale(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    errors.not_negative(&root.child("spec"), &["replicas"]);
    errors.0
}
