//! A work queue of keys. Upstream counterpart: `k8s.io/client-go/util/workqueue`.
//!
//! Promises: a key that waits is in the queue once, however often it was added; a key is worked
//! on by one worker at a time; a key added while it is worked on comes again afterwards. Not
//! promised: any order between keys that became due at the same moment through different calls.
//! Its size is bounded by the number of distinct keys. All time is tokio's.

use futures_util::FutureExt;
use parking_lot::Mutex;
use skeg_base::{HashMap, HashSet, new_map, new_set};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The first wait of a failing key, doubled with each further failure.
const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_secs(1000);
/// Over all keys: rate-limited adds per second, and how many may come at once.
const RETRIES_PER_SECOND: u32 = 10;
const RETRIES_BURST: u32 = 100;

/// What a key needs to be.
pub trait Key: Clone + Eq + Hash + Debug + Send + Sync + 'static {}
impl<K: Clone + Eq + Hash + Debug + Send + Sync + 'static> Key for K {}

/// A handle to the queue. Cheap to clone.
pub struct Queue<K>(Arc<Inner<K>>);

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Queue(self.0.clone())
    }
}

struct Inner<K> {
    state: Mutex<State<K>>,
    changed: Notify,
    cancel: CancellationToken,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Keys to be worked on: those in `ready`, and those to come again after `processing`.
    dirty: HashSet<K>,
    processing: HashSet<K>,
    /// By due time and order of arrival.
    delayed: BTreeMap<(Instant, u64), K>,
    delayed_at: HashMap<K, (Instant, u64)>,
    sequence: u64,
    failures: HashMap<K, u32>,
    /// When the bucket of rate-limited adds is full again.
    bucket_full_at: Option<Instant>,
}

