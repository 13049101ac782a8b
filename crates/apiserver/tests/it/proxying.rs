//! HTTP through the API server to Pods, Services and nodes, over TLS and with real connections.

use crate::access::{As, Cluster, NODE, cluster};
use crate::tls;
use serde_json::{Value, json};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const POD: &str = "/api/v1/namespaces/default/pods/p";
const POD_IP: &str = "10.1.2.3";

/// Reads a request's head and as much of a body as it announces.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(String, Vec<u8>)> {
    let head = tls::read_head(stream).await?.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await?;
    Ok((head, body))
}

/// Answers one request at the address of the Pod.
async fn backend(cluster: &Cluster, answer: &'static str) -> tokio::task::JoinHandle<(String, Vec<u8>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    *cluster.dialer.to_pods.lock().unwrap() = Some(listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_request(&mut stream).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        if answer.starts_with("HTTP/1.1 101") {
            tls::echo(&mut stream).await;
        }
        stream.shutdown().await.unwrap();
        request
    })
}

async fn put_status(cluster: &Cluster, path: &str, status: Value) {
    let mut object = cluster.get(&cluster.admin(), path).await.expect(200);
    object["status"] = status;
    cluster.send(&cluster.admin(), "PUT", &format!("{path}/status"), object).await.expect(200);
}

