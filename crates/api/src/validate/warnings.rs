//! Warnings about objects that are accepted but surely not meant so.

use super::at::At;
use super::pod::APP_ARMOR;
use crate::field::Path;
use crate::{meta, names};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Annotations that do nothing any more.
const ANNOTATIONS: &[(&str, &str)] = &[
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];
const VOLUMES: &[(&str, &str)] = &[
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];
const LABELS: &[(&str, &str)] = &[
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
];

/// Fields of a Pod's spec, and of its security context, that nothing in this cluster acts on. What
/// a node refuses is told by the Pod's status instead.
const POD_WITHOUT_EFFECT: &[(&str, &str)] = &[("schedulingGroup", "Pods are scheduled one by one")];
const SECURITY_WITHOUT_EFFECT: &[(&str, &str)] =
    &[("seLinuxOptions", SELINUX), ("seLinuxChangePolicy", SELINUX), ("windowsOptions", "nodes run Linux")];
const SELINUX: &str = "nodes set no SELinux labels";

/// What the warning of a kind, or of a group that is alike, says.
macro_rules! inert {
    ($what:literal, $why:literal) => {
        concat!($what, ": has no effect in this cluster yet: ", $why)
    };
}
const FLOW: &str = inert!("flowcontrol.apiserver.k8s.io", "requests are not queued by flow");
const DEVICES: &str = inert!("resource.k8s.io", "devices are not allocated");

/// Kinds that are stored and served, and that nothing in this cluster acts on yet.
const KINDS_WITHOUT_EFFECT: &[(&str, &str, &str)] = &[
    ("", "PersistentVolume", inert!("PersistentVolume", "volumes are not bound to claims")),
    ("", "PersistentVolumeClaim", inert!("PersistentVolumeClaim", "claims are not bound to volumes")),
    ("apps", "DaemonSet", inert!("DaemonSet", "no Pods are made from it")),
    ("apps", "StatefulSet", inert!("StatefulSet", "no Pods are made from it")),
    (
        "autoscaling",
        "HorizontalPodAutoscaler",
        inert!("HorizontalPodAutoscaler", "nothing is scaled by metrics"),
    ),
    ("batch", "CronJob", inert!("CronJob", "no Jobs are made from it")),
    ("batch", "Job", inert!("Job", "no Pods are made from it")),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema", FLOW),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", FLOW),
    ("networking.k8s.io", "IPAddress", inert!("IPAddress", "addresses are allocated elsewhere")),
    ("networking.k8s.io", "Ingress", inert!("Ingress", "no controller serves it")),
    ("networking.k8s.io", "NetworkPolicy", inert!("NetworkPolicy", "traffic is not filtered")),
    ("networking.k8s.io", "ServiceCIDR", inert!("ServiceCIDR", "Services keep the range they have")),
    ("policy", "PodDisruptionBudget", inert!("PodDisruptionBudget", "evictions are not refused")),
    ("resource.k8s.io", "DeviceClass", DEVICES),
    ("resource.k8s.io", "ResourceClaim", DEVICES),
    ("resource.k8s.io", "ResourceClaimTemplate", DEVICES),
    ("resource.k8s.io", "ResourceSlice", DEVICES),
    ("storage.k8s.io", "CSIDriver", inert!("CSIDriver", "nodes run no CSI drivers")),
    ("storage.k8s.io", "CSINode", inert!("CSINode", "nodes run no CSI drivers")),
    (
        "storage.k8s.io",
        "CSIStorageCapacity",
        inert!("CSIStorageCapacity", "the scheduler does not look at it"),
    ),
    ("storage.k8s.io", "StorageClass", inert!("StorageClass", "no volumes are provisioned")),
    ("storage.k8s.io", "VolumeAttachment", inert!("VolumeAttachment", "nodes run no CSI drivers")),
    ("storage.k8s.io", "VolumeAttributesClass", inert!("VolumeAttributesClass", "volumes are not modified")),
];

