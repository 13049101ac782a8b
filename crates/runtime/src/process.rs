//! The child that becomes a container's first process, or a command inside a container: joins
//! groups and namespaces, gives up what it must not keep, and runs the program.
//! Everything here runs in a forked copy of the supervisor and ends in `exec` or `_exit`.

use crate::caps;
use crate::cgroup::Cgroups;
use crate::devices;
use crate::protocol::{Context, Failure, FailureKind, os_text};
use crate::rootfs;
use crate::seccomp;
use crate::sys;
use crate::types::{ContainerConfig, Identity, Seccomp, TerminalSize};
use crate::user;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

type Step<T = ()> = Result<T, Failure>;

/// What the child tells the supervisor. The end of the channel after `Ready` and a start means
/// that the program runs.
#[derive(Debug, Serialize, Deserialize)]
pub enum Note {
    Warning(String),
    /// Who the program will run as.
    Identity(Identity),
    /// The terminal's descriptor comes with it.
    Terminal,
    Ready,
    Failed(Failure),
}

/// The longest note.
pub const NOTE_LEN_MAX: usize = 8 * 1024;

/// The byte that lets a created container go.
pub const START: u8 = b's';

/// Where the child's standard streams come from.
pub enum Stdio {
    /// stdin, stdout, stderr; None: `/dev/null`.
    Pipes([Option<OwnedFd>; 3]),
    /// A terminal of the container's own.
    Terminal,
}

/// What both kinds of children need.
pub struct Child<'a> {
    pub config: &'a ContainerConfig,
    pub cgroups: &'a Cgroups,
    /// The container's group.
    pub cgroup: &'a str,
    pub hostname: &'a str,
    /// The other end is the supervisor's.
    pub notes: OwnedFd,
    pub stdio: Stdio,
}

/// What only the first process needs.
pub struct Creation<'a> {
    pub dir: &'a Path,
    pub host_mounts: &'a OwnedFd,
    /// The mount namespace whose root is the Pod's `/dev/shm`. None: use the host's.
    pub shm: Option<&'a OwnedFd>,
    pub oom_score_adj: Option<i32>,
    pub nodes: &'a [devices::Node],
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Becomes the container's first process.
pub fn run_first(child: Child<'_>, creation: &Creation<'_>) -> ! {
    let notes = child.notes.as_raw_fd();
    let Err(failure) = first(&child, creation);
    fail(notes, failure)
}

/// Becomes a command in the container of `target`.
pub fn run_exec(child: Child<'_>, target: &OwnedFd, args: &[String]) -> ! {
    let notes = child.notes.as_raw_fd();
    let Err(failure) = exec(&child, target, args);
    fail(notes, failure)
}

fn fail(notes: RawFd, failure: Failure) -> ! {
    send_note(notes, &Note::Failed(failure), &[]);
    // SAFETY: ends the process at once, without running what belongs to the supervisor.
    unsafe { libc::_exit(128) }
}

