//! Deployments and ReplicaSets.

use super::{Object, child, pod, set, set_text, text};
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
    set(object, "status", Object::new());
    let Some(spec) = child(object, "spec") else { return };
    set(spec, "replicas", 1);
    pod::template(spec);
}
