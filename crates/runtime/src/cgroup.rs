//! Control groups: one tree of ours in every hierarchy the host has, pure v2 or v1 (with or
//! without a v2 hierarchy at its side, which then gives exact kills and empty notices).
//! Knows groups by their path below the hierarchies' roots, nothing of what runs in them.

use crate::Usage;
use crate::devices::{self, Rule};
use crate::sys;
use crate::types::Resources;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The v1 controllers Skeg uses where they are mounted.
const V1_CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "devices", "freezer"];
/// The v2 controllers handed down to the groups of containers.
const V2_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The hierarchies of this host.
#[derive(Clone, Debug, PartialEq)]
pub struct Cgroups {
    /// The v2 hierarchy: the only one, or one without our controllers beside v1.
    unified: Option<PathBuf>,
    /// v1 mounts and which controllers each has. Empty on a pure v2 host.
    v1: Vec<V1Mount>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct V1Mount {
    pub path: PathBuf,
    /// Spelled as mount options: `cpu`, `memory`, `name=systemd`.
    pub controllers: Vec<String>,
}

fn context<T>(what: &str, path: &Path, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|e| io::Error::new(e.kind(), format!("{what} {}: {e}", path.display())))
}

fn write_file(path: &Path, value: &str) -> io::Result<()> {
    let written = OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(value.as_bytes()));
    context(&format!("write {value:?} to"), path, written)
}

fn read_file(path: &Path) -> io::Result<String> {
    context("read", path, fs::read_to_string(path))
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => context("create", path, Err(e)),
        _ => Ok(()),
    }
}

/// The value of `key` in a file of `key value` lines.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `cpu.shares` of v1 as `cpu.weight` of v2: the curve that keeps a request of one core
/// (1024 shares) at the default weight of 100.
pub fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

/// A hierarchy's mount in a mountinfo line: path, type, super options.
fn parse_mountinfo(text: &str) -> Cgroups {
    let mut found = Cgroups { unified: None, v1: Vec::new() };
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(path) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        match right.next() {
            Some("cgroup2") if found.unified.is_none() => found.unified = Some(PathBuf::from(path)),
            Some("cgroup") => {
                let controllers: Vec<String> = right
                    .nth(1)
                    .unwrap_or_default()
                    .split(',')
                    .filter(|o| V1_CONTROLLERS.contains(o) || *o == "name=systemd")
                    .map(str::to_owned)
                    .collect();
                if !controllers.is_empty() && !found.v1.iter().any(|m| m.controllers == controllers) {
                    found.v1.push(V1Mount { path: PathBuf::from(path), controllers });
                }
            }
            _ => {}
        }
    }
    // A systemd tree alone does not make a host a v1 host.
    if found.v1.iter().all(|m| m.controllers == ["name=systemd"]) {
        found.v1.clear();
    }
    found
}

impl Cgroups {
    /// Finds the hierarchies. Fails with a clear text where there are none.
    pub fn detect() -> io::Result<Cgroups> {
        let found = parse_mountinfo(&read_file(Path::new("/proc/self/mountinfo"))?);
        if found.unified.is_none() && found.v1.is_empty() {
            return Err(io::Error::other("no cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup"));
        }
        Ok(found)
    }

    /// True where v2 has the controllers.
    pub fn pure_v2(&self) -> bool {
        self.v1.is_empty()
    }

    /// The v1 mounts, for showing them in a container.
    pub fn v1_mounts(&self) -> &[V1Mount] {
        &self.v1
    }

