//! What a schema demands of values beyond their structure, and the check of a value against it in
//! upstream's words. Made of the OpenAPI document at the first write of a kind.
//! Upstream counterpart: `k8s.io/kube-openapi/pkg/validation/validate`, and what
//! `apiextensions-apiserver/pkg/apiserver/validation` makes of its errors.

use super::format;
use crate::field::{ErrorKind, FieldError, Path};
use crate::{names, object_meta};
use serde::Deserialize;
use serde_json::{Map, Value};
use skeg_cel::Pattern;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// The most errors that one object is told of.
const ERRORS_MAX: usize = 100;

/// The demands of one schema.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rules {
    #[serde(rename = "type")]
    kind: String,
    format: String,
    nullable: bool,
    required: Vec<String>,
    properties: BTreeMap<String, Rules>,
    items: Option<Box<Rules>>,
    additional_properties: Option<Additional>,
    #[serde(rename = "enum")]
    values: Vec<Value>,
    maximum: Option<f64>,
    exclusive_maximum: bool,
    minimum: Option<f64>,
    exclusive_minimum: bool,
    multiple_of: Option<f64>,
    max_length: Option<u64>,
    min_length: Option<u64>,
    pattern: Option<String>,
    #[serde(skip)]
    regex: OnceLock<Option<Pattern>>,
    max_items: Option<u64>,
    min_items: Option<u64>,
    max_properties: Option<u64>,
    min_properties: Option<u64>,
    all_of: Vec<Rules>,
    any_of: Vec<Rules>,
    one_of: Vec<Rules>,
    not: Option<Box<Rules>>,
    #[serde(rename = "x-kubernetes-int-or-string")]
    int_or_string: bool,
    #[serde(rename = "x-kubernetes-embedded-resource")]
    embedded: bool,
    #[serde(rename = "x-kubernetes-list-type")]
    list_type: String,
    #[serde(rename = "x-kubernetes-list-map-keys")]
    list_map_keys: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Additional {
    Any(bool),
    Of(Box<Rules>),
}

impl Rules {
    /// Of an OpenAPI v3 schema. One that does not fit the form of a schema demands nothing: it was
    /// refused before.
    pub fn of(document: Value) -> Self {
        serde_json::from_value(document).unwrap_or_default()
    }

    /// All that is wrong with a value. What is as it was in `old` is not looked at again, so that
    /// objects may be changed whose schema became stricter.
    pub fn check(&self, value: &Value, old: Option<&Value>, path: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.value(value, old, path, &mut errors);
        errors.truncate(ERRORS_MAX);
        errors
    }

    fn value(&self, value: &Value, old: Option<&Value>, path: &str, out: &mut Vec<FieldError>) {
        if old == Some(value) {
            return;
        }
        self.kind(value, path, out);
        if value.is_null() {
            return self.allowed(value, path, out);
        }
        self.junctors(value, path, out);
        self.allowed(value, path, out);
        match value {
            Value::String(text) => self.text(text, path, out),
            Value::Number(number) => self.number(number.as_f64().unwrap_or(0.0), value, path, out),
            Value::Array(items) => self.items(items, old, path, out),
            Value::Object(map) => {
                if self.embedded {
                    out.extend(embedded_faults(value, path));
                }
                self.object(map, old, path, out);
            }
            _ => {}
        }
    }

