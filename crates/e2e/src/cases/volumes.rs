//! What a container is given: environment, volumes, and how much of the disk it may take.

use super::{import, pod, started, status};
use crate::cluster::eventually;
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::json;

pub const CASES: &[Case] = &[
    Case { name: "environment", run: environment },
    Case { name: "volumes", run: volumes },
    Case { name: "configmap_volume_follows_changes", run: configmap_updates },
    Case { name: "volumes_are_made_each_for_itself", run: volumes_apart },
    Case { name: "missing_configmap_is_told", run: missing_configmap },
    Case { name: "volumes_from_the_api_are_read_only", run: volumes_from_the_api },
    Case { name: "mount_options", run: mount_options },
    Case { name: "an_images_volumes_are_each_containers_own", run: image_volumes },
    Case { name: "local_storage_limits_evict", run: local_storage },
];

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

/// What may be secret is never on a disk, and no container changes what the API says.
fn volumes_from_the_api(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["create", "configmap", "map", "--from-literal=color=red"])?;
    scope.kubectl(&["create", "secret", "generic", "key", "--from-literal=password=hunter2"])?;
    let mut reader = pod("reader", &[("main", "sleep 1000")]);
    reader["spec"]["volumes"] = json!([
        {"name": "map", "configMap": {"name": "map"}},
        {"name": "key", "secret": {"secretName": "key"}},
        {"name": "info", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "all", "projected": {"sources": [{"secret": {"name": "key"}}]}},
    ]);
    let mounts =
        ["map", "key", "info", "all"].map(|name| json!({"name": name, "mountPath": format!("/{name}")}));
    reader["spec"]["containers"][0]["volumeMounts"] = json!(mounts);
    started(scope, &reader)?;
    let mounted = scope.exec("reader", &["cat", "/proc/mounts"])?;
    for (name, in_memory) in [("map", false), ("key", true), ("info", true), ("all", true)] {
        let line = mounted.lines().find(|line| line.contains(&format!(" /{name} "))).context("a mount")?;
        ensure!(line.starts_with("tmpfs ") == in_memory, "{line}");
        let written = scope.exec("reader", &["sh", "-c", &format!("echo x > /{name}/x")]);
        let refusal = written.err().with_context(|| format!("/{name} can be written"))?;
        ensure!(format!("{refusal:#}").contains("Read-only file system"), "{refusal:#}");
        let mode = scope.exec("reader", &["stat", "-c", "%a", &format!("/{name}")])?;
        ensure!(mode.trim() == if in_memory { "1777" } else { "777" }, "/{name}: {mode}");
    }
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

/// One that cannot be made or refreshed holds no other up, and one that nobody mounts holds up nobody.
fn volumes_apart(scope: &Scope<'_>) -> Result<()> {
    let made = scope.cluster.scratch().join("made-by-the-node");
    scope.kubectl(&["create", "configmap", "goes", "--from-literal=x=1"])?;
    scope.kubectl(&["create", "secret", "generic", "changes", "--from-literal=x=one"])?;
    let mut apart = pod("apart", &[("main", "sleep 1000")]);
    let labels = json!({"items": [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}},
    ]});
    apart["spec"]["volumes"] = json!([
        {"name": "file", "hostPath": {"path": made.join("file"), "type": "FileOrCreate"}},
        {"name": "dir", "hostPath": {"path": made, "type": "DirectoryOrCreate"}},
        {"name": "goes", "configMap": {"name": "goes"}},
        {"name": "changes", "secret": {"secretName": "changes"}},
        {"name": "shown", "downwardAPI": labels},
        {"name": "projected", "projected": {"sources": [{"downwardAPI": labels}]}},
        {"name": "unused-map", "configMap": {"name": "nowhere"}},
        {"name": "unused-kind", "nfs": {"server": "nowhere.example.com", "path": "/"}},
    ]);
    let mount = |name: &str| json!({"name": name, "mountPath": format!("/v/{name}")});
    apart["spec"]["containers"][0]["volumeMounts"] =
        ["file", "dir", "goes", "changes", "shown", "projected"].map(mount).into_iter().collect();
    scope.apply(&apart)?;
    scope.wait_ready("apart")?;
    scope.kubectl(&["delete", "configmap", "goes"])?;
    std::fs::remove_file(made.join("file"))?;
    scope.kubectl(&["patch", "secret", "changes", "-p", "{\"stringData\":{\"x\":\"two\"}}"])?;
    scope.kubectl(&["label", "pod", "apart", "color=blue"])?;
    let says = |part: &str, times: usize| {
        eventually("the others follow", || {
            let script = "cat /v/changes/x; cat /v/shown/* /v/projected/*";
            let said = scope.exec("apart", &["sh", "-c", script])?;
            Ok((said.starts_with("two") && said.matches(part).count() == times).then_some(()))
        })
    };
    says("color=\"blue\"", 2)?;
    scope.kubectl(&["annotate", "pod", "apart", "size=large"])?;
    says("size=\"large\"", 2)
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

