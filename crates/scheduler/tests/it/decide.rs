//! One decision: which Node, or why none.

use crate::cluster::{asking, candidate, cluster, node, pod};
use serde_json::{Value, json};
use skeg_base::Random;
use skeg_scheduler::{Candidate, Snapshot, explain, schedule};

/// The chosen Node, or upstream's words for why there is none.
fn outcome(pod: &Candidate, snapshot: &Snapshot) -> String {
    match schedule(pod, snapshot, 0, &Random::seeded(1)) {
        Ok(placement) => placement.node.to_string(),
        Err(unfit) => unfit.to_string(),
    }
}

#[test]
fn messages_read_as_upstreams() {
    let snapshot = cluster(
        &[
            node("full", json!({"status": {"allocatable": {"cpu": "1", "memory": "1Gi"}}})),
            node("small", json!({"status": {"allocatable": {"cpu": "8", "memory": "1Gi"}}})),
            node("tainted", json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}})),
            node("cordoned", json!({"spec": {"unschedulable": true}})),
            node("crowded", json!({"status": {"allocatable": {"pods": "0"}}})),
        ],
        &[],
    );
    assert_eq!(
        outcome(&candidate("p", json!({"spec": {"containers": asking("2", "2Gi")}})), &snapshot),
        "0/5 nodes are available: 1 Insufficient cpu, 1 Too many pods, 1 node(s) had untolerated taint(s), \
         1 node(s) were unschedulable, 2 Insufficient memory."
    );
    assert_eq!(
        outcome(&candidate("p", json!({})), &cluster(&[], &[])),
        "no nodes available to schedule pods"
    );
    let claim = json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}});
    assert_eq!(
        outcome(&candidate("p", claim), &snapshot),
        "0/5 nodes are available: persistentvolumeclaim \"data\" not found."
    );
    for (source, why) in [
        (json!({"name": "d", "resourceClaimName": "gpu"}), "resourceclaim \"gpu\" not found"),
        (
            json!({"name": "d", "resourceClaimTemplateName": "gpu"}),
            "pod \"default/p\": ResourceClaim not created yet",
        ),
    ] {
        let claim = candidate("p", json!({"spec": {"resourceClaims": [source]}}));
        assert_eq!(outcome(&claim, &snapshot), format!("0/5 nodes are available: {why}."));
    }
}

/// Pods of a DaemonSet, and whoever else names Nodes by field.
#[test]
fn a_pod_for_named_nodes_hears_of_the_others_in_one_line() {
    let nodes = [
        node("a", json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}})),
        node("b", json!({"status": {"allocatable": {"cpu": "1"}}})),
        node("c", json!({})),
    ];
    let wants = |terms: Value| {
        let required =
            json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
        let spec = json!({"containers": asking("2", "1Mi"), "affinity": {"nodeAffinity": required}});
        outcome(&candidate("p", json!({"spec": spec})), &cluster(&nodes, &[]))
    };
    let named = |names: Value| json!({"key": "metadata.name", "operator": "In", "values": names});
    assert_eq!(wants(json!([{"matchFields": [named(json!(["c"]))]}])), "c");
    assert_eq!(
        wants(json!([{"matchFields": [named(json!(["b"]))]}])),
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity]."
    );
    assert_eq!(
        wants(json!([{"matchFields": [named(json!(["b"])), named(json!(["c"]))]}])),
        "0/3 nodes are available: pod affinity terms conflict."
    );
    // An alternative that names none is open to all.
    let open = json!({"matchExpressions": [{"key": "disk", "operator": "DoesNotExist"}]});
    assert_eq!(wants(json!([{"matchFields": [named(json!(["b"]))]}, open])), "c");
}

/// One Node `n` and what a Pod hears from it.
fn verdict(node_patch: Value, on_it: &[Value], spec: Value) -> String {
    let pods: Vec<_> = on_it
        .iter()
        .enumerate()
        .map(|(i, spec)| {
            let mut spec = spec.clone();
            spec["nodeName"] = "n".into();
            pod(&format!("there-{i}"), json!({"spec": spec}))
        })
        .collect();
    let snapshot = cluster(&[node("n", node_patch)], &pods);
    let said = outcome(&candidate("p", json!({"spec": spec})), &snapshot);
    said.strip_prefix("0/1 nodes are available: 1 ").unwrap_or(&said).trim_end_matches('.').to_owned()
}

