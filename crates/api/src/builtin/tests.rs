use super::*;
use crate::gvk::Gvr;
use crate::kinds::Kinds;
use crate::schema::Shape;
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[test]
fn every_row_has_its_schema_and_its_own_place() {
    let mut places = BTreeSet::new();
    for kind in builtin().iter().chain(&subresource_kinds()) {
        let root = kind.schema.root();
        assert_eq!(root.shape(), Shape::Object, "{}", kind.gvk.kind);
        assert!(root.type_name().unwrap().ends_with(&*kind.gvk.kind), "{root:?}");
        assert!(root.property("metadata").is_some());
        if let Some(storage) = &kind.storage {
            assert!(storage.ends_with('/'));
            // Rows that show the same objects.
            let shared = ["events/", "autoscaling/horizontalpodautoscalers/"].contains(&&**storage);
            assert!(shared || places.insert(storage.clone()), "{storage} is taken");
        }
        assert!(kind.verbs.is_sorted() && kind.subresources.is_sorted_by_key(|sub| sub.name));
        assert!(!kind.columns.is_empty());
    }
}

#[test]
fn the_table_finds_kinds_both_ways() {
    let kinds = Kinds::new(builtin()).snapshot();
    let deployments = kinds.by_gvr(&Gvr::new("apps", "v1", "deployments")).unwrap();
    assert_eq!(&*deployments.list_kind, "DeploymentList");
    assert_eq!(deployments.key("default", "web").unwrap(), "/registry/apps/deployments/default/web");
    assert!(kinds.by_gvk(&Gvk::new("", "v1", "Pod")).unwrap().has_status());
    let reviews = kinds.by_gvk(&Gvk::new(AUTHORIZATION, "v1", "SubjectAccessReview")).unwrap();
    assert_eq!((reviews.storage.clone(), reviews.verbs), (None, CREATE));
    assert!(kinds.by_gvk(&Gvk::new("autoscaling", "v1", "Scale")).is_none());
}

#[test]
fn both_event_groups_show_the_same_objects() {
    let kinds = Kinds::new(builtin()).snapshot();
    let storage = |group| kinds.by_gvk(&Gvk::new(group, "v1", "Event")).unwrap().storage.clone().unwrap();
    assert_eq!((&*storage(""), &*storage("events.k8s.io")), ("events/", "events/"));
}

/// Versions that are in scope; the others are alpha or beta.
const STABLE: [&str; 2] = ["v1", "v2"];

