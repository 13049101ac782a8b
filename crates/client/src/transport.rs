//! One request, one response, over whatever carries them: the in-process API server or HTTPS.
//! Knows HTTP and `Status`; nothing of kinds.

use crate::error::{BoxError, Error, Result};
use bytes::{Bytes, BytesMut};
use futures_util::future::{BoxFuture, TryFutureExt};
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde::de::DeserializeOwned;
use skeg_api::Status;
use std::sync::Arc;
use std::time::Duration;
use tower::{Service, ServiceExt};

/// Bodies of requests and responses, in process and over the network.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// The largest response that is collected in memory (a list of everything).
const RESPONSE_BYTES_MAX: usize = 512 << 20;
/// A little more than the server's own limit for a request that is no watch.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(65);
/// How often a request is sent again because the server said when to come back.
const RETRIES_MAX: u32 = 5;

trait Transport: Send + Sync {
    fn send(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>>;
}

struct Boxed<S>(S);

impl<S> Transport for Boxed<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    fn send(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        let service = self.0.clone();
        Box::pin(service.oneshot(request).map_err(Into::into))
    }
}

/// A connection to the API, on behalf of one component. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    component: Arc<str>,
    user_agent: HeaderValue,
}

/// A body-carrying or plain request before it becomes HTTP.
#[derive(Clone, Debug)]
pub struct RawRequest {
    pub method: Method,
    /// Path and query: `/api/v1/namespaces/default/pods?limit=1`.
    pub uri: String,
    pub accept: &'static str,
    pub content_type: &'static str,
    pub body: Bytes,
}

impl RawRequest {
    pub fn new(method: Method, uri: impl Into<String>) -> Self {
        RawRequest {
            method,
            uri: uri.into(),
            accept: "application/json",
            content_type: "application/json",
            body: Bytes::new(),
        }
    }

    pub fn get(uri: impl Into<String>) -> Self {
        Self::new(Method::GET, uri)
    }
}

impl Client {
    /// A client over any service that answers API requests. The component is named `skeg` until
    /// [`Client::named`] says otherwise.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
    {
        Client {
            transport: Arc::new(Boxed(service)),
            component: "skeg".into(),
            user_agent: HeaderValue::from_static("skeg"),
        }
    }

    /// The same connection under a component's name, which becomes the user agent and the field
    /// manager of its writes.
    #[must_use]
    pub fn named(&self, component: &str) -> Self {
        let user_agent = HeaderValue::from_str(component).unwrap_or(HeaderValue::from_static("skeg"));
        Client { transport: self.transport.clone(), component: component.into(), user_agent }
    }

    pub fn component(&self) -> &str {
        &self.component
    }

    /// Sends a request as it is: errors of the API are answers here.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>> {
        request.headers_mut().entry(USER_AGENT).or_insert_with(|| self.user_agent.clone());
        self.transport.send(request).await.map_err(Error::Transport)
    }

    /// Sends a request and returns the successful response with its body unread. Comes back when
    /// a busy server says when to (429, or 503 with `Retry-After`), a bounded number of times.
    pub async fn open(&self, request: &RawRequest) -> Result<Response<Body>> {
        let mut retries = 0;
        loop {
            let http = Request::builder()
                .method(request.method.clone())
                .uri(&request.uri)
                .header(ACCEPT, request.accept)
                .header(CONTENT_TYPE, request.content_type)
                .body(Full::new(request.body.clone()).map_err(|never| match never {}).boxed_unsync())
                .map_err(|e| Error::Transport(e.into()))?;
            let response =
                tokio::time::timeout(REQUEST_TIMEOUT, self.send(http)).await.map_err(timed_out)??;
            if response.status().is_success() {
                return Ok(response);
            }
            match retry_after(&response) {
                Some(wait) if retries < RETRIES_MAX => {
                    retries += 1;
                    tokio::time::sleep(wait).await;
                }
                _ => return Err(Error::Api(refusal(response).await?)),
            }
        }
    }

    /// Sends a request and returns the body of the successful answer.
    pub async fn bytes(&self, request: &RawRequest) -> Result<Bytes> {
        let response = self.open(request).await?;
        tokio::time::timeout(REQUEST_TIMEOUT, collect(response.into_body())).await.map_err(timed_out)?
    }

    /// Sends a request and decodes the JSON of the successful answer.
    pub async fn json<T: DeserializeOwned>(&self, request: &RawRequest) -> Result<T> {
        let bytes = self.bytes(request).await?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Decode { what: request.uri.clone(), source })
    }
}

fn timed_out(elapsed: tokio::time::error::Elapsed) -> Error {
    Error::Transport(elapsed.into())
}

async fn collect(body: Body) -> Result<Bytes> {
    let mut body = body;
    let mut collected = BytesMut::new();
    let mut only = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Error::Transport)?.into_data() else { continue };
        if collected.is_empty() && only.is_none() {
            // The usual answer is one frame, which needs no copy.
            only = Some(data);
            continue;
        }
        collected.extend_from_slice(&only.take().unwrap_or_default());
        collected.extend_from_slice(&data);
        if collected.len() > RESPONSE_BYTES_MAX {
            return Err(Error::Transport("the answer exceeds the size limit".into()));
        }
    }
    Ok(only.unwrap_or_else(|| collected.freeze()))
}

fn retry_after(response: &Response<Body>) -> Option<Duration> {
    if !matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let seconds: u64 = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds.clamp(1, 10)))
}

/// The `Status` in an error answer, or one made up for answers of something that is no API server.
async fn refusal(response: Response<Body>) -> Result<Status> {
    let code = response.status();
    let body =
        tokio::time::timeout(REQUEST_TIMEOUT, collect(response.into_body())).await.map_err(timed_out)??;
    let status = serde_json::from_slice::<Status>(&body).ok().filter(|status| status.code != 0);
    Ok(status.unwrap_or_else(|| {
        let text = String::from_utf8_lossy(&body);
        let text = if text.trim().is_empty() { code.to_string() } else { text.trim().to_owned() };
        Status::new(code.as_u16(), skeg_api::Reason::Unknown, text)
    }))
}