/// What a write of a kind is warned of, where nothing acts on the kind yet.
pub fn without_effect(group: &str, kind: &str) -> Option<&'static str> {
    let known = KINDS_WITHOUT_EFFECT.iter().find(|(g, k, _)| *g == group && *k == kind);
    known.map(|(_, _, warning)| *warning)
}

/// Tells of fields that are accepted and do nothing.
fn fields_without_effect(at: &At<'_>, fields: &[(&str, &str)], out: &mut Vec<String>) {
    for (field, why) in fields.iter().filter(|(field, _)| at.has(field)) {
        out.push(format!("{}: has no effect in this cluster: {why}", at.at(field)));
    }
}

fn security(at: &At<'_>, out: &mut Vec<String>) {
    fields_without_effect(at, SECURITY_WITHOUT_EFFECT, out);
    if at.child("appArmorProfile").str("type") == "RuntimeDefault" {
        let path = at.at("appArmorProfile");
        out.push(format!("{path}: has no effect in this cluster: nodes apply no AppArmor profile"));
    }
}

fn label(key: &str) -> Option<&'static str> {
    LABELS.iter().find(|(known, _)| *known == key).map(|(_, message)| *message)
}

pub(super) fn for_pod(new: &Value, _: Option<&Value>) -> Vec<String> {
    let mut out = pod_and_metadata(&At::root(new));
    if meta::name(new).contains('.') {
        let why = names::is_dns1123_label(meta::name(new)).join(", ");
        out.push(format!("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{why}]"));
    }
    out
}

/// Of workloads: their template.
pub(super) fn for_workload(new: &Value, old: Option<&Value>) -> Vec<String> {
    for_template(new, old, &["spec", "template"])
}

pub(super) fn for_cron_job(new: &Value, old: Option<&Value>) -> Vec<String> {
    for_template(new, old, &["spec", "jobTemplate", "spec", "template"])
}

pub(super) fn for_pod_template(new: &Value, old: Option<&Value>) -> Vec<String> {
    for_template(new, old, &["template"])
}

fn for_template(new: &Value, old: Option<&Value>, path: &[&str]) -> Vec<String> {
    let find = |object: &Value| super::lookup(object, path).cloned();
    if old.is_some_and(|old| find(old) == find(new)) {
        return Vec::new();
    }
    pod_and_metadata(&path.iter().fold(At::root(new), |at, field| at.child(field)))
}

fn pod_and_metadata(root: &At<'_>) -> Vec<String> {
    let (mut out, spec) = (Vec::new(), root.child("spec"));
    for (key, _) in spec.entries("nodeSelector") {
        out.extend(label(key).map(|message| format!("{}: {message}", spec.at("nodeSelector").key(key))));
    }
    node_affinity(&spec, &mut out);
    for at in spec.items("topologySpreadConstraints") {
        let key = at.str("topologyKey");
        out.extend(label(key).map(|message| format!("{}: {key} is {message}", at.at("topologyKey"))));
        if !at.has("labelSelector") {
            out.push(format!("{}: a null labelSelector results in matching no pod", at.at("labelSelector")));
        }
    }
    for (key, message) in ANNOTATIONS.iter().filter(|(key, _)| meta::annotation(root.value, key).is_some()) {
        out.push(format!("{}: {message}", root.at("metadata").child("annotations").key(key)));
    }
    let has_profile = |holder: &At<'_>| holder.child("securityContext").has("appArmorProfile");
    for (field, i, container) in crate::pod::all_containers(spec.value).filter(|_| !has_profile(&spec)) {
        let at = At::new(Some(container), spec.at(field).index(i));
        let key = format!("{APP_ARMOR}{}", at.str("name"));
        if meta::annotation(root.value, &key).is_some() && !has_profile(&at) {
            let path = root.at("metadata").child("annotations").key(&key);
            out.push(format!("{path}: deprecated since v1.30; use the \"appArmorProfile\" field instead"));
        }
    }
    for at in spec.items("volumes") {
        for (source, message) in VOLUMES.iter().filter(|(source, _)| at.has(source)) {
            out.push(format!("{}: {message}", at.at(source)));
        }
    }
    fields_without_effect(&spec, POD_WITHOUT_EFFECT, &mut out);
    security(&spec.child("securityContext"), &mut out);
    lists(&spec, &mut out);
    fractions(spec.value.get("overhead"), &spec.at("overhead"), &mut out);
    for (field, i, container) in crate::pod::all_containers(spec.value) {
        let at = At::new(Some(container), spec.at(field).index(i));
        let resources = at.child("resources");
        for list in ["limits", "requests"] {
            fractions(resources.value.get(list), &resources.at(list), &mut out);
        }
        environment(&at, &mut out);
        for rule in at.items("restartPolicyRules").filter(|rule| rule.str("action") == "RestartAllContainers")
        {
            let path = rule.at("action");
            out.push(format!(
                "{path}: restarts its own container only: nodes do not restart all of a Pod together"
            ));
        }
        security(&at.child("securityContext"), &mut out);
        for port in
            at.items("ports").filter(|p| !p.str("hostIP").is_empty() && p.int("hostPort").unwrap_or(0) == 0)
        {
            out.push(format!("{}: hostIP set without hostPort: {}", port.path, port.value));
        }
    }
    ports(&spec, &mut out);
    if spec.int("terminationGracePeriodSeconds").is_some_and(|s| s < 0) {
        out.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            spec.at("terminationGracePeriodSeconds")
        ));
    }
    out
}

