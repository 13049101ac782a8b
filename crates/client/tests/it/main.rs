//! Informers, recorder and leases against a scripted API: the test answers each request itself.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod lease;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde_json::{Value, json};
use skeg_base::{Clock, Random};
use skeg_client::{Body, BoxError, Change, Client, EventType, Informer, Informers, ObjectRef, Recorder};
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// A request that waits for the test's answer.
struct Call {
    method: String,
    uri: String,
    body: Bytes,
    reply: oneshot::Sender<Response<Body>>,
}

impl Call {
    fn answer(self, code: u16, body: &Value) {
        let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed_unsync();
        self.reply.send(Response::builder().status(code).body(body).unwrap()).ok();
    }

    fn refuse(self, code: u16, reason: &str) {
        self.answer(code, &json!({"status": "Failure", "message": "no", "reason": reason, "code": code}));
    }

    fn stream(self) -> Frames {
        let (sender, receiver) = mpsc::unbounded_channel::<Result<Bytes, BoxError>>();
        let frames = futures_util::stream::unfold(receiver, |mut r| async { r.recv().await.map(|f| (f, r)) });
        let body = StreamBody::new(frames.map(|f| f.map(http_body::Frame::data))).boxed_unsync();
        self.reply.send(Response::new(body)).ok();
        Frames(sender)
    }
}

/// The sending end of a watch. Dropping it ends the watch.
struct Frames(mpsc::UnboundedSender<Result<Bytes, BoxError>>);

impl Frames {
    fn raw(&self, text: &str) {
        self.0.send(Ok(Bytes::copy_from_slice(text.as_bytes()))).unwrap();
    }

    fn event(&self, kind: &str, object: &Value) {
        self.raw(&format!("{}\n", json!({"type": kind, "object": object})));
    }

    fn end_of_list(&self, revision: u64) {
        self.event(
            "BOOKMARK",
            &json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {
                "resourceVersion": revision.to_string(),
                "annotations": {"k8s.io/initial-events-end": "true"},
            }}),
        );
    }
}

struct Api(mpsc::UnboundedReceiver<Call>);

impl Api {
    fn new() -> (Client, Api) {
        let (calls, receiver) = mpsc::unbounded_channel();
        let service = tower::service_fn(move |request: Request<Body>| {
            let calls = calls.clone();
            async move {
                let (reply, answer) = oneshot::channel();
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let call = Call { method: head.method.to_string(), uri: head.uri.to_string(), body, reply };
                calls.send(call).map_err(|_| "closed")?;
                answer.await.map_err(BoxError::from)
            }
        });
        (Client::new(service).named("test"), Api(receiver))
    }

    async fn call(&mut self) -> Call {
        tokio::time::timeout(std::time::Duration::from_secs(100), self.0.recv()).await.unwrap().unwrap()
    }
}

fn config_map(name: &str, revision: u64, value: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": revision.to_string()},
        "data": {"value": value},
    })
}

fn value(object: &ConfigMap) -> &str {
    object.data.as_ref().and_then(|data| data.get("value")).map(String::as_str).unwrap_or("-")
}

/// Writes down what a subscriber sees.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    fn keep(informer: &Informer<ConfigMap>) -> Diary {
        let diary = Diary::default();
        let pages = diary.clone();
        informer.subscribe(move |change| {
            let line = match &change {
                Change::Added(new) => format!("+{} {}", new.key().name, value(new)),
                Change::Updated { old, new } => format!("~{} {} {}", new.key().name, value(old), value(new)),
                Change::Deleted(last) => format!("-{} {}", last.key().name, value(last)),
            };
            pages.0.lock().unwrap().push(line);
        });
        diary
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

struct World {
    api: Api,
    informers: Informers,
    configs: Informer<ConfigMap>,
    frames: Frames,
    _stop: tokio_util::sync::DropGuard,
}

/// An informer that listed `a` at 1 and `b` at 2 and watches from 5.
async fn synced() -> World {
    let (client, mut api) = Api::new();
    let cancel = CancellationToken::new();
    let informers = Informers::new(client, Random::seeded(1), cancel.clone());
    let configs = informers.of::<ConfigMap>();
    let call = api.call().await;
    assert!(
        call.uri.starts_with("/api/v1/configmaps?watch=true&resourceVersionMatch=NotOlderThan"),
        "{}",
        call.uri
    );
    assert!(call.uri.contains("sendInitialEvents=true&allowWatchBookmarks=true"), "{}", call.uri);
    let frames = call.stream();
    assert!(configs.synced().now_or_never().is_none());
    frames.event("ADDED", &config_map("a", 1, "1"));
    frames.event("ADDED", &config_map("b", 2, "2"));
    frames.end_of_list(5);
    configs.synced().await;
    World { api, informers, configs, frames, _stop: cancel.drop_guard() }
}

