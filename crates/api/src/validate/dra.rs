//! The group `resource.k8s.io`: claims on devices, their classes and slices.

use super::at::{At, Errors, same};
use super::{affinity, storage};
use crate::field::FieldError;
use crate::kinds::Strategy;
use crate::{names, object_meta};
use serde_json::Value;

const REQUESTS_MAX: usize = 32;
const SELECTORS_MAX: usize = 32;
const CONSTRAINTS_MAX: usize = 32;
const CONFIGS_MAX: usize = 32;
const DEVICES_MAX: usize = 128;
const ATTRIBUTES_MAX: usize = 32;
const EXPRESSION_MAX_BYTES: usize = 10 * 1024;
const RESERVED_MAX: usize = 256;

pub(super) fn strategy(kind: &str) -> Strategy {
    let none = Strategy::default();
    match kind {
        "ResourceClaim" => {
            Strategy { validate: claim, validate_update: spec_stays, validate_status: claim_status, ..none }
        }
        "ResourceClaimTemplate" => Strategy { validate: template, validate_update: spec_stays, ..none },
        "DeviceClass" => Strategy { validate: class, ..none },
        "ResourceSlice" => Strategy {
            validate: slice,
            validate_update: slice_update,
            selectable: |value| {
                ["spec.driver", "spec.nodeName"]
                    .map(|key| (key, super::text(value, &["spec", &key["spec.".len()..]])))
                    .to_vec()
            },
            selectable_keys: &["spec.driver", "spec.nodeName"],
            ..none
        },
        _ => none,
    }
}

fn spec_stays(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.immutable(&At::root(new), &At::root(old), "spec");
    errors.0
}

fn claim(value: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    claim_spec(&At::root(value).child("spec"), &mut errors);
    errors.0
}

fn template(value: &Value) -> Vec<FieldError> {
    let (spec, mut errors) = (At::root(value).child("spec"), Errors::default());
    let metadata = spec.child("metadata");
    errors.extend(names::validate_labels(metadata.value.get("labels"), &metadata.at("labels")));
    errors.extend(object_meta::validate_annotations(
        metadata.value.get("annotations"),
        &metadata.at("annotations"),
    ));
    claim_spec(&spec.child("spec"), &mut errors);
    errors.0
}

/// A list of at most so many items.
fn at_most(at: &At<'_>, list: &str, max: usize, errors: &mut Errors) {
    let count = at.list(list).len();
    if count > max {
        errors.push(FieldError::too_many(at.at(list), count, max));
    }
}

fn claim_spec(spec: &At<'_>, errors: &mut Errors) {
    let devices = spec.child("devices");
    at_most(&devices, "requests", REQUESTS_MAX, errors);
    let mut known: Vec<String> = Vec::new();
    for request in devices.items("requests") {
        let name = request.str("name");
        device_name(&request, errors);
        if known.iter().any(|other| other == name) {
            errors.duplicate(request.at("name"), name);
        }
        known.push(name.to_owned());
        match (request.get("exactly"), request.list("firstAvailable").is_empty()) {
            (Some(exactly), true) => device_request(&exactly, errors),
            (None, false) => {
                for sub in request.items("firstAvailable") {
                    device_name(&sub, errors);
                    device_request(&sub, errors);
                    known.push(format!("{name}/{}", sub.str("name")));
                }
            }
            (Some(_), false) => {
                let why =
                    "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
                errors.invalid(request.path.clone(), request.value.clone(), why);
            }
            (None, true) => errors
                .required(request.path.clone(), "exactly one of `exactly` or `firstAvailable` is required"),
        }
    }
    let named = |at: &At<'_>, errors: &mut Errors| {
        for (i, name) in
            at.strings("requests").enumerate().filter(|(_, name)| !known.iter().any(|k| k == name))
        {
            let why = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
            errors.invalid(at.at("requests").index(i), name, why);
        }
    };
    at_most(&devices, "constraints", CONSTRAINTS_MAX, errors);
    for constraint in devices.items("constraints") {
        named(&constraint, errors);
        if !constraint.has("matchAttribute") && !constraint.has("distinctAttribute") {
            errors.required(constraint.at("matchAttribute"), "");
        }
    }
    at_most(&devices, "config", CONFIGS_MAX, errors);
    for config in devices.items("config") {
        named(&config, errors);
        opaque(&config, errors);
    }
}

