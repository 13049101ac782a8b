//! A small HTTP client for probes and hooks: one request on one connection, bounded in time and
//! size, certificates not verified (as upstream's prober does). gRPC health checks too.

use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use skeg_base::tls;
use std::sync::{Arc, LazyLock};
use tokio::net::TcpStream;

/// Upstream's bound for probe answers.
const BODY_BYTES_MAX: usize = 10 << 10;
const REDIRECTS_MAX: u32 = 10;

pub struct Target<'a> {
    pub https: bool,
    pub host: &'a str,
    pub port: u16,
    pub path: &'a str,
    pub headers: &'a [(String, String)],
}

impl Target<'_> {
    pub fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        format!("{scheme}://{}{slash}{}", authority(self.host, self.port), escaped(self.path))
    }
}

/// A path and query as they may stand in a request: without a fragment, and with whatever people
/// write there escaped.
fn escaped(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b' ' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0..=0x1f | 0x7f.. => {
                out.push_str(&format!("%{byte:02X}"));
            }
            _ => out.push(char::from(byte)),
        }
    }
    out
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The status code, the beginning of the body, and where a redirection points.
struct Answer {
    status: u16,
    body: String,
    location: Option<String>,
}

/// Sends a GET and follows redirections that stay on the host, as upstream's prober does; gives the
/// status code and the beginning of the body.
pub async fn get(target: &Target<'_>, user_agent: &str) -> Result<(u16, String), String> {
    let mut url = target.url();
    let mut own_host =
        target.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case("host")).map(|(_, v)| v.clone());
    let mut redirects = 0;
    loop {
        let failed = |e: &dyn std::fmt::Display| format!("Get \"{url}\": {e}");
        let uri: Uri = url.parse().map_err(|e| failed(&e))?;
        let answer = once(&uri, own_host.as_deref(), target.headers, user_agent).await;
        let answer = answer.map_err(|e| failed(&e))?;
        let followed = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
        let Some(location) = answer.location.filter(|_| followed) else {
            return Ok((answer.status, answer.body));
        };
        let next = joined(&uri, &location)
            .ok_or_else(|| failed(&format!("failed to parse Location header {location:?}")))?;
        if next.host() != uri.host() {
            return Ok((answer.status, answer.body));
        }
        redirects += 1;
        if redirects >= REDIRECTS_MAX {
            return Err(format!("Get \"{location}\": stopped after {REDIRECTS_MAX} redirects"));
        }
        if next.authority() != uri.authority() {
            // The name the caller chose was the first server's.
            own_host = None;
        }
        url = next.to_string();
    }
}

/// An absolute address, or one relative to `base`.
fn joined(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    if location.contains("://") {
        return location.parse().ok();
    }
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}").parse().ok();
    }
    let path = match location.chars().next() {
        Some('/') => location.to_owned(),
        Some('?') => format!("{}{location}", base.path()),
        _ => format!("{}/{location}", base.path().rsplit_once('/').map_or("", |(folder, _)| folder)),
    };
    format!("{scheme}://{authority}{path}").parse().ok()
}

async fn once(
    uri: &Uri,
    own_host: Option<&str>,
    headers: &[(String, String)],
    user_agent: &str,
) -> Result<Answer, String> {
    let https = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    let tcp = connect(host, port).await?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::builder().method(Method::GET).uri(path);
    let authority = uri.authority().map_or("", |a| a.as_str());
    request = request.header("host", own_host.unwrap_or(authority));
    let has = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    if !has("user-agent") {
        request = request.header("user-agent", user_agent);
    }
    if !has("accept") {
        request = request.header("accept", "*/*");
    }
    for (name, value) in headers.iter().filter(|(n, v)| !n.eq_ignore_ascii_case("host") && !v.is_empty()) {
        request = request.header(name, value);
    }
    let request =
        request.header("connection", "close").body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    if !https {
        return exchange(tcp, request).await.map_err(|e| e.to_string());
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(TLS.clone()).connect(name, tcp).await;
    exchange(stream.map_err(|e| e.to_string())?, request).await.map_err(|e| e.to_string())
}

async fn exchange(
    io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Answer, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let driver = async {
        let _ = connection.await;
        std::future::pending::<()>().await
    };
    let talk = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let location = response.headers().get("location").and_then(|v| v.to_str().ok()).map(str::to_owned);
        // A long body is cut: the status is what counts.
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
        Ok(Answer { status, body, location })
    };
    tokio::select! {
        result = talk => result,
        () = driver => unreachable!("the driver never ends first"),
    }
}

