//! The watch cache: every stored object in its encoded form, fed by one watch on the store. All
//! reads are served from here. A writer waits until the cache has its write before it answers, so
//! a read sees every write acknowledged before it began. Knows nothing of HTTP or users.

pub mod entry;
pub mod resource;

use crate::auth::recent::Recent;
use crate::reader::Reader;
use crate::record::RecordError;
use crate::stats::Stats;
use bytes::Bytes;
pub use entry::{Entry, Event, Filter, Selectable, Type};
use parking_lot::{Mutex, RwLock};
pub use resource::{Notice, Page, Resource, Since, Subscription, TooOld};
use skeg_api::{Gvr, Kind, Kinds, Value};
use skeg_base::{HashMap, new_map};
use skeg_store::{Change, Error, Record, Revision, Store, Watch, WatchItem};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};

pub const ROOT: &str = "/registry/";
/// How long a reader waits for a revision that the store has but the cache not yet.
const FRESH_WAIT: Duration = Duration::from_secs(3);
/// How many decoded objects are kept; half of them at least were used last.
const VALUES_MAX: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("store: {0}")]
    Store(#[from] Error),
    #[error("record {key}: {error}")]
    Record { key: String, error: RecordError },
}

pub struct Cache {
    store: Arc<dyn Store>,
    kinds: Arc<Kinds>,
    /// Locked before everything else.
    feed: Mutex<Feed>,
    /// A writer came upon the end of the feed.
    stalled: Notify,
    table: RwLock<Table>,
    /// What writers under way know of their records, so that the feeder need not decode them.
    pending: Mutex<HashMap<Arc<str>, Vec<Expected>>>,
    applied: Arc<AtomicU64>,
    waiters: Mutex<Waiters>,
    /// Objects that were looked into lately: most writes look into the same few.
    values: Mutex<Recent<Arc<str>, Decoded>>,
    stats: Arc<Stats>,
}

/// The watch on the store, read by whoever needs its next change first: the feeder or a writer.
struct Feed {
    watch: Watch,
    /// Why it cannot go on, for the feeder to deal with.
    stall: Option<Stall>,
}

enum Stall {
    /// The store ended the watch.
    Ended(Option<Error>),
    /// A record cannot be understood.
    Broken(CacheError),
}

/// An object at a revision.
type Decoded = (u64, Arc<Value>);

/// A record under way, and what selectors see of it.
type Expected = (Bytes, Selectable);

/// Who waits for which revision. Woken in order, each once: a broadcast would wake all writers
/// for each batch, and in no order that a simulation could repeat.
#[derive(Default)]
struct Waiters {
    next: u64,
    /// By revision and order of arrival.
    waiting: BTreeMap<(u64, u64), oneshot::Sender<()>>,
}

#[derive(Default)]
struct Table {
    generation: u64,
    by_prefix: BTreeMap<String, Arc<Resource>>,
    /// Records of no kind that is known yet.
    unclaimed: BTreeMap<Arc<str>, (Bytes, u64)>,
}

impl Table {
    /// The resource whose prefix the key has. No prefix is a prefix of another.
    fn of(&self, key: &str) -> Option<&Arc<Resource>> {
        let (prefix, resource) =
            self.by_prefix.range::<str, _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        key.starts_with(prefix).then_some(resource)
    }

    fn claim(
        &mut self,
        kinds: &Kinds,
        applied: &Arc<AtomicU64>,
        stats: &Arc<Stats>,
    ) -> Result<(), CacheError> {
        let snapshot = kinds.snapshot();
        self.generation = snapshot.generation;
        // Of the rows that share a prefix the one of the first group is stored, in its last version.
        let mut stored: BTreeMap<String, &Arc<Kind>> = BTreeMap::new();
        for kind in snapshot.all() {
            let Some(storage) = &kind.storage else { continue };
            let row = stored.entry(format!("{ROOT}{storage}")).or_insert(kind);
            let is_stored = kind.custom.as_ref().is_none_or(|custom| custom.is_storage);
            if row.gvk.group == kind.gvk.group && is_stored {
                *row = kind;
            }
        }
        // Without a row there is nothing left to watch; objects wait for theirs to come back.
        self.by_prefix.retain(|prefix, resource| {
            let has_row = stored.contains_key(prefix);
            if !has_row {
                resource.retire();
            }
            has_row || resource.count() > 0
        });
        for (prefix, kind) in stored {
            match self.by_prefix.get(&prefix) {
                Some(resource) => {
                    let set = resource.set_kind(kind.clone());
                    set.map_err(|error| CacheError::Record { key: prefix, error })?;
                }
                None => {
                    let resource =
                        Resource::new(prefix.clone(), kind.clone(), applied.clone(), stats.clone());
                    self.by_prefix.insert(prefix, Arc::new(resource));
                }
            }
        }
        let unclaimed = std::mem::take(&mut self.unclaimed);
        for (key, (value, revision)) in unclaimed {
            match self.of(&key) {
                Some(resource) => resource.load(entry(resource, &key, &value, revision, None)?),
                None => {
                    self.unclaimed.insert(key, (value, revision));
                }
            }
        }
        Ok(())
    }
}

