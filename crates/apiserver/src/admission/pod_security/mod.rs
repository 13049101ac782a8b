//! Pods and what makes them are held to the standard that their namespace's labels name: refused,
//! warned of, or put on record.
//! Upstream counterpart: `plugin/pkg/admission/security/podsecurity`.

mod configuration;
mod standards;

use super::{Admission, Operation, Plugin, aggregate, ready};
use crate::reader::Reader;
use crate::resources;
use configuration::Exemptions;
pub use configuration::PodSecurityConfiguration;
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
/// Audit annotation: by what a request is exempt.
const EXEMPT: &str = "pod-security.kubernetes.io/exempt";
/// Audit annotation: the level and version that let a Pod in or refused it.
const ENFORCED: &str = "pod-security.kubernetes.io/enforce-policy";
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

pub struct PodSecurity {
    reader: Arc<dyn Reader>,
    defaults: Policies,
    exemptions: Exemptions,
}

/// What Pods of a namespace are held to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Policies {
    enforce: Policy,
    audit: Policy,
    warn: Policy,
}

impl Policies {
    /// Each mode, and the level it takes for one that cannot be read.
    fn modes(&mut self) -> [(&'static str, Level, &mut Policy); 3] {
        [
            ("enforce", Level::Restricted, &mut self.enforce),
            ("audit", Level::Privileged, &mut self.audit),
            ("warn", Level::Privileged, &mut self.warn),
        ]
    }

    fn is_privileged(&self) -> bool {
        self.enforce.level == Level::Privileged && self.is_silent()
    }

    /// Whether nothing is said of a template of Pods.
    fn is_silent(&self) -> bool {
        self.audit.level == Level::Privileged && self.warn.level == Level::Privileged
    }
}

/// `base` with the levels and versions that `get` knows by `<mode>` and `<mode>-version`, and what is
/// wrong with them.
fn read<'a>(
    base: Policies,
    get: impl Fn(&str) -> Option<&'a str>,
    path: impl Fn(&str) -> Path,
) -> (Policies, Vec<FieldError>) {
    let (mut policies, mut errors) = (base, Vec::new());
    for (mode, level_else, policy) in policies.modes() {
        let mut wrong = |key: &str, value: &str, why| errors.push(FieldError::invalid(path(key), value, why));
        if let Some(text) = get(mode) {
            policy.level = Level::parse(text).unwrap_or_else(|| {
                wrong(mode, text, "must be one of privileged, baseline, restricted");
                level_else
            });
        }
        let version = format!("{mode}-version");
        if let Some(text) = get(&version) {
            policy.minor = minor(text).unwrap_or_else(|| {
                wrong(&version, text, "must be \"latest\" or \"v1.x\"");
                LATEST
            });
        }
    }
    (policies, errors)
}

