//! The supervisor of one Pod: a small single-threaded process that owns the Pod's namespaces,
//! its containers' streams, log files and exit codes, and answers agents over a socket.
//! Whatever happens to agents, it works on; it ends when its sandbox is removed.

use crate::cgroup::Cgroups;
use crate::devices;
use crate::log::{self, LogFile, Partial};
use crate::process::{self, Child, Creation, NOTE_LEN_MAX, Note, START, Stdio};
use crate::protocol::{Call, Context, FRAME_LEN_MAX, Failure, FailureKind, Message, Reply, Request, VERSION};
use crate::protocol::{decode, encode};
use crate::state::{self, ContainerRecord, Layout, SandboxRecord};
use crate::sys::{self, Fork};
use crate::types::{
    ContainerConfig, ContainerState, ContainerStatus, ExecConfig, Resources, SandboxStatus, TerminalSize,
};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

type Step<T = ()> = Result<T, Failure>;

/// How many agents, execs and attaches at once.
const CONNECTIONS_MAX: usize = 256;
/// Replies that an agent does not take; then it is cut off.
const OUTPUT_LEN_MAX: usize = 4 << 20;
const CHUNK_LEN: usize = 16 * 1024;
const STDIN_CHUNK_LEN: usize = 4 * 1024;
/// What the supervisor may need beside the containers: it is counted in the Pod's group, whose
/// limit would else be reached before those of the containers, and the kernel would look for its
/// victim in the whole Pod. A supervisor takes 1 to 2 MB; buffers of slow streams come on top.
const SUPERVISOR_MEMORY_BYTES: i64 = 16 << 20;

fn other(text: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Other, text)
}

/// What became ready.
#[derive(Clone, Debug)]
enum Source {
    Listener,
    Children,
    Connection,
    /// A container's child has something to tell.
    Notes(String),
    /// An exec's child, by its connection.
    ExecNotes(u64),
    Output(String, usize),
    /// A container takes input again.
    Stdin(String),
    /// Input of an attach session, by its connection.
    AttachIn(u64),
    /// An attach session takes output again.
    AttachOut(u64, usize),
}

/// Ready descriptors by token.
struct Poller {
    epoll: OwnedFd,
    sources: BTreeMap<u64, Source>,
    next: u64,
}

impl Poller {
    fn new() -> io::Result<Poller> {
        // SAFETY: a new descriptor that nobody else owns.
        let epoll = unsafe { OwnedFd::from_raw_fd(sys::check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Poller { epoll, sources: BTreeMap::new(), next: 1 })
    }

    fn control(&self, action: libc::c_int, fd: &impl AsRawFd, events: i32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: the event is valid for the call.
        sys::check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), action, fd.as_raw_fd(), &mut event) })
            .map(drop)
    }

    fn add(&mut self, fd: &impl AsRawFd, events: i32, source: Source) -> io::Result<u64> {
        let token = self.next;
        self.next += 1;
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)?;
        self.sources.insert(token, source);
        Ok(token)
    }

    /// Changes what is waited for; 0 pauses. A hang-up is always told, so a pause of a closed
    /// stream must remove it instead.
    fn change(&self, fd: &impl AsRawFd, events: i32, token: u64) {
        let _ = self.control(libc::EPOLL_CTL_MOD, fd, events, token);
    }

    fn remove(&mut self, fd: &impl AsRawFd, token: u64) {
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, token);
        self.sources.remove(&token);
    }

    /// Waits; returns tokens and what happened to them.
    fn wait(&self) -> Vec<(u64, u32)> {
        const EVENTS_MAX: usize = 16;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        // SAFETY: room for EVENTS_MAX events.
        let n =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), EVENTS_MAX as i32, -1) };
        events.iter().take(n.max(0) as usize).map(|e| (e.u64, e.events)).collect()
    }
}

/// A call to be answered later.
type Pending = (u64, u64);

/// A registered descriptor.
struct Watched {
    fd: OwnedFd,
    token: u64,
}

/// One output stream of a container.
struct Output {
    fd: OwnedFd,
    /// None while a slow attach session holds it up.
    token: Option<u64>,
}

struct Container {
    config: ContainerConfig,
    status: ContainerStatus,
    pid: i32,
    pidfd: OwnedFd,
    notes: Option<Watched>,
    creating: Option<Pending>,
    starting: Option<Pending>,
    removing: Vec<Pending>,
    warnings: Vec<String>,
    outputs: [Option<Output>; 2],
    partials: [Partial; 2],
    log: LogFile,
    terminal: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdin_buffer: Vec<u8>,
    /// Set while the container does not take input.
    stdin_token: Option<u64>,
    /// Close stdin once the buffer is written.
    stdin_ends: bool,
}

struct AttachOutput {
    fd: OwnedFd,
    buffer: Vec<u8>,
    token: Option<u64>,
}

enum Kind {
    Control,
    Exec {
        pid: i32,
        seq: u64,
        notes: Option<Watched>,
        terminal: Option<OwnedFd>,
    },
    Attach {
        id: String,
        stdin: Option<Watched>,
        stdin_paused: bool,
        outputs: [Option<AttachOutput>; 2],
        /// The container's exit code, told once the session took all output.
        ended: Option<i32>,
    },
}

struct Connection {
    socket: OwnedFd,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
    output: Vec<u8>,
    hello: bool,
    /// Close once the output is written.
    closing: bool,
    kind: Kind,
}

struct Shim {
    layout: Layout,
    uid: String,
    record: SandboxRecord,
    cgroups: Cgroups,
    poller: Poller,
    listener: UnixListener,
    children: OwnedFd,
    host_mounts: OwnedFd,
    host_pids: OwnedFd,
    pod_pids: Option<OwnedFd>,
    init: Option<i32>,
    shm: Option<OwnedFd>,
    containers: BTreeMap<String, Container>,
    /// Running execs: pid to connection.
    execs: BTreeMap<i32, u64>,
    connections: BTreeMap<u64, Connection>,
    shutdown: Option<Pending>,
    buffer: Box<[u8; CHUNK_LEN]>,
}

/// The arguments of the supervisor program, as the agent passes them.
pub fn arguments(layout: &Layout, uid: &str) -> Vec<OsString> {
    vec![
        "skeg-shim".into(),
        layout.id.clone().into(),
        uid.into(),
        layout.run_dir.clone().into(),
        layout.data_dir.clone().into(),
    ]
}

