//! Custom resources by their definitions.

use crate::harness::*;
use serde_json::{Value, json};
use std::sync::Arc;

pub const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
pub const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn schema() -> Value {
    json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1}, "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
            "replicas": {"type": "integer"}, "note": {"type": "string", "nullable": true},
            "port": {"x-kubernetes-int-or-string": true},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
            "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "weight": {"type": "integer", "default": 1}}}},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}}}})
}

fn version(name: &str, storage: bool) -> Value {
    json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema()},
        "selectableFields": [{"jsonPath": ".spec.color"}],
        "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            {"name": "First", "type": "string", "jsonPath": ".spec.parts[?(@.name==\"a\")].weight", "priority": 1}],
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}}})
}

pub fn definition(plural: &str, kind: &str) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.example.com")},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind}, "versions": [version("v1", true)]}})
}

pub fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

fn condition(definition: &Value, kind: &str) -> (String, String) {
    let found =
        definition["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind);
    let text = |field: &str| found.and_then(|c| c[field].as_str()).unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

/// The definition, once its condition is as wanted.
async fn until(s: &Server, name: &str, kind: &str, wanted: (&str, &str)) -> Value {
    let mut watch = s.watch(&format!("{CRDS}?watch=true&fieldSelector=metadata.name={name}")).await;
    loop {
        let event = watch.next().await.expect("an event");
        let (status, reason) = condition(&event["object"], kind);
        if (status.as_str(), reason.as_str()) == wanted {
            return event["object"].clone();
        }
    }
}

pub async fn establish(s: &Server, definition: &Value) -> Value {
    s.post(CRDS, definition).await.expect(201);
    let name = definition["metadata"]["name"].as_str().unwrap();
    until(s, name, "Established", ("True", "InitialNamesAccepted")).await
}

/// Deletes a definition, and waits until it is gone.
pub async fn remove(s: &Server, name: &str) {
    let mut watch = s.watch(&format!("{CRDS}?watch=true&fieldSelector=metadata.name={name}")).await;
    s.delete(&format!("{CRDS}/{name}")).await.expect(200);
    while watch.event().await.0 != "DELETED" {}
}

/// Replaces a definition, by what a change makes of the one that is there, and waits for its rows.
pub async fn change(s: &Server, name: &str, change: impl Fn(&mut Value)) -> Value {
    let path = format!("{CRDS}/{name}");
    loop {
        let generation = s.api.kinds().snapshot().generation;
        let mut now = s.get(&path).await.expect(200);
        change(&mut now);
        let answer = s.put(&path, &now).await;
        if answer.code != 409 {
            s.api.kinds().changed(generation).await;
            return answer.expect(200);
        }
    }
}

/// Replaces a definition that has no rows.
async fn change_unserved(s: &Server, name: &str, change: impl Fn(&mut Value)) {
    let path = format!("{CRDS}/{name}");
    loop {
        let mut now = s.get(&path).await.expect(200);
        change(&mut now);
        let answer = s.put(&path, &now).await;
        if answer.code != 409 {
            answer.expect(200);
            return;
        }
    }
}

#[tokio::test]
async fn a_definition_is_served_once_established() {
    let s = start_assembled(Arc::new(skeg_store::Memory::new())).await;
    let groups = s.get("/apis").await.expect(200)["groups"].clone();
    assert!(groups.as_array().unwrap().iter().any(|group| group["name"] == "apiextensions.k8s.io"));
    assert_eq!(s.get("/apis/apiextensions.k8s.io").await.expect(200)["preferredVersion"]["version"], "v1");
    let list = s.get("/apis/apiextensions.k8s.io/v1").await.expect(200);
    assert_eq!(list["resources"][0]["name"], "customresourcedefinitions");
    let made = establish(&s, &definition("widgets", "Widget")).await;
    assert_eq!(condition(&made, "NamesAccepted"), ("True".into(), "NoConflicts".into()));
    assert_eq!(made["status"]["acceptedNames"]["listKind"], "WidgetList");
    assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
    let made = s.post(WIDGETS, &widget("a", json!({"size": 3}))).await.expect(201);
    assert_eq!(made["spec"], json!({"size": 3, "color": "red"}));
    let list = s.get("/apis/example.com/v1").await.expect(200);
    let names: Vec<_> =
        list["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["widgets", "widgets/scale", "widgets/status"]);
    let document = s.get("/openapi/v3/apis/example.com/v1").await.expect(200);
    let schema = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["minimum"], 1);
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = s.send("GET", WIDGETS, &accept, "").await.expect(200);
    let headers: Vec<_> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(headers, ["Name", "Size", "First"]);
    assert_eq!(table["rows"][0]["cells"], json!(["a", 3, null]));
}

#[tokio::test]
async fn objects_are_pruned_defaulted_and_validated() {
    let s = start().await;
    establish(&s, &definition("widgets", "Widget")).await;
    let spec = json!({"size": 2, "odd": 1, "color": null, "note": null, "port": "http", "any": {"x": {"y": null}},
        "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "odd": 1}, "spec": {"x": 1}},
        "parts": [{"name": "a"}]});
    let answer = s.post(WIDGETS, &widget("a", spec.clone())).await;
    let warnings = answer.warnings();
    assert!(warnings.iter().any(|w| w.contains("unknown field \\\"spec.odd\\\"")), "{warnings:?}");
    let made = answer.expect(201);
    assert_eq!(
        made["spec"],
        json!({"size": 2, "color": "red", "note": null, "port": "http", "any": {"x": {"y": null}},
        "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"x": 1}},
        "parts": [{"name": "a", "weight": 1}]})
    );
    let refused = s.post(&format!("{WIDGETS}?fieldValidation=Strict"), &widget("b", spec)).await;
    assert_eq!(refused.code, 400, "{}", refused.text());
    for (spec, field, message) in [
        (json!({}), "spec.size", "Required value"),
        (
            json!({"size": "x"}),
            "spec.size",
            "Invalid value: \"string\": spec.size in body must be of type integer: \"string\"",
        ),
        (
            json!({"size": 0}),
            "spec.size",
            "Invalid value: 0: spec.size in body should be greater than or equal to 1",
        ),
        (
            json!({"size": 1, "color": "green"}),
            "spec.color",
            "Unsupported value: \"green\": supported values: \"red\", \"blue\"",
        ),
        (json!({"size": 1, "tags": ["a", "a"]}), "spec.tags[1]", "Duplicate value: \"a\""),
        (json!({"size": 1, "pod": {"kind": "Pod"}}), "spec.pod.apiVersion", "Required value"),
    ] {
        let refused = s.post(WIDGETS, &widget("b", spec)).await.expect(422);
        let cause = &refused["details"]["causes"][0];
        assert_eq!((&cause["field"], &cause["message"]), (&json!(field), &json!(message)));
    }
    // An update is not refused for what it leaves as it was.
    change(&s, "widgets.example.com", |d| {
        d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["size"]["minimum"] = 5.into();
    })
    .await;
    s.patch(&format!("{WIDGETS}/a"), "merge-patch+json", &json!({"spec": {"size": 4}})).await.expect(422);
    s.patch(&format!("{WIDGETS}/a"), "merge-patch+json", &json!({"spec": {"color": "blue"}}))
        .await
        .expect(200);
}

#[tokio::test]
async fn objects_name_their_kind_and_so_do_those_within() {
    let s = start().await;
    establish(&s, &definition("widgets", "Widget")).await;
    let told = |status: &Value| status["message"].as_str().unwrap().to_owned();
    let spec = json!({"size": 1});
    let refused = s.post(WIDGETS, &json!({"metadata": {"name": "a"}, "spec": spec})).await.expect(400);
    assert!(told(&refused).contains("Object 'Kind' is missing in '{\"metadata\""), "{refused}");
    let kind_alone = json!({"kind": "Widget", "metadata": {"name": "a"}, "spec": spec});
    let refused = s.post(WIDGETS, &kind_alone).await.expect(400);
    let differs = "the API version in the data () does not match the expected API version (example.com/v1)";
    assert_eq!(told(&refused), differs);
    let mut other = widget("a", spec.clone());
    other["kind"] = "Bar".into();
    let cause = |refused: &Value| {
        let cause = &refused["details"]["causes"][0];
        (cause["field"].clone(), cause["message"].clone())
    };
    let must = (json!("kind"), json!("Invalid value: \"Bar\": must be Widget"));
    assert_eq!(cause(&s.post(WIDGETS, &other).await.expect(422)), must);
    // Updates and patches of what is there.
    s.post(WIDGETS, &widget("a", json!({"size": 1.0}))).await.expect(201);
    let path = format!("{WIDGETS}/a");
    assert!(s.get(&path).await.text().contains("\"size\":1}"), "whole numbers have no fraction");
    assert_eq!(told(&s.put(&path, &kind_alone).await.expect(400)), differs);
    let mut moved = s.get(&path).await.expect(200);
    moved["kind"] = "Bar".into();
    assert_eq!(cause(&s.put(&path, &moved).await.expect(422)), must);
    assert_eq!(cause(&s.patch(&path, "merge-patch+json", &json!({"kind": "Bar"})).await.expect(422)), must);
    let refused = s.patch(&path, "merge-patch+json", &json!({"kind": null})).await.expect(422);
    assert!(told(&refused).contains("Object 'Kind' is missing in "), "{refused}");
    // What is embedded is an object of its own.
    for (pod, code, why) in [
        (
            json!({"apiVersion": "a/b/c", "kind": "X Y", "metadata": {"name": "a/b"}}),
            422,
            "spec.pod.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a b": "c"}}}),
            422,
            "spec.pod.metadata.labels: Invalid value: \"a b\": ",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": 1}}}),
            400,
            "Widget in version \"v1\" cannot be handled as a Widget: spec.pod.metadata: Invalid value: ",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": []}),
            400,
            "json: cannot unmarshal array into Go value of type v1.ObjectMeta",
        ),
    ] {
        let refused = s.post(WIDGETS, &widget("b", json!({"size": 1, "pod": pod}))).await.expect(code);
        assert!(told(&refused).contains(why), "{refused}");
        let patch = json!({"spec": {"pod": pod}});
        s.patch(&path, "merge-patch+json", &patch).await.expect(422);
    }
}

