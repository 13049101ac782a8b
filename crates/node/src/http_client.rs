//! A small HTTP client for probes and hooks: one request on one connection, bounded in time and
//! size, certificates not verified (as upstream's prober does). gRPC health checks too.

use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::sync::{Arc, LazyLock};
use tokio::net::TcpStream;

/// Upstream's bound for probe answers.
const BODY_BYTES_MAX: usize = 10 << 10;

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
        format!("{scheme}://{}{slash}{}", authority(self.host, self.port), self.path)
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Sends a GET; gives the status code and the beginning of the body.
pub async fn get(target: &Target<'_>, user_agent: &str) -> Result<(u16, String), String> {
    let url = target.url();
    let failed = |e: &dyn std::fmt::Display| format!("Get \"{url}\": {e}");
    let tcp = connect(target.host, target.port).await.map_err(|e| failed(&e))?;
    let uri: Uri = url.parse().map_err(|e| failed(&e))?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::builder().method(Method::GET).uri(path);
    let own_host =
        target.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case("host")).map(|(_, v)| v.clone());
    request = request.header("host", own_host.unwrap_or_else(|| authority(target.host, target.port)));
    let has = |name: &str| target.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    if !has("user-agent") {
        request = request.header("user-agent", user_agent);
    }
    if !has("accept") {
        request = request.header("accept", "*/*");
    }
    for (name, value) in
        target.headers.iter().filter(|(n, v)| !n.eq_ignore_ascii_case("host") && !v.is_empty())
    {
        request = request.header(name, value);
    }
    let request =
        request.header("connection", "close").body(Empty::<Bytes>::new()).map_err(|e| failed(&e))?;
    let response = if target.https {
        let name = ServerName::try_from(target.host.to_owned()).map_err(|e| failed(&e))?;
        let tls = tokio_rustls::TlsConnector::from(TLS.clone());
        let stream = tls.connect(name, tcp).await.map_err(|e| failed(&e))?;
        exchange(stream, request).await
    } else {
        exchange(tcp, request).await
    };
    response.map_err(|e| failed(&e))
}

async fn exchange(
    io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<(u16, String), hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let driver = async {
        let _ = connection.await;
        std::future::pending::<()>().await
    };
    let talk = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        // A long body is cut: the status is what counts.
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
        Ok((status, body))
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
    // HealthCheckRequest { service: 1 }, length-prefixed as gRPC frames messages.
    let mut message = Vec::new();
    if !service.is_empty() {
        message.extend([0x0a, service.len().min(127) as u8]);
        message.extend(&service.as_bytes()[..service.len().min(127)]);
    }
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
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

static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NoVerification(provider)))
        .with_no_client_auth();
    Arc::new(config)
});

#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
