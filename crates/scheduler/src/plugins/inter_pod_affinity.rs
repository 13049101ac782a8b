//! InterPodAffinity: rules about other Pods, those of this Pod and those of the Pods already there.

use crate::framework::{MAX_NODE_SCORE, PreFilter, PreScore, Verdict, unresolvable, unschedulable};
use crate::pod_info::{AffinityTerm, Candidate, PodAffinityRules, PodInfo};
use crate::snapshot::{NodeInfo, Snapshot};
use skeg_base::{HashMap, new_map};

/// What a required affinity of a Pod already there is worth to the score.
const HARD_POD_AFFINITY_WEIGHT: i64 = 1;

/// Numbers by Node label and value.
#[derive(Default)]
struct Pairs<'a>(Vec<(&'a str, HashMap<&'a str, i64>)>);

impl<'a> Pairs<'a> {
    fn add(&mut self, key: &'a str, node: &'a NodeInfo, amount: i64) {
        let Some(value) = node.facts.label(key) else { return };
        let at = self.0.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
            self.0.push((key, new_map()));
            self.0.len() - 1
        });
        *self.0[at].1.entry(value).or_insert(0) += amount;
    }

    fn get(&self, key: &str, value: &str) -> i64 {
        let values = self.0.iter().find(|(known, _)| *known == key);
        values.and_then(|(_, values)| values.get(value)).copied().unwrap_or(0)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sum over the Node's labels.
    fn of(&self, node: &NodeInfo) -> i64 {
        let sums = self.0.iter().filter_map(|(key, values)| values.get(node.facts.label(key)?));
        sums.sum()
    }
}

pub fn filter<'a>(pod: &'a Candidate, snapshot: &'a Snapshot) -> PreFilter<'a> {
    static NO_RULES: PodAffinityRules = PodAffinityRules {
        required: Vec::new(),
        required_anti: Vec::new(),
        preferred: Vec::new(),
        preferred_anti: Vec::new(),
    };
    let rules = pod.info.affinity.as_deref().unwrap_or(&NO_RULES);
    let against = existing_anti_affinity(&pod.info, snapshot);
    if rules.required.is_empty() && rules.required_anti.is_empty() && against.is_empty() {
        return PreFilter::Skip;
    }
    let (mut near, mut far) = (Pairs::default(), Pairs::default());
    if !rules.required.is_empty() || !rules.required_anti.is_empty() {
        for node in snapshot.nodes() {
            for other in &node.pods {
                let labels = snapshot.namespace_labels(&other.key.namespace);
                // A Pod counts as company only if all affinity rules are about it.
                if !rules.required.is_empty() && rules.required.iter().all(|term| term.matches(other, labels))
                {
                    rules.required.iter().for_each(|term| near.add(&term.topology_key, node, 1));
                }
                let terms = rules.required_anti.iter().filter(|term| term.matches(other, labels));
                terms.for_each(|term| far.add(&term.topology_key, node, 1));
            }
        }
    }
    let own_labels = snapshot.namespace_labels(&pod.info.key.namespace);
    let own_company = rules.required.iter().all(|term| term.matches(&pod.info, own_labels));
    PreFilter::Filter(Box::new(move |node| -> Verdict {
        if !has_company(&rules.required, &near, own_company, node) {
            return unresolvable("node(s) didn't match pod affinity rules");
        }
        let crowded = |term: &AffinityTerm| {
            node.facts.label(&term.topology_key).is_some_and(|value| far.get(&term.topology_key, value) > 0)
        };
        if rules.required_anti.iter().any(crowded) {
            return unschedulable("node(s) didn't match pod anti-affinity rules");
        }
        if against.of(node) > 0 {
            return unschedulable("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        Ok(())
    }))
}

/// Where Pods with anti-affinity to this one are.
fn existing_anti_affinity<'a>(pod: &PodInfo, snapshot: &'a Snapshot) -> Pairs<'a> {
    let mut pairs = Pairs::default();
    let labels = snapshot.namespace_labels(&pod.key.namespace);
    for (node, rules) in with_rules(snapshot) {
        let terms = rules.required_anti.iter().filter(|term| term.matches(pod, labels));
        terms.for_each(|term| pairs.add(&term.topology_key, node, 1));
    }
    pairs
}

fn with_rules(snapshot: &Snapshot) -> impl Iterator<Item = (&NodeInfo, &PodAffinityRules)> {
    let nodes = snapshot.nodes().iter().filter(|node| node.pods_with_affinity > 0);
    nodes.flat_map(|node| node.pods.iter().filter_map(move |pod| Some((&**node, pod.affinity.as_deref()?))))
}

fn has_company(terms: &[AffinityTerm], near: &Pairs<'_>, own_company: bool, node: &NodeInfo) -> bool {
    let mut all = true;
    for term in terms {
        let Some(value) = node.facts.label(&term.topology_key) else { return false };
        all &= near.get(&term.topology_key, value) > 0;
    }
    // The first of a group that wants to be together may go anywhere.
    all || (near.is_empty() && own_company)
}

pub fn score<'a>(pod: &'a Candidate, snapshot: &'a Snapshot, _: &[&'a NodeInfo]) -> PreScore<'a> {
    let mut pairs = Pairs::default();
    let own =
        pod.info.affinity.as_deref().filter(|r| !r.preferred.is_empty() || !r.preferred_anti.is_empty());
    if let Some(rules) = own {
        for node in snapshot.nodes() {
            for other in &node.pods {
                let labels = snapshot.namespace_labels(&other.key.namespace);
                for (sign, terms) in [(1, &rules.preferred), (-1, &rules.preferred_anti)] {
                    for (weight, term) in terms.iter().filter(|(_, term)| term.matches(other, labels)) {
                        pairs.add(&term.topology_key, node, sign * weight);
                    }
                }
            }
        }
    }
    let labels = snapshot.namespace_labels(&pod.info.key.namespace);
    for (node, rules) in with_rules(snapshot) {
        let required = rules.required.iter().map(|term| (HARD_POD_AFFINITY_WEIGHT, term));
        let preferred = rules.preferred.iter().map(|(weight, term)| (*weight, term));
        let anti = rules.preferred_anti.iter().map(|(weight, term)| (-weight, term));
        for (weight, term) in required.chain(preferred).chain(anti) {
            if term.matches(&pod.info, labels) {
                pairs.add(&term.topology_key, node, weight);
            }
        }
    }
    if pairs.is_empty() {
        return PreScore::Skip;
    }
    PreScore::Score(Box::new(move |node| pairs.of(node)), Some(Box::new(|scores, _| normalize(scores))))
}

fn normalize(scores: &mut [i64]) {
    let min = scores.iter().copied().min().unwrap_or(0);
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let share = if max > min { (*score - min) as f64 / (max - min) as f64 } else { 0.0 };
        *score = (MAX_NODE_SCORE as f64 * share) as i64;
    }
}
