//! Quotas, limits and Pod security over HTTP.

use crate::harness::{PODS, Recorder, Server, config_map, pod, start_assembled, start_assembled_with};
use futures_util::future::join_all;
use serde_json::{Value, json};
use skeg_apiserver::admission::Plugins;
use skeg_store::Memory;
use std::sync::Arc;

const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";

async fn start() -> Server {
    ready(start_assembled(Arc::new(Memory::new())).await).await
}

async fn ready(server: Server) -> Server {
    let account = json!({"metadata": {"name": "default"}});
    server.post("/api/v1/namespaces/default/serviceaccounts", &account).await.expect(201);
    server
}

/// A quota as its controller leaves it.
async fn quota(server: &Server, name: &str, hard: Value, more: Value) {
    let mut spec = more;
    spec["hard"] = hard.clone();
    let mut made = server.post(QUOTAS, &json!({"metadata": {"name": name}, "spec": spec})).await.expect(201);
    let zeros = hard.as_object().unwrap().keys().map(|key| (key.clone(), json!("0"))).collect::<Value>();
    made["status"] = json!({"hard": hard, "used": zeros});
    server.put(&format!("{QUOTAS}/{name}/status"), &made).await.expect(200);
}

async fn used(server: &Server, name: &str) -> Value {
    server.get(&format!("{QUOTAS}/{name}")).await.expect(200)["status"]["used"].clone()
}

fn asking(name: &str, resources: Value) -> Value {
    let mut pod = pod(name);
    pod["spec"]["containers"][0]["resources"] = resources;
    pod
}

#[tokio::test]
async fn quotas_charge_and_refuse() {
    let server = start().await;
    quota(&server, "q", json!({"pods": "2", "requests.cpu": "1", "count/configmaps": "1"}), json!({})).await;
    let half = json!({"requests": {"cpu": "600m"}});
    let refused = server.post(PODS, &pod("a")).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"a\" is forbidden: failed quota: q: must specify requests.cpu for: c"
    );
    server
        .send(
            "POST",
            &format!("{PODS}?dryRun=All"),
            &[("content-type", "application/json")],
            asking("a", half.clone()).to_string(),
        )
        .await
        .expect(201);
    assert_eq!(used(&server, "q").await["pods"], "0", "a dry run is not charged");
    server.post(PODS, &asking("a", half.clone())).await.expect(201);
    assert_eq!(
        used(&server, "q").await,
        json!({"pods": "1", "requests.cpu": "600m", "count/configmaps": "0"})
    );
    let refused = server.post(PODS, &asking("b", half)).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"b\" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1"
    );
    let maps = "/api/v1/namespaces/default/configmaps";
    server.post(maps, &config_map("a", json!({}))).await.expect(201);
    let refused = server.post(maps, &config_map("b", json!({}))).await.expect(403);
    assert_eq!(
        refused["message"],
        "configmaps \"b\" is forbidden: exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=1, \
         limited: count/configmaps=1"
    );
    let unknown = json!({"metadata": {"name": "new"}, "spec": {"hard": {"secrets": "5"}}});
    let mut unknown = server.post(QUOTAS, &unknown).await.expect(201);
    unknown["status"] = json!({"hard": {"secrets": "5"}});
    server.put(&format!("{QUOTAS}/new/status"), &unknown).await.expect(200);
    let refused = server
        .post("/api/v1/namespaces/default/secrets", &json!({"metadata": {"name": "s"}}))
        .await
        .expect(403);
    assert_eq!(
        refused["message"],
        "secrets \"s\" is forbidden: status unknown for quota: new, resources: secrets"
    );
}

