//! Strategic merge patch: like a merge patch, but lists merge by the key that the schema names,
//! and directives in the patch (`$patch`, `$deleteFromPrimitiveList`, `$setElementOrder`,
//! `$retainKeys`) say what a plain merge cannot.

use crate::go;
use crate::schema::SchemaRef;
use crate::status::{Reason, Status};
use serde_json::{Map, Value};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_PRIMITIVE_LIST: &str = "$deleteFromPrimitiveList";
const SET_ELEMENT_ORDER: &str = "$setElementOrder";

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

const BAD_RETAIN_KEYS: &str = "invalid patch format of retainKeys";
const BAD_PRIMITIVE_LIST: &str = "invalid patch format of primitive list";
const BAD_ELEMENT_ORDER: &str = "invalid patch format of setElementOrder list";

/// 400: the patch itself has the wrong form.
fn bad_format(message: &str) -> Status {
    Status::bad_request(message)
}

/// What upstream does not classify reaches the client as a bare error with code 500.
fn unclassified(message: String) -> Status {
    Status::new(500, Reason::Empty, message)
}

fn no_merge_key(item: &Map<String, Value>, key: &str) -> Status {
    unclassified(format!("map: {} does not contain declared merge key: {key}", go::map(item)))
}

fn bad_patch_type(directive: &Value, map: &Map<String, Value>) -> Status {
    unclassified(format!("unknown patch type: {} in map: {}", go::value(directive), go::map(map)))
}

fn or_any<'a>(schema: Option<SchemaRef<'a>>) -> SchemaRef<'a> {
    match schema {
        Some(schema) => schema,
        None => SchemaRef::any(),
    }
}

/// What follows a directive in a key: `$setElementOrder/containers`.
fn list_name<'k>(key: &'k str, directive: &str, refusal: &str) -> Result<Option<&'k str>, Status> {
    match key.strip_prefix(directive) {
        None => Ok(None),
        Some(rest) => match rest.strip_prefix('/').filter(|name| !name.is_empty()) {
            Some(name) => Ok(Some(name)),
            None => Err(bad_format(refusal)),
        },
    }
}

fn merge_map(
    original: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
    schema: SchemaRef<'_>,
) -> Result<(), Status> {
    match patch.get(PATCH).map(|directive| (directive, directive.as_str())) {
        None => {}
        Some((_, Some("replace"))) => {
            patch.remove(PATCH);
            *original = patch;
            return Ok(());
        }
        Some((_, Some("delete"))) => {
            original.clear();
            return Ok(());
        }
        Some((directive, _)) => return Err(bad_patch_type(directive, &patch)),
    }
    retain_keys(original, &mut patch)?;
    merge_ordered_lists(original, &mut patch, schema)?;
    for (key, value) in patch {
        let deleted = list_name(&key, DELETE_FROM_PRIMITIVE_LIST, BAD_PRIMITIVE_LIST)?;
        let (key, is_delete) = (deleted.unwrap_or(&key), deleted.is_some());
        if value.is_null() {
            original.remove(key);
            continue;
        }
        let child = or_any(schema.child(key));
        match (original.get_mut(key), value) {
            (Some(Value::Object(old)), Value::Object(new)) if !child.patch_strategy().replace => {
                merge_map(old, new, child)?
            }
            (Some(Value::Array(old)), Value::Array(new)) if is_delete || child.patch_strategy().merge => {
                let merged = merge_list(std::mem::take(old), new, child, is_delete)?;
                *old = merged;
            }
            // There is nothing to delete from.
            _ if is_delete => {}
            (_, value) => {
                if let Some(value) = without_directives(value) {
                    original.insert(key.to_owned(), value);
                }
            }
        }
    }
    Ok(())
}

/// `$retainKeys`: keys not named are dropped, and the patch may set no others.
fn retain_keys(original: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), Status> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let keys = keys.as_array().ok_or_else(|| bad_format(BAD_RETAIN_KEYS))?;
    let retained = |key: &str| keys.iter().any(|k| k.as_str() == Some(key));
    let is_directive =
        |key: &str| key.starts_with(DELETE_FROM_PRIMITIVE_LIST) || key.starts_with(SET_ELEMENT_ORDER);
    if patch.iter().any(|(key, value)| !value.is_null() && !is_directive(key) && !retained(key)) {
        return Err(bad_format(BAD_RETAIN_KEYS));
    }
    original.retain(|key, _| retained(key));
    Ok(())
}

