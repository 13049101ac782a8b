use super::*;
use serde_json::json;

fn builtin(name: &str) -> Schema {
    Schema::builtin(name).unwrap()
}

#[test]
fn a_deployment_has_upstreams_types_and_merge_keys() {
    let deployment = Schema::builtin_kind("apps", "v1", "Deployment").unwrap();
    let spec = deployment.root().property("spec").unwrap();
    assert_eq!(spec.type_name(), Some("io.k8s.api.apps.v1.DeploymentSpec"));
    assert!(spec.is_required("selector") && spec.is_required("template") && !spec.is_required("replicas"));
    let replicas = spec.property("replicas").unwrap();
    assert_eq!((replicas.shape(), replicas.format()), (Shape::Integer, Format::Int32));
    assert!(spec.property("strategy").unwrap().patch_strategy().retain_keys);
    assert!(spec.property("nope").is_none());

    let pod = spec.property("template").unwrap().property("spec").unwrap();
    let containers = pod.property("containers").unwrap();
    assert_eq!((containers.shape(), containers.list_type()), (Shape::Array, ListType::Map));
    assert_eq!(containers.list_map_keys().collect::<Vec<_>>(), ["name"]);
    assert_eq!(containers.patch_merge_key(), Some("name"));
    assert!(containers.patch_strategy().merge);
    let ports = containers.items().unwrap().property("ports").unwrap();
    assert_eq!(ports.list_map_keys().collect::<Vec<_>>(), ["containerPort", "protocol"]);
    assert_eq!(ports.items().unwrap().property("protocol").unwrap().default(), Some(&json!("TCP")));
    assert_eq!(pod.property("nodeSelector").unwrap().map_type(), MapType::Atomic);
    let volumes = pod.property("volumes").unwrap().patch_strategy();
    assert!(volumes.merge && volumes.retain_keys && !volumes.replace);
}

#[test]
fn special_types_have_their_own_shapes() {
    let container = builtin("io.k8s.api.core.v1.Container");
    let limits = container.root().property("resources").unwrap().property("limits").unwrap();
    assert_eq!((limits.shape(), limits.items().unwrap().shape()), (Shape::Map, Shape::Quantity));
    let get = builtin("io.k8s.api.core.v1.HTTPGetAction");
    assert_eq!(get.root().property("port").unwrap().shape(), Shape::IntOrString);
    let meta = builtin("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
    assert_eq!(meta.root().property("creationTimestamp").unwrap().format(), Format::Time);
    let lease = builtin("io.k8s.api.coordination.v1.LeaseSpec");
    assert_eq!(lease.root().property("renewTime").unwrap().format(), Format::MicroTime);
    let revision = builtin("io.k8s.api.apps.v1.ControllerRevision");
    assert!(revision.root().property("data").unwrap().preserve_unknown());
    let secret = builtin("io.k8s.api.core.v1.Secret");
    let data = secret.root().property("data").unwrap();
    assert_eq!((data.shape(), data.items().unwrap().format()), (Shape::Map, Format::Byte));
}

#[test]
fn definitions_carry_their_descriptions() {
    let texts = Descriptions::load();
    let spec = Schema::builtin_definition("io.k8s.api.apps.v1.DeploymentSpec").unwrap();
    assert!(texts.definition(spec.index()).starts_with("DeploymentSpec is the specification"));
    let replicas = spec.schema().properties().find(|prop| prop.name == "replicas").unwrap();
    assert!(texts.property(replicas.index).starts_with("Number of desired pods."));
    assert!(Schema::builtin_definitions().count() > 700);
}

#[test]
fn a_custom_schema_compiles_to_the_same_handle() {
    let schema = Schema::from_openapi(
        "Widget",
        &json!({"type": "object", "properties": {
            "spec": {"type": "object", "required": ["size"], "properties": {
                "size": {"type": "integer", "format": "int32", "default": 3},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "port": {"x-kubernetes-int-or-string": true},
                "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id", "kind"],
                    "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                              "properties": {"id": {"type": "string"}, "kind": {"type": "string"}}}},
            }},
        }}),
    )
    .unwrap();
    let root = schema.root();
    assert_eq!(root.type_name(), Some("Widget"));
    let spec = root.property("spec").unwrap();
    assert!(spec.is_required("size"));
    assert_eq!(spec.property("size").unwrap().default(), Some(&json!(3)));
    assert_eq!(spec.property("labels").unwrap().items().unwrap().shape(), Shape::String);
    assert_eq!(spec.property("port").unwrap().shape(), Shape::IntOrString);
    let parts = spec.property("parts").unwrap();
    assert_eq!(parts.list_map_keys().collect::<Vec<_>>(), ["id", "kind"]);
    assert!(parts.items().unwrap().preserve_unknown());
    let owners = root.property("metadata").unwrap().property("ownerReferences").unwrap();
    assert_eq!(owners.patch_merge_key(), Some("uid"));
    assert_eq!(
        root.property("metadata").unwrap().type_name(),
        Some("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
    );
    assert_eq!(
        owners.items().unwrap().type_name(),
        Some("io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference")
    );
}

#[test]
fn unusable_custom_schemas_are_refused() {
    let refused = |schema| Schema::from_openapi("X", &schema).unwrap_err();
    assert_eq!(refused(json!([])), SchemaError::NotAnObject(String::new()));
    let typed = json!({"type": "object", "properties": {"a": {"type": "date"}}});
    assert_eq!(refused(typed), SchemaError::UnknownType(".a".into(), "date".into()));
    let referring = json!({"type": "object", "properties": {"a": {"$ref": "#/x"}}});
    assert_eq!(refused(referring), SchemaError::Reference(".a".into()));
    let mut deep = json!({"type": "string"});
    for _ in 0..100 {
        deep = json!({"type": "array", "items": deep});
    }
    assert!(matches!(refused(deep), SchemaError::TooDeep(_)));
}
