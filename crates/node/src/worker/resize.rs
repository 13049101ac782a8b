//! Sizes of a Pod that runs: what is allocated is taken up, kept over restarts, and set.

use super::Loop;
use super::done::Done;
use crate::machine::Restart;
use crate::machine::resize::{Allocation, Checkpoint, changed, in_progress};
use crate::{Context, machine, security};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use serde_json::json;
use skeg_api::predicates::resource_lists;
use skeg_client::EventType;
use skeg_runtime::Resources;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A size that could not be set is tried again after this.
const RETRY: Duration = Duration::from_secs(10);

/// What came of setting sizes.
#[derive(Default)]
pub(super) struct Resized {
    set: BTreeMap<String, ResourceRequirements>,
    group: Option<Resources>,
    error: Option<String>,
}

pub fn checkpoint_path(ctx: &Context, uid: &str) -> PathBuf {
    ctx.pod_dir(uid).join("allocation.json")
}

/// What an earlier agent had given the Pod.
pub fn read_checkpoint(ctx: &Context, uid: &str) -> Option<Checkpoint> {
    serde_json::from_slice(&std::fs::read(checkpoint_path(ctx, uid)).ok()?).ok()
}

/// What of an object that may change its volumes and environments depend on.
fn shown(pod: &Pod) -> impl PartialEq + '_ {
    let spec = machine::spec(pod);
    (&pod.metadata.labels, &pod.metadata.annotations, spec.ephemeral_containers.as_ref().map(Vec::len))
}

impl Loop {
    /// Takes up what the agent has decided.
    pub(super) fn take_allocation(&mut self, pod: Arc<Pod>, allocation: Allocation) {
        let old = std::mem::replace(&mut self.pod, allocation.apply(&pod).map_or(pod, Arc::new));
        if shown(&old) != shown(&self.pod) {
            self.on_sources();
        }
        if self.allocation == allocation {
            return;
        }
        let is_first = self.allocation == Allocation::default();
        self.allocation = allocation;
        let resize = &mut self.memory.resize;
        (resize.error, resize.retry_at) = (None, None);
        if !is_first {
            resize.generation = self.pod.metadata.generation;
            resize.begun = true;
            self.resize_event(EventType::Normal, "ResizeStarted", "started", "");
            // What the Pod shows of its own resources follows.
            self.refresh_volumes();
        }
    }

    /// What an earlier agent had set, of a sandbox that it left running.
    pub(super) fn recover_sizes(&mut self) {
        let Checkpoint { actuated, group, .. } = self.checkpoint.clone();
        let containers: Vec<Container> = machine::all_containers(machine::spec(&self.pod)).cloned().collect();
        for container in containers {
            let set = actuated.get(&container.name).cloned().or(container.resources).unwrap_or_default();
            self.memory.resize.actuated.insert(container.name, set);
        }
        self.memory.resize.group = Some(group.unwrap_or_else(|| security::pod_resources(&self.pod)));
    }

    /// Writes down what has changed since the last time, before it is acted on.
    pub(super) fn save_sizes(&mut self) {
        if self.memory.ended.is_some() || self.finishing {
            return;
        }
        let known = &self.memory.resize;
        let differs = |c: &&Container| {
            let running = self.memory.container(&c.name).is_some_and(machine::ContainerMemory::is_running);
            let set = known.actuated.get(&c.name).filter(|_| running);
            set.is_some_and(|set| !changed(Some(set), c.resources.as_ref()).is_empty())
        };
        let outdated = machine::all_containers(machine::spec(&self.pod)).filter(differs);
        let checkpoint = Checkpoint {
            allocated: self.allocation.clone(),
            actuated: outdated.map(|c| (c.name.clone(), known.actuated[&c.name].clone())).collect(),
            group: known.group.clone().filter(|set| *set != security::pod_resources(&self.pod)),
        };
        if checkpoint == self.checkpoint {
            return;
        }
        let path = checkpoint_path(&self.ctx, &self.worker.uid);
        let write = || -> std::io::Result<()> {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            let temporary = path.with_extension("new");
            std::fs::write(&temporary, serde_json::to_vec(&checkpoint)?)?;
            std::fs::rename(&temporary, &path)
        };
        match write() {
            Ok(()) => self.checkpoint = checkpoint,
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot write an allocation"),
        }
    }

