//! The server dies; containers do not notice.

use super::{container, deployment, pod};
use crate::cluster::{eventually, pause};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

pub const CASES: &[Case] = &[
    Case { name: "containers_outlive_the_server", run: containers_outlive },
    Case { name: "kills_during_a_rollout", run: kills_during_a_rollout },
    Case { name: "statuses_are_kept_true", run: statuses_are_kept_true },
    Case { name: "a_resize_waits_over_a_restart", run: super::resize::waits_over_a_restart },
];

/// What the API tells of each web Pod, and by which link it is connected.
fn web_pods(scope: &Scope<'_>) -> Result<Vec<(String, Value, String)>> {
    let pods = scope.get(&["pods", "-l", "app=web"])?;
    let of_pod = |pod: &Value| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let link = scope.exec(&name, &["cat", "/sys/class/net/eth0/iflink"])?;
        Ok((name, pod["status"].clone(), link))
    };
    pods["items"].as_array().context("items")?.iter().map(of_pod).collect()
}

/// Running Pods keep their whole status, readiness too, and their link; one that ended meanwhile has
/// its real exit code; logs and exec work.
fn containers_outlive(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&deployment("web", 2))?;
    let mut ends =
        pod("ends", &[("main", "while [ ! -f /x/go ]; do sleep 0.05; done; echo leaving; exit 9")]);
    let flag = scope.cluster.scratch().join("go");
    std::fs::create_dir_all(&flag)?;
    ends["spec"]["restartPolicy"] = "Never".into();
    ends["spec"]["volumes"] = json!([{"name": "x", "hostPath": {"path": flag}}]);
    ends["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "x", "mountPath": "/x"}]);
    scope.apply(&ends)?;
    scope.rolled_out("web")?;
    scope.wait_ready("ends")?;
    let before = web_pods(scope)?;
    scope.cluster.kill()?;
    std::fs::write(flag.join("go"), "")?;
    scope.cluster.up()?;
    scope.wait_for("pod/ends", "{.status.phase}=Failed")?;
    let ended =
        scope.jsonpath(&["pod", "ends"], "{.status.containerStatuses[0].state.terminated.exitCode}")?;
    ensure!(ended == "9", "the real exit code: {ended}");
    ensure!(scope.kubectl(&["logs", "ends"])? == "leaving\n");
    let after = web_pods(scope)?;
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

/// What somebody else writes to a status does not stay, and a Pod declared ended does end.
fn statuses_are_kept_true(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&pod("told", &[("main", "sleep 1000")]))?;
    scope.apply(&pod("ended", &[("main", "sleep 1000")]))?;
    scope.wait_ready("told")?;
    scope.wait_ready("ended")?;
    let patch = |what: &str, status: Value| {
        let body = json!({"status": status}).to_string();
        scope.kubectl(&["patch", what, "--subresource=status", "--type=merge", "-p", &body])
    };
    let ip = scope.jsonpath(&["pod", "told"], "{.status.podIP}")?;
    patch(
        "pod/told",
        json!({"podIP": "192.0.2.1", "podIPs": [{"ip": "192.0.2.1"}], "containerStatuses": []}),
    )?;
    scope.wait_for("pod/told", &format!("{{.status.podIP}}={ip}"))?;
    scope.wait_for("pod/told", "{.status.containerStatuses[0].ready}=true")?;
    patch("pod/ended", json!({"phase": "Failed", "reason": "Told"}))?;
    scope.wait_for("pod/ended", "{.status.containerStatuses[0].state.terminated.exitCode}=137")?;
    ensure!(scope.jsonpath(&["pod", "ended"], "{.status.phase} {.status.reason}")? == "Failed Told");
    let node = scope.jsonpath(&["nodes"], "{.items[0].metadata.name}")?;
    let node = format!("node/{node}");
    let cpu = scope.jsonpath(&[&node], "{.status.allocatable.cpu}")?;
    patch(&node, json!({"allocatable": {"cpu": "7m"}}))?;
    scope.wait_for(&node, &format!("{{.status.allocatable.cpu}}={cpu}"))?;
    let images = scope.jsonpath(&[&node], "{.status.images[*].names[*]}")?;
    ensure!(images.contains("busybox"), "{images}");
    Ok(())
}

