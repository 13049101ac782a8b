//! The node's own HTTPS server: logs, exec, attach, port-forward, metrics. Callers prove who they
//! are by a client certificate of the cluster's CA or a token, and the API decides what they may.
//! Upstream counterpart: `pkg/kubelet/server`.

mod auth;
mod logs;
mod spdy;
mod streams;

use crate::agent::Agent;
use crate::{Error, text};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

const CONNECTIONS_MAX: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How the node is reached.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where to listen: loopback, where the API server in this process dials.
    pub address: std::net::IpAddr,
    /// Upstream's is 10250; 0 lets the kernel choose.
    pub port: u16,
    /// The serving certificate, and the CA that client certificates are verified against (they
    /// must be optional: tokens are accepted too).
    pub tls: Arc<rustls::ServerConfig>,
}

pub(crate) type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;
pub(crate) type Answer = Response<Body>;

/// Binds the server's port; with port 0 the kernel chooses one, which the configuration then says.
pub(crate) fn bind(config: &mut ServerConfig) -> Result<std::net::TcpListener, Error> {
    let failed = |what: String| move |source| Error::Io { what, source };
    let address = SocketAddr::from((config.address, config.port));
    let listener = std::net::TcpListener::bind(address).map_err(failed(format!("listen on {address}")))?;
    listener.set_nonblocking(true).map_err(failed("listen".into()))?;
    config.port = listener.local_addr().map_err(failed("listen".into()))?.port();
    Ok(listener)
}

pub(crate) fn start(
    agent: Arc<Agent>,
    config: &ServerConfig,
    listener: std::net::TcpListener,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let listener =
        TcpListener::from_std(listener).map_err(|source| Error::Io { what: "listen".into(), source })?;
    let mut tls = (*config.tls).clone();
    // Streams are upgrades of HTTP/1.1 connections.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    tokio::spawn(accept(agent, listener, TlsAcceptor::from(Arc::new(tls)), cancel));
    Ok(())
}

async fn accept(agent: Arc<Agent>, listener: TcpListener, tls: TlsAcceptor, cancel: CancellationToken) {
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of descriptors, most likely: give those in use time to close.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (agent, tls, cancel) = (agent.clone(), tls.clone(), cancel.clone());
        tokio::spawn(async move {
            let _slot = slot;
            tokio::select! {
                () = cancel.cancelled() => {}
                () = connection(agent, tcp, tls) => {}
            }
        });
    }
}

async fn connection(agent: Arc<Agent>, tcp: tokio::net::TcpStream, tls: TlsAcceptor) {
    let _ = tcp.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return,
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|certs| certs.first()).cloned();
    let identity = certificate.and_then(|cert| auth::of_certificate(&cert)).map(Arc::new);
    let service = service_fn(move |request| {
        let (agent, identity) = (agent.clone(), identity.clone());
        async move { Ok::<_, Infallible>(handle(agent, identity, request).await) }
    });
    let server = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = server.await {
        tracing::debug!(%error, "connection ended");
    }
}