#[tokio::test]
async fn no_two_get_the_last_place_and_failures_give_theirs_back() {
    let server = start().await;
    quota(&server, "a", json!({"count/configmaps": "5"}), json!({})).await;
    quota(&server, "b", json!({"configmaps": "50"}), json!({})).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let names: Vec<String> = (0..20).map(|n| format!("m{n}")).collect();
    let made = join_all(
        names.iter().map(|name| async { server.post(maps, &config_map(name, json!({}))).await.code == 201 }),
    )
    .await;
    assert_eq!(made.iter().filter(|made| **made).count(), 5);
    assert_eq!(
        (used(&server, "a").await, used(&server, "b").await),
        (json!({"count/configmaps": "5"}), json!({"configmaps": "5"}))
    );
    let mut watch =
        server.watch(&format!("{QUOTAS}?watch=true&fieldSelector=metadata.name%3Db&resourceVersion=0")).await;
    // What exists already is charged, found to exist, and given back.
    let there = names.iter().zip(&made).find(|(_, made)| **made).unwrap().0;
    let raised = json!({"status": {"hard": {"count/configmaps": "9"}}});
    server.patch(&format!("{QUOTAS}/a/status"), "merge-patch+json", &raised).await.expect(200);
    server.post(maps, &config_map(there, json!({}))).await.expect(409);
    let mut seen = Vec::new();
    while seen.last() != Some(&json!("5")) || seen.len() < 3 {
        seen.push(watch.next().await.unwrap()["object"]["status"]["used"]["configmaps"].clone());
    }
    assert_eq!(seen, ["5", "6", "5"]);
}

#[tokio::test]
async fn services_are_charged_for_what_an_update_adds() {
    let server = start().await;
    quota(&server, "q", json!({"services": "1", "services.nodeports": "1"}), json!({})).await;
    let services = "/api/v1/namespaces/default/services";
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "a", "port": 80}]}});
    let mut made = server.post(services, &service).await.expect(201);
    made["spec"]["type"] = "NodePort".into();
    let mut made = server.put(&format!("{services}/s"), &made).await.expect(200);
    assert_eq!(used(&server, "q").await, json!({"services": "1", "services.nodeports": "1"}));
    made["spec"]["ports"] = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
    let refused = server.put(&format!("{services}/s"), &made).await.expect(403);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("exceeded quota: q, requested: services.nodeports=1, used: services.nodeports=1")
    );
}

#[tokio::test]
async fn scopes_select_what_a_quota_counts() {
    let server = start().await;
    quota(&server, "best", json!({"pods": "1"}), json!({"scopes": ["BestEffort"]})).await;
    quota(&server, "not", json!({"pods": "1"}), json!({"scopes": ["NotBestEffort"]})).await;
    server.post(PODS, &pod("a")).await.expect(201);
    assert_eq!(
        (used(&server, "best").await, used(&server, "not").await),
        (json!({"pods": "1"}), json!({"pods": "0"}))
    );
    server.post(PODS, &pod("b")).await.expect(403);
    server.post(PODS, &asking("b", json!({"requests": {"cpu": "1m"}}))).await.expect(201);
}

#[tokio::test]
async fn limits_of_a_namespace_reach_its_pods() {
    let server = start().await;
    let limits = json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}, "default": {"cpu": "200m"}}]}});
    let made = server.post("/api/v1/namespaces/default/limitranges", &limits).await;
    assert_eq!(made.warnings(), Vec::<String>::new());
    made.expect(201);
    let made = server.post(PODS, &pod("a")).await.expect(201);
    let resources = &made["spec"]["containers"][0]["resources"];
    assert_eq!(resources, &json!({"limits": {"cpu": "200m"}, "requests": {"cpu": "200m"}}));
    let refused = server.post(PODS, &asking("b", json!({"limits": {"cpu": "2"}}))).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"b\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"
    );
}

