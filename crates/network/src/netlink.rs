//! The few netlink requests that Pod links and connection tracking need, on a plain socket: one
//! request, one answer.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A socket in the network namespace of the thread that opened it.
pub struct Socket {
    fd: OwnedFd,
    seq: u32,
}

const HEADER_LEN: usize = 16;
const LINK_INFO_LEN: usize = 16;
const ALIGN: usize = 4;

/// Without the flags of nesting and byte order.
const NLA_TYPE_MASK: u16 = 0x3fff;

const VETH_INFO_PEER: u16 = 1;
const IFLA_NET_NS_FD: u16 = 28;

/// A request under construction.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: i32) -> Message {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Message(bytes)
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
    }

    /// `struct ifinfomsg`
    fn link(&mut self, index: u32, flags: u32, change: u32) {
        self.0.extend_from_slice(&[0; 4]);
        for word in [index, flags, change] {
            self.0.extend_from_slice(&word.to_ne_bytes());
        }
    }

    fn put(&mut self, kind: u16, value: &[u8]) {
        let len = (value.len() + 4) as u16;
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
    }

    fn put_text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes);
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) {
        let start = self.0.len();
        self.put(kind, &[]);
        fill(self);
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }
}

/// The value of an attribute among others.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [a, b, c, d, ..] = rest {
        let (len, kind) = (usize::from(u16::from_ne_bytes([*a, *b])), u16::from_ne_bytes([*c, *d]));
        if kind & NLA_TYPE_MASK == wanted {
            return rest.get(4..len);
        }
        rest = rest.get(len.max(4).next_multiple_of(ALIGN)..)?;
    }
    None
}

/// A link by its index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    pub index: u32,
    /// The index of a veth's other end, in the namespace that this one is in; 0: it has none.
    pub peer: u32,
    /// The index of the bridge that it is a port of; 0: of none.
    pub master: u32,
}

impl Socket {
    pub fn open() -> io::Result<Socket> {
        Socket::of(libc::NETLINK_ROUTE)
    }

