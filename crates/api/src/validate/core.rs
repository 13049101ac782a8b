//! The small kinds: Namespace, Node, ConfigMap, Secret, endpoints, Event, Lease, PriorityClass.

use super::at::{At, Errors};
use super::{affinity, resources};
use crate::field::{FieldError, Path};
use crate::{meta, names, object_meta};
use base64::Engine;
use serde_json::Value;
use std::collections::BTreeSet;

/// Data of a Secret or ConfigMap, all values together.
const DATA_MAX_BYTES: usize = 1024 * 1024;
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub(super) fn namespace(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    for finalizer in spec.strings("finalizers") {
        let path = spec.at("finalizers");
        errors.each(&path, finalizer, names::is_qualified_name(finalizer));
        errors.extend(object_meta::standard_finalizer(finalizer, &path));
    }
    errors.0
}

pub(super) fn namespace_status(new: &Value, _: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(new), Errors::default());
    let phase = root.child("status").str("phase");
    let path = Path::new("status").child("Phase");
    match (meta::is_deleting(new), phase) {
        (false, "Active") | (true, "Terminating") => {}
        (false, _) => errors.invalid(path, phase, "may only be 'Active' if `deletionTimestamp` is empty"),
        (true, _) => {
            errors.invalid(path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")
        }
    }
    errors.0
}

pub(super) fn node(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    affinity::taints(&spec, &Path::new("metadata").child("taints"), &mut errors);
    node_resources(&root, &mut errors);
    let cidrs: Vec<&str> = spec.strings("podCIDRs").collect();
    let path = spec.at("podCIDRs");
    for (i, cidr) in cidrs.iter().enumerate() {
        errors.extend(names::is_cidr(&path.index(i), cidr));
        if cidrs[..i].contains(cidr) {
            errors.duplicate(path.index(i), *cidr);
        }
    }
    let family =
        |v6| cidrs.iter().filter_map(|c| names::parse_cidr(c)).filter(|(ip, _)| ip.is_ipv6() == v6).count();
    if family(false) > 1 || family(true) > 1 {
        errors.invalid(path, cidrs, "may specify no more than one CIDR for each IP family");
    }
    errors.0
}

fn node_resources(root: &At<'_>, errors: &mut Errors) {
    let status = root.child("status");
    for list in ["capacity", "allocatable"] {
        for (name, value) in status.entries(list) {
            let amount = crate::quantity::Quantity::from_value(value).unwrap_or_default();
            resources::quantity(name, amount, &status.at(list).child(name), errors);
        }
    }
}

pub(super) fn node_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (root, old_root) = (At::root(new), At::root(old));
    let (spec, old_spec) = (root.child("spec"), old_root.child("spec"));
    let addresses = root.child("status").list("addresses");
    for (i, address) in addresses.iter().enumerate() {
        if addresses[..i].contains(address) {
            errors.duplicate(Path::new("status").child("addresses").index(i), address.clone());
        }
    }
    let (cidrs, had) = (spec.list("podCIDRs"), old_spec.list("podCIDRs"));
    if !had.is_empty() && cidrs != had {
        errors
            .forbidden(spec.at("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid");
    }
    let had = old_spec.str("providerID");
    if !had.is_empty() && had != spec.str("providerID") {
        errors.forbidden(
            spec.at("providerID"),
            "node updates may not change providerID except from \"\" to valid",
        );
    }
    errors.0
}

pub(super) fn node_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    node_resources(&At::root(new), &mut errors);
    errors.extend(node_update(new, old));
    errors.0
}

pub(super) fn config_map(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let mut total = 0;
    for list in ["data", "binaryData"] {
        for (key, content) in root.entries(list) {
            let path = || root.at(list).key(key);
            let messages = names::is_config_map_key(key);
            if !messages.is_empty() {
                errors.each(&path(), key, messages);
            }
            let twice = list == "data" && root.value.get("binaryData").is_some_and(|b| b.get(key).is_some());
            if twice {
                errors.invalid(path(), key.as_str(), "duplicate of key present in binaryData");
            }
            let text = content.as_str().unwrap_or_default();
            total += if list == "data" { text.len() } else { decoded_len(text) };
        }
    }
    if total > DATA_MAX_BYTES {
        errors.push(FieldError::too_long(Path::new("[]"), DATA_MAX_BYTES));
    }
    errors.0
}

