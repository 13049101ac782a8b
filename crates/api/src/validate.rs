//! What each built-in kind demands of its objects, beyond types and metadata: one row a kind.
//! Rules are pure functions over JSON values; the values have passed the schema and defaulting.
//! Upstream counterparts: `pkg/apis/*/validation`, `pkg/registry/*/*/strategy.go`, `pkg/api/*/warnings.go`.

mod admission;
mod affinity;
mod api_service;
mod apps;
mod at;
mod autoscaling;
mod batch;
mod certificates;
mod container;
mod conversion;
mod core;
mod crd;
mod dra;
mod flowcontrol;
mod job_status;
mod networking;
mod persistent_volume;
mod pod;
mod pod_portions;
mod pod_resize;
mod policy;
mod rbac;
mod resources;
mod review;
mod runtime_class;
mod service;
mod sets;
mod storage;
mod structural;
mod validations;
mod volume;
mod volume_claim;
mod warnings;

pub use container::split_subscript;
pub use resources::is_extended as is_extended_resource;
pub use warnings::without_effect;

use crate::kinds::Strategy;
use serde_json::Value;

/// The strategy of a built-in kind, all but its defaults. Unknown kinds have the empty one.
pub fn strategy_for(group: &str, version: &str, kind: &str) -> Strategy {
    let none = Strategy::default();
    match (group, kind) {
        ("", "Namespace") => Strategy {
            validate: core::namespace,
            validate_status: core::namespace_status,
            prepare_create: namespace_is_active,
            prepare_update: keep_namespace_finalizers,
            selectable: |value| vec![("status.phase", text(value, &["status", "phase"]))],
            selectable_keys: &["status.phase"],
            ..none
        },
        ("", "Node") => Strategy {
            validate: core::node,
            validate_update: core::node_update,
            validate_status: core::node_status,
            warnings: warnings::for_node,
            selectable: |value| vec![("spec.unschedulable", flag(value, &["spec", "unschedulable"]))],
            selectable_keys: &["spec.unschedulable"],
            ..none
        },
        ("", "Pod") => Strategy {
            validate: pod::validate,
            validate_create: pod::validate_create,
            validate_update: pod::validate_update,
            validate_status: pod::validate_status,
            prepare_create: pod::prepare_create,
            prepare_status: pod::prepare_status,
            portions: pod_portions::PORTIONS,
            warnings: warnings::for_pod,
            selectable: selectable_of_pod,
            selectable_keys: &[
                "spec.nodeName",
                "spec.restartPolicy",
                "spec.schedulerName",
                "spec.serviceAccountName",
                "spec.hostNetwork",
                "status.phase",
                "status.podIP",
                "status.podIPs",
                "status.nominatedNodeName",
            ],
            ..none
        },
        ("", "Event") => Strategy {
            validate: core::event,
            selectable: selectable_of_event,
            selectable_keys: EVENT_KEYS,
            ..none
        },
        ("events.k8s.io", "Event") => Strategy {
            validate: core::new_event,
            validate_create: core::new_event_create,
            validate_update: core::new_event_update,
            selectable: selectable_of_new_event,
            selectable_keys: NEW_EVENT_KEYS,
            ..none
        },
        ("", "ConfigMap") => {
            Strategy { validate: core::config_map, validate_update: core::config_map_update, ..none }
        }
        ("", "Secret") => Strategy {
            validate: core::secret,
            validate_update: core::secret_update,
            prepare_create: core::secret_prepare,
            prepare_update: core::secret_prepare_update,
            selectable: |value| vec![("type", text(value, &["type"]))],
            selectable_keys: &["type"],
            ..none
        },
        ("", "Service") => Strategy {
            validate: service::validate,
            validate_update: service::validate_update,
            validate_status: service::validate_status,
            prepare_create: service::prepare_create,
            prepare_update: service::prepare_update,
            warnings: warnings::for_service,
            selectable: |value| {
                vec![
                    ("spec.clusterIP", text(value, &["spec", "clusterIP"])),
                    ("spec.type", text(value, &["spec", "type"])),
                ]
            },
            selectable_keys: &["spec.clusterIP", "spec.type"],
            ..none
        },
        ("", "Endpoints") => {
            Strategy { validate: core::endpoints, warnings: warnings::for_endpoints, ..none }
        }
        ("discovery.k8s.io", "EndpointSlice") => Strategy {
            validate: core::endpoint_slice,
            validate_update: core::endpoint_slice_update,
            warnings: warnings::for_endpoint_slice,
            ..none
        },
        ("coordination.k8s.io", "Lease") => Strategy { validate: core::lease, ..none },
        ("apps", "Deployment") => Strategy {
            validate: apps::deployment,
            validate_update: apps::selector_stays,
            validate_status: apps::deployment_status,
            prepare_status: |new, old| crate::meta::keep(new, old, "labels"),
            warnings: warnings::for_workload,
            ..none
        },
        ("apps", "ReplicaSet") => Strategy {
            validate: apps::replica_set,
            validate_update: apps::selector_stays,
            validate_status: apps::replica_set_status,
            warnings: warnings::for_workload,
            selectable: |value| vec![("status.replicas", number(value, &["status", "replicas"]))],
            selectable_keys: &["status.replicas"],
            ..none
        },
        ("apps", "ControllerRevision") => Strategy {
            validate: apps::controller_revision,
            validate_update: apps::controller_revision_update,
            ..none
        },
        ("scheduling.k8s.io", "PriorityClass") => {
            Strategy { validate: core::priority_class, validate_update: core::priority_class_update, ..none }
        }
        ("rbac.authorization.k8s.io", "Role") => Strategy { validate: rbac::role, ..none },
        ("rbac.authorization.k8s.io", "ClusterRole") => Strategy { validate: rbac::cluster_role, ..none },
        ("rbac.authorization.k8s.io", "RoleBinding") => {
            Strategy { validate: rbac::role_binding, validate_update: rbac::binding_update, ..none }
        }
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => {
            Strategy { validate: rbac::cluster_role_binding, validate_update: rbac::binding_update, ..none }
        }
        ("apps", "StatefulSet") => sets::stateful_set_strategy(),
        ("apps", "DaemonSet") => sets::daemon_set_strategy(),
        ("", "ReplicationController") => sets::replication_controller_strategy(),
        ("", "PodTemplate") => sets::pod_template_strategy(),
        ("batch", kind) => batch::strategy(kind),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaling::strategy(version),
        ("policy", "PodDisruptionBudget") => policy::disruption_budget_strategy(),
        ("", "ResourceQuota") => policy::quota_strategy(),
        ("", "LimitRange") => policy::limit_range_strategy(),
        ("", "PersistentVolumeClaim") => volume_claim::strategy(),
        ("", "PersistentVolume") => persistent_volume::strategy(),
        ("storage.k8s.io", kind) => storage::strategy(kind),
        ("networking.k8s.io", kind) => networking::strategy(kind),
        ("node.k8s.io", "RuntimeClass") => runtime_class::strategy(),
        ("certificates.k8s.io", "CertificateSigningRequest") => certificates::strategy(),
        ("flowcontrol.apiserver.k8s.io", kind) => flowcontrol::strategy(kind),
        ("resource.k8s.io", kind) => dra::strategy(kind),
        ("admissionregistration.k8s.io", kind) => admission::strategy(kind),
        ("apiregistration.k8s.io", "APIService") => api_service::strategy(),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => crd::strategy(),
        ("autoscaling", "Scale") => Strategy { validate: apps::scale, ..none },
        ("", "Binding") => Strategy { validate: review::binding, ..none },
        ("authentication.k8s.io", "TokenRequest") => Strategy { validate: review::token_request, ..none },
        ("authorization.k8s.io", "SubjectAccessReview") => {
            Strategy { validate: review::subject_access, ..none }
        }
        ("authorization.k8s.io", "SelfSubjectAccessReview") => {
            Strategy { validate: review::self_subject_access, ..none }
        }
        ("authorization.k8s.io", "LocalSubjectAccessReview") => {
            Strategy { validate: review::local_subject_access, ..none }
        }
        _ => none,
    }
}