    pub(super) fn resize(&mut self) {
        self.memory.resize.busy = true;
        self.memory.resize.retry_at = None;
        let (mut running, mut idle) = (Vec::new(), Vec::new());
        for container in machine::all_containers(machine::spec(&self.pod)) {
            let Some(known) = self.memory.containers.get(&container.name) else { continue };
            let set = self.memory.resize.actuated.get(&container.name).cloned().unwrap_or_default();
            for run in [&known.previous, &known.current].into_iter().flatten() {
                if !run.is_running() {
                    idle.push((run.id.clone(), container.clone()));
                } else if !changed(Some(&set), container.resources.as_ref()).is_empty() {
                    running.push((run.id.clone(), container.clone(), set.clone()));
                }
            }
        }
        let resizer = Resizer {
            ctx: self.ctx.clone(),
            uid: self.worker.uid.clone(),
            pod: self.pod.clone(),
            qos_class: self.qos_class,
            group: self.memory.resize.group.clone().unwrap_or_default(),
            running,
            idle,
        };
        self.ops.spawn(async move { Done::Resized(resizer.run().await) });
    }

    pub(super) fn resized(&mut self, resized: Resized) {
        let retry_at = self.now().checked_add(RETRY).ok();
        let known = &mut self.memory.resize;
        known.busy = false;
        known.actuated.extend(resized.set);
        known.group = resized.group.or(known.group.take());
        known.retry_at = retry_at.filter(|_| resized.error.is_some());
        let told = known.error == resized.error;
        known.error = resized.error;
        if let Some(error) = known.error.clone().filter(|_| !told) {
            self.resize_event(EventType::Warning, "ResizeError", "error", &error);
        }
    }

    /// Tells once that all is as it is allocated.
    pub(super) fn settle_resize(&mut self) {
        let known = &self.memory.resize;
        let settled = known.begun && !known.busy && !in_progress(&self.pod, &self.memory);
        let restarting = self.memory.containers.values().any(|known| known.again == Some(Restart::AtOnce));
        if settled && !restarting {
            self.memory.resize.begun = false;
            self.memory.resize.error = None;
            self.resize_event(EventType::Normal, "ResizeCompleted", "completed", "");
        }
    }

    pub(super) fn resize_event(&self, kind: EventType, reason: &str, what: &str, error: &str) {
        let list = |containers: &[Container]| -> Vec<serde_json::Value> {
            let shown = containers.iter().map(|c| json!({"name": c.name, "resources": c.resources}));
            shown.collect()
        };
        let spec = machine::spec(&self.pod);
        let generation = self.pod.metadata.generation.unwrap_or(0);
        let mut summary = json!({"containers": list(&spec.containers), "generation": generation});
        if !machine::init_containers(spec).is_empty() {
            summary["initContainers"] = list(machine::init_containers(spec)).into();
        }
        if !error.is_empty() {
            summary["error"] = error.into();
        }
        self.event(kind, reason, &format!("Pod resize {what}: {summary}"));
    }
}

/// Sets sizes: the Pod grows before its containers do, and shrinks after them.
struct Resizer {
    ctx: Arc<Context>,
    uid: String,
    pod: Arc<Pod>,
    qos_class: &'static str,
    /// What is set on the Pod.
    group: Resources,
    /// Containers to set, with what is set on them.
    running: Vec<(String, Container, ResourceRequirements)>,
    /// Runs that ended: their groups are still there, and a Pod's may not be smaller.
    idle: Vec<(String, Container)>,
}

impl Resizer {
    async fn run(self) -> Resized {
        let mut out = Resized::default();
        if let Err(error) = self.steps(&mut out).await {
            out.error = Some(error);
        }
        out
    }

    async fn steps(&self, out: &mut Resized) -> Result<(), String> {
        let wanted = security::pod_resources(&self.pod);
        let meanwhile = larger(&self.group, &wanted);
        self.fits(&wanted).await?;
        if meanwhile != self.group {
            self.set_group(&meanwhile, out).await?;
        }
        let mut running: Vec<_> = self.running.iter().collect();
        running.sort_by_key(|(_, container, set)| grows(set, container));
        for (id, container, set) in running {
            let limits = self.of(container);
            self.check_memory(id, container, set, &limits).await?;
            let result = self.ctx.runtime.update_resources(&self.uid, id, limits).await;
            result.map_err(|error| format!("cannot resize container {}: {error}", container.name))?;
            out.set.insert(container.name.clone(), container.resources.clone().unwrap_or_default());
        }
        if wanted != meanwhile {
            for (id, container) in &self.idle {
                let _ = self.ctx.runtime.update_resources(&self.uid, id, self.of(container)).await;
            }
        }
        if out.group.as_ref().unwrap_or(&self.group) != &wanted {
            self.set_group(&wanted, out).await?;
        }
        Ok(())
    }

