//! One task per Pod: it observes, asks the machine for a plan, acts, and writes the status.
//! Everything that takes time runs beside the loop and reports back to it. Upstream counterparts:
//! `pod_workers.go`, `kuberuntime_manager.go`, `status_manager.go`.

mod done;
mod probes;
mod resize;
mod runs;
mod sandbox;
mod start;
mod status;
mod stop;

use crate::machine::ephemeral::{find_container, target_of};
use crate::machine::plan::{Action, plan, stopping};
use crate::machine::resize::{Allocation, Checkpoint, Pending};
use crate::machine::{Busy, Ended, Memory, Restart, Sandbox, Sort, Volumes};
use crate::probe::{Probes, Verdict};
use crate::sources::References;
use crate::volumes::Tokens;
use crate::{Context, machine, text, volumes};
use done::{Done, PullState};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use parking_lot::Mutex;
pub use resize::read_checkpoint;
use runs::remembered;
pub use runs::wait_exit;
pub use sandbox::remove_sandbox;
use sandbox::{create_sandbox, finish};
use skeg_base::{Backoff, Timestamp};
use skeg_client::{EventType, ObjectRef, object_ref};
use skeg_runtime as runtime;
use start::Start;
use status::{is_terminal, patch, revision};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stop::Stop;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The rest of the agent's handle on a Pod's worker.
pub struct Worker {
    pub uid: String,
    references: Mutex<Arc<References>>,
    mail: Mutex<Mail>,
    runtime_changed: AtomicBool,
    sources_changed: AtomicBool,
    notify: Notify,
    memory: Mutex<Arc<Memory>>,
    grace: watch::Sender<Option<i64>>,
}

struct Mail {
    pod: Arc<Pod>,
    gone: bool,
    /// Why the Pod must go, where it takes more than it may.
    evicted: Option<String>,
    /// What the Pod has been given.
    allocation: Allocation,
    /// Why it is not given what it asks for.
    pending: Option<Pending>,
}

impl Worker {
    /// `allocation` is what an earlier agent gave the Pod.
    pub fn new(pod: Arc<Pod>, gone: bool, allocation: Option<Allocation>) -> Arc<Self> {
        let allocation = allocation.unwrap_or_else(|| Allocation::of(&pod));
        let uid = text(&pod.metadata.uid).to_owned();
        let references = Mutex::new(Arc::new(References::of_pod(machine::spec(&pod))));
        let grace = watch::Sender::new(pod.metadata.deletion_grace_period_seconds);
        Arc::new(Worker {
            uid,
            references,
            mail: Mutex::new(Mail { pod, gone, evicted: None, allocation, pending: None }),
            runtime_changed: AtomicBool::new(false),
            sources_changed: AtomicBool::new(false),
            notify: Notify::new(),
            memory: Mutex::default(),
            grace,
        })
    }

    /// What the Pod refers to.
    pub fn references(&self) -> Arc<References> {
        self.references.lock().clone()
    }

    /// Takes the Pod as it is now; returns whether it refers to anything else than before.
    pub fn deliver(&self, pod: Arc<Pod>) -> bool {
        let mut refers_anew = false;
        if machine::spec(&pod).ephemeral_containers.is_some() {
            // They may have come just now.
            let new = Arc::new(References::of_pod(machine::spec(&pod)));
            let old = std::mem::replace(&mut *self.references.lock(), new.clone());
            refers_anew = old != new;
        }
        self.set_grace(pod.metadata.deletion_grace_period_seconds);
        self.mail.lock().pod = pod;
        self.notify.notify_one();
        refers_anew
    }

    /// The Pod with what it has been given.
    pub fn allocated_pod(&self) -> Arc<Pod> {
        let mail = self.mail.lock();
        mail.allocation.apply(&mail.pod).map_or_else(|| mail.pod.clone(), Arc::new)
    }

    /// Whether the Pod asks for other sizes than it has been given.
    pub fn resizes(&self) -> bool {
        let mail = self.mail.lock();
        mail.allocation.differs(&mail.pod)
    }

