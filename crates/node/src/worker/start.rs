//! One start of one container.

use super::done::StartOutcome;
use super::runs::read_run;
use crate::container::{Inputs, LABEL_IMAGE, LABEL_IMAGE_ID};
use crate::hook::Place;
use crate::machine::{Run, Sort};
use crate::sources::References;
use crate::{Context, container, hook, image, machine, text};
use k8s_openapi::api::core::v1::{Container, Pod};
use skeg_client::{EventType, ObjectRef};
use skeg_runtime as runtime;
use skeg_runtime::ContainerState;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// One start of one container.
pub(super) struct Start {
    pub(super) ctx: Arc<Context>,
    pub(super) pod: Arc<Pod>,
    pub(super) about: ObjectRef,
    pub(super) sort: Sort,
    pub(super) container: Container,
    /// The run whose processes it is to see, or why there is none.
    pub(super) target: Option<Result<String, String>>,
    pub(super) attempt: u32,
    pub(super) pod_ips: Vec<String>,
    pub(super) qos_class: &'static str,
    /// A run whose remains can go now.
    pub(super) old_run: Option<Run>,
    /// The Pod is on its way out.
    pub(super) ending: CancellationToken,
}

impl Start {
    pub(super) fn event(&self, kind: EventType, reason: &str, message: &str) {
        let path = format!("spec.{}{{{}}}", self.sort.list(), self.container.name);
        self.ctx.recorder.event_at(&self.about, &path, kind, reason, message);
    }

    pub(super) async fn run(self) -> StartOutcome {
        let ctx = &self.ctx;
        if self.ending.is_cancelled() {
            return StartOutcome::Interrupted;
        }
        let not_created =
            |reason: &'static str, message: String| StartOutcome::NotCreated { reason, message };
        let spec = machine::spec(&self.pod);
        let mut references = References::of_container(&self.container);
        references.secrets.extend(spec.image_pull_secrets.iter().flatten().map(|r| r.name.clone()));
        let fetched = self.ending.run_until_cancelled(references.fetch(ctx, &self.pod));
        let sources = match fetched.await {
            None => return StartOutcome::Interrupted,
            Some(Ok(sources)) => sources,
            Some(Err(error)) => return not_created("CreateContainerConfigError", error.to_string()),
        };
        if let Some(missing) = image::missing_secrets(spec, &sources) {
            let reason = "FailedToRetrieveImagePullSecret";
            ctx.recorder.event(&self.about, EventType::Warning, reason, &missing);
        }
        let image_name = text(&self.container.image);
        let pulling = || self.event(EventType::Normal, "Pulling", &format!("Pulling image \"{image_name}\""));
        let obtained = image::obtain(&ctx.images, spec, &self.container, &sources, pulling);
        let obtained = match self.ending.run_until_cancelled(obtained).await {
            None => return StartOutcome::Interrupted,
            Some(Ok(obtained)) => obtained,
            Some(Err(failure)) => return StartOutcome::Image(failure),
        };
        self.event(EventType::Normal, "Pulled", &obtained.message);
        let target = match self.target.clone().transpose() {
            Ok(target) => target,
            Err(why) => return not_created("CreateContainerConfigError", why),
        };
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
            target,
        };
        let config = match container::container_config(ctx, inputs) {
            Ok(config) => config,
            Err(message) => return not_created("CreateContainerConfigError", message),
        };
        if config.args.is_empty() {
            return not_created("CreateContainerError", "no command specified".to_owned());
        }
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
            lost: false,
        };
        if let Err(error) = ctx.runtime.create_container(uid, config).await {
            ctx.images.release(&id);
            let message = error.to_string();
            return match error {
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
            // A container whose Pod leaves is stopped, whatever its hook still does.
            let hook = self.ending.run_until_cancelled(hook::lifecycle(&place, handler, forever));
            if let Some(Err(why)) = hook.await {
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
