//! Security contexts and resources of a Pod and its container, merged into what the runtime
//! enforces. Pure. Upstream counterparts: `pkg/securitycontext`, `pkg/kubelet/cm/helpers_linux.go`,
//! `pkg/kubelet/qos/policy.go`.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use skeg_api::predicates::{Resources as Amounts, pod_limits, pod_requests, resource_lists};
use skeg_runtime::{Resources, Seccomp, Security, User};
use std::path::Path;

/// What containers may do unless told otherwise: the set Docker and containerd grant.
pub const DEFAULT_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

const ALL_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
const QUOTA_PERIOD_US: u64 = 100_000;
const MIN_QUOTA_US: i64 = 1000;
/// Priority of `system-node-critical`.
const NODE_CRITICAL_PRIORITY: i32 = 2_000_001_000;

pub fn security(
    spec: &PodSpec,
    container: &Container,
    seccomp_default: bool,
    profiles: &Path,
) -> Result<Security, String> {
    let own = container.security_context.as_ref();
    let privileged = own.and_then(|s| s.privileged).unwrap_or(false);
    let capabilities = capabilities(container, privileged)?;
    let no_new_privileges = own.and_then(|s| s.allow_privilege_escalation) == Some(false) && !privileged;
    let profile = own
        .and_then(|s| s.seccomp_profile.as_ref())
        .or_else(|| spec.security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref()));
    let seccomp = match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        _ if privileged => Seccomp::Unconfined,
        None if seccomp_default => Seccomp::RuntimeDefault,
        None | Some(("Unconfined", _)) => Seccomp::Unconfined,
        Some(("RuntimeDefault", _)) => Seccomp::RuntimeDefault,
        Some(("Localhost", Some(name))) => Seccomp::Localhost(profiles.join(name)),
        Some((other, _)) => return Err(format!("unsupported seccomp profile type {other:?}")),
    };
    let apparmor = own
        .and_then(|s| s.app_armor_profile.as_ref())
        .or_else(|| spec.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref()));
    if let Some(profile) = apparmor.filter(|p| p.type_ == "Localhost") {
        let name = profile.localhost_profile.as_deref().unwrap_or_default();
        return Err(format!("AppArmor profile {name:?} cannot be enforced on this node"));
    }
    Ok(Security {
        privileged,
        capabilities,
        no_new_privileges,
        seccomp,
        read_only_root: own.and_then(|s| s.read_only_root_filesystem).unwrap_or(false),
        unmasked_proc: privileged || own.and_then(|s| s.proc_mount.as_deref()) == Some("Unmasked"),
    })
}

fn capabilities(container: &Container, privileged: bool) -> Result<Vec<String>, String> {
    if privileged {
        return Ok(ALL_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect());
    }
    let asked = container.security_context.as_ref().and_then(|s| s.capabilities.as_ref());
    let list = |names: Option<&Vec<String>>| -> Vec<String> {
        names
            .into_iter()
            .flatten()
            .map(|name| {
                let name = name.to_ascii_uppercase();
                if name == "ALL" || name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
            })
            .collect()
    };
    let add = list(asked.and_then(|c| c.add.as_ref()));
    let drop = list(asked.and_then(|c| c.drop.as_ref()));
    if let Some(unknown) = add.iter().find(|c| *c != "ALL" && !ALL_CAPABILITIES.contains(&c.as_str())) {
        return Err(format!("unknown capability \"{unknown}\" to add"));
    }
    let has_all = |l: &[String]| l.iter().any(|c| c == "ALL");
    // `add: ALL` and `drop: ALL` set the ground; named ones then change it.
    let ground: &[&str] = match (has_all(&add), has_all(&drop)) {
        (true, _) => ALL_CAPABILITIES,
        (false, true) => &[],
        (false, false) => DEFAULT_CAPABILITIES,
    };
    let mut out: Vec<String> = ground.iter().map(|c| (*c).to_owned()).collect();
    for capability in add.iter().filter(|c| *c != "ALL") {
        if !out.contains(capability) {
            out.push(capability.clone());
        }
    }
    out.retain(|c| !drop.contains(c));
    out.sort();
    Ok(out)
}

