//! From a Service and its Pods to its Endpoints object. Pure.
//! Upstream counterparts: `pkg/controller/endpoint`, `pkg/api/v1/endpoints`.

use crate::pod::Facts;
use crate::service::{self, PodPort};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub(crate) const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
pub(crate) const MANAGER: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// Addresses in one object; the rest are left out, and an annotation says so.
const ADDRESSES_MAX: usize = 1000;

/// The object to write, if what is there differs. One with a resourceVersion is replaced.
pub(crate) fn plan(
    service: &Service,
    pods: &[Arc<Facts>],
    old: Option<&Endpoints>,
    trigger: Option<Timestamp>,
) -> Option<Endpoints> {
    let mut subsets = subsets(service, pods);
    let truncated = truncate(&mut subsets);
    let mut labels: BTreeMap<String, String> = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if service::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if let Some(old) = old {
        let annotated = old.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(OVER_CAPACITY));
        let same = old.subsets.as_deref().unwrap_or_default() == subsets.as_slice()
            && old.metadata.labels.as_ref() == Some(&labels)
            && annotated == truncated;
        if same {
            return None;
        }
    }
    let mut metadata = match old {
        Some(old) => old.metadata.clone(),
        None => ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..Default::default()
        },
    };
    metadata.labels = Some(labels);
    let mut annotations = metadata.annotations.take().unwrap_or_default();
    annotations.remove(service::TRIGGER_TIME);
    annotations.remove(OVER_CAPACITY);
    if let Some(at) = trigger {
        annotations.insert(service::TRIGGER_TIME.into(), service::trigger_time(at));
    }
    if truncated {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    }
    metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    Some(Endpoints { metadata, subsets: (!subsets.is_empty()).then_some(subsets) })
}

/// An address with whether it is ready; ordered by IP.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    ip: IpAddr,
    uid: String,
    ready: bool,
}

/// Ports that the same addresses serve go together in one subset.
fn subsets(service: &Service, pods: &[Arc<Facts>]) -> Vec<EndpointSubset> {
    let tolerate_unready =
        service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let no_ports = service.spec.as_ref().is_none_or(|spec| spec.ports.as_ref().is_none_or(Vec::is_empty));
    let v6 = service::ip_families(service).next();
    let mut addresses: BTreeMap<Key, EndpointAddress> = BTreeMap::new();
    let mut by_port: BTreeMap<Option<PodPort>, BTreeSet<Key>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| service::is_endpoint(pod)) {
        if pod.is_deleting() && !tolerate_unready {
            continue;
        }
        let Some((ip, address)) = address(service, pod, v6) else { continue };
        let key = Key {
            ip,
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            ready: tolerate_unready || pod.ready,
        };
        addresses.insert(key.clone(), address);
        if no_ports && service::is_headless(service) {
            by_port.entry(None).or_default().insert(key.clone());
        }
        for port in service::pod_ports(service, pod) {
            by_port.entry(Some(port)).or_default().insert(key.clone());
        }
    }
    let mut by_addresses: BTreeMap<BTreeSet<Key>, Vec<Option<PodPort>>> = BTreeMap::new();
    for (port, keys) in by_port {
        by_addresses.entry(keys).or_default().push(port);
    }
    let select = |keys: &BTreeSet<Key>, ready: bool| {
        let chosen: Vec<_> = keys
            .iter()
            .filter(|key| key.ready == ready)
            .filter_map(|key| addresses.get(key).cloned())
            .collect();
        (!chosen.is_empty()).then_some(chosen)
    };
    let mut subsets: Vec<(Vec<Option<PodPort>>, EndpointSubset)> = Vec::new();
    for (keys, ports) in by_addresses {
        let listed: Vec<EndpointPort> = ports.iter().flatten().map(port).collect();
        let subset = EndpointSubset {
            addresses: select(&keys, true),
            not_ready_addresses: select(&keys, false),
            ports: (!listed.is_empty()).then_some(listed),
        };
        subsets.push((ports, subset));
    }
    subsets.sort_by(|a, b| a.0.cmp(&b.0));
    subsets.into_iter().map(|(_, subset)| subset).collect()
}

fn port(port: &PodPort) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()).filter(|name| !name.is_empty()),
        port: port.port,
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    }
}

