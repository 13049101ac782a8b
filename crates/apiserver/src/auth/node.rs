//! The Node authorizer: a node may read what the Pods bound to it refer to, its own objects, and
//! little else. What Pods refer to is looked up when asked, in the Pods of that namespace.
//! Upstream counterpart: `plugin/pkg/auth/authorizer/node`.

use super::rbac::Rule;
use crate::query::Query;
use crate::reader::Reader;
use crate::request::{Attributes, Decision};
use crate::resources;
use serde_json::Value;
use skeg_api::selector::FieldSelector;
use skeg_api::{meta, pod};
use std::sync::{Arc, LazyLock};

pub const USER_PREFIX: &str = "system:node:";
pub const GROUP: &str = "system:nodes";
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// What every node may do, whoever it is.
static COMMON: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let rule = |verbs: &[&str], group: &str, resources: &[&str]| {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Rule {
            verbs: own(verbs),
            groups: vec![group.into()],
            resources: own(resources),
            ..Default::default()
        }
    };
    let read = ["get", "list", "watch"];
    vec![
        rule(&["create"], "authentication.k8s.io", &["tokenreviews"]),
        rule(&["create"], "authorization.k8s.io", &["localsubjectaccessreviews", "subjectaccessreviews"]),
        rule(&read, "", &["services"]),
        rule(&["create", "patch", "update"], "", &["events"]),
        rule(&["create", "get", "list", "watch"], "certificates.k8s.io", &["certificatesigningrequests"]),
        rule(&read, "node.k8s.io", &["runtimeclasses"]),
        rule(&read, "storage.k8s.io", &["csidrivers"]),
        rule(&read, "certificates.k8s.io", &["clustertrustbundles"]),
    ]
});

pub fn common_rules() -> &'static [Rule] {
    &COMMON
}

/// The node's name, where the user is a node.
pub fn node_of(identity: &crate::Identity) -> Option<&str> {
    if !identity.in_group(GROUP) {
        return None;
    }
    identity.user().strip_prefix(USER_PREFIX).filter(|name| !name.is_empty())
}

pub struct NodeAuthorizer {
    reader: Arc<dyn Reader>,
}

fn allow() -> Decision {
    Decision::Allow(String::new())
}

fn no(why: impl Into<String>) -> Decision {
    Decision::NoOpinion(why.into())
}

