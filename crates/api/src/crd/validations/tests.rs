use super::*;
use serde_json::json;

/// A resource whose `spec` has these properties.
fn schema(properties: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}})
}

fn found(schema: &Value, new: &Value, old: Option<&Value>) -> (Vec<String>, Vec<String>) {
    let found = Validations::of_resource(schema).unwrap().check(new, old);
    let texts = |errors: Vec<FieldError>| errors.iter().map(FieldError::to_string).collect();
    (texts(found.errors), texts(found.warnings))
}

fn spec(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec})
}

/// What a rule on an integer `spec.n` says of 7.
fn of_rule(rule: Value) -> Vec<String> {
    let schema = schema(json!({"n": {"type": "integer", RULES: [rule]}}));
    found(&schema, &spec(json!({"n": 7})), None).0
}

#[test]
fn failures_read_as_upstreams() {
    for (rule, expected) in [
        (json!({"rule": "self == 7"}), None),
        (json!({"rule": " self == 8 "}), Some("spec.n: Invalid value: \"integer\": failed rule: self == 8")),
        (
            json!({"rule": "self == 8", "message": " no eight "}),
            Some("spec.n: Invalid value: \"integer\": no eight"),
        ),
        (
            json!({"rule": "self == 8", "messageExpression": "string(self) + ' is no eight'", "message": "x"}),
            Some("spec.n: Invalid value: \"integer\": 7 is no eight"),
        ),
        // What cannot be shown gives way to the message.
        (
            json!({"rule": "self == 8", "messageExpression": "' '", "message": "x"}),
            Some("spec.n: Invalid value: \"integer\": x"),
        ),
        (
            json!({"rule": "self == 8", "messageExpression": "'a\\nb'"}),
            Some("spec.n: Invalid value: \"integer\": failed rule: self == 8"),
        ),
        (
            json!({"rule": "self == 8", "messageExpression": "string(self / 0)", "message": "x"}),
            Some("spec.n: Invalid value: \"integer\": x"),
        ),
        (
            json!({"rule": "self == 8", "reason": "FieldValueForbidden", "message": "x"}),
            Some("spec.n: Forbidden: x"),
        ),
        (
            json!({"rule": "self == 8", "reason": "FieldValueRequired", "message": "x"}),
            Some("spec.n: Required value: x"),
        ),
        (
            json!({"rule": "self == 8", "reason": "FieldValueDuplicate", "message": "x"}),
            Some("spec.n: Duplicate value: \"integer\""),
        ),
        (
            json!({"rule": "self == 8", "reason": "FieldValueInvalid", "message": "x"}),
            Some("spec.n: Invalid value: \"integer\": x"),
        ),
        (
            json!({"rule": "self / 0 == 1", "message": "x"}),
            Some("spec.n: Invalid value: \"integer\": division by zero evaluating rule: x"),
        ),
        // There was no value before: nothing to compare with.
        (json!({"rule": "self < oldSelf"}), None),
        (json!({"rule": "!oldSelf.hasValue()", "optionalOldSelf": true}), None),
        (
            json!({"rule": "oldSelf.hasValue()", "optionalOldSelf": true}),
            Some("spec.n: Invalid value: \"integer\": failed rule: oldSelf.hasValue()"),
        ),
    ] {
        let expected: Vec<&str> = expected.into_iter().collect();
        assert_eq!(of_rule(rule.clone()), expected, "{rule}");
    }
    let broken = of_rule(json!({"rule": "self.x"}));
    assert!(
        broken[0]
            .starts_with("spec.n: Invalid value: \"integer\": rule compile error: compilation failed: ERROR")
    );
    let port = json!({"p": {"x-kubernetes-int-or-string": true, RULES: [{"rule": "self + 1 > 0"}]}});
    assert_eq!(
        found(&schema(port), &spec(json!({"p": "a"})), None).0,
        [
            "spec.p: Invalid value: \"\": 'no such overload: _+_(string, int)': call arguments did not match a supported operator, \
             function or macro signature for rule: self + 1 > 0"
        ]
    );
}

