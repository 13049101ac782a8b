//! A Pod's life: what its containers share, how they start, restart and end, and who talks to them.

use super::{container, find_process, pod, started, status};
use crate::cluster::{eventually, free_port};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::process::Stdio;

pub const CASES: &[Case] = &[
    Case { name: "containers_of_a_pod_share", run: containers_share },
    Case { name: "share_process_namespace", run: share_process_namespace },
    Case { name: "a_killed_process_restarts", run: killed_process_restarts },
    Case { name: "restart_policies_and_phases", run: restart_policies },
    Case { name: "crash_loop_back_off", run: crash_loop },
    Case { name: "an_unmeetable_request_waits", run: unmeetable_request },
    Case { name: "init_containers_in_order", run: init_containers },
    Case { name: "sidecars", run: sidecars },
    Case { name: "sidecars_hear_of_the_end_at_once", run: sidecar_hooks },
    Case { name: "termination_with_grace", run: termination },
    Case { name: "lifecycle_hooks", run: lifecycle_hooks },
    Case { name: "a_start_is_interrupted", run: a_start_is_interrupted },
    Case { name: "termination_message", run: termination_message },
    Case { name: "active_deadline", run: active_deadline },
    Case { name: "terminals", run: terminals },
    Case { name: "a_killed_supervisor_is_replaced", run: killed_supervisor },
];

