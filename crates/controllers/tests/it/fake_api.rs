//! A small API server in memory: enough of create, get, list, watch, update, patch and delete for
//! controllers to run against, with finalizers, graceful deletion of Pods and faults on demand.

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};
use skeg_api::Status;
use skeg_api::selector::LabelSelector;
use skeg_base::Clock;
use skeg_client::{Body, BoxError};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::watch;

/// Group, resource, kind, namespaced.
const KINDS: [(&str, &str, &str, bool); 21] = [
    ("", "namespaces", "Namespace", false),
    ("", "nodes", "Node", false),
    ("", "pods", "Pod", true),
    ("", "events", "Event", true),
    ("", "configmaps", "ConfigMap", true),
    ("", "secrets", "Secret", true),
    ("", "serviceaccounts", "ServiceAccount", true),
    ("", "services", "Service", true),
    ("", "endpoints", "Endpoints", true),
    ("", "persistentvolumes", "PersistentVolume", false),
    ("", "persistentvolumeclaims", "PersistentVolumeClaim", true),
    ("", "resourcequotas", "ResourceQuota", true),
    ("", "replicationcontrollers", "ReplicationController", true),
    ("apps", "deployments", "Deployment", true),
    ("apps", "replicasets", "ReplicaSet", true),
    ("authorization.k8s.io", "subjectaccessreviews", "SubjectAccessReview", false),
    ("certificates.k8s.io", "certificatesigningrequests", "CertificateSigningRequest", false),
    ("coordination.k8s.io", "leases", "Lease", true),
    ("discovery.k8s.io", "endpointslices", "EndpointSlice", true),
    ("rbac.authorization.k8s.io", "clusterroles", "ClusterRole", false),
    ("example.com", "widgets", "Widget", true),
];

type Key = (String, String);

/// What a fault does to a write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is refused.
    Refuse(u16),
    /// It happens, and the answer is lost.
    LoseAnswer,
}

type FaultFn = Box<dyn FnMut(&Method, &str) -> Option<Fault> + Send>;

type CheckFn = Box<dyn Fn(&State) -> Result<(), String> + Send>;

pub struct State {
    clock: Clock,
    revision: u64,
    objects: BTreeMap<String, BTreeMap<Key, Value>>,
    log: Vec<(u64, String, &'static str, Value)>,
    /// `METHOD path` of each write that changed something, events left out.
    pub writes: Vec<String>,
    pub fault: Option<FaultFn>,
    /// Resources served besides the built-in ones.
    pub widgets: bool,
    /// The paths of discovery that were asked for.
    pub discovered: Vec<String>,
    /// Called with the state after each write.
    pub check: Option<CheckFn>,
    /// What the check found, with the writes before it.
    violation: Option<String>,
}

#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

impl State {
    pub fn list(&self, resource: &str) -> Vec<&Value> {
        self.objects.get(resource).into_iter().flat_map(BTreeMap::values).collect()
    }

    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(resource)?.get(&(namespace.to_owned(), name.to_owned()))
    }

    pub fn now(&self) -> String {
        self.clock.now_seconds().to_string()
    }

    fn last_writes(&self) -> &[String] {
        &self.writes[self.writes.len().saturating_sub(40)..]
    }

    fn stamp(&mut self, resource: &str, mut object: Value, kind: &'static str) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        self.log.push((self.revision, resource.to_owned(), kind, object.clone()));
        object
    }

    fn store(&mut self, resource: &str, key: Key, object: Value) -> Value {
        let deleting = object["metadata"].get("deletionTimestamp").is_some_and(|at| !at.is_null());
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        let held = held || resource == "pods" && object["metadata"]["deletionGracePeriodSeconds"] != 0;
        let held = held
            || resource == "namespaces"
                && object["spec"]["finalizers"].as_array().is_some_and(|l| !l.is_empty());
        if deleting && !held {
            self.objects.get_mut(resource).unwrap().remove(&key);
            return self.stamp(resource, object, "DELETED");
        }
        let known = self.objects.get(resource).is_some_and(|all| all.contains_key(&key));
        let object = self.stamp(resource, object, if known { "MODIFIED" } else { "ADDED" });
        self.objects.entry(resource.to_owned()).or_default().insert(key, object.clone());
        object
    }

