//! Pods and Pod templates: containers, probes, volumes.

use super::{Object, child, each, existing, join, set, set_number, set_text, storage, text};
use crate::quantity::Quantity;
use serde_json::Value;

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
/// 0644, for files made from API objects.
const FILE_MODE: i64 = 0o644;

/// What only a Pod gets; a template stays open for the Pods that come from it.
pub(super) fn pod(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(status) = child(object, "status") {
        join(status, "podIP", "podIPs", Some("ip"));
    }
    let Some(spec) = child(object, "spec") else { return };
    pod_spec(spec);
    set(spec, "enableServiceLinks", true);
    let on_host = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for field in ["initContainers", "containers"] {
        for container in each(spec, field) {
            requests_from_limits(container);
            for port in each(container, "ports").filter(|_| on_host) {
                if let Some(number) = port.get("containerPort").cloned() {
                    let is_unset = port.get("hostPort").is_none_or(|host| host.as_i64() == Some(0));
                    if is_unset {
                        port.insert("hostPort".into(), number);
                    }
                }
            }
        }
    }
    pod_resources(spec);
}

/// The template in a workload's spec.
pub(super) fn template(spec: &mut Object) {
    let Some(template) = existing(spec, "template") else { return };
    set(template, "metadata", Object::new());
    if let Some(spec) = child(template, "spec") {
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut Object) {
    set_text(spec, "dnsPolicy", "ClusterFirst");
    set_text(spec, "restartPolicy", "Always");
    set_text(spec, "schedulerName", "default-scheduler");
    set(spec, "securityContext", Object::new());
    set(spec, "terminationGracePeriodSeconds", 30);
    service_account(spec);
    round_resources(spec, "overhead");
    if let Some(resources) = existing(spec, "resources") {
        resource_lists(resources);
    }
    for field in CONTAINERS {
        each(spec, field).for_each(container);
    }
    each(spec, "volumes").for_each(volume);
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are always shown.
fn service_account(spec: &mut Object) {
    let name = match (text(spec, "serviceAccountName"), text(spec, "serviceAccount")) {
        ("", "") => return,
        ("", old) => old.to_owned(),
        (name, old) if name == old => return,
        (name, _) => name.to_owned(),
    };
    spec.insert("serviceAccountName".into(), name.clone().into());
    spec.insert("serviceAccount".into(), name.into());
}

fn container(container: &mut Object) {
    if text(container, "imagePullPolicy").is_empty() {
        let policy = pull_policy(text(container, "image"));
        set_text(container, "imagePullPolicy", policy);
    }
    set_text(container, "terminationMessagePath", "/dev/termination-log");
    set_text(container, "terminationMessagePolicy", "File");
    if let Some(resources) = child(container, "resources") {
        resource_lists(resources);
    }
    each(container, "ports").for_each(|port| set_text(port, "protocol", "TCP"));
    for env in each(container, "env") {
        let Some(from) = existing(env, "valueFrom") else { continue };
        field_ref(from);
        if let Some(file) = existing(from, "fileKeyRef") {
            set(file, "optional", false);
        }
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(found) = existing(container, field) {
            probe(found);
        }
    }
    if let Some(lifecycle) = existing(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(get) = existing(lifecycle, hook).and_then(|hook| existing(hook, "httpGet")) {
                http_get(get);
            }
        }
    }
}

/// `Always` for images without a fixed tag or digest.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if digest.is_none() && !name.is_empty() => "Always",
        _ => "IfNotPresent",
    }
}

fn field_ref(from: &mut Object) {
    if let Some(field) = existing(from, "fieldRef") {
        set_text(field, "apiVersion", "v1");
    }
}

fn probe(probe: &mut Object) {
    set_number(probe, "timeoutSeconds", 1);
    set_number(probe, "periodSeconds", 10);
    set_number(probe, "successThreshold", 1);
    set_number(probe, "failureThreshold", 3);
    if let Some(get) = existing(probe, "httpGet") {
        http_get(get);
    }
    if let Some(grpc) = existing(probe, "grpc") {
        set(grpc, "service", "");
    }
}

fn http_get(get: &mut Object) {
    set_text(get, "path", "/");
    set_text(get, "scheme", "HTTP");
}

pub(super) fn resource_lists(resources: &mut Object) {
    for field in ["limits", "requests"] {
        round_resources(resources, field);
    }
}

/// Amounts are kept in thousandths at the finest.
pub(super) fn round_resources(object: &mut Object, field: &str) {
    let Some(list) = existing(object, field) else { return };
    for amount in list.values_mut() {
        if let Ok(quantity) = Quantity::from_value(amount)
            && !quantity.is_whole_millis()
        {
            *amount = Quantity::from_millis(quantity.millis()).to_string().into();
        }
    }
}

