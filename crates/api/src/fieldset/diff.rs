//! What a write changed, as two sets, in one walk over both objects that allocates only where
//! they differ.

use super::set::{
    FieldSet, Grain, Node, child_schema, field_element, grain, granular, item_element, item_schema, merges,
    set_member, subtract, whole,
};
use crate::schema::{SchemaRef, Shape};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The fields that differ between two versions of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Added, or with another value.
    pub changed: FieldSet,
    pub removed: FieldSet,
}

/// Fields of the root and of `metadata` that nobody owns.
const UNOWNED_ROOT: &[&str] = &["apiVersion", "kind"];
const UNOWNED_METADATA: &[&str] = &[
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
];

impl Diff {
    /// Compares two versions; `None` as the old one for a create. Fields named in `ignored`
    /// (`status`, `metadata.labels`) do not take part.
    pub fn between(old: Option<&Value>, new: &Value, schema: SchemaRef<'_>, ignored: &[&str]) -> Self {
        let mut nodes = Nodes::default();
        let empty = Map::new();
        let Some(new) = new.as_object() else { return Diff::default() };
        let old_map = old.and_then(Value::as_object);
        for name in names(old_map.unwrap_or(&empty), new) {
            if UNOWNED_ROOT.contains(&name) || ignored.contains(&name) {
                continue;
            }
            let (before, after) = (before(old_map, name, schema), new.get(name));
            let child = child_schema(schema, name);
            if name == "metadata" {
                let metadata = compare_fields(as_map(&before), as_map_of(after), child, UNOWNED_METADATA);
                nodes.take(field_element(name), metadata);
            } else {
                nodes.take(field_element(name), compare(before, after, child));
            }
        }
        let mut diff = Diff { changed: FieldSet(nodes.changed), removed: FieldSet(nodes.removed) };
        for path in ignored.iter().filter(|path| path.contains('.')) {
            diff.changed.exclude(path);
            diff.removed.exclude(path);
        }
        diff
    }

    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

/// Takes out of a set what nobody owns.
pub(super) fn strip(set: &mut FieldSet) {
    for field in UNOWNED_ROOT {
        set.0.remove(&field_element(field));
    }
    let mut unowned: Node =
        UNOWNED_METADATA.iter().map(|field| (field_element(field), Value::Object(Node::new()))).collect();
    set_member(&mut unowned, true);
    subtract(&mut set.0, &Node::from_iter([(field_element("metadata"), Value::Object(unowned))]));
}

/// The old side of a comparison.
#[derive(Clone, Copy)]
enum Before<'a> {
    Absent,
    /// What the Go type always has: a struct that is no pointer, or a required list. It is there
    /// even in an object that does not exist yet, so nobody comes to own it by setting its parts.
    Zero,
    Value(&'a Value),
}

/// Structs that are part of their parent in upstream's types, beyond `metadata`, `spec` and
/// `status` of each kind.
const VALUE_STRUCTS: &[&str] = &[
    "metadata",
    "spec",
    "status",
    "template",
    "strategy",
    "updateStrategy",
    "loadBalancer",
    "daemonEndpoints",
    "kubeletEndpoint",
    "nodeInfo",
    "involvedObject",
    "regarding",
    "source",
];

fn before<'a>(old: Option<&'a Map<String, Value>>, name: &str, parent: SchemaRef<'_>) -> Before<'a> {
    match old.and_then(|map| map.get(name)) {
        Some(Value::Null) => Before::Zero,
        Some(value) => Before::Value(value),
        // Custom resources have no Go type.
        None if parent.type_name().is_none() => Before::Absent,
        None => {
            let shape = child_schema(parent, name).shape();
            let required_list = matches!(shape, Shape::Array | Shape::Map) && parent.is_required(name);
            let value_struct =
                shape == Shape::Object && VALUE_STRUCTS.contains(&name) && holds_structs(parent);
            if required_list || value_struct { Before::Zero } else { Before::Absent }
        }
    }
}

/// Volume sources and handlers hold pointers under some of the same names.
fn holds_structs(parent: SchemaRef<'_>) -> bool {
    let name = parent.type_name().unwrap_or_default().rsplit('.').next().unwrap_or_default();
    !matches!(name, "Volume" | "EnvVar" | "PodTemplate" | "PersistentVolumeSpec")
}

fn as_map<'a>(before: &Before<'a>) -> Option<&'a Map<String, Value>> {
    match before {
        Before::Value(value) => value.as_object(),
        Before::Absent | Before::Zero => None,
    }
}

