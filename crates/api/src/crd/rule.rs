//! One rule of a schema (`x-kubernetes-validations`), compiled, and what it says of a value.
//! Upstream counterpart: `Compile` and `validateExpressions` of
//! `apiextensions-apiserver/pkg/apiserver/schema/cel`.

use super::{field_path, text};
use crate::field::{ErrorKind, FieldError, Path};
use serde_json::Value;
use skeg_cel::{Activation, Env, ErrorKind as Failure, Limits, MESSAGE_BYTES_MAX, Program, Schema, Type};
use std::sync::Arc;

/// The variables that rules know, for one schema.
pub struct Compiler {
    plain: Env,
    /// `oldSelf` is an optional.
    optional: Env,
    /// How many values of the schema one object has at most.
    pub cardinality_max: u64,
}

impl Compiler {
    /// Nothing for a schema whose values expressions cannot see.
    pub fn new(schema: &Schema) -> Option<Self> {
        let declared = Arc::new(schema.declare("selfType")?);
        let env = Env::new().with_declared("self", declared.clone());
        Some(Compiler {
            cardinality_max: declared.cardinality_max(),
            plain: env.clone().with_declared("oldSelf", declared.clone()),
            optional: env.with_optional("oldSelf", declared),
        })
    }
}

#[derive(Debug)]
pub struct Rule {
    /// Or why it does not compile.
    pub program: Result<Program, String>,
    pub message_program: Option<Result<Program, String>>,
    pub uses_old: bool,
    pub optional_old: Option<bool>,
    rule: String,
    message: String,
    message_expression: String,
    reason: ErrorKind,
    path: Path,
}

impl Rule {
    /// Compiles one item of `x-kubernetes-validations` of a schema.
    pub fn compile(compiler: &Compiler, schema: &Value, rule: &Value) -> Self {
        let optional_old = rule.get("optionalOldSelf").and_then(Value::as_bool);
        let env = if optional_old == Some(true) { &compiler.optional } else { &compiler.plain };
        let program = compile(env, text(rule, "rule"), "").and_then(|program| match program.value_type() {
            Type::Bool => Ok(program),
            _ => Err("cel expression must evaluate to a bool".to_owned()),
        });
        let message_expression = text(rule, "messageExpression").to_owned();
        let wanted = program.is_ok() && !message_expression.is_empty();
        let message_program = wanted.then(|| {
            compile(env, &message_expression, "messageExpression ").and_then(|program| {
                match program.value_type() {
                    Type::String => Ok(program),
                    _ => Err("messageExpression must evaluate to a string".to_owned()),
                }
            })
        });
        Rule {
            uses_old: program.as_ref().is_ok_and(|program| program.names("oldSelf")),
            program,
            message_program,
            optional_old,
            rule: text(rule, "rule").trim().to_owned(),
            message: text(rule, "message").trim().to_owned(),
            message_expression,
            reason: match text(rule, "reason") {
                "FieldValueForbidden" => ErrorKind::Forbidden,
                "FieldValueRequired" => ErrorKind::Required,
                "FieldValueDuplicate" => ErrorKind::Duplicate,
                _ => ErrorKind::Invalid,
            },
            path: field_path::parse(text(rule, "fieldPath"), schema)
                .map(|(path, _)| path)
                .unwrap_or_default(),
        }
    }

    fn shown(&self) -> &str {
        if self.message.is_empty() { &self.rule } else { &self.message }
    }

    /// What is wrong with a value, where it stands at `path`.
    pub fn evaluate(&self, values: &Values<'_>, path: &dyn Fn() -> Path, left: &mut u64) -> Verdict {
        let wrong = |detail: String| FieldError::invalid(path(), values.kind, detail);
        let program = match &self.program {
            Ok(program) => program,
            Err(why) => return Verdict::Broken(wrong(format!("rule compile error: {why}"))),
        };
        let optional = self.optional_old == Some(true);
        // Without an old value there is no transition.
        if self.uses_old && values.old.is_none() && !optional {
            return Verdict::Holds;
        }
        let variables = Variables { values, optional };
        let evaluation = program.evaluate(&variables, Limits::within(*left));
        if evaluation.cost > *left {
            return Verdict::Ends(wrong(OUT_OF_BUDGET.to_owned()));
        }
        *left -= evaluation.cost;
        match evaluation.value {
            Ok(skeg_cel::Value::Bool(true)) => Verdict::Holds,
            Ok(_) => self.failed(&variables, path, left),
            Err(error) if error.kind == Failure::Cost => Verdict::Ends(wrong(format!(
                "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                self.shown()
            ))),
            Err(error) if error.message.starts_with("no such overload") => Verdict::Broken(wrong(format!(
                "'{error}': call arguments did not match a supported operator, function or macro signature for \
                 rule: {}",
                self.shown()
            ))),
            Err(error) => {
                let told = wrong(format!("{error} evaluating rule: {}", self.shown()));
                if error.kind == Failure::Interrupted { Verdict::Ends(told) } else { Verdict::Broken(told) }
            }
        }
    }

