use super::*;
use proptest::prelude::*;
use serde_json::json;

fn deployment() -> Gvk {
    Gvk::new("apps", "v1", "Deployment")
}

fn schema(group: &str, version: &str, kind: &str) -> Schema {
    Schema::builtin_kind(group, version, kind).unwrap()
}

fn decode(body: &str, validation: FieldValidation) -> Result<Object, String> {
    decode_object(
        body.as_bytes(),
        Encoding::Json,
        &deployment(),
        &schema("apps", "v1", "Deployment"),
        validation,
    )
    .map_err(|status| {
        assert_eq!((status.code, status.reason), (400, crate::Reason::BadRequest));
        status.message
    })
}

fn pod(value: Value) -> Result<(Value, Vec<String>), String> {
    let mut value = value;
    let checked = check(&schema("", "v1", "Pod"), &mut value).map_err(|error| error.to_string())?;
    Ok((value, checked.unknown))
}

#[test]
fn duplicates_and_unknown_fields_are_found_at_any_depth() {
    let body = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"labels":{"a":"1","a":"2"}},
        "spec":{"replicas":1,"replicas":2,"foo":1,"template":{"spec":{"containers":[{"name":"a","name":"b","bar":null}]}}}}"#;
    let object = decode(body, FieldValidation::Warn).unwrap();
    assert_eq!(
        object.warnings,
        [
            "duplicate field \"metadata.labels.a\"",
            "duplicate field \"spec.replicas\"",
            "unknown field \"spec.foo\"",
            "duplicate field \"spec.template.spec.containers[0].name\"",
            "unknown field \"spec.template.spec.containers[0].bar\"",
        ]
    );
    assert_eq!(object.value["spec"]["replicas"], 2);
    assert_eq!(object.value["spec"].get("foo"), None);
    assert_eq!(object.value["spec"]["template"]["spec"]["containers"], json!([{"name": "b"}]));
    assert_eq!(decode(body, FieldValidation::Ignore).unwrap().warnings, [""; 0]);
    let strict = decode(r#"{"spec":{"foo":1,"foo":2}}"#, FieldValidation::Strict).unwrap_err();
    assert_eq!(
        strict,
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \
         \"spec.foo\""
    );
}

#[test]
fn yaml_reads_as_json_does() {
    let yaml = "apiVersion: apps/v1\nkind: Deployment\nspec:\n  replicas: 1\n  replicas: 3\n  paused: true\n  template:\n    metadata:\n      labels: {1: 'x'}\n";
    let read = decode_object(
        yaml.as_bytes(),
        Encoding::Yaml,
        &deployment(),
        &schema("apps", "v1", "Deployment"),
        FieldValidation::Warn,
    )
    .unwrap();
    assert_eq!(read.warnings, ["line 5: key \"replicas\" already set in map"]);
    assert_eq!(read.value["spec"]["replicas"], 3);
    assert_eq!(read.value["spec"]["template"]["metadata"]["labels"], json!({"1": "x"}));
    let broken = decode_yaml(b"a: [1, 2").unwrap_err().to_string();
    assert!(broken.starts_with("error converting YAML to JSON: yaml: "), "{broken}");
}

#[test]
fn strict_yaml_names_lines() {
    let yaml =
        b"spec:\n  foo: 1\n  foo: 2\n  template:\n    spec:\n      hostIPC: true\n      hostIPC: true\n";
    let schema = schema("apps", "v1", "Deployment");
    let refused =
        decode_object(yaml, Encoding::Yaml, &deployment(), &schema, FieldValidation::Strict).unwrap_err();
    assert_eq!(
        refused.message,
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: yaml: unmarshal errors:\n  \
         line 3: key \"foo\" already set in map\n  line 7: key \"hostIPC\" already set in map, unknown field \"spec.foo\""
    );
}

