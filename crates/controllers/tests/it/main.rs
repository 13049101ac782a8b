//! The controllers together, on virtual time in one thread, against a small API server.

#![allow(clippy::unwrap_used, reason = "helpers outside of test functions are test code too")]

mod allocations;
mod certificates;
mod fake_api;

use fake_api::{FakeApi, Fault, State, renew_lease, run_node, time};
use http::Method;
use serde_json::{Value, json};
use skeg_api::schema::Schema;
use skeg_api::{Gvk, Kind, Kinds};
use skeg_base::{Clock, Random};
use skeg_client::{Client, Informers};
use skeg_controllers::{Config, ControllerContext, Controllers};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

struct Cluster {
    api: FakeApi,
    cancel: CancellationToken,
    controllers: Controllers,
    kinds: Arc<Kinds>,
}

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const WEB: &str = "/apis/apps/v1/namespaces/default/deployments/web";

impl Cluster {
    async fn start() -> Self {
        let clock = Clock::simulated(time("2026-01-01T00:00:00Z"));
        let api = FakeApi::new(clock);
        let cancel = CancellationToken::new();
        let client = Client::new(api.clone());
        let kinds = Arc::<Kinds>::default();
        let clients = client.clone();
        let ctx = ControllerContext {
            clients: Arc::new(move |component: &str| clients.named(component)),
            informers: Informers::new(client, Random::seeded(1), cancel.clone()),
            clock,
            random: Random::seeded(2),
            config: Config {
                root_ca: Some("PEM".into()),
                signer: Some(certificates::signer()),
                ..Config::default()
            },
            kinds: kinds.clone(),
            cancel: cancel.clone(),
        };
        let controllers = skeg_controllers::start(&ctx);
        api.send(Method::POST, "/api/v1/namespaces", json!({"metadata": {"name": "default"}}));
        api.send(Method::POST, "/api/v1/namespaces", json!({"metadata": {"name": "kube-node-lease"}}));
        Cluster { api, cancel, controllers, kinds }
    }

    /// A node whose Pods start if their image does not say otherwise; until it is aborted.
    fn node(&self, name: &'static str) -> AbortHandle {
        let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady"});
        self.api.send(
            Method::POST,
            "/api/v1/nodes",
            json!({"metadata": {"name": name}, "spec": {}, "status": {"conditions": [ready]}}),
        );
        tokio::spawn(renew_lease(self.api.clone(), name));
        tokio::spawn(run_node(self.api.clone(), name, |image| image != "broken")).abort_handle()
    }

    /// Sends a request of the user, which no fault meets.
    fn user(&self, method: Method, path: &str, body: Value) {
        let fault = self.api.state().fault.take();
        self.api.send(method, path, body);
        self.api.state().fault = fault;
    }

    /// No one writes any more, for a time in which every timer of the controllers goes off.
    async fn settled(&self) {
        let mut before = usize::MAX;
        for _ in 0..100 {
            if before == self.api.state().writes.len() {
                return;
            }
            before = self.api.state().writes.len();
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        panic!("still writing: {:#?}", self.api.state().writes.iter().rev().take(20).collect::<Vec<_>>());
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.controllers.join().await;
    }
}

fn deployment(replicas: i32, image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}})
}

fn number(value: &Value, path: &str) -> i64 {
    value.pointer(path).and_then(Value::as_i64).unwrap_or(0)
}

fn is_rolled_out(state: &State, replicas: i64) -> bool {
    state.get("deployments", "default", "web").is_some_and(|web| {
        number(web, "/status/observedGeneration") == number(web, "/metadata/generation")
            && number(web, "/status/updatedReplicas") == replicas
            && number(web, "/status/replicas") == replicas
            && number(web, "/status/availableReplicas") == replicas
    })
}

