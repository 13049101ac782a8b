//! The server: one function from request to answer. Who asks, whether they may, how many at once,
//! how long, then the generic path or an endpoint that plugs in. Knows no kinds.
//! Upstream counterpart: `k8s.io/apiserver/pkg/server` and its handler chain.

use crate::cache::{Cache, CacheError};
use crate::convert::Conversions;
use crate::crds::{self, Definitions};
use crate::hooks::{Call, Certificates, Hooks, Seams};
use crate::identity::Identity;
use crate::local::{Body, full};
use crate::negotiate;
use crate::protobuf;
use crate::query::{self, Query};
use crate::registry;
use crate::request::{Attributes, Decision, RequestInfo};
use crate::route::{self, Routes, Served};
use crate::stats::{self, Stats};
use futures_util::FutureExt;
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use skeg_api::{Gvk, Kind, Kinds, Status};
use skeg_base::{Clock, Random};
use skeg_store::{Revision, Store};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Upstream's defaults of `--max-requests-inflight` and its mutating counterpart.
const READS_INFLIGHT_MAX: usize = 400;
const WRITES_INFLIGHT_MAX: usize = 200;
/// `--request-timeout`
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
pub(crate) const TIMED_OUT: &str = "the request did not complete within the allotted timeout";
/// How often watchers that want bookmarks get one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Upstream's default of `--etcd-compaction-interval`. Each compaction keeps the last interval.
const COMPACT_EVERY: Duration = Duration::from_secs(300);

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

