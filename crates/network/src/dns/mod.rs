//! The name server of the node's Pods: answers the cluster's names from a table it is given and
//! passes all others on. Knows names and addresses, nothing of Services.

pub mod wire;

use crate::{Error, Result};
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wire::{Answer, Code, Data, Query, Record};

/// Queries in hand at once; more are dropped, and asked again by their clients.
const QUERIES_MAX: usize = 512;
const CONNECTIONS_MAX: usize = 64;
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const TTL_S: u32 = 5;
const MESSAGE_LEN_MAX: usize = 65_535;

/// What the cluster's names mean. Names are lower case, without the last dot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    pub addresses: BTreeMap<String, Vec<Ipv4Addr>>,
    /// `_http._tcp.web.default.svc.cluster.local` → ports and the names that have them.
    pub services: BTreeMap<String, Vec<(u16, String)>>,
    /// Names that stand for others, inside the cluster or not.
    pub aliases: BTreeMap<String, String>,
    /// Names of addresses.
    pub names: BTreeMap<Ipv4Addr, String>,
}

/// The schema of the names, which the DNS specification for Services has every server tell.
const SCHEMA_VERSION: &str = "1.1.0";
/// How many aliases may lead to each other.
const ALIASES_MAX: usize = 8;

/// Records with what is derived from them.
#[derive(Default)]
struct Table {
    records: Records,
    /// Names that only have names below them: they exist, without records.
    inner: BTreeSet<String>,
}

impl Table {
    fn new(records: Records) -> Table {
        let mut inner = BTreeSet::new();
        let names = records.addresses.keys().chain(records.services.keys()).chain(records.aliases.keys());
        for name in names {
            let mut rest = name.as_str();
            while let Some((_, parent)) = rest.split_once('.') {
                inner.insert(parent.to_owned());
                rest = parent;
            }
        }
        Table { records, inner }
    }
}

pub struct Dns {
    domain: String,
    /// Where Pods find this server.
    address: Ipv4Addr,
    table: RwLock<Table>,
    upstreams: Vec<SocketAddr>,
    /// Rotates answers, so that clients that take the first spread out.
    turn: AtomicUsize,
    queries: Semaphore,
}

/// The name servers of a resolv.conf, without the one at `own`.
pub fn upstreams(text: &str, own: Ipv4Addr) -> Vec<SocketAddr> {
    const UPSTREAMS_MAX: usize = 3;
    text.lines()
        .filter_map(|line| {
            line.trim().strip_prefix("nameserver")?.split_whitespace().next()?.parse::<IpAddr>().ok()
        })
        .filter(|ip| *ip != IpAddr::V4(own))
        .map(|ip| SocketAddr::new(ip, 53))
        .take(UPSTREAMS_MAX)
        .collect()
}

impl Dns {
    pub fn new(domain: &str, address: Ipv4Addr, upstreams: Vec<SocketAddr>) -> Dns {
        let dns = Dns {
            domain: domain.trim_end_matches('.').to_ascii_lowercase(),
            address,
            table: RwLock::new(Table::default()),
            upstreams,
            turn: AtomicUsize::new(0),
            queries: Semaphore::new(QUERIES_MAX),
        };
        dns.set(Records::default());
        dns
    }

    pub fn set(&self, mut records: Records) {
        records.addresses.insert(wire::name_server(&self.domain), vec![self.address]);
        let table = Table::new(records);
        *self.table.write() = table;
    }

