//! What Kubernetes' conformance tests ask of a node, where no other case shows it: environments,
//! messages, hooks, probes, init containers, one after the other.

use super::{allocatable, pod};
use crate::cluster::eventually;
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub const CASES: &[Case] = &[
    Case { name: "environment_of_each_source", run: environment },
    Case { name: "termination_messages_by_policy", run: termination_messages },
    Case { name: "hooks_over_http", run: hooks_over_http },
    Case { name: "probes_that_pass_restart_nothing", run: passing_probes },
    Case { name: "init_containers_by_restart_policy", run: init_by_policy },
    Case { name: "a_pod_is_given_a_deadline", run: later_deadline },
    Case { name: "hosts_files_are_managed_for_pods_of_their_own", run: hosts_files },
];

fn environment(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&[
        "create",
        "configmap",
        "env",
        "--from-literal=data=map",
        "--from-literal=data-2.x=odd",
    ])?;
    scope.kubectl(&["create", "secret", "generic", "env", "--from-literal=data=secret"])?;
    scope.kubectl(&["create", "service", "clusterip", "found", "--tcp=8765:8080"])?;
    let service = scope.jsonpath(&["service", "found"], "{.spec.clusterIP}")?;
    let mut shown = pod("shown", &[("bounded", ""), ("unbounded", "")]);
    shown["spec"]["restartPolicy"] = "Never".into();
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let resource = |name: &str, resource: &str| json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource}}});
    for container in shown["spec"]["containers"].as_array_mut().context("containers")? {
        container["command"] = json!(["env"]);
        container["envFrom"] = json!([
            {"configMapRef": {"name": "env"}},
            {"configMapRef": {"name": "env"}, "prefix": "p-1."},
            {"secretRef": {"name": "env"}, "prefix": "p_2_"},
        ]);
        container["env"] = json!([
            field("NAME", "metadata.name"),
            field("NAMESPACE", "metadata.namespace"),
            field("UID", "metadata.uid"),
            field("IP", "status.podIP"),
            field("HOST_IP", "status.hostIP"),
            field("HOST_IPS", "status.hostIPs"),
            resource("CPU_LIMIT", "limits.cpu"),
            resource("CPU_REQUEST", "requests.cpu"),
            resource("MEMORY_LIMIT", "limits.memory"),
            resource("MEMORY_REQUEST", "requests.memory"),
        ]);
    }
    shown["spec"]["containers"][0]["resources"] = json!({
        "requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"}
    });
    scope.apply(&shown)?;
    scope.wait_for("pod/shown", "{.status.phase}=Succeeded")?;
    let object = scope.get(&["pod", "shown"])?;
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let host = text("/status/hostIP");
    let mut wanted: Vec<String> = vec![
        "data=map".into(),
        "data-2.x=odd".into(),
        "p-1.data=map".into(),
        "p-1.data-2.x=odd".into(),
        "p_2_data=secret".into(),
        "NAME=shown".into(),
        format!("NAMESPACE={}", scope.namespace),
        format!("UID={}", text("/metadata/uid")),
        format!("IP={}", text("/status/podIP")),
        format!("HOST_IP={host}"),
        format!("HOST_IPS={host}"),
        format!("FOUND_SERVICE_HOST={service}"),
        "FOUND_SERVICE_PORT=8765".into(),
        format!("FOUND_PORT=tcp://{service}:8765"),
        format!("FOUND_PORT_8765_TCP=tcp://{service}:8765"),
        "FOUND_PORT_8765_TCP_PROTO=tcp".into(),
        "FOUND_PORT_8765_TCP_PORT=8765".into(),
        format!("FOUND_PORT_8765_TCP_ADDR={service}"),
    ];
    let (cpu, memory) = (allocatable(scope, "cpu")?, allocatable(scope, "memory")?);
    let bounded = ["CPU_LIMIT=2", "CPU_REQUEST=1", "MEMORY_LIMIT=67108864", "MEMORY_REQUEST=33554432"];
    for (container, own) in [
        ("bounded", bounded.map(str::to_owned).to_vec()),
        ("unbounded", vec![format!("CPU_LIMIT={cpu}"), format!("MEMORY_LIMIT={memory}")]),
    ] {
        let said = scope.kubectl(&["logs", "shown", "-c", container])?;
        let said: BTreeSet<&str> = said.lines().collect();
        wanted.extend(own);
        let missing: Vec<&String> = wanted.iter().filter(|line| !said.contains(line.as_str())).collect();
        ensure!(missing.is_empty(), "{container}: {missing:?} of {said:?}");
        wanted.truncate(18);
    }
    Ok(())
}

