//! The cluster as the scheduler sees it: Nodes with the Pods on them, those included that are on
//! their way there (assumed). Upstream counterparts: the scheduler's cache and snapshot.
//!
//! A [`Snapshot`] is a value: a clone shares all Nodes and stays as it is; a change copies only
//! the Node it touches, and only while somebody else still holds that Node.

use crate::amounts::Amounts;
use crate::pod_info::{Labels, PodInfo};
use k8s_openapi::api::core::v1::{Node, NodeSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use skeg_api::predicates::{self, HostPort};
use skeg_api::quantity::Quantity;
use skeg_base::{HashMap, new_map};
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A Node's own properties.
#[derive(Debug)]
pub struct NodeFacts {
    /// Name, labels, taints and `spec.unschedulable` only.
    pub node: Node,
    pub allocatable: Amounts,
    pub pods_max: usize,
    /// Sizes in bytes by each name of an image.
    pub images: BTreeMap<String, i64>,
}

impl NodeFacts {
    pub fn of(node: &Node) -> Self {
        let allocatable = predicates::allocatable(node);
        let images = node.status.iter().flat_map(|s| s.images.iter().flatten());
        let images = images.flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (name.clone(), size))
        });
        NodeFacts {
            node: Node {
                metadata: ObjectMeta {
                    name: node.metadata.name.clone(),
                    labels: node.metadata.labels.clone(),
                    ..Default::default()
                },
                spec: node.spec.as_ref().map(|spec| NodeSpec {
                    taints: spec.taints.clone(),
                    unschedulable: spec.unschedulable,
                    ..Default::default()
                }),
                status: None,
            },
            pods_max: allocatable.get("pods").copied().unwrap_or(Quantity::ZERO).units().max(0) as usize,
            allocatable: Amounts::of(&allocatable),
            images: images.collect(),
        }
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    /// Region and zone, in one text.
    fn zone(&self) -> String {
        let label = |key| self.label(key).unwrap_or_default();
        [label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone")].join("\0")
    }

    /// Whether anything changed that a decision looks at.
    fn same(&self, other: &NodeFacts) -> bool {
        self.node == other.node
            && self.allocatable == other.allocatable
            && self.pods_max == other.pods_max
            && self.images == other.images
    }
}

/// A Node and what the Pods on it use together.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub name: Arc<str>,
    pub facts: Arc<NodeFacts>,
    pub requested: Amounts,
    /// CPU in thousandths and memory in bytes as scoring counts them.
    pub non_zero: (i64, i64),
    pub host_ports: Vec<HostPort>,
    pub pods: Vec<Arc<PodInfo>>,
    /// Of `pods`, those with rules about other Pods.
    pub pods_with_affinity: usize,
    /// Rises with every change in the cluster; the last one that touched this Node.
    pub generation: u64,
}

impl NodeInfo {
    fn new(name: Arc<str>, facts: NodeFacts) -> Self {
        NodeInfo {
            name,
            facts: Arc::new(facts),
            requested: Amounts::default(),
            non_zero: (0, 0),
            host_ports: Vec::new(),
            pods: Vec::new(),
            pods_with_affinity: 0,
            generation: 0,
        }
    }

    pub(crate) fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.non_zero.0 = self.non_zero.0.saturating_add(pod.non_zero.0);
        self.non_zero.1 = self.non_zero.1.saturating_add(pod.non_zero.1);
        self.host_ports.extend(pod.host_ports.iter().cloned());
        self.pods_with_affinity += usize::from(pod.affinity.is_some());
        self.pods.push(pod);
    }

    pub(crate) fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|pod| *pod.uid == *uid)?;
        let pod = self.pods.swap_remove(at);
        self.requested.subtract(&pod.requests);
        self.non_zero.0 = self.non_zero.0.saturating_sub(pod.non_zero.0);
        self.non_zero.1 = self.non_zero.1.saturating_sub(pod.non_zero.1);
        for port in &pod.host_ports {
            if let Some(at) = self.host_ports.iter().position(|used| used == port) {
                self.host_ports.swap_remove(at);
            }
        }
        self.pods_with_affinity -= usize::from(pod.affinity.is_some());
        Some(pod)
    }
}

