//! A container's environment, and fields and resources of a Pod as text. Pure.
//! Upstream counterparts: `makeEnvironmentVariables`, `pkg/fieldpath`, `pkg/kubelet/envvars`.

use crate::sources::Sources;
use crate::text;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector, Service};
use skeg_api::expansion::expand;
use skeg_api::quantity::Quantity;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

/// What a container's configuration is computed from.
pub struct Facts<'a> {
    pub pod: &'a Pod,
    pub pod_ips: &'a [String],
    pub host_ips: &'a [String],
    pub node_name: &'a str,
    /// Stands in for limits that are not set.
    pub allocatable: &'a BTreeMap<String, Quantity>,
}

/// The container's own variables, in order; names are unique, the last value wins.
pub fn environment(
    facts: &Facts<'_>,
    container: &Container,
    sources: &Sources,
    services: &[Arc<Service>],
) -> Result<Vec<(String, String)>, String> {
    let service_env = service_environment(facts.pod, services);
    let ns = text(&facts.pod.metadata.namespace);
    let mut env = Ordered::default();
    for from in container.env_from.iter().flatten() {
        let prefix = text(&from.prefix);
        if let Some(wanted) = &from.config_map_ref {
            match sources.config_map(&wanted.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        env.set(format!("{prefix}{key}"), value.clone());
                    }
                }
                None if wanted.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", wanted.name)),
            }
        }
        if let Some(wanted) = &from.secret_ref {
            match sources.secret(&wanted.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        env.set(format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if wanted.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", wanted.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = &variable.value {
            let value =
                expand(value, |name| env.get(name).cloned().or_else(|| service_env.get(name).cloned()));
            env.set(variable.name.clone(), value);
            continue;
        }
        let Some(source) = &variable.value_from else {
            env.set(variable.name.clone(), String::new());
            continue;
        };
        if let Some(wanted) = &source.field_ref {
            env.set(variable.name.clone(), field(facts, &wanted.field_path)?);
        } else if let Some(wanted) = &source.resource_field_ref {
            env.set(variable.name.clone(), resource(facts, container, wanted)?);
        } else if let Some(wanted) = &source.config_map_key_ref {
            let optional = wanted.optional == Some(true);
            let map = sources.config_map(&wanted.name);
            match (map, map.and_then(|m| m.data.as_ref()).and_then(|d| d.get(&wanted.key))) {
                (_, Some(value)) => env.set(variable.name.clone(), value.clone()),
                _ if optional => {}
                (None, _) => return Err(format!("configmap \"{}\" not found", wanted.name)),
                _ => {
                    return Err(format!(
                        "couldn't find key {} in ConfigMap {ns}/{}",
                        wanted.key, wanted.name
                    ));
                }
            }
        } else if let Some(wanted) = &source.secret_key_ref {
            let optional = wanted.optional == Some(true);
            let secret = sources.secret(&wanted.name);
            match (secret, secret.and_then(|m| m.data.as_ref()).and_then(|d| d.get(&wanted.key))) {
                (_, Some(value)) => {
                    env.set(variable.name.clone(), String::from_utf8_lossy(&value.0).into_owned())
                }
                _ if optional => {}
                (None, _) => return Err(format!("secret \"{}\" not found", wanted.name)),
                _ => return Err(format!("couldn't find key {} in Secret {ns}/{}", wanted.key, wanted.name)),
            }
        } else if source.file_key_ref.is_some() {
            return Err(format!("environment variable {}: fileKeyRef is not supported", variable.name));
        }
    }
    for (name, value) in service_env {
        if env.get(&name).is_none() {
            env.set(name, value);
        }
    }
    Ok(env.list)
}

/// Variables in the order they were first set.
#[derive(Default)]
pub struct Ordered {
    pub list: Vec<(String, String)>,
}

impl Ordered {
    pub fn get(&self, name: &str) -> Option<&String> {
        self.list.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    pub fn set(&mut self, name: String, value: String) {
        match self.list.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => *old = value,
            None => self.list.push((name, value)),
        }
    }
}

