//! Resource names, amounts, requests and limits.

use super::at::{At, Errors, NOT_NEGATIVE};
use crate::field::Path;
use crate::names;
use crate::quantity::Quantity;
use serde_json::Value;

const DEFAULT_DOMAIN: &str = "kubernetes.io/";
const STANDARD_CONTAINER_RESOURCES: &[&str] = &["cpu", "memory", "ephemeral-storage"];
const STANDARD_RESOURCES: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
];
const STANDARD_INTEGER_RESOURCES: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

pub(super) fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains(DEFAULT_DOMAIN)
}

/// Whether a resource is one that nodes advertise beyond Kubernetes' own: `example.com/gpu`.
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::is_qualified_name(&format!("requests.{name}")).is_empty()
}

fn is_integer(name: &str) -> bool {
    STANDARD_INTEGER_RESOURCES.contains(&name) || is_extended(name)
}

fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// The name of any resource.
pub(super) fn resource_name(name: &str, path: &Path, errors: &mut Errors) {
    let messages = names::is_qualified_name(name);
    let qualified = messages.is_empty();
    errors.each(path, name, messages);
    let standard =
        STANDARD_RESOURCES.contains(&name) || is_huge_page(name) || name.starts_with("requests.hugepages-");
    if qualified && !name.contains('/') && !standard {
        errors.invalid(path.clone(), name, "must be a standard resource type or fully qualified");
    }
}

/// The name of a resource that a quota counts.
pub(super) fn quota_name(name: &str, path: &Path, errors: &mut Errors) {
    resource_name(name, path, errors);
    let counted = STANDARD_RESOURCES.contains(&name) && name != "storage"
        || is_huge_page(name)
        || name.starts_with("requests.hugepages-");
    if !name.contains('/') && !counted {
        errors.invalid(path.clone(), name, "must be a standard resource for quota");
    }
}