    fn kind(&self, value: &Value, path: &str, out: &mut Vec<FieldError>) {
        let wanted = match (self.int_or_string, self.kind.as_str()) {
            (true, _) => "integer,string",
            (false, kind) => kind,
        };
        let found = match value {
            Value::Null if self.nullable => return,
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(n) if n.is_f64() && n.as_f64().is_none_or(|n| n.fract() != 0.0) => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let fits = wanted.is_empty()
            || wanted.split(',').any(|kind| kind == found || kind == "number" && found == "integer");
        if !fits {
            out.push(type_error(path, wanted, found.into()));
        }
    }

    fn allowed(&self, value: &Value, path: &str, out: &mut Vec<FieldError>) {
        if !self.values.is_empty() && !self.values.contains(value) {
            let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let values: Vec<String> = self.values.iter().map(shown).collect();
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            out.push(FieldError::not_supported(Path::new(path), value.clone(), &values));
        }
    }

    fn text(&self, text: &str, path: &str, out: &mut Vec<FieldError>) {
        let len = text.chars().count() as u64;
        if let Some(max) = self.max_length.filter(|max| len > *max) {
            let detail = format!("may not be more than {max} bytes");
            out.push(FieldError { kind: ErrorKind::TooLong, path: Path::new(path), value: None, detail });
        }
        let mut refuse = |why: String| out.push(FieldError::invalid(Path::new(path), text, why));
        if let Some(min) = self.min_length.filter(|min| len < *min) {
            refuse(format!("{path} in body should be at least {min} chars long"));
        }
        if let Some(pattern) = &self.pattern
            && let Some(regex) = self.regex.get_or_init(|| Pattern::new(pattern).ok())
            && !regex.is_match(text)
        {
            refuse(format!("{path} in body should match '{pattern}'"));
        }
        if !self.format.is_empty() && !format::fits(&self.format, text) {
            out.push(type_error(path, &self.format, text.into()));
        }
    }

    fn number(&self, number: f64, value: &Value, path: &str, out: &mut Vec<FieldError>) {
        let mut refuse = |why: String| {
            out.push(FieldError::invalid(Path::new(path), value.clone(), format!("{path} in body {why}")))
        };
        match self.maximum {
            Some(max) if self.exclusive_maximum && number >= max => {
                refuse(format!("should be less than {max}"))
            }
            Some(max) if number > max => refuse(format!("should be less than or equal to {max}")),
            _ => {}
        }
        match self.minimum {
            Some(min) if self.exclusive_minimum && number <= min => {
                refuse(format!("should be greater than {min}"))
            }
            Some(min) if number < min => refuse(format!("should be greater than or equal to {min}")),
            _ => {}
        }
        if let Some(factor) = self.multiple_of.filter(|factor| *factor > 0.0)
            && (number / factor).fract() != 0.0
        {
            refuse(format!("should be a multiple of {factor}"));
        }
        if self.format == "int32" && (number > f64::from(i32::MAX) || number < f64::from(i32::MIN)) {
            refuse("must be of type integer with format int32".to_owned());
        }
    }

    fn items(&self, items: &[Value], old: Option<&Value>, path: &str, out: &mut Vec<FieldError>) {
        let before = old.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let keys = |item: &Value| -> Map<String, Value> {
            self.list_map_keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone()))).collect()
        };
        if let Some(rules) = &self.items {
            for (index, item) in items.iter().enumerate() {
                // Only items with keys can be told to be the same item as before.
                let was = match self.list_type.as_str() {
                    "map" => before.iter().find(|was| keys(was) == keys(item)),
                    _ => None,
                };
                rules.value(item, was, &format!("{path}[{index}]"), out);
            }
        }
        let len = items.len() as u64;
        if let Some(max) = self.max_items.filter(|max| len > *max) {
            out.push(FieldError::too_many(Path::new(path), items.len(), max as usize));
        }
        if let Some(min) = self.min_items.filter(|min| len < *min) {
            let why = format!("{path} in body should have at least {min} items");
            out.push(FieldError::invalid(Path::new(path), items.len(), why));
        }
        let identity = |item: &Value| match self.list_type.as_str() {
            "set" => Some(item.clone()),
            "map" => Some(Value::Object(keys(item))),
            _ => None,
        };
        let repeated = |items: &[Value]| -> Vec<(usize, Value)> {
            let mut seen = std::collections::BTreeSet::new();
            let ids = items.iter().enumerate().filter_map(|(index, item)| Some((index, identity(item)?)));
            ids.filter(|(_, id)| !seen.insert(id.to_string())).collect()
        };
        let again = repeated(items);
        // A list that had such items before may keep them.
        if !again.is_empty() && repeated(before).is_empty() {
            let error = |(index, id)| FieldError::duplicate(Path::new(path).index(index), id);
            out.extend(again.into_iter().map(error));
        }
    }

    fn object(&self, map: &Map<String, Value>, old: Option<&Value>, path: &str, out: &mut Vec<FieldError>) {
        let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        for name in self.required.iter().filter(|name| !map.contains_key(*name)) {
            out.push(FieldError::required(Path::new(&below(name)), ""));
        }
        for (name, value) in map {
            let was = old.and_then(|old| old.get(name));
            match (self.properties.get(name), &self.additional_properties) {
                (Some(rules), _) => rules.value(value, was, &below(name), out),
                (None, Some(Additional::Of(rules))) => rules.value(value, was, &below(name), out),
                (None, Some(Additional::Any(false))) => {
                    let why = format!("{} in body is a forbidden property", below(name));
                    out.push(FieldError::invalid(Path::new(path), "", why));
                }
                _ => {}
            }
        }
        let len = map.len() as u64;
        let mut refuse = |detail: String| {
            out.push(FieldError::invalid(Path::new(path), map.len(), format!("{path} in body {detail}")));
        };
        if let Some(min) = self.min_properties.filter(|min| len < *min) {
            refuse(format!("should have at least {min} properties"));
        }
        if let Some(max) = self.max_properties.filter(|max| len > *max) {
            out.push(FieldError::too_many(Path::new(path), map.len(), max as usize));
        }
    }

    fn junctors(&self, value: &Value, path: &str, out: &mut Vec<FieldError>) {
        let mut composite = |why: String| out.push(FieldError::invalid(Path::root(), "", why));
        let each = |rules: &[Rules]| -> Vec<Vec<FieldError>> {
            rules.iter().map(|rules| rules.check(value, None, path)).collect()
        };
        let valid = |results: &[Vec<FieldError>]| results.iter().filter(|errors| errors.is_empty()).count();
        let mut more = Vec::new();
        let mut any = each(&self.any_of);
        if !any.is_empty() && valid(&any) == 0 {
            composite(format!("{path:?} must validate at least one schema (anyOf)"));
            more.append(&mut any[0]);
        }
        let mut one = each(&self.one_of);
        match valid(&one) {
            1 => {}
            0 if one.is_empty() => {}
            0 => {
                composite(format!(
                    "{path:?} must validate one and only one schema (oneOf). Found none valid"
                ));
                more.append(&mut one[0]);
            }
            many => composite(format!(
                "{path:?} must validate one and only one schema (oneOf). Found {many} valid alternatives"
            )),
        }
        let all = each(&self.all_of);
        match valid(&all) {
            valid if valid == all.len() => {}
            0 => composite(format!("{path:?} must validate all the schemas (allOf). None validated")),
            _ => composite(format!("{path:?} must validate all the schemas (allOf)")),
        }
        if self.not.as_ref().is_some_and(|rules| rules.check(value, None, path).is_empty()) {
            composite(format!("{path:?} must not validate the schema (not)"));
        }
        more.extend(all.into_iter().flatten());
        out.append(&mut more);
    }
}