    fn create(&mut self, resource: &str, namespace: &str, mut object: Value) -> Result<Value, Status> {
        let number = self.revision + 1;
        if resource == "subjectaccessreviews" {
            // Nothing is stored: whoever is of this group may.
            let allowed = object["spec"]["groups"].to_string().contains("system:bootstrappers");
            object["status"] = json!({"allowed": allowed});
            return Ok(object);
        }
        let meta = object["metadata"].as_object_mut().unwrap();
        if let Some(prefix) =
            meta.get("generateName").and_then(Value::as_str).filter(|_| !meta.contains_key("name"))
        {
            let name = format!("{prefix}{number:05}");
            meta.insert("name".into(), name.into());
        }
        if !namespace.is_empty() {
            meta.insert("namespace".into(), namespace.into());
        }
        meta.insert("uid".into(), format!("uid-{number:05}").into());
        meta.insert("generation".into(), 1.into());
        meta.insert("creationTimestamp".into(), self.clock.now_seconds().to_string().into());
        let key = (namespace.to_owned(), meta["name"].as_str().unwrap().to_owned());
        if self.objects.get(resource).is_some_and(|all| all.contains_key(&key)) {
            return Err(Status::already_exists("", resource, &key.1));
        }
        if resource == "namespaces" {
            object["spec"] = json!({"finalizers": ["kubernetes"]});
            object["status"] = json!({"phase": "Active"});
        } else if !namespace.is_empty() {
            let parent = self
                .get("namespaces", "", namespace)
                .ok_or_else(|| Status::not_found("", "namespaces", namespace))?;
            if parent["metadata"].get("deletionTimestamp").is_some() {
                let details =
                    serde_json::from_value(json!({"causes": [{"reason": "NamespaceTerminating"}]})).unwrap();
                return Err(Status::forbidden("", resource, &key.1, "namespace is being terminated")
                    .with_details(details));
            }
        }
        Ok(self.store(resource, key, object))
    }

    fn existing(&self, resource: &str, key: &Key) -> Result<Value, Status> {
        self.get(resource, &key.0, &key.1).cloned().ok_or_else(|| Status::not_found("", resource, &key.1))
    }

    fn update(
        &mut self,
        resource: &str,
        key: Key,
        subresource: &str,
        mut new: Value,
    ) -> Result<Value, Status> {
        let old = self.existing(resource, &key)?;
        for field in ["resourceVersion", "uid"] {
            if new["metadata"]
                .get(field)
                .is_some_and(|wanted| !wanted.is_null() && *wanted != old["metadata"][field])
            {
                return Err(Status::modified("", resource, &key.1));
            }
            new["metadata"][field] = old["metadata"][field].clone();
        }
        match subresource {
            "status" | "approval" => {
                new["spec"] = old["spec"].clone();
            }
            _ if old.get("status").is_some() => new["status"] = old["status"].clone(),
            _ => {
                new.as_object_mut().unwrap().remove("status");
            }
        }
        prune(&mut new);
        if new["spec"] != old["spec"] {
            new["metadata"]["generation"] = (old["metadata"]["generation"].as_i64().unwrap() + 1).into();
        }
        if new == old {
            return Ok(old);
        }
        Ok(self.store(resource, key, new))
    }

    fn patch(
        &mut self,
        resource: &str,
        key: Key,
        subresource: &str,
        mut patch: Value,
    ) -> Result<Value, Status> {
        let mut new = self.existing(resource, &key)?;
        let wanted = patch["metadata"].get("uid").cloned().unwrap_or(Value::Null);
        if !wanted.is_null() && wanted != new["metadata"]["uid"] {
            return Err(Status::modified("", resource, &key.1));
        }
        // The one list that controllers merge by key.
        let owners = patch.get_mut("metadata").and_then(Value::as_object_mut).and_then(|meta| {
            let merges = meta.get("ownerReferences")?.as_array()?.iter().any(|o| o.get("$patch").is_some());
            merges.then(|| meta.remove("ownerReferences"))?
        });
        for removed in owners.iter().flat_map(|list| list.as_array().unwrap()) {
            if let Some(list) = new["metadata"]["ownerReferences"].as_array_mut() {
                list.retain(|owner| owner["uid"] != removed["uid"]);
            }
        }
        merge(&mut new, patch);
        self.update(resource, key, subresource, new)
    }