fn containers_share(scope: &Scope<'_>) -> Result<()> {
    let mut both = pod(
        "both",
        &[
            ("one", "echo from one > /shared/file; touch /only-in-one; httpd -f -p 8080 -h /shared"),
            ("two", "sleep 1000"),
        ],
    );
    both["spec"]["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
    for n in 0..2 {
        both["spec"]["containers"][n]["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
    }
    both["spec"]["containers"][0]["readinessProbe"] =
        json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    started(scope, &both)?;
    let sh = |container: &str, script: &str| {
        scope.kubectl(&["exec", "both", "-c", container, "--", "sh", "-c", script])
    };
    let fetched = sh("two", "printf 'GET /file HTTP/1.0\\r\\n\\r\\n' | nc 127.0.0.1 8080 | tail -n 1")?;
    ensure!(fetched == "from one\n", "localhost and volume are shared: {fetched}");
    ensure!(
        sh("two", "ls /only-in-one 2>/dev/null || echo apart")? == "apart\n",
        "root file systems are apart"
    );
    ensure!(sh("one", "hostname")? == "both\n" && sh("two", "hostname")? == "both\n");
    for namespace in ["net", "ipc", "uts"] {
        let link = format!("readlink /proc/self/ns/{namespace}");
        ensure!(sh("one", &link)? == sh("two", &link)?, "{namespace} is shared");
    }
    for namespace in ["mnt", "pid"] {
        let link = format!("readlink /proc/self/ns/{namespace}");
        ensure!(sh("one", &link)? != sh("two", &link)?, "{namespace} is not shared");
    }
    let address = "ip -4 addr show eth0 | grep -o 'inet [0-9.]*'";
    let ip = status(scope, "both")?["podIP"].as_str().unwrap_or_default().to_owned();
    ensure!(
        sh("one", address)?.trim() == format!("inet {ip}")
            && sh("two", address)?.trim() == format!("inet {ip}")
    );
    sh("one", "echo shm > /dev/shm/x")?;
    ensure!(sh("two", "cat /dev/shm/x")? == "shm\n", "/dev/shm is shared");
    Ok(())
}

fn share_process_namespace(scope: &Scope<'_>) -> Result<()> {
    let mut both = pod("both", &[("one", "sleep 4321"), ("two", "sleep 1000")]);
    both["spec"]["shareProcessNamespace"] = true.into();
    started(scope, &both)?;
    let seen = scope.kubectl(&["exec", "both", "-c", "two", "--", "ps"])?;
    ensure!(seen.contains("sleep 4321"), "two sees one's process: {seen}");
    let pid1 = scope.kubectl(&[
        "exec",
        "both",
        "-c",
        "two",
        "--",
        "sh",
        "-c",
        "readlink /proc/1/exe; cat /proc/1/comm",
    ])?;
    ensure!(!pid1.contains("busybox"), "PID 1 is an init of the Pod's own: {pid1}");
    Ok(())
}

fn killed_process_restarts(scope: &Scope<'_>) -> Result<()> {
    started(scope, &pod("victim", &[("main", "sleep 1000")]))?;
    let before = status(scope, "victim")?["containerStatuses"][0].clone();
    // PID 1 of a namespace ignores signals it does not handle: end it from the host's side.
    let _ = scope.kubectl(&["exec", "victim", "--", "sh", "-c", "kill -TERM 1"]);
    let host_pid = find_process("victim")?;
    // SAFETY: a plain kill(2) of a process that this test started.
    unsafe { libc::kill(host_pid, libc::SIGKILL) };
    scope.wait_for("pod/victim", "{.status.containerStatuses[0].restartCount}=1")?;
    scope.wait_ready("victim")?;
    let after = status(scope, "victim")?["containerStatuses"][0].clone();
    ensure!(after["containerID"] != before["containerID"], "{after}");
    ensure!(after["lastState"]["terminated"]["exitCode"] == 137, "{after}");
    Ok(())
}

fn restart_policies(scope: &Scope<'_>) -> Result<()> {
    let with_policy = |name: &str, policy: &str, script: &str| {
        let mut pod = pod(name, &[("main", script)]);
        pod["spec"]["restartPolicy"] = policy.into();
        pod
    };
    scope.apply(&with_policy("fine", "Never", "exit 0"))?;
    scope.apply(&with_policy("broken", "Never", "exit 7"))?;
    scope.apply(&with_policy("stubborn", "OnFailure", "exit 0"))?;
    scope.wait_for("pod/fine", "{.status.phase}=Succeeded")?;
    scope.wait_for("pod/broken", "{.status.phase}=Failed")?;
    scope.wait_for("pod/stubborn", "{.status.phase}=Succeeded")?;
    let ended = status(scope, "broken")?["containerStatuses"][0]["state"]["terminated"].clone();
    ensure!(ended["exitCode"] == 7 && ended["reason"] == "Error", "{ended}");
    let fine = status(scope, "fine")?["containerStatuses"][0]["state"]["terminated"].clone();
    ensure!(fine["exitCode"] == 0 && fine["reason"] == "Completed", "{fine}");
    let shown = scope.kubectl(&["get", "pods"])?;
    ensure!(shown.contains("Completed") && shown.contains("Error"), "{shown}");
    // A container's own policy goes before the Pod's, and its rules before that.
    let mut own = with_policy("own", "Never", "exit 42");
    own["spec"]["containers"][0]["restartPolicy"] = "Always".into();
    let mut rule = with_policy("rule", "Never", "exit 42");
    rule["spec"]["containers"][0]["restartPolicy"] = "Never".into();
    rule["spec"]["containers"][0]["restartPolicyRules"] =
        json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let mut done = with_policy("done", "Always", "exit 42");
    done["spec"]["containers"][0]["restartPolicy"] = "Never".into();
    for pod in [&own, &rule, &done] {
        scope.apply(pod)?;
    }
    scope.wait_for("pod/done", "{.status.containerStatuses[0].state.terminated.exitCode}=42")?;
    for name in ["own", "rule"] {
        scope.wait_for(&format!("pod/{name}"), "{.status.containerStatuses[0].restartCount}=1")?;
        let status = status(scope, name)?;
        ensure!(status["phase"] == "Running", "{status}");
    }
    Ok(())
}

fn crash_loop(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&pod("loop", &[("main", "exit 1")]))?;
    scope.watch_until(&["pod", "loop"], |pod| {
        let container = &pod["status"]["containerStatuses"][0];
        container["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && container["state"]["waiting"]["message"]
                .as_str()
                .is_some_and(|text| text.contains("back-off 10s restarting failed container=main"))
            && container["lastState"]["terminated"]["exitCode"] == 1
    })?;
    scope.event("loop", "BackOff", "Back-off restarting failed container")
}

fn unmeetable_request(scope: &Scope<'_>) -> Result<()> {
    let mut huge = pod("huge", &[("main", "sleep 1000")]);
    huge["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": "900Gi"}});
    scope.apply(&huge)?;
    scope.wait_for("pod/huge", "{.status.conditions[?(@.type==\"PodScheduled\")].reason}=Unschedulable")?;
    scope.event("huge", "FailedScheduling", "0/1 nodes are available: 1 Insufficient memory")?;
    ensure!(status(scope, "huge")?["phase"] == "Pending");
    Ok(())
}