/// The supervisor program. Standard input is the sandbox's locked file, standard output takes the
/// word that it is ready, or why not.
pub fn main(args: &[OsString]) -> i32 {
    let [id, uid, run_dir, data_dir] = args else { return 2 };
    let text = |s: &OsString| s.to_string_lossy().into_owned();
    let layout = Layout { id: text(id), run_dir: PathBuf::from(run_dir), data_dir: PathBuf::from(data_dir) };
    match set_up(layout, text(uid)) {
        Ok(None) => 0,
        Ok(Some(shim)) => shim.run(),
        Err(failure) => {
            report(failure.text.as_bytes());
            1
        }
    }
}

/// Writes the one report to the agent that started this; false when it is gone.
fn report(text: &[u8]) -> bool {
    sys::write(&io::stdout(), text).is_ok()
}

/// None in the process that is done after forking the supervisor proper.
fn set_up(layout: Layout, uid: String) -> Step<Option<Box<Shim>>> {
    let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0);
    // SAFETY: nothing opened before main may live on; none of it is owned by anyone here.
    unsafe {
        sys::close_except(&[]);
        libc::setsid();
        libc::umask(0o022);
        for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT] {
            libc::signal(signal, libc::SIG_IGN);
        }
        // Give memory back early: this process waits for days.
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
    }
    std::env::set_current_dir("/").at(|| "chdir /".into())?;
    let record: SandboxRecord =
        state::read(&layout.record(&uid)).at(|| "read the sandbox's record".into())?;
    let config = &record.config;
    let cgroups = Cgroups::detect()?;
    let group = layout.shim_cgroup(&uid);
    cgroups.create(&group)?;
    cgroups.set(&layout.pod_cgroup(&uid), &with_supervisor(&config.resources))?;
    // The child starts in its group, and belongs to init, not to the agent.
    let into = cgroups.open(&group)?;
    // SAFETY: single-threaded; the child goes on as the supervisor.
    match unsafe { sys::clone3(0, into.as_ref()) }.at(|| "fork".into())? {
        Fork::Parent { .. } => return Ok(None),
        Fork::Child => {}
    }
    cgroups.join_v1(&group)?;
    // The last to be killed for memory, where the host permits.
    let _ = fs::write("/proc/self/oom_score_adj", "-998");
    let _ = fs::write("/proc/self/comm", "skeg-shim");
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).at(|| "become subreaper".into())?;

    let open_ns = |name: &str| -> Step<OwnedFd> {
        let path = format!("/proc/self/ns/{name}");
        File::open(&path).map(OwnedFd::from).at(|| format!("open {path}"))
    };
    let (host_mounts, host_pids) = (open_ns("mnt")?, open_ns("pid")?);
    enter_namespaces(config)?;
    let shm = if config.host_ipc { None } else { Some(make_shm(&layout.sandbox(&uid), &host_mounts)?) };
    let (init, pod_pids) = match config.share_process_namespace && !config.host_pid {
        true => start_init().map(|(pid, ns)| (Some(pid), Some(ns)))?,
        false => (None, None),
    };

    let children = children_signals()?;
    let listener = bind(&layout, &uid)?;
    let mut poller = Poller::new()?;
    poller.add(&listener, libc::EPOLLIN, Source::Listener)?;
    poller.add(&children, libc::EPOLLIN, Source::Children)?;
    let shim = Shim {
        layout,
        uid,
        record,
        cgroups,
        poller,
        listener,
        children,
        host_mounts,
        host_pids,
        pod_pids,
        init,
        shm,
        containers: BTreeMap::new(),
        execs: BTreeMap::new(),
        connections: BTreeMap::new(),
        shutdown: None,
        buffer: Box::new([0; CHUNK_LEN]),
    };
    // An agent that did not live to read this never learns of the sandbox: do not leave it behind.
    if !report(b"ok") {
        let _ = fs::remove_file(shim.layout.socket(&shim.uid));
        return Err(other("the agent is gone"));
    }
    let null = File::options().read(true).write(true).open("/dev/null").at(|| "open /dev/null".into())?;
    sys::dup_to(null.as_raw_fd(), 1).at(|| "dup".into())?;
    Ok(Some(Box::new(shim)))
}

/// The limits of the Pod's own group.
fn with_supervisor(pod: &Resources) -> Resources {
    let memory = pod.memory_limit_bytes.map(|limit| match limit {
        1.. => limit.saturating_add(SUPERVISOR_MEMORY_BYTES),
        unlimited => unlimited,
    });
    Resources { memory_limit_bytes: memory, ..pod.clone() }
}

/// Makes the namespaces that the Pod's containers share, with this process as their first member.
fn enter_namespaces(config: &crate::SandboxConfig) -> Step {
    let mut kinds = 0;
    if !config.host_network {
        // A Pod in the host's network also has the host's name.
        kinds |= libc::CLONE_NEWNET | libc::CLONE_NEWUTS;
    }
    if !config.host_ipc {
        kinds |= libc::CLONE_NEWIPC;
    }
    sys::unshare(kinds).at(|| "make the Pod's namespaces".into())?;
    if !config.host_network {
        let name = config.hostname.as_bytes();
        // SAFETY: the name is valid for its length.
        sys::check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })
            .at(|| format!("set the hostname {:?}", config.hostname))?;
        loopback_up().at(|| "bring up the loopback link".into())?;
    }
    for (name, value) in &config.sysctls {
        let name = &name.replace('/', ".");
        let allowed = if name.starts_with("net.") {
            !config.host_network
        } else {
            !config.host_ipc
                && (name.starts_with("kernel.shm")
                    || name.starts_with("kernel.msg")
                    || name == "kernel.sem"
                    || name.starts_with("fs.mqueue."))
        };
        if !allowed || name.contains("..") {
            return Err(Failure::new(
                FailureKind::Config,
                format!("sysctl {name:?} is not of a namespace that the Pod has to itself"),
            ));
        }
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::write(&path, value).at(|| format!("set sysctl {name} to {value:?}"))?;
    }
    Ok(())
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: all zero is a valid ifreq; the socket is closed by its owner.
    unsafe {
        let socket = sys::check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        let socket = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        sys::check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request)).map(drop)
    }
}

/// Makes the Pod's `/dev/shm`, alone in a mount namespace that the returned descriptor holds:
/// the host's mount table never has it, so nothing can be left there.
fn make_shm(dir: &Path, host: &OwnedFd) -> Step<OwnedFd> {
    const OPTIONS: &str = "mode=1777,size=65536k";
    let made = (|| {
        sys::unshare(libc::CLONE_NEWNS)?;
        sys::mount("", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, "")?;
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        sys::mount("shm", dir, "tmpfs", flags, OPTIONS)?;
        let ns = File::open("/proc/self/ns/mnt")?;
        std::env::set_current_dir(dir)?;
        sys::pivot_to_cwd()?;
        Ok(OwnedFd::from(ns))
    })();
    sys::setns(host, libc::CLONE_NEWNS).at(|| "return to the host's mounts".into())?;
    made.at(|| "make the Pod's /dev/shm".into())
}

