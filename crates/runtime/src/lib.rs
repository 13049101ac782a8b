//! Sandboxes and processes: namespaces, cgroups, mounts, stdio, exec, and the per-Pod supervisor.
//! Knows nothing of Kubernetes objects, images or addresses.

mod caps;
mod cgroup;
mod devices;
mod image_volumes;
mod log;
mod process;
mod protocol;
mod rootfs;
mod runtime;
mod seccomp;
mod session;
mod shim;
mod state;
mod sys;
mod types;
mod user;
mod wire;

use futures_util::future::BoxFuture;
pub use log::{LogFile, rotated_logs};
pub use runtime::{Runtime, RuntimeConfig};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, mpsc, oneshot};
pub use types::*;

/// Runs as a helper when the program was started as one: the exit code then, else None.
/// A program that gives its own path as [`RuntimeConfig::exe`] calls this before anything else,
/// while it has one thread.
pub fn run_helper(args: impl IntoIterator<Item = std::ffi::OsString>) -> Option<i32> {
    let args: Vec<_> = args.into_iter().collect();
    match args.first()?.to_str()? {
        "skeg-shim" => Some(shim::main(&args[1..])),
        _ => None,
    }
}

/// Why a runtime refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no such sandbox: {0}")]
    NoSandbox(String),
    #[error("no such container: {0}")]
    NoContainer(String),
    /// The container's configuration cannot be run (no such user, must not run as root, …);
    /// trying again cannot help.
    #[error("{0}")]
    Config(String),
    /// The container could not be created or started (command not found, …).
    #[error("{0}")]
    Start(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{0}")]
    Other(String),
}

pub type Result<T> = std::result::Result<T, Error>;

/// The streams of an exec or attach session. Dropping it ends the session (exec: kills the command).
pub struct Session {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// None with a terminal: the terminal carries both.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Terminal resizes; bounded.
    pub resize: mpsc::Sender<TerminalSize>,
    /// The exit code, once the command ended and its output is drained.
    pub exit: oneshot::Receiver<Result<i32>>,
}

/// A duplex byte stream into a Pod's network namespace.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What the node needs of a runtime. Skeg's own is [`Runtime`]; a CRI client can be another.
/// All calls are idempotent where their name allows it: removing what is gone succeeds.
pub trait PodRuntime: Send + Sync + 'static {
    /// All sandboxes on the host, also those found again after a restart of the agent.
    fn sandboxes(&self) -> BoxFuture<'_, Result<Vec<SandboxStatus>>>;
    fn sandbox<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<SandboxStatus>>;
    fn create_sandbox(&self, config: SandboxConfig) -> BoxFuture<'_, Result<SandboxStatus>>;
    /// Ends everything in the sandbox and removes every trace of it but logs.
    fn remove_sandbox<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<()>>;
    /// Creates the container with its process ready to start.
    fn create_container<'a>(
        &'a self,
        uid: &'a str,
        config: ContainerConfig,
    ) -> BoxFuture<'a, Result<ContainerStatus>>;
    fn start_container<'a>(&'a self, uid: &'a str, id: &'a str) -> BoxFuture<'a, Result<ContainerStatus>>;
    /// Sends a signal to the container's main process; with SIGKILL to all its processes.
    fn signal_container<'a>(&'a self, uid: &'a str, id: &'a str, signal: i32) -> BoxFuture<'a, Result<()>>;
    /// Removes an exited container (kills it first if need be): its cgroup, mounts and state.
    fn remove_container<'a>(&'a self, uid: &'a str, id: &'a str) -> BoxFuture<'a, Result<()>>;
    /// Applies new limits in place.
    fn update_resources<'a>(
        &'a self,
        uid: &'a str,
        id: &'a str,
        resources: Resources,
    ) -> BoxFuture<'a, Result<()>>;
    /// Applies new limits to the Pod as a whole.
    fn update_sandbox<'a>(&'a self, uid: &'a str, resources: Resources) -> BoxFuture<'a, Result<()>>;
    fn exec<'a>(&'a self, uid: &'a str, id: &'a str, config: ExecConfig) -> BoxFuture<'a, Result<Session>>;
    /// Runs a command to its end (probes, hooks), keeping at most `output_max` bytes.
    fn exec_sync<'a>(
        &'a self,
        uid: &'a str,
        id: &'a str,
        args: Vec<String>,
        timeout: Duration,
        output_max: usize,
    ) -> BoxFuture<'a, Result<ExecOutput>>;
    fn attach<'a>(&'a self, uid: &'a str, id: &'a str, config: ExecConfig) -> BoxFuture<'a, Result<Session>>;
    /// Connects to `127.0.0.1:port` (then `[::1]:port`) inside the sandbox's network namespace.
    fn connect<'a>(&'a self, uid: &'a str, port: u16) -> BoxFuture<'a, Result<Box<dyn Stream>>>;
    /// The directories of what the container wrote into its own root and its image's volumes, as far as this
    /// host has them.
    fn writable_dirs(&self, uid: &str, id: &str) -> Vec<PathBuf>;
    fn usage<'a>(&'a self, uid: &'a str, id: &'a str) -> BoxFuture<'a, Result<Usage>>;
    /// State changes from now on. A slow reader gets [`Event::Lagged`]'s meaning from the channel.
    fn events(&self) -> broadcast::Receiver<Event>;
}
