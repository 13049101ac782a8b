//! From a Service and its Pods to the EndpointSlices that should be. Pure.
//! Upstream counterparts: `k8s.io/endpointslice` (`reconciler.go`, `utils.go`).

use crate::service::{self, PodPort};
use crate::{owner, pod};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const MANAGER: &str = "endpointslice-controller.k8s.io";
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TOPOLOGY_ZONE: &str = "topology.kubernetes.io/zone";

/// Endpoints of one slice; more go to further slices.
pub(crate) const ENDPOINTS_PER_SLICE_MAX: usize = 100;

/// What a pass looks at.
pub(crate) struct Observed<'a> {
    pub service: &'a Service,
    /// The Pods its selector matches.
    pub pods: &'a [Arc<Pod>],
    /// The nodes of those Pods.
    pub nodes: &'a BTreeMap<String, Arc<Node>>,
    /// The slices this controller made for the Service.
    pub slices: &'a [Arc<EndpointSlice>],
    /// When the change happened that this pass answers to.
    pub trigger: Option<Timestamp>,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    /// Names.
    pub delete: Vec<String>,
}

pub(crate) fn plan(observed: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    let families = address_types(observed.service);
    for slice in observed.slices {
        if slice.metadata.deletion_timestamp.is_none() && !families.contains(slice.address_type.as_str()) {
            plan.delete.push(slice.metadata.name.clone().unwrap_or_default());
        }
    }
    for family in families {
        plan_family(observed, family, &mut plan);
    }
    plan
}

/// The address types of the Service's families; a Service without families gets those its
/// cluster addresses show, and a headless one IPv4.
fn address_types(service: &Service) -> BTreeSet<&'static str> {
    let types: BTreeSet<_> =
        service::ip_families(service).map(|v6| if v6 { "IPv6" } else { "IPv4" }).collect();
    if types.is_empty() { BTreeSet::from(["IPv4"]) } else { types }
}

/// A slice as it should be: the one it was, its ports, its endpoints.
type Assignment<'a> = (Option<&'a EndpointSlice>, Vec<PodPort>, Vec<Endpoint>);

fn plan_family(observed: &Observed<'_>, family: &str, plan: &mut Plan) {
    let mut groups: BTreeMap<Vec<PodPort>, BTreeMap<String, Endpoint>> = BTreeMap::new();
    for pod in observed.pods.iter().filter(|pod| service::is_endpoint(pod)) {
        let Some(endpoint) = endpoint(observed, pod, family) else { continue };
        groups
            .entry(service::pod_ports(observed.service, pod))
            .or_default()
            .insert(identity(&endpoint), endpoint);
    }
    // Each endpoint stays in the slice it is in, if the ports are still the same.
    let mut slices: Vec<Assignment<'_>> = Vec::new();
    for slice in observed.slices {
        if slice.metadata.deletion_timestamp.is_some() || slice.address_type != family {
            continue;
        }
        let ports = ports_of(slice);
        let mut wanted = groups.get_mut(&ports);
        let old = slice.endpoints.iter().flatten();
        let kept = old.filter_map(|endpoint| wanted.as_mut()?.remove(&identity(endpoint))).collect();
        slices.push((Some(slice), ports, kept));
    }
    for (ports, new) in groups {
        place(new.into_values().collect(), ports, &mut slices);
    }
    // A Service without endpoints still has one slice, so that a consumer can tell that there are
    // none from that they are not known yet.
    if slices.iter().all(|(_, _, endpoints)| endpoints.is_empty()) {
        let placeholder =
            slices.iter().position(|(_, ports, _)| ports.is_empty()).or(slices.len().checked_sub(1));
        let slice = placeholder.and_then(|at| slices.remove(at).0);
        write(observed, family, (slice, Vec::new(), Vec::new()), plan);
    }
    for assignment in slices {
        match assignment {
            (None, _, endpoints) if endpoints.is_empty() => {}
            (Some(slice), _, endpoints) if endpoints.is_empty() => {
                plan.delete.push(slice.metadata.name.clone().unwrap_or_default());
            }
            used => write(observed, family, used, plan),
        }
    }
}

