//! Server-side apply over the API.

use crate::harness::*;
use serde_json::{Value, json};

const APPLY: [(&str, &str); 1] = [("content-type", "application/apply-patch+yaml")];

impl Server {
    pub async fn apply(&self, path: &str, manager: &str, config: &Value) -> Answer {
        let joint = if path.contains('?') { '&' } else { '?' };
        self.send("PATCH", &format!("{path}{joint}fieldManager={manager}"), &APPLY, config.to_string()).await
    }
}

fn scaled(name: &str, replicas: u64) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": replicas}})
}

/// Manager, operation and subresource of each entry, with what it owns.
fn owners(object: &Value) -> Vec<(String, Value)> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let name = |entry: &Value| {
        let parts = ["manager", "operation", "subresource"].map(|field| text(entry, field));
        parts.join(" ").trim_end().to_owned()
    };
    entries.iter().map(|entry| (name(entry), entry["fieldsV1"].clone())).collect()
}

fn owned(object: &Value, owner: &str) -> Value {
    owners(object).into_iter().find(|(name, _)| name == owner).map_or(Value::Null, |(_, fields)| fields)
}

#[tokio::test]
async fn an_apply_creates_and_an_apply_that_changes_nothing_writes_nothing() {
    let s = start().await;
    let path = format!("{DEPLOYMENTS}/web");
    let made = s.apply(&path, "one", &deployment("web")).await.expect(201);
    assert_eq!(
        (&made["spec"]["revisionHistoryLimit"], &made["metadata"]["generation"]),
        (&json!(10), &json!(1))
    );
    // Defaults and what the server sets belong to nobody.
    assert_eq!(
        owners(&made),
        [(
            "one Apply".to_owned(),
            json!({"f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {"f:metadata": {"f:labels": {"f:app": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}}}}}}})
        )]
    );
    let (revision, encodes) = (s.api.cache().revision(), s.encodes());
    let again = s.apply(&path, "one", &deployment("web")).await.expect(200);
    assert_eq!(again, made);
    let yaml = "apiVersion: apps/v1\nkind: Deployment\nspec:\n  replicas: 3\n";
    let yaml = s.send("PATCH", &format!("{path}?fieldManager=two"), &APPLY, yaml).await.expect(200);
    assert_eq!(owned(&yaml, "two Apply"), json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!((s.api.cache().revision(), s.encodes()), (revision + 1, encodes + 1));
    // Another way to write the same value changes nothing either.
    let cpu = |cpu: &str| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": {"spec": {"containers": [
        {"name": "c", "resources": {"limits": {"cpu": cpu}}}]}}}})
    };
    let set = s.apply(&path, "three", &cpu("1")).await.expect(200);
    let same = s.apply(&path, "three", &cpu("1000m")).await.expect(200);
    assert_eq!(same, set);
}

#[tokio::test]
async fn an_apply_of_what_does_not_exist() {
    let s = start().await;
    let path = format!("{CONFIG_MAPS}/a");
    let map = |metadata: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
    let told = s.apply(&path, "m", &map(json!({"name": "a", "uid": "u"}))).await.expect(409);
    assert_eq!(
        told["message"],
        "Operation cannot be fulfilled on configmaps \"a\": uid mismatch: the provided object specified uid u, and no existing object was found"
    );
    let told = s.apply(&path, "m", &map(json!({}))).await.expect(400);
    assert_eq!(
        told["message"],
        "the name of the object (a based on URL) was undeterminable: name must be provided"
    );
    let told = s.apply(&path, "m", &map(json!({"name": "b"}))).await.expect(400);
    assert_eq!(told["message"], "the name of the object (b) does not match the name on the URL (a)");
    let told = s.apply(&path, "m", &map(json!({"name": "a", "namespace": "b"}))).await.expect(400);
    assert_eq!(
        told["message"],
        "the namespace of the provided object does not match the namespace sent on the request"
    );
    for part in ["status", "scale"] {
        let kind = if part == "scale" {
            json!({"apiVersion": "autoscaling/v1", "kind": "Scale"})
        } else {
            scaled("none", 1)
        };
        let told = s.apply(&format!("{DEPLOYMENTS}/none/{part}"), "m", &kind).await.expect(404);
        assert_eq!(told["message"], "deployments.apps \"none\" not found");
    }
    s.apply(&format!("{path}?dryRun=All"), "m", &map(json!({"name": "a"}))).await.expect(201);
    s.get(&path).await.expect(404);
    s.apply(&path, "m", &map(json!({"name": "a", "resourceVersion": "7"}))).await.expect(201);
    let stale =
        s.apply(&path, "m", &map(json!({"resourceVersion": "1", "labels": {"a": "b"}}))).await.expect(409);
    assert!(stale["message"].as_str().unwrap().contains("the object has been modified"), "{stale}");
}

