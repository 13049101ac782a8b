//! The client seam: every request of every component passes here. Faults are drawn from the
//! run's seed; planted bugs are deterministic lies to one component.

use crate::gateway::{Connection, Gateway};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use skeg_api::Status;
use skeg_apiserver::local::full;
use skeg_apiserver::{Body, BoxError, Identity};
use skeg_base::Random;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tower::Service;

/// A bug of one component, planted at its seam.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The controllers never hear of deleted Pods.
    LostDelete,
    /// The controllers never hear of new Pods: an expectation that is never cleared.
    LostAdd,
    /// A Pod that is bound is bound again, elsewhere.
    DoubleBind,
    /// The Deployment controller scales one higher than maxSurge allows.
    SurgeOffByOne,
    /// The Deployment controller scales old ReplicaSets to nothing at once.
    UnavailableIgnored,
    /// A controller writes to a Deployment each time it sees one change.
    HotLoop,
    /// Each Pod is created twice.
    DoubleCreate,
    /// The garbage collector is told that no owner exists.
    OwnersDenied,
    /// The scheduler does not hear of Pods.
    SchedulerDeaf,
    /// What the garbage collector deletes stays.
    CollectorIdle,
    /// The namespace controller is told that every namespace is empty.
    NamespaceTooEarly,
    /// A patch of a user is acknowledged and never written.
    LostWrite,
    /// A watch passes over changes of Pods.
    WatchSkips,
    /// The controllers take a Pod for gone as soon as its deletion begins.
    EndTooEarly,
    /// A ReplicaSet's release of a Pod is acknowledged and never written.
    ReleaseLost,
}

impl Bug {
    pub const ALL: &[Bug] = &[
        Bug::LostDelete,
        Bug::LostAdd,
        Bug::DoubleBind,
        Bug::SurgeOffByOne,
        Bug::UnavailableIgnored,
        Bug::HotLoop,
        Bug::DoubleCreate,
        Bug::OwnersDenied,
        Bug::SchedulerDeaf,
        Bug::CollectorIdle,
        Bug::NamespaceTooEarly,
        Bug::LostWrite,
        Bug::WatchSkips,
        Bug::EndTooEarly,
        Bug::ReleaseLost,
    ];

    /// Events that the component's watches leave out.
    fn deafness(self, component: &str) -> Option<(&'static str, &'static str)> {
        match (self, component) {
            (Bug::LostDelete, "kube-controller-manager") => Some(("DELETED", "Pod")),
            (Bug::LostAdd, "kube-controller-manager") | (Bug::SchedulerDeaf, "kube-scheduler") => {
                Some(("ADDED", "Pod"))
            }
            (Bug::WatchSkips, "observer") => Some(("MODIFIED", "Pod")),
            _ => None,
        }
    }
}

/// What all seams of a run share.
pub struct Faults {
    random: Random,
    on: AtomicBool,
    pub requests: AtomicU64,
    bug: Option<Bug>,
    /// Whether [`Bug::HotLoop`] has a write under way.
    looking: AtomicBool,
}

impl Faults {
    pub fn new(random: Random, on: bool, bug: Option<Bug>) -> Arc<Self> {
        Arc::new(Faults { random, on: on.into(), requests: 0.into(), bug, looking: false.into() })
    }

    /// No faults from now on: the cluster must settle.
    pub fn end(&self) {
        self.on.store(false, Ordering::Relaxed);
    }

    fn one_in(&self, n: u64) -> bool {
        self.on.load(Ordering::Relaxed) && self.random.below(n) == 0
    }
}

/// One component's way to the API server.
#[derive(Clone)]
pub struct Seam {
    pub component: Arc<str>,
    pub identity: Identity,
    pub gateway: Arc<Gateway>,
    pub faults: Arc<Faults>,
}

impl Service<Request<Body>> for Seam {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().pass(request))
    }
}

impl Seam {
    fn is(&self, bug: Bug, component: &str) -> bool {
        self.faults.bug == Some(bug) && &*self.component == component
    }

