//! Webhooks that hang, lie, loop or answer garbage. The write that asks one is refused or let pass in
//! its time; nobody else notices, and no answer fills the memory.

use super::{MUTATING, VALIDATING, configure, hook, rule, start};
use crate::harness::{Answer, CONFIG_MAPS, Server, config_map};
use crate::tls::{self, Certificate};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;

/// What one hostile answer may send before somebody hangs up: the limit of an answer and what lies in
/// the buffers of two sockets.
const SENT_MAX: usize = 32 << 20;
/// Writes that wait for webhooks at once.
const WAITING_MAX: usize = 150;

/// What comes of a write whose webhook does as its path says, where failures are not let pass: the
/// beginning of the message, or nothing for a write that succeeds.
const CASES: &[(&str, Option<&str>)] = &[
    ("slow-head", Some("context deadline exceeded")),
    ("slow-body", Some("context deadline exceeded")),
    ("endless-hints", Some("context deadline exceeded")),
    ("endless-head", Some("")),
    ("endless-body", Some("length limit exceeded")),
    ("endless-chunk", Some("length limit exceeded")),
    ("redirect-302", Some("the server responded with the status code 302 ")),
    ("redirect-307", Some("the server responded with the status code 307 ")),
    ("redirect-308", Some("the server responded with the status code 308 ")),
    ("switch", Some("the server responded with the status code 101 ")),
    ("cut", Some("")),
    ("reset", Some("")),
    ("close", Some("EOF")),
    ("ssh", Some("")),
    ("deep", Some("couldn't get version/kind; json parse error: ")),
    ("binary", Some("couldn't get version/kind; json parse error: ")),
    ("list", Some("couldn't get version/kind; json parse error: ")),
    (
        "other-version",
        Some(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got admission.k8s.io/v1beta1",
        ),
    ),
    (
        "other-kind",
        Some(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got admission.k8s.io/v1, Kind=Pod",
        ),
    ),
    ("other-uid", Some("expected response.uid=")),
    // Whatever it says it is, it is read.
    ("text", None),
    ("warnings", None),
];
/// What mutating webhooks ask for that cannot be done: refused whatever the policy.
const PATCHES: &[&str] = &["patch-none", "patch-object", "patch-path", "patch-test", "patch-bomb"];

/// Sends the same bytes until the other end has enough of them.
async fn forever(stream: &mut TlsStream<TcpStream>, bytes: &[u8], sent: &AtomicUsize) -> io::Result<()> {
    loop {
        stream.write_all(bytes).await?;
        sent.fetch_add(bytes.len(), Ordering::SeqCst);
    }
}

/// Sends a byte now and then.
async fn drip(stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    let mut beat = tokio::time::interval(Duration::from_millis(20));
    loop {
        beat.tick().await;
        stream.write_all(b" ").await?;
        stream.flush().await?;
    }
}

fn ok(kind: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn patch(document: &Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(document.to_string())})
}

/// What can be said in one review.
fn review(path: &str, uid: &Value) -> Vec<u8> {
    let (mut version, mut kind, mut uid) = ("admission.k8s.io/v1", "AdmissionReview", uid.clone());
    let mut response = json!({"allowed": true});
    match path {
        "other-version" => version = "admission.k8s.io/v1beta1",
        "other-kind" => kind = "Pod",
        "other-uid" => uid = "x".into(),
        "warnings" => response["warnings"] = vec!["w".repeat(1000); 2000].into(),
        "patch-none" => {
            response =
                json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode("no patch")})
        }
        "patch-object" => response = patch(&json!({"op": "add"})),
        "patch-path" => response = patch(&json!([{"op": "remove", "path": "/nowhere/at/all"}])),
        "patch-test" => response = patch(&json!([{"op": "test", "path": "/metadata/name", "value": "x"}])),
        "patch-bomb" => {
            let start = json!({"op": "add", "path": "/data/a", "value": "x".repeat(1000)});
            let double = |n| json!({"op": "copy", "from": "/data", "path": format!("/data/d{n}")});
            response = patch(&std::iter::once(start).chain((0..60).map(double)).collect());
        }
        _ => {}
    }
    response["uid"] = uid;
    json!({"kind": kind, "apiVersion": version, "response": response}).to_string().into_bytes()
}

