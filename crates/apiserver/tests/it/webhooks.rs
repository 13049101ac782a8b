//! Admission webhooks, asked over TLS by a server that is real on both sides.

use crate::access;
use crate::harness::{CONFIG_MAPS, PODS, Server, config_map, deployment, pod, start_assembled};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use skeg_store::Memory;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

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
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(params, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "hooks.default.svc".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(skeg_base::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hooks = Webhooks {
            address: listener.local_addr().unwrap(),
            bundle: STANDARD.encode(authority.pem()),
            asked: Arc::default(),
            arrived: Arc::default(),
            connections: Arc::default(),
        };
        let (asked, arrived, connections) =
            (hooks.asked.clone(), hooks.arrived.clone(), hooks.connections.clone());
        let (acceptor, answers): (_, Answers) = (TlsAcceptor::from(Arc::new(config)), Arc::new(answers));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answers) = (acceptor.clone(), answers.clone());
                let (asked, arrived, connections) = (asked.clone(), arrived.clone(), connections.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    connections.fetch_add(1, Ordering::SeqCst);
                    let serve = service_fn(move |request: Request<Incoming>| {
                        let (answers, asked, arrived) = (answers.clone(), asked.clone(), arrived.clone());
                        async move { Ok::<_, hyper::Error>(answer(request, answers, asked, arrived).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), serve)
                        .await;
                });
            }
        });
        hooks
    }

    /// One webhook of a configuration, at a path of this server.
    fn hook(&self, name: &str, path: &str, rule: Value, more: Value) -> Value {
        let mut hook = json!({"name": format!("{name}.example.com"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": format!("https://{}{path}", self.address), "caBundle": self.bundle}, "rules": [rule]});
        for (key, value) in more.as_object().into_iter().flatten() {
            hook[key] = value.clone();
        }
        hook
    }

    pub fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().iter().map(|(_, request)| request.clone()).collect()
    }

    pub fn paths(&self) -> Vec<String> {
        let paths = self.asked.lock().unwrap();
        paths.iter().map(|(path, _)| path.split('?').next().unwrap().to_owned()).collect()
    }
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

#[tokio::test]
async fn webhooks_refuse_in_upstreams_words_and_are_told_everything() {
    let hooks = Webhooks::start(|path, request| match request["name"].as_str().unwrap() {
        "fine" => Reply::Review(json!({"allowed": true, "warnings": ["take care"], "auditAnnotations": {"a": "b"}})),
        "no" => Reply::Review(json!({"allowed": false, "status": {"code": 418, "message": "not this one", "reason": "Forbidden"}})),
        "reason" => Reply::Review(json!({"allowed": false, "status": {"reason": "JustBecause"}})),
        _ => {
            assert!(path.ends_with("?timeout=10s"), "{path}");
            Reply::Review(json!({"allowed": false}))
        }
    })
    .await;
    let server = start().await;
    let maps = rule(&["CREATE", "UPDATE", "DELETE"], "", "v1", &["configmaps"]);
    configure(&server, VALIDATING, "deny", &[hooks.hook("deny", "/deny", maps, json!({}))]).await;
    let refused = server.post(CONFIG_MAPS, &config_map("bad", json!({}))).await.expect(400);
    assert_eq!(
        refused["message"],
        "admission webhook \"deny.example.com\" denied the request without explanation"
    );
    let refused = server.post(CONFIG_MAPS, &config_map("no", json!({}))).await.expect(418);
    assert_eq!(refused["message"], "admission webhook \"deny.example.com\" denied the request: not this one");
    assert_eq!(refused["reason"], "Forbidden");
    let refused = server.post(CONFIG_MAPS, &config_map("reason", json!({}))).await.expect(400);
    assert_eq!(refused["message"], "admission webhook \"deny.example.com\" denied the request: JustBecause");
    let made = server.post(CONFIG_MAPS, &config_map("fine", json!({"k": "v"}))).await;
    assert_eq!(made.warnings(), ["299 - \"take care\""]);
    let made = made.expect(201);
    let asked = hooks.asked().pop().unwrap();
    for (field, expected) in [
        ("kind", json!({"group": "", "version": "v1", "kind": "ConfigMap"})),
        ("resource", json!({"group": "", "version": "v1", "resource": "configmaps"})),
        ("requestKind", json!({"group": "", "version": "v1", "kind": "ConfigMap"})),
        ("operation", json!("CREATE")),
        ("namespace", json!("default")),
        ("name", json!("fine")),
        ("dryRun", json!(false)),
        ("oldObject", Value::Null),
        ("options", json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"})),
    ] {
        assert_eq!(asked[field], expected, "{field}");
    }
    assert_eq!(asked["userInfo"]["username"], "tester");
    assert_eq!(
        (&asked["object"]["data"], &asked["object"]["metadata"]["uid"]),
        (&made["data"], &made["metadata"]["uid"])
    );
    let dry = format!("{CONFIG_MAPS}/fine?dryRun=All&fieldManager=me");
    let changed = json!({"data": {"k": "w"}});
    server
        .send("PATCH", &dry, &[("content-type", "application/merge-patch+json")], changed.to_string())
        .await
        .expect(200);
    let asked = hooks.asked().pop().unwrap();
    assert_eq!((&asked["dryRun"], &asked["operation"]), (&json!(true), &json!("UPDATE")));
    assert_eq!((&asked["object"]["data"]["k"], &asked["oldObject"]["data"]["k"]), (&json!("w"), &json!("v")));
    assert_eq!(asked["options"]["fieldManager"], "me");
    server.delete(&format!("{CONFIG_MAPS}/fine?gracePeriodSeconds=0")).await.expect(200);
    let asked = hooks.asked().pop().unwrap();
    assert_eq!((&asked["object"], &asked["oldObject"]["metadata"]["name"]), (&Value::Null, &json!("fine")));
    assert_eq!(
        asked["options"],
        json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", "gracePeriodSeconds": 0})
    );
    // Other kinds are not its business.
    let before = hooks.asked().len();
    server.post("/api/v1/namespaces/default/secrets", &json!({"metadata": {"name": "s"}})).await.expect(201);
    assert_eq!(hooks.asked().len(), before);
    assert_eq!(hooks.connections.load(Ordering::SeqCst), 1, "one connection serves all");
}

#[tokio::test]
async fn webhooks_change_objects_one_after_the_other_and_again() {
    let hooks = Webhooks::start(|path, request| {
        let labels = &request["object"]["metadata"]["labels"];
        let add = |key: &str, value: &str| match labels.is_object() {
            true => patch(&json!([{"op": "add", "path": format!("/metadata/labels/{key}"), "value": value}])),
            false => patch(&json!([{"op": "add", "path": "/metadata/labels", "value": {key: value}}])),
        };
        match path.split('?').next().unwrap() {
            "/first" if !labels["second"].is_null() => add("first", "saw-second"),
            "/first" => add("first", "alone"),
            "/second" => add("second", labels["first"].as_str().unwrap_or("none")),
            "/limits" => patch(&json!([
                {"op": "add", "path": "/spec/containers/0/resources", "value": {"limits": {"cpu": "1"}}},
                {"op": "replace", "path": "/metadata/uid", "value": "forged"}])),
            _ => patch(&json!([{"op": "add", "path": "/spec/nonsense", "value": 1}, {"op": "replace", "path": "/nowhere", "value": 1}])),
        }
    })
    .await;
    let server = start().await;
    let maps = rule(&["CREATE"], "", "v1", &["configmaps"]);
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    configure(&server, MUTATING, "b", &[hooks.hook("second", "/second", maps.clone(), json!({}))]).await;
    configure(&server, MUTATING, "a", &[hooks.hook("first", "/first", maps, again)]).await;
    let made = server.post(CONFIG_MAPS, &config_map("m", json!({}))).await.expect(201);
    assert_eq!(made["metadata"]["labels"], json!({"first": "saw-second", "second": "alone"}));
    assert_eq!(hooks.paths(), ["/first", "/second", "/first"]);
    let owned = made["metadata"]["managedFields"].to_string();
    assert!(!owned.contains("saw-second") && !owned.contains("f:first"), "{owned}");
    // What a webhook leaves out is filled in; what only the server sets stays.
    let pods = rule(&["CREATE"], "", "v1", &["pods"]);
    let limits = json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "500m"}}]}});
    configure(&server, MUTATING, "c", &[hooks.hook("limits", "/limits", pods.clone(), json!({}))]).await;
    let made = server.post(PODS, &pod("p")).await.expect(201);
    assert_eq!(made["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "1"}));
    assert_ne!(made["metadata"]["uid"], "forged");
    server.post("/api/v1/namespaces/default/limitranges", &limits).await.expect(201);
    let refused = server.post(PODS, &pod("q")).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"q\" is forbidden: [maximum cpu usage per Container is 500m, but limit is 1]"
            .replace(['[', ']'], "")
    );
    server.delete(&format!("{MUTATING}/c")).await.expect(200);
    configure(&server, MUTATING, "d", &[hooks.hook("bad", "/bad", pods, json!({}))]).await;
    let failed = server.post(PODS, &pod("r")).await.expect(500);
    assert!(failed["message"].as_str().unwrap().starts_with("Internal error occurred: "), "{failed}");
}

