//! Compiles an OpenAPI v3 schema of a custom resource into a table of its own.

use super::table::{
    FLAG_EMBEDDED, FLAG_EXPLICIT, FLAG_MERGE, FLAG_NULLABLE, FLAG_PRESERVE_UNKNOWN, FLAG_REPLACE,
    FLAG_RETAIN_KEYS, NONE, Node, PROP_OMIT_ZERO, PROP_REQUIRED, Prop, RawDefinition, SchemaRef, Span, Table,
    Text,
};
use super::{Format, ListType, MapType, Schema, Shape};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The deepest nesting of a schema that is compiled.
const DEPTH_MAX: usize = 64;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SchemaError {
    #[error("{0}: must be an object")]
    NotAnObject(String),
    #[error("{0}: unknown type {1:?}")]
    UnknownType(String, String),
    #[error("{0}: $ref is not allowed in the schema of a custom resource")]
    Reference(String),
    #[error("{0}: nested too deeply")]
    TooDeep(String),
}

#[derive(Default)]
struct Compiler {
    text: String,
    table: Table,
}

pub(super) fn compile(kind: &str, schema: &Value) -> Result<Table, SchemaError> {
    let mut compiler = Compiler::default();
    // The root is node 0, which `Schema::from_openapi` relies on, and definition 0.
    compiler.table.nodes.push(Node::default());
    let name = compiler.intern(kind);
    let unions = Text { start: 0, len: 0 };
    compiler.table.definitions.push(RawDefinition { name, node: 0, gvks: Span::default(), unions });
    let mut root = compiler.node("", schema, 0)?;
    if root.shape == Shape::Any {
        root.shape = Shape::Object;
    }
    compiler.add_object_fields(&mut root);
    root.definition = 0;
    compiler.table.nodes[0] = root;
    let mut table = compiler.table;
    table.text = compiler.text.into_boxed_str().into_string().into();
    // There may be hundreds of tables, and none grows any more.
    table.nodes.shrink_to_fit();
    table.props.shrink_to_fit();
    table.texts.shrink_to_fit();
    table.definitions.shrink_to_fit();
    table.values.shrink_to_fit();
    Ok(table)
}

impl Compiler {
    fn intern(&mut self, text: &str) -> Text {
        let start = self.text.len() as u32;
        self.text.push_str(text);
        Text { start, len: text.len() as u32 }
    }

    fn push(&mut self, node: Node) -> u32 {
        self.table.nodes.push(node);
        self.table.nodes.len() as u32 - 1
    }

    /// Compiles one schema; the caller decides where the node goes.
    fn node(&mut self, path: &str, schema: &Value, depth: usize) -> Result<Node, SchemaError> {
        if depth > DEPTH_MAX {
            return Err(SchemaError::TooDeep(path.into()));
        }
        let Value::Object(schema) = schema else {
            // `additionalProperties: true` and friends.
            return match schema {
                Value::Bool(true) => Ok(Node { flags: FLAG_PRESERVE_UNKNOWN, ..Node::default() }),
                _ => Err(SchemaError::NotAnObject(path.into())),
            };
        };
        if schema.contains_key("$ref") {
            return Err(SchemaError::Reference(path.into()));
        }
        let mut node = Node { shape: shape(path, schema)?, format: format(schema), ..Node::default() };
        node.flags = flags(schema);
        match text_of(schema, "x-kubernetes-map-type") {
            Some("atomic") => node.map = MapType::Atomic,
            _ => node.map = MapType::Granular,
        }
        match text_of(schema, "x-kubernetes-list-type") {
            Some("map") => node.list = ListType::Map,
            Some("set") => node.list = ListType::Set,
            _ => node.list = ListType::Atomic,
        }
        node.keys = self.keys(schema);
        if let Some(key) = text_of(schema, "x-kubernetes-patch-merge-key") {
            let text = self.intern(key);
            node.merge_key = self.table.texts.len() as u32;
            self.table.texts.push(text);
        }
        if let Some(value) = schema.get("default") {
            node.default = self.table.values.len() as u32;
            let mut value = value.clone();
            crate::go::whole_numbers(&mut value);
            self.table.values.push(value);
        }
        if let Some(Value::Object(props)) = schema.get("properties") {
            node.props = self.properties(path, schema, props, depth)?;
        }
        let item = match node.shape {
            Shape::Array => schema.get("items"),
            Shape::Map => schema.get("additionalProperties"),
            _ => None,
        };
        if let Some(item) = item {
            let item = self.node(&format!("{path}.*"), item, depth + 1)?;
            node.item = self.push(item);
        }
        if depth > 0 && node.flags & FLAG_EMBEDDED != 0 {
            node.shape = Shape::Object;
            self.add_object_fields(&mut node);
        }
        Ok(node)
    }

