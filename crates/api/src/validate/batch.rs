//! Job and CronJob.

use super::at::{At, Errors, same};
use super::{affinity, job_status, pod, warnings};
use crate::field::{ErrorKind, FieldError};
use crate::kinds::Strategy;
use crate::selector::LabelSelector;
use crate::{cron, meta, names};
use serde_json::{Value, json};

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
/// The same labels as they were called first.
const OLD_CONTROLLER_UID: &str = "controller-uid";
const OLD_JOB_NAME: &str = "job-name";

const INDEXED_MAX: i64 = 100_000;
const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const MANAGED_BY_MAX_BYTES: usize = 63;
const SUCCEEDED_INDEXES_MAX_BYTES: usize = 64 * 1024;
/// The controller appends eleven characters to the name of a CronJob.
const CRON_JOB_NAME_MAX_BYTES: usize = 52;

pub(super) fn strategy(kind: &str) -> Strategy {
    match kind {
        "Job" => Strategy {
            prepare_create: generate_selector,
            validate: job,
            validate_create: job_create,
            validate_update: job_update,
            validate_status: job_status::validate,
            warnings: warnings::for_workload,
            selectable: |value| vec![("status.successful", super::number(value, &["status", "succeeded"]))],
            selectable_keys: &["status.successful"],
            ..Strategy::default()
        },
        "CronJob" => Strategy {
            validate: cron_job,
            validate_create: cron_job_create,
            warnings: warnings::for_cron_job,
            ..Strategy::default()
        },
        _ => Strategy::default(),
    }
}

/// Unless the client chose its own selector, Pods are chosen by the uid of their Job.
fn generate_selector(job: &mut Value) {
    if job.pointer("/spec/manualSelector") == Some(&Value::Bool(true)) {
        return;
    }
    let (uid, name) = (meta::uid(job).to_owned(), meta::name(job).to_owned());
    let Some(spec) = job.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    fill(&mut spec["selector"], "matchLabels", &[(CONTROLLER_UID, &uid)]);
    let Some(template) = spec.get_mut("template").filter(|template| template.is_object()) else { return };
    let labels =
        [(OLD_JOB_NAME, &name), (OLD_CONTROLLER_UID, &uid), (JOB_NAME, &name), (CONTROLLER_UID, &uid)];
    fill(&mut template["metadata"], "labels", &labels);
}

/// Adds entries to a map in a field, where they are missing.
fn fill(holder: &mut Value, field: &str, entries: &[(&str, &String)]) {
    if holder.is_null() {
        *holder = json!({});
    }
    let Some(map) = holder.as_object_mut().map(|h| h.entry(field).or_insert_with(|| json!({}))) else {
        return;
    };
    for (key, value) in entries {
        if let Some(map) = map.as_object_mut() {
            map.entry(*key).or_insert_with(|| (*value).clone().into());
        }
    }
}

fn job(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    job_spec(&spec, &mut errors);
    let selector = spec.get("selector");
    if selector.is_none() {
        errors.required(spec.at("selector"), "");
    }
    affinity::label_selector(selector.clone(), &mut errors);
    let parsed = LabelSelector::from_object(selector.map(|at| at.value));
    let template = spec.child("template");
    if let Ok(selector) = &parsed
        && !selector.matches(template.value)
    {
        let labels = template.value.pointer("/metadata/labels").cloned().unwrap_or_default();
        let path = template.at("metadata").child("labels");
        errors.invalid(path, labels, "`selector` does not match template `labels`");
    }
    if spec.bool("manualSelector") {
        return errors.0;
    }
    let expected = [
        (CONTROLLER_UID, meta::uid(value)),
        (JOB_NAME, meta::name(value)),
        (OLD_CONTROLLER_UID, meta::uid(value)),
        (OLD_JOB_NAME, meta::name(value)),
    ];
    for (key, wanted) in expected {
        let path = template.at("metadata").child("labels").key(key);
        let why = format!("must be '{wanted}'");
        match meta::label(template.value, key) {
            Some(found) if found == wanted => {}
            Some(found) => errors.invalid(path, found, why),
            None => errors.required(path, &why),
        }
    }
    let labels =
        json!({"metadata": {"labels": expected.into_iter().collect::<std::collections::BTreeMap<_, _>>()}});
    if parsed.is_ok_and(|selector| !selector.matches(&labels)) {
        let value = spec.child("selector").value.clone();
        errors.invalid(spec.at("selector"), value, "`selector` not auto-generated");
    }
    errors.0
}

