//! The group `storage.k8s.io`: classes, CSI drivers and nodes, attachments, capacities.

use super::at::{At, Errors, NOT_NEGATIVE, same};
use super::{affinity, persistent_volume};
use crate::field::{FieldError, Path};
use crate::kinds::Strategy;
use crate::{meta, names};
use serde_json::Value;

const DRIVER_NAME_MAX_BYTES: usize = 63;
const NODE_ID_MAX_BYTES: usize = 192;
const PARAMETERS_MAX: usize = 512;
const PARAMETERS_MAX_BYTES: usize = 256 * 1024;
const TOKEN_MIN_S: i64 = 600;
const TOKEN_MAX_S: i64 = 1 << 32;

pub(super) fn strategy(kind: &str) -> Strategy {
    let none = Strategy::default();
    match kind {
        "StorageClass" => Strategy { validate: class, validate_update: class_update, ..none },
        "VolumeAttributesClass" => {
            Strategy { validate: attributes_class, validate_update: attributes_class_update, ..none }
        }
        "VolumeAttachment" => Strategy {
            validate: attachment,
            validate_update: |new, old| immutable(new, old, &["spec"]),
            ..none
        },
        "CSIDriver" => Strategy { validate: driver, validate_update: driver_update, ..none },
        "CSINode" => Strategy { validate: node, validate_update: node_update, ..none },
        "CSIStorageCapacity" => Strategy {
            validate: capacity,
            validate_update: |new, old| immutable(new, old, &["nodeTopology", "storageClassName"]),
            ..none
        },
        _ => none,
    }
}

fn immutable(new: &Value, old: &Value, fields: &[&str]) -> Vec<FieldError> {
    let (root, old_root, mut errors) = (At::root(new), At::root(old), Errors::default());
    fields.iter().for_each(|field| errors.immutable(&root, &old_root, field));
    errors.0
}

/// The name of a CSI driver, which may have upper-case letters.
pub(super) fn driver_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path.clone(), "");
        return;
    }
    if name.len() > DRIVER_NAME_MAX_BYTES {
        errors.push(FieldError::too_long(path.clone(), DRIVER_NAME_MAX_BYTES));
    }
    errors.each(path, name, names::is_dns1123_subdomain(&name.to_lowercase()));
}

fn parameters(at: &At<'_>, errors: &mut Errors) {
    let (path, mut bytes, mut count) = (at.at("parameters"), 0, 0);
    for (key, value) in at.entries("parameters") {
        if key.is_empty() {
            errors.invalid(path.clone(), key.as_str(), "field can not be empty.");
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
        count += 1;
    }
    if count > PARAMETERS_MAX {
        errors.push(FieldError::too_long(path.clone(), PARAMETERS_MAX));
    }
    if bytes > PARAMETERS_MAX_BYTES {
        errors.push(FieldError::too_long(path, PARAMETERS_MAX_BYTES));
    }
}

fn class(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    if errors.need(&root, "provisioner") {
        let name = root.str("provisioner");
        errors.each(&root.at("provisioner"), name, names::is_qualified_name(&name.to_lowercase()));
    }
    parameters(&root, &mut errors);
    errors.optional_one_of(&root, "reclaimPolicy", &["Delete", "Retain"]);
    errors.one_of(&root, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]);
    let mut terms: Vec<&Value> = Vec::new();
    for term in root.items("allowedTopologies") {
        if terms.iter().any(|other| same(Some(other), Some(term.value))) {
            errors.duplicate(term.at("matchLabelExpressions"), "");
        }
        terms.push(term.value);
        let mut keys: Vec<&str> = Vec::new();
        for expression in term.items("matchLabelExpressions") {
            let key = expression.str("key");
            errors.each(&expression.at("key"), key, names::is_qualified_name(key));
            if keys.contains(&key) {
                errors.duplicate(expression.at("key"), key);
            }
            keys.push(key);
            if expression.list("values").is_empty() {
                errors.required(expression.at("values"), "");
            }
            let values: Vec<&str> = expression.strings("values").collect();
            for (i, value) in values.iter().enumerate().filter(|(i, value)| values[..*i].contains(value)) {
                errors.duplicate(expression.at("values").index(i), *value);
            }
        }
    }
    errors.0
}

fn forbid_changes(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    for field in fields.iter().filter(|field| !same(new.get(**field), old.get(**field))) {
        errors.forbidden(Path::new(field), format!("updates to {field} are forbidden."));
    }
}

fn class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    forbid_changes(new, old, &["parameters", "provisioner", "reclaimPolicy"], &mut errors);
    errors.immutable(&At::root(new), &At::root(old), "volumeBindingMode");
    errors.0
}

fn attributes_class(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    driver_name(root.str("driverName"), &root.at("driverName"), &mut errors);
    if root.entries("parameters").next().is_none() {
        errors.required(root.at("parameters"), "must contain at least one key/value pair");
    }
    parameters(&root, &mut errors);
    errors.0
}

fn attributes_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    forbid_changes(new, old, &["driverName", "parameters"], &mut errors);
    errors.0
}

