//! Golden sequences: a Deployment, its sets and a minimal ReplicaSet controller, pass by pass.

use super::*;
use serde_json::{Value, json};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + second).unwrap()
}

struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    pods: Vec<Arc<Facts>>,
    second: i64,
    serial: u32,
    trace: Vec<String>,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut whole = json!({
            "replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 10,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}},
        });
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let deployment = json!({"metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1}, "spec": whole});
        World {
            deployment: serde_json::from_value(deployment).unwrap(),
            sets: Vec::new(),
            pods: Vec::new(),
            second: 0,
            serial: 0,
            trace: Vec::new(),
        }
    }

    fn spec(&mut self) -> &mut k8s_openapi::api::apps::v1::DeploymentSpec {
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
        self.deployment.spec.as_mut().unwrap()
    }

    fn image(&mut self, image: &str) {
        self.spec().template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    }

    /// Runs one pass and applies it; whether it wrote anything.
    fn pass(&mut self) -> bool {
        let sets: Vec<_> = self.sets.iter().cloned().map(Arc::new).collect();
        let plan =
            plan(Observed { deployment: &self.deployment, sets: &sets, pods: &self.pods }, at(self.second));
        let wrote = !plan.steps.is_empty() || plan.status.is_some();
        for step in plan.steps {
            let before = rollout::total(&self.sets);
            match step {
                Step::Create(mut set) => {
                    self.serial += 1;
                    let name = format!("rs{}", self.serial);
                    set.metadata.uid = Some(name.clone());
                    set.metadata.creation_timestamp =
                        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(self.second)));
                    self.trace.push(format!("create {name} {}", size(&set)));
                    self.sets.push(*set);
                }
                Step::Update { set, scaled } => {
                    let old = self.sets.iter_mut().find(|old| old.metadata.uid == set.metadata.uid).unwrap();
                    let uid = set.metadata.uid.clone().unwrap();
                    let name = set.metadata.name.clone().unwrap();
                    self.trace
                        .push(scaled.map_or(format!("annotate {uid}"), |text| text.replace(&name, &uid)));
                    *old = *set;
                }
                Step::Delete(set) => {
                    self.trace.push(format!("delete {}", set.metadata.uid.clone().unwrap()));
                    self.sets.retain(|old| old.metadata.uid != set.metadata.uid);
                }
            }
            // Also between two writes of one pass: the next one may fail.
            let (total, limits) = (rollout::total(&self.sets), Limits::of(&self.deployment));
            assert!(total <= before.max(limits.replicas + limits.surge), "{total}: {:?}", self.trace);
        }
        if let Some(deployment) = plan.status {
            self.deployment = *deployment;
        }
        wrote
    }

    /// The ReplicaSet controller and the nodes catch up: every Pod is there and available.
    fn act(&mut self, healthy: impl Fn(&ReplicaSet) -> bool) {
        for set in &mut self.sets {
            let available = if healthy(set) { size(set) } else { 0 };
            set.status = Some(
                serde_json::from_value(json!({
                    "replicas": size(set), "readyReplicas": available, "availableReplicas": available,
                    "terminatingReplicas": 0, "observedGeneration": set.metadata.generation,
                }))
                .unwrap(),
            );
        }
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            let wrote = self.pass();
            let before = self.sets.clone();
            self.act(|_| true);
            if !wrote && before == self.sets {
                return;
            }
            self.second += 1;
        }
        panic!("does not settle: {:#?}", self.trace);
    }

    fn trace(&mut self) -> Vec<String> {
        std::mem::take(&mut self.trace)
    }

    fn condition(&self, type_: &str) -> (String, String) {
        let status = self.deployment.status.as_ref().unwrap();
        let condition = status::condition(status, type_).unwrap();
        (condition.status.clone(), condition.reason.clone().unwrap())
    }

    fn message(&self, type_: &str) -> String {
        let status = self.deployment.status.as_ref().unwrap();
        let name = self.sets.last().and_then(|set| set.metadata.name.as_deref()).unwrap_or_default();
        status::condition(status, type_).unwrap().message.clone().unwrap().replace(name, "RS")
    }

    fn revision(&self) -> &str {
        annotations::get(&self.deployment.metadata, REVISION).unwrap()
    }
}