fn mount_options(scope: &Scope<'_>) -> Result<()> {
    let shared = scope.cluster.scratch().join("propagation");
    std::fs::create_dir_all(&shared)?;
    let mount = |args: &[&str], at: &std::path::Path| -> Result<()> {
        ensure!(std::process::Command::new(args[0]).args(&args[1..]).arg(at).status()?.success(), "{args:?}");
        Ok(())
    };
    mount(&["mount", "-t", "tmpfs", "propagation"], &shared)?;
    let tested = (|| {
        // What nothing can come through is refused.
        mount(&["mount", "--make-private"], &shared)?;
        for (propagation, kind) in [("HostToContainer", "shared or slave"), ("Bidirectional", "shared")] {
            let name = propagation.to_ascii_lowercase();
            let mut refused = pod(&name, &[("main", "sleep 1000")]);
            refused["spec"]["volumes"] = json!([{"name": "host", "hostPath": {"path": shared}}]);
            let main = &mut refused["spec"]["containers"][0];
            main["securityContext"] = json!({"privileged": true});
            main["volumeMounts"] =
                json!([{"name": "host", "mountPath": "/x", "mountPropagation": propagation}]);
            scope.apply(&refused)?;
            let why = format!("path {shared:?} is mounted on {shared:?} but it is not a {kind} mount");
            scope.watch_until(&["pod", &name], |pod| {
                let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
                waiting["reason"] == "CreateContainerError"
                    && waiting["message"].as_str().is_some_and(|message| message.contains(&why))
            })?;
            scope.kubectl(&["delete", "pod", &name, "--timeout=60s"])?;
        }
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
        // What is made for a subPath is as open as its volume.
        let mut user = pod("user", &[("main", "touch /own/x && sleep 1000")]);
        user["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        user["spec"]["securityContext"] = json!({"runAsUser": 1001, "runAsGroup": 1001, "fsGroup": 3000});
        user["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/own", "subPath": "a/b"}]);
        started(scope, &user)?;
        let shown = scope.kubectl(&["exec", "user", "--", "stat", "-c", "%a %g", "/own", "/own/x"])?;
        ensure!(shown == "2777 3000\n644 3000\n", "{shown}");
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
        let why =
            scope.jsonpath(&["pod", "escape"], "{.status.containerStatuses[0].state.waiting.message}")?;
        ensure!(why.contains("subPath \"out\" leads out of the volume: name a path inside it"), "{why}");
        scope.kubectl(&["delete", "pod", "--all", "--timeout=60s"]).map(drop)
    })();
    let unmounted = mount(&["umount", "--recursive"], &shared);
    tested.and(unmounted)
}

/// `VOLUME /data /newvol` of an image: also where no layer has the directory, and where the rest is read-only.
fn image_volumes(scope: &Scope<'_>) -> Result<()> {
    import(scope, "volumes")?;
    let script = "cat /data/seed /data/* 2>/dev/null; touch /newvol/x /data/x || exit 1; echo mine > /data/seed; \
        touch /elsewhere 2>/dev/null || echo read-only; echo up; sleep 1000; exit 1";
    let mut plain = pod("own-volumes", &[("main", script), ("other", script)]);
    for container in plain["spec"]["containers"].as_array_mut().context("containers")? {
        container["image"] = "volumes".into();
    }
    plain["spec"]["containers"][1]["securityContext"] = json!({"readOnlyRootFilesystem": true});
    let mut mounted = pod("own-mounted", &[("main", "ls -a /data /newvol; echo up; sleep 1000")]);
    mounted["spec"]["containers"][0]["image"] = "volumes".into();
    mounted["spec"]["volumes"] = json!([{"name": "mine", "emptyDir": {}}]);
    mounted["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "mine", "mountPath": "/data"}]);
    started(scope, &plain)?;
    started(scope, &mounted)?;
    let says = |pod: &str, container: &str, wanted: &str| {
        eventually(&format!("{pod}/{container} says {wanted:?}"), || {
            let log = scope.kubectl(&["logs", pod, "-c", container])?;
            Ok((log == wanted).then_some(()))
        })
    };
    let seeds = "of the image\nof the image\n";
    says("own-volumes", "main", &format!("{seeds}up\n"))?;
    says("own-volumes", "other", &format!("{seeds}read-only\nup\n"))?;
    says("own-mounted", "main", "/data:\n.\n..\n\n/newvol:\n.\n..\nup\n")?;

    // The next run of the container has the image's files again.
    scope.kubectl(&["exec", "own-volumes", "-c", "other", "--", "killall", "-9", "sleep"])?;
    scope.watch_until(&["pod", "own-volumes"], |pod| {
        let containers = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
        containers.into_iter().any(|c| c["restartCount"] == 1 && c["ready"] == true)
    })?;
    says("own-volumes", "other", &format!("{seeds}read-only\nup\n"))?;
    let kept = scope.kubectl(&["exec", "own-volumes", "-c", "main", "--", "cat", "/data/seed"])?;
    ensure!(kept == "mine\n", "{kept}");
    Ok(())
}

fn local_storage(scope: &Scope<'_>) -> Result<()> {
    import(scope, "volumes")?;
    let mut greedy = pod("greedy", &[("main", "head -c 3000000 /dev/zero > /cache/big; sleep 1000")]);
    greedy["spec"]["volumes"] = json!([{"name": "cache", "emptyDir": {"sizeLimit": "1Mi"}}]);
    greedy["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "cache", "mountPath": "/cache"}]);
    let mut writer = pod("writer", &[("main", "head -c 3000000 /dev/zero > /big; sleep 1000")]);
    writer["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "1Mi"}});
    let mut modest = pod("modest", &[("main", "echo little > /little; sleep 1000")]);
    modest["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "1Mi"}});
    let mut filler = pod("filler", &[("main", "head -c 3000000 /dev/zero > /newvol/big; sleep 1000")]);
    filler["spec"]["containers"][0]["image"] = "volumes".into();
    filler["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "1Mi"}});
    for pod in [&modest, &greedy, &writer, &filler] {
        scope.apply(pod)?;
    }
    for (name, why) in [
        ("greedy", "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\""),
        ("writer", "exceeds the total limit of containers 1Mi"),
        ("filler", "exceeds the total limit of containers 1Mi"),
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
