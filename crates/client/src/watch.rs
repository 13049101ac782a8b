//! A watch: newline-separated JSON frames, each an event with one object.

use crate::error::{Error, Result};
use crate::transport::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use skeg_api::Status;

/// The largest frame accepted: an object is at most 1.5 MiB, before escapes.
const FRAME_BYTES_MAX: usize = 16 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

/// One event; the object is JSON in memory of its own.
#[derive(Clone, Debug)]
pub struct WatchEvent {
    pub kind: EventKind,
    pub object: Bytes,
}

/// The events of one watch, in order.
pub struct WatchStream {
    body: Body,
    buffer: BytesMut,
    /// Bytes of `buffer` that hold no newline.
    scanned: usize,
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: EventKind,
    #[serde(borrow)]
    object: &'a RawValue,
}

impl WatchStream {
    pub(crate) fn new(body: Body) -> Self {
        WatchStream { body, buffer: BytesMut::new(), scanned: 0 }
    }

    /// The next event; `None` when the server ended the watch. An ERROR event is the last one and
    /// comes as [`Error::Api`]. Safe to cancel: nothing read is lost.
    pub async fn next(&mut self) -> Option<Result<WatchEvent>> {
        loop {
            if let Some(line) = self.take_line() {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Some(parse(&line));
            }
            if self.buffer.len() > FRAME_BYTES_MAX {
                return Some(Err(Error::Transport("a watch event exceeds the size limit".into())));
            }
            match self.body.frame().await {
                None => return None,
                Some(Err(e)) => return Some(Err(Error::Transport(e))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    fn take_line(&mut self) -> Option<BytesMut> {
        match self.buffer[self.scanned..].iter().position(|b| *b == b'\n') {
            Some(at) => {
                let line = self.buffer.split_to(self.scanned + at + 1);
                self.scanned = 0;
                Some(line)
            }
            None => {
                self.scanned = self.buffer.len();
                None
            }
        }
    }
}

fn parse(line: &[u8]) -> Result<WatchEvent> {
    let decode = |source| Error::Decode { what: "watch event".into(), source };
    let frame: Frame<'_> = serde_json::from_slice(line).map_err(decode)?;
    let object = frame.object.get().as_bytes();
    if frame.kind == EventKind::Error {
        return Err(Error::Api(serde_json::from_slice::<Status>(object).map_err(decode)?));
    }
    // A copy: a slice would keep the whole read buffer alive as long as the object is cached.
    Ok(WatchEvent { kind: frame.kind, object: Bytes::copy_from_slice(object) })
}
