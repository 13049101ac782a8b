//! What Services translate to and what names resolve to, as plain tables for the network: a pure
//! function of Services and EndpointSlices. Upstream counterparts: `pkg/proxy`, the DNS
//! specification for Services.

use crate::text;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

/// One port of a Service and the ready endpoints behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub cluster_ip: Ipv4Addr,
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    pub endpoints: Vec<SocketAddrV4>,
    pub node_port: Option<u16>,
    /// `sessionAffinity: ClientIP`, with its timeout in seconds.
    pub affinity_seconds: Option<u32>,
    /// Addresses from outside that also lead here.
    pub external_ips: Vec<Ipv4Addr>,
}

/// A DNS SRV record's data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Srv {
    pub port: u16,
    pub target: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTables {
    pub ports: Vec<ServicePort>,
    /// Full name without a final dot → addresses.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    pub srv: BTreeMap<String, Vec<Srv>>,
    /// `ExternalName` Services: name → target.
    pub aliases: BTreeMap<String, String>,
    /// Address → name, for reverse lookups.
    pub reverse: BTreeMap<IpAddr, String>,
}

/// Computes the tables.
pub fn tables(
    services: &[Arc<Service>],
    slices: &[Arc<EndpointSlice>],
    cluster_domain: &str,
) -> ServiceTables {
    let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let label = slice.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
        if let Some(name) = label {
            by_service.entry((text(&slice.metadata.namespace), name)).or_default().push(slice);
        }
    }
    let mut out = ServiceTables::default();
    for service in services {
        let key = (text(&service.metadata.namespace), text(&service.metadata.name));
        let slices = by_service.get(&key).map(Vec::as_slice).unwrap_or_default();
        one(service, slices, &format!("{}.{}.svc.{cluster_domain}", key.1, key.0), &mut out);
    }
    out
}

fn one(service: &Service, slices: &[&EndpointSlice], name: &str, out: &mut ServiceTables) {
    let Some(spec) = &service.spec else { return };
    if spec.type_.as_deref() == Some("ExternalName") {
        out.aliases.insert(name.to_owned(), text(&spec.external_name).trim_end_matches('.').to_owned());
        return;
    }
    let cluster_ip = text(&spec.cluster_ip);
    if cluster_ip == "None" {
        headless(spec.publish_not_ready_addresses == Some(true), slices, name, out);
        return;
    }
    let Ok(cluster_ip) = cluster_ip.parse::<Ipv4Addr>() else { return };
    out.hosts.insert(name.to_owned(), vec![cluster_ip.into()]);
    out.reverse.insert(cluster_ip.into(), name.to_owned());
    let affinity_seconds = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok()).unwrap_or(10_800)
    });
    let balancers =
        service.status.as_ref().and_then(|s| s.load_balancer.as_ref()).and_then(|l| l.ingress.as_ref());
    let external_ips: Vec<Ipv4Addr> = spec
        .external_ips
        .iter()
        .flatten()
        .map(String::as_str)
        .chain(balancers.into_iter().flatten().filter_map(|i| i.ip.as_deref()))
        .filter_map(|ip| ip.parse().ok())
        .collect();
    for port in spec.ports.iter().flatten() {
        let Ok(number) = u16::try_from(port.port) else { continue };
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        let port_name = text(&port.name);
        out.ports.push(ServicePort {
            cluster_ip,
            port: number,
            endpoints: endpoints(slices, port_name, &protocol),
            protocol: protocol.clone(),
            node_port: port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0),
            affinity_seconds,
            external_ips: external_ips.clone(),
        });
        if !port_name.is_empty() {
            let srv = format!("_{port_name}._{}.{name}", protocol.to_ascii_lowercase());
            out.srv.entry(srv).or_default().push(Srv { port: number, target: name.to_owned() });
        }
    }
}

/// Ready endpoints of one port; where there are none, those that still serve while they end.
fn endpoints(slices: &[&EndpointSlice], port_name: &str, protocol: &str) -> Vec<SocketAddrV4> {
    let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices {
        let port = slice
            .ports
            .iter()
            .flatten()
            .find(|p| text(&p.name) == port_name && p.protocol.as_deref().unwrap_or("TCP") == protocol);
        let Some(port) = port.and_then(|p| p.port).and_then(|p| u16::try_from(p).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let is_serving = conditions.and_then(|c| c.serving).unwrap_or(is_ready);
            for address in endpoint.addresses.iter().filter_map(|a| a.parse().ok()) {
                let address = SocketAddrV4::new(address, port);
                if is_ready {
                    ready.insert(address);
                } else if is_serving {
                    serving.insert(address);
                }
            }
        }
    }
    (if ready.is_empty() { serving } else { ready }).into_iter().collect()
}