/// How often the server is killed, and how long after a change of the Deployment at most.
const KILLS: u64 = 50;
const KILL_AFTER_MS_MAX: u64 = 700;
/// In each so many rounds a container ends while no server runs.
const ENDS_EVERY: u64 = 5;

/// 50 kills at random moments of a rollout. Containers that run before and after keep their
/// processes, ids and times; those that ended meanwhile have their real exit codes; logs and exec
/// work; no container runs twice.
fn kills_during_a_rollout(scope: &Scope<'_>) -> Result<()> {
    let random = skeg_base::Random::seeded(50);
    let gates = Gates::new(scope)?;
    for n in 0..3 {
        scope.apply(&pod(&format!("steady-{n}"), &[("main", "echo up; exec sleep 100000")]))?;
    }
    for n in 0..KILLS / ENDS_EVERY {
        scope.apply(&gates.pod(n))?;
    }
    let mut web = deployment("web", 3);
    let template = &mut web["spec"]["template"]["spec"];
    template["containers"] = json!([container("main", "echo up; exec sleep 100000")]);
    scope.apply(&web)?;
    scope.rolled_out("web")?;
    scope.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s"])?;
    let first = Seen::now(scope)?;
    let id = scope.cluster.id()?;

    for round in 0..KILLS {
        let context = || format!("round {round}");
        scope.kubectl(&["set", "env", "deployment/web", &format!("ROUND={round}")])?;
        let before = Seen::now(scope).with_context(context)?;
        // The random moment itself, not a wait for anything.
        pause(Duration::from_millis(random.below(KILL_AFTER_MS_MAX)));
        scope.cluster.kill()?;
        let down = processes(&id)?;
        let ending = (round % ENDS_EVERY == 0).then_some(round / ENDS_EVERY);
        if let Some(n) = ending {
            gates.open(n)?;
        }
        scope.cluster.up()?;
        if let Some(n) = ending {
            gates.check_end(scope, n).with_context(context)?;
        }
        let after = Seen::now(scope).with_context(context)?;
        check_kept(&down, &processes(&id)?).with_context(context)?;
        before.check_kept(&after).with_context(context)?;
        let steady = format!("steady-{}", round % 3);
        ensure!(scope.exec(&steady, &["echo", "here"])? == "here\n", "exec in {steady}, round {round}");
        ensure!(scope.kubectl(&["logs", &steady])? == "up\n", "logs of {steady}, round {round}");
    }

    scope.rolled_out("web")?;
    scope.watch_until(&["deployment", "web"], |web| web["status"]["replicas"] == 3)?;
    let old = format!("app=web,pod-template-hash!={}", newest_hash(scope)?);
    scope.kubectl(&["wait", "--for=delete", "pod", "-l", &old, "--timeout=60s"])?;
    let last = Seen::now(scope)?;
    let names: Vec<&String> = last.0.keys().filter(|name| !name.starts_with("ends-")).collect();
    ensure!(names.len() == 6, "three of web and three that nothing touched: {names:?}");
    for name in &names {
        ensure!(scope.exec(name, &["echo", "here"])? == "here\n", "exec in {name}");
        ensure!(scope.kubectl(&["logs", name])? == "up\n", "{name} started once");
    }
    for (name, steady) in first.0.iter().filter(|(name, _)| name.starts_with("steady-")) {
        ensure!(last.0.get(name) == Some(steady), "{name}: {steady:?} became {:?}", last.0.get(name));
    }
    let values = scope.jsonpath(&["pods", "-l", "app=web"], "{.items[*].spec.containers[0].env[0].value}")?;
    let newest = (KILLS - 1).to_string();
    ensure!(values.split(' ').eq([newest.as_str(); 3]), "{values}");
    let running = processes(&id)?.into_values().map(|pids| pids.len()).collect::<Vec<_>>();
    ensure!(running == [1; 6], "one process a container: {running:?}");
    Ok(())
}

fn newest_hash(scope: &Scope<'_>) -> Result<String> {
    let sets = scope.get(&["replicasets", "-l", "app=web"])?;
    let live = sets["items"].as_array().into_iter().flatten().find(|set| set["spec"]["replicas"] == 3);
    let hash = live.context("a ReplicaSet of three")?["metadata"]["labels"]["pod-template-hash"].clone();
    Ok(hash.as_str().context("a hash")?.to_owned())
}

/// Running containers as the API tells them: by Pod name, container id and start.
struct Seen(BTreeMap<String, (String, String)>);

