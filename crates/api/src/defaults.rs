//! What the API fills in where an object leaves it out. Pure functions on decoded objects,
//! idempotent, without validation: what is wrong stays wrong.
//! Upstream counterpart: `pkg/apis/*/v1/defaults.go` and the conversions next to it.

mod batch;
mod cluster;
mod networking;
mod pod;
mod policy;
mod storage;
mod workload;

use crate::kinds::Strategy;
use base64::Engine as _;
use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

const RBAC: &str = "rbac.authorization.k8s.io";

/// The defaulting of a kind, for [`Strategy::default`].
pub fn of(group: &str, version: &str, kind: &str) -> fn(&mut Value) {
    match (group, kind) {
        ("", "Pod") => pod::pod,
        ("", "Namespace") => namespace,
        ("", "Node") => node,
        ("", "Secret") => secret,
        ("", "Service") => service,
        ("", "Endpoints") => endpoints,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => crate::crd::default,
        ("discovery.k8s.io", "EndpointSlice") => endpoint_slice,
        ("scheduling.k8s.io", "PriorityClass") => priority_class,
        ("apps", "Deployment") => workload::deployment,
        ("apps", "ReplicaSet") => workload::replica_set,
        ("apps", "StatefulSet") => workload::stateful_set,
        ("apps", "DaemonSet") => workload::daemon_set,
        ("", "ReplicationController") => workload::replication_controller,
        ("", "PodTemplate") => workload::pod_template,
        ("batch", "Job") => batch::job,
        ("batch", "CronJob") => batch::cron_job,
        ("autoscaling", "HorizontalPodAutoscaler") if version == "v1" => policy::autoscaler_v1,
        ("autoscaling", "HorizontalPodAutoscaler") => policy::autoscaler,
        ("policy", "PodDisruptionBudget") => policy::disruption_budget,
        ("", "ResourceQuota") => policy::quota,
        ("", "LimitRange") => policy::limit_range,
        ("", "PersistentVolumeClaim") => storage::claim,
        ("", "PersistentVolume") => storage::volume,
        ("storage.k8s.io", "StorageClass") => storage::class,
        ("storage.k8s.io", "VolumeAttachment") => storage::attachment,
        ("storage.k8s.io", "CSIDriver") => storage::driver,
        ("storage.k8s.io", "CSINode") => storage::node,
        ("networking.k8s.io", "Ingress") => networking::ingress,
        ("networking.k8s.io", "IngressClass") => networking::ingress_class,
        ("networking.k8s.io", "NetworkPolicy") => networking::network_policy,
        ("networking.k8s.io", "ServiceCIDR") => empty_status,
        ("node.k8s.io", "RuntimeClass") => cluster::runtime_class,
        ("certificates.k8s.io", "CertificateSigningRequest") => empty_status,
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => cluster::flow_schema,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => cluster::priority_level,
        ("resource.k8s.io", "ResourceClaim") => cluster::resource_claim,
        ("resource.k8s.io", "ResourceClaimTemplate") => cluster::resource_claim_template,
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration") => cluster::webhooks,
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration") => cluster::mutating_webhooks,
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => cluster::validating_policy,
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => cluster::mutating_policy,
        ("admissionregistration.k8s.io", _) => cluster::policy_binding,
        ("apiregistration.k8s.io", "APIService") => cluster::api_service,
        (RBAC, "RoleBinding" | "ClusterRoleBinding") => role_binding,
        ("authentication.k8s.io", "TokenRequest") => token_request,
        _ => Strategy::default().default,
    }
}

/// Sets a field that is absent.
fn set(object: &mut Object, field: &str, value: impl Into<Value>) {
    if !object.contains_key(field) {
        object.insert(field.to_owned(), value.into());
    }
}

/// Sets a string that is absent or empty.
fn set_text(object: &mut Object, field: &str, value: &str) {
    if text(object, field).is_empty() && object.get(field).is_none_or(Value::is_string) {
        object.insert(field.to_owned(), value.into());
    }
}

/// Sets a number that is absent or zero, as for fields that are no pointers upstream.
fn set_number(object: &mut Object, field: &str, value: i64) {
    if object.get(field).is_none_or(|found| found.as_i64() == Some(0)) {
        object.insert(field.to_owned(), value.into());
    }
}

fn text<'a>(object: &'a Object, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or("")
}

/// A single value and the first of a list, or the field `key` of that, are one piece of data: the single
/// value counts where they differ.
fn join(object: &mut Object, single: &str, list: &str, key: Option<&str>) {
    let first = object.get(list).and_then(|list| list.get(0));
    let first = first.and_then(|item| key.map_or(Some(item), |key| item.get(key))?.as_str());
    let own = text(object, single);
    if own.is_empty() {
        if let Some(first) = first.filter(|first| !first.is_empty()).map(str::to_owned) {
            object.insert(single.to_owned(), first.into());
        }
    } else if first != Some(own) {
        let item = key.map_or_else(|| json!(own), |key| json!({ key: own }));
        object.insert(list.to_owned(), json!([item]));
    }
}