#[test]
fn wrong_types_read_as_upstreams() {
    let refused =
        |spec: Value| decode(&json!({ "spec": spec }).to_string(), FieldValidation::Strict).unwrap_err();
    let of = |what: &str| {
        format!(
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal {what}"
        )
    };
    assert_eq!(
        refused(json!({"replicas": "3"})),
        of("string into Go struct field DeploymentSpec.spec.replicas of type int32")
    );
    assert_eq!(
        refused(json!({"replicas": 1.5})),
        of("number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32")
    );
    assert_eq!(
        refused(json!({"replicas": 3_000_000_000u64})),
        of("number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32")
    );
    assert_eq!(
        refused(json!({"template": {"spec": {"containers": {}}}})),
        of("object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container")
    );
    assert_eq!(
        refused(json!({"template": {"spec": {"containers": [{"env": [{"value": 1}]}]}}})),
        of("number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string")
    );
    assert_eq!(
        refused(json!({"selector": {"matchLabels": {"a": true}}})),
        of("bool into Go struct field LabelSelector.spec.selector.matchLabels of type string")
    );
    assert_eq!(
        refused(json!({"strategy": {"rollingUpdate": {"maxSurge": true}}})),
        of("bool into Go value of type int32")
    );
}

/// Eight lists, each nine times the one before: 43 million nodes.
#[test]
fn yaml_that_aliases_blow_up_is_refused() {
    let mut bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (name, before) in ('b'..='h').zip('a'..) {
        bomb += &format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 9].join(","));
    }
    let refused = decode_yaml(bomb.as_bytes()).unwrap_err().to_string();
    assert!(refused.contains("nodes"), "{refused}");
}

#[test]
fn bodies_that_are_no_object_are_unrecognized() {
    let refused = |body: &str| decode(body, FieldValidation::Warn).unwrap_err();
    let prefix = "the object provided is unrecognized (must be of type Deployment): couldn't get version/kind; json parse error: ";
    assert_eq!(refused(""), format!("{prefix}unexpected end of JSON input (<empty>)"));
    assert_eq!(refused("{\"a\":"), format!("{prefix}unexpected end of JSON input ({{\"a\":)"));
    assert_eq!(refused("{\"a\" 1}"), format!("{prefix}invalid character '1' after object key ({{\"a\" 1}})"));
    assert_eq!(
        refused("{a}"),
        format!("{prefix}invalid character 'a' looking for beginning of object key string ({{a}})")
    );
    assert_eq!(
        refused("zip"),
        format!("{prefix}invalid character 'z' looking for beginning of value (7a6970)")
    );
    assert!(refused("[1]").contains("json: cannot unmarshal array into Go value of type struct"));
    assert!(refused(&"[".repeat(100_000)).contains("exceeded max depth"));
}

#[test]
fn other_kinds_are_refused_and_absent_ones_filled_in() {
    let refused = |body: &str| decode(body, FieldValidation::Warn).unwrap_err();
    assert_eq!(
        refused(r#"{"apiVersion":"apps/v1beta1","kind":"Deployment"}"#),
        "the API version in the data (apps/v1beta1) does not match the expected API version (apps/v1)"
    );
    assert!(
        refused(r#"{"apiVersion":"v1","kind":"Pod"}"#)
            .starts_with("Pod in version \"v1\" cannot be handled as a Deployment: ")
    );
    assert!(
        refused(r#"{"kind":"ReplicaSet"}"#)
            .ends_with("converting (v1.ReplicaSet) to (apps.Deployment): unknown conversion")
    );
    let object = decode("{}", FieldValidation::Strict).unwrap().value;
    assert_eq!(object, json!({"apiVersion": "apps/v1", "kind": "Deployment"}));
}

#[test]
fn scalars_take_their_canonical_form() {
    let (value, unknown) = pod(json!({
        "metadata": {"creationTimestamp": null, "deletionTimestamp": "2024-01-01T01:00:00.5+01:00", "labels": {"a": null}},
        "spec": {"nodeName": null, "containers": [{"name": "a", "resources": {"limits": {"cpu": "1000m", "memory": "64Mi"}, "requests": {"cpu": 0.5}}}]},
    }))
    .unwrap();
    assert_eq!(unknown, [""; 0]);
    assert_eq!(value["metadata"], json!({"deletionTimestamp": "2024-01-01T00:00:00Z", "labels": {"a": ""}}));
    assert_eq!(
        value["spec"],
        json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "500m"}}}]})
    );
    let refused = |value: Value| pod(value).unwrap_err();
    assert_eq!(
        refused(json!({"metadata": {"creationTimestamp": "yesterday"}})),
        "parsing time \"yesterday\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"yesterday\" as \"2006\""
    );
    assert_eq!(
        refused(json!({"metadata": {"creationTimestamp": "2024-13-01T00:00:00Z"}})),
        "parsing time \"2024-13-01T00:00:00Z\": month out of range"
    );
    assert!(
        refused(json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}))
            .starts_with("quantities must match")
    );
}