/// How many bytes base64 text stands for.
fn decoded_len(text: &str) -> usize {
    text.len() / 4 * 3 - text.bytes().rev().take_while(|b| *b == b'=').count().min(2)
}

pub(super) fn config_map_update(new: &Value, old: &Value) -> Vec<FieldError> {
    immutable_content(new, old, &["data", "binaryData"]).0
}

fn immutable_content(new: &Value, old: &Value, fields: &[&str]) -> Errors {
    let (root, old_root, mut errors) = (At::root(new), At::root(old), Errors::default());
    let why = "field is immutable when `immutable` is set";
    if old_root.bool("immutable") {
        if !root.bool("immutable") {
            errors.forbidden(Path::new("immutable"), why);
        }
        for field in fields {
            if !super::at::same(root.value.get(*field), old_root.value.get(*field)) {
                errors.forbidden(Path::new(field), why);
            }
        }
    }
    errors
}

pub(super) fn secret(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let path = root.at("data");
    let mut total = 0;
    for (key, content) in root.entries("data") {
        let messages = names::is_config_map_key(key);
        if !messages.is_empty() {
            errors.each(&path.key(key), key, messages);
        }
        total += decoded_len(content.as_str().unwrap_or_default());
    }
    if total > DATA_MAX_BYTES {
        errors.push(FieldError::too_long(path.clone(), DATA_MAX_BYTES));
    }
    let data = root.child("data");
    let need = |errors: &mut Errors, key: &str| {
        let missing = !data.has(key);
        if missing {
            errors.required(path.key(key), "");
        }
        !missing
    };
    match root.str("type") {
        "kubernetes.io/service-account-token" => {
            const NAME: &str = "kubernetes.io/service-account.name";
            if meta::annotation(value, NAME).unwrap_or_default().is_empty() {
                errors.required(Path::new("metadata").child("annotations").key(NAME), "");
            }
        }
        "kubernetes.io/dockercfg" if need(&mut errors, ".dockercfg") => {
            well_formed_json(&data, ".dockercfg", &path, &mut errors);
        }
        "kubernetes.io/dockerconfigjson" if need(&mut errors, ".dockerconfigjson") => {
            well_formed_json(&data, ".dockerconfigjson", &path, &mut errors);
        }
        "kubernetes.io/basic-auth" if !data.has("username") && !data.has("password") => {
            need(&mut errors, "username");
            need(&mut errors, "password");
        }
        "kubernetes.io/ssh-auth" if data.str("ssh-privatekey").is_empty() => {
            errors.required(path.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            need(&mut errors, "tls.crt");
            need(&mut errors, "tls.key");
        }
        _ => {}
    }
    errors.0
}

fn well_formed_json(data: &At<'_>, key: &str, path: &Path, errors: &mut Errors) {
    let bytes = base64::engine::general_purpose::STANDARD.decode(data.str(key)).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
        errors.invalid(path.key(key), "<secret contents redacted>", error.to_string());
    }
}

pub(super) fn secret_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.immutable(&At::root(new), &At::root(old), "type");
    errors.extend(immutable_content(new, old, &["data"]).0);
    errors.0
}

/// `stringData` is written, never read: it goes into `data`.
pub(super) fn secret_prepare(value: &mut Value) {
    let Some(secret) = value.as_object_mut() else { return };
    let Some(Value::Object(plain)) = secret.remove("stringData") else { return };
    if plain.is_empty() {
        return;
    }
    let data = secret.entry("data").or_insert_with(|| Value::Object(serde_json::Map::new()));
    if !data.is_object() {
        *data = Value::Object(serde_json::Map::new());
    }
    for (key, text) in plain {
        let encoded = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or_default());
        data[key] = encoded.into();
    }
}

