//! The Pod machine: what should happen next to one Pod, as a pure function of its object, what
//! its worker knows, and the time. Touches no runtime, file, socket or clock; the worker acts.
//! Upstream counterpart: `computePodActions` and `getPhase` in `pkg/kubelet`.

pub mod ephemeral;
pub mod plan;
pub mod resize;
pub mod status;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use skeg_base::Timestamp;
use skeg_runtime as runtime;
use std::collections::BTreeMap;
use std::time::Duration;

/// Crash back-off: upstream's `containerBackOffPeriod` and `MaxContainerBackOff`.
pub const CRASH_BACKOFF_MIN: Duration = Duration::from_secs(10);
pub const CRASH_BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A container that ran so long after its last crash starts afresh.
const CRASH_BACKOFF_RESET: Duration = Duration::from_secs(600);

/// The reason of Pods that the node ends because they take more than they may.
pub const EVICTED: &str = "Evicted";
/// What their containers get to end, whatever the Pod asks for.
pub const EVICTION_GRACE_SECONDS: i64 = 1;
/// The grace of a Pod that names none, which defaults fill in.
pub const DEFAULT_GRACE_SECONDS: i64 = 30;
/// What containers get whose Pod somebody removed without waiting for them.
pub const REMOVED_GRACE_SECONDS: i64 = 1;

/// What a worker knows of its Pod beyond the API object.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub sandbox: Sandbox,
    pub volumes: Volumes,
    pub containers: BTreeMap<String, ContainerMemory>,
    /// The Pod's end, decided by the node: rejected, past its deadline, … Its containers may still
    /// be ending.
    pub ended: Option<Ended>,
    pub start_time: Option<Timestamp>,
    /// Addresses, once there is a network; they stay in the status after the sandbox is gone.
    pub pod_ips: Vec<String>,
    /// The status that says the Pod is terminal is stored.
    pub terminal_stored: bool,
    pub resize: resize::Resize,
    /// Since when the Pod is on its way out: its containers share one grace.
    pub ending_since: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Sandbox {
    #[default]
    Missing,
    /// Creation failed; again at that time.
    Failed {
        retry_at: Timestamp,
    },
    Creating,
    /// Found running by a new agent, which makes sure of its network. Nobody else notices.
    Recovering,
    Ready,
    /// Its supervisor died: everything in it is lost.
    Dead,
    Removing,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Volumes {
    #[default]
    Missing,
    Preparing,
    Failed {
        retry_at: Timestamp,
    },
    Ready,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    pub phase: &'static str,
    pub reason: String,
    pub message: String,
}

/// What is known of one container of the Pod.
#[derive(Clone, Debug, Default)]
pub struct ContainerMemory {
    pub current: Option<Run>,
    /// The run before the current one.
    pub previous: Option<Run>,
    pub busy: Option<Busy>,
    /// Why it cannot be started at the moment.
    pub waiting: Option<Waiting>,
    /// Not before this, after a failure to pull, configure or create.
    pub retry_at: Option<Timestamp>,
    pub backoff: Option<CrashBackoff>,
    pub probes: Probes,
    /// It was stopped to be started again, however it ended.
    pub again: Option<Restart>,
    /// Its preStop hook ran before its turn to end came.
    pub hooked: bool,
}

/// How soon a container that was stopped starts again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Restart {
    /// It is another one now, with a back-off of its own.
    AtOnce,
    /// Like one that crashed.
    BackedOff,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Busy {
    Starting,
    Stopping,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrashBackoff {
    pub delay: Duration,
    /// When the crash that set it happened.
    pub updated: Timestamp,
}

/// What probes have found about the current run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Probes {
    /// Startup probe: passed. Without one, true as soon as the container runs.
    pub started: bool,
    /// Readiness probe: succeeding. Without one, true.
    pub ready: bool,
    /// A liveness or startup probe failed: kill it, saying this.
    pub kill: Option<String>,
    /// Grace of that kill, where the probe has its own.
    pub kill_grace: Option<i64>,
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub id: String,
    pub attempt: u32,
    pub state: runtime::ContainerState,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub exit_code: i32,
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, …
    pub reason: String,
    pub message: String,
    pub image_id: String,
    /// How it wants to be stopped.
    pub stop_signal: i32,
    /// The image the spec asked for when it was created; another one restarts the container.
    pub asked_image: String,
    /// The image as the status shows it.
    pub image: String,
    /// Who its first process is at its start.
    pub identity: Option<runtime::Identity>,
    /// The sandbox that it was made in is gone, and with it what it did there.
    pub lost: bool,
}

impl Run {
    pub fn is_running(&self) -> bool {
        self.state == runtime::ContainerState::Running
    }

    pub fn is_exited(&self) -> bool {
        self.state == runtime::ContainerState::Exited
    }

    /// Made, but never started.
    pub fn is_created(&self) -> bool {
        self.state == runtime::ContainerState::Created
    }

    pub fn succeeded(&self) -> bool {
        self.is_exited() && self.exit_code == 0
    }

    /// An init container's part is done.
    pub fn prepared(&self) -> bool {
        self.succeeded() && !self.lost
    }
}

impl ContainerMemory {
    pub fn run(&self) -> Option<&Run> {
        self.current.as_ref()
    }

    pub fn is_running(&self) -> bool {
        self.current.as_ref().is_some_and(Run::is_running)
    }

    /// It runs, or may yet.
    pub fn is_alive(&self) -> bool {
        self.busy.is_some() || self.current.as_ref().is_some_and(|run| !run.is_exited())
    }

    /// The attempt number of the next run. A run that never started was no attempt.
    pub fn next_attempt(&self) -> u32 {
        self.current.as_ref().map_or(0, |run| run.attempt + u32::from(!run.is_created()))
    }

    /// When a container that ended at `finished` may start again, by its crash back-off.
    pub fn restart_at(&self, finished: Timestamp) -> Option<Timestamp> {
        let backoff = self.live_backoff(finished)?;
        finished.checked_add(backoff.delay).ok()
    }

    /// The back-off after another restart.
    pub fn next_backoff(&self, finished: Timestamp) -> CrashBackoff {
        let delay =
            self.live_backoff(finished).map_or(CRASH_BACKOFF_MIN, |b| (b.delay * 2).min(CRASH_BACKOFF_MAX));
        CrashBackoff { delay, updated: finished }
    }

    fn live_backoff(&self, finished: Timestamp) -> Option<CrashBackoff> {
        let reset = |b: &CrashBackoff| b.updated.checked_add(CRASH_BACKOFF_RESET).unwrap_or(Timestamp::MAX);
        self.backoff.filter(|b| finished <= reset(b))
    }
}

impl Memory {
    pub fn container(&self, name: &str) -> Option<&ContainerMemory> {
        self.containers.get(name)
    }

    pub fn is_idle(&self) -> bool {
        self.containers.values().all(|c| c.busy.is_none())
    }

    /// A container of it runs, or may yet: what the Pod holds is not free before.
    pub fn is_alive(&self) -> bool {
        self.sandbox != Sandbox::Dead && self.containers.values().any(ContainerMemory::is_alive)
    }

    /// The node has ended the Pod, and nothing of it is left running.
    pub fn is_over(&self) -> bool {
        self.ended.is_some() && !self.is_alive()
    }
}

pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

pub fn init_containers(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

/// Which list of the spec a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Init,
    Main,
    Ephemeral,
}

impl Sort {
    /// The sort of the container of that name; names are unique over all lists.
    pub fn of(spec: &PodSpec, name: &str) -> Sort {
        if init_containers(spec).iter().any(|c| c.name == name) {
            Sort::Init
        } else if spec.ephemeral_containers.iter().flatten().any(|c| c.name == name) {
            Sort::Ephemeral
        } else {
            Sort::Main
        }
    }

    /// The list's name.
    pub fn list(self) -> &'static str {
        match self {
            Sort::Init => "initContainers",
            Sort::Main => "containers",
            Sort::Ephemeral => "ephemeralContainers",
        }
    }
}

