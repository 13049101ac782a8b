//! The status of a Job. Controllers outside the cluster's own may write it (`spec.managedBy`), so it is
//! held to what a Job can be. What a write leaves as it was is not judged again, but for a few rules.
//! Upstream counterpart: the status parts of `pkg/apis/batch/validation` and of the Job strategy (KEP-4368).

use super::at::{At, Errors, same};
use super::batch::{count_indexes, interval};
use crate::field::{ErrorKind, FieldError};
use serde_json::Value;

/// Which of the conditions that lead to the end of a Job hold.
struct End {
    complete: bool,
    failed: bool,
    failing: bool,
    succeeding: bool,
}

impl End {
    fn of(status: &At<'_>) -> Self {
        End {
            complete: is(status, "Complete", "True"),
            failed: is(status, "Failed", "True"),
            failing: is(status, "FailureTarget", "True"),
            succeeding: is(status, "SuccessCriteriaMet", "True"),
        }
    }

    fn is_finished(&self) -> bool {
        self.complete || self.failed
    }
}

fn is(status: &At<'_>, kind: &str, value: &str) -> bool {
    status.list("conditions").iter().any(|c| c["type"] == kind && c["status"] == value)
}

/// A time to the second, as the API keeps it.
fn time(status: &At<'_>, field: &str) -> Option<i64> {
    status.str(field).parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

pub(super) fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let (root, old_root, mut errors) = (At::root(new), At::root(old), Errors::default());
    let (spec, status, had) = (root.child("spec"), root.child("status"), old_root.child("status"));
    errors.not_negative(&status, &["active", "succeeded", "failed", "terminating", "ready"]);
    uncounted(&status, &mut errors);
    indexes(&spec, &status, &had, &mut errors);
    let mut refuse = |wrong: bool, kind: ErrorKind, field: &str, why: &str| {
        if wrong {
            // Conditions are not shown, nor is what is missing but for counts.
            let shown = kind == ErrorKind::Invalid && field != "conditions";
            let value = shown.then(|| status.value.get(field).cloned().unwrap_or_else(|| 0.into()));
            errors.push(FieldError { kind, path: status.at(field), value, detail: why.to_owned() });
        }
    };
    let changed = |field: &str| !same(status.value.get(field), had.value.get(field));
    let (now, was) = (End::of(&status), End::of(&had));
    let finished = now.is_finished();
    let (finishes, completes) = (finished != was.is_finished(), now.complete != was.complete);
    let (fails, targets) = (now.failed != was.failed, now.failing != was.failing);
    let succeeds = now.succeeding != was.succeeding;
    let (start, old_start) = (time(&status, "startTime"), time(&had, "startTime"));
    let (end, old_end) = (time(&status, "completionTime"), time(&had, "completionTime"));
    let (starts, ends) = (start != old_start, end != old_end);
    let count = |of: &At<'_>, field: &str| of.int(field).unwrap_or(0);
    let not_counted = ["succeeded", "failed"]
        .iter()
        .any(|list| !status.child("uncountedTerminatedPods").list(list).is_empty());
    let suspended = spec.bool("suspend");
    let resumes = is(&had, "Suspended", "True") && is(&status, "Suspended", "False");
    // The Pods of an elastic Job may become fewer.
    let elastic =
        spec.str("completionMode") == "Indexed" && spec.int("completions") == spec.int("parallelism");
    let told: [(bool, &str, &str); 20] = [
        (
            now.complete && now.failed && (completes || fails),
            "conditions",
            "cannot set Complete=True and Failed=true conditions",
        ),
        (
            now.complete && now.failing && (completes || targets),
            "conditions",
            "cannot set Complete=True and FailureTarget=true conditions",
        ),
        (
            end.is_some() && !now.complete && (completes || ends),
            "completionTime",
            "cannot set completionTime when there is no Complete=True condition",
        ),
        (
            start.zip(end).is_some_and(|(start, end)| end < start) && (starts || ends),
            "completionTime",
            "completionTime cannot be set before startTime",
        ),
        (
            now.failed && !now.failing && (fails || targets),
            "conditions",
            "cannot set Failed=True condition without the FailureTarget=true condition",
        ),
        (
            now.complete && !now.succeeding && (completes || succeeds),
            "conditions",
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        ),
        (
            finished && count(&status, "active") > 0 && (finishes || changed("active")),
            "active",
            "active>0 is invalid for finished job",
        ),
        (
            finished && not_counted && (finishes || changed("uncountedTerminatedPods")),
            "uncountedTerminatedPods",
            "uncountedTerminatedPods needs to be empty for finished job",
        ),
        (
            finished && count(&status, "terminating") > 0 && (finishes || changed("terminating")),
            "terminating",
            "terminating>0 is invalid for finished job",
        ),
        (
            status.int("ready").is_some_and(|ready| ready > count(&status, "active"))
                && (changed("ready") || changed("active")),
            "ready",
            "cannot set more ready pods than active",
        ),
        (
            now.succeeding && now.failed,
            "conditions",
            "cannot set SuccessCriteriaMet=True and Failed=true conditions",
        ),
        (
            now.succeeding && now.failing,
            "conditions",
            "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
        ),
        (
            spec.has("successPolicy") && now.complete && !now.succeeding,
            "conditions",
            "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
        ),
        (was.failed && !now.failed, "conditions", "cannot disable the terminal Failed=True condition"),
        (was.complete && !now.complete, "conditions", "cannot disable the terminal Complete=True condition"),
        (
            was.failing && !now.failing,
            "conditions",
            "cannot disable the terminal FailureTarget=True condition",
        ),
        (count(&status, "failed") < count(&had, "failed"), "failed", "cannot decrease the failed counter"),
        (
            !elastic && count(&status, "succeeded") < count(&had, "succeeded"),
            "succeeded",
            "cannot decrease the succeeded counter",
        ),
        (
            was.succeeding && !now.succeeding,
            "conditions",
            "cannot disable the SuccessCriteriaMet=True condition",
        ),
        (
            was.complete && !was.succeeding && now.succeeding,
            "conditions",
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions",
        ),
    ];
    for (wrong, field, why) in told {
        refuse(wrong, ErrorKind::Invalid, field, why);
    }
    let both = end.is_some() && old_end.is_some();
    refuse(both && ends, ErrorKind::Invalid, "completionTime", crate::names::FIELD_IMMUTABLE);
    let required = ErrorKind::Required;
    let why = "completionTime is required for Complete jobs";
    refuse(now.complete && end.is_none() && (completes || ends), required, "completionTime", why);
    let nothing_to_do = suspended && spec.int("completions") == Some(0);
    let wrong = finished && start.is_none() && (finishes || starts) && !nothing_to_do;
    refuse(wrong, required, "startTime", "startTime is required for finished job");
    let wrong = old_start.is_some() && starts && !suspended && !resumes;
    refuse(wrong, required, "startTime", "startTime cannot be removed for unsuspended job");
    errors.0
}

