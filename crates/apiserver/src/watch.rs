//! The body of a watch: frames of one JSON document or protobuf message each, made once per event
//! and shared between watchers. Upstream counterpart: `k8s.io/apiserver/pkg/endpoints/handlers/watch.go`.

use crate::cache::entry::frame_head;
use crate::cache::{Entry, Event, Notice, Subscription, Type};
use crate::convert;
use crate::local::BoxError;
use crate::negotiate::{Encoding, Output};
use crate::protobuf::{self, Target};
use crate::record::Body;
use crate::route::Served;
use crate::server::ApiServer;
use crate::table::Renderer;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::Frame;
use serde_json::Value;
use skeg_api::selector::FieldSelector;
use skeg_api::{Kind, Status, meta};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;

/// How many objects of the initial state one review is for.
const CONVERTED_MAX: usize = 500;
/// How much of the initial state is copied at a time.
const CHUNK_BYTES: usize = 128 << 10;
/// How long a watcher rests for each that is handed the same event, who are served meanwhile; at most; and
/// what is too little to rest for.
const REST_PER_WATCHER: Duration = Duration::from_micros(20);
const REST_MAX: Duration = Duration::from_millis(20);
const REST_MIN: Duration = Duration::from_millis(2);

/// What the frames of a watch are made of.
pub enum Source {
    /// The bytes of entries, as they are stored.
    Json,
    /// The same, in protobuf.
    Protobuf(Target),
    /// The metadata in these bytes.
    Metadata,
    /// Values: another version, or Table.
    Values,
}

/// How events become frames.
pub struct Encoder {
    renderer: Renderer,
    encoding: Encoding,
    source: Source,
    converter: Option<Arc<Converter>>,
}

/// Brings what is watched into another version by a webhook, which takes its time.
pub struct Converter {
    pub server: Arc<ApiServer>,
    pub served: Arc<Served>,
    /// Fields that are known once an object is converted.
    pub late: FieldSelector,
}

/// Whether an object, in the version of its kind, has the fields that are asked for.
pub fn selects(fields: &FieldSelector, kind: &Kind, object: &Value) -> bool {
    let own = kind.selectable(object);
    fields.matches(|name| own.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str()))
}

/// Frames that come once a webhook has answered.
type Frames = BoxFuture<'static, Result<Bytes, Status>>;

/// A change to be converted: its type, the states after and before it, its revision.
type Change = (Type, Option<Arc<Entry>>, Option<Arc<Entry>>, u64);

impl Converter {
    async fn frames(
        &self,
        changes: Vec<Change>,
        mut renderer: Renderer,
        encoding: Encoding,
    ) -> Result<Bytes, Status> {
        let kind = &self.served.kind;
        let is_selective = !self.late.is_everything();
        let mut objects = Vec::new();
        let mut add = |entry: Option<&Arc<Entry>>| {
            objects.push(entry?.value());
            Some(objects.len() - 1)
        };
        let places: Vec<_> = changes
            .iter()
            .map(|(of, now, before, _)| {
                let before =
                    before.as_ref().filter(|_| *of == Type::Deleted || is_selective && *of == Type::Modified);
                (add(now.as_ref().filter(|_| *of != Type::Deleted)), add(before))
            })
            .collect();
        convert::read(&self.server, kind, &self.served.stored, &mut objects).await?;
        let mut out = Vec::new();
        for ((of, _, _, revision), (now, before)) in changes.iter().zip(places) {
            let fits = |at: Option<usize>| at.is_some_and(|at| selects(&self.late, kind, &objects[at]));
            let of = match (is_selective, fits(before), fits(now)) {
                (false, _, _) => *of,
                (true, false, false) => continue,
                (true, false, true) => Type::Added,
                (true, true, true) => Type::Modified,
                (true, true, false) => Type::Deleted,
            };
            let Some(at) = (if of == Type::Deleted { before } else { now }) else { continue };
            let mut object = objects[at].take();
            meta::set_resource_version(&mut object, &revision.to_string());
            out.extend_from_slice(&frame(of.as_str(), &renderer.value(object, *revision), encoding));
            renderer.drop_headers();
        }
        Ok(out.into())
    }
}

impl Encoder {
    pub fn new(renderer: Renderer, output: Output, source: Source, converter: Option<Converter>) -> Self {
        Encoder { renderer, encoding: output.encoding, source, converter: converter.map(Arc::new) }
    }

    /// The frames of changes that have to be converted first, if these have to.
    fn later(&mut self, changes: impl FnOnce() -> Vec<Change>) -> Option<Frames> {
        let converter = self.converter.clone()?;
        let (renderer, encoding) = (self.renderer.clone(), self.encoding);
        self.renderer.drop_headers();
        let changes = changes();
        Some(Box::pin(async move { converter.frames(changes, renderer, encoding).await }))
    }

    fn event(&mut self, event: &Event, kind: Type) -> Bytes {
        match &self.source {
            Source::Json => event.frame(kind),
            Source::Protobuf(target) => event.protobuf_frame(kind, target),
            Source::Metadata | Source::Values => {
                let Some(entry) = event.object(kind) else { return Bytes::new() };
                let mut out = Vec::new();
                self.add(kind.as_str(), entry, event.revision, &mut out);
                out.into()
            }
        }
    }

