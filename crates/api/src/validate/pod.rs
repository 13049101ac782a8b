//! Pods and Pod templates.

use super::at::{At, Errors, same};
use super::container::{self, Context};
use super::{affinity, resources, volume};
use crate::decode::{SyntaxError, decode_json};
use crate::field::{FieldError, Path};
use crate::{meta, names, object_meta, pod, predicates};
use k8s_openapi::api::core::v1::{Container, Toleration};
use k8s_openapi::serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
/// Before the name of a container, as the next one.
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
pub(super) const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const LOCAL_PROFILE: &str = "localhost/";
const DNS_POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCHES_MAX_CHARS: usize = 2048;
const SYSCTL_MAX_BYTES: usize = 253;
const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A Pod, on create and on update.
pub(super) fn validate(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    pod_annotations(&root, &spec, &Path::new("metadata").child("annotations"), &mut errors);
    pod_spec(&spec, meta::name(value), true, &mut errors);
    if spec.str("serviceAccountName").is_empty() {
        for volume in spec.items("volumes") {
            for source in volume.child("projected").items("sources").filter(|s| s.has("serviceAccountToken"))
            {
                errors.forbidden(
                    source.at("serviceAccountToken"),
                    "must not be specified when serviceAccountName is not set",
                );
            }
        }
    }
    errors.0
}

