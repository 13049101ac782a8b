//! Jobs and CronJobs.

use super::{Object, child, each, existing, pod, set, set_text};
use serde_json::Value;

pub(super) fn job(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    set(object, "status", Object::new());
    labels_of_template(object);
    let Some(spec) = child(object, "spec") else { return };
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        set(spec, "completions", 1);
    }
    set(spec, "parallelism", 1);
    let retries = if spec.contains_key("backoffLimitPerIndex") { i32::MAX } else { 6 };
    set(spec, "backoffLimit", retries);
    set(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    set(spec, "manualSelector", false);
    let replacement = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    set(spec, "podReplacementPolicy", replacement);
    job_spec(spec);
}

/// What Jobs and templates of Jobs share.
fn job_spec(spec: &mut Object) {
    if let Some(policy) = existing(spec, "podFailurePolicy") {
        for rule in each(policy, "rules") {
            each(rule, "onPodConditions").for_each(|condition| set_text(condition, "status", "True"));
        }
    }
    pod::template(spec);
}

pub(super) fn cron_job(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    set(object, "status", Object::new());
    let Some(spec) = child(object, "spec") else { return };
    set_text(spec, "concurrencyPolicy", "Allow");
    set(spec, "suspend", false);
    set(spec, "successfulJobsHistoryLimit", 3);
    set(spec, "failedJobsHistoryLimit", 1);
    let Some(job) = existing(spec, "jobTemplate") else { return };
    set(job, "metadata", Object::new());
    if let Some(spec) = child(job, "spec") {
        job_spec(spec);
    }
}

/// An object without labels takes those of its Pods.
pub(super) fn labels_of_template(object: &mut Object) {
    let labels = object.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).cloned();
    let Some(labels) = labels.filter(|labels| labels.as_object().is_some_and(|map| !map.is_empty())) else {
        return;
    };
    let Some(metadata) = existing(object, "metadata") else { return };
    if metadata.get("labels").and_then(Value::as_object).is_none_or(Object::is_empty) {
        metadata.insert("labels".into(), labels);
    }
}
