//! Whether a Pod may run on a Node: taints, node selection, requests and host ports, as pure
//! functions. The scheduler, the node's own admission and controllers all decide with these.
//! Upstream counterpart: `k8s.io/component-helpers/{scheduling,resource}`.

use crate::names;
use crate::quantity::Quantity;
use crate::selector::{Labels, Operator, Requirement};
use k8s_openapi::api::core::v1::{
    Container, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
    ResourceRequirements, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use serde_json::Value;
use std::collections::BTreeMap;

/// Amounts by resource name.
pub type Resources = BTreeMap<String, Quantity>;

/// What a container without a request counts as when nodes are scored: 100m of CPU, 200 MiB.
pub const DEFAULT_CPU_REQUEST_MILLIS: i64 = 100;
pub const DEFAULT_MEMORY_REQUEST_BYTES: i64 = 200 * 1024 * 1024;

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !(effect.is_empty() || effect == taint.effect) || !(key.is_empty() || key == taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => text(&toleration.value) == text(&taint.value),
        "Exists" => true,
        _ => false,
    }
}

/// The first taint with one of `effects` that no toleration tolerates.
pub fn find_untolerated_taint<'a>(
    taints: &'a [Taint],
    tolerations: &[Toleration],
    effects: &[&str],
) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

pub fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

pub fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

/// Until when a Pod tolerates all of a Node's NoExecute taints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoExecute {
    /// Some taint is not tolerated: evict now.
    Evict,
    /// Tolerated for so many seconds, the shortest of those that apply.
    For(i64),
    Forever,
}

pub fn no_execute(taints: &[Taint], tolerations: &[Toleration]) -> NoExecute {
    let mut shortest: Option<i64> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let mut matching = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
        if matching.peek().is_none() {
            return NoExecute::Evict;
        }
        for seconds in matching.filter_map(|t| t.toleration_seconds) {
            let seconds = seconds.max(0);
            shortest = Some(shortest.map_or(seconds, |s| s.min(seconds)));
        }
    }
    match shortest {
        Some(0) => NoExecute::Evict,
        Some(seconds) => NoExecute::For(seconds),
        None => NoExecute::Forever,
    }
}

/// `nodeSelector` and the required part of node affinity.
pub fn matches_node_selection(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let labels = node.metadata.labels.as_ref();
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| labels.label(k) == Some(v));
    selected && required_node_affinity(spec).is_none_or(|selector| matches_node_selector(selector, node))
}

fn required_node_affinity(spec: &PodSpec) -> Option<&NodeSelector> {
    spec.affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()
}

/// Terms are alternatives.
pub fn matches_node_selector(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| matches_node_selector_term(term, node))
}

/// All of a term must hold; an empty term matches no Node.
pub fn matches_node_selector_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labels = node.metadata.labels.as_ref();
    expressions.iter().all(|e| requirement(e).is_some_and(|r| r.matches(&labels)))
        && fields.iter().all(|f| matches_field(f, node.metadata.name.as_deref().unwrap_or_default()))
}

fn requirement(expression: &NodeSelectorRequirement) -> Option<Requirement> {
    let operator = match expression.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        _ => return None,
    };
    Requirement::new(&expression.key, operator, expression.values.clone().unwrap_or_default()).ok()
}

/// The one field is `metadata.name`, with one value.
fn matches_field(field: &NodeSelectorRequirement, name: &str) -> bool {
    let [value] = field.values.as_deref().unwrap_or_default() else { return false };
    field.key == "metadata.name"
        && match field.operator.as_str() {
            "In" => value == name,
            "NotIn" => value != name,
            _ => false,
        }
}

/// The sum of the weights of preferred node affinity terms that match.
pub fn preferred_node_affinity_weight(pod: &Pod, node: &Node) -> i64 {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.node_affinity.as_ref());
    let terms = affinity
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default();
    terms
        .iter()
        .filter(|t| matches_node_selector_term(&t.preference, node))
        .map(|t| i64::from(t.weight))
        .sum()
}

