//! The agent's side: starts supervisors, keeps a connection to each, and finds them again.

use crate::cgroup::Cgroups;
use crate::protocol::{Failure, Message, Reply, Request};
use crate::state::{self, ContainerRecord, Layout, SandboxRecord};
use crate::types::*;
use crate::wire::Wire;
use crate::{Error, PodRuntime, Result, Session, Stream, rootfs, session, shim, sys};
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Events kept for a slow reader.
const EVENTS_MAX: usize = 1024;
/// Calls waiting to be sent to one supervisor.
const CALLS_MAX: usize = 64;
/// How long a supervisor may take to end its containers before they are killed over its head.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where an instance of the runtime keeps its things.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Names the instance on this host: its cgroups lie in `skeg-<id>`.
    pub id: String,
    /// Sockets; may be emptied by a reboot.
    pub run_dir: PathBuf,
    /// Container layers and states; must survive a reboot.
    pub data_dir: PathBuf,
    /// A program that calls [`crate::run_helper`]: the supervisor.
    pub exe: PathBuf,
}

/// Skeg's own runtime.
pub struct Runtime {
    layout: Layout,
    exe: PathBuf,
    cgroups: Cgroups,
    boot_id: String,
    events: broadcast::Sender<Event>,
    sandboxes: Mutex<BTreeMap<String, Arc<Sandbox>>>,
    /// For the tasks that follow supervisors.
    myself: Weak<Runtime>,
}

struct Call {
    request: Request,
    reply: oneshot::Sender<std::result::Result<Reply, Failure>>,
}

struct Sandbox {
    status: Mutex<SandboxStatus>,
    /// None when there is no supervisor.
    calls: Option<mpsc::Sender<Call>>,
    /// The network namespace, held as long as the sandbox is known.
    netns: Option<OwnedFd>,
    /// Cancelled before a removal, so that the supervisor's end is no surprise.
    removing: CancellationToken,
    /// Held while the processes of a dead sandbox are killed or its traces removed, so that the
    /// one never hits what came after the other.
    ending: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// Runs what may block on the disk or the kernel.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Other(e.to_string()))?
}

fn make_private_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error(format!("create {}", path.display())))
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).map_err(io_error(format!("remove {}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Takes a directory out of the way at once and deletes it in the background: a container's files
/// can be many. What a crash leaves in the trash, the next start deletes.
fn discard(layout: &Layout, path: &Path) -> Result<()> {
    let Some(name) = path.file_name() else { return Ok(()) };
    let trash = layout.trash().join(format!("{}.{}", name.display(), sys::realtime_ns()));
    match fs::rename(path, &trash) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io_error(format!("remove {}", path.display())))?,
    }
    tokio::task::spawn_blocking(move || {
        if let Err(e) = remove_dir(&trash) {
            tracing::warn!("{e}");
        }
    });
    Ok(())
}

/// Empties the trash; others may be at it too.
fn empty_trash(layout: &Layout) -> Result<()> {
    const TRIES: u32 = 100;
    for _ in 0..TRIES {
        for name in names_in(&layout.trash()) {
            let _ = fs::remove_dir_all(layout.trash().join(name));
        }
        match fs::remove_dir(layout.trash()) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).map_err(io_error(format!("remove {}", layout.trash().display())));
            }
            _ => return Ok(()),
        }
    }
    Err(Error::Other(format!("{} does not get empty", layout.trash().display())))
}

