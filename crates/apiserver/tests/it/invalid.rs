//! The table of invalid objects, over HTTP: each is refused with upstream's code, reason and
//! fields, and changes nothing.

use crate::harness::*;
use serde_json::Value;
use skeg_api::{GroupVersion, Kinds, meta};

const TABLES: [&str; 6] = [
    include_str!("../../../api/testdata/invalid.yaml"),
    include_str!("../../../api/testdata/invalid-workloads.yaml"),
    include_str!("../../../api/testdata/invalid-cluster.yaml"),
    include_str!("../../../api/testdata/invalid-definitions.yaml"),
    include_str!("../../../api/testdata/invalid-details.yaml"),
    include_str!("../../../api/testdata/invalid-devices.yaml"),
];
/// Kinds that an endpoint answers; their own tests use the table too.
const REVIEWS: [&str; 4] =
    ["TokenRequest", "SubjectAccessReview", "SelfSubjectAccessReview", "LocalSubjectAccessReview"];

fn change(mut object: Value, set: &Value) -> Value {
    for (pointer, value) in set.as_object().unwrap() {
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        let last = last.replace("~1", "/").replace("~0", "~");
        let parent = parent.split('/').skip(1).fold(&mut object, |at, token| match at {
            Value::Array(items) => &mut items[token.parse::<usize>().unwrap()],
            at => &mut at[token],
        });
        match parent {
            Value::Array(items) => {
                let at: usize = last.parse().unwrap();
                if at == items.len() { items.push(value.clone()) } else { items[at] = value.clone() }
            }
            parent if value.is_null() => {
                parent.as_object_mut().unwrap().remove(&last);
            }
            parent => parent[last] = value.clone(),
        }
    }
    object
}

/// The path of the collection of an object, and its name.
fn place(kinds: &Kinds, object: &Value) -> (String, String) {
    let version = GroupVersion::parse(meta::api_version(object)).unwrap();
    let snapshot = kinds.snapshot();
    let kind = snapshot
        .iter()
        .find(|k| k.gvk.api_version() == meta::api_version(object) && &*k.gvk.kind == meta::kind(object))
        .unwrap_or_else(|| panic!("{object}"));
    let root = if version.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{version}") };
    let middle =
        if kind.namespaced { format!("/namespaces/{}", meta::namespace(object)) } else { String::new() };
    (format!("{root}{middle}/{}", kind.plural), meta::name(object).to_owned())
}

async fn refuse(s: &Server, base: &Value, case: &Value) -> Answer {
    let on = case.get("on").and_then(Value::as_str).unwrap_or("create");
    match meta::kind(base) {
        "Scale" => {
            s.post(DEPLOYMENTS, &deployment("web")).await;
            return s.put(&format!("{DEPLOYMENTS}/web/scale"), &change(base.clone(), &case["set"])).await;
        }
        "Binding" => {
            s.post(PODS, &pod("web")).await;
            return s.post(&format!("{PODS}/web/binding"), &change(base.clone(), &case["set"])).await;
        }
        _ => {}
    }
    let (path, name) = place(s.api.kinds(), base);
    match on {
        "create" => s.post(&path, &change(base.clone(), &case["set"])).await,
        on => {
            s.delete(&format!("{path}/{name}")).await;
            let mut old = s.post(&path, base).await.expect(201);
            if let Some(was) = case.get("was") {
                old = s.put(&format!("{path}/{name}/status"), &change(old, was)).await.expect(200);
            }
            let new = change(old, &case["set"]);
            let part = if on == "status" { "/status" } else { "" };
            s.put(&format!("{path}/{name}{part}"), &new).await
        }
    }
}

#[tokio::test]
async fn invalid_objects_are_refused_over_http() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    let tables = TABLES.map(|text| serde_saphyr::from_str::<Value>(text).unwrap());
    for case in tables.iter().flat_map(|table| table["cases"].as_array().unwrap()) {
        let name = case["base"].as_str().unwrap();
        let base = tables.iter().find_map(|table| table["bases"].get(name)).unwrap();
        // managedFields that cannot be read are replaced before anything is validated.
        let is_replaced = case["name"].as_str().unwrap().starts_with("bad managed fields");
        if is_replaced || REVIEWS.contains(&meta::kind(base)) {
            continue;
        }
        count += 1;
        let s = start().await;
        let answer = refuse(&s, base, case).await;
        let (code, body) = (answer.code, answer.json());
        let causes = body["details"]["causes"].as_array().cloned().unwrap_or_default();
        let mut got: Vec<(String, String)> = causes
            .iter()
            .map(|cause| {
                let reason = cause["reason"].as_str().unwrap().trim_start_matches("FieldValue").to_owned();
                (cause["field"].as_str().unwrap().to_owned(), reason)
            })
            .collect();
        let mut expected: Vec<(String, String)> = case["causes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|cause| (cause[0].as_str().unwrap().to_owned(), cause[1].as_str().unwrap().to_owned()))
            .collect();
        got.sort();
        expected.sort();
        let message = case.get("message").and_then(Value::as_str).unwrap_or_default();
        let right = code == 422
            && body["reason"] == "Invalid"
            && got == expected
            && body["message"].as_str().unwrap().contains(message);
        if !right {
            wrong.push(format!(
                "{}: {code} {got:?} instead of {expected:?}: {}",
                case["name"], body["message"]
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 480, "{count}");
}
