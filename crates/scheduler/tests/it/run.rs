//! The whole scheduler against a small API in memory, on paused time.

use crate::cluster::{asking, merged, node_value, pod_value};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};
use skeg_base::{Clock, Random};
use skeg_client::{Body, BoxError, Client, Informers, Recorder};
use skeg_scheduler::{Config, Scheduler};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

#[derive(Default)]
struct Objects {
    revision: u64,
    /// By resource and name.
    objects: BTreeMap<(String, String), Value>,
    watches: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    events: Vec<String>,
    bindings: Vec<String>,
    /// Answers for the next bindings instead of doing them.
    refuse_bindings: Vec<u16>,
    patches: usize,
}

#[derive(Clone, Default)]
struct Api(Arc<Mutex<Objects>>);

fn frame(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": kind, "object": object})))
}

fn refusal(code: u16, reason: &str) -> (u16, Value) {
    (code, json!({"status": "Failure", "message": "refused", "reason": reason, "code": code}))
}

impl Objects {
    fn put(&mut self, resource: &str, mut object: Value) {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let old = self.objects.insert((resource.to_owned(), name), object.clone());
        self.tell(resource, if old.is_some() { "MODIFIED" } else { "ADDED" }, &object);
    }

    fn delete(&mut self, resource: &str, name: &str) -> Option<Value> {
        let mut object = self.objects.remove(&(resource.to_owned(), name.to_owned()))?;
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        self.tell(resource, "DELETED", &object);
        Some(object)
    }

    fn tell(&mut self, resource: &str, kind: &str, object: &Value) {
        self.watches
            .retain(|(watched, sender)| watched != resource || sender.send(frame(kind, object)).is_ok());
    }

    fn watch(&mut self, resource: &str) -> mpsc::UnboundedReceiver<Bytes> {
        let (sender, receiver) = mpsc::unbounded_channel();
        for ((_, _), object) in self.objects.iter().filter(|((r, _), _)| r == resource) {
            sender.send(frame("ADDED", object)).unwrap();
        }
        let end = json!({"metadata": {"resourceVersion": self.revision.to_string(),
            "annotations": {"k8s.io/initial-events-end": "true"}}});
        sender.send(frame("BOOKMARK", &end)).unwrap();
        self.watches.push((resource.to_owned(), sender));
        receiver
    }

    fn write(&mut self, method: &str, path: &[&str], body: Value) -> (u16, Value) {
        let name = |at: usize| path.get(at).copied().unwrap_or_default().to_owned();
        match (method, path.get(3).copied().unwrap_or_default(), path.get(5).copied().unwrap_or_default()) {
            ("POST", "events", _) | ("PATCH", "events", _) => {
                let about = body["involvedObject"]["name"].as_str().unwrap_or("again");
                let [action, reason, message] =
                    ["action", "reason", "message"].map(|field| body[field].as_str().unwrap_or_default());
                self.events.push(format!("{about} {action} {reason}: {message}"));
                (200, body)
            }
            ("POST", "pods", "binding") => {
                if !self.refuse_bindings.is_empty() {
                    return refusal(self.refuse_bindings.remove(0), "Conflict");
                }
                let Some(mut pod) = self.objects.get(&("pods".into(), name(4))).cloned() else {
                    return refusal(404, "NotFound");
                };
                if pod["spec"]["nodeName"].is_string() {
                    return refusal(409, "Conflict");
                }
                pod["spec"]["nodeName"] = body["target"]["name"].clone();
                self.bindings.push(format!("{} {}", name(4), pod["spec"]["nodeName"].as_str().unwrap()));
                self.put("pods", pod);
                (201, json!({"status": "Success"}))
            }
            ("PATCH", "pods", "status") => {
                self.patches += 1;
                let Some(pod) = self.objects.get(&("pods".into(), name(4))).cloned() else {
                    return refusal(404, "NotFound");
                };
                let pod = merged(pod, body);
                self.put("pods", pod.clone());
                (200, pod)
            }
            ("DELETE", "pods", _) => match self.delete("pods", &name(4)) {
                Some(pod) => (200, pod),
                None => refusal(404, "NotFound"),
            },
            other => panic!("{other:?}"),
        }
    }
}

