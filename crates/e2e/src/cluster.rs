//! One cluster under test, and kubectl on it.

use crate::Scope;
use crate::registry::Registry;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// How long any one thing may take to come true.
const PATIENCE: &str = "--timeout=90s";

/// What the names of the suite's directories start with, and the file in each that is locked.
const PREFIX: &str = "skeg-e2e-";
const LOCK: &str = "lock";

/// A running cluster with a registry beside it. Dropping it purges both.
pub struct Cluster {
    pub skeg: PathBuf,
    pub data_dir: PathBuf,
    pub registry: Option<Registry>,
    flags: Vec<String>,
    kubectl: PathBuf,
    images: PathBuf,
    directory: tempfile::TempDir,
    stopped: AtomicBool,
    /// Held as long as this process lives: who finds it free may clear the directory up.
    _lock: File,
}

pub fn variable(name: &str) -> Result<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .with_context(|| format!("{name} is not set: run `cargo xtask test --e2e`"))
}

pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A directory of the suite's own, and the lock that says that it is in use.
fn directory() -> Result<(tempfile::TempDir, File)> {
    let directory = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
    let lock = File::create(directory.path().join(LOCK))?;
    lock.lock()?;
    Ok((directory, lock))
}

/// Purges what a killed run of the suite left: clusters, their directories. The registries ended
/// with their suite.
pub fn clear_earlier_runs() -> Result<()> {
    for entry in std::fs::read_dir(std::env::temp_dir())?.flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(lock) = File::open(path.join(LOCK)) else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        eprintln!("clearing up {} of an earlier run", path.display());
        let data = path.join("data");
        // A foreign cluster's directory holds a kubeconfig and nothing of the host.
        if data.join("settings.json").exists() {
            let mut purge = Command::new(variable("SKEG_BINARY")?);
            let output = purge.args(["down", "--purge", "--data-dir"]).arg(&data).output()?;
            text(&["down", "--purge"], &output).with_context(|| format!("purging {}", data.display()))?;
        }
        std::fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// The command's process ends when the thread that starts it does, however that ends: a killed
/// suite leaves nobody behind.
pub fn ends_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: prctl is async-signal-safe and takes no memory here.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    }
}

impl Cluster {
    /// Starts the binary on an empty data directory and imports the test images.
    pub fn start() -> Result<Self> {
        Self::prepare()?.started()
    }

    /// Starts it with settings that only a configuration file can hold.
    pub fn start_with(settings: &str) -> Result<Self> {
        let mut cluster = Self::prepare()?;
        let path = cluster.scratch().join("config.yaml");
        std::fs::write(&path, settings)?;
        cluster.flags.push(format!("--config={}", path.display()));
        cluster.started()
    }

    fn started(self) -> Result<Self> {
        self.up()?;
        for image in ["nginx", "busybox", "client"] {
            let archive = self.archive(image);
            self.skeg(&["image", "import", &archive.to_string_lossy()])?;
        }
        Ok(self)
    }

    /// A cluster that is not started yet, with its registry.
    pub fn prepare() -> Result<Self> {
        // Several clusters run side by side, of other suites too: each gets its own ranges.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = std::process::id().wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 60;
        let (directory, lock) = directory()?;
        let registry = Registry::start(directory.path(), "")?;
        let registries = directory.path().join("registries.yaml");
        std::fs::write(&registries, registry.registries_yaml())?;
        let flags = vec![
            format!("--listen=127.0.0.1:{}", free_port()?),
            format!("--pod-cidr=10.{}.0.0/16", 180 + n),
            format!("--service-cidr=10.97.{n}.0/24"),
            "--node-name=e2e-node".into(),
            format!("--registries={}", registries.display()),
        ];
        Ok(Cluster {
            skeg: variable("SKEG_BINARY")?,
            data_dir: directory.path().join("data"),
            registry: Some(registry),
            flags,
            kubectl: variable("KUBECTL")?,
            images: variable("SKEG_IMAGES")?,
            directory,
            stopped: false.into(),
            _lock: lock,
        })
    }

    /// A cluster that runs elsewhere: kubectl works on it, nothing else does.
    pub fn foreign(kubeconfig: &Path) -> Result<Self> {
        let (directory, lock) = directory()?;
        std::fs::create_dir(directory.path().join("data"))?;
        std::fs::copy(kubeconfig, directory.path().join("data/kubeconfig"))?;
        Ok(Cluster {
            skeg: PathBuf::new(),
            data_dir: directory.path().join("data"),
            registry: None,
            flags: Vec::new(),
            kubectl: variable("KUBECTL")?,
            images: variable("SKEG_IMAGES")?,
            directory,
            stopped: true.into(),
            _lock: lock,
        })
    }