#[test]
fn a_first_rollout() {
    let mut world = World::new(json!({}));
    assert!(world.pass());
    assert_eq!(world.trace(), ["create rs1 3"]);
    assert_eq!(world.revision(), "1");
    assert_eq!(world.condition("Progressing"), ("True".into(), "NewReplicaSetCreated".into()));
    assert_eq!(world.condition("Available"), ("False".into(), "MinimumReplicasUnavailable".into()));
    world.settle();
    assert_eq!(world.trace(), [] as [&str; 0]);
    assert_eq!(world.condition("Progressing"), ("True".into(), "NewReplicaSetAvailable".into()));
    assert_eq!(world.condition("Available"), ("True".into(), "MinimumReplicasAvailable".into()));
    let set = &world.sets[0];
    assert!(set.metadata.name.as_ref().unwrap().starts_with("web-"));
    let hash = &set.metadata.labels.as_ref().unwrap()["pod-template-hash"];
    assert_eq!(
        set.spec.as_ref().unwrap().selector.match_labels.as_ref().unwrap()["pod-template-hash"],
        *hash
    );
    assert_eq!(annotations::get(&set.metadata, annotations::MAX_REPLICAS), Some("4"));
    let status = world.deployment.status.clone().unwrap();
    assert_eq!(
        (status.replicas, status.updated_replicas, status.available_replicas),
        (Some(3), Some(3), Some(3))
    );
    assert_eq!((status.unavailable_replicas, status.terminating_replicas), (None, Some(0)));
    assert!(!world.pass());
}

#[test]
fn a_rolling_update_and_its_undo() {
    let mut world = World::new(json!({}));
    world.settle();
    world.trace();
    world.image("v2");
    world.settle();
    assert_eq!(
        world.trace(),
        [
            "create rs2 1",
            "Scaled down replica set rs1 from 3 to 2",
            "Scaled up replica set rs2 from 1 to 2",
            "Scaled down replica set rs1 from 2 to 1",
            "Scaled up replica set rs2 from 2 to 3",
            "Scaled down replica set rs1 from 1 to 0",
        ]
    );
    assert_eq!(world.revision(), "2");
    world.image("v1");
    world.settle();
    assert_eq!(
        world.trace()[..2],
        ["Scaled up replica set rs1 from 0 to 1", "Scaled down replica set rs2 from 3 to 2"]
    );
    assert_eq!((world.revision(), world.sets.len()), ("3", 2));
    assert_eq!(annotations::get(&world.sets[0].metadata, annotations::REVISION_HISTORY), Some("1"));
}

#[test]
fn an_undo_without_surge_shrinks_before_it_grows() {
    let mut world = World::new(json!({"replicas": 10, "strategy": {
        "type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "50%"}}}));
    world.settle();
    world.image("v2");
    world.settle();
    world.trace();
    world.image("v1");
    assert!(world.pass());
    assert_eq!(
        world.trace(),
        ["Scaled down replica set rs2 from 10 to 5", "Scaled up replica set rs1 from 0 to 5"]
    );
}

#[test]
fn recreate_never_mixes() {
    let mut world = World::new(json!({"strategy": {"type": "Recreate"}}));
    world.settle();
    world.trace();
    world.image("v2");
    let pod = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z",
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "rs1", "controller": true}]},
        "status": {"phase": "Running"}});
    world.pods = vec![Arc::new(Facts::of(&serde_json::from_value(pod).unwrap()))];
    world.settle();
    assert_eq!(world.trace(), ["Scaled down replica set rs1 from 3 to 0"], "a terminating Pod still runs");
    world.pods.clear();
    world.settle();
    assert_eq!(world.trace(), ["create rs2 3"]);
}