fn node_affinity(spec: &At<'_>, out: &mut Vec<String>) {
    let at = spec.child("affinity").child("nodeAffinity");
    let required = at.child("requiredDuringSchedulingIgnoredDuringExecution");
    let preferred =
        at.items("preferredDuringSchedulingIgnoredDuringExecution").map(|p| p.child("preference"));
    for term in required.items("nodeSelectorTerms").chain(preferred) {
        for expression in term.items("matchExpressions") {
            let key = expression.str("key");
            out.extend(label(key).map(|message| format!("{}: {key} is {message}", expression.at("key"))));
        }
    }
}

fn lists(spec: &At<'_>, out: &mut Vec<String>) {
    for (list, field, what) in [("hostAliases", "ip", "ip"), ("imagePullSecrets", "name", "name")] {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for at in spec.items(list) {
            let value = at.str(field);
            if seen.contains(&value) {
                out.push(format!("{}: duplicate {what} {value:?}", at.at(field)));
            }
            seen.insert(value);
            if list == "imagePullSecrets" && value.is_empty() {
                out.push(format!("{}: invalid empty name \"\"", at.at(field)));
            }
        }
    }
}

/// Bytes come whole.
fn fractions(list: Option<&Value>, path: &Path, out: &mut Vec<String>) {
    for name in ["memory", "ephemeral-storage"] {
        let amount =
            list.and_then(|l| l.get(name)).and_then(|v| crate::quantity::Quantity::from_value(v).ok());
        if let Some(amount) = amount.filter(|amount| !amount.is_whole()) {
            let amount = amount.to_string();
            out.push(format!(
                "{}: fractional byte value {amount:?} is invalid, must be an integer",
                path.key(name)
            ));
        }
    }
}

/// A later variable of the same name wins, but apply merges by name and may drop one.
fn environment(container: &At<'_>, out: &mut Vec<String>) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for at in container.items("env") {
        let name = at.str("name");
        if seen.contains(&name) {
            let reference = format!("$({name})");
            let value = at.str("value");
            if at.has("valueFrom") || value == reference || !value.contains(&reference) {
                let path = &at.path;
                out.push(format!(
                    "{path}: hides previous definition of {name:?}, which may be dropped when using apply"
                ));
            }
        }
        seen.insert(name);
    }
}

/// Each pair of ports gives a warning, so a bad object could ask for millions.
const PORT_WARNINGS_MAX: usize = 100;