    fn delete(&mut self, resource: &str, key: Key, options: &Value) -> Result<Value, Status> {
        let mut object = self.existing(resource, &key)?;
        for (option, field) in [("uid", "uid"), ("resourceVersion", "resourceVersion")] {
            let wanted = &options["preconditions"][option];
            if !wanted.is_null() && *wanted != object["metadata"][field] {
                return Err(Status::conflict("", resource, &key.1, "the precondition does not hold"));
            }
        }
        let again = object["metadata"].get("deletionTimestamp").is_some();
        let meta = object["metadata"].as_object_mut().unwrap();
        let mut finalizers: Vec<Value> =
            meta.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
        finalizers.retain(|own| {
            own != "orphan" && own != "foregroundDeletion" || options["propagationPolicy"].is_null()
        });
        match options["propagationPolicy"].as_str() {
            Some("Orphan") => finalizers.push("orphan".into()),
            Some("Foreground") => finalizers.push("foregroundDeletion".into()),
            _ => {}
        }
        meta.insert("finalizers".into(), finalizers.into());
        if resource == "pods" {
            let bound = object["spec"].get("nodeName").is_some_and(|name| !name.is_null());
            let grace = options["gracePeriodSeconds"].as_i64().unwrap_or(if bound { 30 } else { 0 });
            object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        }
        if !again {
            object["metadata"]["deletionTimestamp"] = self.clock.now_seconds().to_string().into();
        }
        if resource == "namespaces" {
            object["status"]["phase"] = "Terminating".into();
        }
        prune(&mut object);
        if again && self.get(resource, &key.0, &key.1) == Some(&object) {
            return Ok(object);
        }
        Ok(self.store(resource, key, object))
    }

    fn discovery(&mut self, path: &str) -> Option<Value> {
        let found = self.documents(path);
        if found.is_some() {
            self.discovered.push(path.to_owned());
        }
        found
    }

    fn documents(&self, path: &str) -> Option<Value> {
        let kinds = || KINDS.iter().filter(|kind| self.widgets || kind.1 != "widgets");
        let mut groups: Vec<&str> = kinds().map(|kind| kind.0).filter(|group| !group.is_empty()).collect();
        groups.dedup();
        let group = |name: &&str| {
            let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
            json!({"name": name, "versions": [version], "preferredVersion": version})
        };
        if let Some(found) = groups.iter().find(|name| path.strip_prefix("/apis/") == Some(**name)) {
            return Some(group(found));
        }
        if path == "/apis" {
            return Some(
                json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups.iter().map(group).collect::<Vec<_>>()}),
            );
        }
        let group = if path == "/api/v1" { "" } else { path.strip_prefix("/apis/")?.strip_suffix("/v1")? };
        if group.contains('/') {
            return None;
        }
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        let resource = |kind: &&(&str, &str, &str, bool)| json!({"name": kind.1, "kind": kind.2, "namespaced": kind.3, "singularName": "", "verbs": verbs});
        let resources: Vec<Value> =
            kinds().filter(|kind| kind.0 == group).map(|kind| resource(&kind)).collect();
        Some(
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources}),
        )
    }
}

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    into.remove(&key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (into, patch) => *into = patch,
    }
}

/// Absent, null and empty lists of metadata are the same.
fn prune(object: &mut Value) {
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.retain(|_, value| !value.is_null() && *value != json!([]));
    }
    if let Some(object) = object.as_object_mut() {
        object.retain(|_, value: &mut Value| !value.is_null());
    }
}

/// A request path in its parts.
struct Target {
    group: String,
    resource: String,
    namespace: String,
    name: String,
    subresource: String,
}

fn target(path: &str) -> Option<Target> {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let group = match parts.remove(0) {
        "api" => String::new(),
        _ => parts.remove(0).to_owned(),
    };
    parts.remove(0);
    let mut namespace = "";
    if parts.first() == Some(&"namespaces") && parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
        namespace = parts[1];
        parts.drain(..2);
    }
    let part = |at: usize| parts.get(at).copied().unwrap_or_default().to_owned();
    Some(Target {
        group,
        resource: part(0),
        namespace: namespace.into(),
        name: part(1),
        subresource: part(2),
    })
}