#[tokio::test]
async fn policies_come_before_webhooks_and_see_their_changes_if_they_want_to() {
    let add = json!([{"op": "add", "path": "/data/hook", "value": "x"}]);
    let hooks = Webhooks::start(move |_, _| patch(&add)).await;
    let server = start().await;
    let maps = rule(&["CREATE"], "", "v1", &["configmaps"]);
    configure(&server, MUTATING, "h", &[hooks.hook("h", "/", maps.clone(), json!({}))]).await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let binding = json!({"metadata": {"name": "p"}, "spec": {"policyName": "p"}});
    server.post(&format!("{group}/mutatingadmissionpolicybindings"), &binding).await.expect(201);
    let policies = format!("{group}/mutatingadmissionpolicies");
    let expression = "Object{data: Object.data{policy: string(object.data.size())}}";
    for (reinvocation, seen) in [("Never", "1"), ("IfNeeded", "3")] {
        let spec = json!({"matchConstraints": {"resourceRules": [maps]}, "reinvocationPolicy": reinvocation,
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}]});
        server.post(&policies, &json!({"metadata": {"name": "p"}, "spec": spec})).await.expect(201);
        let made =
            server.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("m", json!({"k": "v"}))).await;
        assert_eq!(
            made.expect(201)["data"],
            json!({"k": "v", "hook": "x", "policy": seen}),
            "{reinvocation}"
        );
        assert_eq!(hooks.asked().pop().unwrap()["object"]["data"], json!({"k": "v", "policy": "1"}));
        server.delete(&format!("{policies}/p")).await.expect(200);
    }
}

