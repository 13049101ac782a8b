//! What a cluster leaves on its host: everything that can leak, thing by thing, so that a state
//! can be compared with an earlier one.

use crate::cluster::{Cluster, eventually};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Things by their kind.
pub struct Traces(BTreeMap<&'static str, BTreeSet<String>>);

/// Of a data directory, what changes while nothing happens: the store is looked at by itself, the
/// log has a bound of its own, and the last address given out is a number of any length.
const MOVING_FILES: [&str; 5] =
    ["store.db", "skeg.log", "skeg.pid", "network/addresses/last", "settings.json"];

/// Whose traces: an instance's data directory, and the id that its names carry.
pub struct Instance {
    data_dir: PathBuf,
    pub id: String,
}

impl Instance {
    /// The id is a hash of the directory's path, whether anything ever ran there or not.
    pub fn at(data_dir: &Path) -> Result<Self> {
        let parent = data_dir.parent().context("a directory that is not the root")?.canonicalize()?;
        let data_dir = parent.join(data_dir.file_name().context("a name")?);
        let hash = skeg_base::hash_of(&data_dir.as_os_str().as_encoded_bytes());
        Ok(Instance { data_dir, id: format!("{:08x}", (hash ^ (hash >> 32)) & 0xffff_ffff) })
    }

    fn owns(&self, text: &str) -> bool {
        text.contains(&format!("skeg-{}", self.id)) || text.contains(&*self.data_dir.to_string_lossy())
    }

    /// The bridge; the host's end of a Pod's link is in it, or in none and then nobody's.
    fn owns_link(&self, name: &str) -> bool {
        let bridge = format!("skeg{:08x}", skeg_base::hash_of(&self.id.as_str()) as u32);
        let master = fs::read_link(format!("/sys/class/net/{name}/master"));
        let master = master.ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        name == bridge || name.starts_with("skegv") && master.is_none_or(|master| master == bridge)
    }
}

impl Traces {
    /// What belongs to no instance, and could be changed by one: mounts of the system's own trees,
    /// links, rules, settings of the network. Forwarding is not among them, as another instance may
    /// need it by then; the kernel sets how redirects are taken along with it.
    pub fn of_host() -> Result<Traces> {
        let mut traces = Traces(BTreeMap::new());
        let system =
            |line: &String| ["/sys", "/proc", "/dev"].iter().any(|tree| line.contains(&format!(" {tree}")));
        traces.put("mounts", mounts()?.into_iter().filter(system));
        traces.put("links", names("/sys/class/net").into_iter().filter(|name| !name.starts_with("skeg")));
        traces.put("rules", rules(|table| !table.starts_with("skeg-"))?);
        traces.put("network namespaces", network_namespaces("self"));
        for folder in ["net/ipv4/conf/all", "net/ipv4/conf/default", "net/ipv4/conf/lo", "net/bridge"] {
            let settings = names(format!("/proc/sys/{folder}")).into_iter();
            let settings = settings.filter(|name| name != "forwarding" && name != "accept_redirects");
            let read = |name: String| {
                let value = fs::read_to_string(format!("/proc/sys/{folder}/{name}")).unwrap_or_default();
                format!("{folder}/{name}={}", value.trim())
            };
            traces.put("settings", settings.map(read));
        }
        Ok(traces)
    }

    /// And what carries one instance's name: of others that run meanwhile nothing is seen.
    pub fn of_instance(instance: &Instance) -> Result<Traces> {
        let mut traces = Traces::of_host()?;
        traces.put("mounts", mounts()?.into_iter().filter(|line| instance.owns(line)));
        traces.put("links", names("/sys/class/net").into_iter().filter(|name| instance.owns_link(name)));
        traces.put("run directories", names("/run").into_iter().filter(|name| instance.owns(name)));
        let mut cgroups = BTreeSet::new();
        walk(Path::new("/sys/fs/cgroup"), &mut |path, metadata| {
            let text = path.to_string_lossy();
            if metadata.is_dir() && instance.owns(&text) {
                cgroups.insert(text.into_owned());
            }
        });
        traces.put("cgroups", cgroups);
        for (pid, line) in processes(instance) {
            traces.put("network namespaces", network_namespaces(&pid));
            // The server is told from containers, supervisors and helpers by its command.
            traces.put("processes", (!line.contains(" up ")).then(|| format!("{pid} {line}")));
        }
        let table = format!("skeg-{}", instance.id);
        traces.put("rules", rules(|name| name == table)?);
        Ok(traces)
    }

    /// And what one cluster holds: its files with their sizes, its addresses, its API objects.
    pub fn of_cluster(cluster: &Cluster) -> Result<Traces> {
        let mut traces = Traces::of_instance(&Instance::at(&cluster.data_dir)?)?;
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

    /// How many things of a kind there are.
    pub fn count(&self, kind: &str) -> usize {
        self.0.get(kind).map_or(0, BTreeSet::len)
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

/// Root, mount point and type of each mount; ids are given again.
fn mounts() -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = |line: &str| {
        let columns: Vec<&str> = line.split(' ').collect();
        let kind = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').next());
        format!("{} {} {}", columns[3], columns[4], kind.unwrap_or_default())
    };
    Ok(mounts.lines().map(line).collect())
}

/// The lines of the nftables tables whose name is chosen.
fn rules(chosen: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let rules = Command::new("nft").args(["list", "ruleset"]).output().context("nft")?;
    let mut lines = Vec::new();
    let mut table = String::new();
    for line in String::from_utf8_lossy(&rules.stdout).lines() {
        // `table FAMILY NAME {`
        if let Some(head) = line.strip_prefix("table ") {
            table = head.split(' ').nth(1).unwrap_or_default().to_owned();
        }
        if chosen(&table) {
            lines.push(format!("{table}: {}", line.trim()));
        }
    }
    Ok(lines)
}

/// Network namespaces that a process is in or holds a descriptor of.
fn network_namespaces(pid: &str) -> BTreeSet<String> {
    let links = names(format!("/proc/{pid}/fd")).into_iter().map(|fd| format!("/proc/{pid}/fd/{fd}"));
    let targets =
        links.chain([format!("/proc/{pid}/ns/net")]).map(|link| fs::read_link(link).unwrap_or_default());
    targets.map(|target| target.display().to_string()).filter(|target| target.starts_with("net:[")).collect()
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

/// Every process of an instance with its command: in one of its cgroups, or started for its data
/// directory. Their helpers, and kubectl of this suite, are none of them.
fn processes(instance: &Instance) -> Vec<(String, String)> {
    let of_instance = |pid: String| {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let skeg = exe.file_name().is_some_and(|name| name == "skeg" || name == "skeg (deleted)");
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let inside = instance.owns(&String::from_utf8_lossy(&read("cgroup")));
        (inside || skeg && instance.owns(&line)).then_some((pid, line))
    };
    process_ids().filter_map(of_instance).collect()
}