#[tokio::test]
async fn namespaces_hold_pods_to_a_standard() {
    let server = start().await;
    let label = |level: &str, mode: &str| json!({"metadata": {"labels": {format!("pod-security.kubernetes.io/{mode}"): level}}});
    let namespace = "/api/v1/namespaces/default";
    let mut host = pod("host");
    host["spec"]["hostPID"] = true.into();
    server.post(PODS, &host).await.expect(201);
    let labelled = server.patch(namespace, "merge-patch+json", &label("baseline", "enforce")).await;
    assert_eq!(
        labelled.warnings(),
        [
            "299 - \"existing pods in namespace \\\"default\\\" violate the new PodSecurity enforce level \\\"baseline:latest\\\"\"",
            "299 - \"host: host namespaces\""
        ]
    );
    labelled.expect(200);
    host["metadata"]["name"] = "more".into();
    let refused = server.post(PODS, &host).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"more\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostPID)"
    );
    server.patch(namespace, "merge-patch+json", &label("restricted", "warn")).await.expect(200);
    let warned = server.post(PODS, &pod("plain")).await;
    assert_eq!(warned.warnings().len(), 1);
    assert!(
        warned.warnings()[0].contains(
            "would violate PodSecurity \\\"restricted:latest\\\": allowPrivilegeEscalation != false"
        )
    );
    assert!(warned.warnings()[0].ends_with("\\\"Localhost\\\")\""), "{:?}", warned.warnings());
    warned.expect(201);
    let workload = server.post(crate::harness::DEPLOYMENTS, &crate::harness::deployment("d")).await;
    assert!(workload.warnings()[0].contains("would violate PodSecurity"));
    workload.expect(201);
    let wrong = server.patch(namespace, "merge-patch+json", &label("strict", "audit")).await.expect(422);
    assert_eq!(
        wrong["message"],
        "Namespace \"default\" is invalid: metadata.labels[pod-security.kubernetes.io/audit]: Invalid value: \"strict\": must be one of privileged, baseline, restricted"
    );
}

