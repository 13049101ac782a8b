//! What every cluster has from its first moment: namespaces, default roles and bindings, priority
//! classes, flow control, APIServices, the range of Services and the `kubernetes` Service. Written straight to the store before the server opens, in
//! one batch; a start that finds it all writes nothing. What no cluster can be without is put back
//! as long as the server runs.
//! Upstream counterpart: the post-start hooks of `pkg/controlplane` and `pkg/registry/rbac`, and
//! `pkg/controlplane/controller/{kubernetesservice,systemnamespaces}`.

pub mod aggregation;
pub mod api_services;
pub mod flowcontrol;
pub mod rbac;

use crate::cache::ROOT;
use crate::record;
use crate::resources;
use crate::server::ApiServer;
use futures_util::future::join_all;
use ipnet::IpNet;
use serde_json::{Value, json};
use skeg_api::fieldset::{self, Tracking};
use skeg_api::{Gvr, Kinds, meta};
use skeg_base::{Backoff, Clock, Random};
use skeg_store::{Error, Expect, Revision, Store, Write};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Who managedFields names.
const MANAGER: &str = "kube-apiserver";
pub const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// Where the API server is reached.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Addresses of Services.
    pub service_range: IpNet,
    /// The address of the `kubernetes` Service: the first of the service range.
    pub service_ip: IpAddr,
    /// Addresses at which Pods reach this API server; the first family of them is used.
    pub endpoints: Vec<IpAddr>,
    pub port: u16,
}

/// What an extension API server must know to tell who asks, where this one passes requests on.
#[derive(Clone, Debug)]
pub struct Authorities {
    /// PEM of the authority of clients.
    pub client_ca: String,
    /// PEM of the authority of those who may say for whom they ask.
    pub front_proxy_ca: String,
    /// Their names.
    pub allowed_names: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("store: {0}")]
    Store(#[from] Error),
    #[error("{0} is no known kind")]
    Kind(String),
    #[error("{key}: {error}")]
    Record { key: String, error: record::RecordError },
}

/// An object that must be there, and what is made of one that is there already.
struct Wanted {
    gvr: &'static Gvr,
    object: Value,
    reconcile: fn(&Value, &Value) -> Option<Value>,
}

fn keep(_existing: &Value, _default: &Value) -> Option<Value> {
    None
}

/// Writes what is missing and returns how many objects that were.
pub async fn run(
    store: &dyn Store,
    kinds: &Kinds,
    clock: Clock,
    random: &Random,
    settings: &Settings,
    authorities: Option<&Authorities>,
) -> Result<usize, BootstrapError> {
    let mut all = indispensable(settings, authorities);
    all.extend(initial(settings));
    all.extend(api_services::all_wanted(&kinds.snapshot()));
    write(store, kinds, clock, random, &all).await
}

/// Puts back what somebody deletes or changes of what no cluster can be without, until the server
/// stops.
pub fn maintain(server: &Arc<ApiServer>, settings: &Settings, authorities: Option<&Authorities>) {
    let mut by_kind: BTreeMap<&Gvr, Vec<Wanted>> = BTreeMap::new();
    for wanted in indispensable(settings, authorities) {
        by_kind.entry(wanted.gvr).or_default().push(wanted);
    }
    for (gvr, wanted) in by_kind {
        server.tasks().0.spawn(maintain_kind(server.clone(), gvr.clone(), wanted));
    }
}

