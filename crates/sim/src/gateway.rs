//! The API server's process: how it starts, crashes, and starts again on the same store. Clients
//! keep their seams meanwhile, as they keep an address.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use parking_lot::Mutex;
use skeg_api::Kinds;
use skeg_apiserver::assembly::{self, Setup};
use skeg_apiserver::{ApiServer, Body, BoxError, Identity, bootstrap};
use skeg_base::{Clock, Random};
use skeg_store::Store;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub struct Gateway {
    pub store: Arc<dyn Store>,
    pub kinds: Arc<Kinds>,
    clock: Clock,
    random: Random,
    running: Mutex<Option<Running>>,
}

/// One life of the server.
#[derive(Clone)]
struct Running {
    server: Arc<ApiServer>,
    crashed: CancellationToken,
}

/// What a client holds of the server while it lives: its end cuts every connection.
#[derive(Clone)]
pub struct Connection {
    running: Running,
    identity: Identity,
}

impl Gateway {
    pub fn new(store: Arc<dyn Store>, clock: Clock, random: Random) -> Self {
        let kinds = Arc::new(Kinds::new(skeg_api::builtin::builtin()));
        Gateway { store, kinds, clock, random, running: Mutex::default() }
    }

    /// Starts the server if it does not run.
    pub async fn start(&self) -> Result<(), String> {
        if self.running.lock().is_some() {
            return Ok(());
        }
        let setup = Setup {
            edge: None,
            cluster_domain: "cluster.local".into(),
            admission: Default::default(),
            bootstrap: bootstrap::Settings {
                service_range: "10.0.0.0/24".parse().map_err(|error| format!("{error}"))?,
                service_ip: [10, 0, 0, 1].into(),
                endpoints: vec![[10, 1, 0, 1].into()],
                port: 6443,
            },
        };
        let (kinds, store) = (self.kinds.clone(), self.store.clone());
        let opened = assembly::open(setup, kinds, store, self.clock, self.random.fork()).await;
        let server = opened.map_err(|error| error.to_string())?.server;
        *self.running.lock() = Some(Running { server, crashed: CancellationToken::new() });
        Ok(())
    }

    /// Ends the server between two steps of whatever it was doing.
    pub async fn crash(&self) {
        let running = self.running.lock().take();
        if let Some(running) = running {
            running.crashed.cancel();
            running.server.stop().await;
        }
    }

    pub fn connect(&self, identity: &Identity) -> Result<Connection, BoxError> {
        let running = self.running.lock().clone().ok_or("connection refused")?;
        Ok(Connection { running, identity: identity.clone() })
    }
}

impl Connection {
    pub fn send(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        let answer = self.running.server.client_service(self.identity.clone()).send(request);
        let crashed = self.running.crashed.clone();
        Box::pin(async move {
            tokio::select! {
                biased;
                () = crashed.cancelled() => Err("the server went away".into()),
                answer = answer => Ok(answer),
            }
        })
    }

    /// The next piece of an answer's body.
    pub async fn data(&self, body: &mut Body) -> Option<Result<Bytes, BoxError>> {
        use http_body_util::BodyExt;
        loop {
            let frame = tokio::select! {
                biased;
                () = self.running.crashed.cancelled() => return Some(Err("the server went away".into())),
                frame = body.frame() => frame?,
            };
            match frame.map(http_body::Frame::into_data) {
                Ok(Ok(data)) => return Some(Ok(data)),
                Ok(Err(_)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
