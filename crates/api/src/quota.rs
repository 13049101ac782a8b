//! What objects use of a ResourceQuota: which names count which kind, how much, and in which scopes.
//! Admission charges by it and the controller recounts by it.
//! Upstream counterpart: `pkg/quota/v1/evaluator/core`.

use crate::meta;
use crate::pod::{is_terminal, qos_class};
use crate::predicates::{Resources, pod_limits, pod_requests, resource_list};
use crate::quantity::Quantity;
use crate::selector::{LabelSelector, Operator, Requirement};
use crate::validate::is_extended_resource;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use std::collections::BTreeMap;

const CLASS_STORAGE: &str = ".storageclass.storage.k8s.io/requests.storage";
const CLASS_CLAIMS: &str = ".storageclass.storage.k8s.io/persistentvolumeclaims";
/// Resources that each container must name where a quota limits them.
const REQUIRED: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// The kind whose objects a name of a quota counts, as (group, resource); `None` for a name that
/// counts nothing.
pub fn counted_by(name: &str) -> Option<(&str, &str)> {
    if let Some(counted) = name.strip_prefix("count/") {
        let (resource, group) = counted.split_once('.').unwrap_or((counted, ""));
        return Some((group, resource));
    }
    let resource = match name {
        "configmaps" | "replicationcontrollers" | "resourcequotas" | "secrets" => name,
        "services" | "services.nodeports" | "services.loadbalancers" => "services",
        "persistentvolumeclaims" | "requests.storage" => "persistentvolumeclaims",
        "pods" | "cpu" | "memory" | "ephemeral-storage" => "pods",
        "limits.cpu" | "limits.memory" | "limits.ephemeral-storage" => "pods",
        _ if name.ends_with(CLASS_STORAGE) || name.ends_with(CLASS_CLAIMS) => "persistentvolumeclaims",
        _ if name.starts_with("hugepages-") || name.starts_with("requests.") => "pods",
        _ => return None,
    };
    Some(("", resource))
}

/// Whether updates of the kind may change what its objects use.
pub fn changes_with_updates(group: &str, resource: &str) -> bool {
    group.is_empty() && matches!(resource, "services" | "persistentvolumeclaims")
}

/// What one object uses, of every name that can count it. A Pod whose deletion should be over by
/// `now` uses nothing but its place.
pub fn usage(group: &str, resource: &str, object: &Value, now: Timestamp) -> Resources {
    let count =
        if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") };
    let mut used = Resources::from([(count, Quantity::from_units(1))]);
    match (group, resource) {
        ("", "configmaps" | "replicationcontrollers" | "resourcequotas" | "secrets") => {
            used.insert(resource.to_owned(), Quantity::from_units(1));
        }
        ("", "pods") if !is_over(object, now) => pod(object, &mut used),
        ("", "services") => service(object, &mut used),
        ("", "persistentvolumeclaims") => claim(object, &mut used),
        _ => {}
    }
    used
}

/// Ended, or stuck in its deletion: on a node that is lost, say.
fn is_over(pod: &Value, now: Timestamp) -> bool {
    is_terminal(pod) || over_at(pod).is_some_and(|at| now > at)
}

/// When a Pod that is being deleted stops to count, unless it is gone before.
pub fn over_at(pod: &Value) -> Option<Timestamp> {
    let grace = meta::deletion_grace_period_seconds(pod)?;
    meta::deletion_timestamp(pod)?.checked_add(jiff::SignedDuration::from_secs(grace)).ok()
}

fn pod(object: &Value, used: &mut Resources) {
    let typed: Pod = serde_json::from_value(object.clone()).unwrap_or_default();
    compute(&pod_requests(&typed), &pod_limits(&typed), used);
}

/// What requests and limits use.
fn compute(requests: &Resources, limits: &Resources, used: &mut Resources) {
    used.insert("pods".into(), Quantity::from_units(1));
    for (name, amount) in requests {
        let plain =
            matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        if plain {
            used.insert(name.clone(), *amount);
        }
        if plain || is_extended_resource(name) {
            used.insert(format!("requests.{name}"), *amount);
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            used.insert(format!("limits.{name}"), *amount);
        }
    }
}

fn service(object: &Value, used: &mut Resources) {
    let spec = &object["spec"];
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let kind = spec["type"].as_str().unwrap_or_default();
    let node_ports = match kind {
        "NodePort" => ports.len(),
        // Without allocation only the ports that were asked for count.
        "LoadBalancer" if spec["allocateLoadBalancerNodePorts"] == false => {
            ports.iter().filter(|port| port["nodePort"].as_i64().unwrap_or(0) != 0).count()
        }
        "LoadBalancer" => ports.len(),
        _ => 0,
    };
    for (name, count) in [
        ("services", 1),
        ("services.nodeports", node_ports as i64),
        ("services.loadbalancers", i64::from(kind == "LoadBalancer")),
    ] {
        used.insert(name.into(), Quantity::from_units(count));
    }
}

