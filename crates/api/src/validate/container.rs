//! Containers of every sort: ports, environment, mounts, probes, hooks, security context.

use super::at::{At, Errors};
use super::{resources, volume};
use crate::field::{FieldError, Path};
use crate::names;
use crate::quantity::Quantity;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const ONE_HANDLER: &str = "may not specify more than 1 handler type";
const RESTART_RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const ONLY_SIDECARS: &str = "may not be set for init containers without restartPolicy=Always";
const NOT_EPHEMERAL: &str = "cannot be set for an Ephemeral Container";

/// What the containers of a Pod need to know of it.
pub(super) struct Context<'a> {
    pub spec: At<'a>,
    pub claims: Vec<&'a str>,
    pub grace_period_seconds: Option<i64>,
    pub host_users: bool,
    pub restart_policy: &'a str,
    volumes: BTreeMap<&'a str, &'a Value>,
}

impl<'a> Context<'a> {
    pub fn of(spec: At<'a>) -> Self {
        let claims = spec.list("resourceClaims").iter();
        Context {
            claims: claims.filter_map(|c| c.get("name")?.as_str()).filter(|name| !name.is_empty()).collect(),
            grace_period_seconds: spec.int("terminationGracePeriodSeconds"),
            host_users: spec.value.get("hostUsers").and_then(Value::as_bool).unwrap_or(true),
            restart_policy: spec.str("restartPolicy"),
            volumes: spec
                .list("volumes")
                .iter()
                .filter_map(|v| Some((v.get("name")?.as_str()?, v)))
                .collect(),
            spec,
        }
    }

    fn volume(&self, name: &str) -> Option<&'a Value> {
        self.volumes.get(name).copied()
    }
}

/// Main, init and ephemeral containers.
pub(super) fn containers(ctx: &Context<'_>, is_pod: bool, errors: &mut Errors) {
    main_containers(ctx, errors);
    init_containers(ctx, errors);
    ephemeral_containers(ctx, errors);
    if is_pod {
        for (field, i, container) in crate::pod::all_containers(ctx.spec.value) {
            let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
            if image.trim() != image {
                let path = ctx.spec.at(field).index(i).child("image");
                errors.invalid(path, image, "must not have leading or trailing whitespace");
            }
        }
    }
}

fn main_containers(ctx: &Context<'_>, errors: &mut Errors) {
    if ctx.spec.list("containers").is_empty() {
        errors.required(ctx.spec.at("containers"), "");
        return;
    }
    let (mut seen, mut host_ports): (BTreeSet<&str>, BTreeSet<String>) = Default::default();
    for at in ctx.spec.items("containers") {
        common(&at, ctx, errors);
        let name = at.str("name");
        if seen.contains(&name) {
            errors.duplicate(at.at("name"), name);
        }
        seen.insert(name);
        lifecycle_and_probes(&at, ctx, errors);
        restarts(&at, errors);
    }
    for at in ctx.spec.items("containers") {
        unique_host_ports(&at, &mut host_ports, errors);
    }
}

/// As [`Errors::one_of`], but what is missing is as unknown as any other value.
fn known(at: &At<'_>, name: &str, supported: &[&str], errors: &mut Errors) {
    if !supported.contains(&at.str(name)) {
        errors.not_supported(at.at(name), at.str(name), supported);
    }
}

/// A container's own restart policy, and rules that look at its exit code first.
fn restarts(at: &At<'_>, errors: &mut Errors) {
    errors.optional_one_of(at, "restartPolicy", &["Always", "Never", "OnFailure"]);
    let rules = at.list("restartPolicyRules");
    if !rules.is_empty() && !at.has("restartPolicy") {
        errors.required(at.at("restartPolicy"), "must specify restartPolicy when restart rules are used");
    }
    if rules.len() > RESTART_RULES_MAX {
        errors.push(FieldError::too_many(at.at("restartPolicyRules"), rules.len(), RESTART_RULES_MAX));
    }
    for rule in at.items("restartPolicyRules") {
        known(&rule, "action", &["Restart", "RestartAllContainers"], errors);
        if !rule.has("exitCodes") {
            errors.required(rule.at("exitCodes"), "must be specified");
            continue;
        }
        let codes = rule.child("exitCodes");
        known(&codes, "operator", &["In", "NotIn"], errors);
        let values = codes.list("values").len();
        if values > EXIT_CODES_MAX {
            errors.push(FieldError::too_many(codes.at("values"), values, EXIT_CODES_MAX));
        }
    }
}

