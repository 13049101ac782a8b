//! The Node object: made at start, its status kept true, its lease renewed.
//! Upstream counterparts: `kubelet_node_status.go`, `nodelease`.

use crate::host::Shortage;
use crate::shown::{self, says};
use crate::{Context, text};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, Taint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde_json::{Value, json};
use skeg_base::{Backoff, Timestamp};
use skeg_client::{EventType, LeaseKeeper, ObjectRef, PatchKind, Result};
use skeg_images::Image;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const LEASE_NAMESPACE: &str = "kube-node-lease";
/// The lease is renewed four times in this, every ten seconds.
const LEASE_DURATION: Duration = Duration::from_secs(40);
/// The status is written this often even if nothing changed.
const STATUS_INTERVAL: Duration = Duration::from_secs(300);
/// How often the machine is looked at, and how long a pressure is shown after it was last seen, as
/// upstream's kubelet has it.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
const PRESSURE_SHOWN: Duration = Duration::from_secs(300);
const NOT_READY_TAINT: &str = "node.kubernetes.io/not-ready";

/// When each pressure was last seen.
#[derive(Default)]
struct Pressures {
    memory: Option<Instant>,
    disk: Option<Instant>,
}

impl Pressures {
    /// What to show, given what is seen now.
    fn shown(&mut self, seen: Shortage, now: Instant) -> Shortage {
        let show = |last: &mut Option<Instant>, seen: bool| {
            if seen {
                *last = Some(now);
            }
            last.is_some_and(|at| now.duration_since(at) < PRESSURE_SHOWN)
        };
        Shortage { memory: show(&mut self.memory, seen.memory), disk: show(&mut self.disk, seen.disk) }
    }
}

/// Images named in the status at most, the largest first, as upstream's kubelet has it.
const IMAGES_MAX: usize = 50;

/// What of the machine changes while the node runs.
#[derive(PartialEq)]
struct Seen {
    short: Shortage,
    images: Vec<ContainerImage>,
}

impl Seen {
    fn look(ctx: &Context, short: Shortage) -> Self {
        let images = ctx.images.list().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list the images");
            Vec::new()
        });
        Seen { short, images: largest(images) }
    }
}

fn largest(mut images: Vec<Image>) -> Vec<ContainerImage> {
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.id.cmp(&b.id)));
    let named = images.into_iter().map(|image| ContainerImage {
        names: Some([image.repo_digests, image.tags].concat()),
        size_bytes: i64::try_from(image.size_bytes).ok(),
    });
    named.take(IMAGES_MAX).collect()
}

/// Registers the node, marks it ready, and keeps both its status and its lease fresh.
pub async fn run(ctx: Arc<Context>, registered: tokio::sync::oneshot::Sender<()>, cancel: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(7));
    let node = loop {
        match register(&ctx, &Seen::look(&ctx, Shortage::default())).await {
            Ok(node) => break node,
            Err(error) => tracing::warn!(%error, "cannot register the node"),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(backoff.next()) => {}
        }
    };
    let _ = registered.send(());
    let name = ctx.config.name.clone();
    let uid = text(&node.metadata.uid).to_owned();
    let about = ObjectRef {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.clone(),
        uid: name.clone(),
        ..Default::default()
    };
    ctx.recorder.event(&about, EventType::Normal, "Starting", "Starting kubelet.");
    ctx.recorder.event(
        &about,
        EventType::Normal,
        "NodeReady",
        &format!("Node {name} status is now: NodeReady"),
    );
    let lease = LeaseKeeper {
        client: ctx.client.clone(),
        namespace: LEASE_NAMESPACE.into(),
        name: name.clone(),
        holder: name.clone(),
        duration: LEASE_DURATION,
        owner: Some(OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name,
            uid,
            ..Default::default()
        }),
        clock: ctx.clock,
    };
    tokio::join!(lease.run(&cancel), keep_status(&ctx, &about, &cancel));
}

/// Writes the status when something of it changed, and every few minutes in any case.
async fn keep_status(ctx: &Context, about: &ObjectRef, cancel: &CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    let mut pressures = Pressures::default();
    let mut cordoned = false;
    let mut written = Seen::look(ctx, Shortage::default());
    let mut due = Instant::now() + STATUS_INTERVAL;
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let tell = |reason: &str| {
        let message = format!("Node {} status is now: {reason}", ctx.config.name);
        ctx.recorder.event(about, EventType::Normal, reason, &message);
    };
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = looks.tick() => {}
        }
        let short = pressures.shown(Shortage::read(&ctx.config.data_dir), Instant::now());
        let seen = Seen::look(ctx, short);
        let result = async {
            let node = ctx.client.api::<Node>().get("", &ctx.config.name).await?;
            if let Some(reason) = schedulable(&mut cordoned, &node) {
                tell(reason);
            }
            let old = node.status.as_ref();
            // Somebody else may have changed what the node said of itself.
            let shown = old.is_some_and(|old| says(old, &status(ctx, Some(old), &seen)));
            if shown && seen == written && Instant::now() < due {
                return Ok(false);
            }
            write_status(ctx, &node, &seen).await.map(|()| true)
        };
        let result = match result.await {
            Ok(false) => continue,
            // Somebody deleted the Node object: it is made again, as upstream's kubelet does at its start.
            Err(error) if error.is_not_found() => register(ctx, &seen).await.map(drop),
            other => other.map(drop),
        };
        due = Instant::now()
            + match result {
                Ok(()) => {
                    backoff.reset();
                    for (reason, changed) in changes(written.short, short) {
                        if changed {
                            tell(reason);
                        }
                    }
                    written = seen;
                    STATUS_INTERVAL
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot write the node status");
                    backoff.next()
                }
            };
    }
}

