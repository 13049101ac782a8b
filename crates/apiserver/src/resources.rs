//! Names of the resources that the API server itself looks at.

use skeg_api::Gvr;
use std::sync::LazyLock;

macro_rules! resources {
    ($($name:ident = $group:literal $version:literal $resource:literal;)*) => {
        $(pub static $name: LazyLock<Gvr> = LazyLock::new(|| Gvr::new($group, $version, $resource));)*
    };
}

resources! {
    API_SERVICES = "apiregistration.k8s.io" "v1" "apiservices";
    CONFIG_MAPS = "" "v1" "configmaps";
    FLOW_SCHEMAS = "flowcontrol.apiserver.k8s.io" "v1" "flowschemas";
    PRIORITY_LEVELS = "flowcontrol.apiserver.k8s.io" "v1" "prioritylevelconfigurations";
    IP_ADDRESSES = "networking.k8s.io" "v1" "ipaddresses";
    SERVICE_CIDRS = "networking.k8s.io" "v1" "servicecidrs";
    DEFINITIONS = "apiextensions.k8s.io" "v1" "customresourcedefinitions";
    NAMESPACES = "" "v1" "namespaces";
    NODES = "" "v1" "nodes";
    PODS = "" "v1" "pods";
    SECRETS = "" "v1" "secrets";
    SERVICES = "" "v1" "services";
    LIMIT_RANGES = "" "v1" "limitranges";
    RESOURCE_QUOTAS = "" "v1" "resourcequotas";
    ENDPOINTS = "" "v1" "endpoints";
    SERVICE_ACCOUNTS = "" "v1" "serviceaccounts";
    ENDPOINT_SLICES = "discovery.k8s.io" "v1" "endpointslices";
    INGRESS_CLASSES = "networking.k8s.io" "v1" "ingressclasses";
    RUNTIME_CLASSES = "node.k8s.io" "v1" "runtimeclasses";
    STORAGE_CLASSES = "storage.k8s.io" "v1" "storageclasses";
    MUTATING_WEBHOOKS = "admissionregistration.k8s.io" "v1" "mutatingwebhookconfigurations";
    VALIDATING_WEBHOOKS = "admissionregistration.k8s.io" "v1" "validatingwebhookconfigurations";
    VALIDATING_POLICIES = "admissionregistration.k8s.io" "v1" "validatingadmissionpolicies";
    VALIDATING_BINDINGS = "admissionregistration.k8s.io" "v1" "validatingadmissionpolicybindings";
    MUTATING_POLICIES = "admissionregistration.k8s.io" "v1" "mutatingadmissionpolicies";
    MUTATING_BINDINGS = "admissionregistration.k8s.io" "v1" "mutatingadmissionpolicybindings";
    PRIORITY_CLASSES = "scheduling.k8s.io" "v1" "priorityclasses";
    CLUSTER_ROLES = "rbac.authorization.k8s.io" "v1" "clusterroles";
    CLUSTER_ROLE_BINDINGS = "rbac.authorization.k8s.io" "v1" "clusterrolebindings";
    ROLES = "rbac.authorization.k8s.io" "v1" "roles";
    ROLE_BINDINGS = "rbac.authorization.k8s.io" "v1" "rolebindings";
}