/// A Service without an address of its own resolves to its endpoints, and each of them has a name.
fn headless(publish_all: bool, slices: &[&EndpointSlice], name: &str, out: &mut ServiceTables) {
    for slice in slices {
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
            if !ready && !publish_all {
                continue;
            }
            for address in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                let host = match endpoint.hostname.as_deref().filter(|h| !h.is_empty()) {
                    Some(host) => host.to_owned(),
                    None => address.to_string().replace(['.', ':'], "-"),
                };
                let full = format!("{host}.{name}");
                let add = |list: &mut Vec<IpAddr>| {
                    if !list.contains(&address) {
                        list.push(address);
                    }
                };
                add(out.hosts.entry(name.to_owned()).or_default());
                add(out.hosts.entry(full.clone()).or_default());
                out.reverse.insert(address, full.clone());
                for port in slice.ports.iter().flatten() {
                    let (Some(port_name), Some(number)) =
                        (&port.name, port.port.and_then(|p| u16::try_from(p).ok()))
                    else {
                        continue;
                    };
                    let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
                    let list = out.srv.entry(format!("_{port_name}._{protocol}.{name}")).or_default();
                    let record = Srv { port: number, target: full.clone() };
                    if !port_name.is_empty() && !list.contains(&record) {
                        list.push(record);
                    }
                }
            }
        }
    }
    out.srv.retain(|_, list| !list.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(spec: serde_json::Value) -> Arc<Service> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec}))
                .unwrap(),
        )
    }

    fn slice(endpoints: serde_json::Value) -> Arc<EndpointSlice> {
        let value = json!({
            "metadata": {"name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}]
        });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn a_service_translates_to_its_ready_endpoints() {
        let web = service(
            json!({"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}]}),
        );
        let ends = slice(json!([
            {"addresses": ["10.0.0.2"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}}
        ]));
        let found = tables(std::slice::from_ref(&web), &[ends], "cluster.local");
        assert_eq!(found.ports[0].endpoints, ["10.0.0.2:8080".parse().unwrap()]);
        assert_eq!(found.ports[0].node_port, Some(30080));
        assert_eq!(found.hosts["web.ns.svc.cluster.local"], ["10.96.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(found.srv["_http._tcp.web.ns.svc.cluster.local"][0].port, 80);
        let ending = slice(
            json!([{"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}}]),
        );
        assert_eq!(
            tables(&[web], &[ending], "cluster.local").ports[0].endpoints.len(),
            1,
            "ending ones serve the last requests"
        );
    }

    #[test]
    fn sessions_last_as_long_as_their_service_says() {
        for (spec, expected) in [
            (json!({}), None),
            (json!({"sessionAffinity": "None"}), None),
            (json!({"sessionAffinity": "ClientIP"}), Some(10_800)),
            (
                json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}}}),
                Some(7),
            ),
        ] {
            let mut of = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
            of.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            assert_eq!(tables(&[service(of)], &[], "x").ports[0].affinity_seconds, expected, "{spec}");
        }
    }

    #[test]
    fn an_external_name_is_an_alias() {
        let web = service(json!({"type": "ExternalName", "externalName": "db.example.com."}));
        let found = tables(&[web], &[], "cluster.local");
        assert_eq!(found.aliases["web.ns.svc.cluster.local"], "db.example.com");
        assert!(found.hosts.is_empty() && found.ports.is_empty());
    }

    #[test]
    fn a_headless_service_resolves_to_its_pods() {
        let web = service(json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}));
        let ends =
            slice(json!([{"addresses": ["10.0.0.2"], "hostname": "web-0"}, {"addresses": ["10.0.0.3"]}]));
        let found = tables(&[web], &[ends], "cluster.local");
        assert!(found.ports.is_empty());
        assert_eq!(found.hosts["web.ns.svc.cluster.local"].len(), 2);
        assert_eq!(found.hosts["web-0.web.ns.svc.cluster.local"], ["10.0.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(found.srv["_http._tcp.web.ns.svc.cluster.local"].len(), 2);
    }
}
