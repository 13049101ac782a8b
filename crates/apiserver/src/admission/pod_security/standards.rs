//! The Pod Security Standards: what each level forbids, since which version, told in upstream's words.
//! Upstream counterpart: `k8s.io/pod-security-admission/policy`.

use serde_json::Value;
use skeg_api::meta;
use skeg_api::pod::all_containers;
use std::collections::BTreeSet;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    /// `None` for what names no level.
    pub fn parse(text: &str) -> Option<Self> {
        [Level::Privileged, Level::Baseline, Level::Restricted]
            .into_iter()
            .find(|level| level.to_string() == text)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        })
    }
}

/// A level at a minor version of Kubernetes; the latest is the largest number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    pub level: Level,
    pub minor: u32,
}

pub const LATEST: u32 = u32::MAX;

impl Policy {
    /// Whether both forbid the same: `privileged` does at every version.
    pub fn is_same(self, other: Self) -> bool {
        self.level == other.level && (self.level == Level::Privileged || self.minor == other.minor)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Policy { level: Level::Privileged, minor: LATEST }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.minor {
            LATEST => write!(f, "{}:latest", self.level),
            minor => write!(f, "{}:v1.{minor}", self.level),
        }
    }
}

/// What a check says against a Pod.
#[derive(Debug, PartialEq)]
pub struct Violation {
    pub reason: String,
    /// Whom and what it is about; may be empty.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

/// A Pod, or the template of one, at a version of the standards.
struct Pod<'a> {
    object: &'a Value,
    spec: &'a Value,
    minor: u32,
}

struct Check {
    level: Level,
    since: u32,
    /// The check of the level above that says the same and more, and since when.
    replaced: Option<u32>,
    run: fn(&Pod<'_>) -> Option<Violation>,
}

/// In the order in which upstream tells of violations.
const CHECKS: &[Check] = &[
    baseline(app_armor),
    Check { replaced: Some(22), ..baseline(capabilities) },
    baseline(host_namespaces),
    Check { replaced: Some(0), ..baseline(host_path_volumes) },
    baseline(host_ports),
    Check { since: 34, ..baseline(probe_hosts) },
    baseline(privileged),
    baseline(proc_mount),
    baseline(selinux),
    Check { replaced: Some(19), ..baseline(seccomp) },
    baseline(sysctls),
    baseline(host_process),
    restricted(8, privilege_escalation),
    restricted(22, dropped_capabilities),
    restricted(0, volume_types),
    restricted(0, run_as_non_root),
    restricted(23, run_as_user),
    restricted(19, seccomp_set),
];

const fn baseline(run: fn(&Pod<'_>) -> Option<Violation>) -> Check {
    Check { level: Level::Baseline, since: 0, replaced: None, run }
}

const fn restricted(since: u32, run: fn(&Pod<'_>) -> Option<Violation>) -> Check {
    Check { level: Level::Restricted, since, replaced: None, run }
}

/// What a policy has against a Pod or a template: anything with `metadata` and `spec`.
pub fn violations(policy: Policy, object: &Value) -> Vec<Violation> {
    let pod = Pod { object, spec: &object["spec"], minor: policy.minor };
    let applies = |check: &&Check| {
        let replaced =
            check.replaced.is_some_and(|since| policy.level == Level::Restricted && policy.minor >= since);
        check.level <= policy.level && policy.minor >= check.since && !replaced
    };
    CHECKS.iter().filter(applies).filter_map(|check| (check.run)(&pod)).collect()
}

fn violation(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation { reason: reason.to_owned(), detail })
}

fn plural<'t>(one: &'t str, many: &'t str, count: usize) -> &'t str {
    if count == 1 { one } else { many }
}

fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| format!("\"{}\"", item.as_ref())).collect();
    items.join(", ")
}