    pub fn unified(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    fn v1_dir(&self, controller: &str, group: &str) -> Option<PathBuf> {
        let mount = self.v1.iter().find(|m| m.controllers.iter().any(|c| c == controller))?;
        Some(mount.path.join(group))
    }

    fn unified_dir(&self, group: &str) -> Option<PathBuf> {
        self.unified.as_ref().map(|root| root.join(group))
    }

    /// The group's directory in every hierarchy.
    fn dirs(&self, group: &str) -> impl Iterator<Item = PathBuf> {
        let v1 = self.v1.iter().map(|m| m.path.clone());
        let group = group.to_owned();
        v1.chain(self.unified.clone()).map(move |root| root.join(&group))
    }

    /// Makes the group and those above it; on v2 hands the controllers down to it.
    pub fn create(&self, group: &str) -> io::Result<()> {
        for (mount, is_v2) in
            self.v1.iter().map(|m| (&m.path, false)).chain(self.unified.iter().map(|path| (path, true)))
        {
            let mut dir = mount.clone();
            for part in group.split('/') {
                if is_v2 && self.pure_v2() {
                    hand_down(&dir)?;
                }
                dir.push(part);
                make_dir(&dir)?;
            }
        }
        Ok(())
    }

    /// The v2 group as a descriptor to fork into.
    pub fn open(&self, group: &str) -> io::Result<Option<OwnedFd>> {
        let Some(dir) = self.unified_dir(group) else { return Ok(None) };
        context("open", &dir, File::open(&dir)).map(|file| Some(file.into()))
    }

    /// Moves the calling single-threaded process into the v1 groups. Through `tasks`, because a
    /// thread that moves itself needs no lock that stops every fork on the host.
    pub fn join_v1(&self, group: &str) -> io::Result<()> {
        self.v1.iter().try_for_each(|m| write_file(&m.path.join(group).join("tasks"), "0"))
    }

    /// Applies limits. A second call changes them in place.
    pub fn set(&self, group: &str, r: &Resources) -> io::Result<()> {
        if self.pure_v2() {
            let dir = self.unified_dir(group).unwrap_or_default();
            let put = |file: &str, value: String| write_file(&dir.join(file), &value);
            if let Some(shares) = r.cpu_shares.filter(|s| *s > 0) {
                put("cpu.weight", weight_of_shares(shares).to_string())?;
            }
            if let Some(quota) = r.cpu_quota_us {
                let period = r.cpu_period_us.unwrap_or(100_000);
                let quota = if quota > 0 { quota.to_string() } else { "max".to_owned() };
                put("cpu.max", format!("{quota} {period}"))?;
            }
            if let Some(limit) = r.memory_limit_bytes {
                let max = if limit > 0 { limit.to_string() } else { "max".to_owned() };
                put("memory.max", max)?;
                // No swap for what is limited.
                optional(put("memory.swap.max", if limit > 0 { "0".into() } else { "max".into() }))?;
            }
            if let Some(pids) = r.pids_limit {
                put("pids.max", if pids > 0 { pids.to_string() } else { "max".to_owned() })?;
            }
            return Ok(());
        }
        let put = |controller: &str, file: &str, value: String| match self.v1_dir(controller, group) {
            Some(dir) => write_file(&dir.join(file), &value),
            None => Err(io::Error::other(format!(
                "the cgroup controller {controller} is not mounted: no limits on it"
            ))),
        };
        if let Some(shares) = r.cpu_shares.filter(|s| *s > 0) {
            put("cpu", "cpu.shares", shares.to_string())?;
        }
        if let Some(quota) = r.cpu_quota_us {
            put("cpu", "cpu.cfs_period_us", r.cpu_period_us.unwrap_or(100_000).to_string())?;
            put("cpu", "cpu.cfs_quota_us", if quota > 0 { quota } else { -1 }.to_string())?;
        }
        if let Some(limit) = r.memory_limit_bytes {
            let value = if limit > 0 { limit } else { -1 }.to_string();
            // The limit with swap may never be below the one without: which goes first depends on
            // the direction of the change.
            if put("memory", "memory.limit_in_bytes", value.clone()).is_err() {
                optional(put("memory", "memory.memsw.limit_in_bytes", value.clone()))?;
                put("memory", "memory.limit_in_bytes", value)?;
            } else {
                optional(put("memory", "memory.memsw.limit_in_bytes", value))?;
            }
        }
        if let Some(pids) = r.pids_limit {
            put("pids", "pids.max", if pids > 0 { pids.to_string() } else { "max".to_owned() })?;
        }
        Ok(())
    }

    /// Makes an out-of-memory kill take all of the group, as upstream has it for containers where the
    /// kernel can (`singleProcessOOMKill: false`). Never for a Pod's own group: its supervisor is in it.
    pub fn kill_as_one(&self, group: &str) -> io::Result<()> {
        match self.unified_dir(group).filter(|_| self.pure_v2()) {
            Some(dir) => optional(write_file(&dir.join("memory.oom.group"), "1")),
            None => Ok(()),
        }
    }

    /// Limits the group to the devices of `rules`; None allows all.
    pub fn set_devices(&self, group: &str, rules: Option<&[Rule]>) -> io::Result<()> {
        let Some(rules) = rules else { return Ok(()) };
        if let Some(dir) = self.v1_dir("devices", group) {
            write_file(&dir.join("devices.deny"), "a")?;
            let allow = dir.join("devices.allow");
            return rules.iter().try_for_each(|rule| write_file(&allow, &rule.to_string()));
        }
        match self.unified_dir(group) {
            Some(dir) => devices::attach(&File::open(&dir)?, rules),
            None => Err(io::Error::other("the cgroup controller devices is not mounted")),
        }
    }

    /// How many processes the kernel killed in this group for want of memory.
    pub fn oom_kills(&self, group: &str) -> u64 {
        let (dir, file) = if self.pure_v2() {
            (self.unified_dir(group), "memory.events")
        } else {
            (self.v1_dir("memory", group), "memory.oom_control")
        };
        dir.and_then(|dir| fs::read_to_string(dir.join(file)).ok())
            .and_then(|text| keyed(&text, "oom_kill"))
            .unwrap_or(0)
    }

    pub fn usage(&self, group: &str) -> io::Result<Usage> {
        let number = |dir: &Option<PathBuf>, file: &str| -> Option<u64> {
            fs::read_to_string(dir.as_ref()?.join(file)).ok()?.trim().parse().ok()
        };
        let stat = |dir: &Option<PathBuf>, file: &str, key: &str| -> Option<u64> {
            keyed(&fs::read_to_string(dir.as_ref()?.join(file)).ok()?, key)
        };
        let (cpu_ns, memory, inactive, pids) = if self.pure_v2() {
            let dir = self.unified_dir(group);
            (
                stat(&dir, "cpu.stat", "usage_usec").map(|us| us * 1000),
                number(&dir, "memory.current"),
                stat(&dir, "memory.stat", "inactive_file"),
                number(&dir, "pids.current"),
            )
        } else {
            let memory = self.v1_dir("memory", group);
            (
                number(&self.v1_dir("cpuacct", group), "cpuacct.usage"),
                number(&memory, "memory.usage_in_bytes"),
                stat(&memory, "memory.stat", "total_inactive_file"),
                number(&self.v1_dir("pids", group), "pids.current"),
            )
        };
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("no usage of cgroup {group}"));
        let memory_bytes = memory.ok_or_else(gone)?;
        Ok(Usage {
            cpu_ns: cpu_ns.ok_or_else(gone)?,
            memory_bytes,
            memory_working_set_bytes: memory_bytes.saturating_sub(inactive.unwrap_or(0)),
            pids: pids.unwrap_or(0),
        })
    }