fn claim(object: &Value, used: &mut Resources) {
    let class = meta::annotation(object, "volume.beta.kubernetes.io/storage-class")
        .or(object["spec"]["storageClassName"].as_str())
        .unwrap_or_default();
    let amount = |list: &Value| resource_list(list).get("storage").copied();
    let asked = amount(&object["spec"]["resources"]["requests"]);
    let storage = asked.max(amount(&object["status"]["allocatedResources"]));
    let one = Quantity::from_units(1);
    used.insert("persistentvolumeclaims".into(), one);
    used.extend(storage.map(|storage| ("requests.storage".to_owned(), storage)));
    if !class.is_empty() {
        used.insert(format!("{class}{CLASS_CLAIMS}"), one);
        used.extend(storage.map(|storage| (format!("{class}{CLASS_STORAGE}"), storage)));
    }
}

/// Whether an object is in all scopes of the quota. Only Pods, and claims by their
/// VolumeAttributesClass, can be in any.
pub fn is_in_scope(quota: &Value, group: &str, resource: &str, object: &Value) -> bool {
    let spec = &quota["spec"];
    let plain = spec["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut scopes = plain.map(|scope| (scope, None)).collect::<Vec<_>>();
    let selected = spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
    scopes.extend(selected.map(|term| (term["scopeName"].as_str().unwrap_or_default(), Some(term))));
    scopes.into_iter().all(|(scope, term)| match (group, resource) {
        ("", "pods") => is_pod_in(scope, term, object),
        ("", "persistentvolumeclaims") if scope == "VolumeAttributesClass" => {
            let name = |at: &str| object.pointer(at).and_then(Value::as_str);
            let names = [
                name("/spec/volumeAttributesClassName"),
                name("/status/currentVolumeAttributesClassName"),
                name("/status/modifyVolumeStatus/targetVolumeAttributesClassName"),
            ];
            names.into_iter().flatten().any(|name| selects(scope, term, name))
                || names.iter().all(Option::is_none) && selects(scope, term, "")
        }
        _ => false,
    })
}

fn is_pod_in(scope: &str, term: Option<&Value>, pod: &Value) -> bool {
    let spec = &pod["spec"];
    let terminates = spec["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    match scope {
        "Terminating" => terminates,
        "NotTerminating" => !terminates,
        "BestEffort" => qos_class(pod) == "BestEffort",
        "NotBestEffort" => qos_class(pod) != "BestEffort",
        "PriorityClass" => selects(scope, term, spec["priorityClassName"].as_str().unwrap_or_default()),
        "CrossNamespacePodAffinity" => crosses_namespaces(&spec["affinity"]),
        _ => false,
    }
}

/// Whether a term of the scope selector selects a value; an empty one is none.
fn selects(scope: &str, term: Option<&Value>, value: &str) -> bool {
    let Some(term) = term else { return !value.is_empty() };
    let values = term["values"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let operator = match term["operator"].as_str() {
        Some("In") => Operator::In,
        Some("NotIn") => Operator::NotIn,
        Some("DoesNotExist") => Operator::DoesNotExist,
        _ => Operator::Exists,
    };
    let Ok(requirement) = Requirement::new(scope, operator, values.map(str::to_owned).collect()) else {
        return false;
    };
    let mut selector = LabelSelector::everything();
    selector.add(requirement);
    let labels: BTreeMap<String, String> = Some(value)
        .filter(|value| !value.is_empty())
        .map(|value| (scope.to_owned(), value.to_owned()))
        .into_iter()
        .collect();
    selector.matches(&labels)
}

fn crosses_namespaces(affinity: &Value) -> bool {
    let terms = ["podAffinity", "podAntiAffinity"].into_iter().flat_map(|kind| {
        let list = |field: &str| affinity[kind][field].as_array().map_or(&[][..], Vec::as_slice);
        let preferred = list("preferredDuringSchedulingIgnoredDuringExecution").iter();
        list("requiredDuringSchedulingIgnoredDuringExecution")
            .iter()
            .chain(preferred.map(|weighted| &weighted["podAffinityTerm"]))
    });
    terms.into_iter().any(|term| {
        term["namespaces"].as_array().is_some_and(|list| !list.is_empty())
            || !term["namespaceSelector"].is_null()
    })
}

/// What the containers of a new Pod must name because the quota limits it, told in upstream's words.
pub fn unnamed<'a>(pod: &Value, limited: impl Iterator<Item = &'a String>) -> Option<String> {
    let own = &pod["spec"]["resources"];
    if ["requests", "limits"].iter().any(|list| own[list].as_object().is_some_and(|list| !list.is_empty())) {
        return None;
    }
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in limited.filter(|name| REQUIRED.contains(&name.as_str())) {
        for (list, _, container) in crate::pod::all_containers(&pod["spec"]) {
            let resources = &container["resources"];
            let mut named = Resources::new();
            compute(&resource_list(&resources["requests"]), &resource_list(&resources["limits"]), &mut named);
            if list != "ephemeralContainers" && !named.contains_key(name) {
                missing.entry(name).or_default().push(container["name"].as_str().unwrap_or_default());
            }
        }
    }
    let told: Vec<String> = missing
        .into_iter()
        .map(|(name, mut containers)| {
            containers.sort_unstable();
            format!("{name} for: {}", containers.join(","))
        })
        .collect();
    (!told.is_empty()).then(|| format!("must specify {}", told.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn used(resource: &str, object: &Value) -> String {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        usage("", resource, object, now).iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn objects_use_what_upstream_says() {
        let resources = json!({"requests": {"cpu": "100m", "example.com/gpu": "2"}, "limits": {"memory": "1Gi", "example.com/gpu": "2"}});
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}});
        assert_eq!(
            used("pods", &pod),
            "count/pods=1,cpu=100m,limits.memory=1Gi,pods=1,requests.cpu=100m,requests.example.com/gpu=2"
        );
        let ended = json!({"spec": pod["spec"], "status": {"phase": "Succeeded"}});
        assert_eq!(used("pods", &ended), "count/pods=1");
        let stuck = json!({"metadata": {"name": "p", "deletionTimestamp": "2025-12-31T23:00:00Z", "deletionGracePeriodSeconds": 30}, "spec": pod["spec"]});
        assert_eq!(used("pods", &stuck), "count/pods=1");
        let service = json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}});
        assert_eq!(
            used("services", &service),
            "count/services=1,services=1,services.loadbalancers=1,services.nodeports=2"
        );
        let claim =
            json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(
            used("persistentvolumeclaims", &claim),
            "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,\
             gold.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=1,requests.storage=1Gi"
        );
        assert_eq!(used("secrets", &json!({})), "count/secrets=1,secrets=1");
    }

    #[test]
    fn names_count_one_kind_each() {
        for (name, expected) in [
            ("count/deployments.apps", Some(("apps", "deployments"))),
            ("count/widgets.example.com", Some(("example.com", "widgets"))),
            ("requests.example.com/gpu", Some(("", "pods"))),
            ("gold.storageclass.storage.k8s.io/requests.storage", Some(("", "persistentvolumeclaims"))),
            ("requests.storage", Some(("", "persistentvolumeclaims"))),
            ("something", None),
        ] {
            assert_eq!(counted_by(name), expected, "{name}");
        }
    }

    #[test]
    fn scopes_select_pods() {
        let pod = json!({"spec": {"priorityClassName": "high", "activeDeadlineSeconds": 5, "containers": [{"name": "c"}]}});
        let scoped = |spec: Value| is_in_scope(&json!({"spec": spec}), "", "pods", &pod);
        assert!(scoped(json!({})));
        for (scope, expected) in
            [("Terminating", true), ("NotTerminating", false), ("BestEffort", true), ("NotBestEffort", false)]
        {
            assert_eq!(scoped(json!({"scopes": [scope]})), expected, "{scope}");
        }
        let term = |operator: &str, values: Value| {
            json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": operator, "values": values}]}})
        };
        assert!(scoped(term("In", json!(["high", "low"]))) && !scoped(term("NotIn", json!(["high"]))));
        assert!(scoped(term("Exists", json!([]))) && !scoped(term("DoesNotExist", json!([]))));
        let quota = json!({"spec": {"scopes": ["Terminating"]}});
        assert!(!is_in_scope(&quota, "", "services", &json!({})));
    }

    #[test]
    fn limited_resources_must_be_named() {
        let pod = json!({"spec": {"containers": [{"name": "b"}, {"name": "a", "resources": {"requests": {"cpu": "1"}}}]}});
        let limited = ["pods", "requests.cpu", "limits.memory"].map(str::to_owned);
        assert_eq!(
            unnamed(&pod, limited.iter()).unwrap(),
            "must specify limits.memory for: a,b; requests.cpu for: b"
        );
    }
}
