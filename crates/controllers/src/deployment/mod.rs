//! Rolls out Deployments by sizing their ReplicaSets. Knows nothing of how a set makes Pods.
//! Upstream counterpart: `pkg/controller/deployment`.

mod annotations;
mod plan;
mod rollout;
mod status;
mod template_hash;

use crate::context::{ControllerContext, Controllers};
use crate::error::{Error, Result, ignore_not_found};
use crate::owner::{self, Claims};
use crate::pod::Facts;
use crate::pods::Pods;
use crate::{meta, owner_index};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use plan::{Observed, Step};
use skeg_api::selector::LabelSelector;
use skeg_base::Clock;
use skeg_client::{
    Api, Change, EventType, Informer, ObjectKey, ProjectionChange, Queue, Recorder, object_ref,
};
use std::sync::Arc;
use std::time::Duration;

const KIND: &str = "Deployment";
const WORKERS: usize = 5;

struct Controller {
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Pods,
    deployment_api: Api<Deployment>,
    set_api: Api<ReplicaSet>,
    recorder: Recorder,
    clock: Clock,
    queue: Queue<ObjectKey>,
}

pub(crate) fn start(ctx: &ControllerContext, controllers: &mut Controllers, pods: Pods) {
    let client = ctx.client("deployment-controller");
    let controller = Arc::new(Controller {
        deployments: ctx.informers.of(),
        sets: ctx.informers.of(),
        pods,
        deployment_api: client.api(),
        set_api: client.api(),
        recorder: ctx.recorder(&client, "deployment-controller"),
        clock: ctx.clock,
        queue: ctx.queue(),
    });
    owner_index::add_to(&controller.sets);
    let of = controller.clone();
    controller.deployments.subscribe(move |change| of.queue.add(change.key().clone()));
    let of = controller.clone();
    controller.sets.subscribe(move |change| of.set_changed(&change));
    let of = controller.clone();
    controller.pods.subscribe(move |change| of.pod_changed(change));
    let (deployments, sets, pods) =
        (controller.deployments.clone(), controller.sets.clone(), controller.pods.clone());
    let ready = async move {
        deployments.synced().await;
        sets.synced().await;
        pods.synced().await;
    };
    let queue = controller.queue.clone();
    controllers.work("deployment", WORKERS, queue, ready, move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    });
}

impl Controller {
    fn set_changed(&self, change: &Change<'_, ReplicaSet>) {
        let set = change.object();
        if let Change::Updated { old, .. } = change {
            let (before, after) = (owner_of(old), owner_of(set));
            if before.map(|owner| &owner.uid) != after.map(|owner| &owner.uid)
                && let Some(owner) = before
            {
                self.enqueue_owner(old, owner);
            }
        }
        match owner_of(set) {
            Some(owner) => self.enqueue_owner(set, owner),
            None if !matches!(change, Change::Deleted(_)) => self.enqueue_matching(set),
            None => {}
        }
    }

    fn enqueue_owner(&self, set: &ReplicaSet, owner: &OwnerReference) {
        let namespace = meta::namespace(&set.metadata);
        if self
            .deployments
            .entry(namespace, &owner.name)
            .is_some_and(|deployment| deployment.uid() == owner.uid)
        {
            self.queue.add(ObjectKey::new(namespace, &owner.name));
        }
    }

    /// A set that no one controls wakes the Deployments that may adopt it.
    fn enqueue_matching(&self, set: &ReplicaSet) {
        if owner::controller_of(&set.metadata).is_some() {
            return;
        }
        let labels = set.metadata.labels.clone().unwrap_or_default();
        for deployment in self.deployments.list(Some(meta::namespace(&set.metadata))) {
            if selector_of(&deployment).is_ok_and(|selector| selector.matches(&labels)) {
                self.queue.add(meta::key(&deployment.metadata));
            }
        }
    }

    /// Strategy Recreate waits for the end of each old Pod.
    fn pod_changed(&self, change: &ProjectionChange<Facts>) {
        let Some(pod) = change.old.as_deref() else { return };
        if change.new.as_ref().is_some_and(|new| pod.is_terminal() || !new.is_terminal()) {
            return;
        }
        let Some(owner) = owner::controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet")
        else {
            return;
        };
        let namespace = meta::namespace(&pod.metadata);
        let Some(set) = self.sets.get(namespace, &owner.name) else { return };
        let Some(owner) = owner_of(&set) else { return };
        let deployment = self.deployments.get(namespace, &owner.name);
        if deployment.is_some_and(|deployment| !rollout::Limits::of(&deployment).rolling) {
            self.enqueue_owner(&set, owner);
        }
    }

