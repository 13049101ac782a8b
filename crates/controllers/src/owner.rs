//! Ownership by `ownerReferences`: which objects a controller owns, adopts and releases. The
//! decision is pure; an adoption is confirmed by a live read of the owner.
//! Upstream counterpart: `pkg/controller/controller_ref_manager.go`.

use crate::error::Result;
use crate::meta;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};
use skeg_api::selector::LabelSelector;
use skeg_client::{Api, Error, PatchKind, Typed};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What to do with one object that the owner may claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Owned,
    /// No one controls it and its labels match.
    Adopt,
    /// Ours, but its labels match no longer.
    Release,
    Ignore,
}

/// Decides about `object` for the owner whose metadata is `owner`.
fn claim(owner: &ObjectMeta, selector: &LabelSelector, object: &ObjectMeta) -> Claim {
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

/// Claims objects `K`, known as `T`, for an owner `O`.
pub(crate) struct Claims<'a, O, K, T> {
    pub owner: &'a O,
    pub owners: &'a Api<O>,
    pub objects: &'a Api<K>,
    pub metadata: fn(&T) -> &ObjectMeta,
    /// What an adopted object is known as from then on.
    pub adopted: fn(K) -> T,
}

impl<O: Typed, K: Typed, T> Claims<'_, O, K, T> {
    /// Those of `known` that the owner has, after adoption and release. Each is tried; the first
    /// failure comes back, so that the pass is made again.
    pub(crate) async fn claim(&self, selector: &LabelSelector, known: Vec<Arc<T>>) -> Result<Vec<Arc<T>>> {
        let (mut claimed, mut adoptable, mut failure) = (Vec::new(), Vec::new(), None);
        for object in known {
            match claim(self.owner.metadata(), selector, (self.metadata)(&object)) {
                Claim::Owned => claimed.push(object),
                Claim::Adopt => adoptable.push(object),
                Claim::Release => failure = failure.or(self.release((self.metadata)(&object)).await.err()),
                Claim::Ignore => {}
            }
        }
        if !adoptable.is_empty() && self.may_adopt().await? {
            for object in adoptable {
                match self.adopt((self.metadata)(&object)).await {
                    Ok(adopted) => {
                        claimed.extend(adopted.map(|object| Arc::new((self.adopted)(object))));
                    }
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
        }
        failure.map_or(Ok(claimed), |error| Err(error.into()))
    }

    /// The cache may not know yet that the owner is being deleted, or is another one by now.
    async fn may_adopt(&self) -> Result<bool> {
        let meta = self.owner.metadata();
        let live = self.owners.get_opt(meta::namespace(meta), meta::name(meta)).await?;
        Ok(live.is_some_and(|live| {
            let live = live.metadata();
            live.uid == meta.uid && live.deletion_timestamp.is_none()
        }))
    }

    /// `None` if the object is gone.
    async fn adopt(&self, object: &ObjectMeta) -> skeg_client::Result<Option<K>> {
        let reference = controller_reference(O::API_VERSION, O::KIND, self.owner.metadata());
        match self.patch(object, &adopt_patch(&reference, object)).await {
            Err(error) if error.is_not_found() => Ok(None),
            patched => patched.map(Some),
        }
    }

    /// A conflict is a failure like any other: no event would bring the object back to its owner.
    async fn release(&self, object: &ObjectMeta) -> skeg_client::Result<()> {
        let patch = release_patch(meta::uid(self.owner.metadata()), object);
        match self.patch(object, &patch).await {
            // Gone, or no owner of the object any more.
            Err(error) if matches!(error.code(), Some(404 | 422)) => Ok(()),
            patched => patched.map(drop),
        }
    }

    async fn patch(&self, object: &ObjectMeta, patch: &Value) -> Result<K, Error> {
        let (namespace, name) = (meta::namespace(object), meta::name(object));
        self.objects.patch(namespace, name, PatchKind::Strategic, patch, None).await
    }
}

/// A strategic merge patch that adds `reference`; the uid guards against a namesake.
fn adopt_patch(reference: &OwnerReference, object: &ObjectMeta) -> Value {
    json!({"metadata": {"ownerReferences": [reference], "uid": object.uid}})
}

/// A strategic merge patch that removes the reference to `owner_uid`.
fn release_patch(owner_uid: &str, object: &ObjectMeta) -> Value {
    json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": owner_uid}], "uid": object.uid}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::core::v1::Pod;
    use skeg_client::{Body, BoxError, Client};

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

    /// The cache shows an owner that lives; the server knows better.
    #[tokio::test]
    async fn an_owner_that_ends_or_was_replaced_adopts_nothing() {
        let deleting = json!({"name": "o", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        for (live, adopts) in [
            (json!({"name": "o", "uid": "u"}), true),
            (deleting, false),
            (json!({"name": "o", "uid": "another"}), false),
        ] {
            let service = tower::service_fn(move |request: http::Request<Body>| {
                let answer = match *request.method() {
                    http::Method::GET => json!({"metadata": live}),
                    _ => json!({"metadata": {"name": "p", "uid": "p"}}),
                };
                let body = http_body_util::Full::new(answer.to_string().into());
                let body =
                    http_body_util::BodyExt::boxed_unsync(http_body_util::BodyExt::map_err(body, |never| {
                        match never {}
                    }));
                std::future::ready(Ok::<_, BoxError>(http::Response::new(body)))
            });
            let client = Client::new(service);
            let mut owner = ReplicaSet::default();
            owner.metadata.name = Some("o".into());
            owner.metadata.uid = Some("u".into());
            let pod = Pod { metadata: object("a", None, false), ..Pod::default() };
            let (owners, objects) = (client.api::<ReplicaSet>(), client.api::<Pod>());
            let claims = Claims {
                owner: &owner,
                owners: &owners,
                objects: &objects,
                metadata: |pod: &Pod| &pod.metadata,
                adopted: |pod| pod,
            };
            let selector = LabelSelector::from_labels([("app", "a")]);
            let claimed = claims.claim(&selector, vec![Arc::new(pod)]).await.unwrap();
            assert_eq!(claimed.len(), usize::from(adopts));
        }
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