/// `containers "a", "b"`
fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and container "a"`; `None` where nobody did it.
fn setters(by_pod: bool, names: &[&str]) -> Option<String> {
    let mut all: Vec<String> = Vec::new();
    if by_pod {
        all.push("pod".to_owned());
    }
    if !names.is_empty() {
        all.push(containers(names));
    }
    (!all.is_empty()).then(|| all.join(" and "))
}

impl<'a> Pod<'a> {
    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        all_containers(self.spec).map(|(_, _, container)| container)
    }

    /// The names of the containers of which something holds.
    fn those(&self, mut holds: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|c| holds(c)).map(|c| c["name"].as_str().unwrap_or_default()).collect()
    }

    fn context(&self) -> &'a Value {
        &self.spec["securityContext"]
    }

    fn annotations(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let all = meta::annotations(self.object).into_iter().flatten();
        all.map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
    }

    /// Containers of Windows have other means.
    fn is_windows(&self) -> bool {
        self.minor >= 25 && self.spec["os"]["name"] == "windows"
    }

    /// In a user namespace root is nobody outside.
    fn is_in_user_namespace(&self) -> bool {
        self.minor >= 35 && self.spec["hostUsers"] == false
    }
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn app_armor(pod: &Pod<'_>) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let mut bad = |context: &Value| {
        let profile = &context["appArmorProfile"];
        let kind = profile["type"].as_str().unwrap_or_default();
        let bad = !profile.is_null() && !matches!(kind, "RuntimeDefault" | "Localhost");
        if bad {
            values.insert(kind.to_owned());
        }
        bad
    };
    let by_pod = bad(pod.context());
    let names = pod.those(|container| bad(&container["securityContext"]));
    let mut setters: Vec<String> = setters(by_pod, &names).into_iter().collect();
    let forbidden = pod.annotations().filter(|(key, value)| {
        key.starts_with("container.apparmor.security.beta.kubernetes.io/")
            && !value.is_empty()
            && *value != "runtime/default"
            && !value.starts_with("localhost/")
    });
    let mut annotations: Vec<String> = forbidden.map(|(key, value)| format!("{key}={value:?}")).collect();
    annotations.sort_unstable();
    if !annotations.is_empty() {
        setters.push(plural("annotation", "annotations", annotations.len()).to_owned());
    }
    if setters.is_empty() {
        return None;
    }
    let all: Vec<String> = values.into_iter().chain(annotations).collect();
    violation(
        plural("forbidden AppArmor profile", "forbidden AppArmor profiles", all.len()),
        format!("{} must not set AppArmor profile type to {}", setters.join(" and "), quoted(all)),
    )
}

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Who adds capabilities beyond those allowed, told.
fn added(pod: &Pod<'_>, allowed: &[&str]) -> Option<String> {
    let mut bad = BTreeSet::new();
    let names = pod.those(|container| {
        let before = bad.len();
        let mut any = false;
        for capability in strings(&container["securityContext"]["capabilities"]["add"]) {
            if !allowed.contains(&capability) {
                bad.insert(capability);
                any = true;
            }
        }
        any || bad.len() > before
    });
    (!names.is_empty()).then(|| {
        format!("{} must not include {} in securityContext.capabilities.add", containers(&names), quoted(bad))
    })
}

fn capabilities(pod: &Pod<'_>) -> Option<Violation> {
    violation("non-default capabilities", added(pod, &CAPABILITIES)?)
}

fn dropped_capabilities(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let keeps = |c: &Value| !strings(&c["securityContext"]["capabilities"]["drop"]).any(|name| name == "ALL");
    let keeping = pod.those(keeps);
    let kept = (!keeping.is_empty())
        .then(|| format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping)));
    let details: Vec<String> = kept.into_iter().chain(added(pod, &["NET_BIND_SERVICE"])).collect();
    if details.is_empty() { None } else { violation("unrestricted capabilities", details.join("; ")) }
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Violation> {
    let fields = ["hostIPC", "hostNetwork", "hostPID"];
    let set: Vec<&str> = fields.into_iter().filter(|field| pod.spec[field] == true).collect();
    if set.is_empty() { None } else { violation("host namespaces", set.join(", ")) }
}

fn volumes<'a>(pod: &Pod<'a>, bad: impl Fn(&Value) -> bool) -> Vec<&'a str> {
    let all = pod.spec["volumes"].as_array().into_iter().flatten();
    all.filter(|volume| bad(volume)).map(|volume| volume["name"].as_str().unwrap_or_default()).collect()
}

fn host_path_volumes(pod: &Pod<'_>) -> Option<Violation> {
    let names = volumes(pod, |volume| !volume["hostPath"].is_null());
    let detail = || format!("{} {}", plural("volume", "volumes", names.len()), quoted(&names));
    if names.is_empty() { None } else { violation("hostPath volumes", detail()) }
}

const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

fn volume_types(pod: &Pod<'_>) -> Option<Violation> {
    let names = volumes(pod, |volume| VOLUMES.iter().all(|kind| volume[kind].is_null()));
    if names.is_empty() {
        return None;
    }
    let all = pod.spec["volumes"].as_array().into_iter().flatten();
    let kinds: BTreeSet<&str> = all
        .filter(|volume| names.contains(&volume["name"].as_str().unwrap_or_default()))
        .map(|volume| {
            let mut fields = volume
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(key, value)| *key != "name" && !value.is_null());
            fields.next().map_or("unknown", |(key, _)| key.as_str())
        })
        .collect();
    violation(
        "restricted volume types",
        format!(
            "{} {} {} {} {}",
            plural("volume", "volumes", names.len()),
            quoted(&names),
            plural("uses", "use", names.len()),
            plural("restricted volume type", "restricted volume types", kinds.len()),
            quoted(&kinds)
        ),
    )
}

fn host_ports(pod: &Pod<'_>) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let names = pod.those(|container| {
        let own = container["ports"].as_array().into_iter().flatten();
        let own: Vec<String> = own
            .filter_map(|port| port["hostPort"].as_i64())
            .filter(|port| *port != 0)
            .map(|port| port.to_string())
            .collect();
        let any = !own.is_empty();
        ports.extend(own);
        any
    });
    if names.is_empty() {
        return None;
    }
    let listed: Vec<&str> = ports.iter().map(String::as_str).collect();
    let (uses, what) = (plural("uses", "use", names.len()), plural("hostPort", "hostPorts", ports.len()));
    violation("hostPort", format!("{} {uses} {what} {}", containers(&names), listed.join(", ")))
}

fn probe_hosts(pod: &Pod<'_>) -> Option<Violation> {
    const HANDLERS: [&str; 5] =
        ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"];
    let mut hosts = BTreeSet::new();
    let mut names = pod.those(|container| {
        let found = HANDLERS.iter().filter_map(|at| container.pointer(at)).flat_map(|handler| {
            ["httpGet", "tcpSocket"].into_iter().filter_map(|kind| handler[kind]["host"].as_str())
        });
        let found: Vec<&str> = found.filter(|host| !host.is_empty()).collect();
        let any = !found.is_empty();
        hosts.extend(found);
        any
    });
    if names.is_empty() {
        return None;
    }
    names.sort_unstable();
    let uses = plural("uses", "use", names.len());
    let what = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    violation("probe or lifecycle host", format!("{} {uses} {what} {}", containers(&names), quoted(hosts)))
}

fn privileged(pod: &Pod<'_>) -> Option<Violation> {
    let names = pod.those(|container| container["securityContext"]["privileged"] == true);
    let detail = || format!("{} must not set securityContext.privileged=true", containers(&names));
    if names.is_empty() { None } else { violation("privileged", detail()) }
}

fn proc_mount(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_in_user_namespace() {
        return None;
    }
    let mut kinds = BTreeSet::new();
    let names = pod.those(|container| {
        let kind = container["securityContext"]["procMount"].as_str().filter(|kind| *kind != "Default");
        kinds.extend(kind);
        kind.is_some()
    });
    let detail =
        || format!("{} must not set securityContext.procMount to {}", containers(&names), quoted(&kinds));
    if names.is_empty() { None } else { violation("procMount", detail()) }
}

fn selinux(pod: &Pod<'_>) -> Option<Violation> {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let minor = pod.minor;
    let mut bad = |context: &Value| {
        let text = |field: &str| context["seLinuxOptions"][field].as_str().unwrap_or_default().to_owned();
        let kind = text("type");
        let allowed = matches!(kind.as_str(), "" | "container_t" | "container_init_t" | "container_kvm_t")
            || minor >= 31 && kind == "container_engine_t";
        let (has_user, has_role) = (!text("user").is_empty(), !text("role").is_empty());
        if !allowed {
            types.insert(kind);
        }
        user |= has_user;
        role |= has_role;
        !allowed || has_user || has_role
    };
    let by_pod = bad(pod.context());
    let names = pod.those(|container| bad(&container["securityContext"]));
    let setters = setters(by_pod, &names)?;
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", plural("type", "types", types.len()), quoted(&types)));
    }
    if user {
        data.push("user may not be set".to_owned());
    }
    if role {
        data.push("role may not be set".to_owned());
    }
    violation(
        "seLinuxOptions",
        format!("{setters} set forbidden securityContext.seLinuxOptions: {}", data.join("; ")),
    )
}

/// Who sets which profile that is none of the runtime's or the host's.
fn bad_seccomp(pod: &Pod<'_>) -> Option<Violation> {
    let mut kinds = BTreeSet::new();
    let mut bad = |context: &Value| {
        let profile = &context["seccompProfile"];
        let kind = profile["type"].as_str().unwrap_or_default();
        let bad = !profile.is_null() && !matches!(kind, "RuntimeDefault" | "Localhost");
        if bad {
            kinds.insert(kind.to_owned());
        }
        bad
    };
    let by_pod = bad(pod.context());
    let names = pod.those(|container| bad(&container["securityContext"]));
    let setters = setters(by_pod, &names)?;
    violation(
        "seccompProfile",
        format!("{setters} must not set securityContext.seccompProfile.type to {}", quoted(kinds)),
    )
}

fn seccomp(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor >= 19 {
        return bad_seccomp(pod);
    }
    let own: Vec<String> = pod
        .those(|_| true)
        .iter()
        .map(|name| format!("container.seccomp.security.alpha.kubernetes.io/{name}"))
        .chain(["seccomp.security.alpha.kubernetes.io/pod".to_owned()])
        .collect();
    let forbidden: BTreeSet<String> = pod
        .annotations()
        .filter(|(key, value)| {
            own.iter().any(|own| own == key)
                && !matches!(*value, "runtime/default" | "docker/default")
                && !value.starts_with("localhost/")
        })
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    let listed: Vec<&str> = forbidden.iter().map(String::as_str).collect();
    let detail =
        || format!("forbidden {} {}", plural("annotation", "annotations", listed.len()), listed.join(", "));
    if listed.is_empty() { None } else { violation("seccompProfile", detail()) }
}

fn seccomp_set(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    if let Some(bad) = bad_seccomp(pod) {
        return Some(bad);
    }
    if !pod.context()["seccompProfile"].is_null() {
        return None;
    }
    let names = pod.those(|container| container["securityContext"]["seccompProfile"].is_null());
    let detail = || {
        format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            containers(&names)
        )
    };
    if names.is_empty() { None } else { violation("seccompProfile", detail()) }
}

/// Safe sysctls, with the version that added them.
const SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

fn sysctls(pod: &Pod<'_>) -> Option<Violation> {
    let safe = |name: &str| SYSCTLS.iter().any(|(known, since)| *known == name && pod.minor >= *since);
    let all = pod.context()["sysctls"].as_array().into_iter().flatten();
    let forbidden: Vec<&str> =
        all.filter_map(|sysctl| sysctl["name"].as_str()).filter(|name| !safe(name)).collect();
    if forbidden.is_empty() { None } else { violation("forbidden sysctls", forbidden.join(", ")) }
}

fn host_process(pod: &Pod<'_>) -> Option<Violation> {
    let set = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
    let names = pod.those(|container| set(&container["securityContext"]));
    let setters = setters(set(pod.context()), &names)?;
    violation(
        "hostProcess",
        format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"),
    )
}

fn privilege_escalation(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let names = pod.those(|container| container["securityContext"]["allowPrivilegeEscalation"] != false);
    let detail = || format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
    if names.is_empty() { None } else { violation("allowPrivilegeEscalation != false", detail()) }
}

fn run_as_non_root(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_in_user_namespace() {
        return None;
    }
    let says = |context: &Value| context["runAsNonRoot"].as_bool();
    let by_pod = says(pod.context());
    let bad = pod.those(|container| says(&container["securityContext"]) == Some(false));
    if let Some(setters) = setters(by_pod == Some(false), &bad) {
        return violation(
            "runAsNonRoot != true",
            format!("{setters} must not set securityContext.runAsNonRoot=false"),
        );
    }
    let silent = pod.those(|container| by_pod != Some(true) && says(&container["securityContext"]).is_none());
    let detail = || format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&silent));
    if silent.is_empty() { None } else { violation("runAsNonRoot != true", detail()) }
}

fn run_as_user(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_in_user_namespace() {
        return None;
    }
    let root = |context: &Value| context["runAsUser"] == 0;
    let names = pod.those(|container| root(&container["securityContext"]));
    let setters = setters(root(pod.context()), &names)?;
    violation("runAsUser=0", format!("{setters} must not set runAsUser=0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(level: Level, minor: u32, spec: Value) -> String {
        let found = violations(Policy { level, minor }, &json!({"metadata": {"name": "p"}, "spec": spec}));
        found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    fn one(context: Value) -> Value {
        json!({"containers": [{"name": "a", "securityContext": context}]})
    }

    #[test]
    fn a_plain_pod_is_baseline_and_not_restricted() {
        let plain = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        assert_eq!(told(Level::Privileged, LATEST, json!({"hostPID": true})), "");
        assert_eq!(told(Level::Baseline, LATEST, plain.clone()), "");
        assert_eq!(
            told(Level::Restricted, LATEST, plain),
            "allowPrivilegeEscalation != false (containers \"a\", \"b\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (containers \"a\", \"b\" must set securityContext.capabilities.drop=[\"ALL\"]), \
             runAsNonRoot != true (pod or containers \"a\", \"b\" must set securityContext.runAsNonRoot=true), \
             seccompProfile (pod or containers \"a\", \"b\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        let strict = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}]});
        assert_eq!(told(Level::Restricted, LATEST, strict), "");
    }

    #[test]
    fn baseline_forbids() {
        for (spec, expected) in [
            (json!({"hostNetwork": true, "hostPID": true}), "host namespaces (hostNetwork, hostPID)"),
            (
                one(json!({"privileged": true})),
                "privileged (container \"a\" must not set securityContext.privileged=true)",
            ),
            (
                one(json!({"capabilities": {"add": ["NET_RAW", "KILL", "BPF"]}})),
                "non-default capabilities (container \"a\" must not include \"BPF\", \"NET_RAW\" in securityContext.capabilities.add)",
            ),
            (
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
                "hostPath volumes (volume \"v\")",
            ),
            (
                json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}, {"hostPort": 443}, {"containerPort": 1}]}]}),
                "hostPort (container \"a\" uses hostPorts 443, 80)",
            ),
            (
                json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "x"}}}]}),
                "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"x\")",
            ),
            (
                one(json!({"procMount": "Unmasked"})),
                "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                json!({"securityContext": {"seLinuxOptions": {"type": "x", "user": "u"}}}),
                "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"x\"; user may not be set)",
            ),
            (
                one(json!({"seccompProfile": {"type": "Unconfined"}})),
                "seccompProfile (container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]}}),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
                "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
            ),
            (
                json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
                "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")",
            ),
        ] {
            assert_eq!(told(Level::Baseline, LATEST, spec), expected);
        }
    }

    #[test]
    fn versions_and_exceptions() {
        let sysctl = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}});
        assert_eq!(told(Level::Baseline, 31, sysctl), "forbidden sysctls (net.ipv4.tcp_rmem)");
        let probe = json!({"containers": [{"name": "a", "livenessProbe": {"tcpSocket": {"host": "x"}}}]});
        assert_eq!(told(Level::Baseline, 33, probe), "");
        let path = json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]});
        assert_eq!(
            told(Level::Restricted, 7, path),
            "restricted volume types (volume \"v\" uses restricted volume type \"hostPath\")"
        );
        let windows = json!({"os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true}, "containers": [{"name": "a"}]});
        assert_eq!(told(Level::Restricted, LATEST, windows), "");
        let users = json!({"hostUsers": false, "containers": [{"name": "a", "securityContext": {"runAsUser": 0, "procMount": "Unmasked",
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "Localhost"}}}]});
        assert_eq!(told(Level::Restricted, LATEST, users.clone()), "");
        assert!(
            told(Level::Restricted, 34, users)
                .contains("runAsUser=0 (container \"a\" must not set runAsUser=0)")
        );
    }
}
