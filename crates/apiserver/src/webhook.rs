//! Requests to a webhook, of admission or of conversion: found by URL or by Service, over TLS that trusts the authority in its
//! configuration, on connections that are used again, within a time and a size.
//! Upstream counterpart: `k8s.io/apiserver/pkg/util/webhook/client.go`.

use crate::hooks::Seams;
use crate::proxy::relay::endpoint;
use crate::proxy::{Connection, Dialer, connect};
use crate::server::ApiServer;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::client::WantsClientCert;
use rustls::{CertificateError, ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use skeg_api::Status;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_rustls::TlsConnector;

/// How much longer than the request an answer may be.
const ANSWER_BYTES_MAX: usize = 3 << 20;
/// Connections kept open while nobody asks.
const IDLE_MAX: usize = 16;
/// How much of an answer that is none is told.
const TOLD_CHARS_MAX: usize = 2048;
const AGENT: &str = "kube-apiserver-admission";

enum Target {
    Url { host: String, port: u16 },
    Service { namespace: String, name: String, port: u16 },
}

/// The way to one webhook.
pub struct Client {
    target: Target,
    /// `host:port` as the URL says it.
    authority: String,
    path: String,
    server_name: ServerName<'static>,
    tls: TlsConnector,
    dialer: Option<Arc<dyn Dialer>>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Client {
    /// From a `clientConfig`.
    ///
    /// # Errors
    /// If it cannot be used, such as an authority that is no certificate.
    pub fn new(config: &Value, dialer: Option<Arc<dyn Dialer>>) -> Result<Self, String> {
        let text = |at: &str| config.pointer(at).and_then(Value::as_str).unwrap_or_default();
        let (target, authority, host, path) = match config["url"].as_str() {
            Some(url) => {
                let uri: http::Uri = url.parse().map_err(|error| format!("parse {url:?}: {error}"))?;
                let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
                let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
                let target = Target::Url { host: host.clone(), port: uri.port_u16().unwrap_or(443) };
                (target, authority, host, uri.path().to_owned())
            }
            None => {
                let (namespace, name) = (text("/service/namespace"), text("/service/name"));
                let port = config["service"]["port"].as_u64().and_then(|port| port.try_into().ok());
                let port = port.unwrap_or(443);
                let host = format!("{name}.{namespace}.svc");
                let target = Target::Service { namespace: namespace.into(), name: name.into(), port };
                (target, format!("{host}:{port}"), host, text("/service/path").to_owned())
            }
        };
        let server_name = ServerName::try_from(host).map_err(|error| error.to_string())?;
        let builder = ClientConfig::builder_with_provider(skeg_base::tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let tls = trusting(builder, text("/caBundle"))?.with_no_client_auth();
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        let tls = TlsConnector::from(Arc::new(tls));
        Ok(Client { target, authority, path, server_name, tls, dialer, idle: Mutex::default() })
    }

    /// Sends a review and reads the answer.
    ///
    /// # Errors
    /// Why there is no answer, in upstream's words where there are some.
    pub async fn post(&self, server: &Arc<ApiServer>, body: Bytes, seconds: u64) -> Result<Bytes, String> {
        let uri = format!("{}?timeout={seconds}s", self.path);
        let failed = |why: String| format!("Post \"https://{}{uri}\": {why}", self.authority);
        let exchange = self.exchange(server, &uri, body);
        match tokio::time::timeout(Duration::from_secs(seconds), exchange).await {
            Err(_) => Err(failed("context deadline exceeded".to_owned())),
            Ok(Err(why)) => Err(failed(why)),
            Ok(Ok((StatusCode::OK | StatusCode::CREATED | StatusCode::ACCEPTED, answer))) => Ok(answer),
            Ok(Ok((StatusCode::NOT_FOUND, _))) => {
                Err("the server could not find the requested resource".to_owned())
            }
            Ok(Ok((code, answer))) if code.is_server_error() => {
                let text: String =
                    String::from_utf8_lossy(&answer).trim().chars().take(TOLD_CHARS_MAX).collect();
                Err(format!("an error on the server ({text:?}) has prevented the request from succeeding"))
            }
            Ok(Ok((code, _))) => Err(format!(
                "the server responded with the status code {} but did not return more information",
                code.as_u16()
            )),
        }
    }

    async fn exchange(
        &self,
        server: &Arc<ApiServer>,
        uri: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), String> {
        loop {
            let kept = self.kept();
            let is_new = kept.is_none();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.open(server).await?,
            };
            let request = Request::builder()
                .method(Method::POST)
                .uri(uri)
                .header(header::HOST, &self.authority)
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::ACCEPT, "application/json, */*")
                .header(header::USER_AGENT, AGENT)
                .body(Full::new(body.clone()))
                .map_err(|error| error.to_string())?;
            let response = match sender.try_send_request(request).await {
                Ok(response) => response,
                // The server closed a connection that nobody used: nothing was sent.
                Err(mut error) => match error.take_message() {
                    Some(_) if !is_new => continue,
                    _ => return Err(reason(error.error())),
                },
            };
            let code = response.status();
            let answer = Limited::new(response.into_body(), body.len() + ANSWER_BYTES_MAX).collect().await;
            let answer = answer.map_err(|error| error.to_string())?.to_bytes();
            if sender.ready().await.is_ok() {
                let mut idle = self.idle.lock();
                if idle.len() < IDLE_MAX {
                    idle.push(sender);
                }
            }
            return Ok((code, answer));
        }
    }

    /// A connection that is open and free.
    fn kept(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock();
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    async fn open(&self, server: &Arc<ApiServer>) -> Result<SendRequest<Full<Bytes>>, String> {
        let stream = self.dial(server.seams()).await?;
        let stream = self.tls.connect(self.server_name.clone(), stream).await.map_err(|error| match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            Some(rustls::Error::InvalidCertificate(why)) => {
                format!("tls: failed to verify certificate: x509: {}", told(why))
            }
            _ => error.to_string(),
        })?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| reason(&error))?;
        let (tasks, stop) = server.tasks();
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection to a webhook ended");
                    }
                }
                () = stop.cancelled() => {}
            }
        });
        Ok(sender)
    }

    async fn dial(&self, seams: &Seams) -> Result<Box<dyn Connection>, String> {
        let (node, address) = match &self.target {
            Target::Url { host, port } => (String::new(), resolve(host, *port).await?),
            Target::Service { namespace, name, port } => {
                endpoint(seams, namespace, name, *port).map_err(|status: Status| status.message)?
            }
        };
        let dialed = match &self.dialer {
            Some(dialer) => dialer.dial_address(&node, address).await,
            None => connect(address).await,
        };
        dialed.map_err(|error| format!("dial tcp {address}: connect: {}", plain(&error)))
    }
}

