//! Pods to the letter: what containers share, how they start, restart, are limited and end.

use super::{container, pod};
use crate::cluster::{Registry, eventually};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "containers_of_a_pod_share", run: containers_share },
    Case { name: "share_process_namespace", run: share_process_namespace },
    Case { name: "secure_by_default", run: secure_by_default },
    Case { name: "security_context", run: security_context },
    Case { name: "a_memory_limit_ends_in_oomkilled", run: oom_killed },
    Case { name: "a_killed_process_restarts", run: killed_process_restarts },
    Case { name: "restart_policies_and_phases", run: restart_policies },
    Case { name: "crash_loop_back_off", run: crash_loop },
    Case { name: "image_pull_errors", run: image_pull_errors },
    Case { name: "images_from_a_registry", run: images_from_a_registry },
    Case { name: "an_unmeetable_request_waits", run: unmeetable_request },
    Case { name: "init_containers_in_order", run: init_containers },
    Case { name: "sidecars", run: sidecars },
    Case { name: "environment", run: environment },
    Case { name: "volumes", run: volumes },
    Case { name: "configmap_volume_follows_changes", run: configmap_updates },
    Case { name: "liveness_and_startup_probes", run: liveness_and_startup },
    Case { name: "readiness_by_exec_and_tcp", run: readiness },
    Case { name: "termination_with_grace", run: termination },
    Case { name: "lifecycle_hooks", run: lifecycle_hooks },
    Case { name: "termination_message", run: termination_message },
    Case { name: "host_network", run: host_network },
    Case { name: "missing_configmap_is_told", run: missing_configmap },
    Case { name: "cpu_and_pids_cgroups", run: cgroups },
    Case { name: "quality_of_service", run: quality_of_service },
    Case { name: "seccomp_and_privileged", run: seccomp_and_privileged },
    Case { name: "host_namespaces", run: host_namespaces },
    Case { name: "sysctls", run: sysctls },
    Case { name: "mount_options", run: mount_options },
    Case { name: "local_storage_limits_evict", run: local_storage },
    Case { name: "active_deadline", run: active_deadline },
    Case { name: "http_grpc_and_https_probes", run: http_probes },
    Case { name: "terminals", run: terminals },
    Case { name: "a_private_image_needs_its_secret", run: private_image },
    Case { name: "a_killed_supervisor_is_replaced", run: killed_supervisor },
];

fn started(scope: &Scope<'_>, pod: &Value) -> Result<()> {
    scope.apply(pod)?;
    scope.wait_ready(pod["metadata"]["name"].as_str().unwrap_or_default())
}

fn status(scope: &Scope<'_>, pod: &str) -> Result<Value> {
    Ok(scope.get(&["pod", pod])?["status"].clone())
}

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
    started(scope, &both)?;
    let sh = |container: &str, script: &str| {
        scope.kubectl(&["exec", "both", "-c", container, "--", "sh", "-c", script])
    };
    let fetched = eventually("one serves", || {
        Ok(sh("two", "printf 'GET /file HTTP/1.0\\r\\n\\r\\n' | nc 127.0.0.1 8080 | tail -n 1").ok())
    })?;
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

