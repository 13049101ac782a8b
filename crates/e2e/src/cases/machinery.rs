//! Behaviours of the API's machinery that span several objects: collection of garbage, the end of
//! namespaces, validation of fields, a whole application.

use super::pod;
use crate::cluster::eventually;
use crate::{Case, Scope};
use anyhow::{Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "a_circle_of_owners_is_collected", run: circle },
    Case { name: "a_second_owner_keeps_its_dependents", run: second_owner },
    Case { name: "a_namespace_takes_its_content_along", run: namespace },
    Case { name: "namespaces_are_changed_in_place", run: namespace_changes },
    Case { name: "fields_of_custom_resources_are_validated", run: fields },
    Case { name: "an_application_of_several_tiers", run: application },
    Case { name: "run_without_restart", run: run_never },
    Case { name: "cluster_info", run: cluster_info },
];

fn owner(kind: &str, object: &Value) -> Value {
    let version = if kind == "Pod" || kind == "ReplicationController" { "v1" } else { "apps/v1" };
    json!({"apiVersion": version, "kind": kind, "name": object["metadata"]["name"],
        "uid": object["metadata"]["uid"], "controller": false, "blockOwnerDeletion": true})
}

fn own(scope: &Scope<'_>, pod: &str, owners: &[Value]) -> Result<()> {
    let patch = json!({"metadata": {"ownerReferences": owners}}).to_string();
    scope.kubectl(&["patch", "pod", pod, "--type=merge", "-p", &patch])?;
    Ok(())
}

fn circle(scope: &Scope<'_>) -> Result<()> {
    let names = ["pod1", "pod2", "pod3"];
    for name in names {
        scope.apply(&pod(name, &[("main", "sleep 1000")]))?;
    }
    for (at, name) in names.iter().enumerate() {
        let before = scope.get(&["pod", names[(at + 2) % 3]])?;
        own(scope, name, &[owner("Pod", &before)])?;
    }
    scope.kubectl(&["delete", "pod", "pod1", "--cascade=foreground", "--timeout=60s"])?;
    for name in names {
        scope.kubectl(&["wait", "--for=delete", &format!("pod/{name}"), "--timeout=60s"])?;
    }
    Ok(())
}

fn second_owner(scope: &Scope<'_>) -> Result<()> {
    let controller = |name: &str, replicas: u32| {
        let template = pod(name, &[("main", "sleep 1000")]);
        json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": name},
            "spec": {"replicas": replicas, "selector": {"app": name},
                "template": {"metadata": template["metadata"], "spec": template["spec"]}}})
    };
    scope.apply(&controller("going", 4))?;
    scope.apply(&controller("staying", 0))?;
    scope.wait_for("rc/going", "{.status.readyReplicas}=4")?;
    let staying = scope.get(&["rc", "staying"])?;
    let pods = scope.jsonpath(&["pods", "-l", "app=going"], "{.items[*].metadata.name}")?;
    let pods: Vec<&str> = pods.split_whitespace().collect();
    let going = scope.get(&["rc", "going"])?;
    let kept = &pods[..2];
    for name in kept {
        let mut first = owner("ReplicationController", &going);
        first["controller"] = true.into();
        own(scope, name, &[first, owner("ReplicationController", &staying)])?;
    }
    scope.kubectl(&["delete", "rc", "going", "--cascade=foreground", "--timeout=60s"])?;
    let left = scope.get(&["pods", "-l", "app=going"])?;
    let items = left["items"].as_array().map_or(&[][..], Vec::as_slice);
    let mut names: Vec<&str> = items.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
    names.sort_unstable();
    let mut expected = kept.to_vec();
    expected.sort_unstable();
    ensure!(names == expected, "{names:?}, not {expected:?}");
    for pod in items {
        ensure!(pod["metadata"].get("deletionTimestamp").is_none(), "{pod}");
        let owners = &pod["metadata"]["ownerReferences"];
        ensure!(owners[0]["name"] == "staying" && owners.get(1).is_none(), "{owners}");
    }
    Ok(())
}

