//! The default roles and bindings as a table of facts, and what reconciling them means.
//! Upstream counterpart: `plugin/pkg/auth/authorizer/rbac/bootstrappolicy`,
//! `pkg/registry/rbac/reconciliation`.

use crate::auth::rbac::{Rule, uncovered};
use crate::resources;
use serde_json::{Map, Value, json};
use skeg_api::{Gvr, meta};

const GROUP: &str = "rbac.authorization.k8s.io";
const API_VERSION: &str = "rbac.authorization.k8s.io/v1";
pub const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";

/// One rule: verbs, API groups (`-` is the core group, `url` means paths), resources or paths, and
/// optionally resource names; each a list with commas. `R` and `W` stand for the verbs that read
/// and write.
type Line = &'static str;

const R: &str = "get,list,watch";
const W: &str = "create,delete,deletecollection,patch,update";
/// Writing events.
const EVENTS: Line = "create,patch,update -,events.k8s.io events";

/// Cluster roles: name, rules.
const CLUSTER_ROLES: &[(&str, &[Line])] = &[
    ("cluster-admin", &["* * *", "* url *"]),
    (
        "system:discovery",
        &["get url /api,/api/*,/apis,/apis/*,/healthz,/livez,/openapi,/openapi/*,/readyz,/version,/version/"],
    ),
    ("system:public-info-viewer", &["get url /healthz,/livez,/readyz,/version,/version/"]),
    (
        "system:basic-user",
        &[
            "create authorization.k8s.io selfsubjectaccessreviews,selfsubjectrulesreviews",
            "create authentication.k8s.io selfsubjectreviews",
        ],
    ),
    (
        "system:monitoring",
        &["get url /healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*"],
    ),
    (
        "system:service-account-issuer-discovery",
        &[
            "get url /.well-known/openid-configuration,/.well-known/openid-configuration/,/openid/v1/jwks,/openid/v1/jwks/",
        ],
    ),
    (
        "system:aggregate-to-admin",
        &[
            "create authorization.k8s.io localsubjectaccessreviews",
            "R,W rbac.authorization.k8s.io rolebindings,roles",
        ],
    ),
    (
        "system:aggregate-to-edit",
        &[
            "R - pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy",
            "impersonate - serviceaccounts",
            "W - pods,pods/attach,pods/exec,pods/portforward,pods/proxy",
            "create - pods/eviction",
            "W - configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,serviceaccounts,services,services/proxy",
            "create - serviceaccounts/token",
            "W apps daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,statefulsets/scale",
            "W autoscaling horizontalpodautoscalers",
            "W batch cronjobs,jobs",
            "W extensions daemonsets,deployments,deployments/rollback,deployments/scale,ingresses,networkpolicies,replicasets,replicasets/scale,replicationcontrollers/scale",
            "W policy poddisruptionbudgets",
            "W networking.k8s.io ingresses,networkpolicies",
            "R,W coordination.k8s.io leases",
            "W resource.k8s.io resourceclaims,resourceclaimtemplates",
        ],
    ),
    (
        "system:aggregate-to-view",
        &[
            "R - configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status",
            "R - bindings,events,limitranges,namespaces/status,pods/log,pods/status,replicationcontrollers/status,resourcequotas,resourcequotas/status",
            "R - namespaces",
            "R discovery.k8s.io endpointslices",
            "R apps controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status",
            "R autoscaling horizontalpodautoscalers,horizontalpodautoscalers/status",
            "R batch cronjobs,cronjobs/status,jobs,jobs/status",
            "R extensions daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,ingresses,ingresses/status,networkpolicies,replicasets,replicasets/scale,replicasets/status,replicationcontrollers/scale",
            "R policy poddisruptionbudgets,poddisruptionbudgets/status",
            "R networking.k8s.io ingresses,ingresses/status,networkpolicies",
            "R resource.k8s.io resourceclaims,resourceclaims/status,resourceclaimtemplates",
        ],
    ),
    (
        "system:node",
        &[
            "create authentication.k8s.io tokenreviews",
            "create authorization.k8s.io localsubjectaccessreviews,subjectaccessreviews",
            "R - services",
            "create,get,list,watch - nodes",
            "patch,update - nodes/status",
            "patch,update - nodes",
            "create,patch,update - events",
            "R - pods",
            "create,delete - pods",
            "patch,update - pods/status",
            "create - pods/eviction",
            "R - configmaps,secrets",
            "get - persistentvolumeclaims,persistentvolumes",
            "get - endpoints",
            "create,get,list,watch certificates.k8s.io certificatesigningrequests",
            "create,delete,get,patch,update coordination.k8s.io leases",
            "get storage.k8s.io volumeattachments",
            "create - serviceaccounts/token",
            "get,patch,update - persistentvolumeclaims/status",
            "R storage.k8s.io csidrivers",
            "create,delete,get,patch,update storage.k8s.io csinodes",
            "R node.k8s.io runtimeclasses",
            "get resource.k8s.io resourceclaims",
            "deletecollection resource.k8s.io resourceslices",
            "get - serviceaccounts",
        ],
    ),
    ("system:node-problem-detector", &["get - nodes", "patch - nodes/status", EVENTS]),
    (
        "system:node-proxier",
        &[
            "list,watch - endpoints,services",
            "R - nodes",
            EVENTS,
            "list,watch discovery.k8s.io endpointslices",
            "list,watch networking.k8s.io servicecidrs",
        ],
    ),
    (
        "system:kubelet-api-admin",
        &[
            "R,proxy - nodes",
            "* - nodes/configz,nodes/healthz,nodes/log,nodes/metrics,nodes/pods,nodes/proxy,nodes/stats",
        ],
    ),
    ("system:node-bootstrapper", &["create,get,list,watch certificates.k8s.io certificatesigningrequests"]),
    (
        "system:auth-delegator",
        &["create authentication.k8s.io tokenreviews", "create authorization.k8s.io subjectaccessreviews"],
    ),
    ("system:kube-aggregator", &["R - endpoints,services"]),
    (
        "system:kube-controller-manager",
        &[
            EVENTS,
            "create coordination.k8s.io leases",
            "get,update coordination.k8s.io leases kube-controller-manager",
            "create - secrets,serviceaccounts",
            "delete - secrets",
            "get - configmaps,namespaces,secrets,serviceaccounts",
            "update - secrets,serviceaccounts",
            "create authentication.k8s.io tokenreviews",
            "create authorization.k8s.io subjectaccessreviews",
            "list,watch * *",
            "create - serviceaccounts/token",
        ],
    ),
    (
        "system:kube-scheduler",
        &[
            EVENTS,
            "create coordination.k8s.io leases",
            "get,list,update,watch coordination.k8s.io leases kube-scheduler",
            "R - nodes",
            "delete,get,list,watch - pods",
            "create - bindings,pods/binding",
            "patch,update - pods/status",
            "R - replicationcontrollers,services",
            "R apps,extensions replicasets",
            "R apps statefulsets",
            "R policy poddisruptionbudgets",
            "R - persistentvolumeclaims,persistentvolumes",
            "create authentication.k8s.io tokenreviews",
            "create authorization.k8s.io subjectaccessreviews",
            "R storage.k8s.io csinodes",
            "R - namespaces",
            "R storage.k8s.io csidrivers,csistoragecapacities,volumeattachments",
            "R resource.k8s.io deviceclasses,resourceslices",
            "R,patch,update resource.k8s.io resourceclaims,resourceclaims/status",
            "patch,update resource.k8s.io resourceclaims/binding",
            "R,patch,update - pods/finalizers",
        ],
    ),
    (
        "system:volume-scheduler",
        &[
            "R,patch,update - persistentvolumes",
            "R storage.k8s.io storageclasses",
            "R,patch,update - persistentvolumeclaims",
        ],
    ),
    ("system:kube-dns", &["list,watch - endpoints,services"]),
    ("system:heapster", &["R - events,namespaces,nodes,pods", "R extensions deployments"]),
    (
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        &["create certificates.k8s.io certificatesigningrequests/nodeclient"],
    ),
    (
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &["create certificates.k8s.io certificatesigningrequests/selfnodeclient"],
    ),
    (
        "system:certificates.k8s.io:kube-apiserver-client-approver",
        &["approve certificates.k8s.io signers kubernetes.io/kube-apiserver-client"],
    ),
    (
        "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
        &["approve certificates.k8s.io signers kubernetes.io/kube-apiserver-client-kubelet"],
    ),
    (
        "system:certificates.k8s.io:kubelet-serving-approver",
        &["approve certificates.k8s.io signers kubernetes.io/kubelet-serving"],
    ),
    (
        "system:certificates.k8s.io:legacy-unknown-approver",
        &["approve certificates.k8s.io signers kubernetes.io/legacy-unknown"],
    ),
    (
        "system:persistent-volume-provisioner",
        &[
            "create,delete,get,list,watch - persistentvolumes",
            "R,update - persistentvolumeclaims",
            "R storage.k8s.io storageclasses",
            "watch - events",
            EVENTS,
        ],
    ),
];

