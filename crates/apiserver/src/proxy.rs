//! Streams to nodes: logs, exec, attach, port-forward. The API server checks who asks and what
//! for, then passes the connection through to the server of the Pod's node; the protocols inside
//! are between the client and the node. `relay` does the same for what listens in Pods.
//! Upstream counterpart: `pkg/registry/core/pod/{rest/subresources.go,strategy.go}`,
//! `k8s.io/apimachinery/pkg/util/proxy`.

mod links;
pub mod relay;

use crate::admission::{self, Admission, Operation, Options, Phase};
use crate::frames;
use crate::hooks::{Call, Endpoint};
use crate::local::{Body, BoxError, empty};
use crate::query::Query;
use crate::request::{Attributes, Decision, RequestInfo};
use crate::resources;
use crate::server::{ApiServer, forbidden};
use futures_util::future::BoxFuture;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use skeg_api::field::{FieldError, Path};
use skeg_api::{Gvk, Reason, Status, names};
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsConnector;

const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams open at once, logs included.
const STREAMS_MAX: usize = 4096;
/// How much of a node's refusal is told to the client.
const REFUSAL_BYTES_MAX: usize = 50 << 10;

/// A connection to a node, before TLS.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Reaches the server of a node, wherever it is: this process, an address, a tunnel.
pub trait Dialer: Send + Sync + 'static {
    fn dial<'a>(&'a self, node: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>>;

    /// Reaches an address of a node or of a Pod there. `node` is empty where it is not known.
    fn dial_address<'a>(
        &'a self,
        node: &'a str,
        address: SocketAddr,
    ) -> BoxFuture<'a, io::Result<Box<dyn Connection>>>;
}

/// A connection of this host, for dialers that need no tunnel.
///
/// # Errors
/// Those of connecting.
pub async fn connect(address: SocketAddr) -> io::Result<Box<dyn Connection>> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

/// Whom a request goes to.
enum Backend {
    /// The server of a node.
    Node(String),
    /// What listens at an address, with TLS that trusts anyone or without.
    Address { node: String, address: SocketAddr, tls: bool },
}

pub struct Streams {
    dialer: Arc<dyn Dialer>,
    tls: TlsConnector,
    /// For backends whose certificates nobody vouches for.
    trusting: TlsConnector,
    slots: Arc<Semaphore>,
}

impl Streams {
    /// `tls` has the client certificate of the API server and trusts the cluster's authority. A
    /// node's certificate must name the node.
    pub fn new(dialer: Arc<dyn Dialer>, tls: Arc<rustls::ClientConfig>) -> Self {
        let builder = rustls::ClientConfig::builder_with_provider(skeg_base::tls::provider())
            .with_safe_default_protocol_versions()
            .expect("the provider knows the default versions");
        let trusting = skeg_base::tls::trusting_anyone(builder).with_no_client_auth();
        Streams {
            dialer,
            tls: TlsConnector::from(tls),
            trusting: TlsConnector::from(Arc::new(trusting)),
            slots: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }
}

impl Endpoint for Streams {
    fn handles(&self, info: &RequestInfo) -> bool {
        let resource = (info.resource.as_str(), info.subresource.as_str());
        info.group.is_empty()
            && info.version == "v1"
            && matches!(
                resource,
                ("pods", "log" | "exec" | "attach" | "portforward")
                    | ("pods" | "services" | "nodes", "proxy")
            )
    }

    fn long_running(&self, _info: &RequestInfo) -> bool {
        true
    }

