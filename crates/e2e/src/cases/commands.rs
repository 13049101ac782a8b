//! kubectl's commands that no other case uses, by tables: arguments, and what they print or make.

use super::{deployment, pod};
use crate::cluster::{eventually, text};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;

pub const CASES: &[Case] = &[
    Case { name: "create_of_each_sort", run: create_each },
    Case { name: "set_of_each_sort", run: set_each },
    Case { name: "autoscale_and_reconcile", run: autoscale_and_reconcile },
    Case { name: "the_last_applied_configuration", run: last_applied },
    Case { name: "commands_without_a_cluster", run: local },
    Case { name: "top_without_metrics", run: top },
    Case { name: "what_an_editor_changes", run: edit },
    Case { name: "each_command_has_a_row", run: rows },
];

/// Changes of the only node: nobody else may need it.
pub const NODE_CASES: &[Case] = &[Case { name: "a_node_is_cordoned_tainted_and_drained", run: drain }];

/// After the command, the object has the value at the path.
fn makes(scope: &Scope<'_>, verb: &str, args: &str, of: (&str, &str, &str)) -> Result<()> {
    let (what, path, expected) = of;
    let words: Vec<&str> = std::iter::once(verb).chain(args.split(' ')).collect();
    scope.kubectl(&words).with_context(|| args.to_owned())?;
    let made = scope.jsonpath(&[what], path)?;
    ensure!(made == expected, "{verb} {args}: {made:?}, not {expected:?}");
    Ok(())
}

/// `kubectl create` with these words makes an object that has the value at the path.
fn create_each(scope: &Scope<'_>) -> Result<()> {
    let own = scope.namespace.as_str();
    let global = |name: &str| format!("{own}-{name}");
    let (role, binding, class) = (global("role"), global("binding"), global("class"));
    let pair = scope.cluster.scratch().join(global("tls")).display().to_string();
    let made = rcgen::generate_simple_self_signed(["a.example".to_owned()])?;
    std::fs::write(format!("{pair}.crt"), made.cert.pem())?;
    std::fs::write(format!("{pair}.key"), made.signing_key.serialize_pem())?;
    for (args, what, path, expected) in [
        ("configmap c --from-literal=k=v", "configmap/c", "{.data.k}", "v"),
        ("secret generic s --from-literal=k=v", "secret/s", "{.data.k}", "dg=="),
        (
            "secret docker-registry d --docker-server=r.example --docker-username=u --docker-password=p",
            "secret/d",
            "{.type}",
            "kubernetes.io/dockerconfigjson",
        ),
        (
            "deployment web --image=nginx --replicas=0",
            "deployment/web",
            "{.spec.template.spec.containers[0].image}",
            "nginx",
        ),
        (
            "job once --image=busybox -- true",
            "job/once",
            "{.spec.template.spec.containers[0].command[0]}",
            "true",
        ),
        (
            "cronjob often --image=busybox --schedule=@hourly -- true",
            "cronjob/often",
            "{.spec.schedule}",
            "@hourly",
        ),
        ("job by-hand --from=cronjob/often", "job/by-hand", "{.metadata.ownerReferences[0].name}", "often"),
        ("ingress way --rule=a.example/x*=web:80", "ingress/way", "{.spec.rules[0].host}", "a.example"),
        (
            "poddisruptionbudget some --selector=app=web --min-available=1",
            "pdb/some",
            "{.spec.minAvailable}",
            "1",
        ),
        ("quota little --hard=configmaps=9", "quota/little", "{.spec.hard.configmaps}", "9"),
        ("role reads --verb=get --resource=pods", "role/reads", "{.rules[0].resources[0]}", "pods"),
        ("rolebinding reads --role=reads --user=jane", "rolebinding/reads", "{.subjects[0].name}", "jane"),
        (
            &format!("clusterrole {role} --verb=get --resource=nodes"),
            &format!("clusterrole/{role}"),
            "{.rules[0].verbs[0]}",
            "get",
        ),
        (
            &format!("clusterrolebinding {binding} --clusterrole={role} --user=jane"),
            &format!("clusterrolebinding/{binding}"),
            "{.roleRef.name}",
            &role,
        ),
        (&format!("priorityclass {class} --value=7"), &format!("priorityclass/{class}"), "{.value}", "7"),
        ("service clusterip inside --tcp=80:8080", "service/inside", "{.spec.ports[0].targetPort}", "8080"),
        ("service nodeport outside --tcp=80", "service/outside", "{.spec.type}", "NodePort"),
        (
            "service externalname far --external-name=far.example",
            "service/far",
            "{.spec.externalName}",
            "far.example",
        ),
        ("serviceaccount robot", "serviceaccount/robot", "{.metadata.name}", "robot"),
    ] {
        let words: Vec<&str> = args.split(' ').collect();
        // A dry run on the server comes first, and leaves nothing for the real one to meet.
        let dry = [&["create", "--dry-run=server", "-o", "name"], &words[..]].concat();
        scope.kubectl(&dry).with_context(|| args.to_owned())?;
        makes(scope, "create", args, (what, path, expected))?;
    }
    for what in [
        format!("clusterrole/{role}"),
        format!("clusterrolebinding/{binding}"),
        format!("priorityclass/{class}"),
    ] {
        scope.kubectl(&["delete", &what])?;
    }
    Ok(())
}

