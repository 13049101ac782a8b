//! What Kubernetes' conformance tests ask of the API for workloads and for what Pods use, where no
//! controller and no node is needed.

use crate::harness::*;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const MERGE: &str = "merge-patch+json";
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// Where objects of a kind are, one of them without its name, and a change of its specification.
fn workloads() -> Vec<(&'static str, Value, Value)> {
    let template =
        json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selected = json!({"selector": {"matchLabels": {"app": "x"}}, "template": template});
    let once = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]});
    let nine = json!({"replicas": 9});
    vec![
        ("/apis/apps/v1/namespaces/default/deployments", selected.clone(), nine.clone()),
        ("/apis/apps/v1/namespaces/default/replicasets", selected.clone(), nine.clone()),
        ("/apis/apps/v1/namespaces/default/statefulsets", selected.clone(), nine.clone()),
        ("/apis/apps/v1/namespaces/default/daemonsets", selected, json!({"minReadySeconds": 9})),
        (
            "/api/v1/namespaces/default/replicationcontrollers",
            json!({"selector": {"app": "x"}, "template": template}),
            nine,
        ),
        (
            "/apis/batch/v1/namespaces/default/jobs",
            json!({"suspend": true, "template": {"spec": once}}),
            json!({"parallelism": 9}),
        ),
        (
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
            json!({"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}),
            json!({"minAvailable": 9}),
        ),
        (PODS, template["spec"].clone(), json!({"activeDeadlineSeconds": 9})),
    ]
}

fn named(name: &str, labels: Value, spec: &Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}, "spec": spec})
}

fn causes(refused: &Value) -> Vec<&str> {
    let causes = refused["details"]["causes"].as_array().into_iter().flatten();
    causes.filter_map(|cause| cause["field"].as_str()).collect()
}

async fn count(s: &Server, path: &str) -> usize {
    s.get(path).await.expect(200)["items"].as_array().unwrap().len()
}

#[tokio::test]
async fn collections_are_found_changed_and_deleted_by_label() {
    const LABEL: &str = "labelSelector=of%3Dmine";
    let s = start().await;
    for (path, spec, _) in workloads() {
        for (name, of) in [("a", "mine"), ("b", "mine"), ("c", "other")] {
            s.post(path, &named(name, json!({"of": of}), &spec)).await.expect(201);
        }
        let label = json!({"metadata": {"labels": {"patched": "yes"}}});
        s.patch(&format!("{path}/a"), "strategic-merge-patch+json", &label).await.expect(200);
        let mut b = s.get(&format!("{path}/b")).await.expect(200);
        b["metadata"]["annotations"]["replaced"] = "yes".into();
        s.put(&format!("{path}/b"), &b).await.expect(200);
        let everywhere = path.replace("/namespaces/default", "");
        let found = s.get(&format!("{everywhere}?{LABEL}")).await.expect(200);
        let items = found["items"].as_array().unwrap();
        assert_eq!(items.len(), 2, "{path}");
        assert_eq!(items[0]["metadata"]["labels"]["patched"], "yes", "{path}");
        assert_eq!(items[1]["metadata"]["annotations"]["replaced"], "yes", "{path}");
        assert_eq!(count(&s, &format!("{everywhere}?labelSelector=patched%3Dyes")).await, 1, "{path}");
        s.delete(&format!("{path}?{LABEL}")).await.expect(200);
        assert_eq!(count(&s, &format!("{path}?{LABEL}")).await, 0, "{path}");
        s.get(&format!("{path}/c")).await.expect(200);
    }
}

