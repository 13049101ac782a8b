//! What agent and supervisor say to each other: JSON values behind a four-byte length, with file
//! descriptors beside the frames that hand over streams. The first frame on every connection is
//! [`Request::Hello`] with the version; a supervisor outlives agents, so it must stay able to
//! answer an agent of another build: fields are only added, and unknown ones ignored.

use crate::Error;
use crate::types::{ContainerConfig, ContainerStatus, ExecConfig, Resources, SandboxStatus, TerminalSize};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version this build speaks. A supervisor refuses another major number.
pub const VERSION: u32 = 1;

/// No frame is longer: the longest carries one container's configuration.
pub const FRAME_LEN_MAX: usize = 4 << 20;

/// Length of the header before each frame.
pub const HEADER_LEN: usize = 4;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Call {
    pub seq: u64,
    pub request: Request,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub enum Request {
    Hello {
        version: u32,
    },
    Create {
        config: Box<ContainerConfig>,
    },
    Start {
        id: String,
    },
    Signal {
        id: String,
        signal: i32,
    },
    Remove {
        id: String,
    },
    Update {
        id: String,
        resources: Resources,
    },
    /// From agents that rotate logs themselves: the log's file was renamed.
    ReopenLog {
        id: String,
    },
    /// Ends every container, then the supervisor.
    Shutdown,
    /// Makes this connection an exec session. Descriptors without a terminal: stdin, stdout and
    /// stderr as far as the configuration asks for them.
    Exec {
        id: String,
        config: ExecConfig,
    },
    /// Makes this connection an attach session; descriptors as for `Exec`, also with a terminal.
    Attach {
        id: String,
        config: ExecConfig,
    },
    /// Within an attach session.
    Resize {
        size: TerminalSize,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub enum Message {
    Reply {
        seq: u64,
        result: Result<Reply, Failure>,
    },
    /// A container changed; sent to every connection that said hello.
    Changed {
        status: ContainerStatus,
    },
    /// A container was removed.
    Removed {
        id: String,
    },
    /// The command of an exec session, or the container of an attach session, ended.
    Exited {
        code: i32,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub enum Reply {
    Hello {
        version: u32,
        status: Box<SandboxStatus>,
    },
    Done,
    Container {
        status: Box<ContainerStatus>,
        warnings: Vec<String>,
    },
    /// The session began; the terminal's descriptor comes beside an exec's with one.
    Session,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum FailureKind {
    NoContainer,
    Config,
    Start,
    Other,
}

/// An error that crossed a process boundary.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Failure {
    pub kind: FailureKind,
    pub text: String,
}

impl Failure {
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Failure {
        Failure { kind, text: text.into() }
    }

    pub fn no_container(id: &str) -> Failure {
        Failure::new(FailureKind::NoContainer, id)
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        Failure::new(FailureKind::Other, e.to_string())
    }
}

impl From<Failure> for Error {
    fn from(f: Failure) -> Error {
        match f.kind {
            FailureKind::NoContainer => Error::NoContainer(f.text),
            FailureKind::Config => Error::Config(f.text),
            FailureKind::Start => Error::Start(f.text),
            FailureKind::Other => Error::Other(f.text),
        }
    }
}

/// Says what was being done when a call failed.
pub trait Context<T> {
    fn at(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn at(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|e| Failure::new(FailureKind::Other, format!("{}: {}", what(), os_text(&e))))
    }
}

/// The kernel's message as other tools spell it: lower case, without the number.
pub fn os_text(e: &std::io::Error) -> String {
    let text = e.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    if e.raw_os_error().is_none() {
        return text.to_owned();
    }
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// A value as a frame.
pub fn encode(value: &impl Serialize) -> Vec<u8> {
    let mut out = vec![0; HEADER_LEN];
    // Writing plain data to memory cannot fail.
    if serde_json::to_writer(&mut out, value).is_err() {
        out.truncate(HEADER_LEN);
    }
    let len = (out.len() - HEADER_LEN) as u32;
    out[..HEADER_LEN].copy_from_slice(&len.to_be_bytes());
    out
}

/// Takes the first whole frame off `buffer`. `Err` when it is not of this protocol.
pub fn decode<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, String> {
    let Some((header, rest)) = buffer.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let len = u32::from_be_bytes(*header) as usize;
    if len > FRAME_LEN_MAX {
        return Err(format!("a frame of {len} bytes"));
    }
    let Some(body) = rest.get(..len) else { return Ok(None) };
    let value = serde_json::from_slice(body).map_err(|e| e.to_string());
    buffer.drain(..HEADER_LEN + len);
    value.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        let calls = [
            Call { seq: 1, request: Request::Hello { version: VERSION } },
            Call { seq: 2, request: Request::Start { id: "a".into() } },
        ];
        let bytes: Vec<u8> = calls.iter().flat_map(encode).collect();
        let mut buffer = Vec::new();
        let mut seen = Vec::new();
        for byte in bytes {
            buffer.push(byte);
            seen.extend(decode::<Call>(&mut buffer).unwrap());
        }
        assert_eq!(seen, calls);
        assert!(buffer.is_empty());
        assert!(decode::<Call>(&mut vec![0xff; 8]).is_err());
        assert!(decode::<Call>(&mut vec![0, 0, 0, 1, b'{']).is_err());
    }
}