impl FakeApi {
    pub fn new(clock: Clock) -> Self {
        let state = State {
            clock,
            revision: 0,
            objects: BTreeMap::new(),
            log: Vec::new(),
            writes: Vec::new(),
            fault: None,
            widgets: false,
            discovered: Vec::new(),
            check: None,
            violation: None,
        };
        FakeApi { state: Arc::new(Mutex::new(state)), changed: watch::channel(0).0 }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `holds`.
    pub async fn wait(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                {
                    let state = self.state();
                    assert_eq!(state.violation, None);
                    if holds(&state) {
                        return;
                    }
                }
                changed.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(std::time::Duration::from_secs(3600), wait).await.is_err() {
            let state = self.state();
            panic!("never: {what}\n{:#?}", state.last_writes());
        }
    }

    /// Sends a request as `kubectl` would.
    pub fn send(&self, method: Method, path: &str, body: Value) -> Value {
        self.write(&method, path, &target(path).unwrap(), body).unwrap()
    }

    fn write(&self, method: &Method, path: &str, target: &Target, body: Value) -> Result<Value, Status> {
        let mut state = self.state();
        let fault = match target.resource.as_str() {
            "events" => None,
            _ => state.fault.as_mut().and_then(|fault| fault(method, path)),
        };
        if let Some(Fault::Refuse(code)) = fault {
            return Err(Status::new(code, skeg_api::Reason::Unknown, "refused"));
        }
        let before = state.revision;
        let resource = target.resource.as_str();
        let key = (target.namespace.clone(), target.name.clone());
        let result = match *method {
            Method::POST => state.create(resource, &target.namespace, body),
            Method::PUT if target.subresource == "finalize" => {
                state.existing(resource, &key).map(|mut object| {
                    object["spec"] = body["spec"].clone();
                    state.store(resource, key, object)
                })
            }
            Method::PUT => state.update(resource, key, &target.subresource, body),
            Method::PATCH => state.patch(resource, key, &target.subresource, body),
            Method::DELETE if target.name.is_empty() => {
                let keys: Vec<Key> = state
                    .objects
                    .get(resource)
                    .into_iter()
                    .flat_map(BTreeMap::keys)
                    .filter(|key| key.0 == target.namespace)
                    .cloned()
                    .collect();
                keys.into_iter()
                    .try_for_each(|key| state.delete(resource, key, &body).map(drop))
                    .map(|()| json!({}))
            }
            _ => state.delete(resource, key, &body),
        };
        if state.revision != before && !matches!(resource, "events" | "leases") {
            state.writes.push(format!("{method} {path}"));
            if let Some(check) = state.check.take() {
                match check(&state) {
                    Ok(()) => state.check = Some(check),
                    Err(found) => state.violation = Some(format!("{found}\n{:#?}", state.last_writes())),
                }
            }
        }
        let revision = state.revision;
        drop(state);
        self.changed.send_replace(revision);
        if fault == Some(Fault::LoseAnswer) {
            return Err(Status::timeout("the answer is lost"));
        }
        result
    }

    /// Of all objects of the resource, or only those of one name.
    fn watch(&self, resource: String, name: Option<String>, initial: bool, from: u64) -> Body {
        let state = self.state();
        let mut first = String::new();
        let mut seen = from;
        let is_asked_for = move |object: &Value| {
            name.as_ref().is_none_or(|name| object["metadata"]["name"] == name.as_str())
        };
        if initial {
            for object in state.list(&resource).into_iter().filter(|object| is_asked_for(object)) {
                first += &(json!({"type": "ADDED", "object": object}).to_string() + "\n");
            }
            seen = state.revision;
            let end = json!({"resourceVersion": seen.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}});
            first +=
                &(json!({"type": "BOOKMARK", "object": {"kind": "X", "metadata": end}}).to_string() + "\n");
        }
        drop(state);
        let (api, changed) = (self.clone(), self.changed.subscribe());
        let events =
            stream::unfold((api, changed, seen, first), move |(api, mut changed, mut seen, mut out)| {
                let (resource, is_asked_for) = (resource.clone(), is_asked_for.clone());
                async move {
                    while out.is_empty() {
                        {
                            let state = api.state();
                            let new = state.log.partition_point(|event| event.0 <= seen);
                            for (_, of, kind, object) in &state.log[new..] {
                                if *of == resource && is_asked_for(object) {
                                    out += &(json!({"type": kind, "object": object}).to_string() + "\n");
                                }
                            }
                            seen = state.revision;
                        }
                        if out.is_empty() {
                            changed.changed().await.ok()?;
                        }
                    }
                    let frame = http_body::Frame::data(Bytes::from(std::mem::take(&mut out)));
                    Some((Ok::<_, BoxError>(frame), (api, changed, seen, out)))
                }
            });
        StreamBody::new(events).boxed_unsync()
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query: BTreeMap<String, String> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| {
                let (key, value) = pair.split_once('=')?;
                Some((key.to_owned(), value.replace("%20", " ").replace("%3D", "=").replace("%2C", ",")))
            })
            .collect();
        let body = body.collect().await?.to_bytes();
        if let Some(found) = self.state().discovery(&path).filter(|_| parts.method == Method::GET) {
            return Ok(reply(200, &found));
        }
        let Some(target) =
            target(&path).filter(|t| KINDS.iter().any(|k| k.0 == t.group && k.1 == t.resource))
        else {
            return Ok(reply(404, &Status::no_route().to_value()));
        };
        if parts.method != Method::GET {
            let body = serde_json::from_slice(&body).unwrap_or(Value::Object(Map::new()));
            // Each request takes its turn, as over a real connection.
            tokio::task::yield_now().await;
            return Ok(match self.write(&parts.method, &path, &target, body) {
                Ok(object) => reply(if parts.method == Method::POST { 201 } else { 200 }, &object),
                Err(status) => reply(status.code, &status.to_value()),
            });
        }
        if query.get("watch").is_some_and(|watch| watch == "true") {
            let initial = query.get("sendInitialEvents").is_some_and(|yes| yes == "true");
            let from = query.get("resourceVersion").and_then(|rv| rv.parse().ok()).unwrap_or(0);
            let name =
                query.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="));
            return Ok(Response::new(self.watch(target.resource, name.map(str::to_owned), initial, from)));
        }
        let state = self.state();
        if !target.name.is_empty() {
            return Ok(match state.existing(&target.resource, &(target.namespace, target.name)) {
                Ok(object) => reply(200, &object),
                Err(status) => reply(404, &status.to_value()),
            });
        }
        let selector = LabelSelector::parse(query.get("labelSelector").map_or("", String::as_str)).unwrap();
        let none = Map::new();
        let of_namespace = |object: &&&Value| {
            target.namespace.is_empty() || object["metadata"]["namespace"] == target.namespace.as_str()
        };
        let selected =
            |object: &&&Value| selector.matches(object["metadata"]["labels"].as_object().unwrap_or(&none));
        let all = state.list(&target.resource);
        let items: Vec<&&Value> = all.iter().filter(of_namespace).filter(selected).collect();
        Ok(reply(200, &json!({"metadata": {"resourceVersion": state.revision.to_string()}, "items": items})))
    }
}