fn entry(
    resource: &Resource,
    key: &Arc<str>,
    value: &Bytes,
    revision: u64,
    selectable: Option<Selectable>,
) -> Result<Entry, CacheError> {
    let made = resource.entry(key.clone(), value, revision, selectable);
    made.map_err(|error| CacheError::Record { key: key.to_string(), error })
}

impl Cache {
    /// Loads everything under [`ROOT`]; [`Cache::run`] then has to be spawned.
    pub async fn open(
        store: Arc<dyn Store>,
        kinds: Arc<Kinds>,
        stats: Arc<Stats>,
    ) -> Result<Arc<Self>, CacheError> {
        let page = store.list(ROOT, None, None, 0).await?;
        let watch = store.watch(ROOT, page.revision).await?;
        let applied = Arc::new(AtomicU64::new(page.revision.0));
        let mut table = Table { unclaimed: unclaimed(page.records), ..Default::default() };
        table.claim(&kinds, &applied, &stats)?;
        let cache = Cache {
            store,
            kinds,
            feed: Mutex::new(Feed { watch, stall: None }),
            stalled: Notify::new(),
            table: RwLock::new(table),
            pending: Mutex::new(new_map()),
            applied,
            waiters: Mutex::default(),
            values: Mutex::new(Recent::new(VALUES_MAX)),
            stats,
        };
        Ok(Arc::new(cache))
    }

    /// Applies the store's changes until the store closes. An error means that the store's
    /// content cannot be understood.
    pub async fn run(&self) -> Result<(), CacheError> {
        loop {
            let stall = tokio::select! {
                biased;
                stall = poll_fn(|cx| self.poll_feed(cx)) => stall,
                () = self.stalled.notified() => continue,
            };
            let watch = match stall {
                Stall::Broken(error) => return Err(error),
                Stall::Ended(Some(Error::Closed)) => return Ok(()),
                Stall::Ended(_) => match self.store.watch(ROOT, Revision(self.revision())).await {
                    Ok(watch) => watch,
                    Err(Error::Compacted { .. }) => self.reload().await?,
                    Err(Error::Closed) => return Ok(()),
                    Err(error) => return Err(error.into()),
                },
            };
            *self.feed.lock() = Feed { watch, stall: None };
        }
    }

    /// Applies what has come; ready when the watch cannot go on.
    fn poll_feed(&self, cx: &mut Context<'_>) -> Poll<Stall> {
        let mut feed = self.feed.lock();
        loop {
            if let Some(stall) = feed.stall.take() {
                return Poll::Ready(stall);
            }
            feed.stall = match ready!(feed.watch.poll_recv(cx)) {
                Some(item) => self.take(item),
                None => Some(Stall::Ended(None)),
            };
        }
    }

    /// Applies what has come up to `revision`, so that a writer need not wait for the feeder to
    /// be scheduled: the store publishes a change before it acknowledges it.
    fn help(&self, revision: u64) {
        let mut feed = self.feed.lock();
        while self.revision() < revision && feed.stall.is_none() {
            let Ok(item) = feed.watch.try_recv() else { return };
            feed.stall = self.take(item);
        }
        if feed.stall.is_some() {
            self.stalled.notify_one();
        }
    }

    fn take(&self, item: WatchItem) -> Option<Stall> {
        match item {
            WatchItem::Changes(changes) => return self.apply(&changes).err().map(Stall::Broken),
            WatchItem::Progress(revision) => self.advance(revision.0),
            WatchItem::Ended(error) => return Some(Stall::Ended(Some(error))),
        }
        None
    }

    async fn reload(&self) -> Result<Watch, CacheError> {
        let page = self.store.list(ROOT, None, None, 0).await?;
        let watch = self.store.watch(ROOT, page.revision).await?;
        let mut table = self.table.write();
        let mut loaded: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        let mut unknown = BTreeMap::new();
        for record in page.records {
            match table.of(&record.key) {
                Some(resource) => {
                    let entry = entry(resource, &record.key, &record.value, record.modified.0, None)?;
                    loaded.entry(resource.prefix.clone()).or_default().push(entry);
                }
                None => {
                    unknown.insert(record.key, (record.value, record.modified.0));
                }
            }
        }
        table.unclaimed = unknown;
        for (prefix, resource) in &table.by_prefix {
            resource.reset(loaded.remove(prefix).unwrap_or_default(), page.revision.0);
        }
        drop(table);
        self.advance(page.revision.0);
        Ok(watch)
    }

