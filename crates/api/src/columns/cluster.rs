//! Columns of kinds that shape the cluster itself.

use super::*;

pub(super) const WEBHOOKS: &[Row] = &[NAME, i("Webhooks", |o, _| size(o, "/webhooks").into()), AGE];

pub(super) const VALIDATING_POLICY: &[Row] = &[
    NAME,
    i("Validations", |o, _| size(o, "/spec/validations").into()),
    s("ParamKind", |o, _| param_kind(o).into()),
    AGE,
];

pub(super) const MUTATING_POLICY: &[Row] = &[
    NAME,
    i("Mutations", |o, _| size(o, "/spec/mutations").into()),
    s("ParamKind", |o, _| param_kind(o).into()),
    AGE,
];

pub(super) const POLICY_BINDING: &[Row] = &[
    NAME,
    s("PolicyName", |o, _| text(o, "/spec/policyName").into()),
    s("ParamRef", |o, _| param_ref(o).into()),
    AGE,
];

pub(super) const SIGNING_REQUEST: &[Row] = &[
    NAME,
    AGE,
    s("SignerName", |o, _| or(text(o, "/spec/signerName"), NONE).into()),
    s("Requestor", |o, _| text(o, "/spec/username").into()),
    s("RequestedDuration", |o, _| {
        let seconds = o.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
        seconds.map_or(NONE.to_owned(), human_duration).into()
    }),
    s("Condition", |o, _| request_status(o).into()),
];

pub(super) const RUNTIME_CLASS: &[Row] = &[NAME, s("Handler", |o, _| text(o, "/handler").into()), AGE];

pub(super) const FLOW_SCHEMA: &[Row] = &[
    NAME,
    s("PriorityLevel", |o, _| text(o, "/spec/priorityLevelConfiguration/name").into()),
    s("MatchingPrecedence", |o, _| number(o, "/spec/matchingPrecedence").into()),
    s("DistinguisherMethod", |o, _| or(text(o, "/spec/distinguisherMethod/type"), NONE).into()),
    AGE,
    s("MissingPL", |o, _| {
        let dangling = crate::pod::condition(o, "Dangling");
        dangling.map_or("?", |condition| text(condition, "/status")).into()
    }),
];

pub(super) const PRIORITY_LEVEL: &[Row] = &[
    NAME,
    s("Type", |o, _| text(o, "/spec/type").into()),
    s("NominalConcurrencyShares", |o, _| {
        number_or_none(
            o,
            if text(o, "/spec/type") == "Exempt" {
                "/spec/exempt/nominalConcurrencyShares"
            } else {
                "/spec/limited/nominalConcurrencyShares"
            },
        )
    }),
    s("Queues", |o, _| number_or_none(o, "/spec/limited/limitResponse/queuing/queues")),
    s("HandSize", |o, _| number_or_none(o, "/spec/limited/limitResponse/queuing/handSize")),
    s("QueueLengthLimit", |o, _| number_or_none(o, "/spec/limited/limitResponse/queuing/queueLengthLimit")),
    AGE,
];

pub(super) const API_SERVICE: &[Row] = &[
    NAME,
    s("Service", |o, _| match o.pointer("/spec/service").filter(|service| service.is_object()) {
        Some(service) => format!("{}/{}", text(service, "/namespace"), text(service, "/name")).into(),
        None => "Local".into(),
    }),
    s("Available", |o, _| match crate::pod::condition(o, "Available") {
        Some(condition) if text(condition, "/status") != "True" => {
            format!("{} ({})", text(condition, "/status"), text(condition, "/reason")).into()
        }
        Some(_) => "True".into(),
        None => "Unknown".into(),
    }),
    AGE,
];

pub(super) const RESOURCE_CLAIM: &[Row] = &[NAME, s("State", |o, _| claim_state(o).into()), AGE];

pub(super) const RESOURCE_SLICE: &[Row] = &[
    NAME,
    s("Node", |o, _| text(o, "/spec/nodeName").into()),
    s("Driver", |o, _| text(o, "/spec/driver").into()),
    s("Pool", |o, _| text(o, "/spec/pool/name").into()),
    AGE,
];

pub(super) const NAME_AND_AGE: &[Row] = &[NAME, AGE];

fn param_kind(policy: &Value) -> String {
    match policy.pointer("/spec/paramKind").filter(|kind| kind.is_object()) {
        Some(kind) => format!("{}/{}", text(kind, "/apiVersion"), text(kind, "/kind")),
        None => UNSET.to_owned(),
    }
}

fn param_ref(binding: &Value) -> String {
    let Some(reference) = binding.pointer("/spec/paramRef").filter(|at| at.is_object()) else {
        return UNSET.to_owned();
    };
    match (text(reference, "/namespace"), text(reference, "/name")) {
        (_, "") => selector_at(reference, "/selector"),
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

fn request_status(request: &Value) -> String {
    let has = |kind| crate::pod::condition(request, kind).is_some();
    let decided = match () {
        () if has("Denied") => "Denied",
        () if has("Approved") => "Approved",
        () => "Pending",
    };
    let issued = if text(request, "/status/certificate").is_empty() { "" } else { ",Issued" };
    format!("{decided}{}{issued}", if has("Failed") { ",Failed" } else { "" })
}

fn number_or_none(object: &Value, pointer: &str) -> Value {
    object.pointer(pointer).and_then(Value::as_i64).map_or(NONE.to_owned(), |n| n.to_string()).into()
}

fn claim_state(claim: &Value) -> String {
    let mut states = Vec::new();
    if meta::is_deleting(claim) {
        states.push("deleted");
    }
    if claim.pointer("/status/allocation").is_some() {
        states.push("allocated");
        if size(claim, "/status/reservedFor") > 0 {
            states.push("reserved");
        }
    } else if states.is_empty() {
        states.push("pending");
    }
    states.join(",")
}
