//! JSON patch: a list of operations, applied in order, all or nothing.

use super::unprocessable;
use crate::decode::{DEPTH_MAX, depth};
use crate::status::Status;
use serde_json::Value;

/// As many operations as upstream allows in one patch.
const OPERATIONS_MAX: usize = 10_000;
/// What all `copy` operations of a patch may add, in bytes of JSON: the limit of a request body.
const COPIED_MAX_BYTES: usize = 3 * 1024 * 1024;
/// How deep a document may nest between two operations: more than is ever stored, so that its depth
/// need not be counted after each of them.
const NESTED_MAX: usize = 4 * DEPTH_MAX;

/// What the operations of a patch have made so far.
struct Made {
    /// Bytes of JSON, by copies.
    copied: usize,
    /// The document nests no deeper than this.
    depth: usize,
    /// Nor does a value of the patch nest deeper than this.
    sent: usize,
}

/// Applies a JSON patch. After an error the document is half patched: throw it away.
pub fn json_patch(document: &mut Value, patch: &Value) -> Result<(), Status> {
    let Some(operations) = patch.as_array() else {
        let kind = match patch {
            Value::Object(_) => "object",
            Value::String(_) => "string",
            Value::Number(_) => "number",
            Value::Bool(_) => "bool",
            // An explicit null decodes to no operations at all.
            Value::Null | Value::Array(_) => return Ok(()),
        };
        return Err(Status::bad_request(format!(
            "json: cannot unmarshal {kind} into Go value of type jsonpatch.Patch"
        )));
    };
    if operations.len() > OPERATIONS_MAX {
        return Err(Status::too_large(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.len()
        )));
    }
    let mut made = Made { copied: 0, depth: depth(document), sent: depth(patch) };
    for operation in operations {
        if !operation.is_object() {
            return Err(Status::bad_request(
                "json: cannot unmarshal value into Go value of type jsonpatch.Operation",
            ));
        }
        apply(document, operation, &mut made).ok_or_else(unprocessable)?;
    }
    // What nests deeper could not be read again.
    if made.depth > DEPTH_MAX && depth(document) > DEPTH_MAX { Err(unprocessable()) } else { Ok(()) }
}

impl Made {
    /// Takes note that `part`, which nests no deeper than `deep`, gets its place at `path`.
    fn place(&mut self, document: &Value, path: &[String], part: &Value, deep: usize) -> Option<()> {
        self.depth = self.depth.max(path.len() + deep);
        if self.depth > NESTED_MAX {
            self.depth = depth(document).max(path.len() + depth(part));
        }
        (self.depth <= NESTED_MAX).then_some(())
    }
}

/// `None` if the operation does not fit the document.
fn apply(document: &mut Value, operation: &Value, made: &mut Made) -> Option<()> {
    let text = |field: &str| operation.get(field).and_then(Value::as_str);
    let path = pointer(text("path")?)?;
    let mut value = || {
        let value = operation.get("value")?;
        made.place(document, &path, value, made.sent)?;
        Some(value.clone())
    };
    match text("op")? {
        "add" => {
            let value = value()?;
            add(document, &path, value)
        }
        "remove" => remove(document, &path).map(drop),
        "replace" => {
            let value = value()?;
            *find_mut(document, &path)? = value;
            Some(())
        }
        "move" => {
            let from = pointer(text("from")?)?;
            let deep = made.depth.saturating_sub(from.len());
            // A value cannot move into itself.
            if path.len() > from.len() && path.starts_with(&from) {
                return None;
            }
            let value = remove(document, &from)?;
            made.place(document, &path, &value, deep)?;
            add(document, &path, value)
        }
        "copy" => {
            let from = pointer(text("from")?)?;
            let value = find_mut(document, &from)?.clone();
            made.copied += size(&value);
            if made.copied > COPIED_MAX_BYTES {
                return None;
            }
            made.place(document, &path, &value, made.depth.saturating_sub(from.len()))?;
            add(document, &path, value)
        }
        "test" => {
            let expected = operation.get("value").unwrap_or(&Value::Null);
            let found = find_mut(document, &path).map_or(Value::Null, |v| v.clone());
            (found == *expected).then_some(())
        }
        _ => None,
    }
}

/// About as many bytes as the value has as JSON text.
fn size(value: &Value) -> usize {
    match value {
        Value::String(s) => s.len() + 2,
        Value::Array(items) => items.iter().map(|v| size(v) + 1).sum::<usize>() + 2,
        Value::Object(map) => map.iter().map(|(k, v)| k.len() + size(v) + 4).sum::<usize>() + 2,
        _ => 5,
    }
}

/// RFC 6901: `/a~1b/0` → `a/b`, `0`.
fn pointer(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    Some(text.strip_prefix('/')?.split('/').map(|part| part.replace("~1", "/").replace("~0", "~")).collect())
}

/// An index below `len`; negative ones count from the end, as upstream's library does.
fn index(token: &str, len: usize) -> Option<usize> {
    let at: i64 = token.parse().ok()?;
    let at = if at < 0 { at + len as i64 } else { at };
    usize::try_from(at).ok().filter(|at| *at < len)
}

fn find_mut<'a>(document: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(document, |value, token| match value {
        Value::Object(map) => map.get_mut(token),
        Value::Array(items) => {
            let at = index(token, items.len())?;
            items.get_mut(at)
        }
        _ => None,
    })
}

