//! What the schema of a custom resource may say: it must tell the type of every field outside of
//! logic, and what is in logic may only narrow that.
//! Upstream counterparts: `apiextensions-apiserver/pkg/apiserver/schema/{validation,complete}.go` and
//! `ValidateCustomResourceDefinitionOpenAPISchema`.

mod defaults;
mod merging;

use super::at::{At, Errors};
use crate::crd::{self, RULES, field_path};
use crate::field::{FieldError, Path};
use crate::schema::Schema;
use serde_json::{Value, json};
use skeg_cel::Pattern;
use std::collections::BTreeSet;

const KEEP: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
const LIST_TYPE: &str = "x-kubernetes-list-type";
const LIST_KEYS: &str = "x-kubernetes-list-map-keys";
const MAP_TYPE: &str = "x-kubernetes-map-type";

/// Words of JSON schema that custom resources may not use.
const UNSUPPORTED: [&str; 6] =
    ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"];
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
/// What may not be said within logic, and why.
const STRUCTURE: [(&str, &str); 13] = [
    ("type", "must be empty to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    ("externalDocs", "must be undefined to be structural"),
    (KEEP, "must be false to be structural"),
    (EMBEDDED, "must be false to be structural"),
    (INT_OR_STRING, "must be false to be structural"),
    (LIST_KEYS, "must be empty to be structural"),
    (LIST_TYPE, "must be undefined to be structural"),
    (MAP_TYPE, "must be undefined to be structural"),
];
/// What the root may say where the schema of the status is taken out of it: as upstream names it, and as
/// it is written.
const ROOT_WITH_STATUS: [(&str, &str); 22] = [
    ("Description", "description"),
    ("Type", "type"),
    ("Format", "format"),
    ("Title", "title"),
    ("Maximum", "maximum"),
    ("ExclusiveMaximum", "exclusiveMaximum"),
    ("Minimum", "minimum"),
    ("ExclusiveMinimum", "exclusiveMinimum"),
    ("MaxLength", "maxLength"),
    ("MinLength", "minLength"),
    ("Pattern", "pattern"),
    ("MaxItems", "maxItems"),
    ("MinItems", "minItems"),
    ("UniqueItems", "uniqueItems"),
    ("MultipleOf", "multipleOf"),
    ("Required", "required"),
    ("Items", "items"),
    ("Properties", "properties"),
    ("ExternalDocs", "externalDocs"),
    ("Example", "example"),
    ("XPreserveUnknownFields", KEEP),
    ("XValidations", RULES),
];
const JUNCTORS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
/// The fields that every whole object has.
const META: [&str; 3] = ["metadata", "kind", "apiVersion"];
const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
/// The deepest nesting that is looked at; schemas beyond it are refused.
const DEPTH_MAX: usize = 60;

/// Rules that came after the first definitions of v1: one that is stored and breaks them may go on to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Later {
    Types,
    PrunedDefaults,
    AtomicSets,
    KeysAndItems,
}

/// Checks one schema. `has_status` says whether the status is written apart; rules of `lenient` are not
/// looked at.
pub(super) fn check(schema: &At<'_>, has_status: bool, lenient: &BTreeSet<Later>, errors: &mut Errors) {
    errors.extend(run(schema, has_status, lenient).errors.0);
}

/// The later rules that a stored schema breaks.
pub(super) fn broken(schema: &At<'_>) -> BTreeSet<Later> {
    run(schema, false, &BTreeSet::new()).broken
}

fn run<'a>(schema: &At<'_>, has_status: bool, lenient: &'a BTreeSet<Later>) -> Check<'a> {
    let mut check = Check { errors: Errors::default(), lenient, broken: BTreeSet::new() };
    if has_status {
        check.root_with_status(schema);
    }
    if schema.bool("nullable") {
        check.errors.forbidden(schema.at("nullable"), "nullable cannot be true at the root");
    }
    let unfit = unfit(schema);
    if unfit.is_none() {
        let before = check.errors.0.len();
        check.structure(schema, Level::Root, 0);
        if check.errors.0.len() == before {
            check.defaults(schema, true, schema, None);
        }
    }
    check.words(schema, &Context { is_root: true, ..Context::default() }, 0);
    if check.errors.0.is_empty()
        && let Some(why) =
            unfit.or_else(|| Schema::from_openapi("", schema.value).err().map(|error| error.to_string()))
    {
        check.errors.invalid(schema.path.clone(), "", why);
    }
    check
}

