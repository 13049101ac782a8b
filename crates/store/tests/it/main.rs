//! The tests that every engine passes, and those of the engine on disk alone.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod concurrency;
mod crash;
mod disk;
mod model;

use skeg_base::Clock;
use skeg_store::{Expect, Memory, Options, Revision, Sqlite, Store, Write};
use std::sync::Arc;

/// Runs a test body over each engine.
pub fn on_each_engine<F: Future<Output = ()>>(test: impl Fn(Arc<dyn Store>) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        test(Arc::new(Memory::new())).await;
        let directory = tempfile::tempdir().unwrap();
        test(open(&directory)).await;
    });
}

pub fn open(directory: &tempfile::TempDir) -> Arc<Sqlite> {
    Sqlite::open(&Options::new(directory.path().join("store.db"), Clock::system())).unwrap()
}

pub fn create(key: &str, value: &str) -> Write {
    Write { key: key.into(), expect: Expect::Absent, value: Some(value.to_owned().into()), ttl: None }
}

pub fn update(key: &str, modified: Revision, value: &str) -> Write {
    Write { expect: Expect::Modified(modified), ..create(key, value) }
}

pub fn delete(key: &str, modified: Revision) -> Write {
    Write { key: key.into(), expect: Expect::Modified(modified), value: None, ttl: None }
}