async fn misbehave(
    mut stream: TlsStream<TcpStream>,
    seen: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
) -> io::Result<()> {
    let head = tls::read_head(&mut stream).await?;
    seen.fetch_add(1, Ordering::SeqCst);
    let path = head.split(['/', '?']).nth(1).unwrap_or_default().to_owned();
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    let asked: Value = serde_json::from_slice(&body)?;
    let sent = AtomicUsize::new(0);
    let done = match path.as_str() {
        "slow-head" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nslow:").await?;
            drip(&mut stream).await
        }
        "slow-body" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await?;
            drip(&mut stream).await
        }
        "endless-hints" => {
            let mut beat = tokio::time::interval(Duration::from_millis(1));
            loop {
                beat.tick().await;
                stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await?;
            }
        }
        "endless-head" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            forever(&mut stream, format!("x: {}\r\n", "y".repeat(8000)).as_bytes(), &sent).await
        }
        "endless-body" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\n").await?;
            forever(&mut stream, &[b' '; 8192], &sent).await
        }
        "endless-chunk" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
            forever(&mut stream, format!("2000\r\n{}\r\n", " ".repeat(8192)).as_bytes(), &sent).await
        }
        "switch" => {
            stream
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: x\r\n\r\n")
                .await
        }
        "cut" => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"kind\":").await,
        "reset" => reset(&stream),
        "close" => Ok(()),
        "ssh" => stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await,
        "deep" => stream.write_all(&ok("application/json", "[".repeat(200_000).as_bytes())).await,
        "binary" => stream.write_all(&ok("application/json", &[0, 255, 1, 254])).await,
        "list" => stream.write_all(&ok("application/json", b"[1, 2]")).await,
        "text" => stream.write_all(&ok("text/plain", &review(&path, &asked["request"]["uid"]))).await,
        path => match path.strip_prefix("redirect-") {
            Some(code) => {
                let answer =
                    format!("HTTP/1.1 {code} Elsewhere\r\nlocation: /allow\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await
            }
            None => stream.write_all(&ok("application/json", &review(path, &asked["request"]["uid"]))).await,
        },
    };
    most.fetch_max(sent.into_inner(), Ordering::SeqCst);
    done?;
    stream.shutdown().await
}

/// Ends a connection as if the host were gone.
fn reset(stream: &TlsStream<TcpStream>) -> io::Result<()> {
    stream.get_ref().0.set_zero_linger()?;
    Err(io::ErrorKind::ConnectionReset.into())
}

/// Servers that never get to TLS: one is silent, one hangs up, one speaks HTTP.
async fn without_tls(first: Option<&'static [u8]>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            match first {
                Some(bytes) => drop(stream.write_all(bytes).await),
                None => open.push(stream),
            }
        }
    });
    address
}

fn clone(server: &Server) -> Server {
    Server { api: server.api.clone(), service: server.service.clone() }
}

fn labelled(name: &str, of: &str) -> Value {
    let mut map = config_map(name, json!({"k": "v"}));
    map["metadata"]["labels"] = json!({"of": of});
    map
}

/// A write whose webhook is the one of a label, on its way.
fn victim(server: &Server, of: &str) -> tokio::task::JoinHandle<Answer> {
    let (server, map) = (clone(server), labelled(of, of));
    tokio::spawn(async move { server.post(CONFIG_MAPS, &map).await })
}

/// What others do meanwhile.
async fn others(server: &Server, round: usize) {
    let name = format!("other-{round}");
    server.post(CONFIG_MAPS, &config_map(&name, json!({}))).await.expect(201);
    let change = json!({"data": {"a": "b"}});
    server.patch(&format!("{CONFIG_MAPS}/{name}"), "merge-patch+json", &change).await.expect(200);
    server.get(CONFIG_MAPS).await.expect(200);
    server.delete(&format!("{CONFIG_MAPS}/{name}")).await.expect(200);
}

