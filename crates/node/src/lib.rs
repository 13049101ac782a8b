//! The node agent: brings the Pods bound to this node to life and tells the API how they are.
//! Pod machines decide (`machine`), workers act (`worker`); volumes, environments and security
//! settings are translated into what a [`skeg_runtime::PodRuntime`] understands. Never talks to
//! a socket of the API server itself: all requests go through `skeg_client`.
//! Upstream counterparts: `pkg/kubelet`, `pkg/proxy` (the tables, not the rules).

mod admit;
mod agent;
mod container;
mod env;
mod etc;
mod hook;
mod host;
mod http_client;
mod image;
mod image_gc;
mod logs;
mod machine;
mod network;
mod probe;
mod registration;
mod security;
mod server;
mod services;
mod shown;
mod sources;
mod storage;
mod volumes;
mod worker;

pub use agent::Node;
pub use network::PodNetwork;
pub use server::ServerConfig;
pub use services::{ServiceTables, tables};
pub use volumes::remove_pod_dir;

use k8s_openapi::api::core::v1::{Pod, Service};
use skeg_base::{Clock, Random};
use skeg_client::{Client, Informer, Informers, Recorder};
use skeg_images::Images;
use skeg_runtime::PodRuntime;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// What makes this node this node.
#[derive(Clone)]
pub struct NodeConfig {
    /// The Node object's name.
    pub name: String,
    /// Addresses by which the node is known, the first of each family as `InternalIP`.
    pub addresses: Vec<IpAddr>,
    /// Pod directories and logs live here, for as long as Pods do.
    pub data_dir: PathBuf,
    pub max_pods: u32,
    /// Where Pods with `dnsPolicy: ClusterFirst` send their queries.
    pub cluster_dns: Option<IpAddr>,
    pub cluster_domain: String,
    /// This node's range of Pod addresses, shown in the Node object.
    pub pod_cidr: Option<String>,
    /// Shown as the kubelet version: `v1.36.0`.
    pub version: String,
    /// More labels for the Node object.
    pub labels: BTreeMap<String, String>,
    /// Containers that name no seccomp profile get the runtime's default one instead of none: a
    /// deviation from upstream's default, as its `--seccomp-default`.
    pub seccomp_default: bool,
    /// The node's own HTTPS server; without it there are no logs, exec and port-forward.
    pub server: Option<ServerConfig>,
}

/// What a node is built from.
pub struct NodeParts {
    /// Acts as `system:node:<name>`.
    pub client: Client,
    pub informers: Informers,
    pub runtime: Arc<dyn PodRuntime>,
    pub images: Arc<Images>,
    pub network: Arc<dyn PodNetwork>,
    pub clock: Clock,
    pub random: Random,
}

/// What every part of the agent works with.
pub(crate) struct Context {
    pub config: NodeConfig,
    pub client: Client,
    pub recorder: Recorder,
    pub pods: Informer<Pod>,
    pub followed: sources::Followed,
    pub services: Informer<Service>,
    pub runtime: Arc<dyn PodRuntime>,
    pub images: Arc<Images>,
    pub network: Arc<dyn PodNetwork>,
    pub clock: Clock,
    pub random: Random,
    pub host: host::Host,
}

impl Context {
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.data_dir.join("pods").join(uid)
    }

    /// `<namespace>_<name>_<uid>`, as upstream lays `/var/log/pods` out.
    pub fn pod_log_dir(&self, pod: &Pod) -> PathBuf {
        let meta = &pod.metadata;
        let text = |s: &Option<String>| s.clone().unwrap_or_default();
        self.config.data_dir.join("logs").join(format!(
            "{}_{}_{}",
            text(&meta.namespace),
            text(&meta.name),
            text(&meta.uid)
        ))
    }

    pub fn log_path(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
        self.pod_log_dir(pod).join(container).join(format!("{attempt}.log"))
    }
}

/// Why the node could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("runtime")]
    Runtime(#[from] skeg_runtime::Error),
    #[error("images")]
    Images(#[from] skeg_images::Error),
    #[error("API")]
    Api(#[from] skeg_client::Error),
}

pub(crate) fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or_default()
}
