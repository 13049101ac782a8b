//! The FlowSchemas and PriorityLevelConfigurations that every cluster has: the mandatory ones, which
//! stay as they are here, and the suggested ones, which stay so unless their annotation gives them
//! to the administrator.
//! Upstream counterpart: `k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap`, `pkg/registry/flowcontrol/ensurer`.

use super::{Wanted, replaced};
use crate::conditions;
use crate::resources;
use crate::server::ApiServer;
use serde_json::{Value, json};
use skeg_api::meta;
use skeg_base::Backoff;
use std::sync::Arc;
use std::time::Duration;

const SCHEMAS_PATH: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
const API_VERSION: &str = "flowcontrol.apiserver.k8s.io/v1";
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
/// The levels that cannot be given to the administrator, and their schemas.
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

/// Name, shares, percentage that is lent, and queues, hand size and length where requests wait.
type Level = (&'static str, u32, u32, Option<[u32; 3]>);

const LEVELS: [Level; 7] = [
    ("catch-all", 5, 0, None),
    ("system", 30, 33, Some([64, 6, 50])),
    ("node-high", 40, 25, Some([64, 6, 50])),
    ("leader-election", 10, 0, Some([16, 4, 50])),
    ("workload-high", 40, 50, Some([128, 6, 50])),
    ("workload-low", 100, 90, Some([128, 6, 50])),
    ("global-default", 20, 50, Some([128, 6, 50])),
];

/// Name, level, precedence, what flows are told apart by, subjects, and rules where they are not
/// everything.
type Schema = (&'static str, &'static str, u32, &'static str, &'static [&'static str], fn() -> Value);

const BY_USER: &str = "ByUser";
const BY_NAMESPACE: &str = "ByNamespace";
const EVERYBODY: &[&str] = &["Group system:unauthenticated", "Group system:authenticated"];

const SCHEMAS: [Schema; 13] = [
    ("exempt", "exempt", 1, "", &["Group system:masters"], everything),
    ("catch-all", "catch-all", 10_000, BY_USER, EVERYBODY, everything),
    ("system-nodes", "system", 500, BY_USER, &["Group system:nodes"], everything),
    ("system-node-high", "node-high", 400, BY_USER, &["Group system:nodes"], of_nodes),
    ("probes", "exempt", 2, "", EVERYBODY, probes),
    (
        "system-leader-election",
        "leader-election",
        100,
        BY_USER,
        &["User system:kube-controller-manager", "User system:kube-scheduler", "ServiceAccount *"],
        locks,
    ),
    ("workload-leader-election", "leader-election", 200, BY_USER, &["ServiceAccount *"], locks),
    (
        "endpoint-controller",
        "workload-high",
        150,
        BY_USER,
        &[
            "User system:kube-controller-manager",
            "ServiceAccount endpoint-controller",
            "ServiceAccount endpointslicemirroring-controller",
        ],
        endpoints,
    ),
    (
        "kube-controller-manager",
        "workload-high",
        800,
        BY_NAMESPACE,
        &["User system:kube-controller-manager"],
        everything,
    ),
    ("kube-scheduler", "workload-high", 800, BY_NAMESPACE, &["User system:kube-scheduler"], everything),
    ("kube-system-service-accounts", "workload-high", 900, BY_NAMESPACE, &["ServiceAccount *"], everything),
    ("service-accounts", "workload-low", 9000, BY_USER, &["Group system:serviceaccounts"], everything),
    ("global-default", "global-default", 9900, BY_USER, EVERYBODY, everything),
];

fn rule(verbs: &[&str], group: &str, resources: &[&str], namespace: &str, cluster: bool) -> Value {
    let mut rule =
        json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": [namespace]});
    if cluster {
        rule["clusterScope"] = true.into();
    }
    rule
}

fn everything() -> Value {
    json!({"resourceRules": [rule(&["*"], "*", &["*"], "*", true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]})
}

fn of_nodes() -> Value {
    json!({"resourceRules": [rule(&["*"], "", &["nodes", "nodes/status"], "*", true),
        rule(&["*"], "coordination.k8s.io", &["leases"], "*", false)]})
}

fn probes() -> Value {
    json!({"nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]})
}

/// What elections are held by.
fn locks() -> Value {
    json!({"resourceRules": [rule(&["get", "create", "update"], "coordination.k8s.io", &["leases"], "*", false)]})
}

fn endpoints() -> Value {
    json!({"resourceRules": [rule(&["get", "create", "update"], "", &["endpoints"], "*", false)]})
}

fn subject(text: &str) -> Value {
    match text.split_once(' ') {
        Some(("User", name)) => json!({"kind": "User", "user": {"name": name}}),
        Some(("Group", name)) => json!({"kind": "Group", "group": {"name": name}}),
        // All of them are of the system's namespace.
        _ => json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system",
            "name": text.split_once(' ').map_or(text, |(_, name)| name)}}),
    }
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": API_VERSION, "kind": kind,
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}}, "spec": spec})
}

fn level((name, shares, lent, queuing): &Level) -> Value {
    let response = match queuing {
        None => json!({"type": "Reject"}),
        Some([queues, hand, length]) => json!({"type": "Queue",
            "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": length}}),
    };
    let limited =
        json!({"nominalConcurrencyShares": shares, "lendablePercent": lent, "limitResponse": response});
    object("PriorityLevelConfiguration", name, &json!({"type": "Limited", "limited": limited}))
}

