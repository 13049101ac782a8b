//! Custom resources in several versions, between which a webhook converts.

use crate::access;
use crate::crds::{CRDS, change, establish, remove};
use crate::harness::*;
use crate::webhooks::{Reply, Webhooks};
use serde_json::{Value, json};

const V1: &str = "/apis/example.com/v1/namespaces/default/hosts";
const V2: &str = "/apis/example.com/v2/namespaces/default/hosts";

/// `hostPort` of v1 is `host` and `port` of v2.
fn converted(object: &Value, desired: &Value) -> Value {
    let mut object = object.clone();
    object["apiVersion"] = desired.clone();
    let Some(spec) = object["spec"].as_object_mut() else { return object };
    if desired == "example.com/v2" {
        if let Some(both) = spec.remove("hostPort") {
            let (host, port) = both.as_str().unwrap().split_once(':').unwrap();
            spec.insert("host".into(), host.into());
            spec.insert("port".into(), port.into());
        }
    } else if let (Some(host), Some(port)) = (spec.remove("host"), spec.remove("port")) {
        spec.insert(
            "hostPort".into(),
            format!("{}:{}", host.as_str().unwrap(), port.as_str().unwrap()).into(),
        );
    }
    object
}

fn reply(request: &Value, objects: Vec<Value>) -> Value {
    json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response":
        {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects}})
}

fn convert(request: &Value) -> Value {
    let objects = request["objects"].as_array().unwrap().iter();
    reply(request, objects.map(|object| converted(object, &request["desiredAPIVersion"])).collect())
}

fn raw(answer: Value) -> Reply {
    Reply::Raw(200, answer.to_string().into())
}

fn definition(client: Value) -> Value {
    let text = json!({"type": "string"});
    let version = |name: &str, storage: bool, fields: Value| {
        let selectable: Vec<Value> = fields
            .as_object()
            .unwrap()
            .keys()
            .filter(|name| *name != "note")
            .map(|name| json!({"jsonPath": format!(".spec.{name}")}))
            .collect();
        json!({"name": name, "served": true, "storage": storage, "subresources": {"status": {}},
            "selectableFields": selectable,
            "additionalPrinterColumns": [{"name": "Port", "type": "string", "jsonPath": ".spec.port"}],
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": fields},
                "status": {"type": "object", "properties": {"seen": text}}}}}})
    };
    let v1 = version("v1", true, json!({"hostPort": text, "note": {"type": "string", "default": "none"}}));
    let v2 = version("v2", false, json!({"host": text, "port": text, "note": text}));
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "hosts.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "hosts", "kind": "Host"},
            "conversion": {"strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": ["v1"]}},
            "versions": [v1, v2]}})
}

fn by_url(hooks: &Webhooks) -> Value {
    json!({"url": format!("https://{}/convert", hooks.address), "caBundle": hooks.bundle})
}

fn host(version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("example.com/{version}"), "kind": "Host", "metadata": {"name": name}, "spec": spec})
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

async fn store_v2(s: &Server) {
    change(s, "hosts.example.com", |d| {
        d["spec"]["versions"][0]["storage"] = false.into();
        d["spec"]["versions"][1]["storage"] = true.into();
    })
    .await;
}

