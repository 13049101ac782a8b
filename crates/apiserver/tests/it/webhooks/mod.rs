//! Admission webhooks, asked over TLS by a server that is real on both sides.

mod asking;
mod choosing;
mod failing;
mod hostile;
mod objects;

use crate::harness::{Server, start_assembled};
use crate::tls::{self, Certificate};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use skeg_store::Memory;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

/// What the webhook server does with a path.
#[derive(Clone)]
pub enum Reply {
    /// The `response` of a review, with the uid filled in.
    Review(Value),
    /// A status and a body.
    Raw(u16, Bytes),
    /// None, ever.
    Hang,
}

type Answers = Arc<dyn Fn(&str, &Value) -> Reply + Send + Sync>;

/// A server of webhooks.
pub struct Webhooks {
    pub address: SocketAddr,
    /// Its authority, as `caBundle` has it.
    pub bundle: String,
    /// Paths and requests, in the order in which they came.
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    pub arrived: Arc<tokio::sync::Notify>,
    connections: Arc<AtomicUsize>,
}

impl Webhooks {
    pub async fn start(answers: impl Fn(&str, &Value) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_as(Certificate::of(&["127.0.0.1", "hooks.default.svc"]), answers).await
    }

    pub async fn start_as(
        certificate: Certificate,
        answers: impl Fn(&str, &Value) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let (bundle, asked) = (certificate.bundle.clone(), Arc::<Mutex<Vec<(String, Value)>>>::default());
        let (arrived, connections) = (Arc::<tokio::sync::Notify>::default(), Arc::<AtomicUsize>::default());
        let (of, told, count, answers) =
            (asked.clone(), arrived.clone(), connections.clone(), Arc::new(answers) as Answers);
        let address = tls::listen(certificate.server(None), move |stream| {
            count.fetch_add(1, Ordering::SeqCst);
            let (answers, asked, arrived) = (answers.clone(), of.clone(), told.clone());
            let serve = service_fn(move |request: Request<Incoming>| {
                let (answers, asked, arrived) = (answers.clone(), asked.clone(), arrived.clone());
                async move { Ok::<_, hyper::Error>(answer(request, answers, asked, arrived).await) }
            });
            async move {
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), serve).await;
            }
        })
        .await;
        Webhooks { address, bundle, asked, arrived, connections }
    }

    /// One webhook of a configuration, at a path of this server.
    fn hook(&self, name: &str, path: &str, rule: Value, more: Value) -> Value {
        hook((self.address, &self.bundle), name, path, rule, more)
    }

    pub fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().iter().map(|(_, request)| request.clone()).collect()
    }

    pub fn paths(&self) -> Vec<String> {
        let paths = self.asked.lock().unwrap();
        paths.iter().map(|(path, _)| path.split('?').next().unwrap().to_owned()).collect()
    }
}

/// One webhook of a configuration, at a path of a server with an authority.
fn hook((address, bundle): (SocketAddr, &str), name: &str, path: &str, rule: Value, more: Value) -> Value {
    let mut hook = json!({"name": format!("{name}.example.com"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": format!("https://{address}{path}"), "caBundle": bundle}, "rules": [rule]});
    for (key, value) in more.as_object().into_iter().flatten() {
        hook[key] = value.clone();
    }
    hook
}

async fn answer(
    request: Request<Incoming>,
    answers: Answers,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    arrived: Arc<tokio::sync::Notify>,
) -> Response<Full<Bytes>> {
    let path = request.uri().to_string();
    assert_eq!(request.headers()["content-type"], "application/json");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    asked.lock().unwrap().push((path.clone(), review["request"].clone()));
    arrived.notify_waiters();
    arrived.notify_one();
    let (code, bytes) = match answers(&path, &review["request"]) {
        Reply::Review(mut response) => {
            if response["uid"].is_null() {
                response["uid"] = review["request"]["uid"].clone();
            }
            let answer =
                json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response});
            (200, answer.to_string().into())
        }
        Reply::Raw(code, bytes) => (code, bytes),
        Reply::Hang => std::future::pending().await,
    };
    let mut response = Response::new(Full::new(bytes));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn allow() -> Reply {
    Reply::Review(json!({"allowed": true}))
}

fn patch(operations: &Value) -> Reply {
    Reply::Review(
        json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())}),
    )
}

fn rule(operations: &[&str], group: &str, version: &str, resources: &[&str]) -> Value {
    json!({"operations": operations, "apiGroups": [group], "apiVersions": [version], "resources": resources})
}

async fn start() -> Server {
    let server = start_assembled(Arc::new(Memory::new())).await;
    server
        .post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}}))
        .await
        .expect(201);
    server
}

async fn configure(server: &Server, path: &str, name: &str, hooks: &[Value]) {
    let made = server.post(path, &json!({"metadata": {"name": name}, "webhooks": hooks})).await;
    assert_eq!(made.warnings(), Vec::<String>::new());
    made.expect(201);
}
