//! The plugins, in upstream's order, names, weights and words.
//! Upstream counterpart: `pkg/scheduler/framework/plugins`.

mod image_locality;
mod inter_pod_affinity;
mod node_resources;
mod pod_topology_spread;

use crate::framework::{
    NodeFilter, Plugin, PreFilter, PreScore, Verdict, normalize_by_max, unresolvable, unschedulable,
};
use crate::pod_info::Candidate;
use crate::snapshot::{NodeInfo, Snapshot};
use k8s_openapi::api::core::v1::{NodeSelectorTerm, PodSpec, Taint, Toleration};
use skeg_api::predicates;
use std::collections::BTreeSet;

/// All plugins. A filter that comes first speaks first.
pub const PLUGINS: &[Plugin] = &[
    Plugin {
        name: "NodeUnschedulable",
        pre_filter: node_unschedulable,
        pre_score: None,
        looks_around: false,
    },
    Plugin { name: "NodeName", pre_filter: node_name, pre_score: None, looks_around: false },
    Plugin {
        name: "TaintToleration",
        pre_filter: taint_toleration,
        pre_score: Some((3, score_taints)),
        looks_around: false,
    },
    Plugin {
        name: "NodeAffinity",
        pre_filter: node_affinity,
        pre_score: Some((2, score_node_affinity)),
        looks_around: false,
    },
    Plugin { name: "NodePorts", pre_filter: node_ports, pre_score: None, looks_around: false },
    Plugin {
        name: "NodeResourcesFit",
        pre_filter: node_resources::fit,
        pre_score: Some((1, node_resources::least_allocated)),
        looks_around: false,
    },
    Plugin { name: "VolumeBinding", pre_filter: volume_binding, pre_score: None, looks_around: false },
    Plugin {
        name: "PodTopologySpread",
        pre_filter: pod_topology_spread::filter,
        pre_score: Some((2, pod_topology_spread::score)),
        looks_around: true,
    },
    Plugin {
        name: "InterPodAffinity",
        pre_filter: inter_pod_affinity::filter,
        pre_score: Some((2, inter_pod_affinity::score)),
        looks_around: true,
    },
    Plugin { name: "DynamicResources", pre_filter: dynamic_resources, pre_score: None, looks_around: false },
    Plugin {
        name: "NodeResourcesBalancedAllocation",
        pre_filter: nothing,
        pre_score: Some((1, node_resources::balanced_allocation)),
        looks_around: false,
    },
    Plugin {
        name: "ImageLocality",
        pre_filter: nothing,
        pre_score: Some((1, image_locality::score)),
        looks_around: false,
    },
];

fn nothing<'a>(_: &'a Candidate, _: &'a Snapshot) -> PreFilter<'a> {
    PreFilter::Skip
}

fn is_unschedulable(node: &NodeInfo) -> bool {
    node.facts.node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
}

fn node_unschedulable<'a>(pod: &'a Candidate, _: &'a Snapshot) -> PreFilter<'a> {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Default::default()
    };
    if predicates::tolerations(&pod.pod).iter().any(|toleration| predicates::tolerates(toleration, &taint)) {
        return PreFilter::Skip;
    }
    PreFilter::Filter(Box::new(|node| match is_unschedulable(node) {
        true => unresolvable("node(s) were unschedulable"),
        false => Ok(()),
    }))
}

fn node_name<'a>(pod: &'a Candidate, _: &'a Snapshot) -> PreFilter<'a> {
    let Some(name) = &pod.info.node else { return PreFilter::Skip };
    PreFilter::Filter(Box::new(move |node| match node.name == *name {
        true => Ok(()),
        false => unresolvable("node(s) didn't match the requested node name"),
    }))
}

fn taint_toleration<'a>(pod: &'a Candidate, _: &'a Snapshot) -> PreFilter<'a> {
    let tolerations = predicates::tolerations(&pod.pod);
    PreFilter::Filter(Box::new(move |node| {
        let taints = predicates::taints(&node.facts.node);
        match predicates::find_untolerated_taint(taints, tolerations, &["NoSchedule", "NoExecute"]) {
            Some(_) => unresolvable("node(s) had untolerated taint(s)"),
            None => Ok(()),
        }
    }))
}