/// Pods first, everything else after them; its conditions tell what is left.
fn namespace(scope: &Scope<'_>) -> Result<()> {
    let name = format!("{}-ending", scope.namespace);
    let kubectl = |args: &[&str]| scope.cluster.kubectl(&[&["-n", &name], args].concat());
    kubectl(&["create", "namespace", &name])?;
    let mut held = pod("held", &[("main", "sleep 1000")]);
    held["metadata"]["namespace"] = name.clone().into();
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    scope.kubectl_stdin(&["-n", &name, "apply", "-f", "-"], held.to_string().as_bytes())?;
    kubectl(&["wait", "--for=condition=Ready", "pod/held", "--timeout=60s"])?;
    kubectl(&["create", "configmap", "waits"])?;
    kubectl(&["create", "service", "clusterip", "waits", "--tcp=80"])?;
    kubectl(&["delete", "namespace", &name, "--wait=false"])?;
    let remaining = "{.status.conditions[?(@.type==\"NamespaceFinalizersRemaining\")].status}";
    kubectl(&[
        "wait",
        &format!("namespace/{name}"),
        &format!("--for=jsonpath={remaining}=True"),
        "--timeout=60s",
    ])?;
    kubectl(&["get", "configmap/waits", "service/waits"])?;
    let refused = scope.kubectl_fails(&["-n", &name, "create", "configmap", "late"])?;
    ensure!(refused.contains("because it is being terminated"), "{refused}");
    kubectl(&["patch", "pod", "held", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#])?;
    kubectl(&["wait", "--for=delete", &format!("namespace/{name}"), "--timeout=60s"])?;
    // Of the same name again, it has nothing of what was there.
    kubectl(&["create", "namespace", &name])?;
    let left = kubectl(&["get", "pods,services,configmaps", "-o", "name"])?;
    ensure!(!left.contains("held") && !left.contains("waits"), "{left}");
    kubectl(&["delete", "namespace", &name, "--timeout=60s"])?;
    Ok(())
}

fn namespace_changes(scope: &Scope<'_>) -> Result<()> {
    let name = format!("{}-changing", scope.namespace);
    let kubectl = |args: &[&str]| scope.cluster.kubectl(args);
    kubectl(&["create", "namespace", &name])?;
    let label = json!({"metadata": {"labels": {"team": "a"}}}).to_string();
    kubectl(&["patch", "namespace", &name, "-p", &label])?;
    let condition = json!({"status": {"conditions": [{"type": "Patched", "status": "True",
        "reason": "E2E", "message": "by a patch", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    kubectl(&[
        "patch",
        "namespace",
        &name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &condition.to_string(),
    ])?;
    let mut seen = scope.get(&["namespace", &name])?;
    ensure!(seen["metadata"]["labels"]["team"] == "a", "{seen}");
    ensure!(
        seen["status"]["conditions"][0]["type"] == "Patched" && seen["status"]["phase"] == "Active",
        "{seen}"
    );
    seen["status"]["conditions"][0]["type"] = "Updated".into();
    scope.kubectl_stdin(&["replace", "--subresource=status", "-f", "-"], seen.to_string().as_bytes())?;
    let mut seen = scope.get(&["namespace", &name])?;
    ensure!(seen["status"]["conditions"][0]["type"] == "Updated", "{seen}");
    seen["metadata"]["labels"]["team"] = "b".into();
    scope.kubectl_stdin(&["replace", "-f", "-"], seen.to_string().as_bytes())?;
    let seen = scope.get(&["namespace", &name])?;
    ensure!(seen["metadata"]["labels"]["team"] == "b", "{seen}");
    ensure!(seen["metadata"]["labels"]["kubernetes.io/metadata.name"] == name, "{seen}");
    kubectl(&["delete", "namespace", &name, "--timeout=60s"])?;
    Ok(())
}

fn fields(scope: &Scope<'_>) -> Result<()> {
    let define = |kind: &str, schema: Value| {
        let plural = format!("{}s", kind.to_lowercase());
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.fields.example.com")},
            "spec": {"group": "fields.example.com", "scope": "Namespaced", "names": {"plural": plural, "kind": kind},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
    };
    let strict = json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["port"],
        "properties": {"port": {"type": "integer"},
            "template": {"type": "object", "x-kubernetes-embedded-resource": true,
                "x-kubernetes-preserve-unknown-fields": true}}}}});
    let lenient = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let open = json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["port"],
        "properties": {"port": {"type": "integer"}}, "x-kubernetes-preserve-unknown-fields": true}}});
    for (kind, schema) in [("Strict", strict), ("Lenient", lenient), ("Open", open)] {
        let definition = define(kind, schema);
        scope.apply(&definition)?;
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        scope.kubectl(&["wait", "--for=condition=Established", &format!("crd/{name}"), "--timeout=30s"])?;
    }
    let of = |kind: &str, name: &str, rest: &str| {
        format!("apiVersion: fields.example.com/v1\nkind: {kind}\nmetadata:\n  name: {name}\n{rest}")
    };
    let put = |verb: &str, text: &str| {
        scope.kubectl_stdin(&[verb, "--validate=strict", "-f", "-"], text.as_bytes())
    };
    // What is allowed passes, created and applied.
    for (at, text) in [
        of("Lenient", "x", "anything: 1\nspec:\n  goes: [here]\n"),
        of("Strict", "x", "spec:\n  port: 80\n"),
        of("Open", "x", "spec:\n  port: 80\n  extraProperty: arbitrary-value\n"),
    ]
    .iter()
    .enumerate()
    {
        put("create", text)?;
        put("apply", &text.replace("name: x", &format!("name: y{at}")))?;
    }
    let extra = scope.jsonpath(&["opens.fields.example.com", "x"], "{.spec.extraProperty}")?;
    ensure!(extra == "arbitrary-value", "{extra}");
    // What is not is named, by its place.
    for (text, expected) in [
        (of("Strict", "z", "spec:\n  port: 80\n  extra: 1\n"), "unknown field \"spec.extra\""),
        (
            of("Strict", "z", "  unknownMeta: 1\nspec:\n  port: 80\n"),
            "unknown field \"metadata.unknownMeta\"",
        ),
        (
            of(
                "Strict",
                "z",
                "spec:\n  port: 80\n  template:\n    apiVersion: v1\n    kind: Pod\n    metadata:\n      name: t\n      unknownSub: 1\n",
            ),
            "unknown field \"spec.template.metadata.unknownSub\"",
        ),
    ] {
        for verb in ["create", "apply"] {
            let told = put(verb, &text).err().map(|error| format!("{error:#}")).unwrap_or_default();
            ensure!(told.contains(expected), "{verb} {text}: {told:?}, not {expected}");
        }
        let told =
            scope.kubectl_stdin(&["apply", "--server-side", "--validate=strict", "-f", "-"], text.as_bytes());
        let told = told.err().map(|error| format!("{error:#}")).unwrap_or_default();
        let place = expected.split('"').nth(1).unwrap_or_default();
        let undeclared = format!(".{place}: field not declared in schema");
        ensure!(told.contains(&undeclared), "server-side {text}: {told:?}");
    }
    for plural in ["stricts", "lenients", "opens"] {
        scope.kubectl(&["delete", "crd", &format!("{plural}.fields.example.com"), "--timeout=60s"])?;
    }
    Ok(())
}