fn secure_by_default(scope: &Scope<'_>) -> Result<()> {
    started(scope, &pod("box", &[("main", "sleep 1000")]))?;
    let proc = scope.exec("box", &["cat", "/proc/1/status"])?;
    let field = |name: &str| {
        proc.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    ensure!(field("Seccomp:") == "2", "seccomp filters: {proc}");
    // The default set: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
    // net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
    ensure!(field("CapEff:") == "00000000a80425fb", "capabilities: {}", field("CapEff:"));
    ensure!(field("CapBnd:") == "00000000a80425fb", "bounding set: {}", field("CapBnd:"));
    let masked = scope.exec(
        "box",
        &["sh", "-c", "cat /proc/kcore | wc -c; echo x 2>/dev/null > /proc/sysrq-trigger || echo read-only"],
    )?;
    ensure!(masked.starts_with("0\n") && masked.contains("read-only"), "masked paths: {masked}");
    let mounts =
        scope.exec("box", &["sh", "-c", "grep ' /sys ' /proc/mounts; mount -t tmpfs x /mnt 2>&1 || true"])?;
    ensure!(
        mounts.contains("ro,") && (mounts.contains("denied") || mounts.contains("not permitted")),
        "{mounts}"
    );
    Ok(())
}

fn security_context(scope: &Scope<'_>) -> Result<()> {
    let mut user = pod("user", &[("main", "id; sleep 1000")]);
    user["spec"]["securityContext"] =
        json!({"runAsUser": 1234, "runAsGroup": 2345, "fsGroup": 3456, "supplementalGroups": [77]});
    user["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    user["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    user["spec"]["containers"][0]["securityContext"] = json!({
        "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
    });
    started(scope, &user)?;
    let id = scope.exec("user", &["id"])?;
    ensure!(
        id.contains("uid=1234") && id.contains("gid=2345") && id.contains("3456") && id.contains("77"),
        "{id}"
    );
    let writes = scope.exec(
        "user",
        &[
            "sh",
            "-c",
            "touch /x 2>&1; touch /data/y; ls -ln /data/y; grep -E 'NoNewPrivs|CapBnd' /proc/self/status",
        ],
    )?;
    ensure!(writes.contains("Read-only file system") && writes.contains(" 3456 "), "{writes}");
    ensure!(writes.contains("NoNewPrivs:\t1") && writes.contains("0000000000000400"), "{writes}");
    let shown = status(scope, "user")?["containerStatuses"][0]["user"]["linux"].clone();
    ensure!(shown["uid"] == 1234 && shown["gid"] == 2345, "{shown}");
    let groups = shown["supplementalGroups"].as_array().cloned().unwrap_or_default();
    ensure!([77, 2345, 3456].iter().all(|group| groups.contains(&json!(group))), "{shown}");
    let mut root = pod("root", &[("main", "sleep 1000")]);
    root["spec"]["securityContext"] = json!({"runAsNonRoot": true});
    scope.apply(&root)?;
    scope.wait_for(
        "pod/root",
        "{.status.containerStatuses[0].state.waiting.reason}=CreateContainerConfigError",
    )?;
    let message = scope.jsonpath(&["pod", "root"], "{.status.containerStatuses[0].state.waiting.message}")?;
    ensure!(message.contains("runAsNonRoot"), "{message}");
    Ok(())
}

fn oom_killed(scope: &Scope<'_>) -> Result<()> {
    let mut hungry = pod("hungry", &[("main", "head -c 200000000 /dev/zero | tail")]);
    hungry["spec"]["restartPolicy"] = "Never".into();
    hungry["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "32Mi"}});
    // The shell must be the process that the kernel picks: tail alone holds the memory.
    hungry["spec"]["containers"][0]["command"] = json!(["sh", "-c", "exec tail /dev/zero"]);
    scope.apply(&hungry)?;
    scope.wait_for("pod/hungry", "{.status.phase}=Failed")?;
    let ended = status(scope, "hungry")?["containerStatuses"][0]["state"]["terminated"].clone();
    ensure!(ended["reason"] == "OOMKilled" && ended["exitCode"] == 137, "{ended}");
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

/// The host's process id of a Pod's `sleep`, found by the Pod's name in its environment: the name
/// must be no other case's.
fn find_process(pod: &str) -> Result<i32> {
    let marker = format!("HOSTNAME={pod}\0");
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<i32>() else { continue };
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let environ = read("environ");
        let mounts = String::from_utf8_lossy(&read("mountinfo")).into_owned();
        if environ.windows(marker.len()).any(|window| window == marker.as_bytes())
            && mounts.contains("skeg-e2e-")
            && read("cmdline").starts_with(b"sleep\x001000")
        {
            return Ok(pid);
        }
    }
    anyhow::bail!("no process of {pod}")
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
    eventually("the BackOff event", || {
        let text = scope.kubectl(&["get", "events", "--field-selector=reason=BackOff"])?;
        Ok(text.contains("Back-off restarting failed container").then_some(()))
    })
}

fn image_pull_errors(scope: &Scope<'_>) -> Result<()> {
    let mut missing = pod("missing", &[("main", "true")]);
    let registry = scope.cluster.registry.as_ref().context("the registry")?;
    missing["spec"]["containers"][0]["image"] = format!("{}/none/such:1", registry.host()).into();
    scope.apply(&missing)?;
    scope.watch_until(&["pod", "missing"], |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImagePull"
    })?;
    scope.watch_until(&["pod", "missing"], |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ImagePullBackOff"
    })?;
    eventually("the Failed event", || {
        let text = scope.kubectl(&["get", "events", "--field-selector=reason=Failed"])?;
        Ok((text.contains("Failed to pull image") && text.contains("ErrImagePull")).then_some(()))
    })?;
    let mut never = pod("never", &[("main", "true")]);
    never["spec"]["containers"][0]["image"] = "registry.example/absent:1".into();
    never["spec"]["containers"][0]["imagePullPolicy"] = "Never".into();
    scope.apply(&never)?;
    scope.wait_for("pod/never", "{.status.containerStatuses[0].state.waiting.reason}=ErrImageNeverPull")?;
    let mut invalid = pod("invalid", &[("main", "true")]);
    invalid["spec"]["containers"][0]["image"] = "some//name".into();
    scope.apply(&invalid)?;
    scope.wait_for("pod/invalid", "{.status.containerStatuses[0].state.waiting.reason}=InvalidImageName")
}

fn images_from_a_registry(scope: &Scope<'_>) -> Result<()> {
    let registry = scope.cluster.registry.as_ref().context("the registry")?;
    registry.push(&scope.cluster.archive("busybox"), "team/box:v1", None)?;
    let run = |name: &str, image: &str| -> Result<()> {
        let mut pod = pod(name, &[("main", "sleep 1000")]);
        pod["spec"]["containers"][0]["image"] = image.into();
        pod["spec"]["containers"][0]["imagePullPolicy"] = "Always".into();
        started(scope, &pod)
    };
    run("first", &format!("{}/team/box:v1", registry.host()))?;
    let fetched = registry.blob_fetches()?;
    run("second", &format!("{}/team/box:v1", registry.host()))?;
    ensure!(registry.blob_fetches()? == fetched, "the second pull fetched blobs");
    run("third", "mirrored.example/team/box:v1")?;
    let id = scope.jsonpath(&["pod", "first"], "{.status.containerStatuses[0].imageID}")?;
    ensure!(id.contains("@sha256:"), "{id}");
    let list = scope.cluster.skeg(&["image", "list"])?;
    ensure!(list.contains("team/box") && list.contains("docker.io/library/nginx"), "{list}");
    Ok(())
}

fn unmeetable_request(scope: &Scope<'_>) -> Result<()> {
    let mut huge = pod("huge", &[("main", "sleep 1000")]);
    huge["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": "900Gi"}});
    scope.apply(&huge)?;
    scope.wait_for("pod/huge", "{.status.conditions[?(@.type==\"PodScheduled\")].reason}=Unschedulable")?;
    eventually("the FailedScheduling event", || {
        let text = scope.kubectl(&["get", "events", "--field-selector=reason=FailedScheduling"])?;
        Ok(text.contains("0/1 nodes are available: 1 Insufficient memory").then_some(()))
    })?;
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