fn device_name(at: &At<'_>, errors: &mut Errors) {
    if errors.need(at, "name") {
        errors.checked(at, "name", names::is_dns1123_label);
    }
}

fn device_request(at: &At<'_>, errors: &mut Errors) {
    if errors.need(at, "deviceClassName") {
        errors.checked(at, "deviceClassName", names::is_dns1123_subdomain);
    }
    selectors(at, errors);
    let count = at.int("count").unwrap_or(0);
    match at.str("allocationMode") {
        "All" if count != 0 => {
            errors.invalid(at.at("count"), count, "must not be specified when allocationMode is 'All'");
        }
        "All" => {}
        "ExactCount" if count <= 0 => errors.invalid(at.at("count"), count, "must be greater than zero"),
        "ExactCount" => {}
        other => errors.not_supported(at.at("allocationMode"), other, &["All", "ExactCount"]),
    }
    for toleration in at.items("tolerations") {
        errors.checked(&toleration, "key", names::is_qualified_name);
        match toleration.str("operator") {
            "Exists" if !toleration.str("value").is_empty() => {
                errors.invalid(
                    toleration.at("value"),
                    toleration.str("value"),
                    "must be empty for operator `Exists`",
                );
            }
            "Exists" | "Equal" => {}
            other => errors.not_supported(toleration.at("operator"), other, &["Equal", "Exists"]),
        }
        errors.optional_one_of(&toleration, "effect", &["NoExecute", "NoSchedule", "None"]);
    }
}

fn selectors(at: &At<'_>, errors: &mut Errors) {
    at_most(at, "selectors", SELECTORS_MAX, errors);
    for selector in at.items("selectors") {
        let Some(cel) = selector.get("cel") else {
            errors.required(selector.at("cel"), "");
            continue;
        };
        if errors.need(&cel, "expression") && cel.str("expression").len() > EXPRESSION_MAX_BYTES {
            errors.push(FieldError::too_long(cel.at("expression"), EXPRESSION_MAX_BYTES));
        }
    }
}

fn opaque(at: &At<'_>, errors: &mut Errors) {
    let Some(opaque) = at.get("opaque") else {
        errors.required(at.at("opaque"), "");
        return;
    };
    storage::driver_name(opaque.str("driver"), &opaque.at("driver"), errors);
    match opaque.get("parameters") {
        None => errors.required(opaque.at("parameters"), ""),
        Some(parameters) if !parameters.value.is_object() => {
            errors.invalid(parameters.path, "<value omitted>", "must be a valid JSON object");
        }
        Some(_) => {}
    }
}

fn claim_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let (status, mut errors) = (At::root(new).child("status"), Errors::default());
    let had = At::root(old).child("status");
    at_most(&status, "reservedFor", RESERVED_MAX, &mut errors);
    let mut seen: Vec<&str> = Vec::new();
    for consumer in status.items("reservedFor") {
        for field in ["resource", "name", "uid"] {
            errors.need(&consumer, field);
        }
        if seen.contains(&consumer.str("uid")) {
            errors.duplicate(consumer.path.clone(), consumer.value.clone());
        }
        seen.push(consumer.str("uid"));
    }
    if !status.list("reservedFor").is_empty() && !status.has("allocation") {
        errors.forbidden(status.at("reservedFor"), "may not be specified when `allocated` is not set");
    }
    if had.has("allocation") && status.has("allocation") {
        errors.immutable(&status, &had, "allocation");
    }
    errors.0
}

