//! The group `networking.k8s.io`: Ingress, IngressClass, NetworkPolicy, IPAddress, ServiceCIDR.

use super::affinity;
use super::at::{At, Errors, same};
use crate::field::FieldError;
use crate::kinds::Strategy;
use crate::{meta, names};
use serde_json::Value;

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const CONTROLLER_MAX_BYTES: usize = 250;

pub(super) fn strategy(kind: &str) -> Strategy {
    let none = Strategy::default();
    match kind {
        "Ingress" => Strategy {
            validate: ingress,
            validate_create: ingress_create,
            validate_status: ingress_status,
            warnings: ingress_warnings,
            ..none
        },
        "IngressClass" => Strategy {
            validate: ingress_class,
            validate_update: |new, old| immutable_spec(new, old, "controller"),
            ..none
        },
        "NetworkPolicy" => Strategy { validate: network_policy, ..none },
        "IPAddress" => Strategy {
            validate: ip_address,
            validate_update: |new, old| immutable_spec(new, old, "parentRef"),
            ..none
        },
        "ServiceCIDR" => Strategy { validate: service_cidr, validate_update: service_cidr_update, ..none },
        _ => none,
    }
}

fn immutable_spec(new: &Value, old: &Value, field: &str) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.immutable(&At::root(new).child("spec"), &At::root(old).child("spec"), field);
    errors.0
}

fn ingress(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    if spec.list("rules").is_empty() && !spec.has("defaultBackend") {
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.invalid(spec.path.clone(), spec.value.clone(), why);
    }
    if let Some(default) = spec.get("defaultBackend") {
        backend(&default, &mut errors);
    }
    for rule in spec.items("rules") {
        ingress_rule(&rule, &mut errors);
    }
    for tls in spec.items("tls") {
        for (i, host) in tls.strings("hosts").enumerate() {
            errors.each(&tls.at("hosts").index(i), host, is_host(host));
        }
        errors.checked(&tls, "secretName", names::is_dns1123_subdomain);
    }
    if spec.has("ingressClassName") {
        let name = spec.str("ingressClassName");
        errors.each(&spec.at("ingressClassName"), name, names::is_dns1123_subdomain(name));
    }
    errors.0
}

fn is_host(host: &str) -> names::Messages {
    if host.contains('*') {
        names::is_wildcard_dns1123_subdomain(host)
    } else {
        names::is_dns1123_subdomain(host)
    }
}

fn ingress_rule(rule: &At<'_>, errors: &mut Errors) {
    let host = rule.str("host");
    if !host.is_empty() {
        if names::parse_ip(host).is_some() {
            errors.invalid(rule.at("host"), host, "must be a DNS name, not an IP address");
        } else {
            errors.each(&rule.at("host"), host, is_host(host));
        }
    }
    let Some(http) = rule.get("http") else { return };
    if http.list("paths").is_empty() {
        errors.required(http.at("paths"), "");
    }
    for at in http.items("paths") {
        let (path, field) = (at.str("path"), at.at("path"));
        match at.str("pathType") {
            "Exact" | "Prefix" => {
                if !path.starts_with('/') {
                    errors.invalid(field.clone(), path, "must be an absolute path");
                }
                if !path.is_empty() {
                    for part in
                        ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|part| path.contains(**part))
                    {
                        errors.invalid(field.clone(), path, format!("must not contain '{part}'"));
                    }
                    for end in ["/..", "/."].iter().filter(|end| path.ends_with(**end)) {
                        errors.invalid(field.clone(), path, format!("cannot end with '{end}'"));
                    }
                }
            }
            "ImplementationSpecific" if path.is_empty() || path.starts_with('/') => {}
            "ImplementationSpecific" => errors.invalid(field, path, "must be an absolute path"),
            "" => errors.required(at.at("pathType"), "pathType must be specified"),
            other => {
                let supported = &["Exact", "ImplementationSpecific", "Prefix"];
                errors.not_supported(at.at("pathType"), other, supported);
            }
        }
        backend(&at.child("backend"), errors);
    }
}

