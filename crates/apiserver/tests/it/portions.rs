//! Parts of Pods that have subresources of their own.

use crate::harness::*;
use serde_json::{Value, json};

fn names(pod: &Value) -> Vec<&str> {
    let list = pod["spec"]["ephemeralContainers"].as_array();
    list.into_iter().flatten().filter_map(|container| container["name"].as_str()).collect()
}

fn adding(name: &str) -> Value {
    json!({"spec": {"ephemeralContainers": [{"name": name, "image": "busybox", "targetContainerName": "c"}]}})
}

/// Who owns which ephemeral containers.
fn owned(pod: &Value, manager: &str) -> Value {
    let entries = pod["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let own = entries.into_iter().find(|entry| entry["manager"] == manager).unwrap_or_default();
    assert_eq!(own["subresource"], "ephemeralcontainers", "{own}");
    own["fieldsV1"].clone()
}

#[tokio::test]
async fn ephemeral_containers_are_added_by_their_subresource_alone() {
    let s = start().await;
    let made = s.post(PODS, &pod("p")).await.expect(201);
    let (whole, part) = (format!("{PODS}/p"), format!("{PODS}/p/ephemeralcontainers"));
    assert_eq!(s.get(&part).await.expect(200), made);

    let refused = s.patch(&whole, "strategic-merge-patch+json", &adding("one")).await.expect(422);
    let why = refused["details"]["causes"][0]["message"].as_str().unwrap();
    assert!(why.starts_with("Forbidden: pod updates may not change fields other than"), "{why}");

    let first = s.patch(&part, "strategic-merge-patch+json", &adding("one")).await.expect(200);
    assert_eq!((names(&first), &first["metadata"]["generation"]), (vec!["one"], &json!(2)));
    let container = &first["spec"]["ephemeralContainers"][0];
    assert_eq!((&container["imagePullPolicy"], &container["resources"]), (&json!("Always"), &json!({})));
    assert_eq!(s.get(&whole).await.expect(200), first);

    // Of all else that is sent with them nothing comes either.
    let mut other = first.clone();
    other["spec"]["containers"][0]["image"] = "other".into();
    other["metadata"]["labels"] = json!({"x": "y"});
    other["metadata"]["annotations"] = json!({"x": "y"});
    other["status"] = json!({"phase": "Failed"});
    other["spec"]["ephemeralContainers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "two", "image": "busybox:1"}));
    let both = s.put(&part, &other).await.expect(200);
    assert_eq!((names(&both), &both["metadata"]["generation"]), (vec!["one", "two"], &json!(3)));
    assert_eq!(both["spec"]["containers"], first["spec"]["containers"]);
    assert_eq!(
        (&both["metadata"]["labels"], &both["status"]),
        (&first["metadata"]["labels"], &first["status"])
    );
    assert!(both["metadata"]["annotations"].is_null());
    s.put(&part, &other).await.expect(409);

    let again = s.patch(&part, "strategic-merge-patch+json", &adding("one")).await.expect(200);
    assert_eq!(again, both, "what is there already changes nothing");
    let gone = json!({"spec": {"ephemeralContainers": [{"name": "two", "image": "busybox:1"}]}});
    let refused = s.patch(&part, "merge-patch+json", &gone).await.expect(422);
    assert_eq!(
        refused["details"]["causes"][0]["message"],
        "Forbidden: existing ephemeral containers \"one\" may not be removed\n"
    );
    let changed = json!([{"op": "replace", "path": "/spec/ephemeralContainers/0/image", "value": "x"}]);
    let refused = s.patch(&part, "json-patch+json", &changed).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "spec.ephemeralContainers");
    let probed = json!({"spec": {"ephemeralContainers": [
        {"name": "three", "image": "x", "livenessProbe": {"tcpSocket": {"port": 1}}}]}});
    let refused = s.patch(&part, "strategic-merge-patch+json", &probed).await.expect(422);
    assert_eq!(
        refused["details"]["causes"][0],
        json!({"reason": "FieldValueForbidden", "field": "spec.ephemeralContainers[0].livenessProbe",
            "message": "Forbidden: cannot be set for an Ephemeral Container"})
    );
    s.get(&format!("{PODS}/none/ephemeralcontainers")).await.expect(404);
    s.delete(&part).await.expect(405);
    s.post(&part, &adding("x")).await.expect(405);
}

#[tokio::test]
async fn ephemeral_containers_are_applied_and_owned() {
    let s = start().await;
    s.post(PODS, &pod("p")).await.expect(201);
    let part = format!("{PODS}/p/ephemeralcontainers");
    let mut config = adding("one");
    config["apiVersion"] = "v1".into();
    config["kind"] = "Pod".into();
    config["metadata"] = json!({"labels": {"mine": "yes"}});
    config["spec"]["terminationGracePeriodSeconds"] = 7.into();
    let applied = s.apply(&part, "one", &config).await.expect(200);
    assert_eq!((names(&applied), &applied["metadata"]["labels"]), (vec!["one"], &json!({"app": "p"})));
    assert_eq!(applied["spec"]["terminationGracePeriodSeconds"], 30);
    let fields = json!({"f:spec": {"f:ephemeralContainers": {
        "k:{\"name\":\"one\"}": {".": {}, "f:image": {}, "f:name": {}, "f:targetContainerName": {}}}}});
    assert_eq!(owned(&applied, "one"), fields);
    let patched =
        s.patch(&format!("{part}?fieldManager=two"), "strategic-merge-patch+json", &adding("two")).await;
    let two = owned(&patched.expect(200), "two");
    assert_eq!(two["f:spec"].as_object().unwrap().len(), 1);
    assert!(two["f:spec"]["f:ephemeralContainers"]["k:{\"name\":\"two\"}"].is_object(), "{two}");
    let refused = s.apply(&format!("{PODS}/none/ephemeralcontainers"), "one", &config).await;
    refused.expect(404);
}

#[tokio::test]
async fn ephemeral_containers_are_held_to_the_pods_standard_and_cost_no_quota() {
    let s = start_assembled(std::sync::Arc::new(skeg_store::Memory::new())).await;
    let account = json!({"metadata": {"name": "default"}});
    s.post("/api/v1/namespaces/default/serviceaccounts", &account).await.expect(201);
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1", "limits.cpu": "1"}}});
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let mut made = s.post(quotas, &quota).await.expect(201);
    made["status"] =
        json!({"hard": {"pods": "1", "limits.cpu": "1"}, "used": {"pods": "0", "limits.cpu": "0"}});
    s.put(&format!("{quotas}/q/status"), &made).await.expect(200);
    let mut limited = pod("p");
    limited["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "1"}});
    s.post(PODS, &limited).await.expect(201);
    let label = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    s.patch("/api/v1/namespaces/default", "merge-patch+json", &label).await.expect(200);
    let part = format!("{PODS}/p/ephemeralcontainers");
    let mut privileged = adding("root");
    privileged["spec"]["ephemeralContainers"][0]["securityContext"] = json!({"privileged": true});
    let refused = s.patch(&part, "strategic-merge-patch+json", &privileged).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"root\" must not set \
         securityContext.privileged=true)"
    );
    let added = s.patch(&part, "strategic-merge-patch+json", &adding("plain")).await.expect(200);
    assert_eq!(names(&added), ["plain"]);
    assert_eq!(s.get(&format!("{quotas}/q")).await.expect(200)["status"]["used"]["pods"], "1");
}