/// Pods that ended and are not yet counted are named once.
fn uncounted(status: &At<'_>, errors: &mut Errors) {
    let Some(uncounted) = status.get("uncountedTerminatedPods") else { return };
    let mut seen: Vec<&str> = Vec::new();
    for list in ["succeeded", "failed"] {
        for (i, uid) in uncounted.strings(list).enumerate() {
            let path = uncounted.at(list).index(i);
            if uid.is_empty() {
                errors.invalid(path, uid, "must not be empty");
            } else if seen.contains(&uid) {
                errors.duplicate(path, uid);
            } else {
                seen.push(uid);
            }
        }
    }
}

/// Which indexes are done or failed, like `1,3-5`: below the number of completions, in order, never both.
fn indexes(spec: &At<'_>, status: &At<'_>, had: &At<'_>, errors: &mut Errors) {
    const DONE: &str = "completedIndexes";
    const FAILED: &str = "failedIndexes";
    let (done, failed) = (status.str(DONE), status.str(FAILED));
    let new_done = done != had.str(DONE);
    let new_failed = failed != had.str(FAILED) || status.has(FAILED) != had.has(FAILED);
    let per_index = spec.has("backoffLimitPerIndex");
    if let Some(completions) = spec.int("completions") {
        for (changed, field, text) in [(new_done, DONE, done), (new_failed && per_index, FAILED, failed)] {
            if let (true, Err(why)) = (changed, count_indexes(text, completions)) {
                errors.invalid(status.at(field), text, format!("error parsing {field}: {why}"));
            }
        }
        if new_done || new_failed {
            let list = |text: &str| text.split(',').filter_map(|i| interval(i, completions).ok()).collect();
            if let Some(index) = overlap(list(done), list(failed)) {
                let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
                errors.invalid(status.at(FAILED), failed, why);
            }
        }
    }
    if new_done && !done.is_empty() && spec.str("completionMode") != "Indexed" {
        let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.invalid(status.at(DONE), done, why);
    }
    if new_failed && status.has(FAILED) && !per_index {
        let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.invalid(status.at(FAILED), failed, why);
    }
}

