//! One graceful stop of one container.

use super::Worker;
use super::runs::wait_exit;
use crate::hook::Place;
use crate::machine::Run;
use crate::{Context, hook};
use k8s_openapi::api::core::v1::Container;
use skeg_client::{EventType, ObjectRef};
use skeg_runtime as runtime;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What a process gets at least between SIGTERM and SIGKILL, as upstream's
/// `minimumGracePeriodInSeconds`: also where a hook or others used the grace up.
const GRACE_MIN: Duration = Duration::from_secs(2);

/// A process that SIGKILL does not end so soon is stuck in the kernel; tried again later.
const KILL_WAIT: Duration = Duration::from_secs(30);

/// One graceful stop of one container.
pub(super) struct Stop {
    pub(super) ctx: Arc<Context>,
    pub(super) worker: Arc<Worker>,
    pub(super) about: ObjectRef,
    pub(super) field_path: String,
    pub(super) container: Container,
    /// When the grace began.
    pub(super) began: Instant,
    pub(super) run: Run,
    pub(super) pod_ip: String,
    pub(super) message: String,
    /// Seconds.
    pub(super) grace: i64,
    /// The preStop hook ran already.
    pub(super) hooked: bool,
    pub(super) leaving: bool,
}

impl Stop {
    pub(super) async fn run(self) -> Result<(), String> {
        let (ctx, uid, id) = (&self.ctx, &self.worker.uid, &self.run.id);
        if !self.hooked {
            self.tell();
        }
        // Whoever deletes the Pod again with a shorter grace shortens this stop too.
        let mut shorter = self.worker.grace.subscribe();
        let Some(mut deadline) = self.pre_stop().await else { return Ok(()) };
        let gone = |error: &runtime::Error| {
            matches!(error, runtime::Error::NoSandbox(_) | runtime::Error::NoContainer(_))
        };
        if self.run.is_running() {
            match ctx.runtime.signal_container(uid, id, self.run.stop_signal).await {
                Err(error) if gone(&error) => return Ok(()),
                Err(error) => tracing::debug!(%error, "cannot signal a container"),
                Ok(()) => {}
            }
            let least = Instant::now() + GRACE_MIN;
            loop {
                tokio::select! {
                    () = wait_exit(ctx, uid, id) => return Ok(()),
                    () = tokio::time::sleep_until(deadline.max(least)) => break,
                    Ok(()) = shorter.changed() => {
                        deadline = self.shortened(*shorter.borrow_and_update(), deadline);
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

    /// Says that it is stopped, and why.
    pub(super) fn tell(&self) {
        self.ctx.recorder.event_at(
            &self.about,
            &self.field_path,
            EventType::Normal,
            "Killing",
            &self.message,
        );
    }

    /// Runs the preStop hook, if there is one that did not run yet. Returns until when the grace lasts,
    /// or nothing where the container ended meanwhile.
    pub(super) async fn pre_stop(&self) -> Option<Instant> {
        let (ctx, uid, id) = (&self.ctx, &self.worker.uid, &self.run.id);
        let mut shorter = self.worker.grace.subscribe();
        let whole = Duration::from_secs(self.grace.max(0) as u64);
        let mut deadline = self.began + whole;
        let hook = self.container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
        let wants_hook = !self.hooked && self.grace > 0 && self.run.is_running();
        let Some(handler) = hook.filter(|_| wants_hook) else { return Some(deadline) };
        let place =
            Place { runtime: &*ctx.runtime, uid, id, container: &self.container, pod_ip: &self.pod_ip };
        let hook = hook::lifecycle(&place, handler, whole);
        tokio::pin!(hook);
        loop {
            tokio::select! {
                result = &mut hook => {
                    if let Err(why) = result {
                        tracing::debug!(container = self.container.name, why, "preStop hook failed");
                        ctx.recorder.event_at(&self.about, &self.field_path, EventType::Warning, "FailedPreStopHook", "PreStopHook failed");
                    }
                    return Some(deadline);
                }
                () = wait_exit(ctx, uid, id) => return None,
                // The hook itself ends with the whole grace.
                () = tokio::time::sleep_until(deadline), if deadline < self.began + whole => return Some(deadline),
                Ok(()) = shorter.changed() => {
                    deadline = self.shortened(*shorter.borrow_and_update(), deadline);
                }
            }
        }
    }

    fn shortened(&self, grace: Option<i64>, deadline: Instant) -> Instant {
        let Some(seconds) = grace.and_then(|g| u64::try_from(g).ok()) else { return deadline };
        // A Pod that is deleted while a container of it is stopped for another reason begins to count now.
        let from = if self.leaving || seconds == 0 { self.began } else { Instant::now() };
        deadline.min(from + Duration::from_secs(seconds))
    }
}
