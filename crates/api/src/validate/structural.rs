//! What the schema of a custom resource may say: it must tell the type of every field outside of
//! logic, and what is in logic may only narrow that.
//! Upstream counterparts: `apiextensions-apiserver/pkg/apiserver/schema/validation.go` and
//! `ValidateCustomResourceDefinitionOpenAPISchema`.

use super::at::{At, Errors};
use crate::crd::{self, RULES, Rules, field_path};
use crate::field::Path;
use crate::schema::Schema;
use serde_json::{Value, json};
use skeg_cel::Pattern;

/// Words of JSON schema that custom resources may not use.
const UNSUPPORTED: [&str; 6] =
    ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"];
/// What may not be said within logic, and why.
const STRUCTURE: [(&str, &str); 13] = [
    ("type", "must be empty to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    ("externalDocs", "must be undefined to be structural"),
    ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
];
const JUNCTORS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
/// The deepest nesting that is looked at; schemas beyond it are refused.
const DEPTH_MAX: usize = 60;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Checks the schema of one version.
pub(super) fn check(schema: &At<'_>, errors: &mut Errors) {
    let before = errors.0.len();
    structure(schema, Level::Root, 0, errors);
    if errors.0.len() == before
        && let Err(error) = Schema::from_openapi("", schema.value)
    {
        errors.invalid(schema.path.clone(), "", error.to_string());
    }
}

/// The formats of strings that nothing is checked by, with where they stand.
pub(super) fn unknown_formats(schema: &At<'_>, out: &mut Vec<(Path, String)>) {
    let format = schema.str("format");
    if schema.str("type") == "string" && !format.is_empty() && !crd::is_known_format(format) {
        out.push((schema.at("format"), format.to_owned()));
    }
    below(schema).for_each(|below| unknown_formats(&below, out));
}

/// The schemas within one, but for those in logic.
fn below<'a>(schema: &At<'a>) -> impl Iterator<Item = At<'a>> {
    let nested: Vec<_> =
        ["items", "additionalProperties"].into_iter().filter_map(|field| schema.get(field)).collect();
    nested.into_iter().chain(properties(schema))
}

fn properties<'a>(schema: &At<'a>) -> impl Iterator<Item = At<'a>> {
    let path = schema.at("properties");
    schema.entries("properties").map(move |(name, value)| At { value, path: path.key(name) })
}

fn is_set(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false))
        && value != ""
        && *value != json!([])
        && *value != json!({})
}