fn backend(at: &At<'_>, errors: &mut Errors) {
    let (service, resource) = match (at.get("service"), at.get("resource")) {
        (Some(_), Some(_)) => {
            errors.invalid(at.path.clone(), "", "cannot set both resource and service backends");
            return;
        }
        (None, None) => {
            errors.invalid(at.path.clone(), "", "resource or service backend is required");
            return;
        }
        one => one,
    };
    if let Some(resource) = resource {
        local_reference(&resource, errors);
    }
    let Some(service) = service else { return };
    if errors.need(&service, "name") {
        errors.checked(&service, "name", names::is_dns1123_label);
    }
    let port = service.child("port");
    let (name, number) = (port.str("name"), port.int("number").unwrap_or(0));
    match (name.is_empty(), number) {
        (false, 0) => errors.each(&port.at("name"), name, names::is_port_name(name)),
        (false, _) => errors.invalid(at.path.clone(), "", "cannot set both port name & port number"),
        (true, 0) => errors.required(at.path.clone(), "port name or number is required"),
        (true, number) => {
            for message in names::is_port_number(number) {
                errors.invalid(port.at("number"), number, message);
            }
        }
    }
}

/// An object of any kind in the same place.
fn local_reference(at: &At<'_>, errors: &mut Errors) {
    errors.checked(at, "apiGroup", names::is_dns1123_subdomain);
    for field in ["kind", "name"] {
        if errors.need(at, field) {
            errors.checked(at, field, names::is_path_segment_name);
        }
    }
}

fn ingress_create(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    if let Some(class) =
        meta::annotation(value, CLASS_ANNOTATION).filter(|_| root.child("spec").has("ingressClassName"))
    {
        let path = root.at("metadata").child("annotations").key(CLASS_ANNOTATION);
        errors.invalid(path, class, "can not be set when the class field is also set");
    }
    errors.0
}

fn ingress_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some() || meta::annotation(new, CLASS_ANNOTATION).is_none() {
        return Vec::new();
    }
    vec![format!("annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead")]
}

fn ingress_status(new: &Value, _: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(new), Errors::default());
    for at in root.child("status").child("loadBalancer").items("ingress") {
        let (ip, host) = (at.str("ip"), at.str("hostname"));
        if !ip.is_empty() {
            errors.extend(names::is_ip(&at.at("ip"), ip));
        }
        errors.checked(&at, "hostname", names::is_dns1123_subdomain);
        if names::parse_ip(host).is_some() {
            errors.invalid(at.at("hostname"), host, "must be a DNS name, not an IP address");
        }
    }
    errors.0
}

fn ingress_class(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    if spec.str("controller").len() > CONTROLLER_MAX_BYTES {
        errors.push(FieldError::too_long(spec.at("controller"), CONTROLLER_MAX_BYTES));
    }
    errors.domain_prefixed_path(&spec, "controller");
    let Some(at) = spec.get("parameters") else { return errors.0 };
    local_reference(&at, &mut errors);
    match at.str("scope") {
        "" => errors.required(at.at("scope"), ""),
        "Namespace" if at.str("namespace").is_empty() => {
            errors.required(at.at("namespace"), "`parameters.scope` is set to 'Namespace'");
        }
        "Namespace" => errors.checked(&at, "namespace", names::is_dns1123_label),
        "Cluster" if at.has("namespace") => {
            errors.forbidden(at.at("namespace"), "`parameters.scope` is set to 'Cluster'");
        }
        "Cluster" => {}
        other => errors.not_supported(at.at("scope"), other, &["Cluster", "Namespace"]),
    }
    errors.0
}

fn network_policy(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    affinity::label_selector(spec.get("podSelector"), &mut errors);
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.items(rules) {
            rule.items("ports").for_each(|port| policy_port(&port, &mut errors));
            rule.items(peers).for_each(|at| peer(&at, &mut errors));
        }
    }
    let types = spec.list("policyTypes");
    if types.len() > 2 {
        errors.invalid(spec.at("policyTypes"), types, "may not specify more than two policyTypes");
        return errors.0;
    }
    for (i, kind) in spec.strings("policyTypes").enumerate() {
        if !matches!(kind, "Ingress" | "Egress") {
            errors.not_supported(spec.at("policyTypes").index(i), kind, &["Ingress", "Egress"]);
        }
    }
    errors.0
}

fn policy_port(at: &At<'_>, errors: &mut Errors) {
    errors.optional_one_of(at, "protocol", &["SCTP", "TCP", "UDP"]);
    let end = at.int("endPort");
    let path = at.at("endPort");
    match (at.value.get("port"), end) {
        (None, Some(end)) => errors.invalid(path, end, "may not be specified when `port` is not specified"),
        (None, None) => {}
        (Some(Value::String(name)), end) => {
            if let Some(end) = end {
                errors.invalid(path, end, "may not be specified when `port` is non-numeric");
            }
            errors.each(&at.at("port"), name, names::is_port_name(name));
        }
        (Some(port), end) => {
            let port = port.as_i64().unwrap_or(0);
            for message in names::is_port_number(port) {
                errors.invalid(at.at("port"), port, message);
            }
            let Some(end) = end else { return };
            if end < port {
                errors.invalid(path.clone(), port, "must be greater than or equal to `port`");
            }
            for message in names::is_port_number(end) {
                errors.invalid(path.clone(), end, message);
            }
        }
    }
}

