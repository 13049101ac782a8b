//! Pod addresses, links, nftables and DNS; fed plain tables. Knows nothing of Kubernetes objects.
//!
//! Every Pod has one link to the node's bridge and a host route as its only way out, so all its
//! traffic passes the host's routing: translated connections between Pods of one node come back
//! the way they went. Needs the program `nft`.

mod addresses;
mod conntrack;
mod dns;
mod links;
mod netlink;
mod rules;

pub use dns::Records;
pub use rules::{HostPort, Protocol, ServicePort};

use addresses::Addresses;
use conntrack::Change;
use ipnet::Ipv4Net;
use parking_lot::Mutex;
use rules::{Client, Ground, Tables};
use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("{0}")]
    Other(String),
}

impl Error {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// One instance's network on this node.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Names the instance on this host: links, the table and the bridge are derived from it.
    pub id: String,
    /// Holds the addresses given out.
    pub state_dir: PathBuf,
    /// This node's range; its first address is the gateway.
    pub pod_cidr: Ipv4Net,
    pub service_cidr: Ipv4Net,
    /// The domain answered with authority: `cluster.local`.
    pub cluster_domain: String,
    /// The Service address under which Pods find the name server.
    pub dns_ip: Option<Ipv4Addr>,
    /// Names the servers that answer for the rest of the world.
    pub resolv_conf: PathBuf,
}

/// A Pod's place in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodIp {
    pub ip: Ipv4Addr,
    pub gateway: Ipv4Addr,
}

/// A Pod that holds an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub uid: String,
    pub ip: Ipv4Addr,
    pub host_ports: Vec<HostPort>,
}

/// The node's network.
pub struct Network {
    config: NetworkConfig,
    ground: Ground,
    addresses: Arc<Mutex<Addresses>>,
    dns: Arc<dns::Dns>,
    /// What the kernel's table holds, and the Services it is made from. Held over the change of
    /// the table, so that differences are always against what is there.
    rules: tokio::sync::Mutex<Rules>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Rules {
    /// None: nobody has said yet.
    services: Option<Vec<ServicePort>>,
    /// None: the table is of an earlier life.
    applied: Option<Tables>,
    /// Whom that life's affinity remembers.
    clients: Vec<Client>,
}

/// The instance's bridge: `skeg` and a hash, within the 15 characters of a link's name.
pub fn bridge_name(id: &str) -> String {
    format!("skeg{:08x}", skeg_base::hash_of(&id) as u32)
}

/// The host's end of a Pod's link.
fn link_name(id: &str, uid: &str) -> String {
    format!("skegv{:010x}", skeg_base::hash_of(&(id, uid)) & 0xff_ffff_ffff)
}

/// `nft` allows these in a name.
fn table_name(id: &str) -> Result<String> {
    const ID_LEN_MAX: usize = 64;
    let fits = !id.is_empty()
        && id.len() <= ID_LEN_MAX
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if fits {
        Ok(format!("skeg-{id}"))
    } else {
        Err(Error::Other(format!("{id:?} cannot name a network instance")))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Other(e.to_string()))?
}

/// What `nft` printed; `Err` within: it failed, with what it said.
async fn run_nft(args: &[&str], input: String) -> Result<std::result::Result<Vec<u8>, String>> {
    let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    blocking(move || {
        use std::io::Write;
        let missing = "run nft (install the package nftables)";
        let mut child = std::process::Command::new("nft")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::io(missing))?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input.as_bytes()) {
                // It ended before it had read everything, and says why itself.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                written => written.map_err(Error::io("write to nft"))?,
            }
        }
        let output = child.wait_with_output().map_err(Error::io(missing))?;
        let why = || String::from_utf8_lossy(&output.stderr).lines().take(3).collect::<Vec<_>>().join(" ");
        Ok(if output.status.success() { Ok(output.stdout) } else { Err(why()) })
    })
    .await
}

/// Runs one transaction: all of `script` or nothing.
async fn nft(script: String) -> Result<()> {
    if script.is_empty() {
        return Ok(());
    }
    run_nft(&["-f", "-"], script)
        .await?
        .map(drop)
        .map_err(|why| Error::Other(format!("nftables (does the kernel have nf_tables with NAT?): {why}")))
}