/// What Jobs and templates of Jobs have in common.
fn job_spec(spec: &At<'_>, errors: &mut Errors) {
    errors.not_negative(
        spec,
        &[
            "parallelism",
            "completions",
            "activeDeadlineSeconds",
            "backoffLimit",
            "ttlSecondsAfterFinished",
            "backoffLimitPerIndex",
            "maxFailedIndexes",
        ],
    );
    let indexed = completion_mode(spec, errors);
    per_index(spec, indexed, errors);
    let template = spec.child("template");
    if let Some(policy) = spec.get("podFailurePolicy") {
        failure_policy(&policy, spec, errors);
    }
    if let Some(policy) = spec.get("successPolicy") {
        if indexed {
            success_policy(&policy, spec, errors);
        } else {
            errors.invalid(policy.path, policy.value.clone(), "requires indexed completion mode");
        }
    }
    if spec.has("managedBy") {
        managed_by(spec, errors);
    }
    match spec.str("podReplacementPolicy") {
        "" | "Failed" => {}
        other if spec.has("podFailurePolicy") => {
            errors.not_supported(spec.at("podReplacementPolicy"), other, &["Failed"]);
        }
        "TerminatingOrFailed" => {}
        other => {
            let supported = &["Failed", "TerminatingOrFailed"];
            errors.not_supported(spec.at("podReplacementPolicy"), other, supported);
        }
    }
    pod::template(&template, errors);
    restart_policy(spec, &template.child("spec"), errors);
}

fn restart_policy(spec: &At<'_>, pod: &At<'_>, errors: &mut Errors) {
    let (policy, path) = (pod.str("restartPolicy"), pod.at("restartPolicy"));
    match policy {
        "OnFailure" | "Never" => {}
        "Always" => errors.required(path.clone(), "valid values: \"OnFailure\", \"Never\""),
        _ => errors.not_supported(path.clone(), policy, &["OnFailure", "Never"]),
    }
    for field in ["podFailurePolicy", "backoffLimitPerIndex"] {
        if spec.has(field) && policy != "Never" {
            let why = format!("only \"Never\" is supported when {field} is specified");
            errors.invalid(path.clone(), policy, why);
        }
    }
}

/// Whether Pods have an index.
fn completion_mode(spec: &At<'_>, errors: &mut Errors) -> bool {
    match spec.str("completionMode") {
        "Indexed" => {
            if !spec.has("completions") {
                errors.required(spec.at("completions"), "when completion mode is Indexed");
            }
            if let Some(n) = spec.int("parallelism").filter(|n| *n > INDEXED_MAX) {
                let why =
                    format!("must be less than or equal to {INDEXED_MAX} when completion mode is Indexed");
                errors.invalid(spec.at("parallelism"), n, why);
            }
            true
        }
        "NonIndexed" => false,
        other => {
            if spec.has("completionMode") {
                errors.not_supported(spec.at("completionMode"), other, &["NonIndexed", "Indexed"]);
            }
            false
        }
    }
}

