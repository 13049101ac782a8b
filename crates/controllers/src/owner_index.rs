//! The index by which controllers find the objects of an owner, and those that have none.

use crate::{meta, owner};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use skeg_client::{Informer, ObjectKey, Typed};
use std::sync::Arc;

const INDEX: &str = "controller";

/// Files objects under the uid of their controller, or under their namespace as orphans.
pub(crate) fn add_to<K: Typed>(informer: &Informer<K>) {
    informer.add_index(INDEX, |object| vec![value(object.metadata())]);
}

fn value(object: &ObjectMeta) -> String {
    match owner::controller_of(object) {
        Some(owner) => owner.uid.clone(),
        None => orphans(meta::namespace(object)),
    }
}

fn orphans(namespace: &str) -> String {
    format!("orphans/{namespace}")
}

pub(crate) fn owned<K: Typed>(informer: &Informer<K>, uid: &str) -> Vec<Arc<K>> {
    informer.by_index(INDEX, uid)
}

pub(crate) fn orphaned<K: Typed>(informer: &Informer<K>, namespace: &str) -> Vec<Arc<K>> {
    informer.by_index(INDEX, &orphans(namespace))
}

pub(crate) fn owned_keys<K>(informer: &Informer<K>, uid: &str) -> Vec<ObjectKey> {
    informer.keys_by_index(INDEX, uid)
}

pub(crate) fn orphaned_keys<K>(informer: &Informer<K>, namespace: &str) -> Vec<ObjectKey> {
    informer.keys_by_index(INDEX, &orphans(namespace))
}
