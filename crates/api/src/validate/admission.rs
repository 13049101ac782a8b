//! The group `admissionregistration.k8s.io`: webhooks, policies and their bindings. Expressions are
//! not compiled here.

use super::affinity;
use super::at::{At, Errors};
use super::warnings;
use crate::field::FieldError;
use crate::kinds::Strategy;
use crate::names;
use serde_json::Value;

const MATCH_CONDITIONS_MAX: usize = 64;
const OPERATIONS: &[&str] = &["CONNECT", "CREATE", "DELETE", "UPDATE", "*"];
const REASONS: &[&str] = &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];

pub(super) fn strategy(kind: &str) -> Strategy {
    let none = Strategy::default();
    match kind {
        "ValidatingWebhookConfiguration" => {
            Strategy { validate: |value| webhooks(value, false), warnings: warnings::for_webhooks, ..none }
        }
        "MutatingWebhookConfiguration" => {
            Strategy { validate: |value| webhooks(value, true), warnings: warnings::for_webhooks, ..none }
        }
        "ValidatingAdmissionPolicy" => Strategy { validate: validating_policy, ..none },
        "MutatingAdmissionPolicy" => Strategy { validate: mutating_policy, ..none },
        "ValidatingAdmissionPolicyBinding" => Strategy { validate: |value| binding(value, true), ..none },
        "MutatingAdmissionPolicyBinding" => Strategy { validate: |value| binding(value, false), ..none },
        _ => none,
    }
}

fn webhooks(value: &Value, mutating: bool) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let mut seen: Vec<&str> = Vec::new();
    for hook in root.items("webhooks") {
        let name = hook.str("name");
        if errors.need(&hook, "name") {
            errors.checked(&hook, "name", names::is_dns1123_subdomain);
            if name.split('.').count() < 3 {
                let why = "should be a domain with at least three segments separated by dots";
                errors.invalid(hook.at("name"), name, why);
            }
        }
        if seen.contains(&name) {
            errors.duplicate(hook.at("name"), name);
        }
        seen.push(name);
        webhook(&hook, mutating, &mut errors);
    }
    errors.0
}

fn webhook(hook: &At<'_>, mutating: bool, errors: &mut Errors) {
    hook.items("rules").for_each(|rule| self::rule(&rule, errors));
    errors.optional_one_of(hook, "failurePolicy", &["Fail", "Ignore"]);
    errors.optional_one_of(hook, "matchPolicy", &["Equivalent", "Exact"]);
    match hook.str("sideEffects") {
        "" => errors.required(hook.at("sideEffects"), "must specify one of None, NoneOnDryRun"),
        "None" | "NoneOnDryRun" => {}
        other => errors.not_supported(hook.at("sideEffects"), other, &["None", "NoneOnDryRun"]),
    }
    if mutating {
        errors.optional_one_of(hook, "reinvocationPolicy", &["IfNeeded", "Never"]);
    }
    if let Some(seconds) = hook.int("timeoutSeconds").filter(|seconds| !(1..=30).contains(seconds)) {
        let why = "the timeout value must be between 1 and 30 seconds";
        errors.invalid(hook.at("timeoutSeconds"), seconds, why);
    }
    affinity::label_selector(hook.get("namespaceSelector"), errors);
    affinity::label_selector(hook.get("objectSelector"), errors);
    client_config(&hook.child("clientConfig"), errors);
    let (versions, path) =
        (hook.strings("admissionReviewVersions").collect::<Vec<_>>(), hook.at("admissionReviewVersions"));
    if versions.is_empty() {
        errors.required(path, "must specify one of v1, v1beta1");
    } else {
        for (i, version) in versions.iter().enumerate() {
            if versions[..i].contains(version) {
                errors.duplicate(path.index(i), *version);
            }
            errors.each(&path.index(i), version, names::is_dns1035_label(version));
        }
        if !versions.iter().any(|version| matches!(*version, "v1" | "v1beta1")) {
            errors.invalid(path, versions, "must include at least one of v1, v1beta1");
        }
    }
    match_conditions(hook, errors);
}

/// Where to reach a webhook or an extension server.
pub(super) fn client_config(at: &At<'_>, errors: &mut Errors) {
    match (at.get("url"), at.get("service")) {
        (Some(_), Some(_)) | (None, None) => {
            errors.required(at.path.clone(), "exactly one of url or service is required");
        }
        (Some(url), None) => self::url(&url, errors),
        (None, Some(service)) => {
            errors.need(&service, "name");
            errors.need(&service, "namespace");
            let path = service.str("path");
            if service.has("path") && !path.starts_with('/') {
                errors.invalid(service.at("path"), path, "must start with a '/'");
            }
            errors.range(&service, "port", 1, 65535);
        }
    }
}