fn as_map_of(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

/// What the walk found below one path; a present but empty node means the path itself.
#[derive(Default)]
struct Found {
    changed: Option<Node>,
    removed: Option<Node>,
}

/// The children found so far.
#[derive(Default)]
struct Nodes {
    changed: Node,
    removed: Node,
}

impl Nodes {
    fn take(&mut self, element: String, found: Found) {
        match (found.changed, found.removed) {
            (Some(changed), Some(removed)) => {
                self.changed.insert(element.clone(), Value::Object(changed));
                self.removed.insert(element, Value::Object(removed));
            }
            (Some(changed), None) => {
                self.changed.insert(element, Value::Object(changed));
            }
            (None, Some(removed)) => {
                self.removed.insert(element, Value::Object(removed));
            }
            (None, None) => {}
        }
    }

    /// The parts found, where the parent path itself has not changed.
    fn inner(self) -> Found {
        Found {
            changed: (!self.changed.is_empty()).then_some(self.changed),
            removed: (!self.removed.is_empty()).then_some(self.removed),
        }
    }
}

fn compare(old: Before<'_>, new: Option<&Value>, schema: SchemaRef<'_>) -> Found {
    match (old, new) {
        (Before::Absent | Before::Zero, None) => Found::default(),
        (Before::Absent, Some(new)) => Found { changed: Some(whole(new, schema)), removed: None },
        (Before::Value(old), None) => Found { changed: None, removed: Some(whole(old, schema)) },
        (Before::Zero, Some(new)) => match grain(new, schema) {
            Grain::Leaf if is_zero(new) => Found::default(),
            Grain::Leaf => Found { changed: Some(Node::new()), removed: None },
            Grain::Fields => compare_fields(None, new.as_object(), schema, &[]),
            Grain::Items => {
                // All items are new, but the list was there.
                let mut changed = whole(new, schema);
                if changed.len() > 1 {
                    set_member(&mut changed, false);
                }
                Found { changed: Some(changed), removed: None }
            }
        },
        (Before::Value(old), Some(new)) => compare_values(old, new, schema),
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn compare_values(old: &Value, new: &Value, schema: SchemaRef<'_>) -> Found {
    match (old, new) {
        (Value::Object(a), Value::Object(b)) if granular(schema) && !(a.is_empty() && b.is_empty()) => {
            compare_fields(Some(a), Some(b), schema, &[])
        }
        (Value::Array(a), Value::Array(b)) if merges(schema) && !(a.is_empty() && b.is_empty()) => {
            compare_items(a, b, schema)
        }
        // Of something that has parts, null leaves none.
        (Value::Object(a), Value::Null) if granular(schema) && !a.is_empty() => {
            compare_fields(Some(a), None, schema, &[])
        }
        (Value::Array(a), Value::Null) if merges(schema) && !a.is_empty() => compare_items(a, &[], schema),
        _ if old == new => Found::default(),
        _ => Found { changed: Some(Node::new()), removed: None },
    }
}

fn compare_fields(
    old: Option<&Map<String, Value>>,
    new: Option<&Map<String, Value>>,
    schema: SchemaRef<'_>,
    skipped: &[&str],
) -> Found {
    let empty = Map::new();
    let new = new.unwrap_or(&empty);
    let mut nodes = Nodes::default();
    for name in names(old.unwrap_or(&empty), new).filter(|name| !skipped.contains(name)) {
        let found = compare(before(old, name, schema), new.get(name), child_schema(schema, name));
        if found.changed.is_some() || found.removed.is_some() {
            nodes.take(field_element(name), found);
        }
    }
    nodes.inner()
}

/// All keys of both.
fn names<'a>(a: &'a Map<String, Value>, b: &'a Map<String, Value>) -> impl Iterator<Item = &'a str> {
    a.keys().map(String::as_str).chain(b.keys().map(String::as_str).filter(|name| !a.contains_key(*name)))
}

fn compare_items(old: &[Value], new: &[Value], schema: SchemaRef<'_>) -> Found {
    // The usual case, found without building a single element.
    if old == new {
        return Found::default();
    }
    let elements = |items: &[Value]| {
        items.iter().map(|item| item_element(item, schema).ok()).collect::<Option<Vec<_>>>()
    };
    let (Some(a), Some(b)) = (elements(old), elements(new)) else {
        return Found { changed: Some(Node::new()), removed: None };
    };
    // The items of both sides by their element; usually one each.
    let mut groups: BTreeMap<&String, [Vec<&Value>; 2]> = BTreeMap::new();
    for (side, (elements, items)) in [(&a, old), (&b, new)].into_iter().enumerate() {
        for (element, item) in elements.iter().zip(items) {
            groups.entry(element).or_default()[side].push(item);
        }
    }
    let mut nodes = Nodes::default();
    for (element, [before, after]) in groups {
        let found = match (before.as_slice(), after.as_slice()) {
            ([old], [new]) => compare_values(old, new, item_schema(schema)),
            ([old], []) => compare(Before::Value(old), None, item_schema(schema)),
            ([], [new]) => compare(Before::Absent, Some(new), item_schema(schema)),
            // Items that share their key are owned together.
            (old, new) if old == new => Found::default(),
            (_, []) => Found { changed: None, removed: Some(Node::new()) },
            _ => Found { changed: Some(Node::new()), removed: None },
        };
        nodes.take(element.clone(), found);
    }
    nodes.inner()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schema;
    use serde_json::json;

    fn diff(group: &str, kind: &str, old: Option<Value>, new: Value) -> (Value, Value) {
        let schema = Schema::builtin_kind(group, "v1", kind).unwrap();
        let diff = Diff::between(old.as_ref(), &new, schema.root(), &[]);
        (diff.changed.to_value(), diff.removed.to_value())
    }

    #[test]
    fn a_created_deployment_reads_as_upstreams() {
        let new = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "uid": "u", "labels": {"app": "web"}, "annotations": {"a": "b"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
                    {"name": "c", "image": "nginx", "resources": {}, "ports": [{"containerPort": 80, "protocol": "TCP"}]}],
                    "securityContext": {}}}}});
        let (changed, removed) = diff("apps", "Deployment", None, new);
        assert_eq!(
            changed,
            json!({
                "f:metadata": {"f:annotations": {".": {}, "f:a": {}}, "f:labels": {".": {}, "f:app": {}}},
                "f:spec": {
                    "f:replicas": {}, "f:selector": {},
                    "f:strategy": {"f:type": {}, "f:rollingUpdate": {".": {}, "f:maxSurge": {}}},
                    "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {
                        "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}, "f:resources": {},
                            "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}}}},
                        "f:securityContext": {}}},
                },
            })
        );
        assert_eq!(removed, json!({}));
    }

    #[test]
    fn changes_and_removals() {
        let old =
            json!({"metadata": {"labels": {"a": "1", "b": "2"}, "resourceVersion": "1"}, "data": {"x": "1"}});
        let new =
            json!({"metadata": {"labels": {"a": "9", "c": "3"}, "resourceVersion": "2"}, "data": {"x": "1"}});
        let (changed, removed) = diff("", "ConfigMap", Some(old.clone()), new);
        assert_eq!(changed, json!({"f:metadata": {"f:labels": {"f:a": {}, "f:c": {}}}}));
        assert_eq!(removed, json!({"f:metadata": {"f:labels": {"f:b": {}}}}));
        assert_eq!(diff("", "ConfigMap", Some(old.clone()), old.clone()), (json!({}), json!({})));
        let (changed, removed) =
            diff("", "ConfigMap", Some(old), json!({"metadata": {"labels": {"a": "1", "b": "2"}}}));
        assert_eq!((changed, removed), (json!({}), json!({"f:data": {".": {}, "f:x": {}}})));
    }

    #[test]
    fn lists_by_key_and_as_sets() {
        let pod = |containers: Value, finalizers: Value| json!({"metadata": {"finalizers": finalizers}, "spec": {"containers": containers}});
        let old = pod(json!([{"name": "a", "image": "1"}, {"name": "b"}]), json!(["x/x", "y/y"]));
        let new = pod(json!([{"name": "b"}, {"name": "a", "image": "2"}]), json!(["y/y", "z/z"]));
        let (changed, removed) = diff("", "Pod", Some(old.clone()), new);
        assert_eq!(
            changed,
            json!({"f:metadata": {"f:finalizers": {"v:\"z/z\"": {}}}, "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {"f:image": {}}}}})
        );
        assert_eq!(removed, json!({"f:metadata": {"f:finalizers": {"v:\"x/x\"": {}}}}));
        let (changed, removed) =
            diff("", "Pod", Some(old), pod(json!([{"name": "a", "image": "1"}]), json!(["x/x", "y/y"])));
        assert_eq!(changed, json!({}));
        assert_eq!(
            removed,
            json!({"f:spec": {"f:containers": {"k:{\"name\":\"b\"}": {".": {}, "f:name": {}}}}})
        );
    }
}
