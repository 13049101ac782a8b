//! Quotas, limits, the security of Pods and policies as kubectl shows them.

use super::pod;
use crate::{Case, Scope};
use anyhow::{Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "a_quota_counts_and_refuses", run: quota },
    Case { name: "a_quota_follows_what_it_counts", run: lives },
    Case { name: "scopes_choose_what_a_quota_counts", run: scopes },
    Case { name: "limits_give_defaults_and_bounds", run: limits },
    Case { name: "a_namespace_holds_pods_to_a_standard", run: security },
    Case { name: "claims_in_use_stay", run: claims },
    Case { name: "a_runtime_class_must_be_there", run: runtime_class },
    Case { name: "policies_refuse_warn_and_change", run: policies },
];

/// What kubectl says, warnings included.
fn said(scope: &Scope<'_>, args: &[&str]) -> Result<String> {
    let output = scope.kubectl_command().args(args).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn until_used(scope: &Scope<'_>, field: &str, amount: &str) -> Result<()> {
    until_used_of(scope, "q", field, amount)
}

fn until_used_of(scope: &Scope<'_>, quota: &str, field: &str, amount: &str) -> Result<()> {
    scope.wait_for(&format!("quota/{quota}"), &format!("{{.status.used.{field}}}={amount}"))
}

fn quota(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["create", "quota", "q", "--hard=pods=1,count/secrets=1,requests.cpu=500m"])?;
    until_used(scope, "pods", "0")?;
    let refused = scope.kubectl_fails(&["run", "a", "--image=busybox"])?;
    ensure!(refused.contains("failed quota: q: must specify requests.cpu for: a"), "{refused}");
    let mut object = pod("a", &[("main", "sleep 3600")]);
    object["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "200m"}});
    scope.apply(&object)?;
    until_used(scope, "pods", "1")?;
    object["metadata"]["name"] = "b".into();
    let Err(refused) = scope.apply(&object) else { anyhow::bail!("a second Pod was let in") };
    let text = "pods \"b\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1";
    ensure!(refused.to_string().contains(text), "{refused}");
    scope.kubectl(&["create", "secret", "generic", "one"])?;
    let refused = scope.kubectl_fails(&["create", "secret", "generic", "two"])?;
    ensure!(refused.contains("exceeded quota: q, requested: count/secrets=1"), "{refused}");
    let shown = scope.kubectl(&["describe", "quota", "q"])?;
    let line = |name: &str| shown.lines().find(|line| line.trim_start().starts_with(name)).map(str::to_owned);
    let words = line("requests.cpu").unwrap_or_default();
    ensure!(words.split_whitespace().collect::<Vec<_>>() == ["requests.cpu", "200m", "500m"], "{shown}");
    // What goes makes room.
    scope.kubectl(&["delete", "pod", "a", "--wait=false"])?;
    scope.kubectl(&["delete", "secret", "one"])?;
    until_used(scope, "pods", "0")?;
    until_used(scope, "count/secrets", "0")?;
    scope.apply(&object)?;
    until_used(scope, "pods", "1")
}

/// Each kind is counted when it comes and when it goes.
fn lives(scope: &Scope<'_>) -> Result<()> {
    let template = json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "busybox"}]}});
    let meta = json!({"name": "one"});
    let kinds = [
        (json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta}), "secrets", "1"),
        (json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}), "count/configmaps", "2"),
        (
            json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"type": "NodePort", "ports": [{"port": 80}]}}),
            "services\\.nodeports",
            "1",
        ),
        (
            json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": meta, "spec": {"replicas": 0, "template": template}}),
            "replicationcontrollers",
            "1",
        ),
        (
            json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": meta,
                "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "x"}}, "template": template}}),
            "count/replicasets\\.apps",
            "1",
        ),
        (
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": {"accessModes": ["ReadWriteOnce"],
                "storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}}),
            "gold\\.storageclass\\.storage\\.k8s\\.io/persistentvolumeclaims",
            "1",
        ),
    ];
    scope.wait_for("configmap/kube-root-ca.crt", "{.metadata.name}=kube-root-ca.crt")?;
    let names = kinds.iter().map(|(_, name, _)| format!("{}=5", name.replace('\\', ""))).collect::<Vec<_>>();
    scope.kubectl(&["create", "quota", "q", &format!("--hard={},resourcequotas=1", names.join(","))])?;
    until_used(scope, "resourcequotas", "1")?;
    for (object, name, used) in &kinds {
        scope.apply(object)?;
        until_used(scope, name, used)?;
        let kind = object["kind"].as_str().unwrap_or_default();
        scope.kubectl(&["delete", kind, "one"])?;
        let left = if kind == "ConfigMap" { "1" } else { "0" };
        until_used(scope, name, left)?;
    }
    // What somebody else writes into the status is put right.
    scope.kubectl(&[
        "patch",
        "quota",
        "q",
        "--subresource=status",
        "--type=merge",
        "-p",
        "{\"status\":{\"hard\":{\"secrets\":\"9\"}}}",
    ])?;
    scope.wait_for("quota/q", "{.status.hard.secrets}=5")?;
    scope.kubectl(&[
        "patch",
        "quota",
        "q",
        "--type=merge",
        "-p",
        "{\"spec\":{\"hard\":{\"secrets\":\"7\"}}}",
    ])?;
    scope.wait_for("quota/q", "{.status.hard.secrets}=7")
}