/// Controllers: the role `system:controller:<name>` is bound to the service account of that name in
/// kube-system. Upstream's whole list: a controller that comes from elsewhere finds its role too.
const CONTROLLERS: &[(&str, &[Line])] = &[
    (
        "attachdetach-controller",
        &[
            "list,watch - persistentvolumeclaims,persistentvolumes",
            "R - nodes",
            "patch,update - nodes/status",
            "list,watch - pods",
            EVENTS,
            "R,create,delete storage.k8s.io volumeattachments",
            "R storage.k8s.io csidrivers,csinodes",
        ],
    ),
    (
        "certificate-controller",
        &[
            "R,delete certificates.k8s.io certificatesigningrequests",
            "update certificates.k8s.io certificatesigningrequests/approval,certificatesigningrequests/status",
            "approve certificates.k8s.io signers kubernetes.io/kube-apiserver-client-kubelet",
            "sign certificates.k8s.io signers kubernetes.io/kube-apiserver-client,kubernetes.io/kube-apiserver-client-kubelet,kubernetes.io/kubelet-serving,kubernetes.io/legacy-unknown",
            "create authorization.k8s.io subjectaccessreviews",
            EVENTS,
        ],
    ),
    (
        "clusterrole-aggregation-controller",
        &["R,escalate,patch,update rbac.authorization.k8s.io clusterroles"],
    ),
    (
        "cronjob-controller",
        &[
            "R,update batch cronjobs",
            "R,create,delete,patch,update batch jobs",
            "update batch cronjobs/finalizers,cronjobs/status",
            "delete,list,watch - pods",
            EVENTS,
        ],
    ),
    (
        "daemon-set-controller",
        &[
            "R apps,extensions daemonsets",
            "update apps,extensions daemonsets/finalizers,daemonsets/status",
            "list,watch - nodes",
            "create,delete,list,patch,watch - pods",
            "create - pods/binding",
            "R,create,delete,patch,update apps controllerrevisions",
            EVENTS,
        ],
    ),
    (
        "deployment-controller",
        &[
            "R,update apps,extensions deployments",
            "update apps,extensions deployments/status",
            "update apps,extensions deployments/finalizers",
            "create,delete,get,list,patch,update,watch apps,extensions replicasets",
            "R,update - pods",
            EVENTS,
        ],
    ),
    (
        "disruption-controller",
        &[
            "R apps,extensions deployments,replicasets",
            "R - replicationcontrollers",
            "R policy poddisruptionbudgets",
            "R apps statefulsets",
            "update policy poddisruptionbudgets/status",
            "patch,update - pods/status",
            "get * */scale",
            EVENTS,
        ],
    ),
    (
        "endpoint-controller",
        &["R - pods,services", "R,create,delete,update - endpoints", "create - endpoints/restricted", EVENTS],
    ),
    (
        "endpointslice-controller",
        &[
            "R - nodes,pods,services",
            "update - services/finalizers",
            "R,create,delete,update discovery.k8s.io endpointslices",
            "create discovery.k8s.io endpointslices/restricted",
            EVENTS,
        ],
    ),
    (
        "endpointslicemirroring-controller",
        &[
            "R - endpoints,services",
            "update - services/finalizers",
            "update - endpoints/finalizers",
            "R,create,delete,update discovery.k8s.io endpointslices",
            "create discovery.k8s.io endpointslices/restricted",
            EVENTS,
        ],
    ),
    (
        "ephemeral-volume-controller",
        &["R - pods", "update - pods/finalizers", "R,create - persistentvolumeclaims", EVENTS],
    ),
    (
        "expand-controller",
        &[
            "R,patch,update - persistentvolumes",
            "patch,update - persistentvolumeclaims/status",
            "R - persistentvolumeclaims",
            "get - services",
            EVENTS,
        ],
    ),
    ("generic-garbage-collector", &["R,delete,patch,update * *", EVENTS]),
    (
        "horizontal-pod-autoscaler",
        &[
            "R autoscaling horizontalpodautoscalers",
            "update autoscaling horizontalpodautoscalers/status",
            "get,update * */scale",
            "list,watch - pods",
            "list,watch metrics.k8s.io pods",
            "R custom.metrics.k8s.io *",
            "R external.metrics.k8s.io *",
            EVENTS,
        ],
    ),
    (
        "job-controller",
        &[
            "R,patch,update batch jobs",
            "update batch jobs/finalizers,jobs/status",
            "create,delete,list,patch,watch - pods",
            EVENTS,
        ],
    ),
    (
        "legacy-service-account-token-cleaner",
        &["get - configmaps kube-apiserver-legacy-service-account-token-tracking", "delete,patch - secrets"],
    ),
    (
        "namespace-controller",
        &[
            "R,delete - namespaces",
            "update - namespaces/finalize,namespaces/status",
            "R,delete,deletecollection * *",
        ],
    ),
    (
        "node-controller",
        &[
            "R,delete,patch,update - nodes",
            "patch,update - nodes/status",
            "patch,update - pods/status",
            "R,delete - pods",
            EVENTS,
        ],
    ),
    (
        "persistent-volume-binder",
        &[
            "R,create,delete,update - persistentvolumes",
            "update - persistentvolumeclaims/status,persistentvolumes/status",
            "R,update - persistentvolumeclaims",
            "R,create,delete - pods",
            "R storage.k8s.io storageclasses",
            "list,watch - nodes",
            "watch - events",
            "get - services",
            EVENTS,
        ],
    ),
    ("pod-garbage-collector", &["delete,list,watch - pods", "R - nodes", "patch - pods/status"]),
    ("pv-protection-controller", &["R,update - persistentvolumes", EVENTS]),
    ("pvc-protection-controller", &["R,update - persistentvolumeclaims", "R - pods", EVENTS]),
    (
        "replicaset-controller",
        &[
            "R,update apps,extensions replicasets",
            "update apps,extensions replicasets/status",
            "update apps,extensions replicasets/finalizers",
            "create,delete,list,patch,watch - pods",
            EVENTS,
        ],
    ),
    (
        "replication-controller",
        &[
            "R,update - replicationcontrollers",
            "update - replicationcontrollers/finalizers,replicationcontrollers/status",
            "create,delete,list,patch,watch - pods",
            EVENTS,
        ],
    ),
    (
        "resource-claim-controller",
        &[
            "R - pods",
            "update - pods/finalizers",
            "R,create,delete resource.k8s.io resourceclaims",
            "patch,update resource.k8s.io resourceclaims,resourceclaims/status,resourceclaims/binding",
            "patch,update - pods/status",
            EVENTS,
        ],
    ),
    ("resourcequota-controller", &["list,watch * *", "update - resourcequotas/status", EVENTS]),
    ("root-ca-cert-publisher", &["create,update - configmaps", EVENTS]),
    ("route-controller", &["list,watch - nodes", "patch - nodes/status", EVENTS]),
    ("service-account-controller", &["create - serviceaccounts", EVENTS]),
    (
        "service-cidrs-controller",
        &[
            "R,patch,update networking.k8s.io servicecidrs",
            "patch,update networking.k8s.io servicecidrs/finalizers,servicecidrs/status",
            "R networking.k8s.io ipaddresses",
            EVENTS,
        ],
    ),
    ("service-controller", &["R - services", "patch,update - services/status", "list,watch - nodes", EVENTS]),
    (
        "statefulset-controller",
        &[
            "R,create,delete,patch,update - pods",
            "R apps statefulsets",
            "update apps statefulsets/finalizers,statefulsets/status",
            "R,create,delete,patch,update apps controllerrevisions",
            "R,create,delete,update - persistentvolumeclaims",
            "update - pods/finalizers",
            EVENTS,
        ],
    ),
    // Upstream signs these tokens itself, as its whole manager; here the controller asks for them.
    (
        "tokens-controller",
        &["create - serviceaccounts/token", "get,update - serviceaccounts", "delete,get,update - secrets"],
    ),
    ("ttl-after-finished-controller", &["R,delete batch jobs", EVENTS]),
    ("ttl-controller", &["list,patch,update,watch - nodes", EVENTS]),
    (
        "validatingadmissionpolicy-status-controller",
        &[
            "R admissionregistration.k8s.io validatingadmissionpolicies",
            "get,patch,update admissionregistration.k8s.io validatingadmissionpolicies/status",
            EVENTS,
        ],
    ),
    (
        "volumeattributesclass-protection-controller",
        &[
            "R - persistentvolumeclaims,persistentvolumes",
            "R,update storage.k8s.io volumeattributesclasses",
            EVENTS,
        ],
    ),
];

