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
