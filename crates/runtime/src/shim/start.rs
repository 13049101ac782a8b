//! How the supervisor comes to be: from the program that an agent starts to one that serves.

use super::namespaces::{enter_namespaces, make_shm, start_init};
use super::poller::{Poller, Source};
use super::{CHUNK_LEN, Shim, Step, other};
use crate::cgroup::Cgroups;
use crate::protocol::Context;
use crate::state::{Layout, SandboxRecord};
use crate::sys::Fork;
use crate::types::Resources;
use crate::{state, sys};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::{fs, io};

/// What the supervisor may need beside the containers: it is counted in the Pod's group, whose
/// limit would else be reached before those of the containers, and the kernel would look for its
/// victim in the whole Pod. A supervisor takes 1 to 2 MB; buffers of slow streams come on top.
const SUPERVISOR_MEMORY_BYTES: i64 = 16 << 20;

/// Writes the one report to the agent that started this; false when it is gone.
pub(super) fn report(text: &[u8]) -> bool {
    sys::write(&io::stdout(), text).is_ok()
}

/// None in the process that is done after forking the supervisor proper.
pub(super) fn set_up(layout: Layout, uid: String) -> Step<Option<Box<Shim>>> {
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
        true => start_init(&layout.sandbox(&uid)).map(|(pid, ns)| (Some(pid), Some(ns)))?,
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
pub(crate) fn with_supervisor(pod: &Resources) -> Resources {
    let memory = pod.memory_limit_bytes.map(|limit| match limit {
        1.. => limit.saturating_add(SUPERVISOR_MEMORY_BYTES),
        unlimited => unlimited,
    });
    Resources { memory_limit_bytes: memory, ..pod.clone() }
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
