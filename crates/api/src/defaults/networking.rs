//! The group `networking.k8s.io`.

use super::{Object, child, each, existing, set, set_text};
use serde_json::Value;

pub(super) fn ingress(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(status) = child(object, "status") {
        set(status, "loadBalancer", Object::new());
    }
}

pub(super) fn ingress_class(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(parameters) = existing(object, "spec").and_then(|spec| existing(spec, "parameters")) {
        set(parameters, "scope", "Cluster");
    }
}

pub(super) fn network_policy(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    let Some(spec) = child(object, "spec") else { return };
    set(spec, "podSelector", Object::new());
    for rules in ["ingress", "egress"] {
        for rule in each(spec, rules) {
            each(rule, "ports").for_each(|port| set_text(port, "protocol", "TCP"));
        }
    }
    if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
        let types: &[&str] = if egress { &["Ingress", "Egress"] } else { &["Ingress"] };
        spec.insert("policyTypes".into(), types.into());
    }
}
