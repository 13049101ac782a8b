//! The server dies; containers do not notice.

use super::{deployment, pod};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "containers_outlive_the_server", run: containers_outlive },
    Case { name: "kills_during_a_rollout", run: kills_during_a_rollout },
];

fn kill_server(scope: &Scope<'_>) -> Result<()> {
    let pid = scope.cluster.server_pid()?;
    // SAFETY: a plain kill(2) of the server that this test started.
    ensure!(unsafe { libc::kill(pid, libc::SIGKILL) } == 0, "kill {pid}");
    crate::cluster::eventually("the server is gone", || {
        Ok((!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(()))
    })
}

fn statuses(scope: &Scope<'_>) -> Result<Vec<(String, Value, Value)>> {
    let pods = scope.get(&["pods"])?;
    let mut found: Vec<(String, Value, Value)> = pods["items"]
        .as_array()
        .context("items")?
        .iter()
        .map(|pod| {
            let container = &pod["status"]["containerStatuses"][0];
            let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            (name, container["containerID"].clone(), container["state"]["running"]["startedAt"].clone())
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Running containers keep their id and start; one that ended meanwhile has its real exit code;
/// logs and exec work.
fn containers_outlive(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&deployment("web", 2))?;
    let mut ends =
        pod("ends", &[("main", "while [ ! -f /x/go ]; do sleep 0.05; done; echo leaving; exit 9")]);
    let flag = scope.cluster.scratch().join("go");
    std::fs::create_dir_all(&flag)?;
    ends["spec"]["restartPolicy"] = "Never".into();
    ends["spec"]["volumes"] = json!([{"name": "x", "hostPath": {"path": flag}}]);
    ends["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "x", "mountPath": "/x"}]);
    scope.apply(&ends)?;
    scope.rolled_out("web")?;
    scope.wait_ready("ends")?;
    let before: Vec<_> = statuses(scope)?.into_iter().filter(|(name, ..)| name.starts_with("web")).collect();
    kill_server(scope)?;
    std::fs::write(flag.join("go"), "")?;
    scope.cluster.up()?;
    scope.wait_for("pod/ends", "{.status.phase}=Failed")?;
    let ended =
        scope.jsonpath(&["pod", "ends"], "{.status.containerStatuses[0].state.terminated.exitCode}")?;
    ensure!(ended == "9", "the real exit code: {ended}");
    ensure!(scope.kubectl(&["logs", "ends"])? == "leaving\n");
    let after: Vec<_> = statuses(scope)?.into_iter().filter(|(name, ..)| name.starts_with("web")).collect();
    ensure!(before == after, "{before:?} became {after:?}");
    let name = &after[0].0;
    ensure!(scope.exec(name, &["echo", "still here"])?.trim() == "still here");
    Ok(())
}

fn kills_during_a_rollout(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&deployment("web", 3))?;
    scope.rolled_out("web")?;
    for round in 0..8 {
        scope.kubectl(&["set", "env", "deployment/web", &format!("ROUND={round}")])?;
        kill_server(scope)?;
        scope.cluster.up()?;
    }
    scope.rolled_out("web")?;
    crate::cluster::eventually("three Pods are left", || {
        let pods = scope.get(&["pods"])?["items"].as_array().map_or(0, Vec::len);
        Ok((pods == 3).then_some(()))
    })?;
    let round = scope.jsonpath(&["pods", "-l", "app=web"], "{.items[*].spec.containers[0].env[0].value}")?;
    ensure!(round == "7 7 7", "{round}");
    Ok(())
}
