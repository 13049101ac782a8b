use super::*;
use serde_json::json;

/// The errors about a schema whose `spec` has these properties.
fn errors(properties: Value) -> Vec<String> {
    let schema =
        json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}});
    let mut errors = Errors::default();
    check(&At { value: &schema, path: Path::new("s") }, &mut errors);
    errors.0.iter().map(ToString::to_string).collect()
}

#[test]
fn faults_of_rules_read_as_upstreams() {
    for (rule, expected) in [
        (json!({"rule": "self == 1"}), vec![]),
        (
            json!({"rule": "self.z > 1"}),
            vec![
                "rule: Invalid value: {\"Rule\":\"self.z \\u003e 1\",\"Message\":\"\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}: compilation failed: ERROR: <input>:1:5: type 'int' does not support field selection\n | self.z > 1\n | ....^",
            ],
        ),
        (
            json!({"rule": "1", "message": "m"}),
            vec![
                "rule: Invalid value: {\"Rule\":\"1\",\"Message\":\"m\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}: cel expression must evaluate to a bool",
            ],
        ),
        (
            json!({"rule": "true", "messageExpression": "1"}),
            vec![
                "messageExpression: Invalid value: {\"Rule\":\"true\",\"Message\":\"\",\"MessageExpression\":\"1\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}: messageExpression must evaluate to a string",
            ],
        ),
        (
            json!({"rule": "true", "optionalOldSelf": true}),
            vec!["optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule"],
        ),
        (json!({"rule": "self == oldSelf"}), vec![]),
    ] {
        let got = errors(json!({"n": {"type": "integer", RULES: [rule]}}));
        let expected: Vec<String> = expected
            .iter()
            .map(|text| format!("s.properties[spec].properties[n].{RULES}[0].{text}"))
            .collect();
        assert_eq!(got, expected, "{rule}");
    }
    let got = errors(json!({"n": {"type": "integer", RULES: [{"rule": "true", "messageExpression": "'"}]}}));
    assert!(
        got[0].contains(": messageExpression compilation failed: ERROR: <input>:1:1: Syntax error"),
        "{got:?}"
    );
    let got = errors(json!({"n": {"x-kubernetes-preserve-unknown-fields": true, RULES: [{"rule": "true"}]}}));
    assert_eq!(
        got,
        [format!(
            "s.properties[spec].properties[n].{RULES}: Internal error: rule declared on schema that does not support \
             validation rules type: '' x-kubernetes-preserve-unknown-fields: 'true'"
        )]
    );
}

#[test]
fn old_values_are_only_where_they_correspond() {
    let rules = json!([{"rule": "self == oldSelf"}]);
    let item = json!({"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer", RULES: rules}}});
    let list = |kind: &str| json!({"l": {"type": "array", "maxItems": 5, "items": item, "x-kubernetes-list-type": kind, "x-kubernetes-list-map-keys": ["k"]}});
    assert!(errors(list("map")).is_empty());
    for kind in ["atomic", "set"] {
        assert_eq!(
            errors(list(kind)),
            [format!(
                "s.properties[spec].properties[l].items.properties[v].{RULES}[0].rule: Invalid value: \"self == oldSelf\": \
                 oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[spec].properties[l]"
            )]
        );
    }
    let atomic = json!({"m": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"v": {"type": "integer", RULES: rules}}}});
    assert!(errors(atomic)[0].ends_with("within s.properties[spec].properties[m]"));
}