fn set_each(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["create", "serviceaccount", "robot"])?;
    scope.apply(&deployment("web", 0))?;
    scope.kubectl(&["create", "service", "clusterip", "web", "--tcp=80"])?;
    scope.kubectl(&["create", "role", "reads", "--verb=get", "--resource=pods"])?;
    scope.kubectl(&["create", "rolebinding", "reads", "--role=reads", "--user=jane"])?;
    for (args, what, path, expected) in [
        (
            "image deployment/web nginx=nginx:2",
            "deployment/web",
            "{.spec.template.spec.containers[0].image}",
            "nginx:2",
        ),
        (
            "env deployment/web COLOR=blue",
            "deployment/web",
            "{.spec.template.spec.containers[0].env[0].value}",
            "blue",
        ),
        (
            "resources deployment/web --limits=memory=64Mi --requests=cpu=10m",
            "deployment/web",
            "{.spec.template.spec.containers[0].resources.limits.memory}",
            "64Mi",
        ),
        (
            "serviceaccount deployment/web robot",
            "deployment/web",
            "{.spec.template.spec.serviceAccountName}",
            "robot",
        ),
        ("selector service/web app=other", "service/web", "{.spec.selector.app}", "other"),
        ("subject rolebinding/reads --user=john", "rolebinding/reads", "{.subjects[1].name}", "john"),
    ] {
        makes(scope, "set", args, (what, path, expected))?;
    }
    Ok(())
}

fn autoscale_and_reconcile(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&deployment("web", 0))?;
    scope.kubectl(&["autoscale", "deployment", "web", "--min=2", "--max=5", "--cpu=70%"])?;
    let made = scope.jsonpath(
        &["hpa", "web"],
        "{.spec.minReplicas} {.spec.maxReplicas} {.spec.metrics[0].resource.target.averageUtilization}",
    )?;
    ensure!(made == "2 5 70", "{made}");
    let role = |verb: &str| {
        serde_json::json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "reads", "namespace": scope.namespace},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}]})
    };
    let reconcile = ["auth", "reconcile", "-f", "-"];
    scope.kubectl_stdin(&reconcile, role("get").to_string().as_bytes())?;
    scope.kubectl_stdin(&reconcile, role("list").to_string().as_bytes())?;
    let verbs = scope.jsonpath(&["role", "reads"], "{.rules[*].verbs[*]}")?;
    ensure!(verbs.contains("get") && verbs.contains("list"), "what was granted stays: {verbs}");
    Ok(())
}

fn last_applied(scope: &Scope<'_>) -> Result<()> {
    let mut web = deployment("web", 0);
    scope.apply(&web)?;
    web["spec"]["minReadySeconds"] = 1.into();
    let set = scope.kubectl_stdin(&["apply", "set-last-applied", "-f", "-"], web.to_string().as_bytes())?;
    ensure!(set.contains("configured"), "{set}");
    let view = ["apply", "view-last-applied", "deployment/web", "-o", "json"];
    ensure!(scope.kubectl(&view)?.contains("\"minReadySeconds\": 1"));
    let mut edit = scope.kubectl_command();
    edit.args(["apply", "edit-last-applied", "deployment/web", "-o", "json"])
        .env("KUBE_EDITOR", "sed -i 's/\"minReadySeconds\": 1/\"minReadySeconds\": 2/'");
    text(&["apply", "edit-last-applied"], &edit.output()?)?;
    ensure!(scope.kubectl(&view)?.contains("\"minReadySeconds\": 2"));
    Ok(())
}