    fn add(&mut self, kind: &str, entry: &Entry, revision: u64, out: &mut Vec<u8>) {
        let mut write = |body: &Body| {
            frame_head(kind, out);
            body.write(revision, out);
            out.extend_from_slice(b"}\n");
        };
        match &self.source {
            Source::Json => write(&entry.body),
            Source::Metadata => {
                if let Some(body) = entry.body.metadata() {
                    write(&body);
                }
            }
            Source::Protobuf(target) => {
                out.extend_from_slice(&target.frame(kind, &entry.body, revision));
            }
            Source::Values => {
                let value = self.renderer.one(entry, revision);
                self.renderer.drop_headers();
                out.extend_from_slice(&frame(kind, &value, self.encoding));
            }
        }
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
    /// What is being converted.
    pending: Option<Frames>,
    marks: Marks,
    /// The newest revision that the client knows of.
    delivered: u64,
    timeout: Pin<Box<Sleep>>,
    /// How many watchers are handed what this one was handed since it rested.
    watchers: usize,
    /// Nothing is handed out before.
    rest: Option<Pin<Box<Sleep>>>,
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
            pending: None,
            marks,
            timeout: Box::pin(timeout),
            watchers: 0,
            rest: None,
            ended: false,
        }
    }

    fn initial_chunk(&mut self) -> Bytes {
        let mut out = Vec::new();
        while out.len() < CHUNK_BYTES {
            let Some(entry) = self.initial.pop_front() else { break };
            self.encoder.add(Type::Added.as_str(), &entry, entry.revision, &mut out);
        }
        out.into()
    }

    /// Ready when events may be handed out. Where many watchers see the same, each rests after it was
    /// served: what comes meanwhile goes out together, in one write instead of one each.
    fn poll_rest(&mut self, ctx: &mut Context<'_>) -> Poll<()> {
        if self.watchers > 0 && self.subscription.notices.is_empty() {
            let watchers = u32::try_from(std::mem::take(&mut self.watchers)).unwrap_or(u32::MAX);
            let rest = REST_PER_WATCHER.saturating_mul(watchers).min(REST_MAX);
            self.rest = (rest >= REST_MIN).then(|| Box::pin(tokio::time::sleep(rest)));
        }
        if let Some(rest) = &mut self.rest {
            std::task::ready!(rest.as_mut().poll(ctx));
            self.rest = None;
        }
        Poll::Ready(())
    }

    /// Nothing where the change has to be converted first.
    fn event(&mut self, event: &Event, kind: Type) -> Option<Bytes> {
        self.delivered = self.delivered.max(event.revision);
        let change = || vec![(kind, event.current.clone(), event.previous.clone(), event.revision)];
        self.pending = self.encoder.later(change);
        self.pending.is_none().then(|| self.encoder.event(event, kind))
    }

    /// Begins to convert the next part of the initial state.
    fn convert_initial(&mut self) -> bool {
        let initial = &mut self.initial;
        self.pending = self.encoder.later(|| {
            let part = initial.drain(..initial.len().min(CONVERTED_MAX));
            part.map(|entry| (Type::Added, Some(entry.clone()), None, entry.revision)).collect()
        });
        self.pending.is_some()
    }

    /// Frames that are converted by now. An error ends the watch.
    fn poll_pending(&mut self, ctx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(pending) = &mut self.pending else { return Poll::Ready(None) };
        let converted = std::task::ready!(pending.as_mut().poll(ctx));
        self.pending = None;
        Poll::Ready(match converted {
            Ok(bytes) => Some(bytes).filter(|bytes| !bytes.is_empty()),
            Err(status) => {
                self.ended = true;
                Some(error_frame(&status, self.encoder.encoding))
            }
        })
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
        loop {
            if let Some(bytes) = std::task::ready!(this.poll_pending(ctx)) {
                return ready(bytes);
            }
            if !this.initial.is_empty() {
                if this.convert_initial() {
                    continue;
                }
                return ready(this.initial_chunk());
            }
            if std::mem::take(&mut this.marks.initial_events_end) {
                return ready(this.encoder.bookmark(this.delivered, true));
            }
            let (event, kind) = match this.missed.pop_front() {
                Some(missed) => missed,
                None if this.poll_rest(ctx).is_pending() => break,
                None => match this.subscription.notices.poll_recv(ctx) {
                    Poll::Ready(Some(Notice::Event(event, kind, watchers))) => {
                        this.watchers = watchers;
                        (event, kind)
                    }
                    Poll::Ready(Some(Notice::Bookmark(revision))) => {
                        this.delivered = this.delivered.max(revision);
                        return ready(this.encoder.bookmark(this.delivered, false));
                    }
                    Poll::Ready(None) => {
                        this.ended = true;
                        return Poll::Ready(None);
                    }
                    Poll::Pending => break,
                },
            };
            if let Some(bytes) = this.event(&event, kind) {
                return ready(bytes);
            }
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