#[test]
fn estimates_are_limited_alone_and_together() {
    let rules = json!([{"rule": "self.all(x, x.contains('gpu'))"}]);
    let list = |max_length: u64, max_items: u64| json!({"l": {"type": "array", "maxItems": max_items, "items": {"type": "string", "maxLength": max_length}, RULES: rules}});
    // The largest numbers that upstream takes.
    for (max_length, max_items) in [(16, 909_090), (63, 333_333), (253, 94_339), (1_024, 24_154)] {
        assert!(errors(list(max_length, max_items)).is_empty());
        let over = errors(list(max_length, max_items + max_items / 1_000 + 1));
        let rule = format!(
            "s.properties[spec].properties[l].{RULES}[0].rule: Forbidden: estimated rule cost exceeds budget by factor of 1.00"
        );
        assert!(over[0].starts_with(&rule), "{over:?}");
        assert_eq!(over.len(), 1);
    }
    let unbounded = errors(json!({"l": {"type": "array", "items": {"type": "string"}, RULES: rules}}));
    assert_eq!(
        unbounded,
        [
            format!("s.properties[spec].properties[l].{RULES}[0].rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"),
            format!("s.properties[spec].properties[l].{RULES}[0].rule: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"),
            "s: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)".to_owned(),
        ]
    );
    // Rules within lists and maps are multiplied by how many values there can be.
    let nested = |max: u64| {
        json!({"m": {"type": "object", "maxProperties": max, "additionalProperties": {"type": "array", "maxItems": 1_000,
            "items": {"type": "integer", RULES: [{"rule": "self > 0"}]}}}})
    };
    assert!(errors(nested(1_000)).is_empty());
    assert!(errors(nested(10_000))[0].contains("exceeds budget by factor of"));
    // Eleven dear ones: each may be, all together not, and the dearest four are named.
    let many = (0..11).map(|index| (format!("l{index:02}"), list(63, 330_000)["l"].clone()));
    let many = errors(Value::Object(many.collect()));
    assert_eq!(many.len(), 5, "{many:?}");
    assert!(many[4].starts_with("s: Forbidden: x-kubernetes-validations estimated rule cost total"));
}

#[test]
fn values_in_the_schema_follow_its_rules() {
    let rules = json!([{"rule": "self > 0", "message": "positive"}]);
    assert!(errors(json!({"n": {"type": "integer", "default": 1, "enum": [1, 2], RULES: rules}})).is_empty());
    assert_eq!(
        errors(json!({"n": {"type": "integer", "default": 0, RULES: rules}})),
        ["s.properties[spec].properties[n].default: Invalid value: \"integer\": positive"]
    );
    assert_eq!(
        errors(json!({"n": {"type": "integer", "enum": [1, 0], "example": -1, RULES: rules}})),
        [
            "s.properties[spec].properties[n].example: Invalid value: \"integer\": positive",
            "s.properties[spec].properties[n].enum[1]: Invalid value: \"integer\": positive"
        ]
    );
}

#[test]
fn factors_are_shown_as_upstream_shows_them() {
    for (cost, shown) in
        [(1_010, "1.010000x"), (1_500, "1.5x"), (99_960, "100.0x"), (200_000, "more than 100x")]
    {
        assert!(over("it", cost, 1_000).starts_with(&format!("it exceeds budget by factor of {shown} (try")));
    }
}

#[test]
fn a_stored_rule_that_is_broken_stands_in_the_way_of_nothing_else() {
    let strategy = crate::validate::strategy_for(crate::crd::GROUP, "v1", "CustomResourceDefinition");
    let with = |properties: Value| {
        json!({"metadata": {"name": ".example.com"}, "spec": {"group": "example.com", "names": {}, "versions": [{"name": "v1", "storage": true, "schema": {"openAPIV3Schema":
            {"type": "object", "properties": properties}}}]}, "status": {"storedVersions": ["v1"]}})
    };
    let broken = json!({"type": "integer", RULES: [{"rule": "self.z == 1"}]});
    let old = with(json!({"a": broken}));
    assert_eq!((strategy.validate_create)(&old).len(), 1);
    let mut other = old.clone();
    other["spec"]["versions"][0]["served"] = true.into();
    assert!((strategy.validate_update)(&other, &old).is_empty());
    let more = with(json!({"a": broken, "b": {"type": "integer", RULES: [{"rule": "self > 0"}]}}));
    assert!((strategy.validate_update)(&more, &old).is_empty());
    let worse = with(json!({"a": broken, "b": {"type": "integer", RULES: [{"rule": "self.y > 0"}]}}));
    let errors = (strategy.validate_update)(&worse, &old);
    assert_eq!(errors.len(), 1);
    assert!(errors[0].path.as_str().contains("properties[b]"), "{errors:?}");
}
