use super::*;
use serde_json::json;

const NOW: &str = "2026-01-10T00:00:00Z";

fn row(group: &str, kind: &str, object: Value) -> Vec<Value> {
    let now = NOW.parse().unwrap();
    of(group, "v1", kind).iter().map(|column| cell(column, &object, now)).collect()
}

/// The cells joined by `|`, as tests read them best.
fn line(group: &str, kind: &str, object: Value) -> String {
    let cells = row(group, kind, object);
    cells
        .iter()
        .map(|cell| cell.as_str().map_or(cell.to_string(), str::to_owned))
        .collect::<Vec<_>>()
        .join("|")
}

#[test]
fn durations_read_as_upstreams() {
    let (m, h, d, y) = (60, 3600, 86400, 365 * 86400);
    for (seconds, text) in [
        (-2, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (5 * m + 1, "5m1s"),
        (10 * m + 9, "10m"),
        (179 * m, "179m"),
        (3 * h, "3h"),
        (7 * h + 59 * m, "7h59m"),
        (8 * h + m, "8h"),
        (47 * h, "47h"),
        (48 * h, "2d"),
        (3 * d + 4 * h, "3d4h"),
        (8 * d + h, "8d"),
        (2 * y + 10 * d, "2y10d"),
        (3 * y, "3y"),
        (9 * y + d, "9y"),
    ] {
        assert_eq!(human_duration(seconds), text);
    }
}

fn pod(status: Value) -> Value {
    json!({
        "metadata": {"name": "web", "creationTimestamp": "2026-01-09T23:55:00Z"},
        "spec": {"nodeName": "n1", "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}, {"name": "j"}]},
        "status": status,
    })
}

#[test]
fn pods_say_what_they_are_up_to() {
    let running = json!({"ready": true, "restartCount": 0, "state": {"running": {}}});
    let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
    for (status, expected) in [
        (json!({"phase": "Pending"}), "web|0/2|Pending|0|5m|<none>|n1|<none>|<none>"),
        (
            json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [running, running]}),
            "web|2/2|Running|0|5m|10.0.0.1|n1|<none>|<none>",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
            "web|0/2|Init:0/2|0|5m|<none>|n1|<none>|<none>",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [done,
                {"name": "j", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": {"finishedAt": "2026-01-09T23:59:00Z"}}}]}),
            "web|0/2|Init:CrashLoopBackOff|2 (60s ago)|5m|<none>|n1|<none>|<none>",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [
                {"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": {"finishedAt": "2026-01-09T23:55:00Z"}}}, running]}),
            "web|1/2|CrashLoopBackOff|3 (5m ago)|5m|<none>|n1|<none>|<none>",
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
            "web|0/2|ExitCode:3|0|5m|<none>|n1|<none>|<none>",
        ),
        (
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}],
                   "containerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}, running]}),
            "web|1/2|NotReady|0|5m|<none>|n1|<none>|<none>",
        ),
    ] {
        assert_eq!(line("", "Pod", pod(status)), expected);
    }
    let mut deleted = pod(json!({"phase": "Running", "containerStatuses": [running, running]}));
    deleted["metadata"]["deletionTimestamp"] = NOW.into();
    assert_eq!(line("", "Pod", deleted.clone()), "web|2/2|Terminating|0|5m|<none>|n1|<none>|<none>");
    deleted["status"]["reason"] = "NodeLost".into();
    assert!(line("", "Pod", deleted).contains("|Unknown|"));
}

#[test]
fn sidecars_count_as_containers() {
    let mut object = pod(json!({
        "phase": "Running",
        "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}, "restartCount": 4},
            {"name": "j", "started": true, "ready": true, "restartCount": 1, "state": {"running": {}}}],
        "containerStatuses": [{"ready": true, "state": {"running": {}}}],
    }));
    object["spec"]["initContainers"][1]["restartPolicy"] = "Always".into();
    assert!(line("", "Pod", object).starts_with("web|2/3|Running|1|"));
}