/// Whether an init container keeps running beside the others (a sidecar).
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Whether a container whose run ended with this code runs again: its own rules decide (KEP-5307),
/// then its own policy, then the Pod's.
pub fn restarts(pod_policy: Option<&str>, container: &Container, is_init: bool, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        let hit = if codes.operator == "NotIn" { !listed } else { listed };
        if hit {
            return matches!(rule.action.as_str(), "Restart" | "RestartAllContainers");
        }
    }
    let own = container.restart_policy.as_deref();
    match own.or(pod_policy).unwrap_or("Always") {
        "Never" => false,
        // An init container that succeeded is done, whatever the Pod's policy.
        "Always" => !(is_init && own != Some("Always") && exit_code == 0),
        _ => exit_code != 0,
    }
}

/// The amounts of a list in JSON: `{"cpu": "100m"}`. What does not parse is left out.
pub fn resource_list(list: &Value) -> Resources {
    let entries = list.as_object().into_iter().flatten();
    entries.filter_map(|(name, amount)| Some((name.clone(), Quantity::from_value(amount).ok()?))).collect()
}

fn amounts(list: Option<&BTreeMap<String, Text>>) -> Resources {
    list.into_iter().flatten().map(|(name, text)| (name.clone(), Quantity::of(text))).collect()
}

fn add(to: &mut Resources, from: &Resources) {
    for (name, amount) in from {
        *to.entry(name.clone()).or_default() += *amount;
    }
}

fn take_larger(to: &mut Resources, from: &Resources) {
    for (name, amount) in from {
        match to.get_mut(name) {
            Some(have) if *have >= *amount => {}
            Some(have) => *have = *amount,
            None => {
                to.insert(name.clone(), *amount);
            }
        }
    }
}

/// Sidecars count from their start on: an ordinary init container runs beside the sidecars before
/// it, and the main containers beside all of them (KEP-753).
fn over_containers(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let mut running = Resources::new();
    for container in &spec.containers {
        add(&mut running, &of(container));
    }
    let (mut sidecars, mut peak) = (Resources::new(), Resources::new());
    for container in spec.init_containers.iter().flatten() {
        let mut need = of(container);
        if is_sidecar(container) {
            add(&mut sidecars, &need);
            add(&mut running, &need);
            need = sidecars.clone();
        } else {
            add(&mut need, &sidecars);
        }
        take_larger(&mut peak, &need);
    }
    take_larger(&mut running, &peak);
    running
}

/// What of a running Pod's resources may change.
pub const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Pod-level resources may speak of these only.
fn is_pod_level(name: &str) -> bool {
    name == "cpu" || name == "memory" || name.starts_with("hugepages-")
}

/// What a Pod asks of a Node: requests of its containers, of the Pod where it has its own, and
/// overhead. A Pod being resized counts with the larger of what it has and what it asks.
pub fn pod_requests(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::new() };
    let mut total = over_containers(spec, |container| container_requests(pod, container));
    own_requests(pod, spec, &mut total);
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total
}

/// What the Pod asks as a whole counts for its containers; while it is resized, the larger of what it
/// has and what it asks.
fn own_requests(pod: &Pod, spec: &PodSpec, total: &mut Resources) {
    let mut own = amounts(spec.resources.as_ref().and_then(|r| r.requests.as_ref()));
    if own.is_empty() {
        return;
    }
    if let Some(status) = &pod.status {
        let mut has = amounts(status.allocated_resources.as_ref());
        take_larger(&mut has, &amounts(status.resources.as_ref().and_then(|r| r.requests.as_ref())));
        has.retain(|name, _| own.contains_key(name));
        if has.is_empty() || !is_infeasible(pod) {
            take_larger(&mut own, &has);
        } else {
            own.extend(has);
        }
    }
    total.extend(own.into_iter().filter(|(name, _)| is_pod_level(name)));
}

