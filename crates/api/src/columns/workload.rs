//! Columns of workloads, autoscalers, budgets and quotas.

use super::*;

pub(super) const STATEFUL_SET: &[Row] = &[
    NAME,
    s("Ready", |o, _| {
        format!("{}/{}", number(o, "/status/readyReplicas"), number(o, "/spec/replicas")).into()
    }),
    AGE,
    wide("Containers", |o, _| template(o, "name").into()),
    wide("Images", |o, _| template(o, "image").into()),
];

pub(super) const DAEMON_SET: &[Row] = &[
    NAME,
    i("Desired", |o, _| number(o, "/status/desiredNumberScheduled").into()),
    i("Current", |o, _| number(o, "/status/currentNumberScheduled").into()),
    i("Ready", |o, _| number(o, "/status/numberReady").into()),
    i("Up-to-date", |o, _| number(o, "/status/updatedNumberScheduled").into()),
    i("Available", |o, _| number(o, "/status/numberAvailable").into()),
    s("Node Selector", |o, _| labels(o.pointer("/spec/template/spec/nodeSelector")).into()),
    AGE,
    wide("Containers", |o, _| template(o, "name").into()),
    wide("Images", |o, _| template(o, "image").into()),
    wide("Selector", |o, _| selector(o).into()),
];

pub(super) const REPLICATION_CONTROLLER: &[Row] = &[
    NAME,
    i("Desired", |o, _| number(o, "/spec/replicas").into()),
    i("Current", |o, _| number(o, "/status/replicas").into()),
    i("Ready", |o, _| number(o, "/status/readyReplicas").into()),
    AGE,
    wide("Containers", |o, _| template(o, "name").into()),
    wide("Images", |o, _| template(o, "image").into()),
    wide("Selector", |o, _| labels(o.pointer("/spec/selector")).into()),
];

pub(super) const POD_TEMPLATE: &[Row] = &[
    NAME,
    s("Containers", |o, _| containers(o, "/template/spec/containers", "name").into()),
    s("Images", |o, _| containers(o, "/template/spec/containers", "image").into()),
    s("Pod Labels", |o, _| labels(o.pointer("/template/metadata/labels")).into()),
];

pub(super) const JOB: &[Row] = &[
    NAME,
    s("Status", |o, _| job_status(o).into()),
    s("Completions", |o, _| completions(o).into()),
    s("Duration", |o, now| job_duration(o, now).into()),
    AGE,
    wide("Containers", |o, _| template(o, "name").into()),
    wide("Images", |o, _| template(o, "image").into()),
    wide("Selector", |o, _| selector(o).into()),
];

const JOB_CONTAINERS: &str = "/spec/jobTemplate/spec/template/spec/containers";

pub(super) const CRON_JOB: &[Row] = &[
    NAME,
    s("Schedule", |o, _| text(o, "/spec/schedule").into()),
    s("Timezone", |o, _| or(text(o, "/spec/timeZone"), NONE).into()),
    s("Suspend", |o, _| {
        match o.pointer("/spec/suspend").and_then(Value::as_bool) {
            Some(true) => "True",
            Some(false) => "False",
            None => UNSET,
        }
        .into()
    }),
    i("Active", |o, _| size(o, "/status/active").into()),
    s("Last Schedule", |o, now| since(o, "/status/lastScheduleTime", now).unwrap_or(NONE.into()).into()),
    AGE,
    wide("Containers", |o, _| containers(o, JOB_CONTAINERS, "name").into()),
    wide("Images", |o, _| containers(o, JOB_CONTAINERS, "image").into()),
    wide("Selector", |o, _| selector_at(o, "/spec/jobTemplate/spec/selector").into()),
];

pub(super) const AUTOSCALER: &[Row] = &[
    NAME,
    s("Reference", |o, _| {
        format!("{}/{}", text(o, "/spec/scaleTargetRef/kind"), text(o, "/spec/scaleTargetRef/name")).into()
    }),
    s("Targets", |o, _| targets(o).into()),
    s("MinPods", |o, _| o.pointer("/spec/minReplicas").map_or(UNSET.into(), |n| n.to_string()).into()),
    i("MaxPods", |o, _| number(o, "/spec/maxReplicas").into()),
    i("Replicas", |o, _| number(o, "/status/currentReplicas").into()),
    AGE,
];

/// The same of `autoscaling/v1`.
pub(super) const AUTOSCALER_V1: &[Row] = &[
    NAME,
    AUTOSCALER[1],
    s("Targets", |o, _| targets(&crate::autoscaling::to_v2(o.clone())).into()),
    AUTOSCALER[3],
    AUTOSCALER[4],
    AUTOSCALER[5],
    AGE,
];

