//! What a request asks, parsed once from method, path and query.
//! Upstream counterpart: `k8s.io/apiserver/pkg/endpoints/request.RequestInfo`.

use crate::identity::Identity;

/// A request for a resource, or for another path (then `resource` is empty).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for
    /// other paths the lower-case HTTP method.
    pub verb: &'static str,
    pub path: String,
    pub group: String,
    pub version: String,
    /// Plural resource name, empty for other paths.
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// What follows the subresource: `proxy/<rest>`.
    pub rest: String,
    pub query: String,
}

impl RequestInfo {
    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }
}

/// What an authorizer is asked.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    pub identity: &'a Identity,
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// For non-resource requests; empty otherwise.
    pub path: &'a str,
    /// The raw query, for authorizers that look at selectors.
    pub query: &'a str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    Deny(String),
    NoOpinion(String),
}
