//! An IPAddress for each address that a Service holds: what is allocated, as objects. The markers
//! decide who has an address; the objects follow, and come back when somebody deletes them.
//! Upstream counterpart: `pkg/registry/core/service/ipallocator/{cidrallocator.go,controller/repairip.go}`.

use super::service::ips_of;
use crate::cache::{Filter, Resource};
use crate::local::{LocalService, send};
use crate::resources;
use crate::server::ApiServer;
use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use skeg_api::{Gvr, meta};
use skeg_base::Backoff;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

const PATH: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const MANAGER: &str = "ipallocator.k8s.io";
/// Writes at once.
const BATCH: usize = 64;

/// Namespace and name of a Service.
type Owner = (String, String);

/// What is held and what objects there are, each read once for each of its revisions.
#[derive(Default)]
struct Known {
    services: BTreeMap<String, (u64, Owner, Vec<IpAddr>)>,
    /// Objects of this allocator, with whom they name; none for those of others.
    objects: BTreeMap<String, (u64, Option<Owner>)>,
}

enum Work {
    Make(String, Owner),
    Remove(String),
}

impl Work {
    async fn send(&self, service: &LocalService) -> Result<(), String> {
        let done = match self {
            Work::Make(ip, owner) => send(service, Method::POST, PATH, object(ip, owner).to_string()).await,
            Work::Remove(ip) => send(service, Method::DELETE, &format!("{PATH}/{ip}"), String::new()).await,
        };
        match done {
            // Another server was quicker, or somebody else has an object of the name.
            Err(why) if !(why.starts_with("404") || why.starts_with("409")) => Err(why),
            _ => Ok(()),
        }
    }
}

pub(crate) fn object(ip: &str, (namespace, name): &Owner) -> Value {
    let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": ip, "labels": {FAMILY: family, MANAGED_BY: MANAGER}},
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": name}}})
}

fn owner_of(object: &Value) -> Option<Owner> {
    let parent = &object["spec"]["parentRef"];
    let text = |field: &str| parent[field].as_str().unwrap_or_default().to_owned();
    (object["metadata"]["labels"][MANAGED_BY] == MANAGER).then(|| (text("namespace"), text("name")))
}

impl Known {
    /// Reads what changed, and says what is to be done.
    fn look(&mut self, services: &Resource, objects: &Resource) -> Vec<Work> {
        self.read(services, objects);
        let held = self.services.values();
        let held: BTreeMap<String, &Owner> =
            held.flat_map(|(_, owner, ips)| ips.iter().map(move |ip| (ip.to_string(), owner))).collect();
        let mut work = Vec::new();
        for (ip, owner) in &held {
            match self.objects.get(ip) {
                None => work.push(Work::Make(ip.clone(), (*owner).clone())),
                // Made anew once it is gone.
                Some((_, Some(other))) if other != *owner => work.push(Work::Remove(ip.clone())),
                Some(_) => {}
            }
        }
        let left = self.objects.iter().filter(|(ip, (_, owner))| owner.is_some() && !held.contains_key(*ip));
        work.extend(left.map(|(ip, _)| Work::Remove(ip.clone())));
        work
    }

    fn read(&mut self, services: &Resource, objects: &Resource) {
        let entries = services.list(&Filter::default(), None, 0).entries;
        let mut now = BTreeMap::new();
        for entry in entries {
            let path = entry.path().to_owned();
            let row = match self.services.remove(&path) {
                Some(before) if before.0 == entry.revision => before,
                _ => {
                    let service = entry.value();
                    let owner = (meta::namespace(&service).to_owned(), meta::name(&service).to_owned());
                    (entry.revision, owner, ips_of(&service).into_iter().collect())
                }
            };
            now.insert(path, row);
        }
        self.services = now;
        let entries = objects.list(&Filter::default(), None, 0).entries;
        let mut now = BTreeMap::new();
        for entry in entries {
            let row = match self.objects.remove(entry.name()) {
                Some(before) if before.0 == entry.revision => before,
                _ => (entry.revision, owner_of(&entry.value())),
            };
            now.insert(entry.name().to_owned(), row);
        }
        self.objects = now;
    }
}

/// Follows Services and the objects, until the server stops.
pub async fn run(server: Arc<ApiServer>) {
    let resource = |gvr: &Gvr| {
        let kind = server.kinds().snapshot().by_gvr(gvr).cloned();
        kind.and_then(|kind| server.cache().resource(kind.storage.as_deref()?))
    };
    let (Some(services), Some(objects)) =
        (resource(&resources::SERVICES), resource(&resources::IP_ADDRESSES))
    else {
        return;
    };
    let (mut of_services, mut of_objects) = (services.changes(), objects.changes());
    let (service, stop) = (server.loopback(), server.tasks().1);
    let mut known = Known::default();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        of_services.borrow_and_update();
        of_objects.borrow_and_update();
        let mut again = None;
        for batch in known.look(&services, &objects).chunks(BATCH) {
            for done in join_all(batch.iter().map(|work| work.send(&service))).await {
                if let Err(why) = done {
                    tracing::warn!(why, "IPAddress not written, will be retried");
                    again = Some(again.unwrap_or_else(|| backoff.next()));
                }
            }
        }
        if again.is_none() {
            backoff.reset();
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = of_services.changed() => if changed.is_err() { return },
            changed = of_objects.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
        }
    }
}
