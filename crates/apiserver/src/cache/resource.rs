//! The cache of one kind of stored object: the ordered set of entries, the recent changes, and
//! the watchers. Lists and watches share one order: a list at revision N and a watch after N miss
//! nothing and repeat nothing. Upstream counterpart: `storage/cacher` and its watch cache.

use super::entry::{Entry, Event, Filter, Item, Selectable, Type};
use crate::record::RecordError;
use crate::stats::{self, Stats};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use skeg_api::Kind;
use skeg_base::{HashMap, new_map};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, watch};

/// Recent changes kept per kind, to resume watches and to page at an older revision.
const RING_EVENTS_MAX: usize = 4096;
const RING_BYTES_MAX: usize = 8 << 20;
/// Changes a watcher may be behind before it is ended; its client lists or resumes.
pub const WATCHER_BACKLOG_MAX: usize = 8192;

/// The largest compressed list that is kept.
const PACKED_BYTES_MAX: usize = 4 << 20;

/// What a watcher is handed.
#[derive(Clone, Debug)]
pub enum Notice {
    /// With how many watchers are handed it.
    Event(Arc<Event>, Type, usize),
    /// Everything up to this revision was delivered.
    Bookmark(u64),
}

/// Where a watch starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// With the state now, as initial events.
    State,
    /// With what happens from now on.
    Now,
    /// After this revision.
    After(u64),
}

/// The revision asked for is older than the recent changes reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooOld {
    pub oldest: u64,
}

/// One page of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub entries: Vec<Arc<Entry>>,
    pub revision: u64,
    /// Whether matching entries may follow.
    pub more: bool,
    /// How many follow; not counted where a selector would have to look at each.
    pub remaining: Option<u64>,
}

/// A running watch: first `initial`, then `missed`, then what `notices` brings. Dropping it ends it.
pub struct Subscription {
    pub initial: Vec<Arc<Entry>>,
    pub missed: Vec<(Arc<Event>, Type)>,
    /// The revision of `initial`, or the one the watch starts after.
    pub revision: u64,
    pub notices: mpsc::Receiver<Notice>,
    _registration: Registration,
}

struct Registration {
    resource: Arc<Resource>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.resource.log.lock().watchers.remove(self.id) {
            stats::sub(&self.resource.stats.watchers, 1);
        }
    }
}

pub struct Resource {
    /// `/registry/apps/deployments/`
    pub prefix: String,
    kind: RwLock<Arc<Kind>>,
    objects: RwLock<Objects>,
    /// Locked before `objects` where both are.
    log: Mutex<Log>,
    changes: watch::Sender<u64>,
    /// The last compressed list, as long as nothing of the kind changes.
    packed: Mutex<Option<Packed>>,
    /// The revision up to which every kind is current.
    applied: Arc<AtomicU64>,
    stats: Arc<Stats>,
}

/// A compressed list, good until the kind changes.
struct Packed {
    /// What was asked.
    key: String,
    /// The revision that the list shows.
    revision: u64,
    bytes: Bytes,
}

#[derive(Default)]
struct Objects {
    set: BTreeSet<Item>,
    /// Of the last change of this kind.
    revision: u64,
}

struct Log {
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    /// All changes after this revision are in the ring.
    floor: u64,
    watchers: Watchers,
    /// Without a row nothing can be watched, also by those who found the resource before.
    is_retired: bool,
}

impl Resource {
    pub(super) fn new(prefix: String, kind: Arc<Kind>, applied: Arc<AtomicU64>, stats: Arc<Stats>) -> Self {
        let floor = applied.load(Ordering::Acquire);
        Resource {
            prefix,
            kind: RwLock::new(kind),
            objects: RwLock::default(),
            log: Mutex::new(Log {
                ring: VecDeque::new(),
                ring_bytes: 0,
                floor,
                watchers: Watchers::default(),
                is_retired: false,
            }),
            changes: watch::Sender::new(0),
            packed: Mutex::default(),
            applied,
            stats,
        }
    }

    /// The row whose version is stored.
    pub fn kind(&self) -> Arc<Kind> {
        self.kind.read().clone()
    }