fn requests_from_limits(container: &mut Object) {
    let Some(resources) = existing(container, "resources") else { return };
    let Some(Value::Object(limits)) = resources.get("limits") else { return };
    let limits = limits.clone();
    if limits.is_empty() {
        return;
    }
    let Some(requests) = child(resources, "requests") else { return };
    for (name, amount) in limits {
        requests.entry(name).or_insert(amount);
    }
}

/// Requests of the Pod as a whole: of its containers where they have any, else its limits.
fn pod_resources(spec: &mut Object) {
    if !spec.get("resources").is_some_and(Value::is_object) {
        return;
    }
    let supported = |name: &str| matches!(name, "cpu" | "memory") || name.starts_with("hugepages-");
    let sums = container_requests(spec);
    let Some(resources) = existing(spec, "resources") else { return };
    let limits = resources.get("limits").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut requests = resources.get("requests").and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, sum) in sums {
        if supported(&name) && !sum.is_zero() && !requests.contains_key(&name) {
            requests.insert(name, sum.to_string().into());
        }
    }
    for (name, limit) in limits {
        if supported(&name) {
            requests.entry(name).or_insert(limit);
        }
    }
    if !requests.is_empty() {
        resources.insert("requests".into(), requests.into());
    }
}

/// The largest need of the containers at any one moment (KEP-753).
fn container_requests(spec: &Object) -> Vec<(String, Quantity)> {
    type Sums = std::collections::BTreeMap<String, Quantity>;
    let containers = |field: &str| spec.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let requests = |container: &Value| -> Sums {
        let list = container.pointer("/resources/requests").and_then(Value::as_object);
        let parsed = list.into_iter().flatten();
        parsed.filter_map(|(name, amount)| Some((name.clone(), Quantity::from_value(amount).ok()?))).collect()
    };
    let add = |sums: &mut Sums, more: &Sums| {
        for (name, amount) in more {
            *sums.entry(name.clone()).or_default() += *amount;
        }
    };
    let (mut running, mut peak) = (Sums::new(), Sums::new());
    let raise = |peak: &mut Sums, sums: &Sums| {
        for (name, amount) in sums {
            let highest = peak.entry(name.clone()).or_default();
            *highest = (*highest).max(*amount);
        }
    };
    for container in containers("initContainers") {
        let own = requests(container);
        if container["restartPolicy"] == "Always" {
            add(&mut running, &own);
            raise(&mut peak, &running);
        } else {
            let mut with = running.clone();
            add(&mut with, &own);
            raise(&mut peak, &with);
        }
    }
    for container in containers("containers") {
        add(&mut running, &requests(container));
    }
    raise(&mut peak, &running);
    peak.into_iter().collect()
}

fn volume(volume: &mut Object) {
    // A volume that names no source is an empty directory.
    if volume.keys().all(|key| key == "name") {
        set(volume, "emptyDir", Object::new());
    }
    volume_sources(volume);
    if let Some(image) = existing(volume, "image") {
        let policy = pull_policy(text(image, "reference"));
        set_text(image, "pullPolicy", policy);
    }
    if let Some(downward) = existing(volume, "downwardAPI") {
        each(downward, "items").for_each(field_ref);
    }
    if let Some(projected) = existing(volume, "projected") {
        for source in each(projected, "sources") {
            if let Some(downward) = existing(source, "downwardAPI") {
                each(downward, "items").for_each(field_ref);
            }
            if let Some(token) = existing(source, "serviceAccountToken") {
                set(token, "expirationSeconds", 3600);
            }
        }
    }
    let claim = existing(volume, "ephemeral").and_then(|source| existing(source, "volumeClaimTemplate"));
    if let Some(spec) = claim.and_then(|claim| existing(claim, "spec")) {
        storage::claim_spec(spec);
    }
}

/// What sources of volumes leave out, of Pods and of PersistentVolumes.
pub(super) fn volume_sources(volume: &mut Object) {
    for (source, field, value) in [
        ("azureDisk", "cachingMode", Value::from("ReadWrite")),
        ("azureDisk", "fsType", "ext4".into()),
        ("azureDisk", "kind", "Shared".into()),
        ("azureDisk", "readOnly", false.into()),
        ("configMap", "defaultMode", FILE_MODE.into()),
        ("downwardAPI", "defaultMode", FILE_MODE.into()),
        ("hostPath", "type", "".into()),
        ("iscsi", "iscsiInterface", "default".into()),
        ("projected", "defaultMode", FILE_MODE.into()),
        ("rbd", "keyring", "/etc/ceph/keyring".into()),
        ("rbd", "pool", "rbd".into()),
        ("rbd", "user", "admin".into()),
        ("scaleIO", "fsType", "xfs".into()),
        ("scaleIO", "storageMode", "ThinProvisioned".into()),
        ("secret", "defaultMode", FILE_MODE.into()),
    ] {
        if let Some(found) = existing(volume, source) {
            set(found, field, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.25", "IfNotPresent"),
            ("host:5000/nginx", "Always"),
            ("host:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:0123", "IfNotPresent"),
            ("nginx:latest@sha256:0123", "Always"),
            ("", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