fn structure(schema: &At<'_>, level: Level, depth: usize, errors: &mut Errors) {
    if depth > DEPTH_MAX {
        return errors.invalid(schema.path.clone(), "", "is nested too deeply");
    }
    let (kind, embedded) = (schema.str("type"), schema.bool("x-kubernetes-embedded-resource"));
    let (keeps, int_or_string) =
        (schema.bool("x-kubernetes-preserve-unknown-fields"), schema.bool("x-kubernetes-int-or-string"));
    words(schema, errors);
    match (kind, level) {
        ("", _) if embedded => {
            errors.required(schema.at("type"), "must be object if x-kubernetes-embedded-resource is true");
        }
        (kind, _) if embedded && kind != "object" => errors.invalid(
            schema.at("type"),
            kind,
            "must be object if x-kubernetes-embedded-resource is true",
        ),
        ("", _) if int_or_string || keeps => {}
        ("", Level::Root) => errors.required(schema.at("type"), "must not be empty at the root"),
        ("", Level::Item) => {
            errors.required(schema.at("type"), "must not be empty for specified array items")
        }
        ("", Level::Field) => {
            errors.required(schema.at("type"), "must not be empty for specified object fields")
        }
        (kind, Level::Root) if kind != "object" => {
            errors.invalid(schema.at("type"), kind, "must be object at the root");
        }
        ("array", _) if !schema.has("items") => errors.required(schema.at("items"), "must be specified"),
        ("null", _) => errors.forbidden(schema.at("type"), "type cannot be set to null"),
        ("object" | "array" | "string" | "integer" | "number" | "boolean", _) => {}
        (kind, _) => errors.not_supported(
            schema.at("type"),
            kind,
            &["array", "boolean", "integer", "number", "object", "string"],
        ),
    }
    if int_or_string {
        if !kind.is_empty() {
            errors.forbidden(schema.at("type"), "must be empty if x-kubernetes-int-or-string is true");
        }
        for (field, is_so) in
            [("x-kubernetes-preserve-unknown-fields", keeps), ("x-kubernetes-embedded-resource", embedded)]
        {
            if is_so {
                errors.invalid(schema.at(field), true, "must be false if x-kubernetes-int-or-string is true");
            }
        }
    }
    if embedded && !keeps && schema.entries("properties").next().is_none() {
        errors.required(
            schema.at("properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        );
    }
    merging(schema, kind, errors);
    if level == Level::Root || embedded {
        identity(schema, level, errors);
    }
    if let Some(default) = schema.get("default") {
        check_default(schema, &default, errors);
    }
    if let Some(below) = schema.get("additionalProperties") {
        match below.value {
            Value::Bool(false) => errors.forbidden(below.path, "additionalProperties cannot be set to false"),
            _ if level == Level::Root => errors.forbidden(below.path, "must not be used at the root"),
            _ if schema.entries("properties").next().is_some() && below.value.is_object() => {
                errors.forbidden(below.path, "additionalProperties and properties are mutual exclusive");
            }
            Value::Object(_) => structure(&below, Level::Field, depth + 1, errors),
            _ => {}
        }
    }
    if let Some(below) = schema.get("items") {
        match below.value {
            Value::Array(_) => errors.forbidden(below.path, "items must be a schema object and not an array"),
            _ => structure(&below, Level::Item, depth + 1, errors),
        }
    }
    for below in properties(schema) {
        structure(&below, Level::Field, depth + 1, errors);
    }
    let patterns = [json!([{"type": "integer"}, {"type": "string"}])];
    let is_pattern = |at: &At<'_>| at.value.get("anyOf").is_some_and(|any| patterns.contains(any));
    for junctor in JUNCTORS {
        if junctor == "anyOf" && is_pattern(schema) {
            continue;
        }
        for (index, nested) in schema.items(junctor).enumerate() {
            let skip = junctor == "allOf" && index == 0 && is_pattern(&nested);
            logic(&nested, schema, skip, depth + 1, errors);
        }
    }
    if let Some(nested) = schema.get("not") {
        logic(&nested, schema, false, depth + 1, errors);
    }
}

/// What is wrong with the words of a schema wherever it stands.
fn words(schema: &At<'_>, errors: &mut Errors) {
    for field in UNSUPPORTED.into_iter().filter(|field| schema.value.get(*field).is_some_and(is_set)) {
        errors.forbidden(schema.at(field), format!("{field} is not supported"));
    }
    if schema.bool("uniqueItems") {
        errors.forbidden(
            schema.at("uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        );
    }
    let pattern = schema.str("pattern");
    if let Err(error) = Pattern::new(pattern) {
        errors.invalid(
            schema.at("pattern"),
            pattern,
            format!("must be a valid regular expression, but isn't: {error}"),
        );
    }
    for rule in schema.items(RULES) {
        rule_words(schema, &rule, errors);
    }
}

/// What a rule must say, whatever its expression means.
fn rule_words(schema: &At<'_>, rule: &At<'_>, errors: &mut Errors) {
    let has_break = |text: &str| text.contains(['\n', '\r']);
    let blank = |field: &str| !rule.str(field).is_empty() && rule.str(field).trim().is_empty();
    let (text, message) = (rule.str("rule").trim(), rule.str("message"));
    if text.is_empty() {
        errors.required(rule.at("rule"), "rule is not specified");
    } else if blank("message") {
        errors.invalid(rule.at("message"), message, "message must be non-empty if specified");
    } else if has_break(message.trim()) {
        errors.invalid(rule.at("message"), message, "message must not contain line breaks");
    } else if has_break(text) && message.is_empty() {
        errors.required(rule.at("message"), "message must be specified if rule contains line breaks");
    }
    if blank("messageExpression") {
        errors.required(rule.at("messageExpression"), "messageExpression must be non-empty if specified");
    }
    if rule.has("reason") {
        errors.optional_one_of(rule, "reason", &REASONS);
    }
    let path = rule.str("fieldPath");
    if blank("fieldPath") {
        errors.invalid(rule.at("fieldPath"), path, "fieldPath must be non-empty if specified");
    }
    if has_break(path) {
        errors.invalid(rule.at("fieldPath"), path, "fieldPath must not contain line breaks");
    }
    if let Err(why) = field_path::parse(path, schema.value) {
        errors.invalid(rule.at("fieldPath"), path, format!("fieldPath must be a valid path: {why}"));
    }
}

/// Lists and maps that merge.
fn merging(schema: &At<'_>, kind: &str, errors: &mut Errors) {
    const LIST: &str = "x-kubernetes-list-type";
    const KEYS: &str = "x-kubernetes-list-map-keys";
    const MAP: &str = "x-kubernetes-map-type";
    if schema.has(LIST) {
        if kind != "array" {
            errors.invalid(schema.at("type"), kind, format!("must be array if {LIST} is specified"));
        }
        errors.optional_one_of(schema, LIST, &["atomic", "set", "map"]);
    }
    if schema.has(MAP) {
        if kind != "object" {
            errors.invalid(schema.at("type"), kind, format!("must be object if {MAP} is specified"));
        }
        errors.optional_one_of(schema, MAP, &["granular", "atomic"]);
    }
    let (is_map, keys) = (schema.str(LIST) == "map", schema.list(KEYS));
    if !is_map && !keys.is_empty() {
        errors.invalid(
            schema.at(LIST),
            schema.value[LIST].clone(),
            format!("must be map if {KEYS} is non-empty"),
        );
    }
    if !is_map {
        return;
    }
    if keys.is_empty() {
        errors.required(schema.at(KEYS), &format!("must not be empty if {LIST} is map"));
    }
    let items = schema.child("items");
    if items.str("type") != "object" {
        errors.invalid(
            items.at("type"),
            items.str("type"),
            format!("must be object if parent array's {LIST} is map"),
        );
    }
    for (index, key) in keys.iter().enumerate() {
        let name = key.as_str().unwrap_or_default();
        let Some(property) = items.child("properties").get(name) else {
            errors.invalid(
                schema.at(KEYS).index(index),
                name,
                "entries must all be names of item properties",
            );
            continue;
        };
        if matches!(property.str("type"), "object" | "array") {
            errors.invalid(
                items.at("properties").key(name).child("type"),
                property.str("type"),
                format!("must be a scalar type if parent array's {LIST} is map"),
            );
        }
        let required = items.strings("required").any(|required| required == name);
        if !required && !property.has("default") {
            errors.required(
                items.at("properties").key(name).child("default"),
                &format!("this property is in {KEYS}, so it must have a default or be a required property"),
            );
        }
    }
}

/// `apiVersion`, `kind` and `metadata` of whole objects are given.
fn identity(schema: &At<'_>, level: Level, errors: &mut Errors) {
    for below in properties(schema) {
        let path = below.path.as_str();
        for (name, wanted) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
            if path.ends_with(&format!("properties[{name}]")) && below.str("type") != wanted {
                errors.invalid(below.at("type"), below.str("type"), format!("must be {wanted}"));
            }
        }
        if level == Level::Root && path.ends_with("properties[metadata]") {
            let named = |(name, _): (&String, &Value)| name == "name" || name == "generateName";
            let plain = |name: &String| matches!(name.as_str(), "type" | "properties" | "description");
            let fields = below.value.as_object();
            if !below.entries("properties").all(named)
                || !fields.is_some_and(|fields| fields.keys().all(plain))
            {
                errors.forbidden(
                    below.path,
                    "must not specify anything other than name and generateName, but metadata is implicitly specified",
                );
            }
        }
    }
}

/// A default must be what the schema allows, with nothing that pruning would take away.
fn check_default(schema: &At<'_>, default: &At<'_>, errors: &mut Errors) {
    let wrong = Rules::of(schema.value.clone()).check(default.value, None, default.path.as_str());
    errors.extend(wrong);
    let Ok(table) =
        Schema::from_openapi("", &json!({"type": "object", "properties": {"default": schema.value}}))
    else {
        return;
    };
    let mut pruned = json!({"default": default.value});
    if let Ok(checked) = crate::decode::check(&table, &mut pruned)
        && !checked.unknown.is_empty()
    {
        errors.invalid(default.path.clone(), default.value.clone(), "must not have unknown fields");
    }
}

/// What stands in `allOf`, `anyOf`, `oneOf` or `not`; `outer` must have the fields that it names.
fn logic(nested: &At<'_>, outer: &At<'_>, skip_any_of: bool, depth: usize, errors: &mut Errors) {
    if depth > DEPTH_MAX {
        return errors.invalid(nested.path.clone(), "", "is nested too deeply");
    }
    words(nested, errors);
    for (field, why) in STRUCTURE.iter().filter(|(field, _)| nested.value.get(*field).is_some_and(is_set)) {
        errors.forbidden(nested.at(field), *why);
    }
    if !nested.list(RULES).is_empty() {
        errors.forbidden(nested.at(RULES), "must be empty to be structural");
    }
    for below in properties(nested) {
        let name = below.path.as_str().rsplit_once('[').map_or("", |(_, name)| name.trim_end_matches(']'));
        if name == "metadata" {
            errors.forbidden(below.path.clone(), "must not be specified in a nested context");
        }
        match outer.child("properties").get(name) {
            Some(at) => {
                let at = At { value: at.value, path: outer.at("properties").key(name) };
                logic(&below, &at, false, depth + 1, errors);
            }
            None => errors.required(
                outer.at("properties").key(name),
                &format!("because it is defined in {}", below.path),
            ),
        }
    }
    if let Some(below) = nested.get("items") {
        match outer.get("items") {
            Some(at) => logic(&below, &at, false, depth + 1, errors),
            None => errors.required(outer.at("items"), &format!("because it is defined in {}", below.path)),
        }
    }
    for junctor in JUNCTORS {
        if junctor == "anyOf" && skip_any_of {
            continue;
        }
        for below in nested.items(junctor) {
            logic(&below, outer, false, depth + 1, errors);
        }
    }
    if let Some(below) = nested.get("not") {
        logic(&below, outer, false, depth + 1, errors);
    }
}
