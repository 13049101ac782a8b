//! Keeps the EndpointSlices of Services that have a selector.
//! Upstream counterpart: `pkg/controller/endpointslice`.

mod layout;
mod mirror;
mod plan;

use crate::context::{ControllerContext, Controllers};
use crate::error::{Result, ignore_not_found};
use crate::meta;
use crate::pods::Pods;
use crate::service::{self, Selection};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use plan::Observed;
use skeg_client::{Api, Change, EventType, Informer, ObjectKey, Queue, Recorder, object_ref};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 5;
const SERVICE_INDEX: &str = "service";

struct Controller {
    services: Informer<Service>,
    pods: Pods,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    api: Api<EndpointSlice>,
    recorder: Recorder,
    selection: Selection,
    queue: Queue<ObjectKey>,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers, pods: Pods) {
    let client = ctx.client("endpointslice-controller");
    let services: Informer<Service> = ctx.informers.of();
    let controller = Arc::new(Controller {
        pods,
        nodes: ctx.informers.of(),
        slices: ctx.informers.of(),
        api: client.api(),
        recorder: ctx.recorder(&client, "endpoint-slice-controller"),
        selection: Selection::of(&services),
        services,
        queue: ctx.queue(),
    });
    controller.slices.add_index(SERVICE_INDEX, |slice| {
        owning_service(slice).map(|key| key.to_string()).into_iter().collect()
    });
    let to = controller.queue.clone();
    controller.services.subscribe(move |change| to.add(change.key().clone()));
    let of = controller.clone();
    controller.pods.subscribe(move |change| {
        for key in of.selection.changed(change) {
            of.queue.add(key);
        }
    });
    let of = controller.clone();
    controller.slices.subscribe(move |change| of.slice_changed(&change));
    let of = controller.clone();
    controller.nodes.subscribe(move |change| of.node_changed(&change));
    let synced = (
        controller.services.clone(),
        controller.pods.clone(),
        controller.nodes.clone(),
        controller.slices.clone(),
    );
    let ready = async move {
        synced.0.synced().await;
        synced.1.synced().await;
        synced.2.synced().await;
        synced.3.synced().await;
    };
    mirror::start(ctx, controllers, controller.services.clone(), controller.slices.clone());
    let queue = controller.queue.clone();
    controllers.work("endpointslice", WORKERS, queue, ready, move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    });
}

/// The Service of a slice that this controller made.
fn owning_service(slice: &EndpointSlice) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    let ours = labels.get(plan::MANAGED_BY).is_some_and(|manager| manager == plan::MANAGER);
    let name = labels.get(plan::SERVICE_NAME).filter(|_| ours)?;
    Some(ObjectKey::new(meta::namespace(&slice.metadata), name))
}

impl Controller {
    /// Someone else changed a slice: put it right. Our own writes come back here too, and the
    /// plan finds nothing to do.
    fn slice_changed(&self, change: &Change<'_, EndpointSlice>) {
        if let Change::Updated { old, .. } = change
            && let Some(key) = owning_service(old)
        {
            self.queue.add(key);
        }
        if let Some(key) = owning_service(change.object()) {
            self.queue.add(key);
        }
    }

    /// Endpoints tell the zone of their node.
    fn node_changed(&self, change: &Change<'_, Node>) {
        if let Change::Updated { old, new } = change
            && old.metadata.labels == new.metadata.labels
        {
            return;
        }
        for service in self.services.entries(None) {
            self.queue.add(service.key().clone());
        }
    }

    async fn sync(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        // The slices of a Service that is gone are the garbage collector's.
        let Some(service) = self.services.get(&key.namespace, &key.name) else { return Ok(None) };
        if !service::has_selector(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let pods = service::selected(&self.pods, &service);
        let mut nodes: BTreeMap<String, Arc<Node>> = BTreeMap::new();
        for pod in &pods {
            let name = pod.node.as_str();
            if !name.is_empty()
                && !nodes.contains_key(name)
                && let Some(node) = self.nodes.get("", name)
            {
                nodes.insert(name.to_owned(), node);
            }
        }
        let slices = self.slices.by_index(SERVICE_INDEX, &key.to_string());
        let trigger = service::last_change(&service, &pods);
        let plan =
            plan::plan(&Observed { service: &service, pods: &pods, nodes: &nodes, slices: &slices, trigger });
        match act(&self.api, &key.namespace, plan).await {
            // The next pass must see what this one wrote, or it would do it again.
            Ok(newest) => self.slices.wait_for(newest).await,
            Err(error) if error.is_namespace_terminating() => {}
            Err(error) => {
                let message = format!("Error updating Endpoint Slices for Service {key}: {error}");
                self.recorder.event(
                    &object_ref(&*service),
                    EventType::Warning,
                    "FailedToUpdateEndpointSlices",
                    &message,
                );
                return Err(error.into());
            }
        }
        Ok(None)
    }
}

/// Carries out a plan; the newest revision it made.
async fn act(api: &Api<EndpointSlice>, namespace: &str, plan: layout::Plan) -> skeg_client::Result<u64> {
    let mut newest = 0;
    for slice in plan.create {
        let created = api.create(namespace, &slice).await?;
        newest = newest.max(meta::revision(&created.metadata));
    }
    for slice in plan.update {
        let updated = api.update(namespace, meta::name(&slice.metadata), &slice).await?;
        newest = newest.max(meta::revision(&updated.metadata));
    }
    for name in plan.delete {
        ignore_not_found(api.delete(namespace, &name, &Default::default()).await)?;
    }
    Ok(newest)
}
