//! API servers behind this one, with one that is real: TLS that lets in only the front proxy, and
//! HTTP with streams and upgrades.

use crate::access::{As, Cluster, cluster};
use crate::tls::{self, Certificate};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const WARDLE: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1alpha1.wardle.example.com";
const ROOT: &str = "/apis/wardle.example.com/v1alpha1";
const FLUNDERS: &str = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";
const AGGREGATED: (&str, &str) =
    ("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json");

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The other server.
struct Extension {
    address: SocketAddr,
    bundle: String,
    /// Method and path of each request with its headers, as they came.
    seen: Arc<Mutex<Vec<(String, http::HeaderMap)>>>,
    /// Lets a watch send its second event.
    go_on: Arc<tokio::sync::Notify>,
}

fn json_reply(value: &Value) -> Reply {
    let reply = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    let (mut parts, body) = reply.into_parts();
    parts.headers.insert("content-type", "application/json".parse().unwrap());
    Response::from_parts(parts, body)
}

fn openapi(path: &str) -> Value {
    if path == "/openapi/v2" {
        return json!({"swagger": "2.0", "paths": {format!("{ROOT}/flunders"): {"get": {}}, "/version": {}},
            "definitions": {"example.Flunder": {"type": "object"}}});
    }
    json!({"paths": {"apis/wardle.example.com/v1alpha1":
        {"serverRelativeURL": format!("/openapi/v3{ROOT}?hash=1")}, "version": {"serverRelativeURL": "/x"}}})
}

impl Extension {
    async fn start(cluster: &Cluster) -> Self {
        // Who may say for whom it asks: as the ConfigMap for such servers has it.
        let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
        let map = cluster.get(&cluster.admin(), path).await.expect(200);
        let ca = map["data"]["requestheader-client-ca-file"].as_str().unwrap();
        assert_eq!(map["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
        assert_eq!(map["data"]["client-ca-file"], cluster.pki.ca_pem());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), skeg_base::tls::provider());
        let certificate = Certificate::of(&["api.default.svc"]);
        let (bundle, seen) =
            (certificate.bundle.clone(), Arc::<Mutex<Vec<(String, http::HeaderMap)>>>::default());
        let go_on = Arc::<tokio::sync::Notify>::default();
        let (told, gate) = (seen.clone(), go_on.clone());
        let address = tls::listen(certificate.server(Some(verifier.build().unwrap())), move |stream| {
            let (seen, go_on) = (told.clone(), gate.clone());
            let serve = service_fn(move |request: Request<Incoming>| {
                let (seen, go_on) = (seen.clone(), go_on.clone());
                async move { Ok::<_, Infallible>(answer(request, &seen, go_on)) }
            });
            async move {
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), serve).with_upgrades().await;
            }
        })
        .await;
        let extension = Extension { address, bundle, seen, go_on };
        *cluster.dialer.to_pods.lock().unwrap() = Some(extension.address);
        extension
    }

    /// The last request below the flunders.
    fn last(&self) -> (String, http::HeaderMap) {
        let seen = self.seen.lock().unwrap();
        seen.iter().rev().find(|(what, _)| what.contains("/flunders")).unwrap().clone()
    }
}

fn answer(
    mut request: Request<Incoming>,
    seen: &Mutex<Vec<(String, http::HeaderMap)>>,
    go_on: Arc<tokio::sync::Notify>,
) -> Reply {
    let what = format!("{} {}", request.method(), request.uri());
    seen.lock().unwrap().push((what, request.headers().clone()));
    let path = request.uri().path().to_owned();
    if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
        let events = futures_util::stream::unfold(0, move |n| {
            let go_on = go_on.clone();
            async move {
                if n == 1 {
                    go_on.notified().await;
                }
                let event = Bytes::from(format!("{{\"event\":{n}}}\n"));
                (n < 2).then(|| (Ok(Frame::data(event)), n + 1))
            }
        });
        return Response::new(StreamBody::new(events).boxed_unsync());
    }
    if request.headers().contains_key("upgrade") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            tls::echo(&mut TokioIo::new(upgrade.await.unwrap())).await;
        });
        let mut reply = Response::new(Full::default().boxed_unsync());
        *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        reply.headers_mut().insert("connection", "Upgrade".parse().unwrap());
        reply.headers_mut().insert("upgrade", "own".parse().unwrap());
        return reply;
    }
    match path.as_str() {
        ROOT => json_reply(
            &json!({"kind": "APIResourceList", "groupVersion": "wardle.example.com/v1alpha1", "resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get", "list"]}]}),
        ),
        "/openapi/v2" | "/openapi/v3" => json_reply(&openapi(&path)),
        away if away.ends_with("/away") => {
            let mut reply = Response::new(Full::default().boxed_unsync());
            *reply.status_mut() = StatusCode::FOUND;
            reply.headers_mut().insert("location", "https://127.0.0.1:1/".parse().unwrap());
            reply
        }
        _ => json_reply(&json!({"kind": "FlunderList", "path": path})),
    }
}

