//! One pass over a Deployment: from what is there to what is written. Pure.
//! Upstream counterparts: `deployment_controller.go`, `sync.go`, `rolling.go`, `recreate.go`.

use super::annotations::{self, REVISION};
use super::rollout::{self, Limits, size};
use super::status;
use super::template_hash::{self, template_hash};
use crate::owner;
use crate::pod::Facts;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What a pass looks at.
#[derive(Clone, Copy)]
pub(crate) struct Observed<'a> {
    pub deployment: &'a Deployment,
    /// The ReplicaSets it owns.
    pub sets: &'a [Arc<ReplicaSet>],
    /// All Pods of those sets, terminating ones too. Only strategy Recreate asks for them.
    pub pods: &'a [Arc<Facts>],
}

/// One write, in the order of the plan.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    Create(Box<ReplicaSet>),
    /// `scaled` is the message of the event that tells of a new size.
    Update {
        set: Box<ReplicaSet>,
        scaled: Option<String>,
    },
    Delete(Box<ReplicaSet>),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub steps: Vec<Step>,
    /// The Deployment to write to its status endpoint once the steps are done. The revision
    /// annotation travels with it.
    pub status: Option<Box<Deployment>>,
    /// When time alone calls for another pass.
    pub wake_after: Option<Duration>,
    /// Selects every Pod: nothing may be done.
    pub selects_all: bool,
}

pub(crate) fn plan(observed: Observed<'_>, now: Timestamp) -> Plan {
    let deployment = observed.deployment;
    let Some(spec) = &deployment.spec else { return Plan::default() };
    if spec.selector == LabelSelector::default() {
        let mut status = deployment.status.clone().unwrap_or_default();
        status.observed_generation = deployment.metadata.generation;
        let stale = status != deployment.status.clone().unwrap_or_default();
        let status = stale.then(|| Box::new(Deployment { status: Some(status), ..deployment.clone() }));
        return Plan { status, selects_all: true, ..Plan::default() };
    }
    let mut pass = Pass::new(observed, now);
    if deployment.metadata.deletion_timestamp.is_some() {
        return pass.finish(Outcome::Sized);
    }
    status::with_pause(deployment, &mut pass.status, now);
    if spec.paused.unwrap_or(false) || pass.was_scaled() {
        pass.refresh_new_set();
        pass.scale();
        if spec.paused.unwrap_or(false) {
            pass.clean_up();
        }
        return pass.finish(Outcome::Sized);
    }
    if pass.limits.rolling {
        pass.roll()
    } else {
        pass.recreate()
    }
    pass.finish(Outcome::Rolled)
}

/// The Deployment to write after its new ReplicaSet could not be created.
pub(crate) fn creation_failed(
    deployment: &Deployment,
    set_name: &str,
    error: &str,
    now: Timestamp,
) -> Option<Deployment> {
    status::progress_deadline(deployment)?;
    let mut status = deployment.status.clone().unwrap_or_default();
    let message = format!("Failed to create new replica set \"{set_name}\": {error}");
    status::set_condition(
        &mut status,
        status::new_condition(status::PROGRESSING, "False", "ReplicaSetCreateError", message, now),
    );
    (Some(&status) != deployment.status.as_ref())
        .then(|| Deployment { status: Some(status), ..deployment.clone() })
}

/// The Deployment to write after the name of its new ReplicaSet turned out to be taken.
pub(crate) fn collided(deployment: &Deployment) -> Deployment {
    let mut status = deployment.status.clone().unwrap_or_default();
    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
    Deployment { status: Some(status), ..deployment.clone() }
}

/// Whether a set of the wanted name is the wanted set, made by a pass whose write we do not see yet.
pub(crate) fn is_own_set(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let owned =
        owner::controller_of(&set.metadata).is_some_and(|o| Some(&o.uid) == deployment.metadata.uid.as_ref());
    owned && template_of(deployment).is_some_and(|template| has_template(set, template))
}

fn template_of(deployment: &Deployment) -> Option<&PodTemplateSpec> {
    deployment.spec.as_ref().map(|spec| &spec.template)
}

