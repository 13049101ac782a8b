//! Selectors, affinity, tolerations, taints and topology spread.

use super::at::{At, Errors};
use crate::field::{FieldError, Path};
use crate::names;
use serde_json::Value;
use std::collections::BTreeSet;

const TAINT_EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

fn label_name(at: &At<'_>, name: &str, errors: &mut Errors) {
    let value = at.str(name);
    errors.each(&at.at(name), value, names::is_qualified_name(value));
}

/// A LabelSelector object.
pub(super) fn label_selector(at: Option<At<'_>>, errors: &mut Errors) {
    let Some(at) = at else { return };
    errors.extend(names::validate_labels(at.value.get("matchLabels"), &at.at("matchLabels")));
    for expression in at.items("matchExpressions") {
        let values = expression.list("values");
        match expression.str("operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(
                    expression.at("values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.forbidden(
                    expression.at("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(expression.at("operator"), other, "not a valid selector operator"),
        }
        label_name(&expression, "key", errors);
        for (i, value) in expression.strings("values").enumerate() {
            errors.each(&expression.at("values").index(i), value, names::is_label_value(value));
        }
    }
}

fn node_selector_term(term: &At<'_>, errors: &mut Errors) {
    for expression in term.items("matchExpressions") {
        let count = expression.list("values").len();
        match expression.str("operator") {
            "In" | "NotIn" if count == 0 => {
                errors.required(
                    expression.at("values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if count > 0 => {
                errors.forbidden(
                    expression.at("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "Gt" | "Lt" if count != 1 => {
                errors.required(
                    expression.at("values"),
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.invalid(expression.at("operator"), other, "not a valid selector operator"),
        }
        label_name(&expression, "key", errors);
    }
    for field in term.items("matchFields") {
        match field.str("operator") {
            "In" | "NotIn" if field.list("values").len() != 1 => errors.required(
                field.at("values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ),
            "In" | "NotIn" => {}
            other => errors.invalid(field.at("operator"), other, "not a valid selector operator"),
        }
        if field.str("key") == "metadata.name" {
            for (i, value) in field.strings("values").enumerate() {
                errors.each(&field.at("values").index(i), value, names::is_dns1123_subdomain(value));
            }
        } else {
            errors.invalid(field.at("key"), field.str("key"), "not a valid field selector key");
        }
    }
}

/// A NodeSelector object.
pub(super) fn node_selector(at: &At<'_>, errors: &mut Errors) {
    if at.list("nodeSelectorTerms").is_empty() {
        errors.required(at.at("nodeSelectorTerms"), "must have at least one node selector term");
    }
    at.items("nodeSelectorTerms").for_each(|term| node_selector_term(&term, errors));
}

fn weight(at: &At<'_>, errors: &mut Errors) {
    let weight = at.int("weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.invalid(at.at("weight"), weight, "must be in the range 1-100");
    }
}

/// `spec.affinity`
pub(super) fn affinity(at: &At<'_>, errors: &mut Errors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = at.get("nodeAffinity") {
        if let Some(required) = node.get(REQUIRED) {
            node_selector(&required, errors);
        }
        for preferred in node.items(PREFERRED) {
            weight(&preferred, errors);
            node_selector_term(&preferred.child("preference"), errors);
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = at.get(kind) else { continue };
        pods.items(REQUIRED).for_each(|term| pod_affinity_term(&term, errors));
        for preferred in pods.items(PREFERRED) {
            weight(&preferred, errors);
            pod_affinity_term(&preferred.child("podAffinityTerm"), errors);
        }
    }
}

fn pod_affinity_term(term: &At<'_>, errors: &mut Errors) {
    label_selector(term.get("labelSelector"), errors);
    label_selector(term.get("namespaceSelector"), errors);
    for namespace in term.strings("namespaces") {
        errors.each(&term.at("namespace"), namespace, names::is_dns1123_label(namespace));
    }
    for list in ["matchLabelKeys", "mismatchLabelKeys"] {
        if term.list(list).is_empty() {
            continue;
        }
        if !term.has("labelSelector") {
            errors.forbidden(term.at(list), "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in term.strings(list).enumerate() {
            errors.each(&term.at(list).index(i), key, names::is_qualified_name(key));
        }
    }
    let selector = term.child("labelSelector");
    for (i, key) in term.strings("matchLabelKeys").enumerate() {
        if times_selected(&selector, key) > 1 {
            errors.invalid(term.path.index(i), key, "exists in both matchLabelKeys and labelSelector");
        }
        if term.strings("mismatchLabelKeys").any(|other| other == key) {
            let path = term.at("matchLabelKeys").index(i);
            errors.invalid(path, key, "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
    if term.str("topologyKey").is_empty() {
        errors.required(term.at("topologyKey"), "can not be empty");
    }
    label_name(term, "topologyKey", errors);
}

/// How often a selector speaks of a label. The merge of `matchLabelKeys` has added one expression.
fn times_selected(selector: &At<'_>, key: &str) -> usize {
    let expressions = selector.list("matchExpressions").iter();
    let expressions = expressions.filter(|e| e.get("key").and_then(Value::as_str) == Some(key)).count();
    expressions + usize::from(selector.value.get("matchLabels").is_some_and(|l| l.get(key).is_some()))
}

/// `spec.topologySpreadConstraints`; `merged` for Pods, whose label keys are in the selector.
pub(super) fn topology_spread(spec: &At<'_>, merged: bool, errors: &mut Errors) {
    let all: Vec<At<'_>> = spec.items("topologySpreadConstraints").collect();
    for (i, at) in all.iter().enumerate() {
        let skew = at.int("maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.invalid(at.at("maxSkew"), skew, "must be greater than zero");
        }
        let (key, action) = (at.str("topologyKey"), at.str("whenUnsatisfiable"));
        if key.is_empty() {
            errors.required(at.at("topologyKey"), "can not be empty");
        }
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            errors.not_supported(at.at("whenUnsatisfiable"), action, &["DoNotSchedule", "ScheduleAnyway"]);
        }
        if all[i + 1..]
            .iter()
            .any(|other| other.str("topologyKey") == key && other.str("whenUnsatisfiable") == action)
        {
            errors.duplicate(at.at("{topologyKey, whenUnsatisfiable}"), format!("{{{key}, {action}}}"));
        }
        if let Some(domains) = at.int("minDomains") {
            if domains <= 0 {
                errors.invalid(at.at("minDomains"), domains, "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.invalid(at.at("minDomains"), domains, why);
            }
        }
        errors.optional_one_of(at, "nodeAffinityPolicy", &["Honor", "Ignore"]);
        errors.optional_one_of(at, "nodeTaintsPolicy", &["Honor", "Ignore"]);
        if !at.list("matchLabelKeys").is_empty() && !at.has("labelSelector") {
            errors.forbidden(at.at("matchLabelKeys"), "must not be specified when labelSelector is not set");
        }
        let selector = at.child("labelSelector");
        for (i, label) in at.strings("matchLabelKeys").enumerate() {
            let path = at.at("matchLabelKeys").index(i);
            errors.each(&path, label, names::is_qualified_name(label));
            if times_selected(&selector, label) > usize::from(merged) {
                errors.invalid(path, label, "exists in both matchLabelKeys and labelSelector");
            }
        }
        label_selector(at.get("labelSelector"), errors);
    }
}

/// A list of tolerations.
pub(super) fn tolerations(holder: &At<'_>, list: &str, errors: &mut Errors) {
    for at in holder.items(list) {
        let (key, operator, value, effect) =
            (at.str("key"), at.str("operator"), at.str("value"), at.str("effect"));
        errors.checked(&at, "key", names::is_qualified_name);
        if key.is_empty() && operator != "Exists" {
            let why =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(at.at("operator"), operator, why);
        }
        if at.has("tolerationSeconds") && effect != "NoExecute" {
            errors.invalid(
                at.at("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        match operator {
            "" | "Equal" => {
                let messages = names::is_label_value(value);
                if !messages.is_empty() {
                    errors.invalid(at.at("operator"), value, messages.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                errors.invalid(
                    at.at("operator"),
                    at.value.clone(),
                    "value must be empty when `operator` is 'Exists'",
                );
            }
            "Exists" => {}
            other => errors.not_supported(at.at("operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            errors.optional_one_of(&at, "effect", TAINT_EFFECTS);
        }
    }
}

/// Taints of a Node; upstream reports them below `metadata`.
pub(super) fn taints(spec: &At<'_>, path: &Path, errors: &mut Errors) {
    let mut seen: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (i, taint) in spec.list("taints").iter().enumerate() {
        let at = At::new(Some(taint), path.index(i));
        let (key, effect) = (at.str("key"), at.str("effect"));
        label_name(&at, "key", errors);
        let messages = names::is_label_value(at.str("value"));
        if !messages.is_empty() {
            errors.invalid(at.at("value"), at.str("value"), messages.join(";"));
        }
        errors.one_of(&at, "effect", TAINT_EFFECTS);
        if seen.contains(&(effect, key)) {
            let mut error = FieldError::duplicate(at.path.clone(), taint.clone());
            error.detail = "taints must be unique by key and effect pair".into();
            errors.push(error);
        }
        seen.insert((effect, key));
    }
}
