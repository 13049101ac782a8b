//! Keeps as many Pods of a template as a ReplicaSet or a ReplicationController asks for. Knows
//! nothing of rollouts. Upstream counterparts: `pkg/controller/{replicaset,replication}`.

mod batch;
mod expectations;
mod kind;
mod plan;

use crate::context::{ControllerContext, Controllers};
use crate::error::{Error, Result, is_outcome_unknown};
use crate::owner::{self, Claims};
use crate::pod::Facts;
use crate::pods::Pods;
use crate::{meta, owner_index};
use expectations::Expectations;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kind::Kind;
use parking_lot::Mutex;
use plan::Failure;
use skeg_api::selector::LabelSelector;
use skeg_base::Clock;
use skeg_client::{
    Api, Change, EventType, Informer, ListOptions, ObjectKey, PartialObjectMetadata, ProjectionChange, Queue,
    Recorder, gvr_of, object_ref,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 5;

struct Controller<S> {
    sets: Informer<S>,
    pods: Pods,
    set_api: Api<S>,
    pod_api: Api<Pod>,
    pod_metadata: Api<PartialObjectMetadata>,
    recorder: Recorder,
    clock: Clock,
    queue: Queue<ObjectKey>,
    /// By uid of the set.
    expectations: Mutex<Expectations>,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers, pods: &Pods) {
    start_for::<ReplicaSet>(ctx, controllers, pods.clone());
    start_for::<ReplicationController>(ctx, controllers, pods.clone());
}

fn start_for<S: Kind>(ctx: &ControllerContext, controllers: &mut Controllers, pods: Pods) {
    let client = ctx.client(S::COMPONENT);
    let controller = Arc::new(Controller::<S> {
        sets: ctx.informers.of(),
        pods,
        set_api: client.api(),
        pod_api: client.api(),
        pod_metadata: client.metadata(&gvr_of::<Pod>()),
        recorder: ctx.recorder(&client, S::COMPONENT),
        clock: ctx.clock,
        queue: ctx.queue(),
        expectations: Mutex::default(),
    });
    owner_index::add_to(&controller.sets);
    let of = controller.clone();
    controller.sets.subscribe(move |change| of.set_changed(&change));
    let of = controller.clone();
    controller.pods.subscribe(move |change| of.pod_changed(change));
    let (sets, pods) = (controller.sets.clone(), controller.pods.clone());
    let ready = async move {
        sets.synced().await;
        pods.synced().await;
    };
    let queue = controller.queue.clone();
    controllers.work(S::NAME, WORKERS, queue, ready, move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    });
}

impl<S: Kind> Controller<S> {
    fn set_changed(&self, change: &Change<'_, S>) {
        if let Change::Deleted(last) = change {
            self.expectations.lock().forget(meta::uid(last.metadata()));
        }
        self.queue.add(change.key().clone());
    }

    fn pod_changed(&self, change: &ProjectionChange<Facts>) {
        match (change.old.as_deref(), change.new.as_deref()) {
            (None, Some(pod)) => self.pod_added(pod),
            (Some(old), Some(new)) => self.pod_updated(old, new),
            (Some(last), None) => self.pod_went(last),
            (None, None) => {}
        }
    }

    fn pod_added(&self, pod: &Facts) {
        if pod.is_deleting() {
            return self.pod_went(pod);
        }
        match owner_of::<S>(pod) {
            Some(owner) => {
                self.expectations.lock().observed_creation(&owner.uid, meta::uid(&pod.metadata));
                self.enqueue_owner(pod, owner);
            }
            None => self.enqueue_matching(pod),
        }
    }

    fn pod_updated(&self, old: &Facts, new: &Facts) {
        if new.is_deleting() && !old.is_deleting() {
            return self.pod_went(new);
        }
        let (old_owner, new_owner) = (owner_of::<S>(old), owner_of::<S>(new));
        let handed_over = old_owner.map(|owner| &owner.uid) != new_owner.map(|owner| &owner.uid);
        if let Some(owner) = old_owner.filter(|_| handed_over) {
            self.enqueue_owner(old, owner);
        }
        let relabeled = old.metadata.labels != new.metadata.labels;
        match new_owner {
            Some(owner) if handed_over || relabeled || counts_differently(old, new) => {
                self.enqueue_owner(new, owner)
            }
            None if handed_over || relabeled => self.enqueue_matching(new),
            _ => {}
        }
    }

    fn pod_went(&self, pod: &Facts) {
        if let Some(owner) = owner_of::<S>(pod) {
            self.expectations.lock().observed_deletion(&owner.uid, meta::uid(&pod.metadata));
            self.enqueue_owner(pod, owner);
        }
    }

