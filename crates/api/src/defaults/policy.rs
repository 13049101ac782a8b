//! Autoscalers, budgets, quotas and limits.

use super::{Object, child, each, existing, pod, set, set_text, text};
use crate::quantity::Quantity;
use serde_json::{Value, json};

pub(super) fn autoscaler_v1(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(status) = child(object, "status") {
        set(status, "currentReplicas", 0);
        set(status, "desiredReplicas", 0);
    }
    if let Some(spec) = child(object, "spec") {
        set(spec, "minReplicas", 1);
    }
}

pub(super) fn autoscaler(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(status) = child(object, "status") {
        set(status, "desiredReplicas", 0);
        set(status, "currentMetrics", Value::Null);
    }
    let Some(spec) = child(object, "spec") else { return };
    set(spec, "minReplicas", 1);
    if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let target = json!({"type": "Utilization", "averageUtilization": 80});
        let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
        spec.insert("metrics".into(), vec![metric].into());
    }
    let Some(behavior) = existing(spec, "behavior") else { return };
    scaling_rules(
        behavior,
        "scaleUp",
        json!([
        {"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]),
    );
    scaling_rules(behavior, "scaleDown", json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]));
}

/// Rules of one direction, of which a client gave some or none.
fn scaling_rules(behavior: &mut Object, direction: &str, policies: Value) {
    let Some(rules) = child(behavior, direction) else { return };
    set_text(rules, "selectPolicy", "Max");
    if direction == "scaleUp" {
        set(rules, "stabilizationWindowSeconds", 0);
    }
    set(rules, "policies", policies);
}

pub(super) fn disruption_budget(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    let counts = ["currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods"];
    super::workload::counted_status(object, &counts);
}

pub(super) fn quota(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(spec) = child(object, "spec") {
        pod::round_resources(spec, "hard");
    }
    if let Some(status) = child(object, "status") {
        pod::round_resources(status, "hard");
        pod::round_resources(status, "used");
    }
}

/// A limit of containers stands for the default, which stands for the default request.
pub(super) fn limit_range(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    let Some(spec) = child(object, "spec") else { return };
    for limit in each(spec, "limits") {
        for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            pod::round_resources(limit, list);
        }
        if text(limit, "type") != "Container" {
            continue;
        }
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let Some(Value::Object(amounts)) = limit.get(from).cloned() else { continue };
            let Some(target) = child(limit, to) else { continue };
            for (name, amount) in
                amounts.into_iter().filter(|(_, amount)| Quantity::from_value(amount).is_ok())
            {
                target.entry(name).or_insert(amount);
            }
        }
        // Lists that stay empty are not shown.
        limit.retain(|_, list| list.as_object().is_none_or(|list| !list.is_empty()));
    }
}