fn note(channel: &OwnedFd, note: &Note, fds: &[BorrowedFd<'_>]) {
    send_note(channel.as_raw_fd(), note, fds);
}

fn send_note(channel: RawFd, note: &Note, fds: &[BorrowedFd<'_>]) {
    let text = serde_json::to_vec(note).unwrap_or_default();
    // When the supervisor is gone, so is the one who could care.
    let _ = sys::send_with_fds(channel, &text[..text.len().min(NOTE_LEN_MAX)], fds);
}

fn first(child: &Child<'_>, creation: &Creation<'_>) -> Step<Infallible> {
    let config = child.config;
    detach(child, &[Some(creation.host_mounts), creation.shm])?;
    child.cgroups.join_v1(child.cgroup)?;
    if let Some(adj) = creation.oom_score_adj {
        set_oom_score(adj, &child.notes)?;
    }
    let shm = creation.shm.map(|shm| take_shm(shm, creation.host_mounts)).transpose()?;
    let shm = match (shm, creation.shm) {
        (None, _) => Some(
            sys::open_tree(libc::AT_FDCWD, Path::new("/dev/shm"), sys::OPEN_TREE_CLONE)
                .at(|| "open the host's /dev/shm".into())?,
        ),
        (shm, _) => shm,
    };
    sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP).at(|| "make namespaces".into())?;
    let filter = filter_of(config)?;
    rootfs::build(&mut rootfs::Plan {
        layers: &config.layers,
        dir: creation.dir,
        image_volumes: &config.image_volumes,
        mounts: config.mounts.clone(),
        nodes: creation.nodes,
        security: &config.security,
        cgroups: child.cgroups,
        shm,
    })?;
    let identity = identity_of(config)?;
    note(&child.notes, &Note::Identity(identity.clone()), &[]);
    attach_stdio(child, &identity, true)?;
    finish(child, &config.args, &identity, filter, true)
}

fn exec(child: &Child<'_>, target: &OwnedFd, args: &[String]) -> Step<Infallible> {
    detach(child, &[Some(target)])?;
    let filter = filter_of(child.config)?;
    child.cgroups.join_v1(child.cgroup)?;
    if let Some(adj) = child.config.resources.oom_score_adj {
        set_oom_score(adj, &child.notes)?;
    }
    sys::setns(target, libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP)
        .map_err(|_| Failure::new(FailureKind::Start, "container is not running"))?;
    let identity = identity_of(child.config)?;
    attach_stdio(child, &identity, false)?;
    finish(child, args, &identity, filter, false)
}

/// Leaves the supervisor's session, signal settings and descriptors behind.
fn detach(child: &Child<'_>, keep: &[Option<&OwnedFd>]) -> Step {
    let mut kept: Vec<RawFd> = keep.iter().flatten().map(|fd| fd.as_raw_fd()).collect();
    kept.push(child.notes.as_raw_fd());
    if let Stdio::Pipes(pipes) = &child.stdio {
        kept.extend(pipes.iter().flatten().map(|fd| fd.as_raw_fd()));
    }
    // SAFETY: what is closed belongs to the supervisor's state, which this copy never drops.
    unsafe { sys::close_except(&kept) };
    // SAFETY: none of these touches memory but the local set.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        libc::umask(0o022);
        libc::setsid();
    }
    // Processes of the container must not look into this one before it is theirs.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).at(|| "prctl".into())?;
    sys::cloexec_from(3).at(|| "close_range".into())
}

fn set_oom_score(adj: i32, notes: &OwnedFd) -> Step {
    match fs::write("/proc/self/oom_score_adj", adj.to_string()) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            note(notes, &Note::Warning(format!("oom_score_adj {adj}: {}", os_text(&e))), &[]);
            Ok(())
        }
        other => other.at(|| format!("set oom_score_adj to {adj}")),
    }
}

/// A detached copy of the Pod's `/dev/shm`, which lives in a mount namespace of its own so that
/// the host's mount table never holds it.
fn take_shm(shm: &OwnedFd, host: &OwnedFd) -> Step<OwnedFd> {
    let what = || "take the Pod's /dev/shm".to_owned();
    sys::setns(shm, libc::CLONE_NEWNS).at(what)?;
    let tree = sys::open_tree(libc::AT_FDCWD, Path::new("/"), sys::OPEN_TREE_CLONE).at(what)?;
    sys::setns(host, libc::CLONE_NEWNS).at(what)?;
    Ok(tree)
}

fn filter_of(config: &ContainerConfig) -> Step<Option<Vec<seccomp::Insn>>> {
    let security = &config.security;
    if security.privileged {
        return Ok(None);
    }
    let other = |text| Failure::new(FailureKind::Other, text);
    let capabilities = || caps::Set::from_names(&security.capabilities).map(caps::Set::names).map_err(other);
    let profile = match &security.seccomp {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::RuntimeDefault => seccomp::runtime_default(&capabilities()?),
        Seccomp::Localhost(path) => {
            let text = fs::read_to_string(path)
                .at(|| format!("cannot load seccomp profile {:?}", path.display().to_string()))?;
            seccomp::parse(&text, &capabilities()?).map_err(other)?
        }
    };
    Ok(Some(seccomp::compile(&profile)))
}

fn identity_of(config: &ContainerConfig) -> Step<Identity> {
    user::resolve(&config.user, &rootfs::read_inside("/etc/passwd"), &rootfs::read_inside("/etc/group"))
        .map_err(|text| Failure::new(FailureKind::Config, text))
}

