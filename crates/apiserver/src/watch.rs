//! The body of a watch: frames of one JSON document each, made once per event and shared between
//! watchers. Upstream counterpart: `k8s.io/apiserver/pkg/endpoints/handlers/watch.go`.

use crate::cache::entry::frame_head;
use crate::cache::{Entry, Event, Notice, Subscription, Type};
use crate::local::BoxError;
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

/// How events become frames.
pub enum Encoder {
    /// Entries as they are stored.
    Shared(Renderer),
    /// Another version, Table or metadata.
    Each(Renderer),
}

impl Encoder {
    fn renderer(&self) -> &Renderer {
        match self {
            Encoder::Shared(renderer) | Encoder::Each(renderer) => renderer,
        }
    }

    fn event(&mut self, event: &Event, kind: Type) -> Bytes {
        match self {
            Encoder::Shared(_) => event.frame(kind),
            Encoder::Each(renderer) => {
                let Some(entry) = event.object(kind) else { return Bytes::new() };
                let value = renderer.one(entry, event.revision);
                renderer.drop_headers();
                frame(kind.as_str(), &value)
            }
        }
    }

    fn added(&mut self, entry: &Entry, out: &mut Vec<u8>) {
        match self {
            Encoder::Shared(_) => {
                frame_head("ADDED", out);
                entry.body.write(entry.revision, out);
                out.extend_from_slice(b"}\n");
            }
            Encoder::Each(renderer) => {
                let value = renderer.one(entry, entry.revision);
                renderer.drop_headers();
                out.extend_from_slice(&frame("ADDED", &value));
            }
        }
    }

    fn bookmark(&self, revision: u64, initial_events_end: bool) -> Bytes {
        frame("BOOKMARK", &self.renderer().bookmark(revision, initial_events_end))
    }
}

fn frame(kind: &str, object: &Value) -> Bytes {
    let mut out = Vec::with_capacity(512);
    frame_head(kind, &mut out);
    // Writing to memory does not fail.
    let _ = serde_json::to_writer(&mut out, object);
    out.extend_from_slice(b"}\n");
    out.into()
}

/// The one frame of a watch that cannot start.
pub fn error_frame(status: &Status) -> Bytes {
    frame("ERROR", &status.to_value())
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
