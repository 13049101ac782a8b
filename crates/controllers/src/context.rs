//! What every controller is given, and how its work is started.

use skeg_api::{Kinds, csr};
use skeg_base::{Clock, Random};
use skeg_client::{Client, Informers, Key, Queue, Recorder, run_workers};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Gives the client of a component: the part after `system:serviceaccount:kube-system:`.
pub type Clients = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// The outside world of the controllers.
#[derive(Clone)]
pub struct ControllerContext {
    pub clients: Clients,
    /// Shared by all of them; reads as an identity that may list and watch everything.
    pub informers: Informers,
    pub clock: Clock,
    pub random: Random,
    pub config: Config,
    /// The server's table, to be told of its changes. What is in it is read by discovery, so that
    /// nothing is used before it is served.
    pub kinds: Arc<Kinds>,
    pub cancel: CancellationToken,
}

type Sign = dyn Fn(&csr::Request, &[String], Duration) -> Result<String, String> + Send + Sync;

/// The authority as controllers see it: it signs, and nobody sees its key.
#[derive(Clone)]
pub struct Signer(Arc<Sign>);

impl Signer {
    /// From what makes a certificate in PEM of a request, for usages and a time.
    pub fn new(
        sign: impl Fn(&csr::Request, &[String], Duration) -> Result<String, String> + Send + Sync + 'static,
    ) -> Self {
        Signer(Arc::new(sign))
    }

    pub(crate) fn sign(
        &self,
        request: &csr::Request,
        usages: &[String],
        lasts: Duration,
    ) -> Result<String, String> {
        (self.0)(request, usages, lasts)
    }
}

impl PartialEq for Signer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

/// What an administrator may set. Names and defaults are upstream's.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// PEM, published to each namespace as `kube-root-ca.crt`; nothing is published without it.
    pub root_ca: Option<String>,
    /// Signs what CertificateSigningRequests ask for; without it nobody looks at them.
    pub signer: Option<Signer>,
    /// The longest that a certificate from a request lasts.
    pub cluster_signing_duration: Duration,
    /// How long a node may be silent.
    pub node_monitor_grace_period: Duration,
    /// How long a node may take from its registration to its first status.
    pub node_startup_grace_period: Duration,
    /// `NoExecute` taints a second and zone, so that a fault of the network, which makes many
    /// nodes silent at once, does not evict everything.
    pub node_eviction_rate: f64,
    /// That rate for a large zone of which most nodes are silent.
    pub secondary_node_eviction_rate: f64,
    /// The share of silent nodes from which a zone counts as disrupted.
    pub unhealthy_zone_threshold: f64,
    /// Nodes beyond which a disrupted zone still evicts, slowly.
    pub large_cluster_size_threshold: usize,
    /// Ended Pods kept; 0 keeps all.
    pub terminated_pod_gc_threshold: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            root_ca: None,
            signer: None,
            cluster_signing_duration: Duration::from_secs(365 * 24 * 3600),
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            unhealthy_zone_threshold: 0.55,
            large_cluster_size_threshold: 50,
            terminated_pod_gc_threshold: 12_500,
        }
    }
}

impl ControllerContext {
    pub(crate) fn client(&self, component: &str) -> Client {
        (self.clients)(component)
    }

    /// A recorder of events that show `component` as their source.
    pub(crate) fn recorder(&self, client: &Client, component: &str) -> Recorder {
        Recorder::new(client, component, "", self.clock, &self.cancel)
    }

    pub(crate) fn queue<K: Key>(&self) -> Queue<K> {
        Queue::new(&self.cancel)
    }
}

/// The running tasks of the controllers; they end when the context is cancelled.
#[derive(Default)]
pub struct Controllers(pub(crate) JoinSet<()>);

impl Controllers {
    /// Waits until all of them have ended.
    pub async fn join(mut self) {
        while self.0.join_next().await.is_some() {}
    }

    /// Runs workers on `queue` once `ready` resolves, usually when its informers are synced.
    pub(crate) fn work<K, E, R, F, Fut>(
        &mut self,
        name: &'static str,
        workers: usize,
        queue: Queue<K>,
        ready: R,
        work: F,
    ) where
        K: Key,
        E: Display + 'static,
        R: Future<Output = ()> + Send + 'static,
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<Duration>, E>> + Send,
    {
        self.0.spawn(async move {
            ready.await;
            run_workers(name, workers, queue, work).await;
        });
    }
}
