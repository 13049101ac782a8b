//! HTTP through the API server: `pods/proxy`, `services/proxy`, `nodes/proxy`. The user's
//! credentials stay here; links and redirects are made to lead through here again.
//! Upstream counterpart: `pkg/registry/core/{pod,service,node}` and
//! `k8s.io/apimachinery/pkg/util/proxy`.

use super::links::Links;
use super::{Backend, Streams, dial_failed, encode_bytes, splice, wants_upgrade};
use crate::hooks::{Call, Seams};
use crate::local::{Body, BoxError, empty, full};
use crate::net::Peer;
use crate::request::RequestInfo;
use crate::resources;
use flate2::Compression;
use flate2::read::{DeflateDecoder, GzDecoder};
use flate2::write::{DeflateEncoder, GzEncoder};
use futures_util::StreamExt;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Incoming;
use serde_json::Value;
use skeg_api::{Reason, Status, meta};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};

/// Longer pages are passed on as they are.
const PAGE_BYTES_MAX: usize = 8 << 20;
/// The label by which an EndpointSlice belongs to a Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// Headers that are about one connection (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// What a backend allows other origins is not said for the API server.
const CORS: [HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
];

/// `name`, `name:port` or `scheme:name:port`.
struct Asked<'a> {
    tls: bool,
    name: &'a str,
    port: &'a str,
}

impl<'a> Asked<'a> {
    fn parse(id: &'a str, what: &str) -> Result<Self, Status> {
        let parts: Vec<&str> = id.split(':').collect();
        let (scheme, name, port) = match parts[..] {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme, name, port] => (scheme, name, port),
            _ => ("invalid", "", ""),
        };
        if name.is_empty() || !matches!(scheme, "" | "http" | "https") {
            return Err(Status::bad_request(format!("invalid {what} request {id:?}")));
        }
        Ok(Asked { tls: scheme == "https", name, port })
    }

    fn at(&self, node: &str, ip: &str, port: &str) -> Result<Backend, Status> {
        let ip: IpAddr = ip.parse().ok().filter(is_proxyable).ok_or_else(not_allowed)?;
        let port = match port {
            "" if self.tls => 443,
            "" => 80,
            port => port.parse().map_err(|_| unreachable(format!("unknown port {port:?}")))?,
        };
        Ok(Backend::Address { node: node.to_owned(), address: SocketAddr::new(ip, port), tls: self.tls })
    }
}

fn not_allowed() -> Status {
    Status::bad_request("address not allowed")
}

/// Addresses of Pods and nodes, not of this host alone or of a link.
fn is_proxyable(ip: &IpAddr) -> bool {
    !ip.is_loopback()
        && !ip.is_multicast()
        && !ip.is_unspecified()
        && match ip {
            IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_broadcast(),
            IpAddr::V6(ip) => !ip.is_unicast_link_local() && ip.to_ipv4_mapped().is_none(),
        }
}

