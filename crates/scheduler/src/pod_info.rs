//! What the scheduler knows of a Pod, worked out once. Upstream counterpart: `framework.PodInfo`.

use crate::amounts::Amounts;
use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as TypedSelector;
use skeg_api::predicates::{self, HostPort};
use skeg_api::selector::{LabelSelector, Operator, Requirement};
use skeg_client::ObjectKey;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub type Labels = BTreeMap<String, String>;

/// A Pod as it counts on its Node.
#[derive(Debug)]
pub struct PodInfo {
    pub key: ObjectKey,
    pub uid: Arc<str>,
    /// `spec.nodeName`, where set.
    pub node: Option<Arc<str>>,
    pub priority: i32,
    pub requests: Amounts,
    /// CPU in thousandths and memory in bytes as scoring counts them.
    pub non_zero: (i64, i64),
    pub host_ports: Vec<HostPort>,
    pub labels: Labels,
    /// Deletion has begun.
    pub terminating: bool,
    /// Rules about other Pods; most Pods have none.
    pub affinity: Option<Box<PodAffinityRules>>,
}

#[derive(Debug, Default)]
pub struct PodAffinityRules {
    pub required: Vec<AffinityTerm>,
    pub required_anti: Vec<AffinityTerm>,
    pub preferred: Vec<(i64, AffinityTerm)>,
    pub preferred_anti: Vec<(i64, AffinityTerm)>,
}

/// Which Pods a rule is about, and the Node label that says what "near" means.
#[derive(Debug)]
pub struct AffinityTerm {
    namespaces: BTreeSet<String>,
    namespace_selector: LabelSelector,
    selector: LabelSelector,
    pub topology_key: String,
}

impl AffinityTerm {
    /// Whether the rule is about this Pod; `namespace_labels` are those of the Pod's Namespace.
    pub fn matches(&self, pod: &PodInfo, namespace_labels: &Labels) -> bool {
        let namespace = self.namespaces.contains(&*pod.key.namespace)
            || self.namespace_selector.matches(namespace_labels);
        namespace && self.selector.matches(&pod.labels)
    }

    fn of(term: &PodAffinityTerm, namespace: &str, labels: &Labels) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        let mut selector = selector_of(term.label_selector.as_ref());
        // Without a selector the keys are ignored.
        if term.label_selector.is_some() {
            add_keys(&mut selector, term.match_label_keys.as_deref(), Operator::In, labels);
            add_keys(&mut selector, term.mismatch_label_keys.as_deref(), Operator::NotIn, labels);
        }
        AffinityTerm {
            namespaces,
            namespace_selector: selector_of(term.namespace_selector.as_ref()),
            selector,
            topology_key: term.topology_key.clone(),
        }
    }
}

/// No selector selects nothing; one that does not parse neither.
pub(crate) fn selector_of(selector: Option<&TypedSelector>) -> LabelSelector {
    match selector {
        Some(_) => LabelSelector::from_typed(selector).unwrap_or_else(|_| LabelSelector::nothing()),
        None => LabelSelector::nothing(),
    }
}

/// Narrows a selector by the Pod's own values of some labels.
pub(crate) fn add_keys(
    selector: &mut LabelSelector,
    keys: Option<&[String]>,
    operator: Operator,
    labels: &Labels,
) {
    for key in keys.unwrap_or_default() {
        if let Some(value) = labels.get(key)
            && let Ok(requirement) = Requirement::new(key, operator, vec![value.clone()])
        {
            selector.add(requirement);
        }
    }
}

impl PodInfo {
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let labels = meta.labels.clone().unwrap_or_default();
        let node = spec.and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty());
        PodInfo {
            key: ObjectKey::new(namespace, meta.name.as_deref().unwrap_or_default()),
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            node: node.map(Into::into),
            priority: spec.and_then(|s| s.priority).unwrap_or(0),
            requests: Amounts::of(&predicates::pod_requests(pod)),
            non_zero: predicates::non_zero_requests(pod),
            host_ports: predicates::host_ports(pod),
            terminating: meta.deletion_timestamp.is_some(),
            affinity: affinity_rules(pod, namespace, &labels),
            labels,
        }
    }
}

impl PodInfo {
    /// Whether another state of the same Pod makes no difference to any decision.
    pub fn counts_as(&self, other: &PodInfo) -> bool {
        self.node == other.node
            && self.requests == other.requests
            && self.non_zero == other.non_zero
            && self.host_ports == other.host_ports
            && self.labels == other.labels
            && self.terminating == other.terminating
    }
}

fn affinity_rules(pod: &Pod, namespace: &str, labels: &Labels) -> Option<Box<PodAffinityRules>> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?;
    let required = |terms: &Option<Vec<PodAffinityTerm>>| -> Vec<AffinityTerm> {
        terms.iter().flatten().map(|term| AffinityTerm::of(term, namespace, labels)).collect()
    };
    let preferred = |terms: &Option<Vec<WeightedPodAffinityTerm>>| -> Vec<(i64, AffinityTerm)> {
        let of = |term: &WeightedPodAffinityTerm| {
            (i64::from(term.weight), AffinityTerm::of(&term.pod_affinity_term, namespace, labels))
        };
        terms.iter().flatten().map(of).collect()
    };
    let mut rules = PodAffinityRules::default();
    if let Some(near) = &affinity.pod_affinity {
        rules.required = required(&near.required_during_scheduling_ignored_during_execution);
        rules.preferred = preferred(&near.preferred_during_scheduling_ignored_during_execution);
    }
    if let Some(far) = &affinity.pod_anti_affinity {
        rules.required_anti = required(&far.required_during_scheduling_ignored_during_execution);
        rules.preferred_anti = preferred(&far.preferred_during_scheduling_ignored_during_execution);
    }
    let none = rules.required.is_empty()
        && rules.required_anti.is_empty()
        && rules.preferred.is_empty()
        && rules.preferred_anti.is_empty();
    (!none).then(|| Box::new(rules))
}

/// A Pod that looks for a Node.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub info: Arc<PodInfo>,
    pub pod: Arc<Pod>,
    /// The Pods of the same Service and controller, from which it keeps some distance where its
    /// own rules say nothing.
    pub group: Option<LabelSelector>,
}

impl Candidate {
    pub fn new(pod: Arc<Pod>) -> Self {
        Candidate { info: Arc::new(PodInfo::of(&pod)), pod, group: None }
    }

    /// With the group that is given by the selectors of the Services that select the Pod and of
    /// its controller. Upstream counterpart: `helper.DefaultSelector`.
    #[must_use]
    pub fn with_group<'a>(
        mut self,
        services: impl IntoIterator<Item = &'a Labels>,
        controller: Option<&TypedSelector>,
    ) -> Self {
        let of_pod = |selector: &&Labels| {
            !selector.is_empty()
                && selector.iter().all(|(key, value)| self.info.labels.get(key) == Some(value))
        };
        let labels: BTreeMap<&str, &str> = services
            .into_iter()
            .filter(of_pod)
            .flatten()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        let mut group = LabelSelector::from_labels(labels);
        if let Some(selector) = controller {
            for requirement in selector_of(Some(selector)).requirements() {
                group.add(requirement.clone());
            }
        }
        self.group = Some(group).filter(|group| !group.is_everything());
        self
    }
}