/// Bindings of cluster roles to users (`u:`), groups (`g:`) and service accounts of kube-system
/// (`s:`).
const CLUSTER_BINDINGS: &[(&str, &str, &[&str])] = &[
    ("cluster-admin", "cluster-admin", &["g:system:masters"]),
    ("system:monitoring", "system:monitoring", &["g:system:monitoring"]),
    ("system:discovery", "system:discovery", &["g:system:authenticated"]),
    ("system:basic-user", "system:basic-user", &["g:system:authenticated"]),
    (
        "system:public-info-viewer",
        "system:public-info-viewer",
        &["g:system:authenticated", "g:system:unauthenticated"],
    ),
    ("system:node-proxier", "system:node-proxier", &["u:system:kube-proxy"]),
    (
        "system:kube-controller-manager",
        "system:kube-controller-manager",
        &["u:system:kube-controller-manager"],
    ),
    ("system:kube-dns", "system:kube-dns", &["s:kube-dns"]),
    ("system:kube-scheduler", "system:kube-scheduler", &["u:system:kube-scheduler"]),
    ("system:volume-scheduler", "system:volume-scheduler", &["u:system:kube-scheduler"]),
    (
        "system:service-account-issuer-discovery",
        "system:service-account-issuer-discovery",
        &["g:system:serviceaccounts"],
    ),
    // Nodes are allowed by the Node authorizer, not by this binding.
    ("system:node", "system:node", &[]),
    // How the API server reaches the servers of nodes.
    ("system:kube-apiserver-to-kubelet", "system:kubelet-api-admin", &["u:kube-apiserver-kubelet-client"]),
];

