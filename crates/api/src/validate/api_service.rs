//! APIService.

use super::at::{At, Errors};
use crate::field::FieldError;
use crate::kinds::Strategy;
use crate::{meta, names};
use serde_json::Value;

const GROUP_PRIORITY_MAX: i64 = 20_000;
const VERSION_PRIORITY_MAX: i64 = 1_000;

pub(super) fn strategy() -> Strategy {
    Strategy { validate, ..Strategy::default() }
}

fn validate(value: &Value) -> Vec<FieldError> {
    let (root, mut errors) = (At::root(value), Errors::default());
    let spec = root.child("spec");
    let (group, version) = (spec.str("group"), spec.str("version"));
    let wanted = format!("{version}.{group}");
    if meta::name(value) != wanted {
        let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.invalid(root.at("metadata").child("name"), meta::name(value), why);
    }
    if group.is_empty() && version != "v1" {
        errors.required(spec.at("group"), "only v1 may have an empty group and it better be legacy kube");
    }
    errors.checked(&spec, "group", names::is_dns1123_subdomain);
    errors.each(&spec.at("version"), version, names::is_dns1035_label(version));
    for (field, max) in
        [("groupPriorityMinimum", GROUP_PRIORITY_MAX), ("versionPriority", VERSION_PRIORITY_MAX)]
    {
        let priority = spec.int(field).unwrap_or(0);
        if !(1..=max).contains(&priority) {
            errors.invalid(spec.at(field), priority, format!("must be positive and less than {max}"));
        }
    }
    let (bundle, insecure) = (!spec.str("caBundle").is_empty(), spec.bool("insecureSkipTLSVerify"));
    let Some(service) = spec.get("service") else {
        if bundle {
            let why = "local APIServices may not have a caBundle";
            errors.invalid(spec.at("caBundle"), format!("{} bytes", spec.str("caBundle").len()), why);
        }
        if insecure {
            errors.invalid(
                spec.at("insecureSkipTLSVerify"),
                true,
                "local APIServices may not have insecureSkipTLSVerify",
            );
        }
        return errors.0;
    };
    errors.need(&service, "namespace");
    errors.need(&service, "name");
    errors.range(&service, "port", 1, 65535);
    if bundle && insecure {
        let why = "may not be true if caBundle is present";
        errors.invalid(spec.at("insecureSkipTLSVerify"), true, why);
    }
    errors.0
}
