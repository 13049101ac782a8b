//! kubectl's commands, one by one.

use super::{deployment, pod, started};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

pub const CASES: &[Case] = &[
    Case { name: "the_example_runs", run: example },
    Case { name: "apply_creates_keeps_configures", run: apply },
    Case { name: "get_in_every_format", run: get },
    Case { name: "describe", run: describe },
    Case { name: "explain", run: explain },
    Case { name: "diff", run: diff },
    Case { name: "wait", run: wait },
    Case { name: "label_and_annotate", run: label_and_annotate },
    Case { name: "patch_of_each_type", run: patch },
    Case { name: "auth_can_i_as", run: auth_can_i },
    Case { name: "create_token", run: create_token },
    Case { name: "token_secrets", run: token_secrets },
    Case { name: "logs", run: logs },
    Case { name: "exec", run: exec },
    Case { name: "cp", run: cp },
    Case { name: "attach", run: attach },
    Case { name: "port_forward", run: port_forward },
    Case { name: "a_port_forward_that_breaks_is_told", run: broken_forward },
    Case { name: "validation_and_dry_run", run: validation_and_dry_run },
    Case { name: "api_resources_and_versions", run: api_resources },
    Case { name: "create_edit_replace_delete", run: create_replace_delete },
    Case { name: "events", run: events },
];

/// What `make demo` shows, of the same file.
fn example(scope: &Scope<'_>) -> Result<()> {
    let file = include_bytes!("../../../../examples/deployment.yaml");
    scope.kubectl_stdin(&["apply", "-f", "-"], file)?;
    let status = scope.kubectl(&["rollout", "status", "deployment/example-deployment", "--timeout=90s"])?;
    ensure!(status.contains("successfully rolled out"), "{status}");
    let pods = scope.get(&["pods", "-l", "app=example"])?["items"].clone();
    let pods = pods.as_array().context("items")?;
    ensure!(pods.len() == 3, "{} Pods", pods.len());
    for pod in pods {
        let container = &pod["spec"]["containers"][0];
        ensure!(container["image"] == "nginx" && container["imagePullPolicy"] == "Always", "{container}");
        let ip = pod["status"]["podIP"].as_str().context("an address")?;
        let mut stream = std::net::TcpStream::connect((ip, 80)).with_context(|| format!("{ip}:80"))?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        ensure!(page.contains("Welcome to nginx!"), "{ip} answered {page}");
    }
    Ok(())
}

fn apply(scope: &Scope<'_>) -> Result<()> {
    let mut web = deployment("web", 1);
    ensure!(scope.apply(&web)?.contains("deployment.apps/web created"));
    ensure!(scope.apply(&web)?.contains("deployment.apps/web unchanged"));
    web["spec"]["replicas"] = 2.into();
    ensure!(scope.apply(&web)?.contains("deployment.apps/web configured"));
    scope.rolled_out("web")?;
    // A field that is no longer in the file goes, one that another writer set stays.
    scope.kubectl(&["scale", "deployment/web", "--replicas=1"])?;
    web["spec"].as_object_mut().context("spec")?.remove("replicas");
    scope.apply(&web)?;
    let replicas = scope.jsonpath(&["deployment", "web"], "{.spec.replicas}")?;
    ensure!(replicas == "1", "replicas {replicas}");
    // A list is validated by what /openapi/v2 says in protobuf.
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [map("one"), map("two")]});
    let said = scope.apply(&list)?;
    ensure!(said.contains("configmap/one created") && said.contains("configmap/two created"), "{said}");
    let shown = scope.kubectl(&["get", "configmap", "one", "two", "-o", "yaml"])?;
    let said = scope.kubectl_stdin(&["apply", "-f", "-"], shown.as_bytes())?;
    ensure!(said.contains("configmap/two"), "what get shows can be applied: {said}");
    Ok(())
}