fn names_in(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Where a sandbox found on disk stands.
enum Found {
    Alive(Wire, SandboxStatus),
    Dead(SandboxStatus),
}

impl Runtime {
    /// Opens the instance: finds its supervisors again and clears up what a crash left half done.
    pub async fn open(config: RuntimeConfig) -> Result<Arc<Runtime>> {
        if !state::name_is_safe(&config.id) {
            return Err(Error::Other(format!("{:?} cannot name a runtime instance", config.id)));
        }
        let layout = Layout {
            id: config.id.clone(),
            run_dir: config.run_dir.clone(),
            data_dir: config.data_dir.clone(),
        };
        make_private_dir(&layout.run_dir)?;
        make_private_dir(&layout.sandboxes())?;
        make_private_dir(&layout.trash())?;
        for name in names_in(&layout.trash()) {
            let left = layout.trash().join(name);
            tokio::task::spawn_blocking(move || remove_dir(&left));
        }
        let cgroups = Cgroups::detect().map_err(io_error("find the cgroup hierarchies"))?;
        cgroups
            .create(&layout.cgroup_root())
            .map_err(io_error("make the instance's cgroup (is Skeg running as root?)"))?;
        let runtime = Arc::new_cyclic(|myself| Runtime {
            layout,
            exe: config.exe,
            cgroups,
            boot_id: state::boot_id(),
            events: broadcast::channel(EVENTS_MAX).0,
            sandboxes: Mutex::new(BTreeMap::new()),
            myself: myself.clone(),
        });
        runtime.reconcile().await?;
        Ok(runtime)
    }

    async fn reconcile(&self) -> Result<()> {
        let uids = names_in(&self.layout.sandboxes());
        let found = futures_util::future::join_all(uids.iter().map(|uid| self.find(uid))).await;
        for (uid, found) in uids.iter().zip(found) {
            match found? {
                Some(Found::Alive(wire, status)) => self.adopt(wire, status),
                Some(Found::Dead(status)) => {
                    let sandbox = Sandbox {
                        status: Mutex::new(status),
                        calls: None,
                        netns: None,
                        removing: CancellationToken::new(),
                        ending: tokio::sync::Mutex::default(),
                    };
                    lock(&self.sandboxes).insert(uid.clone(), Arc::new(sandbox));
                }
                None => {}
            }
        }
        // What no sandbox owns.
        let known: Vec<String> = lock(&self.sandboxes).keys().cloned().collect();
        let (cgroups, layout) = (self.cgroups.clone(), self.layout.clone());
        blocking(move || {
            for group in cgroups.children(&layout.cgroup_root()) {
                if !group.strip_prefix("pod").is_some_and(|uid| known.iter().any(|k| k == uid)) {
                    let group = format!("{}/{group}", layout.cgroup_root());
                    cgroups.destroy(&group).map_err(io_error(format!("remove cgroup {group}")))?;
                }
            }
            for name in names_in(&layout.run_dir) {
                if name.strip_suffix(".sock").is_some_and(|uid| !known.iter().any(|k| k == uid)) {
                    let _ = fs::remove_file(layout.run_dir.join(name));
                }
            }
            Ok(())
        })
        .await
    }

    /// Looks at one sandbox directory. None: it never became a sandbox, and is gone now.
    async fn find(&self, uid: &str) -> Result<Option<Found>> {
        let record: SandboxRecord = match state::read(&self.layout.record(uid)) {
            Ok(record) => record,
            Err(_) => {
                self.erase(uid).await?;
                return Ok(None);
            }
        };
        if record.boot_id == self.boot_id && self.supervisor_lives(uid)? {
            match tokio::time::timeout(CONNECT_TIMEOUT, Wire::connect(&self.layout, uid)).await {
                Ok(Ok((wire, status))) => {
                    self.collect_containers(uid, &status);
                    return Ok(Some(Found::Alive(wire, status)));
                }
                Ok(Err(e)) => tracing::warn!(uid, "supervisor lost: {e}"),
                Err(_) => tracing::warn!(uid, "supervisor does not answer"),
            }
        }
        self.kill_group(uid).await?;
        Ok(Some(Found::Dead(self.last_status(uid, record))))
    }

    /// True while a supervisor runs or starts: it holds the lock.
    fn supervisor_lives(&self, uid: &str) -> Result<bool> {
        let path = self.layout.lock(uid);
        match File::open(&path) {
            Ok(file) => Ok(!sys::try_lock(&file).map_err(io_error(format!("lock {}", path.display())))?),
            Err(_) => Ok(false),
        }
    }

    /// Deletes the directories of containers that the supervisor no longer has.
    fn collect_containers(&self, uid: &str, status: &SandboxStatus) {
        for id in names_in(&self.layout.containers(uid)) {
            if !status.containers.iter().any(|c| c.id == id)
                && let Err(e) = discard(&self.layout, &self.layout.container(uid, &id))
            {
                tracing::warn!(uid, container = id, "{e}");
            }
        }
    }

    /// What is known of a sandbox without a supervisor: its containers died with it.
    fn last_status(&self, uid: &str, record: SandboxRecord) -> SandboxStatus {
        let mut containers = Vec::new();
        for id in names_in(&self.layout.containers(uid)) {
            let path = self.layout.container(uid, &id).join("state.json");
            if let Ok(ContainerRecord { mut status, boot_id }) = state::read::<ContainerRecord>(&path) {
                let why = if boot_id == self.boot_id {
                    "the Pod's supervisor died"
                } else {
                    "the host was restarted"
                };
                mark_dead(&mut status, why);
                containers.push(status);
            }
        }
        SandboxStatus {
            config: record.config,
            ready: false,
            netns: None,
            supervisor_pid: 0,
            created_at_ns: record.created_at_ns,
            containers,
        }
    }

    /// Takes a connected supervisor in charge.
    fn adopt(&self, wire: Wire, status: SandboxStatus) {
        let uid = status.config.uid.clone();
        // Without it the supervisor is dead already, which the task below finds out.
        let netns = status.netns.as_ref().and_then(|path| File::open(path).ok()).map(OwnedFd::from);
        let (calls, receiver) = mpsc::channel(CALLS_MAX);
        let sandbox = Arc::new(Sandbox {
            status: Mutex::new(status),
            calls: Some(calls),
            netns,
            removing: CancellationToken::new(),
            ending: tokio::sync::Mutex::default(),
        });
        lock(&self.sandboxes).insert(uid.clone(), sandbox.clone());
        let runtime = self.myself.clone();
        tokio::spawn(async move {
            let events = runtime.upgrade().map(|r| r.events.clone());
            follow(&uid, wire, receiver, &sandbox, events.as_ref()).await;
            // The agent's own end is not the supervisor's.
            if let Some(runtime) = runtime.upgrade() {
                let _ending = sandbox.ending.lock().await;
                if !sandbox.removing.is_cancelled() {
                    runtime.supervisor_died(&uid, &sandbox).await;
                }
            }
        });
    }

    async fn supervisor_died(&self, uid: &str, sandbox: &Sandbox) {
        tracing::warn!(uid, "the Pod's supervisor died");
        if let Err(e) = self.kill_group(uid).await {
            tracing::error!(uid, "kill the Pod's processes: {e}");
        }
        {
            let mut status = lock(&sandbox.status);
            status.ready = false;
            status.netns = None;
            status.containers.iter_mut().for_each(|c| mark_dead(c, "the Pod's supervisor died"));
        }
        let _ = self.events.send(Event::SandboxGone { uid: uid.to_owned() });
    }

    async fn kill_group(&self, uid: &str) -> Result<()> {
        let (cgroups, group) = (self.cgroups.clone(), self.layout.pod_cgroup(uid));
        blocking(move || cgroups.kill(&group).map_err(io_error(format!("kill cgroup {group}")))).await
    }

    /// Removes every trace of a sandbox.
    async fn erase(&self, uid: &str) -> Result<()> {
        let (cgroups, layout, uid) = (self.cgroups.clone(), self.layout.clone(), uid.to_owned());
        blocking(move || {
            let group = layout.pod_cgroup(&uid);
            cgroups.destroy(&group).map_err(io_error(format!("remove cgroup {group}")))?;
            let _ = fs::remove_file(layout.socket(&uid));
            discard(&layout, &layout.sandbox(&uid))
        })
        .await
    }

    fn get(&self, uid: &str) -> Result<Arc<Sandbox>> {
        lock(&self.sandboxes).get(uid).cloned().ok_or_else(|| Error::NoSandbox(uid.to_owned()))
    }

    async fn call(&self, uid: &str, request: Request) -> Result<Reply> {
        let sandbox = self.get(uid)?;
        let dead = || Error::Other(format!("the supervisor of sandbox {uid} is gone"));
        let calls = sandbox.calls.as_ref().ok_or_else(dead)?;
        let (reply, answer) = oneshot::channel();
        calls.send(Call { request, reply }).await.map_err(|_| dead())?;
        Ok(answer.await.map_err(|_| dead())??)
    }

    async fn call_container(&self, uid: &str, request: Request) -> Result<ContainerStatus> {
        match self.call(uid, request).await? {
            Reply::Container { status, warnings } => {
                for warning in warnings {
                    tracing::warn!(uid, container = status.id, "{warning}");
                }
                Ok(*status)
            }
            other => Err(Error::Other(format!("unexpected answer: {other:?}"))),
        }
    }

    async fn start_supervisor(&self, config: SandboxConfig) -> Result<(Wire, SandboxStatus)> {
        let uid = config.uid.clone();
        let (layout, exe) = (self.layout.clone(), self.exe.clone());
        let record =
            SandboxRecord { config, created_at_ns: sys::realtime_ns(), boot_id: self.boot_id.clone() };
        let name = uid.clone();
        blocking(move || spawn_supervisor(&layout, &exe, &name, &record)).await?;
        Wire::connect(&self.layout, &uid).await
    }

    /// Connects for an exec or attach session.
    async fn session_wire(&self, uid: &str) -> Result<Wire> {
        if !lock(&self.get(uid)?.status).ready {
            return Err(Error::Other(format!("the supervisor of sandbox {uid} is gone")));
        }
        Ok(Wire::connect(&self.layout, uid).await?.0)
    }

    /// Removes every sandbox and every trace of the instance on this host.
    pub async fn purge(&self) -> Result<()> {
        let uids: Vec<String> = lock(&self.sandboxes).keys().cloned().collect();
        let removed = futures_util::future::join_all(uids.iter().map(|uid| self.remove_sandbox(uid))).await;
        removed.into_iter().collect::<Result<Vec<()>>>()?;
        let (cgroups, layout) = (self.cgroups.clone(), self.layout.clone());
        blocking(move || {
            let group = layout.cgroup_root();
            cgroups.destroy(&group).map_err(io_error(format!("remove cgroup {group}")))?;
            remove_dir(&layout.sandboxes())?;
            empty_trash(&layout)?;
            remove_dir(&layout.run_dir)
        })
        .await
    }
}

/// A container whose end nobody saw.
fn mark_dead(status: &mut ContainerStatus, why: &str) {
    if status.state != ContainerState::Exited {
        status.state = ContainerState::Exited;
        status.pid = None;
        status.finished_at_ns = Some(sys::realtime_ns());
        status.exit_code = Some(128 + libc::SIGKILL);
        status.signal = Some(libc::SIGKILL);
        why.clone_into(&mut status.message);
    }
}

/// Starts a supervisor and waits until it is ready.
fn spawn_supervisor(layout: &Layout, exe: &Path, uid: &str, record: &SandboxRecord) -> Result<()> {
    let dir = layout.sandbox(uid);
    make_private_dir(&layout.containers(uid))?;
    let what = |what: &str| io_error(format!("{what} in {}", dir.display()));
    let lock = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(layout.lock(uid))
        .map_err(what("create the lock"))?;
    // The supervisor inherits the lock and holds it for as long as it lives.
    if !sys::try_lock(&lock).map_err(what("take the lock"))? {
        return Err(Error::Other(format!("sandbox {uid} has a supervisor already")));
    }
    state::write(&layout.record(uid), record, false).map_err(what("write the record"))?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(layout.supervisor_log(uid))
        .map_err(what("create the supervisor's log"))?;
    let args = shim::arguments(layout, uid);
    let mut child = Command::new(exe)
        .arg0(&args[0])
        .args(&args[1..])
        .env_clear()
        .current_dir("/")
        .stdin(lock)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(io_error(format!("start the supervisor {}", exe.display())))?;
    let mut report = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        let mut chunk = [0; 1024];
        while report != b"ok" {
            match stdout.read(&mut chunk).map_err(io_error("hear from the supervisor"))? {
                0 => break,
                n => report.extend_from_slice(&chunk[..n]),
            }
        }
    }
    let _ = child.wait();
    match report.as_slice() {
        b"ok" => Ok(()),
        b"" => Err(Error::Other(format!(
            "the Pod's supervisor died at its start: {}",
            fs::read_to_string(layout.supervisor_log(uid)).unwrap_or_default().trim()
        ))),
        why => Err(Error::Other(String::from_utf8_lossy(why).into_owned())),
    }
}