fn schema((name, level, precedence, by, subjects, rules): &Schema) -> Value {
    let mut rules = rules();
    rules["subjects"] = subjects.iter().map(|text| subject(text)).collect();
    let mut spec = json!({"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence,
        "rules": [rules]});
    if !by.is_empty() {
        spec["distinguisherMethod"] = json!({"type": by});
    }
    let mut object = object("FlowSchema", name, &spec);
    object["status"] = json!({"conditions": [dangling(level, true)]});
    object
}

/// Whether the level of a schema is there, in upstream's words.
fn dangling(level: &str, exists: bool) -> Value {
    let (status, reason, verdict) = if exists {
        ("False", "Found", "and it exists")
    } else {
        ("True", "NotFound", "but there is no such object")
    };
    let what = "This FlowSchema references the PriorityLevelConfiguration object named";
    json!({"type": "Dangling", "status": status, "reason": reason, "message": format!("{what} {level:?} {verdict}"),
        "lastTransitionTime": null})
}

/// Keeps the conditions of schemas true, until the server stops.
pub async fn run(server: Arc<ApiServer>) {
    let reader = &server.seams().reader;
    let mut schemas = reader.changes(&resources::FLOW_SCHEMAS);
    let mut levels = reader.changes(&resources::PRIORITY_LEVELS);
    let (_, stop) = server.tasks();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        schemas.borrow_and_update();
        levels.borrow_and_update();
        let mut again = None;
        for bytes in reader.list(&resources::FLOW_SCHEMAS, "") {
            let schema: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
            let condition = dangling(level, reader.get(&resources::PRIORITY_LEVELS, "", level).is_some());
            if conditions::set(&server, SCHEMAS_PATH, schema, condition).await.is_err() {
                again = Some(again.unwrap_or_else(|| backoff.next()));
            }
        }
        if again.is_none() {
            backoff.reset();
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = schemas.changed() => if changed.is_err() { return },
            changed = levels.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
        }
    }
}

pub(super) fn wanted() -> impl Iterator<Item = Wanted> {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let exempt = object("PriorityLevelConfiguration", "exempt", &exempt);
    let levels = LEVELS.iter().map(level).chain([exempt]);
    let levels = levels.map(|object| Wanted { gvr: &resources::PRIORITY_LEVELS, object, reconcile });
    let schemas = SCHEMAS.iter().map(schema);
    levels.chain(schemas.map(|object| Wanted { gvr: &resources::FLOW_SCHEMAS, object, reconcile }))
}

/// Whoever sets the annotation to another value has the specification to themselves; without one,
/// whoever has changed it.
fn reconcile(existing: &Value, default: &Value) -> Option<Value> {
    let annotation = existing["metadata"]["annotations"][AUTO_UPDATE].as_str();
    let ours = match annotation {
        Some(value) => value == "true",
        None => meta::generation(existing) <= 1,
    };
    if !ours && !MANDATORY.contains(&meta::name(default)) {
        return None;
    }
    let mut merged = replaced(existing, default, &[&["spec"]]);
    if annotation != Some("true") {
        let merged = merged.get_or_insert_with(|| existing.clone());
        merged["metadata"]["annotations"][AUTO_UPDATE] = "true".into();
    }
    let mut merged = merged?;
    if merged["spec"] != existing["spec"] {
        meta::set_generation(&mut merged, meta::generation(existing) + 1);
    }
    Some(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skeg_api::builtin;

    #[test]
    fn all_are_valid_and_as_defaults_leave_them() {
        let kinds = builtin::builtin();
        let (mut levels, mut schemas) = (0, 0);
        for Wanted { object, .. } in wanted() {
            let kind = kinds.iter().find(|kind| &*kind.gvk.kind == meta::kind(&object)).unwrap();
            let mut defaulted = object.clone();
            kind.default(&mut defaulted);
            assert_eq!(defaulted["spec"], object["spec"]);
            let mut errors = Vec::new();
            kind.check(&object, None, &mut errors);
            assert_eq!(errors, []);
            match meta::kind(&object) {
                "FlowSchema" => schemas += 1,
                _ => levels += 1,
            }
        }
        assert_eq!((levels, schemas), (8, 13));
    }

    #[test]
    fn suggested_ones_can_be_taken_over_and_mandatory_ones_cannot() {
        let all: Vec<Wanted> = wanted().collect();
        let find = |kind: &str, name: &str| {
            let found = all.iter().find(|w| meta::kind(&w.object) == kind && meta::name(&w.object) == name);
            found.unwrap().object.clone()
        };
        for (name, annotation, comes_back) in
            [("system", "true", true), ("system", "false", false), ("catch-all", "false", true)]
        {
            let default = find("PriorityLevelConfiguration", name);
            assert_eq!(reconcile(&default, &default), None);
            let mut mine = default.clone();
            mine["spec"]["limited"]["nominalConcurrencyShares"] = 7.into();
            mine["metadata"]["annotations"][AUTO_UPDATE] = annotation.into();
            meta::set_generation(&mut mine, 2);
            let got = reconcile(&mine, &default);
            assert_eq!(got.is_some(), comes_back, "{name} {annotation}");
            if let Some(got) = got {
                assert_eq!((&got["spec"], meta::generation(&got)), (&default["spec"], 3));
                assert_eq!(got["metadata"]["annotations"][AUTO_UPDATE], "true");
            }
        }
    }
}
