//! What the node needs of a Pod network, and Skeg's own behind it.

use crate::services::ServiceTables;
use futures_util::future::BoxFuture;
use std::net::IpAddr;
use std::path::Path;

/// A port of the host that leads to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPortMapping {
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// Why a network operation failed, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(pub String);

/// Attaches Pods and publishes Services. All calls are idempotent.
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects a network namespace; the same uid gets the same address again.
    fn attach<'a>(
        &'a self,
        uid: &'a str,
        netns: &'a Path,
        ports: &'a [HostPortMapping],
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, NetworkError>>;
    fn detach<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), NetworkError>>;
    /// Uids of Pods that hold an address, so that those of dead Pods can be released.
    fn attached(&self) -> BoxFuture<'_, Result<Vec<String>, NetworkError>>;
    /// Replaces what Services translate to and what names resolve to.
    fn publish(&self, tables: ServiceTables) -> BoxFuture<'_, Result<(), NetworkError>>;
}
