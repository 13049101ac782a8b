//! Access of administrators to devices that others use: only from namespaces whose label says so.
//! Upstream counterpart: `pkg/registry/resource` (KEP 5018).

use super::{Admission, Operation, Plugin, ready};
use crate::reader::Reader;
use crate::resources;
use futures_util::future::BoxFuture;
use serde_json::Value;
use skeg_api::field::{FieldError, Path};
use skeg_api::{Status, meta};
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
}