impl Api {
    fn client(&self) -> Client {
        let api = self.clone();
        Client::new(tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let path: Vec<&str> = head
                    .uri
                    .path()
                    .trim_start_matches("/apis/apps/v1/")
                    .trim_start_matches("/api/v1/")
                    .split('/')
                    .collect();
                if head.method == "GET" {
                    let receiver = api.0.lock().unwrap().watch(path[0]);
                    let frames = futures_util::stream::unfold(receiver, |mut r| async {
                        r.recv().await.map(|f| (Ok::<_, BoxError>(http_body::Frame::data(f)), r))
                    });
                    return Ok::<_, BoxError>(Response::new(StreamBody::new(frames.boxed()).boxed_unsync()));
                }
                let body = serde_json::from_slice(&body)?;
                // As if the path were "api/v1/namespaces".
                let path: Vec<&str> = std::iter::once("").chain(path).collect();
                let (code, answer) = api.0.lock().unwrap().write(head.method.as_str(), &path, body);
                let body = Full::new(Bytes::from(answer.to_string())).map_err(|never| match never {});
                Ok(Response::builder().status(code).body(body.boxed_unsync())?)
            }
        }))
    }

    fn put(&self, resource: &str, object: Value) {
        self.0.lock().unwrap().put(resource, object);
    }

    fn delete(&self, resource: &str, name: &str) {
        self.0.lock().unwrap().delete(resource, name);
    }

    fn pod(&self, name: &str) -> Value {
        self.0.lock().unwrap().objects.get(&("pods".into(), name.into())).cloned().unwrap_or_default()
    }

    fn node_of(&self, name: &str) -> String {
        self.pod(name)["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()
    }

    fn message(&self, name: &str) -> String {
        self.pod(name)["status"]["conditions"][0]["message"].as_str().unwrap_or_default().to_owned()
    }

    fn bindings(&self) -> Vec<String> {
        self.0.lock().unwrap().bindings.clone()
    }

    fn events(&self) -> Vec<String> {
        self.0.lock().unwrap().events.clone()
    }

    /// Waits until `condition` holds; time is paused, so this takes none unless something waits.
    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..100_000 {
            if condition(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{what}: {:?} {:?}", self.bindings(), self.events());
    }
}

fn start(api: &Api, seed: u64) -> (Scheduler, DropGuard) {
    let cancel = CancellationToken::new();
    let client = api.client().named("default-scheduler");
    let clock = Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap());
    let random = Random::seeded(seed);
    let informers = Informers::new(client.clone(), random.fork(), cancel.clone());
    let recorder = Recorder::new(&client, "default-scheduler", "", clock, &cancel);
    let scheduler = Scheduler::new(&client, &informers, recorder, clock, random, Config::default());
    let running = scheduler.clone();
    let token = cancel.clone();
    tokio::spawn(async move { running.run(token).await });
    (scheduler, cancel.drop_guard())
}

