//! Both engines against a model: a plain map with the history of all its states.

use crate::{create, delete, on_each_engine, open, update};
use proptest::prelude::*;
use skeg_store::{Change, Error, Expect, Record, Revision, Store, VALUE_MAX_BYTES, WatchItem, Write};
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Debug)]
enum Action {
    Create(u8, u8),
    Update { key: u8, value: u8, stale: bool },
    Delete { key: u8, stale: bool },
    Put(u8, u8),
    Compact(u8),
    List { back: u8, limit: u8 },
    Watch { back: u8 },
}

fn action() -> impl Strategy<Value = Action> {
    let key = 0..12u8;
    prop_oneof![
        4 => (key.clone(), any::<u8>()).prop_map(|(k, v)| Action::Create(k, v)),
        4 => (key.clone(), any::<u8>(), prop::bool::weighted(0.2))
            .prop_map(|(key, value, stale)| Action::Update { key, value, stale }),
        3 => (key.clone(), prop::bool::weighted(0.2)).prop_map(|(key, stale)| Action::Delete { key, stale }),
        2 => (key, any::<u8>()).prop_map(|(k, v)| Action::Put(k, v)),
        1 => (0..6u8).prop_map(Action::Compact),
        2 => (0..10u8, 0..4u8).prop_map(|(back, limit)| Action::List { back, limit }),
        2 => (0..10u8).prop_map(|back| Action::Watch { back }),
    ]
}

/// Two prefixes, so that filters matter.
fn name(key: u8) -> String {
    format!("/registry/{}/k{key:02}", if key.is_multiple_of(2) { "even" } else { "odd" })
}

#[derive(Default)]
struct Model {
    now: BTreeMap<String, Record>,
    /// The state after each revision from 1 on.
    states: BTreeMap<u64, BTreeMap<String, Record>>,
    changes: Vec<Change>,
    compacted: u64,
}

impl Model {
    fn revision(&self) -> u64 {
        self.states.keys().next_back().copied().unwrap_or(1)
    }

    fn write(&mut self, write: &Write) -> Result<Change, Option<Record>> {
        let current = self.now.get(&*write.key).cloned();
        let holds = match write.expect {
            Expect::Absent => current.is_none(),
            Expect::Present => current.is_some(),
            Expect::Modified(revision) => current.as_ref().is_some_and(|record| record.modified == revision),
        };
        if !holds {
            return Err(current);
        }
        let revision = Revision(self.revision() + 1);
        let created = current.as_ref().map_or(revision, |record| record.created);
        match &write.value {
            Some(value) => {
                let record =
                    Record { key: write.key.clone(), value: value.clone(), created, modified: revision };
                self.now.insert(write.key.to_string(), record);
            }
            None => {
                self.now.remove(&*write.key);
            }
        }
        self.states.insert(revision.0, self.now.clone());
        let change = Change {
            revision,
            key: write.key.clone(),
            value: write.value.clone(),
            created,
            previous: current,
        };
        self.changes.push(change.clone());
        Ok(change)
    }
}

async fn check(store: &dyn Store, model: &mut Model, action: Action) {
    let stale = |record: Option<&Record>, stale: bool| match record {
        Some(record) if stale => Revision(record.modified.0 + 1000),
        Some(record) => record.modified,
        None => Revision(1),
    };
    let write = match action {
        Action::Create(key, value) => Some(create(&name(key), &format!("v{value}"))),
        Action::Update { key, value, stale: old } => {
            Some(update(&name(key), stale(model.now.get(&name(key)), old), &format!("v{value}")))
        }
        Action::Delete { key, stale: old } => Some(delete(&name(key), stale(model.now.get(&name(key)), old))),
        Action::Put(key, value) => {
            Some(Write { expect: Expect::Present, ..create(&name(key), &format!("p{value}")) })
        }
        Action::Compact(back) => {
            let at = model.revision().saturating_sub(u64::from(back));
            store.compact(Revision(at)).await.unwrap();
            model.compacted = model.compacted.max(at);
            None
        }
        Action::List { back, limit } => {
            check_list(store, model, back, usize::from(limit)).await;
            None
        }
        Action::Watch { back } => {
            check_watch(store, model, back).await;
            None
        }
    };
    if let Some(write) = write {
        match (store.write(write.clone()).await, model.write(&write)) {
            (Ok(written), Ok(change)) => {
                assert_eq!(written.revision, change.revision);
                assert_eq!(written.previous, change.previous);
            }
            (Err(Error::Conflict { current }), Err(expected)) => assert_eq!(current, expected),
            (got, expected) => panic!("{write:?}: {got:?}, model {expected:?}"),
        }
        let (record, revision) = store.get(&write.key).await.unwrap();
        assert_eq!(record.as_ref(), model.now.get(&*write.key));
        assert_eq!(revision.0, model.revision());
    }
}

