//! Informers: a local copy of a resource, kept up to date by one list and watch per resource and
//! process, with indexes, projections and change handlers.
//! Upstream counterpart: `k8s.io/client-go/tools/cache` shared informers.
//!
//! Promises: handlers of an informer are called one after the other, in the order of the changes
//! of each object; what a handler reads from the informer is at least as new as its change; a
//! handler that comes late first gets `Added` for every object there is; an object that vanished
//! while the watch was down is `Deleted` with its last known state; an object that was deleted
//! and made again is `Deleted` and `Added`. Not promised: to see each version of an object.

use crate::api::{ListOptions, PartialObjectMetadata, Typed, gvr_of};
use crate::cache::{Decoded, Entry, ObjectKey, Objects};
use crate::queue::panic_text;
use crate::reflector;
use crate::transport::Client;
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use skeg_api::{Gvr, Value};
use skeg_base::{HashMap, Level, Random, new_map};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::ops::Deref;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use tokio_util::sync::CancellationToken;

/// All informers of a process. Cheap to clone.
#[derive(Clone)]
pub struct Informers(Arc<Registry>);

struct Registry {
    client: Client,
    random: Random,
    cancel: CancellationToken,
    running: Mutex<BTreeMap<Scope, Running>>,
}

/// What one informer covers.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Scope {
    pub gvr: Gvr,
    pub metadata_only: bool,
    /// Empty for all.
    pub namespace: String,
    pub label_selector: String,
    pub field_selector: String,
}

impl Scope {
    fn all(gvr: &Gvr, metadata_only: bool) -> Self {
        let (namespace, label_selector, field_selector) = Default::default();
        Scope { gvr: gvr.clone(), metadata_only, namespace, label_selector, field_selector }
    }

    fn selected(gvr: Gvr, namespace: &str, options: &ListOptions) -> Self {
        Scope {
            gvr,
            metadata_only: false,
            namespace: namespace.to_owned(),
            label_selector: options.label_selector.clone(),
            field_selector: options.field_selector.clone(),
        }
    }

    pub fn options(&self) -> ListOptions {
        ListOptions {
            label_selector: self.label_selector.clone(),
            field_selector: self.field_selector.clone(),
            ..Default::default()
        }
    }
}

struct Running {
    core: Arc<Core>,
    cancel: CancellationToken,
}

impl Informers {
    /// Informers that read through `client` until `cancel` is cancelled.
    pub fn new(client: Client, random: Random, cancel: CancellationToken) -> Self {
        Informers(Arc::new(Registry { client, random, cancel, running: Mutex::default() }))
    }

    /// The informer of a typed kind; starts it if it is the first to ask. Call inside a runtime.
    pub fn of<K: Typed>(&self) -> Informer<K> {
        Informer::over(self.core(Scope::all(&gvr_of::<K>(), false)))
    }

    /// An informer of a part of a kind: one namespace (empty for all), or what the selectors of
    /// `options` select. For those who may not, or need not, see everything.
    pub fn selected<K: Typed>(&self, namespace: &str, options: &ListOptions) -> Informer<K> {
        Informer::over(self.core(Scope::selected(gvr_of::<K>(), namespace, options)))
    }

    /// Ends an informer of a part of a kind. Handles to it stay readable.
    pub fn stop_selected<K: Typed>(&self, namespace: &str, options: &ListOptions) {
        let scope = Scope::selected(gvr_of::<K>(), namespace, options);
        self.stop_where(|running| *running == scope);
    }

    /// The informer of a resource known by name.
    pub fn dynamic(&self, gvr: &Gvr) -> Informer<Value> {
        Informer::over(self.core(Scope::all(gvr, false)))
    }

    /// An informer of metadata: names, uid, owners, finalizers and deletion; no labels, annotations or
    /// managed fields. Shares the whole-object informer where that already runs.
    pub fn metadata(&self, gvr: &Gvr) -> Informer<PartialObjectMetadata> {
        let full = self.0.running.lock().get(&Scope::all(gvr, false)).map(|running| running.core.clone());
        Informer::over(full.unwrap_or_else(|| self.core(Scope::all(gvr, true))))
    }

    /// Ends the informers of a resource that is gone. Handles to them stay readable.
    pub fn stop(&self, gvr: &Gvr) {
        self.stop_where(|scope| scope.gvr == *gvr);
    }

