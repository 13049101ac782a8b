//! The built-in kinds: one row each. A new kind is a new row, once everything that its fields ask
//! for exists.
//! Upstream counterpart: what `/apis` discovery of a cluster lists.

use crate::columns;
use crate::defaults;
use crate::gvk::Gvk;
use crate::kinds::{ALL_VERBS, Kind, NameRule, Strategy, Subresource};
use crate::schema::Schema;
use crate::validate;
use std::time::Duration;

/// How long Events are kept: upstream's `--event-ttl`.
const EVENT_TTL: Duration = Duration::from_secs(3600);

const RBAC: &str = "rbac.authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

const CREATE: &[&str] = &["create"];
const CREATE_GET: &[&str] = &["create", "get"];
const GET: &[&str] = &["get"];
const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];
const UPDATE: &[&str] = &["update"];
/// Namespaces are too much to delete in one go.
const NO_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];

const STATUS: Subresource = Subresource { name: "status", gvk: None, verbs: GET_PATCH_UPDATE };
const SCALE: Subresource =
    Subresource { name: "scale", gvk: Some(("autoscaling", "v1", "Scale")), verbs: GET_PATCH_UPDATE };

/// What a row says beyond the usual: a namespaced, stored kind of version v1 with all verbs.
struct Row {
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    in_all: bool,
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
        kind,
        plural,
        short: &[],
        in_all: false,
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

const fn access(kind: &'static str, plural: &'static str, namespaced: bool) -> Row {
    Row { namespaced, name_rule: NameRule::PathSegment, ..row(RBAC, kind, plural) }
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
    Row { short: &["no"], subresources: &[STATUS], ..cluster("", "Node", "nodes") },
    Row {
        short: &["po"],
        in_all: true,
        has_generation: true,
        subresources: &[
            Subresource { name: "attach", gvk: Some(("", "v1", "PodAttachOptions")), verbs: CREATE_GET },
            Subresource { name: "binding", gvk: Some(("", "v1", "Binding")), verbs: CREATE },
            Subresource { name: "eviction", gvk: Some(("policy", "v1", "Eviction")), verbs: CREATE },
            Subresource { name: "exec", gvk: Some(("", "v1", "PodExecOptions")), verbs: CREATE_GET },
            Subresource { name: "log", gvk: None, verbs: GET },
            Subresource {
                name: "portforward",
                gvk: Some(("", "v1", "PodPortForwardOptions")),
                verbs: CREATE_GET,
            },
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
        in_all: true,
        subresources: &[STATUS],
        name_rule: NameRule::Rfc1035Label,
        ..row("", "Service", "services")
    },
    row("apps", "ControllerRevision", "controllerrevisions"),
    Row {
        short: &["deploy"],
        in_all: true,
        subresources: &[SCALE, STATUS],
        has_generation: true,
        ..row("apps", "Deployment", "deployments")
    },
    Row {
        short: &["rs"],
        in_all: true,
        subresources: &[SCALE, STATUS],
        has_generation: true,
        ..row("apps", "ReplicaSet", "replicasets")
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
            gvk: Gvk::new(self.group, "v1", self.kind),
            list_kind: format!("{}List", self.kind).into(),
            plural: self.plural.into(),
            singular: singular.into(),
            short_names: self.short.iter().map(|name| (*name).to_owned()).collect(),
            categories: if self.in_all { vec!["all".to_owned()] } else { Vec::new() },
            namespaced: self.namespaced,
            verbs: self.verbs,
            subresources: self.subresources.to_vec(),
            name_rule: self.name_rule,
            has_generation: self.has_generation,
            storage: self.is_stored.then(|| storage.into()),
            schema: Schema::builtin_kind(self.group, "v1", self.kind).unwrap_or_default(),
            columns: columns::of(self.group, self.kind),
            strategy: strategy(self.group, self.kind),
        }
    }
}

/// What a kind demands of its objects, with its defaults.
fn strategy(group: &str, kind: &str) -> Strategy {
    let strategy = Strategy { default: defaults::of(group, kind), ..validate::strategy_for(group, kind) };
    match (group, kind) {
        ("", "Event") => Strategy { create_on_update: true, ttl: Some(EVENT_TTL), ..strategy },
        ("", "Endpoints") => Strategy {
            create_on_update: true,
            deprecated: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
            ..strategy
        },
        ("events.k8s.io", "Event") | (RBAC, _) => Strategy { create_on_update: true, ..strategy },
        ("coordination.k8s.io", "Lease") => {
            Strategy { create_on_update: true, conditional_update: true, ..strategy }
        }
        ("", "Node") => Strategy { status_on_create: true, ..strategy },
        ("", "Pod") => Strategy {
            returns_deleted: true,
            status_resets: &["spec", "metadata.deletionTimestamp", "metadata.ownerReferences"],
            ..strategy
        },
        ("", "ServiceAccount") => Strategy { returns_deleted: true, ..strategy },
        ("", "Namespace") => Strategy { prepare_create: defaults::new_namespace, ..strategy },
        // The status that a client sends with a new object is dropped; an empty one is shown.
        ("", "Service") => Strategy {
            prepare_create: |object| {
                (validate::strategy_for("", "Service").prepare_create)(object);
                defaults::service_status(object);
            },
            create_on_update: true,
            returns_deleted: true,
            ..strategy
        },
        // Its generation never counts: what may change of it is no specification.
        ("scheduling.k8s.io", "PriorityClass") => {
            Strategy { prepare_create: |object| crate::meta::set_generation(object, 1), ..strategy }
        }
        ("apps", "Deployment") => Strategy {
            prepare_create: defaults::empty_status,
            generation_counts: &["annotations"],
            status_resets: &["spec", "metadata.labels"],
            ..strategy
        },
        ("apps", "ReplicaSet") => Strategy { prepare_create: defaults::empty_status, ..strategy },
        ("discovery.k8s.io", "EndpointSlice") => Strategy { generation_counts: &["labels"], ..strategy },
        _ => strategy,
    }
}

#[cfg(test)]
mod tests;
