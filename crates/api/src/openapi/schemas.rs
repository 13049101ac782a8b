//! Types as JSON schemas: from the table for built-in kinds, from their own document for others.

use super::Form;
use crate::gvk::Gvk;
use crate::kinds::Kind;
use crate::schema::{Definition, Descriptions, Format, ListType, MapType, Schema, SchemaRef, Shape};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// Types that every document of kinds names, whether or not a path needs them.
const ALWAYS: [&str; 4] = [
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Patch",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
    "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent",
];

/// Places whose type is a struct by value although they are optional, beside `metadata`, `spec`,
/// `status` and what is required: the schema says that their default is `{}`.
const BY_VALUE: [(&str, &str); 17] = [
    ("io.k8s.api.apps.v1.DaemonSetSpec", "updateStrategy"),
    ("io.k8s.api.apps.v1.DeploymentSpec", "strategy"),
    ("io.k8s.api.apps.v1.StatefulSetSpec", "updateStrategy"),
    ("io.k8s.api.core.v1.Container", "resources"),
    ("io.k8s.api.core.v1.ContainerStatus", "lastState"),
    ("io.k8s.api.core.v1.ContainerStatus", "state"),
    ("io.k8s.api.core.v1.EphemeralContainer", "resources"),
    ("io.k8s.api.core.v1.Event", "source"),
    ("io.k8s.api.core.v1.NodeDaemonEndpoints", "kubeletEndpoint"),
    ("io.k8s.api.core.v1.NodeStatus", "daemonEndpoints"),
    ("io.k8s.api.core.v1.NodeStatus", "nodeInfo"),
    ("io.k8s.api.core.v1.PersistentVolumeClaimSpec", "resources"),
    ("io.k8s.api.core.v1.ReplicationControllerSpec", "template"),
    ("io.k8s.api.core.v1.ServiceStatus", "loadBalancer"),
    ("io.k8s.api.discovery.v1.Endpoint", "conditions"),
    ("io.k8s.api.events.v1.Event", "deprecatedSource"),
    ("io.k8s.api.events.v1.Event", "regarding"),
];

/// The name of a kind's type in the documents.
pub(super) fn type_name(kind: &Kind) -> String {
    match kind.schema.root().type_name() {
        Some(name) if !kind.schema.is_custom() => name.to_owned(),
        _ => custom_name(&kind.gvk, &kind.gvk.kind),
    }
}

/// The name of the list type of a kind.
pub(super) fn list_name(kind: &Kind) -> String {
    let Gvk { group, version, .. } = &kind.gvk;
    match Schema::builtin_kind(group, version, &kind.list_kind) {
        Some(schema) if !kind.schema.is_custom() => schema.root().type_name().unwrap_or_default().to_owned(),
        _ => custom_name(&kind.gvk, &kind.list_kind),
    }
}

/// `com.example.v1.Widget` for the group `example.com`.
fn custom_name(gvk: &Gvk, kind: &str) -> String {
    let reversed: Vec<&str> = gvk.group.split('.').rev().collect();
    format!("{}.{}.{kind}", reversed.join("."), gvk.version)
}

/// All types that the given names need, by name, but for those that are told already.
pub(super) fn all(
    form: Form,
    kinds: &[Arc<Kind>],
    used: BTreeSet<String>,
    told: &BTreeSet<String>,
    descriptions: &Descriptions,
) -> Map<String, Value> {
    let mut out = Map::new();
    let mut open: Vec<String> = used.into_iter().collect();
    if !kinds.is_empty() {
        open.extend(ALWAYS.map(str::to_owned));
    }
    for kind in kinds.iter().filter(|kind| kind.schema.is_custom()) {
        out.insert(type_name(kind), custom(form, kind));
        out.insert(list_name(kind), custom_list(form, kind));
        open.extend([OBJECT_META, LIST_META].map(str::to_owned));
    }
    while let Some(name) = open.pop() {
        if out.contains_key(&name) || told.contains(&name) {
            continue;
        }
        let Some(definition) = Schema::builtin_definition(&name) else { continue };
        let mut writer = Writer { form, descriptions, used: BTreeSet::new() };
        let schema = writer.definition(definition);
        open.extend(writer.used.iter().map(|name| (*name).to_owned()));
        out.insert(name, schema);
    }
    out
}

