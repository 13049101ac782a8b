//! A set of field paths in the form that the API shows it, `FieldsV1`: nested objects whose keys
//! are path elements (`f:name`, `k:{"name":"web"}`, `v:"x"`, `i:0`); `.` or an empty object marks
//! a member. Working on this form makes decoding and encoding free, and sets that a write does not
//! touch cost nothing.

use crate::schema::{ListType, MapType, SchemaRef, Shape};
use serde_json::{Map, Value};

pub(super) type Node = Map<String, Value>;

/// A set of paths below the root of an object. The root itself is never a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(pub(super) Node);

const SELF: &str = ".";

impl FieldSet {
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads `fieldsV1`; `None` if it has not the form of a set.
    pub fn from_value(value: &Value) -> Option<Self> {
        let node = canonical(value.as_object()?)?;
        Some(FieldSet(node))
    }

    /// Every field that `object` sets.
    pub fn of(object: &Value, schema: SchemaRef<'_>) -> Self {
        let mut node = whole(object, schema);
        node.remove(SELF);
        FieldSet(node)
    }

    /// What a configuration claims by being applied: each leaf, each item of a list and each key
    /// of a map that it names. Named fields that hold others are not members by themselves.
    pub fn applied(config: &Value, schema: SchemaRef<'_>) -> Self {
        FieldSet(claimed(config, schema).unwrap_or_default())
    }

    pub fn to_value(&self) -> Value {
        Value::Object(self.0.clone())
    }

    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a path such as `["f:spec", "f:replicas"]`.
    pub fn insert(&mut self, path: &[&str]) {
        let mut node = Node::new();
        for element in path.iter().rev() {
            node = Node::from_iter([((*element).to_owned(), Value::Object(node))]);
        }
        union(&mut self.0, &node);
    }

    pub fn contains(&self, path: &[&str]) -> bool {
        let mut node = &self.0;
        for element in path {
            match node.get(*element) {
                Some(Value::Object(next)) => node = next,
                _ => return false,
            }
        }
        path.is_empty() || is_member(node)
    }

    #[must_use]
    pub fn union(mut self, other: &FieldSet) -> FieldSet {
        union(&mut self.0, &other.0);
        self
    }

    #[must_use]
    pub fn difference(mut self, other: &FieldSet) -> FieldSet {
        subtract(&mut self.0, &other.0);
        self
    }

    #[must_use]
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        self.intersection_with(&other.0)
    }

    pub(super) fn intersection_with(&self, other: &Node) -> FieldSet {
        FieldSet(common(&self.0, other))
    }

    /// Takes out the fields at a path such as `metadata.labels`, and what is below them.
    pub fn exclude(&mut self, path: &str) {
        exclude(&mut self.0, path);
    }

    /// All members as people read them, `.spec.containers[name="web"].image`: those of one level
    /// before those below it.
    pub fn display_paths(&self) -> Vec<String> {
        fn walk(node: &Node, prefix: &mut String, out: &mut Vec<String>) {
            for members in [true, false] {
                for (key, child) in children(node) {
                    let len = prefix.len();
                    display_element(key, prefix);
                    if members && is_member(child) {
                        out.push(prefix.clone());
                    } else if !members {
                        walk(child, prefix, out);
                    }
                    prefix.truncate(len);
                }
            }
        }
        let mut out = Vec::new();
        walk(&self.0, &mut String::new(), &mut out);
        out
    }

    /// All members as lists of path elements, in order.
    pub fn paths(&self) -> Vec<Vec<String>> {
        fn walk(node: &Node, prefix: &mut Vec<String>, out: &mut Vec<Vec<String>>) {
            for (key, child) in children(node) {
                prefix.push(key.clone());
                if is_member(child) {
                    out.push(prefix.clone());
                }
                walk(child, prefix, out);
                prefix.pop();
            }
        }
        let mut out = Vec::new();
        walk(&self.0, &mut Vec::new(), &mut out);
        out
    }
}

/// Whether the path that leads to this node is in the set.
pub(super) fn is_member(node: &Node) -> bool {
    node.is_empty() || node.contains_key(SELF)
}

