//! Making room: which Pods of lower priority would have to go for a Pod to fit. Pure.
//! Upstream counterpart: `pkg/scheduler/framework/preemption` and the DefaultPreemption plugin.

use crate::framework::{FitError, filter, pre_filter};
use crate::pod_info::{Candidate, PodInfo};
use crate::snapshot::{NodeInfo, Snapshot};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Nodes tried: a tenth of those where it may help, but at least this many.
const CANDIDATES_MIN: usize = 100;
const CANDIDATES_PERCENT: usize = 10;

const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// The Pods to delete and the Node that is then free.
#[derive(Clone, Debug)]
pub struct Preemption {
    pub node: Arc<str>,
    pub victims: Vec<Arc<PodInfo>>,
}

pub enum Outcome {
    MakeRoom(Preemption),
    /// Room is being made already, or may not be made; what the condition says about it.
    Wait(String),
    /// No room can be made; what the condition says about it.
    Hopeless(String),
}

/// Looks for room after no Node could take the Pod.
pub fn post_filter(pod: &Candidate, unfit: &FitError, snapshot: &Snapshot) -> Outcome {
    if unfit.nodes == 0 {
        return Outcome::Hopeless(String::new());
    }
    if let Some(why) = not_eligible(pod, snapshot) {
        return Outcome::Wait(said(why));
    }
    let enough = (unfit.resolvable.len() * CANDIDATES_PERCENT / 100).max(CANDIDATES_MIN);
    let mut found: Vec<Preemption> = Vec::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for name in &unfit.resolvable {
        let Some(node) = snapshot.node(name) else { continue };
        match victims(pod, node, snapshot) {
            Ok(victims) => {
                found.push(Preemption { node: name.clone(), victims });
                if found.len() >= enough {
                    break;
                }
            }
            Err(reasons) => reasons.into_iter().for_each(|reason| *counts.entry(reason).or_insert(0) += 1),
        }
    }
    if let Some(best) = found.into_iter().min_by_key(cost) {
        return Outcome::MakeRoom(best);
    }
    let others = unfit.nodes - unfit.resolvable.len();
    if others > 0 {
        counts.insert(NOT_HELPFUL.to_owned(), others);
    }
    let mut lines: Vec<_> = counts.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    lines.sort();
    Outcome::Hopeless(said(&format!("0/{} nodes are available: {}.", unfit.nodes, lines.join(", "))))
}

/// Two plugins look for room; the first, for claims of devices, never finds any.
fn said(what: &str) -> String {
    format!("no new claims to deallocate, preemption: {what}")
}

fn not_eligible(pod: &Candidate, snapshot: &Snapshot) -> Option<&'static str> {
    let policy = pod.pod.spec.as_ref().and_then(|s| s.preemption_policy.as_deref());
    if policy == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = pod.pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref())?;
    let node = snapshot.node(nominated)?;
    let leaving = node.pods.iter().any(|other| other.terminating && other.priority < pod.info.priority);
    leaving.then_some("not eligible due to a terminating pod on the nominated node.")
}

/// The fewest and least important Pods whose end lets the Pod fit, or why there are none.
fn victims(pod: &Candidate, node: &NodeInfo, snapshot: &Snapshot) -> Result<Vec<Arc<PodInfo>>, Vec<String>> {
    let mut lower: Vec<Arc<PodInfo>> =
        node.pods.iter().filter(|other| other.priority < pod.info.priority).cloned().collect();
    if lower.is_empty() {
        return Err(vec![NO_VICTIMS.to_owned()]);
    }
    let mut trial = snapshot.clone();
    trial.edit(&node.name, |node| lower.iter().for_each(|victim| drop(node.remove(&victim.uid))));
    fits(pod, &node.name, &trial)?;
    // The most important ones stay if they can.
    lower.sort_by(|a, b| (Reverse(a.priority), &a.key).cmp(&(Reverse(b.priority), &b.key)));
    let mut victims = Vec::new();
    for other in lower {
        trial.edit(&node.name, |node| node.add(other.clone()));
        if fits(pod, &node.name, &trial).is_err() {
            trial.edit(&node.name, |node| drop(node.remove(&other.uid)));
            victims.push(other);
        }
    }
    Ok(victims)
}

fn fits(pod: &Candidate, node: &str, snapshot: &Snapshot) -> Result<(), Vec<String>> {
    let texts =
        |reasons: Vec<_>| reasons.into_iter().map(std::borrow::Cow::into_owned).collect::<Vec<String>>();
    let filters = pre_filter(pod, snapshot).map_err(|(_, reason)| texts(vec![reason]))?;
    let Some(node) = snapshot.node(node) else { return Err(Vec::new()) };
    let node = snapshot.with_nominated(node, &pod.info);
    filter(&filters, &node).map_err(|rejection| texts(rejection.reasons))
}

/// Less is better: the most important victim, the sum of priorities, the number.
fn cost(preemption: &Preemption) -> (i32, i64, usize) {
    let priorities = || preemption.victims.iter().map(|victim| victim.priority);
    // Shifted, so that a negative priority costs something too.
    let sum = priorities().map(|p| i64::from(p) - i64::from(i32::MIN)).sum();
    (priorities().max().unwrap_or(i32::MIN), sum, preemption.victims.len())
}