    fn of(family: i32) -> io::Result<Socket> {
        // SAFETY: a new descriptor that nobody else owns.
        let fd = unsafe {
            let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, family);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Socket { fd, seq: 0 })
    }

    /// Sends a request; returns the payload of its answer (empty for a bare acknowledgement).
    fn call(&mut self, message: Message) -> io::Result<Vec<u8>> {
        let mut payload = Vec::new();
        self.call_each(message, |body| payload = body.to_vec())?;
        Ok(payload)
    }

    /// Sends a request; passes the payload of each answer on.
    fn call_each(&mut self, mut message: Message, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        const ANSWER_LEN_MAX: usize = 32 * 1024;
        self.seq += 1;
        let len = message.0.len() as u32;
        message.0[0..4].copy_from_slice(&len.to_ne_bytes());
        message.0[8..12].copy_from_slice(&self.seq.to_ne_bytes());
        // SAFETY: the bytes are valid for their length.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), message.0.as_ptr().cast(), message.0.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut answer = vec![0u8; ANSWER_LEN_MAX];
        loop {
            // SAFETY: the buffer is valid for its length.
            let received =
                unsafe { libc::recv(self.fd.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
            if received < 0 {
                let e = io::Error::last_os_error();
                if e.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(e);
            }
            let mut rest = &answer[..received as usize];
            while let Some((header, _)) = rest.split_first_chunk::<HEADER_LEN>() {
                let word = |at: usize| {
                    u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
                };
                let (len, seq) = (word(0) as usize, word(8));
                let kind = i32::from(u16::from_ne_bytes([header[4], header[5]]));
                if len < HEADER_LEN || len > rest.len() {
                    return Err(io::Error::other("malformed netlink answer"));
                }
                let body = &rest[HEADER_LEN..len];
                rest = &rest[len.next_multiple_of(ALIGN).min(rest.len())..];
                if seq != self.seq {
                    continue;
                }
                if kind == libc::NLMSG_ERROR || kind == libc::NLMSG_DONE {
                    let code = body.first_chunk::<4>().map_or(0, |c| i32::from_ne_bytes(*c));
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                each(body);
            }
        }
    }

    /// The index of a link, None when there is none of that name.
    pub fn find(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = Message::new(libc::RTM_GETLINK, 0);
        message.link(0, 0, 0);
        message.put_text(libc::IFLA_IFNAME, name);
        match self.call(message) {
            Ok(body) => {
                let number = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_ne_bytes);
                let attributes = body.get(LINK_INFO_LEN..).unwrap_or_default();
                let other = |kind| attribute(attributes, kind).map_or(0, number);
                let (peer, master) = (other(libc::IFLA_LINK), other(libc::IFLA_MASTER));
                Ok(body.get(4..8).map(|index| Link { index: number(index), peer, master }))
            }
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The names of a bridge's ports.
    pub fn ports(&mut self, bridge: Link) -> io::Result<Vec<String>> {
        let mut message = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP);
        message.link(0, 0, 0);
        let mut names = Vec::new();
        self.call_each(message, |body| {
            let attributes = body.get(LINK_INFO_LEN..).unwrap_or_default();
            let master = attribute(attributes, libc::IFLA_MASTER);
            if master == Some(&bridge.index.to_ne_bytes())
                && let Some(name) = attribute(attributes, libc::IFLA_IFNAME)
            {
                names.push(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
            }
        })?;
        Ok(names)
    }

    pub fn add_bridge(&mut self, name: &str, mac: [u8; 6]) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        message.link(0, libc::IFF_UP as u32, libc::IFF_UP as u32);
        message.put_text(libc::IFLA_IFNAME, name);
        message.put(libc::IFLA_ADDRESS, &mac);
        message.nest(libc::IFLA_LINKINFO, |m| m.put(libc::IFLA_INFO_KIND, b"bridge"));
        self.call(message).map(drop)
    }

    /// Makes a pair of links: `name` here on the bridge, `peer` directly inside `netns`.
    /// Moving it there afterwards would cost several times as much.
    pub fn add_veth(
        &mut self,
        name: &str,
        bridge: Link,
        peer: &str,
        peer_mac: [u8; 6],
        netns: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        message.link(0, libc::IFF_UP as u32, libc::IFF_UP as u32);
        message.put_text(libc::IFLA_IFNAME, name);
        message.put(libc::IFLA_MASTER, &bridge.index.to_ne_bytes());
        message.nest(libc::IFLA_LINKINFO, |m| {
            m.put(libc::IFLA_INFO_KIND, b"veth");
            m.nest(libc::IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    // Not up: the kernel makes the peer first, when it has nobody to talk to.
                    m.link(0, 0, 0);
                    m.put_text(libc::IFLA_IFNAME, peer);
                    m.put(libc::IFLA_ADDRESS, &peer_mac);
                    m.put(IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
                });
            });
        });
        self.call(message).map(drop)
    }

    /// Lets a port of a bridge send back what came from it. Where the host filters bridged traffic
    /// (`br_netfilter`), a Pod that reaches itself through a Service goes this way.
    pub fn allow_hairpin(&mut self, name: &str) -> io::Result<()> {
        const BRPORT_MODE: u16 = 4;
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.link(0, 0, 0);
        message.put_text(libc::IFLA_IFNAME, name);
        message.nest(libc::IFLA_LINKINFO, |m| {
            m.put(libc::IFLA_INFO_SLAVE_KIND, b"bridge");
            m.nest(libc::IFLA_INFO_SLAVE_DATA, |m| m.put(BRPORT_MODE, &[1]));
        });
        self.call(message).map(drop)
    }

    /// Deletes a link; succeeds when it is gone.
    pub fn delete(&mut self, name: &str) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_DELLINK, 0);
        message.link(0, 0, 0);
        message.put_text(libc::IFLA_IFNAME, name);
        match self.call(message) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other.map(drop),
        }
    }

    pub fn up(&mut self, link: Link) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.link(link.index, libc::IFF_UP as u32, libc::IFF_UP as u32);
        self.call(message).map(drop)
    }

    pub fn add_address(&mut self, link: Link, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
        message.0.extend_from_slice(&[libc::AF_INET as u8, prefix, 0, 0]);
        message.0.extend_from_slice(&link.index.to_ne_bytes());
        message.put(libc::IFA_LOCAL, &address.octets());
        message.put(libc::IFA_ADDRESS, &address.octets());
        self.call(message).map(drop)
    }

    /// Routes `to` through the link: directly, or by way of `via`.
    pub fn add_route(
        &mut self,
        link: Link,
        to: Ipv4Addr,
        prefix: u8,
        via: Option<Ipv4Addr>,
    ) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
        let scope = if via.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
        let (table, protocol, kind) = (libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, libc::RTN_UNICAST);
        message.0.extend_from_slice(&[libc::AF_INET as u8, prefix, 0, 0, table, protocol, scope, kind]);
        message.0.extend_from_slice(&0u32.to_ne_bytes());
        if prefix > 0 {
            message.put(libc::RTA_DST, &to.octets());
        }
        if let Some(via) = via {
            message.put(libc::RTA_GATEWAY, &via.octets());
        }
        message.put(libc::RTA_OIF, &link.index.to_ne_bytes());
        self.call(message).map(drop)
    }
}

