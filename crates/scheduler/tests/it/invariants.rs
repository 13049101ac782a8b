//! Properties that hold for any cluster.

use crate::cluster::{asking, candidate, cluster, node, pod};
use proptest::prelude::*;
use serde_json::json;
use skeg_base::Random;
use skeg_scheduler::{Cache, PodInfo, Snapshot, explain, schedule};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the snapshot says of each Node, in one comparable form.
fn shown(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let line = |node: &Arc<skeg_scheduler::NodeInfo>| {
        let mut pods: Vec<_> = node.pods.iter().map(|pod| pod.uid.to_string()).collect();
        pods.sort();
        let mut ports: Vec<_> = node.host_ports.iter().map(|port| port.port).collect();
        ports.sort();
        (node.name.to_string(), format!("{:?} {:?} {ports:?} {pods:?}", node.requested, node.non_zero))
    };
    snapshot.nodes().iter().map(line).collect()
}

#[derive(Clone, Debug)]
enum Step {
    SetNode(u8),
    RemoveNode(u8),
    Assume(u8, u8, u8),
    Forget(u8),
    SetPod(u8, u8, u8),
    RemovePod(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (nodes, pods, cpu) = (0..4u8, 0..8u8, 0..4u8);
    let step = prop_oneof![
        nodes.clone().prop_map(Step::SetNode),
        nodes.clone().prop_map(Step::RemoveNode),
        (pods.clone(), nodes.clone(), cpu.clone()).prop_map(|(p, n, c)| Step::Assume(p, n, c)),
        pods.clone().prop_map(Step::Forget),
        (pods.clone(), nodes, cpu).prop_map(|(p, n, c)| Step::SetPod(p, n, c)),
        pods.prop_map(Step::RemovePod),
    ];
    proptest::collection::vec(step, 0..60)
}

fn on_node(p: u8, n: u8, cpu: u8) -> Arc<PodInfo> {
    let containers = json!([{"name": "c", "resources": {"requests": {"cpu": cpu.to_string(), "example.com/gpu": cpu.to_string()}},
        "ports": [{"containerPort": 1, "hostPort": 1000 + i32::from(cpu)}]}]);
    let pod = pod(&format!("p{p}"), json!({"spec": {"nodeName": format!("n{n}"), "containers": containers}}));
    Arc::new(PodInfo::of(&pod))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// However it came about, the cache equals one built from what is there at the end; and an
    /// older snapshot never changes.
    #[test]
    fn the_cache_equals_one_built_afresh(steps in steps()) {
        let mut cache = Cache::default();
        let mut nodes: BTreeMap<u8, ()> = BTreeMap::new();
        let mut pods: BTreeMap<u8, (Arc<PodInfo>, bool)> = BTreeMap::new();
        let mut kept: Vec<(Snapshot, BTreeMap<String, String>)> = Vec::new();
        for step in steps {
            match step {
                Step::SetNode(n) => { cache.set_node(&node(&format!("n{n}"), json!({}))); nodes.insert(n, ()); }
                Step::RemoveNode(n) => { cache.remove_node(&format!("n{n}")); nodes.remove(&n); }
                Step::Assume(p, n, c) => {
                    let info = on_node(p, n, c);
                    cache.assume(info.clone(), format!("n{n}").into());
                    pods.insert(p, (info, true));
                }
                Step::Forget(p) => {
                    let assumed = pods.get(&p).is_some_and(|(_, assumed)| *assumed);
                    prop_assert_eq!(cache.forget(&format!("uid-p{p}")), assumed);
                    if assumed { pods.remove(&p); }
                }
                Step::SetPod(p, n, c) => {
                    let info = on_node(p, n, c);
                    cache.set_pod(info.clone());
                    pods.insert(p, (info, false));
                }
                Step::RemovePod(p) => { cache.remove_pod(&format!("uid-p{p}")); pods.remove(&p); }
            }
            if kept.len() < 5 {
                kept.push((cache.snapshot().clone(), shown(cache.snapshot())));
            }
        }
        let mut fresh = Cache::default();
        for n in nodes.keys() {
            fresh.set_node(&node(&format!("n{n}"), json!({})));
        }
        for (info, _) in pods.values() {
            fresh.set_pod(info.clone());
        }
        prop_assert_eq!(shown(cache.snapshot()), shown(fresh.snapshot()));
        for (snapshot, then) in kept {
            prop_assert_eq!(shown(&snapshot), then);
        }
    }

    /// No Node ever gets more than it has, and a Pod is refused only if each Node refuses it.
    #[test]
    fn nodes_are_never_overcommitted(
        sizes in proptest::collection::vec((1..8i64, 1..8i64, 1..6i64), 1..6),
        wanted in proptest::collection::vec((0..3000i64, 0..3000i64), 1..40),
        seed in any::<u64>(),
    ) {
        let nodes: Vec<_> = sizes.iter().enumerate().map(|(i, (cpu, memory, pods))| {
            node(&format!("n{i}"), json!({"status": {"allocatable":
                {"cpu": cpu.to_string(), "memory": format!("{memory}Gi"), "pods": pods.to_string()}}}))
        }).collect();
        let mut cache = Cache::default();
        for node in &nodes {
            cache.set_node(node);
        }
        let random = Random::seeded(seed);
        for (i, (cpu, memory)) in wanted.iter().enumerate() {
            let containers = asking(&format!("{cpu}m"), &format!("{memory}Mi"));
            let candidate = candidate(&format!("p{i}"), json!({"spec": {"containers": containers}}));
            match schedule(&candidate, cache.snapshot(), i, &random) {
                Ok(placement) => cache.assume(candidate.info.clone(), placement.node),
                Err(unfit) => {
                    let verdicts = explain(&candidate, cache.snapshot()).unwrap();
                    prop_assert!(verdicts.iter().all(|v| v.rejection.is_some()));
                    prop_assert_eq!(unfit.nodes, nodes.len());
                }
            }
            for node in cache.snapshot().nodes() {
                prop_assert!(node.requested.cpu_millis <= node.facts.allocatable.cpu_millis);
                prop_assert!(node.requested.memory_bytes <= node.facts.allocatable.memory_bytes);
                prop_assert!(node.pods.len() <= node.facts.pods_max);
            }
        }
    }

    /// The chosen Node has the highest total of all that could take the Pod.
    #[test]
    fn the_best_node_is_chosen(used in proptest::collection::vec((0..4000i64, 0..8000i64), 2..8), seed in any::<u64>()) {
        let nodes: Vec<_> = (0..used.len()).map(|i| node(&format!("n{i}"), json!({}))).collect();
        let pods: Vec<_> = used.iter().enumerate().map(|(i, (cpu, memory))| {
            let containers = asking(&format!("{cpu}m"), &format!("{memory}Mi"));
            pod(&format!("there{i}"), json!({"spec": {"nodeName": format!("n{i}"), "containers": containers}}))
        }).collect();
        let snapshot = cluster(&nodes, &pods);
        let candidate = candidate("p", json!({"spec": {"containers": asking("100m", "1Mi")}}));
        let total = |verdict: &skeg_scheduler::NodeVerdict| -> i64 { verdict.scores.iter().map(|(_, w, s)| w * s).sum() };
        let verdicts = explain(&candidate, &snapshot).unwrap();
        let best = verdicts.iter().filter(|v| v.rejection.is_none()).map(total).max();
        let chosen = schedule(&candidate, &snapshot, 0, &Random::seeded(seed)).ok();
        let chosen = chosen.map(|p| total(verdicts.iter().find(|v| v.node == p.node).unwrap()));
        prop_assert_eq!(chosen, best);
    }
}