/// Starts the first process of the Pod's shared PID namespace.
fn start_init() -> Step<(i32, OwnedFd)> {
    // SAFETY: single-threaded; the child never leaves `init_main`.
    match unsafe { sys::clone3(libc::CLONE_NEWPID, None) }.at(|| "make the Pod's PID namespace".into())? {
        Fork::Child => init_main(),
        Fork::Parent { pid, .. } => {
            let path = format!("/proc/{pid}/ns/pid");
            let ns = File::open(&path).at(|| format!("open {path}"))?;
            Ok((pid, ns.into()))
        }
    }
}

/// Reaps, until the supervisor goes.
fn init_main() -> ! {
    let _ = fs::write("/proc/self/comm", "skeg-init");
    let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong);
    // SAFETY: the supervisor's descriptors are copies that nobody here uses; waiting touches no
    // memory but locals.
    unsafe {
        sys::close_except(&[]);
        // Also the standard ones: the sandbox's lock is among them.
        for fd in 0..3 {
            libc::close(fd);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        loop {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            let mut signal = 0;
            libc::sigwait(&set, &mut signal);
        }
    }
}

/// A descriptor that is readable when a child ended.
fn children_signals() -> Step<OwnedFd> {
    // SAFETY: the set is a valid local; the new descriptor is ours alone.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        sys::check(fd).map(|fd| OwnedFd::from_raw_fd(fd)).at(|| "signalfd".into())
    }
}

/// Listens on the sandbox's socket, which only root may use.
fn bind(layout: &Layout, uid: &str) -> Step<UnixListener> {
    let what = || format!("listen on {}", layout.socket(uid).display());
    // Through a descriptor: the full path may be longer than a socket's name can be.
    let dir = sys::open_path(&layout.run_dir).at(what)?;
    let path = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), Layout::socket_name(uid));
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).at(what),
        _ => {}
    }
    // SAFETY: no memory is involved.
    let old = unsafe { libc::umask(0o177) };
    let listener = UnixListener::bind(&path);
    // SAFETY: as above.
    unsafe { libc::umask(old) };
    let listener = listener.at(what)?;
    listener.set_nonblocking(true).at(what)?;
    Ok(listener)
}

impl Shim {
    fn run(mut self) -> i32 {
        loop {
            for (token, events) in self.poller.wait() {
                // An earlier event of this batch may have removed the source.
                let Some(source) = self.poller.sources.get(&token).cloned() else { continue };
                match source {
                    Source::Listener => self.accept(),
                    Source::Children => self.reap(),
                    Source::Connection => self.on_connection(token, events),
                    Source::Notes(id) => self.on_notes(&id),
                    Source::ExecNotes(connection) => self.on_exec_notes(connection),
                    Source::Output(id, stream) => self.on_output(&id, stream),
                    Source::Stdin(id) => self.write_stdin(&id),
                    Source::AttachIn(connection) => self.on_attach_in(connection),
                    Source::AttachOut(connection, stream) => self.on_attach_out(connection, stream),
                }
            }
            if let Some((connection, seq)) = self.shutdown
                && self.containers.is_empty()
            {
                // The name goes first: who can connect is served.
                let _ = fs::remove_file(self.layout.socket(&self.uid));
                self.reply(connection, seq, Ok(Reply::Done));
                return 0;
            }
            if self.init == Some(0) {
                // Without the first process of the PID namespace nothing can run in it again.
                return 1;
            }
        }
    }