#[test]
fn each_filter_speaks() {
    let taints = |effect: &str| json!({"spec": {"taints": [{"key": "a", "value": "b", "effect": effect}]}});
    let port = |port: i32| json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": port}]}]});
    let selector = json!({"metadata": {"labels": {"disk": "ssd"}}});
    let needs = |operator: &str, values: Value| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "disk", "operator": operator, "values": values}]}]}}}})
    };
    let gpu = json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]});
    let storage =
        json!({"containers": [{"name": "c", "resources": {"requests": {"ephemeral-storage": "1Gi"}}}]});
    let nothing = json!({});
    let cases: &[(Value, Vec<Value>, Value, &str)] = &[
        (nothing.clone(), vec![], nothing.clone(), "n"),
        (taints("NoSchedule"), vec![], nothing.clone(), "node(s) had untolerated taint(s)"),
        (taints("NoExecute"), vec![], nothing.clone(), "node(s) had untolerated taint(s)"),
        (taints("PreferNoSchedule"), vec![], nothing.clone(), "n"),
        (taints("NoSchedule"), vec![], json!({"tolerations": [{"key": "a", "operator": "Exists"}]}), "n"),
        (json!({"spec": {"unschedulable": true}}), vec![], nothing.clone(), "node(s) were unschedulable"),
        (
            json!({"spec": {"unschedulable": true}}),
            vec![],
            json!({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}),
            "n",
        ),
        (
            nothing.clone(),
            vec![port(80)],
            port(80),
            "node(s) didn't have free ports for the requested pod ports",
        ),
        (nothing.clone(), vec![port(80)], port(81), "n"),
        (
            nothing.clone(),
            vec![],
            json!({"nodeSelector": {"disk": "ssd"}}),
            "node(s) didn't match Pod's node affinity/selector",
        ),
        (selector.clone(), vec![], json!({"nodeSelector": {"disk": "ssd"}}), "n"),
        (
            selector.clone(),
            vec![],
            needs("NotIn", json!(["ssd"])),
            "node(s) didn't match Pod's node affinity/selector",
        ),
        (selector.clone(), vec![], needs("In", json!(["ssd"])), "n"),
        (
            nothing.clone(),
            vec![json!({"containers": asking("3", "0")})],
            json!({"containers": asking("1001m", "0")}),
            "Insufficient cpu",
        ),
        (
            nothing.clone(),
            vec![json!({"containers": asking("3", "0")})],
            json!({"containers": asking("1", "0")}),
            "n",
        ),
        (
            nothing.clone(),
            vec![json!({"containers": asking("0", "8Gi")})],
            json!({"containers": asking("1", "1")}),
            "Insufficient memory",
        ),
        (nothing.clone(), vec![], gpu.clone(), "Insufficient example.com/gpu"),
        (json!({"status": {"allocatable": {"example.com/gpu": "1"}}}), vec![], gpu.clone(), "n"),
        (
            json!({"status": {"allocatable": {"example.com/gpu": "1"}}}),
            vec![gpu.clone()],
            gpu.clone(),
            "Insufficient example.com/gpu",
        ),
        (nothing.clone(), vec![], storage, "Insufficient ephemeral-storage"),
        (
            json!({"status": {"allocatable": {"pods": "1"}}}),
            vec![nothing.clone()],
            nothing.clone(),
            "Too many pods",
        ),
        (
            nothing.clone(),
            vec![],
            json!({"nodeName": "other"}),
            "node(s) didn't match the requested node name",
        ),
    ];
    for (at, (node, there, spec, expected)) in cases.iter().enumerate() {
        assert_eq!(verdict(node.clone(), there, spec.clone()), *expected, "case {at}: {spec}");
    }
}

/// Every Node that some seed chooses: more than one where scores are equal.
fn outcomes(pod: &Candidate, snapshot: &Snapshot) -> Vec<String> {
    let choose = |seed| schedule(pod, snapshot, 0, &Random::seeded(seed)).unwrap().node.to_string();
    let all: std::collections::BTreeSet<_> = (0..40).map(choose).collect();
    all.into_iter().collect()
}

