//! Deployments: heal, scale, roll out, roll back, recreate, delete.

use super::{deployment, pod};
use crate::cluster::{Watch, eventually};
use crate::{Case, Scope};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub const CASES: &[Case] = &[
    Case { name: "a_replication_controller", run: replication_controller },
    Case { name: "set_env_never_below_available", run: set_env_never_below_available },
    Case { name: "recreate_never_mixes", run: recreate_never_mixes },
    Case { name: "broken_image_stalls_with_old_pods_serving", run: broken_image_stalls },
    Case { name: "rollout_history_and_undo", run: rollout_history_and_undo },
    Case { name: "rollout_pause_resume", run: rollout_pause_resume },
    Case { name: "rollout_restart", run: rollout_restart },
    Case { name: "set_image", run: set_image },
    Case { name: "scale_up_and_down", run: scale_up_and_down },
    Case { name: "a_deleted_pod_is_replaced", run: a_deleted_pod_is_replaced },
    Case { name: "delete_background", run: delete_background },
    Case { name: "delete_foreground", run: delete_foreground },
    Case { name: "delete_orphan", run: delete_orphan },
    Case { name: "replicaset_adopts_and_releases", run: replicaset_adopts_and_releases },
    Case { name: "revision_history_limit", run: revision_history_limit },
    Case { name: "progress_deadline", run: progress_deadline },
];

fn start(scope: &Scope<'_>, name: &str, replicas: u32) -> Result<()> {
    scope.apply(&deployment(name, replicas))?;
    scope.rolled_out(name)
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// Sets a variable and follows the status: never fewer available than replicas − maxUnavailable,
/// never more Pods than replicas + maxSurge.
fn set_env_never_below_available(scope: &Scope<'_>) -> Result<()> {
    let mut web = deployment("web", 4);
    web["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}});
    scope.apply(&web)?;
    scope.rolled_out("web")?;
    let mut watch = Watch::start(scope, &["deployment", "web"])?;
    watch.next()?.context("the first state")?;
    let mut pods = Watch::start(scope, &["pods", "-l", "app=web", "--output-watch-events"])?;
    let mut ready = BTreeMap::new();
    while ready.len() < 4 {
        note_ready(&mut ready, &pods.next()?.context("the first Pods")?);
    }
    scope.kubectl(&["set", "env", "deployment/web", "COLOR=blue"])?;
    // What the Pods themselves say counts, not what a controller counts of them.
    let blue = |ready: &BTreeMap<String, String>| ready.values().filter(|color| *color == "blue").count();
    while blue(&ready) < 4 || ready.len() > 4 {
        note_ready(&mut ready, &pods.next()?.context("the watch of the Pods ended")?);
        ensure!(ready.len() >= 3, "fewer than 3 Ready: {ready:?}");
    }
    let mut states = 0;
    while let Some(object) = watch.next()? {
        let status = &object["status"];
        states += 1;
        ensure!(number(&status["availableReplicas"]) >= 3, "fewer than 3 available: {status}");
        ensure!(number(&status["replicas"]) <= 5, "more than 5 Pods: {status}");
        let done = number(&status["updatedReplicas"]) == 4
            && number(&status["availableReplicas"]) == 4
            && number(&status["replicas"]) == 4
            && status["observedGeneration"] == object["metadata"]["generation"];
        if done {
            break;
        }
    }
    ensure!(states > 3, "the rollout was seen in only {states} states");
    let env = scope.jsonpath(&["pods", "-l", "app=web"], "{.items[*].spec.containers[0].env[0].value}")?;
    ensure!(env == "blue blue blue blue", "{env}");
    Ok(())
}

/// Keeps the Pods that are Ready and not on their way out, with their color.
fn note_ready(ready: &mut BTreeMap<String, String>, event: &Value) {
    let pod = &event["object"];
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let leaves = event["type"] == "DELETED" || !pod["metadata"]["deletionTimestamp"].is_null();
    if is_ready(pod) && !leaves {
        let color = pod["spec"]["containers"][0]["env"][0]["value"].as_str().unwrap_or_default();
        ready.insert(name, color.to_owned());
    } else {
        ready.remove(&name);
    }
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"].as_array().is_some_and(|conditions| {
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    })
}

