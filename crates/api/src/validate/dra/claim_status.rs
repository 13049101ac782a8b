//! What a claim got and who uses it: set by the scheduler and by drivers.

use super::{
    At, BTreeSet, CONFIGS_MAX, Errors, FieldError, configuration, driver, label, list, own_text, pool_name,
    raw_object, request_names, request_reference, request_references, set, slice, tolerations,
};
use crate::names;
use crate::validate::affinity;
use serde_json::Value;

const RESULTS_MAX: usize = 32;
const RESERVED_MAX: usize = 256;
const CONDITIONS_MAX: usize = 8;
const ADDRESSES_MAX: usize = 16;
const INTERFACE_NAME_BYTES_MAX: usize = 256;
const HARDWARE_ADDRESS_BYTES_MAX: usize = 128;
const MESSAGE_BYTES_MAX: usize = 32 * 1024;
const REASON_BYTES_MAX: usize = 1024;

pub(super) fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let (status, had) = (At::root(new).child("status"), At::root(old).child("status"));
    let mut errors = Errors::default();
    let user = |consumer: &At<'_>| consumer.str("uid").to_owned();
    set(&status, "reservedFor", RESERVED_MAX, user, &mut errors, |consumer, errors| {
        for field in ["resource", "name", "uid"] {
            errors.need(consumer, field);
        }
    });
    let results = status.child("allocation").child("devices");
    let allocated: BTreeSet<String> = results.items("results").map(|result| device_id(&result)).collect();
    set(&status, "devices", usize::MAX, device_id, &mut errors, |device, errors| {
        device_status(device, &allocated, errors);
    });
    let reserved = status.list("reservedFor");
    let is_deleted = new["metadata"]["deletionTimestamp"].is_string();
    if !reserved.is_empty() && !status.has("allocation") {
        errors.forbidden(status.at("reservedFor"), "may not be specified when `allocated` is not set");
    } else if is_deleted && reserved.iter().any(|consumer| !had.list("reservedFor").contains(consumer)) {
        let why = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
        errors.forbidden(status.at("reservedFor"), why);
    }
    match status.get("allocation") {
        Some(_) if had.has("allocation") => errors.immutable(&status, &had, "allocation"),
        Some(at) => {
            allocation(&at, &request_names(&At::root(new).child("spec").child("devices")), &mut errors)
        }
        None => {}
    }
    errors.0
}

/// Which device, and which share of it: `driver/pool/device/share`.
fn device_id(at: &At<'_>) -> String {
    let device = format!("{}/{}/{}", at.str("driver"), at.str("pool"), at.str("device"));
    if at.has("shareID") { format!("{device}/{}", at.str("shareID")) } else { device }
}

/// What names a device of a pool.
fn device(at: &At<'_>, errors: &mut Errors) {
    driver(at, errors);
    pool_name(at, "pool", errors);
    label(at, "device", errors);
    if at.has("shareID") && !is_uuid(at.str("shareID")) {
        let why = "must be a lowercase UUID in 8-4-4-4-12 format";
        errors.invalid(at.at("shareID"), at.str("shareID"), why);
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, byte)| match i {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

fn allocation(at: &At<'_>, known: &BTreeSet<String>, errors: &mut Errors) {
    let devices = at.child("devices");
    for result in list(&devices, "results", RESULTS_MAX, errors) {
        request_reference(result.str("request"), &result.at("request"), known, errors);
        device(&result, errors);
        slice::binding_conditions(&result, errors);
        tolerations(&result, errors);
    }
    // Those of classes and those of claims.
    for config in list(&devices, "config", 2 * CONFIGS_MAX, errors) {
        errors.one_of(&config, "source", &["FromClaim", "FromClass"]);
        request_references(&config, known, errors);
        configuration(&config, false, errors);
    }
    if let Some(selector) = at.get("nodeSelector") {
        affinity::node_selector(&selector, errors);
    }
}

fn device_status(at: &At<'_>, allocated: &BTreeSet<String>, errors: &mut Errors) {
    device(at, errors);
    let id = device_id(at);
    if !allocated.contains(&id) {
        errors.invalid(at.path.clone(), id, "must be an allocated device in the claim");
    }
    conditions(at, errors);
    if at.has("data") {
        raw_object(&at.child("data"), false, errors);
    }
    let network = at.child("networkData");
    for (field, max) in
        [("interfaceName", INTERFACE_NAME_BYTES_MAX), ("hardwareAddress", HARDWARE_ADDRESS_BYTES_MAX)]
    {
        if network.str(field).len() > max {
            errors.push(FieldError::too_long(network.at(field), max));
        }
    }
    set(
        &network,
        "ips",
        ADDRESSES_MAX,
        |ip| own_text(ip).to_owned(),
        errors,
        |ip, errors| {
            let text = own_text(ip);
            match names::parse_cidr(text) {
                None => {
                    let why = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
                    errors.invalid(ip.path.clone(), text, why);
                }
                Some((address, bits)) if format!("{address}/{bits}") != text => {
                    let why = format!("must be in canonical form (\"{address}/{bits}\")");
                    errors.invalid(ip.path.clone(), text, why);
                }
                Some(_) => {}
            }
        },
    );
}

/// Conditions as upstream's `metav1.Condition` has them.
fn conditions(at: &At<'_>, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for condition in list(at, "conditions", CONDITIONS_MAX, errors) {
        let kind = condition.str("type");
        if !seen.insert(kind) {
            errors.duplicate(condition.at("type"), kind);
        }
        if errors.need(&condition, "type") {
            errors.checked(&condition, "type", names::is_qualified_name);
        }
        match condition.str("status") {
            "" => errors.required(condition.at("status"), ""),
            "True" | "False" | "Unknown" => {}
            other => errors.not_supported(condition.at("status"), other, &["False", "True", "Unknown"]),
        }
        errors.not_negative(&condition, &["observedGeneration"]);
        errors.need(&condition, "lastTransitionTime");
        if errors.need(&condition, "reason") && !is_reason(condition.str("reason")) {
            let why = "a condition reason must start with alphabetic character, optionally followed by a string of \
                       alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'";
            errors.invalid(condition.at("reason"), condition.str("reason"), why);
        }
        for (field, max) in [("reason", REASON_BYTES_MAX), ("message", MESSAGE_BYTES_MAX)] {
            if condition.str(field).len() > max {
                errors.push(FieldError::too_long(condition.at(field), max));
            }
        }
    }
}

fn is_reason(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(is_word)
        && text.chars().all(|c| is_word(c) || matches!(c, ',' | ':'))
}