async fn maintain_kind(server: Arc<ApiServer>, gvr: Gvr, wanted: Vec<Wanted>) {
    let seams = server.seams();
    let mut changes = seams.reader.changes(&gvr);
    let (_, stop) = server.tasks();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    let mut looked_at = Vec::new();
    loop {
        changes.borrow_and_update();
        let get = |w: &Wanted| seams.reader.get(w.gvr, meta::namespace(&w.object), meta::name(&w.object));
        let found: Vec<_> = wanted.iter().map(get).collect();
        let mut again = None;
        if found != looked_at {
            match write(&*seams.store, &seams.kinds, seams.clock, &seams.random, &wanted).await {
                // What was written is looked at when the cache has it.
                Ok(_) => {
                    backoff.reset();
                    looked_at = found;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot put the API server's own objects back, will be retried");
                    again = Some(backoff.next());
                }
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
        }
    }
}

async fn write(
    store: &dyn Store,
    kinds: &Kinds,
    clock: Clock,
    random: &Random,
    wanted: &[Wanted],
) -> Result<usize, BootstrapError> {
    let existing = existing(store, kinds, wanted).await?;
    let mut writes = Vec::new();
    for Wanted { gvr, object, reconcile } in wanted {
        let kind = kinds
            .snapshot()
            .by_gvr(gvr)
            .cloned()
            .ok_or_else(|| BootstrapError::Kind(gvr.group_resource()))?;
        let key = kind
            .key(meta::namespace(object), meta::name(object))
            .ok_or_else(|| BootstrapError::Kind(gvr.group_resource()))?;
        let (mut object, expect) = match existing.get(&key) {
            None => {
                let mut object = object.clone();
                meta::set_uid(&mut object, &random.uuid());
                meta::set_creation_timestamp(&mut object, clock.now_seconds());
                if kind.has_generation {
                    meta::set_generation(&mut object, 1);
                }
                (kind.strategy.default)(&mut object);
                date_conditions(&mut object, clock);
                (object, Expect::Absent)
            }
            Some((revision, existing)) => match reconcile(existing, object) {
                Some(object) => (object, Expect::Modified(*revision)),
                None => continue,
            },
        };
        meta::remove(&mut object, "resourceVersion");
        let tracking = Tracking {
            manager: MANAGER,
            api_version: &kind.gvk.api_version(),
            subresource: "",
            now: clock.now_seconds(),
            ignored: &["status"],
        };
        let before = existing.get(&key).map(|(_, before)| before);
        fieldset::track(before, &mut object, &tracking, kind.schema.root());
        let value = record::encode(&kind.gvk.version, &object)
            .map_err(|error| BootstrapError::Record { key: key.clone(), error })?;
        writes.push(Write { key: key.into(), expect, value: Some(value), ttl: None });
    }
    let count = writes.len();
    for written in join_all(writes.into_iter().map(|write| store.write(write))).await {
        match written {
            // Another server was quicker.
            Ok(_) | Err(Error::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(count)
}

/// So many of a kind are read by one list.
const LISTED_FROM: usize = 10;

type Existing = BTreeMap<String, (Revision, Value)>;

/// What is stored of the wanted: whole kinds where many of one are wanted, single objects else.
async fn existing(store: &dyn Store, kinds: &Kinds, wanted: &[Wanted]) -> Result<Existing, BootstrapError> {
    let snapshot = kinds.snapshot();
    let mut found = Existing::new();
    let mut add = |record: skeg_store::Record| {
        let key = record.key.to_string();
        let body = record::decode(&record.value)
            .map_err(|error| BootstrapError::Record { key: key.clone(), error })?;
        let value = serde_json::from_slice(&body.json).map_err(|e| BootstrapError::Record {
            key: key.clone(),
            error: record::RecordError::Encode(e.to_string()),
        })?;
        found.insert(key, (record.modified, value));
        Ok::<(), BootstrapError>(())
    };
    let mut listed: Vec<&Gvr> = Vec::new();
    let mut counts: BTreeMap<&Gvr, usize> = BTreeMap::new();
    wanted.iter().for_each(|wanted| *counts.entry(wanted.gvr).or_default() += 1);
    for Wanted { gvr, object, .. } in wanted {
        let kind = snapshot.by_gvr(gvr).ok_or_else(|| BootstrapError::Kind(gvr.group_resource()))?;
        let storage = kind.storage.as_deref().ok_or_else(|| BootstrapError::Kind(gvr.group_resource()))?;
        if counts[gvr] >= LISTED_FROM {
            if !listed.contains(gvr) {
                listed.push(gvr);
                let page = store.list(&format!("{ROOT}{storage}"), None, None, 0).await?;
                page.records.into_iter().try_for_each(&mut add)?;
            }
        } else if let Some(key) = kind.key(meta::namespace(object), meta::name(object))
            && let (Some(record), _) = store.get(&key).await?
        {
            add(record)?;
        }
    }
    Ok(found)
}

/// Conditions that have no time yet came to be now.
fn date_conditions(object: &mut Value, clock: Clock) {
    let conditions = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        if condition.get("lastTransitionTime").is_some_and(Value::is_null) {
            condition["lastTransitionTime"] = meta::format_time(clock.now_seconds()).into();
        }
    }
}

/// What no cluster can be without: the system namespaces, the Service `kubernetes` and the range of
/// Services, flow control, and what extension API servers read.
fn indispensable(settings: &Settings, authorities: Option<&Authorities>) -> Vec<Wanted> {
    let mut all: Vec<Wanted> = NAMESPACES
        .iter()
        .map(|name| Wanted { gvr: &resources::NAMESPACES, object: namespace(name), reconcile: keep })
        .collect();
    all.push(Wanted { gvr: &resources::SERVICES, object: service(settings), reconcile: reconcile_ports });
    all.push(Wanted {
        gvr: &resources::SERVICE_CIDRS,
        object: service_cidr(settings),
        reconcile: |existing, default| {
            replaced(existing, default, &[&["status"]]).filter(|_| existing["status"]["conditions"].is_null())
        },
    });
    all.extend(flowcontrol::wanted());
    all.extend(authorities.map(|authorities| Wanted {
        gvr: &resources::CONFIG_MAPS,
        object: extension_authentication(authorities),
        reconcile: |existing, default| replaced(existing, default, &[&["data"]]),
    }));
    if !settings.endpoints.is_empty() {
        all.push(Wanted {
            gvr: &resources::ENDPOINTS,
            object: endpoints(settings),
            reconcile: reconcile_subsets,
        });
        all.push(Wanted {
            gvr: &resources::ENDPOINT_SLICES,
            object: slice(settings),
            reconcile: reconcile_slice,
        });
    }
    all
}

/// What is looked at when the server starts, and may be changed while it runs.
fn initial(settings: &Settings) -> Vec<Wanted> {
    let roles = rbac::objects().into_iter();
    let mut all: Vec<Wanted> =
        roles.map(|(gvr, object)| Wanted { gvr, object, reconcile: rbac::reconcile }).collect();
    // Those of other Services follow these.
    let own = ("default".to_owned(), "kubernetes".to_owned());
    let object = crate::allocate::objects::object(&settings.service_ip.to_string(), &own);
    all.push(Wanted { gvr: &resources::IP_ADDRESSES, object, reconcile: keep });
    for (name, value, description) in [
        (
            "system-cluster-critical",
            2_000_000_000,
            "For Pods the cluster cannot do without, on whichever node they run.",
        ),
        ("system-node-critical", 2_000_001_000, "For Pods their node cannot do without."),
    ] {
        let object = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "description": description,
            "preemptionPolicy": "PreemptLowerPriority"});
        all.push(Wanted { gvr: &resources::PRIORITY_CLASSES, object, reconcile: keep });
    }
    all
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
}

fn family(ip: &IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn service(settings: &Settings) -> Value {
    let ip = settings.service_ip.to_string();
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "clusterIP": ip, "clusterIPs": [ip], "type": "ClusterIP", "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster", "ipFamilies": [family(&settings.service_ip)],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": settings.port}],
        },
        "status": {"loadBalancer": {}}})
}

