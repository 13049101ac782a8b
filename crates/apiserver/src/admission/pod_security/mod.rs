//! Pods and what makes them are held to the standard that their namespace's labels name: refused,
//! warned of, or put on record.
//! Upstream counterpart: `plugin/pkg/admission/security/podsecurity`.

mod standards;

use super::{Admission, Operation, Plugin, aggregate, ready};
use crate::reader::Reader;
use crate::resources;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use skeg_api::field::{FieldError, Path};
use skeg_api::pod::all_containers;
use skeg_api::{Status, meta};
use standards::{LATEST, Level, Policy, violations};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many Pods are looked at when the labels of a namespace change.
const PODS_MAX: usize = 3000;
const PREFIX: &str = "pod-security.kubernetes.io/";
/// Subresources of Pods that cannot change what a Pod may do.
const IGNORED: [&str; 8] = ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

/// Where a kind has the template of its Pods.
const TEMPLATES: [(&str, &str, &str); 8] = [
    ("", "podtemplates", "/template"),
    ("", "replicationcontrollers", "/spec/template"),
    ("apps", "replicasets", "/spec/template"),
    ("apps", "deployments", "/spec/template"),
    ("apps", "statefulsets", "/spec/template"),
    ("apps", "daemonsets", "/spec/template"),
    ("batch", "jobs", "/spec/template"),
    ("batch", "cronjobs", "/spec/jobTemplate/spec/template"),
];

pub struct PodSecurity(pub Arc<dyn Reader>);

/// What the labels of a namespace ask for.
#[derive(Debug, PartialEq)]
struct Policies {
    enforce: Policy,
    audit: Policy,
    warn: Policy,
}

/// The policies, and what is wrong with the labels. A label that cannot be read enforces the
/// strictest level, and warns and records nothing.
fn policies(labels: Option<&Map<String, Value>>) -> (Policies, Vec<FieldError>) {
    let mut errors = Vec::new();
    let mut policy = |mode: &str, level_else: Level| {
        let mut policy = Policy { level: Level::Privileged, minor: LATEST };
        let mut wrong = |key: &str, value: &str, why: &str| {
            let path = Path::new("metadata").child("labels").key(key);
            errors.push(FieldError::invalid(path, value, why));
        };
        let (level, version) = (format!("{PREFIX}{mode}"), format!("{PREFIX}{mode}-version"));
        if let Some(text) = labels.and_then(|labels| labels.get(&level)?.as_str()) {
            policy.level = Level::parse(text).unwrap_or_else(|| {
                wrong(&level, text, "must be one of privileged, baseline, restricted");
                level_else
            });
        }
        if let Some(text) = labels.and_then(|labels| labels.get(&version)?.as_str()) {
            policy.minor = minor(text).unwrap_or_else(|| {
                wrong(&version, text, "must be \"latest\" or \"v1.x\"");
                LATEST
            });
        }
        policy
    };
    let enforce = policy("enforce", Level::Restricted);
    let (audit, warn) = (policy("audit", Level::Privileged), policy("warn", Level::Privileged));
    (Policies { enforce, audit, warn }, errors)
}

/// The minor version that `latest` or `v1.x` names.
fn minor(text: &str) -> Option<u32> {
    if text == "latest" {
        return Some(LATEST);
    }
    let digits = text.strip_prefix("v1.")?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|minor| plain && *minor < LATEST)
}