#[tokio::test]
async fn a_definition_whose_webhook_has_no_authority_is_not_served() {
    let s = start().await;
    let mut odd = definition("widgets", "Widget");
    odd["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://127.0.0.1:1", "caBundle": "bm9uc2Vuc2U="}}});
    s.post(CRDS, &odd).await.expect(201);
    let told = until(&s, "widgets.example.com", "Established", ("False", "InvalidCABundle")).await;
    let conditions = told["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["message"] == "The conversion webhook CABundle is invalid"));
    assert_eq!(s.get(WIDGETS).await.code, 404);
    change_unserved(&s, "widgets.example.com", |d| {
        d["spec"]["conversion"]["webhook"]["clientConfig"].as_object_mut().unwrap().remove("caBundle");
    })
    .await;
    until(&s, "widgets.example.com", "Established", ("True", "InitialNamesAccepted")).await;
    s.get(WIDGETS).await.expect(200);
}

#[tokio::test]
async fn apply_merges_lists_by_their_keys() {
    let s = start().await;
    establish(&s, &definition("widgets", "Widget")).await;
    let path = format!("{WIDGETS}/a");
    let part = |name: &str, weight: i64| {
        widget("a", json!({"size": 1, "parts": [{"name": name, "weight": weight}]}))
    };
    s.apply(&path, "one", &part("a", 1)).await.expect(201);
    let both = s.apply(&path, "two", &part("b", 2)).await.expect(200);
    assert_eq!(both["spec"]["parts"], json!([{"name": "a", "weight": 1}, {"name": "b", "weight": 2}]));
    let refused = s.apply(&path, "two", &part("a", 7)).await.expect(409);
    assert_eq!(refused["details"]["causes"][0]["field"], ".spec.parts[name=\"a\"].weight");
}

