//! Agents at the socket: calls in, replies and news out.

use super::poller::Source;
use super::streams::AttachOutput;
use super::{CHUNK_LEN, Shim, Watched, other};
use crate::protocol::{Call, FRAME_LEN_MAX, Failure, Message, Reply, Request, VERSION, decode, encode};
use crate::sys;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// How many agents, execs and attaches at once.
const CONNECTIONS_MAX: usize = 256;

/// Replies that an agent does not take; then it is cut off.
const OUTPUT_LEN_MAX: usize = 4 << 20;

pub(super) enum Kind {
    Control,
    Exec {
        pid: i32,
        seq: u64,
        notes: Option<Watched>,
        terminal: Option<OwnedFd>,
    },
    Attach {
        id: String,
        stdin: Option<Watched>,
        stdin_paused: bool,
        outputs: [Option<AttachOutput>; 2],
        /// The container's exit code, told once the session took all output.
        ended: Option<i32>,
    },
}

pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) input: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
    pub(super) output: Vec<u8>,
    pub(super) hello: bool,
    /// Close once the output is written.
    pub(super) closing: bool,
    pub(super) kind: Kind,
}

impl Shim {
    pub(super) fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if self.connections.len() >= CONNECTIONS_MAX || socket.set_nonblocking(true).is_err() {
                continue;
            }
            let socket = OwnedFd::from(socket);
            if let Ok(token) = self.poller.add(&socket, libc::EPOLLIN, Source::Connection) {
                let connection = Connection {
                    socket,
                    input: Vec::new(),
                    fds: Vec::new(),
                    output: Vec::new(),
                    hello: false,
                    closing: false,
                    kind: Kind::Control,
                };
                self.connections.insert(token, connection);
            }
        }
    }

    pub(super) fn on_connection(&mut self, token: u64, events: u32) {
        if events & libc::EPOLLOUT as u32 != 0 {
            self.flush(token);
        }
        if events & !(libc::EPOLLOUT as u32) == 0 {
            return;
        }
        loop {
            let Some(connection) = self.connections.get_mut(&token) else { return };
            let received = sys::receive_with_fds(
                connection.socket.as_raw_fd(),
                &mut self.buffer[..],
                &mut connection.fds,
            );
            match received {
                Ok(0) => return self.close(token),
                Ok(n) => connection.input.extend_from_slice(&self.buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.close(token),
            }
            if connection.input.len() > FRAME_LEN_MAX + CHUNK_LEN || connection.fds.len() > sys::FDS_MAX {
                return self.close(token);
            }
            loop {
                let Some(connection) = self.connections.get_mut(&token) else { return };
                match decode::<Call>(&mut connection.input) {
                    Ok(Some(call)) => self.answer(token, call),
                    Ok(None) => break,
                    Err(_) => return self.close(token),
                }
            }
            if let Some(connection) = self.connections.get_mut(&token)
                && connection.input.is_empty()
            {
                connection.input = Vec::new();
            }
        }
    }

    fn answer(&mut self, token: u64, call: Call) {
        let seq = call.seq;
        let hello = self.connections.get(&token).is_some_and(|c| c.hello);
        let result = match call.request {
            Request::Hello { version: VERSION } => {
                if let Some(connection) = self.connections.get_mut(&token) {
                    connection.hello = true;
                }
                Ok(Some(Reply::Hello { version: VERSION, status: Box::new(self.status()) }))
            }
            Request::Hello { version } => {
                let text = format!("this supervisor speaks protocol version {VERSION}, not {version}");
                self.reply(token, seq, Err(other(text)));
                return self.close_when_written(token);
            }
            _ if !hello => return self.close(token),
            Request::Create { config } => self.create(token, seq, *config).map(|()| None),
            Request::Start { id } => self.start(token, seq, &id).map(|()| None),
            Request::Signal { id, signal } => self.signal(&id, signal).map(|()| Some(Reply::Done)),
            Request::Remove { id } => self.remove(token, seq, &id).map(|()| None),
            Request::Update { id, resources } => self.update(&id, resources).map(|()| Some(Reply::Done)),
            Request::ReopenLog { id } => self.reopen_log(&id).map(|()| Some(Reply::Done)),
            Request::Shutdown => {
                self.shut_down(token, seq);
                Ok(None)
            }
            Request::Exec { id, config } => self.exec(token, seq, &id, &config).map(|()| None),
            Request::Attach { id, config } => self.attach(token, &id, &config).map(|()| Some(Reply::Session)),
            Request::Resize { size } => self.resize(token, size).map(|()| Some(Reply::Done)),
        };
        match result {
            Ok(None) => {}
            Ok(Some(reply)) => self.reply(token, seq, Ok(reply)),
            Err(failure) => self.reply(token, seq, Err(failure)),
        }
    }

    pub(super) fn reply(&mut self, token: u64, seq: u64, result: Result<Reply, Failure>) {
        self.send(token, &Message::Reply { seq, result });
    }

    pub(super) fn send(&mut self, token: u64, message: &Message) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.output.extend(encode(message));
        if connection.output.len() > OUTPUT_LEN_MAX {
            return self.close(token);
        }
        self.flush(token);
    }

    pub(super) fn broadcast(&mut self, message: &Message) {
        let listeners: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| c.hello && matches!(c.kind, Kind::Control))
            .map(|(token, _)| *token)
            .collect();
        for token in listeners {
            self.send(token, message);
        }
    }

    fn flush(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        while !connection.output.is_empty() {
            match sys::send_with_fds(connection.socket.as_raw_fd(), &connection.output, &[]) {
                Ok(n) => drop(connection.output.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.close(token),
            }
        }
        let waits = !connection.output.is_empty();
        if !waits {
            connection.output = Vec::new();
            if connection.closing {
                return self.close(token);
            }
        }
        let events = libc::EPOLLIN | if waits { libc::EPOLLOUT } else { 0 };
        self.poller.change(&connection.socket, events, token);
    }

    pub(super) fn close_when_written(&mut self, token: u64) {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.closing = true;
            self.flush(token);
        }
    }

    pub(super) fn close(&mut self, token: u64) {
        let Some(connection) = self.connections.remove(&token) else { return };
        self.poller.remove(&connection.socket, token);
        match connection.kind {
            Kind::Control => {}
            Kind::Exec { pid, notes, .. } => {
                if let Some(notes) = notes {
                    self.poller.remove(&notes.fd, notes.token);
                }
                if self.execs.remove(&pid).is_some() {
                    // It leads a session of its own: its group goes with it.
                    // SAFETY: no memory is involved; the child is not reaped yet, so the number
                    // is still its own.
                    unsafe {
                        libc::kill(-pid, libc::SIGKILL);
                        libc::kill(pid, libc::SIGKILL);
                    }
                }
            }
            Kind::Attach { id, stdin, outputs, .. } => {
                if let Some(stdin) = stdin {
                    self.poller.remove(&stdin.fd, stdin.token);
                    self.stdin_ended(&id);
                }
                for output in outputs.into_iter().flatten() {
                    if let Some(token) = output.token {
                        self.poller.remove(&output.fd, token);
                    }
                }
                self.resume_outputs(&id);
            }
        }
    }
}