#[tokio::test]
async fn an_apply_that_creates_must_be_allowed_to() {
    let s = start().await;
    let (patcher, path) = (s.as_user("patcher"), format!("{CONFIG_MAPS}/a"));
    let map = config_map("a", json!({"k": "v"}));
    let told = patcher.apply(&path, "m", &map).await.expect(403);
    assert_eq!(
        told["message"],
        "configmaps \"a\" is forbidden: User \"patcher\" cannot create resource \"configmaps\" in API group \"\" in the \
         namespace \"default\""
    );
    s.post(CONFIG_MAPS, &map).await.expect(201);
    patcher.apply(&path, "m", &map).await.expect(200);
    // So must an update of a kind whose updates create.
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"namespace": "default"}});
    patcher.put("/api/v1/namespaces/default/events/e", &event).await.expect(403);
    s.put("/api/v1/namespaces/default/events/e", &event).await.expect(201);
}

#[tokio::test]
async fn requests_are_checked_as_upstream_checks_them() {
    let s = start().await;
    let path = format!("{DEPLOYMENTS}/web");
    let told = s.send("PATCH", &path, &APPLY, deployment("web").to_string()).await.expect(422);
    assert_eq!(
        told["message"],
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
    );
    let told = s.apply(&path, &"x".repeat(129), &deployment("web")).await.expect(422);
    assert_eq!(told["details"]["causes"][0]["field"], "fieldManager");
    s.post(DEPLOYMENTS, &deployment("web")).await.expect(201);
    let told = s.patch(&format!("{path}?force=true"), "merge-patch+json", &json!({})).await.expect(422);
    assert_eq!(
        told["message"],
        "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch"
    );
    for media_type in ["apply-patch+cbor", "apply-patch+json", "json"] {
        let told =
            s.patch(&format!("{path}?fieldManager=m"), media_type, &deployment("web")).await.expect(415);
        assert_eq!(
            told["message"],
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, \
             application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml"
        );
    }
    let at = format!("{path}?fieldManager=m");
    for (body, code, message) in [
        ("x: [", 400, "error decoding YAML: error converting YAML to JSON: yaml: "),
        (
            "- x",
            400,
            "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go value of type \
             map[string]interface {}",
        ),
        ("", 400, "invalid object type: /, Kind="),
        ("apiVersion: apps/v1\nkind: ReplicaSet", 400, "invalid object type: apps/v1, Kind=ReplicaSet"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {managedFields: []}",
            400,
            "metadata.managedFields must be nil",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: default}\nspec: {foo: 1}",
            500,
            "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.foo: field not declared in schema",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nspec: {template: {spec: {containers: [{name: c, resources: {limits: {cpu: x}}}]}}}",
            500,
            "failed to convert new object (default/web; apps/v1, Kind=Deployment) to proper version: unable to convert unstructured \
             object to apps/v1, Kind=Deployment: quantities must match the regular expression",
        ),
    ] {
        let told = s.send("PATCH", &at, &APPLY, body).await.expect(code);
        assert!(told["message"].as_str().unwrap().starts_with(message), "{body}: {told}");
    }
    // What was applied is validated as anything else.
    let told = s
        .apply(
            &path,
            "m",
            &json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"minReadySeconds": -1}}),
        )
        .await
        .expect(422);
    assert_eq!(told["details"]["causes"][0]["field"], "spec.minReadySeconds");
}