/// Who the container's process is. `image_user` is what the image says.
pub fn user(pod: &Pod, container: &Container, image_user: &str) -> Result<User, String> {
    let spec = crate::machine::spec(pod);
    let own = container.security_context.as_ref();
    let shared = spec.security_context.as_ref();
    let uid = own.and_then(|s| s.run_as_user).or(shared.and_then(|s| s.run_as_user));
    let gid = own.and_then(|s| s.run_as_group).or(shared.and_then(|s| s.run_as_group));
    let non_root =
        own.and_then(|s| s.run_as_non_root).or(shared.and_then(|s| s.run_as_non_root)).unwrap_or(false);
    if non_root {
        let meta = &pod.metadata;
        let whose = format!(
            "(pod: \"{}_{}({})\", container: {})",
            crate::text(&meta.name),
            crate::text(&meta.namespace),
            crate::text(&meta.uid),
            container.name
        );
        let name = image_user.split(':').next().unwrap_or_default();
        match uid {
            Some(0) => return Err(format!("container's runAsUser breaks non-root policy {whose}")),
            Some(_) => {}
            None if name.is_empty() || name == "0" => {
                return Err(format!("container has runAsNonRoot and image will run as root {whose}"));
            }
            None if name.parse::<u32>().is_err() => {
                return Err(format!(
                    "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {whose}"
                ));
            }
            None => {}
        }
    }
    let mut groups: Vec<u32> = Vec::new();
    for group in shared.and_then(|s| s.supplemental_groups.as_ref()).into_iter().flatten() {
        groups.extend(u32::try_from(*group));
    }
    groups.extend(shared.and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok()));
    Ok(User {
        image_user: image_user.to_owned(),
        uid: uid.and_then(|u| u32::try_from(u).ok()),
        gid: gid.and_then(|g| u32::try_from(g).ok()),
        supplemental_groups: groups,
        merge_image_groups: shared.and_then(|s| s.supplemental_groups_policy.as_deref()) != Some("Strict"),
        must_not_be_root: non_root,
    })
}

/// Limits of one container.
pub fn resources(pod: &Pod, container: &Container, qos_class: &str, memory_capacity: i64) -> Resources {
    let (requests, limits) = resource_lists(container.resources.as_ref());
    let mut out = limits_of(&requests, &limits);
    out.oom_score_adj = Some(oom_score_adj(pod, &requests, qos_class, memory_capacity));
    out
}

/// Limits of the Pod as a whole: a limit applies where every container has one, or the Pod itself.
pub fn pod_resources(pod: &Pod) -> Resources {
    let spec = crate::machine::spec(pod);
    let requests = pod_requests(pod);
    let mut limits = pod_limits(pod);
    let own = spec.resources.as_ref().and_then(|r| r.limits.as_ref());
    limits.retain(|name, _| {
        own.is_some_and(|l| l.contains_key(name))
            || spec.containers.iter().all(|c| {
                let (_, limits) = resource_lists(c.resources.as_ref());
                limits.get(name).is_some_and(|l| !l.is_zero())
            })
    });
    limits_of(&requests, &limits)
}

fn limits_of(requests: &Amounts, limits: &Amounts) -> Resources {
    let cpu_limit = limits.get("cpu").filter(|q| !q.is_zero()).map(|q| q.millis());
    let cpu_request = requests.get("cpu").map(|q| q.millis()).or(cpu_limit).unwrap_or(0);
    let shares = (cpu_request.max(0) as u64 * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES);
    let quota = cpu_limit.map(|millis| (millis * QUOTA_PERIOD_US as i64 / 1000).max(MIN_QUOTA_US));
    Resources {
        cpu_shares: Some(shares),
        cpu_quota_us: quota,
        cpu_period_us: quota.map(|_| QUOTA_PERIOD_US),
        memory_limit_bytes: limits.get("memory").filter(|q| !q.is_zero()).map(|q| q.units()),
        pids_limit: None,
        oom_score_adj: None,
    }
}