fn peer(at: &At<'_>, errors: &mut Errors) {
    let selectors = ["podSelector", "namespaceSelector"].iter().filter(|field| at.has(field)).count();
    for field in ["podSelector", "namespaceSelector"] {
        affinity::label_selector(at.get(field), errors);
    }
    let block = at.get("ipBlock");
    if let Some(block) = &block {
        ip_block(block, errors);
    }
    match (selectors, block) {
        (0, None) => errors.required(at.path.clone(), "must specify a peer"),
        (1.., Some(_)) => {
            errors.forbidden(at.path.clone(), "may not specify both ipBlock and another peer");
        }
        _ => {}
    }
}

fn ip_block(at: &At<'_>, errors: &mut Errors) {
    if !errors.need(at, "cidr") {
        return;
    }
    let cidr = at.str("cidr");
    errors.extend(names::is_cidr(&at.at("cidr"), cidr));
    let Some((network, bits)) = names::parse_cidr(cidr) else { return };
    for (i, except) in at.strings("except").enumerate() {
        let path = at.at("except").index(i);
        errors.extend(names::is_cidr(&path, except));
        if let Some((address, length)) = names::parse_cidr(except)
            && !(length > bits && is_within(address, network, bits))
        {
            errors.invalid(path, except, "must be a strict subset of `cidr`");
        }
    }
}

/// Whether an address is in a network of so many bits.
fn is_within(address: std::net::IpAddr, network: std::net::IpAddr, bits: u8) -> bool {
    use std::net::IpAddr::{V4, V6};
    let (a, b, width) = match (address, network) {
        (V4(a), V4(b)) => (u128::from(u32::from(a)), u128::from(u32::from(b)), 32),
        (V6(a), V6(b)) => (u128::from(a), u128::from(b), 128),
        _ => return false,
    };
    let shift = width - u32::from(bits);
    a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0)
}

fn ip_address(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let name = meta::name(value);
    let path = root.at("metadata").child("name");
    match name.parse::<std::net::IpAddr>() {
        Err(_) => errors.invalid(path, name, "must be a valid IP address"),
        Ok(ip) if ip.to_string() != name => {
            errors.invalid(path, name, format!("must be in canonical form ({:?})", ip.to_string()));
        }
        Ok(_) => {}
    }
    let spec = root.child("spec");
    match spec.get("parentRef") {
        None => errors.required(spec.at("parentRef"), ""),
        Some(parent) => {
            errors.checked(&parent, "group", names::is_dns1123_subdomain);
            for field in ["resource", "name"] {
                if errors.need(&parent, field) {
                    errors.checked(&parent, field, names::is_path_segment_name);
                }
            }
            errors.checked(&parent, "namespace", names::is_path_segment_name);
        }
    }
    errors.0
}

fn service_cidr(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    let (cidrs, path) = (spec.strings("cidrs").collect::<Vec<_>>(), spec.at("cidrs"));
    match cidrs.len() {
        0 => errors.required(path, "at least one CIDR required"),
        3.. => errors.invalid(path, cidrs, "may only hold up to 2 values"),
        _ => {
            for (i, cidr) in cidrs.iter().enumerate() {
                errors.extend(names::is_cidr(&path.index(i), cidr));
            }
            let families: Vec<bool> =
                cidrs.iter().filter_map(|cidr| names::parse_cidr(cidr)).map(|(ip, _)| ip.is_ipv6()).collect();
            if families.len() == 2 && families[0] == families[1] {
                let why =
                    "may specify no more than one IP for each IP family, i.e. 192.168.0.0/24, 2001:db8::/96";
                errors.invalid(path, cidrs, why);
            }
        }
    }
    errors.0
}

/// A second family may join; what is there stays.
fn service_cidr_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (now, had, mut errors) =
        (At::root(new).child("spec"), At::root(old).child("spec"), Errors::default());
    let (cidrs, before) = (now.list("cidrs"), had.list("cidrs"));
    let grows = before.len() == 1 && cidrs.len() == 2 && cidrs[0] == before[0];
    if !grows && !same(now.value.get("cidrs"), had.value.get("cidrs")) {
        errors.invalid(now.at("cidrs"), cidrs, names::FIELD_IMMUTABLE);
    }
    errors.0
}
