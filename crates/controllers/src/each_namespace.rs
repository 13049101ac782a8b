//! Keeps one object of a name in each namespace: makes it, makes it again when it was deleted, and
//! puts right what was changed. Which object is the caller's plan. Upstream counterparts: the
//! loops that `serviceaccounts_controller.go` and `rootcacertpublisher` have in common.

use crate::context::{ControllerContext, Controllers};
use crate::error::{Result, ignore_not_found};
use k8s_openapi::api::core::v1::Namespace;
use skeg_client::{Api, Change, Informer, ListOptions, Typed};
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 1;

/// From the namespace and what is there to what is to be written, if they differ.
pub(crate) type Plan<K> = Box<dyn Fn(&str, Option<&K>) -> Option<K> + Send + Sync>;

/// What is kept.
pub(crate) struct Kept<K> {
    /// Of the work queue, in logs.
    pub queue: &'static str,
    /// Whose rights it is written with.
    pub component: &'static str,
    pub name: &'static str,
    pub plan: Plan<K>,
}

struct Controller<K> {
    namespaces: Informer<Namespace>,
    objects: Informer<K>,
    api: Api<K>,
    kept: Kept<K>,
}

pub(crate) fn keep<K: Typed>(ctx: &ControllerContext, controllers: &mut Controllers, kept: Kept<K>) {
    // Namespaces hold many objects of the kind; the others are not even watched.
    let named = ListOptions { field_selector: format!("metadata.name={}", kept.name), ..Default::default() };
    let name = kept.queue;
    let controller = Arc::new(Controller {
        namespaces: ctx.informers.of(),
        objects: ctx.informers.selected("", &named),
        api: ctx.client(kept.component).api(),
        kept,
    });
    let queue = ctx.queue::<String>();
    let to = queue.clone();
    controller.namespaces.subscribe(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            to.add(change.key().name.to_string());
        }
    });
    let to = queue.clone();
    controller.objects.subscribe(move |change| to.add(change.key().namespace.to_string()));
    let (namespaces, objects) = (controller.namespaces.clone(), controller.objects.clone());
    let ready = async move {
        namespaces.synced().await;
        objects.synced().await;
    };
    controllers.work(name, WORKERS, queue, ready, move |namespace| {
        let controller = controller.clone();
        async move { controller.sync(&namespace).await }
    });
}

/// Whether things may still be made in the namespace.
fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
}

impl<K: Typed> Controller<K> {
    async fn sync(&self, namespace: &str) -> Result<Option<Duration>> {
        if !self.namespaces.get("", namespace).is_some_and(|namespace| is_active(&namespace)) {
            return Ok(None);
        }
        let name = self.kept.name;
        let old = self.objects.get(namespace, name);
        let Some(wanted) = (self.kept.plan)(namespace, old.as_deref()) else { return Ok(None) };
        if old.is_some() {
            ignore_not_found(self.api.update(namespace, name, &wanted).await)?;
            return Ok(None);
        }
        match self.api.create(namespace, &wanted).await {
            Err(error)
                if !(error.is_already_exists()
                    || error.is_not_found()
                    || error.is_namespace_terminating()) =>
            {
                Err(error.into())
            }
            _ => Ok(None),
        }
    }
}
