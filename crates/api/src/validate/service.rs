//! Services.

use super::at::{At, Errors};
use super::container::port_number_or_name;
use crate::field::{FieldError, Path};
use crate::meta;
use crate::names;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const KUBELET_PORT: i64 = 10250;
const AFFINITY_MAX_S: i64 = 86_400;
const ONLY_LOAD_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

fn is_headless(spec: &At<'_>) -> bool {
    matches!(spec.list("clusterIPs"), [only] if only.as_str() == Some("None"))
}

pub(super) fn validate(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    let kind = spec.str("type");
    topology_annotations(value, &mut errors);
    if spec.list("ports").is_empty() && !is_headless(&spec) && kind != "ExternalName" {
        errors.required(spec.at("ports"), "");
    }
    by_type(&spec, kind, &mut errors);
    ports(&spec, &mut errors);
    errors.extend(names::validate_labels(spec.value.get("selector"), &spec.at("selector")));
    session_affinity(&spec, &mut errors);
    cluster_ips(&spec, &mut errors);
    for (i, ip) in spec.strings("externalIPs").enumerate() {
        let path = spec.at("externalIPs").index(i);
        errors.extend(names::is_ip(&path, ip));
        if names::parse_ip(ip).is_some() {
            errors.extend(names::is_non_special_ip(&path, ip));
        }
    }
    errors.one_of(&spec, "type", TYPES);
    unique_ports(&spec, kind, &mut errors);
    load_balancer(value, &spec, kind, &mut errors);
    traffic_policies(&spec, kind, &mut errors);
    errors.0
}

fn topology_annotations(value: &Value, errors: &mut Errors) {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    const MODE: &str = "service.kubernetes.io/topology-mode";
    if let (Some(mode), Some(hints)) = (meta::annotation(value, MODE), meta::annotation(value, HINTS))
        && mode != hints
    {
        let path = Path::new("metadata").child("annotations").key(MODE);
        errors.invalid(path, mode, format!("must match annotations[{HINTS}] when both are specified"));
    }
}

fn by_type(spec: &At<'_>, kind: &str, errors: &mut Errors) {
    match kind {
        "LoadBalancer" | "NodePort" => {
            if kind == "LoadBalancer" {
                for port in spec.items("ports").filter(|port| port.int("port") == Some(KUBELET_PORT)) {
                    let why =
                        format!("may not expose port {KUBELET_PORT} externally since it is used by kubelet");
                    errors.invalid(port.path, KUBELET_PORT, why);
                }
            }
            if is_headless(spec) {
                let why = format!("may not be set to 'None' for {kind} services");
                errors.invalid(spec.at("clusterIPs").index(0), "None", why);
            }
        }
        "ExternalName" => {
            for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if spec.has(field) && spec.value[field] != json!([]) {
                    errors.forbidden(spec.at(field), "may not be set for ExternalName services");
                }
            }
            let name = spec.str("externalName");
            match name.strip_suffix('.').unwrap_or(name) {
                "" => errors.required(spec.at("externalName"), ""),
                name => errors.each(&spec.at("externalName"), name, names::is_dns1123_subdomain(name)),
            }
        }
        _ => {}
    }
}

fn ports(spec: &At<'_>, errors: &mut Errors) {
    let several = spec.list("ports").len() > 1;
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for at in spec.items("ports") {
        let name = at.str("name");
        if name.is_empty() {
            if several {
                errors.required(at.at("name"), "");
            }
        } else {
            errors.checked(&at, "name", names::is_dns1123_label);
            if seen.contains(&name) {
                errors.duplicate(at.at("name"), name);
            }
            seen.insert(name);
        }
        let port = at.int("port").unwrap_or(0);
        for message in names::is_port_number(port) {
            errors.invalid(at.at("port"), port, message);
        }
        errors.one_of(&at, "protocol", PROTOCOLS);
        port_number_or_name(&at, "targetPort", errors);
        if at.has("appProtocol") {
            let protocol = at.str("appProtocol");
            errors.each(&at.at("appProtocol"), protocol, names::is_qualified_name(protocol));
        }
    }
}

