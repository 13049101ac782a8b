//! One task per Pod: it observes, asks the machine for a plan, acts, and writes the status.
//! Everything that takes time runs beside the loop and reports back to it. Upstream counterparts:
//! `pod_workers.go`, `kuberuntime_manager.go`, `status_manager.go`.

use crate::container::{self, Inputs, LABEL_IMAGE, LABEL_IMAGE_ID};
use crate::hook::{self, Place};
use crate::image::{self, ImageFailure};
use crate::machine::plan::{Action, plan};
use crate::machine::status::{backoff_message, status};
use crate::machine::{self, Busy, ContainerMemory, Ended, Memory, Run, Sandbox, Volumes, Waiting};
use crate::network::HostPortMapping;
use crate::probe::{self, Kind, Probes, Subject, Verdict};
use crate::sources::References;
use crate::volumes::{self, Tokens, VolumeError};
use crate::{Context, text};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skeg_base::{Backoff, Timestamp};
use skeg_client::{DeleteOptions, EventType, ObjectRef, PatchKind, Preconditions, object_ref};
use skeg_runtime::{self as runtime, ContainerState, ContainerStatus};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Changes that nobody waits for are written together after this long.
const STATUS_DELAY: Duration = Duration::from_millis(150);
/// While a Pod ends, its last status says it all.
const STATUS_DELAY_ENDING: Duration = Duration::from_secs(1);
/// How long a failed pull shows as such before it shows as backing off.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(1);
const PULL_BACKOFF_MIN: Duration = Duration::from_secs(10);
const PULL_BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A configuration error is looked at again after this, or when what it refers to changes.
const CONFIG_RETRY: Duration = Duration::from_secs(10);
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// What a process gets at least after its preStop hook used the grace up.
const GRACE_AFTER_HOOK: Duration = Duration::from_secs(2);
/// A process that SIGKILL does not end so soon is stuck in the kernel; tried again later.
const KILL_WAIT: Duration = Duration::from_secs(30);
const TERMINATION_MESSAGE_BYTES_MAX: usize = 4096;
const TERMINATION_LOG_BYTES_MAX: usize = 2048;
const TERMINATION_LOG_LINES_MAX: usize = 80;

/// The rest of the agent's handle on a Pod's worker.
pub struct Worker {
    pub uid: String,
    pub references: References,
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
}

impl Worker {
    pub fn new(pod: Arc<Pod>, gone: bool) -> Arc<Self> {
        let uid = text(&pod.metadata.uid).to_owned();
        let references = References::of_pod(machine::spec(&pod));
        let grace = watch::Sender::new(pod.metadata.deletion_grace_period_seconds);
        Arc::new(Worker {
            uid,
            references,
            mail: Mutex::new(Mail { pod, gone, evicted: None }),
            runtime_changed: AtomicBool::new(false),
            sources_changed: AtomicBool::new(false),
            notify: Notify::new(),
            memory: Mutex::default(),
            grace,
        })
    }

    pub fn deliver(&self, pod: Arc<Pod>) {
        self.grace.send_replace(pod.metadata.deletion_grace_period_seconds);
        self.mail.lock().pod = pod;
        self.notify.notify_one();
    }

