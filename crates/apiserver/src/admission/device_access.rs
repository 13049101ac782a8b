//! Who may do what with devices: access of administrators to those that others use, only from
//! namespaces whose label says so (KEP 5018), and each part of a claim's status by those it is for
//! (the gate `DRAResourceClaimGranularStatusAuthorization`). Upstream counterpart:
//! `pkg/registry/resource`.

use super::{Admission, Operation, Options, Plugin, ready};
use crate::auth::authn::NODE_NAME;
use crate::auth::authz::{Union, question};
use crate::reader::Reader;
use crate::resources;
use futures_util::future::BoxFuture;
use serde_json::Value;
use skeg_api::field::{FieldError, Path};
use skeg_api::{Status, meta};
use std::collections::BTreeMap;
use std::sync::Arc;

const GROUP: &str = "resource.k8s.io";
const LABEL: &str = "resource.kubernetes.io/admin-access";

/// Refuses claims, templates and allocations with `adminAccess` elsewhere.
pub struct AdminAccess(pub Arc<dyn Reader>);

/// Which of a list asks for it.
fn asking(list: &Value, asks: impl Fn(&Value) -> &Value) -> Option<usize> {
    list.as_array()?.iter().position(|item| asks(item) == &Value::Bool(true))
}

/// The field that asks for it. What was granted once stays granted.
fn asked(a: &Admission<'_>) -> Option<Path> {
    let object = a.object.as_deref()?;
    let requests = |spec: &Value| {
        let at = asking(&spec["devices"]["requests"], |request| &request["exactly"]["adminAccess"])?;
        Some(Path::new("spec").child("devices").child("requests").index(at).child("adminAccess"))
    };
    let results = |claim: &Value| {
        let results = &claim["status"]["allocation"]["devices"]["results"];
        let at = asking(results, |result| &result["adminAccess"])?;
        let path = Path::new("status").child("allocation").child("devices").child("results");
        Some(path.index(at).child("adminAccess"))
    };
    match a.operation {
        Operation::Create if a.is(GROUP, "resourceclaims", "") => requests(&object["spec"]),
        Operation::Create if a.is(GROUP, "resourceclaimtemplates", "") => requests(&object["spec"]["spec"]),
        Operation::Update if a.is(GROUP, "resourceclaims", "status") => {
            results(object).filter(|_| a.old.and_then(results).is_none())
        }
        _ => None,
    }
}

impl Plugin for AdminAccess {
    fn name(&self) -> &'static str {
        "AdminAccess"
    }

    fn admit<'a>(&'a self, _request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(Ok(()))
    }

    fn validate<'a>(&'a self, a: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        let Some(path) = asked(a) else { return ready(Ok(())) };
        let namespace = self.0.get_value(&resources::NAMESPACES, "", a.namespace);
        if namespace.is_some_and(|namespace| meta::label(&namespace, LABEL) == Some("true")) {
            return ready(Ok(()));
        }
        let why =
            format!("admin access to devices requires the `{LABEL}: true` label on the containing namespace");
        let error = FieldError::forbidden(path, why);
        ready(Err(Status::invalid(GROUP, &a.kind.gvk.kind, a.name, &[error])))
    }
}

/// Allocations and reservations need the request's verb for `resourceclaims/binding`. What drivers say
/// of their devices needs, for `resourceclaims/driver` by the driver's name, the verb
/// `arbitrary-node:VERB`; or `associated-node:VERB` where a Pod of the claim's own node writes it.
pub struct ClaimStatus(pub Arc<Union>);

impl ClaimStatus {
    fn missing(&self, a: &Admission<'_>) -> Option<FieldError> {
        let (new, old) = (&a.object.as_deref()?["status"], &a.old?["status"]);
        let verb = match a.options {
            Options::Write(options) => options.verb,
            _ => "update",
        };
        let allows = |verb: &str, subresource: &str, name: &str| {
            let resource = [GROUP, "resourceclaims", subresource, a.namespace, name];
            self.0.allows(&question(a.identity, verb, resource))
        };
        let refused = |path: Path, verb: &str, subresource: &str| {
            let (user, namespace) = (a.identity.user(), a.namespace);
            let why = format!(
                "User {user:?} cannot {verb} resource \"resourceclaims/{subresource}\" in API group {GROUP:?} \
                 in the namespace {namespace:?}"
            );
            Some(FieldError::forbidden(path, why))
        };
        let status = Path::new("status");
        let bound = ["allocation", "reservedFor"].into_iter().find(|field| !same(&new[field], &old[field]));
        if let Some(field) = bound
            && !allows(verb, "binding", a.name)
        {
            return refused(status.child(field), verb, "binding");
        }
        let (now, before) = (by_driver(new), by_driver(old));
        let changed =
            now.keys().chain(before.keys()).filter(|driver| now.get(*driver) != before.get(*driver));
        let nodes = a.identity.extra().get(NODE_NAME);
        let at_home = nodes.is_some_and(|nodes| matches!(&nodes[..], [node] if is_on(old, node)));
        for driver in changed {
            let may = |prefix: &str| allows(&format!("{prefix}:{verb}"), "driver", driver);
            if !(at_home && may("associated-node") || may("arbitrary-node")) {
                return refused(status.child("devices"), &format!("arbitrary-node:{verb}"), "driver");
            }
        }
        None
    }
}