/// `Connection refused (os error 111)` as upstream writes it.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

fn reason(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_canceled() { "EOF".to_owned() } else { error.to_string() }
}

/// Why a certificate is not believed, as upstream words it.
fn told(why: &CertificateError) -> String {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, Other, UnknownIssuer,
    };
    match why {
        BadSignature | UnknownIssuer => "certificate signed by unknown authority".to_owned(),
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => {
            "certificate has expired or is not yet valid".to_owned()
        }
        NotValidForName => "certificate is not valid for this name".to_owned(),
        NotValidForNameContext { expected, presented } => {
            // `DnsName("a")`, as they are shown.
            let names: Vec<_> = presented.iter().map(|name| name.split('"').nth(1).unwrap_or(name)).collect();
            let (names, expected) = (names.join(", "), expected.to_str());
            format!("certificate is valid for {names}, not {expected}")
        }
        Other(_) => "certificate of an authority: serve another, or name this one in the bundle".to_owned(),
        other => other.to_string(),
    }
}

async fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    let failed = || format!("dial tcp: lookup {host}: no such host");
    let mut found = tokio::net::lookup_host((host, port)).await.map_err(|_| failed())?;
    found.next().ok_or_else(failed)
}

/// Believes whom a `caBundle` names, or without one whom the host trusts.
pub(crate) fn trusting(
    builder: ConfigBuilder<ClientConfig, WantsVerifier>,
    bundle: &str,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, String> {
    if bundle.is_empty() {
        return Ok(builder.with_root_certificates(host_roots()));
    }
    let bad = || "unable to load root certificates: unable to parse bytes as PEM block".to_owned();
    let pem = STANDARD.decode(bundle).map_err(|_| bad())?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    skeg_base::tls::trusting(builder, certificates.map_err(|_| bad())?).map_err(|_| bad())
}

/// The authorities that the host trusts, read once.
fn host_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let load = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    };
    ROOTS.get_or_init(load).clone()
}
