//! What an informer holds: per object its JSON, its revision and what indexes and projections
//! derive from it. Plain data; knows nothing of requests.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::any::{Any, TypeId};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Namespace and name of an object: the usual key of a work queue.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectKey {
    pub fn new(namespace: &str, name: &str) -> Self {
        ObjectKey { namespace: namespace.into(), name: name.into() }
    }
}

/// `namespace/name`, or the name alone.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One object as it came.
#[derive(Clone, Debug)]
pub struct Entry(Arc<EntryInner>);

#[derive(Debug)]
struct EntryInner {
    key: ObjectKey,
    revision: u64,
    uid: Box<str>,
    bytes: Bytes,
    /// Some view could not decode it.
    bad: AtomicBool,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: HeadMeta<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMeta<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    #[serde(borrow, default)]
    uid: Cow<'a, str>,
    #[serde(borrow, default)]
    resource_version: Cow<'a, str>,
}

/// What an informer of metadata keeps of it: who an object is, who owns it, what holds it up. Labels,
/// annotations and managed fields take most room, and nobody asks for them.
const KEPT: [&str; 7] =
    ["name", "namespace", "uid", "resourceVersion", "deletionTimestamp", "finalizers", "ownerReferences"];

#[derive(Deserialize, Serialize)]
struct Trimmed<'a> {
    #[serde(borrow)]
    metadata: BTreeMap<&'a str, &'a RawValue>,
}

/// An object's metadata, as far as it is kept.
pub(crate) fn trimmed(object: &[u8]) -> Result<Bytes, serde_json::Error> {
    let mut object: Trimmed<'_> = serde_json::from_slice(object)?;
    object.metadata.retain(|field, _| KEPT.contains(field));
    Ok(Bytes::copy_from_slice(&serde_json::to_vec(&object)?))
}

impl Entry {
    /// Reads name, uid and revision of an object's JSON. Objects of one namespace share its name, where
    /// they come one after the other: `namespace` is that of the last.
    pub fn parse(bytes: Bytes, namespace: &mut Arc<str>) -> Result<Entry, serde_json::Error> {
        let head: Head<'_> = serde_json::from_slice(&bytes)?;
        let meta = &head.metadata;
        if **namespace != *meta.namespace {
            *namespace = meta.namespace.as_ref().into();
        }
        let inner = EntryInner {
            key: ObjectKey { namespace: namespace.clone(), name: meta.name.as_ref().into() },
            revision: meta.resource_version.parse().unwrap_or(0),
            uid: meta.uid.as_ref().into(),
            bad: AtomicBool::new(false),
            bytes,
        };
        Ok(Entry(Arc::new(inner)))
    }

    pub fn key(&self) -> &ObjectKey {
        &self.0.key
    }

    pub fn revision(&self) -> u64 {
        self.0.revision
    }

    pub fn uid(&self) -> &str {
        &self.0.uid
    }

    /// The object's JSON.
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    /// The object decoded; `None`, with a line in the log the first time, where that fails.
    pub fn decode<K: DeserializeOwned>(&self) -> Option<K> {
        match serde_json::from_slice(&self.0.bytes) {
            Ok(object) => Some(object),
            Err(error) => {
                if !self.0.bad.swap(true, Ordering::Relaxed) {
                    tracing::warn!(key = %self.0.key, kind = std::any::type_name::<K>(), %error, "an object does not decode, it is passed over");
                }
                None
            }
        }
    }

    pub(crate) fn is_bad(&self) -> bool {
        self.0.bad.load(Ordering::Relaxed)
    }
}

/// An entry of one event with what its handlers decoded so far, so that each type is decoded once.
pub(crate) struct Decoded {
    pub entry: Entry,
    types: parking_lot::Mutex<Vec<(TypeId, Arc<dyn Any + Send + Sync>)>>,
}

impl Decoded {
    pub fn new(entry: Entry) -> Self {
        Decoded { entry, types: parking_lot::Mutex::default() }
    }

    pub fn get<K: DeserializeOwned + Send + Sync + 'static>(&self) -> Option<Arc<K>> {
        let id = TypeId::of::<K>();
        let mut types = self.types.lock();
        if let Some((_, object)) = types.iter().find(|(known, _)| *known == id) {
            return object.clone().downcast().ok();
        }
        let object = Arc::new(self.entry.decode::<K>()?);
        types.push((id, object.clone()));
        Some(object)
    }
}

/// The objects of one resource, ordered by namespace and name.
#[derive(Default)]
pub(crate) struct Objects {
    by_namespace: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Entry>>,
    len: usize,
}

impl Objects {
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Entry> {
        self.by_namespace.get(namespace)?.get(name)
    }

    pub fn insert(&mut self, entry: Entry) -> Option<Entry> {
        let key = entry.key().clone();
        let old = self.by_namespace.entry(key.namespace).or_default().insert(key.name, entry);
        self.len += usize::from(old.is_none());
        old
    }

    pub fn remove(&mut self, key: &ObjectKey) -> Option<Entry> {
        let names = self.by_namespace.get_mut(&key.namespace)?;
        let old = names.remove(&key.name)?;
        if names.is_empty() {
            self.by_namespace.remove(&key.namespace);
        }
        self.len -= 1;
        Some(old)
    }

    /// All entries, or those of one namespace.
    pub fn list(&self, namespace: Option<&str>) -> Vec<Entry> {
        match namespace {
            Some(ns) => {
                self.by_namespace.get(ns).map(|names| names.values().cloned().collect()).unwrap_or_default()
            }
            None => self.by_namespace.values().flat_map(BTreeMap::values).cloned().collect(),
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }
}