    // Connections.

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if self.connections.len() >= CONNECTIONS_MAX || socket.set_nonblocking(true).is_err() {
                continue;
            }
            let socket = OwnedFd::from(socket);
            if let Ok(token) = self.poller.add(&socket, libc::EPOLLIN, Source::Connection) {
                let connection = Connection {
                    socket,
                    input: Vec::new(),
                    fds: Vec::new(),
                    output: Vec::new(),
                    hello: false,
                    closing: false,
                    kind: Kind::Control,
                };
                self.connections.insert(token, connection);
            }
        }
    }

    fn on_connection(&mut self, token: u64, events: u32) {
        if events & libc::EPOLLOUT as u32 != 0 {
            self.flush(token);
        }
        if events & !(libc::EPOLLOUT as u32) == 0 {
            return;
        }
        loop {
            let Some(connection) = self.connections.get_mut(&token) else { return };
            let received = sys::receive_with_fds(
                connection.socket.as_raw_fd(),
                &mut self.buffer[..],
                &mut connection.fds,
            );
            match received {
                Ok(0) => return self.close(token),
                Ok(n) => connection.input.extend_from_slice(&self.buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.close(token),
            }
            if connection.input.len() > FRAME_LEN_MAX + CHUNK_LEN || connection.fds.len() > sys::FDS_MAX {
                return self.close(token);
            }
            loop {
                let Some(connection) = self.connections.get_mut(&token) else { return };
                match decode::<Call>(&mut connection.input) {
                    Ok(Some(call)) => self.answer(token, call),
                    Ok(None) => break,
                    Err(_) => return self.close(token),
                }
            }
            if let Some(connection) = self.connections.get_mut(&token)
                && connection.input.is_empty()
            {
                connection.input = Vec::new();
            }
        }
    }

    fn answer(&mut self, token: u64, call: Call) {
        let seq = call.seq;
        let hello = self.connections.get(&token).is_some_and(|c| c.hello);
        let result = match call.request {
            Request::Hello { version: VERSION } => {
                if let Some(connection) = self.connections.get_mut(&token) {
                    connection.hello = true;
                }
                Ok(Some(Reply::Hello { version: VERSION, status: Box::new(self.status()) }))
            }
            Request::Hello { version } => {
                let text = format!("this supervisor speaks protocol version {VERSION}, not {version}");
                self.reply(token, seq, Err(other(text)));
                return self.close_when_written(token);
            }
            _ if !hello => return self.close(token),
            Request::Create { config } => self.create(token, seq, *config).map(|()| None),
            Request::Start { id } => self.start(token, seq, &id).map(|()| None),
            Request::Signal { id, signal } => self.signal(&id, signal).map(|()| Some(Reply::Done)),
            Request::Remove { id } => self.remove(token, seq, &id).map(|()| None),
            Request::Update { id, resources } => self.update(&id, resources).map(|()| Some(Reply::Done)),
            Request::ReopenLog { id } => self.reopen_log(&id).map(|()| Some(Reply::Done)),
            Request::Shutdown => {
                self.shut_down(token, seq);
                Ok(None)
            }
            Request::Exec { id, config } => self.exec(token, seq, &id, &config).map(|()| None),
            Request::Attach { id, config } => self.attach(token, &id, &config).map(|()| Some(Reply::Session)),
            Request::Resize { size } => self.resize(token, size).map(|()| Some(Reply::Done)),
        };
        match result {
            Ok(None) => {}
            Ok(Some(reply)) => self.reply(token, seq, Ok(reply)),
            Err(failure) => self.reply(token, seq, Err(failure)),
        }
    }

    fn reply(&mut self, token: u64, seq: u64, result: Result<Reply, Failure>) {
        self.send(token, &Message::Reply { seq, result });
    }

    fn send(&mut self, token: u64, message: &Message) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.output.extend(encode(message));
        if connection.output.len() > OUTPUT_LEN_MAX {
            return self.close(token);
        }
        self.flush(token);
    }

    fn broadcast(&mut self, message: &Message) {
        let listeners: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| c.hello && matches!(c.kind, Kind::Control))
            .map(|(token, _)| *token)
            .collect();
        for token in listeners {
            self.send(token, message);
        }
    }

    fn flush(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        while !connection.output.is_empty() {
            match sys::send_with_fds(connection.socket.as_raw_fd(), &connection.output, &[]) {
                Ok(n) => drop(connection.output.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.close(token),
            }
        }
        let waits = !connection.output.is_empty();
        if !waits {
            connection.output = Vec::new();
            if connection.closing {
                return self.close(token);
            }
        }
        let events = libc::EPOLLIN | if waits { libc::EPOLLOUT } else { 0 };
        self.poller.change(&connection.socket, events, token);
    }

    fn close_when_written(&mut self, token: u64) {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.closing = true;
            self.flush(token);
        }
    }

    fn close(&mut self, token: u64) {
        let Some(connection) = self.connections.remove(&token) else { return };
        self.poller.remove(&connection.socket, token);
        match connection.kind {
            Kind::Control => {}
            Kind::Exec { pid, notes, .. } => {
                if let Some(notes) = notes {
                    self.poller.remove(&notes.fd, notes.token);
                }
                if self.execs.remove(&pid).is_some() {
                    // It leads a session of its own: its group goes with it.
                    // SAFETY: no memory is involved; the child is not reaped yet, so the number
                    // is still its own.
                    unsafe {
                        libc::kill(-pid, libc::SIGKILL);
                        libc::kill(pid, libc::SIGKILL);
                    }
                }
            }
            Kind::Attach { id, stdin, outputs, .. } => {
                if let Some(stdin) = stdin {
                    self.poller.remove(&stdin.fd, stdin.token);
                    self.stdin_ended(&id);
                }
                for output in outputs.into_iter().flatten() {
                    if let Some(token) = output.token {
                        self.poller.remove(&output.fd, token);
                    }
                }
                self.resume_outputs(&id);
            }
        }
    }

    // Containers.

    fn status(&self) -> SandboxStatus {
        // SAFETY: always succeeds.
        let pid = unsafe { libc::getpid() };
        let netns = (!self.record.config.host_network).then(|| PathBuf::from(format!("/proc/{pid}/ns/net")));
        SandboxStatus {
            config: self.record.config.clone(),
            ready: true,
            netns,
            supervisor_pid: pid,
            created_at_ns: self.record.created_at_ns,
            containers: self
                .containers
                .values()
                .filter(|c| c.creating.is_none())
                .map(|c| c.status.clone())
                .collect(),
        }
    }

    fn group(&self, id: &str) -> String {
        self.layout.container_cgroup(&self.uid, id)
    }

    fn get(&mut self, id: &str) -> Step<&mut Container> {
        self.containers.get_mut(id).ok_or_else(|| Failure::no_container(id))
    }

    fn create(&mut self, token: u64, seq: u64, config: ContainerConfig) -> Step {
        let id = config.id.clone();
        if !state::name_is_safe(&id) || id == "shim" {
            return Err(other(format!("{id:?} is not a container id")));
        }
        if self.shutdown.is_some() {
            return Err(other("the sandbox is being removed"));
        }
        if self.containers.contains_key(&id) {
            return Err(other(format!("container {id} exists")));
        }
        let made = self.spawn(&config);
        match made {
            Ok(mut container) => {
                container.creating = Some((token, seq));
                self.containers.insert(id, container);
                Ok(())
            }
            Err(failure) => {
                self.clean_up(&id);
                Err(failure)
            }
        }
    }

    /// Takes away what a container leaves in the supervisor's care.
    fn clean_up(&self, id: &str) {
        let dir = self.layout.container(&self.uid, id);
        // Without its record the directory is refuse, which the agent collects.
        let _ = fs::remove_file(dir.join("state.json"));
        if let Err(e) = self.cgroups.destroy(&self.group(id)) {
            eprintln!("container {id}: {e}");
        }
    }

    /// Makes groups and streams and forks the child that becomes the container.
    fn spawn(&mut self, config: &ContainerConfig) -> Step<Container> {
        let dir = self.layout.container(&self.uid, &config.id);
        fs::create_dir_all(&dir).at(|| format!("create {}", dir.display()))?;
        let log = LogFile::open(&config.log_path, config.log_rotation)
            .at(|| format!("open the log file {}", config.log_path.display()))?;
        let (nodes, rules) = devices_of(config)?;
        let group = self.group(&config.id);
        self.cgroups.create(&group)?;
        self.cgroups.set(&group, &config.resources)?;
        self.cgroups.kill_as_one(&group)?;
        self.cgroups.set_devices(&group, rules.as_deref())?;
        let into = self.cgroups.open(&group)?;

        let (notes, child_notes) = sys::message_pair().at(|| "socketpair".into())?;
        let pipe = || sys::pipe().at(|| "pipe".into());
        let (mut stdin, mut outputs) = (None, [None, None]);
        let stdio = if config.tty {
            Stdio::Terminal
        } else {
            let child_stdin = match config.stdin {
                true => {
                    let (read, write) = pipe()?;
                    stdin = Some(write);
                    Some(read)
                }
                false => None,
            };
            let (out, child_out) = pipe()?;
            let (err, child_err) = pipe()?;
            outputs = [Some(out), Some(err)];
            Stdio::Pipes([child_stdin, Some(child_out), Some(child_err)])
        };

        let mut namespaces = 0;
        if let Some(pids) = &self.pod_pids {
            sys::setns(pids, libc::CLONE_NEWPID).at(|| "enter the Pod's PID namespace".into())?;
        } else if !self.record.config.host_pid {
            namespaces = libc::CLONE_NEWPID;
        }
        // SAFETY: single-threaded; the child ends in exec or _exit.
        let fork = unsafe { sys::clone3(namespaces, into.as_ref()) };
        if let Ok(Fork::Child) = fork {
            let child = Child {
                config,
                cgroups: &self.cgroups,
                cgroup: &group,
                hostname: &self.record.config.hostname,
                notes: child_notes,
                stdio,
            };
            let creation = Creation {
                dir: &dir,
                host_mounts: &self.host_mounts,
                shm: self.shm.as_ref(),
                oom_score_adj: config.resources.oom_score_adj,
                nodes: &nodes,
            };
            process::run_first(child, &creation)
        }
        if self.pod_pids.is_some() {
            sys::setns(&self.host_pids, libc::CLONE_NEWPID).at(|| "leave the Pod's PID namespace".into())?;
        }
        let Fork::Parent { pid, pidfd } = fork.at(|| "fork the container's process".into())? else {
            return Err(other("unreachable: the child does not return"));
        };
        drop(stdio);
        drop(child_notes);

        sys::set_nonblocking(&notes)?;
        let notes_token = self.poller.add(&notes, libc::EPOLLIN, Source::Notes(config.id.clone()))?;
        let mut container = Container {
            config: config.clone(),
            status: ContainerStatus {
                id: config.id.clone(),
                name: config.name.clone(),
                attempt: config.attempt,
                state: ContainerState::Created,
                pid: Some(pid),
                created_at_ns: sys::realtime_ns(),
                started_at_ns: None,
                finished_at_ns: None,
                exit_code: None,
                signal: None,
                oom_killed: false,
                message: String::new(),
                log_path: config.log_path.clone(),
                labels: config.labels.clone(),
                identity: None,
            },
            pid,
            pidfd,
            notes: Some(Watched { fd: notes, token: notes_token }),
            creating: None,
            starting: None,
            removing: Vec::new(),
            warnings: Vec::new(),
            outputs: [None, None],
            partials: [Partial::default(), Partial::default()],
            log,
            terminal: None,
            stdin: None,
            stdin_buffer: Vec::new(),
            stdin_token: None,
            stdin_ends: false,
        };
        for (stream, output) in outputs.into_iter().enumerate() {
            if let Some(fd) = output {
                container.outputs[stream] = Some(watch_output(&mut self.poller, &config.id, stream, fd)?);
            }
        }
        if let Some(stdin) = stdin {
            sys::set_nonblocking(&stdin)?;
            container.stdin = Some(stdin);
        }
        Ok(container)
    }

    /// Hears what the child has to tell.
    fn on_notes(&mut self, id: &str) {
        let mut text = [0; NOTE_LEN_MAX];
        loop {
            let Some(container) = self.containers.get_mut(id) else { return };
            let Some(notes) = &container.notes else { return };
            let mut fds = Vec::new();
            let received = sys::receive_with_fds(notes.fd.as_raw_fd(), &mut text, &mut fds);
            let note = match received {
                Ok(n) if n > 0 => serde_json::from_slice::<Note>(&text[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                _ => {
                    if let Some(notes) = container.notes.take() {
                        self.poller.remove(&notes.fd, notes.token);
                    }
                    return self.notes_ended(id);
                }
            };
            match note {
                Ok(Note::Warning(text)) => container.warnings.push(text),
                Ok(Note::Identity(identity)) => container.status.identity = Some(identity),
                Ok(Note::Terminal) => {
                    if let Err(e) = self.take_terminal(id, fds.pop()) {
                        eprintln!("container {id}: terminal: {}", e.text);
                    }
                }
                Ok(Note::Ready) => self.created(id),
                Ok(Note::Failed(failure)) => self.failed(id, failure),
                Err(e) => self.failed(id, other(e.to_string())),
            }
        }
    }

    fn take_terminal(&mut self, id: &str, terminal: Option<OwnedFd>) -> Step {
        let Some(terminal) = terminal else { return Err(other("no descriptor came")) };
        sys::set_nonblocking(&terminal)?;
        let output = watch_output(&mut self.poller, id, 0, terminal.try_clone()?)?;
        let container = self.get(id)?;
        container.outputs[0] = Some(output);
        container.stdin = if container.config.stdin { Some(terminal.try_clone()?) } else { None };
        container.terminal = Some(terminal);
        Ok(())
    }

    fn created(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some((token, seq)) = container.creating.take() else { return };
        let (status, warnings) = (container.status.clone(), std::mem::take(&mut container.warnings));
        self.save(id, false);
        self.broadcast(&Message::Changed { status: status.clone() });
        self.reply(token, seq, Ok(Reply::Container { status: Box::new(status), warnings }));
    }

    /// The child could not become the container.
    fn failed(&mut self, id: &str, failure: Failure) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some((token, seq)) = container.creating.take() {
            self.forget(id);
            self.reply(token, seq, Err(failure));
        } else if let Some((token, seq)) = container.starting.take() {
            container.status.message.clone_from(&failure.text);
            // What runtimes report for a program that could not be started.
            const START_FAILED: i32 = 128;
            self.ended(id, START_FAILED, None);
            self.reply(token, seq, Err(failure));
        }
    }

    /// The channel's end: the program runs, or the child died on the way.
    fn notes_ended(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.creating.is_some() {
            return self.failed(id, other("the container's process died while it was set up"));
        }
        let Some((token, seq)) = container.starting.take() else { return };
        container.status.state = ContainerState::Running;
        container.status.started_at_ns = Some(sys::realtime_ns());
        let status = container.status.clone();
        self.save(id, false);
        self.broadcast(&Message::Changed { status: status.clone() });
        self.reply(token, seq, Ok(Reply::Container { status: Box::new(status), warnings: Vec::new() }));
    }

    fn start(&mut self, token: u64, seq: u64, id: &str) -> Step {
        let container = self.get(id)?;
        if container.creating.is_some() || container.status.state != ContainerState::Created {
            return Err(other(format!("container {id} is not in the state created")));
        }
        let Some(notes) = &container.notes else {
            return Err(Failure::new(FailureKind::Start, "the container's process died before its start"));
        };
        if container.starting.is_some() {
            return Err(other(format!("container {id} is being started")));
        }
        sys::send_with_fds(notes.fd.as_raw_fd(), &[START], &[]).at(|| "start".into())?;
        container.starting = Some((token, seq));
        Ok(())
    }

    fn signal(&mut self, id: &str, signal: i32) -> Step {
        let group = self.group(id);
        let container = self.get(id)?;
        if container.status.state == ContainerState::Exited {
            return Ok(());
        }
        if signal == libc::SIGKILL {
            return Ok(self.cgroups.kill(&group)?);
        }
        match sys::pidfd_send_signal(&container.pidfd, signal) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other.at(|| format!("signal {signal}")),
        }
    }

    fn update(&mut self, id: &str, resources: Resources) -> Step {
        let group = self.group(id);
        self.get(id)?;
        self.cgroups.set(&group, &resources)?;
        self.get(id)?.config.resources = resources;
        Ok(())
    }

    fn reopen_log(&mut self, id: &str) -> Step {
        self.get(id)?.log.reopen().at(|| "reopen the log file".into())
    }

    fn remove(&mut self, token: u64, seq: u64, id: &str) -> Step {
        let group = self.group(id);
        let Some(container) = self.containers.get_mut(id) else {
            // Removing what is gone succeeds.
            self.clean_up(id);
            self.reply(token, seq, Ok(Reply::Done));
            return Ok(());
        };
        container.removing.push((token, seq));
        if container.status.state == ContainerState::Exited {
            self.removed(id);
            return Ok(());
        }
        Ok(self.cgroups.kill(&group)?)
    }

    fn removed(&mut self, id: &str) {
        let waiting =
            self.containers.get_mut(id).map(|c| std::mem::take(&mut c.removing)).unwrap_or_default();
        self.forget(id);
        self.broadcast(&Message::Removed { id: id.to_owned() });
        for (token, seq) in waiting {
            self.reply(token, seq, Ok(Reply::Done));
        }
    }

    /// Drops a container with all it has here.
    fn forget(&mut self, id: &str) {
        let Some(container) = self.containers.remove(id) else { return };
        if let Some(notes) = container.notes {
            self.poller.remove(&notes.fd, notes.token);
        }
        for output in container.outputs.into_iter().flatten() {
            if let Some(token) = output.token {
                self.poller.remove(&output.fd, token);
            }
        }
        if let (Some(stdin), Some(token)) = (&container.stdin, container.stdin_token) {
            self.poller.remove(stdin, token);
        }
        // Whoever ends the sandbox takes all its groups and directories away at once.
        if self.shutdown.is_none() {
            self.clean_up(id);
        }
    }

    fn shut_down(&mut self, token: u64, seq: u64) {
        self.shutdown = Some((token, seq));
        for id in self.containers.keys().cloned().collect::<Vec<_>>() {
            if self.containers.get(&id).is_some_and(|c| c.status.state == ContainerState::Exited) {
                self.removed(&id);
            } else if let Err(e) = self.cgroups.kill(&self.group(&id)) {
                eprintln!("container {id}: {e}");
            }
        }
    }

    fn save(&self, id: &str, durable: bool) {
        let Some(container) = self.containers.get(id) else { return };
        let path = self.layout.container(&self.uid, id).join("state.json");
        let record =
            ContainerRecord { status: container.status.clone(), boot_id: self.record.boot_id.clone() };
        if let Err(e) = state::write(&path, &record, durable) {
            eprintln!("{}: {e}", path.display());
        }
    }

    // Ends.

    fn reap(&mut self) {
        let mut info = [0; 512];
        while sys::read(&self.children, &mut info).is_ok() {}
        loop {
            let mut status = 0;
            // SAFETY: the status is a valid local.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            let (code, signal) = if libc::WIFSIGNALED(status) {
                (128 + libc::WTERMSIG(status), Some(libc::WTERMSIG(status)))
            } else {
                (libc::WEXITSTATUS(status), None)
            };
            if self.init == Some(pid) {
                self.init = Some(0);
            } else if let Some(token) = self.execs.get(&pid).copied() {
                // What it had to tell comes before its end.
                self.on_exec_notes(token);
                self.execs.remove(&pid);
                self.send(token, &Message::Exited { code });
                self.close_when_written(token);
            } else if let Some(id) =
                self.containers.values().find(|c| c.pid == pid).map(|c| c.config.id.clone())
            {
                self.on_notes(&id);
                if self.containers.get(&id).is_some_and(|c| c.status.state != ContainerState::Exited) {
                    self.ended(&id, code, signal);
                }
            }
        }
    }

    /// Records the end of a container, then tells of it.
    fn ended(&mut self, id: &str, code: i32, signal: Option<i32>) {
        let group = self.group(id);
        let oom_kills = self.cgroups.oom_kills(&group);
        if self.pod_pids.is_some() || self.record.config.host_pid {
            // No PID namespace ended with the process: what it left goes now.
            if let Err(e) = self.cgroups.kill(&group) {
                eprintln!("container {id}: {e}");
            }
        }
        for stream in 0..2 {
            self.drain(id, stream);
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        if let (Some(stdin), Some(token)) = (container.stdin.take(), container.stdin_token.take()) {
            self.poller.remove(&stdin, token);
        }
        container.terminal = None;
        let status = &mut container.status;
        status.state = ContainerState::Exited;
        status.pid = None;
        status.finished_at_ns = Some(sys::realtime_ns());
        status.exit_code = Some(code);
        status.signal = signal;
        status.oom_killed = oom_kills > 0 && code != 0;
        let status = status.clone();
        // What is being removed need not survive a power cut.
        let durable = container.removing.is_empty() && self.shutdown.is_none();
        self.save(id, durable);
        self.broadcast(&Message::Changed { status });
        let mut sessions = Vec::new();
        for (token, connection) in &mut self.connections {
            if let Kind::Attach { id: attached, ended, .. } = &mut connection.kind
                && attached == id
            {
                *ended = Some(code);
                sessions.push(*token);
            }
        }
        for token in sessions {
            self.end_session(token);
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some((token, seq)) = container.starting.take() {
            // It cannot be: the channel ended before the process did.
            self.reply(token, seq, Err(Failure::new(FailureKind::Start, "the container's process died")));
        }
        let removing = self.containers.get(id).is_some_and(|c| !c.removing.is_empty());
        if removing || self.shutdown.is_some() {
            self.removed(id);
        }
    }

    // Streams.

    /// Passes on what a container wrote; false at the stream's end or when there is nothing now.
    fn pump(&mut self, id: &str, stream: usize) -> bool {
        let Some(container) = self.containers.get_mut(id) else { return false };
        let Some(output) = &container.outputs[stream] else { return false };
        let n = match sys::read(&output.fd, &mut self.buffer[..]) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return true,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
            // A terminal without processes.
            Err(_) => 0,
        };
        let name = ["stdout", "stderr"][stream];
        let time = log::timestamp(sys::realtime_ns());
        let mut lines = Vec::with_capacity(n + 128);
        if n == 0 {
            log::format_end(&mut lines, &time, name, &mut container.partials[stream]);
            container.log.append(&lines);
            if let Some(Output { fd, token: Some(token) }) = container.outputs[stream].take() {
                self.poller.remove(&fd, token);
            }
            return false;
        }
        let chunk = &self.buffer[..n];
        log::format_lines(&mut lines, &time, name, &mut container.partials[stream], chunk);
        container.log.append(&lines);
        let mut held = false;
        for (token, connection) in &mut self.connections {
            let Kind::Attach { id: attached, outputs, .. } = &mut connection.kind else { continue };
            let Some(out) = outputs[stream].as_mut().filter(|_| attached == id) else { continue };
            out.buffer.extend_from_slice(chunk);
            write_out(out);
            if !out.buffer.is_empty() {
                held = true;
                if out.token.is_none() {
                    out.token =
                        self.poller.add(&out.fd, libc::EPOLLOUT, Source::AttachOut(*token, stream)).ok();
                }
            }
        }
        if held
            && let Some(output) = &mut container.outputs[stream]
            && let Some(token) = output.token.take()
        {
            // A reader that does not keep up holds the container up: nothing is dropped, and no
            // more than this is kept.
            self.poller.remove(&output.fd, token);
        }
        true
    }

    fn on_output(&mut self, id: &str, stream: usize) {
        self.pump(id, stream);
    }

    /// Reads a stream to its present end and closes it.
    fn drain(&mut self, id: &str, stream: usize) {
        // No more than the pipe could hold, in case another process goes on writing.
        const CHUNKS_MAX: usize = (1 << 20) / CHUNK_LEN;
        for _ in 0..CHUNKS_MAX {
            if !self.pump(id, stream) {
                break;
            }
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(output) = container.outputs[stream].take()
            && let Some(token) = output.token
        {
            self.poller.remove(&output.fd, token);
        }
        let mut lines = Vec::new();
        let time = log::timestamp(sys::realtime_ns());
        log::format_end(&mut lines, &time, ["stdout", "stderr"][stream], &mut container.partials[stream]);
        container.log.append(&lines);
    }

    fn on_attach_out(&mut self, token: u64, stream: usize) {
        let Some(Connection { kind: Kind::Attach { id, outputs, .. }, .. }) =
            self.connections.get_mut(&token)
        else {
            return;
        };
        let id = id.clone();
        if let Some(out) = &mut outputs[stream] {
            write_out(out);
            if out.buffer.is_empty()
                && let Some(watched) = out.token.take()
            {
                self.poller.remove(&out.fd, watched);
            }
        }
        self.end_session(token);
        self.resume_outputs(&id);
    }

    /// Tells an attach session of the container's end, once it has taken all output.
    fn end_session(&mut self, token: u64) {
        let Some(Connection { kind: Kind::Attach { outputs, ended: Some(code), .. }, .. }) =
            self.connections.get(&token)
        else {
            return;
        };
        if outputs.iter().flatten().all(|out| out.buffer.is_empty()) {
            let code = *code;
            self.send(token, &Message::Exited { code });
            self.close_when_written(token);
        }
    }

    /// Reads on from streams that no session holds up any more.
    fn resume_outputs(&mut self, id: &str) {
        for stream in 0..2 {
            let held = self.connections.values().any(|c| match &c.kind {
                Kind::Attach { id: attached, outputs, .. } if attached == id => {
                    outputs[stream].as_ref().is_some_and(|out| !out.buffer.is_empty())
                }
                _ => false,
            });
            let Some(container) = self.containers.get_mut(id) else { return };
            if let Some(output) = &mut container.outputs[stream]
                && output.token.is_none()
                && !held
            {
                output.token =
                    self.poller.add(&output.fd, libc::EPOLLIN, Source::Output(id.to_owned(), stream)).ok();
            }
        }
    }

    fn attach(&mut self, token: u64, id: &str, config: &ExecConfig) -> Step {
        let container = self.get(id)?;
        if container.creating.is_some() || container.status.state == ContainerState::Exited {
            return Err(other(format!("container {id} is not running")));
        }
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(()) };
        let mut fds = std::mem::take(&mut connection.fds).into_iter();
        let mut next = |wanted: bool| -> Step<Option<OwnedFd>> {
            if !wanted {
                return Ok(None);
            }
            let fd = fds.next().ok_or_else(|| other("too few descriptors came"))?;
            sys::set_nonblocking(&fd)?;
            Ok(Some(fd))
        };
        let stdin = next(config.stdin)?;
        let outputs = [next(config.stdout)?, next(config.stderr)?];
        let stdin = match stdin {
            Some(fd) => {
                Some(Watched { token: self.poller.add(&fd, libc::EPOLLIN, Source::AttachIn(token))?, fd })
            }
            None => None,
        };
        let outputs = outputs.map(|o| o.map(|fd| AttachOutput { fd, buffer: Vec::new(), token: None }));
        connection.kind =
            Kind::Attach { id: id.to_owned(), stdin, stdin_paused: false, outputs, ended: None };
        Ok(())
    }

    fn on_attach_in(&mut self, token: u64) {
        let Some(Connection { kind: Kind::Attach { id, stdin, stdin_paused, .. }, .. }) =
            self.connections.get_mut(&token)
        else {
            return;
        };
        let id = id.clone();
        let Some(input) = stdin.as_ref() else { return };
        match sys::read(&input.fd, &mut self.buffer[..STDIN_CHUNK_LEN]) {
            Ok(n) if n > 0 => {
                let Some(container) = self.containers.get_mut(&id) else { return };
                if container.stdin.is_none() {
                    return;
                }
                container.stdin_buffer.extend_from_slice(&self.buffer[..n]);
                self.write_stdin(&id);
                let full = self.containers.get(&id).is_some_and(|c| !c.stdin_buffer.is_empty());
                if full
                    && let Some(Connection {
                        kind: Kind::Attach { stdin: Some(input), stdin_paused, .. },
                        ..
                    }) = self.connections.get_mut(&token)
                {
                    *stdin_paused = true;
                    let _ = self.poller.control(libc::EPOLL_CTL_DEL, &input.fd, 0, input.token);
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            _ => {
                *stdin_paused = false;
                if let Some(input) = stdin.take() {
                    self.poller.remove(&input.fd, input.token);
                }
                self.stdin_ended(&id);
            }
        }
    }

    /// The input of a session ended: with `stdin_once` so does the container's.
    fn stdin_ended(&mut self, id: &str) {
        if let Some(container) = self.containers.get_mut(id)
            && container.config.stdin_once
        {
            container.stdin_ends = true;
            self.write_stdin(id);
        }
    }

    /// Gives the container what it has not taken yet.
    fn write_stdin(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(stdin) = &container.stdin else { return };
        let mut broken = false;
        while !container.stdin_buffer.is_empty() {
            match sys::write(stdin, &container.stdin_buffer) {
                Ok(n) => drop(container.stdin_buffer.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    broken = true;
                    container.stdin_buffer.clear();
                }
            }
        }
        if !container.stdin_buffer.is_empty() {
            if container.stdin_token.is_none() {
                container.stdin_token =
                    self.poller.add(stdin, libc::EPOLLOUT, Source::Stdin(id.to_owned())).ok();
            }
            return;
        }
        if let Some(token) = container.stdin_token.take() {
            self.poller.remove(stdin, token);
        }
        if broken || container.stdin_ends {
            container.stdin = None;
        }
        for connection in self.connections.values_mut() {
            if let Kind::Attach { id: attached, stdin: Some(input), stdin_paused, .. } = &mut connection.kind
                && attached == id
                && std::mem::take(stdin_paused)
            {
                let _ = self.poller.control(libc::EPOLL_CTL_ADD, &input.fd, libc::EPOLLIN, input.token);
            }
        }
    }

    fn resize(&mut self, token: u64, size: TerminalSize) -> Step {
        let Some(Connection { kind: Kind::Attach { id, .. }, .. }) = self.connections.get(&token) else {
            return Err(other("not an attach session"));
        };
        let id = id.clone();
        match &self.get(&id)?.terminal {
            Some(terminal) => process::resize(terminal, size).at(|| "resize".into()),
            None => Ok(()),
        }
    }

    // Execs.

    fn exec(&mut self, token: u64, seq: u64, id: &str, config: &ExecConfig) -> Step {
        let group = self.group(id);
        let container = self.containers.get(id).ok_or_else(|| Failure::no_container(id))?;
        if container.status.state != ContainerState::Running {
            return Err(Failure::new(FailureKind::Start, format!("container {id} is not running")));
        }
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(()) };
        let mut fds = std::mem::take(&mut connection.fds).into_iter();
        let mut next = |wanted: bool| if wanted { fds.next() } else { None };
        let stdio = match config.tty {
            true => Stdio::Terminal,
            false => Stdio::Pipes([next(config.stdin), next(config.stdout), next(config.stderr)]),
        };
        let (notes, child_notes) = sys::message_pair().at(|| "socketpair".into())?;
        let into = self.cgroups.open(&group)?;
        sys::setns(&container.pidfd, libc::CLONE_NEWPID)
            .map_err(|_| Failure::new(FailureKind::Start, format!("container {id} is not running")))?;
        // SAFETY: single-threaded; the child ends in exec or _exit.
        let fork = unsafe { sys::clone3(0, into.as_ref()) };
        if let Ok(Fork::Child) = fork {
            let child = Child {
                config: &container.config,
                cgroups: &self.cgroups,
                cgroup: &group,
                hostname: &self.record.config.hostname,
                notes: child_notes,
                stdio,
            };
            process::run_exec(child, &container.pidfd, &config.args)
        }
        sys::setns(&self.host_pids, libc::CLONE_NEWPID)
            .at(|| "leave the container's PID namespace".into())?;
        let Fork::Parent { pid, .. } = fork.at(|| "fork".into())? else {
            return Err(other("unreachable: the child does not return"));
        };
        drop((stdio, child_notes));
        sys::set_nonblocking(&notes)?;
        let notes_token = self.poller.add(&notes, libc::EPOLLIN, Source::ExecNotes(token))?;
        connection.kind =
            Kind::Exec { pid, seq, notes: Some(Watched { fd: notes, token: notes_token }), terminal: None };
        self.execs.insert(pid, token);
        Ok(())
    }

    fn on_exec_notes(&mut self, token: u64) {
        let mut text = [0; NOTE_LEN_MAX];
        loop {
            let Some(connection) = self.connections.get_mut(&token) else { return };
            let Kind::Exec { seq, notes: watched, terminal, .. } = &mut connection.kind else { return };
            let seq = *seq;
            let Some(notes) = watched.as_ref() else { return };
            let mut fds = Vec::new();
            match sys::receive_with_fds(notes.fd.as_raw_fd(), &mut text, &mut fds) {
                Ok(n) if n > 0 => match serde_json::from_slice::<Note>(&text[..n]) {
                    Ok(Note::Terminal) => *terminal = fds.pop(),
                    Ok(Note::Failed(failure)) => {
                        if let Some(notes) = watched.take() {
                            self.poller.remove(&notes.fd, notes.token);
                        }
                        return self.reply(token, seq, Err(failure));
                    }
                    Ok(Note::Ready | Note::Warning(_) | Note::Identity(_)) | Err(_) => {}
                },
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    // The command runs.
                    let terminal = terminal.take();
                    if let Some(notes) = watched.take() {
                        self.poller.remove(&notes.fd, notes.token);
                    }
                    let frame = encode(&Message::Reply { seq, result: Ok(Reply::Session) });
                    let fds: Vec<_> = terminal.iter().map(|t| t.as_fd()).collect();
                    let socket: RawFd = connection.socket.as_raw_fd();
                    match sys::send_with_fds(socket, &frame, &fds) {
                        Ok(n) if n == frame.len() => {}
                        _ => self.close(token),
                    }
                    return;
                }
            }
        }
    }
}