fn scaling_events(state: &State) -> Vec<String> {
    let mut events: Vec<(u64, String)> = state
        .list("events")
        .into_iter()
        .filter(|event| event["reason"] == "ScalingReplicaSet")
        .map(|event| {
            (
                event["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap(),
                event["message"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    events.sort();
    events.into_iter().map(|(_, message)| message).collect()
}

/// Fails the test as soon as a rollout of `replicas` leaves its limits.
fn check_limits(api: &FakeApi, replicas: i64, surge: i64, unavailable: i64) {
    api.state().check = Some(Box::new(move |state| {
        let sets = state.list("replicasets");
        let total: i64 = sets.iter().map(|set| number(set, "/spec/replicas")).sum();
        ensure(total <= replicas + surge, || format!("{total} Pods wanted"))?;
        let is_ready = |pod: &&&Value| {
            pod["status"]["conditions"][0]["status"] == "True"
                && pod["metadata"].get("deletionTimestamp").is_none()
        };
        let pods = state.list("pods");
        let ready = pods.iter().filter(is_ready).count() as i64;
        ensure(ready >= replicas - unavailable, || format!("{ready} Pods ready"))?;
        let active =
            pods.iter().filter(|pod| pod["metadata"].get("deletionTimestamp").is_none()).count() as i64;
        // A set that was told to shrink may not have done so when another grows.
        ensure(active <= replicas + 2 * surge, || format!("{active} Pods"))
    }));
}

fn ensure(holds: bool, found: impl Fn() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(found()) }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_rolls_out_updates_and_settles() {
    let cluster = Cluster::start().await;
    cluster.node("n1");
    cluster.api.send(Method::POST, DEPLOYMENTS, deployment(10, "v1"));
    cluster.api.wait("10 available", |state| is_rolled_out(state, 10)).await;
    cluster.settled().await;
    {
        {
            let state = cluster.api.state();
            assert_eq!(state.list("pods").len(), 10);
            let per_pod = state
                .writes
                .iter()
                .filter(|write| {
                    write.contains("/pods") || write.contains("replicasets") || write.contains("deployments")
                })
                .count();
            assert!(per_pod <= 8 * 10, "{per_pod} writes: {:#?}", state.writes);
        }
        check_limits(&cluster.api, 10, 3, 2);
        cluster.api.send(
            Method::PATCH,
            WEB,
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}}),
        );
        cluster.api.wait("updated", |state| is_rolled_out(state, 10)).await;
        cluster.settled().await;
        let state = cluster.api.state();
        assert_eq!(state.list("pods").len(), 10);
        assert!(state.list("pods").iter().all(|pod| pod["spec"]["containers"][0]["image"] == "v2"));
        let web = state.get("deployments", "default", "web").unwrap();
        assert_eq!(web["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "2");
        let conditions = web["status"]["conditions"].as_array().unwrap();
        let reasons: Vec<_> =
            conditions.iter().map(|condition| condition["reason"].as_str().unwrap()).collect();
        assert_eq!(reasons, ["MinimumReplicasAvailable", "NewReplicaSetAvailable"]);
        let events = scaling_events(&state);
        assert!(
            events[0].starts_with("Scaled up replica set web-") && events[0].ends_with(" from 0 to 10"),
            "{events:?}"
        );
        for (reason, message) in
            [("SuccessfulCreate", "Created pod: web-"), ("SuccessfulDelete", "Deleted pod: web-")]
        {
            let told = |event: &&&Value| event["reason"] == reason && event["type"] == "Normal";
            let events = state.list("events");
            let message =
                |event: &Value| event["message"].as_str().is_some_and(|text| text.starts_with(message));
            assert!(events.iter().filter(told).any(|event| message(event)), "{reason}");
        }
    }
    cluster.stop().await;
}

/// What the controllers write for 30 Pods, on a node where Pods are ready at once.
#[tokio::test(start_paused = true)]
async fn a_rollout_costs_few_writes() {
    let cluster = Cluster::start().await;
    let api = &cluster.api;
    cluster.node("n1");
    cluster.settled().await;
    let mut counted = Vec::new();
    for image in ["v1", "v2"] {
        api.state().writes.clear();
        match image {
            "v1" => api.send(Method::POST, DEPLOYMENTS, deployment(30, "v1")),
            image => api.send(
                Method::PATCH,
                WEB,
                json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}),
            ),
        };
        api.wait("30 available", |state| is_rolled_out(state, 30)).await;
        cluster.settled().await;
        let state = api.state();
        let of = |method: &str, kind: &str, end: &str| {
            let is =
                |write: &&String| write.starts_with(method) && write.contains(kind) && write.ends_with(end);
            state.writes.iter().filter(is).count()
        };
        let sizes = of("PUT", "/replicasets/", "") - of("PUT", "/replicasets/", "/status");
        let statuses = (of("PUT", "/replicasets/", "/status"), of("PUT", "/deployments/", "/status"));
        counted.push((of("POST", "/pods", ""), of("DELETE", "/pods/", ""), sizes, statuses));
    }
    let [(30, 0, 0, first), (30, 60, sizes, update)] = counted[..] else { panic!("{counted:?}") };
    // Each Pod is deleted by its set and then by its node. What comes together depends on the order
    // in which tasks run; a write for each Pod would be at least 30 of a kind.
    assert!(first.0 <= 4 && first.1 <= 6, "{counted:?}");
    assert!(sizes <= 12 && update.0 <= 20 && update.1 <= 20, "{counted:?}");
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_image_stalls_with_the_old_pods_serving() {
    let cluster = Cluster::start().await;
    cluster.node("n1");
    cluster.api.send(Method::POST, DEPLOYMENTS, deployment(3, "v1"));
    cluster.api.wait("3 available", |state| is_rolled_out(state, 3)).await;
    check_limits(&cluster.api, 3, 1, 0);
    cluster.api.send(
        Method::PATCH,
        WEB,
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "broken"}]}}}}),
    );
    cluster
        .api
        .wait("deadline exceeded", |state| {
            let web = state.get("deployments", "default", "web").unwrap();
            web["status"]["conditions"]
                .as_array()
                .unwrap()
                .iter()
                .any(|c| c["reason"] == "ProgressDeadlineExceeded")
        })
        .await;
    cluster.settled().await;
    // Rolled back, the old set serves on under a new revision.
    cluster.api.send(
        Method::PATCH,
        WEB,
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v1"}]}}}}),
    );
    cluster.api.wait("rolled back", |state| is_rolled_out(state, 3)).await;
    cluster.settled().await;
    {
        let state = cluster.api.state();
        assert_eq!(
            state.get("deployments", "default", "web").unwrap()["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
            "3"
        );
        assert_eq!(state.list("pods").len(), 3);
    }
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn lost_answers_and_refusals_make_no_extra_pods() {
    let cluster = Cluster::start().await;
    cluster.node("n1");
    let mut count = 0;
    cluster.api.state().fault = Some(Box::new(move |method, path| {
        if *method == Method::GET || path.contains("nodes/") || path.ends_with("/nodes") {
            return None;
        }
        count += 1;
        match count % 7 {
            2 => Some(Fault::LoseAnswer),
            4 => Some(Fault::Refuse(409)),
            6 => Some(Fault::Refuse(500)),
            _ => None,
        }
    }));
    cluster.api.state().check = Some(Box::new(|state| {
        let active = state
            .list("pods")
            .iter()
            .filter(|pod| pod["metadata"].get("deletionTimestamp").is_none())
            .count();
        ensure(active <= 20, || format!("{active} Pods"))
    }));
    cluster.user(Method::POST, DEPLOYMENTS, deployment(20, "v1"));
    cluster.api.wait("20 available", |state| is_rolled_out(state, 20)).await;
    cluster.settled().await;
    assert_eq!(cluster.api.state().list("pods").len(), 20);
    cluster.user(Method::DELETE, WEB, json!({"propagationPolicy": "Foreground"}));
    cluster.api.wait("all gone", |state| state.list("deployments").is_empty()).await;
    assert!(cluster.api.state().list("replicasets").is_empty());
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_adopted_and_released_though_refused_at_first() {
    let pods = "/api/v1/namespaces/default/pods";
    for code in [409, 429, 500] {
        let cluster = Cluster::start().await;
        let api = &cluster.api;
        cluster.node("n1");
        let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        let template = deployment(1, "v1")["spec"]["template"].clone();
        let mut loose = json!({"metadata": {"name": "loose", "labels": {"app": "web"}}, "spec": template["spec"], "status": ready});
        loose["spec"]["nodeName"] = "n1".into();
        api.send(Method::POST, pods, loose);
        // Refused more often than events would bring the set back to it.
        let refuse = |times: usize| {
            let mut tries = 0;
            api.state().fault = Some(Box::new(move |method, path| {
                let concerned = *method == Method::PATCH && path.ends_with("/pods/loose");
                tries += usize::from(concerned);
                (concerned && tries <= times).then_some(Fault::Refuse(code))
            }));
        };
        refuse(12);
        let set = json!({"metadata": {"name": "set"}, "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template}});
        cluster.user(Method::POST, "/apis/apps/v1/namespaces/default/replicasets", set);
        let owner = |state: &State| {
            state.get("pods", "default", "loose").unwrap()["metadata"].get("ownerReferences").cloned()
        };
        api.wait("adopted", |state| owner(state).is_some_and(|owners| owners[0]["name"] == "set")).await;
        cluster.settled().await;
        assert_eq!(api.state().list("pods").len(), 1, "{code}: the adopted Pod is all that is wanted");
        refuse(12);
        let free = json!({"metadata": {"labels": {"app": "free"}}});
        cluster.user(Method::PATCH, &format!("{pods}/loose"), free);
        api.wait("released", |state| owner(state).is_none()).await;
        cluster.settled().await;
        assert_eq!(api.state().list("pods").len(), 2, "{code}: another Pod took its place");
        cluster.stop().await;
    }
}

/// A ReplicaSet's pass costs no more for Pods that did not change: nothing of them is decoded.
#[tokio::test(start_paused = true)]
async fn a_pass_decodes_only_the_pod_that_changed() {
    let mut counts = Vec::new();
    for replicas in [10, 110] {
        let cluster = Cluster::start().await;
        let api = &cluster.api;
        let node = cluster.node("n1");
        api.send(Method::POST, DEPLOYMENTS, deployment(replicas, "v1"));
        api.wait("available", |state| is_rolled_out(state, replicas.into())).await;
        cluster.settled().await;
        node.abort();
        let name = api.state().list("pods")[0]["metadata"]["name"].as_str().unwrap().to_owned();
        let path = format!("/api/v1/namespaces/default/pods/{name}/status");
        let ready = |state: &State| number(state.list("replicasets")[0], "/status/readyReplicas");
        let before = allocations::count();
        for (status, left) in [("False", replicas - 1), ("True", replicas)] {
            let condition =
                json!({"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"});
            api.send(Method::PATCH, &path, json!({"status": {"conditions": [condition]}}));
            api.wait("counted", |state| ready(state) == i64::from(left)).await;
        }
        counts.push(allocations::count() - before);
        cluster.stop().await;
    }
    let [few, many] = counts[..] else { panic!("{counts:?}") };
    // One Pod takes dozens to decode, and 100 are looked at in each of two passes or more.
    assert!(many.saturating_sub(few) < 2 * 100, "{few} allocations with 10 Pods, {many} with 110");
}

#[tokio::test(start_paused = true)]
async fn each_way_of_deletion() {
    for policy in ["Background", "Foreground", "Orphan"] {
        let cluster = Cluster::start().await;
        cluster.node("n1");
        cluster.api.send(Method::POST, DEPLOYMENTS, deployment(3, "v1"));
        cluster.api.wait("3 available", |state| is_rolled_out(state, 3)).await;
        cluster.settled().await;
        cluster.api.send(Method::DELETE, WEB, json!({"propagationPolicy": policy}));
        cluster.api.wait("the Deployment goes", |state| state.list("deployments").is_empty()).await;
        cluster.settled().await;
        {
            let state = cluster.api.state();
            let left = (state.list("replicasets").len(), state.list("pods").len());
            assert_eq!(left, if policy == "Orphan" { (1, 3) } else { (0, 0) }, "{policy}");
            if policy == "Orphan" {
                assert!(state.list("replicasets")[0]["metadata"].get("ownerReferences").is_none());
            }
        }
        if policy == "Orphan" {
            // A Deployment of the same selector and template adopts what was left.
            cluster.api.send(Method::POST, DEPLOYMENTS, deployment(3, "v1"));
            cluster.api.wait("adopted", |state| is_rolled_out(state, 3)).await;
            cluster.settled().await;
            assert_eq!(cluster.api.state().list("replicasets").len(), 1);
        }
        cluster.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_has_its_defaults_and_ends_with_all_its_content() {
    let cluster = Cluster::start().await;
    cluster.node("n1");
    let api = &cluster.api;
    api.send(Method::POST, "/api/v1/namespaces", json!({"metadata": {"name": "team"}}));
    api.wait("defaults", |state| {
        state.get("serviceaccounts", "team", "default").is_some()
            && state.get("configmaps", "team", "kube-root-ca.crt").is_some()
    })
    .await;
    // What is taken away or changed comes back.
    api.send(Method::DELETE, "/api/v1/namespaces/team/serviceaccounts/default", json!({}));
    let other = json!({"data": {"ca.crt": "other"}});
    api.send(Method::PATCH, "/api/v1/namespaces/team/configmaps/kube-root-ca.crt", other);
    api.wait("defaults again", |state| {
        let map = state.get("configmaps", "team", "kube-root-ca.crt").unwrap();
        state.get("serviceaccounts", "team", "default").is_some() && map["data"]["ca.crt"] == "PEM"
    })
    .await;
    api.send(Method::POST, "/apis/apps/v1/namespaces/team/deployments", deployment(2, "v1"));
    api.wait("2 Pods", |state| {
        state.list("pods").iter().filter(|pod| pod["status"]["phase"] == "Running").count() == 2
    })
    .await;
    api.send(
        Method::POST,
        "/api/v1/namespaces/team/secrets",
        json!({"metadata": {"name": "held", "finalizers": ["example.com/x"]}}),
    );
    api.send(Method::DELETE, "/api/v1/namespaces/team", json!({}));
    api.wait("told what is left", |state| {
        let conditions = state
            .get("namespaces", "", "team")
            .map(|ns| ns["status"]["conditions"].to_string())
            .unwrap_or_default();
        conditions.contains("example.com/x in 1 resource instances") && state.list("pods").is_empty()
    })
    .await;
    api.send(
        Method::PATCH,
        "/api/v1/namespaces/team/secrets/held",
        json!({"metadata": {"finalizers": null}}),
    );
    api.wait("gone", |state| state.get("namespaces", "", "team").is_none()).await;
    cluster.settled().await;
    {
        let state = api.state();
        for resource in ["pods", "replicasets", "deployments", "serviceaccounts", "configmaps", "secrets"] {
            assert!(
                state.list(resource).iter().all(|object| object["metadata"]["namespace"] != "team"),
                "{resource}"
            );
        }
    }
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn quotas_are_counted_anew_when_things_go() {
    let cluster = Cluster::start().await;
    let api = &cluster.api;
    let at = |resource: &str| format!("/api/v1/namespaces/default/{resource}");
    let pod = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"containers": [
        {"name": "c", "image": "v1", "resources": {"requests": {"cpu": "100m"}}}]}})
    };
    api.send(Method::POST, &at("pods"), pod("a"));
    api.send(Method::POST, &at("pods"), pod("b"));
    api.send(Method::POST, &at("secrets"), json!({"metadata": {"name": "s"}}));
    let hard = json!({"pods": "5", "requests.cpu": "1", "count/secrets": "2", "services.nodeports": "1"});
    api.send(Method::POST, &at("resourcequotas"), json!({"metadata": {"name": "q"}, "spec": {"hard": hard}}));
    let used = |state: &State, pods: &str, cpu: &str, secrets: &str| {
        let status = &state.get("resourcequotas", "default", "q").unwrap()["status"];
        let used =
            json!({"pods": pods, "requests.cpu": cpu, "count/secrets": secrets, "services.nodeports": "0"});
        status["hard"] == hard && status["used"] == used
    };
    api.wait("a first count", |state| used(state, "2", "200m", "1")).await;
    api.send(Method::PATCH, &at("pods/a/status"), json!({"status": {"phase": "Succeeded"}}));
    api.wait("an end", |state| used(state, "1", "100m", "1")).await;
    api.send(Method::DELETE, &at("secrets/s"), json!({}));
    api.wait("a deletion", |state| used(state, "1", "100m", "0")).await;
    let raised = json!({"spec": {"hard": {"requests.cpu": null}}});
    api.send(Method::PATCH, &at("resourcequotas/q"), raised);
    api.wait("another spec", |state| {
        let quota = state.get("resourcequotas", "default", "q").unwrap();
        quota["status"]["used"].get("requests.cpu").is_none()
    })
    .await;
    cluster.settled().await;
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn volumes_in_use_stay() {
    let cluster = Cluster::start().await;
    let api = &cluster.api;
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let held = |name: &str, finalizer: &str| json!({"metadata": {"name": name, "finalizers": [format!("kubernetes.io/{finalizer}")]}});
    api.send(Method::POST, claims, held("used", "pvc-protection"));
    api.send(Method::POST, claims, held("free", "pvc-protection"));
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "used"}}]);
    api.send(
        Method::POST,
        "/api/v1/namespaces/default/pods",
        json!({"metadata": {"name": "p", "finalizers": ["example.com/x"]}, "spec": {"nodeName": "n", "volumes": volumes, "containers": []}}),
    );
    let mut bound = held("bound", "pv-protection");
    bound["status"] = json!({"phase": "Bound"});
    api.send(Method::POST, "/api/v1/persistentvolumes", bound);
    for path in [&format!("{claims}/used"), &format!("{claims}/free"), "/api/v1/persistentvolumes/bound"] {
        api.send(Method::DELETE, path, json!({}));
    }
    api.wait("the free claim goes", |state| state.get("persistentvolumeclaims", "default", "free").is_none())
        .await;
    cluster.settled().await;
    assert!(api.state().get("persistentvolumeclaims", "default", "used").is_some());
    assert!(api.state().get("persistentvolumes", "", "bound").is_some());
    let pod = "/api/v1/namespaces/default/pods/p";
    api.send(Method::DELETE, pod, json!({"gracePeriodSeconds": 0}));
    api.send(Method::PATCH, pod, json!({"metadata": {"finalizers": null}}));
    let released = json!({"status": {"phase": "Released"}});
    api.send(Method::PATCH, "/api/v1/persistentvolumes/bound/status", released);
    api.wait("all go", |state| {
        state.list("persistentvolumeclaims").is_empty() && state.list("persistentvolumes").is_empty()
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_in_another_namespace_is_told_of() {
    let cluster = Cluster::start().await;
    let api = &cluster.api;
    api.send(Method::POST, "/api/v1/namespaces", json!({"metadata": {"name": "other"}}));
    let maps = |namespace: &str| format!("/api/v1/namespaces/{namespace}/configmaps");
    let owner = api.send(Method::POST, &maps("other"), json!({"metadata": {"name": "owner"}}));
    let reference =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}]);
    api.wait("the owner is known", |state| state.get("configmaps", "other", "owner").is_some()).await;
    cluster.settled().await;
    let dependent = json!({"metadata": {"name": "dependent", "ownerReferences": reference}});
    api.send(Method::POST, &maps("default"), dependent);
    api.wait("told", |state| {
        state.list("events").iter().any(|event| {
            event["reason"] == "OwnerRefInvalidNamespace" && event["involvedObject"]["name"] == "dependent"
        })
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_comes_later_is_collected() {
    let cluster = Cluster::start().await;
    cluster.settled().await;
    cluster.api.state().widgets = true;
    cluster.api.state().discovered.clear();
    // What is in the table is the server's to serve: controllers hear of which group it is another.
    cluster.kinds.insert(Kind::custom(Gvk::new("example.com", "v1", "Widget"), "widgets", Schema::any()));
    let map = cluster.api.send(
        Method::POST,
        "/api/v1/namespaces/default/configmaps",
        json!({"metadata": {"name": "owner"}}),
    );
    let owner =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": map["metadata"]["uid"]});
    let widgets = "/apis/example.com/v1/namespaces/default/widgets";
    cluster.api.send(Method::POST, widgets, json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "ownerReferences": [owner]}}));
    let absent = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "never", "uid": "none"});
    cluster.api.send(Method::POST, widgets, json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "stray", "ownerReferences": [absent]}}));
    cluster.api.wait("the stray goes", |state| state.get("widgets", "default", "stray").is_none()).await;
    assert!(cluster.api.state().get("widgets", "default", "w").is_some());
    assert_eq!(cluster.api.state().discovered, ["/apis/example.com", "/apis/example.com/v1"]);
    cluster.api.send(Method::DELETE, "/api/v1/namespaces/default/configmaps/owner", json!({}));
    cluster.api.wait("the widget follows its owner", |state| state.list("widgets").is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_service_finds_its_endpoints() {
    let cluster = Cluster::start().await;
    cluster.node("n1");
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {
        "selector": {"app": "web"}, "clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]}});
    cluster.api.send(Method::POST, "/api/v1/namespaces/default/services", service);
    cluster.api.send(Method::POST, DEPLOYMENTS, deployment(3, "v1"));
    let ready = |state: &State| {
        let slices = state.list("endpointslices");
        slices
            .iter()
            .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
            .filter(|e| e["conditions"]["ready"] == true)
            .count()
    };
    cluster
        .api
        .wait("3 endpoints", |state| {
            let addresses = state
                .get("endpoints", "default", "web")
                .map_or(0, |e| e["subsets"][0]["addresses"].as_array().map_or(0, Vec::len));
            ready(state) == 3 && addresses == 3
        })
        .await;
    cluster.settled().await;
    assert_eq!(cluster.api.state().list("endpointslices").len(), 1);
    cluster.api.send(Method::PATCH, WEB, json!({"spec": {"replicas": 0}}));
    cluster.api.wait("none", |state| ready(state) == 0).await;
    cluster.settled().await;
    assert_eq!(cluster.api.state().list("endpointslices").len(), 1);
    cluster.api.send(Method::DELETE, "/api/v1/namespaces/default/services/web", json!({}));
    cluster
        .api
        .wait("gone", |state| state.list("endpointslices").is_empty() && state.list("endpoints").is_empty())
        .await;
    cluster.stop().await;
}

/// However old the taint is, or if nobody says how old.
#[tokio::test(start_paused = true)]
async fn tolerated_time_counts_from_when_pod_and_taint_met() {
    let cluster = Cluster::start().await;
    let api = cluster.api.clone();
    api.send(Method::POST, "/api/v1/nodes", json!({"metadata": {"name": "n"}, "spec": {}}));
    tokio::spawn(renew_lease(api.clone(), "n"));
    let bound = |name: &str, tolerations: Value| {
        let spec = json!({"nodeName": "n", "containers": [], "tolerations": tolerations});
        let pod = json!({"metadata": {"name": name}, "spec": spec, "status": {"phase": "Running"}});
        api.send(Method::POST, "/api/v1/namespaces/default/pods", pod);
    };
    let tolerates = |key: &str, seconds: u32| json!([{"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
    let evicted = async |name: &str, since: tokio::time::Instant| {
        api.wait(name, |state| {
            let pod = state.get("pods", "default", name);
            pod.is_none_or(|pod| pod["metadata"].get("deletionTimestamp").is_some())
        })
        .await;
        since.elapsed().as_secs()
    };
    let taint = |taint: Value| {
        let mut node = api.state().get("nodes", "", "n").unwrap().clone();
        node["spec"]["taints"] = json!([taint]);
        api.send(Method::PUT, "/api/v1/nodes/n", node);
    };
    for (name, tolerations) in
        [("none", json!([])), ("short", tolerates("a", 5)), ("long", tolerates("a", 20))]
    {
        bound(name, tolerations);
    }
    taint(json!({"key": "a", "effect": "NoExecute"}));
    let start = tokio::time::Instant::now();
    for (name, after) in [("none", 0), ("short", 5), ("long", 20)] {
        assert_eq!(evicted(name, start).await, after, "{name}");
    }
    taint(json!({"key": "b", "effect": "NoExecute", "timeAdded": "2020-01-01T00:00:00Z"}));
    bound("late", tolerates("b", 60));
    assert_eq!(evicted("late", tokio::time::Instant::now()).await, 60);
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_loses_its_pods() {
    let cluster = Cluster::start().await;
    let api = cluster.api.clone();
    for name in ["alive", "silent"] {
        let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady"});
        api.send(
            Method::POST,
            "/api/v1/nodes",
            json!({"metadata": {"name": name}, "spec": {}, "status": {"conditions": [ready]}}),
        );
    }
    tokio::spawn(renew_lease(api.clone(), "alive"));
    let tolerations = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "silent", "containers": [], "tolerations": tolerations},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    api.send(Method::POST, "/api/v1/namespaces/default/pods", pod);
    let start = tokio::time::Instant::now();
    api.wait("tainted", |state| {
        let silent = state.get("nodes", "", "silent").unwrap();
        silent["spec"]["taints"].to_string().contains("NoExecute")
    })
    .await;
    let seconds = start.elapsed().as_secs();
    assert!((50..55).contains(&seconds), "after {seconds} s");
    api.wait("not ready", |state| {
        let pod = state.get("pods", "default", "p").unwrap();
        pod["status"]["conditions"][0]["status"] == "False" && pod["status"]["phase"] == "Running"
    })
    .await;
    assert_eq!(api.state().get("nodes", "", "alive").unwrap()["status"]["conditions"][0]["status"], "True");
    api.wait("evicted", |state| {
        state
            .get("pods", "default", "p")
            .is_some_and(|pod| pod["metadata"].get("deletionTimestamp").is_some())
    })
    .await;
    let seconds = start.elapsed().as_secs();
    assert!((350..356).contains(&seconds), "after {seconds} s");
    assert!(
        api.state().get("pods", "default", "p").unwrap()["status"]["conditions"]
            .to_string()
            .contains("DeletionByTaintManager")
    );
    // The node is removed: nobody is left to end the Pod.
    api.send(Method::DELETE, "/api/v1/nodes/silent", json!({}));
    let start = tokio::time::Instant::now();
    api.wait("collected", |state| state.list("pods").is_empty()).await;
    let seconds = start.elapsed().as_secs();
    assert!((40..46).contains(&seconds), "the node could have come back for 40 s: {seconds}");
    cluster.stop().await;
}
