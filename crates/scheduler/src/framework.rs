//! The plugin points and the pure decision: a Pod and a snapshot in, a Node or the reasons why
//! there is none out. Upstream counterpart: `pkg/scheduler/framework` and `schedule_one.go`.

use crate::plugins::PLUGINS;
use crate::pod_info::Candidate;
use crate::snapshot::{NodeInfo, Snapshot};
use skeg_base::Random;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// The highest score a plugin gives a Node.
pub const MAX_NODE_SCORE: i64 = 100;

/// Feasible Nodes are looked for until this many are found, or a share of the cluster.
const FEASIBLE_MIN: usize = 100;
const FEASIBLE_PERCENT_MIN: usize = 5;

pub type Reason = Cow<'static, str>;

/// Why a Node cannot take a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub plugin: &'static str,
    pub reasons: Vec<Reason>,
    /// Removing other Pods from the Node would not help.
    pub unresolvable: bool,
}

/// What a filter says of a Node: nothing, or the reasons against it and whether they would stay
/// without the Pods on it.
pub type Verdict = Result<(), (Vec<Reason>, bool)>;

/// Shorthands for filters.
pub fn unschedulable(reason: &'static str) -> Verdict {
    Err((vec![reason.into()], false))
}

pub fn unresolvable(reason: &'static str) -> Verdict {
    Err((vec![reason.into()], true))
}

pub type NodeFilter<'a> = Box<dyn Fn(&NodeInfo) -> Verdict + 'a>;
pub type NodeScore<'a> = Box<dyn Fn(&NodeInfo) -> i64 + 'a>;
/// Brings the scores of all feasible Nodes into 0..=[`MAX_NODE_SCORE`].
pub type NormalizeScore<'a> = Box<dyn Fn(&mut [i64], &[&NodeInfo]) + 'a>;

/// The outcome of a PreFilter: what it needs of the whole cluster is in the filter it returns.
pub enum PreFilter<'a> {
    /// Nothing in this Pod concerns the plugin.
    Skip,
    Filter(NodeFilter<'a>),
    /// Only the Nodes of these names are worth a look, before any filter speaks; the filter decides
    /// among them.
    Among(BTreeSet<String>, NodeFilter<'a>),
    /// No Node can take the Pod.
    Reject(Reason),
}

/// The outcome of a PreScore.
pub enum PreScore<'a> {
    Skip,
    Score(NodeScore<'a>, Option<NormalizeScore<'a>>),
}

/// One plugin; a row of [`PLUGINS`].
pub struct Plugin {
    pub name: &'static str,
    pub pre_filter: for<'a> fn(&'a Candidate, &'a Snapshot) -> PreFilter<'a>,
    /// Weight, and the function.
    pub pre_score: Option<(i64, PreScoreFn)>,
    /// Whether its verdict on a Node depends on Pods on other Nodes.
    pub looks_around: bool,
}

pub type PreScoreFn = for<'a> fn(&'a Candidate, &'a Snapshot, &[&'a NodeInfo]) -> PreScore<'a>;

/// The chosen Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub node: Arc<str>,
    /// Nodes looked at, and those of them that could take the Pod.
    pub evaluated: usize,
    pub feasible: usize,
}

/// No Node can take the Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FitError {
    pub nodes: usize,
    /// Said of the Pod as a whole, instead of Node by Node.
    pub pre_filter: Option<Reason>,
    /// Nodes by reason.
    pub counts: BTreeMap<Reason, usize>,
    pub plugins: BTreeSet<&'static str>,
    /// What trying to make room came to.
    pub post_filter: String,
    /// Nodes where fewer Pods could help.
    pub resolvable: Vec<Arc<str>>,
}

/// As upstream writes it in the condition and the event.
impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available:", self.nodes)?;
        match &self.pre_filter {
            Some(reason) => write!(f, " {reason}.")?,
            None if self.counts.is_empty() => {}
            None => {
                let mut lines: Vec<_> =
                    self.counts.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
                lines.sort();
                write!(f, " {}.", lines.join(", "))?;
            }
        }
        if !self.post_filter.is_empty() {
            write!(f, " {}", self.post_filter)?;
        }
        Ok(())
    }
}