    fn keys(&mut self, schema: &Map<String, Value>) -> Span {
        let keys: Vec<&str> = match schema.get("x-kubernetes-list-map-keys") {
            Some(Value::Array(keys)) => keys.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let span = Span { start: self.table.texts.len() as u32, len: keys.len() as u32 };
        for key in keys {
            let text = self.intern(key);
            self.table.texts.push(text);
        }
        span
    }

    fn properties(
        &mut self,
        path: &str,
        schema: &Map<String, Value>,
        props: &Map<String, Value>,
        depth: usize,
    ) -> Result<Span, SchemaError> {
        let required: Vec<&str> = match schema.get("required") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        // By name, whatever order the map type has.
        let sorted: BTreeMap<&String, &Value> = props.iter().collect();
        let mut compiled = Vec::with_capacity(sorted.len());
        for (name, schema) in sorted {
            let node = self.node(&format!("{path}.{name}"), schema, depth + 1)?;
            let node = self.push(node);
            let flags = if required.contains(&name.as_str()) { PROP_REQUIRED } else { 0 };
            compiled.push(Prop { name: self.intern(name), node, flags });
        }
        // The properties of one object stand together, after those of the objects within it.
        let span = Span { start: self.table.props.len() as u32, len: compiled.len() as u32 };
        self.table.props.extend(compiled);
        Ok(span)
    }

    /// Every API object has `apiVersion`, `kind` and `metadata`, with the built-in types.
    fn add_object_fields(&mut self, root: &mut Node) {
        let mut props: Vec<Prop> = self.table.props
            [root.props.start as usize..(root.props.start + root.props.len) as usize]
            .iter()
            .filter(|prop| {
                let name = &self.text[prop.name.start as usize..(prop.name.start + prop.name.len) as usize];
                !matches!(name, "apiVersion" | "kind" | "metadata")
            })
            .copied()
            .collect();
        let string = self.push(Node { shape: Shape::String, ..Node::default() });
        let meta = Schema::builtin("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap_or_default();
        let mut copied = BTreeMap::new();
        let meta = self.copy(meta.root(), &mut copied);
        for (name, node) in [("apiVersion", string), ("kind", string), ("metadata", meta)] {
            let name = self.intern(name);
            props.push(Prop { name, node, flags: 0 });
        }
        let text = &self.text;
        props.sort_by(|a, b| {
            let of = |t: Text| &text[t.start as usize..(t.start + t.len) as usize];
            of(a.name).cmp(of(b.name))
        });
        root.props = Span { start: self.table.props.len() as u32, len: props.len() as u32 };
        self.table.props.extend(props);
    }

    /// Copies a type of the built-in table, so that one handle serves the whole object.
    fn copy(&mut self, from: SchemaRef<'_>, copied: &mut BTreeMap<u32, u32>) -> u32 {
        if let Some(node) = copied.get(&from.id()) {
            return *node;
        }
        let at = self.push(Node::default());
        copied.insert(from.id(), at);
        let mut node = Node {
            props: Span::default(),
            item: NONE,
            definition: NONE,
            default: NONE,
            ..from.copy_of_node()
        };
        if let Some(name) = from.type_name() {
            let name = self.intern(name);
            let unions = Text { start: 0, len: 0 };
            node.definition = self.table.definitions.len() as u32;
            self.table.definitions.push(RawDefinition { name, node: at, gvks: Span::default(), unions });
        }
        let keys: Vec<String> = from.list_map_keys().map(str::to_owned).collect();
        node.keys = Span { start: self.table.texts.len() as u32, len: keys.len() as u32 };
        for key in keys {
            let text = self.intern(&key);
            self.table.texts.push(text);
        }
        node.merge_key = match from.patch_merge_key() {
            None => NONE,
            Some(key) => {
                let text = self.intern(key);
                self.table.texts.push(text);
                self.table.texts.len() as u32 - 1
            }
        };
        if let Some(items) = from.items() {
            node.item = self.copy(items, copied);
        }
        let mut props = Vec::new();
        for prop in from.properties() {
            let node = self.copy(prop.schema, copied);
            let mut flags = if prop.required { PROP_REQUIRED } else { 0 };
            flags |= if prop.omit_zero { PROP_OMIT_ZERO } else { 0 };
            props.push(Prop { name: self.intern(prop.name), node, flags });
        }
        node.props = Span { start: self.table.props.len() as u32, len: props.len() as u32 };
        self.table.props.extend(props);
        self.table.nodes[at as usize] = node;
        at
    }
}

fn text_of<'a>(schema: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    schema.get(key).and_then(Value::as_str)
}

fn is_true(schema: &Map<String, Value>, key: &str) -> bool {
    schema.get(key) == Some(&Value::Bool(true))
}

fn shape(path: &str, schema: &Map<String, Value>) -> Result<Shape, SchemaError> {
    if is_true(schema, "x-kubernetes-int-or-string") {
        return Ok(Shape::IntOrString);
    }
    let is_map = match schema.get("additionalProperties") {
        None | Some(Value::Bool(false)) => false,
        Some(_) => !schema.contains_key("properties"),
    };
    Ok(match text_of(schema, "type") {
        None if schema.contains_key("properties") => Shape::Object,
        None => Shape::Any,
        Some("object") if is_map => Shape::Map,
        Some("object") => Shape::Object,
        Some("array") => Shape::Array,
        Some("string") => Shape::String,
        Some("integer") => Shape::Integer,
        Some("number") => Shape::Number,
        Some("boolean") => Shape::Boolean,
        Some(other) => return Err(SchemaError::UnknownType(path.into(), other.into())),
    })
}

fn format(schema: &Map<String, Value>) -> Format {
    // Formats of custom resources are checked by their validation, which may say more than
    // decoding can; only the number formats bound what is stored.
    match text_of(schema, "format") {
        Some("int32") => Format::Int32,
        Some("int64") => Format::Int64,
        Some("double") => Format::Double,
        _ => Format::None,
    }
}

fn flags(schema: &Map<String, Value>) -> u8 {
    let mut flags = 0;
    for (key, flag) in [
        ("x-kubernetes-preserve-unknown-fields", FLAG_PRESERVE_UNKNOWN),
        ("x-kubernetes-embedded-resource", FLAG_EMBEDDED),
        ("nullable", FLAG_NULLABLE),
    ] {
        if is_true(schema, key) {
            flags |= flag;
        }
    }
    if schema.contains_key("x-kubernetes-list-type") || schema.contains_key("x-kubernetes-map-type") {
        flags |= FLAG_EXPLICIT;
    }
    for strategy in text_of(schema, "x-kubernetes-patch-strategy").unwrap_or("").split(',') {
        flags |= match strategy {
            "merge" => FLAG_MERGE,
            "replace" => FLAG_REPLACE,
            "retainKeys" => FLAG_RETAIN_KEYS,
            _ => 0,
        };
    }
    flags
}
