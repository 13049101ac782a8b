//! create, get, list, update, patch, delete.

use crate::harness::*;
use futures_util::future::join_all;
use serde_json::json;

#[tokio::test]
async fn an_object_lives_and_dies() {
    let s = start().await;
    let made = s.post(CONFIG_MAPS, &config_map("a", json!({"k": "v"}))).await.expect(201);
    assert_eq!(made["metadata"]["namespace"], "default");
    assert_eq!(made["metadata"]["uid"].as_str().unwrap().len(), 36);
    assert!(made["metadata"]["creationTimestamp"].is_string());
    let got = s.get(&format!("{CONFIG_MAPS}/a")).await.expect(200);
    assert_eq!(got, made);
    let mut changed = got.clone();
    changed["data"]["k"] = "w".into();
    let updated = s.put(&format!("{CONFIG_MAPS}/a"), &changed).await.expect(200);
    assert_eq!(updated["data"]["k"], "w");
    assert_ne!(updated["metadata"]["resourceVersion"], got["metadata"]["resourceVersion"]);
    let stale = s.put(&format!("{CONFIG_MAPS}/a"), &changed).await.expect(409);
    assert_eq!(
        stale["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let gone = s.delete(&format!("{CONFIG_MAPS}/a")).await.expect(200);
    assert_eq!((&gone["kind"], &gone["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(gone["details"]["kind"], "configmaps");
    let missing = s.get(&format!("{CONFIG_MAPS}/a")).await.expect(404);
    assert_eq!(missing["message"], "configmaps \"a\" not found");
    s.api.stop().await;
}

#[tokio::test]
async fn an_update_without_a_change_writes_nothing() {
    let s = start().await;
    let made = s.post(DEPLOYMENTS, &deployment("web")).await.expect(201);
    assert_eq!(made["metadata"]["generation"], 1);
    let revision = s.api.cache().revision();
    let same = s.put(&format!("{DEPLOYMENTS}/web"), &made).await.expect(200);
    assert_eq!(same, made);
    let patched = s
        .patch(&format!("{DEPLOYMENTS}/web"), "merge-patch+json", &json!({"spec": {"replicas": 3}}))
        .await
        .expect(200);
    assert_eq!(patched["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    assert_eq!(s.api.cache().revision(), revision);
}

#[tokio::test]
async fn patches_of_each_type() {
    let s = start().await;
    s.post(DEPLOYMENTS, &deployment("web")).await.expect(201);
    let path = format!("{DEPLOYMENTS}/web");
    let strategic =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "busybox"}]}}}});
    let got = s.patch(&path, "strategic-merge-patch+json", &strategic).await.expect(200);
    assert_eq!(got["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 2);
    assert_eq!(got["metadata"]["generation"], 2);
    let got = s
        .patch(&path, "json-patch+json", &json!([{"op": "replace", "path": "/spec/replicas", "value": 5}]))
        .await
        .expect(200);
    assert_eq!(got["spec"]["replicas"], 5);
    let got =
        s.patch(&path, "merge-patch+json", &json!({"metadata": {"labels": {"x": "y"}}})).await.expect(200);
    assert_eq!(got["metadata"]["labels"]["x"], "y");
    assert_eq!(got["metadata"]["generation"], 3);
    s.patch(&path, "merge-patch+json", &json!({"metadata": {"resourceVersion": "1"}})).await.expect(409);
    s.patch(&path, "merge-patch+json", &json!({"metadata": {"name": "other"}})).await.expect(400);
    s.patch(&path, "foo", &json!({})).await.expect(415);
    s.patch(&format!("{DEPLOYMENTS}/none"), "merge-patch+json", &json!({})).await.expect(404);
}

#[tokio::test]
async fn names_are_generated() {
    let s = start().await;
    let object = json!({"metadata": {"generateName": "web-"}});
    let made = s.post(CONFIG_MAPS, &object).await.expect(201);
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    let refused = s.post(CONFIG_MAPS, &json!({"metadata": {}})).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "metadata.name");
    s.post(CONFIG_MAPS, &config_map("a", json!({}))).await.expect(201);
    let twice = s.post(CONFIG_MAPS, &config_map("a", json!({}))).await.expect(409);
    assert_eq!(
        (&twice["reason"], &twice["message"]),
        (&json!("AlreadyExists"), &json!("configmaps \"a\" already exists"))
    );
}

#[tokio::test]
async fn status_is_apart() {
    let s = start().await;
    let mut object = deployment("web");
    object["status"] = json!({"replicas": 9});
    let made = s.post(DEPLOYMENTS, &object).await.expect(201);
    assert!(made["status"].get("replicas").is_none(), "{}", made["status"]);
    let mut next = made.clone();
    next["status"] = json!({"replicas": 2, "observedGeneration": 1});
    next["spec"]["replicas"] = 7.into();
    let got = s.put(&format!("{DEPLOYMENTS}/web/status"), &next).await.expect(200);
    assert_eq!((&got["status"]["replicas"], &got["spec"]["replicas"]), (&json!(2), &json!(3)));
    assert_eq!(got["metadata"]["generation"], 1);
    let scale = s.get(&format!("{DEPLOYMENTS}/web/scale")).await.expect(200);
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(3), &json!("app=web")));
    let scale = s
        .patch(&format!("{DEPLOYMENTS}/web/scale"), "merge-patch+json", &json!({"spec": {"replicas": 4}}))
        .await
        .expect(200);
    assert_eq!(scale["spec"]["replicas"], 4);
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let scale = s.send("GET", &format!("{DEPLOYMENTS}/web/scale"), &table, "").await.expect(200);
    let columns: Vec<_> = scale["columnDefinitions"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(columns, ["Name", "Desired", "Available", "Age"]);
    assert_eq!(scale["rows"][0]["cells"].as_array().unwrap()[..3], [json!("web"), json!(4), json!(2)]);
    assert_eq!(s.get(&format!("{DEPLOYMENTS}/web")).await.json()["metadata"]["generation"], 2);
}