fn score_taints<'a>(pod: &'a Candidate, _: &'a Snapshot, _: &[&'a NodeInfo]) -> PreScore<'a> {
    let soft = |toleration: &&Toleration| {
        matches!(toleration.effect.as_deref().unwrap_or_default(), "" | "PreferNoSchedule")
    };
    let tolerations: Vec<&Toleration> = predicates::tolerations(&pod.pod).iter().filter(soft).collect();
    let score = move |node: &NodeInfo| {
        let taints = predicates::taints(&node.facts.node).iter().filter(|t| t.effect == "PreferNoSchedule");
        taints.filter(|taint| !tolerations.iter().any(|t| predicates::tolerates(t, taint))).count() as i64
    };
    PreScore::Score(Box::new(score), Some(normalize_by_max(true)))
}

fn node_affinity<'a>(pod: &'a Candidate, _: &'a Snapshot) -> PreFilter<'a> {
    let Some(spec) = &pod.pod.spec else { return PreFilter::Skip };
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .is_some_and(|a| a.required_during_scheduling_ignored_during_execution.is_some());
    if !required && spec.node_selector.as_ref().is_none_or(|selector| selector.is_empty()) {
        return PreFilter::Skip;
    }
    let filter: NodeFilter<'a> =
        Box::new(|node| match predicates::matches_node_selection(&pod.pod, &node.facts.node) {
            true => Ok(()),
            false => unresolvable("node(s) didn't match Pod's node affinity/selector"),
        });
    match required_node_names(spec) {
        None => PreFilter::Filter(filter),
        Some(names) if names.is_empty() => PreFilter::Reject("pod affinity terms conflict".into()),
        Some(names) => PreFilter::Among(names, filter),
    }
}

/// The Nodes that a Pod names by field, where each of its alternatives names some.
fn required_node_names(spec: &PodSpec) -> Option<BTreeSet<String>> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let of_term = |term: &NodeSelectorTerm| -> Option<BTreeSet<String>> {
        let named = term.match_fields.iter().flatten();
        let named = named.filter(|field| field.key == "metadata.name" && field.operator == "In");
        let sets = named.map(|field| field.values.iter().flatten().cloned().collect::<BTreeSet<_>>());
        sets.reduce(|a, b| &a & &b)
    };
    // Without alternatives no Node matches; the filter says so.
    let names: Option<Vec<_>> = terms.iter().map(of_term).collect();
    names.filter(|terms| !terms.is_empty()).map(|terms| terms.into_iter().flatten().collect())
}

fn score_node_affinity<'a>(pod: &'a Candidate, _: &'a Snapshot, _: &[&'a NodeInfo]) -> PreScore<'a> {
    let spec = pod.pod.spec.as_ref();
    let affinity = spec.and_then(|s| s.affinity.as_ref()).and_then(|a| a.node_affinity.as_ref());
    let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    if preferred.is_none_or(Vec::is_empty) {
        return PreScore::Skip;
    }
    let score = |node: &NodeInfo| predicates::preferred_node_affinity_weight(&pod.pod, &node.facts.node);
    PreScore::Score(Box::new(score), Some(normalize_by_max(false)))
}

fn node_ports<'a>(pod: &'a Candidate, _: &'a Snapshot) -> PreFilter<'a> {
    if pod.info.host_ports.is_empty() {
        return PreFilter::Skip;
    }
    let wanted = &pod.info.host_ports;
    PreFilter::Filter(Box::new(move |node| -> Verdict {
        match predicates::host_ports_conflict(wanted, &node.host_ports) {
            true => unschedulable("node(s) didn't have free ports for the requested pod ports"),
            false => Ok(()),
        }
    }))
}

/// The API serves no claims yet, so a claim that a Pod names is never there.
fn volume_binding<'a>(pod: &'a Candidate, _: &'a Snapshot) -> PreFilter<'a> {
    let volumes = pod.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    for volume in volumes {
        if let Some(claim) = &volume.persistent_volume_claim {
            let missing = format!("persistentvolumeclaim \"{}\" not found", claim.claim_name);
            return PreFilter::Reject(missing.into());
        }
        if volume.ephemeral.is_some() {
            let claim = format!("{}-{}", pod.info.key.name, volume.name);
            let waiting = format!(
                "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{claim}\""
            );
            return PreFilter::Reject(waiting.into());
        }
    }
    PreFilter::Skip
}

/// Nor does it serve claims of devices: a Pod that needs one waits rather than run without it.
fn dynamic_resources<'a>(pod: &'a Candidate, _: &'a Snapshot) -> PreFilter<'a> {
    let mut claims = pod.pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    let Some(claim) = claims.next() else { return PreFilter::Skip };
    let why = match &claim.resource_claim_name {
        Some(name) => format!("resourceclaim \"{name}\" not found"),
        None => format!("pod \"{}\": ResourceClaim not created yet", pod.info.key),
    };
    PreFilter::Reject(why.into())
}
