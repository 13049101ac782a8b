//! Deletes Pods that no node will report on any more, and ended Pods beyond a threshold.
//! Upstream counterpart: `pkg/controller/podgc`.

mod plan;

use crate::context::{ControllerContext, Controllers};
use crate::error::{Result, ignore_not_found};
use crate::nodelifecycle::{add_node_index, patch_conditions, pods_on};
use crate::{meta, pod};
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use plan::Reason;
use skeg_base::Clock;
use skeg_client::{Api, Change, Informer, Projection, Queue};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a node must be gone before its Pods are taken for orphans: it may be registered anew.
const QUARANTINE: Duration = Duration::from_secs(40);
const WORKERS: usize = 1;
const ENDED_INDEX: &str = "ended";
const UNSCHEDULED_INDEX: &str = "unscheduled-deleting";
const YES: &str = "true";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// The Pods of one node.
    Node(String),
    /// Deleted Pods without a node.
    Unscheduled,
    /// Pods that have ended.
    Ended,
}

struct Controller {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    /// Whether each node is out of service: the one thing of a node that concerns its Pods here.
    out_of_service: Projection<bool>,
    pod_api: Api<Pod>,
    node_api: Api<Node>,
    clock: Clock,
    threshold: usize,
    queue: Queue<Key>,
    /// Since when a node with Pods is missing.
    missing: Mutex<BTreeMap<String, Instant>>,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers) {
    let client = ctx.client("pod-garbage-collector");
    let nodes: Informer<Node> = ctx.informers.of();
    let controller = Arc::new(Controller {
        pods: ctx.informers.of(),
        out_of_service: nodes.project(plan::is_out_of_service),
        nodes,
        pod_api: client.api(),
        node_api: client.api(),
        clock: ctx.clock,
        threshold: ctx.config.terminated_pod_gc_threshold,
        queue: ctx.queue(),
        missing: Mutex::default(),
    });
    let flag = |yes: bool| if yes { vec![YES.to_owned()] } else { Vec::new() };
    add_node_index(&controller.pods);
    controller.pods.add_index(ENDED_INDEX, move |pod| flag(pod::is_terminal(pod) && !pod::is_deleting(pod)));
    controller.pods.add_index(UNSCHEDULED_INDEX, move |pod| {
        flag(pod::is_deleting(pod) && pod::node_name(pod).is_empty())
    });
    let (nodes, pods) = (controller.nodes.clone(), controller.pods.clone());
    let (of, queue) = (controller.clone(), controller.queue.clone());
    let ready = async move {
        // Subscribed only now, so that no Pod is taken for an orphan before all nodes are known.
        nodes.synced().await;
        pods.synced().await;
        of.subscribe();
    };
    controllers.work("podgc", WORKERS, queue, ready, move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    });
}

impl Controller {
    fn subscribe(self: &Arc<Self>) {
        let of = self.clone();
        self.nodes.subscribe(move |change| match change {
            Change::Added(node) => {
                of.missing.lock().remove(&*node.key().name);
            }
            Change::Updated { .. } => {}
            Change::Deleted(node) => of.queue.add(Key::Node(node.key().name.to_string())),
        });
        let of = self.clone();
        self.out_of_service.subscribe(move |change| {
            if change.new.as_deref() == Some(&true) {
                of.queue.add(Key::Node(change.key.name.to_string()));
            }
        });
        let of = self.clone();
        self.pods.subscribe(move |change| of.pod_changed(&change));
    }

    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        if matches!(change, Change::Deleted(_)) {
            return;
        }
        let node = pod::node_name(pod);
        if node.is_empty() {
            if pod::is_deleting(pod) {
                self.queue.add(Key::Unscheduled);
            }
        } else if self.nodes.entry("", node).is_none()
            || (pod::is_deleting(pod) && self.out_of_service.get("", node).is_some_and(|out| *out))
        {
            self.queue.add(Key::Node(node.to_owned()));
        }
        let ended = pod::is_terminal(pod) && !pod::is_deleting(pod);
        if ended && self.threshold > 0 && self.pods.keys_by_index(ENDED_INDEX, YES).len() > self.threshold {
            self.queue.add(Key::Ended);
        }
    }

    async fn sync(&self, key: &Key) -> Result<Option<Duration>> {
        match key {
            Key::Node(name) => self.sync_node(name).await,
            Key::Unscheduled => {
                for pod in self.pods.by_index(UNSCHEDULED_INDEX, YES) {
                    self.collect(&pod, Reason::Unscheduled).await?;
                }
                Ok(None)
            }
            Key::Ended => {
                for pod in plan::excess(self.pods.by_index(ENDED_INDEX, YES), self.threshold) {
                    self.delete(&pod).await?;
                }
                Ok(None)
            }
        }
    }

    async fn sync_node(&self, name: &str) -> Result<Option<Duration>> {
        let node = self.nodes.get("", name);
        let pods = pods_on(&self.pods, name);
        if node.is_none() && !pods.is_empty() {
            let since = *self.missing.lock().entry(name.to_owned()).or_insert_with(Instant::now);
            let left = QUARANTINE.saturating_sub(since.elapsed());
            if !left.is_zero() {
                return Ok(Some(left));
            }
            if self.node_api.get_opt("", name).await?.is_some() {
                self.missing.lock().remove(name);
                return Ok(None);
            }
        }
        for pod in pods {
            if let Some(reason) = plan::reason(&pod, node.as_deref()) {
                self.collect(&pod, reason).await?;
            }
        }
        self.missing.lock().remove(name);
        Ok(None)
    }

    async fn collect(&self, pod: &Pod, reason: Reason) -> Result<()> {
        tracing::info!(kind = "Pod", key = %meta::key(&pod.metadata), ?reason, "collected");
        if let Some(conditions) = plan::failed(pod, reason, self.clock.now_seconds()) {
            patch_conditions(&self.pod_api, pod, conditions, Some("Failed")).await?;
        }
        self.delete(pod).await
    }

    async fn delete(&self, pod: &Pod) -> Result<()> {
        let mut options = meta::delete_options(meta::uid(&pod.metadata));
        options.grace_period_seconds = Some(0);
        let (namespace, name) = (meta::namespace(&pod.metadata), meta::name(&pod.metadata));
        match self.pod_api.delete(namespace, name, &options).await {
            // Another Pod has the name by now.
            Err(error) if error.is_conflict() => Ok(()),
            other => Ok(ignore_not_found(other)?),
        }
    }
}
