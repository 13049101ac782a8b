//! The API server's way to nodes. Today there is one, in this process; the seam is where tunnels
//! to others will come.

use futures_util::future::{BoxFuture, FutureExt};
use skeg_apiserver::proxy::{Connection, Dialer};
use std::io;
use std::sync::{Arc, OnceLock};

/// Reaches the node of this process over loopback.
pub struct Loopback {
    pub node: String,
    /// Known once the node's server listens.
    pub port: Arc<OnceLock<u16>>,
}

impl Dialer for Loopback {
    fn dial<'a>(&'a self, node: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        async move {
            if node != self.node {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("no route to node {node:?}")));
            }
            let Some(port) = self.port.get() else {
                return Err(io::Error::new(io::ErrorKind::NotConnected, "the node is starting"));
            };
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", *port)).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        }
        .boxed()
    }
}
