mod generate;
mod independent;

use super::read::DEPTH_MAX;
use super::table::Type;
use super::*;
use proptest::prelude::*;
use serde_json::json;
use skeg_api::decode::check as check_schema;
use skeg_api::schema::Schema;
use std::collections::BTreeSet;

fn to_value(bytes: &[u8]) -> Result<Value, ProtobufError> {
    read::object(&read::envelope(bytes)?, 0)
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(n: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(n << 3, &mut out);
    varint(value, &mut out);
    out
}

fn bytes(n: u64, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut out = number(n, content.len() as u64);
    out[0] |= 2;
    out.extend(content);
    out
}

fn envelope(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let types = bytes(1, &[&bytes(1, &[version.as_bytes()]), &bytes(2, &[kind.as_bytes()])]);
    [MAGIC, &types, &bytes(2, &[raw])].concat()
}

fn check(version: &str, kind: &str, raw: &[u8], mut expected: Value) {
    expected["apiVersion"] = version.into();
    expected["kind"] = kind.into();
    assert_eq!(to_value(&envelope(version, kind, raw)).unwrap(), expected);
}

#[test]
fn objects_become_json() {
    let meta = bytes(
        1,
        &[&bytes(1, &[b"x"]), &bytes(8, &[]), &bytes(11, &[&bytes(1, &[b"k"]), &bytes(2, &[b"v"])])],
    );
    let expected = json!({"metadata": {"name": "x", "labels": {"k": "v"}}, "data": {"a": "b"}, "binaryData": {"c": "AQI="}});
    let data = bytes(2, &[&bytes(1, &[b"a"]), &bytes(2, &[b"b"])]);
    let binary = bytes(3, &[&bytes(1, &[b"c"]), &bytes(2, &[&[1, 2]])]);
    check("v1", "ConfigMap", &[meta, data, binary].concat(), expected);
    let time = bytes(9, &[&number(1, 1_767_225_600)]);
    check(
        "v1",
        "Namespace",
        &bytes(1, &[&time]),
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
    );
    let port = [number(3, 80), bytes(4, &[&number(1, 1), &bytes(3, &[b"http"])])].concat();
    let port = bytes(1, &[&port]);
    let expected = json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}], "clusterIP": "None"}});
    check("v1", "Service", &bytes(2, &[&port, &bytes(3, &[b"None"])]), expected);
    check("policy/v1", "DeleteOptions", &number(1, 5), json!({"gracePeriodSeconds": 5}));
    let extra = bytes(5, &[&bytes(1, &[b"k"]), &bytes(2, &[&bytes(1, &[b"v"])])]);
    let review = bytes(2, &[&bytes(3, &[b"jane"]), &extra]);
    let expected = json!({"spec": {"user": "jane", "extra": {"k": ["v"]}}});
    check("authorization.k8s.io/v1", "SubjectAccessReview", &review, expected);
}

#[test]
fn embedded_messages_are_their_parents_fields() {
    // spec.volumes[0].volumeSource.secret.secretName
    let source = bytes(2, &[&bytes(6, &[&bytes(1, &[b"s"])])]);
    let volume = bytes(1, &[&bytes(1, &[b"v"]), &source]);
    check(
        "v1",
        "Pod",
        &bytes(2, &[&volume]),
        json!({"spec": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}}),
    );
}