    async fn pass(self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let faults = &self.faults;
        faults.requests.fetch_add(1, Ordering::Relaxed);
        // Every request takes a little time, as over a network.
        tokio::time::sleep(Duration::from_micros(200 + faults.random.below(2_000))).await;
        if faults.one_in(25) {
            tokio::time::sleep(Duration::from_millis(faults.random.below(3_000))).await;
        }
        if faults.one_in(60) {
            return Err("the connection broke before the request arrived".into());
        }
        let write = request.method() != Method::GET;
        if faults.one_in(80) {
            return Ok(refusal(if write { &[409, 429, 500, 503] } else { &[410, 429, 500] }, &faults.random));
        }
        let connection = self.gateway.connect(&self.identity)?;
        if let Some(answer) = self.made_up(&request) {
            return Ok(answer);
        }
        let path = request.uri().path().to_owned();
        let watch = request.uri().query().is_some_and(|query| query.contains("watch="));
        let (request, extra) = self.lie(request).await?;
        let response = connection.send(request).await?;
        if faults.bug == Some(Bug::DoubleBind) && path.ends_with("/binding") && response.status().is_success()
        {
            self.bind_again(&path).await;
        }
        if let Some(extra) = extra {
            connection.send(extra).await?;
        }
        if write && faults.one_in(120) {
            return Err("the connection broke before the answer arrived".into());
        }
        Ok(if watch { self.watched(connection, response) } else { response })
    }

    /// Answers that never reach the server, under a planted bug.
    fn made_up(&self, request: &Request<Body>) -> Option<Response<Body>> {
        let (method, path) = (request.method(), request.uri().path());
        let in_namespace = path.starts_with("/api/v1/namespaces/") || path.starts_with("/apis/");
        let body = if self.is(Bug::NamespaceTooEarly, "namespace-controller")
            && in_namespace
            && path.split('/').count() > 5
        {
            let put = *method == Method::PUT;
            (!put).then(|| json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []}))?
        } else if self.is(Bug::CollectorIdle, "generic-garbage-collector") && *method == Method::DELETE
            || self.is(Bug::LostWrite, "kubectl") && *method == Method::PATCH
            || self.is(Bug::ReleaseLost, "replicaset-controller") && *method == Method::PATCH
        {
            json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})
        } else {
            return None;
        };
        Some(answer(StatusCode::OK, &body))
    }

    /// Writes another node's name over a binding, past every check.
    async fn bind_again(&self, path: &str) {
        let key = path.replacen("/api/v1/namespaces/", "/registry/pods/", 1).replacen("/pods/", "/", 2);
        let key = key.replacen("/registry/", "/registry/pods/", 1).trim_end_matches("/binding").to_owned();
        let Ok((Some(record), _)) = self.gateway.store.get(&key).await else { return };
        let Ok(body) = skeg_apiserver::record::decode(&record.value) else { return };
        let Ok(mut pod) = serde_json::from_slice::<Value>(&body.json) else { return };
        pod["spec"]["nodeName"] = "elsewhere".into();
        if let Ok(value) = skeg_apiserver::record::encode("v1", &pod) {
            let expect = skeg_store::Expect::Modified(record.modified);
            let write = skeg_store::Write { key: record.key, expect, value: Some(value), ttl: None };
            let _ = self.gateway.store.write(write).await;
        }
    }

    /// A watch that may be cut between two events, and to which a planted bug may be done.
    fn watched(&self, connection: Connection, response: Response<Body>) -> Response<Body> {
        let (head, body) = response.into_parts();
        let stream = futures_util::stream::unfold(
            (self.clone(), connection, Some(body)),
            |(seam, connection, body)| async move {
                let mut body = body?;
                loop {
                    let data = connection.data(&mut body).await?;
                    let data = if seam.faults.one_in(150) { Err("the watch was cut".into()) } else { data };
                    let kept = match data {
                        Ok(data) => seam.distort(data),
                        Err(error) => return Some((Err(error), (seam, connection, None))),
                    };
                    if !kept.is_empty() {
                        return Some((Ok(Frame::data(kept)), (seam, connection, Some(body))));
                    }
                }
            },
        );
        Response::from_parts(head, StreamBody::new(stream).boxed_unsync())
    }

    /// What a planted bug makes of events.
    fn distort(&self, events: Bytes) -> Bytes {
        let Some(bug) = self.faults.bug else { return events };
        if let Some(deafness) = bug.deafness(&self.component) {
            return without(&events, deafness);
        }
        if self.is(Bug::EndTooEarly, "kube-controller-manager") {
            return ended_early(&events);
        }
        if self.is(Bug::HotLoop, "kube-controller-manager") && events.starts_with(b"{\"type\":\"MODIFIED\"") {
            let event: Value = serde_json::from_slice(&events).unwrap_or_default();
            if event["object"]["kind"] == "Deployment" && !self.faults.looking.swap(true, Ordering::Relaxed) {
                tokio::spawn(self.clone().look(event["object"]["metadata"].clone()));
            }
        }
        events
    }

    /// Notes on a Deployment that it was looked at.
    async fn look(self, metadata: Value) {
        tokio::time::sleep(Duration::from_secs(20)).await;
        self.faults.looking.store(false, Ordering::Relaxed);
        let text = |field: &str| metadata[field].as_str().unwrap_or_default();
        let path = format!("/apis/apps/v1/namespaces/{}/deployments/{}", text("namespace"), text("name"));
        let note =
            json!({"metadata": {"annotations": {"looked": self.faults.random.next_u64().to_string()}}});
        let mut request = Request::new(full(note.to_string()));
        *request.method_mut() = Method::PATCH;
        *request.uri_mut() = path.parse().unwrap_or_default();
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/merge-patch+json"));
        if let Ok(connection) = self.gateway.connect(&Identity::system("looker", &["system:masters"])) {
            let _ = connection.send(request).await;
        }
    }

    /// Applies a planted bug: changes the request, or adds a second one behind it.
    async fn lie(&self, request: Request<Body>) -> Result<(Request<Body>, Option<Request<Body>>), BoxError> {
        let Some(bug) = self.faults.bug else { return Ok((request, None)) };
        let (head, body) = request.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let (path, post) = (head.uri.path().to_owned(), head.method == Method::POST);
        let write = head.method != Method::GET;
        let mut value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let replicas = value["spec"]["replicas"].as_i64().filter(|_| value["kind"] == "ReplicaSet" && write);
        let rebuilt = |path: &str, body: Bytes| {
            let mut request = Request::new(full(body));
            *request.method_mut() = head.method.clone();
            *request.uri_mut() = path.parse().unwrap_or_default();
            *request.headers_mut() = head.headers.clone();
            request
        };
        let whole = head.uri.path_and_query().map_or(path.as_str(), |path| path.as_str());
        match (bug, &*self.component, replicas) {
            (Bug::SurgeOffByOne, "deployment-controller", Some(replicas @ 1..)) => {
                value["spec"]["replicas"] = (replicas + 1).into()
            }
            (Bug::UnavailableIgnored, "deployment-controller", Some(_)) if !post => {
                value["spec"]["replicas"] = 0.into()
            }
            (Bug::DoubleCreate, ..) if post && value["kind"] == "Pod" => {
                return Ok((rebuilt(whole, bytes.clone()), Some(rebuilt(whole, bytes))));
            }
            (Bug::OwnersDenied, "generic-garbage-collector", _)
                if !write && path.contains("/deployments/") =>
            {
                let missing = path.rsplit_once('/').map_or("/", |(parent, _)| parent);
                return Ok((rebuilt(&format!("{missing}/nobody"), bytes), None));
            }
            _ => return Ok((rebuilt(whole, bytes), None)),
        }
        Ok((rebuilt(whole, value.to_string().into()), None))
    }
}