/// Why a schema cannot be looked at as a structural one.
fn unfit(schema: &At<'_>) -> Option<String> {
    if schema.value.get("$schema").is_some_and(is_set) {
        return Some("OpenAPIV3Schema 'schema' is not supported".to_owned());
    }
    if let Some(word) = UNSUPPORTED.into_iter().find(|word| schema.value.get(*word).is_some_and(is_set)) {
        return Some(format!("OpenAPIV3Schema '{word}' is not supported"));
    }
    if schema.value.get(KEEP) == Some(&Value::Bool(false)) || schema.value["items"].is_array() {
        return Some("must be a structural schema".to_owned());
    }
    everything_below(schema).iter().find_map(unfit)
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
    let nested: Vec<_> = ["items", "additionalProperties"]
        .into_iter()
        .filter_map(|field| schema.get(field))
        .filter(|below| below.value.is_object())
        .collect();
    nested.into_iter().chain(properties(schema).map(|(_, below)| below))
}

/// The schemas within one, with those in logic.
fn everything_below<'a>(schema: &At<'a>) -> Vec<At<'a>> {
    let logic = JUNCTORS.into_iter().flat_map(|junctor| schema.items(junctor));
    below(schema).chain(schema.get("not")).chain(logic).collect()
}

fn properties<'a>(schema: &At<'a>) -> impl Iterator<Item = (&'a str, At<'a>)> {
    let path = schema.at("properties");
    schema.entries("properties").map(move |(name, value)| (name.as_str(), At { value, path: path.key(name) }))
}

fn property<'a>(schema: &At<'a>, name: &str) -> Option<At<'a>> {
    let value = schema.value.get("properties")?.get(name)?;
    Some(At { value, path: schema.at("properties").key(name) })
}

fn is_set(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false))
        && value != ""
        && *value != json!([])
        && *value != json!({})
}

/// The fields that a schema says something with.
fn said<'a>(schema: &At<'a>) -> impl Iterator<Item = &'a str> {
    let says = |(field, value): (&'a String, &'a Value)| {
        let any = matches!(field.as_str(), "additionalProperties" | "default" | "not");
        (is_set(value) || any && !value.is_null()).then_some(field.as_str())
    };
    schema.value.as_object().into_iter().flatten().filter_map(says)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Where the words of a schema stand.
#[derive(Clone, Default)]
struct Context {
    is_root: bool,
    /// In `metadata`, `kind` or `apiVersion` of a whole object.
    in_meta: bool,
    /// Why there may be no defaults.
    no_defaults: Option<String>,
}

struct Check<'a> {
    errors: Errors,
    lenient: &'a BTreeSet<Later>,
    broken: BTreeSet<Later>,
}