#[test]
fn recreate_waits_for_a_set_that_has_not_looked_at_its_size() {
    let mut world = World::new(json!({"strategy": {"type": "Recreate"}}));
    world.settle();
    world.image("v2");
    world.pass();
    world.trace();
    // Its status is from before: Pods may be in the making that no one has seen yet.
    world.sets[0].metadata.generation = Some(2);
    let status = world.sets[0].status.as_mut().unwrap();
    (status.replicas, status.observed_generation) = (0, Some(1));
    world.pass();
    assert_eq!(world.trace(), [] as [&str; 0]);
    world.settle();
    assert_eq!(world.trace(), ["create rs2 3"]);
}

#[test]
fn a_pause_amid_recreate_mixes_nothing() {
    let mut world = World::new(json!({"strategy": {"type": "Recreate"}}));
    for image in ["v1", "v2"] {
        world.image(image);
        world.settle();
    }
    // Back to the first template while a Pod of the second ends.
    world.image("v1");
    world.pass();
    world.act(|_| true);
    world.trace();
    let pod = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z",
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "rs2", "controller": true}]},
        "status": {"phase": "Running"}});
    world.pods = vec![Arc::new(Facts::of(&serde_json::from_value(pod).unwrap()))];
    world.spec().paused = Some(true);
    world.settle();
    assert_eq!(world.trace(), [] as [&str; 0]);
    world.pods.clear();
    world.settle();
    assert_eq!(world.trace(), ["Scaled up replica set rs1 from 0 to 3"]);
}

#[test]
fn conditions_read_as_upstreams() {
    let mut world = World::new(json!({"progressDeadlineSeconds": 10}));
    world.pass();
    assert_eq!(world.message("Progressing"), "Created new replica set \"RS\"");
    assert_eq!(world.message("Available"), "Deployment does not have minimum availability.");
    world.act(|_| false);
    world.pass();
    assert_eq!(world.message("Progressing"), "ReplicaSet \"RS\" is progressing.");
    let mut stuck = World {
        deployment: world.deployment.clone(),
        sets: world.sets.clone(),
        second: 12,
        ..World::new(json!({}))
    };
    stuck.pass();
    assert_eq!(stuck.message("Progressing"), "ReplicaSet \"RS\" has timed out progressing.");
    world.settle();
    assert_eq!(world.message("Progressing"), "ReplicaSet \"RS\" has successfully progressed.");
    assert_eq!(world.message("Available"), "Deployment has minimum availability.");
    world.spec().paused = Some(true);
    world.pass();
    assert_eq!(world.message("Progressing"), "Deployment is paused");
    world.spec().paused = Some(false);
    world.pass();
    // What no condition tells of was found, not made.
    world.deployment.status = None;
    world.pass();
    let found = status::condition(world.deployment.status.as_ref().unwrap(), "Progressing").unwrap();
    assert_eq!(found.reason.as_deref(), Some("NewReplicaSetAvailable"));
    let failed = creation_failed(&world.deployment, "web-1", "no quota", at(0)).unwrap();
    let told = status::condition(failed.status.as_ref().unwrap(), "Progressing").unwrap().clone();
    assert_eq!((told.status.as_str(), told.reason.as_deref()), ("False", Some("ReplicaSetCreateError")));
    assert_eq!(told.message.as_deref(), Some("Failed to create new replica set \"web-1\": no quota"));
}

#[test]
fn min_ready_seconds_reach_the_set_at_once() {
    let mut world = World::new(json!({}));
    world.settle();
    world.trace();
    world.spec().min_ready_seconds = Some(5);
    world.settle();
    assert_eq!(world.trace(), ["annotate rs1"]);
    assert_eq!(world.sets[0].spec.as_ref().unwrap().min_ready_seconds, Some(5));
}