/// `$setElementOrder/<list>`: the order in which the items that the patch knows shall stand.
fn merge_ordered_lists(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    schema: SchemaRef<'_>,
) -> Result<(), Status> {
    let keys: Vec<String> = patch.keys().filter(|key| key.starts_with(SET_ELEMENT_ORDER)).cloned().collect();
    for key in keys {
        let order = list(patch.remove(&key).unwrap_or_default())?;
        let Some(name) = list_name(&key, SET_ELEMENT_ORDER, BAD_ELEMENT_ORDER)? else { continue };
        let server = original.get(name).cloned().map(list).transpose()?;
        let changes = patch.remove(name).map(list).transpose()?;
        let Some(child) = schema.child(name) else {
            let owner = schema.type_name().unwrap_or_default().rsplit('.').next().unwrap_or_default();
            return Err(unclassified(format!(
                "unable to find api field in struct {owner} for the json field {name:?}"
            )));
        };
        let merge_key = child.patch_merge_key();
        check_order(changes.as_deref().unwrap_or_default(), &order, merge_key)?;
        let types = (server.clone().unwrap_or_default(), changes.clone().unwrap_or_default());
        let (merged, server) = match (server, changes) {
            (None, None) => continue,
            (Some(server), None) => (server.clone(), server),
            (None, Some(changes)) => (taken(changes), Vec::new()),
            (Some(server), Some(changes)) if child.patch_strategy().merge => {
                (merge_list(server.clone(), changes, child, false)?, server)
            }
            (Some(server), Some(changes)) => (taken(changes), server),
        };
        check_types(&types.0, &types.1)?;
        original.insert(name.to_owned(), Value::Array(in_order(merged, &order, &server, merge_key)));
    }
    Ok(())
}

fn list(value: Value) -> Result<Vec<Value>, Status> {
    match value {
        Value::Array(items) => Ok(items),
        other => {
            Err(unclassified(format!("expected a []interface {{}}, but received a {}", go::type_of(&other))))
        }
    }
}

/// Items that are taken whole.
fn taken(items: Vec<Value>) -> Vec<Value> {
    items.into_iter().filter_map(without_directives).collect()
}

/// The items of a list and of its patch are all of one type, which is no list.
fn check_types(server: &[Value], changes: &[Value]) -> Result<(), Status> {
    let mut types = server.iter().chain(changes).map(go::type_of);
    match types.next() {
        None => Err(unclassified("no elements in any of the given slices".into())),
        Some("[]interface {}") => Err(super::unprocessable()),
        Some(first) if types.all(|other| other == first) => Ok(()),
        Some(_) => Err(unclassified(format!(
            "list element types are not identical: [{} {}]",
            go::list(server),
            go::list(changes)
        ))),
    }
}