    /// The object does not exist any more.
    pub fn gone(&self) {
        self.mail.lock().gone = true;
        // Whoever removed it did not want to wait.
        self.grace.send_replace(Some(0));
        self.notify.notify_one();
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

enum Done {
    Sandbox(Result<Vec<String>, String>),
    Removed(Result<(), String>),
    Volumes(Result<Option<Timestamp>, VolumeError>),
    Started { container: String, attempt: u32, outcome: Box<StartOutcome> },
    Stopped { container: String, result: Result<(), String> },
    Status { written: Box<PodStatus>, result: skeg_client::Result<()> },
    Finished(Result<(), String>),
}

enum StartOutcome {
    Running(Run),
    /// The image could not be obtained.
    Image(ImageFailure),
    /// `CreateContainerConfigError` and the like: nothing was created.
    NotCreated {
        reason: &'static str,
        message: String,
    },
    /// It was created but did not start.
    NotStarted {
        run: Run,
        message: String,
    },
    HookFailed {
        run: Run,
        message: String,
    },
}

struct PullState {
    delay: Duration,
    /// When it begins to show as backing off.
    switch_at: Option<Timestamp>,
    message: String,
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
    stored: Option<PodStatus>,
    status_writing: bool,
    status_due: Option<Instant>,
    status_backoff: Backoff,
    finishing: bool,
    finished: bool,
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
            stored: pod.status.clone().filter(|s| s.start_time.is_some()),
            status_writing: false,
            status_due: None,
            status_backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(30)),
            finishing: false,
            finished: false,
            ctx,
            pod,
        };
        it.memory.terminal_stored = it.stored.as_ref().is_some_and(is_terminal);
        match birth {
            Birth::Recovered(sandbox) => it.recover(sandbox),
            Birth::Fresh | Birth::Rejected(_) => it.lose_runs(),
        }
        it
    }

    fn now(&self) -> Timestamp {
        self.ctx.clock.now()
    }

    fn take_mail(&mut self) {
        let mail = self.worker.mail.lock();
        self.pod = mail.pod.clone();
        self.gone = mail.gone;
        let evicted = mail.evicted.clone().filter(|_| self.memory.ended.is_none());
        drop(mail);
        if let Some(message) = evicted {
            self.event(EventType::Warning, machine::EVICTED, &message);
            self.memory.ended = Some(Ended { phase: "Failed", reason: machine::EVICTED.into(), message });
        }
    }

    /// Plans and acts until there is nothing to do now; gives the time of the next step.
    fn step(&mut self) -> Option<Instant> {
        self.manage_probes();
        self.show_backoffs();
        let now = self.now();
        let mut plan = plan(&self.pod, self.gone, &self.memory, now);
        if let [Action::End(ended)] = &plan.actions[..] {
            self.event(EventType::Normal, &ended.reason.clone(), &ended.message.clone());
            self.memory.ended = Some(ended.clone());
            plan = machine::plan::plan(&self.pod, self.gone, &self.memory, now);
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

    // Actions.

    fn act(&mut self, action: Action) {
        match action {
            Action::PrepareVolumes => {
                self.memory.volumes = Volumes::Preparing;
                self.spawn_volumes();
            }
            Action::CreateSandbox => {
                self.memory.sandbox = Sandbox::Creating;
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
            Action::Stop { container, message, grace } => self.stop(&container, message, grace),
            Action::End(ended) => self.memory.ended = Some(ended),
            Action::Finish => self.finish(),
        }
    }

    fn spec_of(&self, name: &str) -> Option<Container> {
        machine::all_containers(machine::spec(&self.pod)).find(|c| c.name == name).cloned()
    }

    fn start(&mut self, name: &str) {
        let Some(spec) = self.spec_of(name) else { return };
        let known = self.memory.containers.entry(name.to_owned()).or_default();
        let attempt = known.next_attempt();
        if let Some(run) = known.current.as_ref().filter(|r| r.is_exited())
            && let Some(finished) = run.finished_at
            && known.waiting.is_none()
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
            is_init: machine::init_containers(machine::spec(&self.pod)).iter().any(|c| c.name == name),
            container: spec,
            attempt,
            pod_ips: self.memory.pod_ips.clone(),
            qos_class: self.qos_class,
            old_run,
        };
        let container = name.to_owned();
        self.ops
            .spawn(async move { Done::Started { container, attempt, outcome: Box::new(start.run().await) } });
    }

    fn stop(&mut self, name: &str, message: String, grace: Option<i64>) {
        let Some(spec) = self.spec_of(name) else { return };
        let Some(known) = self.memory.containers.get_mut(name) else { return };
        let Some(run) = known.current.clone() else { return };
        known.busy = Some(Busy::Stopping);
        self.probes.remove(name);
        let own = machine::spec(&self.pod).termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS);
        let stop = Stop {
            ctx: self.ctx.clone(),
            worker: self.worker.clone(),
            about: self.about.clone(),
            container: spec,
            run,
            pod_ip: self.memory.pod_ips.first().cloned().unwrap_or_default(),
            message,
            grace: grace.unwrap_or(own),
            leaving: self.gone || machine::is_deleting(&self.pod),
        };
        let container = name.to_owned();
        self.ops.spawn(async move { Done::Stopped { container, result: stop.run().await } });
    }

    fn spawn_volumes(&mut self) {
        let (ctx, pod, tokens) = (self.ctx.clone(), self.pod.clone(), self.tokens.clone());
        self.ops.spawn(async move { Done::Volumes(volumes::prepare(&ctx, &pod, &tokens).await) });
    }

    fn refresh_volumes(&mut self) {
        self.volume_refresh_at = None;
        if !self.volumes_refreshing && self.memory.volumes == Volumes::Ready {
            self.volumes_refreshing = true;
            self.spawn_volumes();
        }
    }

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

    // What comes back.

    fn complete(&mut self, done: Done) {
        let now = self.now();
        let after = |wait: Duration| now.checked_add(wait).unwrap_or(Timestamp::MAX);
        match done {
            Done::Sandbox(Ok(ips)) => {
                self.sandbox_backoff.reset();
                self.memory.sandbox = Sandbox::Ready;
                self.memory.pod_ips = ips;
                // What happened meanwhile was not looked at.
                self.worker.runtime_changed.store(true, Ordering::Release);
            }
            Done::Sandbox(Err(why)) => {
                let message = format!("Failed to create pod sandbox: {why}");
                self.event(EventType::Warning, "FailedCreatePodSandBox", &message);
                self.memory.sandbox = Sandbox::Failed { retry_at: after(self.sandbox_backoff.next()) };
            }
            Done::Removed(result) => {
                if let Err(why) = result {
                    self.event(EventType::Warning, "FailedKillPod", &format!("error killing pod: {why}"));
                    let wait = self.sandbox_backoff.next();
                    self.memory.sandbox = Sandbox::Removing;
                    let (ctx, uid) = (self.ctx.clone(), self.worker.uid.clone());
                    self.ops.spawn(async move {
                        tokio::time::sleep(wait).await;
                        Done::Removed(remove_sandbox(&ctx, &uid, &[]).await)
                    });
                } else {
                    self.memory.sandbox = Sandbox::Missing;
                    self.lose_runs();
                }
            }
            Done::Volumes(Ok(refresh_at)) => {
                self.volumes_refreshing = false;
                self.volume_backoff.reset();
                self.volume_refresh_at = refresh_at;
                self.memory.volumes = Volumes::Ready;
            }
            Done::Volumes(Err(error)) => {
                self.event(EventType::Warning, "FailedMount", &error.to_string());
                let retry_at = after(self.volume_backoff.next());
                if self.volumes_refreshing {
                    self.volumes_refreshing = false;
                    self.volume_refresh_at = Some(retry_at);
                } else {
                    self.memory.volumes = Volumes::Failed { retry_at };
                }
            }
            Done::Started { container, attempt, outcome } => self.started(&container, attempt, *outcome, now),
            Done::Stopped { container, result } => {
                if let Some(known) = self.memory.containers.get_mut(&container) {
                    known.busy = None;
                    if let Err(why) = result {
                        known.retry_at = Some(after(Duration::from_secs(5)));
                        self.event(
                            EventType::Warning,
                            "FailedKillPod",
                            &format!("error killing container: {why}"),
                        );
                    }
                }
                self.worker.runtime_changed.store(true, Ordering::Release);
            }
            Done::Status { written, result } => self.status_written(*written, result),
            Done::Finished(Ok(())) => self.finished = true,
            Done::Finished(Err(why)) => {
                tracing::warn!(pod = self.about.name, why, "cannot finish a Pod");
                self.finishing = false;
                let (worker, wait) = (self.worker.clone(), self.status_backoff.next());
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    worker.notify.notify_one();
                });
            }
        }
    }

    fn started(&mut self, name: &str, attempt: u32, outcome: StartOutcome, now: Timestamp) {
        let after = |wait: Duration| now.checked_add(wait).unwrap_or(Timestamp::MAX);
        let image = self.spec_of(name).and_then(|c| c.image).unwrap_or_default();
        let known = self.memory.containers.entry(name.to_owned()).or_default();
        known.busy = None;
        let replace = |known: &mut ContainerMemory, run: Run| {
            let same = known.current.as_ref().is_some_and(|old| old.attempt == run.attempt);
            if !same {
                known.previous = known.current.take();
            }
            known.current = Some(run);
            known.waiting = None;
        };
        let mut events: Vec<(EventType, &str, String)> = Vec::new();
        match outcome {
            StartOutcome::Running(run) => {
                self.pulls.remove(name);
                // It may have ended already, which the runtime will have told.
                if !known.current.as_ref().is_some_and(|old| old.id == run.id && old.is_exited()) {
                    replace(known, run);
                } else {
                    known.waiting = None;
                }
                self.worker.runtime_changed.store(true, Ordering::Release);
            }
            StartOutcome::Image(failure) => {
                let wait = |reason: &str, message: String| Waiting { reason: reason.to_owned(), message };
                if failure.pulled {
                    let delay = self
                        .pulls
                        .get(name)
                        .map_or(PULL_BACKOFF_MIN, |p| (p.delay * 2).min(PULL_BACKOFF_MAX));
                    known.retry_at = Some(after(delay));
                    let message = format!(
                        "Back-off pulling image \"{image}\": {}: {}",
                        failure.reason, failure.message
                    );
                    let state = PullState { delay, switch_at: Some(after(PULL_ERROR_SHOWN)), message };
                    self.pulls.insert(name.to_owned(), state);
                    events.push((
                        EventType::Warning,
                        "Failed",
                        format!("Failed to pull image \"{image}\": {}", failure.message),
                    ));
                } else {
                    known.retry_at = Some(after(CONFIG_RETRY));
                    let reason = match failure.reason {
                        "ErrImageNeverPull" => "ErrImageNeverPull",
                        _ => "InspectFailed",
                    };
                    events.push((EventType::Warning, reason, failure.message.clone()));
                }
                events.push((EventType::Warning, "Failed", format!("Error: {}", failure.reason)));
                known.waiting = Some(wait(failure.reason, failure.message));
            }
            StartOutcome::NotCreated { reason, message } => {
                events.push((EventType::Warning, "Failed", format!("Error: {message}")));
                known.retry_at = Some(after(CONFIG_RETRY));
                known.waiting = Some(Waiting { reason: reason.to_owned(), message });
            }
            StartOutcome::NotStarted { run, message } => {
                events.push((EventType::Warning, "Failed", format!("Error: {message}")));
                debug_assert_eq!(run.attempt, attempt);
                replace(known, run);
            }
            StartOutcome::HookFailed { run, message } => {
                events.push((EventType::Warning, "FailedPostStartHook", message));
                replace(known, run);
                known.probes.kill = Some("FailedPostStartHook".to_owned());
            }
        }
        for (kind, reason, message) in events {
            self.container_event(name, kind, reason, &message);
        }
    }

    /// Reads the runtime's view of the sandbox.
    async fn observe(&mut self) {
        let looks = matches!(self.memory.sandbox, Sandbox::Ready | Sandbox::Dead | Sandbox::Failed { .. });
        if !looks {
            return;
        }
        match self.ctx.runtime.sandbox(&self.worker.uid).await {
            Ok(sandbox) => {
                let lost = !sandbox.ready;
                self.see(sandbox);
                if lost {
                    self.memory.sandbox = Sandbox::Dead;
                    self.lose_runs();
                    self.event(
                        EventType::Normal,
                        "SandboxChanged",
                        "Pod sandbox changed, it will be killed and re-created.",
                    );
                }
            }
            Err(runtime::Error::NoSandbox(_)) => {
                self.memory.sandbox = Sandbox::Missing;
                self.lose_runs();
            }
            Err(error) => tracing::warn!(uid = self.worker.uid, %error, "cannot read a sandbox"),
        }
    }

    fn see(&mut self, sandbox: runtime::SandboxStatus) {
        let mut by_name: BTreeMap<String, Vec<ContainerStatus>> = BTreeMap::new();
        for status in sandbox.containers {
            by_name.entry(status.name.clone()).or_default().push(status);
        }
        for (name, mut runs) in by_name {
            let Some(spec) = self.spec_of(&name) else { continue };
            runs.sort_by_key(|run| run.attempt);
            let known = self.memory.containers.entry(name.clone()).or_default();
            for status in runs {
                let newest = known.current.as_ref();
                if newest.is_some_and(|c| c.attempt > status.attempt) {
                    if known.previous.as_ref().is_none_or(|p| p.attempt <= status.attempt) {
                        known.previous =
                            Some(read_run(&self.ctx, &self.pod, &spec, &status, known.previous.as_ref()));
                    }
                    continue;
                }
                let same = newest.is_some_and(|c| c.id == status.id);
                let run = read_run(&self.ctx, &self.pod, &spec, &status, newest.filter(|_| same));
                if !same && known.current.as_ref().is_some_and(|c| c.attempt < status.attempt) {
                    known.previous = known.current.take();
                }
                known.current = Some(run);
            }
        }
    }

    /// The sandbox is gone, and with it whatever ran in it.
    fn lose_runs(&mut self) {
        let now = self.now();
        for known in self.memory.containers.values_mut() {
            if let Some(run) = known.current.as_mut().filter(|run| !run.is_exited()) {
                run.state = ContainerState::Exited;
                run.exit_code = 137;
                run.finished_at = Some(now);
                run.reason = "ContainerStatusUnknown".into();
                run.message = "The container could not be located when the pod was terminated".into();
            }
        }
    }

    fn recover(&mut self, sandbox: runtime::SandboxStatus) {
        let ready = sandbox.ready;
        self.see(sandbox);
        if !ready {
            self.memory.sandbox = Sandbox::Dead;
            self.lose_runs();
            return;
        }
        for container in machine::all_containers(machine::spec(&self.pod)) {
            if let Some(known) = self.memory.containers.get_mut(&container.name)
                && let Some(run) = known.current.as_ref().filter(|run| run.is_running())
            {
                (known.probes.started, known.probes.ready) =
                    last_told(self.stored.as_ref(), container, &run.id);
            }
        }
        // Attaching again gives the same address, and repairs what a crash left half done.
        self.memory.sandbox = Sandbox::Recovering;
        let (ctx, pod) = (self.ctx.clone(), self.pod.clone());
        self.ops.spawn(async move { Done::Sandbox(create_sandbox(&ctx, &pod).await) });
    }

    // Probes.

    fn manage_probes(&mut self) {
        let spec = machine::spec(&self.pod).clone();
        let now = self.now();
        let running_pod = self.memory.sandbox == Sandbox::Ready;
        for container in machine::all_containers(&spec) {
            let Some(known) = self.memory.containers.get_mut(&container.name) else { continue };
            let run = known.current.clone().filter(|run| running_pod && run.is_running());
            let Some(run) = run.filter(|_| known.busy.is_none()) else {
                if !known.is_running() {
                    known.probes = machine::Probes::default();
                    self.probes.remove(&container.name);
                }
                continue;
            };
            if self.probes.get(&container.name).is_some_and(|(id, _)| *id == run.id)
                || known.probes.kill.is_some()
            {
                continue;
            }
            let (started, ready) = last_told(self.stored.as_ref(), container, &run.id);
            (known.probes.started, known.probes.ready) = (started, ready);
            let init_only = spec.init_containers.iter().flatten().any(|c| c.name == container.name)
                && !skeg_api::predicates::is_sidecar(container);
            if init_only {
                continue;
            }
            let since = run.started_at.map(|at| now.duration_since(at));
            let subject = Subject {
                runtime: self.ctx.runtime.clone(),
                recorder: self.ctx.recorder.clone(),
                about: self.about.clone(),
                field_path: field_path(&spec, &container.name),
                uid: self.worker.uid.clone(),
                id: run.id.clone(),
                container: container.clone(),
                pod_ip: self.memory.pod_ips.first().cloned().unwrap_or_default(),
            };
            let running_for = since.and_then(|d| Duration::try_from(d).ok()).unwrap_or_default();
            let probes = Probes::start(subject, running_for, started, self.verdicts.clone());
            self.probes.insert(container.name.clone(), (run.id, probes));
        }
    }

    fn judge(&mut self, verdict: &Verdict) {
        let Some((id, probes)) = self.probes.get(&verdict.container) else { return };
        if *id != verdict.id {
            return;
        }
        let Some(spec) = self.spec_of(&verdict.container) else { return };
        let Some(known) = self.memory.containers.get_mut(&verdict.container) else { return };
        match (verdict.kind, verdict.healthy) {
            (Kind::Startup, true) => {
                known.probes.started = true;
                probes.startup_passed();
            }
            (Kind::Readiness, healthy) => known.probes.ready = healthy,
            (Kind::Liveness, true) => {}
            (kind, false) => {
                known.probes.kill = Some(probe::kill_message(&spec, kind));
                known.probes.kill_grace = probe::grace(&spec, kind);
            }
        }
    }

    /// Failed pulls begin to show as backing off, and crashes are announced once.
    fn show_backoffs(&mut self) {
        let now = self.now();
        let mut events = Vec::new();
        for (name, pull) in &mut self.pulls {
            if pull.switch_at.is_some_and(|at| at <= now) {
                pull.switch_at = None;
                if let Some(known) = self.memory.containers.get_mut(name)
                    && known.busy.is_none()
                {
                    known.waiting =
                        Some(Waiting { reason: "ImagePullBackOff".into(), message: pull.message.clone() });
                    let short = pull.message.split("\": ").next().unwrap_or_default();
                    events.push((name.clone(), EventType::Normal, "BackOff", format!("{short}\"")));
                    events.push((
                        name.clone(),
                        EventType::Warning,
                        "Failed",
                        "Error: ImagePullBackOff".to_owned(),
                    ));
                }
            }
        }
        let spec = machine::spec(&self.pod);
        if !machine::is_finished(&self.pod, &self.memory) && !machine::is_deleting(&self.pod) && !self.gone {
            for container in machine::all_containers(spec) {
                let Some(known) = self.memory.containers.get(&container.name) else { continue };
                let idle = known.busy.is_none();
                let Some(run) = known.current.as_ref().filter(|run| idle && run.is_exited()) else {
                    continue;
                };
                let held = run.finished_at.and_then(|at| known.restart_at(at)).is_some_and(|at| at > now);
                let is_init = machine::init_containers(spec).iter().any(|c| c.name == container.name);
                let again = machine::restarts(spec, container, is_init, run.exit_code);
                if held && again && self.announced.get(&container.name) != Some(&run.id) {
                    self.announced.insert(container.name.clone(), run.id.clone());
                    tracing::debug!(message = backoff_message(&self.pod, container, known), "crash loop");
                    let message = format!(
                        "Back-off restarting failed container {} in pod {}_{}({})",
                        container.name, self.about.name, self.about.namespace, self.about.uid
                    );
                    events.push((container.name.clone(), EventType::Warning, "BackOff", message));
                }
            }
        }
        for (name, kind, reason, message) in events {
            self.container_event(&name, kind, reason, &message);
        }
    }

    // Status.

    fn status(&self) -> PodStatus {
        let host_ips: Vec<String> = self.ctx.config.addresses.iter().map(ToString::to_string).collect();
        let host_network = machine::spec(&self.pod).host_network == Some(true);
        let mut out = status(
            &self.pod,
            self.stored.as_ref(),
            &self.memory,
            &host_ips,
            self.qos_class,
            self.ctx.clock.now_seconds(),
        );
        if host_network && out.pod_ip.is_none() && !self.memory.pod_ips.is_empty() {
            out.pod_ip = host_ips.first().cloned();
        }
        out
    }

    /// Writes the status now, or says when.
    fn consider_status(&mut self) -> Option<Instant> {
        if self.status_writing || self.gone || self.finishing {
            return None;
        }
        let next = self.status();
        if self.stored.as_ref() == Some(&next) {
            self.status_due = None;
            self.memory.terminal_stored = is_terminal(&next);
            return None;
        }
        let ending = machine::is_deleting(&self.pod);
        let now = Instant::now();
        let due = if !ending && urgent(self.stored.as_ref(), &next) && self.status_backoff.failures() == 0 {
            now
        } else {
            *self.status_due.get_or_insert(now + if ending { STATUS_DELAY_ENDING } else { STATUS_DELAY })
        };
        if due > now {
            return Some(due);
        }
        self.status_due = None;
        self.status_writing = true;
        let body = patch(&self.worker.uid, self.stored.as_ref(), &next);
        let (ctx, ns, name) = (self.ctx.clone(), self.about.namespace.clone(), self.about.name.clone());
        self.ops.spawn(async move {
            let api = ctx.client.api::<Pod>();
            let result = api.patch(&ns, &name, PatchKind::Strategic, &body, Some("status")).await.map(drop);
            Done::Status { written: Box::new(next), result }
        });
        None
    }

    fn status_written(&mut self, written: PodStatus, result: skeg_client::Result<()>) {
        self.status_writing = false;
        match result {
            Ok(()) => {
                self.status_backoff.reset();
                self.memory.terminal_stored = is_terminal(&written);
                self.stored = Some(written);
            }
            // Gone, or another Pod of that name: the informer will say so.
            Err(error) if error.is_not_found() || error.is_conflict() => {
                self.status_due = Some(Instant::now() + self.status_backoff.next());
            }
            Err(error) => {
                tracing::warn!(pod = self.about.name, %error, "cannot write a Pod's status");
                self.status_due = Some(Instant::now() + self.status_backoff.next());
            }
        }
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
    let is_init = machine::init_containers(spec).iter().any(|c| c.name == container);
    format!("spec.{}{{{container}}}", if is_init { "initContainers" } else { "containers" })
}

