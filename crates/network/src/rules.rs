//! The nftables rules of an instance, as text for `nft -f -`: one table, changed in transactions.
//! Pure: turns tables and their differences into scripts.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// One port of a Service and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub cluster_ip: Ipv4Addr,
    pub port: u16,
    pub protocol: Protocol,
    /// Ready endpoints. None at all: connections are refused.
    pub endpoints: Vec<SocketAddrV4>,
    /// Also reachable under every address of the host.
    pub node_port: Option<u16>,
    /// `ClientIP` affinity with this timeout in seconds.
    pub affinity_s: Option<u32>,
}

/// A port of the host that leads to a Pod.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// None: every address of the host.
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    pub protocol: Protocol,
    pub container_port: u16,
}

/// What one chain of the table does; equal chains need no change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    rules: Vec<String>,
    /// Sets of client addresses, for affinity: (name, timeout in seconds).
    sets: Vec<(String, u32)>,
}

/// An address and port that leads elsewhere; no address: every one of the host's.
pub type Frontend = (Option<Ipv4Addr>, u16);
/// Where frontends lead.
pub type Frontends = BTreeMap<Frontend, BTreeSet<SocketAddrV4>>;

/// The changing part of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    chains: BTreeMap<String, Chain>,
    /// Map element key to chain.
    services: BTreeMap<String, String>,
    ports: BTreeMap<String, String>,
    /// Addresses that may reach themselves through a Service.
    hairpin: BTreeSet<Ipv4Addr>,
    /// The UDP part of the above once more, for flows that are under way.
    pub udp: Frontends,
}

/// Builds the tables. `host_ports` are per Pod address.
pub fn tables(services: &[ServicePort], host_ports: &[(Ipv4Addr, HostPort)]) -> Tables {
    let mut tables = Tables::default();
    for service in services {
        if service.protocol == Protocol::Udp {
            let own = (Some(service.cluster_ip), service.port);
            let endpoints: BTreeSet<_> = service.endpoints.iter().copied().collect();
            for key in [Some(own), service.node_port.map(|port| (None, port))].into_iter().flatten() {
                tables.udp.insert(key, endpoints.clone());
            }
        }
        if service.endpoints.is_empty() {
            continue;
        }
        let protocol = service.protocol.name();
        let name = format!("svc-{}-{protocol}-{}", service.cluster_ip, service.port);
        add_service(&mut tables, &name, service);
        tables
            .services
            .insert(format!("{} . {protocol} . {}", service.cluster_ip, service.port), name.clone());
        if let Some(port) = service.node_port {
            tables.ports.insert(format!("{protocol} . {port}"), name);
        }
        tables.hairpin.extend(service.endpoints.iter().map(|e| *e.ip()));
    }
    for (pod, port) in host_ports {
        let protocol = port.protocol.name();
        let key = format!("{protocol} . {}", port.host_port);
        // A node port is the cluster's promise; a host port that collides with one loses.
        let name = format!("host-{protocol}-{}", port.host_port);
        if tables.ports.get(&key).is_some_and(|owner| *owner != name) {
            continue;
        }
        tables.ports.insert(key, name.clone());
        let host_ip = port.host_ip.filter(|ip| !ip.is_unspecified());
        // The host's own servers, such as resolvers, live at the other loopback addresses.
        let at = host_ip.map_or("!= 127.0.0.2-127.255.255.255".to_owned(), |ip| ip.to_string());
        let rule = format!("ip daddr {at} meta l4proto {protocol} dnat to {pod}:{}", port.container_port);
        let rules = &mut tables.chains.entry(name).or_default().rules;
        // Rules for one address go before the rule for all.
        let at = if host_ip.is_some() { 0 } else { rules.len() };
        rules.insert(at, rule);
        tables.hairpin.insert(*pod);
        if port.protocol == Protocol::Udp {
            let to = SocketAddrV4::new(*pod, port.container_port);
            tables.udp.insert((host_ip, port.host_port), [to].into());
        }
    }
    tables
}

