//! A revisioned key-value log: transactions, watch, compaction. Values are opaque bytes; the
//! store does not know JSON, kinds or users. Upstream counterpart: etcd's v3 API as
//! `k8s.io/apiserver/pkg/storage/etcd3` uses it.

mod apply;
mod hub;
mod memory;
mod sqlite;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

pub use memory::Memory;
pub use sqlite::{Options, Sqlite, Synchronous};

/// The largest value the store takes, in bytes (etcd's default request limit).
pub const VALUE_MAX_BYTES: usize = 1_572_864;

/// A point in the one global order of all writes. Starts at 1; each write is one higher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One key at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Arc<str>,
    pub value: Bytes,
    /// When this incarnation of the key was created.
    pub created: Revision,
    /// When this value was written.
    pub modified: Revision,
}

/// What a write demands of the key before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist (create).
    Absent,
    /// The key exists and was last modified at this revision (compare-and-swap).
    Modified(Revision),
    /// The key exists, at whatever revision.
    Present,
}

/// One write: sets the key, or deletes it where `value` is `None`.
#[derive(Clone, Debug)]
pub struct Write {
    pub key: Arc<str>,
    pub expect: Expect,
    pub value: Option<Bytes>,
    /// The key disappears this long after the write (Events). A later write sets it anew.
    pub ttl: Option<Duration>,
}

/// An acknowledged, durable write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub revision: Revision,
    /// The record that this write replaced or deleted.
    pub previous: Option<Record>,
}

/// One page of a prefix, in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub records: Vec<Record>,
    /// The revision that the page shows.
    pub revision: Revision,
    /// Keys after this page.
    pub remaining: u64,
}

/// One change, as a watch delivers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: Revision,
    pub key: Arc<str>,
    /// The new value; `None` for a deletion.
    pub value: Option<Bytes>,
    /// When this incarnation of the key was created.
    pub created: Revision,
    pub previous: Option<Record>,
}

/// What a watch yields, in revision order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// All changes of one batch under the prefix, in order; never split within a revision.
    Changes(Arc<[Change]>),
    /// Everything up to here was delivered.
    Progress(Revision),
    /// The watch fell behind the compacted revision or its buffer; the reader lists again.
    Ended(Error),
}

/// A running watch. Dropping it ends it.
pub type Watch = mpsc::Receiver<WatchItem>;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The expectation did not hold; carries what is there.
    #[error("the key is not as expected")]
    Conflict { current: Option<Record> },
    /// The revision asked for is compacted; the oldest that can be read is given.
    #[error("revision is compacted; the oldest kept is {oldest}")]
    Compacted { oldest: Revision },
    /// The revision asked for is not written yet.
    #[error("revision {asked} is in the future; the newest is {newest}")]
    Future { asked: Revision, newest: Revision },
    #[error("value of {bytes} bytes is over the limit of {VALUE_MAX_BYTES}")]
    TooLarge { bytes: usize },
    /// The write may or may not have happened (a lost connection, a crash on the way).
    #[error("the outcome of the write is unknown: {0}")]
    OutcomeUnknown(String),
    #[error("the store is closed")]
    Closed,
    #[error("store failure: {0}")]
    Failed(String),
}

pub type Result<T> = std::result::Result<T, Error>;

/// The engine seam. Every engine passes `tests/it`'s model and concurrency tests.
pub trait Store: Send + Sync + 'static {
    /// Writes durably, or changes nothing. Concurrent writes are grouped into one sync.
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Written>>;

    /// The record now, with the store's revision at that moment (or later).
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Record>, Revision)>>;

    /// Up to `limit` records (0: all) whose keys start with `prefix` and are greater than `after`,
    /// as they were at revision `at` (`None`: now).
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        at: Option<Revision>,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page>>;

    /// Every change under `prefix` with a revision greater than `after`: ordered, unique,
    /// reliable, resumable. `Compacted` where the log no longer reaches back that far.
    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Watch>>;

    /// The newest acknowledged revision.
    fn revision(&self) -> Revision;

    /// Forgets all superseded values older than `revision`; keeps what a read at it needs.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<()>>;

    /// Why writes fail at the moment, such as a full disk.
    fn trouble(&self) -> watch::Receiver<Option<String>> {
        watch::channel(None).1
    }

    /// Bytes on disk (0 in memory).
    fn size_bytes(&self) -> u64;
}