/// Whether a running container counts as started and as ready before its probes say: what the API
/// was last told of this very run still holds after a restart of the agent.
fn last_told(stored: Option<&PodStatus>, container: &Container, id: &str) -> (bool, bool) {
    let before = stored.and_then(|status| shown(status, &container.name, id));
    let started = container.startup_probe.is_none() || before.is_some_and(|(started, _)| started);
    let ready = container.readiness_probe.is_none() || before.is_some_and(|(_, ready)| ready);
    (started, ready)
}

/// What the status said of a run: started, ready.
fn shown(status: &PodStatus, name: &str, id: &str) -> Option<(bool, bool)> {
    let all =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let found = all.into_iter().find(|s| s.name == name)?;
    let same = found.container_id.as_deref()?.ends_with(id);
    same.then(|| (found.started == Some(true), found.ready))
}

fn is_terminal(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// Changes that somebody is likely to wait for.
fn urgent(old: Option<&PodStatus>, new: &PodStatus) -> bool {
    let ready = |s: &PodStatus| {
        let found = s.conditions.iter().flatten().find(|c| c.type_ == "Ready");
        found.is_some_and(|c| c.status == "True")
    };
    let states = |s: &PodStatus| -> Vec<(String, Option<String>, bool)> {
        let all = s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten());
        all.into_iter()
            .map(|c| {
                let state = c.state.clone().unwrap_or_default();
                let waiting = state.waiting.and_then(|w| w.reason);
                let waiting = waiting.filter(|r| r != "ContainerCreating" && r != "PodInitializing");
                (c.name.clone(), waiting, state.terminated.is_some())
            })
            .collect()
    };
    match old {
        None => new.phase.as_deref() != Some("Pending") || ready(new),
        Some(old) => {
            (old.phase != new.phase && is_terminal(new))
                || ready(old) != ready(new)
                || states(old) != states(new)
        }
    }
}

