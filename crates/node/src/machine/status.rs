//! The Pod's status as the API shows it, computed anew from what is known each time.

use super::*;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, HostIP, LinuxContainerUser, PodCondition, PodIP, PodStatus, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use skeg_api::pod::is_terminal_phase;
use skeg_api::predicates::is_sidecar;

/// The scheme of our container ids.
pub const CONTAINER_ID_SCHEME: &str = "skeg://";

/// The part of the status that belongs to the node.
///
/// `old` is what the node wrote last: its times stay where nothing changed.
pub fn status(
    pod: &Pod,
    old: Option<&PodStatus>,
    memory: &Memory,
    host_ips: &[String],
    qos_class: &str,
    now: Timestamp,
) -> PodStatus {
    let spec = spec(pod);
    let init = init_containers(spec);
    let initialized = initialized(spec, memory);
    let statuses = |containers: &[Container], sort: Sort| -> Vec<ContainerStatus> {
        containers.iter().map(|c| container_status(pod, c, sort, initialized, memory, now)).collect()
    };
    let init_statuses = statuses(init, Sort::Init);
    let main_statuses = statuses(&spec.containers, Sort::Main);
    let ephemeral: Vec<Container> =
        spec.ephemeral_containers.iter().flatten().map(ephemeral::as_container).collect();
    let ephemeral_statuses = statuses(&ephemeral, Sort::Ephemeral);
    let doing = running_phase(pod, memory, initialized);
    let coming = end(spec, memory).unwrap_or(doing);
    let terminal = is_terminal_phase(coming);
    // A Pod ends when the last of its containers has: until then it holds what others wait for.
    let was_terminal = old.and_then(|old| old.phase.as_deref()).is_some_and(is_terminal_phase);
    let held = terminal && !was_terminal && memory.is_alive();
    let ended = memory.ended.as_ref().filter(|_| !held);
    let phase = match (held, is_terminal_phase(doing)) {
        (false, _) => coming,
        (true, true) => "Running",
        (true, false) => doing,
    };
    let mut out = PodStatus {
        phase: Some(phase.to_owned()),
        reason: ended.map(|e| e.reason.clone()).filter(|r| !r.is_empty()),
        message: ended.map(|e| e.message.clone()).filter(|m| !m.is_empty()),
        host_ip: host_ips.first().cloned(),
        host_ips: (!host_ips.is_empty())
            .then(|| host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: memory.pod_ips.first().cloned(),
        pod_ips: (!memory.pod_ips.is_empty())
            .then(|| memory.pod_ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        start_time: memory.start_time.map(Time),
        qos_class: Some(qos_class.to_owned()),
        observed_generation: pod.metadata.generation,
        ..Default::default()
    };
    out.conditions =
        Some(conditions(pod, old, memory, coming, initialized, &init_statuses, &main_statuses, now));
    if let Some(evicted) = ended.filter(|ended| ended.reason == EVICTED) {
        out.conditions.get_or_insert_default().push(disruption(pod, old, &evicted.message, now));
    }
    if let Some(own) = spec.resources.as_ref().filter(|own| own.requests.is_some() || own.limits.is_some()) {
        out.allocated_resources.clone_from(&own.requests);
        out.resources = Some(own.clone());
    }
    // A Pod the node turned away never had containers.
    let rejected = ended.is_some() && memory.start_time.is_some() && memory.containers.is_empty();
    if !rejected {
        out.container_statuses = Some(main_statuses);
        out.init_container_statuses = (!init_statuses.is_empty()).then_some(init_statuses);
        out.ephemeral_container_statuses = (!ephemeral_statuses.is_empty()).then_some(ephemeral_statuses);
    }
    out
}

/// The phase the Pod ends with, whatever its main containers do.
fn end(spec: &PodSpec, memory: &Memory) -> Option<&'static str> {
    let ended = memory.ended.as_ref().map(|ended| ended.phase);
    ended.or_else(|| failed_init(spec, memory).map(|_| "Failed"))
}

/// The phase by what the containers do: upstream's `getPhase`.
fn running_phase(pod: &Pod, memory: &Memory, initialized: bool) -> &'static str {
    let spec = spec(pod);
    if !initialized {
        return "Pending";
    }
    let (mut waiting, mut running, mut succeeded, mut failed, mut restarting) = (0, 0, 0, 0, 0);
    for container in &spec.containers {
        match memory.container(&container.name).and_then(ContainerMemory::run) {
            None => waiting += 1,
            Some(run) if run.is_exited() => {
                let again = memory.container(&container.name).is_some_and(|known| known.again.is_some());
                if !is_deleting(pod) && (again || restarts(spec, container, false, run.exit_code)) {
                    restarting += 1;
                } else if run.exit_code == 0 {
                    succeeded += 1;
                } else {
                    failed += 1;
                }
            }
            Some(run) if run.is_running() && !(is_hooking(container, memory) && run.attempt == 0) => {
                running += 1
            }
            Some(_) => waiting += 1,
        }
    }
    if waiting > 0 {
        return "Pending";
    }
    if running > 0 || restarting > 0 {
        return "Running";
    }
    // Sidecars outlive the main containers; the Pod runs until they ended too.
    let sidecar_alive = init_containers(spec)
        .iter()
        .any(|c| is_sidecar(c) && memory.container(&c.name).is_some_and(ContainerMemory::is_running));
    match (sidecar_alive, succeeded, failed) {
        (true, _, _) => "Running",
        (_, _, 0) => "Succeeded",
        _ => "Failed",
    }
}