fn get(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&deployment("web", 1))?;
    scope.rolled_out("web")?;
    let wide = scope.kubectl(&["get", "deployments,replicasets,pods", "-o", "wide"])?;
    for column in [
        "READY",
        "UP-TO-DATE",
        "AVAILABLE",
        "CONTAINERS",
        "IMAGES",
        "SELECTOR",
        "IP",
        "NODE",
        "NOMINATED NODE",
        "READINESS GATES",
        "DESIRED",
    ] {
        ensure!(wide.contains(column), "no column {column}: {wide}");
    }
    ensure!(wide.contains("1/1") && wide.contains("e2e-node") && wide.contains("app=web"), "{wide}");
    let yaml = scope.kubectl(&["get", "deployment", "web", "-o", "yaml"])?;
    ensure!(yaml.starts_with("apiVersion: apps/v1\nkind: Deployment\n"), "{yaml}");
    let json = scope.get(&["deployments"])?;
    ensure!(json["kind"] == "List" && json["items"][0]["kind"] == "Deployment", "{json}");
    let name = scope.kubectl(&["get", "deploy", "-o", "name"])?;
    ensure!(name.trim() == "deployment.apps/web", "{name}");
    let custom =
        scope.kubectl(&["get", "deploy", "-o", "custom-columns=N:.metadata.name,R:.spec.replicas"])?;
    ensure!(custom.lines().nth(1).is_some_and(|line| line.split_whitespace().eq(["web", "1"])), "{custom}");
    let path = scope.jsonpath(&["pods", "-l", "app=web"], "{.items[0].status.phase}")?;
    ensure!(path == "Running", "{path}");
    let none = scope.kubectl(&["get", "pods", "-l", "app=other"])?;
    ensure!(none.contains("No resources found"), "{none}");
    let running = scope.kubectl(&["get", "pods", "--field-selector=status.phase=Running", "-o", "name"])?;
    ensure!(running.lines().count() == 1, "{running}");
    let missing = scope.kubectl_fails(&["get", "pod", "nobody"])?;
    ensure!(missing.contains("Error from server (NotFound): pods \"nobody\" not found"), "{missing}");
    let raw = scope.kubectl(&["get", "--raw", "/version"])?;
    ensure!(raw.contains("\"minor\""), "{raw}");
    Ok(())
}

fn describe(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&deployment("web", 1))?;
    scope.rolled_out("web")?;
    let text = scope.kubectl(&["describe", "deployment", "web"])?;
    for part in [
        "StrategyType:",
        "RollingUpdate",
        "MinimumReplicasAvailable",
        "NewReplicaSetAvailable",
        "ScalingReplicaSet",
        "Scaled up replica set",
    ] {
        ensure!(text.contains(part), "{part} is not in: {text}");
    }
    let text = scope.kubectl(&["describe", "pod", "-l", "app=web"])?;
    for part in [
        "Successfully assigned",
        "Pulled",
        "Created",
        "Started",
        "Readiness:",
        "kube-api-access-",
        "QoS Class:",
    ] {
        ensure!(text.contains(part), "{part} is not in: {text}");
    }
    let node = scope.kubectl(&["describe", "node", "e2e-node"])?;
    ensure!(node.contains("Allocated resources") && node.contains("KubeletReady"), "{node}");
    Ok(())
}

fn explain(scope: &Scope<'_>) -> Result<()> {
    let text = scope.kubectl(&["explain", "deployment.spec.strategy.rollingUpdate"])?;
    for part in [
        "GROUP:      apps",
        "KIND:       Deployment",
        "FIELD: rollingUpdate <RollingUpdateDeployment>",
        "maxSurge",
        "maxUnavailable",
    ] {
        ensure!(text.contains(part), "{part} is not in: {text}");
    }
    let tree = scope.kubectl(&["explain", "pod", "--recursive"])?;
    ensure!(tree.contains("terminationGracePeriodSeconds") && tree.contains("<[]Container>"), "{tree}");
    Ok(())
}

