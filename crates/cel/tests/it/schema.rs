//! Values and types that schemas of custom resources describe.

use std::collections::BTreeMap;

use serde_json::json;
use skeg_cel::{Env, Limits, Schema, Value, escape, unescape};

fn schema() -> Schema {
    Schema::resource(&json!({
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["replicas"],
                "properties": {
                    "replicas": {"type": "integer"},
                    "ratio": {"type": "number"},
                    "port": {"x-kubernetes-int-or-string": true},
                    "when": {"type": "string", "format": "date-time"},
                    "day": {"type": "string", "format": "date"},
                    "wait": {"type": "string", "format": "duration"},
                    "data": {"type": "string", "format": "byte"},
                    "maybe": {"type": "string", "nullable": true},
                    "namespace": {"type": "string"},
                    "a.b": {"type": "string"},
                    "x-y/z__w": {"type": "string"},
                    "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                    "keyed": {
                        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                        "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}
                    },
                    "plain": {"type": "array", "items": {"type": "integer"}},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "untyped": {"x-kubernetes-preserve-unknown-fields": true},
                    "template": {"type": "object", "x-kubernetes-embedded-resource": true,
                                 "x-kubernetes-preserve-unknown-fields": true}
                }
            }
        }
    }))
}

fn object() -> serde_json::Value {
    json!({
        "apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"},
        "spec": {
            "replicas": 3, "ratio": 1, "port": "http", "when": "2024-01-01T00:00:00Z", "day": "2024-01-02",
            "wait": "1h", "data": "aGk=", "maybe": null, "namespace": "n", "a.b": "dot", "x-y/z__w": "odd",
            "set": ["a", "b"], "keyed": [{"k": "x", "v": 1}, {"k": "y", "v": 2}], "plain": [1, 2],
            "labels": {"app": "web", "a.b": "c"}, "free": {"any": 1}, "untyped": {"any": 1},
            "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}}
        }
    })
}

fn evaluate(text: &str) -> String {
    let (schema, object, old) = (schema(), object(), {
        let mut old = object();
        old["spec"]["set"] = json!(["b", "a"]);
        old["spec"]["keyed"] = json!([{"k": "y", "v": 2}, {"k": "x", "v": 1}]);
        old["spec"]["plain"] = json!([2, 1]);
        old
    });
    let declared = std::sync::Arc::new(schema.declare("self").unwrap());
    let env = Env::new().with_declared("self", declared.clone()).with_declared("oldSelf", declared);
    let program = match env.compile(text) {
        Ok(program) => program,
        Err(issues) => return issues.to_string(),
    };
    let variables = BTreeMap::from([
        ("self", Value::typed(&object, &schema).unwrap()),
        ("oldSelf", Value::typed(&old, &schema).unwrap()),
    ]);
    match program.evaluate(&variables, Limits::default()).value {
        Ok(value) => value.to_string(),
        Err(error) => format!("error: {error}"),
    }
}

#[test]
fn values_have_the_types_of_their_schema() {
    for text in [
        "self.spec.replicas == 3 && self.spec.ratio == 1.0 && type(self.spec.ratio) == double",
        "self.spec.port == 'http' && type(self.spec.port) == string",
        "self.spec.when == timestamp('2024-01-01T00:00:00Z') && self.spec.day.getDate() == 2",
        "self.spec.wait == duration('60m') && self.spec.data == b'hi'",
        "!has(self.spec.maybe)",
        "self.spec.__namespace__ == 'n' && self.spec.a__dot__b == 'dot'",
        "self.spec.x__dash__y__slash__z__underscores__w == 'odd'",
        "self.apiVersion == 'example.com/v1' && self.kind == 'Widget' && self.metadata.name == 'w'",
        "self.spec.labels['a.b'] == 'c' && self.spec.labels.app == 'web' && 'app' in self.spec.labels",
        "self.spec.template.kind == 'Pod' && self.spec.template.metadata.name == 'p'",
        "self.spec.set == oldSelf.spec.set && self.spec.keyed == oldSelf.spec.keyed",
        "self.spec.plain != oldSelf.spec.plain",
        "self.spec.set + ['b', 'c'] == ['a', 'b', 'c']",
        "size(self.spec.keyed + oldSelf.spec.keyed) == 2",
        "self.spec.plain + [3] == [1, 2, 3]",
        "self.spec.keyed.exists(e, e.k == 'y' && e.v == 2)",
        "self.spec.free == oldSelf.spec.free && self.spec != oldSelf.spec",
        "self.spec.labels.all(k, k.size() > 0)",
    ] {
        assert_eq!(evaluate(text), "true", "{text}");
    }
}