/// The lines of a frame that are not events of this type and kind.
fn without(frame: &Bytes, (event, kind): (&str, &str)) -> Bytes {
    let kept = frame.split_inclusive(|byte| *byte == b'\n').filter(|line| {
        let value: Value = serde_json::from_slice(line).unwrap_or_default();
        !(value["type"] == event && value["object"]["kind"] == kind)
    });
    kept.collect::<Vec<_>>().concat().into()
}

/// Events in which a Pod whose deletion has begun is gone.
fn ended_early(frame: &Bytes) -> Bytes {
    let lines = frame.split_inclusive(|byte| *byte == b'\n').map(|line| {
        let mut value: Value = serde_json::from_slice(line).unwrap_or_default();
        let object = &value["object"];
        if object["kind"] == "Pod" && object["metadata"]["deletionTimestamp"].is_string() {
            value["type"] = "DELETED".into();
            return format!("{value}\n").into_bytes();
        }
        line.to_vec()
    });
    lines.collect::<Vec<_>>().concat().into()
}

fn refusal(codes: &[u16], random: &Random) -> Response<Body> {
    let code = codes[random.below(codes.len() as u64) as usize];
    let status = match code {
        409 => Status::conflict("", "things", "thing", "a fault"),
        410 => Status::expired("a fault"),
        429 => Status::too_many_requests("a fault", 1),
        503 => Status::unavailable("a fault"),
        _ => Status::internal("a fault"),
    };
    answer(StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &status.to_value())
}

fn answer(code: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(full(body.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