/// The Pod's address in the Service's first family.
fn address(service: &Service, pod: &Facts, v6: Option<bool>) -> Option<(IpAddr, EndpointAddress)> {
    let mut ips = pod.endpoint.ips.iter().filter_map(|text| Some((text.parse::<IpAddr>().ok()?, text)));
    let (ip, text) = ips.find(|(ip, _)| v6.is_none_or(|v6| ip.is_ipv6() == v6))?;
    let address = EndpointAddress {
        ip: text.clone(),
        node_name: Some(pod.node.clone()).filter(|name| !name.is_empty()),
        hostname: service::hostname(service, pod),
        target_ref: Some(service::target(pod)),
    };
    Some((ip, address))
}

/// Cuts the addresses to [`ADDRESSES_MAX`], ready ones kept first; whether it had to.
fn truncate(subsets: &mut [EndpointSubset]) -> bool {
    let count = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
    let total: usize = subsets.iter().map(|s| count(&s.addresses) + count(&s.not_ready_addresses)).sum();
    if total <= ADDRESSES_MAX {
        return false;
    }
    let mut left = ADDRESSES_MAX;
    let mut keep = |list: &mut Option<Vec<EndpointAddress>>| {
        if let Some(list) = list {
            list.truncate(left);
            left -= list.len();
        }
    };
    subsets.iter_mut().for_each(|subset| keep(&mut subset.addresses));
    subsets.iter_mut().for_each(|subset| keep(&mut subset.not_ready_addresses));
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"team": "a"}},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.1", "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "metrics", "port": 9000, "targetPort": "metrics"}]},
        }))
        .unwrap()
    }

    fn pod(number: usize, ready: bool, metrics: bool) -> Arc<Facts> {
        let ports = if metrics { json!([{"name": "metrics", "containerPort": 9}]) } else { json!([]) };
        let pod = json!({
            "metadata": {"name": format!("p{number}"), "namespace": "default", "uid": format!("u{number}")},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": ports}]},
            "status": {"phase": "Running", "podIP": format!("10.1.{}.{}", number / 250, number % 250 + 1),
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(Facts::of(&serde_json::from_value(pod).unwrap()))
    }

    #[test]
    fn ports_group_by_who_serves_them() {
        let endpoints =
            plan(&service(), &[pod(9, true, true), pod(1, true, false), pod(2, false, true)], None, None)
                .unwrap();
        let subsets = endpoints.subsets.as_ref().unwrap();
        let ips = |list: &Option<Vec<EndpointAddress>>| {
            list.iter().flatten().map(|a| a.ip.clone()).collect::<Vec<_>>()
        };
        assert_eq!(subsets.len(), 2);
        assert_eq!(ips(&subsets[0].addresses), ["10.1.0.2", "10.1.0.10"]);
        assert_eq!(ips(&subsets[0].not_ready_addresses), ["10.1.0.3"]);
        assert_eq!(ips(&subsets[1].addresses), ["10.1.0.10"]);
        assert_eq!(subsets[1].ports.as_ref().unwrap()[0].port, 9);
        let labels = endpoints.metadata.labels.as_ref().unwrap();
        assert_eq!((labels["team"].as_str(), labels[MANAGED_BY].as_str()), ("a", MANAGER));
        let again = plan(
            &service(),
            &[pod(2, false, true), pod(1, true, false), pod(9, true, true)],
            Some(&endpoints),
            None,
        );
        assert_eq!(again, None);
    }

    #[test]
    fn a_service_without_pods_has_an_empty_object() {
        let endpoints = plan(&service(), &[], None, None).unwrap();
        assert_eq!(endpoints.subsets, None);
        assert_eq!(plan(&service(), &[], Some(&endpoints), None), None);
    }

    #[test]
    fn a_thousand_addresses_at_most() {
        let mut service = service();
        service.spec.as_mut().unwrap().ports.as_mut().unwrap().truncate(1);
        let pods: Vec<_> = (0..1200).map(|n| pod(n, n % 2 == 0, false)).collect();
        let endpoints = plan(&service, &pods, None, None).unwrap();
        let subset = &endpoints.subsets.as_ref().unwrap()[0];
        assert_eq!(subset.addresses.as_ref().unwrap().len(), 600);
        assert_eq!(subset.not_ready_addresses.as_ref().unwrap().len(), 400);
        assert_eq!(endpoints.metadata.annotations.unwrap()[OVER_CAPACITY], "truncated");
    }
}
