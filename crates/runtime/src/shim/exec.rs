//! Commands run in a container that runs.

use super::connections::Kind;
use super::poller::Source;
use super::{Shim, Step, Watched, other};
use crate::process::{Child, NOTE_LEN_MAX, Note, Stdio};
use crate::protocol::{Context, Failure, FailureKind, Message, Reply, encode};
use crate::sys::Fork;
use crate::types::{ContainerState, ExecConfig};
use crate::{process, sys};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

impl Shim {
    pub(super) fn exec(&mut self, token: u64, seq: u64, id: &str, config: &ExecConfig) -> Step {
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

    pub(super) fn on_exec_notes(&mut self, token: u64) {
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