/// A strategic merge patch from what is stored to what is true.
fn patch(uid: &str, old: Option<&PodStatus>, new: &PodStatus) -> Value {
    let mut status = serde_json::to_value(new).unwrap_or_default();
    if let (Some(old), Some(fields)) = (old, status.as_object_mut()) {
        // What is not said any more has to be taken back.
        let said = [
            ("reason", old.reason.is_some() && new.reason.is_none()),
            ("message", old.message.is_some() && new.message.is_none()),
            ("podIP", old.pod_ip.is_some() && new.pod_ip.is_none()),
            ("podIPs", old.pod_ips.is_some() && new.pod_ips.is_none()),
        ];
        for (field, cleared) in said {
            if cleared {
                fields.insert(field.to_owned(), Value::Null);
            }
        }
        // Lists of addresses merge by address: another one replaces the list.
        if old.pod_ips.is_some()
            && old.pod_ips != new.pod_ips
            && let Some(Value::Array(list)) = fields.get_mut("podIPs")
        {
            list.push(json!({"$patch": "replace"}));
        }
        // Conditions carry their removed fields as nulls.
        if let Some(Value::Array(conditions)) = fields.get_mut("conditions") {
            for condition in conditions {
                if let Some(fields) = condition.as_object_mut() {
                    for field in ["reason", "message"] {
                        fields.entry(field).or_insert(Value::Null);
                    }
                }
            }
        }
    }
    json!({"metadata": {"uid": uid}, "status": status})
}

