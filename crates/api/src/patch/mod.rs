//! Three ways to patch an object: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and
//! Kubernetes' strategic merge patch. (The fourth, server-side apply, is in `fieldset`.) All take the decoded document and the decoded patch.
//! Upstream counterparts: `evanphx/json-patch`, `apimachinery/pkg/util/strategicpatch` and the
//! errors of `apiserver/pkg/endpoints/handlers/patch.go`.

mod json;
mod strategic;

pub use json::json_patch;
pub use strategic::strategic_merge_patch;

use crate::go;
use crate::status::{Details, Reason, Status};
use serde_json::Value;

/// The kinds of patch, by their media types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    StrategicMerge,
    Apply,
}

impl PatchType {
    /// All of them with their media types.
    pub const ALL: [(PatchType, &str); 4] = [
        (PatchType::Json, "application/json-patch+json"),
        (PatchType::Merge, "application/merge-patch+json"),
        (PatchType::StrategicMerge, "application/strategic-merge-patch+json"),
        (PatchType::Apply, "application/apply-patch+yaml"),
    ];
}

/// 422 for a well-formed patch that does not fit the document. Upstream keeps the details to
/// itself.
fn unprocessable() -> Status {
    Status::new(422, Reason::Invalid, "the server rejected our request due to an error in our request")
        .with_details(Details::default())
}

/// A strategic merge patch as errors show it.
pub fn display(patch: &Value) -> String {
    go::value(patch)
}

/// Applies a JSON merge patch.
pub fn merge_patch(document: &mut Value, patch: Value) -> Result<(), Status> {
    if !patch.is_object() {
        return Err(Status::bad_request("Invalid JSON Patch"));
    }
    merge(document, patch);
    Ok(())
}

fn merge(document: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *document = patch;
        return;
    };
    if !document.is_object() {
        *document = Value::Object(serde_json::Map::new());
    }
    let Some(fields) = document.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(&key);
        } else {
            merge(fields.entry(key).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn merge_patches_as_rfc_7386_says() {
        for (document, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        ] {
            let mut result = document.clone();
            merge_patch(&mut result, patch.clone()).unwrap();
            assert_eq!(result, expected, "{document} with {patch}");
        }
        assert_eq!(merge_patch(&mut json!({}), json!([])).unwrap_err().code, 400);
    }

    /// Small JSON documents without nulls.
    pub fn documents() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0i64..9).prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                proptest::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    fn objects() -> impl Strategy<Value = Value> {
        proptest::collection::btree_map("[a-d]", documents(), 0..4)
            .prop_map(|m| Value::Object(m.into_iter().collect()))
    }

    /// The merge patch that turns one document into another.
    fn diff(from: &Value, to: &Value) -> Value {
        match (from, to) {
            (Value::Object(a), Value::Object(b)) => {
                let mut patch = serde_json::Map::new();
                for key in a.keys().filter(|k| !b.contains_key(*k)) {
                    patch.insert(key.clone(), Value::Null);
                }
                for (key, value) in b.iter().filter(|(k, v)| a.get(*k) != Some(v)) {
                    patch.insert(
                        key.clone(),
                        a.get(key).map_or_else(|| value.clone(), |old| diff(old, value)),
                    );
                }
                Value::Object(patch)
            }
            _ => to.clone(),
        }
    }

    proptest! {
        #[test]
        fn a_merge_patch_reaches_its_goal(from in objects(), to in objects()) {
            let mut document = from.clone();
            merge_patch(&mut document, diff(&from, &to)).unwrap();
            prop_assert_eq!(document, to);
        }

        #[test]
        fn adding_then_removing_is_nothing(document in objects(), value in documents()) {
            let mut patched = document.clone();
            json_patch(&mut patched, &json!([{"op": "add", "path": "/new", "value": value}, {"op": "remove", "path": "/new"}])).unwrap();
            prop_assert_eq!(patched, document);
        }
    }
}
