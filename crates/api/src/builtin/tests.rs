use super::*;
use crate::gvk::Gvr;
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
