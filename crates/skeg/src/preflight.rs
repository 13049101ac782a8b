//! What must hold before a cluster starts on this host, each with its remedy.

use crate::refuse;
use crate::settings::Settings;
use anyhow::Result;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::path::Path;

pub fn check(settings: &Settings, instance_id: &str) -> Result<()> {
    kernel(&std::fs::read_to_string("/proc/filesystems").unwrap_or_default())?;
    if !on_path("nft") {
        refuse!("the program `nft` is missing: apt-get install nftables");
    }
    ranges(settings, instance_id)
}

fn kernel(filesystems: &str) -> Result<()> {
    let has = |name: &str| filesystems.lines().any(|line| line.split_whitespace().last() == Some(name));
    // A module that is not loaded yet does not show: loading it is cheap and tells.
    if !has("overlay") && !modprobe("overlay") {
        refuse!("the kernel has no overlayfs: use one with CONFIG_OVERLAY_FS");
    }
    for namespace in ["net", "ipc", "uts", "mnt", "pid", "cgroup"] {
        if !Path::new("/proc/self/ns").join(namespace).exists() {
            refuse!(
                "the kernel has no {namespace} namespaces: use one with CONFIG_NAMESPACES and all its options"
            );
        }
    }
    if !Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        refuse!("the kernel has no seccomp filters: use one with CONFIG_SECCOMP_FILTER");
    }
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
        && !Path::new("/sys/fs/cgroup/memory").exists()
    {
        refuse!("no cgroup hierarchy is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup");
    }
    Ok(())
}

fn modprobe(module: &str) -> bool {
    std::process::Command::new("modprobe").arg(module).status().is_ok_and(|status| status.success())
}

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// The ranges must not hold an address or a network that this host already reaches over a link
/// that is not ours, nor lie inside a range of another instance.
fn ranges(settings: &Settings, instance_id: &str) -> Result<()> {
    let ours = skeg_network::bridge_name(instance_id);
    let mut taken = routes(&std::fs::read_to_string("/proc/net/route").unwrap_or_default());
    for link in nix::ifaddrs::getifaddrs()? {
        let address = link.address.as_ref().and_then(|address| address.as_sockaddr_in());
        taken.extend(address.map(|address| (link.interface_name, Ipv4Net::from(address.ip()))));
    }
    for (link, net) in taken.iter().filter(|(link, _)| *link != ours) {
        for (flag, range) in [("--pod-cidr", settings.pod_cidr), ("--service-cidr", settings.service_cidr)] {
            // A host's wider network may hold the range: the narrower route wins.
            if range.contains(net) || (link.starts_with("skeg") && net.contains(&range)) {
                refuse!("{flag} {range} overlaps with {net} of {link}: choose another range");
            }
        }
    }
    Ok(())
}

/// The networks of the kernel's main table and their links, without default routes.
fn routes(table: &str) -> Vec<(String, Ipv4Net)> {
    let route = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let address = |column: usize| {
            let number = u32::from_str_radix(columns.get(column)?, 16).ok()?;
            Some(Ipv4Addr::from(u32::from_be(number)))
        };
        let net = Ipv4Net::with_netmask(address(1)?, address(7)?).ok()?;
        (net.prefix_len() > 0).then(|| (columns[0].to_owned(), net))
    };
    table.lines().skip(1).filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_as_the_kernel_writes_them() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n\
            eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            skeg1\t00002B0A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        assert_eq!(routes(table), [("skeg1".to_owned(), "10.43.0.0/16".parse().unwrap())]);
    }
}
