use super::*;
use crate::builtin::builtin;
use crate::kinds::Kinds;
use crate::schema::Schema;

fn v3(snapshot: &Snapshot, path: &str) -> Value {
    serde_json::from_slice(&v3_document(snapshot, path).unwrap()).unwrap()
}

/// Every reference in a document leads somewhere.
fn check_references(document: &Value, at: &Value) {
    match at {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
            }
            map.values().for_each(|value| check_references(document, value));
        }
        Value::Array(items) => items.iter().for_each(|value| check_references(document, value)),
        _ => {}
    }
}

fn v2_value(snapshot: &Snapshot) -> Value {
    let mut text = Vec::new();
    v2_document(snapshot, &mut text).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn the_index_lists_each_group_version_once() {
    let kinds = Kinds::new(builtin());
    let index: Value = serde_json::from_slice(&v3_index(&kinds.snapshot())).unwrap();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash=") && url.len() > 50);
    assert!(index["paths"]["api/v1"].is_object());
    let hash = v3_hash(&kinds.snapshot(), "apis/apps/v1").unwrap();
    assert!(url.ends_with(&hash));
    // The hash follows the kinds, not the number of changes.
    let removed = kinds.snapshot().by_gvk(&crate::Gvk::new("apps", "v1", "ReplicaSet")).unwrap().clone();
    kinds.remove(&removed.gvr());
    assert_ne!(v3_hash(&kinds.snapshot(), "apis/apps/v1").unwrap(), hash);
    kinds.insert((*removed).clone());
    assert_eq!(v3_hash(&kinds.snapshot(), "apis/apps/v1").unwrap(), hash);
}

/// The root and named groups have documents of their own, of built-in and of other kinds, with what they
/// refer to and no more.
#[test]
fn every_path_of_the_index_has_its_document() {
    let kinds = Kinds::new(builtin());
    let schema = Schema::from_openapi("Widget", &json!({"type": "object"})).unwrap();
    kinds.insert(Kind::custom(crate::Gvk::new("example.com", "v1", "Widget"), "widgets", schema));
    let snapshot = kinds.snapshot();
    let index: Value = serde_json::from_slice(&v3_index(&snapshot)).unwrap();
    let index = index["paths"].as_object().unwrap();
    for (path, entry) in index {
        let url = format!("/openapi/v3/{path}?hash={}", v3_hash(&snapshot, path).unwrap());
        assert_eq!(entry["serverRelativeURL"], url);
        let document = v3(&snapshot, path);
        check_references(&document, &document);
        assert!(document["paths"][format!("/{path}/")]["get"].is_object(), "{path}");
    }
    for (path, id, types) in [
        ("api", "getCoreAPIVersions", &["APIVersions", "ServerAddressByClientCIDR"][..]),
        (
            "apis",
            "getAPIVersions",
            &["APIGroup", "APIGroupList", "GroupVersionForDiscovery", "ServerAddressByClientCIDR"],
        ),
        (
            "apis/apps",
            "getAppsAPIGroup",
            &["APIGroup", "GroupVersionForDiscovery", "ServerAddressByClientCIDR"],
        ),
        ("version", "getCodeVersion", &["Info"]),
        (".well-known/openid-configuration", "getServiceAccountIssuerOpenIDConfiguration", &[]),
        ("openid/v1/jwks", "getServiceAccountIssuerOpenIDKeyset", &[]),
    ] {
        assert!(index.contains_key(path), "{path}");
        let document = v3(&snapshot, path);
        assert_eq!(document["paths"].as_object().unwrap().len(), 1);
        assert_eq!(document["paths"][format!("/{path}/")]["get"]["operationId"], id);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let names: Vec<&str> = schemas.keys().filter_map(|name| name.rsplit('.').next()).collect();
        assert_eq!(names, types, "{path}");
    }
    assert_eq!(v3_hash(&snapshot, "apis/example.com"), None, "custom groups have versions alone");
    let removed = snapshot.by_gvk(&crate::Gvk::new("example.com", "v1", "Widget")).unwrap().gvr();
    kinds.remove(&removed);
    for path in ["apis/example.com", "apis/", "apis//v1", "api/", "logs", ""] {
        assert_eq!(v3_hash(&kinds.snapshot(), path), None, "{path}");
    }
}

#[test]
fn explain_finds_its_way() {
    let snapshot = Kinds::new(builtin()).snapshot();
    let document = v3(&snapshot, "apis/apps/v1");
    check_references(&document, &document);
    let list = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments"]["get"];
    assert_eq!(list["operationId"], "listAppsV1NamespacedDeployment");
    assert_eq!(list["x-kubernetes-action"], "list");
    assert_eq!(
        list["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    assert!(document["paths"]["/apis/apps/v1/deployments"]["get"].is_object());
    let schemas = &document["components"]["schemas"];
    let spec = &schemas["io.k8s.api.apps.v1.DeploymentSpec"];
    assert_eq!(spec["required"], json!(["selector", "template"]));
    let strategy = &spec["properties"]["strategy"];
    assert_eq!(
        strategy["allOf"],
        json!([{"$ref": "#/components/schemas/io.k8s.api.apps.v1.DeploymentStrategy"}])
    );
    assert_eq!(
        (&strategy["default"], &strategy["x-kubernetes-patch-strategy"]),
        (&json!({}), &json!("retainKeys"))
    );
    assert_eq!(spec["properties"]["replicas"]["format"], "int32");
    assert_eq!(spec["properties"]["selector"].get("default"), None);
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(
        deployment["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
    for name in ["DeleteOptions", "Patch", "Status", "WatchEvent", "ListMeta"] {
        assert!(schemas[format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}")].is_object(), "{name}");
    }
    let scale = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["put"];
    assert_eq!(scale["x-kubernetes-group-version-kind"]["kind"], "Scale");
    assert!(schemas["io.k8s.api.autoscaling.v1.Scale"].is_object());
}

#[test]
fn clients_see_that_field_validation_is_served() {
    let snapshot = Kinds::new(builtin()).snapshot();
    let document = v3(&snapshot, "apis/apps/v1");
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    let names: Vec<&str> =
        patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
}

#[test]
fn core_kinds_have_their_subresources() {
    let snapshot = Kinds::new(builtin()).snapshot();
    let document = v3(&snapshot, "api/v1");
    check_references(&document, &document);
    let paths = &document["paths"];
    let pod = "/api/v1/namespaces/{namespace}/pods/{name}";
    assert_eq!(paths[format!("{pod}/exec")]["get"]["operationId"], "connectCoreV1GetNamespacedPodExec");
    assert_eq!(paths[format!("{pod}/log")]["get"]["operationId"], "readCoreV1NamespacedPodLog");
    assert_eq!(
        paths[format!("{pod}/eviction")]["post"]["x-kubernetes-group-version-kind"]["group"],
        "policy"
    );
    assert_eq!(paths["/api/v1/namespaces"].get("delete"), None);
    let port = &document["components"]["schemas"]["io.k8s.api.core.v1.ContainerPort"]["properties"];
    assert_eq!((&port["protocol"]["default"], &port["containerPort"]["default"]), (&json!("TCP"), &json!(0)));
    let quantity = &document["components"]["schemas"]["io.k8s.apimachinery.pkg.api.resource.Quantity"];
    assert_eq!(quantity["oneOf"], json!([{"type": "string"}, {"type": "number"}]));
}

#[test]
fn version_2_is_one_document() {
    let snapshot = Kinds::new(builtin()).snapshot();
    let document: Value = v2_value(&snapshot);
    check_references(&document, &document);
    assert_eq!(document["swagger"], "2.0");
    let strategy = &document["definitions"]["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["strategy"];
    assert_eq!(strategy["$ref"], "#/definitions/io.k8s.api.apps.v1.DeploymentStrategy");
    assert!(document["paths"]["/apis/rbac.authorization.k8s.io/v1/clusterroles"]["post"].is_object());
}

#[test]
fn a_kind_registered_later_is_described() {
    let kinds = Kinds::new(builtin());
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "description": "What is wanted.",
        "properties": {"size": {"type": "integer"}, "parts": {"type": "array", "items": {
            "type": "object", "x-kubernetes-embedded-resource": true, "required": ["kind"],
            "x-kubernetes-preserve-unknown-fields": true}}}}}});
    let schema = Schema::from_openapi("Widget", &schema).unwrap();
    kinds.insert(Kind::custom(crate::Gvk::new("example.com", "v1", "Widget"), "widgets", schema));
    let document = v3(&kinds.snapshot(), "apis/example.com/v1");
    check_references(&document, &document);
    let part = &document["components"]["schemas"]["com.example.v1.Widget"]["properties"]["spec"]["properties"]
        ["parts"]["items"];
    assert_eq!(part["required"], json!(["kind", "apiVersion"]), "{part}");
    assert_eq!(part["properties"].as_object().unwrap().len(), 3, "{part}");
    let widget = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(widget["properties"]["spec"]["description"], "What is wanted.");
    assert_eq!(widget["x-kubernetes-group-version-kind"][0]["kind"], "Widget");
    let list = &document["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets"]["get"];
    assert_eq!(list["operationId"], "listExampleComV1NamespacedWidget");
    let patch = &document["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"]["patch"];
    let types = patch["requestBody"]["content"].as_object().unwrap();
    assert!(types.contains_key("application/merge-patch+json"));
    assert!(!types.contains_key("application/strategic-merge-patch+json"));
    let v2: Value = v2_value(&kinds.snapshot());
    check_references(&v2, &v2);
}