fn session_affinity(spec: &At<'_>, errors: &mut Errors) {
    errors.one_of(spec, "sessionAffinity", &["ClientIP", "None"]);
    let config = spec.get("sessionAffinityConfig");
    match spec.str("sessionAffinity") {
        "ClientIP" => {
            let why = "when session affinity type is ClientIP";
            let path = spec.at("sessionAffinityConfig");
            let Some(config) = config else { return errors.required(path, why) };
            let Some(client) = config.get("clientIP") else {
                return errors.required(path.child("clientIP"), why);
            };
            match client.int("timeoutSeconds") {
                None => errors.required(client.at("timeoutSeconds"), why),
                Some(seconds) if !(1..=AFFINITY_MAX_S).contains(&seconds) => {
                    let why = format!("must be greater than 0 and less than {AFFINITY_MAX_S}");
                    errors.invalid(client.at("timeoutSeconds"), seconds, why);
                }
                Some(_) => {}
            }
        }
        "None" if config.is_some() => {
            errors
                .forbidden(spec.at("sessionAffinityConfig"), "must not be set when session affinity is None");
        }
        _ => {}
    }
}

fn cluster_ips(spec: &At<'_>, errors: &mut Errors) {
    if spec.str("type") == "ExternalName" {
        return;
    }
    let (ip, path) = (spec.str("clusterIP"), spec.at("clusterIPs"));
    let ips: Vec<&str> = spec.strings("clusterIPs").collect();
    let all = || Value::from(spec.list("clusterIPs"));
    match (ip.is_empty(), ips.first()) {
        (false, None) => errors.required(path.clone(), ""),
        (false, Some(first)) if *first != ip => {
            errors.invalid(path.clone(), all(), "first value must match `clusterIP`")
        }
        (true, Some(_)) => {
            errors.invalid(path.clone(), all(), "must be empty when `clusterIP` is not specified")
        }
        _ => {}
    }
    let families: Vec<&str> = spec.strings("ipFamilies").collect();
    for (i, family) in families.iter().enumerate() {
        let at = spec.at("ipFamilies").index(i);
        if !matches!(*family, "IPv4" | "IPv6") {
            errors.not_supported(at.clone(), *family, &["IPv4", "IPv6"]);
        }
        if families[..i].contains(family) {
            errors.duplicate(at, *family);
        }
    }
    errors.optional_one_of(spec, "ipFamilyPolicy", &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    let before = errors.0.len();
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && *ip == "None" {
            if ips.len() > 1 {
                errors.invalid(path.clone(), all(), "'None' must be the first and only value");
            }
        } else {
            errors.extend(names::is_ip(&path.index(i), ip));
        }
    }
    let bad = errors.0.len() > before;
    if ips.len() > 2 {
        errors.invalid(path.clone(), all(), "may only hold up to 2 values");
    }
    if bad {
        return;
    }
    let is_v6 = |ip: &str| names::parse_ip(ip).is_some_and(|ip| ip.is_ipv6());
    if ips.len() > 1 && !(ips.iter().any(|ip| is_v6(ip)) && ips.iter().any(|ip| !is_v6(ip))) {
        errors.invalid(path.clone(), all(), "may specify no more than one IP for each IP family");
    }
    if !is_headless(spec) {
        for (i, (ip, family)) in ips.iter().zip(&families).enumerate() {
            if (*family == "IPv6") != is_v6(ip) && matches!(*family, "IPv4" | "IPv6") {
                errors.invalid(
                    path.index(i),
                    *ip,
                    format!("expected an {family} value as indicated by `ipFamilies[{i}]`"),
                );
            }
        }
    }
}

fn unique_ports(spec: &At<'_>, kind: &str, errors: &mut Errors) {
    let mut node_ports: BTreeSet<(&str, i64)> = BTreeSet::new();
    let mut ports: BTreeSet<(&str, i64)> = BTreeSet::new();
    for at in spec.items("ports") {
        let node_port = at.int("nodePort").unwrap_or(0);
        if node_port != 0 {
            if kind == "ClusterIP" {
                errors.forbidden(at.at("nodePort"), "may not be used when `type` is 'ClusterIP'");
            }
            let key = (at.str("protocol"), node_port);
            if node_ports.contains(&key) {
                errors.duplicate(at.at("nodePort"), node_port);
            }
            node_ports.insert(key);
        }
        let key = (at.str("protocol"), at.int("port").unwrap_or(0));
        if ports.contains(&key) {
            errors.duplicate(at.path.clone(), json!({ "protocol": key.0, "port": key.1 }));
        }
        ports.insert(key);
    }
}

