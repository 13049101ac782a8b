//! The columns of `kubectl get`: their names and how each cell comes from one object and the time.
//! Pure and per object, so that a watch can print one row. It knows nothing of requests or pages.
//! Upstream counterpart: `pkg/printers/internalversion/printers.go`.

use crate::kinds::{Cell, Column, Kind};
use crate::meta;
use crate::selector::LabelSelector;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

mod cluster;
mod networking;
mod pod;
mod storage;
mod workload;

type CellFn = fn(&Value, Timestamp) -> Value;

const NONE: &str = "<none>";
const UNKNOWN: &str = "<unknown>";
const UNSET: &str = "<unset>";
/// How many endpoints or ports one cell lists.
const LIST_LEN_MAX: usize = 3;

/// The cells of one object, in the order of the kind's columns.
pub fn cells(kind: &Kind, object: &Value, now: Timestamp) -> Vec<Value> {
    kind.columns.iter().map(|column| cell(column, object, now)).collect()
}

/// `columnDefinitions` of a Table.
pub fn definitions(columns: &[Column]) -> Value {
    let define = |column: &Column| {
        json!({
            "name": column.name, "type": column.kind, "format": column.format,
            "description": column.description, "priority": column.priority,
        })
    };
    Value::Array(columns.iter().map(define).collect())
}

