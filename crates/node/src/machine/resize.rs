//! Resizing in place: what the node has given a Pod, what is set on its containers, and what is to be
//! done where the two differ. Upstream counterparts: `pkg/kubelet/allocation`,
//! `computePodResizeAction`.

use super::{Memory, spec};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use serde::{Deserialize, Serialize};
use skeg_api::predicates::{RESIZABLE, pod_requests, resource_lists};
use skeg_base::Timestamp;
use skeg_runtime::Resources;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// What the node has given a Pod: the spec may ask for something else by now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    pub containers: BTreeMap<String, ResourceRequirements>,
    pub pod: Option<ResourceRequirements>,
}

/// Survives restarts of the agent, as a file of the Pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub allocated: Allocation,
    /// What is set on running containers, where that is not what is allocated.
    pub actuated: BTreeMap<String, ResourceRequirements>,
    /// What is set on the Pod as a whole, where that is not what follows from the allocation.
    pub group: Option<Resources>,
}

/// Why a resize waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// `Deferred` or `Infeasible`.
    pub reason: &'static str,
    pub message: String,
    pub generation: Option<i64>,
    pub since: Timestamp,
}

/// What a worker knows of its Pod's sizes.
#[derive(Clone, Debug, Default)]
pub struct Resize {
    pub pending: Option<Pending>,
    /// What is set on each container that was started.
    pub actuated: BTreeMap<String, ResourceRequirements>,
    /// What is set on the Pod as a whole, once it has a sandbox.
    pub group: Option<Resources>,
    /// The generation of what is allocated.
    pub generation: Option<i64>,
    pub busy: bool,
    pub error: Option<String>,
    pub retry_at: Option<Timestamp>,
    /// A resize began and was not told to be over.
    pub begun: bool,
}

fn containers_mut(spec: &mut PodSpec) -> impl Iterator<Item = &mut Container> {
    spec.init_containers.iter_mut().flatten().chain(&mut spec.containers)
}

impl Allocation {
    /// All that the spec asks for.
    pub fn of(pod: &Pod) -> Self {
        let spec = spec(pod);
        let all = super::all_containers(spec);
        Allocation {
            containers: all.map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect(),
            pod: spec.resources.clone(),
        }
    }

    /// The Pod with what it has been given; nothing where that is what it asks for.
    pub fn apply(&self, pod: &Pod) -> Option<Pod> {
        if !self.differs(pod) {
            return None;
        }
        let mut pod = pod.clone();
        let spec = pod.spec.get_or_insert_default();
        spec.resources.clone_from(&self.pod);
        for container in containers_mut(spec) {
            if let Some(resources) = self.containers.get(&container.name) {
                container.resources = Some(resources.clone());
            }
        }
        Some(pod)
    }

    pub fn differs(&self, pod: &Pod) -> bool {
        let spec = spec(pod);
        let of_container = |c: &Container| {
            let own = self.containers.get(&c.name);
            own.is_some_and(|own| !changed(Some(own), c.resources.as_ref()).is_empty())
        };
        !changed(self.pod.as_ref(), spec.resources.as_ref()).is_empty()
            || super::all_containers(spec).any(of_container)
    }
}

/// Which of the resizable resources differ, in their requests or their limits.
pub fn changed(a: Option<&ResourceRequirements>, b: Option<&ResourceRequirements>) -> Vec<&'static str> {
    let ((requests, limits), (other_requests, other_limits)) = (resource_lists(a), resource_lists(b));
    let differs = |name: &&str| {
        requests.get(*name) != other_requests.get(*name) || limits.get(*name) != other_limits.get(*name)
    };
    RESIZABLE.into_iter().filter(differs).collect()
}

fn restart_required(container: &Container, resource: &str) -> bool {
    let mut policies = container.resize_policy.iter().flatten();
    policies.any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
}

/// What of a running container is not as it is allocated.
fn outdated<'a>(memory: &'a Memory, container: &'a Container) -> Vec<&'static str> {
    let running = memory.container(&container.name).is_some_and(super::ContainerMemory::is_running);
    match memory.resize.actuated.get(&container.name).filter(|_| running) {
        Some(actuated) => changed(Some(actuated), container.resources.as_ref()),
        None => Vec::new(),
    }
}

/// Whether a running container must be started anew to get what is allocated.
pub fn must_restart(memory: &Memory, container: &Container) -> bool {
    outdated(memory, container).into_iter().any(|resource| restart_required(container, resource))
}

/// Whether something that runs is not as it is allocated.
pub fn in_progress(pod: &Pod, memory: &Memory) -> bool {
    let group = crate::security::pod_resources(pod);
    super::all_containers(spec(pod)).any(|c| !outdated(memory, c).is_empty())
        || memory.resize.group.as_ref().is_some_and(|set| *set != group)
}

/// A Pod that waits for a larger size, and what it has now.
pub struct Asking<'a> {
    pub desired: &'a Pod,
    pub allocated: &'a Pod,
    pub pending: Option<&'a Pending>,
}