fn load_balancer(value: &Value, spec: &At<'_>, kind: &str, errors: &mut Errors) {
    let is_balancer = kind == "LoadBalancer";
    let ranges = spec.list("loadBalancerSourceRanges");
    if !ranges.is_empty() {
        let path = spec.at("LoadBalancerSourceRanges");
        if !is_balancer {
            errors.forbidden(path.clone(), ONLY_LOAD_BALANCER);
        }
        for (i, range) in spec.strings("loadBalancerSourceRanges").enumerate() {
            errors.extend(names::is_cidr(&path.index(i), range.trim()));
        }
    } else if let Some(list) = meta::annotation(value, SOURCE_RANGES) {
        let path = Path::new("metadata").child("annotations").key(SOURCE_RANGES);
        if !is_balancer {
            errors.forbidden(path.clone(), ONLY_LOAD_BALANCER);
        }
        for range in list.split(',').map(str::trim).filter(|_| !list.trim().is_empty()) {
            errors.extend(names::is_cidr(&path, range));
        }
    }
    match (spec.has("allocateLoadBalancerNodePorts"), is_balancer) {
        (true, false) => errors.forbidden(spec.at("allocateLoadBalancerNodePorts"), ONLY_LOAD_BALANCER),
        (false, true) => errors.required(Path::new("allocateLoadBalancerNodePorts"), ""),
        _ => {}
    }
    if spec.has("loadBalancerClass") {
        let class = spec.str("loadBalancerClass");
        if is_balancer {
            errors.each(&spec.at("loadBalancerClass"), class, names::is_qualified_name(class));
        } else {
            errors.forbidden(spec.at("loadBalancerClass"), ONLY_LOAD_BALANCER);
        }
    }
}

fn is_external(spec: &At<'_>) -> bool {
    matches!(spec.str("type"), "LoadBalancer" | "NodePort")
        || spec.str("type") == "ClusterIP" && !spec.list("externalIPs").is_empty()
}

fn needs_health_check(spec: &At<'_>) -> bool {
    spec.str("type") == "LoadBalancer" && spec.str("externalTrafficPolicy") == "Local"
}

fn traffic_policies(spec: &At<'_>, kind: &str, errors: &mut Errors) {
    let external = spec.str("externalTrafficPolicy");
    if is_external(spec) {
        errors.one_of(spec, "externalTrafficPolicy", &["Cluster", "Local"]);
    } else if !external.is_empty() {
        errors.invalid(
            spec.at("externalTrafficPolicy"),
            external,
            "may only be set for externally-accessible services",
        );
    }
    let port = spec.int("healthCheckNodePort").unwrap_or(0);
    match (needs_health_check(spec), port) {
        (true, 0) => errors.required(spec.at("healthCheckNodePort"), ""),
        (true, _) => errors.range(spec, "healthCheckNodePort", 1, 65535),
        (false, 0) => {}
        (false, _) => {
            let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.invalid(spec.at("healthCheckNodePort"), port, why);
        }
    }
    if !spec.has("internalTrafficPolicy") && matches!(kind, "NodePort" | "LoadBalancer" | "ClusterIP") {
        errors.required(spec.at("internalTrafficPolicy"), "");
    }
    errors.optional_one_of(spec, "internalTrafficPolicy", &["Cluster", "Local"]);
    errors.optional_one_of(spec, "trafficDistribution", &["PreferClose", "PreferSameNode", "PreferSameZone"]);
}

