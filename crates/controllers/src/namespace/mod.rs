//! Empties a namespace that is being deleted, of every kind the server serves, Pods first; then
//! lets it go. Upstream counterpart: `pkg/controller/namespace`.

mod plan;

use crate::context::{ControllerContext, Controllers};
use crate::discovery::{Resource, Served, other_than};
use crate::error::{Result, ignore_not_found};
use crate::garbagecollector::is_collectable;
use crate::meta;
use k8s_openapi::api::core::v1::Namespace;
use parking_lot::Mutex;
use plan::Remaining;
use skeg_api::Gvr;
use skeg_base::{Clock, Level};
use skeg_client::{
    Api, Change, Client, DeleteOptions, Informer, Informers, ListOptions, PartialObjectMetadata, Queue,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 10;

/// For content of kinds that tell nothing by events.
const RECHECK: Duration = Duration::from_secs(5);

struct Controller {
    namespaces: Informer<Namespace>,
    api: Api<Namespace>,
    client: Client,
    served: Arc<Level<Arc<Served>>>,
    clock: Clock,
    queue: Queue<String>,
    /// Namespaces that wait for the end of their content.
    waiting: Mutex<BTreeSet<String>>,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers, served: Arc<Level<Arc<Served>>>) {
    let client = ctx.client("namespace-controller");
    let controller = Arc::new(Controller {
        namespaces: ctx.informers.of(),
        api: client.api(),
        client,
        served: served.clone(),
        clock: ctx.clock,
        queue: ctx.queue(),
        waiting: Mutex::default(),
    });
    let of = controller.clone();
    controller.namespaces.subscribe(move |change| {
        if plan::wants_deletion(change.object()) {
            of.queue.add(change.key().name.to_string());
        }
        if matches!(change, Change::Deleted(_)) {
            of.waiting.lock().remove(&*change.key().name);
        }
    });
    let (informers, cancel, of, kinds) =
        (ctx.informers.clone(), ctx.cancel.clone(), controller.clone(), served.clone());
    controllers.0.spawn(async move {
        cancel.run_until_cancelled(follow_content(of, informers, kinds)).await;
    });
    let namespaces = controller.namespaces.clone();
    let ready = async move {
        namespaces.synced().await;
        other_than(&Served::default(), &served).await;
    };
    let queue = controller.queue.clone();
    controllers.work("namespace", WORKERS, queue, ready, move |name| {
        let controller = controller.clone();
        async move { controller.sync(&name).await }
    });
}

/// Wakes a namespace when an object in it has gone. The informers are the garbage collector's.
async fn follow_content(controller: Arc<Controller>, informers: Informers, served: Arc<Level<Arc<Served>>>) {
    let mut followed: BTreeSet<Gvr> = BTreeSet::new();
    let mut now = Arc::<Served>::default();
    loop {
        now = other_than(&now, &served).await;
        followed.retain(|gvr| now.get(gvr).is_some());
        for resource in now.iter().filter(|resource| resource.namespaced && is_collectable(resource)) {
            if followed.insert(resource.gvr.clone()) {
                let of = controller.clone();
                let informer = informers.metadata(&resource.gvr);
                informer.subscribe(move |change: Change<'_, PartialObjectMetadata>| {
                    let namespace = &*change.key().namespace;
                    if matches!(change, Change::Deleted(_)) && of.waiting.lock().contains(namespace) {
                        of.queue.add(namespace.to_owned());
                    }
                });
            }
        }
    }
}

impl Controller {
    async fn sync(&self, name: &str) -> Result<Option<Duration>> {
        let Some(namespace) =
            self.namespaces.get("", name).filter(|namespace| plan::wants_deletion(namespace))
        else {
            return Ok(None);
        };
        // Before the first look: what goes from then on wakes us.
        self.waiting.lock().insert(name.to_owned());
        let remaining = self.empty(name).await;
        if remaining.is_nothing() {
            let wanted = plan::finalized(&namespace);
            let finalized: skeg_client::Result<Namespace> =
                self.api.update_subresource("", name, "finalize", &wanted).await;
            ignore_not_found(finalized)?;
            tracing::info!(kind = "Namespace", name, "empty, and let go");
            self.waiting.lock().remove(name);
            return Ok(None);
        }
        if let Some(wanted) = plan::with_status(&namespace, &remaining, self.clock.now_seconds()) {
            let written = self.api.update_status("", name, &wanted).await?;
            self.namespaces.wait_for(meta::revision(&written.metadata)).await;
        }
        Ok(Some(RECHECK))
    }

    /// Deletes what there is. Pods go before everything they may need, such as their Secrets.
    async fn empty(&self, namespace: &str) -> Remaining {
        let mut remaining = Remaining::default();
        let served = self.served.read(Clone::clone);
        // What a server that is silent holds of the namespace nobody knows: it stays until then.
        remaining.discovery_error = served.failure();
        let deletable = |resource: &&Resource| resource.namespaced && resource.has(&["delete", "list"]);
        let is_pods =
            |resource: &&Resource| resource.gvr.group.is_empty() && &*resource.gvr.resource == "pods";
        let (pods, others): (Vec<&Resource>, Vec<&Resource>) =
            served.iter().filter(deletable).partition(is_pods);
        for resources in [pods, others] {
            let each = resources.iter().map(|resource| self.empty_of(namespace, resource));
            let found = futures_util::future::join_all(each).await;
            for (resource, found) in resources.iter().zip(found) {
                note(&mut remaining, resource, found);
            }
            if !remaining.objects.is_empty() || !remaining.content_errors.is_empty() {
                break;
            }
        }
        remaining
    }

    /// What is left of one resource after its deletion was asked for.
    async fn empty_of(
        &self,
        namespace: &str,
        resource: &Resource,
    ) -> skeg_client::Result<Vec<PartialObjectMetadata>> {
        let api = self.client.metadata(&resource.gvr);
        let left = api.list(namespace, &ListOptions::default()).await?.items;
        if left.is_empty() {
            return Ok(left);
        }
        let options = DeleteOptions { propagation_policy: Some("Background".into()), ..Default::default() };
        if resource.has(&["deletecollection"]) {
            api.delete_collection(namespace, &ListOptions::default(), &options).await?;
        } else {
            for object in left.iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
                ignore_not_found(api.delete(namespace, meta::name(&object.metadata), &options).await)?;
            }
        }
        Ok(api.list(namespace, &ListOptions::default()).await?.items)
    }
}

fn note(
    remaining: &mut Remaining,
    resource: &Resource,
    found: skeg_client::Result<Vec<PartialObjectMetadata>>,
) {
    match found {
        Ok(left) if left.is_empty() => {}
        Ok(left) => {
            remaining.objects.insert(format!("{}.{}", resource.gvr.resource, resource.gvr.group), left.len());
            for finalizer in left.iter().flat_map(|object| object.metadata.finalizers.iter().flatten()) {
                *remaining.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
        }
        // Listed but not served in this way, or gone meanwhile.
        Err(error) if matches!(error.code(), Some(404 | 405)) => {}
        Err(error) => remaining.content_errors.push(error.to_string()),
    }
}
