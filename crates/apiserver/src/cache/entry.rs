//! One object and one change of an object, as the cache holds them.

use crate::protobuf::Target;
use crate::record::{self, Body, RecordError};
use bytes::Bytes;
use serde::Deserialize;
use skeg_api::selector::{FieldSelector, LabelSelector};
use skeg_api::{Kind, Value, meta};
use std::borrow::{Borrow, Cow};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// Key and value pairs, few enough for a linear search.
pub type Pairs<K> = Box<[(K, Box<str>)]>;

/// An object at one revision. The body is shared with the store's record: one copy per object.
#[derive(Debug)]
pub struct Entry {
    /// The storage key; `path` is what follows the kind's prefix.
    key: Arc<str>,
    prefix_len: u32,
    pub body: Body,
    /// What the store holds, where that is in another form: a custom resource that was written before
    /// its definition changed.
    pub stored: Option<Body>,
    /// It is in another version than the one that is stored by now, and only a webhook can change that.
    pub is_foreign: bool,
    pub revision: u64,
    pub labels: Pairs<Box<str>>,
    pub fields: Pairs<&'static str>,
}

/// What selectors look at, taken from the object when it was encoded.
#[derive(Clone, Debug, Default)]
pub struct Selectable {
    pub labels: Pairs<Box<str>>,
    pub fields: Pairs<&'static str>,
}

impl Selectable {
    pub fn of(kind: &Kind, object: &Value) -> Self {
        let labels = meta::labels(object).into_iter().flatten();
        let labels =
            labels.map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into())).collect();
        let fields = kind.selectable(object).into_iter().map(|(k, v)| (k, v.into())).collect();
        Selectable { labels, fields }
    }

    /// From the encoded body: only labels where the kind selects by nothing else.
    fn of_body(kind: &Kind, json: &[u8]) -> Result<Self, serde_json::Error> {
        if !kind.selectable_keys().is_empty() {
            return Ok(Self::of(kind, &serde_json::from_slice(json)?));
        }
        #[derive(Deserialize)]
        struct Head<'a> {
            #[serde(borrow)]
            metadata: Metadata<'a>,
        }
        #[derive(Deserialize)]
        struct Metadata<'a> {
            #[serde(borrow, default)]
            labels: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
        }
        let head: Head<'_> = serde_json::from_slice(json)?;
        let labels = head.metadata.labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        Ok(Selectable { labels, fields: Box::default() })
    }
}

impl Entry {
    /// From a stored record; `selectable` where the writer already knows it.
    pub fn new(
        kind: &Kind,
        prefix_len: usize,
        key: Arc<str>,
        value: &Bytes,
        revision: u64,
        selectable: Option<Selectable>,
    ) -> Result<Self, RecordError> {
        let body = record::decode(value)?;
        let Renewed { body, stored, is_foreign } = match kind.custom.is_some() && selectable.is_none() {
            true => renew(kind, body)?,
            false => Renewed { body, stored: None, is_foreign: false },
        };
        let selectable = match selectable {
            Some(selectable) => selectable,
            None => Selectable::of_body(kind, &body.json).map_err(|e| RecordError::Encode(e.to_string()))?,
        };
        let Selectable { labels, fields } = selectable;
        Ok(Entry { key, prefix_len: prefix_len as u32, body, stored, is_foreign, revision, labels, fields })
    }

    /// The same object in the form that another row says.
    pub fn renewed(&self, kind: &Kind) -> Result<Self, RecordError> {
        let renewed = renew(kind, self.stored.as_ref().unwrap_or(&self.body).clone())?;
        let Renewed { body, stored, is_foreign } = renewed;
        let Selectable { labels, fields } =
            Selectable::of_body(kind, &body.json).map_err(|e| RecordError::Encode(e.to_string()))?;
        Ok(Entry {
            key: self.key.clone(),
            prefix_len: self.prefix_len,
            body,
            stored,
            is_foreign,
            revision: self.revision,
            labels,
            fields,
        })
    }

    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// `namespace/name`, or `name` for cluster-scoped kinds: the order of lists.
    pub fn path(&self) -> &str {
        &self.key[self.prefix_len as usize..]
    }

    /// Empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.path().split_once('/').map_or("", |(ns, _)| ns)
    }

    pub fn name(&self) -> &str {
        self.path().split_once('/').map_or(self.path(), |(_, name)| name)
    }

    /// The object as clients see it.
    pub fn json(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.body.len(self.revision));
        self.body.write(self.revision, &mut out);
        out.into()
    }

    /// Decodes the object, with its resourceVersion.
    pub fn value(&self) -> Value {
        let mut value: Value =
            serde_json::from_slice(&self.body.json).expect("bodies are encoded by the server");
        meta::set_resource_version(&mut value, &self.revision.to_string());
        value
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        match name {
            "metadata.name" => Some(self.name()),
            "metadata.namespace" => Some(self.namespace()),
            _ => self.fields.iter().find(|(k, _)| *k == name).map(|(_, v)| &**v),
        }
    }
}