/// Its postStart hook runs: until that is done the container counts as being created.
fn is_hooking(container: &Container, memory: &Memory) -> bool {
    let hooked = container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
    let starting = |known: &ContainerMemory| known.is_running() && known.busy == Some(Busy::Starting);
    hooked && memory.container(&container.name).is_some_and(starting)
}

fn container_status(
    pod: &Pod,
    container: &Container,
    sort: Sort,
    initialized: bool,
    memory: &Memory,
    now: Timestamp,
) -> ContainerStatus {
    let spec = spec(pod);
    let is_init = sort == Sort::Init;
    let none = ContainerMemory::default();
    let known = memory.container(&container.name).unwrap_or(&none);
    let image = container.image.clone().unwrap_or_default();
    let mut out = ContainerStatus {
        name: container.name.clone(),
        image: image.clone(),
        image_id: String::new(),
        ready: false,
        restart_count: known.current.as_ref().map_or(0, |run| run.attempt as i32),
        started: Some(false),
        ..Default::default()
    };
    let waiting = |reason: &str, message: &str| ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: (!message.is_empty()).then(|| message.to_owned()),
        }),
        ..Default::default()
    };
    let default_reason = if !is_init && !initialized || is_init && !init_containers(spec).is_empty() {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    let over = is_finished(pod, memory) || is_deleting(pod);
    let mut last = known.previous.as_ref();
    let state = match &known.current {
        None => match &known.waiting {
            Some(why) => waiting(&why.reason, &why.message),
            None => {
                waiting(if is_init && known.busy.is_none() { "PodInitializing" } else { default_reason }, "")
            }
        },
        Some(_) if is_hooking(container, memory) => waiting(default_reason, ""),
        Some(run) if run.is_running() => {
            fill_run(&mut out, run);
            ContainerState {
                running: Some(ContainerStateRunning { started_at: run.started_at.map(seconds) }),
                ..Default::default()
            }
        }
        Some(run) if run.is_exited() => {
            fill_run(&mut out, run);
            let again = !over
                && sort != Sort::Ephemeral
                && (known.again.is_some() || restarts(spec, container, is_init, run.exit_code));
            // The back-off of the next crash is set when a restart begins: it does not hold that one.
            let held_until = run
                .finished_at
                .and_then(|at| known.restart_at(at))
                .filter(|at| *at > now && known.busy.is_none() && known.again != Some(Restart::AtOnce));
            match (again, &known.waiting, held_until) {
                // An end that was asked for is none, whatever the restart policy makes of it.
                (_, None, None) if known.again.is_some() && !over => {
                    last = Some(run);
                    waiting(default_reason, "")
                }
                (true, Some(why), _) => {
                    last = Some(run);
                    waiting(&why.reason, &why.message)
                }
                (true, None, Some(_)) => {
                    last = Some(run);
                    waiting("CrashLoopBackOff", &backoff_message(pod, container, known))
                }
                _ => terminated(run),
            }
        }
        Some(_) => waiting(default_reason, ""),
    };
    out.state = Some(state);
    out.last_state = Some(last.map(terminated).unwrap_or_default());
    out.volume_mounts = mount_statuses(container);
    if sort == Sort::Ephemeral {
        // Nobody waits for them, nor are they given anything.
        out.started = None;
        return out;
    }
    let running = known.is_running();
    let sidecar = is_init && is_sidecar(container);
    out.started = Some(running && (known.probes.started || is_init && !sidecar && known.busy.is_none()));
    out.ready = if is_init && !sidecar {
        known.run().is_some_and(Run::succeeded)
    } else {
        running && known.probes.started && known.probes.ready
    };
    if running {
        out.allocated_resources = container.resources.as_ref().and_then(|r| r.requests.clone());
        let set = memory.resize.actuated.get(&container.name).or(container.resources.as_ref());
        let mut set = set.cloned().unwrap_or_default();
        set.claims = None;
        out.resources = Some(set);
    }
    out
}