/// Docker-links variables of the Pod's namespace and, in any case, of `default/kubernetes`.
fn service_environment(pod: &Pod, services: &[Arc<Service>]) -> BTreeMap<String, String> {
    let ns = text(&pod.metadata.namespace);
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let (service_ns, name) = (text(&service.metadata.namespace), text(&service.metadata.name));
        let has_ip = service
            .spec
            .as_ref()
            .and_then(|s| s.cluster_ip.as_deref())
            .is_some_and(|ip| !ip.is_empty() && ip != "None");
        if !has_ip {
            continue;
        }
        if service_ns == ns && links {
            chosen.insert(name, service);
        } else if service_ns == "default" && name == "kubernetes" {
            chosen.entry(name).or_insert(service);
        }
    }
    let mut env = BTreeMap::new();
    for (name, service) in chosen {
        let Some(spec) = &service.spec else { continue };
        let ip = text(&spec.cluster_ip);
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let prefix = name.to_ascii_uppercase().replace('-', "_");
        env.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
        for (n, port) in spec.ports.iter().flatten().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let lower = protocol.to_ascii_lowercase();
            let url = format!("{lower}://{host}:{}", port.port);
            if n == 0 {
                env.insert(format!("{prefix}_SERVICE_PORT"), port.port.to_string());
                env.insert(format!("{prefix}_PORT"), url.clone());
            }
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                let port_name = port_name.to_ascii_uppercase().replace('-', "_");
                env.insert(format!("{prefix}_SERVICE_PORT_{port_name}"), port.port.to_string());
            }
            let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_ascii_uppercase());
            env.insert(port_prefix.clone(), url);
            env.insert(format!("{port_prefix}_PROTO"), lower);
            env.insert(format!("{port_prefix}_PORT"), port.port.to_string());
            env.insert(format!("{port_prefix}_ADDR"), ip.to_owned());
        }
    }
    env
}