/// An update that leaves the type out means the one it had.
pub(super) fn secret_prepare_update(new: &mut Value, old: &Value) {
    secret_prepare(new);
    let kind = old.get("type").cloned();
    if let (Some(kind), Some(secret)) = (kind, new.as_object_mut())
        && secret.get("type").and_then(Value::as_str).unwrap_or_default().is_empty()
    {
        secret.insert("type".into(), kind);
    }
}

pub(super) fn endpoints(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    for subset in root.items("subsets") {
        if subset.list("addresses").is_empty() && subset.list("notReadyAddresses").is_empty() {
            errors.required(subset.path.clone(), "must specify `addresses` or `notReadyAddresses`");
        }
        for list in ["addresses", "notReadyAddresses"] {
            for at in subset.items(list) {
                let ip = at.str("ip");
                errors.extend(names::is_ip(&at.at("ip"), ip));
                errors.checked(&at, "hostname", names::is_dns1123_label);
                errors.checked(&at, "nodeName", names::is_dns1123_subdomain);
                errors.extend(names::is_non_special_ip(&at.at("ip"), ip));
            }
        }
        let several = subset.list("ports").len() > 1;
        for port in subset.items("ports") {
            if several && port.str("name").is_empty() {
                errors.required(port.at("name"), "");
            }
            errors.checked(&port, "name", names::is_dns1123_label);
            let number = port.int("port").unwrap_or(0);
            for message in names::is_port_number(number) {
                errors.invalid(port.at("port"), number, message);
            }
            errors.one_of(&port, "protocol", PROTOCOLS);
            errors.checked(&port, "appProtocol", names::is_qualified_name);
        }
    }
    errors.0
}

const ENDPOINTS_MAX: usize = 1000;
const ENDPOINT_ADDRESSES_MAX: usize = 100;
const ENDPOINT_PORTS_MAX: usize = 20_000;
const ZONE_HINTS_MAX: usize = 8;

pub(super) fn endpoint_slice(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let kind = root.str("addressType");
    errors.one_of(&root, "addressType", &["FQDN", "IPv4", "IPv6"]);
    let count = root.list("endpoints").len();
    if count > ENDPOINTS_MAX {
        errors.push(FieldError::too_many(root.at("endpoints"), count, ENDPOINTS_MAX));
    } else {
        root.items("endpoints").for_each(|at| slice_endpoint(&at, kind, &mut errors));
    }
    slice_ports(&root, &mut errors);
    errors.0
}