/// The object in a field, made where it is absent.
fn child<'a>(object: &'a mut Object, field: &str) -> Option<&'a mut Object> {
    set(object, field, Object::new());
    existing(object, field)
}

/// The object in a field, if there is one.
fn existing<'a>(object: &'a mut Object, field: &str) -> Option<&'a mut Object> {
    object.get_mut(field)?.as_object_mut()
}

/// The objects of a list.
fn each<'a>(object: &'a mut Object, field: &str) -> impl Iterator<Item = &'a mut Object> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn namespace(object: &mut Value) {
    let name = crate::meta::name(object).to_owned();
    if !name.is_empty() && crate::meta::label(object, "kubernetes.io/metadata.name") != Some(&name) {
        crate::meta::set_label(object, "kubernetes.io/metadata.name", &name);
    }
    let Some(object) = object.as_object_mut() else { return };
    set(object, "spec", Object::new());
    if let Some(status) = child(object, "status") {
        set_text(status, "phase", "Active");
    }
}

/// A new Namespace is active, and is not gone before its content is.
pub(crate) fn new_namespace(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    object.insert("status".into(), json!({ "phase": "Active" }));
    let Some(spec) = child(object, "spec") else { return };
    set(spec, "finalizers", Vec::<Value>::new());
    let Some(finalizers) = spec.get_mut("finalizers").and_then(Value::as_array_mut) else { return };
    if !finalizers.iter().any(|finalizer| finalizer == "kubernetes") {
        finalizers.push("kubernetes".into());
    }
}

fn node(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(spec) = child(object, "spec") {
        join(spec, "podCIDR", "podCIDRs", None);
    }
    let Some(status) = child(object, "status") else { return };
    for field in ["capacity", "allocatable"] {
        pod::round_resources(status, field);
    }
    if let Some(capacity) = status.get("capacity").filter(|_| !status.contains_key("allocatable")).cloned() {
        status.insert("allocatable".into(), capacity);
    }
}

fn secret(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    set_text(object, "type", "Opaque");
    // Write-only: what comes as text is stored as data.
    let Some(Value::Object(texts)) = object.remove("stringData") else { return };
    let Some(data) = child(object, "data") else { return };
    for (key, text) in texts {
        let encoded = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or(""));
        data.insert(key, encoded.into());
    }
    if data.is_empty() {
        object.remove("data");
    }
}

fn service(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(spec) = child(object, "spec") {
        service_spec(spec);
    }
    balancer_status(object);
}

/// The status of a new object of most kinds.
fn empty_status(object: &mut Value) {
    if let Some(object) = object.as_object_mut() {
        set(object, "status", Object::new());
    }
}

fn balancer_status(object: &mut Object) {
    let balanced = object.get("spec").is_some_and(|spec| spec["type"] == "LoadBalancer");
    let Some(balancer) = child(object, "status").and_then(|status| child(status, "loadBalancer")) else {
        return;
    };
    for ingress in each(balancer, "ingress") {
        if balanced && !text(ingress, "ip").is_empty() {
            set(ingress, "ipMode", "VIP");
        }
    }
}

fn service_spec(spec: &mut Object) {
    set_text(spec, "sessionAffinity", "None");
    match text(spec, "sessionAffinity") {
        "None" => drop(spec.remove("sessionAffinityConfig")),
        "ClientIP" => {
            let client = child(spec, "sessionAffinityConfig").and_then(|config| child(config, "clientIP"));
            if let Some(client) = client {
                set(client, "timeoutSeconds", 10800);
            }
        }
        _ => {}
    }
    set_text(spec, "type", "ClusterIP");
    for port in each(spec, "ports") {
        set_text(port, "protocol", "TCP");
        let is_unset =
            port.get("targetPort").is_none_or(|target| *target == json!(0) || *target == json!(""));
        if let Some(number) = port.get("port").filter(|_| is_unset).cloned() {
            port.insert("targetPort".into(), number);
        }
    }
    let kind = text(spec, "type").to_owned();
    let has_external_ips =
        spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
    let is_external =
        matches!(&*kind, "LoadBalancer" | "NodePort") || (kind == "ClusterIP" && has_external_ips);
    if is_external {
        set_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(&*kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
}

fn endpoints(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    for subset in each(object, "subsets") {
        each(subset, "ports").for_each(|port| set_text(port, "protocol", "TCP"));
    }
}

fn endpoint_slice(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    for port in each(object, "ports") {
        set(port, "name", "");
        set(port, "protocol", "TCP");
    }
}

fn priority_class(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    set(object, "preemptionPolicy", "PreemptLowerPriority");
}

fn role_binding(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(role) = existing(object, "roleRef") {
        set_text(role, "apiGroup", RBAC);
    }
    for subject in each(object, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            set_text(subject, "apiGroup", RBAC);
        }
    }
}

fn token_request(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    if let Some(spec) = child(object, "spec") {
        set(spec, "expirationSeconds", 3600);
    }
}

#[cfg(test)]
mod tests;