fn gvk_value((group, version, kind): (&str, &str, &str)) -> Value {
    json!({ "group": group, "version": version, "kind": kind })
}

fn type_meta(properties: &mut Map<String, Value>) {
    for (name, text) in [
        ("apiVersion", "The group and version of the API that this object belongs to."),
        ("kind", "The kind of this object, in CamelCase."),
    ] {
        properties.insert(name.into(), json!({ "type": "string", "description": text }));
    }
}

fn custom(form: Form, kind: &Kind) -> Value {
    let mut schema = match kind.schema.source() {
        Some(Value::Object(source)) => source,
        _ => Map::new(),
    };
    if form == Form::V2 {
        simplify(&mut schema);
    }
    embed(form, &mut schema);
    let properties = schema.entry("properties").or_insert_with(|| json!({}));
    if let Some(properties) = properties.as_object_mut() {
        type_meta(properties);
        properties.insert("metadata".into(), wrapped(form, OBJECT_META, Map::new(), true));
    }
    schema.insert("type".into(), "object".into());
    let gvk = gvk_value((&kind.gvk.group, &kind.gvk.version, &kind.gvk.kind));
    schema.insert("x-kubernetes-group-version-kind".into(), json!([gvk]));
    Value::Object(schema)
}

/// What is embedded has the fields of an object of its own, whether its schema tells of them or not.
fn embed(form: Form, schema: &mut Map<String, Value>) {
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    let below = properties.into_iter().flat_map(|all| all.values_mut()).filter_map(Value::as_object_mut);
    below.for_each(|below| embed(form, below));
    for field in ["items", "additionalProperties"] {
        if let Some(below) = schema.get_mut(field).and_then(Value::as_object_mut) {
            embed(form, below);
        }
    }
    if schema.get("x-kubernetes-embedded-resource") != Some(&Value::Bool(true)) {
        return;
    }
    if let Some(properties) = schema.entry("properties").or_insert_with(|| json!({})).as_object_mut() {
        type_meta(properties);
        properties.insert("metadata".into(), wrapped(form, OBJECT_META, Map::new(), true));
    }
    if let Some(required) = schema.entry("required").or_insert_with(|| json!([])).as_array_mut() {
        for field in ["kind", "apiVersion"] {
            if !required.iter().any(|name| name == field) {
                required.push(field.into());
            }
        }
    }
}

/// Takes out of a schema what version 2 cannot say, or what those who validate by it take wrongly.
fn simplify(schema: &mut Map<String, Value>) {
    let is = |schema: &Map<String, Value>, key: &str| schema.get(key) == Some(&Value::Bool(true));
    if is(schema, "nullable") {
        schema.retain(|key, _| {
            !matches!(key.as_str(), "type" | "properties" | "items" | "additionalProperties")
        });
    }
    if is(schema, "x-kubernetes-preserve-unknown-fields") {
        schema.retain(|key, _| !matches!(key.as_str(), "properties" | "items"));
    }
    schema.retain(|key, _| {
        !matches!(key.as_str(), "allOf" | "anyOf" | "oneOf" | "not" | "nullable" | "default")
    });
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    let below = properties.into_iter().flat_map(|all| all.values_mut()).filter_map(Value::as_object_mut);
    below.for_each(simplify);
    for field in ["items", "additionalProperties"] {
        if let Some(below) = schema.get_mut(field).and_then(Value::as_object_mut) {
            simplify(below);
        }
    }
}

