//! One cluster under test, and kubectl on it.

use crate::Scope;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// How long any one thing may take to come true.
const PATIENCE: &str = "--timeout=90s";

/// A running cluster with a registry beside it. Dropping it purges both.
pub struct Cluster {
    pub skeg: PathBuf,
    pub data_dir: PathBuf,
    pub registry: Option<Registry>,
    flags: Vec<String>,
    kubectl: PathBuf,
    images: PathBuf,
    directory: tempfile::TempDir,
    stopped: std::cell::Cell<bool>,
}

// The cell is only touched by `stop` and `drop`, when no other thread has the cluster.
// SAFETY: as the line above says.
unsafe impl Sync for Cluster {}

fn variable(name: &str) -> Result<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .with_context(|| format!("{name} is not set: run `cargo xtask test --e2e`"))
}

pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Cluster {
    /// Starts the binary on an empty data directory and imports the test images.
    pub fn start() -> Result<Self> {
        let cluster = Self::prepare()?;
        cluster.up()?;
        for image in ["nginx", "busybox", "client"] {
            let archive = cluster.archive(image);
            cluster.skeg(&["image", "import", &archive.to_string_lossy()])?;
        }
        Ok(cluster)
    }

    /// A cluster that is not started yet, with its registry.
    pub fn prepare() -> Result<Self> {
        // Several clusters run side by side: each gets its own ranges.
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed) % 60;
        let directory = tempfile::Builder::new().prefix("skeg-e2e-").tempdir()?;
        let registry = Registry::start(directory.path())?;
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
        })
    }

    /// A cluster that runs elsewhere: kubectl works on it, nothing else does.
    pub fn foreign(kubeconfig: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("skeg-e2e-").tempdir()?;
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
        })
    }

    /// Starts the binary, again or for the first time; returns when the node is Ready,
    /// and gives what it said.
    pub fn up(&self) -> Result<String> {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        self.skeg(&[&["up", "--detach"], &flags[..]].concat())
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

    /// The process id of the running server.
    pub fn server_pid(&self) -> Result<i32> {
        let pid = std::fs::read_to_string(self.data_dir.join("skeg.pid"))?;
        Ok(pid.trim().parse()?)
    }

    pub fn show_log(&self) {
        let log = std::fs::read_to_string(self.data_dir.join("skeg.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(80)..];
        eprintln!("--- last lines of the server's log\n{}", tail.join("\n"));
    }

    /// Removes the cluster; fails where something of it stays behind.
    pub fn stop(&self) -> Result<()> {
        self.stopped.set(true);
        self.skeg(&["down", "--purge"])?;
        if self.data_dir.exists() {
            bail!("{} is still there after the purge", self.data_dir.display());
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.stopped.get() {
            let _ = self.stop();
        }
    }
}

fn text(args: &[&str], output: &Output) -> Result<String> {
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
    pub fn start(scope: &Scope<'_>, what: &[&str]) -> Result<Self> {
        let mut command = scope.kubectl_command();
        command.args(["get", "--watch", "-o", "json", "--request-timeout=90s"]).args(what);
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

/// Debian's registry on a loopback port, with and without a password.
pub struct Registry {
    child: Child,
    pub port: u16,
    log: PathBuf,
}

impl Registry {
    fn start(directory: &Path) -> Result<Self> {
        let port = free_port()?;
        let (config, log) = (directory.join("registry.yml"), directory.join("registry.log"));
        let storage = directory.join("registry");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{accesslog: {{disabled: false}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
                storage.display()
            ),
        )?;
        let child = Command::new("docker-registry")
            .args(["serve"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&log)?)
            .stderr(Stdio::null())
            .spawn()
            .context("docker-registry: install Debian's package")?;
        let registry = Registry { child, port, log };
        wait_port(port)?;
        Ok(registry)
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A mirror `mirrored.example` in front of it shows that mirrors work.
    fn registries_yaml(&self) -> String {
        format!("mirrors:\n  mirrored.example:\n    endpoint: [\"http://{}\"]\n", self.host())
    }

    /// Pushes an OCI archive under a name.
    pub fn push(&self, archive: &Path, name: &str) -> Result<()> {
        let source = format!("oci-archive:{}", archive.display());
        let target = format!("docker://{}/{name}", self.host());
        let args = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", &source, &target];
        text(&args, &Command::new("skopeo").args(args).output()?).map(|_| ())
    }

    /// How many blobs were asked for since the registry started.
    pub fn blob_fetches(&self) -> Result<usize> {
        let log = std::fs::read_to_string(&self.log)?;
        Ok(log.lines().filter(|line| line.contains("\"GET /v2/") && line.contains("/blobs/")).count())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something listens on a loopback port.
pub fn wait_port(port: u16) -> Result<()> {
    for _ in 0..200 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(());
        }
        pause(Duration::from_millis(25));
    }
    bail!("nothing listens on port {port}")
}

/// Between two looks at something outside that sends no event.
pub fn pause(time: Duration) {
    let (_keep, receiver) = std::sync::mpsc::channel::<()>();
    let _ = receiver.recv_timeout(time);
}

/// Looks again until it holds; for what no watch tells (host state).
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    for _ in 0..600 {
        if let Some(found) = look()? {
            return Ok(found);
        }
        pause(Duration::from_millis(50));
    }
    bail!("{what}: not after 30 s")
}
