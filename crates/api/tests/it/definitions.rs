//! What stored definitions may go on to say, and what custom resources of a schema are told.

use crate::invalid::{Rows, change, create, stored, table, update};
use serde_json::{Value, json};
use skeg_api::crd::Rules;

const SCHEMA: &str = "/spec/versions/0/schema/openAPIV3Schema";

/// A definition that broke a rule before the rule was there may be changed, and so may its schema.
#[test]
fn stored_definitions_may_break_later_rules() {
    let rows = Rows::new();
    let base = table()["bases"]["crd"].clone();
    let kind = rows.of(&base);
    let set = |object: Value, path: &str, value: Value| {
        change(object, &json!({ format!("{SCHEMA}{path}"): value }))
    };
    for (field, is_lenient) in [
        (json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"}}), true),
        (
            json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string", "nullable": true}}),
            true,
        ),
        (json!({"type": "object", "properties": {"b": {"type": "string"}}, "default": {"c": 1}}), true),
        (json!({"type": "object", "x-kubernetes-preserve-unknown-fields": false}), false),
        (json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-map-keys": ["k"]}), false),
    ] {
        let old = stored(create(&kind, base.clone()).0);
        let broken = set(old.clone(), "/properties/odd", field.clone());
        assert_ne!(update(&kind, broken.clone(), &old), [], "{field}, new");
        assert_eq!(update(&kind, broken.clone(), &broken), [], "{field}, as it was");
        let more = set(broken.clone(), "/properties/more", json!({"type": "string"}));
        assert_eq!(update(&kind, more, &broken).is_empty(), is_lenient, "{field}, beside another");
    }
}

/// What looks odd, but is taken as upstream takes it.
#[test]
fn odd_definitions_are_taken() {
    let rows = Rows::new();
    let base = table()["bases"]["crd"].clone();
    let kind = rows.of(&base);
    let embedded = json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"kind": {"type": "string", "default": "A"}, "metadata": {"type": "object", "properties": {
            "labels": {"type": "object", "properties": {"a": {"type": "string", "default": "b"}}}}}},
        "default": {"apiVersion": "v1", "kind": "A", "metadata": {"name": "a"}}});
    let webhook = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://a", "caBundle": "bm9uc2Vuc2U="}}});
    let set = json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "array", "items": {"type": "string"}}});
    let field = |name: &str| format!("{SCHEMA}/properties/{name}");
    for (path, value) in [
        (field("b"), json!({"type": "object", "additionalProperties": false})),
        (field("b"), json!({"type": "object", "additionalProperties": {"type": "string", "default": 1}})),
        (field("b"), json!({"type": "integer", "x-kubernetes-int-or-string": true})),
        (
            field("b"),
            json!({"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}]}),
        ),
        (field("b"), set),
        (field("b"), embedded),
        (
            field("metadata"),
            json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}}}),
        ),
        (
            "/spec/versions/0/additionalPrinterColumns".to_owned(),
            json!([{"name": "A", "type": "string", "jsonPath": ".a[?"}]),
        ),
        ("/spec/conversion".to_owned(), webhook),
    ] {
        let errors = create(&kind, change(base.clone(), &json!({ path: value }))).1;
        assert_eq!(errors, [], "{value}");
    }
}

#[test]
fn embedded_resources_are_whole_objects() {
    let schema = json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true});
    let rules = Rules::of(schema);
    let check = |value: Value| -> Vec<String> {
        rules.check(&value, None, "spec.tmpl").iter().map(ToString::to_string).collect()
    };
    let with = |metadata: Value| json!({"apiVersion": "a/v1", "kind": "A", "metadata": metadata});
    for (value, expected) in [
        (json!({}), vec!["spec.tmpl.apiVersion: Required value", "spec.tmpl.kind: Required value"]),
        (
            json!({"apiVersion": "", "kind": ""}),
            vec!["spec.tmpl.apiVersion: Required value", "spec.tmpl.kind: Required value"],
        ),
        (
            json!({"apiVersion": "a/b/c", "kind": "A"}),
            vec!["spec.tmpl.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c"],
        ),
        (
            json!({"apiVersion": "v1", "kind": "X Y"}),
            vec!["spec.tmpl.kind: Invalid value: \"X Y\": may have mixed case, but should otherwise match: "],
        ),
        (
            with(json!({"name": "a/b"})),
            vec!["spec.tmpl.metadata.name: Invalid value: \"a/b\": may not contain '/'"],
        ),
        (with(json!({"labels": {"a b": "c"}})), vec!["spec.tmpl.metadata.labels: Invalid value: \"a b\": "]),
        (
            with(json!({"annotations": {"a b": "c"}})),
            vec!["spec.tmpl.metadata.annotations: Invalid value: \"a b\": "],
        ),
        (
            with(json!({"finalizers": ["a b"]})),
            vec!["spec.tmpl.metadata.finalizers: Invalid value: \"a b\": "],
        ),
        (with(json!({"namespace": "A_"})), vec!["spec.tmpl.metadata.namespace: Invalid value: \"A_\": "]),
        (with(json!({"name": "A:b", "finalizers": ["short"], "labels": {"a": "b"}})), vec![]),
    ] {
        let told = check(value.clone());
        assert_eq!(told.len(), expected.len(), "{value}: {told:?}");
        assert!(
            told.iter().zip(&expected).all(|(told, wanted)| told.starts_with(wanted)),
            "{value}: {told:?}"
        );
    }
}