/// The node has said that what the Pod asks will never fit.
fn is_infeasible(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| {
        c.type_ == "PodResizePending" && c.status == "True" && c.reason.as_deref() == Some("Infeasible")
    })
}

/// The limits, by the same rules. Overhead raises only limits that are set.
pub fn pod_limits(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::new() };
    let mut total = over_containers(spec, |c| amounts(c.resources.as_ref().and_then(|r| r.limits.as_ref())));
    override_with_pod_level(&mut total, spec.resources.as_ref().and_then(|r| r.limits.as_ref()));
    for (name, amount) in amounts(spec.overhead.as_ref()) {
        if let Some(limit) = total.get_mut(&name).filter(|limit| !limit.is_zero()) {
            *limit += amount;
        }
    }
    total
}

fn override_with_pod_level(total: &mut Resources, list: Option<&BTreeMap<String, Text>>) {
    total.extend(amounts(list).into_iter().filter(|(name, _)| is_pod_level(name)));
}

fn container_requests(pod: &Pod, container: &Container) -> Resources {
    let asked = amounts(container.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let Some(status) = &pod.status else { return asked };
    let statuses =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let Some(status_of) = statuses.into_iter().find(|s| s.name == container.name) else { return asked };
    let actual = status_of.resources.as_ref().and_then(|r| r.requests.as_ref());
    let allocated = status_of.allocated_resources.as_ref();
    if actual.is_none() && allocated.is_none() {
        return asked;
    }
    let mut total = amounts(allocated);
    take_larger(&mut total, &amounts(actual));
    if !is_infeasible(pod) {
        take_larger(&mut total, &asked);
    }
    total
}

/// CPU in thousandths and memory in bytes as scoring counts them: containers that ask nothing
/// count as [`DEFAULT_CPU_REQUEST_MILLIS`] and [`DEFAULT_MEMORY_REQUEST_BYTES`].
pub fn non_zero_requests(pod: &Pod) -> (i64, i64) {
    let Some(spec) = &pod.spec else { return (0, 0) };
    let mut total = over_containers(spec, |container| {
        let mut requests = container_requests(pod, container);
        requests.entry("cpu".into()).or_insert_with(|| Quantity::from_millis(DEFAULT_CPU_REQUEST_MILLIS));
        requests.entry("memory".into()).or_insert_with(|| Quantity::from_bytes(DEFAULT_MEMORY_REQUEST_BYTES));
        requests
    });
    own_requests(pod, spec, &mut total);
    add(&mut total, &amounts(spec.overhead.as_ref()));
    let of = |name: &str| total.get(name).copied().unwrap_or_default();
    (of("cpu").millis(), of("memory").units())
}

/// What a Node offers to Pods.
pub fn allocatable(node: &Node) -> Resources {
    amounts(node.status.as_ref().and_then(|s| s.allocatable.as_ref()))
}

/// Requests and limits of one container, as amounts.
pub fn resource_lists(resources: Option<&ResourceRequirements>) -> (Resources, Resources) {
    (amounts(resources.and_then(|r| r.requests.as_ref())), amounts(resources.and_then(|r| r.limits.as_ref())))
}

/// A port on a Node that a Pod claims.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// `0.0.0.0` for all addresses.
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    /// All addresses conflict with each one of them.
    pub fn conflicts(&self, other: &HostPort) -> bool {
        const ANY: &str = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

/// The host ports of a Pod's containers and sidecars.
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|port| {
            let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0");
            let ip = names::parse_ip(ip).map_or_else(|| ip.to_owned(), |ip| ip.to_string());
            let protocol = port.protocol.as_deref().filter(|p| !p.is_empty()).unwrap_or("TCP").to_owned();
            port.host_port.filter(|p| *p > 0).map(|port| HostPort { ip, protocol, port })
        })
        .collect()
}