fn init_containers(scope: &Scope<'_>) -> Result<()> {
    let mut staged = pod("staged", &[("main", "cat /work/log; sleep 1000")]);
    let mount = json!([{"name": "work", "mountPath": "/work"}]);
    let mut first = container("first", "echo first >> /work/log");
    let mut second = container("second", "echo second >> /work/log");
    first["volumeMounts"] = mount.clone();
    second["volumeMounts"] = mount.clone();
    staged["spec"]["initContainers"] = json!([first, second]);
    staged["spec"]["containers"][0]["volumeMounts"] = mount;
    staged["spec"]["volumes"] = json!([{"name": "work", "emptyDir": {}}]);
    started(scope, &staged)?;
    ensure!(scope.kubectl(&["logs", "staged", "-c", "main"])? == "first\nsecond\n");
    let status = status(scope, "staged")?;
    ensure!(status["initContainerStatuses"][1]["state"]["terminated"]["reason"] == "Completed", "{status}");
    let mut failing = pod("failing", &[("main", "sleep 1000")]);
    failing["spec"]["restartPolicy"] = "Never".into();
    failing["spec"]["initContainers"] = json!([container("bad", "exit 5")]);
    scope.apply(&failing)?;
    scope.wait_for("pod/failing", "{.status.phase}=Failed")?;
    let shown = scope.kubectl(&["get", "pod", "failing"])?;
    ensure!(shown.contains("Init:Error"), "{shown}");
    Ok(())
}