#[test]
fn zeroes_are_absent_where_upstream_omits_them() {
    let (value, _) = pod(json!({
        "metadata": {"generateName": "", "uid": ""},
        "spec": {"hostNetwork": false, "automountServiceAccountToken": false, "nodeName": "", "priority": 0,
                 "containers": [{"name": "a", "env": [{"name": "A", "value": ""}], "tty": false}]},
    }))
    .unwrap();
    assert_eq!(
        value,
        json!({"metadata": {}, "spec": {"automountServiceAccountToken": false, "priority": 0,
                                        "containers": [{"name": "a", "env": [{"name": "A"}]}]}})
    );
    assert!(pod(json!({"spec": {"hostNetwork": ""}})).is_err());
    assert!(pod(json!({"spec": {"nodeName": false}})).is_err());
}

#[test]
fn empty_lists_and_maps_are_absent() {
    let (value, _) = pod(json!({
        "metadata": {"labels": {}, "finalizers": []},
        "spec": {"nodeSelector": {}, "containers": [], "volumes": [{"name": "a", "emptyDir": {}}], "securityContext": {}},
    }))
    .unwrap();
    assert_eq!(
        value,
        json!({"metadata": {}, "spec": {"containers": [], "volumes": [{"name": "a", "emptyDir": {}}], "securityContext": {}}})
    );
}

#[test]
fn base64_is_checked_without_decoding() {
    assert_eq!(scalar::base64("").as_deref(), Ok(""));
    assert_eq!(scalar::base64("YQ==").as_deref(), Ok("YQ=="));
    assert_eq!(scalar::base64("YW\nI=\n").as_deref(), Ok("YWI="));
    assert_eq!(scalar::base64("YQ=").unwrap_err(), "illegal base64 data at input byte 0");
    assert_eq!(scalar::base64("Y*==").unwrap_err(), "illegal base64 data at input byte 1");
    assert!(scalar::base64("YQ==YQ==").is_err());
}

#[test]
fn micro_times_need_their_digits() {
    assert_eq!(
        scalar::time("2024-01-01T00:00:00.123456Z", true).as_deref(),
        Ok("2024-01-01T00:00:00.123456Z")
    );
    assert_eq!(
        scalar::time("2024-01-01T01:00:00.123456+01:00", true).as_deref(),
        Ok("2024-01-01T00:00:00.123456Z")
    );
    assert!(
        scalar::time("2024-01-01T00:00:00Z", true)
            .unwrap_err()
            .ends_with("cannot parse \"Z\" as \".000000\"")
    );
}

