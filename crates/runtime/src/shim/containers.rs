//! Containers that are there: their limits, signals, ends and removal.

use super::connections::Kind;
use super::streams::Output;
use super::{Pending, Shim, Step, Watched};
use crate::log::{LogFile, Partial};
use crate::protocol::{Context, Failure, FailureKind, Message, Reply};
use crate::state::ContainerRecord;
use crate::types::{ContainerConfig, ContainerState, ContainerStatus, Resources, SandboxStatus};
use crate::{state, sys};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub(super) struct Container {
    pub(super) config: ContainerConfig,
    pub(super) status: ContainerStatus,
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) notes: Option<Watched>,
    pub(super) creating: Option<Pending>,
    pub(super) starting: Option<Pending>,
    pub(super) removing: Vec<Pending>,
    pub(super) warnings: Vec<String>,
    pub(super) outputs: [Option<Output>; 2],
    pub(super) partials: [Partial; 2],
    pub(super) log: LogFile,
    pub(super) terminal: Option<OwnedFd>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdin_buffer: Vec<u8>,
    /// Set while the container does not take input.
    pub(super) stdin_token: Option<u64>,
    /// Close stdin once the buffer is written.
    pub(super) stdin_ends: bool,
}

impl Shim {
    pub(super) fn status(&self) -> SandboxStatus {
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

    pub(super) fn group(&self, id: &str) -> String {
        self.layout.container_cgroup(&self.uid, id)
    }

    pub(super) fn get(&mut self, id: &str) -> Step<&mut Container> {
        self.containers.get_mut(id).ok_or_else(|| Failure::no_container(id))
    }

    /// Takes away what a container leaves in the supervisor's care.
    pub(super) fn clean_up(&self, id: &str) {
        let dir = self.layout.container(&self.uid, id);
        // Without its record the directory is refuse, which the agent collects.
        let _ = fs::remove_file(dir.join("state.json"));
        if let Err(e) = self.cgroups.destroy(&self.group(id)) {
            eprintln!("container {id}: {e}");
        }
    }

    pub(super) fn signal(&mut self, id: &str, signal: i32) -> Step {
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

    pub(super) fn update(&mut self, id: &str, resources: Resources) -> Step {
        let group = self.group(id);
        self.get(id)?;
        self.cgroups.set(&group, &resources)?;
        self.get(id)?.config.resources = resources;
        Ok(())
    }

    pub(super) fn reopen_log(&mut self, id: &str) -> Step {
        self.get(id)?.log.reopen().at(|| "reopen the log file".into())
    }

    pub(super) fn remove(&mut self, token: u64, seq: u64, id: &str) -> Step {
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
    pub(super) fn forget(&mut self, id: &str) {
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

    pub(super) fn shut_down(&mut self, token: u64, seq: u64) {
        self.shutdown = Some((token, seq));
        for id in self.containers.keys().cloned().collect::<Vec<_>>() {
            if self.containers.get(&id).is_some_and(|c| c.status.state == ContainerState::Exited) {
                self.removed(&id);
            } else if let Err(e) = self.cgroups.kill(&self.group(&id)) {
                eprintln!("container {id}: {e}");
            }
        }
    }

    pub(super) fn save(&self, id: &str, durable: bool) {
        let Some(container) = self.containers.get(id) else { return };
        let path = self.layout.container(&self.uid, id).join("state.json");
        let record =
            ContainerRecord { status: container.status.clone(), boot_id: self.record.boot_id.clone() };
        if let Err(e) = state::write(&path, &record, durable) {
            eprintln!("{}: {e}", path.display());
        }
    }

    pub(super) fn reap(&mut self) {
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
            } else if let Some(id) = self.holder_of(pid) {
                self.on_notes(&id);
                if self.containers.get(&id).is_some_and(|c| c.status.state != ContainerState::Exited) {
                    self.ended(&id, code, signal);
                }
            }
        }
    }

    /// The container whose process this is. Exited ones had it once: the kernel gives it out again.
    fn holder_of(&self, pid: i32) -> Option<String> {
        let holds = |c: &&Container| c.pid == pid && c.status.state != ContainerState::Exited;
        self.containers.values().find(holds).map(|c| c.config.id.clone())
    }

    /// Records the end of a container, then tells of it.
    pub(super) fn ended(&mut self, id: &str, code: i32, signal: Option<i32>) {
        let group = self.group(id);
        let oom_kills = self.cgroups.oom_kills(&group);
        let shares = self.containers.get(id).is_some_and(|c| c.config.target.is_some());
        if shares || self.pod_pids.is_some() || self.record.config.host_pid {
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
}
