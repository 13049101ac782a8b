//! The kinds that keep so many Pods of a template: ReplicaSets, and ReplicationControllers, which
//! are the same but for the form of their selector.
//! Upstream counterpart: `pkg/controller/replication/conversion.go`.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use skeg_client::Typed;
use std::borrow::Cow;

pub(crate) trait Kind: Typed {
    /// Of its work queue.
    const NAME: &str;
    /// Of its identity and its events.
    const COMPONENT: &str;

    /// The object as a ReplicaSet.
    fn set(&self) -> Cow<'_, ReplicaSet>;

    /// The object with what a ReplicaSet's status says.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Kind for ReplicaSet {
    const NAME: &str = "replicaset";
    const COMPONENT: &str = "replicaset-controller";

    fn set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        ReplicaSet { status: Some(status), ..self.clone() }
    }
}

impl Kind for ReplicationController {
    const NAME: &str = "replicationcontroller";
    const COMPONENT: &str = "replication-controller";

    fn set(&self) -> Cow<'_, ReplicaSet> {
        let spec = self.spec.clone().unwrap_or_default();
        let conditions = |status: &ReplicationControllerStatus| {
            let list = status.conditions.clone()?.into_iter();
            let same = list.map(|c| ReplicaSetCondition {
                type_: c.type_,
                status: c.status,
                reason: c.reason,
                message: c.message,
                last_transition_time: c.last_transition_time,
            });
            Some(same.collect())
        };
        Cow::Owned(ReplicaSet {
            metadata: self.metadata.clone(),
            spec: Some(ReplicaSetSpec {
                replicas: spec.replicas,
                min_ready_seconds: spec.min_ready_seconds,
                selector: LabelSelector { match_labels: spec.selector, match_expressions: None },
                template: spec.template,
            }),
            status: self.status.as_ref().map(|status| ReplicaSetStatus {
                replicas: status.replicas,
                fully_labeled_replicas: status.fully_labeled_replicas,
                ready_replicas: status.ready_replicas,
                available_replicas: status.available_replicas,
                terminating_replicas: None,
                observed_generation: status.observed_generation,
                conditions: conditions(status),
            }),
        })
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let conditions = status.conditions.map(|list| {
            let same = list.into_iter().map(|c| ReplicationControllerCondition {
                type_: c.type_,
                status: c.status,
                reason: c.reason,
                message: c.message,
                last_transition_time: c.last_transition_time,
            });
            same.collect()
        });
        let status = ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions,
        };
        ReplicationController { status: Some(status), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_replication_controller_is_a_set_and_back() {
        let mut object = json!({
            "metadata": {"name": "a", "uid": "u", "generation": 3},
            "spec": {"replicas": 2, "minReadySeconds": 5, "selector": {"app": "a"},
                "template": {"metadata": {"labels": {"app": "a"}}}},
            "status": {"replicas": 2, "fullyLabeledReplicas": 2, "readyReplicas": 1, "availableReplicas": 1,
                "observedGeneration": 3, "conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "r",
                "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        let controller: ReplicationController = serde_json::from_value(object.clone()).unwrap();
        let set = controller.set().into_owned();
        let back = controller.with_status(set.status.clone().unwrap());
        assert_eq!(back, controller);
        object["spec"]["selector"] = json!({"matchLabels": {"app": "a"}});
        assert_eq!(set, serde_json::from_value(object).unwrap());
    }
}