fn recreate_never_mixes(scope: &Scope<'_>) -> Result<()> {
    let mut web = deployment("web", 2);
    web["spec"]["strategy"] = json!({"type": "Recreate"});
    scope.apply(&web)?;
    scope.rolled_out("web")?;
    let hash =
        |pod: &Value| pod["metadata"]["labels"]["pod-template-hash"].as_str().unwrap_or_default().to_owned();
    let old = scope.get(&["pods", "-l", "app=web"])?["items"].as_array().context("Pods")?.clone();
    let old_hash = hash(&old[0]);
    let mut watch = Watch::start(scope, &["pods", "-l", "app=web", "--output-watch-events"])?;
    // It must be there before they go.
    for _ in &old {
        watch.next()?.context("the old Pods")?;
    }
    scope.kubectl(&["set", "env", "deployment/web", "COLOR=green"])?;
    let mut gone = 0;
    let mut ready = BTreeSet::new();
    while let Some(event) = watch.next()? {
        let (kind, pod) = (&event["type"], &event["object"]);
        if hash(pod) == old_hash {
            if kind == "DELETED" {
                gone += 1;
            }
            continue;
        }
        ensure!(gone == old.len(), "a new Pod appeared while {} old ones were left", old.len() - gone);
        if is_ready(pod) {
            ready.insert(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        }
        if ready.len() == 2 {
            return Ok(());
        }
    }
    bail!("the watch ended with {} new Pods ready", ready.len())
}

fn broken_image_stalls(scope: &Scope<'_>) -> Result<()> {
    start(scope, "web", 3)?;
    scope.kubectl(&["set", "image", "deployment/web", "nginx=127.0.0.1:1/no/such:image"])?;
    scope.watch_until(&["pods", "-l", "app=web"], |pod| {
        let reason = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        reason == "ErrImagePull" || reason == "ImagePullBackOff"
    })?;
    let web = scope.get(&["deployment", "web"])?;
    ensure!(number(&web["status"]["availableReplicas"]) >= 3, "the old Pods serve: {}", web["status"]);
    ensure!(number(&web["status"]["updatedReplicas"]) == 1, "only the surge Pod is new: {}", web["status"]);
    scope.kubectl(&["rollout", "undo", "deployment/web"])?;
    scope.rolled_out("web")
}

fn rollout_history_and_undo(scope: &Scope<'_>) -> Result<()> {
    start(scope, "web", 1)?;
    let first =
        scope.jsonpath(&["pods", "-l", "app=web"], "{.items[0].metadata.labels.pod-template-hash}")?;
    scope.kubectl(&["set", "env", "deployment/web", "COLOR=blue"])?;
    scope.rolled_out("web")?;
    let history = scope.kubectl(&["rollout", "history", "deployment/web"])?;
    ensure!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    let detail = scope.kubectl(&["rollout", "history", "deployment/web", "--revision=2"])?;
    ensure!(detail.contains("COLOR") && detail.contains("blue"), "{detail}");
    let undo = scope.kubectl(&["rollout", "undo", "deployment/web"])?;
    ensure!(undo.contains("rolled back"), "{undo}");
    scope.rolled_out("web")?;
    let history = scope.kubectl(&["rollout", "history", "deployment/web"])?;
    ensure!(history.contains("\n3 ") && !history.contains("\n1 "), "revision 1 became 3: {history}");
    scope.kubectl(&[
        "wait",
        "--for=delete",
        "pod",
        "-l",
        &format!("app=web,pod-template-hash!={first}"),
        "--timeout=60s",
    ])?;
    let hash = scope.jsonpath(&["pods", "-l", "app=web"], "{.items[0].metadata.labels.pod-template-hash}")?;
    ensure!(hash == first, "the old ReplicaSet is used again");
    let sets = scope.get(&["replicasets", "-l", "app=web"])?["items"].as_array().map_or(0, Vec::len);
    ensure!(sets == 2, "{sets} ReplicaSets");
    Ok(())
}

fn rollout_pause_resume(scope: &Scope<'_>) -> Result<()> {
    start(scope, "web", 1)?;
    scope.kubectl(&["rollout", "pause", "deployment/web"])?;
    scope.wait_for(
        "deployment/web",
        "{.status.conditions[?(@.type==\"Progressing\")].reason}=DeploymentPaused",
    )?;
    scope.kubectl(&["set", "env", "deployment/web", "COLOR=blue"])?;
    let generation = scope.jsonpath(&["deployment", "web"], "{.metadata.generation}")?;
    scope.wait_for("deployment/web", &format!("{{.status.observedGeneration}}={generation}"))?;
    let sets = scope.get(&["replicasets", "-l", "app=web"])?["items"].as_array().map_or(0, Vec::len);
    ensure!(sets == 1, "a paused Deployment rolled out");
    scope.kubectl(&["rollout", "resume", "deployment/web"])?;
    scope.rolled_out("web")?;
    let env = scope.jsonpath(&["deployment", "web"], "{.status.updatedReplicas}")?;
    ensure!(env == "1", "{env}");
    Ok(())
}

fn rollout_restart(scope: &Scope<'_>) -> Result<()> {
    start(scope, "web", 1)?;
    let old = scope.jsonpath(&["pods", "-l", "app=web"], "{.items[0].metadata.name}")?;
    scope.kubectl(&["rollout", "restart", "deployment/web"])?;
    scope.rolled_out("web")?;
    scope.kubectl(&["wait", "--for=delete", &format!("pod/{old}"), "--timeout=60s"])?;
    let restarted = scope.kubectl(&["get", "deployment", "web", "-o", "yaml"])?;
    ensure!(restarted.contains("kubectl.kubernetes.io/restartedAt"), "{restarted}");
    Ok(())
}

fn set_image(scope: &Scope<'_>) -> Result<()> {
    start(scope, "web", 2)?;
    let said = scope.kubectl(&["set", "image", "deployment/web", "nginx=docker.io/library/nginx:latest"])?;
    ensure!(said.contains("image updated"), "{said}");
    scope.rolled_out("web")?;
    let images = scope.jsonpath(&["deployment", "web"], "{.spec.template.spec.containers[*].image}")?;
    ensure!(images == "docker.io/library/nginx:latest", "{images}");
    Ok(())
}

fn scale_up_and_down(scope: &Scope<'_>) -> Result<()> {
    start(scope, "web", 1)?;
    scope.kubectl(&["scale", "deployment/web", "--replicas=4"])?;
    scope.wait_for("deployment/web", "{.status.readyReplicas}=4")?;
    let refused =
        scope.kubectl_fails(&["scale", "deployment/web", "--current-replicas=9", "--replicas=1"])?;
    ensure!(refused.contains("Expected replicas to be 9"), "{refused}");
    scope.kubectl(&["scale", "deployment/web", "--replicas=0"])?;
    scope.kubectl(&["wait", "--for=delete", "pod", "-l", "app=web", "--timeout=60s"])?;
    Ok(())
}

fn a_deleted_pod_is_replaced(scope: &Scope<'_>) -> Result<()> {
    start(scope, "web", 2)?;
    let victim = scope.jsonpath(&["pods", "-l", "app=web"], "{.items[0].metadata.name}")?;
    scope.kubectl(&["delete", "pod", &victim])?;
    scope.wait_for("deployment/web", "{.status.readyReplicas}=2")?;
    let pods = scope.jsonpath(&["pods", "-l", "app=web"], "{.items[*].metadata.name}")?;
    ensure!(!pods.contains(&victim) && pods.split(' ').count() == 2, "{pods}");
    Ok(())
}

fn delete_background(scope: &Scope<'_>) -> Result<()> {
    start(scope, "web", 2)?;
    scope.kubectl(&["delete", "deployment", "web", "--cascade=background"])?;
    scope.kubectl(&["wait", "--for=delete", "replicaset", "-l", "app=web", "--timeout=60s"])?;
    scope.kubectl(&["wait", "--for=delete", "pod", "-l", "app=web", "--timeout=60s"])?;
    Ok(())
}

/// The owners stay, with their finalizer, until the last of what they own is gone.
fn delete_foreground(scope: &Scope<'_>) -> Result<()> {
    start(scope, "web", 2)?;
    let of = ["-l", "app=web", "-o", "name"];
    let pods = scope.kubectl(&[&["get", "pods"][..], &of].concat())?;
    let held = pods.lines().next().context("a Pod")?;
    let finalizers = |list: &str| {
        let patch = format!("{{\"metadata\":{{\"finalizers\":{list}}}}}");
        scope.kubectl(&["patch", held, "--type=merge", "-p", &patch])
    };
    finalizers("[\"example.com/held\"]")?;
    scope.kubectl(&["delete", "deployment", "web", "--cascade=foreground", "--wait=false"])?;
    eventually("the other Pod is gone", || {
        Ok((scope.kubectl(&[&["get", "pods"][..], &of].concat())?.trim() == held).then_some(()))
    })?;
    let set = scope.jsonpath(&["replicasets", "-l", "app=web"], "{.items[*].metadata.finalizers}")?;
    let owner = scope.jsonpath(&["deployment", "web"], "{.metadata.finalizers}")?;
    ensure!([&set, &owner].iter().all(|held| *held == "[\"foregroundDeletion\"]"), "{set} {owner}");
    finalizers("null")?;
    scope.kubectl(&["wait", "--for=delete", "deployment/web", "--timeout=60s"])?;
    let left = scope.kubectl(&[&["get", "deployments,replicasets,pods"][..], &of].concat())?;
    ensure!(!left.contains('/'), "dependents outlived a foreground deletion: {left}");
    Ok(())
}

fn delete_orphan(scope: &Scope<'_>) -> Result<()> {
    start(scope, "web", 1)?;
    scope.kubectl(&["delete", "deployment", "web", "--cascade=orphan"])?;
    let owners = scope.jsonpath(&["replicasets", "-l", "app=web"], "{.items[*].metadata.ownerReferences}")?;
    ensure!(owners.is_empty(), "{owners}");
    // The same Deployment adopts what it left.
    let before = scope.jsonpath(&["replicasets", "-l", "app=web"], "{.items[*].metadata.uid}")?;
    scope.apply(&deployment("web", 1))?;
    scope.rolled_out("web")?;
    let after = scope.jsonpath(&["replicasets", "-l", "app=web"], "{.items[*].metadata.uid}")?;
    ensure!(before == after, "the orphan was adopted");
    Ok(())
}

fn replicaset_adopts_and_releases(scope: &Scope<'_>) -> Result<()> {
    let mut loose = pod("loose", &[("main", "sleep 1000")]);
    loose["metadata"]["labels"] = json!({"app": "set"});
    scope.apply(&loose)?;
    scope.wait_ready("loose")?;
    let template = json!({"metadata": {"labels": {"app": "set"}}, "spec": loose["spec"]});
    scope.apply(&json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "set"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "set"}}, "template": template},
    }))?;
    scope.wait_for("replicaset/set", "{.status.readyReplicas}=1")?;
    let owner = scope.jsonpath(&["pod", "loose"], "{.metadata.ownerReferences[0].name}")?;
    ensure!(owner == "set", "adopted by {owner:?}");
    scope.kubectl(&["label", "pod", "loose", "--overwrite", "app=free"])?;
    // Of a single name kubectl passes over the first event of its watch: that may be the release.
    let loose = ["pods", "--field-selector=metadata.name=loose"];
    scope.watch_until(&loose, |pod| pod["metadata"]["ownerReferences"].is_null())?;
    scope.watch_until(&["pods", "-l", "app=set"], |pod| pod["metadata"]["name"] != "loose").map(|_| ())
}

