//! Workloads that upstream keeps apart from Deployments: StatefulSet, DaemonSet,
//! ReplicationController; and PodTemplate.

use super::apps::{self, amount, at_most_all, count_or_percent};
use super::at::{At, Errors, same};
use super::{affinity, pod, volume_claim, warnings};
use crate::field::FieldError;
use crate::kinds::Strategy;
use crate::selector::LabelSelector;
use crate::{meta, names};
use serde_json::Value;

pub(super) fn stateful_set_strategy() -> Strategy {
    Strategy {
        validate: stateful_set,
        validate_create: stateful_set_create,
        validate_update: stateful_set_update,
        validate_status: stateful_set_status,
        warnings: warnings::for_workload,
        ..Strategy::default()
    }
}

pub(super) fn daemon_set_strategy() -> Strategy {
    Strategy {
        validate: daemon_set,
        validate_update: apps::selector_stays,
        validate_status: daemon_set_status,
        prepare_create: |object| meta::set_annotation(object, TEMPLATE_GENERATION, "1"),
        prepare_update: count_templates,
        warnings: warnings::for_workload,
        ..Strategy::default()
    }
}

pub(super) fn replication_controller_strategy() -> Strategy {
    Strategy {
        validate: replication_controller,
        validate_status: apps::replica_set_status,
        warnings: warnings::for_workload,
        selectable: |value| vec![("status.replicas", super::number(value, &["status", "replicas"]))],
        selectable_keys: &["status.replicas"],
        ..Strategy::default()
    }
}

pub(super) fn pod_template_strategy() -> Strategy {
    Strategy { validate: pod_template, warnings: warnings::for_pod_template, ..Strategy::default() }
}

fn stateful_set(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    match spec.str("podManagementPolicy") {
        "OrderedReady" | "Parallel" => {}
        "" => errors.required(spec.at("podManagementPolicy"), ""),
        other => {
            errors.invalid(spec.at("podManagementPolicy"), other, "must be 'OrderedReady' or 'Parallel'")
        }
    }
    let strategy = spec.child("updateStrategy");
    match strategy.str("type") {
        "" => errors.required(strategy.path.clone(), ""),
        "OnDelete" => {
            if let Some(rolling) = strategy.get("rollingUpdate") {
                let why = "only allowed for updateStrategy 'RollingUpdate'";
                errors.invalid(rolling.path, rolling.value.clone(), why);
            }
        }
        "RollingUpdate" => {
            if let Some(rolling) = strategy.get("rollingUpdate") {
                errors.not_negative(&rolling, &["partition"]);
                count_or_percent(&rolling, "maxUnavailable", &mut errors);
                at_most_all(&rolling, "maxUnavailable", &mut errors);
                if rolling.has("maxUnavailable") && amount(&rolling, "maxUnavailable") == 0 {
                    let value = rolling.child("maxUnavailable").value.clone();
                    errors.invalid(rolling.at("maxUnavailable"), value, "cannot be 0");
                }
            }
        }
        _ => {
            let why = "must be 'RollingUpdate' or 'OnDelete'";
            errors.invalid(strategy.path.clone(), strategy.value.clone(), why);
        }
    }
    if let Some(policy) = spec.get("persistentVolumeClaimRetentionPolicy") {
        for field in ["whenDeleted", "whenScaled"] {
            let value = policy.str(field);
            if !matches!(value, "Retain" | "Delete") {
                errors.not_supported(policy.at(field), value, &["Retain", "Delete"]);
            }
        }
    }
    if let Some(ordinals) = spec.get("ordinals") {
        errors.not_negative(&ordinals, &["start"]);
    }
    apps::workload(&spec, "statefulset", "StatefulSet", &mut errors);
    for claim in spec.items("volumeClaimTemplates") {
        volume_claim::spec(&claim.child("spec"), &mut errors);
    }
    errors.not_negative(&spec, &["revisionHistoryLimit"]);
    errors.0
}

fn stateful_set_create(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    errors.checked(&root.child("spec"), "serviceName", names::is_dns1035_label);
    errors.0
}

/// What of a StatefulSet may change.
const STATEFUL_SET_MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

