//! The assembled server over TLS: who gets in, who may what, and what a fresh cluster has.

use crate::aggregation::comes_back;
use crate::harness::Answer;
use crate::protobuf::{PROTOBUF, decode, encode};
use crate::tls;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use k8s_pb::api::apidiscovery::v2::APIGroupDiscoveryList;
use k8s_pb::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_pb::apimachinery::pkg::apis::meta::v1 as pb_meta;
use pb_meta::{APIGroupList, APIResourceList, APIVersions};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use skeg_api::Kinds;
use skeg_apiserver::assembly::{self, Assembled, Edge, Setup};
use skeg_apiserver::bootstrap;
use skeg_apiserver::pki::{self, Pair, Pki};
use skeg_apiserver::proxy::{Connection, Dialer, connect};
use skeg_apiserver::{ApiServer, Identity};
use skeg_base::{Clock, Random};
use skeg_store::{Memory, Store};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub const NODE: &str = "node-1";

/// Connects to the pretend node and what listens in its Pods, once there are any.
#[derive(Default)]
pub struct ToNode {
    to_node: Mutex<Option<SocketAddr>>,
    pub to_pods: Mutex<Option<SocketAddr>>,
    /// Which addresses were asked for.
    pub dialed: Mutex<Vec<(String, SocketAddr)>>,
}

impl Dialer for ToNode {
    fn dial<'a>(&'a self, node: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        let address = self.to_node.lock().unwrap().filter(|_| node == NODE);
        Box::pin(async move { connect(address.ok_or(io::ErrorKind::NotConnected)?).await })
    }

    fn dial_address<'a>(
        &'a self,
        node: &'a str,
        address: SocketAddr,
    ) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        self.dialed.lock().unwrap().push((node.to_owned(), address));
        let address = *self.to_pods.lock().unwrap();
        Box::pin(async move { connect(address.ok_or(io::ErrorKind::NotConnected)?).await })
    }
}

pub struct Cluster {
    dir: Arc<tempfile::TempDir>,
    pub pki: Arc<Pki>,
    pub api: Arc<ApiServer>,
    listening: skeg_apiserver::net::Listening,
    pub dialer: Arc<ToNode>,
    admin: Pair,
    written: usize,
}

fn settings() -> bootstrap::Settings {
    let endpoints = vec!["10.0.0.1".parse().unwrap()];
    let service_range = "10.96.0.0/16".parse().unwrap();
    bootstrap::Settings { service_range, service_ip: "10.96.0.1".parse().unwrap(), endpoints, port: 6443 }
}

async fn start(store: Arc<dyn Store>) -> Cluster {
    start_in(Arc::new(tempfile::tempdir().unwrap()), store).await
}

/// With the certificates of a directory.
async fn start_in(dir: Arc<tempfile::TempDir>, store: Arc<dyn Store>) -> Cluster {
    let pki = Arc::new(Pki::open(dir.path(), Clock::system()).unwrap());
    let dialer = Arc::new(ToNode::default());
    let setup = Setup {
        edge: Some(Edge { pki: pki.clone(), dialer: dialer.clone() }),
        cluster_domain: "cluster.local".into(),
        admission: Default::default(),
        bootstrap: settings(),
    };
    let kinds = Arc::new(Kinds::new(skeg_api::builtin::builtin()));
    let opened = assembly::open(setup, kinds, store, Clock::system(), Random::seeded(1)).await.unwrap();
    let Assembled { server, written, .. } = opened;
    let sans = pki::apiserver_sans("10.96.0.1", "cluster.local", &[]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listening = server.listen(listener, Arc::new(pki.server_config(sans).unwrap())).unwrap();
    let admin = pki.issue_client("kubernetes-admin", &["system:masters"]).unwrap();
    Cluster { dir, pki, api: server, listening, dialer, admin, written }
}

/// Credentials of one request.
#[derive(Clone, Default)]
pub struct As {
    pub certificate: Option<Pair>,
    pub headers: Vec<(&'static str, String)>,
}

fn token(token: &str) -> As {
    As { certificate: None, headers: vec![("authorization", format!("Bearer {token}"))] }
}

impl Cluster {
    pub fn admin(&self) -> As {
        As { certificate: Some(self.admin.clone()), headers: vec![] }
    }

    pub async fn send(&self, who: &As, method: &str, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        self.send_bytes(who, method, path, body).await
    }

    /// A connection of the administrator.
    pub async fn connect(&self) -> TlsStream<TcpStream> {
        self.connect_as(&self.admin()).await
    }

    async fn connect_as(&self, who: &As) -> TlsStream<TcpStream> {
        let tls = TlsConnector::from(Arc::new(self.pki.client_config(who.certificate.as_ref()).unwrap()));
        let stream = TcpStream::connect(self.listening.address).await.unwrap();
        tls.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
    }

    async fn send_bytes(&self, who: &As, method: &str, path: &str, body: Bytes) -> Answer {
        let stream = self.connect_as(who).await;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
        request = request.header("host", "localhost");
        if !who.headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in &who.headers {
            request = request.header(*name, value);
        }
        let response = sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        connection.abort();
        Answer { code: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    pub async fn get(&self, who: &As, path: &str) -> Answer {
        self.send(who, "GET", path, Value::Null).await
    }

    pub async fn create(&self, path: &str, body: Value) -> Value {
        self.send(&self.admin(), "POST", path, body).await.expect(201)
    }

    pub async fn service_account(&self, name: &str) {
        self.create(
            "/api/v1/namespaces/default/serviceaccounts",
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}),
        )
        .await;
    }

    pub async fn token_of(&self, name: &str, spec: Value) -> Value {
        let path = format!("/api/v1/namespaces/default/serviceaccounts/{name}/token");
        self.create(
            &path,
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}),
        )
        .await
    }
}