    fn failed(&self, variables: &Variables<'_, '_>, path: &dyn Fn() -> Path, left: &mut u64) -> Verdict {
        let place = || {
            let (at, below) = (path(), self.path.as_str());
            if below.is_empty() { at } else { at.child(below) }
        };
        let kind = variables.values.kind;
        let detail = match self.message(variables, left) {
            Ok(made) => made.unwrap_or_else(|| match self.message.is_empty() {
                true => format!("failed rule: {}", self.rule),
                false => self.message.clone(),
            }),
            Err(why) => return Verdict::FailsAndEnds(FieldError::invalid(place(), kind, why)),
        };
        Verdict::Fails(match self.reason {
            ErrorKind::Forbidden => FieldError::forbidden(place(), detail),
            ErrorKind::Required => FieldError::required(place(), detail),
            ErrorKind::Duplicate => FieldError::duplicate(place(), kind),
            _ => FieldError::invalid(place(), kind, detail),
        })
    }

    /// What `messageExpression` makes; nothing where it makes nothing that can be shown.
    fn message(&self, variables: &Variables<'_, '_>, left: &mut u64) -> Result<Option<String>, String> {
        let Some(Ok(program)) = &self.message_program else { return Ok(None) };
        let evaluation = program.evaluate(variables, Limits::within(*left));
        if evaluation.cost > *left {
            return Err(format!("messageExpression evaluation failed due to {RUNNING_OUT}"));
        }
        *left -= evaluation.cost;
        match evaluation.value {
            Ok(skeg_cel::Value::String(made)) => {
                let made = made.trim();
                let fits = !made.is_empty() && made.len() <= MESSAGE_BYTES_MAX && !made.contains('\n');
                Ok(fits.then(|| made.to_owned()))
            }
            Err(error) if error.kind == Failure::Cost => Err(format!(
                "no further validation rules will be run due to call cost exceeds limit for messageExpression: {:?}",
                self.message_expression
            )),
            _ => Ok(None),
        }
    }
}

const RUNNING_OUT: &str = "running out of cost budget, no further validation rules will be run";
pub const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// What a rule says of a value.
pub enum Verdict {
    Holds,
    Fails(FieldError),
    /// It cannot be told.
    Broken(FieldError),
    /// As `Fails`, and nothing more is looked at.
    FailsAndEnds(FieldError),
    /// It cannot be told, and nothing more is looked at.
    Ends(FieldError),
}

fn compile(env: &Env, expression: &str, what: &str) -> Result<Program, String> {
    env.compile(expression).map_err(|issues| match (issues.instantiation, what) {
        (true, "") => format!("program instantiation failed: {issues}"),
        (true, what) => format!("{what}instantiation failed: {issues}"),
        (false, what) => format!("{what}compilation failed: {issues}"),
    })
}

/// The value that rules judge, and the one that was there before.
pub struct Values<'v> {
    pub schema: &'v Schema,
    /// The schema's `type`, which errors show in place of the value.
    pub kind: &'v str,
    pub new: &'v Value,
    pub old: Option<&'v Value>,
}

struct Variables<'s, 'v> {
    values: &'s Values<'v>,
    optional: bool,
}

impl<'v> Activation<'v> for Variables<'_, 'v> {
    fn resolve(&self, name: &str) -> Option<Result<skeg_cel::Value<'v>, skeg_cel::Error>> {
        let values = self.values;
        let typed = |value| skeg_cel::Value::typed(value, values.schema);
        match name {
            "self" => Some(typed(values.new)),
            "oldSelf" if self.optional => {
                let old = values.old.map(typed).transpose();
                Some(old.map(|old| skeg_cel::Value::Optional(old.map(Arc::new))))
            }
            "oldSelf" => values.old.map(typed),
            _ => None,
        }
    }
}
