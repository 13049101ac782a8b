//! Built-in kinds over HTTP: one object of each kind lives and dies, is shown as a Table, and what
//! kinds have of their own.

use crate::harness::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use skeg_api::kinds::Kind;
use skeg_api::meta;
use std::sync::Arc;

const TABLE: &str = include_str!("../../../api/testdata/kinds.yaml");
const AS_TABLE: [(&str, &str); 1] = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];

fn path_of(kind: &Kind, object: &Value) -> String {
    let root = match &*kind.gvk.group {
        "" => "/api/v1".to_owned(),
        group => format!("/apis/{group}/{}", kind.gvk.version),
    };
    let namespace =
        if kind.namespaced { format!("/namespaces/{}", meta::namespace(object)) } else { String::new() };
    format!("{root}{namespace}/{}", kind.plural)
}

fn kind_of(s: &Server, object: &Value) -> Arc<Kind> {
    let snapshot = s.api.kinds().snapshot();
    let found = snapshot.iter().find(|kind| {
        kind.gvk.api_version() == meta::api_version(object) && &*kind.gvk.kind == meta::kind(object)
    });
    found.unwrap_or_else(|| panic!("{object}")).clone()
}

#[tokio::test]
async fn an_object_of_each_kind_lives_and_dies() {
    let s = start().await;
    let table: Value = serde_saphyr::from_str(TABLE).unwrap();
    let mut count = 0;
    for row in table.as_array().unwrap() {
        let object = &row["object"];
        let (kind, name) = (kind_of(&s, object), meta::name(object));
        let path = path_of(&kind, object);
        let answer = s.post(&path, object).await;
        let told = kind.strategy.without_effect.map(|warning| format!("299 - \"{warning}\""));
        assert_eq!(answer.warnings().first(), told.as_ref(), "{object}");
        let made = answer.expect(201);
        assert_eq!(made.get("status").is_some(), row["stored"].get("status").is_some(), "{made}");
        assert_eq!(meta::generation(&made), i64::from(kind.has_generation), "{made}");
        let got = s.get(&format!("{path}/{name}")).await.expect(200);
        assert_eq!(got, made);
        // What was read can be written; what does not change is not stored anew.
        assert_eq!(s.put(&format!("{path}/{name}"), &got).await.expect(200), made);
        let list = s.get(&path).await.expect(200);
        assert_eq!(
            (&list["kind"], &list["items"][0]["metadata"]["name"]),
            (&json!(*kind.list_kind), &json!(name))
        );
        let shown = s.send("GET", &path, &AS_TABLE, "").await.expect(200);
        let cells = shown["rows"][0]["cells"].as_array().unwrap();
        assert_eq!(cells.len(), row["cells"].as_str().unwrap().split('|').count(), "{shown}");
        if kind.has_status() {
            let wrong = json!({"metadata": {"labels": {"seen": "yes"}}});
            let changed =
                s.patch(&format!("{path}/{name}/status"), "merge-patch+json", &wrong).await.expect(200);
            assert_eq!(meta::generation(&changed), meta::generation(&made), "a status is no specification");
        }
        let dry = s.delete(&format!("{path}/{name}?dryRun=All")).await.expect(200);
        assert_eq!(dry["kind"] == *kind.gvk.kind, kind.strategy.returns_deleted, "{dry}");
        s.delete(&format!("{path}/{name}")).await.expect(200);
        s.get(&format!("{path}/{name}")).await.expect(404);
        operations(&s, &kind, object).await;
        count += 1;
    }
    assert!(count >= 50, "{count}");
}

