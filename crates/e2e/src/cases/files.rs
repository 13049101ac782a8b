//! What containers find in volumes: each source of files with its modes and names, for root and for
//! somebody else; directories on disk and in memory.

use super::{allocatable, pod};
use crate::cluster::eventually;
use crate::{Case, Scope};
use anyhow::{Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "files_of_each_source", run: files_of_each_source },
    Case { name: "optional_sources_come_and_go", run: optional_sources },
    Case { name: "resources_are_shown_in_files", run: resources_in_files },
    Case { name: "empty_directories_for_each_user", run: empty_directories },
];

const FROM_API: [&str; 4] = ["map", "secret", "projected-map", "projected-secret"];
const FROM_POD: [&str; 2] = ["downward", "projected-downward"];

/// A volume of a source with what goes beside its name: `items`, `optional`, and the mode of its files.
fn volume(name: &str, source: &str, object: &str, more: &Value, mode: Option<u32>) -> Value {
    let mut volume = json!({"name": name});
    let with = |mut base: Value| {
        for (key, value) in more.as_object().into_iter().flatten() {
            base[key] = value.clone();
        }
        base
    };
    let (field, mut content) = match source {
        "map" => ("configMap", with(json!({"name": object}))),
        "secret" => ("secret", with(json!({"secretName": object}))),
        "downward" => ("downwardAPI", with(json!({}))),
        projected => {
            let (kind, base) = match projected {
                "projected-map" => ("configMap", json!({"name": object})),
                "projected-secret" => ("secret", json!({"name": object})),
                _ => ("downwardAPI", json!({})),
            };
            ("projected", json!({"sources": [{kind: with(base)}]}))
        }
    };
    if let Some(mode) = mode {
        content["defaultMode"] = mode.into();
    }
    volume[field] = content;
    volume
}

fn make_sources(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["create", "configmap", "source", "--from-literal=data=from the map"])?;
    // What is no text is carried too.
    scope.kubectl(&["patch", "configmap", "source", "-p", "{\"binaryData\":{\"binary\":\"/wD+\"}}"])?;
    scope.kubectl(&["create", "secret", "generic", "source", "--from-literal=data=from the secret"]).map(drop)
}

fn files_of_each_source(scope: &Scope<'_>) -> Result<()> {
    make_sources(scope)?;
    for (name, security, [plain, moded, mapped]) in [
        ("root", json!({}), ["644 0", "440 0", "400 0"]),
        // The group may read whatever the mode says.
        ("other", json!({"runAsUser": 1000, "fsGroup": 1001}), ["644 1001", "440 1001", "440 1001"]),
    ] {
        let (mut volumes, mut mounts, mut wanted) = (Vec::new(), Vec::new(), String::new());
        for source in FROM_API.into_iter().chain(FROM_POD) {
            let text = match source {
                "map" | "projected-map" => "from the map",
                "secret" | "projected-secret" => "from the secret",
                _ => name,
            };
            let item = |path: &str, mode: Option<u32>| {
                let mut item = match FROM_POD.contains(&source) {
                    true => json!({"path": path, "fieldRef": {"fieldPath": "metadata.name"}}),
                    false => json!({"key": "data", "path": path}),
                };
                if let Some(mode) = mode {
                    item["mode"] = mode.into();
                }
                json!({"items": [item]})
            };
            let all = if FROM_POD.contains(&source) { item("data", None) } else { json!({}) };
            for (variant, more, mode, path, shown) in [
                ("plain", all.clone(), None, "data", plain),
                ("moded", all, Some(0o440), "data", moded),
                ("mapped", item("deep/er/data", Some(0o400)), None, "deep/er/data", mapped),
            ] {
                let volume_name = format!("{source}-{variant}");
                volumes.push(volume(&volume_name, source, "source", &more, mode));
                mounts.push(json!({"name": volume_name, "mountPath": format!("/f/{volume_name}")}));
                // The same file alone, also over one that the image has.
                let over =
                    if volume_name == "map-plain" { "/etc/motd" } else { &format!("/s/{volume_name}") };
                mounts.push(json!({"name": volume_name, "mountPath": over, "subPath": path}));
                let file = format!("/f/{volume_name}/{path}");
                wanted += &format!("{file} {shown} {text}\n{over} {shown} {text}\n");
            }
        }
        let files: Vec<&str> = wanted.lines().filter_map(|line| line.split(' ').next()).collect();
        let script = format!(
            "for f in {}; do echo \"$f $(stat -L -c '%a %g' $f) $(cat $f)\"; done; od -An -tx1 /f/map-plain/binary",
            files.join(" ")
        );
        let mut reader = pod(name, &[("main", &script)]);
        reader["spec"]["restartPolicy"] = "Never".into();
        reader["spec"]["securityContext"] = security;
        reader["spec"]["volumes"] = volumes.into();
        reader["spec"]["containers"][0]["volumeMounts"] = mounts.into();
        scope.apply(&reader)?;
        scope.wait_for(&format!("pod/{name}"), "{.status.phase}=Succeeded")?;
        let said = scope.kubectl(&["logs", name])?;
        ensure!(said == format!("{wanted} ff 00 fe\n"), "{said}\nis not\n{wanted}");
    }
    Ok(())
}

