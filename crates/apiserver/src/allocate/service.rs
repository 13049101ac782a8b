//! What a Service's fields say of its addresses and node ports: which it wants, which it holds,
//! and which an update keeps or drops.

use bytes::Bytes;
use serde_json::{Value, json};
use skeg_api::meta;
use std::collections::BTreeSet;
use std::net::IpAddr;

pub(super) fn protocol_taken(service: &Value, index: usize, node_port: u16) -> bool {
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
    let own = ports.get(index).map(protocol);
    ports
        .iter()
        .enumerate()
        .any(|(i, port)| i != index && port["nodePort"] == node_port && Some(protocol(port)) == own)
}

pub(super) fn owner_of(service: &Value) -> Bytes {
    format!("{}/{}", meta::namespace(service), meta::name(service)).into()
}

fn kind_of(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

pub(super) fn wants_ip(service: &Value) -> bool {
    kind_of(service) != "ExternalName"
}

pub(super) fn wants_ports(service: &Value) -> bool {
    match kind_of(service) {
        "NodePort" => true,
        "LoadBalancer" => {
            service["spec"]["allocateLoadBalancerNodePorts"] != false
                || service["spec"]["ports"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|p| p["nodePort"].as_i64().unwrap_or(0) != 0)
        }
        _ => false,
    }
}

pub(super) fn needs_health_port(service: &Value) -> bool {
    kind_of(service) == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}

/// The addresses that a Service holds.
pub(super) fn ips_of(service: &Value) -> BTreeSet<IpAddr> {
    if !wants_ip(service) {
        return BTreeSet::new();
    }
    let list =
        service["spec"]["clusterIPs"].as_array().into_iter().flatten().chain([&service["spec"]["clusterIP"]]);
    list.filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

/// The node ports that a Service holds.
pub(super) fn ports_of(service: &Value) -> BTreeSet<u16> {
    if !matches!(kind_of(service), "NodePort" | "LoadBalancer") {
        return BTreeSet::new();
    }
    let ports = service["spec"]["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
    let all = ports.chain([&service["spec"]["healthCheckNodePort"]]);
    all.filter_map(|port| u16::try_from(port.as_i64()?).ok()).filter(|port| *port != 0).collect()
}

/// An update that leaves out what was allocated keeps it, so that manifests can be applied again.
pub(super) fn keep_allocated(new: &mut Value, old: &Value) {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Number(n) => n.as_i64() == Some(0),
        _ => false,
    };
    if wants_ip(new) && wants_ip(old) {
        if empty(&new["spec"]["clusterIP"]) && !empty(&old["spec"]["clusterIP"]) {
            new["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
        }
        let same = new["spec"]["clusterIP"] == old["spec"]["clusterIP"];
        if same && empty(&new["spec"]["clusterIPs"]) && !empty(&old["spec"]["clusterIPs"]) {
            new["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
        }
        // Who changes the one form means the other too; whether it may change is validation's to say.
        if !same && new["spec"]["clusterIPs"] == old["spec"]["clusterIPs"] {
            new["spec"]["clusterIPs"] = json!([new["spec"]["clusterIP"]]);
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if empty(&new["spec"][field]) && !empty(&old["spec"][field]) {
                new["spec"][field] = old["spec"][field].clone();
            }
        }
    }
    let exposed = |service: &Value| matches!(kind_of(service), "NodePort" | "LoadBalancer");
    if !exposed(new) || !exposed(old) || !wants_ports(new) && !wants_ports(old) {
        return;
    }
    let same = |a: &Value, b: &Value| {
        let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
        a["port"] == b["port"] && protocol(a) == protocol(b)
    };
    let before = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let used: BTreeSet<i64> = new["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|p| p["nodePort"].as_i64())
        .collect();
    if let Some(ports) = new["spec"].get_mut("ports").and_then(Value::as_array_mut) {
        for port in ports.iter_mut().filter(|port| empty(&port["nodePort"])) {
            let kept =
                before.iter().find(|other| same(port, other)).and_then(|other| other["nodePort"].as_i64());
            if let Some(kept) = kept.filter(|kept| *kept != 0 && !used.contains(kept)) {
                port["nodePort"] = kept.into();
            }
        }
    }
    if needs_health_port(new) && needs_health_port(old) && empty(&new["spec"]["healthCheckNodePort"]) {
        new["spec"]["healthCheckNodePort"] = old["spec"]["healthCheckNodePort"].clone();
    }
}

/// The same of the port for health checks, where the update leaves it as it was.
pub(super) fn drop_health_port(new: &mut Value, old: Option<&Value>) {
    const FIELD: &str = "healthCheckNodePort";
    let Some(had) = old.filter(|old| needs_health_port(old)).map(|old| &old["spec"][FIELD]) else { return };
    if let Some(spec) = new["spec"].as_object_mut().filter(|spec| spec.get(FIELD) == Some(had)) {
        spec.remove(FIELD);
    }
}

/// A Service that is no longer exposed on nodes loses the ports it had, unless the update itself
/// names others, which validation refuses.
pub(super) fn drop_node_ports(new: &mut Value, old: Option<&Value>) {
    let Some(old) = old else { return };
    let before = ports_of(old);
    let ports = new["spec"].get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        let held = port["nodePort"]
            .as_i64()
            .and_then(|p| u16::try_from(p).ok())
            .is_some_and(|p| before.contains(&p));
        if held && let Some(fields) = port.as_object_mut() {
            fields.remove("nodePort");
        }
    }
}
