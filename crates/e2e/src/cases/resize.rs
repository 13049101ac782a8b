//! Pods resized in place, by kubectl, down to their cgroups.

use super::{pod, started, status};
use crate::cluster::eventually;
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "pods_are_resized_in_place", run: in_place },
    Case { name: "a_resize_policy_restarts", run: restarts },
    Case { name: "resizes_wait_for_room", run: wait_for_room },
];

fn sizes(request_cpu: &str, limit_cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": request_cpu, "memory": memory}, "limits": {"cpu": limit_cpu, "memory": memory}})
}

fn resize(scope: &Scope<'_>, pod: &str, containers: &[(&str, Value)]) -> Result<()> {
    let containers: Vec<Value> =
        containers.iter().map(|(name, resources)| json!({"name": name, "resources": resources})).collect();
    let patch = json!({"spec": {"containers": containers}}).to_string();
    scope.kubectl(&["patch", "pod", pod, "--subresource=resize", "--patch", &patch]).map(drop)
}

fn condition(status: &Value, kind: &str) -> Option<Value> {
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind).cloned()
}

/// The status once the containers have these sizes and nothing is pending.
fn resized(scope: &Scope<'_>, pod: &str, containers: &[(&str, Value)]) -> Result<Value> {
    eventually(&format!("{pod} is resized"), || {
        let status = status(scope, pod)?;
        let list = status["containerStatuses"].as_array().cloned().unwrap_or_default();
        let all = containers.iter().all(|(name, wanted)| {
            let found = list.iter().find(|found| found["name"] == *name);
            found.is_some_and(|found| {
                found["resources"] == *wanted && found["allocatedResources"] == wanted["requests"]
            })
        });
        let quiet =
            ["PodResizePending", "PodResizeInProgress"].iter().all(|c| condition(&status, c).is_none());
        Ok(Some(status).filter(|_| all && quiet))
    })
}

