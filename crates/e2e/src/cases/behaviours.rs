//! What Kubernetes' conformance tests ask of a node, where no other case shows it: environments,
//! messages, hooks, probes, init containers, expansions, volumes, one after the other.

use super::{allocatable, pod, started};
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
    Case { name: "restarts_are_counted_upwards", run: restarts },
    Case { name: "users_and_arguments_of_a_container", run: users_and_arguments },
    Case { name: "sub_paths_are_expanded_inside_their_volume", run: sub_paths },
    Case { name: "many_volumes_in_many_pods", run: many_volumes },
    Case { name: "one_volume_of_every_source", run: every_source },
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

/// Over HTTP, the second time after a pause for whoever fails too often.
fn restarts(scope: &Scope<'_>) -> Result<()> {
    let mut sick = pod(
        "sick",
        &[("main", "touch /tmp/healthz; (sleep 1; rm /tmp/healthz) & exec httpd -f -p 8080 -h /tmp")],
    );
    sick["spec"]["containers"][0]["livenessProbe"] =
        json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1});
    scope.apply(&sick)?;
    let mut counts = Vec::new();
    scope.watch_until(&["pod", "sick"], |pod| {
        let main = &pod["status"]["containerStatuses"][0];
        counts.extend(main["restartCount"].as_u64());
        main["restartCount"] == 2 && main["state"]["running"].is_object()
    })?;
    ensure!(counts.is_sorted(), "{counts:?}");
    counts.dedup();
    ensure!(counts == [0, 1, 2], "{counts:?}");
    Ok(())
}

fn users_and_arguments(scope: &Scope<'_>) -> Result<()> {
    let mut shown = pod("shown", &[("main", "")]);
    shown["spec"]["restartPolicy"] = "Never".into();
    let main = &mut shown["spec"]["containers"][0];
    main["securityContext"] = json!({"runAsUser": 1001, "runAsGroup": 2002});
    main["env"] = json!([{"name": "TOLD", "value": "by the variable"}]);
    main["command"] = json!(["sh", "-c"]);
    main["args"] = json!(["TOLD='by the shell'; echo \"$(TOLD)\" '$$(TOLD)'; id -u; id -g"]);
    scope.apply(&shown)?;
    scope.wait_for("pod/shown", "{.status.phase}=Succeeded")?;
    let said = scope.kubectl(&["logs", "shown"])?;
    ensure!(said == "by the variable $(TOLD)\n1001\n2002\n", "{said}");
    Ok(())
}

/// What is absolute or leads upwards is none; once what it is expanded from is mended, it is one.
fn sub_paths(scope: &Scope<'_>) -> Result<()> {
    let mounted = |name: &str, variable: Value, path: &str| {
        let mut pod = pod(name, &[("main", "touch /own/x; exec sleep 1000")]);
        pod["spec"]["volumes"] = json!([{"name": "work", "emptyDir": {}}]);
        let main = &mut pod["spec"]["containers"][0];
        let mut of = json!({"name": "OF"});
        of.as_object_mut()
            .into_iter()
            .for_each(|of| of.extend(variable.as_object().cloned().unwrap_or_default()));
        main["env"] =
            json!([of, {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
        main["volumeMounts"] = json!([{"name": "work", "mountPath": "/all"},
            {"name": "work", "mountPath": "/own", "subPathExpr": path}]);
        pod
    };
    let refused = |name: &str| {
        scope.watch_until(&["pod", name], |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == "CreateContainerConfigError"
                && waiting["message"]
                    .as_str()
                    .is_some_and(|message| message.contains("leads out of the volume"))
        })
    };
    let annotation = json!({"valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['path']"}}});
    scope.apply(&mounted("mended", annotation, "$(OF)/$(NAME)"))?;
    for (name, value) in [("absolute", "/tmp"), ("upwards", "`true`/../..")] {
        scope.apply(&mounted(name, json!({"value": value}), "$(OF)"))?;
        refused(name)?;
    }
    // Nobody runs what stands between backticks.
    started(scope, &mounted("literal", json!({"value": "`hostname`"}), "$(OF)"))?;
    ensure!(scope.exec("literal", &["ls", "/all"])? == "`hostname`\n");
    refused("mended")?;
    scope.kubectl(&["annotate", "pod", "mended", "path=deep"])?;
    scope.wait_ready("mended")?;
    ensure!(scope.exec("mended", &["ls", "/all/deep/mended"])? == "x\n");
    scope.kubectl(&["delete", "pod", "absolute", "upwards", "--timeout=60s"]).map(drop)
}