pub(super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (new_root, old_root) = (At::root(new), At::root(old));
    let (spec, old_spec) = (new_root.child("spec"), old_root.child("spec"));
    let external_name = |spec: &At<'_>| spec.str("type") == "ExternalName";
    if !external_name(&spec) && !external_name(&old_spec) {
        if !(is_headless(&spec) && is_headless(&old_spec)) {
            primary_stays(
                &spec,
                &old_spec,
                "clusterIPs",
                "primary clusterIP can not be unset",
                "secondary clusterIP",
                &mut errors,
            );
        }
        if !is_headless(&spec) && !is_headless(&old_spec) {
            primary_stays(
                &spec,
                &old_spec,
                "ipFamilies",
                "primary ipFamily can not be unset",
                "secondary ipFamily",
                &mut errors,
            );
        }
    }
    let balancer = |spec: &At<'_>| spec.str("type") == "LoadBalancer";
    if balancer(&spec)
        && balancer(&old_spec)
        && spec.value.get("loadBalancerClass") != old_spec.value.get("loadBalancerClass")
    {
        let class = spec.value.get("loadBalancerClass").cloned().unwrap_or_default();
        errors.invalid(spec.at("loadBalancerClass"), class, "may not change once set");
    }
    if needs_health_check(&spec)
        && needs_health_check(&old_spec)
        && spec.int("healthCheckNodePort") != old_spec.int("healthCheckNodePort")
    {
        errors.forbidden(spec.at("healthCheckNodePort"), names::FIELD_IMMUTABLE);
    }
    errors.0
}

/// The first address or family may never change; a second one may come and go.
fn primary_stays(new: &At<'_>, old: &At<'_>, list: &str, unset: &str, released: &str, errors: &mut Errors) {
    let (now, had) = (new.list(list), old.list(list));
    let value = || Value::from(now);
    let path = new.at(list);
    if now.len() == had.len() {
        for (i, _) in had.iter().enumerate().filter(|(i, old)| now[*i] != **old) {
            let at = if list == "clusterIPs" { i } else { 0 };
            errors.invalid(path.index(at), value(), "may not change once set");
        }
        return;
    }
    if now.is_empty() && had.len() > now.len() {
        errors.invalid(path.index(0), value(), unset);
    }
    if let (Some(first), Some(old_first)) = (now.first(), had.first())
        && first != old_first
    {
        errors.invalid(path.index(0), value(), "may not change once set");
    }
    if had.len() > now.len() && now.len() == 1 && new.str("ipFamilyPolicy") != "SingleStack" {
        let policy = new.value.get("ipFamilyPolicy").cloned().unwrap_or_default();
        let why = format!("must be set to 'SingleStack' when releasing the {released}");
        errors.invalid(new.at("ipFamilyPolicy"), policy, why);
    }
}

pub(super) fn validate_status(new: &Value, _: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(new), Errors::default());
    let status = root.child("status").child("loadBalancer");
    if root.child("spec").str("type") != "LoadBalancer" && !status.list("ingress").is_empty() {
        errors.forbidden(status.at("ingress"), "may only be used when `spec.type` is 'LoadBalancer'");
        return errors.0;
    }
    for at in status.items("ingress") {
        let (ip, name) = (at.str("ip"), at.str("hostname"));
        if !ip.is_empty() {
            errors.extend(names::is_ip(&at.at("ip"), ip));
        }
        match (at.has("ipMode"), ip.is_empty()) {
            (false, false) => errors.required(at.at("ipMode"), "must be specified when `ip` is set"),
            (true, true) => errors.forbidden(at.at("ipMode"), "may not be specified when `ip` is not set"),
            _ => errors.optional_one_of(&at, "ipMode", &["Proxy", "VIP"]),
        }
        if !name.is_empty() {
            errors.each(&at.at("hostname"), name, names::is_dns1123_subdomain(name));
            if names::parse_ip(name).is_some() {
                errors.invalid(at.at("hostname"), name, "must be a DNS name, not an IP address");
            }
        }
    }
    errors.0
}