fn namespace_is_active(value: &mut Value) {
    if let Some(object) = value.as_object_mut() {
        object.insert("status".into(), serde_json::json!({ "phase": "Active" }));
    }
}

/// The finalizers of a namespace change only through its `finalize` subresource.
fn keep_namespace_finalizers(new: &mut Value, old: &Value) {
    let finalizers = old.get("spec").and_then(|s| s.get("finalizers")).cloned();
    let Some(object) = new.as_object_mut() else { return };
    let spec = object.entry("spec").or_insert_with(|| serde_json::json!({}));
    if let Some(spec) = spec.as_object_mut() {
        match finalizers {
            Some(finalizers) => spec.insert("finalizers".into(), finalizers),
            None => spec.remove("finalizers"),
        };
    }
}

fn lookup<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, field| value.get(*field))
}

fn text(value: &Value, path: &[&str]) -> String {
    lookup(value, path).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn flag(value: &Value, path: &[&str]) -> String {
    lookup(value, path).and_then(Value::as_bool).unwrap_or(false).to_string()
}

fn number(value: &Value, path: &[&str]) -> String {
    lookup(value, path).and_then(Value::as_i64).unwrap_or(0).to_string()
}

fn selectable_of_pod(value: &Value) -> Vec<(&'static str, String)> {
    vec![
        ("spec.nodeName", text(value, &["spec", "nodeName"])),
        ("spec.restartPolicy", text(value, &["spec", "restartPolicy"])),
        ("spec.schedulerName", text(value, &["spec", "schedulerName"])),
        ("spec.serviceAccountName", text(value, &["spec", "serviceAccountName"])),
        ("spec.hostNetwork", flag(value, &["spec", "hostNetwork"])),
        ("status.phase", text(value, &["status", "phase"])),
        ("status.podIP", text(value, &["status", "podIP"])),
        ("status.podIPs", text(value, &["status", "podIP"])),
        ("status.nominatedNodeName", text(value, &["status", "nominatedNodeName"])),
    ]
}

const EVENT_KEYS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

const NEW_EVENT_KEYS: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type",
];

/// The last part of each key of the object that an event is about.
const REFERENCE: [&str; 7] =
    ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"];

fn selectable_of_event(value: &Value) -> Vec<(&'static str, String)> {
    let about = REFERENCE.map(|field| text(value, &["involvedObject", field]));
    let mut out: Vec<_> = EVENT_KEYS.iter().copied().zip(about).collect();
    let component = text(value, &["source", "component"]);
    let reporting = text(value, &["reportingComponent"]);
    let source = if component.is_empty() { reporting.clone() } else { component };
    out.push(("reason", text(value, &["reason"])));
    out.push(("reportingComponent", reporting));
    out.push(("source", source));
    out.push(("type", text(value, &["type"])));
    out
}

fn selectable_of_new_event(value: &Value) -> Vec<(&'static str, String)> {
    let about = REFERENCE.map(|field| text(value, &["regarding", field]));
    let mut out: Vec<_> = NEW_EVENT_KEYS.iter().copied().zip(about).collect();
    out.push(("reason", text(value, &["reason"])));
    out.push(("reportingController", text(value, &["reportingController"])));
    out.push(("type", text(value, &["type"])));
    out
}