impl Check<'_> {
    fn later(&mut self, rule: Later, error: FieldError) {
        self.broken.insert(rule);
        if !self.lenient.contains(&rule) {
            self.errors.push(error);
        }
    }

    fn root_with_status(&mut self, schema: &At<'_>) {
        let kind = schema.str("type");
        if !matches!(kind, "" | "object") {
            let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
            return self.errors.invalid(schema.at("type"), kind, why);
        }
        if said(schema).any(|field| !ROOT_WITH_STATUS.iter().any(|(_, allowed)| *allowed == field)) {
            let names = ROOT_WITH_STATUS.map(|(name, _)| name).join(" ");
            let why = format!(
                "only [{names}] fields are allowed at the root of the schema if the status subresource is enabled"
            );
            self.errors.invalid(schema.path.clone(), schema.value.clone(), why);
        }
    }

    /// What makes a schema structural.
    fn structure(&mut self, schema: &At<'_>, level: Level, depth: usize) {
        let errors = &mut self.errors;
        if depth > DEPTH_MAX {
            return errors.invalid(schema.path.clone(), "", "is nested too deeply");
        }
        let (kind, is_root) = (schema.str("type"), level == Level::Root);
        let (keeps, int_or_string, embedded) =
            (schema.bool(KEEP), schema.bool(INT_OR_STRING), schema.bool(EMBEDDED));
        if kind == "array" && !schema.has("items") {
            errors.required(schema.at("items"), "must be specified");
        }
        if let Some(additional) = schema.get("additionalProperties") {
            if is_root {
                errors.forbidden(additional.path.clone(), "must not be used at the root");
            }
            if embedded {
                errors
                    .forbidden(additional.path, "must not be used if x-kubernetes-embedded-resource is set");
            }
        }
        for (field, is_so) in [(KEEP, keeps), (EMBEDDED, embedded)] {
            if is_so && int_or_string {
                errors.invalid(schema.at(field), true, "must be false if x-kubernetes-int-or-string is true");
            }
        }
        match (kind, level) {
            ("object", _) => {}
            (_, _) if embedded => {
                let why = "must be object if x-kubernetes-embedded-resource is true";
                match kind {
                    "" => errors.required(schema.at("type"), why),
                    kind => errors.invalid(schema.at("type"), kind, why),
                }
            }
            ("", _) if int_or_string || keeps => {}
            ("", Level::Root) => errors.required(schema.at("type"), "must not be empty at the root"),
            ("", Level::Item) => {
                errors.required(schema.at("type"), "must not be empty for specified array items");
            }
            ("", Level::Field) => {
                errors.required(schema.at("type"), "must not be empty for specified object fields");
            }
            _ => {}
        }
        if is_root && !matches!(kind, "" | "object") {
            errors.invalid(schema.at("type"), kind, "must be object at the root");
        }
        if embedded && !keeps && schema.entries("properties").next().is_none() {
            errors.required(
                schema.at("properties"),
                "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
            );
        }
        if is_root || embedded {
            self.identity(schema, is_root);
        }
        for below in below(schema) {
            let is_item = below.path == schema.at("items");
            self.structure(&below, if is_item { Level::Item } else { Level::Field }, depth + 1);
        }
        self.logic_of(schema, Some(schema), is_int_or_string(schema), depth);
    }

    /// `apiVersion`, `kind` and `metadata` of whole objects are given.
    fn identity(&mut self, schema: &At<'_>, is_root: bool) {
        for (name, wanted) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
            if let Some(below) = property(schema, name)
                && below.str("type") != wanted
            {
                self.errors.invalid(below.at("type"), below.str("type"), format!("must be {wanted}"));
            }
        }
        let Some(metadata) = property(schema, "metadata").filter(|_| is_root) else { return };
        let named = |(name, _): (&String, &Value)| name == "name" || name == "generateName";
        let plain = |field: &str| matches!(field, "type" | "properties" | "default" | "example");
        if !metadata.entries("properties").all(named) || !said(&metadata).all(plain) {
            self.errors.forbidden(
                metadata.path,
                "must not specify anything other than name and generateName, but metadata is implicitly specified",
            );
        }
    }

    /// What stands in `allOf`, `anyOf`, `oneOf` and `not` of a schema.
    fn logic_of(&mut self, schema: &At<'_>, outer: Option<&At<'_>>, skip_any_of: bool, depth: usize) {
        let pattern = schema.str("pattern");
        if let Err(error) = Pattern::new(pattern) {
            let why = format!("must be a valid regular expression, but isn't: {error}");
            self.errors.invalid(schema.at("pattern"), pattern, why);
        }
        let is_outermost = outer.is_some_and(|outer| outer.path == schema.path);
        for junctor in JUNCTORS {
            if junctor == "anyOf" && skip_any_of {
                continue;
            }
            for (index, nested) in schema.items(junctor).enumerate() {
                let skip = junctor == "allOf" && index == 0 && is_outermost && is_int_or_string(&nested);
                self.logic(&nested, outer, skip, depth + 1);
            }
        }
        if let Some(nested) = schema.get("not") {
            self.logic(&nested, outer, false, depth + 1);
        }
    }

    /// A schema in logic; `outer`, outside of it, must have the fields that it names.
    fn logic(&mut self, nested: &At<'_>, outer: Option<&At<'_>>, skip_any_of: bool, depth: usize) {
        if depth > DEPTH_MAX {
            return self.errors.invalid(nested.path.clone(), "", "is nested too deeply");
        }
        self.logic_of(nested, outer, skip_any_of, depth);
        let fields: Vec<&str> = said(nested).collect();
        for (field, why) in STRUCTURE.iter().filter(|(field, _)| fields.contains(field)) {
            self.errors.forbidden(nested.at(field), *why);
        }
        if !nested.list(RULES).is_empty() {
            self.errors.forbidden(nested.at(RULES), "must be empty to be structural");
        }
        let inner = nested.get("items").map(|below| (None, below));
        let inner = inner.into_iter().chain(properties(nested).map(|(name, below)| (Some(name), below)));
        for (name, below) in inner {
            if name == Some("metadata") {
                self.errors.forbidden(below.path.clone(), "must not be specified in a nested context");
            }
            let found = outer.and_then(|outer| match name {
                Some(name) => property(outer, name),
                None => outer.get("items"),
            });
            if let (None, Some(outer)) = (&found, outer) {
                let path = match name {
                    Some(name) => outer.at("properties").key(name),
                    None => outer.at("items"),
                };
                self.errors.required(path, &format!("because it is defined in {}", below.path));
            }
            self.logic(&below, found.as_ref(), false, depth + 1);
        }
    }

    /// What is wrong with the words of a schema wherever it stands.
    fn words(&mut self, schema: &At<'_>, context: &Context, depth: usize) {
        if depth > DEPTH_MAX {
            return;
        }
        let kind = schema.str("type");
        if !kind.is_empty() && !TYPES.contains(&kind) {
            self.later(Later::Types, FieldError::not_supported(schema.at("type"), kind, &TYPES));
        }
        let errors = &mut self.errors;
        if kind == "null" {
            errors.forbidden(schema.at("type"), "type cannot be set to null, use nullable as an alternative");
        }
        if let Some(reason) = context.no_defaults.as_ref().filter(|_| schema.has("default")) {
            errors.forbidden(schema.at("default"), format!("must not be set {reason}"));
        }
        for field in UNSUPPORTED.into_iter().filter(|field| schema.value.get(*field).is_some_and(is_set)) {
            errors.forbidden(schema.at(field), format!("{field} is not supported"));
        }
        if schema.value["items"].is_array() {
            errors.forbidden(schema.at("items"), "items must be a schema object and not an array");
        }
        if context.in_meta && schema.bool(EMBEDDED) {
            errors.forbidden(schema.at(EMBEDDED), "must not be used inside of resource meta");
        }
        if schema.bool("uniqueItems") {
            errors.forbidden(
                schema.at("uniqueItems"),
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            );
        }
        if let Some(additional) = schema.get("additionalProperties")
            && *additional.value != true
            && schema.entries("properties").next().is_some()
        {
            errors.forbidden(additional.path, "additionalProperties and properties are mutual exclusive");
        }
        if schema.value.get(KEEP) == Some(&Value::Bool(false)) {
            errors.invalid(schema.at(KEEP), false, "must be true or undefined");
        }
        self.merging(schema, kind);
        for rule in schema.items(RULES) {
            rule_words(schema, &rule, &mut self.errors);
        }
        let is_whole = context.is_root || schema.bool(EMBEDDED);
        let inner = Context { is_root: false, ..context.clone() };
        for (name, below) in properties(schema) {
            if is_whole && META.contains(&name) {
                let top = context.is_root.then(|| format!("in top-level {name}"));
                let no_defaults = top.or_else(|| context.no_defaults.clone());
                self.words(&below, &Context { is_root: false, in_meta: true, no_defaults }, depth + 1);
            } else {
                self.words(&below, &inner, depth + 1);
            }
        }
        if let Some(below) = schema.get("additionalProperties").filter(|below| below.value.is_object()) {
            let mut inner = inner.clone();
            if context.in_meta {
                inner.no_defaults =
                    Some("inside additionalProperties applying to object metadata".to_owned());
            }
            self.words(&below, &inner, depth + 1);
        }
        let logic = JUNCTORS.into_iter().flat_map(|junctor| schema.items(junctor));
        let items = schema.get("items").filter(|below| below.value.is_object());
        for below in logic.chain(schema.get("not")).chain(items) {
            self.words(&below, &inner, depth + 1);
        }
    }
}

/// The two ways in which logic may tell the types of int-or-string.
fn is_int_or_string(schema: &At<'_>) -> bool {
    schema.value.get("anyOf") == Some(&json!([{"type": "integer"}, {"type": "string"}]))
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
