//! PodDisruptionBudget, ResourceQuota, LimitRange.

use super::affinity;
use super::apps::{at_most_all, count_or_percent};
use super::at::{At, Errors};
use super::resources;
use crate::field::{FieldError, Path};
use crate::kinds::Strategy;
use crate::names;
use crate::quantity::Quantity;
use serde_json::Value;

pub(super) fn disruption_budget_strategy() -> Strategy {
    Strategy { validate: disruption_budget, validate_status: disruption_budget_status, ..Strategy::default() }
}

pub(super) fn quota_strategy() -> Strategy {
    Strategy {
        validate: quota,
        validate_update: quota_update,
        validate_status: quota_status,
        ..Strategy::default()
    }
}

pub(super) fn limit_range_strategy() -> Strategy {
    Strategy { validate: limit_range, ..Strategy::default() }
}

fn disruption_budget(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    if spec.has("minAvailable") && spec.has("maxUnavailable") {
        let why = "minAvailable and maxUnavailable cannot be both set";
        errors.invalid(spec.path.clone(), spec.value.clone(), why);
    }
    for field in ["minAvailable", "maxUnavailable"] {
        count_or_percent(&spec, field, &mut errors);
        at_most_all(&spec, field, &mut errors);
    }
    affinity::label_selector(spec.get("selector"), &mut errors);
    errors.optional_one_of(&spec, "unhealthyPodEvictionPolicy", &["AlwaysAllow", "IfHealthyBudget"]);
    errors.0
}

fn disruption_budget_status(new: &Value, _: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(new), Errors::default());
    let counts = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
    errors.not_negative(&root.child("status"), &counts);
    errors.0
}

/// Scopes that choose Pods, and those of them that leave nothing but Pods to count.
const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
const CONFLICTING: [(&str, &str); 2] = [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")];

fn quota(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    amounts(&spec, "hard", &mut errors);
    let hard: Vec<&str> = spec.entries("hard").map(|(name, _)| name.as_str()).collect();
    let scopes: Vec<&str> = spec.strings("scopes").collect();
    scopes_fit(&scopes, &hard, &spec.at("scopes"), &mut errors);
    if let Some(selector) = spec.get("scopeSelector") {
        scope_selector(&selector, &hard, &mut errors);
    }
    errors.0
}

fn amounts(holder: &At<'_>, list: &str, errors: &mut Errors) {
    for (name, value) in holder.entries(list) {
        let path = holder.at(list).key(name);
        resources::quota_name(name, &path, errors);
        resources::quantity(name, Quantity::from_value(value).unwrap_or_default(), &path, errors);
    }
}

fn scopes_fit(scopes: &[&str], hard: &[&str], path: &Path, errors: &mut Errors) {
    for scope in scopes {
        if !SCOPES.contains(scope) {
            errors.invalid(path.clone(), scopes, "unsupported scope");
            continue;
        }
        if hard.iter().any(|name| !counts_under(scope, name)) {
            errors.invalid(path.clone(), scopes, "unsupported scope applied to resource");
        }
    }
    if CONFLICTING.iter().any(|(a, b)| scopes.contains(a) && scopes.contains(b)) {
        errors.invalid(path.clone(), scopes, "conflicting scopes");
    }
}

/// Whether a resource can be counted for what a scope chooses.
fn counts_under(scope: &str, name: &str) -> bool {
    match scope {
        "BestEffort" => name == "pods",
        "VolumeAttributesClass" => {
            matches!(name, "persistentvolumeclaims" | "requests.storage") || name.contains(".storageclass.")
        }
        _ => {
            matches!(name, "pods" | "cpu" | "memory" | "ephemeral-storage")
                || ["requests.", "limits."]
                    .iter()
                    .any(|prefix| name.strip_prefix(prefix).is_some_and(|name| name != "storage"))
        }
    }
}

fn scope_selector(at: &At<'_>, hard: &[&str], errors: &mut Errors) {
    let mut names = Vec::new();
    let path = at.at("matchExpressions");
    for requirement in at.items("matchExpressions") {
        let (scope, operator) = (requirement.str("scopeName"), requirement.str("operator"));
        if !SCOPES.contains(&scope) {
            errors.invalid(path.child("scopeName"), scope, "unsupported scope");
        } else if hard.iter().any(|name| !counts_under(scope, name)) {
            errors.invalid(path.clone(), at.value.clone(), "unsupported scope applied to resource");
        }
        if !matches!(scope, "PriorityClass" | "VolumeAttributesClass") && operator != "Exists" {
            let why = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.invalid(path.child("operator"), operator, why);
        }
        match (operator, requirement.list("values").len()) {
            ("In" | "NotIn", 0) => errors.required(
                path.child("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            ("Exists" | "DoesNotExist", 1..) => {
                let values = requirement.list("values");
                let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.invalid(path.child("values"), values, why);
            }
            ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
            _ => errors.invalid(path.child("operator"), operator, "not a valid selector operator"),
        }
        names.push(scope);
    }
    if CONFLICTING.iter().any(|(a, b)| names.contains(a) && names.contains(b)) {
        errors.invalid(path, names, "conflicting scopes");
    }
}

fn quota_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (now, had, mut errors) =
        (At::root(new).child("spec"), At::root(old).child("spec"), Errors::default());
    let sorted = |at: &At<'_>| {
        let mut scopes: Vec<String> = at.strings("scopes").map(str::to_owned).collect();
        scopes.sort_unstable();
        scopes
    };
    if sorted(&now) != sorted(&had) {
        errors.invalid(now.at("scopes"), now.list("scopes"), names::FIELD_IMMUTABLE);
    }
    errors.0
}

