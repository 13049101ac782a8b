//! The decisions.

use super::*;
use skeg_api::predicates::is_sidecar;

/// One thing the worker does. Those that take time run beside each other; what they are about is
/// marked busy in [`Memory`] until they are done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    PrepareVolumes,
    CreateSandbox,
    /// Everything in it has ended, or it is dead.
    RemoveSandbox,
    Start {
        container: String,
    },
    Stop {
        container: String,
        message: String,
        grace: Option<i64>,
        /// To be started again, however it ends.
        again: Option<Restart>,
    },
    /// Runs the preStop hook of a sidecar whose turn to end comes later.
    PreStop {
        container: String,
        grace: Option<i64>,
    },
    /// Sets what is allocated on the Pod and on its containers that need no restart for it.
    Resize,
    /// Ends the Pod by the node's own decision.
    End(Ended),
    /// Nothing is left on this host: delete the object.
    Finish,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Plan again then, if nothing happens before.
    pub wake_at: Option<Timestamp>,
    /// The Pod is on its way out: what is being started is started no further.
    pub ending: bool,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |old| old.min(at)));
    }

    /// Stops it, for a restart where `again` says so.
    fn stop(&mut self, container: &str, message: String, grace: Option<i64>, again: Option<Restart>) {
        self.actions.push(Action::Stop { container: container.to_owned(), message, grace, again });
    }
}

/// What to do now. `gone` says that the object does not exist any more.
pub fn plan(pod: &Pod, gone: bool, memory: &Memory, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let spec = spec(pod);
    if memory.ended.is_none()
        && !is_deleting(pod)
        && let Some(ended) = past_deadline(spec, memory, now, &mut plan)
    {
        plan.actions.push(Action::End(ended));
        return plan;
    }
    let leaving = gone || is_deleting(pod);
    if leaving || is_finished(pod, memory) {
        plan.ending = true;
        wind_down(pod, gone, leaving, memory, now, &mut plan);
        return plan;
    }
    match &memory.sandbox {
        Sandbox::Dead if memory.is_idle() => plan.actions.push(Action::RemoveSandbox),
        Sandbox::Missing => plan.actions.push(Action::CreateSandbox),
        Sandbox::Failed { retry_at } if *retry_at <= now => plan.actions.push(Action::CreateSandbox),
        Sandbox::Failed { retry_at } => plan.wake(*retry_at),
        _ => {}
    }
    match &memory.volumes {
        Volumes::Missing => plan.actions.push(Action::PrepareVolumes),
        Volumes::Failed { retry_at } if *retry_at <= now => plan.actions.push(Action::PrepareVolumes),
        Volumes::Failed { retry_at } => plan.wake(*retry_at),
        _ => {}
    }
    let ready = memory.sandbox == Sandbox::Ready && memory.volumes == Volumes::Ready;
    if ready && !resizes(pod, memory, now, &mut plan) {
        containers(spec, memory, now, &mut plan);
    }
    plan
}

/// What a resize that is under way needs. While it lasts no container starts: it would start with a
/// size that the Pod as a whole does not have yet. A failed one holds nobody up until it is retried.
fn resizes(pod: &Pod, memory: &Memory, now: Timestamp, plan: &mut Plan) -> bool {
    if !resize::in_progress(pod, memory) {
        return false;
    }
    if memory.resize.busy {
        return true;
    }
    if let Some(at) = memory.resize.retry_at.filter(|at| *at > now) {
        plan.wake(at);
        return false;
    }
    let mut restarting = false;
    for container in all_containers(spec(pod)).filter(|c| resize::must_restart(memory, c)) {
        restarting = true;
        if memory.container(&container.name).is_some_and(|known| known.busy.is_none()) {
            let name = &container.name;
            let message = format!("Container {name} resize requires restart");
            plan.stop(name, message, None, Some(Restart::AtOnce));
        }
    }
    if !restarting {
        plan.actions.push(Action::Resize);
    }
    true
}

fn past_deadline(spec: &PodSpec, memory: &Memory, now: Timestamp, plan: &mut Plan) -> Option<Ended> {
    let seconds = u64::try_from(spec.active_deadline_seconds?).ok()?;
    let deadline = memory.start_time?.checked_add(Duration::from_secs(seconds)).ok()?;
    if now < deadline {
        plan.wake(deadline);
        return None;
    }
    Some(Ended {
        phase: "Failed",
        reason: "DeadlineExceeded".into(),
        message: "Pod was active on the node longer than the specified deadline".into(),
    })
}