impl std::error::Error for FitError {}

/// How many feasible Nodes are enough in a cluster of `nodes`.
pub fn feasible_enough(nodes: usize) -> usize {
    if nodes < FEASIBLE_MIN {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(FEASIBLE_PERCENT_MIN);
    (nodes * percent / 100).max(FEASIBLE_MIN)
}

/// Chooses a Node for a Pod. The search starts at Node number `start`, so that all get their
/// turn; equal scores are decided by `random`. Pure but for that.
pub fn schedule(
    pod: &Candidate,
    snapshot: &Snapshot,
    start: usize,
    random: &Random,
) -> Result<Placement, Box<FitError>> {
    let nodes = snapshot.nodes();
    let mut unfit = Box::new(FitError { nodes: nodes.len(), ..Default::default() });
    if nodes.is_empty() {
        return Err(unfit);
    }
    let filters = match pre_filter(pod, snapshot) {
        Ok(filters) => filters,
        Err((plugin, reason)) => {
            unfit.plugins.insert(plugin);
            unfit.pre_filter = Some(reason);
            return Err(unfit);
        }
    };
    let enough = feasible_enough(nodes.len());
    let mut feasible: Vec<&NodeInfo> = Vec::with_capacity(enough.min(nodes.len()));
    let mut evaluated = 0;
    for offset in 0..nodes.len() {
        let node = &nodes[(start + offset) % nodes.len()];
        evaluated += 1;
        match filter(&filters, &snapshot.with_nominated(node, &pod.info)) {
            Ok(()) => {
                feasible.push(node);
                if feasible.len() >= enough {
                    break;
                }
            }
            Err(_) if !feasible.is_empty() => {}
            Err(rejection) => note(&mut unfit, node, rejection),
        }
    }
    let chosen = match feasible.as_slice() {
        [] => return Err(unfit),
        [only] => only,
        several => choose(several, &score(pod, snapshot, several), random),
    };
    Ok(Placement { node: chosen.name.clone(), evaluated, feasible: feasible.len() })
}

fn note(unfit: &mut FitError, node: &NodeInfo, rejection: Rejection) {
    unfit.plugins.insert(rejection.plugin);
    if !rejection.unresolvable {
        unfit.resolvable.push(node.name.clone());
    }
    for reason in rejection.reasons {
        *unfit.counts.entry(reason).or_insert(0) += 1;
    }
}

pub(crate) type Filters<'a> = Vec<(&'static str, NodeFilter<'a>)>;

pub(crate) fn pre_filter<'a>(
    pod: &'a Candidate,
    snapshot: &'a Snapshot,
) -> Result<Filters<'a>, (&'static str, Reason)> {
    pre_filter_of(PLUGINS.iter(), pod, snapshot)
}

pub(crate) fn pre_filter_of<'a>(
    plugins: impl Iterator<Item = &'static Plugin>,
    pod: &'a Candidate,
    snapshot: &'a Snapshot,
) -> Result<Filters<'a>, (&'static str, Reason)> {
    let mut filters = Vec::new();
    for plugin in plugins {
        match (plugin.pre_filter)(pod, snapshot) {
            PreFilter::Skip => {}
            PreFilter::Filter(filter) => filters.push((plugin.name, filter)),
            PreFilter::Among(names, filter) => {
                let rejected = format!("node(s) didn't satisfy plugin(s) [{}]", plugin.name);
                let among = move |node: &NodeInfo| match names.contains(&*node.name) {
                    true => Ok(()),
                    false => Err((vec![rejected.clone().into()], true)),
                };
                filters.insert(0, (plugin.name, Box::new(among)));
                filters.push((plugin.name, filter));
            }
            PreFilter::Reject(reason) => return Err((plugin.name, reason)),
        }
    }
    Ok(filters)
}

