//! The built-in kinds: one row each. A new kind is a new row, once everything that its fields ask
//! for exists.
//! Upstream counterpart: what `/apis` discovery of a cluster lists.

use crate::columns;
use crate::crd;
use crate::defaults;
use crate::gvk::Gvk;
use crate::kinds::{ALL_VERBS, Kind, NameRule, Strategy, Subresource};
use crate::schema::Schema;
use crate::validate;
use serde_json::Value;
use std::time::Duration;

/// How long Events are kept: upstream's `--event-ttl`.
const EVENT_TTL: Duration = Duration::from_secs(3600);

const RBAC: &str = "rbac.authorization.k8s.io";
const STORAGE: &str = "storage.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const DEVICES: &str = "resource.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

/// What `kubectl get all` shows.
const ALL: &str = "all";
const EXTENSIONS: &str = "api-extensions";

const CREATE: &[&str] = &["create"];
const CREATE_GET: &[&str] = &["create", "get"];
const GET: &[&str] = &["get"];
const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];
const UPDATE: &[&str] = &["update"];
const PASSED_ON: &[&str] = &["create", "delete", "get", "patch", "update"];
/// Namespaces are too much to delete in one go.
const NO_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];

const GET_LIST: &[&str] = &["get", "list"];

const STATUS: Subresource = Subresource { name: "status", gvk: None, verbs: GET_PATCH_UPDATE };
const SCALE: Subresource =
    Subresource { name: "scale", gvk: Some(("autoscaling", "v1", "Scale")), verbs: GET_PATCH_UPDATE };

/// What a row says beyond the usual: a namespaced, stored kind of version v1 with all verbs.
struct Row {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    /// The category, or nothing.
    category: &'static str,
    namespaced: bool,
    verbs: &'static [&'static str],
    subresources: &'static [Subresource],
    name_rule: NameRule,
    has_generation: bool,
    is_stored: bool,
}

const fn row(group: &'static str, kind: &'static str, plural: &'static str) -> Row {
    Row {
        group,
        version: "v1",
        kind,
        plural,
        short: &[],
        category: "",
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[],
        name_rule: NameRule::Subdomain,
        has_generation: false,
        is_stored: true,
    }
}

const fn cluster(group: &'static str, kind: &'static str, plural: &'static str) -> Row {
    Row { namespaced: false, ..row(group, kind, plural) }
}

/// A kind that is answered at once and never stored.
const fn review(group: &'static str, kind: &'static str, plural: &'static str) -> Row {
    Row { namespaced: false, verbs: CREATE, is_stored: false, ..row(group, kind, plural) }
}

const fn proxy(options: &'static str) -> Subresource {
    Subresource { name: "proxy", gvk: Some(("", "v1", options)), verbs: PASSED_ON }
}

const fn access(kind: &'static str, plural: &'static str, namespaced: bool) -> Row {
    Row { namespaced, name_rule: NameRule::PathSegment, ..row(RBAC, kind, plural) }
}

const fn flow(kind: &'static str, plural: &'static str) -> Row {
    let row = cluster("flowcontrol.apiserver.k8s.io", kind, plural);
    Row { subresources: &[STATUS], has_generation: true, ..row }
}

const fn admission(kind: &'static str, plural: &'static str) -> Row {
    let row = cluster("admissionregistration.k8s.io", kind, plural);
    Row { category: EXTENSIONS, has_generation: true, ..row }
}