fn children(node: &Node) -> impl Iterator<Item = (&String, &Node)> {
    node.iter().filter(|(key, _)| *key != SELF).filter_map(|(key, child)| Some((key, child.as_object()?)))
}

fn has_children(node: &Node) -> bool {
    node.len() > usize::from(node.contains_key(SELF))
}

/// Marks or unmarks a node, keeping the short form of leaves. A node that is left without any
/// member must be dropped by the caller.
pub(super) fn set_member(node: &mut Node, member: bool) {
    if member && has_children(node) {
        node.insert(SELF.to_owned(), Value::Object(Node::new()));
    } else {
        node.remove(SELF);
    }
}

/// Adds all of `from` to the set at the same place; both are inner nodes or both are roots.
pub(super) fn union(into: &mut Node, from: &Node) {
    for (key, child) in children(from) {
        match into.get_mut(key) {
            Some(Value::Object(have)) => {
                let member = is_member(have) || is_member(child);
                union(have, child);
                set_member(have, member);
            }
            _ => {
                into.insert(key.clone(), Value::Object(child.clone()));
            }
        }
    }
}

/// Takes all members of `from` out of the set. Returns whether anything was taken.
pub(super) fn subtract(set: &mut Node, from: &Node) -> bool {
    let mut changed = false;
    for (key, child) in children(from) {
        let Some(Value::Object(have)) = set.get_mut(key) else { continue };
        let was_member = is_member(have);
        let member = was_member && !is_member(child);
        changed |= subtract(have, child) | (was_member != member);
        if !member && !has_children(have) {
            set.remove(key);
        } else {
            set_member(have, member);
        }
    }
    changed
}

/// Whether all members of `part` are members of `set`.
pub(super) fn includes(set: &Node, part: &Node) -> bool {
    children(part).all(|(key, child)| match set.get(key) {
        Some(Value::Object(have)) => (is_member(have) || !is_member(child)) && includes(have, child),
        _ => false,
    })
}

fn exclude(node: &mut Node, path: &str) {
    let (head, rest) = path.split_once('.').unwrap_or((path, ""));
    let key = field_element(head);
    let Some(Value::Object(child)) = node.get_mut(&key) else { return };
    let member = is_member(child);
    if !rest.is_empty() {
        exclude(child, rest);
        set_member(child, member);
    }
    if rest.is_empty() || !member && child.is_empty() {
        node.remove(&key);
    }
}

fn common(a: &Node, b: &Node) -> Node {
    let mut out = Node::new();
    for (key, child) in children(a) {
        let Some(Value::Object(other)) = b.get(key) else { continue };
        let mut both = common(child, other);
        let member = is_member(child) && is_member(other);
        if member || !both.is_empty() {
            set_member(&mut both, member);
            out.insert(key.clone(), Value::Object(both));
        }
    }
    out
}

/// Checks a set from outside and writes its keys in the one form that comparisons need.
fn canonical(node: &Node) -> Option<Node> {
    let mut out = Node::new();
    for (key, child) in node {
        let child = child.as_object()?;
        if key == SELF {
            if !child.is_empty() {
                return None;
            }
            out.insert(SELF.to_owned(), Value::Object(Node::new()));
            continue;
        }
        let key = match key.split_at_checked(2)? {
            ("f:", _) => key.clone(),
            ("i:", index) => format!("i:{}", index.parse::<i32>().ok()?),
            ("v:", value) => format!("v:{}", serde_json::from_str::<Value>(value).ok()?),
            ("k:", keys) => {
                format!("k:{}", serde_json::from_str::<Value>(keys).ok().filter(Value::is_object)?)
            }
            _ => return None,
        };
        out.insert(key, Value::Object(canonical(child)?));
    }
    Some(out)
}

pub(super) fn field_element(name: &str) -> String {
    format!("f:{name}")
}

