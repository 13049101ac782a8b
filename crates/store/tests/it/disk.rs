//! The file: it stops growing under churn, a watch resumes over a long gap, a newer format is
//! refused.

use crate::{create, open, update};
use skeg_base::Clock;
use skeg_store::{Options, Revision, Sqlite, Store, WatchItem};

#[tokio::test]
async fn the_file_stops_growing_under_churn() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let value = "x".repeat(1000);
    let mut modified = Vec::new();
    for key in 0..50 {
        modified.push(store.write(create(&format!("/k{key}"), &value)).await.unwrap().revision);
    }
    let mut sizes = Vec::new();
    for _round in 0..6 {
        for _ in 0..8 {
            let writes = modified
                .iter()
                .enumerate()
                .map(|(key, modified)| store.write(update(&format!("/k{key}"), *modified, &value)));
            let written = futures_util::future::join_all(writes).await;
            modified = written.into_iter().map(|written| written.unwrap().revision).collect();
        }
        store.compact(store.revision()).await.unwrap();
        sizes.push(store.size_bytes());
    }
    store.close().await;
    let settled = std::fs::metadata(directory.path().join("store.db")).unwrap().len();
    // 50 live kilobytes; 400 more per round pass through and their pages are used again.
    assert!(settled < 1_500_000, "{settled} bytes after churn, sizes {sizes:?}");
}

#[tokio::test]
async fn a_watch_resumes_over_a_gap_longer_than_its_page() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let keys: Vec<String> = (0..3_500).map(|n| format!("/k{n}")).collect();
    futures_util::future::join_all(keys.iter().map(|key| store.write(create(key, "x")))).await;
    let mut watch = store.watch("/", Revision(1)).await.unwrap();
    let mut next = Revision(2);
    while next.0 <= 3_501 {
        if let Some(WatchItem::Changes(changes)) = watch.recv().await {
            for change in changes.iter() {
                assert_eq!(change.revision, next);
                next = Revision(next.0 + 1);
            }
        }
    }
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_untouched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    drop(open(&directory));
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    let error = Sqlite::open(&Options::new(&path, Clock::system())).err().unwrap();
    assert!(error.to_string().contains("start the newer Skeg"), "{error}");
}