/// A backend that keeps entries and a frontend that reaches it by its Service's name.
fn application(scope: &Scope<'_>) -> Result<()> {
    let tier = |name: &str, replicas: u32, image: &str, script: &str| {
        let mut template = pod(name, &[("main", script)]);
        template["spec"]["containers"][0]["image"] = image.into();
        template["spec"]["containers"][0]["readinessProbe"] =
            json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
        json!([
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": {"of": "guestbook"}},
                "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}},
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": {"of": "guestbook"}},
                "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
                    "template": {"metadata": template["metadata"], "spec": template["spec"]}}}
        ])
    };
    let backend = "mkdir -p /tmp/cgi-bin; printf '#!/bin/sh\\necho\\n[ \"$QUERY_STRING\" ] && echo \"$QUERY_STRING\" >> /tmp/book\\ncat /tmp/book\\n' > /tmp/cgi-bin/book; chmod +x /tmp/cgi-bin/book; touch /tmp/book; exec httpd -f -p 8080 -h /tmp";
    let frontend = "mkdir -p /tmp/cgi-bin; printf '#!/bin/sh\\necho\\n/usr/bin/wget -qO- \"http://backend/cgi-bin/book?$QUERY_STRING\"\\n' > /tmp/cgi-bin/guest; chmod +x /tmp/cgi-bin/guest; exec httpd -f -p 8080 -h /tmp";
    let tiers = [tier("backend", 1, "busybox", backend), tier("frontend", 3, "client", frontend)];
    for object in tiers.iter().flat_map(|tier| tier.as_array().into_iter().flatten()) {
        scope.apply(object)?;
    }
    for name in ["backend", "frontend"] {
        scope.rolled_out(name)?;
    }
    let path = format!("/api/v1/namespaces/{}/services/frontend:80/proxy/cgi-bin/guest", scope.namespace);
    for entry in ["first", "second"] {
        let written = || {
            Ok(scope
                .kubectl(&["get", "--raw", &format!("{path}?{entry}")])
                .ok()
                .filter(|page| page.contains(entry)))
        };
        eventually("an entry is written", written)?;
    }
    let page = scope.kubectl(&["get", "--raw", &path])?;
    ensure!(page.contains("first") && page.contains("second"), "{page}");
    scope.kubectl(&["delete", "deployments,services", "-l", "of=guestbook", "--timeout=60s"])?;
    let gone = || Ok(scope.kubectl(&["get", "pods", "-o", "name"])?.trim().is_empty().then_some(()));
    eventually("its Pods go", gone)
}

