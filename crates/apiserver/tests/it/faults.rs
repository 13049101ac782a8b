//! What breaks around the generic path stays where it broke.

use crate::harness::*;
use futures_util::future::BoxFuture;
use http::Request;
use serde_json::json;
use skeg_api::Status;
use skeg_apiserver::admission::{Admission, Plugin};
use skeg_apiserver::server::Origin;
use skeg_base::{Clock, Random};
use skeg_store::{Error, Memory, Page, Record, Result, Revision, Store, Watch, WatchItem, Write, Written};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::mpsc;

/// Panics at some names, waits forever at others.
struct Bad;

impl Plugin for Bad {
    fn name(&self) -> &'static str {
        "Bad"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, std::result::Result<(), Status>> {
        Box::pin(async move {
            match request.name {
                "panic" => panic!("a plugin with a defect"),
                "wait" => std::future::pending().await,
                _ => Ok(()),
            }
        })
    }
}

#[tokio::test]
async fn a_panic_ends_one_request_only() {
    let s = start_plugged(vec![Arc::new(Bad)]).await;
    let failed = s.post(CONFIG_MAPS, &config_map("panic", json!({}))).await.expect(500);
    assert_eq!(failed["reason"], "InternalError");
    assert_eq!(s.api.stats().panics_total.load(Ordering::Relaxed), 1);
    s.post(CONFIG_MAPS, &config_map("a", json!({}))).await.expect(201);
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_are_bounded_and_time_out() {
    let s = start_plugged(vec![Arc::new(Bad)]).await;
    let send = |name: &str| {
        let api = s.api.clone();
        let body = skeg_apiserver::local::full(config_map(name, json!({})).to_string());
        let request = Request::post(CONFIG_MAPS).body(body).unwrap();
        async move { api.handle(request, Origin::Network(Arc::default())).await }
    };
    let waiting: Vec<_> = (0..200).map(|_| tokio::spawn(send("wait"))).collect();
    while s.api.stats().inflight_write.load(Ordering::Relaxed) < 200 {
        tokio::task::yield_now().await;
    }
    let refused = send("a").await;
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (429, "1"));
    // Reads have their own bound, and components of this process none.
    s.get(CONFIG_MAPS).await.expect(200);
    s.post(CONFIG_MAPS, &config_map("b", json!({}))).await.expect(201);
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().status(), 504);
    }
    assert_eq!(send("a").await.status(), 201);
    assert_eq!(s.api.stats().inflight_write.load(Ordering::Relaxed), 0);
}

/// A store whose first watch loses the changes from the third on, and whose log cannot be resumed.
/// What becomes of a write of the name `unknown` it cannot tell.
struct Forgetful {
    inner: Memory,
    watches: AtomicU32,
}