/// The first plugin that is against the Node speaks.
pub(crate) fn filter(filters: &Filters<'_>, node: &NodeInfo) -> Result<(), Rejection> {
    for (plugin, filter) in filters {
        if let Err((reasons, unresolvable)) = filter(node) {
            return Err(Rejection { plugin, reasons, unresolvable });
        }
    }
    Ok(())
}

/// Total scores, in the order of `nodes`.
fn score<'a>(pod: &'a Candidate, snapshot: &'a Snapshot, nodes: &[&'a NodeInfo]) -> Vec<i64> {
    let mut totals = vec![0; nodes.len()];
    for (_, weight, scores) in plugin_scores(pod, snapshot, nodes) {
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += weight * score;
        }
    }
    totals
}

fn plugin_scores<'a>(
    pod: &'a Candidate,
    snapshot: &'a Snapshot,
    nodes: &[&'a NodeInfo],
) -> Vec<(&'static str, i64, Vec<i64>)> {
    let mut all = Vec::new();
    for plugin in PLUGINS {
        let Some((weight, pre_score)) = plugin.pre_score else { continue };
        let PreScore::Score(score, normalize) = pre_score(pod, snapshot, nodes) else { continue };
        let mut scores: Vec<i64> = nodes.iter().map(|node| score(node)).collect();
        if let Some(normalize) = normalize {
            normalize(&mut scores, nodes);
        }
        all.push((plugin.name, weight, scores));
    }
    all
}

/// One of the Nodes with the highest score, each as likely.
fn choose<'a>(nodes: &[&'a NodeInfo], scores: &[i64], random: &Random) -> &'a NodeInfo {
    let best = scores.iter().copied().max().unwrap_or(0);
    let ties = scores.iter().filter(|score| **score == best).count() as u64;
    let pick = if ties > 1 { random.below(ties) as usize } else { 0 };
    let winner = scores.iter().enumerate().filter(|(_, score)| **score == best).nth(pick);
    nodes[winner.map_or(0, |(at, _)| at)]
}

/// Scores brought to 0..=100 by the highest one; `reverse` where few is good.
pub fn normalize_by_max(reverse: bool) -> NormalizeScore<'static> {
    Box::new(move |scores, _| {
        let max = scores.iter().copied().max().unwrap_or(0);
        for score in scores {
            if max > 0 {
                *score = *score * MAX_NODE_SCORE / max;
            }
            if reverse {
                *score = if max > 0 { MAX_NODE_SCORE - *score } else { MAX_NODE_SCORE };
            }
        }
    })
}

/// What was said of one Node: for people who ask why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeVerdict {
    pub node: Arc<str>,
    /// `None` for Nodes that could take the Pod.
    pub rejection: Option<Rejection>,
    /// Plugin, weight, score; for Nodes that could take the Pod.
    pub scores: Vec<(&'static str, i64, i64)>,
}

/// Every Node's verdict and scores. The error names the plugin that is against the Pod itself.
pub fn explain(pod: &Candidate, snapshot: &Snapshot) -> Result<Vec<NodeVerdict>, (&'static str, Reason)> {
    let filters = pre_filter(pod, snapshot)?;
    let mut verdicts: Vec<NodeVerdict> = Vec::new();
    let mut feasible: Vec<(usize, &NodeInfo)> = Vec::new();
    for node in snapshot.nodes() {
        let rejection = filter(&filters, node).err();
        if rejection.is_none() {
            feasible.push((verdicts.len(), node));
        }
        verdicts.push(NodeVerdict { node: node.name.clone(), rejection, scores: Vec::new() });
    }
    let nodes: Vec<&NodeInfo> = feasible.iter().map(|(_, node)| *node).collect();
    for (plugin, weight, scores) in plugin_scores(pod, snapshot, &nodes) {
        for ((at, _), score) in feasible.iter().zip(scores) {
            verdicts[*at].scores.push((plugin, weight, score));
        }
    }
    Ok(verdicts)
}
