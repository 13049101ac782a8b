//! Counters that the generic path keeps; `/metrics` renders them and tests read them.

use std::sync::atomic::{AtomicU64, Ordering};

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
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub(crate) fn sub(counter: &AtomicU64, n: u64) {
    counter.fetch_sub(n, Ordering::Relaxed);
}

impl Stats {
    pub fn encodes(&self) -> u64 {
        self.encodes_total.load(Ordering::Relaxed)
    }
}