/// What the API knows of earlier runs: the agent may be younger than its Pods.
fn remembered(pod: &Pod) -> Memory {
    let mut memory = Memory::default();
    let Some(status) = &pod.status else { return memory };
    memory.pod_ips = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
    if let Some(phase) = status.phase.as_deref().filter(|p| matches!(*p, "Succeeded" | "Failed")) {
        memory.ended = Some(Ended {
            phase: if phase == "Failed" { "Failed" } else { "Succeeded" },
            reason: text(&status.reason).to_owned(),
            message: text(&status.message).to_owned(),
        });
    }
    let all =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    for known in all {
        let attempt = u32::try_from(known.restart_count).unwrap_or(0);
        let of = |state: &k8s_openapi::api::core::v1::ContainerState, attempt: u32| -> Option<Run> {
            let id_of = |id: &Option<String>| text(id).split("://").last().unwrap_or_default().to_owned();
            let mut run = Run {
                id: id_of(&known.container_id),
                attempt,
                state: ContainerState::Running,
                started_at: None,
                finished_at: None,
                exit_code: 0,
                signal: None,
                reason: String::new(),
                message: String::new(),
                image_id: known.image_id.clone(),
                stop_signal: libc::SIGTERM,
                asked_image: String::new(),
                image: known.image.clone(),
                identity: None,
            };
            if let Some(running) = &state.running {
                run.started_at = running.started_at.as_ref().map(|t| t.0);
                return Some(run);
            }
            let ended = state.terminated.as_ref()?;
            run.id = id_of(&ended.container_id);
            run.state = ContainerState::Exited;
            run.started_at = ended.started_at.as_ref().map(|t| t.0);
            run.finished_at = ended.finished_at.as_ref().map(|t| t.0);
            run.exit_code = ended.exit_code;
            run.reason = text(&ended.reason).to_owned();
            run.message = text(&ended.message).to_owned();
            Some(run)
        };
        let current = known.state.as_ref().and_then(|s| of(s, attempt));
        let last = known
            .last_state
            .as_ref()
            .and_then(|s| of(s, attempt.saturating_sub(u32::from(current.is_some()))));
        let (current, previous) = if current.is_some() { (current, last) } else { (last, None) };
        memory
            .containers
            .insert(known.name.clone(), ContainerMemory { current, previous, ..Default::default() });
    }
    memory
}

