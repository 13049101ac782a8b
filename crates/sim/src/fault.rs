//! The client seam: every request of every component passes here. Faults are drawn from the
//! run's seed; planted bugs are deterministic lies to one component.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use skeg_api::Status;
use skeg_apiserver::{Body, BoxError, LocalService};
use skeg_base::Random;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tower::Service;

/// A bug of one component, planted at its seam.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The ReplicaSet controller never hears of deleted Pods.
    LostDelete,
    /// The ReplicaSet controller never hears of new Pods: an expectation that is never cleared.
    LostAdd,
    /// A Pod that is bound is bound again, elsewhere.
    DoubleBind,
    /// The Deployment controller scales one higher than maxSurge allows.
    SurgeOffByOne,
    /// The Deployment controller scales old ReplicaSets to nothing at once.
    UnavailableIgnored,
    /// A status is written again and again.
    HotLoop,
    /// Updates overwrite what others wrote meanwhile.
    LostUpdate,
    /// Each Pod is created twice.
    DoubleCreate,
    /// The garbage collector is told that no owner exists.
    OwnersDenied,
    /// The scheduler does not hear of Pods.
    SchedulerDeaf,
    /// Orphans are never collected.
    CollectorIdle,
    /// Finalizers of a namespace are dropped before its content is gone.
    NamespaceTooEarly,
}

impl Bug {
    pub const ALL: &[Bug] = &[
        Bug::LostDelete,
        Bug::LostAdd,
        Bug::DoubleBind,
        Bug::SurgeOffByOne,
        Bug::UnavailableIgnored,
        Bug::HotLoop,
        Bug::LostUpdate,
        Bug::DoubleCreate,
        Bug::OwnersDenied,
        Bug::SchedulerDeaf,
        Bug::CollectorIdle,
        Bug::NamespaceTooEarly,
    ];
}

/// What all seams of a run share.
pub struct Faults {
    random: Random,
    on: AtomicBool,
    pub requests: AtomicU64,
    /// Requests whose answer was dropped after they took effect.
    pub lost_answers: AtomicU64,
    bug: Option<Bug>,
}