#[test]
fn zeroes_that_go_always_writes_are_gone_after_the_check() {
    let decoded = |version: &str, kind: &str, raw: &[u8]| {
        let mut value = to_value(&envelope(version, kind, raw)).unwrap();
        let gv = GroupVersion::parse(version).unwrap();
        let schema = Schema::builtin_kind(&gv.group, &gv.version, kind).unwrap();
        assert!(check_schema(&schema, &mut value).unwrap().unknown.is_empty());
        value
    };
    // Deployment: replicas is a pointer and stays, minReadySeconds and paused do not.
    let meta = bytes(1, &[&bytes(1, &[b"d"]), &bytes(2, &[]), &bytes(3, &[]), &number(7, 0), &bytes(8, &[])]);
    let template = bytes(3, &[&bytes(1, &[&bytes(1, &[])]), &bytes(2, &[&bytes(10, &[]), &number(11, 0)])]);
    let spec = [number(1, 0), template, bytes(4, &[&bytes(1, &[])]), number(5, 0), number(7, 0)].concat();
    assert_eq!(
        decoded("apps/v1", "Deployment", &[meta, bytes(2, &[&spec])].concat()),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
               "spec": {"replicas": 0, "strategy": {}, "template": {"metadata": {}, "spec": {}}}})
    );
    // TokenRequest: a reference of which only the name is set.
    let spec =
        [bytes(1, &[b"aud"]), bytes(3, &[&bytes(1, &[]), &bytes(3, &[b"p"])]), number(4, 600)].concat();
    assert_eq!(
        decoded("authentication.k8s.io/v1", "TokenRequest", &bytes(2, &[&spec])),
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
               "spec": {"audiences": ["aud"], "boundObjectRef": {"name": "p"}, "expirationSeconds": 600}})
    );
    let attributes =
        bytes(1, &[&bytes(1, &[b"ns"]), &bytes(2, &[b"get"]), &bytes(3, &[]), &bytes(5, &[b"pods"])]);
    let status = bytes(3, &[&number(1, 0), &bytes(2, &[]), &number(4, 0)]);
    assert_eq!(
        decoded(
            "authorization.k8s.io/v1",
            "SelfSubjectAccessReview",
            &[bytes(2, &[&attributes]), status].concat()
        ),
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
               "spec": {"resourceAttributes": {"namespace": "ns", "verb": "get", "resource": "pods"}},
               "status": {"allowed": false}})
    );
    // Pod: the handler of a probe and the source of a volume are embedded.
    let port = bytes(2, &[&number(1, 0), &number(2, 80), &bytes(3, &[])]);
    let get = bytes(2, &[&bytes(1, &[b"/"]), &port, &bytes(3, &[])]);
    let probe = bytes(10, &[&bytes(1, &[&get]), &number(2, 0), &number(3, 5)]);
    let limit = bytes(1, &[&bytes(1, &[b"cpu"]), &bytes(2, &[&bytes(1, &[b"100m"])])]);
    let secret = bytes(4, &[&bytes(1, &[&bytes(1, &[b"s"])]), &bytes(2, &[b"k"])]);
    let env = bytes(7, &[&bytes(1, &[b"E"]), &bytes(2, &[]), &bytes(3, &[&secret])]);
    let container = bytes(2, &[&bytes(1, &[b"c"]), &env, &bytes(8, &[&limit]), &probe, &number(16, 0)]);
    let volume = bytes(1, &[&bytes(1, &[b"v"]), &bytes(2, &[&bytes(2, &[&bytes(1, &[])])])]);
    assert_eq!(
        decoded("v1", "Pod", &bytes(2, &[&volume, &container])),
        json!({"apiVersion": "v1", "kind": "Pod", "spec": {
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{
                "name": "c",
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                "resources": {"limits": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"path": "/", "port": 80}, "timeoutSeconds": 5},
            }],
        }})
    );
}

#[test]
fn messages_in_parts_are_their_sum() {
    let raw = [bytes(1, &[&bytes(1, &[b"x"])]), bytes(1, &[&bytes(3, &[b"y"])])].concat();
    check("v1", "Namespace", &raw, json!({"metadata": {"name": "x", "namespace": "y"}}));
}

#[test]
fn unknown_numbers_are_skipped_and_times_are_bounded() {
    let meta = bytes(1, &[&bytes(1, &[b"x"]), &bytes(999, &[b"?"]), &number(998, 1)]);
    check("v1", "Namespace", &meta, json!({"metadata": {"name": "x"}}));
    for time in [number(1, i64::MAX as u64), number(2, u64::from(u32::MAX))] {
        let raw = bytes(1, &[&bytes(9, &[&time])]);
        let error = ProtobufError::Time("deletionTimestamp");
        assert_eq!(to_value(&envelope("v1", "Namespace", &raw)), Err(error));
    }
}

#[test]
fn the_table_names_what_the_schema_names() {
    fn names(message: usize, out: &mut BTreeSet<&'static str>) {
        for field in &TABLE.messages[message].fields {
            match field.of {
                Type::Message(inner) if field.name.is_empty() => names(inner, out),
                _ => drop(out.insert(field.name)),
            }
        }
    }
    for (message, index) in &TABLE.by_name {
        let Some(schema) = Schema::builtin(message) else { continue };
        // What JSON shows of these is one of their fields.
        if message.contains(".JSONSchemaPropsOr") {
            continue;
        }
        let mut own = BTreeSet::new();
        names(*index, &mut own);
        let types = ["apiVersion", "kind"];
        let root = schema.root();
        let of_schema: BTreeSet<&str> = root.properties().map(|property| property.name).collect();
        let absent: Vec<_> = of_schema.difference(&own).filter(|name| !types.contains(name)).collect();
        let unknown: Vec<_> = own.difference(&of_schema).collect();
        assert_eq!((absent, unknown), (vec![], vec![]), "{message}");
    }
}