/// Upstream's reason for the event of a Node that was cordoned or uncordoned since the last look.
fn schedulable(cordoned: &mut bool, node: &Node) -> Option<&'static str> {
    let now = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
    let reason = if now { "NodeNotSchedulable" } else { "NodeSchedulable" };
    (std::mem::replace(cordoned, now) != now).then_some(reason)
}

/// Upstream's reasons for the events of a changed pressure.
fn changes(old: Shortage, new: Shortage) -> [(&'static str, bool); 2] {
    let memory = if new.memory { "NodeHasInsufficientMemory" } else { "NodeHasSufficientMemory" };
    let disk = if new.disk { "NodeHasDiskPressure" } else { "NodeHasNoDiskPressure" };
    [(memory, old.memory != new.memory), (disk, old.disk != new.disk)]
}

fn labels(ctx: &Context) -> BTreeMap<String, String> {
    let arch = &ctx.host.info.architecture;
    let mut labels = ctx.config.labels.clone();
    for (key, value) in [
        ("beta.kubernetes.io/arch", arch.as_str()),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch.as_str()),
        ("kubernetes.io/hostname", ctx.config.name.as_str()),
        ("kubernetes.io/os", "linux"),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

async fn register(ctx: &Context, seen: &Seen) -> Result<Node> {
    let api = ctx.client.api::<Node>();
    let node = Node {
        metadata: ObjectMeta {
            name: Some(ctx.config.name.clone()),
            labels: Some(labels(ctx)),
            ..Default::default()
        },
        spec: Some(NodeSpec {
            pod_cidr: ctx.config.pod_cidr.clone(),
            pod_cidrs: ctx.config.pod_cidr.clone().map(|c| vec![c]),
            ..Default::default()
        }),
        // Ready from the first moment: the agent registers once it can run Pods.
        status: Some(status(ctx, None, seen)),
    };
    let node = match api.create("", &node).await {
        Ok(node) => node,
        Err(error) if error.is_already_exists() => {
            let known = api.get("", &ctx.config.name).await?;
            let wanted = labels(ctx);
            let have = known.metadata.labels.clone().unwrap_or_default();
            if wanted.iter().any(|(k, v)| have.get(k) != Some(v)) {
                let patch = json!({"metadata": {"labels": wanted}});
                api.patch("", &ctx.config.name, PatchKind::Merge, &patch, None).await?
            } else {
                known
            }
        }
        Err(error) => return Err(error),
    };
    write_status(ctx, &node, seen).await?;
    remove_not_ready_taint(ctx).await?;
    Ok(node)
}

async fn write_status(ctx: &Context, node: &Node, seen: &Seen) -> Result<()> {
    let patch =
        json!({"status": shown::patch(node.status.as_ref(), &status(ctx, node.status.as_ref(), seen))});
    let api = ctx.client.api::<Node>();
    api.patch("", &ctx.config.name, PatchKind::Strategic, &patch, Some("status")).await.map(drop)
}

/// The node lifecycle controller would do it a little later; a node that says it is ready may
/// itself take the taint away that admission put on it at birth.
async fn remove_not_ready_taint(ctx: &Context) -> Result<()> {
    let api = ctx.client.api::<Node>();
    let node = api.get("", &ctx.config.name).await?;
    let taints: Vec<Taint> = node.spec.and_then(|s| s.taints).unwrap_or_default();
    if !taints.iter().any(|t| t.key == NOT_READY_TAINT) {
        return Ok(());
    }
    let rest: Vec<&Taint> = taints.iter().filter(|t| t.key != NOT_READY_TAINT).collect();
    let value: Value = if rest.is_empty() { Value::Null } else { json!(rest) };
    let patch = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"taints": value}
    });
    match api.patch("", &ctx.config.name, PatchKind::Merge, &patch, None).await {
        // NodeRestriction lets only the controllers change taints: they will.
        Err(error) if error.code() == Some(403) || error.is_conflict() => Ok(()),
        other => other.map(drop),
    }
}

