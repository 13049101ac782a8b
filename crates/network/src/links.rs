//! The bridge and the Pods' links.

use crate::netlink::Socket;
use crate::{Error, Result};
use ipnet::Ipv4Net;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

/// The name of a Pod's link inside the Pod.
const POD_LINK: &str = "eth0";

/// A hardware address made from an address: whoever has the one has the other, so no neighbour
/// table is ever wrong about an address used again.
fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

fn open() -> Result<Socket> {
    Socket::open().map_err(Error::io("open a netlink socket"))
}

fn set(path: &str, value: &str) -> Result<()> {
    // Only a write that changes something: the host may hold the file read-only at its value.
    match fs::read_to_string(path) {
        Ok(now) if now.trim() == value => Ok(()),
        _ => fs::write(path, value).map_err(Error::io(format!("set {path} to {value}"))),
    }
}

/// Makes the bridge, or brings an existing one into shape.
pub fn make_bridge(name: &str, gateway: Ipv4Addr, pods: Ipv4Net, services: Ipv4Net) -> Result<()> {
    let mut socket = open()?;
    match socket.add_bridge(name, mac_of(gateway)) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => {
            other.map_err(Error::io(format!("create the bridge {name} (does the kernel have bridges?)")))?
        }
    }
    let link = socket
        .find(name)
        .map_err(Error::io(format!("find the bridge {name}")))?
        .ok_or_else(|| Error::Other(format!("the bridge {name} vanished")))?;
    let what = |what: String| Error::io(format!("{what} on the bridge {name}"));
    socket.up(link).map_err(what("go up".into()))?;
    socket
        .add_address(link, gateway, pods.prefix_len())
        .map_err(what(format!("set the address {gateway}")))?;
    // The host's own connections to Services need a route, whatever else it is connected to.
    socket
        .add_route(link, services.network(), services.prefix_len(), None)
        .map_err(what(format!("route {services}")))?;
    set("/proc/sys/net/ipv4/ip_forward", "1")?;
    // Services and host ports are also at 127.0.0.1; the rules keep Pods out of that net.
    set(&format!("/proc/sys/net/ipv4/conf/{name}/route_localnet"), "1")?;
    // Pods of one node are told apart by routes: a redirect to the short way would mislead them.
    set(&format!("/proc/sys/net/ipv4/conf/{name}/send_redirects"), "0")
}

/// Connects the namespace; a connection that is there stays, with all that flows through it. Leaves
/// the calling thread inside the namespace.
pub fn attach(bridge: &str, link: &str, netns: &Path, ip: Ipv4Addr, gateway: Ipv4Addr) -> Result<()> {
    let what = |what: &str| Error::io(format!("{what} for the Pod address {ip}"));
    // The socket stays with the host's namespace, wherever the thread goes.
    let mut host = open()?;
    let bridge_link = host
        .find(bridge)
        .map_err(what("find the bridge"))?
        .ok_or_else(|| Error::Other(format!("the bridge {bridge} is gone")))?;
    let namespace = File::open(netns).map_err(Error::io(format!("open {}", netns.display())))?;
    // SAFETY: no memory is involved; this thread ends after its work here.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } < 0 {
        return Err(Error::io(format!("enter {}", netns.display()))(io::Error::last_os_error()));
    }
    let mut inside = open()?;
    let known = host.find(link).map_err(what("find the link"))?;
    let end = inside.find(POD_LINK).map_err(what("find a link"))?;
    let connected = known.zip(end).is_some_and(|(ours, end)| {
        ours.peer == end.index && end.peer == ours.index && ours.master == bridge_link.index
    });
    if !connected {
        if known.is_some() {
            // Of an earlier namespace: its other end goes with it.
            host.delete(link).map_err(what("remove the old link"))?;
        }
        host.add_veth(link, bridge_link, POD_LINK, mac_of(ip), namespace.as_fd())
            .map_err(what("make a link"))?;
    }
    host.allow_hairpin(link).map_err(what("set hairpin mode"))?;

    for name in ["all", "default", POD_LINK] {
        set(&format!("/proc/sys/net/ipv4/conf/{name}/accept_redirects"), "0")?;
    }
    let mut find = |name: &str| -> Result<_> {
        inside
            .find(name)
            .map_err(what("find a link"))?
            .ok_or_else(|| Error::Other(format!("the link {name} is not in the namespace")))
    };
    let (loopback, eth) = (find("lo")?, find(POD_LINK)?);
    const HOST_PREFIX: u8 = 32;
    inside.up(loopback).map_err(what("bring up lo"))?;
    inside.up(eth).map_err(what("bring up the link"))?;
    inside.add_address(eth, ip, HOST_PREFIX).map_err(what("set the address"))?;
    inside.add_route(eth, gateway, HOST_PREFIX, None).map_err(what("route to the gateway"))?;
    inside.add_route(eth, Ipv4Addr::UNSPECIFIED, 0, Some(gateway)).map_err(what("set the default route"))
}

/// Deletes a link; succeeds when it is gone.
pub fn remove(link: &str) -> Result<()> {
    open()?.delete(link).map_err(Error::io(format!("delete the link {link}")))
}

/// Deletes the bridge's ports that `keep` does not name.
pub fn remove_ports_except(bridge: &str, keep: &BTreeSet<String>) -> Result<()> {
    let what = || Error::io(format!("list the ports of the bridge {bridge}"));
    let mut socket = open()?;
    let Some(link) = socket.find(bridge).map_err(what())? else { return Ok(()) };
    for port in socket.ports(link).map_err(what())? {
        if !keep.contains(&port) {
            socket.delete(&port).map_err(Error::io(format!("delete the link {port}")))?;
        }
    }
    Ok(())
}
