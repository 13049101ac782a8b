//! Sessions attached to a container that runs.

use super::connections::{Connection, Kind};
use super::poller::Source;
use super::streams::{AttachOutput, write_out};
use super::{Shim, Step, Watched, other};
use crate::protocol::{Context, Message};
use crate::types::{ContainerState, ExecConfig, TerminalSize};
use crate::{process, sys};
use std::io;
use std::os::fd::OwnedFd;

const STDIN_CHUNK_LEN: usize = 4 * 1024;

impl Shim {
    pub(super) fn on_attach_out(&mut self, token: u64, stream: usize) {
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
    pub(super) fn end_session(&mut self, token: u64) {
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

    pub(super) fn attach(&mut self, token: u64, id: &str, config: &ExecConfig) -> Step {
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

    pub(super) fn on_attach_in(&mut self, token: u64) {
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

    pub(super) fn resize(&mut self, token: u64, size: TerminalSize) -> Step {
        let Some(Connection { kind: Kind::Attach { id, .. }, .. }) = self.connections.get(&token) else {
            return Err(other("not an attach session"));
        };
        let id = id.clone();
        match &self.get(&id)?.terminal {
            Some(terminal) => process::resize(terminal, size).at(|| "resize".into()),
            None => Ok(()),
        }
    }
}