/// The name of a resource that a container may ask for.
pub(super) fn container_resource_name(name: &str, path: &Path, errors: &mut Errors) {
    resource_name(name, path, errors);
    if !name.contains('/') {
        if !STANDARD_CONTAINER_RESOURCES.contains(&name) && !is_huge_page(name) {
            errors.invalid(path.clone(), name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(path.clone(), name, "doesn't follow extended resource name standard");
    }
}

/// An amount must not be negative, and whole where the resource is counted.
pub(super) fn quantity(name: &str, amount: Quantity, path: &Path, errors: &mut Errors) {
    if amount.sign() < 0 {
        errors.invalid(path.clone(), amount.to_string(), NOT_NEGATIVE);
    }
    if is_integer(name) && !amount.is_whole() {
        errors.invalid(path.clone(), amount.to_string(), "must be an integer");
    }
}

fn huge_page_multiple(name: &str, amount: Quantity, path: &Path, errors: &mut Errors) {
    let page: Option<Quantity> = name.strip_prefix("hugepages-").and_then(|size| size.parse().ok());
    let divisible = page.is_some_and(|page| page.sign() > 0 && amount.units() % page.units() == 0);
    if !divisible {
        let why = format!("{amount} is not positive integer multiple of {name}");
        errors.invalid(path.clone(), amount.to_string(), why);
    }
}

fn parsed(value: &Value) -> Quantity {
    Quantity::from_value(value).unwrap_or_default()
}

/// `resources` of a container. `claims` are the names in `spec.resourceClaims`.
pub(super) fn requirements(at: &At<'_>, claims: &[&str], errors: &mut Errors) {
    let (limits, requests) = (at.child("limits"), at.child("requests"));
    let (mut huge, mut cpu_or_memory) = (false, false);
    for (list, path) in [("limits", &limits.path), ("requests", &requests.path)] {
        for (name, value) in at.entries(list) {
            let amount = parsed(value);
            let key = path.key(name);
            container_resource_name(name, &key, errors);
            quantity(name, amount, &key, errors);
            if list == "requests" {
                against_limit(name, amount, at, &requests.path, &limits.path, errors);
            }
            if is_huge_page(name) {
                huge = true;
                huge_page_multiple(name, amount, &key, errors);
            }
            cpu_or_memory |= name == "cpu" || name == "memory";
        }
    }
    if huge && !cpu_or_memory {
        errors.forbidden(at.path.clone(), "HugePages require cpu or memory");
    }
    claim_names(at, claims, errors);
}

fn against_limit(
    name: &str,
    request: Quantity,
    at: &At<'_>,
    requests: &Path,
    limits: &Path,
    errors: &mut Errors,
) {
    match at.value.get("limits").and_then(|l| l.get(name)).map(parsed) {
        Some(limit) if !may_overcommit(name) && request != limit => {
            errors.invalid(
                requests.clone(),
                request.to_string(),
                format!("must be equal to {name} limit of {limit}"),
            );
        }
        Some(limit) if request > limit => {
            let why = format!("must be less than or equal to {name} limit of {limit}");
            errors.invalid(requests.clone(), request.to_string(), why);
        }
        None if !may_overcommit(name) => {
            errors.required(limits.clone(), "Limit must be set for non overcommitable resources");
        }
        _ => {}
    }
}

fn claim_names(at: &At<'_>, claims: &[&str], errors: &mut Errors) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for claim in at.items("claims") {
        let (name, request) = (claim.str("name"), claim.str("request"));
        if name.is_empty() {
            errors.required(claim.path, "");
            continue;
        }
        if seen.contains(&(name, request)) {
            errors.duplicate(claim.path.clone(), name);
        }
        seen.push((name, request));
        if !claims.contains(&name) {
            let mut detail = "must be one of the names in pod.spec.resourceClaims".to_owned();
            if claims.is_empty() {
                detail.push_str(" which is empty");
            } else {
                let mut sorted = claims.to_vec();
                sorted.sort_unstable();
                detail.push_str(&format!(": {}", sorted.join(", ")));
            }
            let mut error = crate::field::FieldError::not_found(claim.path, name);
            error.detail = detail;
            errors.push(error);
        }
    }
}

/// Resources of the Pod itself: only CPU, memory and huge pages, at least what containers ask.
pub(super) fn pod_level(spec: &At<'_>, errors: &mut Errors) {
    let Some(at) = spec.get("resources") else { return };
    for list in ["limits", "requests"] {
        for (name, _) in at.entries(list) {
            if !(name == "cpu" || name == "memory" || is_huge_page(name)) {
                let mut supported = vec!["cpu", "hugepages-", "memory"];
                supported.sort_unstable();
                errors.not_supported(at.at(list).key(name), name.as_str(), &supported);
            }
        }
    }
    if at.has("claims") {
        errors.forbidden(at.at("claims"), "claims may not be set for Resources at pod-level");
    }
    let with_limits = at.value;
    requirements(&At::new(Some(with_limits), at.path.clone()), &[], errors);
    for (name, own) in at.entries("requests") {
        let asked =
            spec.list("containers").iter().filter_map(|c| c.get("resources")?.get("requests")?.get(name));
        let sum = asked.fold(Quantity::ZERO, |sum, amount| sum + parsed(amount));
        if parsed(own) < sum {
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.invalid(at.at("requests").key(name), parsed(own).to_string(), why);
        }
    }
    for (name, own) in at.entries("limits") {
        for container in spec.items("containers") {
            let limit = container.value.get("resources").and_then(|r| r.get("limits")?.get(name)).map(parsed);
            if let Some(limit) = limit.filter(|limit| *limit > parsed(own)) {
                let path = container.at("resources").child("limits").key(name);
                errors.invalid(
                    path,
                    limit.to_string(),
                    format!("must be less than or equal to pod limits of {}", parsed(own)),
                );
            }
        }
    }
}

/// `spec.overhead`, by the rules of limits.
pub(super) fn overhead(spec: &At<'_>, errors: &mut Errors) {
    let path = spec.at("overhead");
    for (name, value) in spec.entries("overhead") {
        let key = path.child("limits").key(name);
        container_resource_name(name, &key, errors);
        quantity(name, parsed(value), &key, errors);
    }
}
