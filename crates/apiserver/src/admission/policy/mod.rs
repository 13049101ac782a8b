//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: rules of expressions that a binding puts into
//! effect, with parameters. Policies and bindings are compiled when one changes, a policy only when it
//! is another; a write that no policy matches costs a look at their rules, and without policies nothing.
//! Upstream counterpart: `plugin/policy` of `k8s.io/apiserver/pkg/admission`.

mod mutating;
mod params;
mod reach;
pub mod status;
mod type_check;
mod validating;

pub use mutating::MutatingAdmissionPolicy;
pub use reach::PolicyParameters;
pub use validating::ValidatingAdmissionPolicy;

use super::expressions::{Compiler, Conditions, VARIABLES_MAX, Variable};
use super::matching::{Matching, Subject, Version};
use super::{Admission, matching};
use crate::reader::Reader;
use crate::server::ApiServer;
use params::Reference;
use parking_lot::RwLock;
use serde_json::Value;
use skeg_api::{GroupVersion, Gvk, Gvr, meta};
use std::sync::Arc;
use tokio::sync::watch;

/// Objects that no policy is about: those that say which there are, for nobody could repair a bad one,
/// and questions about who may what, on which everything depends.
fn is_exempt(a: &Admission<'_>) -> bool {
    match &*a.kind.gvk.group {
        "admissionregistration.k8s.io" => matches!(
            &*a.kind.plural,
            "validatingadmissionpolicies"
                | "validatingadmissionpolicybindings"
                | "mutatingadmissionpolicies"
                | "mutatingadmissionpolicybindings"
        ),
        "authentication.k8s.io" | "authorization.k8s.io" => true,
        _ => false,
    }
}

/// What a policy has beyond what all policies have.
pub trait Rules: Send + Sync + 'static {
    /// Compiles it out of a `spec`.
    fn new(spec: &Value, compiler: &Compiler) -> Self;
}

/// A policy, compiled.
pub struct Policy<R> {
    pub name: String,
    /// Which object, and which generation of it.
    made_of: (String, i64),
    /// What cannot be told is let pass.
    pub ignores_failure: bool,
    matching: Matching,
    pub conditions: Conditions,
    pub variables: Vec<Variable>,
    param_kind: Option<Gvk>,
    pub rules: R,
}

/// What puts a policy into effect.
pub struct Binding {
    pub name: String,
    matching: Option<Matching>,
    params: Option<Reference>,
    /// `Deny`, `Warn`, `Audit`.
    pub actions: Vec<String>,
}

/// A policy and its bindings.
pub struct Bound<R> {
    policy: Arc<Policy<R>>,
    bindings: Vec<Binding>,
}

/// A policy that looks at a write, by one binding and with one parameter.
pub struct Invocation<'b, R> {
    pub policy: &'b Policy<R>,
    pub binding: &'b Binding,
    pub version: Version,
    pub params: Option<Arc<Value>>,
}

/// A policy that cannot look at a write.
pub struct Misfit<'b> {
    pub policy: &'b str,
    /// None if it is the policy that is wrong.
    pub binding: Option<&'b str>,
    pub why: String,
}

type Compiled<R> = Arc<Vec<Bound<R>>>;

/// Why a policy cannot look at a write in the version that it names.
const UNCONVERTED: &str = "failed to convert object version";

/// All policies of one kind.
pub struct Policies<R> {
    reader: Arc<dyn Reader>,
    policies: Gvr,
    bindings: Gvr,
    changes: [watch::Receiver<u64>; 2],
    /// As of which counts of changes.
    compiled: RwLock<([u64; 2], Compiled<R>)>,
}

impl<R: Rules> Policies<R> {
    pub fn new(reader: Arc<dyn Reader>, policies: Gvr, bindings: Gvr) -> Self {
        let changes = [reader.changes(&policies), reader.changes(&bindings)];
        // No counters are there yet: the first write compiles.
        let compiled = RwLock::new(([u64::MAX; 2], Arc::default()));
        Policies { reader, policies, bindings, changes, compiled }
    }

    /// Policies that are bound, in the order of their names.
    pub fn current(&self) -> Compiled<R> {
        let seen = [*self.changes[0].borrow(), *self.changes[1].borrow()];
        {
            let compiled = self.compiled.read();
            if compiled.0 == seen {
                return compiled.1.clone();
            }
        }
        let mut compiled = self.compiled.write();
        let bindings = self.list(&self.bindings);
        let bound = |policy: &Value| {
            let name = meta::name(policy);
            let own = bindings.iter().filter(|binding| binding["spec"]["policyName"] == name);
            let bindings: Vec<Binding> = own.map(Binding::new).collect();
            if bindings.is_empty() {
                return None;
            }
            let made_of = (meta::uid(policy).to_owned(), meta::generation(policy));
            let known = compiled.1.iter().find(|known| known.policy.made_of == made_of);
            let policy = match known {
                Some(known) => known.policy.clone(),
                None => Arc::new(Policy::new(policy, made_of)),
            };
            Some(Bound { policy, bindings })
        };
        let all = Arc::new(self.list(&self.policies).iter().filter_map(bound).collect());
        *compiled = (seen, Arc::clone(&all));
        all
    }

    fn list(&self, gvr: &Gvr) -> Vec<Value> {
        let found = self.reader.list(gvr, "");
        let mut found: Vec<Value> =
            found.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect();
        found.sort_by(|a, b| meta::name(a).cmp(meta::name(b)));
        found
    }
}