fn add_service(tables: &mut Tables, name: &str, service: &ServicePort) {
    let protocol = service.protocol.name();
    let count = service.endpoints.len();
    let Some(timeout_s) = service.affinity_s else {
        let targets: Vec<String> = service
            .endpoints
            .iter()
            .enumerate()
            .map(|(i, e)| format!("{i} : {} . {}", e.ip(), e.port()))
            .collect();
        let rule = format!(
            "meta l4proto {protocol} dnat ip to numgen random mod {count} map {{ {} }}",
            targets.join(", ")
        );
        tables.chains.insert(name.to_owned(), Chain { rules: vec![rule], sets: vec![] });
        return;
    };
    let mut chain = Chain::default();
    let mut choices = Vec::new();
    for (i, endpoint) in service.endpoints.iter().enumerate() {
        // Named after the endpoint, so that a client stays with it when others come and go.
        let own = format!("{name}-{}-{}", endpoint.ip(), endpoint.port());
        chain.rules.push(format!("ip saddr @{own} goto {own}"));
        choices.push(format!("{i} : goto {own}"));
        let rules = vec![
            format!("update @{own} {{ ip saddr timeout {timeout_s}s }}"),
            format!("meta l4proto {protocol} dnat to {}:{}", endpoint.ip(), endpoint.port()),
        ];
        tables.chains.insert(own.clone(), Chain { rules, sets: vec![(own, timeout_s)] });
    }
    chain.rules.push(format!("numgen random mod {count} vmap {{ {} }}", choices.join(", ")));
    tables.chains.insert(name.to_owned(), chain);
}

/// What the table of an instance is about.
#[derive(Clone, Debug)]
pub struct Ground {
    pub table: String,
    pub bridge: String,
    pub pods: Ipv4Net,
    pub services: Ipv4Net,
}

