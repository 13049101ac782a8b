//! Whether a Pod that was bound here may run here: the scheduler may have been wrong or left out.
//! Pure. Upstream counterpart: `pkg/kubelet/lifecycle/predicate.go`.

use crate::machine::Ended;
use crate::machine::resize::pod_requests_of_spec;
use crate::text;
use k8s_openapi::api::core::v1::{Node, Pod};
use skeg_api::predicates::{
    RESIZABLE, allocatable, find_untolerated_taint, host_ports, host_ports_conflict, matches_node_selection,
    pod_requests, taints, tolerations,
};
use skeg_api::quantity::Quantity;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The verdict over `pod`, given the node and the other Pods that count on it.
pub fn admit(pod: &Pod, node: &Node, others: &[Arc<Pod>]) -> Result<(), Ended> {
    let rejected = |reason: String, why: String| {
        Err(Ended { phase: "Failed", reason, message: format!("Pod was rejected: {why}") })
    };
    let room = allocatable(node);
    let pods_max = room.get("pods").map_or(i64::MAX, |q| q.units());
    if others.len() as i64 >= pods_max {
        let why = format!(
            "Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {pods_max}",
            others.len()
        );
        return rejected("OutOfpods".into(), why);
    }
    let mut used: BTreeMap<String, Quantity> = BTreeMap::new();
    for other in others {
        for (name, amount) in pod_requests(other) {
            *used.entry(name).or_default() += amount;
        }
    }
    for (name, wanted) in pod_requests(pod) {
        if wanted.is_zero() {
            continue;
        }
        let has = room.get(&name).copied().unwrap_or_default();
        let taken = used.get(&name).copied().unwrap_or_default();
        let mut sum = taken;
        sum += wanted;
        if sum > has {
            // CPU is counted in thousandths.
            let shown = |q: Quantity| if name == "cpu" { q.millis() } else { q.units() };
            let why = format!(
                "Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
                shown(wanted),
                shown(taken),
                shown(has)
            );
            return rejected(format!("OutOf{name}"), why);
        }
    }
    let predicate =
        |name: &str, why: &str| rejected(name.to_owned(), format!("Predicate {name} failed: {why}"));
    if !matches_node_selection(pod, node) {
        return predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
    }
    let wanted = host_ports(pod);
    let taken: Vec<_> = others.iter().flat_map(|p| host_ports(p)).collect();
    if host_ports_conflict(&wanted, &taken) {
        return predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports");
    }
    if find_untolerated_taint(taints(node), tolerations(pod), &["NoExecute"]).is_some() {
        return predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate");
    }
    if let Some(why) = forbidden_sysctl(pod) {
        return rejected("SysctlForbidden".into(), why);
    }
    let os = pod.spec.as_ref().and_then(|s| s.os.as_ref()).map(|o| o.name.as_str());
    if os.is_some_and(|os| os != "linux") {
        let why = "Failed to admit pod as the OS field doesn't match node OS".to_owned();
        return rejected("PodOSNotSupported".into(), why);
    }
    Ok(())
}

/// There is no room now, but there may be later.
pub const DEFERRED: &str = "Deferred";
/// There never will be on this node.
pub const INFEASIBLE: &str = "Infeasible";

/// Whether a Pod may have the sizes that it asks for, or why not. The others count with what they
/// have been given, and with what they still have while they shrink.
pub fn resize<'a>(
    pod: &Pod,
    node: &Node,
    others: impl Iterator<Item = &'a Arc<Pod>>,
) -> Result<(), (&'static str, String)> {
    let (room, asked) = (allocatable(node), pod_requests_of_spec(pod));
    let shown = |name: &str, q: Quantity| if name == "cpu" { q.millis() } else { q.units() };
    let of = |list: &BTreeMap<String, Quantity>, name: &str| list.get(name).copied().unwrap_or_default();
    for name in RESIZABLE {
        let (wanted, has) = (of(&asked, name), of(&room, name));
        if wanted > has {
            let why = format!(
                "Node didn't have enough capacity: {name}, requested: {}, capacity: {}",
                shown(name, wanted),
                shown(name, has)
            );
            return Err((INFEASIBLE, why));
        }
    }
    let mut used: BTreeMap<String, Quantity> = BTreeMap::new();
    for other in others {
        for (name, amount) in pod_requests(other) {
            *used.entry(name).or_default() += amount;
        }
    }
    for name in RESIZABLE {
        let (wanted, taken, has) = (of(&asked, name), of(&used, name), of(&room, name));
        if wanted + taken > has {
            let why = format!(
                "Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
                shown(name, wanted),
                shown(name, taken),
                shown(name, has)
            );
            return Err((DEFERRED, why));
        }
    }
    Ok(())
}