    fn apply(&self, changes: &[Change]) -> Result<(), CacheError> {
        let mut unknown = Vec::new();
        let table = self.table.read();
        for change in changes {
            let Some(resource) = table.of(&change.key) else {
                unknown.push(change);
                continue;
            };
            let revision = change.revision.0;
            let entry = match &change.value {
                Some(value) => {
                    Some(entry(resource, &change.key, value, revision, self.known(&change.key, value))?)
                }
                None => None,
            };
            resource.apply(revision, &change.key[resource.prefix.len()..], entry);
        }
        drop(table);
        if !unknown.is_empty() {
            self.apply_unknown(&unknown)?;
        }
        if let Some(last) = changes.last() {
            self.advance(last.revision.0);
        }
        Ok(())
    }

    /// Changes of keys that had no kind a moment ago; one may have been registered since.
    fn apply_unknown(&self, changes: &[&Change]) -> Result<(), CacheError> {
        let mut table = self.table.write();
        for change in changes {
            let revision = change.revision.0;
            if let Some(resource) = table.of(&change.key) {
                let made =
                    change.value.as_ref().map(|value| entry(resource, &change.key, value, revision, None));
                resource.apply(revision, &change.key[resource.prefix.len()..], made.transpose()?);
            } else if let Some(value) = &change.value {
                table.unclaimed.insert(change.key.clone(), (value.clone(), revision));
            } else {
                table.unclaimed.remove(&change.key);
            }
        }
        Ok(())
    }

    fn advance(&self, revision: u64) {
        self.applied.fetch_max(revision, Ordering::AcqRel);
        let mut waiters = self.waiters.lock();
        let later = waiters.waiting.split_off(&(revision + 1, 0));
        let reached = std::mem::replace(&mut waiters.waiting, later);
        drop(waiters);
        for (_, waiter) in reached {
            // A waiter that gave up is no loss.
            let _ = waiter.send(());
        }
    }