#[tokio::test]
async fn each_request_sees_its_own_version() {
    let hooks = Webhooks::start(|_, request| raw(convert(request))).await;
    let s = start().await;
    let made = s.post(CRDS, &definition(by_url(&hooks))).await;
    assert_eq!(made.warnings(), Vec::<String>::new());
    made.expect(201);
    remove(&s, "hosts.example.com").await;
    establish(&s, &definition(by_url(&hooks))).await;
    let mut watch = s.watch(&format!("{V2}?watch=true")).await;
    let made = s.post(V1, &host("v1", "a", json!({"hostPort": "a.org:80"}))).await.expect(201);
    assert_eq!(made["spec"], json!({"hostPort": "a.org:80", "note": "none"}));
    assert!(
        hooks.asked().is_empty()
            || hooks.asked().iter().all(|asked| asked["desiredAPIVersion"] == "example.com/v2")
    );
    let event = watch.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["apiVersion"], &event["object"]["spec"]),
        (&json!("ADDED"), &json!("example.com/v2"), &json!({"host": "a.org", "port": "80", "note": "none"}))
    );
    // A get, with all that only the server knows.
    let got = s.get(&format!("{V2}/a")).await.expect(200);
    assert_eq!(got["apiVersion"], "example.com/v2");
    assert_eq!(got["metadata"], made["metadata"]);
    assert_eq!(hooks.paths().last().unwrap(), "/convert");
    // Writes of the other version are stored in the first and answered in their own.
    let made =
        s.post(V2, &host("v2", "b", json!({"host": "b.org", "port": "81", "odd": 1}))).await.expect(201);
    assert_eq!(
        (&made["apiVersion"], &made["spec"]),
        (&json!("example.com/v2"), &json!({"host": "b.org", "port": "81", "note": "none"}))
    );
    assert_eq!(
        s.get(&format!("{V1}/b")).await.expect(200)["spec"],
        json!({"hostPort": "b.org:81", "note": "none"})
    );
    assert_eq!(watch.event().await, ("ADDED".to_owned(), "b".to_owned()));
    let mut changed = made.clone();
    changed["spec"]["port"] = "82".into();
    let changed = s.put(&format!("{V2}/b"), &changed).await.expect(200);
    assert_eq!((&changed["spec"]["port"], &changed["metadata"]["generation"]), (&json!("82"), &json!(2)));
    let patch = json!({"spec": {"port": "83"}});
    s.patch(&format!("{V2}/b"), "merge-patch+json", &patch).await.expect(200);
    let apply = host("v2", "b", json!({"note": "applied"}));
    let applied =
        s.patch(&format!("{V2}/b?fieldManager=m&force=true"), "apply-patch+yaml", &apply).await.expect(200);
    assert_eq!(applied["spec"], json!({"host": "b.org", "port": "83", "note": "applied"}));
    let status = json!({"status": {"seen": "yes"}});
    let status = s.patch(&format!("{V2}/b/status"), "merge-patch+json", &status).await.expect(200);
    assert_eq!((&status["status"]["seen"], &status["spec"]["port"]), (&json!("yes"), &json!("83")));
    let stored = s.get(&format!("{V1}/b")).await.expect(200);
    assert_eq!(stored["spec"], json!({"hostPort": "b.org:83", "note": "applied"}));
    // An update that changes nothing writes nothing.
    let again = s.put(&format!("{V2}/b"), &status).await.expect(200);
    assert_eq!(again["metadata"]["resourceVersion"], stored["metadata"]["resourceVersion"]);
    // A list asks once for all of its objects.
    let before = hooks.asked().len();
    let list = s.get(V2).await.expect(200);
    assert_eq!(names(&list), ["a", "b"]);
    assert!(list["items"].as_array().unwrap().iter().all(|item| item["spec"]["host"].is_string()));
    let asked = hooks.asked();
    assert_eq!(asked.len(), before + 1);
    assert_eq!(asked[before]["objects"].as_array().unwrap().len(), 2);
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = s.send("GET", V2, &accept, "").await.expect(200);
    assert_eq!(table["rows"][1]["cells"], json!(["b", "83"]));
    for _ in 0..4 {
        assert_eq!(watch.event().await, ("MODIFIED".to_owned(), "b".to_owned()));
    }
    s.delete(&format!("{V2}/a")).await.expect(200);
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["spec"]["host"]), (&json!("DELETED"), &json!("a.org")));
    s.delete(V2).await.expect(200);
    assert!(names(&s.get(V1).await.expect(200)).is_empty());
}