#[tokio::test]
async fn dry_runs_store_nothing() {
    let s = start().await;
    s.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a", json!({}))).await.expect(201);
    s.get(&format!("{CONFIG_MAPS}/a")).await.expect(404);
    s.post(CONFIG_MAPS, &config_map("a", json!({"k": "v"}))).await.expect(201);
    s.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a", json!({}))).await.expect(409);
    let got = s
        .patch(&format!("{CONFIG_MAPS}/a?dryRun=All"), "merge-patch+json", &json!({"data": {"k": "w"}}))
        .await
        .expect(200);
    assert_eq!(got["data"]["k"], "w");
    s.delete(&format!("{CONFIG_MAPS}/a?dryRun=All")).await.expect(200);
    assert_eq!(s.get(&format!("{CONFIG_MAPS}/a")).await.expect(200)["data"]["k"], "v");
    let refused =
        s.post(&format!("{CONFIG_MAPS}?dryRun=Some"), &config_map("b", json!({}))).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "dryRun");
}

#[tokio::test]
async fn unknown_fields_are_told_or_refused() {
    let s = start().await;
    let mut object = deployment("web");
    object["spec"]["foo"] = 1.into();
    let warned = s.post(DEPLOYMENTS, &object).await;
    assert_eq!(warned.warnings(), ["299 - \"unknown field \\\"spec.foo\\\"\""]);
    warned.expect(201);
    let strict = s.post(&format!("{DEPLOYMENTS}?fieldValidation=Strict"), &object).await.expect(400);
    assert!(
        strict["message"].as_str().unwrap().contains("strict decoding error: unknown field \"spec.foo\"")
    );
    object["metadata"]["name"] = "other".into();
    let quiet = s.post(&format!("{DEPLOYMENTS}?fieldValidation=Ignore"), &object).await;
    assert!(quiet.warnings().is_empty());
    assert!(quiet.expect(201)["spec"].get("foo").is_none());
    // Duplicates too, at any depth.
    object["metadata"]["name"] = "twice".into();
    object["spec"].as_object_mut().unwrap().remove("foo");
    let twice = object.to_string().replace("\"image\":", "\"image\":\"first\",\"image\":");
    let json_type = [("content-type", "application/json")];
    let strict =
        s.send("POST", &format!("{DEPLOYMENTS}?fieldValidation=Strict"), &json_type, twice.clone()).await;
    assert!(
        strict.text().contains("duplicate field \\\"spec.template.spec.containers[0].image\\\""),
        "{}",
        strict.text()
    );
    strict.expect(400);
    let warned = s.send("POST", DEPLOYMENTS, &json_type, twice).await;
    assert_eq!(
        warned.warnings(),
        ["299 - \"duplicate field \\\"spec.template.spec.containers[0].image\\\"\""]
    );
    assert_eq!(warned.expect(201)["spec"]["template"]["spec"]["containers"][0]["image"], "nginx");
    let patch = json!({"spec": {"bar": 1}});
    s.patch(&format!("{DEPLOYMENTS}/web?fieldValidation=Strict"), "merge-patch+json", &patch)
        .await
        .expect(422);
}

