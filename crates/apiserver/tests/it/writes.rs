//! What of an object is the server's, what a binding and a delete are held to, and what lists refuse.

use crate::harness::*;
use serde_json::{Value, json};

/// What a client says of what only the server says is not heard.
#[tokio::test]
async fn clients_do_not_write_what_the_server_does() {
    let s = start().await;
    let mut object = deployment("web");
    object["metadata"]["resourceVersion"] = "7".into();
    let refused = s.post(DEPLOYMENTS, &object).await.expect(500);
    assert_eq!(refused["message"], "resourceVersion should not be set on objects to be created");
    object["metadata"] = json!({"name": "web", "uid": "mine", "generation": 9,
        "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 5});
    let made = s.post(DEPLOYMENTS, &object).await.expect(201);
    let metadata = &made["metadata"];
    assert_ne!(metadata["uid"], "mine");
    assert_eq!(metadata["generation"], 1);
    assert!(
        metadata.get("deletionTimestamp").is_none() && metadata.get("deletionGracePeriodSeconds").is_none()
    );

    let path = format!("{DEPLOYMENTS}/web");
    let mut next = made.clone();
    next["metadata"]["generation"] = 9.into();
    assert_eq!(s.put(&path, &next).await.expect(200)["metadata"]["generation"], 1);
    next["metadata"]["uid"] = "another".into();
    let refused = s.put(&path, &next).await.expect(409);
    assert!(refused["message"].as_str().unwrap().contains("UID in precondition: another"), "{refused}");
    next["metadata"]["uid"] = metadata["uid"].clone();
    next["metadata"]["resourceVersion"] = "x".into();
    let refused = s.put(&path, &next).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "metadata.resourceVersion");
    next["metadata"]["resourceVersion"] = "".into();
    next["metadata"]["namespace"] = "other".into();
    let refused = s.put(&path, &next).await.expect(400);
    let text = "the namespace of the object (other) does not match the namespace on the request (default)";
    assert_eq!(refused["message"], text);

    // A deletion is not taken back.
    let held = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    s.patch(&path, "merge-patch+json", &held).await.expect(200);
    let marked = s.delete(&path).await.expect(200);
    let back = json!({"metadata": {"deletionTimestamp": null, "deletionGracePeriodSeconds": null}});
    let patched = s.patch(&path, "merge-patch+json", &back).await.expect(200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(patched["metadata"]["deletionTimestamp"], marked["metadata"]["deletionTimestamp"]);
}

#[tokio::test]
async fn bindings_are_held_to_their_pod() {
    let s = start().await;
    let made = s.post(PODS, &pod("web")).await.expect(201);
    let binding = |more: Value| {
        let mut binding = json!({"metadata": {"name": "web"}, "target": {"kind": "Node", "name": "n1"}});
        for (field, value) in more.as_object().unwrap() {
            binding["metadata"][field] = value.clone();
        }
        binding
    };
    let path = format!("{PODS}/web/binding");
    let refused = s.post(&path, &binding(json!({"name": "other"}))).await.expect(400);
    let text = "name in URL does not match name in Binding object: web vs other";
    assert_eq!(refused["message"], text);
    for (more, why) in [
        (json!({"uid": "another"}), "UID in precondition: another"),
        (
            json!({"uid": made["metadata"]["uid"], "resourceVersion": "1"}),
            "ResourceVersion in precondition: 1",
        ),
    ] {
        let refused = s.post(&path, &binding(more)).await.expect(409);
        assert!(refused["message"].as_str().unwrap().contains(why), "{refused}");
    }
    let mut gated = pod("gated");
    gated["spec"]["schedulingGates"] = json!([{"name": "example.com/wait"}]);
    s.post(PODS, &gated).await.expect(201);
    let refused =
        s.post(&format!("{PODS}/gated/binding"), &binding(json!({"name": "gated"}))).await.expect(409);
    assert!(
        refused["message"].as_str().unwrap().contains("has non-empty .spec.schedulingGates"),
        "{refused}"
    );
    let mut ending = pod("ending");
    ending["metadata"]["finalizers"] = json!(["example.com/hold"]);
    s.post(PODS, &ending).await.expect(201);
    s.delete(&format!("{PODS}/ending")).await.expect(200);
    let refused =
        s.post(&format!("{PODS}/ending/binding"), &binding(json!({"name": "ending"}))).await.expect(409);
    assert!(refused["message"].as_str().unwrap().contains("is being deleted"), "{refused}");

    // Annotations come along; labels where the Pod has none of the name.
    let labels = json!({"metadata": {"labels": {"a": "pod"}}});
    s.patch(&format!("{PODS}/web"), "merge-patch+json", &labels).await.expect(200);
    let more = json!({"labels": {"a": "binding", "b": "binding"}, "annotations": {"c": "binding"}});
    s.post(&path, &binding(more)).await.expect(201);
    let bound = s.get(&format!("{PODS}/web")).await.expect(200);
    assert_eq!(bound["metadata"]["labels"], json!({"a": "pod", "app": "web", "b": "binding"}));
    assert_eq!(bound["metadata"]["annotations"], json!({"c": "binding"}));
}

#[tokio::test]
async fn options_of_deletes_are_checked_and_heard() {
    let s = start().await;
    let json_type = [("content-type", "application/json")];
    let path = format!("{PODS}/web");
    s.post(PODS, &pod("web")).await.expect(201);
    let binding = json!({"metadata": {"name": "web"}, "target": {"kind": "Node", "name": "n1"}});
    s.post(&format!("{path}/binding"), &binding).await.expect(201);
    for (body, code, text) in [
        (json!({"kind": "Pod"}), 400, "cannot be converted to DeleteOptions"),
        (json!({"preconditions": {"resourceVersion": "1"}}), 409, "ResourceVersion in the precondition (1)"),
        (json!({"propagationPolicy": "Odd"}), 422, "Unsupported value: \"Odd\""),
        (json!({"propagationPolicy": "Orphan", "orphanDependents": true}), 422, "cannot be both set"),
        (json!({"dryRun": ["Some"]}), 422, "dryRun: Unsupported value"),
    ] {
        let refused = s.send("DELETE", &path, &json_type, body.to_string()).await.expect(code);
        assert!(refused["message"].as_str().unwrap().contains(text), "{refused}");
    }
    // In the body as in the query, of one and of many.
    let dry = json!({"dryRun": ["All"]}).to_string();
    s.send("DELETE", &path, &json_type, dry.clone()).await.expect(200);
    s.send("DELETE", PODS, &json_type, dry).await.expect(200);
    let still = s.get(&path).await.expect(200);
    assert!(still["metadata"].get("deletionTimestamp").is_none(), "a dry run marks nothing");
    let orphan = json!({"orphanDependents": true, "gracePeriodSeconds": 60}).to_string();
    let marked = s.send("DELETE", &path, &json_type, orphan).await.expect(200);
    assert_eq!(marked["metadata"]["finalizers"], json!(["orphan"]));
    // Less than none is a second; a shorter time ends sooner.
    let at = |object: &Value| object["metadata"]["deletionTimestamp"].as_str().unwrap().to_owned();
    let less = json!({"orphanDependents": true, "gracePeriodSeconds": -5}).to_string();
    let sooner = s.send("DELETE", &path, &json_type, less).await.expect(200);
    assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 1);
    assert!(at(&sooner) < at(&marked), "{} {}", at(&sooner), at(&marked));

    // Old clients ask for no orphans, and learn that it takes a while.
    let mut held = config_map("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    s.post(CONFIG_MAPS, &held).await.expect(201);
    let none = json!({"orphanDependents": false}).to_string();
    s.send("DELETE", &format!("{CONFIG_MAPS}/held"), &json_type, none).await.expect(202);

    // A Pod that has ended on its node needs no time.
    s.post(PODS, &pod("ended")).await.expect(201);
    let binding = json!({"metadata": {"name": "ended"}, "target": {"kind": "Node", "name": "n1"}});
    s.post(&format!("{PODS}/ended/binding"), &binding).await.expect(201);
    let phase = json!({"status": {"phase": "Succeeded"}});
    s.patch(&format!("{PODS}/ended/status"), "merge-patch+json", &phase).await.expect(200);
    s.delete(&format!("{PODS}/ended")).await.expect(200);
    s.get(&format!("{PODS}/ended")).await.expect(404);
}

#[tokio::test]
async fn contradictions_of_lists_and_watches_are_refused() {
    let s = start().await;
    for name in ["a", "b"] {
        s.post(CONFIG_MAPS, &config_map(name, json!({}))).await.expect(201);
    }
    let token = s.get(&format!("{CONFIG_MAPS}?limit=1")).await.expect(200)["metadata"]["continue"].clone();
    let token = token.as_str().unwrap();
    for (query, code, text) in [
        (
            "watch=1&resourceVersion=1&resourceVersionMatch=Exact".into(),
            422,
            "unless sendInitialEvents is provided",
        ),
        ("watch=1&sendInitialEvents=true&resourceVersionMatch=Exact".into(), 422, "to NotOlderThan"),
        ("sendInitialEvents=true".into(), 422, "sendInitialEvents is forbidden for list"),
        ("resourceVersion=0&resourceVersionMatch=Exact".into(), 422, "\"exact\" is forbidden"),
        ("resourceVersionMatch=Exact".into(), 422, "unless resourceVersion is provided"),
        (
            format!("continue={token}&resourceVersion=0&resourceVersionMatch=NotOlderThan"),
            422,
            "when continue is",
        ),
        (format!("continue={token}&resourceVersion=1"), 400, "is not allowed when using continue"),
        ("limit=x".into(), 400, "strconv.ParseInt: parsing \"x\""),
        ("fieldSelector=spec.x%3Dy".into(), 400, "is not a known field selector"),
        ("fieldSelector=%3D%3D%3D".into(), 400, "invalid"),
        (
            "continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MCwic3RhcnQiOiJhIn0".into(),
            400,
            "encoded start resourceVersion",
        ),
    ] {
        let refused = s.get(&format!("{CONFIG_MAPS}?{query}")).await;
        assert_eq!(refused.code, code, "{query}: {}", refused.text());
        assert!(refused.text().contains(text.replace('"', "\\\"").as_str()), "{query}: {}", refused.text());
    }
    // A namespace may be selected by its field, of what has one.
    let mut other = config_map("c", json!({}));
    other["metadata"]["namespace"] = "kube-system".into();
    let made = s.post("/api/v1/namespaces/kube-system/configmaps", &other).await;
    assert!(matches!(made.code, 201 | 404), "{}", made.text());
    let of = |namespace: &str| format!("/api/v1/configmaps?fieldSelector=metadata.namespace%3D{namespace}");
    let names = |list: Value| list["items"].as_array().unwrap().len();
    assert_eq!(names(s.get(&of("default")).await.expect(200)), 2);
    assert_eq!(names(s.get(&of("none")).await.expect(200)), 0);

    // Without bookmarks none tells of the end; without initial events there are none.
    let query = "watch=true&resourceVersionMatch=NotOlderThan";
    let mut watch = s.watch(&format!("{CONFIG_MAPS}?{query}&sendInitialEvents=true")).await;
    let mut later = s.watch(&format!("{CONFIG_MAPS}?{query}&sendInitialEvents=false")).await;
    s.post(CONFIG_MAPS, &config_map("d", json!({}))).await.expect(201);
    for name in ["a", "b", "d"] {
        assert_eq!(watch.event().await, ("ADDED".to_owned(), name.to_owned()));
    }
    assert_eq!(later.event().await, ("ADDED".to_owned(), "d".to_owned()));
}

/// `status.podIP` and `status.podIPs` are one piece of data, and so are `spec.podCIDR` and `spec.podCIDRs`,
/// whatever way they are written: the single value counts.
#[tokio::test]
async fn a_single_address_and_its_list_are_stored_whole() {
    let s = start().await;
    s.post(PODS, &pod("web")).await.expect(201);
    let path = format!("{PODS}/web/status");
    let (merge, strategic) = ("merge-patch+json", "strategic-merge-patch+json");
    for (kind, status, ip, ips) in [
        (merge, json!({"podIP": "10.1.0.1"}), "10.1.0.1", json!([{"ip": "10.1.0.1"}])),
        (merge, json!({"podIPs": [{"ip": "10.1.0.9"}]}), "10.1.0.1", json!([{"ip": "10.1.0.1"}])),
        (
            merge,
            json!({"podIP": null, "podIPs": [{"ip": "10.1.0.2"}, {"ip": "fd00::2"}]}),
            "10.1.0.2",
            json!([{"ip": "10.1.0.2"}, {"ip": "fd00::2"}]),
        ),
        (strategic, json!({"podIP": "10.1.0.3"}), "10.1.0.3", json!([{"ip": "10.1.0.3"}])),
    ] {
        s.patch(&path, kind, &json!({"status": status})).await.expect(200);
        let stored = s.get(&format!("{PODS}/web")).await.expect(200);
        assert_eq!((&stored["status"]["podIP"], &stored["status"]["podIPs"]), (&json!(ip), &ips));
    }
    let mut new = s.get(&path).await.expect(200);
    new["status"].as_object_mut().unwrap().remove("podIP");
    new["status"]["podIPs"] = json!([{"ip": "10.1.0.4"}]);
    assert_eq!(s.put(&path, &new).await.expect(200)["status"]["podIP"], "10.1.0.4");
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
        "spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.7.0/24"]}});
    let made = s.post("/api/v1/nodes", &node).await.expect(201);
    assert_eq!(made["spec"]["podCIDRs"], json!(["10.9.0.0/24"]));
}