fn quota_status(new: &Value, _: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(new), Errors::default());
    let status = root.child("status");
    amounts(&status, "hard", &mut errors);
    amounts(&status, "used", &mut errors);
    errors.0
}

const LIMITS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

fn limit_range(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let mut seen: Vec<&str> = Vec::new();
    for limit in root.child("spec").items("limits") {
        let kind = limit.str("type");
        if errors.need(&limit, "type") {
            errors.checked(&limit, "type", names::is_qualified_name);
            if !kind.contains('/') && !matches!(kind, "Container" | "Pod" | "PersistentVolumeClaim") {
                let why = "must be a standard limit type or fully qualified";
                errors.invalid(limit.at("type"), kind, why);
            }
        }
        if seen.contains(&kind) {
            errors.duplicate(limit.at("type"), kind);
        }
        seen.push(kind);
        limit_item(&limit, kind, &mut errors);
    }
    errors.0
}

fn limit_item(limit: &At<'_>, kind: &str, errors: &mut Errors) {
    for list in LIMITS {
        for (name, value) in limit.entries(list) {
            let path = limit.at(list).key(name);
            if kind == "Container" {
                resources::container_resource_name(name, &path, errors);
            } else {
                resources::resource_name(name, &path, errors);
            }
            if list != "maxLimitRequestRatio" {
                resources::quantity(name, Quantity::from_value(value).unwrap_or_default(), &path, errors);
            }
        }
    }
    if kind == "Pod" {
        for list in ["default", "defaultRequest"].iter().filter(|list| limit.entries(list).next().is_some()) {
            errors.forbidden(limit.at(list), "may not be specified when `type` is 'Pod'");
        }
    }
    let has_storage = |list: &str| limit.child(list).has("storage");
    if kind == "PersistentVolumeClaim" && !has_storage("min") && !has_storage("max") {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        errors.required(limit.path.clone(), why);
    }
    let mut names: Vec<&String> =
        LIMITS.iter().flat_map(|list| limit.entries(list)).map(|(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        limits_agree(limit, name, errors);
    }
}

/// What one item says of one resource, compared with itself.
fn limits_agree(limit: &At<'_>, name: &str, errors: &mut Errors) {
    let get = |list: &str| limit.child(list).quantity(name);
    let (min, max) = (get("min"), get("max"));
    let (default, request, ratio) = (get("default"), get("defaultRequest"), get("maxLimitRequestRatio"));
    let mut ordered =
        |low: Option<Quantity>, low_name: &str, high: Option<Quantity>, high_name: &str, at: &str| {
            if let (Some(low), Some(high)) = (low, high)
                && low > high
            {
                let shown = if at == "min" { get("min") } else { get(at) };
                let why = format!("{low_name} value {low} is greater than {high_name} value {high}");
                errors.invalid(limit.at(at).key(name), shown.unwrap_or_default().to_string(), why);
            }
        };
    ordered(min, "min", max, "max", "min");
    ordered(min, "min", request, "default request", "defaultRequest");
    ordered(request, "default request", max, "max", "defaultRequest");
    ordered(request, "default request", default, "default limit", "defaultRequest");
    ordered(min, "min", default, "default", "default");
    ordered(default, "default", max, "max", "default");
    let Some(ratio) = ratio else { return };
    let path = limit.at("maxLimitRequestRatio").key(name);
    if ratio < Quantity::from_units(1) {
        errors.invalid(path.clone(), ratio.to_string(), format!("ratio {ratio} is less than 1"));
    }
    if let (Some(min), Some(max)) = (min, max)
        && !min.is_zero()
    {
        let bound = max.millis() as f64 / min.millis() as f64;
        if ratio.millis() as f64 / 1000.0 > bound {
            let why = format!("ratio {ratio} is greater than max/min = {bound:.6}");
            errors.invalid(path, ratio.to_string(), why);
        }
    }
}