fn slice_endpoint(at: &At<'_>, kind: &str, errors: &mut Errors) {
    let addresses = at.list("addresses").len();
    if addresses == 0 {
        errors.required(at.at("addresses"), "must contain at least 1 address");
    } else if addresses > ENDPOINT_ADDRESSES_MAX {
        errors.push(FieldError::too_many(at.at("addresses"), addresses, ENDPOINT_ADDRESSES_MAX));
    }
    for (i, address) in at.strings("addresses").enumerate() {
        let path = at.at("addresses").index(i);
        match kind {
            "IPv4" | "IPv6" => {
                let v6 = kind == "IPv6";
                if names::parse_ip(address).is_none_or(|ip| ip.to_canonical().is_ipv6() != v6) {
                    errors.invalid(path.clone(), address, format!("must be a valid {kind} address"));
                } else {
                    errors.extend(names::is_ip(&path, address));
                }
                errors.extend(names::is_non_special_ip(&path, address));
            }
            "FQDN" => errors.extend(names::is_fully_qualified_domain_name(&path, address)),
            _ => {}
        }
    }
    errors.checked(at, "nodeName", names::is_dns1123_subdomain);
    let topology = at.value.get("deprecatedTopology");
    errors.extend(names::validate_labels(topology, &at.at("deprecatedTopology")));
    if at.has("hostname") {
        let name = at.str("hostname");
        errors.each(&at.at("hostname"), name, names::is_dns1123_label(name));
    }
    let hints = at.child("hints");
    let zones = hints.list("forZones").len();
    if zones > ZONE_HINTS_MAX {
        errors.push(FieldError::too_many(hints.at("forZones"), zones, ZONE_HINTS_MAX));
        return;
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for zone in hints.items("forZones") {
        let name = zone.str("name");
        if seen.contains(&name) {
            errors.duplicate(zone.path.clone(), name);
        }
        seen.insert(name);
        errors.each(&zone.at("name"), name, names::is_label_value(name));
    }
}

fn slice_ports(root: &At<'_>, errors: &mut Errors) {
    let count = root.list("ports").len();
    if count > ENDPOINT_PORTS_MAX {
        errors.push(FieldError::too_many(root.at("ports"), count, ENDPOINT_PORTS_MAX));
        return;
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for port in root.items("ports") {
        let name = port.str("name");
        errors.checked(&port, "name", names::is_dns1123_label);
        if seen.contains(&name) {
            errors.duplicate(port.at("name"), name);
        }
        seen.insert(name);
        errors.one_of(&port, "protocol", PROTOCOLS);
        errors.checked(&port, "appProtocol", names::is_qualified_name);
    }
}

pub(super) fn endpoint_slice_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.immutable(&At::root(new), &At::root(old), "addressType");
    errors.0
}

const EVENT_TEXT_MAX_BYTES: usize = 128;
const EVENT_NOTE_MAX_BYTES: usize = 1024;

/// How the fields of an Event are called in a version.
struct EventFields {
    involved: &'static str,
    controller: &'static str,
    message: &'static str,
    first: &'static str,
    last: &'static str,
    count: &'static str,
    source: &'static str,
}

const CORE_EVENT: EventFields = EventFields {
    involved: "involvedObject",
    controller: "reportingComponent",
    message: "message",
    first: "firstTimestamp",
    last: "lastTimestamp",
    count: "count",
    source: "source",
};
const NEW_EVENT: EventFields = EventFields {
    involved: "regarding",
    controller: "reportingController",
    message: "note",
    first: "deprecatedFirstTimestamp",
    last: "deprecatedLastTimestamp",
    count: "deprecatedCount",
    source: "deprecatedSource",
};

/// Events of the core group: only what upstream has always checked.
pub(super) fn event(value: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    legacy_event(&At::root(value), &CORE_EVENT, &mut errors);
    errors.0
}

fn legacy_event(root: &At<'_>, fields: &EventFields, errors: &mut Errors) {
    let namespace = meta::namespace(root.value);
    let involved = root.child(fields.involved).str("namespace");
    let path = Path::new("involvedObject").child("namespace");
    let why = "does not match event.namespace";
    let is_new = root.has("eventTime");
    let mismatch = match (involved.is_empty(), is_new) {
        (true, false) => !matches!(namespace, "" | "default"),
        (false, false) => namespace != involved,
        (true, true) => !matches!(namespace, "default" | "kube-system"),
        (false, true) => false,
    };
    if mismatch {
        errors.invalid(path, involved, why);
    }
    if is_new {
        let controller = root.str(fields.controller);
        if controller.is_empty() {
            errors.required(Path::new("reportingController"), "");
        }
        errors.each(&Path::new("reportingController"), controller, names::is_qualified_name(controller));
        for (field, text, max) in [
            ("reportingInstance", root.str("reportingInstance"), EVENT_TEXT_MAX_BYTES),
            ("action", root.str("action"), EVENT_TEXT_MAX_BYTES),
            ("reason", root.str("reason"), EVENT_TEXT_MAX_BYTES),
            ("message", root.str(fields.message), EVENT_NOTE_MAX_BYTES),
        ] {
            if text.is_empty() && field != "message" {
                errors.required(Path::new(field), "");
            }
            if text.len() > max {
                errors.invalid(Path::new(field), "", format!("can have at most {max} characters"));
            }
        }
    }
    errors.each(&Path::new("namespace"), namespace, names::is_dns1123_subdomain(namespace));
}

/// Events of `events.k8s.io/v1`.
pub(super) fn new_event(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    legacy_event(&root, &NEW_EVENT, &mut errors);
    errors.0
}

pub(super) fn new_event_create(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    series(&root, &mut errors);
    if !root.has("eventTime") {
        errors.required(Path::new("eventTime"), "");
    }
    let kind = root.str("type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.invalid(Path::new("type"), "", format!("has invalid value: {kind}"));
    }
    let source = root.child(NEW_EVENT.source);
    for (field, set) in [
        ("firstTimestamp", root.has(NEW_EVENT.first)),
        ("lastTimestamp", root.has(NEW_EVENT.last)),
        ("count", root.int(NEW_EVENT.count).unwrap_or(0) != 0),
        ("source", !source.str("component").is_empty() || !source.str("host").is_empty()),
    ] {
        if set {
            errors.invalid(Path::new(field), "", "needs to be unset");
        }
    }
    errors.0
}

fn series(root: &At<'_>, errors: &mut Errors) {
    let Some(series) = root.get("series") else { return };
    if series.int("count").unwrap_or(0) < 2 {
        errors.invalid(Path::new("series.count"), "", "should be at least 2");
    }
    if !series.has("lastObservedTime") {
        errors.required(Path::new("series.lastObservedTime"), "");
    }
}

/// Only the series of a new Event may change.
pub(super) fn new_event_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (root, old_root, mut errors) = (At::root(new), At::root(old), Errors::default());
    if root.value.get("series") != old_root.value.get("series") {
        series(&root, &mut errors);
    }
    for (field, path) in [
        (NEW_EVENT.involved, "involvedObject"),
        ("reason", "reason"),
        (NEW_EVENT.message, "message"),
        (NEW_EVENT.source, "source"),
        (NEW_EVENT.first, "firstTimestamp"),
        (NEW_EVENT.last, "lastTimestamp"),
        (NEW_EVENT.count, "count"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        (NEW_EVENT.controller, "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ] {
        if !super::at::same(root.value.get(field), old_root.value.get(field)) {
            let value = root.value.get(field).cloned().unwrap_or_default();
            errors.invalid(Path::new(path), value, names::FIELD_IMMUTABLE);
        }
    }
    errors.0
}

pub(super) fn lease(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    if let Some(seconds) = spec.int("leaseDurationSeconds").filter(|s| *s <= 0) {
        errors.invalid(spec.at("leaseDurationSeconds"), seconds, "must be greater than 0");
    }
    errors.not_negative(&spec, &["leaseTransitions"]);
    let strategy = spec.str("strategy");
    if spec.has("strategy") {
        let path = spec.at("strategy").child("strategy");
        if strategy.contains('/') {
            errors.each(&path, strategy, names::is_qualified_name(strategy));
        } else if strategy != "OldestEmulationVersion" {
            errors.not_supported(path, strategy, &["OldestEmulationVersion"]);
        }
    }
    if !spec.str("preferredHolder").is_empty() && strategy.is_empty() {
        errors.forbidden(spec.at("preferredHolder"), "may only be specified if `strategy` is defined");
    }
    errors.0
}

/// The two classes that come with every cluster.
const SYSTEM_CLASSES: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
const USER_PRIORITY_MAX: i64 = 1_000_000_000;

pub(super) fn priority_class(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let (name, priority) = (meta::name(value), root.int("value").unwrap_or(0));
    if name.starts_with("system-") {
        let why = match SYSTEM_CLASSES.iter().find(|(known, _)| *known == name) {
            None => Some(format!("{name} is not a known system priority class")),
            Some((_, expected)) if *expected != priority => {
                Some(format!("value of {name} PriorityClass must be {expected}"))
            }
            Some(_) if root.bool("globalDefault") => {
                Some(format!("globalDefault of {name} PriorityClass must be false"))
            }
            Some(_) => None,
        };
        if let Some(why) = why {
            let why = format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
            );
            errors.forbidden(Path::new("metadata").child("name"), why);
        }
    } else if priority > USER_PRIORITY_MAX {
        let why = format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
        errors.forbidden(root.at("value"), why);
    }
    if root.has("preemptionPolicy") {
        errors.one_of(&root, "preemptionPolicy", &["PreemptLowerPriority", "Never"]);
    }
    errors.0
}

pub(super) fn priority_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (root, old_root, mut errors) = (At::root(new), At::root(old), Errors::default());
    if root.int("value") != old_root.int("value") {
        errors.forbidden(root.at("value"), "may not be changed in an update.");
    }
    errors.immutable(&root, &old_root, "preemptionPolicy");
    errors.0
}
