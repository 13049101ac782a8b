//! The agent's end of a connection to a supervisor.

use crate::protocol::{Call, Message, Reply, Request, VERSION, decode, encode};
use crate::state::Layout;
use crate::sys;
use crate::{Error, Result};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use tokio::io::Interest;
use tokio::net::UnixStream;

const CHUNK_LEN: usize = 16 * 1024;

/// A connection, framed.
pub struct Wire {
    stream: UnixStream,
    input: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Wire {
    /// Connects and agrees on the version; returns what the supervisor says of itself.
    pub async fn connect(layout: &Layout, uid: &str) -> Result<(Wire, crate::SandboxStatus)> {
        let what = || format!("connect to the supervisor of sandbox {uid}");
        let io_error = |source| Error::Io { what: what(), source };
        // Through a descriptor: the full path may be longer than a socket's name can be.
        let dir = sys::open_path(&layout.run_dir).map_err(io_error)?;
        let path = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), Layout::socket_name(uid));
        let stream = UnixStream::connect(path).await.map_err(io_error)?;
        let mut wire = Wire { stream, input: Vec::new(), fds: Vec::new() };
        wire.send(0, Request::Hello { version: VERSION }, &[]).await.map_err(io_error)?;
        match wire.next().await.map_err(io_error)? {
            Some(Message::Reply { result: Ok(Reply::Hello { status, .. }), .. }) => Ok((wire, *status)),
            Some(Message::Reply { result: Err(failure), .. }) => Err(failure.into()),
            _ => Err(Error::Other(format!("{}: it hung up", what()))),
        }
    }

    pub async fn send(&mut self, seq: u64, request: Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let frame = encode(&Call { seq, request });
        let mut sent = 0;
        while sent < frame.len() {
            // Descriptors travel with the first byte.
            let with = if sent == 0 { fds } else { &[] };
            self.stream.writable().await?;
            match self.stream.try_io(Interest::WRITABLE, || {
                sys::send_with_fds(self.stream.as_raw_fd(), &frame[sent..], with)
            }) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The next message; None when the supervisor hung up. May be dropped and called again.
    pub async fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(message) = decode(&mut self.input).map_err(io::Error::other)? {
                return Ok(Some(message));
            }
            self.stream.readable().await?;
            let mut chunk = [0; CHUNK_LEN];
            let (stream, fds) = (&self.stream, &mut self.fds);
            match stream
                .try_io(Interest::READABLE, || sys::receive_with_fds(stream.as_raw_fd(), &mut chunk, fds))
            {
                Ok(0) => return Ok(None),
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(e) => return Err(e),
            }
        }
    }

    /// A descriptor that came with the messages so far.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop()
    }
}
