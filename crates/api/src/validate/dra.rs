//! The group `resource.k8s.io`: claims on devices, their templates, classes and slices.
//! Upstream counterparts: `pkg/apis/resource/validation`, `pkg/registry/resource`; KEPs 4381, 4815, 4816, 4817,
//! 5004, 5055, 5075.

mod claim_status;
mod selector;
mod slice;

use super::at::{At, Errors, same};
use super::{resources, storage};
use crate::field::{FieldError, Path};
use crate::kinds::Strategy;
use crate::{names, object_meta};
use serde_json::Value;
use std::collections::BTreeSet;

const REQUESTS_MAX: usize = 32;
const FIRST_AVAILABLE_MAX: usize = 8;
const SELECTORS_MAX: usize = 32;
const TOLERATIONS_MAX: usize = 16;
const CONSTRAINTS_MAX: usize = 32;
const CONFIGS_MAX: usize = 32;
const RAW_BYTES_MAX: usize = 10 * 1024;
const POOL_NAME_BYTES_MAX: usize = 253;
const ID_BYTES_MAX: usize = 32;
const DOMAIN_BYTES_MAX: usize = 63;
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];
const NO_REQUEST: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

pub(super) fn strategy(kind: &str) -> Strategy {
    let none = Strategy::default();
    match kind {
        "ResourceClaim" => Strategy {
            validate_create: |new| claim(new, false),
            validate_update: |new, old| {
                let mut errors = spec_stays(new, old);
                errors.extend(claim(new, true));
                errors
            },
            validate_status: claim_status::validate,
            ..none
        },
        "ResourceClaimTemplate" => {
            Strategy { validate_create: template, validate_update: spec_stays, ..none }
        }
        "DeviceClass" => {
            Strategy { validate_create: |new| class(new, &Value::Null), validate_update: class, ..none }
        }
        "ResourceSlice" => Strategy {
            prepare_create: |new| slice::drop_disabled(new, &Value::Null),
            prepare_update: slice::drop_disabled,
            validate_create: |new| slice::validate(new, None),
            validate_update: |new, old| slice::validate(new, Some(old)),
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

/// What was stored before is not asked for new limits, nor are its expressions compiled again.
fn claim(value: &Value, stored: bool) -> Vec<FieldError> {
    let mut errors = Errors::default();
    claim_spec(&At::root(value).child("spec"), stored, &mut errors);
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
    claim_spec(&spec.child("spec"), false, &mut errors);
    errors.0
}

fn class(new: &Value, old: &Value) -> Vec<FieldError> {
    let (spec, had, mut errors) =
        (At::root(new).child("spec"), At::root(old).child("spec"), Errors::default());
    let is_stored = |field: &str| !old.is_null() && same(spec.value.get(field), had.value.get(field));
    selectors(&spec, is_stored("selectors"), &mut errors);
    for config in list(&spec, "config", CONFIGS_MAX, &mut errors) {
        configuration(&config, is_stored("config"), &mut errors);
    }
    let name = spec.str("extendedResourceName");
    if spec.has("extendedResourceName") && !resources::is_extended(name) {
        errors.invalid(spec.at("extendedResourceName"), name, "must be a valid extended resource name");
    }
    errors.0
}

/// The items of a list of at most so many; none of a longer one, which is told.
fn list<'a>(
    at: &At<'a>,
    field: &str,
    max: usize,
    errors: &mut Errors,
) -> impl Iterator<Item = At<'a>> + use<'a> {
    let count = at.list(field).len();
    if count > max {
        errors.push(FieldError::too_many(at.at(field), count, max));
    }
    at.items(field).take(if count > max { 0 } else { count })
}

/// Checks the items of a list of at most so many, of which no two have the same key.
fn set(
    at: &At<'_>,
    field: &str,
    max: usize,
    key: impl Fn(&At<'_>) -> String,
    errors: &mut Errors,
    mut each: impl FnMut(&At<'_>, &mut Errors),
) {
    let items: Vec<At<'_>> = list(at, field, max, errors).collect();
    items.iter().for_each(|item| each(item, errors));
    let mut seen = BTreeSet::new();
    for item in items {
        let key = key(&item);
        if seen.contains(&key) {
            errors.duplicate(item.path, key);
        } else {
            seen.insert(key);
        }
    }
}

fn name_of(at: &At<'_>) -> String {
    at.str("name").to_owned()
}

fn own_text<'a>(at: &At<'a>) -> &'a str {
    at.value.as_str().unwrap_or_default()
}

fn label(at: &At<'_>, field: &str, errors: &mut Errors) {
    errors.each(&at.at(field), at.str(field), names::is_dns1123_label(at.str(field)));
}

fn driver(at: &At<'_>, errors: &mut Errors) {
    storage::driver_name(at.str("driver"), &at.at("driver"), errors);
}

/// Subdomains with slashes between them.
fn pool_name(at: &At<'_>, field: &str, errors: &mut Errors) {
    if !errors.need(at, field) {
        return;
    }
    let (name, path) = (at.str(field), at.at(field));
    if name.len() > POOL_NAME_BYTES_MAX {
        errors.push(FieldError::too_long(path.clone(), POOL_NAME_BYTES_MAX));
    }
    name.split('/').for_each(|part| errors.each(&path, part, names::is_dns1123_subdomain(part)));
}

/// The name of an attribute or a capacity: an identifier, and before it maybe a domain and a slash.
fn qualified_name(name: &str, path: &Path, errors: &mut Errors) {
    let (domain, id) = match name.split_once('/') {
        None => (None, name),
        Some((_, rest)) if rest.contains('/') => {
            errors.invalid(path.clone(), name, "must not contain more than one slash");
            return;
        }
        Some((domain, id)) => (Some(domain), id),
    };
    match domain {
        None => {}
        Some("") => errors.invalid(path.clone(), "", "the domain must not be empty"),
        Some(domain) => storage::driver_name(domain, path, errors),
    }
    if domain.is_some() && id.is_empty() {
        errors.invalid(path.clone(), "", "the name must not be empty");
        return;
    }
    if id.len() > ID_BYTES_MAX {
        errors.push(FieldError::too_long(path.clone(), ID_BYTES_MAX));
    }
    errors.each(path, id, names::is_c_identifier(id));
}

/// The names by which a claim's requests are referred to: `gpu` and, of its alternatives, `gpu/large`.
fn request_names(devices: &At<'_>) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for request in devices.items("requests") {
        let name = request.str("name");
        known.extend(request.items("firstAvailable").map(|sub| format!("{name}/{}", sub.str("name"))));
        known.insert(name.to_owned());
    }
    known
}

fn request_reference(name: &str, path: &Path, known: &BTreeSet<String>, errors: &mut Errors) {
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() <= 2 {
        parts.into_iter().for_each(|part| errors.each(path, part, names::is_dns1123_label(part)));
    }
    if !known.contains(name) {
        errors.invalid(path.clone(), name, NO_REQUEST);
    }
}

/// The requests that a constraint or a configuration is about.
fn request_references(at: &At<'_>, known: &BTreeSet<String>, errors: &mut Errors) {
    set(
        at,
        "requests",
        REQUESTS_MAX,
        |name| own_text(name).to_owned(),
        errors,
        |name, errors| {
            request_reference(own_text(name), &name.path, known, errors);
        },
    );
}

fn claim_spec(spec: &At<'_>, stored: bool, errors: &mut Errors) {
    let devices = spec.child("devices");
    let known = request_names(&devices);
    set(&devices, "requests", REQUESTS_MAX, name_of, errors, |at, errors| request(at, stored, errors));
    for at in list(&devices, "constraints", CONSTRAINTS_MAX, errors) {
        request_references(&at, &known, errors);
        constraint(&at, errors);
    }
    for at in list(&devices, "config", CONFIGS_MAX, errors) {
        request_references(&at, &known, errors);
        configuration(&at, stored, errors);
    }
}

fn request(at: &At<'_>, stored: bool, errors: &mut Errors) {
    label(at, "name", errors);
    let one = "exactly one of `exactly` or `firstAvailable` is required";
    match (at.get("exactly"), at.list("firstAvailable").is_empty()) {
        (Some(exactly), true) => device_request(&exactly, stored, errors),
        (None, false) => {
            set(at, "firstAvailable", FIRST_AVAILABLE_MAX, name_of, errors, |sub, errors| {
                label(sub, "name", errors);
                device_request(sub, stored, errors);
            });
        }
        (Some(_), false) => {
            errors.invalid(at.path.clone(), Value::Null, format!("{one}, but multiple fields are set"));
        }
        (None, true) => errors.required(at.path.clone(), one),
    }
}

fn device_request(at: &At<'_>, stored: bool, errors: &mut Errors) {
    if errors.need(at, "deviceClassName") {
        errors.checked(at, "deviceClassName", names::is_dns1123_subdomain);
    }
    selectors(at, stored, errors);
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
    tolerations(at, errors);
}

fn tolerations(at: &At<'_>, errors: &mut Errors) {
    for toleration in list(at, "tolerations", TOLERATIONS_MAX, errors) {
        errors.checked(&toleration, "key", names::is_qualified_name);
        let (operator, value) = (toleration.str("operator"), toleration.str("value"));
        match operator {
            "Exists" if !value.is_empty() => {
                errors.invalid(toleration.at("value"), value, "must be empty for operator `Exists`");
            }
            "Exists" => {}
            "Equal" => errors.checked(&toleration, "value", names::is_label_value),
            "" => errors.required(toleration.at("operator"), ""),
            other => errors.not_supported(toleration.at("operator"), other, &["Equal", "Exists"]),
        }
        if !toleration.str("effect").is_empty() {
            errors.optional_one_of(&toleration, "effect", EFFECTS);
        }
    }
}

fn selectors(at: &At<'_>, stored: bool, errors: &mut Errors) {
    for selector in list(at, "selectors", SELECTORS_MAX, errors) {
        match selector.get("cel") {
            None => errors.required(selector.at("cel"), ""),
            Some(_) if stored => {}
            Some(cel) => selector::check(&cel, errors),
        }
    }
}

fn constraint(at: &At<'_>, errors: &mut Errors) {
    let Some(field) = ["matchAttribute", "distinctAttribute"].into_iter().find(|field| at.has(field)) else {
        let why = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
        errors.required(at.path.clone(), why);
        return;
    };
    let (name, path) = (at.str(field), at.at(field));
    qualified_name(name, &path, errors);
    if !name.contains('/') {
        let why = "a fully qualified name must be a domain and a name separated by a slash";
        errors.invalid(path, name, why);
    }
}

fn configuration(at: &At<'_>, stored: bool, errors: &mut Errors) {
    let Some(opaque) = at.get("opaque") else {
        errors.required(at.at("opaque"), "");
        return;
    };
    driver(&opaque, errors);
    if opaque.has("parameters") {
        raw_object(&opaque.child("parameters"), stored, errors);
    } else {
        errors.required(opaque.at("parameters"), "");
    }
}

/// An object that only a driver understands.
fn raw_object(at: &At<'_>, stored: bool, errors: &mut Errors) {
    if !stored && at.value.to_string().len() > RAW_BYTES_MAX {
        errors.push(FieldError::too_long(at.path.clone(), RAW_BYTES_MAX));
    } else if !at.value.is_object() {
        errors.invalid(at.path.clone(), "<value omitted>", "must be a valid JSON object");
    }
}

#[cfg(test)]
mod tests;