#[tokio::test]
async fn duplicates_in_preserved_fields_are_told() {
    let s = start().await;
    let mut lenient = definition("widgets", "Widget");
    lenient["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    for field in ["selectableFields", "additionalPrinterColumns", "subresources"] {
        lenient["spec"]["versions"][0].as_object_mut().unwrap().remove(field);
    }
    establish(&s, &lenient).await;
    let twice = "apiVersion: example.com/v1\nkind: Widget\nmetadata:\n  name: a\nspec:\n  foo: 1\n  foo: 2\n";
    let apply = [("content-type", "application/apply-patch+yaml")];
    let path = format!("{WIDGETS}/a?fieldManager=m");
    let told = s.send("PATCH", &format!("{path}&fieldValidation=Strict"), &apply, twice).await.expect(400);
    assert!(told["message"].as_str().unwrap().contains("key \"foo\" already set in map"), "{told}");
    let warned = s.send("PATCH", &path, &apply, twice).await;
    assert_eq!(warned.warnings(), ["299 - \"line 7: key \\\"foo\\\" already set in map\""]);
    assert_eq!(warned.expect(201)["spec"]["foo"], 2);
}

#[tokio::test]
async fn status_and_scale_are_written_apart() {
    let s = start().await;
    establish(&s, &definition("widgets", "Widget")).await;
    s.post(WIDGETS, &widget("a", json!({"size": 1, "replicas": 2}))).await.expect(201);
    let status = json!({"metadata": {"labels": {"x": "y"}}, "spec": {"size": 9}, "status": {"replicas": 2, "selector": "app=a"}});
    let got = s.patch(&format!("{WIDGETS}/a/status"), "merge-patch+json", &status).await.expect(200);
    assert_eq!((&got["spec"]["size"], &got["status"]["selector"]), (&json!(1), &json!("app=a")));
    assert_eq!((got["metadata"].get("labels"), &got["metadata"]["generation"]), (None, &json!(1)));
    let scale = s.get(&format!("{WIDGETS}/a/scale")).await.expect(200);
    assert_eq!(
        (&scale["spec"], &scale["status"]),
        (&json!({"replicas": 2}), &json!({"replicas": 2, "selector": "app=a"}))
    );
    let scaled =
        s.patch(&format!("{WIDGETS}/a/scale"), "merge-patch+json", &json!({"spec": {"replicas": 5}})).await;
    assert_eq!(scaled.expect(200)["spec"]["replicas"], 5);
    let got = s.get(&format!("{WIDGETS}/a")).await.expect(200);
    assert_eq!(got["spec"]["replicas"], 5);
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "a"}, "spec": {"replicas": 7}});
    let path = format!("{WIDGETS}/a/scale");
    let refused = s.apply(&path, "scaler", &scale).await.expect(409);
    assert_eq!(refused["details"]["causes"][0]["field"], ".spec.replicas");
    let applied = s.apply(&format!("{path}?force=true"), "scaler", &scale).await.expect(200);
    assert_eq!(applied["spec"]["replicas"], 7);
}

