//! Who may: the superuser group, then the Node authorizer, then RBAC. The first that allows
//! decides; nobody denies what another allows.

use super::node::NodeAuthorizer;
use super::rbac::Rbac;
use crate::identity::Identity;
use crate::reader::Reader;
use crate::request::{Attributes, Decision};
use std::sync::Arc;

pub const SUPERUSERS: &str = "system:masters";

pub struct Union {
    node: NodeAuthorizer,
    pub rbac: Rbac,
}

impl Union {
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        Union { node: NodeAuthorizer::new(reader.clone()), rbac: Rbac::new(reader) }
    }

    pub fn decide(&self, asked: &Attributes<'_>) -> Decision {
        if asked.identity.in_group(SUPERUSERS) {
            return Decision::Allow(String::new());
        }
        let mut reasons = Vec::new();
        for step in 0..2 {
            match if step == 0 { self.node.authorize(asked) } else { self.rbac.authorize(asked) } {
                Decision::Allow(reason) => return Decision::Allow(reason),
                Decision::Deny(reason) => return Decision::Deny(reason),
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
            }
        }
        Decision::NoOpinion(reasons.join("\n"))
    }

    pub fn allows(&self, asked: &Attributes<'_>) -> bool {
        matches!(self.decide(asked), Decision::Allow(_))
    }
}

