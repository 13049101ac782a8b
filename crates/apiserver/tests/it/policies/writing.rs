//! What is told when a policy is written.

use super::{GROUP, define, maps, rule, start, with};
use serde_json::{Value, json};

#[tokio::test]
async fn wrong_policies_are_refused() {
    let server = start().await;
    let causes = async |kind: &str, spec: Value| {
        let spec = with(json!({"matchConstraints": {"resourceRules": [maps()]}}), &spec);
        let path = format!("{GROUP}/{kind}admissionpolicies");
        let refused = server.post(&path, &json!({"metadata": {"name": "p"}, "spec": spec})).await.expect(422);
        let causes = refused["details"]["causes"].as_array().unwrap().iter();
        causes
            .map(|c| (c["field"].as_str().unwrap().to_owned(), c["message"].as_str().unwrap().to_owned()))
            .collect::<Vec<_>>()
    };
    let invalid = |value: &str, why: &str| format!("Invalid value: {value:?}: {why}");
    let found = causes("validating", json!({"validations": [
        {"expression": "object.a", "messageExpression": "1"}, {"expression": "true", "messageExpression": "authorizer.path('/').check('get').reason()"}],
        "auditAnnotations": [{"key": "k", "valueExpression": "1"}]}))
    .await;
    assert_eq!(
        found[0],
        ("spec.validations[0].expression".into(), invalid("object.a", "must evaluate to bool but got dyn"))
    );
    assert_eq!(
        found[1],
        ("spec.validations[0].messageExpression".into(), invalid("1", "must evaluate to string but got int"))
    );
    assert_eq!(found[2].0, "spec.validations[1].messageExpression");
    assert!(found[2].1.contains("undeclared reference to 'authorizer' (in container '')"), "{found:?}");
    let why = invalid("1", "must evaluate to one of [string null_type] but got int");
    assert_eq!(found[3], ("spec.auditAnnotations[0].valueExpression".into(), why));
    let found = causes("validating", json!({"variables": [{"name": "a", "expression": "variables.b"}, {"name": "b", "expression": "1 +"}],
        "matchConditions": [{"name": "c", "expression": "variables.a == 1"}], "validations": [{"expression": "params.a == 1"}]}))
    .await;
    let places: Vec<&str> = found.iter().map(|(place, _)| place.as_str()).collect();
    assert_eq!(
        places,
        [
            "spec.matchConditions[0].expression",
            "spec.variables[0].expression",
            "spec.variables[1].expression",
            "spec.validations[0].expression"
        ]
    );
    for (index, why) in [
        (0, "undeclared reference to 'variables' (in container '')"),
        (1, "undefined field 'b'"),
        (2, "compilation failed: ERROR: <input>:1:4: Syntax error: mismatched input '<EOF>'"),
        (3, "undeclared reference to 'params' (in container '')"),
    ] {
        assert!(found[index].1.contains(why), "{found:?}");
    }
    let rules = json!({"resourceRules": [rule(&["CREATE"], "", "v1", &["configmaps"])]});
    let found = causes(
        "mutating",
        json!({"matchConstraints": rules, "reinvocationPolicy": "Never", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "{'a': 1}"}},
        {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{nope: 1}]"}},
        {"patchType": "JSONPatch", "jsonPatch": {"expression": "Object{}"}}]}),
    )
    .await;
    assert_eq!(found[0].1, invalid("{'a': 1}", "must evaluate to Object but got map(string, int)"));
    assert!(found[1].1.contains("undefined field 'nope'"), "{found:?}");
    assert_eq!(found[2].1, invalid("Object{}", "must evaluate to list(JSONPatch) but got Object"));
    assert_eq!(found[2].0, "spec.mutations[2].jsonPatch.expression");
}

#[tokio::test]
async fn types_of_expressions_are_checked_into_the_status() {
    let server = start().await;
    define(&server).await;
    let policies = format!("{GROUP}/validatingadmissionpolicies");
    let rules = json!([
        rule(&["CREATE"], "apps", "v1", &["deployments", "deployments/scale"]),
        rule(&["*"], "example.com", "v1", &["limits"])
    ]);
    let spec = json!({"matchConstraints": {"resourceRules": rules}, "paramKind": {"apiVersion": "example.com/v1", "kind": "Limit"},
        "variables": [{"name": "max", "expression": "params.data.max"}],
        "validations": [
            {"expression": "object.spec.replicas > 1 || oldObject.data.max == 1", "messageExpression": "'a' + variables.max"},
            {"expression": "object.metadata.labels['a'] == 'b' && variables.max > 1"},
            {"expression": "params.data.min > 0"}]});
    let mut watch = server.watch(&format!("{policies}?watch=true")).await;
    server.post(&policies, &json!({"metadata": {"name": "typed"}, "spec": spec})).await.expect(201);
    let status = async |watch: &mut crate::harness::Watch, generation: u64| loop {
        let object = watch.next().await.unwrap()["object"].take();
        if object["status"]["observedGeneration"] == generation {
            return object["status"].clone();
        }
    };
    let found = status(&mut watch, 1).await["typeChecking"]["expressionWarnings"].take();
    let places: Vec<&str> =
        found.as_array().unwrap().iter().map(|w| w["fieldRef"].as_str().unwrap()).collect();
    assert_eq!(
        places,
        [
            "spec.validations[0].expression",
            "spec.validations[0].messageExpression",
            "spec.validations[2].expression"
        ]
    );
    let text = |index: usize| found[index]["warning"].as_str().unwrap();
    assert_eq!(
        text(0),
        "apps/v1, Kind=Deployment: ERROR: <input>:1:38: undefined field 'data'\n | object.spec.replicas > 1 || oldObject.data.max == 1\n | .....................................^\n\n\
         example.com/v1, Kind=Limit: ERROR: <input>:1:7: undefined field 'spec'\n | object.spec.replicas > 1 || oldObject.data.max == 1\n | ......^\n"
    );
    assert!(text(1).contains("found no matching overload for '_+_' applied to '(string, int)'"), "{found}");
    assert!(text(2).contains("undefined field 'min'"), "{found}");
    // What is right has nothing to be told, and the status follows the generation.
    let right = json!({"spec": {"validations": [{"expression": "object.metadata.name != ''"}]}});
    server.patch(&format!("{policies}/typed"), "merge-patch+json", &right).await.expect(200);
    assert_eq!(status(&mut watch, 2).await["typeChecking"]["expressionWarnings"], Value::Null);
}