    fn stop_where(&self, ends: impl Fn(&Scope) -> bool) {
        self.0.running.lock().retain(|scope, running| {
            if ends(scope) {
                running.cancel.cancel();
            }
            !running.cancel.is_cancelled()
        });
    }

    /// Waits until every informer asked for so far has its first complete copy.
    pub async fn synced(&self) {
        let cores: Vec<_> = self.0.running.lock().values().map(|running| running.core.clone()).collect();
        for core in cores {
            core.synced().await;
        }
    }

    pub fn client(&self) -> &Client {
        &self.0.client
    }

    fn core(&self, scope: Scope) -> Arc<Core> {
        let mut running = self.0.running.lock();
        if let Some(known) = running.get(&scope) {
            return known.core.clone();
        }
        let core = Arc::new(Core::default());
        let cancel = self.0.cancel.child_token();
        let (client, random) = (self.0.client.clone(), self.0.random.fork());
        if scope.metadata_only {
            let api = client.metadata(&scope.gvr);
            tokio::spawn(reflector::run(core.clone(), api, scope.clone(), random, cancel.clone()));
        } else {
            let api = client.dynamic(&scope.gvr);
            tokio::spawn(reflector::run(core.clone(), api, scope.clone(), random, cancel.clone()));
        }
        running.insert(scope, Running { core: core.clone(), cancel });
        core
    }
}

/// A change of one object, as a handler gets it.
pub enum Change<'a, K> {
    Added(&'a Object<'a, K>),
    Updated { old: &'a Object<'a, K>, new: &'a Object<'a, K> },
    Deleted(&'a Object<'a, K>),
}

impl<'a, K> Change<'a, K> {
    /// The newest state there is: the last one of a deleted object.
    pub fn object(&self) -> &'a Object<'a, K> {
        match self {
            Change::Added(object) | Change::Updated { new: object, .. } | Change::Deleted(object) => object,
        }
    }

    pub fn key(&self) -> &'a ObjectKey {
        self.object().key()
    }
}

/// An object inside a [`Change`], decoded when first looked into.
pub struct Object<'a, K> {
    decoded: &'a Decoded,
    typed: OnceCell<Arc<K>>,
}

impl<K> Object<'_, K> {
    pub fn key(&self) -> &ObjectKey {
        self.decoded.entry.key()
    }

    /// JSON, revision and uid, without decoding.
    pub fn entry(&self) -> &Entry {
        &self.decoded.entry
    }
}

impl<'a, K: DeserializeOwned + Send + Sync + 'static> Object<'a, K> {
    fn new(decoded: &'a Decoded) -> Self {
        Object { decoded, typed: OnceCell::new() }
    }

    /// The object to keep.
    pub fn arc(&self) -> &Arc<K> {
        self.typed
            .get_or_init(|| self.decoded.get().expect("a change is delivered only where its objects decode"))
    }
}

impl<K: DeserializeOwned + Send + Sync + 'static> Deref for Object<'_, K> {
    type Target = K;

    fn deref(&self) -> &K {
        self.arc()
    }
}

/// The local copy of one resource, seen as objects of type `K`. Cheap to clone.
pub struct Informer<K> {
    core: Arc<Core>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self::over(self.core.clone())
    }
}

impl<K> Informer<K> {
    fn over(core: Arc<Core>) -> Self {
        Informer { core, kind: PhantomData }
    }

    /// Waits for the first complete copy.
    pub async fn synced(&self) {
        self.core.synced().await;
    }

    pub fn is_synced(&self) -> bool {
        self.core.progress.read(|p| p.synced)
    }

    /// Waits until the copy is at least as new as `revision`.
    pub async fn wait_for(&self, revision: u64) {
        self.core.progress.find(|p| (p.synced && p.revision >= revision).then_some(())).await;
    }

    /// The revision the copy shows.
    pub fn revision(&self) -> u64 {
        self.core.progress.read(|p| p.revision)
    }