pub async fn cluster() -> Cluster {
    start(Arc::new(Memory::new())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_writes_nothing() {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let first = start(store.clone()).await;
    assert_eq!(first.written, 186, "default objects");
    let service =
        first.get(&first.admin(), "/api/v1/namespaces/default/services/kubernetes").await.expect(200);
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    assert_eq!(service["metadata"]["managedFields"][0]["manager"], "kube-apiserver");
    let revision = store.revision();
    first.api.stop().await;
    let second = start_in(first.dir.clone(), store.clone()).await;
    assert_eq!((second.written, store.revision()), (0, revision));
    // What users change stays; what is missing comes back.
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:kube-dns";
    let mut role = second.get(&second.admin(), path).await.expect(200);
    role["rules"] = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    second.send(&second.admin(), "PUT", path, role).await.expect(200);
    let gone = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/system:kube-dns";
    second.send(&second.admin(), "DELETE", gone, Value::Null).await.expect(200);
    second.api.stop().await;
    let third = start_in(first.dir.clone(), store.clone()).await;
    assert_eq!(third.written, 2);
    let role = third.get(&third.admin(), path).await.expect(200);
    assert_eq!(role["rules"].as_array().unwrap().len(), 5, "{role}");
    assert_eq!(role["rules"][0]["resources"], json!(["pods"]));
    third.get(&third.admin(), gone).await.expect(200);
    third.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_good_credentials_get_in() {
    let cluster = cluster().await;
    let namespaces = "/api/v1/namespaces";
    cluster.get(&cluster.admin(), namespaces).await.expect(200);
    let anonymous = As::default();
    let refused = cluster.get(&anonymous, namespaces).await.expect(403);
    assert_eq!(
        refused["message"],
        "namespaces is forbidden: User \"system:anonymous\" cannot list resource \"namespaces\" in API group \"\" at the \
         cluster scope"
    );
    for open in ["/healthz", "/livez", "/readyz", "/readyz?verbose"] {
        let answer = cluster.get(&anonymous, open).await;
        assert_eq!(answer.code, 200, "{open}: {}", answer.text());
    }
    assert_eq!(cluster.get(&anonymous, "/version").await.expect(200)["minor"], "36");
    assert_eq!(cluster.get(&anonymous, "/metrics").await.code, 403);
    let dir = tempfile::tempdir().unwrap();
    let foreign =
        Pki::open(dir.path(), Clock::system()).unwrap().issue_client("x", &["system:masters"]).unwrap();
    let foreign = As { certificate: Some(foreign), headers: vec![] };
    cluster.get(&foreign, namespaces).await.expect(401);
    cluster.get(&token("nonsense"), "/version").await.expect(401);
    // Nothing that a client writes into headers makes it somebody.
    for name in ["x-remote-user", "x-remote-group", "x-skeg-identity", "x-forwarded-user", "remote-user"] {
        let forged = As { certificate: None, headers: vec![(name, "system:masters".to_owned())] };
        assert_eq!(cluster.get(&forged, namespaces).await.code, 403, "{name}");
    }
    let forged = As { certificate: None, headers: vec![("impersonate-user", "system:apiserver".to_owned())] };
    cluster.get(&forged, namespaces).await.expect(403);
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_live_as_long_as_their_account() {
    let cluster = cluster().await;
    cluster.service_account("app").await;
    let request = cluster.token_of("app", json!({"expirationSeconds": 600})).await;
    let bearer = token(request["status"]["token"].as_str().unwrap());
    let pods = "/api/v1/namespaces/default/pods";
    let refused = cluster.get(&bearer, pods).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods is forbidden: User \"system:serviceaccount:default:app\" cannot list resource \"pods\" in API group \"\" in \
         the namespace \"default\""
    );
    cluster
        .create(
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
                "subjects": [{"kind": "ServiceAccount", "name": "app", "namespace": "default"}]}),
        )
        .await;
    cluster.get(&bearer, pods).await.expect(200);
    let me = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let me = cluster
        .send(&bearer, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", me)
        .await
        .expect(201);
    assert_eq!(me["status"]["userInfo"]["username"], "system:serviceaccount:default:app");
    let can = |verb: &str| {
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"namespace": "default", "verb": verb, "resource": "pods"}}})
    };
    for (verb, expected) in [("get", true), ("delete", false)] {
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let review = cluster.send(&bearer, "POST", path, can(verb)).await.expect(201);
        assert_eq!(review["status"]["allowed"], expected, "{verb}");
    }
    let other = cluster.token_of("app", json!({"audiences": ["vault"]})).await;
    let other = other["status"]["token"].as_str().unwrap();
    cluster.get(&token(other), pods).await.expect(401);
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": other, "audiences": ["vault", "x"]}});
    let review = cluster.create("/apis/authentication.k8s.io/v1/tokenreviews", review).await;
    assert_eq!(
        (&review["status"]["authenticated"], &review["status"]["audiences"]),
        (&json!(true), &json!(["vault"]))
    );
    let path = "/api/v1/namespaces/default/serviceaccounts/app/token";
    let short = json!({"spec": {"expirationSeconds": 10}});
    cluster.send(&cluster.admin(), "POST", path, short).await.expect(422);
    let account = "/api/v1/namespaces/default/serviceaccounts/app";
    cluster.send(&cluster.admin(), "DELETE", account, Value::Null).await.expect(200);
    cluster.get(&bearer, pods).await.expect(401);
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_reviews_answer_for_others_and_oneself() {
    let cluster = cluster().await;
    let bob = As { certificate: Some(cluster.pki.issue_client("bob", &[]).unwrap()), headers: vec![] };
    let ask = async |who: &As, kind: &str, path: &str, spec: Value| {
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec});
        cluster.send(who, "POST", &format!("/apis/authorization.k8s.io/v1/{path}"), review).await
    };
    let pods = json!({"namespace": "default", "verb": "list", "resource": "pods"});
    let health = json!({"path": "/healthz", "verb": "get"});
    let metrics = json!({"path": "/metrics", "verb": "get"});
    let subjects = [
        (json!({"user": "bob", "resourceAttributes": pods}), false),
        (json!({"user": "bob", "groups": ["system:masters"], "resourceAttributes": pods}), true),
        (json!({"user": "bob", "groups": ["system:authenticated"], "nonResourceAttributes": health}), true),
        (json!({"user": "bob", "groups": ["system:authenticated"], "nonResourceAttributes": metrics}), false),
        (json!({"user": "system:kube-scheduler", "resourceAttributes": pods}), true),
    ];
    for (spec, allowed) in subjects {
        let review = ask(&cluster.admin(), "SubjectAccessReview", "subjectaccessreviews", spec.clone()).await;
        assert_eq!(review.expect(201)["status"]["allowed"], allowed, "{spec}");
        // Asking about others is not for everyone.
        ask(&bob, "SubjectAccessReview", "subjectaccessreviews", spec).await.expect(403);
    }
    let own = json!({"resourceAttributes": pods});
    for (who, allowed) in [(&bob, false), (&cluster.admin(), true)] {
        let review = ask(who, "SelfSubjectAccessReview", "selfsubjectaccessreviews", own.clone()).await;
        assert_eq!(review.expect(201)["status"]["allowed"], allowed);
    }
    for query in ["fieldValidation=Some", "dryRun=Some"] {
        let path = format!("selfsubjectaccessreviews?{query}");
        ask(&bob, "SelfSubjectAccessReview", &path, own.clone()).await.expect(422);
    }
    let rules = json!({"namespace": "default"});
    let rules = ask(&bob, "SelfSubjectRulesReview", "selfsubjectrulesreviews", rules).await.expect(201);
    let may = rules["status"]["resourceRules"].to_string();
    assert!(may.contains("selfsubjectaccessreviews") && !may.contains("pods"), "{may}");
    cluster.api.stop().await;
}

