//! The arithmetic of a rollout: who grows, who shrinks, by how much. Pure functions over
//! ReplicaSets. Upstream counterparts: `rolling.go`, `scale` in `sync.go`,
//! `GetReplicaSetProportion` in `deployment_util.go`.

use super::{annotations, status};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skeg_api::intstr::{Round, resolve_fenceposts, scaled};
use std::cmp::Reverse;

/// The sizes a rollout keeps within, resolved to numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub replicas: i32,
    /// Pods beyond `replicas`; 0 unless the strategy is RollingUpdate.
    pub surge: i32,
    /// Pods that may be missing; never more than `replicas`.
    pub unavailable: i32,
    /// How many Pods there may be while the new set grows. It knows nothing of the rule for
    /// surge and unavailable both being 0.
    pub total_max: i32,
    pub rolling: bool,
}

impl Limits {
    pub(crate) fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let strategy = spec.and_then(|spec| spec.strategy.as_ref());
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
            return Limits { replicas, surge: 0, unavailable: 0, total_max: replicas, rolling: false };
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".into());
        let max_surge = rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter);
        let max_unavailable = rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&quarter);
        // Validation lets no other text pass; a value that does not scale counts as 0.
        let (surge, unavailable) = resolve_fenceposts(max_surge, max_unavailable, replicas).unwrap_or((0, 1));
        let unavailable = if replicas == 0 { 0 } else { unavailable.min(replicas) };
        let total_max = replicas.saturating_add(scaled(max_surge, replicas, Round::Up).unwrap_or(0));
        Limits { replicas, surge, unavailable, total_max, rolling: true }
    }
}

pub(crate) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(crate) fn total(sets: &[ReplicaSet]) -> i32 {
    sets.iter().map(size).sum()
}

/// The size of the new set in a rolling update, given the size of all sets together.
pub(crate) fn new_set_size(limits: Limits, total: i32, new_size: i32) -> i32 {
    if !limits.rolling {
        return limits.replicas;
    }
    if new_size > limits.replicas {
        return limits.replicas;
    }
    let room = limits.total_max.saturating_sub(total).max(0);
    new_size + room.min(limits.replicas - new_size)
}

/// The available Pods a set surely keeps: it may not have acted yet on a smaller size, and its
/// status then still counts Pods it is about to remove.
fn surely_available(set: &ReplicaSet) -> i32 {
    status::available(set).min(size(set))
}

/// How an active set is found again: its index among all sets, and its new size.
pub(crate) type Resize = (usize, i32);

/// What the old sets of a rolling update give up: first Pods that are not available anyway, then
/// as many others as availability allows, from the oldest set on.
pub(crate) fn shrink_old(limits: Limits, sets: &[ReplicaSet], new_set: usize) -> Vec<Resize> {
    let mut old: Vec<usize> = (0..sets.len()).filter(|at| *at != new_set && size(&sets[*at]) > 0).collect();
    if old.is_empty() {
        return Vec::new();
    }
    old.sort_by(|a, b| by_creation(&sets[*a], &sets[*b]));
    let min_available = limits.replicas - limits.unavailable;
    let new_unavailable = size(&sets[new_set]) - surely_available(&sets[new_set]);
    let mut budget = total(sets) - min_available - new_unavailable;
    if budget <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<i32> = sets.iter().map(size).collect();
    for at in &old {
        let unhealthy = sizes[*at] - surely_available(&sets[*at]);
        let down = unhealthy.min(budget).max(0);
        sizes[*at] -= down;
        budget -= down;
    }
    let available: i32 = sets.iter().map(surely_available).sum();
    let mut spare = (available - min_available).min(budget);
    for at in &old {
        let down = sizes[*at].min(spare).max(0);
        sizes[*at] -= down;
        spare -= down;
    }
    old.into_iter().filter(|at| sizes[*at] != size(&sets[*at])).map(|at| (at, sizes[at])).collect()
}

fn by_creation(a: &ReplicaSet, b: &ReplicaSet) -> std::cmp::Ordering {
    (&a.metadata.creation_timestamp, &a.metadata.name)
        .cmp(&(&b.metadata.creation_timestamp, &b.metadata.name))
}

pub(crate) fn oldest_first(sets: &mut [ReplicaSet]) {
    sets.sort_by(by_creation);
}