impl Seen {
    fn now(scope: &Scope<'_>) -> Result<Self> {
        let pods = scope.get(&["pods"])?;
        let mut seen = BTreeMap::new();
        for pod in pods["items"].as_array().context("items")? {
            let (name, container) = (&pod["metadata"]["name"], &pod["status"]["containerStatuses"][0]);
            ensure!(container["restartCount"].as_u64().unwrap_or(0) == 0, "restarted: {pod}");
            let started = container["state"]["running"]["startedAt"].as_str();
            // A Pod that is being deleted may end at any moment.
            if let Some(started) = started.filter(|_| pod["metadata"]["deletionTimestamp"].is_null()) {
                let id = container["containerID"].as_str().unwrap_or_default();
                let name = name.as_str().unwrap_or_default();
                seen.insert(name.to_owned(), (id.to_owned(), started.to_owned()));
            }
        }
        Ok(Seen(seen))
    }

    fn check_kept(&self, after: &Seen) -> Result<()> {
        for (name, was) in &self.0 {
            if let Some(is) = after.0.get(name) {
                ensure!(was == is, "{name}: {was:?} became {is:?}");
            }
        }
        Ok(())
    }
}

/// What runs on the host: the processes in each container's cgroup, with their start times. A
/// Pod of this case has one container: two of them with processes are one that runs twice.
fn processes(instance: &str) -> Result<BTreeMap<String, Vec<(i32, String)>>> {
    let mut found = BTreeMap::new();
    let mut pods = BTreeSet::new();
    for process in crate::traces::in_cgroups(instance)? {
        let Some((pod, leaf)) = process.group.split_once('/').filter(|(_, leaf)| *leaf != "shim") else {
            continue;
        };
        let pids: &mut Vec<_> = found.entry(process.group.clone()).or_default();
        if pids.is_empty() {
            ensure!(pods.insert(pod.to_owned()), "{pod} runs its container twice, also as {leaf}");
        }
        pids.push((process.pid, process.started));
    }
    Ok(found)
}

/// A container that is there before and after has the same processes.
fn check_kept(
    before: &BTreeMap<String, Vec<(i32, String)>>,
    after: &BTreeMap<String, Vec<(i32, String)>>,
) -> Result<()> {
    for (group, was) in before {
        if let Some(is) = after.get(group) {
            ensure!(was == is, "{group}: {was:?} became {is:?}");
        }
    }
    Ok(())
}

/// Pods whose container ends, with a code of its own, when a pipe of the host's is opened.
struct Gates(PathBuf);

impl Gates {
    fn new(scope: &Scope<'_>) -> Result<Self> {
        let directory = scope.cluster.scratch().join("gates");
        std::fs::create_dir_all(&directory)?;
        Ok(Gates(directory))
    }

    fn code(n: u64) -> u64 {
        10 + n
    }

    fn pod(&self, n: u64) -> Value {
        // Made by the container, so that whoever sees it knows that the container runs.
        let script = format!("mkfifo /x/{n}; cat /x/{n}; echo leaving; exit {}", Self::code(n));
        let mut pod = pod(&format!("ends-{n}"), &[("main", &script)]);
        pod["spec"]["restartPolicy"] = "Never".into();
        pod["spec"]["volumes"] = json!([{"name": "x", "hostPath": {"path": self.0}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "x", "mountPath": "/x"}]);
        pod
    }

    /// Opening waits for the container's reader; closing ends it.
    fn open(&self, n: u64) -> Result<()> {
        let path = self.0.join(n.to_string());
        eventually("the container made its pipe", || Ok(path.exists().then_some(())))?;
        std::fs::OpenOptions::new().write(true).open(path).map(drop)?;
        Ok(())
    }

    fn check_end(&self, scope: &Scope<'_>, n: u64) -> Result<()> {
        let name = format!("ends-{n}");
        scope.wait_for(&format!("pod/{name}"), "{.status.phase}=Failed")?;
        let status = scope.get(&["pod", &name])?["status"]["containerStatuses"][0].clone();
        let ended = &status["state"]["terminated"];
        ensure!(ended["exitCode"] == Self::code(n) && ended["reason"] == "Error", "{status}");
        ensure!(scope.kubectl(&["logs", &name])? == "leaving\n", "logs of {name}");
        Ok(())
    }
}