impl Network {
    /// Makes or finds the bridge, serves DNS. Pods attached before stay attached; a table that an
    /// earlier life left serves on until the first [`Network::set_services`] replaces it, and takes
    /// new host ports no sooner.
    pub async fn open(config: NetworkConfig) -> Result<Arc<Network>> {
        let (bridge, table) = (bridge_name(&config.id), table_name(&config.id)?);
        const PREFIX_LEN_MAX: u8 = 29;
        if config.pod_cidr.prefix_len() > PREFIX_LEN_MAX {
            return Err(Error::Other(format!("the Pod range {} is too small", config.pod_cidr)));
        }
        let (pods, services) = (config.pod_cidr, config.service_cidr);
        if pods.contains(&services.network()) || services.contains(&pods.network()) {
            return Err(Error::Other(format!(
                "the Pod range {pods} and the Service range {services} overlap"
            )));
        }
        let addresses = Addresses::open(config.state_dir.join("addresses"), config.pod_cidr)?;
        let gateway = addresses::gateway(config.pod_cidr);
        {
            let bridge = bridge.clone();
            blocking(move || links::make_bridge(&bridge, gateway, pods, services)).await?;
        }
        let ground = Ground { table, bridge, pods, services };
        let left = run_nft(&["-j", "list", "sets", "table", "ip", &ground.table], String::new()).await?;
        let upstreams = dns::host_upstreams(&config.resolv_conf, gateway);
        let dns =
            Arc::new(dns::Dns::new(&config.cluster_domain, config.dns_ip.unwrap_or(gateway), upstreams));
        let stop = CancellationToken::new();
        const DNS_PORT: u16 = 53;
        dns::serve(dns.clone(), SocketAddr::from((gateway, DNS_PORT)), stop.clone()).await?;
        let network = Arc::new(Network {
            config,
            ground,
            addresses: Arc::new(Mutex::new(addresses)),
            dns,
            rules: tokio::sync::Mutex::default(),
            stop,
        });
        match left {
            Ok(listed) => network.rules.lock().await.clients = rules::clients(&listed),
            Err(_) => network.set_services(Vec::new()).await?,
        }
        Ok(network)
    }

    /// The gateway: also an address of the host that every Pod reaches.
    pub fn gateway(&self) -> Ipv4Addr {
        addresses::gateway(self.config.pod_cidr)
    }

    /// The bridge's name.
    pub fn bridge(&self) -> &str {
        &self.ground.bridge
    }

    /// Gives the namespace a link, an address and the way out. Done again for the same Pod it
    /// gives the same address, and a new link where the namespace is new.
    pub async fn attach(&self, uid: &str, netns: &Path, host_ports: &[HostPort]) -> Result<PodIp> {
        let gateway = self.gateway();
        let ip = self.addresses.lock().acquire(uid, host_ports)?;
        let (bridge, link) = (self.ground.bridge.clone(), link_name(&self.config.id, uid));
        let netns = netns.to_owned();
        let (done, attached) = tokio::sync::oneshot::channel();
        // A thread of its own: it enters the namespace, and ends there.
        std::thread::Builder::new()
            .name("skeg-netns".to_owned())
            .spawn(move || drop(done.send(links::attach(&bridge, &link, &netns, ip, gateway))))
            .map_err(Error::io("start a thread"))?;
        attached.await.map_err(|e| Error::Other(e.to_string()))??;
        if !host_ports.is_empty() {
            self.apply(None).await?;
        }
        Ok(PodIp { ip, gateway })
    }

    /// Takes the link, the host ports and the address away. Detaching twice succeeds.
    pub async fn detach(&self, uid: &str) -> Result<()> {
        let had_ports = {
            let addresses = self.addresses.lock();
            addresses.leases().values().any(|l| l.uid == uid && !l.host_ports.is_empty())
        };
        let link = link_name(&self.config.id, uid);
        blocking(move || links::remove(&link)).await?;
        // Last, so that a crash before leaves it to the next detach.
        self.addresses.lock().release(uid)?;
        if had_ports {
            self.apply(None).await?;
        }
        Ok(())
    }

