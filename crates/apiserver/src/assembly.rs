//! The server put together: default objects, users, authorization, admission, allocation and the
//! endpoints, over any store. The simulation leaves the network's edge out.

use crate::admission;
use crate::aggregator::{self, Aggregator};
use crate::allocate::{self, Addresses, ServiceAllocator};
use crate::auth::authn::Credentials;
use crate::auth::authz::Union;
use crate::auth::impersonation;
use crate::auth::token::{KeyError, Signer};
use crate::bootstrap::{self, BootstrapError, aggregation, api_services, flowcontrol};
use crate::discovery::Discovery;
use crate::health::Health;
use crate::hooks::{Authenticator, Authorizer, Certificates, Endpoint, Hooks, Nobody, Seams};
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::pki::{self, Pair, Pki, PkiError};
use crate::proxy::{Dialer, Streams};
use crate::request::{Attributes, Decision};
use crate::reviews::Reviews;
use crate::server::{ApiServer, Config, OpenError};
use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use skeg_api::{Kinds, Status};
use skeg_base::{Clock, Random};
use skeg_store::Store;
use std::sync::{Arc, OnceLock};

/// The user as whom the API server asks nodes.
pub const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// What connects the server with clients and nodes.
pub struct Edge {
    pub pki: Arc<Pki>,
    pub dialer: Arc<dyn Dialer>,
}

pub struct Setup {
    /// `None` in the simulation: nobody comes over a network, and nothing is signed.
    pub edge: Option<Edge>,
    /// `cluster.local`
    pub cluster_domain: String,
    pub bootstrap: bootstrap::Settings,
    pub admission: admission::Plugins,
}

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("service addresses: {0}")]
    Allocation(skeg_store::Error),
}

/// A server that runs.
pub struct Assembled {
    pub server: Arc<ApiServer>,
    /// Where the wiring adds checks of readiness.
    pub health: Option<Arc<Health>>,
    /// How many default objects this start wrote.
    pub written: usize,
}

/// The issuer of service account tokens, which is also their default audience.
pub fn issuer(cluster_domain: &str) -> String {
    format!("https://kubernetes.default.svc.{cluster_domain}")
}

/// Writes the default objects, then opens the server.
pub async fn open(
    setup: Setup,
    kinds: Arc<Kinds>,
    store: Arc<dyn Store>,
    clock: Clock,
    random: Random,
) -> Result<Assembled, SetupError> {
    let authorities = setup.edge.as_ref().map(|edge| bootstrap::Authorities {
        client_ca: edge.pki.ca_pem().to_owned(),
        front_proxy_ca: edge.pki.front_proxy_ca_pem().to_owned(),
        allowed_names: vec![pki::FRONT_PROXY_CLIENT.to_owned()],
    });
    let authorities = authorities.as_ref();
    let written = bootstrap::run(&*store, &kinds, clock, &random, &setup.bootstrap, authorities).await?;
    let addresses = Addresses::open(store.clone(), &kinds, random.fork(), setup.bootstrap.service_range)
        .await
        .map_err(SetupError::Allocation)?;
    let edge = match &setup.edge {
        None => None,
        Some(edge) => Some(prepare(edge, issuer(&setup.cluster_domain))?),
    };
    let health = edge.as_ref().map(|edge| edge.health.clone());
    let (plugins, dialer) = (setup.admission, setup.edge.map(|edge| edge.dialer));
    let aggregator = Arc::new(OnceLock::new());
    let made = aggregator.clone();
    let hooks = move |seams: &Seams| {
        let identity = edge.as_ref().map(|edge| edge.front_proxy.clone());
        let aggregator = Arc::new(Aggregator::new(seams, dialer.clone(), identity));
        let aggregator = made.get_or_init(|| aggregator).clone();
        hooks(seams, addresses, edge, dialer, &plugins, aggregator)
    };
    let config = Config { kinds, hooks: Box::new(hooks) };
    let server = ApiServer::open(config, store, clock, random).await?;
    server.tasks().0.spawn(aggregation::run(server.clone()));
    bootstrap::maintain(&server, &setup.bootstrap, authorities);
    server.tasks().0.spawn(api_services::run(server.clone()));
    server.tasks().0.spawn(flowcontrol::run(server.clone()));
    server.tasks().0.spawn(allocate::objects::run(server.clone()));
    if let Some(aggregator) = aggregator.get() {
        server.tasks().0.spawn(aggregator::run(server.clone(), aggregator.clone()));
    }
    server.tasks().0.spawn(admission::policy::status::run(server.clone()));
    Ok(Assembled { server, health, written })
}