fn has_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let Some(own) = set.spec.as_ref().and_then(|spec| spec.template.as_ref()) else { return false };
    own.spec == template.spec && bare(own) == bare(template)
}

/// The template's metadata without the hash label, with absent and empty maps alike.
fn bare(template: &PodTemplateSpec) -> ObjectMeta {
    let mut meta = template.metadata.clone().unwrap_or_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(template_hash::LABEL);
    }
    meta.labels = meta.labels.filter(|labels| !labels.is_empty());
    meta.annotations = meta.annotations.filter(|annotations| !annotations.is_empty());
    meta.creation_timestamp = None;
    meta
}

enum Outcome {
    /// Only sizes were looked at: the status tells counters and availability.
    Sized,
    /// The rollout moved, or not: the status tells of its progress as well.
    Rolled,
}

/// The state of a pass: the sets as they will be, and which of them are to be written.
struct Pass<'a> {
    deployment: &'a Deployment,
    pods: &'a [Arc<Facts>],
    limits: Limits,
    now: Timestamp,
    sets: Vec<ReplicaSet>,
    new_set: Option<usize>,
    /// By set: whether it was changed.
    dirty: BTreeMap<usize, Option<String>>,
    created: Option<usize>,
    deleted: Vec<usize>,
    /// The order in which sets were last touched: the order of the writes.
    touched: Vec<usize>,
    revision: Option<String>,
    /// The status on which the next one builds: with conditions added on the way.
    status: DeploymentStatus,
}

impl<'a> Pass<'a> {
    fn new(observed: Observed<'a>, now: Timestamp) -> Self {
        let deployment = observed.deployment;
        let mut sets: Vec<ReplicaSet> = observed.sets.iter().map(|set| ReplicaSet::clone(set)).collect();
        rollout::oldest_first(&mut sets);
        let new_set = template_of(deployment).and_then(|t| sets.iter().position(|set| has_template(set, t)));
        Pass {
            deployment,
            pods: observed.pods,
            limits: Limits::of(deployment),
            now,
            sets,
            new_set,
            dirty: BTreeMap::new(),
            created: None,
            deleted: Vec::new(),
            touched: Vec::new(),
            revision: None,
            status: deployment.status.clone().unwrap_or_default(),
        }
    }

    /// Whether `spec.replicas` changed since the sets were last sized.
    fn was_scaled(&self) -> bool {
        let active: Vec<_> = self.sets.iter().filter(|set| size(set) > 0).collect();
        let differs = |set: &&ReplicaSet| {
            annotations::number::<i32>(&set.metadata, annotations::DESIRED_REPLICAS)
                .is_some_and(|desired| desired != self.limits.replicas)
        };
        // Strategy Recreate sizes one set only; with several it first has to get rid of the old.
        // Upstream would wait for ever there.
        active.iter().any(differs) && (self.limits.rolling || active.len() == 1)
    }

    fn touch(&mut self, at: usize) -> &mut Option<String> {
        self.touched.retain(|touched| *touched != at);
        self.touched.push(at);
        self.dirty.entry(at).or_default()
    }

    fn next_revision(&self) -> i64 {
        let old = (0..self.sets.len()).filter(|at| Some(*at) != self.new_set);
        old.map(|at| annotations::revision(&self.sets[at].metadata)).max().unwrap_or(0) + 1
    }