/// Init containers, then main containers.
pub fn all_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    init_containers(spec).iter().chain(&spec.containers)
}

pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether a container whose run ended with this code runs again.
pub fn restarts(spec: &PodSpec, container: &Container, is_init: bool, exit_code: i32) -> bool {
    skeg_api::predicates::restarts(spec.restart_policy.as_deref(), container, is_init, exit_code)
}

/// The main containers have nothing left to do, now or later.
pub fn mains_finished(pod_spec: &PodSpec, memory: &Memory) -> bool {
    pod_spec.containers.iter().all(|container| {
        let Some(known) = memory.container(&container.name) else { return false };
        let Some(run) = known.run() else { return false };
        run.is_exited() && known.again.is_none() && !restarts(pod_spec, container, false, run.exit_code)
    })
}

/// An init container that failed for good.
pub fn failed_init<'a>(pod_spec: &'a PodSpec, memory: &Memory) -> Option<&'a Container> {
    init_containers(pod_spec).iter().find(|container| {
        !skeg_api::predicates::is_sidecar(container)
            && memory.container(&container.name).and_then(ContainerMemory::run).is_some_and(|run| {
                run.is_exited() && run.exit_code != 0 && !restarts(pod_spec, container, true, run.exit_code)
            })
    })
}

/// The Pod will never run anything again.
pub fn is_finished(pod: &Pod, memory: &Memory) -> bool {
    let spec = spec(pod);
    memory.ended.is_some() || failed_init(spec, memory).is_some() || mains_finished(spec, memory)
}

/// All init containers did their part: plain ones succeeded, sidecars have started.
pub fn initialized(spec: &PodSpec, memory: &Memory) -> bool {
    mains_begun(spec, memory)
        || init_containers(spec).iter().all(|container| {
            let Some(known) = memory.container(&container.name) else { return false };
            if skeg_api::predicates::is_sidecar(container) {
                known.is_running() && known.probes.started
            } else {
                known.run().is_some_and(Run::prepared)
            }
        })
}

/// Whether any main container was started in this sandbox, or all are done: init containers are then
/// not looked at again. In a new sandbox they all run again.
pub fn mains_begun(spec: &PodSpec, memory: &Memory) -> bool {
    let over = memory.ended.is_some() || mains_finished(spec, memory);
    let current = |c: &Container| memory.container(&c.name).and_then(|known| known.current.as_ref());
    spec.containers.iter().filter_map(current).any(|run| over || !run.lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crash_back_off_doubles_to_five_minutes_and_forgets_after_ten() {
        let at = |s| Timestamp::from_second(1_700_000_000 + s).unwrap();
        let (mut known, mut now, mut delays) = (ContainerMemory::default(), 0, vec![]);
        for _ in 0..7 {
            known.backoff = Some(known.next_backoff(at(now)));
            let restart = known.restart_at(at(now)).unwrap();
            delays.push(restart.duration_since(at(now)).as_secs());
            now = restart.as_second() - 1_700_000_000 + 1;
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
        let long_after = at(now + 700);
        assert_eq!(known.next_backoff(long_after).delay, CRASH_BACKOFF_MIN);
        assert_eq!(known.restart_at(long_after), None, "at once");
    }
}
