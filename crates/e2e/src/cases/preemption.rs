//! Who has to go for whom: preemption over a resource that nobody else asks for, and eviction that
//! is called off in time.

use super::{pod, started};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "replica_sets_make_room_by_priority", run: replica_sets },
    Case { name: "a_critical_pod_makes_room", run: critical },
    Case { name: "a_preempted_pod_says_why_it_goes", run: disrupted },
];

/// Those that do it to the node, and so to everyone on it.
pub const NODE_CASES: &[Case] = &[Case { name: "an_eviction_is_called_off", run: called_off }];

const NODE: &str = "e2e-node";

/// Runs with a hundred of a resource on the node, and with priority classes whose names start with
/// the namespace's: lower than anybody else's.
fn with_resource(
    scope: &Scope<'_>,
    priorities: &[&str],
    run: impl FnOnce(&str, &dyn Fn(&str) -> String) -> Result<()>,
) -> Result<()> {
    let resource = format!("example.com/{}", scope.namespace);
    let class = |priority: &str| format!("{}-{priority}", scope.namespace);
    let fields = ["capacity", "allocatable"];
    set_resource(scope, &fields, &resource, "100".into())?;
    let result = (|| {
        for (at, priority) in priorities.iter().enumerate() {
            scope.apply(&json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
                "metadata": {"name": class(priority)}, "value": -100 + i64::try_from(at)?}))?;
        }
        run(&resource, &class)
    })();
    for priority in priorities {
        scope.kubectl(&["delete", "priorityclass", &class(priority), "--ignore-not-found"])?;
    }
    set_resource(scope, &fields, &resource, Value::Null)?;
    result
}

/// Says what the node has of a resource, in fields of its status.
fn set_resource(scope: &Scope<'_>, fields: &[&str], resource: &str, amount: Value) -> Result<()> {
    let mut status = json!({});
    fields.iter().for_each(|field| status[*field] = json!({resource: amount}));
    let patch = json!({"status": status}).to_string();
    scope.kubectl(&["patch", "node", NODE, "--subresource=status", "--type=merge", "-p", &patch]).map(drop)
}

fn asking(name: &str, class: &str, resource: &str, amount: u32) -> Value {
    let mut pod = pod(name, &[("main", "exec sleep 1000")]);
    pod["spec"]["priorityClassName"] = class.into();
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {resource: amount.to_string()}});
    pod
}

fn replica_sets(scope: &Scope<'_>) -> Result<()> {
    const SETS: [(&str, u32); 4] = [("lowest", 20), ("low", 30), ("high", 45), ("highest", 40)];
    with_resource(scope, &SETS.map(|(name, _)| name), |resource, class| {
        let pod_of = |set: &str| -> Result<Value> {
            let list = scope.get(&["pods", "-l", &format!("app={set}")])?;
            let items = list["items"].as_array().context("Pods")?;
            let live: Vec<&Value> =
                items.iter().filter(|pod| pod["metadata"].get("deletionTimestamp").is_none()).collect();
            ensure!(live.len() == 1, "{set} has {list}");
            Ok(live[0].clone())
        };
        let mut before = Vec::new();
        for (set, amount) in SETS {
            let pod = asking(set, &class(set), resource, amount);
            scope.apply(&json!({
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": set},
                "spec": {"replicas": 1, "selector": {"matchLabels": {"app": set}},
                    "template": {"metadata": pod["metadata"], "spec": pod["spec"]}},
            }))?;
            if set != "highest" {
                scope.wait_for(&format!("rs/{set}"), "{.status.readyReplicas}=1")?;
                before.push(pod_of(set)?);
            }
        }
        scope.wait_for("rs/highest", "{.status.readyReplicas}=1")?;
        // Both have to go, and their sets have Pods again that wait for room; the third stays.
        for (set, old) in ["lowest", "low"].into_iter().zip(&before) {
            let gone = old["metadata"]["name"].as_str().context("a name")?;
            scope.event(gone, "Preempted", "Preempted by pod")?;
            let waits = scope.watch_until(&["pods", "-l", &format!("app={set}")], |pod| {
                let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
                pod["metadata"]["name"] != gone
                    && conditions.any(|c| c["type"] == "PodScheduled" && c["reason"] == "Unschedulable")
            })?;
            ensure!(waits["status"]["phase"] == "Pending", "{waits}");
            scope.wait_for(&format!("rs/{set}"), "{.status.replicas}=1")?;
        }
        ensure!(pod_of("high")?["metadata"]["uid"] == before[2]["metadata"]["uid"]);
        scope.wait_for("rs/high", "{.status.readyReplicas}=1")?;
        Ok(())
    })
}