/// A field of a kind's status, with a value that it may have.
fn status_of(kind: &Kind) -> (&'static str, Value) {
    let conditions = json!([{"type": "Seen", "status": "True", "reason": "R", "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    match &*kind.gvk.kind {
        "CronJob" => ("lastScheduleTime", json!("2026-01-01T00:00:00Z")),
        "HorizontalPodAutoscaler" => ("desiredReplicas", json!(3)),
        "Ingress" => ("loadBalancer", json!({"ingress": [{"ip": "192.0.2.1"}]})),
        "PersistentVolume" => ("message", json!("m")),
        "ResourceClaim" => ("allocation", json!({"devices": {}})),
        "ResourceQuota" => ("used", json!({"pods": "1"})),
        "VolumeAttachment" => ("attached", json!(true)),
        _ => ("conditions", conditions),
    }
}

/// What upstream's conformance tests ask of the API of each kind: the object is found by its label
/// in its namespace and in all, patched, replaced, applied, given a status, watched meanwhile, and
/// deleted with the collection that it belongs to.
async fn operations(s: &Server, kind: &Kind, object: &Value) {
    const LABEL: &str = "labelSelector=operations%3Dmine";
    let (path, name) = (path_of(kind, object), meta::name(object));
    let one = format!("{path}/{name}");
    let mut object = object.clone();
    object["metadata"]["labels"]["operations"] = "mine".into();
    let empty = s.get(&format!("{path}?{LABEL}")).await.expect(200);
    let since = empty["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = s.watch(&format!("{path}?watch=true&{LABEL}&resourceVersion={since}")).await;
    s.post(&path, &object).await.expect(201);
    let everywhere = path.replace(&format!("/namespaces/{}", meta::namespace(&object)), "");
    for list in [&path, &everywhere] {
        let found = s.get(&format!("{list}?{LABEL}")).await.expect(200);
        assert_eq!(found["items"].as_array().unwrap().len(), 1, "{list}");
    }
    let mut expected = vec!["ADDED"];
    let note = |value: &str| json!({"metadata": {"annotations": {"operations/note": value}}});
    let mut seen = s.patch(&one, "merge-patch+json", &note("patched")).await.expect(200);
    assert_eq!(seen["metadata"]["annotations"]["operations/note"], "patched");
    seen["metadata"]["annotations"]["operations/note"] = "replaced".into();
    let seen = s.put(&one, &seen).await.expect(200);
    assert_eq!(seen["metadata"]["annotations"]["operations/note"], "replaced");
    let mut applied = note("applied");
    applied["apiVersion"] = kind.gvk.api_version().into();
    applied["kind"] = (*kind.gvk.kind).into();
    let seen = s.patch(&format!("{one}?fieldManager=me&force=true"), "apply-patch+yaml", &applied).await;
    let mut seen = seen.expect(200);
    assert_eq!(seen["metadata"]["annotations"]["operations/note"], "applied");
    expected.extend(["MODIFIED"; 3]);
    if kind.has_status() {
        assert_eq!(
            s.get(&format!("{one}/status")).await.expect(200)["metadata"]["uid"],
            seen["metadata"]["uid"]
        );
        let (field, value) = status_of(kind);
        seen["status"][field] = value.clone();
        s.put(&format!("{one}/status"), &seen).await.expect(200);
        assert_eq!(s.get(&one).await.expect(200)["status"][field], value, "{}", kind.gvk.kind);
        expected.push("MODIFIED");
    }
    s.delete(&format!("{path}?{LABEL}")).await.expect(200);
    s.get(&one).await.expect(404);
    expected.push("DELETED");
    for event in expected {
        assert_eq!(watch.event().await, (event.to_owned(), name.to_owned()), "{}", kind.gvk.kind);
    }
}

/// The kinds of the main job have tests of their own; these are the operations that all kinds share.
#[tokio::test]
async fn the_main_kinds_have_every_operation() {
    let s = start().await;
    let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"});
    let template =
        json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let replicas = json!({"selector": {"matchLabels": {"app": "x"}}, "template": template});
    let about = json!({"kind": "Pod", "namespace": "default", "name": "p"});
    for (version, kind, rest) in [
        ("v1", "ConfigMap", json!({"data": {"k": "v"}})),
        ("v1", "Secret", json!({"data": {"k": "dg=="}})),
        ("v1", "ServiceAccount", json!({})),
        ("v1", "Service", json!({"spec": {"ports": [{"port": 80}]}})),
        ("v1", "Endpoints", json!({})),
        ("v1", "Event", json!({"involvedObject": about, "reason": "R"})),
        ("v1", "Pod", json!({"spec": template["spec"]})),
        ("v1", "Node", json!({})),
        (
            "events.k8s.io/v1",
            "Event",
            json!({"regarding": about, "reason": "R", "action": "A", "type": "Normal",
            "reportingController": "c", "reportingInstance": "i", "eventTime": "2026-01-01T00:00:00.000000Z"}),
        ),
        ("discovery.k8s.io/v1", "EndpointSlice", json!({"addressType": "IPv4", "endpoints": []})),
        ("coordination.k8s.io/v1", "Lease", json!({"spec": {"holderIdentity": "me"}})),
        ("scheduling.k8s.io/v1", "PriorityClass", json!({"value": 7})),
        ("apps/v1", "ControllerRevision", json!({"revision": 1, "data": {"k": "v"}})),
        ("apps/v1", "ReplicaSet", json!({"spec": replicas})),
        ("apps/v1", "Deployment", json!({"spec": replicas})),
        ("rbac.authorization.k8s.io/v1", "Role", json!({"rules": rules})),
        ("rbac.authorization.k8s.io/v1", "ClusterRole", json!({"rules": rules})),
        ("rbac.authorization.k8s.io/v1", "RoleBinding", json!({"roleRef": role})),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", json!({"roleRef": role})),
    ] {
        let mut object = rest;
        object["apiVersion"] = version.into();
        object["kind"] = kind.into();
        object["metadata"] = json!({"name": "operations"});
        let of = kind_of(&s, &object);
        if of.namespaced {
            object["metadata"]["namespace"] = "default".into();
        }
        operations(&s, &of, &object).await;
    }
}

#[tokio::test]
async fn autoscalers_are_the_same_in_both_versions() {
    let s = start().await;
    let at =
        |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers");
    let old = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
        "spec": {"maxReplicas": 4, "targetCPUUtilizationPercentage": 60,
                 "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}});
    let made = s.post(&at("v1"), &old).await.expect(201);
    assert_eq!(made["apiVersion"], "autoscaling/v1");
    let mut new = s.get(&format!("{}/web", at("v2"))).await.expect(200);
    assert_eq!(new["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 60);
    assert_eq!(new["metadata"]["uid"], made["metadata"]["uid"]);
    new["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] = 70.into();
    new["spec"]["behavior"] = json!({"scaleDown": {"stabilizationWindowSeconds": 5}});
    s.put(&format!("{}/web", at("v2")), &new).await.expect(200);
    let seen = s.get(&format!("{}/web", at("v1"))).await.expect(200);
    assert_eq!(seen["spec"]["targetCPUUtilizationPercentage"], 70);
    let behavior = &seen["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/behavior"];
    assert!(behavior.as_str().unwrap().contains("stabilizationWindowSeconds"), "{seen}");
    // An update by the old version keeps what it cannot say.
    s.patch(&format!("{}/web", at("v1")), "merge-patch+json", &json!({"spec": {"maxReplicas": 9}}))
        .await
        .expect(200);
    let new = s.get(&format!("{}/web", at("v2"))).await.expect(200);
    assert_eq!(new["spec"]["maxReplicas"], 9);
    assert_eq!(new["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"], 5);
}

#[tokio::test]
async fn autoscalers_without_policies_are_refused() {
    let s = start().await;
    let at =
        |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers");
    let object = |behavior: Value| {
        json!({"metadata": {"name": "web"}, "spec": {"maxReplicas": 4, "behavior": behavior,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}})
    };
    let why = "HorizontalPodAutoscaler.autoscaling \"web\" is invalid: spec.behavior.scaleUp.policies: Required value: must specify at least one Policy";
    let none = json!({"scaleUp": {"policies": []}});
    assert_eq!(s.post(&at("v2"), &object(none.clone())).await.expect(422)["message"], why);
    // Absent or null is something else.
    let made = s.post(&at("v2"), &object(json!({"scaleUp": {"policies": null}}))).await.expect(201);
    assert_eq!(made["spec"]["behavior"]["scaleUp"]["policies"].as_array().map(Vec::len), Some(2));
    let path = format!("{}/web", at("v2"));
    let patch = json!({"spec": {"behavior": none}});
    assert_eq!(s.patch(&path, "merge-patch+json", &patch).await.expect(422)["message"], why);
    let apply = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
        "spec": {"behavior": none}});
    let applied = s.patch(&format!("{path}?fieldManager=m&force=true"), "apply-patch+yaml", &apply).await;
    assert_eq!(applied.expect(422)["message"], why);
    let annotation = json!({"autoscaling.alpha.kubernetes.io/behavior": none.to_string()});
    let patch = json!({"metadata": {"annotations": annotation}});
    let refused = s.patch(&format!("{}/web", at("v1")), "merge-patch+json", &patch).await.expect(422);
    assert_eq!(refused["message"], why);
}

#[tokio::test]
async fn every_set_of_pods_scales() {
    let s = start().await;
    let template =
        json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (root, plural, kind, version, selector) in [
        ("/apis/apps/v1", "statefulsets", "StatefulSet", "apps/v1", json!({"matchLabels": {"app": "x"}})),
        ("/api/v1", "replicationcontrollers", "ReplicationController", "v1", json!({"app": "x"})),
    ] {
        let path = format!("{root}/namespaces/default/{plural}");
        let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"},
            "spec": {"selector": selector, "template": template}});
        s.post(&path, &object).await.expect(201);
        let scale = s.get(&format!("{path}/x/scale")).await.expect(200);
        assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(1), &json!("app=x")));
        let three = json!({"spec": {"replicas": 3}});
        s.patch(&format!("{path}/x/scale"), "merge-patch+json", &three).await.expect(200);
        let got = s.get(&format!("{path}/x")).await.expect(200);
        assert_eq!((&got["spec"]["replicas"], &got["metadata"]["generation"]), (&json!(3), &json!(2)));
    }
}

#[tokio::test]
async fn requests_for_certificates_are_approved_apart() {
    let s = start().await;
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let table: Value = serde_saphyr::from_str(TABLE).unwrap();
    let rows = table.as_array().unwrap();
    let object =
        &rows.iter().find(|row| row["object"]["kind"] == "CertificateSigningRequest").unwrap()["object"];
    s.post(path, object).await.expect(201);
    let approved = json!({"spec": {"signerName": "other.io/x"}, "status": {"certificate": "eA==",
        "conditions": [{"type": "Approved", "status": "True", "reason": "Fine"}]}});
    let got = s.patch(&format!("{path}/jane/approval"), "merge-patch+json", &approved).await.expect(200);
    assert_eq!(got["status"]["conditions"][0]["reason"], "Fine");
    assert_eq!(
        (&got["status"].get("certificate"), &got["spec"]["signerName"]),
        (&None, &object["spec"]["signerName"])
    );
    let taken_back = json!({"status": {"conditions": []}});
    let answer = s.patch(&format!("{path}/jane/approval"), "merge-patch+json", &taken_back).await;
    assert_eq!(answer.expect(422)["details"]["causes"][0]["field"], "status.conditions");
    let odd = json!({"status": {"certificate": "eA=="}});
    let refused = s.patch(&format!("{path}/jane/status"), "merge-patch+json", &odd).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "status.certificate", "{refused}");
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
    let issued = json!({"status": {"certificate": STANDARD.encode(pem)}});
    let got = s.patch(&format!("{path}/jane/status"), "merge-patch+json", &issued).await.expect(200);
    assert_eq!(got["status"]["certificate"], issued["status"]["certificate"]);
    let again = s.patch(&format!("{path}/jane/status"), "merge-patch+json", &odd).await.expect(422);
    assert!(again["message"].as_str().unwrap().contains("once it is set"), "{again}");
    let selected = format!("{path}?fieldSelector=spec.signerName%3Dexample.com%2Fsigner");
    assert_eq!(s.get(&selected).await.expect(200)["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn components_have_a_status() {
    let s = start().await;
    let answer = s.get("/api/v1/componentstatuses").await;
    assert_eq!(answer.warnings(), ["299 - \"v1 ComponentStatus is deprecated in v1.19+\""]);
    let list = answer.expect(200);
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("ComponentStatusList"), 3));
    let one = s.get("/api/v1/componentstatuses/scheduler").await.expect(200);
    assert_eq!(one["conditions"][0]["status"], "True");
    s.get("/api/v1/componentstatuses/other").await.expect(404);
    let table = s.send("GET", "/api/v1/componentstatuses", &AS_TABLE, "").await.expect(200);
    assert_eq!(table["rows"][1]["cells"], json!(["etcd-0", "Healthy", "ok", ""]));
    s.post("/api/v1/componentstatuses", &one).await.expect(405);
}
