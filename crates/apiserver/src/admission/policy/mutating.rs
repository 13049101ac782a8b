//! MutatingAdmissionPolicy: mutations that expressions make, merged into the object or patched.
//! Nobody owns what they add, as with webhooks.
//! Upstream counterpart: `plugin/policy/mutating`.

use super::{Compiled, Invocation, Misfit, Policies, Policy, Rules, UNCONVERTED, is_exempt, look};
use crate::admission::expressions::{
    CONDITIONS_BUDGET, Compiler, Expression, Extra, Input, Match, OBJECT, PATCH, Scope,
};
use crate::admission::versions::{objects, take_over};
use crate::admission::{Admission, Plugin, ready};
use crate::auth::authz::Union;
use crate::reader::Reader;
use crate::resources;
use crate::server::ApiServer;
use futures_util::future::BoxFuture;
use serde_json::Value;
use skeg_api::schema::Schema;
use skeg_api::status::Cause;
use skeg_api::{Reason, Status, fieldset, meta, patch};
use skeg_cel::{List, RUNTIME_BUDGET, Value as Cel};
use std::sync::Arc;

/// What a policy's expressions are for.
pub struct Mutating {
    mutations: Vec<Mutation>,
    reinvokes: bool,
}

enum Mutation {
    ApplyConfiguration(Expression),
    JsonPatch(Expression),
}

impl Rules for Mutating {
    fn new(spec: &Value, compiler: &Compiler) -> Self {
        let text = |of: &Value| of["expression"].as_str().unwrap_or_default().to_owned();
        let mutation = |of: &Value| match of["patchType"].as_str() {
            Some("JSONPatch") => {
                Mutation::JsonPatch(compiler.compile(&text(&of["jsonPatch"]), PATCH, Extra::Mutates))
            }
            _ => Mutation::ApplyConfiguration(compiler.compile(
                &text(&of["applyConfiguration"]),
                OBJECT,
                Extra::Mutates,
            )),
        };
        Mutating {
            mutations: spec["mutations"].as_array().into_iter().flatten().map(mutation).collect(),
            reinvokes: spec["reinvocationPolicy"] == "IfNeeded",
        }
    }
}

pub struct MutatingAdmissionPolicy {
    policies: Policies<Mutating>,
    authorizer: Arc<Union>,
}

/// A refusal by a policy, and the reason where it has one of its own.
type Refusals = Vec<(String, Option<Reason>)>;

impl MutatingAdmissionPolicy {
    pub fn new(reader: Arc<dyn Reader>, authorizer: Arc<Union>) -> Self {
        let (policies, bindings) =
            (resources::MUTATING_POLICIES.clone(), resources::MUTATING_BINDINGS.clone());
        Self { policies: Policies::new(reader, policies, bindings), authorizer }
    }

    async fn mutate(&self, a: &mut Admission<'_>, all: Compiled<Mutating>) -> Result<(), Status> {
        let Some(server) = a.server else { return Ok(()) };
        let (mut refusals, mut invocations) = (Refusals::new(), Vec::new());
        for found in look(&all, a, server) {
            match found {
                Ok(invocation) => invocations.push(invocation),
                Err(Misfit { policy, binding, why }) => refusals.push((denial(policy, binding, &why), None)),
            }
        }
        if !invocations.is_empty() {
            let is_again = a.reinvocation.is_again;
            a.reinvocation.policies.begin(is_again, a.object.as_deref());
            for invocation in &invocations {
                self.invoke(a, server, invocation, &mut refusals).await?;
            }
            a.reinvocation.policies.end(a.object.as_deref());
        }
        refusal(a, refusals)
    }

    /// Runs the mutations of one policy, one after the other.
    async fn invoke(
        &self,
        a: &mut Admission<'_>,
        server: &Arc<ApiServer>,
        invocation: &Invocation<'_, Mutating>,
        refusals: &mut Refusals,
    ) -> Result<(), Status> {
        let Invocation { policy, binding, .. } = invocation;
        let key = key(invocation);
        if a.reinvocation.is_again && !a.reinvocation.policies.is_due(&key) {
            return Ok(());
        }
        let mut refuse = |why: &str| {
            if !policy.ignores_failure {
                let why = denial(&policy.name, Some(&binding.name), why);
                refusals.push((why, Some(Reason::Invalid)));
            }
        };
        let row = invocation.version.as_deref().unwrap_or(a.kind);
        if !policy.conditions.is_empty() {
            let seen = match objects(server, a, row).await {
                Ok(objects) => conditions(Input::new(a, server, &self.authorizer, row, objects), invocation),
                Err(status) => Match::Error(format!("{UNCONVERTED}: {}", status.message)),
            };
            match seen {
                Match::Yes => {}
                Match::No => return Ok(()),
                Match::Error(why) => {
                    refuse(&why);
                    return Ok(());
                }
            }
        }
        let mut changed = false;
        for mutation in &policy.rules.mutations {
            if a.object.is_none() {
                continue;
            }
            let made = match objects(server, a, row).await {
                Ok(objects) => {
                    made(Input::new(a, server, &self.authorizer, row, objects), invocation, mutation)
                }
                Err(status) => Err(format!("{UNCONVERTED}: {}", status.message)),
            };
            match made {
                Ok(made) => changed |= take_over(server, a, row, made).await?,
                Err(why) => refuse(&why),
            }
        }
        if changed {
            a.reinvocation.policies.changed();
            a.reinvocation.wanted = true;
        }
        if policy.rules.reinvokes {
            a.reinvocation.policies.interested(key);
        }
        Ok(())
    }
}

