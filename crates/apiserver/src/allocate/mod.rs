//! Service addresses and node ports: which numbers a write of a Service takes and gives back.
//! Markers that no Service holds are removed when the allocator opens. Headless and external
//! Services hold nothing.
//! Upstream counterpart: `pkg/registry/core/service/storage/alloc.go`.

mod markers;
pub mod objects;
mod service;

use crate::admission::Operation;
use crate::cache::ROOT;
use crate::hooks::{Allocator, Reservation};
use crate::record;
use crate::resources;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use ipnet::IpNet;
use markers::{Held, Numbers, Refusal, release};
use serde_json::{Value, json};
use service::{
    drop_health_port, drop_node_ports, ips_of, keep_allocated, needs_health_port, owner_of, ports_of,
    protocol_taken, wants_ip, wants_ports,
};
use skeg_api::field::{FieldError, Path};
use skeg_api::{Kind, Kinds, Status, meta};
use skeg_base::Random;
use skeg_store::{Error, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// The lower part of a range of addresses is kept for explicit requests: its share and bounds.
const STATIC_MIN: u128 = 16;
const STATIC_MAX: u128 = 256;
const STATIC_DIVISOR: u128 = 16;
const NODE_PORTS_STATIC: u128 = 86;

pub struct Addresses {
    range: IpNet,
    ips: Arc<Numbers>,
    ports: Arc<Numbers>,
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

impl Addresses {
    /// Opens the ranges: what Services hold is marked, other markers are removed.
    pub async fn open(
        store: Arc<dyn Store>,
        kinds: &Kinds,
        random: Random,
        range: IpNet,
    ) -> Result<Arc<Self>, Error> {
        let (network, broadcast) = (number(range.network()), number(range.broadcast()));
        // As upstream: the network's own address is never given, nor is the last one of IPv4.
        let last = if range.addr().is_ipv4() { broadcast.saturating_sub(1) } else { broadcast };
        let first = network + 1;
        let size = last.saturating_sub(first) + 1;
        let kept = if size < STATIC_MIN {
            0
        } else {
            (size / STATIC_DIVISOR).clamp(STATIC_MIN, STATIC_MAX).min(size)
        };
        let (low, high) = (u128::from(*NODE_PORTS.start()), u128::from(*NODE_PORTS.end()));
        let addresses = Addresses {
            range,
            ips: Numbers::new(&store, &random, "ips", first..=last, kept),
            ports: Numbers::new(&store, &random, "ports", low..=high, NODE_PORTS_STATIC),
        };
        addresses.repair(&*store, kinds).await?;
        Ok(Arc::new(addresses))
    }

    async fn repair(&self, store: &dyn Store, kinds: &Kinds) -> Result<(), Error> {
        let kind = kinds.snapshot().by_gvr(&resources::SERVICES).cloned();
        let Some(storage) = kind.and_then(|kind| kind.storage.clone()) else { return Ok(()) };
        let services = store.list(&format!("{ROOT}{storage}"), None, None, 0).await?;
        let (mut ips, mut ports) = (BTreeMap::new(), BTreeMap::new());
        for record in &services.records {
            let Ok(body) = record::decode(&record.value) else { continue };
            let Ok(service) = serde_json::from_slice::<Value>(&body.json) else { continue };
            let owner = owner_of(&service);
            ips.extend(ips_of(&service).into_iter().map(|ip| (number(ip), owner.clone())));
            ports.extend(ports_of(&service).into_iter().map(|port| (u128::from(port), owner.clone())));
        }
        self.ips.repair(ips).await?;
        self.ports.repair(ports).await
    }

    fn ip(&self, number: u128) -> IpAddr {
        match self.range {
            IpNet::V4(_) => IpAddr::V4(u32::try_from(number).unwrap_or_default().into()),
            IpNet::V6(_) => IpAddr::V6(number.into()),
        }
    }

    async fn allocate(
        &self,
        new: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<Option<Box<dyn Reservation>>, Status> {
        if let Some(old) = old {
            keep_allocated(new, old);
        }
        self.families(new)?;
        let owner = owner_of(new);
        let mut held = Held::default();
        let (old_ips, old_ports) = old.map(|old| (ips_of(old), ports_of(old))).unwrap_or_default();
        // On any refusal `held` is dropped, and with it goes what was taken so far.
        if wants_ip(new) {
            self.take_ips(new, &old_ips, &owner, &mut held).await?;
        }
        if wants_ports(new) {
            self.take_ports(new, &old_ports, &owner, &mut held).await?;
        } else {
            drop_node_ports(new, old);
        }
        if needs_health_port(new) {
            self.take_health_port(new, &old_ports, &owner, &mut held).await?;
        } else {
            drop_health_port(new, old);
        }
        let (ips, ports) = (ips_of(new), ports_of(new));
        let gone_ips =
            old_ips.iter().filter(|ip| !ips.contains(ip)).map(|ip| (self.ips.clone(), number(*ip)));
        let gone_ports = old_ports
            .iter()
            .filter(|port| !ports.contains(port))
            .map(|port| (self.ports.clone(), u128::from(*port)));
        held.freed = gone_ips.chain(gone_ports).collect();
        if dry_run {
            return Ok(None);
        }
        Ok(Some(Box::new(held)))
    }

    async fn take_ips(
        &self,
        new: &mut Value,
        old: &BTreeSet<IpAddr>,
        owner: &Bytes,
        held: &mut Held,
    ) -> Result<(), Status> {
        let wanted = match new["spec"]["clusterIPs"][0].as_str().or(new["spec"]["clusterIP"].as_str()) {
            Some("None") => return Ok(()),
            Some("") | None => None,
            Some(text) => Some(text.to_owned()),
        };
        let ip = match wanted {
            None => {
                let number = held.take_any(&self.ips, owner).await;
                self.ip(number.map_err(|refusal| self.ip_refused(new, "", refusal))?)
            }
            // What is no address is validation's to refuse.
            Some(text) => match text.parse::<IpAddr>() {
                Err(_) => return Ok(()),
                Ok(ip) if old.contains(&ip) => ip,
                Ok(ip) => {
                    let same_family = ip.is_ipv4() == self.range.addr().is_ipv4();
                    let marked = if same_family {
                        held.take(&self.ips, number(ip), owner).await
                    } else {
                        Err(Refusal::OutOfRange)
                    };
                    marked.map_err(|refusal| self.ip_refused(new, &text, refusal))?;
                    ip
                }
            },
        };
        new["spec"]["clusterIP"] = ip.to_string().into();
        if new["spec"]["clusterIPs"].as_array().is_none_or(Vec::is_empty) {
            new["spec"]["clusterIPs"] = json!([ip.to_string()]);
        }
        Ok(())
    }

    fn ip_refused(&self, service: &Value, ip: &str, refusal: Refusal) -> Status {
        let why = match refusal {
            Refusal::Allocated => "provided IP is already allocated".to_owned(),
            Refusal::OutOfRange => {
                format!(
                    "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                    self.range
                )
            }
            Refusal::Full => {
                return Status::internal("failed to allocate a serviceIP: range is full");
            }
            Refusal::Store(error) => {
                return Status::internal(format!("failed to allocate a serviceIP: {error}"));
            }
        };
        let path = Path::new("spec").child("clusterIPs");
        let error = FieldError::invalid(path, json!([ip]), format!("failed to allocate IP {ip}: {why}"));
        Status::invalid("", "Service", meta::name(service), &[error])
    }

    async fn take_ports(
        &self,
        new: &mut Value,
        old: &BTreeSet<u16>,
        owner: &Bytes,
        held: &mut Held,
    ) -> Result<(), Status> {
        let name = meta::name(new).to_owned();
        // A number is taken once for a Service, however many protocols share it.
        let mut own: BTreeSet<u16> = old.clone();
        let mut chosen: BTreeMap<i64, u16> = BTreeMap::new();
        let count = new["spec"]["ports"].as_array().map_or(0, Vec::len);
        // Explicit numbers first, so that no automatic choice takes one of them.
        for explicit in [true, false] {
            for index in 0..count {
                let port = &new["spec"]["ports"][index];
                let given = port["nodePort"].as_i64().unwrap_or(0);
                if (given != 0) != explicit {
                    continue;
                }
                let target = port["port"].as_i64().unwrap_or_default();
                let number = if explicit {
                    // What is no port is validation's to refuse.
                    let Ok(given) = u16::try_from(given) else { continue };
                    if own.insert(given) {
                        let marked = held.take(&self.ports, u128::from(given), owner).await;
                        marked.map_err(|refusal| port_refused(&name, index, given, refusal))?;
                    }
                    given
                } else if let Some(same) =
                    chosen.get(&target).filter(|same| !protocol_taken(new, index, **same))
                {
                    // The same port over another protocol gets the same number.
                    *same
                } else {
                    self.any_port(&name, index, owner, held).await?
                };
                own.insert(number);
                chosen.insert(target, number);
                new["spec"]["ports"][index]["nodePort"] = number.into();
            }
        }
        Ok(())
    }

    /// A free port, for the Service's port at `index`.
    async fn any_port(
        &self,
        name: &str,
        index: usize,
        owner: &Bytes,
        held: &mut Held,
    ) -> Result<u16, Status> {
        let number = held.take_any(&self.ports, owner).await;
        let number = number.map_err(|refusal| port_refused(name, index, 0, refusal))?;
        Ok(u16::try_from(number).unwrap_or_default())
    }

    /// The port of a load balancer's health checks, which a Service has also without node ports.
    async fn take_health_port(
        &self,
        new: &mut Value,
        old: &BTreeSet<u16>,
        owner: &Bytes,
        held: &mut Held,
    ) -> Result<(), Status> {
        let name = meta::name(new).to_owned();
        match new["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0) {
            0 => {
                new["spec"]["healthCheckNodePort"] = self.any_port(&name, 0, owner, held).await?.into();
            }
            given => {
                let is_node_port = new["spec"]["ports"]
                    .as_array()
                    .is_some_and(|ports| ports.iter().any(|port| port["nodePort"] == given));
                if let Ok(given) = u16::try_from(given)
                    && !is_node_port
                    && !old.contains(&given)
                {
                    let marked = held.take(&self.ports, u128::from(given), owner).await;
                    marked.map_err(|refusal| health_refused(&name, given, &refusal))?;
                }
            }
        }
        Ok(())
    }

    /// Address families, as a cluster of one family has them.
    fn families(&self, service: &mut Value) -> Result<(), Status> {
        let spec = &service["spec"];
        if spec["type"] == "ExternalName" {
            return Ok(());
        }
        let own = if self.range.addr().is_ipv4() { "IPv4" } else { "IPv6" };
        let other = if own == "IPv4" { "IPv6" } else { "IPv4" };
        let headless = spec["clusterIP"] == "None" || spec["clusterIPs"][0] == "None";
        let selectorless = spec["selector"].as_object().is_none_or(serde_json::Map::is_empty);
        let policy = spec["ipFamilyPolicy"].as_str().unwrap_or_default().to_owned();
        let families: Vec<String> = spec["ipFamilies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        if headless && selectorless {
            // Nobody routes to it: the families only say which addresses its endpoints may have.
            let policy = if policy.is_empty() { "RequireDualStack" } else { &policy };
            let mut families = if families.is_empty() { vec![own.to_owned()] } else { families };
            if policy != "SingleStack" && families.len() == 1 {
                families.push(if families[0] == own { other } else { own }.to_owned());
            }
            service["spec"]["ipFamilyPolicy"] = policy.into();
            service["spec"]["ipFamilies"] = json!(families);
            return Ok(());
        }
        let mut errors = Vec::new();
        let path = Path::new("spec");
        if policy == "RequireDualStack" {
            let detail = "this cluster is not configured for dual-stack services";
            errors.push(FieldError::invalid(path.child("ipFamilyPolicy"), policy.as_str(), detail));
        }
        if let Some((index, family)) = families.iter().enumerate().find(|(_, family)| *family == other) {
            errors.push(FieldError::invalid(
                path.child("ipFamilies").index(index),
                family.as_str(),
                "not configured on this cluster",
            ));
        }
        if !errors.is_empty() {
            return Err(Status::invalid("", "Service", meta::name(service), &errors));
        }
        if policy.is_empty() {
            service["spec"]["ipFamilyPolicy"] = "SingleStack".into();
        }
        if families.is_empty() {
            service["spec"]["ipFamilies"] = json!([own]);
        }
        Ok(())
    }
}

fn port_refused(name: &str, index: usize, port: u16, refusal: Refusal) -> Status {
    let path = Path::new("spec").child("ports").index(index).child("nodePort");
    refused(name, path, port, &refusal)
}

fn health_refused(name: &str, port: u16, refusal: &Refusal) -> Status {
    refused(name, Path::new("spec").child("healthCheckNodePort"), port, refusal)
}

fn refused(name: &str, path: Path, port: u16, refusal: &Refusal) -> Status {
    let why = match refusal {
        Refusal::Allocated => "provided port is already allocated".to_owned(),
        Refusal::OutOfRange => format!(
            "provided port is not in the valid range. The range of valid ports is {}-{}",
            NODE_PORTS.start(),
            NODE_PORTS.end()
        ),
        Refusal::Full => return Status::internal("failed to allocate a nodePort: range is full"),
        Refusal::Store(error) => return Status::internal(format!("failed to allocate a nodePort: {error}")),
    };
    Status::invalid("", "Service", name, &[FieldError::invalid(path, port, why)])
}

fn is_service(kind: &Kind) -> bool {
    kind.gvk.group.is_empty() && &*kind.plural == "services"
}

/// The allocator as it plugs in.
pub struct ServiceAllocator(pub Arc<Addresses>);

impl Allocator for ServiceAllocator {
    fn begin<'a>(
        &'a self,
        operation: Operation,
        kind: &'a Kind,
        new: &'a mut Value,
        old: Option<&'a Value>,
        dry_run: bool,
    ) -> BoxFuture<'a, Result<Option<Box<dyn Reservation>>, Status>> {
        if !is_service(kind) || !matches!(operation, Operation::Create | Operation::Update) {
            return Box::pin(std::future::ready(Ok(None)));
        }
        Box::pin(self.0.allocate(new, old, dry_run))
    }

    fn deleted(&self, kind: &Kind, old: &Value) {
        // The Service of the API server comes back at once, and with its address.
        let own = (meta::namespace(old), meta::name(old)) == ("default", "kubernetes");
        if is_service(kind) && !own {
            let (addresses, ports) = (&self.0.ips, &self.0.ports);
            let ips = ips_of(old).into_iter().map(|ip| (addresses.clone(), number(ip)));
            let ports = ports_of(old).into_iter().map(|port| (ports.clone(), u128::from(port)));
            release(ips.chain(ports).collect());
        }
    }
}

#[cfg(test)]
mod tests;
