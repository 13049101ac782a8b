//! Lets claims go once no Pod uses them, and volumes once no claim is bound to them; until then their
//! finalizers hold them.
//! Upstream counterparts: `pkg/controller/volume/{pvcprotection,pvprotection}`.

mod plan;

use crate::context::{ControllerContext, Controllers};
use crate::error::{Result, ignore_not_found};
use crate::meta;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use skeg_api::Gvr;
use skeg_client::{Api, Change, Entry, Informer, ObjectKey, Queue};
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 1;
/// Pods by the claims they use: `namespace/name`.
const CLAIM_INDEX: &str = "claims";

struct Controller {
    objects: Informer<Value>,
    /// The users of claims; of volumes the claims speak for themselves.
    pods: Option<Informer<Pod>>,
    finalizer: &'static str,
    api: Api<Value>,
    queue: Queue<ObjectKey>,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers) {
    let pods: Informer<Pod> = ctx.informers.of();
    pods.add_index(CLAIM_INDEX, |pod| {
        let namespace = meta::namespace(&pod.metadata);
        plan::claims(pod).into_iter().map(|claim| format!("{namespace}/{claim}")).collect()
    });
    let claims = protect(
        ctx,
        controllers,
        ("pvcprotection", "pvc-protection-controller", "persistentvolumeclaims"),
        plan::CLAIM,
        Some(pods.clone()),
    );
    protect(
        ctx,
        controllers,
        ("pvprotection", "pv-protection-controller", "persistentvolumes"),
        plan::VOLUME,
        None,
    );
    pods.subscribe(move |change| {
        let Change::Deleted(pod) = change else { return };
        for claim in plan::claims(pod) {
            claims.add(ObjectKey::new(&pod.key().namespace, &claim));
        }
    });
}

fn protect(
    ctx: &ControllerContext,
    controllers: &mut Controllers,
    (queue_name, component, resource): (&'static str, &str, &str),
    finalizer: &'static str,
    pods: Option<Informer<Pod>>,
) -> Queue<ObjectKey> {
    let gvr = Gvr::new("", "v1", resource);
    let controller = Arc::new(Controller {
        objects: ctx.informers.dynamic(&gvr),
        pods,
        finalizer,
        api: ctx.client(component).dynamic(&gvr),
        queue: ctx.queue(),
    });
    let queue = controller.queue.clone();
    let to = queue.clone();
    controller.objects.subscribe(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            to.add(change.key().clone());
        }
    });
    let of = controller.clone();
    let ready = async move {
        of.objects.synced().await;
        if let Some(pods) = &of.pods {
            pods.synced().await;
        }
    };
    controllers.work(queue_name, WORKERS, queue.clone(), ready, move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    });
    queue
}

impl Controller {
    async fn sync(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let object = self.objects.entry(&key.namespace, &key.name).as_ref().and_then(Entry::decode::<Value>);
        let Some(object) = object else { return Ok(None) };
        let is_used = match &self.pods {
            Some(pods) => !pods.keys_by_index(CLAIM_INDEX, &key.to_string()).is_empty(),
            None => object["status"]["phase"] == "Bound",
        };
        if let Some(new) = plan::protected(&object, self.finalizer, is_used) {
            ignore_not_found(self.api.update(&key.namespace, &key.name, &new).await)?;
        }
        Ok(None)
    }
}