    /// The revision up to which the cache is current.
    pub fn revision(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// Waits until the cache has `revision`; `false` if that takes too long.
    pub async fn wait(&self, revision: u64) -> bool {
        if self.revision() < revision {
            self.help(revision);
        }
        if self.revision() >= revision {
            return true;
        }
        let (sender, reached) = oneshot::channel();
        let id = {
            let mut waiters = self.waiters.lock();
            // It may have been reached before the lock was.
            if self.revision() >= revision {
                return true;
            }
            let id = (revision, waiters.next);
            waiters.next += 1;
            waiters.waiting.insert(id, sender);
            id
        };
        let _forget = Forget { cache: self, id };
        matches!(tokio::time::timeout(FRESH_WAIT, reached).await, Ok(Ok(())))
    }

    /// Tells the feeder what a record about to be written holds.
    pub fn expect(&self, key: &Arc<str>, value: &Bytes, selectable: Selectable) {
        self.pending.lock().entry(key.clone()).or_default().push((value.clone(), selectable));
    }

    /// The write did not happen.
    pub fn unexpect(&self, key: &Arc<str>, value: &Bytes) {
        self.known(key, value);
    }

    fn known(&self, key: &Arc<str>, value: &Bytes) -> Option<Selectable> {
        let mut pending = self.pending.lock();
        let writes = pending.get_mut(key)?;
        let at = writes.iter().position(|(expected, _)| expected == value)?;
        let (_, selectable) = writes.swap_remove(at);
        if writes.is_empty() {
            pending.remove(key);
        }
        Some(selectable)
    }

    /// The resource under a storage prefix (`apps/deployments/`), made now if its kind is new.
    pub fn resource(&self, storage: &str) -> Option<Arc<Resource>> {
        let prefix = format!("{ROOT}{storage}");
        let generation = self.kinds.snapshot().generation;
        {
            let table = self.table.read();
            if table.generation == generation {
                return table.by_prefix.get(&prefix).cloned();
            }
        }
        let mut table = self.table.write();
        if let Err(error) = table.claim(&self.kinds, &self.applied, &self.stats) {
            tracing::error!(%error, "stored objects of a new kind cannot be read");
        }
        table.by_prefix.get(&prefix).cloned()
    }

    fn resource_of(&self, gvr: &Gvr) -> Option<(Arc<Kind>, Arc<Resource>)> {
        let kind = self.kinds.snapshot().by_gvr(gvr)?.clone();
        let resource = self.resource(kind.storage.as_deref()?)?;
        Some((kind, resource))
    }

    pub fn resources(&self) -> Vec<Arc<Resource>> {
        self.table.read().by_prefix.values().cloned().collect()
    }

    /// Sends a bookmark to each watcher that wants them.
    pub fn bookmark(&self) {
        for resource in self.resources() {
            resource.bookmark();
        }
    }

    /// Drops recent changes up to `revision`, which the store has compacted.
    pub fn forget(&self, revision: u64) {
        for resource in self.resources() {
            resource.forget(revision);
        }
    }

    pub fn end_watches(&self) {
        for resource in self.resources() {
            resource.end_watches();
        }
    }

    /// An object, with the row asked for and the one that is stored.
    fn entry_of(&self, gvr: &Gvr, namespace: &str, name: &str) -> Option<(Arc<Kind>, Arc<Kind>, Arc<Entry>)> {
        let (kind, resource) = self.resource_of(gvr)?;
        let entry =
            if kind.namespaced { resource.get(&format!("{namespace}/{name}")) } else { resource.get(name) }?;
        Some((kind, resource.kind(), entry))
    }

    /// The same of all objects of a kind, in one namespace or (empty) all.
    fn page_of(&self, gvr: &Gvr, namespace: &str) -> Option<(Arc<Kind>, Arc<Kind>, Page)> {
        let (kind, resource) = self.resource_of(gvr)?;
        let stored = resource.kind();
        let filter = Filter { namespace: namespace.to_owned(), ..Filter::default() };
        Some((kind, stored, resource.list(&filter, None, 0)))
    }

    /// An object in the version of its kind, decoded.
    fn value(&self, kind: &Kind, stored: &Kind, entry: &Entry) -> Option<Arc<Value>> {
        let is_kept = kind.gvk == stored.gvk && kind.custom.is_none();
        if is_kept
            && let Some((revision, value)) = self.values.lock().get(entry.key())
            && revision == entry.revision
        {
            return Some(value);
        }
        let value: Value = serde_json::from_slice(&crate::convert::output(kind, stored, entry)).ok()?;
        let value = Arc::new(value);
        if is_kept {
            self.values.lock().insert(entry.key().clone(), (entry.revision, value.clone()));
        }
        Some(value)
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}

/// Takes a waiter off the list, also when its request is dropped.
struct Forget<'a> {
    cache: &'a Cache,
    id: (u64, u64),
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.cache.waiters.lock().waiting.remove(&self.id);
    }
}

fn unclaimed(records: Vec<Record>) -> BTreeMap<Arc<str>, (Bytes, u64)> {
    records.into_iter().map(|record| (record.key, (record.value, record.modified.0))).collect()
}

impl Reader for Cache {
    fn get(&self, gvr: &Gvr, namespace: &str, name: &str) -> Option<Bytes> {
        let (kind, stored, entry) = self.entry_of(gvr, namespace, name)?;
        Some(crate::convert::output(&kind, &stored, &entry))
    }

    fn get_value(&self, gvr: &Gvr, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let (kind, stored, entry) = self.entry_of(gvr, namespace, name)?;
        self.value(&kind, &stored, &entry)
    }

    fn list(&self, gvr: &Gvr, namespace: &str) -> Vec<Bytes> {
        let Some((kind, stored, page)) = self.page_of(gvr, namespace) else { return Vec::new() };
        page.entries.iter().map(|e| crate::convert::output(&kind, &stored, e)).collect()
    }

    fn list_values(&self, gvr: &Gvr, namespace: &str) -> Vec<Arc<Value>> {
        let Some((kind, stored, page)) = self.page_of(gvr, namespace) else { return Vec::new() };
        page.entries.iter().filter_map(|entry| self.value(&kind, &stored, entry)).collect()
    }

    fn revisions(&self, gvr: &Gvr) -> (Vec<(String, u64)>, u64) {
        let Some((_, _, page)) = self.page_of(gvr, "") else { return Default::default() };
        let each = page.entries.iter().map(|entry| (entry.name().to_owned(), entry.revision));
        (each.collect(), page.revision)
    }

    fn changes(&self, gvr: &Gvr) -> watch::Receiver<u64> {
        match self.resource_of(gvr) {
            Some((_, resource)) => resource.changes(),
            // A kind that is not stored never changes.
            None => watch::Sender::new(0).subscribe(),
        }
    }
}
