//! Deployments and the other sets of Pods.

use super::{Object, batch, child, each, pod, set, set_text, storage, text};
use serde_json::Value;

pub(super) fn deployment(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    set(object, "status", Object::new());
    let Some(spec) = child(object, "spec") else { return };
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = child(spec, "strategy") {
        set_text(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            set(rolling, "maxUnavailable", "25%");
            set(rolling, "maxSurge", "25%");
        }
    }
    pod::template(spec);
}

pub(super) fn replica_set(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    counted_status(object, &["replicas"]);
    let Some(spec) = child(object, "spec") else { return };
    set(spec, "replicas", 1);
    pod::template(spec);
}

pub(super) fn stateful_set(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    counted_status(object, &["replicas", "availableReplicas"]);
    let Some(spec) = child(object, "spec") else { return };
    set_text(spec, "podManagementPolicy", "OrderedReady");
    if let Some(strategy) = child(spec, "updateStrategy") {
        set_text(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            set(rolling, "partition", 0);
            set(rolling, "maxUnavailable", 1);
        }
    }
    if let Some(policy) = child(spec, "persistentVolumeClaimRetentionPolicy") {
        set_text(policy, "whenDeleted", "Retain");
        set_text(policy, "whenScaled", "Retain");
    }
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    pod::template(spec);
    for claim in each(spec, "volumeClaimTemplates") {
        set_text(claim, "apiVersion", "v1");
        set_text(claim, "kind", "PersistentVolumeClaim");
        storage::claim_fields(claim);
    }
}

pub(super) fn daemon_set(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    let counts = ["currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady"];
    counted_status(object, &counts);
    let Some(spec) = child(object, "spec") else { return };
    if let Some(strategy) = child(spec, "updateStrategy") {
        set_text(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            set(rolling, "maxUnavailable", 1);
            set(rolling, "maxSurge", 0);
        }
    }
    set(spec, "revisionHistoryLimit", 10);
    pod::template(spec);
}

pub(super) fn replication_controller(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    counted_status(object, &["replicas"]);
    batch::labels_of_template(object);
    let Some(spec) = child(object, "spec") else { return };
    let labels = spec.get("template").and_then(|template| template.pointer("/metadata/labels")).cloned();
    if let Some(labels) = labels
        && spec.get("selector").and_then(Value::as_object).is_none_or(Object::is_empty)
    {
        spec.insert("selector".into(), labels);
    }
    set(spec, "replicas", 1);
    pod::template(spec);
}

pub(super) fn pod_template(object: &mut Value) {
    if let Some(object) = object.as_object_mut() {
        pod::template(object);
    }
}

/// A status with counts that are always shown.
pub(super) fn counted_status(object: &mut Object, counts: &[&str]) {
    let Some(status) = child(object, "status") else { return };
    counts.iter().for_each(|count| set(status, count, 0));
}
