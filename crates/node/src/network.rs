//! What the node needs of a Pod network, and Skeg's own behind it.

use crate::services::ServiceTables;
use futures_util::future::BoxFuture;
use skeg_network::{HostPort, Protocol, Records};
use std::net::IpAddr;
use std::path::Path;

/// A port of the host that leads to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPortMapping {
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// Why a network operation failed, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(pub String);

/// Attaches Pods and publishes Services. All calls are idempotent.
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects a network namespace; the same uid gets the same address again.
    fn attach<'a>(
        &'a self,
        uid: &'a str,
        netns: &'a Path,
        ports: &'a [HostPortMapping],
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, NetworkError>>;
    fn detach<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), NetworkError>>;
    /// Uids of Pods that hold an address, so that those of dead Pods can be released.
    fn attached(&self) -> BoxFuture<'_, Result<Vec<String>, NetworkError>>;
    /// Replaces what Services translate to and what names resolve to.
    fn publish(&self, tables: ServiceTables) -> BoxFuture<'_, Result<(), NetworkError>>;
}

impl PodNetwork for skeg_network::Network {
    fn attach<'a>(
        &'a self,
        uid: &'a str,
        netns: &'a Path,
        ports: &'a [HostPortMapping],
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, NetworkError>> {
        Box::pin(async move {
            let ports: Vec<HostPort> = ports.iter().filter_map(host_port).collect();
            let attached = skeg_network::Network::attach(self, uid, netns, &ports).await.map_err(failed)?;
            Ok(vec![IpAddr::V4(attached.ip)])
        })
    }

    fn detach<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move { skeg_network::Network::detach(self, uid).await.map_err(failed) })
    }

    fn attached(&self) -> BoxFuture<'_, Result<Vec<String>, NetworkError>> {
        Box::pin(
            async move { Ok(skeg_network::Network::attached(self).into_iter().map(|a| a.uid).collect()) },
        )
    }

    fn publish(&self, tables: ServiceTables) -> BoxFuture<'_, Result<(), NetworkError>> {
        Box::pin(async move {
            self.set_services(service_ports(&tables.ports)).await.map_err(failed)?;
            self.set_records(records(tables));
            Ok(())
        })
    }
}

fn failed(error: skeg_network::Error) -> NetworkError {
    NetworkError(error.to_string())
}

fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn host_port(port: &HostPortMapping) -> Option<HostPort> {
    let host_ip = match port.host_ip {
        Some(IpAddr::V4(ip)) if !ip.is_unspecified() => Some(ip),
        // The Pod network is IPv4.
        Some(IpAddr::V6(ip)) if !ip.is_unspecified() => return None,
        _ => None,
    };
    Some(HostPort {
        host_ip,
        host_port: port.host_port,
        protocol: protocol(&port.protocol)?,
        container_port: port.container_port,
    })
}

/// An external address of a Service is translated as its cluster address is.
fn service_ports(ports: &[crate::services::ServicePort]) -> Vec<skeg_network::ServicePort> {
    let mut out = Vec::new();
    for port in ports {
        let Some(protocol) = protocol(&port.protocol) else { continue };
        let own = [(port.cluster_ip, port.node_port)];
        let external = port.external_ips.iter().map(|ip| (*ip, None));
        for (cluster_ip, node_port) in own.into_iter().chain(external) {
            out.push(skeg_network::ServicePort {
                cluster_ip,
                port: port.port,
                protocol,
                endpoints: port.endpoints.clone(),
                node_port,
                affinity_s: port.affinity_seconds,
            });
        }
    }
    out
}

fn records(tables: ServiceTables) -> Records {
    let v4 = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    };
    Records {
        addresses: tables
            .hosts
            .into_iter()
            .map(|(name, ips)| (name, ips.into_iter().filter_map(v4).collect()))
            .collect(),
        services: tables
            .srv
            .into_iter()
            .map(|(name, list)| (name, list.into_iter().map(|s| (s.port, s.target)).collect()))
            .collect(),
        aliases: tables.aliases,
        names: tables.reverse.into_iter().filter_map(|(ip, name)| Some((v4(ip)?, name))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_reach_the_name_server() {
        let aliases = [("db.ns.svc.cluster.local".to_owned(), "db.example.com".to_owned())];
        let tables = ServiceTables { aliases: aliases.clone().into(), ..Default::default() };
        assert_eq!(records(tables).aliases, aliases.into());
    }
}