/// A question about a resource, without the parts that rarely matter.
pub fn question<'a>(identity: &'a Identity, verb: &'a str, what: [&'a str; 5]) -> Attributes<'a> {
    let [group, resource, subresource, namespace, name] = what;
    Attributes {
        identity,
        verb,
        group,
        version: "*",
        resource,
        subresource,
        namespace,
        name,
        path: "",
        query: "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::rbac::tests::user;
    use crate::reader::fake::Fake;

    /// The defaults as a fresh cluster has them.
    fn union() -> Union {
        let reader = Arc::new(Fake::default());
        for (gvr, object) in crate::bootstrap::rbac::objects() {
            reader.put(gvr, object);
        }
        Union::new(reader)
    }

    #[test]
    fn the_superuser_may_everything_and_components_are_not_superusers() {
        let union = union();
        let admin = user("admin", &["system:masters", "system:authenticated"]);
        assert!(union.allows(&question(&admin, "delete", ["", "secrets", "", "kube-system", "x"])));
        for (_, object) in crate::bootstrap::rbac::objects() {
            if object["roleRef"]["name"] == "cluster-admin" {
                assert_eq!(object["subjects"].as_array().unwrap().len(), 1);
                assert_eq!(object["subjects"][0]["name"], "system:masters");
            }
        }
    }

    /// Ten things that each component must not do, however its role grows.
    #[test]
    fn each_component_is_refused_what_it_has_no_need_for() {
        let union = union();
        type Question = (&'static str, [&'static str; 5]);
        let common: [Question; 8] = [
            ("create", ["", "pods", "exec", "default", "x"]),
            ("create", ["", "pods", "attach", "default", "x"]),
            ("create", ["", "nodes", "proxy", "", "x"]),
            ("create", ["rbac.authorization.k8s.io", "clusterrolebindings", "", "", ""]),
            ("escalate", ["rbac.authorization.k8s.io", "roles", "", "default", "x"]),
            ("bind", ["rbac.authorization.k8s.io", "clusterroles", "", "", "cluster-admin"]),
            ("impersonate", ["", "users", "", "", "admin"]),
            ("impersonate", ["", "groups", "", "", "system:masters"]),
        ];
        let components: [(&str, [Question; 3]); 10] = [
            (
                "deployment-controller",
                [
                    ("list", ["", "secrets", "", "default", ""]),
                    ("create", ["", "pods", "", "default", ""]),
                    ("delete", ["", "namespaces", "", "", "x"]),
                ],
            ),
            (
                "replicaset-controller",
                [
                    ("get", ["", "secrets", "", "default", "x"]),
                    ("update", ["apps", "deployments", "", "default", "x"]),
                    ("delete", ["", "nodes", "", "", "x"]),
                ],
            ),
            (
                "endpointslice-controller",
                [
                    ("get", ["", "secrets", "", "default", "x"]),
                    ("delete", ["", "pods", "", "default", "x"]),
                    ("update", ["", "services", "", "default", "x"]),
                ],
            ),
            (
                "endpoint-controller",
                [
                    ("get", ["", "secrets", "", "default", "x"]),
                    ("delete", ["", "pods", "", "default", "x"]),
                    ("update", ["", "nodes", "", "", "x"]),
                ],
            ),
            (
                "service-account-controller",
                [
                    ("get", ["", "secrets", "", "default", "x"]),
                    ("delete", ["", "pods", "", "default", "x"]),
                    ("create", ["", "serviceaccounts", "token", "default", "x"]),
                ],
            ),
            (
                "root-ca-cert-publisher",
                [
                    ("get", ["", "secrets", "", "default", "x"]),
                    ("delete", ["", "configmaps", "", "default", "x"]),
                    ("create", ["", "pods", "", "default", ""]),
                ],
            ),
            (
                "pod-garbage-collector",
                [
                    ("get", ["", "secrets", "", "default", "x"]),
                    ("create", ["", "pods", "", "default", ""]),
                    ("delete", ["", "nodes", "", "", "x"]),
                ],
            ),
            (
                "node-controller",
                [
                    ("get", ["", "secrets", "", "default", "x"]),
                    ("create", ["", "pods", "", "default", ""]),
                    ("update", ["apps", "deployments", "", "default", "x"]),
                ],
            ),
            (
                "namespace-controller",
                [
                    ("create", ["", "pods", "", "default", ""]),
                    ("create", ["", "namespaces", "", "", ""]),
                    ("update", ["", "secrets", "", "default", "x"]),
                ],
            ),
            (
                "clusterrole-aggregation-controller",
                [
                    ("get", ["", "secrets", "", "default", "x"]),
                    ("create", ["", "pods", "", "default", ""]),
                    ("delete", ["rbac.authorization.k8s.io", "clusterroles", "", "", "x"]),
                ],
            ),
        ];
        for (name, own) in components {
            let identity = Identity::component(name);
            assert!(!identity.in_group(SUPERUSERS));
            for (verb, what) in common.iter().chain(&own) {
                assert!(!union.allows(&question(&identity, verb, *what)), "{name}: {verb} {what:?}");
            }
        }
        let scheduler = Identity::system("system:kube-scheduler", &[]);
        let refused: [(&str, [&str; 5]); 3] = [
            ("get", ["", "secrets", "", "default", "x"]),
            ("create", ["", "pods", "", "default", ""]),
            ("update", ["", "nodes", "", "", "x"]),
        ];
        for (verb, what) in common.iter().chain(&refused) {
            assert!(!union.allows(&question(&scheduler, verb, *what)), "scheduler: {verb} {what:?}");
        }
        assert!(union.allows(&question(&scheduler, "create", ["", "pods", "binding", "default", "x"])));
        let node = Identity::system("system:node:n1", &["system:nodes"]);
        let refused: [(&str, [&str; 5]); 3] = [
            ("get", ["", "secrets", "", "default", "x"]),
            ("list", ["", "secrets", "", "", ""]),
            ("get", ["", "nodes", "", "", "n2"]),
        ];
        for (verb, what) in common.iter().chain(&refused) {
            assert!(!union.allows(&question(&node, verb, *what)), "node: {verb} {what:?}");
        }
    }

    #[test]
    fn anonymous_users_see_health_and_version_only() {
        let union = union();
        let anonymous = Identity::anonymous();
        let path = |path| Attributes { path, ..question(&anonymous, "get", [""; 5]) };
        for open in ["/healthz", "/livez", "/readyz", "/version"] {
            assert!(union.allows(&path(open)), "{open}");
        }
        for closed in ["/metrics", "/api", "/apis", "/openapi/v3", "/"] {
            assert!(!union.allows(&path(closed)), "{closed}");
        }
        assert!(!union.allows(&question(&anonymous, "list", ["", "pods", "", "default", ""])));
    }
}