#[tokio::test(start_paused = true)]
async fn binds_and_says_so() {
    let api = Api::default();
    api.put("nodes", node_value("n1", json!({})));
    api.put("pods", pod_value("before", json!({})));
    api.put("pods", pod_value("foreign", json!({"spec": {"schedulerName": "other"}})));
    let (scheduler, _stop) = start(&api, 1);
    api.until("bound", |api| api.node_of("before") == "n1").await;
    api.put("pods", pod_value("after", json!({})));
    api.until("bound", |api| api.node_of("after") == "n1").await;
    let expected = "after Binding Scheduled: Successfully assigned default/after to n1";
    api.until("event", |api| api.events().iter().any(|event| event == expected)).await;
    api.until("empty queue", |_| scheduler.waiting() == 0).await;
    assert_eq!(api.node_of("foreign"), "");
    assert_eq!(api.0.lock().unwrap().patches, 0, "a Pod that finds a Node costs one write and an event");
    assert_eq!(scheduler.snapshot().node("n1").unwrap().pods.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn says_why_not_and_tries_again_when_it_helps() {
    let api = Api::default();
    api.put("nodes", node_value("n1", json!({"status": {"allocatable": {"cpu": "1"}}})));
    api.put(
        "pods",
        pod_value("big", json!({"metadata": {"generation": 1}, "spec": {"containers": asking("2", "1Mi")}})),
    );
    let (_scheduler, _stop) = start(&api, 1);
    let message = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: \
                   0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    api.until("condition", |api| api.message("big") == message).await;
    let condition = &api.pod("big")["status"]["conditions"][0];
    assert_eq!(condition["reason"], "Unschedulable");
    assert_eq!(condition["status"], "False");
    assert_eq!(condition["observedGeneration"], 1);
    assert_eq!(condition["lastTransitionTime"], "2026-01-01T00:00:00Z");
    assert_eq!(api.events(), [format!("big Scheduling FailedScheduling: {message}")]);
    // A heartbeat changes nothing; a Node that fits does.
    api.put("nodes", node_value("n1", json!({"status": {"allocatable": {"cpu": "1"}, "conditions": []}})));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(api.events().len(), 1);
    assert_eq!(api.0.lock().unwrap().patches, 1);
    let start = Instant::now();
    api.put("nodes", node_value("n2", json!({})));
    api.until("bound", |api| api.node_of("big") == "n2").await;
    assert!(start.elapsed() < Duration::from_millis(50));
}

#[tokio::test(start_paused = true)]
async fn room_that_becomes_free_is_used() {
    let api = Api::default();
    api.put("nodes", node_value("n1", json!({"status": {"allocatable": {"pods": "1"}}})));
    api.put("pods", pod_value("first", json!({"spec": {"nodeName": "n1"}})));
    api.put("pods", pod_value("second", json!({})));
    let (_scheduler, _stop) = start(&api, 1);
    let message = "0/1 nodes are available: 1 Too many pods. no new claims to deallocate, preemption: \
                   0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    api.until("condition", |api| api.message("second") == message).await;
    // A Pod that has ended takes no room, even before it is deleted.
    api.put(
        "pods",
        pod_value("first", json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Succeeded"}})),
    );
    api.until("bound", |api| api.node_of("second") == "n1").await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_binding_is_tried_again_after_a_while() {
    let api = Api::default();
    api.0.lock().unwrap().refuse_bindings = vec![500, 409];
    api.put("nodes", node_value("n1", json!({"status": {"allocatable": {"pods": "1"}}})));
    api.put("pods", pod_value("p", json!({})));
    let begun = Instant::now();
    let (_scheduler, _stop) = start(&api, 1);
    api.until("bound", |api| api.node_of("p") == "n1").await;
    assert_eq!(begun.elapsed().as_secs(), 3, "one second, then two");
    let expected =
        "p Scheduling FailedScheduling: binding rejected: running Bind plugin \"DefaultBinder\": refused";
    assert!(api.events().iter().any(|event| event == expected), "{:?}", api.events());
    assert_eq!(api.bindings(), ["p n1"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_deleted_before_its_binding_leaves_nothing() {
    let api = Api::default();
    api.put("nodes", node_value("n1", json!({"status": {"allocatable": {"pods": "1"}}})));
    let (scheduler, _stop) = start(&api, 1);
    api.until("node", |_| scheduler.snapshot().nodes().len() == 1).await;
    api.put("pods", pod_value("gone", json!({})));
    api.delete("pods", "gone");
    api.put("pods", pod_value("stays", json!({})));
    api.until("bound", |api| api.node_of("stays") == "n1").await;
    assert_eq!(scheduler.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn important_pods_make_room() {
    let api = Api::default();
    api.put("nodes", node_value("n1", json!({"status": {"allocatable": {"cpu": "2"}}})));
    api.put("nodes", node_value("n2", json!({"status": {"allocatable": {"cpu": "2"}}})));
    let there = |name: &str, node: &str, priority: i32, cpu: &str| {
        api.put(
            "pods",
            pod_value(
                name,
                json!({"spec": {"nodeName": node, "priority": priority, "containers": asking(cpu, "1Mi")}}),
            ),
        );
    };
    there("n1-low", "n1", 1, "1");
    there("n1-high", "n1", 50, "1");
    there("n2-middle", "n2", 20, "2");
    api.put("pods", pod_value("vip", json!({"spec": {"priority": 100, "containers": asking("1", "1Mi")}})));
    let (_scheduler, _stop) = start(&api, 1);
    api.until("bound", |api| api.node_of("vip") == "n1").await;
    assert_eq!(api.pod("n1-low"), Value::Null, "the least important that suffices had to go");
    assert_ne!(api.pod("n1-high"), Value::Null);
    assert_ne!(api.pod("n2-middle"), Value::Null);
    assert_eq!(api.pod("vip")["status"]["nominatedNodeName"], "n1");
    api.until("event", |api| {
        api.events().iter().any(|e| e == "n1-low Preempting Preempted: Preempted by pod uid-vip on node n1")
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn replicas_keep_apart() {
    let api = Api::default();
    for node in ["n1", "n2"] {
        api.put("nodes", node_value(node, json!({})));
    }
    let selector = json!({"matchLabels": {"app": "web"}});
    api.put(
        "replicasets",
        json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"selector": selector}}),
    );
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}]);
    let mut heavy = json!({"metadata": {"labels": {"app": "web"}, "ownerReferences": owner}});
    // One is large: by what is left alone, the next two would go to the other Node.
    for (name, cpu) in [("large", "2"), ("small-1", "100m"), ("small-2", "100m"), ("small-3", "100m")] {
        heavy["spec"] = json!({"containers": asking(cpu, "1Mi")});
        api.put("pods", pod_value(name, heavy.clone()));
    }
    let (scheduler, _stop) = start(&api, 1);
    api.until("bound", |api| api.bindings().len() == 4).await;
    for node in scheduler.snapshot().nodes() {
        assert_eq!(node.pods.len(), 2, "{:?}", api.bindings());
    }
}

#[tokio::test(start_paused = true)]
async fn polite_pods_do_not_preempt() {
    let api = Api::default();
    api.put("nodes", node_value("n1", json!({"status": {"allocatable": {"pods": "1"}}})));
    api.put("pods", pod_value("low", json!({"spec": {"nodeName": "n1"}})));
    api.put("pods", pod_value("polite", json!({"spec": {"priority": 9, "preemptionPolicy": "Never"}})));
    let (_scheduler, _stop) = start(&api, 1);
    let message = "0/1 nodes are available: 1 Too many pods. no new claims to deallocate, preemption: \
                   not eligible due to preemptionPolicy=Never.";
    api.until("condition", |api| api.message("polite") == message).await;
    assert_ne!(api.pod("low"), Value::Null);
}

#[tokio::test(start_paused = true)]
async fn nodes_are_not_overfilled_while_bindings_are_under_way() {
    let api = Api::default();
    for node in 0..3 {
        api.put("nodes", node_value(&format!("n{node}"), json!({"status": {"allocatable": {"pods": "10"}}})));
    }
    for pod in 0..40 {
        api.put("pods", pod_value(&format!("p{pod}"), json!({})));
    }
    let (scheduler, _stop) = start(&api, 3);
    api.until("thirty bound", |api| api.bindings().len() == 30).await;
    api.until("ten wait", |_| scheduler.waiting() == 10).await;
    tokio::time::sleep(Duration::from_secs(400)).await;
    assert_eq!(api.bindings().len(), 30);
    for node in scheduler.snapshot().nodes() {
        assert_eq!(node.pods.len(), 10);
    }
}

#[test]
fn the_same_seed_gives_the_same_bindings() {
    let run = |seed| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let api = Api::default();
            for node in 0..4 {
                api.put("nodes", node_value(&format!("n{node}"), json!({})));
            }
            for pod in 0..30 {
                api.put("pods", pod_value(&format!("p{pod}"), json!({})));
            }
            let (_scheduler, _stop) = start(&api, seed);
            api.until("all bound", |api| api.bindings().len() == 30).await;
            api.bindings()
        })
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
