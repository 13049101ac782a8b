//! What a container writes goes to its log and to whoever is attached; what it reads comes from them.

use super::connections::Kind;
use super::poller::{Poller, Source};
use super::{CHUNK_LEN, Shim, Step};
use crate::{log, sys};
use std::io;
use std::os::fd::OwnedFd;

/// One output stream of a container.
pub(super) struct Output {
    pub(super) fd: OwnedFd,
    /// None while a slow attach session holds it up.
    pub(super) token: Option<u64>,
}

pub(super) struct AttachOutput {
    pub(super) fd: OwnedFd,
    pub(super) buffer: Vec<u8>,
    pub(super) token: Option<u64>,
}

impl Shim {
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

    pub(super) fn on_output(&mut self, id: &str, stream: usize) {
        self.pump(id, stream);
    }

    /// Reads a stream to its present end and closes it.
    pub(super) fn drain(&mut self, id: &str, stream: usize) {
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

    /// Reads on from streams that no session holds up any more.
    pub(super) fn resume_outputs(&mut self, id: &str) {
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

    /// The input of a session ended: with `stdin_once` so does the container's.
    pub(super) fn stdin_ended(&mut self, id: &str) {
        if let Some(container) = self.containers.get_mut(id)
            && container.config.stdin_once
        {
            container.stdin_ends = true;
            self.write_stdin(id);
        }
    }

    /// Gives the container what it has not taken yet.
    pub(super) fn write_stdin(&mut self, id: &str) {
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
}

pub(super) fn watch_output(poller: &mut Poller, id: &str, stream: usize, fd: OwnedFd) -> Step<Output> {
    sys::set_nonblocking(&fd)?;
    let token = poller.add(&fd, libc::EPOLLIN, Source::Output(id.to_owned(), stream))?;
    Ok(Output { fd, token: Some(token) })
}

/// Writes what an attach session takes now; a session that is gone takes everything.
pub(super) fn write_out(out: &mut AttachOutput) {
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