    /// Kills everything in the group and below. Nothing escapes by forking.
    pub fn kill(&self, group: &str) -> io::Result<()> {
        if let Some(dir) = self.unified_dir(group) {
            match write_file(&dir.join("cgroup.kill"), "1") {
                Err(e) if e.kind() == io::ErrorKind::NotFound && !dir.exists() => return Ok(()),
                // Kernels before 5.14 lack the file.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
        }
        self.kill_frozen(group)
    }

    /// Kills with the forking stopped: freeze, signal all, thaw.
    fn kill_frozen(&self, group: &str) -> io::Result<()> {
        let freezer = self.v1_dir("freezer", group).map(|dir| dir.join("freezer.state"));
        let Some(dir) = self.v1_dir("pids", group).or_else(|| self.dirs(group).next()) else { return Ok(()) };
        if let Some(state) = &freezer {
            optional(write_file(state, "FROZEN"))?;
        }
        let mut pids = Vec::new();
        let collected = collect_pids(&dir, &mut pids);
        for pid in pids {
            // SAFETY: no memory is involved. The processes are frozen, so no number is reused.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        if let Some(state) = &freezer {
            optional(write_file(state, "THAWED"))?;
        }
        optional(collected)
    }

    /// Waits until the group has no process, at most `timeout_ms`: true when it has none.
    pub fn wait_empty(&self, group: &str, timeout_ms: i32) -> io::Result<bool> {
        if let Some(dir) = self.unified_dir(group) {
            let mut events = match File::open(dir.join("cgroup.events")) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
                Err(e) => return Err(e),
            };
            let mut text = String::new();
            loop {
                text.clear();
                events.rewind()?;
                // Reading arms the notice that the poll below waits for.
                events.read_to_string(&mut text)?;
                if keyed(&text, "populated") == Some(0) {
                    return Ok(true);
                }
                if !sys::poll(&events, libc::POLLPRI, timeout_ms)? {
                    return Ok(false);
                }
            }
        }
        // Without a v2 hierarchy the processes themselves are what can be waited for.
        let Some(dir) = self.dirs(group).next() else { return Ok(true) };
        loop {
            let mut pids = Vec::new();
            if collect_pids(&dir, &mut pids).is_err() || pids.is_empty() {
                return Ok(true);
            }
            for pid in pids {
                if let Ok(pidfd) = sys::pidfd_open(pid)
                    && !sys::poll(&pidfd, libc::POLLIN, timeout_ms)?
                {
                    return Ok(false);
                }
            }
        }
    }