/// Connects, with an error worded as Go's dialer words it.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let result = TcpStream::connect((host, port)).await;
    result.map_err(|e| {
        let why = match e.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
            std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
            _ => e.to_string(),
        };
        format!("dial tcp {}: {why}", authority(host, port))
    })
}

/// `grpc.health.v1.Health/Check`: whether the service answers `SERVING`.
pub async fn grpc_check(host: &str, port: u16, service: &str) -> Result<(), String> {
    let tcp = connect(host, port).await?;
    let failed = |e: &dyn std::fmt::Display| format!("error: health rpc probe failed: {e}");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
            .await
            .map_err(|e| failed(&e))?;
    let driver = tokio::spawn(connection);
    let body = health_request(service);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{}/grpc.health.v1.Health/Check", authority(host, port)))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| failed(&e))?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let body =
            Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await.map_err(|e| failed(&e))?;
        let code = body
            .trailers()
            .and_then(|t| t.get("grpc-status"))
            .and_then(|v| v.to_str().ok())
            .unwrap_or("0")
            .to_owned();
        let bytes = body.to_bytes();
        match (code.as_str(), bytes.get(5..7)) {
            ("0", Some([0x08, 0x01])) => Ok(()),
            ("0", _) => Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()),
            (code, _) => Err(failed(&format!("rpc error: code = {code}"))),
        }
    };
    let result = talk.await;
    driver.abort();
    result
}

/// `HealthCheckRequest { service }` behind its length, as gRPC frames messages.
fn health_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        // The length in groups of seven bits, lowest first.
        let mut len = service.len();
        while len > 0x7f {
            message.push((len as u8 & 0x7f) | 0x80);
            len >>= 7;
        }
        message.push(len as u8);
        message.extend(service.as_bytes());
    }
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    body
}

static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions");
    Arc::new(tls::trusting_anyone(builder).with_no_client_auth())
});

#[cfg(test)]
mod tests {
    use super::*;
    use http::Response;
    use http_body_util::StreamBody;
    use hyper::body::{Frame, Incoming};
    use hyper::service::service_fn;
    use std::convert::Infallible;
    use tokio::net::TcpListener;