/// A UDP flow as the kernel tracks it.
pub struct Flow {
    /// Where the client sends to.
    pub to: SocketAddrV4,
    /// Where answers come from: the same, or what it is translated to.
    pub answers_from: SocketAddrV4,
    /// The attribute that names the flow, as the kernel wrote it.
    name: Vec<u8>,
}

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

impl Flow {
    #[cfg(test)]
    pub fn between(to: SocketAddrV4, answers_from: SocketAddrV4) -> Flow {
        Flow { to, answers_from, name: Vec::new() }
    }

    /// None for what is no UDP over IPv4.
    fn parse(attributes: &[u8]) -> Option<Flow> {
        let name = attribute(attributes, CTA_TUPLE_ORIG)?;
        let end = |tuple, ip, port| {
            let protocol = attribute(tuple, CTA_TUPLE_PROTO)?;
            if attribute(protocol, CTA_PROTO_NUM)? != [libc::IPPROTO_UDP as u8] {
                return None;
            }
            let ip: [u8; 4] = attribute(attribute(tuple, CTA_TUPLE_IP)?, ip)?.try_into().ok()?;
            let port: [u8; 2] = attribute(protocol, port)?.try_into().ok()?;
            Some(SocketAddrV4::new(ip.into(), u16::from_be_bytes(port)))
        };
        Some(Flow {
            to: end(name, CTA_IP_V4_DST, CTA_PROTO_DST_PORT)?,
            answers_from: end(attribute(attributes, CTA_TUPLE_REPLY)?, CTA_IP_V4_SRC, CTA_PROTO_SRC_PORT)?,
            name: name.to_vec(),
        })
    }
}

/// The connection tracking of the network namespace of the thread that opened it.
pub struct Conntrack(Socket);

impl Conntrack {
    pub fn open() -> io::Result<Conntrack> {
        Socket::of(libc::NETLINK_NETFILTER).map(Conntrack)
    }

    /// `struct nfgenmsg`
    fn message(kind: u16, flags: i32) -> Message {
        const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8;
        let mut message = Message::new(SUBSYSTEM | kind, flags);
        message.0.extend_from_slice(&[libc::AF_INET as u8, libc::NFNETLINK_V0 as u8, 0, 0]);
        message
    }

    pub fn udp_flows(&mut self) -> io::Result<Vec<Flow>> {
        const GET: u16 = 1;
        const FAMILY_HEADER_LEN: usize = 4;
        let mut flows = Vec::new();
        self.0.call_each(Self::message(GET, libc::NLM_F_DUMP), |body| {
            flows.extend(body.get(FAMILY_HEADER_LEN..).and_then(Flow::parse));
        })?;
        Ok(flows)
    }

    /// Succeeds when the flow is gone already.
    pub fn delete(&mut self, flow: &Flow) -> io::Result<()> {
        const DELETE: u16 = 2;
        let mut message = Self::message(DELETE, 0);
        message.nest(CTA_TUPLE_ORIG | libc::NLA_F_NESTED as u16, |m| m.0.extend_from_slice(&flow.name));
        match self.0.call(message) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other.map(drop),
        }
    }
}
