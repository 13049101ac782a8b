//! Pods resized in place, by kubectl, down to their cgroups.

use super::{pod, started, status};
use crate::cluster::eventually;
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "pods_are_resized_in_place", run: in_place },
    Case { name: "guaranteed_pods_are_resized_in_place", run: guaranteed },
    Case { name: "a_resize_policy_restarts", run: restarts },
    Case { name: "resizes_wait_for_room", run: wait_for_room },
];

fn sizes(request_cpu: &str, limit_cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": request_cpu, "memory": memory}, "limits": {"cpu": limit_cpu, "memory": memory}})
}

pub fn resize(scope: &Scope<'_>, pod: &str, containers: &[(&str, Value)]) -> Result<()> {
    let containers: Vec<Value> =
        containers.iter().map(|(name, resources)| json!({"name": name, "resources": resources})).collect();
    let patch = json!({"spec": {"containers": containers}}).to_string();
    scope.kubectl(&["patch", "pod", pod, "--subresource=resize", "--patch", &patch]).map(drop)
}

fn condition(status: &Value, kind: &str) -> Option<Value> {
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind).cloned()
}

/// A Pod waits for room, keeps waiting and what it has when the server dies, and grows once there is
/// some.
pub fn waits_over_a_restart(scope: &Scope<'_>) -> Result<()> {
    let cpu = scope.jsonpath(&["node", "e2e-node"], "{.status.allocatable.cpu}")?;
    let millis: u64 = match cpu.strip_suffix('m') {
        Some(millis) => millis.parse()?,
        None => cpu.parse::<u64>()? * 1000,
    };
    for (name, millis) in [("large", millis * 6 / 10), ("grows", 10)] {
        let mut one = pod(name, &[("main", "sleep 1000")]);
        one["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": format!("{millis}m")}});
        started(scope, &one)?;
    }
    let wanted = [("main", json!({"requests": {"cpu": format!("{}m", millis / 2 + 1)}}))];
    resize(scope, "grows", &wanted)?;
    let waits = || {
        eventually("the resize waits", || {
            let status = status(scope, "grows")?;
            let found = condition(&status, "PodResizePending").filter(|c| c["reason"] == "Deferred");
            Ok(found.map(|found| (found, status)))
        })
    };
    let (told, _) = waits()?;
    let message = told["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("Node didn't have enough resource: cpu, requested:"), "{told}");
    scope.cluster.kill()?;
    scope.cluster.up()?;
    let (_, shown) = waits()?;
    let container = &shown["containerStatuses"][0];
    ensure!(container["resources"]["requests"]["cpu"] == "10m", "it keeps what it has: {shown}");
    ensure!(container["allocatedResources"]["cpu"] == "10m" && container["restartCount"] == 0, "{shown}");
    scope.kubectl(&["delete", "pod", "large", "--timeout=60s"])?;
    let grown = resized(scope, "grows", &wanted)?;
    ensure!(grown["containerStatuses"][0]["containerID"] == container["containerID"], "{grown}");
    Ok(())
}

/// The status once the containers have these sizes and nothing is pending.
pub fn resized(scope: &Scope<'_>, pod: &str, containers: &[(&str, Value)]) -> Result<Value> {
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
    .with_context(|| format!("{}", status(scope, pod).unwrap_or_default()))
}