/// Puts new endpoints where a write is due anyway, then into the fullest slice with room, then
/// into slices that would go, then into new ones.
fn place(mut new: Vec<Endpoint>, ports: Vec<PodPort>, slices: &mut Vec<Assignment<'_>>) {
    let changed = |(slice, _, endpoints): &Assignment<'_>| {
        slice.is_none_or(|slice| slice.endpoints.as_deref().unwrap_or_default() != endpoints.as_slice())
    };
    let mut order: Vec<usize> = (0..slices.len()).filter(|at| slices[*at].1 == ports).collect();
    order.sort_by_key(|at| (!changed(&slices[*at]), Reverse(slices[*at].2.len())));
    // All that is new fits in the slices to be written, or else in one that is not, or else apart.
    for at in order {
        let room = ENDPOINTS_PER_SLICE_MAX.saturating_sub(slices[at].2.len());
        if changed(&slices[at]) || new.len() <= room {
            let room = room.min(new.len());
            slices[at].2.extend(new.drain(..room));
        }
    }
    while !new.is_empty() {
        let chunk: Vec<_> = new.drain(..new.len().min(ENDPOINTS_PER_SLICE_MAX)).collect();
        match slices.iter_mut().find(|(slice, _, endpoints)| slice.is_some() && endpoints.is_empty()) {
            Some((_, old_ports, endpoints)) => {
                old_ports.clone_from(&ports);
                *endpoints = chunk;
            }
            None => slices.push((None, ports.clone(), chunk)),
        }
    }
}

fn write(observed: &Observed<'_>, family: &str, (old, ports, endpoints): Assignment<'_>, plan: &mut Plan) {
    let mut wanted = EndpointSlice {
        address_type: family.to_owned(),
        metadata: metadata(observed, old),
        endpoints: Some(endpoints),
        ports: Some(ports.into_iter().map(to_port).collect()),
    };
    match old {
        None => plan.create.push(wanted),
        Some(old) => {
            let same = old.metadata.labels == wanted.metadata.labels
                && old.endpoints.as_deref().unwrap_or_default()
                    == wanted.endpoints.as_deref().unwrap_or_default()
                && old.ports.as_deref().unwrap_or_default() == wanted.ports.as_deref().unwrap_or_default();
            if !same {
                wanted.metadata.resource_version.clone_from(&old.metadata.resource_version);
                plan.update.push(wanted);
            }
        }
    }
}

/// The endpoint of a Pod in one family, if it has an address there.
fn endpoint(observed: &Observed<'_>, pod: &Pod, family: &str) -> Option<Endpoint> {
    let service = observed.service;
    let spec = service.spec.as_ref()?;
    let address = pod::ips(pod)
        .into_iter()
        .find(|ip| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == (family == "IPv6")))?;
    let serving = pod::is_ready(pod);
    let terminating = pod::is_deleting(pod);
    let ready = spec.publish_not_ready_addresses.unwrap_or(false) || (serving && !terminating);
    let node_name = Some(pod::node_name(pod)).filter(|name| !name.is_empty()).map(str::to_owned);
    let node = node_name.as_ref().and_then(|name| observed.nodes.get(name));
    let zone = node
        .and_then(|node| node.metadata.labels.as_ref()?.get(TOPOLOGY_ZONE))
        .filter(|zone| !zone.is_empty())
        .cloned();
    Some(Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        deprecated_topology: None,
        hints: hints(service, ready, zone.as_deref(), node_name.as_deref()),
        hostname: service::hostname(service, pod),
        target_ref: Some(target(pod)),
        node_name,
        zone,
    })
}

/// Where traffic for an endpoint had best come from, as `trafficDistribution` asks.
fn hints(service: &Service, ready: bool, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let distribution = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let same_node = distribution == "PreferSameNode";
    if !ready || !(same_node || matches!(distribution, "PreferClose" | "PreferSameZone")) {
        return None;
    }
    let for_zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let for_nodes = node.filter(|_| same_node).map(|node| vec![ForNode { name: node.to_owned() }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_zones, for_nodes })
}

fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// What makes two endpoints the same one: its Pod.
fn identity(endpoint: &Endpoint) -> String {
    match endpoint.target_ref.as_ref().and_then(|target| target.uid.as_ref()) {
        Some(uid) => uid.clone(),
        None => endpoint.addresses.join(","),
    }
}