#[tokio::test]
async fn webhooks_that_fail_are_told_or_ignored() {
    let hooks = Webhooks::start(|path, _| match path.split('?').next().unwrap() {
        "/hang" => Reply::Hang,
        "/error" => Reply::Raw(500, "broken".into()),
        "/missing" => Reply::Raw(404, "".into()),
        "/garbage" => Reply::Raw(200, "<html>".into()),
        "/kindless" => Reply::Raw(200, "{}".into()),
        "/huge" => Reply::Raw(200, vec![b' '; 4 << 20].into()),
        "/uid" => Reply::Review(json!({"allowed": true, "uid": "x"})),
        "/empty" => Reply::Raw(
            200,
            json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}).to_string().into(),
        ),
        "/untyped" => Reply::Review(json!({"allowed": true, "patch": "W10="})),
        "/patch" => Reply::Review(json!({"allowed": true, "patch": "W10=", "patchType": "JSONPatch"})),
        _ => allow(),
    })
    .await;
    let server = start().await;
    let (url, port) = (format!("https://{}", hooks.address), hooks.address.port());
    let maps = || rule(&["CREATE"], "", "v1", &["configmaps"]);
    let at = |path: &str| {
        hooks.hook("x", path, maps(), json!({"timeoutSeconds": if path == "/hang" { 1 } else { 10 }}))
    };
    let mut untrusted = at("/ok");
    untrusted["clientConfig"]["caBundle"] = Webhooks::start(|_, _| allow()).await.bundle.into();
    let mut bundle = at("/ok");
    bundle["clientConfig"]["caBundle"] = STANDARD.encode("nonsense").into();
    let mut closed = at("/ok");
    closed["clientConfig"]["url"] = "https://127.0.0.1:1/ok".into();
    let mut service = at("/ok");
    service["clientConfig"] =
        json!({"caBundle": hooks.bundle, "service": {"namespace": "default", "name": "none"}});
    let both = [MUTATING, VALIDATING];
    let cases: Vec<(Value, &[&str], String)> = vec![
        (at("/hang"), &both, format!("failed to call webhook: Post \"{url}/hang?timeout=1s\": context deadline exceeded")),
        (at("/error"), &both, "failed to call webhook: an error on the server (\"broken\") has prevented the request from succeeding".into()),
        (at("/missing"), &both, "failed to call webhook: the server could not find the requested resource".into()),
        (at("/garbage"), &both, "failed to call webhook: couldn't get version/kind; json parse error: ".into()),
        (at("/kindless"), &both, "failed to call webhook: Object 'Kind' is missing in '{}'".into()),
        (at("/huge"), &both, format!("failed to call webhook: Post \"{url}/huge?timeout=10s\": length limit exceeded")),
        (at("/uid"), &both, "received invalid webhook response: expected response.uid=".into()),
        (at("/empty"), &both, "received invalid webhook response: webhook response was absent".into()),
        (at("/untyped"), &[MUTATING], "received invalid webhook response: webhook returned response.patch but not response.patchType".into()),
        (at("/patch"), &[VALIDATING], "received invalid webhook response: validating webhook may not return response.patch".into()),
        (untrusted, &both, format!("failed to call webhook: Post \"{url}/ok?timeout=10s\": tls: failed to verify certificate: ")),
        (bundle, &both, "could not get REST client: unable to load root certificates: unable to parse bytes as PEM block".into()),
        (closed, &both, "failed to call webhook: Post \"https://127.0.0.1:1/ok?timeout=10s\": dial tcp 127.0.0.1:1: connect: connection refused".into()),
        (service, &both, "failed to call webhook: Post \"https://none.default.svc:443/?timeout=10s\": services \"none\" not found".into()),
    ];
    assert!(port > 0);
    for (mut hook, paths, expected) in cases {
        for path in paths {
            configure(&server, path, "x", std::slice::from_ref(&hook)).await;
            let failed = server.post(CONFIG_MAPS, &config_map("m", json!({}))).await.expect(500);
            let message = failed["message"].as_str().unwrap();
            let expected =
                format!("Internal error occurred: failed calling webhook \"x.example.com\": {expected}");
            assert!(message.starts_with(&expected), "{message}\n{expected}");
            server.delete(&format!("{path}/x")).await.expect(200);
            // The hanging one would only take its time again.
            if !expected.contains("deadline") {
                hook["failurePolicy"] = "Ignore".into();
                configure(&server, path, "x", std::slice::from_ref(&hook)).await;
                server.post(CONFIG_MAPS, &config_map("m", json!({}))).await.expect(201);
                server.delete(&format!("{CONFIG_MAPS}/m")).await.expect(200);
                server.delete(&format!("{path}/x")).await.expect(200);
                hook["failurePolicy"] = "Fail".into();
            }
        }
    }
}

