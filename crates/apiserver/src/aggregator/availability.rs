//! Whether other servers can be reached: the condition `Available` of APIServices, in upstream's
//! words. What a server that answers says of its resources is read at the same time.
//! Upstream counterpart: `kube-aggregator/pkg/controllers/status/{local,remote}`.

use super::remote::{Learned, Remote};
use super::{Aggregator, documents, relay};
use crate::bootstrap::api_services::{PATH as API_SERVICES, local_condition};
use crate::conditions;
use crate::hooks::Seams;
use crate::identity::Identity;
use crate::local::empty;
use crate::resources;
use crate::server::ApiServer;
use futures_util::future::join_all;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};
use skeg_base::Backoff;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

/// How often a server is asked that nothing is known to have changed of.
const ASK_EVERY: Duration = Duration::from_secs(30);
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer about resources, and the longest OpenAPI document.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// The label by which an EndpointSlice belongs to a Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Status, reason and message.
type Verdict = (&'static str, &'static str, String);

/// What is remembered of a server between looks.
struct Looked {
    /// What the cluster said of the way to it.
    way: Result<(), Verdict>,
    remote: Arc<Remote>,
    next: Instant,
    backoff: Backoff,
}

/// What the cluster says of the way to a server.
fn way(seams: &Seams, remote: &Remote) -> Result<(), Verdict> {
    let Remote { namespace, service: name, port, .. } = remote;
    let no = |reason: &'static str, message: String| Err(("False", reason, message));
    let Some(service) = seams.reader.get_value(&resources::SERVICES, namespace, name) else {
        return no("ServiceNotFound", format!("service/{name} in {namespace:?} is not present"));
    };
    if service["spec"]["type"].as_str().unwrap_or("ClusterIP") != "ClusterIP" {
        return Ok(());
    }
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let Some(found) = ports.into_iter().find(|own| own["port"].as_u64() == Some((*port).into())) else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return no("ServicePortError", message);
    };
    let port_name = found["name"].as_str().unwrap_or_default();
    let slices = seams.reader.list(&resources::ENDPOINT_SLICES, namespace);
    let slices = slices.iter().filter_map(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    let slices: Vec<Value> =
        slices.filter(|slice| slice["metadata"]["labels"][SERVICE_NAME] == name.as_str()).collect();
    if slices.is_empty() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return no("EndpointsNotFound", message);
    }
    let serves = |slice: &Value| {
        let list = |field: &str| slice[field].as_array().cloned().unwrap_or_default();
        list("endpoints").iter().any(|end| end["conditions"]["ready"] != false)
            && list("ports").iter().any(|own| own["name"].as_str().unwrap_or_default() == port_name)
    };
    if slices.iter().any(serves) {
        return Ok(());
    }
    let message = format!(
        "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
    );
    no("MissingEndpoints", message)
}

/// Follows APIServices and the way to their servers, until this server stops.
pub async fn run(server: Arc<ApiServer>, aggregator: Arc<Aggregator>) {
    let seams = server.seams();
    let mut services = seams.reader.changes(&resources::API_SERVICES);
    let mut ways = [&resources::SERVICES, &resources::ENDPOINT_SLICES].map(|gvr| seams.reader.changes(gvr));
    let (_, stop) = server.tasks();
    let mut known: BTreeMap<String, Looked> = BTreeMap::new();
    // The revision up to which those that this server serves are told to be there.
    let mut settled = 0;
    loop {
        services.borrow_and_update();
        for way in &mut ways {
            way.borrow_and_update();
        }
        let failed = settle_local(&server, &mut settled).await.is_err();
        let next = aggregator.look(&server, &mut known).await;
        let next = if failed { Some(next.unwrap_or(ASK_EVERY).min(Duration::from_secs(1))) } else { next };
        let [of_services, of_slices] = &mut ways;
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = services.changed() => if changed.is_err() { return },
            _ = of_services.changed(), if !known.is_empty() => {}
            _ = of_slices.changed(), if !known.is_empty() => {}
            () = tokio::time::sleep(next.unwrap_or_default()), if next.is_some() => {}
        }
    }
}

/// What this server serves itself is always there. Looks at what changed after the revision that is
/// settled.
async fn settle_local(server: &Arc<ApiServer>, settled: &mut u64) -> Result<(), String> {
    let reader = &server.seams().reader;
    let (all, newest) = reader.revisions(&resources::API_SERVICES);
    for (name, _) in all.iter().filter(|(_, revision)| revision > settled) {
        let Some(bytes) = reader.get(&resources::API_SERVICES, "", name) else { continue };
        let object: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if !object["spec"]["service"].is_object() {
            conditions::set(server, API_SERVICES, object, local_condition()).await?;
        }
    }
    *settled = newest;
    Ok(())
}