#[test]
fn rules_stand_everywhere_and_tell_their_place() {
    let rule = |text: &str| json!([{"rule": text}]);
    let number = json!({"type": "integer", RULES: rule("self > 0")});
    let mut whole = schema(json!({
        "map": {"type": "object", "additionalProperties": number}, "list": {"type": "array", "items": number},
        "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true,
            RULES: rule("self.kind == 'Pod' && self.metadata.name.startsWith('p')")},
        "labels": {"type": "object", "additionalProperties": {"type": "string"},
            RULES: [{"rule": "false", "message": "m", "fieldPath": "['a.b']"}]},
        "null": {"type": "integer", "nullable": true, RULES: rule("false")}}));
    whole[RULES] =
        rule("self.kind == 'Widget' && self.metadata.name.size() > 3 && self.metadata.generateName == ''");
    whole["properties"]["spec"][RULES] = json!([{"rule": "has(self.map)", "fieldPath": ".map"}]);
    let new = spec(json!({"map": {"a": 1, "b": 0}, "list": [1, -1], "null": null, "labels": {},
        "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "q"}}}));
    let (errors, _) = found(&whole, &new, None);
    let places: Vec<&str> = errors.iter().map(|error| error.split(": ").next().unwrap()).collect();
    assert_eq!(
        places,
        ["<nil>", "spec.labels.[a.b]", "spec.list[1]", "spec.map[b]", "spec.pod"],
        "{errors:?}"
    );
    let (errors, _) = found(&whole, &spec(json!({})), None);
    assert!(
        errors[1].starts_with("spec.map: Invalid value: \"object\": failed rule: has(self.map)"),
        "{errors:?}"
    );
}

#[test]
fn transitions_follow_what_corresponds() {
    let kept = json!([{"rule": "self == oldSelf", "message": "fixed"}]);
    let fixed = json!({"type": "string", RULES: kept});
    let item = json!({"type": "object", "properties": {"k": {"type": "string"}, "v": fixed}});
    let schema = schema(json!({
        "v": fixed, "map": {"type": "object", "additionalProperties": fixed},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item},
        "once": {"type": "object", "properties": {"v": {"type": "string"}}, RULES: [
            {"rule": "!oldSelf.hasValue() || !has(oldSelf.value().v) || has(self.v)", "optionalOldSelf": true}]}}));
    let old = spec(
        json!({"v": "a", "map": {"x": "a"}, "list": [{"k": "1", "v": "a"}, {"k": "2", "v": "b"}], "once": {"v": "x"}}),
    );
    let same = spec(json!({"v": "a", "map": {"x": "a", "y": "new"},
        "list": [{"k": "2", "v": "b"}, {"k": "3", "v": "new"}, {"k": "1", "v": "a"}], "once": {"v": "y"}}));
    assert_eq!(found(&schema, &same, Some(&old)), (vec![], vec![]));
    let other = spec(json!({"v": "b", "map": {"x": "b"}, "list": [{"k": "2", "v": "c"}], "once": {}}));
    let (errors, warnings) = found(&schema, &other, Some(&old));
    let places: Vec<&str> = errors.iter().map(|error| error.split(": ").next().unwrap()).collect();
    assert_eq!(places, ["spec.list[0].v", "spec.map[x]", "spec.once", "spec.v"]);
    assert!(warnings.is_empty());
    assert_eq!(found(&schema, &other, None), (vec![], vec![]));
}

#[test]
fn what_did_not_change_is_told_and_let_pass() {
    let positive = json!([{"rule": "self > 0", "message": "positive"}]);
    let number = json!({"type": "integer", RULES: positive});
    let item = json!({"type": "object", "properties": {"k": {"type": "string"}, "n": number}});
    let schema = schema(json!({
        "a": number, "b": number, "plain": {"type": "array", "items": number},
        "keyed": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item},
        "atomic": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"n": number, "m": {"type": "integer"}}}}));
    let old =
        spec(json!({"a": -1, "b": 1, "plain": [-1], "keyed": [{"k": "x", "n": -1}], "atomic": {"n": -1}}));
    let (errors, warnings) = found(&schema, &old, Some(&old));
    assert!(errors.is_empty());
    assert_eq!(warnings.len(), 4);
    assert_eq!(warnings[0], "spec.a: Invalid value: \"integer\": positive");
    // A change elsewhere changes nothing about them; items without keys are new ones where their list changed.
    let new =
        spec(json!({"a": -1, "b": -2, "plain": [-1, 1], "keyed": [{"k": "y", "n": 1}, {"k": "x", "n": -1}],
        "atomic": {"n": -1, "m": 1}}));
    let (errors, warnings) = found(&schema, &new, Some(&old));
    let places: Vec<&str> = errors.iter().map(|error| error.split(": ").next().unwrap()).collect();
    assert_eq!(places, ["spec.atomic.n", "spec.b", "spec.plain[0]"]);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
}

#[test]
fn budgets_end_the_evaluation() {
    let dear = "self.all(x, self.all(y, x == y))";
    let list = |rule: &str| json!({"type": "array", "items": {"type": "integer"}, RULES: [{"rule": rule}, {"rule": "false"}]});
    let many: Vec<u32> = vec![1; 1000];
    let schema_of = |count: usize| {
        let lists = (0..count).map(|index| (format!("l{index:02}"), list(dear)));
        schema(Value::Object(lists.collect()))
    };
    let (errors, _) = found(&schema_of(1), &spec(json!({"l00": many})), None);
    assert_eq!(
        errors,
        [format!(
            "spec.l00: Invalid value: \"array\": 'operation cancelled: actual cost limit exceeded': no further validation \
             rules will be run due to call cost exceeds limit for rule: {dear}"
        )]
    );
    // Each within its own limit, all together not.
    let less: Vec<u32> = vec![1; 380];
    let lists: Map<String, Value> = (0..40).map(|index| (format!("l{index:02}"), json!(less))).collect();
    let (errors, _) = found(&schema_of(40), &spec(Value::Object(lists)), None);
    let last = errors.last().unwrap();
    assert!(last.ends_with(OUT_OF_BUDGET), "{last}");
    assert!(
        errors.len() < 40
            && errors[..errors.len() - 1].iter().all(|error| error.ends_with("failed rule: false"))
    );
}

#[test]
fn what_has_no_rules_has_no_tree() {
    assert!(Validations::of_resource(&schema(json!({"a": {"type": "string"}}))).is_none());
    let tree = Validations::of_resource(&schema(json!({"a": {"type": "string", RULES: [{"rule": "true"}]},
        "b": {"type": "object", "properties": {"c": {"type": "string"}}}})));
    assert_eq!(tree.unwrap().properties["spec"].properties.keys().collect::<Vec<_>>(), ["a"]);
}