#[tokio::test]
async fn a_webhook_that_hangs_holds_up_nobody_else() {
    let hooks = Webhooks::start(|_, _| Reply::Hang).await;
    let server = start().await;
    let all = json!({"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]});
    let selector = json!({"objectSelector": {"matchLabels": {"slow": "yes"}}, "timeoutSeconds": 30});
    configure(&server, VALIDATING, "hang", &[hooks.hook("hang", "/", all, selector)]).await;
    let mut slow = config_map("slow", json!({}));
    slow["metadata"]["labels"] = json!({"slow": "yes"});
    let arrived = hooks.arrived.clone();
    let stuck = {
        let (api, service) = (server.api.clone(), server.service.clone());
        tokio::spawn(async move { Server { api, service }.post(CONFIG_MAPS, &slow).await.code })
    };
    arrived.notified().await;
    for n in 0..20 {
        server.post(CONFIG_MAPS, &config_map(&format!("m{n}"), json!({}))).await.expect(201);
    }
    server.get(CONFIG_MAPS).await.expect(200);
    assert!(!stuck.is_finished());
    // The configuration itself is shown to no webhook, or nobody could take it away.
    server.delete(&format!("{VALIDATING}/hang")).await.expect(200);
    stuck.abort();
}

#[tokio::test]
async fn rules_and_selectors_choose() {
    let hooks =
        Webhooks::start(|_, _| Reply::Review(json!({"allowed": false, "status": {"message": "no"}}))).await;
    let server = start().await;
    server
        .post("/api/v1/namespaces", &json!({"metadata": {"name": "team", "labels": {"guarded": "yes"}}}))
        .await
        .expect(201);
    let maps = rule(&["CREATE"], "*", "*", &["configmaps", "namespaces"]);
    let selector = json!({"namespaceSelector": {"matchLabels": {"guarded": "yes"}}});
    configure(&server, VALIDATING, "ns", &[hooks.hook("ns", "/", maps, selector)]).await;
    server.post(CONFIG_MAPS, &config_map("m", json!({}))).await.expect(201);
    server.post("/api/v1/namespaces/team/configmaps", &config_map("m", json!({}))).await.expect(400);
    let guarded =
        |value: &str| json!({"metadata": {"name": format!("n-{value}"), "labels": {"guarded": value}}});
    server.post("/api/v1/namespaces", &guarded("yes")).await.expect(400);
    server.post("/api/v1/namespaces", &guarded("no")).await.expect(201);
    server.delete(&format!("{VALIDATING}/ns")).await.expect(200);
    let mut cluster = rule(&["CREATE"], "*", "*", &["*"]);
    cluster["scope"] = "Cluster".into();
    configure(&server, VALIDATING, "scope", &[hooks.hook("scope", "/", cluster, json!({}))]).await;
    server.post(CONFIG_MAPS, &config_map("k", json!({}))).await.expect(201);
    server.post("/api/v1/namespaces", &json!({"metadata": {"name": "x"}})).await.expect(400);
    server.delete(&format!("{VALIDATING}/scope")).await.expect(200);
    let objects =
        json!({"objectSelector": {"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]}});
    let updates = rule(&["UPDATE", "DELETE"], "", "v1", &["configmaps"]);
    configure(&server, VALIDATING, "object", &[hooks.hook("object", "/", updates, objects)]).await;
    // The old object counts too, so that nobody gets out by a label.
    let skip = json!({"metadata": {"labels": {"skip": "yes"}}});
    server.patch(&format!("{CONFIG_MAPS}/m"), "merge-patch+json", &skip).await.expect(400);
    server.delete(&format!("{CONFIG_MAPS}/m")).await.expect(400);
}

#[tokio::test]
async fn subresources_and_other_versions_are_matched() {
    let hooks = Webhooks::start(|path, request| match path.split('?').next().unwrap() {
        "/scale" if request["object"]["spec"]["replicas"] == 9 => {
            Reply::Review(json!({"allowed": false, "status": {"message": "too many"}}))
        }
        "/version" => {
            patch(&json!([{"op": "replace", "path": "/spec/targetCPUUtilizationPercentage", "value": 42}]))
        }
        _ => allow(),
    })
    .await;
    let server = start().await;
    let scale = rule(&["UPDATE"], "apps", "v1", &["deployments/scale"]);
    configure(&server, VALIDATING, "scale", &[hooks.hook("scale", "/scale", scale, json!({}))]).await;
    server.post(crate::harness::DEPLOYMENTS, &deployment("d")).await.expect(201);
    let path = format!("{}/d/scale", crate::harness::DEPLOYMENTS);
    let replicas = |n: i64| json!({"spec": {"replicas": n}});
    let refused = server.patch(&path, "merge-patch+json", &replicas(9)).await.expect(400);
    assert_eq!(refused["message"], "admission webhook \"scale.example.com\" denied the request: too many");
    server.patch(&path, "merge-patch+json", &replicas(4)).await.expect(200);
    let asked = hooks.asked().pop().unwrap();
    assert_eq!(asked["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    assert_eq!(
        (&asked["subResource"], &asked["oldObject"]["spec"]["replicas"]),
        (&json!("scale"), &json!(3))
    );
    // A rule for one version of a kind is asked about the others too, in its own.
    let old = rule(&["CREATE"], "autoscaling", "v1", &["horizontalpodautoscalers"]);
    configure(&server, MUTATING, "version", &[hooks.hook("version", "/version", old.clone(), json!({}))])
        .await;
    let scaler = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"maxReplicas": 5,
        "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"},
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 7}}}})
    };
    let scalers = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let made = server.post(scalers, &scaler("a")).await.expect(201);
    let asked = hooks.asked().pop().unwrap();
    assert_eq!((&asked["kind"]["version"], &asked["requestKind"]["version"]), (&json!("v1"), &json!("v2")));
    assert_eq!(asked["object"]["apiVersion"], "autoscaling/v1");
    assert_eq!(made["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 42);
    assert_eq!(made["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"], 7);
    server.delete(&format!("{MUTATING}/version")).await.expect(200);
    configure(
        &server,
        MUTATING,
        "exact",
        &[hooks.hook("exact", "/version", old, json!({"matchPolicy": "Exact"}))],
    )
    .await;
    let made = server.post(scalers, &scaler("b")).await.expect(201);
    assert_eq!(made["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_lead_to_webhooks_which_see_connections_too() {
    let hooks = Webhooks::start(|_, request| match request["operation"].as_str().unwrap() {
        "CONNECT" => {
            Reply::Review(json!({"allowed": false, "status": {"message": "attaching is not allowed"}}))
        }
        _ => allow(),
    })
    .await;
    let cluster = access::cluster().await;
    let admin = cluster.admin();
    *cluster.dialer.to_pods.lock().unwrap() = Some(hooks.address);
    cluster.service_account("default").await;
    cluster
        .create("/api/v1/namespaces/default/pods", json!({"metadata": {"name": "p"}, "spec": {"nodeName": access::NODE, "containers": [{"name": "c", "image": "x"}]}}))
        .await;
    let service = json!({"metadata": {"name": "hooks"}, "spec": {"ports": [{"name": "https", "port": 8443, "targetPort": 9443}]}});
    cluster.create("/api/v1/namespaces/default/services", service).await;
    let slice = json!({"metadata": {"name": "hooks-1", "labels": {"kubernetes.io/service-name": "hooks"}}, "addressType": "IPv4",
        "ports": [{"name": "https", "port": 9443}], "endpoints": [{"addresses": ["10.1.2.9"], "nodeName": access::NODE}]});
    cluster.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await;
    let attach = json!({"operations": ["CONNECT", "CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/attach", "configmaps"]});
    let client = json!({"caBundle": hooks.bundle, "service": {"namespace": "default", "name": "hooks", "port": 8443, "path": "/attach"}});
    let hook = hooks.hook("attach", "", attach, json!({"clientConfig": client}));
    cluster.create(VALIDATING, json!({"metadata": {"name": "attach"}, "webhooks": [hook]})).await;
    cluster.create(CONFIG_MAPS, config_map("m", json!({}))).await;
    assert_eq!(hooks.paths(), ["/attach"]);
    let dialed = cluster.dialer.dialed.lock().unwrap().clone();
    assert_eq!(dialed, [(access::NODE.to_owned(), "10.1.2.9:9443".parse().unwrap())]);
    let upgrade = access::As {
        headers: vec![("connection", "Upgrade".into()), ("upgrade", "websocket".into())],
        ..admin
    };
    let refused = cluster
        .get(&upgrade, "/api/v1/namespaces/default/pods/p/attach?container=c&stdin=true")
        .await
        .expect(400);
    assert_eq!(
        refused["message"],
        "admission webhook \"attach.example.com\" denied the request: attaching is not allowed"
    );
    let asked = hooks.asked().pop().unwrap();
    assert_eq!(
        asked["object"],
        json!({"kind": "PodAttachOptions", "apiVersion": "v1", "container": "c", "stdin": true})
    );
    assert_eq!((&asked["operation"], &asked["subResource"]), (&json!("CONNECT"), &json!("attach")));
    // Policies see them before webhooks do.
    let group = "/apis/admissionregistration.k8s.io/v1";
    let rule = rule(&["CONNECT"], "", "v1", &["pods/attach"]);
    let expression = "!has(object.stdin) && request.subResource == 'attach' && request.requestKind.kind == 'PodAttachOptions'";
    let spec =
        json!({"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": expression}]});
    let policies = format!("{group}/validatingadmissionpolicies");
    cluster.create(&policies, json!({"metadata": {"name": "attach"}, "spec": spec})).await;
    let spec = json!({"policyName": "attach", "validationActions": ["Deny"]});
    let bindings = format!("{group}/validatingadmissionpolicybindings");
    cluster.create(&bindings, json!({"metadata": {"name": "attach"}, "spec": spec})).await;
    let attach = async |stdin: bool| {
        let path = format!("/api/v1/namespaces/default/pods/p/attach?container=c&stdin={stdin}&stdout=true");
        cluster.get(&upgrade, &path).await
    };
    attach(true).await.expect(422);
    attach(false).await.expect(400);
    cluster.api.stop().await;
}

fn condition(name: &str, expression: &str) -> Value {
    json!({"name": name, "expression": expression})
}

#[tokio::test]
async fn conditions_choose_what_webhooks_are_asked() {
    let hooks = Webhooks::start(|path, _| match path.split('?').next().unwrap() {
        "/change" => patch(&json!([{"op": "add", "path": "/data/changed", "value": "yes"}])),
        _ => Reply::Review(json!({"allowed": false})),
    })
    .await;
    let server = start().await;
    let maps = || rule(&["CREATE", "UPDATE", "DELETE"], "", "v1", &["configmaps"]);
    let hook = |path: &str, more: Value| [hooks.hook("c", path, maps(), more)];
    let skip = condition("skip-me", "object.metadata.name != 'skip-me'");
    let given = json!({"matchConditions": [skip, condition("creates", "request.operation == 'CREATE'")]});
    configure(&server, MUTATING, "m", &hook("/change", given.clone())).await;
    let kept = server.get(&format!("{MUTATING}/m")).await.expect(200);
    assert_eq!(kept["webhooks"][0]["matchConditions"], given["matchConditions"]);
    let make = async |name: &str| server.post(CONFIG_MAPS, &config_map(name, json!({"k": "v"}))).await;
    assert_eq!(make("changed").await.expect(201)["data"], json!({"k": "v", "changed": "yes"}));
    assert_eq!(make("skip-me").await.expect(201)["data"], json!({"k": "v"}));
    assert_eq!(hooks.paths(), ["/change"]);
    // Another condition is in force at once.
    let other =
        json!({"webhooks": hook("/change", json!({"matchConditions": [condition("none", "false")]}))});
    server.patch(&format!("{MUTATING}/m"), "merge-patch+json", &other).await.expect(200);
    let kept = server.get(&format!("{MUTATING}/m")).await.expect(200);
    assert_eq!(kept["webhooks"][0]["matchConditions"], json!([condition("none", "false")]));
    assert_eq!(make("untouched").await.expect(201)["data"], json!({"k": "v"}));
    server.delete(&format!("{MUTATING}/m")).await.expect(200);
    // A validating one sees what mutation made, both objects, who asks, and what they may do.
    for (expression, asked) in [
        ("object.data.k == 'w' && oldObject.data.k == 'v'", true),
        ("object.data.k == 'v'", false),
        (
            "request.userInfo.username == 'tester' && request.name == 'changed' && !has(request.subResource)",
            true,
        ),
        ("'system:masters' in request.userInfo.groups && request.requestKind.kind == 'ConfigMap'", true),
        ("authorizer.requestResource.check('delete').allowed()", true),
        (
            "authorizer.serviceAccount('default', 'default').group('').resource('secrets').check('get').allowed()",
            false,
        ),
        ("request.dryRun == true && request.options.fieldManager == 'me'", true),
        ("namespaceObject == null", true),
        // One that is false counts, whatever the others are.
        ("object.nope == 1", false),
    ] {
        let mut conditions = vec![condition("c", expression)];
        if expression.contains("nope") {
            conditions.push(condition("d", "false"));
        }
        configure(&server, VALIDATING, "v", &hook("/deny", json!({"matchConditions": conditions}))).await;
        let path = format!("{CONFIG_MAPS}/changed?dryRun=All&fieldManager=me");
        let answer = server.patch(&path, "merge-patch+json", &json!({"data": {"k": "w"}})).await;
        assert_eq!(answer.code, if asked { 400 } else { 200 }, "{expression}: {}", answer.text());
        server.delete(&format!("{VALIDATING}/v")).await.expect(200);
    }
}

#[tokio::test]
async fn conditions_that_fail_follow_the_failure_policy() {
    let hooks = Webhooks::start(|_, _| Reply::Review(json!({"allowed": false}))).await;
    let server = start().await;
    // More than the budget, though no condition costs too much for one.
    let costly = "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]";
    let costly = (0..4).fold("true".to_owned(), |inner, n| format!("{costly}.all(x{n}, {inner})"));
    let costly: Vec<Value> = (0..60).map(|n| condition(&format!("c{n}"), &costly)).collect();
    let nope = "expression 'object.nope == 1' resulted in error: no such key: nope";
    let twice = json!([condition("a", "object.nope == 1"), condition("b", "object.nope == 1 ")]);
    for (conditions, why) in [
        (json!([condition("a", "object.nope == 1"), condition("b", "true")]), nope.to_owned()),
        (twice, format!("[{nope}, {}]", nope.replace("== 1'", "== 1 '"))),
        (
            costly.into(),
            "validation failed due to running out of cost budget, no further validation rules will be run"
                .to_owned(),
        ),
    ] {
        for (policy, code) in [("Fail", 403), ("Ignore", 201)] {
            for path in [MUTATING, VALIDATING] {
                let more = json!({"matchConditions": conditions, "failurePolicy": policy});
                let hook = hooks.hook("c", "/", rule(&["CREATE"], "", "v1", &["configmaps"]), more);
                configure(&server, path, "c", &[hook]).await;
                let dry = format!("{CONFIG_MAPS}?dryRun=All");
                let told = server.post(&dry, &config_map("m", json!({}))).await.expect(code);
                if code == 403 {
                    assert_eq!(told["message"], format!("configmaps \"m\" is forbidden: {why}"));
                }
                server.delete(&format!("{path}/c")).await.expect(200);
            }
        }
    }
    assert_eq!(hooks.asked(), Vec::<Value>::new());
}

#[tokio::test]
async fn wrong_conditions_are_refused() {
    let hooks = Webhooks::start(|_, _| allow()).await;
    let server = start().await;
    for path in [MUTATING, VALIDATING] {
        let refused = async |conditions: Value| {
            let more = json!({"matchConditions": conditions});
            let hook = hooks.hook("c", "/", rule(&["CREATE"], "", "v1", &["configmaps"]), more);
            let refused =
                server.post(path, &json!({"metadata": {"name": "c"}, "webhooks": [hook]})).await.expect(422);
            let causes = refused["details"]["causes"].as_array().unwrap().iter();
            causes.map(|c| format!("{}: {}", c["field"], c["message"]).replace('"', "")).collect::<Vec<_>>()
        };
        let at = "webhooks[0].matchConditions";
        let found = refused(json!([condition("a", "... [] bad expression")])).await;
        assert!(found[0].starts_with(&format!("{at}[0].expression: Invalid value: \\... [] bad expression\\: compilation failed: ERROR: <input>:1:1: Syntax error:")), "{found:?}");
        assert_eq!(
            refused(json!([condition("a", "1 + 1"), condition("a", "object.a"), condition("", " ")])).await,
            [
                format!("{at}[1].name: Duplicate value: \\a\\"),
                format!("{at}[2].name: Required value"),
                format!("{at}[2].expression: Required value"),
                format!("{at}[0].expression: Invalid value: \\1 + 1\\: must evaluate to bool but got int"),
                format!("{at}[1].expression: Invalid value: \\object.a\\: must evaluate to bool but got dyn"),
            ]
        );
        let found = refused(json!([condition("a", "params.a == 1 && variables.b == 1")])).await;
        for name in ["params", "variables"] {
            assert!(
                found[0].contains(&format!("undeclared reference to '{name}' (in container '')")),
                "{found:?}"
            );
        }
        let many: Vec<Value> = (0..65).map(|n| condition(&format!("c{n}"), "true")).collect();
        assert_eq!(refused(many.into()).await, [format!("{at}: Too many: 65: must have at most 64 items")]);
    }
}

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A definition with two versions, served by the time this returns.
async fn define(server: &Server, schema: Value) {
    let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema}});
    let definition = json!({"metadata": {"name": "gadgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "gadgets", "kind": "Gadget"}, "versions": [version("v1", true), version("v2", false)]}});
    server.post(CRDS, &definition).await.expect(201);
    let mut watch =
        server.watch(&format!("{CRDS}?watch=true&fieldSelector=metadata.name=gadgets.example.com")).await;
    let established = |object: &Value| {
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True")
    };
    while !established(&watch.next().await.unwrap()["object"]) {}
}

fn gadget(name: &str, version: &str, data: Value) -> Value {
    json!({"apiVersion": format!("example.com/{version}"), "kind": "Gadget", "metadata": {"name": name}, "data": data})
}

#[tokio::test]
async fn custom_resources_are_refused_and_changed() {
    let hooks = Webhooks::start(|path, request| {
        let data = &request["object"]["data"];
        match path.split('?').next().unwrap() {
            "/first" if data["start"] == "yes" => patch(&json!([{"op": "add", "path": "/data/stage-1", "value": "yes"}])),
            "/second" if data["stage-1"] == "yes" => patch(&json!([{"op": "add", "path": "/data/stage-2", "value": "yes"}])),
            "/deny" if data["bad"] == "yes" || request["operation"] == "DELETE" => {
                Reply::Review(json!({"allowed": false, "status": {"message": "the custom resource contains unwanted data"}}))
            }
            "/crd" => Reply::Review(json!({"allowed": false, "status": {"message": "no definitions"}})),
            _ => allow(),
        }
    })
    .await;
    let server = start().await;
    let text = json!({"type": "string"});
    let fields = json!({"start": text, "stage-1": text, "bad": text, "other": text});
    define(
        &server,
        json!({"type": "object", "properties": {"data": {"type": "object", "properties": fields}}}),
    )
    .await;
    let gadgets = "/apis/example.com/v1/namespaces/default/gadgets";
    let every = |operations: &[&str]| rule(operations, "example.com", "v1", &["gadgets"]);
    let changes = [
        hooks.hook("first", "/first", every(&["CREATE", "UPDATE"]), json!({})),
        hooks.hook("second", "/second", every(&["CREATE", "UPDATE"]), json!({})),
    ];
    configure(&server, MUTATING, "change", &changes).await;
    let made = server.post(gadgets, &gadget("a", "v1", json!({"start": "yes"}))).await.expect(201);
    // The second added a field that the schema does not have.
    assert_eq!(made["data"], json!({"start": "yes", "stage-1": "yes"}));
    // Another version is stored from now on; the webhook sees the one its rule names.
    let mut definition = server.get(&format!("{CRDS}/gadgets.example.com")).await.expect(200);
    for (at, storage) in [(0, false), (1, true)] {
        definition["spec"]["versions"][at]["storage"] = storage.into();
    }
    server.put(&format!("{CRDS}/gadgets.example.com"), &definition).await.expect(200);
    let newer = "/apis/example.com/v2/namespaces/default/gadgets";
    let patched = server
        .patch(&format!("{newer}/a"), "merge-patch+json", &json!({"data": {"other": "x"}}))
        .await
        .expect(200);
    assert_eq!((&patched["apiVersion"], &patched["data"]["other"]), (&json!("example.com/v2"), &json!("x")));
    assert_eq!(hooks.asked().pop().unwrap()["object"]["apiVersion"], "example.com/v1");
    let made = server.post(newer, &gadget("b", "v2", json!({"start": "yes"}))).await.expect(201);
    assert_eq!((&made["apiVersion"], &made["data"]["stage-1"]), (&json!("example.com/v2"), &json!("yes")));
    configure(
        &server,
        VALIDATING,
        "deny",
        &[hooks.hook("deny", "/deny", every(&["CREATE", "UPDATE", "DELETE"]), json!({}))],
    )
    .await;
    let denied = "admission webhook \"deny.example.com\" denied the request: the custom resource contains unwanted data";
    for refused in [
        server.post(gadgets, &gadget("c", "v1", json!({"bad": "yes"}))).await,
        server.patch(&format!("{gadgets}/a"), "merge-patch+json", &json!({"data": {"bad": "yes"}})).await,
        server.delete(&format!("{gadgets}/a")).await,
    ] {
        assert_eq!(refused.expect(400)["message"], denied);
    }
    let crds = rule(&["CREATE"], "apiextensions.k8s.io", "*", &["customresourcedefinitions"]);
    configure(&server, VALIDATING, "crds", &[hooks.hook("crds", "/crd", crds, json!({}))]).await;
    definition["metadata"] = json!({"name": "others.example.com"});
    definition["spec"]["names"] = json!({"plural": "others", "kind": "Other"});
    let refused = server.post(CRDS, &definition).await.expect(400);
    assert_eq!(
        refused["message"],
        "admission webhook \"crds.example.com\" denied the request: no definitions"
    );
}

#[tokio::test]
async fn configurations_change_and_go_with_immediate_effect() {
    let hooks = Webhooks::start(|path, _| match path.starts_with("/deny") {
        true => Reply::Review(json!({"allowed": false})),
        false => patch(&json!([{"op": "add", "path": "/data/added", "value": "yes"}])),
    })
    .await;
    let server = start().await;
    for (configurations, path) in [(MUTATING, "/add"), (VALIDATING, "/deny")] {
        let outcome = async |name: &str| {
            let made = server.post(CONFIG_MAPS, &config_map(name, json!({"a": "b"}))).await;
            made.code == 400 || made.json()["data"]["added"] == "yes"
        };
        let maps = |operation: &str| rule(&[operation], "", "v1", &["configmaps"]);
        let labelled = |name: String| {
            json!({"metadata": {"name": name, "labels": {"of": "test"}},
            "webhooks": [hooks.hook("h", path, maps("CREATE"), json!({}))]})
        };
        for n in 0..10 {
            server.post(configurations, &labelled(format!("c{n}"))).await.expect(201);
        }
        let listed = server.get(&format!("{configurations}?labelSelector=of%3Dtest")).await.expect(200);
        assert_eq!(listed["items"].as_array().unwrap().len(), 10);
        assert!(outcome("m1").await);
        server.delete(&format!("{configurations}?labelSelector=of%3Dtest")).await.expect(200);
        assert!(!outcome("m2").await);
        let mut one = server.post(configurations, &labelled("one".into())).await.expect(201);
        one["webhooks"][0]["rules"][0] = maps("UPDATE");
        server.put(&format!("{configurations}/one"), &one).await.expect(200);
        assert!(!outcome("m3").await);
        let back = json!([{"op": "replace", "path": "/webhooks/0/rules/0/operations", "value": ["CREATE"]}]);
        server.patch(&format!("{configurations}/one"), "json-patch+json", &back).await.expect(200);
        assert!(outcome("m4").await);
        server.delete(&format!("{configurations}/one")).await.expect(200);
        server.delete(CONFIG_MAPS).await.expect(200);
    }
    // Neither the configurations themselves are changed nor is their end prevented.
    let all = rule(&["*"], "admissionregistration.k8s.io", "*", &["*"]);
    configure(&server, VALIDATING, "guard", &[hooks.hook("guard", "/deny", all.clone(), json!({}))]).await;
    configure(&server, MUTATING, "change", &[hooks.hook("change", "/add", all, json!({}))]).await;
    for path in [format!("{VALIDATING}/guard"), format!("{MUTATING}/change")] {
        server.delete(&path).await.expect(200);
    }
}

#[tokio::test]
async fn pods_get_defaults_after_their_mutation() {
    let hooks = Webhooks::start(|_, _| {
        patch(&json!([{"op": "add", "path": "/spec/initContainers", "value": [{"name": "added", "image": "added"}]}]))
    })
    .await;
    let server = start().await;
    let pods = rule(&["CREATE"], "", "v1", &["pods"]);
    configure(&server, MUTATING, "pods", &[hooks.hook("pods", "/", pods, json!({}))]).await;
    let made = server.post(PODS, &pod("p")).await.expect(201);
    let added = &made["spec"]["initContainers"][0];
    assert_eq!((&added["name"], &added["terminationMessagePolicy"]), (&json!("added"), &json!("File")));
    // It came before the service account's credentials were given to all containers once more.
    assert_eq!(added["volumeMounts"][0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
}
