//! From a Service and its Pods to the EndpointSlices that should be. Pure.
//! Upstream counterparts: `k8s.io/endpointslice` (`reconciler.go`, `utils.go`).

use super::layout::{self, Groups, Plan};
use crate::owner;
use crate::pod::Facts;
use crate::service;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const MANAGER: &str = "endpointslice-controller.k8s.io";
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TOPOLOGY_ZONE: &str = "topology.kubernetes.io/zone";

/// What a pass looks at.
pub(crate) struct Observed<'a> {
    pub service: &'a Service,
    /// The Pods its selector matches.
    pub pods: &'a [Arc<Facts>],
    /// The nodes of those Pods.
    pub nodes: &'a BTreeMap<String, Arc<Node>>,
    /// The slices this controller made for the Service.
    pub slices: &'a [Arc<EndpointSlice>],
    /// When the change happened that this pass answers to.
    pub trigger: Option<Timestamp>,
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

fn plan_family(observed: &Observed<'_>, family: &str, plan: &mut Plan) {
    let mut groups: Groups = BTreeMap::new();
    for pod in observed.pods.iter().filter(|pod| service::is_endpoint(pod)) {
        let Some(endpoint) = endpoint(observed, pod, family) else { continue };
        groups
            .entry(service::pod_ports(observed.service, pod))
            .or_default()
            .insert(layout::identity(&endpoint), endpoint);
    }
    let metadata = |old: Option<&EndpointSlice>| metadata(observed, old);
    layout::arrange(family, groups, observed.slices, true, metadata, plan);
}

/// The endpoint of a Pod in one family, if it has an address there.
fn endpoint(observed: &Observed<'_>, pod: &Facts, family: &str) -> Option<Endpoint> {
    let service = observed.service;
    let spec = service.spec.as_ref()?;
    let address = (pod.endpoint.ips.iter())
        .find(|ip| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == (family == "IPv6")))?;
    let serving = pod.ready;
    let terminating = pod.is_deleting();
    let ready = spec.publish_not_ready_addresses.unwrap_or(false) || (serving && !terminating);
    let node_name = Some(pod.node.clone()).filter(|name| !name.is_empty());
    let node = node_name.as_ref().and_then(|name| observed.nodes.get(name));
    let zone = node
        .and_then(|node| node.metadata.labels.as_ref()?.get(TOPOLOGY_ZONE))
        .filter(|zone| !zone.is_empty())
        .cloned();
    Some(Endpoint {
        addresses: vec![address.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        deprecated_topology: None,
        hints: hints(service, ready, zone.as_deref(), node_name.as_deref()),
        hostname: service::hostname(service, pod),
        target_ref: Some(service::target(pod)),
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

    fn pod(number: usize, ready: bool) -> Arc<Facts> {
        pod_with(number, ready, 8080)
    }

    fn pod_with(number: usize, ready: bool, port: i32) -> Arc<Facts> {
        let ip = format!("10.0.{}.{}", number / 250, number % 250 + 1);
        let pod = json!({
            "metadata": {"name": format!("p{number}"), "namespace": "default", "uid": format!("u{number:04}")},
            "spec": {"nodeName": "n1", "hostname": "h", "subdomain": "web",
                "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}, {"ip": "fd00::1"}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(Facts::of(&serde_json::from_value(pod).unwrap()))
    }

    fn run(service: &Service, pods: &[Arc<Facts>], slices: &[Arc<EndpointSlice>]) -> Plan {
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
        let waiting = run(&dual, &[pod(0, false)], &[]);
        assert_eq!(waiting.create[0].endpoints.as_ref().unwrap()[0].hints, None, "nobody is sent there");
        let mut going = Facts::clone(&pod(0, true));
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