#[tokio::test(start_paused = true)]
async fn a_late_subscriber_sees_everything_and_then_each_change() {
    let world = synced().await;
    assert_eq!(world.configs.revision(), 5);
    let diary = Diary::keep(&world.configs);
    assert_eq!(diary.take(), ["+a 1", "+b 2"]);
    world.frames.event("MODIFIED", &config_map("a", 6, "3"));
    world.frames.event("MODIFIED", &config_map("a", 6, "3"));
    world.frames.event("DELETED", &config_map("b", 7, "2"));
    world.frames.event("ADDED", &config_map("b", 8, "4"));
    world.configs.wait_for(8).await;
    assert_eq!(diary.take(), ["~a 1 3", "-b 2", "+b 4"]);
    let values: Vec<_> = world.configs.list(Some("default")).iter().map(|c| value(c).to_owned()).collect();
    assert_eq!(values, ["3", "4"]);
    assert_eq!(world.configs.get("default", "a").unwrap().metadata.resource_version.as_deref(), Some("6"));
    assert!(world.configs.list(Some("other")).is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_watch_per_resource() {
    let mut world = synced().await;
    let again = world.informers.of::<ConfigMap>();
    assert_eq!(again.len(), 2);
    let metadata = world.informers.metadata(&skeg_client::gvr_of::<ConfigMap>());
    assert_eq!(metadata.get("default", "a").unwrap().metadata.name.as_deref(), Some("a"));
    assert!(world.api.0.try_recv().is_err());
}

/// There is one for every object of the cluster: what nobody asks it for is not kept.
#[tokio::test(start_paused = true)]
async fn an_informer_of_metadata_keeps_little() {
    let mut world = synced().await;
    let pods = world.informers.metadata(&skeg_client::gvr_of::<Pod>());
    let call = world.api.call().await;
    let frames = call.stream();
    let owners = json!([{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": true}]);
    let metadata = json!({
        "name": "a", "namespace": "default", "uid": "1", "resourceVersion": "7", "finalizers": ["a/b"],
        "ownerReferences": owners, "deletionTimestamp": "2026-01-02T03:04:05Z",
        "labels": {"a": "b"}, "annotations": {"a": "b"}, "managedFields": [{"manager": "m"}],
    });
    let object =
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata});
    frames.event("ADDED", &object);
    frames.end_of_list(7);
    pods.synced().await;
    let mut kept = metadata;
    for gone in ["labels", "annotations", "managedFields"] {
        kept.as_object_mut().unwrap().remove(gone);
    }
    let entry = pods.entry("default", "a").unwrap();
    assert_eq!(serde_json::from_slice::<Value>(entry.bytes()).unwrap(), json!({ "metadata": kept }));
    let seen = pods.get("default", "a").unwrap();
    assert_eq!(seen.metadata.owner_references.as_ref().unwrap()[0].uid, "u");
}

#[tokio::test(start_paused = true)]
async fn a_part_of_a_kind_has_a_watch_of_its_own() {
    let mut world = synced().await;
    let options = skeg_client::ListOptions::fields("metadata.name=a");
    let part: Informer<ConfigMap> = world.informers.selected("default", &options);
    let call = world.api.call().await;
    let of_part = "/api/v1/namespaces/default/configmaps?watch=true&fieldSelector=metadata.name%3Da";
    assert!(call.uri.starts_with(of_part), "{}", call.uri);
    let frames = call.stream();
    frames.event("ADDED", &config_map("a", 1, "1"));
    frames.end_of_list(5);
    part.synced().await;
    assert_eq!((part.len(), world.configs.len()), (1, 2));
    // Whoever may see a part only must not ask for more when the watch goes on.
    frames.0.send(Err("cut".into())).unwrap();
    let call = world.api.call().await;
    assert!(call.uri.starts_with(of_part) && call.uri.contains("resourceVersion=5&"), "{}", call.uri);
    let frames = call.stream();
    world.informers.stop_selected::<ConfigMap>("default", &options);
    tokio::task::yield_now().await;
    assert!(frames.0.is_closed());
    assert!(!world.frames.0.is_closed());
    assert_eq!(part.len(), 1, "what was known stays readable");
}

#[tokio::test(start_paused = true)]
async fn a_cut_watch_goes_on_where_it_was() {
    let mut world = synced().await;
    let diary = Diary::keep(&world.configs);
    diary.take();
    world.frames.0.send(Err("cut".into())).unwrap();
    let call = world.api.call().await;
    assert!(call.uri.contains("resourceVersion=5&"), "{}", call.uri);
    let frames = call.stream();
    frames.event("MODIFIED", &config_map("a", 9, "3"));
    world.configs.wait_for(9).await;
    assert_eq!(diary.take(), ["~a 1 3"]);
}

#[tokio::test(start_paused = true)]
async fn what_vanished_unseen_is_deleted_with_its_last_state() {
    let mut world = synced().await;
    let diary = Diary::keep(&world.configs);
    diary.take();
    world.frames.event(
        "ERROR",
        &json!({"status": "Failure", "reason": "Expired", "message": "too old", "code": 410}),
    );
    let call = world.api.call().await;
    assert!(call.uri.contains("sendInitialEvents"), "{}", call.uri);
    let frames = call.stream();
    frames.event("ADDED", &config_map("b", 2, "2"));
    frames.event("ADDED", &config_map("c", 30, "c"));
    assert_eq!(world.configs.len(), 2, "nothing changes before the list is complete");
    frames.end_of_list(31);
    world.configs.wait_for(31).await;
    assert_eq!(diary.take(), ["-a 1", "+c c"]);
}

#[tokio::test(start_paused = true)]
async fn an_object_made_again_is_deleted_first() {
    let world = synced().await;
    let diary = Diary::keep(&world.configs);
    diary.take();
    let mut again = config_map("a", 9, "new");
    again["metadata"]["uid"] = "other".into();
    world.frames.event("MODIFIED", &again);
    // A late report of the old one's end must not touch the new one.
    world.frames.event("DELETED", &config_map("a", 8, "1"));
    world.frames.event("MODIFIED", &config_map("b", 10, "x"));
    world.configs.wait_for(10).await;
    assert_eq!(diary.take(), ["-a 1", "+a new", "~b 2 x"]);
}

#[tokio::test(start_paused = true)]
async fn one_bad_object_stops_nothing() {
    let world = synced().await;
    let diary = Diary::keep(&world.configs);
    diary.take();
    let mut bad = config_map("bad", 6, "");
    bad["data"] = json!(["no map"]);
    world.frames.event("ADDED", &bad);
    world.frames.event("ADDED", &json!({"metadata": "nonsense"}));
    world.frames.raw("{\"type\": \"ADDED\", \"object\"\n");
    world.frames.event("MODIFIED", &config_map("a", 7, "3"));
    world.frames.event("MODIFIED", &config_map("bad", 8, "good"));
    world.frames.event("DELETED", &config_map("bad", 9, "good"));
    world.configs.wait_for(9).await;
    assert_eq!(diary.take(), ["~a 1 3", "+bad good", "-bad good"]);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_handler_harms_no_other() {
    let world = synced().await;
    world.configs.subscribe(|_| panic!("handler"));
    let diary = Diary::keep(&world.configs);
    world.frames.event("DELETED", &config_map("a", 7, "1"));
    world.configs.wait_for(7).await;
    assert_eq!(diary.take(), ["+a 1", "+b 2", "-a 1"]);
}

#[tokio::test(start_paused = true)]
async fn indexes_and_projections_follow() {
    let world = synced().await;
    world.configs.add_index("value", |c: &ConfigMap| vec![value(c).to_owned()]);
    let keys =
        |v: &str| world.configs.keys_by_index("value", v).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(keys("1"), ["default/a"]);
    let lengths = world.configs.project(|c| value(c).len());
    let seen = Diary::default();
    lengths.subscribe({
        let seen = seen.clone();
        move |change| {
            seen.0.lock().unwrap().push(format!(
                "{} {:?} {:?}",
                change.key.name,
                change.old.as_deref(),
                change.new.as_deref()
            ))
        }
    });
    assert_eq!(seen.take(), ["a None Some(1)", "b None Some(1)"]);
    world.frames.event("MODIFIED", &config_map("a", 6, "2"));
    world.frames.event("MODIFIED", &config_map("b", 7, "long"));
    world.configs.wait_for(7).await;
    assert_eq!(keys("1"), [""; 0]);
    assert_eq!(keys("2"), ["default/a"]);
    assert_eq!(world.configs.by_index("value", "long").len(), 1);
    assert_eq!(seen.take(), ["b Some(1) Some(4)"], "a projection that stays equal is no change");
    assert_eq!(lengths.get("default", "b").as_deref(), Some(&4));
    let long = lengths.of_namespace("default", |length| *length > 1);
    assert_eq!(long.iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>(), ["default/b"]);
    assert!(lengths.of_namespace("defaul", |_| true).is_empty());
    world.frames.event("DELETED", &config_map("b", 8, "long"));
    world.configs.wait_for(8).await;
    assert_eq!(seen.take(), ["b Some(4) None"]);
    assert_eq!(lengths.len(), 1);
    assert_eq!(keys("long"), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn lists_where_the_server_does_not_stream_lists() {
    let (client, mut api) = Api::new();
    let cancel = CancellationToken::new();
    let configs = Informers::new(client, Random::seeded(1), cancel.clone()).of::<ConfigMap>();
    api.call().await.refuse(422, "Invalid");
    let call = api.call().await;
    assert_eq!(call.uri, "/api/v1/configmaps");
    let mut item = config_map("a", 3, "1");
    item.as_object_mut().unwrap().remove("kind");
    call.answer(
        200,
        &json!({"kind": "ConfigMapList", "metadata": {"resourceVersion": "4"}, "items": [item]}),
    );
    let call = api.call().await;
    assert!(call.uri.contains("resourceVersion=4&"), "{}", call.uri);
    configs.synced().await;
    assert_eq!(configs.len(), 1);
    // 410 as the answer of the watch itself lists again.
    call.refuse(410, "Expired");
    assert_eq!(api.call().await.uri, "/api/v1/configmaps");
    cancel.cancel();
}

#[tokio::test(start_paused = true)]
async fn failures_back_off() {
    let (client, mut api) = Api::new();
    let cancel = CancellationToken::new();
    let start = tokio::time::Instant::now();
    let _pods = Informers::new(client, Random::seeded(1), cancel.clone()).of::<Pod>();
    for _ in 0..12 {
        api.call().await.refuse(500, "InternalError");
    }
    assert!(start.elapsed().as_secs() > 60, "{:?}", start.elapsed());
    cancel.cancel();
}

#[tokio::test(start_paused = true)]
async fn busy_servers_are_asked_again() {
    let (client, mut api) = Api::new();
    let get = tokio::spawn(async move { client.api::<ConfigMap>().get("default", "a").await });
    let call = api.call().await;
    let body = Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync();
    call.reply.send(Response::builder().status(429).header("retry-after", "1").body(body).unwrap()).ok();
    let call = api.call().await;
    assert_eq!((call.method.as_str(), call.uri.as_str()), ("GET", "/api/v1/namespaces/default/configmaps/a"));
    call.refuse(404, "NotFound");
    assert!(get.await.unwrap().unwrap_err().is_not_found());
}

#[tokio::test(start_paused = true)]
async fn events_are_created_and_then_counted() {
    let (client, mut api) = Api::new();
    let cancel = CancellationToken::new();
    let clock = Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap());
    let recorder = Recorder::new(&client, "default-scheduler", "", clock, &cancel);
    let about = ObjectRef {
        kind: "Pod".into(),
        namespace: "default".into(),
        name: "web".into(),
        ..Default::default()
    };
    for _ in 0..2 {
        recorder.event(&about, EventType::Normal, "Scheduled", "Successfully assigned default/web to n1");
    }
    let call = api.call().await;
    assert_eq!(call.uri, "/api/v1/namespaces/default/events?fieldManager=test");
    let event: Value = serde_json::from_slice(&call.body).unwrap();
    assert_eq!(event["source"]["component"], "default-scheduler");
    assert_eq!(event["count"], 1);
    let name = event["metadata"]["name"].as_str().unwrap().to_owned();
    call.answer(201, &event);
    let call = api.call().await;
    assert_eq!(call.method, "PATCH");
    assert!(call.uri.contains(&name));
    call.refuse(404, "NotFound");
    let call = api.call().await;
    assert_eq!(call.method, "POST", "an event that expired is made again");
    let event: Value = serde_json::from_slice(&call.body).unwrap();
    assert_eq!(event["count"], 2);
    call.answer(201, &event);
    cancel.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_watch_frame_may_come_in_pieces() {
    let world = synced().await;
    let frame = format!("{}\n", json!({"type": "MODIFIED", "object": config_map("a", 6, "pieces")}));
    let (head, tail) = frame.split_at(40);
    world.frames.raw(head);
    tokio::task::yield_now().await;
    world.frames.raw(tail);
    world.configs.wait_for(6).await;
    assert_eq!(value(&world.configs.get("default", "a").unwrap()), "pieces");
}