/// `conditions` of a row: a finished Pod says so.
pub fn row_conditions(kind: &Kind, object: &Value) -> Option<Value> {
    if &*kind.gvk.kind != "Pod" || !kind.gvk.group.is_empty() {
        return None;
    }
    let (reason, message) = match text(object, "/status/phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

/// The cell of one column.
pub fn cell(column: &Column, object: &Value, now: Timestamp) -> Value {
    match &column.cell {
        Cell::Fn(f) => f(object, now),
        Cell::JsonPath(path) => custom_cell(column.kind, path.first(object), now),
        Cell::Path(path) => {
            let found =
                path.split('.').filter(|part| !part.is_empty()).try_fold(object, |at, part| at.get(part));
            match (column.kind, found) {
                (_, None | Some(Value::Null)) => Value::Null,
                ("date", Some(value)) => match meta::time(value) {
                    Some(time) => ago(time, now).into(),
                    None => "<invalid>".into(),
                },
                (_, Some(value)) => value.clone(),
            }
        }
    }
}

/// The cell of a printer column: a value that does not have the column's type is left out.
fn custom_cell(kind: &str, found: Option<&Value>, now: Timestamp) -> Value {
    let Some(value) = found.filter(|value| !value.is_null()) else { return Value::Null };
    match (kind, value) {
        ("date", Value::String(_)) => match meta::time(value) {
            Some(time) => ago(time, now).into(),
            None => "<invalid>".into(),
        },
        ("integer", Value::Number(number)) => {
            number.as_i64().or_else(|| number.as_f64().map(|n| n as i64)).map_or(Value::Null, Value::from)
        }
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) | ("string", Value::String(_)) => {
            value.clone()
        }
        ("string", other) => other.to_string().into(),
        _ => Value::Null,
    }
}

/// A span of time as upstream prints it: `45s`, `5m`, `3d4h`, `2y10d`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    let pair = |big: i64, big_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        _ => format!("{big}{big_unit}{small}{small_unit}"),
    };
    match () {
        // Clocks that differ by a little are not an error.
        () if seconds < -1 => "<invalid>".to_owned(),
        () if seconds < 0 => "0s".to_owned(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => pair(days, "d", hours % 24, "h"),
        () if days < 365 * 2 => format!("{days}d"),
        () if days < 365 * 8 => pair(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

fn ago(time: Timestamp, now: Timestamp) -> String {
    let nanos = now.as_nanosecond() - time.as_nanosecond();
    human_duration((nanos / 1_000_000_000) as i64)
}

fn since(object: &Value, pointer: &str, now: Timestamp) -> Option<String> {
    object.pointer(pointer).and_then(meta::time).map(|time| ago(time, now))
}

/// The columns of a built-in kind. Kinds without any of their own show name and creation time.
pub fn of(group: &str, version: &str, kind: &str) -> Vec<Column> {
    let rows: &[Row] = match (group, kind) {
        ("", "Pod") => pod::COLUMNS,
        ("", "Namespace") => const { &[NAME, s("Status", |o, _| text(o, "/status/phase").into()), AGE] },
        ("", "Node") => NODE,
        ("", "Event") => EVENT,
        ("events.k8s.io", "Event") => NEW_EVENT,
        ("", "ConfigMap") => {
            const { &[NAME, i("Data", |o, _| (size(o, "/data") + size(o, "/binaryData")).into()), AGE] }
        }
        ("", "Secret") => {
            const {
                &[
                    NAME,
                    s("Type", |o, _| text(o, "/type").into()),
                    i("Data", |o, _| size(o, "/data").into()),
                    AGE,
                ]
            }
        }
        ("", "ServiceAccount") => const { &[NAME, s("Secrets", |o, _| size(o, "/secrets").into()), AGE] },
        ("", "Service") => SERVICE,
        ("", "Endpoints") => const { &[NAME, s("Endpoints", |o, _| endpoints(o).into()), AGE] },
        ("discovery.k8s.io", "EndpointSlice") => ENDPOINT_SLICE,
        ("coordination.k8s.io", "Lease") => {
            const { &[NAME, s("Holder", |o, _| text(o, "/spec/holderIdentity").into()), AGE] }
        }
        ("apps", "Deployment") => DEPLOYMENT,
        ("apps", "ReplicaSet") => REPLICA_SET,
        ("apps", "ControllerRevision") => {
            const {
                &[
                    NAME,
                    s("Controller", |o, _| controller(o).into()),
                    i("Revision", |o, _| number(o, "/revision").into()),
                    AGE,
                ]
            }
        }
        ("apps", "StatefulSet") => workload::STATEFUL_SET,
        ("apps", "DaemonSet") => workload::DAEMON_SET,
        ("", "ReplicationController") => workload::REPLICATION_CONTROLLER,
        ("", "PodTemplate") => workload::POD_TEMPLATE,
        ("batch", "Job") => workload::JOB,
        ("batch", "CronJob") => workload::CRON_JOB,
        ("autoscaling", "HorizontalPodAutoscaler") if version == "v1" => workload::AUTOSCALER_V1,
        ("autoscaling", "HorizontalPodAutoscaler") => workload::AUTOSCALER,
        ("policy", "PodDisruptionBudget") => workload::DISRUPTION_BUDGET,
        ("", "ResourceQuota") => workload::QUOTA,
        ("", "PersistentVolumeClaim") => storage::CLAIM,
        ("", "PersistentVolume") => storage::VOLUME,
        ("", "ComponentStatus") => COMPONENT_STATUS,
        ("storage.k8s.io", "StorageClass") => storage::CLASS,
        ("storage.k8s.io", "VolumeAttributesClass") => storage::ATTRIBUTES_CLASS,
        ("storage.k8s.io", "VolumeAttachment") => storage::ATTACHMENT,
        ("storage.k8s.io", "CSIDriver") => storage::DRIVER,
        ("storage.k8s.io", "CSINode") => storage::CSI_NODE,
        ("storage.k8s.io", "CSIStorageCapacity") => storage::CAPACITY,
        ("networking.k8s.io", "Ingress") => networking::INGRESS,
        ("networking.k8s.io", "IngressClass") => networking::INGRESS_CLASS,
        ("networking.k8s.io", "NetworkPolicy") => networking::NETWORK_POLICY,
        ("networking.k8s.io", "IPAddress") => networking::IP_ADDRESS,
        ("networking.k8s.io", "ServiceCIDR") => networking::SERVICE_CIDR,
        ("node.k8s.io", "RuntimeClass") => cluster::RUNTIME_CLASS,
        ("certificates.k8s.io", "CertificateSigningRequest") => cluster::SIGNING_REQUEST,
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => cluster::FLOW_SCHEMA,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => cluster::PRIORITY_LEVEL,
        ("resource.k8s.io", "ResourceClaim") => cluster::RESOURCE_CLAIM,
        ("resource.k8s.io", "ResourceSlice") => cluster::RESOURCE_SLICE,
        ("resource.k8s.io", "ResourceClaimTemplate" | "DeviceClass") => cluster::NAME_AND_AGE,
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => cluster::VALIDATING_POLICY,
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => cluster::MUTATING_POLICY,
        (
            "admissionregistration.k8s.io",
            "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding",
        ) => cluster::POLICY_BINDING,
        ("admissionregistration.k8s.io", _) => cluster::WEBHOOKS,
        ("apiregistration.k8s.io", "APIService") => cluster::API_SERVICE,
        ("scheduling.k8s.io", "PriorityClass") => PRIORITY_CLASS,
        ("autoscaling", "Scale") => {
            const {
                &[
                    NAME,
                    i("Desired", |o, _| number(o, "/spec/replicas").into()),
                    i("Available", |o, _| number(o, "/status/replicas").into()),
                    AGE,
                ]
            }
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => ROLE_BINDING,
        _ => const { &[NAME, CREATED_AT] },
    };
    rows.iter().map(Row::column).collect()
}

/// A column of a built-in kind.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    kind: &'static str,
    priority: i32,
    cell: CellFn,
}

impl Row {
    fn column(&self) -> Column {
        let is_name = self.name == "Name" && self.priority == 0;
        Column {
            name: self.name.to_owned(),
            kind: self.kind,
            format: if is_name { "name" } else { "" },
            description: description(self.name).to_owned(),
            priority: self.priority,
            cell: Cell::Fn(self.cell),
        }
    }
}

const fn s(name: &'static str, cell: CellFn) -> Row {
    Row { name, kind: "string", priority: 0, cell }
}

const fn i(name: &'static str, cell: CellFn) -> Row {
    Row { name, kind: "integer", priority: 0, cell }
}

const fn b(name: &'static str, cell: CellFn) -> Row {
    Row { name, kind: "boolean", priority: 0, cell }
}

const fn wide(name: &'static str, cell: CellFn) -> Row {
    Row { name, kind: "string", priority: 1, cell }
}

const NAME: Row = s("Name", |o, _| meta::name(o).into());
const AGE: Row =
    s("Age", |o, now| since(o, "/metadata/creationTimestamp", now).unwrap_or(UNKNOWN.into()).into());
const CREATED_AT: Row = Row {
    name: "Created At",
    kind: "date",
    priority: 0,
    cell: |o, _| text(o, "/metadata/creationTimestamp").into(),
};

fn description(column: &str) -> &'static str {
    match column {
        "Name" => "The name of the object, unique among those of its kind and namespace.",
        "Age" => "The time since the object was created.",
        "Created At" => "The time at which the object was created.",
        "Status" => "The state of the object in one word.",
        "Ready" => "How many of those wanted are ready.",
        "Restarts" => "How often containers were restarted, and when last.",
        "Selector" => "The labels by which Pods are chosen.",
        "Containers" => "The names of the containers in the template.",
        "Images" => "The images of the containers in the template.",
        "Message" => "What happened, in words.",
        "Reason" => "What happened, in one word.",
        "Last Seen" => "The time since it happened last.",
        "First Seen" => "The time since it happened first.",
        _ => "",
    }
}

const NODE: &[Row] = &[
    NAME,
    s("Status", |o, _| node_status(o).into()),
    s("Roles", |o, _| node_roles(o).into()),
    AGE,
    s("Version", |o, _| text(o, "/status/nodeInfo/kubeletVersion").into()),
    wide("Internal-IP", |o, _| node_address(o, "InternalIP").into()),
    wide("External-IP", |o, _| node_address(o, "ExternalIP").into()),
    wide("OS-Image", |o, _| or(text(o, "/status/nodeInfo/osImage"), UNKNOWN).into()),
    wide("Kernel-Version", |o, _| or(text(o, "/status/nodeInfo/kernelVersion"), UNKNOWN).into()),
    wide("Container-Runtime", |o, _| or(text(o, "/status/nodeInfo/containerRuntimeVersion"), UNKNOWN).into()),
];

const SERVICE: &[Row] = &[
    NAME,
    s("Type", |o, _| text(o, "/spec/type").into()),
    s("Cluster-IP", |o, _| or(text(o, "/spec/clusterIPs/0"), NONE).into()),
    s("External-IP", |o, _| service_external_ip(o).into()),
    s("Port(s)", |o, _| service_ports(o).into()),
    AGE,
    wide("Selector", |o, _| labels(o.pointer("/spec/selector")).into()),
];

const ENDPOINT_SLICE: &[Row] = &[
    NAME,
    s("AddressType", |o, _| text(o, "/addressType").into()),
    s("Ports", |o, _| slice_ports(o).into()),
    s("Endpoints", |o, _| slice_endpoints(o).into()),
    AGE,
];

const DEPLOYMENT: &[Row] = &[
    NAME,
    s("Ready", |o, _| {
        format!("{}/{}", number(o, "/status/readyReplicas"), number(o, "/spec/replicas")).into()
    }),
    s("Up-to-date", |o, _| number(o, "/status/updatedReplicas").into()),
    s("Available", |o, _| number(o, "/status/availableReplicas").into()),
    AGE,
    wide("Containers", |o, _| template(o, "name").into()),
    wide("Images", |o, _| template(o, "image").into()),
    wide("Selector", |o, _| selector(o).into()),
];

const REPLICA_SET: &[Row] = &[
    NAME,
    i("Desired", |o, _| number(o, "/spec/replicas").into()),
    i("Current", |o, _| number(o, "/status/replicas").into()),
    i("Ready", |o, _| number(o, "/status/readyReplicas").into()),
    AGE,
    wide("Containers", |o, _| template(o, "name").into()),
    wide("Images", |o, _| template(o, "image").into()),
    wide("Selector", |o, _| selector(o).into()),
];

const PRIORITY_CLASS: &[Row] = &[
    NAME,
    i("Value", |o, _| number(o, "/value").into()),
    b("Global-Default", |o, _| flag(o, "/globalDefault")),
    AGE,
    s("PreemptionPolicy", |o, _| text(o, "/preemptionPolicy").into()),
];

const COMPONENT_STATUS: &[Row] = &[
    NAME,
    s("Status", |o, _| {
        if text(o, "/conditions/0/status") == "True" { "Healthy" } else { "Unhealthy" }.into()
    }),
    s("Message", |o, _| text(o, "/conditions/0/message").into()),
    s("Error", |o, _| text(o, "/conditions/0/error").into()),
];

const ROLE_BINDING: &[Row] = &[
    NAME,
    s("Role", |o, _| format!("{}/{}", text(o, "/roleRef/kind"), text(o, "/roleRef/name")).into()),
    AGE,
    wide("Users", |o, _| subjects(o, "User").into()),
    wide("Groups", |o, _| subjects(o, "Group").into()),
    wide("ServiceAccounts", |o, _| subjects(o, "ServiceAccount").into()),
];

const EVENT: &[Row] = &[
    s("Last Seen", |o, now| event_last_seen(o, "/", now).into()),
    s("Type", |o, _| text(o, "/type").into()),
    s("Reason", |o, _| text(o, "/reason").into()),
    s("Object", |o, _| event_object(o.get("involvedObject")).into()),
    wide("Subobject", |o, _| text(o, "/involvedObject/fieldPath").into()),
    wide("Source", |o, _| event_source(o, "source", "reportingComponent").into()),
    s("Message", |o, _| text(o, "/message").trim().into()),
    wide("First Seen", |o, now| event_first_seen(o, "/firstTimestamp", now).into()),
    wide("Count", |o, _| event_count(o, "/count").into()),
    wide("Name", |o, _| meta::name(o).into()),
];

const NEW_EVENT: &[Row] = &[
    s("Last Seen", |o, now| event_last_seen(o, "/deprecated", now).into()),
    s("Type", |o, _| text(o, "/type").into()),
    s("Reason", |o, _| text(o, "/reason").into()),
    s("Object", |o, _| event_object(o.get("regarding")).into()),
    wide("Subobject", |o, _| text(o, "/regarding/fieldPath").into()),
    wide("Source", |o, _| event_source(o, "deprecatedSource", "reportingController").into()),
    s("Message", |o, _| text(o, "/note").trim().into()),
    wide("First Seen", |o, now| event_first_seen(o, "/deprecatedFirstTimestamp", now).into()),
    wide("Count", |o, _| event_count(o, "/deprecatedCount").into()),
    wide("Name", |o, _| meta::name(o).into()),
];

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn flag(object: &Value, pointer: &str) -> Value {
    object.pointer(pointer).and_then(Value::as_bool).unwrap_or(false).into()
}

fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The number of entries of a list or a map.
fn size(object: &Value, pointer: &str) -> usize {
    match object.pointer(pointer) {
        Some(Value::Array(items)) => items.len(),
        Some(Value::Object(map)) => map.len(),
        _ => 0,
    }
}

fn join<'a>(items: impl IntoIterator<Item = &'a str>, separator: &str) -> String {
    items.into_iter().collect::<Vec<_>>().join(separator)
}

fn labels(map: Option<&Value>) -> String {
    let map: Option<&Map<String, Value>> = map.and_then(Value::as_object);
    let pairs: BTreeSet<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")))
        .collect();
    if pairs.is_empty() { NONE.to_owned() } else { join(pairs.iter().map(String::as_str), ",") }
}

fn selector(object: &Value) -> String {
    selector_at(object, "/spec/selector")
}

fn selector_at(object: &Value, pointer: &str) -> String {
    match LabelSelector::from_object(object.pointer(pointer)) {
        Ok(selector) => or(&selector.to_string(), NONE).to_owned(),
        Err(_) => "<invalid>".to_owned(),
    }
}

fn template(object: &Value, field: &str) -> String {
    workload::containers(object, "/spec/template/spec/containers", field)
}

fn controller(object: &Value) -> String {
    let Some(owner) = meta::controller_of(object) else { return NONE.to_owned() };
    let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
    let dot = if group.is_empty() { "" } else { "." };
    format!("{}{dot}{group}/{}", owner.kind.to_lowercase(), owner.name)
}

fn node_status(node: &Value) -> String {
    let ready = list(node, "/status/conditions").iter().find(|c| c["type"] == "Ready");
    let status = match ready {
        None => "Unknown",
        Some(condition) if condition["status"] == "True" => "Ready",
        Some(_) => "NotReady",
    };
    let disabled = node.pointer("/spec/unschedulable") == Some(&Value::Bool(true));
    format!("{status}{}", if disabled { ",SchedulingDisabled" } else { "" })
}

fn node_roles(node: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in meta::labels(node).into_iter().flatten() {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/") {
            roles.insert(role);
        } else if key == "kubernetes.io/role" {
            roles.insert(value.as_str().unwrap_or(""));
        }
    }
    roles.remove("");
    or(&join(roles, ","), NONE).to_owned()
}

