//! What controllers ask of a Pod: is it active, ready, available; and the [`Facts`] of it that
//! those which look at many Pods work with. Pure.
//! Upstream counterparts: `k8s.io/kubernetes/pkg/api/v1/pod` and `pkg/controller/controller_utils.go`.

use crate::owner;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

/// What the plans of ReplicaSets, Deployments and endpoints look at, read once per change of a
/// Pod: a pass over a thousand Pods decodes none of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    /// Names, labels and times; of the owners only the controller, no annotations.
    pub metadata: ObjectMeta,
    pub phase: String,
    /// Empty while the Pod has no node.
    pub node: String,
    pub ready: bool,
    /// When the condition Ready last changed, whichever way.
    ready_changed: Option<Timestamp>,
    /// The annotation `controller.kubernetes.io/pod-deletion-cost`; 0 where it is malformed.
    pub deletion_cost: i32,
    /// The most restarts of a container, then of a sidecar.
    pub restarts: (i32, i32),
    pub endpoint: Endpoint,
}

/// What makes a Pod an endpoint of a Service, apart from its readiness.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Endpoint {
    /// Every address, the first one first.
    pub ips: Vec<String>,
    pub hostname: Option<String>,
    pub subdomain: Option<String>,
    /// Name, protocol and number of the ports that have a name.
    pub ports: Vec<(String, String, i32)>,
}

impl Facts {
    pub(crate) fn of(pod: &Pod) -> Self {
        Facts {
            metadata: ObjectMeta {
                name: pod.metadata.name.clone(),
                namespace: pod.metadata.namespace.clone(),
                uid: pod.metadata.uid.clone(),
                labels: pod.metadata.labels.clone(),
                creation_timestamp: pod.metadata.creation_timestamp.clone(),
                deletion_timestamp: pod.metadata.deletion_timestamp.clone(),
                deletion_grace_period_seconds: pod.metadata.deletion_grace_period_seconds,
                owner_references: owner::controller_of(&pod.metadata).map(|owner| vec![owner.clone()]),
                ..Default::default()
            },
            phase: phase(pod).to_owned(),
            node: node_name(pod).to_owned(),
            ready: is_ready(pod),
            ready_changed: condition(pod, "Ready")
                .and_then(|ready| ready.last_transition_time.as_ref())
                .map(|time| time.0),
            deletion_cost: deletion_cost(pod),
            restarts: restarts(pod),
            endpoint: Endpoint::of(pod),
        }
    }

    pub(crate) fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Ended for good: its containers will never run again.
    pub(crate) fn is_terminal(&self) -> bool {
        skeg_api::pod::is_terminal_phase(&self.phase)
    }

    /// Neither ended nor about to.
    pub(crate) fn is_active(&self) -> bool {
        !self.is_terminal() && !self.is_deleting()
    }

    /// On its way out, with containers that may still run.
    pub(crate) fn is_terminating(&self) -> bool {
        !self.is_terminal() && self.is_deleting()
    }

    pub(crate) fn created(&self) -> Option<Timestamp> {
        self.metadata.creation_timestamp.as_ref().map(|time| time.0)
    }

    /// Since when the Pod is ready; `None` while it is not, or does not say.
    pub(crate) fn ready_since(&self) -> Option<Timestamp> {
        self.ready_changed.filter(|_| self.ready)
    }

    /// When a ready Pod becomes available; `None` while it is not ready.
    pub(crate) fn available_at(&self, min_ready_seconds: i32) -> Option<Timestamp> {
        if !self.ready {
            return None;
        }
        if min_ready_seconds <= 0 {
            return Some(Timestamp::MIN);
        }
        let wait = SignedDuration::from_secs(i64::from(min_ready_seconds));
        self.ready_since()?.checked_add(wait).ok()
    }

    /// Ready for at least `min_ready_seconds`.
    pub(crate) fn is_available(&self, min_ready_seconds: i32, now: Timestamp) -> bool {
        self.available_at(min_ready_seconds).is_some_and(|at| at <= now)
    }

    /// When the Pod last changed in a way that concerns the endpoint it is.
    pub(crate) fn endpoint_changed(&self) -> Option<Timestamp> {
        let Some(deleted) = &self.metadata.deletion_timestamp else { return self.ready_changed };
        // The timestamp tells when the grace period ends; the change came at its beginning.
        let grace = self.metadata.deletion_grace_period_seconds.unwrap_or(0);
        deleted.0.checked_sub(SignedDuration::from_secs(grace)).ok()
    }
}

impl Endpoint {
    fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let inits = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
        let sidecars = inits.filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let containers = spec.into_iter().flat_map(|spec| &spec.containers).chain(sidecars);
        let ports = containers.flat_map(|container| container.ports.iter().flatten());
        let named = ports.filter_map(|port| {
            let name = port.name.clone().filter(|name| !name.is_empty())?;
            Some((name, port.protocol.clone().unwrap_or_else(|| "TCP".into()), port.container_port))
        });
        Endpoint {
            ips: ips(pod).into_iter().map(str::to_owned).collect(),
            hostname: spec.and_then(|spec| spec.hostname.clone()),
            subdomain: spec.and_then(|spec| spec.subdomain.clone()),
            ports: named.collect(),
        }
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    let Some(text) =
        pod.metadata.annotations.as_ref().and_then(|a| a.get("controller.kubernetes.io/pod-deletion-cost"))
    else {
        return 0;
    };
    let plain = text == "0" || !(text.starts_with('+') || text.starts_with('0') || text.starts_with("-0"));
    if plain { text.parse().unwrap_or(0) } else { 0 }
}

fn restarts(pod: &Pod) -> (i32, i32) {
    let Some(status) = &pod.status else { return (0, 0) };
    let containers = status.container_statuses.iter().flatten().map(|c| c.restart_count).max().unwrap_or(0);
    let is_sidecar = |name: &str| {
        let inits = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref());
        inits.into_iter().flatten().any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
    };
    let sidecars = status.init_container_statuses.iter().flatten().filter(|c| is_sidecar(&c.name));
    (containers, sidecars.map(|c| c.restart_count).max().unwrap_or(0))
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

pub(crate) fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Ended for good: its containers will never run again.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Failed" | "Succeeded")
}

pub(crate) fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

fn ips(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else { return Vec::new() };
    let listed: Vec<&str> =
        status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).filter(|ip| !ip.is_empty()).collect();
    if listed.is_empty() {
        return status.pod_ip.as_deref().filter(|ip| !ip.is_empty()).into_iter().collect();
    }
    listed
}

/// A copy of the Pod's conditions with `new` set, or `None` where that changes nothing.
/// The transition time moves only with the status.
pub(crate) fn with_condition(pod: &Pod, mut new: PodCondition, now: Timestamp) -> Option<Vec<PodCondition>> {
    let mut conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    new.last_transition_time = Some(Time(now));
    new.observed_generation = pod.metadata.generation;
    match conditions.iter_mut().find(|old| old.type_ == new.type_) {
        None => conditions.push(new),
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time.clone_from(&old.last_transition_time);
            }
            let same = old.status == new.status && old.reason == new.reason && old.message == new.message;
            if same {
                return None;
            }
            *old = new;
        }
    }
    Some(conditions)
}