    /// The row is another. Custom resources are brought into the form that it says, and those who
    /// watch them list again.
    pub(super) fn set_kind(&self, kind: Arc<Kind>) -> Result<(), RecordError> {
        self.log.lock().is_retired = false;
        let same = Arc::ptr_eq(&self.kind.read(), &kind);
        *self.kind.write() = kind.clone();
        if same || kind.custom.is_none() {
            return Ok(());
        }
        let mut log = self.log.lock();
        let mut objects = self.objects.write();
        let renewed: Result<_, RecordError> =
            objects.set.iter().map(|item| Ok(Item(Arc::new(item.0.renewed(&kind)?)))).collect();
        objects.set = renewed?;
        *self.packed.lock() = None;
        self.end(&mut log);
        Ok(())
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// How many objects there are.
    pub fn count(&self) -> usize {
        self.objects.read().set.len()
    }

    pub fn get(&self, path: &str) -> Option<Arc<Entry>> {
        self.objects.read().set.get(path).map(|item| item.0.clone())
    }

    pub fn entry(
        &self,
        key: Arc<str>,
        value: &Bytes,
        revision: u64,
        selectable: Option<Selectable>,
    ) -> Result<Entry, RecordError> {
        Entry::new(&self.kind(), self.prefix.len(), key, value, revision, selectable)
    }

    /// Puts an entry in place at start, without an event.
    pub(super) fn load(&self, entry: Entry) {
        let mut objects = self.objects.write();
        objects.revision = objects.revision.max(entry.revision);
        objects.set.replace(Item(Arc::new(entry)));
    }

    /// Forgets everything after the store's history was lost; watchers end and list again.
    pub(super) fn reset(&self, entries: Vec<Entry>, revision: u64) {
        let mut log = self.log.lock();
        let mut objects = self.objects.write();
        objects.set = entries.into_iter().map(|entry| Item(Arc::new(entry))).collect();
        objects.revision = revision;
        log.ring.clear();
        log.ring_bytes = 0;
        log.floor = revision;
        self.end(&mut log);
        self.changes.send_modify(|n| *n += 1);
    }

    /// The compressed list that answers `key`, where the kind has not changed since.
    pub fn packed(&self, key: &str, revision_min: u64) -> Option<Bytes> {
        let changed = self.objects.read().revision;
        let mut slot = self.packed.lock();
        if slot.as_ref().is_some_and(|packed| packed.revision < changed) {
            *slot = None;
        }
        let packed = slot.as_ref().filter(|packed| packed.key == key && packed.revision >= revision_min);
        packed.map(|packed| packed.bytes.clone())
    }

    /// Keeps a compressed list of the state at `revision`.
    pub fn keep_packed(&self, key: &str, revision: u64, bytes: &Bytes) {
        if bytes.len() <= PACKED_BYTES_MAX {
            *self.packed.lock() = Some(Packed { key: key.to_owned(), revision, bytes: bytes.clone() });
        }
    }

    /// Ends all watches.
    pub fn end_watches(&self) {
        self.end(&mut self.log.lock());
    }

    /// Ends all watches, and those that begin before there is a row again.
    pub(super) fn retire(&self) {
        let mut log = self.log.lock();
        log.is_retired = true;
        self.end(&mut log);
    }

    fn end(&self, log: &mut Log) {
        let ended = std::mem::take(&mut log.watchers);
        stats::sub(&self.stats.watchers, ended.by_id.len() as u64);
        log.watchers.next_id = ended.next_id;
    }

    /// Applies one change; `entry` is `None` for a deletion of `path`. Called in revision order.
    pub(super) fn apply(&self, revision: u64, path: &str, entry: Option<Entry>) -> Option<Arc<Entry>> {
        let mut log = self.log.lock();
        let current = entry.map(Arc::new);
        let previous = {
            let mut objects = self.objects.write();
            objects.revision = revision;
            match &current {
                Some(entry) => objects.set.replace(Item(entry.clone())),
                None => objects.set.take(path),
            }
        };
        let previous = previous.map(|item| item.0);
        if current.is_none() && previous.is_none() {
            return None;
        }
        let event = Arc::new(Event::new(revision, current, previous.clone()));
        log.push(event.clone());
        let (sent, dropped) = log.watchers.dispatch(&event);
        drop(log);
        if sent > 0 {
            stats::add(&self.stats.watch_events_total, sent);
        }
        if dropped > 0 {
            stats::add(&self.stats.watches_dropped_total, dropped);
            stats::sub(&self.stats.watchers, dropped);
        }
        // Whoever lists next would find it stale; the memory is better free.
        *self.packed.lock() = None;
        self.changes.send_modify(|n| *n += 1);
        previous
    }

    /// Sends bookmarks to the watchers that asked for them.
    pub(super) fn bookmark(&self) {
        let log = self.log.lock();
        let revision = self.revision(&self.objects.read());
        for watcher in log.watchers.by_id.values().filter(|w| w.bookmarks) {
            // A full channel has events in it, which tell the client more.
            let _ = watcher.sender.try_send(Notice::Bookmark(revision));
        }
    }

    /// Drops changes at or before `revision` from the recent ones.
    pub(super) fn forget(&self, revision: u64) {
        let mut log = self.log.lock();
        while log.ring.front().is_some_and(|event| event.revision <= revision) {
            log.pop();
        }
        log.floor = log.floor.max(revision.min(self.applied.load(Ordering::Acquire)));
        log.ring.shrink_to_fit();
    }

    /// What this kind's state is current to, for a reader that holds the lock on it. Kinds are
    /// brought up to date one after the other, so a change of this one may be ahead of `applied`.
    fn revision(&self, objects: &Objects) -> u64 {
        self.applied.load(Ordering::Acquire).max(objects.revision)
    }

    pub fn current_revision(&self) -> u64 {
        self.revision(&self.objects.read())
    }

    /// The state now: up to `limit` (0: all) matching entries after the path `after`.
    pub fn list(&self, filter: &Filter, after: Option<&str>, limit: usize) -> Page {
        let objects = self.objects.read();
        let revision = self.revision(&objects);
        if let Some(path) = single_path(filter) {
            let entry = objects.set.get(path.as_str()).filter(|e| filter.matches(&e.0)).map(|e| e.0.clone());
            let entry = entry.filter(|e| after.is_none_or(|after| e.path() > after));
            return Page { entries: entry.into_iter().collect(), revision, more: false, remaining: None };
        }
        let (start, end) = bounds(&filter.namespace, after);
        let range = objects
            .set
            .range::<str, _>((start.as_ref().map(String::as_str), end.as_ref().map(String::as_str)));
        page(range.map(|item| &item.0), filter, limit, revision)
    }

    /// The state at an older revision, as far as the recent changes reach back.
    pub fn list_at(
        &self,
        at: u64,
        filter: &Filter,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, TooOld> {
        let log = self.log.lock();
        let objects = self.objects.read();
        if at < log.floor {
            return Err(TooOld { oldest: log.floor });
        }
        if objects.revision <= at {
            drop((objects, log));
            // A write may have slipped in between: then the page would be newer than asked.
            let newest = self.list(filter, after, limit);
            return if newest.revision == at || self.objects.read().revision <= at {
                Ok(Page { revision: at, ..newest })
            } else {
                self.list_at(at, filter, after, limit)
            };
        }
        // Undo from the newest change to the first one after `at`; that one's previous state stays.
        let mut undone: BTreeMap<&str, Option<&Arc<Entry>>> = BTreeMap::new();
        for event in log.ring.iter().rev().take_while(|event| event.revision > at) {
            if let Some(subject) = event.subject() {
                undone.insert(subject.path(), event.previous.as_ref());
            }
        }
        let (start, end) = bounds(&filter.namespace, after);
        let range = (start.as_ref().map(String::as_str), end.as_ref().map(String::as_str));
        let mut then: BTreeMap<&str, &Arc<Entry>> =
            objects.set.range::<str, _>(range).map(|item| (item.0.path(), &item.0)).collect();
        for (path, entry) in undone.range::<str, _>(range) {
            match entry {
                Some(entry) => then.insert(path, entry),
                None => then.remove(path),
            };
        }
        Ok(page(then.into_values(), filter, limit, at))
    }

    /// Starts a watch.
    pub fn watch(
        self: &Arc<Self>,
        filter: Filter,
        since: Since,
        bookmarks: bool,
    ) -> Result<Subscription, TooOld> {
        let mut log = self.log.lock();
        let objects = self.objects.read();
        let now = self.revision(&objects);
        let (mut initial, mut missed) = (Vec::new(), Vec::new());
        let after = match since {
            Since::State => {
                let (start, end) = bounds(&filter.namespace, None);
                let range = (start.as_ref().map(String::as_str), end.as_ref().map(String::as_str));
                let entries = objects.set.range::<str, _>(range).map(|item| &item.0);
                initial.extend(entries.filter(|entry| filter.matches(entry)).cloned());
                now
            }
            Since::Now => now,
            Since::After(after) if after < log.floor => return Err(TooOld { oldest: log.floor }),
            Since::After(after) => {
                let later = log.ring.iter().skip(log.ring.partition_point(|event| event.revision <= after));
                missed.extend(later.filter_map(|event| Some((event.clone(), event.seen_by(&filter)?))));
                after
            }
        };
        drop(objects);
        let (sender, notices) = mpsc::channel(WATCHER_BACKLOG_MAX);
        let id =
            log.watchers.add(Watcher { scope: Scope::of(&filter, self), filter, after, bookmarks, sender });
        stats::add(&self.stats.watchers, 1);
        if log.is_retired {
            self.end(&mut log);
        }
        drop(log);
        let registration = Registration { resource: self.clone(), id };
        Ok(Subscription { initial, missed, revision: after, notices, _registration: registration })
    }
}

impl Log {
    fn push(&mut self, event: Arc<Event>) {
        self.ring_bytes += event.bytes();
        self.ring.push_back(event);
        while self.ring.len() > RING_EVENTS_MAX || (self.ring_bytes > RING_BYTES_MAX && self.ring.len() > 1) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(event) = self.ring.pop_front() {
            self.ring_bytes -= event.bytes();
            self.floor = self.floor.max(event.revision);
        }
    }
}

/// The path, where a filter can match one object at most.
fn single_path(filter: &Filter) -> Option<String> {
    let name = filter.fields.exact("metadata.name")?;
    (!filter.namespace.is_empty()).then(|| format!("{}/{name}", filter.namespace))
}

type Bounds = (Bound<String>, Bound<String>);

fn bounds(namespace: &str, after: Option<&str>) -> Bounds {
    let (first, end) = if namespace.is_empty() {
        (Bound::Unbounded, Bound::Unbounded)
    } else {
        // '0' follows '/'.
        (Bound::Included(format!("{namespace}/")), Bound::Excluded(format!("{namespace}0")))
    };
    match (after, &first) {
        (None, _) => (first, end),
        (Some(after), Bound::Included(start)) if after < start.as_str() => (first, end),
        (Some(after), _) => match &end {
            // Ranges must not be inverted, and a token is the client's.
            Bound::Excluded(last) if after >= last.as_str() => (Bound::Included(last.clone()), end),
            _ => (Bound::Excluded(after.to_owned()), end),
        },
    }
}

fn page<'a>(
    mut range: impl Iterator<Item = &'a Arc<Entry>>,
    filter: &Filter,
    limit: usize,
    revision: u64,
) -> Page {
    let all = filter.selects_all();
    let limit = if limit == 0 { usize::MAX } else { limit };
    let mut entries: Vec<Arc<Entry>> = Vec::new();
    for entry in range.by_ref() {
        if !all && !filter.matches(entry) {
            continue;
        }
        if entries.len() == limit {
            let remaining = all.then(|| 1 + range.count() as u64);
            return Page { entries, revision, more: true, remaining };
        }
        entries.push(entry.clone());
    }
    Page { entries, revision, more: false, remaining: None }
}

struct Watcher {
    filter: Filter,
    scope: Scope,
    after: u64,
    bookmarks: bool,
    sender: mpsc::Sender<Notice>,
}

/// The index a watcher is found by: the narrowest that its filter allows.
#[derive(Clone, Debug)]
enum Scope {
    All,
    Namespace(String),
    Path(String),
    Field(String, String),
}

impl Scope {
    fn of(filter: &Filter, resource: &Resource) -> Self {
        if let Some(path) = single_path(filter) {
            return Scope::Path(path);
        }
        let kind = resource.kind();
        if !kind.namespaced
            && let Some(name) = filter.fields.exact("metadata.name")
        {
            return Scope::Path(name.to_owned());
        }
        let keys = kind.selectable_keys();
        if let Some((key, value)) = keys.iter().find_map(|key| Some((*key, filter.fields.exact(key)?))) {
            return Scope::Field(key.to_owned(), value.to_owned());
        }
        if filter.namespace.is_empty() { Scope::All } else { Scope::Namespace(filter.namespace.clone()) }
    }
}

#[derive(Default)]
struct Watchers {
    next_id: u64,
    /// Boxed: most kinds have one watcher, and a node of the tree has room for eleven.
    by_id: BTreeMap<u64, Box<Watcher>>,
    all: Vec<u64>,
    by_namespace: HashMap<String, Vec<u64>>,
    by_path: HashMap<String, Vec<u64>>,
    by_field: BTreeMap<String, HashMap<String, Vec<u64>>>,
}

impl Watchers {
    fn add(&mut self, watcher: Watcher) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        match watcher.scope.clone() {
            Scope::All => self.all.push(id),
            Scope::Namespace(ns) => self.by_namespace.entry(ns).or_default().push(id),
            Scope::Path(path) => self.by_path.entry(path).or_default().push(id),
            Scope::Field(key, value) => {
                self.by_field.entry(key).or_insert_with(new_map).entry(value).or_default().push(id);
            }
        }
        self.by_id.insert(id, Box::new(watcher));
        id
    }