#[test]
fn every_reference_in_the_table_exists() {
    assert!(TABLE.messages.len() > 300);
    for field in TABLE.messages.iter().flat_map(|message| &message.fields) {
        if let Type::Message(index) | Type::Union(index) = field.of {
            assert!(index < TABLE.messages.len(), "{}", field.name);
        }
    }
    for row in skeg_api::builtin::builtin() {
        let (version, kind) = (row.gvk.api_version(), &row.gvk.kind);
        assert!(message_of(&version, kind).is_some(), "{version} {kind}");
    }
}

#[test]
fn broken_bodies_are_errors() {
    let good = envelope("v1", "ConfigMap", &bytes(2, &[&bytes(1, &[b"a"]), &bytes(2, &[b"b"])]));
    for len in 0..good.len() {
        // Cut anywhere: an error or less content, never a panic.
        let _ = to_value(&good[..len]);
    }
    let refused = |raw: &[u8]| to_value(&envelope("v1", "ConfigMap", raw)).unwrap_err().to_string();
    assert_eq!(refused(&[0x0a, 0x7f]), "unexpected EOF");
    assert_eq!(refused(&[0x08, 1]), "proto: wrong wireType = 0 for field ObjectMeta");
    assert_eq!(refused(&[0x20, 0xff]), "unexpected EOF");
    assert_eq!(refused(&[0xff; 11]), "proto: integer overflow");
    assert_eq!(refused(&[0x0f]), "proto: illegal wireType 7");
    assert_eq!(refused(&[0x0c]), "proto: unexpected end of group");
    assert_eq!(refused(&[0x00, 1]), "proto: illegal tag 0 (wire type 0)");
    assert_eq!(
        refused(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        "proto: negative length found during unmarshaling"
    );
    assert_eq!(refused(&bytes(1, &[&bytes(1, &[&[0xff]])])), "proto: field name contains invalid UTF-8");
    // An unknown group is passed over, with one in it.
    let group =
        [&[0xfb, 0x01, 0x08, 1, 0x13, 0x14, 0xfc, 0x01][..], &bytes(2, &[&bytes(1, &[b"a"])])].concat();
    check("v1", "ConfigMap", &group, json!({"data": {"a": ""}}));
}

#[test]
fn refusals_read_as_upstreams() {
    let expected = Gvk::new("", "v1", "ConfigMap");
    let refused = |bytes: &[u8]| {
        let status = body_to_json(bytes, &expected).unwrap_err();
        assert_eq!(status.code, 400);
        status.message
    };
    assert_eq!(
        refused(b"{}"),
        "the object provided is unrecognized (must be of type ConfigMap): provided data does not appear to be a \
         protobuf message, expected prefix [107 56 115 0] ({})"
    );
    assert_eq!(
        refused(b""),
        "the object provided is unrecognized (must be of type ConfigMap): empty data (<empty>)"
    );
    assert_eq!(
        refused(b"k8s\0\x0a\x7f"),
        "the object provided is unrecognized (must be of type ConfigMap): unexpected EOF (6b3873000a7f)"
    );
    assert_eq!(
        refused(&envelope("v1", "Nothing", &[])),
        "Nothing in version \"v1\" cannot be handled as a ConfigMap: no kind \"Nothing\" is registered for version \"v1\""
    );
    assert_eq!(
        refused(&envelope("v1", "ConfigMap", &[0x0a, 0x7f])),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: unexpected EOF"
    );
    // Kind and version are what the request is about, where the envelope says nothing.
    let json = body_to_json(&[MAGIC, &bytes(2, &[&[0x20, 1]])].concat(), &expected).unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&json).unwrap(),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "immutable": true})
    );
}

#[test]
fn nesting_is_bounded() {
    // A JSON schema within a JSON schema, and so on.
    let mut schema = bytes(5, &[b"object"]);
    for _ in 0..2 * DEPTH_MAX {
        schema = bytes(28, &[&schema]);
    }
    let validation = bytes(1, &[&schema]);
    let version = bytes(7, &[&[&bytes(1, &[b"v1"])[..], &bytes(4, &[&validation])].concat()]);
    let raw = bytes(2, &[&version]);
    let body = envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition", &raw);
    assert_eq!(to_value(&body), Err(ProtobufError::Depth));
}

