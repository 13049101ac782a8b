//! Requests that are not stored: access reviews, tokens, bindings.

use super::at::{At, Errors};
use super::volume;
use crate::field::{FieldError, Path};
use crate::meta;
use serde_json::Value;

fn attributes(spec: &At<'_>, errors: &mut Errors) {
    match (spec.has("resourceAttributes"), spec.has("nonResourceAttributes")) {
        (true, true) => {
            let value = spec.child("nonResourceAttributes").value.clone();
            let why = "cannot be specified in combination with resourceAttributes";
            errors.invalid(spec.at("nonResourceAttributes"), value, why);
        }
        (false, false) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.invalid(spec.at("resourceAttributes"), Value::Null, why);
        }
        _ => {}
    }
}

/// A review is no object: its metadata says nothing, save the namespace of a local one.
fn empty_metadata(root: &At<'_>, allowed: &[&str], why: &str, errors: &mut Errors) {
    let set = meta::metadata(root.value).into_iter().flatten().any(|(field, value)| {
        let is_empty =
            value.is_null() || value.as_str() == Some("") || value.as_object().is_some_and(|m| m.is_empty());
        field != "managedFields" && !allowed.contains(&field.as_str()) && !is_empty
    });
    if set {
        errors.invalid(root.at("metadata"), root.child("metadata").value.clone(), why);
    }
}

fn subject(spec: &At<'_>, errors: &mut Errors) {
    attributes(spec, errors);
    if spec.str("user").is_empty() && spec.list("groups").is_empty() {
        errors.invalid(spec.at("user"), "", "at least one of user or group must be specified");
    }
}

pub(super) fn subject_access(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    subject(&root.child("spec"), &mut errors);
    empty_metadata(&root, &[], "must be empty", &mut errors);
    errors.0
}

pub(super) fn self_subject_access(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    attributes(&root.child("spec"), &mut errors);
    empty_metadata(&root, &[], "must be empty", &mut errors);
    errors.0
}

pub(super) fn local_subject_access(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    subject(&spec, &mut errors);
    empty_metadata(&root, &["namespace"], "must be empty except for namespace", &mut errors);
    if let Some(resource) = spec.get("resourceAttributes")
        && resource.str("namespace") != meta::namespace(value)
    {
        let path = Path::new("spec.resourceAttributes.namespace");
        errors.invalid(path, resource.str("namespace"), "must match metadata.namespace");
    }
    if let Some(other) = spec.get("nonResourceAttributes") {
        errors.invalid(other.path, other.value.clone(), "disallowed on this kind of request");
    }
    errors.0
}

pub(super) fn token_request(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    if let Some(seconds) = spec.int("expirationSeconds") {
        volume::token_lifetime(seconds, &spec.at("expirationSeconds"), &mut errors);
    }
    errors.0
}

pub(super) fn binding(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let target = root.child("target");
    if !matches!(target.str("kind"), "" | "Node") {
        errors.not_supported(target.at("kind"), target.str("kind"), &["Node", "<empty>"]);
    }
    errors.need(&target, "name");
    errors.0
}