fn oom_score_adj(pod: &Pod, requests: &Amounts, qos_class: &str, memory_capacity: i64) -> i32 {
    let critical = crate::machine::spec(pod).priority.is_some_and(|p| p >= NODE_CRITICAL_PRIORITY);
    match qos_class {
        _ if critical => -997,
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = requests.get("memory").map_or(0, |q| q.units());
            let share = 1000 - (1000.0 * request as f64 / memory_capacity.max(1) as f64) as i64;
            // Between guaranteed (1000 - 997 = 3 above it) and best effort.
            share.clamp(3, 999) as i32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(context: Value, container: Value) -> Pod {
        let mut container = container;
        container["name"] = "c".into();
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": context, "containers": [container]}}))
        .unwrap()
    }

    fn of(pod: &Pod) -> (&PodSpec, &Container) {
        let spec = pod.spec.as_ref().unwrap();
        (spec, &spec.containers[0])
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        for (asked, expected) in [
            (json!({}), DEFAULT_CAPABILITIES.len()),
            (json!({"drop": ["ALL"]}), 0),
            (json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}), 1),
            (json!({"drop": ["NET_RAW"], "add": ["CAP_SYS_TIME"]}), DEFAULT_CAPABILITIES.len()),
            (json!({"add": ["ALL"]}), ALL_CAPABILITIES.len()),
        ] {
            let pod = pod(json!({}), json!({"securityContext": {"capabilities": asked}}));
            let (spec, container) = of(&pod);
            let security = security(spec, container, true, Path::new("/p")).unwrap();
            assert_eq!(security.capabilities.len(), expected, "{asked}");
            assert_eq!(security.seccomp, Seccomp::RuntimeDefault);
        }
    }

    #[test]
    fn containers_override_their_pod() {
        let shared = json!({"runAsUser": 5, "runAsGroup": 6, "fsGroup": 7, "supplementalGroups": [8],
            "seccompProfile": {"type": "Unconfined"}});
        let pod = pod(shared, json!({"securityContext": {"runAsUser": 9, "privileged": false}}));
        let (spec, container) = of(&pod);
        let who = user(&pod, container, "root").unwrap();
        assert_eq!((who.uid, who.gid, who.supplemental_groups), (Some(9), Some(6), vec![8, 7]));
        assert!(who.merge_image_groups, "the image's groups count as well, unless told otherwise");
        assert_eq!(security(spec, container, true, Path::new("/p")).unwrap().seccomp, Seccomp::Unconfined);
        let strict =
            self::pod(json!({"supplementalGroupsPolicy": "Strict", "supplementalGroups": [8]}), json!({}));
        assert!(!user(&strict, of(&strict).1, "root").unwrap().merge_image_groups);
        let own = json!({"procMount": "Unmasked", "seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"}});
        let pod = self::pod(json!({}), json!({"securityContext": own}));
        let (spec, container) = of(&pod);
        let found = security(spec, container, true, Path::new("/p")).unwrap();
        assert!(found.unmasked_proc);
        assert_eq!(found.seccomp, Seccomp::Localhost("/p/a/b.json".into()));
    }

    #[test]
    fn root_is_refused_where_it_must_not_be() {
        let non_root = pod(json!({"runAsNonRoot": true}), json!({}));
        let (_, container) = of(&non_root);
        let whose = "(pod: \"p_n(u)\", container: c)";
        assert_eq!(
            user(&non_root, container, "").unwrap_err(),
            format!("container has runAsNonRoot and image will run as root {whose}")
        );
        assert_eq!(
            user(&non_root, container, "nginx").unwrap_err(),
            format!(
                "container has runAsNonRoot and image has non-numeric user (nginx), cannot verify user is non-root {whose}"
            )
        );
        assert!(user(&non_root, container, "101:101").is_ok());
    }

    #[test]
    fn limits_become_shares_and_quota() {
        let pod = pod(
            json!({}),
            json!({"resources": {"limits": {"cpu": "500m", "memory": "32Mi"}, "requests": {"cpu": "250m"}}}),
        );
        let (_, container) = of(&pod);
        let found = resources(&pod, container, "Burstable", 1 << 30);
        assert_eq!(
            (found.cpu_shares, found.cpu_quota_us, found.memory_limit_bytes),
            (Some(256), Some(50_000), Some(32 << 20))
        );
        assert_eq!(found.oom_score_adj, Some(999));
        assert_eq!(pod_resources(&pod).memory_limit_bytes, Some(32 << 20));
    }
}