fn edit(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["create", "configmap", "c", "--from-literal=k=old"])?;
    let edit = |script: &str| {
        let mut edit = scope.kubectl_command();
        edit.args(["edit", "configmap/c"]).env("KUBE_EDITOR", format!("sed -i '{script}'"));
        text(&["edit"], &edit.output()?)
    };
    let told = edit("s/k: old/k: new/")?;
    ensure!(told.contains("configmap/c edited"), "{told}");
    ensure!(scope.jsonpath(&["configmap", "c"], "{.data.k}")? == "new");
    let told = edit("s/nothing/else/")?;
    ensure!(told.contains("Edit cancelled, no changes made"), "{told}");
    Ok(())
}

/// The commands below `words` that kubectl's own help names, at any depth.
fn commands(scope: &Scope<'_>, words: &[&str], found: &mut BTreeSet<String>) -> Result<()> {
    let help = scope.kubectl(&[words, &["--help"]].concat())?;
    let mut listed = false;
    for line in help.lines() {
        if !line.starts_with(' ') {
            listed = line.ends_with(':') && line.contains("Commands") || listed && line.is_empty();
        } else if listed && let Some(name) = line.split_whitespace().next() {
            let words = [words, &[name]].concat();
            found.insert(words.join(" "));
            commands(scope, &words, found)?;
        }
    }
    Ok(())
}

/// The table of COMPAT.md names each command of this kubectl, and no other.
fn rows(scope: &Scope<'_>) -> Result<()> {
    let mut found = BTreeSet::new();
    commands(scope, &[], &mut found)?;
    ensure!(found.len() > 80, "only {found:?}");
    let table =
        include_str!("../../../../COMPAT.md").split("| command | test |").nth(1).context("a table")?;
    let rows = table.lines().skip(2).map_while(|line| line.strip_prefix("| `")?.split('`').next());
    let rows: BTreeSet<String> = rows.map(str::to_owned).collect();
    let unnamed: Vec<_> = found.difference(&rows).collect();
    let unknown: Vec<_> = rows.difference(&found).collect();
    ensure!(unnamed.is_empty() && unknown.is_empty(), "no rows: {unnamed:?}; no commands: {unknown:?}");
    Ok(())
}

/// What works on files alone, with the client's own configuration.
fn local(scope: &Scope<'_>) -> Result<()> {
    let dir = scope.cluster.scratch().join("commands");
    std::fs::create_dir_all(&dir)?;
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text);
    write("kustomization.yaml", "namePrefix: pre-\nresources: [map.yaml]\n")?;
    write("map.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: map\ndata:\n  k: v\n")?;
    let dir = dir.display().to_string();
    ensure!(scope.kubectl(&["kustomize", &dir])?.contains("name: pre-map"));
    scope.kubectl(&["apply", "-k", &dir])?;
    ensure!(scope.jsonpath(&["configmap", "pre-map"], "{.data.k}")? == "v");
    let config = format!("{dir}/config");
    std::fs::copy(scope.cluster.kubeconfig(), &config)?;
    let kubeconfig = format!("--kubeconfig={config}");
    let own = |words: &str| {
        let mut args = vec!["config", kubeconfig.as_str()];
        args.extend(words.split(' '));
        scope.cluster.kubectl(&args)
    };
    let current = own("current-context")?;
    let current = current.trim();
    for (words, expected) in [
        ("set-cluster far --server=https://192.0.2.1:6443", "set"),
        ("set-credentials jane --token=t", "set"),
        ("set-context far --cluster=far --user=jane", "created"),
        ("use-context far", "Switched"),
        ("current-context", "far"),
        ("rename-context far farther", "renamed"),
        ("get-contexts -o name", "farther"),
        ("get-clusters", "far"),
        ("get-users", "jane"),
        ("set clusters.far.tls-server-name x", "set"),
        ("view", "tls-server-name: x"),
        ("unset clusters.far.tls-server-name", "unset"),
        ("delete-context farther", "deleted"),
        ("delete-cluster far", "deleted"),
        ("delete-user jane", "deleted"),
        (&format!("use-context {current}"), "Switched"),
    ] {
        let told = own(words)?;
        ensure!(told.contains(expected), "config {words}: {told}");
    }
    scope.cluster.kubectl(&[&kubeconfig, "get", "nodes"])?;
    ensure!(scope.kubectl(&["completion", "bash"])?.contains("complete -o"));
    ensure!(scope.kubectl(&["options"])?.contains("--kubeconfig"));
    let preferences = format!("{dir}/kuberc");
    std::fs::write(&preferences, "apiVersion: kubectl.config.k8s.io/v1beta1\nkind: Preference\n")?;
    let kuberc = format!("--kuberc={preferences}");
    scope.kubectl(&[
        "kuberc",
        "set",
        "--section=aliases",
        "--name=maps",
        "--command=get",
        "--prependarg=configmaps",
        &kuberc,
    ])?;
    ensure!(scope.kubectl(&["kuberc", "view", &kuberc])?.contains("maps"));
    let mut alias = std::process::Command::new(scope.cluster.kubectl_command().get_program());
    alias.args(["maps", "-o", "name", &kuberc, "-n", &scope.namespace]).env("KUBECONFIG", &config);
    ensure!(text(&["maps"], &alias.output()?)?.contains("pre-map"));
    let plugin = format!("{dir}/kubectl-greet");
    std::fs::write(&plugin, "#!/bin/sh\necho greetings\n")?;
    std::fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = format!("{dir}:{}", std::env::var("PATH")?);
    let mut list = scope.cluster.kubectl_command();
    ensure!(
        text(&["plugin"], &list.args(["plugin", "list"]).env("PATH", &path).output()?)?
            .contains("kubectl-greet")
    );
    let mut greet = std::process::Command::new(scope.cluster.kubectl_command().get_program());
    ensure!(text(&["greet"], &greet.arg("greet").env("PATH", &path).output()?)? == "greetings\n");
    Ok(())
}