fn environment(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["create", "configmap", "map", "--from-literal=color=red", "--from-literal=SIZE=xl"])?;
    scope.kubectl(&["create", "secret", "generic", "key", "--from-literal=password=hunter2"])?;
    let mut shown = pod("shown", &[("main", "env; echo args $0 $1; sleep 1000")]);
    shown["spec"]["containers"][0]["command"] =
        json!(["sh", "-c", "env; echo arg $(PLAIN) $$(PLAIN) $(UNKNOWN); sleep 1000"]);
    shown["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "64Mi", "cpu": "500m"}});
    shown["spec"]["containers"][0]["envFrom"] = json!([
        {"prefix": "P_", "configMapRef": {"name": "map"}}, {"prefix": "S_", "secretRef": {"name": "key"}},
        {"configMapRef": {"name": "none", "optional": true}}, {"secretRef": {"name": "none", "optional": true}},
    ]);
    shown["spec"]["containers"][0]["env"] = json!([
        {"name": "PLAIN", "value": "one"}, {"name": "TWICE", "value": "$(PLAIN)-$(PLAIN)"},
        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "map", "key": "color"}}},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "key", "key": "password"}}},
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
        {"name": "OPTIONAL", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "x", "optional": true}}},
    ]);
    started(scope, &shown)?;
    let log = scope.kubectl(&["logs", "shown"])?;
    let ip = status(scope, "shown")?["podIP"].as_str().unwrap_or_default().to_owned();
    for line in [
        "PLAIN=one",
        "TWICE=one-one",
        "COLOR=red",
        "PASSWORD=hunter2",
        "POD_NAME=shown",
        &format!("POD_IP={ip}"),
        "NODE=e2e-node",
        "LABEL=shown",
        "MEMORY=67108864",
        "CPU=500",
        "P_color=red",
        "P_SIZE=xl",
        "S_password=hunter2",
        "HOSTNAME=shown",
        "KUBERNETES_SERVICE_PORT=443",
    ] {
        ensure!(log.lines().any(|found| found == line), "{line} is not in: {log}");
    }
    ensure!(!log.contains("OPTIONAL"), "{log}");
    // $(UNKNOWN) stays, and the shell runs it as a command that is not there.
    ensure!(log.contains("arg one"), "{log}");
    Ok(())
}