/// What a Pod asks for that this node cannot give; better said than silently left out.
fn unsupported(pod: &Pod) -> Option<String> {
    let spec = machine::spec(pod);
    if spec.host_users == Some(false) {
        return Some("user namespaces (hostUsers: false) are not supported on this node".to_owned());
    }
    if let Some(class) = spec.runtime_class_name.as_deref().filter(|c| !c.is_empty()) {
        return Some(format!("no runtime for RuntimeClass \"{class}\" is configured"));
    }
    let claim = spec.resource_claims.iter().flatten().next();
    claim.map(|claim| format!("resource claim \"{}\" cannot be prepared on this node", claim.name))
}

async fn create_sandbox(ctx: &Context, pod: &Pod) -> Result<Vec<String>, String> {
    if let Some(why) = unsupported(pod) {
        return Err(why);
    }
    let config = container::sandbox_config(ctx, pod);
    let host_network = config.host_network;
    let uid = config.uid.clone();
    let existing = ctx.runtime.sandbox(&uid).await.ok().filter(|s| s.ready);
    let sandbox = match existing {
        Some(sandbox) => sandbox,
        None => {
            // Another sandbox may get another address, which the old hosts file does not know.
            let _ = std::fs::remove_file(ctx.pod_dir(&uid).join("etc/hosts"));
            ctx.runtime.create_sandbox(config).await.map_err(|e| e.to_string())?
        }
    };
    if host_network {
        return Ok(ctx.config.addresses.iter().map(ToString::to_string).collect());
    }
    let netns = sandbox.netns.ok_or("the sandbox has no network namespace")?;
    let ports = host_ports(pod);
    let ips = ctx.network.attach(&uid, &netns, &ports).await.map_err(|e| format!("network: {e}"))?;
    Ok(ips.iter().map(ToString::to_string).collect())
}

fn host_ports(pod: &Pod) -> Vec<HostPortMapping> {
    let spec = machine::spec(pod);
    let port = |n: i32| u16::try_from(n).ok().filter(|n| *n > 0);
    machine::all_containers(spec)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            Some(HostPortMapping {
                host_ip: p.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                host_port: port(p.host_port?)?,
                container_port: port(p.container_port)?,
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            })
        })
        .collect()
}

pub async fn remove_sandbox(ctx: &Context, uid: &str, ids: &[String]) -> Result<(), String> {
    let (sandbox, network) = tokio::join!(ctx.runtime.remove_sandbox(uid), ctx.network.detach(uid));
    sandbox.map_err(|e| e.to_string())?;
    network.map_err(|e| e.to_string())?;
    for id in ids {
        ctx.images.release(id);
    }
    Ok(())
}

