//! `skeg up --detach`: the cluster runs in a process of its own; this one passes on what it says
//! until the node is Ready.

use crate::instance::Instance;
use crate::{UserError, refuse};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Names the inherited end of the pipe on which the cluster's process reports.
const REPORT_FD: &str = "SKEG_REPORT_FD";

/// Runs this same command without `--detach` in a session of its own.
pub fn start(instance: &Instance) -> Result<()> {
    let (reader, writer) = std::io::pipe().context("a pipe")?;
    let writer: OwnedFd = writer.into();
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
    let mut command = Command::new(std::env::current_exe().context("this program's own path")?);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.env(REPORT_FD, writer.as_raw_fd().to_string());
    let fd = writer.as_raw_fd();
    // SAFETY: between fork and exec only async-signal-safe system calls are made.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            // Whatever else the caller has open (a lock, a pipe that someone reads to its end) must
            // not live as long as the cluster.
            if libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) < 0
                || libc::fcntl(fd, libc::F_SETFD, 0) < 0
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = command.spawn().context("cannot start the cluster's process")?;
    drop(writer);
    for line in BufReader::new(reader).lines() {
        let line = line?;
        match line.split_once(' ') {
            // The cluster starts whether anybody reads this or not.
            Some(("say", text)) => drop(writeln!(std::io::stdout(), "{text}")),
            Some(("ready", _)) => return Ok(()),
            Some(("refused", text)) => return Err(UserError(text.to_owned()).into()),
            Some(("failed", text)) => bail!("{text}"),
            _ => {}
        }
    }
    let status = child.wait()?;
    refuse!(
        "the cluster's process ended early ({status}); its last words are in {}",
        instance.log_path().display()
    )
}

/// What a running cluster tells whoever started it.
pub struct Report(Option<File>);

impl Report {
    /// To the parent where there is one, to standard output otherwise.
    pub fn from_environment() -> Self {
        let fd = std::env::var(REPORT_FD).ok().and_then(|text| text.parse().ok());
        // SAFETY: the parent made this descriptor for us and nothing else here owns it.
        let file = fd.map(|fd: i32| unsafe { File::from_raw_fd(fd) });
        if let Some(file) = &file {
            // SAFETY: a plain fcntl: containers must not inherit the pipe.
            unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        Report(file)
    }

    pub fn say(&mut self, text: &str) {
        match &mut self.0 {
            None => drop(writeln!(std::io::stdout(), "{text}")),
            Some(pipe) => drop(writeln!(pipe, "say {text}")),
        }
    }

    /// The node is Ready: the parent may go.
    pub fn ready(&mut self) {
        if let Some(mut pipe) = self.0.take() {
            let _ = writeln!(pipe, "ready .");
        }
    }

    /// The cluster could not start. Without a parent the error is for the caller to print.
    pub fn failed(&mut self, error: &anyhow::Error) {
        if let Some(pipe) = &mut self.0 {
            let kind = if error.downcast_ref::<UserError>().is_some() { "refused" } else { "failed" };
            let _ = writeln!(pipe, "{kind} {}", format!("{error:#}").replace('\n', " "));
        }
    }
}
