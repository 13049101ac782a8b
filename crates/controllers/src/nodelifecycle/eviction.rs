//! Deletes Pods from nodes whose `NoExecute` taints they do not tolerate, at once or when their
//! `tolerationSeconds` are over. Upstream counterpart: `pkg/controller/tainteviction`.

use super::{add_node_index, patch_conditions, plan};
use crate::context::{ControllerContext, Controllers};
use crate::error::{Result, ignore_not_found};
use crate::{meta, pod};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use parking_lot::Mutex;
use skeg_base::{Clock, Timestamp};
use skeg_client::{
    Api, Change, Client, EventType, Informer, ObjectKey, Projection, Queue, Recorder, object_ref,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 8;

struct Controller {
    /// By node: its `NoExecute` taints.
    taints: Projection<Vec<Taint>>,
    pods: Informer<Pod>,
    api: Api<Pod>,
    recorder: Recorder,
    clock: Clock,
    queue: Queue<ObjectKey>,
    /// Pods whose deletion is due at a later time, and since when.
    marked: Mutex<BTreeMap<ObjectKey, Timestamp>>,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers, client: Client) {
    let nodes: Informer<Node> = ctx.informers.of();
    let controller = Arc::new(Controller {
        taints: nodes.project(plan::no_execute),
        pods: ctx.informers.of(),
        api: client.api(),
        recorder: ctx.recorder(&client, "taint-eviction-controller"),
        clock: ctx.clock,
        queue: ctx.queue(),
        marked: Mutex::default(),
    });
    add_node_index(&controller.pods);
    let of = controller.clone();
    controller.taints.subscribe(move |change| {
        let before = change.old.as_ref().is_some_and(|taints| !taints.is_empty());
        let after = change.new.as_ref().is_some_and(|taints| !taints.is_empty());
        if before || after {
            for key in of.pods.keys_by_index(super::NODE_INDEX, &change.key.name) {
                of.queue.add(key);
            }
        }
    });
    let of = controller.clone();
    controller.pods.subscribe(move |change| of.pod_changed(&change));
    let pods = controller.pods.clone();
    let ready = async move {
        nodes.synced().await;
        pods.synced().await;
    };
    let queue = controller.queue.clone();
    controllers.work("tainteviction", WORKERS, queue, ready, move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    });
}

impl Controller {
    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        let node = pod::node_name(pod);
        if matches!(change, Change::Deleted(_)) {
            self.marked.lock().remove(change.key());
        } else if !node.is_empty() && self.taints.get("", node).is_some_and(|taints| !taints.is_empty()) {
            self.queue.add(change.key().clone());
        }
    }

    async fn sync(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(None) };
        if pod::is_deleting(&pod) {
            return Ok(None);
        }
        let taints = self.taints.get("", pod::node_name(&pod));
        let now = self.clock.now();
        let since = self.marked.lock().get(key).copied().unwrap_or(now);
        let due = taints.and_then(|taints| plan::evict_at(&pod, &taints, since));
        let Some(due) = due else {
            if self.marked.lock().remove(key).is_some() {
                let message = format!("Cancelling deletion of Pod {key}");
                self.recorder.event(&object_ref(&*pod), EventType::Normal, "TaintManagerEviction", &message);
            }
            return Ok(None);
        };
        if due > now {
            self.marked.lock().insert(key.clone(), since);
            return Ok(now.duration_until(due).try_into().ok());
        }
        self.marked.lock().remove(key);
        tracing::info!(kind = "Pod", %key, "evicted by a taint of its node");
        let message = format!("Marking for deletion Pod {key}");
        self.recorder.event(&object_ref(&*pod), EventType::Normal, "TaintManagerEviction", &message);
        if let Some(conditions) =
            pod::with_condition(&pod, plan::disruption_target(), self.clock.now_seconds())
        {
            patch_conditions(&self.api, &pod, conditions, None).await?;
        }
        let options = meta::delete_options(meta::uid(&pod.metadata));
        ignore_not_found(self.api.delete(&key.namespace, &key.name, &options).await)?;
        Ok(None)
    }
}