    /// Kills what runs in the group, then removes it and everything below, everywhere.
    pub fn destroy(&self, group: &str) -> io::Result<()> {
        const EMPTY_TIMEOUT_MS: i32 = 10_000;
        const TRIES: u32 = 100;
        for attempt in 0..TRIES {
            if attempt > 0 {
                self.kill(group)?;
                if !self.wait_empty(group, EMPTY_TIMEOUT_MS)? {
                    break;
                }
            }
            let mut busy = false;
            for dir in self.dirs(group) {
                match remove_tree(&dir) {
                    Ok(()) => {}
                    Err(e) if e.raw_os_error() == Some(libc::EBUSY) => busy = true,
                    Err(e) => return context("remove", &dir, Err(e)),
                }
            }
            if !busy {
                return Ok(());
            }
            // v1 tells nothing when the last zombie has left a group: give way to it, briefly.
            // SAFETY: no memory is involved.
            unsafe { libc::usleep(500) };
        }
        Err(io::Error::other(format!("cgroup {group}: its processes do not end")))
    }

    /// The names of the groups directly below.
    pub fn children(&self, group: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .dirs(group)
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// A file that not every kernel has may be missing or refuse.
fn optional(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(()),
        other => other,
    }
}

/// Lets the children of `dir` have the controllers Skeg limits.
fn hand_down(dir: &Path) -> io::Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let enabled = read_file(&file)?;
    let missing: Vec<String> = V2_CONTROLLERS
        .iter()
        .filter(|c| !enabled.split_whitespace().any(|e| e == **c))
        .map(|c| format!("+{c}"))
        .collect();
    if missing.is_empty() { Ok(()) } else { write_file(&file, &missing.join(" ")) }
}

fn collect_pids(dir: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    pids.extend(fs::read_to_string(dir.join("cgroup.procs"))?.lines().filter_map(|l| l.parse::<i32>().ok()));
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            optional(collect_pids(&entry.path(), pids))?;
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_hierarchies() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            36 31 0:33 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let found = parse_mountinfo(hybrid);
        assert!(!found.pure_v2());
        assert_eq!(found.v1_dir("cpuacct", "a"), Some("/sys/fs/cgroup/cpu,cpuacct/a".into()));
        assert_eq!(found.v1_dir("memory", "a/b"), Some("/sys/fs/cgroup/memory/a/b".into()));
        assert_eq!(found.v1_dir("blkio", "a"), None);
        assert_eq!(found.unified_dir("x"), Some("/sys/fs/cgroup/unified/x".into()));

        let pure = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert!(parse_mountinfo(pure).pure_v2());
    }

    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [(2, 1), (1024, 100), (262_144, 10_000), (102, 17), (1_000_000, 10_000)] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }
}
