//! Who owns whom: a graph of all objects, fed with events, that tells which of them to look at.
//! It holds metadata only and decides nothing; `plan` does. Pure.
//! Upstream counterpart: `pkg/controller/garbagecollector/graph_builder.go`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use skeg_client::ObjectKey;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub(crate) const ORPHAN: &str = "orphan";
pub(crate) const FOREGROUND: &str = "foregroundDeletion";

/// Owners remembered as gone, so that their many dependents do not each ask for them.
const ABSENT_MAX: usize = 500;

/// Shared, as the other parts of identities are: there is a node for every object of the cluster.
pub(crate) type Uid = Arc<str>;

/// Names one object, or what an owner reference claims is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
    /// Of a virtual owner: that of its dependent.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub uid: Uid,
}

/// Of which kind the objects of an informer are.
pub(crate) struct Kind {
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
}

impl Identity {
    /// The owner that a reference claims, as seen from a namespace.
    pub(crate) fn claimed(reference: &OwnerReference, namespace: &str) -> Self {
        Identity {
            api_version: reference.api_version.as_str().into(),
            kind: reference.kind.as_str().into(),
            namespace: namespace.into(),
            name: reference.name.as_str().into(),
            uid: reference.uid.as_str().into(),
        }
    }
}

/// One object of the graph.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Node {
    pub identity: Identity,
    pub owners: Vec<OwnerReference>,
    pub dependents: BTreeSet<Uid>,
    pub is_deleting: bool,
    /// Waits for its dependents to be deleted first.
    pub is_deleting_dependents: bool,
    /// Waits for its dependents to be let go first.
    pub is_orphaning: bool,
    /// Known from a reference only; no event has shown it.
    pub is_virtual: bool,
}

/// An object to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Work {
    /// May have to be deleted, or to lose references or its finalizer.
    Delete(Uid),
    /// Its dependents are to be let go.
    Orphan(Uid),
}

#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: BTreeMap<Uid, Node>,
    /// By all that a reference says: one that names a living owner wrong must not stand for those
    /// that name it right.
    absent: BTreeSet<Identity>,
    absent_order: VecDeque<Identity>,
}

impl Graph {
    pub(crate) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The dependents of an object, as they are known.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<&Node> {
        let node = self.nodes.get(uid);
        node.into_iter().flat_map(|node| &node.dependents).filter_map(|uid| self.nodes.get(uid)).collect()
    }

    /// An event showed the object as it is.
    pub(crate) fn upsert(&mut self, of: &Kind, key: &ObjectKey, meta: &ObjectMeta) -> Vec<Work> {
        let mut work = Vec::new();
        let uid = meta.uid.as_deref().unwrap_or_default();
        let uid: Uid = self.nodes.get_key_value(uid).map_or_else(|| uid.into(), |(known, _)| known.clone());
        let identity = Identity {
            api_version: of.api_version.clone(),
            kind: of.kind.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: uid.clone(),
        };
        let owners = meta.owner_references.clone().unwrap_or_default();
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|own| own == finalizer);
        let is_deleting = meta.deletion_timestamp.is_some();

        let node = self.nodes.entry(uid.clone()).or_default();
        let was = node.clone();
        let is_new = was.identity.uid.is_empty();
        node.identity = identity;
        node.is_virtual = false;
        node.is_deleting = is_deleting;
        node.is_deleting_dependents = is_deleting && has(FOREGROUND);
        node.is_orphaning = is_deleting && has(ORPHAN);
        let (deletes_dependents, orphans) = (node.is_deleting_dependents, node.is_orphaning);
        node.owners.clone_from(&owners);

