//! What webhooks are told, in which order, and how they are found.

use super::{MUTATING, Reply, VALIDATING, Webhooks, allow, configure, patch, rule, start};
use crate::access;
use crate::harness::{CONFIG_MAPS, PODS, config_map, pod};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

#[tokio::test]
async fn webhooks_refuse_in_upstreams_words_and_are_told_everything() {
    let hooks = Webhooks::start(|path, request| match request["name"].as_str().unwrap() {
        "fine" => Reply::Review(json!({"allowed": true, "warnings": ["take care"], "auditAnnotations": {"a": "b"}})),
        "no" => Reply::Review(json!({"allowed": false, "status": {"code": 418, "message": "not this one", "reason": "Forbidden"}})),
        "reason" => Reply::Review(json!({"allowed": false, "status": {"reason": "JustBecause"}})),
        _ => {
            assert!(path.ends_with("?timeout=10s"), "{path}");
            Reply::Review(json!({"allowed": false}))
        }
    })
    .await;
    let server = start().await;
    let maps = rule(&["CREATE", "UPDATE", "DELETE"], "", "v1", &["configmaps"]);
    configure(&server, VALIDATING, "deny", &[hooks.hook("deny", "/deny", maps, json!({}))]).await;
    let refused = server.post(CONFIG_MAPS, &config_map("bad", json!({}))).await.expect(400);
    assert_eq!(
        refused["message"],
        "admission webhook \"deny.example.com\" denied the request without explanation"
    );
    let refused = server.post(CONFIG_MAPS, &config_map("no", json!({}))).await.expect(418);
    assert_eq!(refused["message"], "admission webhook \"deny.example.com\" denied the request: not this one");
    assert_eq!(refused["reason"], "Forbidden");
    let refused = server.post(CONFIG_MAPS, &config_map("reason", json!({}))).await.expect(400);
    assert_eq!(refused["message"], "admission webhook \"deny.example.com\" denied the request: JustBecause");
    let made = server.post(CONFIG_MAPS, &config_map("fine", json!({"k": "v"}))).await;
    assert_eq!(made.warnings(), ["299 - \"take care\""]);
    let made = made.expect(201);
    let asked = hooks.asked().pop().unwrap();
    for (field, expected) in [
        ("kind", json!({"group": "", "version": "v1", "kind": "ConfigMap"})),
        ("resource", json!({"group": "", "version": "v1", "resource": "configmaps"})),
        ("requestKind", json!({"group": "", "version": "v1", "kind": "ConfigMap"})),
        ("operation", json!("CREATE")),
        ("namespace", json!("default")),
        ("name", json!("fine")),
        ("dryRun", json!(false)),
        ("oldObject", Value::Null),
        ("options", json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"})),
    ] {
        assert_eq!(asked[field], expected, "{field}");
    }
    assert_eq!(asked["userInfo"]["username"], "tester");
    assert_eq!(
        (&asked["object"]["data"], &asked["object"]["metadata"]["uid"]),
        (&made["data"], &made["metadata"]["uid"])
    );
    let dry = format!("{CONFIG_MAPS}/fine?dryRun=All&fieldManager=me");
    let changed = json!({"data": {"k": "w"}});
    server
        .send("PATCH", &dry, &[("content-type", "application/merge-patch+json")], changed.to_string())
        .await
        .expect(200);
    let asked = hooks.asked().pop().unwrap();
    assert_eq!((&asked["dryRun"], &asked["operation"]), (&json!(true), &json!("UPDATE")));
    assert_eq!((&asked["object"]["data"]["k"], &asked["oldObject"]["data"]["k"]), (&json!("w"), &json!("v")));
    assert_eq!(asked["options"]["fieldManager"], "me");
    server.delete(&format!("{CONFIG_MAPS}/fine?gracePeriodSeconds=0")).await.expect(200);
    let asked = hooks.asked().pop().unwrap();
    assert_eq!((&asked["object"], &asked["oldObject"]["metadata"]["name"]), (&Value::Null, &json!("fine")));
    assert_eq!(
        asked["options"],
        json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", "gracePeriodSeconds": 0})
    );
    // Other kinds are not its business.
    let before = hooks.asked().len();
    server.post("/api/v1/namespaces/default/secrets", &json!({"metadata": {"name": "s"}})).await.expect(201);
    assert_eq!(hooks.asked().len(), before);
    assert_eq!(hooks.connections.load(Ordering::SeqCst), 1, "one connection serves all");
}

#[tokio::test]
async fn webhooks_change_objects_one_after_the_other_and_again() {
    let hooks = Webhooks::start(|path, request| {
        let labels = &request["object"]["metadata"]["labels"];
        let add = |key: &str, value: &str| match labels.is_object() {
            true => patch(&json!([{"op": "add", "path": format!("/metadata/labels/{key}"), "value": value}])),
            false => patch(&json!([{"op": "add", "path": "/metadata/labels", "value": {key: value}}])),
        };
        match path.split('?').next().unwrap() {
            "/first" if !labels["second"].is_null() => add("first", "saw-second"),
            "/first" => add("first", "alone"),
            "/second" => add("second", labels["first"].as_str().unwrap_or("none")),
            "/limits" => patch(&json!([
                {"op": "add", "path": "/spec/containers/0/resources", "value": {"limits": {"cpu": "1"}}},
                {"op": "replace", "path": "/metadata/uid", "value": "forged"}])),
            _ => patch(&json!([{"op": "add", "path": "/spec/nonsense", "value": 1}, {"op": "replace", "path": "/nowhere", "value": 1}])),
        }
    })
    .await;
    let server = start().await;
    let maps = rule(&["CREATE"], "", "v1", &["configmaps"]);
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    configure(&server, MUTATING, "b", &[hooks.hook("second", "/second", maps.clone(), json!({}))]).await;
    configure(&server, MUTATING, "a", &[hooks.hook("first", "/first", maps, again)]).await;
    let made = server.post(CONFIG_MAPS, &config_map("m", json!({}))).await.expect(201);
    assert_eq!(made["metadata"]["labels"], json!({"first": "saw-second", "second": "alone"}));
    assert_eq!(hooks.paths(), ["/first", "/second", "/first"]);
    let owned = made["metadata"]["managedFields"].to_string();
    assert!(!owned.contains("saw-second") && !owned.contains("f:first"), "{owned}");
    // What a webhook leaves out is filled in; what only the server sets stays.
    let pods = rule(&["CREATE"], "", "v1", &["pods"]);
    let limits = json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "500m"}}]}});
    configure(&server, MUTATING, "c", &[hooks.hook("limits", "/limits", pods.clone(), json!({}))]).await;
    let made = server.post(PODS, &pod("p")).await.expect(201);
    assert_eq!(made["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "1"}));
    assert_ne!(made["metadata"]["uid"], "forged");
    server.post("/api/v1/namespaces/default/limitranges", &limits).await.expect(201);
    let refused = server.post(PODS, &pod("q")).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"q\" is forbidden: [maximum cpu usage per Container is 500m, but limit is 1]"
            .replace(['[', ']'], "")
    );
    server.delete(&format!("{MUTATING}/c")).await.expect(200);
    configure(&server, MUTATING, "d", &[hooks.hook("bad", "/bad", pods, json!({}))]).await;
    let failed = server.post(PODS, &pod("r")).await.expect(500);
    assert!(failed["message"].as_str().unwrap().starts_with("Internal error occurred: "), "{failed}");
}

