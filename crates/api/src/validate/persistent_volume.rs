//! PersistentVolumes.

use super::at::{At, Errors, same};
use super::volume_claim::{NOT_POSITIVE, VOLUME_MODES, access_modes};
use super::{affinity, storage, volume};
use crate::field::{FieldError, Path};
use crate::kinds::Strategy;
use crate::names;
use crate::quantity::Quantity;
use serde_json::{Map, Value, json};

pub(super) fn strategy() -> Strategy {
    Strategy { prepare_create, validate, validate_update, ..Strategy::default() }
}

/// A new volume is pending since now.
fn prepare_create(volume: &mut Value) {
    let now = volume.pointer("/metadata/creationTimestamp").cloned();
    let Some(fields) = volume.as_object_mut() else { return };
    let mut status = json!({"phase": "Pending"});
    if let Some(now) = now {
        status["lastPhaseTransitionTime"] = now;
    }
    fields.insert("status".into(), status);
}

fn validate(value: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    spec(&At::root(value).child("spec"), false, &mut errors);
    errors.0
}

/// The spec of a volume; `inline` is one that a VolumeAttachment carries.
pub(super) fn spec(at: &At<'_>, inline: bool, errors: &mut Errors) {
    access_modes(at, "", errors);
    if !inline {
        capacity(at, errors);
        let policy = at.str("persistentVolumeReclaimPolicy");
        if !policy.is_empty() {
            errors.optional_one_of(at, "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"]);
        }
        if policy == "Recycle" && at.child("hostPath").str("path") == "/" {
            let why = "may not be 'recycle' for a hostPath mount of '/'";
            errors.forbidden(at.at("persistentVolumeReclaimPolicy"), why);
        }
    }
    if let Some(nodes) = at.get("nodeAffinity") {
        match nodes.get("required") {
            Some(selector) => affinity::node_selector(&selector, errors),
            None => errors.required(nodes.at("required"), "must specify required node constraints"),
        }
    } else if at.has("local") {
        errors.required(at.at("nodeAffinity"), "Local volume requires node affinity");
    }
    volume::persistent_source(at, errors);
    errors.checked(at, "storageClassName", names::is_dns1123_subdomain);
    errors.optional_one_of(at, "volumeMode", VOLUME_MODES);
    if at.has("volumeAttributesClassName") {
        errors.need(at, "volumeAttributesClassName");
        errors.checked(at, "volumeAttributesClassName", names::is_dns1123_subdomain);
        if !at.has("csi") {
            errors.required(at.at("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
}

fn capacity(at: &At<'_>, errors: &mut Errors) {
    let path = at.at("capacity");
    let amounts: Vec<(&String, &Value)> = at.entries("capacity").collect();
    if amounts.is_empty() {
        errors.required(path, "");
        return;
    }
    if amounts.len() > 1 || amounts[0].0 != "storage" {
        errors.not_supported(path.clone(), at.child("capacity").value.clone(), &["storage"]);
    }
    for (name, value) in amounts {
        let amount = Quantity::from_value(value).unwrap_or_default();
        if amount.sign() < 0 {
            errors.invalid(path.key(name), amount.to_string(), "must be a valid resource quantity");
        }
        if amount.sign() <= 0 {
            errors.invalid(path.key(name), amount.to_string(), NOT_POSITIVE);
        }
    }
}

/// A CSI volume of a PersistentVolume.
pub(super) fn csi(at: &At<'_>, errors: &mut Errors) {
    storage::driver_name(at.str("driver"), &at.at("driver"), errors);
    for secret in [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
        "nodeStageSecretRef",
    ] {
        if let Some(secret) = at.get(secret) {
            errors.need(&secret, "name");
            errors.need(&secret, "namespace");
        }
    }
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (now, had, mut errors) =
        (At::root(new).child("spec"), At::root(old).child("spec"), Errors::default());
    let source = |at: &At<'_>| {
        let fields = volume::source_fields().filter_map(|f| Some((f.to_owned(), at.value.get(f)?.clone())));
        Value::Object(fields.collect::<Map<_, _>>())
    };
    if !same(Some(&source(&now)), Some(&source(&had))) {
        let path = Path::new("spec").child("persistentvolumesource");
        errors.forbidden(path, "spec.persistentvolumesource is immutable after creation");
    }
    errors.immutable(&now, &had, "volumeMode");
    if had.has("nodeAffinity") {
        errors.immutable(&now, &had, "nodeAffinity");
    }
    errors.0
}