const ROWS: &[Row] = &[
    Row { verbs: CREATE, is_stored: false, ..row("", "Binding", "bindings") },
    Row { short: &["cm"], ..row("", "ConfigMap", "configmaps") },
    Row { short: &["ep"], ..row("", "Endpoints", "endpoints") },
    Row { short: &["ev"], name_rule: NameRule::PathSegment, ..row("", "Event", "events") },
    Row {
        short: &["ns"],
        verbs: NO_COLLECTION,
        subresources: &[Subresource { name: "finalize", gvk: None, verbs: UPDATE }, STATUS],
        name_rule: NameRule::Label,
        ..cluster("", "Namespace", "namespaces")
    },
    Row {
        short: &["no"],
        subresources: &[proxy("NodeProxyOptions"), STATUS],
        ..cluster("", "Node", "nodes")
    },
    Row {
        short: &["po"],
        category: ALL,
        has_generation: true,
        subresources: &[
            Subresource { name: "attach", gvk: Some(("", "v1", "PodAttachOptions")), verbs: CREATE_GET },
            Subresource { name: "binding", gvk: Some(("", "v1", "Binding")), verbs: CREATE },
            Subresource { name: "ephemeralcontainers", gvk: None, verbs: GET_PATCH_UPDATE },
            Subresource { name: "eviction", gvk: Some(("policy", "v1", "Eviction")), verbs: CREATE },
            Subresource { name: "exec", gvk: Some(("", "v1", "PodExecOptions")), verbs: CREATE_GET },
            Subresource { name: "log", gvk: None, verbs: GET },
            Subresource {
                name: "portforward",
                gvk: Some(("", "v1", "PodPortForwardOptions")),
                verbs: CREATE_GET,
            },
            proxy("PodProxyOptions"),
            Subresource { name: "resize", gvk: None, verbs: GET_PATCH_UPDATE },
            STATUS,
        ],
        ..row("", "Pod", "pods")
    },
    row("", "Secret", "secrets"),
    Row {
        short: &["sa"],
        subresources: &[Subresource {
            name: "token",
            gvk: Some((AUTHENTICATION, "v1", "TokenRequest")),
            verbs: CREATE,
        }],
        ..row("", "ServiceAccount", "serviceaccounts")
    },
    Row {
        short: &["svc"],
        category: ALL,
        subresources: &[proxy("ServiceProxyOptions"), STATUS],
        name_rule: NameRule::Label,
        ..row("", "Service", "services")
    },
    row("apps", "ControllerRevision", "controllerrevisions"),
    Row {
        short: &["deploy"],
        category: ALL,
        subresources: &[SCALE, STATUS],
        has_generation: true,
        ..row("apps", "Deployment", "deployments")
    },
    Row {
        short: &["rs"],
        category: ALL,
        subresources: &[SCALE, STATUS],
        has_generation: true,
        ..row("apps", "ReplicaSet", "replicasets")
    },
    Row {
        short: &["ds"],
        category: ALL,
        subresources: &[STATUS],
        has_generation: true,
        ..row("apps", "DaemonSet", "daemonsets")
    },
    Row {
        short: &["sts"],
        category: ALL,
        subresources: &[SCALE, STATUS],
        name_rule: NameRule::Label,
        has_generation: true,
        ..row("apps", "StatefulSet", "statefulsets")
    },
    Row {
        short: &["rc"],
        category: ALL,
        subresources: &[SCALE, STATUS],
        has_generation: true,
        ..row("", "ReplicationController", "replicationcontrollers")
    },
    Row { has_generation: true, ..row("", "PodTemplate", "podtemplates") },
    Row { category: ALL, subresources: &[STATUS], has_generation: true, ..row("batch", "Job", "jobs") },
    Row {
        short: &["cj"],
        category: ALL,
        subresources: &[STATUS],
        has_generation: true,
        ..row("batch", "CronJob", "cronjobs")
    },
    Row {
        short: &["hpa"],
        category: ALL,
        subresources: &[STATUS],
        ..row("autoscaling", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
    },
    Row {
        version: "v2",
        short: &["hpa"],
        category: ALL,
        subresources: &[STATUS],
        ..row("autoscaling", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
    },
    Row {
        short: &["pdb"],
        subresources: &[STATUS],
        name_rule: NameRule::PathSegment,
        has_generation: true,
        ..row("policy", "PodDisruptionBudget", "poddisruptionbudgets")
    },
    Row { short: &["quota"], subresources: &[STATUS], ..row("", "ResourceQuota", "resourcequotas") },
    Row { short: &["limits"], ..row("", "LimitRange", "limitranges") },
    Row {
        short: &["pvc"],
        subresources: &[STATUS],
        ..row("", "PersistentVolumeClaim", "persistentvolumeclaims")
    },
    Row { short: &["pv"], subresources: &[STATUS], ..cluster("", "PersistentVolume", "persistentvolumes") },
    Row {
        short: &["cs"],
        verbs: GET_LIST,
        is_stored: false,
        ..cluster("", "ComponentStatus", "componentstatuses")
    },
    Row { short: &["sc"], ..cluster(STORAGE, "StorageClass", "storageclasses") },
    Row { subresources: &[STATUS], ..cluster(STORAGE, "VolumeAttachment", "volumeattachments") },
    Row { name_rule: NameRule::PathSegment, ..cluster(STORAGE, "CSIDriver", "csidrivers") },
    cluster(STORAGE, "CSINode", "csinodes"),
    row(STORAGE, "CSIStorageCapacity", "csistoragecapacities"),
    Row { short: &["vac"], ..cluster(STORAGE, "VolumeAttributesClass", "volumeattributesclasses") },
    Row {
        short: &["ing"],
        subresources: &[STATUS],
        has_generation: true,
        ..row(NETWORKING, "Ingress", "ingresses")
    },
    Row { has_generation: true, ..cluster(NETWORKING, "IngressClass", "ingressclasses") },
    Row { short: &["netpol"], has_generation: true, ..row(NETWORKING, "NetworkPolicy", "networkpolicies") },
    Row {
        short: &["ip"],
        name_rule: NameRule::PathSegment,
        ..cluster(NETWORKING, "IPAddress", "ipaddresses")
    },
    Row { subresources: &[STATUS], ..cluster(NETWORKING, "ServiceCIDR", "servicecidrs") },
    cluster("node.k8s.io", "RuntimeClass", "runtimeclasses"),
    Row {
        short: &["csr"],
        subresources: &[Subresource { name: "approval", gvk: None, verbs: GET_PATCH_UPDATE }, STATUS],
        name_rule: NameRule::PathSegment,
        ..cluster("certificates.k8s.io", "CertificateSigningRequest", "certificatesigningrequests")
    },
    flow("FlowSchema", "flowschemas"),
    flow("PriorityLevelConfiguration", "prioritylevelconfigurations"),
    Row { has_generation: true, ..cluster(DEVICES, "DeviceClass", "deviceclasses") },
    Row { subresources: &[STATUS], ..row(DEVICES, "ResourceClaim", "resourceclaims") },
    row(DEVICES, "ResourceClaimTemplate", "resourceclaimtemplates"),
    Row { has_generation: true, ..cluster(DEVICES, "ResourceSlice", "resourceslices") },
    admission("MutatingAdmissionPolicy", "mutatingadmissionpolicies"),
    admission("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings"),
    admission("MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
    Row { subresources: &[STATUS], ..admission("ValidatingAdmissionPolicy", "validatingadmissionpolicies") },
    admission("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings"),
    admission("ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
    Row {
        category: EXTENSIONS,
        subresources: &[STATUS],
        name_rule: NameRule::PathSegment,
        ..cluster("apiregistration.k8s.io", "APIService", "apiservices")
    },
    Row {
        short: &["crd", "crds"],
        category: EXTENSIONS,
        subresources: &[STATUS],
        has_generation: true,
        ..cluster(crd::GROUP, "CustomResourceDefinition", "customresourcedefinitions")
    },
    review(AUTHENTICATION, "SelfSubjectReview", "selfsubjectreviews"),
    review(AUTHENTICATION, "TokenReview", "tokenreviews"),
    Row {
        namespaced: true,
        ..review(AUTHORIZATION, "LocalSubjectAccessReview", "localsubjectaccessreviews")
    },
    review(AUTHORIZATION, "SelfSubjectAccessReview", "selfsubjectaccessreviews"),
    review(AUTHORIZATION, "SelfSubjectRulesReview", "selfsubjectrulesreviews"),
    review(AUTHORIZATION, "SubjectAccessReview", "subjectaccessreviews"),
    row("coordination.k8s.io", "Lease", "leases"),
    Row { has_generation: true, ..row("discovery.k8s.io", "EndpointSlice", "endpointslices") },
    Row { short: &["ev"], ..row("events.k8s.io", "Event", "events") },
    access("ClusterRoleBinding", "clusterrolebindings", false),
    access("ClusterRole", "clusterroles", false),
    access("RoleBinding", "rolebindings", true),
    access("Role", "roles", true),
    Row { short: &["pc"], ..cluster("scheduling.k8s.io", "PriorityClass", "priorityclasses") },
];

/// Kinds that only subresources carry: they are no resources of their own.
const CARRIED: &[Row] = &[
    review(AUTHENTICATION, "TokenRequest", "tokenrequests"),
    review("autoscaling", "Scale", "scales"),
    review("policy", "Eviction", "evictions"),
];

/// The rows of all built-in resources.
pub fn builtin() -> Vec<Kind> {
    ROWS.iter().map(Row::kind).collect()
}

/// The rows of the kinds that bodies of subresources have (`Scale`, `Eviction`, `TokenRequest`):
/// for decoding, defaulting and validation, not for the table.
pub fn subresource_kinds() -> Vec<Kind> {
    CARRIED.iter().map(Row::kind).collect()
}

impl Row {
    fn kind(&self) -> Kind {
        let singular = self.kind.to_lowercase();
        let storage = match self.group {
            // Both groups of Events show the same objects.
            "" | "events.k8s.io" => format!("{}/", self.plural),
            group => format!("{group}/{}/", self.plural),
        };
        Kind {
            gvk: Gvk::new(self.group, self.version, self.kind),
            list_kind: format!("{}List", self.kind).into(),
            plural: self.plural.into(),
            singular: singular.into(),
            short_names: self.short.iter().map(|name| (*name).to_owned()).collect(),
            categories: Some(self.category.to_owned()).filter(|name| !name.is_empty()).into_iter().collect(),
            namespaced: self.namespaced,
            verbs: self.verbs,
            subresources: self.subresources.to_vec(),
            name_rule: self.name_rule,
            has_generation: self.has_generation,
            storage: self.is_stored.then(|| storage.into()),
            schema: Schema::builtin_kind(self.group, self.version, self.kind).unwrap_or_default(),
            columns: columns::of(self.group, self.version, self.kind),
            strategy: strategy(self.group, self.version, self.kind),
            custom: None,
        }
    }
}

/// What a kind demands of its objects, with its defaults.
fn strategy(group: &str, version: &str, kind: &str) -> Strategy {
    let strategy = Strategy {
        default: defaults::of(group, version, kind),
        without_effect: validate::without_effect(group, kind),
        ..validate::strategy_for(group, version, kind)
    };
    let strategy = Strategy {
        prepare_create: prepare_create(group, kind, &strategy),
        status_resets: status_resets(group, kind),
        ..strategy
    };
    match (group, kind) {
        ("", "Event") => Strategy { create_on_update: true, ttl: Some(EVENT_TTL), ..strategy },
        ("", "Endpoints") => Strategy {
            create_on_update: true,
            deprecated: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
            ..strategy
        },
        ("", "ComponentStatus") => {
            Strategy { deprecated: Some("v1 ComponentStatus is deprecated in v1.19+"), ..strategy }
        }
        ("events.k8s.io", "Event") | (RBAC, _) => Strategy { create_on_update: true, ..strategy },
        ("", "LimitRange") => Strategy { create_on_update: true, ..strategy },
        ("coordination.k8s.io", "Lease") => {
            Strategy { create_on_update: true, conditional_update: true, ..strategy }
        }
        ("", "Node") => Strategy { status_on_create: true, ..strategy },
        ("", "Pod") => Strategy { returns_deleted: true, ..strategy },
        ("", "ServiceAccount" | "PersistentVolume" | "PersistentVolumeClaim") => {
            Strategy { returns_deleted: true, ..strategy }
        }
        ("", "ResourceQuota" | "PodTemplate") => Strategy { returns_deleted: true, ..strategy },
        (STORAGE, "StorageClass" | "VolumeAttributesClass") => Strategy { returns_deleted: true, ..strategy },
        (STORAGE, "CSIStorageCapacity") => Strategy { conditional_update: true, ..strategy },
        (STORAGE, _) => Strategy { returns_deleted: true, conditional_update: true, ..strategy },
        ("resource.k8s.io", _) => Strategy { returns_deleted: true, ..strategy },
        ("policy", "PodDisruptionBudget")
        | ("node.k8s.io", "RuntimeClass")
        | ("admissionregistration.k8s.io" | "apiregistration.k8s.io", _) => {
            Strategy { conditional_update: true, ..strategy }
        }
        ("", "Service") => Strategy { create_on_update: true, returns_deleted: true, ..strategy },
        ("apps", "Deployment") => Strategy { generation_counts: &["annotations"], ..strategy },
        ("discovery.k8s.io", "EndpointSlice") => Strategy { generation_counts: &["labels"], ..strategy },
        _ => strategy,
    }
}

/// What a write to the status of a kind cannot set.
fn status_resets(group: &str, kind: &str) -> &'static [&'static str] {
    match (group, kind) {
        ("", "Pod") => &["spec", "metadata.deletionTimestamp", "metadata.ownerReferences"],
        ("apps", "Deployment") => &["spec", "metadata.labels"],
        ("certificates.k8s.io", "CertificateSigningRequest") => &["spec", "status.conditions"],
        (STORAGE, "VolumeAttachment")
        | (crd::GROUP | DEVICES | "flowcontrol.apiserver.k8s.io", _)
        | ("admissionregistration.k8s.io" | "apiregistration.k8s.io", _) => &["metadata", "spec"],
        _ => &["spec"],
    }
}

/// What is done to a new object. The status that a client sends with it is dropped; what an empty
/// one always shows comes from the defaults.
fn prepare_create(group: &str, kind: &str, strategy: &Strategy) -> fn(&mut Value) {
    macro_rules! then_default {
        ($group:literal, $kind:literal) => {
            |object| {
                (validate::strategy_for($group, "v1", $kind).prepare_create)(object);
                (defaults::of($group, "v1", $kind))(object);
            }
        };
    }
    match (group, kind) {
        ("", "Namespace") => defaults::new_namespace,
        ("", "Service") => then_default!("", "Service"),
        ("", "PersistentVolumeClaim") => then_default!("", "PersistentVolumeClaim"),
        ("batch", "Job") => then_default!("batch", "Job"),
        ("apps", "DaemonSet") => then_default!("apps", "DaemonSet"),
        (DEVICES, "ResourceSlice") => strategy.prepare_create,
        // Its generation never counts: what may change of it is no specification.
        ("scheduling.k8s.io", "PriorityClass") => |object| crate::meta::set_generation(object, 1),
        ("apps" | "autoscaling" | "batch" | "policy" | NETWORKING | STORAGE | DEVICES, _)
        | ("admissionregistration.k8s.io" | "apiregistration.k8s.io" | "certificates.k8s.io", _)
        | ("flowcontrol.apiserver.k8s.io", _)
        | ("", "ReplicationController" | "ResourceQuota") => strategy.default,
        _ => strategy.prepare_create,
    }
}

#[cfg(test)]
mod tests;
