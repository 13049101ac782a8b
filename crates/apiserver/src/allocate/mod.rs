//! Service addresses and node ports. Each one in use has a marker record in the store whose
//! creation is the compare-and-swap that gives it to one Service; markers that no Service holds
//! are removed when the allocator opens. Headless and external Services hold nothing.
//! Upstream counterpart: `pkg/registry/core/service/{storage/alloc.go,ipallocator,portallocator}`.

use crate::admission::Operation;
use crate::cache::ROOT;
use crate::hooks::{Allocator, Reservation};
use crate::record;
use crate::resources;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use ipnet::IpNet;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skeg_api::field::{FieldError, Path};
use skeg_api::{Kind, Kinds, Status, meta};
use skeg_base::Random;
use skeg_store::{Error, Expect, Store, Write};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Where the markers are: beside the objects, where no kind's prefix reaches.
const MARKERS: &str = "/skeg/allocations/";
const IPS: &str = "ips/";
const PORTS: &str = "ports/";
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// The lower part of a range is kept for explicit requests while there is room above it.
const STATIC_MIN: u128 = 16;
const STATIC_MAX: u128 = 256;
const STATIC_DIVISOR: u128 = 16;
const NODE_PORTS_STATIC: u128 = 86;

/// One range of numbers of which each is given out once. Addresses and ports are both such.
struct Pool {
    prefix: &'static str,
    first: u128,
    last: u128,
    /// Automatic choices begin here.
    dynamic: u128,
    /// What is given out, as far as this process knows; the store decides.
    taken: Mutex<BTreeSet<u128>>,
}

pub struct Addresses {
    store: Arc<dyn Store>,
    random: Random,
    range: IpNet,
    ips: Pool,
    ports: Pool,
}

/// Why a number could not be had.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Allocated,
    OutOfRange,
    Full,
    Store(String),
}