    fn call(&self, call: Call, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, Status>> {
        Box::pin(async move {
            let query = Query::parse(&call.info.query);
            if call.info.subresource == "proxy" {
                admit(&call, &query).await?;
                return self.relay(&call, request).await;
            }
            let reader = &call.server.seams().reader;
            let pod = reader.get_value(&resources::PODS, &call.info.namespace, &call.info.name);
            let pod = pod.ok_or_else(|| Status::not_found("", "pods", &call.info.name))?;
            if call.info.subresource == "log" {
                return self.log(&call, &query, &pod).await;
            }
            creates(&call)?;
            let node = node_of(&pod).ok_or_else(|| {
                Status::bad_request(format!("pod {} does not have a host assigned", call.info.name))
            })?;
            let target = target(&call.info, &query, &pod)?;
            admit(&call, &query).await?;
            self.tunnel(&call, node, &target, request).await
        })
    }
}

/// Opening a stream into a container changes things, also where WebSocket makes it a GET.
fn creates(call: &Call) -> Result<(), Status> {
    if call.info.verb == "create" {
        return Ok(());
    }
    let info = &call.info;
    let asked = Attributes {
        identity: &call.identity,
        verb: "create",
        group: &info.group,
        version: &info.version,
        resource: &info.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        path: "",
        query: "",
    };
    match call.server.hooks().authorizer.authorize(&asked) {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(forbidden(&asked, &reason)),
    }
}

/// Lets admission refuse a connection. It sees the options of the request as an object.
async fn admit(call: &Call, query: &Query) -> Result<(), Status> {
    let (info, Some(kind)) = (&call.info, call.kind.as_ref()) else { return Ok(()) };
    let Some((group, version, name)) = kind.subresource(&info.subresource).and_then(|sub| sub.gvk) else {
        return Ok(());
    };
    let api_version = Gvk::new(group, version, name).api_version();
    let mut options = json!({"kind": name, "apiVersion": api_version});
    for flag in ["stdin", "stdout", "stderr", "tty"] {
        if query.flag(flag) == Some(true) {
            options[flag] = true.into();
        }
    }
    for text in ["container", "path"] {
        if !query.text(text).is_empty() {
            options[text] = query.text(text).into();
        }
    }
    let command: Vec<&str> = query.all("command").collect();
    if !command.is_empty() {
        options["command"] = command.into();
    }
    let ports: Vec<u64> =
        query.all("ports").flat_map(|p| p.split(',')).filter_map(|p| p.parse().ok()).collect();
    if !ports.is_empty() {
        options["ports"] = ports.into();
    }
    if info.subresource == "proxy" && !info.rest.is_empty() {
        options["path"] = format!("/{}", info.rest).into();
    }
    let mut admission = Admission {
        operation: Operation::Connect,
        kind,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        identity: &call.identity,
        object: Some(&mut options),
        old: None,
        dry_run: false,
        options: Options::None,
        warnings: &mut Vec::new(),
        reservations: &mut Vec::new(),
        server: Some(&call.server),
        reinvocation: Default::default(),
    };
    for phase in [Phase::Mutate, Phase::Validate] {
        admission::run(&call.server.hooks().admission, phase, &mut admission).await?;
    }
    Ok(())
}

fn node_of(pod: &Value) -> Option<&str> {
    pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty())
}

fn encode(text: &str) -> String {
    encode_bytes(text, b"-._~")
}

fn encode_bytes(text: &str, kept: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// A path on the node with its query.
fn location(action: &str, info: &RequestInfo, container: Option<&str>, query: &[(&str, String)]) -> String {
    let mut path = format!("/{action}/{}/{}", encode(&info.namespace), encode(&info.name));
    if let Some(container) = container {
        path.push('/');
        path.push_str(&encode(container));
    }
    for (i, (key, value)) in query.iter().enumerate() {
        let _ = write!(path, "{}{key}={}", if i == 0 { '?' } else { '&' }, encode(value));
    }
    path
}

fn target(info: &RequestInfo, query: &Query, pod: &Value) -> Result<String, Status> {
    if info.subresource == "portforward" {
        let ports: Vec<&str> = query.all("ports").collect();
        let ports = if ports.is_empty() { Vec::new() } else { vec![("port", ports.join(","))] };
        return Ok(location("portForward", info, None, &ports));
    }
    let container = container(query.text("container"), pod, &info.name)?;
    let mut options: Vec<(&str, String)> = Vec::new();
    for (from, to) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if query.flag(from) == Some(true) {
            options.push((to, "1".into()));
        }
    }
    if info.subresource == "exec" {
        options.extend(query.all("command").map(|word| ("command", word.to_owned())));
    }
    Ok(location(&info.subresource, info, Some(&container), &options))
}

/// The container that is meant: the named one, or the only one.
fn container(name: &str, pod: &Value, pod_name: &str) -> Result<String, Status> {
    let list = |field: &str| -> Vec<&str> {
        pod["spec"][field].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    let (main, init, ephemeral) = (list("containers"), list("initContainers"), list("ephemeralContainers"));
    if !name.is_empty() {
        let known = main.iter().chain(&init).chain(&ephemeral).any(|known| *known == name);
        return if known {
            Ok(name.to_owned())
        } else {
            Err(Status::bad_request(format!("container {name} is not valid for pod {pod_name}")))
        };
    }
    if let [only] = main.as_slice() {
        return Ok((*only).to_owned());
    }
    let mut text = format!("a container name must be specified for pod {pod_name}");
    if !main.is_empty() {
        let _ = write!(text, ", choose one of: [{}]", main.join(" "));
    }
    for (names, what) in [(init, "init"), (ephemeral, "ephemeral")] {
        if !names.is_empty() {
            let _ = write!(text, " or one of the {what} containers: [{}]", names.join(" "));
        }
    }
    Err(Status::bad_request(text))
}

/// `PodLogOptions`, checked and as the node's query.
fn log_options(query: &Query, pod_name: &str) -> Result<Vec<(&'static str, String)>, Status> {
    let (mut options, mut errors) = (Vec::new(), Vec::new());
    for flag in ["follow", "previous", "timestamps"] {
        if query.flag(flag) == Some(true) {
            options.push((flag, "true".to_owned()));
        }
    }
    let number = |name: &'static str| match query.get(name) {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse::<i64>()
            .map(Some)
            .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
    };
    for (name, least, why) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        if let Some(n) = number(name)? {
            if n < least {
                errors.push(FieldError::invalid(Path::new(name), n, why));
            }
            options.push((name, n.to_string()));
        }
    }
    match query.text("sinceTime") {
        "" => {}
        text => match text.parse::<jiff::Timestamp>() {
            Ok(_) => options.push(("sinceTime", text.to_owned())),
            Err(_) => {
                let why =
                    format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?}");
                return Err(Status::bad_request(why));
            }
        },
    }
    if !query.text("sinceTime").is_empty() && !query.text("sinceSeconds").is_empty() {
        let detail = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errors.push(FieldError::forbidden(Path::root(), detail));
    }
    match query.text("stream") {
        "" | "All" => {}
        stream @ ("Stdout" | "Stderr") => {
            if !query.text("tailLines").is_empty() {
                let detail = "`tailLines` and specific `stream` are mutually exclusive for now";
                errors.push(FieldError::forbidden(Path::root(), detail));
            }
            options.push(("stream", stream.to_owned()));
        }
        other => {
            errors.push(FieldError::not_supported(Path::new("stream"), other, &["All", "Stderr", "Stdout"]));
        }
    }
    if errors.is_empty() { Ok(options) } else { Err(Status::invalid("", "PodLogOptions", pod_name, &errors)) }
}