#[tokio::test]
async fn defaults_reach_stored_objects_and_versions_differ_in_name() {
    let store = Arc::new(skeg_store::Memory::new());
    let s = start_on(store.clone()).await;
    establish(&s, &definition("widgets", "Widget")).await;
    s.post(WIDGETS, &widget("a", json!({"size": 1, "replicas": 3}))).await.expect(201);
    let properties = |d: &mut Value| {
        d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"].take()
    };
    let changed = change(&s, "widgets.example.com", |d| {
        let mut all = properties(d);
        all["added"] = json!({"type": "string", "default": "here"});
        all.as_object_mut().unwrap().remove("replicas");
        d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"] = all;
        let (mut one, two) = (d["spec"]["versions"][0].clone(), version("v2", true));
        one["storage"] = false.into();
        one["subresources"]["scale"]["specReplicasPath"] = ".spec.size".into();
        d["spec"]["versions"] = json!([one, two]);
    })
    .await;
    assert_eq!(changed["status"]["storedVersions"], json!(["v1", "v2"]));
    let two = "/apis/example.com/v2/namespaces/default/widgets";
    let got = s.get(&format!("{two}/a")).await.expect(200);
    assert_eq!((&got["apiVersion"], &got["spec"]["replicas"]), (&json!("example.com/v2"), &json!(3)));
    let got = s.get(&format!("{WIDGETS}/a")).await.expect(200);
    assert_eq!((&got["apiVersion"], got["spec"].get("replicas")), (&json!("example.com/v1"), None));
    // A write that changes nothing brings the record to the new version.
    let before = s.get(&format!("{two}/a")).await.expect(200);
    let written = s.put(&format!("{two}/a"), &before).await.expect(200);
    assert_ne!(written["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"]);
    let again = s.put(&format!("{two}/a"), &written).await.expect(200);
    assert_eq!(again["metadata"]["resourceVersion"], written["metadata"]["resourceVersion"]);
    s.api.stop().await;
    // After a restart the kinds are there with the first request.
    let s = start_on(store).await;
    assert_eq!(s.get(&format!("{two}/a")).await.expect(200)["spec"]["size"], 1);
}