fn volumes(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["create", "configmap", "map", "--from-literal=color=red"])?;
    scope.kubectl(&["create", "secret", "generic", "key", "--from-literal=password=hunter2"])?;
    let mut many = pod("many", &[("main", "sleep 1000")]);
    many["metadata"]["labels"]["tier"] = "x".into();
    many["spec"]["volumes"] = json!([
        {"name": "map", "configMap": {"name": "map", "items": [{"key": "color", "path": "deep/colour", "mode": 0o400}]}},
        {"name": "key", "secret": {"secretName": "key", "defaultMode": 0o440}},
        {"name": "info", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "all", "projected": {"sources": [{"configMap": {"name": "map"}}, {"secret": {"name": "key"}}]}},
        {"name": "ram", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
        {"name": "host", "hostPath": {"path": "/etc/debian_version", "type": "File"}},
    ]);
    many["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "map", "mountPath": "/map"}, {"name": "key", "mountPath": "/key", "readOnly": true}, {"name": "info", "mountPath": "/info"},
        {"name": "all", "mountPath": "/all"}, {"name": "ram", "mountPath": "/ram"}, {"name": "host", "mountPath": "/version"},
        {"name": "all", "mountPath": "/single", "subPath": "color"},
    ]);
    started(scope, &many)?;
    let sh = |script: &str| scope.exec("many", &["sh", "-c", script]);
    ensure!(
        sh("cat /map/deep/colour /key/password /all/color /all/password /single")?
            == "redhunter2redhunter2red"
    );
    ensure!(sh("cat /info/labels")? == "app=\"many\"\ntier=\"x\"", "{}", sh("cat /info/labels")?);
    ensure!(sh("stat -L -c %a /map/deep/colour /key/password")? == "400\n440\n");
    let ram = sh("grep ' /ram ' /proc/mounts")?;
    ensure!(ram.contains("tmpfs") && ram.contains("size=8192k"), "{ram}");
    ensure!(sh("cat /version")? == std::fs::read_to_string("/etc/debian_version")?);
    let token = sh("ls /var/run/secrets/kubernetes.io/serviceaccount")?;
    ensure!(token == "ca.crt\nnamespace\ntoken\n", "{token}");
    Ok(())
}

fn configmap_updates(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["create", "configmap", "map", "--from-literal=color=red"])?;
    let mut reader = pod("reader", &[("main", "sleep 1000")]);
    reader["spec"]["volumes"] = json!([{"name": "map", "configMap": {"name": "map"}}]);
    reader["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "map", "mountPath": "/map"}]);
    started(scope, &reader)?;
    scope.kubectl(&["patch", "configmap", "map", "-p", r#"{"data":{"color":"blue"}}"#])?;
    eventually("the file follows", || {
        Ok((scope.exec("reader", &["cat", "/map/color"])? == "blue").then_some(()))
    })
}

fn liveness_and_startup(scope: &Scope<'_>) -> Result<()> {
    let mut sick = pod("sick", &[("main", "touch /tmp/well; sleep 1000")]);
    sick["spec"]["containers"][0]["livenessProbe"] = json!({
        "exec": {"command": ["cat", "/tmp/well"]}, "periodSeconds": 1, "failureThreshold": 1,
    });
    sick["spec"]["containers"][0]["startupProbe"] =
        json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    started(scope, &sick)?;
    scope.exec("sick", &["rm", "/tmp/well"])?;
    scope.wait_for("pod/sick", "{.status.containerStatuses[0].restartCount}=1")?;
    eventually("the events", || {
        let text = scope.kubectl(&["get", "events"])?;
        Ok((text.contains("Liveness probe failed") && text.contains("will be restarted")).then_some(()))
    })
}

fn readiness(scope: &Scope<'_>) -> Result<()> {
    let mut gated = pod("gated", &[("main", "sleep 1000"), ("server", "httpd -f -p 8080 -h /tmp")]);
    gated["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1});
    gated["spec"]["containers"][1]["readinessProbe"] =
        json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    scope.apply(&gated)?;
    scope.wait_for("pod/gated", "{.status.containerStatuses[1].ready}=true")?;
    let ready = scope.jsonpath(&["pod", "gated"], "{.status.containerStatuses[0].ready}")?;
    ensure!(ready == "false", "not before the probe succeeds");
    scope.kubectl(&["exec", "gated", "-c", "main", "--", "touch", "/tmp/ready"])?;
    scope.wait_ready("gated")?;
    scope.kubectl(&["exec", "gated", "-c", "main", "--", "rm", "/tmp/ready"])?;
    scope.kubectl(&["wait", "--for=condition=Ready=false", "pod/gated", "--timeout=60s"])?;
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
    started(scope, &pod("now", &[("main", "trap '' TERM; while true; do sleep 0.1; done")]))?;
    scope.kubectl(&["delete", "pod", "now", "--grace-period=0", "--force", "--timeout=30s"])?;
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

fn host_network(scope: &Scope<'_>) -> Result<()> {
    let mut host = pod("host", &[("main", "sleep 1000")]);
    host["spec"]["hostNetwork"] = true.into();
    started(scope, &host)?;
    let inside = scope.exec("host", &["readlink", "/proc/self/ns/net"])?;
    ensure!(inside.trim() == std::fs::read_link("/proc/self/ns/net")?.to_string_lossy());
    let status = status(scope, "host")?;
    ensure!(status["podIP"] == status["hostIP"], "{status}");
    Ok(())
}

fn missing_configmap(scope: &Scope<'_>) -> Result<()> {
    let mut waits = pod("waits", &[("main", "sleep 1000")]);
    waits["spec"]["containers"][0]["env"] =
        json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "later", "key": "x"}}}]);
    scope.apply(&waits)?;
    scope.wait_for(
        "pod/waits",
        "{.status.containerStatuses[0].state.waiting.reason}=CreateContainerConfigError",
    )?;
    let message =
        scope.jsonpath(&["pod", "waits"], "{.status.containerStatuses[0].state.waiting.message}")?;
    ensure!(message == "configmap \"later\" not found", "{message}");
    scope.kubectl(&["create", "configmap", "later", "--from-literal=x=1"])?;
    scope.wait_ready("waits")
}

