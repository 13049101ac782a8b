//! Which Pod holds which address of this node's range: one small file per address, so that a
//! crash at any moment leaves either a holder or none.

use crate::HostPort;
use crate::{Error, Result};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// A Pod's hold on an address.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Lease {
    pub uid: String,
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
}

/// The allocator. One instance per directory.
pub struct Addresses {
    dir: PathBuf,
    range: Ipv4Net,
    leases: BTreeMap<Ipv4Addr, Lease>,
    /// The address given out last: the next search starts behind it, so that a released address
    /// rests for a full round.
    last: Ipv4Addr,
}

/// The first address of a range is the gateway.
pub fn gateway(range: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(range.network()).saturating_add(1))
}

impl Addresses {
    /// Reads what was held before. What is unreadable was never given out.
    pub fn open(dir: PathBuf, range: Ipv4Net) -> Result<Addresses> {
        const CURSOR: &str = "last";
        fs::create_dir_all(&dir).map_err(Error::io(format!("create {}", dir.display())))?;
        let mut leases = BTreeMap::new();
        let mut last = gateway(range);
        for entry in fs::read_dir(&dir).map_err(Error::io(format!("read {}", dir.display())))?.flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name == CURSOR {
                last = text.trim().parse().unwrap_or(last);
                continue;
            }
            match (name.parse::<Ipv4Addr>(), serde_json::from_str::<Lease>(&text)) {
                (Ok(address), Ok(lease)) if range.contains(&address) => drop(leases.insert(address, lease)),
                _ => drop(fs::remove_file(entry.path())),
            }
        }
        Ok(Addresses { dir, range, leases, last })
    }

    pub fn leases(&self) -> &BTreeMap<Ipv4Addr, Lease> {
        &self.leases
    }

    pub fn of(&self, uid: &str) -> Option<Ipv4Addr> {
        self.leases.iter().find(|(_, lease)| lease.uid == uid).map(|(address, _)| *address)
    }

    /// The Pod's address: the one it holds, or the next free one.
    pub fn acquire(&mut self, uid: &str, host_ports: &[HostPort]) -> Result<Ipv4Addr> {
        let lease = Lease { uid: uid.to_owned(), host_ports: host_ports.to_vec() };
        let address = match self.of(uid) {
            Some(address) => address,
            None => self.next_free()?,
        };
        if self.leases.get(&address) != Some(&lease) {
            self.write(&address.to_string(), &serde_json::to_string(&lease).unwrap_or_default())?;
            self.leases.insert(address, lease);
        }
        if self.last != address {
            self.last = address;
            self.write("last", &address.to_string())?;
        }
        Ok(address)
    }

    fn next_free(&self) -> Result<Ipv4Addr> {
        let (first, end) = (u32::from(gateway(self.range)) + 1, u32::from(self.range.broadcast()));
        let count = end.saturating_sub(first);
        let after = u32::from(self.last).wrapping_add(1);
        let offset = if (first..end).contains(&after) { after - first } else { 0 };
        (0..count)
            .map(|i| Ipv4Addr::from(first + (offset + i) % count))
            .find(|address| !self.leases.contains_key(address))
            .ok_or_else(|| Error::Other(format!("no address is free in {}", self.range)))
    }

    /// A file appears whole or not at all.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let (temporary, path) = (self.dir.join(format!(".{name}")), self.dir.join(name));
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(Error::io(format!("write {}", path.display())))
    }

    pub fn release(&mut self, uid: &str) -> Result<Option<Ipv4Addr>> {
        let Some(address) = self.of(uid) else { return Ok(None) };
        let path = self.dir.join(address.to_string());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("remove {}", path.display()))(e));
            }
            _ => {}
        }
        self.leases.remove(&address);
        Ok(Some(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_and_rest() {
        let dir = tempfile::tempdir().unwrap();
        let range: Ipv4Net = "10.1.2.0/29".parse().unwrap();
        let open = || Addresses::open(dir.path().join("a"), range).unwrap();
        let mut all = open();
        let ip = |last: u8| Ipv4Addr::new(10, 1, 2, last);
        assert_eq!(all.acquire("a", &[]).unwrap(), ip(2));
        assert_eq!(all.acquire("a", &[]).unwrap(), ip(2));
        assert_eq!(all.acquire("b", &[]).unwrap(), ip(3));
        assert_eq!(all.release("b").unwrap(), Some(ip(3)));
        assert_eq!(all.release("b").unwrap(), None);
        // Not used again at once, not even by a new process.
        let mut all = open();
        assert_eq!(all.of("a"), Some(ip(2)));
        for (uid, last) in [("c", 4), ("d", 5), ("e", 6), ("f", 3)] {
            assert_eq!(all.acquire(uid, &[]).unwrap(), ip(last), "{uid}");
        }
        assert_eq!(all.acquire("g", &[]).unwrap_err().to_string(), "no address is free in 10.1.2.0/29");
        // A torn file is no lease.
        fs::write(dir.path().join("a/10.1.2.6"), "{\"ui").unwrap();
        assert_eq!(open().acquire("g", &[]).unwrap(), ip(6));
    }
}