    fn enqueue_owner(&self, pod: &Facts, owner: &OwnerReference) {
        let namespace = meta::namespace(&pod.metadata);
        if self.sets.entry(namespace, &owner.name).is_some_and(|set| set.uid() == owner.uid) {
            self.queue.add(ObjectKey::new(namespace, &owner.name));
        }
    }

    /// A Pod that no one controls wakes the sets that may adopt it.
    fn enqueue_matching(&self, pod: &Facts) {
        if owner::controller_of(&pod.metadata).is_some() {
            return;
        }
        let none = BTreeMap::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
        for set in self.sets.list(Some(meta::namespace(&pod.metadata))) {
            if selector_of(&set.set()).is_ok_and(|selector| selector.matches(labels)) {
                self.queue.add(meta::key(set.metadata()));
            }
        }
    }

    async fn sync(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(object) = self.sets.get(&key.namespace, &key.name) else { return Ok(None) };
        let set = object.set();
        let uid = meta::uid(&set.metadata).to_owned();
        self.settle_doubt(&set).await?;
        let now = self.clock.now();
        // Asked before the Pods are read: what is fulfilled now is surely in what is read then.
        let wait = self.expectations.lock().wait(&uid, now);
        let claimed = self.claim(&object, &set).await?;
        let active: Vec<_> = claimed.iter().filter(|pod| pod.is_active()).cloned().collect();
        let terminating = claimed.iter().filter(|pod| pod.is_terminating()).count();

        // A copy that misses this set's own writes is good for no status either: it would tell a
        // Deployment that no Pod is there while one is. The events that are missing bring a pass.
        if let Some(wait) = wait {
            return Ok(wait.try_into().ok());
        }
        let related = if active.len() > desired(&set) { self.related(&set, &active) } else { Vec::new() };
        let plan = plan::plan(&set, &active, &related, now);
        let acted = plan.create > 0 || !plan.delete.is_empty();
        let failure = match plan.create {
            0 => self.delete_all(&object, plan.delete, now).await,
            count => self.create_all(&object, plan::new_pod(&set, S::API_VERSION, S::KIND), count, now).await,
        };
        // What was done comes back as events, and the pass after them tells the status.
        if acted && failure.is_none() {
            return Ok(None);
        }
        let shown = failure.as_ref().map(|(failure, _)| failure);
        self.write_status(&object, &set, &active, terminating, shown).await?;
        if let Some((_, error)) = failure {
            return Err(error.into());
        }
        Ok(plan::wake_after(&set, &active, now))
    }

    /// After a create without an answer the cache cannot tell whether it happened: the server can.
    async fn settle_doubt(&self, set: &ReplicaSet) -> Result<()> {
        let uid = meta::uid(&set.metadata);
        if !self.expectations.lock().is_in_doubt(uid) {
            return Ok(());
        }
        let selector = selector_of(set)?.to_string();
        let list =
            self.pod_metadata.list(meta::namespace(&set.metadata), &ListOptions::labels(selector)).await?;
        let newest = list.items.iter().map(|pod| meta::revision(&pod.metadata)).max().unwrap_or(0);
        self.pods.wait_for(newest).await;
        self.expectations.lock().forget(uid);
        Ok(())
    }

    /// The Pods of the set, after adoption and release.
    async fn claim(&self, object: &S, set: &ReplicaSet) -> Result<Vec<Arc<Facts>>> {
        let mut known = self.pods.orphaned(meta::namespace(&set.metadata));
        known.retain(|pod| pod.is_active());
        known.extend(self.pods.owned(meta::uid(&set.metadata)));
        let claims = Claims {
            owner: object,
            owners: &self.set_api,
            objects: &self.pod_api,
            metadata: |pod: &Facts| &pod.metadata,
            adopted: |pod| Facts::of(&pod),
        };
        claims.claim(&selector_of(set)?, known).await
    }

    /// The Pods of this set and of its siblings, such as the other sets of its Deployment.
    fn related(&self, set: &ReplicaSet, own: &[Arc<Facts>]) -> Vec<Arc<Facts>> {
        let Some(owner) = owner::controller_of(&set.metadata) else { return own.to_vec() };
        let siblings = owner_index::owned(&self.sets, &owner.uid);
        siblings.iter().flat_map(|sibling| self.pods.owned(meta::uid(sibling.metadata()))).collect()
    }