impl NodeAuthorizer {
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        NodeAuthorizer { reader }
    }

    pub fn authorize(&self, asked: &Attributes<'_>) -> Decision {
        let Some(node) = node_of(asked.identity) else { return no("") };
        let special = match (asked.group, asked.resource) {
            ("", "secrets" | "configmaps") => Some(self.referred(node, asked, &["get", "list", "watch"])),
            ("", "persistentvolumeclaims") => match asked.subresource {
                "status" => Some(match asked.verb {
                    "update" | "patch" => self.related(node, asked),
                    _ => no("can only get/update/patch this type"),
                }),
                _ => Some(self.referred(node, asked, &["get"])),
            },
            ("", "persistentvolumes") => Some(self.referred(node, asked, &["get"])),
            ("", "serviceaccounts") => Some(self.token(node, asked)),
            ("", "nodes") => own_node(node, asked),
            ("", "pods") => self.pods(node, asked),
            ("coordination.k8s.io", "leases") => Some(lease(node, asked)),
            ("storage.k8s.io", "csinodes") => Some(csi_node(node, asked)),
            _ => None,
        };
        match special {
            Some(decision) => decision,
            None if COMMON.iter().any(|rule| rule.allows(asked)) => allow(),
            None => no(""),
        }
    }

    fn referred(&self, node: &str, asked: &Attributes<'_>, verbs: &[&str]) -> Decision {
        if !verbs.contains(&asked.verb) {
            return no("can only read resources of this type");
        }
        if !asked.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if asked.namespace.is_empty() && asked.resource != "persistentvolumes" {
            return no("can only read namespaced object of this type");
        }
        self.related(node, asked)
    }

    fn related(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        if asked.name.is_empty() {
            return no("No Object name found");
        }
        let found = match asked.resource {
            // Volumes hang on claims, which name them.
            "persistentvolumes" => false,
            resource => self
                .pods_naming(node, asked.namespace, asked.name)
                .any(|pod| refers(&pod, resource, asked.name)),
        };
        if found {
            allow()
        } else {
            no(format!("no relationship found between node '{node}' and this object"))
        }
    }

    /// Pods of the node that mention the name at all: the cheap look that comes before decoding.
    fn pods_naming(&self, node: &str, namespace: &str, name: &str) -> impl Iterator<Item = Value> {
        let bound = format!("\"nodeName\":\"{node}\"");
        let quoted = format!("\"{name}\"");
        // The claim of an ephemeral volume is named after Pod and volume.
        let pods = self.reader.list(&resources::PODS, namespace).into_iter();
        let name = name.to_owned();
        let node = node.to_owned();
        pods.filter(move |bytes| {
            let text = std::str::from_utf8(bytes).unwrap_or_default();
            text.contains(&bound)
                && (text.contains(&quoted) || text.contains("\"ephemeral\"") && name.contains('-'))
        })
        .filter_map(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .filter(move |pod| pod["spec"]["nodeName"] == *node)
    }

    fn token(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        if asked.verb == "get" && asked.subresource.is_empty() {
            return if asked.name.is_empty() || asked.namespace.is_empty() {
                no("can only read namespaced object of this type")
            } else {
                self.related(node, asked)
            };
        }
        if asked.verb != "create" || asked.subresource != "token" {
            return no("can only create tokens for individual service accounts");
        }
        self.related(node, asked)
    }

    fn pods(&self, node: &str, asked: &Attributes<'_>) -> Option<Decision> {
        Some(match (asked.subresource, asked.verb) {
            // NodeRestriction looks at what is created, deleted and written.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => allow(),
            ("", "get") => self.own_pod(node, asked),
            ("", "list" | "watch") => {
                let query = Query::parse(asked.query);
                let selected = FieldSelector::parse(query.text("fieldSelector")).ok();
                if selected.as_ref().and_then(|selector| selector.exact("spec.nodeName")) == Some(node) {
                    allow()
                } else if !asked.name.is_empty() && !asked.namespace.is_empty() {
                    self.own_pod(node, asked)
                } else {
                    no("can only list/watch pods with spec.nodeName field selector")
                }
            }
            _ => return None,
        })
    }

    fn own_pod(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        let pod = self.reader.get_value(&resources::PODS, asked.namespace, asked.name);
        match pod {
            Some(pod) if pod["spec"]["nodeName"] == node => allow(),
            _ => no(format!("no relationship found between node '{node}' and this object")),
        }
    }
}

fn own_node(node: &str, asked: &Attributes<'_>) -> Option<Decision> {
    Some(match (asked.subresource, asked.verb) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => allow(),
        ("", "get" | "list" | "watch") => match asked.name {
            name if name == node => allow(),
            "" => no(format!("node '{node}' cannot read all nodes, only its own Node object")),
            name => no(format!("node '{node}' cannot read '{name}', only its own Node object")),
        },
        _ => return None,
    })
}

fn lease(node: &str, asked: &Attributes<'_>) -> Decision {
    if !matches!(asked.verb, "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if asked.namespace != LEASE_NAMESPACE {
        return no(format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace"));
    }
    // A create carries the name in its body; NodeRestriction looks there.
    if asked.verb != "create" && asked.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    allow()
}

fn csi_node(node: &str, asked: &Attributes<'_>) -> Decision {
    if !matches!(asked.verb, "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a CSINode");
    }
    if !asked.subresource.is_empty() {
        return no("cannot authorize CSINode subresources");
    }
    if asked.verb != "create" && asked.name != node {
        return no("can only access CSINode with the same name as the requesting node");
    }
    allow()
}

