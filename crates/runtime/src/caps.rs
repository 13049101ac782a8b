//! Capability names and the sets of the calling process.

use std::collections::BTreeSet;
use std::io;

const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities as the kernel's bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set(pub u64);

impl Set {
    /// From names like `CAP_CHOWN`. Unknown names are an error.
    pub fn from_names(names: &[String]) -> Result<Set, String> {
        names.iter().try_fold(Set(0), |set, name| {
            let bare = name.strip_prefix("CAP_").unwrap_or(name);
            match NAMES.iter().position(|n| *n == bare) {
                Some(bit) => Ok(Set(set.0 | 1 << bit)),
                None => Err(format!("unknown capability: {name:?}")),
            }
        })
    }

    pub fn names(self) -> BTreeSet<String> {
        (0..NAMES.len())
            .filter(|bit| self.0 >> bit & 1 == 1)
            .map(|bit| format!("CAP_{}", NAMES[bit]))
            .collect()
    }
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

/// What the calling process may grant: its permitted set.
pub fn permitted() -> io::Result<Set> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: both structs have the layout of version 3.
    let result = unsafe { libc::syscall(libc::SYS_capget, &mut header, data.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Set(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32))
}

/// Takes every capability not in `set` out of reach of any program run later.
pub fn bound(set: Set) -> io::Result<()> {
    for bit in 0..64u64 {
        let known = crate::sys::prctl(libc::PR_CAPBSET_READ, bit as libc::c_ulong);
        match known {
            Ok(1) if set.0 >> bit & 1 == 0 => {
                crate::sys::prctl(libc::PR_CAPBSET_DROP, bit as libc::c_ulong)?;
            }
            Ok(_) => {}
            // Above the last capability this kernel has.
            Err(_) => break,
        }
    }
    Ok(())
}

/// Sets the effective and permitted sets, with nothing inheritable or ambient.
pub fn apply(set: Set) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let half = |bits: u64| Data { effective: bits as u32, permitted: bits as u32, inheritable: 0 };
    let data = [half(set.0), half(set.0 >> 32)];
    // SAFETY: both structs have the layout of version 3.
    let result = unsafe { libc::syscall(libc::SYS_capset, &mut header, data.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bits() {
        let names = ["CAP_CHOWN".to_owned(), "CAP_NET_BIND_SERVICE".to_owned(), "CAP_SETFCAP".to_owned()];
        let set = Set::from_names(&names).unwrap();
        assert_eq!(set, Set(1 | 1 << 10 | 1 << 31));
        assert_eq!(set.names().into_iter().collect::<Vec<_>>(), names);
        assert!(Set::from_names(&["CAP_FLY".into()]).is_err());
    }
}