/// Sysctls that a namespace of the Pod's own makes harmless to others; the node may set no other.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

fn forbidden_sysctl(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let asked = spec.security_context.as_ref()?.sysctls.as_ref()?;
    asked.iter().find_map(|sysctl| {
        // Both spellings name the same file.
        let name = sysctl.name.replace('/', ".");
        let shared =
            if name.starts_with("net.") { ("net", spec.host_network) } else { ("ipc", spec.host_ipc) };
        match shared {
            _ if !SAFE_SYSCTLS.contains(&name.as_str()) => {
                Some(format!("forbidden sysctl: \"{}\" not allowlisted", sysctl.name))
            }
            (which, Some(true)) => {
                Some(format!("forbidden sysctl: \"{}\" not allowed with host {which} enabled", sysctl.name))
            }
            _ => None,
        }
    })
}

/// Whether a Pod takes room on the node.
pub fn counts(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().map(|s| text(&s.phase)).unwrap_or_default();
    !matches!(phase, "Succeeded" | "Failed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_grows_as_far_as_there_is_room() {
        let node: Node = serde_json::from_value(
            json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "2", "memory": "1Gi"}}}),
        )
        .unwrap();
        let pod = |cpu: &str, status: serde_json::Value| -> Pod {
            let spec = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec, "status": status}))
                .unwrap()
        };
        let other = Arc::new(pod("500m", json!({})));
        let ask = |cpu: &str, other: &Arc<Pod>| resize(&pod(cpu, json!({})), &node, std::iter::once(other));
        assert_eq!(ask("1500m", &other), Ok(()));
        let why = "Node didn't have enough resource: cpu, requested: 1600, used: 500, capacity: 2000";
        assert_eq!(ask("1600m", &other), Err((DEFERRED, why.to_owned())));
        let why = "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000";
        assert_eq!(ask("3", &other), Err((INFEASIBLE, why.to_owned())));
        let shrinking = json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true,
            "restartCount": 0, "resources": {"requests": {"cpu": "1"}}}]});
        let shrinking = Arc::new(pod("500m", shrinking));
        assert_eq!(ask("1500m", &shrinking).unwrap_err().0, DEFERRED, "it still has what it gives");
    }

    #[test]
    fn what_does_not_fit_is_turned_away() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"disk": "ssd"}},
            "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "2"}}}))
        .unwrap();
        let pod = |cpu: &str, extra: serde_json::Value| -> Pod {
            let mut spec = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
        };
        let other = Arc::new(pod("250m", json!({})));
        assert_eq!(admit(&pod("500m", json!({})), &node, std::slice::from_ref(&other)), Ok(()));
        let out = admit(&pod("4", json!({})), &node, std::slice::from_ref(&other)).unwrap_err();
        assert_eq!(out.reason, "OutOfcpu");
        assert_eq!(
            out.message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 4000, used: 250, capacity: 1000"
        );
        assert_eq!(
            admit(&pod("1m", json!({})), &node, &[other.clone(), other.clone()]).unwrap_err().reason,
            "OutOfpods"
        );
        let picky = pod("1m", json!({"nodeSelector": {"disk": "hdd"}}));
        assert_eq!(admit(&picky, &node, &[]).unwrap_err().reason, "NodeAffinity");
        for (name, extra, fine) in [
            ("net.ipv4.tcp_syncookies", json!({}), true),
            ("net/ipv4/tcp_syncookies", json!({}), true),
            ("kernel.msgmax", json!({}), false),
            ("net.ipv4.tcp_syncookies", json!({"hostNetwork": true}), false),
            ("kernel.shm_rmid_forced", json!({"hostNetwork": true}), true),
        ] {
            let mut extra = extra;
            extra["securityContext"] = json!({"sysctls": [{"name": name, "value": "1"}]});
            let verdict = admit(&pod("1m", extra.clone()), &node, &[]).map_err(|ended| ended.reason);
            let expected = if fine { Ok(()) } else { Err("SysctlForbidden".to_owned()) };
            assert_eq!(verdict, expected, "{extra}");
        }
    }
}
