//! Processes that run an instance: whether they end, and how to wait for it.

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

/// How long a process may take to end by itself.
const STOP_TIMEOUT_MS: u16 = 20_000;

/// Asks a process to end and waits until it has.
pub fn stop(pid: i32) -> Result<()> {
    let Some(process) = open(pid)? else { return Ok(()) };
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    if !ended(&process)? {
        // Everything acknowledged is on disk: a kill loses nothing.
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        ended(&process)?;
    }
    Ok(())
}

/// Waits for a process that was killed and still gives its memory back; nothing where it runs on.
pub fn wait_if_killed(pid: i32) -> Result<()> {
    let Some(process) = open(pid)? else { return Ok(()) };
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    if is_killed(&read("status"), &read("stat")) {
        ended(&process)?;
    }
    Ok(())
}

/// By a SIGKILL that waits to be taken, or by the flag of processes that exit (proc(5)).
fn is_killed(status: &str, stat: &str) -> bool {
    const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);
    const PF_EXITING: u64 = 0x4;
    let pending = |line: &str| {
        let set = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(set.trim(), 16).ok()
    };
    // Its name stands in parentheses and may hold anything; the flags are the seventh field after it.
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6));
    status.lines().filter_map(pending).any(|set| set & SIGKILL_BIT != 0)
        || flags.and_then(|text| text.parse::<u64>().ok()).is_some_and(|flags| flags & PF_EXITING != 0)
}

fn open(pid: i32) -> Result<Option<OwnedFd>> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        let error = std::io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error.into()) };
    }
    // SAFETY: the descriptor is new and ours.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).context("a descriptor")?) }))
}

fn ended(process: &OwnedFd) -> Result<bool> {
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, STOP_TIMEOUT_MS)? > 0)
}

#[cfg(test)]
mod tests {
    use super::{is_killed, wait_if_killed};

    #[test]
    fn killed_processes_are_known_and_waited_for() {
        let status = |pending: &str| format!("State:\tR (running)\nSigPnd:\t{pending}\nShdPnd:\t0000\n");
        let stat = |flags: u64| format!("7 (a) b) R 1 7 7 0 -1 {flags} 100 0");
        assert!(!is_killed(&status("0000000000004000"), &stat(0x40_0100)), "SIGTERM is not the end");
        assert!(is_killed(&status("0000000000000100"), &stat(0x40_0100)));
        assert!(is_killed(&status("0"), &stat(0x40_0104)));
        assert!(!is_killed("", ""));
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        wait_if_killed(pid).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "one that runs on is not waited for");
        child.kill().unwrap();
        wait_if_killed(pid).unwrap();
        assert!(child.try_wait().unwrap().is_some(), "it is gone");
    }
}