    async fn sync(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(deployment) = self.deployments.get(&key.namespace, &key.name) else { return Ok(None) };
        let sets = self.claim(&deployment).await?;
        let mut pods = Vec::new();
        if !rollout::Limits::of(&deployment).rolling {
            for set in &sets {
                pods.extend(self.pods.owned(meta::uid(&set.metadata)));
            }
        }
        let observed = Observed { deployment: &deployment, sets: &sets, pods: &pods };
        let plan = plan::plan(observed, self.clock.now_seconds());
        if plan.selects_all {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&object_ref(&*deployment), EventType::Warning, "SelectingAll", message);
        }
        let mut newest = 0;
        for step in plan.steps {
            match self.take(&deployment, step).await? {
                Some(revision) => newest = newest.max(revision),
                // The step changed what the plan rests on.
                None => return Ok(None),
            }
        }
        // The next pass must see what this one wrote, or it would do it again.
        self.sets.wait_for(newest).await;
        if let Some(wanted) = plan.status {
            self.write_status(&wanted).await?;
        }
        Ok(plan.wake_after)
    }

    /// Does one step; the revision it made, or `None` if the pass is to end here.
    async fn take(&self, deployment: &Deployment, step: Step) -> Result<Option<u64>> {
        let namespace = meta::namespace(&deployment.metadata);
        match step {
            Step::Create(set) => self.create(deployment, &set).await,
            Step::Update { set, scaled } => {
                let updated = self.set_api.update(namespace, meta::name(&set.metadata), &set).await?;
                if let Some(message) = scaled {
                    tracing::info!(kind = KIND, namespace, name = meta::name(&deployment.metadata), message);
                    self.recorder.event(
                        &object_ref(deployment),
                        EventType::Normal,
                        "ScalingReplicaSet",
                        &message,
                    );
                }
                Ok(Some(meta::revision(&updated.metadata)))
            }
            Step::Delete(set) => {
                let options = meta::delete_options(meta::uid(&set.metadata));
                ignore_not_found(self.set_api.delete(namespace, meta::name(&set.metadata), &options).await)?;
                Ok(Some(0))
            }
        }
    }

    async fn create(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<Option<u64>> {
        let (namespace, name) = (meta::namespace(&deployment.metadata), meta::name(&set.metadata));
        match self.set_api.create(namespace, set).await {
            Ok(created) => {
                let size = rollout::size(&created);
                if size > 0 {
                    let message = format!("Scaled up replica set {name} from 0 to {size}");
                    self.recorder.event(
                        &object_ref(deployment),
                        EventType::Normal,
                        "ScalingReplicaSet",
                        &message,
                    );
                }
                Ok(Some(meta::revision(&created.metadata)))
            }
            Err(error) if error.is_already_exists() => {
                let existing = self.set_api.get(namespace, name).await?;
                if plan::is_own_set(deployment, &existing) {
                    // Made by an earlier pass whose answer was lost; it will be seen.
                    self.sets.wait_for(meta::revision(&existing.metadata)).await;
                    self.queue.add(meta::key(&deployment.metadata));
                } else {
                    self.write_status(&plan::collided(deployment)).await?;
                }
                Ok(None)
            }
            Err(error) if error.is_namespace_terminating() => Ok(None),
            Err(error) => {
                let message = format!("Failed to create new replica set \"{name}\": {error}");
                self.recorder.event(
                    &object_ref(deployment),
                    EventType::Warning,
                    "ReplicaSetCreateError",
                    &message,
                );
                if let Some(failed) =
                    plan::creation_failed(deployment, name, &error.to_string(), self.clock.now_seconds())
                {
                    self.write_status(&failed).await?;
                }
                Err(error.into())
            }
        }
    }

    async fn write_status(&self, wanted: &Deployment) -> Result<()> {
        let (namespace, name) = (meta::namespace(&wanted.metadata), meta::name(&wanted.metadata));
        match self.deployment_api.update_status(namespace, name, wanted).await {
            Ok(written) => self.deployments.wait_for(meta::revision(&written.metadata)).await,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// The sets of the Deployment, after adoption and release.
    async fn claim(&self, deployment: &Deployment) -> Result<Vec<Arc<ReplicaSet>>> {
        let mut known = owner_index::owned(&self.sets, meta::uid(&deployment.metadata));
        known.extend(owner_index::orphaned(&self.sets, meta::namespace(&deployment.metadata)));
        let claims = Claims {
            owner: deployment,
            owners: &self.deployment_api,
            objects: &self.set_api,
            metadata: |set: &ReplicaSet| &set.metadata,
            adopted: |set| set,
        };
        claims.claim(&selector_of(deployment)?, known).await
    }
}

fn owner_of(set: &ReplicaSet) -> Option<&OwnerReference> {
    owner::controller_of(&set.metadata).filter(|owner| owner.kind == KIND)
}

fn selector_of(deployment: &Deployment) -> Result<LabelSelector> {
    let selector = deployment.spec.as_ref().map(|spec| &spec.selector);
    LabelSelector::from_typed(selector).map_err(|error| Error::Selector(error.to_string()))
}