/// The cluster at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    nodes: Vec<Arc<NodeInfo>>,
    index: Arc<HashMap<Arc<str>, usize>>,
    /// Labels of Namespaces, for affinity across them.
    namespaces: Arc<BTreeMap<String, Labels>>,
    /// On how many Nodes an image is.
    images: Arc<BTreeMap<String, u32>>,
    /// Pods that wait for a Node to become free for them, by Node.
    nominated: Arc<BTreeMap<Arc<str>, Vec<Arc<PodInfo>>>>,
    generation: u64,
}

impl Snapshot {
    /// The Node with those Pods on it that are to come there and that this one may not overtake.
    pub fn with_nominated<'a>(&self, node: &'a NodeInfo, pod: &PodInfo) -> Cow<'a, NodeInfo> {
        let mut node = Cow::Borrowed(node);
        if self.nominated.is_empty() {
            return node;
        }
        for other in self.nominated.get(&node.name).into_iter().flatten() {
            if other.priority >= pod.priority && other.uid != pod.uid {
                node.to_mut().add(other.clone());
            }
        }
        node
    }

    pub fn nodes(&self) -> &[Arc<NodeInfo>] {
        &self.nodes
    }

    pub fn node(&self, name: &str) -> Option<&Arc<NodeInfo>> {
        self.nodes.get(*self.index.get(name)?)
    }

    pub fn namespace_labels(&self, namespace: &str) -> &Labels {
        static NONE: Labels = Labels::new();
        self.namespaces.get(namespace).unwrap_or(&NONE)
    }

    /// On how many Nodes an image is, by any of its names.
    pub fn nodes_with_image(&self, image: &str) -> u32 {
        self.images.get(image).copied().unwrap_or(0)
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn edit(&mut self, name: &str, change: impl FnOnce(&mut NodeInfo)) -> bool {
        let Some(at) = self.index.get(name).copied() else { return false };
        self.generation += 1;
        let node = Arc::make_mut(&mut self.nodes[at]);
        change(node);
        node.generation = self.generation;
        true
    }
}

/// Where a Pod is counted.
#[derive(Debug)]
struct Counted {
    node: Arc<str>,
    /// Its binding is under way or not yet seen.
    assumed: bool,
    info: Arc<PodInfo>,
}

/// Keeps the snapshot up to date.
#[derive(Debug)]
pub struct Cache {
    snapshot: Snapshot,
    /// By uid.
    pods: HashMap<Arc<str>, Counted>,
    /// Node by uid of the Pod that waits for it.
    nominations: HashMap<Arc<str>, Arc<str>>,
    /// Nodes came, went or moved to another zone.
    unordered: bool,
}

impl Default for Cache {
    fn default() -> Self {
        Cache { snapshot: Snapshot::default(), pods: new_map(), nominations: new_map(), unordered: false }
    }
}

/// What an update of a Node changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeChange {
    Added,
    Changed,
    Nothing,
}

impl Cache {
    /// The cluster now. Its Nodes come zone by turn, so that a search that stops early has seen
    /// all zones.
    pub fn snapshot(&mut self) -> &Snapshot {
        if std::mem::take(&mut self.unordered) {
            self.take_turns();
        }
        &self.snapshot
    }

    fn take_turns(&mut self) {
        let mut zones: Vec<(String, VecDeque<Arc<NodeInfo>>)> = Vec::new();
        for node in std::mem::take(&mut self.snapshot.nodes) {
            let zone = node.facts.zone();
            match zones.iter_mut().find(|(known, _)| *known == zone) {
                Some((_, nodes)) => nodes.push_back(node),
                None => zones.push((zone, VecDeque::from([node]))),
            }
        }
        let index = Arc::make_mut(&mut self.snapshot.index);
        while !zones.is_empty() {
            zones.retain_mut(|(_, nodes)| {
                let Some(node) = nodes.pop_front() else { return false };
                index.insert(node.name.clone(), self.snapshot.nodes.len());
                self.snapshot.nodes.push(node);
                true
            });
        }
    }