/// Limits are in the container's own cgroup.
fn cgroups(scope: &Scope<'_>) -> Result<()> {
    let mut limited = pod("limited", &[("main", "sleep 1000")]);
    limited["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": "250m"}, "limits": {"cpu": "500m", "memory": "64Mi"}});
    started(scope, &limited)?;
    let pid = find_process("limited")?;
    let file = |controller: &str, v1: &str, v2: &str| cgroup_file(pid, controller, v1, v2);
    let memory = file("memory", "memory.limit_in_bytes", "memory.max")?;
    ensure!(memory == "67108864", "{memory}");
    let quota = file("cpu", "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(quota == "50000" || quota == "50000 100000", "{quota}");
    Ok(())
}

/// A file of the cgroup that a process is in, by its name in v1 or v2.
fn cgroup_file(pid: i32, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let membership = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    ensure!(membership.lines().any(|line| line.contains("/skeg-") && line.contains("/pod")), "{membership}");
    let read = |path: String| std::fs::read_to_string(&path).with_context(|| path.clone());
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if controllers.split(',').any(|name| name == controller) {
            return Ok(read(format!("/sys/fs/cgroup/{controller}{path}/{v1}"))?.trim().to_owned());
        }
    }
    let path = membership.lines().find_map(|line| line.strip_prefix("0::")).context("a cgroup")?;
    Ok(read(format!("/sys/fs/cgroup{path}/{v2}"))?.trim().to_owned())
}

/// The class, and what it comes to in the cgroups of container and Pod.
fn quality_of_service(scope: &Scope<'_>) -> Result<()> {
    let equal = json!({"cpu": "100m", "memory": "32Mi"});
    for (name, resources, class, shares) in [
        ("best", json!({}), "BestEffort", ["2", "1"]),
        ("burst", json!({"requests": {"cpu": "500m"}}), "Burstable", ["512", "59"]),
        ("sure", json!({"requests": equal, "limits": equal}), "Guaranteed", ["102", "17"]),
    ] {
        let name = format!("qos-{name}");
        let mut classed = pod(&name, &[("main", "sleep 1000")]);
        classed["spec"]["containers"][0]["resources"] = resources;
        started(scope, &classed)?;
        ensure!(status(scope, &name)?["qosClass"] == class);
        let pid = find_process(&name)?;
        for place in ["", "../"] {
            let found =
                cgroup_file(pid, "cpu", &format!("{place}cpu.shares"), &format!("{place}cpu.weight"))?;
            ensure!(shares.contains(&found.as_str()), "{name} {place}: {found}");
        }
    }
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", find_process("qos-best")?))?;
    ensure!(score.trim() == "1000", "{score}");
    // Where the host lets nobody lower the score, the guaranteed one is not raised at least.
    let sure = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", find_process("qos-sure")?))?;
    ensure!(sure.trim().parse::<i32>()? <= 0, "{sure}");
    Ok(())
}