#[test]
fn custom_resources_have_typed_parts() {
    let schema = Schema::from_openapi(
        "Widget",
        &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "size": {"type": "integer"}, "note": {"type": "string", "nullable": true},
            "any": {"x-kubernetes-preserve-unknown-fields": true},
            "tmpl": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}}}),
    )
    .unwrap();
    let given = json!({"metadata": {"labels": {}, "name": "a"}, "spec": {"size": "big", "note": null, "else": 1,
        "any": {"n": [1.0]}, "tmpl": {"kind": "A", "metadata": {"odd": 1, "creationTimestamp": null}, "n": 2e3}}});
    let mut value = given.clone();
    let checked = check(&schema, &mut value).unwrap();
    assert_eq!(checked.unknown, ["unknown field \"spec.else\"", "unknown field \"spec.tmpl.metadata.odd\""]);
    let text = value.to_string();
    assert!(text.contains(r#""n":[1]"#) && text.contains(r#""n":2000"#), "{text}");
    assert_eq!(
        value,
        json!({"metadata": {"name": "a"}, "spec": {"size": "big", "note": null, "any": {"n": [1]},
            "tmpl": {"kind": "A", "metadata": {}, "n": 2000}}}),
        "the rules of the schema judge the rest"
    );
    for (pointer, odd, why) in [
        ("/metadata", json!([]), "json: cannot unmarshal array into Go value of type v1.ObjectMeta"),
        (
            "/metadata/labels",
            json!({"a": 1}),
            "json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string",
        ),
        (
            "/metadata/creationTimestamp",
            json!("now"),
            "parsing time \"now\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"now\" as \"2006\"",
        ),
        ("/kind", json!(1), "must be a string"),
    ] {
        for place in ["", "/spec/tmpl"] {
            let mut value = given.clone();
            let (parent, last) = pointer.rsplit_once('/').unwrap();
            value.pointer_mut(&format!("{place}{parent}")).unwrap()[last] = odd.clone();
            let told = check(&schema, &mut value).unwrap_err().to_string();
            let path =
                format!("{place}/{}", &pointer[1..]).replace("/labels", "").replace("/creationTimestamp", "");
            let path = path[1..].replace('/', ".");
            match place {
                "" => assert_eq!(told, why),
                _ => assert!(
                    told.starts_with(&format!("{path}: Invalid value: "))
                        && told.ends_with(&format!(": {why}")),
                    "{told}"
                ),
            }
            assert_eq!(value["spec"].get("else"), None, "the rest was walked all the same");
        }
    }
}

#[test]
fn custom_resources_name_their_kind() {
    let schema = Schema::from_openapi("Widget", &json!({"type": "object"})).unwrap();
    let gvk = Gvk::new("ex.io", "v1", "Widget");
    let read = |text: &str| {
        decode_object(text.as_bytes(), Encoding::Json, &gvk, &schema, FieldValidation::Warn)
            .map(|object| object.invalid.iter().map(ToString::to_string).collect::<Vec<_>>())
            .map_err(|status| (status.code, status.message))
    };
    let none = r#"{"metadata":{"name":"a"}}"#;
    assert_eq!(
        read(none),
        Err((
            400,
            format!(
                "the object provided is unrecognized (must be of type Widget): Object 'Kind' is missing in '{none}' ({none})"
            )
        ))
    );
    let differs = "the API version in the data () does not match the expected API version (ex.io/v1)";
    assert_eq!(read(r#"{"kind":"Widget"}"#), Err((400, differs.to_owned())));
    assert_eq!(
        read(r#"{"apiVersion":"ex.io/v1","kind":"Bar"}"#),
        Ok(vec!["kind: Invalid value: \"Bar\": must be Widget".to_owned()])
    );
    assert_eq!(read(r#"{"apiVersion":"ex.io/v1","kind":"Widget"}"#), Ok(Vec::new()));
}

/// Values that look a little like objects.
pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9.:=-]{0,12}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        "[a-z]{1,4}",
        prop::sample::select(vec![
            "metadata",
            "spec",
            "containers",
            "name",
            "labels",
            "resources",
            "limits",
            "ports",
            "env",
            "volumes"
        ])
        .prop_map(str::to_owned)
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A value that a schema allows, decided by a seed.
pub(crate) fn sample(schema: crate::schema::SchemaRef<'_>, seed: &mut u64, depth: usize) -> Value {
    use crate::schema::{Format, Shape};
    let mut roll = |sides: u64| {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 33) % sides
    };
    match schema.shape() {
        Shape::Any => match schema.object_form() {
            Some(form) => sample(form, seed, depth),
            None => json!({"free": [null, 1]}),
        },
        Shape::Boolean => json!(roll(2) == 0),
        Shape::Integer => json!(roll(4)),
        Shape::Number => json!(1.5),
        Shape::IntOrString => [json!(80), json!("25%")][roll(2) as usize].clone(),
        Shape::Quantity => [json!("1500m"), json!("1000m"), json!("1Gi"), json!(0.25), json!("100500u")]
            [roll(5) as usize]
            .clone(),
        Shape::String => match schema.format() {
            Format::Byte => json!("YQ=="),
            Format::Time => [json!("2026-01-01T00:00:00Z"), json!("2026-01-01T00:00:00.5+02:00")]
                [roll(2) as usize]
                .clone(),
            Format::MicroTime => json!("2026-01-01T00:00:00.000001Z"),
            _ => {
                [json!(""), json!("a"), json!("b"), json!("Always"), json!("None")][roll(5) as usize].clone()
            }
        },
        Shape::Array => (0..roll(3)).map(|_| sample(schema.items().unwrap(), seed, depth)).collect(),
        Shape::Map => {
            (0..roll(3)).map(|n| (format!("k{n}"), sample(schema.items().unwrap(), seed, depth))).collect()
        }
        Shape::Object => {
            let mut map = serde_json::Map::new();
            for property in schema.properties() {
                *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Deeper objects are sparser, so that recursive types end.
                if (*seed >> 33) % 100 < [90, 70, 40, 30, 25, 20, 10].get(depth).copied().unwrap_or(0) {
                    map.insert(property.name.to_owned(), sample(property.schema, seed, depth + 1));
                }
            }
            Value::Object(map)
        }
    }
}

proptest! {
    /// What a schema allows decodes without complaint, and once decoded stays as it is.
    #[test]
    fn valid_objects_are_taken(seed in any::<u64>()) {
        for kind in crate::builtin::builtin() {
            let mut seed = seed;
            let mut value = sample(kind.schema.root(), &mut seed, 0);
            prop_assert_eq!(check(&kind.schema, &mut value).unwrap(), Checked::default());
            let once = value.clone();
            check(&kind.schema, &mut value).unwrap();
            prop_assert_eq!(value, once);
        }
    }

    #[test]
    fn parsing_agrees_with_serde_json(value in any_json()) {
        let decoded = decode_json(value.to_string().as_bytes()).unwrap();
        prop_assert_eq!(decoded, Decoded { value, duplicates: vec![] });
    }

    #[test]
    fn checking_is_idempotent(value in any_json()) {
        let schema = schema("", "v1", "Pod");
        let mut once = value;
        if check(&schema, &mut once).is_ok() {
            let mut twice = once.clone();
            prop_assert_eq!(check(&schema, &mut twice).unwrap(), Checked::default());
            prop_assert_eq!(once, twice);
        }
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_json(&bytes);
        let _ = decode_yaml(&bytes);
    }
}

#[test]
fn schemas_within_schemas_have_known_words_only() {
    let schema = Schema::builtin_kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
    let of = |of: Value| {
        json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {"properties": {
            "l": {"items": of}, "m": {"additionalProperties": of}, "f": {"additionalProperties": true}}}}}]}})
    };
    let mut value = of(
        json!({"type": "object", "odd": 1, "default": {"free": 1}, "items": {"type": "string", "odd": 2}}),
    );
    let checked = check(&schema, &mut value).unwrap();
    let root = "spec.versions[0].schema.openAPIV3Schema.properties";
    let unknown = |at: &str| format!("unknown field \"{root}.{at}\"");
    assert_eq!(
        checked.unknown,
        [
            unknown("l.items.items.odd"),
            unknown("l.items.odd"),
            unknown("m.additionalProperties.items.odd"),
            unknown("m.additionalProperties.odd")
        ]
    );
    assert_eq!(value, of(json!({"type": "object", "default": {"free": 1}, "items": {"type": "string"}})));
}