impl Aggregator {
    /// Looks at each server whose turn it is, and says when the next one's is.
    async fn look(
        self: &Arc<Self>,
        server: &Arc<ApiServer>,
        known: &mut BTreeMap<String, Looked>,
    ) -> Option<Duration> {
        let remotes = self.remotes();
        known.retain(|name, _| remotes.values().any(|remote| remote.name == *name));
        let now = Instant::now();
        let due = remotes.values().filter_map(|remote| {
            let way = way(server.seams(), remote);
            let before = known.get(&remote.name);
            let changed = before.is_none_or(|before| {
                before.way != way || !Arc::ptr_eq(&before.remote.learned, &remote.learned)
            });
            (changed || before.is_some_and(|before| before.next <= now)).then(|| (remote.clone(), way))
        });
        let asked = join_all(due.map(|(remote, way)| async move {
            let verdict = match &way {
                Ok(()) => self.ask(server, &remote).await,
                Err(verdict) => verdict.clone(),
            };
            (remote, way, verdict)
        }))
        .await;
        for (remote, way, (status, reason, message)) in asked {
            let fresh = || Backoff::new(Duration::from_millis(500), ASK_EVERY);
            let mut backoff = known.remove(&remote.name).map_or_else(fresh, |before| before.backoff);
            let condition =
                json!({"type": "Available", "status": status, "reason": reason, "message": message});
            let object = server.seams().reader.get(&resources::API_SERVICES, "", &remote.name);
            let object = object.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            let written = match object.filter(|object| object["spec"]["service"].is_object()) {
                Some(object) => conditions::set(server, API_SERVICES, object, condition).await,
                None => Ok(()),
            };
            // Without a way there is nobody to ask: a change of it is told.
            let pause = if (status == "True" || way.is_err()) && written.is_ok() {
                backoff.reset();
                ASK_EVERY
            } else {
                backoff.next()
            };
            known.insert(remote.name.clone(), Looked { way, remote, next: Instant::now() + pause, backoff });
        }
        known.values().map(|looked| looked.next.saturating_duration_since(Instant::now())).min()
    }

    /// Asks for what a server must serve; whoever stands between is not what this is about, so that
    /// its certificate is not looked at.
    async fn ask(&self, server: &Arc<ApiServer>, remote: &Remote) -> Verdict {
        let url = format!("https://{}:{}{}", remote.host(), remote.port, remote.root());
        let failed = |why: String| {
            remote.learned.lock().is_current = false;
            let message = format!("failing or missing response from {url}: {why}");
            ("False", "FailedDiscoveryCheck", message)
        };
        let tls = match self.trusting() {
            Ok(tls) => tls,
            Err(why) => return failed(why),
        };
        match self.read(server, remote, &tls, &remote.root()).await {
            Err(why) => failed(why),
            Ok((code, _)) if !(200..300).contains(&code) => failed(format!("bad status from {url}: {code}")),
            Ok(_) => {
                self.learn(server, remote).await;
                ("True", "Passed", "all checks passed".to_owned())
            }
        }
    }

    /// Reads what a server says of its resources; this counts only from the server that the
    /// APIService means.
    async fn learn(&self, server: &Arc<ApiServer>, remote: &Remote) {
        let Ok(tls) = &remote.tls else { return };
        let json = async |path: &str| match self.read(server, remote, tls, path).await {
            Ok((200, body)) => serde_json::from_slice::<Value>(&body).ok(),
            _ => None,
        };
        let before = remote.learned.lock().clone();
        let list = json(&remote.root()).await.filter(|list| list["resources"].is_array());
        let mut now = Learned { is_current: list.is_some(), ..before.clone() };
        if let Some(list) = list {
            now.resources = Some(Arc::new(documents::resources(&list, &remote.group, &remote.version)));
            now.openapi_v3 =
                json("/openapi/v3").await.and_then(|index| documents::openapi_v3(&index, &remote.root()));
            let v2 = json("/openapi/v2").await;
            now.openapi_v2 =
                v2.and_then(|document| documents::openapi_v2(document, &remote.root())).map(Arc::new);
        }
        if now != before {
            *remote.learned.lock() = now;
            self.kinds.touch();
        }
    }

    async fn read(
        &self,
        server: &Arc<ApiServer>,
        remote: &Remote,
        tls: &TlsConnector,
        path: &str,
    ) -> Result<(u16, bytes::Bytes), String> {
        let mut headers = HeaderMap::new();
        // Whatever the server lets others see, this one sees.
        relay::identify(
            &mut headers,
            &Identity::new(
                "system:kube-aggregator".into(),
                String::new(),
                vec!["system:masters".into()],
                BTreeMap::new(),
            ),
        );
        let host = format!("{}:{}", remote.host(), remote.port);
        let request =
            Request::get(path).header(header::HOST, host).header(header::ACCEPT, "application/json");
        let mut request = request.body(empty()).map_err(|error| error.to_string())?;
        request.headers_mut().extend(headers);
        let exchange = async {
            let answer = self.exchange(server, remote, tls, request).await?;
            let code = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok((code, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        match tokio::time::timeout(ASK_TIMEOUT, exchange).await {
            Ok(result) => result,
            Err(_) => Err("context deadline exceeded".to_owned()),
        }
    }
}