fn seccomp_and_privileged(scope: &Scope<'_>) -> Result<()> {
    let profiles = scope.cluster.data_dir.join("node/seccomp");
    std::fs::create_dir_all(&profiles)?;
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
    std::fs::write(profiles.join("no-mkdir.json"), profile.to_string())?;
    let with = |name: &str, context: Value| {
        let mut pod = pod(name, &[("main", "sleep 1000")]);
        pod["spec"]["containers"][0]["securityContext"] = context;
        pod
    };
    let script = "grep -E '^(Seccomp|CapEff):' /proc/self/status; mkdir /made 2>&1 || true; \
        mount -t tmpfs x /tmp 2>/dev/null && echo mounted; [ -e /dev/loop-control ] || [ -e /dev/mem ] && echo devices; true";
    let local = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "no-mkdir.json"}});
    started(scope, &with("local", local))?;
    let seen = scope.exec("local", &["sh", "-c", script])?;
    ensure!(seen.contains("Seccomp:\t2") && seen.contains("not supported"), "{seen}");
    started(scope, &with("free", json!({"seccompProfile": {"type": "Unconfined"}})))?;
    let seen = scope.exec("free", &["sh", "-c", script])?;
    ensure!(seen.contains("Seccomp:\t0") && !seen.contains("mounted"), "{seen}");
    started(scope, &with("mighty", json!({"privileged": true})))?;
    let seen = scope.exec("mighty", &["sh", "-c", script])?;
    ensure!(seen.contains("Seccomp:\t0") && seen.contains("mounted"), "{seen}");
    ensure!(!seen.contains("00000000a80425fb"), "more than the default capabilities: {seen}");
    let absent = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "absent.json"}});
    scope.apply(&with("absent", absent))?;
    scope.wait_for("pod/absent", "{.status.containerStatuses[0].state.waiting.reason}=CreateContainerError")
}

fn host_namespaces(scope: &Scope<'_>) -> Result<()> {
    for (name, field, namespace) in [("pids", "hostPID", "pid"), ("ipc", "hostIPC", "ipc")] {
        let mut host = pod(name, &[("main", "sleep 1000")]);
        host["spec"][field] = true.into();
        started(scope, &host)?;
        for other in ["pid", "ipc", "net", "mnt"] {
            let inside = scope.exec(name, &["readlink", &format!("/proc/self/ns/{other}")])?;
            let outside = std::fs::read_link(format!("/proc/self/ns/{other}"))?;
            let same = inside.trim() == outside.to_string_lossy();
            ensure!(same == (other == namespace), "{field} {other}: {inside}");
        }
    }
    Ok(())
}

fn sysctls(scope: &Scope<'_>) -> Result<()> {
    let with = |name: &str, sysctls: Value| {
        let mut pod = pod(name, &[("main", "sleep 1000")]);
        pod["spec"]["securityContext"] = json!({"sysctls": sysctls});
        pod
    };
    let safe = json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "80"}, {"name": "kernel.shm_rmid_forced", "value": "1"}]);
    started(scope, &with("tuned", safe))?;
    let seen = scope.exec(
        "tuned",
        &["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/shm_rmid_forced"],
    )?;
    ensure!(seen == "80\n1\n", "{seen}");
    scope.apply(&with("unsafe", json!([{"name": "kernel.msgmax", "value": "10000"}])))?;
    scope.wait_for("pod/unsafe", "{.status.reason}=SysctlForbidden")?;
    let status = status(scope, "unsafe")?;
    ensure!(status["phase"] == "Failed", "{status}");
    let message = status["message"].as_str().unwrap_or_default();
    ensure!(message.contains("forbidden sysctl: \"kernel.msgmax\" not allowlisted"), "{message}");
    Ok(())
}