#[tokio::test]
async fn duplicates_are_told_or_refused() {
    let s = start().await;
    let path = format!("{CONFIG_MAPS}/a?fieldManager=m");
    let twice = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  k: v\n  k: w\n";
    let told = s.send("PATCH", &format!("{path}&fieldValidation=Strict"), &APPLY, twice).await.expect(400);
    assert_eq!(
        told["message"],
        "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 7: key \"k\" already set in map"
    );
    let warned = s.send("PATCH", &path, &APPLY, twice).await;
    assert_eq!(warned.warnings(), ["299 - \"line 7: key \\\"k\\\" already set in map\""]);
    assert_eq!(warned.expect(201)["data"]["k"], "w");
    let quiet = s.send("PATCH", &format!("{path}&fieldValidation=Ignore"), &APPLY, twice).await;
    assert!(quiet.warnings().is_empty());
    quiet.expect(200);
}

#[tokio::test]
async fn conflicts_are_refused_until_forced() {
    let s = start().await;
    let path = format!("{DEPLOYMENTS}/web");
    s.send("POST", &format!("{DEPLOYMENTS}?fieldManager=kubectl"), &[], deployment("web").to_string())
        .await
        .expect(201);
    let told = s.apply(&path, "one", &scaled("web", 5)).await.expect(409);
    assert_eq!(
        told,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Conflict", "code": 409,
            "message": "Apply failed with 1 conflict: conflict with \"kubectl\" using apps/v1: .spec.replicas",
            "details": {"causes": [{"reason": "FieldManagerConflict", "message": "conflict with \"kubectl\" using apps/v1", "field": ".spec.replicas"}]}})
    );
    let revision = s.api.cache().revision();
    let dry = s.apply(&format!("{path}?force=true&dryRun=All"), "one", &scaled("web", 5)).await.expect(200);
    assert_eq!((dry["spec"]["replicas"].as_u64(), s.api.cache().revision()), (Some(5), revision));
    let forced = s.apply(&format!("{path}?force=true"), "one", &scaled("web", 5)).await.expect(200);
    assert_eq!(owned(&forced, "one Apply"), json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(owned(&forced, "kubectl Update")["f:spec"].get("f:replicas"), None);
    assert_eq!(forced["metadata"]["generation"], 2);
    // What nobody names any more goes, and has its default again.
    let none = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}});
    let gone = s.apply(&path, "one", &none).await.expect(200);
    assert_eq!((&gone["spec"]["replicas"], owned(&gone, "one Apply")), (&json!(1), Value::Null));
}

#[tokio::test]
async fn status_is_applied_apart() {
    let s = start().await;
    let path = format!("{DEPLOYMENTS}/web");
    s.apply(&path, "one", &deployment("web")).await.expect(201);
    let condition = |status: &str| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}},
        "spec": {"replicas": 9}, "status": {"replicas": 2, "conditions": [{"type": "Available", "status": status}]}})
    };
    let status = format!("{path}/status");
    let got = s.apply(&status, "controller", &condition("True")).await.expect(200);
    assert_eq!((&got["spec"]["replicas"], &got["status"]["replicas"]), (&json!(3), &json!(2)));
    assert_eq!((&got["metadata"]["labels"], &got["metadata"]["generation"]), (&Value::Null, &json!(1)));
    let fields = json!({"f:metadata": {"f:annotations": {"f:c": {}}}, "f:status": {"f:replicas": {},
        "f:conditions": {"k:{\"type\":\"Available\"}": {".": {}, "f:type": {}, "f:status": {}}}}});
    assert_eq!(owned(&got, "controller Apply status"), fields);
    let told = s.apply(&status, "other", &condition("False")).await.expect(409);
    assert_eq!(
        told["message"],
        "Apply failed with 1 conflict: conflict with \"controller\" with subresource \"status\": .status.conditions[type=\"Available\"].status"
    );
    // The other way round, status is nothing that the object itself takes.
    let mut whole = deployment("web");
    whole["status"] = json!({"replicas": 7});
    let got = s.apply(&path, "one", &whole).await.expect(200);
    assert_eq!(
        (&got["status"]["replicas"], &owned(&got, "one Apply")["f:status"]),
        (&json!(2), &Value::Null)
    );
}