fn ports(spec: &At<'_>, out: &mut Vec<String>) {
    let mut seen: BTreeMap<String, Vec<At<'_>>> = BTreeMap::new();
    let warnings_max = out.len() + PORT_WARNINGS_MAX;
    for (field, i, container) in crate::pod::all_containers(spec.value) {
        for port in At::new(Some(container), spec.at(field).index(i)).items("ports") {
            let key = format!("{}/{}", port.int("containerPort").unwrap_or(0), port.str("protocol"));
            let others = seen.entry(key).or_default();
            for other in others.iter().take(PORT_WARNINGS_MAX) {
                if out.len() >= warnings_max {
                    return;
                }
                let (host, other_host) =
                    (port.int("hostPort").unwrap_or(0), other.int("hostPort").unwrap_or(0));
                let any_ip = port.str("hostIP").is_empty() || other.str("hostIP").is_empty();
                if host == other_host && port.str("hostIP") == other.str("hostIP") {
                    out.push(format!("{}: duplicate port definition with {}", port.path, other.path));
                } else if host == 0 || other_host == 0 {
                    out.push(format!("{}: overlapping port definition with {}", port.path, other.path));
                } else if host == other_host && any_ip {
                    out.push(format!(
                        "{}: dangerously ambiguous port definition with {}",
                        port.path, other.path
                    ));
                }
            }
            others.push(port);
        }
    }
}

const LOAD_BALANCER_WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("loadBalancerClass", NO_LOAD_BALANCER),
    ("loadBalancerSourceRanges", NO_LOAD_BALANCER),
    ("healthCheckNodePort", "no load balancer asks for it, and nothing answers on it"),
];
const NO_LOAD_BALANCER: &str = "no load balancer is set up";

pub(super) fn for_service(new: &Value, old: Option<&Value>) -> Vec<String> {
    let spec = At::root(new).child("spec");
    let mut out = Vec::new();
    if spec.has("loadBalancerIP") && !spec.str("loadBalancerIP").is_empty() {
        out.push("spec.loadBalancerIP: deprecated in v1.24+".to_owned());
    }
    let kind = spec.str("type");
    if kind == "ExternalName" && !spec.list("externalIPs").is_empty() {
        let path = spec.at("externalIPs");
        out.push(format!("{path}: is ignored when spec.type is \"ExternalName\""));
    }
    if kind == "LoadBalancer" && old.is_none_or(|old| old.get("spec") != new.get("spec")) {
        let type_path = spec.at("type");
        out.push(format!("{type_path}: no load balancer is set up in this cluster: the Service is reached by its cluster IP and node ports"));
        fields_without_effect(&spec, LOAD_BALANCER_WITHOUT_EFFECT, &mut out);
    }
    let headless = spec.str("clusterIP") == "None";
    if headless && !spec.str("loadBalancerIP").is_empty() {
        out.push("spec.loadBalancerIP: is ignored for headless services".to_owned());
    }
    if !spec.list("externalIPs").is_empty() {
        out.push("spec.externalIPs: deprecated in v1.36+".to_owned());
    }
    if headless && !spec.list("externalIPs").is_empty() {
        out.push("spec.externalIPs: is ignored when spec.clusterIP is \"None\"".to_owned());
    }
    if headless && !matches!(spec.str("sessionAffinity"), "" | "None") {
        out.push("spec.SessionAffinity: is ignored for headless services".to_owned());
    }
    if old.is_none_or(|old| old.get("spec") != new.get("spec")) {
        for list in ["clusterIPs", "externalIPs"] {
            for (i, ip) in spec.strings(list).enumerate().filter(|(_, ip)| *ip != "None") {
                out.extend(names::ip_warning(&spec.at(list).index(i), ip));
            }
        }
    }
    out
}

pub(super) fn for_node(new: &Value, old: Option<&Value>) -> Vec<String> {
    let spec = At::root(new).child("spec");
    let mut out = Vec::new();
    if spec.has("configSource") {
        out.push("spec.configSource: the feature is removed in v1.24".to_owned());
    }
    if !spec.str("externalID").is_empty() && old.is_none() {
        out.push(
            "spec.externalID: deprecated; this field is deprecated and will be removed in a future release"
                .to_owned(),
        );
    }
    out
}