/// Gives the process its standard streams.
fn attach_stdio(child: &Child<'_>, identity: &Identity, console: bool) -> Step {
    let what = || "open the standard streams".to_owned();
    match &child.stdio {
        Stdio::Terminal => {
            let (master, slave) = open_terminal(identity)?;
            if console {
                bind_console(&slave)?;
            }
            note(&child.notes, &Note::Terminal, &[master.as_fd()]);
            // SAFETY: makes the terminal the controlling one of this new session.
            sys::check(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) }).at(what)?;
            (0..3).try_for_each(|target| sys::dup_to(slave.as_raw_fd(), target)).at(what)
        }
        Stdio::Pipes(pipes) => {
            for (target, pipe) in pipes.iter().enumerate() {
                let target = target as RawFd;
                match pipe {
                    Some(pipe) => {
                        // `/dev/stdout` opens the pipe anew, which only its owner may.
                        // SAFETY: an open descriptor.
                        unsafe { libc::fchown(pipe.as_raw_fd(), identity.uid, identity.gid) };
                        sys::dup_to(pipe.as_raw_fd(), target).at(what)?;
                    }
                    None => {
                        let null =
                            fs::OpenOptions::new().read(true).write(true).open("/dev/null").at(what)?;
                        sys::dup_to(null.as_raw_fd(), target).at(what)?;
                    }
                }
            }
            Ok(())
        }
    }
}

/// A pseudo terminal of the container's own devpts: (master, slave).
fn open_terminal(identity: &Identity) -> Step<(OwnedFd, OwnedFd)> {
    let what = || "open a terminal".to_owned();
    let open = |path: &CString| {
        // SAFETY: a valid C string; the new descriptor is ours alone.
        sys::check(unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) })
            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let master = open(&c"/dev/pts/ptmx".to_owned()).at(what)?;
    let (mut unlock, mut number) = (0, 0u32);
    // SAFETY: both calls read or write one integer.
    unsafe {
        sys::check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &mut unlock)).at(what)?;
        sys::check(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &mut number)).at(what)?;
    }
    let slave = open(&sys::cstr(format!("/dev/pts/{number}")).at(what)?).at(what)?;
    // SAFETY: an open descriptor.
    unsafe { libc::fchown(slave.as_raw_fd(), identity.uid, u32::MAX) };
    Ok((master, slave))
}

/// Shows the first process's terminal as `/dev/console`.
fn bind_console(slave: &OwnedFd) -> Step {
    let what = || "mount /dev/console".to_owned();
    let source = fs::read_link(format!("/proc/self/fd/{}", slave.as_raw_fd())).at(what)?;
    drop(fs::OpenOptions::new().create(true).truncate(false).write(true).open("/dev/console").at(what)?);
    sys::mount(&source.display().to_string(), Path::new("/dev/console"), "", libc::MS_BIND, "").at(what)
}

pub fn resize(terminal: &impl AsRawFd, size: TerminalSize) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call reads one winsize.
    sys::check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) }).map(drop)
}

/// The program's environment, with what every container has unless it says otherwise.
fn environment(child: &Child<'_>, identity: &Identity) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut put = |key: &str, value: &str| match env.iter_mut().find(|(k, _)| k == key) {
        Some((_, old)) => value.clone_into(old),
        None => env.push((key.to_owned(), value.to_owned())),
    };
    put("PATH", DEFAULT_PATH);
    put("HOSTNAME", child.hostname);
    if matches!(child.stdio, Stdio::Terminal) {
        put("TERM", "xterm");
    }
    child.config.env.iter().for_each(|(key, value)| put(key, value));
    if !env.iter().any(|(key, value)| key == "HOME" && !value.is_empty()) {
        env.retain(|(key, _)| key != "HOME");
        env.push(("HOME".to_owned(), identity.home.clone()));
    }
    env
}

/// Gives up privileges, waits for the start where there is one to wait for, runs the program.
fn finish(
    child: &Child<'_>,
    args: &[String],
    identity: &Identity,
    filter: Option<Vec<seccomp::Insn>>,
    wait: bool,
) -> Step<Infallible> {
    let security = &child.config.security;
    let env = environment(child, identity);
    let cwd = if child.config.cwd.is_empty() { "/" } else { &child.config.cwd };
    if wait {
        drop(rootfs::make_dir(Path::new(cwd))?);
    }
    let c_args = strings(args.iter().cloned())?;
    let c_env = strings(env.iter().map(|(k, v)| format!("{k}={v}")))?;

    // Without no_new_privs a filter needs a privilege that is about to go.
    let late = if security.no_new_privileges {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).at(|| "set no_new_privs".into())?;
        filter
    } else {
        install(filter)?;
        None
    };
    become_user(child, identity)?;
    std::env::set_current_dir(cwd).map_err(|e| {
        Failure::new(
            FailureKind::Start,
            format!("chdir to cwd ({cwd:?}) set in config.json failed: {}", os_text(&e)),
        )
    })?;
    // The kernel forgets this when the identity changes, so it comes after: the supervisor's
    // death is the container's.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong).at(|| "prctl".into())?;
    let program = args
        .first()
        .map(|name| find_program(name, &env))
        .unwrap_or_else(|| Err(Failure::new(FailureKind::Start, "no command specified")));
    note(&child.notes, &Note::Ready, &[]);
    if wait {
        let mut byte = [0];
        if sys::read(&child.notes, &mut byte).ok() != Some(1) || byte[0] != START {
            // SAFETY: the supervisor gave this container up.
            unsafe { libc::_exit(128) };
        }
    }
    let program = program?;
    install(late)?;
    let c_program = sys::cstr(&program).at(|| "exec".into())?;
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&c_args), pointers(&c_env));
    // SAFETY: null-terminated arrays of valid C strings that live on.
    unsafe { libc::execve(c_program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    let e = io::Error::last_os_error();
    Err(Failure::new(FailureKind::Start, format!("exec {}: {}", program.display(), exec_text(&e))))
}

fn exec_text(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::ENOEXEC) => "exec format error".to_owned(),
        _ => os_text(e),
    }
}

