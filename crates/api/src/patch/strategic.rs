//! Strategic merge patch: like a merge patch, but lists merge by the key that the schema names,
//! and directives in the patch (`$patch`, `$deleteFromPrimitiveList`, `$setElementOrder`,
//! `$retainKeys`) say what a plain merge cannot.

use crate::schema::SchemaRef;
use crate::status::{Reason, Status};
use serde_json::{Map, Value};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_PRIMITIVE_LIST: &str = "$deleteFromPrimitiveList/";
const SET_ELEMENT_ORDER: &str = "$setElementOrder/";

/// Applies a strategic merge patch. After an error the document is half patched: throw it away.
pub fn strategic_merge_patch(
    document: &mut Value,
    patch: Value,
    schema: SchemaRef<'_>,
) -> Result<(), Status> {
    let (Value::Object(fields), Value::Object(patch)) = (document, patch) else {
        return Err(bad_format("invalid JSON document"));
    };
    merge_map(fields, patch, schema)
}

/// 400: the patch itself has the wrong form.
fn bad_format(message: &str) -> Status {
    Status::bad_request(message)
}

/// What upstream does not classify reaches the client as a bare error with code 500.
fn unclassified(message: String) -> Status {
    Status::new(500, Reason::Empty, message)
}

fn no_merge_key(item: &Map<String, Value>, key: &str) -> Status {
    unclassified(format!("map: {} does not contain declared merge key: {key}", go_map(item)))
}

fn bad_patch_type(directive: &Value, map: &Map<String, Value>) -> Status {
    let directive = directive.as_str().map_or_else(|| directive.to_string(), str::to_owned);
    unclassified(format!("unknown patch type: {directive} in map: {}", go_map(map)))
}

/// A map as Go prints one.
fn go_map(map: &Map<String, Value>) -> String {
    fn go(value: &Value) -> String {
        match value {
            Value::String(s) => s.clone(),
            Value::Null => "<nil>".into(),
            Value::Array(items) => format!("[{}]", items.iter().map(go).collect::<Vec<_>>().join(" ")),
            Value::Object(map) => go_map(map),
            other => other.to_string(),
        }
    }
    let mut keys: Vec<&String> = map.keys().collect();
    keys.sort_unstable();
    format!("map[{}]", keys.iter().map(|k| format!("{k}:{}", go(&map[*k]))).collect::<Vec<_>>().join(" "))
}

fn or_any<'a>(schema: Option<SchemaRef<'a>>) -> SchemaRef<'a> {
    match schema {
        Some(schema) => schema,
        None => SchemaRef::any(),
    }
}

fn merge_map(
    original: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
    schema: SchemaRef<'_>,
) -> Result<(), Status> {
    if let Some(directive) = patch.remove(PATCH) {
        match directive.as_str() {
            Some("replace") => *original = patch,
            Some("delete") => original.clear(),
            _ => return Err(bad_patch_type(&directive, &patch)),
        }
        return Ok(());
    }
    retain_keys(original, &mut patch)?;
    merge_ordered_lists(original, &mut patch, schema)?;
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_FROM_PRIMITIVE_LIST) {
            delete_from_primitive_list(original, list, &value)?;
            continue;
        }
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let child = or_any(schema.child(&key));
        match (original.get_mut(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) if !child.patch_strategy().replace => {
                merge_map(old, new, child)?
            }
            (Some(Value::Array(old)), Value::Array(new)) if child.patch_strategy().merge => {
                let merged = merge_list(std::mem::take(old), new, child)?;
                *old = merged;
            }
            (_, value) => {
                if let Some(value) = without_directives(value) {
                    original.insert(key, value);
                }
            }
        }
    }
    Ok(())
}

/// `$retainKeys`: keys not named are dropped, and the patch may set no others.
fn retain_keys(original: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), Status> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let keys = keys.as_array().ok_or_else(|| bad_format("invalid patch format of retainKeys"))?;
    let retained = |key: &str| keys.iter().any(|k| k.as_str() == Some(key));
    let is_directive =
        |key: &str| key.starts_with(DELETE_FROM_PRIMITIVE_LIST) || key.starts_with(SET_ELEMENT_ORDER);
    if patch.iter().any(|(key, value)| !value.is_null() && !is_directive(key) && !retained(key)) {
        return Err(bad_format("invalid patch format of retainKeys"));
    }
    original.retain(|key, _| retained(key));
    Ok(())
}

fn delete_from_primitive_list(
    original: &mut Map<String, Value>,
    list: &str,
    gone: &Value,
) -> Result<(), Status> {
    let gone = gone.as_array().ok_or_else(|| bad_format("invalid patch format of primitive list"))?;
    if let Some(items) = original.get_mut(list).and_then(Value::as_array_mut) {
        items.retain(|item| !gone.contains(item));
    }
    Ok(())
}

