//! Admission: the chain of plugins that may change or refuse a write, by upstream's names.

use crate::identity::Identity;
use futures_util::future::BoxFuture;
use skeg_api::{Kind, Status, Value};

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
