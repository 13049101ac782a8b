//! What the containers of a Pod share: its namespaces, their sysctls, `/dev/shm`, the first process
//! of a shared PID namespace.

use super::Step;
use crate::caps;
use crate::protocol::{Context, Failure, FailureKind};
use crate::sys;
use crate::sys::Fork;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::{fs, io};

/// Makes the namespaces that the Pod's containers share, with this process as their first member.
pub(super) fn enter_namespaces(config: &crate::SandboxConfig) -> Step {
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
pub(super) fn make_shm(dir: &Path, host: &OwnedFd) -> Step<OwnedFd> {
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

/// Starts the first process of the Pod's shared PID namespace. `dir` is a directory of the sandbox.
pub(super) fn start_init(dir: &Path) -> Step<(i32, OwnedFd)> {
    let kinds = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    // SAFETY: single-threaded; the child never leaves `init_main`.
    match unsafe { sys::clone3(kinds, None) }.at(|| "make the Pod's PID namespace".into())? {
        Fork::Child => init_main(dir),
        Fork::Parent { pid, .. } => {
            let path = format!("/proc/{pid}/ns/pid");
            let ns = File::open(&path).at(|| format!("open {path}"))?;
            Ok((pid, ns.into()))
        }
    }
}

/// Gives away what a container that may trace this process could reach through it: the host's
/// files by its root, capabilities, the supervisor's arguments and environment.
fn seclude(dir: &Path) -> io::Result<()> {
    fs::write("/proc/self/comm", "skeg-init")?;
    forget_texts()?;
    sys::mount("", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, "")?;
    let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    sys::mount("skeg-init", dir, "tmpfs", flags, "mode=555,size=4k")?;
    std::env::set_current_dir(dir)?;
    sys::pivot_to_cwd()?;
    caps::bound(caps::Set::default())?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    // Upstream's pause container runs as this user.
    const PAUSE: libc::c_ulong = 65535;
    // SAFETY: no memory is involved; the calls change this process alone.
    unsafe {
        sys::check_long(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
        sys::check_long(libc::syscall(libc::SYS_setresgid, PAUSE, PAUSE, PAUSE))?;
        sys::check_long(libc::syscall(libc::SYS_setresuid, PAUSE, PAUSE, PAUSE))?;
    }
    caps::apply(caps::Set::default())?;
    // A change of the user clears it.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong).map(drop)
}

/// Overwrites this process's arguments, but for its own name, and its environment.
fn forget_texts() -> io::Result<()> {
    const NAME: &[u8] = b"skeg-init";
    // `proc_pid_stat(5)`: the name in parentheses is the second field, and these follow at the end.
    const ARG_START: usize = 48;
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, rest) = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
    let fields: Vec<usize> = rest.split_whitespace().skip(ARG_START - 3).flat_map(str::parse).collect();
    let [arg_start, arg_end, env_start, env_end, ..] = fields[..] else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    for (start, end, text) in [(arg_start, arg_end, NAME), (env_start, env_end, &[][..])] {
        let len = end.saturating_sub(start);
        if start == 0 || len < text.len() {
            continue;
        }
        // SAFETY: the kernel says that this is the writable memory of the arguments or of the
        // environment of this process, which is single-threaded and reads neither any more.
        unsafe {
            std::ptr::write_bytes(start as *mut u8, 0, len);
            std::ptr::copy_nonoverlapping(text.as_ptr(), start as *mut u8, text.len());
        }
    }
    Ok(())
}

/// Reaps, until the supervisor goes.
fn init_main(dir: &Path) -> ! {
    if seclude(dir).is_err() {
        // SAFETY: ends this process, which is a copy of the supervisor.
        unsafe { libc::_exit(1) };
    }
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