impl<R: Rules> Policy<R> {
    fn new(policy: &Value, made_of: (String, i64)) -> Self {
        let spec = &policy["spec"];
        let mut compiler = Compiler::with_variables(spec["paramKind"].is_object());
        let variables = variables(spec, &mut compiler);
        Policy {
            name: meta::name(policy).to_owned(),
            made_of,
            ignores_failure: spec["failurePolicy"] == "Ignore",
            matching: Matching::of_resources(&spec["matchConstraints"]),
            conditions: Conditions::new(&spec["matchConditions"], &compiler),
            variables,
            param_kind: param_kind(spec),
            rules: R::new(spec, &compiler),
        }
    }
}

/// Compiles the variables of a policy, each for those after it.
fn variables(spec: &Value, compiler: &mut Compiler) -> Vec<Variable> {
    let text = |variable: &Value, field: &str| variable[field].as_str().unwrap_or_default().to_owned();
    let list = spec["variables"].as_array().into_iter().flatten().take(VARIABLES_MAX);
    list.map(|variable| compiler.variable(&text(variable, "name"), &text(variable, "expression"))).collect()
}

/// The kind of a policy's parameters.
fn param_kind(spec: &Value) -> Option<Gvk> {
    let kind = spec.get("paramKind")?;
    let version = GroupVersion::parse(kind["apiVersion"].as_str()?)?;
    Some(Gvk { group: version.group, version: version.version, kind: kind["kind"].as_str()?.into() })
}

impl Binding {
    fn new(binding: &Value) -> Self {
        let spec = &binding["spec"];
        let actions = spec["validationActions"].as_array().into_iter().flatten();
        Binding {
            name: meta::name(binding).to_owned(),
            matching: spec.get("matchResources").map(Matching::of_resources),
            params: spec.get("paramRef").map(Reference::new),
            actions: actions.filter_map(Value::as_str).map(str::to_owned).collect(),
        }
    }
}

/// The policies that look at a write, or would if they could; those whose failures are let pass are
/// left out where they cannot.
pub fn look<'b, R: Rules>(
    all: &'b [Bound<R>],
    a: &Admission<'_>,
    server: &Arc<ApiServer>,
) -> Vec<Result<Invocation<'b, R>, Misfit<'b>>> {
    let (mut out, subject) = (Vec::new(), Subject::new(a, server));
    for Bound { policy, bindings } in all {
        let policy = &**policy;
        let misfit = |binding: Option<&'b Binding>, why: String| {
            let what = if binding.is_some() { "binding" } else { "policy" };
            let why = format!("failed to configure {what}: {why}");
            Err(Misfit { policy: &policy.name, binding: binding.map(|binding| &*binding.name), why })
        };
        let version = match policy.matching.matches(&subject) {
            Ok(Some(version)) => version,
            Ok(None) => continue,
            Err(status) => {
                out.extend((!policy.ignores_failure).then(|| misfit(None, status.message)));
                continue;
            }
        };
        let kind = policy.param_kind.as_ref().map(|gvk| params::kind(gvk, server)).transpose();
        let kind = match kind {
            Ok(kind) => kind,
            Err(why) => {
                out.extend((!policy.ignores_failure).then(|| misfit(None, why)));
                continue;
            }
        };
        for binding in bindings {
            match binding.matching.as_ref().map(|own| own.matches(&subject)).transpose() {
                Ok(Some(None)) => continue,
                Ok(_) => {}
                Err(status) => {
                    out.extend((!policy.ignores_failure).then(|| misfit(Some(binding), status.message)));
                    continue;
                }
            }
            match params::collect(kind.as_deref(), binding.params.as_ref(), matching::namespace(a), server) {
                Ok(found) => out.extend(
                    found
                        .into_iter()
                        .map(|params| Ok(Invocation { policy, binding, version: version.clone(), params })),
                ),
                Err(why) => out.extend((!policy.ignores_failure).then(|| misfit(Some(binding), why))),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::fake::Fake;
    use crate::resources::{VALIDATING_BINDINGS, VALIDATING_POLICIES};
    use serde_json::json;

    struct Nothing;

    impl Rules for Nothing {
        fn new(_: &Value, _: &Compiler) -> Self {
            Nothing
        }
    }

    #[test]
    fn a_policy_is_compiled_once_a_generation() {
        let reader = Arc::new(Fake::default());
        let policy = |generation: u64| json!({"metadata": {"name": "p", "uid": "u", "generation": generation}, "spec": {}});
        let binding = |name: &str| json!({"metadata": {"name": name}, "spec": {"policyName": "p"}});
        reader.put(&VALIDATING_POLICIES, policy(1));
        let all = Policies::<Nothing>::new(
            reader.clone(),
            VALIDATING_POLICIES.clone(),
            VALIDATING_BINDINGS.clone(),
        );
        assert!(all.current().is_empty(), "nothing binds it");
        reader.put(&VALIDATING_BINDINGS, binding("b"));
        let first = all.current();
        assert!(Arc::ptr_eq(&first, &all.current()), "nothing changed");
        reader.put(&VALIDATING_BINDINGS, binding("a"));
        let second = all.current();
        let names: Vec<&str> = second[0].bindings.iter().map(|binding| &*binding.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(Arc::ptr_eq(&first[0].policy, &second[0].policy), "another binding");
        // As when its status is written.
        reader.put(&VALIDATING_POLICIES, policy(1));
        assert!(Arc::ptr_eq(&first[0].policy, &all.current()[0].policy));
        reader.put(&VALIDATING_POLICIES, policy(2));
        assert!(!Arc::ptr_eq(&first[0].policy, &all.current()[0].policy));
    }
}