/// Who runs in a Pod can check a token by what the server publishes of its issuer, as others can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_issuer_of_tokens_is_discovered() {
    let cluster = cluster().await;
    cluster.service_account("app").await;
    let signed = cluster.token_of("app", json!({})).await["status"]["token"].as_str().unwrap().to_owned();
    let account = token(&signed);
    let discovery = "/.well-known/openid-configuration";
    for path in [discovery, "/openid/v1/jwks"] {
        cluster.get(&As::default(), path).await.expect(403);
    }
    let answer = cluster.get(&account, discovery).await;
    assert_eq!(answer.headers["content-type"], "application/json");
    let found = answer.expect(200);
    let issuer = found["issuer"].as_str().unwrap();
    assert_eq!(issuer, "https://kubernetes.default.svc.cluster.local");
    let path = found["jwks_uri"].as_str().unwrap().strip_prefix(issuer).unwrap();
    let answer = cluster.get(&account, path).await;
    assert_eq!(answer.headers["content-type"], "application/jwk-set+json");
    let keys = answer.expect(200);
    let read = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let mut parts = signed.split('.');
    let [head, claims, signature] = [(); 3].map(|()| parts.next().unwrap());
    let header: Value = serde_json::from_slice(&read(head)).unwrap();
    let mut all = keys["keys"].as_array().unwrap().iter();
    let key = all.find(|key| key["kid"] == header["kid"]).expect("the key that signed it");
    assert_eq!((&key["kty"], &key["crv"], &key["alg"]), (&json!("EC"), &json!("P-256"), &header["alg"]));
    assert_eq!(found["id_token_signing_alg_values_supported"], json!([header["alg"]]));
    let coordinate = |name: &str| read(key[name].as_str().unwrap());
    let point = [vec![4], coordinate("x"), coordinate("y")].concat();
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    key.verify(format!("{head}.{claims}").as_bytes(), &read(signature)).expect("its signature");
    key.verify(format!("{head}.{claims}x").as_bytes(), &read(signature)).expect_err("another text's");
    let claims: Value = serde_json::from_slice(&read(claims)).unwrap();
    assert_eq!(
        (&claims["iss"], &claims["sub"]),
        (&found["issuer"], &json!("system:serviceaccount:default:app"))
    );
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reviews_tell_who_somebody_is_and_what_they_may() {
    let cluster = cluster().await;
    let admin = cluster.admin();
    cluster.service_account("app").await;
    let made = cluster.token_of("app", json!({})).await;
    let signed = made["status"]["token"].as_str().unwrap();
    assert!(!signed.is_empty());
    let group = "/apis/authentication.k8s.io/v1";
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": signed}});
    let review = cluster.create(&format!("{group}/tokenreviews"), review).await;
    let status = &review["status"];
    assert_eq!((&status["authenticated"], status.get("error")), (&json!(true), None), "{review}");
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:app");
    let groups = json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]);
    assert_eq!(status["user"]["groups"], groups);
    let account = cluster.get(&admin, "/api/v1/namespaces/default/serviceaccounts/app").await.expect(200);
    assert_eq!(status["user"]["uid"], account["metadata"]["uid"]);
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "x"}});
    let review = cluster.create(&format!("{group}/tokenreviews"), review).await;
    assert_ne!(review["status"]["authenticated"], true);
    assert!(review["status"]["error"].is_string(), "{review}");
    assert_eq!(review["status"]["user"].get("username"), None, "{review}");
    // Who asks; of itself everyone may.
    let me = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    for (who, name) in [(&admin, "kubernetes-admin"), (&token(signed), "system:serviceaccount:default:app")] {
        let path = format!("{group}/selfsubjectreviews");
        let review = cluster.send(who, "POST", &path, me.clone()).await.expect(201);
        assert_eq!(review["status"]["userInfo"]["username"], name);
    }
    // In one namespace; of others who holds the right for that namespace may.
    let role = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "view"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "app", "namespace": "default"}]});
    cluster.create(role, binding).await;
    let ask = |who: As, verb: &'static str, namespace: &'static str| {
        let spec = json!({"user": "system:serviceaccount:default:app",
            "resourceAttributes": {"namespace": namespace, "verb": verb, "resource": "pods"}});
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "LocalSubjectAccessReview", "spec": spec});
        let path = "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews";
        let cluster = &cluster;
        async move { cluster.send(&who, "POST", path, review).await }
    };
    for (verb, allowed) in [("list", true), ("delete", false)] {
        let review = ask(admin.clone(), verb, "default").await.expect(201);
        assert_eq!(review["status"]["allowed"], allowed, "{verb}");
    }
    ask(token(signed), "list", "default").await.expect(403);
    let refused = ask(admin.clone(), "list", "kube-system").await.expect(422);
    let field = &refused["details"]["causes"][0]["field"];
    assert_eq!(field, "spec.resourceAttributes.namespace", "it speaks of its own namespace");
    let rules = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": "default"}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let rules = cluster.send(&token(signed), "POST", path, rules).await.expect(201);
    let rules = rules["status"]["resourceRules"].as_array().unwrap();
    let on_pods = |rule: &&Value| rule["resources"].as_array().unwrap().contains(&json!("pods"));
    let verbs: Vec<&Value> = rules.iter().filter(on_pods).map(|rule| &rule["verbs"]).collect();
    assert_eq!(verbs, [&json!(["get", "list", "watch"])]);
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn impersonation_is_for_those_who_may() {
    let cluster = cluster().await;
    let mut jane = cluster.admin();
    jane.headers.push(("impersonate-user", "jane".into()));
    let refused = cluster.get(&jane, "/api/v1/nodes").await.expect(403);
    assert!(refused["message"].as_str().unwrap().contains("User \"jane\" cannot list resource \"nodes\""));
    jane.headers.push(("impersonate-group", "system:masters".into()));
    cluster.get(&jane, "/api/v1/nodes").await.expect(200);
    let bob = As {
        certificate: Some(cluster.pki.issue_client("bob", &[]).unwrap()),
        headers: vec![("impersonate-user", "jane".into())],
    };
    let refused = cluster.get(&bob, "/api/v1/nodes").await.expect(403);
    assert_eq!(
        refused["message"],
        "users \"jane\" is forbidden: User \"bob\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_and_services_get_what_they_need() {
    let cluster = cluster().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]}});
    let refused = cluster.send(&cluster.admin(), "POST", pods, pod.clone()).await.expect(403);
    assert!(
        refused["message"].as_str().unwrap().contains("error looking up service account default/default")
    );
    cluster.service_account("default").await;
    let made = cluster.create(pods, pod.clone()).await;
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert_eq!(
        made["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
        3607
    );
    assert_eq!(
        (&made["spec"]["priority"], &made["spec"]["preemptionPolicy"]),
        (&json!(0), &json!("PreemptLowerPriority"))
    );
    assert_eq!(made["spec"]["tolerations"].as_array().unwrap().len(), 2);
    cluster.send(&cluster.admin(), "POST", "/api/v1/namespaces/nowhere/pods", pod).await.expect(404);
    cluster.send(&cluster.admin(), "DELETE", "/api/v1/namespaces/default", Value::Null).await.expect(403);
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, ip: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": "NodePort", "clusterIP": ip, "ports": [{"port": 80}]}})
    };
    let made = cluster.create(services, service("a", "")).await;
    let ip = made["spec"]["clusterIP"].as_str().unwrap();
    assert!(
        ip.starts_with("10.96.") && made["spec"]["ports"][0]["nodePort"].as_i64().unwrap() >= 30_000,
        "{made}"
    );
    let refused = cluster.send(&cluster.admin(), "POST", services, service("b", ip)).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "spec.clusterIPs");
    let taken = cluster.send(&cluster.admin(), "POST", services, service("b", "10.96.0.1")).await;
    assert_eq!(taken.code, 422, "the address of the API server: {}", taken.text());
    // Either form of the address says that it is to change, and it may not.
    for other in ["10.96.0.77", "None"] {
        let mut changed = made.clone();
        changed["spec"]["type"] = "ClusterIP".into();
        changed["spec"]["ports"][0]["nodePort"] = Value::Null;
        changed["spec"]["clusterIP"] = other.into();
        let path = format!("{services}/a");
        let refused = cluster.send(&cluster.admin(), "PUT", &path, changed).await.expect(422);
        let cause = &refused["details"]["causes"][0];
        assert_eq!(cause["field"], "spec.clusterIPs[0]", "{refused}");
        assert!(cause["message"].as_str().unwrap().contains("may not change once set"), "{refused}");
    }
    cluster.send(&cluster.admin(), "DELETE", &format!("{services}/a"), Value::Null).await.expect(200);
    let again = async {
        while cluster.send(&cluster.admin(), "POST", services, service("b", ip)).await.code != 201 {}
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("the address is free again");
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_cluster_can_be_without_comes_back() {
    let cluster = cluster().await;
    let admin = cluster.admin();
    for path in [
        "/api/v1/namespaces/default/services/kubernetes",
        "/api/v1/namespaces/default/endpoints/kubernetes",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
    ] {
        let before = cluster.get(&admin, path).await.expect(200);
        let after = comes_back(&cluster, path).await;
        assert_eq!((&after["spec"], &after["subsets"]), (&before["spec"], &before["subsets"]));
    }
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "thief"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}});
    let taken = cluster.send(&admin, "POST", "/api/v1/namespaces/default/services", service).await;
    assert_eq!(taken.code, 422, "its address stays its own: {}", taken.text());
    let class = "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical";
    let refused = cluster.send(&admin, "DELETE", class, Value::Null).await.expect(403);
    assert_eq!(
        refused["message"],
        "priorityclasses.scheduling.k8s.io \"system-node-critical\" is forbidden: this is a system priority class and \
         cannot be deleted"
    );
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aggregated_roles_follow_their_parts() {
    let cluster = cluster().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    cluster
        .create(
            roles,
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": "more", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
                "rules": [{"apiGroups": ["x.io"], "resources": ["ys"], "verbs": ["get"]}]}),
        )
        .await;
    for name in ["view", "edit", "admin"] {
        let grown = async {
            loop {
                let role = cluster.get(&cluster.admin(), &format!("{roles}/{name}")).await.expect(200);
                if role["rules"].as_array().unwrap().iter().any(|rule| rule["apiGroups"] == json!(["x.io"])) {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), grown).await.expect(name);
    }
    cluster.api.stop().await;
}