fn stateful_set_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let rest = |object: &Value| {
        let mut spec = object.get("spec").cloned().unwrap_or_default();
        if let Some(fields) = spec.as_object_mut() {
            fields.retain(|field, _| !STATEFUL_SET_MUTABLE.contains(&field.as_str()));
        }
        spec
    };
    if !same(Some(&rest(new)), Some(&rest(old))) {
        errors.forbidden(
            At::root(new).at("spec"),
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
    errors.0
}

fn stateful_set_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(new), Errors::default());
    let status = root.child("status");
    let parts = ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
    errors.not_negative(&status, &["replicas", "observedGeneration", "collisionCount"]);
    errors.not_negative(&status, &parts);
    let count = |field: &str| status.int(field).unwrap_or(0);
    for part in parts.iter().filter(|part| count(part) > count("replicas")) {
        errors.invalid(status.at(part), count(part), "cannot be greater than status.replicas");
    }
    if count("availableReplicas") > count("readyReplicas") {
        let why = "cannot be greater than status.readyReplicas";
        errors.invalid(status.at("availableReplicas"), count("availableReplicas"), why);
    }
    apps::collisions_stay(&status, old, &mut errors);
    errors.0
}

fn daemon_set(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    let selector = spec.get("selector");
    affinity::label_selector(selector.clone(), &mut errors);
    if let Some(at) = &selector
        && at.entries("matchLabels").next().is_none()
        && at.list("matchExpressions").is_empty()
    {
        errors.invalid(at.path.clone(), at.value.clone(), "empty selector is invalid for daemonset");
    }
    // Without a selector no Pod is chosen, those of the template neither.
    let parsed = LabelSelector::from_object(selector.map(|at| at.value)).ok();
    apps::template(&spec, parsed, "DaemonSet", &mut errors);
    errors.not_negative(&spec, &["minReadySeconds"]);
    let strategy = spec.child("updateStrategy");
    match strategy.str("type") {
        "OnDelete" => {}
        "RollingUpdate" => match strategy.get("rollingUpdate") {
            Some(rolling) => rolling_daemons(&rolling, &mut errors),
            None => errors.required(strategy.at("rollingUpdate"), ""),
        },
        _ => errors.not_supported(
            strategy.path.clone(),
            strategy.value.clone(),
            &["RollingUpdate", "OnDelete"],
        ),
    }
    errors.not_negative(&spec, &["revisionHistoryLimit"]);
    errors.0
}

fn rolling_daemons(at: &At<'_>, errors: &mut Errors) {
    for field in ["maxUnavailable", "maxSurge"] {
        count_or_percent(at, field, errors);
        at_most_all(at, field, errors);
    }
    match (amount(at, "maxUnavailable"), amount(at, "maxSurge")) {
        (0, 0) => errors.required(at.at("maxUnavailable"), "cannot be 0 when maxSurge is 0"),
        (0, _) | (_, 0) => {}
        _ => {
            let surge = at.child("maxSurge").value.clone();
            errors.invalid(at.at("maxSurge"), surge, "may not be set when maxUnavailable is non-zero");
        }
    }
}

fn daemon_set_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(new), Errors::default());
    let status = root.child("status");
    errors.not_negative(
        &status,
        &[
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ],
    );
    apps::collisions_stay(&status, old, &mut errors);
    errors.0
}

/// Where `apps/v1` shows how often the template of a DaemonSet changed.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn count_templates(new: &mut Value, old: &Value) {
    let had: i64 = meta::annotation(old, TEMPLATE_GENERATION).and_then(|n| n.parse().ok()).unwrap_or(0);
    let template = |object: &Value| object.pointer("/spec/template").cloned();
    let count = had + i64::from(!same(template(new).as_ref(), template(old).as_ref()));
    meta::set_annotation(new, TEMPLATE_GENERATION, &count.to_string());
}

fn replication_controller(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    errors.not_negative(&spec, &["minReadySeconds", "replicas"]);
    let labels = || spec.entries("selector").map(|(key, value)| (key.as_str(), value.as_str().unwrap_or("")));
    if labels().next().is_none() {
        errors.required(spec.at("selector"), "");
    }
    if spec.has("template") {
        let selector = Some(LabelSelector::from_labels(labels()));
        apps::template(&spec, selector, "ReplicationController", &mut errors);
    } else {
        errors.required(spec.at("template"), "");
    }
    errors.0
}

fn pod_template(value: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    pod::template(&At::root(value).child("template"), &mut errors);
    errors.0
}
