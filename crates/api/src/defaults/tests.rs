use super::*;

fn defaulted(group: &str, kind: &str, mut object: Value) -> Value {
    let default = of(group, "v1", kind);
    default(&mut object);
    let once = object.clone();
    default(&mut object);
    assert_eq!(object, once, "defaulting is idempotent");
    object
}

#[test]
fn the_example_deployment() {
    let given = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "example-deployment"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "example"}},
                 "template": {"metadata": {"labels": {"app": "example"}},
                              "spec": {"containers": [{"name": "example", "image": "nginx"}]}}}});
    assert_eq!(
        defaulted("apps", "Deployment", given)["spec"],
        json!({"replicas": 3, "selector": {"matchLabels": {"app": "example"}},
            "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {"metadata": {"labels": {"app": "example"}}, "spec": {
                "containers": [{"name": "example", "image": "nginx", "imagePullPolicy": "Always", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                "securityContext": {}, "terminationGracePeriodSeconds": 30}}})
    );
    let recreate =
        defaulted("apps", "Deployment", json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}}}));
    assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
    assert_eq!(recreate["spec"]["replicas"], 0);
}

#[test]
fn a_pod_gets_requests_links_and_host_ports() {
    let pod = defaulted(
        "",
        "Pod",
        json!({"spec": {
        "hostNetwork": true, "serviceAccount": "old",
        "containers": [{"name": "a", "image": "x:1", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100500u"}},
            "readinessProbe": {"httpGet": {"port": 80}}, "livenessProbe": {"grpc": {"port": 9}, "periodSeconds": 3},
            "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "lifecycle": {"preStop": {"httpGet": {"port": 1, "path": "/bye"}}}}],
        "volumes": [{"name": "v"}, {"name": "h", "hostPath": {"path": "/"}}, {"name": "s", "secret": {"secretName": "s"}},
            {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}},
                {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}}]}}),
    );
    let spec = &pod["spec"];
    assert_eq!((&spec["serviceAccountName"], &spec["enableServiceLinks"]), (&json!("old"), &json!(true)));
    let container = &spec["containers"][0];
    assert_eq!(container["imagePullPolicy"], "IfNotPresent");
    assert_eq!(container["ports"], json!([{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}]));
    assert_eq!(container["resources"]["requests"], json!({"cpu": "101m", "memory": "1Gi"}));
    assert_eq!(
        container["readinessProbe"],
        json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
    );
    assert_eq!(container["livenessProbe"]["grpc"], json!({"port": 9, "service": ""}));
    assert_eq!(container["livenessProbe"]["periodSeconds"], 3);
    assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    assert_eq!(
        container["lifecycle"]["preStop"]["httpGet"],
        json!({"port": 1, "path": "/bye", "scheme": "HTTP"})
    );
    assert_eq!(
        spec["volumes"],
        json!([{"name": "v", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/", "type": ""}},
            {"name": "s", "secret": {"secretName": "s", "defaultMode": 420}},
            {"name": "p", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}]}}]}}])
    );
}

#[test]
fn requests_of_a_whole_pod() {
    let pod = defaulted(
        "",
        "Pod",
        json!({"spec": {"resources": {"limits": {"cpu": "4", "memory": "1Gi"}},
        "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
                           {"name": "i", "resources": {"requests": {"cpu": "2500m"}}}],
        "containers": [{"name": "a", "resources": {"requests": {"cpu": "500m"}}}]}}),
    );
    assert_eq!(pod["spec"]["resources"]["requests"], json!({"cpu": "3500m", "memory": "1Gi"}));
}