/// Whether any wanted port conflicts with one in use.
pub fn host_ports_conflict<'a>(wanted: &[HostPort], used: impl IntoIterator<Item = &'a HostPort>) -> bool {
    !wanted.is_empty() && used.into_iter().any(|used| wanted.iter().any(|want| want.conflicts(used)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn node(labels: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1", "labels": labels}})).unwrap()
    }

    fn shown(resources: &Resources) -> Vec<String> {
        resources.iter().map(|(k, v)| format!("{k}={v}")).collect()
    }

    #[test]
    fn taints_and_tolerations() {
        let check = |toleration: Value, taint: Value| {
            tolerates(&serde_json::from_value(toleration).unwrap(), &serde_json::from_value(taint).unwrap())
        };
        let taint = json!({"key": "k", "value": "v", "effect": "NoSchedule"});
        assert!(check(json!({"key": "k", "value": "v"}), taint.clone()));
        assert!(check(json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"}), taint.clone()));
        assert!(check(json!({"operator": "Exists"}), taint.clone()));
        assert!(!check(json!({"key": "k", "value": "x"}), taint.clone()));
        assert!(!check(json!({"key": "x", "operator": "Exists"}), taint.clone()));
        assert!(!check(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), taint.clone()));
        assert!(!check(json!({"key": "k", "operator": "Odd"}), taint));
    }

    #[test]
    fn how_long_no_execute_is_tolerated() {
        let taints: Vec<Taint> = serde_json::from_value(json!([
            {"key": "a", "effect": "NoExecute"}, {"key": "b", "effect": "NoExecute"}, {"key": "c", "effect": "NoSchedule"}]))
        .unwrap();
        let check = |tolerations: Value| {
            no_execute(&taints, &serde_json::from_value::<Vec<Toleration>>(tolerations).unwrap())
        };
        assert_eq!(check(json!([])), NoExecute::Evict);
        assert_eq!(check(json!([{"key": "a", "operator": "Exists"}])), NoExecute::Evict);
        assert_eq!(check(json!([{"operator": "Exists"}])), NoExecute::Forever);
        assert_eq!(
            check(
                json!([{"operator": "Exists", "tolerationSeconds": 300}, {"key": "a", "operator": "Exists", "tolerationSeconds": 5}])
            ),
            NoExecute::For(5)
        );
        assert_eq!(check(json!([{"operator": "Exists", "tolerationSeconds": 0}])), NoExecute::Evict);
    }

    #[test]
    fn node_affinity() {
        let node = node(json!({"zone": "a", "cpus": "8"}));
        let check = |terms: Value| {
            let required = json!({"nodeSelectorTerms": terms});
            let affinity =
                json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}});
            matches_node_selection(&pod(json!({"containers": [], "affinity": affinity})), &node)
        };
        let expression = |key: &str, operator: &str, values: Value| {
            check(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
        };
        assert!(expression("zone", "In", json!(["a", "b"])));
        assert!(!expression("zone", "NotIn", json!(["a"])));
        assert!(expression("other", "NotIn", json!(["a"])));
        assert!(expression("zone", "Exists", json!([])));
        assert!(expression("other", "DoesNotExist", json!([])));
        assert!(expression("cpus", "Gt", json!(["4"])) && !expression("cpus", "Gt", json!(["8"])));
        assert!(expression("cpus", "Lt", json!(["9"])) && !expression("zone", "Lt", json!(["9"])));
        assert!(!expression("zone", "Odd", json!(["a"])));
        assert!(!check(json!([])) && !check(json!([{}])));
        assert!(check(
            json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}])
        ));
        assert!(!check(
            json!([{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}])
        ));
        assert!(
            check(json!([{}, {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}])),
            "terms are alternatives"
        );
        assert!(!matches_node_selection(
            &pod(json!({"containers": [], "nodeSelector": {"zone": "b"}})),
            &node
        ));
        assert!(matches_node_selection(
            &pod(json!({"containers": [], "nodeSelector": {"zone": "a"}})),
            &node
        ));
    }

    #[test]
    fn sidecars_run_beside_what_follows_them() {
        let container =
            |name: &str, cpu: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
        let sidecar = |name: &str, cpu: &str| json!({"name": name, "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        let check = |init: Value, containers: Value| {
            shown(&pod_requests(&pod(json!({"initContainers": init, "containers": containers}))))
        };
        assert_eq!(check(json!([]), json!([container("a", "1"), container("b", "500m")])), ["cpu=1500m"]);
        assert_eq!(check(json!([container("i", "2")]), json!([container("a", "1")])), ["cpu=2"]);
        assert_eq!(
            check(json!([sidecar("s", "1"), container("i", "2")]), json!([container("a", "1")])),
            ["cpu=3"]
        );
        assert_eq!(
            check(json!([container("i", "2"), sidecar("s", "1")]), json!([container("a", "1")])),
            ["cpu=2"]
        );
        assert_eq!(
            check(json!([sidecar("s", "1"), sidecar("t", "1")]), json!([container("a", "1")])),
            ["cpu=3"]
        );
    }

    #[test]
    fn overhead_and_pod_level_resources() {
        let mut spec = json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}}}],
            "overhead": {"cpu": "100m", "memory": "1Mi"}});
        assert_eq!(shown(&pod_requests(&pod(spec.clone()))), ["cpu=1100m", "memory=1025Mi"]);
        assert_eq!(shown(&pod_limits(&pod(spec.clone()))), ["cpu=2100m"]);
        spec["resources"] = json!({"requests": {"cpu": "5", "example.com/gpu": "1"}});
        assert_eq!(shown(&pod_requests(&pod(spec))), ["cpu=5100m", "memory=1025Mi"]);
        assert_eq!(non_zero_requests(&pod(json!({"containers": [{"name": "a"}]}))), (100, 200 << 20));
    }

    #[test]
    fn a_resize_counts_the_larger() {
        let mut pod = pod(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}));
        pod.status = serde_json::from_value(
            json!({"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true,
            "restartCount": 0, "allocatedResources": {"cpu": "2"}}]}),
        )
        .unwrap();
        assert_eq!(shown(&pod_requests(&pod)), ["cpu=2"]);
    }

    #[test]
    fn a_resize_of_the_pod_itself_counts_the_larger() {
        let counted = |asked: &str, status: Value| {
            let spec = json!({"containers": [{"name": "a"}], "resources": {"requests": {"cpu": asked}}});
            let mut pod = pod(spec);
            pod.status = serde_json::from_value(status).unwrap();
            shown(&pod_requests(&pod))
        };
        let has = json!({"allocatedResources": {"cpu": "2"}, "resources": {"requests": {"cpu": "2"}}});
        assert_eq!(counted("1", json!({})), ["cpu=1"]);
        assert_eq!(counted("1", has.clone()), ["cpu=2"]);
        assert_eq!(counted("3", has.clone()), ["cpu=3"]);
        let mut never = has;
        never["conditions"] = json!([{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]);
        assert_eq!(counted("3", never), ["cpu=2"]);
    }

    #[test]
    fn host_ports_conflict_by_address() {
        let ports = |ports: Value| host_ports(&pod(json!({"containers": [{"name": "a", "ports": ports}]})));
        let any = ports(json!([{"containerPort": 80, "hostPort": 80}]));
        let one = ports(json!([{"containerPort": 80, "hostPort": 80, "hostIP": "10.0.0.1"}]));
        let two = ports(json!([{"containerPort": 80, "hostPort": 80, "hostIP": "10.0.0.2"}]));
        let udp = ports(json!([{"containerPort": 80, "hostPort": 80, "protocol": "UDP"}]));
        assert!(
            host_ports_conflict(&any, &one)
                && host_ports_conflict(&one, &any)
                && host_ports_conflict(&one, &one)
        );
        assert!(!host_ports_conflict(&one, &two) && !host_ports_conflict(&any, &udp));
        assert!(ports(json!([{"containerPort": 80}])).is_empty());
    }
}