/// Roles in namespaces: namespace, name, rules.
const ROLES: &[(&str, &str, &[Line])] = &[
    (
        "kube-system",
        "extension-apiserver-authentication-reader",
        &["R - configmaps extension-apiserver-authentication"],
    ),
    (
        "kube-system",
        "system::leader-locking-kube-controller-manager",
        &[
            "watch - configmaps",
            "get,update - configmaps kube-controller-manager",
            "R,create,update coordination.k8s.io leases",
        ],
    ),
    (
        "kube-system",
        "system::leader-locking-kube-scheduler",
        &["watch - configmaps", "get,update - configmaps kube-scheduler"],
    ),
    ("kube-system", "system:controller:bootstrap-signer", &["R - secrets"]),
    ("kube-system", "system:controller:cloud-provider", &["R,create - configmaps"]),
    ("kube-system", "system:controller:token-cleaner", &["R,delete - secrets", EVENTS]),
    (
        "kube-public",
        "system:controller:bootstrap-signer",
        &["R - configmaps", "update - configmaps cluster-info", EVENTS],
    ),
];

/// Bindings of those roles: namespace, name, role, subjects.
const ROLE_BINDINGS: &[(&str, &str, &str, &[&str])] = &[
    (
        "kube-system",
        "system::extension-apiserver-authentication-reader",
        "extension-apiserver-authentication-reader",
        &["u:system:kube-controller-manager", "u:system:kube-scheduler"],
    ),
    (
        "kube-system",
        "system::leader-locking-kube-controller-manager",
        "system::leader-locking-kube-controller-manager",
        &["u:system:kube-controller-manager", "s:kube-controller-manager", "s:leader-election-controller"],
    ),
    (
        "kube-system",
        "system::leader-locking-kube-scheduler",
        "system::leader-locking-kube-scheduler",
        &["u:system:kube-scheduler", "s:kube-scheduler"],
    ),
    (
        "kube-system",
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        &["s:bootstrap-signer"],
    ),
    (
        "kube-system",
        "system:controller:cloud-provider",
        "system:controller:cloud-provider",
        &["s:cloud-provider"],
    ),
    (
        "kube-system",
        "system:controller:token-cleaner",
        "system:controller:token-cleaner",
        &["s:token-cleaner"],
    ),
    (
        "kube-public",
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        &["s:bootstrap-signer"],
    ),
];

