//! What a node may write: its own Node, Lease and CSINode, the status of its own Pods, mirror Pods,
//! and tokens for Pods that it runs.
//! Upstream counterpart: `plugin/pkg/admission/noderestriction`.

use super::service_account::MIRROR;
use super::{Admission, Operation, Plugin, ready};
use crate::auth::node::{GROUP, node_of};
use crate::reader::Reader;
use crate::resources;
use futures_util::future::BoxFuture;
use serde_json::Value;
use skeg_api::{Status, csr, meta};
use std::collections::BTreeSet;
use std::sync::Arc;

const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Labels of kubernetes.io and k8s.io that a node may set on itself.
const NODE_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/windows-build",
];

pub struct NodeRestriction {
    reader: Arc<dyn Reader>,
}

impl NodeRestriction {
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        NodeRestriction { reader }
    }

    fn check(&self, a: &Admission<'_>) -> Result<(), Status> {
        if !a.identity.in_group(GROUP) {
            return Ok(());
        }
        let Some(node) = node_of(a.identity) else {
            return Err(a.forbid(format!("could not determine node from user {:?}", a.identity.user())));
        };
        match (&*a.kind.gvk.group, &*a.kind.plural) {
            ("", "pods") => self.pod(node, a),
            ("", "nodes") => self.node(node, a),
            ("", "serviceaccounts") if a.subresource == "token" => self.token(node, a),
            ("coordination.k8s.io", "leases") => {
                if a.namespace != LEASE_NAMESPACE {
                    return Err(a.forbid(format!(
                        "can only access leases in the {LEASE_NAMESPACE:?} system namespace"
                    )));
                }
                own_name(node, a, "can only access node lease with the same name as the requesting node")
            }
            ("certificates.k8s.io", "certificatesigningrequests") => signing_request(node, a),
            ("storage.k8s.io", "csinodes") => {
                own_name(node, a, "can only access CSINode with the same name as the requesting node")
            }
            _ => Ok(()),
        }
    }

    fn pod(&self, node: &str, a: &Admission<'_>) -> Result<(), Status> {
        let stored = || self.reader.get_value(&resources::PODS, a.namespace, a.name);
        match (a.subresource, a.operation) {
            ("", Operation::Create) => match a.object.as_deref() {
                Some(pod) => mirror_pod(node, a, pod),
                None => Ok(()),
            },
            ("", Operation::Delete) => match a.old.cloned().map(Arc::new).or_else(stored) {
                // A Pod that is not there is answered with 404 later.
                Some(pod) if pod["spec"]["nodeName"] != node => Err(
                    a.forbid(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
                ),
                _ => Ok(()),
            },
            ("", _) => Err(a.forbid(format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                operation(a.operation)
            ))),
            ("status", Operation::Update) => {
                let (Some(old), Some(new)) = (a.old, a.object.as_deref()) else { return Ok(()) };
                if old["spec"]["nodeName"] != node {
                    return Err(a.forbid(format!(
                        "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                    )));
                }
                if old["metadata"]["labels"] != new["metadata"]["labels"] {
                    return Err(a.forbid(format!("node {node:?} cannot update labels through pod status")));
                }
                if old["status"]["resourceClaimStatuses"] != new["status"]["resourceClaimStatuses"] {
                    return Err(a.forbid(format!("node {node:?} cannot update resource claim statuses")));
                }
                Ok(())
            }
            ("status", other) => Err(a.forbid(format!("unexpected operation {:?}", operation(other)))),
            ("eviction", Operation::Create) => match stored() {
                Some(pod) if pod["spec"]["nodeName"] != node => {
                    Err(a.forbid(format!("node {node} can only evict pods with spec.nodeName set to itself")))
                }
                _ => Ok(()),
            },
            (other, _) => Err(a.forbid(format!(
                "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
            ))),
        }
    }

    fn node(&self, node: &str, a: &Admission<'_>) -> Result<(), Status> {
        let name = match a.object.as_deref() {
            Some(object) if a.operation == Operation::Create => meta::name(object),
            _ => a.name,
        };
        if name != node {
            return Err(a.forbid(format!("node {node:?} is not allowed to modify node {name:?}")));
        }
        let Some(new) = a.object.as_deref() else { return Ok(()) };
        let changed = changed_labels(a.old, new);
        let labels: Vec<&str> = changed.into_iter().filter(|label| is_forbidden_label(label)).collect();
        match a.operation {
            Operation::Create if !labels.is_empty() => Err(a.forbid(format!(
                "node {node:?} is not allowed to set the following labels: {}",
                labels.join(", ")
            ))),
            Operation::Update => {
                let Some(old) = a.old else { return Ok(()) };
                if old["spec"]["taints"] != new["spec"]["taints"] {
                    return Err(a.forbid(format!("node {node:?} is not allowed to modify taints")));
                }
                if old["metadata"]["ownerReferences"] != new["metadata"]["ownerReferences"] {
                    return Err(a.forbid(format!("node {node:?} is not allowed to modify ownerReferences")));
                }
                if !labels.is_empty() {
                    return Err(a.forbid(format!(
                        "node {node:?} is not allowed to modify labels: {}",
                        labels.join(", ")
                    )));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A token request of a node is for a Pod that it runs.
    fn token(&self, node: &str, a: &Admission<'_>) -> Result<(), Status> {
        let Some(spec) = a.object.as_deref().map(|request| &request["spec"]) else { return Ok(()) };
        let bound = &spec["boundObjectRef"];
        if bound.is_null() {
            return Err(a.forbid("node requested token not bound to a pod"));
        }
        if bound["kind"] != "Pod" || !matches!(bound["apiVersion"].as_str(), Some("v1") | None) {
            return Err(a.forbid("node requested token not bound to a pod"));
        }
        let name = bound["name"].as_str().unwrap_or_default();
        let Some(pod) = self.reader.get_value(&resources::PODS, a.namespace, name) else {
            return Err(Status::not_found("", "pods", name));
        };
        if bound["uid"].as_str().is_some_and(|uid| uid != meta::uid(&pod)) || bound["uid"].is_null() {
            return Err(a.forbid(format!("the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated", bound["uid"].as_str().unwrap_or_default())));
        }
        if pod["spec"]["nodeName"] != node {
            return Err(a.forbid("node requested token bound to a pod scheduled on a different node"));
        }
        let projected = token_audiences(&pod["spec"]);
        for audience in spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !projected.contains(audience) && !audience.is_empty() {
                return Err(a.forbid(format!(
                    "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this \
                     audience",
                    a.identity.user()
                )));
            }
        }
        Ok(())
    }
}

/// A node asks for certificates of its own name.
fn signing_request(node: &str, a: &Admission<'_>) -> Result<(), Status> {
    let Some(object) = a.object.as_deref().filter(|_| a.operation == Operation::Create) else {
        return Ok(());
    };
    let text = |field: &str| object["spec"][field].as_str().unwrap_or_default();
    if ![csr::KUBELET_SERVING, csr::KUBELET_CLIENT].contains(&text("signerName")) {
        return Ok(());
    }
    let asked = csr::Request::decode(text("request"));
    let asked = asked.map_err(|why| a.forbid(format!("unable to parse csr: {why}")))?;
    let wanted = format!("system:node:{node}");
    if asked.common_name == wanted {
        return Ok(());
    }
    Err(a.forbid(format!("can only create a node CSR with CN={wanted}")))
}

fn token_audiences(spec: &Value) -> BTreeSet<&str> {
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    let sources = volumes.flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten());
    sources.filter_map(|source| source["serviceAccountToken"]["audience"].as_str()).collect()
}

fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

fn own_name(node: &str, a: &Admission<'_>, why: &str) -> Result<(), Status> {
    let name = match a.object.as_deref() {
        Some(object) if a.operation == Operation::Create => meta::name(object),
        _ => a.name,
    };
    if name == node { Ok(()) } else { Err(a.forbid(why)) }
}

fn mirror_pod(node: &str, a: &Admission<'_>, pod: &Value) -> Result<(), Status> {
    if meta::annotation(pod, MIRROR).is_none() {
        return Err(a.forbid(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        )));
    }
    let spec = &pod["spec"];
    if spec["nodeName"] != node {
        return Err(a.forbid(format!("node {node:?} can only create pods with spec.nodeName set to itself")));
    }
    for owner in meta::owner_references(pod) {
        if owner.kind != "Node" || owner.api_version != "v1" || owner.name != node {
            return Err(a.forbid(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            )));
        }
    }
    if spec["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return Err(a.forbid(format!("node {node:?} can not create pods that reference a service account")));
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        for (field, what) in [
            ("secret", "secrets"),
            ("configMap", "configmaps"),
            ("persistentVolumeClaim", "persistentvolumeclaims"),
        ] {
            if !volume[field].is_null() {
                return Err(a.forbid(format!("node {node:?} can not create pods that reference {what}")));
            }
        }
    }
    Ok(())
}

fn changed_labels<'a>(old: Option<&'a Value>, new: &'a Value) -> BTreeSet<&'a str> {
    let before = old.and_then(meta::labels);
    let after = meta::labels(new);
    let keys = before.into_iter().chain(after).flat_map(|labels| labels.keys());
    let get = |labels: Option<&'a serde_json::Map<String, Value>>, key: &str| {
        labels.and_then(|l| l.get(key).cloned())
    };
    keys.map(String::as_str).filter(|key| get(before, key) != get(after, key)).collect()
}

fn is_forbidden_label(label: &str) -> bool {
    let namespace = label.split_once('/').map_or("", |(namespace, _)| namespace);
    let within = |domain: &str| {
        namespace == domain || namespace.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    };
    if within("node-restriction.kubernetes.io") {
        return true;
    }
    let of_kubernetes = within("kubernetes.io") || within("k8s.io");
    let own = NODE_LABELS.contains(&label) || within("kubelet.kubernetes.io") || within("node.kubernetes.io");
    of_kubernetes && !own
}

impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(self.check(request))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, kind};
    use super::*;
    use crate::auth::rbac::tests::user;
    use crate::reader::fake::Fake;
    use serde_json::json;

    #[test]
    fn a_node_writes_its_own_things_only() {
        let reader = Arc::new(Fake::default());
        let pod = |name: &str, node: &str| {
            json!({"metadata": {"name": name, "namespace": "a", "uid": name}, "spec": {"nodeName": node, "volumes": [
                {"projected": {"sources": [{"serviceAccountToken": {"audience": "vault"}}]}}]}})
        };
        reader.put(&resources::PODS, pod("mine", "n1"));
        reader.put(&resources::PODS, pod("other", "n2"));
        let plugin = NodeRestriction::new(reader);
        let n1 = user("system:node:n1", &["system:nodes"]);
        let check = |operation, what: (&str, &str, &str), object: Option<Value>, old: Option<Value>| {
            let (group, resource, subresource) = what;
            let kind = kind(group, "X", resource, true);
            Case { operation, kind, subresource, identity: n1.clone(), object, old }.run(&plugin).is_ok()
        };
        let node = |name: &str, label: &str| json!({"metadata": {"name": name, "labels": {label: "x"}}});
        use Operation::*;
        assert!(check(Create, ("", "nodes", ""), Some(node("n1", "kubernetes.io/hostname")), None));
        assert!(check(Create, ("", "nodes", ""), Some(node("n1", "example.com/x")), None));
        assert!(!check(Create, ("", "nodes", ""), Some(node("n2", "kubernetes.io/hostname")), None));
        assert!(!check(
            Create,
            ("", "nodes", ""),
            Some(node("n1", "node-role.kubernetes.io/control-plane")),
            None
        ));
        assert!(!check(
            Create,
            ("", "nodes", ""),
            Some(node("n1", "a.node-restriction.kubernetes.io/x")),
            None
        ));
        let mut tainted = node("n1", "a");
        tainted["spec"]["taints"] = json!([]);
        assert!(!check(Update, ("", "nodes", ""), Some(tainted), Some(node("n1", "a"))));
        assert!(check(Update, ("", "nodes", "status"), Some(node("n1", "a")), Some(node("n1", "a"))));
        assert!(check(Update, ("", "pods", "status"), Some(pod("mine", "n1")), Some(pod("mine", "n1"))));
        assert!(!check(Update, ("", "pods", "status"), Some(pod("other", "n2")), Some(pod("other", "n2"))));
        assert!(check(Delete, ("", "pods", ""), None, Some(pod("mine", "n1"))));
        assert!(!check(Delete, ("", "pods", ""), None, Some(pod("other", "n2"))));
        assert!(!check(Create, ("", "pods", ""), Some(pod("new", "n1")), None), "no mirror Pod");
        assert!(!check(Update, ("", "pods", ""), Some(pod("mine", "n1")), Some(pod("mine", "n1"))));
        let lease =
            |namespace: &str, name: &str| Some(json!({"metadata": {"name": name, "namespace": namespace}}));
        assert!(check(Create, ("coordination.k8s.io", "leases", ""), lease("kube-node-lease", "n1"), None));
        assert!(!check(Create, ("coordination.k8s.io", "leases", ""), lease("kube-node-lease", "n2"), None));
        assert!(!check(Create, ("coordination.k8s.io", "leases", ""), lease("default", "n1"), None));
        let token = |pod: &str, audience: &str| {
            Some(json!({"metadata": {"name": "sa", "namespace": "a"}, "spec": {"audiences": [audience],
                "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": pod}}}))
        };
        assert!(check(Create, ("", "serviceaccounts", "token"), token("mine", "vault"), None));
        assert!(!check(Create, ("", "serviceaccounts", "token"), token("mine", "bank"), None));
        assert!(!check(Create, ("", "serviceaccounts", "token"), token("other", "vault"), None));
        assert!(!check(Create, ("", "serviceaccounts", "token"), token("gone", "vault"), None));
    }

    /// What `n1` is told, of requests that differ from good ones in one thing each.
    #[test]
    fn a_node_changes_nothing_that_others_trust() {
        let reader = Arc::new(Fake::default());
        let pod = |name: &str, node: &str| json!({"metadata": {"name": name, "namespace": "a", "uid": name}, "spec": {"nodeName": node}});
        reader.put(&resources::PODS, pod("mine", "n1"));
        reader.put(&resources::PODS, pod("other", "n2"));
        let plugin = NodeRestriction::new(reader);
        let told_as =
            |user_name: &str, operation, what: (&str, &str, &str), object: Value, old: Option<Value>| {
                let (group, resource, subresource) = what;
                let kind = kind(group, "X", resource, true);
                let identity = user(user_name, &["system:nodes"]);
                let mut case = Case { operation, kind, subresource, identity, object: Some(object), old };
                case.run(&plugin).err().map_or_else(String::new, |status| status.message)
            };
        let told = |operation, what: (&str, &str, &str), object: Value, old: Option<Value>| {
            told_as("system:node:n1", operation, what, object, old)
        };
        let with = |mut object: Value, pointer: &str, value: Value| {
            let (parent, last) = pointer.rsplit_once('/').unwrap();
            object.pointer_mut(parent).unwrap()[last] = value;
            object
        };
        use Operation::*;
        let (status, mine) = (("", "pods", "status"), pod("mine", "n1"));
        let mut shown = mine.clone();
        shown["status"] = json!({"phase": "Running"});
        assert_eq!(told(Update, status, shown.clone(), Some(mine.clone())), "");
        let labelled = with(mine.clone(), "/metadata/labels", json!({"app": "x"}));
        assert!(told(Update, status, labelled, Some(mine.clone())).contains("cannot update labels"));
        let claimed = with(shown.clone(), "/status/resourceClaimStatuses", json!([{"name": "x"}]));
        assert!(told(Update, status, claimed, Some(mine.clone())).contains("resource claim statuses"));
        let evict = |name: &str| told(Create, ("", "pods", "eviction"), pod(name, ""), None);
        assert_eq!(evict("mine"), "");
        assert!(evict("other").contains("can only evict pods"));
        let binding = told(Create, ("", "pods", "binding"), mine.clone(), None);
        assert!(binding.contains("unexpected pod subresource \"binding\""), "{binding}");

        let node = json!({"metadata": {"name": "n1", "labels": {"a": "b"}}, "spec": {}});
        let nodes = ("", "nodes", "");
        let owned = with(node.clone(), "/metadata/ownerReferences", json!([{"kind": "X"}]));
        assert!(told(Update, nodes, owned, Some(node.clone())).contains("modify ownerReferences"));
        let role = json!({"node-role.kubernetes.io/control-plane": ""});
        let role = with(node.clone(), "/metadata/labels", role);
        assert!(told(Update, nodes, role, Some(node.clone())).contains("modify labels: node-role"));
        let own = with(node.clone(), "/metadata/labels", json!({"kubernetes.io/os": "linux", "a": "c"}));
        assert_eq!(told(Update, nodes, own, Some(node.clone())), "");
        let other = with(node.clone(), "/metadata/name", json!("n2"));
        assert!(
            told(Update, nodes, other.clone(), Some(other)).contains("not allowed to modify node \"n2\"")
        );
        for what in [("storage.k8s.io", "csinodes", ""), ("coordination.k8s.io", "leases", "")] {
            let object = |name: &str| json!({"metadata": {"name": name, "namespace": "kube-node-lease"}});
            for operation in [Create, Update] {
                assert_eq!(told(operation, what, object("n1"), Some(object("n1"))), "");
                let message = told(operation, what, object("n2"), Some(object("n2")));
                assert!(message.contains("with the same name as the requesting node"), "{what:?} {message}");
            }
        }
        let anyone = told_as("system:node:", Update, nodes, node.clone(), Some(node));
        assert!(anyone.contains("could not determine node from user"), "{anyone}");

        let request = json!({"metadata": {"name": "sa", "namespace": "a"}, "spec": {
            "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "mine", "uid": "mine"}}});
        let token = |pointer: &str, value: Value| {
            told(Create, ("", "serviceaccounts", "token"), with(request.clone(), pointer, value), None)
        };
        assert_eq!(token("/spec/audiences", json!([])), "");
        assert!(token("/spec/boundObjectRef", Value::Null).contains("not bound to a pod"));
        assert!(token("/spec/boundObjectRef/kind", json!("Secret")).contains("not bound to a pod"));
        for uid in [json!("another"), Value::Null] {
            assert!(token("/spec/boundObjectRef/uid", uid).contains("does not match the UID in record"));
        }

        let annotations = json!({MIRROR: "x"});
        let mirror = with(pod("static", "n1"), "/metadata/annotations", annotations);
        let create = |pointer: &str, value: Value| {
            told(Create, ("", "pods", ""), with(mirror.clone(), pointer, value), None)
        };
        let owner =
            |kind: &str, name: &str| json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": "u"}]);
        assert_eq!(create("/metadata/ownerReferences", owner("Node", "n1")), "");
        assert!(create("/spec/nodeName", json!("n2")).contains("spec.nodeName set to itself"));
        for (kind, name) in [("Node", "n2"), ("ReplicaSet", "n1")] {
            let message = create("/metadata/ownerReferences", owner(kind, name));
            assert!(message.contains("an owner reference set to itself"), "{message}");
        }
        assert!(create("/spec/serviceAccountName", json!("x")).contains("reference a service account"));
        for (field, what) in [
            ("secret", "secrets"),
            ("configMap", "configmaps"),
            ("persistentVolumeClaim", "persistentvolumeclaims"),
        ] {
            let message = create("/spec/volumes", json!([{"name": "v", field: {}}]));
            assert!(message.contains(&format!("reference {what}")), "{message}");
        }
    }

    #[test]
    fn a_node_asks_for_certificates_of_its_own_name() {
        let plugin = NodeRestriction::new(Arc::new(Fake::default()));
        let pem = include_str!("../../../api/testdata/request-node.pem");
        let ask = |node: &str, signer: &str, pem: &str| {
            let request = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pem);
            let object =
                json!({"metadata": {"name": "r"}, "spec": {"signerName": signer, "request": request}});
            let kind = kind("certificates.k8s.io", "X", "certificatesigningrequests", false);
            let identity = user(&format!("system:node:{node}"), &["system:nodes"]);
            let case = Case {
                operation: Operation::Create,
                kind,
                subresource: "",
                identity,
                object: Some(object),
                old: None,
            };
            let mut case = case;
            case.run(&plugin).err().map(|status| status.message).unwrap_or_default()
        };
        for signer in [csr::KUBELET_CLIENT, csr::KUBELET_SERVING] {
            assert_eq!(ask("n1", signer, pem), "");
            assert!(ask("n2", signer, pem).contains("can only create a node CSR with CN=system:node:n2"));
            assert!(ask("n1", signer, "x").contains("unable to parse csr: "));
        }
        assert_eq!(ask("n2", csr::CLIENT, pem), "");
    }
}