/// The first number that is in intervals of both lists, which are in order.
fn overlap(a: Vec<(i64, i64)>, b: Vec<(i64, i64)>) -> Option<i64> {
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        let start = x.0.max(y.0);
        if start <= x.1.min(y.1) {
            return Some(start);
        }
        if x.1 < y.1 {
            a.next()
        } else {
            b.next()
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(spec: &Value, old: &Value, new: &Value) -> Vec<String> {
        let job = |status: &Value| json!({"spec": spec, "status": status});
        let errors = validate(&job(new), &job(old));
        errors.iter().map(|e| format!("{}: {}", e.path, e.message())).collect()
    }

    fn with(mut status: Value, more: Value) -> Value {
        status.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        status
    }

    fn on(kinds: &[&str]) -> Value {
        kinds.iter().map(|kind| json!({"type": kind, "status": "True"})).collect()
    }

    /// Done as upstream's controller has it.
    fn done() -> Value {
        json!({"conditions": on(&["SuccessCriteriaMet", "Complete"]), "succeeded": 2, "ready": 0, "terminating": 0,
            "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:01:00Z", "uncountedTerminatedPods": {}})
    }

    #[test]
    fn jobs_run_fail_and_end() {
        let (plain, running) = (
            json!({"completions": 2, "completionMode": "NonIndexed"}),
            json!({"active": 2, "ready": 1, "startTime": "2026-01-01T00:00:00Z"}),
        );
        let failed = json!({"conditions": on(&["FailureTarget", "Failed"]), "failed": 1,
            "startTime": "2026-01-01T00:00:00Z"});
        let failing = with(running.clone(), json!({"conditions": on(&["FailureTarget"])}));
        let none = json!({});
        for (old, new) in [
            (&none, &running),
            (&running, &done()),
            (&running, &failing),
            (&failing, &failed),
            (&done(), &done()),
        ] {
            assert_eq!(told(&plain, old, new), [""; 0], "{old} {new}");
        }
        let both =
            with(done(), json!({"conditions": on(&["SuccessCriteriaMet", "FailureTarget", "Failed"])}));
        assert_eq!(
            told(&plain, &running, &both),
            [
                "status.completionTime: Invalid value: \"2026-01-01T00:01:00Z\": cannot set completionTime when there is no Complete=True condition",
                "status.conditions: Invalid value: cannot set SuccessCriteriaMet=True and Failed=true conditions",
                "status.conditions: Invalid value: cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
            ]
        );
        let alone = with(failed, json!({"conditions": on(&["Failed"])}));
        assert_eq!(
            told(&plain, &running, &alone),
            [
                "status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition"
            ]
        );
        let early = with(done(), json!({"conditions": on(&["Complete"])}));
        let met = "status.conditions: Invalid value: cannot set Complete=True";
        assert_eq!(
            told(&with(plain.clone(), json!({"successPolicy": {}})), &running, &early),
            [
                format!("{met} condition without the SuccessCriteriaMet=true condition"),
                format!("{met} for Job with SuccessPolicy unless SuccessCriteriaMet=True"),
            ]
        );
        assert_eq!(
            told(&plain, &early, &done()),
            [
                "status.conditions: Invalid value: cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions"
            ]
        );
    }

    #[test]
    fn what_was_wrong_is_not_judged_again() {
        let plain = json!({"completions": 2, "completionMode": "NonIndexed"});
        let wrong = json!({"conditions": on(&["Complete", "Failed"]), "active": 1, "ready": 3, "terminating": 1,
            "completedIndexes": "x", "failedIndexes": "x", "uncountedTerminatedPods": {"failed": ["a"]}});
        assert_eq!(told(&plain, &wrong, &with(wrong.clone(), json!({"succeeded": 1}))), [""; 0]);
        let more = with(wrong.clone(), json!({"active": 2}));
        assert_eq!(
            told(&plain, &wrong, &more),
            [
                "status.active: Invalid value: 2: active>0 is invalid for finished job",
                "status.ready: Invalid value: 3: cannot set more ready pods than active",
            ]
        );
    }

    #[test]
    fn times_stay_but_for_jobs_that_rest() {
        let start = |at: &str| json!({"startTime": at});
        let (first, later) = (start("2026-01-01T00:00:00Z"), start("2026-01-01T00:00:01Z"));
        let (runs, rests) = (json!({"suspend": false}), json!({"suspend": true}));
        let stays = ["status.startTime: Required value: startTime cannot be removed for unsuspended job"];
        assert_eq!(told(&runs, &first, &later), stays);
        assert_eq!(told(&runs, &first, &json!({})), stays);
        assert_eq!(told(&runs, &first, &start("2026-01-01T01:00:00+01:00")), [""; 0]);
        assert_eq!(told(&rests, &first, &json!({})), [""; 0]);
        let suspended = |status: &str| json!({"conditions": [{"type": "Suspended", "status": status}]});
        let (had, now) = (with(first, suspended("True")), with(later, suspended("False")));
        assert_eq!(told(&runs, &had, &now), [""; 0], "it goes on");
        let nothing = json!({"suspend": true, "completions": 0});
        let ended = with(done(), json!({"startTime": null}));
        assert_eq!(told(&nothing, &json!({}), &ended), [""; 0]);
        assert_eq!(
            told(&rests, &json!({}), &ended),
            ["status.startTime: Required value: startTime is required for finished job"]
        );
    }

    #[test]
    fn indexes_are_in_order_and_of_one_kind() {
        let spec = json!({"completionMode": "Indexed", "completions": 6, "parallelism": 3, "backoffLimitPerIndex": 1});
        let check = |done: &str, failed: &str| {
            told(&spec, &json!({}), &json!({"completedIndexes": done, "failedIndexes": failed}))
        };
        assert_eq!(check("0,2-3", "1,5"), [""; 0]);
        for (done, failed, field, why) in [
            (
                "1-0",
                "",
                "completedIndexes",
                "error parsing completedIndexes: non-increasing order, previous: 1, current: 0",
            ),
            (
                "3,1",
                "",
                "completedIndexes",
                "error parsing completedIndexes: non-increasing order, previous: 3, current: 1",
            ),
            (
                "6",
                "",
                "completedIndexes",
                "error parsing completedIndexes: too large index for interval start: \"6\"",
            ),
            (
                "",
                "a",
                "failedIndexes",
                "error parsing failedIndexes: cannot convert string to integer for index: \"a\"",
            ),
            ("0-1,4", "2-3,4", "failedIndexes", "failedIndexes and completedIndexes overlap at index: 4"),
            ("0-4", "3-5", "failedIndexes", "failedIndexes and completedIndexes overlap at index: 3"),
        ] {
            let value = if field == "failedIndexes" { failed } else { done };
            assert_eq!(check(done, failed), [format!("status.{field}: Invalid value: {value:?}: {why}")]);
        }
        let (more, less) = (json!({"succeeded": 3, "failed": 1}), json!({"succeeded": 2}));
        let fails = "status.failed: Invalid value: 0: cannot decrease the failed counter";
        let succeeds = "status.succeeded: Invalid value: 2: cannot decrease the succeeded counter";
        assert_eq!(told(&spec, &more, &less), [fails, succeeds]);
        let elastic = with(spec, json!({"parallelism": 6}));
        assert_eq!(told(&elastic, &more, &less), [fails], "fewer completions, fewer that succeeded");
    }
}