/// How the container's volumes are mounted.
fn mount_statuses(container: &Container) -> Option<Vec<k8s_openapi::api::core::v1::VolumeMountStatus>> {
    container.volume_mounts.as_ref().map(|mounts| {
        mounts
            .iter()
            .map(|m| k8s_openapi::api::core::v1::VolumeMountStatus {
                mount_path: m.mount_path.clone(),
                name: m.name.clone(),
                volume_status: None,
                read_only: m.read_only.filter(|ro| *ro),
                recursive_read_only: (m.read_only == Some(true))
                    .then(|| if is_recursive(m) { "Enabled" } else { "Disabled" }.to_owned()),
            })
            .collect()
    })
}

/// Whether what is mounted inside a read-only mount is read-only too: this node always can.
pub fn is_recursive(mount: &VolumeMount) -> bool {
    mount.read_only == Some(true)
        && matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"))
}

pub fn backoff_message(pod: &Pod, container: &Container, known: &ContainerMemory) -> String {
    let delay = known.backoff.map_or(CRASH_BACKOFF_MIN, |b| b.delay).as_secs();
    let meta = &pod.metadata;
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    format!(
        "back-off {} restarting failed container={} pod={}_{}({})",
        go_seconds(delay),
        container.name,
        text(&meta.name),
        text(&meta.namespace),
        text(&meta.uid)
    )
}

/// Whole seconds as Go prints durations: `10s`, `1m20s`, `5m0s`.
pub fn go_seconds(seconds: u64) -> String {
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

fn fill_run(out: &mut ContainerStatus, run: &Run) {
    if !run.image.is_empty() {
        out.image = run.image.clone();
    }
    out.image_id = run.image_id.clone();
    out.container_id = (!run.id.is_empty()).then(|| format!("{CONTAINER_ID_SCHEME}{}", run.id));
    // The API refuses a status with larger ids, which images may have: it is left out then.
    let known = |identity: &&runtime::Identity| {
        [identity.uid, identity.gid].iter().chain(&identity.groups).all(|id| i32::try_from(*id).is_ok())
    };
    out.user = run.identity.as_ref().filter(known).map(|identity| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: identity.uid.into(),
            gid: identity.gid.into(),
            supplemental_groups: Some(identity.groups.iter().map(|group| i64::from(*group)).collect()),
        }),
    });
}

fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

