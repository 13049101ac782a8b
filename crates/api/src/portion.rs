//! Parts of objects that have a subresource of their own: ephemeral containers of a Pod, its resources.

use crate::field::FieldError;
use serde_json::{Map, Value};

/// A part of the objects of a kind that only a subresource of its own changes, and that changes
/// nothing else.
pub struct Portion {
    /// The subresource.
    pub name: &'static str,
    /// The fields; `*` stands for every item of a list. An applied configuration is held to them.
    pub fields: &'static [&'static [&'static str]],
    /// `(new, old)`: what the object becomes, metadata aside.
    pub take: fn(&Value, &Value) -> Value,
    /// `(new, old)`: all that must be said of the result, metadata aside.
    pub validate: fn(&Value, &Value) -> Vec<FieldError>,
}

impl Portion {
    /// What of a configuration is about the part: the rest is neither applied nor owned. Items of
    /// lists keep the name by which they are known.
    pub fn hold(&self, config: &Value) -> Value {
        const IDENTITY: [&str; 4] = ["name", "namespace", "uid", "resourceVersion"];
        let (Value::Object(config), mut held) = (config, Map::new()) else { return config.clone() };
        for (key, value) in config {
            match (key.as_str(), value) {
                ("apiVersion" | "kind", _) => {
                    held.insert(key.clone(), value.clone());
                }
                ("metadata", Value::Object(fields)) => {
                    // Entries that a client sends are for the apply to refuse.
                    let kept = fields
                        .iter()
                        .filter(|(key, _)| IDENTITY.contains(&key.as_str()) || *key == "managedFields");
                    held.insert(key.clone(), kept.map(|(k, v)| (k.clone(), v.clone())).collect());
                }
                _ => {}
            }
        }
        let mut held = Value::Object(held);
        for path in self.fields {
            copy(&Value::Object(config.clone()), path, &mut held);
        }
        held
    }
}

/// Copies what is at the path, with what leads to it.
fn copy(from: &Value, path: &[&str], to: &mut Value) {
    match (path, from) {
        (["*", rest @ ..], Value::Array(items)) => {
            if !to.is_array() {
                *to = Value::Array(Vec::new());
            }
            let Some(list) = to.as_array_mut() else { return };
            list.resize(items.len(), Value::Object(Map::new()));
            for (item, to) in items.iter().zip(list) {
                if let (Some(name), Some(to)) = (item.get("name"), to.as_object_mut()) {
                    to.insert("name".into(), name.clone());
                }
                copy(item, rest, to);
            }
        }
        (["*", ..] | [], _) => to.clone_from(from),
        ([field, rest @ ..], Value::Object(fields)) => {
            if !to.is_object() {
                *to = Value::Object(Map::new());
            }
            if let Some(value) = fields.get(*field) {
                copy(value, rest, &mut to[*field]);
            }
        }
        // What is no object where one should be is for the apply to refuse.
        _ => to.clone_from(from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_configuration_is_held_to_the_part() {
        let portion = Portion {
            name: "x",
            fields: &[&["spec", "list", "*", "size"], &["spec", "own"]],
            take: |new, _| new.clone(),
            validate: |_, _| Vec::new(),
        };
        let config = json!({"apiVersion": "v1", "kind": "K", "metadata": {"name": "n", "labels": {"a": "b"}},
            "spec": {"other": 1, "own": {"deep": [1]}, "list": [{"name": "a", "size": 1, "color": "red"}, {"name": "b"}]},
            "status": {}});
        let held = json!({"apiVersion": "v1", "kind": "K", "metadata": {"name": "n"},
            "spec": {"own": {"deep": [1]}, "list": [{"name": "a", "size": 1}, {"name": "b"}]}});
        assert_eq!(portion.hold(&config), held);
        assert_eq!(portion.hold(&json!([])), json!([]));
        let odd = json!({"kind": "K", "spec": {"list": "no list"}});
        assert_eq!(portion.hold(&odd), odd);
    }
}