/// Nobody serves metrics.k8s.io, and kubectl says so, as with an upstream cluster that has no metrics server.
fn top(scope: &Scope<'_>) -> Result<()> {
    for what in ["nodes", "pods"] {
        let told = scope.kubectl_fails(&["top", what])?;
        ensure!(told.contains("Metrics API not available"), "{told}");
    }
    Ok(())
}

fn drain(scope: &Scope<'_>) -> Result<()> {
    let node = "e2e-node";
    let unschedulable = || scope.jsonpath(&["node", node], "{.spec.unschedulable}");
    scope.apply(&deployment("web", 2))?;
    scope.rolled_out("web")?;
    scope.kubectl(&["cordon", node])?;
    ensure!(unschedulable()? == "true");
    let told = |reason: &str| {
        let selector = format!("--field-selector=reason={reason},involvedObject.name={node}");
        let message = format!("Node {node} status is now: {reason}");
        scope.watch_until(&["events", "--namespace=default", &selector], |event| event["message"] == *message)
    };
    told("NodeNotSchedulable")?;
    scope.apply(&pod("late", &[("main", "sleep 1000")]))?;
    scope.wait_for("pod/late", "{.status.conditions[?(@.type==\"PodScheduled\")].reason}=Unschedulable")?;
    scope.kubectl(&["delete", "pod", "late"])?;
    let bare = scope.get(&["pods", "-l", "app=web", "-o", "json"])?;
    let one = bare["items"][0]["metadata"]["name"].as_str().context("a Pod")?;
    let loose = r#"{"metadata":{"labels":{"app":"loose"}}}"#;
    scope.kubectl(&["patch", "pod", one, "-p", loose])?;
    scope.wait_for(&format!("pod/{one}"), "{.metadata.labels.app}=loose")?;
    eventually("its set lets it go", || {
        Ok(scope.jsonpath(&["pod", one], "{.metadata.ownerReferences}")?.is_empty().then_some(()))
    })?;
    let refused = scope.kubectl_fails(&["drain", node, "--timeout=60s"])?;
    ensure!(refused.contains("declare no controller"), "{refused}");
    scope.kubectl(&["drain", node, "--force", "--timeout=90s"])?;
    let left = scope.jsonpath(&["pods"], "{.items[*].spec.nodeName}")?;
    ensure!(!left.contains(node), "Pods are left on the node: {left}");
    scope.kubectl(&["uncordon", node])?;
    ensure!(unschedulable()?.is_empty());
    told("NodeSchedulable")?;
    scope.rolled_out("web")?;
    scope.kubectl(&["taint", "node", node, "e2e=yes:NoExecute"])?;
    eventually("who does not tolerate it leaves", || {
        Ok((!scope.jsonpath(&["pods"], "{.items[*].spec.nodeName}")?.contains(node)).then_some(()))
    })?;
    scope.kubectl(&["taint", "node", node, "e2e-"])?;
    scope.rolled_out("web")
}