/// `$setElementOrder/<list>`: the order in which the items that the patch knows shall stand.
fn merge_ordered_lists(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    schema: SchemaRef<'_>,
) -> Result<(), Status> {
    let lists: Vec<String> =
        patch.keys().filter_map(|key| key.strip_prefix(SET_ELEMENT_ORDER)).map(str::to_owned).collect();
    for list in lists {
        let bad = || bad_format("invalid patch format of setElementOrder list");
        let Some(Value::Array(order)) = patch.remove(&format!("{SET_ELEMENT_ORDER}{list}")) else {
            return Err(bad());
        };
        let child = or_any(schema.child(&list));
        let key = child.patch_merge_key();
        let changes = match patch.remove(&list) {
            None => None,
            Some(Value::Array(changes)) => Some(changes),
            // A list that is set to null goes, whatever order was asked.
            Some(Value::Null) => {
                original.remove(&list);
                continue;
            }
            Some(_) => return Err(bad()),
        };
        // A `$deleteFromPrimitiveList` beside it acts first, or the order would bring nothing back.
        if let Some(gone) = patch.remove(&format!("{DELETE_FROM_PRIMITIVE_LIST}{list}")) {
            delete_from_primitive_list(original, &list, &gone)?;
        }
        if let Some(changes) = &changes {
            check_order(changes, &order, key)?;
        }
        let server = match original.get(&list) {
            None => None,
            Some(Value::Array(items)) => Some(items.clone()),
            Some(_) => return Err(bad()),
        };
        let (merged, server) = match (server, changes) {
            (None, None) => continue,
            (Some(server), None) => (server.clone(), server),
            (None, Some(changes)) => {
                (changes.into_iter().filter_map(without_directives).collect(), Vec::new())
            }
            (Some(server), Some(changes)) if child.patch_strategy().merge => {
                (merge_list(server.clone(), changes, child)?, server)
            }
            (Some(server), Some(changes)) => {
                (changes.into_iter().filter_map(without_directives).collect(), server)
            }
        };
        original.insert(list, Value::Array(in_order(merged, &order, &server, key)));
    }
    Ok(())
}

/// Every item of the patch must be in the order list, in the same relative order.
fn check_order(changes: &[Value], order: &[Value], key: Option<&str>) -> Result<(), Status> {
    let mut rest = order.iter();
    for item in changes.iter().filter(|item| item.get(PATCH).is_none()) {
        if let (Some(key), Some(map)) = (key, item.as_object())
            && !map.contains_key(key)
        {
            return Err(no_merge_key(map, key));
        }
        if !rest.any(|wanted| same_item(wanted, item, key)) {
            return Err(unclassified(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                Value::from(changes),
                Value::from(order)
            )));
        }
    }
    Ok(())
}

fn same_item(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}

/// Merges a list by its merge key, or as a set of scalars.
fn merge_list(original: Vec<Value>, patch: Vec<Value>, schema: SchemaRef<'_>) -> Result<Vec<Value>, Status> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    if original.iter().chain(&patch).any(Value::is_array) {
        return Err(super::unprocessable());
    }
    if !original.iter().chain(&patch).any(Value::is_object) {
        let mut merged = original.clone();
        for item in &patch {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(in_order(merged, &patch, &original, None));
    }
    let name = schema.type_name().unwrap_or_default();
    let key = schema
        .patch_merge_key()
        .ok_or_else(|| unclassified(format!("cannot merge lists without merge key for {name}")))?;
    let (server, changes) = apply_item_directives(original, patch, key)?;
    let item_schema = or_any(schema.items());
    let mut merged = server.clone();
    let order: Vec<Value> = changes
        .iter()
        .map(|c| Value::Object([(key.to_owned(), c[key].clone())].into_iter().collect()))
        .collect();
    for change in changes {
        let id = change.get(key).cloned().unwrap_or_default();
        match merged.iter_mut().find(|item| item.get(key) == Some(&id)) {
            Some(Value::Object(item)) => merge_map(item, change, item_schema)?,
            _ => merged.extend(without_directives(Value::Object(change))),
        }
    }
    Ok(in_order(merged, &order, &server, Some(key)))
}

/// The items of a patch that change a list.
type Changes = Vec<Map<String, Value>>;

