//! Ephemeral containers, as `kubectl debug` adds them.

use super::{pod, started, status};
use crate::cluster::{eventually, text};
use crate::{Case, Scope};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::io::Write;
use std::process::Stdio;

pub const CASES: &[Case] = &[
    Case { name: "kubectl_debug_targets_a_container", run: targets },
    Case { name: "kubectl_debug_with_input", run: with_input },
    Case { name: "ephemeral_containers_never_restart", run: never_restart },
];

/// What the status says of one ephemeral container.
fn of(scope: &Scope<'_>, pod: &str, name: &str) -> Result<Value> {
    let status = status(scope, pod)?;
    let list = status["ephemeralContainerStatuses"].as_array().cloned().unwrap_or_default();
    Ok(list.into_iter().find(|found| found["name"] == name).unwrap_or_default())
}

fn reached(scope: &Scope<'_>, pod: &str, name: &str, state: &str) -> Result<Value> {
    let what = format!("{name} of {pod} is {state}");
    eventually(&what, || Ok(Some(of(scope, pod, name)?).filter(|shown| shown["state"][state].is_object())))
}

/// The log, once it has a line.
fn logged(scope: &Scope<'_>, pod: &str, container: &str, line: &str) -> Result<String> {
    eventually("a log", || {
        let log = scope.kubectl(&["logs", pod, "-c", container])?;
        Ok(Some(log).filter(|log| log.lines().any(|found| found == line)))
    })
}

fn targets(scope: &Scope<'_>) -> Result<()> {
    started(scope, &pod("debugged", &[("main", "sleep 4322"), ("other", "sleep 4323")]))?;
    let debug = ["debug", "debugged", "--image=busybox", "--target=main", "-c", "look", "--profile=general"];
    scope.kubectl(
        &[&debug[..], &["--", "sh", "-c", "cat /proc/1/root/etc/hostname; ps; echo all; exec sleep 1001"]]
            .concat(),
    )?;
    let shown = reached(scope, "debugged", "look", "running")?;
    ensure!(shown["ready"] == false && shown["restartCount"] == 0, "{shown}");
    let log = logged(scope, "debugged", "look", "all")?;
    ensure!(
        log.contains("debugged\n") && log.contains("sleep 4322") && !log.contains("sleep 4323"),
        "sees its target alone: {log}"
    );
    let inside = scope.kubectl(&["exec", "debugged", "-c", "look", "--", "ps"])?;
    ensure!(inside.contains("sleep 4322") && inside.contains("sleep 1001"), "{inside}");
    let told = scope.kubectl(&["describe", "pod", "debugged"])?;
    ensure!(told.contains("Ephemeral Containers:") && told.contains("look"), "{told}");
    let ready = status(scope, "debugged")?;
    ensure!(ready["phase"] == "Running" && ready["observedGeneration"] == 2, "{ready}");

    // A second one, beside the first and without a target: it sees its own processes.
    scope.kubectl(&[
        "debug",
        "debugged",
        "--image=busybox",
        "-c",
        "apart",
        "--",
        "sh",
        "-c",
        "ps; echo all; exec sleep 1001",
    ])?;
    reached(scope, "debugged", "apart", "running")?;
    let log = logged(scope, "debugged", "apart", "all")?;
    ensure!(!log.contains("sleep 4322"), "{log}");
    let refused = scope.kubectl_fails(&[
        "debug",
        "debugged",
        "--image=busybox",
        "-c",
        "x",
        "--target=none",
        "--",
        "true",
    ])?;
    ensure!(refused.contains("targetContainerName: Not found: \"none\""), "{refused}");
    scope.kubectl(&["delete", "pod", "debugged", "--timeout=60s"])?;
    Ok(())
}

fn with_input(scope: &Scope<'_>) -> Result<()> {
    started(scope, &pod("asked", &[("main", "sleep 1000")]))?;
    let mut command = scope.kubectl_command();
    command.args(["debug", "asked", "-i", "--image=busybox", "--target=main", "-c", "shell", "--", "sh"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(b"echo the answer is $((6 * 7)); exit 0\n")?;
    }
    let said = text(&["debug", "-i"], &child.wait_with_output()?)?;
    ensure!(said.contains("the answer is 42"), "{said}");
    let ended = reached(scope, "asked", "shell", "terminated")?;
    ensure!(ended["state"]["terminated"]["exitCode"] == 0, "{ended}");
    Ok(())
}

fn never_restart(scope: &Scope<'_>) -> Result<()> {
    started(scope, &pod("kept", &[("main", "sleep 1000")]))?;
    scope.kubectl(&["debug", "kept", "--image=busybox", "-c", "fails", "--", "sh", "-c", "exit 7"])?;
    let ended = reached(scope, "kept", "fails", "terminated")?;
    ensure!(ended["state"]["terminated"]["exitCode"] == 7 && ended["restartCount"] == 0, "{ended}");
    scope.kubectl(&["debug", "kept", "--image=127.0.0.1:1/none:1", "-c", "absent", "--", "true"])?;
    eventually("the missing image is told", || {
        let waiting = of(scope, "kept", "absent")?["state"]["waiting"]["reason"].clone();
        Ok((waiting == "ErrImagePull" || waiting == "ImagePullBackOff").then_some(()))
    })?;
    let after = of(scope, "kept", "fails")?;
    ensure!(after["containerID"] == ended["containerID"], "it ran once: {after}");
    ensure!(status(scope, "kept")?["phase"] == "Running");
    Ok(())
}