/// The path element of an item of a list of type `map` or `set`; without one, why.
pub(super) fn item_element(item: &Value, list: SchemaRef<'_>) -> Result<String, String> {
    let refused = |why: &str| Err(why.to_owned());
    match (list.list_type(), item) {
        (ListType::Map, Value::Object(item)) => {
            let mut keys = Node::new();
            for key in list.list_map_keys() {
                let default = || list.items()?.property(key)?.default();
                // An absent key without a default stays out of the element.
                keys.extend(item.get(key).or_else(default).map(|value| (key.to_owned(), value.clone())));
            }
            if keys.is_empty() {
                let all: Vec<String> = list.list_map_keys().map(|key| format!("{key:?}")).collect();
                return Err(format!(
                    "associative list with keys has an element that omits all key fields [{}] (and doesn't have \
                     default values for any key fields)",
                    all.join(" ")
                ));
            }
            Ok(format!("k:{}", Value::Object(keys)))
        }
        (ListType::Map, Value::Null) => refused("associative list with keys may not have a null element"),
        (ListType::Map, _) => refused("associative list with keys may not have non-map elements"),
        (_, Value::Object(_)) => refused("associative list without keys has an element that's a map type"),
        (_, Value::Array(_)) => refused("not supported: associative list with lists as elements"),
        (_, Value::Null) => refused("associative list without keys has an element that's an explicit null"),
        (_, scalar) => Ok(format!("v:{scalar}")),
    }
}

/// Appends an element as people read it: `.image`, `[name="web"]`, `[="x"]`, `[0]`.
pub(super) fn display_element(element: &str, out: &mut String) {
    let text = |value: &Value| match value {
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    };
    let (kind, rest) = element.split_at(element.len().min(2));
    match (kind, serde_json::from_str::<Value>(rest)) {
        ("k:", Ok(Value::Object(keys))) => {
            let keys: Vec<String> =
                keys.iter().map(|(key, value)| format!("{key}={}", text(value))).collect();
            out.push_str(&format!("[{}]", keys.join(",")));
        }
        ("v:", Ok(value)) => out.push_str(&format!("[={}]", text(&value))),
        ("i:", _) => out.push_str(&format!("[{rest}]")),
        _ => {
            out.push('.');
            out.push_str(rest);
        }
    }
}

/// How a value takes part in ownership: as a whole or part by part.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Grain {
    Leaf,
    Fields,
    Items,
}

pub(super) fn grain(value: &Value, schema: SchemaRef<'_>) -> Grain {
    match value {
        Value::Object(map) if !map.is_empty() && granular(schema) => Grain::Fields,
        Value::Array(items) if !items.is_empty() && merges(schema) => Grain::Items,
        _ => Grain::Leaf,
    }
}

/// Whether the items of a list are owned one by one.
pub(super) fn merges(schema: SchemaRef<'_>) -> bool {
    schema.shape() == Shape::Array && schema.list_type() != ListType::Atomic
}

/// Whether a key is a field that the type names, rather than a key of a map.
pub(super) fn is_named(schema: SchemaRef<'_>, key: &str) -> bool {
    schema.shape() == Shape::Object && schema.property(key).is_some()
}

/// Values without a schema are whole, unless a custom resource keeps its unknown fields.
pub(super) fn granular(schema: SchemaRef<'_>) -> bool {
    match schema.shape() {
        Shape::Object | Shape::Map => schema.map_type() == MapType::Granular,
        Shape::Any => schema.preserve_unknown(),
        _ => false,
    }
}

pub(super) fn child_schema<'a>(schema: SchemaRef<'a>, name: &str) -> SchemaRef<'a> {
    match schema.child(name) {
        Some(child) => child,
        None => SchemaRef::any(),
    }
}

pub(super) fn item_schema<'a>(schema: SchemaRef<'a>) -> SchemaRef<'a> {
    match schema.items() {
        Some(items) => items,
        None => SchemaRef::any(),
    }
}

/// The node for a value that is owned with everything in it.
pub(super) fn whole(value: &Value, schema: SchemaRef<'_>) -> Node {
    let mut node = Node::new();
    match (grain(value, schema), value) {
        (Grain::Fields, Value::Object(map)) => {
            for (name, child) in map {
                node.insert(field_element(name), Value::Object(whole(child, child_schema(schema, name))));
            }
        }
        (Grain::Items, Value::Array(items)) => {
            for item in items {
                let Ok(element) = item_element(item, schema) else { return Node::new() };
                node.insert(element, Value::Object(whole(item, item_schema(schema))));
            }
        }
        _ => return node,
    }
    set_member(&mut node, true);
    node
}