fn custom_list(form: Form, kind: &Kind) -> Value {
    let mut properties = Map::new();
    type_meta(&mut properties);
    properties.insert("metadata".into(), wrapped(form, LIST_META, Map::new(), true));
    properties.insert("items".into(), json!({ "type": "array", "items": form.reference(&type_name(kind)) }));
    json!({
        "description": format!("{} is a list of {}", kind.list_kind, kind.gvk.kind),
        "type": "object", "required": ["items"], "properties": properties,
        "x-kubernetes-group-version-kind": [gvk_value((&kind.gvk.group, &kind.gvk.version, &kind.list_kind))],
    })
}

/// A reference with something to say beside it, which version 3 puts into `allOf`.
fn wrapped(form: Form, name: &str, mut beside: Map<String, Value>, by_value: bool) -> Value {
    let Value::Object(reference) = form.reference(name) else { return Value::Null };
    match form {
        Form::V2 => beside.extend(reference),
        Form::V3 => {
            if by_value {
                beside.insert("default".into(), json!({}));
            }
            if beside.is_empty() {
                return Value::Object(reference);
            }
            beside.insert("allOf".into(), json!([reference]));
        }
    }
    Value::Object(beside)
}

struct Writer<'a> {
    form: Form,
    descriptions: &'a Descriptions,
    used: BTreeSet<&'a str>,
}

impl<'a> Writer<'a> {
    fn definition(&mut self, definition: Definition<'a>) -> Value {
        let schema = definition.schema();
        let mut out = Map::new();
        describe(&mut out, self.descriptions.definition(definition.index()));
        self.structure(schema, definition.name(), &mut out);
        let gvks: Vec<Value> = definition.gvks().map(gvk_value).collect();
        if !gvks.is_empty() {
            out.insert("x-kubernetes-group-version-kind".into(), gvks.into());
        }
        if let Ok(unions) = serde_json::from_str(definition.unions()) {
            let _: &Value = out.entry("x-kubernetes-unions").or_insert(unions);
        }
        Value::Object(out)
    }

    /// What a place says of its type: a reference, or the type itself.
    fn place(&mut self, schema: SchemaRef<'a>, mut out: Map<String, Value>, by_value: bool) -> Value {
        match schema.type_name() {
            Some(name) => {
                self.used.insert(name);
                if schema.has_site_attributes() {
                    patch_attributes(schema, &mut out);
                    // What the type says of itself is not said again.
                    let own = Schema::builtin(name);
                    if own.is_some_and(|own| own.root().map_type() == schema.map_type()) {
                        out.remove("x-kubernetes-map-type");
                    }
                }
                let is_struct = schema.shape() == Shape::Object && !schema.preserve_unknown();
                wrapped(self.form, name, out, by_value && is_struct)
            }
            None => {
                self.structure(schema, "", &mut out);
                if by_value && self.form == Form::V3 && !out.contains_key("default") {
                    let zero = match schema.shape() {
                        Shape::String if schema.format() == Format::None => Some(json!("")),
                        Shape::Integer | Shape::Number => Some(json!(0)),
                        Shape::Boolean => Some(json!(false)),
                        _ => None,
                    };
                    out.extend(zero.map(|zero| ("default".to_owned(), zero)));
                }
                Value::Object(out)
            }
        }
    }