/// Against the discovery document of a real cluster, where one is at hand. It lists the named groups;
/// the core group is in the OpenAPI document next to it, as paths.
#[test]
fn rows_agree_with_discovery() {
    let Ok(dir) = std::env::var("SKEG_SPEC_DIR") else { return };
    let read = |name: &str| -> Value {
        let text = std::fs::read_to_string(std::path::Path::new(&dir).join(name)).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|v| v.as_str().unwrap().to_owned()).collect()
    };
    let (rows, mut differences, mut compared) = (builtin(), Vec::new(), 0);
    for group in read("discovery.json")["items"].as_array().unwrap() {
        let group_name = group["metadata"]["name"].as_str().unwrap();
        for version in group["versions"].as_array().unwrap() {
            let version_name = version["version"].as_str().unwrap();
            if !STABLE.contains(&version_name) {
                continue;
            }
            for found in version["resources"].as_array().unwrap() {
                let plural = found["resource"].as_str().unwrap();
                let gvr = Gvr::new(group_name, version_name, plural);
                let Some(kind) = rows.iter().find(|kind| kind.gvr() == gvr) else {
                    differences.push(format!("{gvr:?}: no row"));
                    continue;
                };
                let theirs: Vec<Value> = found["subresources"].as_array().cloned().unwrap_or_default();
                let theirs = json!({
                    "singular": found["singularResource"], "kind": found["responseKind"]["kind"],
                    "scope": found["scope"], "verbs": strings(&found["verbs"]),
                    "short": strings(&found["shortNames"]), "categories": strings(&found["categories"]),
                    "subresources": theirs.iter().map(|sub| json!([sub["subresource"], sub["verbs"], sub["responseKind"]["kind"]])).collect::<Vec<_>>(),
                });
                let sub_kind =
                    |sub: &Subresource| sub.gvk.map_or(kind.gvk.kind.to_string(), |gvk| gvk.2.to_owned());
                let ours = json!({
                    "singular": *kind.singular, "kind": *kind.gvk.kind,
                    "scope": if kind.namespaced { "Namespaced" } else { "Cluster" }, "verbs": kind.verbs,
                    "short": kind.short_names, "categories": kind.categories,
                    "subresources": kind.subresources.iter().map(|sub| json!([sub.name, sub.verbs, sub_kind(sub)])).collect::<Vec<_>>(),
                });
                if theirs != ours {
                    differences.push(format!("{gvr:?}:\n  expected {theirs}\n  found    {ours}"));
                }
                compared += 1;
            }
        }
    }
    let paths = read("swagger.json");
    let core: BTreeSet<String> = paths["paths"]
        .as_object()
        .unwrap()
        .keys()
        .filter_map(|path| {
            let rest = path.strip_prefix("/api/v1/")?;
            let rest = rest.strip_prefix("namespaces/{namespace}/").unwrap_or(rest);
            let parts: Vec<&str> = rest.trim_end_matches('/').split('/').collect();
            match parts[..] {
                ["watch", ..] | [_, _, _, _, ..] => None,
                [""] => None,
                [resource] | [resource, "{name}"] => Some(resource.to_owned()),
                [resource, "{name}", sub] => Some(format!("{resource}/{sub}")),
                _ => None,
            }
        })
        .collect();
    for name in core {
        let (resource, sub) = name.split_once('/').unwrap_or((&name, ""));
        let row = rows.iter().find(|kind| kind.gvr() == Gvr::new("", "v1", resource));
        match row {
            None => differences.push(format!("core {name}: no row")),
            Some(kind) if !sub.is_empty() && kind.subresource(sub).is_none() => {
                differences.push(format!("core {name}: no subresource"));
            }
            Some(_) => compared += 1,
        }
    }
    // Its row comes with what it defines.
    differences.retain(|text| !text.contains("customresourcedefinitions"));
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    assert!(compared > 60, "{compared}");
}

#[test]
fn new_objects_show_an_empty_status() {
    for (group, kind, status) in [
        ("apps", "Deployment", json!({})),
        ("apps", "ReplicaSet", json!({"replicas": 0})),
        ("apps", "StatefulSet", json!({"replicas": 0, "availableReplicas": 0})),
        ("batch", "Job", json!({})),
        ("", "PersistentVolume", json!({"phase": "Pending"})),
        ("", "PersistentVolumeClaim", json!({"phase": "Pending"})),
        ("networking.k8s.io", "Ingress", json!({"loadBalancer": {}})),
        ("", "Service", json!({"loadBalancer": {}})),
        ("", "Namespace", json!({"phase": "Active"})),
    ] {
        let mut object = json!({"metadata": {"name": "x"}, "spec": {}});
        (strategy(group, "v1", kind).prepare_create)(&mut object);
        assert_eq!(object["status"], status, "{kind}");
    }
}

proptest::proptest! {
    /// Whatever passes for an object: defaults settle, rows print, nothing panics.
    #[test]
    fn odd_objects_do_no_harm(object in crate::decode::tests::any_json()) {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        for kind in builtin().iter().chain(&subresource_kinds()) {
            let mut once = object.clone();
            (kind.strategy.default)(&mut once);
            let mut twice = once.clone();
            (kind.strategy.default)(&mut twice);
            proptest::prop_assert_eq!(&once, &twice);
            proptest::prop_assert_eq!(columns::cells(kind, &once, now).len(), kind.columns.len());
        }
    }

    /// What is decoded and defaulted stays as it is when a client sends it back.
    #[test]
    fn defaults_survive_decoding(seed in proptest::prelude::any::<u64>()) {
        for kind in builtin() {
            let mut value = crate::decode::tests::sample(kind.schema.root(), &mut seed.clone(), 0);
            crate::decode::check(&kind.schema, &mut value).unwrap();
            (kind.strategy.default)(&mut value);
            let sent = value.clone();
            proptest::prop_assert_eq!(crate::decode::check(&kind.schema, &mut value).unwrap(), Default::default());
            (kind.strategy.default)(&mut value);
            proptest::prop_assert_eq!(&value, &sent);
        }
    }
}