fn init_containers(ctx: &Context<'_>, errors: &mut Errors) {
    let main = ctx.spec.list("containers").iter();
    let mut seen: BTreeSet<&str> = main.filter_map(|c| c.get("name")?.as_str()).collect();
    for at in ctx.spec.items("initContainers") {
        common(&at, ctx, errors);
        restarts(&at, errors);
        let name = at.str("name");
        if seen.contains(&name) {
            errors.duplicate(at.at("name"), name);
        } else if !name.is_empty() {
            seen.insert(name);
        }
        // Ordinary init containers run one by one, so each is checked alone.
        unique_host_ports(&at, &mut BTreeSet::new(), errors);
        if at.str("restartPolicy") == "Always" {
            lifecycle_and_probes(&at, ctx, errors);
        } else {
            for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if at.has(field) {
                    errors.forbidden(at.at(field), ONLY_SIDECARS);
                }
            }
            if at.has("resizePolicy") {
                let value = Value::from(at.list("resizePolicy"));
                errors.invalid(at.at("resizePolicy"), value, "must not be set for init containers");
            }
        }
    }
}

fn ephemeral_containers(ctx: &Context<'_>, errors: &mut Errors) {
    let named =
        |list: &str| ctx.spec.list(list).iter().filter_map(|c| c.get("name")?.as_str()).collect::<Vec<_>>();
    let others: BTreeSet<&str> =
        [named("containers"), named("initContainers")].concat().into_iter().collect();
    let mut seen = others.clone();
    for at in ctx.spec.items("ephemeralContainers") {
        common(&at, ctx, errors);
        let (name, target) = (at.str("name"), at.str("targetContainerName"));
        if seen.contains(&name) {
            errors.duplicate(at.at("name"), name);
        }
        seen.insert(name);
        if !target.is_empty() && !others.contains(&target) {
            errors.push(crate::field::FieldError::not_found(at.at("targetContainerName"), target));
        }
        for field in [
            "ports",
            "resources",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
            "resizePolicy",
            "restartPolicy",
            "restartPolicyRules",
        ] {
            let set = at.value.get(field).is_some_and(|v| match v {
                Value::Null => false,
                Value::Array(items) => !items.is_empty(),
                Value::Object(map) => field != "resources" || !map.is_empty(),
                _ => true,
            });
            if set {
                errors.forbidden(at.at(field), NOT_EPHEMERAL);
            }
        }
        for mount in at.items("volumeMounts") {
            for field in ["subPath", "subPathExpr"] {
                if !mount.str(field).is_empty() {
                    errors.forbidden(mount.at(field), NOT_EPHEMERAL);
                }
            }
        }
    }
}

fn common(at: &At<'_>, ctx: &Context<'_>, errors: &mut Errors) {
    if errors.need(at, "name") {
        errors.checked(at, "name", names::is_dns1123_label);
    }
    errors.need(at, "image");
    errors.one_of(at, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"]);
    ports(at, errors);
    env(at, errors);
    env_from(at, errors);
    volume_mounts(at, ctx, errors);
    volume_devices(at, ctx, errors);
    errors.one_of(at, "imagePullPolicy", PULL_POLICIES);
    if let Some(requirements) = at.get("resources") {
        resources::requirements(&requirements, &ctx.claims, errors);
    }
    resize_policy(at, ctx, errors);
    if let Some(security) = at.get("securityContext") {
        security_context(&security, ctx.host_users, errors);
    }
}

fn ports(container: &At<'_>, errors: &mut Errors) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for at in container.items("ports") {
        let name = at.str("name");
        if !name.is_empty() {
            let messages = names::is_port_name(name);
            if !messages.is_empty() {
                errors.each(&at.at("name"), name, messages);
            } else if seen.contains(&name) {
                errors.duplicate(at.at("name"), name);
            } else {
                seen.insert(name);
            }
        }
        match at.int("containerPort") {
            None | Some(0) => errors.required(at.at("containerPort"), ""),
            Some(_) => errors.range(&at, "containerPort", 1, 65535),
        }
        if at.int("hostPort").is_some_and(|port| port != 0) {
            errors.range(&at, "hostPort", 1, 65535);
        }
        errors.one_of(&at, "protocol", PROTOCOLS);
    }
}

