//! HorizontalPodAutoscalers in both versions. `v2` is stored; what `v1` has no fields for, it
//! shows in annotations.
//! Upstream counterpart: `pkg/apis/autoscaling/v1/conversion.go`.

use crate::meta;
use serde_json::{Map, Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

type Object = Map<String, Value>;

/// Whether a metric is the one that `v1` has a field for: the use of CPU, in percent.
fn is_cpu(metric: &Value) -> bool {
    metric["type"] == "Resource" && metric["resource"]["name"] == "cpu"
}

fn take_list(holder: &mut Object, field: &str) -> Vec<Value> {
    match holder.remove(field) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn take_annotation(object: &mut Value, key: &str) -> Option<Value> {
    let parsed = meta::annotation(object, key).and_then(|text| serde_json::from_str(text).ok());
    let annotations = meta::metadata_mut(object)?.get_mut("annotations")?.as_object_mut()?;
    annotations.remove(key);
    if annotations.is_empty() {
        meta::remove(object, "annotations");
    }
    parsed
}

fn part<'a>(object: &'a mut Value, field: &str) -> Option<&'a mut Object> {
    object.get_mut(field).and_then(Value::as_object_mut)
}

fn set_version(object: &mut Value, version: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert("apiVersion".into(), version.into());
    }
}

/// From `v1` to `v2`. Annotations that cannot be read are dropped.
pub fn to_v2(mut object: Value) -> Value {
    set_version(&mut object, "autoscaling/v2");
    let metrics = take_annotation(&mut object, METRICS);
    let behavior = take_annotation(&mut object, BEHAVIOR);
    let current = take_annotation(&mut object, CURRENT_METRICS);
    let conditions = take_annotation(&mut object, CONDITIONS);
    if let Some(spec) = part(&mut object, "spec") {
        let mut list = match metrics {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        if let Some(percent) = spec.remove("targetCPUUtilizationPercentage") {
            let target = json!({"type": "Utilization", "averageUtilization": percent});
            list.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
        if !list.is_empty() {
            spec.insert("metrics".into(), list.into());
        }
        if let Some(behavior) = behavior.filter(Value::is_object) {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(status) = part(&mut object, "status") {
        let mut list = match current {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        if let Some(percent) = status.remove("currentCPUUtilizationPercentage") {
            let current = json!({"averageUtilization": percent, "averageValue": "0"});
            list.push(json!({"type": "Resource", "resource": {"name": "cpu", "current": current}}));
        }
        status.insert("currentMetrics".into(), if list.is_empty() { Value::Null } else { list.into() });
        if let Some(conditions) = conditions.filter(Value::is_array) {
            status.insert("conditions".into(), conditions);
        }
    }
    object
}

/// From `v2` to `v1`.
pub fn to_v1(mut object: Value) -> Value {
    set_version(&mut object, "autoscaling/v1");
    let mut annotations: Vec<(&str, Value)> = Vec::new();
    if let Some(spec) = part(&mut object, "spec") {
        let mut others = take_list(spec, "metrics");
        let percent = |metric: &Value| metric.pointer("/resource/target/averageUtilization").cloned();
        if let Some(at) = others.iter().position(|metric| is_cpu(metric) && percent(metric).is_some()) {
            let cpu = others.remove(at);
            spec.extend(percent(&cpu).map(|n| ("targetCPUUtilizationPercentage".to_owned(), n)));
        }
        if !others.is_empty() {
            annotations.push((METRICS, others.into()));
        }
        annotations.extend(spec.remove("behavior").map(|behavior| (BEHAVIOR, behavior)));
    }
    if let Some(status) = part(&mut object, "status") {
        let mut others = take_list(status, "currentMetrics");
        let percent = |metric: &Value| metric.pointer("/resource/current/averageUtilization").cloned();
        if let Some(at) = others.iter().position(|metric| is_cpu(metric) && percent(metric).is_some()) {
            let cpu = others.remove(at);
            status.extend(percent(&cpu).map(|n| ("currentCPUUtilizationPercentage".to_owned(), n)));
        }
        if !others.is_empty() {
            annotations.push((CURRENT_METRICS, others.into()));
        }
        let conditions = take_list(status, "conditions");
        if !conditions.is_empty() {
            annotations.push((CONDITIONS, conditions.into()));
        }
    }
    for (key, value) in annotations {
        meta::set_annotation(&mut object, key, &value.to_string());
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_between_the_versions() {
        let object = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
            "spec": {"maxReplicas": 3, "metrics": [
                {"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "10"}}},
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}}],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}},
            "status": {"desiredReplicas": 1, "currentMetrics": null, "conditions": [{"type": "AbleToScale", "status": "True"}]},
        });
        let v1 = to_v1(object.clone());
        assert_eq!(v1["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 60}));
        assert_eq!(v1["status"], json!({"desiredReplicas": 1}));
        assert!(meta::annotation(&v1, METRICS).unwrap().contains("rps"));
        assert_eq!(to_v2(v1), object);
    }
}