    fn remove(&mut self, id: u64) -> bool {
        let Some(watcher) = self.by_id.remove(&id) else { return false };
        let unlist = |map: &mut HashMap<String, Vec<u64>>, key: &str| {
            if let Some(ids) = map.get_mut(key) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    map.remove(key);
                }
            }
        };
        match &watcher.scope {
            Scope::All => self.all.retain(|other| *other != id),
            Scope::Namespace(ns) => unlist(&mut self.by_namespace, ns),
            Scope::Path(path) => unlist(&mut self.by_path, path),
            Scope::Field(key, value) => {
                if let Some(values) = self.by_field.get_mut(key) {
                    unlist(values, value);
                }
            }
        }
        true
    }

    /// Hands the event to each watcher that sees it; ends those that cannot take it.
    /// Returns how many got it and how many were ended.
    fn dispatch(&mut self, event: &Arc<Event>) -> (u64, u64) {
        if self.by_id.is_empty() {
            return (0, 0);
        }
        let Some(subject) = event.subject() else { return (0, 0) };
        let mut ids: Vec<u64> = self.all.clone();
        ids.extend(self.by_namespace.get(subject.namespace()).into_iter().flatten());
        ids.extend(self.by_path.get(subject.path()).into_iter().flatten());
        for (key, values) in &self.by_field {
            let of = |entry: &Option<Arc<Entry>>| {
                entry.as_ref().and_then(|e| values.get(e.field(key).unwrap_or_default()))
            };
            let (now, before) = (of(&event.current), of(&event.previous));
            ids.extend(now.into_iter().flatten());
            if !matches!((now, before), (Some(a), Some(b)) if std::ptr::eq(a, b)) {
                ids.extend(before.into_iter().flatten());
            }
        }
        let (mut sent, mut slow, watchers) = (0, Vec::new(), ids.len());
        for id in ids {
            let Some(watcher) = self.by_id.get(&id) else { continue };
            if event.revision <= watcher.after {
                continue;
            }
            let Some(kind) = event.seen_by(&watcher.filter) else { continue };
            match watcher.sender.try_send(Notice::Event(event.clone(), kind, watchers)) {
                Ok(()) => sent += 1,
                Err(mpsc::error::TrySendError::Full(_)) => slow.push(id),
                // Its registration is being dropped.
                Err(mpsc::error::TrySendError::Closed(_)) => {}
            }
        }
        let dropped = slow.into_iter().filter(|id| self.remove(*id)).count() as u64;
        (sent, dropped)
    }
}
