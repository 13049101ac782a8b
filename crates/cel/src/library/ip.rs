//! IP addresses and networks.

use std::net::IpAddr;

use super::text;
use crate::error::Error;
use crate::function::Row;
use crate::opaque::Opaque;
use crate::value::Value;

/// An address and the bits of it that name the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    pub(crate) prefix: u8,
}

pub(crate) const ROWS: &[Row] = &[
    ("ip", "string_to_ip", "(string) net.IP", |_, args| parse(text(args, 0)?).map(ip)),
    ("ip", "cidr_ip", ".(net.CIDR) net.IP", |_, args| Ok(ip(network(args, 0)?.address))),
    ("isIP", "is_ip", "(string) bool", |_, args| Ok(Value::Bool(parse(text(args, 0)?).is_ok()))),
    ("ip.isCanonical", "ip_is_canonical", "(string) bool", |_, args| {
        Ok(Value::Bool(parse(text(args, 0)?)?.to_string() == text(args, 0)?))
    }),
    ("string", "ip_to_string", "(net.IP) string", |_, args| Ok(address(args, 0)?.to_string().into())),
    ("string", "cidr_to_string", "(net.CIDR) string", |_, args| {
        let cidr = network(args, 0)?;
        Ok(format!("{}/{}", cidr.address, cidr.prefix).into())
    }),
    ("family", "ip_family", ".(net.IP) int", |_, args| {
        Ok(Value::Int(if address(args, 0)?.is_ipv4() { 4 } else { 6 }))
    }),
    ("isUnspecified", "ip_is_unspecified", ".(net.IP) bool", |_, args| {
        Ok(Value::Bool(address(args, 0)?.is_unspecified()))
    }),
    ("isLoopback", "ip_is_loopback", ".(net.IP) bool", |_, args| {
        Ok(Value::Bool(address(args, 0)?.is_loopback()))
    }),
    ("isLinkLocalMulticast", "ip_is_link_local_multicast", ".(net.IP) bool", |_, args| {
        Ok(Value::Bool(match address(args, 0)? {
            IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
            IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
        }))
    }),
    ("isLinkLocalUnicast", "ip_is_link_local_unicast", ".(net.IP) bool", |_, args| {
        Ok(Value::Bool(is_link_local(address(args, 0)?)))
    }),
    ("isGlobalUnicast", "ip_is_global_unicast", ".(net.IP) bool", |_, args| {
        let ip = address(args, 0)?;
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        let other = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_link_local(ip);
        Ok(Value::Bool(!broadcast && !other))
    }),
    ("cidr", "string_to_cidr", "(string) net.CIDR", |_, args| {
        let cidr = parse_cidr(text(args, 0)?);
        let cidr = cidr.map_err(|why| {
            Error::new(format!("network address parse error during conversion from string: {why}"))
        })?;
        Ok(Value::Opaque(Opaque::Cidr(cidr)))
    }),
    ("isCIDR", "is_cidr", "(string) bool", |_, args| Ok(Value::Bool(parse_cidr(text(args, 0)?).is_ok()))),
    ("containsIP", "cidr_contains_ip_string", ".(net.CIDR, string) bool", |_, args| {
        Ok(Value::Bool(network(args, 0)?.contains(parse(text(args, 1)?)?)))
    }),
    ("containsIP", "cidr_contains_ip_ip", ".(net.CIDR, net.IP) bool", |_, args| {
        Ok(Value::Bool(network(args, 0)?.contains(address(args, 1)?)))
    }),
    ("containsCIDR", "cidr_contains_cidr_string", ".(net.CIDR, string) bool", |_, args| {
        let other = parse_cidr(text(args, 1)?);
        let other = other.map_err(|why| {
            Error::new(format!("network address parse error during conversion from string: {why}"))
        })?;
        Ok(Value::Bool(network(args, 0)?.contains_network(other)))
    }),
    ("containsCIDR", "cidr_contains_cidr", ".(net.CIDR, net.CIDR) bool", |_, args| {
        Ok(Value::Bool(network(args, 0)?.contains_network(network(args, 1)?)))
    }),
    ("prefixLength", "cidr_prefix_length", ".(net.CIDR) int", |_, args| {
        Ok(Value::Int(network(args, 0)?.prefix.into()))
    }),
    ("masked", "cidr_masked", ".(net.CIDR) net.CIDR", |_, args| {
        let cidr = network(args, 0)?;
        Ok(Value::Opaque(Opaque::Cidr(Cidr { address: cidr.network(), prefix: cidr.prefix })))
    }),
];

fn ip<'a>(address: IpAddr) -> Value<'a> {
    Value::Opaque(Opaque::Ip(address))
}

fn address(args: &[Value<'_>], index: usize) -> Result<IpAddr, Error> {
    match args.get(index) {
        Some(Value::Opaque(Opaque::Ip(ip))) => Ok(*ip),
        _ => Err(Error::no_such_overload()),
    }
}

fn network(args: &[Value<'_>], index: usize) -> Result<Cidr, Error> {
    match args.get(index) {
        Some(Value::Opaque(Opaque::Cidr(cidr))) => Ok(*cidr),
        _ => Err(Error::no_such_overload()),
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn parse(text: &str) -> Result<IpAddr, Error> {
    if text.contains('%') {
        return Err(Error::new(format!("IP address {text:?} with zone value is not allowed")));
    }
    let Ok(ip) = text.parse::<IpAddr>() else {
        return Err(Error::new(format!(
            "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
        )));
    };
    if is_mapped(ip) {
        return Err(Error::new(format!("IPv4-mapped IPv6 address {text:?} is not allowed")));
    }
    Ok(ip)
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

fn parse_cidr(text: &str) -> Result<Cidr, String> {
    let bad = |why: &str| {
        format!(
            "network address parse error during conversion from string: netip.ParsePrefix({text:?}): {why}"
        )
    };
    let (address, bits) = text.rsplit_once('/').ok_or_else(|| bad("no '/'"))?;
    let address: IpAddr = address.parse().map_err(|_| bad("unable to parse IP"))?;
    let plain = bits.bytes().all(|c| c.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    let prefix: u8 = bits.parse().ok().filter(|_| plain).ok_or_else(|| bad("bad bits after slash"))?;
    if prefix > width(address) {
        return Err(bad("prefix length out of range"));
    }
    if is_mapped(address) {
        return Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"));
    }
    Ok(Cidr { address, prefix })
}

fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The address with only its first bits.
fn masked(ip: IpAddr, prefix: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

impl Cidr {
    fn network(self) -> IpAddr {
        masked(self.address, self.prefix)
    }

    fn contains(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.address.is_ipv4() && masked(ip, self.prefix) == self.network()
    }

    fn contains_network(self, other: Cidr) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }
}
