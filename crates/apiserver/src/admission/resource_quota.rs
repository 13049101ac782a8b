//! Objects are charged to the quotas of their namespace before they are stored: by compare-and-swap
//! on each quota's status, so that no two of them get the last place. The controller puts right what
//! deletions and failures leave.
//! Upstream counterpart: `k8s.io/apiserver/pkg/admission/plugin/resourcequota`.

use super::{Admission, Operation, Plugin, ready};
use crate::hooks::Reservation;
use crate::local::full;
use crate::reader::Reader;
use crate::resources;
use crate::server::ApiServer;
use futures_util::future::BoxFuture;
use http::{Method, Request, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skeg_api::predicates::{Resources, resource_list};
use skeg_api::{Reason, Status, meta, quota};
use skeg_base::{Clock, HashMap};
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

/// How often a charge is tried against other writers of the quota.
const TRIES_MAX: usize = 10;
/// Who the charged fields belong to.
const AGENT: &str = "kube-apiserver";

type Turn = tokio::sync::Mutex<()>;

pub struct ResourceQuota {
    reader: Arc<dyn Reader>,
    clock: Clock,
    /// Writers of a namespace charge one after the other: they would only make each other try again.
    turns: Mutex<HashMap<String, Weak<Turn>>>,
}

/// A quota that counts the object, and what is asked of it.
struct Concerned {
    quota: Value,
    asked: Resources,
}

impl ResourceQuota {
    pub fn new(reader: Arc<dyn Reader>, clock: Clock) -> Self {
        ResourceQuota { reader, clock, turns: Mutex::default() }
    }

    fn quotas(&self, namespace: &str) -> Vec<Value> {
        let found = self.reader.list(&resources::RESOURCE_QUOTAS, namespace);
        found.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect()
    }

    /// Whether the write can use anything.
    fn bears(a: &Admission<'_>) -> bool {
        let (group, plural) = (&*a.kind.gvk.group, &*a.kind.plural);
        if a.is("", "pods", "resize") {
            return a.operation == Operation::Update;
        }
        let handled = match a.operation {
            Operation::Create => true,
            Operation::Update => quota::changes_with_updates(group, plural),
            _ => false,
        };
        let ignored = plural == "events" && matches!(group, "" | "events.k8s.io");
        handled && !ignored && a.kind.namespaced && a.subresource.is_empty() && a.kind.storage.is_some()
    }

    fn turn(&self, namespace: &str) -> Arc<Turn> {
        let mut turns = self.turns.lock();
        if let Some(turn) = turns.get(namespace).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Turn::default());
        turns.insert(namespace.to_owned(), Arc::downgrade(&turn));
        turn
    }

    /// The quotas that the write is charged to, if they have room for it.
    fn check(
        &self,
        a: &Admission<'_>,
        quotas: Vec<Value>,
        charged: &BTreeSet<String>,
    ) -> Result<Vec<Concerned>, Status> {
        let Some(object) = a.object.as_deref() else { return Ok(Vec::new()) };
        let (group, plural) = (&*a.kind.gvk.group, &*a.kind.plural);
        let now = self.clock.now();
        let mut asked = quota::usage(group, plural, object, now);
        let mut concerned = Vec::new();
        for found in quotas {
            let name = meta::name(&found).to_owned();
            let (hard, used) =
                (resource_list(&found["status"]["hard"]), resource_list(&found["status"]["used"]));
            let mut limited =
                hard.keys().filter(|name| quota::counted_by(name) == Some((group, plural))).peekable();
            if limited.peek().is_none()
                || charged.contains(&name)
                || !quota::is_in_scope(&found, group, plural, object)
            {
                continue;
            }
            let limited: Vec<&String> = limited.collect();
            if let Some(why) = Some(object)
                .filter(|_| plural == "pods")
                .and_then(|pod| quota::unnamed(pod, limited.iter().copied()))
            {
                return Err(a.forbid(format!("failed quota: {name}: {why}")));
            }
            if limited.iter().any(|name| !used.contains_key(*name)) {
                let limited: Vec<&str> = limited.iter().map(|name| name.as_str()).collect();
                return Err(
                    a.forbid(format!("status unknown for quota: {name}, resources: {}", limited.join(",")))
                );
            }
            concerned.push((found, hard, used));
        }
        let negative: Vec<&str> =
            asked.iter().filter(|(_, n)| n.sign() < 0).map(|(name, _)| name.as_str()).collect();
        if !negative.is_empty() {
            return Err(a.forbid(format!("quota usage is negative for resource(s): {}", negative.join(","))));
        }
        if let Some(old) = a.old.filter(|_| a.operation == Operation::Update) {
            for (name, amount) in quota::usage(group, plural, old, now) {
                asked.entry(name).and_modify(|asked| *asked -= amount);
            }
        }
        asked.retain(|_, amount| amount.sign() > 0);
        let mut out = Vec::new();
        for (found, hard, used) in concerned {
            let asked: Resources = asked
                .iter()
                .filter(|(name, _)| hard.contains_key(*name))
                .map(|(n, q)| (n.clone(), *q))
                .collect();
            let over = |name: &String| used.get(name).copied().unwrap_or_default() + asked[name] > hard[name];
            let exceeded: Vec<&String> = asked.keys().filter(|name| over(name)).collect();
            if !exceeded.is_empty() {
                let show = |list: &Resources| {
                    let shown: Vec<String> = exceeded
                        .iter()
                        .map(|name| format!("{name}={}", list.get(*name).copied().unwrap_or_default()))
                        .collect();
                    shown.join(",")
                };
                return Err(a.forbid(format!(
                    "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                    meta::name(&found),
                    show(&asked),
                    show(&used),
                    show(&hard)
                )));
            }
            if !asked.is_empty() {
                out.push(Concerned { quota: found, asked });
            }
        }
        Ok(out)
    }

    async fn charge(&self, a: &mut Admission<'_>) -> Result<(), Status> {
        let turn = self.turn(a.namespace);
        let _turn = turn.lock().await;
        let mut charged = BTreeSet::new();
        for _ in 0..TRIES_MAX {
            let concerned = self.check(a, self.quotas(a.namespace), &charged)?;
            let Some(server) = a.server.filter(|_| !a.dry_run) else { return Ok(()) };
            let mut raced = false;
            for Concerned { quota, asked } in concerned {
                match add(server, quota.clone(), &asked, 1).await? {
                    true => {
                        charged.insert(meta::name(&quota).to_owned());
                        a.reservations.push(Box::new(Charge {
                            server: Arc::downgrade(server),
                            quota,
                            asked,
                        }));
                    }
                    false => raced = true,
                }
            }
            if !raced {
                return Ok(());
            }
        }
        Err(Status::conflict(
            "",
            "resourcequotas",
            "",
            "the quota is written too often to be charged; please try again",
        ))
    }
}