#[tokio::test]
async fn objects_of_several_stored_versions_are_listed_in_one() {
    let hooks = Webhooks::start(|_, request| raw(convert(request))).await;
    let s = start().await;
    establish(&s, &definition(by_url(&hooks))).await;
    s.post(V1, &host("v1", "a", json!({"hostPort": "a.org:80"}))).await.expect(201);
    store_v2(&s).await;
    let stored = s.get(&format!("{CRDS}/hosts.example.com")).await.expect(200);
    assert_eq!(stored["status"]["storedVersions"], json!(["v1", "v2"]));
    // Only a version that is there and not the one of today may be said to be stored no more.
    for (versions, why) in [
        (json!([]), "must have at least one stored version"),
        (json!(["v1"]), "must have the storage version v2"),
        (json!(["v2", "v3"]), "and removes v3 from status.storedVersions"),
    ] {
        let patch = json!({"status": {"storedVersions": versions}});
        let path = format!("{CRDS}/hosts.example.com/status");
        let refused = s.patch(&path, "merge-patch+json", &patch).await.expect(422);
        assert!(refused["message"].as_str().unwrap().ends_with(why), "{}", refused["message"]);
    }
    s.post(V2, &host("v2", "b", json!({"host": "b.org", "port": "81"}))).await.expect(201);
    let before = hooks.asked().len();
    let list = s.get(V2).await.expect(200);
    assert_eq!(names(&list), ["a", "b"]);
    for item in list["items"].as_array().unwrap() {
        assert_eq!(item["apiVersion"], "example.com/v2");
        assert!(item["spec"]["host"].is_string() && item["spec"]["hostPort"].is_null());
    }
    assert_eq!(
        hooks.asked()[before]["objects"].as_array().unwrap().len(),
        1,
        "what has the version is not sent"
    );
    let list = s.get(V1).await.expect(200);
    assert!(list["items"].as_array().unwrap().iter().all(|item| item["spec"]["hostPort"].is_string()));
    // A default that came later is that of the version in which the object is stored.
    change(&s, "hosts.example.com", |d| {
        for (index, default) in [(0, "of v1"), (1, "of v2")] {
            d["spec"]["versions"][index]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["late"] =
                json!({"type": "string", "default": default});
        }
    })
    .await;
    for path in [V1, V2] {
        let list = s.get(path).await.expect(200);
        let late = |index: usize| list["items"][index]["spec"]["late"].clone();
        assert_eq!((late(0), late(1)), (json!("of v1"), json!("of v2")), "{path}");
    }
    let mut watch = s.watch(&format!("{V2}?watch=true")).await;
    for name in ["a", "b"] {
        let event = watch.next().await.unwrap();
        assert_eq!(event["object"]["metadata"]["name"], name);
        assert!(event["object"]["spec"]["host"].is_string());
    }
    // Written again, even without a change, it is stored in the version of today.
    let a = s.get(&format!("{V2}/a")).await.expect(200);
    let again = s.put(&format!("{V2}/a"), &a).await.expect(200);
    assert_ne!(again["metadata"]["resourceVersion"], a["metadata"]["resourceVersion"]);
    let before = hooks.asked().len();
    s.get(V2).await.expect(200);
    assert_eq!(hooks.asked().len(), before, "nothing is left to be converted");
}

#[tokio::test]
async fn fields_are_selected_in_the_version_of_the_request() {
    let hooks = Webhooks::start(|_, request| raw(convert(request))).await;
    let s = start().await;
    establish(&s, &definition(by_url(&hooks))).await;
    let mut watch = s.watch(&format!("{V2}?watch=true&fieldSelector=spec.host=a.org")).await;
    let mut first = s.watch(&format!("{V1}?watch=true&fieldSelector=spec.hostPort=a.org:80")).await;
    for (name, at) in [("a", "a.org:80"), ("b", "b.org:80"), ("c", "a.org:81")] {
        s.post(V1, &host("v1", name, json!({"hostPort": at}))).await.expect(201);
    }
    let list = async |path: String| s.get(&path).await.expect(200);
    assert_eq!(names(&list(format!("{V2}?fieldSelector=spec.host=a.org")).await), ["a", "c"]);
    assert_eq!(names(&list(format!("{V2}?fieldSelector=spec.host=a.org,spec.port!=80")).await), ["c"]);
    assert_eq!(names(&list(format!("{V1}?fieldSelector=spec.hostPort=b.org:80")).await), ["b"]);
    assert_eq!(s.get(&format!("{V2}?fieldSelector=spec.hostPort=x")).await.code, 400);
    assert_eq!(watch.event().await, ("ADDED".into(), "a".into()));
    assert_eq!(watch.event().await, ("ADDED".into(), "c".into()));
    let moved = json!({"spec": {"hostPort": "b.org:80"}});
    s.patch(&format!("{V1}/a"), "merge-patch+json", &moved).await.expect(200);
    assert_eq!(watch.event().await, ("DELETED".into(), "a".into()));
    s.patch(&format!("{V1}/a"), "merge-patch+json", &json!({"spec": {"hostPort": "a.org:80"}}))
        .await
        .expect(200);
    assert_eq!(watch.event().await, ("ADDED".into(), "a".into()));
    for of in ["ADDED", "DELETED", "ADDED"] {
        assert_eq!(first.event().await, (of.into(), "a".into()));
    }
    s.delete(&format!("{V2}?fieldSelector=spec.port=81")).await.expect(200);
    assert_eq!(watch.event().await, ("DELETED".into(), "c".into()));
    assert_eq!(names(&list(V1.to_owned()).await), ["a", "b"]);
}

