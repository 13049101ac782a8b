//! Where the parts that know users, addresses and nodes plug into the generic path: who asks, who
//! may, what else is served, what is allocated. The generic path itself knows none of them.

use crate::admission::{Operation, Plugin};
use crate::auth::{Digest, sha256};
use crate::identity::Identity;
use crate::local::Body;
use crate::proxy::Dialer;
use crate::reader::Reader;
use crate::request::{Attributes, Decision, RequestInfo};
use crate::server::ApiServer;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use rustls_pki_types::CertificateDer;
use skeg_api::{Kind, Kinds, Status, Value};
use skeg_base::{Clock, Random};
use skeg_store::Store;
use std::sync::{Arc, OnceLock};

/// Who asks, for requests from the network. In-process requests bring their [`Identity`].
pub trait Authenticator: Send + Sync + 'static {
    /// `certificates` is the verified client chain of the connection; empty without one. Impersonation
    /// is resolved here too.
    fn authenticate<'a>(
        &'a self,
        request: &'a http::request::Parts,
        certificates: &'a Certificates,
    ) -> BoxFuture<'a, Result<Identity, Status>>;
}

/// The certificates of a client, end entity first.
#[derive(Default)]
pub struct Certificates {
    pub chain: Vec<CertificateDer<'static>>,
    /// Of the end entity's, made once for all requests of a connection.
    digest: OnceLock<Digest>,
}

impl Certificates {
    pub fn new(chain: Vec<CertificateDer<'static>>) -> Self {
        Certificates { chain, digest: OnceLock::new() }
    }

    /// The end entity's certificate with its digest.
    pub fn leaf(&self) -> Option<(&CertificateDer<'static>, &Digest)> {
        let leaf = self.chain.first()?;
        Some((leaf, self.digest.get_or_init(|| sha256(leaf))))
    }
}

/// Lets nobody in: without an edge, every request from a network is a mistake.
pub struct Nobody;

impl Authenticator for Nobody {
    fn authenticate<'a>(
        &'a self,
        _request: &'a http::request::Parts,
        _certificates: &'a Certificates,
    ) -> BoxFuture<'a, Result<Identity, Status>> {
        Box::pin(std::future::ready(Err(Status::unauthorized())))
    }
}

/// Who may. Called for every request, of any origin.
pub trait Authorizer: Send + Sync + 'static {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision;
}

/// One authorized request for an [`Endpoint`].
pub struct Call {
    pub server: Arc<ApiServer>,
    pub identity: Identity,
    pub info: RequestInfo,
    /// The row of the resource, where the path names one.
    pub kind: Option<Arc<Kind>>,
    /// Whether the request came through an in-process service.
    pub local: bool,
}

/// Serves what the generic path does not: discovery, health, metrics, reviews, tokens, streams to
/// nodes. Called after authorization.
pub trait Endpoint: Send + Sync + 'static {
    /// Whether this endpoint serves the request. Must be quick: it is asked for each request
    /// that is not a plain resource verb of a stored kind.
    fn handles(&self, info: &RequestInfo) -> bool;

    /// Whether a request is this endpoint's although the table has a row for it. Asked for every
    /// request: must be very quick.
    fn claims(&self, _info: &RequestInfo) -> bool {
        false
    }

    /// Requests that may take as long as they like: no timeout, not counted as in flight.
    fn long_running(&self, _info: &RequestInfo) -> bool {
        false
    }

    /// Errors become a `Status` body in the caller.
    fn call(&self, call: Call, request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, Status>>;
}

/// Something reserved for a write that is not stored yet.
pub trait Reservation: Send + Sync {
    /// The write happened (keep what was reserved), or did not (give it back).
    fn finish(self: Box<Self>, stored: bool);
}

/// Allocation of values that are unique over objects: service addresses and node ports.
pub trait Allocator: Send + Sync + 'static {
    /// Called for each create and update after admission and before validation; may fill fields
    /// of `new`. With `dry_run` nothing may stay reserved.
    fn begin<'a>(
        &'a self,
        operation: Operation,
        kind: &'a Kind,
        new: &'a mut Value,
        old: Option<&'a Value>,
        dry_run: bool,
    ) -> BoxFuture<'a, Result<Option<Box<dyn Reservation>>, Status>>;

    /// An object is gone: what it held is free.
    fn deleted(&self, kind: &Kind, old: &Value);
}

/// Everything that plugs in.
pub struct Hooks {
    pub authenticator: Arc<dyn Authenticator>,
    pub authorizer: Arc<dyn Authorizer>,
    /// In upstream's order.
    pub admission: Vec<Arc<dyn Plugin>>,
    pub endpoints: Vec<Arc<dyn Endpoint>>,
    pub allocators: Vec<Arc<dyn Allocator>>,
    /// How conversion webhooks are reached; without it by this host's own connections.
    pub dialer: Option<Arc<dyn Dialer>>,
    /// Whether components of this process may be superusers: only where nobody comes in from
    /// outside, as in tests.
    pub local_superusers: bool,
}

/// What the hooks are made from, given to the function in [`crate::Config`] once the cache is
/// loaded.
#[derive(Clone)]
pub struct Seams {
    pub reader: Arc<dyn Reader>,
    pub kinds: Arc<Kinds>,
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    pub random: Random,
}