fn watch_output(poller: &mut Poller, id: &str, stream: usize, fd: OwnedFd) -> Step<Output> {
    sys::set_nonblocking(&fd)?;
    let token = poller.add(&fd, libc::EPOLLIN, Source::Output(id.to_owned(), stream))?;
    Ok(Output { fd, token: Some(token) })
}

/// Writes what an attach session takes now; a session that is gone takes everything.
fn write_out(out: &mut AttachOutput) {
    while !out.buffer.is_empty() {
        match sys::write(&out.fd, &out.buffer) {
            Ok(n) => drop(out.buffer.drain(..n)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => out.buffer.clear(),
        }
    }
    out.buffer = Vec::new();
}

/// The device nodes of a container and the rules for its group (None: every device).
fn devices_of(config: &ContainerConfig) -> Step<(Vec<devices::Node>, Option<Vec<devices::Rule>>)> {
    let mut nodes = if config.security.privileged { devices::host_nodes() } else { Vec::new() };
    let mut rules = devices::default_rules();
    for device in &config.devices {
        let node = devices::lookup(&device.host_path, &device.container_path)
            .at(|| format!("device {}", device.host_path.display()))?;
        let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        rules.push(devices::Rule {
            block: node.block,
            major: Some(node.major),
            minor: Some(node.minor),
            access: access.to_owned(),
        });
        nodes.push(node);
    }
    Ok((nodes, (!config.security.privileged).then_some(rules)))
}