fn diff(scope: &Scope<'_>) -> Result<()> {
    let mut map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map"}, "data": {"color": "red"}});
    scope.apply(&map)?;
    let same = scope.kubectl_stdin(&["diff", "-f", "-"], &serde_json::to_vec(&map)?)?;
    ensure!(same.is_empty(), "{same}");
    map["data"]["color"] = "blue".into();
    let error = scope
        .kubectl_stdin(&["diff", "-f", "-"], &serde_json::to_vec(&map)?)
        .err()
        .context("diff exits 1")?;
    let text = error.to_string();
    ensure!(text.contains("-  color: red") && text.contains("+  color: blue"), "{text}");
    let kept = scope.jsonpath(&["configmap", "map"], "{.data.color}")?;
    ensure!(kept == "red", "a diff changed the object");
    Ok(())
}

fn wait(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&pod("short", &[("main", "sleep 1000")]))?;
    scope.wait_ready("short")?;
    let late = scope.kubectl_fails(&["wait", "--for=condition=Failed", "pod/short", "--timeout=1s"])?;
    ensure!(late.contains("timed out waiting"), "{late}");
    let mut waiting = scope.kubectl_command();
    let mut waiting =
        waiting.args(["wait", "--for=delete", "pod/short", "--timeout=60s"]).stdout(Stdio::null()).spawn()?;
    scope.kubectl(&["delete", "pod", "short"])?;
    ensure!(waiting.wait()?.success(), "wait --for=delete");
    Ok(())
}

fn label_and_annotate(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["create", "configmap", "map", "--from-literal=a=b"])?;
    scope.kubectl(&["label", "configmap", "map", "tier=front", "stage=one"])?;
    let refused = scope.kubectl_fails(&["label", "configmap", "map", "tier=back"])?;
    ensure!(refused.contains("--overwrite is false"), "{refused}");
    scope.kubectl(&["label", "configmap", "map", "tier=back", "stage-", "--overwrite"])?;
    scope.kubectl(&["annotate", "configmap", "map", "note=some text"])?;
    let map = scope.get(&["configmap", "map"])?;
    ensure!(map["metadata"]["labels"] == json!({"tier": "back"}), "{map}");
    ensure!(map["metadata"]["annotations"]["note"] == "some text", "{map}");
    let invalid = scope.kubectl_fails(&["label", "configmap", "map", "bad=-"])?;
    ensure!(invalid.contains("must"), "{invalid}");
    let found = scope.kubectl(&["get", "configmaps", "-l", "tier in (back,front),!stage", "-o", "name"])?;
    ensure!(found.trim() == "configmap/map", "{found}");
    Ok(())
}

fn patch(scope: &Scope<'_>) -> Result<()> {
    let mut web = deployment("web", 0);
    web["spec"]["template"]["spec"]["containers"] = json!([
        {"name": "a", "image": "nginx", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "busybox"},
    ]);
    scope.apply(&web)?;
    let patch =
        |kind: &str, body: &str| scope.kubectl(&["patch", "deployment", "web", "--type", kind, "-p", body]);
    patch(
        "strategic",
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"a","env":[{"name":"Y","value":"2"}]},{"name":"b","$patch":"delete"}]}}}}"#,
    )?;
    let containers = scope.get(&["deployment", "web"])?["spec"]["template"]["spec"]["containers"].clone();
    ensure!(
        containers.as_array().map(Vec::len) == Some(1)
            && containers[0]["env"].as_array().map(Vec::len) == Some(2),
        "{containers}"
    );
    patch("merge", r#"{"spec":{"paused":true,"minReadySeconds":3}}"#)?;
    patch(
        "json",
        r#"[{"op":"test","path":"/spec/minReadySeconds","value":3},{"op":"replace","path":"/spec/replicas","value":0},{"op":"remove","path":"/spec/paused"}]"#,
    )?;
    let spec = scope.get(&["deployment", "web"])?["spec"].clone();
    ensure!(spec["paused"].is_null() && spec["minReadySeconds"] == 3, "{spec}");
    let failed = scope.kubectl_fails(&[
        "patch",
        "deployment",
        "web",
        "--type",
        "json",
        "-p",
        r#"[{"op":"test","path":"/spec/minReadySeconds","value":4}]"#,
    ])?;
    ensure!(failed.contains("the server rejected our request") || failed.contains("testing"), "{failed}");
    let status = scope.kubectl(&[
        "patch",
        "deployment",
        "web",
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status":{"collisionCount":7}}"#,
    ])?;
    ensure!(status.contains("patched"), "{status}");
    Ok(())
}