impl Refusal {
    fn store(error: Error) -> Self {
        Refusal::Store(error.to_string())
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

impl Pool {
    fn key(&self, number: u128) -> Arc<str> {
        format!("{MARKERS}{}{number:039}", self.prefix).into()
    }

    /// A free number: a random start, then upwards; the part for explicit requests comes last.
    fn candidate(&self, random: &Random) -> Option<u128> {
        let taken = self.taken.lock();
        let free_in = |first: u128, last: u128| {
            if first > last {
                return None;
            }
            let span = u64::try_from(last - first + 1).unwrap_or(u64::MAX);
            let start = first + u128::from(random.below(span));
            let free = |from: u128, to: u128| {
                let mut next = from;
                for used in taken.range(from..=to) {
                    if *used != next {
                        break;
                    }
                    next += 1;
                }
                (next <= to).then_some(next)
            };
            free(start, last).or_else(|| if start > first { free(first, start - 1) } else { None })
        };
        free_in(self.dynamic, self.last)
            .or_else(|| free_in(self.first, self.dynamic.saturating_sub(1).min(self.last)))
    }
}

/// Numbers a write has reserved; they are given back unless the write is stored. On an update they
/// also say what to give back when it is.
struct Held {
    owner: Arc<Addresses>,
    taken: Vec<(bool, u128)>,
    freed: Vec<(bool, u128)>,
    stored: bool,
}

impl Reservation for Held {
    fn finish(mut self: Box<Self>, stored: bool) {
        self.stored = stored;
    }
}

/// A request that is cut off drops its reservation, which counts as not stored.
impl Drop for Held {
    fn drop(&mut self) {
        let list = std::mem::take(if self.stored { &mut self.freed } else { &mut self.taken });
        self.owner.clone().release(list);
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
        let offset = if size < STATIC_MIN {
            0
        } else {
            (size / STATIC_DIVISOR).clamp(STATIC_MIN, STATIC_MAX).min(size)
        };
        let pool =
            |prefix, first, last, dynamic| Pool { prefix, first, last, dynamic, taken: Mutex::default() };
        let (low, high) = (u128::from(*NODE_PORTS.start()), u128::from(*NODE_PORTS.end()));
        let addresses = Addresses {
            random,
            range,
            ips: pool(IPS, first, last, first + offset),
            ports: pool(PORTS, low, high, low + NODE_PORTS_STATIC),
            store,
        };
        addresses.repair(kinds).await?;
        Ok(Arc::new(addresses))
    }

    async fn repair(&self, kinds: &Kinds) -> Result<(), Error> {
        let kind = kinds.snapshot().by_gvr(&resources::SERVICES).cloned();
        let Some(storage) = kind.and_then(|kind| kind.storage.clone()) else { return Ok(()) };
        let services = self.store.list(&format!("{ROOT}{storage}"), None, None, 0).await?;
        let mut wanted: BTreeMap<Arc<str>, Bytes> = BTreeMap::new();
        for record in &services.records {
            let Ok(body) = record::decode(&record.value) else { continue };
            let Ok(service) = serde_json::from_slice::<Value>(&body.json) else { continue };
            let owner = owner_of(&service);
            for ip in ips_of(&service).into_iter().map(number) {
                self.ips.taken.lock().insert(ip);
                wanted.insert(self.ips.key(ip), owner.clone());
            }
            for port in ports_of(&service) {
                self.ports.taken.lock().insert(u128::from(port));
                wanted.insert(self.ports.key(u128::from(port)), owner.clone());
            }
        }
        let markers = self.store.list(MARKERS, None, None, 0).await?;
        let mut writes = Vec::new();
        for marker in markers.records {
            if wanted.remove(&marker.key).is_none() {
                let expect = Expect::Modified(marker.modified);
                writes.push(Write { key: marker.key, expect, value: None, ttl: None });
            }
        }
        let absent = wanted.into_iter();
        writes.extend(absent.map(|(key, owner)| Write {
            key,
            expect: Expect::Absent,
            value: Some(owner),
            ttl: None,
        }));
        for written in
            futures_util::future::join_all(writes.into_iter().map(|write| self.store.write(write))).await
        {
            match written {
                Ok(_) | Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn pool(&self, ip: bool) -> &Pool {
        if ip { &self.ips } else { &self.ports }
    }

    async fn mark(&self, ip: bool, number: u128, owner: &Bytes) -> Result<(), Refusal> {
        let pool = self.pool(ip);
        if !(pool.first..=pool.last).contains(&number) {
            return Err(Refusal::OutOfRange);
        }
        if !pool.taken.lock().insert(number) {
            return Err(Refusal::Allocated);
        }
        let write =
            Write { key: pool.key(number), expect: Expect::Absent, value: Some(owner.clone()), ttl: None };
        match self.store.write(write).await {
            Ok(_) => Ok(()),
            // Another server has it.
            Err(Error::Conflict { .. }) => Err(Refusal::Allocated),
            Err(error) => {
                pool.taken.lock().remove(&number);
                Err(Refusal::store(error))
            }
        }
    }

    async fn any(&self, ip: bool, owner: &Bytes) -> Result<u128, Refusal> {
        loop {
            let number = self.pool(ip).candidate(&self.random).ok_or(Refusal::Full)?;
            match self.mark(ip, number, owner).await {
                Ok(()) => return Ok(number),
                // It counts as taken now, so that the loop ends when all are.
                Err(Refusal::Allocated) => {}
                Err(refusal) => return Err(refusal),
            }
        }
    }

    fn ip(&self, number: u128) -> IpAddr {
        match self.range {
            IpNet::V4(_) => IpAddr::V4(u32::try_from(number).unwrap_or_default().into()),
            IpNet::V6(_) => IpAddr::V6(number.into()),
        }
    }

    /// Removes markers in the background. If the process dies before, the next start does.
    fn release(self: Arc<Self>, list: Vec<(bool, u128)>) {
        if list.is_empty() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            for (ip, number) in list {
                let pool = self.pool(ip);
                let write = Write { key: pool.key(number), expect: Expect::Present, value: None, ttl: None };
                match self.store.write(write).await {
                    Ok(_) | Err(Error::Conflict { .. }) => {
                        pool.taken.lock().remove(&number);
                    }
                    Err(error) => tracing::warn!(%error, "allocation not released; the next start does"),
                }
            }
        });
    }

    async fn allocate(
        self: &Arc<Self>,
        new: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<Option<Box<dyn Reservation>>, Status> {
        if let Some(old) = old {
            keep_allocated(new, old);
        }
        self.families(new)?;
        let owner = owner_of(new);
        let mut held = Held { owner: self.clone(), taken: Vec::new(), freed: Vec::new(), stored: false };
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
        let (ips, ports) = (ips_of(new), ports_of(new));
        let gone_ips = old_ips.iter().filter(|ip| !ips.contains(ip)).map(|ip| (true, number(*ip)));
        let gone_ports =
            old_ports.iter().filter(|port| !ports.contains(port)).map(|port| (false, u128::from(*port)));
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
                let number =
                    self.any(true, owner).await.map_err(|refusal| self.ip_refused(new, "", refusal))?;
                held.taken.push((true, number));
                self.ip(number)
            }
            // What is no address is validation's to refuse.
            Some(text) => match text.parse::<IpAddr>() {
                Err(_) => return Ok(()),
                Ok(ip) if old.contains(&ip) => ip,
                Ok(ip) => {
                    let same_family = ip.is_ipv4() == self.range.addr().is_ipv4();
                    let marked = if same_family {
                        self.mark(true, number(ip), owner).await
                    } else {
                        Err(Refusal::OutOfRange)
                    };
                    marked.map_err(|refusal| self.ip_refused(new, &text, refusal))?;
                    held.taken.push((true, number(ip)));
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
                        let marked = self.mark(false, u128::from(given), owner).await;
                        marked.map_err(|refusal| port_refused(&name, index, given, refusal))?;
                        held.taken.push((false, u128::from(given)));
                    }
                    given
                } else if let Some(same) =
                    chosen.get(&target).filter(|same| !protocol_taken(new, index, **same))
                {
                    // The same port over another protocol gets the same number.
                    *same
                } else {
                    let number = self
                        .any(false, owner)
                        .await
                        .map_err(|refusal| port_refused(&name, index, 0, refusal))?;
                    held.taken.push((false, number));
                    u16::try_from(number).unwrap_or_default()
                };
                own.insert(number);
                chosen.insert(target, number);
                new["spec"]["ports"][index]["nodePort"] = number.into();
            }
        }
        if needs_health_port(new) {
            match new["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0) {
                0 => {
                    let number =
                        self.any(false, owner).await.map_err(|refusal| port_refused(&name, 0, 0, refusal))?;
                    held.taken.push((false, number));
                    new["spec"]["healthCheckNodePort"] = u16::try_from(number).unwrap_or_default().into();
                }
                given => {
                    if let Ok(given) = u16::try_from(given)
                        && own.insert(given)
                    {
                        let marked = self.mark(false, u128::from(given), owner).await;
                        marked.map_err(|refusal| health_refused(&name, given, &refusal))?;
                        held.taken.push((false, u128::from(given)));
                    }
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

fn protocol_taken(service: &Value, index: usize, node_port: u16) -> bool {
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
    let own = ports.get(index).map(protocol);
    ports
        .iter()
        .enumerate()
        .any(|(i, port)| i != index && port["nodePort"] == node_port && Some(protocol(port)) == own)
}

fn owner_of(service: &Value) -> Bytes {
    format!("{}/{}", meta::namespace(service), meta::name(service)).into()
}

fn kind_of(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

fn wants_ip(service: &Value) -> bool {
    kind_of(service) != "ExternalName"
}

fn wants_ports(service: &Value) -> bool {
    match kind_of(service) {
        "NodePort" => true,
        "LoadBalancer" => {
            service["spec"]["allocateLoadBalancerNodePorts"] != false
                || service["spec"]["ports"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|p| p["nodePort"].as_i64().unwrap_or(0) != 0)
        }
        _ => false,
    }
}

fn needs_health_port(service: &Value) -> bool {
    kind_of(service) == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}

/// The addresses that a Service holds.
fn ips_of(service: &Value) -> BTreeSet<IpAddr> {
    if !wants_ip(service) {
        return BTreeSet::new();
    }
    let list =
        service["spec"]["clusterIPs"].as_array().into_iter().flatten().chain([&service["spec"]["clusterIP"]]);
    list.filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

/// The node ports that a Service holds.
fn ports_of(service: &Value) -> BTreeSet<u16> {
    if !matches!(kind_of(service), "NodePort" | "LoadBalancer") {
        return BTreeSet::new();
    }
    let ports = service["spec"]["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
    let all = ports.chain([&service["spec"]["healthCheckNodePort"]]);
    all.filter_map(|port| u16::try_from(port.as_i64()?).ok()).filter(|port| *port != 0).collect()
}

/// An update that leaves out what was allocated keeps it, so that manifests can be applied again.
fn keep_allocated(new: &mut Value, old: &Value) {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Number(n) => n.as_i64() == Some(0),
        _ => false,
    };
    if wants_ip(new) && wants_ip(old) {
        if empty(&new["spec"]["clusterIP"]) && !empty(&old["spec"]["clusterIP"]) {
            new["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
        }
        let same = new["spec"]["clusterIP"] == old["spec"]["clusterIP"];
        if same && empty(&new["spec"]["clusterIPs"]) && !empty(&old["spec"]["clusterIPs"]) {
            new["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if empty(&new["spec"][field]) && !empty(&old["spec"][field]) {
                new["spec"][field] = old["spec"][field].clone();
            }
        }
    }
    let exposed = |service: &Value| matches!(kind_of(service), "NodePort" | "LoadBalancer");
    if !exposed(new) || !exposed(old) || !wants_ports(new) && !wants_ports(old) {
        return;
    }
    let same = |a: &Value, b: &Value| {
        let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
        a["port"] == b["port"] && protocol(a) == protocol(b)
    };
    let before = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let used: BTreeSet<i64> = new["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|p| p["nodePort"].as_i64())
        .collect();
    if let Some(ports) = new["spec"].get_mut("ports").and_then(Value::as_array_mut) {
        for port in ports.iter_mut().filter(|port| empty(&port["nodePort"])) {
            let kept =
                before.iter().find(|other| same(port, other)).and_then(|other| other["nodePort"].as_i64());
            if let Some(kept) = kept.filter(|kept| *kept != 0 && !used.contains(kept)) {
                port["nodePort"] = kept.into();
            }
        }
    }
    if needs_health_port(new) && needs_health_port(old) && empty(&new["spec"]["healthCheckNodePort"]) {
        new["spec"]["healthCheckNodePort"] = old["spec"]["healthCheckNodePort"].clone();
    }
}

/// A Service that is no longer exposed on nodes loses the ports it had, unless the update itself
/// names others, which validation refuses.
fn drop_node_ports(new: &mut Value, old: Option<&Value>) {
    let Some(old) = old else { return };
    let before = ports_of(old);
    let ports = new["spec"].get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        let held = port["nodePort"]
            .as_i64()
            .and_then(|p| u16::try_from(p).ok())
            .is_some_and(|p| before.contains(&p));
        if held && let Some(fields) = port.as_object_mut() {
            fields.remove("nodePort");
        }
    }
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
        if is_service(kind) {
            let ips = ips_of(old).into_iter().map(|ip| (true, number(ip)));
            let ports = ports_of(old).into_iter().map(|port| (false, u128::from(port)));
            self.0.clone().release(ips.chain(ports).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::kind;
    use skeg_store::Memory;

    fn service(name: &str, spec: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "a"}, "spec": spec})
    }

    struct World {
        store: Arc<dyn Store>,
        kinds: Kinds,
        allocator: ServiceAllocator,
    }

    async fn world(range: &str) -> World {
        let store: Arc<dyn Store> = Arc::new(Memory::new());
        let kinds = Kinds::new([kind("", "Service", "services", true)]);
        let addresses =
            Addresses::open(store.clone(), &kinds, Random::seeded(1), range.parse().unwrap()).await.unwrap();
        World { store, kinds, allocator: ServiceAllocator(addresses) }
    }

    impl World {
        async fn create(&self, name: &str, spec: Value) -> Result<Value, Status> {
            let mut object = service(name, spec);
            let kind = kind("", "Service", "services", true);
            let held = self.allocator.begin(Operation::Create, &kind, &mut object, None, false).await?;
            held.unwrap().finish(true);
            Ok(object)
        }

        async fn markers(&self) -> usize {
            self.store.list(MARKERS, None, None, 0).await.unwrap().records.len()
        }

        async fn markers_become(&self, expected: usize) {
            let wait = async {
                while self.markers().await != expected {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(5), wait).await.unwrap();
        }
    }

    #[tokio::test]
    async fn addresses_are_given_once() {
        let world = world("10.96.0.0/29").await;
        let mut seen = BTreeSet::new();
        for i in 0..6 {
            let service = world.create(&format!("s{i}"), json!({})).await.unwrap();
            let ip = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
            assert_eq!(service["spec"]["clusterIPs"], json!([ip]));
            assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4"]));
            assert!(seen.insert(ip));
        }
        assert_eq!(world.create("full", json!({})).await.unwrap_err().code, 500);
        assert_eq!(world.markers().await, 6);
        let taken = seen.first().unwrap().clone();
        let status = world.create("x", json!({"clusterIP": taken})).await.unwrap_err();
        assert_eq!(
            status.message,
            format!(
                "Service \"x\" is invalid: spec.clusterIPs: Invalid value: [\"{taken}\"]: failed to allocate IP {taken}: \
                 provided IP is already allocated"
            )
        );
        let status = world.create("x", json!({"clusterIP": "10.0.0.1"})).await.unwrap_err();
        assert!(
            status.message.contains("is not in the valid range. The range of valid IPs is 10.96.0.0/29"),
            "{status}"
        );
        let kind = kind("", "Service", "services", true);
        world.allocator.deleted(&kind, &service("x", json!({"clusterIP": taken, "clusterIPs": [taken]})));
        world.markers_become(5).await;
        assert_eq!(world.create("again", json!({})).await.unwrap()["spec"]["clusterIP"], taken.as_str());
        for free in [json!({"clusterIP": "None"}), json!({"type": "ExternalName"})] {
            world.create("free", free).await.unwrap();
        }
        assert_eq!(world.markers().await, 6);
    }

    #[tokio::test]
    async fn a_write_that_fails_gives_back_and_a_dry_run_keeps_nothing() {
        let world = world("10.96.0.0/24").await;
        let kind = kind("", "Service", "services", true);
        for dry_run in [true, false] {
            let mut object = service("x", json!({"type": "NodePort", "ports": [{"port": 80}]}));
            let held =
                world.allocator.begin(Operation::Create, &kind, &mut object, None, dry_run).await.unwrap();
            assert!(object["spec"]["ports"][0]["nodePort"].is_number());
            if let Some(held) = held {
                held.finish(false);
            }
            world.markers_become(0).await;
        }
        // One refused port takes the others along.
        world
            .create("a", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}))
            .await
            .unwrap();
        let spec = json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30081}, {"port": 2, "nodePort": 30080}]});
        let status = world.create("b", spec).await.unwrap_err();
        assert_eq!(
            status.message,
            "Service \"b\" is invalid: spec.ports[1].nodePort: Invalid value: 30080: provided port is already allocated"
        );
        world.markers_become(2).await;
        let spec = json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]});
        assert!(
            world
                .create("c", spec)
                .await
                .unwrap_err()
                .message
                .contains("The range of valid ports is 30000-32767")
        );
    }

