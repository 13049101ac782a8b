//! The group `admissionregistration.k8s.io`: webhooks, policies and their bindings. Expressions are
//! compiled where they are evaluated, not here.

use super::affinity;
use super::at::{At, Errors};
use crate::field::FieldError;
use crate::kinds::Strategy;
use crate::names;
use serde_json::Value;

const MATCH_CONDITIONS_MAX: usize = 64;
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
/// What a mutation may be about.
const CHANGES: &[&str] = &["*", "CONNECT", "CREATE", "UPDATE"];
const AUDIT_ANNOTATIONS_MAX: usize = 20;
/// Shorter than an annotation's value may be, for expressions make longer texts.
const VALUE_EXPRESSION_BYTES_MAX: usize = 5 * 1024;
const REASONS: &[&str] = &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];

pub(super) fn strategy(kind: &str) -> Strategy {
    let none = Strategy::default();
    match kind {
        "ValidatingWebhookConfiguration" => Strategy { validate: |value| webhooks(value, false), ..none },
        "MutatingWebhookConfiguration" => Strategy { validate: |value| webhooks(value, true), ..none },
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
            service_path(&service, errors);
            errors.range(&service, "port", 1, 65535);
        }
    }
}

/// Segments between slashes, each a name; the last slash may end the path.
fn service_path(service: &At<'_>, errors: &mut Errors) {
    let path = service.str("path");
    if path.is_empty() || path == "/" {
        return;
    }
    let mut invalid = |why: String| errors.invalid(service.at("path"), path, why);
    let Some(segments) = path.strip_prefix('/') else { return invalid("must start with a '/'".to_owned()) };
    for (i, segment) in segments.strip_suffix('/').unwrap_or(segments).split('/').enumerate() {
        match segment {
            "" => invalid(format!("segment[{i}] may not be empty")),
            segment => {
                names::is_dns1123_subdomain(segment)
                    .into_iter()
                    .for_each(|why| invalid(format!("segment[{i}]: {why}")));
            }
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
    wildcards(at, errors);
    errors.optional_one_of(at, "scope", &["*", "Cluster", "Namespaced"]);
}

/// Resources stand beside no wildcard that is about them too.
fn wildcards(at: &At<'_>, errors: &mut Errors) {
    let (given, path) = (at.strings("resources").collect::<Vec<_>>(), at.at("resources"));
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, value) in given.iter().enumerate() {
        let Some((resource, subresource)) = value.split_once('/') else { continue };
        for wildcard in [(resource, "*"), ("*", subresource)] {
            if seen.contains(&wildcard) {
                let why = format!("if '{}/{}' is present, must not specify {value}", wildcard.0, wildcard.1);
                errors.invalid(path.index(i), *value, why);
            }
        }
        seen.push((resource, subresource));
    }
    if given.len() > 1 && given.contains(&"*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        errors.invalid(path.clone(), given.clone(), why);
    }
    if given.contains(&"*") && given.iter().any(|value| *value != "*" && !value.contains('/')) {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(path, given, why);
    }
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
        if seen.contains(&name) && !name.is_empty() {
            errors.duplicate(condition.at("name"), name);
        }
        seen.push(name);
        expression(&condition, "expression", "", errors);
    }
}

fn expression(at: &At<'_>, field: &str, why: &str, errors: &mut Errors) {
    if at.str(field).trim().is_empty() {
        errors.required(at.at(field), why);
    }
}

/// The kind of a policy's parameters.
fn param_kind(kind: &At<'_>, errors: &mut Errors) {
    if errors.need(kind, "apiVersion") {
        let (text, path) = (kind.str("apiVersion"), kind.at("apiVersion"));
        let (group, version) = text.split_once('/').unwrap_or(("", text));
        if version.contains('/') {
            errors.invalid(path, text, format!("unexpected GroupVersion string: {text}"));
        } else {
            if !group.is_empty() {
                errors.each(&path, group, names::is_dns1123_subdomain(group));
            }
            match version {
                "" => errors.invalid(path, text, "version must be specified"),
                _ => errors.each(&path, version, names::is_dns1035_label(version)),
            }
        }
    }
    if errors.need(kind, "kind") {
        let own = kind.str("kind");
        for why in names::is_dns1035_label(&own.to_lowercase()) {
            let why = format!("may have mixed case, but should otherwise match: {why}");
            errors.invalid(kind.at("kind"), own, why);
        }
    }
}

/// Mutations are not about everything that rules can name.
fn changes(rules: &At<'_>, errors: &mut Errors) {
    let path = rules.at("resourceRules").child("operations");
    for rule in rules.items("resourceRules") {
        for operation in rule.strings("operations").filter(|operation| !CHANGES.contains(operation)) {
            errors.not_supported(path.clone(), operation, CHANGES);
        }
    }
}

/// What policies of both kinds have.
fn policy(spec: &At<'_>, errors: &mut Errors) {
    errors.one_of(spec, "failurePolicy", &["Fail", "Ignore"]);
    if let Some(kind) = spec.get("paramKind") {
        param_kind(&kind, errors);
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
    for variable in spec.items("variables") {
        let name = variable.str("name");
        if name.trim().is_empty() {
            errors.required(variable.at("name"), "name is not specified");
        } else if !names::is_c_identifier(name).is_empty() || skeg_cel::KEYWORDS.contains(&name) {
            errors.invalid(variable.at("name"), name, "name is not a valid CEL identifier");
        }
        expression(&variable, "expression", "expression is not specified", errors);
    }
}

fn match_resources(at: &At<'_>, errors: &mut Errors) {
    affinity::label_selector(at.get("namespaceSelector"), errors);
    affinity::label_selector(at.get("objectSelector"), errors);
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in at.items(list) {
            let (path, mut seen) = (rule.at("resourceNames"), Vec::new());
            for (i, name) in rule.strings("resourceNames").enumerate() {
                errors.each(&path.index(i), name, names::is_path_segment_name(name));
                if seen.contains(&name) {
                    errors.duplicate(path.index(i), name);
                }
                seen.push(name);
            }
            self::rule(&rule, errors);
        }
    }
    if at.has("matchPolicy") {
        errors.one_of(at, "matchPolicy", &["Equivalent", "Exact"]);
    }
}