/// Cleans the host up, says the last word on the status and deletes the object.
async fn finish(ctx: &Arc<Context>, pod: &Pod, gone: bool, last: Option<Value>) -> Result<(), String> {
    let meta = &pod.metadata;
    let (ns, name) = (text(&meta.namespace), text(&meta.name));
    // A rejected or never started Pod may still have an address from an earlier life.
    ctx.network.detach(text(&meta.uid)).await.map_err(|e| e.to_string())?;
    let (pod_dir, log_dir) = (ctx.pod_dir(text(&meta.uid)), ctx.pod_log_dir(pod));
    let cleaned = tokio::task::spawn_blocking(move || {
        volumes::remove_pod_dir(&pod_dir)?;
        match std::fs::remove_dir_all(&log_dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    });
    cleaned.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    if gone {
        return Ok(());
    }
    let api = ctx.client.api::<Pod>();
    if let Some(body) = last {
        match api.patch(ns, name, PatchKind::Strategic, &body, Some("status")).await {
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => return Err(error.to_string()),
            Ok(_) => {}
        }
    }
    let options = DeleteOptions {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: meta.uid.clone(), resource_version: None }),
        ..Default::default()
    };
    match api.delete(ns, name, &options).await {
        Ok(()) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// One start of one container.
struct Start {
    ctx: Arc<Context>,
    pod: Arc<Pod>,
    about: ObjectRef,
    is_init: bool,
    container: Container,
    attempt: u32,
    pod_ips: Vec<String>,
    qos_class: &'static str,
    /// A run whose remains can go now.
    old_run: Option<Run>,
}

impl Start {
    fn event(&self, kind: EventType, reason: &str, message: &str) {
        let list = if self.is_init { "initContainers" } else { "containers" };
        let path = format!("spec.{list}{{{}}}", self.container.name);
        self.ctx.recorder.event_at(&self.about, &path, kind, reason, message);
    }

    async fn run(self) -> StartOutcome {
        let ctx = &self.ctx;
        let not_created =
            |reason: &'static str, message: String| StartOutcome::NotCreated { reason, message };
        let spec = machine::spec(&self.pod);
        let mut references = References::of_container(&self.container);
        references.secrets.extend(spec.image_pull_secrets.iter().flatten().map(|r| r.name.clone()));
        let sources = match references.fetch(ctx, &self.pod).await {
            Ok(sources) => sources,
            Err(error) => return not_created("CreateContainerConfigError", error.to_string()),
        };
        let image_name = text(&self.container.image);
        let pulling = || self.event(EventType::Normal, "Pulling", &format!("Pulling image \"{image_name}\""));
        let obtained = match image::obtain(&ctx.images, spec, &self.container, &sources, pulling).await {
            Ok(obtained) => obtained,
            Err(failure) => return StartOutcome::Image(failure),
        };
        self.event(EventType::Normal, "Pulled", &obtained.message);
        let id = new_id(ctx);
        let inputs = Inputs {
            pod: &self.pod,
            container: &self.container,
            image: &obtained.image,
            sources: &sources,
            pod_ips: &self.pod_ips,
            qos_class: self.qos_class,
            attempt: self.attempt,
            id: id.clone(),
        };
        let config = match container::container_config(ctx, inputs) {
            Ok(config) => config,
            Err(message) => return not_created("CreateContainerConfigError", message),
        };
        let uid = text(&self.pod.metadata.uid);
        if let Some(old) = &self.old_run {
            if let Err(error) = ctx.runtime.remove_container(uid, &old.id).await {
                tracing::debug!(%error, "cannot remove an old container");
            }
            let path = ctx.log_path(&self.pod, &self.container.name, old.attempt);
            if let Err(error) = crate::logs::remove(&path) {
                tracing::debug!(path = %path.display(), %error, "cannot remove an old log");
            }
            ctx.images.release(&old.id);
        }
        if let Err(error) = ctx.images.hold(&id, &obtained.image.id) {
            return not_created("CreateContainerError", error.to_string());
        }
        let stop_signal = config.stop_signal;
        let (image, image_id) = (config.labels[LABEL_IMAGE].clone(), config.labels[LABEL_IMAGE_ID].clone());
        if let Some(parent) = config.log_path.parent()
            && let Err(error) = std::fs::create_dir_all(parent)
        {
            return not_created("CreateContainerError", error.to_string());
        }
        let now = ctx.clock.now();
        let failed_run = |message: &str| Run {
            id: id.clone(),
            attempt: self.attempt,
            state: ContainerState::Exited,
            started_at: None,
            finished_at: Some(now),
            exit_code: 128,
            signal: None,
            reason: "StartError".into(),
            message: message.to_owned(),
            image_id: image_id.clone(),
            stop_signal,
            asked_image: text(&self.container.image).to_owned(),
            image: image.clone(),
            identity: None,
        };
        if let Err(error) = ctx.runtime.create_container(uid, config).await {
            ctx.images.release(&id);
            let message = error.to_string();
            return match error {
                runtime::Error::Config(_) => not_created("CreateContainerConfigError", message),
                runtime::Error::Start(_) => StartOutcome::NotStarted { run: failed_run(&message), message },
                _ => not_created("CreateContainerError", message),
            };
        }
        self.event(EventType::Normal, "Created", "Container created");
        let status = match ctx.runtime.start_container(uid, &id).await {
            Ok(status) => status,
            Err(error) => {
                let message = error.to_string();
                let _ = ctx.runtime.remove_container(uid, &id).await;
                ctx.images.release(&id);
                return StartOutcome::NotStarted { run: failed_run(&message), message };
            }
        };
        self.event(EventType::Normal, "Started", "Container started");
        let run = read_run(ctx, &self.pod, &self.container, &status, None);
        let hook = self.container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref());
        if let Some(handler) = hook {
            let place = Place {
                runtime: &*ctx.runtime,
                uid,
                id: &id,
                container: &self.container,
                pod_ip: self.pod_ips.first().map(String::as_str).unwrap_or_default(),
            };
            let forever = Duration::from_secs(24 * 3600);
            if let Err(why) = hook::lifecycle(&place, handler, forever).await {
                tracing::debug!(container = self.container.name, why, "postStart hook failed");
                return StartOutcome::HookFailed { run, message: "PostStartHook failed".to_owned() };
            }
        }
        StartOutcome::Running(run)
    }
}

fn new_id(ctx: &Context) -> String {
    (0..4).map(|_| format!("{:016x}", ctx.random.next_u64())).collect()
}

/// One graceful stop of one container.
struct Stop {
    ctx: Arc<Context>,
    worker: Arc<Worker>,
    about: ObjectRef,
    container: Container,
    run: Run,
    pod_ip: String,
    message: String,
    grace: i64,
    leaving: bool,
}

impl Stop {
    async fn run(self) -> Result<(), String> {
        let ctx = &self.ctx;
        let (uid, id) = (&self.worker.uid, &self.run.id);
        let path = format!("spec.containers{{{}}}", self.container.name);
        if !self.message.is_empty() {
            let message = match self.message.as_str() {
                "Stopping container" => format!("Stopping container {}", self.container.name),
                other => other.to_owned(),
            };
            ctx.recorder.event_at(&self.about, &path, EventType::Normal, "Killing", &message);
        }
        let began = Instant::now();
        // Whoever deletes the Pod again with a shorter grace shortens this stop too.
        let mut shorter = self.worker.grace.subscribe();
        let mut deadline = began + Duration::from_secs(self.grace.max(0) as u64);
        let hook = self.container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
        if let Some(handler) = hook.filter(|_| self.grace > 0 && self.run.is_running()) {
            let place =
                Place { runtime: &*ctx.runtime, uid, id, container: &self.container, pod_ip: &self.pod_ip };
            let whole = Duration::from_secs(self.grace.max(0) as u64);
            let hook = hook::lifecycle(&place, handler, whole);
            tokio::pin!(hook);
            loop {
                tokio::select! {
                    result = &mut hook => {
                        if let Err(why) = result {
                            tracing::debug!(container = self.container.name, why, "preStop hook failed");
                            ctx.recorder.event_at(&self.about, &path, EventType::Warning, "FailedPreStopHook", "PreStopHook failed");
                        }
                        break;
                    }
                    () = wait_exit(ctx, uid, id) => return Ok(()),
                    Ok(()) = shorter.changed() => {
                        deadline = self.shortened(*shorter.borrow_and_update(), began, deadline);
                        if deadline <= Instant::now() { break; }
                    }
                }
            }
            if deadline > began {
                deadline = deadline.max(Instant::now() + GRACE_AFTER_HOOK.min(whole));
            }
        }
        let gone = |error: &runtime::Error| {
            matches!(error, runtime::Error::NoSandbox(_) | runtime::Error::NoContainer(_))
        };
        if deadline > Instant::now() && self.run.is_running() {
            match ctx.runtime.signal_container(uid, id, self.run.stop_signal).await {
                Err(error) if gone(&error) => return Ok(()),
                Err(error) => tracing::debug!(%error, "cannot signal a container"),
                Ok(()) => {}
            }
            loop {
                tokio::select! {
                    () = wait_exit(ctx, uid, id) => return Ok(()),
                    () = tokio::time::sleep_until(deadline) => break,
                    Ok(()) = shorter.changed() => {
                        deadline = self.shortened(*shorter.borrow_and_update(), began, deadline);
                    }
                }
            }
        }
        match ctx.runtime.signal_container(uid, id, libc::SIGKILL).await {
            Err(error) if gone(&error) => return Ok(()),
            Err(error) => return Err(error.to_string()),
            Ok(()) => {}
        }
        tokio::time::timeout(KILL_WAIT, wait_exit(ctx, uid, id))
            .await
            .map_err(|_| format!("container {} does not end", self.container.name))
    }