    fn structure(&mut self, schema: SchemaRef<'a>, owner: &str, out: &mut Map<String, Value>) {
        let kind = match schema.shape() {
            Shape::Any => None,
            Shape::Object | Shape::Map => Some("object"),
            Shape::Array => Some("array"),
            Shape::String => Some("string"),
            Shape::Integer => Some("integer"),
            Shape::Number => Some("number"),
            Shape::Boolean => Some("boolean"),
            Shape::IntOrString | Shape::Quantity => {
                self.either(schema.shape(), out);
                None
            }
        };
        if let Some(kind) = kind {
            out.insert("type".into(), kind.into());
        }
        let format = match schema.format() {
            Format::None => None,
            Format::Int32 => Some("int32"),
            Format::Int64 => Some("int64"),
            Format::Double => Some("double"),
            Format::Byte => Some("byte"),
            Format::Time | Format::MicroTime => Some("date-time"),
        };
        if let Some(format) = format {
            out.insert("format".into(), format.into());
        }
        if let Some(default) = schema.default().filter(|_| self.form == Form::V3) {
            out.insert("default".into(), default.clone());
        }
        if let Some(items) = schema.items() {
            let field = if schema.shape() == Shape::Map { "additionalProperties" } else { "items" };
            let items = self.place(items, Map::new(), true);
            out.insert(field.into(), items);
        }
        patch_attributes(schema, out);
        self.properties(schema, owner, out);
    }

    fn properties(&mut self, schema: SchemaRef<'a>, owner: &str, out: &mut Map<String, Value>) {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for property in schema.properties() {
            let mut beside = Map::new();
            describe(&mut beside, self.descriptions.property(property.index));
            let by_value = is_by_value(owner, property.name, property.required, property.schema);
            properties.insert(property.name.into(), self.place(property.schema, beside, by_value));
            if property.required {
                required.push(property.name);
            }
        }
        if !properties.is_empty() {
            out.insert("properties".into(), properties.into());
        }
        if !required.is_empty() {
            out.insert("required".into(), required.into());
        }
    }

    /// Types with two forms; version 2 can only name one of them.
    fn either(&self, shape: Shape, out: &mut Map<String, Value>) {
        if shape == Shape::IntOrString {
            out.insert("format".into(), "int-or-string".into());
        }
        match self.form {
            Form::V2 => drop(out.insert("type".into(), "string".into())),
            Form::V3 => {
                let pair =
                    if shape == Shape::IntOrString { ["integer", "string"] } else { ["string", "number"] };
                out.insert("oneOf".into(), pair.map(|kind| json!({ "type": kind })).to_vec().into());
            }
        }
    }
}

fn describe(out: &mut Map<String, Value>, text: &str) {
    if !text.is_empty() {
        out.insert("description".into(), text.into());
    }
}

fn is_by_value(owner: &str, name: &str, required: bool, schema: SchemaRef<'_>) -> bool {
    match schema.type_name() {
        None => required,
        Some("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector") => false,
        Some(_) => {
            required || matches!(name, "metadata" | "spec" | "status") || BY_VALUE.contains(&(owner, name))
        }
    }
}

/// How lists and maps merge.
fn patch_attributes(schema: SchemaRef<'_>, out: &mut Map<String, Value>) {
    if schema.merge_type_is_explicit() {
        match schema.shape() {
            // Bytes are a list of numbers to upstream.
            Shape::Array | Shape::String => {
                let list = match schema.list_type() {
                    ListType::Atomic => "atomic",
                    ListType::Set => "set",
                    ListType::Map => "map",
                };
                out.insert("x-kubernetes-list-type".into(), list.into());
            }
            _ => {
                let map = match schema.map_type() {
                    MapType::Granular => "granular",
                    MapType::Atomic => "atomic",
                };
                out.insert("x-kubernetes-map-type".into(), map.into());
            }
        }
    }
    let keys: Vec<&str> = schema.list_map_keys().collect();
    if !keys.is_empty() {
        out.insert("x-kubernetes-list-map-keys".into(), keys.into());
    }
    if let Some(key) = schema.patch_merge_key() {
        out.insert("x-kubernetes-patch-merge-key".into(), key.into());
    }
    let strategy = schema.patch_strategy();
    let parts =
        [(strategy.merge, "merge"), (strategy.replace, "replace"), (strategy.retain_keys, "retainKeys")];
    let parts: Vec<&str> = parts.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect();
    if !parts.is_empty() {
        out.insert("x-kubernetes-patch-strategy".into(), parts.join(",").into());
    }
}
