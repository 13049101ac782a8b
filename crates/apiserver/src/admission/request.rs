//! What is told of a request beside its objects: to webhooks in a review, to expressions as `request`.
//! Upstream counterpart: `AdmissionRequest` of `admission.k8s.io`.

use super::matching::namespace;
use super::{Admission, Operation, Options};
use serde_json::{Map, Value, json};
use skeg_api::Kind;

/// The request without uid and objects, in the version of `row`.
pub fn of(a: &Admission<'_>, row: &Kind) -> Value {
    let kind = |row: &Kind| {
        let own = (&*row.gvk.group, &*row.gvk.version, &*row.gvk.kind);
        let (group, version, kind) = row.subresource(a.subresource).and_then(|sub| sub.gvk).unwrap_or(own);
        json!({"group": group, "version": version, "kind": kind})
    };
    let resource = |row: &Kind| json!({"group": &*row.gvk.group, "version": &*row.gvk.version, "resource": &*row.plural});
    let mut out = Map::new();
    let mut set = |field: &str, value: Value| out.insert(field.to_owned(), value);
    set("kind", kind(row));
    set("resource", resource(row));
    set("requestKind", kind(a.kind));
    set("requestResource", resource(a.kind));
    for (field, text) in [
        ("subResource", a.subresource),
        ("requestSubResource", a.subresource),
        ("name", a.name),
        ("namespace", namespace(a)),
    ] {
        if !text.is_empty() {
            set(field, text.into());
        }
    }
    set("operation", a.operation.as_str().into());
    set("userInfo", user(a));
    set("dryRun", a.dry_run.into());
    set("options", options(a));
    Value::Object(out)
}

fn options(a: &Admission<'_>) -> Value {
    match a.options {
        Options::None => Value::Null,
        Options::Write(options) if a.operation == Operation::Create => options.to_value("CreateOptions"),
        Options::Write(options) => options.to_value("UpdateOptions"),
        Options::Delete(options) => options.to_value(),
    }
}

fn user(a: &Admission<'_>) -> Value {
    let who = a.identity;
    let mut user = json!({"username": who.user()});
    if !who.uid().is_empty() {
        user["uid"] = who.uid().into();
    }
    if !who.groups().is_empty() {
        user["groups"] = who.groups().into();
    }
    if !who.extra().is_empty() {
        user["extra"] = json!(who.extra());
    }
    user
}
