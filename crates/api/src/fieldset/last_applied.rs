//! How `kubectl apply --server-side` lives with client-side apply, whose annotation says what was
//! applied last: what the annotation owns is no conflict, and the annotation is kept up to date.
//! Only the manager that kubectl goes by takes part.

use super::diff::Diff;
use super::set::FieldSet;
use super::track::Tracking;
use super::typed;
use crate::meta;
use crate::schema::SchemaRef;
use serde_json::Value;

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
const MANAGER: &str = "kubectl";
/// Of all annotations together, as validation has it.
const ANNOTATIONS_MAX_BYTES: usize = 256 << 10;

/// Takes out the conflicts about fields that the annotation still describes.
pub(super) fn allow<T>(
    conflicts: &mut Vec<(T, FieldSet)>,
    live: Option<&Value>,
    request: &Tracking<'_>,
    schema: SchemaRef<'_>,
) {
    if request.manager != MANAGER {
        return;
    }
    let Some(owned) = live.and_then(|live| owned(live, request.api_version, schema)) else { return };
    for (_, fields) in conflicts.iter_mut() {
        *fields = std::mem::take(fields).difference(&owned);
    }
    conflicts.retain(|(_, fields)| !fields.is_empty());
}

/// The fields of the annotation that the object has with the same values.
fn owned(live: &Value, api_version: &str, schema: SchemaRef<'_>) -> Option<FieldSet> {
    let text = meta::annotation(live, ANNOTATION)?;
    let applied: Value = serde_json::from_str(text).ok()?;
    if meta::api_version(&applied) != api_version || typed::check(&applied, schema).is_err() {
        return None;
    }
    let diff = Diff::between(Some(&applied), live, schema, &[]);
    let fields = FieldSet::applied(&applied, schema);
    Some(fields.difference(&diff.changed).difference(&diff.removed))
}

/// Writes the configuration into the annotation of an object that has one.
pub(super) fn refresh(object: &mut Value, config: &Value, request: &Tracking<'_>) {
    let has_one = |object: &Value| meta::annotation(object, ANNOTATION).is_some_and(|text| !text.is_empty());
    if request.manager != MANAGER || !has_one(object) {
        return;
    }
    let mut config = config.clone();
    if let Some(Value::Object(annotations)) = config.pointer_mut("/metadata/annotations") {
        annotations.remove(ANNOTATION);
    }
    let text = go_json(&config);
    let others: usize = meta::annotations(object)
        .into_iter()
        .flatten()
        .map(|(key, value)| {
            key.len() + if key == ANNOTATION { 0 } else { value.as_str().map_or(0, str::len) }
        })
        .sum();
    if others + text.len() <= ANNOTATIONS_MAX_BYTES {
        meta::set_annotation(object, ANNOTATION, &text);
    } else if let Some(Value::Object(annotations)) = object.pointer_mut("/metadata/annotations") {
        annotations.remove(ANNOTATION);
    }
}

/// JSON as Go writes it: keys in order, no markup, a line end.
fn go_json(value: &Value) -> String {
    let mut text = value.to_string();
    for (plain, escaped) in [
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('&', "\\u0026"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ] {
        if text.contains(plain) {
            text = text.replace(plain, escaped);
        }
    }
    text.push('\n');
    text
}
