//! A server over the in-memory store, and requests to it.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use skeg_api::{Kinds, Status};
use skeg_apiserver::admission::{Plugin, Plugins};
use skeg_apiserver::assembly::{self, Setup};
use skeg_apiserver::hooks::{Authenticator, Authorizer, Nobody};
use skeg_apiserver::request::{Attributes, Decision};
use skeg_apiserver::{ApiServer, Body, Config, Hooks, Identity, LocalService, bootstrap};
use skeg_base::{Clock, Random};
use skeg_store::Memory;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::span;

/// Takes every request from the network as the same user.
pub struct Everybody;

impl Authenticator for Everybody {
    fn authenticate<'a>(
        &'a self,
        _request: &'a http::request::Parts,
        _certificates: &'a skeg_apiserver::hooks::Certificates,
    ) -> BoxFuture<'a, Result<Identity, Status>> {
        Box::pin(std::future::ready(Ok(Identity::system("remote", &[]))))
    }
}

/// Refuses the user `nobody`, and `patcher` what is a create; allows all else.
struct AllBut;

impl Authorizer for AllBut {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let user = attributes.identity.user();
        if user == "nobody" || user == "patcher" && attributes.verb == "create" {
            Decision::NoOpinion(String::new())
        } else {
            Decision::Allow(String::new())
        }
    }
}

pub struct Server {
    pub api: Arc<ApiServer>,
    pub service: LocalService,
}

pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {:?}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    #[track_caller]
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text());
        self.json()
    }

    pub fn warnings(&self) -> Vec<String> {
        self.headers.get_all("warning").iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    }
}

pub async fn start() -> Server {
    start_on(Arc::new(Memory::new())).await
}

pub async fn start_on(store: Arc<dyn skeg_store::Store>) -> Server {
    start_with(store, Arc::new(Nobody)).await
}

pub async fn start_with(store: Arc<dyn skeg_store::Store>, authenticator: Arc<dyn Authenticator>) -> Server {
    open(store, authenticator, Vec::new(), Clock::system(), Random::seeded(1)).await
}

/// With admission plugins; requests from the network are let in.
pub async fn start_plugged(plugins: Vec<Arc<dyn Plugin>>) -> Server {
    let store = Arc::new(Memory::new());
    open(store, Arc::new(Everybody), plugins, Clock::system(), Random::seeded(1)).await
}

/// A server of the simulation.
pub async fn start_at(clock: Clock, random: Random) -> Server {
    open(Arc::new(Memory::new()), Arc::new(Nobody), Vec::new(), clock, random).await
}

pub async fn start_at_store(store: Arc<dyn skeg_store::Store>, random: Random) -> Server {
    open(store, Arc::new(Nobody), Vec::new(), Clock::system(), random).await
}

/// With everything that plugs into a server of the product, but for a network.
pub async fn start_assembled(store: Arc<dyn skeg_store::Store>) -> Server {
    start_assembled_with(store, Plugins::default()).await
}

pub async fn start_assembled_with(store: Arc<dyn skeg_store::Store>, admission: Plugins) -> Server {
    let setup = Setup {
        edge: None,
        cluster_domain: "cluster.local".into(),
        admission,
        bootstrap: bootstrap::Settings {
            service_range: "10.96.0.0/16".parse().unwrap(),
            service_ip: [10, 96, 0, 1].into(),
            endpoints: vec![[10, 0, 0, 1].into()],
            port: 6443,
        },
    };
    let kinds = Arc::new(Kinds::new(skeg_api::builtin::builtin()));
    let opened = assembly::open(setup, kinds, store, Clock::system(), Random::seeded(1)).await;
    let api = opened.unwrap().server;
    let service = api.client_service(Identity::system("tester", &["system:masters"]));
    Server { api, service }
}

async fn open(
    store: Arc<dyn skeg_store::Store>,
    authenticator: Arc<dyn Authenticator>,
    admission: Vec<Arc<dyn Plugin>>,
    clock: Clock,
    random: Random,
) -> Server {
    let config = Config {
        kinds: Arc::new(Kinds::new(skeg_api::builtin::builtin())),
        hooks: Box::new(move |_| Hooks {
            local_superusers: true,
            authenticator,
            authorizer: Arc::new(AllBut),
            admission,
            endpoints: Vec::new(),
            allocators: Vec::new(),
            dialer: None,
        }),
    };
    let api = ApiServer::open(config, store, clock, random).await.unwrap();
    let service = api.client_service(Identity::system("tester", &["system:masters"]));
    Server { api, service }
}

impl Server {
    /// The same server, to another user.
    pub fn as_user(&self, user: &str) -> Server {
        Server { api: self.api.clone(), service: self.api.client_service(Identity::system(user, &[])) }
    }

    pub async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Body> {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = skeg_apiserver::local::full(body);
        self.service.send(request.body(body).unwrap()).await
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let response = self.raw(method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { code: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: &Value) -> Answer {
        let kind = format!("application/{kind}");
        self.send("PATCH", path, &[("content-type", kind.as_str())], body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], "").await
    }

    pub async fn watch(&self, path: &str) -> Watch {
        self.try_watch(path).await.unwrap_or_else(|code| panic!("{path}: {code}"))
    }

    /// A watch, or the code of its refusal.
    pub async fn try_watch(&self, path: &str) -> Result<Watch, u16> {
        let response = self.raw("GET", path, &[], "").await;
        match response.status().as_u16() {
            200 => Ok(Watch { body: response.into_body(), buffer: Vec::new() }),
            code => Err(code),
        }
    }

    pub fn encodes(&self) -> u64 {
        self.api.stats().encodes()
    }
}

pub struct Watch {
    body: Body,
    buffer: Vec<u8>,
}

impl Watch {
    /// The next event, or `None` at the end of the watch.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame())
                .await
                .expect("an event in time")?;
            self.buffer.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// Type and name of the next event.
    pub async fn event(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text =
            |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        (text("/type"), text("/object/metadata/name"))
    }
}

pub fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]}})
}

pub fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": 3, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}}})
}

pub const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const PODS: &str = "/api/v1/namespaces/default/pods";
pub const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// Keeps what is put on record.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<Vec<(String, String)>>>);

impl Recorder {
    /// Keys and values since the last call.
    pub fn take(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl tracing::Subscriber for Recorder {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "audit"
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        self.0.lock().unwrap().push((entry.key, entry.value));
    }
}

#[derive(Default)]
struct Entry {
    key: String,
    value: String,
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "key" => value.clone_into(&mut self.key),
            "value" => value.clone_into(&mut self.value),
            _ => {}
        }
    }
    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}