fn scopes(scope: &Scope<'_>) -> Result<()> {
    for (name, of) in [
        ("best", "BestEffort"),
        ("not", "NotBestEffort"),
        ("ends", "Terminating"),
        ("stays", "NotTerminating"),
    ] {
        scope.kubectl(&["create", "quota", name, "--hard=pods=3", &format!("--scopes={of}")])?;
        until_used_of(scope, name, "pods", "0")?;
    }
    let check = |best: &str, not: &str, ends: &str, stays: &str| -> Result<()> {
        for (name, used) in [("best", best), ("not", not), ("ends", ends), ("stays", stays)] {
            until_used_of(scope, name, "pods", used)?;
        }
        Ok(())
    };
    let mut object = pod("a", &[("main", "sleep 3600")]);
    scope.apply(&object)?;
    check("1", "0", "0", "1")?;
    scope.kubectl(&["delete", "pod", "a"])?;
    check("0", "0", "0", "0")?;
    object["metadata"]["name"] = "b".into();
    object["spec"]["activeDeadlineSeconds"] = 3600.into();
    object["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "10m"}});
    scope.apply(&object)?;
    check("0", "1", "1", "0")?;
    scope.kubectl(&["delete", "pod", "b"])?;
    check("0", "0", "0", "0")
}

fn limits(scope: &Scope<'_>) -> Result<()> {
    let limit = json!({"type": "Container", "default": {"memory": "64Mi"}, "defaultRequest": {"memory": "32Mi"}, "max": {"memory": "128Mi"}});
    scope.apply(&json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [limit]}}))?;
    scope.apply(&pod("a", &[("main", "sleep 3600")]))?;
    let resources = scope.jsonpath(&["pod", "a"], "{.spec.containers[0].resources}")?;
    ensure!(
        resources == "{\"limits\":{\"memory\":\"64Mi\"},\"requests\":{\"memory\":\"32Mi\"}}",
        "{resources}"
    );
    let mut object = pod("b", &[("main", "sleep 3600")]);
    object["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "1Gi"}});
    let Err(refused) = scope.apply(&object) else { anyhow::bail!("a Pod beyond the limit was let in") };
    let text = "maximum memory usage per Container is 128Mi, but limit is 1Gi";
    ensure!(refused.to_string().contains(text), "{refused}");
    let shown = scope.kubectl(&["describe", "limits", "l"])?;
    ensure!(shown.contains("128Mi"), "{shown}");
    Ok(())
}

fn security(scope: &Scope<'_>) -> Result<()> {
    let namespace = scope.jsonpath(&["serviceaccount", "default"], "{.metadata.namespace}")?;
    let mut host = pod("host", &[("main", "sleep 3600")]);
    host["spec"]["hostPID"] = true.into();
    scope.apply(&host)?;
    let label = |label: &str| {
        let label = format!("pod-security.kubernetes.io/{label}");
        said(scope, &["label", "--overwrite", "namespace", &namespace, &label])
    };
    let told = label("enforce=baseline")?;
    let text = format!(
        "Warning: existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"baseline:latest\""
    );
    ensure!(told.contains(&text) && told.contains("Warning: host: host namespaces"), "{told}");
    host["metadata"]["name"] = "other".into();
    let Err(refused) = scope.apply(&host) else { anyhow::bail!("a Pod of the host was let in") };
    let text = "violates PodSecurity \"baseline:latest\": host namespaces (hostPID)";
    ensure!(refused.to_string().contains(text), "{refused}");
    label("warn=restricted")?;
    let told = said(scope, &["create", "deployment", "web", "--image=busybox"])?;
    ensure!(told.contains("deployment.apps/web created"), "{told}");
    let text = "Warning: would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"busybox\"";
    ensure!(told.contains(text), "{told}");
    let told = label("enforce=none")?;
    ensure!(told.contains("must be one of privileged, baseline, restricted"), "{told}");
    Ok(())
}

