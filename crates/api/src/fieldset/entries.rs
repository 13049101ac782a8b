//! The entries of `metadata.managedFields`, in the form that the API shows them.

use super::set::{FieldSet, Node, subtract};
use super::track::Tracking;
use super::{Diff, Operation};
use crate::meta;
use serde_json::{Map, Value, json};

/// Takes the entries out of an object.
pub(super) fn take(object: &mut Value) -> Vec<Value> {
    match meta::remove(object, "managedFields") {
        Some(Value::Array(entries)) => entries,
        _ => Vec::new(),
    }
}

/// Puts entries into an object: those that own something, in upstream's order.
pub(super) fn put(object: &mut Value, mut entries: Vec<Value>) {
    entries.retain(|entry| fields(entry).is_some_and(|fields| !fields.is_empty()));
    if entries.is_empty() {
        return;
    }
    sort(&mut entries);
    meta::set(object, "managedFields", Value::Array(entries));
}

/// Checks entries from outside and brings them into canonical form and order.
pub(super) fn decode(sent: Vec<Value>) -> Option<Vec<Value>> {
    let mut entries = Vec::with_capacity(sent.len());
    for mut entry in sent {
        let fields = match entry.get("fieldsV1") {
            Some(fields) => FieldSet::from_value(fields)?,
            None => FieldSet::new(),
        };
        let usable = matches!(text(&entry, "operation"), "Apply" | "Update")
            && text(&entry, "fieldsType") == "FieldsV1"
            && !text(&entry, "apiVersion").is_empty();
        if !usable {
            return None;
        }
        if !fields.is_empty() {
            entry["fieldsV1"] = fields.into_value();
            entries.push(entry);
        }
    }
    sort(&mut entries);
    Some(entries)
}

pub(super) fn text<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry.get(field).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn fields(entry: &Value) -> Option<&Node> {
    entry.get("fieldsV1")?.as_object()
}

pub(super) fn fields_mut(entry: &mut Value) -> Option<&mut Node> {
    entry.get_mut("fieldsV1")?.as_object_mut()
}

/// The entry of the manager of a request. Applies of one manager share an entry, whatever version
/// they are made in.
pub(super) fn position(entries: &[Value], operation: Operation, request: &Tracking<'_>) -> Option<usize> {
    entries.iter().position(|entry| {
        text(entry, "operation") == operation.as_str()
            && text(entry, "manager") == request.manager
            && text(entry, "subresource") == request.subresource
            && (operation == Operation::Apply || text(entry, "apiVersion") == request.api_version)
    })
}

/// A new entry of the manager of a request.
pub(super) fn entry(operation: Operation, request: &Tracking<'_>, fields: FieldSet) -> Value {
    let mut entry: Map<String, Value> = [
        ("operation", operation.as_str()),
        ("manager", request.manager),
        ("apiVersion", request.api_version),
        ("subresource", request.subresource),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(field, value)| (field.to_owned(), json!(value)))
    .collect();
    entry.insert("time".into(), meta::format_time(request.now).into());
    entry.insert("fieldsType".into(), "FieldsV1".into());
    entry.insert("fieldsV1".into(), fields.into_value());
    Value::Object(entry)
}

/// What a write changed or removed no longer belongs to those who owned it.
pub(super) fn disown(entries: &mut [Value], diff: &Diff) {
    for fields in entries.iter_mut().filter_map(fields_mut) {
        subtract(fields, &diff.changed.0);
        subtract(fields, &diff.removed.0);
    }
}

/// Applies before updates, then by time, manager, version and subresource.
pub(super) fn sort(entries: &mut [Value]) {
    fn key(entry: &Value) -> [&str; 5] {
        ["operation", "time", "manager", "apiVersion", "subresource"].map(|field| text(entry, field))
    }
    entries.sort_by(|a, b| key(a).cmp(&key(b)));
}

/// Whether two objects are the same but for their entries.
pub(super) fn same_but_entries(a: &Value, b: &Value) -> bool {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return a == b };
    let without = |map: &'_ Map<String, Value>, name: &str| map.len() - usize::from(map.contains_key(name));
    a.len() == b.len()
        && a.iter().all(|(key, value)| match (key.as_str(), value, b.get(key)) {
            ("metadata", Value::Object(a), Some(Value::Object(b))) => {
                without(a, "managedFields") == without(b, "managedFields")
                    && a.iter().all(|(key, value)| key == "managedFields" || b.get(key) == Some(value))
            }
            (_, value, other) => other == Some(value),
        })
}

/// A write that changes nothing but times of entries changes no time either.
pub fn keep_times(new: &mut Value, old: &Value) {
    let entries = |object| meta::metadata(object)?.get("managedFields")?.as_array();
    let (Some(ours), Some(theirs)) = (entries(new), entries(old)) else { return };
    let same = |a: &Value, b: &Value| {
        let all = ["operation", "manager", "apiVersion", "subresource"];
        all.iter().all(|field| text(a, field) == text(b, field)) && fields(a) == fields(b)
    };
    if ours != theirs
        && ours.len() == theirs.len()
        && ours.iter().all(|entry| theirs.iter().any(|other| same(entry, other)))
        && same_but_entries(new, old)
    {
        meta::keep(new, old, "managedFields");
    }
}