/// What a container's own cgroup says: memory limit and CPU quota.
fn groups(scope: &Scope<'_>, pod: &str, container: &str) -> Result<String> {
    let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; \
        cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null | head -n 1";
    let text = scope.kubectl(&["exec", pod, "-c", container, "--", "sh", "-c", script])?;
    Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

fn in_place(scope: &Scope<'_>) -> Result<()> {
    let mut both = pod("sized", &[("one", "sleep 1000"), ("two", "sleep 1000")]);
    both["spec"]["containers"][0]["resources"] = sizes("50m", "100m", "64Mi");
    both["spec"]["containers"][1]["resources"] = sizes("50m", "200m", "64Mi");
    started(scope, &both)?;
    let before = status(scope, "sized")?;
    ensure!(
        groups(scope, "sized", "one")? == format!("{} 10000", 64 << 20),
        "{}",
        groups(scope, "sized", "one")?
    );
    // One grows, the other shrinks, together more.
    let to = [("one", sizes("60m", "300m", "128Mi")), ("two", sizes("40m", "100m", "32Mi"))];
    resize(scope, "sized", &to)?;
    let after = resized(scope, "sized", &to)?;
    ensure!(
        groups(scope, "sized", "one")? == format!("{} 30000", 128 << 20),
        "{}",
        groups(scope, "sized", "one")?
    );
    ensure!(
        groups(scope, "sized", "two")? == format!("{} 10000", 32 << 20),
        "{}",
        groups(scope, "sized", "two")?
    );
    for (was, is) in [0, 1].map(|i| (&before["containerStatuses"][i], &after["containerStatuses"][i])) {
        ensure!(was["containerID"] == is["containerID"] && is["restartCount"] == 0, "{is}");
    }
    ensure!(after["observedGeneration"] == 2, "{after}");
    // Together less.
    let to = [("one", sizes("10m", "50m", "32Mi")), ("two", sizes("20m", "100m", "48Mi"))];
    resize(scope, "sized", &to)?;
    resized(scope, "sized", &to)?;
    ensure!(
        groups(scope, "sized", "one")? == format!("{} 5000", 32 << 20),
        "{}",
        groups(scope, "sized", "one")?
    );
    ensure!(
        groups(scope, "sized", "two")? == format!("{} 10000", 48 << 20),
        "{}",
        groups(scope, "sized", "two")?
    );
    // The whole, by the replace endpoint, as it is read there.
    let mut whole: Value = serde_json::from_str(&scope.kubectl(&[
        "get",
        "pod",
        "sized",
        "--subresource=resize",
        "-o",
        "json",
    ])?)?;
    whole["spec"]["containers"][0]["resources"] = sizes("15m", "60m", "40Mi");
    let file = scope.cluster.scratch().join("resize.json");
    std::fs::write(&file, whole.to_string())?;
    let file = file.to_str().context("a path")?;
    scope.kubectl(&["replace", "--subresource=resize", "-f", file])?;
    resized(scope, "sized", &[("one", sizes("15m", "60m", "40Mi"))])?;
    let told = scope.kubectl(&["get", "events", "--field-selector=reason=ResizeCompleted"])?;
    ensure!(told.contains("Pod resize completed"), "{told}");
    // Less memory than is in use is refused by the node, and told.
    resize(scope, "sized", &[("one", sizes("15m", "60m", "8Ki"))])?;
    let failed = eventually("the resize cannot be done", || {
        Ok(condition(&status(scope, "sized")?, "PodResizeInProgress").filter(|c| c["reason"] == "Error"))
    })?;
    ensure!(failed["message"].as_str().is_some_and(|m| m.contains("below current usage")), "{failed}");
    ensure!(groups(scope, "sized", "one")?.starts_with(&(40 << 20).to_string()));
    let refused = scope.kubectl_fails(&[
        "patch",
        "pod",
        "sized",
        "--subresource=resize",
        "--type=json",
        "--patch",
        "[{\"op\":\"remove\",\"path\":\"/spec/containers/0/resources/limits/cpu\"}]",
    ])?;
    ensure!(refused.contains("resource limits cannot be removed"), "{refused}");
    Ok(())
}

fn restarts(scope: &Scope<'_>) -> Result<()> {
    let mut one = pod("anew", &[("main", "trap 'exit 0' TERM; sleep 1000 & wait")]);
    one["spec"]["restartPolicy"] = "OnFailure".into();
    one["spec"]["containers"][0]["resources"] = sizes("50m", "100m", "64Mi");
    one["spec"]["containers"][0]["resizePolicy"] = json!([
        {"resourceName": "cpu", "restartPolicy": "NotRequired"},
        {"resourceName": "memory", "restartPolicy": "RestartContainer"}
    ]);
    started(scope, &one)?;
    resize(scope, "anew", &[("main", sizes("50m", "200m", "64Mi"))])?;
    let after = resized(scope, "anew", &[("main", sizes("50m", "200m", "64Mi"))])?;
    ensure!(after["containerStatuses"][0]["restartCount"] == 0, "cpu alone needs no restart: {after}");
    for (memory, count) in [("128Mi", 1), ("32Mi", 2)] {
        let to = [("main", sizes("50m", "400m", memory))];
        resize(scope, "anew", &to)?;
        let after = resized(scope, "anew", &to)?;
        ensure!(after["containerStatuses"][0]["restartCount"] == count, "{after}");
        ensure!(after["phase"] == "Running", "an end that was asked for ends no Pod: {after}");
    }
    ensure!(groups(scope, "anew", "main")? == format!("{} 40000", 32 << 20));
    Ok(())
}

fn wait_for_room(scope: &Scope<'_>) -> Result<()> {
    let mut one = pod("grows", &[("main", "sleep 1000")]);
    one["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "10m"}});
    started(scope, &one)?;
    let pending = |reason: &str| {
        eventually(&format!("the resize is {reason}"), || {
            let status = status(scope, "grows")?;
            let found = condition(&status, "PodResizePending").filter(|c| c["reason"] == reason);
            Ok(found.map(|found| (found, status)))
        })
    };
    let ask = |cpu: &str| resize(scope, "grows", &[("main", json!({"requests": {"cpu": cpu}}))]);
    ask("1000")?;
    let (told, shown) = pending("Infeasible")?;
    let message = told["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("Node didn't have enough capacity: cpu, requested: 1000000"), "{told}");
    ensure!(shown["containerStatuses"][0]["resources"]["requests"]["cpu"] == "10m", "{shown}");
    ask("20m")?;
    resized(scope, "grows", &[("main", json!({"requests": {"cpu": "20m"}}))])?;
    Ok(())
}