#[test]
fn a_stuck_rollout_exceeds_its_deadline() {
    let mut world = World::new(json!({"progressDeadlineSeconds": 10}));
    world.settle();
    world.image("broken");
    for _ in 0..20 {
        let wrote = world.pass();
        world.act(|set| set.metadata.uid.as_deref() == Some("rs1"));
        if !wrote {
            break;
        }
    }
    let sets: Vec<_> = world.sets.iter().cloned().map(Arc::new).collect();
    let wait = plan(Observed { deployment: &world.deployment, sets: &sets, pods: &[] }, at(world.second))
        .wake_after
        .unwrap();
    assert_eq!(wait, Duration::from_secs(11));
    world.second += 11;
    assert!(world.pass());
    assert_eq!(world.condition("Progressing"), ("False".into(), "ProgressDeadlineExceeded".into()));
    assert_eq!(world.condition("Available"), ("True".into(), "MinimumReplicasAvailable".into()));
    assert!(!world.pass());
    assert_eq!(world.sets.iter().map(size).collect::<Vec<_>>(), [3, 1]);
}

#[test]
fn a_pause_only_scales() {
    let mut world = World::new(json!({}));
    world.settle();
    world.trace();
    world.spec().paused = Some(true);
    world.image("v2");
    world.settle();
    assert_eq!(world.trace(), [] as [&str; 0]);
    assert_eq!(world.condition("Progressing"), ("Unknown".into(), "DeploymentPaused".into()));
    world.spec().replicas = Some(5);
    world.settle();
    assert_eq!(world.trace(), ["Scaled up replica set rs1 from 3 to 5"]);
    world.spec().paused = Some(false);
    world.pass();
    assert_eq!(world.trace(), ["create rs2 2", "Scaled down replica set rs1 from 5 to 4"]);
    world.settle();
    assert_eq!(world.condition("Progressing"), ("True".into(), "NewReplicaSetAvailable".into()));
}

#[test]
fn old_revisions_are_cleaned_up() {
    let mut world = World::new(json!({"revisionHistoryLimit": 1}));
    for image in ["v1", "v2", "v3"] {
        world.image(image);
        world.settle();
    }
    assert!(world.trace().contains(&"delete rs1".to_owned()));
    assert_eq!(
        world.sets.iter().map(|set| set.metadata.uid.clone().unwrap()).collect::<Vec<_>>(),
        ["rs2", "rs3"]
    );
    // The revision counts, not the age: rs2 served again after rs3.
    for image in ["v2", "v4"] {
        world.image(image);
        world.settle();
    }
    assert_eq!(
        world.sets.iter().map(|set| set.metadata.uid.clone().unwrap()).collect::<Vec<_>>(),
        ["rs2", "rs4"]
    );
}

#[test]
fn a_scaled_deployment_scales_its_set() {
    let mut world = World::new(json!({}));
    world.settle();
    world.trace();
    world.spec().replicas = Some(30);
    world.settle();
    assert_eq!(world.trace(), ["Scaled up replica set rs1 from 3 to 30"]);
    assert_eq!(annotations::get(&world.sets[0].metadata, annotations::MAX_REPLICAS), Some("38"));
    world.spec().replicas = Some(0);
    world.settle();
    assert_eq!(world.trace(), ["Scaled down replica set rs1 from 30 to 0"]);
}

#[test]
fn a_rollout_turned_recreate_while_scaled_goes_on() {
    let mut world = World::new(json!({}));
    world.settle();
    world.image("v2");
    world.pass();
    world.act(|_| true);
    world.trace();
    let spec = world.spec();
    spec.strategy.as_mut().unwrap().type_ = Some("Recreate".into());
    spec.replicas = Some(4);
    world.settle();
    assert_eq!(
        world.trace(),
        ["Scaled down replica set rs1 from 3 to 0", "Scaled up replica set rs2 from 1 to 4"]
    );
}

#[test]
fn a_selector_of_everything_does_nothing() {
    let mut world = World::new(json!({"selector": {}}));
    let plan = plan(Observed { deployment: &world.deployment, sets: &[], pods: &[] }, at(0));
    assert!(plan.selects_all && plan.steps.is_empty());
    world.pass();
    assert!(!world.pass());
}

#[test]
fn a_collision_gives_another_name() {
    let mut world = World::new(json!({}));
    let before = new_set(&world.deployment).metadata.name;
    world.deployment = collided(&world.deployment);
    assert_ne!(new_set(&world.deployment).metadata.name, before);
    assert_eq!(world.deployment.status.unwrap().collision_count, Some(1));
}
