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

fn sized(name: &str, resources: Value) -> Value {
    let mut pod = pod(name);
    pod["spec"]["containers"][0]["resources"] = resources;
    pod
}

fn resizing(resources: &Value) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": resources}]}})
}

#[tokio::test]
async fn pods_are_resized_by_their_subresource_alone() {
    let s = start().await;
    let small = json!({"requests": {"cpu": "1", "memory": "64Mi"}, "limits": {"cpu": "2", "memory": "64Mi"}});
    let large =
        json!({"requests": {"cpu": "1500m", "memory": "64Mi"}, "limits": {"cpu": "3", "memory": "128Mi"}});
    let mut made = sized("p", small.clone());
    made["spec"]["containers"][0]["resizePolicy"] =
        json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    let answer = s.post(PODS, &made).await;
    assert_eq!(answer.warnings(), Vec::<String>::new());
    let made = answer.expect(201);
    let (whole, part) = (format!("{PODS}/p"), format!("{PODS}/p/resize"));
    assert_eq!(s.get(&part).await.expect(200), made);
    let refused = s.patch(&whole, "strategic-merge-patch+json", &resizing(&large)).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "spec");

    let done = s.patch(&part, "strategic-merge-patch+json", &resizing(&large)).await.expect(200);
    assert_eq!(
        (&done["spec"]["containers"][0]["resources"], &done["metadata"]["generation"]),
        (&large, &json!(2))
    );
    assert_eq!(s.get(&whole).await.expect(200), done);
    let mut back = done.clone();
    back["spec"]["containers"][0]["resources"] = small.clone();
    back["spec"]["containers"][0]["image"] = "other".into();
    back["metadata"]["labels"] = json!({"x": "y"});
    let back = s.put(&part, &back).await.expect(200);
    assert_eq!((&back["spec"], &back["metadata"]["labels"]), (&made["spec"], &made["metadata"]["labels"]));
    assert_eq!(back["metadata"]["generation"], 3);
    let guaranteed =
        json!({"requests": {"cpu": "2", "memory": "64Mi"}, "limits": {"cpu": "2", "memory": "64Mi"}});
    let refused = s.patch(&part, "strategic-merge-patch+json", &resizing(&guaranteed)).await.expect(422);
    assert_eq!(
        refused["details"]["causes"][0],
        json!({"reason": "FieldValueInvalid", "field": "spec",
            "message": "Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing"})
    );
    let mut config = resizing(&large);
    config["apiVersion"] = "v1".into();
    config["kind"] = "Pod".into();
    config["spec"]["containers"][0]["image"] = "ignored".into();
    let refused = s.apply(&part, "sizer", &config).await.expect(409);
    assert!(refused["message"].as_str().unwrap().contains("conflicts"), "{refused}");
    let applied = s.apply(&format!("{part}?force=true"), "sizer", &config).await.expect(200);
    assert_eq!(applied["spec"]["containers"][0]["image"], "nginx");
    let entries = applied["metadata"]["managedFields"].as_array().unwrap();
    let own = entries.iter().find(|entry| entry["manager"] == "sizer").unwrap();
    assert_eq!(own["subresource"], "resize");
    let owned = &own["fieldsV1"]["f:spec"]["f:containers"]["k:{\"name\":\"c\"}"];
    assert!(owned["f:resources"]["f:limits"]["f:cpu"].is_object() && owned.get("f:image").is_none(), "{own}");
}

#[tokio::test]
async fn resizes_keep_to_limits_and_are_charged_to_quotas() {
    let s = start_assembled(std::sync::Arc::new(skeg_store::Memory::new())).await;
    let account = json!({"metadata": {"name": "default"}});
    s.post("/api/v1/namespaces/default/serviceaccounts", &account).await.expect(201);
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let hard = json!({"requests.cpu": "2"});
    let mut quota =
        s.post(quotas, &json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await.expect(201);
    quota["status"] = json!({"hard": hard, "used": {"requests.cpu": "0"}});
    s.put(&format!("{quotas}/q/status"), &quota).await.expect(200);
    let range =
        json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "3"}}]}});
    s.post("/api/v1/namespaces/default/limitranges", &range).await.expect(201);
    let of = |request: &str, limit: &str| json!({"requests": {"cpu": request}, "limits": {"cpu": limit}});
    s.post(PODS, &sized("p", of("1", "2"))).await.expect(201);
    let part = format!("{PODS}/p/resize");
    let body = resizing(&of("1", "4"));
    let refused = s.patch(&part, "strategic-merge-patch+json", &body).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"p\" is forbidden: maximum cpu usage per Container is 3, but limit is 4"
    );
    let body = resizing(&of("2500m", "3"));
    let refused = s.patch(&part, "strategic-merge-patch+json", &body).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"p\" is forbidden: exceeded quota: q, requested: requests.cpu=1500m, used: requests.cpu=1, limited: requests.cpu=2"
    );
    let body = resizing(&of("1500m", "3"));
    s.patch(&part, "strategic-merge-patch+json", &body).await.expect(200);
    assert_eq!(s.get(&format!("{quotas}/q")).await.expect(200)["status"]["used"]["requests.cpu"], "1500m");
}