#[test]
fn objects_may_be_in_objects_and_in_json() {
    let inner = envelope("v1", "ConfigMap", &[0x20, 1]);
    let expected =
        json!({"data": {"apiVersion": "v1", "kind": "ConfigMap", "immutable": true}, "revision": 3});
    let raw = [bytes(2, &[&bytes(1, &[&inner])]), number(3, 3)].concat();
    check("apps/v1", "ControllerRevision", &raw, expected);
    let whole = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"}});
    let json =
        [MAGIC, &bytes(2, &[whole.to_string().as_bytes()]), &bytes(4, &[b"application/json"])].concat();
    assert_eq!(to_value(&json).unwrap(), whole);
}

#[test]
fn the_envelope_is_upstreams() {
    let written =
        encode(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})).unwrap();
    let raw = bytes(1, &[&bytes(1, &[b"a"])]);
    assert_eq!(written, [&envelope("v1", "ConfigMap", &raw)[..], &[0x1a, 0, 0x22, 0]].concat());
    let status = encode(&json!({"apiVersion": "v1", "kind": "Status", "code": 404})).unwrap();
    assert_eq!(status, [&envelope("v1", "Status", &number(6, 404))[..], &[0x1a, 0, 0x22, 0]].concat());
    // A frame of a watch: length, type, object.
    let framed = frame("ADDED", &written);
    let event = [bytes(1, &[b"ADDED"]), bytes(2, &[&bytes(1, &[&written])])].concat();
    assert_eq!(framed, [&(event.len() as u32).to_be_bytes()[..], &event].concat());
    // A Table has no message.
    let refused = encode(&json!({"apiVersion": "meta.k8s.io/v1", "kind": "Table"})).unwrap_err();
    assert_eq!(refused.code, 406);
}

#[test]
fn lists_are_their_metadata_and_items() {
    let list = json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "7", "continue": "c",
        "remainingItemCount": 2}, "items": [{"apiVersion": "v1", "kind": "ConfigMap", "immutable": true}, {}]});
    let meta = bytes(1, &[&bytes(3, &[b"c"]), &number(4, 2), &bytes(2, &[b"7"])]);
    let raw = [&meta[..], &bytes(2, &[&[0x20, 1]]), &bytes(2, &[])].concat();
    assert_eq!(
        encode(&list).unwrap(),
        [&envelope("v1", "ConfigMapList", &raw)[..], &[0x1a, 0, 0x22, 0]].concat()
    );
}

#[test]
fn schemas_of_custom_resources_survive() {
    let props = json!({"type": "object", "additionalProperties": {"type": "string"}, "x-kubernetes-list-type": "map",
        "properties": {"a": {"items": {"type": "integer"}, "default": {"x": [1, null]}, "enum": [null, 1, "b"]},
            "b": {"additionalProperties": false, "items": [{"type": "string"}, {}], "maximum": 1.5, "minimum": 2}},
        "dependencies": {"c": ["d"], "e": {"$ref": "#/f"}}});
    let object = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": props}}]}});
    let bytes = encode(&object).unwrap();
    assert_eq!(to_value(&bytes).unwrap(), object);
    // What a schema describes is allowed, which Go's type tells by a field of its own.
    assert!(bytes.windows(4).any(|part| part == [0x08, 1, 0x12, 8]));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        raw in proptest::collection::vec(any::<u8>(), 0..256),
        which in any::<prop::sample::Index>(),
    ) {
        let rows = skeg_api::builtin::builtin();
        let gvk = &which.get(&rows).gvk;
        let _ = to_value(&raw);
        let _ = to_value(&[MAGIC, &raw].concat());
        let _ = to_value(&envelope(&gvk.api_version(), &gvk.kind, &raw));
    }

    /// Sound fields of small numbers, nested now and then, so that the walk gets deep.
    #[test]
    fn random_fields_never_panic(
        fields in proptest::collection::vec(
            (1u64..40, 0u8..3, proptest::collection::vec(any::<u8>(), 0..6)),
            0..24,
        ),
        which in any::<prop::sample::Index>(),
    ) {
        let mut raw = Vec::new();
        for (at, form, content) in &fields {
            match form {
                0 => raw.extend(number(*at, content.len() as u64)),
                1 => raw.extend(bytes(*at, &[content])),
                _ => raw = bytes(*at, &[&raw]),
            }
        }
        let rows = skeg_api::builtin::builtin();
        let gvk = &which.get(&rows).gvk;
        let _ = to_value(&envelope(&gvk.api_version(), &gvk.kind, &raw));
    }
}