/// A Pod with an address.
async fn with_pod() -> Cluster {
    let cluster = cluster().await;
    cluster.service_account("default").await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"nodeName": NODE,
        "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 8080}]}]}});
    cluster.create("/api/v1/namespaces/default/pods", pod).await;
    let status = json!({"phase": "Running", "podIP": POD_IP, "podIPs": [{"ip": POD_IP}]});
    put_status(&cluster, POD, status).await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_pods_pass_without_credentials() {
    let cluster = with_pod().await;
    let admin = cluster.admin();
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\naccess-control-allow-origin: *\r\nx-own: 1\r\n\r\nok";
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let node = backend(&cluster, ok).await;
        let mut who = admin.clone();
        who.headers.push(("cookie", "a=b".into()));
        who.headers.push(("x-forwarded-for", "192.0.2.1".into()));
        let body = if matches!(method, "GET" | "OPTIONS") { Value::Null } else { json!({"a": 1}) };
        let answer = cluster.send(&who, method, &format!("{POD}/proxy/a%20b/?q=1&q=%2F"), body.clone()).await;
        assert_eq!((answer.code, answer.text().as_str()), (200, "ok"), "{method}");
        assert!(answer.headers.contains_key("x-own"));
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
        let (head, got) = node.await.unwrap();
        assert!(head.starts_with(&format!("{} /a%20b/?q=1&q=%2f http/1.1", method.to_lowercase())), "{head}");
        assert!(head.contains("x-forwarded-for: 192.0.2.1, 127.0.0.1"), "{head}");
        assert!(head.contains(&format!("x-forwarded-uri: {POD}/proxy/a%20b/")), "{head}");
        assert!(head.contains("cookie: a=b") && head.contains("host: localhost"), "{head}");
        let sent = if body.is_null() { String::new() } else { body.to_string() };
        assert_eq!(String::from_utf8(got).unwrap(), sent);
    }
    let dialed = cluster.dialer.dialed.lock().unwrap().clone();
    assert!(dialed.iter().all(|to| *to == (NODE.to_owned(), "10.1.2.3:8080".parse().unwrap())), "{dialed:?}");
    let node = backend(&cluster, ok).await;
    let token = cluster.token_of("default", json!({})).await["status"]["token"].as_str().unwrap().to_owned();
    let bearer = As { certificate: None, headers: vec![("authorization", format!("Bearer {token}"))] };
    // Each method is a verb of its own.
    let rule = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "get"},
        "rules": [{"apiGroups": [""], "resources": ["pods/proxy"], "verbs": ["get"]}]});
    cluster.create("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", rule).await;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "get"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "get"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]});
    cluster.create("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", binding).await;
    let refused = cluster.send(&bearer, "POST", &format!("{POD}/proxy/x"), Value::Null).await.expect(403);
    assert!(
        refused["message"].as_str().unwrap().contains("cannot create resource \"pods/proxy\""),
        "{refused}"
    );
    assert_eq!(cluster.get(&bearer, &format!("{POD}/proxy/x")).await.code, 200);
    let (head, _) = node.await.unwrap();
    assert!(!head.contains("authorization"), "{head}");
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_and_redirects_stay_within_the_proxy() {
    let cluster = with_pod().await;
    let admin = cluster.admin();
    let redirected = cluster.get(&admin, &format!("{POD}/proxy?a=1")).await;
    assert_eq!(redirected.code, 301);
    assert_eq!(redirected.headers["location"], format!("{POD}/proxy/?a=1"));
    backend(&cluster, "HTTP/1.1 302 Found\r\nlocation: /login?x#y\r\ncontent-length: 0\r\n\r\n").await;
    let found = cluster.get(&admin, &format!("{POD}/proxy/a")).await;
    assert_eq!(
        (found.code, found.headers["location"].to_str().unwrap()),
        (302, &*format!("{POD}/proxy/login?x#y"))
    );
    let page = "HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\ncontent-length: 18\r\n\r\n<a href=\"/x\">/</a>";
    backend(&cluster, page).await;
    let got = cluster.get(&admin, &format!("{POD}:8080/proxy/a/b")).await;
    assert_eq!(got.text(), format!("<a href=\"{POD}:8080/proxy/x\">/</a>"));
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_pass_both_ways() {
    let cluster = with_pod().await;
    let node =
        backend(&cluster, "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: own\r\n\r\n")
            .await;
    let mut stream = cluster.connect().await;
    tls::upgrade(&mut stream, &format!("{POD}/proxy/socket?q=1"), "upgrade: own\r\n", b"ping").await;
    let (head, _) = node.await.unwrap();
    assert!(head.starts_with("get /socket?q=1 ") && head.contains("upgrade: own"), "{head}");
    drop(stream);
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_reached_by_their_ready_pods() {
    let cluster = with_pod().await;
    let admin = cluster.admin();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {
        "ports": [{"name": "web", "port": 80, "targetPort": 8080}]}});
    cluster.create("/api/v1/namespaces/default/services", service).await;
    let at = |name: &str| format!("/api/v1/namespaces/default/services/{name}/proxy/x");
    let none = cluster.get(&admin, &at("s:web")).await.expect(503);
    assert_eq!(none["message"], "no endpoints available for service \"s:web\"");
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
        "ports": [{"name": "web", "port": 8080}],
        "endpoints": [
            {"addresses": ["10.9.9.9"], "conditions": {"ready": true}},
            {"addresses": ["10.9.9.8"], "targetRef": {"kind": "Pod", "name": "p", "namespace": "default"}},
            {"addresses": [POD_IP], "nodeName": NODE, "targetRef": {"kind": "Pod", "name": "p", "namespace": "default"}}]});
    cluster.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await;
    for name in ["s:web", "s:80", "http:s:web"] {
        let node = backend(&cluster, "HTTP/1.1 418 Teapot\r\ncontent-length: 3\r\n\r\ntea").await;
        let answer = cluster.get(&admin, &at(name)).await;
        assert_eq!((answer.code, answer.text().as_str()), (418, "tea"), "{name}");
        assert!(node.await.unwrap().0.starts_with("get /x "));
    }
    let dialed = cluster.dialer.dialed.lock().unwrap().clone();
    assert!(dialed.iter().all(|to| *to == (NODE.to_owned(), "10.1.2.3:8080".parse().unwrap())), "{dialed:?}");
    let none = cluster.get(&admin, &at("s:81")).await.expect(503);
    assert_eq!(none["message"], "no service port 81 found for service \"s\"");
    cluster.get(&admin, &at("s")).await.expect(503);
    cluster.get(&admin, &at("none")).await.expect(404);
    cluster.get(&admin, &at("ftp:s:web")).await.expect(400);
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_reached_at_their_server_and_elsewhere() {
    let cluster = with_pod().await;
    let admin = cluster.admin();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}});
    cluster.create("/api/v1/nodes", node).await;
    let path = format!("/api/v1/nodes/{NODE}");
    let status = json!({"daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "addresses": [{"type": "Hostname", "address": NODE}, {"type": "InternalIP", "address": "10.0.0.7"}]});
    put_status(&cluster, &path, status).await;
    let server = crate::access::node(&cluster).await;
    let answer = cluster.get(&admin, &format!("{path}:10250/proxy/pods?x=1")).await;
    assert_eq!((answer.code, answer.text().as_str()), (200, "hello\n"));
    assert!(server.await.unwrap().starts_with("GET /pods?x=1 HTTP/1.1"));
    backend(&cluster, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(cluster.get(&admin, &format!("{path}:9100/proxy/metrics")).await.text(), "ok");
    let dialed = cluster.dialer.dialed.lock().unwrap().clone();
    assert_eq!(dialed, [(NODE.to_owned(), "10.0.0.7:9100".parse().unwrap())]);
    // What is not reached, and what must not be.
    *cluster.dialer.to_pods.lock().unwrap() = None;
    let failed = cluster.get(&admin, &format!("{path}:9100/proxy/metrics")).await.expect(503);
    assert!(failed["message"].as_str().unwrap().starts_with("error trying to reach service: "), "{failed}");
    cluster.get(&admin, "/api/v1/nodes/none/proxy/").await.expect(404);
    let loopback = json!({"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]});
    put_status(&cluster, POD, loopback).await;
    let refused = cluster.get(&admin, &format!("{POD}/proxy/")).await.expect(400);
    assert_eq!(refused["message"], "address not allowed");
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_backends_may_have_any_certificate() {
    let cluster = with_pod().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    *cluster.dialer.to_pods.lock().unwrap() = Some(listener.local_addr().unwrap());
    let pair = cluster.pki.issue_serving("someone", &[], &["elsewhere".to_owned()]).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(cluster.pki.node_server_config(&pair).unwrap()));
    let backend = tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let (head, _) = read_request(&mut stream).await.unwrap();
        assert!(stream.get_ref().1.peer_certificates().is_none());
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret").await.unwrap();
        stream.shutdown().await.unwrap();
        head
    });
    let path = "/api/v1/namespaces/default/pods/https:p:8443/proxy/x";
    assert_eq!(cluster.get(&cluster.admin(), path).await.text(), "secret");
    assert!(backend.await.unwrap().starts_with("get /x "));
    let dialed = cluster.dialer.dialed.lock().unwrap().clone();
    assert_eq!(dialed, [(NODE.to_owned(), "10.1.2.3:8443".parse().unwrap())]);
    cluster.api.stop().await;
}
