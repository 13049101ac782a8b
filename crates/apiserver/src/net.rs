//! Listeners: TCP, TLS, HTTP/1.1 and HTTP/2. Any number of them, added at run time. Hands each
//! request to the server with the certificate chain of its connection; strips nothing and trusts
//! nothing else.

use crate::hooks::Certificates;
use crate::local::{Body, BoxError};
use crate::server::{ApiServer, Origin};
use crate::websocket::Upgrade;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Method, Response};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Connections served at once, per listener; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 8192;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be without a request, or take to send its headers.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(120);
/// Upstream's `--http2-max-streams-per-connection` default.
const STREAMS_PER_CONNECTION_MAX: u32 = 250;
/// What the headers of one request may take together, as in Go's server.
const HEADERS_BYTES_MAX: u32 = 1 << 20;
/// The same over HTTP/2: a path beyond this could not be represented, which would end the connection
/// with its other requests instead of being answered.
const HTTP2_HEADERS_BYTES_MAX: u32 = 64 << 10;
/// How long requests under way may take to end once the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read of bodies that nobody wants, and for how long: no less than any that is taken.
const UNREAD_BYTES_MAX: usize = 4 << 20;
const UNREAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Pings find connections whose other end is gone, as upstream's do.
const PING_EVERY: Duration = Duration::from_secs(30);

/// A listener that runs until it is dropped or the server stops.
pub struct Listening {
    pub address: SocketAddr,
    stop: CancellationToken,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl ApiServer {
    /// Serves HTTPS on a bound socket. Client certificates are those that `tls` verifies.
    pub fn listen(
        self: &Arc<Self>,
        listener: TcpListener,
        tls: Arc<ServerConfig>,
    ) -> std::io::Result<Listening> {
        let address = listener.local_addr()?;
        let (tasks, stop) = self.tasks();
        let stop = stop.child_token();
        tasks.spawn(accept(self.clone(), listener, TlsAcceptor::from(tls), stop.clone()));
        Ok(Listening { address, stop })
    }
}

/// Where the client of a request is, among the request's extensions.
#[derive(Clone, Copy)]
pub struct Peer(pub IpAddr);

async fn accept(server: Arc<ApiServer>, listener: TcpListener, tls: TlsAcceptor, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = async {
                let slot = slots.clone().acquire_owned().await;
                (slot, listener.accept().await)
            } => accepted,
        };
        match accepted {
            (Ok(slot), Ok((stream, _))) => {
                let (server, tls, stop) = (server.clone(), tls.clone(), stop.clone());
                let tasks = server.tasks().0.clone();
                tasks.spawn(async move {
                    if let Err(error) = connection(server, stream, tls, stop).await {
                        tracing::debug!(%error, "connection ended");
                    }
                    drop(slot);
                });
            }
            (_, Err(error)) => {
                // Out of file descriptors, mostly: ending connections free them.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            (Err(_), _) => return,
        }
    }
}

/// A body that is read to its end when nobody wants it: an answer before that would end an HTTP/1.1
/// connection, and clients that still write would see that instead of the answer.
struct Received(Option<Incoming>);

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(ctx));
        if frame.is_none() {
            self.0 = None;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.as_ref().map_or(http_body::SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let Some(body) = self.0.take().filter(|body| !body.is_end_stream()) else { return };
        // A server that goes has nobody to read for.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let mut body = Limited::new(body, UNREAD_BYTES_MAX);
            let read = async { while let Some(Ok(_)) = body.frame().await {} };
            let _ = tokio::time::timeout(UNREAD_TIMEOUT, read).await;
        });
    }
}

/// The answer to HEAD: what GET would say, without the body. HTTP/2 must not be given one.
fn headers_only(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        parts.headers.entry(CONTENT_LENGTH).or_insert(length.into());
    }
    Response::from_parts(parts, crate::local::empty())
}

async fn connection(
    server: Arc<ApiServer>,
    stream: TcpStream,
    tls: TlsAcceptor,
    stop: CancellationToken,
) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let peer = Peer(stream.peer_addr()?.ip());
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await??;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let chain = Arc::new(Certificates::new(chain));
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (server, chain) = (server.clone(), chain.clone());
        async move {
            let is_head = request.method() == Method::HEAD;
            let mut request = request.map(|body| match body.is_end_stream() {
                true => crate::local::empty(),
                false => Received(Some(body)).boxed_unsync(),
            });
            request.extensions_mut().insert(peer);
            let upgrade = Upgrade::take(&mut request);
            let mut response = server.handle(request, Origin::Network(chain)).await;
            if let Some(upgrade) = upgrade {
                response = upgrade.answer(&server, response);
            }
            Ok::<_, Infallible>(if is_head { headers_only(response) } else { response })
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_buf_size(HEADERS_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .max_header_list_size(HTTP2_HEADERS_BYTES_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
            biased;
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    // What does not end by itself is cut.
    tokio::time::timeout(DRAIN_TIMEOUT, connection).await.unwrap_or(Ok(()))
}
