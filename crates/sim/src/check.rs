//! The promises, checked on every write in the store's own order.

use serde_json::Value;
use skeg_api::intstr::{self, Round};
use skeg_store::{Change, Revision};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How old a controller's knowledge may be and still excuse what it does: longer than any delay,
/// cut watch and back-off of a run together.
const MEMORY: Duration = Duration::from_secs(90);
/// How many violations are worth telling.
const VIOLATIONS_MAX: usize = 20;

/// What was so lately, and is now.
struct Recent<T>(Vec<(Instant, T)>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Recent(Vec::new())
    }
}

impl<T: Copy + PartialEq> Recent<T> {
    fn note(&mut self, value: T) {
        let now = Instant::now();
        self.0.retain(|(until, _)| now - *until < MEMORY);
        if let Some(last) = self.0.last_mut() {
            // It held until now.
            last.0 = now;
            if last.1 == value {
                return;
            }
        }
        self.0.push((now, value));
    }

    fn values(&self) -> impl Iterator<Item = T> {
        let (now, last) = (Instant::now(), self.0.len().saturating_sub(1));
        let live =
            self.0.iter().enumerate().filter(move |(at, (until, _))| *at == last || now - *until < MEMORY);
        live.map(|(_, (_, value))| *value)
    }
}

#[derive(Default)]
pub struct Checker {
    pub hash: u64,
    pub writes: u64,
    pub violations: Vec<String>,
    /// Cancelled by the first violation.
    pub broken: CancellationToken,
    newest: Revision,
    objects: BTreeMap<Arc<str>, Value>,
    /// When something that is no sign of life was last written, and what.
    last_write: Option<(Instant, String)>,
    /// By Deployment uid: the most Pods and the fewest that its specs allow.
    bounds: BTreeMap<String, Recent<(i64, i64)>>,
    /// By ReplicaSet uid: `spec.replicas`.
    replicas: BTreeMap<String, Recent<i64>>,
    /// By ReplicaSet uid: `status.availableReplicas`.
    available: BTreeMap<String, Recent<i64>>,
    /// By uid: Pods whose labels were changed. A user may give an old Pod back to its set at any time.
    relabeled: BTreeSet<String>,
}