/// What only a new Pod must satisfy.
pub(super) fn validate_create(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    if !spec.list("ephemeralContainers").is_empty() {
        errors.forbidden(spec.at("ephemeralContainers"), "cannot be set on create");
    }
    if !spec.str("nodeName").is_empty() && !spec.list("schedulingGates").is_empty() {
        errors.forbidden(spec.at("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
    errors.0
}

/// The template of a workload.
pub(super) fn template(at: &At<'_>, errors: &mut Errors) {
    let (metadata, spec) = (at.child("metadata"), at.child("spec"));
    errors.extend(names::validate_labels(metadata.value.get("labels"), &at.at("labels")));
    errors
        .extend(object_meta::validate_annotations(metadata.value.get("annotations"), &at.at("annotations")));
    pod_annotations(at, &spec, &at.at("annotations"), errors);
    pod_spec(&spec, "", false, errors);
    if !spec.list("ephemeralContainers").is_empty() {
        errors.forbidden(spec.at("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

fn pod_annotations(holder: &At<'_>, spec: &At<'_>, path: &Path, errors: &mut Errors) {
    let annotation = |key: &str| meta::annotation(holder.value, key);
    if let Some(value) = annotation(MIRROR)
        && spec.str("nodeName").is_empty()
    {
        errors.invalid(path.key(MIRROR), value, "must set spec.nodeName if mirror pod annotation is set");
    }
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    if let Some(value) = annotation(COST) {
        let plain = !value.starts_with('+') && (value == "0" || !value.starts_with('0'));
        if !plain || value.parse::<i32>().is_err() {
            errors.invalid(path.key(COST), value, "must be a 32bit integer");
        }
    }
    if let Some(value) = annotation(TOLERATIONS).filter(|value| !value.is_empty()) {
        toleration_annotation(value, path, errors);
    }
    for (key, value) in holder.child("metadata").entries("annotations") {
        let value = value.as_str().unwrap_or_default();
        if key == SECCOMP_POD || key.starts_with(SECCOMP_CONTAINER) {
            match value.strip_prefix(LOCAL_PROFILE) {
                Some(file) => volume::local_descending(file, &path.child(key), errors),
                None if matches!(value, "runtime/default" | "docker/default" | "unconfined") => {}
                None => errors.invalid(path.child(key), value, "must be a valid seccomp profile"),
            }
        } else if let Some(name) = key.strip_prefix(APP_ARMOR) {
            if !pod::all_containers(spec.value).any(|(.., container)| container["name"] == name) {
                errors.invalid(path.key(key), name, "container not found");
            }
            if !matches!(value, "" | "runtime/default" | "unconfined") && !value.starts_with(LOCAL_PROFILE) {
                errors.invalid(path.key(key), value, format!("invalid AppArmor profile name: {value:?}"));
            }
        }
    }
}

/// Tolerations as JSON, as they were written before `spec.tolerations`.
fn toleration_annotation(text: &str, path: &Path, errors: &mut Errors) {
    let parsed = match decode_json(text.as_bytes()) {
        Ok(decoded) => match Option::<Vec<Toleration>>::deserialize(&decoded.value) {
            Ok(_) => Ok(decoded.value),
            Err(error) => Err(error.to_string()),
        },
        Err(SyntaxError::Json(why)) => Err(why),
        Err(error) => Err(error.to_string()),
    };
    match parsed {
        Ok(list) => {
            let holder = json!({ TOLERATIONS: list });
            affinity::tolerations(&At::new(Some(&holder), path.clone()), TOLERATIONS, errors);
        }
        Err(why) => errors.invalid(path.clone(), TOLERATIONS, why),
    }
}

fn pod_spec(spec: &At<'_>, pod_name: &str, is_pod: bool, errors: &mut Errors) {
    if !spec.has("terminationGracePeriodSeconds") {
        errors.required(spec.at("terminationGracePeriodSeconds"), "");
    }
    volume::volumes(spec, pod_name, is_pod, errors);
    resource_claims(spec, errors);
    let ctx = Context::of(spec.clone());
    container::containers(&ctx, is_pod, errors);
    resources::pod_level(spec, errors);
    host_network_ports(spec, is_pod, errors);
    errors.one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"]);
    errors.one_of(spec, "dnsPolicy", DNS_POLICIES);
    errors.extend(names::validate_labels(spec.value.get("nodeSelector"), &spec.at("nodeSelector")));
    security_context(spec, errors);
    if let Some(at) = spec.get("affinity") {
        affinity::affinity(&at, errors);
    }
    dns_config(spec, errors);
    for gate in spec.items("readinessGates") {
        let kind = gate.str("conditionType");
        errors.each(&gate.at("conditionType"), kind, names::is_qualified_name(kind));
    }
    scheduling_gates(spec, errors);
    affinity::topology_spread(spec, is_pod, errors);
    host_users(spec, errors);
    errors.checked(spec, "serviceAccountName", names::is_dns1123_subdomain);
    errors.checked(spec, "nodeName", names::is_dns1123_subdomain);
    errors.range(spec, "activeDeadlineSeconds", 1, i64::from(i32::MAX));
    errors.checked(spec, "hostname", names::is_dns1123_label);
    errors.checked(spec, "subdomain", names::is_dns1123_label);
    affinity::tolerations(spec, "tolerations", errors);
    for alias in spec.items("hostAliases") {
        errors.extend(names::is_ip(&alias.at("ip"), alias.str("ip")));
        for (i, name) in alias.strings("hostnames").enumerate() {
            errors.each(&alias.at("hostnames").index(i), name, names::is_dns1123_subdomain(name));
        }
    }
    errors.checked(spec, "priorityClassName", names::is_dns1123_subdomain);
    if spec.has("runtimeClassName") {
        let name = spec.str("runtimeClassName");
        errors.each(&spec.at("runtimeClassName"), name, names::is_dns1123_subdomain(name));
    }
    if spec.has("preemptionPolicy") {
        errors.one_of(spec, "preemptionPolicy", &["PreemptLowerPriority", "Never"]);
    }
    resources::overhead(spec, errors);
    operating_system(spec, errors);
}

fn resource_claims(spec: &At<'_>, errors: &mut Errors) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for at in spec.items("resourceClaims") {
        let name = at.str("name");
        if errors.need(&at, "name") {
            if seen.contains(&name) {
                errors.duplicate(at.at("name"), name);
            } else {
                errors.checked(&at, "name", names::is_dns1123_label);
            }
        }
        seen.insert(name);
        match (at.has("resourceClaimName"), at.has("resourceClaimTemplateName")) {
            (true, true) => {
                let why =
                    "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.invalid(at.path.clone(), at.value.clone(), why);
            }
            (false, false) => {
                let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errors.invalid(at.path.clone(), at.value.clone(), why);
            }
            _ => {}
        }
        errors.checked(&at, "resourceClaimName", names::is_dns1123_subdomain);
        errors.checked(&at, "resourceClaimTemplateName", names::is_dns1123_subdomain);
    }
}

/// On the host's network a port has only one number. Templates may leave the host port out.
fn host_network_ports(spec: &At<'_>, is_pod: bool, errors: &mut Errors) {
    if !spec.bool("hostNetwork") {
        return;
    }
    for container in spec.items("containers") {
        for port in container.items("ports") {
            let (host, own) = (port.int("hostPort").unwrap_or(0), port.int("containerPort").unwrap_or(0));
            if (is_pod || host != 0) && host != own {
                errors.invalid(
                    port.at("hostPort"),
                    host,
                    "must match `containerPort` when `hostNetwork` is true",
                );
            }
        }
    }
}

fn security_context(spec: &At<'_>, errors: &mut Errors) {
    let Some(at) = spec.get("securityContext") else { return };
    const ID_MAX: i64 = u32::MAX as i64;
    errors.range(&at, "fsGroup", 0, ID_MAX);
    container::shared_security_context(&at, errors);
    for (i, group) in at.list("supplementalGroups").iter().enumerate() {
        for message in names::in_range(group.as_i64().unwrap_or(0), 0, ID_MAX) {
            errors.invalid(at.at("supplementalGroups").index(i), group.clone(), message);
        }
    }
    if spec.bool("shareProcessNamespace") && spec.bool("hostPID") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(at.at("shareProcessNamespace"), true, why);
    }
    sysctls(spec, &at, errors);
    errors.optional_one_of(&at, "fsGroupChangePolicy", &["Always", "OnRootMismatch"]);
    errors.optional_one_of(&at, "supplementalGroupsPolicy", &["Merge", "Strict"]);
    errors.optional_one_of(&at, "seLinuxChangePolicy", &["MountOption", "Recursive"]);
}

fn is_sysctl_name(name: &str) -> bool {
    let segment = |segment: &str| {
        let end = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = segment.as_bytes();
        bytes.first().is_some_and(|b| end(*b))
            && bytes.last().is_some_and(|b| end(*b))
            && bytes.iter().all(|b| end(*b) || matches!(b, b'-' | b'_'))
    };
    name.len() <= SYSCTL_MAX_BYTES && name.split(['.', '/']).all(segment)
}

fn sysctls(spec: &At<'_>, context: &At<'_>, errors: &mut Errors) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for at in context.items("sysctls") {
        let name = at.str("name");
        if errors.need(&at, "name") {
            if !is_sysctl_name(name) {
                let why = format!(
                    "must have at most {SYSCTL_MAX_BYTES} characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"
                );
                errors.invalid(at.at("name"), name, why);
            } else if seen.contains(&name) {
                errors.duplicate(at.at("name"), name);
            }
        }
        seen.insert(name);
        let dotted = name.replace('/', ".");
        let is_ipc =
            ["kernel.sem", "kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p));
        if spec.bool("hostNetwork") && dotted.starts_with("net.") {
            errors.invalid(at.at("name"), name, "may not be specified when 'hostNetwork' is true");
        } else if spec.bool("hostIPC") && is_ipc {
            errors.invalid(at.at("name"), name, "may not be specified when 'hostIPC' is true");
        }
    }
}

fn dns_config(spec: &At<'_>, errors: &mut Errors) {
    let none = spec.str("dnsPolicy") == "None";
    let Some(at) = spec.get("dnsConfig") else {
        if none {
            errors.required(spec.at("dnsConfig"), "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        return;
    };
    let (servers, searches) = (at.list("nameservers"), at.list("searches"));
    if none && servers.is_empty() {
        errors.required(
            at.at("nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        );
        return;
    }
    if servers.len() > NAMESERVERS_MAX {
        let why = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.invalid(at.at("nameservers"), Value::from(servers), why);
    }
    for (i, server) in at.strings("nameservers").enumerate() {
        errors.extend(names::is_ip(&at.at("nameservers").index(i), server));
    }
    if searches.len() > SEARCHES_MAX {
        let why = format!("must not have more than {SEARCHES_MAX} search paths");
        errors.invalid(at.at("searches"), Value::from(searches), why);
    }
    let chars = at.strings("searches").map(str::len).sum::<usize>() + searches.len().saturating_sub(1);
    if chars > SEARCHES_MAX_CHARS {
        let why = format!(
            "must not have more than {SEARCHES_MAX_CHARS} characters (including spaces) in the search list"
        );
        errors.invalid(at.at("searches"), Value::from(searches), why);
    }
    for (i, search) in at.strings("searches").enumerate() {
        // The root alone and names with underscores are allowed (relaxed rule, on since v1.33).
        let name = search.strip_suffix('.').unwrap_or(search);
        if search != "." {
            errors.each(&at.at("searches").index(i), name, names::is_dns1123_subdomain_with_underscore(name));
        }
    }
    for option in at.items("options").filter(|option| option.str("name").is_empty()) {
        errors.required(option.path, "must not be empty");
    }
}

fn scheduling_gates(spec: &At<'_>, errors: &mut Errors) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for gate in spec.items("schedulingGates") {
        let name = gate.str("name");
        errors.each(&gate.path, name, names::is_qualified_name(name));
        if seen.contains(&name) {
            errors.duplicate(gate.path.clone(), name);
        }
        seen.insert(name);
    }
}

fn host_users(spec: &At<'_>, errors: &mut Errors) {
    if spec.value.get("hostUsers").and_then(Value::as_bool) != Some(false) {
        return;
    }
    for (field, path) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.bool(field) {
            errors.forbidden(spec.at(path), "when `hostUsers` is false");
        }
    }
}

fn operating_system(spec: &At<'_>, errors: &mut Errors) {
    let Some(os) = spec.get("os") else { return };
    match os.str("name") {
        "" => errors.required(os.at("name"), "cannot be empty"),
        "linux" => {
            let why = "windows options cannot be set for a linux pod";
            if spec.child("securityContext").has("windowsOptions") {
                errors.forbidden(spec.at("securityContext").child("windowsOptions"), why);
            }
            for (field, i, container) in pod::all_containers(spec.value) {
                if container.get("securityContext").is_some_and(|s| s.get("windowsOptions").is_some()) {
                    let path = spec.at(field).index(i).child("securityContext").child("windowsOptions");
                    errors.forbidden(path, why);
                }
            }
        }
        "windows" => windows(spec, errors),
        other => errors.not_supported(os.path, other, &["linux", "windows"]),
    }
}

fn windows(spec: &At<'_>, errors: &mut Errors) {
    const WHY: &str = "cannot be set for a windows pod";
    const POD: &[&str] = &[
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "fsGroup",
        "fsGroupChangePolicy",
        "sysctls",
        "runAsUser",
        "runAsGroup",
        "supplementalGroups",
        "supplementalGroupsPolicy",
    ];
    const CONTAINER: &[&str] = &[
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    for field in ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"] {
        if spec.has(field) {
            errors.forbidden(spec.at(field), WHY);
        }
    }
    let context = spec.child("securityContext");
    for field in POD.iter().filter(|field| context.has(field)) {
        errors.forbidden(context.at(field), WHY);
    }
    for (list, i, container) in pod::all_containers(spec.value) {
        let context =
            At::new(container.get("securityContext"), spec.at(list).index(i).child("securityContext"));
        for field in CONTAINER.iter().filter(|field| context.has(field)) {
            errors.forbidden(context.at(field), WHY);
        }
    }
}

/// What may change in a Pod: images, the deadline, more tolerations, fewer scheduling gates.
pub(super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    annotation_updates(new, old, &mut errors);
    let (new_root, old_root) = (At::root(new), At::root(old));
    let (spec, old_spec) = (new_root.child("spec"), old_root.child("spec"));
    for list in ["containers", "initContainers"] {
        if spec.list(list).len() != old_spec.list(list).len() {
            errors.forbidden(spec.at(list), "pod updates may not add or remove containers");
            return errors.0;
        }
    }
    let (deadline, old_deadline) = (spec.int("activeDeadlineSeconds"), old_spec.int("activeDeadlineSeconds"));
    match (deadline, old_deadline) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            errors.range(&spec, "activeDeadlineSeconds", 0, i64::from(i32::MAX));
            return errors.0;
        }
        (Some(new), Some(old)) if old < new => {
            errors.invalid(
                spec.at("activeDeadlineSeconds"),
                new,
                "must be less than or equal to previous value",
            );
            return errors.0;
        }
        (None, Some(_)) => {
            let why = "must not update from a positive integer to nil value";
            errors.invalid(spec.at("activeDeadlineSeconds"), Value::Null, why);
        }
        _ => {}
    }
    only_added_tolerations(&spec, &old_spec, &mut errors);
    only_deleted_gates(&spec, &old_spec, &mut errors);
    if same(Some(spec.value), Some(old_spec.value)) {
        return errors.0;
    }
    if pod::qos_class(new) != pod::qos_class(old) {
        let class = new.get("status").and_then(|s| s.get("qosClass")).cloned().unwrap_or_default();
        errors.invalid(Path::new("metadata"), class, "Pod QoS is immutable");
    }
    let munged = munge(&spec, &old_spec, &mut errors);
    if !same(Some(&munged), Some(old_spec.value)) {
        let changes = changed_paths(&munged, old_spec.value, &Path::new("spec")).join("\n");
        errors.forbidden(
            spec.path.clone(),
            format!("pod updates may not change fields other than {UPDATABLE}\n{changes}"),
        );
    }
    errors.0
}

/// Annotations that are part of what a Pod is stay as they are.
fn annotation_updates(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("metadata").child("annotations");
    let (now, had) = (At::root(new).child("metadata"), At::root(old).child("metadata"));
    let what = |key: &str| match key {
        MIRROR => Some("mirror pod annotation"),
        _ => key.starts_with(APP_ARMOR).then_some("AppArmor annotations"),
    };
    for (key, value) in had.entries("annotations") {
        if let Some(what) = what(key).filter(|_| meta::annotation(new, key) != value.as_str()) {
            errors.forbidden(path.key(key), format!("may not remove or update {what}"));
        }
    }
    for (key, _) in now.entries("annotations") {
        if let Some(what) = what(key).filter(|_| meta::annotation(old, key).is_none()) {
            errors.forbidden(path.key(key), format!("may not add {what}"));
        }
    }
}

fn only_added_tolerations(new: &At<'_>, old: &At<'_>, errors: &mut Errors) {
    let strip = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Some(map) = toleration.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        toleration
    };
    let now: Vec<Value> = new.list("tolerations").iter().map(strip).collect();
    if !old.list("tolerations").iter().all(|had| now.contains(&strip(had))) {
        errors.forbidden(
            new.at("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
}

fn only_deleted_gates(new: &At<'_>, old: &At<'_>, errors: &mut Errors) {
    let had: Vec<&str> = old.list("schedulingGates").iter().filter_map(|g| g.get("name")?.as_str()).collect();
    for gate in new.items("schedulingGates").filter(|gate| !had.contains(&gate.str("name"))) {
        let why = format!("only deletion is allowed, but found new scheduling gate '{}'", gate.str("name"));
        errors.forbidden(gate.at("name"), why);
    }
}

/// The new spec with all that may change taken from the old one.
fn munge(new: &At<'_>, old: &At<'_>, errors: &mut Errors) -> Value {
    let mut spec = new.value.clone();
    let Some(fields) = spec.as_object_mut() else { return spec };
    for list in ["containers", "initContainers"] {
        let olds = old.list(list);
        for (i, container) in
            fields.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().enumerate()
        {
            if let (Some(image), Some(container)) =
                (olds.get(i).and_then(|c| c.get("image")), container.as_object_mut())
            {
                container.insert("image".into(), image.clone());
            }
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        restore(fields, field, old.value);
    }
    let grace = "terminationGracePeriodSeconds";
    if old.int(grace).is_some_and(|s| s < 0) && new.int(grace) == Some(1) {
        restore(fields, grace, old.value);
    }
    // A Pod that no scheduler has seen may still narrow down where it goes.
    if !old.list("schedulingGates").is_empty() {
        if !same(new.value.get("nodeSelector"), old.value.get("nodeSelector")) {
            let kept =
                old.entries("nodeSelector").all(|(k, v)| new.child("nodeSelector").value.get(k) == Some(v));
            if !kept {
                let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
                errors.invalid(new.at("nodeSelector"), new.child("nodeSelector").value.clone(), why);
            }
            restore(fields, "nodeSelector", old.value);
        }
        gated_node_affinity(new, old, fields, errors);
    }
    spec
}

fn restore(fields: &mut Map<String, Value>, field: &str, from: &Value) {
    match from.get(field) {
        Some(value) => {
            fields.insert(field.to_owned(), value.clone());
        }
        None => {
            fields.remove(field);
        }
    }
}

fn gated_node_affinity(new: &At<'_>, old: &At<'_>, fields: &mut Map<String, Value>, errors: &mut Errors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let of = |spec: &At<'_>| spec.value.get("affinity").and_then(|a| a.get("nodeAffinity")).cloned();
    let (affinity, old_affinity) = (of(new), of(old));
    if same(affinity.as_ref(), old_affinity.as_ref()) {
        return;
    }
    let terms = |affinity: &Option<Value>| -> Vec<Value> {
        let list = affinity.as_ref().and_then(|a| a.get(REQUIRED)?.get("nodeSelectorTerms")?.as_array());
        list.cloned().unwrap_or_default()
    };
    let (terms, old_terms) = (terms(&affinity), terms(&old_affinity));
    let path = new.at("affinity").child("nodeAffinity").child(REQUIRED).child("nodeSelectorTerms");
    if !old_terms.is_empty() && terms.len() != old_terms.len() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.invalid(path, Value::from(terms), why);
    } else {
        for (i, (term, old_term)) in terms.iter().zip(&old_terms).enumerate() {
            let list = |term: &Value, field: &str| {
                term.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
            };
            let grows = ["matchExpressions", "matchFields"]
                .iter()
                .all(|f| list(term, f).starts_with(&list(old_term, f)));
            let was_empty = ["matchExpressions", "matchFields"].iter().all(|f| list(old_term, f).is_empty());
            if !grows || was_empty && !same(Some(term), Some(old_term)) {
                errors.invalid(
                    path.index(i),
                    term.clone(),
                    "only additions are allowed (no mutations or deletions)",
                );
            }
        }
    }
    let mut whole = fields.get("affinity").cloned().unwrap_or_else(|| json!({}));
    if let Some(map) = whole.as_object_mut() {
        match old_affinity {
            Some(old) => map.insert("nodeAffinity".into(), old),
            None => map.remove("nodeAffinity"),
        };
        if map.is_empty() {
            fields.remove("affinity");
        } else {
            fields.insert("affinity".into(), whole);
        }
    }
}

/// Which fields differ, as a hint in the message. Upstream shows a diff of its Go structs here.
pub(super) fn changed_paths(new: &Value, old: &Value, path: &Path) -> Vec<String> {
    fn walk(new: Option<&Value>, old: Option<&Value>, path: &Path, out: &mut Vec<String>) {
        if same(new, old) {
            return;
        }
        match (new, old) {
            (Some(Value::Object(a)), Some(Value::Object(b))) => {
                for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                    walk(a.get(key), b.get(key), &path.child(key), out);
                }
            }
            (Some(Value::Array(a)), Some(Value::Array(b))) if a.len() == b.len() => {
                for (i, (a, b)) in a.iter().zip(b).enumerate() {
                    walk(Some(a), Some(b), &path.index(i), out);
                }
            }
            _ => {
                let text = |v: Option<&Value>| v.map_or_else(|| "nil".to_owned(), Value::to_string);
                out.push(format!("  {path}:\n-  {}\n+  {}", text(old), text(new)));
            }
        }
    }
    let mut out = Vec::new();
    walk(Some(new), Some(old), path, &mut out);
    out
}

/// What the node may say of its Pod.
pub(super) fn validate_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    annotation_updates(new, old, &mut errors);
    let (root, old_root) = (At::root(new), At::root(old));
    let (status, old_status) = (root.child("status"), old_root.child("status"));
    let spec = root.child("spec");
    pod_annotations(&root, &spec, &Path::new("metadata").child("annotations"), &mut errors);
    for condition in status.items("conditions") {
        observed(&condition, &mut errors);
        let kind = condition.str("type");
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            errors.each(&condition.at("Type"), kind, names::is_qualified_name(kind));
        }
    }
    let nominated = status.str("nominatedNodeName");
    if nominated != old_status.str("nominatedNodeName") {
        errors.checked(&status, "nominatedNodeName", names::is_dns1123_subdomain);
        if !nominated.is_empty() && !old_root.child("spec").str("nodeName").is_empty() {
            let why = "may not be set on pods that are already bound to a node";
            errors.forbidden(status.at("nominatedNodeName"), why);
        }
    }
    observed(&status, &mut errors);
    errors.immutable(&status, &old_status, "qosClass");
    for list in STATUSES {
        stays_terminated(&root, &status, &old_status, list.0, &mut errors);
        for at in status.items(list.0) {
            user(&at.child("user"), &spec, &mut errors);
            let container = spec.items(list.1).find(|c| c.str("name") == at.str("name"));
            resource_statuses(&at, list.1, container.as_ref(), &mut errors);
        }
    }
    claim_statuses(&root, &status, &mut errors);
    addresses(&status, &old_status, &mut errors);
    errors.0
}

/// Lists of statuses, and where their containers are.
const STATUSES: [(&str, &str); 3] = [
    ("containerStatuses", "containers"),
    ("initContainerStatuses", "initContainers"),
    ("ephemeralContainerStatuses", "ephemeralContainers"),
];

fn observed(at: &At<'_>, errors: &mut Errors) {
    if let Some(n) = at.int("observedGeneration").filter(|n| *n < 0) {
        errors.invalid(at.at("observedGeneration"), n, "must be a non-negative integer");
    }
}

/// Who a container runs as.
fn user(at: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    let Some(linux) = at.get("linux") else { return };
    if spec.child("os").str("name") == "windows" {
        return errors.forbidden(linux.path, "cannot be set for a windows pod");
    }
    let max = i64::from(i32::MAX);
    for field in ["uid", "gid"] {
        errors.range(&linux, field, 0, max);
    }
    for group in linux.items("supplementalGroups") {
        for message in group.value.as_i64().into_iter().flat_map(|id| names::in_range(id, 0, max)) {
            errors.invalid(group.path.clone(), group.value.clone(), message);
        }
    }
}

/// How the devices of a container are: it must have asked for them, and each is told once.
fn resource_statuses(status: &At<'_>, list: &str, container: Option<&At<'_>>, errors: &mut Errors) {
    const FIELD: &str = "allocatedResourcesStatus";
    if list == "ephemeralContainers" {
        if !status.list(FIELD).is_empty() {
            errors.forbidden(status.at(FIELD), "must not be specified in container status");
        }
        return;
    }
    for at in status.items(FIELD) {
        let name = at.str("name");
        let wrong = container.map(|c| c.child("resources")).and_then(|resources| match name.strip_prefix("claim:") {
            Some(claim) => {
                let is_it = |c: At<'_>| match c.str("request") {
                    "" => claim == c.str("name"),
                    request => claim.split_once('/') == Some((c.str("name"), request)),
                };
                let why = "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty";
                (!resources.items("claims").any(is_it)).then_some(why)
            }
            None => {
                let why = "must match one of the container's resource requests";
                (!resources.child("requests").has(name)).then_some(why)
            }
        });
        if let Some(why) = wrong {
            errors.invalid(at.at("name"), name, why);
        }
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for resource in at.items("resources") {
            let health = resource.str("health");
            if !HEALTH.contains(&health) {
                errors.not_supported(resource.at("health"), health, HEALTH);
            }
            if !seen.insert(resource.str("resourceID")) {
                errors.duplicate(resource.at("resourceID"), resource.str("resourceID"));
            }
        }
    }
}

const HEALTH: &[&str] = &["Healthy", "Unhealthy", "Unknown"];

/// A container that must not restart stays terminated.
fn stays_terminated(root: &At<'_>, new: &At<'_>, old: &At<'_>, list: &str, errors: &mut Errors) {
    let spec = root.child("spec");
    let (containers, is_init) = match list {
        "containerStatuses" => ("containers", false),
        "initContainerStatuses" => ("initContainers", true),
        _ => ("ephemeralContainers", false),
    };
    let restarts = |name: &str, exit_code: i64| {
        let found = spec.items(containers).find(|c| c.str("name") == name);
        let Some(at) = found.filter(|_| containers != "ephemeralContainers") else { return false };
        // A Pod that starts anew after its sandbox was lost begins with its init containers.
        let plain = !at.has("restartPolicy") && !at.has("restartPolicyRules");
        let container = Container::deserialize(at.value).unwrap_or_default();
        let policy = Some(spec.str("restartPolicy"));
        plain && policy == Some("Always")
            || predicates::restarts(policy, &container, is_init, i32::try_from(exit_code).unwrap_or(i32::MAX))
    };
    for (i, had) in old.items(list).enumerate() {
        let Some(terminated) = had.child("state").get("terminated") else { continue };
        let name = had.str("name");
        let revived =
            new.items(list).any(|now| now.str("name") == name && !now.child("state").has("terminated"));
        if revived && !restarts(name, terminated.int("exitCode").unwrap_or(0)) {
            errors.forbidden(
                new.at(list).index(i).child("state"),
                "may not be transitioned to non-terminated state",
            );
        }
    }
}

fn claim_statuses(root: &At<'_>, status: &At<'_>, errors: &mut Errors) {
    let spec = root.child("spec");
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for at in status.items("resourceClaimStatuses") {
        let name = at.str("name");
        if !spec.items("resourceClaims").any(|claim| claim.str("name") == name) {
            errors.invalid(at.at("name"), name, "must match the name of an entry in `spec.resourceClaims`");
        }
        if seen.contains(&name) {
            errors.duplicate(at.at("name"), name);
        }
        seen.insert(name);
    }
}

/// Wrong addresses that were there may stay.
fn addresses(status: &At<'_>, old: &At<'_>, errors: &mut Errors) {
    for (single, list) in [("podIP", "podIPs"), ("hostIP", "hostIPs")] {
        let ips: Vec<&str> = status.list(list).iter().filter_map(|ip| ip.get("ip")?.as_str()).collect();
        if single == "hostIP"
            && let Some(first) = ips.first()
            && *first != status.str(single)
        {
            errors.invalid(status.at(list).index(0).child("ip"), *first, "must be equal to `hostIP`");
        }
        for (i, ip) in ips.iter().enumerate() {
            if !old.list(list).iter().any(|had| had["ip"] == **ip) {
                errors.extend(names::is_ip(&status.at(list).index(i), ip));
            }
            if ips[..i].contains(ip) {
                errors.duplicate(status.at(list).index(i), status.list(list)[i].clone());
            }
        }
        let families = |v6: bool| {
            ips.iter().filter_map(|ip| names::parse_ip(ip)).filter(|ip| ip.is_ipv6() == v6).count()
        };
        if families(false) > 1 || families(true) > 1 {
            let why = "may specify no more than one IP for each IP family";
            errors.invalid(status.at(list), Value::from(status.list(list)), why);
        }
    }
}

/// A new Pod starts Pending with its QoS class; label keys of affinity terms become selectors.
pub(super) fn prepare_create(value: &mut Value) {
    let qos = pod::qos_class(value);
    let mut status = json!({ "phase": "Pending", "qosClass": qos });
    let labels = meta::labels(value).cloned().unwrap_or_default();
    if let Some(spec) = value.get_mut("spec") {
        merge_label_keys(spec, &labels);
        let gated =
            spec.get("schedulingGates").and_then(Value::as_array).is_some_and(|gates| !gates.is_empty());
        if gated {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
    }
    if let Some(pod) = value.as_object_mut() {
        pod.insert("status".into(), status);
    }
}

/// The QoS class stays where a node leaves it out, nor does a node give a Pod to an owner.
pub(super) fn prepare_status(new: &mut Value, old: &Value) {
    meta::keep(new, old, "ownerReferences");
    let class = old.get("status").and_then(|s| s.get("qosClass")).cloned();
    if let (Some(class), Some(status)) = (class, new.get_mut("status").and_then(Value::as_object_mut))
        && status.get("qosClass").and_then(Value::as_str).unwrap_or_default().is_empty()
    {
        status.insert("qosClass".into(), class);
    }
}

fn merge_label_keys(spec: &mut Value, labels: &Map<String, Value>) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = spec.get_mut("affinity").and_then(|a| a.get_mut(kind)) else { continue };
        for term in affinity.get_mut(REQUIRED).and_then(Value::as_array_mut).into_iter().flatten() {
            merge_into_selector(term, labels);
        }
        for preferred in affinity.get_mut(PREFERRED).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(term) = preferred.get_mut("podAffinityTerm") {
                merge_into_selector(term, labels);
            }
        }
    }
    for constraint in
        spec.get_mut("topologySpreadConstraints").and_then(Value::as_array_mut).into_iter().flatten()
    {
        merge_into_selector(constraint, labels);
    }
}

fn merge_into_selector(term: &mut Value, labels: &Map<String, Value>) {
    if term.get("labelSelector").is_none_or(Value::is_null) {
        return;
    }
    let mut added = Vec::new();
    for (list, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in term.get(list).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if let Some(value) = labels.get(key) {
                added.push(json!({ "key": key, "operator": operator, "values": [value] }));
            }
        }
    }
    if added.is_empty() {
        return;
    }
    let Some(selector) = term.get_mut("labelSelector").and_then(Value::as_object_mut) else { return };
    match selector.get_mut("matchExpressions").and_then(Value::as_array_mut) {
        Some(expressions) => expressions.extend(added),
        None => {
            selector.insert("matchExpressions".into(), Value::Array(added));
        }
    }
}