impl<K: Key> Queue<K> {
    /// An empty queue that shuts down when `cancel` is cancelled.
    pub fn new(cancel: &CancellationToken) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: new_set(),
            processing: new_set(),
            delayed: BTreeMap::new(),
            delayed_at: new_map(),
            sequence: 0,
            failures: new_map(),
            bucket_full_at: None,
        };
        Queue(Arc::new(Inner {
            state: Mutex::new(state),
            changed: Notify::new(),
            cancel: cancel.child_token(),
        }))
    }

    pub fn add(&self, key: K) {
        if self.0.state.lock().add(key) {
            self.0.changed.notify_one();
        }
    }

    /// Adds the key after `wait`. Of several waits of a key the one that ends first counts.
    pub fn add_after(&self, key: K, wait: Duration) {
        if wait.is_zero() {
            return self.add(key);
        }
        self.0.state.lock().add_at(key, Instant::now() + wait);
        self.0.changed.notify_one();
    }

    /// Adds the key after a back-off that grows with each call until [`Queue::forget`].
    pub fn add_rate_limited(&self, key: K) {
        let now = Instant::now();
        let mut state = self.0.state.lock();
        let wait = state.back_off(&key).max(state.take_token(now));
        state.add_at(key, now + wait);
        drop(state);
        self.0.changed.notify_one();
    }

    /// Ends the back-off of a key.
    pub fn forget(&self, key: &K) {
        self.0.state.lock().failures.remove(key);
    }

    /// How often the key was added rate-limited since it was last forgotten.
    pub fn failures(&self, key: &K) -> u32 {
        self.0.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Keys ready to be worked on.
    pub fn len(&self) -> usize {
        self.0.state.lock().ready.len()
    }

    /// Whether nothing is ready, worked on or waiting for its time.
    pub fn is_idle(&self) -> bool {
        let state = self.0.state.lock();
        state.dirty.is_empty() && state.processing.is_empty() && state.delayed.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key, or `None` after shutdown. Each key must come back with [`Queue::done`].
    pub async fn get(&self) -> Option<K> {
        loop {
            if self.0.cancel.is_cancelled() {
                return None;
            }
            let changed = self.0.changed.notified();
            let due = {
                let mut state = self.0.state.lock();
                state.promote(Instant::now());
                if let Some(key) = state.take() {
                    if !state.ready.is_empty() {
                        self.0.changed.notify_one();
                    }
                    return Some(key);
                }
                state.delayed.first_key_value().map(|((at, _), _)| *at)
            };
            tokio::select! {
                biased;
                () = self.0.cancel.cancelled() => return None,
                () = changed => {}
                () = sleep_until(due) => {}
            }
        }
    }

    /// The worker is through with the key.
    pub fn done(&self, key: &K) {
        if self.0.state.lock().done(key) {
            self.0.changed.notify_one();
        }
    }

    pub fn shutdown(&self) {
        self.0.cancel.cancel();
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl<K: Key> State<K> {
    /// True when a worker has something new to take.
    fn add(&mut self, key: K) -> bool {
        if !self.dirty.insert(key.clone()) || self.processing.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn add_at(&mut self, key: K, due: Instant) {
        if let Some(at) = self.delayed_at.get(&key).copied() {
            if at.0 <= due {
                return;
            }
            self.delayed.remove(&at);
        }
        self.sequence += 1;
        self.delayed_at.insert(key.clone(), (due, self.sequence));
        self.delayed.insert((due, self.sequence), key);
    }

    fn promote(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            self.delayed_at.remove(&key);
            self.add(key);
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.processing.insert(key.clone());
        Some(key)
    }

    fn done(&mut self, key: &K) -> bool {
        let again = self.processing.remove(key) && self.dirty.contains(key);
        if again {
            self.ready.push_back(key.clone());
        }
        again
    }

    fn back_off(&mut self, key: &K) -> Duration {
        let failures = self.failures.entry(key.clone()).or_insert(0);
        let wait = RETRY_MIN.saturating_mul(1u32 << (*failures).min(30)).min(RETRY_MAX);
        *failures = failures.saturating_add(1);
        wait
    }

    /// Takes a token of the bucket and says how long to wait for it.
    fn take_token(&mut self, now: Instant) -> Duration {
        let one = Duration::from_secs(1) / RETRIES_PER_SECOND;
        let full_at = self.bucket_full_at.unwrap_or(now).max(now) + one;
        self.bucket_full_at = Some(full_at);
        (full_at - now).saturating_sub(one * RETRIES_BURST)
    }
}

/// Runs `workers` tasks that take keys and call `work`, until the queue shuts down. A key whose
/// work succeeds is forgotten and, with `Some(wait)`, added again after it; a key whose work fails
/// or panics comes back with back-off.
pub async fn run_workers<K, E, F, Fut>(name: &'static str, workers: usize, queue: Queue<K>, work: F)
where
    K: Key,
    E: Display,
    F: Fn(K) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Option<Duration>, E>> + Send,
{
    let work = Arc::new(work);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..workers {
        let (queue, work) = (queue.clone(), work.clone());
        tasks.spawn(async move {
            while let Some(key) = queue.get().await {
                work_on(name, &queue, &*work, key).await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

async fn work_on<K, E, F, Fut>(name: &'static str, queue: &Queue<K>, work: &F, key: K)
where
    K: Key,
    E: Display,
    F: Fn(K) -> Fut,
    Fut: Future<Output = Result<Option<Duration>, E>>,
{
    // The call is inside the future, so that a panic in either part is caught.
    let attempt = AssertUnwindSafe(async { work(key.clone()).await }).catch_unwind();
    let outcome = tokio::select! {
        biased;
        () = queue.0.cancel.cancelled() => return,
        outcome = attempt => outcome,
    };
    match outcome {
        Ok(Ok(again)) => {
            queue.forget(&key);
            if let Some(wait) = again {
                queue.add_after(key.clone(), wait);
            }
        }
        Ok(Err(error)) => {
            tracing::debug!(worker = name, ?key, %error, "failed, will be retried");
            if queue.failures(&key) == 10 {
                tracing::warn!(worker = name, ?key, %error, "keeps failing");
            }
            queue.add_rate_limited(key.clone());
        }
        Err(panic) => {
            tracing::error!(worker = name, ?key, panic = panic_text(&*panic), "panicked, will be retried");
            queue.add_rate_limited(key.clone());
        }
    }
    queue.done(&key);
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn queue() -> Queue<&'static str> {
        Queue::new(&CancellationToken::new())
    }

    async fn get_now(queue: &Queue<&'static str>) -> Option<&'static str> {
        queue.get().now_or_never().flatten()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_is_worked_on_by_one() {
        let queue = queue();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.len(), 2);
        assert_eq!(get_now(&queue).await, Some("a"));
        queue.add("a");
        assert_eq!(get_now(&queue).await, Some("b"));
        assert_eq!(get_now(&queue).await, None, "a is still worked on");
        queue.done(&"a");
        assert_eq!(get_now(&queue).await, Some("a"), "added while worked on");
        queue.done(&"a");
        queue.done(&"b");
        assert!(queue.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn delays_end_in_order_and_the_shortest_counts() {
        let queue = queue();
        let start = Instant::now();
        queue.add_after("slow", Duration::from_secs(2));
        queue.add_after("fast", Duration::from_secs(9));
        queue.add_after("fast", Duration::from_secs(1));
        queue.add_after("fast", Duration::from_secs(5));
        assert_eq!(queue.get().await, Some("fast"));
        assert_eq!(start.elapsed().as_secs(), 1);
        queue.done(&"fast");
        assert_eq!(queue.get().await, Some("slow"));
        assert_eq!(start.elapsed().as_secs(), 2);
        queue.done(&"slow");
        assert!(queue.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn failing_keys_back_off_until_forgotten() {
        let queue = queue();
        let mut waits = Vec::new();
        for round in 0..5 {
            if round == 3 {
                queue.forget(&"a");
            }
            let start = Instant::now();
            queue.add_rate_limited("a");
            queue.get().await;
            queue.done(&"a");
            waits.push(start.elapsed().as_millis());
        }
        assert_eq!(waits, [5, 10, 20, 5, 10]);
        for _ in 2..20 {
            queue.add_rate_limited("a");
            queue.get().await;
            queue.done(&"a");
        }
        let start = Instant::now();
        queue.add_rate_limited("a");
        queue.get().await;
        assert_eq!(start.elapsed().as_secs(), 1000, "upstream's longest back-off");
    }

    #[tokio::test(start_paused = true)]
    async fn rate_limited_adds_share_a_bucket() {
        let queue: Queue<u32> = Queue::new(&CancellationToken::new());
        let start = Instant::now();
        for key in 0..RETRIES_BURST + 10 {
            queue.add_rate_limited(key);
        }
        for _ in 0..RETRIES_BURST + 10 {
            queue.get().await;
        }
        assert_eq!(start.elapsed().as_secs(), 1, "ten beyond the burst take a second");
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_wakes_the_waiting() {
        let queue = queue();
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.get().await }
        });
        tokio::task::yield_now().await;
        queue.shutdown();
        assert_eq!(waiting.await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn workers_survive_errors_and_panics() {
        let queue = queue();
        let calls = Arc::new(AtomicU32::new(0));
        let (done, mut finished) = tokio::sync::mpsc::unbounded_channel();
        let workers = tokio::spawn(run_workers("test", 2, queue.clone(), {
            let calls = calls.clone();
            move |key| {
                let (calls, done) = (calls.clone(), done.clone());
                async move {
                    match calls.fetch_add(1, Ordering::Relaxed) {
                        0 => panic!("first"),
                        1 => Err("second"),
                        2 => Ok(Some(Duration::from_secs(1))),
                        _ => {
                            done.send(key).unwrap();
                            Ok(None)
                        }
                    }
                }
            }
        }));
        queue.add("a");
        assert_eq!(finished.recv().await, Some("a"));
        queue.shutdown();
        workers.await.unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 4);
        assert_eq!(queue.failures(&"a"), 0);
    }
}