    /// Starts the binary, again or for the first time; returns when the node is Ready,
    /// and gives what it said.
    pub fn up(&self) -> Result<String> {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        self.skeg(&[&["up", "--detach"], &flags[..]].concat())
    }

    /// The command that starts it in the foreground.
    pub fn up_command(&self) -> Command {
        let mut command = Command::new(&self.skeg);
        command.arg("up").args(&self.flags).arg("--data-dir").arg(&self.data_dir).stdin(Stdio::null());
        command
    }

    /// The value of a flag that the cluster is started with.
    pub fn flag(&self, name: &str) -> Result<String> {
        let value = self.flags.iter().find_map(|flag| flag.strip_prefix(name)?.strip_prefix('='));
        Ok(value.with_context(|| format!("the suite gives no {name}"))?.to_owned())
    }

    pub fn archive(&self, image: &str) -> PathBuf {
        self.images.join(format!("{image}.tar"))
    }

    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("kubeconfig")
    }

    /// Runs the binary on this cluster's data directory.
    pub fn skeg(&self, args: &[&str]) -> Result<String> {
        let (command, rest) = args.split_first().context("a command")?;
        // `image` has its own sub-commands; the flag goes behind them.
        let output = Command::new(&self.skeg)
            .arg(command)
            .args(rest)
            .arg("--data-dir")
            .arg(&self.data_dir)
            .output()?;
        text(args, &output)
    }

    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(self.kubeconfig()).stdin(Stdio::null());
        command.env("HOME", self.directory.path());
        command
    }

    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        text(args, &self.kubectl_command().args(args).output()?)
    }

    /// What the names of everything on the host carry, as `status` tells.
    pub fn id(&self) -> Result<String> {
        let status = self.skeg(&["status"])?;
        let line = status.lines().find_map(|line| line.strip_prefix("instance"));
        let id = line.and_then(|rest| rest.split_whitespace().next());
        Ok(id.with_context(|| format!("no instance in {status}"))?.to_owned())
    }

    /// The process id of the running server.
    pub fn server_pid(&self) -> Result<i32> {
        let pid = std::fs::read_to_string(self.data_dir.join("skeg.pid"))?;
        Ok(pid.trim().parse()?)
    }

    /// Kills the server; returns when it is gone.
    pub fn kill(&self) -> Result<()> {
        let pid = self.server_pid()?;
        // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        ensure!(fd >= 0, "process {pid}: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor is new and ours.
        let pidfd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) };
        // SAFETY: a plain kill(2) of the server that this suite started.
        ensure!(unsafe { libc::kill(pid, libc::SIGKILL) } == 0, "kill {pid}");
        let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        ensure!(unsafe { libc::poll(&raw mut poll, 1, 10_000) } == 1, "process {pid} does not end");
        Ok(())
    }

    /// How many containers the kubelet said it started in a namespace.
    pub fn containers_started(&self, namespace: &str) -> usize {
        let args = ["get", "events", namespace, "--field-selector=reason=Started", "-o", "name"];
        self.kubectl(&args).map_or(0, |events| events.lines().filter(|line| line.contains('/')).count())
    }

    /// Of the server's log, the last warnings and errors, and the last lines.
    pub fn log_end(&self) -> String {
        let log = std::fs::read_to_string(self.data_dir.join("skeg.log")).unwrap_or_default();
        let last = |lines: Vec<&str>| lines[lines.len().saturating_sub(30)..].join("\n");
        let bad = log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
        format!(
            "--- warnings and errors in the server's log\n{}\n--- its last lines\n{}\n",
            last(bad.collect()),
            last(log.lines().collect())
        )
    }

    #[allow(dead_code, reason = "the benchmark's")]
    pub fn show_log(&self) {
        eprintln!("{}", self.log_end());
    }

    /// Removes the cluster; fails where something of it stays behind.
    pub fn stop(&self) -> Result<()> {
        self.stopped.store(true, Ordering::Relaxed);
        self.skeg(&["down", "--purge"])?;
        if self.data_dir.exists() {
            bail!("{} is still there after the purge", self.data_dir.display());
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.stopped.load(Ordering::Relaxed) {
            let _ = self.stop();
        }
    }
}

pub fn text(args: &[&str], output: &Output) -> Result<String> {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("`{}`: {}\n{}{}", args.join(" "), output.status, head(&out, 3000), head(&err, 3000));
    }
    Ok(if err.is_empty() { out.into_owned() } else { format!("{out}{err}") })
}