    /// Who holds an address.
    pub fn attached(&self) -> Vec<Attachment> {
        let addresses = self.addresses.lock();
        let attachment = |(ip, lease): (&Ipv4Addr, &addresses::Lease)| Attachment {
            uid: lease.uid.clone(),
            ip: *ip,
            host_ports: lease.host_ports.clone(),
        };
        addresses.leases().iter().map(attachment).collect()
    }

    /// Detaches every Pod that is not in `live`, and removes links that no Pod owns.
    pub async fn reconcile(&self, live: &BTreeSet<String>) -> Result<()> {
        for attachment in self.attached() {
            if !live.contains(&attachment.uid) {
                self.detach(&attachment.uid).await?;
            }
        }
        let keep: BTreeSet<String> = live.iter().map(|uid| link_name(&self.config.id, uid)).collect();
        let bridge = self.ground.bridge.clone();
        blocking(move || links::remove_ports_except(&bridge, &keep)).await
    }

    /// Replaces what Services translate to, in one transaction of the differences.
    pub async fn set_services(&self, services: Vec<ServicePort>) -> Result<()> {
        self.apply(Some(services)).await
    }

    /// Replaces what the cluster's names mean.
    pub fn set_records(&self, records: Records) {
        self.dns.set(records);
    }

    async fn apply(&self, services: Option<Vec<ServicePort>>) -> Result<()> {
        let mut rules = self.rules.lock().await;
        if services.is_some() {
            rules.services = services;
        }
        let Some(mut all) = rules.services.clone() else { return Ok(()) };
        if let Some(dns_ip) = self.config.dns_ip {
            const DNS_PORT: u16 = 53;
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let same = |s: &&mut ServicePort| {
                    s.cluster_ip == dns_ip && s.port == DNS_PORT && s.protocol == protocol
                };
                let endpoints = vec![SocketAddrV4::new(self.gateway(), DNS_PORT)];
                match all.iter_mut().find(same) {
                    // A Service of that address with servers of its own stands for itself.
                    Some(service) if !service.endpoints.is_empty() => {}
                    Some(service) => service.endpoints = endpoints,
                    None => all.push(ServicePort {
                        cluster_ip: dns_ip,
                        port: DNS_PORT,
                        protocol,
                        endpoints,
                        node_port: None,
                        affinity_s: None,
                    }),
                }
            }
        }
        let host_ports: Vec<_> = self
            .attached()
            .into_iter()
            .flat_map(|a| a.host_ports.into_iter().map(move |port| (a.ip, port)))
            .collect();
        let wanted = rules::tables(&all, &host_ports);
        nft(match &rules.applied {
            Some(applied) => rules::diff(&self.ground.table, applied, &wanted),
            None => rules::replace(&self.ground, &wanted, &rules.clients),
        })
        .await?;
        rules.clients.clear();
        let applied = rules.applied.replace(wanted);
        let now = rules.applied.as_ref().map(|t| &t.udp);
        let change = now.and_then(|now| Change::between(applied.as_ref().map(|t| &t.udp), now));
        if let Some(change) = change
            && let Err(error) = blocking(move || change.apply()).await
        {
            // The rules are right; only flows under way go on to where they went.
            tracing::warn!(%error, "UDP clients may stay with endpoints that are gone");
        }
        Ok(())
    }
}

/// Removes everything of an instance from the host, also of one whose settings are lost.
pub async fn purge(id: &str, state_dir: &Path) -> Result<()> {
    nft(rules::remove(&table_name(id)?)).await?;
    let (bridge, state_dir) = (bridge_name(id), state_dir.to_owned());
    blocking(move || {
        links::remove_ports_except(&bridge, &BTreeSet::new())?;
        links::remove(&bridge)?;
        match std::fs::remove_dir_all(&state_dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", state_dir.display()))(e))
            }
            _ => Ok(()),
        }
    })
    .await
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