fn sidecars(scope: &Scope<'_>) -> Result<()> {
    let mut work = pod("work", &[("main", "cat /shared/up && echo main done > /shared/main; exit 0")]);
    let mount = json!([{"name": "shared", "mountPath": "/shared"}]);
    let mut side =
        container("side", "echo side up > /shared/up; trap 'exit 0' TERM; while true; do sleep 0.1; done");
    side["restartPolicy"] = "Always".into();
    side["volumeMounts"] = mount.clone();
    side["startupProbe"] = json!({"exec": {"command": ["cat", "/shared/up"]}, "periodSeconds": 1});
    work["spec"]["initContainers"] = json!([side]);
    work["spec"]["containers"][0]["volumeMounts"] = mount;
    work["spec"]["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
    work["spec"]["restartPolicy"] = "Never".into();
    scope.apply(&work)?;
    // The sidecar started before, and its end does not keep the Pod from succeeding.
    scope.wait_for("pod/work", "{.status.phase}=Succeeded")?;
    ensure!(scope.kubectl(&["logs", "work", "-c", "main"])? == "side up\n");
    Ok(())
}

/// The main container ends when the sidecar's preStop hook ran: were that later, it would be killed.
fn sidecar_hooks(scope: &Scope<'_>) -> Result<()> {
    let main = "trap 'until [ -e /shared/hooked ]; do sleep 0.1; done; echo heard; exit 0' TERM; while true; do sleep 0.1; done";
    let mut work = pod("work", &[("main", main)]);
    let mut side = container("side", "trap 'exit 0' TERM; while true; do sleep 0.1; done");
    let mount = json!([{"name": "shared", "mountPath": "/shared"}]);
    side["restartPolicy"] = "Always".into();
    side["lifecycle"] = json!({"preStop": {"exec": {"command": ["touch", "/shared/hooked"]}}});
    side["volumeMounts"] = mount.clone();
    work["spec"]["initContainers"] = json!([side]);
    work["spec"]["containers"][0]["volumeMounts"] = mount;
    work["spec"]["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
    work["spec"]["terminationGracePeriodSeconds"] = 60.into();
    started(scope, &work)?;
    let logs =
        scope.kubectl_command().args(["logs", "-f", "work", "-c", "main"]).stdout(Stdio::piped()).spawn()?;
    scope.kubectl(&["delete", "pod", "work", "--timeout=40s"])?;
    let said = logs.wait_with_output()?.stdout;
    ensure!(said == b"heard\n", "{}", String::from_utf8_lossy(&said));
    Ok(())
}

fn termination(scope: &Scope<'_>) -> Result<()> {
    let mut polite =
        pod("polite", &[("main", "trap 'echo bye > /out/bye; exit 0' TERM; while true; do sleep 0.1; done")]);
    let out = scope.cluster.scratch().join("polite");
    std::fs::create_dir_all(&out)?;
    polite["spec"]["terminationGracePeriodSeconds"] = 30.into();
    polite["spec"]["volumes"] = json!([{"name": "out", "hostPath": {"path": out}}]);
    polite["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "out", "mountPath": "/out"}]);
    started(scope, &polite)?;
    scope.kubectl(&["delete", "pod", "polite", "--timeout=25s"])?;
    ensure!(std::fs::read_to_string(out.join("bye"))? == "bye\n", "SIGTERM reached it");
    // One that ignores SIGTERM is killed when its grace ends.
    let stubborn = pod("stubborn", &[("main", "trap '' TERM; while true; do sleep 0.1; done")]);
    started(scope, &stubborn)?;
    scope.kubectl(&["delete", "pod", "stubborn", "--timeout=30s"])?;
    // Whoever removes a Pod by force does not wait, and what it had is free for the next one at once.
    let mut now = pod("removed-now", &[("main", "trap '' TERM; sleep 1000; true")]);
    now["spec"]["terminationGracePeriodSeconds"] = 3600.into();
    now["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": free_port()?}]);
    started(scope, &now)?;
    scope.kubectl(&["delete", "pod", "removed-now", "--grace-period=0", "--force", "--timeout=30s"])?;
    now["metadata"]["name"] = "next-now".into();
    started(scope, &now)?;
    eventually("the removed Pod's process ends", || Ok(find_process("removed-now").is_err().then_some(())))?;
    scope.kubectl(&["delete", "pod", "next-now", "--grace-period=0", "--force", "--timeout=30s"])?;
    Ok(())
}

fn lifecycle_hooks(scope: &Scope<'_>) -> Result<()> {
    let out = scope.cluster.scratch().join("hooks");
    std::fs::create_dir_all(&out)?;
    let mut hooked = pod("hooked", &[("main", "trap 'exit 0' TERM; while true; do sleep 0.1; done")]);
    hooked["spec"]["terminationGracePeriodSeconds"] = 20.into();
    hooked["spec"]["volumes"] = json!([{"name": "out", "hostPath": {"path": out}}]);
    hooked["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "out", "mountPath": "/out"}]);
    hooked["spec"]["containers"][0]["lifecycle"] = json!({
        "postStart": {"exec": {"command": ["sh", "-c", "echo started > /out/post"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "echo stopping > /out/pre"]}},
    });
    started(scope, &hooked)?;
    ensure!(std::fs::read_to_string(out.join("post"))? == "started\n");
    scope.kubectl(&["delete", "pod", "hooked", "--timeout=40s"])?;
    ensure!(std::fs::read_to_string(out.join("pre"))? == "stopping\n");
    // A sleep is a hook as well: SIGTERM comes after it, and both are within the grace.
    hooked["metadata"]["name"] = "sleepy".into();
    hooked["spec"]["containers"][0]["command"] =
        json!(["sh", "-c", "trap 'echo bye > /out/bye; exit 0' TERM; while true; do sleep 0.1; done"]);
    hooked["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 1}}});
    started(scope, &hooked)?;
    scope.kubectl(&["delete", "pod", "sleepy", "--timeout=40s"])?;
    ensure!(std::fs::read_to_string(out.join("bye"))? == "bye\n");
    let failed =
        scope.kubectl(&["get", "events", "--field-selector=reason=FailedPreStopHook", "-o", "name"])?;
    ensure!(!failed.contains("event"), "{failed}");
    // Whoever deletes it again with a shorter grace does not wait for the hook.
    hooked["metadata"]["name"] = "patient".into();
    hooked["spec"]["terminationGracePeriodSeconds"] = 3600.into();
    hooked["spec"]["containers"][0]["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["sleep", "1000"]}}});
    started(scope, &hooked)?;
    scope.kubectl(&["delete", "pod", "patient", "--wait=false"])?;
    scope.event("patient", "Killing", "")?;
    scope.kubectl(&["delete", "pod", "patient", "--grace-period=1", "--timeout=40s"])?;
    // A hook that uses the whole grace leaves two seconds to end in.
    hooked["metadata"]["name"] = "greedy".into();
    hooked["spec"]["terminationGracePeriodSeconds"] = 1.into();
    hooked["spec"]["containers"][0]["command"] = json!([
        "sh",
        "-c",
        "trap 'sleep 0.5; echo late > /out/late; exit 0' TERM; while true; do sleep 0.1; done"
    ]);
    hooked["spec"]["containers"][0]["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["sleep", "1000"]}}});
    started(scope, &hooked)?;
    scope.kubectl(&["delete", "pod", "greedy", "--timeout=40s"])?;
    ensure!(std::fs::read_to_string(out.join("late"))? == "late\n");
    Ok(())
}

/// A Pod that leaves while a container of it starts is not kept by what it waits for.
fn a_start_is_interrupted(scope: &Scope<'_>) -> Result<()> {
    let mut hooked = pod("starting", &[("main", "sleep 1000"), ("next", "sleep 1000")]);
    hooked["spec"]["containers"][0]["lifecycle"] =
        json!({"postStart": {"exec": {"command": ["sleep", "1000"]}}});
    scope.apply(&hooked)?;
    scope.event("starting", "Started", "")?;
    // Its status follows the start by a moment.
    scope
        .wait_for("pod/starting", "{.status.containerStatuses[0].state.waiting.reason}=ContainerCreating")?;
    let held = status(scope, "starting")?;
    let waits = |n: usize| held["containerStatuses"][n]["state"]["waiting"]["reason"] == "ContainerCreating";
    ensure!(waits(0) && held["phase"] == "Pending", "it does not run before its hook is done: {held}");
    ensure!(waits(1), "the hook holds the next container up: {held}");
    scope.kubectl(&["delete", "pod", "starting", "--timeout=40s"])?;
    // A registry that takes the request and never answers.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let mut pulling = pod("pulling", &[("main", "true")]);
    pulling["spec"]["containers"][0]["image"] = format!("{}/x:1", silent.local_addr()?).into();
    for by in ["a deletion", "its deadline"] {
        if by == "its deadline" {
            pulling["spec"]["activeDeadlineSeconds"] = 2.into();
        }
        scope.apply(&pulling)?;
        scope.event("pulling", "Pulling", "")?;
        if by == "its deadline" {
            scope.wait_for("pod/pulling", "{.status.reason}=DeadlineExceeded")?;
        }
        scope.kubectl(&["delete", "pod", "pulling", "--timeout=20s"])?;
    }
    Ok(())
}

fn termination_message(scope: &Scope<'_>) -> Result<()> {
    let mut last = pod(
        "last",
        &[("main", "echo -n words > /dev/termination-log; exit 2"), ("log", "echo from the log; exit 3")],
    );
    last["spec"]["restartPolicy"] = "Never".into();
    last["spec"]["containers"][1]["terminationMessagePolicy"] = "FallbackToLogsOnError".into();
    scope.apply(&last)?;
    scope.wait_for("pod/last", "{.status.phase}=Failed")?;
    let statuses = status(scope, "last")?["containerStatuses"].clone();
    ensure!(statuses[0]["state"]["terminated"]["message"] == "words", "{statuses}");
    ensure!(statuses[1]["state"]["terminated"]["message"] == "from the log\n", "{statuses}");
    Ok(())
}

fn active_deadline(scope: &Scope<'_>) -> Result<()> {
    let out = scope.cluster.scratch().join("deadline");
    std::fs::create_dir_all(&out)?;
    let until = "trap 'touch /out/asked; until [ -e /out/go ]; do sleep 0.1; done; exit 0' TERM";
    let mut late = pod("late", &[("main", &format!("{until}; while true; do sleep 0.1; done"))]);
    late["spec"]["activeDeadlineSeconds"] = 2.into();
    late["spec"]["terminationGracePeriodSeconds"] = 1000.into();
    late["spec"]["volumes"] = json!([{"name": "out", "hostPath": {"path": out}}]);
    late["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "out", "mountPath": "/out"}]);
    late["spec"]["containers"][0]["ports"] = json!([{"containerPort": 1, "hostPort": free_port()?}]);
    let mut next = pod("next", &[("main", "sleep 1000")]);
    next["spec"]["containers"][0]["ports"] = late["spec"]["containers"][0]["ports"].clone();
    scope.apply(&late)?;
    scope.event("late", "DeadlineExceeded", "longer than the specified deadline")?;
    eventually("the container is asked to end", || Ok(out.join("asked").exists().then_some(())))?;
    scope.wait_for("pod/late", "{.status.conditions[?(@.type=='Ready')].reason}=PodFailed")?;
    // Until it has, the Pod runs, and what it holds is nobody else's.
    scope.apply(&next)?;
    scope.event("next", "FailedScheduling", "free ports")?;
    let ending = status(scope, "late")?;
    ensure!(ending["phase"] == "Running" && ending.get("reason").is_none(), "{ending}");
    scope.exec("late", &["touch", "/out/go"])?;
    scope.wait_for("pod/late", "{.status.reason}=DeadlineExceeded")?;
    let ended = status(scope, "late")?;
    ensure!(ended["phase"] == "Failed", "{ended}");
    ensure!(ended["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0, "{ended}");
    scope.wait_ready("next")
}

/// kubectl on a terminal of its own, which util-linux's `script` makes.
fn on_terminal(scope: &Scope<'_>, args: &[&str], input: &str) -> Result<String> {
    use std::io::Write;
    let kubectl = scope.kubectl_command();
    let words = std::iter::once(kubectl.get_program()).chain(kubectl.get_args()).map(|w| w.to_string_lossy());
    let line: Vec<String> = words
        .map(|w| w.into_owned())
        .chain(args.iter().map(|w| (*w).to_owned()))
        .map(|w| format!("'{w}'"))
        .collect();
    let mut child = std::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &line.join(" "), "/dev/null"])
        .env("HOME", scope.cluster.scratch())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("script (util-linux)")?;
    // Held open until the end: its end would be the terminal's.
    let mut stdin = child.stdin.take().context("piped")?;
    stdin.write_all(input.as_bytes())?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().context("piped")?, &mut text)?;
    let status = child.wait()?;
    drop(stdin);
    ensure!(status.success(), "{args:?}: {status}\n{text}");
    Ok(text)
}

fn terminals(scope: &Scope<'_>) -> Result<()> {
    let mut shell = pod(
        "shell",
        &[("main", "tty; stty size; while read line; do echo got $line; [ $line = end ] && exit 0; done")],
    );
    shell["spec"]["restartPolicy"] = "Never".into();
    shell["spec"]["containers"][0]["tty"] = true.into();
    shell["spec"]["containers"][0]["stdin"] = true.into();
    started(scope, &shell)?;
    let text = on_terminal(
        scope,
        &["exec", "-it", "shell", "--", "sh", "-c", "tty; echo $TERM; read x; echo [$x]"],
        "hello\n",
    )?;
    ensure!(text.contains("/dev/pts/") && text.contains("xterm") && text.contains("[hello]"), "{text}");
    let log = scope.kubectl(&["logs", "shell"])?;
    ensure!(log.contains("/dev/"), "the container has a terminal: {log}");
    let text = on_terminal(scope, &["attach", "-it", "shell"], "end\n")?;
    ensure!(text.contains("got end"), "{text}");
    scope.wait_for("pod/shell", "{.status.phase}=Succeeded")
}

/// The supervisor's death is the sandbox's: all of it is ended and made anew.
fn killed_supervisor(scope: &Scope<'_>) -> Result<()> {
    // What an init container did in the sandbox is done again in the next one.
    let mut orphan = pod("orphan", &[("main", "cat /dev/shm/prepared && exec sleep 1000")]);
    orphan["spec"]["initContainers"] = json!([{
        "name": "prepares", "image": "busybox", "command": ["sh", "-c", "echo yes > /dev/shm/prepared"],
        "imagePullPolicy": "IfNotPresent",
    }]);
    started(scope, &orphan)?;
    let uid = scope.jsonpath(&["pod", "orphan"], "{.metadata.uid}")?;
    let container = find_process("orphan")?;
    let supervisor = std::fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            let read =
                |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            read("comm") == "skeg-shim\n" && read("cmdline").contains(&uid)
        })
        .context("the supervisor")?;
    // SAFETY: a plain kill(2) of the supervisor of this test's own Pod.
    unsafe { libc::kill(supervisor, libc::SIGKILL) };
    scope.wait_for("pod/orphan", "{.status.containerStatuses[0].restartCount}=1")?;
    scope.wait_ready("orphan")?;
    let after = status(scope, "orphan")?;
    let ip = scope.kubectl(&["exec", "orphan", "-c", "main", "--", "hostname", "-i"])?;
    ensure!(after["initContainerStatuses"][0]["restartCount"] == 1, "{after}");
    let prepared = scope.kubectl(&["exec", "orphan", "-c", "main", "--", "cat", "/dev/shm/prepared"])?;
    ensure!(prepared == "yes\n", "{prepared:?}");
    ensure!(after["podIP"] == ip.trim(), "the status says the new address: {ip} {after}");
    ensure!(find_process("orphan")? != container, "the old process is gone");
    scope.event("orphan", "SandboxChanged", "Pod sandbox changed")
}