#[tokio::test]
async fn pods_end_gracefully() {
    let s = start().await;
    s.post(PODS, &pod("free")).await.expect(201);
    let gone = s.delete(&format!("{PODS}/free")).await.expect(200);
    assert_eq!(gone["kind"], "Pod");
    s.get(&format!("{PODS}/free")).await.expect(404);
    s.post(PODS, &pod("bound")).await.expect(201);
    let nominated = json!({"status": {"nominatedNodeName": "n1"}});
    s.patch(&format!("{PODS}/bound/status"), "merge-patch+json", &nominated).await.expect(200);
    let binding = json!({"metadata": {"name": "bound"}, "target": {"kind": "Node", "name": "n1"}});
    let bound = s.post(&format!("{PODS}/bound/binding"), &binding).await.expect(201);
    assert_eq!(bound["status"], "Success");
    let again = s.post(&format!("{PODS}/bound/binding"), &binding).await.expect(409);
    assert_eq!(
        again["message"],
        "Operation cannot be fulfilled on pods/binding \"bound\": pod bound is already assigned to node \"n1\""
    );
    let pod = s.get(&format!("{PODS}/bound")).await.expect(200);
    assert_eq!(pod["spec"]["nodeName"], "n1");
    assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
    assert_eq!(pod["status"].get("nominatedNodeName"), None);
    let marked = s.delete(&format!("{PODS}/bound")).await.expect(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    let longer = s.delete(&format!("{PODS}/bound?gracePeriodSeconds=60")).await.expect(200);
    assert_eq!(longer["metadata"]["deletionGracePeriodSeconds"], 30);
    let shorter = s.delete(&format!("{PODS}/bound?gracePeriodSeconds=5")).await.expect(200);
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    s.delete(&format!("{PODS}/bound?gracePeriodSeconds=0")).await.expect(200);
    s.get(&format!("{PODS}/bound")).await.expect(404);
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let s = start().await;
    let mut object = deployment("web");
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    s.post(DEPLOYMENTS, &object).await.expect(201);
    let path = format!("{DEPLOYMENTS}/web");
    let marked = s.delete(&format!("{path}?propagationPolicy=Foreground")).await.expect(200);
    assert_eq!(marked["metadata"]["finalizers"], json!(["example.com/hold", "foregroundDeletion"]));
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(marked["metadata"]["generation"], 2);
    let exists = s.post(DEPLOYMENTS, &deployment("web")).await.expect(409);
    assert_eq!(exists["message"], "object is being deleted: deployments.apps \"web\" already exists");
    let more = s
        .patch(&path, "merge-patch+json", &json!({"metadata": {"finalizers": ["example.com/new"]}}))
        .await
        .expect(422);
    assert_eq!(more["details"]["causes"][0]["field"], "metadata.finalizers");
    s.patch(&path, "merge-patch+json", &json!({"metadata": {"finalizers": null}})).await.expect(200);
    s.get(&path).await.expect(404);
}

#[tokio::test]
async fn namespaces_end_by_finalize() {
    let s = start().await;
    s.post("/api/v1/namespaces", &json!({"metadata": {"name": "n"}})).await.expect(201);
    let marked = s.delete("/api/v1/namespaces/n").await.expect(200);
    assert_eq!(marked["status"]["phase"], "Terminating");
    assert_eq!(marked["spec"]["finalizers"], json!(["kubernetes"]));
    let mut last = s.get("/api/v1/namespaces/n").await.expect(200);
    last["spec"]["finalizers"] = json!([]);
    s.put("/api/v1/namespaces/n/finalize", &last).await.expect(200);
    s.get("/api/v1/namespaces/n").await.expect(404);
}

#[tokio::test]
async fn preconditions_of_deletes() {
    let s = start().await;
    let made = s.post(CONFIG_MAPS, &config_map("a", json!({}))).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let json_type = [("content-type", "application/json")];
    let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "other"}});
    let refused = s.send("DELETE", &path, &json_type, body.to_string()).await.expect(409);
    assert!(
        refused["message"].as_str().unwrap().contains("the UID in the precondition (other) does not match")
    );
    let body = json!({"preconditions": {"uid": made["metadata"]["uid"], "resourceVersion": made["metadata"]["resourceVersion"]}});
    s.send("DELETE", &path, &json_type, body.to_string()).await.expect(200);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let s = start().await;
    for name in ["a", "b", "c"] {
        let mut object = config_map(name, json!({}));
        object["metadata"]["labels"] = json!({"keep": if name == "b" { "yes" } else { "no" }});
        s.post(CONFIG_MAPS, &object).await.expect(201);
    }
    let deleted = s.delete(&format!("{CONFIG_MAPS}?labelSelector=keep%3Dno")).await.expect(200);
    assert_eq!(deleted["items"].as_array().unwrap().len(), 2);
    let left = s.get(CONFIG_MAPS).await.expect(200);
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    // Never over all namespaces.
    s.delete("/api/v1/configmaps").await.expect(405);
    s.get(&format!("{CONFIG_MAPS}/b")).await.expect(200);
}