fn per_index(spec: &At<'_>, indexed: bool, errors: &mut Errors) {
    for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
        if let Some(n) = spec.int(field).filter(|_| !indexed) {
            errors.invalid(spec.at(field), n, "requires indexed completion mode");
        }
    }
    let Some(failed) = spec.int("maxFailedIndexes") else { return };
    if !spec.has("backoffLimitPerIndex") {
        errors.required(spec.at("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if let Some(completions) = spec.int("completions")
        && indexed
    {
        if failed > completions {
            errors.invalid(spec.at("maxFailedIndexes"), failed, "must be less than or equal to completions");
        }
        if failed > INDEXED_MAX {
            let why = format!("must be less than or equal to {INDEXED_MAX}");
            errors.invalid(spec.at("maxFailedIndexes"), failed, why);
        }
    }
}

fn managed_by(spec: &At<'_>, errors: &mut Errors) {
    errors.domain_prefixed_path(spec, "managedBy");
    if spec.str("managedBy").len() > MANAGED_BY_MAX_BYTES {
        errors.push(FieldError::too_long(spec.at("managedBy"), MANAGED_BY_MAX_BYTES));
    }
}

fn failure_policy(policy: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    let count = policy.list("rules").len();
    if count > RULES_MAX {
        errors.push(FieldError::too_many(policy.at("rules"), count, RULES_MAX));
    }
    let pod = spec.child("template").child("spec");
    let containers: Vec<&str> =
        pod.items("containers").chain(pod.items("initContainers")).map(|c| c.str("name")).collect();
    for rule in policy.items("rules") {
        match rule.str("action") {
            "FailIndex" if !spec.has("backoffLimitPerIndex") => {
                let why = "requires the backoffLimitPerIndex to be set";
                errors.invalid(rule.at("action"), "FailIndex", why);
            }
            "Count" | "FailIndex" | "FailJob" | "Ignore" => {}
            "" => errors.required(
                rule.at("action"),
                "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
            ),
            other => {
                let supported = &["Count", "FailIndex", "FailJob", "Ignore"];
                errors.not_supported(rule.at("action"), other, supported);
            }
        }
        let (codes, conditions) = (rule.get("onExitCodes"), rule.list("onPodConditions"));
        let which = match (&codes, conditions.is_empty()) {
            (Some(_), false) => Some("specifying both OnExitCodes and OnPodConditions is not supported"),
            (None, true) => Some("specifying one of OnExitCodes and OnPodConditions is required"),
            _ => None,
        };
        if let Some(why) = which {
            let kind = ErrorKind::Invalid;
            errors.push(FieldError { kind, path: rule.path.clone(), value: None, detail: why.into() });
        }
        if let Some(codes) = codes {
            exit_codes(&codes, &containers, errors);
        }
        if conditions.len() > RULES_MAX {
            errors.push(FieldError::too_many(rule.at("onPodConditions"), conditions.len(), RULES_MAX));
        }
        for condition in rule.items("onPodConditions") {
            let name = condition.str("type");
            errors.each(&condition.at("type"), name, names::is_qualified_name(name));
            errors.one_of(&condition, "status", &["False", "True", "Unknown"]);
        }
    }
}

fn exit_codes(at: &At<'_>, containers: &[&str], errors: &mut Errors) {
    let operator = at.str("operator");
    errors.one_of(at, "operator", &["In", "NotIn"]);
    let name = at.str("containerName");
    if at.has("containerName") && !containers.contains(&name) {
        let why = "must be one of the container or initContainer names in the pod template";
        errors.invalid(at.at("containerName"), name, why);
    }
    let values: Vec<i64> = at.list("values").iter().filter_map(Value::as_i64).collect();
    let path = at.at("values");
    match values.len() {
        0 => errors.invalid(path, Vec::<i64>::new(), "at least one value is required"),
        count if count > EXIT_CODES_MAX => errors.push(FieldError::too_many(path, count, EXIT_CODES_MAX)),
        _ => {
            for (i, value) in values.iter().enumerate() {
                if values[..i].contains(value) {
                    errors.duplicate(path.index(i), *value);
                }
                if *value == 0 && operator == "In" {
                    errors.invalid(path.index(i), 0, "must not be 0 for the In operator");
                }
            }
            if !values.is_sorted() {
                errors.invalid(path, values, "must be ordered");
            }
        }
    }
}

fn success_policy(policy: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    let (count, path) = (policy.list("rules").len(), policy.at("rules"));
    if count == 0 {
        errors.required(
            path.clone(),
            "at least one rules must be specified when the successPolicy is specified",
        );
    }
    if count > RULES_MAX {
        errors.push(FieldError::too_many(path, count, RULES_MAX));
    }
    let completions = spec.int("completions");
    for rule in policy.items("rules") {
        errors.not_negative(&rule, &["succeededCount"]);
        if !rule.has("succeededCount") && !rule.has("succeededIndexes") {
            let why = "at least one of succeededCount or succeededIndexes must be specified";
            errors.required(rule.path.clone(), why);
        }
        let wanted = rule.int("succeededCount");
        let indexes = rule.str("succeededIndexes");
        if rule.has("succeededIndexes") {
            let path = rule.at("succeededIndexes");
            if indexes.len() > SUCCEEDED_INDEXES_MAX_BYTES {
                errors.push(FieldError::too_long(path.clone(), SUCCEEDED_INDEXES_MAX_BYTES));
            }
            match count_indexes(indexes, completions.unwrap_or(i64::MAX)) {
                Err(why) => errors.invalid(path, indexes, format!("error parsing succeededIndexes: {why}")),
                Ok(total) => {
                    if let Some(wanted) = wanted.filter(|wanted| *wanted > total) {
                        let why = format!(
                            "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
                        );
                        errors.invalid(rule.at("succeededCount"), wanted, why);
                    }
                }
            }
        }
        if let (Some(wanted), Some(completions)) = (wanted, completions)
            && wanted > completions
        {
            let why =
                format!("must be less than or equal to {completions} (the number of specified completions)");
            errors.invalid(rule.at("succeededCount"), wanted, why);
        }
    }
}

/// The first and last index that `3-5` or `3` names.
pub(super) fn interval(text: &str, completions: i64) -> Result<(i64, i64), String> {
    let number = |text: &str, what: &str| -> Result<i64, String> {
        let parsed = text.parse::<i64>().ok().filter(|n| *n >= 0);
        let index = parsed.ok_or_else(|| format!("cannot convert string to integer for index: {text:?}"))?;
        match index < completions {
            true => Ok(index),
            false => Err(format!("too large index for {what}: {text:?}")),
        }
    };
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let (start, end) = (number(start, "interval start")?, number(end, "interval end")?);
    match start <= end {
        true => Ok((start, end)),
        false => Err(format!("non-increasing order, previous: {start}, current: {end}")),
    }
}

/// How many indexes `1,3-5` names.
pub(super) fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut total, mut last) = (0, -1);
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (start, end) = interval(part, completions)?;
        if start <= last {
            return Err(format!("non-increasing order, previous: {last}, current: {start}"));
        }
        total += end - start + 1;
        last = end;
    }
    Ok(total)
}

