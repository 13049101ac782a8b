//! What the node asks of a runtime and what it is told. Plain data, also the payload of the
//! supervisor protocol. Knows nothing of Kubernetes objects: the node translates.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A Pod's sandbox: the namespaces and the parent cgroup its containers share.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct SandboxConfig {
    /// The Pod's uid: the sandbox's key. A file-name-safe string.
    pub uid: String,
    pub hostname: String,
    /// Share the host's network namespace instead of making one.
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    /// One PID namespace for all containers of the Pod, with an init of ours as PID 1.
    pub share_process_namespace: bool,
    /// Sysctls set in the Pod's namespaces: `net.ipv4.ip_unprivileged_port_start` → `0`.
    pub sysctls: BTreeMap<String, String>,
    /// Limits of the Pod's cgroup as a whole.
    pub resources: Resources,
    /// Opaque to the runtime; durable, given back in [`SandboxStatus`].
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct SandboxStatus {
    pub config: SandboxConfig,
    /// False when its supervisor died: everything of it must be removed and rebuilt.
    pub ready: bool,
    /// Path through which the network namespace can be entered (`/proc/<pid>/ns/net`).
    pub netns: Option<PathBuf>,
    pub supervisor_pid: i32,
    /// Nanoseconds since the Unix epoch.
    pub created_at_ns: i64,
    pub containers: Vec<ContainerStatus>,
}

/// One container to create.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ContainerConfig {
    /// Unique on this host, file-name-safe: the container's key.
    pub id: String,
    /// The name in the Pod.
    pub name: String,
    /// How many of this name came before it (for the log file name and back-off).
    pub attempt: u32,
    /// The id of a running container of the sandbox whose PID namespace it joins.
    #[serde(default)]
    pub target: Option<String>,
    /// Unpacked image layers, topmost first: the lower directories of its overlay.
    pub layers: Vec<PathBuf>,
    /// Where it has a directory of its own, which begins as what the image has there, unless something is
    /// mounted at that path. Paths as an image config writes them.
    #[serde(default)]
    pub image_volumes: Vec<PathBuf>,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: String,
    pub user: User,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub resources: Resources,
    pub security: Security,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    /// Where stdout and stderr go, in the CRI log format.
    pub log_path: PathBuf,
    /// None from agents that rotate logs themselves, as they once did.
    #[serde(default)]
    pub log_rotation: Option<LogRotation>,
    /// Signal number of a graceful stop.
    pub stop_signal: i32,
    /// Opaque to the runtime; durable.
    pub labels: BTreeMap<String, String>,
}

/// When a container's log goes on in a new file, and how many files are kept.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct LogRotation {
    /// No file grows beyond this, but for one that a single chunk of output fills.
    pub bytes_max: u64,
    /// With the one that is written to; at least 2.
    pub files_max: usize,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct User {
    /// `user`, `uid`, `user:group`, … as an image config writes it; names are looked up in the
    /// container's own `/etc/passwd` and `/etc/group`.
    pub image_user: String,
    /// Override the above.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    /// Also take the groups that `/etc/group` gives the user (`supplementalGroupsPolicy: Merge`).
    pub merge_image_groups: bool,
    /// Refuse to run as uid 0 (`runAsNonRoot`).
    pub must_not_be_root: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Mount {
    /// Absolute path in the container.
    pub destination: PathBuf,
    pub source: MountSource,
    pub read_only: bool,
    /// With `read_only`: the mounts inside the source as well.
    #[serde(default)]
    pub recursive_read_only: bool,
    pub propagation: Propagation,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub enum MountSource {
    /// A file or directory of the host.
    Bind(PathBuf),
    /// What `path` leads to inside the directory `root`, whatever links others put there meanwhile.
    BindBeneath {
        root: PathBuf,
        path: PathBuf,
    },
    Tmpfs {
        size_bytes: Option<u64>,
    },
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Device {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    /// `rwm`
    pub permissions: String,
}

/// Limits of one cgroup. `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Resources {
    /// cgroup v1 `cpu.shares` (2..=262144); translated to `cpu.weight` on v2.
    pub cpu_shares: Option<u64>,
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub memory_limit_bytes: Option<i64>,
    pub pids_limit: Option<i64>,
    pub oom_score_adj: Option<i32>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Security {
    pub privileged: bool,
    /// The final set, spelled `CAP_NET_BIND_SERVICE`.
    pub capabilities: Vec<String>,
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
    pub read_only_root: bool,
    /// `procMount: Unmasked` leaves `/proc` and `/sys` unmasked.
    pub unmasked_proc: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub enum Seccomp {
    Unconfined,
    RuntimeDefault,
    /// A profile file of the host, in the OCI JSON form.
    Localhost(PathBuf),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum ContainerState {
    Created,
    Running,
    Exited,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ContainerStatus {
    pub id: String,
    pub name: String,
    pub attempt: u32,
    pub state: ContainerState,
    pub pid: Option<i32>,
    pub created_at_ns: i64,
    pub started_at_ns: Option<i64>,
    pub finished_at_ns: Option<i64>,
    /// Exit status, or 128 + signal number.
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    /// Why it could not be created or started, or what happened to it.
    pub message: String,
    pub log_path: PathBuf,
    pub labels: BTreeMap<String, String>,
    /// Who its first process is at its start, once that is known. Absent from older supervisors.
    #[serde(default)]
    pub identity: Option<Identity>,
}

/// A resolved user: what [`User`] comes to in the container's own `/etc/passwd` and `/etc/group`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// The primary group among them.
    pub groups: Vec<u32>,
    pub home: String,
}

/// What a runtime tells without being asked. A hint to re-read, never the truth itself.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub enum Event {
    /// A container of this sandbox changed state.
    Container { uid: String, id: String },
    /// The sandbox's supervisor died.
    SandboxGone { uid: String },
    /// Events were lost: re-read everything.
    Lagged,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ExecConfig {
    pub args: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// Terminal size in character cells.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// The result of a command that ran to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecOutput {
    pub exit_code: i32,
    /// stdout and stderr together, cut at the limit asked for.
    pub output: Vec<u8>,
    pub timed_out: bool,
}

/// Resource use of one cgroup now.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Usage {
    pub cpu_ns: u64,
    pub memory_bytes: u64,
    /// Without inactive file cache: what `kubectl top` and eviction count.
    pub memory_working_set_bytes: u64,
    pub pids: u64,
}
