//! Protobuf in and out, with messages that generated code writes and reads.

use crate::harness::*;
use crate::kinds::{WIDGETS, object, widget};
use bytes::Bytes;
use http_body_util::BodyExt;
use k8s_pb::api::core::v1 as pb;
use k8s_pb::apimachinery::pkg::apis::meta::v1 as pb_meta;
use k8s_pb::apimachinery::pkg::runtime::{TypeMeta, Unknown};
use prost::Message;
use serde_json::{Value, json};
use std::time::Duration;

pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// The body of an object.
pub fn encode(version: &str, kind: &str, object: &impl Message) -> Bytes {
    let unknown = Unknown {
        type_meta: Some(TypeMeta { api_version: Some(version.into()), kind: Some(kind.into()) }),
        raw: Some(object.encode_to_vec()),
        ..Default::default()
    };
    [b"k8s\0", &unknown.encode_to_vec()[..]].concat().into()
}

/// The object in an answer, which must be of the kind and in protobuf.
#[track_caller]
pub fn decode<M: Message + Default>(answer: &Answer, version: &str, kind: &str) -> M {
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with(PROTOBUF), "{}", answer.text());
    decode_bytes(&answer.bytes, version, kind)
}

#[track_caller]
fn decode_bytes<M: Message + Default>(bytes: &[u8], version: &str, kind: &str) -> M {
    let bytes = bytes.strip_prefix(b"k8s\0").unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(bytes)));
    let unknown = Unknown::decode(bytes).unwrap();
    let types = unknown.type_meta.clone().unwrap();
    assert_eq!((types.api_version(), types.kind()), (version, kind));
    M::decode(unknown.raw()).unwrap()
}

