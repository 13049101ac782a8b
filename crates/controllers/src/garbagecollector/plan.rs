//! What to do with one object, given its state on the server and that of its owners. Pure.
//! Upstream counterpart: `attemptToDeleteItem` in `garbagecollector.go`.

use super::graph::{FOREGROUND, ORPHAN};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// An owner, as the server knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Solid,
    /// There is no such object.
    Dangling,
    /// It is being deleted once its dependents are.
    WaitsForDependents,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

impl Propagation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
            Propagation::Orphan => "Orphan",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Keep,
    /// Some owners keep it alive; it loses its references to these uids.
    DropReferences(Vec<String>),
    Delete {
        propagation: Propagation,
        /// Its references must first stop to hold up its owners, which may wait for it in turn.
        unblock: bool,
    },
}

/// `owners` are in the order of the object's references.
pub(crate) fn plan(
    object: &ObjectMeta,
    owners: &[Owner],
    has_dependents: bool,
    has_waiting_dependent: bool,
) -> Action {
    if owners.is_empty() {
        return Action::Keep;
    }
    if owners.contains(&Owner::Solid) {
        let references = object.owner_references.iter().flatten().zip(owners);
        let dropped: Vec<_> = references
            .filter(|(_, owner)| **owner != Owner::Solid)
            .map(|(reference, _)| reference.uid.clone())
            .collect();
        return if dropped.is_empty() { Action::Keep } else { Action::DropReferences(dropped) };
    }
    if owners.contains(&Owner::WaitsForDependents) && has_dependents {
        return Action::Delete { propagation: Propagation::Foreground, unblock: has_waiting_dependent };
    }
    let has = |finalizer: &str| object.finalizers.iter().flatten().any(|own| own == finalizer);
    let propagation = if has(ORPHAN) {
        Propagation::Orphan
    } else if has(FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    Action::Delete { propagation, unblock: false }
}

/// What the server's answer about an owner means.
pub(crate) fn classify(uid: &str, live: Option<&ObjectMeta>) -> Owner {
    match live {
        Some(owner) if owner.uid.as_deref() == Some(uid) => {
            let waits = owner.finalizers.iter().flatten().any(|own| own == FOREGROUND);
            if owner.deletion_timestamp.is_some() && waits { Owner::WaitsForDependents } else { Owner::Solid }
        }
        _ => Owner::Dangling,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn decides_by_owners() {
        use Owner::{Dangling, Solid, WaitsForDependents as Waits};
        let reference = |uid: &str| json!({"apiVersion": "v1", "kind": "K", "name": uid, "uid": uid});
        let object: ObjectMeta =
            serde_json::from_value(json!({"ownerReferences": [reference("a"), reference("b")]})).unwrap();
        let orphans: ObjectMeta =
            serde_json::from_value(json!({"finalizers": [ORPHAN], "ownerReferences": [reference("a")]}))
                .unwrap();
        let delete = |propagation, unblock| Action::Delete { propagation, unblock };
        for (object, owners, has_dependents, waiting, want) in [
            (&object, &[][..], false, false, Action::Keep),
            (&object, &[Solid, Solid], true, false, Action::Keep),
            (&object, &[Solid, Dangling], false, false, Action::DropReferences(vec!["b".into()])),
            (&object, &[Waits, Solid], true, false, Action::DropReferences(vec!["a".into()])),
            (&object, &[Dangling, Dangling], true, false, delete(Propagation::Background, false)),
            (&object, &[Waits, Dangling], false, false, delete(Propagation::Background, false)),
            (&object, &[Waits, Dangling], true, false, delete(Propagation::Foreground, false)),
            (&object, &[Waits], true, true, delete(Propagation::Foreground, true)),
            (&orphans, &[Dangling], true, false, delete(Propagation::Orphan, false)),
        ] {
            assert_eq!(plan(object, owners, has_dependents, waiting), want, "{owners:?}");
        }
    }

    #[test]
    fn an_owner_is_the_object_of_that_uid() {
        let meta = |value| serde_json::from_value::<ObjectMeta>(value).unwrap();
        assert_eq!(classify("a", None), Owner::Dangling);
        assert_eq!(classify("a", Some(&meta(json!({"uid": "b"})))), Owner::Dangling);
        assert_eq!(classify("a", Some(&meta(json!({"uid": "a"})))), Owner::Solid);
        let going =
            json!({"uid": "a", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND]});
        assert_eq!(classify("a", Some(&meta(going))), Owner::WaitsForDependents);
    }
}
