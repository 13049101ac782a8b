//! PersistentVolumeClaims, also as templates in other kinds.

use super::affinity;
use super::at::{At, Errors, same};
use crate::field::{FieldError, Path};
use crate::kinds::Strategy;
use crate::names;
use crate::quantity::Quantity;
use serde_json::{Value, json};

pub(super) const ACCESS_MODES: &[&str] =
    &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
pub(super) const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
pub(super) const NOT_POSITIVE: &str = "must be greater than zero";

pub(super) fn strategy() -> Strategy {
    Strategy {
        prepare_create: join_data_sources,
        prepare_update: |new, _| join_data_sources(new),
        validate,
        validate_update,
        validate_status,
        ..Strategy::default()
    }
}

fn validate(value: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    spec(&At::root(value).child("spec"), &mut errors);
    errors.0
}

pub(super) fn access_modes(spec: &At<'_>, detail: &str, errors: &mut Errors) {
    let (path, count) = (spec.at("accessModes"), spec.list("accessModes").len());
    if count == 0 {
        errors.required(path, detail);
        return;
    }
    for mode in spec.strings("accessModes") {
        if !ACCESS_MODES.contains(&mode) {
            errors.not_supported(path.clone(), mode, ACCESS_MODES);
        }
    }
    if count > 1 && spec.strings("accessModes").any(|mode| mode == "ReadWriteOncePod") {
        errors.forbidden(path, "may not use ReadWriteOncePod with other access modes");
    }
}

/// The spec of a claim or of a template of claims.
pub(super) fn spec(spec: &At<'_>, errors: &mut Errors) {
    access_modes(spec, "at least 1 access mode is required", errors);
    affinity::label_selector(spec.get("selector"), errors);
    let path = spec.at("resources").key("storage");
    match spec.child("resources").child("requests").quantity("storage") {
        None => errors.required(path, ""),
        Some(amount) if amount.sign() < 0 => {
            errors.invalid(path, amount.to_string(), super::at::NOT_NEGATIVE);
        }
        Some(amount) if amount.is_zero() => errors.invalid(path, amount.to_string(), NOT_POSITIVE),
        Some(_) => {}
    }
    errors.checked(spec, "storageClassName", names::is_dns1123_subdomain);
    errors.optional_one_of(spec, "volumeMode", VOLUME_MODES);
    for field in ["dataSource", "dataSourceRef"] {
        if let Some(source) = spec.get(field) {
            data_source(&source, errors);
        }
    }
    let (source, reference) = (spec.value.get("dataSource"), spec.value.get("dataSourceRef"));
    if let (Some(_), Some(_)) = (source, reference)
        && !same(source, reference)
    {
        errors.invalid(spec.path.clone(), spec.at("dataSource").to_string(), "must match dataSourceRef");
    }
    errors.checked(spec, "volumeAttributesClassName", names::is_dns1123_subdomain);
}

fn data_source(at: &At<'_>, errors: &mut Errors) {
    errors.need(at, "name");
    errors.need(at, "kind");
    let kind = at.str("kind");
    if at.str("apiGroup").is_empty() && kind != "PersistentVolumeClaim" {
        let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.invalid(at.path.clone(), kind, why);
    }
    errors.checked(at, "apiGroup", names::is_dns1123_subdomain);
}

/// The newer field takes over what the older one says, and the other way round where both can.
fn join_data_sources(claim: &mut Value) {
    let Some(spec) = claim.get_mut("spec").and_then(Value::as_object_mut) else { return };
    match (spec.get("dataSource").cloned(), spec.get("dataSourceRef").cloned()) {
        (Some(source), None) => {
            spec.insert("dataSourceRef".into(), source);
        }
        (None, Some(source)) => {
            let group = source["apiGroup"].as_str().unwrap_or_default();
            let claim = group.is_empty() && source["kind"] == "PersistentVolumeClaim";
            if claim || group == "snapshot.storage.k8s.io" && source["kind"] == "VolumeSnapshot" {
                spec.insert("dataSource".into(), source);
            }
        }
        _ => {}
    }
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (root, old_root, mut errors) = (At::root(new), At::root(old), Errors::default());
    let (now, had) = (root.child("spec"), old_root.child("spec"));
    let bound = old_root.child("status").str("phase") == "Bound";
    // What may change is taken from the new claim before the two are compared.
    let mut allowed = had.value.clone();
    let mut take = |field: &str| {
        if let (Some(fields), Some(value)) = (allowed.as_object_mut(), now.value.get(field)) {
            fields.insert(field.into(), value.clone());
        }
    };
    if had.str("volumeName").is_empty() {
        take("volumeName");
    }
    if !had.has("storageClassName") && had.str("volumeName").is_empty() {
        take("storageClassName");
    }
    if bound && !now.str("volumeAttributesClassName").is_empty() {
        take("volumeAttributesClassName");
    }
    if !had.has("dataSourceRef") && had.has("dataSource") {
        take("dataSourceRef");
    }
    let storage =
        |at: &At<'_>| at.child("resources").child("requests").quantity("storage").unwrap_or_default();
    if bound && let Some(requests) = now.value.pointer("/resources/requests/storage") {
        if !allowed["resources"]["requests"].is_object() {
            allowed["resources"] = json!({"requests": {}});
        }
        allowed["resources"]["requests"]["storage"] = requests.clone();
    }
    if !same(Some(now.value), Some(&allowed)) {
        errors.forbidden(
            now.path.clone(),
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let capacity: Quantity =
        old_root.child("status").child("capacity").quantity("storage").unwrap_or_default();
    if bound && storage(&now) < storage(&had) && storage(&now) <= capacity {
        let path = now.at("resources").child("requests").child("storage");
        errors.forbidden(path, "field can not be less than status.capacity");
    }
    errors.immutable(&now, &had, "volumeMode");
    let class = |at: &At<'_>| at.str("volumeAttributesClassName").to_owned();
    if !class(&had).is_empty() && class(&now).is_empty() {
        let path = now.at("volumeAttributesClassName");
        errors.forbidden(path, "update from non-nil value to nil is forbidden");
    }
    errors.0
}

const RESIZE_STATUSES: &[&str] = &[
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

fn validate_status(new: &Value, _: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(new), Errors::default());
    let status = root.child("status");
    for list in ["capacity", "allocatedResources"] {
        for (name, value) in status.entries(list) {
            if list == "capacity" || resource_key(name, &status.at(list), &mut errors) {
                let amount = Quantity::from_value(value).unwrap_or_default();
                super::resources::quantity(name, amount, &status.at(list).key(name), &mut errors);
            }
        }
    }
    let path = status.at("allocatedResourceStatuses");
    for (name, value) in status.entries("allocatedResourceStatuses") {
        resource_key(name, &path, &mut errors);
        // Upstream shows the name of the resource, not its status.
        if !RESIZE_STATUSES.iter().any(|known| value == known) {
            errors.not_supported(path.clone(), name.as_str(), RESIZE_STATUSES);
        }
    }
    errors.0
}

/// What a claim is allocated: storage, or what is not Kubernetes' own.
fn resource_key(name: &str, path: &Path, errors: &mut Errors) -> bool {
    let messages = names::is_qualified_name(name);
    let known = messages.is_empty() && (name == "storage" || !super::resources::is_native(name));
    if messages.is_empty() && !known {
        errors.not_supported(path.clone(), name, &["storage"]);
    }
    errors.each(path, name, messages);
    known
}
