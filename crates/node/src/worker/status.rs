//! The Pod's status: when it is written, and the patch that does it.

use super::Loop;
use super::done::Done;
use crate::machine::status::status;
use crate::machine::{self, Ended};
use crate::shown::says;
use crate::{shown, text};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};
use skeg_client::PatchKind;
use std::time::Duration;
use tokio::time::Instant;

/// Changes that nobody waits for are written together after this long.
const STATUS_DELAY: Duration = Duration::from_millis(150);

/// While a Pod ends, its last status says it all.
const STATUS_DELAY_ENDING: Duration = Duration::from_secs(1);

impl Loop {
    pub(super) fn status(&self) -> PodStatus {
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
    pub(super) fn consider_status(&mut self) -> Option<Instant> {
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
            let result = api.patch(&ns, &name, PatchKind::Strategic, &body, Some("status")).await;
            let result = result.map(|pod| revision(&pod));
            Done::Status { written: Box::new(next), result }
        });
        None
    }

    /// Looks at the status as the API shows it: what somebody else changed of it is written again,
    /// and a Pod that somebody else declared ended does end.
    pub(super) fn look_at_shown(&mut self) {
        let revision = revision(&self.pod);
        let (Some(stored), Some(shown)) = (&self.stored, &self.pod.status) else { return };
        if self.status_writing || revision <= self.stored_revision || says(shown, stored) {
            return;
        }
        if self.memory.ended.is_none() && !is_terminal(stored) {
            self.memory.ended = end_told_by(shown);
        }
        self.stored = Some(shown.clone());
        self.stored_revision = revision;
    }

    pub(super) fn status_written(&mut self, written: PodStatus, result: skeg_client::Result<u64>) {
        self.status_writing = false;
        match result {
            Ok(revision) => {
                self.status_backoff.reset();
                self.memory.terminal_stored = is_terminal(&written);
                self.stored = Some(written);
                self.stored_revision = revision;
                self.look_at_shown();
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
}

/// The version of the object, as a number.
pub(super) fn revision(pod: &Pod) -> u64 {
    text(&pod.metadata.resource_version).parse().unwrap_or(0)
}

/// The end of the Pod, where the API shows that it has ended.
pub(super) fn end_told_by(status: &PodStatus) -> Option<Ended> {
    let phase = ["Succeeded", "Failed"].into_iter().find(|phase| status.phase.as_deref() == Some(phase))?;
    Some(Ended { phase, reason: text(&status.reason).to_owned(), message: text(&status.message).to_owned() })
}

pub(super) fn is_terminal(status: &PodStatus) -> bool {
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

/// The body of the write that makes the stored status the true one.
pub(super) fn patch(uid: &str, old: Option<&PodStatus>, new: &PodStatus) -> Value {
    json!({"metadata": {"uid": uid}, "status": shown::patch(old, new)})
}