    pub fn len(&self) -> usize {
        self.core.data.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An object without decoding it.
    pub fn entry(&self, namespace: &str, name: &str) -> Option<Entry> {
        self.core.data.read().objects.get(namespace, name).cloned()
    }

    /// All objects, or those of one namespace, without decoding them; ordered by key.
    pub fn entries(&self, namespace: Option<&str>) -> Vec<Entry> {
        self.core.data.read().objects.list(namespace)
    }

    /// The keys filed under a value of an index, ordered. Empty where there is no such index.
    pub fn keys_by_index(&self, index: &str, value: &str) -> Vec<ObjectKey> {
        self.core.data.read().indexes.get(index).map(|index| index.keys(value)).unwrap_or_default()
    }
}

impl<K: DeserializeOwned + Send + Sync + 'static> Informer<K> {
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.entry(namespace, name)?.decode().map(Arc::new)
    }

    /// All objects, or those of one namespace; ordered by key.
    pub fn list(&self, namespace: Option<&str>) -> Vec<Arc<K>> {
        self.entries(namespace).iter().filter_map(|entry| entry.decode().map(Arc::new)).collect()
    }

    /// The objects filed under a value of an index; ordered by key.
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        let entries: Vec<Entry> = {
            let data = self.core.data.read();
            let keys = data.indexes.get(index).map(|index| index.keys(value)).unwrap_or_default();
            keys.iter().filter_map(|key| data.objects.get(&key.namespace, &key.name).cloned()).collect()
        };
        entries.iter().filter_map(|entry| entry.decode().map(Arc::new)).collect()
    }

    /// Files objects under the values `of` yields. An index that is already there stays.
    pub fn add_index(&self, name: &'static str, of: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        // No change is delivered, and so none applied, while this is held.
        let _delivery = self.core.delivery.lock();
        let mut data = self.core.data.write();
        if data.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { of: Box::new(of), keys: BTreeMap::new(), values: new_map() };
        for entry in data.objects.list(None) {
            index.set(entry.key(), Some(&Decoded::new(entry.clone())));
        }
        data.indexes.insert(name, Box::new(index));
    }

    /// Calls `handler` for every object there is, then for each change. It runs on the informer's
    /// task: let it be short, and never let it subscribe to the same informer.
    pub fn subscribe(&self, handler: impl Fn(Change<'_, K>) + Send + Sync + 'static) -> Subscription {
        self.core.subscribe(Box::new(move |occurrence| deliver(occurrence, &handler)))
    }

    /// Keeps `of` of each object at hand.
    pub fn project<P: PartialEq + Send + Sync + 'static>(
        &self,
        of: impl Fn(&K) -> P + Send + Sync + 'static,
    ) -> Projection<P> {
        let inner = Arc::new(ProjectionInner {
            values: RwLock::default(),
            latest: Mutex::new(None),
            core: Arc::downgrade(&self.core),
        });
        let weak = Arc::downgrade(&inner);
        self.core.add_first(Box::new(move |occurrence| {
            let Some(inner) = weak.upgrade() else { return };
            inner.latest.lock().take();
            deliver(occurrence, &|change: Change<'_, K>| match change {
                Change::Deleted(last) => inner.set(last.key(), None),
                Change::Added(new) | Change::Updated { new, .. } => inner.set(new.key(), Some(of(new))),
            });
        }));
        Projection(inner)
    }
}

/// Ends a subscription; letting go of it does not.
pub struct Subscription {
    core: Weak<Core>,
    id: u64,
}

impl Subscription {
    pub fn unsubscribe(self) {
        if let Some(core) = self.core.upgrade() {
            core.delivery.lock().handlers.retain(|(id, _)| *id != self.id);
        }
    }
}

/// A small value per object, kept up to date. Cheap to clone; ends when the last clone goes.
pub struct Projection<P>(Arc<ProjectionInner<P>>);

impl<P> Clone for Projection<P> {
    fn clone(&self) -> Self {
        Projection(self.0.clone())
    }
}

/// A changed value: before and after.
pub struct ProjectionChange<P> {
    pub key: ObjectKey,
    pub old: Option<Arc<P>>,
    pub new: Option<Arc<P>>,
}

struct ProjectionInner<P> {
    values: RwLock<BTreeMap<ObjectKey, Arc<P>>>,
    /// What the change under delivery did to the values.
    latest: Mutex<Option<Arc<ProjectionChange<P>>>>,
    core: Weak<Core>,
}

impl<P: PartialEq> ProjectionInner<P> {
    fn set(&self, key: &ObjectKey, new: Option<P>) {
        let mut values = self.values.write();
        let old = values.get(key).cloned();
        if old.as_deref() == new.as_ref() {
            return;
        }
        let new = new.map(Arc::new);
        match &new {
            Some(value) => values.insert(key.clone(), value.clone()),
            None => values.remove(key),
        };
        *self.latest.lock() = Some(Arc::new(ProjectionChange { key: key.clone(), old, new }));
    }
}