fn add(document: &mut Value, path: &[String], value: Value) -> Option<()> {
    let Some((last, parent)) = path.split_last() else {
        *document = value;
        return Some(());
    };
    match find_mut(document, parent)? {
        Value::Object(map) => {
            map.insert(last.clone(), value);
        }
        Value::Array(items) if last == "-" => items.push(value),
        Value::Array(items) => {
            let at = index(last, items.len() + 1)?;
            items.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(document: &mut Value, path: &[String]) -> Option<Value> {
    let (last, parent) = path.split_last()?;
    match find_mut(document, parent)? {
        Value::Object(map) => map.remove(last),
        Value::Array(items) => {
            let at = index(last, items.len())?;
            Some(items.remove(at))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(document: Value, patch: Value) -> Result<Value, u16> {
        let mut document = document;
        json_patch(&mut document, &patch).map(|()| document).map_err(|status| status.code)
    }

    #[test]
    fn operations() {
        for (document, patch, expected) in [
            (json!({}), json!([{"op": "add", "path": "/a", "value": 1}]), Ok(json!({"a": 1}))),
            (
                json!({"a": [1, 3]}),
                json!([{"op": "add", "path": "/a/1", "value": 2}]),
                Ok(json!({"a": [1, 2, 3]})),
            ),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/-", "value": 2}]), Ok(json!({"a": [1, 2]}))),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/2", "value": 2}]), Err(422)),
            (json!({"a": [1, 2]}), json!([{"op": "remove", "path": "/a/-1"}]), Ok(json!({"a": [1]}))),
            (json!({"a": 1}), json!([{"op": "remove", "path": "/a"}]), Ok(json!({}))),
            (json!({}), json!([{"op": "remove", "path": "/a"}]), Err(422)),
            (json!({"a": 1}), json!([{"op": "replace", "path": "/a", "value": 2}]), Ok(json!({"a": 2}))),
            (json!({}), json!([{"op": "replace", "path": "/a", "value": 2}]), Err(422)),
            (json!({"a": 1}), json!([{"op": "move", "from": "/a", "path": "/b"}]), Ok(json!({"b": 1}))),
            (json!({"a": {}}), json!([{"op": "move", "from": "/a", "path": "/a/b"}]), Err(422)),
            (
                json!({"a": 1}),
                json!([{"op": "copy", "from": "/a", "path": "/b"}]),
                Ok(json!({"a": 1, "b": 1})),
            ),
            (json!({"a": 1}), json!([{"op": "test", "path": "/a", "value": 1}]), Ok(json!({"a": 1}))),
            (json!({"a": 1}), json!([{"op": "test", "path": "/a", "value": 2}]), Err(422)),
            (json!({}), json!([{"op": "test", "path": "/a", "value": null}]), Ok(json!({}))),
            (
                json!({"a/b": 1, "~": 2}),
                json!([{"op": "remove", "path": "/a~1b"}, {"op": "remove", "path": "/~0"}]),
                Ok(json!({})),
            ),
            (json!({}), json!([{"op": "odd", "path": "/a"}]), Err(422)),
            (json!({}), json!([{"op": "add", "path": "a", "value": 1}]), Err(422)),
            (json!({}), json!([{"op": "add", "path": "/a/b", "value": 1}]), Err(422)),
            (json!({}), json!([{"op": "add", "path": "/a"}]), Err(422)),
            (json!({}), json!({}), Err(400)),
            (json!({}), json!([1]), Err(400)),
        ] {
            assert_eq!(patched(document.clone(), patch.clone()), expected, "{document} with {patch}");
        }
    }

    #[test]
    fn bounds() {
        let one = json!({"op": "test", "path": "/a", "value": null});
        assert_eq!(patched(json!({}), Value::Array(vec![one.clone(); 10_000])), Ok(json!({})));
        assert_eq!(patched(json!({}), Value::Array(vec![one; 10_001])), Err(413));
        let doubling: Vec<Value> =
            (0..30).map(|_| json!({"op": "copy", "from": "/a", "path": "/a/x"})).collect();
        assert_eq!(
            patched(json!({"a": {"b": "c"}}), Value::Array(doubling)).map(|v| v.is_object()),
            Ok(true)
        );
        let doubling: Vec<Value> =
            (0..30).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a/x{i}")})).collect();
        assert_eq!(patched(json!({"a": {"b": "c"}}), Value::Array(doubling)), Err(422));
    }

    #[test]
    fn depth_is_bounded() {
        // Each round puts all that there is one level deeper.
        let round = |i: usize| {
            let (from, to) = (format!("/{i}"), format!("/{}", i + 1));
            [
                json!({"op": "add", "path": to, "value": {}}),
                json!({"op": "move", "from": from, "path": format!("{to}/x")}),
            ]
        };
        let moves = |n: usize| Value::Array((0..n).flat_map(round).collect());
        assert!(patched(json!({"0": {}}), moves(DEPTH_MAX - 2)).is_ok());
        assert_eq!(patched(json!({"0": {}}), moves(DEPTH_MAX - 1)), Err(422));
        assert_eq!(patched(json!({"0": {}}), moves(5000)), Err(422));
        // Neither do additions below each other nest without end, nor replacements.
        let mut deep = json!({});
        for _ in 0..100 {
            deep = json!({ "a": deep });
        }
        for op in ["add", "replace"] {
            let one = |i: usize| json!({"op": op, "path": "/a".repeat(100 * i + 1), "value": deep});
            let all = Value::Array((0..150).map(one).collect());
            assert_eq!(patched(json!({"a": {}}), all), Err(422));
        }
    }
}