fn strings(list: impl Iterator<Item = String>) -> Step<Vec<CString>> {
    list.map(|s| {
        CString::new(s).map_err(|_| {
            Failure::new(FailureKind::Start, "an argument or variable contains a NUL character".to_owned())
        })
    })
    .collect()
}

fn install(filter: Option<Vec<seccomp::Insn>>) -> Step {
    match filter {
        Some(filter) => seccomp::install(&filter).at(|| "install the seccomp filter".into()),
        None => Ok(()),
    }
}

fn become_user(child: &Child<'_>, identity: &Identity) -> Step {
    let security = &child.config.security;
    let permitted = caps::permitted().at(|| "read capabilities".into())?;
    let wanted = if security.privileged {
        permitted
    } else {
        caps::Set::from_names(&security.capabilities).map_err(|t| Failure::new(FailureKind::Other, t))?
    };
    let granted = caps::Set(wanted.0 & permitted.0);
    if granted != wanted {
        let missing = caps::Set(wanted.0 & !permitted.0).names().into_iter().collect::<Vec<_>>().join(", ");
        note(&child.notes, &Note::Warning(format!("this host cannot grant {missing}")), &[]);
    }
    caps::bound(granted).at(|| "limit capabilities".into())?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 1).at(|| "prctl".into())?;
    let groups: Vec<libc::gid_t> = identity.groups.clone();
    // SAFETY: the array is valid for its length; the rest are plain numbers.
    unsafe {
        sys::check(libc::setgroups(groups.len(), groups.as_ptr())).at(|| "setgroups".into())?;
        sys::check(libc::setresgid(identity.gid, identity.gid, identity.gid))
            .at(|| format!("setgid {}", identity.gid))?;
        sys::check(libc::setresuid(identity.uid, identity.uid, identity.uid))
            .at(|| format!("setuid {}", identity.uid))?;
    }
    sys::prctl(libc::PR_SET_KEEPCAPS, 0).at(|| "prctl".into())?;
    caps::apply(granted).at(|| "set capabilities".into())
}

/// Finds the program as a shell would, with the container's own PATH and permissions.
fn find_program(name: &str, env: &[(String, String)]) -> Step<PathBuf> {
    let refuse = |text: String| Err(Failure::new(FailureKind::Start, format!("exec: {name:?}: {text}")));
    if name.contains('/') {
        return match fs::metadata(name) {
            Err(e) => refuse(format!("stat {name}: {}", os_text(&e))),
            Ok(m) if m.is_dir() => refuse("is a directory".into()),
            Ok(_) if !executable(Path::new(name)) => refuse("permission denied".into()),
            Ok(_) => Ok(PathBuf::from(name)),
        };
    }
    let path = env.iter().find(|(key, _)| key == "PATH").map_or("", |(_, value)| value);
    path.split(':')
        .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
        .find(|candidate| fs::metadata(candidate).is_ok_and(|m| m.is_file()) && executable(candidate))
        .map_or_else(|| refuse("executable file not found in $PATH".into()), Ok)
}

fn executable(path: &Path) -> bool {
    // Root may "execute" what nobody may, by access(2)'s answer on some file systems: ask the
    // mode too.
    let any_bit = fs::metadata(path).is_ok_and(|m| m.mode() & 0o111 != 0 && m.permissions().mode() != 0);
    let Ok(c_path) = sys::cstr(path) else { return false };
    // SAFETY: a valid C string.
    any_bit && unsafe { libc::access(c_path.as_ptr(), libc::X_OK) } == 0
}
