//! Many clients at once: one order of all writes, reads that never go back.

use crate::harness::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One operation on one register, with the logical times of its call and its answer.
#[derive(Clone, Debug)]
struct Op {
    called: u64,
    answered: u64,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Created, or updated against an older revision; gave this one.
    Wrote {
        before: Option<u64>,
        after: u64,
    },
    Deleted {
        before: u64,
        after: u64,
    },
    /// Read this revision; `None` for not found.
    Read(Option<u64>),
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

/// Writes carry the order of effect in their revisions, so the check is direct: the writes form
/// one chain, the chain respects real time, and each read shows a state that was current at some
/// moment between its call and its answer.
fn check(mut ops: Vec<Op>) {
    ops.sort_by_key(|op| op.called);
    let mut chain: BTreeMap<u64, (Op, Option<u64>)> = BTreeMap::new();
    for op in &ops {
        match op.kind {
            Kind::Wrote { after, .. } => assert!(chain.insert(after, (op.clone(), Some(after))).is_none()),
            Kind::Deleted { after, .. } => assert!(chain.insert(after, (op.clone(), None)).is_none()),
            Kind::Read(_) => {}
        }
    }
    let mut state = None;
    let mut latest_call = 0;
    for (op, next) in chain.values() {
        let before = match op.kind {
            Kind::Wrote { before, .. } => before,
            Kind::Deleted { before, .. } => Some(before),
            Kind::Read(_) => unreachable!(),
        };
        assert_eq!(before, state, "{op:?}");
        assert!(op.answered > latest_call, "a write took effect before an earlier one was called: {op:?}");
        latest_call = latest_call.max(op.called);
        state = *next;
    }
    // Each state holds from the call of its write at the earliest to the answer of the next one.
    let writes: Vec<&(Op, Option<u64>)> = chain.values().collect();
    for op in &ops {
        let Kind::Read(seen) = op.kind else { continue };
        let initial = seen.is_none() && writes.first().is_none_or(|(next, _)| next.answered > op.called);
        let held = initial
            || writes.iter().enumerate().any(|(i, (write, state))| {
                *state == seen
                    && write.called < op.answered
                    && writes.get(i + 1).is_none_or(|(next, _)| next.answered > op.called)
            });
        assert!(held, "{op:?} saw a state of another time");
    }
}

async fn client(s: Arc<Server>, clock: Arc<AtomicU64>, seed: u64, path: &'static str) -> Vec<Op> {
    let random = skeg_base::Random::seeded(seed);
    let item = format!("{CONFIG_MAPS}/{path}");
    let (mut ops, mut known) = (Vec::new(), None::<Value>);
    for i in 0..150 {
        let called = clock.fetch_add(1, Ordering::SeqCst);
        let kind = match (random.below(4), &known) {
            (0, _) => {
                let answer =
                    s.post(CONFIG_MAPS, &config_map(path, json!({"by": format!("{seed}-{i}")}))).await;
                (answer.code == 201).then(|| Kind::Wrote { before: None, after: revision(&answer.json()) })
            }
            (1, Some(object)) => {
                let mut object = object.clone();
                let before = revision(&object);
                object["data"]["by"] = format!("{seed}-{i}").into();
                let answer = s.put(&item, &object).await;
                assert!(matches!(answer.code, 200 | 404 | 409), "{}", answer.text());
                (answer.code == 200)
                    .then(|| Kind::Wrote { before: Some(before), after: revision(&answer.json()) })
            }
            (2, Some(object)) => {
                let before = revision(object);
                let body = json!({"preconditions": {"resourceVersion": before.to_string()}});
                let headers = [("content-type", "application/json")];
                let answer = s.send("DELETE", &item, &headers, body.to_string()).await;
                assert!(matches!(answer.code, 200 | 404 | 409), "{}", answer.text());
                // The answer of a delete has no revision; it is found below.
                (answer.code == 200).then_some(Kind::Deleted { before, after: 0 })
            }
            _ => {
                let answer = s.get(&item).await;
                known = (answer.code == 200).then(|| answer.json());
                Some(Kind::Read(known.as_ref().map(revision)))
            }
        };
        tokio::task::yield_now().await;
        let answered = clock.fetch_add(1, Ordering::SeqCst);
        if let Some(kind) = kind {
            ops.push(Op { called, answered, kind });
        }
    }
    ops
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn operations_are_linearizable() {
    let s = Arc::new(start().await);
    let clock = Arc::new(AtomicU64::new(1));
    let mut watch = s.watch(&format!("{CONFIG_MAPS}?watch=true&fieldSelector=metadata.name%3Dr")).await;
    let clients: Vec<_> =
        (0..8).map(|seed| tokio::spawn(client(s.clone(), clock.clone(), seed, "r"))).collect();
    let mut ops = Vec::new();
    for client in clients {
        ops.extend(client.await.unwrap());
    }
    s.post(CONFIG_MAPS, &config_map("end", json!({}))).await.expect(201);
    let expected = ops.iter().filter(|op| !matches!(op.kind, Kind::Read(_))).count();
    // A watch tells each change once, in order, and the revisions of deletes.
    let (mut last, mut deletes, mut state) = (0, BTreeMap::new(), None);
    for _ in 0..expected {
        let event = watch.next().await.unwrap();
        let now = revision(&event["object"]);
        assert!(now > last);
        last = now;
        if event["type"] == "DELETED" {
            deletes.insert(state.take().unwrap(), now);
        } else {
            state = Some(now);
        }
    }
    for op in &mut ops {
        if let Kind::Deleted { before, after } = &mut op.kind {
            *after = deletes[before];
        }
    }
    assert!(expected > 20, "{expected} writes are too few to show anything");
    check(ops);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn patches_without_a_version_all_arrive() {
    let s = Arc::new(start().await);
    s.post(CONFIG_MAPS, &config_map("a", json!({}))).await.expect(201);
    let tasks: Vec<_> = (0..4)
        .map(|i| {
            let s = s.clone();
            tokio::spawn(async move {
                let patch = json!({"data": {format!("k{i}"): "v"}});
                s.patch(&format!("{CONFIG_MAPS}/a"), "merge-patch+json", &patch).await.code
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), 200);
    }
    let got = s.get(&format!("{CONFIG_MAPS}/a")).await.expect(200);
    assert_eq!(got["data"].as_object().unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_and_its_watch_miss_nothing() {
    let s = Arc::new(start().await);
    let writer = {
        let s = s.clone();
        tokio::spawn(async move {
            for i in 0..300 {
                s.post(CONFIG_MAPS, &config_map(&format!("c{i}"), json!({}))).await.expect(201);
            }
        })
    };
    let mut followers = Vec::new();
    for _ in 0..5 {
        let s = s.clone();
        followers.push(tokio::spawn(async move {
            let list = s.get(CONFIG_MAPS).await.expect(200);
            let rv = list["metadata"]["resourceVersion"].as_str().unwrap();
            let mut seen: Vec<String> = list["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
                .collect();
            let mut watch = s.watch(&format!("{CONFIG_MAPS}?watch=true&resourceVersion={rv}")).await;
            while seen.len() < 300 {
                let (kind, name) = watch.event().await;
                assert_eq!(kind, "ADDED");
                assert!(!seen.contains(&name));
                seen.push(name);
            }
        }));
        tokio::task::yield_now().await;
    }
    for follower in followers {
        follower.await.unwrap();
    }
    writer.await.unwrap();
    // Ended watches leave nothing behind.
    assert_eq!(s.api.stats().watchers.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_slow_watcher_is_ended_and_others_are_not() {
    let s = start().await;
    let slow = s.raw("GET", &format!("{CONFIG_MAPS}?watch=true"), &[], "").await;
    s.post(CONFIG_MAPS, &config_map("a", json!({}))).await.expect(201);
    for i in 0..8_300 {
        let answer = s
            .patch(&format!("{CONFIG_MAPS}/a"), "merge-patch+json", &json!({"data": {"i": i.to_string()}}))
            .await;
        assert_eq!(answer.code, 200);
    }
    assert_eq!(s.api.stats().watches_dropped_total.load(Ordering::Relaxed), 1);
    assert_eq!(s.api.stats().watchers.load(Ordering::Relaxed), 0);
    drop(slow);
}

/// Everything a run shows: the answers and the frames of a watch, in order.
async fn trace(seed: u64) -> u64 {
    let clock = skeg_base::Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap());
    let s = Arc::new(start_at(clock, skeg_base::Random::seeded(seed)).await);
    let mut watch = s.watch("/api/v1/configmaps?watch=true").await;
    let log = Arc::new(std::sync::Mutex::new(Vec::new()));
    let tasks: Vec<_> = (0..6)
        .map(|i| {
            let (s, log) = (s.clone(), log.clone());
            tokio::spawn(async move {
                for n in 0..20 {
                    let made = s.post(CONFIG_MAPS, &json!({"metadata": {"generateName": "x-"}})).await;
                    log.lock().unwrap().push(made.text());
                    let patch = json!({"data": {"n": format!("{i}-{n}")}});
                    s.post(CONFIG_MAPS, &config_map("shared", json!({}))).await;
                    let patched = s.patch(&format!("{CONFIG_MAPS}/shared"), "merge-patch+json", &patch).await;
                    log.lock().unwrap().push(patched.text());
                    tokio::time::sleep(std::time::Duration::from_millis(i * 7 + 1)).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for _ in 0..240 {
        let event = watch.next().await.unwrap().to_string();
        log.lock().unwrap().push(event);
    }
    s.api.stop().await;
    let log = log.lock().unwrap();
    skeg_base::hash_of(&*log)
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_run() {
    let first = trace(7).await;
    assert_eq!(first, trace(7).await);
    assert_ne!(first, trace(8).await);
}