    fn of(&self, container: &Container) -> Resources {
        security::resources(&self.pod, container, self.qos_class, self.ctx.host.memory_bytes)
    }

    async fn set_group(&self, limits: &Resources, out: &mut Resized) -> Result<(), String> {
        let result = self.ctx.runtime.update_sandbox(&self.uid, limits.clone()).await;
        result.map_err(|error| format!("cannot resize the pod: {error}"))?;
        out.group = Some(limits.clone());
        Ok(())
    }

    /// Less memory than is in use would only kill.
    async fn check_memory(
        &self,
        id: &str,
        container: &Container,
        set: &ResourceRequirements,
        limits: &Resources,
    ) -> Result<(), String> {
        let before = resource_lists(Some(set)).1.get("memory").map(|q| q.units());
        let Some(limit) = limits.memory_limit_bytes.filter(|limit| before.is_none_or(|had| *limit < had))
        else {
            return Ok(());
        };
        let used =
            self.ctx.runtime.usage(&self.uid, id).await.map_or(0, |usage| usage.memory_working_set_bytes);
        if i64::try_from(used).unwrap_or(i64::MAX) >= limit {
            let name = &container.name;
            return Err(format!(
                "attempting to set container \"{name}\" memory limit ({limit}) below current usage ({used})"
            ));
        }
        Ok(())
    }

    /// As [`Resizer::check_memory`], of the Pod as a whole.
    async fn fits(&self, wanted: &Resources) -> Result<(), String> {
        let before = self.group.memory_limit_bytes;
        let Some(limit) = wanted.memory_limit_bytes.filter(|limit| before.is_none_or(|had| *limit < had))
        else {
            return Ok(());
        };
        let Ok(sandbox) = self.ctx.runtime.sandbox(&self.uid).await else { return Ok(()) };
        let mut used = 0;
        for container in &sandbox.containers {
            let usage = self.ctx.runtime.usage(&self.uid, &container.id).await;
            used += usage.map_or(0, |usage| usage.memory_working_set_bytes);
        }
        if i64::try_from(used).unwrap_or(i64::MAX) >= limit {
            return Err(format!("attempting to set pod memory limit ({limit}) below current usage ({used})"));
        }
        Ok(())
    }
}

/// Whether a container gets more of anything: those that only give come first.
fn grows(set: &ResourceRequirements, container: &Container) -> bool {
    let (_, before) = resource_lists(Some(set));
    let (_, now) = resource_lists(container.resources.as_ref());
    now.iter().any(|(name, amount)| before.get(name).is_some_and(|before| amount > before))
}

/// The larger of each limit; none is the largest.
fn larger(a: &Resources, b: &Resources) -> Resources {
    Resources {
        cpu_shares: a.cpu_shares.max(b.cpu_shares),
        cpu_quota_us: a.cpu_quota_us.zip(b.cpu_quota_us).map(|(a, b)| a.max(b)),
        cpu_period_us: a.cpu_period_us.zip(b.cpu_period_us).map(|(a, b)| a.max(b)),
        memory_limit_bytes: a.memory_limit_bytes.zip(b.memory_limit_bytes).map(|(a, b)| a.max(b)),
        pids_limit: a.pids_limit,
        oom_score_adj: a.oom_score_adj,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_two_sizes_lies_the_larger_of_each() {
        let of = |shares: u64, quota: Option<i64>, memory: Option<i64>| Resources {
            cpu_shares: Some(shares),
            cpu_quota_us: quota,
            memory_limit_bytes: memory,
            ..Default::default()
        };
        let (a, b) = (of(100, Some(5), Some(9)), of(200, Some(3), Some(10)));
        assert_eq!(larger(&a, &b), of(200, Some(5), Some(10)));
        assert_eq!(larger(&a, &of(1, None, None)), of(100, None, None), "no limit is the largest");
        let container = |cpu: &str| -> Container {
            serde_json::from_value(json!({"name": "c", "resources": {"limits": {"cpu": cpu}}})).unwrap()
        };
        let set = container("2").resources.unwrap();
        assert!(grows(&set, &container("3")) && !grows(&set, &container("1")));
    }
}