/// Adds amounts to the use of a quota, or with `sign` -1 takes them off. False if someone else wrote
/// it meanwhile, or it is gone.
async fn add(
    server: &Arc<ApiServer>,
    mut quota: Value,
    amounts: &Resources,
    sign: i64,
) -> Result<bool, Status> {
    let mut used = resource_list(&quota["status"]["used"]);
    for (name, amount) in amounts {
        let entry = used.entry(name.clone()).or_default();
        *entry += if sign < 0 { -*amount } else { *amount };
        if entry.sign() < 0 {
            *entry = skeg_api::quantity::Quantity::ZERO;
        }
    }
    quota["status"]["used"] =
        used.iter().map(|(name, amount)| (name.clone(), json!(amount.to_string()))).collect();
    let (namespace, name) = (meta::namespace(&quota), meta::name(&quota));
    let request = Request::builder()
        .method(Method::PUT)
        .uri(format!("/api/v1/namespaces/{namespace}/resourcequotas/{name}/status"))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, AGENT)
        .body(full(quota.to_string()))
        .map_err(Status::internal)?;
    let response = server.loopback().send(request).await;
    match response.status() {
        StatusCode::OK => Ok(true),
        StatusCode::CONFLICT | StatusCode::NOT_FOUND => Ok(false),
        code => {
            let body = crate::registry::read_answer(response.into_body()).await.unwrap_or_default();
            let status = serde_json::from_slice(&body);
            Err(status.unwrap_or_else(|_| {
                Status::new(code.as_u16(), Reason::Unknown, "a quota could not be charged")
            }))
        }
    }
}

/// What a write was charged; given back if it does not happen.
struct Charge {
    server: Weak<ApiServer>,
    quota: Value,
    asked: Resources,
}

impl Reservation for Charge {
    fn finish(self: Box<Self>, stored: bool) {
        let Some(server) = self.server.upgrade().filter(|_| !stored) else { return };
        let Charge { quota, asked, .. } = *self;
        server.clone().tasks().0.spawn(async move {
            let (namespace, name, uid) = (meta::namespace(&quota), meta::name(&quota), meta::uid(&quota));
            for _ in 0..TRIES_MAX {
                let current = server.seams().reader.get_value(&resources::RESOURCE_QUOTAS, namespace, name);
                let Some(current) = current.filter(|current| meta::uid(current) == uid) else { return };
                if !matches!(add(&server, (*current).clone(), &asked, -1).await, Ok(false)) {
                    return;
                }
            }
        });
    }
}

impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn admit<'a>(&'a self, _request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(Ok(()))
    }

    fn validate<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        if !Self::bears(request)
            || self.reader.list(&resources::RESOURCE_QUOTAS, request.namespace).is_empty()
        {
            return ready(Ok(()));
        }
        Box::pin(self.charge(request))
    }
}