/// Carries out `$patch: delete` and `$patch: replace` items; what is left are plain changes, each
/// with its merge key.
fn apply_item_directives(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
) -> Result<(Vec<Value>, Changes), Status> {
    let (mut changes, mut replace) = (Vec::new(), false);
    for item in patch {
        let Value::Object(item) = item else { return Err(bad_format("invalid JSON document")) };
        match item.get(PATCH).map(|directive| directive.as_str()) {
            None => changes.push(item),
            Some(Some("delete")) => {
                let id = item.get(key).ok_or_else(|| no_merge_key(&item, key))?;
                original.retain(|old| old.get(key) != Some(id));
            }
            Some(Some("replace")) => replace = true,
            Some(Some("merge")) => {
                return Err(unclassified("merging lists cannot yet be specified in the patch".into()));
            }
            Some(_) => return Err(bad_patch_type(&item[PATCH], &item)),
        }
    }
    if replace {
        let items = changes.into_iter().filter_map(|item| without_directives(Value::Object(item))).collect();
        return Ok((items, Vec::new()));
    }
    match changes.iter().find(|item| !item.contains_key(key)) {
        Some(item) => Err(no_merge_key(item, key)),
        None => Ok((original, changes)),
    }
}

/// Items that the patch names stand in its order, the others in the server's; where both are
/// known to the server, its order decides between them.
fn in_order(
    items: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    key: Option<&str>,
) -> Vec<Value> {
    let position = |order: &[Value], item: &Value| order.iter().position(|o| same_item(o, item, key));
    let (mut from_patch, mut server_only): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|item| position(patch_order, item).is_some());
    from_patch.sort_by_key(|item| position(patch_order, item));
    server_only.sort_by_key(|item| position(server_order, item));
    let (mut left, mut right) = (server_only.into_iter().peekable(), from_patch.into_iter().peekable());
    let mut out = Vec::new();
    loop {
        let take_left = match (left.peek(), right.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(l), Some(r)) => {
                let known = position(server_order, l).zip(position(server_order, r));
                known.is_some_and(|(l, r)| l < r)
            }
        };
        out.extend(if take_left { left.next() } else { right.next() });
    }
}