    /// Answers from the table; None when the question is for others.
    fn lookup(&self, query: &Query) -> Option<Answer<'_>> {
        let table = self.table.read();
        let records = &table.records;
        let answer = |code, answers, additionals| {
            Some(Answer { code, answers, additionals, zone: self.domain.as_str(), ttl_s: TTL_S })
        };
        if let Some(address) = wire::reverse_address(&query.name) {
            let name = records.names.get(&address)?;
            let ptr = Record { name: query.name.clone(), data: Data::Ptr(name.clone()) };
            let asked = matches!(query.kind, wire::TYPE_PTR | wire::TYPE_ANY);
            let found = answer(Code::NoError, if asked { vec![ptr] } else { vec![] }, vec![]);
            return found.map(|answer| Answer { zone: wire::REVERSE_ZONE, ..answer });
        }
        let below = query.name.strip_suffix(self.domain.as_str())?;
        if !below.is_empty() && !below.ends_with('.') {
            return None;
        }
        let address_records = |name: &str| -> Vec<Record> {
            let addresses = records.addresses.get(name).map_or(&[][..], Vec::as_slice);
            addresses.iter().map(|a| Record { name: name.to_owned(), data: Data::A(*a) }).collect()
        };
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        let mut name = query.name.clone();
        while let Some(target) = records.aliases.get(&name).filter(|_| answers.len() < ALIASES_MAX) {
            answers.push(Record { name, data: Data::Cname(target.clone()) });
            name = target.to_ascii_lowercase();
        }
        if matches!(query.kind, wire::TYPE_A | wire::TYPE_ANY) {
            let mut addresses = address_records(&name);
            if !addresses.is_empty() {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
                addresses.rotate_left(turn);
            }
            answers.extend(addresses);
        }
        if below.is_empty() && query.kind == wire::TYPE_SOA {
            answers.push(Record { name: query.name.clone(), data: Data::Soa });
        }
        if below.is_empty() && query.kind == wire::TYPE_NS {
            let server = wire::name_server(&self.domain);
            additionals.extend(address_records(&server));
            answers.push(Record { name: query.name.clone(), data: Data::Ns(server) });
        }
        let pod = pod_address(below);
        if let Some(address) = pod.filter(|_| matches!(query.kind, wire::TYPE_A | wire::TYPE_ANY)) {
            answers.push(Record { name: query.name.clone(), data: Data::A(address) });
        }
        let is_version = below == "dns-version.";
        if is_version && matches!(query.kind, wire::TYPE_TXT | wire::TYPE_ANY) {
            answers.push(Record { name: query.name.clone(), data: Data::Txt(SCHEMA_VERSION) });
        }
        if matches!(query.kind, wire::TYPE_SRV | wire::TYPE_ANY) {
            for (port, target) in records.services.get(&query.name).into_iter().flatten() {
                let data = Data::Srv { port: *port, target: target.clone() };
                answers.push(Record { name: query.name.clone(), data });
                additionals.extend(address_records(target));
            }
        }
        let known = below.is_empty()
            || is_version
            || pod.is_some()
            || records.aliases.contains_key(&query.name)
            || records.addresses.contains_key(&query.name)
            || records.services.contains_key(&query.name)
            || table.inner.contains(&query.name);
        answer(if known { Code::NoError } else { Code::NoSuchName }, answers, additionals)
    }

    /// The answer to a message, by whoever knows it. None: nothing to say.
    async fn respond(&self, message: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let query = match wire::parse(message) {
            Ok(query) => query,
            Err(code) => return code.map(|code| wire::refuse(message, code)),
        };
        if let Some(mut answer) = self.lookup(&query) {
            if let Some(target) = self.outside(&query, &answer) {
                // Resolvers do not ask again for what an alias stands for.
                let found = self.ask(&wire::ask(&query, &target, query.kind), tcp, &target).await;
                answer.answers.extend(found.and_then(|message| wire::answers(&message)).unwrap_or_default());
            }
            let len_max = if tcp { MESSAGE_LEN_MAX } else { query.udp_len_max };
            return Some(wire::write(&query, &answer, len_max));
        }
        let answer = self.ask(message, tcp, &query.name).await;
        Some(answer.unwrap_or_else(|| wire::refuse(message, Code::ServerFailure)))
    }

    /// The name outside of the cluster whose addresses are still to be found, if there is one.
    fn outside(&self, query: &Query, answer: &Answer<'_>) -> Option<String> {
        let Data::Cname(target) = &answer.answers.last()?.data else { return None };
        let own = target.to_ascii_lowercase();
        let own = own.strip_suffix(self.domain.as_str()).is_some_and(|b| b.is_empty() || b.ends_with('.'));
        (matches!(query.kind, wire::TYPE_A | wire::TYPE_AAAA) && !own).then(|| target.clone())
    }

    /// What the first of the upstream servers that answers says.
    async fn ask(&self, message: &[u8], tcp: bool, name: &str) -> Option<Vec<u8>> {
        for upstream in &self.upstreams {
            let asked = async {
                match tcp {
                    true => ask_tcp(*upstream, message).await,
                    false => ask_udp(*upstream, message).await,
                }
            };
            match timeout(UPSTREAM_TIMEOUT, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(e)) => tracing::debug!(%upstream, name, "upstream name server: {e}"),
                Err(_) => tracing::debug!(%upstream, name, "upstream name server: no answer"),
            }
        }
        None
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; 4096];
        loop {
            let (len, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An ICMP error about an earlier answer.
                Err(e) => {
                    tracing::debug!("name server: {e}");
                    continue;
                }
            };
            let message = buffer[..len].to_vec();
            let (dns, socket) = (self.clone(), socket.clone());
            tokio::spawn(async move {
                let Ok(_permit) = dns.queries.try_acquire() else { return };
                if let Some(answer) = dns.respond(&message, false).await {
                    let _ = socket.send_to(&answer, from).await;
                }
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else { return };
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            let dns = self.clone();
            tokio::spawn(async move {
                let _permit = permit;
                while let Ok(Ok(message)) = timeout(IDLE_TIMEOUT, read_message(&mut stream)).await {
                    let Some(answer) = dns.respond(&message, true).await else { return };
                    if write_message(&mut stream, &answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
}

/// `10-0-0-2.default.pod.`: the address is in the name, whoever has it now.
fn pod_address(below: &str) -> Option<Ipv4Addr> {
    let (host, rest) = below.strip_suffix(".pod.")?.split_once('.')?;
    let plain = !rest.is_empty() && !rest.contains('.') && !host.contains('.');
    host.replace('-', ".").parse().ok().filter(|_| plain)
}

async fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut message = vec![0; len.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let mut framed = (message.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

async fn ask_udp(upstream: SocketAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if upstream.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    // A socket of its own per query: its random port makes forged answers hard.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(message).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if len >= wire::HEADER_LEN && buffer[..2] == message[..2] {
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    write_message(&mut stream, message).await?;
    read_message(&mut stream).await
}

/// Serves on the gateway's address until `stop`.
pub async fn serve(dns: Arc<Dns>, address: SocketAddr, stop: CancellationToken) -> Result<SocketAddr> {
    let remedy = format!("serve DNS on {address} (does another name server listen on every address?)");
    let udp = UdpSocket::bind(address).await.map_err(Error::io(remedy.clone()))?;
    let bound = udp.local_addr().map_err(Error::io(remedy.clone()))?;
    let tcp = TcpListener::bind(bound).await.map_err(Error::io(remedy))?;
    tokio::spawn(stop.clone().run_until_cancelled_owned(dns.clone().serve_udp(Arc::new(udp))));
    tokio::spawn(stop.run_until_cancelled_owned(dns.serve_tcp(tcp)));
    Ok(bound)
}

/// Reads the host's name servers.
pub fn host_upstreams(resolv_conf: &Path, own: Ipv4Addr) -> Vec<SocketAddr> {
    upstreams(&std::fs::read_to_string(resolv_conf).unwrap_or_default(), own)
}

#[cfg(test)]
mod tests {
    use super::wire::tests::query;
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

    fn records() -> Records {
        let web = "web.default.svc.cluster.local";
        let ip = Ipv4Addr::new;
        Records {
            addresses: BTreeMap::from([
                (web.to_owned(), vec![ip(10, 96, 0, 7)]),
                ("set.default.svc.cluster.local".to_owned(), vec![ip(10, 0, 0, 2), ip(10, 0, 0, 3)]),
            ]),
            services: BTreeMap::from([(format!("_http._tcp.{web}"), vec![(80, web.to_owned())])]),
            aliases: BTreeMap::from([
                ("inner.default.svc.cluster.local".to_owned(), web.to_owned()),
                ("outer.default.svc.cluster.local".to_owned(), "A.outer.test".to_owned()),
                ("one.loop.svc.cluster.local".to_owned(), "two.loop.svc.cluster.local".to_owned()),
                ("two.loop.svc.cluster.local".to_owned(), "one.loop.svc.cluster.local".to_owned()),
            ]),
            names: BTreeMap::from([(ip(10, 96, 0, 7), web.to_owned())]),
        }
    }

    fn summary(answer: Option<Answer<'_>>) -> Option<(Code, usize, usize)> {
        answer.map(|a| (a.code, a.answers.len(), a.additionals.len()))
    }

    #[test]
    fn names_of_the_cluster() {
        let dns = Dns::new("cluster.local", ADDRESS, vec![]);
        dns.set(records());
        for (name, kind, expected) in [
            ("web.default.svc.cluster.local", 1, Some((Code::NoError, 1, 0))),
            ("web.default.svc.cluster.local", 28, Some((Code::NoError, 0, 0))),
            ("set.default.svc.cluster.local", 1, Some((Code::NoError, 2, 0))),
            ("_http._tcp.web.default.svc.cluster.local", 33, Some((Code::NoError, 1, 1))),
            ("_tcp.web.default.svc.cluster.local", 1, Some((Code::NoError, 0, 0))),
            ("default.svc.cluster.local", 1, Some((Code::NoError, 0, 0))),
            ("cluster.local", 1, Some((Code::NoError, 0, 0))),
            ("cluster.local", 2, Some((Code::NoError, 1, 1))),
            ("cluster.local", 6, Some((Code::NoError, 1, 0))),
            ("ns.dns.cluster.local", 1, Some((Code::NoError, 1, 0))),
            ("ns.dns.cluster.local", 28, Some((Code::NoError, 0, 0))),
            ("web.default.svc.cluster.local", 2, Some((Code::NoError, 0, 0))),
            ("nope.default.svc.cluster.local", 6, Some((Code::NoSuchName, 0, 0))),
            ("nope.default.svc.cluster.local", 1, Some((Code::NoSuchName, 0, 0))),
            ("inner.default.svc.cluster.local", 1, Some((Code::NoError, 2, 0))),
            ("inner.default.svc.cluster.local", 5, Some((Code::NoError, 1, 0))),
            ("outer.default.svc.cluster.local", 1, Some((Code::NoError, 1, 0))),
            ("one.loop.svc.cluster.local", 1, Some((Code::NoError, ALIASES_MAX, 0))),
            ("10-0-0-2.default.pod.cluster.local", 1, Some((Code::NoError, 1, 0))),
            ("10-0-0-2.default.pod.cluster.local", 28, Some((Code::NoError, 0, 0))),
            ("10-0-0.default.pod.cluster.local", 1, Some((Code::NoSuchName, 0, 0))),
            ("10-0-0-2.pod.cluster.local", 1, Some((Code::NoSuchName, 0, 0))),
            ("dns-version.cluster.local", 16, Some((Code::NoError, 1, 0))),
            ("7.0.96.10.in-addr.arpa", 12, Some((Code::NoError, 1, 0))),
            ("8.0.96.10.in-addr.arpa", 12, None),
            ("example.com", 1, None),
            ("notcluster.local", 1, None),
        ] {
            let parsed = wire::parse(&query(name, kind, None)).unwrap();
            assert_eq!(summary(dns.lookup(&parsed)), expected, "{name} {kind}");
        }
    }

    /// The sections of a message that one record is in, by their numbers, and the record without the
    /// question's name.
    fn only_record(message: &[u8], asked: &[u8]) -> ([u16; 3], Vec<u8>) {
        let count = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
        ([count(6), count(8), count(10)], message[asked.len()..].to_vec())
    }

    #[test]
    fn the_zone_tells_of_itself() {
        let dns = Dns::new("cluster.local", ADDRESS, vec![]);
        let written = |name: &str, kind: u16| {
            let question = query(name, kind, None);
            let parsed = wire::parse(&question).unwrap();
            let message = wire::write(&parsed, &dns.lookup(&parsed).unwrap(), 512);
            only_record(&message, &question)
        };
        let name = |labels: &[&str]| -> Vec<u8> {
            let label = |label: &&str| [&[label.len() as u8], label.as_bytes()].concat();
            labels.iter().flat_map(label).chain([0]).collect()
        };
        let record = |name: &[u8], kind: u8, data: &[u8]| {
            [name, &[0, kind, 0, 1, 0, 0, 0, 5, 0, data.len() as u8], data].concat()
        };
        let (asked, server) = ([0xc0, 12], name(&["ns", "dns", "cluster", "local"]));
        let numbers = [1u32, 7200, 1800, 86_400, 5].map(u32::to_be_bytes).concat();
        let soa = [server.clone(), name(&["hostmaster", "cluster", "local"]), numbers].concat();
        assert_eq!(written("cluster.local", 6), ([1, 0, 0], record(&asked, 6, &soa)));
        let address = record(&server, 1, &ADDRESS.octets());
        assert_eq!(written("cluster.local", 2), ([1, 0, 1], [record(&asked, 2, &server), address].concat()));
        // What is not there names the zone and how long that holds.
        let absent = record(&name(&["cluster", "local"]), 6, &soa);
        assert_eq!(written("ns.dns.cluster.local", 28), ([0, 1, 0], absent.clone()));
        assert_eq!(written("nope.svc.cluster.local", 1), ([0, 1, 0], absent));
    }

    #[test]
    fn resolv_conf() {
        let text = "# x\nnameserver 10.0.0.1\nsearch a\nnameserver ::1\nnameserver 9.9.9.9 # y\n";
        let found: Vec<String> =
            upstreams(text, Ipv4Addr::new(10, 0, 0, 1)).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["[::1]:53", "9.9.9.9:53"]);
    }

    #[tokio::test]
    async fn serves_and_forwards() {
        let loopback = || SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let stop = CancellationToken::new();
        let outer = Arc::new(Dns::new("outer.test", ADDRESS, vec![]));
        outer.set(Records {
            addresses: BTreeMap::from([("a.outer.test".to_owned(), vec![Ipv4Addr::new(1, 2, 3, 4)])]),
            ..Records::default()
        });
        let upstream = serve(outer, loopback(), stop.clone()).await.unwrap();
        let inner = Arc::new(Dns::new("cluster.local", ADDRESS, vec![upstream]));
        inner.set(records());
        let address = serve(inner, loopback(), stop.clone()).await.unwrap();
        for name in ["a.outer.test", "web.default.svc.cluster.local"] {
            let question = query(name, 1, Some(1232));
            let over_udp = ask_udp(address, &question).await.unwrap();
            assert_eq!(over_udp[6..8], [0, 1], "{name}");
            assert_eq!(ask_tcp(address, &question).await.unwrap(), over_udp, "{name}");
        }
        // An alias brings the addresses of what it stands for.
        let question = query("outer.default.svc.cluster.local", 1, None);
        let answer = ask_udp(address, &question).await.unwrap();
        let found = wire::answers(&answer).unwrap();
        let alias = Data::Cname("a.outer.test".to_owned());
        let [first, second] = &found[..] else { panic!("{found:?}") };
        assert_eq!((first.name.as_str(), &first.data), ("outer.default.svc.cluster.local", &alias));
        let address_of = Data::A(Ipv4Addr::new(1, 2, 3, 4));
        assert_eq!((second.name.as_str(), &second.data), ("a.outer.test", &address_of));
        let nobody = ask_udp(address, &query("example.com", 1, None)).await.unwrap();
        assert_eq!(nobody[3] & 15, Code::ServerFailure as u8, "the last server knows nobody to ask");
        stop.cancel();
    }
}
