//! What operations beside the loop report, and what of it is shown and tried again.

use super::Loop;
use super::resize::Resized;
use super::sandbox::remove_sandbox;
use crate::image::ImageFailure;
use crate::machine;
use crate::machine::status::backoff_message;
use crate::machine::{ContainerMemory, Run, Sandbox, Volumes, Waiting};
use crate::volumes::Prepared;
use k8s_openapi::api::core::v1::PodStatus;
use skeg_base::Timestamp;
use skeg_client::EventType;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a failed pull shows as such before it shows as backing off.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(1);

const PULL_BACKOFF_MIN: Duration = Duration::from_secs(10);

const PULL_BACKOFF_MAX: Duration = Duration::from_secs(300);

/// A configuration error is looked at again after this, or when what it refers to changes.
const CONFIG_RETRY: Duration = Duration::from_secs(10);

pub(super) enum Done {
    Sandbox(Result<Vec<String>, String>),
    Removed(Result<(), String>),
    Volumes(Prepared),
    Started {
        container: String,
        attempt: u32,
        outcome: Box<StartOutcome>,
    },
    Stopped {
        container: String,
        result: Result<(), String>,
    },
    /// Its preStop hook ran, or it ended meanwhile.
    PreStopped {
        container: String,
    },
    Status {
        written: Box<PodStatus>,
        result: skeg_client::Result<u64>,
    },
    Resized(Resized),
    Finished(Result<(), String>),
}

pub(super) enum StartOutcome {
    Running(Run),
    /// The Pod left before there was a container.
    Interrupted,
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

pub(super) struct PullState {
    pub(super) delay: Duration,
    /// When it begins to show as backing off.
    pub(super) switch_at: Option<Timestamp>,
    pub(super) message: String,
}

impl Loop {
    pub(super) fn complete(&mut self, done: Done) {
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
            Done::Volumes(Prepared { refresh_at, failed }) => {
                for error in &failed {
                    self.event(EventType::Warning, "FailedMount", &error.to_string());
                }
                let refreshed = std::mem::take(&mut self.volumes_refreshing);
                if failed.is_empty() {
                    self.volume_backoff.reset();
                    self.volume_refresh_at = refresh_at;
                    self.memory.volumes = Volumes::Ready;
                } else {
                    let retry_at = after(self.volume_backoff.next());
                    if refreshed {
                        self.volume_refresh_at = Some(refresh_at.map_or(retry_at, |at| at.min(retry_at)));
                    } else {
                        self.memory.volumes = Volumes::Failed { retry_at };
                    }
                }
                if std::mem::take(&mut self.volumes_stale) {
                    self.volume_refresh_at = Some(now);
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
            Done::PreStopped { container } => {
                if let Some(known) = self.memory.containers.get_mut(&container) {
                    known.busy = None;
                    known.hooked = true;
                }
                self.worker.runtime_changed.store(true, Ordering::Release);
            }
            Done::Status { written, result } => self.status_written(*written, result),
            Done::Resized(resized) => self.resized(resized),
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
            known.again = None;
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
                    known.again = None;
                }
                self.worker.runtime_changed.store(true, Ordering::Release);
            }
            StartOutcome::Interrupted => {}
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

    /// Failed pulls begin to show as backing off, and crashes are announced once.
    pub(super) fn show_backoffs(&mut self) {
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
                let again =
                    known.again.is_some() || machine::restarts(spec, container, is_init, run.exit_code);
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
}