/// The sizes after the Deployment was scaled, outside of a rollout step. The second value of each
/// row is the size; rows whose size stays still want their annotations refreshed.
pub(crate) fn scale(
    deployment: &Deployment,
    limits: Limits,
    sets: &[ReplicaSet],
    new_set: Option<usize>,
) -> Vec<Resize> {
    let active: Vec<usize> = (0..sets.len()).filter(|at| size(&sets[*at]) > 0).collect();
    if let Some(only) = active_or_latest(sets, new_set, &active) {
        return if size(&sets[only]) == limits.replicas { Vec::new() } else { vec![(only, limits.replicas)] };
    }
    if active.is_empty() {
        return Vec::new();
    }
    if new_set.is_some_and(|new| is_saturated(limits, &sets[new])) {
        return active.into_iter().filter(|at| Some(*at) != new_set).map(|at| (at, 0)).collect();
    }
    if limits.rolling { proportional(deployment, limits, sets, active) } else { Vec::new() }
}

/// The one active set; if there is none, the new set, or else the latest of the old ones.
fn active_or_latest(sets: &[ReplicaSet], new_set: Option<usize>, active: &[usize]) -> Option<usize> {
    match active {
        [only] => Some(*only),
        [] => new_set.or_else(|| (0..sets.len()).max_by(|a, b| by_creation(&sets[*a], &sets[*b]))),
        _ => None,
    }
}

fn is_saturated(limits: Limits, set: &ReplicaSet) -> bool {
    let desired = annotations::number::<i32>(&set.metadata, annotations::DESIRED_REPLICAS);
    size(set) == limits.replicas
        && desired == Some(limits.replicas)
        && status::available(set) == limits.replicas
}

/// Shares a change of size among the active sets in proportion to what they have; what rounding
/// leaves goes to the largest.
fn proportional(
    deployment: &Deployment,
    limits: Limits,
    sets: &[ReplicaSet],
    mut active: Vec<usize>,
) -> Vec<Resize> {
    let allowed = if limits.replicas > 0 { limits.replicas.saturating_add(limits.surge) } else { 0 };
    let to_add = allowed - active.iter().map(|at| size(&sets[*at])).sum::<i32>();
    let age = |at: &usize| (sets[*at].metadata.creation_timestamp.clone(), sets[*at].metadata.name.clone());
    match to_add {
        1.. => active.sort_by_key(|at| Reverse((size(&sets[*at]), age(at)))),
        _ => active.sort_by_key(|at| (Reverse(size(&sets[*at])), age(at))),
    }
    let mut added = 0;
    let mut rows: Vec<Resize> = Vec::new();
    for at in active {
        let share = if to_add == 0 || to_add == added { 0 } else { share(deployment, limits, &sets[at]) };
        let left = to_add - added;
        let share = if to_add > 0 { share.min(left) } else { share.max(left) };
        added += share;
        rows.push((at, size(&sets[at]) + share));
    }
    if let Some(first) = rows.first_mut().filter(|_| to_add != 0) {
        first.1 = (first.1 + to_add - added).max(0);
    }
    rows
}