#[tokio::test]
async fn scale_is_applied_to_the_replicas_of_its_object() {
    let s = start().await;
    let path = format!("{DEPLOYMENTS}/web");
    let scale = |replicas: u64| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": replicas}});
    let at = format!("{path}/scale");
    s.apply(&path, "one", &deployment("web")).await.expect(201);
    let told = s.apply(&at, "scaler", &scale(5)).await.expect(409);
    assert_eq!(told["message"], "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas");
    s.apply(&at, "scaler", &scale(3)).await.expect(200);
    let shared = s.get(&path).await.expect(200);
    assert_eq!(owned(&shared, "scaler Apply scale"), json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(owned(&shared, "one Apply")["f:spec"]["f:replicas"], json!({}));
    let version = &shared["metadata"]["managedFields"][1];
    assert_eq!((&version["subresource"], &version["apiVersion"]), (&json!("scale"), &json!("apps/v1")));
    let got = s.apply(&format!("{at}?force=true"), "scaler", &scale(5)).await.expect(200);
    assert_eq!((&got["kind"], &got["spec"]["replicas"]), (&json!("Scale"), &json!(5)));
    let taken = s.get(&path).await.expect(200);
    assert_eq!(owned(&taken, "one Apply")["f:spec"].get("f:replicas"), None);
    // Who scales by an update takes the replicas too; applies of the object are told of that.
    s.patch(&format!("{at}?fieldManager=kubectl"), "merge-patch+json", &json!({"spec": {"replicas": 6}}))
        .await
        .expect(200);
    let told = s.apply(&path, "one", &deployment("web")).await.expect(409);
    assert_eq!(
        told["message"],
        "Apply failed with 1 conflict: conflict with \"kubectl\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
    let told = s.apply(&at, "scaler", &scale(7)).await.expect(409);
    assert_eq!(
        told["message"],
        "Apply failed with 1 conflict: conflict with \"kubectl\" with subresource \"scale\" using autoscaling/v1: .spec.replicas"
    );
}

#[tokio::test]
async fn entries_can_be_cleared_and_replaced() {
    let s = start().await;
    let path = format!("{CONFIG_MAPS}/a");
    let map = config_map("a", json!({"k": "v"}));
    for clear in [json!([]), json!([{}])] {
        s.apply(&path, "m", &map).await;
        let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": clear}]);
        let cleared = s.patch(&path, "json-patch+json", &patch).await.expect(200);
        assert_eq!(owners(&cleared), []);
        // Without entries nothing is tracked until the next apply.
        let updated = s.patch(&path, "merge-patch+json", &json!({"data": {"l": "w"}})).await.expect(200);
        assert_eq!(owners(&updated), []);
        let told = s.apply(&path, "n", &config_map("a", json!({"k": "w"}))).await.expect(409);
        assert_eq!(
            told["message"],
            "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.k"
        );
        s.delete(&path).await.expect(200);
    }
    let mut put = s.apply(&path, "m", &map).await.expect(201);
    put["metadata"]["managedFields"] = json!([]);
    assert_eq!(owners(&s.put(&path, &put).await.expect(200)), []);
    // What cannot be read is not taken.
    let mut odd = config_map("b", json!({"k": "v"}));
    odd["metadata"]["managedFields"] = json!([{"manager": "x", "operation": "Odd", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {}}}]);
    let made = s.post(&format!("{CONFIG_MAPS}?fieldManager=m"), &odd).await.expect(201);
    assert_eq!(owners(&made), [("m Update".to_owned(), json!({"f:data": {".": {}, "f:k": {}}}))]);
}

#[tokio::test]
async fn nobody_owns_what_admission_adds() {
    struct Marker;
    impl skeg_apiserver::admission::Plugin for Marker {
        fn name(&self) -> &'static str {
            "Marker"
        }

        fn admit<'a>(
            &'a self,
            request: &'a mut skeg_apiserver::admission::Admission<'_>,
        ) -> futures_util::future::BoxFuture<'a, Result<(), skeg_api::Status>> {
            if let Some(object) = request.object.as_deref_mut() {
                skeg_api::meta::set_label(object, "marked", "yes");
            }
            Box::pin(std::future::ready(Ok(())))
        }
    }
    let s = start_plugged(vec![std::sync::Arc::new(Marker)]).await;
    let map = config_map("a", json!({"k": "v"}));
    let fields = json!({"f:data": {".": {}, "f:k": {}}});
    let made = s.post(&format!("{CONFIG_MAPS}?fieldManager=m"), &map).await.expect(201);
    assert_eq!(
        (&made["metadata"]["labels"], owners(&made)),
        (&json!({"marked": "yes"}), vec![("m Update".to_owned(), fields)])
    );
    let applied =
        s.apply(&format!("{CONFIG_MAPS}/b"), "m", &config_map("b", json!({"k": "v"}))).await.expect(201);
    assert_eq!(owners(&applied), [("m Apply".to_owned(), json!({"f:data": {"f:k": {}}}))]);
}

