use super::*;
use crate::kinds::Kinds;
use crate::schema::Shape;
use serde_json::json;
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
            assert!(kind.alias.is_some() || places.insert(storage.clone()), "{storage} is taken");
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
fn events_read_the_same_through_both_groups() {
    let newer = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "type": "Normal",
        "regarding": {"kind": "Pod"}, "note": "hi", "reportingController": "skeg", "deprecatedCount": 2, "eventTime": null});
    let mut event = newer.clone();
    event_to_core(&mut event);
    assert_eq!(
        event,
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "type": "Normal",
            "involvedObject": {"kind": "Pod"}, "message": "hi", "reportingComponent": "skeg", "count": 2, "eventTime": null})
    );
    event_from_core(&mut event);
    assert_eq!(event, newer);
    // Every renamed field exists on its side.
    let (core, new) = (Schema::builtin_kind("", "v1", "Event").unwrap(), Schema::builtin_kind("events.k8s.io", "v1", "Event").unwrap());
    for (old_name, new_name) in EVENT_FIELDS {
        assert!(core.root().property(old_name).is_some() && new.root().property(new_name).is_some());
    }
}

/// Against the discovery document of a real cluster, where one is at hand.
#[test]
fn rows_agree_with_discovery() {
    let Ok(dir) = std::env::var("SKEG_SPEC_DIR") else { return };
    let text = std::fs::read_to_string(std::path::Path::new(&dir).join("discovery.json")).unwrap();
    let discovery: Value = serde_json::from_str(&text).unwrap();
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|v| v.as_str().unwrap().to_owned()).collect()
    };
    let mut compared = 0;
    for kind in builtin() {
        let group = discovery["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == *kind.gvk.group);
        let Some(group) = group else { continue };
        let version = group["versions"].as_array().unwrap().iter().find(|v| v["version"] == "v1").unwrap();
        let found = version["resources"].as_array().unwrap().iter().find(|r| r["resource"] == *kind.plural).unwrap();
        assert_eq!(found["singularResource"], *kind.singular);
        assert_eq!(found["responseKind"]["kind"], *kind.gvk.kind);
        assert_eq!(found["scope"], if kind.namespaced { "Namespaced" } else { "Cluster" });
        assert_eq!(strings(&found["verbs"]), kind.verbs);
        assert_eq!(strings(&found["shortNames"]), kind.short_names);
        assert_eq!(strings(&found["categories"]), kind.categories);
        let subresources = found["subresources"].as_array().cloned().unwrap_or_default();
        assert_eq!(subresources.len(), kind.subresources.len(), "{}", kind.plural);
        for (theirs, ours) in subresources.iter().zip(&kind.subresources) {
            assert_eq!(theirs["subresource"], ours.name);
            assert_eq!(strings(&theirs["verbs"]), ours.verbs);
            if let Some((group, version, name)) = ours.gvk {
                assert_eq!(theirs["responseKind"], json!({"group": group, "version": version, "kind": name}));
            }
        }
        compared += 1;
    }
    assert!(compared > 10);
}