fn unreachable(why: String) -> Status {
    Status::new(503, Reason::ServiceUnavailable, format!("error trying to reach service: {why}"))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn number(value: &Value) -> String {
    value.as_u64().map(|number| number.to_string()).unwrap_or_default()
}

fn backend(call: &Call) -> Result<Backend, Status> {
    match call.info.resource.as_str() {
        "pods" => pod(call, &Asked::parse(&call.info.name, "pod")?),
        "services" => service(call, &Asked::parse(&call.info.name, "service")?),
        _ => node(call, &Asked::parse(&call.info.name, "node")?),
    }
}

fn pod(call: &Call, asked: &Asked<'_>) -> Result<Backend, Status> {
    let pod = call.server.seams().reader.get_value(&resources::PODS, &call.info.namespace, asked.name);
    let pod = pod.ok_or_else(|| Status::not_found("", "pods", asked.name))?;
    let first =
        items(&pod, "/spec/containers").find_map(|container| container.pointer("/ports/0/containerPort"));
    let port =
        if asked.port.is_empty() { first.map(number).unwrap_or_default() } else { asked.port.to_owned() };
    asked.at(text(&pod, "/spec/nodeName"), text(&pod, "/status/podIP"), &port)
}

/// A ready endpoint that is a Pod of the same namespace, by chance. Other endpoints could name any
/// address that the API server reaches.
fn service(call: &Call, asked: &Asked<'_>) -> Result<Backend, Status> {
    let (seams, namespace) = (call.server.seams(), call.info.namespace.as_str());
    let service = seams.reader.get_value(&resources::SERVICES, namespace, asked.name);
    let service = service.ok_or_else(|| Status::not_found("", "services", asked.name))?;
    let port_name = match asked.port.parse::<u64>() {
        Err(_) => asked.port,
        Ok(wanted) => port_name(&service, wanted)?,
    };
    let is_pod = |end: &Value, ip: &str| {
        let pod = || seams.reader.get_value(&resources::PODS, namespace, text(end, "/targetRef/name"));
        end["targetRef"]["kind"] == "Pod"
            && pod().is_some_and(|pod| items(&pod, "/status/podIPs").any(|own| own["ip"] == ip))
    };
    match chosen(seams, &service, port_name, is_pod) {
        Some((node, ip, port)) => asked.at(&node, &ip, &port),
        None => Err(no_endpoints(&call.info.name)),
    }
}

fn unavailable(why: String) -> Status {
    Status::new(503, Reason::ServiceUnavailable, why)
}

fn no_endpoints(name: &str) -> Status {
    unavailable(format!("no endpoints available for service {name:?}"))
}

/// The name of a Service's port of this number.
fn port_name(service: &Value, number: u64) -> Result<&str, Status> {
    let port = items(service, "/spec/ports").find(|port| port["port"].as_u64() == Some(number));
    let none =
        || unavailable(format!("no service port {number} found for service {:?}", meta::name(service)));
    Ok(text(port.ok_or_else(none)?, "/name"))
}

/// One of the ready endpoints of a Service that are let in, by chance: its node, address and port.
fn chosen(
    seams: &Seams,
    service: &Value,
    port_name: &str,
    is_let_in: impl Fn(&Value, &str) -> bool,
) -> Option<(String, String, String)> {
    let mut found = Vec::new();
    for bytes in seams.reader.list(&resources::ENDPOINT_SLICES, meta::namespace(service)) {
        let slice: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if slice["metadata"]["labels"][SERVICE_NAME] != meta::name(service) {
            continue;
        }
        let Some(port) = items(&slice, "/ports").find(|port| text(port, "/name") == port_name) else {
            continue;
        };
        for end in items(&slice, "/endpoints").filter(|end| end["conditions"]["ready"] != false) {
            let ip = text(end, "/addresses/0");
            if is_let_in(end, ip) {
                found.push((text(end, "/nodeName").to_owned(), ip.to_owned(), number(&port["port"])));
            }
        }
    }
    let count = found.len() as u64;
    (count > 0).then(|| found.swap_remove(seams.random.below(count) as usize))
}

/// Where a Service is reached on one of its ports: a node, if it is known, and an address there.
///
/// # Errors
/// Why it is not reached, in upstream's words.
pub(crate) fn endpoint(
    seams: &Seams,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<(String, SocketAddr), Status> {
    let service = seams.reader.get_value(&resources::SERVICES, namespace, name);
    let service = service.ok_or_else(|| Status::not_found("", "service", name))?;
    let found = chosen(seams, &service, port_name(&service, port.into())?, |_, _| true);
    let address = found
        .and_then(|(node, ip, port)| Some((node, SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))));
    address.ok_or_else(|| no_endpoints(name))
}

fn node(call: &Call, asked: &Asked<'_>) -> Result<Backend, Status> {
    let node = call.server.seams().reader.get_value(&resources::NODES, "", asked.name);
    let node = node.ok_or_else(|| Status::not_found("", "nodes", asked.name))?;
    if asked.port.is_empty()
        || asked.port == number(&node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"])
    {
        return Ok(Backend::Node(asked.name.to_owned()));
    }
    let internal = items(&node, "/status/addresses").find(|address| address["type"] == "InternalIP");
    asked.at(asked.name, internal.map_or("", |address| text(address, "/address")), asked.port)
}

/// Joins two paths and resolves `.` and `..`; a slash at the end stays.
pub fn join(first: &str, second: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in first.split('/').chain(second.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let end = if second.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    format!("/{}{end}", parts.join("/"))
}

/// The path up to `proxy`, and what follows: empty, or beginning with a slash.
fn split_path(info: &RequestInfo) -> (&str, String) {
    let path = info.path.trim_end_matches('/');
    let prefix = path.strip_suffix(info.rest.trim_end_matches('/')).unwrap_or(path).trim_end_matches('/');
    let rest = &info.path[prefix.len()..];
    (prefix, if rest.is_empty() { String::new() } else { join("", rest) })
}

/// Copies the headers that are not about one connection.
pub(crate) fn end_to_end(from: &HeaderMap) -> HeaderMap {
    let named: Vec<String> = from
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    let mut to = HeaderMap::new();
    for (name, value) in from {
        if !HOP_BY_HOP.contains(name) && !named.iter().any(|named| named == name.as_str()) {
            to.append(name.clone(), value.clone());
        }
    }
    to
}

/// Who the user is, and as whom they act, is between them and the API server.
fn without_credentials(headers: &mut HeaderMap) {
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let protocols: Vec<&str> =
        protocols.filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(',')).collect();
    let kept = protocols.iter().filter(|word| !word.contains("base64url.bearer.authorization.k8s.io."));
    let kept = HeaderValue::from_str(&kept.map(|word| word.trim()).collect::<Vec<_>>().join(", ")).ok();
    headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    if let Some(kept) = kept.filter(|kept| !kept.is_empty()) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, kept);
    }
    headers.remove(header::AUTHORIZATION);
    let impersonation: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    for name in impersonation {
        headers.remove(name);
    }
}

