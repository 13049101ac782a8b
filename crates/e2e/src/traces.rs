//! What a cluster leaves on its host: everything that can leak, thing by thing, so that a state
//! can be compared with an earlier one.

use crate::cluster::{Cluster, eventually};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Things by their kind.
pub struct Traces(BTreeMap<&'static str, BTreeSet<String>>);

/// Of a data directory, what changes while nothing happens: the store is looked at by itself, the
/// log has a bound of its own, and the last address given out is a number of any length.
const MOVING_FILES: [&str; 5] =
    ["store.db", "skeg.log", "skeg.pid", "network/addresses/last", "settings.json"];

impl Traces {
    /// What anybody could have left: namespaces, mounts, links, tables, and what carries the
    /// name of this suite's or of any instance.
    pub fn of_host() -> Result<Traces> {
        let mut traces = Traces(BTreeMap::new());
        traces.put("network namespaces", network_namespaces()?);
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        // Root, mount point and type; ids are given again.
        traces.put(
            "mounts",
            mounts.lines().map(|line| {
                let columns: Vec<&str> = line.split(' ').collect();
                let kind = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').next());
                format!("{} {} {}", columns[3], columns[4], kind.unwrap_or_default())
            }),
        );
        traces.put("links", names("/sys/class/net"));
        traces.put("run directories", names("/run").into_iter().filter(|name| name.starts_with("skeg")));
        let mut cgroups = BTreeSet::new();
        walk(Path::new("/sys/fs/cgroup"), &mut |path, metadata| {
            let text = path.to_string_lossy();
            if metadata.is_dir() && text.contains("/skeg-") {
                cgroups.insert(text.into_owned());
            }
        });
        traces.put("cgroups", cgroups);
        traces.put("processes", processes()?);
        let rules = Command::new("nft").args(["list", "ruleset"]).output().context("nft")?;
        traces.put(
            "nftables",
            String::from_utf8_lossy(&rules.stdout).lines().map(|line| line.trim().to_owned()),
        );
        Ok(traces)
    }

    /// And what one cluster holds: its files with their sizes, its addresses, its API objects.
    pub fn of_cluster(cluster: &Cluster) -> Result<Traces> {
        let mut traces = Traces::of_host()?;
        traces.put("addresses", names(cluster.data_dir.join("network/addresses")));
        let mut files = BTreeSet::new();
        // The running server's own scratch directory carries its process id.
        let scratch = format!("images/tmp/{}-", cluster.server_pid()?);
        walk(&cluster.data_dir, &mut |path, metadata| {
            let name = path.strip_prefix(&cluster.data_dir).unwrap_or(path).to_string_lossy().into_owned();
            if !MOVING_FILES.iter().any(|moving| name.starts_with(moving)) && !name.starts_with(&scratch) {
                files.insert(format!("{name} {}", if metadata.is_dir() { 0 } else { metadata.len() }));
            }
        });
        traces.put("files", files);
        let kinds = cluster.kubectl(&["api-resources", "--verbs=list", "-o", "name"])?;
        let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
        let columns = "custom-columns=:.kind,:.metadata.namespace,:.metadata.name";
        let objects =
            cluster.kubectl(&["get", &kinds.join(","), "--all-namespaces", "--no-headers", "-o", columns])?;
        traces.put("objects", objects.lines().map(str::to_owned));
        Ok(traces)
    }

    fn put(&mut self, kind: &'static str, things: impl IntoIterator<Item = String>) {
        self.0.entry(kind).or_default().extend(things);
    }

    /// What is there now and was not before. Something that went is no leak.
    fn new_in(&self, after: &Traces) -> Vec<String> {
        let new = |(kind, things): (&&'static str, &BTreeSet<String>)| -> Vec<String> {
            let old = self.0.get(kind);
            let new = things.iter().filter(|thing| !old.is_some_and(|old| old.contains(*thing)));
            new.map(|thing| format!("{kind}: {thing}")).collect()
        };
        after.0.iter().flat_map(new).collect()
    }

    /// Waits until nothing is there that was not before: a server clears up after its start.
    pub fn wait_until_as_before(&self, look: impl Fn() -> Result<Traces>) -> Result<()> {
        let mut left = Vec::new();
        let settled = eventually("as before", || {
            left = self.new_in(&look()?);
            Ok(left.is_empty().then_some(()))
        });
        if settled.is_err() && !left.is_empty() {
            bail!("{} things are left behind:\n{}", left.len(), left[..left.len().min(60)].join("\n"));
        }
        settled
    }
}

impl std::fmt::Display for Traces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts: Vec<String> =
            self.0.iter().map(|(kind, things)| format!("{} {kind}", things.len())).collect();
        f.write_str(&counts.join(", "))
    }
}

fn names(directory: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn walk(directory: &Path, see: &mut dyn FnMut(&Path, &fs::Metadata)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        see(&entry.path(), &metadata);
        if metadata.is_dir() {
            walk(&entry.path(), see);
        }
    }
}

fn process_ids() -> impl Iterator<Item = String> {
    names("/proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Namespaces that a process is in, a descriptor holds or a mount pins.
fn network_namespaces() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for pid in process_ids() {
        let links = names(format!("/proc/{pid}/fd")).into_iter().map(|fd| format!("/proc/{pid}/fd/{fd}"));
        for link in links.chain([format!("/proc/{pid}/ns/net")]) {
            let target = fs::read_link(link).unwrap_or_default().to_string_lossy().into_owned();
            found.extend(target.starts_with("net:[").then_some(target));
        }
    }
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        found.extend(line.split(' ').find(|column| column.starts_with("net:[")).map(str::to_owned));
    }
    Ok(found)
}

/// A process in an instance's cgroup.
pub struct Process {
    pub pid: i32,
    /// Since boot, in the kernel's ticks: with the pid it names a process for good.
    pub started: String,
    /// Below the instance's own: `pod<uid>/<container>`.
    pub group: String,
}

/// Every process of one instance's Pods.
pub fn in_cgroups(instance: &str) -> Result<Vec<Process>> {
    let root = format!("/skeg-{instance}/");
    let mut found = Vec::new();
    for pid in process_ids() {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let cgroup = read("cgroup");
        let Some((_, group)) = cgroup.lines().find_map(|line| line.split_once(&root)) else { continue };
        // The command's name, in brackets, may hold spaces.
        let stat = read("stat");
        let started = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(19)).unwrap_or_default();
        // A zombie, or one that ended since, is none.
        if !started.is_empty() && !stat.contains(") Z ") {
            found.push(Process { pid: pid.parse()?, started: started.to_owned(), group: group.to_owned() });
        }
    }
    found.sort_by_key(|process| process.pid);
    Ok(found)
}

/// Containers, in an instance's cgroup; supervisors and helpers, which are the binary's. The server
/// is told from them by its command.
fn processes() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for pid in process_ids() {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let ours = exe.file_name().is_some_and(|name| name == "skeg" || name == "skeg (deleted)");
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        if String::from_utf8_lossy(&read("cgroup")).contains("/skeg-") || (ours && !line.contains(" up ")) {
            found.insert(format!("{pid} {line}"));
        }
    }
    Ok(found)
}