pub(super) fn for_endpoints(new: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some_and(|old| old.get("subsets") == new.get("subsets")) {
        return Vec::new();
    }
    let mut out = Vec::new();
    for subset in At::root(new).items("subsets") {
        for at in subset.items("addresses").chain(subset.items("notReadyAddresses")) {
            out.extend(names::ip_warning(&at.at("ip"), at.str("ip")));
        }
    }
    out
}

pub(super) fn for_endpoint_slice(new: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some_and(|old| old.get("endpoints") == new.get("endpoints"))
        || new.get("addressType").and_then(Value::as_str) == Some("FQDN")
    {
        return Vec::new();
    }
    let mut out = Vec::new();
    for endpoint in At::root(new).items("endpoints") {
        for (i, address) in endpoint.strings("addresses").enumerate() {
            out.extend(names::ip_warning(&endpoint.at("addresses").index(i), address));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_that_do_nothing_are_told() {
        let spec = json!({
            "schedulingGroup": {"podGroupName": "g"},
            "securityContext": {"seLinuxOptions": {"level": "s0"}, "appArmorProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "image": "x", "securityContext": {"windowsOptions": {"hostProcess": false}},
                "restartPolicy": "Never",
                "restartPolicyRules": [{"action": "RestartAllContainers", "exitCodes": {"operator": "NotIn"}}]}],
        });
        let none = "has no effect in this cluster";
        let expected = |root: &str| {
            [
                format!("{root}schedulingGroup: {none}: Pods are scheduled one by one"),
                format!("{root}securityContext.seLinuxOptions: {none}: nodes set no SELinux labels"),
                format!("{root}securityContext.appArmorProfile: {none}: nodes apply no AppArmor profile"),
                format!(
                    "{root}containers[0].restartPolicyRules[0].action: restarts its own container only: nodes do not restart \
                     all of a Pod together"
                ),
                format!("{root}containers[0].securityContext.windowsOptions: {none}: nodes run Linux"),
            ]
        };
        let pod = json!({"metadata": {"name": "p"}, "spec": spec});
        assert_eq!(for_pod(&pod, None), expected("spec."));
        let workload = json!({"metadata": {"name": "w"}, "spec": {"template": {"spec": spec}}});
        assert_eq!(for_workload(&workload, None), expected("spec.template.spec."));
        assert_eq!(for_workload(&workload, Some(&workload)), Vec::<String>::new());
        let plain = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
        assert_eq!(for_pod(&plain, None), Vec::<String>::new());
        let service =
            json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1", "loadBalancerClass": "x.io/y"}});
        let told = for_service(&service, None);
        assert!(told[0].starts_with("spec.type: no load balancer is set up"), "{told:?}");
        assert_eq!(told[1], format!("spec.loadBalancerClass: {none}: no load balancer is set up"));
        assert_eq!(for_service(&service, Some(&service)), Vec::<String>::new());
    }

    #[test]
    fn app_armor_has_a_field() {
        let warned = |more: Value| {
            let mut spec = json!({"initContainers": [{"name": "d"}], "containers": [{"name": "c"}]});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let annotations = json!({format!("{APP_ARMOR}c"): "unconfined", format!("{APP_ARMOR}e"): "x"});
            for_pod(&json!({"metadata": {"name": "p", "annotations": annotations}, "spec": spec}), None)
        };
        let told = "metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: deprecated since v1.30; \
                    use the \"appArmorProfile\" field instead";
        assert_eq!(warned(json!({})), [told]);
        let profile = json!({"appArmorProfile": {"type": "Unconfined"}});
        assert_eq!(warned(json!({"securityContext": profile})), [""; 0]);
        assert_eq!(warned(json!({"containers": [{"name": "c", "securityContext": profile}]})), [""; 0]);
    }
}
