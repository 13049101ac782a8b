//! FlowSchema and PriorityLevelConfiguration.

use super::at::{At, Errors, same};
use crate::field::{FieldError, Path};
use crate::kinds::Strategy;
use crate::{meta, names};
use serde_json::{Value, json};

const PRECEDENCE_MAX: i64 = 10_000;
const QUEUES_MAX: i64 = 10_000_000;
const VERBS: &[&str] =
    &["get", "list", "create", "update", "delete", "deletecollection", "patch", "watch", "proxy"];

pub(super) fn strategy(kind: &str) -> Strategy {
    match kind {
        "FlowSchema" => Strategy { validate: flow_schema, ..Strategy::default() },
        "PriorityLevelConfiguration" => Strategy { validate: priority_level, ..Strategy::default() },
        _ => Strategy::default(),
    }
}

fn flow_schema(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    let precedence = spec.int("matchingPrecedence").unwrap_or(0);
    if precedence <= 0 {
        errors.invalid(spec.at("matchingPrecedence"), precedence, "must be a positive value");
    }
    if precedence > PRECEDENCE_MAX {
        let why = format!("must not be greater than {PRECEDENCE_MAX}");
        errors.invalid(spec.at("matchingPrecedence"), precedence, why);
    }
    if precedence == 1 && meta::name(value) != "exempt" {
        errors.invalid(
            spec.at("matchingPrecedence"),
            1,
            "only the schema named 'exempt' may have matchingPrecedence 1",
        );
    }
    if let Some(method) = spec.get("distinguisherMethod")
        && !matches!(method.str("type"), "ByUser" | "ByNamespace")
    {
        errors.not_supported(method.at("type"), method.str("type"), &["ByNamespace", "ByUser"]);
    }
    let level = spec.child("priorityLevelConfiguration");
    if errors.need(&level, "name") {
        errors.checked(&level, "name", names::is_dns1123_subdomain);
    }
    spec.items("rules").for_each(|at| rules(&at, &mut errors));
    errors.0
}

fn rules(at: &At<'_>, errors: &mut Errors) {
    if at.list("subjects").is_empty() {
        errors.required(at.at("subjects"), "subjects must contain at least one value");
    }
    at.items("subjects").for_each(|subject| self::subject(&subject, errors));
    if at.list("resourceRules").is_empty() && at.list("nonResourceRules").is_empty() {
        errors.required(
            at.path.clone(),
            "at least one of resourceRules and nonResourceRules has to be non-empty",
        );
    }
    for rule in at.items("resourceRules") {
        verbs(&rule, errors);
        wildcard(&rule, "apiGroups", "resource rules must supply at least one api group", errors);
        wildcard(&rule, "resources", "resource rules must supply at least one resource", errors);
        if rule.list("namespaces").is_empty() && !rule.bool("clusterScope") {
            let why = "resource rules that are not cluster scoped must supply at least one namespace";
            errors.required(rule.at("namespaces"), why);
        }
        for (i, namespace) in rule.strings("namespaces").enumerate().filter(|(_, name)| *name != "*") {
            errors.each(&rule.at("namespaces").index(i), namespace, names::is_dns1123_label(namespace));
        }
    }
    for rule in at.items("nonResourceRules") {
        verbs(&rule, errors);
        wildcard(&rule, "nonResourceURLs", "nonResourceURLs must contain at least one value", errors);
        for (i, url) in rule.strings("nonResourceURLs").enumerate().filter(|(_, url)| *url != "*") {
            if !url.starts_with('/') {
                errors.invalid(rule.at("nonResourceURLs").index(i), url, "must start with slash");
            }
        }
    }
}

fn subject(at: &At<'_>, errors: &mut Errors) {
    let fields = ["user", "group", "serviceAccount"];
    let own = match at.str("kind") {
        "User" => "user",
        "Group" => "group",
        "ServiceAccount" => "serviceAccount",
        other => {
            errors.not_supported(at.at("kind"), other, &["Group", "ServiceAccount", "User"]);
            return;
        }
    };
    let Some(who) = at.get(own) else {
        let why = format!("{own} is required when subject kind is '{}'", at.str("kind"));
        errors.required(at.at(own), &why);
        return;
    };
    errors.need(&who, "name");
    if own == "serviceAccount" {
        errors.need(&who, "namespace");
        if who.str("name") != "*" {
            errors.checked(&who, "name", names::is_dns1123_subdomain);
        }
        errors.checked(&who, "namespace", names::is_dns1123_label);
    }
    for other in fields.iter().filter(|field| **field != own && at.has(field)) {
        let why = format!("{other} is forbidden when subject kind is not '{}'", other);
        errors.forbidden(at.at(other), why);
    }
}

