//! Watches over nodes: one that falls silent becomes Unknown, its Pods not ready, and it gets the
//! taints that keep Pods away; `eviction` then removes Pods that do not tolerate them.
//! Upstream counterpart: `pkg/controller/nodelifecycle`.

mod eviction;
mod plan;

use crate::context::{Config, ControllerContext, Controllers};
use crate::error::{Result, ignore_not_found};
use crate::{meta, pod};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use parking_lot::Mutex;
pub(crate) use plan::is_ready;
use plan::{Eviction, ZoneCount};
use serde_json::json;
use skeg_base::Clock;
use skeg_client::{Api, Change, EventType, Informer, PatchKind, Queue, Recorder, object_ref};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const WORKERS: usize = 4;
const LEASE_NAMESPACE: &str = "kube-node-lease";
const NODE_INDEX: &str = "spec.nodeName";

struct Controller {
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    node_api: Api<Node>,
    pod_api: Api<Pod>,
    recorder: Recorder,
    clock: Clock,
    config: Config,
    queue: Queue<String>,
    state: Mutex<State>,
}

/// What events tell that no object keeps.
#[derive(Default)]
struct State {
    /// When each node last gave a sign of life. Measured here: clocks of nodes may differ, and
    /// time in which this machine slept does not count.
    heard: BTreeMap<String, Instant>,
    /// By node that counts: its zone and whether it is ready.
    ready: BTreeMap<String, (String, bool)>,
    rates: BTreeMap<String, Option<f64>>,
    /// By zone: when its next node may be tainted.
    next_taint: BTreeMap<String, Instant>,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers) {
    let client = ctx.client("node-controller");
    let controller = Arc::new(Controller {
        nodes: ctx.informers.of(),
        leases: ctx.informers.of(),
        pods: ctx.informers.of(),
        node_api: client.api(),
        pod_api: client.api(),
        recorder: ctx.recorder(&client, "node-controller"),
        clock: ctx.clock,
        config: ctx.config.clone(),
        queue: ctx.queue(),
        state: Mutex::default(),
    });
    add_node_index(&controller.pods);
    let of = controller.clone();
    controller.nodes.subscribe(move |change| of.node_changed(&change));
    let of = controller.clone();
    controller.leases.subscribe(move |change| of.lease_changed(&change));
    let of = controller.clone();
    controller.pods.subscribe(move |change| of.pod_changed(&change));
    let (nodes, leases, pods) =
        (controller.nodes.clone(), controller.leases.clone(), controller.pods.clone());
    let ready = async move {
        nodes.synced().await;
        leases.synced().await;
        pods.synced().await;
    };
    let queue = controller.queue.clone();
    controllers.work("nodelifecycle", WORKERS, queue, ready, move |name| {
        let controller = controller.clone();
        async move { controller.sync(&name).await }
    });
    eviction::start(ctx, controllers, client);
}

/// Files Pods under the node they are bound to.
pub(crate) fn add_node_index(pods: &Informer<Pod>) {
    pods.add_index(NODE_INDEX, |pod| {
        Some(pod::node_name(pod).to_owned()).filter(|name| !name.is_empty()).into_iter().collect()
    });
}

pub(crate) fn pods_on(pods: &Informer<Pod>, node: &str) -> Vec<Arc<Pod>> {
    pods.by_index(NODE_INDEX, node)
}

impl Controller {
    fn node_changed(&self, change: &Change<'_, Node>) {
        let node = change.object();
        let name = meta::name(&node.metadata);
        match change {
            Change::Added(_) => {
                self.state.lock().heard.insert(name.to_owned(), Instant::now());
                let message = format!("Node {name} event: Registered Node {name} in Controller");
                self.recorder.event(&object_ref(&**node), EventType::Normal, "RegisteredNode", &message);
            }
            Change::Updated { old, new } if heartbeat(old) != heartbeat(new) => {
                self.state.lock().heard.insert(name.to_owned(), Instant::now());
            }
            Change::Updated { .. } => {}
            Change::Deleted(_) => {
                self.state.lock().heard.remove(name);
                let message = format!("Node {name} event: Removing Node {name} from Controller");
                self.recorder.event(&object_ref(&**node), EventType::Normal, "RemovingNode", &message);
            }
        }
        let matters = match change {
            Change::Updated { old, new } => old.spec != new.spec || conditions(old) != conditions(new),
            _ => true,
        };
        if matters {
            self.queue.add(name.to_owned());
        }
        let gone = matches!(change, Change::Deleted(_));
        if self.state.lock().recount(node, gone, &self.config) {
            for name in self.nodes.entries(None) {
                self.queue.add(name.key().name.to_string());
            }
        }
    }

    fn lease_changed(&self, change: &Change<'_, Lease>) {
        let key = change.key();
        if &*key.namespace != LEASE_NAMESPACE || matches!(change, Change::Deleted(_)) {
            return;
        }
        let renewed = match change {
            Change::Updated { old, new } => renew_time(old) != renew_time(new),
            _ => true,
        };
        if let Some(heard) = self.state.lock().heard.get_mut(&*key.name).filter(|_| renewed) {
            *heard = Instant::now();
        }
    }

