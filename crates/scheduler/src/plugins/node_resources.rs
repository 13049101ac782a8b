//! NodeResourcesFit with the LeastAllocated score, and NodeResourcesBalancedAllocation.

use crate::amounts::Amounts;
use crate::framework::{MAX_NODE_SCORE, PreFilter, PreScore, Reason, Verdict};
use crate::pod_info::Candidate;
use crate::snapshot::{NodeInfo, Snapshot};

pub fn fit<'a>(pod: &'a Candidate, _: &'a Snapshot) -> PreFilter<'a> {
    let wanted = &pod.info.requests;
    PreFilter::Filter(Box::new(move |node| {
        verdict(wanted, &node.facts.allocatable, &node.requested, node.pods.len(), node.facts.pods_max)
    }))
}

fn verdict(wanted: &Amounts, offered: &Amounts, used: &Amounts, pods: usize, pods_max: usize) -> Verdict {
    let mut reasons: Vec<Reason> = Vec::new();
    let mut hopeless = false;
    if pods + 1 > pods_max {
        reasons.push("Too many pods".into());
    }
    let mut check = |reason: fn(&str) -> Reason, name: &str, wanted: i64, offered: i64, used: i64| {
        if wanted > 0 && wanted > offered.saturating_sub(used) {
            reasons.push(reason(name));
            hopeless |= wanted > offered;
        }
    };
    if !wanted.is_zero() {
        check(|_| "Insufficient cpu".into(), "", wanted.cpu_millis, offered.cpu_millis, used.cpu_millis);
        check(
            |_| "Insufficient memory".into(),
            "",
            wanted.memory_bytes,
            offered.memory_bytes,
            used.memory_bytes,
        );
        check(
            |_| "Insufficient ephemeral-storage".into(),
            "",
            wanted.ephemeral_bytes,
            offered.ephemeral_bytes,
            used.ephemeral_bytes,
        );
        for (name, amount) in &wanted.scalars {
            let of = |amounts: &Amounts| amounts.scalars.get(name).copied().unwrap_or(0);
            check(|name| format!("Insufficient {name}").into(), name, *amount, of(offered), of(used));
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err((reasons, hopeless)) }
}

/// The more is left of CPU and memory, the better.
pub fn least_allocated<'a>(pod: &'a Candidate, _: &'a Snapshot, _: &[&'a NodeInfo]) -> PreScore<'a> {
    let (cpu, memory) = pod.info.non_zero;
    let score = move |node: &NodeInfo| {
        let offered = &node.facts.allocatable;
        let shares = [
            free_share(offered.cpu_millis, node.non_zero.0.saturating_add(cpu)),
            free_share(offered.memory_bytes, node.non_zero.1.saturating_add(memory)),
        ];
        // A resource that the Node does not have counts for nothing, not for zero.
        let known = shares.iter().flatten().count() as i64;
        if known == 0 { 0 } else { shares.iter().flatten().sum::<i64>() / known }
    };
    PreScore::Score(Box::new(score), None)
}

fn free_share(offered: i64, used: i64) -> Option<i64> {
    if offered == 0 {
        return None;
    }
    let free = i128::from(offered.saturating_sub(used).max(0));
    Some((free * i128::from(MAX_NODE_SCORE) / i128::from(offered)) as i64)
}

/// The closer the used shares of CPU and memory are, the better.
pub fn balanced_allocation<'a>(pod: &'a Candidate, _: &'a Snapshot, _: &[&'a NodeInfo]) -> PreScore<'a> {
    let wanted = &pod.info.requests;
    // Pods that ask for nothing would all go to one Node.
    if wanted.cpu_millis == 0 && wanted.memory_bytes == 0 {
        return PreScore::Skip;
    }
    let score = move |node: &NodeInfo| {
        let offered = &node.facts.allocatable;
        let used = &node.requested;
        let cpu = used_share(offered.cpu_millis, used.cpu_millis.saturating_add(wanted.cpu_millis));
        let memory = used_share(offered.memory_bytes, used.memory_bytes.saturating_add(wanted.memory_bytes));
        let deviation = match (cpu, memory) {
            (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2.0,
            _ => 0.0,
        };
        ((1.0 - deviation) * MAX_NODE_SCORE as f64) as i64
    };
    PreScore::Score(Box::new(score), None)
}

fn used_share(offered: i64, used: i64) -> Option<f64> {
    (offered != 0).then(|| (used as f64 / offered as f64).min(1.0))
}