fn containers(spec: &PodSpec, memory: &Memory, now: Timestamp, plan: &mut Plan) {
    for container in spec.ephemeral_containers.iter().flatten() {
        match ephemeral::next(&container.name, memory, now) {
            ephemeral::Next::Start => plan.actions.push(Action::Start { container: container.name.clone() }),
            ephemeral::Next::Wake(at) => plan.wake(at),
            ephemeral::Next::Nothing => {}
        }
    }
    let begun = mains_begun(spec, memory);
    let mut gate_open = true;
    for container in init_containers(spec) {
        let sidecar = is_sidecar(container);
        if begun && !sidecar {
            continue;
        }
        if !begun && !gate_open {
            break;
        }
        one(spec, container, true, memory, now, plan);
        let known = memory.container(&container.name);
        gate_open = if sidecar {
            known.is_some_and(|m| m.is_running() && m.probes.started)
        } else {
            known.and_then(ContainerMemory::run).is_some_and(Run::prepared)
        };
    }
    if begun || gate_open {
        for container in &spec.containers {
            let before = plan.actions.len();
            one(spec, container, false, memory, now, plan);
            // Its postStart hook holds the next ones up: what they need may be its doing.
            let hooked = container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
            let busy = memory.container(&container.name).and_then(|known| known.busy);
            let starts = matches!(plan.actions.get(before), Some(Action::Start { .. }));
            if hooked && (starts || busy == Some(Busy::Starting)) {
                break;
            }
        }
    }
}

/// Keeps one container as it should be: running, or ended for good.
fn one(
    spec: &PodSpec,
    container: &Container,
    is_init: bool,
    memory: &Memory,
    now: Timestamp,
    plan: &mut Plan,
) {
    let name = &container.name;
    let start = |plan: &mut Plan| plan.actions.push(Action::Start { container: name.clone() });
    let Some(known) = memory.container(name) else { return start(plan) };
    if known.busy.is_some() {
        return;
    }
    if let Some(at) = known.retry_at.filter(|at| *at > now) {
        return plan.wake(at);
    }
    match &known.current {
        None => start(plan),
        Some(run) if run.is_exited() => {
            match known.again {
                Some(Restart::AtOnce) => return start(plan),
                Some(Restart::BackedOff) => {}
                None if run.lost && run.succeeded() && is_init => return start(plan),
                None if restarts(spec, container, is_init, run.exit_code) => {}
                None => return,
            }
            match run.finished_at.and_then(|finished| known.restart_at(finished)) {
                Some(at) if at > now => plan.wake(at),
                _ => start(plan),
            }
        }
        Some(run) if run.is_running() => {
            if let Some(why) = &known.probes.kill {
                // A container that ends well when it is told to is not done for that.
                let again = may_restart(spec, container).then_some(Restart::BackedOff);
                let told = if again.is_some() { ", will be restarted" } else { "" };
                plan.stop(name, format!("{why}{told}"), known.probes.kill_grace, again);
            } else if (!is_init || is_sidecar(container))
                && !run.asked_image.is_empty()
                && container.image.as_ref() != Some(&run.asked_image)
            {
                let message = format!("Container {name} definition changed, will be restarted");
                plan.stop(name, message, None, Some(Restart::AtOnce));
            }
        }
        // Created but never started: its start was interrupted (the agent died between the two).
        Some(_) => start(plan),
    }
}

/// Whether it has a restart policy that starts it again at all.
fn may_restart(spec: &PodSpec, container: &Container) -> bool {
    container.restart_policy.as_deref().or(spec.restart_policy.as_deref()) != Some("Never")
}

/// What a Pod gives its containers to end in, in seconds.
pub fn own_grace(spec: &PodSpec) -> i64 {
    spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS)
}

/// What is told of a container that ends with its Pod.
pub fn stopping(container: &str) -> String {
    format!("Stopping container {container}")
}

/// What the containers that ended before left of the Pod's grace.
fn left_of(whole: i64, memory: &Memory, now: Timestamp) -> i64 {
    let spent = memory.ending_since.map_or(0, |since| now.as_second() - since.as_second());
    (whole - spent).max(0)
}