/// In which order resizes are tried: those that ask for no more, then by priority, by QoS class, and
/// by how long they wait.
pub fn order(asking: &Asking<'_>) -> impl Ord + use<> {
    let (now, before) = (pod_requests(asking.desired), pod_requests_of_spec(asking.allocated));
    let grows = RESIZABLE.into_iter().any(|name| now.get(name) > before.get(name));
    let priority = spec(asking.desired).priority.unwrap_or(0);
    let class = asking.desired.status.as_ref().and_then(|s| s.qos_class.as_deref());
    let since = asking.pending.map_or(Timestamp::MAX, |pending| pending.since);
    (grows, Reverse(priority), class != Some("Guaranteed"), since)
}

/// What a spec asks for, whatever the status says.
pub fn pod_requests_of_spec(pod: &Pod) -> skeg_api::predicates::Resources {
    pod_requests(&Pod { status: None, ..pod.clone() })
}

#[cfg(test)]
mod tests {
    use super::super::Restart;
    use super::super::plan::tests_support::*;
    use super::*;
    use serde_json::json;

    fn sized(cpu: &str, policy: &str) -> Pod {
        let policy = json!([{"resourceName": "cpu", "restartPolicy": policy}]);
        pod(
            json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}, "resizePolicy": policy}]}),
        )
    }

    #[test]
    fn a_pod_keeps_what_it_was_given() {
        let (small, large) = (sized("1", "NotRequired"), sized("2", "NotRequired"));
        let allocation = Allocation::of(&small);
        assert!(!allocation.differs(&small) && allocation.differs(&large));
        assert_eq!(allocation.apply(&small), None);
        assert_eq!(allocation.apply(&large), Some(small));
        assert!(!allocation.differs(&sized("1000m", "NotRequired")), "another way to write it");
        let stored = Checkpoint { allocated: allocation, ..Default::default() };
        let text = serde_json::to_string(&stored).unwrap();
        assert_eq!(serde_json::from_str::<Checkpoint>(&text).unwrap(), stored);
    }

    #[test]
    fn resizes_are_tried_in_upstreams_order() {
        let at = |s| Timestamp::from_second(1_700_000_000 + s).unwrap();
        let asking = |name: &str, cpu: &str, priority: i32, class: &str, since: i64| {
            let mut pod = sized(cpu, "NotRequired");
            pod.metadata.name = Some(name.into());
            pod.spec.as_mut().unwrap().priority = Some(priority);
            pod.status = serde_json::from_value(json!({"qosClass": class})).unwrap();
            let pending =
                Pending { reason: "Deferred", message: String::new(), generation: None, since: at(since) };
            (pod, pending)
        };
        let allocated = sized("2", "NotRequired");
        let all = [
            asking("late", "3", 0, "Burstable", 9),
            asking("early", "3", 0, "Burstable", 1),
            asking("guaranteed", "3", 0, "Guaranteed", 9),
            asking("important", "3", 7, "Burstable", 9),
            asking("shrinks", "1", 0, "Burstable", 9),
        ];
        let mut sorted: Vec<_> = all.iter().collect();
        sorted.sort_by_key(|(desired, pending)| {
            order(&Asking { desired, allocated: &allocated, pending: Some(pending) })
        });
        let names: Vec<&str> = sorted.iter().map(|(pod, _)| crate::text(&pod.metadata.name)).collect();
        assert_eq!(names, ["shrinks", "important", "guaranteed", "early", "late"]);
    }

    /// A running container `a` that was started with one core.
    fn up(known: super::super::ContainerMemory) -> Memory {
        let small = sized("1", "NotRequired");
        let mut memory = with(ready(), &[("a", known)]);
        memory.resize.actuated = Allocation::of(&small).containers;
        memory.resize.group = Some(crate::security::pod_resources(&small));
        memory
    }

    #[test]
    fn sizes_change_in_place_or_by_a_restart() {
        check(&sized("1", "NotRequired"), &up(running()), 0, &[]);
        let large = sized("2", "NotRequired");
        check(&large, &up(running()), 0, &["Resize"]);
        let mut busy = up(running());
        busy.resize.busy = true;
        check(&large, &busy, 0, &[]);
        let mut failed = up(running());
        failed.resize.retry_at = Some(at(5));
        failed.resize.error = Some("no".into());
        assert_eq!(check(&large, &failed, 0, &[]).wake_at, Some(at(5)));
        check(&large, &failed, 5, &["Resize"]);

        let restart = sized("2", "RestartContainer");
        check(&restart, &up(running()), 0, &["stop a"]);
        let mut stopped = exited(0);
        stopped.again = Some(Restart::AtOnce);
        // The Pod grows before its container starts with the new size.
        check(&restart, &up(stopped.clone()), 2, &["Resize"]);
        let mut grown = up(stopped);
        grown.resize.group = Some(crate::security::pod_resources(&restart));
        check(&restart, &grown, 2, &["start a"]);
    }

    #[test]
    fn a_container_that_is_to_start_again_ends_no_pod() {
        let mut stopped = exited(0);
        stopped.again = Some(Restart::AtOnce);
        let mut pod = sized("1", "RestartContainer");
        pod.spec.as_mut().unwrap().restart_policy = Some("OnFailure".into());
        check(&pod, &with(ready(), &[("a", stopped)]), 2, &["start a"]);
    }
}
