//! What users do in a run: create, scale, roll out, delete; and what happens to the machines.

use parking_lot::Mutex;
use serde_json::{Value, json};
use skeg_api::Gvr;
use skeg_base::Random;
use skeg_client::{Client, DeleteOptions, ListOptions, PatchKind};
use std::collections::BTreeMap;
use std::time::Duration;

/// Namespaces that users work in; the last one is deleted on the way.
pub const NAMESPACES: &[&str] = &["one", "two"];
/// Things that users do in a run.
const ACTIONS: usize = 25;
/// Before the label of a Pod that was taken out of its ReplicaSet.
const STRAY: &str = "stray-";

pub struct User {
    client: Client,
    random: Random,
    /// What was acknowledged last for each Deployment of the first namespace: its replicas.
    /// Nothing where the outcome is open.
    sizes: Mutex<BTreeMap<String, i64>>,
}

impl User {
    pub fn new(client: Client, random: Random) -> Self {
        User { client, random, sizes: Mutex::default() }
    }

    pub fn sizes(&self) -> BTreeMap<String, i64> {
        self.sizes.lock().clone()
    }

    fn deployments(&self) -> skeg_client::Api<Value> {
        self.client.dynamic(&Gvr::new("apps", "v1", "deployments"))
    }

    /// Acts at random moments, then deletes a namespace.
    pub async fn work(&self) {
        for namespace in NAMESPACES {
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
            let namespaces = self.client.dynamic(&Gvr::new("", "v1", "namespaces"));
            while namespaces.create("", &object).await.is_err_and(|error| !exists(&error)) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        let services = self.client.dynamic(&Gvr::new("", "v1", "services"));
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
        });
        for namespace in NAMESPACES {
            while services.create(namespace, &service).await.is_err_and(|error| !exists(&error)) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        for _ in 0..ACTIONS {
            tokio::time::sleep(Duration::from_millis(self.random.below(9_000))).await;
            // A refused action is as good as none: users read the error and go on.
            let _ = self.act().await;
        }
        let namespaces = self.client.dynamic(&Gvr::new("", "v1", "namespaces"));
        while namespaces.delete("", "two", &DeleteOptions::default()).await.is_err_and(|error| !gone(&error))
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn act(&self) -> skeg_client::Result<()> {
        let namespace = NAMESPACES[self.random.below(NAMESPACES.len() as u64) as usize];
        let name = ["web", "api"][self.random.below(2) as usize];
        let deployments = self.deployments();
        let merge = |patch: Value| {
            let deployments = deployments.clone();
            async move { deployments.patch(namespace, name, PatchKind::Merge, &patch, None).await.map(|_| ()) }
        };
        match self.random.below(11) {
            0..=2 => {
                let deployment = self.deployment(name);
                let result = deployments.create(namespace, &deployment).await.map(|_| ());
                let size = deployment["spec"]["replicas"].as_i64();
                self.note(namespace, name, size, true, &result);
                result
            }
            3 | 4 => {
                let size = self.random.below(9) as i64;
                let result = merge(json!({"spec": {"replicas": size}})).await;
                self.note(namespace, name, Some(size), false, &result);
                result
            }
            5 | 6 => {
                // Few, so that many a rollout returns to an earlier template, as `rollout undo` does.
                let color = self.random.below(2).to_string();
                merge(json!({"spec": {"template": {"metadata": {"annotations": {"color": color}}}}})).await
            }
            7 => merge(json!({"spec": {"paused": self.random.below(4) == 0}})).await,
            8 => self.delete_a_pod(namespace).await,
            9 => self.relabel_a_pod(namespace).await,
            _ => {
                let policy = ["Background", "Foreground"][self.random.below(2) as usize];
                let options = DeleteOptions { propagation_policy: Some(policy.into()), ..Default::default() };
                let result = deployments.delete(namespace, name, &options).await;
                self.note(namespace, name, None, false, &result);
                result
            }
        }
    }

    /// Keeps in mind what a Deployment's size is now.
    fn note(
        &self,
        namespace: &str,
        name: &str,
        size: Option<i64>,
        created: bool,
        result: &skeg_client::Result<()>,
    ) {
        let mut sizes = self.sizes.lock();
        let refused = matches!(result, Err(skeg_client::Error::Api(status)) if status.code < 500);
        if namespace != NAMESPACES[0] || refused {
            return;
        }
        // A change of one whose deletion may be under way says nothing.
        match size.filter(|_| result.is_ok() && (created || sizes.contains_key(name))) {
            Some(size) => sizes.insert(name.to_owned(), size),
            None => sizes.remove(name),
        };
    }

    /// Unpauses everything, so that the cluster can settle, and takes a lost machine off the list.
    pub async fn finish(&self, lost: Option<&str>) -> skeg_client::Result<()> {
        for deployment in self.deployments().list("", &ListOptions::default()).await?.items {
            let [namespace, name] =
                ["namespace", "name"].map(|field| deployment["metadata"][field].as_str().unwrap_or_default());
            let patch = json!({"spec": {"paused": false}});
            let patched = self.deployments().patch(namespace, name, PatchKind::Merge, &patch, None).await;
            patched.map(|_| ()).or_else(|error| if gone(&error) { Ok(()) } else { Err(error) })?;
        }
        match lost {
            Some(node) => {
                self.client
                    .dynamic(&Gvr::new("", "v1", "nodes"))
                    .delete("", node, &DeleteOptions::default())
                    .await
            }
            None => Ok(()),
        }
    }

    async fn delete_a_pod(&self, namespace: &str) -> skeg_client::Result<()> {
        let Some(pod) = self.a_pod(namespace).await? else { return Ok(()) };
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        self.pods().delete(namespace, name, &DeleteOptions::default()).await
    }

    /// Takes a Pod out of its ReplicaSet's selector, or brings one back that was taken out.
    async fn relabel_a_pod(&self, namespace: &str) -> skeg_client::Result<()> {
        let Some(pod) = self.a_pod(namespace).await? else { return Ok(()) };
        let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
        let app = pod["metadata"]["labels"]["app"].as_str().unwrap_or_default();
        let app = app.strip_prefix(STRAY).map_or_else(|| format!("{STRAY}{app}"), str::to_owned);
        let patch = json!({"metadata": {"labels": {"app": app}}});
        self.pods().patch(namespace, text("name"), PatchKind::Merge, &patch, None).await.map(|_| ())
    }

    fn pods(&self) -> skeg_client::Api<Value> {
        self.client.dynamic(&Gvr::new("", "v1", "pods"))
    }

    async fn a_pod(&self, namespace: &str) -> skeg_client::Result<Option<Value>> {
        let mut list = self.pods().list(namespace, &ListOptions::default()).await?.items;
        if list.is_empty() {
            return Ok(None);
        }
        Ok(Some(list.swap_remove(self.random.below(list.len() as u64) as usize)))
    }

    fn deployment(&self, name: &str) -> Value {
        let strategy = match self.random.below(4) {
            0 => json!({"type": "Recreate"}),
            1 => json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}),
            2 => json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}),
            _ => json!({"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}),
        };
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {
                "replicas": 1 + self.random.below(7), "strategy": strategy,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}, "annotations": {"color": "0"}},
                    "spec": {"containers": [{"name": "c", "image": "pretend", "resources": {"requests": {"cpu": "100m"}}}]},
                },
            },
        })
    }
}

fn exists(error: &skeg_client::Error) -> bool {
    matches!(error, skeg_client::Error::Api(status) if status.is_already_exists())
}

fn gone(error: &skeg_client::Error) -> bool {
    matches!(error, skeg_client::Error::Api(status) if status.is_not_found())
}
