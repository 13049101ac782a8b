//! Claims, volumes, and the group `storage.k8s.io`.

use super::{Object, child, each, existing, pod, set, set_text};
use serde_json::Value;

pub(super) fn claim(object: &mut Value) {
    if let Some(object) = object.as_object_mut() {
        claim_fields(object);
    }
}

/// A claim, also as a template in a StatefulSet.
pub(super) fn claim_fields(object: &mut Object) {
    if let Some(status) = child(object, "status") {
        set_text(status, "phase", "Pending");
        pod::round_resources(status, "capacity");
    }
    if let Some(spec) = child(object, "spec") {
        claim_spec(spec);
    }
}

pub(super) fn claim_spec(spec: &mut Object) {
    set(spec, "volumeMode", "Filesystem");
    if let Some(resources) = child(spec, "resources") {
        pod::resource_lists(resources);
    }
}

pub(super) fn volume(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(status) = child(object, "status") {
        set_text(status, "phase", "Pending");
    }
    if let Some(spec) = child(object, "spec") {
        volume_spec(spec);
    }
}

fn volume_spec(spec: &mut Object) {
    set_text(spec, "persistentVolumeReclaimPolicy", "Retain");
    set(spec, "volumeMode", "Filesystem");
    pod::round_resources(spec, "capacity");
    pod::volume_sources(spec);
}

pub(super) fn class(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    set(object, "reclaimPolicy", "Delete");
    set(object, "volumeBindingMode", "Immediate");
}

pub(super) fn attachment(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(status) = child(object, "status") {
        set(status, "attached", false);
    }
    let source = existing(object, "spec").and_then(|spec| existing(spec, "source"));
    if let Some(inline) = source.and_then(|source| existing(source, "inlineVolumeSpec")) {
        set(inline, "volumeMode", "Filesystem");
        pod::volume_sources(inline);
    }
}

pub(super) fn driver(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    let Some(spec) = child(object, "spec") else { return };
    set(spec, "attachRequired", true);
    set(spec, "podInfoOnMount", false);
    set(spec, "storageCapacity", false);
    set(spec, "requiresRepublish", false);
    set(spec, "seLinuxMount", false);
    set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if spec.get("volumeLifecycleModes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        spec.insert("volumeLifecycleModes".into(), vec![Value::from("Persistent")].into());
    }
}

pub(super) fn node(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(spec) = child(object, "spec") {
        each(spec, "drivers").for_each(|driver| set(driver, "topologyKeys", Value::Null));
    }
}
