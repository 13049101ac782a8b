//! A pretend node: registers itself, keeps its lease, runs the Pods bound to it in virtual time.
//! It does what the control plane can see of a kubelet, and nothing else.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use skeg_api::k8s_openapi;
use skeg_base::{Clock, Random};
use skeg_client::{
    Client, DeleteOptions, Informers, LeaseKeeper, ListOptions, ObjectKey, PatchKind, Preconditions, Queue,
    run_workers,
};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often a node shows that it lives.
const LEASE: Duration = Duration::from_secs(40);

struct Machine {
    name: String,
    client: Client,
    clock: Clock,
    random: Random,
}

/// Runs the node until `cancel`, which is its crash: containers and all.
pub async fn run(name: String, client: Client, clock: Clock, random: Random, cancel: CancellationToken) {
    let machine =
        Arc::new(Machine { name: name.clone(), client: client.clone(), clock, random: random.clone() });
    while !cancel.is_cancelled() && machine.register().await.is_none() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let informers = Informers::new(client.clone(), random, cancel.clone());
    // As a real one: it may see no others.
    let mine = ListOptions { field_selector: format!("spec.nodeName={name}"), ..Default::default() };
    let pods = informers.selected::<Pod>("", &mine);
    let queue: Queue<ObjectKey> = Queue::new(&cancel);
    let _subscription = {
        let queue = queue.clone();
        pods.subscribe(move |change| queue.add(change.key().clone()))
    };
    let lease = LeaseKeeper {
        client,
        namespace: "kube-node-lease".into(),
        name: name.clone(),
        holder: name,
        duration: LEASE,
        owner: None,
        clock,
    };
    let worker = run_workers("pretend-node", 4, queue, move |key: ObjectKey| {
        let (machine, pods) = (machine.clone(), pods.clone());
        async move {
            let Some(pod) = pods.get(&key.namespace, &key.name) else { return Ok(None) };
            machine.sync(&pod).await
        }
    });
    tokio::select! {
        biased;
        () = cancel.cancelled() => {}
        () = lease.run(&cancel) => {}
        () = worker => {}
    }
}

impl Machine {
    async fn register(&self) -> Option<()> {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}},
        });
        let nodes = self.client.api::<Node>();
        if nodes.get_opt("", &self.name).await.ok()?.is_none() {
            nodes.create("", &serde_json::from_value(node).ok()?).await.ok()?;
        }
        let now = self.clock.now_seconds().to_string();
        let ready = json!({"status": {
            "capacity": {"cpu": "8", "memory": "16Gi", "pods": "110"},
            "allocatable": {"cpu": "8", "memory": "16Gi", "pods": "110"},
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "pretend",
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            }],
        }});
        nodes.patch("", &self.name, PatchKind::Strategic, &ready, Some("status")).await.ok()?;
        Some(())
    }

    /// One step of a Pod's life; the change it makes brings the next.
    async fn sync(&self, pod: &Pod) -> Result<Option<Duration>, skeg_client::Error> {
        let pods = self.client.api::<Pod>();
        let (namespace, name) = (
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
        );
        if pod.metadata.deletion_timestamp.is_some() {
            tokio::time::sleep(Duration::from_millis(50 + self.random.below(900))).await;
            let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
            let now = DeleteOptions {
                grace_period_seconds: Some(0),
                preconditions: Some(preconditions),
                ..Default::default()
            };
            return match pods.delete(&namespace, &name, &now).await {
                Err(skeg_client::Error::Api(status)) if status.is_not_found() => Ok(None),
                result => result.map(|()| None),
            };
        }
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        let ready =
            pod.status.as_ref().and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
                conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
            });
        if phase == "Running" && ready {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(50 + self.random.below(1_500))).await;
        let status = self.status(phase == "Running");
        match pods.patch(&namespace, &name, PatchKind::Strategic, &status, Some("status")).await {
            Err(skeg_client::Error::Api(status)) if status.is_not_found() => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Ok(None),
        }
    }

    /// First Running, then Ready.
    fn status(&self, ready: bool) -> Value {
        let now = self.clock.now_seconds().to_string();
        let flag = if ready { "True" } else { "False" };
        let condition =
            |kind: &str, status: &str| json!({"type": kind, "status": status, "lastTransitionTime": now});
        json!({"status": {
            "phase": "Running", "startTime": now, "podIP": format!("10.0.0.{}", 1 + self.random.below(250)),
            "conditions": [condition("Initialized", "True"), condition("ContainersReady", flag), condition("Ready", flag)],
        }})
    }
}
