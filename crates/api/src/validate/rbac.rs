//! Roles and their bindings.

use super::at::{At, Errors};
use crate::field::FieldError;
use crate::names;
use serde_json::Value;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn role(value: &Value) -> Vec<FieldError> {
    rules(value, true)
}

pub(super) fn cluster_role(value: &Value) -> Vec<FieldError> {
    let mut errors = Errors(rules(value, false));
    let root = At::root(value);
    if let Some(aggregation) = root.get("aggregationRule") {
        if aggregation.list("clusterRoleSelectors").is_empty() {
            let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.required(aggregation.at("clusterRoleSelectors"), why);
        }
        for selector in aggregation.items("clusterRoleSelectors") {
            super::affinity::label_selector(Some(selector), &mut errors);
        }
    }
    errors.0
}

fn rules(value: &Value, namespaced: bool) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    for at in root.items("rules") {
        let empty = |field: &str| at.list(field).is_empty();
        if empty("verbs") {
            errors.required(at.at("verbs"), "verbs must contain at least one value");
        }
        if !empty("nonResourceURLs") {
            let urls = || Value::from(at.list("nonResourceURLs"));
            if namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                errors.invalid(at.at("nonResourceURLs"), urls(), why);
            }
            if !empty("apiGroups") || !empty("resources") || !empty("resourceNames") {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                errors.invalid(at.at("nonResourceURLs"), urls(), why);
            }
            continue;
        }
        if empty("apiGroups") {
            errors.required(at.at("apiGroups"), "resource rules must supply at least one api group");
        }
        if empty("resources") {
            errors.required(at.at("resources"), "resource rules must supply at least one resource");
        }
    }
    errors.0
}

pub(super) fn role_binding(value: &Value) -> Vec<FieldError> {
    binding(value, true)
}

pub(super) fn cluster_role_binding(value: &Value) -> Vec<FieldError> {
    binding(value, false)
}

fn binding(value: &Value, namespaced: bool) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let role = root.child("roleRef");
    if role.str("apiGroup") != GROUP {
        errors.not_supported(role.at("apiGroup"), role.str("apiGroup"), &[GROUP]);
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&role.str("kind")) {
        errors.not_supported(role.at("kind"), role.str("kind"), kinds);
    }
    if errors.need(&role, "name") {
        errors.checked(&role, "name", names::is_path_segment_name);
    }
    root.items("subjects").for_each(|at| subject(&at, namespaced, &mut errors));
    errors.0
}

fn subject(at: &At<'_>, namespaced: bool, errors: &mut Errors) {
    let (name, group) = (at.str("name"), at.str("apiGroup"));
    errors.need(at, "name");
    match at.str("kind") {
        "ServiceAccount" => {
            errors.checked(at, "name", names::is_dns1123_subdomain);
            if !group.is_empty() {
                errors.not_supported(at.at("apiGroup"), group, &[""]);
            }
            if !namespaced {
                errors.need(at, "namespace");
            }
        }
        kind @ ("User" | "Group") => {
            if name.is_empty() {
                errors.invalid(at.at("name"), name, format!("{} name cannot be empty", kind.to_lowercase()));
            }
            if group != GROUP {
                errors.not_supported(at.at("apiGroup"), group, &[GROUP]);
            }
        }
        other => errors.not_supported(at.at("kind"), other, &["ServiceAccount", "User", "Group"]),
    }
}

pub(super) fn binding_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (root, old_root, mut errors) = (At::root(new), At::root(old), Errors::default());
    if root.value.get("roleRef") != old_root.value.get("roleRef") {
        let value = root.child("roleRef").value.clone();
        errors.invalid(root.at("roleRef"), value, "cannot change roleRef");
    }
    errors.0
}