#[tokio::test]
async fn of_some_kinds_status_is_written_alone() {
    let s = start().await;
    s.api.kinds().insert(crate::kinds::widget());
    let widgets = crate::kinds::WIDGETS;
    s.apply(&format!("{widgets}/a"), "m", &crate::kinds::object("a", 1.into())).await.expect(201);
    let attachments = "/apis/storage.k8s.io/v1/volumeattachments";
    let attachment = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": "a"},
        "spec": {"attacher": "x", "nodeName": "n", "source": {"persistentVolumeName": "p"}}});
    s.apply(&format!("{attachments}/a"), "m", &attachment).await.expect(201);
    for (path, version, kind, status) in [
        (widgets, "example.com/v1", "Widget", json!({"ready": true})),
        (attachments, "storage.k8s.io/v1", "VolumeAttachment", json!({"attached": true})),
    ] {
        let config = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "a", "labels": {"x": "y"}},
            "status": status});
        let got = s.apply(&format!("{path}/a/status"), "s", &config).await.expect(200);
        assert_eq!((&got["status"], got["metadata"].get("labels")), (&status, None), "{kind}");
        let owned = owned(&got, "s Apply status");
        assert_eq!(owned.as_object().unwrap().keys().collect::<Vec<_>>(), ["f:status"], "{kind}");
    }
    for (group, kind, resets) in [
        ("certificates.k8s.io", "CertificateSigningRequest", &["spec", "status.conditions"][..]),
        ("resource.k8s.io", "ResourceClaim", &["metadata", "spec"]),
        ("flowcontrol.apiserver.k8s.io", "FlowSchema", &["metadata", "spec"]),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", &["metadata", "spec"]),
        ("apiregistration.k8s.io", "APIService", &["metadata", "spec"]),
        ("apiextensions.k8s.io", "CustomResourceDefinition", &["metadata", "spec"]),
        ("batch", "Job", &["spec"]),
    ] {
        let row = s.api.kinds().snapshot().by_gvk(&skeg_api::Gvk::new(group, "v1", kind)).unwrap().clone();
        assert_eq!(row.strategy.status_resets, resets, "{kind}");
    }
}

#[tokio::test]
async fn every_kind_can_be_applied() {
    let s = start().await;
    let snapshot = s.api.kinds().snapshot();
    let bases: Value = serde_saphyr::from_str(include_str!("../../../api/testdata/invalid.yaml")).unwrap();
    let mut applied = Vec::new();
    for kind in snapshot.iter().filter(|kind| kind.storage.is_some()) {
        let base = bases["bases"]
            .as_object()
            .unwrap()
            .values()
            .find(|base| base["kind"] == *kind.gvk.kind && base["apiVersion"] == kind.gvk.api_version());
        let Some(base) = base else { continue };
        let root = if kind.gvk.group.is_empty() {
            "/api/v1".to_owned()
        } else {
            format!("/apis/{}/v1", kind.gvk.group)
        };
        let namespace =
            base["metadata"]["namespace"].as_str().map(|ns| format!("/namespaces/{ns}")).unwrap_or_default();
        let path =
            format!("{root}{namespace}/{}/{}", kind.plural, base["metadata"]["name"].as_str().unwrap());
        // Who owns nothing has no entry.
        let mut base = base.clone();
        base["metadata"]["labels"]["own"] = "x".into();
        let made = s.apply(&path, "m", &base).await.expect(201);
        let again = s.apply(&path, "m", &base).await.expect(200);
        assert_eq!(again, made, "{path}");
        let mut labelled = base.clone();
        labelled["metadata"]["labels"]["added"] = "x".into();
        let changed = s.apply(&path, "m", &labelled).await.expect(200);
        assert_eq!(changed["metadata"]["labels"]["added"], "x", "{path}");
        let back = s.apply(&path, "m", &base).await.expect(200);
        assert_eq!(back["metadata"]["labels"].get("added"), None, "{path}");
        applied.push(kind.gvk.display());
    }
    assert!(applied.len() >= 15, "{applied:?}");
}
