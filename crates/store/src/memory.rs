//! The engine in memory, for simulation and tests: no threads, no files, no clock but tokio's.

use crate::apply::{apply, prefix_end};
use crate::hub::{Hub, WATCH_BACKLOG_MAX};
use crate::{Change, Error, Page, Record, Result, Revision, Store, Watch, WatchItem, Write, Written};
use futures_util::future::{BoxFuture, FutureExt, ready};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A store that lives and dies with its process.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<State>>);

struct State {
    records: BTreeMap<Arc<str>, Record>,
    /// Every change after `compacted`, in order.
    log: Vec<Change>,
    compacted: Revision,
    revision: Revision,
    expiries: BTreeMap<Arc<str>, Instant>,
    hub: Hub,
}

impl Default for State {
    fn default() -> Self {
        State {
            records: BTreeMap::new(),
            log: Vec::new(),
            compacted: Revision(0),
            revision: Revision(1),
            expiries: BTreeMap::new(),
            hub: Hub::default(),
        }
    }
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_now(&self, write: &Write) -> Result<Written> {
        let mut state = self.state();
        let written = state.write(write)?;
        match (write.ttl, &write.value) {
            (Some(ttl), Some(_)) => {
                let at = Instant::now() + ttl;
                state.expiries.insert(write.key.clone(), at);
                self.expire_at(write.key.clone(), at);
            }
            _ => {
                state.expiries.remove(&write.key);
            }
        }
        Ok(written)
    }

    /// Deletes the key at `at`, unless a later write gave it another expiry. Holds no strong
    /// reference, so the task outlives the store by one wake-up at most.
    fn expire_at(&self, key: Arc<str>, at: Instant) {
        let weak = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            let Some(state) = weak.upgrade() else { return };
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.expiries.get(&key) == Some(&at) {
                state.expiries.remove(&key);
                let delete = Write { key, expect: crate::Expect::Present, value: None, ttl: None };
                // Already deleted is as good.
                let _ = state.write(&delete);
            }
        });
    }
}

impl State {
    fn write(&mut self, write: &Write) -> Result<Written> {
        let revision = Revision(self.revision.0 + 1);
        let change = apply(write, self.records.get(&write.key).cloned(), revision)?;
        match &change.value {
            Some(value) => {
                let record = Record {
                    key: change.key.clone(),
                    value: value.clone(),
                    created: change.created,
                    modified: revision,
                };
                self.records.insert(change.key.clone(), record);
            }
            None => {
                self.records.remove(&change.key);
            }
        }
        self.revision = revision;
        self.log.push(change.clone());
        let previous = change.previous.clone();
        self.hub.publish(&Arc::from([change]), revision);
        Ok(Written { revision, previous })
    }

    /// The records as they were at `at`: today's with later changes undone.
    fn records_at(&self, at: Revision) -> BTreeMap<Arc<str>, Record> {
        let mut records = self.records.clone();
        for change in self.log.iter().rev().take_while(|change| change.revision > at) {
            match &change.previous {
                Some(previous) => records.insert(change.key.clone(), previous.clone()),
                None => records.remove(&change.key),
            };
        }
        records
    }

    fn list(&self, prefix: &str, at: Option<Revision>, after: Option<&str>, limit: usize) -> Result<Page> {
        let revision = at.unwrap_or(self.revision);
        self.check(revision)?;
        let past;
        let records = if revision == self.revision {
            &self.records
        } else {
            past = self.records_at(revision);
            &past
        };
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let end = prefix_end(prefix);
        let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut matching = records.range::<str, _>((start, end)).map(|(_, record)| record.clone());
        let limit = if limit == 0 { usize::MAX } else { limit };
        let page = matching.by_ref().take(limit).collect();
        Ok(Page { records: page, revision, remaining: matching.count() as u64 })
    }

    fn check(&self, asked: Revision) -> Result<()> {
        if asked < self.compacted {
            Err(Error::Compacted { oldest: self.compacted })
        } else if asked > self.revision {
            Err(Error::Future { asked, newest: self.revision })
        } else {
            Ok(())
        }
    }

    fn watch(&mut self, prefix: &str, after: Revision) -> Result<Watch> {
        self.check(after)?;
        let (sender, receiver) = mpsc::channel(WATCH_BACKLOG_MAX);
        let missed: Arc<[Change]> = self
            .log
            .iter()
            .filter(|change| change.revision > after && change.key.starts_with(prefix))
            .cloned()
            .collect();
        if !missed.is_empty() {
            sender.try_send(WatchItem::Changes(missed)).map_err(|_| Error::Closed)?;
        }
        self.hub.add(prefix, sender);
        Ok(receiver)
    }
}

impl Store for Memory {
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Written>> {
        ready(self.write_now(&write)).boxed()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Record>, Revision)>> {
        let state = self.state();
        ready(Ok((state.records.get(key).cloned(), state.revision))).boxed()
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        at: Option<Revision>,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page>> {
        ready(self.state().list(prefix, at, after, limit)).boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Watch>> {
        ready(self.state().watch(prefix, after)).boxed()
    }

    fn revision(&self) -> Revision {
        self.state().revision
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<()>> {
        let mut state = self.state();
        let revision = revision.min(state.revision);
        if revision > state.compacted {
            state.compacted = revision;
            state.log.retain(|change| change.revision > revision);
        }
        ready(Ok(())).boxed()
    }

    fn size_bytes(&self) -> u64 {
        0
    }
}
