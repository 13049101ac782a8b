//! Server-side apply as kubectl does it.

use super::deployment;
use crate::{Case, Scope};
use anyhow::{Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "server_side_apply_and_its_conflicts", run: conflicts },
    Case { name: "client_side_apply_is_migrated", run: migration },
    Case { name: "scaling_conflicts_with_apply", run: scaling },
];

fn server_side(scope: &Scope<'_>, object: &Value, args: &[&str]) -> Result<String> {
    let all = [&["apply", "--server-side", "-f", "-"], args].concat();
    scope.kubectl_stdin(&all, &serde_json::to_vec(object)?)
}

/// What kubectl says of an apply that fails.
#[track_caller]
fn refused(scope: &Scope<'_>, object: &Value, args: &[&str]) -> Result<String> {
    match server_side(scope, object, args) {
        Ok(said) => anyhow::bail!("this should have failed: {said}"),
        Err(error) => Ok(error.to_string()),
    }
}

/// Manager and operation of each entry.
fn managers(scope: &Scope<'_>, object: &[&str]) -> Result<Vec<String>> {
    let template = "{range .metadata.managedFields[*]}{.manager} {.operation} {.subresource}{\"\\n\"}{end}";
    let said = scope.kubectl(
        &[&["get", "--show-managed-fields", "-o", &format!("jsonpath={template}")], object].concat(),
    )?;
    Ok(said.lines().map(|line| line.trim_end().to_owned()).collect())
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map"}, "data": data})
}

fn conflicts(scope: &Scope<'_>) -> Result<()> {
    let said = server_side(scope, &map(json!({"color": "red", "size": "1"})), &[])?;
    ensure!(said.contains("configmap/map serverside-applied"), "{said}");
    let version = scope.jsonpath(&["configmap", "map"], "{.metadata.resourceVersion}")?;
    server_side(scope, &map(json!({"color": "red", "size": "1"})), &[])?;
    let same = scope.jsonpath(&["configmap", "map"], "{.metadata.resourceVersion}")?;
    ensure!(same == version, "an apply that changes nothing wrote {same} after {version}");
    let other = ["--field-manager=other"];
    let said = refused(scope, &map(json!({"color": "blue"})), &other)?;
    ensure!(said.contains("Apply failed with 1 conflict: conflict with \"kubectl\": .data.color"), "{said}");
    let dry = server_side(
        scope,
        &map(json!({"color": "blue"})),
        &["--field-manager=other", "--force-conflicts", "--dry-run=server"],
    )?;
    ensure!(dry.contains("serverside-applied (server dry run)"), "{dry}");
    server_side(scope, &map(json!({"color": "blue"})), &["--field-manager=other", "--force-conflicts"])?;
    let data = scope.jsonpath(&["configmap", "map"], "{.data}")?;
    ensure!(data == "{\"color\":\"blue\",\"size\":\"1\"}", "{data}");
    // The first one lost the color; what it names no more goes.
    server_side(scope, &map(json!({"shape": "round"})), &[])?;
    let data = scope.jsonpath(&["configmap", "map"], "{.data}")?;
    ensure!(data == "{\"color\":\"blue\",\"shape\":\"round\"}", "{data}");
    let owners = managers(scope, &["configmap", "map"])?;
    ensure!(
        owners == ["other Apply", "kubectl Apply"] || owners == ["kubectl Apply", "other Apply"],
        "{owners:?}"
    );
    let said = refused(scope, &map(json!({"shape": 5})), &["--validate=false"])?;
    ensure!(
        said.contains("failed to create typed patch object") && said.contains(".data.shape: expected string"),
        "{said}"
    );
    Ok(())
}

fn migration(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&map(json!({"color": "red", "size": "1"})))?;
    let view = scope.kubectl(&["apply", "view-last-applied", "configmap/map", "-o", "json"])?;
    ensure!(view.contains("\"size\": \"1\""), "{view}");
    ensure!(managers(scope, &["configmap", "map"])? == ["kubectl-client-side-apply Update"]);
    // What kubectl applied from the client it owns from the server: no conflict, and no leftovers.
    let said = server_side(scope, &map(json!({"color": "blue"})), &[])?;
    ensure!(said.contains("configmap/map serverside-applied"), "{said}");
    // The second one owns the annotation: kubectl applies it by a name of its own.
    let owners = managers(scope, &["configmap", "map"])?;
    ensure!(owners == ["kubectl Apply", "kubectl-last-applied Apply"], "{owners:?}");
    let data = scope.jsonpath(&["configmap", "map"], "{.data}")?;
    ensure!(data == "{\"color\":\"blue\"}", "{data}");
    let view = scope.kubectl(&["apply", "view-last-applied", "configmap/map", "-o", "json"])?;
    ensure!(view.contains("\"color\": \"blue\"") && !view.contains("size"), "{view}");
    // And back again.
    scope.apply(&map(json!({"color": "green"})))?;
    let color = scope.jsonpath(&["configmap", "map"], "{.data.color}")?;
    ensure!(color == "green", "{color}");
    Ok(())
}

fn scaling(scope: &Scope<'_>) -> Result<()> {
    let mut web = deployment("web", 1);
    server_side(scope, &web, &[])?;
    scope.rolled_out("web")?;
    scope.kubectl(&["scale", "deployment/web", "--replicas=2"])?;
    let owners = managers(scope, &["deployment", "web"])?;
    ensure!(owners.iter().any(|owner| owner == "kubectl Update scale"), "{owners:?}");
    let said = refused(scope, &web, &[])?;
    ensure!(
        said.contains("conflict with \"kubectl\" with subresource \"scale\" using apps/v1: .spec.replicas"),
        "{said}"
    );
    if let Some(spec) = web["spec"].as_object_mut() {
        spec.remove("replicas");
    }
    server_side(scope, &web, &[])?;
    let replicas = scope.jsonpath(&["deployment", "web"], "{.spec.replicas}")?;
    ensure!(replicas == "2", "who scales keeps the replicas: {replicas}");
    web["spec"]["replicas"] = 1.into();
    server_side(scope, &web, &["--force-conflicts"])?;
    let replicas = scope.jsonpath(&["deployment", "web"], "{.spec.replicas}")?;
    ensure!(replicas == "1", "{replicas}");
    Ok(())
}
