//! CustomResourceDefinitions: how one becomes rows of the kinds table, one a version, and what
//! such a row has beyond others. Pure; who keeps the table up to date is the API server.
//! Upstream counterpart: `k8s.io/apiextensions-apiserver`.

pub mod field_path;
mod format;
mod rule;
mod rules;
mod validations;

pub use format::is_known as is_known_format;
pub use rule::{Compiler, Rule};
pub use rules::{Rules, embedded_faults};
pub use validations::{RULES, Validations, has_rules};

use crate::field::{ErrorKind, FieldError, Path};
use crate::go;
use crate::gvk::Gvk;
use crate::jsonpath::JsonPath;
use crate::kinds::{ALL_VERBS, Cell, Column, Kind, Subresource};
use crate::schema::{Schema, SchemaError};
use crate::{meta, object_meta};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The group of the definitions themselves.
pub const GROUP: &str = "apiextensions.k8s.io";

/// The finalizer that holds a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];
const STATUS: Subresource = Subresource { name: "status", gvk: None, verbs: GET_PATCH_UPDATE };
const SCALE: Subresource =
    Subresource { name: "scale", gvk: Some(("autoscaling", "v1", "Scale")), verbs: GET_PATCH_UPDATE };

/// Types of printer columns, and their formats.
pub const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
pub const COLUMN_FORMATS: [&str; 8] =
    ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];

/// Where a custom resource keeps what its Scale shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    pub spec_replicas: JsonPath,
    pub status_replicas: JsonPath,
    pub selector: Option<JsonPath>,
}

impl Scale {
    /// What an object has where its Scale reads, and a Scale cannot hold.
    fn faults(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let fields = [(&self.spec_replicas, "int64"), (&self.status_replicas, "int64")];
        for (path, wanted) in fields.into_iter().chain(self.selector.iter().map(|path| (path, "string"))) {
            let (Some(names), Some(value)) = (path.fields(), path.first(object)) else { continue };
            let path = format!(".{}", names.join("."));
            let (found, number) = (go::type_of(value), value.as_i64().unwrap_or(0));
            let (shown, why): (Value, String) = if found != wanted {
                let shown = if wanted == "string" { "".into() } else { 0.into() };
                let value = go::value(value);
                (shown, format!("{path} accessor error: {value} is of the type {found}, expected {wanted}"))
            } else if number < 0 {
                (number.into(), "should be a non-negative integer".into())
            } else if number > i64::from(i32::MAX) {
                (number.into(), format!("should be less than or equal to {}", i32::MAX))
            } else {
                continue;
            };
            errors.push(FieldError::invalid(Path::new(&path), shown, why));
        }
        errors
    }
}

/// The webhook that brings objects from one version of a definition into another.
#[derive(Debug, PartialEq)]
pub struct Conversion {
    /// The name of the definition.
    pub definition: String,
    /// How it is reached: a `clientConfig`.
    pub client: Value,
    /// The version of the reviews that it understands, `v1` or `v1beta1`.
    pub review: &'static str,
}

impl Conversion {
    fn of(definition: &Value) -> Option<Self> {
        let conversion = &definition["spec"]["conversion"];
        let versions = texts(&conversion["webhook"], "conversionReviewVersions");
        let known = |version: &String| ["v1", "v1beta1"].into_iter().find(|known| known == version);
        (text(conversion, "strategy") == "Webhook").then(|| Conversion {
            definition: meta::name(definition).to_owned(),
            client: conversion["webhook"]["clientConfig"].clone(),
            review: versions.iter().find_map(known).unwrap_or("v1"),
        })
    }
}

/// What the row of a custom resource has beyond others.
pub struct Custom {
    /// Whether clients see this version; one that is stored only is in the table all the same.
    pub is_served: bool,
    /// Whether objects are stored in this version.
    pub is_storage: bool,
    /// The definition is being deleted: no objects are made any more.
    pub is_terminating: bool,
    pub scale: Option<Scale>,
    /// Without it versions differ in their name alone.
    pub conversion: Option<Arc<Conversion>>,
    /// What every answer warns of.
    pub deprecated: Option<String>,
    selectable: Vec<(&'static str, JsonPath)>,
    selectable_keys: Vec<&'static str>,
    demands: OnceLock<Demands>,
}

/// All that a schema demands of values, made at the first write.
struct Demands {
    rules: Rules,
    validations: Option<Validations>,
}

impl Default for Custom {
    fn default() -> Self {
        Custom {
            is_served: true,
            is_storage: true,
            is_terminating: false,
            scale: None,
            conversion: None,
            deprecated: None,
            selectable: Vec::new(),
            selectable_keys: Vec::new(),
            demands: OnceLock::new(),
        }
    }
}

impl Custom {
    /// Adds all that is wrong with an object by its schema, but for what it had before. The rules are
    /// asked only where the object has the form that they expect; what fails them as it did before comes
    /// back to be told, and so do finalizers without a domain.
    pub fn check(
        &self,
        schema: &Schema,
        new: &Value,
        old: Option<&Value>,
        errors: &mut Vec<FieldError>,
    ) -> Vec<String> {
        let demands = self.demands.get_or_init(|| {
            let document = schema.source().unwrap_or_default();
            let validations = Validations::of_resource(&document);
            Demands { rules: Rules::of(document), validations }
        });
        errors.extend(demands.rules.check(new, old, ""));
        errors.extend(self.scale.iter().flat_map(|scale| scale.faults(new)));
        let mut told = Vec::new();
        match &demands.validations {
            None => {}
            Some(_) if errors.iter().any(hides_rules) => {
                errors.push(FieldError::invalid(Path::root(), Value::Null, NOT_CHECKED));
            }
            Some(validations) => {
                let found = validations.check(new, old);
                errors.extend(found.errors);
                told.extend(found.warnings.iter().map(FieldError::to_string));
            }
        }
        if errors.is_empty() {
            told.extend(unqualified_finalizers(new, old));
        }
        told
    }