#[tokio::test]
async fn a_status_is_read_replaced_and_patched_apart() {
    let s = start().await;
    for (path, spec, change) in workloads() {
        let one = format!("{path}/x");
        let status = format!("{one}/status");
        let made = s.post(path, &named("x", json!({"app": "x"}), &spec)).await.expect(201);
        assert_eq!(s.get(&status).await.expect(200), made);
        let conditions = |message: &str| {
            json!([{"type": "Seen", "status": "True", "reason": "ByTest", "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        };
        let patch = json!({"metadata": {"annotations": {"seen": "yes"}}, "spec": change,
            "status": {"conditions": conditions("patched")}});
        s.patch(&status, MERGE, &patch).await.expect(200);
        let mut now = s.get(&status).await.expect(200);
        assert_eq!(now["status"]["conditions"], conditions("patched"), "{path}");
        assert_eq!(now["metadata"]["annotations"]["seen"], "yes", "{path}");
        now["status"]["conditions"] = conditions("replaced");
        for (field, value) in change.as_object().unwrap() {
            now["spec"][field] = value.clone();
        }
        s.put(&status, &now).await.expect(200);
        let mut now = s.get(&one).await.expect(200);
        assert_eq!(now["status"]["conditions"], conditions("replaced"), "{path}");
        assert_eq!(now["spec"], made["spec"], "{path}: a status says nothing of the rest");
        // Nor the other way about.
        let seen = now["status"].clone();
        now["status"] = json!({"conditions": conditions("wrong")});
        s.put(&one, &now).await.expect(200);
        s.patch(&one, MERGE, &json!({"spec": change, "status": null})).await.expect(200);
        let now = s.get(&one).await.expect(200);
        assert_eq!(now["status"], seen, "{path}");
        assert_ne!(now["spec"], made["spec"], "{path}");
    }
}

#[tokio::test]
async fn a_scale_is_read_replaced_and_patched() {
    let s = start().await;
    for (path, spec, _) in workloads().into_iter().filter(|(.., change)| change["replicas"] == 9) {
        s.post(path, &named("x", json!({}), &spec)).await.expect(201);
        let (one, scale) = (format!("{path}/x"), format!("{path}/x/scale"));
        let mut now = s.get(&scale).await.expect(200);
        assert_eq!((&now["kind"], &now["spec"]["replicas"]), (&json!("Scale"), &json!(1)), "{path}");
        now["spec"]["replicas"] = 2.into();
        s.put(&scale, &now).await.expect(200);
        assert_eq!(s.get(&scale).await.expect(200)["spec"]["replicas"], 2, "{path}");
        assert_eq!(s.get(&one).await.expect(200)["spec"]["replicas"], 2, "{path}");
        s.patch(&scale, MERGE, &json!({"spec": {"replicas": 4}})).await.expect(200);
        assert_eq!(s.get(&scale).await.expect(200)["spec"]["replicas"], 4, "{path}");
        assert_eq!(s.get(&one).await.expect(200)["spec"]["replicas"], 4, "{path}");
    }
}

#[tokio::test]
async fn a_pod_is_submitted_updated_and_removed() {
    let s = start().await;
    let path = format!("{PODS}/web");
    let selected = |app: &str| format!("{PODS}?labelSelector=app%3D{app}");
    let since = s.get(&selected("web")).await.expect(200);
    let since = since["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = s.watch(&format!("{}&watch=true&resourceVersion={since}", selected("web"))).await;
    s.post(PODS, &pod("web")).await.expect(201);
    assert_eq!(count(&s, &selected("web")).await, 1);
    assert_eq!(watch.event().await.0, "ADDED");
    let binding = json!({"metadata": {"name": "web"}, "target": {"kind": "Node", "name": "n1"}});
    s.post(&format!("{path}/binding"), &binding).await.expect(201);
    assert_eq!(watch.next().await.unwrap()["object"]["spec"]["nodeName"], "n1");
    let running = json!({"status": {"phase": "Running"}});
    s.patch(&format!("{path}/status"), "strategic-merge-patch+json", &running).await.expect(200);
    assert_eq!(watch.next().await.unwrap()["object"]["status"]["phase"], "Running");
    let patch = json!({"metadata": {"labels": {"app": "other"}},
        "spec": {"containers": [{"name": "c", "image": "another"}]}});
    let got = s.patch(&path, "strategic-merge-patch+json", &patch).await.expect(200);
    assert_eq!(got["spec"]["containers"][0]["image"], "another");
    assert_eq!((count(&s, &selected("web")).await, count(&s, &selected("other")).await), (0, 1));
    assert_eq!(watch.event().await.0, "DELETED", "it is selected no more");
    let mut got = s.get(&path).await.expect(200);
    got["metadata"]["labels"]["app"] = "web".into();
    s.put(&path, &got).await.expect(200);
    assert_eq!(watch.event().await.0, "ADDED");
    s.delete(&path).await.expect(200);
    let event = watch.next().await.unwrap();
    assert_eq!(event["type"], "MODIFIED");
    assert!(event["object"]["metadata"]["deletionTimestamp"].is_string(), "{event}");
    // Its node says that it has ended.
    s.delete(&format!("{path}?gracePeriodSeconds=0")).await.expect(200);
    assert_eq!(watch.event().await, ("DELETED".to_owned(), "web".to_owned()));
    assert_eq!(count(&s, &selected("web")).await, 0);
}

#[tokio::test]
async fn the_generation_of_a_pod_counts_its_specifications() {
    let s = start().await;
    let path = format!("{PODS}/web");
    let mut web = pod("web");
    web["metadata"]["generation"] = 100.into();
    let made = s.post(PODS, &web).await.expect(201);
    assert_eq!(made["metadata"]["generation"], 1, "it is the server's");
    let binding = json!({"metadata": {"name": "web"}, "target": {"kind": "Node", "name": "n1"}});
    s.post(&format!("{path}/binding"), &binding).await.expect(201);
    let label = json!({"metadata": {"labels": {"more": "yes"}}});
    let got = s.patch(&path, MERGE, &label).await.expect(200);
    assert_eq!(got["metadata"]["generation"], 1, "neither its node nor a label counts");
    for n in 1..=499 {
        let change = json!({"spec": {"activeDeadlineSeconds": 10_000 - n}});
        let got = s.patch(&path, MERGE, &change).await.expect(200);
        assert_eq!(got["metadata"]["generation"], 1 + n);
    }
    let seen = json!({"status": {"observedGeneration": 500}});
    let got = s.patch(&format!("{path}/status"), MERGE, &seen).await.expect(200);
    assert_eq!(got["status"]["observedGeneration"], got["metadata"]["generation"]);
    let ending = s.delete(&path).await.expect(200);
    assert_eq!(ending["metadata"]["generation"], 501, "its end is one more");
}

#[tokio::test]
async fn pods_are_held_to_their_rules_and_classed() {
    let s = start().await;
    let equal = json!({"cpu": "100m", "memory": "100Mi"});
    for (name, resources, class) in [
        ("sure", json!({"requests": equal, "limits": equal}), "Guaranteed"),
        ("burst", json!({"requests": equal}), "Burstable"),
        ("best", json!({}), "BestEffort"),
    ] {
        let mut classed = pod(name);
        classed["spec"]["containers"][0]["resources"] = resources;
        s.post(PODS, &classed).await.expect(201);
        assert_eq!(s.get(&format!("{PODS}/{name}")).await.expect(200)["status"]["qosClass"], class);
    }
    let mut tuned = pod("tuned");
    tuned["spec"]["securityContext"] = json!({"sysctls": [{"name": "foo-", "value": "bar"},
        {"name": "kernel.shmmax", "value": "100000000"}, {"name": "bar..", "value": "42"}]});
    let refused = s.post(PODS, &tuned).await.expect(422);
    let at = |n: usize| format!("spec.securityContext.sysctls[{n}].name");
    assert_eq!(causes(&refused), [at(0), at(2)]);
    // A volume of a CSI driver is an object of the API, whatever nodes make of it.
    let mut mounted = pod("mounted");
    mounted["spec"]["volumes"] = json!([{"name": "v", "csi": {"driver": "inline.example.com"}}]);
    mounted["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    s.post(PODS, &mounted).await.expect(201);
    let got = s.get(&format!("{PODS}/mounted")).await.expect(200);
    assert_eq!(got["spec"]["volumes"][0]["csi"]["driver"], "inline.example.com");
    let label = json!({"metadata": {"labels": {"app": "patched"}}});
    s.patch(&format!("{PODS}/mounted"), MERGE, &label).await.expect(200);
    let found = s.get("/api/v1/pods?labelSelector=app%3Dpatched").await.expect(200);
    assert_eq!(found["items"][0]["spec"]["volumes"], got["spec"]["volumes"]);
    s.delete(&format!("{PODS}?labelSelector=app%3Dpatched")).await.expect(200);
    s.get(&format!("{PODS}/mounted")).await.expect(404);
}

#[tokio::test]
async fn what_pods_are_configured_by_can_be_made_immutable() {
    let s = start().await;
    for plural in ["configmaps", "secrets"] {
        let path = format!("/api/v1/namespaces/default/{plural}");
        let object = |data: Value| json!({"metadata": {"name": "x"}, "data": data});
        assert_eq!(causes(&s.post(&path, &object(json!({"": "dg=="}))).await.expect(422)), ["data[]"]);
        s.post(&path, &object(json!({"k": "dg=="}))).await.expect(201);
        let one = format!("{path}/x");
        s.put(&one, &object(json!({"k": "dzE="}))).await.expect(200);
        let mut sealed = s.get(&one).await.expect(200);
        assert_eq!(sealed["data"]["k"], "dzE=");
        sealed["immutable"] = true.into();
        let sealed = s.put(&one, &sealed).await.expect(200);
        let mut other = sealed.clone();
        other["data"]["k"] = "dzI=".into();
        assert_eq!(causes(&s.put(&one, &other).await.expect(422)), ["data"]);
        let mut opened = sealed.clone();
        opened["immutable"] = false.into();
        assert_eq!(causes(&s.put(&one, &opened).await.expect(422)), ["immutable"]);
        let mut labelled = sealed.clone();
        labelled["metadata"]["labels"] = json!({"more": "yes"});
        let got = s.put(&one, &labelled).await.expect(200);
        assert_eq!((&got["metadata"]["labels"]["more"], &got["data"]), (&json!("yes"), &sealed["data"]));
        s.delete(&one).await.expect(200);
        s.get(&one).await.expect(404);
    }
}

#[tokio::test]
async fn priority_classes_keep_their_value() {
    let s = start().await;
    let path = "/apis/scheduling.k8s.io/v1/priorityclasses";
    for name in ["p1", "p2"] {
        let class = json!({"metadata": {"name": name, "labels": {"of": "mine"}}, "value": 7});
        s.post(path, &class).await.expect(201);
    }
    assert_eq!(count(&s, &format!("{path}?labelSelector=of%3Dmine")).await, 2);
    let one = format!("{path}/p1");
    let told = json!({"description": "patched"});
    let mut got = s.patch(&one, MERGE, &told).await.expect(200);
    assert_eq!(got["description"], "patched");
    got["description"] = "replaced".into();
    let mut got = s.put(&one, &got).await.expect(200);
    assert_eq!(got["description"], "replaced");
    assert_eq!(causes(&s.patch(&one, MERGE, &json!({"value": 8})).await.expect(422)), ["value"]);
    got["value"] = 8.into();
    assert_eq!(causes(&s.put(&one, &got).await.expect(422)), ["value"]);
    s.delete(&format!("{path}?labelSelector=of%3Dmine")).await.expect(200);
    assert_eq!(count(&s, path).await, 0);
}

async fn assembled() -> Server {
    start_assembled(Arc::new(skeg_store::Memory::new())).await
}

#[tokio::test]
async fn pods_and_accounts_may_opt_out_of_tokens() {
    let s = assembled().await;
    let wishes = [None, Some(true), Some(false)];
    for of_account in wishes {
        let account = format!("account-{}", of_account.map_or("none".into(), |wish| wish.to_string()));
        let accounts = "/api/v1/namespaces/default/serviceaccounts";
        s.post(accounts, &json!({"metadata": {"name": account}})).await.expect(201);
        let path = format!("{accounts}/{account}");
        if let Some(wish) = of_account {
            let mut changed = s.get(&path).await.expect(200);
            changed["automountServiceAccountToken"] = wish.into();
            s.put(&path, &changed).await.expect(200);
        }
        assert_eq!(s.get(&path).await.expect(200)["automountServiceAccountToken"], json!(of_account));
        for of_pod in wishes {
            let mut asking =
                pod(&format!("{account}-{}", of_pod.map_or("none".into(), |wish| wish.to_string())));
            asking["spec"]["serviceAccountName"] = account.as_str().into();
            if let Some(wish) = of_pod {
                asking["spec"]["automountServiceAccountToken"] = wish.into();
            }
            let made = s.post(PODS, &asking).await.expect(201);
            let mounts = made["spec"]["containers"][0]["volumeMounts"].as_array().into_iter().flatten();
            let mut paths = mounts.filter_map(|mount| mount["mountPath"].as_str());
            let mounted = paths.any(|path| path == "/var/run/secrets/kubernetes.io/serviceaccount");
            assert_eq!(mounted, of_pod.or(of_account).unwrap_or(true), "{account} {of_pod:?}");
        }
    }
    s.api.stop().await;
}

#[tokio::test]
async fn services_change_their_type() {
    let s = assembled().await;
    let ports = json!([{"port": 80, "protocol": "TCP"}]);
    let external = json!({"type": "ExternalName", "externalName": "db.example.com"});
    for (from, to) in [
        (json!({"type": "ClusterIP", "ports": ports}), external.clone()),
        (json!({"type": "NodePort", "ports": ports}), external.clone()),
        (external.clone(), json!({"type": "ClusterIP", "externalName": "", "ports": ports})),
        (external, json!({"type": "NodePort", "externalName": "", "ports": ports})),
    ] {
        let service = json!({"metadata": {"name": "x"}, "spec": from});
        let made = s.post(SERVICES, &service).await.expect(201);
        let is_reached = |service: &Value| {
            let spec = &service["spec"];
            let (ip, node_port) = (spec["clusterIP"].is_string(), spec["ports"][0]["nodePort"].is_i64());
            assert_eq!(ip, spec["type"] != "ExternalName", "{service}");
            assert_eq!(node_port, spec["type"] == "NodePort", "{service}");
            assert_eq!(spec["externalName"].is_string(), !ip, "{service}");
        };
        is_reached(&made);
        let mut changed = made.clone();
        // What was given is left as it is: the server knows that it does not go with the type.
        changed["spec"].as_object_mut().unwrap().extend(to.as_object().unwrap().clone());
        if to["externalName"] != "" {
            changed["spec"]["ports"] = made["spec"]["ports"].clone();
        } else {
            changed["spec"].as_object_mut().unwrap().remove("externalName");
        }
        s.put(&format!("{SERVICES}/x"), &changed).await.expect(200);
        is_reached(&s.get(&format!("{SERVICES}/x")).await.expect(200));
        if from["type"] == "NodePort" {
            let next = json!({"metadata": {"name": "next"}, "spec": {"type": "NodePort",
                "clusterIP": made["spec"]["clusterIP"], "ports": made["spec"]["ports"]}});
            let free = async {
                while s.post(SERVICES, &next).await.code != 201 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), free).await.expect("address and port are free");
            s.delete(&format!("{SERVICES}/next")).await.expect(200);
        }
        s.delete(&format!("{SERVICES}/x")).await.expect(200);
    }
    s.api.stop().await;
}

#[tokio::test]
async fn the_api_server_is_a_service_with_endpoints() {
    let s = assembled().await;
    let service = s.get(&format!("{SERVICES}/kubernetes")).await.expect(200);
    let port = &service["spec"]["ports"][0];
    assert_eq!(
        (&port["name"], &port["port"], &port["targetPort"]),
        (&json!("https"), &json!(443), &json!(6443))
    );
    let endpoints = s.get("/api/v1/namespaces/default/endpoints/kubernetes").await.expect(200);
    let subset = &endpoints["subsets"][0];
    assert_eq!(
        (&subset["addresses"], &subset["ports"][0]["port"]),
        (&json!([{"ip": "10.0.0.1"}]), &json!(6443))
    );
    let of = "labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes";
    let slices = s.get(&format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?{of}")).await;
    let slices = slices.expect(200);
    assert_eq!(slices["items"].as_array().unwrap().len(), 1);
    let slice = &slices["items"][0];
    assert_eq!(
        (&slice["endpoints"][0]["addresses"], &slice["ports"][0]["port"]),
        (&json!(["10.0.0.1"]), &json!(6443))
    );
    assert_eq!(slice["endpoints"][0]["conditions"]["ready"], true);
    s.api.stop().await;
}