#[test]
fn scores_prefer_the_emptier_the_tolerated_and_the_wanted() {
    let empty_and_used = cluster(
        &[node("used", json!({})), node("empty", json!({}))],
        &[pod("there", json!({"spec": {"nodeName": "used", "containers": asking("1", "1Gi")}}))],
    );
    let plain = candidate("p", json!({"spec": {"containers": asking("100m", "100Mi")}}));
    assert_eq!(outcomes(&plain, &empty_and_used), ["empty"]);
    let soft = json!({"spec": {"taints": [{"key": "a", "effect": "PreferNoSchedule"}]}});
    let soft_and_free = cluster(&[node("soft", soft), node("free", json!({}))], &[]);
    assert_eq!(outcomes(&plain, &soft_and_free), ["free"]);
    for (effect, expected) in
        [("PreferNoSchedule", &["free", "soft"][..]), ("", &["free", "soft"]), ("NoSchedule", &["free"])]
    {
        let tolerates =
            json!({"spec": {"tolerations": [{"key": "a", "operator": "Exists", "effect": effect}]}});
        assert_eq!(outcomes(&candidate("p", tolerates), &soft_and_free), expected, "{effect:?}");
    }
    let ssd = node("ssd", json!({"metadata": {"labels": {"disk": "ssd"}}}));
    let wants = candidate(
        "p",
        json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}}]}}}}),
    );
    assert_eq!(outcomes(&wants, &cluster(&[node("hdd", json!({})), ssd], &[])), ["ssd"]);
    let with = |mib: u64| json!({"status": {"images": [{"names": ["i:latest"], "sizeBytes": mib << 20}]}});
    let found = |mib| outcomes(&plain, &cluster(&[node("without", json!({})), node("with", with(mib))], &[]));
    assert_eq!(found(900), ["with"]);
    // What is pulled in no time attracts nobody: half of the Nodes have it, so half of it counts.
    assert_eq!(found(46), ["with", "without"]);
}

#[test]
fn equal_nodes_are_all_chosen_and_the_seed_decides() {
    let nodes: Vec<_> = (0..5).map(|i| node(&format!("n{i}"), json!({}))).collect();
    let snapshot = cluster(&nodes, &[]);
    let run = |seed| {
        let random = Random::seeded(seed);
        let pod = candidate("p", json!({}));
        (0..60).map(|_| schedule(&pod, &snapshot, 0, &random).unwrap().node.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    let mut seen = run(1);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 5);
}

#[test]
fn large_clusters_are_sampled_in_turns() {
    let nodes: Vec<_> = (0..1000).map(|i| node(&format!("n{i}"), json!({}))).collect();
    let snapshot = cluster(&nodes, &[]);
    let placement = schedule(&candidate("p", json!({})), &snapshot, 990, &Random::seeded(1)).unwrap();
    assert_eq!((placement.evaluated, placement.feasible), (420, 420));
    let number: usize = placement.node[1..].parse().unwrap();
    assert!(!(410..990).contains(&number), "{number}");
}

#[test]
fn zones_take_turns() {
    let zone = |zone: &str| json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}});
    let nodes = [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("c2", "c")];
    let nodes = nodes.map(|(name, in_zone)| node(name, zone(in_zone)));
    let names = |snapshot: &Snapshot| {
        snapshot.nodes().iter().map(|node| node.name.to_string()).collect::<Vec<_>>().join(" ")
    };
    let snapshot = cluster(&nodes, &[]);
    assert_eq!(names(&snapshot), "a1 b1 c1 a2 c2 a3");
    assert!(snapshot.nodes().iter().all(|node| snapshot.node(&node.name).unwrap().name == node.name));
}

fn zones() -> Vec<k8s_openapi::api::core::v1::Node> {
    [("a1", "a"), ("a2", "a"), ("b1", "b")]
        .map(|(name, zone)| node(name, json!({"metadata": {"labels": {"zone": zone}}})))
        .to_vec()
}

fn near(kind: &str, app: &str, key: &str) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}]}}})
}

#[test]
fn pods_seek_and_avoid_company() {
    let web = |node: &str| {
        pod(
            &format!("web-{node}"),
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"nodeName": node}}),
        )
    };
    let snapshot = cluster(&zones(), &[web("a1")]);
    let with = |spec: Value| candidate("p", json!({"spec": spec}));
    let placed = outcome(&with(near("podAffinity", "web", "kubernetes.io/hostname")), &snapshot);
    assert_eq!(placed, "a1");
    assert_eq!(outcome(&with(near("podAntiAffinity", "web", "zone")), &snapshot), "b1");
    assert_eq!(
        outcome(&with(near("podAffinity", "db", "zone")), &snapshot),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."
    );
    let everywhere = cluster(&zones(), &[web("a1"), web("b1")]);
    assert_eq!(
        outcome(&with(near("podAntiAffinity", "web", "zone")), &everywhere),
        "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules."
    );
    // The first of a group that seeks itself may go anywhere that has the label.
    let first = candidate(
        "p",
        json!({"metadata": {"labels": {"app": "db"}}, "spec": near("podAffinity", "db", "zone")}),
    );
    assert!(["a1", "a2", "b1"].contains(&outcome(&first, &snapshot).as_str()));
    let unlabelled = cluster(&[node("x", json!({}))], &[]);
    assert_eq!(
        outcome(&first, &unlabelled),
        "0/1 nodes are available: 1 node(s) didn't match pod affinity rules."
    );
}