#[tokio::test]
async fn what_has_no_namespace_is_given_none() {
    let s = start().await;
    let class = |name: &str| json!({"metadata": {"name": name, "namespace": "default"}, "value": 1});
    let path = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let made = s.post(path, &class("a")).await.expect(201);
    assert!(made["metadata"].get("namespace").is_none(), "{made}");
    let mut again = class("a");
    again["description"] = "x".into();
    let changed = s.put(&format!("{path}/a"), &again).await.expect(200);
    assert!(changed["metadata"].get("namespace").is_none() && changed["description"] == "x", "{changed}");
    let patch = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1,
        "metadata": {"name": "b", "namespace": "default"}});
    let apply = [("content-type", "application/apply-patch+yaml")];
    let applied = s.send("PATCH", &format!("{path}/b?fieldManager=m"), &apply, patch.to_string()).await;
    assert!(applied.expect(201)["metadata"].get("namespace").is_none());
}

#[tokio::test]
async fn mismatches_are_told() {
    let s = start().await;
    let mut object = config_map("a", json!({}));
    s.put(&format!("{CONFIG_MAPS}/a"), &object).await.expect(404);
    object["metadata"]["namespace"] = "other".into();
    let refused = s.post(CONFIG_MAPS, &object).await.expect(400);
    assert_eq!(
        refused["message"],
        "the namespace of the provided object does not match the namespace sent on the request"
    );
    s.post(CONFIG_MAPS, &config_map("a", json!({}))).await.expect(201);
    let refused = s.put(&format!("{CONFIG_MAPS}/a"), &config_map("b", json!({}))).await.expect(400);
    assert_eq!(refused["message"], "the name of the object (b) does not match the name on the URL (a)");
    let refused = s.post(CONFIG_MAPS, &deployment("x")).await.expect(400);
    assert_eq!(refused["reason"], "BadRequest");
    // Below built-in groups a router answers.
    for path in [
        "/api/v1/nothing",
        "/api/v9/pods",
        "/api/v1/namespaces/default/nodes",
        "/api/v1/namespaces/default/namespaces",
        &format!("{PODS}/a/nothing"),
        &format!("{PODS}/a/log/b/c"),
        "/apis/apps/v9/deployments",
        "/apis/apps/v1/namespaces/default/nothing/x",
    ] {
        let refused = s.get(path).await.expect(404);
        assert_eq!(refused["message"], "the server could not find the requested resource", "{path}");
        assert_eq!((&refused["reason"], &refused["details"]), (&json!("NotFound"), &json!({})), "{path}");
    }
    for path in ["/apis/nobody.example/v1/things", "/nothing", "/healthz/nothing"] {
        assert_eq!(s.get(path).await.text(), "404 page not found\n", "{path}");
    }
    assert_eq!(s.send("PUT", CONFIG_MAPS, &[], "{}").await.code, 405);
    assert_eq!(s.send("DELETE", "/api/v1/watch/configmaps", &[], "").await.code, 405);
    s.get("/api/v1/namespaces").await.expect(200);
}