fn class(value: &Value) -> Vec<FieldError> {
    let (spec, mut errors) = (At::root(value).child("spec"), Errors::default());
    selectors(&spec, &mut errors);
    at_most(&spec, "config", CONFIGS_MAX, &mut errors);
    spec.items("config").for_each(|config| opaque(&config, &mut errors));
    errors.checked(&spec, "extendedResourceName", names::is_qualified_name);
    errors.0
}

fn slice(value: &Value) -> Vec<FieldError> {
    let (spec, mut errors) = (At::root(value).child("spec"), Errors::default());
    let places = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
    let chosen: Vec<&str> = places
        .into_iter()
        .filter(|field| spec.has(field) && spec.value.get(*field) != Some(&Value::Bool(false)))
        .collect();
    let fields = "`nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection`";
    match chosen.len() {
        0 => errors.required(spec.path.clone(), &format!("exactly one of {fields} is required")),
        1 => {}
        _ => {
            let why = format!("exactly one of {fields} is required, but multiple fields are set");
            errors.invalid(spec.path.clone(), format!("{{{}}}", chosen.join(", ")), why);
        }
    }
    errors.checked(&spec, "nodeName", names::is_dns1123_subdomain);
    if let Some(selector) = spec.get("nodeSelector") {
        affinity::node_selector(&selector, &mut errors);
        let terms = selector.list("nodeSelectorTerms");
        if terms.len() > 1 {
            let why = "must have exactly one node selector term";
            errors.invalid(selector.at("nodeSelectorTerms"), terms, why);
        }
    }
    storage::driver_name(spec.str("driver"), &spec.at("driver"), &mut errors);
    let pool = spec.child("pool");
    if errors.need(&pool, "name") {
        for part in pool.str("name").split('/') {
            errors.each(&pool.at("name"), part, names::is_dns1123_subdomain(part));
        }
    }
    if let Some(count) = Some(pool.int("resourceSliceCount").unwrap_or(0)).filter(|count| *count <= 0) {
        errors.invalid(pool.at("resourceSliceCount"), count, "must be greater than zero");
    }
    errors.not_negative(&pool, &["generation"]);
    at_most(&spec, "devices", DEVICES_MAX, &mut errors);
    let mut seen: Vec<&str> = Vec::new();
    for device in spec.items("devices") {
        device_name(&device, &mut errors);
        if seen.contains(&device.str("name")) {
            errors.duplicate(device.at("name"), device.str("name"));
        }
        seen.push(device.str("name"));
        self::device(&device, &mut errors);
    }
    errors.0
}

fn device(at: &At<'_>, errors: &mut Errors) {
    let count = at.entries("attributes").count() + at.entries("capacity").count();
    if count > ATTRIBUTES_MAX {
        let why = format!("the total number of attributes and capacities must not exceed {ATTRIBUTES_MAX}");
        errors.invalid(at.path.clone(), count, why);
    }
    for (name, value) in at.entries("attributes") {
        let set = value.as_object().map_or(0, |fields| fields.len());
        let path = at.at("attributes").key(name);
        match set {
            0 => errors.required(path, "exactly one value must be specified"),
            1 => {}
            _ => errors.invalid(path, value.clone(), "exactly one value must be specified"),
        }
    }
    for taint in at.items("taints") {
        let key = taint.str("key");
        errors.each(&taint.at("key"), key, names::is_qualified_name(key));
        errors.checked(&taint, "value", names::is_label_value);
        errors.one_of(&taint, "effect", &["NoExecute", "NoSchedule", "None"]);
    }
}

fn slice_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (now, had, mut errors) =
        (At::root(new).child("spec"), At::root(old).child("spec"), Errors::default());
    for field in ["driver", "nodeName"] {
        errors.immutable(&now, &had, field);
    }
    let (pool, had_pool) = (now.child("pool"), had.child("pool"));
    if !same(pool.value.get("name"), had_pool.value.get("name")) {
        errors.invalid(pool.at("name"), pool.str("name"), names::FIELD_IMMUTABLE);
    }
    errors.0
}
