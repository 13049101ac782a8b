//! Runs of containers as the runtime, or the stored status, tells of them.

use super::Loop;
use super::done::Done;
use super::probes::last_told;
use super::sandbox::create_sandbox;
use super::status::end_told_by;
use crate::container::{LABEL_IMAGE, LABEL_IMAGE_ID};
use crate::machine::{ContainerMemory, Memory, Run, Sandbox};
use crate::{Context, container, machine, text};
use k8s_openapi::api::core::v1::{Container, Pod};
use skeg_base::Timestamp;
use skeg_client::EventType;
use skeg_runtime as runtime;
use skeg_runtime::{ContainerState, ContainerStatus};
use std::collections::BTreeMap;
use tokio::sync::broadcast;

const TERMINATION_MESSAGE_BYTES_MAX: usize = 4096;

const TERMINATION_LOG_BYTES_MAX: usize = 2048;

const TERMINATION_LOG_LINES_MAX: usize = 80;

impl Loop {
    /// Reads the runtime's view of the sandbox.
    pub(super) async fn observe(&mut self) {
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
                    known.again = None;
                }
                known.current = Some(run);
            }
        }
    }

    /// The sandbox is gone, and with it whatever ran in it.
    pub(super) fn lose_runs(&mut self) {
        let now = self.now();
        for known in self.memory.containers.values_mut() {
            let Some(run) = &mut known.current else { continue };
            run.lost = true;
            if !run.is_exited() {
                run.state = ContainerState::Exited;
                run.exit_code = 137;
                run.finished_at = Some(now);
                run.reason = "ContainerStatusUnknown".into();
                run.message = "The container could not be located when the pod was terminated".into();
            }
        }
    }

    pub(super) fn recover(&mut self, sandbox: runtime::SandboxStatus) {
        let ready = sandbox.ready;
        // What the runtime does not know any more may be of an earlier sandbox. Statuses know seconds.
        let since = sandbox.created_at_ns.div_euclid(1_000_000_000);
        for run in self.memory.containers.values_mut().filter_map(|known| known.current.as_mut()) {
            run.lost = run.finished_at.or(run.started_at).is_some_and(|at| at.as_second() < since);
        }
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
}

/// What the API knows of earlier runs: the agent may be younger than its Pods.
pub(super) fn remembered(pod: &Pod) -> Memory {
    let mut memory = Memory::default();
    let Some(status) = &pod.status else { return memory };
    memory.pod_ips = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
    memory.ended = end_told_by(status);
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    for known in lists.into_iter().flatten().flatten() {
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
                lost: false,
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
pub(super) fn read_run(
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
        lost: false,
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
    use serde_json::json;

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