    fn shortened(&self, grace: Option<i64>, began: Instant, deadline: Instant) -> Instant {
        match grace.and_then(|g| u64::try_from(g).ok()) {
            Some(seconds) if self.leaving || seconds == 0 => {
                deadline.min(began + Duration::from_secs(seconds))
            }
            _ => deadline,
        }
    }
}

/// Returns once the container has exited or is gone.
pub async fn wait_exit(ctx: &Context, uid: &str, id: &str) {
    let mut events = ctx.runtime.events();
    loop {
        match ctx.runtime.sandbox(uid).await {
            Ok(sandbox) => {
                let found = sandbox.containers.iter().find(|c| c.id == id);
                if !sandbox.ready || found.is_none_or(|c| c.state == ContainerState::Exited) {
                    return;
                }
            }
            Err(runtime::Error::NoSandbox(_)) => return,
            Err(error) => tracing::debug!(%error, "cannot read a sandbox"),
        }
        loop {
            match events.recv().await {
                Ok(runtime::Event::Container { uid: u, id: i }) if u == uid && i == id => break,
                Ok(runtime::Event::SandboxGone { uid: u }) if u == uid => break,
                Ok(runtime::Event::Lagged) | Err(broadcast::error::RecvError::Lagged(_)) => break,
                Err(broadcast::error::RecvError::Closed) => return,
                Ok(_) => {}
            }
        }
    }
}

/// The runtime's status as the machine keeps it. `known` is the same run as seen before.
fn read_run(
    ctx: &Context,
    pod: &Pod,
    spec: &Container,
    status: &ContainerStatus,
    known: Option<&Run>,
) -> Run {
    let at = |ns: Option<i64>| ns.and_then(|ns| Timestamp::from_nanosecond(i128::from(ns)).ok());
    let label = |name: &str| status.labels.get(name).cloned().unwrap_or_default();
    let exited = status.state == ContainerState::Exited;
    let exit_code = status.exit_code.unwrap_or(if exited { 128 } else { 0 });
    let reason = match (exited, status.oom_killed, exit_code) {
        (false, _, _) => "",
        (true, true, _) => "OOMKilled",
        (true, false, 0) => "Completed",
        _ => "Error",
    };
    let message = match known {
        _ if !exited => String::new(),
        Some(before) if before.is_exited() => before.message.clone(),
        _ => termination_message(ctx, pod, spec, status, exit_code),
    };
    Run {
        id: status.id.clone(),
        attempt: status.attempt,
        state: status.state,
        started_at: at(status.started_at_ns),
        finished_at: at(status.finished_at_ns),
        exit_code,
        signal: status.signal,
        reason: reason.to_owned(),
        message,
        image_id: label(LABEL_IMAGE_ID),
        stop_signal: label(container::LABEL_STOP_SIGNAL).parse().unwrap_or(libc::SIGTERM),
        asked_image: label(container::LABEL_ASKED_IMAGE),
        image: label(LABEL_IMAGE),
        identity: status.identity.clone(),
    }
}

/// What the container left in its termination log, or the end of its output after a failure.
fn termination_message(
    ctx: &Context,
    pod: &Pod,
    spec: &Container,
    status: &ContainerStatus,
    exit_code: i32,
) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let path = container::termination_path(ctx, pod, &spec.name, status.attempt);
    let mut bytes = Vec::new();
    // A directory or a device here would be the container's trick; it can only write the file.
    if let Ok(mut file) = std::fs::File::open(&path) {
        let size = file.metadata().map_or(0, |m| m.len());
        let from = size.saturating_sub(TERMINATION_MESSAGE_BYTES_MAX as u64);
        let _ = file.seek(SeekFrom::Start(from));
        let _ = file.take(TERMINATION_MESSAGE_BYTES_MAX as u64).read_to_end(&mut bytes);
    }
    let fall_back =
        spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError") && exit_code != 0;
    if bytes.is_empty() && fall_back {
        bytes = crate::logs::tail(&status.log_path, TERMINATION_LOG_LINES_MAX, TERMINATION_LOG_BYTES_MAX);
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if text.is_empty() { status.message.clone() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_take_back_what_is_not_said_any_more() {
        let old =
            PodStatus { reason: Some("X".into()), pod_ip: Some("10.0.0.1".into()), ..Default::default() };
        let new = PodStatus {
            phase: Some("Running".into()),
            pod_ip: Some("10.0.0.1".into()),
            ..Default::default()
        };
        let patch = patch("u", Some(&old), &new);
        assert_eq!(
            patch,
            json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "podIP": "10.0.0.1", "reason": null}})
        );
    }

    #[test]
    fn earlier_runs_are_remembered_from_the_status() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u"},
            "spec": {"containers": [{"name": "a"}]},
            "status": {"phase": "Running", "containerStatuses": [{
                "name": "a", "image": "i", "imageID": "i@1", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 7, "reason": "Error", "containerID": "skeg://abc"}}
            }]}
        }))
        .unwrap();
        let memory = remembered(&pod);
        let run = memory.containers["a"].current.as_ref().unwrap();
        assert_eq!((run.attempt, run.exit_code, run.id.as_str()), (3, 7, "abc"));
        assert_eq!(memory.containers["a"].next_attempt(), 4);
    }
}