/// The value of a downward API `fieldPath`.
pub fn field(facts: &Facts<'_>, path: &str) -> Result<String, String> {
    let pod = facts.pod;
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((base, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match base {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name).to_owned(),
        "metadata.namespace" => text(&meta.namespace).to_owned(),
        "metadata.uid" => text(&meta.uid).to_owned(),
        "metadata.labels" => map_text(meta.labels.as_ref()),
        "metadata.annotations" => map_text(meta.annotations.as_ref()),
        "spec.nodeName" => facts.node_name.to_owned(),
        "spec.serviceAccountName" => {
            spec.map(|s| text(&s.service_account_name)).unwrap_or_default().to_owned()
        }
        "spec.restartPolicy" => spec.map(|s| text(&s.restart_policy)).unwrap_or_default().to_owned(),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `key="value"` lines, sorted, the value quoted as Go's `%q` does.
fn map_text(map: Option<&BTreeMap<String, String>>) -> String {
    let mut out = String::new();
    for (n, (key, value)) in map.into_iter().flatten().enumerate() {
        if n > 0 {
            out.push('\n');
        }
        let _ = write!(out, "{key}=\"");
        for c in value.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                    let _ = write!(out, "\\x{:02x}", c as u32);
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out
}

/// The value of a `resourceFieldRef`, in units of its divisor, rounded up.
pub fn resource(
    facts: &Facts<'_>,
    container: &Container,
    wanted: &ResourceFieldSelector,
) -> Result<String, String> {
    let spec = facts.pod.spec.as_ref();
    let container = match wanted.container_name.as_deref().filter(|n| !n.is_empty()) {
        None => container,
        Some(name) => spec
            .and_then(|s| crate::machine::all_containers(s).find(|c| c.name == name))
            .ok_or_else(|| format!("container {name} not found"))?,
    };
    let (list, name) = wanted
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", wanted.resource))?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref());
    let chosen = match list {
        "limits" => limits,
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(format!("unsupported container resource : {}", wanted.resource)),
    };
    let amount = match chosen.and_then(|l| l.get(name)) {
        Some(amount) => Quantity::of(amount),
        // An unset limit is what the node has; an unset request is nothing.
        None if list == "limits" => facts.allocatable.get(name).copied().unwrap_or_default(),
        None => Quantity::ZERO,
    };
    let divisor = wanted.divisor.as_ref().map(Quantity::of).filter(|d| !d.is_zero());
    let (amount, divisor) = if name == "cpu" {
        (amount.millis(), divisor.map_or(1000, |d| d.millis()))
    } else {
        (amount.units(), divisor.map_or(1, |d| d.units()))
    };
    Ok(((amount as f64) / (divisor.max(1) as f64)).ceil().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with_facts(pod: serde_json::Value, check: impl FnOnce(&Facts<'_>, &Container)) {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let allocatable = BTreeMap::from([("cpu".to_owned(), Quantity::from_units(2))]);
        let facts = Facts {
            pod: &pod,
            pod_ips: &["10.0.0.5".to_owned()],
            host_ips: &["192.168.0.1".to_owned()],
            node_name: "n1",
            allocatable: &allocatable,
        };
        check(&facts, &pod.spec.as_ref().unwrap().containers[0]);
    }

    fn service(ns: &str, name: &str, ip: &str) -> Arc<Service> {
        let value = json!({"metadata": {"name": name, "namespace": ns},
            "spec": {"clusterIP": ip, "ports": [{"name": "http-web", "port": 80}]}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn variables_come_from_every_source_in_order() {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"b": "2", "a": "x\"y"}},
            "spec": {"containers": [{"name": "c",
                "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}},
                "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}],
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "B", "value": "$(A)-$(WEB_SERVICE_HOST)-$(NOPE)-$$(A)"},
                    {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
                    {"name": "O", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": true}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['b']"}}},
                    {"name": "M", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                    {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}},
                    {"name": "CL", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}
                ]}]}
        });
        with_facts(pod, |facts, container| {
            let map: ConfigMapOf = serde_json::from_value(json!({"data": {"k": "v"}})).unwrap();
            let sources = Sources {
                config_maps: [("cm".to_owned(), Some(Arc::new(map)))].into(),
                secrets: BTreeMap::new(),
            };
            let services = [
                service("ns", "web", "10.1.0.9"),
                service("other", "x", "10.1.0.8"),
                service("default", "kubernetes", "10.1.0.1"),
            ];
            let env = environment(facts, container, &sources, &services).unwrap();
            let get = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
            for (name, value) in [
                ("P_k", Some("v")),
                ("B", Some("1-10.1.0.9-$(NOPE)-$(A)")),
                ("K", Some("v")),
                ("O", None),
                ("IP", Some("10.0.0.5")),
                ("L", Some("2")),
                ("M", Some("64")),
                ("C", Some("1")),
                ("CL", Some("2")),
                ("KUBERNETES_SERVICE_HOST", Some("10.1.0.1")),
                ("WEB_PORT_80_TCP_ADDR", Some("10.1.0.9")),
                ("WEB_SERVICE_PORT_HTTP_WEB", Some("80")),
                ("X_SERVICE_HOST", None),
            ] {
                assert_eq!(get(name), value, "{name}");
            }
            assert_eq!(field(facts, "metadata.labels").unwrap(), "a=\"x\\\"y\"\nb=\"2\"");
        });
    }

    type ConfigMapOf = k8s_openapi::api::core::v1::ConfigMap;

    #[test]
    fn missing_sources_are_named() {
        let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [{"name": "c",
            "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]}]}});
        with_facts(pod, |facts, container| {
            let error = environment(facts, container, &Sources::default(), &[]).unwrap_err();
            assert_eq!(error, "configmap \"cm\" not found");
            let empty = Arc::new(ConfigMapOf::default());
            let sources =
                Sources { config_maps: [("cm".to_owned(), Some(empty))].into(), ..Default::default() };
            let error = environment(facts, container, &sources, &[]).unwrap_err();
            assert_eq!(error, "couldn't find key k in ConfigMap ns/cm");
        });
    }
}
