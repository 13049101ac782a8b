//! Counters that the generic path keeps; `/metrics` renders them and tests read them.

use parking_lot::Mutex;
use skeg_base::HashMap;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets of `apiserver_request_duration_seconds`, in microseconds.
pub const DURATION_BOUNDS_US: [u64; 16] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 200_000, 400_000, 600_000, 800_000, 1_000_000,
    2_000_000, 5_000_000, 10_000_000, 60_000_000,
];

/// What requests are counted by: upstream's labels. All values come from the kinds table, so
/// their number is bounded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestLabels {
    /// `GET`, `LIST`, `WATCH`, `POST`, `PUT`, `PATCH`, `DELETE`, `DELETECOLLECTION`.
    pub verb: &'static str,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    /// `resource`, `namespace`, `cluster`, or empty for paths that are no resource.
    pub scope: &'static str,
    pub code: u16,
}

#[derive(Hash)]
struct Borrowed<'a>(&'static str, &'a str, &'a str, &'a str, &'a str, &'static str, u16);

impl hashbrown::Equivalent<RequestLabels> for Borrowed<'_> {
    fn equivalent(&self, key: &RequestLabels) -> bool {
        let Borrowed(verb, group, version, resource, subresource, scope, code) = *self;
        (verb, group, version, resource) == (key.verb, &*key.group, &*key.version, &*key.resource)
            && (subresource, scope, code) == (&*key.subresource, key.scope, key.code)
    }
}

/// Requests of one set of labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestSeries {
    pub count: u64,
    pub total_us: u64,
    /// Per bound, not cumulative; slower requests are in none.
    pub buckets: [u64; DURATION_BOUNDS_US.len()],
}

impl RequestSeries {
    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.total_us = self.total_us.saturating_add(other.total_us);
        self.buckets.iter_mut().zip(other.buckets).for_each(|(mine, more)| *mine += more);
    }
}

/// Monotonic counters and a few gauges.
#[derive(Default)]
pub struct Stats {
    /// JSON encodings of stored objects: one per write, none per read.
    pub encodes_total: AtomicU64,
    /// Objects translated on the way out: another version, Table, metadata only, YAML.
    pub translations_total: AtomicU64,
    pub requests_total: AtomicU64,
    pub panics_total: AtomicU64,
    pub watch_events_total: AtomicU64,
    /// Watches ended because their client read too slowly.
    pub watches_dropped_total: AtomicU64,
    pub watchers: AtomicU64,
    pub inflight_read: AtomicU64,
    pub inflight_write: AtomicU64,
    pub rejected_total: AtomicU64,
    /// Each thread counts in one of these: what all threads write costs each of them the others' cache.
    requests: [Shard; SHARDS],
}

const SHARDS: usize = 8;

#[derive(Default)]
#[repr(align(64))]
struct Shard(Mutex<HashMap<RequestLabels, RequestSeries>>);

thread_local! {
    static SHARD: usize = {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS
    };
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub(crate) fn sub(counter: &AtomicU64, n: u64) {
    counter.fetch_sub(n, Ordering::Relaxed);
}

impl Stats {
    /// Counts one answered request. For watches and streams the duration is that until the answer
    /// began.
    pub(crate) fn request(
        &self,
        verb: &'static str,
        [group, version, resource, subresource]: [&str; 4],
        scope: &'static str,
        code: u16,
        took: Duration,
    ) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let key = Borrowed(verb, group, version, resource, subresource, scope, code);
        let mut requests = self.requests[SHARD.with(|shard| *shard)].0.lock();
        let series = match requests.get_mut(&key) {
            Some(series) => series,
            None => {
                let (group, version) = (group.to_owned(), version.to_owned());
                let (resource, subresource) = (resource.to_owned(), subresource.to_owned());
                let labels = RequestLabels { verb, group, version, resource, subresource, scope, code };
                requests.entry(labels).or_default()
            }
        };
        series.count += 1;
        series.total_us = series.total_us.saturating_add(us);
        if let Some(bucket) = DURATION_BOUNDS_US.iter().position(|bound| us <= *bound) {
            series.buckets[bucket] += 1;
        }
    }

    /// All requests so far, by labels, in order.
    pub fn requests(&self) -> Vec<(RequestLabels, RequestSeries)> {
        let mut all: BTreeMap<RequestLabels, RequestSeries> = BTreeMap::new();
        for shard in &self.requests {
            for (labels, series) in shard.0.lock().iter() {
                all.entry(labels.clone()).or_default().add(series);
            }
        }
        all.into_iter().collect()
    }

    pub fn encodes(&self) -> u64 {
        self.encodes_total.load(Ordering::Relaxed)
    }
}