fn dial_failed(error: String) -> Status {
    Status::new(500, Reason::Empty, format!("error dialing backend: {error}"))
}

/// Sends one request over a stream of its own. The connection lives on for what the request turns
/// into, holds its slot as long, and ends with the server.
pub(crate) async fn exchange<S>(
    server: &ApiServer,
    slot: OwnedSemaphorePermit,
    stream: S,
    request: Request<Body>,
) -> hyper::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let (tasks, stop) = server.tasks();
    let stop = stop.clone();
    tasks.spawn(async move {
        let _slot = slot;
        tokio::select! {
            ended = connection.with_upgrades() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a relayed connection ended");
                }
            }
            () = stop.cancelled() => {}
        }
    });
    sender.send_request(request).await
}

impl Streams {
    async fn log(&self, call: &Call, query: &Query, pod: &Value) -> Result<Response<Body>, Status> {
        let options = log_options(query, &call.info.name)?;
        let container = container(query.text("container"), pod, &call.info.name)?;
        let Some(node) = node_of(pod) else {
            // Nothing ran yet, so there is nothing to read.
            let mut response = Response::new(empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(response);
        };
        let target = location("containerLogs", &call.info, Some(&container), &options);
        let request = Request::builder().method(Method::GET).uri(target).header(header::HOST, node);
        let request = request.body(empty()).map_err(Status::internal)?;
        let response = self.send(call, &Backend::Node(node.to_owned()), request, dial_failed).await?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let (parts, body) = response.into_parts();
        let mut response = Response::new(body.map_err(BoxError::from).boxed_unsync());
        let kind = parts.headers.get(header::CONTENT_TYPE).cloned();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, kind.unwrap_or_else(|| HeaderValue::from_static("text/plain")));
        if query.flag("insecureSkipTLSVerifyBackend") == Some(true) {
            let text =
                "insecureSkipTLSVerifyBackend has no effect: the certificate of a node is always verified"
                    .to_owned();
            crate::registry::warn(headers, &[text]);
        }
        Ok(response)
    }