/// A record as its row wants it.
struct Renewed {
    body: Body,
    /// What was stored, where that is not the same.
    stored: Option<Body>,
    is_foreign: bool,
}

/// A custom resource as its row says it should be: in the storage version, without fields that the
/// schema does not have, with defaults. What only a webhook can convert stays as it is until someone
/// asks for it.
fn renew(kind: &Kind, body: Body) -> Result<Renewed, RecordError> {
    let broken = |error: &dyn std::fmt::Display| RecordError::Encode(error.to_string());
    let mut object: Value = serde_json::from_slice(&body.json).map_err(|error| broken(&error))?;
    if kind.conversion().is_some() && meta::api_version(&object) != kind.gvk.api_version() {
        return Ok(Renewed { body, stored: None, is_foreign: true });
    }
    crate::convert::fit(kind, &mut object);
    let fresh = record::decode(&record::encode(&kind.gvk.version, &object)?)?;
    let is_same = fresh.json == body.json;
    let (body, stored) = if is_same { (body, None) } else { (fresh, Some(body)) };
    Ok(Renewed { body, stored, is_foreign: false })
}

/// An entry in a kind's ordered set, found by its path.
#[derive(Clone, Debug)]
pub(super) struct Item(pub Arc<Entry>);

impl Borrow<str> for Item {
    fn borrow(&self) -> &str {
        self.0.path()
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.0.path() == other.0.path()
    }
}

impl Eq for Item {}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.path().cmp(other.0.path())
    }
}

/// Which objects of a kind a list or watch is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Empty for all namespaces and for cluster-scoped kinds.
    pub namespace: String,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
}

impl Filter {
    pub fn matches(&self, entry: &Entry) -> bool {
        (self.namespace.is_empty() || entry.namespace() == self.namespace)
            && (self.labels.is_everything() || self.labels.matches(&*entry.labels))
            && (self.fields.is_everything() || self.fields.matches(|name| entry.field(name)))
    }

    /// Whether only the namespace narrows the list.
    pub fn selects_all(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Added,
    Modified,
    Deleted,
}

impl Type {
    pub fn as_str(self) -> &'static str {
        match self {
            Type::Added => "ADDED",
            Type::Modified => "MODIFIED",
            Type::Deleted => "DELETED",
        }
    }
}

/// One change of one object.
#[derive(Debug)]
pub struct Event {
    pub revision: u64,
    /// The new state; `None` for a deletion.
    pub current: Option<Arc<Entry>>,
    pub previous: Option<Arc<Entry>>,
    /// The watch frame of each type as JSON, and as protobuf, made once for all watchers.
    frames: [OnceLock<Bytes>; 6],
}

impl Event {
    pub fn new(revision: u64, current: Option<Arc<Entry>>, previous: Option<Arc<Entry>>) -> Self {
        Event { revision, current, previous, frames: Default::default() }
    }

    /// The entry that names the object.
    pub fn subject(&self) -> Option<&Arc<Entry>> {
        self.current.as_ref().or(self.previous.as_ref())
    }

    /// How the change looks to a watcher with this filter: an object that leaves the filter is
    /// deleted, with its last state in it.
    pub fn seen_by(&self, filter: &Filter) -> Option<Type> {
        let now = self.current.as_ref().is_some_and(|e| filter.matches(e));
        let before = self.previous.as_ref().is_some_and(|e| filter.matches(e));
        match (before, now) {
            (false, false) => None,
            (false, true) => Some(Type::Added),
            (true, true) => Some(Type::Modified),
            (true, false) => Some(Type::Deleted),
        }
    }

    /// The object that an event of this type carries; its resourceVersion is the event's.
    pub fn object(&self, kind: Type) -> Option<&Arc<Entry>> {
        if kind == Type::Deleted { self.previous.as_ref() } else { self.current.as_ref() }
    }

    /// The JSON frame, ending in a line break.
    pub fn frame(&self, kind: Type) -> Bytes {
        let make = || {
            let Some(entry) = self.object(kind) else { return Bytes::new() };
            let mut out = Vec::with_capacity(entry.body.len(self.revision) + 40);
            frame_head(kind.as_str(), &mut out);
            entry.body.write(self.revision, &mut out);
            out.extend_from_slice(b"}\n");
            out.into()
        };
        self.frames[kind as usize].get_or_init(make).clone()
    }

    /// The protobuf frame.
    pub fn protobuf_frame(&self, kind: Type, target: &Target) -> Bytes {
        let make = || {
            let entry = self.object(kind);
            entry.map_or_else(Bytes::new, |entry| {
                target.frame(kind.as_str(), &entry.body, self.revision).into()
            })
        };
        if target.is_whole() { self.frames[3 + kind as usize].get_or_init(make).clone() } else { make() }
    }

    pub(super) fn bytes(&self) -> usize {
        let len = |e: &Option<Arc<Entry>>| e.as_ref().map_or(0, |e| e.body.json.len());
        len(&self.current) + len(&self.previous)
    }
}

pub(crate) fn frame_head(kind: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
}
