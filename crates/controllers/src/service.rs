//! What EndpointSlices and Endpoints have in common: which Pods serve a Service, on which ports,
//! and when that last changed; and which Services a changed Pod concerns.
//! Upstream counterparts: `k8s.io/endpointslice/util`, `pkg/api/v1/pod`.

use crate::{meta, pod};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skeg_client::{Change, Informer, ObjectKey, Projection};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

pub(crate) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// One port of a Service as a Pod offers it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PodPort {
    pub name: String,
    pub port: i32,
    pub protocol: String,
    pub app_protocol: Option<String>,
}

/// Whether a controller is to find the endpoints of the Service.
pub(crate) fn has_selector(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.selector.is_some() && spec.type_.as_deref() != Some("ExternalName"))
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

/// The Service's address families, `true` for IPv6, from `ipFamilies` or else its address.
pub(crate) fn ip_families(service: &Service) -> impl Iterator<Item = bool> + '_ {
    let spec = service.spec.as_ref();
    let listed = spec.and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
    let address = spec.and_then(|spec| spec.cluster_ip.as_deref()).filter(|_| listed.is_empty());
    let by_address = address.and_then(|address| address.parse::<IpAddr>().ok()).map(|ip| ip.is_ipv6());
    listed.iter().map(|family| family == "IPv6").chain(by_address)
}

/// Whether the Pod can be an endpoint at all: it has an address and has not ended.
pub(crate) fn is_endpoint(pod: &Pod) -> bool {
    !pod::is_terminal(pod) && !pod::ips(pod).is_empty()
}

/// The ports of the Service that the Pod offers, sorted. A named target port that the Pod lacks
/// leaves the port out.
pub(crate) fn pod_ports(service: &Service, pod: &Pod) -> Vec<PodPort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let mut ports: Vec<PodPort> = ports
        .iter()
        .filter_map(|port| {
            Some(PodPort {
                name: port.name.clone().unwrap_or_default(),
                port: target_port(port, pod)?,
                protocol: protocol(port.protocol.as_deref()).to_owned(),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort();
    ports
}

fn protocol(protocol: Option<&str>) -> &str {
    protocol.unwrap_or("TCP")
}

fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let wanted = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut ports =
        spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let found = ports.find(|candidate| {
        candidate.name.as_ref() == Some(wanted)
            && protocol(candidate.protocol.as_deref()) == protocol(port.protocol.as_deref())
    });
    found.map(|port| port.container_port)
}

/// The host name that DNS gives the Pod within a Service which is its subdomain.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let ours =
        spec.subdomain == service.metadata.name && service.metadata.namespace == pod.metadata.namespace;
    spec.hostname.clone().filter(|hostname| ours && !hostname.is_empty())
}

/// When the Service or one of its Pods last changed in a way that concerns its endpoints.
pub(crate) fn trigger(pod: &Pod) -> Option<Timestamp> {
    if let Some(deleted) = &pod.metadata.deletion_timestamp {
        // The timestamp tells when the grace period ends; the change came at its beginning.
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        return deleted.0.checked_sub(jiff::SignedDuration::from_secs(grace)).ok();
    }
    pod::condition(pod, "Ready")?.last_transition_time.as_ref().map(|time| time.0)
}

/// RFC 3339 with as many digits of fraction as there are.
pub(crate) fn trigger_time(at: Timestamp) -> String {
    at.to_string()
}

/// The newest change of the Service or of any of its Pods.
pub(crate) fn last_change(service: &Service, pods: &[Arc<Pod>]) -> Option<Timestamp> {
    let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
    pods.iter().filter_map(|pod| trigger(pod)).chain(created).max()
}

type Labels = BTreeMap<String, String>;

/// The Pods, with their labels at hand: only those a Service selects are decoded.
#[derive(Clone)]
pub(crate) struct Pods {
    pub(crate) informer: Informer<Pod>,
    labels: Projection<Labels>,
}

impl Pods {
    pub(crate) fn of(informer: Informer<Pod>) -> Self {
        let labels = informer.project(|pod: &Pod| pod.metadata.labels.clone().unwrap_or_default());
        Pods { informer, labels }
    }

    /// The Pods a Service selects.
    pub(crate) fn selected(&self, service: &Service) -> Vec<Arc<Pod>> {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
        let namespace = meta::namespace(&service.metadata);
        let of_namespace = self.labels.iter().filter(|(key, _)| &*key.namespace == namespace);
        let chosen = of_namespace.filter(|(_, labels)| matches(&selector, labels));
        chosen.filter_map(|(key, _)| self.informer.get(&key.namespace, &key.name)).collect()
    }
}

/// An empty selector selects every Pod of the namespace.
fn matches(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether an update of a Pod changes the endpoint it is, for the Services that select it.
pub(crate) fn endpoint_differs(old: &Pod, new: &Pod) -> bool {
    let spec = |pod: &Pod| pod.spec.as_ref().map(|spec| (spec.hostname.clone(), spec.subdomain.clone()));
    pod::ips(old) != pod::ips(new)
        || pod::is_ready(old) != pod::is_ready(new)
        || pod::is_deleting(old) != pod::is_deleting(new)
        || pod::is_terminal(old) != pod::is_terminal(new)
        || pod::node_name(old) != pod::node_name(new)
        || spec(old) != spec(new)
}

/// The selectors of all Services, by which a changed Pod finds those it concerns.
pub(crate) struct Selection(Projection<Option<Labels>>);

impl Selection {
    pub(crate) fn of(services: &Informer<Service>) -> Self {
        let selector =
            |service: &Service| service.spec.as_ref().filter(|_| has_selector(service))?.selector.clone();
        Selection(services.project(selector))
    }

    /// The Services whose endpoints a change of a Pod may concern.
    pub(crate) fn changed(
        &self,
        change: &Change<'_, Pod>,
        differs: impl Fn(&Pod, &Pod) -> bool,
    ) -> Vec<ObjectKey> {
        let (old, new): (Option<&Pod>, &Pod) = match change {
            Change::Updated { old, new } if old.metadata.labels != new.metadata.labels => (Some(old), new),
            Change::Updated { old, new } if !differs(old, new) => return Vec::new(),
            change => (None, change.object()),
        };
        let namespace = &change.key().namespace;
        let labels = |pod: &Pod| pod.metadata.labels.clone().unwrap_or_default();
        let (new, old) = (labels(new), old.map(labels));
        let concerns = |selector: &Labels| {
            matches(selector, &new) || old.as_ref().is_some_and(|old| matches(selector, old))
        };
        let all = self.0.iter().filter(|(key, _)| key.namespace == *namespace);
        all.filter(|(_, selector)| selector.as_ref().as_ref().is_some_and(concerns))
            .map(|(key, _)| key)
            .collect()
    }
}
