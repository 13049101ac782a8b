//! Nobody grants what they do not hold: roles with more than the writer has need the verb
//! `escalate`, bindings of such roles need `bind`.
//! Upstream counterpart: `pkg/registry/rbac/{role,clusterrole,rolebinding,clusterrolebinding}/policybased`.

use super::{Admission, Operation, Plugin, ready};
use crate::auth::authz::{SUPERUSERS, Union, question};
use crate::auth::rbac::{RoleRef, Rule, compact, uncovered};
use futures_util::future::BoxFuture;
use serde_json::Value;
use skeg_api::Status;
use std::sync::Arc;

const GROUP: &str = "rbac.authorization.k8s.io";

pub struct Escalation {
    authorizer: Arc<Union>,
}

impl Escalation {
    pub fn new(authorizer: Arc<Union>) -> Self {
        Escalation { authorizer }
    }

    fn check(&self, a: &Admission<'_>) -> Result<(), Status> {
        let writes = matches!(a.operation, Operation::Create | Operation::Update);
        if !writes
            || &*a.kind.gvk.group != GROUP
            || !a.subresource.is_empty()
            || a.identity.in_group(SUPERUSERS)
        {
            return Ok(());
        }
        let Some(object) = a.object.as_deref() else { return Ok(()) };
        let may = |verb: &str, resource: &str, namespace: &str, name: &str| {
            self.authorizer.allows(&question(a.identity, verb, [GROUP, resource, "", namespace, name]))
        };
        match &*a.kind.plural {
            resource @ ("roles" | "clusterroles") => {
                let same = |field: &str| a.old.is_some_and(|old| old[field] == object[field]);
                if same("rules") && same("aggregationRule") || may("escalate", resource, a.namespace, a.name)
                {
                    return Ok(());
                }
                let held = self.held(a);
                if object.get("aggregationRule").is_some_and(|rule| !rule.is_null())
                    && !same("aggregationRule")
                {
                    // Aggregation may bring any rule later.
                    self.cover(
                        a,
                        &held,
                        &[everything()],
                        "must have cluster-admin privileges to use the aggregationRule",
                    )?;
                }
                self.cover(a, &held, &rules(object), "")
            }
            "rolebindings" | "clusterrolebindings" => {
                let same = |field: &str| a.old.is_some_and(|old| old[field] == object[field]);
                if same("subjects") && same("roleRef") {
                    return Ok(());
                }
                let role: RoleRef = serde_json::from_value(object["roleRef"].clone()).unwrap_or_default();
                let resource = if role.kind == "Role" { "roles" } else { "clusterroles" };
                if may("bind", resource, a.namespace, &role.name) {
                    return Ok(());
                }
                match self.authorizer.rbac.rules_of(&role, a.namespace) {
                    Some(wanted) => self.cover(a, &self.held(a), &wanted, ""),
                    None => Err(Status::not_found(GROUP, resource.trim_end_matches('s'), &role.name)),
                }
            }
            _ => Ok(()),
        }
    }

    fn held(&self, a: &Admission<'_>) -> Vec<Rule> {
        self.authorizer.rbac.rules_for(a.identity, a.namespace)
    }

    fn cover(&self, a: &Admission<'_>, held: &[Rule], wanted: &[Rule], why: &str) -> Result<(), Status> {
        let missing = uncovered(held, wanted);
        if missing.is_empty() {
            return Ok(());
        }
        if !why.is_empty() {
            return Err(a.forbid(why));
        }
        let groups: Vec<String> = a.identity.groups().iter().map(|group| format!("{group:?}")).collect();
        let missing: Vec<String> = compact(&missing).iter().map(ToString::to_string).collect();
        Err(a.forbid(format!(
            "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
            a.identity.user(),
            groups.join(" "),
            missing.join("\n")
        )))
    }
}

fn everything() -> Rule {
    let star = || vec!["*".to_owned()];
    Rule { verbs: star(), groups: star(), resources: star(), ..Default::default() }
}

fn rules(role: &Value) -> Vec<Rule> {
    serde_json::from_value(role["rules"].clone()).unwrap_or_default()
}

impl Plugin for Escalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn admit<'a>(&'a self, _request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(Ok(()))
    }

    fn validate<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(self.check(request))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, kind};
    use super::*;
    use crate::auth::rbac::tests::user;
    use crate::reader::fake::Fake;
    use crate::resources;
    use serde_json::json;

    fn world() -> (Arc<Fake>, Escalation) {
        let reader = Arc::new(Fake::default());
        for (gvr, object) in crate::bootstrap::rbac::objects() {
            reader.put(gvr, object);
        }
        reader.put(&resources::ROLE_BINDINGS, json!({"metadata": {"name": "b", "namespace": "a"},
            "roleRef": {"kind": "ClusterRole", "name": "admin"}, "subjects": [{"kind": "User", "name": "jane"}]}));
        let union = Arc::new(Union::new(reader.clone()));
        (reader, Escalation::new(union))
    }

    fn write(
        plugin: &Escalation,
        who: &crate::Identity,
        kind_name: &str,
        plural: &str,
        object: Value,
    ) -> Result<(), Status> {
        let kind = kind(GROUP, kind_name, plural, !plural.starts_with("cluster"));
        let identity = who.clone();
        Case {
            operation: Operation::Create,
            kind,
            subresource: "",
            identity,
            object: Some(object),
            old: None,
        }
        .run(plugin)
    }

    #[test]
    fn grants_stay_within_what_is_held() {
        let (_, plugin) = world();
        let (jane, admin) = (user("jane", &["dev"]), user("root", &["system:masters"]));
        let role = |verb: &str, resource: &str| json!({"metadata": {"name": "r", "namespace": "a"}, "rules": [{"verbs": [verb], "apiGroups": [""], "resources": [resource]}]});
        assert!(write(&plugin, &jane, "Role", "roles", role("get", "pods")).is_ok());
        let status = write(&plugin, &jane, "Role", "roles", role("get", "nodes")).unwrap_err();
        assert_eq!(
            status.message,
            "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"jane\" (groups=[\"dev\"]) is attempting to grant RBAC \
             permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}"
        );
        assert!(write(&plugin, &admin, "Role", "roles", role("*", "nodes")).is_ok());
        let binding = |kind: &str, name: &str| json!({"metadata": {"name": "r", "namespace": "a"}, "roleRef": {"kind": kind, "name": name}});
        assert!(write(&plugin, &jane, "RoleBinding", "rolebindings", binding("ClusterRole", "edit")).is_ok());
        let status =
            write(&plugin, &jane, "RoleBinding", "rolebindings", binding("ClusterRole", "cluster-admin"));
        assert_eq!(status.unwrap_err().code, 403);
        assert_eq!(
            write(&plugin, &jane, "RoleBinding", "rolebindings", binding("Role", "no")).unwrap_err().code,
            404
        );
        let controller = crate::Identity::component("clusterrole-aggregation-controller");
        let any = json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]});
        assert!(write(&plugin, &controller, "ClusterRole", "clusterroles", any).is_ok());
    }
}