impl<P: PartialEq + Send + Sync + 'static> Projection<P> {
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<P>> {
        self.at(&ObjectKey::new(namespace, name))
    }

    pub fn at(&self, key: &ObjectKey) -> Option<Arc<P>> {
        self.0.values.read().get(key).cloned()
    }

    /// All values, ordered by key.
    pub fn iter(&self) -> impl Iterator<Item = (ObjectKey, Arc<P>)> + use<P> {
        let values = self.0.values.read();
        values.iter().map(|(key, value)| (key.clone(), value.clone())).collect::<Vec<_>>().into_iter()
    }

    /// The values of one namespace that `keep` keeps, ordered by key. Looks at no others.
    pub fn of_namespace(&self, namespace: &str, keep: impl Fn(&P) -> bool) -> Vec<(ObjectKey, Arc<P>)> {
        let values = self.0.values.read();
        let of_namespace = values
            .range(ObjectKey::new(namespace, "")..)
            .take_while(|(key, _)| &*key.namespace == namespace)
            .filter(|(_, value)| keep(value));
        of_namespace.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    pub fn len(&self) -> usize {
        self.0.values.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `handler` for every value there is, then for each one that becomes different.
    pub fn subscribe(&self, handler: impl Fn(&ProjectionChange<P>) + Send + Sync + 'static) {
        let Some(core) = self.0.core.upgrade() else { return };
        let mut delivery = core.delivery.lock();
        for (key, value) in self.iter() {
            guarded(|| handler(&ProjectionChange { key, old: None, new: Some(value) }));
        }
        let weak = Arc::downgrade(&self.0);
        delivery.push(Box::new(move |_| {
            let latest = weak.upgrade().and_then(|inner| inner.latest.lock().clone());
            if let Some(change) = latest {
                handler(&change);
            }
        }));
    }
}

/// What became of one object.
pub(crate) struct Occurrence {
    old: Option<Decoded>,
    new: Option<Decoded>,
}

type Handler = Box<dyn Fn(&Occurrence) + Send + Sync>;

/// The state of one informer, whatever its objects decode to.
#[derive(Default)]
pub(crate) struct Core {
    data: RwLock<Data>,
    /// Held while a change is applied and delivered, which makes both one step for subscribers.
    /// Always taken before `data`.
    delivery: Mutex<Delivery>,
    pub(crate) progress: Level<Progress>,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Progress {
    pub synced: bool,
    pub revision: u64,
}

#[derive(Default)]
struct Data {
    objects: Objects,
    indexes: BTreeMap<&'static str, Box<dyn AnyIndex>>,
}

#[derive(Default)]
struct Delivery {
    /// Projections: up to date before any handler looks.
    first: Vec<Handler>,
    handlers: Vec<(u64, Handler)>,
    next_id: u64,
}

impl Delivery {
    fn push(&mut self, handler: Handler) -> u64 {
        self.next_id += 1;
        self.handlers.push((self.next_id, handler));
        self.next_id
    }
}

impl Core {
    async fn synced(&self) {
        self.progress.find(|p| p.synced.then_some(())).await;
    }

    fn subscribe(self: &Arc<Self>, handler: Handler) -> Subscription {
        let mut delivery = self.delivery.lock();
        self.replay(&handler);
        Subscription { core: Arc::downgrade(self), id: delivery.push(handler) }
    }

    fn add_first(&self, handler: Handler) {
        let mut delivery = self.delivery.lock();
        self.replay(&handler);
        delivery.first.push(handler);
    }

    fn replay(&self, handler: &Handler) {
        let entries = self.data.read().objects.list(None);
        for entry in entries {
            let occurrence = Occurrence { old: None, new: Some(Decoded::new(entry)) };
            guarded(|| handler(&occurrence));
        }
    }

    /// Takes over a new or changed object. Older or equal versions than the one at hand change
    /// nothing.
    pub(crate) fn upsert(&self, entry: Entry) {
        let delivery = self.delivery.lock();
        self.upsert_locked(&delivery, entry);
    }

    fn upsert_locked(&self, delivery: &Delivery, entry: Entry) {
        let old = self.data.read().objects.get(&entry.key().namespace, &entry.key().name).cloned();
        match old {
            Some(old) if old.uid() != entry.uid() => {
                self.change(delivery, Some(old), None);
                self.change(delivery, None, Some(entry));
            }
            Some(old) if old.revision() >= entry.revision() && entry.revision() != 0 => {}
            old => self.change(delivery, old, Some(entry)),
        }
    }

    /// Takes note of a deletion; `last` is the object's state when it went.
    pub(crate) fn delete(&self, last: Entry) {
        let delivery = self.delivery.lock();
        let known = self.data.read().objects.get(&last.key().namespace, &last.key().name).cloned();
        match known {
            Some(known) if known.uid() == last.uid() => {
                self.change(&delivery, Some(last), None);
            }
            // Not known, or already another object of that name.
            _ => {}
        }
    }

    /// Makes `all` the whole copy: what is not in it was deleted.
    pub(crate) fn replace(&self, all: BTreeMap<ObjectKey, Entry>) {
        let delivery = self.delivery.lock();
        let known = self.data.read().objects.list(None);
        for gone in known.into_iter().filter(|entry| !all.contains_key(entry.key())) {
            self.change(&delivery, Some(gone), None);
        }
        for entry in all.into_values() {
            self.upsert_locked(&delivery, entry);
        }
    }

    fn change(&self, delivery: &Delivery, old: Option<Entry>, new: Option<Entry>) {
        let occurrence = Occurrence { old: old.map(Decoded::new), new: new.map(Decoded::new) };
        {
            let mut data = self.data.write();
            let key = match (&occurrence.new, &occurrence.old) {
                (Some(new), _) => {
                    data.objects.insert(new.entry.clone());
                    new.entry.key()
                }
                (None, Some(old)) => {
                    data.objects.remove(old.entry.key());
                    old.entry.key()
                }
                (None, None) => return,
            };
            for index in data.indexes.values_mut() {
                index.set(key, occurrence.new.as_ref());
            }
        }
        for handler in delivery.first.iter().chain(delivery.handlers.iter().map(|(_, handler)| handler)) {
            guarded(|| handler(&occurrence));
        }
    }
}

/// Calls a typed handler, where the objects decode.
fn deliver<K: DeserializeOwned + Send + Sync + 'static>(
    occurrence: &Occurrence,
    handler: &impl Fn(Change<'_, K>),
) {
    // An object that decoded when it came decodes again, so only those marked bad are tried now.
    let known = |old: &&Decoded| !old.entry.is_bad() || old.get::<K>().is_some();
    let old = occurrence.old.as_ref().filter(known);
    match (old, &occurrence.new) {
        (_, Some(new)) if new.get::<K>().is_none() => {}
        (None, Some(new)) => handler(Change::Added(&Object::new(new))),
        (Some(old), Some(new)) => handler(Change::Updated { old: &Object::new(old), new: &Object::new(new) }),
        (Some(old), None) if old.get::<K>().is_some() => handler(Change::Deleted(&Object::new(old))),
        _ => {}
    }
}

/// A handler that panics is logged and does not harm the others.
fn guarded(call: impl FnOnce()) {
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(call)) {
        tracing::error!(panic = panic_text(&*panic), "an informer's handler panicked");
    }
}

trait AnyIndex: Send + Sync {
    fn set(&mut self, key: &ObjectKey, object: Option<&Decoded>);
    fn keys(&self, value: &str) -> Vec<ObjectKey>;
}

type IndexFn<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

struct Index<K> {
    of: IndexFn<K>,
    keys: BTreeMap<String, BTreeSet<ObjectKey>>,
    values: HashMap<ObjectKey, Vec<String>>,
}

impl<K: DeserializeOwned + Send + Sync + 'static> AnyIndex for Index<K> {
    fn set(&mut self, key: &ObjectKey, object: Option<&Decoded>) {
        let mut values = Vec::new();
        if let Some(object) = object {
            // One that does not decode stays filed as it was.
            let Some(object) = object.get::<K>() else { return };
            guarded(|| values = (self.of)(&object));
        }
        if self.values.get(key).is_some_and(|known| *known == values) {
            return;
        }
        for value in self.values.remove(key).unwrap_or_default() {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
        for value in &values {
            self.keys.entry(value.clone()).or_default().insert(key.clone());
        }
        if !values.is_empty() {
            self.values.insert(key.clone(), values);
        }
    }

    fn keys(&self, value: &str) -> Vec<ObjectKey> {
        self.keys.get(value).map(|keys| keys.iter().cloned().collect()).unwrap_or_default()
    }
}
