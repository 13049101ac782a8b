//! list and watch: pages, selectors, revisions, bookmarks, other forms.

use crate::harness::*;
use serde_json::{Value, json};
use std::time::Duration;

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect()
}

async fn fill(s: &Server, n: usize) {
    for i in 0..n {
        s.post(CONFIG_MAPS, &config_map(&format!("c{i}"), json!({}))).await.expect(201);
    }
}

#[tokio::test]
async fn pages_show_one_moment() {
    let s = start().await;
    fill(&s, 5).await;
    let first = s.get(&format!("{CONFIG_MAPS}?limit=2")).await.expect(200);
    assert_eq!(names(&first), ["c0", "c1"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let token = first["metadata"]["continue"].as_str().unwrap();
    s.delete(&format!("{CONFIG_MAPS}/c2")).await.expect(200);
    s.post(CONFIG_MAPS, &config_map("c22", json!({}))).await.expect(201);
    let second = s.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await.expect(200);
    assert_eq!(names(&second), ["c2", "c3"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap();
    let third = s.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await.expect(200);
    assert_eq!(names(&third), ["c4"]);
    assert!(third["metadata"].get("continue").is_none());
    let rv = first["metadata"]["resourceVersion"].as_str().unwrap();
    let exact =
        s.get(&format!("{CONFIG_MAPS}?resourceVersion={rv}&resourceVersionMatch=Exact")).await.expect(200);
    assert_eq!(names(&exact), ["c0", "c1", "c2", "c3", "c4"]);
    let now = s
        .get(&format!("{CONFIG_MAPS}?resourceVersion={rv}&resourceVersionMatch=NotOlderThan"))
        .await
        .expect(200);
    assert_eq!(names(&now), ["c0", "c1", "c22", "c3", "c4"]);
    s.get(&format!("{CONFIG_MAPS}?continue=nonsense")).await.expect(400);
    let continued = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&continue=abc";
    s.get(&format!("{CONFIG_MAPS}?{continued}")).await.expect(422);
    s.get(&format!("{CONFIG_MAPS}?resourceVersionMatch=Exact")).await.expect(422);
}

#[tokio::test]
async fn an_expired_token_can_go_on_inconsistently() {
    let s = start().await;
    fill(&s, 4).await;
    let first = s.get(&format!("{CONFIG_MAPS}?limit=2")).await.expect(200);
    let token = first["metadata"]["continue"].as_str().unwrap();
    s.delete(&format!("{CONFIG_MAPS}/c3")).await.expect(200);
    let now = s.api.cache().revision();
    s.api.seams().store.compact(skeg_store::Revision(now)).await.unwrap();
    s.api.cache().forget(now);
    let expired = s.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await.expect(410);
    assert_eq!(expired["reason"], "Expired");
    let token = expired["metadata"]["continue"].as_str().unwrap();
    let rest = s.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await.expect(200);
    assert_eq!(names(&rest), ["c2"]);
}

#[tokio::test]
async fn pages_reach_back_into_the_store() {
    let s = start().await;
    fill(&s, 5).await;
    let first = s.get(&format!("{CONFIG_MAPS}?limit=2")).await.expect(200);
    let token = first["metadata"]["continue"].as_str().unwrap();
    s.delete(&format!("{CONFIG_MAPS}/c2")).await.expect(200);
    // The cache has forgotten, the store has not.
    s.api.cache().forget(s.api.cache().revision());
    let second = s.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await.expect(200);
    assert_eq!(names(&second), ["c2", "c3"]);
    assert_eq!(second["metadata"]["remainingItemCount"], 1);
}

#[tokio::test]
async fn selectors_select() {
    let s = start().await;
    for (name, node) in [("a", "n1"), ("b", "n2"), ("c", "n1")] {
        let mut object = pod(name);
        object["spec"]["nodeName"] = node.into();
        s.post(PODS, &object).await.expect(201);
    }
    let list = s.get(&format!("{PODS}?fieldSelector=spec.nodeName%3Dn1")).await.expect(200);
    assert_eq!(names(&list), ["a", "c"]);
    let list = s
        .get("/api/v1/pods?fieldSelector=spec.nodeName!%3Dn1,metadata.namespace%3Ddefault")
        .await
        .expect(200);
    assert_eq!(names(&list), ["b"]);
    let list = s.get(&format!("{PODS}?fieldSelector=metadata.name%3Db")).await.expect(200);
    assert_eq!(names(&list), ["b"]);
    let list = s.get(&format!("{PODS}?labelSelector=app+in+(a,b)")).await.expect(200);
    assert_eq!(names(&list), ["a", "b"]);
    let refused = s.get(&format!("{PODS}?fieldSelector=spec.foo%3D1")).await.expect(400);
    assert_eq!(refused["message"], "field label not supported: spec.foo");
    s.get(&format!("{PODS}?labelSelector=%3D%3D")).await.expect(400);
}

#[tokio::test]
async fn a_watch_follows_its_selector() {
    let s = start().await;
    let mut all = s.watch(&format!("{PODS}?watch=true")).await;
    let mut bound = s.watch("/api/v1/pods?watch=true&fieldSelector=spec.nodeName%3Dn1").await;
    let mut free = s.watch("/api/v1/pods?watch=true&fieldSelector=spec.nodeName%3D").await;
    let mut other = s.watch("/api/v1/namespaces/other/pods?watch=true").await;
    s.post(PODS, &pod("a")).await.expect(201);
    let binding = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n1"}});
    s.post(&format!("{PODS}/a/binding"), &binding).await.expect(201);
    s.delete(&format!("{PODS}/a?gracePeriodSeconds=0")).await.expect(200);
    for expected in ["ADDED", "MODIFIED", "DELETED"] {
        assert_eq!(all.event().await.0, expected);
    }
    for expected in ["ADDED", "DELETED"] {
        assert_eq!(bound.event().await.0, expected);
    }
    assert_eq!(free.event().await.0, "ADDED");
    let left = free.next().await.unwrap();
    // Its last state, at the revision of the change.
    assert_eq!(left["type"], "DELETED");
    assert!(left["object"]["spec"].get("nodeName").is_none());
    s.post("/api/v1/namespaces/other/pods", &pod("b")).await.expect(201);
    assert_eq!(other.event().await, ("ADDED".to_owned(), "b".to_owned()));
}

#[tokio::test]
async fn a_watch_resumes_after_a_revision() {
    let s = start().await;
    fill(&s, 3).await;
    let list = s.get(&format!("{CONFIG_MAPS}?limit=1")).await.expect(200);
    let rv = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    s.delete(&format!("{CONFIG_MAPS}/c1")).await.expect(200);
    s.post(CONFIG_MAPS, &config_map("d", json!({}))).await.expect(201);
    let mut watch = s.watch(&format!("{CONFIG_MAPS}?watch=true&resourceVersion={rv}")).await;
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("DELETED"), &json!("c1")));
    assert!(
        event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap()
            > rv.parse().unwrap()
    );
    assert_eq!(watch.event().await, ("ADDED".to_owned(), "d".to_owned()));
    s.api.cache().forget(s.api.cache().revision());
    let mut late = s.watch(&format!("{CONFIG_MAPS}?watch=true&resourceVersion={rv}")).await;
    let error = late.next().await.unwrap();
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert!(late.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn initial_events_end_with_a_bookmark() {
    let s = start().await;
    fill(&s, 2).await;
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=90";
    let mut watch = s.watch(&format!("{CONFIG_MAPS}?{query}")).await;
    for _ in 0..2 {
        assert_eq!(watch.event().await.0, "ADDED");
    }
    let mark = watch.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(mark["object"]["kind"], "ConfigMap");
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(watch.event().await.0, "BOOKMARK");
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(watch.event().await.0, "BOOKMARK");
    assert!(watch.next().await.is_none());
    s.get(&format!("{CONFIG_MAPS}?watch=true&sendInitialEvents=true")).await.expect(422);
}

/// A thousand watchers who are told of each change by itself would keep every core busy.
#[tokio::test(start_paused = true)]
async fn many_watchers_of_the_same_rest_between_events() {
    for (watchers, rest) in [(10, 0..1), (150, 3..5), (2_000, 20..22)] {
        let s = start().await;
        let mut all = Vec::new();
        for _ in 0..watchers {
            all.push(s.watch(&format!("{CONFIG_MAPS}?watch=true")).await);
        }
        let start = tokio::time::Instant::now();
        fill(&s, 1).await;
        for watch in &mut all {
            assert_eq!(watch.event().await, ("ADDED".to_owned(), "c0".to_owned()));
        }
        assert_eq!(start.elapsed(), Duration::ZERO, "the first goes out at once");
        let watch = &mut all[0];
        // It looks for the next while there is none yet.
        let looks = async {
            let next = watch.event().await;
            (next, start.elapsed().as_millis())
        };
        let writes = async {
            tokio::task::yield_now().await;
            for name in ["c1", "c2"] {
                s.post(CONFIG_MAPS, &config_map(name, json!({}))).await.expect(201);
            }
        };
        let ((next, waited), ()) = tokio::join!(looks, writes);
        assert_eq!(next, ("ADDED".to_owned(), "c1".to_owned()));
        assert!(rest.contains(&waited), "{watchers} watchers: {waited} ms");
        // What came meanwhile goes out with it.
        assert_eq!(all[0].event().await, ("ADDED".to_owned(), "c2".to_owned()));
        assert_eq!(start.elapsed().as_millis(), waited);
    }
}

#[tokio::test]
async fn tables_and_metadata() {
    let s = start().await;
    s.post(PODS, &pod("a")).await.expect(201);
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let got = s.send("GET", PODS, &table, "").await.expect(200);
    assert_eq!(got["kind"], "Table");
    assert_eq!(got["columnDefinitions"][0]["name"], "Name");
    assert_eq!(got["rows"][0]["cells"][0], "a");
    assert_eq!(got["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let one = s.send("GET", &format!("{PODS}/a?includeObject=Object"), &table, "").await.expect(200);
    assert_eq!(one["rows"][0]["object"]["kind"], "Pod");
    let partial = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let got = s.send("GET", PODS, &partial, "").await.expect(200);
    assert_eq!(got["kind"], "PartialObjectMetadataList");
    assert!(got["items"][0].get("spec").is_none());
    // Of lists and of objects each by its own name, whatever else would do.
    let text = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json";
    let of_one = [("accept", text)];
    let got = s.send("GET", &format!("{PODS}/a"), &of_one, "").await.expect(200);
    assert_eq!(got["kind"], "PartialObjectMetadata");
    let refused = s.send("GET", PODS, &of_one, "").await.expect(406);
    let why = "you requested PartialObjectMetadata, but the requested object is a list (PodList)";
    assert_eq!(refused["message"], why);
    let refused = s.send("GET", &format!("{PODS}/a"), &partial, "").await.expect(406);
    let why = "you requested PartialObjectMetadataList, but the requested object is not a list (Pod)";
    assert_eq!(refused["message"], why);
}

#[tokio::test]
async fn both_event_groups_show_one_event() {
    let s = start().await;
    let object = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"},
        "reason": "Started", "message": "text", "type": "Normal", "count": 2, "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:00:01Z", "source": {"component": "kubelet"}});
    s.post("/api/v1/namespaces/default/events", &object).await.expect(201);
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    let got = s.get(&format!("{path}/e")).await.expect(200);
    assert_eq!(got["apiVersion"], "events.k8s.io/v1");
    assert_eq!((&got["note"], &got["regarding"]["name"]), (&json!("text"), &json!("p")));
    assert_eq!(
        (&got["deprecatedCount"], &got["deprecatedSource"]["component"]),
        (&json!(2), &json!("kubelet"))
    );
    let list = s.get(&format!("{path}?fieldSelector=regarding.name%3Dp")).await.expect(200);
    assert_eq!(list["kind"], "EventList");
    assert_eq!(list["items"][0]["note"], "text");
    let mut watch = s.watch(&format!("{path}?watch=true")).await;
    assert_eq!(watch.next().await.unwrap()["object"]["note"], "text");
    let core = "/api/v1/namespaces/default/events/e";
    s.patch(core, "merge-patch+json", &json!({"count": 3})).await.expect(200);
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["deprecatedCount"]), (&json!("MODIFIED"), &json!(3)));
    let refused = s.patch(&format!("{path}/e"), "merge-patch+json", &json!({"note": "other"})).await;
    assert_eq!(refused.code, 422, "{}", refused.text());
}

fn unpack(answer: &Answer) -> Value {
    assert_eq!(answer.headers["content-encoding"], "gzip");
    serde_json::from_reader(flate2::read::GzDecoder::new(&answer.bytes[..])).unwrap()
}

#[tokio::test]
async fn large_answers_are_compressed_and_never_stale() {
    let s = start().await;
    for i in 0..30 {
        s.post(CONFIG_MAPS, &config_map(&format!("c{i}"), json!({"k": "v".repeat(5000)}))).await.expect(201);
    }
    let gzip = [("accept-encoding", "gzip, deflate")];
    let first = s.send("GET", CONFIG_MAPS, &gzip, "").await;
    assert_eq!(unpack(&first), s.get(CONFIG_MAPS).await.json());
    let again = s.send("GET", CONFIG_MAPS, &gzip, "").await;
    assert_eq!(again.bytes, first.bytes);
    let selected = s.send("GET", &format!("{CONFIG_MAPS}?labelSelector=!x"), &gzip, "").await;
    assert_eq!(names(&unpack(&selected)).len(), 30);
    s.delete(&format!("{CONFIG_MAPS}/c0")).await.expect(200);
    let fresh = s.send("GET", CONFIG_MAPS, &gzip, "").await;
    assert_eq!(names(&unpack(&fresh)).len(), 29);
    let small = s.send("GET", &format!("{CONFIG_MAPS}/c1"), &gzip, "").await;
    assert!(!small.headers.contains_key("content-encoding"));
}

#[tokio::test]
async fn pretty_answers_are_indented() {
    let s = start().await;
    s.post(CONFIG_MAPS, &config_map("a", json!({}))).await.expect(201);
    let got = s.get(&format!("{CONFIG_MAPS}/a?pretty=true")).await;
    assert!(got.text().starts_with("{\n  \"apiVersion\": \"v1\""), "{}", got.text());
    assert_eq!(got.json(), s.get(&format!("{CONFIG_MAPS}/a")).await.json());
}

#[tokio::test]
async fn revisions_of_the_future_are_not_served() {
    let s = start().await;
    let refused =
        tokio::time::timeout(Duration::from_secs(20), s.get(&format!("{CONFIG_MAPS}?resourceVersion=999")))
            .await;
    let refused = refused.unwrap().expect(504);
    assert_eq!(refused["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    s.get(&format!("{CONFIG_MAPS}?resourceVersion=x")).await.expect(400);
}

#[tokio::test(start_paused = true)]
async fn events_expire_and_watchers_are_told() {
    let s = start().await;
    let object = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}});
    let path = "/api/v1/namespaces/default/events";
    s.post(path, &object).await.expect(201);
    let mut watch = s.watch(&format!("{path}?watch=true&resourceVersion=0&timeoutSeconds=9000")).await;
    assert_eq!(watch.event().await.0, "ADDED");
    tokio::time::advance(Duration::from_secs(3601)).await;
    assert_eq!(watch.event().await.0, "DELETED");
    s.get(&format!("{path}/e")).await.expect(404);
}

/// Upstream's table of what resourceVersion, resourceVersionMatch and limit mean together.
#[tokio::test]
async fn lists_follow_upstreams_table_of_versions() {
    let s = start().await;
    fill(&s, 3).await;
    let then =
        s.get(CONFIG_MAPS).await.expect(200)["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    s.delete(&format!("{CONFIG_MAPS}/c1")).await.expect(200);
    let (past, now): (&[&str], &[&str]) = (&["c0", "c1", "c2"], &["c0", "c2"]);
    let both = "resourceVersionMatch=NotOlderThan&";
    let exact = "resourceVersionMatch=Exact&";
    let cases: &[(&str, Result<&[&str], u16>)] = &[
        ("", Ok(now)),
        ("limit=1", Ok(&["c0"])),
        ("resourceVersion=0", Ok(now)),
        ("resourceVersion=0&limit=1", Ok(now)),
        ("resourceVersion=THEN", Ok(now)),
        // A page of an unnamed match is exact, as it always was.
        ("resourceVersion=THEN&limit=3", Ok(past)),
        (&format!("{both}resourceVersion=0"), Ok(now)),
        (&format!("{both}resourceVersion=THEN"), Ok(now)),
        (&format!("{both}resourceVersion=THEN&limit=3"), Ok(now)),
        (&format!("{exact}resourceVersion=THEN"), Ok(past)),
        (&format!("{exact}resourceVersion=THEN&limit=2"), Ok(&["c0", "c1"])),
        (&format!("{exact}resourceVersion=0"), Err(422)),
        (exact, Err(422)),
        (both, Err(422)),
        ("resourceVersionMatch=Other&resourceVersion=THEN", Err(422)),
        (&format!("{exact}resourceVersion=x"), Err(400)),
        ("sendInitialEvents=true", Err(422)),
        (&format!("{both}resourceVersion=THEN&watch=true"), Err(422)),
        (&format!("{exact}sendInitialEvents=true&watch=true"), Err(422)),
    ];
    for (query, expected) in cases {
        let answer = s.get(&format!("{CONFIG_MAPS}?{}", query.replace("THEN", &then))).await;
        match expected {
            Ok(expected) => assert_eq!(names(&answer.expect(200)), *expected, "{query}"),
            Err(code) => assert_eq!(answer.code, *code, "{query}: {}", answer.text()),
        }
    }
    for version in ["0", then.as_str()] {
        s.get(&format!("{CONFIG_MAPS}/c0?resourceVersion={version}")).await.expect(200);
    }
    s.get(&format!("{CONFIG_MAPS}/c0?resourceVersion=x")).await.expect(400);
}

#[tokio::test(start_paused = true)]
async fn history_is_compacted_every_five_minutes() {
    let s = start().await;
    fill(&s, 1).await;
    let list = s.get(CONFIG_MAPS).await.expect(200);
    let then = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let past = format!("{CONFIG_MAPS}?resourceVersionMatch=Exact&resourceVersion={then}");
    s.delete(&format!("{CONFIG_MAPS}/c0")).await.expect(200);
    // What happened in the last five minutes is kept by the compaction at their end.
    tokio::time::sleep(Duration::from_secs(5 * 60 + 1)).await;
    assert_eq!(names(&s.get(&past).await.expect(200)), ["c0"]);
    tokio::time::sleep(Duration::from_secs(5 * 60)).await;
    assert_eq!(s.get(&past).await.expect(410)["reason"], "Expired");
    let mut watch = s.watch(&format!("{CONFIG_MAPS}?watch=true&resourceVersion={then}")).await;
    assert_eq!(watch.next().await.unwrap()["object"]["code"], 410);
    let store = &s.api.seams().store;
    let old = skeg_store::Revision(then.parse().unwrap());
    let gone = store.list("/registry/configmaps/", Some(old), None, 0).await;
    assert!(matches!(gone, Err(skeg_store::Error::Compacted { .. })), "{gone:?}");
}

#[tokio::test]
async fn deprecated_kinds_are_told() {
    let s = start().await;
    let told = ["299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\""];
    let path = "/api/v1/namespaces/default/endpoints";
    let made = s.post(path, &json!({"metadata": {"name": "a"}})).await;
    assert_eq!((made.code, made.warnings()), (201, told.map(str::to_owned).to_vec()));
    let list = s.get(path).await;
    assert_eq!((list.code, list.warnings()), (200, told.map(str::to_owned).to_vec()));
    assert!(s.get(CONFIG_MAPS).await.warnings().is_empty());
}

#[tokio::test]
async fn parameters_that_do_nothing_are_told() {
    let s = start().await;
    fill(&s, 1).await;
    let told = |name: &str| vec![format!("299 - \"{name}: has no effect on this server\"")];
    let list = s.get(&format!("{CONFIG_MAPS}?shardSelector=x")).await;
    assert_eq!((list.code, list.warnings()), (200, told("shardSelector")));
    let name = "ignoreStoreReadErrorWithClusterBreakingPotential";
    let gone = s.delete(&format!("{CONFIG_MAPS}/c0?{name}=true")).await;
    assert_eq!((gone.code, gone.warnings()), (200, told(name)));
    assert!(s.get(&format!("{CONFIG_MAPS}?limit=1")).await.warnings().is_empty());
}