#[test]
fn services_by_type() {
    let plain = defaulted("", "Service", json!({"spec": {"ports": [{"port": 80}]}}));
    assert_eq!(
        plain,
        json!({"spec": {"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "sessionAffinity": "None",
                        "type": "ClusterIP", "internalTrafficPolicy": "Cluster"}, "status": {"loadBalancer": {}}})
    );
    let balanced =
        defaulted("", "Service", json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP"}}));
    assert_eq!(balanced["spec"]["externalTrafficPolicy"], "Cluster");
    assert_eq!(balanced["spec"]["allocateLoadBalancerNodePorts"], true);
    assert_eq!(balanced["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10800);
    let external = defaulted("", "Service", json!({"spec": {"type": "ExternalName", "externalName": "a.b"}}));
    assert_eq!(external["spec"].get("internalTrafficPolicy"), None);
}

#[test]
fn small_kinds() {
    let secret = defaulted("", "Secret", json!({"data": {"a": "MQ=="}, "stringData": {"a": "2", "b": "x"}}));
    assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "Mg==", "b": "eA=="}}));
    let namespace = defaulted("", "Namespace", json!({"metadata": {"name": "n"}}));
    assert_eq!(namespace["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "n"}));
    assert_eq!(namespace["status"], json!({"phase": "Active"}));
    let mut created = json!({"spec": {"finalizers": ["a.b/c"]}});
    new_namespace(&mut created);
    new_namespace(&mut created);
    assert_eq!(created["spec"]["finalizers"], json!(["a.b/c", "kubernetes"]));
    let node = defaulted("", "Node", json!({"status": {"capacity": {"cpu": "2"}}}));
    assert_eq!(node["status"]["allocatable"], json!({"cpu": "2"}));
    let slice = defaulted(
        "discovery.k8s.io",
        "EndpointSlice",
        json!({"ports": [{"port": 1}, {"name": "a", "protocol": "UDP"}]}),
    );
    assert_eq!(
        slice["ports"],
        json!([{"port": 1, "name": "", "protocol": "TCP"}, {"name": "a", "protocol": "UDP"}])
    );
    let endpoints = defaulted("", "Endpoints", json!({"subsets": [{"ports": [{"port": 1}]}]}));
    assert_eq!(endpoints["subsets"][0]["ports"][0]["protocol"], "TCP");
    let binding = defaulted(
        RBAC,
        "RoleBinding",
        json!({"roleRef": {"kind": "Role"}, "subjects": [{"kind": "User"}, {"kind": "ServiceAccount"}]}),
    );
    assert_eq!(binding["roleRef"]["apiGroup"], RBAC);
    assert_eq!(binding["subjects"], json!([{"kind": "User", "apiGroup": RBAC}, {"kind": "ServiceAccount"}]));
    let class = defaulted("scheduling.k8s.io", "PriorityClass", json!({}));
    assert_eq!(class["preemptionPolicy"], "PreemptLowerPriority");
    let token = defaulted("authentication.k8s.io", "TokenRequest", json!({"spec": {}}));
    assert_eq!(token["spec"]["expirationSeconds"], 3600);
    assert_eq!(defaulted("", "ConfigMap", json!({"data": {}})), json!({"data": {}}));
}

#[test]
fn a_single_value_heads_its_list() {
    let two = json!([{"ip": "a"}, {"ip": "b"}]);
    for (given, expected) in [
        (json!({"podIP": "a"}), json!({"podIP": "a", "podIPs": [{"ip": "a"}]})),
        (json!({"podIPs": two}), json!({"podIP": "a", "podIPs": two})),
        (json!({"podIP": "b", "podIPs": two}), json!({"podIP": "b", "podIPs": [{"ip": "b"}]})),
        (json!({"podIP": "a", "podIPs": two}), json!({"podIP": "a", "podIPs": two})),
        (json!({"podIP": "", "podIPs": []}), json!({"podIP": "", "podIPs": []})),
        (json!({"hostIP": "a"}), json!({"hostIP": "a"})),
    ] {
        assert_eq!(defaulted("", "Pod", json!({"status": given}))["status"], expected);
    }
    for (given, expected) in [
        (json!({"podCIDR": "a"}), json!({"podCIDR": "a", "podCIDRs": ["a"]})),
        (json!({"podCIDRs": ["a", "b"]}), json!({"podCIDR": "a", "podCIDRs": ["a", "b"]})),
        (json!({"podCIDR": "a", "podCIDRs": ["b", "a"]}), json!({"podCIDR": "a", "podCIDRs": ["a"]})),
        (json!({}), json!({})),
    ] {
        assert_eq!(defaulted("", "Node", json!({"spec": given}))["spec"], expected);
    }
}

#[test]
fn objects_of_wrong_shape_are_left_alone() {
    for (group, kind) in
        [("", "Pod"), ("apps", "Deployment"), ("", "Service"), ("", "Secret"), (RBAC, "RoleBinding")]
    {
        for odd in [
            json!(null),
            json!([]),
            json!({"spec": 3, "status": [], "data": 1}),
            json!({"spec": {"containers": {}, "ports": [1]}}),
        ] {
            defaulted(group, kind, odd);
        }
    }
}