#[tokio::test]
async fn a_cluster_has_defaults_and_exemptions_of_pod_security() {
    let pod_security = json!({"defaults": {"enforce": "baseline", "audit": "baseline", "warn": "restricted"},
        "exemptions": {"usernames": ["tester"], "runtimeClasses": ["kata"], "namespaces": ["kube-system"]}});
    let plugins =
        Plugins { pod_security: serde_json::from_value(pod_security).unwrap(), ..Plugins::default() };
    let server = ready(start_assembled_with(Arc::new(Memory::new()), plugins).await).await;
    let recorder = Recorder::default();
    let _kept = tracing::subscriber::set_default(recorder.clone());
    let class = json!({"metadata": {"name": "kata"}, "handler": "kata"});
    server.post("/apis/node.k8s.io/v1/runtimeclasses", &class).await.expect(201);
    let bind = json!({"metadata": {"name": "all"}, "subjects": [{"kind": "User", "name": "other", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": "rbac.authorization.k8s.io"}});
    server.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &bind).await.expect(201);
    let host = |name: &str| {
        let mut host = pod(name);
        host["spec"]["hostPID"] = true.into();
        host
    };
    let on_record = |entries: &[(&str, &str)]| {
        let told = recorder.take();
        let told = told
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("pod-security.kubernetes.io/")?, &**value)));
        assert_eq!(told.collect::<Vec<_>>(), entries);
    };
    // Whoever is exempt is neither refused nor warned, and that is put on record.
    recorder.take();
    let exempt = server.post(PODS, &host("user")).await;
    assert_eq!(exempt.warnings(), Vec::<String>::new());
    exempt.expect(201);
    on_record(&[("exempt", "user")]);
    let other = server.as_user("other");
    let account = json!({"metadata": {"name": "default"}});
    server.post("/api/v1/namespaces/kube-system/serviceaccounts", &account).await.expect(201);
    other.post("/api/v1/namespaces/kube-system/pods", &host("namespace")).await.expect(201);
    on_record(&[("exempt", "namespace")]);
    let mut kata = host("class");
    kata["spec"]["runtimeClassName"] = "kata".into();
    other.post(PODS, &kata).await.expect(201);
    on_record(&[("exempt", "runtimeClass")]);
    // Whoever is not, is held to the defaults.
    let refused = other.post(PODS, &host("host")).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"host\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostPID)"
    );
    let violations = "would violate PodSecurity \"baseline:latest\": host namespaces (hostPID)";
    on_record(&[("enforce-policy", "baseline:latest"), ("audit-violations", violations)]);
    let warned = other.post(PODS, &pod("plain")).await;
    assert!(warned.warnings()[0].contains("would violate PodSecurity \\\"restricted:latest\\\""));
    warned.expect(201);
    on_record(&[("enforce-policy", "baseline:latest")]);
    // What is not evaluated is held to nothing: what does not bear on security, and what makes Pods.
    let patch = json!({"metadata": {"labels": {"a": "b"}}});
    other.patch(&format!("{PODS}/plain"), "merge-patch+json", &patch).await.expect(200);
    other.post(crate::harness::DEPLOYMENTS, &crate::harness::deployment("d")).await.expect(201);
    on_record(&[]);
    // Labels go over the defaults.
    let labels = json!({"pod-security.kubernetes.io/enforce": "privileged", "pod-security.kubernetes.io/warn": "baseline"});
    let patch = json!({"metadata": {"labels": labels}});
    server.patch("/api/v1/namespaces/default", "merge-patch+json", &patch).await.expect(200);
    let let_in = other.post(PODS, &host("host")).await;
    assert!(let_in.warnings()[0].contains("would violate PodSecurity \\\"baseline:latest\\\""));
    let_in.expect(201);
    on_record(&[("enforce-policy", "privileged:latest"), ("audit-violations", violations)]);
    // A namespace that asks for nothing is told of as upstream does, whatever version it names.
    let all: serde_json::Map<String, Value> = ["enforce", "audit", "warn"]
        .iter()
        .map(|mode| (format!("pod-security.kubernetes.io/{mode}"), "privileged".into()))
        .chain([("pod-security.kubernetes.io/enforce-version".to_owned(), "v1.30".into())])
        .collect();
    let free = json!({"metadata": {"name": "free", "labels": all}});
    server.post("/api/v1/namespaces", &free).await.expect(201);
    server.post("/api/v1/namespaces/free/serviceaccounts", &account).await.expect(201);
    other.post("/api/v1/namespaces/free/pods", &pod("plain")).await.expect(201);
    on_record(&[("enforce-policy", "privileged:latest")]);
    // Back to a stricter one: whose class is exempt is not told of, an exempt namespace is told of alone.
    let patch = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    let labelled = server.patch("/api/v1/namespaces/default", "merge-patch+json", &patch).await;
    assert_eq!(labelled.warnings()[1..], ["299 - \"host (and 1 other pod): host namespaces\""]);
    let patch = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let ignored = server.patch("/api/v1/namespaces/kube-system", "merge-patch+json", &patch).await;
    assert_eq!(
        ignored.warnings(),
        [
            "299 - \"namespace \\\"kube-system\\\" is exempt from Pod Security, and the policy (enforce=restricted:latest) will be ignored\""
        ]
    );
}

#[tokio::test]
async fn access_of_administrators_to_devices_is_for_namespaces_that_say_so() {
    let server = start().await;
    let path = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";
    let request = json!({"name": "gpu", "exactly": {"deviceClassName": "gpu", "adminAccess": true}});
    let claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "c"},
        "spec": {"devices": {"requests": [request]}}});
    let refused = server.post(path, &claim).await.expect(422);
    assert_eq!(
        refused["message"],
        "ResourceClaim.resource.k8s.io \"c\" is invalid: spec.devices.requests[0].adminAccess: Forbidden: admin access to \
         devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace"
    );
    let mut namespace = server.get("/api/v1/namespaces/default").await.expect(200);
    namespace["metadata"]["labels"]["resource.kubernetes.io/admin-access"] = "true".into();
    server.put("/api/v1/namespaces/default", &namespace).await.expect(200);
    server.post(path, &claim).await.expect(201);
}