fn optional_sources(scope: &Scope<'_>) -> Result<()> {
    let make = |object: &str, text: &str| -> Result<()> {
        let literal = format!("--from-literal=data={text}");
        scope.kubectl(&["create", "configmap", object, &literal])?;
        scope.kubectl(&["create", "secret", "generic", object, &literal]).map(drop)
    };
    make("goes", "there")?;
    make("changes", "before")?;
    let mut reader = pod("reader", &[("main", "sleep 1000")]);
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    for source in FROM_API {
        for object in ["goes", "changes", "comes"] {
            let name = format!("{source}-{object}");
            volumes.push(volume(&name, source, object, &json!({"optional": true}), None));
            mounts.push(json!({"name": name, "mountPath": format!("/v/{object}/{source}")}));
        }
    }
    reader["spec"]["volumes"] = volumes.into();
    reader["spec"]["containers"][0]["volumeMounts"] = mounts.into();
    scope.apply(&reader)?;
    scope.wait_ready("reader")?;
    let shows = |wanted: &str| {
        eventually(&format!("the files show {wanted:?}"), || {
            let script = "for o in goes changes comes; do cat /v/$o/*/data 2>/dev/null; echo; done";
            Ok((scope.exec("reader", &["sh", "-c", script])? == wanted).then_some(()))
        })
    };
    shows(&format!("{}\n{}\n\n", "there".repeat(4), "before".repeat(4)))?;
    make("comes", "new")?;
    for kind in ["configmap", "secret"] {
        scope.kubectl(&["delete", kind, "goes"])?;
        let field = if kind == "secret" { "stringData" } else { "data" };
        let patch = format!("{{\"{field}\":{{\"data\":\"after\"}}}}");
        scope.kubectl(&["patch", kind, "changes", "-p", &patch])?;
    }
    shows(&format!("\n{}\n{}\n", "after".repeat(4), "new".repeat(4)))
}

fn resources_in_files(scope: &Scope<'_>) -> Result<()> {
    let mut shown = pod("shown", &[("main", "sleep 1000"), ("unbounded", "sleep 1000")]);
    shown["spec"]["containers"][0]["resources"] = json!({
        "requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"}
    });
    let item = |path: &str, container: &str, resource: &str, divisor: &str| {
        let reference = json!({"containerName": container, "resource": resource, "divisor": divisor});
        json!({"path": path, "resourceFieldRef": reference})
    };
    let items = json!({"items": [
        item("a", "main", "limits.cpu", "1m"), item("b", "main", "requests.cpu", "1m"),
        item("c", "main", "limits.memory", "1"), item("d", "main", "requests.memory", "1Mi"),
        item("e", "unbounded", "limits.cpu", "1"), item("f", "unbounded", "limits.memory", "1Ki"),
    ]});
    shown["spec"]["volumes"] =
        FROM_POD.map(|source| volume(source, source, "", &items, None)).into_iter().collect();
    shown["spec"]["containers"][0]["volumeMounts"] = FROM_POD
        .map(|source| json!({"name": source, "mountPath": format!("/{source}")}))
        .into_iter()
        .collect();
    scope.apply(&shown)?;
    scope.wait_ready("shown")?;
    let (cpu, memory) = (allocatable(scope, "cpu")?, allocatable(scope, "memory")? / 1024);
    for source in FROM_POD {
        let script = format!("for f in /{source}/*; do cat $f; echo; done");
        let said = scope.kubectl(&["exec", "shown", "-c", "main", "--", "sh", "-c", &script])?;
        ensure!(said == format!("1250\n250\n67108864\n32\n{cpu}\n{memory}\n"), "{source}: {said}");
    }
    Ok(())
}

fn empty_directories(scope: &Scope<'_>) -> Result<()> {
    for (name, security, uid) in [("root", json!({}), 0), ("other", json!({"runAsUser": 1001}), 1001)] {
        let script = "for d in disk memory; do stat -c '%a' /e/$d; for m in 644 666 777; do \
            echo $m > /e/$d/$m; chmod $m /e/$d/$m; echo \"$(stat -c '%a %u' /e/$d/$m) $(cat /e/$d/$m)\"; done; \
            grep -c \" /e/$d tmpfs \" /proc/mounts; done";
        let mut writer = pod(name, &[("main", script)]);
        writer["spec"]["restartPolicy"] = "Never".into();
        writer["spec"]["securityContext"] = security;
        writer["spec"]["volumes"] = json!([
            {"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}
        ]);
        writer["spec"]["containers"][0]["volumeMounts"] = ["disk", "memory"]
            .map(|name| json!({"name": name, "mountPath": format!("/e/{name}")}))
            .into_iter()
            .collect();
        scope.apply(&writer)?;
        eventually("it ends", || {
            let phase = scope.jsonpath(&["pod", name], "{.status.phase}")?;
            Ok(["Succeeded", "Failed"].contains(&&*phase).then_some(()))
        })?;
        let files: String = [644, 666, 777].map(|mode| format!("{mode} {uid} {mode}\n")).concat();
        let said = scope.kubectl(&["logs", name])?;
        ensure!(said == format!("777\n{files}0\n1777\n{files}1\n"), "{said}");
    }
    Ok(())
}
