//! What is wrong with a policy's expressions for the types that it names: told, never acted on.
//! Upstream counterpart: `plugin/policy/validating/typechecking.go`.

use crate::admission::expressions::{Compiler, Extra};
use serde_json::{Value, json};
use skeg_api::kinds::Snapshot;
use skeg_api::{Gvr, Kind, openapi};
use skeg_cel::{Declared, Schema};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The most types that a policy is checked for.
const TYPES_MAX: usize = 10;

/// The `expressionWarnings` of a policy.
pub fn warnings(policy: &Value, snapshot: &Snapshot) -> Vec<Value> {
    let spec = &policy["spec"];
    let params = super::param_kind(spec).and_then(|gvk| snapshot.by_gvk(&gvk)).and_then(declared);
    let compiler = |kind: &Arc<Kind>| {
        let mut compiler = Compiler::with_variables(spec["paramKind"].is_object());
        (compiler.object, compiler.params) = (declared(kind), params.clone());
        super::variables(spec, &mut compiler);
        (kind.gvk.display(), compiler)
    };
    let compilers: Vec<(String, Compiler)> = types(spec, snapshot).values().map(compiler).collect();
    let mut out = Vec::new();
    for (index, validation) in spec["validations"].as_array().into_iter().flatten().enumerate() {
        for (field, extra) in [("expression", Extra::Asks), ("messageExpression", Extra::Nothing)] {
            let text = validation[field].as_str().unwrap_or_default();
            if text.is_empty() {
                continue;
            }
            let check = |(name, compiler): &(String, Compiler)| {
                compiler.check(text, extra).err().map(|why| format!("{name}: {why}\n"))
            };
            let told: Vec<String> = compilers.iter().filter_map(check).collect();
            if !told.is_empty() {
                let place = format!("spec.validations[{index}].{field}");
                out.push(json!({"fieldRef": place, "warning": told.join("\n")}));
            }
        }
    }
    out
}

/// The kinds that the rules name, without wildcards and subresources.
fn types(spec: &Value, snapshot: &Snapshot) -> BTreeMap<[Arc<str>; 3], Arc<Kind>> {
    let mut found = BTreeMap::new();
    for rule in spec["matchConstraints"]["resourceRules"].as_array().into_iter().flatten() {
        let list = |field: &str| {
            let all = rule[field].as_array().into_iter().flatten();
            let mut all: Vec<&str> = all.filter_map(Value::as_str).collect();
            all.sort_unstable();
            all
        };
        let (groups, versions) = (list("apiGroups"), list("apiVersions"));
        if groups.iter().chain(&versions).any(|name| name.contains('*')) {
            continue;
        }
        let resources: Vec<&str> =
            list("resources").into_iter().filter(|name| !name.contains(['*', '/'])).collect();
        for group in &groups {
            for version in &versions {
                for resource in &resources {
                    if let Some(kind) = snapshot.by_gvr(&Gvr::new(group, version, resource))
                        && found.len() < TYPES_MAX
                    {
                        let key = [kind.gvk.group.clone(), kind.gvk.version.clone(), kind.gvk.kind.clone()];
                        found.insert(key, kind.clone());
                    }
                }
            }
        }
    }
    found
}

/// The type of a kind's objects.
fn declared(kind: &Arc<Kind>) -> Option<Arc<Declared>> {
    let (name, types) = openapi::types_of(kind);
    let lookup = |reference: &str| types.get(reference.rsplit('/').next().unwrap_or_default());
    Schema::with_references(types.get(&name)?, &lookup).declare(&kind.gvk.kind).map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skeg_api::Kinds;

    fn told(snapshot: &Snapshot, kind: &Kind, expression: &str) -> String {
        let rule = json!({"apiGroups": [&*kind.gvk.group], "apiVersions": [&*kind.gvk.version], "resources": [&*kind.plural]});
        let spec = json!({"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": expression}]});
        let found = warnings(&json!({"spec": spec}), snapshot);
        found
            .first()
            .map(|found| found["warning"].as_str().unwrap_or_default().to_owned())
            .unwrap_or_default()
    }

    #[test]
    fn every_kind_has_its_type() {
        let snapshot = Kinds::new(skeg_api::builtin::builtin()).snapshot();
        let stored: Vec<_> = snapshot.iter().filter(|kind| kind.storage.is_some()).collect();
        assert!(stored.len() > 50);
        for kind in stored {
            let name = kind.gvk.display();
            let right = format!("object.metadata.labels['a'] == 'b' && object.kind == '{}'", kind.gvk.kind);
            assert_eq!(told(&snapshot, kind, &right), "", "{name}");
            let wrong = told(&snapshot, kind, "object.metadata.nope == 1");
            assert!(
                wrong.starts_with(&format!("{name}: ERROR: <input>:1:16: undefined field 'nope'")),
                "{wrong}"
            );
        }
    }

    #[test]
    fn types_reach_into_what_kinds_are_made_of() {
        let snapshot = Kinds::new(skeg_api::builtin::builtin()).snapshot();
        for (group, resource, expression, wrong) in [
            (
                "apps",
                "deployments",
                "object.spec.template.spec.containers.all(c, c.resources.limits['cpu'] == '1' && c.ports.all(p, p.containerPort > 1024))",
                "",
            ),
            (
                "apps",
                "deployments",
                "object.spec.strategy.rollingUpdate.maxSurge == 1 || object.spec.strategy.rollingUpdate.maxSurge == '10%'",
                "",
            ),
            (
                "apps",
                "deployments",
                "object.spec.replicas == 'x'",
                "found no matching overload for '_==_' applied to '(int, string)'",
            ),
            (
                "apps",
                "deployments",
                "object.spec.template.spec.containers.all(c, c.nope)",
                "undefined field 'nope'",
            ),
            (
                "apiextensions.k8s.io",
                "customresourcedefinitions",
                "object.spec.versions.all(v, v.schema.openAPIV3Schema.type == 'object')",
                "",
            ),
            (
                "",
                "configmaps",
                "object.data['a'] == 1",
                "found no matching overload for '_==_' applied to '(string, int)'",
            ),
        ] {
            let kind = snapshot.by_gvr(&Gvr::new(group, "v1", resource)).unwrap();
            let found = told(&snapshot, kind, expression);
            assert!(
                if wrong.is_empty() { found.is_empty() } else { found.contains(wrong) },
                "{expression}: {found}"
            );
        }
    }
}