fn auth_can_i(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["create", "serviceaccount", "reader"])?;
    scope.kubectl(&["create", "role", "read-pods", "--verb=get,list", "--resource=pods"])?;
    let account = format!("system:serviceaccount:{}:reader", scope.namespace);
    scope.kubectl(&[
        "create",
        "rolebinding",
        "read",
        "--role=read-pods",
        &format!("--serviceaccount={}:reader", scope.namespace),
    ])?;
    let can = |verb: &str, what: &str| -> Result<bool> {
        let output =
            scope.kubectl_command().args(["auth", "can-i", verb, what, "--as", &account]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim() == "yes")
    };
    // A binding counts as soon as it is there.
    ensure!(can("list", "pods")?, "the binding does not work");
    ensure!(!can("delete", "pods")? && !can("get", "secrets")? && !can("create", "pods/exec")?);
    let forbidden = scope.kubectl_fails(&["delete", "pod", "x", "--as", &account])?;
    ensure!(
        forbidden.contains("cannot delete resource \"pods\" in API group \"\" in the namespace"),
        "{forbidden}"
    );
    let rules = scope.kubectl(&["auth", "can-i", "--list", "--as", &account])?;
    ensure!(rules.contains("pods") && rules.contains("[get list]"), "{rules}");
    let me = scope.kubectl(&["auth", "whoami"])?;
    ensure!(me.contains("system:masters"), "{me}");
    Ok(())
}

fn create_token(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["create", "serviceaccount", "robot"])?;
    let token = scope.kubectl(&["create", "token", "robot", "--duration=20m"])?;
    let text = whoami(scope, token.trim(), "--insecure-skip-tls-verify")?;
    ensure!(text.contains(&format!("system:serviceaccount:{}:robot", scope.namespace)), "{text}");
    Ok(())
}

/// What `kubectl auth whoami` says to the bearer of a token, with how the server is trusted.
fn whoami(scope: &Scope<'_>, token: &str, trust: &str) -> Result<String> {
    let path = "jsonpath={.clusters[0].cluster.server}";
    let server = scope.cluster.kubectl(&["config", "view", "--raw", "-o", path])?;
    let mut whoami = scope.kubectl_command();
    // The client certificate in the kubeconfig would win over a token: give an empty one.
    whoami.args(["--kubeconfig=/dev/null", "--server", &server, trust, "--token", token, "auth", "whoami"]);
    let output = whoami.output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

fn token_secrets(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["create", "serviceaccount", "robot"])?;
    let secret = |name: &str, account: &str| {
        scope.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": account}},
        }))
    };
    secret("kept", "robot")?;
    secret("other", "robot")?;
    let token_of = |name: &str| -> Result<String> {
        let object = scope.watch_until(&["secret", name], |secret| secret["data"]["token"].is_string())?;
        ensure!(
            object["metadata"]["annotations"]["kubernetes.io/service-account.uid"].is_string(),
            "{object}"
        );
        scope.kubectl(&["get", "secret", name, "-o", "go-template={{.data.token | base64decode}}"])
    };
    let (kept, other) = (token_of("kept")?, token_of("other")?);
    let text = |key: &str| {
        scope.kubectl(&[
            "get",
            "secret",
            "kept",
            "-o",
            &format!("go-template={{{{index .data {key:?} | base64decode}}}}"),
        ])
    };
    ensure!(text("namespace")? == scope.namespace, "{}", text("namespace")?);
    let authority = scope.cluster.scratch().join("token-ca.crt");
    std::fs::write(&authority, text("ca.crt")?)?;
    let trust = format!("--certificate-authority={}", authority.display());
    let named = format!("system:serviceaccount:{}:robot", scope.namespace);
    for token in [&kept, &other] {
        let said = whoami(scope, token, &trust)?;
        ensure!(said.contains(&named), "{said}");
    }
    // A token ends with its Secret, and all of them with their account.
    scope.kubectl(&["delete", "secret", "other"])?;
    let said = whoami(scope, &other, &trust)?;
    ensure!(said.contains("Unauthorized") || said.contains("must be logged in"), "{said}");
    scope.kubectl(&["delete", "serviceaccount", "robot"])?;
    scope.kubectl(&["wait", "--for=delete", "secret/kept", "--timeout=30s"])?;
    secret("stray", "nobody")?;
    scope.kubectl(&["wait", "--for=delete", "secret/stray", "--timeout=30s"]).map(drop)
}

