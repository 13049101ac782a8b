//! Nobody reads by a policy what they may not read themselves: who names a kind of parameters must be
//! allowed to get all of them, who names parameters those.
//! Upstream counterparts: `authz.go` of the policies' and bindings' registries, which refuse as
//! validation does.

use super::param_kind;
use crate::admission::{Admission, Operation, Plugin, ready};
use crate::auth::authz::{Union, question};
use crate::identity::Identity;
use crate::reader::Reader;
use crate::resources;
use futures_util::future::BoxFuture;
use serde_json::Value;
use skeg_api::field::{FieldError, Path};
use skeg_api::{Gvr, Kinds, Status};
use std::sync::Arc;

pub struct PolicyParameters {
    pub reader: Arc<dyn Reader>,
    pub kinds: Arc<Kinds>,
    pub authorizer: Arc<Union>,
}

impl PolicyParameters {
    fn check(&self, a: &Admission<'_>) -> Result<(), Status> {
        let writes = matches!(a.operation, Operation::Create | Operation::Update);
        if !writes || &*a.kind.gvk.group != "admissionregistration.k8s.io" || !a.subresource.is_empty() {
            return Ok(());
        }
        let Some(object) = a.object.as_deref() else { return Ok(()) };
        let (spec, old) = (&object["spec"], a.old.map(|old| &old["spec"]));
        let unchanged = |fields: &[&str]| {
            old.is_some_and(|old| fields.iter().all(|field| old.get(field) == spec.get(field)))
        };
        let refused = match &*a.kind.plural {
            "validatingadmissionpolicies" | "mutatingadmissionpolicies" => {
                if spec["paramKind"].is_null() || unchanged(&["paramKind"]) {
                    return Ok(());
                }
                self.may(a.identity, "get", spec, ["*", "*"]).err().map(|user| {
                    let text = |field: &str| spec["paramKind"][field].as_str().unwrap_or_default();
                    let (kind, version) = (text("kind"), text("apiVersion"));
                    let why = format!("user {user} must have \"get\" permission on all objects of the referenced paramKind (kind={kind}, apiVersion={version})");
                    ("paramKind", why)
                })
            }
            "validatingadmissionpolicybindings" => {
                self.binding(a, &resources::VALIDATING_POLICIES, &unchanged)
            }
            "mutatingadmissionpolicybindings" => self.binding(a, &resources::MUTATING_POLICIES, &unchanged),
            _ => None,
        };
        let Some((field, why)) = refused else { return Ok(()) };
        let error = FieldError::forbidden(Path::new("spec").child(field), why);
        Err(Status::invalid(&a.kind.gvk.group, &a.kind.gvk.kind, a.name, &[error]))
    }

    fn binding(
        &self,
        a: &Admission<'_>,
        policies: &Gvr,
        unchanged: &dyn Fn(&[&str]) -> bool,
    ) -> Option<(&'static str, String)> {
        let spec = &a.object.as_deref()?["spec"];
        let reference = spec.get("paramRef").filter(|reference| !reference.is_null())?;
        if unchanged(&["paramRef", "policyName"]) {
            return None;
        }
        let text = |of: &Value, field: &str| of[field].as_str().unwrap_or_default().to_owned();
        let policy = self.reader.get_value(policies, "", &text(spec, "policyName"));
        let policy = policy.as_ref().map_or(&Value::Null, |policy| &policy["spec"]);
        let (namespace, name) = (text(reference, "namespace"), text(reference, "name"));
        let selects = name.is_empty() && *policies == *resources::MUTATING_POLICIES;
        let verb = if selects { "list" } else { "get" };
        let user = self.may(a.identity, verb, policy, [&namespace, &name]).err()?;
        let why =
            format!("user {user} does not have {verb:?} permission on the object referenced by paramRef");
        Some(("paramRef", why))
    }

    /// Whether a user may read parameters of a policy; the error is the user, as upstream prints it. Of
    /// what is not known, everything.
    fn may(
        &self,
        who: &Identity,
        verb: &str,
        spec: &Value,
        [namespace, name]: [&str; 2],
    ) -> Result<(), String> {
        let gvk = param_kind(spec);
        let snapshot = self.kinds.snapshot();
        let kind = gvk.as_ref().and_then(|gvk| snapshot.by_gvk(gvk));
        let group = gvk.as_ref().map_or("*", |gvk| &*gvk.group);
        let resource = kind.map_or("*", |kind| &*kind.plural);
        if self.authorizer.allows(&question(who, verb, [group, resource, "", namespace, name])) {
            return Ok(());
        }
        let extra: Vec<String> =
            who.extra().iter().map(|(key, values)| format!("{key}:[{}]", values.join(" "))).collect();
        let (groups, extra) = (who.groups().join(" "), extra.join(" "));
        Err(format!("&{{{} {} [{groups}] map[{extra}]}}", who.user(), who.uid()))
    }
}

