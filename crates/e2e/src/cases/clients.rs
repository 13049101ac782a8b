//! Helm and the client libraries of other languages.

use crate::cluster::{text, variable};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

pub const CASES: &[Case] = &[
    Case { name: "helm_installs_upgrades_tests_and_rolls_back", run: helm },
    Case { name: "the_python_client", run: python },
    Case { name: "the_javascript_client", run: javascript },
];

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

fn helm(scope: &Scope<'_>) -> Result<()> {
    let (program, chart) = (variable("HELM")?, clients().join("chart"));
    let home = scope.cluster.scratch().join("helm");
    let helm = |args: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(args)
            .args(["--namespace", &scope.namespace])
            .env("KUBECONFIG", scope.cluster.kubeconfig());
        for kind in ["CACHE", "CONFIG", "DATA"] {
            command.env(format!("HELM_{kind}_HOME"), home.join(kind));
        }
        text(args, &command.output()?)
    };
    let chart = chart.to_string_lossy();
    let wait = ["--wait", "--timeout=90s"];
    let ready = || scope.jsonpath(&["deployment", "web"], "{.status.readyReplicas}");
    helm(&[&["install", "web", &chart], &wait[..]].concat())?;
    ensure!(ready()? == "1", "installed once it is ready");
    let found = scope.get(&["configmap", "web-cluster"])?["data"].clone();
    ensure!(
        found["found"] == "kube-system" && found["minor"] == "36" && found["deployments"] == "true",
        "{found}"
    );
    helm(&["test", "web"])?;
    let said = scope.kubectl(&["logs", "web-test"])?;
    ensure!(said.contains("test of revision 1"), "{said}");
    helm(&[&["upgrade", "web", &chart, "--set=replicas=2"], &wait[..]].concat())?;
    ensure!(ready()? == "2", "upgraded");
    ensure!(scope.kubectl(&["logs", "web-post-upgrade"])?.contains("revision 2"));
    // What somebody else changed since is taken back by force only.
    scope.kubectl(&["scale", "deployment", "web", "--replicas=3"])?;
    let rollback = ["rollback", "web", "1"];
    let refused =
        helm(&[&rollback[..], &wait].concat()).err().context("a rollback over a conflict")?.to_string();
    ensure!(refused.contains("conflict with \"kubectl\" with subresource \"scale\""), "{refused}");
    helm(&[&rollback[..], &["--force-conflicts"], &wait].concat())?;
    scope.wait_for("deployment/web", "{.status.readyReplicas}=1")?;
    let history = helm(&["history", "web"])?;
    ensure!(history.contains("Rollback to 1") && history.contains("superseded"), "{history}");
    ensure!(helm(&["list"])?.contains("web-0.1.0"));
    ensure!(helm(&["get", "manifest", "web"])?.contains("kind: Deployment"));
    ensure!(helm(&["status", "web"])?.contains("STATUS: deployed"));
    helm(&["uninstall", "web", "--wait"])?;
    let left = scope.kubectl(&["get", "deployment,service,configmap,secret", "-o", "name"])?;
    ensure!(left.trim() == "configmap/kube-root-ca.crt", "{left}");
    Ok(())
}

/// Runs a script of a client library in the namespace of the case.
fn script(scope: &Scope<'_>, mut command: Command) -> Result<()> {
    let what = format!("{command:?}");
    command.arg(&scope.namespace).env("KUBECONFIG", scope.cluster.kubeconfig());
    let said = text(&[&what], &command.output()?)?;
    ensure!(said.ends_with("done\n"), "{said}");
    Ok(())
}

fn python(scope: &Scope<'_>) -> Result<()> {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", variable("PYTHON_CLIENT")?).arg(clients().join("client.py"));
    script(scope, command)
}

fn javascript(scope: &Scope<'_>) -> Result<()> {
    // Modules are looked for beside the one that names them.
    let home = variable("NODE_CLIENT")?;
    std::fs::copy(clients().join("client.mjs"), home.join("client.mjs"))?;
    let mut command = Command::new("node");
    command.arg(home.join("client.mjs"));
    script(scope, command)
}
