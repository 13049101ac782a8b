//! The promises, checked on every write in the store's own order.

use serde_json::Value;
use skeg_api::intstr::{self, Round};
use skeg_store::{Change, Revision};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How old a controller's knowledge may be and still excuse what it does: longer than any delay,
/// cut watch and back-off of a run together.
const MEMORY: Duration = Duration::from_secs(90);
/// How many violations are worth telling.
const VIOLATIONS_MAX: usize = 20;

#[derive(Default)]
pub struct Checker {
    pub hash: u64,
    pub writes: u64,
    pub violations: Vec<String>,
    newest: Revision,
    objects: BTreeMap<Arc<str>, Value>,
    /// When something that is no sign of life was last written, and what.
    pub last_write: Option<(Instant, String)>,
    /// By Deployment key: most Pods and fewest Pods that its recent specs allow.
    bounds: BTreeMap<String, Vec<(Instant, i64, i64)>>,
    /// By ReplicaSet uid: recent `spec.replicas`.
    replicas: BTreeMap<String, Vec<(Instant, i64)>>,
    /// Creates whose answer was lost: each excuses one Pod too many for a while.
    excuses: Vec<Instant>,
}

impl Checker {
    pub fn excuse(&mut self, count: u64) {
        let known = self.excuses.len() as u64;
        self.excuses.extend((known..count).map(|_| Instant::now()));
    }