/// Ends what still runs: main containers together, then sidecars one by one in reverse order, whose
/// preStop hooks begin with the first; then the sandbox, then, for a Pod that is being deleted, the
/// object.
fn wind_down(pod: &Pod, gone: bool, leaving: bool, memory: &Memory, now: Timestamp, plan: &mut Plan) {
    let spec = spec(pod);
    let grace = match &memory.ended {
        _ if gone => Some(REMOVED_GRACE_SECONDS),
        _ if leaving => pod.metadata.deletion_grace_period_seconds,
        Some(ended) if ended.reason == EVICTED => Some(EVICTION_GRACE_SECONDS),
        _ => None,
    };
    let alive = |name: &str| memory.container(name).is_some_and(ContainerMemory::is_alive);
    let idle_and_alive = |name: &str| alive(name) && memory.container(name).is_some_and(|m| m.busy.is_none());
    let (sidecars, inits): (Vec<_>, Vec<_>) = init_containers(spec).iter().partition(|c| is_sidecar(c));
    let sandbox_lost = matches!(memory.sandbox, Sandbox::Dead);
    let mut any_alive = false;
    if !sandbox_lost {
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| &c.name);
        for name in spec.containers.iter().chain(inits).map(|c| &c.name).chain(ephemeral) {
            any_alive |= alive(name);
            if idle_and_alive(name) {
                plan.stop(name, stopping(name), grace, None);
            }
        }
        let to_hook = |c: &Container| {
            let has_hook = c.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some());
            has_hook && idle_and_alive(&c.name) && memory.container(&c.name).is_some_and(|m| !m.hooked)
        };
        for sidecar in sidecars.iter().filter(|c| to_hook(c)) {
            plan.actions.push(Action::PreStop { container: sidecar.name.clone(), grace });
        }
        if any_alive {
            return;
        }
        if let Some(last) = sidecars.iter().rev().find(|c| alive(&c.name)) {
            if idle_and_alive(&last.name) && !to_hook(last) {
                let whole = grace.unwrap_or_else(|| own_grace(spec));
                plan.stop(&last.name, stopping(&last.name), Some(left_of(whole, memory, now)), None);
            }
            return;
        }
    }
    if !memory.is_idle() || matches!(memory.volumes, Volumes::Preparing) {
        return;
    }
    match memory.sandbox {
        Sandbox::Creating | Sandbox::Recovering | Sandbox::Removing => {}
        // How the containers ended must be stored before the runtime forgets it.
        Sandbox::Ready | Sandbox::Dead if leaving || memory.terminal_stored => {
            plan.actions.push(Action::RemoveSandbox);
        }
        Sandbox::Ready | Sandbox::Dead => {}
        Sandbox::Missing | Sandbox::Failed { .. } if leaving => plan.actions.push(Action::Finish),
        Sandbox::Missing | Sandbox::Failed { .. } => {}
    }
}

/// What tests of the machine share.
#[cfg(test)]
pub(super) mod tests_support {
    use super::*;
    use serde_json::{Value, json};