fn verbs(rule: &At<'_>, errors: &mut Errors) {
    wildcard(rule, "verbs", "verbs must contain at least one value", errors);
    let given: Vec<&str> = rule.strings("verbs").collect();
    if !given.contains(&"*") && given.iter().any(|verb| !VERBS.contains(verb)) {
        errors.not_supported(rule.at("verbs"), given, VERBS);
    }
}

/// A list that is not empty, and in which `*` stands alone.
fn wildcard(at: &At<'_>, field: &str, empty: &str, errors: &mut Errors) {
    let given: Vec<&str> = at.strings(field).collect();
    if given.is_empty() {
        errors.required(at.at(field), empty);
    } else if given.len() > 1 && given.contains(&"*") {
        errors.invalid(at.at(field), given, "if '*' is present, must not specify other values");
    }
}

fn priority_level(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let (spec, name) = (root.child("spec"), meta::name(value));
    match spec.str("type") {
        "Exempt" => {
            if spec.has("limited") {
                let why = "must be nil if the type is not Limited";
                errors.forbidden(spec.at("limited"), why);
            }
            if let Some(exempt) = spec.get("exempt") {
                shares(&exempt, &mut errors);
            }
        }
        "Limited" => {
            if spec.has("exempt") {
                errors.forbidden(spec.at("exempt"), "must be nil if the type is Limited");
            }
            match spec.get("limited") {
                Some(limited) => self::limited(&limited, &mut errors),
                None => errors.required(spec.at("limited"), "must not be empty when type is Limited"),
            }
        }
        other => errors.not_supported(spec.at("type"), other, &["Exempt", "Limited"]),
    }
    if name == "exempt" && spec.str("type") != "Exempt" {
        errors.invalid(
            spec.at("type"),
            spec.str("type"),
            "type must be 'Exempt' if and only if name is 'exempt'",
        );
    }
    if name != "exempt" && spec.str("type") == "Exempt" {
        errors.invalid(spec.at("type"), "Exempt", "type must be 'Exempt' if and only if name is 'exempt'");
    }
    let catch_all = json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "lendablePercent": 0,
        "limitResponse": {"type": "Reject"}}});
    if name == "catch-all" && !same(Some(spec.value), Some(&catch_all)) {
        let why = "spec of 'catch-all' must equal the fixed value";
        errors.invalid(Path::new("spec"), spec.value.clone(), why);
    }
    errors.0
}

fn shares(at: &At<'_>, errors: &mut Errors) {
    errors.not_negative(at, &["nominalConcurrencyShares"]);
    if let Some(percent) = at.int("lendablePercent").filter(|percent| !(0..=100).contains(percent)) {
        errors.invalid(at.at("lendablePercent"), percent, "must be between 0 and 100, inclusive");
    }
    if let Some(percent) = at.int("borrowingLimitPercent").filter(|percent| *percent < 0) {
        let why = "if specified, must be a non-negative integer";
        errors.invalid(at.at("borrowingLimitPercent"), percent, why);
    }
}

fn limited(at: &At<'_>, errors: &mut Errors) {
    shares(at, errors);
    let response = at.child("limitResponse");
    match response.str("type") {
        "Reject" => {
            if response.has("queuing") {
                errors.forbidden(
                    response.at("queuing"),
                    "must be nil if limited.limitResponse.type is not Limited",
                );
            }
        }
        "Queue" => match response.get("queuing") {
            Some(queuing) => self::queuing(&queuing, errors),
            None => {
                let why = "must not be empty if limited.limitResponse.type is Limited";
                errors.required(response.at("queuing"), why);
            }
        },
        other => errors.not_supported(response.at("type"), other, &["Queue", "Reject"]),
    }
}

fn queuing(at: &At<'_>, errors: &mut Errors) {
    let number = |field: &str| at.int(field).unwrap_or(0);
    for field in ["queueLengthLimit", "queues", "handSize"] {
        if number(field) <= 0 {
            errors.invalid(at.at(field), number(field), "must be positive");
        }
    }
    if number("queues") > QUEUES_MAX {
        let why = format!("must not be greater than {QUEUES_MAX}");
        errors.invalid(at.at("queues"), number("queues"), why);
    }
    if number("handSize") > number("queues") {
        let why = format!("should not be greater than queues ({})", number("queues"));
        errors.invalid(at.at("handSize"), number("handSize"), why);
    }
}
