//! Probes of running containers, and what their verdicts do.

use super::{Loop, field_path};
use crate::machine::Sandbox;
use crate::probe::{Kind, Probes, Subject, Verdict};
use crate::{machine, probe};
use k8s_openapi::api::core::v1::{Container, PodStatus};
use std::time::Duration;

impl Loop {
    pub(super) fn manage_probes(&mut self) {
        let pod = self.pod.clone();
        let spec = machine::spec(&pod);
        let now = self.now();
        let running_pod = self.memory.sandbox == Sandbox::Ready;
        for container in machine::all_containers(spec) {
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
                field_path: field_path(spec, &container.name),
                uid: self.worker.uid.clone(),
                id: run.id.clone(),
                container: container.clone(),
                pod_ip: self.memory.pod_ips.first().cloned().unwrap_or_default(),
            };
            let running_for = since.and_then(|d| Duration::try_from(d).ok()).unwrap_or_default();
            let probes = Probes::start(subject, running_for, started, self.verdicts.clone());
            self.probes.insert(container.name.clone(), (run.id, probes));
        }
        if self.gone || machine::is_deleting(&pod) || self.memory.ended.is_some() {
            self.probes.values_mut().for_each(|(_, probes)| probes.keep_readiness());
        }
    }

    pub(super) fn judge(&mut self, verdict: &Verdict) {
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
}

/// Whether a running container counts as started and as ready before its probes say: what the API
/// was last told of this very run still holds after a restart of the agent.
pub(super) fn last_told(stored: Option<&PodStatus>, container: &Container, id: &str) -> (bool, bool) {
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