impl Streams {
    /// Passes a request on, and what comes back.
    pub(super) async fn relay(
        &self,
        call: &Call,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let served = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
        if !served.contains(&request.method().as_str()) {
            return Err(Status::unserved());
        }
        let backend = backend(call)?;
        let (prefix, path) = split_path(&call.info);
        let query = if call.info.query.is_empty() { String::new() } else { format!("?{}", call.info.query) };
        let upgrade = wants_upgrade(request.headers());
        if path.is_empty() && !upgrade && matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = Response::new(empty());
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            let to = format!("{}/{query}", escape(&call.info.path));
            response.headers_mut().insert(header::LOCATION, to.parse().map_err(Status::internal)?);
            return Ok(response);
        }
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let host =
            host.or(request.uri().authority().map(|host| host.as_str())).unwrap_or_default().to_owned();
        let mut headers = onward_headers(&request, upgrade)?;
        headers.insert(header::HOST, host.parse().map_err(Status::internal)?);
        if !upgrade {
            let uri = escape(&join(prefix, &path));
            headers.insert(X_FORWARDED_URI, uri.parse().map_err(Status::internal)?);
        }
        let client = upgrade.then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let mut onward = Request::new(if upgrade { empty() } else { body });
        *onward.method_mut() = parts.method;
        *onward.version_mut() = Version::HTTP_11;
        *onward.headers_mut() = headers;
        let target = format!("{}{query}", escape(if path.is_empty() { "/" } else { &path }));
        *onward.uri_mut() = target.parse().map_err(|_| Status::bad_request("the path is not a valid URL"))?;
        let failed = if upgrade { dial_failed } else { unreachable };
        let answer = self.send(call, &backend, onward, failed).await?;
        if let Some(client) = client {
            let code = answer.status();
            if code == StatusCode::SWITCHING_PROTOCOLS {
                let headers = answer.headers().clone();
                return Ok(splice(call, client, answer, headers));
            }
            if code.as_u16() < 400 {
                let text = format!("invalid upgrade response: status code {}", code.as_u16());
                return Err(Status::new(500, Reason::Empty, text));
            }
        }
        let address = match &backend {
            Backend::Node(node) => node.clone(),
            Backend::Address { address, .. } => address.to_string(),
        };
        answered(answer, &Links { backend: &address, host: &host, prefix }).await
    }
}