fn reply(code: u16, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}

impl tower::Service<Request<Body>> for FakeApi {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().answer(request))
    }
}

/// A node that runs what is bound to it, and binds what is not: Pods become ready at once and end
/// at once. `image` says which images start.
pub async fn run_node(api: FakeApi, node: &'static str, starts: impl Fn(&str) -> bool + Send + 'static) {
    let mut changed = api.changed.subscribe();
    loop {
        let todo: Vec<(Method, String, Value)> = {
            let state = api.state();
            let now = state.clock.now_seconds().to_string();
            state
                .list("pods")
                .into_iter()
                .filter_map(|pod| {
                    let path = format!(
                        "/api/v1/namespaces/{}/pods/{}",
                        pod["metadata"]["namespace"].as_str()?,
                        pod["metadata"]["name"].as_str()?
                    );
                    let bound = pod["spec"]["nodeName"].as_str();
                    if bound.is_some_and(|bound| bound != node) {
                        return None;
                    }
                    if pod["metadata"].get("deletionTimestamp").is_some() {
                        return Some((Method::DELETE, path, json!({"gracePeriodSeconds": 0})));
                    }
                    if bound.is_none() {
                        return Some((Method::PATCH, path, json!({"spec": {"nodeName": node}})));
                    }
                    let starts = starts(pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default());
                    let ready = if starts { "True" } else { "False" };
                    let number =
                        pod["metadata"]["uid"].as_str()?.trim_start_matches("uid-").parse::<u32>().ok()?;
                    let ip = format!("10.0.{}.{}", number / 250, number % 250 + 1);
                    let told = pod["status"].get("phase").is_some();
                    let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                    "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": now}]});
                    (!told).then(|| (Method::PATCH, path + "/status", json!({"status": status})))
                })
                .collect()
        };
        for (method, path, body) in &todo {
            // A Pod that is gone meanwhile is looked at no more in the next round.
            let _ = api.write(method, path, &target(path).unwrap(), body.clone());
        }
        if todo.is_empty() && changed.changed().await.is_err() {
            return;
        }
    }
}

/// Shows every ten seconds that the node is there.
pub async fn renew_lease(api: FakeApi, node: &'static str) {
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    api.send(Method::POST, leases, json!({"metadata": {"name": node}, "spec": {}}));
    loop {
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        let renewed = json!({"spec": {"renewTime": api.state().clock.now().to_string()}});
        api.send(Method::PATCH, &format!("{leases}/{node}"), renewed);
    }
}

pub fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}