    pub fn set_node(&mut self, node: &Node) -> NodeChange {
        let Some(name) = node.metadata.name.as_deref() else { return NodeChange::Nothing };
        let facts = NodeFacts::of(node);
        let old = self.snapshot.node(name).map(|known| known.facts.clone());
        if old.as_ref().is_some_and(|old| old.same(&facts)) {
            return NodeChange::Nothing;
        }
        self.count_images(old.as_deref(), Some(&facts));
        self.unordered |= old.as_ref().is_none_or(|old| old.zone() != facts.zone());
        if old.is_some() {
            self.snapshot.edit(name, |node| node.facts = Arc::new(facts));
            return NodeChange::Changed;
        }
        let name: Arc<str> = name.into();
        let mut info = NodeInfo::new(name.clone(), facts);
        // Pods may be heard of before their Node.
        for pod in self.pods.values().filter(|pod| pod.node == name) {
            info.add(pod.info.clone());
        }
        // The table of Pods has no order of its own.
        info.pods.sort_by(|a, b| a.key.cmp(&b.key));
        Arc::make_mut(&mut self.snapshot.index).insert(name.clone(), self.snapshot.nodes.len());
        self.snapshot.nodes.push(Arc::new(info));
        self.snapshot.edit(&name, |_| {});
        NodeChange::Added
    }

    pub fn remove_node(&mut self, name: &str) {
        let index = Arc::make_mut(&mut self.snapshot.index);
        let Some(at) = index.remove(name) else { return };
        self.unordered = true;
        let gone = self.snapshot.nodes.remove(at);
        for later in index.values_mut().filter(|later| **later > at) {
            *later -= 1;
        }
        self.snapshot.generation += 1;
        self.count_images(Some(&gone.facts), None);
    }

    fn count_images(&mut self, old: Option<&NodeFacts>, new: Option<&NodeFacts>) {
        let same = old.map(|f| &f.images) == new.map(|f| &f.images);
        if same {
            return;
        }
        let counts = Arc::make_mut(&mut self.snapshot.images);
        for image in old.iter().flat_map(|facts| facts.images.keys()) {
            if let Some(count) = counts.get_mut(image) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(image);
                }
            }
        }
        for image in new.iter().flat_map(|facts| facts.images.keys()) {
            *counts.entry(image.clone()).or_insert(0) += 1;
        }
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        let namespaces = Arc::make_mut(&mut self.snapshot.namespaces);
        match labels {
            Some(labels) => namespaces.insert(name.to_owned(), labels),
            None => namespaces.remove(name),
        };
    }

    /// Counts a Pod that the API shows on a Node, in place of what was assumed of it.
    pub fn set_pod(&mut self, info: Arc<PodInfo>) {
        let Some(node) = info.node.clone() else { return };
        self.count(info, node, false);
    }

    /// Counts a Pod on the Node chosen for it before the API shows it there.
    pub fn assume(&mut self, info: Arc<PodInfo>, node: Arc<str>) {
        self.count(info, node, true);
    }

    /// Takes back an assumption; a Pod that was seen on a Node meanwhile stays.
    pub fn forget(&mut self, uid: &str) -> bool {
        if !self.is_assumed(uid) {
            return false;
        }
        self.remove_pod(uid);
        true
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|pod| pod.assumed)
    }

    /// Keeps a Node for a Pod that waits for it, or no longer.
    pub fn nominate(&mut self, info: Arc<PodInfo>, node: Option<Arc<str>>) {
        self.drop_nomination(&info.uid);
        if let Some(node) = node {
            Arc::make_mut(&mut self.snapshot.nominated).entry(node.clone()).or_default().push(info.clone());
            self.nominations.insert(info.uid.clone(), node);
        }
    }

    pub fn drop_nomination(&mut self, uid: &str) {
        let Some(node) = self.nominations.remove(uid) else { return };
        let nominated = Arc::make_mut(&mut self.snapshot.nominated);
        if let Some(pods) = nominated.get_mut(&node) {
            pods.retain(|pod| *pod.uid != *uid);
            if pods.is_empty() {
                nominated.remove(&node);
            }
        }
    }

    /// A Pod as it is counted.
    pub fn counted(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).map(|pod| &pod.info)
    }

    /// The Node a Pod is counted on.
    pub fn node_of(&self, uid: &str) -> Option<&Arc<str>> {
        self.pods.get(uid).map(|pod| &pod.node)
    }

    fn count(&mut self, info: Arc<PodInfo>, node: Arc<str>, assumed: bool) {
        self.remove_pod(&info.uid);
        self.drop_nomination(&info.uid);
        self.snapshot.edit(&node, |on| on.add(info.clone()));
        self.pods.insert(info.uid.clone(), Counted { node, assumed, info });
    }

    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let counted = self.pods.remove(uid)?;
        self.snapshot.edit(&counted.node, |node| {
            node.remove(uid);
        });
        Some(counted.info)
    }
}