    /// A Pod that tells of readiness while its node is not ready is mistaken.
    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        let name = pod::node_name(pod);
        if matches!(change, Change::Deleted(_)) || name.is_empty() || !pod::is_ready(pod) {
            return;
        }
        let node_ready = self.state.lock().ready.get(name).is_none_or(|(_, ready)| *ready);
        if !node_ready {
            self.queue.add(name.to_owned());
        }
    }

    async fn sync(&self, name: &str) -> Result<Option<Duration>> {
        let Some(mut node) = self.nodes.get("", name) else { return Ok(None) };
        let grace = plan::grace(&node, &self.config);
        let silent = self.state.lock().heard.get(name).map_or(Duration::ZERO, Instant::elapsed);
        let mut again = grace.checked_sub(silent).map(|left| left + Duration::from_millis(1));
        if silent > grace {
            again = None;
            if let Some(changed) = self.tell_silence(&node).await? {
                node = Arc::new(changed);
            }
        }
        if plan::condition(&node, "Ready").is_some() && !plan::is_ready(&node) {
            self.mark_pods_not_ready(name).await?;
        }
        let wait = self.taint(&node).await?;
        Ok(again.into_iter().chain(wait).min())
    }

    async fn tell_silence(&self, node: &Node) -> Result<Option<Node>> {
        let Some(conditions) = plan::silent_conditions(node, self.clock.now_seconds()) else {
            return Ok(None);
        };
        let mut wanted = node.clone();
        wanted.status.get_or_insert_default().conditions = Some(conditions);
        let name = meta::name(&node.metadata);
        let written = match self.node_api.update_status("", name, &wanted).await {
            Err(error) if error.is_not_found() => return Ok(None),
            written => written?,
        };
        tracing::warn!(kind = "Node", name, "the node is silent");
        let message = format!("Node {name} status is now: NodeNotReady");
        self.recorder.event(&object_ref(node), EventType::Normal, "NodeNotReady", &message);
        self.nodes.wait_for(meta::revision(&written.metadata)).await;
        Ok(Some(written))
    }

    async fn mark_pods_not_ready(&self, node: &str) -> Result<()> {
        let now = self.clock.now_seconds();
        for pod in pods_on(&self.pods, node) {
            let Some(conditions) = plan::not_ready_conditions(&pod, now) else { continue };
            let result = patch_conditions(&self.pod_api, &pod, conditions, None).await;
            match result {
                Ok(()) => self.recorder.event(
                    &object_ref(&*pod),
                    EventType::Warning,
                    "NodeNotReady",
                    "Node is not ready",
                ),
                // Changed meanwhile: its event brings the node back here.
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Brings the taints up to date; how long to wait where the rate of evictions holds one back.
    async fn taint(&self, node: &Node) -> Result<Option<Duration>> {
        let zone = plan::zone(node);
        let mut wait = None;
        let eviction = {
            let mut state = self.state.lock();
            match state.rates.get(&zone).copied().flatten() {
                None if state.rates.values().all(Option::is_none) => Eviction::Stopped,
                None => Eviction::Later,
                Some(_) if !plan::takes_from_rate(node) => Eviction::Allowed,
                Some(rate) => {
                    let now = Instant::now();
                    let next = state.next_taint.get(&zone).copied().unwrap_or(now);
                    if next <= now {
                        state.next_taint.insert(zone, now + Duration::from_secs_f64(1.0 / rate));
                        Eviction::Allowed
                    } else {
                        wait = Some(next - now);
                        Eviction::Later
                    }
                }
            }
        };
        let Some(taints) = plan::taints(node, eviction, self.clock.now_seconds()) else { return Ok(wait) };
        let patch = json!({"metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version}, "spec": {"taints": taints}});
        match self.node_api.patch("", meta::name(&node.metadata), PatchKind::Merge, &patch, None).await {
            Ok(written) => self.nodes.wait_for(meta::revision(&written.metadata)).await,
            other => ignore_not_found(other)?,
        }
        Ok(wait)
    }
}

impl State {
    /// Counts a changed node; whether the rate of any zone changed.
    fn recount(&mut self, node: &Node, gone: bool, config: &Config) -> bool {
        let name = meta::name(&node.metadata);
        if gone || !plan::counts_for_zone(node) {
            self.ready.remove(name);
        } else {
            self.ready.insert(name.to_owned(), (plan::zone(node), plan::is_ready(node)));
        }
        let mut zones: BTreeMap<String, ZoneCount> = BTreeMap::new();
        for (zone, ready) in self.ready.values() {
            let count = zones.entry(zone.clone()).or_default();
            if *ready { count.ready += 1 } else { count.not_ready += 1 }
        }
        let rates = plan::eviction_rates(&zones, config);
        let changed = rates != self.rates;
        self.rates = rates;
        changed
    }
}

/// Replaces the conditions of a Pod in its status, and its phase where one is given, if it is
/// still the Pod that was looked at.
pub(crate) async fn patch_conditions(
    api: &Api<Pod>,
    pod: &Pod,
    conditions: Vec<k8s_openapi::api::core::v1::PodCondition>,
    phase: Option<&str>,
) -> skeg_client::Result<()> {
    let status =
        PodStatus { conditions: Some(conditions), phase: phase.map(str::to_owned), ..Default::default() };
    let patch = json!({"metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version}, "status": status});
    let (namespace, name) = (meta::namespace(&pod.metadata), meta::name(&pod.metadata));
    ignore_not_found(api.patch(namespace, name, PatchKind::Merge, &patch, Some("status")).await)
}

type Times = Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>;

/// Changes with each status the node posts.
fn heartbeat(node: &Node) -> Option<(&Times, &Times)> {
    let ready = plan::condition(node, "Ready")?;
    Some((&ready.last_heartbeat_time, &ready.last_transition_time))
}

/// What of the conditions concerns taints.
fn conditions(node: &Node) -> Vec<(&str, &str)> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.map(|condition| (condition.type_.as_str(), condition.status.as_str())).collect()
}

fn renew_time(lease: &Lease) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime> {
    lease.spec.as_ref()?.renew_time.as_ref()
}