fn unique_host_ports(container: &At<'_>, seen: &mut BTreeSet<String>, errors: &mut Errors) {
    for at in container.items("ports") {
        let Some(port) = at.int("hostPort").filter(|port| *port != 0) else { continue };
        let key = format!("{}/{}/{port}", at.str("protocol"), at.str("hostIP"));
        if seen.contains(&key) {
            errors.duplicate(at.at("hostPort"), key);
        } else {
            seen.insert(key);
        }
    }
}

fn env(container: &At<'_>, errors: &mut Errors) {
    for at in container.items("env") {
        if errors.need(&at, "name") {
            errors.checked(&at, "name", names::is_env_var_name);
        }
        let Some(from) = at.get("valueFrom") else { continue };
        let mut sources = 0;
        if let Some(field) = from.get("fieldRef") {
            sources += 1;
            field_ref(&field, ENV_FIELDS, errors);
        }
        if let Some(resource) = from.get("resourceFieldRef") {
            sources += 1;
            resource_field_ref(&resource, false, errors);
        }
        for reference in ["configMapKeyRef", "secretKeyRef"] {
            if let Some(reference) = from.get(reference) {
                sources += 1;
                let name = reference.str("name");
                errors.each(&reference.at("name"), name, names::is_dns1123_subdomain(name));
                if errors.need(&reference, "key") {
                    errors.checked(&reference, "key", names::is_config_map_key);
                }
            }
        }
        if let Some(file) = from.get("fileKeyRef") {
            sources += 1;
            errors.need(&file, "volumeName");
            errors.need(&file, "path");
            errors.need(&file, "key");
        }
        if sources == 0 {
            let why =
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
            errors.invalid(from.path, "", why);
        } else if !at.str("value").is_empty() {
            errors.invalid(from.path, "", "may not be specified when `value` is not empty");
        } else if sources > 1 {
            errors.invalid(from.path, "", "may not have more than one field specified at a time");
        }
    }
}

fn env_from(container: &At<'_>, errors: &mut Errors) {
    for at in container.items("envFrom") {
        errors.checked(&at, "prefix", names::is_env_var_name);
        let mut sources = 0;
        for reference in ["configMapRef", "secretRef"] {
            if let Some(reference) = at.get(reference) {
                sources += 1;
                if errors.need(&reference, "name") {
                    let name = reference.str("name");
                    let messages = names::check_name(crate::kinds::NameRule::Subdomain, name, true);
                    errors.each(&reference.at("name"), name, messages);
                }
            }
        }
        match sources {
            0 => errors.invalid(
                container.at("envFrom"),
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            ),
            1 => {}
            _ => errors.invalid(
                container.at("envFrom"),
                "",
                "may not have more than one field specified at a time",
            ),
        }
    }
}

/// Fields that `fieldRef` may name in an environment variable.
pub(super) const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields that `fieldRef` may name in a downward API volume.
pub(super) const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Fields of a Pod that have a name in the downward API at all.
const POD_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "spec.hostNetwork",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
];

/// `path['key']` → path and key.
pub fn split_subscript(path: &str) -> Option<(&str, &str)> {
    let (path, key) = path.strip_suffix("']")?.split_once("['")?;
    (!path.is_empty()).then_some((path, key))
}

/// An ObjectFieldSelector.
pub(super) fn field_ref(at: &At<'_>, supported: &[&str], errors: &mut Errors) {
    if !errors.need(at, "apiVersion") || !errors.need(at, "fieldPath") {
        return;
    }
    let (version, path) = (at.str("apiVersion"), at.str("fieldPath"));
    let unsupported = if version != "v1" {
        Some(format!("unsupported pod version: {version}"))
    } else if let Some((base, _)) = split_subscript(path) {
        (!matches!(base, "metadata.annotations" | "metadata.labels"))
            .then(|| format!("field label does not support subscript: {path}"))
    } else {
        (!POD_FIELDS.contains(&path)).then(|| format!("field label not supported: {path}"))
    };
    if let Some(why) = unsupported {
        errors.invalid(at.at("fieldPath"), path, format!("error converting fieldPath: {why}"));
        return;
    }
    match split_subscript(path) {
        Some((base, key)) => {
            let key = if base == "metadata.annotations" { key.to_lowercase() } else { key.to_owned() };
            errors.each(&at.path, &key, names::is_qualified_name(&key));
        }
        None if !supported.contains(&path) => errors.not_supported(at.at("fieldPath"), path, supported),
        None => {}
    }
}