/// Ten things that each component must not do, through the way by which components ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn components_are_refused_what_they_have_no_need_for() {
    let cluster = cluster().await;
    let components = [
        Identity::component("deployment-controller"),
        Identity::component("replicaset-controller"),
        Identity::component("endpointslice-controller"),
        Identity::component("endpoint-controller"),
        Identity::component("endpointslicemirroring-controller"),
        Identity::component("service-account-controller"),
        Identity::component("root-ca-cert-publisher"),
        Identity::component("node-controller"),
        Identity::component("pod-garbage-collector"),
        Identity::system("system:kube-scheduler", &[]),
        Identity::system("system:node:n1", &["system:nodes"]),
    ];
    let forbidden = [
        ("GET", "/api/v1/namespaces/kube-system/secrets/x"),
        ("POST", "/api/v1/namespaces/default/secrets"),
        ("POST", "/api/v1/namespaces/default/pods/x/exec"),
        ("POST", "/api/v1/namespaces"),
        ("DELETE", "/api/v1/namespaces/default"),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"),
        ("PUT", "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin"),
        ("POST", "/api/v1/namespaces/kube-system/serviceaccounts/x/token"),
        ("DELETE", "/apis/apps/v1/namespaces/default/deployments/x"),
        ("GET", "/metrics"),
    ];
    // These act on every kind, each by few verbs; the last only reads, for all controllers.
    let wide = [
        Identity::component("generic-garbage-collector"),
        Identity::component("namespace-controller"),
        Identity::system("system:kube-controller-manager", &[]),
    ];
    let forbidden_to_wide = [
        ("POST", "/api/v1/namespaces/default/pods"),
        ("POST", "/api/v1/namespaces/default/configmaps"),
        ("POST", "/api/v1/namespaces/default/services"),
        ("POST", "/api/v1/namespaces/default/pods/x/exec"),
        ("POST", "/api/v1/namespaces/default/pods/x/binding"),
        ("POST", "/api/v1/namespaces/default/pods/x/eviction"),
        ("POST", "/api/v1/namespaces"),
        ("POST", "/apis/apps/v1/namespaces/default/deployments"),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"),
        ("GET", "/metrics"),
    ];
    // Were one wired as the admin, it would not be one.
    let wide = wide.into_iter().chain([Identity::system("system:stray", &["system:masters"])]);
    let narrow = components.into_iter().map(|identity| (identity, &forbidden));
    for (identity, forbidden) in narrow.chain(wide.into_iter().map(|identity| (identity, &forbidden_to_wide)))
    {
        let user = identity.user().to_owned();
        let service = cluster.api.client_service(identity);
        for (method, path) in *forbidden {
            let request =
                Request::builder().method(method).uri(path).body(skeg_apiserver::local::full("{}")).unwrap();
            let response = service.send(request).await;
            assert_eq!(response.status(), 403, "{user}: {method} {path}");
        }
    }
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_discover_what_there_is() {
    let cluster = cluster().await;
    let mut admin = cluster.admin();
    let groups = cluster.get(&admin, "/apis").await.expect(200);
    assert_eq!(groups["groups"][0]["name"], "apiregistration.k8s.io");
    assert_eq!(groups["groups"][1]["name"], "apps");
    let core = cluster.get(&admin, "/api/v1").await.expect(200);
    let names: Vec<&str> =
        core["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"pods/log") && names.contains(&"serviceaccounts/token"), "{names:?}");
    let index = cluster.get(&admin, "/openapi/v3").await.expect(200);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = cluster.get(&admin, url).await;
    assert!(document.headers["cache-control"].to_str().unwrap().contains("immutable"));
    assert!(document.expect(200)["components"]["schemas"].get("io.k8s.api.apps.v1.Deployment").is_some());
    for path in ["api", "apis", "apis/apps", "version", ".well-known/openid-configuration", "openid/v1/jwks"]
    {
        let url = index["paths"][path]["serverRelativeURL"].as_str().unwrap();
        let document = cluster.get(&admin, url).await;
        assert!(document.headers["cache-control"].to_str().unwrap().contains("immutable"), "{path}");
        let hash = document.headers["etag"].to_str().unwrap().trim_matches('"');
        assert_eq!(url, format!("/openapi/v3/{path}?hash={hash}"));
        assert!(document.expect(200)["paths"][format!("/{path}/")]["get"].is_object(), "{path}");
    }
    assert_eq!(cluster.get(&admin, "/openapi/v3/apis/none.io").await.code, 404);
    let metrics = cluster.get(&admin, "/metrics").await;
    assert!(metrics.text().contains("apiserver_request_total{code=\"200\""), "{}", metrics.text());
    assert_eq!(cluster.get(&admin, "/apis/none.io/v1").await.code, 404);
    admin
        .headers
        .push(("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList".into()));
    assert_eq!(cluster.get(&admin, "/apis").await.expect(200)["kind"], "APIGroupDiscoveryList");
    admin.headers.clear();
    assert_eq!(cluster.get(&admin, "/openapi/v2").await.expect(200)["swagger"], "2.0");
    let gnostic = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    admin.headers.push(("accept", gnostic.into()));
    let document = cluster.get(&admin, "/openapi/v2").await;
    assert_eq!(document.headers["content-type"], gnostic.replace('@', "."));
    assert!(document.text().contains("io.k8s.api.apps.v1.Deployment"));
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_and_reviews_speak_protobuf() {
    let cluster = cluster().await;
    let mut admin = cluster.admin();
    let aggregated = format!("{PROTOBUF};g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    admin.headers = vec![("accept", format!("{PROTOBUF},application/json,{aggregated}"))];
    let answer = cluster.get(&admin, "/apis").await;
    assert_eq!(answer.headers["content-type"].to_str().unwrap(), aggregated);
    let list: APIGroupDiscoveryList = decode(&answer, "apidiscovery.k8s.io/v2", "APIGroupDiscoveryList");
    let apps = list.items.iter().find(|group| group.metadata.as_ref().unwrap().name() == "apps").unwrap();
    assert_eq!(apps.versions[0].resources[0].scope(), "Namespaced");
    admin.headers =
        vec![("accept", PROTOBUF.into()), ("if-none-match", answer.headers["etag"].to_str().unwrap().into())];
    let list: APIResourceList = decode(&cluster.get(&admin, "/apis/apps/v1").await, "v1", "APIResourceList");
    assert_eq!((list.group_version(), list.resources[0].name()), ("apps/v1", "controllerrevisions"));
    assert!(list.resources[0].verbs.as_ref().unwrap().items.contains(&"watch".to_owned()));
    let groups: APIGroupList = decode(&cluster.get(&admin, "/apis").await, "v1", "APIGroupList");
    assert_eq!(
        groups.groups[0].preferred_version.as_ref().unwrap().group_version(),
        "apiregistration.k8s.io/v1"
    );
    let versions: APIVersions = decode(&cluster.get(&admin, "/api").await, "", "APIVersions");
    assert_eq!(versions.versions, ["v1"]);
    // What is no object of the API has no protobuf, and /version is not negotiated.
    assert_eq!(cluster.get(&admin, "/openapi/v2").await.code, 406);
    assert_eq!(cluster.get(&admin, "/version").await.expect(200)["major"], "1");

    let spec = SelfSubjectAccessReviewSpec {
        resource_attributes: Some(ResourceAttributes {
            verb: Some("list".into()),
            resource: Some("pods".into()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let review = SelfSubjectAccessReview { spec: Some(spec), ..Default::default() };
    let body = encode("authorization.k8s.io/v1", "SelfSubjectAccessReview", &review);
    admin.headers.push(("content-type", PROTOBUF.into()));
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = cluster.send_bytes(&admin, "POST", path, body.clone()).await;
    let review: SelfSubjectAccessReview =
        decode(&answer, "authorization.k8s.io/v1", "SelfSubjectAccessReview");
    assert_eq!((answer.code, review.status.unwrap().allowed()), (201, true));
    // So does a refusal before anybody is known.
    let stranger = As { certificate: None, headers: admin.headers.clone() };
    let answer = cluster.send_bytes(&stranger, "POST", path, body).await;
    let status: pb_meta::Status = decode(&answer, "v1", "Status");
    assert_eq!((status.code(), status.reason()), (i32::from(answer.code), "Forbidden"));
    cluster.api.stop().await;
}

/// A node that answers one request: logs with a text, upgrades with an echo.
pub async fn node(cluster: &Cluster) -> tokio::task::JoinHandle<String> {
    let pair = cluster
        .pki
        .issue_serving(&format!("system:node:{NODE}"), &["system:nodes"], &[NODE.to_owned()])
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(cluster.pki.node_server_config(&pair).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    *cluster.dialer.to_node.lock().unwrap() = Some(listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let head = tls::read_head(&mut stream).await.unwrap();
        if head.to_lowercase().contains("upgrade: websocket") {
            let answer =
                "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            tls::echo(&mut stream).await;
        } else {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello\n").await.unwrap();
        }
        stream.shutdown().await.unwrap();
        head
    })
}

async fn bound_pod(cluster: &Cluster) {
    cluster.service_account("default").await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "nginx"}]}});
    cluster.create("/api/v1/namespaces/default/pods", pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_come_from_the_node() {
    let cluster = cluster().await;
    bound_pod(&cluster).await;
    let log = "/api/v1/namespaces/default/pods/p/log";
    let answer = cluster.get(&cluster.admin(), log).await;
    assert!(answer.code == 500 && answer.text().contains("error dialing backend"), "{}", answer.text());
    let node = node(&cluster).await;
    let answer = cluster.get(&cluster.admin(), &format!("{log}?tailLines=3")).await;
    assert_eq!((answer.code, answer.text().as_str()), (200, "hello\n"));
    let head = node.await.unwrap();
    assert!(head.starts_with("GET /containerLogs/default/p/c?tailLines=3 HTTP/1.1"), "{head}");
    assert!(!head.to_lowercase().contains("authorization"), "{head}");
    cluster.get(&cluster.admin(), &format!("{log}?container=x")).await.expect(400);
    cluster.get(&cluster.admin(), "/api/v1/namespaces/default/pods/none/log").await.expect(404);
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_is_tunnelled_and_needs_create() {
    let cluster = cluster().await;
    bound_pod(&cluster).await;
    let exec = "/api/v1/namespaces/default/pods/p/exec?command=sh&stdin=true&stdout=true";
    cluster.get(&cluster.admin(), exec).await.expect(400);
    // A role with get alone was enough once.
    cluster
        .create(
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "x"},
                "rules": [{"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get"]}]}),
        )
        .await;
    cluster
        .create(
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "x"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "x"},
                "subjects": [{"kind": "User", "name": "bob", "apiGroup": "rbac.authorization.k8s.io"}]}),
        )
        .await;
    let bob = As { certificate: Some(cluster.pki.issue_client("bob", &[]).unwrap()), headers: vec![] };
    let refused = cluster.get(&bob, exec).await.expect(403);
    assert!(
        refused["message"].as_str().unwrap().contains("cannot create resource \"pods/exec\""),
        "{refused}"
    );
    let node = node(&cluster).await;
    let mut stream = cluster.connect().await;
    let headers = "upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        sec-websocket-protocol: v5.channel.k8s.io\r\n";
    // A whole frame, which the proxy keeps together.
    tls::upgrade(&mut stream, exec, headers, b"\x82\x02hi").await;
    let head = node.await.unwrap();
    assert!(head.starts_with("GET /exec/default/p/c?input=1&output=1&command=sh HTTP/1.1"), "{head}");
    assert!(head.contains("v5.channel.k8s.io"), "{head}");
    drop(stream);
    cluster.api.stop().await;
}
