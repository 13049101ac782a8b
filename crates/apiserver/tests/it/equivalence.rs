//! Clients list and watch as their libraries do while others write, history is compacted, and the
//! definition of a kind changes, goes and comes back. Once all is quiet, each holds what a fresh list
//! shows.
//! Upstream counterpart of the client: `client-go/tools/cache/reflector.go`.

use crate::crds::{change, establish, remove};
use crate::harness::*;
use serde_json::{Value, json};
use skeg_base::{Clock, Random};
use skeg_store::{Memory, Options, Revision, Sqlite, Store};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const NAME: &str = "gears.example.com";
const GEARS: &str = "/apis/example.com/v1/namespaces/default/gears";
const NEWER: &str = "/apis/example.com/v2/namespaces/default/gears";
/// The last object, which every client's selector selects.
const END: &str = "end";
const OBJECTS: u64 = 12;
const INITIAL: &str = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";

fn definition() -> Value {
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "selectableFields": [{"jsonPath": ".spec.color"}],
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
                "color": {"type": "string"}, "by": {"type": "string"}}}}}}})
    };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": NAME},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "gears", "kind": "Gear"},
            "versions": [version("v1", true), version("v2", false)]}})
}

fn object(path: &str, name: &str, random: &Random, by: &str) -> Value {
    let pick = |of: [&'static str; 2]| of[random.below(2) as usize];
    let metadata = json!({"name": name, "labels": {"app": pick(["a", "b"])}});
    match path {
        CONFIG_MAPS => json!({"metadata": metadata, "data": {"by": by}}),
        _ => gear(path, metadata, json!({"color": pick(["red", "blue"]), "by": by})),
    }
}

fn gear(path: &str, metadata: Value, spec: Value) -> Value {
    let version = if path == NEWER { "example.com/v2" } else { "example.com/v1" };
    json!({"apiVersion": version, "kind": "Gear", "metadata": metadata, "spec": spec})
}

/// Creates, changes and deletes; which of it succeeds is of no matter.
async fn write(s: Arc<Server>, random: Random, ops: usize) {
    for op in 0..ops {
        let path = [CONFIG_MAPS, GEARS, NEWER][random.below(3) as usize];
        let name = format!("o{}", random.below(OBJECTS));
        let body = object(path, &name, &random, &op.to_string());
        let answer = match random.below(10) {
            0..=3 => s.post(path, &body).await,
            4..=6 => s.patch(&format!("{path}/{name}"), "merge-patch+json", &body).await,
            7 => s.put(&format!("{path}/{name}"), &body).await,
            8 => s.delete(&format!("{path}/{name}")).await,
            _ if op % 16 == 0 => s.delete(&format!("{path}?labelSelector=app%3Da")).await,
            _ => s.delete(&format!("{path}/{name}")).await,
        };
        assert!(matches!(answer.code, 200 | 201 | 404 | 405 | 409 | 422), "{}", answer.text());
        tokio::task::yield_now().await;
    }
}

/// Forgets history, and changes the definition.
async fn disturb(s: Arc<Server>, random: Random, times: usize) {
    for turn in 0..times {
        for _ in 0..random.below(40) {
            tokio::task::yield_now().await;
        }
        match random.below(6) {
            0 | 1 => {
                let now = s.api.cache().revision();
                s.api.seams().store.compact(Revision(now)).await.unwrap();
                s.api.cache().forget(now);
            }
            2 => {
                change(&s, NAME, |d| {
                    let served = &mut d["spec"]["versions"][1]["served"];
                    *served = (*served == false).into();
                })
                .await;
            }
            3 => {
                let columns =
                    json!([{"name": format!("C{turn}"), "type": "string", "jsonPath": ".spec.color"}]);
                change(&s, NAME, |d| d["spec"]["versions"][0]["additionalPrinterColumns"] = columns.clone())
                    .await;
            }
            4 => {
                let field = format!("f{turn}");
                change(&s, NAME, |d| {
                    let schema = &mut d["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
                    schema["properties"]["spec"]["properties"][&field] = json!({"type": "string"});
                })
                .await;
            }
            _ => {
                remove(&s, NAME).await;
                establish(&s, &definition()).await;
            }
        }
    }
}

/// How a client comes to know what there is.
#[derive(Clone, Copy, Debug)]
enum Listing {
    Whole,
    Pages,
    /// Whatever the cache has.
    Any,
    NotOlderThan,
    Exact,
    WatchList,
}

/// A client and what it holds.
struct Client {
    s: Arc<Server>,
    path: &'static str,
    selector: &'static str,
    listing: Listing,
    held: BTreeMap<String, Value>,
    /// As of which it holds it.
    revision: u64,
    restarts: Arc<AtomicUsize>,
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn revision(object: &Value) -> u64 {
    text(object, "/metadata/resourceVersion").parse().unwrap()
}

fn items(list: &Value) -> impl Iterator<Item = (String, Value)> + '_ {
    let kind = text(list, "/kind").trim_end_matches("List");
    list["items"].as_array().unwrap().iter().map(move |item| {
        let mut item = item.clone();
        // Items of a built-in list do not say what they are.
        item["apiVersion"] = list["apiVersion"].clone();
        item["kind"] = kind.into();
        (text(&item, "/metadata/name").to_owned(), item)
    })
}

impl Client {
    /// A list with parameters; nothing if it has to be tried again.
    async fn ask(&self, parameters: &str) -> Option<Value> {
        let answer = self.s.get(&format!("{}?{}&{parameters}", self.path, self.selector)).await;
        assert!(matches!(answer.code, 200 | 404 | 410), "{:?} {parameters}: {}", self.listing, answer.text());
        (answer.code == 200).then(|| answer.json())
    }

    /// Lists anew. Nothing if it has to be tried again.
    async fn list(&mut self) -> Option<()> {
        let known = self.revision;
        let list = match self.listing {
            Listing::Whole => self.ask("").await?,
            Listing::Any => self.ask("resourceVersion=0").await?,
            Listing::NotOlderThan if known > 0 => {
                let list =
                    self.ask(&format!("resourceVersion={known}&resourceVersionMatch=NotOlderThan")).await?;
                assert!(revision(&list) >= known);
                list
            }
            Listing::NotOlderThan => self.ask("").await?,
            Listing::Exact => {
                let first = revision(&self.ask("limit=1").await?);
                let list = self.ask(&format!("resourceVersion={first}&resourceVersionMatch=Exact")).await?;
                assert_eq!(revision(&list), first);
                list
            }
            Listing::Pages => {
                let mut list = self.ask("limit=3").await?;
                while let Some(token) = list["metadata"]["continue"].as_str().map(str::to_owned) {
                    tokio::task::yield_now().await;
                    let Some(mut page) = self.ask(&format!("limit=3&continue={token}")).await else {
                        // As pagers do where history is gone.
                        list = self.ask("").await?;
                        break;
                    };
                    assert_eq!(revision(&page), revision(&list));
                    let more = page["items"].as_array_mut().unwrap().drain(..).collect::<Vec<_>>();
                    list["items"].as_array_mut().unwrap().extend(more);
                    list["metadata"] = page["metadata"].take();
                }
                list
            }
            Listing::WatchList => return Some(()),
        };
        self.revision = revision(&list);
        self.held = items(&list).collect();
        Some(())
    }

    /// Watches from where it is until the watch ends. Whether it may go on from there.
    async fn follow(&mut self, initial: bool) -> bool {
        let from = match (initial, self.revision) {
            (true, 0) => INITIAL.to_owned(),
            (true, known) => format!("{INITIAL}&resourceVersion={known}"),
            (false, known) => format!("resourceVersion={known}&allowWatchBookmarks=true"),
        };
        let path = format!("{}?watch=true&{}&{from}", self.path, self.selector);
        let Ok(mut watch) = self.s.try_watch(&path).await else { return false };
        // What is not told again is gone.
        let mut fresh = initial.then(BTreeMap::new);
        let mut last = if initial { 0 } else { self.revision };
        loop {
            let next = tokio::time::timeout(Duration::from_secs(15), watch.next());
            let next =
                next.await.unwrap_or_else(|_| panic!("{:?} of {path}: silent after {last}", self.listing));
            let Some(mut event) = next else { break };
            let object = event["object"].take();
            if event["type"] == "ERROR" {
                assert!(matches!(object["code"].as_u64(), Some(404 | 410)), "{object}");
                return false;
            }
            let (now, name) = (revision(&object), text(&object, "/metadata/name").to_owned());
            let is_initial = fresh.is_some();
            if event["type"] == "BOOKMARK" {
                assert!(now >= last, "{path}: a bookmark went back");
                self.revision = now;
                last = now;
                if let Some(told) = fresh.take() {
                    assert_eq!(text(&object, "/metadata/annotations/k8s.io~1initial-events-end"), "true");
                    self.held = told;
                }
                if self.held.contains_key(END) {
                    return true;
                }
                continue;
            }
            let held = fresh.as_mut().unwrap_or(&mut self.held);
            if !is_initial {
                assert!(now > last, "{path}: {now} after {last}");
                last = now;
                self.revision = now;
            }
            let was = held.contains_key(&name);
            match event["type"].as_str().unwrap() {
                "ADDED" => {
                    assert!(!was && held.insert(name.clone(), object).is_none(), "{path}: {name} was there")
                }
                "MODIFIED" => {
                    assert!(held.insert(name.clone(), object).is_some(), "{path}: {name} was not there")
                }
                "DELETED" => assert!(held.remove(&name).is_some(), "{path}: {name} was not there"),
                other => panic!("{other}"),
            }
            if !is_initial && held.contains_key(END) {
                return true;
            }
        }
        // A list that was not told to its end counts for nothing.
        fresh.is_none()
    }

    /// Lists and watches until the last object is there.
    async fn run(mut self) -> Self {
        let kinds = self.s.api.kinds().clone();
        let mut lists = true;
        while !self.held.contains_key(END) {
            let generation = kinds.snapshot().generation;
            if lists {
                self.restarts.fetch_add(1, Ordering::Relaxed);
                if self.list().await.is_none() {
                    // Without the kind there is nothing to ask for.
                    if self.s.get(self.path).await.code == 404 {
                        kinds.changed(generation).await;
                    }
                    continue;
                }
                if self.held.contains_key(END) {
                    break;
                }
            }
            lists = !self.follow(lists && matches!(self.listing, Listing::WatchList)).await;
            tokio::task::yield_now().await;
        }
        self
    }
}

/// One run: how often clients had to begin anew.
async fn run(store: Arc<dyn Store>, seed: u64) -> usize {
    let s = Arc::new(start_assembled(store).await);
    establish(&s, &definition()).await;
    let restarts = Arc::<AtomicUsize>::default();
    let mut clients = Vec::new();
    for listing in [
        Listing::Whole,
        Listing::Pages,
        Listing::Any,
        Listing::NotOlderThan,
        Listing::Exact,
        Listing::WatchList,
    ] {
        let selectors = [
            (CONFIG_MAPS, ""),
            (CONFIG_MAPS, "labelSelector=app%3Da"),
            (GEARS, ""),
            (NEWER, ""),
            (GEARS, "fieldSelector=spec.color%3Dred"),
            (NEWER, "labelSelector=app%3Da"),
        ];
        for (path, selector) in selectors {
            let (s, restarts) = (s.clone(), restarts.clone());
            let client = Client { s, path, selector, listing, held: BTreeMap::new(), revision: 0, restarts };
            clients.push(tokio::spawn(client.run()));
        }
    }
    let mut tasks: Vec<_> =
        (0..4).map(|n| tokio::spawn(write(s.clone(), Random::seeded(seed * 100 + n), 100))).collect();
    tasks.push(tokio::spawn(disturb(s.clone(), Random::seeded(seed * 100 + 50), 12)));
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("writers end").unwrap();
    }
    if s.get(NEWER).await.code == 404 {
        change(&s, NAME, |d| d["spec"]["versions"][1]["served"] = true.into()).await;
    }
    let metadata = json!({"name": END, "labels": {"app": "a"}});
    s.post(CONFIG_MAPS, &json!({"metadata": metadata})).await.expect(201);
    s.post(GEARS, &gear(GEARS, metadata, json!({"color": "red"}))).await.expect(201);
    for client in clients {
        let client = client.await.unwrap();
        let fresh = client.ask("").await.unwrap();
        let fresh: BTreeMap<String, Value> = items(&fresh).collect();
        assert_eq!(client.held, fresh, "{seed}: {:?} of {}?{}", client.listing, client.path, client.selector);
    }
    s.api.stop().await;
    restarts.load(Ordering::Relaxed)
}

#[tokio::test]
async fn clients_hold_what_a_fresh_list_shows() {
    let mut restarts = 0;
    for seed in 1..5 {
        restarts += run(Arc::new(Memory::new()), seed).await;
    }
    // Each of the 36 clients lists once anyway.
    assert!(restarts > 2 * 4 * 36, "{restarts} lists are too few to show anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_hold_what_a_fresh_list_shows_on_disk() {
    for seed in 5..7 {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(dir.path().join("store.db"), Clock::system());
        run(Sqlite::open(&options).unwrap(), seed).await;
    }
}