const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const BYTE_DIVISORS: &[&str] =
    &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// A ResourceFieldSelector; in volumes it must name its container.
pub(super) fn resource_field_ref(at: &At<'_>, in_volume: bool, errors: &mut Errors) {
    let resource = at.str("resource");
    let huge = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if in_volume && at.str("containerName").is_empty() {
        errors.required(at.at("containerName"), "");
    } else if resource.is_empty() {
        errors.required(at.at("resource"), "");
    } else if !huge && !RESOURCE_FIELDS.contains(&resource) {
        errors.not_supported(at.at("resource"), resource, RESOURCE_FIELDS);
    }
    let Some(divisor) = at.quantity("divisor").filter(|d| !d.is_zero()).map(|d: Quantity| d.to_string())
    else {
        return;
    };
    let of_bytes = |what: &str| {
        format!(
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the {what} resource"
        )
    };
    let why = match resource.split_once('.').map_or("", |(_, name)| name) {
        "cpu" if !matches!(divisor.as_str(), "1" | "1m") => {
            "only divisor's values 1m and 1 are supported with the cpu resource".to_owned()
        }
        _ if BYTE_DIVISORS.contains(&divisor.as_str()) => return,
        "memory" => of_bytes("memory"),
        "ephemeral-storage" => of_bytes("local ephemeral storage"),
        _ if huge => of_bytes("hugepages"),
        _ => return,
    };
    errors.invalid(at.at("divisor"), resource, why);
}

/// The values of two fields over a list.
fn texts<'a>(at: &At<'a>, list: &str, fields: [&str; 2]) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
    let of = |field: &str| at.list(list).iter().filter_map(|item| item.get(field)?.as_str()).collect();
    (of(fields[0]), of(fields[1]))
}

