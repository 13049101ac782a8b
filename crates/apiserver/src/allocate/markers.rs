//! Numbers of which each is given out once. One in use has a marker record in the store, whose
//! creation is the compare-and-swap that gives it to one owner. Knows nothing of Services.
//! Upstream counterpart: `pkg/registry/core/service/{ipallocator,portallocator}`.

use crate::hooks::Reservation;
use bytes::Bytes;
use parking_lot::Mutex;
use skeg_base::Random;
use skeg_store::{Error, Expect, Store, Write};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Where the markers are: beside the objects, where no kind's prefix reaches.
pub(super) const MARKERS: &str = "/skeg/allocations/";

/// One range of numbers.
pub(super) struct Numbers {
    store: Arc<dyn Store>,
    random: Random,
    /// Of its markers' keys.
    prefix: String,
    first: u128,
    last: u128,
    /// Automatic choices begin here.
    dynamic: u128,
    /// What is given out, as far as this process knows; the store decides.
    taken: Mutex<BTreeSet<u128>>,
}

/// Why a number could not be had.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Allocated,
    OutOfRange,
    Full,
    Store(String),
}

impl Numbers {
    /// Automatic choices leave the lowest `kept` numbers for explicit requests while there is room
    /// above them.
    pub(super) fn new(
        store: &Arc<dyn Store>,
        random: &Random,
        name: &str,
        range: RangeInclusive<u128>,
        kept: u128,
    ) -> Arc<Self> {
        Arc::new(Numbers {
            store: store.clone(),
            random: random.clone(),
            prefix: format!("{MARKERS}{name}/"),
            first: *range.start(),
            last: *range.end(),
            dynamic: range.start() + kept,
            taken: Mutex::default(),
        })
    }

    fn key(&self, number: u128) -> Arc<str> {
        format!("{}{number:039}", self.prefix).into()
    }

    /// Marks what is held, and removes the markers of what is not.
    pub(super) async fn repair(&self, held: BTreeMap<u128, Bytes>) -> Result<(), Error> {
        self.taken.lock().extend(held.keys());
        let mut wanted: BTreeMap<Arc<str>, Bytes> =
            held.into_iter().map(|(number, owner)| (self.key(number), owner)).collect();
        let markers = self.store.list(&self.prefix, None, None, 0).await?;
        let mut writes = Vec::new();
        for marker in markers.records {
            if wanted.remove(&marker.key).is_none() {
                let expect = Expect::Modified(marker.modified);
                writes.push(Write { key: marker.key, expect, value: None, ttl: None });
            }
        }
        let absent = wanted.into_iter();
        writes.extend(absent.map(|(key, owner)| Write {
            key,
            expect: Expect::Absent,
            value: Some(owner),
            ttl: None,
        }));
        let writes = writes.into_iter().map(|write| self.store.write(write));
        for written in futures_util::future::join_all(writes).await {
            match written {
                Ok(_) | Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A free number: a random start, then upwards; the part for explicit requests comes last.
    fn candidate(&self) -> Option<u128> {
        let taken = self.taken.lock();
        let free_in = |first: u128, last: u128| {
            if first > last {
                return None;
            }
            let span = u64::try_from(last - first + 1).unwrap_or(u64::MAX);
            let start = first + u128::from(self.random.below(span));
            let free = |from: u128, to: u128| {
                let mut next = from;
                for used in taken.range(from..=to) {
                    if *used != next {
                        break;
                    }
                    next += 1;
                }
                (next <= to).then_some(next)
            };
            free(start, last).or_else(|| if start > first { free(first, start - 1) } else { None })
        };
        free_in(self.dynamic, self.last)
            .or_else(|| free_in(self.first, self.dynamic.saturating_sub(1).min(self.last)))
    }

    async fn take(&self, number: u128, owner: &Bytes) -> Result<(), Refusal> {
        if !(self.first..=self.last).contains(&number) {
            return Err(Refusal::OutOfRange);
        }
        if !self.taken.lock().insert(number) {
            return Err(Refusal::Allocated);
        }
        let (key, value) = (self.key(number), Some(owner.clone()));
        match self.store.write(Write { key, expect: Expect::Absent, value, ttl: None }).await {
            Ok(_) => Ok(()),
            // Another server has it.
            Err(Error::Conflict { .. }) => Err(Refusal::Allocated),
            Err(error) => {
                self.taken.lock().remove(&number);
                Err(Refusal::Store(error.to_string()))
            }
        }
    }

    async fn take_any(&self, owner: &Bytes) -> Result<u128, Refusal> {
        loop {
            let number = self.candidate().ok_or(Refusal::Full)?;
            match self.take(number, owner).await {
                Ok(()) => return Ok(number),
                // It counts as taken now, so that the loop ends when all are.
                Err(Refusal::Allocated) => {}
                Err(refusal) => return Err(refusal),
            }
        }
    }

    async fn give_back(&self, number: u128) {
        let write = Write { key: self.key(number), expect: Expect::Present, value: None, ttl: None };
        match self.store.write(write).await {
            Ok(_) | Err(Error::Conflict { .. }) => {
                self.taken.lock().remove(&number);
            }
            Err(error) => tracing::warn!(%error, "allocation not released; the next start does"),
        }
    }
}

/// A number with the range it is from.
pub(super) type Number = (Arc<Numbers>, u128);

/// Numbers a write has reserved; they are given back unless the write is stored. On an update they
/// also say what to give back when it is.
#[derive(Default)]
pub(super) struct Held {
    taken: Vec<Number>,
    pub(super) freed: Vec<Number>,
    stored: bool,
}

impl Held {
    pub(super) async fn take(
        &mut self,
        of: &Arc<Numbers>,
        number: u128,
        owner: &Bytes,
    ) -> Result<(), Refusal> {
        of.take(number, owner).await?;
        self.taken.push((of.clone(), number));
        Ok(())
    }

    pub(super) async fn take_any(&mut self, of: &Arc<Numbers>, owner: &Bytes) -> Result<u128, Refusal> {
        let number = of.take_any(owner).await?;
        self.taken.push((of.clone(), number));
        Ok(number)
    }
}

impl Reservation for Held {
    fn finish(mut self: Box<Self>, stored: bool) {
        self.stored = stored;
    }
}

/// A request that is cut off drops its reservation, which counts as not stored.
impl Drop for Held {
    fn drop(&mut self) {
        release(std::mem::take(if self.stored { &mut self.freed } else { &mut self.taken }));
    }
}

/// Removes markers in the background. If the process dies before, the next start does.
pub(super) fn release(list: Vec<Number>) {
    if list.is_empty() {
        return;
    }
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    runtime.spawn(async move {
        for (numbers, number) in list {
            numbers.give_back(number).await;
        }
    });
}