/// The constant part: makes the table anew, whatever was there.
///
/// What is still meant for a Service after translation leads nowhere, and is refused before it is
/// routed: a redirect would use up what the kernel allows in ICMP to one client. The host may
/// reach ports from 127.0.0.1 (`route_localnet`); Pods must not come near that net by it.
pub fn base(ground: &Ground) -> String {
    let Ground { table, bridge, pods, services } = ground;
    format!(
        "add table ip {table}\ndelete table ip {table}\n\
        table ip {table} {{\n\
        map services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
        map ports {{ type inet_proto . inet_service : verdict; }}\n\
        set hairpin {{ type ipv4_addr . ipv4_addr; }}\n\
        chain refuse {{\n\
        ip daddr {services} meta l4proto tcp reject with tcp reset;\n\
        ip daddr {services} reject;\n}}\n\
        chain translate {{\n\
        ip daddr . meta l4proto . th dport vmap @services;\n\
        fib daddr type local meta l4proto . th dport vmap @ports;\n}}\n\
        chain loopback {{ type filter hook prerouting priority -300;\n\
        iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop;\n\
        iifname \"{bridge}\" ip saddr 127.0.0.0/8 drop;\n}}\n\
        chain prerouting {{ type nat hook prerouting priority -100; jump translate; }}\n\
        chain output {{ type nat hook output priority -100; jump translate; }}\n\
        chain postrouting {{ type nat hook postrouting priority 100;\n\
        ip saddr . ip daddr @hairpin masquerade;\n\
        ip saddr 127.0.0.0/8 oifname \"{bridge}\" masquerade;\n\
        ip saddr {pods} ip daddr != {pods} oifname != \"{bridge}\" masquerade;\n}}\n\
        chain inward {{ type filter hook prerouting priority -50; jump refuse; }}\n\
        chain outward {{ type filter hook output priority 0; jump refuse; }}\n}}\n"
    )
}

/// A client that an affinity set remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    set: String,
    ip: Ipv4Addr,
    expires_s: u32,
}

/// The clients in what `nft -j list sets` prints.
pub fn clients(listed: &[u8]) -> Vec<Client> {
    let listed: serde_json::Value = serde_json::from_slice(listed).unwrap_or_default();
    let items = listed["nftables"].as_array();
    let mut found = Vec::new();
    for set in items.into_iter().flatten().map(|item| &item["set"]) {
        let Some(name) = set["name"].as_str() else { continue };
        for element in set["elem"].as_array().into_iter().flatten().map(|e| &e["elem"]) {
            let ip = element["val"].as_str().and_then(|ip| ip.parse().ok());
            let expires_s = element["expires"].as_u64().and_then(|s| u32::try_from(s).ok());
            if let Some((ip, expires_s @ 1..)) = ip.zip(expires_s) {
                found.push(Client { set: name.to_owned(), ip, expires_s });
            }
        }
    }
    found
}

/// Makes the whole table anew in one transaction; clients stay with their endpoints.
pub fn replace(ground: &Ground, new: &Tables, clients: &[Client]) -> String {
    let mut out = base(ground);
    out.push_str(&diff(&ground.table, &Tables::default(), new));
    let sets: BTreeMap<&str, u32> = new
        .chains
        .values()
        .flat_map(|c| &c.sets)
        .map(|(set, timeout_s)| (set.as_str(), *timeout_s))
        .collect();
    for Client { set, ip, expires_s } in clients {
        if let Some(timeout_s) = sets.get(set.as_str()) {
            let left = expires_s.min(timeout_s);
            // Writing to a string cannot fail.
            let _ = writeln!(out, "add element ip {} {set} {{ {ip} expires {left}s }}", ground.table);
        }
    }
    out
}

pub fn remove(table: &str) -> String {
    format!("add table ip {table}\ndelete table ip {table}\n")
}

/// The transaction that turns `old` into `new`; empty when they are equal.
pub fn diff(table: &str, old: &Tables, new: &Tables) -> String {
    let mut out = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{text}");
    };
    // First nothing may refer to what goes.
    for (map, old, new) in [("services", &old.services, &new.services), ("ports", &old.ports, &new.ports)] {
        for (key, _) in old.iter().filter(|(key, chain)| new.get(*key) != Some(*chain)) {
            line(format_args!("delete element ip {table} {map} {{ {key} }}"));
        }
    }
    for address in old.hairpin.difference(&new.hairpin) {
        line(format_args!("delete element ip {table} hairpin {{ {address} . {address} }}"));
    }
    for (name, _) in old.chains.iter().filter(|(name, chain)| new.chains.get(*name) != Some(*chain)) {
        line(format_args!("flush chain ip {table} {name}"));
    }
    for (name, chain) in old.chains.iter().filter(|(name, _)| !new.chains.contains_key(*name)) {
        line(format_args!("delete chain ip {table} {name}"));
        for (set, _) in &chain.sets {
            line(format_args!("delete set ip {table} {set}"));
        }
    }
    let changed: Vec<_> =
        new.chains.iter().filter(|(name, chain)| old.chains.get(*name) != Some(*chain)).collect();
    for (name, chain) in &changed {
        if !old.chains.contains_key(*name) {
            for (set, timeout_s) in &chain.sets {
                line(format_args!(
                    "add set ip {table} {set} {{ type ipv4_addr; flags dynamic,timeout; timeout {timeout_s}s; }}"
                ));
            }
            line(format_args!("add chain ip {table} {name}"));
        }
    }
    for (name, chain) in &changed {
        for rule in &chain.rules {
            line(format_args!("add rule ip {table} {name} {rule}"));
        }
    }
    for (map, old, new) in [("services", &old.services, &new.services), ("ports", &old.ports, &new.ports)] {
        for (key, chain) in new.iter().filter(|(key, chain)| old.get(*key) != Some(*chain)) {
            line(format_args!("add element ip {table} {map} {{ {key} : goto {chain} }}"));
        }
    }
    for address in new.hairpin.difference(&old.hairpin) {
        line(format_args!("add element ip {table} hairpin {{ {address} . {address} }}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(port: u16, endpoints: &[&str]) -> ServicePort {
        ServicePort {
            cluster_ip: Ipv4Addr::new(10, 96, 0, 1),
            port,
            protocol: Protocol::Tcp,
            endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
            node_port: None,
            affinity_s: None,
        }
    }

    #[test]
    fn only_differences_are_sent() {
        let old = tables(&[service(80, &["10.0.0.2:8080"]), service(81, &["10.0.0.3:1"])], &[]);
        assert_eq!(diff("t", &old, &old), "");
        let new = tables(&[service(80, &["10.0.0.2:8080", "10.0.0.4:8080"]), service(82, &[])], &[]);
        assert_eq!(
            diff("t", &old, &new),
            "delete element ip t services { 10.96.0.1 . tcp . 81 }\n\
             delete element ip t hairpin { 10.0.0.3 . 10.0.0.3 }\n\
             flush chain ip t svc-10.96.0.1-tcp-80\n\
             flush chain ip t svc-10.96.0.1-tcp-81\n\
             delete chain ip t svc-10.96.0.1-tcp-81\n\
             add rule ip t svc-10.96.0.1-tcp-80 meta l4proto tcp dnat ip to numgen random mod 2 map \
             { 0 : 10.0.0.2 . 8080, 1 : 10.0.0.4 . 8080 }\n\
             add element ip t hairpin { 10.0.0.4 . 10.0.0.4 }\n"
        );
    }

    #[test]
    fn clients_stay_with_their_endpoints() {
        let listed = br#"{"nftables": [{"metainfo": {"version": "1"}},
            {"set": {"name": "hairpin", "elem": [{"concat": ["10.0.0.2", "10.0.0.2"]}]}},
            {"set": {"name": "svc-10.96.0.1-tcp-80-10.0.0.2-8080", "elem": [
                {"elem": {"val": "10.0.0.7", "expires": 98}}, {"elem": {"val": "10.0.0.8", "expires": 0}},
                {"elem": {"val": "10.0.0.9", "timeout": 50, "expires": 3}}]}},
            {"set": {"name": "svc-10.96.0.1-tcp-80-10.0.0.3-8080", "elem": [
                {"elem": {"val": "10.0.0.5", "expires": 98}}]}}]}"#;
        let found = clients(listed);
        assert_eq!(found.len(), 3);
        assert!(clients(b"").is_empty());
        let mut sticky = service(80, &["10.0.0.2:8080"]);
        sticky.affinity_s = Some(60);
        let net = || "10.0.0.0/24".parse().unwrap();
        let ground = Ground { table: "t".into(), bridge: "b".into(), pods: net(), services: net() };
        let script = replace(&ground, &tables(&[sticky], &[]), &found);
        assert!(script.contains("-10.0.0.2-8080 { type ipv4_addr; flags dynamic,timeout; timeout 60s; }"));
        assert!(script.contains("-10.0.0.2-8080 { ip saddr timeout 60s }"));
        let added: Vec<_> = script.lines().filter(|line| line.contains("expires")).collect();
        assert_eq!(
            added,
            [
                "add element ip t svc-10.96.0.1-tcp-80-10.0.0.2-8080 { 10.0.0.7 expires 60s }",
                "add element ip t svc-10.96.0.1-tcp-80-10.0.0.2-8080 { 10.0.0.9 expires 3s }"
            ]
        );
    }

    #[test]
    fn host_ports_give_way_to_node_ports() {
        let mut with_node_port = service(80, &["10.0.0.2:8080"]);
        with_node_port.node_port = Some(30080);
        let port =
            |host_port, host_ip| HostPort { host_ip, host_port, protocol: Protocol::Tcp, container_port: 5 };
        let pod = Ipv4Addr::new(10, 0, 0, 9);
        let host = Some(Ipv4Addr::new(192, 0, 2, 1));
        let built = tables(
            &[with_node_port],
            &[(pod, port(30080, None)), (pod, port(99, None)), (pod, port(99, host))],
        );
        assert_eq!(built.ports["tcp . 30080"], "svc-10.96.0.1-tcp-80");
        assert_eq!(
            built.chains["host-tcp-99"].rules,
            [
                "ip daddr 192.0.2.1 meta l4proto tcp dnat to 10.0.0.9:5",
                "ip daddr != 127.0.0.2-127.255.255.255 meta l4proto tcp dnat to 10.0.0.9:5"
            ]
        );
    }
}