#[tokio::test]
async fn answers_that_cannot_be_are_refused_in_upstreams_words() {
    let hooks = Webhooks::start(|path, request| {
        let mut answer = convert(request);
        let object = |change: &dyn Fn(&mut Value)| {
            let mut answer = convert(request);
            change(&mut answer["response"]["convertedObjects"][0]);
            raw(answer)
        };
        match path.split('?').next().unwrap() {
            "/uid" => answer["response"]["uid"] = "x".into(),
            "/none" => answer["response"]["convertedObjects"] = json!([]),
            "/fails" => answer["response"]["result"] = json!({"status": "Failure", "message": "not today"}),
            "/silent" => answer["response"]["result"] = json!({"status": "Failure"}),
            "/version" => return object(&|o| o["apiVersion"] = "example.com/v3".into()),
            "/name" => return object(&|o| o["metadata"]["name"] = "z".into()),
            "/label" => return object(&|o| o["metadata"]["labels"] = json!({"a": 1})),
            "/bare" => return object(&|o| drop(o.as_object_mut().unwrap().remove("metadata"))),
            "/error" => return Reply::Raw(500, "broken".into()),
            "/html" => return Reply::Raw(200, "<html>".into()),
            _ => assert!(path.ends_with("?timeout=30s"), "{path}"),
        }
        raw(answer)
    })
    .await;
    let s = start().await;
    establish(&s, &definition(by_url(&hooks))).await;
    let made = s.post(V1, &host("v1", "a", json!({"hostPort": "a.org:80"}))).await.expect(201);
    let name = "conversion webhook for example.com/v1, Kind=Host";
    for (path, why) in [
        ("/uid", "failed: expected response.uid=".to_owned()),
        ("/none", "returned 0 objects, expected 1".to_owned()),
        ("/fails", "failed: not today".to_owned()),
        ("/silent", "failed: response.result.status was 'Failure', not 'Success'".to_owned()),
        (
            "/version",
            "returned invalid object at index 0: invalid groupVersion (expected example.com/v2, received example.com/v3)".to_owned(),
        ),
        ("/name", "returned invalid object: must have the same name: a != z".to_owned()),
        ("/label", "returned invalid metadata: metadata.labels[a] must be a string, but is int64 in converted object".to_owned()),
        ("/bare", "returned invalid".to_owned()),
        ("/error", "failed: an error on the server (\"broken\") has prevented the request from succeeding".to_owned()),
        ("/html", "failed: couldn't get version/kind; json parse error: ".to_owned()),
        ("closed", "failed: Post \"https://127.0.0.1:1/convert?timeout=30s\": dial tcp 127.0.0.1:1: connect: connection refused".to_owned()),
    ] {
        change(&s, "hosts.example.com", |d| {
            let client = &mut d["spec"]["conversion"]["webhook"]["clientConfig"];
            *client = by_url(&hooks);
            match path {
                "closed" => client["url"] = "https://127.0.0.1:1/convert".into(),
                path => client["url"] = format!("https://{}{path}", hooks.address).into(),
            }
        })
        .await;
        let refused = s.get(&format!("{V2}/a")).await.expect(500);
        let message = refused["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("{name} {why}")), "{path}: {message}");
    }
    // An authority must be one.
    let mut odd = s.get(&format!("{CRDS}/hosts.example.com")).await.expect(200);
    odd["spec"]["conversion"]["webhook"]["clientConfig"]["caBundle"] = "bm9uc2Vuc2U=".into();
    let refused = s.put(&format!("{CRDS}/hosts.example.com"), &odd).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "spec.conversion.webhookClientConfig.caBundle");
    // Lists, writes and deletes fail alike; a watch ends with the error.
    let refused = s.get(V2).await.expect(500);
    assert!(refused["message"].as_str().unwrap().starts_with(&format!("{name} failed: ")));
    let refused = s.post(V2, &host("v2", "b", json!({"host": "b.org", "port": "1"}))).await.expect(500);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .starts_with("conversion webhook for example.com/v2, Kind=Host failed: ")
    );
    s.put(&format!("{V2}/a"), &host("v2", "a", json!({}))).await.expect(500);
    s.delete(&format!("{V2}/a")).await.expect(500);
    let mut watch = s.watch(&format!("{V2}?watch=true")).await;
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(500)));
    assert_eq!(watch.next().await, None);
    // In the stored version all goes on, and so does what reads metadata alone.
    assert_eq!(s.get(&format!("{V1}/a")).await.expect(200), made);
    let accept = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    assert_eq!(names(&s.send("GET", V2, &accept, "").await.expect(200)), ["a"]);
    s.delete(&format!("{CRDS}/hosts.example.com")).await.expect(200);
    let kinds = s.api.kinds().clone();
    while s.get(V1).await.code != 404 {
        kinds.changed(kinds.snapshot().generation).await;
    }
}

