//! Admission: the chain of plugins that may change or refuse a write, by upstream's names.

use crate::auth::authz::Union;
use crate::identity::Identity;
use crate::reader::Reader;
use futures_util::future::BoxFuture;
use skeg_api::{Kind, Status, Value};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// One write on its way in.
pub struct Admission<'a> {
    pub operation: Operation,
    pub kind: &'a Kind,
    /// Empty, or `status`, `scale`, `binding`, `eviction`, `exec`, …
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub identity: &'a Identity,
    /// The new object; `None` on delete and for connect.
    pub object: Option<&'a mut Value>,
    pub old: Option<&'a Value>,
    pub dry_run: bool,
    /// Warnings for the client, added to.
    pub warnings: &'a mut Vec<String>,
}

/// One admission plugin.
pub trait Plugin: Send + Sync {
    /// Upstream's name: `NamespaceLifecycle`.
    fn name(&self) -> &'static str;

    /// May change the object; runs before validation. Quick plugins return a ready future.
    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>>;

    /// May only refuse; runs after all `admit`s and the kind's own validation.
    fn validate<'a>(&'a self, _request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

pub mod escalation;
pub mod namespace_lifecycle;
pub mod node_restriction;
pub mod pod_defaults;
pub mod service_account;
pub mod signing_request;

/// The default chain, in upstream's order.
pub fn chain(
    reader: &Arc<dyn Reader>,
    authorizer: &Arc<Union>,
    random: &skeg_base::Random,
) -> Vec<Arc<dyn Plugin>> {
    vec![
        Arc::new(namespace_lifecycle::NamespaceLifecycle::new(reader.clone())),
        Arc::new(service_account::ServiceAccount::new(reader.clone(), random.clone())),
        Arc::new(node_restriction::NodeRestriction::new(reader.clone())),
        Arc::new(pod_defaults::TaintNodesByCondition),
        Arc::new(pod_defaults::Priority::new(reader.clone())),
        Arc::new(pod_defaults::DefaultTolerationSeconds),
        Arc::new(escalation::Escalation::new(authorizer.clone())),
        Arc::new(signing_request::Requestor),
    ]
}

/// When admission looks at a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before validation: plugins may change the object.
    Mutate,
    /// After it: plugins may only refuse.
    Validate,
}

/// Shows a write to each plugin of a chain, until one refuses.
pub async fn run(chain: &[Arc<dyn Plugin>], phase: Phase, write: &mut Admission<'_>) -> Result<(), Status> {
    for plugin in chain {
        match phase {
            Phase::Mutate => plugin.admit(write).await?,
            Phase::Validate => plugin.validate(write).await?,
        }
    }
    Ok(())
}

/// What a plugin that decides at once returns.
fn ready<'a>(result: Result<(), Status>) -> BoxFuture<'a, Result<(), Status>> {
    Box::pin(std::future::ready(result))
}

impl Admission<'_> {
    /// Whether the write is about this resource or subresource.
    pub fn is(&self, group: &str, resource: &str, subresource: &str) -> bool {
        self.subresource == subresource && &*self.kind.plural == resource && &*self.kind.gvk.group == group
    }

    /// 403 for this write.
    pub fn forbid(&self, why: impl std::fmt::Display) -> Status {
        Status::forbidden(&self.kind.gvk.group, &self.kind.plural, self.name, why)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use futures_util::FutureExt;
    use skeg_api::Gvk;
    use skeg_api::schema::Schema;

    pub fn kind(group: &str, kind: &str, plural: &str, namespaced: bool) -> Kind {
        let storage = Some(format!("{plural}/").into());
        Kind { namespaced, storage, ..Kind::custom(Gvk::new(group, "v1", kind), plural, Schema::any()) }
    }

    /// One write for one plugin.
    pub struct Case<'a> {
        pub operation: Operation,
        pub kind: Kind,
        pub subresource: &'a str,
        pub identity: Identity,
        pub object: Option<Value>,
        pub old: Option<Value>,
    }

    impl Case<'_> {
        /// Runs `admit`, then `validate`; the object is changed in place.
        pub fn run(&mut self, plugin: &dyn Plugin) -> Result<(), Status> {
            let about = self.object.clone().or(self.old.clone()).unwrap_or_default();
            let (namespace, name) = (skeg_api::meta::namespace(&about), skeg_api::meta::name(&about));
            let mut warnings = Vec::new();
            let mut admission = Admission {
                operation: self.operation,
                kind: &self.kind,
                subresource: self.subresource,
                namespace,
                name,
                identity: &self.identity,
                object: self.object.as_mut(),
                old: self.old.as_ref(),
                dry_run: false,
                warnings: &mut warnings,
            };
            plugin.admit(&mut admission).now_or_never().expect("decides at once")?;
            plugin.validate(&mut admission).now_or_never().expect("decides at once")
        }
    }
}