fn share(deployment: &Deployment, limits: Limits, set: &ReplicaSet) -> i32 {
    if limits.replicas == 0 {
        return -size(set);
    }
    let max_now = limits.replicas.saturating_add(limits.surge);
    let before = annotations::number::<i32>(&set.metadata, annotations::MAX_REPLICAS).filter(|max| *max != 0);
    let before =
        before.or_else(|| deployment.status.as_ref().and_then(|status| status.replicas)).unwrap_or(0);
    if before == 0 {
        return 0;
    }
    let target = f64::from(size(set)) * f64::from(max_now) / f64::from(before);
    // Halves round away from zero; sizes are far within i32.
    target.round() as i32 - size(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    pub(crate) fn set(name: &str, second: u32, size: i32, available: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": {"replicas": size, "selector": {}},
            "status": {"replicas": size, "availableReplicas": available},
        }))
        .unwrap()
    }

    fn deployment(replicas: i32, surge: serde_json::Value, unavailable: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web"},
            "spec": {"replicas": replicas, "selector": {}, "template": {},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}},
        }))
        .unwrap()
    }

    #[test]
    fn limits_round_as_upstream() {
        for (replicas, surge, unavailable, want) in [
            (3, json!("25%"), json!("25%"), (1, 0)),
            (10, json!("25%"), json!("25%"), (3, 2)),
            (3, json!(0), json!(0), (0, 1)),
            (3, json!("0%"), json!("10%"), (0, 1)),
            (2, json!(0), json!(5), (0, 2)),
            (0, json!(1), json!(1), (1, 0)),
        ] {
            let limits = Limits::of(&deployment(replicas, surge, unavailable));
            assert_eq!((limits.surge, limits.unavailable), want, "{replicas}");
        }
    }

    #[test]
    fn old_sets_give_up_unhealthy_pods_first() {
        let limits = Limits { replicas: 10, surge: 2, unavailable: 2, total_max: 12, rolling: true };
        let sets = [set("a", 1, 5, 5), set("b", 2, 3, 1), set("new", 3, 4, 4)];
        // 12 in all, 8 must stay available: 4 may go, two of them broken ones of b.
        assert_eq!(shrink_old(limits, &sets, 2), [(0, 3), (1, 1)]);
        let stale = [set("a", 1, 5, 8), set("new", 3, 5, 2)];
        assert_eq!(shrink_old(limits, &stale, 1), []);
    }

    #[test]
    fn scaling_in_a_rollout_is_proportional() {
        let mut sets = vec![set("old", 1, 8, 8), set("new", 2, 5, 5)];
        for set in &mut sets {
            annotations::set_sizes(&mut set.metadata, 10, 13);
        }
        let deployment = deployment(20, json!(3), json!(2));
        let limits = Limits::of(&deployment);
        assert_eq!(scale(&deployment, limits, &sets, Some(1)), [(0, 14), (1, 9)]);
        let smaller = super::tests::deployment(5, json!(3), json!(2));
        assert_eq!(scale(&smaller, Limits::of(&smaller), &sets, Some(1)), [(0, 5), (1, 3)]);
        let none = super::tests::deployment(0, json!(3), json!(2));
        assert_eq!(scale(&none, Limits::of(&none), &sets, Some(1)), [(0, 0), (1, 0)]);
    }

    #[test]
    fn one_active_set_takes_the_whole_size() {
        let sets = [set("old", 1, 0, 0), set("new", 2, 5, 5)];
        let deployment = deployment(7, json!(1), json!(1));
        assert_eq!(scale(&deployment, Limits::of(&deployment), &sets, Some(1)), [(1, 7)]);
        let idle = [set("a", 1, 0, 0), set("b", 2, 0, 0)];
        assert_eq!(scale(&deployment, Limits::of(&deployment), &idle, None), [(1, 7)]);
    }

    proptest! {
        /// Whatever the sets have reached when a pass looks, and in whatever order they act
        /// afterwards, the limits hold and the rollout ends.
        #[test]
        fn a_rollout_keeps_its_limits_and_ends(
            replicas in 0..20i32, surge in 0..8i32, unavailable in 0..8i32,
            old in proptest::collection::vec(0..10i32, 1..4), script in proptest::collection::vec(0..1000u32, 0..60),
        ) {
            let deployment = deployment(replicas, json!(surge), json!(unavailable));
            let limits = Limits::of(&deployment);
            // Old sets that together have what the Deployment wants, all of it available.
            let mut left = replicas;
            let mut sets: Vec<ReplicaSet> = Vec::new();
            for (at, want) in old.iter().enumerate() {
                let take = if at + 1 == old.len() { left } else { (*want).min(left) };
                left -= take;
                sets.push(set(&format!("o{at}"), at as u32, take, take));
            }
            sets.push(set("new", 50, 0, 0));
            let new = sets.len() - 1;
            // Pods that truly are available, per set; its status may lag behind.
            let mut available: Vec<i32> = sets.iter().map(size).collect();
            let mut script = script.into_iter();
            let mut passes = 0;
            loop {
                let shrunk = shrink_old(limits, &sets, new);
                for (at, to) in &shrunk {
                    sets[*at].spec.as_mut().unwrap().replicas = Some(*to);
                }
                let grown = new_set_size(limits, total(&sets), size(&sets[new]));
                let changed = !shrunk.is_empty() || grown != size(&sets[new]);
                sets[new].spec.as_mut().unwrap().replicas = Some(grown);
                prop_assert!(total(&sets) <= replicas + limits.surge);
                // Each set acts, or only some of them do, or none.
                let mask = script.next();
                for (at, set) in sets.iter_mut().enumerate() {
                    available[at] = available[at].min(size(set));
                    if mask.is_none_or(|mask| mask & (1 << at) != 0) {
                        if at == new {
                            available[at] = size(set).min(available[at] + mask.map_or(99, |m| (m >> 8) as i32));
                        }
                        set.status.as_mut().unwrap().available_replicas = Some(available[at]);
                    }
                }
                prop_assert!(available.iter().sum::<i32>() >= replicas - limits.unavailable);
                let done = size(&sets[new]) == replicas && total(&sets) == replicas;
                if done || (!changed && mask.is_none() && passes > 200) {
                    prop_assert!(done, "stuck: {:?}", sets.iter().map(size).collect::<Vec<_>>());
                    break;
                }
                passes += 1;
                prop_assert!(passes < 1000);
            }
        }
    }
}