fn attachment(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    driver_name(spec.str("attacher"), &spec.at("attacher"), &mut errors);
    let source = spec.child("source");
    let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (source.get("inlineVolumeSpec"), source.get("persistentVolumeName")) {
        (None, None) => errors.required(source.path.clone(), why),
        (Some(_), Some(_)) => errors.forbidden(source.path.clone(), why),
        (None, Some(name)) if name.value == "" => {
            errors.required(name.path, "must specify non empty persistentVolumeName");
        }
        (None, Some(_)) => {}
        (Some(inline), None) => {
            if !inline.has("csi") {
                let path = inline.at("csi");
                errors.required(path, "inlineVolumeSpec must have a CSI volume source");
            }
            persistent_volume::spec(&inline, true, &mut errors);
        }
    }
    let node = spec.str("nodeName");
    errors.each(&spec.at("nodeName"), node, names::is_dns1123_subdomain(node));
    errors.0
}

fn driver(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    driver_name(meta::name(value), &Path::new("name"), &mut errors);
    let spec = root.child("spec");
    // Upstream calls the first by another name than the field has.
    for (field, shown) in [
        ("attachRequired", "attachedRequired"),
        ("podInfoOnMount", "podInfoOnMount"),
        ("storageCapacity", "storageCapacity"),
        ("seLinuxMount", "seLinuxMount"),
    ] {
        if !spec.has(field) {
            errors.required(spec.at(shown), "");
        }
    }
    for (i, mode) in spec.strings("volumeLifecycleModes").enumerate() {
        if !matches!(mode, "Persistent" | "Ephemeral") {
            let path = spec.at("volumeLifecycleModes").index(i);
            errors.not_supported(path, mode, &["Persistent", "Ephemeral"]);
        }
    }
    errors.one_of(&spec, "fsGroupPolicy", &["ReadWriteOnceWithFSType", "File", "None"]);
    let mut audiences: Vec<&str> = Vec::new();
    for request in spec.items("tokenRequests") {
        let audience = request.str("audience");
        if audiences.contains(&audience) {
            errors.duplicate(request.at("audience"), audience);
        }
        audiences.push(audience);
        if let Some(seconds) = request.int("expirationSeconds") {
            let path = request.at("expirationSeconds");
            if seconds < TOKEN_MIN_S {
                errors.invalid(path, seconds, "may not specify a duration less than 10 minutes");
            } else if seconds > TOKEN_MAX_S {
                errors.invalid(path, seconds, "may not specify a duration larger than 2^32 seconds");
            }
        }
    }
    if let Some(seconds) = spec.int("nodeAllocatableUpdatePeriodSeconds").filter(|s| *s < 10) {
        let path = spec.at("nodeAllocatableUpdatePeriodSeconds");
        errors.invalid(path, seconds, "must be greater than or equal to 10 seconds");
    }
    errors.0
}

fn driver_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (now, had, mut errors) =
        (At::root(new).child("spec"), At::root(old).child("spec"), Errors::default());
    for (field, shown) in [
        ("attachRequired", "attachedRequired"),
        ("fsGroupPolicy", "fsGroupPolicy"),
        ("volumeLifecycleModes", "volumeLifecycleModes"),
    ] {
        if !same(now.value.get(field), had.value.get(field)) {
            let value = now.value.get(field).cloned().unwrap_or_default();
            errors.invalid(now.at(shown), value, names::FIELD_IMMUTABLE);
        }
    }
    errors.0
}

fn node(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let mut seen: Vec<&str> = Vec::new();
    for driver in root.child("spec").items("drivers") {
        let name = driver.str("name");
        driver_name(name, &driver.at("name"), &mut errors);
        if !name.is_empty() && seen.contains(&name) {
            errors.duplicate(driver.at("name"), name);
        }
        seen.push(name);
        if errors.need(&driver, "nodeID") && driver.str("nodeID").len() > NODE_ID_MAX_BYTES {
            let why = format!("must be {NODE_ID_MAX_BYTES} characters or less");
            errors.invalid(driver.at("nodeID"), driver.str("nodeID"), why);
        }
        let allocatable = driver.child("allocatable");
        if let Some(count) = allocatable.int("count").filter(|count| *count < 0) {
            errors.invalid(allocatable.at("count"), count, NOT_NEGATIVE);
        }
        let keys: Vec<&str> = driver.strings("topologyKeys").collect();
        let path = driver.at("topologyKeys");
        for (i, key) in keys.iter().enumerate() {
            if keys[..i].contains(key) {
                errors.duplicate(path.clone(), *key);
            }
            errors.each(&path, key, names::is_qualified_name(key));
        }
    }
    errors.0
}

/// Drivers come and go; one that stays keeps what it is, but for how much it can take.
fn node_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (now, had, mut errors) =
        (At::root(new).child("spec"), At::root(old).child("spec"), Errors::default());
    let fixed = |driver: &Value| {
        let mut driver = driver.clone();
        if let Some(fields) = driver.as_object_mut() {
            fields.remove("allocatable");
        }
        driver
    };
    for driver in now.items("drivers") {
        let before = had.list("drivers").iter().find(|other| other["name"] == driver.value["name"]);
        if before.is_some_and(|before| !same(Some(&fixed(before)), Some(&fixed(driver.value)))) {
            errors.invalid(now.at("drivers"), driver.value.clone(), names::FIELD_IMMUTABLE);
        }
    }
    errors.0
}

fn capacity(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let class = root.str("storageClassName");
    errors.each(&root.at("storageClassName"), class, names::is_dns1123_subdomain(class));
    for field in ["capacity", "maximumVolumeSize"] {
        if let Some(amount) = root.quantity(field).filter(|amount| amount.sign() < 0) {
            errors.invalid(root.at(field), amount.to_string(), NOT_NEGATIVE);
        }
    }
    affinity::label_selector(root.get("nodeTopology"), &mut errors);
    errors.0
}
