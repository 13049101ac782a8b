//! The rules of `metadata`, the same for every kind.
//! Upstream counterpart: `apimachinery/pkg/api/validation`.

use crate::field::{FieldError, Path};
use crate::kinds::NameRule;
use crate::meta;
use crate::names::{
    FIELD_IMMUTABLE, check_name, invalid_each, is_dns1123_label, is_qualified_name, validate_field_manager,
    validate_labels,
};
use crate::schema::Schema;
use serde_json::Value;

/// All keys and values of `metadata.annotations` together.
pub const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;
const SUBRESOURCE_MAX_BYTES: usize = 256;

/// `metadata` on create, after a name was generated.
pub fn validate_object_meta(object: &Value, namespaced: bool, rule: NameRule) -> Vec<FieldError> {
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    if meta::name(object).is_empty() {
        errors.push(FieldError::required(path.child("name"), "name or generateName is required"));
    }
    errors.extend(whole(object, namespaced, rule, &path));
    errors.extend(standard_finalizers(object, &path));
    errors
}

/// `metadata` of an object that is embedded in another one: of whatever kind, with or without a name.
pub fn validate_embedded(object: &Value, path: &Path) -> Vec<FieldError> {
    whole(object, !meta::namespace(object).is_empty(), NameRule::PathSegment, path)
}

fn whole(object: &Value, namespaced: bool, rule: NameRule, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let generate_name = meta::generate_name(object);
    if !generate_name.is_empty() {
        errors.extend(invalid_each(
            &path.child("generateName"),
            generate_name,
            check_name(rule, generate_name, true),
        ));
    }
    let name = meta::name(object);
    if !name.is_empty() {
        errors.extend(invalid_each(&path.child("name"), name, check_name(rule, name, false)));
    }
    let namespace = meta::namespace(object);
    match (namespaced, namespace.is_empty()) {
        (true, true) => errors.push(FieldError::required(path.child("namespace"), "")),
        (true, false) => {
            errors.extend(invalid_each(&path.child("namespace"), namespace, is_dns1123_label(namespace)))
        }
        (false, false) => {
            errors.push(FieldError::forbidden(path.child("namespace"), "not allowed on this type"))
        }
        (false, true) => {}
    }
    let generation = meta::generation(object);
    if generation < 0 {
        errors.push(FieldError::invalid(
            path.child("generation"),
            generation,
            "must be greater than or equal to 0",
        ));
    }
    errors.extend(common(object, path));
    errors.extend(finalizers(object, &path.child("finalizers")));
    errors.extend(managed_fields(object, &path.child("managedFields")));
    errors
}

fn standard_finalizers(object: &Value, path: &Path) -> Vec<FieldError> {
    let path = path.child("finalizers");
    let errors: Vec<_> = meta::finalizers(object)
        .enumerate()
        .flat_map(|(i, f)| standard_finalizer(f, &path.index(i)))
        .collect();
    if errors.is_empty() || !is_core(object) { Vec::new() } else { errors }
}

/// Custom resources, their definitions and APIServices are validated by another server upstream,
/// which knows no standard finalizers.
fn is_core(object: &Value) -> bool {
    let (group, version) =
        meta::api_version(object).split_once('/').unwrap_or(("", meta::api_version(object)));
    !matches!(group, "apiextensions.k8s.io" | "apiregistration.k8s.io")
        && Schema::builtin_kind(group, version, meta::kind(object)).is_some()
}

