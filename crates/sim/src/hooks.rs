//! What plugs into the API server in a run: the real authorizers and admission chain; nobody comes
//! from the network.

use futures_util::future::BoxFuture;
use rustls_pki_types::CertificateDer;
use skeg_api::Status;
use skeg_apiserver::auth::authz::Union;
use skeg_apiserver::discovery::Discovery;
use skeg_apiserver::hooks::{Authenticator, Authorizer};
use skeg_apiserver::request::{Attributes, Decision};
use skeg_apiserver::{Hooks, Identity, Seams, admission};
use std::sync::Arc;

struct Nobody;

impl Authenticator for Nobody {
    fn authenticate<'a>(
        &'a self,
        _: &'a http::request::Parts,
        _: &'a [CertificateDer<'static>],
    ) -> BoxFuture<'a, Result<Identity, Status>> {
        Box::pin(std::future::ready(Err(Status::unauthorized())))
    }
}

struct May(Arc<Union>);

impl Authorizer for May {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        self.0.decide(attributes)
    }
}

pub fn hooks(seams: &Seams) -> Hooks {
    let union = Arc::new(Union::new(seams.reader.clone()));
    Hooks {
        authenticator: Arc::new(Nobody),
        authorizer: Arc::new(May(union.clone())),
        admission: admission::chain(&seams.reader, &union, &seams.random),
        endpoints: vec![Arc::new(Discovery::new(seams.kinds.clone()))],
        allocators: Vec::new(),
    }
}