    /// Brings revision, annotations and `minReadySeconds` of an existing new set up to date.
    fn refresh_new_set(&mut self) {
        let Some(at) = self.new_set else { return };
        let revision = self.next_revision();
        let min_ready = self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        let set = &mut self.sets[at];
        let mut changed = annotations::set_on_new_set(&self.deployment.metadata, &mut set.metadata, revision);
        if let Some(spec) = &mut set.spec
            && spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0)
        {
            spec.min_ready_seconds = min_ready;
            changed = true;
        }
        self.revision = annotations::get(&set.metadata, REVISION).map(str::to_owned);
        if changed {
            self.touch(at);
        }
        let name = self.name_of(at);
        if status::progress_deadline(self.deployment).is_some()
            && status::condition(&self.status, status::PROGRESSING).is_none()
        {
            let message = format!("Found new replica set \"{name}\"");
            let found =
                status::new_condition(status::PROGRESSING, "True", "FoundNewReplicaSet", message, self.now);
            status::set_condition(&mut self.status, found);
        }
    }

    fn name_of(&self, at: usize) -> String {
        self.sets[at].metadata.name.clone().unwrap_or_default()
    }

    /// The new set, made if there is none.
    fn ensure_new_set(&mut self) -> usize {
        if let Some(at) = self.new_set {
            self.refresh_new_set();
            return at;
        }
        let revision = self.next_revision();
        let mut set = new_set(self.deployment);
        let count = rollout::new_set_size(self.limits, rollout::total(&self.sets), 0);
        if let Some(spec) = &mut set.spec {
            spec.replicas = Some(count);
        }
        annotations::set_on_new_set(&self.deployment.metadata, &mut set.metadata, revision);
        annotations::set_sizes(
            &mut set.metadata,
            self.limits.replicas,
            self.limits.replicas + self.limits.surge,
        );
        self.sets.push(set);
        let at = self.sets.len() - 1;
        self.new_set = Some(at);
        self.created = Some(at);
        self.revision = Some(revision.to_string());
        if status::progress_deadline(self.deployment).is_some() {
            let message = format!("Created new replica set \"{}\"", self.name_of(at));
            let made =
                status::new_condition(status::PROGRESSING, "True", "NewReplicaSetCreated", message, self.now);
            status::set_condition(&mut self.status, made);
        }
        at
    }

    /// Gives a set its size and size annotations; whether the size changed.
    fn resize(&mut self, at: usize, to: i32) -> bool {
        let from = size(&self.sets[at]);
        let (desired, max) = (self.limits.replicas, self.limits.replicas + self.limits.surge);
        let annotated = annotations::set_sizes(&mut self.sets[at].metadata, desired, max);
        if from == to {
            if annotated {
                self.touch(at);
            }
            return false;
        }
        if let Some(spec) = &mut self.sets[at].spec {
            spec.replicas = Some(to);
        }
        let direction = if from < to { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {} from {from} to {to}", self.name_of(at));
        *self.touch(at) = Some(message);
        true
    }

    fn scale(&mut self) {
        for (at, to) in rollout::scale(self.deployment, self.limits, &self.sets, self.new_set) {
            // Between the old Pods and the new ones of strategy Recreate no set has a size. Upstream
            // mixes them if it is paused there.
            let begins = !self.limits.rolling && size(&self.sets[at]) == 0;
            if !(begins && self.others_run(Some(at))) {
                self.resize(at, to);
            }
        }
    }

    /// One move of a rolling update: the old sets give up what availability allows, and the new one
    /// takes the room there is then. What is given up does not depend on what is taken, so that
    /// upstream's two passes are one here. The growth is written last, when the room is there.
    fn roll(&mut self) {
        let new = self.ensure_new_set();
        if size(&self.sets[new]) > self.limits.replicas {
            self.resize(new, self.limits.replicas);
            return;
        }
        let mut moved = self.created.is_some();
        for (at, to) in rollout::shrink_old(self.limits, &self.sets, new) {
            moved |= self.resize(at, to);
        }
        if self.created.is_none() {
            let current = size(&self.sets[new]);
            let to = rollout::new_set_size(self.limits, rollout::total(&self.sets), current);
            moved |= to != current && self.resize(new, to);
        }
        if !moved {
            self.clean_up_if_complete();
        }
    }

    /// The old sets go to nothing, and only when no Pod of theirs is left the new one grows.
    fn recreate(&mut self) {
        self.refresh_new_set();
        let old: Vec<usize> = (0..self.sets.len()).filter(|at| Some(*at) != self.new_set).collect();
        let mut moved = false;
        for at in &old {
            moved |= size(&self.sets[*at]) > 0 && self.resize(*at, 0);
        }
        if moved || self.others_run(self.new_set) {
            return;
        }
        let new = self.ensure_new_set();
        if self.created.is_none() {
            self.resize(new, self.limits.replicas);
        }
        self.clean_up_if_complete();
    }

    /// Whether Pods of other sets than this one are there, or may be: a set that has not looked at
    /// its size yet may still make some.
    fn others_run(&self, than: Option<usize>) -> bool {
        let uid = than.and_then(|at| self.sets[at].metadata.uid.as_deref());
        let mut others = (0..self.sets.len()).filter(|at| Some(*at) != than).map(|at| &self.sets[at]);
        others.any(|set| status::actual(set) > 0 || !is_observed(set))
            || self.pods.iter().any(|pod| {
                let set = owner::controller_of(&pod.metadata).map(|owner| owner.uid.as_str());
                !pod.is_terminal() && set != uid
            })
    }

    fn clean_up_if_complete(&mut self) {
        if status::is_complete(self.deployment, &self.status, self.limits.replicas) {
            self.clean_up();
        }
    }

    /// Removes the oldest unused sets beyond `revisionHistoryLimit`.
    fn clean_up(&mut self) {
        let limit = self.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
        let Some(limit) = limit.filter(|limit| *limit != i32::MAX) else { return };
        let alive =
            |at: &usize| Some(*at) != self.new_set && self.sets[*at].metadata.deletion_timestamp.is_none();
        let mut old: Vec<usize> = (0..self.sets.len()).filter(alive).collect();
        let excess = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        // The sets are sorted by age, and the sort is stable.
        old.sort_by_key(|at| annotations::revision(&self.sets[*at].metadata));
        for at in old.into_iter().take(excess) {
            let set = &self.sets[at];
            if status::actual(set) == 0 && size(set) == 0 && is_observed(set) {
                self.deleted.push(at);
            }
        }
    }

    fn finish(mut self, outcome: Outcome) -> Plan {
        let new_set = self.new_set.map(|at| self.sets[at].clone());
        let arguments =
            (self.deployment, &self.status, &self.sets[..], new_set.as_ref(), self.limits, self.now);
        let (d, base, sets, new, limits, now) = arguments;
        let status = match outcome {
            Outcome::Sized => status::counted(d, base, sets, new, limits, now),
            Outcome::Rolled => status::of_rollout(d, base, sets, new, limits, now),
        };
        let mut deployment = d.clone();
        let annotated = self
            .revision
            .as_deref()
            .is_some_and(|revision| annotations::set(&mut deployment.metadata, REVISION, revision));
        let changed = annotated || !status::same(&status, &d.status.clone().unwrap_or_default());
        let wake_after = match outcome {
            Outcome::Rolled => status::deadline_check_after(d, &status, limits.replicas, now),
            Outcome::Sized => None,
        };
        deployment.status = Some(status);
        Plan {
            steps: self.steps(),
            status: changed.then(|| Box::new(deployment)),
            wake_after,
            selects_all: false,
        }
    }

    fn steps(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        if let Some(at) = self.created {
            steps.push(Step::Create(Box::new(self.sets[at].clone())));
        }
        for at in std::mem::take(&mut self.touched) {
            if Some(at) != self.created && !self.deleted.contains(&at) {
                let scaled = self.dirty.remove(&at).flatten();
                steps.push(Step::Update { set: Box::new(self.sets[at].clone()), scaled });
            }
        }
        steps.extend(self.deleted.iter().map(|at| Step::Delete(Box::new(self.sets[*at].clone()))));
        steps
    }
}

/// Whether the set's status tells of its newest size.
fn is_observed(set: &ReplicaSet) -> bool {
    let observed = set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
    set.metadata.generation.unwrap_or(0) <= observed
}

/// A set for the Deployment's template, of size 0.
fn new_set(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(template_hash::LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(template_hash::LABEL.to_owned(), hash.clone());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![owner::controller_reference(
                "apps/v1",
                "Deployment",
                &deployment.metadata,
            )]),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
