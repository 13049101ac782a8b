//! What a cluster holds Pods to where the labels of a namespace say nothing, and who is exempt from it.
//! Upstream counterpart: `PodSecurityConfiguration` of `pod-security.admission.config.k8s.io/v1`.

use super::{Policies, read};
use serde::{Deserialize, Serialize};
use skeg_api::field::{FieldError, Path};
use skeg_api::names::{is_dns1123_label, is_dns1123_subdomain};
use std::collections::BTreeSet;

const API_VERSION: &str = "pod-security.admission.config.k8s.io/v1";
const KIND: &str = "PodSecurityConfiguration";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodSecurityConfiguration {
    /// Of upstream's file, which may stand here as it is. Both may be left out.
    api_version: Option<String>,
    kind: Option<String>,
    defaults: Defaults,
    pub(super) exemptions: Exemptions,
}

/// Levels and versions by upstream's names; an empty one is `privileged` or `latest`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Defaults {
    enforce: String,
    enforce_version: String,
    audit: String,
    audit_version: String,
    warn: String,
    warn_version: String,
}

/// Requests that are not evaluated at all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Exemptions {
    pub usernames: Vec<String>,
    pub runtime_classes: Vec<String>,
    pub namespaces: Vec<String>,
}

impl Defaults {
    fn get(&self, key: &str) -> Option<&str> {
        let value = match key {
            "enforce" => &self.enforce,
            "enforce-version" => &self.enforce_version,
            "audit" => &self.audit,
            "audit-version" => &self.audit_version,
            "warn" => &self.warn,
            "warn-version" => &self.warn_version,
            _ => return None,
        };
        Some(value.as_str()).filter(|value| !value.is_empty())
    }
}

impl PodSecurityConfiguration {
    pub(super) fn policies(&self) -> Policies {
        self.defaults(&Path::root()).0
    }

    fn defaults(&self, path: &Path) -> (Policies, Vec<FieldError>) {
        let path = path.child("defaults");
        read(Policies::default(), |key| self.defaults.get(key), |key| path.child(key))
    }

    /// What is wrong with it, in upstream's words.
    pub fn validate(&self, path: &Path) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (field, value, only) in
            [("apiVersion", &self.api_version, API_VERSION), ("kind", &self.kind, KIND)]
        {
            if let Some(value) = value.as_deref().filter(|value| *value != only) {
                errors.push(FieldError::not_supported(path.child(field), value, &[only]));
            }
        }
        errors.extend(self.defaults(path).1);
        let Exemptions { usernames, runtime_classes, namespaces } = &self.exemptions;
        let user = |name: &str| match name {
            "" => vec!["username must not be empty".to_owned()],
            _ => Vec::new(),
        };
        let mut list = |field: &str, names: &[String], rule: fn(&str) -> Vec<String>| {
            let (path, mut seen) = (path.child("exemptions").child(field), BTreeSet::new());
            for (i, name) in names.iter().enumerate() {
                let wrong = rule(name);
                if !wrong.is_empty() {
                    errors.push(FieldError::invalid(path.index(i), name.as_str(), wrong.join(", ")));
                } else if !seen.insert(name) {
                    errors.push(FieldError::duplicate(path.index(i), name.as_str()));
                }
            }
        };
        list("namespaces", namespaces, is_dns1123_label);
        list("runtimeClasses", runtime_classes, is_dns1123_subdomain);
        list("usernames", usernames, user);
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn upstreams_rules_hold() {
        let wrong = |object| -> Vec<String> {
            let configuration: PodSecurityConfiguration = serde_json::from_value(object).unwrap();
            let errors = configuration.validate(&Path::new("podSecurity"));
            errors.iter().map(|error| format!("{}: {}", error.path, error.message())).collect()
        };
        let whole = json!({"apiVersion": "pod-security.admission.config.k8s.io/v1", "kind": "PodSecurityConfiguration",
            "defaults": {"enforce": "baseline", "enforce-version": "v1.30", "audit": "", "warn": "restricted", "warn-version": "latest"},
            "exemptions": {"usernames": ["system:serviceaccount:a:b"], "runtimeClasses": ["kata.v1"], "namespaces": ["kube-system"]}});
        assert_eq!(wrong(whole), Vec::<String>::new());
        assert_eq!(
            wrong(json!({"apiVersion": "v1", "kind": "PodSecurityConfiguration",
                "defaults": {"enforce": "strict", "warn-version": "1.30"},
                "exemptions": {"usernames": ["", "a", "a"], "runtimeClasses": ["k", "k"], "namespaces": ["a.b", "n", "n"]}})),
            [
                "podSecurity.apiVersion: Unsupported value: \"v1\": supported values: \"pod-security.admission.config.k8s.io/v1\"",
                "podSecurity.defaults.enforce: Invalid value: \"strict\": must be one of privileged, baseline, restricted",
                "podSecurity.defaults.warn-version: Invalid value: \"1.30\": must be \"latest\" or \"v1.x\"",
                "podSecurity.exemptions.namespaces[0]: Invalid value: \"a.b\": must not contain dots",
                "podSecurity.exemptions.namespaces[2]: Duplicate value: \"n\"",
                "podSecurity.exemptions.runtimeClasses[1]: Duplicate value: \"k\"",
                "podSecurity.exemptions.usernames[0]: Invalid value: \"\": username must not be empty",
                "podSecurity.exemptions.usernames[2]: Duplicate value: \"a\"",
            ]
        );
        assert!(
            serde_json::from_value::<PodSecurityConfiguration>(json!({"defaults": {"enforced": "x"}}))
                .is_err()
        );
    }
}