#[tokio::test]
async fn policies_come_before_webhooks_and_see_their_changes_if_they_want_to() {
    let add = json!([{"op": "add", "path": "/data/hook", "value": "x"}]);
    let hooks = Webhooks::start(move |_, _| patch(&add)).await;
    let server = start().await;
    let maps = rule(&["CREATE"], "", "v1", &["configmaps"]);
    configure(&server, MUTATING, "h", &[hooks.hook("h", "/", maps.clone(), json!({}))]).await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let binding = json!({"metadata": {"name": "p"}, "spec": {"policyName": "p"}});
    server.post(&format!("{group}/mutatingadmissionpolicybindings"), &binding).await.expect(201);
    let policies = format!("{group}/mutatingadmissionpolicies");
    let expression = "Object{data: Object.data{policy: string(object.data.size())}}";
    for (reinvocation, seen) in [("Never", "1"), ("IfNeeded", "3")] {
        let spec = json!({"matchConstraints": {"resourceRules": [maps]}, "reinvocationPolicy": reinvocation,
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}]});
        server.post(&policies, &json!({"metadata": {"name": "p"}, "spec": spec})).await.expect(201);
        let made =
            server.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("m", json!({"k": "v"}))).await;
        assert_eq!(
            made.expect(201)["data"],
            json!({"k": "v", "hook": "x", "policy": seen}),
            "{reinvocation}"
        );
        assert_eq!(hooks.asked().pop().unwrap()["object"]["data"], json!({"k": "v", "policy": "1"}));
        server.delete(&format!("{policies}/p")).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_lead_to_webhooks_which_see_connections_too() {
    let hooks = Webhooks::start(|_, request| match request["operation"].as_str().unwrap() {
        "CONNECT" => {
            Reply::Review(json!({"allowed": false, "status": {"message": "attaching is not allowed"}}))
        }
        _ => allow(),
    })
    .await;
    let cluster = access::cluster().await;
    let admin = cluster.admin();
    *cluster.dialer.to_pods.lock().unwrap() = Some(hooks.address);
    cluster.service_account("default").await;
    cluster
        .create("/api/v1/namespaces/default/pods", json!({"metadata": {"name": "p"}, "spec": {"nodeName": access::NODE, "containers": [{"name": "c", "image": "x"}]}}))
        .await;
    let service = json!({"metadata": {"name": "hooks"}, "spec": {"ports": [{"name": "https", "port": 8443, "targetPort": 9443}]}});
    cluster.create("/api/v1/namespaces/default/services", service).await;
    let slice = json!({"metadata": {"name": "hooks-1", "labels": {"kubernetes.io/service-name": "hooks"}}, "addressType": "IPv4",
        "ports": [{"name": "https", "port": 9443}], "endpoints": [{"addresses": ["10.1.2.9"], "nodeName": access::NODE}]});
    cluster.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await;
    let attach = json!({"operations": ["CONNECT", "CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/attach", "configmaps"]});
    let client = json!({"caBundle": hooks.bundle, "service": {"namespace": "default", "name": "hooks", "port": 8443, "path": "/attach"}});
    let hook = hooks.hook("attach", "", attach, json!({"clientConfig": client}));
    cluster.create(VALIDATING, json!({"metadata": {"name": "attach"}, "webhooks": [hook]})).await;
    cluster.create(CONFIG_MAPS, config_map("m", json!({}))).await;
    assert_eq!(hooks.paths(), ["/attach"]);
    let dialed = cluster.dialer.dialed.lock().unwrap().clone();
    assert_eq!(dialed, [(access::NODE.to_owned(), "10.1.2.9:9443".parse().unwrap())]);
    let upgrade = access::As {
        headers: vec![("connection", "Upgrade".into()), ("upgrade", "websocket".into())],
        ..admin
    };
    let refused = cluster
        .get(&upgrade, "/api/v1/namespaces/default/pods/p/attach?container=c&stdin=true")
        .await
        .expect(400);
    assert_eq!(
        refused["message"],
        "admission webhook \"attach.example.com\" denied the request: attaching is not allowed"
    );
    let asked = hooks.asked().pop().unwrap();
    assert_eq!(
        asked["object"],
        json!({"kind": "PodAttachOptions", "apiVersion": "v1", "container": "c", "stdin": true})
    );
    assert_eq!((&asked["operation"], &asked["subResource"]), (&json!("CONNECT"), &json!("attach")));
    // Policies see them before webhooks do.
    let group = "/apis/admissionregistration.k8s.io/v1";
    let rule = rule(&["CONNECT"], "", "v1", &["pods/attach"]);
    let expression = "!has(object.stdin) && request.subResource == 'attach' && request.requestKind.kind == 'PodAttachOptions'";
    let spec =
        json!({"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": expression}]});
    let policies = format!("{group}/validatingadmissionpolicies");
    cluster.create(&policies, json!({"metadata": {"name": "attach"}, "spec": spec})).await;
    let spec = json!({"policyName": "attach", "validationActions": ["Deny"]});
    let bindings = format!("{group}/validatingadmissionpolicybindings");
    cluster.create(&bindings, json!({"metadata": {"name": "attach"}, "spec": spec})).await;
    let attach = async |stdin: bool| {
        let path = format!("/api/v1/namespaces/default/pods/p/attach?container=c&stdin={stdin}&stdout=true");
        cluster.get(&upgrade, &path).await
    };
    attach(true).await.expect(422);
    attach(false).await.expect(400);
    cluster.api.stop().await;
}