fn job_create(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    if let ("Indexed", Some(completions)) =
        (spec.str("completionMode"), spec.int("completions").filter(|n| *n > 0))
    {
        let hostname = format!("{}-{}", meta::name(value), completions - 1);
        for message in names::is_dns1123_label(&hostname) {
            let why = format!("will not able to create pod with invalid DNS label: {hostname}: {message}");
            errors.invalid(root.at("metadata").child("name"), meta::name(value), why);
        }
    }
    errors.0
}

fn job_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (spec, old_spec, mut errors) =
        (At::root(new).child("spec"), At::root(old).child("spec"), Errors::default());
    let elastic =
        spec.str("completionMode") == "Indexed" && spec.has("completions") && old_spec.has("completions");
    if !elastic {
        errors.immutable(&spec, &old_spec, "completions");
    } else if spec.int("completions") != old_spec.int("completions")
        && spec.int("completions") != spec.int("parallelism")
    {
        let why = format!("can only be modified in tandem with {}", spec.at("parallelism"));
        errors.invalid(spec.at("completions"), spec.int("completions"), why);
    }
    errors.immutable(&spec, &old_spec, "selector");
    let suspended = old_spec.bool("suspend") && !At::root(old).child("status").has("startTime");
    let template = |at: &At<'_>| match suspended {
        true => without_scheduling(at.child("template").value),
        false => at.child("template").value.clone(),
    };
    if !same(Some(&template(&spec)), Some(&template(&old_spec))) {
        let value = spec.child("template").value.clone();
        errors.invalid(spec.at("template"), value, names::FIELD_IMMUTABLE);
    }
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        errors.immutable(&spec, &old_spec, field);
    }
    errors.0
}

/// A template without what may change while a Job is suspended and was never started: where its
/// Pods go.
fn without_scheduling(template: &Value) -> Value {
    let mut template = template.clone();
    let mut drop_of = |holder: &str, fields: &[&str]| {
        if let Some(map) = template.get_mut(holder).and_then(Value::as_object_mut) {
            fields.iter().for_each(|field| drop(map.remove(*field)));
        }
    };
    drop_of("metadata", &["labels", "annotations"]);
    drop_of("spec", &["nodeSelector", "tolerations", "schedulingGates"]);
    if let Some(affinity) = template.pointer_mut("/spec/affinity").and_then(Value::as_object_mut) {
        affinity.remove("nodeAffinity");
    }
    template
}

fn cron_job(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    let (schedule, path) = (spec.str("schedule"), spec.at("schedule"));
    if errors.need(&spec, "schedule") {
        if let Err(why) = cron::check(schedule) {
            errors.invalid(path.clone(), schedule, why);
        }
        if schedule.contains("TZ") {
            let why = match spec.has("timeZone") {
                true => "cannot use both timeZone field and TZ or CRON_TZ in schedule",
                false => "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            };
            errors.invalid(path, schedule, why);
        }
    }
    errors.not_negative(
        &spec,
        &["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"],
    );
    errors.one_of(&spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"]);
    if spec.has("timeZone") {
        time_zone(&spec, &mut errors);
    }
    job_spec(&spec.child("jobTemplate").child("spec"), &mut errors);
    errors.0
}

fn time_zone(spec: &At<'_>, errors: &mut Errors) {
    let (zone, path) = (spec.str("timeZone"), spec.at("timeZone"));
    if zone.is_empty() {
        errors.invalid(path, zone, "timeZone must be nil or non-empty string");
    } else if zone.eq_ignore_ascii_case("local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.invalid(path, zone, why);
    } else if !cron::is_time_zone(zone) {
        errors.invalid(path, zone, format!("unknown time zone {zone}"));
    }
}

fn cron_job_create(value: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if meta::name(value).len() > CRON_JOB_NAME_MAX_BYTES {
        let why = format!("must be no more than {CRON_JOB_NAME_MAX_BYTES} characters");
        errors.invalid(At::root(value).at("metadata").child("name"), meta::name(value), why);
    }
    errors.0
}