/// A webhook for the objects with a label.
fn guard(at: (SocketAddr, &str), of: &str, path: &str, ignores: bool) -> Value {
    let policy = if ignores { "Ignore" } else { "Fail" };
    let more =
        json!({"objectSelector": {"matchLabels": {"of": of}}, "failurePolicy": policy, "timeoutSeconds": 2});
    hook(at, of, &format!("/{path}"), rule(&["CREATE"], "", "v1", &["configmaps"]), more)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_webhooks_answer_others_go_on() {
    let (seen, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let certificate = Certificate::of(&["127.0.0.1"]);
    let bundle = certificate.bundle.clone();
    let (count, sent) = (seen.clone(), most.clone());
    let address = tls::listen(certificate.server(None), move |stream| {
        let (count, sent) = (count.clone(), sent.clone());
        async move { drop(misbehave(stream, count, sent).await) }
    })
    .await;
    let server = start().await;
    let mut cases = Vec::new();
    let (mut mutating, mut validating) = (Vec::new(), Vec::new());
    let mut add =
        |list: &mut Vec<Value>, at: SocketAddr, path: &str, prefix: &str, told: Option<&'static str>| {
            for (ignores, expected) in [(false, told), (true, None)] {
                let of = format!("{prefix}-{path}-{}", if ignores { "let" } else { "not" });
                list.push(guard((at, &bundle), &of, path, ignores));
                cases.push((of, expected));
            }
        };
    for (path, told) in CASES {
        add(&mut mutating, address, path, "m", *told);
        add(&mut validating, address, path, "v", *told);
    }
    for (path, first, told) in [
        ("silent", None, "context deadline exceeded"),
        ("hangs-up", Some(&b""[..]), ""),
        ("plain", Some(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ""),
    ] {
        add(&mut validating, without_tls(first).await, path, "v", Some(told));
    }
    for path in PATCHES {
        for ignores in [false, true] {
            let of = format!("{path}-{ignores}");
            mutating.push(guard((address, &bundle), &of, path, ignores));
            cases.push((of, Some("refused")));
        }
    }
    let asked = cases.len();
    configure(&server, MUTATING, "hostile", &mutating).await;
    configure(&server, VALIDATING, "hostile", &validating).await;
    let victims: Vec<_> = cases.into_iter().map(|(of, told)| (victim(&server, &of), of, told)).collect();
    for round in 0..20 {
        others(&server, round).await;
    }
    for (victim, of, told) in victims {
        let answer = tokio::time::timeout(Duration::from_secs(60), victim).await.expect(&of).unwrap();
        let told_in_all: usize = answer.warnings().iter().map(String::len).sum();
        assert!(told_in_all < 16 << 10, "{of}: {told_in_all} bytes of warnings");
        let Some(told) = told else {
            answer.expect(201);
            continue;
        };
        let message = answer.expect(500)["message"].as_str().unwrap().to_owned();
        let internal = message.strip_prefix("Internal error occurred: ").expect(&message);
        if told == "refused" {
            assert!(!internal.starts_with("failed calling webhook"), "{of}: {message}");
        } else {
            assert!(
                internal.starts_with(&format!("failed calling webhook \"{of}.example.com\": ")),
                "{of}: {message}"
            );
            assert!(internal.contains(told), "{of}: {message}");
        }
    }
    // No redirect was followed and nothing was asked twice.
    assert_eq!(seen.load(Ordering::SeqCst), asked - 6);
    assert!(most.load(Ordering::SeqCst) < SENT_MAX, "{} bytes were taken", most.load(Ordering::SeqCst));
    assert_eq!(server.api.stats().panics_total.load(Ordering::Relaxed), 0);
    others(&server, 20).await;
}

/// Each webhook makes an object that asks it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_calls_back_ends() {
    let (calls, of) = (Arc::<AtomicUsize>::default(), Arc::<OnceLock<Server>>::default());
    let certificate = Certificate::of(&["127.0.0.1"]);
    let bundle = certificate.bundle.clone();
    let (count, back) = (calls.clone(), of.clone());
    let address = tls::listen(certificate.server(None), move |mut stream| {
        let (count, back) = (count.clone(), back.clone());
        async move {
            let head = tls::read_head(&mut stream).await.unwrap().to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length.unwrap()];
            stream.read_exact(&mut body).await.unwrap();
            let asked: Value = serde_json::from_slice(&body).unwrap();
            let depth = count.fetch_add(1, Ordering::SeqCst);
            let inner =
                back.get().unwrap().post(CONFIG_MAPS, &labelled(&format!("loop-{depth}"), "loop")).await;
            let response = json!({"uid": asked["request"]["uid"], "allowed": inner.code == 201,
                "status": {"message": format!("{depth}: {}", inner.code)}});
            let review =
                json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
            drop(stream.write_all(&ok("application/json", review.to_string().as_bytes())).await);
        }
    })
    .await;
    let server = start().await;
    drop(of.set(clone(&server)));
    let mut hook = guard((address, &bundle), "loop", "", false);
    hook["timeoutSeconds"] = 30.into();
    configure(&server, VALIDATING, "loop", &[hook]).await;
    let first = victim(&server, "loop");
    let mut round = 0;
    while !first.is_finished() {
        others(&server, round).await;
        round += 1;
    }
    let refused = first.await.unwrap().expect(400);
    assert!(refused["message"].as_str().unwrap().ends_with("denied the request: 0: 400"), "{refused}");
    assert_eq!(calls.load(Ordering::SeqCst), WAITING_MAX);
    // Nothing is left waiting: the places are free again.
    others(&server, round).await;
    assert_eq!(
        server.get(&format!("{CONFIG_MAPS}?labelSelector=of%3Dloop")).await.expect(200)["items"],
        json!([])
    );
}
