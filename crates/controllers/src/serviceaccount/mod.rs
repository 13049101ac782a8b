//! Keeps a ServiceAccount `default` in each namespace, which Pods use that name none.
//! Upstream counterpart: `pkg/controller/serviceaccount`.

use crate::context::{ControllerContext, Controllers};
use crate::error::Result;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use skeg_client::{Api, Change, Informer};
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "default";
const WORKERS: usize = 1;

struct Controller {
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    api: Api<ServiceAccount>,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers) {
    let controller = Arc::new(Controller {
        namespaces: ctx.informers.of(),
        accounts: ctx.informers.of(),
        api: ctx.client("service-account-controller").api(),
    });
    let queue = ctx.queue::<String>();
    let to = queue.clone();
    controller.namespaces.subscribe(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            to.add(change.key().name.to_string());
        }
    });
    let to = queue.clone();
    controller.accounts.subscribe(move |change| {
        if matches!(change, Change::Deleted(_)) && &*change.key().name == NAME {
            to.add(change.key().namespace.to_string());
        }
    });
    let (namespaces, accounts) = (controller.namespaces.clone(), controller.accounts.clone());
    let ready = async move {
        namespaces.synced().await;
        accounts.synced().await;
    };
    controllers.work("serviceaccount", WORKERS, queue, ready, move |namespace| {
        let controller = controller.clone();
        async move { controller.sync(&namespace).await }
    });
}

/// Whether things may still be made in the namespace.
pub(crate) fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
}

impl Controller {
    async fn sync(&self, namespace: &str) -> Result<Option<Duration>> {
        let active = self.namespaces.get("", namespace).is_some_and(|namespace| is_active(&namespace));
        if !active || self.accounts.entry(namespace, NAME).is_some() {
            return Ok(None);
        }
        let metadata = ObjectMeta {
            name: Some(NAME.into()),
            namespace: Some(namespace.to_owned()),
            ..Default::default()
        };
        match self.api.create(namespace, &ServiceAccount { metadata, ..Default::default() }).await {
            Ok(_) => Ok(None),
            Err(error)
                if error.is_already_exists() || error.is_not_found() || error.is_namespace_terminating() =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}