/// The range from which Services have their addresses.
fn service_cidr(settings: &Settings) -> Value {
    let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": null, "reason": "",
        "message": "Kubernetes default Service CIDR is ready"});
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [settings.service_range.to_string()]}, "status": {"conditions": [ready]}})
}

/// By upstream's names for flags, whose values extension API servers read from here.
fn extension_authentication(authorities: &Authorities) -> Value {
    let list = |all: &[&str]| json!(all).to_string();
    json!({"apiVersion": "v1", "kind": "ConfigMap",
    "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
    "data": {
        "client-ca-file": authorities.client_ca,
        "requestheader-allowed-names": json!(authorities.allowed_names).to_string(),
        "requestheader-client-ca-file": authorities.front_proxy_ca,
        "requestheader-extra-headers-prefix": list(&["X-Remote-Extra-"]),
        "requestheader-group-headers": list(&["X-Remote-Group"]),
        "requestheader-uid-headers": list(&["X-Remote-Uid"]),
        "requestheader-username-headers": list(&["X-Remote-User"]),
    }})
}

/// The addresses of the family of the first one.
fn addresses(settings: &Settings) -> impl Iterator<Item = &IpAddr> {
    let v4 = settings.endpoints.first().is_some_and(IpAddr::is_ipv4);
    settings.endpoints.iter().filter(move |ip| ip.is_ipv4() == v4)
}

fn endpoints(settings: &Settings) -> Value {
    let ips: Vec<Value> = addresses(settings).map(|ip| json!({"ip": ip.to_string()})).collect();
    json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": ips, "ports": [{"name": "https", "port": settings.port, "protocol": "TCP"}]}]})
}

fn slice(settings: &Settings) -> Value {
    let endpoints: Vec<Value> = addresses(settings)
        .map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}}))
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": settings.endpoints.first().map_or("IPv4", family),
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": settings.port, "protocol": "TCP"}]})
}

fn replaced(existing: &Value, default: &Value, fields: &[&[&str]]) -> Option<Value> {
    let mut merged = existing.clone();
    for path in fields {
        let (mut to, mut from) = (&mut merged, default);
        for name in *path {
            to = &mut to[*name];
            from = &from[*name];
        }
        *to = from.clone();
    }
    (merged != *existing).then_some(merged)
}

fn reconcile_ports(existing: &Value, default: &Value) -> Option<Value> {
    let mut merged = replaced(existing, default, &[&["spec", "ports"], &["spec", "type"]])?;
    let generation = meta::generation(existing);
    if generation > 0 {
        meta::set_generation(&mut merged, generation + 1);
    }
    Some(merged)
}

fn reconcile_subsets(existing: &Value, default: &Value) -> Option<Value> {
    replaced(existing, default, &[&["subsets"]])
}

fn reconcile_slice(existing: &Value, default: &Value) -> Option<Value> {
    // Another address family is another slice upstream; this field cannot change in place, but
    // nothing is served yet.
    let mut merged = replaced(existing, default, &[&["addressType"], &["endpoints"], &["ports"]])?;
    let generation = meta::generation(existing);
    if generation > 0 {
        meta::set_generation(&mut merged, generation + 1);
    }
    Some(merged)
}