/// Nothing, null and an empty list are one.
fn same(a: &Value, b: &Value) -> bool {
    let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    a == b || empty(a) && empty(b)
}

/// What each driver says of its devices.
fn by_driver(status: &Value) -> BTreeMap<&str, Vec<&Value>> {
    let mut all: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for device in status["devices"].as_array().into_iter().flatten() {
        all.entry(device["driver"].as_str().unwrap_or_default()).or_default().push(device);
    }
    all
}

/// Whether a claim is allocated for this node alone.
fn is_on(status: &Value, node: &str) -> bool {
    let terms = status["allocation"]["nodeSelector"]["nodeSelectorTerms"].as_array();
    let names_it = |field: &Value| {
        field["key"] == "metadata.name"
            && field["operator"] == "In"
            && field["values"].as_array().is_some_and(|values| matches!(&values[..], [one] if one == node))
    };
    let is_its = |term: &Value| term["matchFields"].as_array().is_some_and(|all| all.iter().any(names_it));
    terms.is_some_and(|terms| !terms.is_empty() && terms.iter().all(is_its))
}

impl Plugin for ClaimStatus {
    fn name(&self) -> &'static str {
        "ClaimStatus"
    }

    fn admit<'a>(&'a self, _request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(Ok(()))
    }

    fn validate<'a>(&'a self, a: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        let is_status = a.operation == Operation::Update && a.is(GROUP, "resourceclaims", "status");
        let missing = if is_status { self.missing(a) } else { None };
        ready(missing.map_or(Ok(()), |error| {
            Err(Status::invalid(GROUP, &a.kind.gvk.kind, a.name, std::slice::from_ref(&error)))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, kind};
    use super::*;
    use crate::Identity;
    use crate::reader::fake::Fake;
    use serde_json::json;

    #[test]
    fn admin_access_needs_a_label_of_the_namespace() {
        let reader = Arc::new(Fake::default());
        let plugin = AdminAccess(reader.clone());
        let metadata = json!({"name": "c", "namespace": "a"});
        let spec = |asks: bool| {
            json!({"devices": {"requests": [{"name": "x", "firstAvailable": []},
            {"name": "y", "exactly": {"deviceClassName": "d", "adminAccess": asks}}]}})
        };
        let claim = |asks: bool| json!({"metadata": metadata, "spec": spec(asks)});
        let template = json!({"metadata": metadata, "spec": {"spec": spec(true)}});
        let allocated = |granted: bool| {
            json!({"metadata": metadata, "spec": spec(true),
            "status": {"allocation": {"devices": {"results": [{"adminAccess": granted}]}}}})
        };
        let run = |name: &str, plural: &str, subresource, object: &Value, old: Option<&Value>| {
            let operation = if old.is_some() { Operation::Update } else { Operation::Create };
            let (kind, identity) = (kind(GROUP, name, plural, true), Identity::anonymous());
            let (object, old) = (Some(object.clone()), old.cloned());
            Case { operation, kind, subresource, identity, object, old }.run(&plugin)
        };
        let all = || {
            [
                run("ResourceClaim", "resourceclaims", "", &claim(true), None),
                run("ResourceClaimTemplate", "resourceclaimtemplates", "", &template, None),
                run("ResourceClaim", "resourceclaims", "status", &allocated(true), Some(&allocated(false))),
            ]
        };
        let fields =
            ["spec.devices.requests[1]", "spec.devices.requests[1]", "status.allocation.devices.results[0]"];
        for labels in [json!({}), json!({LABEL: "yes"})] {
            reader.put(&resources::NAMESPACES, json!({"metadata": {"name": "a", "labels": labels}}));
            for (answer, field) in all().into_iter().zip(fields) {
                let status = answer.unwrap_err();
                let why = format!(
                    "{field}.adminAccess: Forbidden: admin access to devices requires the \
                     `resource.kubernetes.io/admin-access: true` label on the containing namespace"
                );
                assert!(status.code == 422 && status.message.ends_with(&why), "{}", status.message);
            }
        }
        // Not asked for, or granted before.
        run("ResourceClaim", "resourceclaims", "", &claim(false), None).unwrap();
        run("ResourceClaim", "resourceclaims", "status", &allocated(true), Some(&allocated(true))).unwrap();
        reader.put(&resources::NAMESPACES, json!({"metadata": {"name": "a", "labels": {LABEL: "true"}}}));
        all().into_iter().for_each(|answer| answer.unwrap());
    }

    #[test]
    fn parts_of_a_claims_status_are_for_those_who_may_change_them() {
        let reader = Arc::new(Fake::default());
        let rule = |resource: &str, verbs: &[&str], names: &[&str]| json!({"apiGroups": [GROUP], "resources": [resource], "verbs": verbs, "resourceNames": names});
        for (user, rule) in [
            ("scheduler", rule("resourceclaims/binding", &["update"], &[])),
            ("local", rule("resourceclaims/driver", &["associated-node:update"], &["d.example"])),
            ("central", rule("resourceclaims/driver", &["arbitrary-node:update"], &["d.example"])),
        ] {
            reader.put(&resources::CLUSTER_ROLES, json!({"metadata": {"name": user}, "rules": [rule]}));
            reader.put(
                &resources::CLUSTER_ROLE_BINDINGS,
                json!({"metadata": {"name": user},
                    "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}],
                    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user}}),
            );
        }
        let plugin = ClaimStatus(Arc::new(Union::new(reader)));
        let on = |node: &str| {
            json!({"nodeSelector": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}})
        };
        let status = |allocation: Value, reserved: &[&str], drivers: &[(&str, &str)]| {
            let devices: Vec<Value> =
                drivers.iter().map(|(driver, device)| json!({"driver": driver, "device": device})).collect();
            json!({"allocation": allocation, "reservedFor": reserved, "devices": devices})
        };
        let allocated = status(on("n"), &[], &[]);
        let told = status(on("n"), &[], &[("d.example", "x")]);
        let rows: [(&str, &str, &Value, &Value, Option<&str>); 10] = [
            ("nobody", "", &allocated, &allocated, None),
            (
                "nobody",
                "",
                &json!({}),
                &allocated,
                Some(
                    "status.allocation: Forbidden: User \"nobody\" cannot update resource \"resourceclaims/binding\" in API group \"resource.k8s.io\" in the namespace \"a\"",
                ),
            ),
            ("scheduler", "", &json!({}), &allocated, None),
            (
                "central",
                "",
                &allocated,
                &status(on("n"), &["pod"], &[]),
                Some("status.reservedFor: Forbidden"),
            ),
            (
                "scheduler",
                "",
                &allocated,
                &told,
                Some(
                    "status.devices: Forbidden: User \"scheduler\" cannot arbitrary-node:update resource \"resourceclaims/driver\"",
                ),
            ),
            ("central", "", &allocated, &told, None),
            (
                "central",
                "",
                &told,
                &status(on("n"), &[], &[("e.example", "x")]),
                Some("status.devices: Forbidden"),
            ),
            ("local", "n", &allocated, &told, None),
            ("local", "m", &told, &allocated, Some("status.devices: Forbidden")),
            ("local", "", &allocated, &told, Some("status.devices: Forbidden")),
        ];
        for (user, node, old, new, refused) in rows {
            let extra = [(NODE_NAME.to_owned(), vec![node.to_owned()])];
            let extra = extra.into_iter().filter(|_| !node.is_empty()).collect();
            let claim =
                |status: &Value| json!({"metadata": {"name": "c", "namespace": "a"}, "status": status});
            let answer = Case {
                operation: Operation::Update,
                kind: kind(GROUP, "ResourceClaim", "resourceclaims", true),
                subresource: "status",
                identity: Identity::new(user.to_owned(), String::new(), Vec::new(), extra),
                object: Some(claim(new)),
                old: Some(claim(old)),
            }
            .run(&plugin);
            match refused {
                None => answer.unwrap_or_else(|status| panic!("{user} on {node:?}: {}", status.message)),
                Some(why) => {
                    let status = answer.unwrap_err();
                    assert!(status.code == 422 && status.message.contains(why), "{}", status.message);
                }
            }
        }
    }
}
