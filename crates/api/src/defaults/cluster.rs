//! Kinds that shape the cluster itself: admission, flow control, extension servers, devices.

use super::{Object, child, each, existing, set, set_text};
use serde_json::Value;

pub(super) fn webhooks(object: &mut Value) {
    each_webhook(object, |_| {});
}

pub(super) fn mutating_webhooks(object: &mut Value) {
    each_webhook(object, |hook| set(hook, "reinvocationPolicy", "Never"));
}

fn each_webhook(object: &mut Value, more: fn(&mut Object)) {
    let Some(object) = object.as_object_mut() else { return };
    for hook in each(object, "webhooks") {
        set(hook, "failurePolicy", "Fail");
        set(hook, "timeoutSeconds", 10);
        match_fields(hook);
        each(hook, "rules").for_each(|rule| set(rule, "scope", "*"));
        let service = existing(hook, "clientConfig").and_then(|config| existing(config, "service"));
        if let Some(service) = service {
            set(service, "port", 443);
        }
        more(hook);
    }
}

fn match_fields(holder: &mut Object) {
    set(holder, "matchPolicy", "Equivalent");
    set(holder, "namespaceSelector", Object::new());
    set(holder, "objectSelector", Object::new());
}

fn match_resources(holder: &mut Object, field: &str) {
    let Some(resources) = existing(holder, field) else { return };
    match_fields(resources);
    for rules in ["resourceRules", "excludeResourceRules"] {
        each(resources, rules).for_each(|rule| set(rule, "scope", "*"));
    }
}

pub(super) fn validating_policy(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    set(object, "status", Object::new());
    let Some(spec) = child(object, "spec") else { return };
    set(spec, "failurePolicy", "Fail");
    match_resources(spec, "matchConstraints");
}

pub(super) fn mutating_policy(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    let Some(spec) = child(object, "spec") else { return };
    set(spec, "failurePolicy", "Fail");
    set_text(spec, "reinvocationPolicy", "Never");
    match_resources(spec, "matchConstraints");
}

pub(super) fn policy_binding(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(spec) = child(object, "spec") {
        match_resources(spec, "matchResources");
    }
}

pub(super) fn flow_schema(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    set(object, "status", Object::new());
    if let Some(spec) = child(object, "spec") {
        super::set_number(spec, "matchingPrecedence", 1000);
    }
}

pub(super) fn priority_level(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    set(object, "status", Object::new());
    let Some(spec) = child(object, "spec") else { return };
    if let Some(exempt) = existing(spec, "exempt") {
        set(exempt, "nominalConcurrencyShares", 0);
        set(exempt, "lendablePercent", 0);
    }
    let Some(limited) = existing(spec, "limited") else { return };
    set(limited, "nominalConcurrencyShares", 30);
    set(limited, "lendablePercent", 0);
    let queuing = existing(limited, "limitResponse").and_then(|response| existing(response, "queuing"));
    if let Some(queuing) = queuing {
        for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
            super::set_number(queuing, field, value);
        }
    }
}

pub(super) fn api_service(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    set(object, "status", Object::new());
    if let Some(service) = child(object, "spec").and_then(|spec| existing(spec, "service")) {
        set(service, "port", 443);
    }
}

pub(super) fn runtime_class(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(overhead) = existing(object, "overhead") {
        super::pod::round_resources(overhead, "podFixed");
    }
}

pub(super) fn resource_claim(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    set(object, "status", Object::new());
    if let Some(spec) = child(object, "spec") {
        claim_spec(spec);
    }
}

pub(super) fn resource_claim_template(object: &mut Value) {
    let Some(template) = object.as_object_mut().and_then(|object| child(object, "spec")) else { return };
    set(template, "metadata", Object::new());
    if let Some(spec) = child(template, "spec") {
        claim_spec(spec);
    }
}

fn claim_spec(spec: &mut Object) {
    let Some(devices) = existing(spec, "devices") else { return };
    for request in each(devices, "requests") {
        if let Some(exactly) = existing(request, "exactly") {
            device_request(exactly);
        }
        each(request, "firstAvailable").for_each(device_request);
    }
}

fn device_request(request: &mut Object) {
    set_text(request, "allocationMode", "ExactCount");
    if request.get("allocationMode").is_some_and(|mode| mode == "ExactCount") {
        super::set_number(request, "count", 1);
    }
    each(request, "tolerations").for_each(|toleration| set_text(toleration, "operator", "Equal"));
}