fn terminated(run: &Run) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: run.exit_code,
            signal: None,
            reason: Some(run.reason.clone()),
            message: (!run.message.is_empty()).then(|| run.message.clone()),
            started_at: run.started_at.map(seconds),
            finished_at: run.finished_at.map(seconds),
            container_id: (!run.id.is_empty()).then(|| format!("{CONTAINER_ID_SCHEME}{}", run.id)),
        }),
        ..Default::default()
    }
}

#[expect(clippy::too_many_arguments, reason = "one call, with everything a status is made from")]
fn conditions(
    pod: &Pod,
    old: Option<&PodStatus>,
    memory: &Memory,
    phase: &str,
    initialized: bool,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    now: Timestamp,
) -> Vec<PodCondition> {
    let spec = spec(pod);
    let old = old.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let shown = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let mut out = Vec::new();
    let mut add = |kind: &str, verdict: Result<(), (&str, String)>, completed: bool| {
        let (status, reason, message) = match verdict {
            Ok(()) => ("True", completed.then(|| "PodCompleted".to_owned()), None),
            Err((reason, message)) => (
                "False",
                Some(reason.to_owned()).filter(|r| !r.is_empty()),
                Some(message).filter(|m| !m.is_empty()),
            ),
        };
        let before = old.iter().find(|c| c.type_ == kind && c.status == status);
        let since = before.and_then(|c| c.last_transition_time.clone()).unwrap_or_else(|| seconds(now));
        out.push(PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason,
            message,
            last_transition_time: Some(since),
            last_probe_time: None,
            observed_generation: pod.metadata.generation,
        });
    };
    let sandboxed = matches!(memory.sandbox, Sandbox::Ready | Sandbox::Recovering);
    add("PodReadyToStartContainers", if sandboxed { Ok(()) } else { Err(("", String::new())) }, false);
    let succeeded = phase == "Succeeded";
    let init_verdict = if initialized || succeeded {
        Ok(())
    } else {
        let incomplete: Vec<&str> = init
            .iter()
            .zip(init_containers(spec))
            .filter(|(status, c)| if is_sidecar(c) { status.started != Some(true) } else { !status.ready })
            .map(|(status, _)| status.name.as_str())
            .collect();
        Err((
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", incomplete.join(" ")),
        ))
    };
    add("Initialized", init_verdict, succeeded);
    let sidecars = init.iter().zip(init_containers(spec)).filter(|(_, c)| is_sidecar(c)).map(|(s, _)| s);
    let unready: Vec<&str> = sidecars.chain(main).filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    let containers_ready = match phase {
        "Succeeded" => Err(("PodCompleted", String::new())),
        "Failed" => Err(("PodFailed", String::new())),
        _ if unready.is_empty() => Ok(()),
        _ => Err(("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))),
    };
    let gates: Vec<String> = spec
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            match shown.iter().find(|c| c.type_ == *kind) {
                None => {
                    Some(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist."))
                }
                Some(c) if c.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                    c.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    let ready = match (&containers_ready, gates.is_empty()) {
        (Ok(()), false) => Err(("ReadinessGatesNotReady", gates.join(", "))),
        _ => containers_ready.clone(),
    };
    add("Ready", ready, false);
    add("ContainersReady", containers_ready, false);
    // The scheduler's condition; Pods bound without it get it from the node.
    if !shown.iter().any(|c| c.type_ == "PodScheduled" && c.status == "True") {
        add("PodScheduled", Ok(()), false);
    }
    if phase == "Running" || phase == "Pending" {
        resize_conditions(pod, old, memory, now, &mut out);
    }
    out
}

/// The condition of a Pod that the node has evicted.
fn disruption(pod: &Pod, old: Option<&PodStatus>, message: &str, now: Timestamp) -> PodCondition {
    const KIND: &str = "DisruptionTarget";
    let old = old.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let before = old.iter().find(|c| c.type_ == KIND).and_then(|c| c.last_transition_time.clone());
    PodCondition {
        type_: KIND.to_owned(),
        status: "True".to_owned(),
        reason: Some("TerminationByKubelet".to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(before.unwrap_or_else(|| seconds(now))),
        last_probe_time: None,
        observed_generation: pod.metadata.generation,
    }
}

/// A resize that waits, and one that is under way.
fn resize_conditions(
    pod: &Pod,
    old: &[PodCondition],
    memory: &Memory,
    now: Timestamp,
    out: &mut Vec<PodCondition>,
) {
    let mut add = |kind: &str, reason: Option<&str>, message: Option<&str>, generation: Option<i64>| {
        let before = old.iter().find(|c| c.type_ == kind).and_then(|c| c.last_transition_time.clone());
        out.push(PodCondition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            reason: reason.map(str::to_owned),
            message: message.map(str::to_owned),
            last_transition_time: Some(before.unwrap_or_else(|| seconds(now))),
            last_probe_time: None,
            observed_generation: generation,
        });
    };
    let known = &memory.resize;
    if let Some(pending) = &known.pending {
        add("PodResizePending", Some(pending.reason), Some(&pending.message), pending.generation);
    }
    if resize::in_progress(pod, memory) {
        let error = known.error.as_deref();
        let generation = known.generation.or(pod.metadata.generation);
        add("PodResizeInProgress", error.map(|_| "Error"), error, generation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_resize_is_told_by_conditions_and_actual_sizes() {
        let resources = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let mut pod = pod("Always");
        pod.spec.as_mut().unwrap().containers[0].resources = serde_json::from_value(resources("2")).unwrap();
        let known = ContainerMemory { current: Some(run(0, None)), ..Default::default() };
        let mut memory = memory(known);
        let pending = resize::Pending {
            reason: "Deferred",
            message: "no room".into(),
            generation: Some(3),
            since: now(),
        };
        memory.resize.pending = Some(pending);
        memory.resize.actuated.insert("a".into(), serde_json::from_value(resources("1")).unwrap());
        memory.resize.error = Some("cannot".into());
        let shown = status(&pod, None, &memory, &[], "Burstable", now());
        let (waits, works) =
            (condition(&shown, "PodResizePending"), condition(&shown, "PodResizeInProgress"));
        assert_eq!((waits.reason.as_deref(), waits.message.as_deref()), (Some("Deferred"), Some("no room")));
        assert_eq!((works.reason.as_deref(), works.message.as_deref()), (Some("Error"), Some("cannot")));
        assert_eq!((waits.observed_generation, waits.status.as_str()), (Some(3), "True"));
        let container = &shown.container_statuses.as_ref().unwrap()[0];
        let text = |amounts: &Option<
            BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
        >| { amounts.as_ref().unwrap()["cpu"].0.clone() };
        assert_eq!(text(&container.allocated_resources), "2");
        assert_eq!(text(&container.resources.as_ref().unwrap().requests), "1", "what is set");
        memory.resize = resize::Resize::default();
        let shown = status(&pod, Some(&shown), &memory, &[], "Burstable", now());
        assert!(!shown.conditions.unwrap().iter().any(|c| c.type_.starts_with("PodResize")));
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_100).unwrap()
    }

    fn run(attempt: u32, exit: Option<i32>) -> Run {
        let start = Timestamp::from_second(1_700_000_000).unwrap();
        Run {
            id: format!("id{attempt}"),
            attempt,
            state: if exit.is_some() {
                runtime::ContainerState::Exited
            } else {
                runtime::ContainerState::Running
            },
            started_at: Some(start),
            finished_at: exit.map(|_| Timestamp::from_second(1_700_000_095).unwrap()),
            exit_code: exit.unwrap_or(0),
            signal: None,
            reason: if exit == Some(0) { "Completed".into() } else { "Error".into() },
            message: String::new(),
            image_id: "img@sha256:1".into(),
            stop_signal: 15,
            asked_image: String::new(),
            image: "img".into(),
            identity: Some(runtime::Identity { uid: 7, gid: 8, groups: vec![8, 9], home: "/".into() }),
            lost: false,
        }
    }

    fn pod(policy: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3},
            "spec": {"restartPolicy": policy, "containers": [{"name": "a", "image": "img"}]}
        }))
        .unwrap()
    }

    fn memory(container: ContainerMemory) -> Memory {
        let mut memory = Memory { sandbox: Sandbox::Ready, volumes: Volumes::Ready, ..Default::default() };
        memory.start_time = Some(now());
        memory.containers.insert("a".into(), container);
        memory
    }

    fn condition<'a>(status: &'a PodStatus, kind: &str) -> &'a PodCondition {
        status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == kind).unwrap()
    }

    #[test]
    fn a_running_ready_container_makes_the_pod_ready() {
        let probes = Probes { started: true, ready: true, ..Default::default() };
        let known = ContainerMemory { current: Some(run(0, None)), probes, ..Default::default() };
        let status = status(&pod("Always"), None, &memory(known), &["10.0.0.1".into()], "BestEffort", now());
        assert_eq!(status.phase.as_deref(), Some("Running"));
        assert_eq!(condition(&status, "Ready").status, "True");
        assert_eq!(condition(&status, "Ready").observed_generation, Some(3));
        let container = &status.container_statuses.as_ref().unwrap()[0];
        assert_eq!(container.container_id.as_deref(), Some("skeg://id0"));
        let user = container.user.as_ref().unwrap().linux.as_ref().unwrap();
        assert_eq!((user.uid, user.gid, user.supplemental_groups.as_deref()), (7, 8, Some(&[8, 9][..])));
        assert!(container.ready);
        let mut nobody = run(0, None);
        nobody.identity.as_mut().unwrap().uid = u32::MAX - 1;
        let mut shown = ContainerStatus::default();
        fill_run(&mut shown, &nobody);
        assert!(shown.user.is_none());
    }

    #[test]
    fn a_container_runs_once_its_post_start_hook_is_done() {
        let mut pod = pod("Always");
        let hook = json!({"postStart": {"exec": {"command": ["true"]}}});
        let shown = |pod: &Pod, attempt: u32, busy: Option<Busy>| {
            let previous = (attempt > 0).then(|| run(attempt - 1, Some(1)));
            let known =
                ContainerMemory { current: Some(run(attempt, None)), previous, busy, ..Default::default() };
            let status = status(pod, None, &memory(known), &[], "BestEffort", now());
            let state = status.container_statuses.unwrap().remove(0).state.unwrap();
            let waits = state.waiting.and_then(|w| w.reason).unwrap_or_default();
            (status.phase.unwrap(), waits, state.running.is_some())
        };
        let running = ("Running".to_owned(), String::new(), true);
        assert_eq!(shown(&pod, 0, Some(Busy::Starting)), running, "without a hook it runs");
        pod.spec.as_mut().unwrap().containers[0].lifecycle = serde_json::from_value(hook).unwrap();
        let creating = "ContainerCreating".to_owned();
        assert_eq!(shown(&pod, 0, Some(Busy::Starting)), ("Pending".to_owned(), creating.clone(), false));
        assert_eq!(shown(&pod, 1, Some(Busy::Starting)), ("Running".to_owned(), creating, false));
        assert_eq!(shown(&pod, 1, Some(Busy::Stopping)), running);
        assert_eq!(shown(&pod, 0, None), running);
    }

    #[test]
    fn a_crash_loop_shows_waiting_with_the_last_state() {
        let mut known = ContainerMemory { current: Some(run(2, Some(1))), ..Default::default() };
        known.backoff = Some(CrashBackoff {
            delay: Duration::from_secs(80),
            updated: known.current.as_ref().unwrap().finished_at.unwrap(),
        });
        let status = status(&pod("Always"), None, &memory(known), &[], "BestEffort", now());
        assert_eq!(status.phase.as_deref(), Some("Running"));
        let container = &status.container_statuses.as_ref().unwrap()[0];
        let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!(
            waiting.message.as_deref(),
            Some("back-off 1m20s restarting failed container=a pod=p_n(u)")
        );
        assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
        assert_eq!(container.restart_count, 2);
    }

    #[test]
    fn an_ephemeral_container_shows_how_it_is_and_bears_on_nothing() {
        let mut pod = pod("Always");
        let debug = json!({"name": "debug", "image": "img"});
        pod.spec.as_mut().unwrap().ephemeral_containers = Some(vec![serde_json::from_value(debug).unwrap()]);
        let probes = Probes { started: true, ready: true, ..Default::default() };
        let mut memory =
            memory(ContainerMemory { current: Some(run(0, None)), probes, ..Default::default() });
        let shown = |memory: &Memory| {
            let status = status(&pod, None, memory, &[], "BestEffort", now());
            assert_eq!(condition(&status, "Ready").status, "True");
            status.ephemeral_container_statuses.unwrap().remove(0)
        };
        let waiting = shown(&memory).state.unwrap().waiting.unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("ContainerCreating"));
        let known = ContainerMemory { current: Some(run(0, None)), ..Default::default() };
        memory.containers.insert("debug".into(), known);
        let running = shown(&memory);
        assert!(running.state.unwrap().running.is_some() && !running.ready && running.started.is_none());
        memory.containers.get_mut("debug").unwrap().current = Some(run(0, Some(1)));
        let ended = shown(&memory);
        assert_eq!(ended.state.unwrap().terminated.unwrap().exit_code, 1, "it is not to restart");
        assert_eq!(ended.restart_count, 0);
    }

    #[test]
    fn an_end_that_was_asked_for_is_none() {
        for (again, reason) in
            [(Restart::AtOnce, "ContainerCreating"), (Restart::BackedOff, "CrashLoopBackOff")]
        {
            let mut known =
                ContainerMemory { current: Some(run(0, Some(0))), again: Some(again), ..Default::default() };
            let finished = known.current.as_ref().unwrap().finished_at.unwrap();
            known.backoff = Some(CrashBackoff { delay: CRASH_BACKOFF_MAX, updated: finished });
            let status = status(&pod("OnFailure"), None, &memory(known), &[], "BestEffort", now());
            assert_eq!(status.phase.as_deref(), Some("Running"));
            let container = &status.container_statuses.as_ref().unwrap()[0];
            let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
            assert_eq!(waiting.reason.as_deref(), Some(reason));
            assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 0);
        }
    }

    #[test]
    fn a_restart_under_way_is_no_crash_loop() {
        let mut known = ContainerMemory { current: Some(run(0, Some(1))), ..Default::default() };
        known.backoff = Some(known.next_backoff(known.current.as_ref().unwrap().finished_at.unwrap()));
        known.busy = Some(Busy::Starting);
        let status = status(&pod("Always"), None, &memory(known), &[], "BestEffort", now());
        let state = status.container_statuses.as_ref().unwrap()[0].state.clone().unwrap();
        assert_eq!(state.terminated.unwrap().exit_code, 1);
    }

    #[test]
    fn ends_are_told_apart() {
        for (policy, code, phase, reason) in [
            ("Never", 0, "Succeeded", "PodCompleted"),
            ("Never", 1, "Failed", "PodFailed"),
            ("OnFailure", 0, "Succeeded", "PodCompleted"),
        ] {
            let known = ContainerMemory { current: Some(run(0, Some(code))), ..Default::default() };
            let status = status(&pod(policy), None, &memory(known), &[], "BestEffort", now());
            assert_eq!(status.phase.as_deref(), Some(phase));
            assert_eq!(condition(&status, "Ready").reason.as_deref(), Some(reason));
        }
    }

    #[test]
    fn an_evicted_pod_failed_and_was_a_disruption() {
        let known = ContainerMemory { current: Some(run(0, Some(137))), ..Default::default() };
        let mut memory = memory(known);
        memory.ended = Some(Ended { phase: "Failed", reason: EVICTED.into(), message: "too much".into() });
        let status = status(&pod("Always"), None, &memory, &[], "BestEffort", now());
        assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Evicted")));
        assert_eq!(status.message.as_deref(), Some("too much"));
        let target = condition(&status, "DisruptionTarget");
        assert_eq!(
            (target.status.as_str(), target.reason.as_deref()),
            ("True", Some("TerminationByKubelet"))
        );
    }

    #[test]
    fn a_pod_ends_with_its_last_container() {
        let ended = |reason: &str| Ended { phase: "Failed", reason: reason.into(), message: "why".into() };
        let busy = ContainerMemory { busy: Some(Busy::Starting), ..Default::default() };
        let runs = |exit| ContainerMemory { current: Some(run(0, exit)), ..Default::default() };
        let mut pod = pod("Never");
        let init = json!([{"name": "s", "restartPolicy": "Always"}, {"name": "i"}]);
        pod.spec.as_mut().unwrap().init_containers = serde_json::from_value(init).unwrap();
        for (what, end, containers, phase) in [
            ("its deadline", Some("DeadlineExceeded"), vec![("a", runs(None))], "Running"),
            ("an eviction", Some(EVICTED), vec![("a", runs(None))], "Running"),
            (
                "a sidecar ends last",
                Some(EVICTED),
                vec![("a", runs(Some(143))), ("s", runs(None))],
                "Running",
            ),
            (
                "a start under way",
                Some("DeadlineExceeded"),
                vec![("i", runs(Some(0))), ("a", busy)],
                "Pending",
            ),
            ("a failed init container", None, vec![("i", runs(Some(1))), ("s", runs(None))], "Pending"),
        ] {
            let mut memory = memory(ContainerMemory::default());
            memory.containers = containers.into_iter().map(|(name, c)| (name.to_owned(), c)).collect();
            memory.ended = end.map(ended);
            let told = |memory: &Memory, old: Option<&PodStatus>| {
                let status = status(&pod, old, memory, &[], "BestEffort", now());
                let ready = condition(&status, "Ready");
                assert_eq!(
                    (ready.status.as_str(), ready.reason.as_deref()),
                    ("False", Some("PodFailed")),
                    "{what}"
                );
                let disrupted = status.conditions.iter().flatten().any(|c| c.type_ == "DisruptionTarget");
                (status.phase.clone().unwrap(), status.reason.clone(), disrupted)
            };
            assert_eq!(told(&memory, None), (phase.into(), None, false), "{what}");
            assert!(memory.is_alive() && !memory.is_over());
            // Who was told that it has ended is not told otherwise.
            let failed = PodStatus { phase: Some("Failed".into()), ..Default::default() };
            assert_eq!(told(&memory, Some(&failed)).0, "Failed", "{what}");
            for known in memory.containers.values_mut() {
                known.busy = None;
                known.current.get_or_insert(run(0, Some(143))).state = runtime::ContainerState::Exited;
            }
            let disrupted = end == Some(EVICTED);
            assert_eq!(told(&memory, None), ("Failed".into(), end.map(str::to_owned), disrupted), "{what}");
            assert_eq!(memory.is_over(), end.is_some());
        }
        // One whose sandbox died has nothing left to run.
        let mut memory = memory(runs(None));
        (memory.sandbox, memory.ended) = (Sandbox::Dead, Some(ended(EVICTED)));
        assert_eq!(status(&pod, None, &memory, &[], "BestEffort", now()).phase.as_deref(), Some("Failed"));
    }

    #[test]
    fn times_stay_while_a_condition_does() {
        let pod = pod("Always");
        let first = status(&pod, None, &memory(ContainerMemory::default()), &[], "BestEffort", now());
        let later = Timestamp::from_second(1_700_000_200).unwrap();
        let again = status(&pod, Some(&first), &memory(ContainerMemory::default()), &[], "BestEffort", later);
        assert_eq!(first, again);
        let waiting =
            again.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("ContainerCreating"));
        assert_eq!(
            condition(&again, "Ready").message.as_deref(),
            Some("containers with unready status: [a]")
        );
    }
}