/// `metadata` on update. The new object carries the resource version it was read at.
pub fn validate_object_meta_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    if meta::is_deleting(old) {
        let had: Vec<&str> = meta::finalizers(old).collect();
        let mut extra: Vec<&str> = meta::finalizers(new).filter(|f| !had.contains(f)).collect();
        extra.sort_unstable();
        extra.dedup();
        if !extra.is_empty() {
            let list: Vec<String> = extra.iter().map(|f| format!("{f:?}")).collect();
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                list.join(", ")
            );
            errors.push(FieldError::forbidden(path.child("finalizers"), why));
        }
    }
    if meta::resource_version(new).is_empty() {
        errors.push(FieldError::invalid(
            path.child("resourceVersion"),
            "",
            "must be specified for an update",
        ));
    }
    if meta::generation(new) < meta::generation(old) {
        errors.push(FieldError::invalid(
            path.child("generation"),
            meta::generation(new),
            "must not be decremented",
        ));
    }
    let at = |object: &Value, field: &str| -> Value {
        match meta::metadata(object).and_then(|m| m.get(field)) {
            Some(Value::String(s)) if s.is_empty() => Value::Null,
            Some(value) => value.clone(),
            None => Value::Null,
        }
    };
    for field in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        let (new_value, old_value) = (at(new, field), at(old, field));
        if new_value != old_value {
            let shown = match (&new_value, field) {
                (Value::Null, "name" | "namespace" | "uid") => "".into(),
                _ => new_value,
            };
            errors.push(FieldError::invalid(path.child(field), shown, FIELD_IMMUTABLE));
        }
    }
    errors.extend(common(new, &path));
    errors.extend(managed_fields(new, &path.child("managedFields")));
    errors.extend(standard_finalizers(new, &path));
    errors
}

fn common(object: &Value, path: &Path) -> Vec<FieldError> {
    let Some(metadata) = meta::metadata(object) else { return Vec::new() };
    let mut errors = Vec::new();
    if let Some(labels) = metadata.get("labels") {
        errors.extend(validate_labels(Some(labels), &path.child("labels")));
    }
    if let Some(annotations) = metadata.get("annotations") {
        errors.extend(validate_annotations(Some(annotations), &path.child("annotations")));
    }
    if let Some(owners) = metadata.get("ownerReferences") {
        errors.extend(owner_references(object, owners, &path.child("ownerReferences")));
    }
    errors
}