#[test]
fn what_is_no_unicode_is_replaced_as_go_replaces_it() {
    let read = |bytes: &[u8]| decode_json(bytes).unwrap().value;
    assert_eq!(read(br#"{"a": "\ud800x"}"#), json!({"a": "\u{fffd}x"}));
    assert_eq!(read(br#"{"a": "\udc00\ud83d\ude00\\ud800"}"#), json!({"a": "\u{fffd}\u{1f600}\\ud800"}));
    assert_eq!(read(b"{\"a\": \"x\xff\xe2\x82y\"}"), json!({"a": "x\u{fffd}\u{fffd}\u{fffd}y"}));
    assert!(decode_json(b"{\"a\": \"\xff\"").is_err(), "the rest is read as ever");
}

#[test]
fn the_first_document_of_a_stream_counts() {
    let read = |text: &str| decode_yaml(text.as_bytes()).unwrap().value;
    assert_eq!(read("# one\n---\na: 1\n---\nb: 2\n"), json!({"a": 1}));
    assert_eq!(read("%YAML 1.1\n---\na: 1\n...\nb: 2\n"), json!({"a": 1}));
    assert_eq!(read("a: |\n  x\n  ---\n  y\nb: ---x\n"), json!({"a": "x\n---\ny\n", "b": "---x"}));
}
