//! What EndpointSlices and Endpoints have in common: which Pods serve a Service, on which ports,
//! and when that last changed; and which Services a changed Pod concerns.
//! Upstream counterparts: `k8s.io/endpointslice/util`, `pkg/api/v1/pod`.

use crate::meta;
use crate::pod::Facts;
use crate::pods::Pods;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skeg_client::{Informer, ObjectKey, Projection, ProjectionChange};
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
pub(crate) fn is_endpoint(pod: &Facts) -> bool {
    !pod.is_terminal() && !pod.endpoint.ips.is_empty()
}

/// The ports of the Service that the Pod offers, sorted. A named target port that the Pod lacks
/// leaves the port out.
pub(crate) fn pod_ports(service: &Service, pod: &Facts) -> Vec<PodPort> {
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

fn target_port(port: &ServicePort, pod: &Facts) -> Option<i32> {
    let wanted = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = protocol(port.protocol.as_deref());
    let found = pod.endpoint.ports.iter().find(|(name, of, _)| name == wanted && of == protocol);
    found.map(|(_, _, number)| *number)
}

/// The host name that DNS gives the Pod within a Service which is its subdomain.
pub(crate) fn hostname(service: &Service, pod: &Facts) -> Option<String> {
    let endpoint = &pod.endpoint;
    let ours =
        endpoint.subdomain == service.metadata.name && service.metadata.namespace == pod.metadata.namespace;
    endpoint.hostname.clone().filter(|hostname| ours && !hostname.is_empty())
}

/// The Pod as endpoints refer to it.
pub(crate) fn target(pod: &Facts) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// RFC 3339 with as many digits of fraction as there are.
pub(crate) fn trigger_time(at: Timestamp) -> String {
    at.to_string()
}

/// The newest change of the Service or of any of its Pods.
pub(crate) fn last_change(service: &Service, pods: &[Arc<Facts>]) -> Option<Timestamp> {
    let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
    pods.iter().filter_map(|pod| pod.endpoint_changed()).chain(created).max()
}

type Labels = BTreeMap<String, String>;

/// The Pods a Service selects.
pub(crate) fn selected(pods: &Pods, service: &Service) -> Vec<Arc<Facts>> {
    let none = Labels::new();
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).unwrap_or(&none);
    pods.of_namespace(meta::namespace(&service.metadata), |pod| matches(selector, pod))
}

/// An empty selector selects every Pod of the namespace.
fn matches(selector: &Labels, pod: &Facts) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// Whether an update of a Pod changes the endpoint it is, for the Services that select it.
fn endpoint_differs(old: &Facts, new: &Facts) -> bool {
    old.endpoint != new.endpoint
        || old.ready != new.ready
        || old.is_deleting() != new.is_deleting()
        || old.is_terminal() != new.is_terminal()
        || old.node != new.node
        || old.metadata.labels != new.metadata.labels
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
    pub(crate) fn changed(&self, change: &ProjectionChange<Facts>) -> Vec<ObjectKey> {
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        if old.zip(new).is_some_and(|(old, new)| !endpoint_differs(old, new)) {
            return Vec::new();
        }
        let concerns = |selector: &Option<Labels>| {
            let selector = selector.as_ref();
            selector
                .is_some_and(|selector| [old, new].into_iter().flatten().any(|pod| matches(selector, pod)))
        };
        let concerned = self.0.of_namespace(&change.key.namespace, concerns);
        concerned.into_iter().map(|(key, _)| key).collect()
    }
}
