//! What must hold before a cluster starts on this host, each with its remedy.

use crate::refuse;
use crate::settings::Settings;
use anyhow::Result;
use ipnet::Ipv4Net;
use std::path::Path;

pub fn check(settings: &Settings, instance_id: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        refuse!("a cluster makes namespaces, mounts and cgroups: run this as root");
    }
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

/// The Pod range must not hold an address that this host already has on a link that is not ours.
fn ranges(settings: &Settings, instance_id: &str) -> Result<()> {
    let ours = skeg_network::bridge_name(instance_id);
    for link in nix::ifaddrs::getifaddrs()? {
        let address =
            link.address.as_ref().and_then(|address| address.as_sockaddr_in()).map(|address| address.ip());
        let Some(address) = address else { continue };
        for (flag, range) in [("--pod-cidr", settings.pod_cidr), ("--service-cidr", settings.service_cidr)] {
            let taken = Ipv4Net::from(address);
            if range.contains(&taken) && link.interface_name != ours {
                refuse!(
                    "{flag} {range} overlaps with {address} of {}: choose another range",
                    link.interface_name
                );
            }
        }
    }
    Ok(())
}