fn logs(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&pod("talker", &[
        ("main", "for n in 1 2 3 4 5; do echo line $n; done; echo oops >&2; while [ ! -f /tmp/go ]; do sleep 0.1; done; echo last; sleep 1000"),
        ("side", "echo from the side; sleep 1000"),
    ]))?;
    scope.wait_ready("talker")?;
    let all = scope.kubectl(&["logs", "talker", "-c", "main"])?;
    ensure!(all.contains("line 1\nline 2\nline 3\nline 4\nline 5\n") && all.contains("oops"), "{all}");
    let tail = scope.kubectl(&["logs", "talker", "-c", "main", "--tail=2"])?;
    ensure!(tail.lines().count() == 2, "{tail}");
    let stamped = scope.kubectl(&["logs", "talker", "-c", "main", "--timestamps", "--tail=1"])?;
    ensure!(
        stamped.contains('T') && stamped.split(' ').next().is_some_and(|time| time.ends_with('Z')),
        "{stamped}"
    );
    let recent = scope.kubectl(&["logs", "talker", "-c", "main", "--since=1h"])?;
    ensure!(recent.contains("line 5"), "{recent}");
    let both = scope.kubectl(&["logs", "talker", "--all-containers", "--prefix"])?;
    ensure!(
        both.contains("[pod/talker/side] from the side") && both.contains("[pod/talker/main] line 1"),
        "{both}"
    );
    let limited = scope.kubectl(&["logs", "talker", "-c", "main", "--limit-bytes=6"])?;
    ensure!(limited.starts_with("line 1") && limited.trim().len() == 6, "{limited:?}");
    // Follow: what comes after the request arrives.
    let mut follow = scope.kubectl_command();
    let mut follow =
        follow.args(["logs", "-f", "talker", "-c", "main", "--tail=1"]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(follow.stdout.take().context("piped")?).lines();
    lines.next().context("one old line")??;
    scope.kubectl(&["exec", "talker", "-c", "main", "--", "touch", "/tmp/go"])?;
    let last = lines.next().context("a new line")??;
    follow.kill()?;
    follow.wait()?;
    ensure!(last == "last", "{last}");
    let wrong = scope.kubectl_fails(&["logs", "talker", "-c", "nobody"])?;
    ensure!(wrong.contains("container nobody is not valid for pod talker"), "{wrong}");
    // Previous: the log of the run before.
    scope.apply(&pod("again", &[("main", "echo run $(cat /proc/sys/kernel/random/uuid); [ -f /x/ran ] && sleep 1000; touch /x/ran; exit 3")]).as_object().map(|object| {
        let mut object = serde_json::Value::Object(object.clone());
        object["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "x", "mountPath": "/x"}]);
        object["spec"]["volumes"] = json!([{"name": "x", "emptyDir": {}}]);
        object
    }).context("a Pod")?)?;
    scope.wait_for("pod/again", "{.status.containerStatuses[0].restartCount}=1")?;
    let previous = scope.kubectl(&["logs", "again", "--previous"])?;
    let current = scope.kubectl(&["logs", "again"])?;
    ensure!(
        previous.starts_with("run ") && current.starts_with("run ") && previous != current,
        "{previous} {current}"
    );
    Ok(())
}

fn exec(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&pod("box", &[("main", "sleep 1000")]))?;
    scope.wait_ready("box")?;
    ensure!(scope.exec("box", &["echo", "hello"])?.trim() == "hello");
    let output = scope
        .kubectl_command()
        .args(["exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 42"])
        .output()?;
    ensure!(output.status.code() == Some(42), "exit code {:?}", output.status);
    ensure!(String::from_utf8_lossy(&output.stdout) == "out\n");
    ensure!(
        String::from_utf8_lossy(&output.stderr).contains("err\n")
            && String::from_utf8_lossy(&output.stderr).contains("exit code 42")
    );
    // Over WebSocket: SPDY, which kubectl falls back to, begins with a POST.
    let traced = scope.kubectl_command().args(["exec", "-v=7", "box", "--", "echo", "traced"]).output()?;
    let trace = String::from_utf8_lossy(&traced.stderr).into_owned();
    ensure!(String::from_utf8_lossy(&traced.stdout) == "traced\n", "{trace}");
    ensure!(trace.contains("101") && !trace.contains("POST") && !trace.contains("fallback"), "{trace}");
    let piped = scope.kubectl_stdin(&["exec", "-i", "box", "--", "tr", "a-z", "A-Z"], b"through a pipe")?;
    ensure!(piped == "THROUGH A PIPE", "{piped}");
    let big = vec![b'x'; 3_000_000];
    let counted = scope.kubectl_stdin(&["exec", "-i", "box", "--", "wc", "-c"], &big)?;
    ensure!(counted.trim() == "3000000", "{counted}");
    let flood = scope.exec("box", &["head", "-c", "2000000", "/dev/zero"])?;
    ensure!(flood.len() == 2_000_000, "{}", flood.len());
    // With a terminal here and there.
    let kubectl = scope.kubectl_command();
    let words = std::iter::once(kubectl.get_program()).chain(kubectl.get_args());
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let words = format!("{} exec -it box -- tty", words.join(" "));
    let output = std::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &words, "/dev/null"])
        .stdin(Stdio::null())
        .output()?;
    let tty = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && tty.contains("/dev/pts/"), "{tty}");
    let missing = scope.kubectl_fails(&["exec", "box", "--", "no-such-command"])?;
    ensure!(missing.contains("executable file not found"), "{missing}");
    Ok(())
}