    type Reply = (u16, Vec<(&'static str, String)>);

    /// Serves on a loopback port until the test ends: what it is asked decides the answer.
    async fn serve(tls: bool, reply: fn(&Request<Incoming>) -> Reply) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = tls.then(|| {
            let key = rcgen::generate_simple_self_signed(vec!["some.name".to_owned()]).unwrap();
            let config = rustls::ServerConfig::builder_with_provider(super::tls::provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(
                    vec![key.cert.der().clone()],
                    rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap(),
                )
                .unwrap();
            tokio_rustls::TlsAcceptor::from(Arc::new(config))
        });
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let service = service_fn(move |request: Request<Incoming>| async move {
                    let (status, headers) = reply(&request);
                    let mut response = Response::builder().status(status);
                    for (name, value) in headers {
                        response = response.header(name, value);
                    }
                    Ok::<_, Infallible>(response.body(Full::new(Bytes::from_static(b"body"))).unwrap())
                });
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let server = hyper::server::conn::http1::Builder::new();
                    match acceptor {
                        Some(acceptor) => {
                            let stream = acceptor.accept(tcp).await.unwrap();
                            server.serve_connection(TokioIo::new(stream), service).await
                        }
                        None => server.serve_connection(TokioIo::new(tcp), service).await,
                    }
                });
            }
        });
        port
    }

    fn target<'a>(port: u16, path: &'a str, headers: &'a [(String, String)]) -> Target<'a> {
        Target { https: false, host: "127.0.0.1", port, path, headers }
    }

    fn to(location: &str) -> Reply {
        (302, vec![("location", location.to_owned())])
    }

    #[tokio::test]
    async fn redirections_are_followed_on_the_same_host_only() {
        let port = serve(false, |request| match request.uri().path() {
            "/deep/start" => to("next"),
            "/deep/next" => to("/end?x=1"),
            "/end" => (if request.uri().query() == Some("x=1") { 200 } else { 500 }, vec![]),
            "/x%20y" => (if request.uri().query() == Some("a=%22b%22") { 200 } else { 500 }, vec![]),
            "/sick" => to("/fails"),
            "/away" => to("http://192.0.2.1/"),
            "/nowhere" => (302, vec![]),
            "/loop" => to("/loop"),
            _ => (503, vec![]),
        })
        .await;
        for (path, expected) in [
            ("/deep/start", 200),
            ("/sick", 503),
            ("/away", 302),
            ("/nowhere", 302),
            ("/end", 500),
            ("/x y?a=\"b\"#c", 200),
        ] {
            assert_eq!(get(&target(port, path, &[]), "test").await.unwrap().0, expected, "{path}");
        }
        let error = get(&target(port, "/loop", &[]), "test").await.unwrap_err();
        assert_eq!(error, "Get \"/loop\": stopped after 10 redirects");
    }

    #[tokio::test]
    async fn headers_are_the_probes_own() {
        let port = serve(false, |request| {
            let value = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok());
            let good = value("host") == Some("web.example")
                && value("x-probe") == Some("yes")
                && value("user-agent").is_none()
                && value("accept") == Some("*/*");
            (if good { 200 } else { 400 }, vec![])
        })
        .await;
        let headers = [("Host", "web.example"), ("X-Probe", "yes"), ("User-Agent", "")];
        let headers = headers.map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(get(&target(port, "/", &headers), "test").await.unwrap().0, 200);
    }

    #[tokio::test]
    async fn https_takes_any_certificate() {
        let port = serve(true, |_| (204, vec![])).await;
        let secure = Target { https: true, ..target(port, "/", &[]) };
        assert_eq!(get(&secure, "test").await.unwrap().0, 204);
        assert!(get(&target(port, "/", &[]), "test").await.is_err(), "it does speak TLS");
    }

    #[tokio::test]
    async fn grpc_health_is_asked_for_a_service() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let long = "s".repeat(300);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let service = service_fn(|request: Request<Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    assert_eq!(request.headers()["content-type"], "application/grpc");
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    // The message is its length, then field 1 with the service's name.
                    assert_eq!(u32::from_be_bytes(asked[1..5].try_into().unwrap()) as usize, asked.len() - 5);
                    let name: String =
                        asked[5..].iter().filter(|b| b.is_ascii_lowercase()).map(|b| *b as char).collect();
                    let (status, code) = match name.as_str() {
                        "" => (1, "0"),
                        "sick" => (2, "0"),
                        long if long.len() == 300 => (1, "0"),
                        _ => (0, "5"),
                    };
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", code.parse().unwrap());
                    let frames = [
                        Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]))),
                        Ok(Frame::trailers(trailers)),
                    ];
                    let body = StreamBody::new(futures_util::stream::iter(frames));
                    Ok::<_, Infallible>(
                        Response::builder().header("content-type", "application/grpc").body(body).unwrap(),
                    )
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(tcp), service));
            }
        });
        let check = async |service: &str| grpc_check("127.0.0.1", port, service).await;
        assert_eq!(check("").await, Ok(()));
        assert_eq!(check(&long).await, Ok(()), "names longer than one length byte can say");
        assert!(check("sick").await.unwrap_err().contains("NOT_SERVING"));
        assert!(check("unknown").await.unwrap_err().contains("code = 5"));
    }
}
