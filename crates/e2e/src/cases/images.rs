//! Where images come from: registries, mirrors, credentials, indexes, and what is told when they do not.

use super::{import, pod, started};
use crate::registry::{Registry, Tokens};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::json;

pub const CASES: &[Case] = &[
    Case { name: "image_pull_errors", run: image_pull_errors },
    Case { name: "images_that_cannot_run", run: images_that_cannot_run },
    Case { name: "images_from_a_registry", run: images_from_a_registry },
    Case { name: "an_index_is_read_by_platform", run: index },
    Case { name: "a_private_image_needs_its_secret", run: private_image },
    Case { name: "a_token_is_fetched_with_the_secret", run: token },
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
    scope.event("missing", "Failed", "Failed to pull image")?;
    scope.event("missing", "Failed", "Error: ErrImagePull")?;
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

fn images_that_cannot_run(scope: &Scope<'_>) -> Result<()> {
    import(scope, "stranger")?;
    let mut pods = pod("stranger", &[("user", "true"), ("command", "")]);
    for container in pods["spec"]["containers"].as_array_mut().context("containers")? {
        container["image"] = "stranger".into();
    }
    if let Some(container) = pods["spec"]["containers"][1].as_object_mut() {
        container.remove("command");
    }
    scope.apply(&pods)?;
    scope.watch_until(&["pod", "stranger"], |pod| {
        let waits = |n: usize, part: &str| {
            let waiting = &pod["status"]["containerStatuses"][n]["state"]["waiting"];
            waiting["reason"] == "CreateContainerError"
                && waiting["message"].as_str().is_some_and(|message| message.contains(part))
        };
        waits(0, "stranger") && waits(1, "no command specified")
    })?;
    scope.kubectl(&["delete", "pod", "stranger"]).map(drop)
}

fn images_from_a_registry(scope: &Scope<'_>) -> Result<()> {
    let registry = scope.cluster.registry.as_ref().context("the registry")?;
    registry.push(&scope.cluster.archive("remote"), "team/box:v1", None)?;
    let run = |name: &str, image: &str| -> Result<()> {
        let mut pod = pod(name, &[("main", "sleep 1000")]);
        pod["spec"]["containers"][0]["image"] = image.into();
        pod["spec"]["containers"][0]["imagePullPolicy"] = "Always".into();
        started(scope, &pod)
    };
    run("first", &format!("{}/team/box:v1", registry.host()))?;
    let fetched = registry.blob_fetches("team/box")?;
    ensure!(fetched > 0, "the first pull fetched no blob");
    run("second", &format!("{}/team/box:v1", registry.host()))?;
    ensure!(registry.blob_fetches("team/box")? == fetched, "the second pull fetched blobs");
    run("third", "mirrored.example/team/box:v1")?;
    let id = scope.jsonpath(&["pod", "first"], "{.status.containerStatuses[0].imageID}")?;
    ensure!(id.contains("@sha256:"), "{id}");
    let mut by_digest = pod("by-digest", &[("main", "sleep 1000")]);
    by_digest["spec"]["containers"][0]["image"] = id.into();
    by_digest["spec"]["containers"][0]["imagePullPolicy"] = "Never".into();
    started(scope, &by_digest)?;
    let list = scope.cluster.skeg(&["image", "list"])?;
    ensure!(list.contains("team/box") && list.contains("docker.io/library/nginx"), "{list}");
    Ok(())
}

/// Of an index with two images the one for this machine runs; an index without one is told.
fn index(scope: &Scope<'_>) -> Result<()> {
    let registry = scope.cluster.registry.as_ref().context("the registry")?;
    let ours = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    // Only one of the two has wget in that place.
    registry.push(&scope.cluster.archive("client"), "multi/box:foreign", None)?;
    registry.push(&scope.cluster.archive("busybox"), "multi/box:ours", None)?;
    registry.push_index("multi/box:both", &[("foreign", "s390x"), ("ours", ours)])?;
    registry.push_index("multi/box:none", &[("foreign", "s390x")])?;
    let run = |name: &str| {
        let mut pod = pod(name, &[("main", "ls /usr/bin/wget 2>/dev/null || echo ours; sleep 1000")]);
        pod["spec"]["containers"][0]["image"] = format!("{}/multi/box:{name}", registry.host()).into();
        pod
    };
    started(scope, &run("both"))?;
    let log = scope.kubectl(&["logs", "both"])?;
    ensure!(log == "ours\n", "{log}");
    scope.apply(&run("none"))?;
    scope.event("none", "Failed", "no match for platform in manifest")
}

fn private_image(scope: &Scope<'_>) -> Result<()> {
    /// `tester:secret`, by bcrypt.
    const HTPASSWD: &str = "tester:$2b$04$b6KxObqr4BkkR9PC8k0E5unDWdP4tHYZ97TZYqAxhwb6CTuNXuOqu\n";
    let directory = scope.cluster.scratch().join("private");
    std::fs::create_dir_all(&directory)?;
    let passwords = directory.join("htpasswd");
    std::fs::write(&passwords, HTPASSWD)?;
    let auth = format!("auth: {{htpasswd: {{realm: private, path: {}}}}}", passwords.display());
    needs_its_secret(scope, &Registry::start(&directory, &auth)?)
}

/// As above, where the registry sends its clients elsewhere for a token.
fn token(scope: &Scope<'_>) -> Result<()> {
    let directory = scope.cluster.scratch().join("token");
    std::fs::create_dir_all(&directory)?;
    let tokens = Tokens::start(&directory, "tester:secret")?;
    needs_its_secret(scope, &Registry::start(&directory, &tokens.auth())?)?;
    // One for the push, one for the pull of manifest and blobs.
    ensure!(tokens.issued() == 2, "{} tokens were issued", tokens.issued());
    Ok(())
}

/// An image of a registry whose user is `tester:secret` is pulled once the Pod's Secret is there.
fn needs_its_secret(scope: &Scope<'_>, registry: &Registry) -> Result<()> {
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
    scope.event(
        "private",
        "FailedToRetrieveImagePullSecret",
        "Unable to retrieve some image pull secrets (pull); attempting to pull the image may not succeed.",
    )?;
    scope.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "pull",
        &format!("--docker-server={}", registry.host()),
        "--docker-username=tester",
        "--docker-password=secret",
    ])?;
    scope.wait_ready("private")?;
    // The image is here now, which opens it to no Pod without credentials of its own.
    for (name, policy, reason, part) in [
        ("asks", "IfNotPresent", "ErrImagePull", "pull access denied"),
        ("takes", "Never", "ErrImageNeverPull", "does not have the proper credentials"),
    ] {
        let mut other = private.clone();
        other["metadata"]["name"] = name.into();
        other["spec"]["containers"][0]["imagePullPolicy"] = policy.into();
        other["spec"]["imagePullSecrets"] = json!([]);
        scope.apply(&other)?;
        scope.watch_until(&["pod", name], |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == reason && waiting["message"].as_str().is_some_and(|text| text.contains(part))
        })?;
        scope.kubectl(&["delete", "pod", name])?;
    }
    let mut again = private;
    again["metadata"]["name"] = "again".into();
    again["spec"]["containers"][0]["imagePullPolicy"] = "Never".into();
    started(scope, &again)
}
