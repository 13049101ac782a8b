//! PodTopologySpread: Pods of a kind spread over zones, Nodes or other groups of Nodes, by the
//! constraints in the Pod.

use crate::framework::{MAX_NODE_SCORE, PreFilter, PreScore, Verdict, unresolvable, unschedulable};
use crate::pod_info::{Candidate, add_keys, selector_of};
use crate::snapshot::{NodeInfo, Snapshot};
use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use skeg_api::predicates;
use skeg_api::selector::{LabelSelector, Operator};
use skeg_base::{HashMap, new_map, new_set};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The score of a Node that lacks a topology label.
const IGNORED: i64 = -1;

struct Constraint {
    key: String,
    max_skew: i64,
    min_domains: i64,
    selector: LabelSelector,
    honor_affinity: bool,
    honor_taints: bool,
}

impl Constraint {
    fn of(constraint: &TopologySpreadConstraint, pod: &Candidate) -> Self {
        let mut selector = selector_of(constraint.label_selector.as_ref());
        add_keys(&mut selector, constraint.match_label_keys.as_deref(), Operator::In, &pod.info.labels);
        Constraint {
            key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
            selector,
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    /// Whether Pods on the Node count.
    fn includes(&self, pod: &Candidate, node: &NodeInfo) -> bool {
        let facts = &node.facts.node;
        let tolerated = || {
            let effects = ["NoSchedule", "NoExecute"];
            let tolerations = predicates::tolerations(&pod.pod);
            predicates::find_untolerated_taint(predicates::taints(facts), tolerations, &effects).is_none()
        };
        (!self.honor_affinity || predicates::matches_node_selection(&pod.pod, facts))
            && (!self.honor_taints || tolerated())
    }

    fn matching(&self, pod: &Candidate, node: &NodeInfo) -> i64 {
        let counts = |other: &&std::sync::Arc<crate::pod_info::PodInfo>| {
            !other.terminating
                && other.key.namespace == pod.info.key.namespace
                && self.selector.matches(&other.labels)
        };
        node.pods.iter().filter(counts).count() as i64
    }
}

fn constraints(pod: &Candidate, when_unsatisfiable: &str) -> Vec<Constraint> {
    let all = pod.pod.spec.iter().flat_map(|spec| spec.topology_spread_constraints.iter().flatten());
    all.filter(|c| c.when_unsatisfiable == when_unsatisfiable).map(|c| Constraint::of(c, pod)).collect()
}

/// What applies to Pods without constraints of their own that belong to a group: apart by Node,
/// and by zone, as far as that is possible.
fn default_constraints(pod: &Candidate) -> Vec<Constraint> {
    let own = pod.pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_ref());
    let (None | Some([]), Some(group)) = (own.map(Vec::as_slice), &pod.group) else { return Vec::new() };
    let constraint = |(key, max_skew): (&str, i64)| Constraint {
        key: key.to_owned(),
        max_skew,
        min_domains: 1,
        selector: group.clone(),
        honor_affinity: true,
        honor_taints: false,
    };
    [(HOSTNAME, 3), (ZONE, 5)].map(constraint).into_iter().collect()
}

fn has_all_labels(constraints: &[Constraint], node: &NodeInfo) -> bool {
    constraints.iter().all(|c| node.facts.label(&c.key).is_some())
}

pub fn filter<'a>(pod: &'a Candidate, snapshot: &'a Snapshot) -> PreFilter<'a> {
    let constraints = constraints(pod, "DoNotSchedule");
    if constraints.is_empty() {
        return PreFilter::Skip;
    }
    // For each constraint, matching Pods by value of its topology label.
    let mut counts: Vec<HashMap<&str, i64>> = constraints.iter().map(|_| new_map()).collect();
    for node in snapshot.nodes().iter().filter(|node| has_all_labels(&constraints, node)) {
        for (constraint, counts) in constraints.iter().zip(&mut counts) {
            if let Some(value) = node.facts.label(&constraint.key)
                && constraint.includes(pod, node)
            {
                *counts.entry(value).or_insert(0) += constraint.matching(pod, node);
            }
        }
    }
    let minimum = |(constraint, counts): (&Constraint, &HashMap<&str, i64>)| {
        let enough = counts.len() as i64 >= constraint.min_domains;
        if enough { counts.values().copied().min().unwrap_or(0) } else { 0 }
    };
    let minima: Vec<i64> = constraints.iter().zip(&counts).map(minimum).collect();
    PreFilter::Filter(Box::new(move |node| -> Verdict {
        for ((constraint, counts), minimum) in constraints.iter().zip(&counts).zip(&minima) {
            let Some(value) = node.facts.label(&constraint.key) else {
                return unresolvable(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                );
            };
            let own = i64::from(constraint.selector.matches(&pod.info.labels));
            let there = counts.get(value).copied().unwrap_or(0);
            if there + own - minimum > constraint.max_skew {
                return unschedulable("node(s) didn't match pod topology spread constraints");
            }
        }
        Ok(())
    }))
}

pub fn score<'a>(pod: &'a Candidate, snapshot: &'a Snapshot, feasible: &[&'a NodeInfo]) -> PreScore<'a> {
    let mut constraints = constraints(pod, "ScheduleAnyway");
    // Constraints of the Pod's own count Nodes that have all labels; the defaults count all.
    let need_labels = !constraints.is_empty();
    if !need_labels {
        constraints = default_constraints(pod);
    }
    if constraints.is_empty() {
        return PreScore::Skip;
    }
    let counts_on = |node: &NodeInfo| !need_labels || has_all_labels(&constraints, node);
    let mut counts: Vec<HashMap<&str, i64>> = constraints.iter().map(|_| new_map()).collect();
    let eligible: Vec<&NodeInfo> = feasible.iter().copied().filter(|node| counts_on(node)).collect();
    for node in &eligible {
        for (constraint, counts) in constraints.iter().zip(&mut counts) {
            if let Some(value) = node.facts.label(&constraint.key) {
                counts.entry(value).or_insert(0);
            }
        }
    }
    // Many domains differ less from each other; the weight makes up for it.
    let weight = |counts: &HashMap<&str, i64>| (counts.len() as f64 + 2.0).ln();
    let weights: Vec<f64> = counts.iter().map(weight).collect();
    for node in snapshot.nodes().iter().filter(|node| counts_on(node)) {
        for (constraint, counts) in constraints.iter().zip(&mut counts) {
            if let Some(count) = node.facts.label(&constraint.key).and_then(|value| counts.get_mut(value))
                && (constraint.key == HOSTNAME || constraint.includes(pod, node))
            {
                *count += constraint.matching(pod, node);
            }
        }
    }
    let mut known = new_set();
    known.extend(eligible.iter().map(|node| node.name.clone()));
    let score = move |node: &NodeInfo| {
        if !known.contains(&node.name) {
            return IGNORED;
        }
        let mut sum = 0.0;
        for ((constraint, counts), weight) in constraints.iter().zip(&counts).zip(&weights) {
            if let Some(count) = node.facts.label(&constraint.key).and_then(|value| counts.get(value)) {
                sum += *count as f64 * weight + (constraint.max_skew - 1) as f64;
            }
        }
        sum.round() as i64
    };
    PreScore::Score(Box::new(score), Some(Box::new(|scores, _| normalize(scores))))
}

/// Few is good; Nodes without the labels get nothing.
fn normalize(scores: &mut [i64]) {
    let known = || scores.iter().copied().filter(|score| *score != IGNORED);
    let (min, max) = (known().min().unwrap_or(0), known().max().unwrap_or(0));
    for score in scores {
        *score = match *score {
            IGNORED => 0,
            _ if max == 0 => MAX_NODE_SCORE,
            count => MAX_NODE_SCORE * (max + min - count) / max,
        };
    }
}