impl Checker {
    fn violation(&mut self, text: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(text);
            self.broken.cancel();
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
            self.note_deployment(new);
        } else if key.starts_with("/registry/apps/replicasets/") {
            self.check_replica_set(key, old, new);
        } else if key.starts_with("/registry/namespaces/") && new.is_none() {
            let prefix = format!("/{}/", key.rsplit('/').next().unwrap_or_default());
            let left: Vec<String> = self
                .objects
                .keys()
                .filter(|key| in_namespace(key, &prefix))
                .map(|key| key.to_string())
                .collect();
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
            if old["metadata"]["labels"] != new["metadata"]["labels"] {
                self.relabeled.insert(uid(new).to_owned());
            }
        }
        if let (None, Some(new)) = (old, new)
            && let Some(owner) = controller(new, "ReplicaSet")
        {
            let owned = |pod: &&Value| controller(pod, "ReplicaSet") == Some(owner) && is_active(pod);
            let active = 1 + self.objects.values().filter(owned).count() as i64;
            let most = self.replicas.get(owner).and_then(|recent| recent.values().max()).unwrap_or(0);
            if active > most {
                self.violation(format!("{key} makes {active} active Pods of a ReplicaSet of {most}"));
            }
            self.check_recreate(key, owner);
        }
    }

    /// A new Pod of a Deployment of strategy Recreate: no Pod of its other sets may run any more.
    fn check_recreate(&mut self, key: &str, set: &str) {
        let by_uid = |wanted: &str| self.objects.values().find(|object| uid(object) == wanted);
        let deployment = by_uid(set).and_then(|set| controller(set, "Deployment"));
        let recreates = |object: &&Value| object["spec"]["strategy"]["type"] == "Recreate";
        let Some(deployment) = deployment.filter(|uid| by_uid(uid).as_ref().is_some_and(recreates)) else {
            return;
        };
        let of_deployment =
            |set: &&Value| set["kind"] == "ReplicaSet" && controller(set, "Deployment") == Some(deployment);
        let others: BTreeSet<&str> =
            self.objects.values().filter(of_deployment).map(uid).filter(|uid| *uid != set).collect();
        let is_old = |pod: &Value| {
            controller(pod, "ReplicaSet").is_some_and(|owner| others.contains(owner))
                && !is_terminal(pod)
                && !self.relabeled.contains(uid(pod))
        };
        let old = self.objects.iter().find(|(_, object)| object["kind"] == "Pod" && is_old(object));
        if let Some((old, _)) = old {
            let text = format!("{key} and {old} are new and old together in strategy Recreate");
            self.violation(text);
        }
    }

    fn note_deployment(&mut self, new: Option<&Value>) {
        let Some(new) = new else { return };
        let replicas = new["spec"]["replicas"].as_i64().unwrap_or(1);
        let rolling = &new["spec"]["strategy"]["rollingUpdate"];
        let scaled = |field: &str, round: Round| {
            i64::from(intstr::scaled_value(&rolling[field], replicas as i32, round).unwrap_or(0))
        };
        let (mut surge, mut unavailable) =
            (scaled("maxSurge", Round::Up), scaled("maxUnavailable", Round::Down));
        if new["spec"]["strategy"]["type"] == "Recreate" {
            (surge, unavailable) = (0, replicas);
        } else if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        self.bounds.entry(uid(new).to_owned()).or_default().note((replicas + surge, replicas - unavailable));
    }

    fn check_replica_set(&mut self, key: &str, old: Option<&Value>, new: Option<&Value>) {
        let size = |set: &Value| set["spec"]["replicas"].as_i64().unwrap_or(1);
        let before = old.map_or(0, size);
        let Some(new) = new else { return self.check_removed_set(key, old) };
        self.replicas.entry(uid(new).to_owned()).or_default().note(size(new));
        self.available
            .entry(uid(new).to_owned())
            .or_default()
            .note(new["status"]["availableReplicas"].as_i64().unwrap_or(0));
        let Some(owner) = controller(new, "Deployment") else { return };
        let Some(bounds) = self.bounds.get(owner) else { return };
        let most = bounds.values().map(|(most, _)| most).max().unwrap_or(0);
        let fewest = bounds.values().map(|(_, fewest)| fewest).min().unwrap_or(0);
        let others = self.objects.iter().filter(|(other, object)| {
            &***other != key
                && object["kind"] == "ReplicaSet"
                && controller(object, "Deployment") == Some(owner)
        });
        // Pods that are surely there: asked for, and lately available.
        let kept = |set: &Value, size: i64| {
            let available = self.available.get(uid(set)).and_then(|recent| recent.values().max());
            size.min(available.unwrap_or(0))
        };
        let (mut total, mut left) = (size(new), kept(new, size(new)));
        for (_, other) in others {
            total += size(other);
            left += kept(other, size(other));
        }
        let taken = kept(new, before) - kept(new, size(new));
        if size(new) > before && total > most {
            self.violation(format!("{key}: {total} replicas of a Deployment that allows {most}"));
        }
        // Only what takes away from enough can break the lower bound, and not by Pods that are not
        // available anyway: those a rolling update gives up first.
        let available = new["status"]["availableReplicas"].as_i64().unwrap_or(0);
        if size(new) < before && available > size(new) && left < fewest && left + taken >= fewest {
            self.violation(format!("{key}: {left} available replicas of a Deployment that needs {fewest}"));
        }
    }

    fn check_removed_set(&mut self, key: &str, old: Option<&Value>) {
        let Some(owner) =
            old.filter(|old| old["spec"]["replicas"] != 0).and_then(|old| controller(old, "Deployment"))
        else {
            return;
        };
        let namespace = old.and_then(|old| old["metadata"]["namespace"].as_str()).unwrap_or_default();
        let lives = |object: &Value| object["metadata"]["deletionTimestamp"].is_null();
        let namespace_lives =
            self.objects.get(&*format!("/registry/namespaces/{namespace}")).is_some_and(lives);
        if namespace_lives && self.objects.values().any(|object| uid(object) == owner && lives(object)) {
            self.violation(format!("{key} was deleted under a Deployment that uses it"));
        }
    }

    /// When something that is no sign of life was last written.
    pub fn last_write(&self) -> Option<Instant> {
        self.last_write.as_ref().map(|(at, _)| *at)
    }

    /// What must hold when the cluster has settled. `sizes` of Deployments are what their users
    /// asked for last.
    pub fn settled(&mut self, quiet_for: Duration, sizes: &BTreeMap<String, i64>) {
        let now = Instant::now();
        if let Some((at, what)) = self.last_write.clone()
            && now - at < quiet_for
        {
            self.violation(format!("not settled: {what} was written {:?} ago", now - at));
        }
        for (name, size) in sizes {
            let key = format!("/registry/apps/deployments/one/{name}");
            let found = self.objects.get(&*key).map(|object| object["spec"]["replicas"].clone());
            if found != Some((*size).into()) {
                self.violation(format!("{key} was to have {size} replicas: {found:?}"));
            }
        }
        let objects: Vec<Value> = self.objects.values().cloned().collect();
        for object in &objects {
            let name = format!(
                "{} {}/{}",
                object["kind"], object["metadata"]["namespace"], object["metadata"]["name"]
            );
            if object["metadata"]["namespace"] == "two" {
                self.violation(format!("{name} is left of a deleted namespace"));
            }
            if object["kind"] == "Deployment" {
                let (spec, status) = (&object["spec"], &object["status"]);
                let full = ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| {
                    status[field].as_i64().unwrap_or(0) == spec["replicas"].as_i64().unwrap_or(1)
                });
                if !full || status["observedGeneration"] != object["metadata"]["generation"] {
                    self.violation(format!("{name} is not complete: {status} for {}", spec["replicas"]));
                }
            }
            self.check_claims(object, &name, &objects);
            let owners = object["metadata"]["ownerReferences"].as_array();
            for owner in owners.into_iter().flatten() {
                if !objects.iter().any(|other| other["metadata"]["uid"] == owner["uid"]) {
                    self.violation(format!("{name} outlived its owner {} {}", owner["kind"], owner["name"]));
                }
            }
        }
    }

    /// A ReplicaSet controls those Pods that its selector matches, and no others.
    fn check_claims(&mut self, pod: &Value, name: &str, objects: &[Value]) {
        if pod["kind"] != "Pod" || !is_active(pod) {
            return;
        }
        let owner = controller(pod, "ReplicaSet");
        for set in objects.iter().filter(|set| set["kind"] == "ReplicaSet") {
            let near = set["metadata"]["namespace"] == pod["metadata"]["namespace"];
            let labels = set["spec"]["selector"]["matchLabels"].as_object();
            let matches = near
                && labels.is_some_and(|labels| {
                    labels.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value)
                });
            if owner == Some(uid(set)) && !matches {
                self.violation(format!("{name} was not released by {}", set["metadata"]["name"]));
            }
            if owner.is_none() && matches {
                self.violation(format!("{name} was not adopted by {}", set["metadata"]["name"]));
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

fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// The uid of the controller of this kind.
fn controller<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|owner| owner["controller"] == true && owner["kind"] == kind)?["uid"].as_str()
}

fn is_active(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && !is_terminal(pod)
}

fn is_terminal(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
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
