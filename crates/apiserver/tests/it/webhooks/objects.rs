//! Webhooks and what they change: custom resources, Pods, their own configurations.

use super::{MUTATING, Reply, VALIDATING, Webhooks, allow, configure, patch, rule, start};
use crate::harness::{CONFIG_MAPS, PODS, Server, config_map, pod};
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A definition with two versions, served by the time this returns.
async fn define(server: &Server, schema: Value) {
    let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema}});
    let definition = json!({"metadata": {"name": "gadgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "gadgets", "kind": "Gadget"}, "versions": [version("v1", true), version("v2", false)]}});
    server.post(CRDS, &definition).await.expect(201);
    let mut watch =
        server.watch(&format!("{CRDS}?watch=true&fieldSelector=metadata.name=gadgets.example.com")).await;
    let established = |object: &Value| {
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True")
    };
    while !established(&watch.next().await.unwrap()["object"]) {}
}

fn gadget(name: &str, version: &str, data: Value) -> Value {
    json!({"apiVersion": format!("example.com/{version}"), "kind": "Gadget", "metadata": {"name": name}, "data": data})
}

#[tokio::test]
async fn custom_resources_are_refused_and_changed() {
    let hooks = Webhooks::start(|path, request| {
        let data = &request["object"]["data"];
        match path.split('?').next().unwrap() {
            "/first" if data["start"] == "yes" => patch(&json!([{"op": "add", "path": "/data/stage-1", "value": "yes"}])),
            "/second" if data["stage-1"] == "yes" => patch(&json!([{"op": "add", "path": "/data/stage-2", "value": "yes"}])),
            "/deny" if data["bad"] == "yes" || request["operation"] == "DELETE" => {
                Reply::Review(json!({"allowed": false, "status": {"message": "the custom resource contains unwanted data"}}))
            }
            "/crd" => Reply::Review(json!({"allowed": false, "status": {"message": "no definitions"}})),
            _ => allow(),
        }
    })
    .await;
    let server = start().await;
    let text = json!({"type": "string"});
    let fields = json!({"start": text, "stage-1": text, "bad": text, "other": text});
    define(
        &server,
        json!({"type": "object", "properties": {"data": {"type": "object", "properties": fields}}}),
    )
    .await;
    let gadgets = "/apis/example.com/v1/namespaces/default/gadgets";
    let every = |operations: &[&str]| rule(operations, "example.com", "v1", &["gadgets"]);
    let changes = [
        hooks.hook("first", "/first", every(&["CREATE", "UPDATE"]), json!({})),
        hooks.hook("second", "/second", every(&["CREATE", "UPDATE"]), json!({})),
    ];
    configure(&server, MUTATING, "change", &changes).await;
    let made = server.post(gadgets, &gadget("a", "v1", json!({"start": "yes"}))).await.expect(201);
    // The second added a field that the schema does not have.
    assert_eq!(made["data"], json!({"start": "yes", "stage-1": "yes"}));
    // Another version is stored from now on; the webhook sees the one its rule names.
    let mut definition = server.get(&format!("{CRDS}/gadgets.example.com")).await.expect(200);
    for (at, storage) in [(0, false), (1, true)] {
        definition["spec"]["versions"][at]["storage"] = storage.into();
    }
    server.put(&format!("{CRDS}/gadgets.example.com"), &definition).await.expect(200);
    let newer = "/apis/example.com/v2/namespaces/default/gadgets";
    let patched = server
        .patch(&format!("{newer}/a"), "merge-patch+json", &json!({"data": {"other": "x"}}))
        .await
        .expect(200);
    assert_eq!((&patched["apiVersion"], &patched["data"]["other"]), (&json!("example.com/v2"), &json!("x")));
    assert_eq!(hooks.asked().pop().unwrap()["object"]["apiVersion"], "example.com/v1");
    let made = server.post(newer, &gadget("b", "v2", json!({"start": "yes"}))).await.expect(201);
    assert_eq!((&made["apiVersion"], &made["data"]["stage-1"]), (&json!("example.com/v2"), &json!("yes")));
    configure(
        &server,
        VALIDATING,
        "deny",
        &[hooks.hook("deny", "/deny", every(&["CREATE", "UPDATE", "DELETE"]), json!({}))],
    )
    .await;
    let denied = "admission webhook \"deny.example.com\" denied the request: the custom resource contains unwanted data";
    for refused in [
        server.post(gadgets, &gadget("c", "v1", json!({"bad": "yes"}))).await,
        server.patch(&format!("{gadgets}/a"), "merge-patch+json", &json!({"data": {"bad": "yes"}})).await,
        server.delete(&format!("{gadgets}/a")).await,
    ] {
        assert_eq!(refused.expect(400)["message"], denied);
    }
    let crds = rule(&["CREATE"], "apiextensions.k8s.io", "*", &["customresourcedefinitions"]);
    configure(&server, VALIDATING, "crds", &[hooks.hook("crds", "/crd", crds, json!({}))]).await;
    definition["metadata"] = json!({"name": "others.example.com"});
    definition["spec"]["names"] = json!({"plural": "others", "kind": "Other"});
    let refused = server.post(CRDS, &definition).await.expect(400);
    assert_eq!(
        refused["message"],
        "admission webhook \"crds.example.com\" denied the request: no definitions"
    );
}

#[tokio::test]
async fn configurations_change_and_go_with_immediate_effect() {
    let hooks = Webhooks::start(|path, _| match path.starts_with("/deny") {
        true => Reply::Review(json!({"allowed": false})),
        false => patch(&json!([{"op": "add", "path": "/data/added", "value": "yes"}])),
    })
    .await;
    let server = start().await;
    for (configurations, path) in [(MUTATING, "/add"), (VALIDATING, "/deny")] {
        let outcome = async |name: &str| {
            let made = server.post(CONFIG_MAPS, &config_map(name, json!({"a": "b"}))).await;
            made.code == 400 || made.json()["data"]["added"] == "yes"
        };
        let maps = |operation: &str| rule(&[operation], "", "v1", &["configmaps"]);
        let labelled = |name: String| {
            json!({"metadata": {"name": name, "labels": {"of": "test"}},
            "webhooks": [hooks.hook("h", path, maps("CREATE"), json!({}))]})
        };
        for n in 0..10 {
            server.post(configurations, &labelled(format!("c{n}"))).await.expect(201);
        }
        let listed = server.get(&format!("{configurations}?labelSelector=of%3Dtest")).await.expect(200);
        assert_eq!(listed["items"].as_array().unwrap().len(), 10);
        assert!(outcome("m1").await);
        server.delete(&format!("{configurations}?labelSelector=of%3Dtest")).await.expect(200);
        assert!(!outcome("m2").await);
        let mut one = server.post(configurations, &labelled("one".into())).await.expect(201);
        one["webhooks"][0]["rules"][0] = maps("UPDATE");
        server.put(&format!("{configurations}/one"), &one).await.expect(200);
        assert!(!outcome("m3").await);
        let back = json!([{"op": "replace", "path": "/webhooks/0/rules/0/operations", "value": ["CREATE"]}]);
        server.patch(&format!("{configurations}/one"), "json-patch+json", &back).await.expect(200);
        assert!(outcome("m4").await);
        server.delete(&format!("{configurations}/one")).await.expect(200);
        server.delete(CONFIG_MAPS).await.expect(200);
    }
    // Neither the configurations themselves are changed nor is their end prevented.
    let all = rule(&["*"], "admissionregistration.k8s.io", "*", &["*"]);
    configure(&server, VALIDATING, "guard", &[hooks.hook("guard", "/deny", all.clone(), json!({}))]).await;
    configure(&server, MUTATING, "change", &[hooks.hook("change", "/add", all, json!({}))]).await;
    for path in [format!("{VALIDATING}/guard"), format!("{MUTATING}/change")] {
        server.delete(&path).await.expect(200);
    }
}

#[tokio::test]
async fn pods_get_defaults_after_their_mutation() {
    let hooks = Webhooks::start(|_, _| {
        patch(&json!([{"op": "add", "path": "/spec/initContainers", "value": [{"name": "added", "image": "added"}]}]))
    })
    .await;
    let server = start().await;
    let pods = rule(&["CREATE"], "", "v1", &["pods"]);
    configure(&server, MUTATING, "pods", &[hooks.hook("pods", "/", pods, json!({}))]).await;
    let made = server.post(PODS, &pod("p")).await.expect(201);
    let added = &made["spec"]["initContainers"][0];
    assert_eq!((&added["name"], &added["terminationMessagePolicy"]), (&json!("added"), &json!("File")));
    // It came before the service account's credentials were given to all containers once more.
    assert_eq!(added["volumeMounts"][0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
}
