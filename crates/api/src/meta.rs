//! Fast accessors for `metadata` of objects held as JSON values. They never panic: a field of the
//! wrong type reads as absent. Upstream counterpart: `k8s.io/apimachinery/pkg/api/meta`.

use serde_json::{Map, Value, json};

/// Names one object: enough for an owner reference, an event or a binding.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    pub api_version: String,
    pub kind: String,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
}

impl ObjectRef {
    pub fn of(object: &Value) -> Self {
        ObjectRef {
            api_version: api_version(object).into(),
            kind: kind(object).into(),
            namespace: namespace(object).into(),
            name: name(object).into(),
            uid: uid(object).into(),
            resource_version: resource_version(object).into(),
        }
    }

    /// As `v1.ObjectReference`; empty fields are left out.
    pub fn to_value(&self) -> Value {
        let fields = [
            ("apiVersion", &self.api_version),
            ("kind", &self.kind),
            ("namespace", &self.namespace),
            ("name", &self.name),
            ("uid", &self.uid),
            ("resourceVersion", &self.resource_version),
        ];
        fields.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.to_owned(), json!(v))).collect()
    }

    /// As `metav1.OwnerReference`.
    pub fn to_owner_reference(&self, controller: bool, block_owner_deletion: bool) -> Value {
        let mut owner = json!({
            "apiVersion": self.api_version, "kind": self.kind, "name": self.name, "uid": self.uid,
        });
        if controller {
            owner["controller"] = true.into();
        }
        if block_owner_deletion {
            owner["blockOwnerDeletion"] = true.into();
        }
        owner
    }
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerRef<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

pub fn api_version(object: &Value) -> &str {
    str_at(object, "apiVersion")
}

pub fn kind(object: &Value) -> &str {
    str_at(object, "kind")
}

/// The metadata map, where there is one.
pub fn metadata(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata")?.as_object()
}

/// The metadata map, made where it is missing. `None` only if the object is no JSON object.
pub fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let slot = object.as_object_mut()?.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut()
}

fn str_at<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn meta_str<'a>(object: &'a Value, field: &str) -> &'a str {
    metadata(object).and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

pub fn name(object: &Value) -> &str {
    meta_str(object, "name")
}

pub fn generate_name(object: &Value) -> &str {
    meta_str(object, "generateName")
}

/// Empty for cluster-scoped objects.
pub fn namespace(object: &Value) -> &str {
    meta_str(object, "namespace")
}

pub fn uid(object: &Value) -> &str {
    meta_str(object, "uid")
}

pub fn resource_version(object: &Value) -> &str {
    meta_str(object, "resourceVersion")
}

/// 0 where the kind has none.
pub fn generation(object: &Value) -> i64 {
    metadata(object).and_then(|m| m.get("generation")).and_then(Value::as_i64).unwrap_or(0)
}

pub fn creation_timestamp(object: &Value) -> Option<jiff::Timestamp> {
    time(metadata(object)?.get("creationTimestamp")?)
}

pub fn deletion_timestamp(object: &Value) -> Option<jiff::Timestamp> {
    time(metadata(object)?.get("deletionTimestamp")?)
}

/// Whether deletion has begun.
pub fn is_deleting(object: &Value) -> bool {
    metadata(object).and_then(|m| m.get("deletionTimestamp")).is_some_and(|v| !v.is_null())
}

pub fn deletion_grace_period_seconds(object: &Value) -> Option<i64> {
    metadata(object)?.get("deletionGracePeriodSeconds")?.as_i64()
}

pub fn labels(object: &Value) -> Option<&Map<String, Value>> {
    metadata(object)?.get("labels")?.as_object()
}

pub fn annotations(object: &Value) -> Option<&Map<String, Value>> {
    metadata(object)?.get("annotations")?.as_object()
}

pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels(object)?.get(key)?.as_str()
}

pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    annotations(object)?.get(key)?.as_str()
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    array(object, "finalizers").iter().filter_map(Value::as_str)
}

pub fn has_finalizers(object: &Value) -> bool {
    !array(object, "finalizers").is_empty()
}

pub fn owner_references(object: &Value) -> impl Iterator<Item = OwnerRef<'_>> {
    array(object, "ownerReferences").iter().map(|owner| OwnerRef {
        api_version: str_at(owner, "apiVersion"),
        kind: str_at(owner, "kind"),
        name: str_at(owner, "name"),
        uid: str_at(owner, "uid"),
        controller: owner.get("controller").and_then(Value::as_bool).unwrap_or(false),
        block_owner_deletion: owner.get("blockOwnerDeletion").and_then(Value::as_bool).unwrap_or(false),
    })
}

/// The owner that manages this object, if any.
pub fn controller_of(object: &Value) -> Option<OwnerRef<'_>> {
    owner_references(object).find(|owner| owner.controller)
}

fn array<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    metadata(object).and_then(|m| m.get(field)).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub fn set_name(object: &mut Value, name: &str) {
    set(object, "name", name.into());
}

