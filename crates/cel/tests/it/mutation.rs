//! What mutating policies make: operations of patches, parts of objects.

use std::collections::BTreeMap;

use serde_json::json;
use skeg_cel::{Env, Limits, Type, Value};

fn made(text: &str) -> Result<serde_json::Value, String> {
    let env = Env::new().with("object", Type::Dyn).with_mutation();
    let program = env.compile(text).map_err(|issues| issues.to_string())?;
    let object = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 2}});
    let variables = BTreeMap::from([("object", Value::of(&object))]);
    let value = program.evaluate(&variables, Limits::default()).value.map_err(|error| error.message)?;
    if let Value::Struct(made) = &value {
        made.check_paths().map_err(|error| error.message)?;
    }
    value.to_json().map_err(|error| error.message)
}

#[test]
fn objects_and_patches_become_json() {
    for (text, expected) in [
        (
            "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b~c'), value: 'x'}]",
            json!([{"op": "add", "path": "/metadata/labels/a~1b~0c", "value": "x"}]),
        ),
        (
            "object.spec.replicas > 1 ? [JSONPatch{op: 'move', from: '/a', path: '/b'}] : []",
            json!([{"op": "move", "from": "/a", "path": "/b"}]),
        ),
        (
            "Object{spec: Object.spec{replicas: object.spec.replicas + 1, paused: true}}",
            json!({"spec": {"replicas": 3, "paused": true}}),
        ),
        (
            "Object{metadata: Object.metadata{annotations: {'a': 'b'}}}",
            json!({"metadata": {"annotations": {"a": "b"}}}),
        ),
        (
            "Object{spec: Object.spec{containers: [Object.spec.containers{name: 'a', ?image: object.?image}]}}",
            json!({"spec": {"containers": [{"name": "a"}]}}),
        ),
        (
            "Object{spec: Object.spec{a__dot__b: 1, __namespace__: null}}",
            json!({"spec": {"a.b": 1, "namespace": null}}),
        ),
    ] {
        assert_eq!(made(text), Ok(expected), "{text}");
    }
}

#[test]
fn wrong_ones_are_refused() {
    for (text, message) in [
        ("JSONPatch{op: 1, path: ''}", "expected type of field 'op' is 'string' but provided type is 'int'"),
        ("JSONPatch{nope: 1}", "undefined field 'nope'"),
        ("Other{a: 1}", "undeclared reference to 'Other' (in container '')"),
        (
            "Object{spec: Object.metadata{}}",
            "unexpected type name \"Object.metadata\", expected \"Object.spec\", which matches field name path from root Object type",
        ),
        ("Object{spec: optional.none()}", "JSON has no 'optional_type'"),
    ] {
        let outcome = made(text).unwrap_err();
        assert!(outcome.contains(message), "{text}: {outcome}");
    }
}