/// However many write at once: who names no resourceVersion is never told of a conflict.
#[tokio::test]
async fn changes_without_a_version_all_go_through() {
    let s = start().await;
    s.post(CONFIG_MAPS, &config_map("a", json!({}))).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let write = async |n: usize| {
        let key = format!("k{n}");
        let object = config_map("a", json!({&key: "x"}));
        let answer = match n % 3 {
            0 => s.patch(&path, "merge-patch+json", &json!({"data": {&key: "x"}})).await,
            1 => s.apply(&path, &key, &object).await,
            _ => s.put(&path, &object).await,
        };
        answer.expect(200);
    };
    join_all((0..48).map(write)).await;
}

/// Kinds that updates create too: one of many makes it, the others change it.
#[tokio::test]
async fn updates_that_create_race_without_a_conflict() {
    let s = start().await;
    let path = "/api/v1/namespaces/default/limitranges";
    let write = async |n: usize| {
        let spec = json!({"limits": [{"type": "Pod", "max": {"cpu": n.to_string()}}]});
        let object =
            json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "a"}, "spec": spec});
        s.put(&format!("{path}/a"), &object).await.code
    };
    let codes = join_all((1..33).map(write)).await;
    assert_eq!(codes.iter().filter(|code| **code == 201).count(), 1, "{codes:?}");
    assert!(codes.iter().all(|code| matches!(code, 200 | 201)), "{codes:?}");
}

#[tokio::test]
async fn writes_are_tracked() {
    let s = start().await;
    let headers = [("content-type", "application/json"), ("user-agent", "kubectl/v1.36 (linux)")];
    let made = s
        .send("POST", CONFIG_MAPS, &headers, config_map("a", json!({"k": "v"})).to_string())
        .await
        .expect(201);
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!((&entry["manager"], &entry["operation"]), (&json!("kubectl"), &json!("Update")));
    assert!(entry["fieldsV1"]["f:data"]["f:k"].is_object(), "{entry}");
}

#[tokio::test]
async fn reads_encode_nothing_and_writes_once() {
    let s = start().await;
    for i in 0..50 {
        let before = s.encodes();
        s.post(CONFIG_MAPS, &config_map(&format!("c{i}"), json!({"k": "v"}))).await.expect(201);
        assert_eq!(s.encodes(), before + 1);
    }
    let before = s.encodes();
    let mut watches = Vec::new();
    for _ in 0..100 {
        watches.push(s.watch(&format!("{CONFIG_MAPS}?watch=true&resourceVersion=0")).await);
    }
    for i in 0..10_000 {
        let answer = s.get(&format!("{CONFIG_MAPS}/c{}", i % 50)).await;
        assert_eq!(answer.code, 200);
    }
    for _ in 0..1_000 {
        assert_eq!(s.get(CONFIG_MAPS).await.code, 200);
    }
    for watch in &mut watches {
        for _ in 0..50 {
            assert_eq!(watch.event().await.0, "ADDED");
        }
    }
    assert_eq!(s.encodes(), before);
    s.patch(&format!("{CONFIG_MAPS}/c1"), "merge-patch+json", &json!({"data": {"k": "w"}})).await.expect(200);
    for watch in &mut watches {
        assert_eq!(watch.event().await, ("MODIFIED".to_owned(), "c1".to_owned()));
    }
    assert_eq!(s.encodes(), before + 1);
}