fn revision_history_limit(scope: &Scope<'_>) -> Result<()> {
    let mut web = deployment("web", 1);
    web["spec"]["revisionHistoryLimit"] = 1.into();
    scope.apply(&web)?;
    scope.rolled_out("web")?;
    let mut sets = Watch::start(scope, &["replicasets", "-l", "app=web", "--output-watch-events"])?;
    sets.next()?.context("the first set")?;
    for color in ["blue", "green", "red"] {
        scope.kubectl(&["set", "env", "deployment/web", &format!("COLOR={color}")])?;
        scope.rolled_out("web")?;
    }
    // Of four sets the newest and one old one are kept.
    for _ in 0..2 {
        while sets.next()?.context("the watch ended")?["type"] != "DELETED" {}
    }
    let left = scope.get(&["replicasets", "-l", "app=web"])?["items"].as_array().map_or(0, Vec::len);
    ensure!(left == 2, "{left} ReplicaSets are left");
    Ok(())
}

fn progress_deadline(scope: &Scope<'_>) -> Result<()> {
    let mut web = deployment("web", 1);
    web["spec"]["progressDeadlineSeconds"] = 2.into();
    web["spec"]["template"]["spec"]["containers"][0]["image"] = "127.0.0.1:1/no/such:image".into();
    scope.apply(&web)?;
    scope.wait_for(
        "deployment/web",
        "{.status.conditions[?(@.type==\"Progressing\")].reason}=ProgressDeadlineExceeded",
    )?;
    let failed = scope.kubectl_fails(&["rollout", "status", "deployment/web", "--timeout=30s"])?;
    ensure!(failed.contains("exceeded its progress deadline"), "{failed}");
    Ok(())
}