fn node_address(node: &Value, kind: &str) -> String {
    let found = list(node, "/status/addresses").iter().find(|address| address["type"] == kind);
    found.and_then(|address| address["address"].as_str()).unwrap_or(NONE).to_owned()
}

fn service_external_ip(service: &Value) -> String {
    let external: Vec<&str> = list(service, "/spec/externalIPs").iter().filter_map(Value::as_str).collect();
    match text(service, "/spec/type") {
        "ClusterIP" | "NodePort" => or(&external.join(","), NONE).to_owned(),
        "LoadBalancer" => {
            let ingress = list(service, "/status/loadBalancer/ingress").iter();
            let balancer: BTreeSet<&str> = ingress
                .filter_map(|i| {
                    i["ip"].as_str().filter(|ip| !ip.is_empty()).or_else(|| i["hostname"].as_str())
                })
                .filter(|address| !address.is_empty())
                .collect();
            or(&join(balancer.into_iter().chain(external), ","), "<pending>").to_owned()
        }
        "ExternalName" => text(service, "/spec/externalName").to_owned(),
        _ => UNKNOWN.to_owned(),
    }
}

fn service_ports(service: &Value) -> String {
    let ports = list(service, "/spec/ports").iter().map(|port| {
        let protocol = or(text(port, "/protocol"), "TCP");
        match (number(port, "/port"), number(port, "/nodePort")) {
            (number, node) if node > 0 => format!("{number}:{node}/{protocol}"),
            (number, _) => format!("{number}/{protocol}"),
        }
    });
    or(&ports.collect::<Vec<_>>().join(","), NONE).to_owned()
}

