//! Match conditions: what more must be so of a write for a webhook or a policy to look at it.

use super::{BOOL, Compiler, Expression, Extra, Scope};
use crate::admission::aggregate;
use serde_json::Value;
use skeg_cel::Value as Cel;

/// Conditions by name.
pub struct Conditions(Vec<(String, Expression)>);

/// What conditions say of a write.
#[derive(Debug, PartialEq, Eq)]
pub enum Match {
    Yes,
    No,
    /// It cannot be told: then the failure policy decides.
    Error(String),
}

impl Conditions {
    /// Compiles `matchConditions`.
    pub fn new(list: &Value, compiler: &Compiler) -> Self {
        let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        let compiler = compiler.without_variables();
        let compile = |condition: &Value| {
            let expression = compiler.compile(&text(condition, "expression"), BOOL, Extra::Asks);
            (text(condition, "name"), expression)
        };
        Conditions(list.as_array().into_iter().flatten().map(compile).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One that is false excludes the write, also where others fail.
    pub fn look(&self, scope: &Scope<'_, '_>) -> Match {
        let mut errors = Vec::new();
        for (_, condition) in &self.0 {
            match scope.evaluate(condition) {
                Ok(Ok(Cel::Bool(false))) => return Match::No,
                Ok(Ok(_)) => {}
                Ok(Err(why)) => errors.push(why),
                Err(out) => return Match::Error(out.to_string()),
            }
        }
        if errors.is_empty() { Match::Yes } else { Match::Error(aggregate(errors)) }
    }
}
