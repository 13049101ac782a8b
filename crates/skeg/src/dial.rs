//! The API server's way to nodes. Today there is one, in this process; the seam is where tunnels
//! to others will come.

use futures_util::future::{BoxFuture, FutureExt};
use skeg_apiserver::proxy::{Connection, Dialer, connect};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
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
            connect((Ipv4Addr::LOCALHOST, *port).into()).await
        }
        .boxed()
    }

    fn dial_address<'a>(
        &'a self,
        _node: &'a str,
        address: SocketAddr,
    ) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        connect(address).boxed()
    }
}