impl PodSecurity {
    fn check(&self, a: &mut Admission<'_>) -> Result<(), Status> {
        if !matches!(a.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        let (group, plural) = (&*a.kind.gvk.group, &*a.kind.plural);
        match (group, plural) {
            ("", "namespaces") if a.subresource.is_empty() => self.namespace(a),
            ("", "pods") if !IGNORED.contains(&a.subresource) => self.pod(a),
            _ if a.subresource.is_empty() => {
                let row = TEMPLATES.iter().find(|(g, p, _)| *g == group && *p == plural);
                row.map_or(Ok(()), |(_, _, at)| self.template(a, at))
            }
            _ => Ok(()),
        }
    }

    /// Labels must be ones; a stricter level warns of the Pods that it would refuse.
    fn namespace(&self, a: &mut Admission<'_>) -> Result<(), Status> {
        let Some(object) = a.object.as_deref() else { return Ok(()) };
        let (new, errors) = policies(meta::labels(object));
        let old = a.old.map(|old| policies(meta::labels(old)));
        if !errors.is_empty() && old.as_ref().is_none_or(|(_, before)| *before != errors) {
            return Err(Status::invalid("", "Namespace", a.name, &errors));
        }
        let Some((old, _)) = old else { return Ok(()) };
        let relaxed = new.enforce.minor == old.enforce.minor && new.enforce.level <= old.enforce.level;
        if new.enforce != old.enforce && new.enforce.level != Level::Privileged && !relaxed {
            let told = self.existing(meta::name(object), new.enforce);
            a.warnings.extend(told);
        }
        Ok(())
    }

    fn existing(&self, namespace: &str, policy: Policy) -> Vec<String> {
        let pods = self.0.list(&resources::PODS, namespace);
        // By what is wrong: the first Pod by name, and how many there are.
        let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
        for bytes in pods.iter().take(PODS_MAX) {
            let Ok(pod) = serde_json::from_slice::<Value>(bytes) else { continue };
            let reasons: Vec<String> = violations(policy, &pod).into_iter().map(|v| v.reason).collect();
            if !reasons.is_empty() {
                let name = meta::name(&pod).to_owned();
                let (first, count) = found.entry(reasons.join(", ")).or_insert_with(|| (name.clone(), 0));
                *first = name.min(std::mem::take(first));
                *count += 1;
            }
        }
        let mut told = Vec::new();
        if pods.len() > PODS_MAX {
            let total = pods.len();
            told.push(format!(
                "new PodSecurity enforce level only checked against the first {PODS_MAX} of {total} existing pods"
            ));
        }
        if !found.is_empty() {
            told.push(format!(
                "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{policy}\""
            ));
        }
        let mut lines: Vec<String> = found
            .into_iter()
            .map(|(reason, (first, count))| match count {
                1 => format!("{first}: {reason}"),
                2 => format!("{first} (and 1 other pod): {reason}"),
                count => format!("{first} (and {} other pods): {reason}", count - 1),
            })
            .collect();
        lines.sort_unstable();
        told.extend(lines);
        told
    }

    fn of_namespace(&self, a: &Admission<'_>) -> (Policies, Vec<FieldError>) {
        let namespace = self.0.get_value(&resources::NAMESPACES, "", a.namespace);
        policies(namespace.as_deref().and_then(meta::labels))
    }

    fn pod(&self, a: &mut Admission<'_>) -> Result<(), Status> {
        let (policies, errors) = self.of_namespace(a);
        let Some(pod) = a.object.take() else { return Ok(()) };
        let bears = a.old.is_none_or(|old| is_significant(pod, old));
        let result = if bears { evaluate(a, &policies, &errors, pod, true) } else { Ok(()) };
        a.object = Some(pod);
        result
    }

    fn template(&self, a: &mut Admission<'_>, at: &str) -> Result<(), Status> {
        let (policies, errors) = self.of_namespace(a);
        let Some(object) = a.object.take() else { return Ok(()) };
        let result = object.pointer(at).map_or(Ok(()), |pod| evaluate(a, &policies, &errors, pod, false));
        a.object = Some(object);
        result
    }
}

/// What of a Pod that can change bears on its security.
fn is_significant(new: &Value, old: &Value) -> bool {
    let annotation = |pod: &Value, key: &str| meta::annotation(pod, key).map(str::to_owned);
    let differs = |key: &str| annotation(new, key) != annotation(old, key);
    let facts = |pod: &Value| -> Vec<(String, String, String)> {
        let text = |container: &Value, field: &str| container[field].as_str().unwrap_or_default().to_owned();
        all_containers(&pod["spec"])
            .map(|(list, _, c)| (list.to_owned(), text(c, "name"), text(c, "image")))
            .collect()
    };
    let (now, before) = (facts(new), facts(old));
    now != before
        || differs("seccomp.security.alpha.kubernetes.io/pod")
        || now
            .iter()
            .any(|(_, name, _)| differs(&format!("container.seccomp.security.alpha.kubernetes.io/{name}")))
}

fn evaluate(
    a: &mut Admission<'_>,
    policies: &Policies,
    errors: &[FieldError],
    pod: &Value,
    enforced: bool,
) -> Result<(), Status> {
    let told = |policy: Policy| {
        let found: Vec<String> = violations(policy, pod).iter().map(ToString::to_string).collect();
        (!found.is_empty()).then(|| format!("violate PodSecurity \"{policy}\": {}", found.join(", ")))
    };
    if !errors.is_empty() {
        let errors = errors.iter().map(|error| format!("{}: {}", error.path, error.message()));
        a.audit(
            &format!("{PREFIX}error"),
            &format!("Failed to parse policy: {}", aggregate(errors.collect())),
        );
    }
    if let Some(told) = told(policies.audit) {
        a.audit(&format!("{PREFIX}audit-violations"), &format!("would {told}"));
    }
    if let Some(told) = told(policies.enforce).filter(|_| enforced) {
        return Err(a.forbid(told.replacen("violate", "violates", 1)));
    }
    a.warnings.extend(told(policies.warn).map(|told| format!("would {told}")));
    Ok(())
}

impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn admit<'a>(&'a self, _request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(Ok(()))
    }

    fn validate<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(self.check(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_name_policies() {
        let labels = json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/enforce-version": "v1.30",
            "pod-security.kubernetes.io/warn": "strict", "pod-security.kubernetes.io/audit-version": "v1.01"});
        let (found, errors) = policies(labels.as_object());
        let policy = |level, minor| Policy { level, minor };
        assert_eq!(
            found,
            Policies {
                enforce: policy(Level::Baseline, 30),
                audit: policy(Level::Privileged, LATEST),
                warn: policy(Level::Privileged, LATEST)
            }
        );
        let told: Vec<String> =
            errors.iter().map(|error| format!("{}: {}", error.path, error.message())).collect();
        assert_eq!(
            told,
            [
                "metadata.labels[pod-security.kubernetes.io/audit-version]: Invalid value: \"v1.01\": must be \"latest\" or \"v1.x\"",
                "metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: \"strict\": must be one of privileged, baseline, restricted",
            ]
        );
        assert_eq!(
            policies(json!({"pod-security.kubernetes.io/enforce": "x"}).as_object()).0.enforce,
            policy(Level::Restricted, LATEST)
        );
    }
}