fn termination_messages(scope: &Scope<'_>) -> Result<()> {
    let mut ended = pod(
        "ended",
        &[
            ("silent", "echo from the log"),
            ("told", "echo from the log; echo -n told > /dev/termination-log"),
            ("elsewhere", "echo -n elsewhere > /dev/termination-custom"),
        ],
    );
    ended["spec"]["restartPolicy"] = "Never".into();
    for n in 0..2 {
        ended["spec"]["containers"][n]["terminationMessagePolicy"] = "FallbackToLogsOnError".into();
    }
    ended["spec"]["containers"][2]["terminationMessagePath"] = "/dev/termination-custom".into();
    ended["spec"]["containers"][2]["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 2000});
    scope.apply(&ended)?;
    scope.wait_for("pod/ended", "{.status.phase}=Succeeded")?;
    let statuses = scope.get(&["pod", "ended"])?["status"]["containerStatuses"].clone();
    let message = |name: &str| {
        let mut all = statuses.as_array().into_iter().flatten();
        let of = all.find(|status| status["name"] == name);
        of.and_then(|status| status["state"]["terminated"]["message"].as_str()).unwrap_or_default().to_owned()
    };
    let all = ["silent", "told", "elsewhere"].map(message);
    ensure!(all == ["", "told", "elsewhere"], "{statuses}");
    Ok(())
}

fn hooks_over_http(scope: &Scope<'_>) -> Result<()> {
    let mut server = pod("server", &[("main", "")]);
    server["spec"]["containers"][0] =
        json!({"name": "main", "image": "nginx", "imagePullPolicy": "IfNotPresent"});
    scope.apply(&server)?;
    scope.wait_ready("server")?;
    let ip = scope.jsonpath(&["pod", "server"], "{.status.podIP}")?;
    let get = |path: &str| json!({"httpGet": {"host": ip, "port": 80, "path": path}});
    let mut hooked = pod("hooked", &[("main", "sleep 1000")]);
    hooked["spec"]["containers"][0]["lifecycle"] =
        json!({"postStart": get("/begun"), "preStop": get("/ending")});
    scope.apply(&hooked)?;
    let asked = |path: &str| {
        eventually(&format!("{path} is asked for"), || {
            Ok(scope.kubectl(&["logs", "server"])?.contains(&format!("GET {path} ")).then_some(()))
        })
    };
    asked("/begun")?;
    scope.kubectl(&["delete", "pod", "hooked", "--timeout=60s"])?;
    asked("/ending")
}

/// All of them are asked each second, one tells how often.
fn passing_probes(scope: &Scope<'_>) -> Result<()> {
    let mut healthy = pod(
        "healthy",
        &[
            ("exec", "echo ok > /tmp/health; exec sleep 1000"),
            ("tcp", "exec httpd -f -p 8080"),
            ("late", "exec sleep 1000"),
        ],
    );
    let probe = |how: Value| {
        let mut probe = json!({"periodSeconds": 1, "failureThreshold": 1});
        probe
            .as_object_mut()
            .into_iter()
            .for_each(|all| all.extend(how.as_object().cloned().unwrap_or_default()));
        probe
    };
    let script = "cat /tmp/health && echo asked >> /tmp/asked";
    healthy["spec"]["containers"][0]["livenessProbe"] =
        probe(json!({"exec": {"command": ["sh", "-c", script]}, "initialDelaySeconds": 1}));
    healthy["spec"]["containers"][1]["livenessProbe"] =
        probe(json!({"tcpSocket": {"port": 8080}, "initialDelaySeconds": 1}));
    healthy["spec"]["containers"][2]["readinessProbe"] =
        probe(json!({"exec": {"command": ["true"]}, "initialDelaySeconds": 3}));
    scope.apply(&healthy)?;
    scope.wait_ready("healthy")?;
    eventually("they are asked", || {
        let count = scope.kubectl(&["exec", "healthy", "-c", "exec", "--", "sh", "-c", "wc -l < /tmp/asked"]);
        Ok((count.unwrap_or_default().trim().parse::<u32>().unwrap_or_default() >= 5).then_some(()))
    })?;
    let status = scope.get(&["pod", "healthy"])?["status"].clone();
    let statuses = status["containerStatuses"].as_array().context("statuses")?;
    ensure!(statuses.iter().all(|status| status["restartCount"] == 0), "{status}");
    let late = statuses.iter().find(|status| status["name"] == "late").context("late")?;
    let seconds = |text: &Value| text.as_str().unwrap_or_default()[17..19].parse::<i64>();
    let conditions = status["conditions"].as_array().context("conditions")?;
    let ready = conditions.iter().find(|one| one["type"] == "ContainersReady").context("ContainersReady")?;
    let waited = seconds(&ready["lastTransitionTime"])? - seconds(&late["state"]["running"]["startedAt"])?;
    ensure!(waited.rem_euclid(60) >= 3, "ready after {waited} s: {status}");
    Ok(())
}

fn init_by_policy(scope: &Scope<'_>) -> Result<()> {
    let mut once = pod("once", &[("main", "test -e /work/one && test -e /work/two")]);
    let init = |name: &str, script: &str| {
        json!({"name": name, "image": "busybox", "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script], "volumeMounts": [{"name": "work", "mountPath": "/work"}]})
    };
    once["spec"]["restartPolicy"] = "Never".into();
    once["spec"]["volumes"] = json!([{"name": "work", "emptyDir": {}}]);
    once["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "work", "mountPath": "/work"}]);
    once["spec"]["initContainers"] =
        json!([init("one", "touch /work/one"), init("two", "test -e /work/one && touch /work/two")]);
    scope.apply(&once)?;
    scope.wait_for("pod/once", "{.status.phase}=Succeeded")?;
    let mut never = once.clone();
    never["metadata"]["name"] = "never".into();
    never["spec"]["restartPolicy"] = "Always".into();
    never["spec"]["initContainers"] = json!([init("one", "false"), init("two", "true")]);
    scope.apply(&never)?;
    let again = |pod: &Value| {
        let first = &pod["status"]["initContainerStatuses"][0];
        first["restartCount"].as_u64().is_some_and(|count| count >= 1)
    };
    let held = scope.watch_until(&["pod", "never"], again)?["status"].clone();
    ensure!(held["phase"] == "Pending", "{held}");
    for waiting in [&held["initContainerStatuses"][1], &held["containerStatuses"][0]] {
        ensure!(waiting["state"]["waiting"]["reason"] == "PodInitializing", "{held}");
    }
    // What fails all the time can be deleted all the same.
    scope.kubectl(&["delete", "pod", "never", "--timeout=60s"]).map(drop)
}

fn later_deadline(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&pod("late", &[("main", "exec sleep 1000")]))?;
    scope.wait_ready("late")?;
    scope.kubectl(&["patch", "pod", "late", "-p", "{\"spec\":{\"activeDeadlineSeconds\":1}}"])?;
    scope.wait_for("pod/late", "{.status.reason}=DeadlineExceeded")
}

fn hosts_files(scope: &Scope<'_>) -> Result<()> {
    let mut own = pod("own", &[("main", "exec sleep 1000"), ("mounted", "exec sleep 1000")]);
    own["spec"]["volumes"] = json!([{"name": "file", "hostPath": {"path": "/etc/hosts", "type": "File"}}]);
    own["spec"]["containers"][1]["volumeMounts"] = json!([{"name": "file", "mountPath": "/etc/hosts"}]);
    let mut hosts = pod("hosts", &[("main", "exec sleep 1000")]);
    hosts["spec"]["hostNetwork"] = true.into();
    scope.apply(&own)?;
    scope.apply(&hosts)?;
    scope.wait_ready("own")?;
    scope.wait_ready("hosts")?;
    let of_host = std::fs::read_to_string("/etc/hosts")?;
    let read = |pod: &str, container: &str| {
        scope.kubectl(&["exec", pod, "-c", container, "--", "cat", "/etc/hosts"])
    };
    let managed = read("own", "main")?;
    ensure!(
        managed.starts_with("# Kubernetes-managed hosts file") && managed.contains("\town\n"),
        "{managed}"
    );
    ensure!(read("own", "mounted")? == of_host, "a file of the container's own is left alone");
    ensure!(read("hosts", "main")?.contains(of_host.trim()), "the host's, where the network is the host's");
    Ok(())
}
