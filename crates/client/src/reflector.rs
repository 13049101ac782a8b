//! Keeps an informer's copy equal to the server's: list, watch, list again where the server has
//! forgotten the revision. Upstream counterpart: `k8s.io/client-go/tools/cache.Reflector`.

use crate::api::{Api, ListOptions, WatchOptions};
use crate::cache::{self, Entry, ObjectKey};
use crate::error::{Error, Result};
use crate::informer::{Core, Scope};
use crate::watch::{EventKind, WatchEvent, WatchStream};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use skeg_base::{Backoff, Random};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Waits after failures without progress.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A watch that ends sooner than this counts as a failure.
const SHORT_WATCH: Duration = Duration::from_secs(1);
/// The server is asked to end a watch after this to twice this time.
const WATCH_SECONDS_MIN: u32 = 300;

const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Runs until `cancel` is cancelled.
pub(crate) async fn run<K>(
    core: Arc<Core>,
    api: Api<K>,
    scope: Scope,
    random: Random,
    cancel: CancellationToken,
) {
    let mut reflector = Reflector {
        core,
        api,
        scope,
        random,
        resume: None,
        streaming: true,
        progressed: false,
        namespace: Arc::default(),
    };
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    loop {
        let started = Instant::now();
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            outcome = reflector.session() => outcome,
        };
        if std::mem::take(&mut reflector.progressed) {
            backoff.reset();
        }
        match outcome {
            Ok(()) if started.elapsed() >= SHORT_WATCH => continue,
            Ok(()) => {}
            Err(error) => reflector.note(&error),
        }
        let wait = reflector.random.jitter(backoff.next(), 1.0);
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

struct Reflector<K> {
    core: Arc<Core>,
    api: Api<K>,
    scope: Scope,
    random: Random,
    /// Where the next watch starts; `None` when a list has to come first.
    resume: Option<u64>,
    /// Whether the server sends lists as watch events.
    streaming: bool,
    /// Whether anything was learned since this was last looked at.
    progressed: bool,
    /// Of the last object.
    namespace: Arc<str>,
}

#[derive(Deserialize)]
struct RawList<'a> {
    metadata: RawListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct RawListMeta {
    #[serde(rename = "resourceVersion")]
    resource_version: String,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMeta,
}

#[derive(Deserialize)]
struct BookmarkMeta {
    #[serde(rename = "resourceVersion", default)]
    resource_version: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl<K> Reflector<K> {
    /// One watch, with a list before it where one is needed. `Ok` when the server ended it.
    async fn session(&mut self) -> Result<()> {
        let mut stream = match self.resume {
            Some(revision) => self.watch_from(revision).await?,
            None if self.streaming => self.stream_list().await?,
            None => {
                let revision = self.list().await?;
                self.watch_from(revision).await?
            }
        };
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => self.apply(event),
                Err(Error::Decode { what, source }) => {
                    tracing::warn!(resource = %self.api.gvr().group_resource(), what, %source, "passed over");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn note(&mut self, error: &Error) {
        let resource = self.api.gvr().group_resource();
        if error.is_expired() {
            tracing::debug!(resource, %error, "lists again");
            self.resume = None;
            return;
        }
        if self.streaming && self.resume.is_none() && matches!(error.code(), Some(400 | 422)) {
            tracing::debug!(resource, %error, "the server does not stream lists");
            self.streaming = false;
            return;
        }
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::debug!(resource, %error, cause, "list or watch failed");
    }

    fn watch_seconds(&self) -> u32 {
        WATCH_SECONDS_MIN + self.random.below(u64::from(WATCH_SECONDS_MIN)) as u32
    }

    async fn watch_from(&self, revision: u64) -> Result<WatchStream> {
        let list = ListOptions { resource_version: revision.to_string(), ..self.scope.options() };
        let timeout_seconds = self.watch_seconds();
        let options = WatchOptions { list, bookmarks: true, timeout_seconds, ..Default::default() };
        self.api.watch(&self.scope.namespace, &options).await
    }

    /// Lists by the first events of a watch and returns the watch to go on with.
    async fn stream_list(&mut self) -> Result<WatchStream> {
        let list = ListOptions { resource_version_match: "NotOlderThan".into(), ..self.scope.options() };
        let timeout_seconds = self.watch_seconds();
        let options = WatchOptions { list, send_initial_events: true, bookmarks: true, timeout_seconds };
        let mut stream = self.api.watch(&self.scope.namespace, &options).await?;
        let mut all = BTreeMap::new();
        while let Some(event) = stream.next().await {
            let event = match event {
                Ok(event) => event,
                Err(Error::Decode { .. }) => continue,
                Err(error) => return Err(error),
            };
            match event.kind {
                EventKind::Added | EventKind::Modified => self.collect(&mut all, event.object),
                EventKind::Deleted => {
                    if let Some(entry) = self.parse(event.object) {
                        all.remove(entry.key());
                    }
                }
                EventKind::Bookmark => {
                    let Some(bookmark) = self.bookmark(&event.object) else { continue };
                    if bookmark.annotations.get(INITIAL_EVENTS_END).is_some_and(|v| v == "true") {
                        self.replace(all, bookmark.resource_version.parse().unwrap_or(0));
                        return Ok(stream);
                    }
                }
                EventKind::Error => {}
            }
        }
        Err(Error::Transport("the watch ended before the list was complete".into()))
    }

    async fn list(&mut self) -> Result<u64> {
        let bytes = self.api.list_bytes(&self.scope.namespace, &self.scope.options()).await?;
        let what = || format!("list of {}", self.api.gvr().group_resource());
        let list: RawList<'_> =
            serde_json::from_slice(&bytes).map_err(|source| Error::Decode { what: what(), source })?;
        let mut all = BTreeMap::new();
        for item in list.items.unwrap_or_default() {
            self.collect(&mut all, Bytes::copy_from_slice(item.get().as_bytes()));
        }
        let revision = list.metadata.resource_version.parse().unwrap_or(0);
        self.replace(all, revision);
        Ok(revision)
    }

    fn collect(&mut self, all: &mut BTreeMap<ObjectKey, Entry>, object: Bytes) {
        if let Some(entry) = self.parse(object) {
            all.insert(entry.key().clone(), entry);
        }
    }

    fn parse(&mut self, object: Bytes) -> Option<Entry> {
        let object = if self.scope.metadata_only { cache::trimmed(&object) } else { Ok(object) };
        object
            .and_then(|object| Entry::parse(object, &mut self.namespace))
            .inspect_err(|error| {
                tracing::warn!(resource = %self.api.gvr().group_resource(), %error, "an object without a name is passed over");
            })
            .ok()
    }

    fn bookmark(&self, object: &[u8]) -> Option<BookmarkMeta> {
        serde_json::from_slice::<Bookmark>(object).ok().map(|bookmark| bookmark.metadata)
    }

    fn replace(&mut self, all: BTreeMap<ObjectKey, Entry>, revision: u64) {
        let newest = all.values().map(Entry::revision).max().unwrap_or(0);
        self.core.replace(all);
        self.core.progress.modify(|p| p.synced = true);
        self.advance(revision.max(newest));
    }

    fn apply(&mut self, event: WatchEvent) {
        if event.kind == EventKind::Bookmark {
            let revision = self.bookmark(&event.object).and_then(|b| b.resource_version.parse().ok());
            return self.advance(revision.unwrap_or(0));
        }
        let Some(entry) = self.parse(event.object) else { return };
        let revision = entry.revision();
        match event.kind {
            EventKind::Added | EventKind::Modified => self.core.upsert(entry),
            EventKind::Deleted => self.core.delete(entry),
            EventKind::Bookmark | EventKind::Error => {}
        }
        self.advance(revision);
    }

    fn advance(&mut self, revision: u64) {
        self.progressed = true;
        let next = self.resume.unwrap_or(0).max(revision);
        self.resume = Some(next);
        self.core.progress.modify(|p| p.revision = p.revision.max(next));
    }
}