pub fn set_namespace(object: &mut Value, namespace: &str) {
    set(object, "namespace", namespace.into());
}

pub fn set_uid(object: &mut Value, uid: &str) {
    set(object, "uid", uid.into());
}

/// An empty version removes the field.
pub fn set_resource_version(object: &mut Value, version: &str) {
    if version.is_empty() {
        remove(object, "resourceVersion");
    } else {
        set(object, "resourceVersion", version.into());
    }
}

/// 0 removes the field.
pub fn set_generation(object: &mut Value, generation: i64) {
    if generation == 0 {
        remove(object, "generation");
    } else {
        set(object, "generation", generation.into());
    }
}

pub fn set_creation_timestamp(object: &mut Value, at: jiff::Timestamp) {
    set(object, "creationTimestamp", format_time(at).into());
}

pub fn set_deletion_timestamp(object: &mut Value, at: jiff::Timestamp) {
    set(object, "deletionTimestamp", format_time(at).into());
}

pub fn set_deletion_grace_period_seconds(object: &mut Value, seconds: i64) {
    set(object, "deletionGracePeriodSeconds", seconds.into());
}

pub fn set_label(object: &mut Value, key: &str, value: &str) {
    set_in(object, "labels", key, value);
}

pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    set_in(object, "annotations", key, value);
}

/// An empty list removes the field, as an omitted Go slice does.
pub fn set_finalizers(object: &mut Value, finalizers: Vec<String>) {
    if finalizers.is_empty() {
        remove(object, "finalizers");
    } else {
        set(object, "finalizers", finalizers.into());
    }
}

/// Sets any metadata field.
pub fn set(object: &mut Value, field: &str, value: Value) {
    if let Some(metadata) = metadata_mut(object) {
        metadata.insert(field.to_owned(), value);
    }
}

/// Takes one field of the metadata from `old`, also its absence.
pub fn keep(object: &mut Value, old: &Value, field: &str) {
    match metadata(old).and_then(|metadata| metadata.get(field)) {
        Some(value) => set(object, field, value.clone()),
        None => {
            remove(object, field);
        }
    }
}

/// Removes any metadata field and returns it.
pub fn remove(object: &mut Value, field: &str) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove(field)
}

fn set_in(object: &mut Value, map: &str, key: &str, value: &str) {
    let Some(metadata) = metadata_mut(object) else { return };
    let slot = metadata.entry(map).or_insert_with(|| Value::Object(Map::new()));
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot[key] = value.into();
}

/// `metav1.Time` as text: RFC 3339 in UTC with whole seconds.
pub fn format_time(at: jiff::Timestamp) -> String {
    jiff::fmt::temporal::DateTimePrinter::new().precision(Some(0)).timestamp_to_string(&at)
}

/// `metav1.MicroTime` as text: RFC 3339 in UTC with six digits of fraction.
pub fn format_micro_time(at: jiff::Timestamp) -> String {
    jiff::fmt::temporal::DateTimePrinter::new().precision(Some(6)).timestamp_to_string(&at)
}

/// Reads a time field.
pub fn time(value: &Value) -> Option<jiff::Timestamp> {
    value.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
            "name": "web", "namespace": "default", "labels": {"app": "x"}, "finalizers": ["a/b"],
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "u", "controller": true}],
        }});
        assert_eq!((name(&pod), namespace(&pod), uid(&pod)), ("web", "default", ""));
        assert_eq!(label(&pod, "app"), Some("x"));
        assert_eq!(finalizers(&pod).collect::<Vec<_>>(), ["a/b"]);
        assert_eq!(controller_of(&pod).unwrap().name, "rs");
        assert!(!is_deleting(&pod));
        set_deletion_timestamp(&mut pod, "2026-01-02T03:04:05.9Z".parse().unwrap());
        assert_eq!(pod["metadata"]["deletionTimestamp"], "2026-01-02T03:04:05Z");
        assert!(is_deleting(&pod));
        set_finalizers(&mut pod, vec![]);
        assert!(!has_finalizers(&pod));
        set_annotation(&mut pod, "k", "v");
        assert_eq!(annotation(&pod, "k"), Some("v"));
    }

    #[test]
    fn wrong_types_read_as_absent() {
        let odd = json!({"metadata": {"name": 3, "labels": [], "ownerReferences": {}}});
        assert_eq!(name(&odd), "");
        assert!(labels(&odd).is_none());
        assert_eq!(owner_references(&odd).count(), 0);
        assert_eq!(name(&json!(null)), "");
    }

    #[test]
    fn times() {
        let at: jiff::Timestamp = "2026-01-02T03:04:05.123456Z".parse().unwrap();
        assert_eq!(format_time(at), "2026-01-02T03:04:05Z");
        assert_eq!(format_micro_time(at), "2026-01-02T03:04:05.123456Z");
    }
}
