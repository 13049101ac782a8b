//! The command line: errors with a remedy, status, several instances side by side.

use crate::cluster::Cluster;
use crate::{Case, Scope};
use anyhow::{Result, ensure};
use std::process::Command;

pub const CASES: &[Case] = &[
    Case { name: "wrong_use_is_told_with_a_remedy", run: wrong_use },
    Case { name: "instances_run_side_by_side", run: side_by_side },
    Case { name: "down_leaves_pods_and_up_finds_them", run: down_and_up },
];

fn wrong_use(scope: &Scope<'_>) -> Result<()> {
    let fails = |args: &[&str], part: &str| -> Result<()> {
        let output = Command::new(&scope.cluster.skeg).args(args).output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(2), "{args:?} exited with {:?}: {text}", output.status.code());
        ensure!(text.contains(part), "{args:?} said {text:?}, not {part:?}");
        Ok(())
    };
    let empty = scope.cluster.scratch().join("other");
    let other = empty.to_string_lossy();
    let listen =
        scope.cluster.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
    let listen = listen.trim_start_matches("https://");
    fails(&["up", "--no-such-flag"], "--no-such-flag")?;
    fails(&["up", "--detach", "--data-dir", &other, "--listen", listen], "in use")?;
    fails(
        &[
            "up",
            "--detach",
            "--data-dir",
            &other,
            "--pod-cidr",
            "10.9.0.0/16",
            "--service-cidr",
            "10.9.3.0/24",
        ],
        "overlap",
    )?;
    fails(&["up", "--detach", "--data-dir", &other, "--pod-cidr", "nonsense"], "pod-cidr")?;
    fails(&["status", "--data-dir", &other], "skeg up")?;
    let version = Command::new(&scope.cluster.skeg).arg("version").output()?;
    ensure!(String::from_utf8_lossy(&version.stdout).contains("v1.36"));
    Ok(())
}

fn side_by_side(scope: &Scope<'_>) -> Result<()> {
    let second = Cluster::start()?;
    let here = scope.cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.uid}"])?;
    let there = second.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.uid}"])?;
    ensure!(here != there, "two clusters");
    for cluster in [scope.cluster, &second] {
        cluster.kubectl(&["run", "box", "--image=nginx"])?;
        cluster.kubectl(&["wait", "--for=condition=Ready", "pod/box", "--timeout=60s"])?;
    }
    second.stop()?;
    let alive = scope.cluster.kubectl(&["get", "pod", "box", "-o", "jsonpath={.status.phase}"])?;
    ensure!(alive == "Running", "the first cluster is untouched: {alive}");
    Ok(())
}

fn down_and_up(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["run", "box", "--image=nginx"])?;
    scope.wait_ready("box")?;
    let id = scope.jsonpath(&["pod", "box"], "{.status.containerStatuses[0].containerID}")?;
    let status = scope.cluster.skeg(&["status"])?;
    ensure!(status.contains("running"), "{status}");
    scope.cluster.skeg(&["down"])?;
    scope.cluster.up()?;
    let again = scope.jsonpath(&["pod", "box"], "{.status.containerStatuses[0].containerID}")?;
    ensure!(id == again, "{id} became {again}");
    let kubeconfig = scope.cluster.skeg(&["kubeconfig"])?;
    ensure!(kubeconfig.contains("certificate-authority-data"), "{kubeconfig}");
    Ok(())
}