fn critical(scope: &Scope<'_>) -> Result<()> {
    with_resource(scope, &["lower", "higher"], |resource, class| {
        for (name, amount) in [("lower", 60), ("higher", 40)] {
            started(scope, &asking(name, &class(name), resource, amount))?;
        }
        let name = "e2e-critical";
        let mut critical = asking(name, "system-node-critical", resource, 50);
        critical["metadata"]["namespace"] = "kube-system".into();
        let in_system = |args: &[&str]| scope.cluster.kubectl(&[&["-n", "kube-system"], args].concat());
        let made = scope.cluster.scratch().join("critical.json");
        std::fs::write(&made, critical.to_string())?;
        in_system(&["create", "-f", &made.to_string_lossy()])?;
        let result = (|| {
            let ready = format!("pod/{name}");
            in_system(&["wait", "--for=condition=Ready", &ready, "--timeout=60s"])?;
            scope.kubectl(&["wait", "--for=delete", "pod/lower", "--timeout=60s"])?;
            let stays = scope.get(&["pod", "higher"])?;
            ensure!(stays["metadata"].get("deletionTimestamp").is_none(), "{stays}");
            Ok(())
        })();
        in_system(&["delete", "pod", name, "--timeout=60s"])?;
        result
    })
}

/// Its finalizer holds it, so that it can be looked at. Meanwhile the node gives what it has.
fn disrupted(scope: &Scope<'_>) -> Result<()> {
    const CAPACITY: [&str; 1] = ["capacity"];
    set_resource(scope, &CAPACITY, "example.com/later", "7".into())?;
    with_resource(scope, &["victim", "winner"], |resource, class| {
        let mut victim = asking("victim", &class("victim"), resource, 100);
        victim["metadata"]["finalizers"] = json!(["example.com/held"]);
        started(scope, &victim)?;
        scope.apply(&asking("winner", &class("winner"), resource, 100))?;
        let held = scope.watch_until(&["pod", "victim"], |pod| {
            pod["metadata"].get("deletionTimestamp").is_some() && pod["status"]["phase"] == "Failed"
        })?;
        let conditions = held["status"]["conditions"].as_array().context("conditions")?;
        let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget");
        ensure!(
            target.is_some_and(|c| c["status"] == "True" && c["reason"] == "PreemptionByScheduler"),
            "{held}"
        );
        scope.wait_ready("winner")?;
        let released = r#"{"metadata":{"finalizers":null}}"#;
        scope.kubectl(&["patch", "pod", "victim", "--type=merge", "-p", released])?;
        scope.kubectl(&["wait", "--for=delete", "pod/victim", "--timeout=60s"]).map(drop)
    })?;
    scope.watch_until(&["node", NODE], |node| node["status"]["allocatable"]["example.com/later"] == "7")?;
    set_resource(scope, &CAPACITY, "example.com/later", Value::Null)
}

/// Of two taints one goes again before the time of who bears it for a while is over. Who bears the
/// other shows that this time has come, who bears none that the taints were seen.
fn called_off(scope: &Scope<'_>) -> Result<()> {
    let bears = |key: &str, seconds: Value| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
    for (name, tolerations) in [
        ("stays", json!([bears("short", 5.into()), bears("long", Value::Null)])),
        ("goes", json!([bears("short", Value::Null), bears("long", 6.into())])),
        ("unwilling", json!([])),
    ] {
        let mut pod = pod(name, &[("main", "exec sleep 1000")]);
        pod["spec"]["tolerations"] = tolerations;
        started(scope, &pod)?;
    }
    let before = scope.get(&["pod", "stays"])?;
    scope.kubectl(&["taint", "node", NODE, "short=:NoExecute", "long=:NoExecute"])?;
    scope.event("unwilling", "TaintManagerEviction", "Marking for deletion Pod")?;
    scope.kubectl(&["taint", "node", NODE, "short-"])?;
    scope.event("stays", "TaintManagerEviction", "Cancelling deletion of Pod")?;
    scope.kubectl(&["wait", "--for=delete", "pod/goes", "--timeout=60s"])?;
    let after = scope.get(&["pod", "stays"])?;
    ensure!(after["metadata"].get("deletionTimestamp").is_none(), "{after}");
    ensure!(after["metadata"]["uid"] == before["metadata"]["uid"], "{after}");
    ensure!(after["status"]["containerStatuses"][0]["restartCount"] == 0, "{after}");
    Ok(())
}
