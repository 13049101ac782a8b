//! Kinds that are registered while the server runs.

use crate::harness::*;
use serde_json::{Value, json};
use skeg_api::kinds::{Cell, Column, Kind, Subresource};
use skeg_api::schema::Schema;
use skeg_api::{Gvk, Gvr};
use skeg_apiserver::cache::{Filter, Since};
use std::sync::Arc;
use std::time::Duration;

pub const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

pub fn widget() -> Kind {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"size": {"type": "integer"}}},
        "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
    }});
    let schema = Schema::from_openapi("Widget", &schema).unwrap();
    Kind {
        subresources: vec![Subresource { name: "status", gvk: None, verbs: &["get", "patch", "update"] }],
        columns: vec![Column {
            name: "Size".into(),
            kind: "integer",
            format: "",
            description: "How large it is.".into(),
            priority: 0,
            cell: Cell::Path("spec.size".into()),
        }],
        ..Kind::custom(Gvk::new("example.com", "v1", "Widget"), "widgets", schema)
    }
}

pub fn object(name: &str, size: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"size": size}})
}

#[tokio::test]
async fn a_kind_comes_and_goes_at_run_time() {
    let store = Arc::new(skeg_store::Memory::new());
    let s = start_on(store.clone()).await;
    assert_eq!(s.get(WIDGETS).await.code, 404);
    s.api.kinds().insert(widget());
    let mut watch = s.watch(&format!("{WIDGETS}?watch=true")).await;
    let made = s.post(WIDGETS, &object("a", 3.into())).await.expect(201);
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(watch.event().await, ("ADDED".to_owned(), "a".to_owned()));
    let list = s.get(WIDGETS).await.expect(200);
    assert_eq!((&list["kind"], &list["items"][0]), (&json!("WidgetList"), &made));
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = s.send("GET", WIDGETS, &accept, "").await.expect(200);
    assert_eq!(table["rows"][0]["cells"], json!([3]));
    let wrong = s.post(WIDGETS, &object("b", "large".into())).await.expect(422);
    assert_eq!(wrong["details"]["causes"][0]["field"], "spec.size");
    let status = json!({"spec": {"size": 9}, "status": {"ready": true}, "metadata": {"labels": {"a": "b"}}});
    let got = s.patch(&format!("{WIDGETS}/a/status"), "merge-patch+json", &status).await.expect(200);
    assert_eq!((&got["spec"]["size"], &got["status"]["ready"]), (&json!(3), &json!(true)));
    assert!(got["metadata"].get("labels").is_none());
    s.patch(&format!("{WIDGETS}/a"), "strategic-merge-patch+json", &json!({"spec": {"size": 4}})).await;
    s.api.kinds().remove(&Gvr::new("example.com", "v1", "widgets"));
    assert_eq!(s.get(WIDGETS).await.code, 404);
    s.api.stop().await;
    // After a restart the records wait for their kind.
    let s = start_on(store).await;
    assert_eq!(s.get(&format!("{WIDGETS}/a")).await.code, 404);
    s.api.kinds().insert(widget());
    assert_eq!(s.get(&format!("{WIDGETS}/a")).await.expect(200)["metadata"]["uid"], made["metadata"]["uid"]);
}

/// Whoever found what is stored before its kind went hears of its end, and waits for nothing.
#[tokio::test]
async fn a_watch_that_begins_as_its_kind_goes_ends() {
    let s = start().await;
    s.api.kinds().insert(widget());
    let gvr = Gvr::new("example.com", "v1", "widgets");
    let storage = s.api.kinds().snapshot().by_gvr(&gvr).unwrap().storage.clone().unwrap();
    let found = s.api.cache().resource(&storage).unwrap();
    s.api.kinds().remove(&gvr);
    assert!(s.api.cache().resource(&storage).is_none());
    let mut watch = found.watch(Filter::default(), Since::Now, false).unwrap();
    let end = tokio::time::timeout(Duration::from_secs(5), watch.notices.recv()).await;
    assert!(end.expect("it ends").is_none());
    // It is another, once the kind is back.
    s.api.kinds().insert(widget());
    let mut watch = s.watch(&format!("{WIDGETS}?watch=true")).await;
    s.post(WIDGETS, &object("a", 3.into())).await.expect(201);
    assert_eq!(watch.event().await, ("ADDED".to_owned(), "a".to_owned()));
}