async fn register(cluster: &Cluster, more: Value) {
    let mut spec = json!({"group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": 2000,
        "versionPriority": 200, "service": {"name": "api", "namespace": "default"}});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    let object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1alpha1.wardle.example.com"}, "spec": spec});
    let answer = cluster.send(&cluster.admin(), "POST", API_SERVICES, object).await;
    assert!(answer.warnings().is_empty(), "{:?}", answer.warnings());
    answer.expect(201);
}

async fn service(cluster: &Cluster) {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "api"},
        "spec": {"ports": [{"port": 443, "targetPort": 8443}]}});
    cluster.create("/api/v1/namespaces/default/services", service).await;
}

async fn endpoints(cluster: &Cluster, ready: bool) {
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "api", "labels": {"kubernetes.io/service-name": "api"}},
        "endpoints": [{"addresses": ["10.1.2.3"], "conditions": {"ready": ready}}], "ports": [{"name": "", "port": 8443}]});
    cluster.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await;
}

/// Waits until an answer is as wanted.
pub async fn until(
    cluster: &Cluster,
    path: &str,
    headers: &[(&'static str, &str)],
    wanted: impl Fn(u16, &Value) -> bool,
) -> Value {
    let mut who = cluster.admin();
    who.headers.extend(headers.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let mut last = Value::Null;
    let look = async {
        loop {
            let answer = cluster.get(&who, path).await;
            last = serde_json::from_slice(&answer.bytes).unwrap_or_default();
            if wanted(answer.code, &last) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(20), look).await.is_err() {
        panic!("{path}: {last}");
    }
    last
}

/// Deletes what is made anew, and waits for it.
pub async fn comes_back(cluster: &Cluster, path: &str) -> Value {
    let before = cluster.get(&cluster.admin(), path).await.expect(200);
    cluster.send(&cluster.admin(), "DELETE", path, Value::Null).await.expect(200);
    let uid = &before["metadata"]["uid"];
    until(cluster, path, &[], |code, now| code == 200 && now["metadata"]["uid"] != *uid).await
}

/// Waits for the condition's status and reason, and gives its message.
async fn condition(cluster: &Cluster, status: &str, reason: &str) -> String {
    let object = until(cluster, WARDLE, &[], |_, object| {
        let condition = &object["status"]["conditions"][0];
        condition["type"] == "Available" && condition["status"] == status && condition["reason"] == reason
    })
    .await;
    object["status"]["conditions"][0]["message"].as_str().unwrap().to_owned()
}

fn group<'a>(list: &'a Value, field: &str, name: &str) -> Option<&'a Value> {
    list[field]
        .as_array()
        .unwrap()
        .iter()
        .find(|group| group["name"] == name || group["metadata"]["name"] == name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_is_available_step_by_step() {
    let cluster = cluster().await;
    let extension = Extension::start(&cluster).await;
    register(&cluster, json!({"caBundle": extension.bundle})).await;
    assert_eq!(
        condition(&cluster, "False", "ServiceNotFound").await,
        "service/api in \"default\" is not present"
    );
    let refused = cluster.get(&cluster.admin(), FLUNDERS).await;
    assert_eq!((refused.code, refused.text().as_str()), (503, "service unavailable\n"));
    service(&cluster).await;
    assert_eq!(
        condition(&cluster, "False", "EndpointsNotFound").await,
        "cannot find endpointslices for service/api in \"default\""
    );
    endpoints(&cluster, false).await;
    assert_eq!(
        condition(&cluster, "False", "MissingEndpoints").await,
        "endpointslices for service/api in \"default\" have no addresses with port name \"\""
    );
    *cluster.dialer.to_pods.lock().unwrap() = None;
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/api";
    cluster.send(&cluster.admin(), "DELETE", slices, Value::Null).await.expect(200);
    endpoints(&cluster, true).await;
    let why = condition(&cluster, "False", "FailedDiscoveryCheck").await;
    assert!(
        why.starts_with("failing or missing response from https://api.default.svc:443/apis/wardle"),
        "{why}"
    );
    *cluster.dialer.to_pods.lock().unwrap() = Some(extension.address);
    assert_eq!(condition(&cluster, "True", "Passed").await, "all checks passed");
    let got = cluster.get(&cluster.admin(), FLUNDERS).await.expect(200);
    assert_eq!(got["kind"], "FlunderList");
    // The group is known by its resources, until it cannot be reached.
    let fresh = |freshness: &'static str| {
        move |_: u16, list: &Value| {
            group(list, "items", "wardle.example.com").is_some_and(|group| {
                let version = &group["versions"][0];
                version["freshness"] == freshness && version["resources"][0]["resource"] == "flunders"
            })
        }
    };
    until(&cluster, "/apis", &[AGGREGATED], fresh("Current")).await;
    cluster.send(&cluster.admin(), "DELETE", slices, Value::Null).await.expect(200);
    condition(&cluster, "False", "EndpointsNotFound").await;
    until(&cluster, "/apis", &[AGGREGATED], fresh("Stale")).await;
    assert_eq!(cluster.get(&cluster.admin(), FLUNDERS).await.code, 503);
    cluster.api.stop().await;
}

/// A cluster with another server that is available.
async fn with_extension() -> (Cluster, Extension) {
    let cluster = cluster().await;
    let extension = Extension::start(&cluster).await;
    service(&cluster).await;
    endpoints(&cluster, true).await;
    register(&cluster, json!({"caBundle": extension.bundle})).await;
    condition(&cluster, "True", "Passed").await;
    (cluster, extension)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_authorized_and_passed_on_with_who_asks() {
    let (cluster, extension) = with_extension().await;
    let mut admin = cluster.admin();
    for (name, value) in [
        ("x-remote-user", "system:forged"),
        ("x-remote-group", "system:forged"),
        ("x-remote-extra-forged", "1"),
        ("x-kept", "yes"),
    ] {
        admin.headers.push((name, value.to_owned()));
    }
    let path = format!("{FLUNDERS}?limit=5&labelSelector=a%3Db");
    cluster.send(&admin, "POST", &path, json!({"kind": "Flunder"})).await.expect(200);
    let (what, headers) = extension.last();
    assert_eq!(what, format!("POST {path}"));
    let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(all("x-remote-user"), ["kubernetes-admin"]);
    assert_eq!(all("x-remote-group"), ["system:masters", "system:authenticated"]);
    assert!(all("x-remote-extra-forged").is_empty(), "{headers:?}");
    assert!(
        headers
            .keys()
            .any(|name| name.as_str().starts_with("x-remote-extra-authentication.kubernetes.io%2f")),
        "{headers:?}"
    );
    assert_eq!((all("host"), all("x-kept")), (vec!["api.default.svc:443"], vec!["yes"]));
    // Acting as somebody is settled here.
    admin.headers.push(("impersonate-user", "jane".to_owned()));
    admin.headers.push(("impersonate-group", "system:masters".to_owned()));
    cluster.get(&admin, FLUNDERS).await.expect(200);
    let (_, headers) = extension.last();
    assert_eq!(headers["x-remote-user"], "jane");
    assert!(!headers.contains_key("impersonate-user") && !headers.contains_key("authorization"));
    // Nobody is sent elsewhere with what proves who they are.
    let away = cluster.get(&admin, &format!("{FLUNDERS}/away")).await;
    assert!(away.code == 502 && !away.headers.contains_key("location"), "{}", away.text());
    // Nobody passes who may not.
    let before = extension.seen.lock().unwrap().len();
    let refused = cluster.get(&As::default(), FLUNDERS).await.expect(403);
    assert!(refused["message"].as_str().unwrap().contains("cannot list resource \"flunders\""), "{refused}");
    let passed = extension.seen.lock().unwrap()[before..].iter().any(|(what, _)| what.contains("flunders"));
    assert!(!passed);
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_and_upgrades_pass_through() {
    let (cluster, extension) = with_extension().await;
    let mut stream = cluster.connect().await;
    let request = format!("GET {FLUNDERS}?watch=true HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut got = String::new();
    let mut bytes = [0; 1024];
    while !got.contains("{\"event\":0}") {
        let n = stream.read(&mut bytes).await.unwrap();
        assert!(n > 0, "{got}");
        got.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
    assert!(!got.contains("{\"event\":1}"));
    extension.go_on.notify_one();
    while !got.contains("{\"event\":1}") {
        let n = stream.read(&mut bytes).await.unwrap();
        assert!(n > 0, "{got}");
        got.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
    let mut stream = cluster.connect().await;
    tls::upgrade(&mut stream, &format!("{FLUNDERS}/a/tunnel"), "upgrade: own\r\n", b"ping").await;
    assert_eq!(extension.last().1["x-remote-user"], "kubernetes-admin");
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_and_openapi_have_the_other_servers_group() {
    let (cluster, _extension) = with_extension().await;
    let groups =
        until(&cluster, "/apis", &[], |_, list| group(list, "groups", "wardle.example.com").is_some()).await;
    // It stands behind built-in groups, by its priority.
    let names: Vec<&str> =
        groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert_eq!((names[0], names.last()), ("apiregistration.k8s.io", Some(&"wardle.example.com")));
    let own = cluster.get(&cluster.admin(), "/apis/wardle.example.com").await.expect(200);
    assert_eq!(own["preferredVersion"]["groupVersion"], "wardle.example.com/v1alpha1");
    let resources = cluster.get(&cluster.admin(), ROOT).await.expect(200);
    assert_eq!(resources["resources"][0]["name"], "flunders");
    let v3 = "apis/wardle.example.com/v1alpha1";
    let index = until(&cluster, "/openapi/v3", &[], |_, index| index["paths"].get(v3).is_some()).await;
    assert_eq!(index["paths"][v3]["serverRelativeURL"], format!("/openapi/v3{ROOT}?hash=1"));
    assert_ne!(index["paths"]["version"]["serverRelativeURL"], "/x", "only its own group is taken from it");
    let document = cluster.get(&cluster.admin(), &format!("/openapi/v3{ROOT}?hash=1")).await.expect(200);
    assert_eq!(document["path"], format!("/openapi/v3{ROOT}"));
    let v2 = cluster.get(&cluster.admin(), "/openapi/v2").await.expect(200);
    assert!(v2["paths"].get(format!("{ROOT}/flunders")).is_some());
    assert!(v2["paths"].get("/apis/apps/v1/deployments").is_some());
    assert_eq!(v2["definitions"]["example.Flunder"]["type"], "object");
    // A change of priorities changes the order at once.
    let higher = json!({"spec": {"groupPriorityMinimum": 17_900}});
    let mut admin = cluster.admin();
    admin.headers.push(("content-type", "application/merge-patch+json".into()));
    cluster.send(&admin, "PATCH", WARDLE, higher).await.expect(200);
    let groups = cluster.get(&cluster.admin(), "/apis").await.expect(200);
    assert_eq!(groups["groups"][1]["name"], "wardle.example.com");
    cluster.send(&cluster.admin(), "DELETE", WARDLE, Value::Null).await.expect(200);
    let groups = cluster.get(&cluster.admin(), "/apis").await.expect(200);
    assert!(group(&groups, "groups", "wardle.example.com").is_none());
    assert_eq!(cluster.get(&cluster.admin(), FLUNDERS).await.code, 404);
    let index = cluster.get(&cluster.admin(), "/openapi/v3").await.expect(200);
    assert!(index["paths"].get(v3).is_none());
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_server_of_the_ca_bundle_is_asked() {
    let cluster = cluster().await;
    let extension = Extension::start(&cluster).await;
    service(&cluster).await;
    endpoints(&cluster, true).await;
    register(&cluster, json!({"caBundle": STANDARD.encode(cluster.pki.ca_pem())})).await;
    // Whether it answers is asked of anyone; what it is told and says is not.
    condition(&cluster, "True", "Passed").await;
    let refused = cluster.get(&cluster.admin(), FLUNDERS).await;
    assert_eq!(refused.code, 503);
    assert!(refused.text().starts_with("error trying to reach service: "), "{}", refused.text());
    let list = until(&cluster, "/apis", &[AGGREGATED], |_, list| {
        group(list, "items", "wardle.example.com").is_some()
    })
    .await;
    let version = &group(&list, "items", "wardle.example.com").unwrap()["versions"][0];
    assert_eq!((&version["freshness"], version.get("resources")), (&json!("Stale"), None));
    cluster.send(&cluster.admin(), "DELETE", WARDLE, Value::Null).await.expect(200);
    register(&cluster, json!({"insecureSkipTLSVerify": true})).await;
    condition(&cluster, "True", "Passed").await;
    cluster.get(&cluster.admin(), FLUNDERS).await.expect(200);
    drop(extension);
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_of_this_server_have_their_api_services() {
    let cluster = cluster().await;
    let list = cluster.get(&cluster.admin(), API_SERVICES).await.expect(200);
    for object in list["items"].as_array().unwrap() {
        let condition = &object["status"]["conditions"][0];
        assert_eq!(
            (&condition["reason"], &condition["status"]),
            (&json!("Local"), &json!("True")),
            "{object}"
        );
        assert!(condition["lastTransitionTime"].is_string());
        assert_eq!(object["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    }
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    cluster.create(crds, crd).await;
    let custom = format!("{API_SERVICES}/v1.example.com");
    let made = until(&cluster, &custom, &[], |code, _| code == 200).await;
    assert_eq!(
        (&made["spec"]["groupPriorityMinimum"], &made["spec"]["versionPriority"]),
        (&json!(1000), &json!(100))
    );
    assert_eq!(made["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
    // What is deleted or changed comes back; what was taken over stays as it is.
    for path in [&custom, &format!("{API_SERVICES}/v1.apps")] {
        comes_back(&cluster, path).await;
    }
    let mut admin = cluster.admin();
    admin.headers.push(("content-type", "application/merge-patch+json".into()));
    let labels = json!({"metadata": {"labels": null}});
    cluster.send(&admin, "PATCH", &format!("{API_SERVICES}/v1.batch"), labels).await.expect(200);
    let spec = json!({"spec": {"versionPriority": 9}});
    for (name, stays) in [("v1.batch", true), ("v1.apps", false)] {
        let path = format!("{API_SERVICES}/{name}");
        cluster.send(&admin, "PATCH", &path, spec.clone()).await.expect(200);
        let expected = if stays { 9 } else { 15 };
        until(&cluster, &path, &[], |_, now| now["spec"]["versionPriority"] == expected).await;
    }
    cluster
        .send(&cluster.admin(), "DELETE", &format!("{crds}/things.example.com"), Value::Null)
        .await
        .expect(200);
    until(&cluster, &custom, &[], |code, _| code == 404).await;
    let batch = cluster.get(&cluster.admin(), &format!("{API_SERVICES}/v1.batch")).await.expect(200);
    assert_eq!(batch["spec"]["versionPriority"], 9);
    // One of a user's that this server is to serve is told so.
    let mine = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v7.mine.example.com"},
        "spec": {"group": "mine.example.com", "version": "v7", "groupPriorityMinimum": 10, "versionPriority": 10}});
    cluster.create(API_SERVICES, mine).await;
    until(&cluster, &format!("{API_SERVICES}/v7.mine.example.com"), &[], |_, now| {
        now["status"]["conditions"][0]["reason"] == "Local"
    })
    .await;
    cluster.api.stop().await;
}
