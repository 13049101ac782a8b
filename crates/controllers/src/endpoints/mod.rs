//! Keeps the Endpoints object of Services that have a selector, for clients that do not read
//! EndpointSlices. Upstream counterpart: `pkg/controller/endpoint`.

mod plan;

use crate::context::{ControllerContext, Controllers};
use crate::error::{Result, ignore_not_found};
use crate::meta;
use crate::pods::Pods;
use crate::service::{self, Selection};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use skeg_client::{Api, Change, EventType, Informer, ObjectKey, Queue, Recorder, object_ref};
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 5;

struct Controller {
    services: Informer<Service>,
    pods: Pods,
    endpoints: Informer<Endpoints>,
    api: Api<Endpoints>,
    recorder: Recorder,
    selection: Selection,
    queue: Queue<ObjectKey>,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers, pods: Pods) {
    let client = ctx.client("endpoint-controller");
    let services: Informer<Service> = ctx.informers.of();
    let controller = Arc::new(Controller {
        pods,
        endpoints: ctx.informers.of(),
        api: client.api(),
        recorder: ctx.recorder(&client, "endpoint-controller"),
        selection: Selection::of(&services),
        services,
        queue: ctx.queue(),
    });
    let of = controller.clone();
    controller.services.subscribe(move |change| of.queue.add(change.key().clone()));
    let of = controller.clone();
    controller.pods.subscribe(move |change| {
        for key in of.selection.changed(change) {
            of.queue.add(key);
        }
    });
    let of = controller.clone();
    controller.endpoints.subscribe(move |change| {
        // One without a Service may be left over from a time when we did not watch.
        let left_over = matches!(change, Change::Added(_)) && is_ours(change.object());
        if left_over || of.services.entry(&change.key().namespace, &change.key().name).is_some() {
            of.queue.add(change.key().clone());
        }
    });
    let synced = (controller.services.clone(), controller.pods.clone(), controller.endpoints.clone());
    let ready = async move {
        synced.0.synced().await;
        synced.1.synced().await;
        synced.2.synced().await;
    };
    let queue = controller.queue.clone();
    controllers.work("endpoints", WORKERS, queue, ready, move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    });
}

fn is_ours(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(plan::MANAGED_BY)).is_some_and(|manager| manager == plan::MANAGER)
}

impl Controller {
    async fn sync(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let old = self.endpoints.get(&key.namespace, &key.name);
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            // Endpoints carry no owner reference; they end with the Service of their name.
            if let Some(old) = old {
                let options = meta::delete_options(meta::uid(&old.metadata));
                ignore_not_found(self.api.delete(&key.namespace, &key.name, &options).await)?;
            }
            return Ok(None);
        };
        if !service::has_selector(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let pods = service::selected(&self.pods, &service);
        let trigger = service::last_change(&service, &pods);
        let Some(wanted) = plan::plan(&service, &pods, old.as_deref(), trigger) else { return Ok(None) };
        let written = match old {
            Some(_) => self.api.update(&key.namespace, &key.name, &wanted).await,
            None => self.api.create(&key.namespace, &wanted).await,
        };
        match written {
            Ok(written) => self.endpoints.wait_for(meta::revision(&written.metadata)).await,
            Err(error) if error.is_namespace_terminating() => {}
            Err(error) => {
                let what =
                    if old_is_missing(&wanted) { "FailedToCreateEndpoint" } else { "FailedToUpdateEndpoint" };
                let doing = if old_is_missing(&wanted) { "create" } else { "update" };
                let message = format!("Failed to {doing} endpoint {key}: {error}");
                self.recorder.event(&object_ref(&*service), EventType::Warning, what, &message);
                return Err(error.into());
            }
        }
        Ok(None)
    }
}

fn old_is_missing(wanted: &Endpoints) -> bool {
    wanted.metadata.resource_version.is_none()
}