/// Carries calls to a supervisor and news from it, until it hangs up or nobody calls any more.
async fn follow(
    uid: &str,
    mut wire: Wire,
    mut calls: mpsc::Receiver<Call>,
    sandbox: &Sandbox,
    events: Option<&broadcast::Sender<Event>>,
) {
    let mut pending = BTreeMap::new();
    let mut seq = 0u64;
    loop {
        tokio::select! {
            biased;
            message = wire.next() => match message {
                Ok(Some(Message::Reply { seq, result })) => {
                    if let Ok(Reply::Container { status, .. }) = &result {
                        remember(sandbox, status);
                    }
                    if let Some(reply) = pending.remove(&seq) {
                        let reply: oneshot::Sender<_> = reply;
                        let _ = reply.send(result);
                    }
                }
                Ok(Some(Message::Changed { status })) => {
                    remember(sandbox, &status);
                    tell(events, uid, status.id);
                }
                Ok(Some(Message::Removed { id })) => {
                    lock(&sandbox.status).containers.retain(|c| c.id != id);
                    tell(events, uid, id);
                }
                Ok(Some(Message::Exited { .. })) => {}
                Ok(None) => return,
                Err(e) => {
                    tracing::warn!(uid, "supervisor connection: {e}");
                    return;
                }
            },
            Some(call) = calls.recv() => {
                seq += 1;
                pending.insert(seq, call.reply);
                if wire.send(seq, call.request, &[]).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn tell(events: Option<&broadcast::Sender<Event>>, uid: &str, id: String) {
    if let Some(events) = events {
        // Nobody listening is fine.
        let _ = events.send(Event::Container { uid: uid.to_owned(), id });
    }
}

fn remember(sandbox: &Sandbox, status: &ContainerStatus) {
    let mut known = lock(&sandbox.status);
    match known.containers.iter_mut().find(|c| c.id == status.id) {
        Some(old) => old.clone_from(status),
        None => known.containers.push(status.clone()),
    }
}

/// Connects from inside a network namespace, in a thread of its own that ends with it.
fn connect_inside(netns: Option<OwnedFd>, port: u16) -> io::Result<TcpStream> {
    if let Some(netns) = netns {
        sys::setns(&netns, libc::CLONE_NEWNET)?;
    }
    let targets =
        [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
    let mut refused = io::Error::other("no address");
    for (i, target) in targets.iter().enumerate() {
        match TcpStream::connect_timeout(target, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            // The first refusal says more than that of an address few programs listen on.
            Err(e) if i == 0 => refused = e,
            Err(_) => {}
        }
    }
    Err(refused)
}

impl PodRuntime for Runtime {
    fn sandboxes(&self) -> BoxFuture<'_, Result<Vec<SandboxStatus>>> {
        let all = lock(&self.sandboxes).values().map(|s| lock(&s.status).clone()).collect();
        Box::pin(async move { Ok(all) })
    }

    fn sandbox<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<SandboxStatus>> {
        Box::pin(async move { Ok(lock(&self.get(uid)?.status).clone()) })
    }

    fn create_sandbox(&self, config: SandboxConfig) -> BoxFuture<'_, Result<SandboxStatus>> {
        Box::pin(async move {
            let uid = config.uid.clone();
            if !state::name_is_safe(&uid) {
                return Err(Error::Other(format!("{uid:?} cannot name a sandbox")));
            }
            if let Ok(sandbox) = self.get(&uid) {
                let status = lock(&sandbox.status).clone();
                if status.ready {
                    return Ok(status);
                }
                return Err(Error::Other(format!("sandbox {uid} has died and must be removed first")));
            }
            match self.start_supervisor(config).await {
                Ok((wire, status)) => {
                    self.adopt(wire, status.clone());
                    Ok(status)
                }
                Err(e) => {
                    if let Err(e) = self.erase(&uid).await {
                        tracing::warn!(uid, "clean up after a failed sandbox: {e}");
                    }
                    Err(e)
                }
            }
        })
    }

    fn remove_sandbox<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if !state::name_is_safe(uid) {
                return Err(Error::NoSandbox(uid.to_owned()));
            }
            let sandbox = self.get(uid).ok();
            if let Some(sandbox) = &sandbox {
                sandbox.removing.cancel();
                match tokio::time::timeout(SHUTDOWN_TIMEOUT, self.call(uid, Request::Shutdown)).await {
                    Ok(Ok(_)) => {}
                    // The erasure below kills what is left.
                    Ok(Err(e)) => tracing::debug!(uid, "supervisor shutdown: {e}"),
                    Err(_) => tracing::warn!(uid, "the supervisor does not end its containers"),
                }
            }
            let _ending = match &sandbox {
                Some(sandbox) => Some(sandbox.ending.lock().await),
                None => None,
            };
            self.erase(uid).await?;
            lock(&self.sandboxes).remove(uid);
            Ok(())
        })
    }

    fn create_container<'a>(
        &'a self,
        uid: &'a str,
        config: ContainerConfig,
    ) -> BoxFuture<'a, Result<ContainerStatus>> {
        Box::pin(async move {
            let id = config.id.clone();
            let created = self.call_container(uid, Request::Create { config: Box::new(config) }).await;
            if created.is_err() && state::name_is_safe(&id) {
                let known = lock(&self.get(uid)?.status).containers.iter().any(|c| c.id == id);
                if !known {
                    discard(&self.layout, &self.layout.container(uid, &id))?;
                }
            }
            created
        })
    }

    fn start_container<'a>(&'a self, uid: &'a str, id: &'a str) -> BoxFuture<'a, Result<ContainerStatus>> {
        Box::pin(self.call_container(uid, Request::Start { id: id.to_owned() }))
    }

    fn signal_container<'a>(&'a self, uid: &'a str, id: &'a str, signal: i32) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.call(uid, Request::Signal { id: id.to_owned(), signal }).await.map(drop) })
    }

    fn remove_container<'a>(&'a self, uid: &'a str, id: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if !state::name_is_safe(id) {
                return Err(Error::NoContainer(id.to_owned()));
            }
            let sandbox = self.get(uid)?;
            let ready = lock(&sandbox.status).ready;
            if ready {
                self.call(uid, Request::Remove { id: id.to_owned() }).await?;
            } else {
                let (cgroups, group) = (self.cgroups.clone(), self.layout.container_cgroup(uid, id));
                blocking(move || cgroups.destroy(&group).map_err(io_error(format!("remove cgroup {group}"))))
                    .await?;
            }
            lock(&sandbox.status).containers.retain(|c| c.id != id);
            discard(&self.layout, &self.layout.container(uid, id))
        })
    }

    fn update_resources<'a>(
        &'a self,
        uid: &'a str,
        id: &'a str,
        resources: Resources,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(
            async move { self.call(uid, Request::Update { id: id.to_owned(), resources }).await.map(drop) },
        )
    }

    fn update_sandbox<'a>(&'a self, uid: &'a str, resources: Resources) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if !lock(&self.get(uid)?.status).ready {
                return Err(Error::Other(format!("the supervisor of sandbox {uid} is gone")));
            }
            let (cgroups, group) = (self.cgroups.clone(), self.layout.pod_cgroup(uid));
            let limits = shim::with_supervisor(&resources);
            let what = format!("resize cgroup {group}");
            blocking(move || cgroups.set(&group, &limits).map_err(io_error(what))).await
        })
    }

    fn exec<'a>(&'a self, uid: &'a str, id: &'a str, config: ExecConfig) -> BoxFuture<'a, Result<Session>> {
        Box::pin(async move { session::exec(self.session_wire(uid).await?, id, config).await })
    }

    fn exec_sync<'a>(
        &'a self,
        uid: &'a str,
        id: &'a str,
        args: Vec<String>,
        timeout: Duration,
        output_max: usize,
    ) -> BoxFuture<'a, Result<ExecOutput>> {
        Box::pin(async move {
            let wire = self.session_wire(uid).await?;
            let (read, write) = sys::pipe().map_err(io_error("pipe"))?;
            let mut output = Vec::new();
            let ended = CancellationToken::new();
            let mut reader = session::OutputReader::new(read, &ended).map_err(io_error("pipe"))?;
            let run = async {
                let mut wire = session::exec_into(wire, id, args, write).await?;
                let collect = async {
                    let mut chunk = [0; 4096];
                    loop {
                        match reader.read(&mut chunk).await {
                            Ok(0) | Err(_) => return,
                            // What is above the limit is read and dropped: the command goes on.
                            Ok(n) => output.extend_from_slice(&chunk[..n.min(output_max - output.len())]),
                        }
                    }
                };
                let end = async {
                    let code = session::exit_code(&mut wire).await;
                    ended.cancel();
                    code
                };
                tokio::join!(end, collect).0
            };
            match tokio::time::timeout(timeout, run).await {
                Ok(code) => Ok(ExecOutput { exit_code: code?, output, timed_out: false }),
                // Dropping the session killed the command.
                Err(_) => Ok(ExecOutput { exit_code: 128 + libc::SIGKILL, output, timed_out: true }),
            }
        })
    }

    fn attach<'a>(&'a self, uid: &'a str, id: &'a str, config: ExecConfig) -> BoxFuture<'a, Result<Session>> {
        Box::pin(async move { session::attach(self.session_wire(uid).await?, id, config).await })
    }

    fn connect<'a>(&'a self, uid: &'a str, port: u16) -> BoxFuture<'a, Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let what = format!("connect to port {port} in sandbox {uid}");
            let sandbox = self.get(uid)?;
            let usable = {
                let status = lock(&sandbox.status);
                status.ready && (status.config.host_network || sandbox.netns.is_some())
            };
            if !usable {
                return Err(Error::Other(format!("the supervisor of sandbox {uid} is gone")));
            }
            let netns = sandbox
                .netns
                .as_ref()
                .map(OwnedFd::try_clone)
                .transpose()
                .map_err(io_error(what.as_str()))?;
            let (done, connected) = oneshot::channel();
            std::thread::Builder::new()
                .name("skeg-connect".to_owned())
                .spawn(move || drop(done.send(connect_inside(netns, port))))
                .map_err(io_error(what.as_str()))?;
            let stream = connected
                .await
                .map_err(|_| Error::Other(what.clone()))?
                .and_then(tokio::net::TcpStream::from_std)
                .map_err(io_error(what))?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn writable_dirs(&self, uid: &str, id: &str) -> Vec<PathBuf> {
        if !state::name_is_safe(uid) || !state::name_is_safe(id) {
            return Vec::new();
        }
        let dir = self.layout.container(uid, id);
        [rootfs::UPPER, rootfs::VOLUMES].map(|name| dir.join(name)).to_vec()
    }

    fn usage<'a>(&'a self, uid: &'a str, id: &'a str) -> BoxFuture<'a, Result<Usage>> {
        Box::pin(async move {
            self.cgroups
                .usage(&self.layout.container_cgroup(uid, id))
                .map_err(|_| Error::NoContainer(id.to_owned()))
        })
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}