    pub fn pending(&self) -> Option<Pending> {
        self.mail.lock().pending.clone()
    }

    /// Gives the Pod what it asks for in this state of it.
    pub fn allocate(&self, pod: &Pod) {
        let mut mail = self.mail.lock();
        mail.allocation = Allocation::of(pod);
        mail.pending = None;
        drop(mail);
        self.notify.notify_one();
    }

    /// Says why it does not get that, or that it asks for nothing.
    pub fn set_pending(&self, pending: Option<Pending>) {
        let mut mail = self.mail.lock();
        if mail.pending != pending {
            mail.pending = pending;
            self.notify.notify_one();
        }
    }

    /// The object does not exist any more.
    pub fn gone(&self) {
        self.mail.lock().gone = true;
        // Whoever removed it did not want to wait.
        self.set_grace(Some(0));
        self.notify.notify_one();
    }

    pub fn is_gone(&self) -> bool {
        self.mail.lock().gone
    }

    /// Tells stops that are under way of another grace, and of nothing else.
    fn set_grace(&self, grace: Option<i64>) {
        self.grace.send_if_modified(|now| std::mem::replace(now, grace) != grace);
    }

    /// The Pod takes more than it may.
    pub fn evict(&self, why: String) {
        self.mail.lock().evicted = Some(why);
        self.notify.notify_one();
    }