fn run_never(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&[
        "run",
        "once",
        "--restart=Never",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "--",
        "true",
    ])?;
    let made = scope.get(&["pod", "once"])?;
    ensure!(
        made["spec"]["restartPolicy"] == "Never" && made["spec"]["containers"][0]["image"] == "busybox",
        "{made}"
    );
    scope.wait_for("pod/once", "{.status.phase}=Succeeded")?;
    // Attached, it hears and says, and goes.
    let script = "read line; echo heard $line";
    let args = [
        "run",
        "said",
        "--restart=Never",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "--rm",
        "-i",
        "--quiet",
        "--",
        "sh",
        "-c",
        script,
    ];
    let said = scope.kubectl_stdin(&args, b"words\n")?;
    ensure!(said == "heard words\n", "{said:?}");
    ensure!(scope.kubectl_fails(&["get", "pod", "said"])?.contains("NotFound"));
    Ok(())
}

fn cluster_info(scope: &Scope<'_>) -> Result<()> {
    let told = scope.kubectl(&["cluster-info"])?;
    ensure!(
        told.contains("Kubernetes control plane")
            && told.contains("is running at")
            && told.contains("https://"),
        "{told}"
    );
    // kubectl speaks HTTP/2.
    let versions: Value = serde_json::from_str(&scope.kubectl(&["get", "--raw", "/api"])?)?;
    let address = versions["serverAddressByClientCIDRs"][0]["serverAddress"].as_str().unwrap_or_default();
    ensure!(!address.is_empty() && told.contains(&format!("https://{address}")), "{address:?} of {told}");
    let dump = scope.kubectl(&["cluster-info", "dump", "--namespaces", &scope.namespace])?;
    ensure!(dump.contains("\"name\": \"e2e-node\""), "{dump}");
    Ok(())
}