/// Every item of the patch must be in the order list, in the same relative order.
fn check_order(changes: &[Value], order: &[Value], key: Option<&str>) -> Result<(), Status> {
    if changes.is_empty() || order.is_empty() {
        return Ok(());
    }
    let is_deleted = |item: &Value| key.is_some() && item.get(PATCH).is_some_and(|patch| patch == "delete");
    let mut rest = order.iter();
    for item in changes.iter().filter(|item| !is_deleted(item)) {
        if let (Some(key), Some(map)) = (key, item.as_object())
            && !map.contains_key(key)
        {
            return Err(no_merge_key(map, key));
        }
        if !rest.any(|wanted| same_item(wanted, item, key)) {
            return Err(unclassified(format!(
                "The order in patch list:\n{}\n doesn't match {SET_ELEMENT_ORDER} list:\n{}\n",
                go::list(changes),
                go::list(order)
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

/// Merges a list by its merge key, or as a set of scalars; from which items of the patch are
/// taken out where that is what they are for.
fn merge_list(
    original: Vec<Value>,
    patch: Vec<Value>,
    schema: SchemaRef<'_>,
    is_delete: bool,
) -> Result<Vec<Value>, Status> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    check_types(&original, &patch)?;
    if !original.iter().chain(&patch).any(Value::is_object) {
        if is_delete {
            return Ok(original.into_iter().filter(|item| !patch.contains(item)).collect());
        }
        let mut merged: Vec<Value> = Vec::new();
        for item in original.iter().chain(&patch) {
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
    fn directives_apart_from_their_lists() {
        let spec = json!({"containers": containers("abc"), "tolerations": [{"key": "x"}]});
        // Deleting acts last: also on what the same patch brings.
        let document = json!({"metadata": {"finalizers": ["a/a"]}});
        let patch = json!({"metadata": {"finalizers": ["b/b", "c/c"], "$setElementOrder/finalizers": ["c/c", "b/b", "a/a"], "$deleteFromPrimitiveList/finalizers": ["b/b"]}});
        assert!(
            patched("Pod", document.clone(), patch)
                .unwrap_err()
                .starts_with("The order in patch list:\n[b/b c/c]\n")
        );
        let patch = json!({"metadata": {"finalizers": ["b/b", "c/c"], "$setElementOrder/finalizers": ["b/b", "c/c", "a/a"], "$deleteFromPrimitiveList/finalizers": ["b/b"]}});
        assert_eq!(
            patched("Pod", document.clone(), patch).unwrap()["metadata"]["finalizers"],
            json!(["c/c", "a/a"])
        );
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": null}});
        assert_eq!(patched("Pod", document.clone(), patch).unwrap()["metadata"], json!({}));
        // Where there is no list, or something that is none, nothing happens.
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "a/a", "$deleteFromPrimitiveList/labels": ["x"]}});
        assert_eq!(patched("Pod", document.clone(), patch).unwrap(), document);
        // A list without a strategy is replaced, and can be put in order.
        assert_eq!(
            pod(spec.clone(), json!({"tolerations": [{"key": "y"}]}))["tolerations"],
            json!([{"key": "y"}])
        );
        let empty = json!({"$setElementOrder/containers": [], "containers": [{"name": "d"}]});
        assert_eq!(names(&pod(spec.clone(), empty)), "dabc");
        let deleted = json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [{"$patch": "delete", "name": "b"}]});
        assert_eq!(names(&pod(spec, deleted)), "ca");
    }

    #[test]
    fn malformed_directives_are_refused() {
        let order = "$setElementOrder/containers";
        for (patch, message) in [
            (
                json!({"containers": [{"$patch": "merge", "name": "a"}]}),
                "merging lists cannot yet be specified in the patch",
            ),
            (
                json!({"containers": [{"image": "x"}]}),
                "map: map[image:x] does not contain declared merge key: name",
            ),
            (
                json!({"containers": [{"$patch": "delete"}]}),
                "map: map[$patch:delete] does not contain declared merge key: name",
            ),
            (
                json!({"containers": [{"$patch": "odd", "name": "a"}]}),
                "unknown patch type: odd in map: map[$patch:odd name:a]",
            ),
            (
                json!({"$patch": "merge", "hostname": "x"}),
                "unknown patch type: merge in map: map[$patch:merge hostname:x]",
            ),
            (json!({"$patch": "odd"}), "unknown patch type: odd in map: map[$patch:odd]"),
            (json!({"$retainKeys": "x"}), "invalid patch format of retainKeys"),
            (json!({"$retainKeys": ["hostname"], "nodeName": "x"}), "invalid patch format of retainKeys"),
            (json!({"$deleteFromPrimitiveList": ["x"]}), "invalid patch format of primitive list"),
            (json!({"$deleteFromPrimitiveList/": ["x"]}), "invalid patch format of primitive list"),
            (json!({"$setElementOrder": []}), "invalid patch format of setElementOrder list"),
            (json!({"$setElementOrder/": []}), "invalid patch format of setElementOrder list"),
            (json!({order: "x"}), "expected a []interface {}, but received a string"),
            (
                json!({order: [], "containers": {"name": "a"}}),
                "expected a []interface {}, but received a map[string]interface {}",
            ),
            (
                json!({"$setElementOrder/odd": []}),
                "unable to find api field in struct PodSpec for the json field \"odd\"",
            ),
            (
                json!({order: [{"name": "a"}], "containers": [{"image": "x"}]}),
                "map: map[image:x] does not contain declared merge key: name",
            ),
            (
                json!({order: [{"name": "a"}], "containers": [{"name": "d"}]}),
                "The order in patch list:\n[map[name:d]]\n doesn't match $setElementOrder list:\n[map[name:a]]\n",
            ),
            (
                json!({"containers": ["a"]}),
                "list element types are not identical: [[map[image:old name:a]] [a]]",
            ),
            (
                json!({"containers": [["a"]]}),
                "list element types are not identical: [[map[image:old name:a]] [[a]]]",
            ),
        ] {
            let document = json!({"spec": {"containers": containers("a")}});
            let result = patched("Pod", document, json!({ "spec": patch }));
            assert_eq!(result.unwrap_err(), message);
        }
        let lists = patched(
            "Pod",
            json!({"metadata": {"finalizers": [["a"]]}}),
            json!({"metadata": {"finalizers": [["b"]]}}),
        );
        assert_eq!(lists.unwrap_err(), "the server rejected our request due to an error in our request");
        let schema = Schema::builtin_kind("", "v1", "Pod").unwrap();
        let code = |patch: Value| {
            strategic_merge_patch(
                &mut json!({"spec": {"containers": []}}),
                json!({"spec": patch}),
                schema.root(),
            )
            .unwrap_err()
            .code
        };
        assert_eq!(code(json!({"$retainKeys": 1})), 400);
        assert_eq!(code(json!({"$patch": "odd"})), 500);
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
            // An order of nothing is refused.
            prop_assume!(!old.is_empty() || !new.is_empty());
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
