//! Keeps the status of quotas: counts anew when a quota changes, and when an object goes or comes to
//! use something else. What comes is charged by admission.
//! Upstream counterpart: `pkg/controller/resourcequota`.

mod plan;

use crate::context::{ControllerContext, Controllers};
use crate::discovery::{Resource, Served, other_than};
use crate::error::Result;
use crate::garbagecollector::is_collectable;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use serde_json::Value;
use skeg_api::{Gvr, quota};
use skeg_base::{Clock, Level};
use skeg_client::{
    Api, Change, Entry, Informer, Informers, ListOptions, ObjectKey, PartialObjectMetadata, Queue, Typed,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 5;

struct Controller {
    quotas: Informer<Value>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    informers: Informers,
    served: Arc<Level<Arc<Served>>>,
    api: Api<Value>,
    clock: Clock,
    queue: Queue<ObjectKey>,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers, served: Arc<Level<Arc<Served>>>) {
    let gvr = Gvr::new("", "v1", "resourcequotas");
    let controller = Arc::new(Controller {
        quotas: ctx.informers.dynamic(&gvr),
        pods: ctx.informers.of(),
        services: ctx.informers.of(),
        claims: ctx.informers.of(),
        informers: ctx.informers.clone(),
        served: served.clone(),
        api: ctx.client("resourcequota-controller").dynamic(&gvr),
        clock: ctx.clock,
        queue: ctx.queue(),
    });
    let of = controller.clone();
    controller.quotas.subscribe(move |change| match change {
        Change::Updated { old, new } if !plan::is_to_count(old, new) => {}
        Change::Deleted(_) => {}
        change => of.queue.add(change.key().clone()),
    });
    controller.follow("pods", &controller.pods);
    controller.follow("services", &controller.services);
    controller.follow("persistentvolumeclaims", &controller.claims);
    let (cancel, of, kinds) = (ctx.cancel.clone(), controller.clone(), served.clone());
    controllers.0.spawn(async move {
        cancel.run_until_cancelled(follow_kinds(of, kinds)).await;
    });
    let of = controller.clone();
    let ready = async move {
        of.quotas.synced().await;
        of.pods.synced().await;
        of.services.synced().await;
        of.claims.synced().await;
        other_than(&Served::default(), &served).await;
    };
    let queue = controller.queue.clone();
    controllers.work("resourcequota", WORKERS, queue, ready, move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    });
}

/// Kinds of which every object counts one: they are followed where the garbage collector does.
fn is_plain(resource: &Resource) -> bool {
    let weighed = ["pods", "services", "persistentvolumeclaims"];
    let own = resource.gvr.group.is_empty() && weighed.contains(&&*resource.gvr.resource);
    resource.namespaced && is_collectable(resource) && !own
}

async fn follow_kinds(controller: Arc<Controller>, served: Arc<Level<Arc<Served>>>) {
    let mut followed: BTreeSet<Gvr> = BTreeSet::new();
    let mut now = Arc::<Served>::default();
    loop {
        now = other_than(&now, &served).await;
        followed.retain(|gvr| now.get(gvr).is_some());
        for resource in now.iter().filter(|resource| is_plain(resource)) {
            if followed.insert(resource.gvr.clone()) {
                let (of, gvr) = (controller.clone(), resource.gvr.clone());
                let informer = controller.informers.metadata(&gvr);
                informer.subscribe(move |change: Change<'_, PartialObjectMetadata>| {
                    if matches!(change, Change::Deleted(_)) {
                        of.wake(&gvr.group, &gvr.resource, change.key(), None);
                    }
                });
            }
        }
    }
}

impl Controller {
    /// Wakes quotas when what an object of this kind uses has changed.
    fn follow<K: Typed>(self: &Arc<Self>, resource: &'static str, informer: &Informer<K>) {
        let of = self.clone();
        informer.subscribe(move |change| match change {
            Change::Added(_) => {}
            Change::Updated { old, new } => {
                of.wake("", resource, new.key(), Some((old.entry(), new.entry())));
            }
            Change::Deleted(object) => of.wake("", resource, object.key(), None),
        });
    }

    /// `states` are those before and after a change; without them the object is gone.
    fn wake(&self, group: &str, resource: &str, key: &ObjectKey, states: Option<(&Entry, &Entry)>) {
        let quotas = self.quotas.entries(Some(&key.namespace));
        if quotas.is_empty() {
            return;
        }
        let states = states.and_then(|(old, new)| Some((old.decode::<Value>()?, new.decode::<Value>()?)));
        for entry in quotas {
            let Some(found) = entry.decode::<Value>() else { continue };
            let counts = plan::counted(&found).iter().any(|(g, r)| g == group && r == resource);
            let anew = states.as_ref().is_none_or(|(old, new)| {
                plan::is_charged_anew(&found, group, resource, (old, new), self.clock.now())
                    || quota::over_at(old) != quota::over_at(new)
            });
            if counts && anew {
                self.queue.add(entry.key().clone());
            }
        }
    }

    async fn sync(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        // As new as can be: it may have been charged since the informer saw it. Its role may list.
        let named = ListOptions::fields(format!("metadata.name={}", key.name));
        let Some(found) = self.api.list(&key.namespace, &named).await?.items.pop() else { return Ok(None) };
        let now = self.clock.now();
        let mut objects = Vec::new();
        for kind in plan::counted(&found) {
            if let Some(there) = self.objects(&kind, &key.namespace).await {
                objects.push((kind, there));
            }
        }
        // Pods that are stuck in their deletion stop to count by time alone.
        let pods = objects.iter().filter(|(kind, _)| kind.1 == "pods").flat_map(|(_, pods)| pods);
        let next = pods.filter_map(quota::over_at).filter(|at| *at >= now).min();
        if let Some(new) = plan::recounted(&found, &objects, now) {
            let _: Value = self.api.update_subresource(&key.namespace, &key.name, "status", &new).await?;
        }
        let wait = next.map(|at| now.duration_until(at).unsigned_abs() + Duration::from_millis(1));
        Ok(wait)
    }

    /// The objects of a kind, with no more than metadata where no more is needed; nothing if the kind
    /// is not served.
    async fn objects(&self, (group, resource): &(String, String), namespace: &str) -> Option<Vec<Value>> {
        let entries = match (group.as_str(), resource.as_str()) {
            ("", "pods") => self.pods.entries(Some(namespace)),
            ("", "services") => self.services.entries(Some(namespace)),
            ("", "persistentvolumeclaims") => self.claims.entries(Some(namespace)),
            _ => {
                let gvr = self.served.read(|served| {
                    let mut kinds = served.iter().filter(|kind| is_plain(kind));
                    let wanted =
                        |kind: &&Resource| *kind.gvr.group == **group && *kind.gvr.resource == **resource;
                    kinds.find(wanted).map(|kind| kind.gvr.clone())
                })?;
                let informer = self.informers.metadata(&gvr);
                informer.synced().await;
                informer.entries(Some(namespace))
            }
        };
        Some(entries.iter().filter_map(Entry::decode).collect())
    }
}
