//! Many writers and watchers at once: every compare-and-swap counts once, and every watch sees
//! every change once and in order.

use crate::{create, on_each_engine, update};
use skeg_store::{Error, Revision, Store, WatchItem};
use std::sync::Arc;
use std::time::Duration;

const WRITERS: usize = 8;
const INCREMENTS: usize = 50;

async fn increment(store: &dyn Store, key: &str) {
    loop {
        let record = store.get(key).await.unwrap().0.unwrap();
        let count: usize = std::str::from_utf8(&record.value).unwrap().parse().unwrap();
        match store.write(update(key, record.modified, &(count + 1).to_string())).await {
            Ok(_) => return,
            Err(Error::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn no_update_is_lost_and_watches_agree() {
    on_each_engine(|store| async move {
        let start = store.revision();
        let early = store.watch("/c", start).await.unwrap();
        store.write(create("/c", "0")).await.unwrap();
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                let store: Arc<dyn Store> = store.clone();
                tokio::spawn(async move {
                    for _ in 0..INCREMENTS {
                        increment(&*store, "/c").await;
                    }
                })
            })
            .collect();
        let middle = store.watch("/c", start).await.unwrap();
        for writer in writers {
            writer.await.unwrap();
        }
        let late = store.watch("/c", start).await.unwrap();
        let record = store.get("/c").await.unwrap().0.unwrap();
        assert_eq!(&record.value[..], (WRITERS * INCREMENTS).to_string().as_bytes());
        for mut watch in [early, middle, late] {
            let mut seen: Vec<(Revision, String)> = Vec::new();
            while seen.len() <= WRITERS * INCREMENTS {
                match tokio::time::timeout(Duration::from_secs(20), watch.recv()).await.unwrap().unwrap() {
                    WatchItem::Changes(changes) => seen.extend(changes.iter().map(|change| {
                        (change.revision, String::from_utf8(change.value.clone().unwrap().to_vec()).unwrap())
                    })),
                    WatchItem::Progress(_) => {}
                    WatchItem::Ended(error) => panic!("{error}"),
                }
            }
            assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "revisions only grow");
            let counts: Vec<String> = (0..=WRITERS * INCREMENTS).map(|n| n.to_string()).collect();
            assert_eq!(seen.into_iter().map(|(_, count)| count).collect::<Vec<_>>(), counts);
        }
    });
}
