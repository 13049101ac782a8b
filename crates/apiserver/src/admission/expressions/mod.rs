//! Expressions of webhooks and policies: what they may speak of, how they are compiled and told wrong,
//! what they see of a write and what that may cost. Compiled once a configuration; objects are seen where
//! they are, and what few expressions name is made when one does.
//! Upstream counterparts: `plugin/cel` and `plugin/webhook/matchconditions` of
//! `k8s.io/apiserver/pkg/admission`.

mod asker;
pub mod check;
mod conditions;
mod input;
mod types;

pub use conditions::{Conditions, Match};
pub use input::{Input, OutOfBudget, Scope};
pub use types::VARIABLES;

use skeg_cel::{Env, Program, Type};
use std::sync::Arc;

/// The cost of all conditions of one webhook or policy for one write.
pub const CONDITIONS_BUDGET: u64 = 2_500_000;

/// What an expression must give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gives {
    Anything,
    /// Types, as they are written.
    OneOf(&'static [&'static str]),
}

pub const BOOL: Gives = Gives::OneOf(&["bool"]);
pub const TEXT: Gives = Gives::OneOf(&["string"]);
pub const TEXT_OR_NULL: Gives = Gives::OneOf(&["string", "null_type"]);
pub const PATCH: Gives = Gives::OneOf(&["list(JSONPatch)"]);
pub const OBJECT: Gives = Gives::OneOf(&["Object"]);

/// An expression, compiled or with what is wrong with it.
pub struct Expression {
    pub text: String,
    pub program: Result<Program, Fault>,
}

/// What is wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub message: String,
    /// It is well-formed, and no program can be made of it.
    pub is_internal: bool,
}

/// A named expression that later ones use.
pub struct Variable {
    pub name: String,
    pub expression: Expression,
}

/// What the expressions of one configuration may speak of.
#[derive(Clone, Default)]
pub struct Compiler {
    pub has_params: bool,
    /// Names of the variables so far, with their types; none where there are no variables at all.
    variables: Option<Vec<(String, Type)>>,
    /// Of `object`, `oldObject` and of `params`; untyped for evaluation.
    pub object: Option<Arc<skeg_cel::Declared>>,
    pub params: Option<Arc<skeg_cel::Declared>>,
}

/// What one expression may speak of beyond the rest.
#[derive(Clone, Copy, Default)]
pub struct Extra {
    pub authorizer: bool,
    /// `Object{}` and `JSONPatch{}`.
    pub mutation: bool,
}

pub const ASKS: Extra = Extra { authorizer: true, mutation: false };
pub const MUTATES: Extra = Extra { authorizer: true, mutation: true };
pub const PLAIN: Extra = Extra { authorizer: false, mutation: false };

impl Compiler {
    /// For a policy, whose later expressions may name its variables.
    pub fn with_variables(has_params: bool) -> Self {
        Compiler { has_params, variables: Some(Vec::new()), ..Self::default() }
    }

    /// The same without variables, as match conditions are.
    #[must_use]
    pub fn without_variables(&self) -> Self {
        Compiler { variables: None, ..self.clone() }
    }

    /// Compiles a variable; what comes later may name it.
    pub fn variable(&mut self, name: &str, text: &str) -> Variable {
        let expression = self.compile(text, Gives::Anything, ASKS);
        let of =
            expression.program.as_ref().map_or(Type::Dyn, |program| types::of_variable(program.value_type()));
        if let Some(variables) = &mut self.variables {
            variables.retain(|(known, _)| known != name);
            variables.push((name.to_owned(), of));
        }
        Variable { name: name.to_owned(), expression }
    }

    pub fn compile(&self, text: &str, gives: Gives, extra: Extra) -> Expression {
        let program = self.env(extra).compile(text).map_err(|issues| match issues.instantiation {
            true => Fault { message: format!("program instantiation failed: {issues}"), is_internal: true },
            false => Fault { message: format!("compilation failed: {issues}"), is_internal: false },
        });
        let program = program.and_then(|program| {
            let got = match program.value_type() {
                Type::Null => "null_type".to_owned(),
                of => of.to_string(),
            };
            match gives {
                Gives::OneOf(wanted) if !wanted.contains(&got.as_str()) => {
                    let wanted = match wanted {
                        [one] => (*one).to_owned(),
                        many => format!("one of [{}]", many.join(" ")),
                    };
                    let message = format!("must evaluate to {wanted} but got {got}");
                    Err(Fault { message, is_internal: false })
                }
                _ => Ok(program),
            }
        });
        Expression { text: text.to_owned(), program }
    }

    /// Types an expression and asks for none in particular: the faults as they are printed.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, text: &str, extra: Extra) -> Result<(), String> {
        self.env(extra).compile(text).map(drop).map_err(|issues| issues.to_string())
    }

    fn env(&self, extra: Extra) -> Env {
        let mut env = Env::new()
            .with("request", types::REQUEST.clone())
            .with("namespaceObject", types::NAMESPACE.clone());
        for name in ["object", "oldObject"] {
            env = declared(env, name, self.object.as_ref());
        }
        if self.has_params {
            env = declared(env, "params", self.params.as_ref());
        }
        if extra.authorizer {
            env = env
                .with("authorizer", Type::opaque("kubernetes.authorization.Authorizer"))
                .with("authorizer.requestResource", Type::opaque("kubernetes.authorization.ResourceCheck"));
        }
        if let Some(variables) = &self.variables {
            env = env.with("variables", Type::object(VARIABLES, variables.iter().cloned()));
            for (name, of) in variables {
                env = env.with(&format!("variables.{name}"), of.clone());
            }
        }
        if extra.mutation { env.with_mutation() } else { env }
    }
}

fn declared(env: Env, name: &str, of: Option<&Arc<skeg_cel::Declared>>) -> Env {
    match of {
        Some(of) => env.with_declared(name, of.clone()),
        None => env.with(name, Type::Dyn),
    }
}

#[cfg(test)]
mod tests;