/// What a container's own cgroup says: memory limit and CPU quota.
fn groups(scope: &Scope<'_>, pod: &str, container: &str) -> Result<String> {
    let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; \
        cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null | head -n 1";
    let text = scope.kubectl(&["exec", pod, "-c", container, "--", "sh", "-c", script])?;
    Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

/// Each container's own process and run go on.
fn same_runs(before: &Value, after: &Value) -> Result<()> {
    for (was, is) in before["containerStatuses"].as_array().into_iter().flatten().zip(0..) {
        let is: &Value = &after["containerStatuses"][is];
        ensure!(was["containerID"] == is["containerID"] && is["restartCount"] == 0, "{is}");
    }
    Ok(())
}

fn guaranteed(scope: &Scope<'_>) -> Result<()> {
    let same = |cpu: &str, memory: &str| sizes(cpu, cpu, memory);
    let names = ["one", "two", "three"];
    let mut all = pod("guaranteed", &names.map(|name| (name, "sleep 1000")));
    for n in 0..3 {
        all["spec"]["containers"][n]["resources"] = same("40m", "64Mi");
    }
    started(scope, &all)?;
    let before = status(scope, "guaranteed")?;
    ensure!(before["qosClass"] == "Guaranteed", "{before}");
    for (what, to, expected) in [
        (
            "more",
            [same("60m", "96Mi"), same("50m", "80Mi"), same("30m", "48Mi")],
            [(96, 6000), (80, 5000), (48, 3000)],
        ),
        (
            "less",
            [same("70m", "128Mi"), same("20m", "32Mi"), same("20m", "32Mi")],
            [(128, 7000), (32, 2000), (32, 2000)],
        ),
        (
            "mixed",
            [same("80m", "128Mi"), same("10m", "64Mi"), same("40m", "40Mi")],
            [(128, 8000), (64, 1000), (40, 4000)],
        ),
    ] {
        let to: Vec<(&str, Value)> = names.into_iter().zip(to).collect();
        resize(scope, "guaranteed", &to)?;
        let after = resized(scope, "guaranteed", &to)?;
        for (name, (memory_mib, quota)) in names.into_iter().zip(expected) {
            let found = groups(scope, "guaranteed", name)?;
            ensure!(found == format!("{} {quota}", memory_mib << 20), "{what}, {name}: {found}");
        }
        same_runs(&before, &after)?;
    }
    Ok(())
}

fn in_place(scope: &Scope<'_>) -> Result<()> {
    let names = ["one", "two", "none", "tiny", "five", "six"];
    let mut all = pod("sized", &names.map(|name| (name, "sleep 1000")));
    let containers = &mut all["spec"]["containers"];
    containers[0]["resources"] = sizes("50m", "100m", "64Mi");
    containers[1]["resources"] = sizes("50m", "200m", "64Mi");
    containers[3]["resources"] = json!({"requests": {"cpu": "2m"}, "limits": {"cpu": "10m"}});
    containers[4]["resources"] = json!({"requests": {"cpu": "10m"}});
    started(scope, &all)?;
    let before = status(scope, "sized")?;
    ensure!(
        groups(scope, "sized", "one")? == format!("{} 10000", 64 << 20),
        "{}",
        groups(scope, "sized", "one")?
    );
    // One grows, another shrinks, others get what they had nothing of, or another name for the same.
    let to = [
        ("one", sizes("60m", "300m", "128Mi")),
        ("two", sizes("40m", "100m", "32Mi")),
        ("none", sizes("10m", "100m", "32Mi")),
        ("tiny", json!({"requests": {"cpu": "1m"}, "limits": {"cpu": "5m"}})),
        ("five", json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "48Mi"}})),
    ];
    resize(scope, "sized", &to)?;
    let after = resized(scope, "sized", &to)?;
    for (name, expected) in [
        ("one", format!("{} 30000", 128 << 20)),
        ("two", format!("{} 10000", 32 << 20)),
        ("none", format!("{} 10000", 32 << 20)),
    ] {
        let found = groups(scope, "sized", name)?;
        ensure!(found == expected, "{name}: {found}");
    }
    ensure!(groups(scope, "sized", "five")?.starts_with(&(48 << 20).to_string()));
    same_runs(&before, &after)?;
    ensure!(after["observedGeneration"] == 2, "{after}");
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
    let by_part = scope.kubectl(&["get", "pod", "sized", "--subresource=resize", "-o", "json"])?;
    ensure!(by_part == scope.kubectl(&["get", "pod", "sized", "-o", "json"])?, "the Pod itself: {by_part}");
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
