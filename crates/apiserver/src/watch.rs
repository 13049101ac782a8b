//! The body of a watch: frames of one JSON document or protobuf message each, made once per event
//! and shared between watchers. Upstream counterpart: `k8s.io/apiserver/pkg/endpoints/handlers/watch.go`.

use crate::cache::entry::frame_head;
use crate::cache::{Entry, Event, Notice, Subscription, Type};
use crate::local::BoxError;
use crate::negotiate::{Encoding, Output};
use crate::protobuf::{self, Target};
use crate::table::Renderer;
use bytes::Bytes;
use http_body::Frame;
use serde_json::Value;
use skeg_api::Status;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::Sleep;

/// How much of the initial state is copied at a time.
const CHUNK_BYTES: usize = 128 << 10;

/// What the frames of a watch are made of.
pub enum Source {
    /// The bytes of entries, as they are stored.
    Json,
    /// The same, in protobuf.
    Protobuf(Target),
    /// Values: another version, Table or metadata.
    Values,
}

/// How events become frames.
pub struct Encoder {
    renderer: Renderer,
    encoding: Encoding,
    source: Source,
}

impl Encoder {
    pub fn new(renderer: Renderer, output: Output, source: Source) -> Self {
        Encoder { renderer, encoding: output.encoding, source }
    }

    fn event(&mut self, event: &Event, kind: Type) -> Bytes {
        match &self.source {
            Source::Json => event.frame(kind),
            Source::Protobuf(target) => event.protobuf_frame(kind, target),
            Source::Values => {
                let Some(entry) = event.object(kind) else { return Bytes::new() };
                self.value(kind.as_str(), entry, event.revision)
            }
        }
    }

    fn added(&mut self, entry: &Entry, out: &mut Vec<u8>) {
        match &self.source {
            Source::Json => {
                frame_head("ADDED", out);
                entry.body.write(entry.revision, out);
                out.extend_from_slice(b"}\n");
            }
            Source::Protobuf(target) => {
                out.extend_from_slice(&target.frame("ADDED", &entry.body, entry.revision));
            }
            Source::Values => {
                let frame = self.value("ADDED", entry, entry.revision);
                out.extend_from_slice(&frame);
            }
        }
    }

    fn value(&mut self, kind: &str, entry: &Entry, revision: u64) -> Bytes {
        let value = self.renderer.one(entry, revision);
        self.renderer.drop_headers();
        frame(kind, &value, self.encoding)
    }

    fn bookmark(&self, revision: u64, initial_events_end: bool) -> Bytes {
        frame("BOOKMARK", &self.renderer.bookmark(revision, initial_events_end), self.encoding)
    }
}

fn frame(kind: &str, object: &Value, encoding: Encoding) -> Bytes {
    if encoding == Encoding::Protobuf {
        // Whatever is watched in protobuf has a message.
        return protobuf::frame(kind, &protobuf::encode(object).unwrap_or_default()).into();
    }
    let mut out = Vec::with_capacity(512);
    frame_head(kind, &mut out);
    // Writing to memory does not fail.
    let _ = serde_json::to_writer(&mut out, object);
    out.extend_from_slice(b"}\n");
    out.into()
}

/// The one frame of a watch that cannot start.
pub fn error_frame(status: &Status, encoding: Encoding) -> Bytes {
    frame("ERROR", &status.to_value(), encoding)
}

/// What the client asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Marks {
    /// Bookmarks now and then.
    pub bookmarks: bool,
    /// A bookmark that says that the initial state is complete.
    pub initial_events_end: bool,
}

pub struct WatchBody {
    subscription: Subscription,
    initial: VecDeque<Arc<Entry>>,
    missed: VecDeque<(Arc<Event>, Type)>,
    encoder: Encoder,
    marks: Marks,
    /// The newest revision that the client knows of.
    delivered: u64,
    timeout: Pin<Box<Sleep>>,
    ended: bool,
}

impl WatchBody {
    pub fn new(mut subscription: Subscription, encoder: Encoder, marks: Marks, timeout: Sleep) -> Self {
        WatchBody {
            initial: std::mem::take(&mut subscription.initial).into(),
            missed: std::mem::take(&mut subscription.missed).into(),
            delivered: subscription.revision,
            subscription,
            encoder,
            marks,
            timeout: Box::pin(timeout),
            ended: false,
        }
    }

    fn initial_chunk(&mut self) -> Bytes {
        let mut out = Vec::new();
        while out.len() < CHUNK_BYTES {
            let Some(entry) = self.initial.pop_front() else { break };
            self.encoder.added(&entry, &mut out);
        }
        out.into()
    }

    fn event(&mut self, event: &Event, kind: Type) -> Bytes {
        self.delivered = self.delivered.max(event.revision);
        self.encoder.event(event, kind)
    }
}

impl http_body::Body for WatchBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let ready = |bytes: Bytes| Poll::Ready(Some(Ok(Frame::data(bytes))));
        if !this.initial.is_empty() {
            return ready(this.initial_chunk());
        }
        if std::mem::take(&mut this.marks.initial_events_end) {
            return ready(this.encoder.bookmark(this.delivered, true));
        }
        if let Some((event, kind)) = this.missed.pop_front() {
            return ready(this.event(&event, kind));
        }
        match this.subscription.notices.poll_recv(ctx) {
            Poll::Ready(Some(Notice::Event(event, kind))) => return ready(this.event(&event, kind)),
            Poll::Ready(Some(Notice::Bookmark(revision))) => {
                this.delivered = this.delivered.max(revision);
                return ready(this.encoder.bookmark(this.delivered, false));
            }
            Poll::Ready(None) => {
                this.ended = true;
                return Poll::Ready(None);
            }
            Poll::Pending => {}
        }
        if this.timeout.as_mut().poll(ctx).is_ready() {
            this.ended = true;
            if this.marks.bookmarks {
                return ready(this.encoder.bookmark(this.delivered, false));
            }
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}