impl Store for Forgetful {
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Written>> {
        if write.key.ends_with("/unknown") {
            return Box::pin(std::future::ready(Err(Error::OutcomeUnknown("the disk went away".into()))));
        }
        self.inner.write(write)
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Record>, Revision)>> {
        self.inner.get(key)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        at: Option<Revision>,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page>> {
        self.inner.list(prefix, at, after, limit)
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Watch>> {
        Box::pin(async move {
            match self.watches.fetch_add(1, Ordering::SeqCst) {
                0 => {
                    let mut real = self.inner.watch(prefix, after).await?;
                    let (sender, receiver) = mpsc::channel(16);
                    tokio::spawn(async move {
                        for _ in 0..2 {
                            if let Some(item) = real.recv().await {
                                let _ = sender.send(item).await;
                            }
                        }
                        real.recv().await;
                        let oldest = Revision(u64::MAX);
                        let _ = sender.send(WatchItem::Ended(Error::Compacted { oldest })).await;
                    });
                    Ok(receiver)
                }
                1 => Err(Error::Compacted { oldest: Revision(u64::MAX) }),
                _ => self.inner.watch(prefix, after).await,
            }
        })
    }

    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<()>> {
        self.inner.compact(revision)
    }

    fn size_bytes(&self) -> u64 {
        0
    }
}

#[tokio::test]
async fn a_lost_history_is_read_again() {
    let s = start_on(Arc::new(Forgetful { inner: Memory::new(), watches: AtomicU32::new(0) })).await;
    let mut watch = s.watch(&format!("{CONFIG_MAPS}?watch=true")).await;
    s.post(CONFIG_MAPS, &config_map("a", json!({}))).await.expect(201);
    s.post(CONFIG_MAPS, &config_map("b", json!({}))).await.expect(201);
    // Its change is lost on the way, but its writer still sees it.
    s.delete(&format!("{CONFIG_MAPS}/a")).await.expect(200);
    s.get(&format!("{CONFIG_MAPS}/a")).await.expect(404);
    s.post(CONFIG_MAPS, &config_map("c", json!({}))).await.expect(201);
    assert_eq!(watch.event().await.1, "a");
    assert_eq!(watch.event().await.1, "b");
    // Who watches must list again: the deletion cannot be told any more.
    assert!(watch.next().await.is_none());
    let list = s.get(CONFIG_MAPS).await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_survive_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let options = skeg_store::Options::new(folder.path().join("store.db"), Clock::system());
    let s = start_on(skeg_store::Sqlite::open(&options).unwrap()).await;
    let made = s.post(DEPLOYMENTS, &deployment("web")).await.expect(201);
    let tasks: Vec<_> = (0..32)
        .map(|i| {
            let (api, service) = (s.api.clone(), s.service.clone());
            tokio::spawn(async move {
                let s = Server { api, service };
                for n in 0..10 {
                    s.post(CONFIG_MAPS, &config_map(&format!("c-{i}-{n}"), json!({"k": "v"})))
                        .await
                        .expect(201);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut watch = s.watch(&format!("{CONFIG_MAPS}?watch=true&resourceVersion=0")).await;
    for _ in 0..320 {
        assert_eq!(watch.event().await.0, "ADDED");
    }
    let first = s.get(&format!("{CONFIG_MAPS}?limit=100")).await.expect(200);
    assert_eq!(first["metadata"]["remainingItemCount"], 220);
    let token = first["metadata"]["continue"].as_str().unwrap();
    s.delete(CONFIG_MAPS).await.expect(200);
    s.api.cache().forget(s.api.cache().revision());
    let second = s.get(&format!("{CONFIG_MAPS}?limit=100&continue={token}")).await.expect(200);
    assert_eq!(second["items"].as_array().unwrap().len(), 100);
    s.api.stop().await;
    drop(watch);
    drop(s);
    let s = start_at_store(skeg_store::Sqlite::open(&options).unwrap(), Random::seeded(2)).await;
    assert_eq!(s.get(&format!("{DEPLOYMENTS}/web")).await.expect(200), made);
    assert_eq!(s.get(CONFIG_MAPS).await.expect(200)["items"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn a_write_of_unknown_outcome_is_told_as_such() {
    // Its watches are whole from the third on.
    let s = start_assembled(Arc::new(Forgetful { inner: Memory::new(), watches: AtomicU32::new(2) })).await;
    let create = async |name: &str, ip: &str| {
        let service = json!({"metadata": {"name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
        s.post("/api/v1/namespaces/default/services", &service).await
    };
    let unknown = create("unknown", "10.96.0.7").await.expect(504);
    assert_eq!(unknown["reason"], "Timeout");
    assert!(unknown["message"].as_str().unwrap().contains("the disk went away"), "{unknown}");
    create("a", "10.96.0.8").await.expect(201);
    // A refused write gives back what it was to hold, in the background.
    create("a", "10.96.0.9").await.expect(409);
    while create("b", "10.96.0.9").await.code != 201 {
        tokio::task::yield_now().await;
    }
    // The unknown one may be there: nobody else gets what it was to hold.
    create("c", "10.96.0.7").await.expect(422);
}