/// An object as client-go writes it: fields that Go holds by value are there though they are zero.
fn map(name: &str, value: &str) -> pb::ConfigMap {
    let metadata = pb_meta::ObjectMeta {
        name: Some(name.into()),
        generate_name: Some(String::new()),
        namespace: Some(String::new()),
        self_link: Some(String::new()),
        uid: Some(String::new()),
        resource_version: Some(String::new()),
        generation: Some(0),
        creation_timestamp: Some(Default::default()),
        ..Default::default()
    };
    pb::ConfigMap {
        metadata: Some(metadata),
        data: [("k".to_owned(), value.to_owned())].into(),
        binary_data: [("b".to_owned(), vec![0, 255])].into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn protobuf_goes_in_and_out() {
    let s = start().await;
    let headers =
        [("content-type", PROTOBUF), ("accept", "application/vnd.kubernetes.protobuf,application/json")];
    let path = format!("{CONFIG_MAPS}/pb");
    let made = s.send("POST", CONFIG_MAPS, &headers, encode("v1", "ConfigMap", &map("pb", "v"))).await;
    assert_eq!((made.code, &made.headers["content-type"]), (201, &PROTOBUF.parse().unwrap()));
    let made: pb::ConfigMap = decode(&made, "v1", "ConfigMap");
    assert_eq!((&made.data["k"], &made.binary_data["b"]), (&"v".to_owned(), &vec![0, 255]));
    // What JSON shows is what a JSON client would have made.
    let shown = s.get(&path).await.expect(200);
    assert_eq!((&shown["data"], &shown["binaryData"]), (&json!({"k": "v"}), &json!({"b": "AP8="})));
    for absent in ["generateName", "selfLink", "generation"] {
        assert!(shown["metadata"].get(absent).is_none(), "{shown}");
    }
    let meta = made.metadata.clone().unwrap();
    let of = |name: &str| shown["metadata"][name].as_str().unwrap().to_owned();
    assert_eq!((meta.uid(), meta.resource_version()), (of("uid").as_str(), of("resourceVersion").as_str()));
    let seconds = meta.creation_timestamp.unwrap().seconds();
    assert_eq!(seconds, of("creationTimestamp").parse::<jiff::Timestamp>().unwrap().as_second());
    let fields: Value =
        serde_json::from_slice(meta.managed_fields[0].fields_v1.as_ref().unwrap().raw()).unwrap();
    assert_eq!(fields, shown["metadata"]["managedFields"][0]["fieldsV1"]);

    // What was read is written back: an update of its version.
    let mut update = made.clone();
    update.data.insert("k".into(), "w".into());
    let updated = s.send("PUT", &path, &headers, encode("v1", "ConfigMap", &update)).await;
    assert_eq!(decode::<pb::ConfigMap>(&updated, "v1", "ConfigMap").data["k"], "w");
    let conflict = s.send("PUT", &path, &headers, encode("v1", "ConfigMap", &update)).await;
    let status: pb_meta::Status = decode(&conflict, "v1", "Status");
    assert_eq!(
        (status.code(), status.reason(), status.details.as_ref().unwrap().name()),
        (409, "Conflict", "pb")
    );
    // A patch is JSON, its answer may be protobuf.
    let headers_of_patch = [("content-type", "application/merge-patch+json"), ("accept", PROTOBUF)];
    let patched = s.send("PATCH", &path, &headers_of_patch, r#"{"data":{"k":null}}"#).await;
    assert!(!decode::<pb::ConfigMap>(&patched, "v1", "ConfigMap").data.contains_key("k"));

    // Options of a delete: a precondition that fails, then one that holds.
    let options = |uid: &str| {
        let preconditions = pb_meta::Preconditions { uid: Some(uid.into()), ..Default::default() };
        let options = pb_meta::DeleteOptions { preconditions: Some(preconditions), ..Default::default() };
        encode("v1", "DeleteOptions", &options)
    };
    let refused = s.send("DELETE", &path, &headers, options("other")).await;
    assert_eq!((refused.code, decode::<pb_meta::Status>(&refused, "v1", "Status").code()), (409, 409));
    let deleted = s.send("DELETE", &path, &headers, options(meta.uid())).await;
    assert_eq!(decode::<pb_meta::Status>(&deleted, "v1", "Status").status(), "Success");
    assert_eq!(
        decode::<pb_meta::Status>(&s.send("GET", &path, &headers, "").await, "v1", "Status").code(),
        404
    );
}

#[tokio::test]
async fn broken_protobuf_is_refused() {
    let s = start().await;
    let headers = [("content-type", PROTOBUF)];
    let body = encode("v1", "ConfigMap", &map("pb", "v"));
    let cut = encode("v1", "ConfigMap", &pb::ConfigMap::default());
    let cut = [&cut[..cut.len() - 1], &[4, 0x0a, 0x7f, 1, 1]].concat();
    let other = encode("v1", "Secret", &pb::Secret::default());
    let unknown = encode("v1", "Nothing", &pb::Secret::default());
    for (body, text) in [
        (body.slice(..body.len() - 1), "(must be of type ConfigMap): unexpected EOF (6b3873000a0f"),
        (cut.into(), "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: unexpected EOF"),
        (other, "Secret in version \"v1\" cannot be handled as a ConfigMap"),
        (
            unknown,
            "Nothing in version \"v1\" cannot be handled as a ConfigMap: no kind \"Nothing\" is registered",
        ),
        (Bytes::new(), "(must be of type ConfigMap): empty data (<empty>)"),
    ] {
        let refused = s.send("POST", CONFIG_MAPS, &headers, body).await.expect(400);
        assert!(refused["message"].as_str().unwrap().contains(text), "{refused}");
        assert_eq!(refused["reason"], "BadRequest");
    }
    s.send("PATCH", &format!("{CONFIG_MAPS}/pb"), &headers, body).await.expect(415);
    assert_eq!(s.api.stats().panics_total.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn lists_pages_and_metadata_come_in_protobuf() {
    let s = start().await;
    for name in ["a", "b", "c"] {
        s.post(PODS, &pod(name)).await.expect(201);
    }
    let shown = s.get(&format!("{PODS}?limit=2")).await.expect(200);
    let answer = s.send("GET", &format!("{PODS}?limit=2"), &[("accept", PROTOBUF)], "").await;
    let list: pb::PodList = decode(&answer, "v1", "PodList");
    let meta = list.metadata.unwrap();
    assert_eq!(meta.resource_version(), shown["metadata"]["resourceVersion"]);
    assert_eq!(
        (meta.r#continue(), meta.remaining_item_count()),
        (shown["metadata"]["continue"].as_str().unwrap(), 1)
    );
    assert_eq!(list.items.len(), 2);
    assert_eq!(list.items[1].spec.as_ref().unwrap().containers[0].image(), "nginx");
    let accept = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let answer = s.send("GET", PODS, &[("accept", &accept)], "").await;
    let list: pb_meta::PartialObjectMetadataList =
        decode(&answer, "meta.k8s.io/v1", "PartialObjectMetadataList");
    assert_eq!(list.items[2].metadata.as_ref().unwrap().labels["app"], "c");
    // A Table has no protobuf.
    let accept = format!("{PROTOBUF};as=Table;g=meta.k8s.io;v=v1");
    s.send("GET", PODS, &[("accept", &accept)], "").await.expect(406);
    // Both groups of Events, of which one is stored.
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "message": "m",
        "involvedObject": {"kind": "Pod", "namespace": "default", "name": "a"}});
    s.post("/api/v1/namespaces/default/events", &event).await.expect(201);
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    let answer = s.send("GET", path, &[("accept", PROTOBUF)], "").await;
    let list: k8s_pb::api::events::v1::EventList = decode(&answer, "events.k8s.io/v1", "EventList");
    assert_eq!((list.items[0].note(), list.items[0].regarding.as_ref().unwrap().name()), ("m", "a"));
}

#[tokio::test]
async fn large_lists_are_compressed() {
    let s = start().await;
    for n in 0..4 {
        s.post(CONFIG_MAPS, &config_map(&format!("large-{n}"), json!({"k": "x".repeat(50_000)})))
            .await
            .expect(201);
    }
    let headers = [("accept", PROTOBUF), ("accept-encoding", "gzip")];
    for _ in 0..2 {
        let answer = s.send("GET", CONFIG_MAPS, &headers, "").await;
        assert_eq!(
            (&answer.headers["content-encoding"], answer.bytes.len() < 5000),
            (&"gzip".parse().unwrap(), true)
        );
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&answer.bytes[..]), &mut plain).unwrap();
        assert_eq!(decode_bytes::<pb::ConfigMapList>(&plain, "v1", "ConfigMapList").items.len(), 4);
        // The same list in JSON is another answer.
        let json = s.send("GET", CONFIG_MAPS, &[("accept-encoding", "gzip")], "").await;
        assert_eq!(json.headers["content-type"], "application/json");
    }
}

/// The frames of a watch in protobuf: type and object.
struct Frames {
    body: skeg_apiserver::Body,
    buffer: Vec<u8>,
}

impl Frames {
    async fn open(s: &Server, path: &str, accept: &str) -> Self {
        let response = s.raw("GET", path, &[("accept", accept)], "").await;
        assert_eq!(response.headers()["content-type"], format!("{PROTOBUF};stream=watch").as_str());
        Frames { body: response.into_body(), buffer: Vec::new() }
    }

    async fn next(&mut self) -> (String, Vec<u8>) {
        loop {
            if let Some((len, rest)) = self.buffer.split_first_chunk::<4>()
                && let Some(message) = rest.get(..u32::from_be_bytes(*len) as usize)
            {
                let event = pb_meta::WatchEvent::decode(message).unwrap();
                self.buffer.drain(..4 + message.len());
                return (event.r#type().to_owned(), event.object.unwrap().raw.unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await;
            let frame = frame.expect("an event in time").expect("no end").unwrap();
            self.buffer.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    async fn pod(&mut self) -> (String, pb::Pod) {
        let (kind, object) = self.next().await;
        (kind, decode_bytes(&object, "v1", "Pod"))
    }
}

#[tokio::test]
async fn watches_come_in_protobuf_frames() {
    let s = start().await;
    let first = s.post(PODS, &pod("a")).await.expect(201);
    let initial = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let accept = format!("{PROTOBUF};stream=watch,{PROTOBUF}");
    let mut watch = Frames::open(&s, &format!("{PODS}?{initial}"), &accept).await;
    let mut other = Frames::open(&s, &format!("{PODS}?watch=1"), PROTOBUF).await;
    let metadata = format!("{PROTOBUF};as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
    let mut partial = Frames::open(&s, &format!("{PODS}?watch=1"), &metadata).await;
    let (kind, added) = watch.pod().await;
    assert_eq!(
        (kind.as_str(), added.metadata.unwrap().uid()),
        ("ADDED", first["metadata"]["uid"].as_str().unwrap())
    );
    let (kind, mark) = watch.pod().await;
    let mark = mark.metadata.unwrap();
    assert_eq!(
        (kind.as_str(), mark.resource_version()),
        ("BOOKMARK", first["metadata"]["resourceVersion"].as_str().unwrap())
    );
    assert_eq!(mark.annotations["k8s.io/initial-events-end"], "true");
    other.pod().await;
    partial.next().await;

    s.patch(&format!("{PODS}/a"), "merge-patch+json", &json!({"metadata": {"labels": {"x": "y"}}}))
        .await
        .expect(200);
    for watch in [&mut watch, &mut other] {
        let (kind, pod) = watch.pod().await;
        assert_eq!((kind.as_str(), pod.metadata.unwrap().labels["x"].as_str()), ("MODIFIED", "y"));
    }
    let (kind, object) = partial.next().await;
    let object: pb_meta::PartialObjectMetadata =
        decode_bytes(&object, "meta.k8s.io/v1", "PartialObjectMetadata");
    assert_eq!((kind.as_str(), object.metadata.unwrap().labels["x"].as_str()), ("MODIFIED", "y"));
    s.delete(&format!("{PODS}/a?gracePeriodSeconds=0")).await.expect(200);
    assert_eq!(watch.pod().await.0, "DELETED");

    // A watch that cannot start tells so in a frame of the same form.
    s.api.cache().store().compact(skeg_store::Revision(s.api.cache().revision())).await.unwrap();
    s.api.cache().forget(s.api.cache().revision());
    let (kind, object) =
        Frames::open(&s, &format!("{PODS}?watch=1&resourceVersion=1"), PROTOBUF).await.next().await;
    let status: pb_meta::Status = decode_bytes(&object, "v1", "Status");
    assert_eq!((kind.as_str(), status.code(), status.reason()), ("ERROR", 410, "Expired"));
    let yaml = s.send("GET", &format!("{PODS}?watch=1"), &[("accept", "application/yaml")], "").await;
    assert!(yaml.code == 406 && yaml.text().contains("protobuf;stream=watch"), "{}", yaml.text());
}

#[tokio::test]
async fn custom_resources_have_only_their_metadata_in_protobuf() {
    let s = start().await;
    s.api.kinds().insert(widget());
    s.post(WIDGETS, &object("a", 3.into())).await.expect(201);
    let headers = [("content-type", PROTOBUF)];
    s.send("POST", WIDGETS, &headers, encode("example.com/v1", "Widget", &map("b", ""))).await.expect(415);
    let refused = s.send("GET", WIDGETS, &[("accept", PROTOBUF)], "").await;
    let status: pb_meta::Status = decode(&refused, "v1", "Status");
    assert_eq!((status.code(), status.reason()), (406, "NotAcceptable"));
    let accept = format!("{PROTOBUF},application/json");
    assert_eq!(
        s.send("GET", WIDGETS, &[("accept", &accept)], "").await.expect(200)["items"][0]["spec"]["size"],
        3
    );
    let accept = format!("{PROTOBUF};as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
    let answer = s.send("GET", &format!("{WIDGETS}/a"), &[("accept", &accept)], "").await;
    let object: pb_meta::PartialObjectMetadata = decode(&answer, "meta.k8s.io/v1", "PartialObjectMetadata");
    assert_eq!(object.metadata.unwrap().name(), "a");
    let mut watch = Frames::open(&s, &format!("{WIDGETS}?watch=1"), &accept).await;
    assert_eq!(watch.next().await.0, "ADDED");
    let options = encode("v1", "DeleteOptions", &pb_meta::DeleteOptions::default());
    s.send("DELETE", &format!("{WIDGETS}/a"), &headers, options).await.expect(200);
}