#[test]
fn workloads_services_and_nodes() {
    let deployment = json!({
        "metadata": {"name": "web", "creationTimestamp": "2026-01-06T20:00:00Z"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                 "template": {"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}}},
        "status": {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1},
    });
    assert_eq!(line("apps", "Deployment", deployment.clone()), "web|1/3|2|1|3d4h|a,b|x,y|app=web");
    assert_eq!(line("apps", "ReplicaSet", deployment), "web|3|0|1|3d4h|a,b|x,y|app=web");
    let service = json!({
        "metadata": {"name": "web", "creationTimestamp": "2026-01-09T23:59:00Z"},
        "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.9"], "externalIPs": ["9.9.9.9"], "selector": {"b": "2", "a": "1"},
                 "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "8.8.8.8"}]}},
    });
    assert_eq!(
        line("", "Service", service),
        "web|LoadBalancer|10.96.0.9|8.8.8.8,9.9.9.9|80:30080/TCP,53/UDP|60s|a=1,b=2"
    );
    let node = json!({
        "metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "x"}},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "Unknown"}], "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
                   "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian"}},
    });
    assert_eq!(
        line("", "Node", node),
        "n1|NotReady,SchedulingDisabled|control-plane,x|<unknown>|v1.36.0|1.2.3.4|<none>|Debian|<unknown>|<unknown>"
    );
}

#[test]
fn endpoints_and_events() {
    let subset =
        json!({"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"port": 80}, {"port": 81}]});
    let endpoints = json!({"metadata": {"name": "web"}, "subsets": [subset]});
    assert_eq!(
        line("", "Endpoints", endpoints),
        "web|10.0.0.1:80,10.0.0.2:80,10.0.0.1:81 + 1 more...|<unknown>"
    );
    let slice = json!({"metadata": {"name": "web"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]});
    assert_eq!(line("discovery.k8s.io", "EndpointSlice", slice), "web|IPv4|<unset>|10.0.0.1|<unknown>");
    let event = json!({
        "metadata": {"name": "web.1"}, "type": "Normal", "reason": "Pulled", "message": " done \n", "count": 2,
        "involvedObject": {"kind": "Pod", "name": "web", "fieldPath": "spec.containers{a}"},
        "source": {"component": "kubelet", "host": "n1"},
        "firstTimestamp": "2026-01-09T23:50:00Z", "lastTimestamp": "2026-01-09T23:59:30Z",
    });
    assert_eq!(
        line("", "Event", event),
        "30s|Normal|Pulled|pod/web|spec.containers{a}|kubelet, n1|done|10m|2|web.1"
    );
    let newer = json!({"metadata": {"name": "web.2"}, "reason": "Sched", "note": "hi", "eventTime": "2026-01-09T23:59:00.000000Z",
        "regarding": {"kind": "Pod", "name": "web"}, "reportingController": "skeg", "series": {"count": 7, "lastObservedTime": "2026-01-09T23:59:59.000000Z"}});
    assert_eq!(line("events.k8s.io", "Event", newer), "1s||Sched|pod/web||skeg|hi|60s|7|web.2");
}

#[test]
fn access_and_small_kinds() {
    let binding = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [
        {"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}, {"kind": "User", "name": "v"}]});
    assert_eq!(line("rbac.authorization.k8s.io", "RoleBinding", binding), "b|Role/r|<unknown>|u, v||n/s");
    let role = json!({"metadata": {"name": "r", "creationTimestamp": NOW}});
    assert_eq!(line("rbac.authorization.k8s.io", "Role", role), format!("r|{NOW}"));
    let revision = json!({"metadata": {"name": "v", "ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "1", "controller": true}]}, "revision": 4});
    assert_eq!(line("apps", "ControllerRevision", revision), "v|statefulset.apps/web|4|<unknown>");
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "1"}, "binaryData": {"b": "", "c": ""}});
    assert_eq!(line("", "ConfigMap", map), "m|3|<unknown>");
    let class = json!({"metadata": {"name": "p"}, "value": 10, "preemptionPolicy": "Never"});
    assert_eq!(line("scheduling.k8s.io", "PriorityClass", class), "p|10|false|<unknown>|Never");
}

#[test]
fn path_columns_serve_custom_resources() {
    let column = |path: &str, kind| Column {
        name: "X".into(),
        kind,
        format: "",
        description: String::new(),
        priority: 0,
        cell: Cell::Path(path.into()),
    };
    let object = json!({"spec": {"size": 3}, "at": "2026-01-09T23:00:00Z"});
    let now = NOW.parse().unwrap();
    assert_eq!(cell(&column("spec.size", "integer"), &object, now), json!(3));
    assert_eq!(cell(&column("at", "date"), &object, now), json!("60m"));
    assert_eq!(cell(&column("spec.none", "string"), &object, now), Value::Null);
}
