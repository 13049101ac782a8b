//! The same server behind TLS.

use crate::harness::*;
use http_body_util::BodyExt;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

type Stream = TlsStream<TcpStream>;

struct Remote {
    server: Server,
    listening: skeg_apiserver::net::Listening,
    client: Arc<rustls::ClientConfig>,
}

async fn remote() -> Remote {
    let server = start_with(Arc::new(skeg_store::Memory::new()), Arc::new(Everybody)).await;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listening = server.api.listen(listener, Arc::new(tls)).unwrap();
    Remote { server, listening, client: Arc::new(client) }
}

impl Remote {
    async fn connect(&self) -> Stream {
        let stream = TcpStream::connect(self.listening.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(self.client.clone()).connect(name, stream).await.unwrap()
    }
}

/// Sends one request and reads the head and as much of the body as its length says.
async fn ask(stream: &mut Stream, request: &str) -> (String, Vec<u8>) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    let end = loop {
        if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0, "the connection ended");
    };
    let head = String::from_utf8(read[..end].to_vec()).unwrap().to_lowercase();
    let length = head
        .split("content-length: ")
        .nth(1)
        .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
    while read.len() < end + length {
        assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0, "the connection ended");
    }
    (head, read[end..].to_vec())
}

fn request(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_come_over_tls() {
    let remote = remote().await;
    let mut stream = remote.connect().await;
    let body = config_map("a", json!({"k": "v"})).to_string();
    let (head, _) = ask(&mut stream, &request("POST", CONFIG_MAPS, &body)).await;
    assert!(head.starts_with("http/1.1 201"), "{head}");
    assert!(head.contains("audit-id: ") && head.contains("cache-control: no-cache, private"), "{head}");
    let (head, body) = ask(&mut stream, &request("GET", &format!("{CONFIG_MAPS}/a"), "")).await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap()["data"]["k"], "v");
    let (head, body) = ask(&mut stream, &request("GET", CONFIG_MAPS, "")).await;
    assert!(head.contains("content-length: "), "{head}");
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&body).unwrap()["items"].as_array().unwrap().len(),
        1
    );
    // A body over the limit is answered, not waited for.
    let large = format!("POST {CONFIG_MAPS} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 4 << 20);
    let (head, _) = ask(&mut stream, &large).await;
    assert!(head.starts_with("http/1.1 413"), "{head}");
    remote.server.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_nobody_reads_breaks_no_connection() {
    let remote = remote().await;
    let mut stream = remote.connect().await;
    let body = "x".repeat(3 << 20);
    for _ in 0..10 {
        let (head, _) = ask(&mut stream, &request("POST", "/nowhere", &body)).await;
        assert!(head.starts_with("http/1.1 404"), "{head}");
        let (head, _) = ask(&mut stream, &request("GET", CONFIG_MAPS, "")).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
    }
    remote.server.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_http2_connection_carries_requests_and_watches() {
    let mut remote = remote().await;
    let mut client = (*remote.client).clone();
    client.alpn_protocols = vec![b"h2".to_vec()];
    remote.client = Arc::new(client);
    let stream = remote.connect().await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (executor, stream) = (hyper_util::rt::TokioExecutor::new(), hyper_util::rt::TokioIo::new(stream));
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let send = |method: &str, path: &str, body: String| {
        let uri = format!("https://localhost{path}");
        let request =
            http::Request::builder().method(method).uri(uri).header("content-type", "application/json");
        let mut sender = sender.clone();
        let request = request.body(http_body_util::Full::new(bytes::Bytes::from(body))).unwrap();
        async move { sender.send_request(request).await.unwrap() }
    };
    let mut watch = send("GET", &format!("{CONFIG_MAPS}?watch=true"), String::new()).await;
    assert_eq!((watch.status().as_u16(), watch.version()), (200, http::Version::HTTP_2));
    // While the watch is open, on the same connection.
    let made = send("POST", CONFIG_MAPS, config_map("a", json!({})).to_string()).await;
    assert_eq!(made.status(), 201);
    let event = watch.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(event.starts_with(b"{\"type\":\"ADDED\""), "{event:?}");
    let denied = send("GET", "/api/v1/namespaces/default/nothing", String::new()).await;
    assert_eq!(denied.status(), 404);
    let mut head = send("HEAD", &format!("{CONFIG_MAPS}/a"), String::new()).await;
    assert_eq!(head.status(), 200);
    assert!(head.headers()["content-length"].to_str().unwrap().parse::<u64>().unwrap() > 100);
    assert!(head.body_mut().frame().await.is_none());
    // A selector of many values makes a long URL.
    let many = format!("{CONFIG_MAPS}?labelSelector=a+in+({})", vec!["value"; 8_000].join(","));
    assert_eq!(send("GET", &many, String::new()).await.status(), 200);
    // Headers that are too large are answered; the connection and its other requests live on.
    let large = http::Request::get("https://localhost/version").header("x-large", "x".repeat(100_000));
    let large = large.body(http_body_util::Full::new(bytes::Bytes::new())).unwrap();
    assert_eq!(sender.clone().send_request(large).await.unwrap().status(), 431);
    assert_eq!(send("GET", CONFIG_MAPS, String::new()).await.status(), 200);
    connection.abort();
    remote.server.api.stop().await;
}

/// Some clients look at no answer of a stream that is reset while they send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_limit_is_taken_to_its_end() {
    let mut remote = remote().await;
    let mut client = (*remote.client).clone();
    client.alpn_protocols = vec![b"h2".to_vec()];
    remote.client = Arc::new(client);
    let stream = hyper_util::rt::TokioIo::new(remote.connect().await);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let (body, chunks) = tokio::sync::mpsc::channel::<bytes::Bytes>(1);
    let frames = futures_util::stream::unfold(chunks, |mut chunks| async {
        let chunk = chunks.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(hyper::body::Frame::data(chunk)), chunks))
    });
    let request = http::Request::post(format!("https://localhost{CONFIG_MAPS}"))
        .header("content-type", "application/json")
        .body(http_body_util::StreamBody::new(Box::pin(frames)))
        .unwrap();
    let answer = tokio::spawn(async move { sender.send_request(request).await.unwrap() });
    let chunk = bytes::Bytes::from(vec![b' '; 1 << 20]);
    for _ in 0..4 {
        body.send(chunk.clone()).await.unwrap();
    }
    assert_eq!(answer.await.unwrap().status(), 413);
    for _ in 0..4 {
        body.send(chunk.clone()).await.expect("the stream still takes what comes");
    }
    drop(body);
    connection.abort();
    remote.server.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_ends_its_watch() {
    let remote = remote().await;
    let mut stream = remote.connect().await;
    let (head, _) = ask(&mut stream, &request("GET", &format!("{CONFIG_MAPS}?watch=true"), "")).await;
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    let watchers = || remote.server.api.stats().watchers.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(watchers(), 1);
    drop(stream);
    let gone = async {
        while watchers() != 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), gone).await.expect("the watch ends");
    // An open watch does not hold up the end of the server.
    let mut stream = remote.connect().await;
    ask(&mut stream, &request("GET", &format!("{CONFIG_MAPS}?watch=true"), "")).await;
    tokio::time::timeout(std::time::Duration::from_secs(20), remote.server.api.stop())
        .await
        .expect("the server stops");
}