fn owner_references(object: &Value, all: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut first_controller: Option<String> = None;
    for owner in meta::owner_references(object) {
        let version = owner.api_version.rsplit('/').next().unwrap_or_default();
        if version.is_empty() || owner.api_version.matches('/').count() > 1 {
            errors.push(FieldError::invalid(
                path.child("apiVersion"),
                owner.api_version,
                "version must not be empty",
            ));
        }
        for (field, value) in [("kind", owner.kind), ("name", owner.name), ("uid", owner.uid)] {
            if value.is_empty() {
                errors.push(FieldError::invalid(path.child(field), value, "must not be empty"));
            }
        }
        if owner.api_version == "v1" && owner.kind == "Event" {
            errors.push(FieldError::invalid(
                path.clone(),
                all.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner.controller {
            let current = format!("{}/{}", owner.kind, owner.name);
            match &first_controller {
                Some(first) => {
                    let why = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {current}"
                    );
                    errors.push(FieldError::invalid(path.clone(), all.clone(), why));
                }
                None => first_controller = Some(current),
            }
        }
    }
    errors
}

fn finalizers(object: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (mut orphan, mut foreground) = (false, false);
    for finalizer in meta::finalizers(object) {
        errors.extend(invalid_each(path, finalizer, is_qualified_name(finalizer)));
        orphan |= finalizer == "orphan";
        foreground |= finalizer == "foregroundDeletion";
    }
    if orphan && foreground {
        let all: Vec<&str> = meta::finalizers(object).collect();
        errors.push(FieldError::invalid(
            path.clone(),
            all,
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    errors
}

fn managed_fields(object: &Value, path: &Path) -> Vec<FieldError> {
    let entries = meta::metadata(object).and_then(|m| m.get("managedFields")).and_then(Value::as_array);
    let mut errors = Vec::new();
    for (i, entry) in entries.into_iter().flatten().enumerate() {
        let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default();
        if !matches!(text("operation"), "Apply" | "Update") {
            errors.push(FieldError::invalid(
                path.index(i).child("operation"),
                text("operation"),
                "must be `Apply` or `Update`",
            ));
        }
        if !matches!(text("fieldsType"), "" | "FieldsV1") {
            errors.push(FieldError::invalid(
                path.index(i).child("fieldsType"),
                text("fieldsType"),
                "must be `FieldsV1`",
            ));
        }
        errors.extend(validate_field_manager(text("manager"), &path.index(i).child("manager")));
        if text("subresource").len() > SUBRESOURCE_MAX_BYTES {
            errors.push(FieldError::too_long(path.index(i).child("subresource"), SUBRESOURCE_MAX_BYTES));
        }
    }
    errors
}

pub fn validate_annotations(annotations: Option<&Value>, path: &Path) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut total = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        total += key.len() + value.as_str().map_or(0, str::len);
        let messages = if key.bytes().any(|b| b.is_ascii_uppercase()) {
            is_qualified_name(&key.to_lowercase())
        } else {
            is_qualified_name(key)
        };
        errors.extend(invalid_each(path, key, messages));
    }
    if total > ANNOTATIONS_MAX_BYTES {
        errors.push(FieldError::too_long(path.clone(), ANNOTATIONS_MAX_BYTES));
    }
    errors
}

/// A finalizer without a domain must be one of Kubernetes' own.
pub fn standard_finalizer(finalizer: &str, path: &Path) -> Vec<FieldError> {
    if finalizer.contains('/') || matches!(finalizer, "kubernetes" | "orphan" | "foregroundDeletion") {
        return Vec::new();
    }
    let why = "name is neither a standard finalizer name nor is it fully qualified";
    vec![FieldError::invalid(path.clone(), finalizer, why)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(errors: &[FieldError]) -> Vec<&str> {
        errors.iter().map(|e| e.path.as_str()).collect()
    }

    #[test]
    fn metadata_on_create() {
        let check = |metadata: Value, namespaced| {
            let object = json!({ "metadata": metadata });
            fields(&validate_object_meta(&object, namespaced, NameRule::Subdomain))
                .iter()
                .map(|s| s.to_string())
                .collect::<Vec<_>>()
        };
        assert!(check(json!({"name": "a", "namespace": "b"}), true).is_empty());
        assert!(check(json!({"name": "a-x", "generateName": "a-"}), false).is_empty());
        assert_eq!(check(json!({"namespace": "b"}), true), ["metadata.name"]);
        assert_eq!(check(json!({"name": "a"}), true), ["metadata.namespace"]);
        assert_eq!(check(json!({"name": "a", "namespace": "b"}), false), ["metadata.namespace"]);
        assert_eq!(
            check(json!({"name": "a", "labels": {"a b": "c d"}}), false),
            ["metadata.labels", "metadata.labels"]
        );
        assert_eq!(
            check(json!({"name": "a", "annotations": {"a": "x".repeat(256 * 1024)}}), false),
            ["metadata.annotations"]
        );
        assert!(check(json!({"name": "a", "annotations": {"Example.com/A": "x"}}), false).is_empty());
        assert_eq!(
            check(json!({"name": "a", "finalizers": ["orphan", "foregroundDeletion"]}), false),
            ["metadata.finalizers"]
        );
        assert_eq!(
            check(json!({"name": "a", "managedFields": [{"operation": "x"}]}), false),
            ["metadata.managedFields[0].operation"]
        );
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true});
        assert_eq!(
            check(json!({"name": "a", "ownerReferences": [owner, owner]}), false),
            ["metadata.ownerReferences"]
        );
        assert_eq!(check(json!({"name": "a", "ownerReferences": [{}]}), false).len(), 4);
    }

    #[test]
    fn metadata_on_update() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "resourceVersion": "5", "generation": 2, "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert!(validate_object_meta_update(&old, &old).is_empty());
        let mut new = old.clone();
        new["metadata"]["uid"] = "2".into();
        new["metadata"]["generation"] = 1.into();
        new["metadata"]["finalizers"] = json!(["x/y"]);
        meta::remove(&mut new, "resourceVersion");
        let errors = validate_object_meta_update(&new, &old);
        assert_eq!(
            fields(&errors),
            ["metadata.finalizers", "metadata.resourceVersion", "metadata.generation", "metadata.uid"]
        );
    }
}