fn rule(line: Line) -> Rule {
    let mut parts = line.split(' ');
    let mut list = |expand: bool| {
        let mut items: Vec<String> = Vec::new();
        for item in parts.next().unwrap_or_default().split(',').filter(|item| !item.is_empty()) {
            match item {
                "R" if expand => items.extend(R.split(',').map(str::to_owned)),
                "W" if expand => items.extend(W.split(',').map(str::to_owned)),
                "-" => items.push(String::new()),
                item => items.push(item.to_owned()),
            }
        }
        items.sort();
        items
    };
    let (verbs, groups, what, names) = (list(true), list(false), list(false), list(false));
    if groups == ["url"] {
        return Rule { verbs, urls: what, ..Default::default() };
    }
    Rule { verbs, groups, resources: what, resource_names: names, urls: Vec::new() }
}

fn rules(lines: &[Line]) -> Value {
    json!(lines.iter().map(|line| rule(line)).collect::<Vec<_>>())
}

fn object(kind: &str, namespace: &str, name: &str) -> Value {
    let mut object = json!({"apiVersion": API_VERSION, "kind": kind, "metadata": {
        "name": name,
        "annotations": {AUTOUPDATE: "true"},
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
    }});
    if !namespace.is_empty() {
        meta::set_namespace(&mut object, namespace);
    }
    object
}