fn cp(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&pod("box", &[("main", "sleep 1000")]))?;
    scope.wait_ready("box")?;
    let here = scope.cluster.scratch().join("cp-there");
    let back = scope.cluster.scratch().join("cp-back");
    std::fs::write(&here, b"some content")?;
    scope.kubectl(&["cp", &here.to_string_lossy(), "box:/tmp/file"])?;
    ensure!(scope.exec("box", &["cat", "/tmp/file"])? == "some content");
    scope.kubectl(&["cp", "box:/tmp/file", &back.to_string_lossy()])?;
    ensure!(std::fs::read(&back)? == b"some content");
    // A directory, its empty and odd files, and more than fits any buffer.
    let (tree, returned) =
        (scope.cluster.scratch().join("cp-tree"), scope.cluster.scratch().join("cp-returned"));
    let large: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::create_dir_all(tree.join("deep/er"))?;
    std::fs::write(tree.join("deep/er/large"), &large)?;
    std::fs::write(tree.join("deep/a name with spaces"), b"")?;
    scope.kubectl(&["cp", &tree.to_string_lossy(), "box:/tmp/tree"])?;
    let listed =
        scope.exec("box", &["sh", "-c", "cd /tmp/tree; find . -type f | sort; wc -c < deep/er/large"])?;
    ensure!(listed == "./deep/a name with spaces\n./deep/er/large\n20000000\n", "{listed}");
    scope.kubectl(&["cp", "box:/tmp/tree", &returned.to_string_lossy()])?;
    ensure!(std::fs::read(returned.join("deep/er/large"))? == large, "it comes back as it went");
    ensure!(std::fs::read(returned.join("deep/a name with spaces"))?.is_empty());
    Ok(())
}

