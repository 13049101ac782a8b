//! The shell around the decision: informers feed cache and queue, one loop takes a Pod, decides,
//! and hands the binding to a task of its own, so that the next Pod need not wait for it.
//! Upstream counterpart: `pkg/scheduler/{scheduler,schedule_one,eventhandlers}.go`.

use crate::framework::{FitError, Placement, schedule};
use crate::pod_info::{Candidate, Labels, PodInfo};
use crate::preemption::{self, Outcome, Preemption};
use crate::queue::{Event, Queue, looks_different};
use crate::snapshot::{Cache, NodeChange, Snapshot};
use futures_util::FutureExt;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skeg_api::Gvr;
use skeg_base::{Clock, HashMap, Random, new_map};
use skeg_client::{
    Api, Change, Client, DeleteOptions, Error, EventType, Informer, Informers, PatchKind, Preconditions,
    Recorder, Subscription, object_ref,
};
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Requests under way at once.
const REQUESTS_MAX: usize = 512;
/// The longest message of an event.
const EVENT_MESSAGE_MAX: usize = 1024;

#[derive(Clone, Debug)]
pub struct Config {
    /// Pods that name this scheduler are ours.
    pub scheduler_name: String,
}

impl Default for Config {
    fn default() -> Self {
        Config { scheduler_name: "default-scheduler".into() }
    }
}

/// Assigns Pods to Nodes. Cheap to clone.
#[derive(Clone)]
pub struct Scheduler(Arc<Shared>);

struct Shared {
    pods: Api<Pod>,
    bindings: Api<Value>,
    informers: Informers,
    replica_sets: Informer<ReplicaSet>,
    recorder: Recorder,
    clock: Clock,
    random: Random,
    config: Config,
    state: Mutex<State>,
    /// Something may be ready to be tried.
    wake: Notify,
    /// Status patches under way, with the one to send next, by uid of the Pod.
    statuses: Mutex<HashMap<Arc<str>, Option<Value>>>,
}

#[derive(Default)]
struct State {
    cache: Cache,
    queue: Queue,
    /// Where the search for Nodes goes on.
    start: usize,
    /// Selectors of Services by namespace and name.
    services: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Labels>>,
}

/// What one turn of the loop came to.
enum Turn {
    Bind(Candidate, Arc<str>),
    Unfit(Candidate, Box<FitError>, Nomination, Option<Preemption>),
    Again,
    /// Nothing to do before that time.
    Idle(Option<Instant>),
}

/// What becomes of `status.nominatedNodeName`.
enum Nomination {
    Keep,
    Clear,
    Set(Arc<str>),
}

impl Scheduler {
    /// Call inside a runtime: starts the informers it needs.
    pub fn new(
        client: &Client,
        informers: &Informers,
        recorder: Recorder,
        clock: Clock,
        random: Random,
        config: Config,
    ) -> Self {
        Scheduler(Arc::new(Shared {
            pods: client.api(),
            bindings: client.dynamic(&Gvr::new("", "v1", "pods")),
            informers: informers.clone(),
            replica_sets: informers.of(),
            recorder,
            clock,
            random,
            config,
            state: Mutex::default(),
            wake: Notify::new(),
            statuses: Mutex::new(new_map()),
        }))
    }

    /// The cluster as the scheduler sees it now.
    pub fn snapshot(&self) -> Snapshot {
        self.0.state.lock().cache.snapshot().clone()
    }

    /// Pods that wait for a Node or whose binding is under way.
    pub fn waiting(&self) -> usize {
        self.0.state.lock().queue.len()
    }

