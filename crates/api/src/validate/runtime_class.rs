//! RuntimeClass.

use super::affinity;
use super::at::{At, Errors};
use super::resources;
use crate::field::FieldError;
use crate::kinds::Strategy;
use crate::names;
use crate::quantity::Quantity;
use serde_json::Value;

pub(super) fn strategy() -> Strategy {
    Strategy { validate, validate_update, ..Strategy::default() }
}

fn validate(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let handler = root.str("handler");
    errors.each(&root.at("handler"), handler, names::is_dns1123_label(handler));
    let overhead = root.child("overhead");
    for (name, value) in overhead.entries("podFixed") {
        let path = overhead.at("podFixed").key(name);
        resources::container_resource_name(name, &path, &mut errors);
        resources::quantity(name, Quantity::from_value(value).unwrap_or_default(), &path, &mut errors);
    }
    if let Some(scheduling) = root.get("scheduling") {
        let path = scheduling.at("nodeSelector");
        errors.extend(names::validate_labels(scheduling.value.get("nodeSelector"), &path));
        affinity::tolerations(&scheduling, "tolerations", &mut errors);
    }
    errors.0
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.immutable(&At::root(new), &At::root(old), "handler");
    errors.0
}
