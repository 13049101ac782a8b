//! Connections that the kernel goes on translating to endpoints that are gone. A UDP client that
//! keeps its port keeps its entry alive, and no rule is asked again: the entry has to go. TCP
//! clients meet a reset instead. Upstream counterpart: `pkg/proxy/conntrack`.

use crate::netlink::{Conntrack, Flow};
use crate::rules::{Frontend, Frontends};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

/// Which flows a change of frontends makes wrong.
pub struct Change {
    changed: BTreeSet<Frontend>,
    known: BTreeSet<Frontend>,
    now: Frontends,
}

impl Change {
    /// `old` None: whatever was there before is unknown. None when no flow can be wrong.
    pub fn between(old: Option<&Frontends>, now: &Frontends) -> Option<Change> {
        let none = Frontends::new();
        let past = old.unwrap_or(&none);
        let known: BTreeSet<Frontend> = past.keys().chain(now.keys()).copied().collect();
        let differs = |key: &&Frontend| old.is_none() || past.get(key) != now.get(key);
        let changed: BTreeSet<Frontend> = known.iter().filter(differs).copied().collect();
        (!changed.is_empty()).then(|| Change { changed, known, now: now.clone() })
    }

    /// Whether the flow leads where nothing leads any more, or past what is there now.
    /// `is_local` says whether an address is the host's own.
    fn spoils(&self, flow: &Flow, is_local: impl Fn(Ipv4Addr) -> bool) -> bool {
        let (ip, port) = (*flow.to.ip(), flow.to.port());
        let own = (Some(ip), port);
        let key = if self.known.contains(&own) { own } else { (None, port) };
        if !self.changed.contains(&key) || (key.0.is_none() && !is_local(ip)) {
            return false;
        }
        let endpoints = self.now.get(&key);
        if flow.answers_from == flow.to {
            return endpoints.is_some_and(|endpoints| !endpoints.is_empty());
        }
        !endpoints.is_some_and(|endpoints| endpoints.contains(&flow.answers_from))
    }

    /// Deletes the flows of this host that the change makes wrong.
    pub fn apply(&self) -> Result<()> {
        let what = "forget UDP flows (does the kernel have nf_conntrack_netlink?)";
        let mut conntrack = Conntrack::open().map_err(Error::io(what))?;
        let is_local = |ip| UdpSocket::bind(SocketAddrV4::new(ip, 0)).is_ok();
        for flow in conntrack.udp_flows().map_err(Error::io(what))? {
            if self.spoils(&flow, is_local) {
                conntrack.delete(&flow).map_err(Error::io(what))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frontends(all: &[(Frontend, &[&str])]) -> Frontends {
        all.iter().map(|(key, to)| (*key, to.iter().map(|e| e.parse().unwrap()).collect())).collect()
    }

    #[test]
    fn flows_to_what_is_gone_are_spoiled() {
        let vip = Ipv4Addr::new(10, 96, 0, 1);
        let host = Ipv4Addr::new(192, 0, 2, 1);
        let (service, node_port, own) = ((Some(vip), 53), (None, 30053), (Some(host), 30054));
        let old = frontends(&[
            (service, &["10.0.0.2:53", "10.0.0.3:53"]),
            (node_port, &["10.0.0.2:53"]),
            ((Some(vip), 99), &["10.0.0.2:99"]),
        ]);
        let now = frontends(&[
            (service, &["10.0.0.3:53"]),
            (own, &["10.0.0.4:1"]),
            ((Some(vip), 99), &["10.0.0.2:99"]),
        ]);
        let spoiled = |old, to: &str, answers: &str| {
            let flow = Flow::between(to.parse().unwrap(), answers.parse().unwrap());
            Change::between(old, &now).unwrap().spoils(&flow, |ip| ip == host)
        };
        for (to, answers, expected) in [
            ("10.96.0.1:53", "10.0.0.2:53", true),
            ("10.96.0.1:53", "10.0.0.3:53", false),
            // Another port of the same address did not change.
            ("10.96.0.1:99", "10.0.0.7:99", false),
            ("192.0.2.1:30053", "10.0.0.2:53", true),
            // Somebody else's port of that number.
            ("198.51.100.1:30053", "10.0.0.2:53", false),
            // The host port is there now; the flow went past it.
            ("192.0.2.1:30054", "192.0.2.1:30054", true),
            ("10.0.0.2:53", "10.0.0.2:53", false),
        ] {
            assert_eq!(spoiled(Some(&old), to, answers), expected, "{to} answered by {answers}");
        }
        assert!(spoiled(None, "10.96.0.1:99", "10.0.0.7:99"), "an earlier life's");
        assert!(Change::between(Some(&now), &now).is_none());
    }
}