fn conditions(input: Input<'_, '_>, invocation: &Invocation<'_, Mutating>) -> Match {
    let Policy { conditions, variables, .. } = invocation.policy;
    let scope = Scope::new(&input, invocation.params.as_deref(), variables, CONDITIONS_BUDGET);
    conditions.look(&scope.without_namespace())
}

/// What one mutation makes of the object, in the version in which it is seen.
fn made(
    input: Input<'_, '_>,
    invocation: &Invocation<'_, Mutating>,
    mutation: &Mutation,
) -> Result<Value, String> {
    let (Mutation::ApplyConfiguration(expression) | Mutation::JsonPatch(expression)) = mutation;
    if let Err(fault) = &expression.program {
        return Err(fault.message.clone());
    }
    let variables = &invocation.policy.variables;
    let scope = Scope::new(&input, invocation.params.as_deref(), variables, RUNTIME_BUDGET);
    let value = scope.evaluate(expression).map_err(|out| out.to_string())??;
    let object = input.object().cloned().unwrap_or_default();
    match mutation {
        Mutation::ApplyConfiguration(_) => apply(object, &value, &input.schema()),
        Mutation::JsonPatch(_) => patched(object, &value),
    }
}

impl Plugin for MutatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    fn admit<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        let all = self.policies.current();
        if all.is_empty() || is_exempt(request) { ready(Ok(())) } else { Box::pin(self.mutate(request, all)) }
    }
}

/// Merges an `Object{}` into an object.
fn apply(mut object: Value, value: &Cel<'_>, schema: &Schema) -> Result<Value, String> {
    let Cel::Struct(made) = value else {
        let of = value.type_of();
        return Err(format!("unsupported return type from ApplyConfiguration expression: {of}"));
    };
    made.check_paths().map_err(|error| format!("type mismatch: {error}"))?;
    let mut configuration = value.to_json().map_err(|error| error.to_string())?;
    for field in ["apiVersion", "kind"] {
        if let (Some(own), Some(fields)) = (object.get(field), configuration.as_object_mut()) {
            fields.insert(field.into(), own.clone());
        }
    }
    fieldset::configure(&mut object, &configuration, schema.root())
        .map_err(|why| format!("error applying patch: {why}"))?;
    Ok(object)
}

/// Applies a list of `JSONPatch{}`. Where a test does not hold, nothing is changed.
fn patched(object: Value, value: &Cel<'_>) -> Result<Value, String> {
    let Cel::List(list) = value else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".into());
    };
    if let List::Made(items, _) = list {
        for item in items.iter() {
            let Cel::Struct(operation) = item else { continue };
            if let Some(Cel::Struct(part)) = operation.fields.get("value") {
                part.check_paths().map_err(|error| format!("type mismatch: {error}"))?;
            }
        }
    }
    let operations = value.to_json().map_err(|error| {
        format!("JSONPath valueExpression evaluated to a type that could not marshal to JSON: {error}")
    })?;
    let mut changed = object.clone();
    for operation in operations.as_array().into_iter().flatten() {
        let text = |field: &str| operation[field].as_str().unwrap_or_default();
        match patch::json_patch(&mut changed, &Value::Array(vec![operation.clone()])) {
            Ok(()) => {}
            Err(_) if text("op") == "test" => return Ok(object),
            Err(_) => {
                let (op, path) = (text("op"), text("path"));
                return Err(format!(
                    "JSONPath: {op} operation does not apply: doc is missing path: {path:?}: missing value"
                ));
            }
        }
    }
    Ok(changed)
}

/// By what an invocation is known in a second round.
fn key(invocation: &Invocation<'_, Mutating>) -> String {
    let params = invocation.params.as_deref().map(|params| (meta::namespace(params), meta::name(params)));
    let (namespace, name) = params.unwrap_or_default();
    format!("{}/{}/{namespace}/{name}", invocation.policy.name, invocation.binding.name)
}

fn denial(policy: &str, binding: Option<&str>, why: &str) -> String {
    match binding {
        Some(binding) => format!("policy '{policy}' with binding '{binding}' denied request: {why}"),
        None => format!("policy {policy:?} denied request: {why}"),
    }
}

/// All refusals as one: the first says why, and each is a cause.
fn refusal(a: &Admission<'_>, refusals: Refusals) -> Result<(), Status> {
    let Some((message, reason)) = refusals.first().cloned() else { return Ok(()) };
    let mut status = a.forbid("admission request denied by policy");
    status.message = message;
    status.reason = reason.unwrap_or(status.reason);
    if let Some(details) = &mut status.details {
        let causes = refusals.into_iter().map(|(message, _)| Cause { message, ..Cause::default() });
        details.causes.extend(causes);
    }
    Err(status)
}
