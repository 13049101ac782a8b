//! Rules of custom resources (`x-kubernetes-validations`), from the definition to the object.

use crate::crds::{CRDS, WIDGETS, change, definition, establish, widget};
use crate::harness::*;
use serde_json::{Value, json};

/// A definition whose `spec` and the fields in it have rules.
fn ruled() -> Value {
    let mut ruled = definition("widgets", "Widget");
    let schema = &mut ruled["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    schema["x-kubernetes-validations"] =
        json!([{"rule": "self.metadata.name.size() < 10", "message": "short names"}]);
    schema["properties"]["spec"]["x-kubernetes-validations"] = json!([
        {"rule": "!has(self.replicas) || self.size <= self.replicas", "fieldPath": ".size",
            "messageExpression": "'at most %d'.format([self.replicas])"},
        {"rule": "self.color == oldSelf.color", "message": "color is fixed", "reason": "FieldValueForbidden", "fieldPath": ".color"}]);
    schema["properties"]["status"]["x-kubernetes-validations"] =
        json!([{"rule": "!has(self.replicas) || self.replicas >= 0", "message": "not negative"}]);
    ruled
}

fn causes(refused: &Value) -> Vec<(&str, &str, &str)> {
    let causes = refused["details"]["causes"].as_array().unwrap().iter();
    causes
        .map(|c| {
            (c["field"].as_str().unwrap(), c["reason"].as_str().unwrap(), c["message"].as_str().unwrap())
        })
        .collect()
}

#[tokio::test]
async fn rules_are_evaluated() {
    let s = start().await;
    let made = establish(&s, &ruled()).await;
    assert!(made["status"]["conditions"].is_array());
    let refused = s.post(WIDGETS, &widget("a", json!({"size": 3, "replicas": 2}))).await.expect(422);
    assert_eq!(
        causes(&refused),
        [("spec.size", "FieldValueInvalid", "Invalid value: \"object\": at most 2")]
    );
    assert_eq!(
        refused["message"],
        "Widget.example.com \"a\" is invalid: spec.size: Invalid value: \"object\": at most 2"
    );
    let refused = s.post(WIDGETS, &widget("a-long-name", json!({"size": 1}))).await.expect(422);
    assert_eq!(causes(&refused), [("<nil>", "FieldValueInvalid", "Invalid value: \"object\": short names")]);
    // Where the form is wrong, the rules are not asked.
    let refused = s.post(WIDGETS, &widget("a", json!({"replicas": 0}))).await.expect(422);
    let told = causes(&refused);
    assert_eq!(told[0].0, "spec.size");
    assert_eq!(
        told[1],
        (
            "<nil>",
            "FieldValueInvalid",
            "Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"
        )
    );
    assert_eq!(told.len(), 2);
    let made = s.post(WIDGETS, &widget("a", json!({"size": 1, "replicas": 2}))).await.expect(201);
    // Updates, patches and applies, and of each part its own.
    let path = format!("{WIDGETS}/a");
    let mut other = made.clone();
    other["spec"]["color"] = "blue".into();
    let fixed = [("spec.color", "FieldValueForbidden", "Forbidden: color is fixed")];
    assert_eq!(causes(&s.put(&path, &other).await.expect(422)), fixed);
    let patch = json!({"spec": {"color": "blue"}});
    assert_eq!(causes(&s.patch(&path, "merge-patch+json", &patch).await.expect(422)), fixed);
    let apply =
        json!({"apiVersion": "example.com/v1", "kind": "Widget", "spec": {"size": 1, "color": "blue"}});
    let applied = s.patch(&format!("{path}?fieldManager=m&force=true"), "apply-patch+yaml", &apply).await;
    assert_eq!(causes(&applied.expect(422)), fixed);
    let negative = json!({"status": {"replicas": -1}});
    let refused = s.patch(&format!("{path}/status"), "merge-patch+json", &negative).await.expect(422);
    assert_eq!(
        causes(&refused),
        [
            (".status.replicas", "FieldValueInvalid", "Invalid value: -1: should be a non-negative integer"),
            ("status", "FieldValueInvalid", "Invalid value: \"object\": not negative")
        ]
    );
    s.patch(&format!("{path}/scale"), "merge-patch+json", &json!({"spec": {"replicas": 0}}))
        .await
        .expect(422);
    s.patch(&format!("{path}/scale"), "merge-patch+json", &json!({"spec": {"replicas": 5}}))
        .await
        .expect(200);
}

#[tokio::test]
async fn what_breaks_a_new_rule_as_before_is_told_and_let_pass() {
    let s = start().await;
    establish(&s, &definition("widgets", "Widget")).await;
    s.post(WIDGETS, &widget("a", json!({"size": 3, "replicas": 2}))).await.expect(201);
    change(&s, "widgets.example.com", |d| {
        let schema = &mut d["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        schema["properties"]["spec"]["x-kubernetes-validations"] =
            json!([{"rule": "self.size < 3", "message": "small"}]);
        schema["properties"]["spec"]["properties"]["replicas"]["minimum"] = 3.into();
    })
    .await;
    let path = format!("{WIDGETS}/a");
    let labelled = s.patch(&path, "merge-patch+json", &json!({"metadata": {"labels": {"a": "b"}}})).await;
    let warnings = labelled.warnings();
    assert!(
        warnings.iter().any(|w| w.contains("spec: Invalid value: \\\"object\\\": small")),
        "{warnings:?}"
    );
    labelled.expect(200);
    let refused = s.patch(&path, "merge-patch+json", &json!({"spec": {"size": 4}})).await.expect(422);
    assert_eq!(causes(&refused), [("spec", "FieldValueInvalid", "Invalid value: \"object\": small")]);
    s.patch(&path, "merge-patch+json", &json!({"spec": {"size": 2}})).await.expect(200);
}

#[tokio::test]
async fn rules_are_checked_when_a_definition_is_written() {
    let s = start().await;
    let with = |rule: Value| {
        let mut d = definition("widgets", "Widget");
        let schema = &mut d["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        schema["properties"]["spec"]["x-kubernetes-validations"] = json!([rule]);
        d
    };
    let rules = "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0]";
    for (rule, field, message) in [
        (
            json!({"rule": "self.z == 1"}),
            "rule",
            "compilation failed: ERROR: <input>:1:5: undefined field 'z'",
        ),
        (json!({"rule": "self.size >"}), "rule", "compilation failed: ERROR: <input>:1:12: Syntax error"),
        (json!({"rule": "self.size"}), "rule", "cel expression must evaluate to a bool"),
        (json!({"rule": ""}), "rule", "Required value: rule is not specified"),
        (
            json!({"rule": "self.tags.all(a, self.tags.all(b, a == b))"}),
            "rule",
            "Forbidden: estimated rule cost exceeds budget by factor of more than 100x",
        ),
        (
            json!({"rule": "true", "messageExpression": "self.size"}),
            "messageExpression",
            "messageExpression must evaluate to a string",
        ),
        (
            json!({"rule": "true", "fieldPath": ".none"}),
            "fieldPath",
            "Invalid value: \".none\": fieldPath must be a valid path: does not refer to a valid field",
        ),
        (
            json!({"rule": "true", "reason": "Other"}),
            "reason",
            "Unsupported value: \"Other\": supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\"",
        ),
        (json!({"rule": "true\n"}), "none", ""),
        (
            json!({"rule": "true &&\ntrue"}),
            "message",
            "Required value: message must be specified if rule contains line breaks",
        ),
    ] {
        let answer = s.post(&format!("{CRDS}?dryRun=All"), &with(rule.clone())).await;
        if field == "none" {
            answer.expect(201);
            continue;
        }
        let refused = answer.expect(422);
        let told = causes(&refused);
        assert_eq!(told[0].0, format!("{rules}.{field}"), "{rule}: {told:?}");
        assert!(told[0].2.contains(message), "{rule}: {told:?}");
    }
    // Two versions with schemas of their own are named apart.
    let mut two = with(json!({"rule": "self.z == 1"}));
    let mut second = definition("widgets", "Widget")["spec"]["versions"][0].clone();
    (second["name"], second["storage"]) = ("v2".into(), false.into());
    two["spec"]["versions"].as_array_mut().unwrap().push(second);
    let refused = s.post(CRDS, &two).await.expect(422);
    assert_eq!(
        causes(&refused)[0].0,
        "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule"
    );
}