fn volume_mounts(container: &At<'_>, ctx: &Context<'_>, errors: &mut Errors) {
    let list = container.at("volumeMounts");
    let (device_names, device_paths) = texts(container, "volumeDevices", ["name", "devicePath"]);
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for at in container.items("volumeMounts") {
        let (name, path) = (at.str("name"), at.str("mountPath"));
        errors.need(&at, "name");
        if ctx.volume(name).is_none() {
            errors.push(crate::field::FieldError::not_found(at.at("name"), name));
        }
        errors.need(&at, "mountPath");
        if seen.contains(&path) {
            errors.invalid(at.at("mountPath"), path, "must be unique");
        }
        seen.insert(path);
        if device_names.contains(name) {
            errors.invalid(at.at("name"), name, "must not already exist in volumeDevices");
        }
        if device_paths.contains(path) {
            errors.invalid(at.at("mountPath"), path, "must not already exist as a path in volumeDevices");
        }
        volume::local_descending(at.str("subPath"), &list.child("subPath"), errors);
        let expression = at.str("subPathExpr");
        if !expression.is_empty() && !at.str("subPath").is_empty() {
            errors.invalid(
                at.at("subPathExpr"),
                expression,
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        volume::local_descending(expression, &list.child("subPathExpr"), errors);
        mount_propagation(&at, container, &list, errors);
        recursive_read_only(&at, &list.child("recursiveReadOnly"), errors);
    }
}

fn mount_propagation(mount: &At<'_>, container: &At<'_>, list: &Path, errors: &mut Errors) {
    let Some(propagation) = mount.value.get("mountPropagation").and_then(Value::as_str) else { return };
    let path = list.child("mountPropagation");
    match propagation {
        "None" | "HostToContainer" => {}
        "Bidirectional" => {
            if !container.child("securityContext").bool("privileged") {
                errors.forbidden(
                    path,
                    "Bidirectional mount propagation is available only to privileged containers",
                );
            }
        }
        other => errors.not_supported(path, other, &["Bidirectional", "HostToContainer", "None"]),
    }
}

fn recursive_read_only(mount: &At<'_>, path: &Path, errors: &mut Errors) {
    match mount.value.get("recursiveReadOnly").and_then(Value::as_str) {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !mount.bool("readOnly") {
                errors.forbidden(path.clone(), "may only be specified when readOnly is true");
            }
            let propagation = mount.str("mountPropagation");
            if !matches!(propagation, "" | "None") {
                errors.forbidden(
                    path.clone(),
                    "may only be specified when mountPropagation is None or not specified",
                );
            }
        }
        Some(other) => errors.not_supported(path.clone(), other, &["Disabled", "IfPossible", "Enabled"]),
    }
}

fn volume_devices(container: &At<'_>, ctx: &Context<'_>, errors: &mut Errors) {
    let (mount_names, mount_paths) = texts(container, "volumeMounts", ["name", "mountPath"]);
    let (mut names, mut paths): (BTreeSet<&str>, BTreeSet<&str>) = Default::default();
    for at in container.items("volumeDevices") {
        let (name, path) = (at.str("name"), at.str("devicePath"));
        errors.need(&at, "name");
        if names.contains(&name) {
            errors.invalid(at.at("name"), name, "must be unique");
        }
        match ctx.volume(name) {
            None => errors.push(crate::field::FieldError::not_found(at.at("name"), name)),
            Some(v) if v.get("persistentVolumeClaim").is_none() && v.get("ephemeral").is_none() => {
                let why =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(at.at("name"), name, why);
            }
            Some(_) => {}
        }
        errors.need(&at, "devicePath");
        if paths.contains(&path) {
            errors.invalid(at.at("devicePath"), path, "must be unique");
        }
        if path.split('/').any(|part| part == "..") {
            errors.invalid(at.at("devicePath"), path, "can not contain backsteps ('..')");
        }
        if mount_names.contains(name) {
            errors.invalid(at.at("name"), name, "must not already exist in volumeMounts");
        }
        if mount_paths.contains(path) {
            errors.invalid(at.at("devicePath"), path, "must not already exist as a path in volumeMounts");
        }
        names.insert(name);
        paths.insert(path);
    }
}

fn resize_policy(container: &At<'_>, ctx: &Context<'_>, errors: &mut Errors) {
    let path = container.at("resizePolicy");
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for at in container.items("resizePolicy") {
        let (resource, policy) = (at.str("resourceName"), at.str("restartPolicy"));
        if seen.contains(&resource) {
            errors.duplicate(at.path.clone(), resource);
        }
        seen.insert(resource);
        for (value, supported) in
            [(resource, &["cpu", "memory"]), (policy, &["NotRequired", "RestartContainer"])]
        {
            if value.is_empty() {
                errors.required(path.clone(), "");
            } else if !supported.contains(&value) {
                errors.not_supported(path.clone(), value, supported);
            }
        }
        if ctx.restart_policy == "Never" && policy != "NotRequired" {
            errors.invalid(path.clone(), policy, "must be 'NotRequired' when `restartPolicy` is 'Never'");
        }
    }
}

fn lifecycle_and_probes(at: &At<'_>, ctx: &Context<'_>, errors: &mut Errors) {
    if let Some(lifecycle) = at.get("lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.get(hook) {
                handler(&hook, ctx, &["exec", "httpGet", "tcpSocket", "sleep"], errors);
            }
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let readiness = probe == "readinessProbe";
        let Some(probe) = at.get(probe) else { continue };
        handler(&probe, ctx, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
        errors.not_negative(
            &probe,
            &[
                "initialDelaySeconds",
                "timeoutSeconds",
                "periodSeconds",
                "successThreshold",
                "failureThreshold",
            ],
        );
        let grace = probe.int("terminationGracePeriodSeconds");
        if let Some(seconds) = grace.filter(|s| *s <= 0) {
            errors.invalid(probe.at("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
        }
        if readiness && let Some(seconds) = grace {
            errors.invalid(
                probe.at("terminationGracePeriodSeconds"),
                seconds,
                "must not be set for readinessProbes",
            );
        }
        let successes = probe.int("successThreshold").unwrap_or(0);
        if !readiness && successes != 1 {
            errors.invalid(probe.at("successThreshold"), successes, "must be 1");
        }
    }
}

fn handler(at: &At<'_>, ctx: &Context<'_>, kinds: &[&str], errors: &mut Errors) {
    let mut count = 0;
    for kind in kinds {
        let Some(action) = at.get(kind) else { continue };
        count += 1;
        if count > 1 {
            errors.forbidden(action.path, ONE_HANDLER);
            continue;
        }
        match *kind {
            "exec" if action.list("command").is_empty() => errors.required(action.at("command"), ""),
            "exec" => {}
            "httpGet" => {
                errors.need(&action, "path");
                port_number_or_name(&action, "port", errors);
                if !matches!(action.str("scheme"), "HTTP" | "HTTPS") {
                    errors.not_supported(action.at("scheme"), action.str("scheme"), &["HTTP", "HTTPS"]);
                }
                for header in action.items("httpHeaders") {
                    let name = header.str("name");
                    errors.each(&action.at("httpHeaders"), name, names::is_http_header_name(name));
                }
            }
            "sleep" => {
                let (seconds, grace) =
                    (action.int("seconds").unwrap_or(0), ctx.grace_period_seconds.unwrap_or(0));
                if seconds < 0 || seconds > grace {
                    let why =
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    errors.invalid(action.path, seconds, why);
                }
            }
            _ => port_number_or_name(&action, "port", errors),
        }
    }
    if count == 0 {
        errors.required(at.path.clone(), "must specify a handler type");
    }
}

/// A port as a number or as the name of a container port.
pub(super) fn port_number_or_name(at: &At<'_>, name: &str, errors: &mut Errors) {
    match at.value.get(name) {
        Some(Value::String(text)) => errors.each(&at.at(name), text, names::is_port_name(text)),
        other => {
            let port = other.and_then(Value::as_i64).unwrap_or(0);
            for message in names::is_port_number(port) {
                errors.invalid(at.at(name), port, message);
            }
        }
    }
}

const ID_MAX: i64 = u32::MAX as i64;

/// User and group ids, seccomp, AppArmor: what Pod and container contexts share.
pub(super) fn shared_security_context(at: &At<'_>, errors: &mut Errors) {
    errors.range(at, "runAsUser", 0, ID_MAX);
    errors.range(at, "runAsGroup", 0, ID_MAX);
    for (field, what) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        let Some(profile) = at.get(field) else { continue };
        let kinds = &["Localhost", "RuntimeDefault", "Unconfined"];
        match profile.str("type") {
            "" => errors.required(profile.at("type"), &format!("type is required when {field} is set")),
            "Localhost" => match profile.value.get("localhostProfile").and_then(Value::as_str) {
                None => {
                    errors.required(
                        profile.at("localhostProfile"),
                        &format!("must be set when {what} type is Localhost"),
                    );
                }
                Some(path) if field == "seccompProfile" => {
                    volume::local_descending(path, &profile.at("localhostProfile"), errors);
                }
                Some(name) if name.trim() != name => {
                    errors.invalid(
                        profile.at("localhostProfile"),
                        name,
                        "must not be padded with whitespace",
                    );
                }
                Some("") => {
                    errors.required(
                        profile.at("localhostProfile"),
                        "must be set when AppArmor type is Localhost",
                    );
                }
                Some(_) => {}
            },
            kind => {
                if !kinds.contains(&kind) {
                    errors.not_supported(profile.at("type"), kind, kinds);
                }
                if profile.has("localhostProfile") {
                    let value = profile.str("localhostProfile");
                    let why = format!("can only be set when {what} type is Localhost");
                    errors.invalid(profile.at("localhostProfile"), value, why);
                }
            }
        }
    }
}

fn security_context(at: &At<'_>, host_users: bool, errors: &mut Errors) {
    shared_security_context(at, errors);
    errors.optional_one_of(at, "procMount", &["Default", "Unmasked"]);
    if host_users && at.str("procMount") == "Unmasked" {
        errors.invalid(at.at("procMount"), "Unmasked", "`hostUsers` must be false to use `Unmasked`");
    }
    if at.value.get("allowPrivilegeEscalation").and_then(Value::as_bool) == Some(false) {
        if at.bool("privileged") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid(at.path.clone(), at.value.clone(), why);
        }
        if at.child("capabilities").strings("add").any(|cap| cap == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(at.path.clone(), at.value.clone(), why);
        }
    }
}