pub(crate) fn onward_headers(request: &Request<Body>, upgrade: bool) -> Result<HeaderMap, Status> {
    let mut headers = end_to_end(request.headers());
    without_credentials(&mut headers);
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        for protocol in request.headers().get_all(header::UPGRADE) {
            headers.append(header::UPGRADE, protocol.clone());
        }
    }
    if let Some(Peer(peer)) = request.extensions().get::<Peer>() {
        let before = headers.get_all(&X_FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        let mut all: Vec<String> = before.map(str::to_owned).collect();
        all.push(peer.to_string());
        headers.insert(X_FORWARDED_FOR, all.join(", ").parse().map_err(Status::internal)?);
    }
    Ok(headers)
}

/// The backend's answer with its links rewritten.
async fn answered(answer: Response<Incoming>, links: &Links<'_>) -> Result<Response<Body>, Status> {
    let (parts, body) = answer.into_parts();
    let mut headers = end_to_end(&parts.headers);
    for name in CORS {
        headers.remove(name);
    }
    let of = |headers: &HeaderMap, name: HeaderName| {
        headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let (location, kind) = (of(&headers, header::LOCATION), of(&headers, header::CONTENT_TYPE));
    let is_page = kind.split(';').next().is_some_and(|kind| kind.trim() == "text/html");
    let body = if !location.is_empty() {
        if let Some(link) = links.rewrite(&location) {
            headers.insert(header::LOCATION, link.parse().map_err(Status::internal)?);
        }
        body.map_err(BoxError::from).boxed_unsync()
    } else if is_page {
        page(body, &mut headers, links).await?
    } else {
        body.map_err(BoxError::from).boxed_unsync()
    };
    let mut response = Response::new(body);
    *response.status_mut() = parts.status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// A page with its links rewritten; one that is too long or in an unknown encoding as it is.
async fn page(mut body: Incoming, headers: &mut HeaderMap, links: &Links<'_>) -> Result<Body, Status> {
    let mut bytes = Vec::new();
    while bytes.len() <= PAGE_BYTES_MAX {
        match body.frame().await {
            None => {
                let encoding =
                    headers.get(header::CONTENT_ENCODING).map_or(&b""[..], |value| value.as_bytes());
                let Some(page) = rewritten(&bytes, encoding, links) else { return Ok(full(bytes)) };
                // A HEAD has no page, and says how long it would be.
                if !bytes.is_empty() {
                    headers.insert(header::CONTENT_LENGTH, page.len().into());
                }
                return Ok(full(page));
            }
            Some(Ok(frame)) => bytes.extend(frame.into_data().unwrap_or_default()),
            Some(Err(error)) => return Err(unreachable(error.to_string())),
        }
    }
    let begin = futures_util::stream::iter([Ok(hyper::body::Frame::data(bytes.into()))]);
    let rest = BodyStream::new(body).map(|frame| frame.map_err(BoxError::from));
    Ok(StreamBody::new(begin.chain(rest)).boxed_unsync())
}

fn rewritten(bytes: &[u8], encoding: &[u8], links: &Links<'_>) -> Option<Vec<u8>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let plain = |from: &mut dyn Read| -> io::Result<Vec<u8>> {
        let mut page = Vec::new();
        from.take(PAGE_BYTES_MAX as u64 + 1).read_to_end(&mut page)?;
        if page.len() > PAGE_BYTES_MAX {
            Err(io::ErrorKind::FileTooLarge.into())
        } else {
            Ok(links.page(&page))
        }
    };
    let encoded = || -> io::Result<Option<Vec<u8>>> {
        Ok(Some(match encoding {
            b"" => links.page(bytes),
            b"gzip" => {
                let mut out = GzEncoder::new(Vec::new(), Compression::default());
                out.write_all(&plain(&mut GzDecoder::new(bytes))?)?;
                out.finish()?
            }
            b"deflate" => {
                let mut out = DeflateEncoder::new(Vec::new(), Compression::best());
                out.write_all(&plain(&mut DeflateDecoder::new(bytes))?)?;
                out.finish()?
            }
            _ => return Ok(None),
        }))
    };
    encoded().ok().flatten()
}

/// A decoded path as it stands in a URL.
fn escape(path: &str) -> String {
    encode_bytes(path, b"-._~$&+,/:;=@")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_scheme_and_port() {
        for (id, expected) in [
            ("p", Some((false, "p", ""))),
            ("p:80", Some((false, "p", "80"))),
            ("p:http", Some((false, "p", "http"))),
            ("https:p:443", Some((true, "p", "443"))),
            ("https:p:", Some((true, "p", ""))),
            (":p:1", Some((false, "p", "1"))),
            ("ftp:p:1", None),
            ("a:b:c:d", None),
            (":80", None),
        ] {
            let got = Asked::parse(id, "pod").ok();
            assert_eq!(got.map(|asked| (asked.tls, asked.name, asked.port)), expected, "{id}");
        }
    }

    #[test]
    fn paths_are_cleaned_and_keep_their_last_slash() {
        for (path, prefix, rest) in [
            ("/api/v1/nodes/n/proxy", "/api/v1/nodes/n/proxy", ""),
            ("/api/v1/nodes/n/proxy/", "/api/v1/nodes/n/proxy", "/"),
            ("/api/v1/nodes/n/proxy/a/b", "/api/v1/nodes/n/proxy", "/a/b"),
            ("/api/v1/nodes/n/proxy/a//../../../b/", "/api/v1/nodes/n/proxy", "/b/"),
            ("/api/v1/nodes/n/proxy/proxy", "/api/v1/nodes/n/proxy", "/proxy"),
            ("/api/v1/nodes/n/proxy//a", "/api/v1/nodes/n/proxy", "/a"),
        ] {
            let info = crate::route::parse(&Method::GET, &path.parse().unwrap()).unwrap();
            assert_eq!(split_path(&info), (prefix, rest.to_owned()), "{path}");
        }
        assert_eq!(escape("/a b/é?#%\"@=:"), "/a%20b/%C3%A9%3F%23%25%22@=:");
    }

    #[test]
    fn compressed_pages_are_rewritten_within_bounds() {
        let links = Links { backend: "10.1.2.3:80", host: "h", prefix: "/p" };
        let gzip = |page: &[u8]| {
            let mut out = GzEncoder::new(Vec::new(), Compression::default());
            out.write_all(page).and_then(|()| out.finish()).unwrap()
        };
        let mut page = String::new();
        let got = rewritten(&gzip(b"<a href=/x>"), b"gzip", &links).unwrap();
        GzDecoder::new(&got[..]).read_to_string(&mut page).unwrap();
        assert_eq!(page, "<a href=/p/x>");
        assert!(rewritten(&gzip(&vec![b' '; PAGE_BYTES_MAX + 1]), b"gzip", &links).is_none());
        assert!(rewritten(b"not gzip", b"gzip", &links).is_none());
        assert!(rewritten(b"<a href=/x>", b"br", &links).is_none());
    }

    #[test]
    fn addresses_of_this_host_are_refused() {
        for ip in
            ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "fe80::1", "::ffff:127.0.0.1"]
        {
            assert!(!is_proxyable(&ip.parse().unwrap()), "{ip}");
        }
        assert!(is_proxyable(&"10.1.2.3".parse().unwrap()) && is_proxyable(&"fd00::1".parse().unwrap()));
    }
}