fn mount_options(scope: &Scope<'_>) -> Result<()> {
    let shared = scope.cluster.scratch().join("propagation");
    std::fs::create_dir_all(&shared)?;
    let mount = |args: &[&str], at: &std::path::Path| -> Result<()> {
        ensure!(std::process::Command::new(args[0]).args(&args[1..]).arg(at).status()?.success(), "{args:?}");
        Ok(())
    };
    mount(&["mount", "-t", "tmpfs", "propagation"], &shared)?;
    let tested = (|| {
        mount(&["mount", "--make-shared"], &shared)?;
        std::fs::create_dir(shared.join("from-host"))?;
        std::fs::create_dir(shared.join("from-pod"))?;
        std::fs::create_dir(shared.join("inner"))?;
        mount(&["mount", "-t", "tmpfs", "inner"], &shared.join("inner"))?;
        let mut mounts = pod("mounts", &[("main", "sleep 1000"), ("other", "sleep 1000")]);
        mounts["spec"]["volumes"] =
            json!([{"name": "data", "emptyDir": {}}, {"name": "host", "hostPath": {"path": shared}}]);
        mounts["spec"]["containers"][0]["env"] =
            json!([{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
        mounts["spec"]["containers"][0]["volumeMounts"] = json!([
            {"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/fixed", "readOnly": true},
            {"name": "data", "mountPath": "/own", "subPathExpr": "$(POD_NAME)/deep"},
            {"name": "host", "mountPath": "/none"}, {"name": "host", "mountPath": "/slave", "mountPropagation": "HostToContainer"},
            {"name": "host", "mountPath": "/outer", "readOnly": true},
            {"name": "host", "mountPath": "/all", "readOnly": true, "recursiveReadOnly": "Enabled"},
        ]);
        mounts["spec"]["containers"][1]["securityContext"] = json!({"privileged": true});
        mounts["spec"]["containers"][1]["volumeMounts"] =
            json!([{"name": "host", "mountPath": "/both", "mountPropagation": "Bidirectional"}]);
        started(scope, &mounts)?;
        let sh = |container: &str, script: &str| {
            scope.kubectl(&["exec", "mounts", "-c", container, "--", "sh", "-c", script])
        };
        let seen = sh("main", "touch /own/x; ls /data/mounts/deep; touch /fixed/y 2>&1 || true")?;
        ensure!(seen.starts_with("x\n") && seen.contains("Read-only file system"), "{seen}");
        let seen = sh("main", "touch /outer/inner/a && echo writable; touch /all/inner/b 2>&1 || true")?;
        ensure!(seen.starts_with("writable\n") && seen.contains("Read-only file system"), "{seen}");
        let shown = status(scope, "mounts")?["containerStatuses"][0]["volumeMounts"].clone();
        let all = shown.as_array().and_then(|all| all.iter().find(|m| m["mountPath"] == "/all"));
        ensure!(all.is_some_and(|m| m["recursiveReadOnly"] == "Enabled"), "{shown}");
        mount(&["mount", "-t", "tmpfs", "host"], &shared.join("from-host"))?;
        std::fs::write(shared.join("from-host/file"), "")?;
        let seen = sh("main", "ls /slave/from-host; echo -; ls /none/from-host")?;
        ensure!(seen == "file\n-\n", "{seen}");
        sh("other", "mount -t tmpfs pod /both/from-pod && touch /both/from-pod/file")?;
        ensure!(shared.join("from-pod/file").exists(), "a mount of a Bidirectional container is the host's");
        // A link out of the volume is no sub-path.
        std::os::unix::fs::symlink("/etc", shared.join("out"))?;
        let mut escape = pod("escape", &[("main", "sleep 1000")]);
        escape["spec"]["volumes"] = json!([{"name": "host", "hostPath": {"path": shared}}]);
        escape["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "host", "mountPath": "/etc-of-host", "subPath": "out"}]);
        scope.apply(&escape)?;
        scope.wait_for(
            "pod/escape",
            "{.status.containerStatuses[0].state.waiting.reason}=CreateContainerConfigError",
        )?;
        scope.kubectl(&["delete", "pod", "--all", "--timeout=60s"]).map(drop)
    })();
    let unmounted = mount(&["umount", "--recursive"], &shared);
    tested.and(unmounted)
}

fn local_storage(scope: &Scope<'_>) -> Result<()> {
    let mut greedy = pod("greedy", &[("main", "head -c 3000000 /dev/zero > /cache/big; sleep 1000")]);
    greedy["spec"]["volumes"] = json!([{"name": "cache", "emptyDir": {"sizeLimit": "1Mi"}}]);
    greedy["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "cache", "mountPath": "/cache"}]);
    let mut writer = pod("writer", &[("main", "head -c 3000000 /dev/zero > /big; sleep 1000")]);
    writer["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "1Mi"}});
    let mut modest = pod("modest", &[("main", "echo little > /little; sleep 1000")]);
    modest["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "1Mi"}});
    for pod in [&modest, &greedy, &writer] {
        scope.apply(pod)?;
    }
    for (name, why) in [
        ("greedy", "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\""),
        ("writer", "exceeds the total limit of containers 1Mi"),
    ] {
        scope.wait_for(&format!("pod/{name}"), "{.status.reason}=Evicted")?;
        let status = status(scope, name)?;
        ensure!(status["phase"] == "Failed", "{status}");
        ensure!(status["message"].as_str().is_some_and(|text| text.contains(why)), "{status}");
        let conditions = status["conditions"].as_array().context("conditions")?;
        let target =
            conditions.iter().find(|c| c["type"] == "DisruptionTarget").context("DisruptionTarget")?;
        ensure!(target["reason"] == "TerminationByKubelet", "{target}");
    }
    scope.wait_ready("modest")
}

fn active_deadline(scope: &Scope<'_>) -> Result<()> {
    let mut late = pod("late", &[("main", "sleep 1000")]);
    late["spec"]["activeDeadlineSeconds"] = 1.into();
    scope.apply(&late)?;
    scope.wait_for("pod/late", "{.status.reason}=DeadlineExceeded")?;
    ensure!(status(scope, "late")?["phase"] == "Failed");
    Ok(())
}

/// HTTP with a path, headers and a named port; what answers wrongly is not ready. gRPC and HTTPS
/// against servers of the node's own tests.
fn http_probes(scope: &Scope<'_>) -> Result<()> {
    let mut web = pod("web", &[("main", "mkdir /www; echo ok > /www/there; httpd -f -p 8080 -h /www")]);
    web["spec"]["containers"][0]["ports"] = json!([{"name": "http", "containerPort": 8080}]);
    web["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/late", "port": "http"}, "periodSeconds": 1});
    web["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"path": "/there", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 1});
    scope.apply(&web)?;
    eventually("the readiness probe fails", || {
        let text = scope.kubectl(&["get", "events", "--field-selector=reason=Unhealthy"])?;
        Ok(text.contains("Readiness probe failed: HTTP probe failed with statuscode: 404").then_some(()))
    })?;
    scope.exec("web", &["sh", "-c", "echo now > /www/late"])?;
    scope.wait_ready("web")?;
    ensure!(status(scope, "web")?["containerStatuses"][0]["restartCount"] == 0);
    scope.exec("web", &["rm", "/www/there"])?;
    scope.wait_for("pod/web", "{.status.containerStatuses[0].restartCount}=1")?;
    // No TLS and no gRPC are spoken there: neither probe takes a plain answer for one of its own.
    for (name, probe) in [
        ("tls", json!({"httpGet": {"path": "/", "port": 8080, "scheme": "HTTPS"}, "periodSeconds": 1})),
        ("grpc", json!({"grpc": {"port": 8080}, "periodSeconds": 1})),
    ] {
        let mut plain = pod(name, &[("main", "httpd -f -p 8080 -h /")]);
        plain["spec"]["containers"][0]["readinessProbe"] = probe;
        scope.apply(&plain)?;
        eventually("the probe fails", || {
            let field = format!("--field-selector=reason=Unhealthy,involvedObject.name={name}");
            let text = scope.kubectl(&["get", "events", &field])?;
            Ok(text.contains("Readiness probe failed").then_some(()))
        })?;
        ensure!(status(scope, name)?["containerStatuses"][0]["ready"] == false);
    }
    Ok(())
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

fn private_image(scope: &Scope<'_>) -> Result<()> {
    /// `tester:secret`, by bcrypt.
    const HTPASSWD: &str = "tester:$2b$04$b6KxObqr4BkkR9PC8k0E5unDWdP4tHYZ97TZYqAxhwb6CTuNXuOqu\n";
    let directory = scope.cluster.scratch().join("private");
    std::fs::create_dir_all(&directory)?;
    let passwords = directory.join("htpasswd");
    std::fs::write(&passwords, HTPASSWD)?;
    let auth = format!("auth: {{htpasswd: {{realm: private, path: {}}}}}", passwords.display());
    let registry = Registry::start(&directory, &auth)?;
    registry.push(&scope.cluster.archive("busybox"), "mine/box:1", Some("tester:secret"))?;
    let mut private = pod("private", &[("main", "sleep 1000")]);
    private["spec"]["containers"][0]["image"] = format!("{}/mine/box:1", registry.host()).into();
    private["spec"]["containers"][0]["imagePullPolicy"] = "Always".into();
    private["spec"]["imagePullSecrets"] = json!([{"name": "pull"}]);
    scope.apply(&private)?;
    scope.watch_until(&["pod", "private"], |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["reason"] == "ErrImagePull"
            && waiting["message"].as_str().is_some_and(|text| text.contains("pull access denied"))
    })?;
    scope.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "pull",
        &format!("--docker-server={}", registry.host()),
        "--docker-username=tester",
        "--docker-password=secret",
    ])?;
    scope.wait_ready("private")
}

/// The supervisor's death is the sandbox's: all of it is ended and made anew.
fn killed_supervisor(scope: &Scope<'_>) -> Result<()> {
    started(scope, &pod("orphan", &[("main", "sleep 1000")]))?;
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
    let ip = scope.exec("orphan", &["hostname", "-i"])?;
    ensure!(after["podIP"] == ip.trim(), "the status says the new address: {ip} {after}");
    ensure!(find_process("orphan")? != container, "the old process is gone");
    eventually("the event", || {
        let text = scope.kubectl(&["get", "events", "--field-selector=reason=SandboxChanged"])?;
        Ok(text.contains("Pod sandbox changed").then_some(()))
    })
}
