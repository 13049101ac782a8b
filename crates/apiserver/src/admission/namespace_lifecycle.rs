//! Nothing is made in a namespace that is missing or ending, and some namespaces never end.
//! Upstream counterpart: `k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle`.

use super::{Admission, Operation, Plugin, ready};
use crate::reader::Reader;
use crate::resources;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use skeg_api::Status;
use skeg_api::status::Cause;
use std::sync::Arc;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle {
    reader: Arc<dyn Reader>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Namespace {
    metadata: Metadata,
    status: Phase,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    deletion_timestamp: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Phase {
    phase: String,
}

impl NamespaceLifecycle {
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        NamespaceLifecycle { reader }
    }

    fn check(&self, a: &Admission<'_>) -> Result<(), Status> {
        let about_namespaces = &*a.kind.plural == "namespaces" && a.kind.gvk.group.is_empty();
        if about_namespaces {
            let dies = a.operation == Operation::Delete && IMMORTAL.contains(&a.name);
            return if dies { Err(a.forbid("this namespace may not be deleted")) } else { Ok(()) };
        }
        let review = &*a.kind.gvk.group == "authorization.k8s.io";
        if a.namespace.is_empty() || a.operation == Operation::Delete || review {
            return Ok(());
        }
        let Some(bytes) = self.reader.get(&resources::NAMESPACES, "", a.namespace) else {
            return Err(Status::not_found("", "namespaces", a.namespace));
        };
        if a.operation != Operation::Create {
            return Ok(());
        }
        let found: Namespace = serde_json::from_slice(&bytes).unwrap_or_default();
        if found.metadata.deletion_timestamp.is_none() && found.status.phase != "Terminating" {
            return Ok(());
        }
        let namespace = a.namespace;
        let mut status = a.forbid(format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        ));
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".into(),
            });
        }
        Err(status)
    }
}

impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(self.check(request))
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
    fn namespaces_must_be_there_and_stay() {
        let reader = Arc::new(Fake::default());
        reader.put(&resources::NAMESPACES, json!({"metadata": {"name": "a"}, "status": {"phase": "Active"}}));
        reader.put(
            &resources::NAMESPACES,
            json!({"metadata": {"name": "b"}, "status": {"phase": "Terminating"}}),
        );
        let plugin = NamespaceLifecycle::new(reader);
        let pod = |operation, namespace: &str| {
            let object = json!({"metadata": {"name": "x", "namespace": namespace}});
            let kind = kind("", "Pod", "pods", true);
            let identity = Identity::anonymous();
            Case { operation, kind, subresource: "", identity, object: Some(object), old: None }.run(&plugin)
        };
        assert!(pod(Operation::Create, "a").is_ok());
        let missing = pod(Operation::Create, "c").unwrap_err();
        assert_eq!((missing.code, missing.message.as_str()), (404, "namespaces \"c\" not found"));
        let ending = pod(Operation::Create, "b").unwrap_err();
        assert_eq!(ending.code, 403);
        assert_eq!(ending.details.unwrap().causes[0].reason, "NamespaceTerminating");
        assert!(pod(Operation::Update, "b").is_ok());
        assert!(pod(Operation::Delete, "c").is_ok());
        for (name, expected) in
            [("default", false), ("kube-system", false), ("kube-node-lease", true), ("a", true)]
        {
            let old = Some(json!({"metadata": {"name": name}}));
            let kind = kind("", "Namespace", "namespaces", false);
            let identity = Identity::anonymous();
            let mut case =
                Case { operation: Operation::Delete, kind, subresource: "", identity, object: None, old };
            assert_eq!(case.run(&plugin).is_ok(), expected, "{name}");
        }
    }
}
