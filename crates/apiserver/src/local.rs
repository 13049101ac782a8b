//! The API server as a service in the same process: no socket and no TLS, but the same
//! authorization, admission and validation. The identity is given when the service is made, so no
//! request can carry one in.

use crate::auth::authz::SUPERUSERS;
use crate::identity::Identity;
use crate::server::{ApiServer, Origin};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Request and response bodies, of any origin.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(never).boxed_unsync()
}

pub fn empty() -> Body {
    Empty::new().map_err(never).boxed_unsync()
}

fn never(never: Infallible) -> BoxError {
    match never {}
}

/// Requests as one identity.
#[derive(Clone)]
pub struct LocalService {
    server: Arc<ApiServer>,
    identity: Identity,
}

impl ApiServer {
    /// A transport for a component of this process. Only the wiring hands these out. Where users
    /// come in from outside no component is a superuser, whatever the wiring says.
    pub fn client_service(self: &Arc<Self>, identity: Identity) -> LocalService {
        let allowed = self.hooks().local_superusers || !identity.in_group(SUPERUSERS);
        let identity = if allowed { identity } else { identity.without_group(SUPERUSERS) };
        LocalService { server: self.clone(), identity }
    }
}

impl ApiServer {
    /// The API server's own requests to itself: upstream's loopback client, which may do everything.
    pub(crate) fn loopback(self: &Arc<Self>) -> LocalService {
        LocalService { server: self.clone(), identity: Identity::system("system:apiserver", &[SUPERUSERS]) }
    }
}

impl LocalService {
    /// One request and its answer. (In a spawned task prefer this, or `call`, to
    /// `ServiceExt::oneshot`: the compiler cannot show that the latter's future is `Send` for
    /// bodies with boxed errors.)
    pub fn send(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        let (server, identity) = (self.server.clone(), self.identity.clone());
        Box::pin(async move { server.handle(request, Origin::Local(identity)).await })
    }
}

/// One request with a JSON body, and the body of its answer.
///
/// # Errors
/// The code and the body of a refusal: `409 Conflict: …`.
pub(crate) async fn send(
    service: &LocalService,
    method: Method,
    path: &str,
    body: String,
) -> Result<Bytes, String> {
    let request =
        Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
    let request = request.body(full(body)).map_err(|error| error.to_string())?;
    let response = service.send(request).await;
    let code = response.status();
    let body = crate::registry::read_answer(response.into_body()).await?;
    match code {
        StatusCode::OK | StatusCode::CREATED | StatusCode::ACCEPTED => Ok(body),
        code => Err(format!("{code}: {}", String::from_utf8_lossy(&body))),
    }
}

impl tower::Service<Request<Body>> for LocalService {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _ctx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.send(request);
        Box::pin(async move { Ok(answer.await) })
    }
}