impl Faults {
    pub fn new(random: Random, on: bool, bug: Option<Bug>) -> Arc<Self> {
        Arc::new(Faults { random, on: on.into(), requests: 0.into(), lost_answers: 0.into(), bug })
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
    pub service: LocalService,
    pub faults: Arc<Faults>,
    pub store: Arc<dyn skeg_store::Store>,
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
    /// To the server. Not generic over the body inside an async function, where the compiler
    /// cannot see that the error type is itself.
    fn forward(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        self.service.clone().call(request)
    }

    async fn pass(self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        self.faults.requests.fetch_add(1, Ordering::Relaxed);
        let faults = &self.faults;
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
        if let Some(answer) = self.made_up(&request) {
            return Ok(answer);
        }
        let rebind = self.faults.bug == Some(Bug::DoubleBind) && request.uri().path().ends_with("/binding");
        let path = request.uri().path().to_owned();
        let watch = request.uri().query().is_some_and(|query| query.contains("watch="));
        let (request, extra) = match self.lie(request).await {
            Ok(requests) => requests,
            Err(error) => return Err(error),
        };
        let response = match self.forward(request).await {
            Ok(response) => response,
            Err(error) => return Err(error),
        };
        if rebind && response.status().is_success() {
            self.bind_again(&path).await;
        }
        if let Some(extra) = extra {
            let _ = self.forward(extra).await;
        }
        if write && faults.one_in(120) {
            faults.lost_answers.fetch_add(1, Ordering::Relaxed);
            return Err("the connection broke before the answer arrived".into());
        }
        Ok(if watch { self.watched(response) } else { response })
    }

    /// Answers that never reach the server, under a planted bug.
    fn made_up(&self, request: &Request<Body>) -> Option<Response<Body>> {
        let namespaced = request.uri().path().contains("/namespaces/");
        let early = self.faults.bug == Some(Bug::NamespaceTooEarly) && &*self.component == "namespace-controller";
        let plain = !request.uri().path().ends_with("/finalize") && !request.uri().path().ends_with("/status");
        let object = request.uri().path().split('/').count() <= 5;
        if !early || !namespaced || !plain || object || *request.method() == Method::PUT {
            return None;
        }
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []});
        let mut response = Response::new(skeg_apiserver::local::full(list.to_string()));
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
        Some(response)
    }

    /// Writes another node's name over a binding, past every check.
    async fn bind_again(&self, path: &str) {
        let key = path.replacen("/api/v1/namespaces/", "/registry/pods/", 1).replacen("/pods/", "/", 2);
        let key = key.replacen("/registry/", "/registry/pods/", 1).trim_end_matches("/binding").to_owned();
        let Ok((Some(record), _)) = self.store.get(&key).await else { return };
        let Ok(body) = skeg_apiserver::record::decode(&record.value) else { return };
        let Ok(mut pod) = serde_json::from_slice::<Value>(&body.json) else { return };
        pod["spec"]["nodeName"] = "elsewhere".into();
        if let Ok(value) = skeg_apiserver::record::encode("v1", &pod) {
            let expect = skeg_store::Expect::Modified(record.modified);
            let write = skeg_store::Write { key: record.key, expect, value: Some(value), ttl: None };
            let _ = self.store.write(write).await;
        }
    }

    /// A watch that may be cut between two events, and that a planted bug makes deaf.
    fn watched(&self, response: Response<Body>) -> Response<Body> {
        let (faults, deaf) = (self.faults.clone(), self.deaf_to(&response));
        let (head, body) = response.into_parts();
        let stream = futures_util::stream::unfold((body, false), move |(mut body, ended)| {
            let (faults, deaf) = (faults.clone(), deaf);
            async move {
                if ended {
                    return None;
                }
                loop {
                    let frame = body.frame().await?;
                    if faults.one_in(150) {
                        let error: BoxError = "the watch was cut".into();
                        return Some((Err(error), (body, true)));
                    }
                    let frame = match frame.map(Frame::into_data) {
                        Ok(Ok(data)) => data,
                        Ok(Err(_)) => continue,
                        Err(error) => return Some((Err(error), (body, true))),
                    };
                    let kept = match deaf {
                        Some(kind) => without(&frame, kind),
                        None => frame,
                    };
                    if !kept.is_empty() {
                        return Some((Ok(Frame::data(kept)), (body, false)));
                    }
                }
            }
        });
        Response::from_parts(head, StreamBody::new(stream).boxed_unsync())
    }

    fn deaf_to(&self, _: &Response<Body>) -> Option<(&'static str, &'static str)> {
        match self.faults.bug? {
            Bug::LostDelete => Some(("DELETED", "Pod")),
            Bug::LostAdd => Some(("ADDED", "Pod")),
            Bug::SchedulerDeaf if &*self.component == "kube-scheduler" => Some(("ADDED", "Pod")),
            Bug::CollectorIdle => Some(("DELETED", "ReplicaSet")),
            _ => None,
        }
    }

    /// Applies a planted bug: changes the request, or adds a second one behind it.
    async fn lie(&self, request: Request<Body>) -> Result<(Request<Body>, Option<Request<Body>>), BoxError> {
        let Some(bug) = self.faults.bug else { return Ok((request, None)) };
        let (head, body) = request.into_parts();
        let bytes = match body.collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(error) => return Err(error),
        };
        let mut value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let (method, path) = (head.method.clone(), head.uri.path().to_owned());
        let component = &*self.component;
        let is_set = value["kind"] == "ReplicaSet" || path.contains("/replicasets/");
        let mut extra = None;
        match bug {
            Bug::SurgeOffByOne if component == "deployment-controller" && is_set && method != Method::GET => {
                if let Some(replicas) = value["spec"]["replicas"].as_i64().filter(|replicas| *replicas > 0) {
                    value["spec"]["replicas"] = (replicas + 1).into();
                }
            }
            Bug::UnavailableIgnored if component == "deployment-controller" && is_set && method != Method::GET && method != Method::POST => {
                if value["spec"]["replicas"].is_i64() || value["spec"]["replicas"].is_u64() {
                    value["spec"]["replicas"] = 0.into();
                }
            }
            Bug::LostUpdate if method == Method::PUT => {
                if let Some(metadata) = value["metadata"].as_object_mut() {
                    metadata.remove("resourceVersion");
                }
            }
            Bug::DoubleCreate if method == Method::POST && value["kind"] == "Pod" => {
                extra = Some(rebuild(&head, &method, &path, &value));
            }
            Bug::HotLoop if path.ends_with("/status") && component == "deployment-controller" => {
                // An annotation that changes with every look makes each write cause the next.
                let name = path.trim_end_matches("/status").to_owned();
                let note = json!({"metadata": {"annotations": {"looked": self.faults.random.next_u64().to_string()}}});
                let mut patch = rebuild(&head, &Method::PATCH, &name, &note);
                patch.headers_mut().insert("content-type", http::HeaderValue::from_static("application/merge-patch+json"));
                extra = Some(patch);
            }
            Bug::OwnersDenied if component == "generic-garbage-collector" && method == Method::GET && path.contains("/deployments/") => {
                let missing = path.rsplit_once('/').map_or(path.clone(), |(parent, _)| format!("{parent}/nobody"));
                return Ok((rebuild(&head, &method, &missing, &value), None));
            }
            _ => {}
        }
        let mut request = rebuild(&head, &method, head.uri.path_and_query().map_or(path.as_str(), |path| path.as_str()), &value);
        if value.is_null() {
            *request.body_mut() = skeg_apiserver::local::full(bytes);
        }
        *request.headers_mut() = head.headers;
        Ok((request, extra))
    }
}

fn rebuild(head: &http::request::Parts, method: &Method, path: &str, value: &Value) -> Request<Body> {
    let mut request = Request::new(skeg_apiserver::local::full(value.to_string()));
    *request.method_mut() = method.clone();
    *request.uri_mut() = path.parse().unwrap_or_default();
    *request.headers_mut() = head.headers.clone();
    request
}

/// The lines of a frame that are not events of this type and kind.
fn without(frame: &Bytes, (event, kind): (&str, &str)) -> Bytes {
    let kept = frame.split_inclusive(|byte| *byte == b'\n').filter(|line| {
        let value: Value = serde_json::from_slice(line).unwrap_or_default();
        !(value["type"] == event && value["object"]["kind"] == kind)
    });
    kept.collect::<Vec<_>>().concat().into()
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
    let mut response = Response::new(skeg_apiserver::local::full(status.to_value().to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}
