//! Who sets owners must be allowed to delete the object, and the owners where they wait for it. Off
//! unless the configuration asks for it, as upstream.
//! Upstream counterpart: `plugin/pkg/admission/gc`.

use super::{Admission, Operation, Plugin, ready};
use crate::auth::authz::{Union, question};
use futures_util::future::BoxFuture;
use serde_json::Value;
use skeg_api::{Kinds, Status, meta};
use std::sync::Arc;

pub struct OwnerReferencesPermissionEnforcement {
    authorizer: Arc<Union>,
    kinds: Arc<Kinds>,
}

impl OwnerReferencesPermissionEnforcement {
    pub fn new(authorizer: Arc<Union>, kinds: Arc<Kinds>) -> Self {
        OwnerReferencesPermissionEnforcement { authorizer, kinds }
    }

    fn check(&self, a: &Admission<'_>) -> Result<(), Status> {
        let writes = matches!(a.operation, Operation::Create | Operation::Update);
        let Some(object) = a.object.as_deref().filter(|_| writes && !a.is("", "pods", "status")) else {
            return Ok(());
        };
        let (new, old) = (owners(object), a.old.map(owners).unwrap_or_default());
        if new == old {
            return Ok(());
        }
        let may = |verb: &str, what: [&str; 5]| self.authorizer.allows(&question(a.identity, verb, what));
        if !may("delete", [&a.kind.gvk.group, &a.kind.plural, a.subresource, a.namespace, a.name]) {
            return Err(a.forbid("cannot set an ownerRef on a resource you can't delete: , <nil>"));
        }
        let blocks = |owner: &&Value| owner["blockOwnerDeletion"] == true;
        let blocked = |uid: &Value| old.iter().filter(blocks).any(|owner| owner["uid"] == *uid);
        for owner in new.iter().filter(blocks).filter(|owner| !blocked(&owner["uid"])) {
            let text = |field: &str| owner[field].as_str().unwrap_or_default();
            let (version, kind) = (text("apiVersion"), text("kind"));
            let (group, number) = version.split_once('/').unwrap_or(("", version));
            let snapshot = self.kinds.snapshot();
            let Some(row) = snapshot.by_gvk(&skeg_api::Gvk::new(group, number, kind)) else {
                return Err(a.forbid(format!(
                    "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {version} Kind \
                     {kind}: no matches for kind {kind:?} in version {version:?}"
                )));
            };
            let namespace = if row.namespaced { a.namespace } else { "" };
            if !may("update", [group, &row.plural, "finalizers", namespace, text("name")]) {
                return Err(a.forbid(
                    "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: , <nil>",
                ));
            }
        }
        Ok(())
    }
}

fn owners(object: &Value) -> &[Value] {
    let list = meta::metadata(object).and_then(|metadata| metadata.get("ownerReferences")?.as_array());
    list.map_or(&[], Vec::as_slice)
}

impl Plugin for OwnerReferencesPermissionEnforcement {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
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

    #[test]
    fn owners_are_set_by_those_who_may_delete() {
        let reader = Arc::new(Fake::default());
        let rule =
            |verb: &str, resource: &str| json!({"verbs": [verb], "apiGroups": [""], "resources": [resource]});
        for (name, rules) in [
            ("jane", json!([rule("delete", "configmaps")])),
            ("joe", json!([rule("delete", "configmaps"), rule("update", "pods/finalizers")])),
        ] {
            reader.put(&resources::CLUSTER_ROLES, json!({"metadata": {"name": name}, "rules": rules}));
            reader.put(&resources::CLUSTER_ROLE_BINDINGS, json!({"metadata": {"name": name},
                "roleRef": {"kind": "ClusterRole", "name": name}, "subjects": [{"kind": "User", "name": name}]}));
        }
        let kinds = Arc::new(Kinds::new(skeg_api::builtin::builtin()));
        let plugin = OwnerReferencesPermissionEnforcement::new(Arc::new(Union::new(reader)), kinds);
        let write = |who: &str, blocks: bool, old: Option<Value>| {
            let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "blockOwnerDeletion": blocks});
            let mut case = Case {
                operation: if old.is_some() { Operation::Update } else { Operation::Create },
                kind: kind("", "ConfigMap", "configmaps", true),
                subresource: "",
                identity: user(who, &[]),
                object: Some(
                    json!({"metadata": {"name": "c", "namespace": "a", "ownerReferences": [owner]}}),
                ),
                old,
            };
            (case.run(&plugin).is_ok(), case.object)
        };
        assert!(!write("bob", false, None).0 && write("jane", false, None).0);
        assert!(!write("jane", true, None).0 && write("joe", true, None).0);
        let (_, same) = write("joe", true, None);
        assert!(write("bob", true, same).0);
    }
}
