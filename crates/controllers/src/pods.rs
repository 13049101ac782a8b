//! The Pods as controllers that look at many of them see them: facts, found by owner or namespace,
//! and no more than one Pod decoded for each change.

use crate::owner_index;
use crate::pod::Facts;
use k8s_openapi::api::core::v1::Pod;
use skeg_client::{Informer, ObjectKey, Projection, ProjectionChange};
use std::sync::Arc;

#[derive(Clone)]
pub(crate) struct Pods {
    informer: Informer<Pod>,
    facts: Projection<Facts>,
}

impl Pods {
    pub(crate) fn of(informer: Informer<Pod>) -> Self {
        owner_index::add_to(&informer);
        let facts = informer.project(Facts::of);
        Pods { informer, facts }
    }

    pub(crate) async fn synced(&self) {
        self.informer.synced().await;
    }

    /// Waits until the copy is at least as new as `revision`.
    pub(crate) async fn wait_for(&self, revision: u64) {
        self.informer.wait_for(revision).await;
    }

    /// Calls `handler` for every Pod there is, then for each whose facts become different.
    pub(crate) fn subscribe(&self, handler: impl Fn(&ProjectionChange<Facts>) + Send + Sync + 'static) {
        self.facts.subscribe(handler);
    }

    /// The Pods that the object of this uid controls.
    pub(crate) fn owned(&self, uid: &str) -> Vec<Arc<Facts>> {
        self.at(owner_index::owned_keys(&self.informer, uid))
    }

    /// The Pods of the namespace that no one controls.
    pub(crate) fn orphaned(&self, namespace: &str) -> Vec<Arc<Facts>> {
        self.at(owner_index::orphaned_keys(&self.informer, namespace))
    }

    pub(crate) fn of_namespace(&self, namespace: &str, keep: impl Fn(&Facts) -> bool) -> Vec<Arc<Facts>> {
        self.facts.of_namespace(namespace, keep).into_iter().map(|(_, facts)| facts).collect()
    }

    fn at(&self, keys: Vec<ObjectKey>) -> Vec<Arc<Facts>> {
        keys.iter().filter_map(|key| self.facts.at(key)).collect()
    }
}
