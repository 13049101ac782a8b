//! ValidatingAdmissionPolicy: validations that refuse, warn or are put on record, and annotations.
//! Upstream counterpart: `plugin/policy/validating`.

use super::{Binding, Compiled, Invocation, Misfit, Policies, Rules, UNCONVERTED, is_exempt, look};
use crate::admission::expressions::{
    BOOL, CONDITIONS_BUDGET, Compiler, Expression, Extra, Input, Match, Scope, TEXT, TEXT_OR_NULL,
};
use crate::admission::versions::objects;
use crate::admission::{Admission, Plugin, ready};
use crate::auth::authz::Union;
use crate::reader::Reader;
use crate::resources;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::Value;
use skeg_api::status::Cause;
use skeg_api::{Reason, Status};
use skeg_cel::{MESSAGE_BYTES_MAX, RUNTIME_BUDGET, Value as Cel};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The longest value of an annotation, in bytes.
const ANNOTATION_BYTES_MAX: usize = 10 * 1024;

/// What a policy's expressions are for.
pub struct Validating {
    validations: Vec<Validation>,
    /// By key.
    annotations: Vec<(String, Expression)>,
}

struct Validation {
    expression: Expression,
    message: String,
    message_expression: Option<Expression>,
    reason: Reason,
}

impl Rules for Validating {
    fn new(spec: &Value, compiler: &Compiler) -> Self {
        let text = |of: &Value, field: &str| of[field].as_str().unwrap_or_default().to_owned();
        let list = |field: &str| spec[field].as_array().into_iter().flatten();
        let message = |of: &Value| {
            let expression = text(of, "messageExpression");
            (!expression.is_empty()).then(|| compiler.compile(&expression, TEXT, Extra::Nothing))
        };
        Validating {
            validations: list("validations")
                .map(|of| Validation {
                    expression: compiler.compile(&text(of, "expression"), BOOL, Extra::Asks),
                    message: text(of, "message").trim().to_owned(),
                    message_expression: message(of),
                    reason: match of["reason"].as_str() {
                        Some("Unauthorized") => Reason::Unauthorized,
                        Some("Forbidden") => Reason::Forbidden,
                        Some("RequestEntityTooLarge") => Reason::RequestEntityTooLarge,
                        _ => Reason::Invalid,
                    },
                })
                .collect(),
            annotations: list("auditAnnotations")
                .map(|of| {
                    let expression =
                        compiler.compile(&text(of, "valueExpression"), TEXT_OR_NULL, Extra::Asks);
                    (text(of, "key"), expression)
                })
                .collect(),
        }
    }
}

/// What one invocation found.
#[derive(Default)]
struct Verdict {
    /// Validations that do not hold, by their index.
    failures: Vec<(usize, String, Reason)>,
    /// Annotations that could not be made.
    errors: Vec<String>,
    annotations: Vec<(String, String)>,
}

pub struct ValidatingAdmissionPolicy {
    policies: Policies<Validating>,
    authorizer: Arc<Union>,
}

impl ValidatingAdmissionPolicy {
    pub fn new(reader: Arc<dyn Reader>, authorizer: Arc<Union>) -> Self {
        let (policies, bindings) =
            (resources::VALIDATING_POLICIES.clone(), resources::VALIDATING_BINDINGS.clone());
        Self { policies: Policies::new(reader, policies, bindings), authorizer }
    }

    async fn judge(&self, a: &mut Admission<'_>, all: Compiled<Validating>) -> Result<(), Status> {
        let Some(server) = a.server else { return Ok(()) };
        let mut refused = None;
        let mut annotations: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for found in look(&all, a, server) {
            let invocation = match found {
                Ok(invocation) => invocation,
                Err(Misfit { policy, binding, why }) => {
                    refused.get_or_insert_with(|| refusal(a, policy, binding, &why, Reason::Invalid));
                    continue;
                }
            };
            let Invocation { policy, binding, .. } = &invocation;
            let row = invocation.version.as_deref().unwrap_or(a.kind);
            let verdict = match objects(server, a, row).await {
                Ok(objects) => verdict(Input::new(a, server, &self.authorizer, row, objects), &invocation),
                Err(_) if policy.ignores_failure => continue,
                Err(status) => {
                    let why = format!("failed to configure policy: {UNCONVERTED}: {}", status.message);
                    refused.get_or_insert_with(|| refusal(a, &policy.name, None, &why, Reason::Invalid));
                    continue;
                }
            };
            for (index, message, reason) in verdict.failures {
                for action in &binding.actions {
                    match action.as_str() {
                        "Deny" => {
                            let name = Some(&*binding.name);
                            refused.get_or_insert_with(|| refusal(a, &policy.name, name, &message, reason));
                        }
                        "Warn" => a.warnings.push(format!(
                            "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {message}",
                            policy.name, binding.name
                        )),
                        _ => record(a, &policy.name, binding, index, &message),
                    }
                }
            }
            for why in verdict.errors {
                let name = Some(&*binding.name);
                refused.get_or_insert_with(|| refusal(a, &policy.name, name, &why, Reason::Invalid));
            }
            for (key, value) in verdict.annotations {
                let values = annotations.entry(format!("{}/{key}", policy.name)).or_default();
                if !values.contains(&value) {
                    values.push(value);
                }
            }
        }
        for (key, values) in annotations {
            a.audit(&key, &values.join(", "));
        }
        refused.map_or(Ok(()), Err)
    }
}