#[tokio::test]
async fn fields_select_objects() {
    let s = start().await;
    establish(&s, &definition("widgets", "Widget")).await;
    for (name, color) in [("a", "red"), ("b", "blue")] {
        s.post(WIDGETS, &widget(name, json!({"size": 1, "color": color}))).await.expect(201);
    }
    let list = s.get(&format!("{WIDGETS}?fieldSelector=spec.color=blue")).await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["metadata"]["name"], "b");
    let refused = s.get(&format!("{WIDGETS}?fieldSelector=spec.size=1")).await.expect(400);
    assert_eq!(refused["message"], "field label not supported: spec.size");
    let mut watch =
        s.watch(&format!("{WIDGETS}?watch=true&resourceVersion=0&fieldSelector=spec.color=blue")).await;
    assert_eq!(watch.event().await, ("ADDED".to_owned(), "b".to_owned()));
    s.patch(&format!("{WIDGETS}/b"), "merge-patch+json", &json!({"spec": {"color": "red"}}))
        .await
        .expect(200);
    assert_eq!(watch.event().await, ("DELETED".to_owned(), "b".to_owned()));
}

#[tokio::test]
async fn names_are_of_one_definition_at_a_time() {
    let s = start().await;
    establish(&s, &definition("widgets", "Widget")).await;
    s.post(CRDS, &definition("others", "Widget")).await.expect(201);
    let other = until(&s, "others.example.com", "NamesAccepted", ("False", "ListKindConflict")).await;
    assert_eq!(condition(&other, "Established"), ("False".into(), "NotAccepted".into()));
    assert_eq!(s.get("/apis/example.com/v1/others").await.code, 404);
    s.delete(&format!("{CRDS}/widgets.example.com")).await.expect(200);
    until(&s, "others.example.com", "Established", ("True", "InitialNamesAccepted")).await;
    assert_eq!(s.get("/apis/example.com/v1/others").await.code, 200);
}