fn attach(scope: &Scope<'_>) -> Result<()> {
    let mut echo = pod("echo", &[("main", "while read line; do echo got $line; done")]);
    echo["spec"]["containers"][0]["stdin"] = true.into();
    scope.apply(&echo)?;
    scope.wait_ready("echo")?;
    let mut child = scope.kubectl_command();
    let mut child = child
        .args(["attach", "-i", "echo"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdin = child.stdin.take().context("piped")?;
    stdin.write_all(b"one\n")?;
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    let answer =
        lines.find_map(|line| line.ok().filter(|line| line.starts_with("got"))).context("an answer")?;
    child.kill()?;
    child.wait()?;
    ensure!(answer == "got one", "{answer}");
    Ok(())
}

fn port_forward(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&deployment("web", 1))?;
    scope.rolled_out("web")?;
    let mut child = scope.kubectl_command();
    let mut child = child.args(["port-forward", "deployment/web", ":80"]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    let line = lines.next().context("a line")??;
    let port: u16 =
        line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).context("a port")?.parse()?;
    let mut pages = Vec::new();
    for _ in 0..3 {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        pages.push(page);
    }
    child.kill()?;
    child.wait()?;
    ensure!(pages.iter().all(|page| page.contains("Welcome to nginx!")), "{pages:?}");
    Ok(())
}

/// The server ends with unread bytes, which resets its connection.
fn broken_forward(scope: &Scope<'_>) -> Result<()> {
    started(
        scope,
        &pod("rude", &[("main", "while true; do nc -l -p 8080 -e sh -c 'echo part; sleep 1'; done")]),
    )?;
    let listens = "until grep -q ':1F90 .* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done";
    scope.exec("rude", &["sh", "-c", listens])?;
    let mut child = scope.kubectl_command();
    let child =
        child.args(["port-forward", "pod/rude", ":8080"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    let line = lines.next().context("a line")??;
    let port: u16 =
        line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).context("a port")?.parse()?;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
    stream.write_all(b"nobody reads this")?;
    let told = (|| {
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        ensure!(answer == "part\n", "{answer}");
        let mut errors = BufReader::new(child.stderr.take().context("piped")?).lines();
        let told = errors.next().context("an error")??;
        ensure!(told.to_ascii_lowercase().contains("an error occurred forwarding"), "{told}");
        ensure!(
            told.contains("error forwarding port 8080 to pod") && told.contains("reset by peer"),
            "{told}"
        );
        Ok(())
    })();
    child.kill()?;
    child.wait()?;
    told
}

fn validation_and_dry_run(scope: &Scope<'_>) -> Result<()> {
    let mut web = deployment("web", 1);
    web["spec"]["replcas"] = 3.into();
    let error = scope.apply(&web).err().context("an unknown field is refused")?.to_string();
    ensure!(error.contains("unknown field \"spec.replcas\""), "{error}");
    web["spec"].as_object_mut().context("spec")?.remove("replcas");
    web["spec"]["selector"]["matchLabels"]["app"] = "other".into();
    let error =
        scope.apply(&web).err().context("a selector that misses the template is refused")?.to_string();
    ensure!(error.contains("`selector` does not match template `labels`"), "{error}");
    let dry = scope.kubectl_stdin(
        &["apply", "--dry-run=server", "-f", "-"],
        &serde_json::to_vec(&deployment("dry", 1))?,
    )?;
    ensure!(dry.contains("created (server dry run)"), "{dry}");
    ensure!(scope.kubectl_fails(&["get", "deployment", "dry"])?.contains("NotFound"));
    Ok(())
}

fn api_resources(scope: &Scope<'_>) -> Result<()> {
    const KINDS: [&str; 20] = [
        "namespaces",
        "nodes",
        "pods",
        "events",
        "events.events.k8s.io",
        "configmaps",
        "secrets",
        "serviceaccounts",
        "services",
        "endpoints",
        "endpointslices.discovery.k8s.io",
        "leases.coordination.k8s.io",
        "deployments.apps",
        "replicasets.apps",
        "controllerrevisions.apps",
        "priorityclasses.scheduling.k8s.io",
        "roles.rbac.authorization.k8s.io",
        "rolebindings.rbac.authorization.k8s.io",
        "clusterroles.rbac.authorization.k8s.io",
        "clusterrolebindings.rbac.authorization.k8s.io",
    ];
    let resources = scope.kubectl(&["api-resources", "-o", "name"])?;
    for kind in KINDS {
        ensure!(resources.lines().any(|line| line == kind), "{kind} is not in: {resources}");
        scope.kubectl(&["get", kind, "--all-namespaces"])?;
    }
    let versions = scope.kubectl(&["api-versions"])?;
    ensure!(versions.contains("apps/v1\n") && versions.lines().any(|line| line == "v1"), "{versions}");
    let version = scope.kubectl(&["version"])?;
    ensure!(version.contains("Server Version: v1.36"), "{version}");
    Ok(())
}

fn create_replace_delete(scope: &Scope<'_>) -> Result<()> {
    scope.kubectl(&["create", "secret", "generic", "key", "--from-literal=password=hunter2"])?;
    let again = scope.kubectl_fails(&["create", "secret", "generic", "key"])?;
    ensure!(again.contains("already exists"), "{again}");
    let mut secret = scope.get(&["secret", "key"])?;
    ensure!(secret["data"]["password"] == "aHVudGVyMg==", "{secret}");
    let stale = secret.clone();
    secret["stringData"] = json!({"password": "new"});
    scope.kubectl_stdin(&["replace", "-f", "-"], &serde_json::to_vec(&secret)?)?;
    let conflict = scope
        .kubectl_stdin(&["replace", "-f", "-"], &serde_json::to_vec(&stale)?)
        .err()
        .context("stale")?
        .to_string();
    ensure!(conflict.contains("the object has been modified"), "{conflict}");
    ensure!(scope.jsonpath(&["secret", "key"], "{.data.password}")? == "bmV3");
    scope.kubectl(&["delete", "secret", "key"])?;
    scope.kubectl(&["create", "configmap", "a"])?;
    scope.kubectl(&["create", "configmap", "b"])?;
    scope.kubectl(&["delete", "configmaps", "--all"])?;
    let left = scope.kubectl(&["get", "configmaps", "-o", "name"])?;
    ensure!(!left.contains("configmap/a"), "{left}");
    Ok(())
}

fn events(scope: &Scope<'_>) -> Result<()> {
    scope.apply(&pod("box", &[("main", "sleep 1000")]))?;
    scope.wait_ready("box")?;
    let reasons = ["Scheduled", "Pulled", "Created", "Started"];
    for reason in reasons {
        scope.event("box", reason, "")?;
    }
    let text = scope.kubectl(&["events", "--for", "pod/box"])?;
    ensure!(text.contains("Normal") && reasons.iter().all(|reason| text.contains(reason)), "{text}");
    let table = scope.kubectl(&["get", "events"])?;
    ensure!(table.contains("LAST SEEN") && table.contains("pod/box"), "{table}");
    Ok(())
}