    /// Field-selector keys with their values.
    pub fn selectable(&self, object: &Value) -> Vec<(&'static str, String)> {
        let text = |path: &JsonPath| match path.first(object) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        self.selectable.iter().map(|(key, path)| (*key, text(path))).collect()
    }

    pub fn selectable_keys(&self) -> &[&'static str] {
        &self.selectable_keys
    }
}

/// Warns of new finalizers that others may come to use too.
fn unqualified_finalizers(new: &Value, old: Option<&Value>) -> Vec<String> {
    let path = Path::new("metadata").child("finalizers");
    let had: Vec<&str> = old.into_iter().flat_map(meta::finalizers).collect();
    let all: BTreeSet<&str> = meta::finalizers(new).collect();
    let unqualified = all
        .into_iter()
        .filter(|name| !had.contains(name) && !object_meta::standard_finalizer(name, &path).is_empty());
    unqualified
        .map(|name| {
            format!(
                "{path}: {name:?}: prefer a domain-qualified finalizer name including a path (/) to avoid accidental \
                 conflicts with other finalizer writers"
            )
        })
        .collect()
}

const NOT_CHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";

/// Whether an object with this error is not what rules expect.
fn hides_rules(error: &FieldError) -> bool {
    use ErrorKind::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
    matches!(error.kind, NotSupported | Required | TooLong | TooMany | TypeInvalid)
}

/// Keys of field selectors live as long as the process: each distinct one is kept once.
fn interned(key: &str) -> &'static str {
    static KEYS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut keys = KEYS.lock().unwrap_or_else(PoisonError::into_inner);
    match keys.get(key) {
        Some(known) => known,
        None => {
            let leaked: &'static str = Box::leak(key.to_owned().into_boxed_str());
            keys.insert(leaked);
            leaked
        }
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    list(value, field).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn flag(value: &Value, field: &str) -> bool {
    value.get(field).and_then(Value::as_bool).unwrap_or(false)
}

/// The rows of a definition, one a version, with the names that were accepted.
pub fn rows(definition: &Value, names: &Value) -> Result<Vec<Kind>, SchemaError> {
    let spec = &definition["spec"];
    let conversion = Conversion::of(definition).map(Arc::new);
    let row = |version| row(definition, names, version, conversion.clone());
    list(spec, "versions").iter().map(row).collect()
}

fn row(
    definition: &Value,
    names: &Value,
    version: &Value,
    conversion: Option<Arc<Conversion>>,
) -> Result<Kind, SchemaError> {
    let spec = &definition["spec"];
    let gvk = Gvk::new(text(spec, "group"), text(version, "name"), text(names, "kind"));
    let document = version.pointer("/schema/openAPIV3Schema");
    let schema = Schema::from_openapi(&gvk.kind, document.unwrap_or(&json!({"type": "object"})))?;
    let sub = &version["subresources"];
    let mut subresources = Vec::new();
    let mut scale = None;
    if let Some(paths) = sub.get("scale").filter(|scale| scale.is_object()) {
        let path = |field| JsonPath::parse(text(paths, field)).ok();
        if let (Some(spec_replicas), Some(status_replicas)) =
            (path("specReplicasPath"), path("statusReplicasPath"))
        {
            let selector = path("labelSelectorPath").filter(|_| !text(paths, "labelSelectorPath").is_empty());
            scale = Some(Scale { spec_replicas, status_replicas, selector });
            subresources.push(SCALE);
        }
    }
    if sub.get("status").is_some_and(|status| !status.is_null()) {
        subresources.push(STATUS);
    }
    let selectable: Vec<(&'static str, JsonPath)> = list(version, "selectableFields")
        .iter()
        .map(|field| text(field, "jsonPath"))
        .filter_map(|path| Some((interned(path.trim_start_matches('.')), JsonPath::parse(path).ok()?)))
        .collect();
    let deprecated = flag(version, "deprecated").then(|| match text(version, "deprecationWarning") {
        "" => format!("{} {} is deprecated", gvk.api_version(), gvk.kind),
        warning => warning.to_owned(),
    });
    let custom = Custom {
        is_served: flag(version, "served"),
        is_storage: flag(version, "storage"),
        is_terminating: meta::is_deleting(definition),
        scale,
        conversion,
        deprecated,
        selectable_keys: selectable.iter().map(|(key, _)| *key).collect(),
        selectable,
        demands: OnceLock::new(),
    };
    let plural = text(names, "plural");
    Ok(Kind {
        list_kind: text(names, "listKind").into(),
        singular: text(names, "singular").into(),
        short_names: texts(names, "shortNames"),
        categories: texts(names, "categories"),
        namespaced: text(spec, "scope") == "Namespaced",
        verbs: ALL_VERBS,
        subresources,
        columns: columns(version),
        custom: Some(Arc::new(custom)),
        ..Kind::custom(gvk, plural, schema)
    })
}

fn columns(version: &Value) -> Vec<Column> {
    let column = |name: &str, kind: &'static str, description: &str, cell: Cell| Column {
        name: name.into(),
        kind,
        format: "",
        description: description.into(),
        priority: 0,
        cell,
    };
    let path =
        |path: &str| Cell::JsonPath(Arc::new(JsonPath::parse(path).unwrap_or_else(|_| JsonPath::nothing())));
    let name = "The name of the object, unique among those of its kind and namespace.";
    let mut columns =
        vec![Column { format: "name", ..column("Name", "string", name, path(".metadata.name")) }];
    let own = list(version, "additionalPrinterColumns");
    if own.is_empty() {
        columns.push(column(
            "Age",
            "date",
            "When the object was created.",
            path(".metadata.creationTimestamp"),
        ));
    }
    columns.extend(own.iter().map(|own| {
        let known = |field: &str, all: &[&'static str]| all.iter().copied().find(|k| *k == text(own, field));
        Column {
            format: known("format", &COLUMN_FORMATS).unwrap_or_default(),
            priority: own.get("priority").and_then(Value::as_i64).unwrap_or(0) as i32,
            ..column(
                text(own, "name"),
                known("type", &COLUMN_TYPES).unwrap_or("string"),
                text(own, "description"),
                path(text(own, "jsonPath")),
            )
        }
    }));
    columns
}

/// Whether the objects of a definition may be served.
pub fn is_established(definition: &Value) -> bool {
    let is_so = |condition: &Value| condition["type"] == "Established" && condition["status"] == "True";
    list(&definition["status"], "conditions").iter().any(is_so)
}

/// The `caBundle` of the webhook that converts, in base64.
pub fn authority(definition: &Value) -> &str {
    let bundle = definition.pointer("/spec/conversion/webhook/clientConfig/caBundle");
    bundle.and_then(Value::as_str).unwrap_or_default()
}

/// Whether the webhook's authority is given, but holds no certificate.
pub fn has_odd_authority(definition: &Value) -> bool {
    let bundle = authority(definition);
    if bundle.is_empty() {
        return false;
    }
    let pem = STANDARD.decode(bundle).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    !pem.is_some_and(|pem| {
        let blocks = pem.split("-----BEGIN CERTIFICATE-----").skip(1);
        let body = |block: &str| {
            block.split("-----END CERTIFICATE-----").next().map(|body| body.replace(['\r', '\n'], ""))
        };
        blocks.filter_map(body).any(|body| !body.is_empty() && STANDARD.decode(body).is_ok())
    })
}

/// Fills what a definition need not say.
pub fn default(definition: &mut Value) {
    let Some(spec) = definition.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        for (field, value) in [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List"))] {
            let missing = names.get(field).and_then(Value::as_str).unwrap_or_default().is_empty();
            if missing && !kind.is_empty() {
                names.insert(field.into(), value.into());
            }
        }
    }
    let conversion = spec.entry("conversion").or_insert_with(|| json!({}));
    if text(conversion, "strategy").is_empty() {
        conversion["strategy"] = "None".into();
    }
    if let Some(service) =
        conversion.pointer_mut("/webhook/clientConfig/service").and_then(Value::as_object_mut)
    {
        service.entry("port").or_insert_with(|| 443.into());
    }
}

/// A new definition has no status but the version that it stores.
pub fn prepare_create(definition: &mut Value) {
    definition["status"] =
        json!({"acceptedNames": {"kind": "", "plural": ""}, "conditions": [], "storedVersions": []});
    note_stored(definition);
}

/// An update may store another version from now on.
pub fn prepare_update(new: &mut Value, _old: &Value) {
    note_stored(new);
}

fn note_stored(definition: &mut Value) {
    let versions = list(&definition["spec"], "versions").iter();
    let stored: Vec<Value> = versions.filter(|v| flag(v, "storage")).map(|v| v["name"].clone()).collect();
    let Some(status) = definition.get_mut("status").and_then(Value::as_object_mut) else { return };
    let noted = status.entry("storedVersions").or_insert_with(|| json!([]));
    let Some(noted) = noted.as_array_mut() else { return };
    for version in stored {
        if !noted.contains(&version) {
            noted.push(version);
        }
    }
}

#[cfg(test)]
mod tests;