    #[tokio::test]
    async fn updates_keep_and_release() {
        let world = world("10.96.0.0/24").await;
        let kind = kind("", "Service", "services", true);
        let old = world.create("x", json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 80, "protocol": "UDP"}]})).await.unwrap();
        assert_eq!(old["spec"]["ports"][0]["nodePort"], old["spec"]["ports"][1]["nodePort"]);
        assert_eq!(world.markers().await, 2);
        let mut new = service(
            "x",
            json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 80, "protocol": "UDP"}]}),
        );
        world
            .allocator
            .begin(Operation::Update, &kind, &mut new, Some(&old), false)
            .await
            .unwrap()
            .unwrap()
            .finish(true);
        assert_eq!(new["spec"]["ports"][0]["nodePort"], old["spec"]["ports"][0]["nodePort"]);
        assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
        assert_eq!(world.markers().await, 2);
        let mut plain = new.clone();
        plain["spec"]["type"] = "ClusterIP".into();
        world
            .allocator
            .begin(Operation::Update, &kind, &mut plain, Some(&new), false)
            .await
            .unwrap()
            .unwrap()
            .finish(true);
        assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
        world.markers_become(1).await;
        let mut external = service("x", json!({"type": "ExternalName", "externalName": "x.y"}));
        world
            .allocator
            .begin(Operation::Update, &kind, &mut external, Some(&plain), false)
            .await
            .unwrap()
            .unwrap()
            .finish(true);
        world.markers_become(0).await;
    }

    #[tokio::test]
    async fn opening_repairs_what_a_crash_left() {
        let world = world("10.96.0.0/24").await;
        world.create("lost", json!({})).await.unwrap();
        assert_eq!(world.markers().await, 1);
        let object = json!({"kind": "Service", "metadata": {"name": "x", "namespace": "a"}, "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}});
        let value = Some(record::encode("v1", &object).unwrap());
        let key = "/registry/services/a/x".into();
        world.store.write(Write { key, expect: Expect::Absent, value, ttl: None }).await.unwrap();
        let range = "10.96.0.0/24".parse().unwrap();
        let again =
            Addresses::open(world.store.clone(), &world.kinds, Random::seeded(2), range).await.unwrap();
        assert_eq!(world.markers().await, 1);
        let world = World { allocator: ServiceAllocator(again), ..world };
        assert_eq!(world.create("y", json!({"clusterIP": "10.96.0.9"})).await.unwrap_err().code, 422);
    }

    #[tokio::test]
    async fn many_at_once_get_different_addresses() {
        let world = Arc::new(world("10.96.0.0/24").await);
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..100 {
            let world = world.clone();
            tasks.spawn(async move {
                world.create(&format!("s{i}"), json!({})).await.unwrap()["spec"]["clusterIP"].to_string()
            });
        }
        let ips: BTreeSet<String> = tasks.join_all().await.into_iter().collect();
        assert_eq!((ips.len(), world.markers().await), (100, 100));
    }
}