/// What the labels of a namespace ask for, where they do. A level that cannot be read enforces the
/// strictest, and warns and records nothing. Who is held to a level is warned of it, unless a label
/// says what to warn of.
fn policies(labels: Option<&Map<String, Value>>, defaults: Policies) -> (Policies, Vec<FieldError>) {
    let label = |key: &str| labels?.get(&format!("{PREFIX}{key}"))?.as_str();
    let path = |key: &str| Path::new("metadata").child("labels").key(&format!("{PREFIX}{key}"));
    let (mut policies, errors) = read(defaults, label, path);
    let enforced = label("enforce").and_then(Level::parse);
    if label("warn").is_none() && enforced > Some(policies.warn.level) {
        policies.warn.level = policies.enforce.level;
        if label("warn-version").is_none() {
            policies.warn.minor = policies.enforce.minor;
        }
    }
    (policies, errors)
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
    pub fn new(reader: Arc<dyn Reader>, configuration: &PodSecurityConfiguration) -> Self {
        let (defaults, exemptions) = (configuration.policies(), configuration.exemptions.clone());
        PodSecurity { reader, defaults, exemptions }
    }

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
        let (new, errors) = policies(meta::labels(object), self.defaults);
        let old = a.old.map(|old| policies(meta::labels(old), self.defaults));
        if !errors.is_empty() && old.as_ref().is_none_or(|(_, before)| *before != errors) {
            return Err(Status::invalid("", "Namespace", a.name, &errors));
        }
        let relaxed = old.is_some_and(|(old, _)| {
            new.enforce == old.enforce
                || new.enforce.level == Level::Privileged
                || (new.enforce.minor == old.enforce.minor && new.enforce.level <= old.enforce.level)
        });
        if relaxed {
            return Ok(());
        }
        let name = meta::name(object);
        let told = if is_listed(&self.exemptions.namespaces, name) {
            self.ignored(name, meta::labels(object), new).into_iter().collect()
        } else if a.old.is_some() {
            self.existing(name, new.enforce)
        } else {
            Vec::new()
        };
        a.warnings.extend(told);
        Ok(())
    }

    /// What labels of an exempt namespace ask for in vain.
    fn ignored(&self, name: &str, labels: Option<&Map<String, Value>>, mut new: Policies) -> Option<String> {
        let old = &self.defaults;
        let pairs = [(new.enforce, old.enforce), (new.audit, old.audit), (new.warn, old.warn)];
        if new.is_privileged() || pairs.into_iter().all(|(new, old)| new.is_same(old)) {
            return None;
        }
        let is_set = |mode: &str| {
            let has = |key: String| labels.is_some_and(|labels| labels.contains_key(&key));
            has(format!("{PREFIX}{mode}")) || has(format!("{PREFIX}{mode}-version"))
        };
        let set = new
            .modes()
            .into_iter()
            .filter(|(mode, _, policy)| policy.level > Level::Privileged && is_set(mode));
        let set: Vec<String> = set.map(|(mode, _, policy)| format!("{mode}={policy}")).collect();
        let set = set.join(", ");
        Some(format!(
            "namespace {name:?} is exempt from Pod Security, and the policy ({set}) will be ignored"
        ))
    }

    fn existing(&self, namespace: &str, policy: Policy) -> Vec<String> {
        let pods = self.reader.list(&resources::PODS, namespace);
        // By what is wrong: the first Pod by name, and how many there are.
        let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
        for bytes in pods.iter().take(PODS_MAX) {
            let Ok(pod) = serde_json::from_slice::<Value>(bytes) else { continue };
            if self.exempts_class(&pod) {
                continue;
            }
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
        let namespace = self.reader.get_value(&resources::NAMESPACES, "", a.namespace);
        policies(namespace.as_deref().and_then(meta::labels), self.defaults)
    }

    fn exempts_class(&self, pod: &Value) -> bool {
        let class = pod["spec"]["runtimeClassName"].as_str();
        class.is_some_and(|class| is_listed(&self.exemptions.runtime_classes, class))
    }

    /// Whether namespace or user are exempt, which goes on record.
    fn exempts(&self, a: &Admission<'_>) -> bool {
        let by = if is_listed(&self.exemptions.namespaces, a.namespace) {
            "namespace"
        } else if is_listed(&self.exemptions.usernames, a.identity.user()) {
            "user"
        } else {
            return false;
        };
        a.audit(EXEMPT, by);
        true
    }

    fn pod(&self, a: &mut Admission<'_>) -> Result<(), Status> {
        if self.exempts(a) {
            return Ok(());
        }
        let (policies, errors) = self.of_namespace(a);
        if errors.is_empty() && policies.is_privileged() {
            // Whatever version its label names, as upstream tells it.
            a.audit(ENFORCED, &Policy::default().to_string());
            return Ok(());
        }
        let Some(pod) = a.object.take() else { return Ok(()) };
        let bears = a.old.is_none_or(|old| is_significant(pod, old));
        let result = if bears { self.evaluate(a, &policies, &errors, pod, true) } else { Ok(()) };
        a.object = Some(pod);
        result
    }

    fn template(&self, a: &mut Admission<'_>, at: &str) -> Result<(), Status> {
        if self.exempts(a) {
            return Ok(());
        }
        let (policies, errors) = self.of_namespace(a);
        if errors.is_empty() && policies.is_silent() {
            return Ok(());
        }
        let Some(object) = a.object.take() else { return Ok(()) };
        let result =
            object.pointer(at).map_or(Ok(()), |pod| self.evaluate(a, &policies, &errors, pod, false));
        a.object = Some(object);
        result
    }

    fn evaluate(
        &self,
        a: &mut Admission<'_>,
        policies: &Policies,
        errors: &[FieldError],
        pod: &Value,
        enforced: bool,
    ) -> Result<(), Status> {
        if self.exempts_class(pod) {
            a.audit(EXEMPT, "runtimeClass");
            return Ok(());
        }
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
        if enforced {
            a.audit(ENFORCED, &policies.enforce.to_string());
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
}

fn is_listed(list: &[String], name: &str) -> bool {
    list.iter().any(|listed| listed == name)
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
        let (found, errors) = policies(labels.as_object(), Policies::default());
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
            policies(json!({"pod-security.kubernetes.io/enforce": "x"}).as_object(), Policies::default()).0,
            Policies { enforce: policy(Level::Restricted, LATEST), ..Policies::default() }
        );
    }

    #[test]
    fn what_is_enforced_is_warned_of_unless_a_label_says_what_is() {
        let policy = |level, minor| Policy { level, minor };
        let warn = |labels: Value, warn: Policy| {
            let labels: Map<String, Value> = labels
                .as_object()
                .unwrap()
                .iter()
                .map(|(k, v)| (format!("{PREFIX}{k}"), v.clone()))
                .collect();
            policies(Some(&labels), Policies { warn, ..Policies::default() }).0.warn
        };
        let (none, all) = (Policy::default(), policy(Level::Restricted, LATEST));
        assert_eq!(
            warn(json!({"enforce": "baseline", "enforce-version": "v1.22"}), none),
            policy(Level::Baseline, 22)
        );
        assert_eq!(
            warn(json!({"enforce": "baseline", "warn-version": "v1.23"}), none),
            policy(Level::Baseline, 23)
        );
        assert_eq!(warn(json!({"enforce": "baseline", "warn": "privileged"}), none), none);
        assert_eq!(warn(json!({"enforce": "baseline"}), all), all);
        assert_eq!(warn(json!({"audit": "baseline"}), none), none);
    }
}