#[tokio::test]
async fn a_definition_takes_its_objects_with_it() {
    let s = start().await;
    establish(&s, &definition("widgets", "Widget")).await;
    let mut held = widget("held", json!({"size": 1}));
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    s.post(WIDGETS, &held).await.expect(201);
    s.post(WIDGETS, &widget("free", json!({"size": 1}))).await.expect(201);
    s.post("/apis/example.com/v1/namespaces/kube-system/widgets", &widget("free", json!({"size": 1})))
        .await
        .expect(201);
    let mut watch = s.watch(&format!("{CRDS}?watch=true")).await;
    s.delete(&format!("{CRDS}/widgets.example.com")).await.expect(200);
    let going = until(&s, "widgets.example.com", "Terminating", ("True", "InstanceDeletionInProgress")).await;
    assert_eq!(going["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    let refused = s.post(WIDGETS, &widget("late", json!({"size": 1}))).await.expect(405);
    assert_eq!(refused["message"], "create not allowed while custom resource definition is terminating");
    s.patch(&format!("{WIDGETS}/held"), "merge-patch+json", &json!({"metadata": {"finalizers": null}}))
        .await
        .expect(200);
    loop {
        if watch.event().await.0 == "DELETED" {
            break;
        }
    }
    assert_eq!(s.get(&format!("{CRDS}/widgets.example.com")).await.code, 404);
    // The kind goes with the next look of who follows the definitions.
    let kinds = s.api.kinds().clone();
    let gvr = skeg_api::Gvr::new("example.com", "v1", "widgets");
    loop {
        let snapshot = kinds.snapshot();
        if snapshot.by_gvr(&gvr).is_none() {
            break;
        }
        kinds.changed(snapshot.generation).await;
    }
    assert_eq!(s.get(WIDGETS).await.code, 404);
}

#[tokio::test]
async fn definitions_are_validated_as_upstreams() {
    let s = start().await;
    let mut wrong = definition("widgets", "Widget");
    wrong["metadata"]["name"] = "x.example.com".into();
    wrong["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = json!({"type": "object", "properties": {
        "a": {}, "b": {"type": "array"}, "d": {"type": "object", "anyOf": [{"type": "object"}]},
        "e": {"type": "string", "pattern": "("}, "metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}});
    let refused = s.post(CRDS, &wrong).await.expect(422);
    let root = "spec.validation.openAPIV3Schema";
    let fields: Vec<&str> = refused["details"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["field"].as_str().unwrap())
        .collect();
    for field in [
        "metadata.name".to_owned(),
        format!("{root}.properties[a].type"),
        format!("{root}.properties[b].items"),
        format!("{root}.properties[d].anyOf[0].type"),
        format!("{root}.properties[e].pattern"),
        format!("{root}.properties[metadata]"),
    ] {
        assert!(fields.contains(&field.as_str()), "{field} of {fields:?}");
    }
    let mut two = definition("widgets", "Widget");
    two["spec"]["versions"] = json!([version("v1", true), version("v2", true)]);
    let refused = s.post(CRDS, &two).await.expect(422);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .ends_with("must have exactly one version marked as storage version")
    );
    let made = establish(&s, &definition("widgets", "Widget")).await;
    let mut moved = made.clone();
    moved["spec"]["scope"] = "Cluster".into();
    let refused = s.put(&format!("{CRDS}/widgets.example.com"), &moved).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "spec.scope");
    let mut ruled = definition("ruleds", "Ruled");
    ruled["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] =
        json!([{"rule": "true"}]);
    ruled["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["note"]["format"] =
        "odd".into();
    let warnings = s.post(CRDS, &ruled).await.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("unrecognized format \\\"odd\\\""), "{warnings:?}");
}

#[tokio::test]
async fn definitions_are_listed_watched_patched_and_deleted_like_other_objects() {
    let s = start().await;
    let mut watch = s.watch(&format!("{CRDS}?watch=true&labelSelector=set=one")).await;
    for (plural, kind, set) in [("as", "A", "one"), ("bs", "B", "one"), ("cs", "C", "two")] {
        let mut labelled = definition(plural, kind);
        labelled["metadata"]["labels"] = json!({"set": set});
        establish(&s, &labelled).await;
    }
    let names = |list: Value| -> Vec<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| d["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let listed = s.get(&format!("{CRDS}?labelSelector=set=one")).await.expect(200);
    assert_eq!(names(listed), ["as.example.com", "bs.example.com"]);
    assert_eq!(watch.event().await, ("ADDED".to_owned(), "as.example.com".to_owned()));
    // Conditions of others stay beside the API server's own.
    let path = format!("{CRDS}/as.example.com/status");
    let own = json!({"type": "Own", "status": "True", "reason": "R", "message": "M"});
    let mut now = s.get(&path).await.expect(200);
    now["status"]["conditions"].as_array_mut().unwrap().push(own.clone());
    assert_eq!(condition(&s.put(&path, &now).await.expect(200), "Own").0, "True");
    let patch = json!([{"op": "replace", "path": "/status/conditions/2/reason", "value": "S"}]);
    let patched = s.patch(&path, "json-patch+json", &patch).await.expect(200);
    assert_eq!(condition(&patched, "Own"), ("True".into(), "S".into()));
    assert_eq!(condition(&patched, "Established").0, "True");
    s.delete(&format!("{CRDS}?labelSelector=set=one")).await.expect(200);
    let mut gone = 0;
    while gone < 2 {
        gone += usize::from(watch.event().await.0 == "DELETED");
    }
    assert_eq!(names(s.get(CRDS).await.expect(200)), ["cs.example.com"]);
}

#[tokio::test]
async fn openapi_follows_the_versions_that_are_served() {
    let s = start_assembled(Arc::new(skeg_store::Memory::new())).await;
    let mut two = definition("widgets", "Widget");
    two["spec"]["versions"] = json!([version("v1", true), version("v2", false)]);
    establish(&s, &two).await;
    let mut other = definition("gadgets", "Gadget");
    other["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    other["spec"]["versions"][0].as_object_mut().unwrap().remove("selectableFields");
    establish(&s, &other).await;
    let mut apart = definition("widgets", "Widget");
    apart["metadata"]["name"] = "widgets.other.org".into();
    apart["spec"]["group"] = "other.org".into();
    establish(&s, &apart).await;
    let schema = async |path: &str, name: &str| {
        let answer = s.get(&format!("/openapi/v3/apis/{path}")).await;
        if answer.code == 200 { answer.json()["components"]["schemas"][name].clone() } else { Value::Null }
    };
    assert!(schema("example.com/v1", "com.example.v1.Widget").await.is_object());
    assert!(schema("example.com/v2", "com.example.v2.Widget").await.is_object());
    assert!(schema("other.org/v1", "org.other.v1.Widget").await.is_object());
    let gadget = schema("example.com/v1", "com.example.v1.Gadget").await;
    assert_eq!(gadget["x-kubernetes-preserve-unknown-fields"], true);
    let html = [("accept", "text/html")];
    for path in ["/openapi/v2", "/openapi/v3", "/openapi/v3/apis/example.com/v1"] {
        assert_eq!(s.send("GET", path, &html, "").await.code, 406, "{path}");
    }
    let v2 = s.get("/openapi/v2").await.expect(200);
    assert!(v2["definitions"]["com.example.v2.Widget"].is_object());
    let index = async || s.get("/openapi/v3").await.expect(200)["paths"].clone();
    let before = index().await;
    // As upstream, which has documents of versions alone here.
    assert!(before.get("apis/other.org").is_none());
    s.get("/openapi/v3/apis/other.org").await.expect(404);
    // One is not served any more, the other has another name.
    change(&s, "widgets.example.com", |d| d["spec"]["versions"][1]["served"] = false.into()).await;
    assert!(schema("example.com/v2", "com.example.v2.Widget").await.is_null());
    assert_eq!(s.get("/apis/example.com/v2/widgets").await.code, 404);
    change(&s, "widgets.example.com", |d| {
        d["spec"]["versions"][1]["served"] = true.into();
        d["spec"]["versions"][1]["name"] = "v3".into();
    })
    .await;
    assert!(schema("example.com/v3", "com.example.v3.Widget").await.is_object());
    let after = index().await;
    assert_eq!(after.get("apis/example.com/v2"), None);
    assert_eq!(after["apis/other.org/v1"], before["apis/other.org/v1"], "what did not change keeps its hash");
    assert!(s.get("/openapi/v2").await.expect(200)["definitions"].get("com.example.v2.Widget").is_none());
}

/// What could not be read again is not stored, whatever way it came.
#[tokio::test]
async fn objects_nest_as_deep_as_they_can_be_read() {
    let s = start().await;
    establish(&s, &definition("widgets", "Widget")).await;
    let nested = |levels: usize| (1..levels).fold(json!({}), |inner, _| json!({ "a": inner }));
    // Two levels around it; four, and one for each level of it, around what its managers' entries end in.
    let deep = |levels: usize| widget("deep", json!({"size": 1, "any": nested(levels)}));
    let status = s.post(WIDGETS, &deep(125)).await.expect(400);
    let told = "object nests deeper than 127 levels, with its managedFields";
    assert_eq!(status["message"], told);
    s.post(WIDGETS, &deep(100)).await.expect(201);
    let deeper = json!([{"op": "add", "path": "/spec/any/b", "value": nested(123)}]);
    let deep = format!("{WIDGETS}/deep");
    assert_eq!(s.patch(&deep, "json-patch+json", &deeper).await.expect(400)["message"], told);
    // Each move puts the whole object one level deeper.
    let step = |i: usize| {
        let (from, to) = (format!("/x{i}"), format!("/x{}", i + 1));
        [
            json!({"op": "add", "path": to, "value": {}}),
            json!({"op": "move", "from": from, "path": format!("{to}/a")}),
        ]
    };
    let first = json!({"op": "add", "path": "/x0", "value": {}});
    let endless: Vec<Value> = std::iter::once(first).chain((0..4_999).flat_map(step)).collect();
    s.patch(&deep, "json-patch+json", &json!(endless)).await.expect(422);
    assert_eq!(s.get(&deep).await.expect(200)["spec"]["any"], nested(100));
    assert_eq!(s.get(WIDGETS).await.expect(200)["items"].as_array().unwrap().len(), 1);
}