#[test]
fn what_the_schema_does_not_know_is_no_field() {
    for (text, fault) in [
        ("self.spec.nope == 1", "undefined field 'nope'"),
        ("self.spec.untyped == 1", "undefined field 'untyped'"),
        ("self.spec.free.any == 1", "undefined field 'any'"),
        ("self.metadata.labels == {}", "undefined field 'labels'"),
        ("self.spec.template.spec == 1", "undefined field 'spec'"),
        ("self.spec.replicas == '3'", "found no matching overload for '_==_' applied to '(int, string)'"),
        ("self.spec == 1", "found no matching overload for '_==_' applied to '(self.spec, int)'"),
    ] {
        assert!(evaluate(text).contains(fault), "{text}: {}", evaluate(text));
    }
}

#[test]
fn what_does_not_fit_its_schema_is_an_error() {
    let schema = Schema::new(&json!({"type": "object", "properties": {
        "n": {"type": "integer"}, "s": {"type": "string"}, "t": {"type": "string", "format": "date-time"},
        "l": {"type": "array", "items": {"type": "integer"}}
    }}));
    let object = json!({"n": "x", "s": 1, "t": "yesterday", "l": [1, null]});
    let env = Env::new().with_declared("self", schema.declare("self").unwrap().into());
    for (text, message) in [
        ("self.n == 1", "invalid data, expected int, got string"),
        ("self.s == ''", "invalid data, expected string, got int64"),
        ("self.t == timestamp(0)", "Invalid date-time formatted string yesterday"),
        ("self.l.all(i, i > 0)", "invalid data, got null for schema with nullable=false"),
    ] {
        let variables = BTreeMap::from([("self", Value::typed(&object, &schema).unwrap())]);
        let evaluation = env.compile(text).unwrap().evaluate(&variables, Limits::default());
        assert_eq!(evaluation.value.unwrap_err().message, message, "{text}");
    }
}

#[test]
fn names_are_escaped_and_back() {
    for (name, escaped) in [
        ("a.b", Some("a__dot__b")),
        ("a-b", Some("a__dash__b")),
        ("a/b", Some("a__slash__b")),
        ("a__b", Some("a__underscores__b")),
        ("a_b", Some("a_b")),
        ("namespace", Some("__namespace__")),
        ("true", Some("__true__")),
        ("int", Some("int")),
        ("x__", Some("x__underscores__")),
        ("1a", None),
        ("é", None),
        ("", None),
    ] {
        assert_eq!(escape(name).as_deref(), escaped, "{name}");
        if let Some(escaped) = escaped {
            assert_eq!(unescape(escaped).as_deref(), Some(name), "{escaped}");
        }
    }
    assert_eq!(unescape("a__b"), None);
}

#[test]
fn old_values_may_be_optional() {
    let schema = Schema::new(&json!({"type": "object", "properties": {"n": {"type": "integer"}}}));
    let declared = std::sync::Arc::new(schema.declare("self").unwrap());
    let env = Env::new().with_declared("self", declared.clone()).with_optional("oldSelf", declared);
    let program = env.compile("!oldSelf.hasValue() || oldSelf.value().n <= self.n").unwrap();
    assert_eq!(env.compile("oldSelf.n").unwrap().value_type().to_string(), "optional_type(int)");
    let (new, old) = (json!({"n": 1}), json!({"n": 2}));
    let new = Value::typed(&new, &schema).unwrap();
    let old = Value::Optional(Some(std::sync::Arc::new(Value::typed(&old, &schema).unwrap())));
    for (old, expected) in [(Value::Optional(None), "true"), (old, "false")] {
        let variables = BTreeMap::from([("self", new.clone()), ("oldSelf", old)]);
        let value = program.evaluate(&variables, Limits::default()).value.unwrap();
        assert_eq!(value.to_string(), expected);
    }
}

#[test]
fn references_are_followed_once() {
    let definitions = json!({
        "#/Spec": {"type": "object", "properties": {
            "port": {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]},
            "again": {"$ref": "#/Spec"}, "n": {"type": "integer"}
        }}
    });
    let root = json!({"type": "object", "properties": {
        "spec": {"allOf": [{"$ref": "#/Spec"}], "default": {}}, "gone": {"$ref": "#/Gone"}
    }});
    let schema = Schema::with_references(&root, &|name| definitions.get(name));
    let env = Env::new().with_declared("object", schema.declare("object").unwrap().into());
    assert_eq!(env.compile("object.spec.n").unwrap().value_type().to_string(), "int");
    assert_eq!(env.compile("object.spec.port").unwrap().value_type().to_string(), "dyn");
    for text in ["object.spec.again.n", "object.gone.n"] {
        assert_eq!(env.compile(text).unwrap_err().issues[0].message, "undefined field 'n'", "{text}");
    }
}