    /// Schedules until `cancel` is cancelled.
    pub async fn run(&self, cancel: CancellationToken) {
        let subscriptions = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            subscriptions = self.subscribe() => subscriptions,
        };
        let mut requests = JoinSet::new();
        while !cancel.is_cancelled() {
            while requests.try_join_next().is_some() {}
            if requests.len() >= REQUESTS_MAX {
                requests.join_next().await;
                continue;
            }
            let woken = self.0.wake.notified();
            match self.0.turn() {
                Turn::Bind(candidate, node) => {
                    requests.spawn(self.0.clone().bind_guarded(candidate, node));
                }
                Turn::Again => {}
                Turn::Unfit(candidate, unfit, nomination, preemption) => {
                    self.0.report(&candidate, &unfit);
                    self.0.set_status(
                        &mut requests,
                        &candidate,
                        "Unschedulable",
                        &unfit.to_string(),
                        nomination,
                    );
                    if let Some(preemption) = preemption {
                        requests.spawn(self.0.clone().preempt(candidate, preemption));
                    }
                }
                Turn::Idle(until) => {
                    tokio::select! {
                        biased;
                        () = cancel.cancelled() => {}
                        () = woken => {}
                        () = sleep_until(until) => {}
                    }
                    continue;
                }
            }
            // Bindings go out before the next decision.
            tokio::task::yield_now().await;
        }
        for subscription in subscriptions {
            subscription.unsubscribe();
        }
    }

    /// Nodes first, so that no Pod is tried without them.
    async fn subscribe(&self) -> [Subscription; 4] {
        let (nodes, pods) = (self.0.informers.of::<Node>(), self.0.informers.of::<Pod>());
        let namespaces = self.0.informers.of::<Namespace>();
        nodes.synced().await;
        namespaces.synced().await;
        pods.synced().await;
        // Services only shape scores: nothing waits for them.
        let weak = Arc::downgrade(&self.0);
        let on_service = self.0.informers.of::<Service>().subscribe(move |change| {
            if let Some(shared) = weak.upgrade() {
                shared.state.lock().set_service(&change);
            }
        });
        let weak = Arc::downgrade(&self.0);
        let on_node = nodes.subscribe(move |change| {
            if let Some(shared) = weak.upgrade() {
                shared.on_node(&change);
            }
        });
        let weak = Arc::downgrade(&self.0);
        let on_namespace = namespaces.subscribe(move |change| {
            if let Some(shared) = weak.upgrade() {
                shared.on_namespace(&change);
            }
        });
        let weak = Arc::downgrade(&self.0);
        let on_pod = pods.subscribe(move |change| {
            if let Some(shared) = weak.upgrade() {
                shared.on_pod(&change);
            }
        });
        [on_service, on_node, on_namespace, on_pod]
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Shared {
    fn on_node(&self, change: &Change<'_, Node>) {
        let mut state = self.state.lock();
        match change {
            Change::Deleted(last) => state.cache.remove_node(&last.key().name),
            Change::Added(node) | Change::Updated { new: node, .. } => {
                if state.cache.set_node(node) != NodeChange::Nothing {
                    state.happened(Event::Node(&node.key().name));
                }
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    fn on_namespace(&self, change: &Change<'_, Namespace>) {
        let mut state = self.state.lock();
        let name = &change.key().name;
        match change {
            Change::Deleted(_) => state.cache.set_namespace(name, None),
            Change::Updated { old, new } if old.metadata.labels == new.metadata.labels => return,
            Change::Added(new) | Change::Updated { new, .. } => {
                state.cache.set_namespace(name, Some(new.metadata.labels.clone().unwrap_or_default()));
                state.happened(Event::Namespace);
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    fn on_pod(&self, change: &Change<'_, Pod>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let pod = change.object();
        let uid = pod.entry().uid();
        let over = matches!(change, Change::Deleted(_)) || is_terminal(pod);
        let assigned = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|n| !n.is_empty());
        if over {
            state.queue.remove(uid);
            state.gone(uid);
        } else if assigned {
            state.queue.remove(uid);
            state.came(Arc::new(PodInfo::of(pod)));
        } else if pod.metadata.deletion_timestamp.is_some() || !self.is_ours(pod) {
            state.queue.remove(uid);
        } else {
            // What is assumed and no longer waits is bound; this is a state from before that.
            if state.cache.is_assumed(uid) && state.queue.candidate(uid).is_none() {
                return;
            }
            let candidate = Candidate::new(pod.arc().clone());
            let nominated = pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
            let nominated = nominated.filter(|node| !node.is_empty()).map(Into::into);
            if !state.cache.is_assumed(uid) {
                state.cache.nominate(candidate.info.clone(), nominated);
            }
            state.queue.set(candidate, now);
        }
        drop(state);
        self.wake.notify_one();
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        let name =
            pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).filter(|name| !name.is_empty());
        name.unwrap_or("default-scheduler") == self.config.scheduler_name
    }

    /// Takes the next Pod and decides.
    fn turn(&self) -> Turn {
        let now = Instant::now();
        let mut state = self.state.lock();
        let Some(candidate) = state.queue.pop(now) else { return Turn::Idle(state.queue.next_due()) };
        let candidate = self.with_group(&state, candidate);
        let decision =
            std::panic::catch_unwind(AssertUnwindSafe(|| self.decide(&mut state, candidate.clone())));
        decision.unwrap_or_else(|_| {
            tracing::error!(pod = %candidate.info.key, "the decision on a Pod panicked, it will be retried");
            state.queue.failed(&candidate.info.uid, now);
            Turn::Again
        })
    }

    fn with_group(&self, state: &State, candidate: Candidate) -> Candidate {
        let namespace = candidate.info.key.namespace.clone();
        let owners = candidate.pod.metadata.owner_references.iter().flatten();
        let owner =
            owners.into_iter().find(|owner| owner.controller == Some(true) && owner.kind == "ReplicaSet");
        let owner = owner.and_then(|owner| self.replica_sets.get(&namespace, &owner.name));
        let selector = owner.as_ref().and_then(|owner| Some(&owner.spec.as_ref()?.selector));
        candidate.with_group(state.services.get(&namespace).into_iter().flat_map(BTreeMap::values), selector)
    }

    fn decide(&self, state: &mut State, candidate: Candidate) -> Turn {
        let mut unfit = match schedule(&candidate, state.cache.snapshot(), state.start, &self.random) {
            Ok(Placement { node, evaluated, .. }) => {
                let nodes = state.cache.snapshot().nodes().len();
                state.start = (state.start + evaluated) % nodes.max(1);
                state.cache.assume(candidate.info.clone(), node.clone());
                return Turn::Bind(candidate, node);
            }
            Err(unfit) => unfit,
        };
        let (nomination, preemption) =
            match preemption::post_filter(&candidate, &unfit, state.cache.snapshot()) {
                Outcome::MakeRoom(preemption) => (Nomination::Set(preemption.node.clone()), Some(preemption)),
                Outcome::Wait(message) => {
                    unfit.post_filter = message;
                    (Nomination::Keep, None)
                }
                Outcome::Hopeless(message) => {
                    unfit.post_filter = message;
                    (Nomination::Clear, None)
                }
            };
        match &nomination {
            Nomination::Set(node) => state.cache.nominate(candidate.info.clone(), Some(node.clone())),
            Nomination::Clear => state.cache.drop_nomination(&candidate.info.uid),
            Nomination::Keep => {}
        }
        state.queue.unschedulable(&candidate.info.uid, unfit.plugins.clone(), Instant::now());
        Turn::Unfit(candidate, unfit, nomination, preemption)
    }

    async fn bind_guarded(self: Arc<Self>, candidate: Candidate, node: Arc<str>) {
        let binding = AssertUnwindSafe(self.clone().bind(candidate.clone(), node)).catch_unwind();
        if binding.await.is_err() {
            tracing::error!(pod = %candidate.info.key, "a binding panicked, it will be retried");
            self.take_back(&candidate);
        }
    }

    async fn bind(self: Arc<Self>, candidate: Candidate, node: Arc<str>) {
        let key = &candidate.info.key;
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"namespace": &*key.namespace, "name": &*key.name, "uid": &*candidate.info.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": &*node},
        });
        let outcome = self
            .bindings
            .create_subresource::<_, Value>(&key.namespace, &key.name, "binding", &binding)
            .await;
        match outcome {
            Ok(_) => {
                self.state.lock().queue.remove(&candidate.info.uid);
                let message = format!("Successfully assigned {key} to {node}");
                tracing::debug!(pod = %key, node = %node, "scheduled");
                self.recorder.event_of(
                    "Binding",
                    &object_ref(&*candidate.pod),
                    EventType::Normal,
                    "Scheduled",
                    &message,
                );
            }
            Err(error) => self.bind_failed(&candidate, &error).await,
        }
    }

    async fn bind_failed(&self, candidate: &Candidate, error: &Error) {
        self.take_back(candidate);
        if error.is_not_found() {
            return;
        }
        let message = format!("binding rejected: running Bind plugin \"DefaultBinder\": {error}");
        tracing::debug!(pod = %candidate.info.key, message);
        self.tell_failure(candidate, &message);
        if let Some(status) = self.new_status(candidate, "SchedulerError", &message, Nomination::Keep) {
            self.send_status(candidate, status).await;
        }
    }

    /// The Pod is not on its way any more.
    fn take_back(&self, candidate: &Candidate) {
        let uid = &candidate.info.uid;
        let mut state = self.state.lock();
        let node = state.cache.node_of(uid).cloned();
        if state.cache.forget(uid)
            && let Some(node) = node
        {
            state.happened(Event::PodGone { node: &node });
        }
        // A Pod that is gone leaves the queue when the informer says so.
        state.queue.failed(uid, Instant::now());
        drop(state);
        self.wake.notify_one();
    }

    fn tell_failure(&self, candidate: &Candidate, message: &str) {
        let about = object_ref(&*candidate.pod);
        let message = truncated(message);
        self.recorder.event_of("Scheduling", &about, EventType::Warning, "FailedScheduling", message);
    }

    fn report(&self, candidate: &Candidate, unfit: &FitError) {
        let message = unfit.to_string();
        tracing::debug!(pod = %candidate.info.key, message, "unschedulable");
        self.tell_failure(candidate, &message);
    }

    fn set_status(
        self: &Arc<Self>,
        requests: &mut JoinSet<()>,
        candidate: &Candidate,
        reason: &str,
        message: &str,
        nomination: Nomination,
    ) {
        let Some(status) = self.new_status(candidate, reason, message, nomination) else { return };
        let (shared, candidate) = (self.clone(), candidate.clone());
        requests.spawn(async move { shared.send_status(&candidate, status).await });
    }

    /// The status patch that says why a Pod has no Node; `None` if it says so already.
    fn new_status(
        &self,
        candidate: &Candidate,
        reason: &str,
        message: &str,
        nomination: Nomination,
    ) -> Option<Value> {
        let status = candidate.pod.status.as_ref();
        let known = status.and_then(|s| s.conditions.as_ref()?.iter().find(|c| c.type_ == "PodScheduled"));
        let same = |c: &k8s_openapi::api::core::v1::PodCondition| {
            c.status == "False"
                && c.reason.as_deref() == Some(reason)
                && c.message.as_deref() == Some(message)
        };
        let was_false = known.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.as_ref());
        let since = was_false.map_or_else(|| self.clock.now_seconds(), |time| time.0);
        let mut patch = json!({});
        if !known.is_some_and(same) {
            let mut condition = json!({
                "type": "PodScheduled",
                "status": "False",
                "reason": reason,
                "message": message,
                "lastProbeTime": null,
                "lastTransitionTime": since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            });
            if let Some(generation) = candidate.pod.metadata.generation {
                condition["observedGeneration"] = generation.into();
            }
            patch["conditions"] = json!([condition]);
        }
        let nominated_before = status.and_then(|s| s.nominated_node_name.as_deref()).unwrap_or_default();
        match nomination {
            Nomination::Set(node) if *node != *nominated_before => {
                patch["nominatedNodeName"] = (*node).into()
            }
            Nomination::Clear if !nominated_before.is_empty() => patch["nominatedNodeName"] = Value::Null,
            _ => {}
        }
        let changes = patch.as_object().is_some_and(|fields| !fields.is_empty());
        changes.then(|| json!({ "status": patch }))
    }

    /// Patches of one Pod go out one after the other, and only the newest of those that wait.
    async fn send_status(&self, candidate: &Candidate, status: Value) {
        let uid = &candidate.info.uid;
        {
            let mut statuses = self.statuses.lock();
            if let Some(next) = statuses.get_mut(uid) {
                *next = Some(status);
                return;
            }
            statuses.insert(uid.clone(), None);
        }
        let key = &candidate.info.key;
        let mut current = status;
        loop {
            let sent = self
                .pods
                .patch(&key.namespace, &key.name, PatchKind::Strategic, &current, Some("status"))
                .await;
            if let Err(error) = sent
                && !error.is_not_found()
            {
                tracing::debug!(pod = %key, %error, "status not written");
            }
            let mut statuses = self.statuses.lock();
            match statuses.get_mut(uid).and_then(Option::take) {
                Some(next) => current = next,
                None => {
                    statuses.remove(uid);
                    return;
                }
            }
        }
    }

    /// Makes room: the victims' end brings the Pod back into the queue.
    async fn preempt(self: Arc<Self>, candidate: Candidate, preemption: Preemption) {
        for victim in &preemption.victims {
            let key = &victim.key;
            let pods = self.informers.of::<Pod>();
            let Some(pod) = pods.get(&key.namespace, &key.name) else { continue };
            if pod.metadata.uid.as_deref() != Some(&*victim.uid) || pod.metadata.deletion_timestamp.is_some()
            {
                continue;
            }
            let scheduler = &self.config.scheduler_name;
            let mut condition = json!({
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "PreemptionByScheduler",
                "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
                "lastProbeTime": null,
                "lastTransitionTime": self.clock.now_seconds().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            });
            if let Some(generation) = pod.metadata.generation {
                condition["observedGeneration"] = generation.into();
            }
            let patch = json!({"metadata": {"uid": &*victim.uid}, "status": {"conditions": [condition]}});
            let marked = self
                .pods
                .patch(&key.namespace, &key.name, PatchKind::Strategic, &patch, Some("status"))
                .await;
            let options = DeleteOptions {
                preconditions: Some(Preconditions {
                    uid: Some(victim.uid.to_string()),
                    ..Default::default()
                }),
                ..Default::default()
            };
            let deleted = match marked {
                Ok(_) => self.pods.delete(&key.namespace, &key.name, &options).await,
                Err(error) => Err(error),
            };
            match deleted {
                Ok(()) => {
                    let message =
                        format!("Preempted by pod {} on node {}", candidate.info.uid, preemption.node);
                    self.recorder.event_of(
                        "Preempting",
                        &object_ref(&*pod),
                        EventType::Normal,
                        "Preempted",
                        &message,
                    );
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    tracing::warn!(pod = %key, %error, "preemption failed");
                    // No end of a Pod may come to wake the one that waits.
                    let mut state = self.state.lock();
                    state.cache.nominate(candidate.info.clone(), None);
                    state.queue.retry(&candidate.info.uid, Instant::now());
                    drop(state);
                    return self.wake.notify_one();
                }
            }
        }
    }
}

impl State {
    fn happened(&mut self, event: Event<'_>) {
        self.queue.happened(event, self.cache.snapshot(), Instant::now());
    }

    fn set_service(&mut self, change: &Change<'_, Service>) {
        let key = change.key();
        let of_namespace = self.services.entry(key.namespace.clone()).or_default();
        let selector = change.object().spec.as_ref().and_then(|spec| spec.selector.clone());
        match (change, selector) {
            (Change::Added(_) | Change::Updated { .. }, Some(selector)) => {
                of_namespace.insert(key.name.clone(), selector);
            }
            _ => {
                of_namespace.remove(&key.name);
            }
        }
        if of_namespace.is_empty() {
            self.services.remove(&key.namespace);
        }
    }

    /// A Pod is shown on a Node.
    fn came(&mut self, info: Arc<PodInfo>) {
        let before = self.cache.counted(&info.uid).cloned();
        let node = info.node.clone().unwrap_or_default();
        let seen = !self.cache.is_assumed(&info.uid);
        if seen && before.as_ref().is_some_and(|before| before.counts_as(&info)) {
            return;
        }
        self.cache.set_pod(info.clone());
        match before {
            Some(before) if looks_different(&before, &info) => self.happened(Event::PodCame),
            Some(before) if before.requests != info.requests => self.happened(Event::PodGone { node: &node }),
            Some(_) => {}
            None => self.happened(Event::PodCame),
        }
    }

    /// A Pod ended or was deleted.
    fn gone(&mut self, uid: &str) {
        self.cache.drop_nomination(uid);
        let node = self.cache.node_of(uid).cloned();
        self.cache.remove_pod(uid);
        if let Some(node) = node {
            self.happened(Event::PodGone { node: &node });
        }
    }
}

fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    phase.is_some_and(skeg_api::pod::is_terminal_phase)
}

fn truncated(message: &str) -> &str {
    let mut end = message.len().min(EVENT_MESSAGE_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}