    fn violation(&mut self, text: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(text);
        }
    }

    /// Takes one write.
    pub fn see(&mut self, change: &Change) {
        self.writes += 1;
        let value = change.value.as_deref().unwrap_or_default();
        self.hash = skeg_base::hash_of(&(self.hash, change.revision.0, &*change.key, value));
        if change.revision <= self.newest {
            self.violation(format!("revision {} after {}", change.revision, self.newest));
        }
        self.newest = change.revision;
        let new = change.value.as_ref().map(|value| match skeg_apiserver::record::decode(value) {
            Ok(body) => serde_json::from_slice::<Value>(&body.json).unwrap_or_default(),
            Err(error) => Value::String(error.to_string()),
        });
        let old = self.objects.get(&change.key).cloned();
        if old.is_some() != change.previous.is_some() {
            self.violation(format!("{}: what was there before is not what the write says", change.key));
        }
        self.check(&change.key, old.as_ref(), new.as_ref());
        if !is_sign_of_life(&change.key, old.as_ref(), new.as_ref()) {
            self.last_write = Some((Instant::now(), format!("{} at {}", change.key, change.revision)));
        }
        match new {
            Some(new) => self.objects.insert(change.key.clone(), new),
            None => self.objects.remove(&change.key),
        };
    }

    fn check(&mut self, key: &str, old: Option<&Value>, new: Option<&Value>) {
        if key.starts_with("/registry/pods/") {
            self.check_pod(key, old, new);
        } else if key.starts_with("/registry/apps/deployments/") {
            self.note_deployment(key, new);
        } else if key.starts_with("/registry/apps/replicasets/") {
            self.check_replica_set(key, old, new);
        } else if key.starts_with("/registry/namespaces/") && new.is_none() {
            let prefix = format!("/{}/", key.rsplit('/').next().unwrap_or_default());
            let left: Vec<String> = self.objects.keys().filter(|key| in_namespace(key, &prefix)).map(|key| key.to_string()).collect();
            if !left.is_empty() {
                self.violation(format!("{key} is gone while it holds {}", left.join(" ")));
            }
        }
    }

    fn check_pod(&mut self, key: &str, old: Option<&Value>, new: Option<&Value>) {
        if let (Some(old), Some(new)) = (old, new) {
            let (before, after) = (&old["spec"]["nodeName"], &new["spec"]["nodeName"]);
            if old["metadata"]["uid"] == new["metadata"]["uid"] && before.is_string() && before != after {
                self.violation(format!("{key} was bound to {before} and then to {after}"));
            }
        }
        if let (None, Some(new)) = (old, new)
            && let Some(owner) = controller(new, "ReplicaSet")
        {
            let owned = |pod: &&Value| controller(pod, "ReplicaSet") == Some(owner) && is_active(pod);
            let active = 1 + self.objects.values().filter(owned).count() as i64;
            let now = Instant::now();
            let wanted = self.replicas.get(owner).into_iter().flatten();
            let most = wanted.filter(|(at, _)| now - *at < MEMORY).map(|(_, replicas)| *replicas).max();
            let last = self.replicas.get(owner).and_then(|all| all.last()).map_or(0, |(_, replicas)| *replicas);
            self.excuses.retain(|at| now - *at < MEMORY);
            let most = most.unwrap_or(last).max(last) + self.excuses.len() as i64;
            if active > most {
                self.violation(format!("{key} makes {active} active Pods of a ReplicaSet of {most}"));
            }
        }
    }

    fn note_deployment(&mut self, key: &str, new: Option<&Value>) {
        let Some(new) = new else { return };
        let replicas = new["spec"]["replicas"].as_i64().unwrap_or(1);
        let rolling = &new["spec"]["strategy"]["rollingUpdate"];
        let scaled = |field: &str, round: Round| i64::from(intstr::scaled_value(&rolling[field], replicas as i32, round).unwrap_or(0));
        let (mut surge, mut unavailable) = (scaled("maxSurge", Round::Up), scaled("maxUnavailable", Round::Down));
        if new["spec"]["strategy"]["type"] == "Recreate" {
            (surge, unavailable) = (0, replicas);
        } else if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        let bounds = self.bounds.entry(key.to_owned()).or_default();
        let next = (Instant::now(), replicas + surge, replicas - unavailable);
        if bounds.last().is_none_or(|(_, most, fewest)| (*most, *fewest) != (next.1, next.2)) {
            // The old bound holds until now.
            if let Some(last) = bounds.last_mut() {
                last.0 = Instant::now();
            }
            bounds.push(next);
        }
    }

    fn check_replica_set(&mut self, key: &str, old: Option<&Value>, new: Option<&Value>) {
        let Some(new) = new else { return };
        let replicas = new["spec"]["replicas"].as_i64().unwrap_or(1);
        let before = old.and_then(|old| old["spec"]["replicas"].as_i64()).unwrap_or(0);
        if let Some(uid) = new["metadata"]["uid"].as_str() {
            let history = self.replicas.entry(uid.to_owned()).or_default();
            if history.last().is_none_or(|(_, last)| *last != replicas) {
                if let Some(last) = history.last_mut() {
                    last.0 = Instant::now();
                }
                history.push((Instant::now(), replicas));
            }
        }
        let Some(owner) = controller(new, "Deployment").map(str::to_owned) else { return };
        let deployment = self.objects.iter().find(|(_, object)| object["kind"] == "Deployment" && object["metadata"]["uid"] == *owner);
        let Some(deployment) = deployment.map(|(key, _)| key.to_string()) else { return };
        let others: i64 = self
            .objects
            .iter()
            .filter(|(other, object)| &***other != key && object["kind"] == "ReplicaSet" && controller(object, "Deployment") == Some(&owner))
            .map(|(_, object)| object["spec"]["replicas"].as_i64().unwrap_or(0))
            .sum();
        let now = Instant::now();
        let bounds = self.bounds.get(&deployment).cloned().unwrap_or_default();
        let current = bounds.last().copied();
        let recent = bounds.iter().filter(|(at, ..)| now - *at < MEMORY).chain(current.iter());
        let (mut most, mut fewest) = (0, i64::MAX);
        for (_, high, low) in recent {
            most = most.max(*high);
            fewest = fewest.min(*low);
        }
        let total = others + replicas;
        if replicas > before && total > most {
            self.violation(format!("{key}: {total} replicas of {deployment}, which allows {most}"));
        }
        // Only a scale-down from a full set can break the lower bound.
        if replicas < before && total < fewest && others + before >= fewest {
            self.violation(format!("{key}: {total} replicas of {deployment}, which needs {fewest}"));
        }
    }

    /// What must hold when the cluster has settled.
    pub fn settled(&mut self, quiet_for: Duration) {
        let now = Instant::now();
        if let Some((at, what)) = self.last_write.clone()
            && now - at < quiet_for
        {
            self.violation(format!("not settled: {what} was written {:?} ago", now - at));
        }
        let objects: Vec<Value> = self.objects.values().cloned().collect();
        for object in &objects {
            let name = format!("{} {}/{}", object["kind"], object["metadata"]["namespace"], object["metadata"]["name"]);
            if object["metadata"]["namespace"] == "two" {
                self.violation(format!("{name} is left of a deleted namespace"));
            }
            if object["kind"] == "Deployment" {
                let (spec, status) = (&object["spec"], &object["status"]);
                let full = ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| status[field].as_i64().unwrap_or(0) == spec["replicas"].as_i64().unwrap_or(1));
                if !full || status["observedGeneration"] != object["metadata"]["generation"] {
                    self.violation(format!("{name} is not complete: {status} for {}", spec["replicas"]));
                }
            }
            let owners = object["metadata"]["ownerReferences"].as_array();
            for owner in owners.into_iter().flatten() {
                if !objects.iter().any(|other| other["metadata"]["uid"] == owner["uid"]) {
                    self.violation(format!("{name} outlived its owner {} {}", owner["kind"], owner["name"]));
                }
            }
        }
    }

    /// The objects as a list of everything shows them must be the writes added up.
    pub fn same_as(&mut self, listed: &BTreeMap<Arc<str>, Value>) {
        if *listed != self.objects {
            self.violation("a list differs from the sum of the changes".into());
        }
    }
}

fn in_namespace(key: &str, namespace: &str) -> bool {
    key.contains(namespace) && !key.starts_with("/registry/namespaces/") && !key.contains("/events/")
}

/// The uid of the controller of this kind.
fn controller<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|owner| owner["controller"] == true && owner["kind"] == kind)?["uid"].as_str()
}

fn is_active(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] != "Succeeded" && pod["status"]["phase"] != "Failed"
}

/// Leases, Events, and the heartbeat in a Node's status.
fn is_sign_of_life(key: &str, old: Option<&Value>, new: Option<&Value>) -> bool {
    if key.contains("/leases/") || key.contains("/events/") || key.starts_with("/registry/events") {
        return true;
    }
    let node = |value: Option<&Value>| {
        let mut value = value.cloned().unwrap_or_default();
        value["metadata"]["managedFields"] = Value::Null;
        value["status"]["conditions"] = Value::Null;
        value
    };
    key.starts_with("/registry/minions/") && node(old) == node(new)
}