/// The first bytes of a long text.
pub fn head(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// kubectl in the case's namespace.
impl Scope<'_> {
    pub fn kubectl_command(&self) -> Command {
        let mut command = self.cluster.kubectl_command();
        command.args(["--namespace", &self.namespace]);
        command
    }

    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        text(args, &self.kubectl_command().args(args).output()?)
    }

    /// Runs kubectl and returns what it says when it fails; succeeding is the error.
    pub fn kubectl_fails(&self, args: &[&str]) -> Result<String> {
        let output = self.kubectl_command().args(args).output()?;
        if output.status.success() {
            bail!(
                "`kubectl {}` should fail and said: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stdout)
            );
        }
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub fn kubectl_stdin(&self, args: &[&str], input: &[u8]) -> Result<String> {
        let mut child = self
            .kubectl_command()
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("piped")?.write_all(input)?;
        text(args, &child.wait_with_output()?)
    }

    pub fn apply(&self, object: &Value) -> Result<String> {
        self.kubectl_stdin(&["apply", "-f", "-"], &serde_json::to_vec(object)?)
    }

    /// What kubectl prints as JSON, without the warnings that it shows beside.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let args = [&["get", "-o", "json"], args].concat();
        let output = self.kubectl_command().args(&args).output()?;
        text(&args, &output)?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    pub fn jsonpath(&self, what: &[&str], path: &str) -> Result<String> {
        let template = format!("jsonpath={path}");
        self.kubectl(&[&["get", "-o", &template], what].concat())
    }

    pub fn wait_ready(&self, pod: &str) -> Result<()> {
        self.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), PATIENCE]).map(|_| ())
    }

    pub fn rolled_out(&self, deployment: &str) -> Result<()> {
        self.kubectl(&["rollout", "status", &format!("deployment/{deployment}"), PATIENCE]).map(|_| ())
    }

    /// `kubectl wait --for=jsonpath=…`: `path` is like `{.status.phase}=Succeeded`.
    pub fn wait_for(&self, what: &str, path: &str) -> Result<()> {
        self.kubectl(&["wait", &format!("--for=jsonpath={path}"), what, PATIENCE]).map(|_| ())
    }

    /// Waits until a watch of `what` shows an object for which `seen` holds.
    pub fn watch_until(&self, what: &[&str], mut seen: impl FnMut(&Value) -> bool) -> Result<Value> {
        let mut watch = Watch::start(self, what)?;
        while let Some(object) = watch.next()? {
            if seen(&object) {
                return Ok(object);
            }
        }
        bail!("the watch of {} ended without it", what.join(" "))
    }

    /// Waits for an Event about an object of this name, with this reason, that says `part`.
    pub fn event(&self, name: &str, reason: &str, part: &str) -> Result<()> {
        let selector = format!("--field-selector=reason={reason},involvedObject.name={name}");
        let says = |event: &Value| event["message"].as_str().is_some_and(|message| message.contains(part));
        self.watch_until(&["events", &selector], says)
            .with_context(|| format!("an Event {reason} of {name} that says {part:?}"))
            .map(drop)
    }

    /// Runs a command in a Pod's first container.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        self.kubectl(&[&["exec", pod, "--"], command].concat())
    }
}

/// A running `kubectl get --watch`, object by object, with a bound on its time.
pub struct Watch {
    child: Child,
    objects:
        serde_json::StreamDeserializer<'static, serde_json::de::IoRead<std::process::ChildStdout>, Value>,
}

impl Watch {
    /// `what` is a kind with options, or a kind and a name.
    pub fn start(scope: &Scope<'_>, what: &[&str]) -> Result<Self> {
        let mut command = scope.kubectl_command();
        command.args(["get", "--watch", "-o", "json", "--request-timeout=90s"]);
        match what {
            // Of a single name kubectl drops the watch's first event: what happens between its get
            // and its watch would go unseen.
            [kind, name] if !name.starts_with('-') => {
                command.args([kind, &*format!("--field-selector=metadata.name={name}")])
            }
            _ => command.args(what),
        };
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().context("piped")?;
        Ok(Watch { child, objects: serde_json::Deserializer::from_reader(stdout).into_iter() })
    }

    pub fn next(&mut self) -> Result<Option<Value>> {
        self.objects.next().transpose().context("reading a watched object")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Between two looks at something outside that sends no event.
pub fn pause(time: Duration) {
    let (_keep, receiver) = std::sync::mpsc::channel::<()>();
    let _ = receiver.recv_timeout(time);
}

/// How long something that sends no event may take.
const EVENTUALLY_S: i64 = 30;

/// Looks again until it holds; for what no watch tells (host state).
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let clock = skeg_base::Clock::system();
    let start = clock.now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if clock.now().duration_since(start).as_secs() >= EVENTUALLY_S {
            bail!("{what}: not after {EVENTUALLY_S} s");
        }
        pause(Duration::from_millis(50));
    }
}