impl Plugin for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn admit<'a>(&'a self, _request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        ready(Ok(()))
    }

    fn validate<'a>(&'a self, request: &'a mut Admission<'_>) -> BoxFuture<'a, Result<(), Status>> {
        let all = self.policies.current();
        if all.is_empty() || is_exempt(request) { ready(Ok(())) } else { Box::pin(self.judge(request, all)) }
    }
}

fn verdict(input: Input<'_, '_>, invocation: &Invocation<'_, Validating>) -> Verdict {
    let Invocation { policy, params, .. } = invocation;
    let scope = |budget: u64| Scope::new(&input, params.as_deref(), &policy.variables, budget);
    let failed = |why: String| match policy.ignores_failure {
        true => Verdict::default(),
        false => Verdict { failures: vec![(0, why, Reason::Invalid)], ..Verdict::default() },
    };
    if !policy.conditions.is_empty() {
        match policy.conditions.look(&scope(CONDITIONS_BUDGET).without_namespace()) {
            Match::Yes => {}
            Match::No => return Verdict::default(),
            Match::Error(why) => return failed(why),
        }
    }
    let mut verdict = Verdict::default();
    let validations = scope(RUNTIME_BUDGET);
    let mut false_ones = Vec::new();
    for (index, validation) in policy.rules.validations.iter().enumerate() {
        match validations.evaluate(&validation.expression) {
            Ok(Ok(Cel::Bool(true))) => {}
            Ok(Ok(_)) => false_ones.push(index),
            Ok(Err(_)) if policy.ignores_failure => {}
            Ok(Err(why)) => verdict.failures.push((index, why, Reason::Invalid)),
            Err(out) => return failed(out.to_string()),
        }
    }
    // Messages may cost what the validations left.
    let messages = scope(validations.left());
    for index in false_ones {
        let validation = &policy.rules.validations[index];
        match message(validation, &messages) {
            Ok(message) => verdict.failures.push((index, message, validation.reason)),
            Err(_) if policy.ignores_failure => {}
            Err(why) => verdict.failures.push((index, why, Reason::Invalid)),
        }
    }
    verdict.failures.sort_by_key(|(index, ..)| *index);
    let annotations = scope(RUNTIME_BUDGET);
    for (key, expression) in &policy.rules.annotations {
        match annotations.evaluate(expression) {
            Ok(Ok(Cel::String(text))) if text.trim().is_empty() => {}
            Ok(Ok(Cel::String(text))) => {
                let text = text.trim();
                let end = text.floor_char_boundary(ANNOTATION_BYTES_MAX);
                verdict.annotations.push((key.clone(), text[..end].to_owned()));
            }
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) if policy.ignores_failure => {}
            Ok(Err(why)) => verdict.errors.push(why),
            Err(out) => {
                verdict.errors.push(out.to_string());
                break;
            }
        }
    }
    verdict
}

/// Why a validation does not hold: what its expression makes, or its own text, or the expression.
fn message(validation: &Validation, scope: &Scope<'_, '_>) -> Result<String, String> {
    if let Some(expression) = &validation.message_expression {
        match scope.evaluate(expression) {
            Ok(Ok(Cel::String(text))) => {
                let text = text.trim();
                if !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n') {
                    return Ok(text.to_owned());
                }
            }
            Ok(Ok(_)) => {}
            Ok(Err(why)) => tracing::debug!(why, "a messageExpression has no value"),
            Err(out) => return Err(format!("failed messageExpression: {out}")),
        }
    }
    match validation.message.as_str() {
        "" => Ok(format!("failed expression: {}", validation.expression.text.trim())),
        message => Ok(message.to_owned()),
    }
}

/// The refusal, with the code that its reason has.
fn refusal(a: &Admission<'_>, policy: &str, binding: Option<&str>, why: &str, reason: Reason) -> Status {
    let by = binding.map(|binding| format!(" with binding '{binding}'")).unwrap_or_default();
    let message = format!("ValidatingAdmissionPolicy '{policy}'{by} denied request: {why}");
    let mut status = a.forbid(&message);
    status.code = match reason {
        Reason::Unauthorized => 401,
        Reason::Forbidden => 403,
        Reason::RequestEntityTooLarge => 413,
        _ => 422,
    };
    status.reason = reason;
    if let Some(details) = &mut status.details {
        details.causes.push(Cause { message, ..Cause::default() });
    }
    status
}

/// Puts a failure on record.
fn record(a: &Admission<'_>, policy: &str, binding: &Binding, index: usize, message: &str) {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Failure<'f> {
        message: &'f str,
        policy: &'f str,
        binding: &'f str,
        expression_index: usize,
        validation_actions: &'f [String],
    }
    let failure = Failure {
        message,
        policy,
        binding: &binding.name,
        expression_index: index,
        validation_actions: &binding.actions,
    };
    let value = serde_json::to_string(&[failure]).unwrap_or_default();
    a.audit("validation.policy.admission.k8s.io/validation_failure", &value);
}