    pub fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    pub fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}))
            .unwrap()
    }

    pub fn ready() -> Memory {
        Memory {
            sandbox: Sandbox::Ready,
            volumes: Volumes::Ready,
            start_time: Some(at(0)),
            ..Default::default()
        }
    }

    pub fn run(state: runtime::ContainerState, exit_code: i32) -> Run {
        Run {
            id: "id".into(),
            attempt: 0,
            state,
            started_at: Some(at(0)),
            finished_at: (state == runtime::ContainerState::Exited).then(|| at(1)),
            exit_code,
            signal: None,
            reason: String::new(),
            message: String::new(),
            image_id: String::new(),
            stop_signal: 15,
            asked_image: String::new(),
            image: String::new(),
            identity: None,
            lost: false,
        }
    }

    pub fn running() -> ContainerMemory {
        let probes = Probes { started: true, ready: true, ..Default::default() };
        ContainerMemory {
            current: Some(run(runtime::ContainerState::Running, 0)),
            probes,
            ..Default::default()
        }
    }

    pub fn exited(code: i32) -> ContainerMemory {
        ContainerMemory { current: Some(run(runtime::ContainerState::Exited, code)), ..Default::default() }
    }

    pub fn with(mut memory: Memory, containers: &[(&str, ContainerMemory)]) -> Memory {
        memory.containers.extend(containers.iter().map(|(n, c)| ((*n).to_owned(), c.clone())));
        memory
    }

    /// Actions in one line each.
    pub fn names(plan: &Plan) -> Vec<String> {
        plan.actions
            .iter()
            .map(|action| match action {
                Action::Start { container } => format!("start {container}"),
                Action::Stop { container, .. } => format!("stop {container}"),
                Action::PreStop { container, .. } => format!("hook {container}"),
                Action::End(ended) => format!("end {}", ended.reason),
                other => format!("{other:?}"),
            })
            .collect()
    }

    pub fn check(pod: &Pod, memory: &Memory, now: i64, expected: &[&str]) -> Plan {
        let plan = plan(pod, false, memory, at(now));
        assert_eq!(names(&plan), expected);
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::tests_support::*;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_new_pod_gets_its_sandbox_and_volumes_then_its_containers_together() {
        let pod = pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        check(&pod, &Memory::default(), 0, &["CreateSandbox", "PrepareVolumes"]);
        check(&pod, &ready(), 0, &["start a", "start b"]);
        let starting = ContainerMemory { busy: Some(Busy::Starting), ..Default::default() };
        check(&pod, &with(ready(), &[("a", starting), ("b", running())]), 0, &[]);
    }

    #[test]
    fn a_post_start_hook_holds_the_next_containers_up() {
        let hook = json!({"postStart": {"exec": {"command": ["true"]}}});
        let pod =
            pod(json!({"containers": [{"name": "a"}, {"name": "b", "lifecycle": hook}, {"name": "c"}]}));
        check(&pod, &ready(), 0, &["start a", "start b"]);
        let starting = || ContainerMemory { busy: Some(Busy::Starting), ..Default::default() };
        check(&pod, &with(ready(), &[("a", starting()), ("b", starting())]), 0, &[]);
        check(&pod, &with(ready(), &[("a", starting()), ("b", running())]), 0, &["start c"]);
        // One that ended and waits for its restart holds nobody up.
        check(&pod, &with(ready(), &[("a", running()), ("b", exited(1))]), 0, &["start b"]);
        let waits = ContainerMemory { retry_at: Some(at(9)), ..Default::default() };
        check(&pod, &with(ready(), &[("a", running()), ("b", waits)]), 0, &["start c"]);
    }

    #[test]
    fn sidecars_share_the_grace_of_their_pod() {
        let mut pod = pod(json!({
            "terminationGracePeriodSeconds": 10,
            "initContainers": [{"name": "s", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}]
        }));
        let grace = |pod: &Pod, now: i64, memory: Memory| {
            let plan = plan(pod, false, &memory, at(now));
            assert!(plan.ending);
            let [Action::Stop { grace, .. }] = &plan.actions[..] else { panic!("{plan:?}") };
            *grace
        };
        let memory = || Memory {
            ended: Some(Ended { phase: "Failed", reason: "DeadlineExceeded".into(), message: String::new() }),
            ending_since: Some(at(100)),
            ..with(ready(), &[("a", exited(0)), ("s", running())])
        };
        assert_eq!(grace(&pod, 104, memory()), Some(6));
        assert_eq!(grace(&pod, 113, memory()), Some(0));
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(100)));
        pod.metadata.deletion_grace_period_seconds = Some(1);
        assert_eq!(grace(&pod, 100, memory()), Some(1));
        assert!(!plan(&self::pod(json!({"containers": [{"name": "a"}]})), false, &ready(), at(0)).ending);
    }

    #[test]
    fn init_containers_run_in_order_and_sidecars_gate() {
        let pod = pod(json!({
            "initContainers": [{"name": "i1"}, {"name": "s", "restartPolicy": "Always"}, {"name": "i2"}],
            "containers": [{"name": "a"}]
        }));
        check(&pod, &ready(), 0, &["start i1"]);
        check(&pod, &with(ready(), &[("i1", running())]), 0, &[]);
        check(&pod, &with(ready(), &[("i1", exited(0))]), 2, &["start s"]);
        let mut unstarted = running();
        unstarted.probes.started = false;
        check(&pod, &with(ready(), &[("i1", exited(0)), ("s", unstarted)]), 2, &[]);
        check(&pod, &with(ready(), &[("i1", exited(0)), ("s", running())]), 2, &["start i2"]);
        let all = with(ready(), &[("i1", exited(0)), ("s", running()), ("i2", exited(0))]);
        check(&pod, &all, 2, &["start a"]);
        // Once the main container began, only the sidecar is kept alive.
        let begun = with(all, &[("a", running()), ("s", exited(1))]);
        check(&pod, &begun, 2, &["start s"]);
    }

    #[test]
    fn a_new_sandbox_is_prepared_anew() {
        let pod = pod(json!({
            "restartPolicy": "Always",
            "initContainers": [{"name": "i1"}, {"name": "s", "restartPolicy": "Always"}, {"name": "i2"}],
            "containers": [{"name": "a"}]
        }));
        let lost = |code| {
            let mut known = exited(code);
            known.current.as_mut().unwrap().lost = true;
            known
        };
        let all = with(ready(), &[("i1", lost(0)), ("s", lost(137)), ("i2", lost(0)), ("a", lost(137))]);
        check(&pod, &all, 2, &["start i1"]);
        assert!(!crate::machine::initialized(spec(&pod), &all));
        let first = with(all, &[("i1", exited(0))]);
        check(&pod, &first, 2, &["start s"]);
        let second = with(first, &[("s", running())]);
        check(&pod, &second, 2, &["start i2"]);
        let third = with(second, &[("i2", exited(0))]);
        check(&pod, &third, 2, &["start a"]);
        // Nothing is prepared for what is done.
        let mut done = pod.clone();
        done.spec.as_mut().unwrap().restart_policy = Some("Never".into());
        let over = with(ready(), &[("i1", lost(0)), ("s", lost(137)), ("i2", lost(0)), ("a", lost(0))]);
        assert!(plan(&done, false, &over, at(2)).ending);
        assert!(crate::machine::initialized(spec(&done), &over));
    }

    #[test]
    fn ephemeral_containers_run_once_and_end_with_the_pod() {
        let mut pod = pod(json!({"restartPolicy": "Always", "initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}], "ephemeralContainers": [{"name": "e"}, {"name": "f"}]}));
        check(&pod, &ready(), 0, &["start e", "start f", "start i"]);
        let failed = ContainerMemory { retry_at: Some(at(9)), ..Default::default() };
        let up = with(ready(), &[("i", exited(0)), ("a", running()), ("e", failed), ("f", exited(1))]);
        assert_eq!(check(&pod, &up, 2, &[]).wake_at, Some(at(9)), "what never began is tried again");
        check(&pod, &up, 9, &["start e"]);
        let ended = with(up.clone(), &[("e", exited(0))]);
        check(&pod, &ended, 20, &[]);
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
        let up = with(up, &[("e", running())]);
        check(&pod, &up, 9, &["stop a", "stop e"]);
        let up = with(up, &[("a", exited(0))]);
        check(&pod, &up, 9, &["stop e"]);
    }

    #[test]
    fn restart_policies_decide() {
        for (policy, code, restarts) in [
            ("Always", 0, true),
            ("Always", 1, true),
            ("OnFailure", 0, false),
            ("OnFailure", 1, true),
            ("Never", 1, false),
        ] {
            let pod = pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}));
            let memory = with(ready(), &[("a", exited(code)), ("b", running())]);
            let expected: &[&str] = if restarts { &["start a"] } else { &[] };
            check(&pod, &memory, 2, expected);
        }
        let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
        let pod = pod(json!({"restartPolicy": "Never", "containers": [
            {"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules}, {"name": "b"}]}));
        check(&pod, &with(ready(), &[("a", exited(42)), ("b", running())]), 2, &["start a"]);
        check(&pod, &with(ready(), &[("a", exited(41)), ("b", running())]), 2, &[]);
    }

    #[test]
    fn crashes_back_off_by_doubling_and_forget() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let mut crashed = exited(1);
        // The first restart is immediate; it sets ten seconds for the next.
        check(&pod, &with(ready(), &[("a", crashed.clone())]), 1, &["start a"]);
        crashed.backoff = Some(crashed.next_backoff(at(1)));
        let plan = check(&pod, &with(ready(), &[("a", crashed.clone())]), 2, &[]);
        assert_eq!(plan.wake_at, Some(at(11)));
        check(&pod, &with(ready(), &[("a", crashed.clone())]), 11, &["start a"]);
        for _ in 0..10 {
            crashed.backoff = Some(crashed.next_backoff(at(1)));
        }
        assert_eq!(crashed.backoff.unwrap().delay, CRASH_BACKOFF_MAX);
        assert_eq!(crashed.next_backoff(at(602)).delay, CRASH_BACKOFF_MIN);
    }

    #[test]
    fn an_interrupted_start_is_made_again_and_counts_as_none() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let interrupted = ContainerMemory {
            current: Some(Run { attempt: 2, ..run(runtime::ContainerState::Created, 0) }),
            previous: exited(1).current,
            ..Default::default()
        };
        assert_eq!(interrupted.next_attempt(), 2);
        check(&pod, &with(ready(), &[("a", interrupted)]), 2, &["start a"]);
        assert_eq!(exited(1).next_attempt(), 1);
    }

    #[test]
    fn a_failed_probe_stops_the_container() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let mut sick = running();
        sick.probes.kill = Some("Container a failed liveness probe".into());
        let plan = check(&pod, &with(ready(), &[("a", sick)]), 0, &["stop a"]);
        let Action::Stop { message, .. } = &plan.actions[0] else { panic!() };
        assert_eq!(message, "Container a failed liveness probe, will be restarted");
    }

    #[test]
    fn who_was_stopped_for_a_restart_restarts_however_it_ended() {
        let mut sick = running();
        sick.probes.kill = Some("Container a failed liveness probe".into());
        let mut old = running();
        old.current.as_mut().unwrap().asked_image = "old".into();
        for (policy, known, expected, told) in [
            ("OnFailure", &sick, Some(Restart::BackedOff), "will be restarted"),
            ("Never", &sick, None, "failed liveness probe"),
            ("OnFailure", &old, Some(Restart::AtOnce), "will be restarted"),
            ("Never", &old, Some(Restart::AtOnce), "will be restarted"),
        ] {
            let pod = pod(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "new"}]}));
            let plan = plan(&pod, false, &with(ready(), &[("a", known.clone())]), at(0));
            let [Action::Stop { again, message, .. }] = &plan.actions[..] else { panic!("{plan:?}") };
            assert!(*again == expected && message.ends_with(told), "{policy}: {message} {again:?}");
            let ended = ContainerMemory { again: *again, ..exited(0) };
            let starts: &[&str] = if again.is_some() { &["start a"] } else { &[] };
            let memory = with(ready(), &[("a", ended.clone())]);
            check(&pod, &memory, 2, starts);
            assert_eq!(is_finished(&pod, &memory), again.is_none());
            // Only one that failed waits for its back-off.
            let backoff = Some(CrashBackoff { delay: CRASH_BACKOFF_MIN, updated: at(1) });
            let waits = plan_of(&pod, ContainerMemory { backoff, ..ended });
            assert_eq!(waits.wake_at, (*again == Some(Restart::BackedOff)).then(|| at(11)));
        }
    }

    fn plan_of(pod: &Pod, known: ContainerMemory) -> Plan {
        plan(pod, false, &with(ready(), &[("a", known)]), at(2))
    }

    #[test]
    fn init_containers_that_run_keep_their_image() {
        let pod =
            pod(json!({"initContainers": [{"name": "i", "image": "new"}], "containers": [{"name": "a"}]}));
        let mut old = running();
        old.current.as_mut().unwrap().asked_image = "old".into();
        check(&pod, &with(ready(), &[("i", old)]), 0, &[]);
    }

    #[test]
    fn another_image_restarts_the_container() {
        let pod = pod(json!({"containers": [{"name": "a", "image": "new"}]}));
        let mut old = running();
        old.current.as_mut().unwrap().asked_image = "new".into();
        check(&pod, &with(ready(), &[("a", old.clone())]), 0, &[]);
        old.current.as_mut().unwrap().asked_image = "old".into();
        check(&pod, &with(ready(), &[("a", old)]), 0, &["stop a"]);
    }

    #[test]
    fn deletion_stops_mains_then_sidecars_backwards_then_the_rest() {
        let mut pod = pod(json!({
            "initContainers": [{"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}, {"name": "b"}]
        }));
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
        let up = with(ready(), &[("s1", running()), ("s2", running()), ("a", running()), ("b", running())]);
        check(&pod, &up, 0, &["stop a", "stop b"]);
        let down = with(up, &[("a", exited(0)), ("b", exited(0))]);
        check(&pod, &down, 0, &["stop s2"]);
        let down = with(down, &[("s2", exited(0))]);
        check(&pod, &down, 0, &["stop s1"]);
        let down = with(down, &[("s1", exited(0))]);
        check(&pod, &down, 0, &["RemoveSandbox"]);
        let gone = Memory { sandbox: Sandbox::Missing, ..down };
        check(&pod, &gone, 0, &["Finish"]);
    }

    #[test]
    fn hooks_of_sidecars_begin_with_the_end_of_their_pod() {
        let hook = json!({"preStop": {"exec": {"command": ["true"]}}});
        let mut pod = pod(json!({
            "initContainers": [
                {"name": "s1", "restartPolicy": "Always", "lifecycle": hook},
                {"name": "s2", "restartPolicy": "Always", "lifecycle": hook}
            ],
            "containers": [{"name": "a"}]
        }));
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
        let up = with(ready(), &[("s1", running()), ("s2", running()), ("a", running())]);
        check(&pod, &up, 0, &["stop a", "hook s1", "hook s2"]);
        let hooked = || ContainerMemory { hooked: true, ..running() };
        let hooking = || ContainerMemory { busy: Some(Busy::Stopping), ..running() };
        let stopping = with(up, &[("a", hooking()), ("s1", hooked()), ("s2", hooking())]);
        check(&pod, &stopping, 0, &[]);
        let down = with(stopping, &[("a", exited(0))]);
        check(&pod, &down, 0, &[]);
        check(&pod, &with(down, &[("s2", hooked())]), 0, &["stop s2"]);
    }

    #[test]
    fn a_pod_that_was_removed_is_not_waited_for() {
        let pod = pod(json!({"terminationGracePeriodSeconds": 3600, "containers": [{"name": "a"}]}));
        let plan = plan(&pod, true, &with(ready(), &[("a", running())]), at(2));
        let [Action::Stop { grace, .. }] = &plan.actions[..] else { panic!("{plan:?}") };
        assert_eq!(*grace, Some(REMOVED_GRACE_SECONDS));
    }

    #[test]
    fn who_ends_a_pod_says_how_long_it_may_take() {
        let mut pod = pod(json!({"terminationGracePeriodSeconds": 3600, "containers": [{"name": "a"}]}));
        let ended = |reason: &str| Memory {
            ended: Some(Ended { phase: "Failed", reason: reason.into(), message: String::new() }),
            ..with(ready(), &[("a", running())])
        };
        let grace = |pod: &Pod, memory: &Memory| {
            let plan = plan(pod, false, memory, at(2));
            let [Action::Stop { grace, .. }] = &plan.actions[..] else { panic!("{plan:?}") };
            *grace
        };
        assert_eq!(grace(&pod, &ended("DeadlineExceeded")), None, "its own");
        // Upstream's hard evictions: at once, which gives a process one second.
        assert_eq!(grace(&pod, &ended(EVICTED)), Some(1));
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
        pod.metadata.deletion_grace_period_seconds = Some(7);
        assert_eq!(grace(&pod, &ended(EVICTED)), Some(7));
    }

    #[test]
    fn a_finished_pod_keeps_its_sandbox_until_its_end_is_stored() {
        let pod = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
        let mut memory = with(ready(), &[("a", exited(3))]);
        check(&pod, &memory, 2, &[]);
        memory.terminal_stored = true;
        check(&pod, &memory, 2, &["RemoveSandbox"]);
        memory.sandbox = Sandbox::Missing;
        check(&pod, &memory, 2, &[]);
    }

    #[test]
    fn the_deadline_ends_the_pod() {
        let pod = pod(json!({"activeDeadlineSeconds": 5, "containers": [{"name": "a"}]}));
        let memory = with(ready(), &[("a", running())]);
        assert_eq!(check(&pod, &memory, 2, &[]).wake_at, Some(at(5)));
        check(&pod, &memory, 5, &["end DeadlineExceeded"]);
    }

    #[test]
    fn a_dead_sandbox_is_rebuilt() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let memory = Memory { sandbox: Sandbox::Dead, ..with(ready(), &[("a", exited(137))]) };
        check(&pod, &memory, 2, &["RemoveSandbox"]);
        let memory = Memory { sandbox: Sandbox::Missing, ..memory };
        check(&pod, &memory, 2, &["CreateSandbox"]);
    }
}