pub(super) const DISRUPTION_BUDGET: &[Row] = &[
    NAME,
    s("Min Available", |o, _| int_or_string(o, "/spec/minAvailable").into()),
    s("Max Unavailable", |o, _| int_or_string(o, "/spec/maxUnavailable").into()),
    i("Allowed Disruptions", |o, _| number(o, "/status/disruptionsAllowed").into()),
    AGE,
];

pub(super) const QUOTA: &[Row] =
    &[NAME, s("Request", |o, _| quota(o, false).into()), s("Limit", |o, _| quota(o, true).into()), AGE];

pub(super) fn containers(object: &Value, pointer: &str, field: &str) -> String {
    join(list(object, pointer).iter().map(|c| c[field].as_str().unwrap_or("")), ",")
}

fn int_or_string(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "N/A".to_owned(),
        Some(number) => number.to_string(),
    }
}

fn has_condition(object: &Value, kind: &str) -> bool {
    crate::pod::is_condition_true(object, kind)
}

fn job_status(job: &Value) -> &'static str {
    let known = ["Complete", "Failed"].into_iter().find(|kind| has_condition(job, kind));
    known.unwrap_or_else(|| match () {
        () if meta::is_deleting(job) => "Terminating",
        () if has_condition(job, "Suspended") => "Suspended",
        () if has_condition(job, "FailureTarget") => "FailureTarget",
        () if has_condition(job, "SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    })
}

fn completions(job: &Value) -> String {
    let succeeded = number(job, "/status/succeeded");
    match (job.pointer("/spec/completions").and_then(Value::as_i64), number(job, "/spec/parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn job_duration(job: &Value, now: Timestamp) -> String {
    let time = |pointer| job.pointer(pointer).and_then(meta::time);
    match (time("/status/startTime"), time("/status/completionTime")) {
        (None, _) => String::new(),
        (Some(start), end) => ago(start, end.unwrap_or(now)),
    }
}

/// How many metrics one cell lists.
const METRICS_LEN_MAX: usize = 2;

fn targets(autoscaler: &Value) -> String {
    let current = list(autoscaler, "/status/currentMetrics");
    let all: Vec<String> = list(autoscaler, "/spec/metrics")
        .iter()
        .enumerate()
        .map(|(i, m)| target(m, current.get(i)))
        .collect();
    let shown = all[..all.len().min(METRICS_LEN_MAX)].join(", ");
    match all.len() {
        0 => NONE.to_owned(),
        len if len > METRICS_LEN_MAX => format!("{shown} + {} more...", len - METRICS_LEN_MAX),
        _ => shown,
    }
}

/// One metric: what it is, and what it should be.
fn target(metric: &Value, current: Option<&Value>) -> String {
    let (field, named) = match text(metric, "/type") {
        "ContainerResource" => ("containerResource", true),
        "External" => ("external", false),
        "Object" => ("object", false),
        "Pods" => ("pods", false),
        "Resource" => ("resource", true),
        _ => return "<unknown type>".to_owned(),
    };
    let source = metric.get(field).unwrap_or(&Value::Null);
    let now =
        current.filter(|now| now["type"] == metric["type"]).and_then(|now| now.get(field)?.get("current"));
    let name = if named { format!("{}: ", text(source, "/name")) } else { String::new() };
    let is = |field: &str| match now.and_then(|now| now.get(field)) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => UNKNOWN.to_owned(),
        Some(number) => number.to_string(),
    };
    let wanted = source.get("target").unwrap_or(&Value::Null);
    let average = wanted.get("averageValue").map(|_| text(wanted, "/averageValue"));
    match (named, average) {
        (true, Some(average)) => format!("{name}{}/{average}", is("averageValue")),
        (true, None) => {
            let percent = |text: String| if text == UNKNOWN { text } else { format!("{text}%") };
            let wanted = wanted.get("averageUtilization").map_or("<auto>".into(), |n| format!("{n}%"));
            format!("{name}{}/{wanted}", percent(is("averageUtilization")))
        }
        (false, Some(average)) => {
            let suffix = if field == "pods" { "" } else { " (avg)" };
            format!("{}/{average}{suffix}", is("averageValue"))
        }
        (false, None) => format!("{}/{}", is("value"), text(wanted, "/value")),
    }
}

/// `used/hard` of each resource; limits have a cell of their own.
fn quota(quota: &Value, limits: bool) -> String {
    let hard = quota.pointer("/status/hard").and_then(Value::as_object).into_iter().flatten();
    let shown = |value: Option<&Value>| match value {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => "0".to_owned(),
    };
    let parts: BTreeSet<(&String, String)> = hard
        .filter(|(name, _)| name.contains("limits") == limits)
        .map(|(name, hard)| {
            let used = quota.pointer("/status/used").and_then(|used| used.get(name));
            (name, format!("{name}: {}/{}", shown(used), shown(Some(hard))))
        })
        .collect();
    parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>().join(", ")
}
