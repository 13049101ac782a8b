//! Entries as the `scale` subresource shows them: who owns the replicas of the object owns
//! `spec.replicas` of its Scale, and the other way round.

use super::entries::{fields_mut, put, text};
use super::set::{FieldSet, subtract};
use crate::meta;
use serde_json::Value;

const SCALE_VERSION: &str = "autoscaling/v1";
/// Where a Scale and most kinds have their replicas.
pub const REPLICAS: [&str; 2] = ["spec", "replicas"];

/// The one field at a path, as sets name it.
fn elements(path: &[&str]) -> Vec<String> {
    path.iter().map(|name| format!("f:{name}")).collect()
}

fn only(path: &[&str]) -> FieldSet {
    let elements = elements(path);
    let mut set = FieldSet::new();
    set.insert(&elements.iter().map(String::as_str).collect::<Vec<_>>());
    set
}

fn has(entry: &Value, path: &[&str]) -> bool {
    let elements = elements(path);
    let elements: Vec<&str> = elements.iter().map(String::as_str).collect();
    entry.get("fieldsV1").and_then(FieldSet::from_value).is_some_and(|set| set.contains(&elements))
}

/// The entries of an object that are made in the version given; those of others say nothing of it.
fn entries<'a>(object: &'a Value, api_version: &'a str) -> impl Iterator<Item = &'a Value> {
    let entries = meta::metadata(object).and_then(|metadata| metadata.get("managedFields"));
    let entries = entries.and_then(Value::as_array).into_iter().flatten();
    entries.filter(move |entry| text(entry, "apiVersion") == api_version)
}

/// An entry that owns nothing but the replicas, in another version.
fn moved(entry: &Value, api_version: &str, path: &[&str]) -> Value {
    let mut entry = entry.clone();
    entry["apiVersion"] = api_version.into();
    entry["fieldsV1"] = only(path).into_value();
    entry
}

/// Gives a Scale the entries of its object that own the replicas, which stand at `path`.
pub fn to_scale(object: &Value, scale: &mut Value, path: &[&str]) {
    let owners = entries(object, meta::api_version(object)).filter(|entry| has(entry, path));
    put(scale, owners.map(|entry| moved(entry, SCALE_VERSION, &REPLICAS)).collect());
}

/// Gives an object the entries of its Scale, after an apply to that: who owns no replicas there
/// any more owns none here.
pub fn to_object(scale: &Value, object: &mut Value, path: &[&str]) {
    let api_version = meta::api_version(object).to_owned();
    let mut owners: Vec<&Value> =
        entries(scale, SCALE_VERSION).filter(|entry| has(entry, &REPLICAS)).collect();
    let mut kept: Vec<Value> = entries(object, &api_version).cloned().collect();
    for entry in kept.iter_mut().filter(|entry| has(entry, path)) {
        let identity = ["manager", "operation", "subresource"];
        let same = |owner: &&Value| identity.iter().all(|field| text(owner, field) == text(entry, field));
        match owners.iter().position(same) {
            Some(at) => drop(owners.remove(at)),
            None => {
                if let Some(fields) = fields_mut(entry) {
                    subtract(fields, &only(path).0);
                }
            }
        }
    }
    kept.extend(owners.into_iter().map(|owner| moved(owner, &api_version, path)));
    meta::remove(object, "managedFields");
    put(object, kept);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(manager: &str, operation: &str, version: &str, subresource: &str, fields: Value) -> Value {
        let mut entry = json!({"manager": manager, "operation": operation, "apiVersion": version,
            "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": fields}});
        if !subresource.is_empty() {
            entry["subresource"] = subresource.into();
        }
        entry
    }

    fn object(kind: &str, version: &str, entries: Value) -> Value {
        json!({"apiVersion": version, "kind": kind, "metadata": {"managedFields": entries}})
    }

    #[test]
    fn a_scale_shows_who_owns_the_replicas() {
        let deployment = object(
            "Deployment",
            "apps/v1",
            json!([
                entry("one", "Apply", "apps/v1", "", json!({"f:selector": {}})),
                entry("two", "Update", "apps/v1", "", json!({"f:replicas": {}, "f:selector": {}})),
                entry("old", "Update", "apps/v10", "", json!({"f:replicas": {}})),
            ]),
        );
        let mut scale = object("Scale", "autoscaling/v1", json!([]));
        to_scale(&deployment, &mut scale, &REPLICAS);
        assert_eq!(
            scale["metadata"]["managedFields"],
            json!([entry("two", "Update", "autoscaling/v1", "", json!({"f:replicas": {}}))])
        );
    }

    #[test]
    fn who_scales_takes_the_replicas() {
        let both = json!({"f:replicas": {}, "f:selector": {}});
        let alone = json!({"f:replicas": {}});
        let taker =
            |operation: &str, version: &str| entry("scaler", operation, version, "scale", alone.clone());
        for (owner, expected) in [
            (entry("test", "Apply", "apps/v1", "", both.clone()), Some(json!({"f:selector": {}}))),
            (entry("test", "Update", "apps/v1", "", both), Some(json!({"f:selector": {}}))),
            (entry("test", "Apply", "apps/v1", "", alone.clone()), None),
        ] {
            let mut deployment = object("Deployment", "apps/v1", json!([owner.clone()]));
            let scale = object("Scale", "autoscaling/v1", json!([taker("Apply", "autoscaling/v1")]));
            to_object(&scale, &mut deployment, &REPLICAS);
            let mut entries = vec![taker("Apply", "apps/v1")];
            entries.extend(expected.map(|fields| {
                let mut owner = owner;
                owner["fieldsV1"]["f:spec"] = fields;
                owner
            }));
            assert_eq!(deployment["metadata"]["managedFields"], Value::Array(entries));
        }
    }
}