    pub fn runtime_changed(&self) {
        self.runtime_changed.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    /// A ConfigMap or Secret the Pod refers to changed.
    pub fn sources_changed(&self) {
        self.sources_changed.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    pub fn pod(&self) -> Arc<Pod> {
        self.mail.lock().pod.clone()
    }

    pub fn memory(&self) -> Arc<Memory> {
        self.memory.lock().clone()
    }
}

/// What the worker starts with.
pub enum Birth {
    /// A Pod seen for the first time, or one whose sandbox is lost.
    Fresh,
    /// Its sandbox was found running.
    Recovered(runtime::SandboxStatus),
    /// It must not run here.
    Rejected(Ended),
}

struct Loop {
    ctx: Arc<Context>,
    worker: Arc<Worker>,
    pod: Arc<Pod>,
    gone: bool,
    about: ObjectRef,
    qos_class: &'static str,
    memory: Memory,
    tokens: Arc<Tokens>,
    ops: JoinSet<Done>,
    probes: BTreeMap<String, (String, Probes)>,
    verdicts: mpsc::Sender<Verdict>,
    pulls: BTreeMap<String, PullState>,
    /// Runs whose crash back-off was announced.
    announced: BTreeMap<String, String>,
    sandbox_backoff: Backoff,
    volume_backoff: Backoff,
    volume_refresh_at: Option<Timestamp>,
    volumes_refreshing: bool,
    /// What they show has changed while they were made.
    volumes_stale: bool,
    stored: Option<PodStatus>,
    /// The version of the Pod that has it.
    stored_revision: u64,
    status_writing: bool,
    status_due: Option<Instant>,
    status_backoff: Backoff,
    /// What is being started is started no further.
    ending: CancellationToken,
    finishing: bool,
    finished: bool,
    allocation: Allocation,
    /// As it was last written.
    checkpoint: Checkpoint,
}

/// Runs the worker until nothing of the Pod is left.
pub async fn run(ctx: Arc<Context>, worker: Arc<Worker>, birth: Birth) {
    let (verdicts, mut inbox) = mpsc::channel(16);
    let pod = worker.pod();
    let mut it = Loop::new(ctx, worker.clone(), pod, verdicts, birth);
    loop {
        it.take_mail();
        if worker.runtime_changed.swap(false, Ordering::AcqRel) {
            it.observe().await;
        }
        if worker.sources_changed.swap(false, Ordering::AcqRel) {
            it.on_sources();
        }
        let wake = it.step();
        *worker.memory.lock() = Arc::new(it.memory.clone());
        if it.finished {
            return;
        }
        tokio::select! {
            () = worker.notify.notified() => {}
            Some(done) = it.ops.join_next() => match done {
                Ok(done) => it.complete(done),
                Err(error) => tracing::error!(uid = worker.uid, %error, "a Pod operation panicked"),
            },
            Some(verdict) = inbox.recv() => it.judge(&verdict),
            () = sleep_until(wake) => {}
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Loop {
    fn new(
        ctx: Arc<Context>,
        worker: Arc<Worker>,
        pod: Arc<Pod>,
        verdicts: mpsc::Sender<Verdict>,
        birth: Birth,
    ) -> Self {
        let qos_class = skeg_api::pod::qos_class(&serde_json::to_value(&*pod).unwrap_or_default());
        let mut memory = remembered(&pod);
        let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
        memory.start_time = Some(started.unwrap_or_else(|| ctx.clock.now_seconds()));
        if let Birth::Rejected(ended) = &birth {
            memory.ended = Some(ended.clone());
        }
        let mut it = Loop {
            about: object_ref(&*pod),
            worker,
            gone: false,
            qos_class,
            memory,
            tokens: Arc::default(),
            ops: JoinSet::new(),
            probes: BTreeMap::new(),
            verdicts,
            pulls: BTreeMap::new(),
            announced: BTreeMap::new(),
            sandbox_backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(10)),
            volume_backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(122)),
            volume_refresh_at: None,
            volumes_refreshing: false,
            volumes_stale: false,
            stored: pod.status.clone().filter(|s| s.start_time.is_some()),
            stored_revision: revision(&pod),
            status_writing: false,
            status_due: None,
            status_backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(30)),
            ending: CancellationToken::new(),
            finishing: false,
            finished: false,
            allocation: Allocation::default(),
            checkpoint: read_checkpoint(&ctx, text(&pod.metadata.uid)).unwrap_or_default(),
            ctx,
            pod,
        };
        it.take_sizes();
        it.memory.terminal_stored = it.stored.as_ref().is_some_and(is_terminal);
        match birth {
            Birth::Recovered(sandbox) => {
                it.recover_sizes();
                it.recover(sandbox);
            }
            Birth::Fresh | Birth::Rejected(_) => it.lose_runs(),
        }
        it
    }

    fn now(&self) -> Timestamp {
        self.ctx.clock.now()
    }

    fn take_sizes(&mut self) {
        let mail = self.worker.mail.lock();
        let (pod, allocation, pending) = (mail.pod.clone(), mail.allocation.clone(), mail.pending.clone());
        drop(mail);
        self.take_allocation(pod, allocation);
        let new = pending.clone().filter(|new| self.memory.resize.pending.as_ref() != Some(new));
        self.memory.resize.pending = pending;
        if let Some(Pending { reason, message, .. }) = new {
            self.resize_event(EventType::Warning, &format!("Resize{reason}"), reason, &message);
        }
    }

    fn take_mail(&mut self) {
        self.take_sizes();
        let mail = self.worker.mail.lock();
        self.gone = mail.gone;
        let evicted = mail.evicted.clone().filter(|_| self.memory.ended.is_none());
        drop(mail);
        self.look_at_shown();
        if let Some(message) = evicted {
            self.event(EventType::Warning, machine::EVICTED, &message);
            self.memory.ended = Some(Ended { phase: "Failed", reason: machine::EVICTED.into(), message });
        }
    }

    /// Plans and acts until there is nothing to do now; gives the time of the next step.
    fn step(&mut self) -> Option<Instant> {
        self.manage_probes();
        self.show_backoffs();
        self.settle_resize();
        self.save_sizes();
        let now = self.now();
        let mut plan = plan(&self.pod, self.gone, &self.memory, now);
        if let [Action::End(ended)] = &plan.actions[..] {
            self.event(EventType::Normal, &ended.reason.clone(), &ended.message.clone());
            self.memory.ended = Some(ended.clone());
            plan = machine::plan::plan(&self.pod, self.gone, &self.memory, now);
        }
        if plan.ending {
            self.memory.ending_since.get_or_insert(now);
            self.ending.cancel();
        }
        for action in plan.actions {
            self.act(action);
        }
        if let Some(at) = self.volume_refresh_at.filter(|_| self.memory.volumes == Volumes::Ready) {
            if at <= now {
                self.refresh_volumes();
            } else {
                plan.wake_at = Some(plan.wake_at.map_or(at, |w| w.min(at)));
            }
        }
        for at in self.pulls.values().filter_map(|p| p.switch_at) {
            plan.wake_at = Some(plan.wake_at.map_or(at, |w| w.min(at)));
        }
        let wake = plan.wake_at.map(|at| {
            let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
            Instant::now() + wait
        });
        match (wake, self.consider_status()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::PrepareVolumes => {
                self.memory.volumes = Volumes::Preparing;
                self.spawn_volumes();
            }
            Action::CreateSandbox => {
                self.memory.sandbox = Sandbox::Creating;
                for message in crate::container::dns_limits(&self.ctx, &self.pod) {
                    self.event(EventType::Warning, "DNSConfigForming", &message);
                }
                self.memory.resize.group = Some(crate::security::pod_resources(&self.pod));
                let (ctx, pod) = (self.ctx.clone(), self.pod.clone());
                self.ops.spawn(async move { Done::Sandbox(create_sandbox(&ctx, &pod).await) });
            }
            Action::RemoveSandbox => {
                self.memory.sandbox = Sandbox::Removing;
                let (ctx, uid) = (self.ctx.clone(), self.worker.uid.clone());
                let holders = self.memory.containers.values().flat_map(|c| [&c.current, &c.previous]);
                let ids: Vec<String> = holders.flatten().map(|run| run.id.clone()).collect();
                self.ops.spawn(async move { Done::Removed(remove_sandbox(&ctx, &uid, &ids).await) });
            }
            Action::Start { container } => self.start(&container),
            Action::Stop { container, message, grace, again } => {
                if let Some(known) = self.memory.containers.get_mut(&container) {
                    known.again = again;
                }
                let Some(stop) = self.stop(&container, message, grace) else { return };
                self.ops.spawn(async move { Done::Stopped { container, result: stop.run().await } });
            }
            Action::PreStop { container, grace } => {
                let Some(stop) = self.stop(&container, stopping(&container), grace) else { return };
                self.ops.spawn(async move {
                    stop.tell();
                    stop.pre_stop().await;
                    Done::PreStopped { container }
                });
            }
            Action::Resize => self.resize(),
            Action::End(ended) => self.memory.ended = Some(ended),
            Action::Finish => self.finish(),
        }
    }

    fn spec_of(&self, name: &str) -> Option<Container> {
        find_container(machine::spec(&self.pod), name)
    }

    fn start(&mut self, name: &str) {
        let Some(spec) = self.spec_of(name) else { return };
        let target = target_of(machine::spec(&self.pod), name).map(|target| {
            let run = self.memory.container(target).and_then(|known| known.current.as_ref());
            run.map(|run| run.id.clone()).ok_or_else(|| format!("unable to find target container {target}"))
        });
        let known = self.memory.containers.entry(name.to_owned()).or_default();
        let attempt = known.next_attempt();
        self.memory.resize.actuated.insert(name.to_owned(), spec.resources.clone().unwrap_or_default());
        if let Some(run) = known.current.as_ref().filter(|r| r.is_exited())
            && let Some(finished) = run.finished_at
            && known.waiting.is_none()
            && known.again != Some(Restart::AtOnce)
        {
            known.backoff = Some(known.next_backoff(finished));
        }
        known.busy = Some(Busy::Starting);
        known.retry_at = None;
        // What an interrupted start left gives way; else the run before the last one does.
        let interrupted = known.current.as_ref().filter(|run| run.is_created());
        let old_run = interrupted.or(known.previous.as_ref()).cloned();
        let start = Start {
            ctx: self.ctx.clone(),
            pod: self.pod.clone(),
            about: self.about.clone(),
            sort: Sort::of(machine::spec(&self.pod), name),
            container: spec,
            target,
            attempt,
            pod_ips: self.memory.pod_ips.clone(),
            qos_class: self.qos_class,
            old_run,
            ending: self.ending.clone(),
        };
        let container = name.to_owned();
        self.ops
            .spawn(async move { Done::Started { container, attempt, outcome: Box::new(start.run().await) } });
    }

    /// Begins to stop a container.
    fn stop(&mut self, name: &str, message: String, grace: Option<i64>) -> Option<Stop> {
        let spec = self.spec_of(name)?;
        let known = self.memory.containers.get_mut(name)?;
        let run = known.current.clone()?;
        let hooked = known.hooked;
        known.busy = Some(Busy::Stopping);
        if let Some((_, probes)) = self.probes.get_mut(name) {
            probes.keep_readiness();
        }
        let own = machine::plan::own_grace(machine::spec(&self.pod));
        Some(Stop {
            ctx: self.ctx.clone(),
            worker: self.worker.clone(),
            about: self.about.clone(),
            field_path: field_path(machine::spec(&self.pod), name),
            container: spec,
            began: Instant::now(),
            run,
            pod_ip: self.memory.pod_ips.first().cloned().unwrap_or_default(),
            message,
            grace: grace.unwrap_or(own),
            hooked,
            leaving: self.gone || machine::is_deleting(&self.pod),
        })
    }

    fn spawn_volumes(&mut self) {
        let (ctx, pod, tokens) = (self.ctx.clone(), self.pod.clone(), self.tokens.clone());
        let again = self.volumes_refreshing;
        self.ops.spawn(async move { Done::Volumes(volumes::prepare(&ctx, &pod, &tokens, again).await) });
    }

    fn refresh_volumes(&mut self) {
        match self.memory.volumes {
            Volumes::Ready if !self.volumes_refreshing => {
                self.volume_refresh_at = None;
                self.volumes_refreshing = true;
                self.spawn_volumes();
            }
            Volumes::Missing | Volumes::Failed { .. } => {}
            _ => self.volumes_stale = true,
        }
    }

    /// What volumes and environments are made from has changed.
    fn on_sources(&mut self) {
        self.refresh_volumes();
        if let Volumes::Failed { .. } = self.memory.volumes {
            self.memory.volumes = Volumes::Missing;
        }
        // A missing key may be there now.
        for known in self.memory.containers.values_mut() {
            if known.waiting.as_ref().is_some_and(|w| w.reason == "CreateContainerConfigError") {
                known.retry_at = None;
            }
        }
    }

    fn finish(&mut self) {
        if self.finishing || self.status_writing {
            return;
        }
        self.finishing = true;
        let last = self.status();
        let last = (!self.gone && self.stored.as_ref() != Some(&last))
            .then(|| patch(&self.worker.uid, self.stored.as_ref(), &last));
        let (ctx, pod, gone) = (self.ctx.clone(), self.pod.clone(), self.gone);
        self.ops.spawn(async move { Done::Finished(finish(&ctx, &pod, gone, last).await) });
    }

    fn event(&self, kind: EventType, reason: &str, message: &str) {
        self.ctx.recorder.event(&self.about, kind, reason, message);
    }

    fn container_event(&self, container: &str, kind: EventType, reason: &str, message: &str) {
        let path = field_path(machine::spec(&self.pod), container);
        self.ctx.recorder.event_at(&self.about, &path, kind, reason, message);
    }
}

/// `spec.containers{web}`
fn field_path(spec: &k8s_openapi::api::core::v1::PodSpec, container: &str) -> String {
    format!("spec.{}{{{container}}}", Sort::of(spec, container).list())
}