fn subjects(list: &[&str]) -> Vec<Value> {
    list.iter()
        .map(|subject| match subject.split_once(':') {
            Some(("u", name)) => json!({"kind": "User", "apiGroup": GROUP, "name": name}),
            Some(("g", name)) => json!({"kind": "Group", "apiGroup": GROUP, "name": name}),
            Some((_, name)) => json!({"kind": "ServiceAccount", "name": name, "namespace": "kube-system"}),
            None => Value::Null,
        })
        .collect()
}

fn binding(kind: &str, namespace: &str, name: &str, role_kind: &str, role: &str, list: &[&str]) -> Value {
    let mut binding = object(kind, namespace, name);
    binding["roleRef"] = json!({"apiGroup": GROUP, "kind": role_kind, "name": role});
    if !list.is_empty() {
        binding["subjects"] = subjects(list).into();
    }
    binding
}

/// Every default object. The aggregated roles carry the rules that aggregation gives them.
pub fn objects() -> Vec<(&'static Gvr, Value)> {
    let mut roles: Vec<Value> = Vec::new();
    for (name, lines) in CLUSTER_ROLES {
        let mut role = object("ClusterRole", "", name);
        role["rules"] = rules(lines);
        if let Some(target) = name.strip_prefix("system:aggregate-to-") {
            meta::set_label(&mut role, &format!("{AGGREGATE}{target}"), "true");
        }
        roles.push(role);
    }
    for (name, up) in [("admin", None), ("edit", Some("admin")), ("view", Some("edit"))] {
        let mut role = object("ClusterRole", "", name);
        if let Some(up) = up {
            meta::set_label(&mut role, &format!("{AGGREGATE}{up}"), "true");
        }
        let mut labels = Map::new();
        labels.insert(format!("{AGGREGATE}{name}"), "true".into());
        role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
        role["rules"] = json!([]);
        roles.push(role);
    }
    for (name, lines) in CONTROLLERS {
        let mut role = object("ClusterRole", "", &format!("system:controller:{name}"));
        role["rules"] = rules(lines);
        roles.push(role);
    }
    super::aggregation::settle(&mut roles);
    let mut all: Vec<(&'static Gvr, Value)> =
        roles.into_iter().map(|role| (&*resources::CLUSTER_ROLES, role)).collect();
    for (name, role, list) in CLUSTER_BINDINGS {
        all.push((
            &resources::CLUSTER_ROLE_BINDINGS,
            binding("ClusterRoleBinding", "", name, "ClusterRole", role, list),
        ));
    }
    for (name, _) in CONTROLLERS {
        let (role, subject) = (format!("system:controller:{name}"), format!("s:{name}"));
        let binding = binding("ClusterRoleBinding", "", &role, "ClusterRole", &role, &[&subject]);
        all.push((&resources::CLUSTER_ROLE_BINDINGS, binding));
    }
    for (namespace, name, lines) in ROLES {
        let mut role = object("Role", namespace, name);
        role["rules"] = rules(lines);
        all.push((&resources::ROLES, role));
    }
    for (namespace, name, role, list) in ROLE_BINDINGS {
        all.push((&resources::ROLE_BINDINGS, binding("RoleBinding", namespace, name, "Role", role, list)));
    }
    all
}

/// What an existing object becomes so that it grants at least the default, or `None` where it
/// already does or its owner opted out. What users added stays.
pub fn reconcile(existing: &Value, default: &Value) -> Option<Value> {
    if meta::annotation(existing, AUTOUPDATE) == Some("false") {
        return None;
    }
    let mut merged = existing.clone();
    for (field, wanted) in [("labels", meta::labels(default)), ("annotations", meta::annotations(default))] {
        for (key, value) in wanted.into_iter().flatten() {
            if existing["metadata"][field].get(key).is_none() {
                merged["metadata"][field][key.as_str()] = value.clone();
            }
        }
    }
    if default.get("aggregationRule").is_some() {
        // Its rules are aggregation's.
        let selectors = &default["aggregationRule"]["clusterRoleSelectors"];
        add_missing(&mut merged["aggregationRule"]["clusterRoleSelectors"], selectors);
    } else if default.get("rules").is_some() {
        let parse =
            |value: &Value| serde_json::from_value::<Vec<Rule>>(value["rules"].clone()).unwrap_or_default();
        let missing = uncovered(&parse(existing), &parse(default));
        if !missing.is_empty() {
            add_missing(&mut merged["rules"], &json!(missing));
        }
    } else if existing["roleRef"] != default["roleRef"] {
        // A binding of another role is replaced as a whole.
        merged["roleRef"] = default["roleRef"].clone();
        merged["subjects"] = default.get("subjects").cloned().unwrap_or_else(|| json!([]));
    } else if let Some(wanted) = default.get("subjects") {
        add_missing(&mut merged["subjects"], wanted);
    }
    (merged != *existing).then_some(merged)
}

fn add_missing(list: &mut Value, wanted: &Value) {
    let mut items = list.as_array().cloned().unwrap_or_default();
    let missing = wanted.as_array().into_iter().flatten().filter(|item| !items.contains(item)).cloned();
    let missing: Vec<Value> = missing.collect();
    if !missing.is_empty() {
        items.extend(missing);
        *list = items.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(name: &str) -> Value {
        objects()
            .into_iter()
            .map(|(_, o)| o)
            .find(|o| meta::name(o) == name && meta::kind(o) == "ClusterRole")
            .unwrap()
    }

    #[test]
    fn aggregated_roles_contain_each_other() {
        let rules = |name: &str| serde_json::from_value::<Vec<Rule>>(find(name)["rules"].clone()).unwrap();
        let (view, edit, admin) = (rules("view"), rules("edit"), rules("admin"));
        assert!(uncovered(&edit, &view).is_empty());
        assert!(uncovered(&admin, &edit).is_empty());
        assert!(!uncovered(&view, &edit).is_empty());
        assert!(!uncovered(&edit, &admin).is_empty());
        let secrets = rule("get - secrets");
        assert!(!uncovered(&view, std::slice::from_ref(&secrets)).is_empty(), "view reads no secrets");
    }

    #[test]
    fn roles_grant_what_upstreams_do() {
        let cases = [
            ("view", "get,list,watch - configmaps,pods,pods/log,services", true),
            ("view", "get - secrets", false),
            ("view", "create - pods", false),
            ("view", "get rbac.authorization.k8s.io roles", false),
            ("edit", "create - pods/eviction,pods/exec,serviceaccounts/token", true),
            ("edit", "get,update - secrets", true),
            ("edit", "patch apps deployments/scale", true),
            // What endpoints lead to is not for everyone to say.
            ("edit", "update - endpoints", false),
            ("edit", "create rbac.authorization.k8s.io rolebindings", false),
            ("admin", "create rbac.authorization.k8s.io rolebindings,roles", true),
            ("admin", "create authorization.k8s.io localsubjectaccessreviews", true),
            ("admin", "update - resourcequotas", false),
            ("admin", "delete - namespaces", false),
            ("system:basic-user", "create authorization.k8s.io selfsubjectaccessreviews", true),
            ("system:discovery", "get url /apis/apps/v1,/openapi/v3", true),
            ("system:public-info-viewer", "get url /livez,/version", true),
            ("system:public-info-viewer", "get url /metrics", false),
            ("system:monitoring", "get url /metrics", true),
            ("system:kube-scheduler", "create - pods/binding", true),
            ("system:kube-scheduler", "update resource.k8s.io resourceclaims/status", true),
            ("system:kube-scheduler", "update - nodes", false),
            ("system:kube-controller-manager", "list,watch * *", true),
            ("system:kube-controller-manager", "create - pods", false),
            ("system:node-proxier", "list,watch discovery.k8s.io endpointslices", true),
            ("system:controller:attachdetach-controller", "get - secrets", false),
            ("system:controller:daemon-set-controller", "create - pods/binding", true),
            ("system:controller:job-controller", "create,delete,patch - pods", true),
            ("system:controller:statefulset-controller", "create - persistentvolumeclaims,pods", true),
            (
                "system:certificates.k8s.io:kubelet-serving-approver",
                "approve certificates.k8s.io signers",
                false,
            ),
        ];
        for (name, line, granted) in cases {
            let has: Vec<Rule> = serde_json::from_value(find(name)["rules"].clone()).unwrap();
            assert_eq!(uncovered(&has, &[rule(line)]).is_empty(), granted, "{name}: {line}");
        }
        let bound: Vec<Value> =
            objects().into_iter().map(|(_, o)| o).filter(|o| o["roleRef"].is_object()).collect();
        for (name, _) in CONTROLLERS {
            let role = format!("system:controller:{name}");
            let binding = bound.iter().find(|o| meta::name(o) == role).unwrap();
            assert_eq!(binding["roleRef"]["name"], role.as_str());
            let account = json!([{"kind": "ServiceAccount", "name": name, "namespace": "kube-system"}]);
            assert_eq!(binding["subjects"], account);
        }
    }

    #[test]
    fn names_are_unique_and_lines_parse() {
        let mut seen = std::collections::BTreeSet::new();
        for (gvr, object) in objects() {
            assert!(seen.insert((
                gvr.resource.clone(),
                meta::namespace(&object).to_owned(),
                meta::name(&object).to_owned()
            )));
            for rule in object["rules"].as_array().into_iter().flatten() {
                let rule: Rule = serde_json::from_value(rule.clone()).unwrap();
                assert!(
                    !rule.verbs.is_empty() && (!rule.urls.is_empty() || !rule.resources.is_empty()),
                    "{rule}"
                );
            }
        }
    }

    #[test]
    fn reconciling_adds_what_is_missing_and_keeps_what_users_did() {
        let default = find("system:kube-dns");
        assert_eq!(reconcile(&default, &default), None);
        let mut changed = default.clone();
        changed["rules"] = json!([{"verbs": ["get"], "apiGroups": ["x"], "resources": ["y"]}]);
        let merged = reconcile(&changed, &default).unwrap();
        assert_eq!(merged["rules"][0], changed["rules"][0]);
        assert_eq!(reconcile(&merged, &default), None);
        meta::set_annotation(&mut changed, AUTOUPDATE, "false");
        assert_eq!(reconcile(&changed, &default), None);
        let mut more = default.clone();
        more["rules"] = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]);
        assert_eq!(reconcile(&more, &default), None, "covered already");
    }
}