/// What is wrong with what an embedded resource says of itself.
pub fn embedded_faults(object: &Value, path: &str) -> Vec<FieldError> {
    let mut out = Vec::new();
    let at = |name: &str| Path::new(path).child(name);
    let version: &dyn Fn(&str) -> Option<String> =
        &|text| (text.matches('/').count() > 1).then(|| format!("unexpected GroupVersion string: {text}"));
    let kind: &dyn Fn(&str) -> Option<String> = &|text| {
        let why = names::is_dns1035_label(&text.to_lowercase()).join(",");
        (!why.is_empty()).then(|| format!("may have mixed case, but should otherwise match: {why}"))
    };
    for (name, check) in [("apiVersion", version), ("kind", kind)] {
        out.extend(match object.get(name) {
            None => Some(FieldError::required(at(name), "")),
            Some(Value::String(text)) if text.is_empty() => Some(FieldError::required(at(name), "")),
            Some(Value::String(text)) => {
                check(text).map(|why| FieldError::invalid(at(name), text.as_str(), why))
            }
            Some(other) => Some(FieldError::invalid(at(name), other.clone(), "must be a string")),
        });
    }
    out.extend(object_meta::validate_embedded(object, &at("metadata")));
    out
}

fn type_error(path: &str, wanted: &str, found: Value) -> FieldError {
    let shown = found.as_str().unwrap_or_default();
    let detail = format!("{path} in body must be of type {wanted}: {shown:?}");
    FieldError { kind: ErrorKind::TypeInvalid, path: Path::new(path), value: Some(found), detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(schema: Value, value: Value, old: Option<Value>) -> Vec<String> {
        Rules::of(schema).check(&value, old.as_ref(), "spec").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn errors_read_as_upstreams() {
        for (schema, value, expected) in [
            (
                json!({"type": "integer"}),
                json!("x"),
                "spec: Invalid value: \"string\": spec in body must be of type integer: \"string\"",
            ),
            (
                json!({"type": "integer"}),
                json!(1.5),
                "spec: Invalid value: \"number\": spec in body must be of type integer: \"number\"",
            ),
            (
                json!({"type": "integer"}),
                json!(null),
                "spec: Invalid value: \"null\": spec in body must be of type integer: \"null\"",
            ),
            (
                json!({"x-kubernetes-int-or-string": true}),
                json!(true),
                "spec: Invalid value: \"boolean\": spec in body must be of type integer,string: \"boolean\"",
            ),
            (json!({"type": "object", "required": ["a"]}), json!({}), "spec.a: Required value"),
            (
                json!({"type": "string", "enum": ["a", "b"]}),
                json!("c"),
                "spec: Unsupported value: \"c\": supported values: \"a\", \"b\"",
            ),
            (
                json!({"type": "integer", "maximum": 10}),
                json!(11),
                "spec: Invalid value: 11: spec in body should be less than or equal to 10",
            ),
            (
                json!({"type": "integer", "minimum": 0, "exclusiveMinimum": true}),
                json!(0),
                "spec: Invalid value: 0: spec in body should be greater than 0",
            ),
            (
                json!({"type": "integer", "multipleOf": 5}),
                json!(7),
                "spec: Invalid value: 7: spec in body should be a multiple of 5",
            ),
            (
                json!({"type": "string", "minLength": 2}),
                json!("x"),
                "spec: Invalid value: \"x\": spec in body should be at least 2 chars long",
            ),
            (
                json!({"type": "string", "maxLength": 1}),
                json!("xy"),
                "spec: Too long: may not be more than 1 bytes",
            ),
            (
                json!({"type": "string", "pattern": "^a$"}),
                json!("b"),
                "spec: Invalid value: \"b\": spec in body should match '^a$'",
            ),
            (
                json!({"type": "string", "format": "ipv4"}),
                json!("b"),
                "spec: Invalid value: \"b\": spec in body must be of type ipv4: \"b\"",
            ),
            (
                json!({"type": "array", "maxItems": 1}),
                json!([1, 2]),
                "spec: Too many: 2: must have at most 1 items",
            ),
            (
                json!({"type": "array", "minItems": 1}),
                json!([]),
                "spec: Invalid value: 0: spec in body should have at least 1 items",
            ),
            (
                json!({"type": "array", "x-kubernetes-list-type": "set"}),
                json!(["a", "a"]),
                "spec[1]: Duplicate value: \"a\"",
            ),
            (
                json!({"type": "array", "items": {"type": "object", "properties": {"n": {"type": "string"}}}}),
                json!([{"n": 1}]),
                "spec[0].n: Invalid value: \"integer\": spec[0].n in body must be of type string: \"integer\"",
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
                json!({"a": 1}),
                "spec.a: Invalid value: \"integer\": spec.a in body must be of type string: \"integer\"",
            ),
            (
                json!({"not": {"required": ["a"]}}),
                json!({"a": 1}),
                "<nil>: Invalid value: \"\": \"spec\" must not validate the schema (not)",
            ),
            (
                json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
                json!({"a": 1, "b": 2}),
                "<nil>: Invalid value: \"\": \"spec\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
            ),
        ] {
            assert_eq!(errors(schema.clone(), value, None), [expected], "{schema}");
        }
        let none = errors(json!({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}), json!({}), None);
        assert_eq!(
            none,
            [
                "<nil>: Invalid value: \"\": \"spec\" must validate at least one schema (anyOf)",
                "spec.a: Required value"
            ]
        );
        for (schema, value) in [
            (json!({"pattern": r"^\p{Lu}[\p{Greek}\d]+\pN$"}), json!("Äβ5٣")),
            (json!({"type": "integer"}), json!(2.0)),
            (json!({"type": "number"}), json!(2)),
            (json!({"type": "string", "nullable": true}), json!(null)),
        ] {
            assert!(errors(schema, value, None).is_empty());
        }
    }

    #[test]
    fn patterns_are_re2s() {
        let pattern = json!({"pattern": r"^\p{Lu}\d$"});
        for (text, fits) in [("Ä5", true), ("ä5", false), ("Ä٣", false)] {
            assert_eq!(errors(pattern.clone(), text.into(), None).is_empty(), fits, "{text}");
        }
    }

    #[test]
    fn lists_that_repeated_items_may_go_on() {
        let schema = json!({"type": "array", "x-kubernetes-list-type": "set"});
        assert!(errors(schema.clone(), json!(["a", "a", "b"]), Some(json!(["a", "a"]))).is_empty());
        assert_eq!(errors(schema, json!(["a", "a", "b"]), Some(json!(["a", "b"]))).len(), 1);
    }

    #[test]
    fn what_did_not_change_is_not_judged_again() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "maximum": 1}, "l": {"type": "array",
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"v": {"type": "integer", "maximum": 1}}}}}});
        let old = json!({"a": 5, "l": [{"k": "x", "v": 7}]});
        let new = json!({"a": 5, "b": 1, "l": [{"k": "y", "v": 0}, {"k": "x", "v": 7}]});
        assert!(errors(schema.clone(), new, Some(old.clone())).is_empty());
        assert_eq!(errors(schema, json!({"a": 6}), Some(old)).len(), 1);
    }
}