pub struct Config {
    /// The open table of kinds.
    pub kinds: Arc<Kinds>,
    /// Makes what plugs in, once the cache is loaded.
    pub hooks: Box<dyn FnOnce(&Seams) -> Hooks + Send>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Where a request comes from.
pub enum Origin {
    /// A component of this process.
    Local(Identity),
    /// A connection, with the verified certificate chain of its client.
    Network(Arc<Certificates>),
}

pub struct ApiServer {
    pub(crate) cache: Arc<Cache>,
    routes: Routes,
    hooks: Hooks,
    seams: Seams,
    pub(crate) stats: Arc<Stats>,
    pub(crate) conversions: Conversions,
    reads: Semaphore,
    writes: Semaphore,
    compact_every: tokio::sync::watch::Sender<Duration>,
    stop: CancellationToken,
    /// Cancelled when the store's content cannot be understood any more.
    failed: CancellationToken,
    tasks: TaskTracker,
}

impl ApiServer {
    /// Loads the store's content and starts following it.
    pub async fn open(
        config: Config,
        store: Arc<dyn Store>,
        clock: Clock,
        random: Random,
    ) -> Result<Arc<Self>, OpenError> {
        let stats = Arc::new(Stats::default());
        let cache = Cache::open(store.clone(), config.kinds.clone(), stats.clone()).await?;
        let definitions = Definitions::load(&config.kinds, &cache);
        let seams = Seams { reader: cache.clone(), kinds: config.kinds, store, clock, random };
        let server = Arc::new(ApiServer {
            routes: Routes::new(seams.kinds.clone(), &cache),
            hooks: (config.hooks)(&seams),
            conversions: Conversions::default(),
            cache,
            seams,
            stats,
            reads: Semaphore::new(READS_INFLIGHT_MAX),
            writes: Semaphore::new(WRITES_INFLIGHT_MAX),
            stop: CancellationToken::new(),
            compact_every: tokio::sync::watch::Sender::new(COMPACT_EVERY),
            failed: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        server.tasks.spawn(server.clone().follow());
        let opened = (tokio::time::Instant::now(), server.cache.revision());
        server.tasks.spawn(server.clone().keep(opened));
        if let Some(definitions) = definitions {
            server.tasks.spawn(crds::run(server.clone(), definitions));
        }
        Ok(server)
    }

    pub fn kinds(&self) -> &Arc<Kinds> {
        &self.seams.kinds
    }

    pub fn seams(&self) -> &Seams {
        &self.seams
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    pub fn clock(&self) -> Clock {
        self.seams.clock
    }

    pub fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    /// Where tasks of this server are spawned, and what tells them to stop.
    pub fn tasks(&self) -> (&TaskTracker, &CancellationToken) {
        (&self.tasks, &self.stop)
    }

    /// Resolves when the server cannot go on: the process should stop and say why (it is logged).
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Whether [`ApiServer::stop`] was called or the server failed.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Ends watches and connections, and waits for all tasks.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.cache.end_watches();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn follow(self: Arc<Self>) {
        let run = self.cache.run();
        let ended = tokio::select! {
            biased;
            ended = run => ended,
            () = self.stop.cancelled() => return,
        };
        match ended {
            Ok(()) => tracing::info!("the store closed"),
            Err(error) => {
                tracing::error!(%error, "the store's content cannot be followed; the API server stops")
            }
        }
        self.failed.cancel();
    }

    /// Sets the time between two compactions.
    pub fn compact_every(&self, interval: Duration) {
        self.compact_every.send_replace(interval);
    }

    /// Bookmarks each minute; compaction each five, or as set; counted from when the server was
    /// opened, at which revision.
    async fn keep(self: Arc<Self>, opened: (tokio::time::Instant, u64)) {
        let mut bookmarks = tokio::time::interval_at(opened.0 + BOOKMARK_EVERY, BOOKMARK_EVERY);
        bookmarks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut every = self.compact_every.subscribe();
        let (mut compacted, mut keep_from) = opened;
        loop {
            let due = compacted + *every.borrow_and_update();
            tokio::select! {
                biased;
                _ = bookmarks.tick() => self.cache.bookmark(),
                () = tokio::time::sleep_until(due) => {
                    if let Err(error) = self.seams.store.compact(Revision(keep_from)).await {
                        tracing::warn!(%error, "compaction failed; the next one tries again");
                    }
                    self.cache.forget(keep_from);
                    (compacted, keep_from) = (tokio::time::Instant::now(), self.cache.revision());
                }
                _ = every.changed() => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// One request. Never fails and never panics: every refusal is a Status.
    pub async fn handle(self: &Arc<Self>, request: Request<Body>, origin: Origin) -> Response<Body> {
        stats::add(&self.stats.requests_total, 1);
        let encoding = negotiate::error_encoding(request.headers());
        let network = matches!(origin, Origin::Network(_));
        let answer = AssertUnwindSafe(self.answer(request, origin)).catch_unwind().await;
        let mut response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => negotiate::respond_status(&status, encoding),
            Err(_) => {
                stats::add(&self.stats.panics_total, 1);
                tracing::error!("a request panicked");
                let status = Status::internal("the request failed; the log of the API server says why");
                negotiate::respond_status(&status, encoding)
            }
        };
        if network {
            let headers = response.headers_mut();
            if let Ok(id) = HeaderValue::from_str(&self.seams.random.uuid()) {
                headers.insert(AUDIT_ID, id);
            }
            if !headers.contains_key(header::CACHE_CONTROL) {
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
            }
        }
        response
    }

    async fn answer(
        self: &Arc<Self>,
        request: Request<Body>,
        origin: Origin,
    ) -> Result<Response<Body>, Status> {
        let (parts, body) = request.into_parts();
        let info = route::parse(&parts.method, &parts.uri)?;
        let started = Instant::now();
        let claimed = self.hooks.endpoints.iter().any(|endpoint| endpoint.claims(&info));
        let target = if claimed { None } else { self.target(&info) };
        let labels = Labels::of(&info, target.as_deref());
        let answer = self.answer_to(parts, body, info, target, origin).await;
        let code = answer.as_ref().map_or_else(|status| status.code, |response| response.status().as_u16());
        labels.count(&self.stats, code, started.elapsed());
        answer
    }

    async fn answer_to(
        self: &Arc<Self>,
        parts: Parts,
        body: Body,
        info: RequestInfo,
        target: Option<Arc<Served>>,
        origin: Origin,
    ) -> Result<Response<Body>, Status> {
        let (identity, local) = match origin {
            Origin::Local(identity) => (identity, true),
            Origin::Network(chain) => (self.hooks.authenticator.authenticate(&parts, &chain).await?, false),
        };
        self.authorize(&identity, &info)?;
        let endpoint = match &target {
            // Plain verbs of stored kinds are the common case and never an endpoint's.
            Some(served) if served.resource.is_some() && info.subresource.is_empty() => None,
            _ => self.hooks.endpoints.iter().find(|endpoint| endpoint.handles(&info)),
        };
        if info.verb == "watch" || endpoint.is_some_and(|endpoint| endpoint.long_running(&info)) {
            return self.dispatch(parts, body, info, identity, local, target, endpoint).await;
        }
        let read = matches!(info.verb, "get" | "list" | "head");
        let (limit, gauge) = if read {
            (&self.reads, &self.stats.inflight_read)
        } else {
            (&self.writes, &self.stats.inflight_write)
        };
        // Components of this process bound themselves; refusing them would only delay the work.
        let permit = if local { None } else { Some(limit.try_acquire()) };
        if let Some(Err(_)) = permit {
            stats::add(&self.stats.rejected_total, 1);
            return Err(Status::too_many_requests("too many requests, please try again later", 1));
        }
        let _inflight = Inflight::enter(gauge);
        let allowed = allowed_time(&info)?;
        let served = self.dispatch(parts, body, info, identity, local, target, endpoint);
        match tokio::time::timeout(allowed, served).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::timeout(TIMED_OUT)),
        }
    }

    pub(crate) fn authorize(&self, identity: &Identity, info: &RequestInfo) -> Result<(), Status> {
        let attributes = Attributes {
            identity,
            verb: info.verb,
            group: &info.group,
            version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            path: if info.is_resource() { "" } else { &info.path },
            query: &info.query,
        };
        match self.hooks.authorizer.authorize(&attributes) {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(forbidden(&attributes, &reason)),
        }
    }

    /// The row of a resource, ready to serve.
    pub fn served(&self, group: &str, version: &str, resource: &str) -> Option<Arc<Served>> {
        self.routes.find(&self.cache, group, version, resource)
    }

    fn target(&self, info: &RequestInfo) -> Option<Arc<Served>> {
        if !info.is_resource() {
            return None;
        }
        let served = self.routes.find(&self.cache, &info.group, &info.version, &info.resource)?;
        let namespaces = info.group.is_empty() && info.resource == "namespaces";
        let fits = match (served.kind.namespaced, info.namespace.is_empty()) {
            (false, false) => namespaces,
            // Without a namespace there are only lists and watches over all of them.
            (true, true) => info.name.is_empty() || matches!(info.verb, "list" | "watch"),
            _ => true,
        };
        fits.then_some(served)
    }

    #[expect(clippy::too_many_arguments, reason = "the request taken apart, once")]
    async fn dispatch(
        self: &Arc<Self>,
        mut parts: Parts,
        mut body: Body,
        mut info: RequestInfo,
        identity: Identity,
        local: bool,
        target: Option<Arc<Served>>,
        endpoint: Option<&Arc<dyn crate::hooks::Endpoint>>,
    ) -> Result<Response<Body>, Status> {
        let streams = endpoint.is_some_and(|endpoint| endpoint.long_running(&info));
        if let Some(served) = &target {
            // Proxies pass methods on that are no verb, such as OPTIONS.
            if !streams || !info.verb.is_empty() {
                self.check_verb(&info, served)?;
            }
            let is_itself = &*served.kind.plural == "namespaces" && info.name == info.namespace;
            let misplaced = !served.kind.namespaced && !info.namespace.is_empty() && !is_itself;
            if misplaced || !info.rest.is_empty() && info.subresource != "proxy" {
                return self.unknown_path(&info);
            }
            if !served.kind.namespaced {
                info.namespace.clear();
            }
            // The old form of a watch names the verb in the path.
            if info.verb == "watch" && !matches!(parts.method, Method::GET | Method::HEAD) {
                return Err(Status::unserved());
            }
        }
        if let Some(served) = &target
            && has_object(&info)
            && !streams
            && negotiate::media_type(&parts.headers) == protobuf::MEDIA_TYPE
        {
            let expected = expected_kind(&info, &served.kind);
            // Custom resources have no numbers for their fields; options of a delete do.
            if served.kind.schema.is_custom() && expected == served.kind.gvk {
                return Err(negotiate::unsupported());
            }
            body = Box::pin(from_protobuf(&mut parts, body, &expected)).await?;
        }
        if let Some(endpoint) = endpoint {
            let kind = target.map(|served| served.kind.clone());
            let call = Call { server: self.clone(), identity, info, kind, local };
            return endpoint.call(call, Request::from_parts(parts, body)).await;
        }
        let Some(served) = target else { return self.unknown_path(&info) };
        if !info.subresource.is_empty() && served.kind.subresource(&info.subresource).is_none() {
            return self.unknown_path(&info);
        }
        let query = Query::parse(&info.query);
        let request = registry::Context {
            server: self,
            served: &served,
            identity: &identity,
            info: &info,
            query: &query,
        };
        registry::serve(request, &parts, body).await
    }

    /// The answer where nothing is served: below `/api` and the built-in groups a Status, as their
    /// router gives it, elsewhere plain text.
    fn unknown_path(&self, info: &RequestInfo) -> Result<Response<Body>, Status> {
        let mut parts = info.path.trim_start_matches('/').split('/');
        let routed = match (parts.next(), parts.next()) {
            (Some("api" | "version"), Some(_)) => true,
            (Some("apis"), Some(group)) => {
                let kinds = self.seams.kinds.snapshot();
                kinds.of_group(group).any(|kind| !kind.schema.is_custom())
            }
            _ => false,
        };
        if routed { Err(Status::no_route()) } else { Ok(page_not_found()) }
    }

    fn check_verb(&self, info: &RequestInfo, served: &Served) -> Result<(), Status> {
        let verbs = match info.subresource.as_str() {
            "" => served.kind.verbs,
            name => match served.kind.subresource(name) {
                Some(subresource) => subresource.verbs,
                None => return Ok(()),
            },
        };
        // Objects are made in collections and changed by name; over all namespaces they are read, no more.
        let everywhere = served.kind.namespaced && info.namespace.is_empty();
        let misplaced = match info.verb {
            "create" if info.subresource.is_empty() => !info.name.is_empty() || everywhere,
            "deletecollection" => everywhere,
            "update" | "patch" => info.name.is_empty(),
            _ => false,
        };
        if verbs.contains(&info.verb) && !misplaced { Ok(()) } else { Err(Status::unserved()) }
    }
}

/// What a request is counted by.
struct Labels {
    verb: &'static str,
    scope: &'static str,
    subresource: String,
    served: Option<Arc<Kind>>,
}

impl Labels {
    fn of(info: &RequestInfo, served: Option<&Served>) -> Self {
        let scope = match (served.is_some(), info.name.is_empty(), info.namespace.is_empty()) {
            (false, ..) => "",
            (true, false, _) => "resource",
            (true, true, false) => "namespace",
            (true, true, true) => "cluster",
        };
        let known = served.filter(|served| served.kind.subresource(&info.subresource).is_some());
        let verb = match info.verb {
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" | "post" => "POST",
            "update" | "put" => "PUT",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            "head" => "HEAD",
            _ => "OTHER",
        };
        Labels {
            verb,
            scope,
            subresource: known.map(|_| info.subresource.clone()).unwrap_or_default(),
            served: served.map(|served| served.kind.clone()),
        }
    }

    fn count(&self, stats: &Stats, code: u16, took: Duration) {
        let (group, version, resource) = match &self.served {
            Some(kind) => (&*kind.gvk.group, &*kind.gvk.version, &*kind.plural),
            None => ("", "", ""),
        };
        stats.request(self.verb, [group, version, resource, &self.subresource], self.scope, code, took);
    }
}

struct Inflight<'a>(&'a AtomicU64);

impl<'a> Inflight<'a> {
    fn enter(gauge: &'a AtomicU64) -> Self {
        stats::add(gauge, 1);
        Inflight(gauge)
    }
}

impl Drop for Inflight<'_> {
    fn drop(&mut self) {
        stats::sub(self.0, 1);
    }
}

/// Whether the body of a request is an object, in an encoding of the client's choice.
fn has_object(info: &RequestInfo) -> bool {
    matches!(info.verb, "create" | "update" | "delete" | "deletecollection")
}

/// A protobuf body as JSON, so that nothing behind this knows of the encoding.
async fn from_protobuf(parts: &mut Parts, body: Body, expected: &Gvk) -> Result<Body, Status> {
    let bytes = registry::read_body(body).await?;
    let json = match bytes.is_empty() && &*expected.kind == "DeleteOptions" {
        true => bytes,
        false => protobuf::body_to_json(&bytes, expected)?.into(),
    };
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    parts.headers.remove(header::CONTENT_LENGTH);
    Ok(full(json))
}

/// The kind that the body of a request is to be.
fn expected_kind(info: &RequestInfo, kind: &Kind) -> Gvk {
    if matches!(info.verb, "delete" | "deletecollection") {
        return Gvk::new("", "v1", "DeleteOptions");
    }
    match kind.subresource(&info.subresource).and_then(|sub| sub.gvk) {
        Some((group, version, kind)) => Gvk::new(group, version, kind),
        None => kind.gvk.clone(),
    }
}

/// How long a request may take: what its `timeout` parameter says, within the server's limit.
fn allowed_time(info: &RequestInfo) -> Result<Duration, Status> {
    if !info.query.contains("timeout=") {
        return Ok(REQUEST_TIMEOUT);
    }
    let query = Query::parse(&info.query);
    match query.text("timeout") {
        "" => Ok(REQUEST_TIMEOUT),
        text => match query::duration(text) {
            Some(Duration::ZERO) => Ok(REQUEST_TIMEOUT),
            Some(asked) => Ok(asked.min(REQUEST_TIMEOUT)),
            None => Err(Status::bad_request("invalid timeout specified in the request URL")),
        },
    }
}

/// 403 in upstream's words.
pub(crate) fn forbidden(attributes: &Attributes<'_>, reason: &str) -> Status {
    let Attributes { identity, verb, group, resource, subresource, namespace, name, path, .. } = attributes;
    let user = identity.user();
    let mut why = if resource.is_empty() {
        format!("User {user:?} cannot {verb} path {path:?}")
    } else {
        let full =
            if subresource.is_empty() { (*resource).to_owned() } else { format!("{resource}/{subresource}") };
        let place = match namespace.is_empty() || (group.is_empty() && *resource == "namespaces") {
            true => "at the cluster scope".to_owned(),
            false => format!("in the namespace {namespace:?}"),
        };
        format!("User {user:?} cannot {verb} resource {full:?} in API group {group:?} {place}")
    };
    if reason.starts_with("User ") {
        why = reason.to_owned();
    } else if !reason.is_empty() {
        why = format!("{why}: {reason}");
    }
    if resource.is_empty() {
        let mut status = Status::forbidden("", "", "", why);
        status.message = format!("forbidden: {}", status.message.trim_start_matches(" is forbidden: "));
        return status;
    }
    Status::forbidden(group, resource, name, why)
}

/// What upstream's router answers for paths it does not know.
pub fn page_not_found() -> Response<Body> {
    let mut response = Response::new(full("404 page not found\n"));
    *response.status_mut() = StatusCode::NOT_FOUND;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