fn status<'a>(ctx: &'a Context, old: Option<&NodeStatus>, seen: &Seen) -> NodeStatus {
    let amounts = |map: &'a BTreeMap<String, skeg_api::quantity::Quantity>| {
        map.iter().map(|(k, v)| (k.clone(), v.to_text()))
    };
    let mut addresses: Vec<NodeAddress> = ctx
        .config
        .addresses
        .iter()
        .map(|ip| NodeAddress { type_: "InternalIP".into(), address: ip.to_string() })
        .collect();
    addresses.push(NodeAddress { type_: "Hostname".into(), address: ctx.config.name.clone() });
    // What others added to the capacity is there for Pods, all of it.
    let added = old.and_then(|old| old.capacity.clone()).into_iter().flatten();
    let added = added.filter(|(name, _)| !ctx.host.capacity.contains_key(name));
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(amounts(&ctx.host.capacity).collect()),
        allocatable: Some(amounts(&ctx.host.allocatable).chain(added).collect()),
        conditions: Some(conditions(ctx.clock.now_seconds(), old, seen.short)),
        images: Some(seen.images.clone()),
        daemon_endpoints: ctx.config.server.as_ref().map(|server| NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(server.port) }),
        }),
        node_info: Some(ctx.host.info.clone()),
        features: Some(NodeFeatures { supplemental_groups_policy: Some(true) }),
        runtime_handlers: Some(vec![NodeRuntimeHandler {
            name: Some(String::new()),
            features: Some(NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(true),
                user_namespaces: Some(false),
            }),
        }]),
        ..Default::default()
    }
}

fn conditions(now: Timestamp, old: Option<&NodeStatus>, short: Shortage) -> Vec<NodeCondition> {
    let memory = match short.memory {
        true => ("True", "KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
        false => ("False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    };
    let disk = match short.disk {
        true => ("True", "KubeletHasDiskPressure", "kubelet has disk pressure"),
        false => ("False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    };
    let table = [
        ("MemoryPressure", memory),
        ("DiskPressure", disk),
        ("PIDPressure", ("False", "KubeletHasSufficientPID", "kubelet has sufficient PID available")),
        ("Ready", ("True", "KubeletReady", "kubelet is posting ready status")),
    ];
    let old = old.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    table
        .iter()
        .map(|(kind, (status, reason, message))| {
            let same = old.iter().find(|c| c.type_ == *kind && c.status == *status);
            NodeCondition {
                type_: (*kind).into(),
                status: (*status).into(),
                reason: Some((*reason).into()),
                message: Some((*message).into()),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cordoned_node_is_told_once() {
        let node = |unschedulable| Node {
            spec: Some(NodeSpec { unschedulable, ..Default::default() }),
            ..Default::default()
        };
        let mut cordoned = false;
        let told =
            [None, Some(true), Some(true), Some(false), None].map(|u| schedulable(&mut cordoned, &node(u)));
        assert_eq!(told, [None, Some("NodeNotSchedulable"), None, Some("NodeSchedulable"), None]);
    }

    #[test]
    fn a_pressure_is_shown_while_it_lasts_and_a_while_after() {
        let (mut pressures, start) = (Pressures::default(), Instant::now());
        let disk = |disk| Shortage { disk, memory: false };
        for (after_s, seen, shown) in
            [(0, false, false), (10, true, true), (20, false, true), (309, false, true), (311, false, false)]
        {
            let now = start + Duration::from_secs(after_s);
            assert_eq!(pressures.shown(disk(seen), now), disk(shown), "{after_s} s");
        }
    }

    #[test]
    fn the_largest_images_are_named() {
        let image = |n: u64| Image {
            id: format!("sha256:{n:03}"),
            repo_digests: vec![format!("docker.io/library/i{n}@sha256:{n:03}")],
            tags: vec![format!("docker.io/library/i{n}:latest")],
            size_bytes: n,
            layers: Vec::new(),
            config: Default::default(),
            pinned: false,
            pinned_names: Default::default(),
        };
        let named = largest((1..=60).map(image).collect());
        assert_eq!(named.len(), 50, "upstream's nodeStatusMaxImages");
        assert_eq!(named[0].size_bytes, Some(60));
        assert_eq!(
            named[0].names.as_deref().unwrap(),
            ["docker.io/library/i60@sha256:060", "docker.io/library/i60:latest"]
        );
    }

    #[test]
    fn conditions_say_what_the_machine_is_short_of() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let calm = conditions(at(100), None, Shortage::default());
        let node = NodeStatus { conditions: Some(calm), ..Default::default() };
        let short = conditions(at(200), Some(&node), Shortage { memory: true, disk: false });
        let found: Vec<_> = short
            .iter()
            .map(|c| {
                (c.type_.as_str(), c.status.as_str(), c.last_transition_time.clone().unwrap().0.as_second())
            })
            .collect();
        let expected = [
            ("MemoryPressure", "True", 200),
            ("DiskPressure", "False", 100),
            ("PIDPressure", "False", 100),
            ("Ready", "True", 100),
        ];
        assert_eq!(found, expected);
        assert_eq!(
            changes(Shortage::default(), Shortage { memory: true, disk: false })[0].0,
            "NodeHasInsufficientMemory"
        );
    }
}