/// `clusterIP` and `clusterIPs` say the same; a client may set either.
pub(super) fn prepare_create(value: &mut Value) {
    let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let ip = spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default().to_owned();
    let has_list = spec.get("clusterIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
    if !ip.is_empty() && !has_list {
        spec.insert("clusterIPs".into(), json!([ip]));
    }
}

/// Carries a change of either form over to the other, and drops what a change of type leaves
/// behind.
pub(super) fn prepare_update(new: &mut Value, old: &Value) {
    let old_spec = old.get("spec").cloned().unwrap_or_default();
    let [was_external, external] = [old, &*new].map(|service| is_external(&At::root(service).child("spec")));
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let text =
        |spec: &Value, field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = spec.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let old_kind = text(&old_spec, "type");
    // Clients that know nothing of addresses leave both out: that means no change.
    if kind != "ExternalName" && old_kind != "ExternalName" {
        if !spec.contains_key("clusterIP") && !spec.contains_key("clusterIPs") {
            for field in ["clusterIP", "clusterIPs"] {
                if let Some(value) = old_spec.get(field) {
                    spec.insert(field.into(), value.clone());
                }
            }
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if let (false, Some(value)) = (spec.contains_key(field), old_spec.get(field)) {
                spec.insert(field.into(), value.clone());
            }
        }
    }
    let ip = spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = spec.get("clusterIPs").cloned().unwrap_or_default();
    let same_list = list == old_spec.get("clusterIPs").cloned().unwrap_or_default();
    if ip != text(&old_spec, "clusterIP") && same_list {
        if ip.is_empty() {
            spec.remove("clusterIPs");
        } else {
            spec.insert("clusterIPs".into(), json!([ip]));
        }
    } else if !ip.is_empty() && list.is_null() {
        spec.insert("clusterIPs".into(), json!([ip]));
    }
    let unchanged =
        |spec: &serde_json::Map<String, Value>, field: &str| spec.get(field) == old_spec.get(field);
    if was_external && !external && unchanged(spec, "externalTrafficPolicy") {
        spec.remove("externalTrafficPolicy");
    }
    if old_kind != kind {
        if kind == "ExternalName" {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if unchanged(spec, field) {
                    spec.remove(field);
                }
            }
        }
        if kind != "LoadBalancer" {
            for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
                if unchanged(spec, field) {
                    spec.remove(field);
                }
            }
        }
        if !matches!(kind.as_str(), "LoadBalancer" | "NodePort") {
            let old_ports = old_spec.get("ports").and_then(Value::as_array).cloned().unwrap_or_default();
            for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                let node_port = port.get("nodePort").cloned();
                if node_port.is_some()
                    && old_ports.iter().any(|old| old.get("nodePort") == node_port.as_ref())
                {
                    port.as_object_mut().map(|port| port.remove("nodePort"));
                }
            }
        }
    }
    if kind != "LoadBalancer"
        && let Some(balancer) = new.get_mut("status").and_then(|status| status.get_mut("loadBalancer"))
    {
        *balancer = json!({});
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_no_longer_needs_goes() {
        let service = |spec: Value| {
            let mut spec = spec;
            spec["clusterIP"] = "10.0.0.1".into();
            spec["externalTrafficPolicy"] = "Cluster".into();
            json!({"spec": spec, "status": {"loadBalancer": {"ingress": [{"ip": "10.1.0.1"}]}}})
        };
        let ips = json!(["10.2.0.1"]);
        for (old, new, policy, ingress) in [
            (json!({"type": "NodePort"}), json!({"type": "ClusterIP"}), false, false),
            // External addresses are a way in too.
            (
                json!({"type": "NodePort", "externalIPs": ips}),
                json!({"type": "ClusterIP", "externalIPs": ips}),
                true,
                false,
            ),
            (json!({"type": "ClusterIP", "externalIPs": ips}), json!({"type": "ClusterIP"}), false, false),
            (json!({"type": "LoadBalancer"}), json!({"type": "LoadBalancer"}), true, true),
            (json!({"type": "LoadBalancer"}), json!({"type": "NodePort"}), true, false),
        ] {
            let (old, mut new) = (service(old), service(new));
            prepare_update(&mut new, &old);
            assert_eq!(new["spec"].get("externalTrafficPolicy").is_some(), policy, "{new}");
            assert_eq!(new["status"]["loadBalancer"].get("ingress").is_some(), ingress, "{new}");
        }
    }
}
