//! The node's own HTTPS server.
use crate::Error;
use crate::agent::Agent;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

#[derive(Clone)]
pub struct ServerConfig {
    pub port: u16,
}

pub(crate) async fn start(_: Arc<Agent>, _: ServerConfig, _: CancellationToken) -> Result<(), Error> {
    Ok(())
}