fn claims(scope: &Scope<'_>) -> Result<()> {
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}});
    scope.apply(&claim)?;
    let finalizers = scope.jsonpath(&["pvc", "data"], "{.metadata.finalizers}")?;
    ensure!(finalizers == "[\"kubernetes.io/pvc-protection\"]", "{finalizers}");
    scope.kubectl(&["delete", "pvc", "data", "--timeout=60s"]).map(drop)
}

fn runtime_class(scope: &Scope<'_>) -> Result<()> {
    let mut object = pod("a", &[("main", "sleep 3600")]);
    let class = format!("class-{}", scope.jsonpath(&["serviceaccount", "default"], "{.metadata.uid}")?);
    object["spec"]["runtimeClassName"] = class.as_str().into();
    let Err(refused) = scope.apply(&object) else { anyhow::bail!("no RuntimeClass was needed") };
    let text = format!("pod rejected: RuntimeClass {class:?} not found");
    ensure!(refused.to_string().contains(&text), "{refused}");
    let mut made = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": class}, "handler": "runc",
        "overhead": {"podFixed": {"memory": "8Mi"}}});
    scope.apply(&made)?;
    scope.apply(&object)?;
    let overhead = scope.jsonpath(&["pod", "a"], "{.spec.overhead.memory}")?;
    ensure!(overhead == "8Mi", "{overhead}");
    scope.wait_ready("a")?;
    // A handler that the node does not have is told.
    made["metadata"]["name"] = format!("{class}-vm").into();
    made["handler"] = "kata".into();
    made["overhead"] = json!(null);
    scope.apply(&made)?;
    object["metadata"]["name"] = "b".into();
    object["spec"]["runtimeClassName"] = made["metadata"]["name"].clone();
    scope.apply(&object)?;
    scope.event("b", "FailedCreatePodSandBox", "no runtime for \"kata\"")?;
    Ok(())
}

/// Policies of expressions for the Deployments of one namespace.
fn policies(scope: &Scope<'_>) -> Result<()> {
    let account = scope.get(&["serviceaccount", "default"])?;
    let (namespace, uid) = (&account["metadata"]["namespace"], account["metadata"]["uid"].as_str());
    let name = format!("policy-{}", uid.unwrap_or_default());
    let matching = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}]});
    let policy = |kind: &str, spec: Value| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let limits = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "limits"}, "data": {"replicas": "5"}});
    scope.apply(&limits)?;
    scope.apply(&policy("ValidatingAdmissionPolicy", json!({"matchConstraints": matching,
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "variables": [{"name": "most", "expression": "int(params.data.replicas)"}],
        "validations": [{"expression": "object.spec.replicas <= variables.most", "messageExpression": "'at most ' + string(variables.most)"},
            {"expression": "object.spec.nope == 1 || true"}]})))?;
    let binding = |action: &str| {
        let params = json!({"name": "limits", "parameterNotFoundAction": "Deny"});
        let spec = json!({"policyName": name, "validationActions": [action], "paramRef": params});
        scope.apply(&policy("ValidatingAdmissionPolicyBinding", spec))
    };
    binding("Deny")?;
    let many = ["create", "deployment", "many", "--image=busybox", "--replicas=6"];
    let refused = scope.kubectl_fails(&many)?;
    let text = format!("ValidatingAdmissionPolicy '{name}' with binding '{name}' denied request: at most 5");
    ensure!(refused.contains(&text), "{refused}");
    scope.wait_for(&format!("validatingadmissionpolicy/{name}"), "{.status.observedGeneration}=1")?;
    let told = scope.kubectl(&["describe", "validatingadmissionpolicy", &name])?;
    ensure!(told.contains("undefined field 'nope'"), "{told}");
    binding("Warn")?;
    let warned = said(scope, &many)?;
    ensure!(
        warned.contains("Warning: Validation failed for ValidatingAdmissionPolicy")
            && warned.contains("deployment.apps/many created"),
        "{warned}"
    );
    scope.apply(&policy("MutatingAdmissionPolicy", json!({"matchConstraints": matching, "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{spec: Object.spec{replicas: 0}}"}}]})))?;
    scope.apply(&policy("MutatingAdmissionPolicyBinding", json!({"policyName": name})))?;
    scope.kubectl(&["label", "deployment", "many", "a=b"])?;
    let replicas = scope.jsonpath(&["deployment", "many"], "{.spec.replicas}")?;
    ensure!(replicas == "0", "{replicas}");
    for kind in ["mutatingadmissionpolicy", "validatingadmissionpolicy"] {
        let shown = scope.kubectl(&["get", kind, &name, "--output=wide"])?;
        ensure!(shown.contains(&name), "{shown}");
        scope.kubectl(&["delete", &format!("{kind}binding/{name}"), &format!("{kind}/{name}")])?;
    }
    Ok(())
}