    /// Sends one request over a connection of its own.
    async fn send(
        &self,
        call: &Call,
        backend: &Backend,
        request: Request<Body>,
        failed: fn(String) -> Status,
    ) -> Result<Response<Incoming>, Status> {
        let slot = self.slots.clone().try_acquire_owned();
        let slot = slot
            .map_err(|_| Status::too_many_requests("too many streams are open, please try again later", 1))?;
        let connected = tokio::time::timeout(DIAL_TIMEOUT, self.connect(backend)).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed("timeout".into())),
        };
        exchange(&call.server, slot, stream, request).await.map_err(|error| failed(error.to_string()))
    }

    async fn connect(&self, backend: &Backend) -> io::Result<Box<dyn Connection>> {
        let (stream, tls, name) = match backend {
            Backend::Node(node) => {
                let name = ServerName::try_from(node.clone()).map_err(io::Error::other)?;
                (self.dialer.dial(node).await?, &self.tls, name)
            }
            Backend::Address { node, address, tls } => {
                let stream = self.dialer.dial_address(node, *address).await?;
                if !tls {
                    return Ok(stream);
                }
                (stream, &self.trusting, ServerName::from(address.ip()))
            }
        };
        Ok(Box::new(tls.connect(name, stream).await?))
    }

    /// Passes an upgraded connection through.
    async fn tunnel(
        &self,
        call: &Call,
        node: &str,
        target: &str,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        if !wants_upgrade(request.headers()) {
            return Err(Status::bad_request("Upgrade request required"));
        }
        let client = hyper::upgrade::on(&mut request);
        let mut onward = Request::builder().method(request.method().clone()).uri(target);
        if let Some(headers) = onward.headers_mut() {
            passed(request.headers(), headers);
            headers.insert(header::HOST, HeaderValue::from_str(node).map_err(Status::internal)?);
        }
        let onward = onward.body(empty()).map_err(Status::internal)?;
        let answer = self.send(call, &Backend::Node(node.to_owned()), onward, dial_failed).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(answer).await);
        }
        let mut headers = HeaderMap::new();
        passed(answer.headers(), &mut headers);
        Ok(splice(call, client, answer, headers))
    }
}

/// Answers that protocols were switched, and copies between the two connections until one ends;
/// frames of a WebSocket stay apart.
pub(crate) fn splice(
    call: &Call,
    client: OnUpgrade,
    mut answer: Response<Incoming>,
    headers: HeaderMap,
) -> Response<Body> {
    let server = hyper::upgrade::on(&mut answer);
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    let upgraded = response.headers().get(header::UPGRADE);
    let in_frames = upgraded.is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let (tasks, stop) = call.server.tasks();
    let stop = stop.clone();
    tasks.spawn(async move {
        let copy = async {
            let (client, server) = tokio::try_join!(client, server)?;
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            if !in_frames {
                tokio::io::copy_bidirectional(&mut client, &mut server).await?;
                return Ok::<(), BoxError>(());
            }
            let (mut from_client, mut to_client) = tokio::io::split(client);
            let (from_server, mut to_server) = tokio::io::split(server);
            let onward = async {
                tokio::io::copy(&mut from_client, &mut to_server).await?;
                to_server.shutdown().await
            };
            tokio::try_join!(frames::copy(from_server, &mut to_client), onward)?;
            Ok(())
        };
        tokio::select! {
            ended = copy => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "stream ended");
                }
            }
            () = stop.cancelled() => {}
        }
    });
    response
}