#[test]
fn pods_already_there_keep_others_away() {
    let mut spec = near("podAntiAffinity", "web", "zone");
    spec["nodeName"] = "a1".into();
    let hermit = pod("hermit", json!({"spec": spec}));
    let snapshot = cluster(&zones()[..2], &[hermit]);
    let web = candidate("p", json!({"metadata": {"labels": {"app": "web"}}}));
    assert_eq!(
        outcome(&web, &snapshot),
        "0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules."
    );
    let elsewhere = candidate("p", json!({"metadata": {"namespace": "other", "labels": {"app": "web"}}}));
    assert!(outcome(&elsewhere, &snapshot).starts_with('a'), "the rule is about its own namespace");
}

#[test]
fn pods_spread() {
    let web = |name: &str, node: &str| {
        pod(name, json!({"metadata": {"labels": {"app": "web"}}, "spec": {"nodeName": node}}))
    };
    let spread = |when: &str| {
        candidate(
            "p",
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": when, "labelSelector": {"matchLabels": {"app": "web"}}}]}}),
        )
    };
    let mut nodes = zones();
    nodes.push(node("x", json!({})));
    let snapshot = cluster(&nodes, &[web("1", "a1"), web("2", "a2")]);
    assert_eq!(outcome(&spread("DoNotSchedule"), &snapshot), "b1");
    assert_eq!(outcome(&spread("ScheduleAnyway"), &snapshot), "b1");
    nodes.retain(|node| node.metadata.name.as_deref() != Some("b1"));
    let mut zone_b =
        node("b1", json!({"metadata": {"labels": {"zone": "b"}}, "spec": {"unschedulable": true}}));
    zone_b.spec.as_mut().unwrap().unschedulable = Some(true);
    nodes.push(zone_b);
    assert_eq!(
        outcome(&spread("DoNotSchedule"), &cluster(&nodes, &[web("1", "a1")])),
        "0/4 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label), \
         1 node(s) were unschedulable, 2 node(s) didn't match pod topology spread constraints."
    );
}

#[test]
fn pods_of_a_group_keep_their_distance() {
    let labels = json!({"app": "web"});
    let there = |name: &str, node: &str| {
        pod(name, json!({"metadata": {"labels": labels}, "spec": {"nodeName": node}}))
    };
    // The other Node is fuller, which alone would decide.
    let other = pod("other", json!({"spec": {"nodeName": "b", "containers": asking("500m", "1Gi")}}));
    let snapshot =
        cluster(&[node("a", json!({})), node("b", json!({}))], &[there("1", "a"), there("2", "a"), other]);
    let web = candidate("p", json!({"metadata": {"labels": labels}}));
    assert_eq!(outcome(&web, &snapshot), "a");
    let service = [("app".to_owned(), "web".to_owned())].into();
    assert_eq!(outcome(&web.clone().with_group([&service], None), &snapshot), "b");
    let selector = serde_json::from_value(json!({"matchLabels": {"app": "web"}})).unwrap();
    assert_eq!(outcome(&web.clone().with_group([], Some(&selector)), &snapshot), "b");
    let foreign = [("app".to_owned(), "db".to_owned())].into();
    assert_eq!(outcome(&web.with_group([&foreign], None), &snapshot), "a");
}

#[test]
fn explains_every_node() {
    let cordoned = node("cordoned", json!({"spec": {"unschedulable": true}}));
    let snapshot = cluster(&[node("free", json!({})), cordoned], &[]);
    let verdicts =
        explain(&candidate("p", json!({"spec": {"containers": asking("1", "2Gi")}})), &snapshot).unwrap();
    assert_eq!(verdicts[0].rejection, None);
    assert!(
        verdicts[0].scores.contains(&("NodeResourcesBalancedAllocation", 1, 100)),
        "{:?}",
        verdicts[0].scores
    );
    assert!(verdicts[0].scores.contains(&("NodeResourcesFit", 1, 75)), "{:?}", verdicts[0].scores);
    assert_eq!(verdicts[1].rejection.as_ref().unwrap().plugin, "NodeUnschedulable");
}
