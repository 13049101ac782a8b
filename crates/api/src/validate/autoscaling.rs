//! HorizontalPodAutoscalers. Rules are of `autoscaling/v2`; objects of `v1` are converted first,
//! so that paths are upstream's.

use super::affinity;
use super::at::{At, Errors};
use crate::autoscaling::to_v2;
use crate::field::FieldError;
use crate::kinds::Strategy;
use crate::names;
use serde_json::Value;

const STABILIZATION_MAX_S: i64 = 3600;
const PERIOD_MAX_S: i64 = 1800;

pub(super) fn strategy(version: &str) -> Strategy {
    match version {
        "v1" => Strategy {
            validate: |value| validate(&to_v2(value.clone())),
            validate_status: |new, _| status(&to_v2(new.clone())),
            ..Strategy::default()
        },
        _ => Strategy { validate, validate_status: |new, _| status(new), ..Strategy::default() },
    }
}

fn status(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    errors.not_negative(&root.child("status"), &["currentReplicas", "desiredReplicas"]);
    errors.0
}

fn validate(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    let (min, max) = (spec.int("minReplicas"), spec.int("maxReplicas").unwrap_or(0));
    if let Some(min) = min.filter(|min| *min < 1) {
        errors.invalid(spec.at("minReplicas"), min, "must be greater than or equal to 1");
    }
    if max < 1 {
        errors.invalid(spec.at("maxReplicas"), max, "must be greater than 0");
    }
    if min.is_some_and(|min| max < min) {
        errors.invalid(spec.at("maxReplicas"), max, "must be greater than or equal to `minReplicas`");
    }
    reference(&spec.child("scaleTargetRef"), &mut errors);
    spec.items("metrics").for_each(|at| metric(&at, &mut errors));
    let behavior = spec.child("behavior");
    for direction in ["scaleUp", "scaleDown"] {
        if let Some(rules) = behavior.get(direction) {
            scaling_rules(&rules, &mut errors);
        }
    }
    errors.0
}

fn reference(at: &At<'_>, errors: &mut Errors) {
    for field in ["kind", "name"] {
        if errors.need(at, field) {
            errors.checked(at, field, names::is_path_segment_name);
        }
    }
}

/// Types of metrics, and the fields of their sources.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

fn metric(at: &At<'_>, errors: &mut Errors) {
    let kind = at.str("type");
    if kind.is_empty() {
        errors.required(at.at("type"), "must specify a metric source type");
        return;
    }
    let Some((_, own)) = SOURCES.iter().find(|(known, _)| *known == kind) else {
        errors.not_supported(at.at("type"), kind, &SOURCES.map(|(kind, _)| kind));
        return;
    };
    for (_, other) in SOURCES.iter().filter(|(_, other)| other != own && at.has(other)) {
        errors.forbidden(at.at(other), "must populate the given metric source only");
    }
    let Some(source) = at.get(own) else {
        errors.required(at.at(own), "must populate information for the given metric source");
        return;
    };
    let target = source.child("target");
    match kind {
        "Resource" | "ContainerResource" => {
            if source.str("name").is_empty() {
                errors.required(source.at("name"), "must specify a resource name");
            }
            if kind == "ContainerResource" && source.str("container").is_empty() {
                errors.required(source.at("container"), "must specify a container");
            }
        }
        _ => identifier(&source.child("metric"), errors),
    }
    if kind == "Object" {
        reference(&source.child("describedObject"), errors);
    }
    metric_target(&target, errors);
    let (value, average) = (target.has("value"), target.quantity("averageValue"));
    match kind {
        "Resource" | "ContainerResource" => match (target.has("averageUtilization"), average) {
            (false, None) => {
                let why = "must set either a target raw value or a target utilization";
                errors.required(target.at("averageUtilization"), why);
            }
            (true, Some(_)) => {
                let why = "may not set both a target raw value and a target utilization";
                errors.forbidden(target.at("averageValue"), why);
            }
            _ => {}
        },
        "Pods" if average.is_none_or(|average| average.sign() <= 0) => {
            errors.required(target.at("averageValue"), "must specify a positive target averageValue");
        }
        "Object" if !value && average.is_none() => {
            errors.required(target.at("averageValue"), "must set either a target value or averageValue");
        }
        "External" if !value && average.is_none() => {
            let why = "must set either a target value for metric or a per-pod target";
            errors.required(target.at("averageValue"), why);
        }
        "External" if value && average.is_some() => {
            let why = "may not set both a target value for metric and a per-pod target";
            errors.forbidden(target.at("value"), why);
        }
        _ => {}
    }
}

fn identifier(at: &At<'_>, errors: &mut Errors) {
    match at.str("name") {
        "" => errors.required(at.at("name"), "must specify a metric name"),
        name => errors.each(&at.at("name"), name, names::is_path_segment_name(name)),
    }
    affinity::label_selector(at.get("selector"), errors);
}

fn metric_target(at: &At<'_>, errors: &mut Errors) {
    match at.str("type") {
        "Utilization" | "Value" | "AverageValue" => {}
        "" => errors.required(at.at("type"), "must specify a metric target type"),
        other => errors.invalid(at.at("type"), other, "must be either Utilization, Value, or AverageValue"),
    }
    for field in ["value", "averageValue"] {
        if let Some(amount) = at.quantity(field).filter(|amount| amount.sign() <= 0) {
            errors.invalid(at.at(field), amount.to_string(), "must be positive");
        }
    }
    if let Some(percent) = at.int("averageUtilization").filter(|percent| *percent < 1) {
        errors.invalid(at.at("averageUtilization"), percent, "must be greater than 0");
    }
}

fn scaling_rules(at: &At<'_>, errors: &mut Errors) {
    match at.int("stabilizationWindowSeconds") {
        Some(seconds) if seconds < 0 => {
            let why = "must be greater than or equal to zero";
            errors.invalid(at.at("stabilizationWindowSeconds"), seconds, why);
        }
        Some(seconds) if seconds > STABILIZATION_MAX_S => {
            let why = format!("must be less than or equal to {STABILIZATION_MAX_S}");
            errors.invalid(at.at("stabilizationWindowSeconds"), seconds, why);
        }
        _ => {}
    }
    errors.optional_one_of(at, "selectPolicy", &["Disabled", "Max", "Min"]);
    if at.list("policies").is_empty() {
        errors.required(at.at("policies"), "must specify at least one Policy");
    }
    if let Some(tolerance) = at.quantity("tolerance").filter(|tolerance| tolerance.sign() < 0) {
        errors.invalid(at.at("tolerance"), tolerance.to_string(), "must be greater or equal to zero");
    }
    for policy in at.items("policies") {
        if !matches!(policy.str("type"), "Pods" | "Percent") {
            errors.not_supported(policy.at("type"), policy.str("type"), &["Percent", "Pods"]);
        }
        for field in ["value", "periodSeconds"] {
            let number = policy.int(field).unwrap_or(0);
            if number <= 0 {
                errors.invalid(policy.at(field), number, "must be greater than zero");
            }
        }
        if let Some(seconds) = policy.int("periodSeconds").filter(|seconds| *seconds > PERIOD_MAX_S) {
            let why = format!("must be less than or equal to {PERIOD_MAX_S}");
            errors.invalid(policy.at("periodSeconds"), seconds, why);
        }
    }
}