/// The older kind of set: it makes, replaces and removes Pods, leaves and adopts them.
fn replication_controller(scope: &Scope<'_>) -> Result<()> {
    let controller = json!({
        "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "older"},
        "spec": {"replicas": 2, "template": {
            "metadata": {"labels": {"app": "older"}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [super::container("main", "sleep 1000")]},
        }},
    });
    let said = scope.apply(&controller)?;
    ensure!(!said.contains("Warning"), "{said}");
    scope.wait_for("rc/older", "{.status.availableReplicas}=2")?;
    let pods =
        || scope.kubectl(&["get", "pods", "-l", "app=older", "-o", "name", "--sort-by=.metadata.name"]);
    let owner =
        scope.jsonpath(&["pods", "-l", "app=older"], "{.items[0].metadata.ownerReferences[0].kind}")?;
    ensure!(owner == "ReplicationController", "{owner}");
    let said = scope.kubectl(&["describe", "rc", "older"])?;
    ensure!(said.contains("2 Running") && said.contains("SuccessfulCreate"), "{said}");
    scope.kubectl(&["expose", "rc", "older", "--port=80"])?;
    scope.kubectl(&["scale", "rc", "older", "--replicas=1"])?;
    scope.wait_for("rc/older", "{.status.replicas}=1")?;
    let before =
        eventually("one Pod is left", || Ok(Some(pods()?).filter(|pods| pods.lines().count() == 1)))?;
    scope.kubectl(&["delete", "rc", "older", "--cascade=orphan"])?;
    scope.apply(&controller)?;
    scope.wait_for("rc/older", "{.status.readyReplicas}=2")?;
    ensure!(pods()?.contains(before.trim()), "what was left is adopted: {before}");
    scope.kubectl(&["delete", "rc", "older"])?;
    scope.kubectl(&["wait", "--for=delete", "pods", "-l", "app=older", "--timeout=60s"])?;
    Ok(())
}
