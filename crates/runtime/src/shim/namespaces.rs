//! What the containers of a Pod share: its namespaces, their sysctls, `/dev/shm`, the first process
//! of a shared PID namespace.

use super::Step;
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

/// Starts the first process of the Pod's shared PID namespace.
pub(super) fn start_init() -> Step<(i32, OwnedFd)> {
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
