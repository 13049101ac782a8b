//! What a container may do and take: privileges, namespaces of the host, limits.

use super::{find_process, pod, started, status};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "secure_by_default", run: secure_by_default },
    Case { name: "security_context", run: security_context },
    Case { name: "a_memory_limit_ends_in_oomkilled", run: oom_killed },
    Case { name: "host_network", run: host_network },
    Case { name: "cpu_and_pids_cgroups", run: cgroups },
    Case { name: "quality_of_service", run: quality_of_service },
    Case { name: "seccomp_and_privileged", run: seccomp_and_privileged },
    Case { name: "host_namespaces", run: host_namespaces },
    Case { name: "sysctls", run: sysctls },
];

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
