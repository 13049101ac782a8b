//! Ownership by `ownerReferences`: which objects a controller owns, adopts and releases. The
//! decision is pure; the caller confirms an adoption by a live read of the owner.
//! Upstream counterpart: `pkg/controller/controller_ref_manager.go`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};
use skeg_api::selector::LabelSelector;
use std::collections::BTreeMap;

/// What to do with one object that the owner may claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    Owned,
    /// No one controls it and its labels match.
    Adopt,
    /// Ours, but its labels match no longer.
    Release,
    Ignore,
}

/// Decides about `object` for the owner whose metadata is `owner`.
pub(crate) fn claim(owner: &ObjectMeta, selector: &LabelSelector, object: &ObjectMeta) -> Claim {
    let empty = BTreeMap::new();
    let matches = selector.matches(object.labels.as_ref().unwrap_or(&empty));
    let owner_deleting = owner.deletion_timestamp.is_some();
    match controller_of(object) {
        Some(reference) if owner.uid.as_deref() != Some(reference.uid.as_str()) => Claim::Ignore,
        Some(_) if matches => Claim::Owned,
        Some(_) if owner_deleting => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner_deleting || !matches || object.deletion_timestamp.is_some() => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// The owner that controls the object.
pub(crate) fn controller_of(object: &ObjectMeta) -> Option<&OwnerReference> {
    object.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// A reference that makes `owner` the controller of an object.
pub(crate) fn controller_reference(api_version: &str, kind: &str, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: owner.name.clone().unwrap_or_default(),
        uid: owner.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A strategic merge patch that adds `reference`; the uid guards against a namesake.
pub(crate) fn adopt_patch(reference: &OwnerReference, object: &ObjectMeta) -> Value {
    json!({"metadata": {"ownerReferences": [reference], "uid": object.uid}})
}

/// A strategic merge patch that removes the reference to `owner_uid`.
pub(crate) fn release_patch(owner_uid: &str, object: &ObjectMeta) -> Value {
    json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": owner_uid}], "uid": object.uid}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(labels: &str, owner: Option<&str>, deleting: bool) -> ObjectMeta {
        let mut meta = json!({"name": "x", "uid": "x", "labels": {"app": labels}});
        if let Some(uid) = owner {
            meta["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "o", "uid": uid, "controller": true}]);
        }
        if deleting {
            meta["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        serde_json::from_value(meta).unwrap()
    }

    #[test]
    fn claims_by_reference_and_labels() {
        let selector = LabelSelector::from_labels([("app", "a")]);
        let live = object("", None, false);
        let mut deleting = object("", None, true);
        deleting.uid = Some("x".into());
        let cases = [
            (&live, object("a", Some("x"), false), Claim::Owned),
            (&live, object("a", Some("x"), true), Claim::Owned),
            (&live, object("b", Some("x"), false), Claim::Release),
            (&live, object("a", Some("other"), false), Claim::Ignore),
            (&live, object("a", None, false), Claim::Adopt),
            (&live, object("a", None, true), Claim::Ignore),
            (&live, object("b", None, false), Claim::Ignore),
            (&deleting, object("a", None, false), Claim::Ignore),
            (&deleting, object("b", Some("x"), false), Claim::Ignore),
            (&deleting, object("a", Some("x"), false), Claim::Owned),
        ];
        for (at, (owner, object, want)) in cases.iter().enumerate() {
            assert_eq!(claim(owner, &selector, object), *want, "case {at}");
        }
    }
}