pub(crate) fn wants_upgrade(headers: &HeaderMap) -> bool {
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let named = connection.flat_map(|v| v.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    named && headers.contains_key(header::UPGRADE)
}

/// Only what belongs to the upgrade crosses; credentials and identities of the client do not.
fn passed(from: &HeaderMap, to: &mut HeaderMap) {
    const NAMES: [HeaderName; 8] = [
        header::CONNECTION,
        header::UPGRADE,
        header::SEC_WEBSOCKET_ACCEPT,
        header::SEC_WEBSOCKET_EXTENSIONS,
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_PROTOCOL,
        header::SEC_WEBSOCKET_VERSION,
        HeaderName::from_static("x-stream-protocol-version"),
    ];
    for name in NAMES {
        for value in from.get_all(&name) {
            let credential = name == header::SEC_WEBSOCKET_PROTOCOL
                && value.to_str().is_ok_and(|v| v.contains("base64url.bearer.authorization.k8s.io."));
            if !credential {
                to.append(name.clone(), value.clone());
            }
        }
    }
}

/// What a node's refusal becomes.
async fn refusal(response: Response<Incoming>) -> Status {
    let code = response.status();
    let body = Limited::new(response.into_body(), REFUSAL_BYTES_MAX).collect().await;
    let text =
        body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
    if let Ok(status) = serde_json::from_str::<Status>(&text)
        && status.code == code.as_u16()
    {
        return status;
    }
    match code {
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::NOT_FOUND => Status::new(404, Reason::NotFound, text),
        StatusCode::FORBIDDEN => Status::new(403, Reason::Forbidden, text),
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(text),
        code => Status::new(code.as_u16().max(400), Reason::Unknown, text),
    }
}

/// Whether a node's name can be the name in its certificate.
pub fn is_node_name(name: &str) -> bool {
    names::is_dns1123_subdomain(name).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(main: &[&str], init: &[&str]) -> Value {
        let list = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        json!({"spec": {"nodeName": "n1", "containers": list(main), "initContainers": list(init)}})
    }

    #[test]
    fn the_container_is_named_or_the_only_one() {
        assert_eq!(container("", &pod(&["a"], &["i"]), "p").unwrap(), "a");
        assert_eq!(container("i", &pod(&["a"], &["i"]), "p").unwrap(), "i");
        assert_eq!(
            container("x", &pod(&["a"], &[]), "p").unwrap_err().message,
            "container x is not valid for pod p"
        );
        assert_eq!(
            container("", &pod(&["a", "b"], &["i"]), "p").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
    }

    #[test]
    fn targets_are_the_nodes_paths() {
        let info = |sub: &str| RequestInfo {
            namespace: "a".into(),
            name: "p".into(),
            subresource: sub.into(),
            ..Default::default()
        };
        let check = |sub: &str, query: &str, expected: &str| {
            assert_eq!(target(&info(sub), &Query::parse(query), &pod(&["c"], &[])).unwrap(), expected);
        };
        check(
            "exec",
            "command=sh&command=-c&command=echo+%24A%26&stdin=true&stdout=true&tty=false",
            "/exec/a/p/c?input=1&output=1&command=sh&command=-c&command=echo%20%24A%26",
        );
        check("attach", "container=c&stderr=1&command=x", "/attach/a/p/c?error=1");
        check("portforward", "ports=80&ports=90", "/portForward/a/p?port=80%2C90");
        check("portforward", "", "/portForward/a/p");
    }

    #[test]
    fn log_options_are_checked() {
        let options = |query: &str| log_options(&Query::parse(query), "p");
        assert_eq!(
            options("follow=true&tailLines=5&stream=All&previous=false").unwrap(),
            [("follow", "true".to_owned()), ("tailLines", "5".to_owned())]
        );
        for (query, code) in [
            ("tailLines=-1", 422),
            ("limitBytes=0", 422),
            ("sinceSeconds=0", 422),
            ("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", 422),
            ("stream=Both", 422),
            ("stream=Stdout&tailLines=1", 422),
            ("tailLines=x", 400),
            ("sinceTime=yesterday", 400),
        ] {
            assert_eq!(options(query).unwrap_err().code, code, "{query}");
        }
    }

    #[test]
    fn credentials_do_not_cross() {
        let mut from = HeaderMap::new();
        for (name, value) in [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("authorization", "Bearer x"),
            ("impersonate-user", "y"),
            ("sec-websocket-protocol", "v5.channel.k8s.io"),
        ] {
            from.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        assert!(wants_upgrade(&from));
        let mut to = HeaderMap::new();
        passed(&from, &mut to);
        assert_eq!(to.len(), 3);
        assert!(!to.contains_key("authorization") && !to.contains_key("impersonate-user"));
    }
}