    async fn create_all(
        &self,
        set: &S,
        pod: Pod,
        count: usize,
        now: Timestamp,
    ) -> Option<(Failure, skeg_client::Error)> {
        let (_, error) = batch::slow_start(count, || self.create(set, &pod, now)).await;
        let error = error.filter(|error| !error.is_namespace_terminating())?;
        Some((Failure { creating: true, message: error.to_string() }, error))
    }

    async fn create(&self, set: &S, pod: &Pod, now: Timestamp) -> Result<(), skeg_client::Error> {
        let uid = meta::uid(set.metadata());
        self.expectations.lock().creating(uid, now);
        let result = self.pod_api.create(meta::namespace(set.metadata()), pod).await;
        match result {
            Ok(created) => {
                self.expectations.lock().created(uid, created.metadata.uid.as_deref());
                let message = format!("Created pod: {}", meta::name(&created.metadata));
                self.recorder.event(&object_ref(set), EventType::Normal, "SuccessfulCreate", &message);
                Ok(())
            }
            Err(error) => {
                let mut expectations = self.expectations.lock();
                expectations.created(uid, None);
                if is_outcome_unknown(&error) {
                    expectations.doubt(uid, now);
                }
                drop(expectations);
                if !error.is_namespace_terminating() {
                    let message = format!("Error creating: {error}");
                    self.recorder.event(&object_ref(set), EventType::Warning, "FailedCreate", &message);
                }
                Err(error)
            }
        }
    }

    async fn delete_all(
        &self,
        set: &S,
        pods: Vec<Arc<Facts>>,
        now: Timestamp,
    ) -> Option<(Failure, skeg_client::Error)> {
        let uids = pods.iter().map(|pod| meta::uid(&pod.metadata));
        self.expectations.lock().deleting(meta::uid(set.metadata()), uids, now);
        let results = futures_util::future::join_all(pods.iter().map(|pod| self.delete(set, pod))).await;
        let error = results.into_iter().find_map(Result::err)?;
        Some((Failure { creating: false, message: error.to_string() }, error))
    }

    async fn delete(&self, set: &S, pod: &Facts) -> Result<(), skeg_client::Error> {
        let (namespace, name) = (meta::namespace(&pod.metadata), meta::name(&pod.metadata));
        let pod_uid = meta::uid(&pod.metadata);
        match self.pod_api.delete(namespace, name, &meta::delete_options(pod_uid)).await {
            Ok(()) => {
                let message = format!("Deleted pod: {name}");
                self.recorder.event(&object_ref(set), EventType::Normal, "SuccessfulDelete", &message);
                Ok(())
            }
            Err(error) => {
                // Deleting again what may be going already does no harm.
                self.expectations.lock().not_deleted(meta::uid(set.metadata()), pod_uid);
                if error.is_not_found() || error.is_conflict() {
                    return Ok(());
                }
                let message = format!("Error deleting: {error}");
                self.recorder.event(&object_ref(set), EventType::Warning, "FailedDelete", &message);
                Err(error)
            }
        }
    }

    async fn write_status(
        &self,
        object: &S,
        set: &ReplicaSet,
        active: &[Arc<Facts>],
        terminating: usize,
        failure: Option<&Failure>,
    ) -> Result<()> {
        let status = plan::status(set, active, terminating, failure, self.clock.now_seconds());
        let wanted = object.with_status(status);
        let (old, new) = (set.status.as_ref(), wanted.set());
        if old.zip(new.status.as_ref()).is_some_and(|(old, new)| plan::same_status(old, new)) {
            return Ok(());
        }
        let written = self
            .set_api
            .update_status(meta::namespace(&set.metadata), meta::name(&set.metadata), &wanted)
            .await;
        match written {
            // The next pass of this set must not look at the status of before.
            Ok(written) => self.sets.wait_for(meta::revision(written.metadata())).await,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

fn desired(set: &ReplicaSet) -> usize {
    usize::try_from(plan::desired(set)).unwrap_or(0)
}

fn owner_of<S: Kind>(pod: &Facts) -> Option<&OwnerReference> {
    owner::controller_of(&pod.metadata).filter(|owner| owner.kind == S::KIND)
}

/// Whether a set would count the Pod differently: most updates of a Pod concern its set not at all.
fn counts_differently(old: &Facts, new: &Facts) -> bool {
    old.is_active() != new.is_active()
        || old.is_terminating() != new.is_terminating()
        || old.ready != new.ready
        || old.ready_since() != new.ready_since()
}

fn selector_of(set: &ReplicaSet) -> Result<LabelSelector> {
    let selector = set.spec.as_ref().map(|spec| &spec.selector);
    LabelSelector::from_typed(selector).map_err(|error| Error::Selector(error.to_string()))
}