/// A value of the patch that is taken whole: without nulls and directives. `None` if it is itself
/// marked to be deleted.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) => {
            if map.get(PATCH).and_then(Value::as_str) == Some("delete") {
                return None;
            }
            let is_directive = |key: &str| {
                key == PATCH
                    || key == RETAIN_KEYS
                    || key.starts_with(DELETE_FROM_PRIMITIVE_LIST)
                    || key.starts_with(SET_ELEMENT_ORDER)
            };
            let kept = map.into_iter().filter(|(key, value)| !value.is_null() && !is_directive(key));
            Some(Value::Object(
                kept.filter_map(|(key, value)| Some((key, without_directives(value)?))).collect(),
            ))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;
    use proptest::prelude::*;
    use serde_json::json;

    fn patched(kind: &str, document: Value, patch: Value) -> Result<Value, String> {
        let group = if kind == "Deployment" { "apps" } else { "" };
        let schema = Schema::builtin_kind(group, "v1", kind).unwrap();
        let mut document = document;
        strategic_merge_patch(&mut document, patch, schema.root()).map(|()| document).map_err(|s| s.message)
    }

    fn pod(spec: Value, patch: Value) -> Value {
        patched("Pod", json!({ "spec": spec }), json!({ "spec": patch })).unwrap()["spec"].take()
    }

    fn containers(names: &str) -> Value {
        names.chars().map(|c| json!({"name": c.to_string(), "image": "old"})).collect()
    }

    fn names(spec: &Value) -> String {
        spec["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn lists_merge_by_key() {
        let result = pod(
            json!({"containers": containers("ab")}),
            json!({"containers": [{"name": "b", "image": "new"}]}),
        );
        assert_eq!(
            result["containers"],
            json!([{"name": "a", "image": "old"}, {"name": "b", "image": "new"}])
        );
        // A new item stands where the patch's order puts it: in front of what only the server has.
        let result = pod(
            json!({"containers": containers("ab")}),
            json!({"containers": [{"name": "c", "image": "new"}]}),
        );
        assert_eq!(names(&result), "cab");
        let result = pod(
            json!({}),
            json!({"containers": [{"name": "c", "image": null, "env": [{"$patch": "delete", "name": "x"}]}]}),
        );
        assert_eq!(result["containers"], json!([{"name": "c", "env": []}]));
    }

    #[test]
    fn item_directives() {
        let spec = json!({"containers": containers("abc")});
        assert_eq!(
            names(&pod(spec.clone(), json!({"containers": [{"$patch": "delete", "name": "b"}]}))),
            "ac"
        );
        assert_eq!(
            names(&pod(spec.clone(), json!({"containers": [{"$patch": "replace"}, {"name": "x"}]}))),
            "x"
        );
        let replaced = pod(
            json!({"securityContext": {"runAsUser": 1}}),
            json!({"securityContext": {"$patch": "replace", "fsGroup": 2}}),
        );
        assert_eq!(replaced, json!({"securityContext": {"fsGroup": 2}}));
        assert_eq!(
            pod(
                json!({"securityContext": {"runAsUser": 1}}),
                json!({"securityContext": {"$patch": "delete"}})
            ),
            json!({"securityContext": {}})
        );
        for (patch, message) in [
            (json!([{"$patch": "merge", "name": "a"}]), "merging lists cannot yet be specified in the patch"),
            (json!([{"image": "x"}]), "map: map[image:x] does not contain declared merge key: name"),
            (
                json!([{"$patch": "delete"}]),
                "map: map[$patch:delete] does not contain declared merge key: name",
            ),
            (
                json!([{"$patch": "odd", "name": "a"}]),
                "unknown patch type: odd in map: map[$patch:odd name:a]",
            ),
        ] {
            let result = patched(
                "Pod",
                json!({"spec": {"containers": containers("a")}}),
                json!({"spec": {"containers": patch}}),
            );
            assert_eq!(result.unwrap_err(), message);
        }
    }

    #[test]
    fn element_order() {
        let order =
            |names: &str| -> Value { names.chars().map(|c| json!({"name": c.to_string()})).collect() };
        let spec = json!({"containers": containers("abc")});
        assert_eq!(names(&pod(spec.clone(), json!({"$setElementOrder/containers": order("cba")}))), "cba");
        let added = json!({"$setElementOrder/containers": order("adbc"), "containers": [{"name": "d"}]});
        assert_eq!(names(&pod(spec.clone(), added)), "adbc");
        // What only the server has keeps its place relative to what both have.
        assert_eq!(names(&pod(spec.clone(), json!({"$setElementOrder/containers": order("ca")}))), "bca");
        let wrong =
            json!({"spec": {"$setElementOrder/containers": order("a"), "containers": [{"name": "d"}]}});
        assert!(
            patched("Pod", json!({"spec": spec}), wrong).unwrap_err().starts_with("The order in patch list")
        );
    }

    #[test]
    fn primitive_lists() {
        let document = json!({"metadata": {"finalizers": ["a/a", "b/b", "c/c"]}});
        let result =
            patched("Pod", document.clone(), json!({"metadata": {"finalizers": ["d/d", "a/a"]}})).unwrap();
        assert_eq!(result["metadata"]["finalizers"], json!(["d/d", "a/a", "b/b", "c/c"]));
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b/b"], "$setElementOrder/finalizers": ["c/c", "a/a"]}});
        let result = patched("Pod", document, patch).unwrap();
        assert_eq!(result["metadata"]["finalizers"], json!(["c/c", "a/a"]));
        // Lists without a merge strategy are replaced.
        let result = pod(
            json!({"containers": [{"name": "a", "args": ["x"]}]}),
            json!({"containers": [{"name": "a", "args": ["y"]}]}),
        );
        assert_eq!(result["containers"][0]["args"], json!(["y"]));
    }

    #[test]
    fn retained_keys() {
        let document =
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(
            patched("Deployment", document.clone(), patch).unwrap(),
            json!({"spec": {"strategy": {"type": "Recreate"}}})
        );
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}});
        assert_eq!(patched("Deployment", document, patch).unwrap_err(), "invalid patch format of retainKeys");
    }

    #[test]
    fn nulls_and_maps() {
        let result = patched(
            "Pod",
            json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
            json!({"metadata": {"labels": {"a": null, "c": "3"}}}),
        );
        assert_eq!(result.unwrap(), json!({"metadata": {"labels": {"b": "2", "c": "3"}}}));
        assert!(patched("Pod", json!({}), json!([])).is_err());
    }

    proptest! {
        #[test]
        fn a_patch_with_the_whole_list_and_its_order_wins(old in "[a-f]{0,6}", new in "[a-f]{0,6}") {
            let unique = |s: &str| { let mut seen = String::new(); for c in s.chars() { if !seen.contains(c) { seen.push(c); } } seen };
            let (old, new) = (unique(&old), unique(&new));
            let gone = old.chars().filter(|c| !new.contains(*c)).map(|c| json!({"$patch": "delete", "name": c.to_string()}));
            let kept = new.chars().map(|c| json!({"name": c.to_string(), "image": "new"}));
            let order: Value = new.chars().map(|c| json!({"name": c.to_string()})).collect();
            let list: Vec<Value> = kept.chain(gone).collect();
            let result = pod(json!({"containers": containers(&old)}), json!({"$setElementOrder/containers": order, "containers": list}));
            prop_assert_eq!(names(&result), new);
        }

        #[test]
        fn applying_twice_changes_nothing_more(old in "[a-d]{0,4}", patch in "[a-d]{1,3}") {
            let unique = |s: &str| { let mut seen = String::new(); for c in s.chars() { if !seen.contains(c) { seen.push(c); } } seen };
            let changes: Value = unique(&patch).chars().map(|c| json!({"name": c.to_string(), "image": "new"})).collect();
            let once = pod(json!({"containers": containers(&unique(&old))}), json!({"containers": changes}));
            let twice = pod(once.clone(), json!({"containers": changes}));
            prop_assert_eq!(once, twice);
        }
    }
}