        // Its dependents were filed under what a reference claimed; those that are in another
        // namespace do not depend on it after all.
        if was.is_virtual && was.identity != self.nodes[&uid].identity {
            work.extend(was.dependents.iter().cloned().map(Work::Delete));
        }
        for gone in was.owners.iter().filter(|old| !owners.iter().any(|new| new.uid == old.uid)) {
            self.unlink(&gone.uid, &uid);
        }
        for added in owners.iter().filter(|new| !was.owners.iter().any(|old| old.uid == new.uid)) {
            self.link(added, &uid, &mut work);
        }
        // An owner that waited for this object to go may no longer have to.
        for old in was.owners.iter().filter(|old| old.block_owner_deletion == Some(true)) {
            let blocks =
                owners.iter().any(|new| new.uid == old.uid && new.block_owner_deletion == Some(true));
            if !blocks && self.nodes.contains_key(&*old.uid) {
                work.push(Work::Delete(old.uid.as_str().into()));
            }
        }
        if orphans && !was.is_orphaning {
            work.push(Work::Orphan(uid.clone()));
        }
        if deletes_dependents && (is_new || !was.is_deleting_dependents) {
            work.extend(self.nodes[&uid].dependents.iter().cloned().map(Work::Delete));
            work.push(Work::Delete(uid));
        }
        work
    }

    fn link(&mut self, owner: &OwnerReference, dependent: &Uid, work: &mut Vec<Work>) {
        let namespace =
            self.nodes.get(dependent).map(|node| node.identity.namespace.clone()).unwrap_or_default();
        if let Some(node) = self.nodes.get_mut(&*owner.uid) {
            node.dependents.insert(dependent.clone());
            let claimed = (&*owner.api_version, &*owner.kind, &*owner.name);
            let actual = (&*node.identity.api_version, &*node.identity.kind, &*node.identity.name);
            let elsewhere = !node.identity.namespace.is_empty() && node.identity.namespace != namespace;
            // A reference that does not name its owner right is checked against the server, and
            // so is a new dependent of an owner that is deleting its dependents.
            if claimed != actual || elsewhere || node.is_deleting_dependents {
                work.push(Work::Delete(dependent.clone()));
            }
            return;
        }
        let identity = Identity::claimed(owner, &namespace);
        let dependents = BTreeSet::from([dependent.clone()]);
        let uid = identity.uid.clone();
        self.nodes.insert(uid.clone(), Node { identity, dependents, is_virtual: true, ..Node::default() });
        work.push(Work::Delete(uid));
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        let Some(node) = self.nodes.get_mut(owner) else { return };
        node.dependents.remove(dependent);
        if node.is_virtual && node.dependents.is_empty() {
            self.nodes.remove(owner);
        }
    }

    /// An event, or an answer of the server, showed that the object is gone.
    pub(crate) fn remove(&mut self, uid: &str) -> Vec<Work> {
        let Some(node) = self.nodes.remove(uid) else { return Vec::new() };
        let mut work = Vec::new();
        for owner in &node.owners {
            self.unlink(&owner.uid, uid);
            if let Some((uid, owner)) = self.nodes.get_key_value(&*owner.uid)
                && owner.is_deleting_dependents
            {
                work.push(Work::Delete(uid.clone()));
            }
        }
        if !node.dependents.is_empty() {
            self.remember_absent(node.identity);
        }
        work.extend(node.dependents.into_iter().map(Work::Delete));
        work
    }

    /// The server knows no object as the references to this virtual owner name it. Those that name
    /// it otherwise keep it, and it is looked for as they do.
    pub(crate) fn remove_virtual(&mut self, uid: &str) -> Vec<Work> {
        let Some(node) = self.nodes.get(uid).filter(|node| node.is_virtual) else { return Vec::new() };
        let claims = |dependent: &Uid| {
            let dependent = self.nodes.get(dependent)?;
            let reference = dependent.owners.iter().find(|owner| owner.uid == uid)?;
            Some(Identity::claimed(reference, &dependent.identity.namespace))
        };
        let (absent, others): (BTreeSet<Uid>, BTreeSet<Uid>) =
            node.dependents.iter().cloned().partition(|uid| claims(uid).is_none_or(|c| c == node.identity));
        let Some(next) = others.first().and_then(claims) else { return self.remove(uid) };
        let Some(node) = self.nodes.get_mut(uid) else { return Vec::new() };
        node.dependents = others;
        let identity = std::mem::replace(&mut node.identity, next);
        self.remember_absent(identity);
        absent.into_iter().chain([uid.into()]).map(Work::Delete).collect()
    }

    /// Whether an owner is known to be gone, as seen from a namespace.
    pub(crate) fn is_absent(&self, reference: &OwnerReference, namespace: &str) -> bool {
        [namespace, ""].iter().any(|of| self.absent.contains(&Identity::claimed(reference, of)))
    }

    pub(crate) fn remember_absent(&mut self, identity: Identity) {
        if self.absent.insert(identity.clone()) {
            self.absent_order.push_back(identity);
        }
        if self.absent_order.len() > ABSENT_MAX
            && let Some(oldest) = self.absent_order.pop_front()
        {
            self.absent.remove(&oldest);
        }
    }

    /// The dependents that hold up the deletion of an object that deletes them first.
    pub(crate) fn blocking_dependents(&self, uid: &str) -> Vec<&Node> {
        let blocks =
            |node: &&Node| node.owners.iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true));
        self.dependents(uid).into_iter().filter(blocks).collect()
    }

    /// Whether the object waits for its dependents while one of them waits for its own: they may
    /// wait for each other.
    pub(crate) fn has_waiting_dependent(&self, uid: &str) -> bool {
        self.dependents(uid).iter().any(|node| node.is_deleting_dependents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn meta(uid: &str, owners: &[(&str, bool)], more: Value) -> ObjectMeta {
        let owner = |(uid, block): &(&str, bool)| json!({"apiVersion": "v1", "kind": "K", "name": uid, "uid": uid, "blockOwnerDeletion": block});
        let mut meta = json!({"name": uid, "namespace": "ns", "uid": uid, "ownerReferences": owners.iter().map(owner).collect::<Vec<_>>()});
        for (key, value) in more.as_object().unwrap() {
            meta[key] = value.clone();
        }
        serde_json::from_value(meta).unwrap()
    }

    fn add(graph: &mut Graph, uid: &str, owners: &[(&str, bool)], more: Value) -> Vec<Work> {
        let of = Kind { api_version: "v1".into(), kind: "K".into() };
        let meta = meta(uid, owners, more);
        graph.upsert(&of, &ObjectKey::new(meta.namespace.as_deref().unwrap(), uid), &meta)
    }

    fn delete(uid: &str) -> Work {
        Work::Delete(uid.into())
    }

    #[test]
    fn the_end_of_an_owner_wakes_its_dependents() {
        let mut graph = Graph::default();
        assert_eq!(add(&mut graph, "o", &[], json!({})), []);
        assert_eq!(add(&mut graph, "d", &[("o", false)], json!({})), []);
        assert_eq!(graph.remove("o"), [delete("d")]);
        let right = meta("d", &[("o", false)], json!({})).owner_references.unwrap().remove(0);
        assert!(graph.is_absent(&right, "ns") && !graph.is_absent(&right, "other"));
        let wrong = OwnerReference { kind: "Other".into(), ..right };
        assert!(!graph.is_absent(&wrong, "ns"), "what is named otherwise is another object");
    }

    #[test]
    fn a_wrong_name_of_an_owner_does_not_stand_for_the_right_one() {
        let mut graph = Graph::default();
        let wrong = json!([{"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "o"}]);
        assert_eq!(add(&mut graph, "d", &[], json!({"ownerReferences": wrong})), [delete("o")]);
        add(&mut graph, "e", &[("o", false)], json!({}));
        assert_eq!(graph.remove_virtual("o"), [delete("d"), delete("o")]);
        let virtual_owner = graph.get("o").unwrap();
        assert_eq!((&*virtual_owner.identity.kind, virtual_owner.is_virtual), ("K", true));
        // Its event comes after all: who names it right is its dependent.
        add(&mut graph, "o", &[], json!({}));
        assert_eq!(graph.remove("o"), [delete("e")]);
    }

    #[test]
    fn an_unknown_owner_is_looked_for() {
        let mut graph = Graph::default();
        assert_eq!(add(&mut graph, "d", &[("o", false)], json!({})), [delete("o")]);
        assert!(graph.get("o").unwrap().is_virtual);
        assert_eq!(add(&mut graph, "o", &[], json!({})), []);
        assert!(!graph.get("o").unwrap().is_virtual);
        assert_eq!(graph.dependents("o").len(), 1);
        // Seen to be in another namespace, it is no owner.
        assert_eq!(add(&mut graph, "e", &[("p", false)], json!({})), [delete("p")]);
        assert_eq!(add(&mut graph, "p", &[], json!({"namespace": "other"})), [delete("e")]);
        // A virtual owner ends with its last dependent.
        add(&mut graph, "f", &[("q", false)], json!({}));
        add(&mut graph, "f", &[], json!({}));
        assert_eq!(graph.get("q"), None);
    }

    #[test]
    fn foreground_deletion_looks_at_dependents_and_then_at_the_owner() {
        let mut graph = Graph::default();
        add(&mut graph, "o", &[], json!({}));
        add(&mut graph, "d", &[("o", true)], json!({}));
        add(&mut graph, "e", &[("o", false)], json!({}));
        let going = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND]});
        assert_eq!(add(&mut graph, "o", &[], going.clone()), [delete("d"), delete("e"), delete("o")]);
        assert_eq!(add(&mut graph, "o", &[], going), [], "once");
        assert_eq!(graph.blocking_dependents("o").len(), 1);
        assert_eq!(graph.remove("d"), [delete("o")]);
        assert_eq!(graph.blocking_dependents("o").len(), 0);
    }

    #[test]
    fn an_unblocked_owner_is_looked_at() {
        let mut graph = Graph::default();
        add(&mut graph, "o", &[], json!({}));
        add(&mut graph, "d", &[("o", true)], json!({}));
        assert_eq!(add(&mut graph, "d", &[("o", false)], json!({})), [delete("o")]);
    }

    #[test]
    fn orphaning_is_asked_for_once() {
        let mut graph = Graph::default();
        let going = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [ORPHAN]});
        assert_eq!(add(&mut graph, "o", &[], going.clone()), [Work::Orphan("o".into())]);
        assert_eq!(add(&mut graph, "o", &[], going), []);
    }
}