/// Whether a Pod needs the object of this resource and name.
pub fn refers(object: &Value, resource: &str, name: &str) -> bool {
    let spec = &object["spec"];
    let volumes = || spec["volumes"].as_array().into_iter().flatten();
    let sources = || volumes().flat_map(|v| v["projected"]["sources"].as_array().into_iter().flatten());
    let containers = || pod::all_containers(spec).map(|(_, _, container)| container);
    let environment = |from: &str, key: &str| {
        containers().any(|container| {
            let each = |field: &str| container[field].as_array().into_iter().flatten();
            each("envFrom").any(|e| e[from]["name"] == name)
                || each("env").any(|e| e["valueFrom"][key]["name"] == name)
        })
    };
    match resource {
        "serviceaccounts" => spec["serviceAccountName"] == name,
        "configmaps" => {
            volumes().any(|v| v["configMap"]["name"] == name)
                || sources().any(|s| s["configMap"]["name"] == name)
                || environment("configMapRef", "configMapKeyRef")
        }
        "secrets" => {
            /// Volumes whose credentials are in a secret of the Pod's namespace.
            const REFS: [(&str, &str); 7] = [
                ("cephfs", "secretRef"),
                ("cinder", "secretRef"),
                ("flexVolume", "secretRef"),
                ("rbd", "secretRef"),
                ("scaleIO", "secretRef"),
                ("iscsi", "secretRef"),
                ("csi", "nodePublishSecretRef"),
            ];
            volumes().any(|v| {
                v["secret"]["secretName"] == name
                    || v["azureFile"]["secretName"] == name
                    || REFS.iter().any(|(kind, field)| v[*kind][*field]["name"] == name)
            }) || sources().any(|s| s["secret"]["name"] == name)
                || spec["imagePullSecrets"].as_array().into_iter().flatten().any(|s| s["name"] == name)
                || environment("secretRef", "secretKeyRef")
        }
        "persistentvolumeclaims" => volumes().any(|v| {
            let own = || name.strip_prefix(meta::name(object)).and_then(|rest| rest.strip_prefix('-'));
            v["persistentVolumeClaim"]["claimName"] == name
                || v.get("ephemeral").is_some_and(|e| !e.is_null())
                    && own().is_some_and(|volume| v["name"] == volume)
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::rbac::tests::{asked, user};
    use crate::reader::fake::Fake;
    use serde_json::json;

    fn pod(name: &str, node: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "a", "uid": name}, "spec": {
            "nodeName": node,
            "serviceAccountName": "app",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "s", "secret": {"secretName": "vol"}},
                {"name": "p", "projected": {"sources": [{"configMap": {"name": "projected"}}, {"secret": {"name": "inner"}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "e", "ephemeral": {"volumeClaimTemplate": {}}},
                {"name": "d", "csi": {"driver": "x", "nodePublishSecretRef": {"name": "publish"}}},
            ],
            "initContainers": [{"name": "i", "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}]}],
            "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "env"}}]}],
        }})
    }

    #[test]
    fn a_node_reads_only_what_its_pods_refer_to() {
        let reader = Arc::new(Fake::default());
        reader.put(&resources::PODS, pod("p1", "n1"));
        let authorizer = NodeAuthorizer::new(reader.clone());
        let (n1, n2) = (user("system:node:n1", &["system:nodes"]), user("system:node:n2", &["system:nodes"]));
        let may =
            |who, verb, what| matches!(authorizer.authorize(&asked(who, verb, what)), Decision::Allow(_));
        for (resource, sub, verb, name, expected) in [
            ("secrets", "", "get", "vol", true),
            ("secrets", "", "watch", "inner", true),
            ("secrets", "", "get", "key", true),
            ("secrets", "", "get", "pull", true),
            ("secrets", "", "get", "publish", true),
            ("secrets", "x", "get", "vol", false),
            ("secrets", "", "get", "env", false),
            ("secrets", "", "list", "", false),
            ("secrets", "", "update", "vol", false),
            ("configmaps", "", "get", "projected", true),
            ("configmaps", "", "get", "env", true),
            ("configmaps", "", "get", "vol", false),
            ("persistentvolumeclaims", "", "get", "claim", true),
            ("persistentvolumeclaims", "", "get", "p1-e", true),
            ("persistentvolumeclaims", "", "get", "p1-s", false),
            ("persistentvolumeclaims", "status", "patch", "claim", true),
            ("persistentvolumeclaims", "status", "patch", "vol", false),
            ("persistentvolumeclaims", "status", "get", "claim", false),
            ("serviceaccounts", "", "get", "app", true),
            ("serviceaccounts", "", "get", "other", false),
            ("serviceaccounts", "token", "create", "app", true),
            ("serviceaccounts", "token", "create", "other", false),
            ("serviceaccounts", "", "create", "app", false),
            ("pods", "", "get", "p1", true),
            ("pods", "", "list", "", false),
            ("pods", "", "watch", "p1", true),
            ("pods", "status", "patch", "p1", true),
            ("pods", "eviction", "create", "p1", true),
            ("pods", "exec", "create", "p1", false),
            ("services", "", "list", "", true),
            ("events", "", "create", "", true),
        ] {
            let what = ["", resource, sub, "a", name];
            assert_eq!(may(&n1, verb, what), expected, "{verb} {what:?}");
            // NodeRestriction looks whose Pod it is.
            let shared = matches!(resource, "services" | "events")
                || resource == "pods" && matches!(sub, "status" | "eviction");
            assert_eq!(may(&n2, verb, what), expected && shared, "other node: {verb} {what:?}");
        }
        assert!(!may(&n1, "get", ["", "secrets", "", "b", "vol"]), "another namespace");
        let stranger = user("system:node:n1", &[]);
        assert!(!may(&stranger, "get", ["", "secrets", "", "a", "vol"]), "not in the group");
        reader.remove(&resources::PODS, "a", "p1");
        assert!(!may(&n1, "get", ["", "secrets", "", "a", "vol"]));
    }

    #[test]
    fn a_node_reads_its_own_objects_and_lists_its_own_pods() {
        let authorizer = NodeAuthorizer::new(Arc::new(Fake::default()));
        let n1 = user("system:node:n1", &["system:nodes"]);
        let may = |question: &Attributes<'_>| matches!(authorizer.authorize(question), Decision::Allow(_));
        for (verb, what, expected) in [
            ("get", ["", "nodes", "", "", "n1"], true),
            ("get", ["", "nodes", "", "", "n2"], false),
            ("list", ["", "nodes", "", "", ""], false),
            ("patch", ["", "nodes", "status", "", "n1"], true),
            ("get", ["coordination.k8s.io", "leases", "", "kube-node-lease", "n1"], true),
            ("get", ["coordination.k8s.io", "leases", "", "kube-node-lease", "n2"], false),
            ("create", ["coordination.k8s.io", "leases", "", "kube-node-lease", ""], true),
            ("create", ["coordination.k8s.io", "leases", "", "default", ""], false),
            ("list", ["coordination.k8s.io", "leases", "", "kube-node-lease", ""], false),
            ("get", ["storage.k8s.io", "csinodes", "", "", "n1"], true),
            ("get", ["storage.k8s.io", "csinodes", "", "", "n2"], false),
            ("create", ["storage.k8s.io", "csinodes", "", "", ""], true),
            ("list", ["storage.k8s.io", "csinodes", "", "", ""], false),
            ("get", ["apps", "deployments", "", "a", "x"], false),
        ] {
            assert_eq!(may(&asked(&n1, verb, what)), expected, "{verb} {what:?}");
        }
        for (query, expected) in [
            ("fieldSelector=spec.nodeName%3Dn1", true),
            ("watch=1&fieldSelector=spec.nodeName%3Dn1", true),
            ("fieldSelector=spec.nodeName%3Dn2", false),
            ("fieldSelector=spec.nodeName%21%3Dn2", false),
            ("", false),
        ] {
            let question = Attributes { query, ..asked(&n1, "list", ["", "pods", "", "", ""]) };
            assert_eq!(may(&question), expected, "{query}");
        }
    }
}