fn url(at: &At<'_>, errors: &mut Errors) {
    let text = at.value.as_str().unwrap_or_default();
    let Some(rest) = text.strip_prefix("https://") else {
        let scheme = text.split("://").next().filter(|_| text.contains("://")).unwrap_or_default();
        let why = "'https' is the only allowed URL scheme; desired format: https://host[/path]";
        errors.invalid(at.path.clone(), scheme, why);
        return;
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    for (wrong, why) in [
        (authority.is_empty(), "host must be specified; desired format: https://host[/path]"),
        (authority.contains('@'), "user information is not permitted in the URL"),
        (rest.contains('#'), "fragments are not permitted in the URL"),
        (rest.contains('?'), "query parameters are not permitted in the URL"),
    ] {
        if wrong {
            errors.invalid(at.path.clone(), text, why);
        }
    }
}

/// Operations and resources; a name stands beside `*` in none of the lists.
fn rule(at: &At<'_>, errors: &mut Errors) {
    for field in ["operations", "apiGroups", "apiVersions", "resources"] {
        let given: Vec<&str> = at.strings(field).collect();
        let alone = "if '*' is present, must not specify other";
        if given.is_empty() {
            errors.required(at.at(field), "");
        } else if field != "resources" && given.len() > 1 && given.contains(&"*") {
            let what = match field {
                "operations" => "operations",
                "apiGroups" => "API groups",
                _ => "API versions",
            };
            errors.invalid(at.at(field), given.clone(), format!("{alone} {what}"));
        }
        for (i, value) in given.iter().enumerate() {
            match field {
                "operations" if !OPERATIONS.contains(value) => {
                    errors.not_supported(at.at(field).index(i), *value, OPERATIONS);
                }
                "apiVersions" | "resources" if value.is_empty() => {
                    errors.required(at.at(field).index(i), "");
                }
                _ => {}
            }
        }
    }
    errors.optional_one_of(at, "scope", &["*", "Cluster", "Namespaced"]);
}

fn match_conditions(at: &At<'_>, errors: &mut Errors) {
    let count = at.list("matchConditions").len();
    if count > MATCH_CONDITIONS_MAX {
        errors.push(FieldError::too_many(at.at("matchConditions"), count, MATCH_CONDITIONS_MAX));
    }
    let mut seen: Vec<&str> = Vec::new();
    for condition in at.items("matchConditions") {
        let name = condition.str("name");
        if errors.need(&condition, "name") {
            errors.checked(&condition, "name", names::is_qualified_name);
        }
        if seen.contains(&name) {
            errors.duplicate(condition.at("name"), name);
        }
        seen.push(name);
        expression(&condition, "expression", errors);
    }
}

fn expression(at: &At<'_>, field: &str, errors: &mut Errors) {
    if at.str(field).trim().is_empty() {
        errors.required(at.at(field), "");
    }
}

/// What policies of both kinds have.
fn policy(spec: &At<'_>, errors: &mut Errors) {
    errors.one_of(spec, "failurePolicy", &["Fail", "Ignore"]);
    if let Some(kind) = spec.get("paramKind") {
        errors.need(&kind, "apiVersion");
        if errors.need(&kind, "kind") {
            let name = kind.str("kind").to_lowercase();
            errors.each(&kind.at("kind"), kind.str("kind"), names::is_dns1035_label(&name));
        }
    }
    match spec.get("matchConstraints") {
        None => errors.required(spec.at("matchConstraints"), ""),
        Some(resources) => {
            match_resources(&resources, errors);
            if resources.list("resourceRules").is_empty() {
                errors.required(resources.at("resourceRules"), "");
            }
        }
    }
    match_conditions(spec, errors);
    let mut seen: Vec<&str> = Vec::new();
    for variable in spec.items("variables") {
        let name = variable.str("name");
        if errors.need(&variable, "name") && !names::is_c_identifier(name).is_empty() {
            errors.invalid(variable.at("name"), name, "name is not a valid CEL identifier");
        }
        if seen.contains(&name) {
            errors.duplicate(variable.at("name"), name);
        }
        seen.push(name);
        expression(&variable, "expression", errors);
    }
}

fn match_resources(at: &At<'_>, errors: &mut Errors) {
    affinity::label_selector(at.get("namespaceSelector"), errors);
    affinity::label_selector(at.get("objectSelector"), errors);
    for list in ["resourceRules", "excludeResourceRules"] {
        at.items(list).for_each(|rule| self::rule(&rule, errors));
    }
    if at.has("matchPolicy") {
        errors.one_of(at, "matchPolicy", &["Equivalent", "Exact"]);
    }
}

fn validating_policy(value: &Value) -> Vec<FieldError> {
    let (spec, mut errors) = (At::root(value).child("spec"), Errors::default());
    policy(&spec, &mut errors);
    if spec.list("validations").is_empty() && spec.list("auditAnnotations").is_empty() {
        let why = "validations or auditAnnotations must be non-empty";
        errors.required(spec.at("validations"), &format!("{why}; at least one of them is required"));
    }
    for validation in spec.items("validations") {
        expression(&validation, "expression", &mut errors);
        let message = validation.str("message");
        if validation.has("message") && message.trim().is_empty() {
            errors.invalid(validation.at("message"), message, "message must be non-empty if specified");
        } else if message.contains('\n') {
            errors.invalid(validation.at("message"), message, "message must not contain line breaks");
        }
        errors.optional_one_of(&validation, "reason", REASONS);
    }
    let mut seen: Vec<&str> = Vec::new();
    for annotation in spec.items("auditAnnotations") {
        let key = annotation.str("key");
        errors.need(&annotation, "key");
        if seen.contains(&key) {
            errors.duplicate(annotation.at("key"), key);
        }
        seen.push(key);
        expression(&annotation, "valueExpression", &mut errors);
    }
    errors.0
}

fn mutating_policy(value: &Value) -> Vec<FieldError> {
    let (spec, mut errors) = (At::root(value).child("spec"), Errors::default());
    policy(&spec, &mut errors);
    errors.one_of(&spec, "reinvocationPolicy", &["IfNeeded", "Never"]);
    if spec.list("mutations").is_empty() {
        errors.required(spec.at("mutations"), "mutations must contain at least one item");
    }
    for mutation in spec.items("mutations") {
        let field = match mutation.str("patchType") {
            "ApplyConfiguration" => "applyConfiguration",
            "JSONPatch" => "jsonPatch",
            "" => {
                errors.required(mutation.at("patchType"), "");
                continue;
            }
            other => {
                let known = &["ApplyConfiguration", "JSONPatch"];
                errors.not_supported(mutation.at("patchType"), other, known);
                continue;
            }
        };
        match mutation.get(field) {
            None => {
                let why = format!("{field} is required when patchType is {}", mutation.str("patchType"));
                errors.required(mutation.at(field), &why);
            }
            Some(change) => expression(&change, "expression", &mut errors),
        }
    }
    errors.0
}

fn binding(value: &Value, validating: bool) -> Vec<FieldError> {
    let (spec, mut errors) = (At::root(value).child("spec"), Errors::default());
    if errors.need(&spec, "policyName") {
        errors.checked(&spec, "policyName", names::is_dns1123_subdomain);
    }
    if let Some(reference) = spec.get("paramRef") {
        match (reference.str("name").is_empty(), reference.has("selector")) {
            (true, false) => {
                errors.required(reference.path.clone(), "one of name or selector must be specified");
            }
            (false, true) => {
                errors.forbidden(reference.at("name"), "name and selector are mutually exclusive");
            }
            _ => {}
        }
        errors.checked(&reference, "name", names::is_path_segment_name);
        affinity::label_selector(reference.get("selector"), &mut errors);
        errors.one_of(&reference, "parameterNotFoundAction", &["Deny", "Allow"]);
    }
    if let Some(resources) = spec.get("matchResources") {
        match_resources(&resources, &mut errors);
    }
    if validating {
        actions(&spec, &mut errors);
    }
    errors.0
}

fn actions(spec: &At<'_>, errors: &mut Errors) {
    let (given, path) = (spec.strings("validationActions").collect::<Vec<_>>(), spec.at("validationActions"));
    if given.is_empty() {
        errors.required(path, "at least one validation action is required");
        return;
    }
    for (i, action) in given.iter().enumerate() {
        if !matches!(*action, "Audit" | "Deny" | "Warn") {
            errors.not_supported(path.index(i), *action, &["Audit", "Deny", "Warn"]);
        }
        if given[..i].contains(action) {
            errors.duplicate(path.index(i), *action);
        }
    }
    if given.contains(&"Deny") && given.contains(&"Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.invalid(path, given, why);
    }
}