/// The first few of a list, and how many more there are.
fn some_of(all: &[String], none: &str) -> String {
    let shown = all[..all.len().min(LIST_LEN_MAX)].join(",");
    match all.len() {
        0 => none.to_owned(),
        len if len > LIST_LEN_MAX => format!("{shown} + {} more...", len - LIST_LEN_MAX),
        _ => shown,
    }
}

fn endpoints(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in list(object, "/subsets") {
        let addresses =
            || list(subset, "/addresses").iter().map(|address| address["ip"].as_str().unwrap_or(""));
        let ports = list(subset, "/ports");
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            let number = number(port, "/port");
            all.extend(addresses().map(|ip| {
                if ip.contains(':') { format!("[{ip}]:{number}") } else { format!("{ip}:{number}") }
            }));
        }
    }
    some_of(&all, NONE)
}

fn slice_ports(slice: &Value) -> String {
    let ports = list(slice, "/ports").iter();
    let all: Vec<String> = ports
        .map(|port| match (port["port"].as_i64(), port["name"].as_str()) {
            (Some(number), _) => number.to_string(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => "*".to_owned(),
        })
        .collect();
    some_of(&all, UNSET)
}

fn slice_endpoints(slice: &Value) -> String {
    let endpoints = list(slice, "/endpoints").iter();
    let all: Vec<String> =
        endpoints.flat_map(|e| list(e, "/addresses")).filter_map(Value::as_str).map(str::to_owned).collect();
    some_of(&all, UNSET)
}

fn subjects(binding: &Value, kind: &str) -> String {
    let chosen = list(binding, "/subjects").iter().filter(|subject| subject["kind"] == kind).map(|subject| {
        let name = text(subject, "/name");
        if kind == "ServiceAccount" {
            format!("{}/{name}", text(subject, "/namespace"))
        } else {
            name.to_owned()
        }
    });
    chosen.collect::<Vec<_>>().join(", ")
}

fn event_first_seen(event: &Value, first: &str, now: Timestamp) -> String {
    since(event, first, now).or_else(|| since(event, "/eventTime", now)).unwrap_or(UNKNOWN.into())
}

/// `prefix` is `/` or `/deprecated`: the newer group renamed the older fields.
fn event_last_seen(event: &Value, prefix: &str, now: Timestamp) -> String {
    if event.get("series").is_some_and(Value::is_object) {
        return since(event, "/series/lastObservedTime", now).unwrap_or(UNKNOWN.into());
    }
    let (last, first) = match prefix {
        "/" => ("/lastTimestamp", "/firstTimestamp"),
        _ => ("/deprecatedLastTimestamp", "/deprecatedFirstTimestamp"),
    };
    since(event, last, now).unwrap_or_else(|| event_first_seen(event, first, now))
}

fn event_count(event: &Value, pointer: &str) -> i64 {
    match event.get("series") {
        Some(Value::Object(_)) => number(event, "/series/count"),
        // An event that happened once has no count in the newer group.
        _ => number(event, pointer).max(1),
    }
}

fn event_object(object: Option<&Value>) -> String {
    let object = object.unwrap_or(&Value::Null);
    let kind = text(object, "/kind").to_lowercase();
    match text(object, "/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn event_source(event: &Value, source: &str, reporter: &str) -> String {
    let source = event.get(source).unwrap_or(&Value::Null);
    let component = or(text(source, "/component"), event[reporter].as_str().unwrap_or(""));
    let instance = or(text(source, "/host"), text(event, "/reportingInstance"));
    if instance.is_empty() { component.to_owned() } else { format!("{component}, {instance}") }
}

#[cfg(test)]
mod tests;