fn validating_policy(value: &Value) -> Vec<FieldError> {
    let (spec, mut errors) = (At::root(value).child("spec"), Errors::default());
    policy(&spec, &mut errors);
    if spec.list("validations").is_empty() && spec.list("auditAnnotations").is_empty() {
        for field in ["validations", "auditAnnotations"] {
            let why = "validations or auditAnnotations must contain at least one item";
            errors.required(spec.at(field), why);
        }
    }
    for validation in spec.items("validations") {
        expression(&validation, "expression", "expression is not specified", &mut errors);
        let text = validation.str("messageExpression");
        if !text.is_empty() && text.trim().is_empty() {
            errors.invalid(validation.at("messageExpression"), text, "must be non-empty if specified");
        }
        let message = validation.str("message");
        if !message.is_empty() && message.trim().is_empty() {
            errors.invalid(validation.at("message"), message, "message must be non-empty if specified");
        } else if message.trim().contains(['\n', '\r']) {
            errors.invalid(validation.at("message"), message, "message must not contain line breaks");
        }
        errors.optional_one_of(&validation, "reason", REASONS);
    }
    audit_annotations(crate::meta::name(value), &spec, &mut errors);
    errors.0
}

fn audit_annotations(policy: &str, spec: &At<'_>, errors: &mut Errors) {
    let given = spec.list("auditAnnotations");
    if given.len() > AUDIT_ANNOTATIONS_MAX {
        let why = format!("must not have more than {AUDIT_ANNOTATIONS_MAX} auditAnnotations");
        errors.invalid(spec.at("auditAnnotations"), given.to_vec(), why);
    }
    let mut seen: Vec<&str> = Vec::new();
    for annotation in spec.items("auditAnnotations") {
        let key = annotation.str("key");
        if policy.is_empty() {
            errors.invalid(annotation.at("key"), key, "requires metadata.name be non-empty");
        } else {
            let whole = format!("{policy}/{key}");
            errors.each(&annotation.at("key"), &whole, names::is_qualified_name(&whole));
        }
        if annotation.str("valueExpression").trim().len() > VALUE_EXPRESSION_BYTES_MAX {
            let why = format!("must not exceed {VALUE_EXPRESSION_BYTES_MAX} bytes in length");
            errors.required(annotation.at("valueExpression"), &why);
        }
        expression(&annotation, "valueExpression", "valueExpression is not specified", errors);
        if seen.contains(&key) {
            errors.duplicate(annotation.at("key"), key);
        }
        seen.push(key);
    }
}

fn mutating_policy(value: &Value) -> Vec<FieldError> {
    let (spec, mut errors) = (At::root(value).child("spec"), Errors::default());
    policy(&spec, &mut errors);
    changes(&spec.child("matchConstraints"), &mut errors);
    errors.one_of(&spec, "reinvocationPolicy", &["IfNeeded", "Never"]);
    if spec.list("mutations").is_empty() {
        errors.required(spec.at("mutations"), "mutations must contain at least one item");
    }
    for mutation in spec.items("mutations") {
        let kind = mutation.str("patchType");
        let (field, other) = match kind {
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
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
        if mutation.has(other) {
            let why = format!("must not be specified when patchType is {kind}");
            errors.invalid(mutation.at(other), format!("{{{other}}}"), why);
        }
        match mutation.get(field) {
            None => {
                let why = format!("must be specified when patchType is {kind}");
                errors.required(mutation.at(field), &why);
            }
            Some(change) => expression(&change, "expression", "expression is not specified", &mut errors),
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
                for field in ["name", "selector"] {
                    errors.forbidden(reference.at(field), "name and selector are mutually exclusive");
                }
            }
            _ => {}
        }
        errors.checked(&reference, "name", names::is_path_segment_name);
        affinity::label_selector(reference.get("selector"), &mut errors);
        errors.one_of(&reference, "parameterNotFoundAction", &["Deny", "Allow"]);
    }
    if let Some(resources) = spec.get("matchResources") {
        match_resources(&resources, &mut errors);
        if !validating {
            changes(&resources, &mut errors);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_of_services_are_names_between_slashes() {
        for (path, wrong) in [
            ("", None),
            ("/", None),
            ("/a/b.c/", None),
            ("a", Some("must start with a '/'")),
            ("//", Some("segment[0] may not be empty")),
            ("/a//b", Some("segment[1] may not be empty")),
            ("/x y", Some("segment[0]: a lowercase RFC 1123 subdomain must consist of")),
        ] {
            let service = json!({"name": "s", "namespace": "n", "path": path});
            let config = json!({"service": service});
            let mut errors = Errors::default();
            client_config(&At::root(&config), &mut errors);
            let told: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
            assert_eq!(told.len(), usize::from(wrong.is_some()), "{path}: {told:?}");
            assert!(wrong.is_none_or(|wrong| told[0].contains(wrong)), "{path}: {told:?}");
        }
    }
}