/// What of the edge can fail, made before the server opens.
struct Prepared {
    issuer: String,
    signer: Arc<Signer>,
    verifier: Arc<dyn rustls::server::danger::ClientCertVerifier>,
    streams: Arc<Streams>,
    front_proxy: Pair,
    health: Arc<Health>,
}

fn prepare(edge: &Edge, issuer: String) -> Result<Prepared, SetupError> {
    let signer = Arc::new(Signer::from_pem(edge.pki.token_key())?);
    let client = edge.pki.client("apiserver-kubelet-client", KUBELET_CLIENT, &[])?;
    let tls = Arc::new(edge.pki.client_config(Some(&client))?);
    let health = Health { signer: signer.clone(), issuer: issuer.clone(), more: RwLock::default() };
    Ok(Prepared {
        signer,
        verifier: edge.pki.client_verifier()?,
        streams: Arc::new(Streams::new(edge.dialer.clone(), tls)),
        front_proxy: edge.pki.front_proxy()?,
        health: Arc::new(health),
        issuer,
    })
}

fn hooks(
    seams: &Seams,
    addresses: Arc<Addresses>,
    edge: Option<Prepared>,
    dialer: Option<Arc<dyn Dialer>>,
    plugins: &admission::Plugins,
    aggregator: Arc<Aggregator>,
) -> Hooks {
    let local_superusers = edge.is_none();
    let authorizer = Arc::new(Union::new(seams.reader.clone()));
    let mut endpoints: Vec<Arc<dyn Endpoint>> = vec![
        aggregator.clone(),
        Arc::new(Discovery::new(seams.kinds.clone(), Some(aggregator))),
        Arc::new(Metrics),
    ];
    let authenticator: Arc<dyn Authenticator> = match edge {
        None => Arc::new(Nobody),
        Some(Prepared { issuer, signer, verifier, streams, health, .. }) => {
            let credentials =
                Credentials::new(seams.reader.clone(), seams.clock, signer.clone(), issuer.clone(), verifier);
            let credentials = Arc::new(credentials);
            endpoints.push(health);
            endpoints.push(streams);
            endpoints.push(Arc::new(Reviews {
                credentials: credentials.clone(),
                authorizer: authorizer.clone(),
                signer,
                issuer,
            }));
            Arc::new(Gate { credentials, authorizer: authorizer.clone() })
        }
    };
    Hooks {
        local_superusers,
        authenticator,
        admission: admission::chain(seams, &authorizer, dialer.clone(), plugins),
        dialer,
        authorizer,
        endpoints,
        allocators: vec![Arc::new(ServiceAllocator(addresses))],
    }
}

/// Who asks, over the network.
struct Gate {
    credentials: Arc<Credentials>,
    authorizer: Arc<Union>,
}

impl Authenticator for Gate {
    fn authenticate<'a>(
        &'a self,
        request: &'a http::request::Parts,
        certificates: &'a Certificates,
    ) -> BoxFuture<'a, Result<Identity, Status>> {
        let identity = self.credentials.identify(&request.headers, certificates).and_then(|asker| {
            impersonation::resolve(asker, &request.headers, |asked| self.authorizer.decide(asked))
        });
        Box::pin(std::future::ready(identity))
    }
}

impl Authorizer for Union {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        self.decide(attributes)
    }
}