#[tokio::test]
async fn a_webhook_that_hangs_holds_up_its_own_requests_alone() {
    let hooks = Webhooks::start(|_, _| Reply::Hang).await;
    let s = start().await;
    establish(&s, &definition(by_url(&hooks))).await;
    s.post(V1, &host("v1", "a", json!({"hostPort": "a.org:80"}))).await.expect(201);
    let ask = |path: String| {
        let (api, service) = (s.api.clone(), s.service.clone());
        tokio::spawn(async move { Server { api, service }.get(&path).await.code })
    };
    let arrived = hooks.arrived.clone();
    let mut stuck = vec![ask(V2.to_owned())];
    arrived.notified().await;
    stuck.extend((1..100).map(|_| ask(format!("{V2}/a"))));
    while hooks.asked().len() < 100 {
        arrived.notified().await;
    }
    // Those beyond are told to come later, and all others are served.
    assert_eq!(s.get(&format!("{V2}/a")).await.code, 429);
    for n in 0..20 {
        s.post(CONFIG_MAPS, &config_map(&format!("m{n}"), json!({}))).await.expect(201);
        s.post(V1, &host("v1", &format!("h{n}"), json!({"hostPort": "a.org:80"}))).await.expect(201);
    }
    assert_eq!(names(&s.get(V1).await.expect(200)).len(), 21);
    assert!(stuck.iter().all(|stuck| !stuck.is_finished()));
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn services_lead_to_conversion_webhooks() {
    let hooks = Webhooks::start(|_, request| raw(convert(request))).await;
    let cluster = access::cluster().await;
    let admin = cluster.admin();
    *cluster.dialer.to_pods.lock().unwrap() = Some(hooks.address);
    let service = json!({"metadata": {"name": "hooks"}, "spec": {"ports": [{"name": "https", "port": 8443, "targetPort": 9443}]}});
    cluster.create("/api/v1/namespaces/default/services", service).await;
    let slice = json!({"metadata": {"name": "hooks-1", "labels": {"kubernetes.io/service-name": "hooks"}}, "addressType": "IPv4",
        "ports": [{"name": "https", "port": 9443}], "endpoints": [{"addresses": ["10.1.2.9"], "nodeName": access::NODE}]});
    cluster.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await;
    let client = json!({"caBundle": hooks.bundle, "service": {"namespace": "default", "name": "hooks", "port": 8443, "path": "/convert"}});
    let kinds = cluster.api.kinds().clone();
    let generation = kinds.snapshot().generation;
    cluster.create(CRDS, definition(client)).await;
    kinds.changed(generation).await;
    cluster.create(V1, host("v1", "a", json!({"hostPort": "a.org:80"}))).await;
    let got = cluster.get(&admin, &format!("{V2}/a")).await.expect(200);
    assert_eq!(got["spec"], json!({"host": "a.org", "port": "80", "note": "none"}));
    assert_eq!(hooks.paths(), ["/convert"]);
    let dialed = cluster.dialer.dialed.lock().unwrap().clone();
    assert_eq!(dialed, [(access::NODE.to_owned(), "10.1.2.9:9443".parse().unwrap())]);
    cluster.api.stop().await;
}