async fn check_list(store: &dyn Store, model: &Model, back: u8, limit: usize) {
    let at = model.revision().saturating_sub(u64::from(back)).max(1);
    let empty = BTreeMap::new();
    for prefix in ["/registry/", "/registry/even/", "/registry/none/"] {
        if at < model.compacted {
            let error = store.list(prefix, Some(Revision(at)), None, limit).await.unwrap_err();
            assert_eq!(error, Error::Compacted { oldest: Revision(model.compacted) });
            continue;
        }
        let state = model.states.get(&at).unwrap_or(&empty);
        let expected: Vec<&Record> =
            state.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(_, record)| record).collect();
        let mut after = None;
        let mut seen = Vec::new();
        loop {
            let page = store.list(prefix, Some(Revision(at)), after.as_deref(), limit).await.unwrap();
            assert_eq!(page.revision, Revision(at));
            assert!(limit == 0 || page.records.len() <= limit);
            seen.extend(page.records);
            assert_eq!(page.remaining as usize, expected.len() - seen.len());
            if page.remaining == 0 {
                break;
            }
            after = seen.last().map(|record: &Record| record.key.to_string());
        }
        assert_eq!(seen.iter().collect::<Vec<_>>(), expected);
    }
}

async fn check_watch(store: &dyn Store, model: &Model, back: u8) {
    let after = model.revision().saturating_sub(u64::from(back));
    match store.watch("/registry/odd/", Revision(after)).await {
        Err(error) => {
            assert!(after < model.compacted, "{error} at {after}");
            assert_eq!(error, Error::Compacted { oldest: Revision(model.compacted) });
        }
        Ok(mut watch) => {
            assert!(after >= model.compacted);
            let expected: Vec<Change> = model
                .changes
                .iter()
                .filter(|change| change.revision.0 > after && change.key.starts_with("/registry/odd/"))
                .cloned()
                .collect();
            let mut seen = Vec::new();
            while seen.len() < expected.len() {
                let item = tokio::time::timeout(Duration::from_secs(10), watch.recv()).await.unwrap();
                if let Some(WatchItem::Changes(changes)) = item {
                    seen.extend(changes.iter().cloned());
                }
            }
            assert_eq!(seen, expected);
        }
    }
}

#[test]
fn engines_follow_the_model() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(actions in prop::collection::vec(action(), 1..80))| {
        runtime.block_on(async {
            let memory = skeg_store::Memory::new();
            let mut model = Model::default();
            for action in actions.clone() {
                check(&memory, &mut model, action).await;
            }
            let directory = tempfile::tempdir().unwrap();
            let mut sqlite = open(&directory);
            let mut model = Model::default();
            for (step, action) in actions.iter().enumerate() {
                if step == actions.len() / 2 {
                    // What was acknowledged outlives the process.
                    drop(sqlite);
                    sqlite = open(&directory);
                }
                check(&*sqlite, &mut model, action.clone()).await;
            }
        });
    });
}

#[test]
fn refuses_values_over_the_limit() {
    on_each_engine(|store| async move {
        let value = "x".repeat(VALUE_MAX_BYTES + 1);
        let error = store.write(create("/registry/big", &value)).await.unwrap_err();
        assert_eq!(error, Error::TooLarge { bytes: VALUE_MAX_BYTES + 1 });
        store.write(create("/registry/fits", &value[1..])).await.unwrap();
    });
}

#[test]
fn keys_with_a_time_to_live_expire() {
    on_each_engine(|store| async move {
        let mut watch = store.watch("/registry/events/", store.revision()).await.unwrap();
        let write = Write { ttl: Some(Duration::from_millis(30)), ..create("/registry/events/a", "x") };
        store.write(write).await.unwrap();
        let kept = Write { ttl: Some(Duration::from_secs(3600)), ..create("/registry/events/b", "x") };
        store.write(kept).await.unwrap();
        let expired = async {
            loop {
                if let Some(WatchItem::Changes(changes)) = watch.recv().await
                    && let Some(change) = changes.iter().find(|change| change.value.is_none())
                {
                    return change.clone();
                }
            }
        };
        let change = tokio::time::timeout(Duration::from_secs(10), expired).await.unwrap();
        assert_eq!(&*change.key, "/registry/events/a");
        assert!(change.previous.is_some());
        assert!(store.get("/registry/events/b").await.unwrap().0.is_some());
    });
}

#[test]
fn the_future_is_refused() {
    on_each_engine(|store| async move {
        let newest = store.revision();
        let asked = Revision(newest.0 + 5);
        let expected = Error::Future { asked, newest };
        assert_eq!(store.list("/", Some(asked), None, 0).await.unwrap_err(), expected);
        assert_eq!(store.watch("/", asked).await.unwrap_err(), expected);
    });
}