fn to_port(port: PodPort) -> EndpointPort {
    EndpointPort {
        name: Some(port.name),
        port: Some(port.port),
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    }
}

fn ports_of(slice: &EndpointSlice) -> Vec<PodPort> {
    let port = |port: &EndpointPort| PodPort {
        name: port.name.clone().unwrap_or_default(),
        port: port.port.unwrap_or(0),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        app_protocol: port.app_protocol.clone(),
    };
    let mut ports: Vec<_> = slice.ports.iter().flatten().map(port).collect();
    ports.sort();
    ports
}

/// The metadata of a slice: the Service's labels and annotations that may be passed on, and ours.
fn metadata(observed: &Observed<'_>, old: Option<&EndpointSlice>) -> ObjectMeta {
    let service = &observed.service.metadata;
    let name = service.name.clone().unwrap_or_default();
    let reserved = |key: &str| [HEADLESS, SERVICE_NAME, MANAGED_BY].contains(&key);
    let mut labels: BTreeMap<String, String> =
        service.labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    labels.retain(|key, _| !reserved(key));
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service::is_headless(observed.service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let mut meta = match old {
        Some(old) => old.metadata.clone(),
        None => ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.namespace.clone(),
            owner_references: Some(vec![owner::controller_reference("v1", "Service", service)]),
            ..Default::default()
        },
    };
    meta.labels = Some(labels);
    match observed.trigger {
        Some(at) => {
            let at = service::trigger_time(at);
            meta.annotations.get_or_insert_default().insert(service::TRIGGER_TIME.into(), at);
        }
        None => {
            if let Some(annotations) = &mut meta.annotations {
                annotations.remove(service::TRIGGER_TIME);
            }
        }
    }
    meta
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Service {
        let mut whole = json!({"selector": {"app": "web"}, "clusterIP": "10.96.0.5", "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let service = json!({"metadata": {"name": "web", "namespace": "default", "uid": "s", "labels": {"team": "a"}}, "spec": whole});
        serde_json::from_value(service).unwrap()
    }

    fn pod(number: usize, ready: bool) -> Arc<Pod> {
        pod_with(number, ready, 8080)
    }

    fn pod_with(number: usize, ready: bool, port: i32) -> Arc<Pod> {
        let ip = format!("10.0.{}.{}", number / 250, number % 250 + 1);
        let pod = json!({
            "metadata": {"name": format!("p{number}"), "namespace": "default", "uid": format!("u{number:04}")},
            "spec": {"nodeName": "n1", "hostname": "h", "subdomain": "web",
                "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}, {"ip": "fd00::1"}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn run(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]) -> Plan {
        let node = json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z"}}});
        let nodes = BTreeMap::from([("n1".to_owned(), Arc::new(serde_json::from_value(node).unwrap()))]);
        plan(&Observed { service, pods, nodes: &nodes, slices, trigger: None })
    }

    /// What the API would hold after the plan.
    fn apply(plan: Plan, slices: &mut Vec<Arc<EndpointSlice>>) {
        for name in plan.delete {
            slices.retain(|slice| slice.metadata.name.as_ref() != Some(&name));
        }
        for slice in plan.update {
            let at = slices.iter().position(|old| old.metadata.name == slice.metadata.name).unwrap();
            slices[at] = Arc::new(slice);
        }
        for mut slice in plan.create {
            slice.metadata.name = Some(format!("s{}", slices.len()));
            slices.push(Arc::new(slice));
        }
    }

    #[test]
    fn one_ready_pod() {
        let plan = run(&service(json!({})), &[pod(0, true)], &[]);
        let slice = &plan.create[0];
        let endpoint = &slice.endpoints.as_ref().unwrap()[0];
        assert_eq!(endpoint.addresses, ["10.0.0.1"]);
        assert_eq!(
            endpoint.conditions,
            Some(EndpointConditions { ready: Some(true), serving: Some(true), terminating: Some(false) })
        );
        assert_eq!((endpoint.node_name.as_deref(), endpoint.zone.as_deref()), (Some("n1"), Some("z")));
        assert_eq!(endpoint.hostname.as_deref(), Some("h"));
        let port = &slice.ports.as_ref().unwrap()[0];
        assert_eq!((port.name.as_deref(), port.port), (Some("http"), Some(8080)));
        let labels = slice.metadata.labels.as_ref().unwrap();
        assert_eq!(
            (labels["team"].as_str(), labels[MANAGED_BY].as_str(), labels[SERVICE_NAME].as_str()),
            ("a", MANAGER, "web")
        );
        assert!(!labels.contains_key(HEADLESS));
    }

    #[test]
    fn none_to_one_to_none_keeps_one_slice() {
        let service = service(json!({}));
        let mut slices = Vec::new();
        apply(run(&service, &[], &slices), &mut slices);
        assert_eq!((slices.len(), slices[0].ports.as_deref()), (1, Some(&[][..])));
        assert_eq!(run(&service, &[], &slices), Plan::default());
        let plan = run(&service, &[pod(0, true)], &slices);
        assert_eq!((plan.create.len(), plan.update.len()), (0, 1));
        apply(plan, &mut slices);
        assert_eq!(run(&service, &[pod(0, true)], &slices), Plan::default());
        let plan = run(&service, &[pod(0, false)], &slices);
        assert_eq!(
            plan.update[0].endpoints.as_ref().unwrap()[0].conditions.as_ref().unwrap().ready,
            Some(false)
        );
        apply(run(&service, &[], &slices), &mut slices);
        assert_eq!((slices.len(), slices[0].endpoints.as_deref()), (1, Some(&[][..])));
    }

    #[test]
    fn a_hundred_to_a_slice() {
        let service = service(json!({}));
        let mut slices = Vec::new();
        let mut pods: Vec<_> = (0..250).map(|n| pod(n, true)).collect();
        apply(run(&service, &pods, &slices), &mut slices);
        let sizes = |slices: &[Arc<EndpointSlice>]| {
            slices.iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&slices), [100, 100, 50]);
        assert_eq!(run(&service, &pods, &slices), Plan::default());
        pods.remove(7);
        pods.push(pod(300, true));
        let plan = run(&service, &pods, &slices);
        assert_eq!(
            (plan.create.len(), plan.update.len(), plan.delete.len()),
            (0, 1, 0),
            "one write for both"
        );
        apply(plan, &mut slices);
        apply(run(&service, &pods[..3], &slices), &mut slices);
        assert_eq!(sizes(&slices), [3]);
    }

    #[test]
    fn ports_by_name_differ_by_pod() {
        let service = service(json!({}));
        let pods = [pod_with(0, true, 8080), pod_with(1, true, 9090)];
        let mut slices = Vec::new();
        apply(run(&service, &pods, &slices), &mut slices);
        assert_eq!(slices.len(), 2);
        assert_eq!(run(&service, &pods, &slices), Plan::default());
    }

    #[test]
    fn families_headless_terminating_and_hints() {
        let dual = service(
            json!({"ipFamilies": ["IPv4", "IPv6"], "clusterIP": "None", "trafficDistribution": "PreferSameZone"}),
        );
        let plan = run(&dual, &[pod(0, true)], &[]);
        assert_eq!(plan.create.iter().map(|s| s.address_type.as_str()).collect::<Vec<_>>(), ["IPv4", "IPv6"]);
        assert!(plan.create[0].metadata.labels.as_ref().unwrap().contains_key(HEADLESS));
        let endpoint = &plan.create[0].endpoints.as_ref().unwrap()[0];
        assert_eq!(endpoint.hints.as_ref().unwrap().for_zones.as_ref().unwrap()[0].name, "z");
        let mut going = Pod::clone(&pod(0, true));
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        let plan = run(&service(json!({})), &[Arc::new(going)], &[]);
        let conditions = plan.create[0].endpoints.as_ref().unwrap()[0].conditions.clone().unwrap();
        assert_eq!(
            conditions,
            EndpointConditions { ready: Some(false), serving: Some(true), terminating: Some(true) }
        );
        // A family that is gone takes its slices along.
        let mut slices = Vec::new();
        apply(run(&dual, &[], &slices), &mut slices);
        assert_eq!(run(&service(json!({"clusterIP": "None"})), &[], &slices).delete, ["s1"]);
    }
}
