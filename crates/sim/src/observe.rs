//! One more client, with the same faults as all: what its informers were told, added up, must be
//! what a later list shows. Upstream's words for it: ordered, unique, reliable, resumable.

use parking_lot::Mutex;
use serde_json::Value;
use skeg_api::Gvr;
use skeg_base::Random;
use skeg_client::{Change, Client, Informer, Informers, ListOptions, ObjectKey};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

const RESOURCES: [(&str, &str); 5] = [
    ("", "pods"),
    ("", "namespaces"),
    ("apps", "deployments"),
    ("apps", "replicasets"),
    ("", "serviceaccounts"),
];

pub struct Observer {
    client: Client,
    followed: Vec<Followed>,
    told: Arc<Mutex<Told>>,
}

struct Followed {
    gvr: Gvr,
    informer: Informer<Value>,
    objects: Arc<Mutex<BTreeMap<ObjectKey, Arc<Value>>>>,
}

/// What contradicted what was told before.
#[derive(Default)]
struct Told(Vec<String>);

impl Observer {
    pub fn start(client: Client, random: Random, cancel: CancellationToken) -> Self {
        let informers = Informers::new(client.clone(), random, cancel);
        let told = Arc::new(Mutex::new(Told::default()));
        let followed = RESOURCES.iter().map(|(group, resource)| {
            let gvr = Gvr::new(group, "v1", resource);
            let (informer, objects) = (informers.dynamic(&gvr), Arc::new(Mutex::new(BTreeMap::new())));
            let (sum, told) = (objects.clone(), told.clone());
            informer.subscribe(move |change| told.lock().add(&mut sum.lock(), &change));
            Followed { gvr, informer, objects }
        });
        Observer { client, followed: followed.collect(), told }
    }

    /// Lists everything, waits for the watches to be as far, and compares.
    pub async fn finish(&self) -> Vec<String> {
        let mut violations = self.told.lock().0.clone();
        for followed in &self.followed {
            let list = match self.client.dynamic(&followed.gvr).list("", &ListOptions::default()).await {
                Ok(list) => list,
                Err(error) => {
                    violations.push(format!(
                        "no list of {} without faults: {error}",
                        followed.gvr.group_resource()
                    ));
                    continue;
                }
            };
            let newest = list.items.iter().map(revision).max().unwrap_or(0);
            followed.informer.wait_for(newest).await;
            let listed: BTreeMap<ObjectKey, &Value> =
                list.items.iter().map(|item| (key(item), item)).collect();
            let objects = followed.objects.lock();
            let summed: BTreeMap<ObjectKey, &Value> =
                objects.iter().map(|(key, object)| (key.clone(), &**object)).collect();
            let kept: Vec<_> =
                followed.informer.entries(None).iter().map(|entry| entry.key().clone()).collect();
            if !same(&listed, &summed) || !kept.iter().eq(listed.keys()) {
                let (listed, summed) = (listed.len(), summed.len());
                violations.push(format!(
                    "a list of {listed} {} differs from the {summed} that a watch adds up to",
                    followed.gvr.group_resource()
                ));
            }
        }
        violations
    }
}

impl Told {
    fn add(&mut self, objects: &mut BTreeMap<ObjectKey, Arc<Value>>, change: &Change<'_, Value>) {
        let key = change.key().clone();
        let new = change.object().arc().clone();
        let before = objects.get(&key).map_or(0, |old| revision(old));
        let known = before != 0;
        let fits = match change {
            Change::Added(_) => !known,
            Change::Updated { .. } => known && revision(&new) > before,
            Change::Deleted(_) => known && revision(&new) >= before,
        };
        if !fits {
            let revision = revision(&new);
            self.0
                .push(format!("a watch showed {}/{} at {revision} after {before}", key.namespace, key.name));
        }
        match change {
            Change::Deleted(_) => objects.remove(&key),
            _ => objects.insert(key, new),
        };
    }
}

/// Items of a list carry no kind of their own.
fn same(listed: &BTreeMap<ObjectKey, &Value>, summed: &BTreeMap<ObjectKey, &Value>) -> bool {
    let parts = |object: &Value| ["metadata", "spec", "status"].map(|part| object[part].clone());
    listed.len() == summed.len()
        && listed.iter().zip(summed).all(|((a, x), (b, y))| a == b && parts(x) == parts(y))
}

fn key(object: &Value) -> ObjectKey {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    ObjectKey::new(text("namespace"), text("name"))
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}