async fn handle(
    agent: Arc<Agent>,
    identity: Option<Arc<auth::Identity>>,
    request: Request<Incoming>,
) -> Answer {
    let caller = match identity {
        Some(identity) => identity,
        None => match auth::of_token(&agent.ctx, request.headers()).await {
            Ok(identity) => Arc::new(identity),
            Err(answer) => return answer,
        },
    };
    if let Err(answer) = auth::authorize(&agent.ctx, &caller, request.method(), request.uri().path()).await {
        return answer;
    }
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    match (request.method(), &parts[..]) {
        (&Method::GET, ["healthz"]) => plain(StatusCode::OK, "ok"),
        (&Method::GET, ["pods"]) => pods(&agent),
        (&Method::GET, ["metrics"]) => plain(StatusCode::OK, metrics(&agent)),
        (&Method::GET, ["stats", "summary"]) => stats(&agent).await,
        (&Method::GET, ["containerLogs", ns, pod, container]) => {
            logs::serve(&agent, ns, pod, container, &query).await
        }
        (&Method::GET | &Method::POST, ["exec", ns, pod, rest @ ..]) if matches!(rest.len(), 1 | 2) => {
            streams::exec(&agent, ns, pod, rest, &query, request, false)
        }
        (&Method::GET | &Method::POST, ["attach", ns, pod, rest @ ..]) if matches!(rest.len(), 1 | 2) => {
            streams::exec(&agent, ns, pod, rest, &query, request, true)
        }
        (&Method::GET | &Method::POST, ["portForward", ns, pod, rest @ ..]) if rest.len() <= 1 => {
            streams::port_forward(&agent, ns, pod, rest, &query, request)
        }
        _ => plain(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

pub(crate) fn plain(code: StatusCode, body: impl Into<String>) -> Answer {
    let mut answer = Response::new(full(body.into()));
    *answer.status_mut() = code;
    answer.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

fn json(value: &serde_json::Value) -> Answer {
    let mut answer = Response::new(full(value.to_string()));
    answer.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    answer
}

fn pods(agent: &Agent) -> Answer {
    let items: Vec<_> =
        agent.workers().iter().map(|w| serde_json::to_value(&*w.pod()).unwrap_or_default()).collect();
    json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

fn metrics(agent: &Agent) -> String {
    let workers = agent.workers();
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for worker in &workers {
        for run in worker.memory().containers.values().filter_map(|c| c.current.as_ref()) {
            *states.entry(if run.is_running() { "running" } else { "exited" }).or_default() += 1;
        }
    }
    let running = workers.iter().filter(|w| w.memory().sandbox == crate::machine::Sandbox::Ready).count();
    let mut out = format!(
        "# HELP kubelet_node_name The node's name.\n# TYPE kubelet_node_name gauge\nkubelet_node_name{{node=\"{}\"}} 1\n\
         # HELP kubelet_running_pods Pods that have a running sandbox.\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods {running}\n\
         # HELP kubelet_running_containers Containers by state.\n# TYPE kubelet_running_containers gauge\n",
        agent.ctx.config.name
    );
    for (state, count) in states {
        out.push_str(&format!("kubelet_running_containers{{container_state=\"{state}\"}} {count}\n"));
    }
    out
}

/// `stats.k8s.io`'s Summary, as far as the runtime measures it.
async fn stats(agent: &Agent) -> Answer {
    let now = agent.ctx.clock.now_seconds().to_string();
    let mut pods = Vec::new();
    for worker in agent.workers() {
        let (pod, memory) = (worker.pod(), worker.memory());
        let (mut containers, mut cpu, mut set) = (Vec::new(), 0u64, 0u64);
        for (name, known) in &memory.containers {
            let Some(run) = known.current.as_ref().filter(|run| run.is_running()) else { continue };
            let Ok(usage) = agent.ctx.runtime.usage(&worker.uid, &run.id).await else { continue };
            cpu += usage.cpu_ns;
            set += usage.memory_working_set_bytes;
            containers.push(serde_json::json!({
                "name": name,
                "startTime": run.started_at.map(|t| t.to_string()),
                "cpu": {"time": now, "usageCoreNanoSeconds": usage.cpu_ns},
                "memory": {"time": now, "usageBytes": usage.memory_bytes, "workingSetBytes": usage.memory_working_set_bytes},
            }));
        }
        let meta = &pod.metadata;
        pods.push(serde_json::json!({
            "podRef": {"name": text(&meta.name), "namespace": text(&meta.namespace), "uid": text(&meta.uid)},
            "startTime": memory.start_time.map(|t| t.to_string()),
            "containers": containers,
            "cpu": {"time": now, "usageCoreNanoSeconds": cpu},
            "memory": {"time": now, "workingSetBytes": set},
        }));
    }
    json(&serde_json::json!({"node": {"nodeName": agent.ctx.config.name}, "pods": pods}))
}

/// A decoded query string.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|p| !p.is_empty());
        Query(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(value))
                })
                .collect(),
        )
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    pub fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some("1" | "true" | "TRUE" | "True" | "t" | "T"))
    }
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = [bytes.next().unwrap_or(b'0'), bytes.next().unwrap_or(b'0')];
                let value = std::str::from_utf8(&digits).ok().and_then(|d| u8::from_str_radix(d, 16).ok());
                out.push(value.unwrap_or(b'?'));
            }
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("command=sh&command=-c&command=echo+a%20b%26c&tty=1&input=true&x=");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo a b&c"]);
        assert!(query.flag("tty") && query.flag("input") && !query.flag("output"));
        assert_eq!(query.get("x"), None);
    }
}