impl Plugin for PolicyParameters {
    fn name(&self) -> &'static str {
        "PolicyParameters"
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
    use super::*;
    use crate::admission::testing::{Case, kind};
    use crate::auth::rbac::tests::user;
    use crate::reader::fake::Fake;
    use serde_json::json;

    #[test]
    fn parameters_must_be_readable_by_who_names_them() {
        let reader = Arc::new(Fake::default());
        let role = |name: &str, resource: &str| json!({"metadata": {"name": name}, "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]});
        let binding = |name: &str, namespace: &str| {
            json!({"metadata": {"name": name, "namespace": namespace},
            "roleRef": {"kind": "ClusterRole", "name": name}, "subjects": [{"kind": "User", "name": "jane"}]})
        };
        reader.put(&resources::CLUSTER_ROLES, role("maps", "configmaps"));
        reader.put(&resources::CLUSTER_ROLES, role("secrets", "secrets"));
        reader.put(&resources::CLUSTER_ROLE_BINDINGS, binding("maps", ""));
        reader.put(&resources::ROLE_BINDINGS, binding("secrets", "own"));
        let of = |kind: &str| json!({"paramKind": {"apiVersion": "v1", "kind": kind}});
        for policies in [&resources::VALIDATING_POLICIES, &resources::MUTATING_POLICIES] {
            reader.put(policies, json!({"metadata": {"name": "p"}, "spec": of("Secret")}));
        }
        let plugin = PolicyParameters {
            reader: reader.clone(),
            kinds: Arc::new(Kinds::new(skeg_api::builtin::builtin())),
            authorizer: Arc::new(Union::new(reader)),
        };
        let write = |what: &str, spec: Value, old: Option<Value>| {
            let plural = if what.ends_with("Policy") {
                what.to_lowercase().replace("policy", "policies")
            } else {
                what.to_lowercase() + "s"
            };
            let object = |spec: Value| json!({"metadata": {"name": "x"}, "spec": spec});
            let mut case = Case {
                operation: if old.is_some() { Operation::Update } else { Operation::Create },
                kind: kind("admissionregistration.k8s.io", what, &plural, false),
                subresource: "",
                identity: user("jane", &["dev"]),
                object: Some(object(spec)),
                old: old.map(object),
            };
            case.run(&plugin).map_err(|status| status.message)
        };
        let refused = |what: &str, field: &str, why: &str| {
            Err(format!(
                "{what}.admissionregistration.k8s.io \"x\" is invalid: spec.{field}: Forbidden: user &{{jane  [dev] map[]}} {why}"
            ))
        };
        for what in ["ValidatingAdmissionPolicy", "MutatingAdmissionPolicy"] {
            assert_eq!(write(what, of("ConfigMap"), None), Ok(()));
            let why = "must have \"get\" permission on all objects of the referenced paramKind (kind=Secret, apiVersion=v1)";
            assert_eq!(write(what, of("Secret"), None), refused(what, "paramKind", why));
            assert_eq!(write(what, of("Secret"), Some(of("ConfigMap"))), refused(what, "paramKind", why));
            assert_eq!(write(what, of("Secret"), Some(of("Secret"))), Ok(()), "it was there before");
            assert!(write(what, of("Unknown"), None).is_err(), "it may come to be anything");
            assert_eq!(write(what, json!({}), None), Ok(()));
            let binding = format!("{what}Binding");
            let names = |policy: &str, reference: Value| json!({"policyName": policy, "paramRef": reference});
            assert_eq!(write(&binding, names("p", json!({"name": "s", "namespace": "own"})), None), Ok(()));
            assert_eq!(write(&binding, json!({"policyName": "p"}), None), Ok(()));
            let other = names("p", json!({"name": "s", "namespace": "other"}));
            let why = "does not have \"get\" permission on the object referenced by paramRef";
            assert_eq!(write(&binding, other.clone(), None), refused(&binding, "paramRef", why));
            assert_eq!(write(&binding, other.clone(), Some(other)), Ok(()));
            // Which kind it is, is not known.
            assert!(write(&binding, names("q", json!({"name": "s", "namespace": "own"})), None).is_err());
            let verb = if what.starts_with('M') { "list" } else { "get" };
            let why = why.replace("get", verb);
            assert_eq!(
                write(&binding, names("p", json!({"selector": {}})), None),
                refused(&binding, "paramRef", &why)
            );
        }
    }
}