/// Fifty volumes in each of five Pods that start at once.
fn many_volumes(scope: &Scope<'_>) -> Result<()> {
    let mut names: Vec<String> = (0..50).map(|n| format!("map-{n}")).collect();
    let maps: Vec<Value> = names
        .iter()
        .map(|name| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"name": name}}))
        .collect();
    scope.kubectl_stdin(
        &["create", "-f", "-"],
        json!({"apiVersion": "v1", "kind": "List", "items": maps}).to_string().as_bytes(),
    )?;
    let mut many = pod("many", &[("main", "cat /v/*/name; echo; exec sleep 1000")]);
    many["spec"]["volumes"] =
        names.iter().map(|name| json!({"name": name, "configMap": {"name": name}})).collect();
    many["spec"]["containers"][0]["volumeMounts"] =
        names.iter().map(|name| json!({"name": name, "mountPath": format!("/v/{name}")})).collect();
    scope.apply(&json!({
        "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "many"},
        "spec": {"replicas": 5, "template": {"metadata": many["metadata"], "spec": many["spec"]}},
    }))?;
    scope.wait_for("rc/many", "{.status.readyReplicas}=5")?;
    names.sort_unstable();
    let wanted = names.concat() + "\n";
    let pods = scope.jsonpath(&["pods"], "{.items[*].metadata.name}")?;
    for pod in pods.split(' ') {
        eventually("it has read all of them", || {
            Ok((scope.kubectl(&["logs", pod])? == wanted).then_some(()))
        })?;
    }
    let failed = scope.kubectl(&["get", "events", "--field-selector=type=Warning", "-o", "name"])?;
    ensure!(!failed.contains("event/"), "{failed}");
    Ok(())
}

/// And no other namespace's secret of the same name.
fn every_source(scope: &Scope<'_>) -> Result<()> {
    let other = format!("{}-other", scope.namespace);
    scope.kubectl(&["create", "namespace", &other])?;
    let result = (|| {
        scope.cluster.kubectl(&[
            "create",
            "secret",
            "generic",
            "source",
            "--from-literal=secret=another",
            &format!("--namespace={other}"),
        ])?;
        scope.kubectl(&["create", "secret", "generic", "source", "--from-literal=secret=mine"])?;
        scope.kubectl(&["create", "configmap", "source", "--from-literal=map=red"])?;
        let resource = |path: &str| json!({"path": path, "resourceFieldRef": {"containerName": "main", "resource": path, "divisor": if path.ends_with("cpu") { "1m" } else { "1Mi" }}});
        let mut reader = pod(
            "reader",
            &[(
                "main",
                "cd /all; for f in *; do echo $f $(stat -L -c %a $f) $(cat $f); done; stat -L -c %A /key/secret; cat /key/secret",
            )],
        );
        reader["spec"]["restartPolicy"] = "Never".into();
        reader["spec"]["containers"][0]["resources"] = json!({
            "requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"}
        });
        reader["spec"]["volumes"] = json!([
            {"name": "key", "secret": {"secretName": "source"}},
            {"name": "all", "projected": {"sources": [
                {"secret": {"name": "source"}}, {"configMap": {"name": "source"}},
                {"downwardAPI": {"items": [
                    {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
                    resource("limits.cpu"), resource("limits.memory"), resource("requests.cpu"), resource("requests.memory"),
                ]}},
                {"serviceAccountToken": {"path": "token"}},
            ]}},
        ]);
        reader["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "all", "mountPath": "/all"}, {"name": "key", "mountPath": "/key"}]);
        scope.apply(&reader)?;
        scope.wait_for("pod/reader", "{.status.phase}=Succeeded")?;
        let said = scope.kubectl(&["logs", "reader"])?;
        let (said, token) = said.split_once("token 644 ").context("a token")?;
        ensure!(
            said == "limits.cpu 644 500\nlimits.memory 644 64\nmap 644 red\nname 644 reader\n\
                requests.cpu 644 250\nrequests.memory 644 32\nsecret 644 mine\n",
            "{said}"
        );
        let (token, alone) = token.split_once('\n').context("what comes then")?;
        ensure!(token.split('.').count() == 3, "{token}");
        ensure!(alone == "-rw-r--r--\nmine", "{alone}");
        Ok(())
    })();
    scope.kubectl(&["delete", "namespace", &other, "--timeout=60s"])?;
    result
}