#[tokio::test]
async fn malformed_bodies_are_refused() {
    let s = start().await;
    let deep = "[".repeat(100_000);
    for body in [
        "",
        "{",
        "[]",
        "null",
        "\"x\"",
        "{\"metadata\": 3}",
        "{\"metadata\": {\"name\": {}}}",
        "\u{0}",
        deep.as_str(),
    ] {
        let answer =
            s.send("POST", CONFIG_MAPS, &[("content-type", "application/json")], body.to_owned()).await;
        assert!((400..500).contains(&answer.code), "{:.20}: {}", body, answer.text());
        assert_eq!(answer.json()["kind"], "Status");
    }
    let answer = s.send("POST", CONFIG_MAPS, &[("content-type", "application/yaml")], "a: [b\n c: d").await;
    assert_eq!(answer.code, 400);
    let large = vec![b'a'; (3 << 20) + 1];
    let answer =
        s.send("POST", CONFIG_MAPS, &[("content-type", "application/json")], large).await.expect(413);
    assert_eq!(answer["reason"], "RequestEntityTooLarge");
    let value = "x".repeat(2 << 20);
    s.post(CONFIG_MAPS, &config_map("big", json!({"k": value}))).await;
    s.send("POST", CONFIG_MAPS, &[("content-type", "application/vnd.kubernetes.protobuf")], "k8s")
        .await
        .expect(400);
    s.send("GET", CONFIG_MAPS, &[("accept", "text/html")], "").await.expect(406);
    assert_eq!(s.api.stats().panics_total.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn yaml_goes_in_and_out() {
    let s = start().await;
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yam\ndata:\n  k: v\n";
    let headers = [("content-type", "application/yaml"), ("accept", "application/yaml")];
    let answer = s.send("POST", CONFIG_MAPS, &headers, yaml).await;
    assert_eq!(answer.code, 201, "{}", answer.text());
    assert!(answer.text().contains("name: yam"), "{}", answer.text());
}

#[tokio::test]
async fn the_unauthorized_are_refused() {
    let s = start().await;
    let service = s.api.client_service(skeg_apiserver::Identity::system("nobody", &[]));
    let s = Server { api: s.api.clone(), service };
    let refused = s.get(PODS).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods is forbidden: User \"nobody\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let refused = s.get("/metrics").await.expect(403);
    assert_eq!(refused["message"], "forbidden: User \"nobody\" cannot get path \"/metrics\"");
}

#[tokio::test]
async fn a_restart_finds_everything() {
    let store = std::sync::Arc::new(skeg_store::Memory::new());
    let s = start_on(store.clone()).await;
    let made = s.post(DEPLOYMENTS, &deployment("web")).await.expect(201);
    s.api.stop().await;
    let s = start_on(store).await;
    assert_eq!(s.get(&format!("{DEPLOYMENTS}/web")).await.expect(200), made);
}

/// What the row of a kind says of its writes, beyond its fields.
#[tokio::test]
async fn kinds_differ_in_how_they_are_written() {
    let s = start().await;
    // An update creates some of them.
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = json!({"metadata": {"name": "a"}, "spec": {"holderIdentity": "me"}});
    s.put(&format!("{leases}/a"), &lease).await.expect(201);
    let service = json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}});
    s.put("/api/v1/namespaces/default/services/a", &service).await.expect(201);
    let role = json!({"metadata": {"name": "a"}, "rules": []});
    s.put("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/a", &role).await.expect(201);
    s.put(&format!("{CONFIG_MAPS}/a"), &config_map("a", json!({}))).await.expect(404);
    // A Lease is only updated by who knows its state.
    let blind = s.put(&format!("{leases}/a"), &lease).await.expect(422);
    assert_eq!(blind["details"]["causes"][0]["field"], "metadata.resourceVersion");
    // A Node comes with what its agent found; nothing else does.
    let node = json!({"metadata": {"name": "n"}, "status": {"capacity": {"cpu": "2"}}});
    let node = s.post("/api/v1/nodes", &node).await.expect(201);
    assert_eq!(node["status"]["capacity"]["cpu"], "2");
    // Some deletes answer with the object.
    assert_eq!(s.delete("/api/v1/namespaces/default/services/a").await.expect(200)["kind"], "Service");
    assert_eq!(s.delete("/api/v1/nodes/n").await.expect(200)["kind"], "Status");
}