/// What a configuration claims of a value; `None` for nothing.
fn claimed(value: &Value, schema: SchemaRef<'_>) -> Option<Node> {
    let mut node = Node::new();
    let mut add = |element: String, child: Option<Node>, member: bool| {
        let mut child = match child {
            Some(child) => child,
            None if member => Node::new(),
            None => return,
        };
        if member {
            set_member(&mut child, true);
        }
        node.insert(element, Value::Object(child));
    };
    match value {
        Value::Object(map) if granular(schema) => {
            for (name, child) in map {
                let is_empty = child.is_null() || child.as_object().is_some_and(Map::is_empty);
                let below = claimed(child, child_schema(schema, name));
                add(field_element(name), below, is_empty || !is_named(schema, name));
            }
        }
        Value::Array(items) if merges(schema) => {
            for item in items {
                let Ok(element) = item_element(item, schema) else { continue };
                add(element, claimed(item, item_schema(schema)), true);
            }
        }
        Value::Null if granular(schema) || merges(schema) => {}
        _ => return Some(node),
    }
    (!node.is_empty()).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn set(value: Value) -> FieldSet {
        FieldSet::from_value(&value).unwrap()
    }

    #[test]
    fn members_and_leaves() {
        let mut fields = FieldSet::new();
        fields.insert(&["f:metadata", "f:labels"]);
        assert_eq!(fields.to_value(), json!({"f:metadata": {"f:labels": {}}}));
        fields.insert(&["f:metadata", "f:labels", "f:app"]);
        assert_eq!(fields.to_value(), json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}}}));
        assert!(fields.contains(&["f:metadata", "f:labels"]) && !fields.contains(&["f:metadata"]));
        let without = fields.difference(&set(json!({"f:metadata": {"f:labels": {"f:app": {}}}})));
        assert_eq!(without.to_value(), json!({"f:metadata": {"f:labels": {}}}));
        assert!(without.difference(&set(json!({"f:metadata": {"f:labels": {}}}))).is_empty());
    }

    #[test]
    fn sets_from_outside_are_checked() {
        let odd = json!({"k:{ \"name\": \"a\", \"b\": 1 }": {}});
        assert_eq!(set(odd).to_value(), json!({"k:{\"b\":1,\"name\":\"a\"}": {}}));
        for bad in [
            json!({"x:a": {}}),
            json!({"a": {}}),
            json!({"i:x": {}}),
            json!({"k:1": {}}),
            json!({"f:a": 1}),
            json!([]),
        ] {
            assert!(FieldSet::from_value(&bad).is_none(), "{bad}");
        }
    }

    fn sets() -> impl Strategy<Value = FieldSet> {
        proptest::collection::vec(proptest::collection::vec("f:[a-c]", 1..4), 0..8).prop_map(|paths| {
            let mut set = FieldSet::new();
            for path in paths {
                set.insert(&path.iter().map(String::as_str).collect::<Vec<_>>());
            }
            set
        })
    }

    fn model(set: &FieldSet) -> std::collections::BTreeSet<Vec<String>> {
        set.paths().into_iter().collect()
    }

    proptest! {
        #[test]
        fn algebra_is_that_of_path_sets(a in sets(), b in sets()) {
            let (x, y) = (model(&a), model(&b));
            prop_assert_eq!(model(&a.clone().union(&b)), x.union(&y).cloned().collect());
            prop_assert_eq!(model(&a.clone().difference(&b)), x.difference(&y).cloned().collect());
            prop_assert_eq!(model(&a.intersection(&b)), x.intersection(&y).cloned().collect());
            prop_assert_eq!(a.clone().difference(&b).union(&a.intersection(&b)), a.clone());
            prop_assert_eq!(FieldSet::from_value(&a.to_value()).unwrap(), a.clone());
            prop_assert!(a.clone().difference(&a).is_empty());
        }
    }
}
