//! What this machine is and has, read once at start, and what it runs short of, read again and again.

use k8s_openapi::api::core::v1::NodeSystemInfo;
use skeg_api::quantity::Quantity;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[derive(Clone, Debug)]
pub struct Host {
    pub hostname: String,
    pub memory_bytes: i64,
    pub capacity: BTreeMap<String, Quantity>,
    pub allocatable: BTreeMap<String, Quantity>,
    pub info: NodeSystemInfo,
}

impl Host {
    pub fn read(data_dir: &Path, max_pods: u32, version: &str) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as i64);
        let memory_bytes = memory_bytes();
        let storage = nix::sys::statvfs::statvfs(data_dir)
            .map(|s| (s.blocks() as i64).saturating_mul(s.fragment_size() as i64))
            .unwrap_or(0);
        let capacity = BTreeMap::from([
            ("cpu".to_owned(), Quantity::from_units(cpus)),
            ("memory".to_owned(), Quantity::from_bytes(memory_bytes)),
            ("ephemeral-storage".to_owned(), Quantity::from_bytes(storage)),
            ("pods".to_owned(), Quantity::from_units(i64::from(max_pods))),
        ]);
        let mut allocatable = capacity.clone();
        // Upstream keeps a tenth of the disk and 100Mi of memory back for the node itself.
        allocatable.insert("ephemeral-storage".into(), Quantity::from_units(storage / 10 * 9));
        allocatable.insert("memory".into(), Quantity::from_bytes((memory_bytes - (100 << 20)).max(0)));
        let uname = nix::sys::utsname::uname().ok();
        let utsname = |part: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
            uname.as_ref().map(|u| part(u).to_string_lossy().into_owned()).unwrap_or_default()
        };
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let info = NodeSystemInfo {
            architecture: skeg_images::Platform::host().architecture,
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            container_runtime_version: format!("skeg://{}", env!("CARGO_PKG_VERSION")),
            kernel_version: utsname(|u| u.release()),
            // Deprecated by upstream and left empty since 1.33.
            kube_proxy_version: String::new(),
            kubelet_version: version.to_owned(),
            machine_id: line("/etc/machine-id"),
            operating_system: "linux".to_owned(),
            os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            swap: None,
            system_uuid: line("/sys/class/dmi/id/product_uuid"),
        };
        Host { hostname: utsname(|u| u.nodename()), memory_bytes, capacity, allocatable, info }
    }
}

fn memory_bytes() -> i64 {
    meminfo(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:").unwrap_or(0)
}

/// Bytes of one line of `/proc/meminfo`.
fn meminfo(file: &str, key: &str) -> Option<i64> {
    let line = file.lines().find_map(|l| l.strip_prefix(key))?;
    line.trim().trim_end_matches("kB").trim().parse::<i64>().ok().map(|kib| kib * 1024)
}

/// Less available memory is memory pressure, as upstream's `evictionHard` says by default.
const MEMORY_BYTES_MIN: i64 = 100 << 20;
/// Less free space or fewer free inodes, in percent, are disk pressure. Upstream's default of ten
/// (and five for inodes) is for servers; small clusters run on the disks of people's desks.
const DISK_PERCENT_MIN: u64 = 5;

/// What the machine is short of. Processes are not counted: upstream has no threshold for them
/// unless one is configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shortage {
    pub memory: bool,
    pub disk: bool,
}

impl Shortage {
    pub fn read(data_dir: &Path) -> Self {
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let disk = nix::sys::statvfs::statvfs(data_dir).ok();
        let shares = disk.map(|s| [(s.blocks_available(), s.blocks()), (s.files_available(), s.files())]);
        Shortage::of(&memory, &shares.unwrap_or_default())
    }

    /// `shares` are what is free of what there is; where nothing is counted there is none.
    fn of(memory: &str, shares: &[(u64, u64)]) -> Self {
        Shortage {
            memory: meminfo(memory, "MemAvailable:").is_some_and(|bytes| bytes < MEMORY_BYTES_MIN),
            disk: shares
                .iter()
                .any(|(free, all)| free.saturating_mul(100) < all.saturating_mul(DISK_PERCENT_MIN)),
        }
    }
}

fn os_image(os_release: &str) -> String {
    let line = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    line.map_or_else(|| "Linux".to_owned(), |l| l.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortages_are_seen() {
        let memory = |kib: u32| format!("MemTotal: 9999999 kB\nMemAvailable:   {kib} kB\n");
        for (kib, shares, short) in [
            (200_000, [(50, 100), (50, 100)], (false, false)),
            (102_399, [(5, 100), (0, 0)], (true, false)),
            (102_400, [(4, 100), (50, 100)], (false, true)),
            (102_400, [(50, 100), (4, 100)], (false, true)),
        ] {
            let found = Shortage::of(&memory(kib), &shares);
            assert_eq!((found.memory, found.disk), short, "{kib} {shares:?}");
        }
    }
}