#[tokio::test]
async fn generations_count_what_upstream_counts() {
    let s = start().await;
    let generation = |object: &serde_json::Value| object["metadata"]["generation"].clone();
    s.post(DEPLOYMENTS, &deployment("web")).await.expect(201);
    let web = format!("{DEPLOYMENTS}/web");
    let annotate = json!({"metadata": {"annotations": {"a": "b"}}});
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let got = s.patch(&web, "merge-patch+json", &annotate).await.expect(200);
    assert_eq!(generation(&got), 2, "the annotations of a Deployment");
    assert_eq!(generation(&s.patch(&web, "merge-patch+json", &label).await.expect(200)), 2);
    let mut empty = s.get(&web).await.json();
    empty["metadata"]["annotations"] = json!({});
    assert_eq!(generation(&s.put(&web, &empty).await.expect(200)), 3);
    let none = json!({"metadata": {"annotations": null}});
    assert_eq!(generation(&s.patch(&web, "merge-patch+json", &none).await.expect(200)), 3, "none, as before");
    // The controller writes its annotation with the status, which counts nothing; labels stay.
    let mut status = s.get(&web).await.json();
    status["metadata"]["annotations"] = json!({"deployment.kubernetes.io/revision": "1"});
    status["metadata"]["labels"] = json!({"other": "x"});
    let got = s.put(&format!("{web}/status"), &status).await.expect(200);
    assert_eq!(generation(&got), 3);
    assert_eq!(got["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    assert_eq!(got["metadata"]["labels"], json!({"a": "b"}));
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": [], "ports": []});
    s.post(slices, &slice).await.expect(201);
    let slice = format!("{slices}/s");
    assert_eq!(generation(&s.patch(&slice, "merge-patch+json", &annotate).await.expect(200)), 1);
    let got = s.patch(&slice, "merge-patch+json", &label).await.expect(200);
    assert_eq!(generation(&got), 2, "the labels of an EndpointSlice");
}

#[tokio::test]
async fn pods_are_evicted() {
    let s = start().await;
    s.post(PODS, &pod("a")).await.expect(201);
    let path = format!("{PODS}/a/eviction");
    let eviction = |name: &str, options: serde_json::Value| json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}, "deleteOptions": options});
    s.post(&path, &eviction("b", json!({}))).await.expect(400);
    let other = json!({"preconditions": {"uid": "other"}});
    s.post(&path, &eviction("a", other)).await.expect(409);
    s.post(&path, &eviction("a", json!({"dryRun": ["All"]}))).await.expect(201);
    s.get(&format!("{PODS}/a")).await.expect(200);
    let binding = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n1"}});
    s.post(&format!("{PODS}/a/binding"), &binding).await.expect(201);
    let done = s.post(&path, &eviction("a", json!({"gracePeriodSeconds": 7}))).await.expect(201);
    assert_eq!((&done["kind"], &done["status"]), (&json!("Status"), &json!("Success")));
    let ending = s.get(&format!("{PODS}/a")).await.expect(200);
    assert_eq!(ending["metadata"]["deletionGracePeriodSeconds"], 7);
    s.post(&format!("{PODS}/none/eviction"), &eviction("none", json!({}))).await.expect(404);
}
