//! Where images come from: registries, mirrors, credentials, indexes, and what is told when they do not.

use super::{pod, started};
use crate::cluster::{Registry, eventually};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::json;

pub const CASES: &[Case] = &[
    Case { name: "image_pull_errors", run: image_pull_errors },
    Case { name: "images_from_a_registry", run: images_from_a_registry },
    Case { name: "a_private_image_needs_its_secret", run: private_image },
];

fn image_pull_errors(scope: &Scope<'_>) -> Result<()> {
    let mut missing = pod("missing", &[("main", "true")]);
    let registry = scope.cluster.registry.as_ref().context("the registry")?;
    missing["spec"]["containers"][0]["image"] = format!("{}/none/such:1", registry.host()).into();
    scope.apply(&missing)?;
    scope.watch_until(&["pod", "missing"], |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImagePull"
    })?;
    scope.watch_until(&["pod", "missing"], |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ImagePullBackOff"
    })?;
    eventually("the Failed event", || {
        let text = scope.kubectl(&["get", "events", "--field-selector=reason=Failed"])?;
        Ok((text.contains("Failed to pull image") && text.contains("ErrImagePull")).then_some(()))
    })?;
    let mut never = pod("never", &[("main", "true")]);
    never["spec"]["containers"][0]["image"] = "registry.example/absent:1".into();
    never["spec"]["containers"][0]["imagePullPolicy"] = "Never".into();
    scope.apply(&never)?;
    scope.wait_for("pod/never", "{.status.containerStatuses[0].state.waiting.reason}=ErrImageNeverPull")?;
    let mut invalid = pod("invalid", &[("main", "true")]);
    invalid["spec"]["containers"][0]["image"] = "some//name".into();
    scope.apply(&invalid)?;
    scope.wait_for("pod/invalid", "{.status.containerStatuses[0].state.waiting.reason}=InvalidImageName")
}

fn images_from_a_registry(scope: &Scope<'_>) -> Result<()> {
    let registry = scope.cluster.registry.as_ref().context("the registry")?;
    registry.push(&scope.cluster.archive("busybox"), "team/box:v1", None)?;
    let run = |name: &str, image: &str| -> Result<()> {
        let mut pod = pod(name, &[("main", "sleep 1000")]);
        pod["spec"]["containers"][0]["image"] = image.into();
        pod["spec"]["containers"][0]["imagePullPolicy"] = "Always".into();
        started(scope, &pod)
    };
    run("first", &format!("{}/team/box:v1", registry.host()))?;
    let fetched = registry.blob_fetches()?;
    run("second", &format!("{}/team/box:v1", registry.host()))?;
    ensure!(registry.blob_fetches()? == fetched, "the second pull fetched blobs");
    run("third", "mirrored.example/team/box:v1")?;
    let id = scope.jsonpath(&["pod", "first"], "{.status.containerStatuses[0].imageID}")?;
    ensure!(id.contains("@sha256:"), "{id}");
    let list = scope.cluster.skeg(&["image", "list"])?;
    ensure!(list.contains("team/box") && list.contains("docker.io/library/nginx"), "{list}");
    Ok(())
}

fn private_image(scope: &Scope<'_>) -> Result<()> {
    /// `tester:secret`, by bcrypt.
    const HTPASSWD: &str = "tester:$2b$04$b6KxObqr4BkkR9PC8k0E5unDWdP4tHYZ97TZYqAxhwb6CTuNXuOqu\n";
    let directory = scope.cluster.scratch().join("private");
    std::fs::create_dir_all(&directory)?;
    let passwords = directory.join("htpasswd");
    std::fs::write(&passwords, HTPASSWD)?;
    let auth = format!("auth: {{htpasswd: {{realm: private, path: {}}}}}", passwords.display());
    let registry = Registry::start(&directory, &auth)?;
    registry.push(&scope.cluster.archive("busybox"), "mine/box:1", Some("tester:secret"))?;
    let mut private = pod("private", &[("main", "sleep 1000")]);
    private["spec"]["containers"][0]["image"] = format!("{}/mine/box:1", registry.host()).into();
    private["spec"]["containers"][0]["imagePullPolicy"] = "Always".into();
    private["spec"]["imagePullSecrets"] = json!([{"name": "pull"}]);
    scope.apply(&private)?;
    scope.watch_until(&["pod", "private"], |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["reason"] == "ErrImagePull"
            && waiting["message"].as_str().is_some_and(|text| text.contains("pull access denied"))
    })?;
    scope.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "pull",
        &format!("--docker-server={}", registry.host()),
        "--docker-username=tester",
        "--docker-password=secret",
    ])?;
    scope.wait_ready("private")
}
